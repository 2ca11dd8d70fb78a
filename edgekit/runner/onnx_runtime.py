"""Runs .onnx and .ort files on onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from .model import Array, Model, Request, missing, refused, stopped
from .refusal import Refusal

PACKAGE = "onnxruntime"
# On x86 without VNNI onnxruntime multiplies uint8 by int8 in 16 bits, which overflow: answers are
# wrong, not rounded. With this option it multiplies uint8 by uint8, exactly. Source:
# onnxruntime_session_options_config_keys.h, and pull request 12088. Both say that it does nothing
# with VNNI, whose default is exact; but it works on every x86 processor with AVX2
# (MlasPlatformU8S8Overflow in mlas/lib/platform.cpp), and with VNNI answers took 2.7 times as long.
# On other architectures it is not even read.
EXACT = ("session.x64quantprecision", "1")
_FASTEST = (EXACT[0], "0")
_CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni"}  # as Linux names them
ERRORS_ONLY = 3  # onnxruntime's severity scale: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal
CPU = "CPUExecutionProvider"
# Source: https://onnxruntime.ai/docs/execution-providers/ . Each is in other builds of it.
PROVIDERS = {
    "xnnpack": "XnnpackExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "qnn": "QNNExecutionProvider",
}
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}


def open_onnxruntime(request: Request) -> Model:
    """Returns the model on onnxruntime: operators in sequence, all optimizations.

    Its int8 arithmetic is exact on every processor, which onnxruntime's default is not.

    Raises:
        Refusal: If onnxruntime is not installed, lacks the execution provider or refuses the file.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise missing("onnxruntime", PACKAGE, error) from error
    providers = _providers(ort.get_available_providers(), request.delegate)
    options = ort.SessionOptions()
    options.intra_op_num_threads = request.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = ERRORS_ONLY
    arithmetic = exact_arithmetic()
    options.add_session_config_entry(*arithmetic)
    try:
        session = ort.InferenceSession(request.content, options, providers=providers)
    except _refusals() as error:
        raise refused(request, "onnxruntime", error) from error
    asked, answer = session.get_inputs()[0], session.get_outputs()[request.output]
    return Model(
        input_dtype=_DTYPES.get(asked.type, asked.type),
        input_shape=tuple(size if isinstance(size, int) else -1 for size in asked.shape),
        output_dtype=_DTYPES.get(answer.type, answer.type),
        classes=answer.shape[-1] if isinstance(answer.shape[-1], int) else -1,
        version=", ".join([f"onnxruntime {_version(ort)}", "=".join(arithmetic), *providers[:-1]]),
        run=_runner(session, asked.name, answer.name, request),
    )


def exact_arithmetic(cpuinfo: Path = _CPUINFO) -> tuple[str, str]:
    """Returns the session option with which int8 is exact on a processor, and fastest.

    Args:
        cpuinfo: What Linux says of the processor. Defaults to this one's; where there is none, the
            option that is exact on all of them is returned.
    """
    try:
        flags = set(cpuinfo.read_text(errors="replace").split())
    except OSError:
        return EXACT
    return _FASTEST if flags & _VNNI else EXACT


def _providers(available: list[str], delegate: str) -> list[str]:
    """Returns the execution providers in order, the CPU last.

    Raises:
        Refusal: If there is none of that name, or this onnxruntime was built without it.
    """
    if delegate in ("default", "none"):
        return [CPU]
    provider = PROVIDERS.get(delegate)
    if provider is None or provider not in available:
        raise Refusal(
            "DeviceError",
            f"delegate {delegate!r}: this onnxruntime has {', '.join(available)}",
            f"an onnxruntime built with {provider or 'it'}",
            "install such a build there, measure in an app on the device and import what it "
            'measured, or ask for the delegate "default"',
        )
    return [provider, CPU]


def _version(ort: Any) -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:  # builds with other providers have other package names
        return str(ort.__version__)


def _refusals() -> tuple[type[Exception], ...]:
    """Returns what onnxruntime raises; its own exceptions share no base but `Exception`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel")
    more = ("NotImplemented", "RuntimeException", "EPFail", "NoSuchFile", "EngineError")
    own = tuple(getattr(state, name) for name in (*names, *more) if hasattr(state, name))
    return (*own, ValueError, RuntimeError)


def _runner(session: Any, asked: str, answer: str, request: Request) -> Callable[[Array], Array]:
    """Returns the call that answers one picture."""
    refusals = _refusals()

    def run(picture: Array) -> Array:
        try:
            return np.asarray(session.run([answer], {asked: picture})[0]).reshape(-1)
        except refusals as error:
            raise stopped(request, "onnxruntime", error) from error

    return run
