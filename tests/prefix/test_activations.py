"""Stored activations: the same values wherever they come from, and what is stored when."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import ALPHA, SIZE_PX, Network, Untyped, coloured, shelf

from edgekit.network.graph import INPUT, LOGITS, fold, mobilenet_v2
from edgekit.recipe import AugmentSpec
from edgekit.records import Preprocess

pytest.importorskip("tensorflow")

from edgekit.fitting.augment import changed, draw
from edgekit.fitting.pictures import Pictures
from edgekit.network import keras_model
from edgekit.prefix.activations import Activations, Shelf
from edgekit.prefix.level import Level, bytes_per_row, entering, level_to

SIDE = 4
ROWS = 2100  # two full shards and a rest
WOBBLY = AugmentSpec(flip=True, shift=0.2, zoom=0.2, brightness=0.1, contrast=0.2)
EVERY = np.arange(ROWS)
NAMES = ("sums", "tops")


@pytest.fixture(scope="module")
def split() -> Pictures:
    random = np.random.default_rng(4)
    images = random.integers(0, 256, (ROWS, SIDE, SIDE, 3), dtype=np.uint8)
    return Pictures(images, np.zeros(ROWS, np.int32), Preprocess(height_px=SIDE, width_px=SIDE))


@dataclass
class Made:
    """Activations of a made-up level, which counts what it computes, in a real store."""

    root: Path
    split: Pictures
    stored: frozenset[int] = frozenset({0, 1})
    views: int = 2
    augmentation: AugmentSpec | None = WOBBLY
    seed: int = 5
    data: str = "pictures"
    digest: str = "digest"
    name: str = "train"
    said: list[str] = field(default_factory=list)
    told: list[tuple[str, int, int]] = field(default_factory=list)
    computed: int = 0
    counting: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        place = shelf(self.root, self.said.append)
        place = replace(
            place,
            data=self.data,
            progress=lambda what, done, total: self.told.append((what, done, total)),
        )
        outputs = dict(zip(NAMES, ((3,), (SIDE, 3)), strict=True))
        self.activations = Activations(
            self.split,
            self.name,
            Level("made-up", outputs, self._compute, self.digest),
            augmentation=self.augmentation,
            views=self.views,
            seed=self.seed,
            shelf=place,
        )
        self.activations.stored = set(self.stored)

    def _compute(
        self, tensors: Sequence[npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float16], ...]:
        with self.counting:
            self.computed += len(tensors[0])
        values = tensors[0] * 7
        return values.sum((1, 2)).astype(np.float16), values.max(1).astype(np.float16)

    def read(self, view: int = 0, rows: npt.NDArray[np.int64] = EVERY) -> list[bytes]:
        self.activations.prepare(view)
        return [tensor.tobytes() for tensor in self.activations.tensors(view, rows, NAMES)]

    def folders(self) -> list[Path]:
        return sorted(self.root.glob("activations-made-up/*"))


def test_values_are_those_of_the_level_for_the_changed_pictures(
    tmp_path: Path, split: Pictures
) -> None:
    made = Made(tmp_path, split)
    draws = draw(WOBBLY, count=ROWS, size_px=(SIDE, SIDE), seed=5, view=1)
    rows = np.array([2099, 0, 1024, 1023, 0])
    images = np.stack([changed(split.images[r], draws, int(r), split.normalize) for r in rows])
    values = images * 7
    expected = (values.sum((1, 2)).astype(np.float16), values.max(1).astype(np.float16))
    made.activations.prepare(1)
    for found, tensor in zip(made.activations.tensors(1, rows, NAMES), expected, strict=True):
        assert found.dtype == np.float16
        assert np.array_equal(found, tensor)
    # In the order asked for, and the pictures themselves where they enter.
    assert np.array_equal(made.activations.tensors(1, rows, ("tops",))[0], expected[1])
    turned = made.activations.tensors(1, rows, NAMES[::-1])
    assert all(np.array_equal(*pair) for pair in zip(turned, expected[::-1], strict=True))
    (pictures,) = made.activations.tensors(1, rows, (INPUT,))
    assert pictures.dtype == np.float32
    assert np.array_equal(pictures, images)
    # Twin: another view of the same rows.
    assert not np.array_equal(made.activations.tensors(0, rows, NAMES)[0], expected[0])


@pytest.mark.parametrize("stored", [{0}, {1}, {0, 1}])
def test_where_values_come_from_does_not_matter(
    tmp_path: Path, split: Pictures, stored: set[int]
) -> None:
    fresh = Made(tmp_path / "fresh", split, frozenset())
    kept = Made(tmp_path / "kept", split, frozenset(stored))
    random = np.random.default_rng(2)
    for view, rows in product((0, 1), (EVERY[::-1], random.permutation(ROWS)[:300], EVERY[7:8])):
        assert kept.read(view, rows) == fresh.read(view, rows)
    assert kept.read(0) != kept.read(1)
    assert list((tmp_path / "fresh").iterdir()) == []
    assert len(kept.folders()) == 3 * len(stored)
    assert kept.activations.kept() == len(stored)


def test_a_view_is_computed_once_and_only_when_it_is_needed(
    tmp_path: Path, split: Pictures
) -> None:
    made = Made(tmp_path, split)
    assert made.activations.kept() == 0
    made.activations.prepare(0)
    assert made.computed == ROWS
    assert len(made.folders()) == 3
    assert made.activations.kept() == 1
    made.read(0)
    made.read(0)
    assert made.computed == ROWS
    made.activations.prepare(1)
    assert made.computed == 2 * ROWS
    # Another process finds them, and computes nothing.
    again = Made(tmp_path, split)
    assert again.read(0) == made.read(0)
    assert again.computed == 0
    assert (again.activations.computed_rows, again.activations.computed_seconds) == (0, 0)


def test_what_was_computed_is_counted_and_told(tmp_path: Path, split: Pictures) -> None:
    made = Made(tmp_path, split)
    made.activations.prepare(1)
    assert made.activations.computed_rows == ROWS
    assert made.activations.computed_seconds > 0
    assert {total for _, _, total in made.told} == {ROWS}
    done = [done for _, done, _ in made.told]
    assert done == sorted(done)
    assert done[-1] == ROWS
    assert made.told[0][0].startswith("frozen part, train, view 2 of 2: ")
    made.activations.tensors(0, EVERY[:100], NAMES)  # not prepared: computed on the spot
    assert made.activations.computed_rows == ROWS + 100


def test_a_view_takes_the_bytes_that_lie_on_the_disk(tmp_path: Path, split: Pictures) -> None:
    made = Made(tmp_path, split)
    made.activations.prepare(0)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.npy")]
    # Two tensors in three shards each, with a header of 128 bytes.
    assert sum(sizes) == made.activations.view_bytes() + 6 * 128
    assert made.activations.view_bytes() == ROWS * 2 * (3 + SIDE * 3)


def test_what_is_planned_can_be_told_apart_from_the_rest(tmp_path: Path, split: Pictures) -> None:
    made = Made(tmp_path, split)
    for view in (0, 1):
        made.activations.prepare(view)
    both = set(made.folders())
    made.activations.stored = {1}
    store = shelf(tmp_path).store
    store.discard("activations-*", keep=made.activations.planned())
    left = set(made.folders())
    assert left < both
    assert len(left) == 3
    again = Made(tmp_path, split)
    assert again.read(1) == made.read(1)
    assert again.computed == 0
    again.read(0)
    assert again.computed == ROWS


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, cut_short, delete])
def test_a_damaged_shard_is_named_and_made_again(
    tmp_path: Path, split: Pictures, damage: Callable[[Path], None]
) -> None:
    made = Made(tmp_path, split)
    expected = made.read()
    path = made.folders()[1] / "sums.npy"
    content = path.read_bytes()
    damage(path)
    again = Made(tmp_path, split)
    assert again.read() == expected
    assert len(again.said) == 1
    assert again.said[0].startswith(
        "stored activations-made-up result is damaged and is made again: sums.npy "
    )
    assert path.read_bytes() == content
    assert again.computed in (1024, ROWS - 2048)  # that shard alone


def check_goes_on(made: Made, split: Pictures, folder: Path) -> None:
    """Checks that what cannot be stored is said in a line, and computed with the same result."""
    expected = Made(folder, split, frozenset())
    assert made.read() == expected.read()
    assert len(made.said) == 1
    assert made.said[0].startswith("activations of view 1 are not stored: cannot write ")
    assert made.activations.stored == {1}
    assert made.activations.refused == {0}
    assert made.activations.kept() == 0
    made.read()
    assert len(made.said) == 1  # not once an epoch


def test_a_store_that_cannot_be_written_ends_no_training(tmp_path: Path, split: Pictures) -> None:
    made = Made(tmp_path / "store", split)
    (tmp_path / "store" / "activations-made-up").write_bytes(b"in the way")
    check_goes_on(made, split, tmp_path / "fresh")


def test_a_full_disk_ends_no_training(small_disk: Path, tmp_path: Path, split: Pictures) -> None:
    made = Made(small_disk / "store", split)
    # A view takes 2100 * 30 bytes, 92 kB in whole blocks: there is room for one, not for two.
    (small_disk / "filler").write_bytes(bytes(2**20 - 140_000))
    first = made.read(0)
    assert made.said == []
    fresh = Made(tmp_path / "fresh", split, frozenset())
    assert made.read(1) == fresh.read(1)
    assert len(made.said) == 1
    assert made.said[0].startswith("activations of view 2 are not stored: cannot write ")
    assert made.read(0) == first == fresh.read(0)
    assert made.activations.stored == {0}
    assert made.activations.refused == {1}
    assert made.activations.kept() == 1
    assert len(made.folders()) == 3  # of the second view, not a single shard is left
    assert list(small_disk.glob("store/*/.draft-*")) == []


OTHER = AugmentSpec(flip=True, shift=0.2, zoom=0.2, brightness=0.1, contrast=0.21)


@pytest.mark.parametrize(
    "change",
    [
        {"augmentation": OTHER},
        {"augmentation": None},
        {"seed": 6},
        {"data": "other pictures"},
        {"digest": "other weights"},
        {"name": "validation"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_shards_are_found_by_what_they_follow_from(
    tmp_path: Path, split: Pictures, change: dict[str, Untyped]
) -> None:
    usual = Made(tmp_path, split)
    usual.activations.prepare(0)
    before = set(usual.folders())
    usual.activations.prepare(1)
    assert len(usual.folders()) == 6  # the views share nothing
    other = Made(tmp_path, split, **change)
    other.activations.prepare(0)
    assert other.computed == ROWS
    assert len(other.folders()) == 9
    assert before < set(other.folders())
    # Twin: the very same again.
    same = Made(tmp_path, split)
    same.activations.prepare(0)
    assert same.computed == 0


def test_pictures_that_are_not_changed_have_no_seed(tmp_path: Path, split: Pictures) -> None:
    one = Made(tmp_path, split, frozenset({0}), 1, None, 5, name="validation")
    other = Made(tmp_path, split, frozenset({0}), 1, None, 6, name="validation")
    (images,) = one.activations.tensors(0, EVERY[:5], (INPUT,))
    assert np.array_equal(images, split.normalize(split.images[:5].astype(np.float32)))
    assert one.read() == other.read()
    assert (one.computed, other.computed) == (ROWS, 0)


def test_without_a_level_the_pictures_enter_and_nothing_is_stored(
    tmp_path: Path, split: Pictures
) -> None:
    made = Made(tmp_path / "level", split)
    bare = Activations(
        split,
        "train",
        None,
        augmentation=WOBBLY,
        views=2,
        seed=5,
        shelf=shelf(tmp_path / "none"),
    )
    rows = EVERY[::-7]
    for view in (0, 1):
        bare.prepare(view)
        (found,) = bare.tensors(view, rows, (INPUT,))
        assert np.array_equal(found, made.activations.tensors(view, rows, (INPUT,))[0])
        # Twin: the other view.
        assert not np.array_equal(found, made.activations.tensors(1 - view, rows, (INPUT,))[0])
    assert (bare.kept(), bare.view_bytes(), bare.planned()) == (0, 0, [])
    assert (bare.computed_rows, list((tmp_path / "none").iterdir())) == (0, [])


# --- the real network -----------------------------------------------------------------------


# Two cuts inside residual blocks, and the head.
PLACES = ("block_8_project", "block_15_project", LOGITS)
TENSORS = tuple(name for place in PLACES for name in entering(mobilenet_v2(ALPHA), place))


def read_real(
    folder: Path,
    split: Pictures,
    level: Level,
    stored: set[int],
    view: int,
    rows: npt.NDArray[np.int64],
) -> list[npt.NDArray[Untyped]]:
    """Returns what a level of the network makes of augmented pictures."""
    activations = Activations(
        split, "train", level, augmentation=WOBBLY, views=2, seed=5, shelf=shelf(folder)
    )
    activations.stored = set(stored)
    activations.prepare(view)
    return list(activations.tensors(view, rows, TENSORS))


def level_of(weights: Untyped) -> Level:
    level = level_to(mobilenet_v2(ALPHA), weights, PLACES, (SIZE_PX, SIZE_PX))
    assert level is not None
    return level


def test_what_the_network_makes_of_a_row_is_the_same_wherever_it_comes_from(
    network: Network, tmp_path: Path
) -> None:
    model = network(ALPHA, SIZE_PX)
    weights = fold(mobilenet_v2(ALPHA), keras_model.arrays_of(model))
    images, labels = coloured(77, 3)  # the last batch is not full
    split = Pictures(images, labels, Preprocess(height_px=SIZE_PX, width_px=SIZE_PX))
    level = level_of(weights)
    assert len(level.outputs) == len(TENSORS) == 5
    random, every = np.random.default_rng(7), np.arange(77)
    whole = {view: read_real(tmp_path, split, level, {0, 1}, view, every) for view in (0, 1)}
    assert not np.array_equal(whole[0][0], whole[1][0])
    for stored, view in product((set[int](), {0}, {1}), (0, 1)):
        for rows in (np.array([76]), every[::-1], random.permutation(77)[:29]):
            found = read_real(tmp_path, split, level, stored, view, rows)
            for tensor, expected in zip(found, whole[view], strict=True):
                assert np.array_equal(tensor, expected[rows])
    # Twin: one weight in front of the cut is a hundredth larger.
    bent = weights["block_7_project/kernel"].copy()
    bent.flat[0] *= 1.01
    other = level_of({**weights, "block_7_project/kernel": bent})
    found = read_real(tmp_path, split, other, {0, 1}, 0, every)
    assert not np.array_equal(found[0], whole[0][0])


def test_a_row_takes_two_bytes_a_value() -> None:
    assert bytes_per_row({"a": (3, 4, 5), "b": (7,)}) == 2 * (60 + 7)
    assert bytes_per_row({}) == 0


def test_the_room_is_the_budget_or_half_of_what_is_free(tmp_path: Path) -> None:
    small: Shelf = shelf(tmp_path, budget_bytes=12345)
    assert small.room() == 12345
    large: Shelf = shelf(tmp_path, budget_bytes=10**18)
    # Others write to the disk too.
    assert large.room() == pytest.approx(large.store.free_bytes() / 2, rel=0.1)


def test_what_activations_take_counts_as_free(small_disk: Path, split: Pictures) -> None:
    large: Shelf = shelf(small_disk / "store", budget_bytes=10**18)
    empty = large.room()
    made = Made(small_disk / "store", split)
    made.activations.prepare(0)
    taken = made.activations.view_bytes()
    # The disk gives whole blocks of 4096 bytes: six tensors and three records waste one at most.
    assert empty - large.room() <= 9 * 4096 / 2 < taken / 2
    # Twin: anything else does not.
    (small_disk / "filler").write_bytes(bytes(taken))
    assert empty - large.room() >= taken / 2
