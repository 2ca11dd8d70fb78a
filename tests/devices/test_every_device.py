"""Every transport runs the same runner program: the same file gives the same answers everywhere."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from adb_device import Phone, adb_server
from ssh_server import program as installed, serving
from tiny_models import (
    colour_images,
    endless_onnx,
    mean_onnx,
    mean_tflite,
    subject_of,
)

from edgekit.devices import adb, emulated, local, measure, ssh
from edgekit.devices.measure import Device, Pace, RunnerDevice, answer, time_sessions
from edgekit.errors import DeviceError, EdgekitError, IntegrityError
from edgekit.folders import cache_folder
from edgekit.runner.onnx_runtime import EXACT

PACKAGES = ("numpy", "ai_edge_litert", "onnxruntime")
Opened = Callable[[Path, pytest.MonkeyPatch], AbstractContextManager[Device]]


@contextmanager
def on_local(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with local.reach() as place:
        yield RunnerDevice(place)


@contextmanager
def on_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with serving(folder / "server") as server:
        with ssh.reach(
            "127.0.0.1", port=server.port, python=sys.executable, packages=PACKAGES,
            options=server.options, say=print,
        ) as place:  # fmt: skip
            yield RunnerDevice(place)
        assert server.left() == []


@contextmanager
def on_adb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with adb_server(folder) as server:
        phone = Phone(folder / "phone")
        monkeypatch.setattr(adb, "FOLDER", str(phone.folder))
        server.connect(phone)
        try:
            with adb.reach(
                server=server.address, python=sys.executable, packages=PACKAGES, say=pytest.fail
            ) as place:
                yield RunnerDevice(place)
            assert list(phone.folder.iterdir()) == []
        finally:
            phone.unplug()


@contextmanager
def on_emulated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    for program in ("apt-get", "dpkg-deb", emulated.EMULATOR):
        installed(program)
    with emulated.reach(emulated.prepare(cache_folder(), print)) as place:
        yield RunnerDevice(place)


DEVICES: dict[str, Opened] = {
    "local": on_local,
    "ssh": on_ssh,
    "adb": on_adb,
    "emulated": on_emulated,
}


SLOW = ("emulated",)


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in DEVICES
    ]
)
def device(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Device]:
    with DEVICES[request.param](tmp_path, monkeypatch) as opened:
        yield opened


def without_option(runtime: str) -> str:
    """Returns the name and version of a runtime without the option for integers on x86."""
    return re.sub(rf"{re.escape(EXACT[0])}=[01]", "", runtime)


def test_answers_and_times_come_from_every_device(device: Device, tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 12)
    subjects = [
        subject_of(model, tmp_path / "i.npy")
        for model in (mean_tflite(tmp_path / "m.tflite"), mean_onnx(tmp_path / "m.onnx"))
    ]
    assert device.machine.words
    for subject in subjects:
        there, here = answer(subject, 120, device=device), answer(subject, 60)
        np.testing.assert_array_equal(there.raw, here.raw)
        # The option of x86 without VNNI follows from the processor, which need not be alike.
        assert without_option(there.runtime) == without_option(here.runtime)
    timings = time_sessions(subjects, 2, Pace(0.0, 20, 0.0), 60, device=device)
    for timing in timings:
        assert [len(session.samples_ms) for session in timing.sessions] == [20, 20]
        assert all(min(session.samples_ms) > 0 for session in timing.sessions)


def test_every_device_refuses_what_is_not_the_file(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colour_images(tmp_path / "i.npy", 2)
    subject = subject_of(mean_tflite(tmp_path / "m.tflite"), tmp_path / "i.npy")
    # As if the file changed between being read here and being run there.
    ends = measure.read_ends(subject.model, subject.runtime, subject.sha256)
    monkeypatch.setattr(measure, "read_ends", lambda *_: ends)
    subject.model.write_bytes(subject.model.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match="SHA-256"):
        answer(subject, 60, device=device)


@pytest.mark.slow
def test_a_model_that_never_ends_is_ended_on_every_device(device: Device, tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 2)
    subject = subject_of(endless_onnx(tmp_path / "m.onnx"), tmp_path / "i.npy")
    seconds = 5 if device.machine.real else 15  # an emulated Python starts slowly
    with pytest.raises(DeviceError, match=f"no answer after {seconds} s"):
        answer(subject, seconds, device=device)


def test_a_runner_that_dies_is_told_on_every_device(device: Device, tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 2)
    subject = subject_of(mean_tflite(tmp_path / "m.tflite"), tmp_path / "i.npy")
    if not device.machine.real:
        pytest.skip("qemu-user ignores the limit of a program's address space")
    with pytest.raises(EdgekitError) as caught:
        answer(subject, 60, memory_limit_bytes=64 * 1024**2, device=device)
    assert caught.value.exit_code in (6, 7)
