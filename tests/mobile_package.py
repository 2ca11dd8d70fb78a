"""What the tests of the Android and the iOS package share: contents, and an app run on this host.

The app is its real sources, compiled by the real compiler, with a small driver in place of the
phone: it answers one JSON object a line. The network and the picture decoder, which a phone has, it
asks for in the same way, so that LiteRT and Pillow answer here.
"""

import base64
import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tiny_models import CLASSES, SIZE, Untyped, digest, mean_onnx, mean_tflite

from edgekit.data import picture as pictures
from edgekit.package.contents import Contents, Golden
from edgekit.records import Artifact, Preprocess, Status, TensorInfo, Verdict, input_codes
from edgekit.target import Target

HOSTILE = (
    "a \"quoted\" 'name' \\ $x ${y} \\(z) */ // /* <script>alert(1)</script>",
    "\u202e\u05e9\u05dc\u05d5\u05dd\u202c \U0001f469\u200d\U0001f52c e\u0301 \u0301x",
    '#"""# `rm` %s \\u0022 @@NAME@@',
)
TITLE = '*/ """ ${bad} \\(bad) <script> # `x` [a](b) @@NAME@@'


def missing(reason: str) -> None:
    """Skips the test for want of a program, but fails in CI, where .ci/compilers brings them."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def target_of(**changes: Any) -> Target:
    artifact = {"format": "tflite", "variant": "int8", "io": "uint8"}
    runtime = {"name": "litert", "threads": 2}
    artifact |= changes.get("artifact", {})
    runtime |= changes.get("runtime", {})
    return Target.model_validate(
        {
            "name": "phone",
            "description": "A phone.",
            "device": {"transport": "none", "description": "a phone"},
            "runtime": runtime,
            "artifact": artifact,
            "budget": {"size_bytes": 10**7},
        }
    )


def contents_of(folder: Path, dtype: str = "uint8", **changes: Any) -> Contents:
    """Returns contents around a classifier of the brightest colour, with pictures of all kinds."""
    preprocess = changes.get("preprocess", Preprocess(height_px=SIZE, width_px=SIZE))
    if dtype == "onnx":
        path = mean_onnx(folder / "model.onnx")
        ends: dict[str, Any] = {"dtype": "float32"}
        artifact = {"format": "onnx", "variant": "float32", "io": "float32"}
        runtime = {"name": "onnxruntime"}
    else:
        path = mean_tflite(folder / "model.tflite", dtype=dtype)
        zero = {"uint8": 128, "int8": 0, "float32": None}[dtype]
        ends = {"dtype": dtype, "zero_point": zero, "scale": None if zero is None else 1 / 128}
        variant = "float32" if dtype == "float32" else "int8"
        artifact = {"format": "tflite", "variant": variant, "io": dtype}
        runtime = {"name": "litert"}
    info = TensorInfo(name="image", shape=(1, SIZE, SIZE, 3), **ends)
    output = TensorInfo(name="scores", shape=(1, 3), **ends)
    model = path.read_bytes()
    target = target_of(artifact=artifact, runtime=runtime)
    values: dict[str, Any] = {
        "name": "fun_days",
        "title": "Colours",
        "licence": "MIT",
        "model": model,
        "model_name": path.name,
        "artifact": Artifact(
            **artifact,
            path=path.name,
            sha256=digest(path),
            size_bytes=len(model),
            inputs=(info,),
            outputs=(output,),
            operators={"MEAN": 1},
            float_tensors=(),
        ),
        "input": info,
        "output": output,
        "preprocess": preprocess,
        "class_names": CLASSES if dtype == "onnx" else CLASSES[::-1],
        "target": target,
        "verdict": Verdict(
            target=target.name,
            artifact_path=path.name,
            artifact_sha256=digest(path),
            checks=(),
            status=Status.PASS,
        ),
        "arena_bytes": None,
        "facts": {},
    }
    values |= {key: value for key, value in changes.items() if key != "goldens"}
    values["goldens"] = changes.get("goldens") or tuple(goldens_of(values))
    return Contents(**values)


def goldens_of(values: dict[str, Any]) -> list[Golden]:
    model, info, output = values["model"], values["input"], values["output"]
    run = network(model)
    table = input_codes(values["preprocess"], info.dtype, info.scale, info.zero_point)
    made: list[Golden] = []
    for colour, number, file in source_pictures():
        name, label = f"{colour}_{number:02d}", values["class_names"].index(colour)
        pixels = training_pixels(file, values["preprocess"])
        tensor = table[pixels, np.arange(3)][None]
        raw = np.frombuffer(run(tensor.tobytes()), output.dtype)
        suffix = Image.open(io.BytesIO(file)).format
        made.append(Golden(name, tensor, raw, label, file, f"{name}.{suffix}".lower()))
    grey = np.full(info.shape, table[90, 0], info.dtype)
    raw = np.frombuffer(run(grey.tobytes()), output.dtype)
    return [*made, Golden("grey", grey, raw, None, None, "")]


def grey_contents(folder: Path) -> tuple[Contents, Callable[[bytes], bytes]]:
    """Returns contents of a network that sees luma, and the network: the mean of each third."""
    contents = contents_of(folder)
    contract = contents.preprocess.model_copy(
        update={"channels": "grey", "crop": "letterbox", "fill": (7, 130, 250)}
    )
    info = contents.input.model_copy(update={"shape": (1, SIZE, SIZE, 1)})
    table = input_codes(contract, info.dtype, info.scale, info.zero_point)

    def run(tensor: bytes) -> bytes:
        rows = np.frombuffer(tensor, info.dtype).reshape(SIZE, SIZE)
        means = [part.mean() for part in np.array_split(rows, 3)]
        return np.array(means).round().astype(contents.output.dtype).tobytes()

    goldens = []
    for golden, (_, _, file) in zip(contents.goldens, source_pictures(), strict=False):
        tensor = table[training_pixels(file, contract)[..., :1], 0][None]
        raw = np.frombuffer(run(tensor.tobytes()), contents.output.dtype)
        goldens.append(replace(golden, input=tensor, output=raw))
    contents = replace(contents, preprocess=contract, input=info, goldens=tuple(goldens))
    return contents, run


def training_pixels(file: bytes, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Returns what the training side makes of a picture file."""
    return pictures.pixels(file, preprocess)


