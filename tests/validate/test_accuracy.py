"""Accuracy from scores: counted by hand, and against a slow count."""

import numpy as np
import pytest

from edgekit.validate import statistics
from edgekit.validate.accuracy import (
    measure_accuracy,
    paired_drop,
    sqnr_db,
    top1_classes,
)


def scores_for(
    answers: list[int], outputs: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.eye(outputs, dtype=np.float32)[answers]


def test_counts_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2], np.int32)
    scores = scores_for([0, 1, 1, 1, 3, 2], 4)  # output 3 stands for no class
    accuracy = measure_accuracy(scores, labels, 4, np.array([0, 1, 2, 9]))
    assert accuracy.images == 6
    assert accuracy.top1 == pytest.approx(4 / 6)
    assert (accuracy.top1_low, accuracy.top1_high) == statistics.wilson(4, 6)
    assert accuracy.confusion == (
        (1, 1, 0, 0, 0),
        (0, 2, 0, 0, 0),
        (0, 0, 1, 0, 1),
        (0, 0, 0, 0, 0),
    )
    assert accuracy.recall_per_class == (0.5, 1.0, 0.5, None)
    assert accuracy.top5 is None


def test_top5_against_a_slow_count() -> None:
    rng = np.random.default_rng(2)
    # Few levels, as in a uint8 output, so that ties are common.
    scores = rng.integers(0, 6, (300, 11)).astype(np.float32)
    labels = rng.integers(0, 8, 300).astype(np.int32)
    index = rng.permutation(11)[:8]
    accuracy = measure_accuracy(scores, labels, 8, index)
    ranked = [np.argsort(-row, kind="stable").tolist() for row in scores]
    top1 = np.mean([r[0] == index[y] for r, y in zip(ranked, labels, strict=True)])
    top5 = np.mean([index[y] in r[:5] for r, y in zip(ranked, labels, strict=True)])
    assert accuracy.top1 == pytest.approx(top1)
    assert accuracy.top5 == pytest.approx(top5)
    assert accuracy.top5 is not None
    assert accuracy.top5 > accuracy.top1


def test_scores_that_are_not_numbers_are_wrong_answers() -> None:
    scores = scores_for([0, 1], 6)
    scores[0, 3] = np.nan
    scores[1, 1] = np.inf
    accuracy = measure_accuracy(scores, np.array([0, 1], np.int32), 6, np.arange(6))
    assert accuracy.top1 == 0
    assert accuracy.top5 == 0
    assert accuracy.confusion[0][6] == accuracy.confusion[1][6] == 1


def test_output_index_maps_classes() -> None:
    scores = scores_for([5, 0, 2], 6)
    assert top1_classes(scores, 2, np.array([2, 5])).tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    ("rows", "labels", "index"),
    [(2, [0], [0, 1]), (0, [], [0, 1]), (1, [2], [0, 1]), (1, [-1], [0, 1]), (1, [0], [0])],
)
def test_shapes_that_disagree(rows: int, labels: list[int], index: list[int]) -> None:
    with pytest.raises(ValueError, match="for"):
        measure_accuracy(
            np.zeros((rows, 3), np.float32), np.array(labels, np.int32), 2, np.array(index)
        )


def test_paired_drop_by_hand() -> None:
    labels = np.zeros(10, np.int32)
    reference = np.array([0, 0, 0, 0, 1, 1, 1, 0, 0, 0], np.int32)
    model = np.array([0, 0, 1, 1, 0, 1, 2, 1, 0, 0], np.int32)
    drop = paired_drop(reference, model, labels)
    assert (drop.images, drop.reference_only, drop.model_only) == (10, 3, 1)
    assert drop.drop_points == pytest.approx(20)
    assert drop.agreement == pytest.approx(0.5)
    assert drop.upper_points == pytest.approx(100 * statistics.tango_upper(3, 1, 10))
    assert drop.lower_points == pytest.approx(100 * statistics.tango_lower(3, 1, 10))
    assert drop.mcnemar_p == pytest.approx(0.625)


def test_paired_drop_needs_the_same_images() -> None:
    with pytest.raises(ValueError, match="shapes"):
        paired_drop(np.zeros(3, np.int32), np.zeros(4, np.int32), np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="shapes"):
        paired_drop(*(np.zeros(0, np.int32) for _ in range(3)))


def test_sqnr_of_known_noise() -> None:
    random = np.random.default_rng(6)
    reference = random.normal(size=(500, 10)).astype(np.float32)
    noise = random.normal(size=reference.shape).astype(np.float32)
    noise *= np.sqrt(np.square(reference).sum() / np.square(noise).sum())
    # A hundredth of the amplitude is a ten-thousandth of the power.
    assert sqnr_db(reference, reference + 0.01 * noise) == pytest.approx(40, abs=1e-3)
    assert sqnr_db(reference, reference + 0.02 * noise) == pytest.approx(33.98, abs=1e-2)


def test_sqnr_needs_a_finite_difference() -> None:
    reference = np.ones((3, 2), np.float32)
    assert sqnr_db(reference, reference) is None
    assert sqnr_db(reference, np.full_like(reference, np.nan)) is None
    assert sqnr_db(np.zeros_like(reference), reference) is None
