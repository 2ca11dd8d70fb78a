"""Runs .onnx files on onnxruntime's CPU provider. Runtime layer."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgekit.errors import DeviceError, IntegrityError
from edgekit.records import TensorInfo
from edgekit.runtimes.base import Session, printable

Untyped: TypeAlias = Any  # the library has no type hints

# On x86 without VNNI onnxruntime multiplies uint8 by int8 in 16 bits, which overflow: answers are
# wrong, not rounded. With this option such a processor takes slower, exact kernels; on others it
# changes nothing. Source: onnxruntime_session_options_config_keys.h, and pull request 12088.
EXACT = ("session.x64quantprecision", "1")
ERRORS_ONLY = 3  # onnxruntime's severity scale: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


def open_onnxruntime(
    content: bytes, model_input: TensorInfo, output: TensorInfo, threads: int, path: str
) -> Session:
    """Returns a session on onnxruntime: CPU provider, operators in sequence, all optimizations.

    Its int8 arithmetic is exact on every processor, which onnxruntime's default is not (`EXACT`).

    Args:
        content: The whole file, already inspected; onnxruntime gets no path to resolve data from.
        model_input: Its input, as inspected.
        output: Its output, as inspected.
        threads: Threads that one operator may use.
        path: Where the file came from, for messages.

    Raises:
        IntegrityError: If onnxruntime refuses the file.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry(*EXACT)
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _refusals() as err:
        found = f"{path}: onnxruntime refuses it ({printable(str(err))})"
        raise IntegrityError(
            found,
            "a model that onnxruntime can load",
            "export it again",
        ) from err
    return Session(
        input=model_input,
        output=output,
        version=f"onnxruntime {version('onnxruntime')}, {'='.join(EXACT)}",
        run=_runner(session, model_input.name, path),
    )


def _refusals() -> tuple[type[Exception], ...]:
    """Returns what onnxruntime raises; its own exceptions share no base but `Exception`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel")
    more = ("NotImplemented", "RuntimeException", "EPFail", "NoSuchFile", "EngineError")
    own = tuple(getattr(state, name) for name in (*names, *more))
    return (*own, ValueError, RuntimeError)


def _runner(
    session: Untyped,
    name: str,
    path: str,
) -> Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]:
    """Returns the call that answers one image."""
    refusals = _refusals()

    def run(batch_of_one: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        try:
            return np.asarray(session.run(None, {name: batch_of_one})[0]).reshape(-1)
        except refusals as err:
            found = f"{path}: onnxruntime stopped while running it ({printable(str(err))})"
            raise DeviceError(
                found,
                "an answer to every image",
                "check the model with the exporter that made it",
            ) from err

    return run
