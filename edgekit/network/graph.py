"""The folded MobileNetV2 as data: a list of nodes without BatchNorm. No TensorFlow here.

Training uses the Keras model of `network.keras_model`. Everything after training (calibration,
quantization-aware training, TFLite, ONNX) uses this list, so that what is simulated and what ships
compute the same thing.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.errors import SpecError
from edgekit.records import Granularity

Arrays = Mapping[str, npt.NDArray[np.float32]]

INPUT = "input"
LOGITS = "logits"
# In the order in which Keras stores them.
BATCH_NORM_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")
# The Keras layer behind the logits; of the folded network it is no node.
FLATTEN = "flatten"

# (expansion, channels, repeats, first stride): Table 2 of arXiv:1801.04381.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# First block of each stage; within a stage all blocks have the same width and, behind the first,
# the same resolution.
STAGE_STARTS = tuple(sum(repeats for _, _, repeats, _ in _STAGES[:i]) for i in range(len(_STAGES)))


@dataclass(frozen=True)
class Node:
    """One operation of the folded network.

    Args:
        name: Name of the Keras layer it stands for; also the name of its output tensor.
        op: "conv" and "depthwise" carry `name/kernel` and `name/bias`; "add" and "pool" (global
            average over height and width, kept as 1 x 1) carry nothing.
        inputs: Names of the tensors it reads.
        stride: Stride in both directions. Defaults to 1. Padding is TensorFlow's "SAME", which
            equals Keras's explicit padding for every input size.
        relu6: Whether the output is clipped to 0..6. Defaults to False.
        batch_norm: Name of the Keras BatchNormalization that is folded into it, if any.
    """

    name: str
    op: Literal["conv", "depthwise", "add", "pool"]
    inputs: tuple[str, ...]
    stride: int = 1
    relu6: bool = False
    batch_norm: str | None = None


def divisible(value: float, divisor: int = 8) -> int:
    """Returns the channel count nearest to `value` that `divisor` divides, never 10 % below it.

    Source: the rounding rule of Keras Applications' MobileNetV2 (`_make_divisible`).
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def mobilenet_v2(alpha: float) -> tuple[Node, ...]:
    """Returns MobileNetV2 with a classification head as nodes in topological order.

    Args:
        alpha: Width multiplier; decides where a residual addition exists.
    """
    nodes = [Node("Conv1", "conv", (INPUT,), stride=2, relu6=True, batch_norm="bn_Conv1")]
    channels = divisible(32 * alpha)
    index = 0
    for expansion, base, repeats, first_stride in _STAGES:
        outgoing = divisible(base * alpha)
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            residual = stride == 1 and channels == outgoing
            nodes += _block(index, nodes[-1].name, expansion > 1, stride, residual)
            channels = outgoing
            index += 1
    last = nodes[-1].name
    nodes.append(Node("Conv_1", "conv", (last,), relu6=True, batch_norm="Conv_1_bn"))
    nodes.append(Node("global_average_pool", "pool", ("Conv_1",)))
    nodes.append(Node(LOGITS, "conv", ("global_average_pool",)))
    return tuple(nodes)


def _block(index: int, source: str, expand: bool, stride: int, residual: bool) -> list[Node]:
    prefix = _prefix(index)
    nodes, last = [], source
    if expand:
        name = f"{prefix}expand"
        nodes.append(Node(name, "conv", (last,), relu6=True, batch_norm=f"{name}_BN"))
        last = name
    depthwise, project = f"{prefix}depthwise", f"{prefix}project"
    nodes.append(
        Node(depthwise, "depthwise", (last,), stride, relu6=True, batch_norm=f"{depthwise}_BN")
    )
    nodes.append(Node(project, "conv", (depthwise,), batch_norm=f"{project}_BN"))
    if residual:
        nodes.append(Node(f"{prefix}add", "add", (source, project)))
    return nodes


