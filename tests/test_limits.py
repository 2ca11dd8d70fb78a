"""Foreign files that ask for too much are refused in one sentence; their modest twins are not."""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from crafted_models import SIDE, Crafted, allowed, crafted, lite_while, onnx_bytes, tflite_bytes
from PIL import Image
from tiny_models import mean_onnx, mean_tflite

from edgekit import limits
from edgekit.devices.exchange import Waiting
from edgekit.errors import DataError, DeviceError, EdgekitError, IntegrityError, SpecError
from edgekit.foreign import Question, judge_file
from edgekit.runtimes.ends import classifier_io
from edgekit.runtimes.inspect import inspect_content, inspect_model, read_model
from edgekit.validate.external import (
    Judgement,
    Plan,
    judge_external,
    plan_external,
    refuse_too_much,
)

CLASSES = ("blue", "green", "red")
CRAFTED = {made.name + made.suffix: made for made in crafted()}
ALLOWED = {made.name + made.suffix: made for made in allowed()}
# What is known from the file alone, and what its refusal says.
HEADERS = {
    "input-100000": "pictures of 100,000 x 100,000 px",
    "input-9000": "pictures of 9,000 x 9,000 px",
    "input-one-long-side": "pictures of 2,147,483,647 x 8 px",
    "input-0": r"shape \(1, 0, 0, 3\)",
    "input-negative": r"shape \(1, -5, 8, 3\)",
    "input-dynamic": r"shape \(1, -1, -1, 3\)",
    "input-other-signature": r"shape \(1, 100000, 100000, 3\) with the signature \(1, 8, 8, 3\)",
    "input-4-channels": r"shape \(1, 8, 8, 4\)",
    "input-string": "type (object|string)",
    "output-string": "type (object|string)",
    "output-1e9": "1,000,000,000 classes",
    "output-1e6": "1,000,000 classes",
    "declared-no-data": "too small for the declared shape",
    "declared-strings": "too small for the declared shape",
    "nested-60": "MaxDepth",
    "functions-doubling": "more than 1,000,000 operators",
    "function-of-itself": "own.f calls itself",
    "external-data": "in (an)?other files?",
}
# What only a runtime finds out: the exit code.
RUN = {
    "output-larger-than-said": 6,
    "output-grows": 6,
    "tile.onnx": 7,
    "tile.ort": 7,
    "tile.tflite": 6,
    "expand.onnx": 7,
    "constant-of-shape.onnx": 7,
    "fill.tflite": 6,
    "fill-8-gigabytes.tflite": 6,
    "sparse.onnx": 6,
    "sparse.tflite": 7,
    "declared-no-data.tflite": 6,
    "branch-of-itself.tflite": 6,
}
QUICK = ("sparse.tflite", "expand.onnx", "output-grows.onnx")


def code_of(name: str) -> int | None:
    """Returns the exit code that only running a file leads to; None for an endless one."""
    stem = name.rpartition(".")[0]
    return RUN.get(name, RUN.get(stem))


def headers() -> Iterator[tuple[str, str]]:
    for name in CRAFTED:
        words = HEADERS.get(name.rpartition(".")[0])
        if words is not None and code_of(name) is None:
            yield name, words


def written(folder: Path, made: Crafted) -> Path:
    path = folder / f"m{made.suffix}"
    path.write_bytes(made.content)
    return path


