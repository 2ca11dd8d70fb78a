"""Activations at the cut, computed once for every view and stored as memory-mapped float16."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import SpecError
from edgekit.fitting.augment import Augmentation, Draws, apply, draw
from edgekit.fitting.pictures import Pictures
from edgekit.network.graph import INPUT
from edgekit.prefix import cores
from edgekit.prefix.inference import BATCH_ROWS
from edgekit.prefix.levels import Level
from edgekit.records import ShardRecord
from edgekit.store import StageKey, Store

STAGE = "activations"
_CODE = 1
_SHARD_ROWS = 1024
# Between two chunks the cores wait for one another, and the display is told.
_CHUNK_ROWS = 256
_TOOLS = ("tensorflow", "ai-edge-litert", "numpy")
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
    """What the levels make of one split, stored or computed on the spot.

    Which of the two does not change a value: every level's results are rounded to float16 in
    either case, and computed row by row alike.

    Args:
        pictures: The split.
        split: Its name.
        levels: The chain from the pictures to the tensors.
        augmentation: Random changes, or None for the pictures as they are.
        views: Number of differently changed versions of each picture.
        seed: Seed of the recipe.
        shelf: Where they are kept.

    Attributes:
        stored: For each view, which levels are to be kept; at first none.
        refused: Views of which something is not kept for lack of room.
    """

    def __init__(
        self,
        pictures: Pictures,
        split: str,
        levels: Sequence[Level],
        *,
        augmentation: Augmentation | None,
        views: int,
        seed: int,
        shelf: Shelf,
    ) -> None:
        self.pictures = pictures
        self.levels = tuple(levels)
        self.stored: list[frozenset[int]] = [frozenset()] * views
        self.views = views
        self.refused: set[int] = set()
        self.computed_rows = 0
        self.computed_seconds = 0.0
        self._split = split
        self._augmentation = augmentation
        self._seed = seed
        self._shelf = shelf
        self._maps: dict[tuple[int, int], list[Halves]] = {}
        self._draws: dict[int, Draws] = {}

    def prepare(self, view: int) -> None:
        """Computes and stores of a view what is to be stored and is not there yet."""
        for number in sorted(self.stored[view]):  # what lies behind is derived from what is before
            if (number, view) in self._maps:
                continue
            try:
                self._maps[number, view] = self._kept(number, view)
            except (SpecError, OSError) as error:
                # The disk is full or gone: training goes on, and computes what it cannot read.
                reason = getattr(error, "received", error)
                self._shelf.say(f"activations of view {view + 1} are not stored: {reason}")
                self.stored[view] -= {number}
                self.refused.add(view)
                for rows in self._shards():
                    self._shelf.store.remove(self._key(number, view, rows))

    def tensors(self, view: int, rows: Rows, names: Sequence[str]) -> tuple[npt.NDArray[Any], ...]:
        """Returns tensors of the given rows.

        Args:
            view: Which version of the pictures.
            rows: Row numbers (n,), in any order.
            names: Outputs of the last level, float16; or `graph.INPUT` alone, float32.
        """
        top = len(self.levels) - 1
        if INPUT in names:
            shape = self.pictures.images.shape[1:]
            found: Mapping[str, npt.NDArray[Any]]
            found = {INPUT: np.empty((len(rows), *shape), np.float32)}
            self._spread(lambda part: {INPUT: self._images(view, part)}, view, rows, found)
        elif (top, view) in self._maps:
            found = self._read(top, view, rows, names)
        else:
            found = self._timed(top, view, rows)
        return tuple(found[name] for name in names)

    def _read(self, number: int, view: int, rows: Rows, names: Sequence[str]) -> Halves:
        shard, row = rows // _SHARD_ROWS, rows % _SHARD_ROWS
        result = {}
        for name in names:
            values = np.empty((len(rows), *self.levels[number].outputs[name]), np.float16)
            for place in np.unique(shard):
                here = shard == place
                values[here] = self._maps[number, view][place][name][row[here]]
            result[name] = values
        return result

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

    def _computed(self, number: int, view: int, rows: Rows) -> Halves:
        """Computes a few rows on one core."""
        level = self.levels[number]
        if number == 0:
            before = [self._images(view, rows)]
        else:
            if (number - 1, view) in self._maps:
                found = self._read(number - 1, view, rows, level.inputs)
            else:
                found = self._computed(number - 1, view, rows)
            before = [found[name].astype(np.float32) for name in level.inputs]
        return dict(zip(level.outputs, level.compute(before), strict=True))

    def _images(self, view: int, rows: Rows) -> npt.NDArray[np.float32]:
        """Returns a few pictures as they enter, changed on one core."""
        draws = self._drawn(view)
        images = np.empty((len(rows), *self.pictures.images.shape[1:]), np.float32)
        for place, row in enumerate(rows):
            pixels = self.pictures.images[row]
            changed = apply(pixels, draws, int(row)) if draws else pixels.astype(np.float32)
            images[place] = self.pictures.normalize(changed)
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

    def kept(self, number: int) -> int:
        """Returns how many views of a level lie on the disk by now."""
        return sum(level == number for level, _ in self._maps)

    def lies(self, number: int, view: int) -> bool:
        """Returns whether all shards of a view are on the disk, perhaps damaged."""
        keys = (self._key(number, view, rows) for rows in self._shards())
        return all(map(self._shelf.store.has, keys))

    def planned(self) -> list[StageKey]:
        """Returns the keys of all shards that are to be stored."""
        return [
            self._key(number, view, rows)
            for view, numbers in enumerate(self.stored)
            for number in numbers
            for rows in self._shards()
        ]

    def _shards(self) -> Iterator[Rows]:
        count = len(self.pictures.labels)
        for start in range(0, count, _SHARD_ROWS):
            yield np.arange(start, min(start + _SHARD_ROWS, count))

    def _kept(self, number: int, view: int) -> list[Halves]:
        level = self.levels[number]
        found = []
        for rows in self._shards():
            stored = self._shelf.store.build(
                self._key(number, view, rows),
                ShardRecord,
                partial(self._fill, number, view, rows),
                durable=False,
            )
            found.append(
                {
                    name: np.load(stored.folder / f"{name}.npy", mmap_mode="r")
                    for name in level.outputs
                }
            )
        return found

    def _fill(self, number: int, view: int, rows: Rows, folder: Path) -> ShardRecord:
        """Writes the tensors of one shard."""
        what = f"frozen part, {self._split}"
        if self.views > 1:
            what += f", view {view + 1} of {self.views}"
        started = time.monotonic()
        # Written, not mapped: a full disk must raise an error instead of killing the process.
        with contextlib.ExitStack() as stack:
            files = {}
            for name, shape in self.levels[number].outputs.items():
                files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
                np.lib.format.write_array_header_1_0(
                    files[name],
                    {"descr": "<f2", "fortran_order": False, "shape": (len(rows), *shape)},
                )
            for start in range(0, len(rows), _CHUNK_ROWS):
                part = rows[start : start + _CHUNK_ROWS]
                values = self._timed(number, view, part)
                for name, file in files.items():
                    file.write(values[name].data)
                rate = (start + len(part)) / (time.monotonic() - started)
                self._shelf.progress(
                    f"{what}: {rate:.0f} images/s", int(part[-1]) + 1, len(self.pictures.labels)
                )
        return ShardRecord()

    def _timed(self, number: int, view: int, rows: Rows) -> Halves:
        started = time.monotonic()
        outputs = self.levels[number].outputs
        values = {name: np.empty((len(rows), *outputs[name]), np.float16) for name in outputs}
        self._spread(partial(self._computed, number, view), view, rows, values)
        if number == len(self.levels) - 1:
            self.computed_rows += len(rows)
        self.computed_seconds += time.monotonic() - started
        return values

    def _key(self, number: int, view: int, rows: Rows) -> StageKey:
        changes = asdict(self._augmentation) if self._augmentation else None
        return StageKey(
            f"{STAGE}-{self.levels[number].name}",
            _CODE,
            {
                "split": self._split,
                "first_row": int(rows[0]),
                "rows": len(rows),
                "augmentation": changes,
                "view": view if changes else 0,
            },
            {"data": self._shelf.data, "prefix": self.levels[number].digest},
            _TOOLS,
            self._seed if changes else 0,
        )


def bytes_per_row(level: Level) -> int:
    """Returns the bytes that one stored row of a level takes."""
    return sum(2 * int(np.prod(shape)) for shape in level.outputs.values())


def plan_storage(
    chain: Sequence[Level],
    *,
    rows: Sequence[int],
    reads: Sequence[int],
    room_bytes: int,
    at_anchor: Sequence[bool],
) -> tuple[tuple[frozenset[int], ...], frozenset[int]]:
    """Returns which levels of each view are stored, and the views for which there was no room.

    The last level comes first, for the views that a phase reads more than once; then the anchor,
    for the views whose last level would otherwise be computed from the pictures again, in this
    phase or for the next cut.

    Args:
        chain: The levels.
        rows: Rows of each view; who comes first gets room first.
        reads: How often the phase reads each view.
        room_bytes: Bytes that may be used.
        at_anchor: For each view, whether to keep it at the anchor even if nothing is read twice.
    """
    stored: list[set[int]] = [set() for _ in rows]
    refused: set[int] = set()
    top = len(chain) - 1
    for number in range(top, -1, -1):
        size = bytes_per_row(chain[number])
        for view, (count, times) in enumerate(zip(rows, reads, strict=True)):
            again = times > 1 and top not in stored[view]
            wanted = again or (number == 0 and at_anchor[view])
            if wanted and count * size <= room_bytes:
                stored[view].add(number)
                room_bytes -= count * size
            elif wanted:
                refused.add(view)
    return tuple(map(frozenset, stored)), frozenset(refused)
