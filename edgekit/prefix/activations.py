"""Activations at cuts, computed once for every view and stored as memory-mapped float16."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.code_version import code_version
from edgekit.errors import SpecError
from edgekit.fitting import cores
from edgekit.fitting.augment import Draws, changed, draw
from edgekit.fitting.pictures import Pictures
from edgekit.network.graph import INPUT
from edgekit.prefix.inference import BATCH_ROWS
from edgekit.prefix.level import Level, bytes_per_row
from edgekit.recipe import AugmentSpec
from edgekit.records import ShardRecord
from edgekit.store import StageKey, Store

STAGE = "activations"
_SHARD_ROWS = 1024
# Between two chunks the cores wait for one another, and the display is told.
_CHUNK_ROWS = 256
_TOOLS = ("tensorflow", "ai-edge-litert", "opencv-python-headless", "numpy")
Rows = npt.NDArray[np.int64]
Halves = dict[str, npt.NDArray[np.float16]]


@dataclass(frozen=True)
class Shelf:
    """Where activations are kept, and how much room they may take.

    Args:
        store: The store; activations are content-addressed in it.
        data: Digest of the decoded pictures.
        budget_bytes: Most bytes that activations may take at a time.
        say: Called with one line when something could not be kept.
        progress: Called with (what, rows done, rows in all) while activations are computed.
    """

    store: Store
    data: str
    budget_bytes: int
    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]

    def room(self) -> int:
        """Returns the bytes that may be used: the budget, or half of what the disk has left.

        What activations take already counts as free, so that a run which continues plans alike.
        """
        free = self.store.free_bytes() + self.store.bytes_of(f"{STAGE}-*")
        return min(self.budget_bytes, free // 2)


class Activations:
    """What a level makes of one split, stored or computed on the spot.

    Which of the two does not change a value: the results are rounded to float16 in either case,
    and computed row by row alike.

    Args:
        pictures: The split.
        split: Its name.
        level: From the pictures to the tensors, or None if the pictures themselves are read.
        augmentation: Random changes, or None for the pictures as they are.
        views: Number of differently changed versions of each picture.
        seed: Seed of the recipe.
        shelf: Where they are kept.

    Attributes:
        stored: Views that are to be kept; at first none.
        refused: Views that are not kept for lack of room.
    """

    def __init__(
        self,
        pictures: Pictures,
        split: str,
        level: Level | None,
        *,
        augmentation: AugmentSpec | None,
        views: int,
        seed: int,
        shelf: Shelf,
    ) -> None:
        self.pictures = pictures
        self.level = level
        self.stored: set[int] = set()
        self.views = views
        self.refused: set[int] = set()
        self.computed_rows = 0
        self.computed_seconds = 0.0
        self._split = split
        self._augmentation = augmentation
        self._seed = seed
        self._shelf = shelf
        self._maps: dict[int, list[Halves]] = {}
        self._draws: dict[int, Draws] = {}

    def prepare(self, view: int) -> None:
        """Computes and stores a view that is to be stored and is not there yet."""
        if view not in self.stored or view in self._maps:
            return
        try:
            self._maps[view] = self._kept(view)
        except (SpecError, OSError) as error:
            # The disk is full or gone: training goes on, and computes what it cannot read.
            reason = getattr(error, "received", error)
            self._shelf.say(f"activations of view {view + 1} are not stored: {reason}")
            self.stored.discard(view)
            self.refused.add(view)
            for rows in self._shards():
                self._shelf.store.remove(self._key(view, rows))

    def tensors(self, view: int, rows: Rows, names: Sequence[str]) -> tuple[npt.NDArray[Any], ...]:
        """Returns tensors of the given rows.

        Args:
            view: Which version of the pictures.
            rows: Row numbers (n,), in any order.
            names: Outputs of the level, float16; or `graph.INPUT` alone, float32.
        """
        found: Mapping[str, npt.NDArray[Any]]
        if INPUT in names:
            shape = self.pictures.images.shape[1:]
            found = {INPUT: np.empty((len(rows), *shape), np.float32)}
            self._spread(lambda part: {INPUT: self._images(view, part)}, view, rows, found)
        elif view in self._maps:
            found = self._read(view, rows, names)
        else:
            found = self._timed(view, rows)
        return tuple(found[name] for name in names)

    def _read(self, view: int, rows: Rows, names: Sequence[str]) -> Halves:
        shard, row = rows // _SHARD_ROWS, rows % _SHARD_ROWS
        result = {}
        for name in names:
            values = np.empty((len(rows), *self._outputs[name]), np.float16)
            for place in np.unique(shard):
                here = shard == place
                values[here] = self._maps[view][place][name][row[here]]
            result[name] = values
        return result

    @property
    def _outputs(self) -> Mapping[str, tuple[int, ...]]:
        return self.level.outputs if self.level else {}

    def _spread(
        self,
        answer: Callable[[Rows], Mapping[str, npt.NDArray[Any]]],
        view: int,
        rows: Rows,
        results: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Fills `results` by all cores, each of which takes a few pictures all the way."""
        self._drawn(view)  # here, or every core would

        def part(start: int) -> None:
            stop = start + BATCH_ROWS
            for name, values in answer(rows[start:stop]).items():
                results[name][start:stop] = values

        cores.each(part, range(0, len(rows), BATCH_ROWS))

    def _images(self, view: int, rows: Rows) -> npt.NDArray[np.float32]:
        """Returns a few pictures as they enter, changed on one core."""
        draws = self._drawn(view)
        images = np.empty((len(rows), *self.pictures.images.shape[1:]), np.float32)
        for place, row in enumerate(rows):
            pixels = self.pictures.images[row]
            if draws is None:
                images[place] = self.pictures.normalize(pixels.astype(np.float32))
            else:
                images[place] = changed(pixels, draws, int(row), self.pictures.normalize)
        return images

    def _drawn(self, view: int) -> Draws | None:
        """Returns the random parameters of a view, drawn once."""
        if self._augmentation is not None and view not in self._draws:
            height, width = self.pictures.images.shape[1:3]
            self._draws[view] = draw(
                self._augmentation,
                count=len(self.pictures.labels),
                size_px=(height, width),
                seed=self._seed,
                view=view,
            )
        return self._draws.get(view)

    def lies(self, view: int) -> bool:
        """Returns whether a view lies on the disk by now."""
        return view in self._maps

    def kept(self) -> int:
        """Returns how many views lie on the disk by now."""
        return len(self._maps)

    def planned(self) -> list[StageKey]:
        """Returns the keys of all shards that are to be stored."""
        return [self._key(view, rows) for view in sorted(self.stored) for rows in self._shards()]

    def view_bytes(self) -> int:
        """Returns the bytes that one view takes on the disk."""
        return len(self.pictures.labels) * bytes_per_row(self._outputs)

    def _shards(self) -> Iterator[Rows]:
        count = len(self.pictures.labels)
        for start in range(0, count, _SHARD_ROWS):
            yield np.arange(start, min(start + _SHARD_ROWS, count))

    def _kept(self, view: int) -> list[Halves]:
        found = []
        for rows in self._shards():
            stored = self._shelf.store.build(
                self._key(view, rows), ShardRecord, partial(self._fill, view, rows), durable=False
            )
            found.append(
                {
                    name: np.load(stored.folder / f"{name}.npy", mmap_mode="r")
                    for name in self._outputs
                }
            )
        return found

    def _fill(self, view: int, rows: Rows, folder: Path) -> ShardRecord:
        """Writes the tensors of one shard."""
        what = f"frozen part, {self._split}"
        if self.views > 1:
            what += f", view {view + 1} of {self.views}"
        started = time.monotonic()
        # Written, not mapped: a full disk must raise an error instead of killing the process.
        with contextlib.ExitStack() as stack:
            files = {}
            for name, shape in self._outputs.items():
                files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
                np.lib.format.write_array_header_1_0(
                    files[name],
                    {"descr": "<f2", "fortran_order": False, "shape": (len(rows), *shape)},
                )
            for start in range(0, len(rows), _CHUNK_ROWS):
                part = rows[start : start + _CHUNK_ROWS]
                values = self._timed(view, part)
                for name, file in files.items():
                    file.write(values[name].data)
                rate = (start + len(part)) / (time.monotonic() - started)
                self._shelf.progress(
                    f"{what}: {rate:.0f} images/s", int(part[-1]) + 1, len(self.pictures.labels)
                )
        return ShardRecord()

    def _timed(self, view: int, rows: Rows) -> Halves:
        if self.level is None:
            msg = "pictures are not computed"
            raise ValueError(msg)
        level = self.level
        started = time.monotonic()
        values = {
            name: np.empty((len(rows), *shape), np.float16) for name, shape in level.outputs.items()
        }

        def computed(part: Rows) -> Halves:
            results = level.compute([self._images(view, part)])
            return dict(zip(level.outputs, results, strict=True))

        self._spread(computed, view, rows, values)
        self.computed_rows += len(rows)
        self.computed_seconds += time.monotonic() - started
        return values

    def _key(self, view: int, rows: Rows) -> StageKey:
        changes = self._augmentation.model_dump(mode="json") if self._augmentation else None
        name, digest = (self.level.name, self.level.digest) if self.level else ("", "")
        return StageKey(
            f"{STAGE}-{name}",
            code_version(f"{__name__}.Activations"),
            {
                "split": self._split,
                "first_row": int(rows[0]),
                "rows": len(rows),
                "augmentation": changes,
                "view": view if changes else 0,
            },
            {"data": self._shelf.data, "prefix": digest},
            _TOOLS,
            self._seed if changes else 0,
        )
