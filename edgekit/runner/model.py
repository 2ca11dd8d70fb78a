"""What every runtime offers the runner: a loaded classifier that answers one picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .refusal import Refusal

Array = npt.NDArray[np.generic]
AGAIN = "export it again"
_SHOWN_CHARACTERS = 500
# What onnxruntime and LiteRT put in front of a cause: a code, and the C++ function with its file.
_IN_FRONT = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"^/\S+:\d+ [^()]*\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^]]*\])? "),
)
# Causes that runtimes name in their own words, with what would be taken and what to do about them;
# numbered braces stand for what was found in the words.
_CAUSES = (
    (
        r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
        "an ir_version of at most {1}",
        "export with ir_version at most {1}: set model.ir_version = {1} before onnx.save, or "
        "install a newer onnxruntime",
    ),
    (
        r"Opset (\d+) is under development.* for domain (\S+) is till opset (\d+)",
        "an opset of {1} of at most {2}, not {0}",
        "export with opset at most {2} (torch.onnx.export, tf2onnx: opset), or convert it with "
        "onnx.version_converter.convert_version(model, {2}); or install a newer onnxruntime",
    ),
    (
        r"Fatal error: (\S+?)\(\S*\) is not a registered function/op",
        "operators that a stock onnxruntime has; {0} is none",
        "export without it, in ONNX's own operators",
    ),
    (
        r"No Op registered for (\S+) with domain_version of (\d+)",
        "operators of ONNX; opset {1} has no {0}",
        "export with the opset that has it, or in other operators",
    ),
    (
        r"Could not find an implementation for (\S+?)\(\d+\) node",
        "operators and types that onnxruntime computes on a CPU; this {0} is none",
        "export with another element type (float32), or with another opset",
    ),
    (
        r"must be topologically sorted",
        "nodes of a subgraph in the order in which they are computed",
        "sort the nodes of every subgraph (onnx_graphsurgeon: import_onnx, cleanup, toposort) and "
        "save it again",
    ),
    (
        r"Didn't find op for builtin opcode '(\w+)' version '(\d+)'",
        "versions of operators that this LiteRT has; version {1} of {0} is none",
        "export with an older converter, or install a newer ai-edge-litert",
    ),
    (
        r"Model provided has model identifier|schema version (\d+) not equal to supported version",
        "a file of TFLite's schema version 3",
        "export with a current converter",
    ),
)
# What onnxruntime and the C++ library say.
_SHORTAGES = ("Failed to allocate memory", "std::bad_alloc", "bad allocation")


@dataclass(frozen=True)
class Request:
    """What a runtime is asked to open.

    Args:
        content: The whole file; its digest was checked.
        path: Where it came from, for messages.
        threads: Threads for one call.
        delegate: "default", "none", or the name of what computes in place of the runtime's own
            kernels.
        output: Position of the output that is read.
    """

    content: bytes
    path: str
    threads: int = 1
    delegate: str = "default"
    output: int = 0


@dataclass(frozen=True)
class Model:
    """A loaded classifier.

    Args:
        input_dtype: Dtype of its one input.
        input_shape: Its shape, such as `(1, height, width, 3)`; the batch may be -1.
        output_dtype: Dtype of the output that is read.
        classes: Size of the last dimension of the output.
        version: Runtime with its version and options, such as "LiteRT 2.3.0".
        run: Takes one tensor of the input's shape with a batch of 1, returns the raw scores of
            shape `(classes,)`; the answer survives the next call.
    """

    input_dtype: str
    input_shape: tuple[int, ...]
    output_dtype: str
    classes: int
    version: str
    run: Callable[[Array], Array]


def refused(request: Request, runtime: str, error: Exception) -> Refusal:
    """Returns the refusal of a runtime that does not take a file.

    Raises:
        MemoryError: If that is because there is no memory left.
    """
    _raise_shortage(error)
    said = " ".join(str(error).split())
    expected, remedy = f"a model that {runtime} can load", AGAIN
    for words, wanted, to_do in _CAUSES:
        cause = re.search(words, said)
        if cause is not None:
            said = said[cause.start() :]
            expected, remedy = wanted.format(*cause.groups()), to_do.format(*cause.groups())
            break
    return Refusal(
        "IntegrityError",
        f"{request.path}: {runtime} refuses it ({_short(said)})",
        expected,
        remedy,
    )


def stopped(request: Request, runtime: str, error: Exception) -> Refusal:
    """Returns the refusal of a runtime that stopped while it ran a file; as `refused`."""
    _raise_shortage(error)
    return Refusal(
        "DeviceError",
        f"{request.path}: {runtime} stopped while running it ({_short(str(error))})",
        "an answer to every picture",
        "check the model with the converter that made it",
    )


def missing(runtime: str, package: str, error: Exception) -> Refusal:
    """Returns the refusal of a device without the wheel of a runtime."""
    return Refusal(
        "DeviceError",
        f"{runtime} is not there ({_short(str(error))})",
        f"a Python with the package {package}",
        f"install it there: pip install {package}",
    )


def _raise_shortage(error: Exception) -> None:
    """Raises MemoryError where a runtime says in its own words that there is no memory left."""
    if any(words in str(error) for words in _SHORTAGES):
        raise MemoryError from error


def _short(said: str) -> str:
    """Returns what a runtime said, from the cause on; of a long text the middle is left out."""
    line = " ".join(said.split()) or "without a word; it may need more memory than it gets"
    for pattern in _IN_FRONT:
        line = pattern.sub("", line)
    if len(line) <= _SHOWN_CHARACTERS:
        return line
    return f"{line[: _SHOWN_CHARACTERS // 2]} ... {line[-_SHOWN_CHARACTERS // 2 :]}"
