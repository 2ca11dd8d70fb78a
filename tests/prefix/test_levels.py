"""The frozen part on LiteRT: what Keras's own layers compute, row by row alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import ALPHA, SIZE_PX, Arrays, Network, Untyped, coloured

from edgekit.errors import ConversionError
from edgekit.network.graph import INPUT, LOGITS, boundary, fold, mobilenet_v2
from edgekit.records import Preprocess

pytest.importorskip("tensorflow")

from edgekit.fitting.pictures import Pictures
from edgekit.network import keras_model
from edgekit.prefix.levels import (
    ANCHORS,
    CLOSE,
    Level,
    anchor,
    anchor_level,
    chain_to,
    check,
    level_digest,
)

Values = dict[str, npt.NDArray[np.float32]]
# Where the cut is, and which tensors each level makes: cuts before the first anchor, between
# blocks, inside residual blocks (two tensors enter), at anchors, and at the head.
CHAINS: dict[str, list[list[str]]] = {
    "expanded_conv_depthwise": [["Conv1"]],
    "block_2_project": [["block_1_project", "block_2_depthwise"]],
    "block_3_expand": [["block_2_add"]],
    "block_4_project": [["block_2_add"], ["block_3_project", "block_4_depthwise"]],
    "block_6_expand": [["block_5_add"]],
    "block_8_project": [["block_5_add"], ["block_7_add", "block_8_depthwise"]],
    "block_10_expand": [["block_9_add"]],
    "block_15_project": [["block_9_add"], ["block_14_add", "block_15_depthwise"]],
    "Conv_1": [["block_9_add"], ["block_16_project"]],
    LOGITS: [["block_9_add"], ["global_average_pool"]],
}


@dataclass(frozen=True)
class Subject:
    """A network, and the chain of levels to one of its layers."""

    model: Untyped
    alpha: float
    weights: Arrays
    chain: tuple[Level, ...]
    images: npt.NDArray[np.float32]

    def expected(self) -> Values:
        """Returns what Keras's layers compute for every tensor of the chain."""
        names = [name for level in self.chain for name in level.outputs]
        return keras_model.tensors_of(self.model, mobilenet_v2(self.alpha), names, self.images)


def subject(network: Network, place: str, alpha: float = ALPHA, size: int = SIZE_PX) -> Subject:
    model, nodes = network(alpha, size), mobilenet_v2(alpha)
    weights = fold(nodes, keras_model.arrays_of(model))
    images, labels = coloured(19, 3, size)
    contract = Preprocess(height_px=size, width_px=size)
    values = Pictures(images, labels, contract).normalize(images.astype(np.float32))
    return Subject(model, alpha, weights, chain(weights, place, alpha, size), values)


def chain(weights: Arrays, place: str, alpha: float, size: int) -> tuple[Level, ...]:
    nodes = mobilenet_v2(alpha)
    before = anchor_level(nodes, weights, place, (size, size))
    return chain_to(nodes, weights, place, (size, size), before)


def computed(levels: Sequence[Level], images: npt.NDArray[np.float32]) -> Values:
    """Returns every tensor of a chain."""
    known: Values = {INPUT: images}
    for level in levels:
        results = level.compute([known[name] for name in level.inputs])
        assert {result.dtype for result in results} == {np.dtype(np.float16)}
        made = zip(level.outputs, results, strict=True)
        known.update({name: result.astype(np.float32) for name, result in made})
    del known[INPUT]
    return known


