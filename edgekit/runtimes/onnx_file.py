"""Reads the facts of an .onnx file without running it. Runtime layer.

The file is untrusted. External data are refused wherever they hide: onnxruntime 1.31 still reads
them through a hard link, and onnx's own loader overlooks sparse attributes. So every `TensorProto`
reachable from the model is visited, whatever field it sits in.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

from edgekit import limits
from edgekit.errors import IntegrityError
from edgekit.records import TensorInfo
from edgekit.runtimes.base import ModelFacts, last_operators, printable

# Generated protobuf classes; their type hints are a separate package.
Message: TypeAlias = Any

# Domains whose operators onnxruntime's CPU build has; "" is ONNX itself.
KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
# EPContext names a compiled blob in another file.
REFUSED_OPERATORS = ("EPContext",)
COMPUTE_OPERATORS = ("Conv", "Gemm", "MatMul", "ConvTranspose")
# What reading strings, dimensions and types of a message that only just parsed can raise.
_DAMAGE = (IndexError, KeyError, TypeError, ValueError, RuntimeError)
AGAIN = "export the model again as one self-contained .onnx file"


def read_onnx(content: bytes, path: str) -> ModelFacts:
    """Returns the facts of an ONNX file.

    Args:
        content: The whole file.
        path: Where it came from, for messages.

    Raises:
        IntegrityError: If the file is empty, damaged, refers to data outside itself, or has
            operators that a stock onnxruntime does not know. What ONNX's checker refuses is the
            `doubt` of the facts.
    """
    model = _parse(content, path)
    try:
        _refuse_external_data(model, path)
        operators = _operators(model, path)
        _refuse_expansion(model, path)
        return _facts(model, operators, _doubt(model))
    except _DAMAGE as err:
        reason = printable(str(err)) or type(err).__name__
        found = f"{path}: damaged ONNX file ({reason})"
        raise IntegrityError(found, "a valid ONNX model", AGAIN) from err


def _doubt(model: Message) -> str:
    """Returns why ONNX's checker refuses a model, or nothing."""
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as err:
        return printable(str(err)) or type(err).__name__
    return ""


def _facts(model: Message, operators: dict[str, int], doubt: str) -> ModelFacts:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return ModelFacts(
        format="onnx",
        schema_version=max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        inputs=tuple(
            _tensor_info(value, _input_quantization(graph, value.name, constants))
            for value in graph.input
            if value.name not in constants
        ),
        outputs=tuple(
            _tensor_info(value, _output_quantization(graph, value.name, constants))
            for value in graph.output
        ),
        operators=operators,
        float_tensors=_float_nodes(graph),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        last_operators=last_operators(
            [value.name for value in graph.output],
            {name: (node.op_type, node.input) for node in graph.node for name in node.output},
        ),
        doubt=doubt,
    )


def _parse(content: bytes, path: str) -> Message:
    """Returns the ModelProto; random bytes can parse, so its required parts are checked too."""
    # Imported here: onnx and protobuf are slow to load and only needed when a file is read.
    import onnx
    from google.protobuf.message import DecodeError

    if not content:
        found = f"{path}: empty file"
        raise IntegrityError(found, "an ONNX model", AGAIN)
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as err:
        found = f"{path}: not an ONNX file, or one that was cut short ({printable(str(err))})"
        raise IntegrityError(
            found,
            "a complete ONNX model",
            "copy the file again from where it was made",
        ) from err
    opset = any(entry.domain in ("", "ai.onnx") for entry in model.opset_import)
    if not opset or not model.graph.node:
        found = f"{path}: no {'operators' if opset else 'opset'} in it (not ONNX, or cut short)"
        raise IntegrityError(
            found,
            "a complete ONNX model",
            "copy the file again from where it was made",
        )
    return model


