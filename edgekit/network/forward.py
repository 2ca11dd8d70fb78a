"""Running the folded network in TensorFlow, in float or with simulated int8. Imports TensorFlow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.network.graph import INPUT, Arrays, Node, bias_codes, bias_steps, kernel_codes
from edgekit.network.ranges import int16_scale
from edgekit.records import Bits, RangeTable, TensorRange

Tensors = dict[str, Any]


def run(
    nodes: tuple[Node, ...],
    weights: Arrays,
    tensors: Tensors,
    table: RangeTable | None = None,
    bits: Bits = 8,
    *,
    rounded: bool = True,
) -> Tensors:
    """Computes the nodes and returns all tensors, the given ones included.

    Args:
        nodes: Nodes in topological order; every input must be in `tensors` or computed before.
        weights: Folded kernels and biases.
        tensors: float32 NHWC tensors by name; the network input is named `graph.INPUT`.
        table: If given, every kernel and output that it has a grid for is fake-quantized to int8:
            kernels symmetric, activations affine per tensor. Defaults to float.
        bits: 16 rounds activations to `ranges.int16_scale` instead. Defaults to 8.
        rounded: False clips outputs to their ranges and does not round them; kernels and biases
            stay on their grids. Defaults to True.
    """
    known = dict(tensors)
    for node in nodes:
        inputs = [known[name] for name in node.inputs]
        if table is None or node.name in table.kept_float:
            value = compute(node, inputs, *float_weights(node, weights))
        else:
            value = compute(node, inputs, *rounded_weights(node, weights, table, bits))
        span = table.activations.get(node.name) if table else None
        on_grid = quantize if rounded else _clip
        known[node.name] = on_grid(value, span, bits) if span else value
    return known


def quantize(value: Any, span: TensorRange, bits: Bits = 8) -> Any:
    """Returns the float32 tensor rounded to the int8 or int16 grid of its range."""
    if bits == 16:
        scale = int16_scale(span)
        return tf.clip_by_value(tf.round(value / scale), -32767, 32767) * scale
    return tf.quantization.fake_quant_with_min_max_args(value, span.minimum, span.maximum)


def _clip(value: Any, span: TensorRange, bits: Bits) -> Any:
    """Returns the float32 tensor with what `quantize` cannot represent cut off."""
    largest = 32767 * int16_scale(span)
    low, high = (-largest, largest) if bits == 16 else (span.minimum, span.maximum)
    return tf.clip_by_value(value, low, high)


def compute(
    node: Node,
    inputs: list[Any],
    kernel: Any = None,
    bias: Any = None,
    *,
    as_product: bool = False,
) -> Any:
    """Returns the float32 output of one node.

    Args:
        node: The node.
        inputs: Its float32 NHWC inputs.
        kernel: Folded kernel of a node that carries weights. Defaults to None.
        bias: Its folded bias. Defaults to None.
        as_product: Whether a 1 x 1 convolution is computed as a matrix product, in which a training
            step takes 0.70 to 0.75 of its time at alpha 0.35 and 96 px, 0.93 at 1.0 and 160 px.
            Defaults to False: as a convolution, which converters know.
    """
    if node.op == "add":
        return tf.add(inputs[0], inputs[1], name=node.name)
    if node.op == "pool":
        return tf.reduce_mean(inputs[0], axis=(1, 2), keepdims=True, name=node.name)
    if node.op == "depthwise":
        strides = (1, node.stride, node.stride, 1)
        value = tf.nn.depthwise_conv2d(inputs[0], kernel, strides, "SAME")
    elif as_product and node.stride == 1 and kernel.shape[:2] == (1, 1):
        (source,) = inputs
        channels, outgoing = kernel.shape[2:]
        product = tf.reshape(source, (-1, channels)) @ tf.reshape(kernel, (channels, outgoing))
        value = tf.reshape(product, (-1, *source.shape[1:3], outgoing))
    else:
        value = tf.nn.conv2d(inputs[0], kernel, node.stride, "SAME")
    value = tf.nn.bias_add(value, bias)
    return tf.nn.relu6(value) if node.relu6 else value


def float_weights(node: Node, weights: Arrays) -> tuple[Any, ...]:
    """Returns kernel and bias of a node, or nothing if it carries none."""
    if node.op in ("add", "pool"):
        return ()
    return tf.constant(weights[f"{node.name}/kernel"]), tf.constant(weights[f"{node.name}/bias"])


def rounded_weights(
    node: Node, weights: Arrays, table: RangeTable, bits: Bits = 8
) -> tuple[Any, ...]:
    """Returns kernel and bias on their integer grids, or nothing if a node carries none."""
    if node.op in ("add", "pool"):
        return ()
    kernel = weights[f"{node.name}/kernel"]
    codes, scales = kernel_codes(node, kernel, table.kernels[node.name])
    limit = scales * np.float32(127)
    laid_out = scales[:, None] if node.op == "depthwise" else scales
    rounded = quantize_kernel(tf.constant(codes * laid_out), limit, node.op == "depthwise")
    span = table.activations[node.inputs[0]]
    entering = span.scale if bits == 8 else int16_scale(span)
    bias = round_bias(weights[f"{node.name}/bias"], scales, entering)
    return rounded, tf.constant(bias)


def quantize_kernel(kernel: Any, limit: Any, depthwise: bool) -> Any:
    """Returns the float32 kernel rounded to the codes -127..127.

    Args:
        kernel: (h, w, in, out), or (h, w, channels, 1) of a depthwise convolution.
        limit: (1,) what code 127 stands for, or one such value for each output channel.
        depthwise: Whether it is a depthwise kernel.
    """
    if limit.shape[0] == 1:
        return tf.quantization.fake_quant_with_min_max_vars(
            kernel, -limit[0], limit[0], narrow_range=True
        )
    # TensorFlow's per-channel fake quantization works on the last axis only.
    last = tf.transpose(kernel, (0, 1, 3, 2)) if depthwise else kernel
    rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        last, -limit, limit, narrow_range=True
    )
    return tf.transpose(rounded, (0, 1, 3, 2)) if depthwise else rounded


def round_bias(
    bias: npt.NDArray[np.float32], kernel_scale: npt.NDArray[np.float32], input_scale: float
) -> npt.NDArray[np.float32]:
    """Returns the bias on its int32 grid of `input_scale * kernel_scale`.

    The grid is coarse where a folded BatchNorm made a kernel large: on MobileNetV2 0.35 up to half
    a unit of the output, which a simulation must not leave out.
    """
    codes = bias_codes(bias, kernel_scale, input_scale)
    return (codes * bias_steps(kernel_scale, input_scale)).astype(np.float32)


def logits_function(
    nodes: tuple[Node, ...],
    weights: Arrays,
    table: RangeTable | None = None,
    bits: Bits = 8,
    *,
    rounded: bool = True,
) -> Callable[[Any], Any]:
    """Returns a function from float32 (n, h, w, 3) to float32 logits (n, classes); see `run`."""

    def logits(images: Any) -> Any:
        start = images if table is None else quantize(images, table.activations[INPUT], bits)
        tensors = run(nodes, weights, {INPUT: start}, table, bits, rounded=rounded)
        last = tensors[nodes[-1].name]
        return tf.reshape(last, (-1, last.shape[-1]))

    return logits