def _prefix(index: int) -> str:
    return f"block_{index}_" if index else "expanded_conv_"


def backbone_shapes(alpha: float) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array of MobileNetV2 without a head, by its name.

    Args:
        alpha: Width multiplier.

    Returns:
        Shapes named `layer/variable` as `network.keras_model.arrays_of` names them, in the order of
        Keras's layers and of the variables of each: kernels (h, w, in, out), depthwise kernels
        (h, w, channels, 1), and gamma, beta, moving_mean and moving_variance (channels,).
    """
    blocks = [(expansion, divisible(base * alpha))
              for expansion, base, repeats, _ in _STAGES for _ in range(repeats)]  # fmt: skip
    # Keras Applications widens the last convolution, but never narrows it.
    outgoing = {"Conv1": divisible(32 * alpha), "Conv_1": divisible(1280 * max(alpha, 1.0))}
    channels = outgoing["Conv1"]
    for index, (expansion, projected) in enumerate(blocks):
        outgoing[f"{_prefix(index)}expand"] = channels * expansion
        outgoing[f"{_prefix(index)}project"] = channels = projected
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for node in weighted(mobilenet_v2(alpha)):
        if node.batch_norm is None:  # the head
            break
        side = 3 if node.op == "depthwise" or node.name == "Conv1" else 1
        after = channels if node.op == "depthwise" else outgoing[node.name]
        ends = (channels, 1) if node.op == "depthwise" else (channels, after)
        shapes[f"{node.name}/{kernel_variable(node)}"] = (side, side, *ends)
        for variable in BATCH_NORM_VARIABLES:
            shapes[f"{node.batch_norm}/{variable}"] = (after,)
        channels = after
    return shapes


def weighted(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Returns the nodes that carry weights, in topological order."""
    return tuple(node for node in nodes if node.op in ("conv", "depthwise"))


def layer_names(nodes: tuple[Node, ...]) -> tuple[str, ...]:
    """Returns the names of the Keras model's layers in order, without building it.

    Keras numbers its input layer anew for each model; here it is `INPUT`. Read off Keras
    Applications' MobileNetV2, with the head of `keras_model.build`.

    Args:
        nodes: The network.
    """
    names = [INPUT]
    for node in nodes:
        if node.op == "depthwise" and node.stride > 1:
            names.append(node.name.replace("_depthwise", "_pad"))
        names.append(node.name)
        names += [node.batch_norm] if node.batch_norm else []
        names += [relu_name(node)] if node.relu6 else []
    return (*names, FLATTEN)


def relu_name(node: Node) -> str:
    """Returns what Keras calls the layer that clips a node's output to 0..6."""
    return "out_relu" if node.name == "Conv_1" else f"{node.name}_relu"


def check_names(nodes: tuple[Node, ...], names: Sequence[str], asked: str) -> None:
    """Refuses names that no node has.

    Args:
        nodes: The network.
        names: What was asked for.
        asked: Where, for the message.

    Raises:
        SpecError: If there is no node of that name.
    """
    known = [node.name for node in nodes]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise SpecError(
                f"{asked} names {name!a}, which is no layer of the network",
                f"names such as {', '.join(known[:3])}, ..., {', '.join(known[-2:])}",
                f"did you mean {near[0]}?",
            )


