"""The frozen part on LiteRT: what Keras's own layers compute, row by row alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import ALPHA, SIZE_PX, Arrays, Network, Untyped, coloured

from edgekit.errors import ConversionError, SpecError
from edgekit.network.graph import INPUT, LOGITS, fold, mobilenet_v2, output_shapes
from edgekit.records import Preprocess

pytest.importorskip("tensorflow")

from edgekit.fitting.pictures import Pictures
from edgekit.network import keras_model
from edgekit.prefix.level import CLOSE, Level, check, entering, level_digest, level_to

Values = dict[str, npt.NDArray[np.float32]]
# What enters at cuts near the input, between blocks, inside residual blocks (two tensors enter),
# and at the head.
ENTERING: dict[str, tuple[str, ...]] = {
    "Conv1": (INPUT,),
    "expanded_conv_depthwise": ("Conv1",),
    "block_2_project": ("block_1_project", "block_2_depthwise"),
    "block_3_expand": ("block_2_add",),
    "block_4_project": ("block_3_project", "block_4_depthwise"),
    "block_8_project": ("block_7_add", "block_8_depthwise"),
    "block_10_expand": ("block_9_add",),
    "block_15_project": ("block_14_add", "block_15_depthwise"),
    "Conv_1": ("block_16_project",),
    LOGITS: ("global_average_pool",),
}
# Every cut at once: each tensor is an output of the one level.
ALL = tuple(ENTERING)


@dataclass(frozen=True)
class Subject:
    """A network, and the level to the tensors that enter at some of its layers."""

    model: Untyped
    alpha: float
    weights: Arrays
    level: Level
    images: npt.NDArray[np.float32]

    def expected(self) -> Values:
        """Returns what Keras's layers compute for every tensor of the level."""
        names = list(self.level.outputs)
        return keras_model.tensors_of(self.model, mobilenet_v2(self.alpha), names, self.images)


def subject(network: Network, *places: str, alpha: float = ALPHA, size: int = SIZE_PX) -> Subject:
    model, nodes = network(alpha, size), mobilenet_v2(alpha)
    weights = fold(nodes, keras_model.arrays_of(model))
    images, labels = coloured(19, 3, size)
    contract = Preprocess(height_px=size, width_px=size)
    values = Pictures(images, labels, contract).normalize(images.astype(np.float32))
    return Subject(model, alpha, weights, level_of(weights, places, alpha, size), values)


def level_of(
    weights: Arrays, places: Sequence[str], alpha: float = ALPHA, size: int = SIZE_PX
) -> Level:
    level = level_to(mobilenet_v2(alpha), weights, places, (size, size))
    assert level is not None
    return level


def computed(level: Level, images: npt.NDArray[np.float32]) -> Values:
    """Returns every tensor of a level."""
    results = level.compute([images])
    assert {result.dtype for result in results} == {np.dtype(np.float16)}
    pairs = zip(level.outputs, results, strict=True)
    return {name: result.astype(np.float32) for name, result in pairs}


