"""Judging a public model that edgekit did not make, on pictures labelled with its own answers."""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from edgekit.target import Target, load_target, target_text

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_without_a_reference_what_was_measured_is_judged(own_answers: tuple[Path, Path]) -> None:
    """A target that asks for the drop is not met by that; only what nobody asked for may lack."""
    judged = validate("--data", own_answers[1])
    assert judged.returncode == 0, judged.stdout
    assert re.search(
        r"^this-machine-litert: PASS  \S+: 100\.0 % right of \d+ pictures; compared with no float "
        r"model; no accuracy floor asked; no latency budget asked$",
        judged.stdout,
        re.M,
    )
    asked = validate("--data", own_answers[1], "--target", "host-litert")
    assert asked.returncode == 5
    assert "host-litert: INCONCLUSIVE" in asked.stdout
    assert "accuracy_drop INCONCLUSIVE: 100.0 % right, compared with nothing" in asked.stdout
    assert "no --reference file was given" in asked.stdout


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_without_a_test_split_validation_is_judged(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "valid", count=10)
    draw(tmp_path / "data" / "train", count=2, shift=1)
    for number in range(3):  # what training lacks is nothing to this judgement
        (tmp_path / "data" / "train" / "red" / f"empty{number}.png").touch()
    model, labels = mean_tflite(tmp_path / "m.tflite"), labels_file(tmp_path)
    report, said, _ = answer(Question(file=model, data=tmp_path / "data", labels=labels))
    assert "judging the validation split (30 pictures); training saw the others" in said
    assert (report.split, report.accuracy.images, report.accuracy.top1) == ("validation", 30, 1.0)
    assert report.skipped == ()


@pytest.mark.slow
def test_a_bad_reference_leaves_the_drop_undecided(tmp_path: Path) -> None:
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
    assert (verdict.target, verdict.status) == ("this-machine-onnxruntime", Status.INCONCLUSIVE)
    (drop,) = [check for check in verdict.checks if check.name == "accuracy_drop"]
    assert (drop.status, report.drop) == (Status.INCONCLUSIVE, None)
    assert "the reference is not plausible itself" in drop.detail
    assert report.reference_plausible is not None
    assert report.reference_plausible.status == Status.INCONCLUSIVE
    assert "not compared with f.tflite: the reference is not plausible" in report.summary()


