#include "classifier.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

namespace classifier {
namespace {

constexpr std::size_t kPixels = std::size_t{1} * contract::kHeight * contract::kWidth;
constexpr std::size_t kValues = kPixels * contract::kChannels;

// Pillow's arithmetic of resizing 8-bit pixels, so that the result is the same byte for byte:
// weights in fixed point of 22 bits, one pass across and one down, each rounded to 8 bits.
// Source: src/libImaging/Resample.c of Pillow.
constexpr int kPrecision = 32 - 8 - 2;
constexpr int kHalf = 1 << (kPrecision - 1);

double bilinear(double x) {
  x = std::fabs(x);
  return x < 1 ? 1 - x : 0;
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// What one output pixel is made of: input pixels from `first` on, and their weights.
struct Taps {
  int first;
  std::vector<int> weights;
};

std::vector<Taps> taps(int in, int out) {
  const bool linear = contract::kFilter == contract::Filter::bilinear;
  const double scale = static_cast<double>(in) / out;
  const double stretch = std::max(scale, 1.0);  // wider when it shrinks: antialiasing
  const double support = (linear ? 1.0 : 2.0) * stretch;
  std::vector<Taps> found;
  for (int position = 0; position < out; ++position) {
    const double center = (position + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int count = std::min(static_cast<int>(center + support + 0.5), in) - first;
    std::vector<double> real;
    double sum = 0;
    for (int tap = 0; tap < count; ++tap) {
      const double x = (tap + first - center + 0.5) * (1.0 / stretch);
      real.push_back(linear ? bilinear(x) : bicubic(x));
      sum += real.back();
    }
    std::vector<int> weights;
    for (double weight : real) {
      const double fixed = (sum != 0 ? weight / sum : weight) * (1 << kPrecision);
      weights.push_back(static_cast<int>(fixed < 0 ? fixed - 0.5 : fixed + 0.5));
    }
    found.push_back({first, std::move(weights)});
  }
  return found;
}

std::uint8_t rounded(int sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kPrecision, 0, 255));
}

Picture nearest(const Picture& from, int width, int height) {
  if (from.width == width && from.height == height) return from;
  Picture to{width, height, {}};
  const double wider = static_cast<double>(from.width) / width;
  const double higher = static_cast<double>(from.height) / height;
  std::vector<int> columns;
  double x = wider * 0.5;
  for (int column = 0; column < width; ++column, x += wider) {
    columns.push_back(std::min(static_cast<int>(x), from.width - 1));
  }
  double y = higher * 0.5;
  for (int row = 0; row < height; ++row, y += higher) {
    const int source = std::min(static_cast<int>(y), from.height - 1);
    for (int column : columns) {
      const auto* pixel = &from.rgb[(std::size_t{3} * source) * from.width + 3 * column];
      to.rgb.insert(to.rgb.end(), pixel, pixel + 3);
    }
  }
  return to;
}

Picture across(const Picture& from, int width) {
  if (from.width == width) return from;
  Picture to{width, from.height, {}};
  const auto columns = taps(from.width, width);
  for (int row = 0; row < from.height; ++row) {
    for (const auto& column : columns) {
      const auto* pixel = &from.rgb[(std::size_t{3} * row) * from.width + 3 * column.first];
      int sums[3] = {kHalf, kHalf, kHalf};
      for (int weight : column.weights) {
        for (int& sum : sums) sum += *pixel++ * weight;
      }
      for (int sum : sums) to.rgb.push_back(rounded(sum));
    }
  }
  return to;
}

Picture down(const Picture& from, int height) {
  if (from.height == height) return from;
  Picture to{from.width, height, {}};
  const std::size_t line = std::size_t{3} * from.width;
  for (const auto& row : taps(from.height, height)) {
    for (std::size_t at = 0; at < line; ++at) {
      int sum = kHalf;
      std::size_t source = row.first * line + at;
      for (int weight : row.weights) {
        sum += from.rgb[source] * weight;
        source += line;
      }
      to.rgb.push_back(rounded(sum));
    }
  }
  return to;
}

Picture resize(const Picture& from, int width, int height) {
  if (contract::kFilter == contract::Filter::nearest) return nearest(from, width, height);
  // Found by trying pictures of all shapes: so does Pillow 13.0; before, it went across first.
  const int less = from.height - height;
  const bool down_first = less > 0 && less > 2 * (from.width - width);
  return down_first ? across(down(from, height), width) : down(across(from, width), height);
}

// Returns the largest centred part that has the aspect ratio of the input, in whole pixels.
Picture center_crop(const Picture& from) {
  const double ratio = std::min(static_cast<double>(from.width) / contract::kWidth,
                                static_cast<double>(from.height) / contract::kHeight);
  // Python's round(), which the model was trained with, takes halves to the even number, too.
  const int width = static_cast<int>(std::nearbyint(contract::kWidth * ratio));
  const int height = static_cast<int>(std::nearbyint(contract::kHeight * ratio));
  const int left = (from.width - width) / 2;
  const int top = (from.height - height) / 2;
  Picture to{width, height, {}};
  for (int row = top; row < top + height; ++row) {
    const auto start = from.rgb.begin() + (std::ptrdiff_t{3} * row * from.width + 3 * left);
    to.rgb.insert(to.rgb.end(), start, start + std::ptrdiff_t{3} * width);
  }
  return to;
}

// Returns the whole picture, scaled to fit inside the input, on ground of one colour. In whole
// numbers, so that every device rounds alike; they do not fit into 32 bits.
Picture letterbox(const Picture& from) {
  const std::int64_t w = from.width, h = from.height;
  std::int64_t width = contract::kWidth, height = contract::kHeight;
  if (w * height >= h * width) {
    height = std::max<std::int64_t>(1, (2 * h * width + w) / (2 * w));
  } else {
    width = std::max<std::int64_t>(1, (2 * w * height + h) / (2 * h));
  }
  const Picture small = resize(from, static_cast<int>(width), static_cast<int>(height));
  const std::ptrdiff_t left = (contract::kWidth - small.width) / 2;
  const std::ptrdiff_t top = (contract::kHeight - small.height) / 2;
  Picture to{contract::kWidth, contract::kHeight, std::vector<std::uint8_t>(3 * kPixels)};
  for (std::size_t at = 0; at < 3 * kPixels; ++at) to.rgb[at] = contract::kFill[at % 3];
  for (std::ptrdiff_t row = 0; row < small.height; ++row) {
    const auto start = small.rgb.begin() + 3 * row * small.width;
    std::copy(start, start + std::ptrdiff_t{3} * small.width,
              to.rgb.begin() + 3 * ((top + row) * contract::kWidth + left));
  }
  return to;
}

// Returns the luma of a picture (ITU-R 601-2) in all three channels, as Pillow rounds it.
Picture luma(Picture picture) {
  for (auto pixel = picture.rgb.begin(); pixel != picture.rgb.end(); pixel += 3) {
    const int sum = 19595 * pixel[0] + 38470 * pixel[1] + 7471 * pixel[2];
    std::fill(pixel, pixel + 3, static_cast<std::uint8_t>((sum + 0x8000) >> 16));
  }
  return picture;
}

// Returns the picture in the size of the input, as the contract says.
Picture fit(const Picture& given) {
  const Picture from = contract::kChannels == 1 ? luma(given) : given;
  if (contract::kCrop == contract::Crop::letterbox) return letterbox(from);
  return resize(contract::kCrop == contract::Crop::center ? center_crop(from) : from,
                contract::kWidth, contract::kHeight);
}

std::uint32_t rotated(std::uint32_t value, int bits) {
  return value >> bits | value << (32 - bits);
}

}  // namespace

Picture read_ppm(const std::string& path) {
  const std::string content = read_file(path);
  std::size_t at = 2;
  const auto number = [&]() {
    while (at < content.size() && (std::isspace(static_cast<unsigned char>(content[at])) != 0 ||
                                   content[at] == '#')) {
      if (content[at] == '#') at = std::min(content.find('\n', at), content.size() - 1);
      ++at;
    }
    long value = 0;
    while (at < content.size() && content[at] >= '0' && content[at] <= '9' && value < 1'000'000) {
      value = 10 * value + (content[at++] - '0');
    }
    return value;
  };
  const bool binary = content.compare(0, 2, "P6") == 0;
  const long width = binary ? number() : 0;
  const long height = binary ? number() : 0;
  const long depth = binary ? number() : 0;
  ++at;  // one white space
  const long long pixels = static_cast<long long>(width) * height;
  if (width < 1 || height < 1 || pixels > contract::kMaxPixels || depth != 255) {
    throw Error(path + ": not a binary PPM picture (P6) of 8 bits and at most " +
                std::to_string(contract::kMaxPixels) + " pixels");
  }
  const std::size_t size = static_cast<std::size_t>(3 * pixels);
  if (content.size() < at + size) throw Error(path + ": cut short");
  return {static_cast<int>(width), static_cast<int>(height),
          std::vector<std::uint8_t>(content.begin() + static_cast<std::ptrdiff_t>(at),
                                    content.begin() + static_cast<std::ptrdiff_t>(at + size))};
}

std::vector<Input> preprocess(const Picture& picture) {
  const std::size_t pixels = static_cast<std::size_t>(picture.width) * picture.height;
  if (pixels == 0 || picture.rgb.size() != 3 * pixels) {
    throw Error("a picture needs width * height * 3 values");
  }
  const Picture small = fit(picture);
  std::vector<Input> tensor(kValues);
  for (std::size_t at = 0; at < kValues; ++at) {
    const std::size_t channel = at % contract::kChannels;
    const std::size_t pixel = at / contract::kChannels;
    const std::size_t source = 3 * pixel + (contract::kBgr ? 2 - channel : channel);
    tensor[at] = contract::kCodes[small.rgb[source]][channel];
  }
  return tensor;
}

Classifier::Classifier(const std::string& path, int threads) : content_(read_file(path)) {
  const std::string digest = sha256(content_);
  if (digest != contract::kSha256) {
    throw Error(path + " is not the file that was judged: its sha256 is " + digest + ", not " +
                contract::kSha256 + ". It was damaged or replaced: copy it from the bundle again.");
  }
  model_.reset(TfLiteModelCreate(content_.data(), content_.size()));
  if (!model_) throw Error(path + ": the runtime does not take it");
  TfLiteInterpreterOptions* options = TfLiteInterpreterOptionsCreate();
  TfLiteInterpreterOptionsSetNumThreads(options, threads);
#ifdef HAS_XNNPACK
  if (contract::kXnnpack) {
    TfLiteXNNPackDelegateOptions fast = TfLiteXNNPackDelegateOptionsDefault();
    fast.num_threads = threads;
    xnnpack_.reset(TfLiteXNNPackDelegateCreate(&fast));
    TfLiteInterpreterOptionsAddDelegate(options, xnnpack_.get());
  }
#endif
  interpreter_.reset(TfLiteInterpreterCreate(model_.get(), options));
  TfLiteInterpreterOptionsDelete(options);
  if (!interpreter_ || TfLiteInterpreterAllocateTensors(interpreter_.get()) != kTfLiteOk) {
    throw Error(path + ": the runtime cannot prepare it");
  }
  const TfLiteTensor* input = TfLiteInterpreterGetInputTensor(interpreter_.get(), 0);
  const TfLiteTensor* output = TfLiteInterpreterGetOutputTensor(interpreter_.get(), 0);
  if (TfLiteTensorType(input) != contract::kInputType ||
      TfLiteTensorByteSize(input) != kValues * sizeof(Input) ||
      TfLiteTensorType(output) != contract::kOutputType ||
      TfLiteTensorByteSize(output) != contract::kClasses * sizeof(Output)) {
    throw Error(path + ": the runtime sees other inputs or outputs in it than contract.h says");
  }
}

std::vector<Output> Classifier::run(const std::vector<Input>& tensor) {
  std::vector<Output> raw(contract::kClasses);
  TfLiteTensor* input = TfLiteInterpreterGetInputTensor(interpreter_.get(), 0);
  const TfLiteTensor* output = TfLiteInterpreterGetOutputTensor(interpreter_.get(), 0);
  const bool done =
      TfLiteTensorCopyFromBuffer(input, tensor.data(), tensor.size() * sizeof(Input)) ==
          kTfLiteOk &&
      TfLiteInterpreterInvoke(interpreter_.get()) == kTfLiteOk &&
      TfLiteTensorCopyToBuffer(output, raw.data(), raw.size() * sizeof(Output)) == kTfLiteOk;
  if (!done) throw Error("the runtime failed to answer");
  return raw;
}

int answer(const std::vector<Output>& raw) {
  return static_cast<int>(std::max_element(raw.begin(), raw.end()) - raw.begin());
}

bool accepts(const std::vector<Output>& raw) {
  const double code = *std::max_element(raw.begin(), raw.end());
  return contract::kOutputScale * (code - contract::kOutputZeroPoint) > contract::kScoreThreshold;
}

std::vector<double> probabilities(const std::vector<Output>& raw) {
  std::vector<double> real;
  for (Output code : raw) {
    real.push_back(contract::kOutputScale *
                   (static_cast<double>(code) - contract::kOutputZeroPoint));
  }
  if (contract::kGivesProbabilities) return real;
  const double highest = *std::max_element(real.begin(), real.end());
  double sum = 0;
  for (double& value : real) sum += value = std::exp(value - highest);
  for (double& value : real) value /= sum;
  return real;
}

std::vector<std::string> read_labels(const std::string& path) {
  std::string content = read_file(path);
  if (!content.empty() && content.back() == '\n') content.pop_back();
  if (sha256(content) != contract::kLabelsSha256) {
    throw Error(path + " does not hold the names that this model was judged with, in their order: "
                "every answer could get a wrong name. Copy it from the bundle again.");
  }
  std::istringstream lines(content);
  std::vector<std::string> labels;
  for (std::string line; std::getline(lines, line);) labels.push_back(line);
  return labels;
}

bool uses_xnnpack() {
#ifdef HAS_XNNPACK
  return contract::kXnnpack;
#else
  return false;
#endif
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (!file || !(content << file.rdbuf())) throw Error(path + ": cannot be read");
  return content.str();
}

// Source: FIPS 180-4.
std::string sha256(const std::string& content) {
  static constexpr std::uint32_t kRounds[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
      0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
      0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
      0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
      0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
      0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
      0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
      0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
      0xc67178f2};
  std::uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                            0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::string padded = content + '\x80';
  padded.append((120 - padded.size() % 64) % 64, '\0');
  const std::uint64_t bits = std::uint64_t{8} * content.size();
  for (int shift = 56; shift >= 0; shift -= 8) padded += static_cast<char>(bits >> shift);
  for (std::size_t block = 0; block < padded.size(); block += 64) {
    std::uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
      w[i] = 0;
      for (int byte = 0; byte < 4; ++byte) {
        w[i] = w[i] << 8 | static_cast<unsigned char>(padded[block + 4 * i + byte]);
      }
    }
    for (int i = 16; i < 64; ++i) {
      const std::uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
      const std::uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int i = 0; i < 64; ++i) {
      const std::uint32_t s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
      const std::uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRounds[i] + w[i];
      const std::uint32_t s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
      const std::uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const std::uint32_t sums[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] += sums[i];
  }
  std::string hex;
  for (std::uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
  }
  return hex;
}

}  // namespace classifier
