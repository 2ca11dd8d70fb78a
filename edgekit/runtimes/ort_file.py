"""Reads the facts of an .ort file, onnxruntime's own format, without running it. Runtime layer.

The file is a flatbuffer of an already optimized graph. As for TFLite nothing in it is trusted: any
step outside the file is an `IntegrityError`, and so are weights that it keeps elsewhere.
"""

from collections import Counter
from typing import Any, TypeAlias

from edgekit.errors import IntegrityError
from edgekit.records import TensorInfo
from edgekit.runtimes.base import FLATBUFFER_DAMAGE, ModelFacts, last_operators, printable
from edgekit.runtimes.onnx_file import COMPUTE_OPERATORS, KNOWN_DOMAINS

# Classes of the generated schema carry no type hints.
Table: TypeAlias = Any

IDENTIFIER = b"ORTM"
# What the optimizer makes of float convolutions, besides ONNX's own operators, and the domain of
# those that it lays out for one kind of processor.
_FLOAT_OPERATORS = (*COMPUTE_OPERATORS, "FusedConv", "FusedGemm", "FusedMatMul")
_DOMAINS = (*KNOWN_DOMAINS, "com.microsoft.nchwc")


def read_ort(content: bytes, path: str) -> ModelFacts:
    """Returns the facts of a file in onnxruntime's format.

    Args:
        content: The whole file.
        path: Where it came from, for messages.

    Raises:
        IntegrityError: If the file is no such flatbuffer, is damaged, keeps weights outside itself,
            or has operators that a stock onnxruntime does not know.
    """
    if content[4:8] != IDENTIFIER:
        found = f"{path}: not an .ort file (bytes 4 to 8 are {content[4:8]!r})"
        raise IntegrityError(
            found,
            'a file in onnxruntime\'s format ("ORTM" at byte 4)',
            "export the model again, or copy the file again from where it was made",
        )
    try:
        return _facts(content, path)
    except FLATBUFFER_DAMAGE as err:
        found = f"{path}: damaged .ort file of {len(content)} bytes ({printable(str(err))})"
        raise IntegrityError(
            found,
            "a complete file in onnxruntime's format",
            "copy the file again from where it was made; it may have been cut short",
        ) from err


def required_operators(content: bytes) -> str:
    """Returns the operators of a file, for a build of onnxruntime that holds no others.

    Args:
        content: A file that `read_ort` accepted.

    Returns:
        The lines that onnxruntime's `build.py --include_ops_by_config` reads: domain, the opset
        that introduced the operators' form, the operators.
    """
    graph = _model(content).Graph()
    found: dict[tuple[str, int], set[str]] = {}
    for node in (graph.Nodes(i) for i in range(graph.NodesLength())):
        key = (_text(node.Domain()) or "ai.onnx", node.SinceVersion())
        found.setdefault(key, set()).add(_text(node.OpType()))
    return "".join(
        f"{domain};{opset};{','.join(sorted(names))}\n"
        for (domain, opset), names in sorted(found.items())
    )


def _model(content: bytes) -> Table:
    # Imported here: it loads onnxruntime, and it is what makes the generated schema importable.
    import onnxruntime.tools.ort_format_model  # noqa: F401
    from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    return InferenceSession.GetRootAs(bytearray(content), 0).Model()


def _facts(content: bytes, path: str) -> ModelFacts:
    model = _model(content)
    graph = model.Graph()
    counts = (graph.NodesLength(), graph.NodeArgsLength(), graph.InitializersLength())
    if max(*counts, model.MetadataPropsLength()) * 4 > len(content):
        msg = f"tables of {counts} entries"
        raise ValueError(msg)
    _check_weights(graph, path)
    constants = {graph.Initializers(i).Name() for i in range(graph.InitializersLength())}
    types = {graph.NodeArgs(i).Name(): graph.NodeArgs(i).Type() for i in range(counts[1])}
    nodes = [graph.Nodes(i) for i in range(counts[0])]
    inputs = [graph.Inputs(i) for i in range(graph.InputsLength())]
    opsets = [model.OpsetImport(i) for i in range(model.OpsetImportLength())]
    entries = [model.MetadataProps(i) for i in range(model.MetadataPropsLength())]
    return ModelFacts(
        format="ort",
        schema_version=max(o.Version() for o in opsets if _text(o.Domain()) in ("", "ai.onnx")),
        inputs=tuple(_tensor_info(n, types[n]) for n in inputs if n not in constants),
        outputs=tuple(
            _tensor_info(graph.Outputs(i), types[graph.Outputs(i)])
            for i in range(graph.OutputsLength())
        ),
        operators=_operators(nodes, path),
        float_tensors=tuple(
            _text(node.Name()) or _text(node.Outputs(0))
            for node in nodes
            if _text(node.OpType()) in _FLOAT_OPERATORS
        ),
        metadata={_text(entry.Key()): _text(entry.Value()) for entry in entries},
        last_operators=last_operators(
            [_text(graph.Outputs(i)) for i in range(graph.OutputsLength())], _made_by(nodes)
        ),
    )


def _made_by(nodes: list[Table]) -> dict[str, tuple[str, list[str]]]:
    """Returns operator and inputs of the node that makes each tensor."""
    return {
        _text(node.Outputs(number)): (
            _text(node.OpType()),
            [_text(node.Inputs(i)) for i in range(node.InputsLength())],
        )
        for node in nodes
        for number in range(node.OutputsLength())
    }


def _check_weights(graph: Table, path: str) -> None:
    """Refuses weights that lie outside the flatbuffer or in other files."""
    for index in range(graph.InitializersLength()):
        tensor = graph.Initializers(index)
        if tensor.ExternalDataOffset() >= 0:
            found = f"{path}: tensor {_text(tensor.Name())!r} keeps its data in another file"
            raise IntegrityError(
                found, "all weights inside the .ort file", "convert it without external data"
            )
        tensor.RawDataAsNumpy()  # raises when the data reach beyond the end of the file


def _operators(nodes: list[Table], path: str) -> dict[str, int]:
    used: Counter[str] = Counter()
    for node in nodes:
        domain, kind = _text(node.Domain()), _text(node.OpType())
        if domain not in _DOMAINS:
            found = f"{path}: custom operator {printable(f'{domain}.{kind}')}"
            raise IntegrityError(
                found, "operators that a stock onnxruntime has", "convert without custom operators"
            )
        used[kind] += 1
    return dict(sorted(used.items()))


def _tensor_info(name: bytes, kind: Table) -> TensorInfo:
    """Returns what a TypeInfo says; named or missing dimensions show as -1."""
    import onnx
    from ort_flatbuffers_py.fbs.TensorTypeAndShape import TensorTypeAndShape

    tensor = TensorTypeAndShape()
    value = kind.Value()
    tensor.Init(value.Bytes, value.Pos)
    shape = tensor.Shape()
    dims = (shape.Dim(i).Value() for i in range(shape.DimLength()))
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.ElemType()))
    sizes = tuple(int(dim.DimValue()) if dim.DimType() == 1 else -1 for dim in dims)
    return TensorInfo(name=_text(name), dtype=dtype, shape=sizes)


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")
