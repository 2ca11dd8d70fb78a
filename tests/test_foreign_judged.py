"""`edgekit validate` on files that are read the wrong way, say nothing, or describe themselves."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tiny_models import CHANNEL, CLASSES, SIZE, classifier, mean_onnx, mean_tflite, save_onnx

from edgekit.package.metadata import write_metadata
from edgekit.records import Preprocess

LIGHT = ("a_dark", "b_middle", "c_bright")
SIDE = 32  # of the pictures, in pixels
UNIT = ("--input-scale", "0.00392157", "--input-offset", "0")


def validate(*arguments: str | Path | float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", "validate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def judged(*arguments: str | Path | float) -> tuple[dict[str, Any], int]:
    """Returns the report of a file that only has to answer a tenth right, and the exit code."""
    done = validate(*arguments, "--min-accuracy", 10, "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode


def save(folder: Path, name: str, pixels: npt.NDArray[np.generic], index: int) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve noisy pictures of each colour."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(5)
    for name, channel in zip(CLASSES, CHANNEL, strict=True):
        for index in range(12):
            pixels = rng.integers(0, 100, (SIDE, SIDE, 3))
            pixels[..., channel] += 120
            save(folder, name, pixels, index)
    return folder


@pytest.fixture(scope="module")
def lights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen grey pictures of each brightness: around 43, 128 and 213."""
    folder = tmp_path_factory.mktemp("lights")
    rng = np.random.default_rng(6)
    for number, name in enumerate(LIGHT):
        for index in range(16):
            pixels = np.full((SIDE, SIDE, 3), 43 + 85 * number) + rng.integers(-20, 20, 1)
            save(folder, name, pixels + rng.integers(-9, 9, (SIDE, SIDE, 3)), index)
    return folder


def light_onnx(path: Path, low: float, high: float, metadata: dict[str, str] | None = None) -> Path:
    """Writes a classifier of brightness whose input goes from `low` to `high`: the nearest third.

    The nearest centre c of a mean m has the largest 2 c m - c^2.
    """
    import onnx
    from onnx import helper, numpy_helper

    centres = (low + (high - low) * (np.arange(3) + 0.5) / 3).astype(np.float32)
    constants = [
        numpy_helper.from_array(np.tile(2 * centres / 3, (3, 1)), "weights"),
        numpy_helper.from_array(-np.square(centres), "bias"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["mean", "weights", "bias"], ["scores"]),
    ]
    save_onnx(onnx, classifier(nodes, constants), path, metadata)
    return path


def dead_onnx(path: Path) -> Path:
    """Writes a classifier that answers its second class to every picture."""
    import onnx
    from onnx import helper, numpy_helper

    constants = [
        numpy_helper.from_array(np.zeros((3, 3), np.float32), "weights"),
        numpy_helper.from_array(np.array([0, 1, 0], np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["mean", "weights", "bias"], ["scores"]),
    ]
    save_onnx(onnx, classifier(nodes, constants), path)
    return path


def test_one_answer_to_everything_never_passes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name, count in zip(CLASSES, (3, 60, 3), strict=True):
        for index in range(count):
            save(tmp_path / "data", name, rng.integers(0, 255, (SIDE, SIDE, 3)), index)
    found, code = judged(dead_onnx(tmp_path / "m.onnx"), "--data", tmp_path / "data", *UNIT)
    assert found["accuracy"]["top1"] > 0.9
    assert (found["verdicts"][0]["status"], code) == ("INCONCLUSIVE", 5)
    assert "all 66 answers are 'green' whatever the picture" in found["plausible"]["detail"]
    assert [c["name"] for c in found["verdicts"][0]["checks"]] == ["plausible", "accuracy"]


@pytest.mark.slow
def test_an_honest_file_passes_on_unbalanced_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name, channel, count in zip(CLASSES, CHANNEL, (4, 60, 4), strict=True):
        for index in range(count):
            pixels = rng.integers(0, 100, (SIDE, SIDE, 3))
            pixels[..., channel] += 120
            save(tmp_path / "data", name, pixels, index)
    found, code = judged(mean_onnx(tmp_path / "m.onnx"), "--data", tmp_path / "data", *UNIT)
    assert (found["plausible"]["status"], code) == ("PASS", 0)


@pytest.mark.slow
def test_a_wrong_input_range_is_named_with_the_flags_of_the_right_one(
    tmp_path: Path, lights: Path
) -> None:
    model = light_onnx(tmp_path / "m.onnx", 0, 1)
    symmetric = ("--input-scale", 1 / 127.5, "--input-offset", -1)
    found, code = judged(model, "--data", lights, *symmetric)
    assert (found["verdicts"][0]["status"], code) == ("INCONCLUSIVE", 5)
    detail = found["plausible"]["detail"]
    assert "--input-scale 0.00392157 --input-offset 0 (0 to 1) answers 100.0 %" in detail


@pytest.mark.slow
def test_the_right_input_range_passes(tmp_path: Path, lights: Path) -> None:
    found, code = judged(light_onnx(tmp_path / "m.onnx", 0, 1), "--data", lights, *UNIT)
    assert (found["accuracy"]["top1"], found["plausible"]["status"], code) == (1.0, "PASS", 0)


@pytest.mark.slow
def test_a_weak_file_with_the_right_range_says_what_was_tried(tmp_path: Path, lights: Path) -> None:
    """A third of the pictures stand under the wrong name; no contract mends that."""
    for name, source in zip(LIGHT, LIGHT, strict=True):
        for index, path in enumerate(sorted((lights / source).iterdir())):
            other = LIGHT[(LIGHT.index(name) + (index % 3 == 0) * (1 + index % 2)) % 3]
            (tmp_path / "data" / other).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / other / f"{name}{path.name}").write_bytes(path.read_bytes())
    model = light_onnx(tmp_path / "m.onnx", 0, 1)
    found, _ = judged(model, "--data", tmp_path / "data", *UNIT)
    assert found["plausible"]["status"] == "PASS"
    assert "usual contracts, tried on 48 pictures" in found["plausible"]["detail"]


