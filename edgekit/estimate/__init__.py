"""Estimates for microcontrollers that edgekit cannot reach, made on this machine.

Estimate layer, above the devices: may import errors, records, spec, runtimes and devices.
"""
