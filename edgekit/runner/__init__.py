"""The program that runs on a device: `python3 runner.pyz JOB.json`.

It stands alone: the standard library, NumPy and the wheel of one runtime are all it needs, on
Python 3.9 or newer, so nothing of edgekit is installed on a device. Nothing here imports anything
outside this folder. On this machine edgekit starts the very same program.
"""
