"""What every runtime offers the runner: a loaded classifier that answers one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .refusal import Refusal

Array = npt.NDArray[np.generic]
_SHOWN_CHARACTERS = 250
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
    """

    content: bytes
    path: str
    threads: int = 1
    delegate: str = "default"


@dataclass(frozen=True)
class Model:
    """A loaded classifier.

    Args:
        input_dtype: Dtype of its one input.
        input_shape: Its shape `(1, height, width, 3)`; the batch may be -1.
        output_dtype: Dtype of its one output.
        classes: Size of the last dimension of the output.
        version: Runtime with its version and options, such as "LiteRT 2.3.0".
        run: Takes one tensor of shape `(1, height, width, 3)`, returns the raw scores of shape
            `(classes,)`; the answer survives the next call.
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
    return Refusal(
        "IntegrityError",
        f"{request.path}: {runtime} refuses it ({_short(error)})",
        f"a model that {runtime} can load",
        "export it again",
    )


def stopped(request: Request, runtime: str, error: Exception) -> Refusal:
    """Returns the refusal of a runtime that stopped while it ran a file; as `refused`."""
    _raise_shortage(error)
    return Refusal(
        "DeviceError",
        f"{request.path}: {runtime} stopped while running it ({_short(error)})",
        "an answer to every picture",
        "check the model with the converter that made it",
    )


def missing(runtime: str, package: str, error: Exception) -> Refusal:
    """Returns the refusal of a device without the wheel of a runtime."""
    return Refusal(
        "DeviceError",
        f"{runtime} is not there ({_short(error)})",
        f"a Python with the package {package}",
        f"install it there: pip install {package}",
    )


def _raise_shortage(error: Exception) -> None:
    """Raises MemoryError where a runtime says in its own words that there is no memory left."""
    if any(words in str(error) for words in _SHORTAGES):
        raise MemoryError from error


def _short(error: Exception) -> str:
    """Returns what a runtime said; of a long text the middle is left out, the cause stands last."""
    line = " ".join(str(error).split()) or "without a word; it may need more memory than it gets"
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:60]} ... {line[-180:]}"
