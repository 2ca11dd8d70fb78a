"""Quantization-aware training of the unfrozen tail with tensorflow-model-optimization.

tfmot's defaults are not used: its ranges start at -6..6 and forget slowly, and it gives a depthwise
kernel one range for all channels. Here every layer of the tail gets its own `QuantizeConfig`:
kernels are quantized symmetrically from their current values, activation ranges start from a
calibration pass and are learned with the weights, and no layer is moved or fused, since BatchNorm
is already folded.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from edgekit.network.forward import quantize_kernel
from edgekit.network.graph import Arrays, Node
from edgekit.network.ranges import Ranges, from_limits
from edgekit.records import Granularity, RangeTable, TensorRange

_OUTPUT = "_output"
# How much faster the logarithm of a limit moves than a weight: Adam moves each by at most about the
# learning rate a step. Validation loss behind training on clothing pictures (alpha 0.35, 96 px,
# seeds 1 to 5) at this rate: 0.6192, 0.5788, 0.6103, 0.6036, 0.5925; with tfmot's moving average:
# 0.6236, 0.5913, 0.6209, 0.6024, 0.5847; with frozen ranges (seeds 1 and 2): 0.6223, 0.5950.
_LIMIT_RATE = 10.0
_LIMITS = ("min", "max")
_VARIABLES = (*_LIMITS, "min_log", "max_log")


class _KernelQuantizer(tfmot.quantization.keras.quantizers.Quantizer):  # type: ignore[misc]
    """Symmetric int8 grid from the kernel's current largest magnitudes."""

    def __init__(self, depthwise: bool, granularity: Granularity) -> None:
        self.depthwise = depthwise
        self.granularity = granularity

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> Any:
        channels = (0, 1, 3) if self.depthwise else (0, 1, 2)
        axes = channels if self.granularity == "channel" else None
        limit = tf.stop_gradient(tf.reduce_max(tf.abs(inputs), axis=axes))
        limit = tf.maximum(tf.reshape(limit, (-1,)), 127 * 2.0**-23)  # as graph.kernel_codes
        return quantize_kernel(inputs, limit, self.depthwise)

    def get_config(self) -> dict[str, Any]:
        return {"depthwise": self.depthwise, "granularity": self.granularity}


class _LearnedRange(tfmot.quantization.keras.quantizers.Quantizer):  # type: ignore[misc]
    """Affine 8-bit grid between limits that training moves: the first ones times exp(10 x).

    x starts at 0 and gets the gradient of what the limits clip, as in PACT (Choi et al.,
    arXiv:1805.06085); a limit of zero stays zero.

    Args:
        ceiling: Largest value that the tensor can take, or None.
    """

    def __init__(self, ceiling: float | None) -> None:
        self.ceiling = ceiling

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        # `wrap` assigns the limits.
        return {
            variable: layer.add_weight(
                f"{name}_{variable}", initializer="zeros", trainable=variable not in _LIMITS
            )
            for variable in _VARIABLES
        }

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> Any:
        low, high = learned_limits(weights, self.ceiling)
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high)

    def get_config(self) -> dict[str, Any]:
        return {"ceiling": self.ceiling}


def learned_limits(weights: Any, ceiling: float | None) -> tuple[Any, Any]:
    """Returns the limits that the variables of a `_LearnedRange` stand for."""
    low, high = (
        tf.stop_gradient(weights[name]) * tf.exp(_LIMIT_RATE * weights[f"{name}_log"])
        for name in _LIMITS
    )
    return low, high if ceiling is None else tf.minimum(high, ceiling)


