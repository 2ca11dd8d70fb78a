"""TFLite and ONNX files from one set of folded weights and one table of ranges, audited."""
