// Classifies pictures with the packaged model, preprocessed exactly as it was trained and judged.
//
//   classifier::Classifier model("model.tflite");
//   auto likely = classifier::probabilities(model.run(classifier::preprocess(picture)));
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tflite_c.h"

#include "contract.h"

namespace classifier {

using contract::Input;
using contract::Output;

// What keeps the package from working; the text says what and what to do.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An upright picture: rows from the top, red, green and blue of 8 bits each.
struct Picture {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;
};

// Reads a binary PPM file of 8 bits (P6). Other formats: decode them, apply their EXIF rotation and
// fill a Picture.
Picture read_ppm(const std::string& path);

// Returns the input tensor of a picture of any size: cropped or letterboxed, resized, encoded.
std::vector<Input> preprocess(const Picture& picture);

class Classifier {
 public:
  // Loads the model; throws Error if it is not the judged file, byte for byte.
  explicit Classifier(const std::string& path, int threads = contract::kThreads);

  // Returns the raw outputs to an input tensor of kHeight * kWidth * kChannels values.
  std::vector<Output> run(const std::vector<Input>& tensor);

 private:
  template <typename T, void (*Delete)(T*)>
  struct Deleter {
    void operator()(T* pointer) const { Delete(pointer); }
  };

  std::string content_;  // the interpreter reads from it as long as it lives
#ifdef HAS_XNNPACK
  std::unique_ptr<TfLiteDelegate, Deleter<TfLiteDelegate, TfLiteXNNPackDelegateDelete>> xnnpack_;
#endif
  std::unique_ptr<TfLiteModel, Deleter<TfLiteModel, TfLiteModelDelete>> model_;
  std::unique_ptr<TfLiteInterpreter, Deleter<TfLiteInterpreter, TfLiteInterpreterDelete>>
      interpreter_;
};

// Returns the index of the highest output; the lowest of equal ones.
int answer(const std::vector<Output>& raw);

// Returns whether the answer counts: its score is above contract::kScoreThreshold, which keeps out
// most pictures of no class. Every one does where the package was made without such pictures.
bool accepts(const std::vector<Output>& raw);

// Returns the probability of every class, from raw outputs.
std::vector<double> probabilities(const std::vector<Output>& raw);

// Returns the names in labels.txt, in the order of the outputs; throws Error if one was changed.
std::vector<std::string> read_labels(const std::string& path);

// Returns whether XNNPACK computes, as where the model was judged.
bool uses_xnnpack();

// Returns the content of a file.
std::string read_file(const std::string& path);

// Returns the SHA-256 of some bytes in hex.
std::string sha256(const std::string& content);

}  // namespace classifier
