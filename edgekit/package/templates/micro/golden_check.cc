// Does this model answer here as it did when it was judged? Written by edgekit.
#include "golden_check.h"

#include <stdio.h>
#include <string.h>

#include "labels.h"
#include "model_data.h"
#include "model_settings.h"
#include "op_resolver.h"
#include "preprocess.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace @@NAME@@_model {
namespace {

using InputType = @@INPUT_TYPE@@;
using OutputType = @@OUTPUT_TYPE@@;
constexpr int kClasses = @@UPPER@@_CLASSES;
// Raw outputs may differ by so much between kernels of different processors.
constexpr float kToleranceSteps = @@TOLERANCE_STEPS@@;
constexpr float kToleranceShare = @@TOLERANCE_SHARE@@;
constexpr uint32_t kModelCrc = @@MODEL_CRC@@u;
constexpr uint32_t kLabelsCrc = @@LABELS_CRC@@u;

alignas(16) uint8_t arena[@@UPPER@@_ARENA_BYTES];

// CRC-32 of zlib and Ethernet; begins and goes on with what it returned.
uint32_t Crc(const uint8_t *bytes, size_t count, uint32_t crc) {
  crc = ~crc;
  for (size_t i = 0; i < count; ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
  }
  return ~crc;
}

uint32_t LabelsCrc() {
  uint32_t crc = 0;
  for (const char *label : g_@@NAME@@_labels) {
    crc = Crc(reinterpret_cast<const uint8_t *>(label), strlen(label), crc);
    crc = Crc(reinterpret_cast<const uint8_t *>("\n"), 1, crc);
  }
  return crc;
}

bool CheckCrc(const char *what, uint32_t found, uint32_t expected) {
  if (found == expected) return true;
  printf("FAIL %s: CRC-32 %08lx, not %08lx: not what this bundle was made with; copy it again\n", what,
         static_cast<unsigned long>(found), static_cast<unsigned long>(expected));
  return false;
}

struct Scores {
  OutputType value[kClasses];

  int Best() const {
    int best = 0;
    for (int i = 1; i < kClasses; ++i) {
      if (value[i] > value[best]) best = i;
    }
    return best;
  }
};

// Whether an answer with this score counts.
int Accepts(OutputType score) {
  (void)score;
  return @@ACCEPTS@@;
}

Scores ScoresFrom(const void *bytes) {
  Scores scores;
  memcpy(scores.value, bytes, sizeof(scores.value));
  return scores;
}

float Tolerance(const Scores &golden) {
  if (sizeof(OutputType) == 1) return kToleranceSteps;
  float largest = 0;
  for (OutputType score : golden.value) {
    const float size = static_cast<float>(score < 0 ? -score : score);
    if (size > largest) largest = size;
  }
  return kToleranceShare * largest;
}

// Negated so that a score that is not a number counts.
int OutsideTolerance(const Scores &found, const Scores &golden) {
  const float tolerance = Tolerance(golden);
  int count = 0;
  for (int i = 0; i < kClasses; ++i) {
    const float off = static_cast<float>(found.value[i]) - static_cast<float>(golden.value[i]);
    if (!(off <= tolerance && -off <= tolerance)) ++count;
  }
  return count;
}

// Whether a class is the golden's answer, or so close to it that the tolerance decides.
bool SameAnswer(int found, const Golden &golden, const Scores &scores) {
  const float short_of = static_cast<float>(scores.value[golden.answer]) -
                         static_cast<float>(scores.value[found]);
  return found == golden.answer || short_of <= 2 * Tolerance(scores);
}

}  // namespace

