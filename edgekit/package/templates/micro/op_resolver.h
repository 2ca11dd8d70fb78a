// Exactly the operators of this model, so that no other kernel is linked. Written by edgekit.
#ifndef @@UPPER@@_OP_RESOLVER_H_
#define @@UPPER@@_OP_RESOLVER_H_

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

// Sources of 2025 have the names of TensorFlow Lite Micro in tflite and the global namespace, those of
// October 2026 in tflite::micro; this header takes them from wherever they are.
namespace tflite {
namespace micro {}
}  // namespace tflite

namespace @@NAME@@_model {

using namespace ::tflite;
using namespace ::tflite::micro;

using OpResolver = MicroMutableOpResolver<@@OPERATOR_COUNT@@>;

// Returns whether the resolver has all of them now.
inline bool AddOperators(OpResolver& resolver) {
  return @@ADD_OPERATORS@@;
}

}  // namespace @@NAME@@_model

#endif  // @@UPPER@@_OP_RESOLVER_H_
