// Runs every golden of this bundle on a computer: golden_test [INPUTS]. Written by edgekit.
//
// INPUTS: the input tensor of each golden; ../goldens/inputs.bin if left out. What belongs to them
// is in golden_outputs.bin and golden_pixels.bin in the current folder.
// Exits with 0 if all is well, 1 if a golden failed, 2 if a file cannot be used.
#include <stdio.h>

#include <vector>

#include "golden_check.h"
#include "golden_list.h"

namespace {

using namespace @@NAME@@_model;

constexpr size_t kCount = sizeof(kListed) / sizeof(kListed[0]);

bool Read(const char *path, size_t bytes, std::vector<uint8_t> *content) {
  content->resize(bytes + 1);
  FILE *file = fopen(path, "rb");
  const size_t found = file == nullptr ? 0 : fread(content->data(), 1, bytes + 1, file);
  if (file != nullptr) fclose(file);
  if (file != nullptr && found == bytes) return true;
  fprintf(stderr, "%s: not a file of %lu bytes\n", path,
          static_cast<unsigned long>(bytes));
  return false;
}

}  // namespace

int main(int argc, char **argv) {
  std::vector<uint8_t> inputs, outputs, pixels;
  if (!Read(argc > 1 ? argv[1] : "../goldens/inputs.bin", kCount * kInputBytes, &inputs) ||
      !Read("golden_outputs.bin", kCount * kOutputBytes, &outputs) ||
      !Read("golden_pixels.bin", kCount * kPixelBytes, &pixels)) {
    return 2;
  }
  std::vector<Golden> goldens;
  for (size_t i = 0; i < kCount; ++i) {
    const uint8_t *picture = kListed[i].has_pixels ? &pixels[i * kPixelBytes] : nullptr;
    goldens.push_back({kListed[i].name, kListed[i].answer, kListed[i].accepted,
                       &inputs[i * kInputBytes], &outputs[i * kOutputBytes], picture});
  }
  return CheckGoldens(goldens.data(), goldens.size()) == 0 ? 0 : 1;
}
