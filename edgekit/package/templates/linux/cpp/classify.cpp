// Says what is on pictures: classify BUNDLE picture.ppm ...
#include <algorithm>
#include <cstdio>
#include <numeric>

#include "classifier.h"

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "usage: %s BUNDLE PICTURE.ppm ...\n", arguments[0]);
    return 2;
  }
  try {
    const std::string bundle = arguments[1];
    classifier::Classifier model(bundle + "/" + contract::kModel);
    const auto labels = classifier::read_labels(bundle + "/labels.txt");
    for (int at = 2; at < count; ++at) {
      const auto picture = classifier::read_ppm(arguments[at]);
      const auto raw = model.run(classifier::preprocess(picture));
      const auto likely = classifier::probabilities(raw);
      std::vector<std::size_t> order(likely.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](std::size_t a, std::size_t b) { return likely[a] > likely[b]; });
      order.resize(std::min<std::size_t>(order.size(), 5));
      std::printf("%s%s\n", arguments[at],
                  classifier::accepts(raw) ? "" : ": of no class; likest");
      for (std::size_t index : order) {
        std::printf("  %5.1f %%  %s\n", 100 * likely[index], labels[index].c_str());
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
