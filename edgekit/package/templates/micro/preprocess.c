// From pixels to the model's input. Written by edgekit; valid C11 and C++17.
#include "preprocess.h"

@@CODE_OF_PIXEL@@

void @@NAME@@_preprocess(const uint8_t *rgb, @@INPUT_TYPE@@ *input, size_t pixels) {
  for (size_t i = 0; i < pixels; ++i, rgb += 3, input += 3) {
    input[0] = code_of(rgb[@@FIRST@@], 0);
    input[1] = code_of(rgb[1], 1);
    input[2] = code_of(rgb[@@THIRD@@], 2);
  }
}
