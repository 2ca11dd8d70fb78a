// The goldens of this bundle in the order of ../goldens/goldens.json. Written by edgekit.
#ifndef @@UPPER@@_GOLDEN_LIST_H_
#define @@UPPER@@_GOLDEN_LIST_H_

namespace @@NAME@@_model {

struct Listed {
  const char *name;
  int answer;
  int accepted;
  bool has_pixels;
};

constexpr Listed kListed[] = {
@@LISTED@@
};

}  // namespace @@NAME@@_model

#endif  // @@UPPER@@_GOLDEN_LIST_H_
