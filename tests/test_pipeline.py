"""The whole pipeline on a small generated data set: results, reuse, repair, honesty of verdicts."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.records import RunReport, Status, Verdict

pytest.importorskip("tensorflow")

from small_run import TARGETS, edgekit, run, write_recipe
from tiny_network import Untyped

from edgekit.demo.pictures import make_pictures


def digests(out: Path) -> dict[str, str]:
    """Returns the sha256 of every exported file by name."""
    report = json.loads((out / "report.json").read_text())
    return {a["path"]: a["sha256"] for a in report["export"]["artifacts"]}


def validation_answers(out: Path, name: str) -> tuple[npt.NDArray[np.float64], Untyped]:
    """Returns logits (n, classes) of an exported file on the validation pictures, and labels."""
    from ai_edge_litert.interpreter import Interpreter

    (folder,) = {path.parent for path in (out / ".store" / "data").rglob("validation.images.npy")}
    images = np.load(folder / "validation.images.npy").astype(np.int16)
    interpreter = Interpreter(str(out / "artifacts" / name))
    (entering,), (leaving,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.allocate_tensors()
    answers = []
    for image in images:
        pixels = image - 128 if entering["dtype"] == np.int8 else image / 128 - 1
        interpreter.set_tensor(entering["index"], pixels[None].astype(entering["dtype"]))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(leaving["index"])[0].astype(np.float64))
    scale, zero_point = leaving["quantization"]
    logits = np.array(answers)
    if leaving["dtype"] == np.int8:
        logits = scale * (logits - zero_point)
    return logits, np.load(folder / "validation.labels.npy")


def cross_entropy(logits: npt.NDArray[np.float64], labels: Untyped) -> float:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return float(-np.log(odds[np.arange(len(labels)), labels] / odds.sum(1)).mean())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "pictures"
    make_pictures(
        folder, train_per_class=20, validation_per_class=8, test_per_class=20, size_px=64, workers=1
    )
    return folder


@pytest.fixture(scope="module")
def first(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder / "recipe.toml", pictures, check_labels=True)
    out = folder / "out"
    return recipe, out, run(recipe, out, "--json")


def test_float_layers_are_refused_before_anything_is_done(pictures: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", pictures)
    asked = recipe.read_text().replace("[quantize]", '[quantize]\nkeep_float = ["{}"]')
    recipe.write_text(asked.format("Conv1"))
    done = run(recipe, tmp_path / "out")
    assert done.returncode == 2
    assert "quantize.keep_float for cortex-m7, where integers are needed" in done.stderr
    recipe.write_text(asked.format("block_13_expnd"))
    done = run(recipe, tmp_path / "out")
    assert done.returncode == 2
    assert "did you mean block_13_expand?" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rare_classes_weigh_more_and_others_than_there_are_are_refused(
    pictures: Path, tmp_path: Path
) -> None:
    rare = tmp_path / "pictures"
    for split in ("train", "validation", "test"):
        for folder in sorted((pictures / split).iterdir()):
            kept = 1 if (split, folder.name[0]) == ("train", "b") else None
            for file in sorted(folder.iterdir())[:kept]:
                (rare / split / folder.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, rare / split / folder.name)
    recipe = write_recipe(tmp_path / "recipe.toml", rare)
    text = recipe.read_text().replace("[model]", "min_images_per_class = 1\n[model]")
    asked = text.replace('unfreeze_from = "block_16_expand"', 'strategy = "head"')

    def said(weights: str) -> str:
        recipe.write_text(asked.replace("head_epochs = 3", f"head_epochs = 1\n{weights}"))
        done = run(recipe, tmp_path / "out", "--until", "train")
        return f"{done.returncode} {done.stderr}"

    assert "weighed by the root of the inverse frequency" in said("")
    refused = said("class_weights = { bolts = 3.0 }")
    assert refused.startswith("2 ")
    assert "train.class_weights names the class 'bolts'" in refused
    assert "did you mean bolt?" in refused


def test_unmeasured_targets_make_exit_code_5_and_never_pass(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    _, _, done = first
    report = RunReport.model_validate_json(done.stdout)
    missed = any(verdict.status == Status.MISS for verdict in report.validation.verdicts)
    assert done.returncode == (4 if missed else 5), done.stderr
    by_name = {verdict.target: verdict for verdict in report.validation.verdicts}
    assert tuple(by_name) == TARGETS
    for name in ("pixel-8", "cortex-m7"):
        assert by_name[name].status == Status.UNMEASURED
        measured = [check for check in by_name[name].checks if check.status == Status.PASS]
        assert {check.name for check in measured} <= {"size"}


def test_predict_answers_as_the_file_did_when_it_was_judged(
    pictures: Path, first: tuple[Path, Path, subprocess.CompletedProcess[str]]
) -> None:
    _, out, done = first
    report = RunReport.model_validate_json(done.stdout)
    names = report.export.class_names

    def confusion(*more: str) -> Untyped:
        answered = edgekit("predict", str(out), str(pictures / "test"), *more)
        assert answered.returncode == 0, answered.stderr
        table = np.zeros((len(names), len(names) + 1), dtype=int)
        for line in answered.stdout.splitlines():
            path, name, _ = line.split("\t")
            table[names.index(Path(path).parent.name), names.index(name)] += 1
        return table

    def judged(name: str) -> Untyped:
        (digest,) = (a.sha256 for a in report.export.artifacts if a.path == name)
        return report.validation.on_one_thread[digest].accuracy.confusion

    assert np.array_equal(confusion(), judged(report.validation.verdicts[0].artifact_path))
    name = "model_float32.onnx"
    assert np.array_equal(confusion("--file", name), judged(name))
    # The twin: pictures that are prepared otherwise are answered otherwise.
    swapped = confusion("--file", name, "--channels", "bgr", "--crop", "none")
    assert not np.array_equal(swapped, judged(name))
    refused = edgekit("predict", str(out), str(pictures), "--file", "model_int8.onx")
    assert refused.returncode == 2
    assert "did you mean model_int8.onnx?" in refused.stderr


def answers_of(out: Path) -> list[dict[str, str]]:
    """Returns the rows of a run's table of answers."""
    with (out / "answers.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_table_of_answers_holds_what_was_judged(
    pictures: Path, first: tuple[Path, Path, subprocess.CompletedProcess[str]]
) -> None:
    _, out, done = first
    report = RunReport.model_validate_json(done.stdout)
    names = report.export.class_names
    rows = answers_of(out)
    for row in rows:
        assert (pictures / row["picture"]).parent.name == row["truth"]
        assert (pictures / row["picture"]).is_file()
    for artifact in report.export.artifacts:
        found = np.zeros((len(names), len(names) + 1), dtype=int)
        for row in rows:
            answer = row[f"answer of {artifact.path}"]
            found[names.index(row["truth"]), names.index(answer)] += 1
            assert np.isfinite(float(row[f"score of {artifact.path}"]))
        accuracy = report.validation.on_one_thread[artifact.sha256].accuracy
        assert np.array_equal(found, accuracy.confusion)


