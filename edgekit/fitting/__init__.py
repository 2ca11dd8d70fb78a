"""The training loop that fine-tuning and quantization-aware training share."""
