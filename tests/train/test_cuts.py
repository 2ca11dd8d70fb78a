"""Where the network is cut: the order of the cuts, fixed cuts, and names that do not exist."""

from functools import cache
from itertools import pairwise

import pytest

from edgekit.errors import SpecError
from edgekit.network.graph import LOGITS, mobilenet_v2, weighted
from edgekit.train.cuts import EARLIEST, Cut, Granularity, cut_at, fixed, progressive

NODES = mobilenet_v2(1.0)
KEY = "train.unfreeze_from"
WEIGHTED = [node.name for node in weighted(NODES)]


@cache
def layers() -> tuple[str, ...]:
    """Returns the layers of the Keras model, which is what an index in a recipe counts."""
    tf_keras = pytest.importorskip("tf_keras")
    from edgekit.network import keras_model

    model = keras_model.build(
        alpha=1.0, input_size_px=(32, 32), class_count=3, weights=None, seed=0
    )
    assert isinstance(model, tf_keras.Model)
    return tuple(layer.name for layer in model.layers)


def test_stages_are_unfrozen_from_the_output_to_the_input() -> None:
    cuts = progressive(layers(), NODES, "stage")
    # The first blocks of each width in table 2 of the paper; Conv_1 goes with the last of them, and
    # expanded_conv, the only block of its width, with Conv1.
    assert [cut.name for cut in cuts] == [
        "head", "block_16_expand", "block_13_expand", "block_10_expand", "block_6_expand",
        "block_3_expand", "block_1_expand", "Conv1",
    ]  # fmt: skip
    assert cuts[0].unfrozen == {LOGITS}
    assert cuts[-1].unfrozen == set(WEIGHTED)
    blocks = progressive(layers(), NODES, "block")
    assert set(cuts) < set(blocks) < set(progressive(layers(), NODES, "layer"))


def test_a_comparison_ends_by_default_where_a_stage_starts() -> None:
    assert EARLIEST in {cut.name for cut in progressive(layers(), NODES, "stage")}


def test_blocks_are_unfrozen_from_the_output_to_the_input() -> None:
    cuts = progressive(layers(), NODES, "block")
    blocks = [f"block_{number}_expand" for number in range(16, 0, -1)]
    expected = ["head", "Conv_1", *blocks, "expanded_conv_depthwise", "Conv1"]
    assert [cut.name for cut in cuts] == expected
    for earlier, later in pairwise(cuts):
        assert earlier.unfrozen < later.unfrozen
        assert earlier.index > later.index
    assert cuts[0].unfrozen == {LOGITS}
    assert cuts[-1].unfrozen == set(WEIGHTED)


def test_layers_are_unfrozen_one_at_a_time() -> None:
    cuts = progressive(layers(), NODES, "layer")
    assert [cut.name for cut in cuts] == ["head", *reversed(WEIGHTED[:-1])]
    assert [len(cut.unfrozen) for cut in cuts] == list(range(1, 54))


@pytest.mark.parametrize("granularity", ["stage", "block", "layer"])
def test_a_cut_unfreezes_every_later_weighted_layer_and_nothing_else(
    granularity: Granularity,
) -> None:
    order = layers()
    for cut in progressive(order, NODES, granularity):
        assert cut == cut_at(cut.index, order, NODES)
        assert cut.unfrozen == {name for name in WEIGHTED if order.index(name) >= cut.index}
        assert order[cut.index] == (LOGITS if cut.name == "head" else cut.name)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("head", "head"),
        (LOGITS, "head"),
        ("global_average_pool", "head"),
        ("all", "Conv1"),
        (0, "Conv1"),
        ("block_13_depthwise", "block_13_depthwise"),
        ("block_13_depthwise_BN", "block_13_project"),
        ("block_2_add", "block_3_expand"),
        ("out_relu", "head"),
    ],
)
def test_a_fixed_cut_starts_at_the_first_weighted_layer_from_there_on(
    asked: int | str, name: str
) -> None:
    cut = fixed(KEY, asked, layers(), NODES)
    assert cut.name == name
    assert cut == fixed(KEY, cut.name, layers(), NODES)


def test_index_100_counts_as_keras_does() -> None:
    order = layers()
    assert order[100] == "block_11_expand_relu"  # the layer that Keras's guide unfreezes from
    cut = fixed(KEY, 100, order, NODES)
    first = WEIGHTED.index("block_11_depthwise")
    expected = frozenset(WEIGHTED[first:])
    assert cut == Cut("block_11_depthwise", order.index("block_11_depthwise"), expected)


def test_the_last_index_is_the_head() -> None:
    order = layers()
    assert fixed(KEY, order.index(LOGITS), order, NODES).name == "head"


@pytest.mark.parametrize("asked", [-1, 157, 10_000])
def test_an_index_out_of_range_names_the_range(asked: int) -> None:
    with pytest.raises(SpecError, match=f"train.unfreeze_from = {asked}\n") as caught:
        fixed(KEY, asked, layers(), NODES)
    last = layers().index(LOGITS)
    assert f"from 0 to {last} (logits)" in caught.value.expected
    assert caught.value.exit_code == 2


def test_a_misspelt_layer_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="no such layer") as caught:
        fixed(KEY, "blok_13_expand", layers(), NODES)
    assert "'blok_13_expand'" in caught.value.received
    assert caught.value.remedy.startswith("nearest names: block_13_expand")
    assert caught.value.exit_code == 2


def test_the_message_names_the_key_of_the_recipe() -> None:
    with pytest.raises(SpecError) as caught:
        fixed("train.unfreeze_until", "blok_13_expand", layers(), NODES)
    assert caught.value.received.startswith("train.unfreeze_until = 'blok_13_expand'")


def test_a_name_like_no_layer_still_gets_a_remedy() -> None:
    with pytest.raises(SpecError) as caught:
        fixed(KEY, "???", layers(), NODES)
    assert caught.value.remedy != "nearest names: "


def test_a_layer_after_the_last_weights_is_refused() -> None:
    with pytest.raises(SpecError, match="flatten") as caught:
        fixed(KEY, "flatten", layers(), NODES)
    assert caught.value.exit_code == 2
