"""Ranges of all activations from real training pictures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.fitting.pictures import Pictures
from edgekit.network.forward import run
from edgekit.network.graph import INPUT, Arrays, Node
from edgekit.network.ranges import from_limits, of_input
from edgekit.records import TensorRange


def representative_rows(
    labels: npt.NDArray[np.int32], count: int, seed: int
) -> npt.NDArray[np.int64]:
    """Returns rows of the training split, as many of each class as there are, up to `count`.

    Args:
        labels: int32 (n,) labels of the training split.
        count: Rows wanted; all rows if there are fewer.
        seed: Seed of the recipe.

    Returns:
        Sorted row numbers. Classes take turns, so none is larger than another by more than one
        until the smaller has no pictures left.
    """
    random = np.random.default_rng((seed, 0xCA))
    queues = [random.permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)]
    turns = [row for rank in range(max(map(len, queues))) for row in
             (queue[rank] for queue in queues if rank < len(queue))]  # fmt: skip
    return np.sort(np.array(turns[:count], np.int64))


def calibrate(
    nodes: tuple[Node, ...],
    weights: Arrays,
    pictures: Pictures,
    rows: npt.NDArray[np.int64],
    progress: Callable[[int, int], None],
    batch_size: int = 64,
) -> dict[str, TensorRange]:
    """Returns the smallest and largest value that each tensor takes on the given pictures.

    Args:
        nodes: The network.
        weights: Folded float weights.
        pictures: The training split.
        rows: Its rows to look at.
        progress: Called with (pictures done, pictures in all).
        batch_size: Pictures per call. Defaults to 64; does not change the result.
    """

    def limits_of(pixels: Any) -> Any:
        tensors = run(nodes, weights, {INPUT: pictures.normalize(tf.cast(pixels, tf.float32))})
        values = [tensors[node.name] for node in nodes]
        return tf.stack([[tf.reduce_min(v), tf.reduce_max(v)] for v in values])

    limits = tf.function(limits_of, autograph=False)
    seen = np.array([[np.inf, -np.inf]] * len(nodes))
    for start in range(0, len(rows), batch_size):
        found = limits(pictures.images[rows[start : start + batch_size]]).numpy()
        seen[:, 0] = np.minimum(seen[:, 0], found[:, 0])
        seen[:, 1] = np.maximum(seen[:, 1], found[:, 1])
        progress(min(start + batch_size, len(rows)), len(rows))
    ranges = {INPUT: of_input(pictures.preprocess)}
    for node, (low, high) in zip(nodes, seen, strict=True):
        ranges[node.name] = from_limits(float(low), float(high), "calibrated")
    return ranges
