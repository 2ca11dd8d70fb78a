"""What `edgekit demo` needs without a network: procedural pictures and pretrained weights."""
