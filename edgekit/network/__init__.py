"""MobileNetV2 as a Keras model that trains and as the folded list of nodes that ships."""