int CheckGoldens(const Golden *goldens, size_t count) {
  if (count == 0) {
    printf("FAIL goldens: none, so nothing shows what the model answers\n");
    return 1;
  }
  int failed = CheckCrc("labels", LabelsCrc(), kLabelsCrc) ? 0 : 1;
  if (!CheckCrc("model data", Crc(g_@@NAME@@_model_data, g_@@NAME@@_model_data_size, 0),
                kModelCrc)) {
    return failed + 1;  // the runtime follows the offsets in the data wherever they lead
  }

  OpResolver resolver;
  if (!AddOperators(resolver)) {
    printf("FAIL start: an operator could not be added\n");
    return failed + 1;
  }
  MicroInterpreter interpreter(GetModel(g_@@NAME@@_model_data), resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    printf("FAIL start: the runtime refuses the model, or an arena of %lu bytes is too small\n",
           static_cast<unsigned long>(sizeof(arena)));
    return failed + 1;
  }
  auto *input = interpreter.input(0);
  auto *output = interpreter.output(0);
  if (input->type != @@INPUT_TFLITE@@ || input->bytes != kInputBytes ||
      output->type != @@OUTPUT_TFLITE@@ || output->bytes != kOutputBytes) {
    printf("FAIL start: the model's input or output has another type or size\n");
    return failed + 1;
  }

  size_t wrong_a = 0;
  size_t wrong_b = 0;
  size_t with_pixels = 0;
  for (size_t i = 0; i < count; ++i) {
    const Golden &golden = goldens[i];
    const Scores expected = ScoresFrom(golden.output);
    memcpy(input->data.raw, golden.input, kInputBytes);
    if (interpreter.Invoke() != kTfLiteOk) {
      printf("FAIL tensor level (A) %s: the runtime failed\n", golden.name);
      ++wrong_a;
      continue;
    }
    const int outside = OutsideTolerance(ScoresFrom(output->data.raw), expected);
    if (outside != 0) {
      printf("FAIL tensor level (A) %s: %d of %d outputs outside the tolerance\n", golden.name,
             outside, kClasses);
      ++wrong_a;
    } else if (golden.accepted >= 0) {
      const Scores found = ScoresFrom(output->data.raw);
      if (Accepts(found.value[found.Best()]) != golden.accepted) {
        printf("FAIL tensor level (A) %s: its answer %s, but must%s: another threshold\n",
               golden.name, golden.accepted ? "does not count" : "counts",
               golden.accepted ? "" : " not");
        ++wrong_a;
      }
    }

    if (golden.pixels == nullptr) continue;
    ++with_pixels;
    @@NAME@@_preprocess(golden.pixels, reinterpret_cast<InputType *>(input->data.raw),
                        @@UPPER@@_INPUT_PIXELS);
    const uint8_t *bytes = reinterpret_cast<const uint8_t *>(input->data.raw);
    size_t differ = 0;
    for (size_t value = 0; value < kInputBytes; value += sizeof(InputType)) {
      if (memcmp(bytes + value, golden.input + value, sizeof(InputType)) != 0) ++differ;
    }
    const bool ran = interpreter.Invoke() == kTfLiteOk;
    const int answer = ran ? ScoresFrom(output->data.raw).Best() : -1;
    if (differ != 0 || !ran || !SameAnswer(answer, golden, expected)) {
      printf("FAIL pixel level (B) %s: %lu of %lu input values differ, class %d, not %d\n",
             golden.name, static_cast<unsigned long>(differ),
             static_cast<unsigned long>(kInputBytes / sizeof(InputType)), answer, golden.answer);
      ++wrong_b;
    }
  }

  if (wrong_a != 0) {
    printf("tensor level (A): %lu of %lu goldens failed: the model data is right, so it is the "
           "runtime or its kernels\n",
           static_cast<unsigned long>(wrong_a), static_cast<unsigned long>(count));
    ++failed;
  }
  if (wrong_b != 0) {
    printf("pixel level (B): %lu of %lu goldens failed: %s\n", static_cast<unsigned long>(wrong_b),
           static_cast<unsigned long>(with_pixels),
           wrong_a != 0 ? "look at the tensor level first"
                        : "model and runtime are right, so it is the preprocessing: channel order "
                          "or normalization");
    ++failed;
  }
  printf("%s: %lu goldens, %lu of them from pixels; arena: %lu of %lu bytes used\n",
         failed == 0 ? "ok" : "FAILED", static_cast<unsigned long>(count),
         static_cast<unsigned long>(with_pixels),
         static_cast<unsigned long>(interpreter.arena_used_bytes()),
         static_cast<unsigned long>(sizeof(arena)));
  return failed;
}

}  // namespace @@NAME@@_model
