"""How many flipped labels are found, and how many of those that are named were flipped.

Flips a share of the training labels of each set to another class, each equally likely, and looks
for wrong labels as a run does. The sets' own wrong labels count as named wrongly. The least odds of
`edgekit.train.suspicion` were chosen with `--choose --seeds 11 12`; report other seeds.

    python tests/benchmarks/suspicion.py --data DIR --weights FILE --sets clothing waste leaf
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.data.decode import decode
from edgekit.data.scan import scan
from edgekit.fitting.pictures import Pictures
from edgekit.network.native_log import load_tensorflow
from edgekit.network.starting_weights import starting_weights
from edgekit.recipe import DataSpec
from edgekit.records import Preprocess
from edgekit.train.suspicion import THRESHOLD, judged_by_others, suspicions

SPLITS = ("train", "validation", "test")
TRIED = tuple(float(value) for value in np.arange(1.5, 4.26, 0.25))


class Features(NamedTuple):
    """A set as it is judged: features, labels, the number of training pictures, and of classes."""

    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    train: int
    classes: int
    seconds: float


def features_of(data: Path, weights: str, alpha: float, size_px: int) -> Features:
    """Returns the features of a data folder, and the seconds that they took behind decoding."""
    from edgekit.train.features import features

    contract = Preprocess(height_px=size_px, width_px=size_px)
    spec = DataSpec(path=data, min_images_per_class=1)
    start = starting_weights(weights, alpha, size_px)
    if start is None:
        raise SystemExit("give --weights FILE: random weights see nothing")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = decode(scan(data), contract, spec, folder, seed=1, progress=lambda *_told: None)
        splits = [Pictures.load(folder, split, contract) for split in SPLITS]
        rows = [np.arange(len(pictures.labels)) for pictures in splits]
        started = time.monotonic()
        values = features(splits, rows, alpha, start.arrays, lambda *_told: None)
    labels = np.concatenate([pictures.labels for pictures in splits])
    seconds = time.monotonic() - started
    return Features(values, labels, len(rows[0]), len(made.class_names), seconds)


def flipped(found: Features, share: float, seed: int) -> npt.NDArray[np.int32]:
    """Returns the labels with a share of those of training pictures changed."""
    rng = np.random.default_rng((seed, 0xF11))
    rows = rng.choice(found.train, round(share * found.train), replace=False)
    labels = found.labels.copy()
    labels[rows] = (labels[rows] + rng.integers(1, found.classes, len(rows))) % found.classes
    return labels


class Score(NamedTuple):
    """What came of one trial: fractions from 0 to 1, but for the number of labels named."""

    precision: float
    recall: float
    right_class: float
    named: float


def score(
    found: Features, logarithms: npt.NDArray[np.float64], wrong: npt.NDArray[np.int32], odds: float
) -> Score:
    """Returns how well the flips among the training pictures are found."""
    flips = wrong != found.labels
    named = [item for item in suspicions(logarithms, wrong, odds) if item.row < found.train]
    hits = [item for item in named if flips[item.row]]
    right = sum(item.suggested == found.labels[item.row] for item in hits)
    return Score(
        len(hits) / max(1, len(named)), len(hits) / max(1, flips.sum()), right / max(1, len(hits)),
        len(named),
    )  # fmt: skip


def harmonic(scores: Sequence[Score]) -> float:
    """Returns the mean of the harmonic means of precision and recall."""
    return float(np.mean([2 * s.precision * s.recall / max(1e-9, s.precision + s.recall)
                          for s in scores]))  # fmt: skip


def main() -> None:
    """Prints one line a set; with `--choose`, one line for each least odds instead."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--alpha", type=float, default=0.35)
    parser.add_argument("--input-size", type=int, default=96)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--choose", action="store_true", help="try several least odds")
    asked = parser.parse_args()
    load_tensorflow()
    by_odds: dict[float, list[Score]] = {}
    for name in asked.sets:
        found = features_of(asked.data / name, asked.weights, asked.alpha, asked.input_size)
        scores: dict[float, list[Score]] = {}
        started = time.monotonic()
        for seed in asked.seeds:
            wrong = flipped(found, asked.share, seed)
            logarithms = judged_by_others(found.values, wrong, found.classes, seed)
            for odds in TRIED if asked.choose else (THRESHOLD,):
                scores.setdefault(odds, []).append(score(found, logarithms, wrong, odds))
        seconds = (time.monotonic() - started) / len(asked.seeds)
        clean = judged_by_others(found.values, found.labels, found.classes, 1)
        for odds, each in scores.items():
            by_odds.setdefault(odds, []).extend(each)
            if not asked.choose:
                mean, spread = np.mean(each, axis=0), np.std(each, axis=0)
                unflipped = len(suspicions(clean, found.labels, odds))
                print(
                    f"{name}: precision {mean[0]:.2f} ± {spread[0]:.2f}, recall {mean[1]:.2f} ± "
                    f"{spread[1]:.2f}, right class {mean[2]:.2f}, of {found.train} training labels "
                    f"{mean[3]:.0f} named; of all {len(found.labels)} unflipped labels {unflipped} "
                    f"named; features {found.seconds:.1f} s, judging {seconds:.1f} s",
                    flush=True,
                )
    if asked.choose:
        for odds, each in by_odds.items():
            print(f"least odds {odds:.2f}: mean harmonic mean {harmonic(each):.3f}")


if __name__ == "__main__":
    main()
