// From pixels to the model's input. Written by edgekit.
#ifndef @@UPPER@@_PREPROCESS_H_
#define @@UPPER@@_PREPROCESS_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Writes `count` pixels to the input tensor.
//
// pixels: @@PIXEL@@, 0 to 255, row by row from the top left, upright, and already
//   of the network's size: @@HEIGHT@@ rows of @@WIDTH@@ pixels. There is no resizing here. Scale as
//   the model was trained: @@RESIZE_WORDS@@.
// input: the data of the input tensor; may not overlap with pixels.
void @@NAME@@_preprocess(const uint8_t *pixels, @@INPUT_TYPE@@ *input, size_t count);

#ifdef __cplusplus
}
#endif

#endif  // @@UPPER@@_PREPROCESS_H_