def _messages(message: Message) -> Iterator[Message]:
    """Yields every protobuf message below `message`, in whatever field it sits."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for child in value if field.is_repeated else (value,):
            yield child
            yield from _messages(child)


def _refuse_external_data(model: Message, path: str) -> None:
    """Refuses every tensor that points outside the file, in any field of any subgraph."""
    import onnx

    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and (
            message.data_location == onnx.TensorProto.EXTERNAL or message.external_data
        ):
            places = {entry.key: entry.value for entry in message.external_data}
            where = f", {places['location']!r}" if places.get("location") else ""
            said = printable(f"tensor {message.name!r} keeps its data in another file{where}")
            raise IntegrityError(
                f"{path}: {said}",
                "all weights inside the .onnx file",
                "export with external_data=False (torch.onnx.export), or, where both files lie "
                'side by side: onnx.save(onnx.load("model.onnx"), "whole.onnx")',
            )


def _operators(model: Message, path: str) -> dict[str, int]:
    """Counts operators over all subgraphs and functions; refuses foreign ones."""
    import onnx

    own = {(function.domain, function.name) for function in model.functions}
    used: Counter[str] = Counter()
    for node in _messages(model):
        if not isinstance(node, onnx.NodeProto):
            continue
        known = node.domain in KNOWN_DOMAINS or (node.domain, node.op_type) in own
        if not known or node.op_type in REFUSED_OPERATORS:
            found = f"{path}: custom operator {printable(f'{node.domain}.{node.op_type}')}"
            raise IntegrityError(
                found,
                "operators that a stock onnxruntime has",
                "export without custom operators, in ONNX's own"
                if node.op_type not in REFUSED_OPERATORS
                else "give the model as it was before it was compiled for an accelerator",
            )
        used[node.op_type] += 1
    return dict(sorted(used.items()))


def _refuse_expansion(model: Message, path: str) -> None:
    """Refuses functions that call each other so often that a runtime never ends to insert them.

    Nor is one taken that calls itself, which would never end.
    """
    import onnx

    functions = {(function.domain, function.name): function for function in model.functions}
    known: dict[tuple[str, str], int] = {}
    called: list[tuple[str, str]] = []

    def operators(message: Message) -> int:
        count = 0
        for node in _messages(message):
            if not isinstance(node, onnx.NodeProto):
                continue
            name = (node.domain, node.op_type)
            if name in called:
                raise IntegrityError(
                    f"{path}: function {printable('.'.join(name))} calls itself",
                    "functions that end",
                    "do not use this file",
                )
            if name in functions and name not in known:
                called.append(name)
                known[name] = operators(functions[name])
                called.pop()
            count += known.get(name, 1)
            if count > limits.MODEL_OPERATORS:
                return count
        return count

    if operators(model.graph) > limits.MODEL_OPERATORS:
        most = f"{limits.MODEL_OPERATORS:,} operators"
        raise IntegrityError(
            f"{path}: more than {most}, functions counted at each call",
            f"at most {most}",
            "do not use this file",
        )


def _tensor_info(value: Message, quantization: tuple[float, int] | None) -> TensorInfo:
    """Returns what a ValueInfoProto says; named or missing dimensions show as -1."""
    import onnx

    tensor = value.type.tensor_type
    dtype = "unknown"
    if tensor.elem_type:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    dims = (d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    scale, zero_point = quantization if quantization else (None, None)
    return TensorInfo(
        name=value.name, dtype=dtype, shape=tuple(dims), scale=scale, zero_point=zero_point
    )


def _input_quantization(
    graph: Message,
    name: str,
    constants: dict[str, Message],
) -> tuple[float, int] | None:
    """Returns the quantization of an integer input: that of the DequantizeLinear that reads it."""
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == name:
            return _linear(node, constants)
    return None


def _output_quantization(
    graph: Message,
    name: str,
    constants: dict[str, Message],
) -> tuple[float, int] | None:
    """Returns the quantization of an integer output: that of the QuantizeLinear that writes it."""
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and name in node.output:
            return _linear(node, constants)
    return None


def _linear(node: Message, constants: dict[str, Message]) -> tuple[float, int] | None:
    """Returns the constant per-tensor scale and zero point of a (De)QuantizeLinear."""
    import onnx

    scale = constants.get(node.input[1])
    zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if scale is None or (len(node.input) > 2 and node.input[2] and zero is None):
        return None
    scales = onnx.numpy_helper.to_array(scale)
    zeros = onnx.numpy_helper.to_array(zero) if zero is not None else None
    if scales.size != 1:
        return None
    return float(scales.reshape(-1)[0]), 0 if zeros is None else int(zeros.reshape(-1)[0])


def _float_nodes(graph: Message) -> tuple[str, ...]:
    """Names the Conv, Gemm and MatMul nodes that do not multiply dequantized integers only."""
    dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    return tuple(
        node.name or node.output[0]
        for node in graph.node
        if node.op_type in COMPUTE_OPERATORS and not dequantized.issuperset(node.input[:2])
    )
