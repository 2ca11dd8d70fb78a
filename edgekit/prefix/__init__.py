"""The frozen part of the network: run by an inference runtime, its results stored for training."""
