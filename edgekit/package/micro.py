"""A package for microcontrollers: sources for TensorFlow Lite Micro. Package layer.

The goldens here have outputs of their own. XNNPACK, which LiteRT computes with, rounds otherwise
than TensorFlow Lite Micro: on an int8 MobileNetV2 their outputs lie up to 9 codes apart, while
LiteRT's reference kernels answer like TensorFlow Lite Micro's to the bit (30 photographs).
"""

import hashlib
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.errors import SpecError
from edgekit.package.contents import TOLERANCE_SHARE, TOLERANCE_STEPS, Contents, Golden
from edgekit.records import input_codes
from edgekit.runtimes.base import printable

FOLDER = "micro"
# What a pixel is, by the channels of the input.
_PIXEL = {
    1: "one byte for each pixel, its luma, as a grey camera gives it (0.299, 0.587 and 0.114 of "
    "red, green and blue)",
    3: "red, green, blue of each pixel",
}
# More than the host's reference kernels need: optimized kernels want scratch memory, and planning
# needs a little more than what stays. Pointers of 4 bytes make it less. edgekit's choice.
ARENA_MARGIN_PERCENT = 10
# Source: MicroArenaBufferAlignment in tensorflow/lite/micro/micro_arena_constants.h of
# https://github.com/tensorflow/tflite-micro .
ARENA_ALIGNMENT_BYTES = 16
# Only where nobody measured the arena and the target has no memory budget. edgekit's choice.
GUESSED_ARENA_BYTES = 256 * 1024

_TEMPLATES = Path(__file__).with_name("templates") / "micro"
_PLACEHOLDER = re.compile(r"@@([A-Z0-9_]+)@@")
_C_TYPES = {"int8": "int8_t", "float32": "float"}
_TFLITE_TYPES = {"int8": "kTfLiteInt8", "float32": "kTfLiteFloat32"}
_FIELDS = {"int8": "int8", "float32": "f"}
# Labels keep these as they are; any other byte becomes an octal escape. No question mark: two of
# them begin a trigraph.
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._-")