def split(
    nodes: tuple[Node, ...], unfrozen: frozenset[str]
) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Returns the frozen prefix and the unfrozen tail.

    Args:
        nodes: The whole network in topological order.
        unfrozen: Names of the layers that trained.

    Returns:
        (prefix, tail): the tail starts at the first node whose weights trained.

    Raises:
        ValueError: If no node is named in `unfrozen`.
    """
    first = next((i for i, node in enumerate(nodes) if node.name in unfrozen), None)
    if first is None:
        msg = f"none of the {len(nodes)} nodes is among the unfrozen layers {sorted(unfrozen)}"
        raise ValueError(msg)
    return nodes[:first], nodes[first:]


def boundary(prefix: tuple[Node, ...], tail: tuple[Node, ...]) -> tuple[str, ...]:
    """Returns the names of the prefix tensors (or the network input) that the tail reads."""
    inside = {node.name for node in tail}
    known = [INPUT, *(node.name for node in prefix)]
    read = {name for node in tail for name in node.inputs} - inside
    return tuple(name for name in known if name in read)


def output_shapes(
    nodes: tuple[Node, ...], weights: Arrays, size_px: tuple[int, int]
) -> dict[str, tuple[int, int, int]]:
    """Returns the shape (h, w, c) of every node's output, without running the network.

    Args:
        nodes: The whole network.
        weights: Its kernels as `fold` returns them.
        size_px: (height, width) of the input.
    """
    shapes: dict[str, tuple[int, int, int]] = {INPUT: (*size_px, input_channels(nodes, weights))}
    for node in nodes:
        height, width, channels = shapes[node.inputs[0]]
        if node.op == "pool":
            height = width = 1
        elif node.op == "conv":
            channels = weights[f"{node.name}/kernel"].shape[3]
        # "SAME" padding gives the ceiling of the quotient.
        shapes[node.name] = (-(-height // node.stride), -(-width // node.stride), channels)
    return shapes


def for_channels(arrays: Arrays, channels: int) -> Arrays:
    """Returns the arrays of a backbone of three channels for an input of 3 or 1.

    For one channel the first kernel is summed over red, green and blue: a grey picture gives what
    it gave in three equal channels.
    """
    if channels == 3:
        return arrays
    name = f"{mobilenet_v2(1.0)[0].name}/kernel"
    return {**arrays, name: arrays[name].sum(axis=2, keepdims=True)}


def input_channels(nodes: tuple[Node, ...], weights: Arrays) -> int:
    """Returns how many channels a network takes that begins with a convolution."""
    return int(weights[f"{nodes[0].name}/kernel"].shape[2])


def fold(nodes: tuple[Node, ...], arrays: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """Returns kernels and biases with every BatchNorm folded into its convolution.

    A BatchNorm in inference mode is `gamma * (x - mean) / sqrt(variance + epsilon) + beta`, linear
    in x, so `kernel * s` and `beta - mean * s` with `s = gamma / sqrt(variance + epsilon)` compute
    the same. epsilon is Keras Applications' 1e-3. Computed in float64, returned as float32.

    Args:
        nodes: The network.
        arrays: Float arrays named `layer/variable` as `network.keras_model.arrays_of` gives them.

    Returns:
        `node/kernel` of shape (h, w, in, out) for "conv" and (h, w, channels, 1) for "depthwise",
        and `node/bias` of shape (out,) or (channels,).
    """
    folded: dict[str, npt.NDArray[np.float32]] = {}
    for node in weighted(nodes):
        kernel = arrays[f"{node.name}/{kernel_variable(node)}"].astype(np.float64)
        factor, bias = normalization(node, arrays)
        kernel = kernel * (factor[:, None] if node.op == "depthwise" else factor)
        folded[f"{node.name}/kernel"] = kernel.astype(np.float32)
        folded[f"{node.name}/bias"] = bias.astype(np.float32)
    return folded


def longest_sum(nodes: tuple[Node, ...], weights: Arrays) -> int:
    """Returns the most products that one value of the network is a sum of.

    Args:
        nodes: The network.
        weights: Its kernels as `fold` returns them.
    """
    return max(
        math.prod(weights[f"{node.name}/kernel"].shape[: 2 if node.op == "depthwise" else 3])
        for node in weighted(nodes)
    )


def kernel_variable(node: Node) -> str:
    """Returns what Keras calls the kernel of a node that carries weights."""
    return "depthwise_kernel" if node.op == "depthwise" else "kernel"


def normalization(
    node: Node, arrays: Arrays
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the factor on each output channel of the kernel, and the bias behind it.

    Args:
        node: A node that carries weights.
        arrays: As for `fold`, whose formula this is; without a BatchNorm the factor is 1 and the
            bias the layer's own.

    Returns:
        float64 arrays of shape (out,) for "conv" and (channels,) for "depthwise".
    """
    if node.batch_norm is None:
        own = arrays[f"{node.name}/bias"].astype(np.float64)
        return np.ones_like(own), own
    gamma, beta, mean, variance = (
        arrays[f"{node.batch_norm}/{name}"].astype(np.float64) for name in BATCH_NORM_VARIABLES
    )
    factor = gamma / np.sqrt(variance + 1e-3)
    return factor, beta - mean * factor


