"""Limits on what a foreign file may make edgekit allocate, write, decode and wait for.

Bottom layer; imports nothing.
"""

# Starting weights.
# The widest MobileNetV2 (alpha 1.4) has 4.4 million weights: 17 MiB in float32, 50 MiB with the two
# moments of Adam beside them, as Keras saves a model that was trained.
WEIGHT_FILE_BYTES = 128 * 1024**2
# Address space of the process that parses it: an interpreter with NumPy and h5py takes 110 MiB, the
# file is held twice, and the arrays and a chunk of one are a fraction of that.
WEIGHT_MEMORY_BYTES = 1024**3
# It takes less than a second.
WEIGHT_SECONDS = 60.0
# h5py chooses no larger chunks, and a chunk is decompressed whole, however little of it is wanted.
WEIGHT_CHUNK_BYTES = 1024**2
# Names in one list of an HDF5 file; MobileNetV2 has 154 layers, and 260 arrays in all.
WEIGHT_NAMES = 4096
