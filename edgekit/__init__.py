"""edgekit: fine-tune MobileNetV2, quantize it, export it, and judge the files per device."""

import os

__version__ = "0.1.0"

# Both are read when TensorFlow is first imported: tensorflow-model-optimization needs Keras 2, and
# TensorFlow's notes about the processor are not news to anybody who fine-tunes a model.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
