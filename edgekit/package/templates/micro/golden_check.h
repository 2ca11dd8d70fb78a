// Does this model answer here as it did when it was judged? Written by edgekit.
#ifndef @@UPPER@@_GOLDEN_CHECK_H_
#define @@UPPER@@_GOLDEN_CHECK_H_

#include <stddef.h>
#include <stdint.h>

namespace @@NAME@@_model {

// One input with the answer of the judged file; tensors as raw little-endian bytes.
struct Golden {
  const char *name;
  int answer;             // class with the highest score
  int accepted;           // whether that answer counts, 1 or 0; -1 is not checked
  const uint8_t *input;   // kInputBytes
  const uint8_t *output;  // kOutputBytes
  const uint8_t *pixels;  // kPixelBytes of pixels; null where none give this input
};

constexpr size_t kPixelBytes = @@PIXEL_BYTES@@;
constexpr size_t kInputBytes = @@INPUT_BYTES@@;
constexpr size_t kOutputBytes = @@OUTPUT_BYTES@@;

// Prints what differs, and at which level, and returns the number of levels that failed:
// model data and labels by their checksum; tensor level (A): exact input, raw outputs, and whether
// the answer counts; pixel level (B): pixels through preprocess.c, same input and same class.
int CheckGoldens(const Golden *goldens, size_t count);

}  // namespace @@NAME@@_model

// The same with the goldens in golden_data.cc, for a device without files.
extern "C" int @@NAME@@_selfcheck(void);

#endif  // @@UPPER@@_GOLDEN_CHECK_H_
