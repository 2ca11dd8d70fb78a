"""Reads the facts of a .tflite flatbuffer without running it. Runtime layer.

The file is untrusted: every offset in it may lie. Python's flatbuffers package has no verifier, so
all tables and vectors that a runtime follows are walked here and any step outside the file is an
`IntegrityError`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

from edgekit import limits
from edgekit.errors import IntegrityError
from edgekit.records import TensorInfo
from edgekit.runtimes.base import FLATBUFFER_DAMAGE, ModelFacts, last_operators, printable

# Classes of the generated schema carry no type hints.
Table: TypeAlias = Any

IDENTIFIER = b"TFL3"
# What the Edge TPU compiler makes of all that the accelerator computes. Source:
# https://coral.ai/docs/edgetpu/compiler/
EDGE_TPU_OPERATOR = "edgetpu-custom-op"
FLOAT_DTYPES = ("float32", "float16", "bfloat16", "float64")


def read_tflite(content: bytes, path: str) -> ModelFacts:
    """Returns the facts of a TFLite file.

    Args:
        content: The whole file.
        path: Where it came from, for messages.

    Raises:
        IntegrityError: If the file is empty, not a TFLite flatbuffer, damaged, keeps tensors
            outside itself, or has custom or Flex operators.
    """
    if content[4:8] != IDENTIFIER:
        found = f"{path}: {_kind(content)}"
        raise IntegrityError(
            found,
            'a TFLite flatbuffer ("TFL3" at byte 4)',
            "export the model again, or copy the file again from where it was made",
        )
    try:
        return _facts(content, path)
    except FLATBUFFER_DAMAGE as err:
        found = f"{path}: damaged TFLite file of {len(content)} bytes ({printable(str(err))})"
        raise IntegrityError(
            found,
            "a complete TFLite flatbuffer",
            "copy the file again from where it was made; it may have been cut short",
        ) from err


def _kind(content: bytes) -> str:
    """Says in words what a file that is not a TFLite flatbuffer looks like."""
    if not content:
        return "empty file"
    if content.startswith(b"PK\x03\x04"):
        return "a ZIP archive, not a model"
    if len(content) < 8:
        return f"a file of {len(content)} bytes, too short for a model"
    return f"not a TFLite file (bytes 4 to 8 are {content[4:8]!r})"


def _facts(content: bytes, path: str) -> ModelFacts:
    # Imported here: the generated schema is large and only needed when a file is read.
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    _check_tables(model, content)
    _check_buffers(model, content, path)
    names = _operator_names(model, schema, path)
    types = {code: name.lower() for name, code in vars(schema.TensorType).items() if name[0] != "_"}
    main = model.Subgraphs(0)
    if main is None:
        msg = "no subgraph"
        raise ValueError(msg)
    inputs = tuple(int(i) for i in main.InputsAsNumpy()) if main.InputsLength() else ()
    outputs = tuple(int(i) for i in main.OutputsAsNumpy()) if main.OutputsLength() else ()
    return ModelFacts(
        format="tflite",
        schema_version=model.Version(),
        inputs=tuple(_tensor_info(main, i, types) for i in inputs),
        outputs=tuple(_tensor_info(main, i, types) for i in outputs),
        operators=_counted(model, names),
        float_tensors=_activations(model, types, FLOAT_DTYPES, {*inputs, *outputs}),
        wide_tensors=_activations(model, types, ("int16",), {*inputs, *outputs}),
        metadata=_metadata(model),
        last_operators=last_operators(outputs, _made_by(main, names)),
    )


def _check_size(length: int, content: bytes) -> None:
    """Refuses a vector that claims more entries than the file has room for (4 bytes each)."""
    if length * 4 > len(content):
        msg = f"a table of {length} entries"
        raise ValueError(msg)


def _check_tables(model: Table, content: bytes) -> None:
    """Refuses more tables than the file has room for, also when they share their bytes.

    Many subgraphs that point to one long table would keep a reader busy for hours.
    """
    _check_size(model.SubgraphsLength(), content)
    graphs = list(_subgraphs(model))
    _check_size(sum(graph.TensorsLength() for graph in graphs), content)
    _check_size(sum(graph.OperatorsLength() for graph in graphs), content)
    _check_size(model.OperatorCodesLength(), content)
    if model.MetadataLength() > limits.TFLITE_METADATA_ENTRIES:
        msg = f"{model.MetadataLength()} metadata entries"
        raise ValueError(msg)


def _check_buffers(model: Table, content: bytes, path: str) -> None:
    """Refuses weights that lie outside the flatbuffer or in other files."""
    if model.ExternalBuffersLength() or model.ExternalBufferGroupsLength():
        found = f"{path}: keeps tensors in other files"
        raise IntegrityError(
            found,
            "one self-contained file",
            "export again without external buffers",
        )
    _check_size(model.BuffersLength(), content)
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        buffer.DataAsNumpy()  # raises when the data reach beyond the end of the file
        if buffer.Offset() > 1 and buffer.Offset() + buffer.Size() > len(content):
            msg = f"buffer {index} ends at byte {buffer.Offset() + buffer.Size()}"
            raise ValueError(msg)


def _subgraphs(model: Table) -> Iterator[Table]:
    return (model.Subgraphs(i) for i in range(model.SubgraphsLength()))


def _operator_names(model: Table, schema: Table, path: str) -> list[str]:
    """Names the operator of each code; refuses those a stock runtime does not have."""
    builtin = {code: name for name, code in vars(schema.BuiltinOperator).items() if name[0] != "_"}
    names = []
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        # Old files use the one-byte field, new ones the int; the larger one is valid (schema.fbs).
        name = builtin.get(max(code.DeprecatedBuiltinCode(), code.BuiltinCode()))
        if name is None or name == "CUSTOM":
            custom = (code.CustomCode() or b"unknown").decode("utf-8", "replace")
            found = f"{path}: {printable(f'custom operator {custom!r}')}"
            raise IntegrityError(found, *_instead_of(custom))
        names.append(name)
    return names


def _counted(model: Table, names: list[str]) -> dict[str, int]:
    """Counts operators over all subgraphs."""
    used: Counter[str] = Counter()
    for graph in _subgraphs(model):
        used.update(names[graph.Operators(i).OpcodeIndex()] for i in range(graph.OperatorsLength()))
    return dict(sorted(used.items()))


def _made_by(graph: Table, names: list[str]) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Returns operator and inputs of what makes each tensor of a subgraph."""
    found = {}
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        inputs = tuple(operator.Inputs(i) for i in range(operator.InputsLength()))
        for number in range(operator.OutputsLength()):
            found[operator.Outputs(number)] = (names[operator.OpcodeIndex()], inputs)
    return found


