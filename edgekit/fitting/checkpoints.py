"""Finished epochs of a phase, kept so that an interrupted run repeats at most one. NumPy only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.records import CheckpointRecord
from edgekit.store import StageKey, Store

_ARRAYS = "state.npz"


@dataclass(frozen=True)
class Checkpoint:
    """A phase behind one of its epochs: its curve so far, and the arrays that it goes on from."""

    record: CheckpointRecord
    arrays: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one phase, of which only the last is kept.

    Args:
        store: Where they lie; damaged ones are set aside there and count as absent.
        key: What the phase depends on; its stage names the folder.
    """

    store: Store
    key: StageKey

    def latest(self, epochs: int) -> Checkpoint | None:
        """Returns the last checkpoint of at most so many epochs, or None."""
        for epoch in reversed(range(epochs)):
            stored = self.store.get(self._after(epoch), CheckpointRecord)
            if stored is not None:
                with np.load(stored.folder / _ARRAYS, allow_pickle=False) as arrays:
                    return Checkpoint(stored.record, {name: arrays[name] for name in arrays.files})
        return None

    def save(self, record: CheckpointRecord, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keeps the state behind the last epoch of the record, then drops the one before."""

        def make(folder: Path) -> CheckpointRecord:
            np.savez(folder / _ARRAYS, allow_pickle=False, **arrays)
            return record

        epoch = len(record.epochs) - 1
        # A kill does not touch what was written; after a power cut the phase may start over.
        self.store.build(self._after(epoch), CheckpointRecord, make, durable=False)
        if epoch:
            self.store.remove(self._after(epoch - 1))

    def _after(self, epoch: int) -> StageKey:
        return replace(self.key, params={**self.key.params, "epoch": epoch})
