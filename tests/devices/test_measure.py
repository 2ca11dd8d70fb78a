"""Measurements of real files by real runtimes in fresh processes."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import (
    SIZE,
    colour_images,
    endless_onnx,
    mean_onnx,
    mean_tflite,
    quantized_onnx,
    subject_of,
)

from edgekit.devices.measure import Pace, answer, scores, time_sessions
from edgekit.errors import DataError, DeviceError, EdgekitError, IntegrityError, SpecError
from edgekit.records import Preprocess, TensorInfo

pytestmark = pytest.mark.proves("this machine: LiteRT, onnxruntime", "measured on it")

PIXELS = Preprocess(height_px=SIZE, width_px=SIZE)
QUICK = Pace(warmup_seconds=0.0, min_queries=30, min_seconds=0.0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_answer_gives_the_file_the_tensor_the_contract_describes(
    tmp_path: Path, dtype: str
) -> None:
    """Whatever the input type, the model sees `pixel / 128 - 1` and answers with its mean."""
    colour_images(tmp_path / "i.npy", 12)
    model = mean_tflite(tmp_path / "m.tflite", dtype)
    heard: list[float] = []
    answers = answer(subject_of(model, tmp_path / "i.npy"), 60, heard.append)
    assert answers.raw.dtype == dtype
    assert answers.raw.shape == (12, 3)
    real = np.load(tmp_path / "i.npy").mean(axis=(1, 2)) / 128 - 1
    # The mean is rounded to one code of 1/128; float32 only rounds its sums.
    tolerance = 0.51 / 128 if dtype != "float32" else 1e-5
    np.testing.assert_allclose(scores(answers.raw, answers.output), real, atol=tolerance)
    assert all(0 <= fraction <= 1 for fraction in heard)


def test_answer_on_onnxruntime(tmp_path: Path) -> None:
    labels = colour_images(tmp_path / "i.npy", 12)
    model = quantized_onnx(tmp_path / "m.onnx")
    answers = answer(subject_of(model, tmp_path / "i.npy"), 60)
    assert answers.raw.dtype == np.uint8
    assert answers.runtime.startswith("onnxruntime")
    np.testing.assert_array_equal(answers.raw.argmax(axis=1), labels)


def test_sessions_are_fresh_processes_in_turns(tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 6)
    lite = subject_of(mean_tflite(tmp_path / "m.tflite"), tmp_path / "i.npy")
    onnx = subject_of(mean_onnx(tmp_path / "m.onnx"), tmp_path / "i.npy", 2)
    heard: list[float] = []
    timings = time_sessions([lite, onnx], 2, QUICK, 60, heard.append)
    assert [timing.runtime.split()[0] for timing in timings] == ["LiteRT", "onnxruntime"]
    for timing, threads in zip(timings, (1, 2), strict=True):
        assert len(timing.sessions) == 2
        for session in timing.sessions:
            assert len(session.samples_ms) >= 30
            assert min(session.samples_ms) > 0
            assert session.threads == threads
            assert session.warmup_runs >= 5
            assert session.load_average >= 0
    assert heard == sorted(heard)


def test_min_seconds_keeps_sampling(tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 2)
    lite = subject_of(mean_tflite(tmp_path / "m.tflite"), tmp_path / "i.npy")
    timing = time_sessions([lite], 1, Pace(0.0, 1, 0.3), 60)[0]
    assert len(timing.sessions[0].samples_ms) > 1


def test_changed_file_is_refused(tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 2)
    subject = subject_of(mean_tflite(tmp_path / "m.tflite"), tmp_path / "i.npy")
    content = bytearray(subject.model.read_bytes())
    content[-1] ^= 1
    subject.model.write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match="SHA-256"):
        answer(subject, 60)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 2)
    path = mean_tflite(tmp_path / "m.tflite")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(IntegrityError, match="damaged"):
        answer(subject_of(path, tmp_path / "i.npy"), 60)


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    subject = subject_of(mean_tflite(tmp_path / "m.tflite"), tmp_path / "i.npy")
    with pytest.raises(DataError, match=r"i\.npy"):
        answer(subject, 60)
    colour_images(tmp_path / "i.npy", 2, size=SIZE + 1)
    with pytest.raises(SpecError, match="same size"):
        answer(subject, 60)
    np.save(tmp_path / "i.npy", np.zeros((2, SIZE, SIZE, 3), np.float32))
    with pytest.raises(DataError, match="float32"):
        answer(subject, 60)


def test_model_that_never_ends(tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 2)
    model = endless_onnx(tmp_path / "m.onnx")
    with pytest.raises(DeviceError, match="no answer after 4 s"):
        answer(subject_of(model, tmp_path / "i.npy"), timeout_seconds=4)


def test_memory_limit_ends_the_runner_not_edgekit(tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 2)
    model = mean_tflite(tmp_path / "m.tflite")
    with pytest.raises(EdgekitError) as caught:
        answer(subject_of(model, tmp_path / "i.npy"), 60, memory_limit_bytes=64 * 1024**2)
    assert caught.value.exit_code in (6, 7)


def test_scores_undo_the_quantization() -> None:
    output = TensorInfo(name="s", dtype="int8", shape=(1, 3), scale=0.5, zero_point=-128)
    raw = np.array([[-128, 0, 127]], np.int8)
    np.testing.assert_array_equal(scores(raw, output), np.array([[0, 64, 127.5]], np.float32))
    plain = TensorInfo(name="s", dtype="float32", shape=(1, 3))
    numbers = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_array_equal(scores(numbers, plain), numbers)
