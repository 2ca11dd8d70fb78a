"""The frozen part of a search: what enters at every cut, kept while it is of use and no longer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_network import ALPHA, SIZE_PX, Arrays, Network, Trained, Untyped, shelf

from edgekit.errors import ConversionError
from edgekit.network.graph import INPUT, LOGITS, boundary, fold, mobilenet_v2
from edgekit.records import PrefixRecord

pytest.importorskip("tensorflow")

from edgekit.fitting.augment import Augmentation
from edgekit.network import keras_model
from edgekit.prefix.frozen import CutFeed, Frozen, describe
from edgekit.prefix.levels import CLOSE

NODES = mobilenet_v2(ALPHA)
NAMES = [node.name for node in NODES]
WOBBLY = Augmentation(flip=True, shift=0.1, zoom=0.1, brightness=0.1, contrast=0.1)
# From the head to the input: three cuts behind block_10_expand, which they share as anchor, one
# behind block_6_expand, two before the first anchor, and the input.
PLACES = (
    LOGITS,
    "block_16_expand",
    "block_15_project",
    "block_8_project",
    "block_2_project",
    "block_1_expand",
    "Conv1",
)


def entering(place: str) -> tuple[str, ...]:
    stop = NAMES.index(place)
    return boundary(NODES[:stop], NODES[stop:])


class Search:
    """The frozen part of a search in a real store."""

    def __init__(
        self,
        model: Untyped,
        pictures: Untyped,
        root: Path,
        *,
        budget_bytes: int = 10**9,
        weights: Arrays | None = None,
        places: tuple[str, ...] = PLACES,
    ) -> None:
        self.root = root
        self.asked: list[list[str]] = []

        def reference(names: list[str], images: Untyped) -> Arrays:
            self.asked.append(names)
            return keras_model.tensors_of(model, NODES, names, images)

        self.frozen = Frozen(
            NODES,
            weights or fold(NODES, keras_model.arrays_of(model)),
            places,
            train=pictures[0],
            validation=pictures[1],
            augmentation=WOBBLY,
            seed=5,
            shelf=shelf(root, budget_bytes=budget_bytes),
            reference=reference,
        )

    def feeds(self, place: str, views: int = 2, epochs: int = 4) -> dict[str, CutFeed]:
        """Returns the feeds of a cut after an epoch of each view."""
        feeds = self.frozen.feeds(place, views=views, epochs=range(epochs))
        for epoch in range(views):
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
def search(network: Network, pictures: Untyped, tmp_path: Path) -> Search:
    return Search(network(ALPHA, SIZE_PX), pictures, tmp_path)


def test_what_enters_is_what_keras_computes(
    search: Search, network: Network, pictures: Untyped
) -> None:
    model = network(ALPHA, SIZE_PX)
    images = pictures[1].normalize(pictures[1].images.astype(np.float32))
    for place in PLACES:
        feed = search.feeds(place)["validation"]
        expected = keras_model.tensors_of(model, NODES, entering(place), images)
        assert feed.names == entering(place)
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
    # Keras is asked once for each cut: for what its anchor and its last level make.
    anchors = [["block_9_add"]] * 3 + [[]] * 4
    made = [[name for name in entering(place) if name != INPUT] for place in PLACES]
    assert search.asked == [[*one, *other] for one, other in zip(anchors, made, strict=True)]


def test_epochs_take_turns_with_the_views(search: Search) -> None:
    feeds, rows = search.feeds(LOGITS, views=3), np.arange(48)
    seen = [feeds["train"].read(epoch, rows)[0] for epoch in range(7)]
    for epoch in range(7):
        same = [np.array_equal(seen[epoch], other) for other in seen]
        assert same == [other % 3 == epoch % 3 for other in range(7)]
    still = [feeds["validation"].read(epoch, np.arange(24))[0] for epoch in range(2)]
    assert np.array_equal(*still)


def test_what_no_later_cut_needs_is_deleted(search: Search) -> None:
    kept = []
    for place in PLACES:
        search.feeds(place)
        kept.append(set(search.shards()))
    assert kept == [
        {"activations-block_9_add", "activations-global_average_pool"},
        {"activations-block_9_add", "activations-block_15_add"},
        {"activations-block_9_add", "activations-block_15_depthwise"},  # the last behind it
        {"activations-block_8_depthwise"},  # the only cut behind block_6_expand
        {"activations-block_2_depthwise"},
        {"activations-expanded_conv_project"},
        set(),
    ]


def test_cuts_behind_an_anchor_share_what_is_stored_there(search: Search) -> None:
    search.feeds(LOGITS)
    first = search.shards()["activations-block_9_add"]
    assert len(first) == 3  # two views of training, and validation
    search.feeds("block_16_expand")
    assert search.shards()["activations-block_9_add"] == first
    # Twin: other pictures' activations would lie elsewhere.
    search.feeds("block_16_expand", views=3)
    assert search.shards()["activations-block_9_add"] > first
    # A view that is not planned any more is deleted.
    search.feeds("block_16_expand")
    assert search.shards()["activations-block_9_add"] == first


@pytest.mark.parametrize("budget_bytes", [0, 150_000])
def test_the_budget_changes_no_value(
    network: Network, pictures: Untyped, tmp_path: Path, budget_bytes: int
) -> None:
    # One row takes 432 bytes at the anchor and 3136 at the cut: of 24 + 2 * 48 rows validation at
    # the cut and all anchors fit into 150 kB. A further cut lies behind the same anchor.
    place, rows = "block_15_project", np.random.default_rng(3).permutation(48)
    model, places = network(ALPHA, SIZE_PX), (place, "block_13_expand")
    rich = Search(model, pictures, tmp_path / "rich", places=places)
    poor = Search(model, pictures, tmp_path / "poor", budget_bytes=budget_bytes, places=places)
    one, other = rich.feeds(place), poor.feeds(place)
    assert one["train"].activations.stored == [frozenset({0, 1})] * 2
    assert one["validation"].activations.stored == [frozenset({0, 1})]
    assert other["train"].activations.stored == [frozenset({0} if budget_bytes else ())] * 2
    assert other["validation"].activations.stored == [frozenset({0, 1} if budget_bytes else ())]
    taken = sum(path.stat().st_size for path in (tmp_path / "poor").rglob("*.npy"))
    assert taken <= budget_bytes + 128 * 4  # a header for each file
    for split, count in (("train", 48), ("validation", 24)):
        for epoch in (0, 1):
            chosen = rows[rows < count]
            pairs = zip(
                one[split].read(epoch, chosen), other[split].read(epoch, chosen), strict=True
            )
            assert all(np.array_equal(a, b) for a, b in pairs)


def test_a_frozen_part_that_differs_from_keras_is_refused(
    network: Network, pictures: Untyped, tmp_path: Path
) -> None:
    model = network(ALPHA, SIZE_PX)
    weights = fold(NODES, keras_model.arrays_of(model))
    bent = weights["block_12_expand/kernel"].copy()
    bent.flat[0] += 2
    search = Search(model, pictures, tmp_path, weights={**weights, "block_12_expand/kernel": bent})
    search.feeds("block_8_project")  # that kernel lies behind
    with pytest.raises(ConversionError, match="the frozen part departs from Keras"):
        search.feeds("block_15_project")


def test_what_is_read_once_is_stored_for_later_cuts_only(search: Search) -> None:
    feeds = search.feeds("block_16_expand", views=2, epochs=2)
    assert feeds["train"].activations.stored == [frozenset({0})] * 2
    assert feeds["validation"].activations.stored == [frozenset({0, 1})]


def test_in_front_of_the_first_anchor_nothing_is_stored_for_later_cuts(search: Search) -> None:
    feeds = search.feeds("block_2_project", views=2, epochs=2)
    assert feeds["train"].activations.stored == [frozenset()] * 2
    assert feeds["validation"].activations.stored == [frozenset({0})]


def test_of_a_single_cut_no_anchor_is_kept(
    network: Network, pictures: Untyped, tmp_path: Path
) -> None:
    alone = Search(network(ALPHA, SIZE_PX), pictures, tmp_path, places=(LOGITS,))
    activations = alone.feeds(LOGITS)["train"].activations
    assert [level.name for level in activations.levels] == ["global_average_pool"]
    assert activations.stored == [frozenset({0})] * 2
    assert set(alone.shards()) == {"activations-global_average_pool"}


def test_the_record_says_how_the_tensors_came_about(
    search: Search, network: Network, pictures: Untyped, tmp_path: Path
) -> None:
    def told(search: Search, place: str) -> PrefixRecord:
        feeds = search.feeds(place)
        return describe(feeds, search.frozen.departure)

    record = told(search, "block_15_project")
    assert record.tensors == ("block_14_add", "block_15_depthwise")
    assert record.bytes_per_image == (432, 3136)
    assert (record.views, record.views_stored, record.views_at_anchor) == (2, 2, 0)
    assert record.views_refused == 0
    assert record.images_per_second is not None
    assert record.seconds > 0
    assert record.departure is not None
    assert 0 < record.departure <= CLOSE
    # The same again comes from the store.
    again = told(search, "block_15_project")
    assert (again.images_per_second, again.seconds) == (None, 0)
    # At the anchor, as another cut may follow.
    record = told(search, "block_16_expand")
    assert (record.views_stored, record.views_at_anchor, record.views_refused) == (2, 2, 0)
    poor = Search(network(ALPHA, SIZE_PX), pictures, tmp_path / "poor", budget_bytes=0)
    record = told(poor, "block_15_project")
    assert (record.views_stored, record.views_at_anchor, record.views_refused) == (0, 0, 2)
    record = told(search, "Conv1")
    assert record.tensors == (INPUT,)
    assert record.bytes_per_image == ()
    assert (record.views_stored, record.views_at_anchor, record.views_refused) == (0, 0, 0)
    assert record.departure is None


def test_views_without_an_epoch_are_not_in_the_record(search: Search) -> None:
    place = "block_16_expand"
    feeds = search.frozen.feeds(place, views=3, epochs=range(1, 7))
    for view, count in ((1, 1), (2, 2), (0, 3)):
        feeds["train"].prepare(view)
        record = describe(feeds, None)
        assert (record.views_stored, record.views_at_anchor) == (count, count)


@pytest.mark.parametrize("start", range(4))
def test_room_goes_to_validation_and_then_to_the_view_whose_turn_is_next(
    network: Network, pictures: Untyped, tmp_path: Path, start: int
) -> None:
    budget_bytes = 2560 * (24 + 48)  # 1280 pooled features of validation and of a single view
    alone = Search(
        network(ALPHA, SIZE_PX), pictures, tmp_path, budget_bytes=budget_bytes, places=(LOGITS,)
    )
    epochs = range(start, start + 4)
    feeds = alone.frozen.feeds(LOGITS, views=2, epochs=epochs)
    expected = [frozenset({0}), frozenset()]
    assert feeds["validation"].activations.stored == expected[:1]
    assert feeds["train"].activations.stored == expected[:: -1 if start % 2 else 1]
    assert feeds["train"].activations.refused == {(start + 1) % 2}


def test_what_is_stored_does_not_follow_the_learning_rate(
    trained: Trained, fine_tune: Callable[[Untyped], Trained], train_plan: Untyped
) -> None:
    def shards(result: Trained) -> set[str]:
        found = result.folder.glob("store/activations-*/*")
        return {f"{shard.parent.name}/{shard.name}" for shard in found}

    other = fine_tune(
        replace(
            train_plan,
            head_learning_rate=2e-2,
            unfreeze_learning_rate=2e-3,
            label_smoothing=0.0,
            dropout=0.3,
            batch_size=12,
        )
    )
    assert shards(trained)
    assert shards(other) == shards(trained)
