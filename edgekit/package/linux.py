"""Package for Linux boards: one Python module, and a small C++17 library for TFLite files.

Package layer. The Python side preprocesses byte for byte as `edgekit.data.picture` does.
"""

import hashlib
import json
from collections.abc import Iterable
from importlib.resources import files as resources

import numpy as np

from edgekit.package.contents import TOLERANCE_STEPS, Contents
from edgekit.package.goldens import tolerance_share
from edgekit.records import input_codes

# From the versions that ran on Python 3.9 up to the major version of those that ran on Python 3.11.
_RUNTIMES = {
    "tflite": "ai-edge-litert>=2.1,<3",
    "onnx": "onnxruntime>=1.19,<2",
    "ort": "onnxruntime>=1.19,<2",
}
_REQUIREMENTS = (
    "numpy>=2.0,<3",
    # Pillow 13 resizes tall pictures in another order, so some pixels differ by a step before it.
    'pillow>=13.0,<14; python_version >= "3.11"',
    'pillow>=11.3,<13; python_version < "3.11"',
)
_CPP = ("CMakeLists.txt", "classifier.cpp", "classifier.h", "classify.cpp", "selfcheck.cpp")
_TENSOR_TYPES = {"float32": "kTfLiteFloat32", "uint8": "kTfLiteUInt8", "int8": "kTfLiteInt8"}
_CPP_TYPES = {"float32": "float", "uint8": "std::uint8_t", "int8": "std::int8_t"}


def files(contents: Contents) -> dict[str, bytes]:
    """Returns what the package of a Linux board adds to the bundle, by path.

    Args:
        contents: What the package is made from.

    Returns:
        Files below `linux/`: `python/`, a systemd unit and, for TFLite files, `cpp/`. Model,
        labels and goldens are read from the top of the bundle.
    """
    entries = "".join(f'    "{key}": {_literal(value)},\n' for key, value in _contract(contents))
    python = _template("python/classifier.py").replace("{}  # @@CONTRACT@@", f"{{\n{entries}}}")
    requirements = (_RUNTIMES[contents.artifact.format], *_REQUIREMENTS)
    is_tflite = contents.artifact.format == "tflite"
    found = {
        "README.md": _template("README.md")
        .replace("@@CPP@@", _template("cpp/README.md" if is_tflite else "no_cpp.md").strip())
        .replace("@@NAME@@", contents.name),
        f"{contents.name}-selfcheck.service": _template("selfcheck.service").replace(
            "@@NAME@@", contents.name
        ),
        "python/classifier.py": python,
        "python/classify.py": _template("python/classify.py"),
        "python/selfcheck.py": _template("python/selfcheck.py"),
        "python/requirements.txt": "".join(f"{line}\n" for line in requirements),
    }
    if is_tflite:
        found |= {f"cpp/{name}": _template(f"cpp/{name}") for name in _CPP}
        found["cpp/tflite_c.h"] = _template("cpp/tflite_c.h")
        found["cpp/contract.h"] = _header(contents)
    return {f"linux/{name}": text.encode() for name, text in found.items()}


def _template(name: str) -> str:
    folder = resources("edgekit.package") / "templates" / "linux"
    return folder.joinpath(*name.split("/")).read_text(encoding="utf-8")


def _quantization(contents: Contents) -> tuple[float | None, int | None]:
    """Returns scale and zero point of the input; a uint8 one without them takes the pixels."""
    asked = contents.input
    if asked.dtype == "uint8" and asked.scale is None:
        return 1.0, 0
    return asked.scale, asked.zero_point


def _gives_probabilities(contents: Contents) -> bool:
    return any(name.upper() == "SOFTMAX" for name in contents.artifact.operators)


def _labels_digest(contents: Contents) -> str:
    return hashlib.sha256("\n".join(contents.class_names).encode()).hexdigest()


