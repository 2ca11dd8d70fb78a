"""How much a mistake on a picture of each class counts in training. No TensorFlow.

A class of weight w is trained with log(w) taken off its logit in every loss, so that the logit that
ships has it on top: `argmax w p(class | picture)` costs least where a mistake on the class costs w.
Menon et al., arXiv:2007.07314, formula 10, with w = prior ** -tau. Weights as factors of the losses
change little, as in Byrd and Lipton, arXiv:1812.03372: a network that learns every training picture
has nothing left to weigh.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.errors import SpecError

# Pictures of the largest class for each of the smallest from which on `auto` weighs. A convention,
# not measured: below it the six public sets are as they are.
WEIGHED_FROM = 10.0
# The tau above. Macro recall on the validation split of public sets whose training pictures were
# made 20:1, a head on frozen features (0.35 at 96 px, five seeds), with 0, 0.5 and 1: clothing
# 53.6, 56.3, 54.8 %; grocery 35.1, 37.4, 34.7; hands 60.0, 66.0, 68.5; leaf 83.8, 92.5, 72.4; mri
# 59.5, 66.5, 64.4; waste 56.0, 61.1, 56.0. As factors of the losses the same weights gave 53.9,
# 35.3, 60.0, 86.9, 58.9 and 56.5 with 0.5 (tests/benchmarks/class_weights.py --choose).
_POWER = 0.5


def class_weights(
    asked: Literal["auto", "none"] | Mapping[str, float],
    counts: npt.NDArray[np.integer],
    class_names: Sequence[str],
) -> tuple[tuple[float, ...] | None, str]:
    """Returns the weight of each class, the smallest 1, and why they are so.

    "auto" weighs by the root of the inverse frequency where the largest class has at least 10 times
    the pictures of the smallest.

    Args:
        asked: What the recipe asks for: "auto", "none", or weights of classes by name; classes
            that are not named have 1.
        counts: Training pictures of each class, (classes,), each above 0.
        class_names: Names of the classes, in the same order.

    Returns:
        Weights; None if all are alike. And a sentence.

    Raises:
        SpecError: If a class is named that there is not.
    """
    if asked == "none":
        return None, "every mistake counts alike, as asked"
    if asked == "auto":
        largest, smallest = int(np.argmax(counts)), int(np.argmin(counts))
        ratio = counts[largest] / counts[smallest]
        seen = (
            f"{class_names[largest]} has {ratio:.1f} times the pictures of {class_names[smallest]}"
        )
        if ratio < WEIGHED_FROM:
            return None, f"every mistake counts alike: {seen}, below {WEIGHED_FROM:g}"
        relative = counts.astype(np.float64) ** -_POWER
        why = f"weighed by the root of the inverse frequency, as {seen}"
    else:
        for name in asked:
            if name not in class_names:
                near = difflib.get_close_matches(name, class_names, 1)
                raise SpecError(
                    f"train.class_weights names the class {name!r}",
                    f"one of {', '.join(class_names[:20])}",
                    f"did you mean {near[0]}?" if near else "correct the name in the recipe",
                )
        relative = np.array([asked.get(name, 1.0) for name in class_names])
        why = "weighed as asked"
    scaled = relative / relative.min()
    least, most = int(np.argmin(scaled)), int(np.argmax(scaled))
    if scaled[most] == 1:
        return None, "every mistake counts alike, as asked"
    return tuple(float(weight) for weight in scaled), (
        f"{why}: a mistake on {class_names[most]} counts {scaled[most]:.1f} times one on "
        f"{class_names[least]}"
    )
