"""Running the folded network in TensorFlow, in float or with simulated int8. Imports TensorFlow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.network.graph import INPUT, Arrays, Node, kernel_codes
from edgekit.records import RangeTable, TensorRange

Tensors = dict[str, Any]


def run(
    nodes: tuple[Node, ...],
    weights: Arrays,
    tensors: Tensors,
    table: RangeTable | None = None,
) -> Tensors:
    """Computes the nodes and returns all tensors, the given ones included.

    Args:
        nodes: Nodes in topological order; every input must be in `tensors` or computed before.
        weights: Folded kernels and biases.
        tensors: float32 NHWC tensors by name; the network input is named `graph.INPUT`.
        table: If given, kernels and every output are fake-quantized to int8 with it: kernels
            symmetric, activations affine per tensor. Defaults to float.
    """
    known = dict(tensors)
    for node in nodes:
        inputs = [known[name] for name in node.inputs]
        if table is None:
            known[node.name] = compute(node, inputs, *_float_weights(node, weights))
        else:
            value = compute(node, inputs, *_rounded_weights(node, weights, table))
            known[node.name] = quantize(value, table.activations[node.name])
    return known


def quantize(value: Any, span: TensorRange) -> Any:
    """Returns the float32 tensor rounded to the int8 grid of its range."""
    return tf.quantization.fake_quant_with_min_max_args(value, span.minimum, span.maximum)


def compute(node: Node, inputs: list[Any], kernel: Any = None, bias: Any = None) -> Any:
    """Returns the float32 output of one node.

    Args:
        node: The node.
        inputs: Its float32 NHWC inputs.
        kernel: Folded kernel of a node that carries weights. Defaults to None.
        bias: Its folded bias. Defaults to None.
    """
    if node.op == "add":
        return tf.add(inputs[0], inputs[1], name=node.name)
    if node.op == "pool":
        return tf.reduce_mean(inputs[0], axis=(1, 2), keepdims=True, name=node.name)
    if node.op == "depthwise":
        strides = (1, node.stride, node.stride, 1)
        value = tf.nn.depthwise_conv2d(inputs[0], kernel, strides, "SAME")
    else:
        value = tf.nn.conv2d(inputs[0], kernel, node.stride, "SAME")
    value = tf.nn.bias_add(value, bias)
    return tf.nn.relu6(value) if node.relu6 else value


def _float_weights(node: Node, weights: Arrays) -> tuple[Any, ...]:
    if node.op in ("add", "pool"):
        return ()
    return tf.constant(weights[f"{node.name}/kernel"]), tf.constant(weights[f"{node.name}/bias"])


def _rounded_weights(node: Node, weights: Arrays, table: RangeTable) -> tuple[Any, ...]:
    if node.op in ("add", "pool"):
        return ()
    kernel = weights[f"{node.name}/kernel"]
    codes, scales = kernel_codes(node, kernel, table.kernels[node.name])
    limit = scales * np.float32(127)
    laid_out = scales[:, None] if node.op == "depthwise" else scales
    rounded = quantize_kernel(tf.constant(codes * laid_out), limit, node.op == "depthwise")
    bias = round_bias(weights[f"{node.name}/bias"], scales, table.activations[node.inputs[0]].scale)
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
    step = input_scale * kernel_scale.astype(np.float64)
    return (np.round(bias / step) * step).astype(np.float32)


def logits_function(
    nodes: tuple[Node, ...],
    weights: Arrays,
    table: RangeTable | None = None,
) -> Callable[[Any], Any]:
    """Returns a function from float32 (n, h, w, 3) to float32 logits (n, classes)."""

    def logits(images: Any) -> Any:
        start = images if table is None else quantize(images, table.activations[INPUT])
        last = run(nodes, weights, {INPUT: start}, table)[nodes[-1].name]
        return tf.reshape(last, (-1, last.shape[-1]))

    return logits
