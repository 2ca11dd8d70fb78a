"""How far to unfreeze: by what the cuts are compared, when that ends, which wins. No TensorFlow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.records import CutScore

Strategy = Literal["auto", "head", "progressive", "fixed"]
# Fewer, and one picture is more than a point of accuracy. A convention, not measured.
FEW_VALIDATION_PICTURES = 100
# Training pictures of the median class below which every one of them is to judge, too. Another.
FEW_PER_CLASS = 20
# With more pictures than that, cross-validation is left out for its time. Another, as is FOLDS.
MOST_CROSS_VALIDATED = 2000
FOLDS = 3
# How many standard errors a trial must be above another to count as worse: 95 % of a normal
# distribution lie within two. With one, the mri pictures (alpha 0.35, 96 px, seed 1) were trained
# from block_16, to a validation cross-entropy of 0.44; from block_6 it is 0.25.
_ERRORS = 2.0


@dataclass(frozen=True)
class Probe:
    """What is known behind the head phase.

    Args:
        train_pictures: Training pictures.
        per_class: Training pictures of the median class.
        validation_pictures: Validation pictures.
        validation_errors: How many of them the head on the frozen backbone gets wrong.
    """

    train_pictures: int
    per_class: int
    validation_pictures: int
    validation_errors: int


def cross_validate(strategy: Strategy, probe: Probe) -> tuple[bool, str]:
    """Returns whether cuts are compared by cross-validation, and in words how and why.

    Args:
        strategy: What the recipe asks for.
        probe: What the head phase showed.
    """
    seen = f"the head alone is wrong on {probe.validation_errors} of {probe.validation_pictures} "
    seen += "validation pictures"
    if strategy == "progressive":
        return False, f"progressive: cut after cut, judged by the validation split; {seen}"
    few = ""
    if probe.validation_pictures < FEW_VALIDATION_PICTURES:
        few = f"{probe.validation_pictures} validation pictures are too few to choose by"
    elif probe.per_class < FEW_PER_CLASS:
        few = f"there are but {probe.per_class} training pictures in the median class"
    elif probe.validation_errors == 0:
        few = "the head alone is right on every validation picture"
    count = probe.train_pictures + probe.validation_pictures
    if few and count <= MOST_CROSS_VALIDATED:
        how = f"by cross-validation in {FOLDS} parts over {count} training and validation pictures"
        return True, f"auto: cut after cut, judged {how}, as {few}; {seen}"
    if few:
        return False, (
            f"auto: cut after cut, judged by the validation split, though {few}: there are too "
            f"many training pictures to cross-validate; {seen}"
        )
    return False, f"auto: cut after cut, judged by the validation split; {seen}"


@dataclass(frozen=True)
class Trial:
    """One cut of a comparison.

    Args:
        cut: First unfrozen layer.
        losses: Validation losses of all pictures that judge, float64 (n,), in nats.
        seconds: What its training and the frozen part for it took.
        parameters: Scalars that the optimizer updates.
    """

    cut: str
    losses: npt.NDArray[np.float64]
    seconds: float
    parameters: int


def lowest(trials: Sequence[Trial]) -> int:
    """Returns the index of the lowest mean loss."""
    return int(np.argmin([trial.losses.mean() for trial in trials]))


def worse(trial: Trial, than: Trial) -> bool:
    """Returns whether a trial's loss is above another's by more than two standard errors.

    Both saw the same pictures, so the error is that of the paired differences, which is much
    smaller than that of a mean loss.
    """
    difference = trial.losses - than.losses
    return bool(difference.mean() > _ERRORS * _standard_error(difference))


def choose(trials: Sequence[Trial]) -> tuple[int, tuple[CutScore, ...], str]:
    """Returns which cut to train from, the curve of loss and cost, and why.

    The most that can be unfrozen without being `worse` than the lowest loss. Trials are short, and
    the more is unfrozen, the more longer training brings: cross-entropy of the waste pictures
    (alpha 0.35, 96 px, seed 1) from block_13, 10, 6 and 3 was 0.66, 0.66, 0.64 and 0.68 behind 150
    steps, and 0.54, 0.51, 0.45 and 0.48 behind 600. So a tie is one for the longer run to win. What
    is unfrozen costs time in training only: the file that ships has one size.

    Args:
        trials: From the output to the input.
    """
    best = trials[lowest(trials)]
    chosen = max(i for i, trial in enumerate(trials) if not worse(trial, best))
    scores = tuple(
        CutScore(
            cut=trial.cut,
            validation_loss=float(trial.losses.mean()),
            excess=float(trial.losses.mean() - best.losses.mean()),
            standard_error=_standard_error(trial.losses - best.losses),
            seconds=trial.seconds,
            trainable_parameters=trial.parameters,
        )
        for trial in trials
    )
    score = scores[chosen]
    if trials[chosen] is best:
        reason = f"{score.cut} has the lowest validation loss in its trial"
    else:
        reason = (
            f"{score.cut} unfreezes most within two standard errors of the lowest validation loss "
            f"in a trial ({score.excess:.4f} above {best.cut}, standard error "
            f"{score.standard_error:.4f})"
        )
    return chosen, scores, reason


def _standard_error(values: npt.NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
