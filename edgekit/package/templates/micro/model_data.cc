// The model as an array. Written by edgekit; do not edit.
// sha256 of these @@MODEL_SIZE@@ bytes: @@MODEL_SHA256@@
#include "model_data.h"

// Tensors inside are read in place, so they must be aligned as in the file.
alignas(16) const unsigned char g_@@NAME@@_model_data[@@MODEL_SIZE@@] = {
@@MODEL_BYTES@@
};

const size_t g_@@NAME@@_model_data_size = sizeof(g_@@NAME@@_model_data);
