"""The share of right answers of a model file, by its runtime alone; nothing of edgekit is used.

Run as `python -P campaign/answers.py MODEL DATA LABELS SCALE OFFSET`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float64]
# What answers an input, and its height and width.
Program = tuple[Callable[[Floats], Floats], tuple[int, int]]


def main(arguments: list[str]) -> None:
    """Prints the share of pictures whose highest score is that of their folder's name.

    Args:
        arguments: The file, a folder of pictures in folders named as their class, the names of the
            outputs, one a line, and what makes an input of a pixel.
    """
    model, data, labels, scale, offset = arguments
    run, (height, width) = _tflite(model) if model.endswith(".tflite") else _onnx(model)
    names = Path(labels).read_text().splitlines()
    answers = []
    for path in sorted(Path(data).glob("*/*")):
        picture = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, np.float64)
        scores = run(pixels * float(scale) + float(offset))
        answers.append(names[int(np.argmax(scores))] == path.parent.name)
    sys.stdout.write(f"{np.mean(answers)}\n")


def _codes(real: Floats, scale: float, zero_point: float, dtype: Any) -> npt.NDArray[Any]:
    """Returns an input as the file wants it; its scale is 0 where it is not quantized."""
    if np.dtype(dtype).kind == "f":
        return real.astype(dtype)
    limits = np.iinfo(dtype)
    codes = np.round(real / scale) + zero_point
    return np.clip(codes, limits.min, limits.max).astype(dtype)


def _tflite(path: str) -> Program:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    (entering,), (leaving,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(real: Floats) -> Floats:
        codes = _codes(real, *entering["quantization"], entering["dtype"])
        interpreter.set_tensor(entering["index"], codes[None])
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(leaving["index"])[0], np.float64).reshape(-1)

    return run, tuple(entering["shape"][1:3])


def _onnx(path: str) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entering,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}

    def run(real: Floats) -> Floats:
        # The tiny integer file's own scale; an .onnx file does not tell it in one place.
        codes = _codes(real, 1 / 128, 128.0, dtype[entering.type])
        return np.asarray(session.run(None, {entering.name: codes[None]})[0][0], np.float64)

    return run, tuple(entering.shape[1:3])


if __name__ == "__main__":
    main(sys.argv[1:])