# Methods of MicroMutableOpResolver by the operator's name in the file. Source:
# tensorflow/lite/micro/micro_mutable_op_resolver.h of https://github.com/tensorflow/tflite-micro ;
# without those that need an argument, and custom operators, which edgekit refuses.
ADD_METHODS: Mapping[str, str] = {
    "ABS": "AddAbs",
    "ADD": "AddAdd",
    "ADD_N": "AddAddN",
    "ARG_MAX": "AddArgMax",
    "ARG_MIN": "AddArgMin",
    "ASSIGN_VARIABLE": "AddAssignVariable",
    "AVERAGE_POOL_2D": "AddAveragePool2D",
    "BATCH_MATMUL": "AddBatchMatMul",
    "BATCH_TO_SPACE_ND": "AddBatchToSpaceNd",
    "BROADCAST_ARGS": "AddBroadcastArgs",
    "BROADCAST_TO": "AddBroadcastTo",
    "CALL_ONCE": "AddCallOnce",
    "CAST": "AddCast",
    "CEIL": "AddCeil",
    "CONCATENATION": "AddConcatenation",
    "CONV_2D": "AddConv2D",
    "COS": "AddCos",
    "CUMSUM": "AddCumSum",
    "DEPTH_TO_SPACE": "AddDepthToSpace",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "DEQUANTIZE": "AddDequantize",
    "DIV": "AddDiv",
    "DYNAMIC_UPDATE_SLICE": "AddDynamicUpdateSlice",
    "ELU": "AddElu",
    "EMBEDDING_LOOKUP": "AddEmbeddingLookup",
    "EQUAL": "AddEqual",
    "EXP": "AddExp",
    "EXPAND_DIMS": "AddExpandDims",
    "FILL": "AddFill",
    "FLOOR": "AddFloor",
    "FLOOR_DIV": "AddFloorDiv",
    "FLOOR_MOD": "AddFloorMod",
    "FULLY_CONNECTED": "AddFullyConnected",
    "GATHER": "AddGather",
    "GATHER_ND": "AddGatherNd",
    "GREATER": "AddGreater",
    "GREATER_EQUAL": "AddGreaterEqual",
    "HARD_SWISH": "AddHardSwish",
    "IF": "AddIf",
    "L2_NORMALIZATION": "AddL2Normalization",
    "L2_POOL_2D": "AddL2Pool2D",
    "LEAKY_RELU": "AddLeakyRelu",
    "LESS": "AddLess",
    "LESS_EQUAL": "AddLessEqual",
    "LOG": "AddLog",
    "LOG_SOFTMAX": "AddLogSoftmax",
    "LOGICAL_AND": "AddLogicalAnd",
    "LOGICAL_NOT": "AddLogicalNot",
    "LOGICAL_OR": "AddLogicalOr",
    "LOGISTIC": "AddLogistic",
    "MAX_POOL_2D": "AddMaxPool2D",
    "MAXIMUM": "AddMaximum",
    "MEAN": "AddMean",
    "MINIMUM": "AddMinimum",
    "MIRROR_PAD": "AddMirrorPad",
    "MUL": "AddMul",
    "NEG": "AddNeg",
    "NOT_EQUAL": "AddNotEqual",
    "PACK": "AddPack",
    "PAD": "AddPad",
    "PADV2": "AddPadV2",
    "PRELU": "AddPrelu",
    "QUANTIZE": "AddQuantize",
    "READ_VARIABLE": "AddReadVariable",
    "REDUCE_ALL": "AddReduceAll",
    "REDUCE_MAX": "AddReduceMax",
    "REDUCE_MIN": "AddReduceMin",
    "RELU": "AddRelu",
    "RELU6": "AddRelu6",
    "RESHAPE": "AddReshape",
    "RESIZE_BILINEAR": "AddResizeBilinear",
    "RESIZE_NEAREST_NEIGHBOR": "AddResizeNearestNeighbor",
    "REVERSE_V2": "AddReverseV2",
    "ROUND": "AddRound",
    "RSQRT": "AddRsqrt",
    "SELECT_V2": "AddSelectV2",
    "SHAPE": "AddShape",
    "SIN": "AddSin",
    "SLICE": "AddSlice",
    "SOFTMAX": "AddSoftmax",
    "SPACE_TO_BATCH_ND": "AddSpaceToBatchNd",
    "SPACE_TO_DEPTH": "AddSpaceToDepth",
    "SPLIT": "AddSplit",
    "SPLIT_V": "AddSplitV",
    "SQRT": "AddSqrt",
    "SQUARE": "AddSquare",
    "SQUARED_DIFFERENCE": "AddSquaredDifference",
    "SQUEEZE": "AddSqueeze",
    "STRIDED_SLICE": "AddStridedSlice",
    "SUB": "AddSub",
    "SUM": "AddSum",
    "SVDF": "AddSvdf",
    "TANH": "AddTanh",
    "TRANSPOSE": "AddTranspose",
    "TRANSPOSE_CONV": "AddTransposeConv",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
    "UNPACK": "AddUnpack",
    "VAR_HANDLE": "AddVarHandle",
    "WHILE": "AddWhile",
    "ZEROS_LIKE": "AddZerosLike",
}


def files(contents: Contents) -> dict[str, bytes]:
    """Returns what a bundle for microcontrollers has besides what every bundle has.

    Args:
        contents: What the package is made from.

    Raises:
        SpecError: If the file is not one that TensorFlow Lite Micro runs: not .tflite, neither int8
            nor float32, other ends, a free batch, or an operator that it does not have.
    """
    _refuse(contents)
    codes = input_codes(
        contents.preprocess, contents.input.dtype, contents.input.scale, contents.input.zero_point
    )
    pixels = [_pixels_of(golden, codes, contents) for golden in contents.goldens]
    contents = replace(contents, goldens=_answered(contents))
    values = {
        **_plain_values(contents),
        **_operators(contents),
        **_arena(contents),
        **_acceptance(contents),
        **_preprocessing(contents, codes),
        **_golden_sources(contents, pixels),
    }
    found = {
        f"{FOLDER}/{path.relative_to(_TEMPLATES).as_posix()}": _filled(path, values)
        for path in sorted(_TEMPLATES.rglob("*"))
        if path.is_file()
    }
    preprocess = contents.preprocess
    size = preprocess.input_channels * preprocess.height_px * preprocess.width_px
    blank = bytes(size)
    found[f"{FOLDER}/golden_pixels.bin"] = b"".join(
        blank if picture is None else picture for picture in pixels
    )
    found[f"{FOLDER}/golden_outputs.bin"] = b"".join(
        _little(golden.output) for golden in contents.goldens
    )
    return found