class _LayerConfig(tfmot.quantization.keras.QuantizeConfig):  # type: ignore[misc]
    """Quantizes a layer's kernel, its output, or both.

    Args:
        kernel: Name of the kernel attribute, or None.
        output: Whether the output is rounded to its range.
        granularity: One grid for each output channel of the kernel, or one for the whole kernel.
        ceiling: Largest value that the output can take, or None.
    """

    def __init__(
        self,
        kernel: str | None,
        output: bool,
        granularity: Granularity = "channel",
        ceiling: float | None = None,
    ) -> None:
        self.kernel = kernel
        self.output = output
        self.granularity = granularity
        self.ceiling = ceiling

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        if self.kernel is None:
            return []
        quantizer = _KernelQuantizer(self.kernel == "depthwise_kernel", self.granularity)
        return [(getattr(layer, self.kernel), quantizer)]

    def set_quantize_weights(self, layer: Any, quantize_weights: Sequence[Any]) -> None:
        if self.kernel is not None:
            setattr(layer, self.kernel, quantize_weights[0])

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return []

    def set_quantize_activations(self, layer: Any, quantize_activations: Sequence[Any]) -> None:
        return

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return [_LearnedRange(self.ceiling)] if self.output else []

    def get_config(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "output": self.output,
            "granularity": self.granularity,
            "ceiling": self.ceiling,
        }


class _AsIs(tfmot.quantization.keras.QuantizeScheme):  # type: ignore[misc]
    """A scheme that wraps the annotated layers and rearranges nothing."""

    class _Layout(tfmot.quantization.keras.QuantizeLayoutTransform):  # type: ignore[misc]
        def apply(self, model: Any, layer_quantize_map: Any) -> tuple[Any, Any]:
            return model, layer_quantize_map

    class _Registry(tfmot.quantization.keras.QuantizeRegistry):  # type: ignore[misc]
        def supports(self, layer: Any) -> bool:
            return False

        def get_quantize_config(self, layer: Any) -> Any:
            return None

    def get_layout_transformer(self) -> Any:
        return self._Layout()

    def get_quantize_registry(self) -> Any:
        return self._Registry()


def wrap(
    tail: tuple[Node, ...],
    inputs: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    weights: Arrays,
    table: RangeTable,
    granularity: Granularity,
) -> tf_keras.Model:
    """Returns the tail as a Keras model whose every layer tfmot quantizes, but those kept in float.

    Args:
        tail: Unfrozen nodes.
        inputs: Names of the tensors that enter it.
        shapes: Their shapes without the batch, (h, w, c).
        weights: Folded float weights to start from.
        table: Ranges of the tail's tensors to start from, and which nodes stay in float32.
        granularity: One grid for each output channel of a kernel, or one for the whole kernel.

    Returns:
        Model from the entering float32 tensors, already rounded to their ranges, to float32 logits
        (n, classes). Trainable: kernels, biases and the logarithms of the activations' limits.
    """
    layers = tf_keras.layers
    entering = [
        layers.Input(shape, name=f"{name}_entering")
        for name, shape in zip(inputs, shapes, strict=True)
    ]
    tensors: dict[str, Any] = dict(zip(inputs, entering, strict=True))
    for node in tail:
        sources = [tensors[name] for name in node.inputs]
        rounded = node.name in table.activations
        if node.op == "add":
            layer = layers.Add(name=_output_layer(node))
            tensors[node.name] = _quantized(layer, None, rounded)(sources)
        elif node.op == "pool":
            layer = layers.GlobalAveragePooling2D(keepdims=True, name=_output_layer(node))
            tensors[node.name] = _quantized(layer, None, rounded)(sources[0])
        else:
            kept = node.name in table.kept_float
            kernel = weights[f"{node.name}/kernel"]
            tensors[node.name] = _convolution(
                node, sources[0], kernel.shape, rounded, None if kept else granularity
            )
    last = tensors[tail[-1].name]
    logits = layers.Reshape((int(last.shape[-1]),), name="flatten")(last)
    annotated = tf_keras.Model(entering, logits)
    with tf_keras.utils.custom_object_scope({"_LayerConfig": _LayerConfig}):
        model = tfmot.quantization.keras.quantize_apply(
            annotated, scheme=_AsIs(), quantized_layer_name_prefix=""
        )
    for node in tail:
        if node.name in table.activations:
            limits = _limits(model.get_layer(_output_layer(node)))
            limits["min"].assign(table.activations[node.name].minimum)
            limits["max"].assign(table.activations[node.name].maximum)
        if node.op in ("conv", "depthwise"):
            kernel, bias = _kernel_and_bias(model.get_layer(_kernel_layer(node)))
            kernel.assign(weights[f"{node.name}/kernel"])
            bias.assign(weights[f"{node.name}/bias"])
    return model


