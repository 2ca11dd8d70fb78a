"""Folds and samples: every row once, classes dealt out evenly, and the same ones for a seed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from edgekit.train.folds import Part, Rows, folds, sample

Labels = npt.NDArray[np.int32]
SEED = 5


def of(*counts: int, shuffled: int = 0) -> Labels:
    """Returns labels of which so many are 0, 1, ... in a random order."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    return np.random.default_rng(shuffled).permutation(labels)


some_labels = st.builds(
    lambda counts, order: of(*counts, shuffled=order),
    st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    st.integers(0, 9),
)
some_seeds = st.integers(0, 2**31 - 1)


def per_class(labels: Labels, rows: Rows) -> list[int]:
    return [int((labels[rows] == label).sum()) for label in range(labels.max() + 1)]


@settings(deadline=None)
@given(labels=some_labels, count=st.integers(1, 5), seed=some_seeds)
def test_every_row_is_in_one_fold(labels: Labels, count: int, seed: int) -> None:
    found = folds(labels, count, seed)
    assert len(found) == count
    assert sorted(np.concatenate(found).tolist()) == list(range(len(labels)))
    for rows in found:
        assert (np.diff(rows) > 0).all()


@settings(deadline=None)
@given(labels=some_labels, count=st.integers(1, 5), seed=some_seeds)
def test_folds_have_as_many_rows_of_each_class_up_to_one(
    labels: Labels, count: int, seed: int
) -> None:
    found = folds(labels, count, seed)
    spread = np.array([per_class(labels, rows) for rows in found])
    assert (np.ptp(spread, axis=0) <= 1).all()
    # Remainders of one class do not fall on those of the last: the folds are of a size, too.
    assert np.ptp([len(rows) for rows in found]) <= 1


def test_rows_in_their_order_would_not_be_dealt_out_evenly() -> None:
    # The twin of the test above: classes one after another, cut into three pieces.
    labels = np.repeat(np.arange(3), 6).astype(np.int32)
    pieces = [per_class(labels, rows) for rows in np.array_split(np.arange(18), 3)]
    assert np.ptp(pieces, axis=0).tolist() == [6, 6, 6]
    assert [per_class(labels, rows) for rows in folds(labels, 3, SEED)] == [[2, 2, 2]] * 3


@settings(deadline=None)
@given(labels=some_labels, count=st.integers(0, 60), seed=some_seeds)
def test_a_sample_has_so_many_different_rows_in_order(
    labels: Labels, count: int, seed: int
) -> None:
    rows = sample(labels, count, seed)
    assert len(rows) == min(count, len(labels))
    assert (np.diff(rows) > 0).all()
    assert set(rows.tolist()) <= set(range(len(labels)))


@settings(deadline=None)
@given(labels=some_labels, count=st.integers(1, 60), seed=some_seeds)
def test_a_sample_has_every_class_in_proportion_up_to_one(
    labels: Labels, count: int, seed: int
) -> None:
    share = min(1.0, count / len(labels))
    expected = np.array(per_class(labels, np.arange(len(labels)))) * share
    found = per_class(labels, sample(labels, count, seed))
    assert (np.abs(np.array(found) - expected) < 1 + 1e-9).all()


def test_of_a_rare_class_a_sample_has_its_share() -> None:
    labels = of(9000, 900, 100)
    assert per_class(labels, sample(labels, 1000, SEED)) == [900, 90, 10]
    # The twin: rows drawn without looking at the classes.
    drawn = np.random.default_rng(SEED).choice(10_000, 1000, replace=False)
    assert per_class(labels, drawn) != [900, 90, 10]


def test_a_sample_of_no_fewer_rows_is_all_of_them() -> None:
    labels = of(4, 4)
    for count in (8, 9, 10**9):
        assert sample(labels, count, SEED).tolist() == list(range(8))
    assert len(sample(labels, 7, SEED)) == 7


def test_the_seed_decides_which_rows() -> None:
    labels = of(30, 30, 30)
    for one, same, other in zip(
        folds(labels, 3, SEED), folds(labels, 3, SEED), folds(labels, 3, SEED + 1), strict=True
    ):
        assert one.tolist() == same.tolist() != other.tolist()
    assert sample(labels, 20, SEED).tolist() == sample(labels, 20, SEED).tolist()
    assert sample(labels, 20, SEED).tolist() != sample(labels, 20, SEED + 1).tolist()


@dataclass
class Numbered:
    """A feed whose only tensor holds 100 times the epoch plus the row."""

    labels: Labels
    prepared: list[int]

    shapes = ((2,),)
    dtype = np.dtype(np.float16)
    source_bytes = 1000

    def prepare(self, epoch: int) -> None:
        self.prepared.append(epoch)

    def read(self, epoch: int, rows: Rows) -> tuple[npt.NDArray[np.float16], ...]:
        return (np.repeat(100 * epoch + rows, 2).reshape(-1, 2).astype(np.float16),)


def test_a_part_shows_its_rows_of_the_whole() -> None:
    whole = Numbered(np.arange(10, dtype=np.int32) % 3, [])
    part = Part(whole, np.array([1, 4, 8]))
    assert part.labels.tolist() == [1, 1, 2]
    assert (part.shapes, part.dtype) == (whole.shapes, whole.dtype)
    assert part.source_bytes == 300  # three of ten pictures
    (tensor,) = part.read(2, np.array([2, 0]))
    assert tensor.tolist() == [[208, 208], [201, 201]]
    part.prepare(3)
    assert whole.prepared == [3]
    with pytest.raises(IndexError):
        part.read(0, np.array([3]))
