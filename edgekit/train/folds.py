"""Parts of a data set to learn from and to be judged by. NumPy only."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.fitting.feed import Feed

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Some rows of a feed, itself a `fitting.feed.Feed`.

    Args:
        feed: The whole.
        rows: Row numbers, ascending.
    """

    feed: Feed
    rows: Rows

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32 (n,)."""
        return self.feed.labels[self.rows]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors without the batch."""
        return self.feed.shapes

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of all tensors."""
        return self.feed.dtype

    @property
    def source_bytes(self) -> int:
        """Bytes of the decoded pictures behind these rows."""
        return self.feed.source_bytes * len(self.rows) // max(1, len(self.feed.labels))

    def prepare(self, epoch: int) -> None:
        """Does what the feed does before an epoch."""
        self.feed.prepare(epoch)

    def read(self, epoch: int, rows: Rows) -> tuple[npt.NDArray[Any], ...]:
        """Returns the tensors of rows of this part."""
        return self.feed.read(epoch, self.rows[rows])


def folds(labels: npt.NDArray[np.int32], count: int, seed: int) -> tuple[Rows, ...]:
    """Returns the rows of each fold: every class is dealt out evenly, in an order of the seed.

    Args:
        labels: int32 (n,).
        count: Number of folds.
        seed: Seed of the recipe.
    """
    dealt = np.empty(len(labels), np.int64)
    dealt[_class_by_class(labels, seed)] = np.arange(len(labels)) % count
    return tuple(np.flatnonzero(dealt == fold) for fold in range(count))


def sample(labels: npt.NDArray[np.int32], count: int, seed: int) -> Rows:
    """Returns so many rows, ascending, of every class in proportion; all if there are no more.

    Args:
        labels: int32 (n,).
        count: Most rows.
        seed: Seed of the recipe.
    """
    if len(labels) <= count:
        return np.arange(len(labels))
    every = np.linspace(0, len(labels), count, endpoint=False).astype(np.int64)
    return np.sort(_class_by_class(labels, seed)[every])


def _class_by_class(labels: npt.NDArray[np.int32], seed: int) -> Rows:
    """Returns all rows sorted by class, those of a class shuffled."""
    order = np.random.default_rng((seed, 0xF0)).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]
