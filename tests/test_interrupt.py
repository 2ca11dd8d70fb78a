"""Ctrl-C and SIGKILL in the middle of training: what is said, what is kept, what comes out."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.store import file_digest

pytest.importorskip("tensorflow")

from edgekit.demo.pictures import make_pictures
from edgekit.demo.recipe import WEIGHTS


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupt") / "pictures"
    make_pictures(
        folder,
        train_per_class=12,
        validation_per_class=2,
        test_per_class=2,
        size_px=48,
        workers=1,
    )
    return folder


def command(pictures: Path, out: Path) -> list[str]:
    """Returns the command line of a short training run of three phases."""
    recipe = out.with_suffix(".toml")
    recipe.write_text(
        f'[data]\npath = "{pictures}"\n'
        f'[model]\nalpha = 0.35\ninput_size_px = 48\nweights = "{WEIGHTS}"\n'
        "[train]\nhead_epochs = 2\nphase_epochs = 1\npatience = 2\nmin_delta = 9.0\n"
    )
    return [sys.executable, "-m", "edgekit", "run", str(recipe), "--until", "train",
            "--out", str(out)]  # fmt: skip


def stop_after(line_start: str, arguments: list[str], number: signal.Signals) -> tuple[int, str]:
    """Runs a command, sends it a signal behind a line, returns its exit code and stderr."""
    seen = ""
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            seen += line
            if line.startswith(line_start):
                process.send_signal(number)
                break
        seen += process.stderr.read()
    return process.returncode, seen


def weights_digest(out: Path) -> str:
    """Returns the sha256 of the trained weights of a run."""
    return file_digest(next((out / ".store" / "train").glob("*/weights.npz")))


def test_interrupted_run_says_how_to_continue(pictures: Path, tmp_path: Path) -> None:
    arguments = command(pictures, tmp_path / "out")
    code, seen = stop_after("phase 1", arguments, signal.SIGINT)
    assert code == 130, seen
    assert "finished stages and phases are kept. Continue with:" in seen
    assert f"edgekit run {tmp_path / 'out.toml'}" in seen
    assert "Traceback" not in seen


def test_killed_run_continues_behind_the_last_phase_with_the_same_weights(
    pictures: Path, tmp_path: Path
) -> None:
    arguments = command(pictures, tmp_path / "killed")
    code, seen = stop_after("phase 2", arguments, signal.SIGKILL)
    assert code == -signal.SIGKILL, seen
    again = subprocess.run(arguments, capture_output=True, text=True, timeout=280)
    assert again.returncode == 0, again.stderr
    kept = [line for line in again.stderr.splitlines() if line.endswith("kept from before")]
    assert [line.split(":")[0] for line in kept] == ["phase 1", "phase 2"]

    whole = subprocess.run(
        command(pictures, tmp_path / "whole"), capture_output=True, text=True, timeout=280
    )
    assert whole.returncode == 0, whole.stderr
    assert "kept from before" not in whole.stderr
    assert weights_digest(tmp_path / "killed") == weights_digest(tmp_path / "whole")
    assert not list((tmp_path / "killed" / ".store").glob("train-phase")), "no longer needed"
