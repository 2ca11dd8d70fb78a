"""Stored activations: the same values wherever they come from, and what is stored when."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, strategies as some
from tiny_network import ALPHA, SIZE_PX, Network, Untyped, coloured, shelf

from edgekit.network.graph import INPUT, fold, mobilenet_v2
from edgekit.records import Preprocess

pytest.importorskip("tensorflow")

from edgekit.fitting.augment import Augmentation, apply, draw
from edgekit.fitting.pictures import Pictures
from edgekit.network import keras_model
from edgekit.prefix.activations import Activations, Shelf, bytes_per_row, plan_storage
from edgekit.prefix.levels import Level, anchor_level, chain_to

SIDE = 4
ROWS = 2100  # two full shards and a rest
WOBBLY = Augmentation(flip=True, shift=0.2, zoom=0.2, brightness=0.1, contrast=0.2)
EVERY = np.arange(ROWS)
NAMES = ("sums", "tops")


@pytest.fixture(scope="module")
def split() -> Pictures:
    random = np.random.default_rng(4)
    images = random.integers(0, 256, (ROWS, SIDE, SIDE, 3), dtype=np.uint8)
    return Pictures(images, np.zeros(ROWS, np.int32), Preprocess(height_px=SIDE, width_px=SIDE))


@dataclass
class Made:
    """Activations of made-up levels, which count what they compute, in a real store."""

    root: Path
    split: Pictures
    stored: Sequence[frozenset[int]] = (frozenset({1}),) * 2
    augmentation: Augmentation | None = WOBBLY
    seed: int = 5
    data: str = "pictures"
    digests: tuple[str, str] = ("digest 0", "digest 1")
    name: str = "train"
    said: list[str] = field(default_factory=list)
    told: list[tuple[str, int, int]] = field(default_factory=list)
    computed: list[int] = field(default_factory=lambda: [0, 0])
    counting: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        place = shelf(self.root, self.said.append)
        place = replace(
            place,
            data=self.data,
            progress=lambda what, done, total: self.told.append((what, done, total)),
        )
        self.activations = Activations(
            self.split,
            self.name,
            (
                Level("first", (INPUT,), {"halves": (SIDE, SIDE, 3)}, self._first, self.digests[0]),
                Level("second", ("halves",), dict(zip(NAMES, ((3,), (SIDE, 3)), strict=True)),
                      self._second, self.digests[1]),
            ),
            augmentation=self.augmentation,
            views=len(self.stored),
            seed=self.seed,
            shelf=place,
        )  # fmt: skip
        self.activations.stored = list(self.stored)

    def _first(
        self, tensors: Sequence[npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float16], ...]:
        with self.counting:
            self.computed[0] += len(tensors[0])
        return ((tensors[0] / 3).astype(np.float16),)

    def _second(
        self, tensors: Sequence[npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float16], ...]:
        with self.counting:
            self.computed[1] += len(tensors[0])
        values = tensors[0] * 7
        return values.sum((1, 2)).astype(np.float16), values.max(1).astype(np.float16)

    def read(self, view: int = 0, rows: npt.NDArray[np.int64] = EVERY) -> list[bytes]:
        self.activations.prepare(view)
        return [tensor.tobytes() for tensor in self.activations.tensors(view, rows, NAMES)]

    def folders(self, level: str = "second") -> list[Path]:
        return sorted(self.root.glob(f"activations-{level}/*"))


def test_values_are_those_of_the_levels_for_the_changed_pictures(
    tmp_path: Path, split: Pictures
) -> None:
    made = Made(tmp_path, split)
    draws = draw(WOBBLY, count=ROWS, size_px=(SIDE, SIDE), seed=5, view=1)
    rows = np.array([2099, 0, 1024, 1023, 0])
    images = np.stack([split.normalize(apply(split.images[r], draws, int(r))) for r in rows])
    halves = (images / 3).astype(np.float16).astype(np.float32) * 7
    expected = (halves.sum((1, 2)).astype(np.float16), halves.max(1).astype(np.float16))
    made.activations.prepare(1)
    for found, values in zip(made.activations.tensors(1, rows, NAMES), expected, strict=True):
        assert found.dtype == np.float16
        assert np.array_equal(found, values)
    # In the order asked for, and the pictures themselves where they enter.
    assert np.array_equal(made.activations.tensors(1, rows, ("tops",))[0], expected[1])
    (pictures,) = made.activations.tensors(1, rows, (INPUT,))
    assert pictures.dtype == np.float32
    assert np.array_equal(pictures, images)
    # Twin: another view of the same rows.
    assert not np.array_equal(made.activations.tensors(0, rows, NAMES)[0], expected[0])


@pytest.mark.parametrize("stored", [{0}, {1}, {0, 1}])
def test_where_values_come_from_does_not_matter(
    tmp_path: Path, split: Pictures, stored: set[int]
) -> None:
    fresh = Made(tmp_path / "fresh", split, (frozenset(),) * 2)
    kept = Made(tmp_path / "kept", split, (frozenset(stored),) * 2)
    random = np.random.default_rng(2)
    for view, rows in product((0, 1), (EVERY[::-1], random.permutation(ROWS)[:300], EVERY[7:8])):
        assert kept.read(view, rows) == fresh.read(view, rows)
    assert kept.read(0) != kept.read(1)
    assert list((tmp_path / "fresh").iterdir()) == []
    levels = {path.parent.parent.name for path in (tmp_path / "kept").glob("*/*/*.npy")}
    assert levels == {f"activations-{('first', 'second')[number]}" for number in stored}


def test_a_view_is_computed_once_and_only_when_it_is_needed(
    tmp_path: Path, split: Pictures
) -> None:
    made = Made(tmp_path, split)
    made.activations.prepare(0)
    assert made.computed == [ROWS, ROWS]
    assert len(made.folders()) == 3
    made.read(0)
    made.read(0)
    assert made.computed == [ROWS, ROWS]
    made.activations.prepare(1)
    assert made.computed == [2 * ROWS, 2 * ROWS]
    # Another process finds them, and computes nothing.
    again = Made(tmp_path, split)
    assert again.read(0) == made.read(0)
    assert again.computed == [0, 0]
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


def test_behind_a_stored_anchor_nothing_starts_from_the_pictures(
    tmp_path: Path, split: Pictures
) -> None:
    Made(tmp_path, split, (frozenset({0}),)).activations.prepare(0)
    # The next cut behind the same anchor, whose own tensors are to be stored as well.
    following = Made(tmp_path, split, (frozenset({0, 1}),), digests=("digest 0", "another cut"))
    following.activations.prepare(0)
    assert following.computed == [0, ROWS]


def test_anchor_and_cut_are_computed_in_one_pass(tmp_path: Path, split: Pictures) -> None:
    made = Made(tmp_path, split, (frozenset({0, 1}),))
    made.activations.prepare(0)
    assert made.computed == [ROWS, ROWS]


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
        "stored activations-second result is damaged and is made again: sums.npy "
    )
    assert path.read_bytes() == content
    assert again.computed[1] in (1024, ROWS - 2048)  # that shard alone


def check_goes_on(made: Made, split: Pictures, folder: Path) -> None:
    """Checks that what cannot be stored is said in a line, and computed with the same result."""
    expected = Made(folder, split, (frozenset(),) * 2)
    assert made.read() == expected.read()
    assert len(made.said) == 1
    assert made.said[0].startswith("activations of view 1 are not stored: cannot write ")
    assert made.activations.stored[0] == frozenset()
    assert made.activations.refused == {0}
    assert made.activations.kept(1) == 0
    made.read()
    assert len(made.said) == 1  # not once an epoch


def test_a_store_that_cannot_be_written_ends_no_training(tmp_path: Path, split: Pictures) -> None:
    made = Made(tmp_path / "store", split)
    (tmp_path / "store" / "activations-second").write_bytes(b"in the way")
    check_goes_on(made, split, tmp_path / "fresh")
    # The anchor lies elsewhere; it is stored and used.
    other = Made(tmp_path / "store", split, (frozenset({0, 1}),))
    expected = Made(tmp_path / "fresh", split, (frozenset(),))
    assert other.read() == expected.read()
    assert other.activations.stored[0] == frozenset({0})
    assert other.activations.refused == {0}
    assert [other.activations.kept(number) for number in (0, 1)] == [1, 0]
    assert len(other.folders("first")) == 3


def test_a_full_disk_ends_no_training(small_disk: Path, tmp_path: Path, split: Pictures) -> None:
    made = Made(small_disk / "store", split)
    # A view takes 2100 * 30 bytes, 92 kB in whole blocks: there is room for one, not for two.
    (small_disk / "filler").write_bytes(bytes(2**20 - 140_000))
    first = made.read(0)
    assert made.said == []
    fresh = Made(tmp_path / "fresh", split, (frozenset(),) * 2)
    assert made.read(1) == fresh.read(1)
    assert len(made.said) == 1
    assert made.said[0].startswith("activations of view 2 are not stored: cannot write ")
    assert made.read(0) == first == fresh.read(0)
    assert made.activations.stored == [frozenset({1}), frozenset()]
    assert made.activations.refused == {1}
    assert made.activations.kept(1) == 1
    assert len(made.folders()) == 3  # of the second view, not a single shard is left
    assert list(small_disk.glob("store/*/.draft-*")) == []


OTHER = Augmentation(flip=True, shift=0.2, zoom=0.2, brightness=0.1, contrast=0.21)


@pytest.mark.parametrize(
    "change",
    [
        {"augmentation": OTHER},
        {"augmentation": None},
        {"seed": 6},
        {"data": "other pictures"},
        {"digests": ("digest 0", "other weights")},
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
    assert other.computed == [ROWS, ROWS]
    assert len(other.folders()) == 9
    assert before < set(other.folders())
    # Twin: the very same again.
    same = Made(tmp_path, split)
    same.activations.prepare(0)
    assert same.computed == [0, 0]


def test_pictures_that_are_not_changed_have_no_seed(tmp_path: Path, split: Pictures) -> None:
    one = Made(tmp_path, split, (frozenset({1}),), None, 5, name="validation")
    other = Made(tmp_path, split, (frozenset({1}),), None, 6, name="validation")
    (images,) = one.activations.tensors(0, EVERY[:5], (INPUT,))
    assert np.array_equal(images, split.normalize(split.images[:5].astype(np.float32)))
    assert one.read() == other.read()
    assert (one.computed, other.computed) == ([ROWS, ROWS], [0, 0])


# --- the real network -----------------------------------------------------------------------


@dataclass(frozen=True)
class Real:
    """What a chain of two levels of the network makes of augmented pictures."""

    chain: tuple[Level, ...]
    split: Pictures
    root: Path

    def read(
        self,
        stored: set[int],
        view: int,
        rows: npt.NDArray[np.int64],
        chain: tuple[Level, ...] | None = None,
    ) -> list[npt.NDArray[Untyped]]:
        activations = Activations(
            self.split,
            "train",
            chain or self.chain,
            augmentation=WOBBLY,
            views=2,
            seed=5,
            shelf=shelf(self.root),
        )
        activations.stored = [frozenset(stored)] * 2
        activations.prepare(view)
        return list(activations.tensors(view, rows, tuple(self.chain[-1].outputs)))


def chain_of(weights: Untyped) -> tuple[Level, ...]:
    nodes, place, size = mobilenet_v2(ALPHA), "block_8_project", (SIZE_PX, SIZE_PX)
    return chain_to(nodes, weights, place, size, anchor_level(nodes, weights, place, size))


def test_what_the_network_makes_of_a_row_is_the_same_wherever_it_comes_from(
    network: Network, tmp_path: Path
) -> None:
    model = network(ALPHA, SIZE_PX)
    weights = fold(mobilenet_v2(ALPHA), keras_model.arrays_of(model))
    images, labels = coloured(77, 3)  # a chunk of 64 rows, and the last batch is not full
    contract = Preprocess(height_px=SIZE_PX, width_px=SIZE_PX)
    real = Real(chain_of(weights), Pictures(images, labels, contract), tmp_path)
    assert len(real.chain) == 2
    random = np.random.default_rng(7)
    whole = {view: real.read({1}, view, np.arange(77)) for view in (0, 1)}
    assert not np.array_equal(whole[0][0], whole[1][0])
    for stored, view in product((set[int](), {0}, {1}, {0, 1}), (0, 1)):
        for rows in (np.array([76]), np.arange(77)[::-1], random.permutation(77)[:29]):
            found = real.read(stored, view, rows)
            for tensor, expected in zip(found, whole[view], strict=True):
                assert np.array_equal(tensor, expected[rows])
    # Twin: one weight in front of the cut is a hundredth larger.
    bent = weights["block_7_project/kernel"].copy()
    bent.flat[0] *= 1.01
    other = real.read({1}, 0, np.arange(77), chain_of({**weights, "block_7_project/kernel": bent}))
    assert not np.array_equal(other[0], whole[0][0])


# --- what is stored when --------------------------------------------------------------------


def nothing(
    tensors: Sequence[npt.NDArray[np.float32]],
) -> tuple[npt.NDArray[np.float16], ...]:
    raise NotImplementedError


def level(name: str, *values: int) -> Level:
    return Level(name, (INPUT,), {f"{name}{i}": (n,) for i, n in enumerate(values)}, nothing, "")


chains = some.lists(some.integers(1, 50), max_size=2).map(
    lambda sizes: tuple(level(f"level {i}", size) for i, size in enumerate(sizes))
)
views = some.lists(some.tuples(some.integers(1, 20), some.integers(1, 3)), min_size=1, max_size=6)


def test_a_row_takes_two_bytes_a_value() -> None:
    wide = Level("wide", (INPUT,), {"a": (3, 4, 5), "b": (7,)}, nothing, "")
    assert bytes_per_row(wide) == 2 * (60 + 7)


@given(chain=chains, view=views, room=some.integers(0, 20_000), keep_anchor=some.booleans())
def test_the_room_is_never_exceeded_and_never_left_empty(
    chain: tuple[Level, ...], view: list[tuple[int, int]], room: int, keep_anchor: bool
) -> None:
    rows, reads = [count for count, _ in view], [times for _, times in view]
    stored, refused = plan_storage(
        chain, rows=rows, reads=reads, room_bytes=room, at_anchor=[keep_anchor] * len(rows)
    )
    assert len(stored) == len(rows)
    taken = sum(
        rows[place] * bytes_per_row(chain[number])
        for place, kept in enumerate(stored)
        for number in kept
    )
    assert taken <= room
    assert refused <= set(range(len(rows)))
    top = len(chain) - 1
    for place, kept in enumerate(stored):
        assert kept <= set(range(len(chain)))
        # What was wanted and is not there would not fit now either.
        if chain and reads[place] > 1 and top not in kept:
            assert place in refused
            assert rows[place] * bytes_per_row(chain[top]) > room - taken
        if chain and reads[place] > 1 and not kept:
            assert rows[place] * bytes_per_row(chain[0]) > room - taken
        if not keep_anchor:
            assert len(kept) <= 1
            assert not kept or reads[place] > 1


@given(chain=chains, view=views, room=some.integers(0, 20_000), keep_anchor=some.booleans())
def test_the_last_level_comes_first(
    chain: tuple[Level, ...], view: list[tuple[int, int]], room: int, keep_anchor: bool
) -> None:
    rows, reads = [count for count, _ in view], [times for _, times in view]
    stored, _ = plan_storage(
        chain, rows=rows, reads=reads, room_bytes=room, at_anchor=[keep_anchor] * len(rows)
    )
    never = [False] * len(rows)
    alone, _ = plan_storage(chain[-1:], rows=rows, reads=reads, room_bytes=room, at_anchor=never)
    top = len(chain) - 1
    if top:  # a single level is the last and the anchor at once
        assert [top in kept for kept in stored] == [0 in kept for kept in alone]


TWO = (level("anchor", 10), level("cut", 50))  # 20 and 100 bytes a row


@pytest.mark.parametrize(
    ("room", "keep_anchor", "expected", "refused"),
    [
        (10**9, False, [{1}, {1}, {1}, set()], set()),
        (10**9, True, [{0, 1}, {0, 1}, {0, 1}, {0}], set()),
        (0, True, [set(), set(), set(), set()], {0, 1, 2, 3}),
        (0, False, [set(), set(), set(), set()], {0, 1, 2}),
        # Room for two tops and one anchor: the third view keeps its anchor.
        (2 * 1000 + 200, False, [{1}, {1}, {0}, set()], {2}),
        (2 * 1000 + 199, False, [{1}, {1}, set(), set()], {2}),
        # No room for any top: anchors.
        (999, False, [{0}, {0}, {0}, set()], {0, 1, 2}),
        (500, False, [{0}, {0}, set(), set()], {0, 1, 2}),
    ],
)
def test_the_cut_first_then_anchors(
    room: int, keep_anchor: bool, expected: list[set[int]], refused: set[int]
) -> None:
    found = plan_storage(
        TWO, rows=[10] * 4, reads=[5, 2, 2, 1], room_bytes=room, at_anchor=[keep_anchor] * 4
    )
    assert ([set(kept) for kept in found[0]], set(found[1])) == (expected, refused)


def test_the_room_is_the_budget_or_half_of_what_is_free(tmp_path: Path) -> None:
    small: Shelf = shelf(tmp_path, budget_bytes=12345)
    assert small.room() == 12345
    large: Shelf = shelf(tmp_path, budget_bytes=10**18)
    # Others write to the disk too.
    assert large.room() == pytest.approx(large.store.free_bytes() / 2, rel=0.1)
