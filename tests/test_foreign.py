"""Judging a public model that edgekit did not make, on pictures labelled with its own answers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import (
    CHANNEL,
    CLASSES,
    SIZE,
    digest,
    mean_onnx,
    mean_tflite,
    opened,
    quantized_onnx,
)

from edgekit.data.picture import decode, fit
from edgekit.errors import DataError, EdgekitError, SpecError
from edgekit.foreign import FileReport, Question, judge_file
from edgekit.records import Artifact, ExportRecord, Preprocess, Status
from edgekit.target import load_target, target_text

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
    session = opened(MODEL, "litert")
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


COUNT = 50  # of each of three classes; 133 pictures in all can show a drop within 2 points


def draw(root: Path, count: int = COUNT, shift: int = 0) -> Path:
    """Writes noisy pictures of one colour; `shift` puts them under the wrong names."""
    random = np.random.default_rng(9)
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 100, (32, 32, 3))
            pixels[..., CHANNEL[(number + shift) % 3]] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index}.png")
    return root


def labels_file(folder: Path) -> Path:
    """Writes the order in which the outputs of `mean_tflite` stand."""
    path = folder / "labels.txt"
    path.write_text("red\ngreen\nblue\n")
    return path


def answer(question: Question) -> tuple[FileReport, list[str], set[str]]:
    """Returns the report, the lines that were said, and what progress was told about."""
    said: list[str] = []
    told: set[str] = set()
    report = judge_file(question, said.append, lambda what, _done, _total: told.add(what))
    return report, said, told


def refusal(question: Question) -> EdgekitError:
    with pytest.raises(EdgekitError) as caught:
        answer(question)
    return caught.value


def absent_target(folder: Path, **replaced: str) -> Path:
    """Writes a target that edgekit cannot reach and that asks for nothing but a size."""
    head = target_text("host-litert").partition("[budget]")[0]
    for old, new in {"local": "none", "host-litert": "far-away", **replaced}.items():
        head = head.replace(f'"{old}"', f'"{new}"')
    path = folder / "far-away.toml"
    path.write_text(f"{head}[budget]\nsize_bytes = 1000000\n")
    return path


def test_only_the_test_split_is_judged_and_an_absent_device_never_passes(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "test")
    for split in ("train", "validation"):
        draw(tmp_path / "data" / split, count=2, shift=1)
    (tmp_path / "data" / "train" / "red" / "bad.png").write_text("no picture")
    report, said, _ = answer(
        Question(
            file=mean_tflite(tmp_path / "m.tflite"),
            data=tmp_path / "data",
            reference=mean_tflite(tmp_path / "f.tflite", "float32"),
            labels=labels_file(tmp_path),
            targets=(load_target("host-litert"), load_target(str(absent_target(tmp_path)))),
        )
    )
    assert said == ["judging the test split (150 pictures); training saw the others"]
    assert (report.split, report.accuracy.images, report.accuracy.top1) == ("test", 150, 1.0)
    here, absent = report.verdicts
    assert (here.target, here.status) == ("host-litert", Status.PASS)
    assert [check.name for check in here.checks] == ["plausible", "accuracy_drop"]
    assert (absent.target, absent.status) == ("far-away", Status.UNMEASURED)
    assert [check.name for check in absent.checks] == ["size", "device"]
    shown = report.summary()
    for words in ("150 pictures of the test split", "+0.00 points lost against f.tflite",
                  "McNemar p 1", "100.0% same answers", "p95", "longest",
                  "processes, worth", "involuntary context switches"):  # fmt: skip
        assert words in shown


def test_a_bad_reference_leaves_the_drop_unmeasured(tmp_path: Path) -> None:
    """The float ONNX is held against a neutral target; its reference has other classes."""
    report, said, _ = answer(
        Question(
            file=mean_onnx(tmp_path / "m.onnx"),
            data=draw(tmp_path / "data"),
            reference=mean_tflite(tmp_path / "f.tflite", "float32"),
            input_scale=(1 / 255,),
            input_offset=(0.0,),
            channels="rgb",
        )
    )
    assert said == []
    assert report.split is None
    (verdict,) = report.verdicts
    assert (verdict.target, verdict.status) == ("this-machine-onnxruntime", Status.UNMEASURED)
    (drop,) = [check for check in verdict.checks if check.name == "accuracy_drop"]
    assert (drop.status, report.drop) == (Status.UNMEASURED, None)
    assert "the reference is not plausible itself" in drop.detail
    assert report.reference_plausible is not None
    assert report.reference_plausible.status == Status.INCONCLUSIVE
    assert "not compared with f.tflite: the reference is not plausible" in report.summary()


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures per class, for questions that are refused before anything runs."""
    return draw(tmp_path_factory.mktemp("few") / "data", count=4)


