"""Runtimes: which of them runs a file, and what the file says about itself without being run."""

import hashlib
from pathlib import Path

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import TensorInfo
from edgekit.runtimes.base import (
    RUNTIME_OF_FORMAT,
    ModelFacts,
    RuntimeName,
)
from edgekit.runtimes.ends import classifier_io
from edgekit.runtimes.inspect import inspect_content, inspect_model, model_format, read_model

__all__ = [
    "RUNTIME_OF_FORMAT",
    "ModelFacts",
    "RuntimeName",
    "check_digest",
    "classifier_io",
    "inspect_model",
    "read_ends",
]


def read_ends(
    path: Path, runtime: RuntimeName, sha256: str, output: int | None = None
) -> tuple[TensorInfo, TensorInfo]:
    """Returns input and output of the image classifier in a file, read without running it.

    Args:
        path: A .tflite, .onnx or .ort file.
        runtime: Who will run it: "litert" for .tflite, "onnxruntime" for .onnx and .ort.
        sha256: Digest that the file must have, in hex.
        output: As in `edgekit.runtimes.ends.classifier_io`. Defaults to None: the only one.

    Raises:
        SpecError: If the file cannot be read or the runtime does not run its format.
        IntegrityError: If the digest differs, or the file is damaged, untrusted or no image
            classifier.
    """
    file_format = model_format(path)
    if RUNTIME_OF_FORMAT[file_format] != runtime:
        found = f"{path}: {file_format} format, for the runtime {runtime}"
        raise SpecError(
            found,
            f"{RUNTIME_OF_FORMAT[file_format]} for .{file_format} files",
            "choose the exported file that fits the runtime",
        )
    content = read_model(path)
    check_digest(content, sha256, path)
    facts = inspect_content(content, file_format, str(path), doubtful=True)
    return classifier_io(facts, str(path), output)


def check_digest(content: bytes, sha256: str, path: Path) -> None:
    """Refuses bytes that are not the ones they should be.

    Raises:
        IntegrityError: If the SHA-256 of `content` is not `sha256`.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        found = f"{path}: SHA-256 {digest}"
        raise IntegrityError(
            found,
            f"SHA-256 {sha256}",
            "the file changed since it was exported; export it again, or copy it again",
        )