def _literal(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _contract(contents: Contents) -> Iterable[tuple[str, object]]:
    scale, zero_point = _quantization(contents)
    output, preprocess = contents.output, contents.preprocess
    return {
        "model": contents.model_name,
        "format": contents.artifact.format,
        "sha256": hashlib.sha256(contents.model).hexdigest(),
        "labels_sha256": _labels_digest(contents),
        "classes": len(contents.class_names),
        "threads": contents.target.runtime.threads,
        "delegate": contents.target.runtime.delegate,
        **preprocess.model_dump(),
        "max_pixels": contents.max_pixels,
        "input_channels": preprocess.input_channels,
        "input_dtype": contents.input.dtype,
        "input_scale": scale,
        "input_zero_point": zero_point,
        "output_dtype": output.dtype,
        "output_scale": output.scale,
        "output_zero_point": output.zero_point if output.scale is not None else None,
        "gives_probabilities": _gives_probabilities(contents),
        "score_threshold": contents.score_threshold,
        "goldens": len(contents.goldens),
        "tolerance_steps": TOLERANCE_STEPS,
        "tolerance_share": tolerance_share(contents),
    }.items()


def _header(contents: Contents) -> str:
    """Returns the contract as C++ constants."""
    scale, zero_point = _quantization(contents)
    preprocess, output = contents.preprocess, contents.output
    codes = input_codes(preprocess, contents.input.dtype, scale, zero_point)
    rows = (f"    {{{', '.join(_number(value) for value in row)}}},\n" for row in codes)
    unit = [(scale or 1.0) / abs(channel) for channel in preprocess.scale]
    values = {
        "MODEL": json.dumps(contents.model_name),
        "SHA256": json.dumps(hashlib.sha256(contents.model).hexdigest()),
        "LABELS_SHA256": json.dumps(_labels_digest(contents)),
        "HEIGHT": str(preprocess.height_px),
        "WIDTH": str(preprocess.width_px),
        "CLASSES": str(len(contents.class_names)),
        "THREADS": str(contents.target.runtime.threads),
        "XNNPACK": _boolean(contents.target.runtime.delegate != "none"),
        "FILTER": f"Filter::{preprocess.resize}",
        "MAX_PIXELS": str(contents.max_pixels),
        "CROP": preprocess.crop,
        "FILL": ", ".join(map(str, preprocess.ground)),
        "BGR": _boolean(preprocess.channels == "bgr"),
        "CHANNELS": str(preprocess.input_channels),
        "INPUT": _CPP_TYPES[contents.input.dtype],
        "INPUT_TYPE": _TENSOR_TYPES[contents.input.dtype],
        "OUTPUT": _CPP_TYPES[output.dtype],
        "OUTPUT_TYPE": _TENSOR_TYPES[output.dtype],
        "OUTPUT_SCALE": repr(1.0 if output.scale is None else output.scale),
        "OUTPUT_ZERO_POINT": str(output.zero_point or 0 if output.scale is not None else 0),
        "GIVES_PROBABILITIES": _boolean(_gives_probabilities(contents)),
        "SCORE_THRESHOLD": "-std::numeric_limits<double>::infinity()"
        if contents.score_threshold is None
        else repr(contents.score_threshold),
        "PIXEL_UNIT": ", ".join(repr(value) for value in unit),
        "TOLERANCE_STEPS": str(TOLERANCE_STEPS),
        "TOLERANCE_SHARE": repr(tolerance_share(contents)),
        "CODES": "".join(rows),
        "GOLDEN_COUNT": str(len(contents.goldens)),
        "GOLDENS": "".join(
            f"    {{{json.dumps(golden.name)}, {_boolean(golden.picture is not None)}, "
            f"{golden.answer}, {-1 if golden.accepted is None else int(golden.accepted)}}},\n"
            for golden in contents.goldens
        ),
    }
    text = _template("cpp/contract.h.in")
    for key, value in values.items():
        text = text.replace(f"@@{key}@@", value)
    return text


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _number(value: np.generic) -> str:
    """Returns a code as a C++ literal that is exactly this number."""
    if not isinstance(value, np.floating):
        return str(int(value))
    text = str(value)  # the shortest that reads back as this float32
    return f"{text}F" if "." in text or "e" in text else f"{text}.0F"