def source_pictures() -> list[tuple[str, int, bytes]]:
    """Returns colour, number and file of textured pictures of many sizes, formats and turns."""
    random = np.random.default_rng(5)
    made = []
    for number in range(9):
        label = number % 3
        height, width = 30 + 17 * number, 24 + 23 * number
        coarse = random.integers(0, 90, (5, 7, 3), dtype=np.uint8)
        coarse[1:3, :3, 2 - label] += 160  # CLASSES are blue, green, red
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        fine = np.asarray(image, np.int16) + random.integers(-40, 41, (height, width, 1))
        image = Image.fromarray(fine.clip(0, 255).astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = number % 8 + 1
        kind = ("JPEG", "PNG", "WEBP")[number // 3]
        buffer = io.BytesIO()
        image.save(buffer, kind, exif=exif, **({} if kind == "PNG" else {"quality": 95}))
        made.append((CLASSES[label], number, buffer.getvalue()))
    return made


def network(model: bytes) -> Callable[[bytes], bytes]:
    """Returns the file as the real runtime runs it here, from raw input to raw output."""
    if model[4:8] == b"TFL3":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=model)
        interpreter.allocate_tensors()
        ends = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

        def run(tensor: bytes) -> bytes:
            value = np.frombuffer(tensor, ends[0]["dtype"]).reshape(ends[0]["shape"])
            interpreter.set_tensor(ends[0]["index"], value)
            interpreter.invoke()
            return bytes(interpreter.get_tensor(ends[1]["index"]).tobytes())

        return run
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()

    def run_onnx(tensor: bytes) -> bytes:
        value = np.frombuffer(tensor, np.float32).reshape(entry.shape)
        return bytes(np.asarray(session.run(None, {entry.name: value})[0]).tobytes())

    return run_onnx


def write(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


class App:
    """The driver program of an app, running."""

    def __init__(self, command: list[str], **settings: Any) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings
        )
        self.run: Callable[[bytes], bytes] = lambda tensor: tensor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_args: object) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        if self.process.stdout:
            self.process.stdout.close()
        self.process.wait(60)

    def ask(self, do: str, **values: Any) -> Any:
        """Returns what the app answers; runs networks and decodes pictures for it meanwhile."""
        self._say({"do": do} | {k: _encoded(v) for k, v in values.items()})
        while True:
            message = self._hear()
            if "result" in message:
                return message["result"]
            self._say({k: _encoded(v) for k, v in self._served(message).items()})

    def _served(self, message: dict[str, Any]) -> dict[str, Any]:
        data = base64.b64decode(message["data"])
        if message["call"] == "run":
            return {"data": self.run(data)}
        image = Image.open(io.BytesIO(data))
        if message["call"] == "size":
            width, height = image.size
            return {"width": width, "height": height, "jpeg": image.format == "JPEG"}
        sample = message["sample"]
        if sample > 1:
            image.draft(None, (image.width // sample, image.height // sample))
        orientation = image.getexif().get(0x0112, 1)
        image = image.convert("RGBA")
        return {
            "width": image.width,
            "height": image.height,
            "data": image.tobytes(),
            "orientation": orientation,
        }

    def _say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def _hear(self) -> Untyped:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"the app ended with {self.process.wait(60)}"
        return json.loads(line)


def _encoded(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def fitted(app: App, rgba: npt.NDArray[np.uint8], **values: Any) -> npt.NDArray[np.uint8]:
    """Returns the pixels that the app makes of a decoded picture."""
    height, width = rgba.shape[:2]
    answer = app.ask("fit", width=width, height=height, rgba=rgba.tobytes(), **values)
    return np.frombuffer(base64.b64decode(answer), np.uint8)


def fits(resize: str, crop: str) -> Iterator[tuple[Preprocess, npt.NDArray[np.uint8]]]:
    """Yields contracts of many sizes, each with a picture to fit, uint8 of shape (h, w, 4)."""
    random = np.random.default_rng(3)
    for number in range(24):
        height, width = (int(n) for n in random.integers(16, 130, 2))
        to = tuple(int(n) for n in random.integers(1, 60, 2))
        if number == 0:
            to = (height, width)
        if number == 1:
            to = (height, width // 2)
        contract = Preprocess(
            height_px=to[0],
            width_px=to[1],
            resize=resize,  # type: ignore[arg-type]
            crop=crop,  # type: ignore[arg-type]
            channels=("rgb", "bgr", "grey")[number % 3],  # type: ignore[arg-type]
            fill=(7, 130, 250),
        )
        yield contract, random.integers(0, 256, (height, width, 4), dtype=np.uint8)


def turned(rgba: npt.NDArray[np.uint8], orientation: int) -> bytes:
    """Returns a picture as a PNG file with an EXIF orientation, without its alpha."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgba[..., :3].copy()).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def set_contract(app: App, files: dict[str, bytes], folder: str) -> None:
    app.ask(
        "contract",
        json=files[f"{folder}/preprocess.json"].decode(),
        labels=files[f"{folder}/labels.txt"].decode(),
    )
