"""TFLite files that the converter cannot make of fake quantization, rewritten from a float32 file.

Left out of the simulation, a layer becomes int8 all the same, or keeps int8 weights beside float32
activations; fake quantization to 16 bits becomes a file with int32 biases, which LiteRT refuses;
and the mean of a single value is left out, and its grid with it. So the converter makes the float32
file of the same weights, and here its constants and tensors get the types and scales of the table.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgekit.errors import ConversionError
from edgekit.export.tflite_objects import Untyped, packed, unpacked
from edgekit.network.graph import INPUT, LOGITS, Arrays, Node, bias_codes, bias_steps, kernel_codes
from edgekit.network.ranges import int16_scale
from edgekit.records import Bits, IoType, RangeTable

Grid = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]

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
# Type and largest magnitude of a bias. An int64 sum may have 48 bits: MultiplyByQuantizedMultiplier
# in TensorFlow's lite/kernels/internal/common.h.
_BIASES: dict[Bits, tuple[type[np.signedinteger[Any]], int]] = {
    8: (np.int32, 2**31 - 1),
    16: (np.int64, 2**47 - 1),
}
_TYPES: dict[str, int] = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
}


def rewritten(
    content: bytes,
    nodes: tuple[Node, ...],
    weights: Arrays,
    table: RangeTable,
    *,
    io: IoType,
    bits: Bits = 8,
) -> bytes:
    """Returns the integer form of a float32 file, with the nodes in float32 that the table keeps.

    Args:
        content: The converter's float32 file of the same nodes and weights.
        nodes: The network.
        weights: Folded kernels and biases.
        table: Grids of tensors and kernels, and which nodes stay float32.
        io: Type of input and output; "float32" if `bits` is 16.
        bits: 8, or 16 for int16 activations: symmetric, scale = largest magnitude of the range /
            32767, int64 biases; kernels stay int8. Defaults to 8.

    Raises:
        ConversionError: If the file does not hold one operator for each node.
        ValueError: If integer input and output are asked for with 16 bits.
    """
    if bits == 16 and io != "float32":
        msg = f"{io} input and output with int16 activations"
        raise ValueError(msg)
    return _Writer(content, nodes, weights, table, bits).written(io)


class _Writer:
    """Walks the operators of a float32 file in order and emits their integer form."""

    def __init__(
        self,
        content: bytes,
        nodes: tuple[Node, ...],
        weights: Arrays,
        table: RangeTable,
        bits: Bits,
    ) -> None:
        self._model = unpacked(content)
        self._graph = self._model.subgraphs[0]
        self._nodes = nodes
        self._weights = weights
        self._table = table
        self._bits: Bits = bits
        self._emitted: list[Untyped] = []
        # Tensor of the network -> index of its form in float32 and in codes.
        self._real: dict[str, int] = {}
        self._codes: dict[str, int] = {}

    def written(self, io: IoType) -> bytes:
        graph = self._graph
        operators, codes = graph.operators, self._model.operatorCodes
        kinds = [max(c.deprecatedBuiltinCode, c.builtinCode) for c in codes]
        found = [kinds[operator.opcodeIndex] for operator in operators]
        self._model.operatorCodes = []
        expected = [*(_OPERATOR[node.op] for node in self._nodes), schema.BuiltinOperator.RESHAPE]
        if found == [kind for kind in expected if kind != schema.BuiltinOperator.MEAN]:
            place = expected.index(schema.BuiltinOperator.MEAN)
            operators.insert(place, self._mean_before(operators[place]))
            found.insert(place, schema.BuiltinOperator.MEAN)
        if found != expected:
            raise ConversionError(
                f"the TFLite converter wrote {len(operators)} operators that are not the network's",
                f"{len(expected)}: one for each layer, and a reshape",
                "use the tested tensorflow version; report this with its version",
            )
        names = {int(graph.inputs[0]): INPUT}
        names |= {int(o.outputs[0]): n.name for n, o in zip(self._nodes, operators, strict=False)}
        self._enter(int(graph.inputs[0]), io)
        for node, operator in zip(self._nodes, operators, strict=False):
            self._compute(node, operator, names)
        self._leave(operators[-1], io)
        graph.operators = self._emitted
        self._drop_unused()
        return packed(self._model)

    def _mean_before(self, reader: Untyped) -> Untyped:
        """Returns the mean of a single value, which the converter leaves out, between two layers.

        It may have a grid of its own.
        """
        source, mean = int(reader.inputs[0]), schema.OperatorT()
        axes = self._constant("axes", np.array([1, 2], np.int32))
        averaged = self._like(source, "mean", None)
        mean.inputs = np.array([source, axes], np.int32)
        mean.outputs = np.array([averaged], np.int32)
        mean.builtinOptionsType = schema.BuiltinOptions.ReducerOptions
        mean.builtinOptions = schema.ReducerOptionsT()
        mean.builtinOptions.keepDims = True
        reader.inputs = np.array([averaged, *reader.inputs[1:]], np.int32)
        return mean

    def _enter(self, index: int, io: IoType) -> None:
        if io == "float32":
            self._real[INPUT] = index
            self._quantize(INPUT)
        elif io == "int8":
            self._retype(index, "int8", self._grid(INPUT))
            self._codes[INPUT] = index
        else:
            self._retype(index, io, self._grid(INPUT, io))
            self._codes[INPUT] = self._like(index, f"{INPUT}_codes", INPUT)
            self._emit(schema.BuiltinOperator.QUANTIZE, [index], [self._codes[INPUT]])

    def _leave(self, reshape: Untyped, io: IoType) -> None:
        last = int(reshape.outputs[0])
        shape = int(reshape.inputs[1])
        flat = last
        if io != "int8":
            flat = self._like(last, f"{LOGITS}_flat", LOGITS)
        else:
            self._retype(last, "int8", self._grid(LOGITS))
        self._emit(schema.BuiltinOperator.RESHAPE, [self._codes[LOGITS], shape], [flat], reshape)
        if io == "float32":
            self._emit(schema.BuiltinOperator.DEQUANTIZE, [flat], [last])
        elif io == "uint8":
            self._retype(last, "uint8", self._grid(LOGITS, "uint8"))
            self._emit(schema.BuiltinOperator.QUANTIZE, [flat], [last])

    def _compute(self, node: Node, operator: Untyped, names: dict[int, str]) -> None:
        kept = node.name in self._table.kept_float
        own = int(operator.outputs[0])
        self._graph.tensors[own].name = node.name.encode()
        inputs = []
        for index in map(int, operator.inputs):
            name = names.get(index)
            if name is None:
                inputs.append(index)
            else:
                inputs.append(self._as_real(name) if kept else self._codes[name])
        if kept:
            self._emit(_OPERATOR[node.op], inputs, [own], operator, version=1)
            self._real[node.name] = own
            if node.name in self._table.activations:
                self._quantize(node.name)
            return
        if node.op in ("conv", "depthwise"):
            inputs = [inputs[0], *self._constants(node)]
        elif node.op == "add":
            operator.builtinOptions.potScaleInt16 = self._bits == 8  # the converter's value
        self._retype(own, self._type, self._grid(node.name))
        self._codes[node.name] = own
        self._emit(_OPERATOR[node.op], inputs, [own], operator)

    def _constants(self, node: Node) -> list[int]:
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
        # TFLite: (out, h, w, in), and (1, h, w, channels) for a depthwise convolution.
        axis = 3 if node.op == "depthwise" else 0
        laid_out = np.ascontiguousarray(codes.transpose(3, 0, 1, 2))
        name = f"{node.name}/kernel"
        return [
            self._constant(name, laid_out, (scales, zeros), axis),
            self._constant(f"{node.name}/bias", bias, (steps, zeros), 0),
        ]

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
            codes = self._codes[name]
            self._real[name] = self._like(codes, f"{name}_real", None)
            self._emit(schema.BuiltinOperator.DEQUANTIZE, [codes], [self._real[name]])
        return self._real[name]

    def _quantize(self, name: str) -> None:
        real = self._real[name]
        self._codes[name] = self._like(real, f"{name}_codes", name)
        self._emit(schema.BuiltinOperator.QUANTIZE, [real], [self._codes[name]])
        # Others read what int8 layers read, as the simulation does.
        del self._real[name]

    def _like(self, index: int, name: str, grid: str | None) -> int:
        """Adds a tensor of another's shape: codes on the grid of a tensor, or float32 for None."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name.encode(), self._graph.tensors[index].shape
        tensor.hasRank = True
        self._graph.tensors.append(tensor)
        added = len(self._graph.tensors) - 1
        if grid is None:
            self._retype(added, "float32", None)
        else:
            self._retype(added, self._type, self._grid(grid))
        return added

    def _constant(
        self, name: str, value: npt.NDArray[Any], grid: Grid | None = None, axis: int = 0
    ) -> int:
        tensor, buffer = schema.TensorT(), schema.BufferT()
        tensor.name, tensor.shape = name.encode(), np.array(value.shape, np.int32)
        tensor.hasRank = True
        buffer.data = np.frombuffer(value.tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        tensor.buffer = len(self._model.buffers) - 1
        self._graph.tensors.append(tensor)
        self._retype(len(self._graph.tensors) - 1, value.dtype.name, grid, axis)
        return len(self._graph.tensors) - 1

    def _retype(self, index: int, dtype: str, grid: Grid | None, axis: int = 0) -> None:
        tensor = self._graph.tensors[index]
        tensor.type = _TYPES[dtype]
        tensor.quantization = schema.QuantizationParametersT()
        if grid is not None:
            tensor.quantization.scale, tensor.quantization.zeroPoint = grid
            tensor.quantization.quantizedDimension = axis

    def _emit(
        self,
        kind: int,
        inputs: list[int],
        outputs: list[int],
        like: Untyped = None,
        version: int | None = None,
    ) -> None:
        """Emits an operator with the options of another one."""
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if like is not None:
            operator.builtinOptionsType = like.builtinOptionsType
            operator.builtinOptions = like.builtinOptions
        wanted = schema.OperatorCodeT()
        wanted.builtinCode = wanted.deprecatedBuiltinCode = kind
        wanted.version = version or _VERSIONS[kind, self._bits]
        known = self._model.operatorCodes
        same = [i for i, code in enumerate(known) if vars(code) == vars(wanted)]
        if not same:
            known.append(wanted)
        operator.opcodeIndex = same[0] if same else len(known) - 1
        self._emitted.append(operator)

    def _drop_unused(self) -> None:
        """Leaves out what only the float32 file needed: tensors, constants and notes about it."""
        graph, model = self._graph, self._model
        named = [operator.inputs for operator in graph.operators]
        named += [operator.outputs for operator in graph.operators]
        used = sorted(
            {int(i) for indices in (*named, graph.inputs, graph.outputs) for i in indices}
        )
        place = {index: position for position, index in enumerate(used)}

        def moved(indices: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
            return np.array([place[int(index)] for index in indices], np.int32)

        for operator in graph.operators:
            operator.inputs, operator.outputs = moved(operator.inputs), moved(operator.outputs)
        graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
        for signature in model.signatureDefs:
            for end in (*signature.inputs, *signature.outputs):
                end.tensorIndex = place[end.tensorIndex]
        graph.tensors = [graph.tensors[index] for index in used]
        buffers = [model.buffers[0]]  # the empty one, for all that is not constant
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            tensor.buffer = 0
            if buffer.data is not None:
                tensor.buffer = len(buffers)
                buffers.append(buffer)
        model.buffers, model.metadata, model.description = buffers, [], b"edgekit"
