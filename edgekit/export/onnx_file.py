"""ONNX files straight from the nodes: float32, and int8 as a QDQ graph with the table's scales.

tf2onnx's int8 route (from an int8 TFLite file) leaves a third of the convolutions in float and ran
2.5 times slower. A QDQ graph with uint8 activations and per-channel int8 kernels is fused by
onnxruntime into QLinearConv throughout.
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgekit.errors import ConversionError
from edgekit.network.graph import (
    INPUT,
    LOGITS,
    Arrays,
    Node,
    bias_codes,
    bias_steps,
    kernel_codes,
    output_shapes,
)
from edgekit.network.ranges import in_float
from edgekit.records import Batch, Preprocess, RangeTable, TensorRange
from edgekit.runner.onnx_runtime import EXACT
from edgekit.runtimes.base import contract_texts

# 13 is the first with per-channel DequantizeLinear; 17 is what edgekit's files have had so far.
OPSET = 17
# The IR version of opset 17; older runtimes refuse newer ones. Source: onnx Versioning.md.
IR_VERSION = 8
# Metadata name of the session option that x86 processors without VNNI need for exact answers.
WITHOUT_VNNI = "edgekit.session_options_x86_without_vnni"
IMAGE = "image"
_CHANNELS_FIRST = "channels_first"


def write(
    nodes: tuple[Node, ...],
    weights: Arrays,
    table: RangeTable | None,
    *,
    size_px: tuple[int, int],
    preprocess: Preprocess,
    class_names: tuple[str, ...],
    batch: Batch = "one",
) -> Any:
    """Returns the network as an ONNX model; the same arguments make the same bytes.

    With a table it is a QDQ graph. Activations: uint8, affine, per tensor. Kernels: int8,
    symmetric. All scales are the table's. Biases: int32 at input scale times kernel scale. A ReLU6
    is left out, since saturation to a range inside 0..6 computes it. Nodes that the table keeps in
    float compute in float. The metadata name, as `WITHOUT_VNNI`, what onnxruntime needs to compute
    exactly on x86 processors without VNNI.

    Args:
        nodes: The network.
        weights: Folded kernels and biases.
        table: Grids of every tensor and kernel; None for float32.
        size_px: (height, width) of the input.
        preprocess: Written into the metadata as `edgekit.preprocess`.
        class_names: Written into the metadata as `edgekit.labels`.
        batch: Pictures of one call: a static one, or a free dimension. Defaults to "one".

    Returns:
        `onnx.ModelProto`: input "image" float32 (batch, h, w, c), output "logits" float32 (batch,
        classes).

    Raises:
        ConversionError: If the range of a ReLU6 is not inside 0..6.
    """
    writer = _Writer(nodes, weights, in_float(nodes) if table is None else table, size_px)
    writer.write()
    rows: int | str = 1 if batch == "one" else "batch"
    shapes = {IMAGE: (rows, *writer.shapes[INPUT]), LOGITS: (rows, writer.shapes[LOGITS][2])}
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph(
        writer.operations, "mobilenet_v2", ends[:1], ends[1:], list(writer.constants.values())
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edgekit",
    )
    texts = contract_texts(preprocess, class_names)
    if table is not None:
        texts[WITHOUT_VNNI] = json.dumps(dict([EXACT]))
    helper.set_model_props(model, texts)
    model.doc_string = "MobileNetV2, fine-tuned and exported by edgekit"
    return model


class _Writer:
    """Emits the operations of one network in order."""

    def __init__(
        self,
        nodes: tuple[Node, ...],
        weights: Arrays,
        table: RangeTable,
        size_px: tuple[int, int],
    ) -> None:
        self.shapes = output_shapes(nodes, weights, size_px)
        self.operations: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._nodes = nodes
        self._weights = weights
        self._table = table
        # Of each tensor of the network: the name to read, and its range where it has one.
        self._made: dict[str, tuple[str, TensorRange | None]] = {}

    def write(self) -> None:
        """Emits everything from the image to the logits."""
        output = self._emit("Transpose", _CHANNELS_FIRST, [IMAGE], perm=[0, 3, 1, 2])
        self._keep(INPUT, output)
        for node in self._nodes:
            if node.op == "add":
                output = self._emit("Add", node.name, [self._made[name][0] for name in node.inputs])
            elif node.op == "pool":
                output = self._emit("GlobalAveragePool", node.name, [self._made[node.inputs[0]][0]])
            else:
                output = self._convolve(node)
            self._keep(node.name, output)
        last, _ = self._made[self._nodes[-1].name]
        self.operations.append(helper.make_node("Flatten", [last], [LOGITS], "flatten", axis=1))

    def _emit(self, kind: str, name: str, inputs: list[str], **attributes: Any) -> str:
        """Emits an operation and returns the name of its output."""
        output = f"{name}/output"
        self.operations.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def _keep(self, tensor: str, output: str) -> None:
        """Remembers how a tensor is read; quantized and dequantized if it has a range."""
        span = self._table.activations.get(tensor)
        if span is None:  # float32 between its maker and its readers
            self._made[tensor] = output, None
            return
        scale = self._constant(f"{tensor}/scale", np.array(span.scale, np.float32))
        zero = self._constant(f"{tensor}/zero_point", np.array(span.zero_point + 128, np.uint8))
        codes, real = f"{tensor}/codes", f"{tensor}/real"
        for kind, source, made in (
            ("QuantizeLinear", output, codes),
            ("DequantizeLinear", codes, real),
        ):
            name = f"{tensor}/{kind.removesuffix('Linear').lower()}"
            self.operations.append(helper.make_node(kind, [source, scale, zero], [made], name))
        self._made[tensor] = real, span

    def _convolve(self, node: Node) -> str:
        kernel = self._weights[f"{node.name}/kernel"]
        # Channels first: (out, in, h, w), of a depthwise kernel (channels, 1, h, w).
        axes = (2, 3, 0, 1) if node.op == "depthwise" else (3, 2, 0, 1)
        source, span = self._made[node.inputs[0]]
        is_float = node.name in self._table.kept_float
        if is_float:
            if span is not None:
                source = self._real_per_channel(node.inputs[0], span)
            inputs = [
                source,
                self._constant(f"{node.name}/kernel", kernel.transpose(axes)),
                self._constant(f"{node.name}/bias", self._weights[f"{node.name}/bias"]),
            ]
        else:
            inputs = [source, *self._integer_weights(node, kernel, axes, span)]
        height, width, channels = self.shapes[node.inputs[0]]
        sides = [_same(size, k, node.stride) for size, k in zip((height, width), kernel.shape)]  # noqa: B905
        output = self._emit(
            "Conv",
            node.name,
            inputs,
            group=channels if node.op == "depthwise" else 1,
            kernel_shape=kernel.shape[:2],
            pads=[before for before, _ in sides] + [after for _, after in sides],
            strides=[node.stride, node.stride],
        )
        if not (node.relu6 and is_float):
            return output
        limits = [
            self._constant(f"relu6/{what}", np.array(value, np.float32))
            for what, value in (("minimum", 0), ("maximum", 6))
        ]
        return self._emit("Clip", f"{node.name}/relu6", [output, *limits])

    def _integer_weights(
        self, node: Node, kernel: npt.NDArray[np.float32], axes: tuple[int, ...], span: Any
    ) -> list[str]:
        """Returns the names of a kernel and a bias that are stored as integers."""
        own = self._table.activations[node.name]
        if node.relu6 and (own.minimum < 0 or own.maximum > 6 * (1 + 1e-6)):
            raise ConversionError(
                f"the range of {node.name} is {own.minimum}..{own.maximum}",
                "a range inside 0..6, the output of a ReLU6",
                "report this with the recipe; it is a bug in edgekit",
            )
        codes, scales = kernel_codes(node, kernel, self._table.kernels[node.name])
        bias = bias_codes(self._weights[f"{node.name}/bias"], scales, span.scale)
        limits = np.iinfo(np.int32)
        return [
            self._dequantized(f"{node.name}/kernel", codes.transpose(axes), scales),
            self._dequantized(
                f"{node.name}/bias",
                np.clip(bias, limits.min, limits.max).astype(np.int32),
                bias_steps(scales, span.scale).astype(np.float32),
            ),
        ]

    def _dequantized(
        self, name: str, codes: npt.NDArray[Any], scales: npt.NDArray[np.float32]
    ) -> str:
        stored = self._constant(f"{name}/codes", codes)
        whole = len(scales) == 1  # one scale for the whole tensor is a scalar
        scale = self._constant(f"{name}/scale", scales.reshape(()) if whole else scales)
        zeros = np.zeros(() if whole else scales.shape, codes.dtype)
        zero = self._constant(f"{name}/zero_point", zeros)
        axis = {} if whole else {"axis": 0}
        self.operations.append(
            helper.make_node(
                "DequantizeLinear", [stored, scale, zero], [name], f"{name}/dequantize", **axis
            )
        )
        return name

    def _real_per_channel(self, tensor: str, span: TensorRange) -> str:
        """Dequantizes a tensor with its one scale written once for every channel.

        Behind a DequantizeLinear with a scalar scale onnxruntime quantizes a float kernel on its
        own, with one scale for the whole kernel (its WeightBiasQuantization).
        """
        name, channels = f"{tensor}/real_per_channel", self.shapes[tensor][2]
        scale = self._constant(f"{name}/scale", np.full(channels, span.scale, np.float32))
        zeros = np.full(channels, span.zero_point + 128, np.uint8)
        zero = self._constant(f"{name}/zero_point", zeros)
        self.operations.append(
            helper.make_node(
                "DequantizeLinear", [f"{tensor}/codes", scale, zero], [name],
                f"{name}/dequantize", axis=1,
            )
        )  # fmt: skip
        return name

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, name)
        return name


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns how many zeros TensorFlow's "SAME" puts before and behind one side.

    Source: the formula of https://www.tensorflow.org/api_docs/python/tf/nn, "Notes on padding".
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
