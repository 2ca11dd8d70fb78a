"""Ranges of all activations from real training pictures."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.errors import TrainingError
from edgekit.fitting import cores
from edgekit.fitting.pictures import Pictures
from edgekit.network.forward import quantize, run
from edgekit.network.graph import INPUT, Arrays, Node
from edgekit.network.ranges import from_limits, of_input
from edgekit.records import CalibrationMethod, TensorRange

Progress = Callable[[int, int], None]
Limits = tuple[float, float]
METHODS: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)
_HELD_OUT = 32
# What was expected instead of NaN or infinity, and what to do.
_FINITE = (
    "a network whose every value is finite",
    "look for NaN or infinity in the weights; a lower learning rate helps if training made them",
)
_BINS = 2048
# Our own line, not a measured one: below it a handful of unusual pictures sets every range.
_FEW = 32
# Share of all values on each side that "percentile" leaves outside.
_OUTSIDE = 1e-4
# What "mse" multiplies the smallest and the largest value by.
_SHRINK = np.linspace(0.3, 1.0, 36)
# Pictures of one call, of which every core makes one. All tensors of four pictures at 224 px take
# 0.1 GB at alpha 1.0.
_BATCH = 4
# Of one call with all trials side by side: what must be kept at once is 0.1 GB at 224 px and alpha
# 1.0.
_TRIAL_BATCH = 1


@dataclass(frozen=True)
class Rows:
    """Rows of the training split.

    Args:
        calibration: Sorted rows that the limits are measured on.
        held_out: Sorted rows that decide between methods; none of them is in `calibration` unless
            there is only one picture.
    """

    calibration: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]


def representative_rows(labels: npt.NDArray[np.int32], count: int, seed: int) -> Rows:
    """Returns class-balanced rows of the training split.

    Args:
        labels: int32 (n,) labels of the training split.
        count: Rows wanted for calibration. Where there are too few, a quarter of all rows, at most
            32, is held out and the rest calibrates.
        seed: Seed of the recipe.

    Returns:
        Rows to calibrate and others to choose by. Classes take turns, so none is larger than
        another by more than one until the smaller has no pictures left.
    """
    random = np.random.default_rng((seed, 0xCA))
    queues = [random.permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)]
    turns = [row for rank in range(max(map(len, queues))) for row in
             (queue[rank] for queue in queues if rank < len(queue))]  # fmt: skip
    held = min(_HELD_OUT, max(1, len(turns) // 4))
    first = max(1, min(count, len(turns) - held))
    chosen, others = turns[:first], turns[first : first + held] or turns[:1]
    return Rows(np.sort(np.array(chosen, np.int64)), np.sort(np.array(others, np.int64)))


def warnings_about(pictures: Pictures, rows: Rows) -> tuple[str, ...]:
    """Returns why ranges from these pictures may be wrong, in words.

    Args:
        pictures: The training split.
        rows: Its rows to calibrate on.
    """
    count = len(rows.calibration)
    found = []
    if count < _FEW:
        found.append(
            f"the ranges rest on {count} training picture{'s' * (count != 1)}, and what other "
            f"pictures exceed is clipped; {_FEW} or more are better (quantize.calibration_images)"
        )
    if all(np.ptp(pictures.images[row]) == 0 for row in rows.calibration):
        found.append(
            "every calibration picture is of one shade throughout, so the ranges say nothing "
            "about real pictures; look at the training pictures"
        )
    return tuple(found)


def calibrate(
    nodes: tuple[Node, ...],
    weights: Arrays,
    pictures: Pictures,
    rows: Rows,
    progress: Progress,
    method: CalibrationMethod | None = None,
) -> dict[str, TensorRange]:
    """Returns the range of every tensor.

    "min-max" takes the smallest and the largest value seen, "percentile" leaves 1e-4 of all values
    outside on each side, "mse" clips where rounding and clipping together lose the least squared
    error. Which is best differs from tensor to tensor: a rare large value may carry the answer or
    may waste half of the codes. So each tensor alone is rounded by each method in turn, and the
    method that moves the logits of held-out pictures least is taken.

    Args:
        nodes: The network.
        weights: Folded float weights.
        pictures: The training split.
        rows: Its rows to look at.
        progress: Called with (pictures done, pictures in all).
        method: One method for all tensors. Defaults to None, the best of all for each tensor.

    Raises:
        TrainingError: If a weight is not finite, or a tensor takes a value that is not.
    """
    for name, array in weights.items():
        if not np.isfinite(array).all():  # ReLU6 would hide infinity
            raise TrainingError(f"{name} is not finite", *_FINITE)
    calibrating, held_out = rows.calibration, rows.held_out
    passes = 1 if method == "min-max" else 2
    total = passes * len(calibrating) + (0 if method else len(held_out))
    extremes = _extremes(nodes, weights, pictures, calibrating, lambda n: progress(n, total))
    found: dict[str, dict[CalibrationMethod, Limits]] = {
        name: {"min-max": limits} for name, limits in extremes.items()
    }
    if method != "min-max":
        done = len(calibrating)
        counts = _histograms(
            nodes, weights, pictures, calibrating, extremes, lambda n: progress(done + n, total)
        )
        for name, (low, high) in extremes.items():
            found[name]["percentile"] = percentile_limits(counts[name], low, high)
            found[name]["mse"] = mse_limits(counts[name], low, high)
    spans = {
        name: {how: from_limits(*limits, "calibrated", how) for how, limits in ways.items()}
        for name, ways in found.items()
    }
    chosen: Mapping[str, CalibrationMethod]
    if method is None:
        done = 2 * len(calibrating)
        chosen = _least_harmful(
            nodes, weights, pictures, held_out, spans, lambda n: progress(done + n, total)
        )
    else:
        chosen = dict.fromkeys(spans, method)
    calibrated = {name: spans[name][chosen[name]] for name in spans}
    return {INPUT: of_input(pictures.preprocess), **calibrated}


def percentile_limits(counts: npt.NDArray[np.int64], low: float, high: float) -> Limits:
    """Returns the limits that leave 1e-4 of the values outside on each side.

    Args:
        counts: int64 (bins,) histogram of the values between `low` and `high`.
        low: Smallest value.
        high: Largest value.

    Returns:
        Borders of bins; a value at a border is inside.
    """
    edges = np.linspace(low, high, len(counts) + 1)
    share = np.cumsum(counts) / counts.sum()
    first = int(np.searchsorted(share, _OUTSIDE, side="right"))
    last = int(np.searchsorted(share, 1 - _OUTSIDE, side="left"))
    return float(edges[first]), float(edges[last + 1])


def mse_limits(counts: npt.NDArray[np.int64], low: float, high: float) -> Limits:
    """Returns the limits whose 8-bit grid loses the least squared error, clipping included.

    Tries 0.3 to 1 times the smallest and the largest value in steps of 0.02, each with each.

    Args:
        counts: int64 (bins,) histogram of the values between `low` and `high`.
        low: Smallest value.
        high: Largest value.
    """
    edges = np.linspace(low, high, len(counts) + 1)
    values = (edges[:-1] + edges[1:]) / 2
    lows = np.unique(np.minimum(low, 0.0) * _SHRINK)
    highs = np.unique(np.maximum(high, 0.0) * _SHRINK)
    best, limits = np.inf, (low, high)
    # From the widest on, so that a tie keeps it.
    for left in lows:
        for right in highs[::-1]:
            span = from_limits(float(left), float(right), "calibrated")
            inside = np.clip(values, span.minimum, span.maximum)
            rounded = np.round(inside / span.scale) * span.scale
            error = float(np.square(values - rounded) @ counts)
            if error < best:
                best, limits = error, (float(left), float(right))
    return limits


def _extremes(
    nodes: tuple[Node, ...],
    weights: Arrays,
    pictures: Pictures,
    rows: npt.NDArray[np.int64],
    progress: Callable[[int], None],
) -> dict[str, Limits]:
    def limits_of(pixels: Any) -> Any:
        tensors = run(nodes, weights, _entering(pictures, pixels))
        values = [tensors[node.name] for node in nodes]
        return tf.stack([[tf.reduce_min(v), tf.reduce_max(v)] for v in values])

    limits = tf.function(limits_of, autograph=False)
    seen = np.array([[np.inf, -np.inf]] * len(nodes))
    for found in _answers(limits, pictures, rows, progress):
        for node, values in zip(nodes, found, strict=True):
            if not np.isfinite(values).all():
                raise TrainingError(
                    f"{node.name} makes values that are not finite of training pictures", *_FINITE
                )
        seen[:, 0] = np.minimum(seen[:, 0], found[:, 0])
        seen[:, 1] = np.maximum(seen[:, 1], found[:, 1])
    return {
        node.name: (float(low), float(high)) for node, (low, high) in zip(nodes, seen, strict=True)
    }


def _histograms(
    nodes: tuple[Node, ...],
    weights: Arrays,
    pictures: Pictures,
    rows: npt.NDArray[np.int64],
    extremes: Mapping[str, Limits],
    progress: Callable[[int], None],
) -> dict[str, npt.NDArray[np.int64]]:
    def counts_of(pixels: Any) -> Any:
        tensors = run(nodes, weights, _entering(pictures, pixels))
        return tf.stack(
            [
                tf.histogram_fixed_width(tensors[name], limits, _BINS, tf.int64)
                for name, limits in extremes.items()
            ]
        )

    counts = tf.function(counts_of, autograph=False)
    seen = np.zeros((len(nodes), _BINS), np.int64)
    for found in _answers(counts, pictures, rows, progress):
        seen += found
    return dict(zip(extremes, seen, strict=True))


def _least_harmful(
    nodes: tuple[Node, ...],
    weights: Arrays,
    pictures: Pictures,
    rows: npt.NDArray[np.int64],
    spans: Mapping[str, Mapping[CalibrationMethod, TensorRange]],
    progress: Callable[[int], None],
) -> dict[str, CalibrationMethod]:
    """Returns the method for each tensor that, applied to it alone, moves the logits least.

    All trials go through the network side by side, along the batch: behind the node that made a
    tensor, one more copy of the pictures for each of its methods, with only that tensor rounded.
    """
    last_reader = {name: i for i, node in enumerate(nodes) for name in node.inputs}

    def moved_by(pixels: Any) -> Any:
        count = pixels.shape[0]
        live = _entering(pictures, pixels)
        for position, node in enumerate(nodes):
            value = run((node,), weights, live)[node.name]
            trials = [quantize(value[:count], span) for span in spans[node.name].values()]
            live = {
                name: tf.concat([tensor, *([tensor[:count]] * len(trials))], 0)
                for name, tensor in live.items()
                if last_reader[name] > position
            }
            live[node.name] = tf.concat([value, *trials], 0)
        logits = live[nodes[-1].name]
        logits = tf.reshape(logits, (-1, count * logits.shape[-1]))
        return tf.reduce_sum(tf.square(logits[1:] - logits[:1]), axis=1)

    moved = tf.function(moved_by, autograph=False)
    ways = [(node.name, how) for node in nodes for how in spans[node.name]]
    total = np.zeros(len(ways))
    for harm_of_all in _answers(moved, pictures, rows, progress, _TRIAL_BATCH):
        total += harm_of_all
    best: dict[str, tuple[float, CalibrationMethod]] = {}
    for (name, how), harm in zip(ways, total, strict=True):
        # The first of equals: "min-max" where nothing is gained.
        if name not in best or harm < best[name][0]:
            best[name] = harm, how
    return {name: how for name, (_, how) in best.items()}


def _entering(pictures: Pictures, pixels: Any) -> dict[str, Any]:
    return {INPUT: pictures.normalize(tf.cast(pixels, tf.float32))}


def _answers(
    function: Callable[[Any], Any],
    pictures: Pictures,
    rows: npt.NDArray[np.int64],
    progress: Callable[[int], None],
    size: int = _BATCH,
) -> Iterator[npt.NDArray[Any]]:
    """Yields what the function makes of so many pictures at a time, in order, by all cores."""
    step = size * cores.COUNT
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        parts = [chosen[first : first + size] for first in range(0, len(chosen), size)]
        yield from cores.each(
            lambda part: function(tf.constant(pictures.images[part])).numpy(), parts
        )
        progress(start + len(chosen))