def unwrap(
    model: tf_keras.Model, tail: tuple[Node, ...], start: Ranges
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, TensorRange]]:
    """Returns the trained kernels, biases and ranges of a model that `wrap` made.

    Args:
        model: The model.
        tail: Its nodes.
        start: The ranges it started from.
    """
    weights: dict[str, npt.NDArray[np.float32]] = {}
    ranges: dict[str, TensorRange] = {}
    for node in tail:
        if node.name in start:
            variables = _limits(model.get_layer(_output_layer(node)))
            limits = learned_limits(variables, _ceiling(node))
            low, high = (float(limit.numpy()) for limit in limits)
            ranges[node.name] = from_limits(low, high, "trained", start[node.name].method)
        if node.op in ("conv", "depthwise"):
            kernel, bias = _kernel_and_bias(model.get_layer(_kernel_layer(node)))
            weights[f"{node.name}/kernel"] = kernel.numpy()
            weights[f"{node.name}/bias"] = bias.numpy()
    return weights, ranges


def _convolution(
    node: Node,
    source: Any,
    shape: tuple[int, ...],
    rounded: bool,
    granularity: Granularity | None,
) -> Any:
    layers = tf_keras.layers
    if node.op == "depthwise":
        kernel = "depthwise_kernel"
        layer = layers.DepthwiseConv2D(shape[0], node.stride, "same", name=_kernel_layer(node))
    else:
        kernel = "kernel"
        layer = layers.Conv2D(shape[3], shape[0], node.stride, "same", name=_kernel_layer(node))
    # Without a ReLU6 the convolution's own output is what the next layer reads.
    kernel_of = kernel if granularity else None
    value = _quantized(layer, kernel_of, rounded and not node.relu6, granularity)(source)
    if not node.relu6:
        return value
    clip = layers.ReLU(6.0, name=_output_layer(node))
    return _quantized(clip, None, rounded, ceiling=_ceiling(node))(value)


def _ceiling(node: Node) -> float | None:
    return 6.0 if node.relu6 else None


def _quantized(
    layer: Any,
    kernel: str | None,
    output: bool,
    granularity: Granularity | None = None,
    ceiling: float | None = None,
) -> Any:
    """Returns the layer with the note that tells tfmot what of it to quantize, if anything."""
    if kernel is None and not output:
        return layer
    config = _LayerConfig(kernel, output, granularity or "channel", ceiling)
    return tfmot.quantization.keras.quantize_annotate_layer(layer, config)


def _kernel_layer(node: Node) -> str:
    return node.name if node.relu6 else f"{node.name}{_OUTPUT}"


def _output_layer(node: Node) -> str:
    return f"{node.name}{_OUTPUT}"


def _kernel_and_bias(wrapper: Any) -> tuple[Any, Any]:
    by_name = _by_name(wrapper.trainable_weights)
    return by_name.get("kernel", by_name.get("depthwise_kernel")), by_name["bias"]


def _limits(wrapper: Any) -> dict[str, Any]:
    """Returns the variables of the output's `_LearnedRange` by their names there."""
    by_name = _by_name(wrapper.weights)
    return {name: by_name[f"output_{name}"] for name in _VARIABLES}


def _by_name(variables: Sequence[Any]) -> dict[str, Any]:
    return {variable.name.split("/")[-1].split(":")[0]: variable for variable in variables}
