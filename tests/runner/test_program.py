"""The runner program as a device gets it: one file that needs nothing of edgekit."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import SIZE, colour_images, digest, mean_tflite, quantized_onnx

from edgekit.devices.program import runner_bytes, runner_file
from edgekit.runner.program import RUNTIMES

MODELS: dict[str, Callable[[Path], Path]] = {
    "litert": lambda folder: mean_tflite(folder / "m.tflite"),
    "onnxruntime": lambda folder: quantized_onnx(folder / "m.onnx"),
}
# What the two models answer to a picture is in the codes of the picture itself.
CODES = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def job(folder: Path, runtime: str, mode: str, **changed: Any) -> dict[str, Any]:
    model = MODELS[runtime](folder)
    labels = colour_images(folder / "i.npy", 12)
    np.save(folder / "codes.npy", CODES)
    np.save(folder / "labels.npy", labels)
    return {
        "model": str(model),
        "sha256": digest(model),
        "runtime": runtime,
        "threads": 1,
        "delegate": "default",
        "input_dtype": "uint8",
        "input_shape": [1, SIZE, SIZE, 3],
        "layout": "NHWC",
        "output": 0,
        "output_dtype": "uint8",
        "classes": 3,
        "images": str(folder / "i.npy"),
        "codes": str(folder / "codes.npy"),
        "mode": mode,
        "results": str(folder / "results.npy"),
        "warmup_seconds": 0.0,
        "min_queries": 30,
        "min_seconds": 0.0,
        "memory_limit_bytes": None,
        "first_answer_seconds": 60,
        "answer_seconds": 60,
        **changed,
    }


def run(folder: Path, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Starts the program where no edgekit can be imported; returns exit code and last line."""
    (folder / "job.json").write_text(json.dumps(asked))
    blocked = folder / "blocked" / "edgekit"
    blocked.mkdir(parents=True, exist_ok=True)
    (blocked / "__init__.py").write_text("raise ImportError('not installed on a device')")
    environment = {**os.environ, "PYTHONPATH": str(blocked.parent)}
    command = [sys.executable, "-P", str(runner_file()), str(folder / "job.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_every_runtime_is_tested_here() -> None:
    assert MODELS.keys() == RUNTIMES.keys()


@pytest.mark.parametrize("runtime", list(MODELS))
def test_a_runtime_answers_every_picture(tmp_path: Path, runtime: str) -> None:
    code, done = run(tmp_path, job(tmp_path, runtime, "accuracy"))
    assert (code, done["kind"], done["count"]) == (0, "done", 12)
    answers = np.load(tmp_path / "results.npy")
    np.testing.assert_array_equal(answers.argmax(axis=1) >= 0, True)
    assert answers.dtype == np.uint8
    # Twin: pictures in another order answer otherwise.
    images = np.load(tmp_path / "i.npy")[::-1]
    np.save(tmp_path / "i.npy", images)
    (tmp_path / "results.npy").unlink()
    asked = json.loads((tmp_path / "job.json").read_text())
    run(tmp_path, asked)
    turned = np.load(tmp_path / "results.npy")
    np.testing.assert_array_equal(turned, answers[::-1])
    assert (turned != answers).any()


@pytest.mark.parametrize("runtime", list(MODELS))
def test_a_runtime_is_timed(tmp_path: Path, runtime: str) -> None:
    code, done = run(tmp_path, job(tmp_path, runtime, "latency"))
    assert (code, done["count"]) == (0, 30)
    samples = np.load(tmp_path / "results.npy")
    assert samples.shape == (30,)
    assert samples.dtype == np.float64
    assert samples.min() > 0
    assert done["surroundings"]["warmup_runs"] >= 5
    assert done["memory_bytes"] > 100_000  # a runtime's library alone is larger


# The program on a clock whose step can be chosen.
COARSE = """
import sys, time
archive, job, step_ns = sys.argv[1], sys.argv[2], int(sys.argv[3])
fine = time.perf_counter_ns
time.perf_counter_ns = lambda: fine() // step_ns * step_ns
sys.path.insert(0, archive)
from runner.program import main
sys.exit(main([job]))
"""


@pytest.mark.slow
def test_the_clock_and_the_batches_are_said(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job(tmp_path, "litert", "latency")))

    def timed(step_ns: int) -> dict[str, Any]:
        command = [sys.executable, "-P", "-c", COARSE, str(runner_file()), str(path), str(step_ns)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["surroundings"]
        return said

    coarse = timed(1_000_000)
    samples = np.load(tmp_path / "results.npy")
    assert coarse["clock_step_ms"] == 1.0
    # A call of this model takes some microseconds; one alone would mostly be 0.
    assert coarse["calls_per_sample"] >= 16
    assert samples.min() > 0
    # The twin: the clock as it is.
    fine = timed(1)
    assert fine["clock_step_ms"] < 1.0
    assert fine["calls_per_sample"] < coarse["calls_per_sample"]


@pytest.mark.parametrize("runtime", list(MODELS))
@pytest.mark.parametrize(
    ("changed", "code", "error", "words"),
    [
        ({"sha256": "0" * 64}, 6, "IntegrityError", "SHA-256"),
        ({"classes": 4}, 6, "IntegrityError", "the runtime sees"),
        ({"input_dtype": "int8"}, 6, "IntegrityError", "the runtime sees"),
        ({"results": "/proc/nowhere/results.npy"}, 7, "DeviceError", "results.npy"),
        ({"images": "missing.npy"}, 7, "DeviceError", "missing.npy"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, runtime: str, changed: dict[str, Any], code: int, error: str, words: str
) -> None:
    found, said = run(tmp_path, job(tmp_path, runtime, "accuracy", **changed))
    assert (found, said["kind"], said["error"]) == (code, "failure", error)
    assert words in said["received"]
    assert said["expected"]
    assert said["remedy"]


def test_the_program_is_the_same_bytes_every_time() -> None:
    assert runner_bytes() == runner_bytes() == runner_file().read_bytes()
    with zipfile.ZipFile(runner_file()) as archive:
        assert "runner/program.py" in archive.namelist()
        assert {info.date_time[0] for info in archive.infolist()} == {1980}


def test_the_program_reads_as_python_3_9() -> None:
    """Boards run older Pythons; what 3.9 lacks in syntax is refused by its grammar."""
    with zipfile.ZipFile(runner_file()) as archive:
        sources = [archive.read(name).decode() for name in archive.namelist()]
    assert len(sources) > 5
    for source in sources:
        ast.parse(source, feature_version=(3, 9))
    with pytest.raises(SyntaxError):
        ast.parse("match x:\n    case 1: pass", feature_version=(3, 9))


@pytest.mark.parametrize("mode", ["accuracy", "latency"])
def test_results_that_do_not_fit_are_named(tmp_path: Path, small_disk: Path, mode: str) -> None:
    results = str(small_disk / "results.npy")
    asked = job(tmp_path, "litert", mode, results=results)
    with (small_disk / "filler").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(small_disk).free)
    code, said = run(tmp_path, asked)
    assert (code, said["error"]) == (7, "DeviceError")
    assert said["received"].startswith(f"{results} on the device: ")
    (small_disk / "filler").unlink()
    assert run(tmp_path, asked)[0] == 0
