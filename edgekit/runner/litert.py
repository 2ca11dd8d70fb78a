"""Runs .tflite files on LiteRT's CPU interpreter."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from .model import Array, Model, Request, missing, refused, stopped
from .refusal import Refusal

PACKAGE = "ai-edge-litert"
# "default" is what the interpreter does by itself: XNNPACK.
DELEGATES = ("default", "xnnpack", "none")


def open_litert(request: Request) -> Model:
    """Returns the model on LiteRT, with XNNPACK or, by the delegate "none", LiteRT's own kernels.

    Raises:
        Refusal: If LiteRT is not installed or refuses the file, or has no such delegate.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise missing("LiteRT", PACKAGE, error) from error
    if request.delegate not in DELEGATES:
        raise Refusal(
            "DeviceError",
            f"delegate {request.delegate!r} with LiteRT's Python interpreter",
            f"one of {', '.join(DELEGATES)}",
            "measure it in an app on the device, and import what it measured",
        )
    own = request.delegate == "none"
    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if own else OpResolverType.AUTO
    try:
        interpreter = Interpreter(
            model_content=request.content,
            num_threads=request.threads,
            experimental_op_resolver_type=kernels,
        )
        asked = interpreter.get_input_details()[0]
        shape = tuple(int(size) for size in asked["shape_signature"])
        if shape[0] == -1:
            interpreter.resize_tensor_input(asked["index"], [1, *shape[1:]])
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise refused(request, "LiteRT", error) from error
    answer = interpreter.get_output_details()[request.output]
    return Model(
        input_dtype=np.dtype(asked["dtype"]).name,
        input_shape=shape,
        output_dtype=np.dtype(answer["dtype"]).name,
        classes=int(answer["shape"][-1]),
        version=f"LiteRT {version(PACKAGE)}{', no XNNPACK' if own else ''}",
        run=_runner(interpreter, asked["index"], answer["index"], request),
    )


def _runner(
    interpreter: Any, asked: int, answer: int, request: Request
) -> Callable[[Array], Array]:
    """Returns the call that answers one picture."""

    def run(picture: Array) -> Array:
        try:
            interpreter.set_tensor(asked, picture)
            interpreter.invoke()
            # get_tensor copies, so the answer survives the next call.
            return np.asarray(interpreter.get_tensor(answer)).reshape(-1)
        except (ValueError, RuntimeError) as error:
            raise stopped(request, "LiteRT", error) from error

    return run
