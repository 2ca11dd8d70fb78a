"""What a phase of training reads its batches from. NumPy only."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Feed(Protocol):
    """What a phase learns from: the tensors behind the frozen part, for every row and view."""

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32 (n,)."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors without the batch."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of all tensors: float16, or float32 where pictures enter."""

    @property
    def source_bytes(self) -> int:
        """Bytes of the decoded pictures that all rows come from, wherever they are read."""

    def prepare(self, epoch: int) -> None:
        """Does what one epoch needs beforehand, such as computing and storing activations."""

    def read(self, epoch: int, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
        """Returns the tensors of the given rows, each of shape (rows, *shape) and the dtype."""
