"""ONNX files: float32 by tf2onnx, and int8 as a QDQ graph with the scales of the range table.

tf2onnx's own int8 route (from an int8 TFLite file) leaves a third of the convolutions in float and
ran 2.5 times slower. A QDQ graph on the float graph, with uint8 activations and per-channel int8
kernels, is fused by onnxruntime into QLinearConv throughout.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf
import tf2onnx
from onnx import helper, numpy_helper

from edgekit.errors import ConversionError
from edgekit.network.forward import logits_function
from edgekit.network.graph import (
    INPUT,
    LOGITS,
    Arrays,
    Node,
    bias_codes,
    bias_steps,
    input_channels,
    kernel_codes,
    weighted,
)
from edgekit.network.native_log import muted
from edgekit.records import Batch, Preprocess, RangeTable, TensorRange
from edgekit.runner.onnx_runtime import EXACT
from edgekit.runtimes.base import contract_texts

# 13 is the first with per-channel DequantizeLinear; 17 is what tf2onnx 1.17 tests most.
OPSET = 17
# The IR version of opset 17; older runtimes refuse newer ones. Source: onnx Versioning.md.
IR_VERSION = 8
# Metadata name of the session option that x86 processors without VNNI need for exact answers.
WITHOUT_VNNI = "edgekit.session_options_x86_without_vnni"
_FROM_TF2ONNX = ("Transpose", "Conv", "Clip", "Add", "GlobalAveragePool", "Reshape")


def float_model(
    nodes: tuple[Node, ...],
    weights: Arrays,
    size_px: tuple[int, int],
    preprocess: Preprocess,
    class_names: tuple[str, ...],
    batch: Batch = "one",
) -> Any:
    """Returns the float32 network as an ONNX model.

    Args:
        nodes: The network.
        weights: Folded kernels and biases.
        size_px: (height, width) of the input.
        preprocess: Written into the metadata as `edgekit.preprocess`.
        class_names: Written into the metadata as `edgekit.labels`.
        batch: Pictures of one call: a static one, or a free dimension. Defaults to "one".

    Returns:
        `onnx.ModelProto`: input "image" float32 (batch, h, w, c), output "logits" float32 (batch,
        classes).

    Raises:
        ConversionError: If tf2onnx refuses the graph.
    """
    rows = 1 if batch == "one" else None
    shape = (rows, *size_px, input_channels(nodes, weights))
    signature = [tf.TensorSpec(shape, tf.float32, name="image")]
    function = tf.function(
        logits_function(nodes, weights), input_signature=signature, autograph=False
    )
    try:
        with muted():
            model, _ = tf2onnx.convert.from_function(function, signature, opset=OPSET)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ConversionError(
            f"tf2onnx refused the network: {str(error).partition(chr(10))[0]}",
            "a convertible graph",
            "report this with the recipe; it is a bug in edgekit",
        ) from error
    _rename(model, nodes)
    model.ir_version = IR_VERSION
    helper.set_model_props(model, contract_texts(preprocess, class_names))
    model.doc_string = "MobileNetV2, fine-tuned and exported by edgekit"
    return model


def quantized_model(model: Any, nodes: tuple[Node, ...], weights: Arrays, table: RangeTable) -> Any:
    """Returns the QDQ int8 form of a model that `float_model` made from the same nodes.

    Activations: uint8, affine, per tensor. Kernels: int8, symmetric. All scales are the table's.
    Biases: int32 at input scale times kernel scale. A ReLU6 whose range lies in
    0..6 is dropped, since saturation to the range computes it. Nodes that the table keeps in float
    stay as they are, with the given weights. The metadata name, as `WITHOUT_VNNI`, what onnxruntime
    needs to compute exactly on x86 processors without VNNI.

    Args:
        model: Float ONNX model; left unchanged.
        nodes: The network.
        weights: Folded kernels and biases that ship as int8; may differ from the float model's.
        table: Grids of every tensor and kernel.

    Raises:
        ConversionError: If the graph is not the one that `nodes` describes.
    """
    return _Rewriter(model, nodes, weights, table).rewritten()


class _Rewriter:
    """Walks a float graph in order and emits its quantized form."""

    def __init__(
        self, model: Any, nodes: tuple[Node, ...], weights: Arrays, table: RangeTable
    ) -> None:
        self._source = model
        self._nodes = nodes
        self._weights = weights
        self._ranges = table.activations
        self._limits = table.kernels
        self._kept = table.kept_float
        self._constants = {t.name: t for t in model.graph.initializer}
        self._initializers: list[Any] = []
        self._emitted: list[Any] = []
        # Float tensor name -> (name to read instead, its range), once it has been quantized.
        self._replaced: dict[str, tuple[str, TensorRange]] = {}
        # Float convolution's output -> its node, for the Clip behind it.
        self._floating: dict[str, Node] = {}

    def rewritten(self) -> Any:
        graph = self._source.graph
        convolutions = iter(weighted(self._nodes))
        adds = (node for node in self._nodes if node.op == "add")
        for operation in graph.node:
            if operation.op_type not in _FROM_TF2ONNX:
                raise ConversionError(
                    f"tf2onnx wrote a {operation.op_type} node into the float graph",
                    f"only {', '.join(_FROM_TF2ONNX)}",
                    "use the tested tf2onnx version; report this with its version",
                )
            # Of one channel, the first step from channels last to first is a Reshape.
            if operation.op_type == "Transpose" or operation.input[0] == graph.input[0].name:
                self._copy(operation, INPUT)
            elif operation.op_type == "Conv":
                self._convolve(operation, next(convolutions))
            elif operation.op_type == "Clip":
                self._clip(operation)
            elif operation.op_type == "Add":
                self._copy(operation, next(adds).name)
            elif operation.op_type == "GlobalAveragePool":
                self._copy(operation, "global_average_pool")
            else:
                self._reshape(operation)
        quantized = onnx.ModelProto()
        quantized.CopyFrom(self._source)
        del quantized.graph.node[:], quantized.graph.initializer[:], quantized.graph.value_info[:]
        quantized.graph.node.extend(self._emitted)
        quantized.graph.initializer.extend(_used(self._initializers, self._emitted))
        entry = quantized.metadata_props.add()
        entry.key, entry.value = WITHOUT_VNNI, json.dumps(dict([EXACT]))
        return quantized

    def _copy(self, operation: Any, tensor: str) -> None:
        node = self._reading_replaced(operation)
        self._emitted.append(node)
        self._quantize(operation.output[0], tensor, self._ranges.get(tensor))

    def _convolve(self, operation: Any, node: Node) -> None:
        kernel = self._weights[f"{node.name}/kernel"]
        axes = (2, 3, 0, 1) if node.op == "depthwise" else (3, 2, 0, 1)
        wanted = kernel.transpose(axes)
        if tuple(self._constants[operation.input[1]].dims) != wanted.shape:
            found = list(self._constants[operation.input[1]].dims)
            raise ConversionError(
                f"tf2onnx's convolution for {node.name} has a kernel of shape {found}",
                f"shape {list(wanted.shape)}",
                "use the tested tf2onnx version; report this with its version",
            )
        if node.name in self._kept:
            self._convolve_in_float(operation, node, wanted)
            return
        codes, scales = kernel_codes(node, kernel, self._limits[node.name])
        source, span = self._replaced[operation.input[0]]
        bias = bias_codes(self._weights[f"{node.name}/bias"], scales, span.scale)
        limits = np.iinfo(np.int32)
        inputs = [
            source,
            self._constant(f"{node.name}/kernel", codes.transpose(axes), scales),
            self._constant(
                f"{node.name}/bias", np.clip(bias, limits.min, limits.max).astype(np.int32),
                bias_steps(scales, span.scale).astype(np.float32),
            ),
        ]  # fmt: skip
        convolution = onnx.NodeProto()
        convolution.CopyFrom(operation)
        convolution.name = node.name
        del convolution.input[:]
        convolution.input.extend(inputs)
        self._emitted.append(convolution)
        own = self._ranges[node.name]
        if node.relu6 and (own.minimum < 0 or own.maximum > 6 * (1 + 1e-6)):
            raise ConversionError(
                f"the range of {node.name} is {own.minimum}..{own.maximum}",
                "a range inside 0..6, the output of a ReLU6",
                "report this with the recipe; it is a bug in edgekit",
            )
        self._quantize(operation.output[0], node.name, own)

    def _convolve_in_float(
        self, operation: Any, node: Node, kernel: npt.NDArray[np.float32]
    ) -> None:
        source = operation.input[0]
        if source in self._replaced:
            source = self._real_per_channel(*self._replaced[source], kernel.shape)
        convolution = onnx.NodeProto()
        convolution.CopyFrom(operation)
        del convolution.input[:]
        bias = self._weights[f"{node.name}/bias"]
        constants = ((f"{node.name}/kernel", kernel), (f"{node.name}/bias", bias))
        convolution.input.extend([source, *(self._initializer(*item) for item in constants)])
        self._emitted.append(convolution)
        if node.relu6:
            self._floating[operation.output[0]] = node
        else:
            self._quantize(operation.output[0], node.name, self._ranges.get(node.name))

    def _real_per_channel(self, real: str, span: TensorRange, kernel: tuple[int, ...]) -> str:
        """Dequantizes a tensor with its one scale written once for every channel.

        Behind a DequantizeLinear with a scalar scale onnxruntime quantizes a float kernel on its
        own, with one scale for the whole kernel (its WeightBiasQuantization).
        """
        read = real.removesuffix("/real")
        name, codes = f"{read}/real_per_channel", f"{read}/codes"
        channels = kernel[0] if kernel[1] == 1 else kernel[1]
        scale = self._initializer(f"{name}/scale", np.full(channels, span.scale, np.float32))
        zeros = np.full(channels, span.zero_point + 128, np.uint8)
        zero = self._initializer(f"{name}/zero_point", zeros)
        self._emitted.append(
            helper.make_node(
                "DequantizeLinear", [codes, scale, zero], [name], f"{name}/dequantize", axis=1
            )
        )
        return name

    def _clip(self, operation: Any) -> None:
        kept = self._floating.get(operation.input[0])
        if kept:
            self._copy(operation, kept.name)
        else:
            self._replaced[operation.output[0]] = self._replaced[operation.input[0]]

    def _reshape(self, operation: Any) -> None:
        node = self._reading_replaced(operation)
        self._emitted.append(node)
        read = self._replaced.get(operation.input[0])
        if read is not None and operation.output[0] != self._source.graph.output[0].name:
            self._quantize(operation.output[0], node.name, read[1])

    def _reading_replaced(self, operation: Any) -> Any:
        node = onnx.NodeProto()
        node.CopyFrom(operation)
        for position, name in enumerate(node.input):
            if name in self._replaced:
                node.input[position] = self._replaced[name][0]
            elif name in self._constants:
                self._initializers.append(self._constants[name])
        return node

    def _quantize(self, name: str, tensor: str, span: TensorRange | None) -> None:
        if span is None:  # float32 between its maker and its readers
            return
        scale = self._initializer(f"{tensor}/scale", np.array(span.scale, np.float32))
        zero = self._initializer(f"{tensor}/zero_point", np.array(span.zero_point + 128, np.uint8))
        codes, real = f"{name}/codes", f"{name}/real"
        self._emitted.append(
            helper.make_node("QuantizeLinear", [name, scale, zero], [codes], f"{name}/quantize")
        )
        self._emitted.append(
            helper.make_node("DequantizeLinear", [codes, scale, zero], [real], f"{name}/dequantize")
        )
        self._replaced[name] = (real, span)

    def _constant(self, name: str, codes: npt.NDArray[Any], scales: npt.NDArray[np.float32]) -> str:
        stored = self._initializer(f"{name}/codes", codes)
        whole = len(scales) == 1  # one scale for the whole tensor is a scalar
        scale = self._initializer(f"{name}/scale", scales.reshape(()) if whole else scales)
        zeros = np.zeros(() if whole else scales.shape, codes.dtype)
        zero = self._initializer(f"{name}/zero_point", zeros)
        axis = {} if whole else {"axis": 0}
        self._emitted.append(
            helper.make_node(
                "DequantizeLinear", [stored, scale, zero], [name], f"{name}/dequantize", **axis
            )
        )
        return name

    def _initializer(self, name: str, value: npt.NDArray[Any]) -> str:
        if all(known.name != name for known in self._initializers):
            self._initializers.append(numpy_helper.from_array(value, name))
        return name


def _used(initializers: list[Any], nodes: list[Any]) -> Iterator[Any]:
    names = {name for node in nodes for name in node.input}
    seen: set[str] = set()
    for tensor in initializers:
        if tensor.name in names and tensor.name not in seen:
            seen.add(tensor.name)
            yield tensor


def _rename(model: Any, nodes: tuple[Node, ...]) -> None:
    """Names every operation and tensor after the layer it belongs to, in graph order.

    tf2onnx's own names and the order of its constants depend on Python's hash seed, so that two
    conversions of one network would differ in their bytes.
    """
    graph = model.graph
    convolutions = (node.name for node in weighted(nodes))
    adds = (node.name for node in nodes if node.op == "add")
    others = {"Transpose": "channels_first", "GlobalAveragePool": "global_average_pool"}
    names: dict[str, str] = {graph.input[0].name: "image"}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ordered: dict[str, Any] = {}
    last = ""
    for number, operation in enumerate(graph.node):
        if operation.op_type == "Conv":
            operation.name = last = next(convolutions)
        elif operation.op_type == "Clip":
            operation.name = f"{last}/relu6"
        elif operation.op_type == "Add":
            operation.name = next(adds)
        else:
            operation.name = others.get(operation.op_type, f"{operation.op_type.lower()}_{number}")
        for position, name in enumerate(operation.input):
            if name in constants and name not in ordered:
                names[name] = f"{operation.name}/constant_{position}"
                ordered[name] = constants[name]
            operation.input[position] = names[name]
        is_last = operation.output[0] == graph.output[0].name
        names[operation.output[0]] = LOGITS if is_last else f"{operation.name}/output"
        operation.output[0] = names[operation.output[0]]
    for name, tensor in ordered.items():
        tensor.name = names[name]
    kept = list(ordered.values())
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.input[0].name, graph.output[0].name = "image", LOGITS
    for end in (graph.input[0], graph.output[0]):
        first = end.type.tensor_type.shape.dim[0]
        if not first.HasField("dim_value"):
            first.dim_param = "batch"  # tf2onnx numbers it
    graph.name = "mobilenet_v2"
    graph.doc_string = ""  # tf2onnx puts the number of the traced function there
