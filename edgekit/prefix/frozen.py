"""The frozen part of one search: activations for every cut, kept as far as room allows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.fitting.augment import Augmentation
from edgekit.fitting.pictures import Pictures
from edgekit.network.graph import INPUT, Arrays, Node
from edgekit.prefix.activations import (
    STAGE,
    Activations,
    Rows,
    Shelf,
    bytes_per_row,
    plan_storage,
)
from edgekit.prefix.levels import (
    Level,
    Tensors,
    anchor,
    anchor_level,
    chain_to,
    check,
)
from edgekit.records import PrefixRecord, SplitName

CHECKED_PICTURES = 8
# (names of tensors, normalized float32 pictures) -> those tensors by another implementation
Reference = Callable[[Sequence[str], npt.NDArray[np.float32]], Tensors]


@dataclass(frozen=True)
class CutFeed:
    """The tensors that enter at one cut, for one split: a `fitting.loop.Feed`.

    The tensors are float16, or float32 where pictures enter.

    Args:
        activations: What to read from; epoch e sees view e % views.
    """

    activations: Activations

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors, in order: outputs of the last level, or the pictures if there is none."""
        levels = self.activations.levels
        return tuple(levels[-1].outputs) if levels else (INPUT,)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32 (n,)."""
        return self.activations.pictures.labels

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors without the batch."""
        levels = self.activations.levels
        pictures = self.activations.pictures.images
        return tuple(levels[-1].outputs.values()) if levels else (pictures.shape[1:],)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of all tensors."""
        return np.dtype(np.float16 if self.activations.levels else np.float32)

    def prepare(self, epoch: int) -> None:
        """Computes and stores the epoch's view as far as it is to be stored."""
        self.activations.prepare(epoch % self.activations.views)

    def read(self, epoch: int, rows: Rows) -> tuple[npt.NDArray[Any], ...]:
        """Returns the tensors of the given rows."""
        return self.activations.tensors(epoch % self.activations.views, rows, self.names)


