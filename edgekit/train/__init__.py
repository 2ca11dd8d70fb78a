"""Fine-tuning MobileNetV2 by progressive unfreezing from the output side."""