def draw(root: Path, count: int = 2) -> Path:
    """Writes grey noise under three names."""
    random = np.random.default_rng(4)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 255, (20, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def judged(
    folder: Path, path: Path, count: int = 4, waiting: Waiting | None = None
) -> tuple[Plan, Judgement]:
    """Answers noise of the size that a file asks for."""
    plan = plan_external(path, CLASSES)
    shape = (count, plan.preprocess.height_px, plan.preprocess.width_px, 3)
    np.save(folder / "i.npy", np.random.default_rng(2).integers(0, 255, shape, dtype=np.uint8))
    labels = (np.arange(count) % 3).astype(np.int32)
    return plan, judge_external(plan, folder / "i.npy", labels, waiting=waiting)


def test_every_crafted_file_is_expected_to_be_something() -> None:
    found = [name for name, _ in headers()]
    left = [name for name in CRAFTED if name not in found and code_of(name) is None]
    assert {name.rpartition(".")[0] for name in left} == {"endless"}
    assert len(found) + len(left) < len(CRAFTED)


@pytest.mark.parametrize(("name", "words"), list(headers()))
def test_what_a_file_says_it_needs_is_refused_before_it_is_run(name: str, words: str) -> None:
    made = CRAFTED[name]
    with pytest.raises(IntegrityError, match=words) as caught:
        classifier_io(inspect_content(made.content, made.suffix[1:], name), name)
    assert caught.value.expected
    assert caught.value.remedy


@pytest.mark.parametrize("name", list(ALLOWED))
def test_the_twin_of_usual_size_is_a_classifier(name: str) -> None:
    made = ALLOWED[name]
    asked, answer = classifier_io(inspect_content(made.content, made.suffix[1:], name), name)
    assert max(asked.shape) <= limits.INPUT_SIDE_PX
    assert answer.shape[-1] == 3


def test_the_limits_themselves_are_allowed(tmp_path: Path) -> None:
    """One pixel or class more is refused."""
    side, classes = limits.INPUT_SIDE_PX, limits.MODEL_CLASSES
    for extra in (0, 1):
        wide = onnx_bytes((1, SIDE, side + extra, 3))
        many = onnx_bytes(classes=classes + extra)
        for content, words in ((wide, "2,048 px a side"), (many, "100,000 classes")):
            facts = inspect_content(content, "onnx", "m")
            if not extra:
                classifier_io(facts, "m")
                continue
            with pytest.raises(IntegrityError) as caught:
                classifier_io(facts, "m")
            assert words in caught.value.expected


def test_names_and_ranks_of_any_length_make_a_short_sentence() -> None:
    content = onnx_bytes((1,) * 5000)
    with pytest.raises(IntegrityError) as caught:
        classifier_io(inspect_content(content, "onnx", "m"), "m")
    assert len(caught.value.received) < 400


def measured(arguments: list[str | Path], scratch: Path) -> tuple[int, str, int]:
    """Runs edgekit; returns its exit code, what it said, and the most memory of a process of it."""
    program = (
        "import resource, subprocess, sys\n"
        "code = subprocess.call([sys.executable, '-m', 'edgekit', *sys.argv[1:]])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(code)"
    )
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    return done.returncode, done.stderr, 1024 * int(done.stdout.split()[-1])


def all_that_run() -> Iterator[object]:
    for name in CRAFTED:
        if code_of(name) is not None:
            yield name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    yield "input-100000.onnx"
    yield pytest.param("input-100000.ort", marks=pytest.mark.slow)
    yield pytest.param("input-100000.tflite", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", list(all_that_run()))
def test_the_command_line_refuses_it_soon_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, CRAFTED[name])
    began = time.monotonic()
    code, said, memory_bytes = measured(
        ["validate", path, "--data", draw(tmp_path / "data")], tmp_path / "scratch"
    )
    assert code == (code_of(name) or 6), said
    assert path.name in said
    assert "expected:" in said
    assert "to do:" in said
    assert "Traceback" not in said
    assert memory_bytes < 1024**3
    assert time.monotonic() - began < 60
    # onnxruntime itself leaves 51 bytes in the folder for temporary files of whoever loads it.
    assert [item.name for item in (tmp_path / "scratch").iterdir() if item.name != ".ses"] == []


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("output-grows.onnx", "endless.tflite", "sparse.tflite")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in ALLOWED
    ],
)
def test_the_twin_of_usual_size_is_judged(tmp_path: Path, name: str) -> None:
    _, judgement = judged(tmp_path, written(tmp_path, ALLOWED[name]))
    assert judgement.raw.shape == (4, 3)
    assert np.isfinite(judgement.raw).all()


def test_running_out_of_memory_says_how_much_there_may_be(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="ran out of memory") as caught:
        judged(tmp_path, written(tmp_path, CRAFTED["expand.onnx"]))
    assert f"{limits.PROCESS_MEMORY_BYTES:,} bytes" in caught.value.expected


