"""Which runtime runs a format, and the facts read from a file.

Runtime layer; imports only errors, limits and records, so that listing runtimes loads none of them.
"""

import json
import struct
from collections.abc import Sequence
from typing import Literal

from edgekit import limits
from edgekit.errors import IntegrityError
from edgekit.records import Format, Preprocess, Record, TensorInfo

RuntimeName = Literal["litert", "onnxruntime"]
RUNTIME_OF_FORMAT: dict[Format, RuntimeName] = {
    "tflite": "litert",
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
}
# Under these names edgekit writes its contract and its labels into every file that it exports.
PREPROCESS_KEY = "edgekit.preprocess"
LABELS_KEY = "edgekit.labels"
IO_DTYPES = ("float32", "uint8", "int8")
CHANNELS = 3
SHOWN_CHARACTERS = 300
_CUT = " ... "
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


def classifier_io(facts: ModelFacts, path: str) -> tuple[TensorInfo, TensorInfo]:
    """Returns the input and output of a file that is an image classifier.

    Args:
        facts: What the file says about itself.
        path: The file, for messages.

    Raises:
        IntegrityError: If there is not exactly one input of shape `(1, height, width, 3)` in
            float32, uint8 or int8, and one output of shape `(1, ..., 1, classes)` in one of them,
            or either is larger than `edgekit.limits` allows. A free (-1) batch dimension counts
            as 1.
    """
    if len(facts.inputs) != 1 or len(facts.outputs) != 1:
        found = f"{path}: {len(facts.inputs)} inputs and {len(facts.outputs)} outputs"
        raise IntegrityError(
            found, "one input and one output", "export the classifier alone, without other heads"
        )
    model_input, output = facts.inputs[0], facts.outputs[0]
    _check_input(model_input, path)
    # A free last dimension (-1) would leave the number of classes unknown.
    found = f"{path}: output {_words(output)}"
    leading = output.shape[:-1]
    if not leading or output.shape[-1] < 1 or any(size not in (-1, 1) for size in leading):
        raise IntegrityError(
            found,
            "shape (1, classes), one score per class",
            "export the classifier with its final layer and a batch of one",
        )
    if output.shape[-1] > limits.MODEL_CLASSES:
        raise IntegrityError(
            f"{found}: {output.shape[-1]:,} classes",
            f"at most {limits.MODEL_CLASSES:,} classes",
            "do not use this file, or export the classifier with its final layer",
        )
    if output.dtype not in IO_DTYPES:
        raise IntegrityError(
            found, f"type {', '.join(IO_DTYPES)}", "export with one of these output types"
        )
    return model_input, output


def _words(info: TensorInfo) -> str:
    """Returns an end of a file in one short line: its name and rank are as long as it likes."""
    return printable(f"{info.name!r} of shape {info.shape} and type {info.dtype}")


def _check_input(info: TensorInfo, path: str) -> None:
    """Refuses an input that is not one NHWC image; see `classifier_io`."""
    found = f"{path}: input {_words(info)}"
    if len(info.shape) == 4 and info.shape[1] == CHANNELS and info.shape[3] != CHANNELS:
        found = f"{found} (channels first)"
        raise IntegrityError(
            found,
            "channels last: (1, height, width, 3)",
            "export with NHWC inputs, or put a Transpose in front of the first layer",
        )
    if len(info.shape) != 4 or info.shape[3] != CHANNELS or min(info.shape[1:3]) < 1:
        raise IntegrityError(
            found,
            "a colour image of fixed size: (1, height, width, 3)",
            "export with a fixed height and width, channels last",
        )
    if info.shape[0] not in (-1, 1):
        found = f"{found} (fixed batch of {info.shape[0]})"
        raise IntegrityError(
            found,
            "a batch of 1, or a free batch",
            "export with batch size 1",
        )
    if max(info.shape[1:3]) > limits.INPUT_SIDE_PX:
        raise IntegrityError(
            f"{found}: pictures of {info.shape[2]:,} x {info.shape[1]:,} px",
            f"at most {limits.INPUT_SIDE_PX:,} px a side",
            "do not use this file, or export the classifier with a smaller input (224 px is usual)",
        )
    if info.dtype not in IO_DTYPES:
        raise IntegrityError(
            found, f"type {', '.join(IO_DTYPES)}", "export with one of these input types"
        )
