// From pixels to the model's input. Written by edgekit; valid C11 and C++17.
#include "preprocess.h"

@@CODE_OF_PIXEL@@

void @@NAME@@_preprocess(const uint8_t *pixels, @@INPUT_TYPE@@ *input, size_t count) {
  for (size_t i = 0; i < count; ++i, pixels += @@CHANNELS@@, input += @@CHANNELS@@) {
@@FED@@
  }
}
