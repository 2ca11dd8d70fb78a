"""Answers that say nothing, and answers that were read the wrong way, are told from weak ones."""

import numpy as np
import pytest

from edgekit.records import Check, Status
from edgekit.runtimes.ends import Readout
from edgekit.validate.plausible import other_thresholds, plausibility

TEN = tuple("abcdefghij")


def judged(labels: list[int], answers: list[int], classes: int, outputs: int = 0) -> Check:
    scores = np.eye(outputs or classes, dtype=np.float32)[answers]
    return plausibility(scores, np.array(labels, np.int32), np.arange(classes), 0, TEN[:classes])


def weak(seed: int, images: int = 200, right: float = 0.75) -> tuple[list[int], list[int]]:
    """Returns labels of ten classes and answers of which a share is right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 10
    answers = np.where(rng.random(images) < right, labels, rng.integers(0, 10, images))
    return labels.tolist(), answers.tolist()


def test_two_of_ten_exchanged_labels_are_named() -> None:
    labels, answers = weak(1)
    exchange = {2: 7, 7: 2}
    found = judged(labels, [exchange.get(a, a) for a in answers], 10)
    assert found.status == Status.INCONCLUSIVE
    assert "the classes look permuted: c and h are exchanged" in found.detail
    assert judged(labels, answers, 10).status == Status.PASS


def test_a_turn_of_labels_and_two_exchanges_are_named() -> None:
    labels, answers = weak(2)
    turned = {0: 1, 1: 2, 2: 0, 5: 6, 6: 5}
    found = judged(labels, [turned.get(a, a) for a in answers], 10)
    assert "3 classes are in turn answered as the next: a > b > c > a" in found.detail
    assert "f and g are exchanged" in found.detail


def test_reversed_classes_are_an_exchange_and_no_offset() -> None:
    labels = [0] * 10 + [1] * 10
    found = judged(labels, [1 - label for label in labels], 2)
    assert "green" not in found.detail
    assert "a and b are exchanged: 0 of 20 pictures are right" in found.detail
    assert "--label-offset" not in found.detail


def test_a_missing_background_is_an_offset_and_no_exchange() -> None:
    labels, answers = weak(3, right=0.9)
    found = judged(labels, [a + 1 for a in answers], 10, outputs=11)
    assert "answers fit --label-offset 1" in found.detail


@pytest.mark.parametrize("right", [0.25, 0.5, 0.75])
def test_honest_weak_models_are_neither_dead_nor_misread(right: float) -> None:
    """Of 40 models at the level of 1 % at most 3 may be called misread (99.9 %)."""
    found = [judged(*weak(seed, 200, right), 10) for seed in range(40)]
    assert sum(check.status != Status.PASS for check in found) <= 3


def test_classes_that_are_often_confused_are_not_exchanged() -> None:
    """Half of each is answered as the other: a weak model, not a wrong order."""
    labels = [0] * 20 + [1] * 20 + [2] * 20
    answers = [0] * 11 + [1] * 9 + [1] * 10 + [0] * 10 + [2] * 20
    assert judged(labels, answers, 3).status == Status.PASS


def test_unbalanced_pictures_pass_with_an_honest_model_only() -> None:
    labels = [1] * 150 + [0] * 14 + [2] * 13
    dead = judged(labels, [1] * 177, 3)
    assert dead.status == Status.INCONCLUSIVE
    assert "all 177 answers are 'b' whatever the picture" in dead.detail
    assert "always answering the largest class reaches 84.7 %" in dead.detail
    honest = judged(labels, [1] * 140 + [0] * 10 + [0] * 9 + [1] * 5 + [2] * 8 + [1] * 5, 3)
    assert honest.status == Status.PASS  # 88.7 %, and informative
    below = judged(labels, [1] * 120 + [0] * 30 + [0] * 10 + [1] * 4 + [2] * 8 + [1] * 5, 3)
    assert below.status == Status.PASS  # 78 %, below the share of the largest class


def test_a_dead_model_is_not_called_misread() -> None:
    """Always b, where most pictures are a: an exchange would be right more often and no better."""
    found = judged([0] * 60 + [1] * 3 + [2] * 3, [1] * 66, 3)
    assert "whatever the picture" in found.detail
    assert "permuted" not in found.detail


def test_the_other_threshold_of_one_score_is_named_where_it_fits_surely_better() -> None:
    labels = np.array([0] * 20 + [1] * 20, np.int32)
    chances = np.where(labels == 1, 0.9, 0.1).astype(np.float32)[:, None]
    single, index = Readout(output=0, single=True, threshold=0.0), np.arange(2)
    (found,) = other_thresholds(chances, single, labels, index)
    assert "fit --threshold 0.5 (100.0 %) far better than 0 (50.0 %)" in found.detail
    assert found.gain == 0.5
    # The twins: the right threshold, two pictures of each class, and a score for each class.
    right = single.model_copy(update={"threshold": 0.5})
    assert other_thresholds(chances, right, labels, index) == []
    few = np.r_[0:2, 20:22]
    assert other_thresholds(chances[few], single, labels[few], index) == []
    assert other_thresholds(np.eye(2, dtype=np.float32)[labels], Readout(), labels, index) == []
