// A few goldens as arrays, for a device without files. Written by edgekit; do not edit.
// They take @@EMBEDDED_BYTES@@ bytes of flash, only in programs that call @@NAME@@_selfcheck.
#include "golden_check.h"

namespace @@NAME@@_model {
namespace {

@@EMBEDDED_ARRAYS@@

constexpr Golden kGoldens[] = {
@@EMBEDDED_GOLDENS@@
};

}  // namespace
}  // namespace @@NAME@@_model

int @@NAME@@_selfcheck(void) {
  using namespace @@NAME@@_model;
  return CheckGoldens(kGoldens, sizeof(kGoldens) / sizeof(kGoldens[0]));
}
