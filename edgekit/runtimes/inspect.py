"""Reads what a model file says about itself, without running it. Runtime layer."""

from pathlib import Path

from edgekit import limits
from edgekit.errors import IntegrityError, SpecError
from edgekit.records import Format
from edgekit.runtimes.base import ModelFacts

FORMAT_OF_SUFFIX: dict[str, Format] = {
    ".tflite": "tflite",
    ".onnx": "onnx",
    ".ort": "ort",
}


def model_format(path: Path) -> Format:
    """Returns the format that a file name claims.

    Raises:
        SpecError: If the suffix is none of .tflite, .onnx and .ort.
    """
    file_format = FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if file_format is None:
        found = f"{path}: file name ends in {path.suffix!r}"
        raise SpecError(
            found,
            "a model named *.tflite, *.onnx or *.ort",
            "give the exported file, or rename it to what it is",
        )
    return file_format


def read_model(path: Path) -> bytes:
    """Returns the bytes of a model file.

    Raises:
        SpecError: If the file is not there, is no file, or cannot be read.
        IntegrityError: If it has more than `limits.MODEL_FILE_BYTES`.
    """
    try:
        if not path.is_file() and path.exists():  # a device or a pipe may never end
            raise SpecError(
                f"{path}: not a file", "a model file", "give the path of the exported file"
            )
        size = path.stat().st_size
        content = path.read_bytes() if size <= limits.MODEL_FILE_BYTES else b""
    except OSError as err:
        reason = err.strerror or type(err).__name__
        found = f"{path}: {reason}"
        raise SpecError(
            found, "a model file that can be read", "check the path and its rights"
        ) from err
    if size > limits.MODEL_FILE_BYTES:
        raise IntegrityError(
            f"{path}: a file of {size:,} bytes",
            f"a model file of at most {limits.MODEL_FILE_BYTES:,} bytes",
            "do not use this file, or export a smaller model",
        )
    return content


def inspect_model(path: Path) -> ModelFacts:
    """Returns the facts of a .tflite, .onnx or .ort file without running it.

    Args:
        path: The file; its suffix says the format.

    Raises:
        SpecError: If the file cannot be read or its suffix is none of .tflite, .onnx and .ort.
        IntegrityError: If it is empty, damaged, of another format, has custom or Flex operators,
            or keeps data in other files.
    """
    return inspect_content(read_model(path), model_format(path), str(path))


def inspect_content(
    content: bytes, file_format: Format, path: str, *, doubtful: bool = False
) -> ModelFacts:
    """Returns the facts of a model that is already in memory; see `inspect_model`.

    Args:
        content: The whole file.
        file_format: What it claims to be.
        path: Where it came from, for messages.
        doubtful: Whether an ONNX file may be one that ONNX's checker refuses, because its runtime
            opens it or will be asked to; see `ModelFacts.doubt`. Defaults to False.

    Raises:
        IntegrityError: As `inspect_model`.
    """
    # Imported here, so that one format's library is not loaded to read the other format.
    if file_format == "tflite":
        from edgekit.runtimes.tflite_file import read_tflite

        return read_tflite(content, path)
    if file_format == "ort":
        from edgekit.runtimes.ort_file import read_ort

        return read_ort(content, path)
    from edgekit.runtimes.onnx_file import AGAIN, read_onnx

    facts = read_onnx(content, path)
    if facts.doubt and not doubtful:
        found = f"{path}: damaged ONNX file ({facts.doubt})"
        raise IntegrityError(found, "a valid ONNX model", AGAIN)
    return facts
