"""TFLite files straight from the nodes: float32, float16, dynamic range, int8, int16x8, mixed.

What the converter makes of the same network answers alike; it is a cross-check in the tests. Here
nothing is estimated, guessed from fake quantization or left out, as the converter leaves out the
mean of a single value and its grid.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgekit.export.tflite_objects import Untyped, packed
from edgekit.network.graph import (
    INPUT,
    LOGITS,
    Arrays,
    Node,
    bias_codes,
    bias_steps,
    kernel_codes,
    kernel_limits,
    output_shapes,
)
from edgekit.network.ranges import in_float, int16_scale
from edgekit.records import Bits, IoType, RangeTable, Variant

Grid = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]

IMAGE = "image"
# What the converter calls the only signature and its output.
_SIGNATURE, _OUTPUT = "serving_default", "output_0"
_SCHEMA_VERSION = 3
_OPERATOR = {
    "conv": schema.BuiltinOperator.CONV_2D,
    "depthwise": schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    "add": schema.BuiltinOperator.ADD,
    "pool": schema.BuiltinOperator.MEAN,
}
# Versions of an operator on int8 and on int16 activations with int8 kernels, and of QUANTIZE and
# DEQUANTIZE to and from them. Source: GetBuiltinOperatorVersion in TensorFlow's op_version.cc; it
# knows no version of its own for int8 kernels under int16, so that of int16 kernels is named.
_VERSIONS: dict[tuple[int, Bits], int] = {
    (schema.BuiltinOperator.CONV_2D, 8): 3,
    (schema.BuiltinOperator.CONV_2D, 16): 4,
    (schema.BuiltinOperator.DEPTHWISE_CONV_2D, 8): 3,
    (schema.BuiltinOperator.DEPTHWISE_CONV_2D, 16): 5,
    (schema.BuiltinOperator.ADD, 8): 2,
    (schema.BuiltinOperator.ADD, 16): 3,
    (schema.BuiltinOperator.MEAN, 8): 2,
    (schema.BuiltinOperator.MEAN, 16): 3,
    (schema.BuiltinOperator.RESHAPE, 8): 1,
    (schema.BuiltinOperator.RESHAPE, 16): 1,
    (schema.BuiltinOperator.QUANTIZE, 8): 1,
    (schema.BuiltinOperator.QUANTIZE, 16): 2,
    (schema.BuiltinOperator.DEQUANTIZE, 8): 2,
    (schema.BuiltinOperator.DEQUANTIZE, 16): 3,
}
# Of operators on float32 activations with int8 kernels, and of DEQUANTIZE from float16; ibid.
_HYBRID_VERSIONS = {"conv": 5, "depthwise": 6}
_FROM_FLOAT16_VERSION = 3
# Fewest weights of a kernel that dynamic range stores in int8, as the converter has it: below that
# nothing is gained. Source: minimum_elements_for_weights in TensorFlow's quantize_weights.h.
_FEWEST_HYBRID = 1024
# Says to delegates that they may compute with float16 and add in float32, as the converter does.
_REDUCED_PRECISION = ("reduced_precision_support", b"fp16accfp32")
# Type and largest magnitude of a bias. An int64 sum may have 48 bits: MultiplyByQuantizedMultiplier
# in TensorFlow's lite/kernels/internal/common.h.
_BIASES: dict[Bits, tuple[type[np.signedinteger[Any]], int]] = {
    8: (np.int32, 2**31 - 1),
    16: (np.int64, 2**47 - 1),
}
_TYPES: dict[str, int] = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
}


def write(
    nodes: tuple[Node, ...],
    weights: Arrays,
    table: RangeTable | None,
    *,
    variant: Variant,
    io: IoType,
    size_px: tuple[int, int],
) -> bytes:
    """Returns the bytes of a `.tflite` file; the same arguments make the same.

    Input "image" (1, h, w, channels), output "logits" (1, classes); one operator for each node, and
    a reshape.

    - "float16" stores kernels and biases in float16 and dequantizes them when it is loaded.
    - "dynamic" stores kernels of 1024 weights or more in int8, one scale for each output channel;
      activations are quantized picture by picture by the runtime.
    - "int8" and "int16x8" compute in integers with the grids of the table, but for the nodes that
      it keeps in float32. int16 activations are symmetric, scale = largest magnitude of the range /
      32767, with int64 biases; kernels are int8.

    Args:
        nodes: The network.
        weights: Folded kernels and biases.
        table: The range table; needed for "int8" and "int16x8", unused otherwise.
        variant: What to make.
        io: Type of input and output; other than "float32" only for "int8".
        size_px: (height, width) of the input.

    Raises:
        ValueError: If integer input and output are asked for with other than "int8".
    """
    if io != "float32" and variant != "int8":
        msg = f"{io} input and output of {variant}"
        raise ValueError(msg)
    if table is None or variant not in ("int8", "int16x8"):
        table = in_float(nodes)
    return _Writer(nodes, weights, table, variant, size_px).written(io)


class _Writer:
    """Emits the operators of one network in order."""

    def __init__(
        self,
        nodes: tuple[Node, ...],
        weights: Arrays,
        table: RangeTable,
        variant: Variant,
        size_px: tuple[int, int],
    ) -> None:
        self._nodes = nodes
        self._weights = weights
        self._table = table
        self._variant = variant
        self._bits: Bits = 16 if variant == "int16x8" else 8
        self._shapes = output_shapes(nodes, weights, size_px)
        self._tensors: list[Untyped] = []
        self._buffers: list[Untyped] = [schema.BufferT()]  # the empty one, for all not constant
        self._operators: list[Untyped] = []
        self._codes_of_operators: list[Untyped] = []
        # Tensor of the network -> index of its form in float32 and in codes.
        self._real: dict[str, int] = {}
        self._codes: dict[str, int] = {}

    def written(self, io: IoType) -> bytes:
        entering = self._enter(io)
        for node in self._nodes:
            self._compute(node)
        leaving = self._leave(io)
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.name, graph.tensors, graph.operators = b"main", self._tensors, self._operators
        graph.inputs = np.array([entering], np.int32)
        graph.outputs = np.array([leaving], np.int32)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = _SIGNATURE.encode(), 0
        signature.inputs = [_end(IMAGE, entering)]
        signature.outputs = [_end(_OUTPUT, leaving)]
        model.version, model.description = _SCHEMA_VERSION, b"edgekit"
        model.subgraphs, model.signatureDefs = [graph], [signature]
        model.operatorCodes = self._codes_of_operators
        model.metadata = []
        if self._variant == "float16":
            name, content = _REDUCED_PRECISION
            note = schema.MetadataT()
            note.name, note.buffer = name.encode(), self._buffer(content)
            model.metadata = [note]
        model.buffers = self._buffers
        return packed(model)

    def _enter(self, io: IoType) -> int:
        """Adds the input and what becomes of it; returns its index."""
        shape = self._shapes[INPUT]
        if INPUT not in self._table.activations:
            self._real[INPUT] = self._tensor(IMAGE, shape, "float32")
            return self._real[INPUT]
        image = self._tensor(IMAGE, shape, io, None if io == "float32" else self._grid(INPUT, io))
        if io == "int8":
            self._codes[INPUT] = image
        elif io == "float32":
            self._real[INPUT] = image
            self._quantize(INPUT)
        else:
            self._codes[INPUT] = self._coded(f"{INPUT}_codes", INPUT)
            self._emit(schema.BuiltinOperator.QUANTIZE, [image], [self._codes[INPUT]])
        return image

    def _leave(self, io: IoType) -> int:
        """Adds the reshape and the output; returns its index."""
        classes = self._shapes[LOGITS][2]
        shape = self._constant("shape", np.array([1, classes], np.int32))
        reshape = schema.BuiltinOperator.RESHAPE
        if LOGITS in self._real:
            leaving = self._tensor(LOGITS, (classes,), "float32")
            self._emit(reshape, [self._real[LOGITS], shape], [leaving])
            return leaving
        flat = LOGITS if io == "int8" else f"{LOGITS}_flat"
        coded = self._tensor(flat, (classes,), self._type, self._grid(LOGITS))
        self._emit(reshape, [self._codes[LOGITS], shape], [coded])
        if io == "int8":
            return coded
        is_float = io == "float32"
        grid = None if is_float else self._grid(LOGITS, io)
        leaving = self._tensor(LOGITS, (classes,), io, grid)
        kind = schema.BuiltinOperator.DEQUANTIZE if is_float else schema.BuiltinOperator.QUANTIZE
        self._emit(kind, [coded], [leaving])
        return leaving

    def _compute(self, node: Node) -> None:
        is_float = node.name in self._table.kept_float
        inputs = [self._as_real(name) if is_float else self._codes[name] for name in node.inputs]
        version = 1
        if node.op == "pool":
            inputs.append(self._constant("axes", np.array([1, 2], np.int32)))
        elif node.op != "add" and is_float:
            kernel, version = self._float_kernel(node)
            bias = self._weights[f"{node.name}/bias"]
            inputs += [kernel, self._float_constant(f"{node.name}/bias", bias)]
        elif node.op != "add":
            inputs += self._integer_constants(node)
        if is_float:
            own = self._tensor(node.name, self._shapes[node.name], "float32")
            self._emit(_OPERATOR[node.op], inputs, [own], self._options(node), version)
            self._real[node.name] = own
            if node.name in self._table.activations:
                self._quantize(node.name)
            return
        own = self._coded(node.name, node.name)
        self._codes[node.name] = own
        self._emit(_OPERATOR[node.op], inputs, [own], self._options(node))

    def _options(self, node: Node) -> tuple[int, Untyped]:
        """Returns the kind and the values of an operator's options."""
        kinds = schema.BuiltinOptions
        if node.op == "pool":
            reducer = schema.ReducerOptionsT()
            reducer.keepDims = True
            return kinds.ReducerOptions, reducer
        if node.op == "add":
            add = schema.AddOptionsT()
            add.potScaleInt16 = self._bits == 8  # scales of int16 are no powers of two
            return kinds.AddOptions, add
        depthwise = node.op == "depthwise"
        conv = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
        conv.padding = schema.Padding.SAME
        conv.strideH = conv.strideW = node.stride
        conv.dilationHFactor = conv.dilationWFactor = 1
        if depthwise:
            conv.depthMultiplier = 1
        if node.relu6:
            conv.fusedActivationFunction = schema.ActivationFunctionType.RELU6
        return (kinds.DepthwiseConv2DOptions if depthwise else kinds.Conv2DOptions), conv

    def _float_kernel(self, node: Node) -> tuple[int, int]:
        """Adds the kernel of an operator on float32; returns its index and its version."""
        name = f"{node.name}/kernel"
        kernel = self._weights[name]
        if self._variant == "dynamic" and kernel.size >= _FEWEST_HYBRID:
            codes, scales = kernel_codes(node, kernel, kernel_limits(node, kernel, "channel"))
            return self._kernel_codes(node, codes, scales), _HYBRID_VERSIONS[node.op]
        return self._float_constant(name, _laid_out(kernel)), 1

    def _float_constant(self, name: str, value: npt.NDArray[np.float32]) -> int:
        if self._variant != "float16":
            return self._constant(name, value)
        halves = self._constant(f"{name}_float16", value.astype(np.float16))
        real = self._tensor(name, value.shape, "float32", batch=False)
        kind = schema.BuiltinOperator.DEQUANTIZE
        self._emit(kind, [halves], [real], version=_FROM_FLOAT16_VERSION)
        return real

    def _integer_constants(self, node: Node) -> list[int]:
        """Adds the codes of a kernel and its bias; returns their indices."""
        kernel = self._weights[f"{node.name}/kernel"]
        codes, scales = kernel_codes(node, kernel, self._table.kernels[node.name])
        span = self._table.activations[node.inputs[0]]
        entering = span.scale if self._bits == 8 else int16_scale(span)
        dtype, largest = _BIASES[self._bits]
        bias = bias_codes(self._weights[f"{node.name}/bias"], scales, entering)
        bias = np.clip(bias, -largest, largest).astype(dtype)
        steps = bias_steps(scales, entering).astype(np.float32)
        zeros = np.zeros(len(scales), np.int64)
        return [
            self._kernel_codes(node, codes, scales),
            self._constant(f"{node.name}/bias", bias, (steps, zeros)),
        ]

    def _kernel_codes(
        self, node: Node, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
    ) -> int:
        grid = scales, np.zeros(len(scales), np.int64)
        axis = 3 if node.op == "depthwise" else 0
        return self._constant(f"{node.name}/kernel", _laid_out(codes), grid, axis)

    @property
    def _type(self) -> str:
        return f"int{self._bits}"

    def _grid(self, name: str, dtype: str | None = None) -> Grid:
        """Returns scale and zero point of a tensor in the type of the file, or in another."""
        span = self._table.activations[name]
        if (dtype or self._type) == "int16":
            return np.array([int16_scale(span)], np.float32), np.zeros(1, np.int64)
        zero = span.zero_point + (128 if dtype == "uint8" else 0)
        return np.array([span.scale], np.float32), np.array([zero], np.int64)

    def _as_real(self, name: str) -> int:
        """Returns the float32 form of a tensor, dequantized once if it is made in codes."""
        if name not in self._real:
            self._real[name] = self._tensor(f"{name}_real", self._shapes[name], "float32")
            kind = schema.BuiltinOperator.DEQUANTIZE
            self._emit(kind, [self._codes[name]], [self._real[name]])
        return self._real[name]

    def _quantize(self, name: str) -> None:
        self._codes[name] = self._coded(f"{name}_codes", name)
        # Others read what int8 layers read, as the simulation does.
        real = self._real.pop(name)
        self._emit(schema.BuiltinOperator.QUANTIZE, [real], [self._codes[name]])

    def _coded(self, name: str, tensor: str) -> int:
        """Adds a tensor of codes on the grid of a tensor of the network; returns its index."""
        return self._tensor(name, self._shapes[tensor], self._type, self._grid(tensor))

    def _constant(
        self, name: str, value: npt.NDArray[Any], grid: Grid | None = None, axis: int = 0
    ) -> int:
        index = self._tensor(name, value.shape, value.dtype.name, grid, axis, batch=False)
        self._tensors[index].buffer = self._buffer(value.tobytes())
        return index

    def _buffer(self, content: bytes) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(content, np.uint8)
        self._buffers.append(buffer)
        return len(self._buffers) - 1

    def _tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        grid: Grid | None = None,
        axis: int = 0,
        *,
        batch: bool = True,
    ) -> int:
        """Adds a tensor, of one picture unless it is a constant; returns its index."""
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.hasRank = name.encode(), _TYPES[dtype], True
        tensor.shape = np.array((1, *shape) if batch else shape, np.int32)
        tensor.buffer = 0
        tensor.quantization = schema.QuantizationParametersT()
        if grid is not None:
            tensor.quantization.scale, tensor.quantization.zeroPoint = grid
            tensor.quantization.quantizedDimension = axis
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _emit(
        self,
        kind: int,
        inputs: list[int],
        outputs: list[int],
        options: tuple[int, Untyped] | None = None,
        version: int | None = None,
    ) -> None:
        """Emits an operator; without a version that of the file's integers."""
        operator, wanted = schema.OperatorT(), schema.OperatorCodeT()
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            operator.builtinOptionsType, operator.builtinOptions = options
        wanted.builtinCode = wanted.deprecatedBuiltinCode = kind
        wanted.version = version or _VERSIONS[kind, self._bits]
        known = self._codes_of_operators
        same = [i for i, code in enumerate(known) if vars(code) == vars(wanted)]
        if not same:
            known.append(wanted)
        operator.opcodeIndex = same[0] if same else len(known) - 1
        self._operators.append(operator)


def _laid_out(kernel: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns a kernel as TFLite has it: (out, h, w, in), depthwise (1, h, w, channels)."""
    return np.ascontiguousarray(kernel.transpose(3, 0, 1, 2))


def _end(name: str, index: int) -> Untyped:
    """Returns the name of an input or output in the signature."""
    end = schema.TensorMapT()
    end.name, end.tensorIndex = name.encode(), index
    return end
