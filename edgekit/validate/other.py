"""Above which score an answer counts, so that few pictures of no class get one. Stage layer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.records import OtherEvaluation, OtherThreshold
from edgekit.validate.statistics import order_upper, samples_needed, wilson

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Other:
    """Pictures of no class.

    Args:
        images: `.npy`, uint8 (n, h, w, 3): those that decide, then those that are held out.
        deciding: How many decide.
        false_accept_rate: Largest share of such pictures whose answer may count.
    """

    images: Path
    deciding: int
    false_accept_rate: float


@dataclass(frozen=True)
class OtherScores:
    """What one file gives to the pictures of no class and to the test pictures.

    Args:
        artifact_sha256: The file.
        step: Distance of neighbouring scores; 0 for float scores.
        other: Highest score of each picture of no class.
        images: Highest score of each test picture.
        right: Whether the answer to each test picture is right.
    """

    artifact_sha256: str
    step: float
    other: Scores
    images: Scores
    right: npt.NDArray[np.bool_]


def threshold_of(scores: Scores, rate: float, step: float) -> float:
    """Returns the score above which an answer counts.

    It is the distribution-free upper limit of the score that a share `1 - rate` of pictures of no
    class does not exceed, by order statistics with 95 % confidence (`statistics.order_upper`):
    whatever the network and the pictures, in 19 of 20 cases at most a share `rate` of all such
    pictures scores higher. Where the pictures are too few for that, it is the highest of their
    scores. Between integer scores it lies half a step higher, so that no device's rounding decides.

    The highest output is taken and not the share of the softmax: it needs no exponential on a
    microcontroller and is exact in integers. At a rate of 5 % it answers as many validation
    pictures or more on five of six sets, int8: clothing 32 % (softmax: 25), grocery 72 (72), hands
    100 (100), leaf 39 (1), mri 68 (69), waste 29 (42); one seed (`tests/benchmarks/other.py`).

    Args:
        scores: Highest score of each picture of no class.
        rate: Share of them whose answer may count, 0 to 1.
        step: Distance of neighbouring scores; 0 for float scores.
    """
    limit = order_upper(scores, 100 * (1 - rate))
    return float(scores.max() if limit is None else limit) + step / 2


def judge_other(other: Other, answered: list[OtherScores]) -> OtherEvaluation:
    """Returns the threshold of every file, and what it comes to on pictures that did not decide.

    A score that is no number counts nowhere.

    Args:
        other: The pictures of no class.
        answered: What every file gives.
    """
    files = []
    for each in answered:
        scores, images = (
            np.where(np.isfinite(found), found, -np.inf) for found in (each.other, each.images)
        )
        threshold = threshold_of(scores[: other.deciding], other.false_accept_rate, each.step)
        held_out = scores[other.deciding :]
        accepted, false_accepts = images > threshold, int((held_out > threshold).sum())
        low, high = wilson(false_accepts, len(held_out))
        files.append(
            OtherThreshold(
                artifact_sha256=each.artifact_sha256,
                threshold=threshold,
                false_accepts=false_accepts,
                low=low,
                high=high,
                accepted=int(accepted.sum()),
                accepted_right=int((accepted & each.right).sum()),
            )
        )
    return OtherEvaluation(
        false_accept_rate=other.false_accept_rate,
        deciding=other.deciding,
        needed=samples_needed(100 * (1 - other.false_accept_rate)),
        held_out=len(answered[0].other) - other.deciding,
        images=len(answered[0].images),
        files=tuple(files),
    )
