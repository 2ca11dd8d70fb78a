"""The frozen part of a run: what enters at every cut, kept while it is of use and no longer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as some
from tiny_network import ALPHA, SIZE_PX, Arrays, Network, Trained, Untyped, but, shelf

from edgekit.errors import ConversionError
from edgekit.network.graph import INPUT, LOGITS, fold, mobilenet_v2
from edgekit.recipe import AugmentSpec
from edgekit.records import PrefixRecord, Preprocess

pytest.importorskip("tensorflow")

from edgekit.fitting.pictures import Pictures
from edgekit.network import keras_model
from edgekit.prefix.frozen import CutFeed, Frozen, activations_of, describe, plan_storage
from edgekit.prefix.level import CLOSE, Level, entering

NODES = mobilenet_v2(ALPHA)
WOBBLY = AugmentSpec(flip=True, shift=0.1, zoom=0.1, brightness=0.1, contrast=0.1)
# From the head to the input. At 48 px what enters at the first four is smaller than a picture of
# 6912 bytes (two tensors at each of the latter two), at the next two it is larger, and at the last
# the picture itself enters.
SMALL = (LOGITS, "block_16_expand", "block_15_project", "block_8_project")
LARGE = ("block_2_project", "block_1_expand")
PLACES = (*SMALL, *LARGE, "Conv1")
TOGETHER = [
    "block_7_add",
    "block_8_depthwise",
    "block_14_add",
    "block_15_depthwise",
    "block_15_add",
    "global_average_pool",
]
# Bytes a picture at each of them.
BYTES = {LOGITS: 2560, "block_16_expand": 448, "block_15_project": 3136, "block_8_project": 3024}


class Run:
    """The frozen part of a run in a real store."""

    def __init__(
        self,
        model: Untyped,
        pictures: Untyped,
        root: Path,
        *,
        budget_bytes: int = 10**9,
        weights: Arrays | None = None,
        places: tuple[str, ...] = PLACES,
        views: int = 2,
    ) -> None:
        self.root = root
        self.asked: list[list[str]] = []

        def reference(names: Sequence[str], images: Untyped) -> Arrays:
            self.asked.append(list(names))
            return keras_model.tensors_of(model, NODES, names, images)

        self.views = views
        self.frozen = Frozen(
            NODES,
            weights or fold(NODES, keras_model.arrays_of(model)),
            places,
            train=pictures[0],
            validation=pictures[1],
            augmentation=WOBBLY,
            views=views,
            seed=5,
            shelf=shelf(root, budget_bytes=budget_bytes),
            reference=reference,
        )

    def feeds(self, place: str, epochs: int = 4, again: bool = True) -> dict[str, CutFeed]:
        """Returns the feeds of a cut after an epoch of each view."""
        feeds = self.frozen.feeds(place, epochs=epochs, again=again)
        for epoch in range(min(epochs, self.views)):
            feeds["train"].prepare(epoch)
        feeds["validation"].prepare(0)
        return dict(feeds)

    def shards(self) -> dict[str, set[str]]:
        """Returns the stored results by level."""
        return {
            folder.name: {shard.name for shard in folder.iterdir()}
            for folder in self.root.glob("activations-*")
        }


@pytest.fixture
def run(network: Network, pictures: Untyped, tmp_path: Path) -> Run:
    return Run(network(ALPHA, SIZE_PX), pictures, tmp_path)


def test_what_enters_is_what_keras_computes(run: Run, network: Network, pictures: Untyped) -> None:
    model = network(ALPHA, SIZE_PX)
    images = pictures[1].normalize(pictures[1].images.astype(np.float32))
    for place in PLACES:
        feed = run.feeds(place)["validation"]
        names = entering(NODES, place)
        expected = keras_model.tensors_of(model, NODES, names, images)
        assert feed.names == names
        assert feed.from_level == (place != "Conv1")
        assert np.array_equal(feed.labels, pictures[1].labels)
        found = feed.read(0, np.arange(24))
        assert len(found) == len(feed.shapes) == len(expected)
        for tensor, shape, value in zip(found, feed.shapes, expected.values(), strict=True):
            assert tensor.dtype == feed.dtype
            assert tensor.shape == value.shape == (24, *shape)
            size = np.sqrt(np.square(value).mean())
            assert np.sqrt(np.square(tensor - value).mean()) <= CLOSE * size
            # Twin: the next picture.
            assert np.sqrt(np.square(np.roll(tensor, 1, 0) - value).mean()) > CLOSE * size
    assert feed.dtype == np.float32  # the last were the pictures themselves


def test_one_pass_serves_all_cuts_whose_tensors_are_smaller_than_a_picture(run: Run) -> None:
    feeds = {place: run.feeds(place) for place in SMALL}
    # Keras is asked once for all of them, and nothing is computed twice.
    assert run.asked == [TOGETHER]
    assert set(run.shards()) == {"activations-global_average_pool"}
    assert len(run.shards()["activations-global_average_pool"]) == 3  # two views, and validation
    used = {feed[split].activations for feed in feeds.values() for split in feed}
    assert sorted(activations.computed_rows for activations in used) == [24, 2 * 48]
    # Every other cut has a pass of its own.
    for place in LARGE:
        run.feeds(place)
        assert run.asked[-1] == list(entering(NODES, place))
    run.feeds("Conv1")
    assert len(run.asked) == 3


def test_epochs_take_turns_with_the_views(
    network: Network, pictures: Untyped, tmp_path: Path
) -> None:
    run = Run(network(ALPHA, SIZE_PX), pictures, tmp_path, views=3)
    feeds, rows = run.feeds(LOGITS), np.arange(48)
    seen = [feeds["train"].read(epoch, rows)[0] for epoch in range(7)]
    for epoch in range(7):
        same = [np.array_equal(seen[epoch], other) for other in seen]
        assert same == [other % 3 == epoch % 3 for other in range(7)]
    still = [feeds["validation"].read(epoch, np.arange(24))[0] for epoch in range(2)]
    assert np.array_equal(*still)


def test_what_no_later_cut_needs_is_deleted(run: Run) -> None:
    kept = []
    for place in PLACES:
        run.feeds(place)
        kept.append(set(run.shards()))
    assert kept == [
        *[{"activations-global_average_pool"}] * 4,
        {"activations-block_2_depthwise"},
        {"activations-expanded_conv_project"},
        set(),
    ]


def test_what_is_stored_for_one_cut_is_read_at_the_next(run: Run) -> None:
    feeds = run.feeds(LOGITS)
    first = run.shards()
    assert feeds["train"].activations.computed_rows == 2 * 48
    for place in SMALL[1:]:
        feeds = run.feeds(place)
        assert run.shards() == first
        assert feeds["train"].activations.computed_rows == 2 * 48


def test_a_run_that_starts_again_finds_what_was_stored(
    run: Run, network: Network, pictures: Untyped, tmp_path: Path
) -> None:
    one, rows = run.feeds("block_8_project"), np.arange(24)
    again = Run(network(ALPHA, SIZE_PX), pictures, tmp_path)
    other = again.feeds("block_8_project")
    for split in ("train", "validation"):
        assert other[split].activations.computed_rows == 0
        pairs = zip(one[split].read(1, rows), other[split].read(1, rows), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs)
    # Twin: with other views planned, what is not planned any more is deleted.
    fewer = Run(network(ALPHA, SIZE_PX), pictures, tmp_path, views=1)
    before = run.shards()["activations-global_average_pool"]
    fewer.feeds("block_8_project")
    assert run.shards()["activations-global_average_pool"] < before
    assert len(before) == 3


ONE_CUT = BYTES["block_15_project"]
SUM = sum(BYTES.values())


# All cuts at once fit; one cut alone does; its validation split and one view; validation; nothing.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget_bytes", "together", "views", "validation"),
    [
        ((24 + 2 * 48) * SUM, True, {0, 1}, {0}),
        ((24 + 2 * 48) * SUM - 1, False, {0, 1}, {0}),
        ((24 + 2 * 48) * ONE_CUT, False, {0, 1}, {0}),
        ((24 + 2 * 48) * ONE_CUT - 1, False, {0}, {0}),
        ((24 + 48) * ONE_CUT - 1, False, set(), {0}),
        (24 * ONE_CUT - 1, False, set(), set()),
        (0, False, set(), set()),
    ],
)
def test_the_budget_changes_no_value(
    network: Network,
    pictures: Untyped,
    tmp_path: Path,
    budget_bytes: int,
    together: bool,
    views: set[int],
    validation: set[int],
) -> None:
    place, rows = "block_15_project", np.random.default_rng(3).permutation(48)
    model = network(ALPHA, SIZE_PX)
    rich = Run(model, pictures, tmp_path / "rich", places=(place,))
    poor = Run(model, pictures, tmp_path / "poor", budget_bytes=budget_bytes)
    one, other = rich.feeds(place), poor.feeds(place)
    assert poor.asked == [TOGETHER if together else list(entering(NODES, place))]
    assert one["train"].activations.stored == {0, 1}
    assert other["train"].activations.stored == views
    assert other["train"].activations.refused == {0, 1} - views
    assert other["validation"].activations.stored == validation
    taken = sum(path.stat().st_size for path in (tmp_path / "poor").rglob("*.npy"))
    assert taken <= budget_bytes + 128 * 18  # a header for each file
    for split, count in (("train", 48), ("validation", 24)):
        for epoch in (0, 1):
            chosen = rows[rows < count]
            found = other[split].read(epoch, chosen)
            pairs = zip(found, one[split].read(epoch, chosen), strict=True)
            assert all(np.array_equal(*pair) for pair in pairs)
            # Twin: the other view of training.
            others = zip(found, one[split].read(1 - epoch, chosen), strict=True)
            assert all(np.array_equal(*pair) == (split == "validation") for pair in others)


def test_a_frozen_part_that_differs_from_keras_is_refused(
    network: Network, pictures: Untyped, tmp_path: Path
) -> None:
    model = network(ALPHA, SIZE_PX)
    weights = fold(NODES, keras_model.arrays_of(model))
    bent = weights["block_12_expand/kernel"].copy()
    bent.flat[0] += 2
    wrong = {**weights, "block_12_expand/kernel": bent}
    front = Run(model, pictures, tmp_path, weights=wrong, places=("block_8_project",))
    front.feeds("block_8_project")  # that kernel lies behind
    for place in ("block_15_project", "block_8_project"):  # one pass serves both
        with pytest.raises(ConversionError, match="the frozen part departs from Keras"):
            Run(model, pictures, tmp_path, weights=wrong).feeds(place)


def test_what_is_read_once_is_stored_for_later_cuts_only(run: Run) -> None:
    alone = run.feeds("block_16_expand", epochs=2, again=False)
    assert alone["train"].activations.stored == set()
    assert alone["validation"].activations.stored == {0}
    followed = run.feeds("block_16_expand", epochs=2, again=True)
    assert followed["train"].activations.stored == {0, 1}
    # No other cut reads what a pass makes that serves one alone.
    alone = run.feeds("block_2_project", epochs=2, again=True)
    assert alone["train"].activations.stored == set()
    assert alone["validation"].activations.stored == {0}
    often = run.feeds("block_2_project", epochs=4, again=True)
    assert often["train"].activations.stored == {0, 1}


def test_a_cut_that_was_in_one_pass_can_be_read_again_behind_another(
    run: Run, network: Network, pictures: Untyped
) -> None:
    rows = np.arange(24)
    before = run.feeds("block_16_expand")["validation"].read(0, rows)[0]
    run.feeds("block_2_project")
    after = run.feeds("block_16_expand")["validation"].read(0, rows)[0]
    # The pass is of this cut alone now: what else it served was deleted.
    assert run.asked[-1] == ["block_15_add"]
    assert set(run.shards()) == {"activations-block_15_add"}
    assert np.array_equal(before, after)


def test_of_a_single_cut_its_own_tensors_are_kept(
    network: Network, pictures: Untyped, tmp_path: Path
) -> None:
    alone = Run(network(ALPHA, SIZE_PX), pictures, tmp_path, places=("block_15_project",))
    activations = alone.feeds("block_15_project")["train"].activations
    assert activations.level is not None
    assert list(activations.level.outputs) == ["block_14_add", "block_15_depthwise"]
    assert activations.view_bytes() == 48 * BYTES["block_15_project"]
    assert activations.stored == {0, 1}


def test_the_record_says_how_the_tensors_came_about(
    run: Run, network: Network, pictures: Untyped, tmp_path: Path
) -> None:
    def told(run: Run, place: str) -> PrefixRecord:
        feeds = run.feeds(place)
        return describe(feeds, run.frozen.departure)

    record = told(run, "block_15_project")
    assert record.tensors == ("block_14_add", "block_15_depthwise")
    assert record.bytes_per_image == BYTES["block_15_project"]
    assert (record.views, record.views_stored, record.views_refused) == (2, 2, 0)
    assert record.images_per_second is not None
    assert record.seconds > 0
    assert record.departure is not None
    assert 0 < record.departure <= CLOSE
    # The same again comes from the store, and so does another cut of the same pass.
    for place in ("block_15_project", LOGITS):
        again = told(run, place)
        assert (again.images_per_second, again.seconds) == (None, 0)
        assert again.departure == record.departure
        assert again.bytes_per_image == BYTES[place]
    poor = Run(network(ALPHA, SIZE_PX), pictures, tmp_path / "poor", budget_bytes=0)
    record = told(poor, "block_15_project")
    assert (record.views, record.views_stored, record.views_refused) == (2, 0, 2)
    record = told(run, "Conv1")
    assert record.tensors == (INPUT,)
    assert record.bytes_per_image == 0
    assert (record.views, record.views_stored, record.views_refused) == (2, 0, 0)
    assert record.departure is None


def test_views_without_an_epoch_are_not_in_the_record(
    network: Network, pictures: Untyped, tmp_path: Path
) -> None:
    run = Run(network(ALPHA, SIZE_PX), pictures, tmp_path, views=3)
    feeds = run.frozen.feeds("block_16_expand", epochs=6, again=True)
    for count, view in ((1, 1), (2, 2), (3, 0)):
        feeds["train"].prepare(view)
        record = describe(feeds, None)
        assert (record.views, record.views_stored) == (3, count)


def test_what_a_phase_will_cost_is_foretold(
    run: Run, network: Network, pictures: Untyped, tmp_path: Path
) -> None:
    assert run.frozen.outlook(4, 48) == (0.0, 0)  # nothing was asked for
    feeds = run.frozen.feeds("block_8_project", epochs=4, again=True)
    seconds, stored = run.frozen.outlook(4, 48)
    assert stored == 2 * feeds["train"].activations.view_bytes() == 2 * 48 * sum(BYTES.values())
    # As many pictures are computed as there are in two views, whatever the number of epochs.
    assert seconds > 0
    assert run.frozen.outlook(9, 48)[0] == seconds
    assert run.frozen.outlook(1, 48)[0] == pytest.approx(seconds / 2)
    assert run.frozen.outlook(1, 12)[0] == pytest.approx(seconds / 2)  # a view is stored as a whole
    feeds["train"].prepare(0)
    assert run.frozen.outlook(4, 48)[0] == pytest.approx(seconds / 2)
    feeds["train"].prepare(1)
    assert run.frozen.outlook(4, 48)[0] == 0
    # Without room every epoch computes its view.
    poor = Run(network(ALPHA, SIZE_PX), pictures, tmp_path / "poor", budget_bytes=0)
    poor.frozen.feeds("block_8_project", epochs=4, again=True)
    seconds, stored = poor.frozen.outlook(4, 48)
    assert stored == 0
    assert poor.frozen.outlook(1, 48)[0] == pytest.approx(seconds / 4)
    # A trial reads some of the pictures; of what is not stored no others are computed.
    assert poor.frozen.outlook(4, 12)[0] == pytest.approx(seconds / 4)
    # Where pictures enter nothing is computed.
    run.frozen.feeds("Conv1", epochs=4, again=True)
    assert run.frozen.outlook(4, 48) == (0.0, 0)


# --- what is stored when --------------------------------------------------------------------


def nothing(
    tensors: Sequence[npt.NDArray[np.float32]],
) -> tuple[npt.NDArray[np.float16], ...]:
    raise NotImplementedError


def made_of(root: Path, values: int, rows: tuple[int, int], views: int, budget: int) -> Untyped:
    """Returns activations of so many values a row, and the shelf that they are to lie on."""
    contract = Preprocess(height_px=2, width_px=2)
    train, validation = (
        Pictures(np.zeros((n, 2, 2, 3), np.uint8), np.zeros(n, np.int32), contract) for n in rows
    )
    place = shelf(root, budget_bytes=budget)
    made = activations_of(
        Level("made-up", {"values": (values,)}, nothing, ""),
        train=train,
        validation=validation,
        augmentation=WOBBLY,
        views=views,
        seed=5,
        shelf=place,
    )
    return made, place


@settings(max_examples=50, deadline=None)
@given(
    values=some.integers(1, 50),
    rows=some.tuples(some.integers(1, 20), some.integers(1, 20)),
    views=some.integers(1, 5),
    epochs=some.integers(1, 12),
    again=some.booleans(),
    budget=some.integers(0, 8000),
)
def test_the_room_is_never_exceeded_and_never_left_empty(
    tmp_path_factory: pytest.TempPathFactory,
    values: int,
    rows: tuple[int, int],
    views: int,
    epochs: int,
    again: bool,
    budget: int,
) -> None:
    made, place = made_of(tmp_path_factory.mktemp("room"), values, rows, views, budget)
    for _ in range(2):  # a second plan of the same changes nothing
        plan_storage(made, epochs=epochs, again=again, shelf=place)
        train, validation = made["train"], made["validation"]
        taken = 2 * values * (rows[0] * len(train.stored) + rows[1] * len(validation.stored))
        assert taken <= budget
        reads = [sum(epoch % views == view for epoch in range(epochs)) for view in range(views)]
        wanted = {view for view, count in enumerate(reads) if count > 1 or again}
        # What was wanted and is not there would not fit now either, and is refused.
        assert train.stored <= wanted
        assert train.refused == wanted - train.stored
        assert not train.refused or 2 * values * rows[0] > budget - taken
        # Validation, which every epoch reads, comes first; then the views in their order.
        assert validation.stored == ({0} if 2 * values * rows[1] <= budget else set())
        assert train.stored == set(range(len(train.stored)))


def test_what_is_not_planned_any_more_is_deleted_from_the_shelf(tmp_path: Path) -> None:
    made, place = made_of(tmp_path, 5, (4, 4), 2, 10**6)
    for folder in ("activations-made-up/old", "activations-other/old", "train-phase/old"):
        (tmp_path / folder).mkdir(parents=True)
    plan_storage(made, epochs=1, again=True, shelf=place)
    left = {path.name for path in tmp_path.glob("*/*")}
    assert left == {"old"}
    assert [path.parent.name for path in tmp_path.glob("*/old")] == ["train-phase"]


@pytest.mark.slow
def test_what_is_stored_does_not_follow_the_learning_rate(
    trained: Trained, fine_tune: Callable[[Untyped], Trained], train_plan: Untyped
) -> None:
    def shards(result: Trained) -> set[str]:
        found = result.folder.glob("store/activations-*/*")
        return {f"{shard.parent.name}/{shard.name}" for shard in found}

    other = fine_tune(
        but(
            train_plan,
            head_learning_rate=2e-2,
            learning_rate=2e-3,
            label_smoothing=0.0,
            dropout=0.3,
        )
    )
    assert shards(trained)
    assert shards(other) == shards(trained)
