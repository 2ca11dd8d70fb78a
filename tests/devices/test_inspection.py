"""A foreign file is read in a process of its own, which it can take down, and nothing else."""

import signal
import sys
from pathlib import Path

import pytest
from tiny_models import digest, mean_onnx, mean_tflite

from edgekit.devices import child
from edgekit.devices.inspection import inspect_apart
from edgekit.errors import DeviceError, IntegrityError, SpecError
from edgekit.runtimes.inspect import inspect_model


def test_the_facts_are_those_of_the_file(tmp_path: Path) -> None:
    for path in (mean_tflite(tmp_path / "m.tflite"), mean_onnx(tmp_path / "m.onnx")):
        found = inspect_apart(path)
        assert found.facts == inspect_model(path)
        assert (found.sha256, found.size_bytes) == (digest(path), path.stat().st_size)


def test_refusals_cross_the_process(tmp_path: Path) -> None:
    path = mean_tflite(tmp_path / "m.tflite")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(IntegrityError, match="damaged"):
        inspect_apart(path)
    with pytest.raises(SpecError, match="No such file"):
        inspect_apart(tmp_path / "none.onnx")
    with pytest.raises(SpecError, match=r"ends in '\.h5'"):
        inspect_apart(path.rename(tmp_path / "model.h5"))


def reading(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a program that behaves as a parser with a fault might in the place of the reader."""
    monkeypatch.setattr(child, "command", lambda *_, **__: [sys.executable, "-c", script])


def test_a_crash_while_reading_is_an_untrusted_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading(monkeypatch, f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    with pytest.raises(IntegrityError, match="SIGSEGV") as caught:
        inspect_apart(mean_tflite(tmp_path / "m.tflite"))
    assert caught.value.exit_code == 6


def test_reading_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(DeviceError, match="no answer after 2 s"):
        inspect_apart(mean_tflite(tmp_path / "m.tflite"), 2)
