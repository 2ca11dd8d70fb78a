"""A browser as a target's device: the same answers as on this machine, by the same calls."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from ssh_server import program
from tiny_models import colour_images, mean_onnx, mean_tflite, subject_of

from edgekit.devices import browser_device
from edgekit.devices.browser_device import BrowserDevice
from edgekit.devices.measure import Pace, answer, time_sessions
from edgekit.errors import SpecError
from edgekit.runtimes.ends import Readout


@pytest.fixture(scope="module")
def device() -> Iterator[BrowserDevice]:
    program("npm")
    with browser_device.reach(program("chromium"), print) as reached:
        yield reached


def test_a_page_answers_and_is_timed_as_any_device(device: BrowserDevice, tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 12)
    subjects = [
        subject_of(model, tmp_path / "i.npy")
        for model in (mean_tflite(tmp_path / "m.tflite", "float32"), mean_onnx(tmp_path / "m.onnx"))
    ]
    for subject in subjects:
        there, here = answer(subject, 120, device=device), answer(subject, 60)
        # Sums of 16 floats, in another order.
        np.testing.assert_allclose(there.raw, here.raw, atol=1e-6)
        assert "Chrom" in there.runtime
        # The twin: another picture's answer is further away.
        assert np.abs(np.roll(there.raw, 1, axis=0) - here.raw).max() > 1e-3
    for timing in time_sessions(subjects, 1, Pace(0.0, 20, 0.0), 120, device=device):
        (session,) = timing.sessions
        assert len(session.samples_ms) >= 20
        assert session.warmup_runs >= 5


def two_outputs_onnx(path: Path) -> Path:
    """Writes what `mean_onnx` does, with the mean of each channel as an output in front."""
    model = onnx.load(mean_onnx(path))
    mean = onnx.helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, [1, 3])
    model.graph.output.insert(0, mean)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.slow
def test_layout_channels_and_output_are_those_of_the_file(
    device: BrowserDevice, tmp_path: Path
) -> None:
    colour_images(tmp_path / "i.npy", 6)
    two = subject_of(two_outputs_onnx(tmp_path / "two.onnx"), tmp_path / "i.npy")
    files = {
        name: subject_of(
            mean_tflite(tmp_path / f"{name}.tflite", "float32", **kind), tmp_path / "i.npy"
        )
        for name, kind in {"planes": {"planes": True}, "grey": {"channels": 1}}.items()
    }
    subjects = [two.model_copy(update={"readout": Readout(output=n)}) for n in (0, 1)]
    found = []
    for subject in (*files.values(), *subjects):
        there, here = answer(subject, 120, device=device), answer(subject, 60)
        # Sums of 16 floats, in another order.
        np.testing.assert_allclose(there.raw, here.raw, atol=1e-6)
        found.append(there.raw)
    # The twin: the two outputs are not one.
    np.testing.assert_allclose(found[2], found[3][:, ::-1], atol=1e-6)
    assert np.abs(found[2] - found[3]).max() > 1e-3


def test_integers_at_the_ends_are_refused(device: BrowserDevice, tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 2)
    model = mean_tflite(tmp_path / "m.tflite", "uint8")
    with pytest.raises(SpecError, match="uint8 input and uint8 output for a browser"):
        answer(subject_of(model, tmp_path / "i.npy"), 60, device=device)