def apart(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Returns the root mean square of the difference over that of the other."""
    return float(np.sqrt(np.square(one - other).mean() / np.square(other).mean()))


@pytest.mark.parametrize(
    ("place", "alpha", "size"),
    [
        *((place, ALPHA, SIZE_PX) for place in CHAINS),
        # Odd at the first strides and at all: Keras pads by hand what LiteRT calls "SAME".
        ("block_8_project", 1.0, 33),
        ("block_15_project", ALPHA, 97),
    ],
)
def test_the_levels_compute_what_keras_computes(
    network: Network, place: str, alpha: float, size: int
) -> None:
    given = subject(network, place, alpha, size)
    assert [list(level.outputs) for level in given.chain] == CHAINS[place]
    expected = given.expected()
    found = computed(given.chain, given.images)
    # Every tensor that enters at the cut is an output of the last level.
    nodes = mobilenet_v2(alpha)
    stop = [node.name for node in nodes].index(place)
    assert boundary(nodes[:stop], nodes[stop:]) == tuple(given.chain[-1].outputs)
    for level in given.chain:
        for name, shape in level.outputs.items():
            assert found[name].shape == expected[name].shape == (19, *shape)
            assert apart(found[name], expected[name]) <= CLOSE
            # Twin: the pictures in another order.
            assert apart(found[name][::-1], expected[name]) > CLOSE
    told = check(given.chain, given.images, expected)
    assert told == pytest.approx({name: apart(found[name], expected[name]) for name in expected})


@pytest.mark.parametrize("place", ["block_2_project", "block_8_project"])
def test_one_disturbed_weight_is_noticed(network: Network, place: str) -> None:
    given = subject(network, place)
    expected = given.expected()
    check(given.chain, given.images, expected)
    # The bias of one channel of the first layer, of the last one, and a kernel on the way.
    last = given.chain[-1].name
    for name in ("Conv1/bias", "block_1_expand/kernel", f"{last}/kernel"):
        wrong = given.weights[name].copy()
        wrong.flat[0] += np.abs(wrong).max()
        altered = chain({**given.weights, name: wrong}, place, ALPHA, SIZE_PX)
        with pytest.raises(
            ConversionError, match="the frozen part departs from Keras by"
        ) as caught:
            check(altered, given.images, expected)
        assert caught.value.exit_code == 1
        assert str(CLOSE) in caught.value.expected
        # The first tensor that is off, as what lies behind follows from it.
        first = next(
            tensor
            for tensor, found in computed(altered, given.images).items()
            if apart(found, expected[tensor]) > CLOSE
        )
        assert caught.value.received.endswith(f" at {first}")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_values_that_are_no_numbers_are_noticed(wrong: float, place: int) -> None:
    names = ("first", "second", "third")

    def compute(
        tensors: Sequence[npt.NDArray[np.float32]],
    ) -> tuple[npt.NDArray[np.float16], ...]:
        results = [tensors[0].astype(np.float16) for _ in names]
        results[place][3] = wrong
        return tuple(results)

    images = np.ones((8, 2, 2, 3), np.float32)
    level = Level("made up", (INPUT,), dict.fromkeys(names, (2, 2, 3)), compute, "")
    with pytest.raises(ConversionError) as caught:
        check((level,), images, dict.fromkeys(names, images))
    assert caught.value.received.endswith(f" at {names[place]}")


@pytest.mark.parametrize("place", ["block_2_project", "block_8_project", "Conv_1", LOGITS])
def test_a_row_comes_out_alike_whatever_lies_beside_it(network: Network, place: str) -> None:
    given = subject(network, place)
    whole = computed(given.chain, given.images)
    random = np.random.default_rng(1)
    for rows in (
        np.array([5]),
        np.arange(19)[::-1],
        random.permutation(19)[:11],
        np.array([3, 3, 3, 18]),
        np.tile(np.arange(19), 4),
    ):
        for name, found in computed(given.chain, given.images[rows]).items():
            assert np.array_equal(found, whole[name][rows])
    # Not even by rows that are no pictures.
    odd = np.concatenate([np.full_like(given.images[:3], 1e30), given.images[:2]])
    for name, found in computed(given.chain, odd).items():
        assert np.array_equal(found[3:], whole[name][:2])
        # Twin: these rows do come out otherwise.
        assert not np.array_equal(found[:2], whole[name][:2])


def test_at_the_input_nothing_is_frozen(network: Network) -> None:
    assert subject(network, "Conv1").chain == ()
    assert check((), np.ones((1, 32, 32, 3), np.float32), {}) == {}


def test_the_anchor_is_the_last_one_at_or_before_a_layer() -> None:
    nodes = mobilenet_v2(ALPHA)
    names = [node.name for node in nodes]
    found = [anchor(nodes, name) for name in names]
    assert set(ANCHORS) < set(names)
    changes = {names[i]: found[i] for i in range(1, len(names)) if found[i] != found[i - 1]}
    assert changes == {name: name for name in ANCHORS}
    assert (found[0], found[-1]) == (None, "block_10_expand")


def test_cuts_behind_an_anchor_share_its_level(network: Network) -> None:
    one, other = subject(network, "block_13_expand").chain, subject(network, LOGITS).chain
    assert one[0].digest == other[0].digest
    assert one[1].digest != other[1].digest
    assert one[0].name != one[1].name


def test_too_large_values_become_the_largest_half(network: Network) -> None:
    given = subject(network, "block_3_expand")
    bias = np.full_like(given.weights["block_2_project/bias"], 1e6)
    (level,) = chain({**given.weights, "block_2_project/bias": bias}, "block_3_expand", 0.35, 48)
    (found,) = level.compute([given.images])
    assert (found == np.finfo(np.float16).max).all()


def test_the_digest_follows_what_the_values_follow_from() -> None:
    nodes = mobilenet_v2(ALPHA)[:4]
    names = [f"{node.name}/{part}" for node in nodes for part in ("kernel", "bias")]
    weights = {name: np.arange(6, dtype=np.float32) + i for i, name in enumerate(names)}
    usual = level_digest(nodes, weights, ("a", "b"), "before")
    assert usual == level_digest(
        nodes, {**weights, "later/kernel": np.ones(3)}, ("a", "b"), "before"
    )
    others = {
        level_digest(nodes, weights, ("b", "a"), "before"),
        level_digest(nodes, weights, ("ab",), "before"),
        level_digest(nodes, weights, ("a", "b"), ""),
        level_digest(nodes[:3], weights, ("a", "b"), "before"),
        level_digest((replace(nodes[0], stride=1), *nodes[1:]), weights, ("a", "b"), "before"),
        *(
            level_digest(
                nodes, {**weights, name: np.nextafter(weights[name], 9)}, ("a", "b"), "before"
            )
            for name in names
        ),
    }
    assert len(others) == 5 + len(names)
    assert usual not in others