USE_KERAS = """
import sys
import keras
import numpy as np
model = keras.saving.load_model(sys.argv[1])
pixels = np.load(sys.argv[2]).astype(np.float32)
np.save(sys.argv[3], [model.predict(p, verbose=0) for p in (pixels, pixels / 255)])
"""


def test_the_trained_model_opens_in_keras_and_answers_as_the_float_file_does(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """In a process that knows nothing of edgekit, as somebody opens it elsewhere."""
    _, out, done = first
    report = RunReport.model_validate_json(done.stdout)
    (images,) = (out / ".store" / "data").rglob("test.images.npy")
    file = out / "artifacts" / "model.keras"
    opened = tmp_path / "logits.npy"
    subprocess.run([sys.executable, "-c", USE_KERAS, file, images, opened],
                   check=True, cwd=tmp_path, capture_output=True, timeout=300)  # fmt: skip
    right, wrong = np.load(opened)
    name = "model_float32.onnx"
    rows = answers_of(out)
    told = [report.export.class_names.index(row[f"answer of {name}"]) for row in rows]
    scores = [float(row[f"score of {name}"]) for row in rows]
    assert list(right.argmax(1)) == told
    assert np.allclose(right.max(1), scores, atol=1e-3)
    # The twin: pixels from 0 to 1 are not what it takes.
    assert not np.allclose(wrong.max(1), scores, atol=1e-3)


def test_every_verdict_names_the_bytes_that_lie_in_artifacts(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    from edgekit.store import file_digest

    _, out, done = first
    report = RunReport.model_validate_json(done.stdout)
    for verdict in report.validation.verdicts:
        judged = out / "artifacts" / verdict.artifact_path
        assert file_digest(judged) == verdict.artifact_sha256
    names = {path.name for path in (out / "artifacts").iterdir()}
    assert {"labels.txt", "ranges.json", "artifacts.json", "model_int8.onnx"} <= names


def test_report_page_states_curve_files_verdicts_and_how_to_repeat(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    recipe, out, _ = first
    page = (out / "report.md").read_text()
    for heading in ("## Verdicts", "## Files", "## Progressive unfreezing", "## Quantization",
                    "## Parity", "## How to repeat it"):  # fmt: skip
        assert heading in page
    assert f"edgekit run {recipe}" in page
    assert "- Strategy fixed: from block_16_expand, as asked." in page
    assert "- Shipped: block_16_expand was asked for." in page
    assert "Speed and gradients" in page


def test_the_page_says_what_int8_costs_and_gains(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    _, out, done = first
    report = RunReport.model_validate_json(done.stdout)
    quantized, against = report.quantized, report.validation.int8_against_other
    lost = next(c.name for c in quantized.candidates if c.name != quantized.shipped)
    names = {artifact.path: artifact for artifact in report.export.artifacts}
    assert not names[f"model_int8_{lost}_int8_io.tflite"].ships
    ships = names["model_int8_int8_io.tflite"]
    assert (ships.ships, ships.candidate) == (True, quantized.shipped)
    digest = {e.artifact_sha256: e for e in report.validation.evaluations if e.threads == 1}
    drop = digest[ships.sha256].drop
    assert against is not None
    assert drop is not None
    page = (out / "report.md").read_text()
    (said,) = [line for line in page.splitlines() if line.startswith("int8: ")]
    assert said.startswith(f"int8: {quantized.reason}; on the test split it is ")
    side = {True: "below", False: "above"}
    float32 = f"{side[drop.drop_points >= 0]} model_float32.tflite"
    assert f"{abs(drop.drop_points):.2f} points {float32}" in said
    assert f"{abs(against.drop_points):.2f} points {side[against.drop_points > 0]} int8" in said
    assert re.search(r"times smaller and \d+\.\d\d times as (fast|slow) here", said)
    assert "does not ship" in page


def test_nothing_that_only_serves_a_running_stage_is_left(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    _, out, _ = first
    names = {path.name for path in (out / ".store").iterdir()}
    assert names == {"lock", "data", "labels", "train", "quantize", "export", "validate"}


def test_the_report_names_the_labels_that_pictures_contradict(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    _, out, _ = first
    report = RunReport.model_validate_json((out / "report.json").read_bytes())
    assert report.labels is not None
    assert report.labels.checked == 8 * (20 + 8 + 20)
    page = (out / "report.md").read_text()
    found = report.labels.first
    assert len(found) == min(report.labels.suspicious, 20)
    assert found
    section = page.split("## Labels")[1].split("\n## ")[0]
    assert f"{report.labels.suspicious} of 384 pictures look like another class" in section
    assert f"| {found[0].path} | {found[0].split} | {found[0].label} | " in section
    assert len([line for line in section.splitlines() if ".jpg |" in line]) == len(found)


def test_validation_losses_are_those_of_the_files_at_their_best_temperature(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    _, out, done = first
    report = RunReport.model_validate_json(done.stdout)
    quantized, trained = report.quantized, report.float_model
    lost = next(c.name for c in quantized.candidates if c.name != quantized.shipped)
    told = {c.name: c.validation_loss for c in quantized.candidates}
    files = {
        "model_float32.tflite": trained.validation_loss,
        "model_int8_int8_io.tflite": told[quantized.shipped],
        f"model_int8_{lost}_int8_io.tflite": told[lost],
    }
    for name, loss in files.items():
        logits, labels = validation_answers(out, name)
        # Over twenty steps an octave the best is missed by less than 1e-3 of a loss.
        losses = [cross_entropy(logits * 2 ** (step / 20), labels) for step in range(-60, 61)]
        # int8 is simulated in float32: an answer may be one step of the scores off.
        assert loss == pytest.approx(min(losses), rel=2e-3), name
        # Twin: that of the answers as they are is another one.
        assert loss != pytest.approx(cross_entropy(logits, labels), rel=2e-3), name
    assert told[quantized.shipped] == min(told.values())
    assert len(trained.phases[0].epochs) == 3  # of one epoch there is nothing to choose
    for phase in trained.phases:
        losses = [epoch.validation_loss for epoch in phase.epochs]
        assert losses[phase.best_epoch] == min(losses)
    shipped = trained.phases[trained.shipped_phase]
    assert trained.validation_loss == shipped.epochs[shipped.best_epoch].validation_loss


def test_unfrozen_layers_are_the_qat_layers(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    report = RunReport.model_validate_json(first[2].stdout)
    qat = next(c for c in report.quantized.candidates if c.name == "qat")
    trained = tuple(layer.layer for layer in qat.layers if layer.how == "qat")
    assert trained == report.float_model.unfrozen_layers
    assert all(layer.reason for layer in qat.layers)


def test_second_run_does_no_work_and_says_so(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    recipe, out, done = first
    again = run(recipe, out)
    assert again.returncode == done.returncode
    for stage in ("data", "labels", "train", "quantize", "export", "validate"):
        assert f"{stage}: unchanged, reused" in again.stderr


@pytest.mark.slow
def test_changing_qat_epochs_repeats_qat_and_what_follows_only(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], pictures: Path, tmp_path: Path
) -> None:
    _, out, _ = first
    other = tmp_path / "out"
    shutil.copytree(out, other)
    recipe = write_recipe(tmp_path / "recipe.toml", pictures, qat_epochs=0)
    assert (other / "report.json").is_file()
    done = run(recipe, other, "--until", "export")
    assert done.returncode == 0, done.stderr
    assert "data: unchanged, reused" in done.stderr
    assert "train: unchanged, reused" in done.stderr
    assert "quantize: done in" in done.stderr
    assert "export: done in" in done.stderr
    # The report was about other files than those that lie there now.
    assert not (other / "report.json").exists()
    assert not (other / "report.md").exists()


@pytest.mark.slow
def test_room_for_activations_is_no_reason_to_train_again(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], pictures: Path, tmp_path: Path
) -> None:
    _, out, _ = first
    other = tmp_path / "out"
    shutil.copytree(out, other)
    recipe = write_recipe(
        tmp_path / "recipe.toml", pictures, training="activations_budget_bytes = 0"
    )
    done = run(recipe, other, "--until", "export")
    assert done.returncode == 0, done.stderr
    for stage in ("data", "train", "quantize", "export"):
        assert f"{stage}: unchanged, reused" in done.stderr
    # The twin: other views of the pictures are.
    write_recipe(recipe, pictures, training="views = 3")
    done = run(recipe, other, "--until", "train")
    assert done.returncode == 0, done.stderr
    assert "data: unchanged, reused" in done.stderr
    assert "train: done in" in done.stderr


@pytest.mark.slow
def test_same_seed_elsewhere_without_room_for_activations_gives_the_same_bytes(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], pictures: Path, tmp_path: Path
) -> None:
    _, out, _ = first
    recipe = write_recipe(
        tmp_path / "recipe.toml", pictures, training="activations_budget_bytes = 0"
    )
    done = run(recipe, tmp_path / "out", "--until", "export")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "artifacts" / "artifacts.json").read_text())
    assert {a["path"]: a["sha256"] for a in record["artifacts"]} == digests(out)


@pytest.mark.slow
def test_damaged_blob_is_named_and_rebuilt_to_the_same_bytes(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    recipe, out, _ = first
    other = tmp_path / "out"
    shutil.copytree(out, other)
    victim = next((other / ".store" / "export").glob("*/model_int8.onnx"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = run(recipe, other, "--until", "export")
    assert done.returncode == 0, done.stderr
    assert "stored export result is damaged and is made again: model_int8.onnx" in done.stderr
    assert "train: unchanged, reused" in done.stderr
    record = json.loads((other / "artifacts" / "artifacts.json").read_text())
    assert {a["path"]: a["sha256"] for a in record["artifacts"]} == digests(out)


def test_what_no_record_names_is_not_published(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    recipe, out, _ = first
    other = tmp_path / "out"
    shutil.copytree(out, other)
    secret = tmp_path / "secret"
    secret.write_text("not for others")
    (export,) = (other / ".store" / "export").iterdir()
    (export / "notes.txt").symlink_to(secret)
    (export / "more.tflite").write_bytes(b"more")
    done = run(recipe, other, "--until", "export")
    assert done.returncode == 0, done.stderr
    assert "export: unchanged, reused" in done.stderr
    names = {path.name for path in (other / "artifacts").iterdir()}
    assert names == {path.name for path in (out / "artifacts").iterdir()}


@pytest.mark.slow
def test_a_verdict_without_the_budget_does_not_stand_for_one_with_it(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    recipe, out, _ = first
    other = tmp_path / "out"
    shutil.copytree(out, other)
    (without,) = (other / ".store" / "validate").iterdir()
    run(recipe, other, "--latency-budget-ms", "0.001")
    (budgeted,) = set(without.parent.iterdir()) - {without}
    shutil.copy(without / "record.json", budgeted / "record.json")
    done = run(recipe, other, "--latency-budget-ms", "0.001")
    said = f"made again: record.json is that of validate/{without.name[:12]}"
    assert said in " ".join(done.stderr.split())
    assert "at most 0.001 ms" in done.stdout
    # The twin: without the budget there is no such check.
    assert "at most 0.001 ms" not in run(recipe, other).stdout


@pytest.mark.slow
def test_exported_file_is_judged_again_without_any_option(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], pictures: Path
) -> None:
    _, out, done = first
    report = RunReport.model_validate_json(done.stdout)
    artifacts = out / "artifacts"
    judged = edgekit(
        "validate", str(artifacts / "model_int8_uint8_io.tflite"), "--data", str(pictures / "test"),
        "--reference", str(artifacts / "model_float32.tflite"), "--json",
    )  # fmt: skip
    host = next(v for v in report.validation.verdicts if v.target == "host-litert")
    assert judged.returncode == {"PASS": 0, "MISS": 4}.get(host.status, 5), judged.stderr
    found = json.loads(judged.stdout)
    known = {e.artifact_sha256: e for e in report.validation.evaluations}[found["sha256"]]
    assert found["accuracy"]["top1"] == pytest.approx(known.accuracy.top1)
    assert known.drop is not None
    assert found["drop"]["drop_points"] == pytest.approx(known.drop.drop_points)


def test_report_is_shown_again_with_the_exit_code_of_its_verdicts(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    _, out, done = first
    (out / "report.md").unlink()
    shown = edgekit("report", str(out))
    assert shown.returncode == done.returncode
    assert "pixel-8: UNMEASURED  model_int8_uint8_io.tflite: nothing was measured" in shown.stdout
    assert "% right of" in next(
        line for line in shown.stdout.splitlines() if line.startswith("host-litert: ")
    )
    assert re.search(rf"edgekit package {out}[^;]* --for pixel-8\b[^;]* writes what", shown.stdout)
    assert f"Exit code {done.returncode}: " in shown.stdout
    assert (out / "report.md").is_file()


def test_what_disturbed_times_stands_beside_them_and_their_ratio(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    _, out, _ = first
    other = tmp_path / "out"
    shutil.copytree(out, other, ignore=shutil.ignore_patterns(".store"))
    report = json.loads((other / "report.json").read_text())
    paths = {a["sha256"]: a["path"] for a in report["export"]["artifacts"]}

    def shown(noisy: tuple[str, ...] = (), means: tuple[str, ...] = ()) -> tuple[str, str]:
        """Returns what is printed and the page, where load disturbed some files."""
        for evaluation in report["validation"]["evaluations"]:
            if evaluation["latency"] is not None:
                path = paths[evaluation["artifact_sha256"]]
                evaluation["latency"]["disturbances"] = (
                    [f"session {n}: load 2.6 on 2 cores" for n in (1, 2, 3)]
                    if path in noisy
                    else []
                )
                evaluation["latency"]["session_calls_per_sample"] = [8] * (path in means)
        (other / "report.json").write_text(json.dumps(report))
        done = edgekit("report", str(other))
        return done.stdout, (other / "report.md").read_text()

    reason = "disturbed: session 1: load 2.6 on 2 cores; session 2: load 2.6 on 2 cores; and 1 more"
    for noisy in ("model_float32.tflite", "model_int8_int8_io.tflite"):
        printed, page = shown((noisy,))
        for text in (printed, page):
            (ratio,) = [line for line in text.splitlines() if " here (p50, one thread)" in line]
            assert f"ratio of times that were disturbed, so rely on it no more: {noisy}" in ratio
            assert reason in ratio
        assert "about the times" in printed
        files = page.partition("## Files")[2].partition("\n## ")[0].splitlines()
        (row,) = [line for line in files if line.startswith(f"| {noisy} |")]
        assert f"| {reason} |" in row
        (quiet,) = [line for line in files if line.startswith("| model_int8.onnx |")]
        assert reason not in quiet
    printed, page = shown(means=("model_int8_int8_io.tflite",))
    for text in (printed, page):
        assert "where times are means: model_int8_int8_io.tflite: means of 8 calls" in text
    # The twin: nothing disturbed anything.
    for text in shown():
        assert "about the times" not in text
        (ratio,) = [line for line in text.splitlines() if " here (p50, one thread)" in line]
        assert ratio.rstrip(".").endswith(" here (p50, one thread)")


def test_report_refuses_files_that_are_not_those_it_judged(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    _, out, _ = first
    other = tmp_path / "out"
    shutil.copytree(out, other)
    victim = other / "artifacts" / "model_int8.onnx"
    victim.write_bytes(victim.read_bytes() + b"x")
    shown = edgekit("report", str(other))
    assert shown.returncode == 6
    assert "model_int8.onnx: sha256" in shown.stderr


def test_stopping_early_is_json_too(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    recipe, out, _ = first
    done = run(recipe, out, "--until", "data", "--json")
    assert json.loads(done.stdout) == {"stopped_after": "data", "out": str(out)}


@pytest.mark.slow
def test_a_verdict_stands_until_measuring_again_is_asked_for(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    recipe, out, _ = first
    other = tmp_path / "out"
    shutil.copytree(out, other)

    def judged(*more: str) -> tuple[str, Verdict]:
        done = run(recipe, other, "--latency-budget-ms", "1000", "--json", *more)
        report = RunReport.model_validate_json(done.stdout)
        return done.stderr, next(v for v in report.validation.verdicts if v.target == "host-litert")

    # Three sessions cannot show a pass, so this budget stays undecided, and is not tried anew.
    said, undecided = judged()
    assert "validate: done in" in said
    latency = next(check for check in undecided.checks if check.name == "latency")
    assert latency.status == Status.INCONCLUSIVE
    assert "edgekit run --measure-again" in latency.detail
    said, same = judged()
    assert "validate: unchanged, reused" in said
    assert same == undecided
    said, again = judged("--measure-again")
    assert "validate: done in" in said
    assert len(again.latency_measurements) == 2
    assert again.latency_measurements[:1] == undecided.latency_measurements
    said, kept = judged()
    assert "validate: unchanged, reused" in said
    assert kept == again


def test_measuring_again_without_measuring_is_refused(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    recipe, out, _ = first
    done = run(recipe, out, "--measure-again", "--until", "export")
    assert done.returncode == 2
    assert "--measure-again with --until export" in done.stderr


def test_a_budget_that_no_asked_target_can_take_is_refused(
    first: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    recipe, out, _ = first
    done = run(recipe, out, "--target", "pixel-8", "--latency-budget-ms", "5")
    assert done.returncode == 2
    assert "--latency-budget-ms for pixel-8, which edgekit cannot measure" in done.stderr


@pytest.mark.slow
def test_the_smallest_pictures_and_random_weights_run_to_the_end(
    pictures: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", pictures)
    small = recipe.read_text().replace("input_size_px = 64", "input_size_px = 32")
    recipe.write_text(small)
    done = run(recipe, tmp_path / "out", "--weights", "none", "--target", "host-litert", "--json")
    assert done.returncode in (0, 4, 5), done.stderr
    report = RunReport.model_validate_json(done.stdout)
    assert report.float_model.input_size_px == (32, 32)
    assert report.export.formats is not None
    assert len(report.export.formats.layers) == 64
    found = {parity.status for parity in report.export.parity}
    assert found == {Status.PASS, Status.UNMEASURED}, report.export.parity
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| rounding explains dB | status | why |" in page
    # Twin: below the documented minimum nothing is done.
    recipe.write_text(small.replace("input_size_px = 32", "input_size_px = 31"))
    done = run(recipe, tmp_path / "other")
    assert done.returncode == 2
    assert "input_size_px" in done.stderr
    assert not (tmp_path / "other").exists()
