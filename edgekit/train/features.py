"""What the backbone, before any training, makes of pictures. Imports TensorFlow."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgekit.fitting import cores
from edgekit.fitting.pictures import Pictures
from edgekit.network.graph import LOGITS, Arrays, fold, for_channels, mobilenet_v2
from edgekit.prefix.level import Compute, entering, level_to
from edgekit.train.folds import Rows

# Pictures of one call; every core makes one.
_ROWS = 32
_CALLS = 8


def features(
    splits: Sequence[Pictures],
    chosen: Sequence[Rows],
    alpha: float,
    weights: Arrays,
    progress: Callable[[int, int], None],
) -> npt.NDArray[np.float32]:
    """Returns what enters the head, one split behind the other.

    Args:
        splits: The pictures.
        chosen: Rows of each split.
        alpha: Width multiplier.
        weights: Arrays of the backbone.
        progress: Called with (pictures done, pictures in all).

    Returns:
        float32 (n, channels): means over the last feature map, rounded to float16.
    """
    nodes = mobilenet_v2(alpha)
    backbone = nodes[: [node.name for node in nodes].index(LOGITS)]
    height, width, channels = splits[0].images.shape[1:]
    folded = fold(backbone, for_channels(weights, channels))
    level = level_to(nodes, folded, (LOGITS,), (height, width))
    if level is None:
        msg = f"nothing enters {LOGITS} but {entering(nodes, LOGITS)}"
        raise AssertionError(msg)
    made: list[npt.NDArray[np.float32]] = []
    total = sum(map(len, chosen))
    for pictures, rows in zip(splits, chosen, strict=True):
        parts = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
        step = _CALLS * cores.COUNT
        for first in range(0, len(parts), step):
            made += cores.each(_Pooled(pictures, level.compute), parts[first : first + step])
            progress(sum(map(len, made)), total)
    return np.concatenate(made)


class _Pooled:
    """Gives the features of some rows of one split."""

    def __init__(self, pictures: Pictures, compute: Compute) -> None:
        self._pictures = pictures
        self._compute = compute

    def __call__(self, rows: Rows) -> npt.NDArray[np.float32]:
        images = self._pictures.images[rows].astype(np.float32)
        (pooled,) = self._compute([self._pictures.normalize(images)])
        return pooled.reshape(len(pooled), -1).astype(np.float32)
