"""What keeps pictures of no class out: false accepts against the rate asked, and what that costs.

    python tests/benchmarks/other.py RUN --others DIR DIR --rates 0.01 0.05 0.1

RUN is the folder of a run, finished or stopped after its export. Pictures of the folders DIR, which
must hold none of its classes, are answered once by its float32 and its int8 TFLite file. Then they
are divided at random 500 times into pictures that decide and others that are held out, half each;
from those that decide follows the threshold, as a run has it.

Printed for each file, rate and kind of score: the share of held-out pictures above the threshold
(mean of the divisions), the share of divisions in which that is more than the rate (of all such
pictures it is more in 1 of 20 at most; the held-out half adds its own spread), the share of the
run's test pictures (--split) above it, and how many of these are right. The kinds of score: the
highest output, which edgekit takes; the highest share of their softmax (Hendrycks and Gimpel,
arXiv:1610.02136); and the energy, the logarithm of the sum of their exponentials (Liu et al.,
arXiv:2010.03759). AUROC: how often a test picture scores higher than one of no class.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, logsumexp
from scipy.stats import rankdata

from edgekit.data.picture import pixels
from edgekit.data.scan import pictures_below
from edgekit.devices import measure
from edgekit.devices.protocol import subject_of
from edgekit.folders import scratch_folder
from edgekit.pipeline import ARTIFACTS, ARTIFACTS_RECORD, STORE
from edgekit.records import Artifact, ExportRecord
from edgekit.validate.other import threshold_of

Floats = npt.NDArray[np.float64]
DIVISIONS = 500
KINDS: dict[str, Callable[[Floats], Floats]] = {
    "highest output": lambda logits: logits.max(axis=1),
    # Its logarithm, as 1 comes too near.
    "softmax": lambda logits: log_softmax(logits, axis=1).max(axis=1),
    "energy": lambda logits: logsumexp(logits, axis=1),
}


def main() -> None:
    """Prints the table of one run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--others", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--most", type=int, default=200, help="pictures of each DIR (200)")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05])
    asked = parser.parse_args()
    exported = ExportRecord.model_validate_json(
        (asked.run / ARTIFACTS / ARTIFACTS_RECORD).read_bytes()
    )
    (data,) = (asked.run / STORE / "data").iterdir()
    test, labels = (np.load(data / f"{asked.split}.{what}.npy") for what in ("images", "labels"))
    random = np.random.default_rng(0)
    others = np.stack(
        [
            pixels(path.read_bytes(), exported.preprocess)
            for folder in asked.others
            for path in random.permutation(pictures_below(folder)[0])[: asked.most]
        ]
    )
    print(f"{asked.run}: {len(test)} {asked.split} pictures, {len(others)} of no class")
    print("| file | score | AUROC | rate | false accepts | more than asked | answered | right |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for artifact in exported.artifacts:
        if (artifact.format, artifact.variant, artifact.io) in (
            ("tflite", "float32", "float32"),
            ("tflite", "int8", "int8"),
        ):
            answered = [answers(artifact, exported, asked.run, each) for each in (test, others)]
            right = answered[0].argmax(axis=1) == labels
            for name, kind in KINDS.items():
                show(artifact.path, name, *map(kind, answered), right, asked.rates)


def answers(
    artifact: Artifact, exported: ExportRecord, run: Path, images: npt.NDArray[np.uint8]
) -> Floats:
    """Returns the outputs of a file as real numbers, of shape (n, classes)."""
    with scratch_folder() as scratch:
        path = scratch / "images.npy"
        np.save(path, images)
        found = measure.answer(subject_of(artifact, run / ARTIFACTS, path, exported.preprocess))
    return measure.scores(found.raw, found.output).astype(np.float64)


def show(
    file: str, kind: str, test: Floats, others: Floats, right: npt.NDArray[np.bool_],
    rates: list[float],
) -> None:  # fmt: skip
    """Prints a line for each rate."""
    ranks = rankdata(np.concatenate([test, others]))[: len(test)]
    auroc = (ranks.sum() - len(test) * (len(test) + 1) / 2) / (len(test) * len(others))
    for rate in rates:
        random, rows = np.random.default_rng(1), []
        for _ in range(DIVISIONS):
            order = random.permutation(len(others))
            deciding, held_out = np.array_split(others[order], 2)
            threshold = threshold_of(deciding, rate, 0.0)
            accepted = test > threshold
            share = (held_out > threshold).mean()
            rightly = right[accepted].mean() if accepted.any() else np.nan
            rows.append((share, share > rate, accepted.mean(), rightly))
        means = np.nanmean(rows, axis=0)
        cells = (f"{100 * value:.1f} %" for value in (auroc, rate, *means))
        print(f"| {file} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
