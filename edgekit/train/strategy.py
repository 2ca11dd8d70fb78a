"""How far the search goes, and which of its phases ships. No TensorFlow here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.records import CutScore
from edgekit.train.cuts import HEAD, Cut, block_of

Strategy = Literal["auto", "head", "progressive", "fixed"]
# Test top-1 that a whole search gained over the head alone on parts of the clothing set (alpha
# 0.35, 96 px, two draws each): 5 pictures a class 0 and -1 points, 10: +4 and +4, 20: +1 and +6,
# 40: 0 and +10, 80: +9 and +7. A search that stops at late cuts was not measured on its own.
FEW_PER_CLASS = 10
LITTLE_PER_CLASS = 20
# Conventions, not measured: 5 % errors leave little to gain, 40 % say that the domain is far away.
GOOD_PROBE = 0.95
POOR_PROBE = 0.6
_LATE = ("Conv_1", "block_16", "block_15", "block_14")


@dataclass(frozen=True)
class Probe:
    """What is known behind the head phase.

    Args:
        images_per_class: Training pictures of the median class.
        validation_accuracy: Top-1 of the head on the frozen backbone (a linear probe), 0 to 1.
        train_accuracy: The same on the augmented training pictures.
        validation_errors: Validation pictures that it gets wrong.
    """

    images_per_class: int
    validation_accuracy: float
    train_accuracy: float
    validation_errors: int


@dataclass(frozen=True)
class Decision:
    """How far to go: the cuts to try in order, phases to endure without gain, and why, in words."""

    cuts: tuple[Cut, ...]
    patience: int
    reason: str


def decide(
    strategy: Strategy, further: Sequence[Cut], asked: Cut | None, patience: int, probe: Probe
) -> Decision:
    """Returns how far to unfreeze behind the head phase.

    Args:
        strategy: What the recipe asks for.
        further: All cuts behind the head, from the output to the input.
        asked: The cut of "fixed".
        patience: Phases in a row without a better validation loss that end a search.
        probe: What the head phase showed.
    """
    every = tuple(further)
    if strategy == "fixed" and asked is not None:
        cuts = () if asked.name == HEAD else (asked,)
        return Decision(cuts, patience, f"fixed: from {asked.name}, as asked")
    if strategy == "head":
        return Decision((), patience, "head: feature extraction alone, as asked")
    if strategy == "progressive":
        return Decision(every, patience, "progressive: block after block, as asked")
    return _auto(every, patience, probe)


def _auto(further: tuple[Cut, ...], patience: int, probe: Probe) -> Decision:
    count = f"{probe.images_per_class} pictures in the median class"
    seen = (
        f"the head alone is right on {probe.validation_accuracy:.1%} of the validation pictures "
        f"and {probe.train_accuracy:.1%} of the augmented training pictures"
    )
    if probe.images_per_class < FEW_PER_CLASS:
        return Decision(
            (),
            patience,
            f"auto: feature extraction, as there are but {count}; {seen}",
        )
    if probe.validation_errors == 0:
        return Decision(
            (), patience, f"auto: feature extraction, as {seen} and no error is left to remove"
        )
    late = tuple(cut for cut in further if block_of(cut.name) in _LATE)
    if probe.images_per_class < LITTLE_PER_CLASS:
        return Decision(late, 1, f"auto: late cuts only, as there are but {count}; {seen}")
    if probe.validation_accuracy >= GOOD_PROBE:
        return Decision(late, 1, f"auto: late cuts only, as {seen}, which is good already")
    if probe.validation_accuracy < POOR_PROBE:
        return Decision(
            further,
            patience + 1,
            f"auto: as far as it helps, and one phase more patient, as {seen}: far from what the "
            f"backbone learned; {count}",
        )
    return Decision(further, patience, f"auto: as far as it helps; {seen}; {count}")


def choose(
    cuts: Sequence[str], losses: Sequence[npt.NDArray[np.float64]]
) -> tuple[int, tuple[CutScore, ...], str]:
    """Returns the phase that ships by the one-standard-error rule, the curve, and why.

    The smallest unfrozen part whose validation loss is within one standard error of the lowest
    wins. Source of the rule: Breiman, Friedman, Olshen, Stone, Classification and Regression Trees
    (1984), section 3.4.3. All phases saw the same pictures, so the error is that of the paired
    differences, which is much smaller than that of a mean loss.

    Args:
        cuts: Name of each phase's cut, from the output to the input.
        losses: For each phase the validation losses of all pictures, float64 (n,), in nats.
    """
    means = [float(values.mean()) for values in losses]
    lowest = int(np.argmin(means))
    curve = []
    for cut, values, mean in zip(cuts, losses, means, strict=True):
        difference = values - losses[lowest]
        error = float(difference.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        curve.append(
            CutScore(
                cut=cut, validation_loss=mean, excess=mean - means[lowest], standard_error=error
            )
        )
    chosen = next(i for i, score in enumerate(curve) if score.excess <= score.standard_error)
    score = curve[chosen]
    if chosen == lowest:
        reason = f"{score.cut} has the lowest validation loss, {score.validation_loss:.4f}"
        if len(curve) > 1 and chosen > 0:
            reason += ", and no smaller unfrozen part is within one standard error of it"
    else:
        reason = (
            f"{score.cut} is the smallest unfrozen part within one standard error of the lowest "
            f"validation loss: {score.excess:.4f} above {cuts[lowest]}, standard error "
            f"{score.standard_error:.4f}"
        )
    return chosen, tuple(curve), reason