def _answered(contents: Contents) -> tuple[Golden, ...]:
    """Returns the goldens with the answers of LiteRT's reference kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=contents.model, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    here = interpreter.get_input_details()[0]["index"]
    there = interpreter.get_output_details()[0]["index"]
    found = []
    for golden in contents.goldens:
        interpreter.set_tensor(here, golden.input)
        interpreter.invoke()
        found.append(replace(golden, output=interpreter.get_tensor(there)[0]))
    return tuple(found)


def _refuse(contents: Contents) -> None:
    """Refuses what TensorFlow Lite Micro does not run, or what these sources do not fit."""
    artifact, model_input, output = contents.artifact, contents.input, contents.output
    found = f"{contents.model_name}: {artifact.format}, {artifact.variant}"
    if artifact.format != "tflite" or artifact.variant not in ("int8", "float32"):
        raise SpecError(
            f"{found}, in a package for microcontrollers",
            "an int8 or float32 .tflite file: TensorFlow Lite Micro reads no other format and has "
            "no kernels for float16, dynamic-range or int16x8 files",
            "package the file of a target that runs TensorFlow Lite Micro, such as cortex-m7",
        )
    if {model_input.dtype, output.dtype} - _C_TYPES.keys():
        raise SpecError(
            f"{found}, with {model_input.dtype} input and {output.dtype} output",
            "int8 or float32 at both ends",
            'export it with io = "int8" or "float32"',
        )
    preprocess = contents.preprocess
    shape = (1, preprocess.height_px, preprocess.width_px, preprocess.input_channels)
    classes = len(contents.class_names)
    if model_input.shape != shape or output.shape != (1, classes):
        raise SpecError(
            f"{found}, input of shape {model_input.shape}, output of shape {output.shape}",
            f"one picture a call: {shape} and {(1, classes)}",
            "export it with batch one for these classes",
        )
    missing = sorted(artifact.operators.keys() - ADD_METHODS.keys())
    if missing:
        names = ", ".join(printable(name) for name in missing)
        raise SpecError(
            f"{found}, with the operator {names}",
            "operators that TensorFlow Lite Micro's MicroMutableOpResolver can add",
            "export the model without it, or package it for another runtime",
        )


def _filled(path: Path, values: Mapping[str, str]) -> bytes:
    """Returns a template with every placeholder replaced, in one pass: values stay as they are."""
    text = path.read_text(encoding="utf-8")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text).encode()


def _plain_values(contents: Contents) -> dict[str, str]:
    preprocess = contents.preprocess
    names = [name.encode() for name in contents.class_names]
    lines = b"".join(name + b"\n" for name in names)
    return {
        "NAME": contents.name,
        "UPPER": contents.name.upper(),
        "MODEL_SIZE": str(len(contents.model)),
        "MODEL_SHA256": hashlib.sha256(contents.model).hexdigest(),
        "MODEL_BYTES": _byte_lines(contents.model),
        "MODEL_CRC": f"{zlib.crc32(contents.model):#010x}",
        "HEIGHT": str(preprocess.height_px),
        "WIDTH": str(preprocess.width_px),
        "CLASSES": str(len(names)),
        "LABELS": ",\n".join(f'  "{_escaped(name)}"' for name in names) + ",",
        "LABELS_CRC": f"{zlib.crc32(lines):#010x}",
    }


def _escaped(text: bytes) -> str:
    """Returns bytes as the inside of a string literal of C."""
    return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in text)


def _byte_lines(content: bytes, per_line: int = 16) -> str:
    """Returns bytes as the inside of an array of C, a line for every 16 of them."""
    return "\n".join(
        "  " + "".join(f"0x{byte:02x}," for byte in content[start : start + per_line])
        for start in range(0, len(content), per_line)
    )


def _operators(contents: Contents) -> dict[str, str]:
    names = sorted(contents.artifact.operators)
    added = [f"resolver.{ADD_METHODS[name]}() == kTfLiteOk" for name in names]
    return {
        "OPERATORS": ", ".join(names),
        "OPERATOR_COUNT": str(len(names)),
        "ADD_OPERATORS": " &&\n         ".join(added),
    }


def _arena(contents: Contents) -> dict[str, str]:
    measured = contents.arena_bytes
    if measured is not None:
        # In integers, so that every machine rounds alike.
        wanted = -(-measured * (100 + ARENA_MARGIN_PERCENT) // 100)
        comment = (
            f"Memory for activations: {measured} bytes, measured with the reference kernels of\n"
            f"TensorFlow Lite Micro on a computer, and {ARENA_MARGIN_PERCENT} % for the kernels of"
            " the device."
        )
        words = f"{measured} bytes were measured on a computer; {ARENA_MARGIN_PERCENT} % are added."
    else:
        wanted = contents.target.budget.memory_bytes or GUESSED_ARENA_BYTES
        origin = (
            "the memory budget of the target" if contents.target.budget.memory_bytes else "a guess"
        )
        comment = (
            f"Memory for activations: UNKNOWN, nobody measured it. This is {origin}; the\n"
            "self-check prints what the device really uses."
        )
        words = f"It is **unknown**, nobody measured it: the number there is {origin}."
    rounded = -(-wanted // ARENA_ALIGNMENT_BYTES) * ARENA_ALIGNMENT_BYTES
    return {
        "ARENA_BYTES": str(rounded),
        "ARENA_COMMENT": "\n".join(f"// {line}" for line in comment.splitlines()),
        "ARENA_WORDS": words,
    }


def _acceptance(contents: Contents) -> dict[str, str]:
    """Returns the score above which an answer counts, in the model's own outputs."""
    threshold, output = contents.score_threshold, contents.output
    if threshold is None:
        return {"THRESHOLD": "", "ACCEPTS": "1", "USE_THRESHOLD": ""}
    name = f"{contents.name.upper()}_SCORE_THRESHOLD"
    if output.scale is not None:
        # It lies half a step above a code.
        threshold = threshold / output.scale + (output.zero_point or 0)
    literal = _number(np.float32(threshold))
    return {
        "THRESHOLD": "\n// An answer counts if the highest output is above this; few pictures of no"
        f" class get one.\n#define {name} {literal}\n",
        "ACCEPTS": f"score > {name}",
        "USE_THRESHOLD": f"  if (!(scores[best] > {name})) return nullptr;  // of no class\n",
    }