@pytest.mark.slow
def test_the_answers_are_a_table_in_which_nothing_is_computed(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", count=5)
    (data / "red" / "0.png").rename(data / "red" / "=1+1\n,.png")
    shutil.move(data / "red", data / "@red")
    (tmp_path / "labels.txt").write_text("@red\ngreen\nblue\n")
    command = [sys.executable, "-m", "edgekit", "validate", str(mean_tflite(tmp_path / "m.tflite")),
               "--data", str(data), "--labels", str(tmp_path / "labels.txt"),
               "--target", str(absent_target(tmp_path))]  # fmt: skip
    table = tmp_path / "answers.csv"

    def judged(path: Path) -> subprocess.CompletedProcess[str]:
        asked = [*command, "--answers", str(path)]
        return subprocess.run(asked, capture_output=True, text=True, timeout=280)

    # The twin: what is no place for a table is refused, and not overwritten.
    assert judged(tmp_path / "m.tflite").returncode == 2
    assert judged(tmp_path / "absent" / "a.csv").returncode == 2
    done = judged(table)
    assert table.is_file(), done.stderr
    assert done.returncode == 5
    assert (
        "Exit code 5: nothing failed. All that can be judged here is, and far-away" in done.stdout
    )
    assert re.search(r"--target far-away\s+--measurements\s+FILE", done.stdout)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 15
    assert all(row["truth"] == row["answer"] and float(row["score"]) > 0 for row in rows)
    assert {row["truth"] for row in rows} == {"'@red", "green", "blue"}
    assert "'@red/=1+1\\n,.png" in {row["picture"] for row in rows}


def board(**tables: dict[str, object]) -> Target:
    """Returns a target that takes a uint8 TFLite file; `tables` replaces its tables."""
    values: dict[str, object] = {
        "name": "board",
        "description": "a board",
        "device": {"transport": "adb", "description": "a phone", "cores": 9, "model": "Pixel"},
        "runtime": {"name": "litert"},
        "artifact": {"format": "tflite", "variant": "int8", "io": "uint8"},
        "budget": {"accuracy_drop_points": 2.0, "latency_ms": 5.0},
        **tables,
    }
    return Target.model_validate(values)


@pytest.mark.slow
def test_a_target_with_other_kernels_is_answered_by_them(tmp_path: Path) -> None:
    own = board(
        device={"transport": "local", "description": "here"},
        runtime={"name": "litert", "delegate": "none"},
        budget={"accuracy_drop_points": 2.0, "memory_bytes": 2**30},
    )
    report, _, _ = answer(
        Question(
            file=mean_tflite(tmp_path / "m.tflite"),
            data=draw(tmp_path / "data", count=50),
            reference=mean_tflite(tmp_path / "f.tflite", "float32"),
            labels=labels_file(tmp_path),
            targets=(own,),
        )
    )
    (found,) = report.on_devices
    assert found.runtime.endswith("no XNNPACK")
    assert found.against_host is not None
    assert found.against_host.images == 150
    (verdict,) = report.verdicts
    assert verdict.status == Status.PASS
    assert [c.name for c in verdict.checks] == ["plausible", "accuracy_drop", "memory"]


def measured_elsewhere(folder: Path, model: Path, data: Path, **changed: object) -> Path:
    """Writes measurements in which every picture of `data` is answered with its own class."""
    answers = [
        {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "answer": path.parent.name}
        for path in sorted(data.glob("*/*"))
    ]
    rng = np.random.default_rng(3)
    sessions = [
        {"fresh_process": True, "load": 1.0,
         "samples_ms": rng.normal(3.0, 0.05, 200).round(6).tolist()}
        for _ in range(5)
    ]  # fmt: skip
    values: dict[str, object] = {
        "edgekit_measurements": 1, "sha256": digest(model), "by": "Ada",
        "at": "2026-11-20T18:04:05Z",
        "device": "Pixel 8", "os": "Android 16", "cores": 9, "runtime": "LiteRT",
        "runtime_version": "2.3.0", "threads": 1, "accuracy": answers, "latency": sessions,
        **changed,
    }  # fmt: skip
    path = folder / "measured.json"
    path.write_text(json.dumps(values))
    return path


def imported(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> FileReport:
    """Judges a file by measurements made elsewhere, changed before they are read."""
    model, data = mean_tflite(tmp_path / "m.tflite"), draw(tmp_path / "data", count=50)
    path = measured_elsewhere(tmp_path, model, data)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    report, _, _ = answer(
        Question(
            file=model,
            data=data,
            reference=mean_tflite(tmp_path / "f.tflite", "float32"),
            labels=labels_file(tmp_path),
            targets=(board(),),
            measurements=path,
        )
    )
    return report


@pytest.mark.slow
def test_measurements_made_elsewhere_decide_and_say_where_they_come_from(tmp_path: Path) -> None:
    report = imported(tmp_path, lambda values: None)
    (verdict,) = report.verdicts
    assert {c.name: c.status for c in verdict.checks} == {
        "plausible": Status.PASS, "accuracy_drop": Status.PASS, "latency": Status.PASS
    }  # fmt: skip
    assert verdict.notes[0].startswith("imported: measured by Ada on Pixel 8")
    assert report.on_devices[0].origin == verdict.notes[0]


@pytest.mark.slow
def test_an_app_that_prepares_pictures_otherwise_is_found(tmp_path: Path) -> None:
    def swap_channels(values: dict[str, Any]) -> None:
        names = {"red": "blue", "blue": "red", "green": "green"}
        for item in values["accuracy"]:
            item["answer"] = names[item["answer"]]

    report = imported(tmp_path, swap_channels)
    (verdict,) = report.verdicts
    statuses = {c.name: c.status for c in verdict.checks}
    assert statuses["accuracy_drop"] == Status.MISS
    same = report.on_devices[0].against_host
    assert same is not None
    assert (same.differing_images, len(same.differing)) == (100, 20)
    assert same.cause.startswith("preprocessing: ")


@pytest.mark.slow
def test_memory_of_an_emulator_counts_as_little_as_its_time(tmp_path: Path) -> None:
    def emulated(values: dict[str, Any]) -> None:
        values.update(emulated=True, memory_peak_bytes=1000)

    report = imported(tmp_path, emulated)
    (found,) = report.on_devices
    assert (found.latency, found.memory_bytes) == (None, None)
    assert {c.name: c.status for c in report.verdicts[0].checks}["latency"] == Status.UNMEASURED


@pytest.mark.slow
def test_a_protocol_of_its_own_times_a_target_of_this_machine(tmp_path: Path) -> None:
    quick = load_target("host-litert").model_copy(update={"protocol": "quick"})
    budget = quick.budget.model_copy(update={"latency_ms": 1000.0, "accuracy_min_percent": 50.0})
    report, _, _ = answer(
        Question(
            file=mean_tflite(tmp_path / "m.tflite"),
            data=draw(tmp_path / "data", count=20),
            labels=labels_file(tmp_path),
            targets=(quick.model_copy(update={"budget": budget}),),
        )
    )
    (latency,) = [c for c in report.verdicts[0].checks if c.name == "latency"]
    assert latency.status == Status.INCONCLUSIVE
    assert "3 sessions cannot decide; 5 can" in latency.detail


@pytest.mark.slow
def test_slow_sessions_elsewhere_are_a_miss(tmp_path: Path) -> None:
    def slower(values: dict[str, Any]) -> None:
        for session in values["latency"]:
            session["samples_ms"] = [2 * sample for sample in session["samples_ms"]]

    report = imported(tmp_path, slower)
    assert report.verdicts[0].status == Status.MISS


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"threads": 4}, "measurements with 4 threads"),
        ({"sha256": "0" * 64}, "0000"),
        ({"runtime": "CoreML"}, "runtime CoreML"),
        ({"delegate": "GPU"}, "delegate GPU"),
        ({"cores": 8}, "8 cores"),
        ({"device": "Gaming PC"}, "a device that calls itself Pixel"),
        ({"memory_peak_bytes": 0}, "memory_peak_bytes"),
    ],
)
def test_measurements_of_something_else_are_refused(
    tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    with pytest.raises(EdgekitError, match=words):
        imported(tmp_path, lambda values: values.update(changed))


def test_measurements_need_the_target_they_are_about(tmp_path: Path, few: Path) -> None:
    model = mean_tflite(tmp_path / "m.tflite")
    path = measured_elsewhere(tmp_path, model, few)
    labels = labels_file(tmp_path)
    for targets in ((), (load_target("host-litert"),)):
        error = refusal(Question(model, few, labels=labels, targets=targets, measurements=path))
        assert "--measurements" in error.received


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
    assert "30 of 30 pictures" in error.received
