"""Runtimes: open an exported file and answer one image. Each library is loaded when it is used."""

import hashlib
from pathlib import Path

from edgekit.errors import IntegrityError, SpecError
from edgekit.runtimes.base import (
    RUNTIME_OF_FORMAT,
    ModelFacts,
    RuntimeName,
    Session,
    classifier_io,
)
from edgekit.runtimes.inspect import inspect_content, inspect_model, model_format, read_model

__all__ = [
    "RUNTIME_OF_FORMAT",
    "ModelFacts",
    "RuntimeName",
    "Session",
    "check_digest",
    "classifier_io",
    "inspect_model",
    "open_model",
]


def open_model(
    path: Path, runtime: RuntimeName, threads: int, sha256: str | None = None
) -> Session:
    """Opens an image classifier.

    The file is read once: the bytes that are hashed and inspected are the bytes that run.

    Args:
        path: A .tflite, .onnx or .ort file.
        runtime: Who runs it: "litert" for .tflite, "onnxruntime" for .onnx and .ort.
        threads: Threads for one call, at least 1.
        sha256: Digest that the file must have, in hex. Defaults to None: not checked.

    Raises:
        SpecError: If the file cannot be read or the runtime does not run its format.
        IntegrityError: If the digest differs, or the file is damaged, untrusted, no image
            classifier, or refused by the runtime.
    """
    file_format = model_format(path)
    if RUNTIME_OF_FORMAT[file_format] != runtime:
        found = f"{path}: a {file_format} file for the runtime {runtime}"
        raise SpecError(
            found,
            f"{RUNTIME_OF_FORMAT[file_format]} for .{file_format} files",
            "choose the exported file that fits the runtime",
        )
    content = read_model(path)
    if sha256 is not None:
        check_digest(content, sha256, path)
    model_input, output = classifier_io(inspect_content(content, file_format, str(path)), str(path))
    if runtime == "litert":
        from edgekit.runtimes.litert import open_litert

        return open_litert(content, model_input, output, threads, str(path))
    from edgekit.runtimes.onnx_runtime import open_onnxruntime

    return open_onnxruntime(content, model_input, output, threads, str(path))


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