def _preprocessing(contents: Contents, codes: npt.NDArray[np.generic]) -> dict[str, str]:
    """Returns the body of preprocess.c: a subtraction where that is all, or else a table."""
    preprocess = contents.preprocess
    dtype = contents.input.dtype
    kind = _C_TYPES[dtype]
    shifted = np.arange(256)[:, None] - 128
    if dtype == "int8" and np.array_equal(codes, np.broadcast_to(shifted, codes.shape)):
        body = [
            f"static {kind} code_of(uint8_t pixel, int channel) {{",
            "  (void)channel;",
            f"  return ({kind})((int)pixel - 128);",
            "}",
        ]
        words = "pixel - 128"
    else:
        body = [
            "// What each value of a pixel becomes in each channel of the tensor.",
            f"static const {kind} codes[256][3] = {{",
            *(f"  {{{', '.join(_number(value) for value in row)}}}," for row in codes),
            "};",
            "",
            f"static {kind} code_of(uint8_t pixel, int channel) {{",
            "  return codes[pixel][channel];",
            "}",
        ]
        words = "a table of 256 x 3 values, no arithmetic"
    resize = f"{preprocess.resize}, antialiased" if preprocess.resize != "nearest" else "nearest"
    crop = {
        "none": "the whole picture",
        "center": "the largest centred part",
        "letterbox": "the whole picture to fit inside, centred, the rest red, green and blue "
        f"{preprocess.fill}",
    }[preprocess.crop]
    takes = {"rgb": (0, 1, 2), "bgr": (2, 1, 0), "grey": (0,)}[preprocess.channels]
    fed = "\n".join(
        f"    input[{channel}] = code_of(pixels[{place}], {channel});"
        for channel, place in enumerate(takes)
    )
    return {
        "INPUT_TYPE": kind,
        "OUTPUT_TYPE": _C_TYPES[contents.output.dtype],
        "INPUT_TFLITE": _TFLITE_TYPES[dtype],
        "OUTPUT_TFLITE": _TFLITE_TYPES[contents.output.dtype],
        "INPUT_FIELD": _FIELDS[dtype],
        "OUTPUT_FIELD": _FIELDS[contents.output.dtype],
        "CODE_OF_PIXEL": "\n".join(body),
        "PREPROCESS_WORDS": words,
        "RESIZE_WORDS": f"{crop}, {resize}",
        "FED": fed,
        "CHANNELS": str(len(takes)),
        "PIXEL": _PIXEL[len(takes)],
    }


