"""Tries the usual contracts of an input on labelled pictures. Stage layer.

A network that was trained on 0 to 1 and is fed -1 to 1 loses 7 to 17 points and stays above chance,
so a wrong contract looks like a weak model. Only another contract that answers surely and much
better tells.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.devices import measure
from edgekit.devices.exchange import Waiting
from edgekit.devices.protocol import Subject
from edgekit.folders import scratch_folder
from edgekit.records import Preprocess, TensorInfo
from edgekit.validate import statistics
from edgekit.validate.accuracy import Classes, OutputIndex, top1_classes
from edgekit.validate.contracts import Usual, other_contracts
from edgekit.validate.plausible import SURE, Reading, confusion_of, knows

# Every contract answers so many pictures, and the best of them so many more that a gain of ten
# points is sure: of 400 pictures it is 40 on balance.
FIRST_PICTURES = 60
MOST_PICTURES = 400
# Below this a sure gain is no wrong contract: crops and filters are worth as much.
LEAST_GAIN_POINTS = 5.0
# A network of 4 s a picture would take an hour.
MOST_SECONDS = 120.0
Reporting = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """What trying other contracts found.

    Args:
        readings: The contract that answers surely better, if there is one.
        said: What was tried, as the end of a sentence; empty where nothing had to be.
    """

    readings: tuple[Reading, ...] = ()
    said: str = ""


@dataclass(frozen=True)
class Sample:
    """Pictures and their labels, spread over the classes.

    Args:
        images: uint8 of shape `(count, height_px, width_px, 3)`, channels as in `given`.
        labels: int32 of shape `(count,)`.
        given: The contract in use.
    """

    images: npt.NDArray[np.uint8]
    labels: Classes
    given: Preprocess


def spread(labels: Classes, count: int) -> npt.NDArray[np.int64]:
    """Returns at most `count` positions, the classes as frequent as among all of them."""
    by_class = np.argsort(labels, kind="stable")
    chosen = np.linspace(0, len(labels) - 1, min(count, len(labels))).round().astype(np.int64)
    return np.sort(by_class[chosen])


def try_contracts(
    subject: Subject,
    model_input: TensorInfo,
    index: OutputIndex,
    top1: Classes,
    labels: Classes,
    seconds_a_picture: float,
    progress: Reporting,
    waiting: Waiting | None = None,
) -> Trial:
    """Returns whether a usual contract other than the given one answers surely better.

    All of them answer `FIRST_PICTURES`, the best of these then `MOST_PICTURES`; it is better when
    McNemar's test says so with all that were tried accounted for, by `LEAST_GAIN_POINTS`, and its
    answers depend on the labels. Nothing is run where too few answers are wrong for that.

    Args:
        subject: The file as it was judged: its images and the given contract.
        model_input: The file's input.
        index: int64 of shape `(classes,)`, the output that stands for each class.
        top1: Answers with the given contract, int32 of shape `(images,)`.
        labels: int32 of shape `(images,)`.
        seconds_a_picture: How long an answer takes; above `MOST_SECONDS` in all, nothing is tried.
        progress: Called with (what, done, in all).
        waiting: As in `edgekit.devices.measure.answer`. Defaults to None.

    Raises:
        EdgekitError: As `edgekit.devices.measure.answer`.
    """
    contracts = other_contracts(subject.preprocess, model_input)
    rows = spread(labels, MOST_PICTURES)
    wrong = int(np.count_nonzero(top1[rows] != labels[rows]))
    gain = 100 * wrong / len(rows)
    sure = statistics.surely_better_p(wrong, 0, len(contracts)) <= SURE
    if not contracts or not sure or gain < LEAST_GAIN_POINTS:
        return Trial()
    first = rows[spread(labels[rows], FIRST_PICTURES)]
    expected = seconds_a_picture * (len(first) * len(contracts) + len(rows))
    if expected > MOST_SECONDS:
        return Trial(said=f"; usual contracts were not tried, it would take {expected:.0f} s")
    images = np.load(subject.images, mmap_mode="r")

    def answers(contract: Usual, chosen: npt.NDArray[np.int64]) -> Classes:
        sample = Sample(images[chosen], labels[chosen], subject.preprocess)
        return _answers(subject, contract, sample, index, waiting)

    right = []
    for number, contract in enumerate(contracts):
        progress("trying usual contracts", number, len(contracts) + 1)
        right.append(int(np.count_nonzero(answers(contract, first) == labels[first])))
    best = contracts[int(np.argmax(right))]
    said = f"; nor does one of {len(contracts)} usual contracts, tried on {len(first)} pictures"
    if max(right) <= int(np.count_nonzero(top1[first] == labels[first])):
        return Trial(said=said)
    progress("trying usual contracts", len(contracts), len(contracts) + 1)
    other, given, truth = answers(best, rows), top1[rows], labels[rows]
    better = int(np.count_nonzero((other == truth) & (given != truth)))
    worse = int(np.count_nonzero((given == truth) & (other != truth)))
    net = better - worse
    if (
        statistics.surely_better_p(better, worse, len(contracts)) > SURE
        or 100 * net / len(rows) < LEAST_GAIN_POINTS
        or not knows(confusion_of(truth, other, len(index)))
    ):
        return Trial(said=said)
    detail = (
        f"the usual other contract {best.flags} ({best.words}) answers "
        f"{np.mean(other == truth):.1%} of {len(rows)} of these pictures right, far better than "
        f"{np.mean(given == truth):.1%} ({len(contracts)} were tried): give these flags, or "
        "prepare the input as it was trained"
    ).replace("%", " %")
    return Trial((Reading(detail, net / len(rows)),))


def rank_contracts(
    subject: Subject,
    contracts: Sequence[Usual],
    index: OutputIndex,
    labels: Classes,
    progress: Reporting,
    waiting: Waiting | None = None,
) -> tuple[str, ...]:
    """Returns how many of a few pictures each contract answers right, the best first, in words.

    Args:
        subject: The file and its images; its contract counts for nothing but their channel order.
        contracts: What to try, at least one.
        index: As in `try_contracts`.
        labels: As in `try_contracts`.
        progress: As in `try_contracts`.
        waiting: As in `try_contracts`.

    Raises:
        EdgekitError: As `edgekit.devices.measure.answer`.
    """
    rows = spread(labels, FIRST_PICTURES)
    images = np.load(subject.images, mmap_mode="r")
    sample = Sample(images[rows], labels[rows], subject.preprocess)
    right = []
    started = time.monotonic()
    for number, contract in enumerate(contracts):
        if number and (number + 1) * (time.monotonic() - started) / number > MOST_SECONDS:
            break
        progress("trying usual contracts", number, len(contracts))
        found = _answers(subject, contract, sample, index, waiting)
        right.append((int(np.count_nonzero(found == sample.labels)), contract))
    right.sort(key=lambda pair: -pair[0])
    return tuple(
        f"{contract.flags} ({contract.words}): {count} of {len(rows)} right"
        for count, contract in right
    )


def _answers(
    subject: Subject,
    contract: Usual,
    sample: Sample,
    index: OutputIndex,
    waiting: Waiting | None,
) -> Classes:
    """Returns the class of each answer under another contract."""
    given = sample.given
    images = sample.images
    if contract.channels != given.channels:
        images = np.ascontiguousarray(images[..., ::-1])
    with scratch_folder() as scratch:
        path = scratch / "images.npy"
        np.save(path, images)
        changed = given.model_copy(update=contract.model_dump(exclude={"words"}))
        asked = subject.model_copy(update={"images": Path(path), "preprocess": changed})
        found = measure.answer(asked, waiting=waiting)
    return top1_classes(measure.scores(found.raw, found.output, subject.readout), len(index), index)