@pytest.mark.parametrize("kind", [".onnx", ".tflite", pytest.param(".ort", marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [4, pytest.param(400, marks=pytest.mark.slow)])
def test_a_model_without_end_is_ended_as_soon_among_many_pictures(
    tmp_path: Path, kind: str, count: int
) -> None:
    path = written(tmp_path, CRAFTED[f"endless{kind}"])
    began = time.monotonic()
    with pytest.raises(DeviceError, match="no answer after 5 s"):
        judged(tmp_path, path, count, Waiting(5, 1))
    assert time.monotonic() - began < 30


def test_one_picture_without_end_is_ended_behind_the_others(tmp_path: Path) -> None:
    """The loop goes on while the colour is below a bound: only the last picture is dark."""
    path = tmp_path / "m.tflite"
    path.write_bytes(tflite_bytes(**lite_while(50.0)))
    plan = plan_external(path, CLASSES)
    images = np.full((3, SIDE, SIDE, 3), 200, np.uint8)
    labels = np.arange(3, dtype=np.int32)
    np.save(tmp_path / "i.npy", images)
    waiting = Waiting(60, 2)
    assert judge_external(plan, tmp_path / "i.npy", labels, waiting=waiting).raw.shape == (3, 3)
    images[-1] = 20
    np.save(tmp_path / "i.npy", images)
    with pytest.raises(DeviceError, match="no further answer for 2 s"):
        judge_external(plan, tmp_path / "i.npy", labels, waiting=waiting)


def test_more_pictures_than_may_be_decoded_or_answered_are_refused(tmp_path: Path) -> None:
    plan = plan_external(mean_tflite(tmp_path / "m.tflite"), CLASSES)
    large = plan.preprocess.model_copy(update={"height_px": 2048, "width_px": 2048})
    wide = plan.model_copy(update={"preprocess": large})
    most = limits.DECODED_BYTES // (2048 * 2048 * 3)
    refuse_too_much(wide, most)
    with pytest.raises(SpecError, match="pictures of 2,048 x 2,048 px") as caught:
        refuse_too_much(wide, most + 1)
    assert f"{limits.DECODED_BYTES:,} bytes" in caught.value.expected
    many = plan.model_copy(update={"outputs": 100_000})
    most = limits.ANSWERS_BYTES // 400_000
    refuse_too_much(many, most)
    with pytest.raises(SpecError, match="100,000 scores for each of"):
        refuse_too_much(many, most + 1)


def question(folder: Path) -> Question:
    model = mean_onnx(folder / "m.onnx")
    return Question(
        model, draw(folder / "data"), input_scale=(1 / 255,), input_offset=(0.0,), channels="rgb"
    )


def refusal(asked: Question) -> EdgekitError:
    with pytest.raises(EdgekitError) as caught:
        judge_file(asked, lambda _: None, lambda *_: None)
    return caught.value


def test_a_disk_without_room_is_refused_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = question(tmp_path)
    # Six pictures of 4 x 4 pixels, twice: 576 bytes.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=575))
    error = refusal(asked)
    assert isinstance(error, SpecError)
    assert "takes 576 bytes in " in error.received
    assert "575 are free" in error.received
    # With room the next step is reached: every picture is read, and none of them is one.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=576))
    for picture in asked.data.glob("*/*.png"):
        picture.write_text("no picture")
    assert isinstance(refusal(asked), DataError)


def test_a_model_file_larger_than_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as stream:
        stream.truncate(limits.MODEL_FILE_BYTES + 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError, match=f"{limits.MODEL_FILE_BYTES + 1:,} bytes"):
        read_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert inspect_model(mean_onnx(path)).format == "onnx"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "m.tflite"
    os.mkfifo(pipe)
    with pytest.raises(SpecError, match="not a file"):
        read_model(pipe)


def test_labels_without_end_are_refused(tmp_path: Path) -> None:
    asked = question(tmp_path)
    error = refusal(Question(asked.file, asked.data, labels=Path("/dev/zero")))
    assert error.exit_code == 6
    assert f"{limits.TEXT_FILE_BYTES:,} bytes" in error.expected