def test_a_float_onnx_does_not_get_the_verdict_of_an_int8_target(tmp_path: Path, few: Path) -> None:
    contract = {"input_scale": (1 / 255,), "input_offset": (0.0,)}
    model = mean_onnx(tmp_path / "m.onnx")
    error = refusal(Question(model, few, targets=(load_target("host-onnxruntime"),), **contract))
    assert "host-onnxruntime takes onnx int8 with float32 I/O" in error.received
    assert "m.onnx is onnx float32" in error.received
    mixed = quantized_onnx(tmp_path / "q.onnx", dequantize=False)
    error = refusal(Question(mixed, few, targets=(load_target("host-onnxruntime"),)))
    assert "q.onnx is onnx partly quantized with uint8 input" in error.received


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        ({"latency_budget_ms": 5.0}, "--latency-budget-ms for"),
        ({"min_accuracy_percent": 50.0}, "--min-accuracy for"),
    ],
)
def test_a_budget_for_nothing_that_is_measured_here_is_refused(
    tmp_path: Path, few: Path, budgets: dict[str, float], words: str
) -> None:
    target = str(absent_target(tmp_path))
    model, labels = mean_tflite(tmp_path / "m.tflite"), labels_file(tmp_path)
    error = refusal(Question(model, few, labels=labels, targets=(load_target(target),), **budgets))
    assert isinstance(error, SpecError)
    assert words in error.received
    assert "which edgekit cannot measure" in error.received


def test_the_record_beside_a_file_says_its_variant_and_its_contract(
    tmp_path: Path, few: Path
) -> None:
    """A dynamic file looks like a float32 one; only the record beside it tells."""
    model = mean_tflite(tmp_path / "m.tflite", "float32")
    record = ExportRecord(
        preprocess=Preprocess(height_px=SIZE, width_px=SIZE, crop="center"),
        class_names=("red", "green", "blue"),
        artifacts=(
            Artifact(
                format="tflite",
                variant="dynamic",
                io="float32",
                path="m.tflite",
                sha256=digest(model),
                size_bytes=model.stat().st_size,
                inputs=(),
                outputs=(),
                operators={},
                float_tensors=(),
            ),
        ),
        parity=(),
    )
    (tmp_path / "artifacts.json").write_text(record.model_dump_json())
    target = absent_target(tmp_path, int8="float32", uint8="float32")
    error = refusal(Question(model, few, targets=(load_target(str(target)),)))
    assert "m.tflite is tflite dynamic" in error.received
    other = tmp_path / "other"
    other.mkdir()
    judged = Question(mean_tflite(other / "q.tflite"), few, model, labels_file(other))
    assert "not a float file (dynamic" in refusal(judged).received
    (tmp_path / "artifacts.json").write_text(record.model_dump_json().replace("dynamic", "float16"))
    assert "prepared with crop center" in refusal(judged).received


def test_unreadable_pictures_are_named_and_refused(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", count=10)
    question = Question(mean_tflite(tmp_path / "m.tflite"), data, labels=labels_file(tmp_path))
    (data / "red" / "0.png").write_text("no picture")
    error = refusal(question)
    assert isinstance(error, DataError)
    assert "red/0.png" in error.received
    for path in data.glob("*/*.png"):
        path.write_text("no picture")
    error = refusal(question)
    assert isinstance(error, DataError)
    assert "30 of 30 files" in error.received
