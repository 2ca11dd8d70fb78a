"""The frozen part of one run: activations for every cut, kept as far as room allows."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.fitting import cores
from edgekit.fitting.pictures import Pictures
from edgekit.network.graph import INPUT, Arrays, Node, output_shapes
from edgekit.prefix.activations import STAGE, Activations, Rows, Shelf
from edgekit.prefix.level import Level, Tensors, bytes_per_row, check, entering, level_to
from edgekit.recipe import AugmentSpec
from edgekit.records import PrefixRecord, SplitName

CHECKED_PICTURES = 8
# (names of tensors, normalized float32 pictures) -> those tensors by another implementation
Reference = Callable[[Sequence[str], npt.NDArray[np.float32]], Tensors]


@dataclass(frozen=True)
class CutFeed:
    """The tensors that enter at one cut, for one split: a `fitting.feed.Feed`.

    The tensors are float16, or float32 where pictures enter.

    Args:
        activations: What to read from; epoch e sees view e % views.
        names: The tensors, in order: outputs of the level, or `graph.INPUT` alone.
    """

    activations: Activations
    names: tuple[str, ...]

    @property
    def from_level(self) -> bool:
        """Whether tensors are read that were computed, not pictures."""
        return INPUT not in self.names

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32 (n,)."""
        return self.activations.pictures.labels

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors without the batch."""
        level = self.activations.level
        if level is None or not self.from_level:
            return (self.activations.pictures.images.shape[1:],)
        return tuple(level.outputs[name] for name in self.names)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of all tensors."""
        return np.dtype(np.float16 if self.from_level else np.float32)

    @property
    def source_bytes(self) -> int:
        """Bytes of the decoded pictures."""
        return int(self.activations.pictures.images.nbytes)

    def prepare(self, epoch: int) -> None:
        """Computes and stores the epoch's view as far as it is to be stored."""
        self.activations.prepare(epoch % self.activations.views)

    def read(self, epoch: int, rows: Rows) -> tuple[npt.NDArray[Any], ...]:
        """Returns the tensors of the given rows."""
        return self.activations.tensors(epoch % self.activations.views, rows, self.names)


