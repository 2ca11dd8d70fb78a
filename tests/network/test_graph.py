"""The folded network: its nodes are Keras's layers, its numbers are Keras's numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import Network, Untyped

from edgekit.network.graph import (
    INPUT,
    LOGITS,
    STAGE_STARTS,
    Arrays,
    Node,
    bias_codes,
    bias_steps,
    boundary,
    divisible,
    fold,
    kernel_codes,
    kernel_limits,
    mobilenet_v2,
    output_shapes,
    split,
    weighted,
)
from edgekit.recipe import WIDTHS

# A float32 operation is off by at most 2**-24 of its result. A sum of up to 1792 terms gathers
# sqrt(1792) of those (they are independent), and so do 53 layers: sqrt(53 * 1792) * 2**-24 is
# 1.8e-5 of the largest value. Five times that is allowed.
FLOAT_ROUNDING = 1e-4
# Even and odd sizes pad differently; 97 is odd at every stride, 33 at the first ones.
SIZES_PX = {0.35: 97, 0.5: 33, 0.75: 32, 1.0: 33, 1.3: 32, 1.4: 47}


@pytest.mark.parametrize(("alpha", "size"), [*SIZES_PX.items(), (0.35, 32)])
def test_folding_computes_what_keras_computes(network: Network, alpha: float, size: int) -> None:
    from edgekit.network.keras_model import arrays_of

    model, nodes = network(alpha, size), mobilenet_v2(alpha)
    images = np.random.default_rng(4).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    expected = model(images, training=False).numpy()
    arrays = arrays_of(model)
    bound = FLOAT_ROUNDING * float(np.abs(expected).max())
    assert distance(nodes, fold(nodes, arrays), images, expected) <= bound
    # Twin: one BatchNorm variance of one channel, a fifth off.
    name = "block_6_project_BN/moving_variance"
    arrays[name] = arrays[name] * np.where(np.arange(len(arrays[name])) == 0, 1.2, 1)
    assert distance(nodes, fold(nodes, arrays), images, expected) > bound


def distance(
    nodes: tuple[Node, ...], weights: Arrays, images: Any, expected: npt.NDArray[np.float32]
) -> float:
    from edgekit.network.forward import logits_function

    return float(np.abs(logits_function(nodes, weights)(images).numpy() - expected).max())


@pytest.mark.parametrize("alpha", WIDTHS)
def test_the_nodes_are_the_layers_of_keras(network: Network, alpha: float) -> None:
    import tf_keras

    layers = tf_keras.layers
    model = network(alpha, SIZES_PX[alpha])
    nodes = mobilenet_v2(alpha)
    kinds = {
        "conv": layers.Conv2D,
        "depthwise": layers.DepthwiseConv2D,
        "add": layers.Add,
        "pool": layers.GlobalAveragePooling2D,
    }
    computing = [layer for layer in model.layers if isinstance(layer, tuple(kinds.values()))]
    assert [node.name for node in nodes] == [layer.name for layer in computing]
    for node, layer in zip(nodes, computing, strict=True):
        assert isinstance(layer, kinds[node.op])
        assert isinstance(layer, layers.DepthwiseConv2D) == (node.op == "depthwise")
        assert node.inputs == tuple(sources_of(layer, {n.name for n in nodes}))
        if node.op in ("conv", "depthwise"):
            assert layer.strides == (node.stride, node.stride)
            following = following_layers(layer)
            norms = [x.name for x in following if isinstance(x, layers.BatchNormalization)]
            assert norms == ([node.batch_norm] if node.batch_norm else [])
            assert any(isinstance(x, layers.ReLU) for x in following) == node.relu6
    assert len(weighted(nodes)) == 53
    assert sum(node.op == "depthwise" for node in nodes) == 17
    assert sum(node.op == "add" for node in nodes) == 10


def sources_of(layer: Untyped, computing: set[str]) -> list[str]:
    """Returns the computing layers (or the input) that a Keras layer reads, through all others."""
    tensors = layer.input if isinstance(layer.input, list) else [layer.input]
    names = []
    for tensor in tensors:
        before = tensor.node.layer
        if before.name in computing:
            names.append(before.name)
        elif not before.inbound_nodes[0].parent_nodes:
            names.append(INPUT)
        else:
            names += sources_of(before, computing)
    return names


def following_layers(layer: Untyped) -> list[Untyped]:
    """Returns the BatchNorm and ReLU that belong to a convolution."""
    import tf_keras

    found: list[Untyped] = []
    (consumer,) = (node.layer for node in layer.outbound_nodes)
    if isinstance(consumer, tf_keras.layers.BatchNormalization):
        found.append(consumer)
        after = [node.layer for node in consumer.outbound_nodes]
        found += [layer for layer in after if isinstance(layer, tf_keras.layers.ReLU)]
    return found


@pytest.mark.parametrize(
    ("value", "channels"), [(11.2, 16), (8.4, 8), (5.6, 8), (44.8, 48), (33.6, 32), (9, 16)]
)
def test_channels_are_multiples_of_eight_never_a_tenth_too_few(value: float, channels: int) -> None:
    assert divisible(value) == channels


@pytest.mark.parametrize("op", ["conv", "depthwise"])
@pytest.mark.parametrize("seed", range(5))
def test_a_code_is_at_most_half_a_step_from_its_weight(op: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    node = Node("n", "conv" if op == "conv" else "depthwise", (INPUT,))
    gains = 10.0 ** random.uniform(-5, 3, 6)
    shape = (3, 3, 4, 6) if op == "conv" else (3, 3, 6, 1)
    laid_out = gains if op == "conv" else gains[:, None]
    kernel = (random.normal(size=shape) * laid_out).astype(np.float32)
    codes, scales = kernel_codes(node, kernel, kernel_limits(node, kernel, "channel"))
    assert (codes.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (6,))
    steps = scales.astype(np.float64) if op == "conv" else scales.astype(np.float64)[:, None]
    # scale/2 by rounding to the nearest code, plus float32's rounding of the scale, times 127.
    allowed = steps * (0.5 + 127 * 2.0**-23)
    assert (np.abs(kernel - codes * steps) <= allowed).all()
    # Every channel uses its whole range, whatever the others do.
    axis = (0, 1, 2) if op == "conv" else (0, 1, 3)
    assert (np.abs(codes.astype(int)).max(axis) == 127).all()
    # Twin: one scale for all channels is too coarse for the small ones.
    limits = kernel_limits(node, kernel, "tensor")
    assert limits == (np.abs(kernel).max(),)
    codes, scales = kernel_codes(node, kernel, limits)
    assert (codes.shape, scales.shape) == (kernel.shape, (1,))
    assert (np.abs(kernel - codes * scales[0]) > allowed).any()


def test_a_channel_of_zeros_has_codes_of_zero_and_a_finite_scale() -> None:
    kernel = np.ones((1, 1, 2, 3), np.float32)
    kernel[..., 1] = 0
    node = Node("n", "conv", (INPUT,))
    codes, scales = kernel_codes(node, kernel, kernel_limits(node, kernel, "channel"))
    assert codes[0, 0].tolist() == [[127, 0, 127]] * 2
    assert scales[1] == 2.0**-23


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_a_bias_in_float32_has_the_codes_that_ship(size: float) -> None:
    random = np.random.default_rng(5)
    bias = (size * random.normal(size=4000)).astype(np.float32)
    scales = (10 ** random.uniform(-5, -2, 4000)).astype(np.float32)
    codes, steps = bias_codes(bias, scales, 0.0235), bias_steps(scales, 0.0235)
    real = (codes * steps).astype(np.float32)
    assert np.array_equal(np.round(real / steps), codes)
    # Half a step, or float32's rounding where that is coarser.
    assert (
        np.abs(codes * steps - bias) <= np.maximum(0.5001 * steps, 2.0**-23 * np.abs(bias))
    ).all()
    # Twin: steps in float32, as a file holds them, are too coarse for codes above 2**24.
    coarse = np.round(bias / steps.astype(np.float32).astype(np.float64))
    assert np.array_equal(coarse, codes) == (np.abs(codes).max() < 2**23)


def test_a_cut_inside_a_residual_block_is_crossed_by_two_tensors() -> None:
    nodes = mobilenet_v2(0.35)
    names = [node.name for node in weighted(nodes)]
    later = frozenset(names[names.index("block_2_project") :])
    prefix, tail = split(nodes, later)
    assert (prefix[-1].name, tail[0].name) == ("block_2_depthwise", "block_2_project")
    assert boundary(prefix, tail) == ("block_1_project", "block_2_depthwise")


def test_other_cuts_are_crossed_by_one_tensor() -> None:
    nodes = mobilenet_v2(1.0)
    names = [node.name for node in weighted(nodes)]
    crossing = {
        first: boundary(*split(nodes, frozenset(names[names.index(first) :])))
        for first in ("Conv1", "block_3_expand", "block_13_expand", "Conv_1", LOGITS)
    }
    assert crossing == {
        "Conv1": (INPUT,),
        "block_3_expand": ("block_2_add",),
        "block_13_expand": ("block_12_add",),
        "Conv_1": ("block_16_project",),
        LOGITS: ("global_average_pool",),
    }


def test_a_cut_without_any_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 64 nodes"):
        split(mobilenet_v2(1.0), frozenset({"Conv2"}))


@pytest.mark.parametrize(("alpha", "size"), [(0.35, 97), (1.0, 33), (1.4, 47), (0.35, 32)])
def test_shapes_are_those_of_keras(network: Network, alpha: float, size: int) -> None:
    from edgekit.network.keras_model import arrays_of, tensors_of

    model, nodes = network(alpha, size), mobilenet_v2(alpha)
    names = [node.name for node in nodes]
    found = output_shapes(nodes, fold(nodes, arrays_of(model)), (size, size))
    tensors = tensors_of(model, nodes, names, np.zeros((1, size, size, 3), np.float32))
    expected = {name: tensor.shape[1:] for name, tensor in tensors.items()}
    assert found == {INPUT: (size, size, 3), **expected}


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_follow_height_width_and_channels(channels: int) -> None:
    nodes = mobilenet_v2(0.35)[:3]
    weights = {f"{node.name}/kernel": np.zeros((1, 1, 8, 8), np.float32) for node in nodes}
    weights["Conv1/kernel"] = np.zeros((1, 1, channels, 8), np.float32)
    assert output_shapes(nodes, weights, (5, 8)) == {
        INPUT: (5, 8, channels),
        "Conv1": (3, 4, 8),
        "expanded_conv_depthwise": (3, 4, 8),
        "expanded_conv_project": (3, 4, 8),
    }


@pytest.mark.parametrize("alpha", WIDTHS)
def test_a_stage_starts_where_a_residual_addition_is_impossible(alpha: float) -> None:
    # In Table 2 of the paper no repeat but the first of a stage changes the width or the size;
    # narrow networks may have the same width on both sides, and then add across stages.
    added = {node.name for node in mobilenet_v2(alpha) if node.op == "add"}
    inside = {f"block_{i}_add" for i in range(17)} - {f"block_{i}_add" for i in STAGE_STARTS}
    assert STAGE_STARTS == (0, 1, 3, 6, 10, 13, 16)
    assert added == inside
