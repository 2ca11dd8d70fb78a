"""Ranges, calibration and quantization-aware training. The only place that touches tfmot."""
