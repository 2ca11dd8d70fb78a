"""Judging a public model that edgekit did not make, on pictures labelled with its own answers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.data.picture import decode, fit
from edgekit.records import Preprocess
from edgekit.runtimes import open_model

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODEL = SHARED / "models" / "tf2_mobilenet_v2_1.0_224_ptq.tflite"
LABELS = SHARED / "models" / "imagenet_labels.txt"


def validate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs `edgekit validate` on the public model."""
    command = [sys.executable, "-m", "edgekit", "validate", str(MODEL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def own_answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of the same pictures: classes by label text, and by output number."""
    if not MODEL.is_file():
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {MODEL.name}")
        pytest.skip(f"{MODEL.name} is not here")
    root = tmp_path_factory.mktemp("own")
    names = LABELS.read_text().splitlines()
    session = open_model(MODEL, "litert", 1)
    contract = Preprocess(height_px=224, width_px=224)
    for path in sorted((SHARED / "data" / "clothing" / "test").glob("*/*.jpg"))[::12]:
        pixels = fit(decode(path.read_bytes()), contract)
        answer = int(np.argmax(session.run(pixels[None])))
        for folder in (root / "text" / names[answer], root / "number" / f"{answer:04d}"):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.name)
    return root / "text", root / "number"


def test_own_answers_are_all_right(own_answers: tuple[Path, Path]) -> None:
    judged = validate("--data", own_answers[0], "--labels", LABELS, "--min-accuracy", 80, "--json")
    found = json.loads(judged.stdout)
    assert found["accuracy"]["top1"] == 1.0
    assert judged.returncode == 0, judged.stderr


def test_wrong_label_offset_is_implausible_not_zero(own_answers: tuple[Path, Path]) -> None:
    judged = validate("--data", own_answers[1], "--label-offset", 1, "--json")
    found = json.loads(judged.stdout)
    assert judged.returncode == 5
    assert found["plausible"]["status"] == "INCONCLUSIVE"
    assert "fit --label-offset 0 (100.0 %) far better" in found["plausible"]["detail"]


def test_offset_that_contradicts_the_labels_file_is_refused(
    own_answers: tuple[Path, Path],
) -> None:
    judged = validate("--data", own_answers[0], "--labels", LABELS, "--label-offset", 1)
    assert judged.returncode == 2
    assert "--label-offset 0" in judged.stderr


def test_without_a_reference_the_drop_is_unmeasured(own_answers: tuple[Path, Path]) -> None:
    judged = validate("--data", own_answers[1])
    assert judged.returncode == 5
    assert "no --reference file was given" in judged.stdout


def test_target_that_wants_another_file_is_refused(own_answers: tuple[Path, Path]) -> None:
    judged = validate("--data", own_answers[1], "--target", "host-onnxruntime")
    assert judged.returncode == 2
    assert "host-onnxruntime takes onnx" in judged.stderr