class Frozen:
    """Gives the feeds of every cut of a search whose frozen part never changes.

    Where several cuts of the search lie behind one anchor, what a view's pictures become there is
    stored, and every such cut is derived from it; when the search moves in front of the anchor,
    that is deleted and the next one is made.
    What enters at the cut itself is stored too where a phase reads it more than once.

    Args:
        nodes: The whole network.
        weights: Its folded weights before any training.
        places: First unfrozen layers of all cuts that the search may come to.
        train: Training pictures.
        validation: Validation pictures; they are never changed.
        augmentation: Random changes of training pictures, or None.
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
        augmentation: Augmentation | None,
        seed: int,
        shelf: Shelf,
        reference: Reference,
    ) -> None:
        self._nodes = nodes
        self._weights = weights
        self._places = tuple(places)
        self._train = train
        self._validation = validation
        self._augmentation = augmentation
        self._seed = seed
        self._shelf = shelf
        self._reference = reference
        self._anchors: dict[str | None, Level | None] = {}
        # Of the last cut, see `PrefixRecord`.
        self.departure: float | None = None

    def feeds(self, place: str, *, views: int, epochs: range) -> dict[SplitName, CutFeed]:
        """Returns what enters at a cut, for the training and the validation split.

        Args:
            place: First unfrozen layer.
            views: How many views of each training picture to take turns with.
            epochs: Numbers of the phase's epochs in the whole run, at most.

        Raises:
            ConversionError: If the frozen part answers otherwise than the reference.
        """
        height, width = self._train.images.shape[1:3]
        size_px = (height, width)
        mine = anchor(self._nodes, place)
        if mine not in self._anchors:
            # Of a single cut it would only be one more network to convert.
            shared = sum(anchor(self._nodes, other) == mine for other in self._places) > 1
            level = anchor_level(self._nodes, self._weights, place, size_px) if shared else None
            self._anchors = {mine: level}
        chain = chain_to(self._nodes, self._weights, place, size_px, self._anchors[mine])
        self._check(chain)
        return store_levels(
            chain,
            train=self._train,
            validation=self._validation,
            augmentation=self._augmentation,
            views=views,
            epochs=epochs,
            seed=self._seed,
            shelf=self._shelf,
            keep_anchor=mine is not None and self._comes_after(place, mine),
        )

    def _comes_after(self, place: str, mine: str) -> bool:
        """Returns whether the search may move on to another cut behind the same anchor."""
        order = [node.name for node in self._nodes]
        earlier = (other for other in self._places if order.index(other) < order.index(place))
        return any(anchor(self._nodes, other) == mine for other in earlier)

    def _check(self, chain: Sequence[Level]) -> None:
        pictures = self._validation
        images = pictures.normalize(pictures.images[:CHECKED_PICTURES].astype(np.float32))
        made = [name for level in chain for name in level.outputs]
        off = check(chain, images, self._reference(made, images))
        self.departure = max(off.values(), default=None)


def store_levels(
    chain: Sequence[Level],
    *,
    train: Pictures,
    validation: Pictures,
    augmentation: Augmentation | None,
    views: int,
    epochs: range,
    seed: int,
    shelf: Shelf,
    keep_anchor: bool,
) -> dict[SplitName, CutFeed]:
    """Returns the feeds of both splits behind a chain, stored as far as it helps and there is room.

    Args:
        chain: The levels.
        train: Training pictures.
        validation: Validation pictures; they are never changed, and every epoch reads them.
        augmentation: Random changes of training pictures, or None.
        views: Differently changed versions of each training picture; one without `augmentation`.
        epochs: Numbers of the phase's epochs in the whole run, at most.
        seed: Seed of the recipe.
        shelf: Where activations are kept.
        keep_anchor: Whether further cuts will be derived from the anchor.
    """
    views = views if augmentation else 1

    def feed(pictures: Pictures, split: SplitName, views: int) -> CutFeed:
        activations = Activations(
            pictures,
            split,
            chain,
            augmentation=augmentation if split == "train" else None,
            views=views,
            seed=seed,
            shelf=shelf,
        )
        return CutFeed(activations)

    feeds: dict[SplitName, CutFeed] = {
        "train": feed(train, "train", views),
        "validation": feed(validation, "validation", 1),
    }
    # Every epoch reads the validation split; the views follow in the order of their turns.
    turns = [(epochs.start + turn) % views for turn in range(views)]
    order = [(feeds["validation"].activations, 0)]
    order += [(feeds["train"].activations, view) for view in turns]
    stored, refused = plan_storage(
        chain,
        rows=[len(activations.pictures.labels) for activations, _ in order],
        reads=[len(epochs) + 1, *(sum(e % views == view for e in epochs) for view in turns)],
        room_bytes=shelf.room(),
        at_anchor=[
            bool(chain) and (keep_anchor or activations.lies(0, view))
            for activations, view in order
        ],
    )
    for place, (activations, view) in enumerate(order):
        activations.stored[view] = stored[place]
        if place in refused:
            activations.refused.add(view)
    # Those of other cuts, and of a recipe that was changed, would exceed the budget.
    planned = [key for each in feeds.values() for key in each.activations.planned()]
    shelf.store.discard(f"{STAGE}-*", keep=planned)
    return feeds


def describe(feeds: Mapping[SplitName, CutFeed], departure: float | None) -> PrefixRecord:
    """Returns how the tensors of a phase came about.

    Args:
        feeds: Its feeds, behind the last epoch.
        departure: See `PrefixRecord`.
    """
    used = [feed.activations for feed in feeds.values()]
    train = feeds["train"].activations
    rows = sum(activations.computed_rows for activations in used)
    seconds = sum(activations.computed_seconds for activations in used)
    top = len(train.levels) - 1
    return PrefixRecord(
        tensors=feeds["train"].names,
        bytes_per_image=tuple(bytes_per_row(level) for level in train.levels),
        views=train.views,
        views_stored=train.kept(top),
        views_at_anchor=train.kept(0) if top > 0 else 0,
        views_refused=len(train.refused),
        images_per_second=rows / seconds if rows else None,
        seconds=seconds,
        departure=departure,
    )