def apart(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Returns the root mean square of the difference over that of the other."""
    return float(np.sqrt(np.square(one - other).mean() / np.square(other).mean()))


def test_what_enters_at_a_cut_is_what_its_layers_read_from_before_it() -> None:
    nodes = mobilenet_v2(ALPHA)
    assert {place: entering(nodes, place) for place in ENTERING} == ENTERING


@pytest.mark.parametrize(
    ("places", "alpha", "size"),
    [
        *(((place,), ALPHA, SIZE_PX) for place in ENTERING if place != "Conv1"),
        (ALL, ALPHA, SIZE_PX),
        # Odd at the first strides and at all: Keras pads by hand what LiteRT calls "SAME".
        (("block_8_project",), 1.0, 33),
        (("block_4_project", "block_15_project"), ALPHA, 97),
    ],
    ids=lambda value: "all" if value == ALL else None,
)
def test_the_level_computes_what_keras_computes(
    network: Network, places: tuple[str, ...], alpha: float, size: int
) -> None:
    given = subject(network, *places, alpha=alpha, size=size)
    nodes = mobilenet_v2(alpha)
    wanted = {name for place in places for name in ENTERING[place]} - {INPUT}
    assert list(given.level.outputs) == [node.name for node in nodes if node.name in wanted]
    expected = given.expected()
    found = computed(given.level, given.images)
    shapes = output_shapes(nodes, given.weights, (size, size))
    for name, shape in given.level.outputs.items():
        assert shape == shapes[name]
        assert found[name].shape == expected[name].shape == (19, *shape)
        assert apart(found[name], expected[name]) <= CLOSE
        # Twin: the pictures in another order.
        assert apart(found[name][::-1], expected[name]) > CLOSE
    told = check(given.level, given.images, expected)
    assert told == pytest.approx({name: apart(found[name], expected[name]) for name in expected})


def test_a_tensor_is_the_same_whatever_else_the_level_makes(network: Network) -> None:
    given = subject(network, *ALL)
    together = computed(given.level, given.images)
    assert len(together) > 10  # a converter that numbers names has two digits then
    for place in ("block_2_project", "block_10_expand", LOGITS):
        level = level_of(given.weights, (place,))
        for name, found in computed(level, given.images).items():
            assert np.array_equal(found, together[name])


@pytest.mark.parametrize("place", ["block_2_project", "block_8_project"])
def test_one_disturbed_weight_is_noticed(network: Network, place: str) -> None:
    given = subject(network, place)
    expected = given.expected()
    check(given.level, given.images, expected)
    # The bias of one channel of the first layer, of the last one, and a kernel on the way.
    for name in ("Conv1/bias", "block_1_expand/kernel", f"{given.level.name}/kernel"):
        wrong = given.weights[name].copy()
        wrong.flat[0] += np.abs(wrong).max()
        altered = level_of({**given.weights, name: wrong}, (place,))
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
    level = Level("made up", dict.fromkeys(names, (2, 2, 3)), compute, "")
    with pytest.raises(ConversionError) as caught:
        check(level, images, dict.fromkeys(names, images))
    assert caught.value.received.endswith(f" at {names[place]}")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e5])
def test_weights_that_make_no_activations_are_told_as_theirs(
    network: Network, wrong: float
) -> None:
    given = subject(network, "block_8_project")
    expected = given.expected()
    check(given.level, given.images, expected)
    name = next(iter(expected))
    altered = {**expected, name: expected[name].copy()}
    altered[name].flat[7] = wrong
    with pytest.raises(SpecError, match="the starting weights make") as caught:
        check(given.level, given.images, altered)
    assert caught.value.received.endswith(f"{wrong:.3g} of pictures at {name}")


@pytest.mark.parametrize(
    "places",
    [("block_2_project",), ("block_8_project",), ("Conv_1",), (LOGITS,), ALL],
    ids=lambda places: "all" if places == ALL else places[0],
)
def test_a_row_comes_out_alike_whatever_lies_beside_it(
    network: Network, places: tuple[str, ...]
) -> None:
    given = subject(network, *places)
    whole = computed(given.level, given.images)
    random = np.random.default_rng(1)
    for rows in (
        np.array([5]),
        np.arange(19)[::-1],
        random.permutation(19)[:11],
        np.array([3, 3, 3, 18]),
        np.tile(np.arange(19), 4),
    ):
        for name, found in computed(given.level, given.images[rows]).items():
            assert np.array_equal(found, whole[name][rows])
    # Not even by rows that are no pictures.
    odd = np.concatenate([np.full_like(given.images[:3], 1e30), given.images[:2]])
    for name, found in computed(given.level, odd).items():
        assert np.array_equal(found[3:], whole[name][:2])
        # Twin: these rows do come out otherwise.
        assert not np.array_equal(found[:2], whole[name][:2])


def test_at_the_input_nothing_is_frozen() -> None:
    size = (SIZE_PX, SIZE_PX)
    assert level_to(mobilenet_v2(ALPHA), {}, ("Conv1",), size) is None
    assert level_to(mobilenet_v2(ALPHA), {}, (), size) is None


def test_too_large_values_become_the_largest_half(network: Network) -> None:
    given = subject(network, "block_3_expand")
    bias = np.full_like(given.weights["block_2_project/bias"], 1e6)
    level = level_of({**given.weights, "block_2_project/bias": bias}, ("block_3_expand",))
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


def test_levels_that_differ_in_anything_have_other_digests(network: Network) -> None:
    given = subject(network, "block_3_expand")
    weights, digest = given.weights, given.level.digest
    later = {**weights, "block_3_expand/kernel": weights["block_3_expand/kernel"] + 1}
    assert level_of(later, ("block_3_expand",)).digest == digest
    earlier = {**weights, "block_2_expand/bias": weights["block_2_expand/bias"] + 1}
    others = {
        level_of(earlier, ("block_3_expand",)).digest,
        level_of(weights, ("block_2_project",)).digest,
        level_of(weights, ("block_2_project", "block_3_expand")).digest,
    }
    assert len(others) == 3
    assert digest not in others
    # The order of the places does not matter.
    turned = level_of(weights, ("block_3_expand", "block_2_project"))
    assert turned.digest in others