def _instead_of(custom: str) -> tuple[str, str]:
    """Returns what is expected in place of a custom operator, and what to do."""
    if custom == EDGE_TPU_OPERATOR:
        return (
            "the file as it was before the Edge TPU compiler; this one is compiled for that "
            "accelerator and runs on nothing else",
            "give the file that edgetpu_compiler was given (without _edgetpu in its name)",
        )
    expected = "operators that every LiteRT runtime has"
    if custom.startswith("Flex"):
        return (
            f"{expected}; this one is TensorFlow's own (Flex)",
            "export with TFLITE_BUILTINS only, without SELECT_TF_OPS",
        )
    return expected, "export with TFLITE_BUILTINS only (no Flex, no custom operators)"


def _tensor_info(graph: Table, index: int, types: dict[int, str]) -> TensorInfo:
    """Returns what tensor `index` says; a free dimension shows as -1 in the shape signature."""
    if not 0 <= index < graph.TensorsLength():
        msg = f"tensor {index} of {graph.TensorsLength()}"
        raise ValueError(msg)
    tensor = graph.Tensors(index)
    fixed = tuple(map(int, tensor.ShapeAsNumpy())) if tensor.ShapeLength() else ()
    shape = fixed
    if tensor.ShapeSignatureLength():
        shape = tuple(map(int, tensor.ShapeSignatureAsNumpy()))
        # A runtime allocates by the shape, whatever the signature says.
        if len(shape) != len(fixed) or any(
            s not in (-1, f) for s, f in zip(shape, fixed, strict=False)
        ):
            msg = f"tensor {index} of shape {fixed} with the signature {shape}"
            raise ValueError(msg)
    quantization = tensor.Quantization()
    scale = zero_point = None
    # Only per-tensor quantization makes sense at the ends; more scales are left to the runtime.
    if quantization is not None and quantization.ScaleLength() == 1:
        scale = float(quantization.Scale(0))
        zero_point = int(quantization.ZeroPoint(0)) if quantization.ZeroPointLength() else 0
    return TensorInfo(
        name=_text(tensor.Name()),
        dtype=types[tensor.Type()],
        shape=shape,
        scale=scale,
        zero_point=zero_point,
    )


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")


def _activations(
    model: Table, types: dict[int, str], dtypes: tuple[str, ...], ends: set[int]
) -> tuple[str, ...]:
    """Names the activations of some dtypes; `ends` are the main graph's inputs and outputs."""
    names = []
    for number, graph in enumerate(_subgraphs(model)):
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            buffer = model.Buffers(tensor.Buffer())
            constant = buffer is not None and (buffer.DataLength() > 0 or buffer.Offset() > 1)
            boundary = number == 0 and index in ends
            if types[tensor.Type()] in dtypes and not constant and not boundary:
                names.append(_text(tensor.Name()))
    return tuple(names)


def _metadata(model: Table) -> dict[str, str]:
    """Returns the metadata entries that are short UTF-8 text."""
    found = {}
    left_bytes = limits.MODEL_METADATA_BYTES  # entries may share one long buffer
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        buffer = model.Buffers(entry.Buffer())
        if buffer is None or not 0 < buffer.DataLength() <= limits.TFLITE_METADATA_BYTES:
            continue
        left_bytes -= buffer.DataLength()
        if left_bytes < 0:
            msg = f"more than {limits.MODEL_METADATA_BYTES} bytes of metadata"
            raise ValueError(msg)
        try:
            found[_text(entry.Name())] = buffer.DataAsNumpy().tobytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # a binary entry, such as the TFLite metadata flatbuffer
    return found