def _number(value: np.generic) -> str:
    """Returns a literal of C that has exactly this value."""
    if isinstance(value, np.floating):
        return f"{np.format_float_scientific(value, unique=True, trim='0')}f"
    return str(int(value))


def _pixels_of(golden: Golden, codes: npt.NDArray[np.generic], contents: Contents) -> bytes | None:
    """Returns the bytes of each pixel that give a golden's input; None if none do."""
    channels = contents.preprocess.input_channels
    tensor = golden.input.reshape(-1, channels)
    pixels = np.empty(tensor.shape, np.uint8)
    for channel in range(channels):
        values, pixel_of = np.unique(codes[:, channel], return_index=True)
        place = np.clip(np.searchsorted(values, tensor[:, channel]), 0, len(values) - 1)
        if not np.array_equal(values[place], tensor[:, channel]):
            return None
        pixels[:, channel] = pixel_of[place]
    return (pixels[:, ::-1] if contents.preprocess.channels == "bgr" else pixels).tobytes()


def _golden_sources(contents: Contents, pixels: list[bytes | None]) -> dict[str, str]:
    goldens = contents.goldens
    listed = [
        f'  {{"{golden.name}", {golden.answer}, {_accepted(golden)}, '
        f"{'false' if picture is None else 'true'}}},"
        for golden, picture in zip(goldens, pixels, strict=True)
    ]
    # What goes into golden_data.cc, and so into the flash of a program that checks itself: two,
    # with pixels if there are such, as they check both levels; one of a class, one of none.
    first, *rest = sorted(zip(goldens, pixels, strict=True), key=lambda pair: pair[1] is None)
    embedded = [first]
    if rest:
        embedded.append(next((p for p in rest if p[0].accepted != first[0].accepted), rest[0]))
    arrays, entries, size = [], [], 0
    for golden, picture in embedded:
        parts = {"input": _little(golden.input), "output": _little(golden.output)}
        if picture is not None:
            parts["pixels"] = picture
        arrays += [_array(f"k_{golden.name}_{part}", content) for part, content in parts.items()]
        size += sum(map(len, parts.values()))
        shown = ", ".join(f"k_{golden.name}_{part}" for part in parts)
        missing = ", nullptr" if picture is None else ""
        about = f'"{golden.name}", {golden.answer}, {_accepted(golden)}'
        entries.append(f"    {{{about}, {shown}{missing}}},")
    output = contents.output.dtype
    return {
        "LISTED": "\n".join(listed),
        "EMBEDDED_ARRAYS": "\n\n".join(arrays),
        "EMBEDDED_GOLDENS": "\n".join(entries),
        "EMBEDDED_BYTES": str(size),
        "PIXEL_BYTES": str(goldens[0].input.size),
        "INPUT_BYTES": str(goldens[0].input.nbytes),
        "OUTPUT_BYTES": str(goldens[0].output.nbytes),
        "TOLERANCE_STEPS": str(TOLERANCE_STEPS),
        "TOLERANCE_SHARE": f"{TOLERANCE_SHARE!r}f",
        "TOLERANCE_WORDS": f"up to {TOLERANCE_STEPS} step of the output's scale"
        if output == "int8"
        else f"up to {TOLERANCE_SHARE:g} of the largest output",
    }


def _accepted(golden: Golden) -> str:
    """Returns whether an answer counts as C has it: 1, 0, or -1 where it is not checked."""
    return "-1" if golden.accepted is None else str(int(golden.accepted))


def _array(name: str, content: bytes) -> str:
    return f"constexpr uint8_t {name}[] = {{\n{_byte_lines(content)}\n}};"


def _little(array: npt.NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
