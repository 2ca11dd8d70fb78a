"""Whether answers say anything about the pictures, and whether they were read the right way.

Stage layer; pure functions of scores and labels. A reading is one way to understand outputs: which
of them stands for which class. What looks like a bad model is often a good one, misread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial

import numpy as np
import numpy.typing as npt

from edgekit.records import Check
from edgekit.runtimes.ends import Readout
from edgekit.validate import statistics
from edgekit.validate.accuracy import OUTSIDE, Classes, OutputIndex, Scores, top1_classes
from edgekit.validate.verdict import check_plausible

OFFSETS_TRIED = (-1, 1)
# Saying that a file was misread holds back a PASS, so it must be sure.
SURE = 0.01
_SHOWN = 5
Confusion = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """Another way to read the same file that fits the labels surely better.

    Args:
        detail: What it is, how much better it fits and what to do, in words.
        gain: Share of the images that it reads right and the given way does not, net.
    """

    detail: str
    gain: float


def plausibility(
    scores: Scores,
    labels: Classes,
    output_index: OutputIndex,
    label_offset: int = 0,
    class_names: Sequence[str] = (),
    others: Sequence[Reading] = (),
    tried: str = "",
) -> Check:
    """Checks whether the answers depend on the labels, and fit no other reading surely better.

    Tried are the neighbouring label offsets and every exchange of labels among the classes, with
    the number of them accounted for; see `edgekit.validate.statistics.agreement_p` and
    `surely_better_p`.

    Args:
        scores: float32 of shape `(images, outputs)`.
        labels: int32 of shape `(images,)`.
        output_index: int64 of shape `(classes,)`, with `label_offset` included.
        label_offset: The offset in use. Defaults to 0.
        class_names: Names of the classes, for the words. Defaults to none: numbers.
        others: Readings found elsewhere, such as another contract of the input. Defaults to none.
        tried: What was tried to find those, in words. Defaults to nothing.
    """
    classes = len(output_index)
    names = tuple(class_names) or tuple(str(number) for number in range(classes))
    answers = top1_classes(scores, classes, output_index)
    confusion = confusion_of(labels, answers, classes)
    found = [
        *_offsets(scores, labels, output_index, label_offset, confusion),
        *_exchanges(confusion, names),
        *others,
    ]
    best = max(found, key=lambda reading: reading.gain, default=None)
    return check_plausible(
        confusion,
        label_offset,
        names,
        None if best is None else best.detail,
        f"no neighbouring label offset and no exchange of labels fits better{tried}",
    )


def other_thresholds(
    real: Scores, readout: Readout, labels: Classes, output_index: OutputIndex
) -> list[Reading]:
    """Returns the usual other threshold of a single score, if it fits surely better.

    Args:
        real: The single scores, float32 of shape `(images, 1)`.
        readout: How they are read, with its threshold. Of several scores there is no other.
        labels: int32 of shape `(images,)`.
        output_index: As in `plausibility`.
    """
    if not readout.single or readout.threshold is None:
        return []
    classes, other = len(output_index), 0.0 if readout.threshold > 0.25 else 0.5
    changed = readout.model_copy(update={"threshold": other})
    given, read = (
        top1_classes(each.scores(real), classes, output_index) for each in (readout, changed)
    )
    better = int(np.count_nonzero((read == labels) & (given != labels)))
    worse = int(np.count_nonzero((given == labels) & (read != labels)))
    if statistics.surely_better_p(better, worse) > SURE:
        return []
    if not knows(confusion_of(labels, read, classes)):
        return []
    detail = (
        f"answers fit --threshold {other:g} ({_percent(float(np.mean(read == labels)))}) far "
        f"better than {readout.threshold:g} ({_percent(float(np.mean(given == labels)))})"
    )
    return [Reading(detail, (better - worse) / len(labels))]


def confusion_of(labels: Classes, answers: Classes, classes: int) -> Confusion:
    """Returns counts of shape `(classes, classes + 1)`; the last column is answers outside them."""
    confusion = np.zeros((classes, classes + 1), dtype=np.int64)
    np.add.at(confusion, (labels, np.where(answers == OUTSIDE, classes, answers)), 1)
    return confusion


def knows(confusion: Confusion) -> bool:
    """Returns whether answers agree with the labels more often than luck explains."""
    return statistics.agreement_p(confusion) <= 1 - statistics.CONFIDENCE


def _offsets(
    scores: Scores, labels: Classes, index: OutputIndex, given: int, confusion: Confusion
) -> list[Reading]:
    """Returns the neighbouring offsets that fit surely better than the given one."""
    classes, images = len(index), len(labels)
    right = top1_classes(scores, classes, index) == labels
    found = []
    for shift in OFFSETS_TRIED:
        answers = top1_classes(scores, classes, index + shift)
        other = answers == labels
        better, worse = (int(np.count_nonzero(x)) for x in (other & ~right, right & ~other))
        p = statistics.surely_better_p(better, worse, len(OFFSETS_TRIED))
        if p <= SURE and (classes == 1 or knows(confusion_of(labels, answers, classes))):
            offset = given + shift
            detail = (
                f"answers fit --label-offset {offset} ({_percent(other.mean())}) far better than "
                f"{given} ({_percent(np.trace(confusion) / images)})"
            )
            found.append(Reading(detail, (better - worse) / images))
    return found


def _exchanges(confusion: Confusion, names: Sequence[str]) -> list[Reading]:
    """Returns the exchange of labels that fits best, if every part of it is surely better.

    The best assignment of outputs to classes (`scipy.optimize.linear_sum_assignment`) falls into
    cycles; a cycle of k classes is one of C! / ((C - k)! k) that could have been found.
    """
    from scipy.optimize import linear_sum_assignment  # slow to load, needed by few callers

    classes, images = len(names), int(confusion.sum())
    counts = confusion[:, :classes]
    # The given order wins where another one reads as many right.
    _, best = linear_sum_assignment(counts * (classes + 1) + np.eye(classes), maximize=True)
    order, sure = np.arange(classes), []
    for cycle in _cycles(best.tolist()):
        worse = int(counts[cycle, cycle].sum())
        better = int(counts[cycle, best[cycle]].sum())
        ways = factorial(classes) // (factorial(classes - len(cycle)) * len(cycle))
        if better > worse and _p_of_many(better, worse, ways) <= SURE:
            order[cycle] = best[cycle]
            sure.append(cycle)
    exchanged = confusion.copy()
    exchanged[:, :classes] = counts[:, order]
    if not sure or not knows(exchanged):
        return []
    said = [_cycle_words([names[i] for i in cycle]) for cycle in sure[:_SHOWN]]
    if len(sure) > _SHOWN:
        said.append(f"{len(sure) - _SHOWN} more exchanges")
    now, then = int(np.trace(confusion)), int(np.trace(exchanged))
    detail = (
        f"the classes look permuted: {'; '.join(said)}: {now} of {images} pictures are right as "
        f"given ({_percent(now / images)}), {then} with that set right "
        f"({_percent(then / images)}); correct the order of the labels"
    )
    return [Reading(detail, (then - now) / images)]


def _p_of_many(better: int, worse: int, ways: int) -> float:
    """Returns `surely_better_p` for more ways than a float holds."""
    p = statistics.surely_better_p(better, worse)
    return 1.0 if p > 0 and ways > 1 / p else p * ways if p > 0 else 0.0


def _cycles(order: Sequence[int]) -> list[list[int]]:
    """Returns the cycles of a permutation that move anything, each from its lowest number."""
    left = {start for start, end in enumerate(order) if start != end}
    found = []
    while left:
        cycle = [min(left)]
        while (following := order[cycle[-1]]) != cycle[0]:
            cycle.append(following)
        left -= set(cycle)
        found.append(cycle)
    return found


def _cycle_words(names: Sequence[str]) -> str:
    if len(names) == 2:
        return f"{names[0]} and {names[1]} are exchanged"
    shown = [*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else []), names[0]]
    return f"{len(names)} classes are in turn answered as the next: {' > '.join(shown)}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
