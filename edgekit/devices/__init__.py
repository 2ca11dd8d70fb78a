"""Devices: where a runtime runs. Every measurement happens in a fresh process there."""