def kernel_limits(
    node: Node, kernel: npt.NDArray[np.float32], granularity: Granularity
) -> tuple[float, ...]:
    """Returns the largest magnitude of each output channel of a kernel, or of the whole kernel.

    Args:
        node: The node that the kernel belongs to.
        kernel: Folded kernel as `fold` returns it.
        granularity: "channel" for one limit per output channel, "tensor" for a single one.
    """
    if granularity == "tensor":
        return (float(np.abs(kernel).max()),)
    channel_axis = 2 if node.op == "depthwise" else 3
    others = tuple(axis for axis in range(4) if axis != channel_axis)
    return tuple(float(limit) for limit in np.abs(kernel).max(axis=others))


def kernel_codes(
    node: Node, kernel: npt.NDArray[np.float32], limits: Sequence[float]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Returns the int8 codes of a kernel and their scales.

    Symmetric: scale = limit / 127, codes -127..127. A channel of zeros gets a scale of 2**-23, so
    that its codes are 0 and nothing divides by zero. Both exporters and the simulation take the
    codes from here, so that no tie is rounded differently.

    Args:
        node: The node that the kernel belongs to.
        kernel: Folded kernel as `fold` returns it.
        limits: What `kernel_limits` returned: one per output channel, or one for all.

    Returns:
        int8 codes of the kernel's shape, and as many float32 scales as there are limits.
    """
    scales = np.maximum(np.array(limits, np.float32) / 127, 2.0**-23).astype(np.float32)
    laid_out = scales[:, None] if node.op == "depthwise" else scales
    codes = np.clip(np.round(kernel / laid_out), -127, 127).astype(np.int8)
    return codes, scales


def bias_codes(
    bias: npt.NDArray[np.float32], kernel_scales: npt.NDArray[np.float32], input_scale: float
) -> npt.NDArray[np.int64]:
    """Returns the codes of a bias on the grid of `bias_steps`.

    Both exporters and the simulation take the codes from here: one unit more in one file than in
    the other moves an output by a code now and then, and the layers behind make many of that one.

    Args:
        bias: float32 (out,).
        kernel_scales: float32 (out,), or (1,) for one grid of the whole kernel.
        input_scale: Scale of the tensor that the node reads.

    Returns:
        int64 (out,); whether they fit the type of a file is for the exporter to see to.
    """
    return np.round(bias / bias_steps(kernel_scales, input_scale)).astype(np.int64)


def bias_steps(
    kernel_scales: npt.NDArray[np.float32], input_scale: float
) -> npt.NDArray[np.float64]:
    """Returns the distance of neighbouring codes of a bias: input scale times kernel scale.

    To the last bit as the TFLite converter computes it, in float64 and from a kernel scale that it
    takes to be a 127th of the largest magnitude, in float32. Read off its files: all scales and
    codes of biases are equal (tests/export/test_tflite.py).

    Args:
        kernel_scales: As for `bias_codes`.
        input_scale: As for `bias_codes`.

    Returns:
        float64 of the shape of `kernel_scales`.
    """
    largest = kernel_scales * np.float32(127)
    return input_scale * (largest.astype(np.float64) / 127)
