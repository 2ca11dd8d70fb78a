"""Runs .tflite files on LiteRT's CPU interpreter. Runtime layer."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgekit.errors import DeviceError, IntegrityError
from edgekit.records import TensorInfo
from edgekit.runtimes.base import Session, printable

Untyped: TypeAlias = Any  # the library has no type hints


def open_litert(
    content: bytes, model_input: TensorInfo, output: TensorInfo, threads: int, path: str
) -> Session:
    """Returns a session on LiteRT with its default delegate, XNNPACK.

    Args:
        content: The whole file, already inspected.
        model_input: Its input, as inspected.
        output: Its output, as inspected.
        threads: Threads that the interpreter may use.
        path: Where the file came from, for messages.

    Raises:
        IntegrityError: If LiteRT refuses the file.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=content, num_threads=threads)
        index = interpreter.get_input_details()[0]["index"]
        if model_input.shape[0] == -1:
            interpreter.resize_tensor_input(index, [1, *model_input.shape[1:]])
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as err:
        found = f"{path}: LiteRT refuses it ({printable(str(err))})"
        raise IntegrityError(found, "a model that LiteRT can load", "export it again") from err
    return Session(
        input=model_input,
        output=output,
        version=f"LiteRT {version('ai-edge-litert')}",
        run=_runner(interpreter, index, path),
    )


def _runner(
    interpreter: Untyped,
    index: int,
    path: str,
) -> Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]:
    """Returns the call that answers one image."""
    answer_index = interpreter.get_output_details()[0]["index"]

    def run(batch_of_one: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        try:
            interpreter.set_tensor(index, batch_of_one)
            interpreter.invoke()
            # get_tensor copies, so the answer survives the next call.
            return np.asarray(interpreter.get_tensor(answer_index)).reshape(-1)
        except (ValueError, RuntimeError) as err:
            found = f"{path}: LiteRT stopped while running it ({printable(str(err))})"
            raise DeviceError(
                found,
                "an answer to every image",
                "check the model with the converter that made it",
            ) from err

    return run
