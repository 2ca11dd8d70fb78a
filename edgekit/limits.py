"""Limits on what a foreign file may make edgekit allocate, write, decode and wait for.

A foreign file is one that edgekit did not make; everything that it says is a claim. Each limit lies
well above what real files need, with the reason beside it, and an error that comes from one tells
what the file asks for, the limit, and what to do. The unit stands in the name; without one it is a
number of things. Bottom layer; imports nothing.
"""

# ---- Model files ----

# VGG16 in float32, the largest of the well-known classifiers, has 553 MB.
MODEL_FILE_BYTES = 640 * 1024**2
# Text beside a model: a labels file, the record of an export. 21,843 labels (ImageNet-21k) take
# 1 MB.
TEXT_FILE_BYTES = 16 * 1024**2
# Classifiers take 224 to 600 pixels (EfficientNet-B7), a few of them 1024.
INPUT_SIDE_PX = 2048
# ImageNet-21k has 21,843 classes.
MODEL_CLASSES = 100_000
# Classifiers have a few thousand at most; ONNX functions are counted wherever they are called.
MODEL_OPERATORS = 1_000_000
# What a file says of itself, as JSON: names of tensors and texts of metadata.
MODEL_FACTS_BYTES = 64 * 1024**2
# TFLite metadata is read for contracts and labels; anything longer is not for edgekit. 2000 labels
# of 255 bytes take 0.5 MB as JSON.
TFLITE_METADATA_BYTES = 1024**2
TFLITE_METADATA_ENTRIES = 1000

# ---- What judging a model file takes ----

# The 50,000 pictures of ImageNet's validation set at 299 px are 13.4 GB.
DECODED_BYTES = 16 * 1024**3
# Scores of every picture as float32: 50,000 pictures of 1,001 outputs are 200 MB. Each is in memory
# three times while two files are compared.
ANSWERS_BYTES = 512 * 1024**2

# ---- Processes that open a model file ----

# Address space, of which a runtime reserves 70 MB for each thread without touching it. Measured: an
# ONNX file takes five times its size while it is read, so the largest one fits.
PROCESS_MEMORY_BYTES = 4 * 1024**3
# No file that such a process writes is larger: a compiled model, answers.
PROCESS_FILE_BYTES = 2 * MODEL_FILE_BYTES
# Reading a file of 552 MB takes 13 s.
READING_SECONDS = 120.0
# Starting Python, loading a runtime and a file of 552 MB, and the first answer: measured, 11 s with
# other work on both cores.
FIRST_ANSWER_SECONDS = 60.0
# EfficientNet-B7 needs 37 billion multiplications a picture, the most of the usual classifiers: 4 s
# on a slow core that does 10 billion a second; the rest is for other work on that core.
ANSWER_SECONDS = 30.0
# Boards, phones, emulators and kernels without vector instructions take this much longer. A file
# that never answers has been ended on this machine before it gets there.
TIMES_SLOWER_ELSEWHERE = 10

# ---- Starting weights ----

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

# ---- Bundles ----

# A bundle of every kind has below 100 files; no file system slows down at so many.
BUNDLE_FILES = 4096
# The largest MobileNetV2 in float32 with 1000 classes takes 25 MB, twice in a bundle for phones.
BUNDLE_BYTES = 512 * 1024**2
# Deeper than the sources of an Android library by far, and every program's recursion stands it.
BUNDLE_FOLDERS_DEEP = 16
# The longest name of a file on ext4, APFS and NTFS.
PATH_PART_BYTES = 255
# PATH_MAX of macOS; Linux allows 4096.
PATH_BYTES = 1024
# 4096 files take 0.7 MB, 20,000 names of classes 1 MB.
MANIFEST_BYTES = 16 * 1024**2
# A signature lists every file: 4096 of them take 1 MB.
SIGNATURE_BYTES = 4 * 1024**2
# edgekit writes at most 32 with pictures and 3 synthetic ones; each costs two runs of the model.
GOLDENS = 64
# 64 goldens of a large MobileNetV2 take 10 s on a slow core; edgekit stops waiting after this.
VERIFY_SECONDS = 300.0
# The files behind a TFLite model are short lists; more is refused unread.
MODEL_ARCHIVE_BYTES = 1024**2
MODEL_DIRECTORY_BYTES = 65536
# What all values in a TFLite model's metadata may take together; tables may share one long text.
MODEL_METADATA_BYTES = 4 * 1024**2

# ---- Data folders ----

# Telephones take pictures of 16320 x 12240 px; the default of `data.max_megapixels`.
PICTURE_MEGAPIXELS = 205.0
# Larger files are left out unread; so many pixels are 615 MB in 8-bit RGB without compression.
PICTURE_FILE_BYTES = 640 * 1024**2
# Folders below a class folder. The deepest of published sets are below ten; a path of more names
# than this is longer than Windows can open, and a folder copied into itself has thousands.
DATA_FOLDERS_DEEP = 100
# Names looked at behind a link that leads out of the data folder, to count what is missed there: a
# link may lead to a whole disk. So many, in folders of a thousand, were listed in 0.4 s.
LINKED_ENTRIES = 200_000
# A report keeps the confusion matrix of each of about eight files, so its size grows with the
# square: 1,000 classes, as many as ImageNet's, take some 64 MB of JSON, 2,000 four times as much.
DATA_CLASSES = 2000
# A row for each of a million pictures takes some 50 MB.
DATA_TABLE_BYTES = 128 * 1024**2
# Each may be a class where one column stands for each.
DATA_TABLE_COLUMNS = 4096
# Pictures packed into shards are unpacked into files of their own. They hardly shrink when they are
# packed, but for bitmaps of drawings, which some shards hold.
PACKED_TIMES_LARGER = 20
PACKED_MORE_BYTES = 64 * 1024**2  # of the smallest shards
# ImageNet-21k, the largest that people train classifiers on, has 14 million.
PACKED_PICTURES = 20_000_000
# Until the next few pictures are unpacked: importing TensorFlow takes 10 s with other work on both
# cores, and decompressing a shard's part with all its pictures about one.
PACKED_SECONDS = 120.0
