"""Which runtime runs a format, and the facts read from a file.

Runtime layer; imports only records, so that listing runtimes loads none of them.
"""

import json
import struct
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeVar

from edgekit.records import Format, Preprocess, Record, TensorInfo

T = TypeVar("T", bound=Hashable)
RuntimeName = Literal["litert", "onnxruntime"]
RUNTIME_OF_FORMAT: dict[Format, RuntimeName] = {
    "tflite": "litert",
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
}
# Under these names edgekit writes its contract and its labels into every file that it exports.
PREPROCESS_KEY = "edgekit.preprocess"
LABELS_KEY = "edgekit.labels"
SHOWN_CHARACTERS = 300
_CUT = " ... "
# Operators that leave a score what it is, and how many of them may stand behind one another.
_PASSING = (
    *("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    *("QuantizeLinear", "DequantizeLinear"),
    *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST", "QUANTIZE", "DEQUANTIZE"),
)
_PASSED = 8
# What flatbuffers and numpy raise when an offset points outside the file or to nonsense.
FLATBUFFER_DAMAGE = (
    struct.error,
    IndexError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class ModelFacts(Record):
    """What a model file says about itself, read without running it.

    Args:
        format: "tflite", "onnx" or "ort".
        schema_version: Version of the TFLite schema, or opset of ONNX's default domain.
        inputs: Graph inputs that a caller must supply, in order.
        outputs: Graph outputs, in order.
        operators: Number of uses of each operator, over all subgraphs.
        float_tensors: TFLite: activations of a float type that are neither graph input nor graph
            output. ONNX: Conv, Gemm and MatMul nodes whose data or weights do not come from a
            DequantizeLinear. ORT: all of these that are left. Empty when everything between the
            ends is integer.
        wide_tensors: TFLite: int16 activations.
        metadata: Text entries that the file carries (ONNX `metadata_props`, TFLite metadata
            buffers that are UTF-8).
        last_operators: The operator that computes each output; see `last_operators`.
        doubt: Why ONNX's checker refuses the file; empty where it does not. Some of what it
            refuses runs, as nodes in any order do.
    """

    format: Format
    schema_version: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: dict[str, int]
    float_tensors: tuple[str, ...]
    wide_tensors: tuple[str, ...] = ()
    metadata: dict[str, str]
    last_operators: tuple[str, ...] = ()
    doubt: str = ""


def contract_texts(preprocess: Preprocess, class_names: Sequence[str]) -> dict[str, str]:
    """Returns what an exported file carries of its contract and its labels: JSON by key."""
    return {
        PREPROCESS_KEY: preprocess.model_dump_json(),
        LABELS_KEY: json.dumps(list(class_names)),
    }


def printable(text: str) -> str:
    """Returns untrusted text in one line, without control characters (terminal escapes).

    Of more than 300 characters the middle is left out: programs name the cause at the end.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= SHOWN_CHARACTERS:
        return line
    half = (SHOWN_CHARACTERS - len(_CUT)) // 2
    return f"{line[:half]}{_CUT}{line[-half:]}"


def last_operators(
    outputs: Sequence[T], made_by: Mapping[T, tuple[str, Sequence[T]]]
) -> tuple[str, ...]:
    """Returns the operator that computes each output, behind what only reshapes or converts it.

    Args:
        outputs: Names or numbers of the outputs.
        made_by: Operator and inputs that make a tensor; inputs of the graph are in none.

    Returns:
        One name an output; empty where nothing computes it.
    """
    found = []
    for tensor in outputs:
        operator = ""
        for _ in range(_PASSED):
            operator, inputs = made_by.get(tensor, ("", ()))
            if operator not in _PASSING or not inputs:
                break
            tensor = inputs[0]
        found.append(operator)
    return tuple(found)