class Frozen:
    """Gives the feeds of cuts of a network whose frozen part never changes.

    One pass over the pictures makes what enters at all cuts whose tensors are smaller than the
    picture itself; a cut further in front gets a pass of its own, and so does every cut where the
    whole would not fit. A pass that a later cut needs again is stored as far as there is room.

    Args:
        nodes: The whole network.
        weights: Its folded weights before any training.
        places: First unfrozen layers of the cuts that may be asked for.
        train: Training pictures.
        validation: Validation pictures; they are never changed.
        augmentation: Random changes of training pictures, or None.
        views: How many views of each training picture to take turns with.
        seed: Seed of the recipe.
        shelf: Where activations are kept.
        reference: What the frozen part is checked against, on real pictures.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        weights: Arrays,
        places: Sequence[str],
        *,
        train: Pictures,
        validation: Pictures,
        augmentation: AugmentSpec | None,
        views: int,
        seed: int,
        shelf: Shelf,
        reference: Reference,
    ) -> None:
        self._nodes = nodes
        self._weights = weights
        self.train = train
        self.validation = validation
        self._augmentation = augmentation
        self._views = views if augmentation else 1
        self._seed = seed
        self._shelf = shelf
        self._reference = reference
        self._together = self._fitting(places)
        self._feeds: tuple[tuple[str, ...], dict[SplitName, Activations]] | None = None
        # Of the last pass, see `PrefixRecord`.
        self.departure: float | None = None
        self._seconds_per_picture = 0.0

    def _fitting(self, places: Sequence[str]) -> tuple[str, ...]:
        """Returns the places that one pass serves, if all of its views fit into the room."""
        height, width = self.train.images.shape[1:3]
        shapes = output_shapes(self._nodes, self._weights, (height, width))
        picture = height * width * 3

        def size(place: str) -> int:
            names = entering(self._nodes, place)
            if INPUT in names:
                return int(picture)  # nothing to compute
            return bytes_per_row({name: shapes[name] for name in names})

        small = tuple(place for place in dict.fromkeys(places) if size(place) < picture)
        rows = len(self.validation.labels) + self._views * len(self.train.labels)
        names = {name for place in small for name in entering(self._nodes, place)}
        whole = rows * bytes_per_row({name: shapes[name] for name in names})
        return small if whole <= self._shelf.room() else ()

    def feeds(self, place: str, *, epochs: int, again: bool) -> dict[SplitName, CutFeed]:
        """Returns what enters at a cut, for the training and the validation split.

        Args:
            place: First unfrozen layer.
            epochs: Epochs of the phase, at most.
            again: Whether a later phase may read the same views; those of a pass that serves one
                cut alone are not kept for it.

        Raises:
            ConversionError: If the frozen part answers otherwise than the reference.
        """
        places = self._together if place in self._together else (place,)
        if places != self._together:
            self._together = ()  # what is stored for other cuts is deleted with the next pass
        if self._feeds is None or self._feeds[0] != places:
            height, width = self.train.images.shape[1:3]
            level = level_to(self._nodes, self._weights, places, (height, width))
            self._check(level)
            made = activations_of(
                level,
                train=self.train,
                validation=self.validation,
                augmentation=self._augmentation,
                views=self._views,
                seed=self._seed,
                shelf=self._shelf,
            )
            self._feeds = (places, made)
        made = self._feeds[1]
        again = again and place in self._together
        plan_storage(made, epochs=epochs, again=again, shelf=self._shelf)
        names = entering(self._nodes, place)
        return {split: CutFeed(activations, names) for split, activations in made.items()}

    def outlook(self, epochs: int, rows: int) -> tuple[float, int]:
        """Returns what the last pass that was asked for will about cost.

        Args:
            epochs: Epochs of the phase.
            rows: Training pictures that it reads in an epoch.

        Returns:
            Seconds to compute the views that the phase reads and that are not stored, and bytes of
            the views that will be.
        """
        if self._feeds is None:
            return 0.0, 0
        train = self._feeds[1]["train"]
        views = [epoch % train.views for epoch in range(epochs)]
        # A view is stored as a whole; of one that is not, the rows that are read are computed.
        whole = sum(not train.lies(view) for view in train.stored.intersection(views))
        pictures = whole * len(train.pictures.labels)
        pictures += rows * sum(view not in train.stored for view in views)
        return pictures * self._seconds_per_picture, len(train.stored) * train.view_bytes()

    def _check(self, level: Level | None) -> None:
        self.departure = None
        self._seconds_per_picture = 0.0
        if level is None:
            return
        pictures = self.validation
        images = pictures.normalize(pictures.images[:CHECKED_PICTURES].astype(np.float32))
        off = check(level, images, self._reference(tuple(level.outputs), images))
        self.departure = max(off.values())
        started = time.monotonic()
        level.compute([images])
        self._seconds_per_picture = (time.monotonic() - started) / len(images) / cores.COUNT


def activations_of(
    level: Level | None,
    *,
    train: Pictures,
    validation: Pictures,
    augmentation: AugmentSpec | None,
    views: int,
    seed: int,
    shelf: Shelf,
) -> dict[SplitName, Activations]:
    """Returns what a level makes of both splits; nothing is computed yet.

    Args:
        level: The level, or None if pictures enter.
        train: Training pictures.
        validation: Validation pictures; they are never changed.
        augmentation: Random changes of training pictures, or None.
        views: Differently changed versions of each training picture; one without `augmentation`.
        seed: Seed of the recipe.
        shelf: Where activations are kept.
    """

    def of(pictures: Pictures, split: SplitName) -> Activations:
        changes = augmentation if split == "train" else None
        return Activations(
            pictures,
            split,
            level,
            augmentation=changes,
            views=views if changes else 1,
            seed=seed,
            shelf=shelf,
        )

    return {"train": of(train, "train"), "validation": of(validation, "validation")}


def plan_storage(
    made: Mapping[SplitName, Activations], *, epochs: int, again: bool, shelf: Shelf
) -> None:
    """Decides which views are stored: those read more than once, as far as there is room.

    What lies on the shelf and is not planned, of other cuts or of a recipe that was changed, is
    deleted: it would exceed the budget.

    Args:
        made: Activations of both splits.
        epochs: Epochs of the phase, at most. The validation split is read in all of them.
        again: Whether a later phase may read the same views.
        shelf: Where they are kept.
    """
    room = shelf.room()
    for split in ("validation", "train"):
        activations = made[split]
        activations.refused.clear()
        if activations.level is None:
            continue
        for view in range(activations.views):
            twice = again or split == "validation" or epochs > activations.views + view
            if view in activations.stored or not twice:
                room -= activations.view_bytes() * (view in activations.stored)
            elif activations.view_bytes() <= room:
                activations.stored.add(view)
                room -= activations.view_bytes()
            else:
                activations.refused.add(view)
    planned = [key for each in made.values() for key in each.planned()]
    shelf.store.discard(f"{STAGE}-*", keep=planned)


def describe(feeds: Mapping[SplitName, CutFeed], departure: float | None) -> PrefixRecord:
    """Returns how the tensors of a phase came about.

    Args:
        feeds: Its feeds, behind the last epoch.
        departure: See `PrefixRecord`.
    """
    train = feeds["train"]
    used = [feed.activations for feed in feeds.values()]
    rows = sum(activations.computed_rows for activations in used)
    seconds = sum(activations.computed_seconds for activations in used)
    for activations in used:  # the next phase computes what it needs beyond that
        activations.computed_rows, activations.computed_seconds = 0, 0.0
    computed = dict(zip(train.names, train.shapes, strict=True)) if train.from_level else {}
    return PrefixRecord(
        tensors=train.names,
        bytes_per_image=bytes_per_row(computed),
        views=train.activations.views,
        views_stored=train.activations.kept(),
        views_refused=len(train.activations.refused),
        images_per_second=rows / seconds if rows else None,
        seconds=seconds,
        departure=departure,
    )