@pytest.mark.slow
def test_swapped_channels_are_named(tmp_path: Path, colours: Path) -> None:
    model = mean_onnx(tmp_path / "m.onnx")
    found, code = judged(model, "--data", colours, *UNIT, "--channels", "bgr")
    # Red and blue are exchanged, by their channels as well as by their labels.
    assert (found["plausible"]["status"], code) == ("INCONCLUSIVE", 5)


def test_a_file_that_does_not_say_its_range_is_refused_with_what_fits(
    tmp_path: Path, lights: Path
) -> None:
    done = validate(light_onnx(tmp_path / "m.onnx", 0, 1), "--data", lights)
    assert done.returncode == 2
    first = done.stderr.partition("of these pictures: ")[2]
    assert first.startswith("--input-scale 0.00392157 --input-offset 0 (0 to 1): 48 of 48 right")
    assert done.stdout == ""


@pytest.mark.slow
def test_exchanged_labels_are_named(tmp_path: Path, colours: Path) -> None:
    model = mean_onnx(tmp_path / "m.onnx")
    (tmp_path / "labels.txt").write_text("green\nblue\nred\n")
    found, code = judged(model, "--data", colours, *UNIT, "--labels", tmp_path / "labels.txt")
    assert (found["plausible"]["status"], code) == ("INCONCLUSIVE", 5)
    assert "permuted: blue and green are exchanged: 12 of 36" in found["plausible"]["detail"]


def described(model: bytes, contract: Preprocess) -> bytes:
    return write_metadata(
        model,
        name="Brightest channel",
        description="",
        version="1",
        author="",
        licence="CC0-1.0",
        preprocess=contract,
        class_names=("red", "green", "blue"),
    )


@pytest.mark.slow
def test_labels_and_normalization_in_tflite_metadata_are_used(
    tmp_path: Path, colours: Path
) -> None:
    model = mean_tflite(tmp_path / "m.tflite", "float32")
    silent = validate(model, "--data", colours)
    assert silent.returncode == 2
    assert "does not say how pixels are scaled" in silent.stderr
    contract = Preprocess(height_px=SIZE, width_px=SIZE)
    model.write_bytes(described(model.read_bytes(), contract))
    found, code = judged(model, "--data", colours)
    assert (found["accuracy"]["top1"], found["plausible"]["status"], code) == (1.0, "PASS", 0)


@pytest.mark.slow
def test_metadata_also_tell_some_classes_of_many(tmp_path: Path, colours: Path) -> None:
    """Two folders for three outputs."""
    for name in ("green", "red"):
        shutil.copytree(colours / name, tmp_path / "data" / name)
    model = mean_tflite(tmp_path / "m.tflite")
    refused = validate(model, "--data", tmp_path / "data")
    assert (refused.returncode, "2 class folders" in refused.stderr) == (2, True)
    contract = Preprocess(height_px=SIZE, width_px=SIZE)
    model.write_bytes(described(model.read_bytes(), contract))
    found, code = judged(model, "--data", tmp_path / "data")
    assert (found["accuracy"]["top1"], code) == (1.0, 0)


def test_damaged_metadata_leave_what_the_user_says(tmp_path: Path, colours: Path) -> None:
    model = mean_tflite(tmp_path / "m.tflite", "float32")
    contract = Preprocess(height_px=SIZE, width_px=SIZE)
    model.write_bytes(described(model.read_bytes(), contract)[:-5])  # the archive's end
    silent = validate(model, "--data", colours)
    assert silent.returncode == 2
    assert "damaged model metadata" in silent.stderr


def test_numeric_folders_in_two_orders_are_refused(tmp_path: Path) -> None:
    for number in range(12):
        pixels = np.full((SIDE, SIDE, 3), 20 * number)
        save(tmp_path / "data", str(number), pixels, 0)
        save(tmp_path / "data", str(number), pixels + 3, 1)
    model = mean_onnx(tmp_path / "m.onnx", lead=9)
    done = validate(model, "--data", tmp_path / "data", *UNIT)
    assert done.returncode == 2
    assert "sort as 0, 1, 10, 11" in done.stderr
    assert "--labels" in done.stderr


@pytest.mark.slow
def test_a_label_file_of_another_tool_is_told_and_used(tmp_path: Path, colours: Path) -> None:
    model = mean_onnx(tmp_path / "m.onnx")
    path = tmp_path / "class_indices.json"
    path.write_text('\ufeff{"red": 2, "green": 1, "blue": 0}', encoding="utf-8")
    done = validate(model, "--data", colours, *UNIT, "--labels", path, "--min-accuracy", 10)
    assert done.returncode == 0, done.stderr
    assert "class_indices.json: taken for class indices in JSON" in done.stderr
    path.write_text('{"red": 2, "green": 1}')
    broken = validate(model, "--data", colours, *UNIT, "--labels", path)
    assert broken.returncode == 2
    assert "2 labels for 3 outputs" in broken.stderr
