"""Altered model files of every format, judged by `edgekit validate`.

An altered file that still runs is another model, and judging it is right. It must be judged as what
it is: the report names its digest, its exit code is that of its verdicts, and where it is said to
pass, a program that shares nothing with edgekit, `campaign.answers`, finds the same share of right
answers.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from crafted_models import crafted
from PIL import Image
from tiny_models import CHANNEL, CLASSES, mean_onnx, mean_tflite, quantized_onnx

from campaign.alter import BYTES, changed
from campaign.attack import Attack, Outcome, trouble
from campaign.base import DONE, LIMITS, Base
from campaign.watch import watched
from edgekit.store import file_digest

PER_FORMAT = 300
_EVERY_BY_COMMAND_LINE = 10
_FLOOR_PERCENT = 80
_PER_CLASS, _SIDE_PX = 8, 32
_CODES = {"PASS": 0, "MISS": 4, "INCONCLUSIVE": 5, "UNMEASURED": 5}


@dataclass(frozen=True)
class Source:
    """A model file to alter.

    Args:
        path: The file.
        data: Labelled pictures.
        labels: Its labels file.
        scale: Real value of its input for a pixel of 1, whatever its type, beside that of 0.
        offset: Real value for a pixel of 0.
    """

    path: Path
    data: Path
    labels: Path
    scale: float = 1 / 128
    offset: float = -1.0


def attacks(base: Base) -> Iterator[Attack]:
    """Yields the attacks on model files.

    Args:
        base: A run, whose exported files are altered beside tiny ones.
    """
    for file_format, sources in make_sources(base).items():
        for number in range(PER_FORMAT):
            source = sources[number % len(sources)]
            how = tuple(BYTES)[number // len(sources) % len(BYTES)]
            yield Attack(
                f"models, {file_format}",
                f"{source.path.stem}: {how} {number:03d}",
                _altered(base, source, how, hurry=number % _EVERY_BY_COMMAND_LINE != 0),
            )
    for made in crafted(len(CLASSES)):
        name = f"{made.name}{made.suffix}"
        yield Attack("models, crafted", name, _crafted(base, made.content, made.suffix))


def make_sources(base: Base) -> dict[str, list[Source]]:
    """Returns the files to alter by format, made where they are not there yet.

    Args:
        base: The run.
    """
    from edgekit.export.ort_file import convert

    folder = base.work / "models"
    data, labels = folder / "colours", folder / "labels.txt"
    if not folder.exists():
        _draw(data)
        mean_tflite(folder / "tiny_uint8.tflite", "uint8")
        mean_tflite(folder / "tiny_int8.tflite", "int8", relu=True)
        mean_tflite(folder / "tiny_float32.tflite", "float32")
        mean_onnx(folder / "tiny_float32.onnx")
        quantized_onnx(folder / "tiny_uint8.onnx")
        # Not the integer one: an .ort file does not say what the codes of its input mean.
        tiny = (folder / "tiny_float32.onnx").read_bytes()
        (folder / "tiny_float32.ort").write_bytes(convert(tiny))
        real = (base.out / "artifacts" / "model_int8.onnx").read_bytes()
        (folder / "real_int8.ort").write_bytes(convert(real))
        (folder / "real_int8.onnx").write_bytes(real)
        tflite = base.out / "artifacts" / "model_int8_uint8_io.tflite"
        (folder / "real_uint8.tflite").write_bytes(tflite.read_bytes())
        # The order in which the outputs of the tiny files stand.
        labels.write_text("red\ngreen\nblue\n")
        (folder / "turned.txt").write_text("blue\ngreen\nred\n")
        (folder / "real.txt").write_bytes((base.out / "artifacts" / "labels.txt").read_bytes())
    found: dict[str, list[Source]] = {"tflite": [], "onnx": [], "ort": []}
    for path in sorted(folder.glob("*.*")):
        if path.suffix != ".txt":
            own = labels if path.suffix == ".tflite" else folder / "turned.txt"
            source = Source(path, data, own)
            if path.stem.startswith("real"):
                source = Source(path, base.pictures / "test", folder / "real.txt")
            found[path.suffix[1:]].append(source)
    return found


def _draw(folder: Path) -> None:
    """Draws pictures of one bright colour each, as every way of resizing leaves them."""
    random = np.random.default_rng(7)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(_PER_CLASS):
            pixels = random.integers(0, 100, (_SIDE_PX, _SIDE_PX, 3))
            pixels[..., CHANNEL[label]] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def _program(name: str) -> tuple[str, ...]:
    """Returns the command of a program that lies here; what lies beside it shadows nothing."""
    return (sys.executable, "-P", str(Path(__file__).with_name(f"{name}.py")))


def _altered(
    base: Base, source: Source, how: str, *, hurry: bool
) -> Callable[[Path, Random], Outcome]:
    def attack(place: Path, random: Random) -> Outcome:
        model = place / source.path.name
        model.write_bytes(changed(source.path.read_bytes(), how, random))
        return judged(base, place, model, source, hurry=hurry)

    return attack


def _crafted(base: Base, content: bytes, suffix: str) -> Callable[[Path, Random], Outcome]:
    """Each asks for too much, so that none may be judged."""

    def attack(place: Path, random: Random) -> Outcome:
        model = place / f"model{suffix}"
        model.write_bytes(content)
        tiny = next(source for source in make_sources(base)["onnx"] if "tiny" in source.path.name)
        bright = replace(tiny, scale=1.0, offset=0.0)  # the more, the larger some answers are
        found = judged(base, place, model, bright, hurry=False)
        if found.result == "harmless":
            return Outcome("accepted", found.why, found.ran)
        return found

    return attack


def judged(base: Base, place: Path, model: Path, source: Source, *, hurry: bool) -> Outcome:
    """Returns what came of judging a file.

    Args:
        base: How edgekit is started.
        place: Folder of the attack.
        model: The file.
        source: Its pictures and labels.
        hurry: Whether its latency sessions are shortened.
    """
    command = _program("hurried") if hurry else base.edgekit
    arguments = [
        "validate", str(model), "--data", str(source.data), "--labels", str(source.labels),
        "--input-scale", str(source.scale), "--input-offset", str(source.offset),
        "--min-accuracy", str(_FLOOR_PERCENT), "--json",
    ]  # fmt: skip
    ran = watched((*command, *arguments), place, LIMITS)
    told = trouble(ran, DONE)
    if told is not None:
        return told
    try:
        report = json.loads(ran.stdout)
        (verdict,) = report["verdicts"]
        right = report["accuracy"]["top1"]
        named, status = report["sha256"], verdict["status"]
    except (ValueError, LookupError, TypeError) as error:
        return Outcome("traceback", f"no report on stdout: {error!r}", (ran,))
    if named != file_digest(model) or _CODES[status] != ran.code:
        return Outcome("accepted", f"{status}, exit code {ran.code}, about {named[:12]}", (ran,))
    if status != "PASS":
        return Outcome("harmless", f"judged {status} as another model, {right:.1%} right", (ran,))
    program = _program("answers")
    about = (str(model), str(source.data), str(source.labels), str(source.scale),
             str(source.offset))  # fmt: skip
    alone = watched((*program, *about), place, LIMITS)
    if alone.code == 0 and abs(float(alone.stdout) - right) < 1e-6:
        return Outcome("harmless", f"PASS, {right:.1%} right, by its runtime alone too", (ran,))
    said = alone.stdout.strip() or alone.stderr.strip()[-200:]
    return Outcome("accepted", f"PASS with {right:.1%} right, its runtime alone: {said}", (ran,))
