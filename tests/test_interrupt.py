"""Ctrl-C in the middle of a run: exit code 130 and the command that continues."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")

from edgekit.demo.pictures import make_pictures
from edgekit.demo.recipe import WEIGHTS


def test_interrupted_run_says_how_to_continue(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    make_pictures(
        pictures,
        train_per_class=12,
        validation_per_class=2,
        test_per_class=2,
        size_px=48,
        workers=1,
    )
    command = [
        sys.executable, "-m", "edgekit", "run", "--data", str(pictures), "--weights", str(WEIGHTS),
        "--alpha", "0.35", "--input-size", "48", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    seen = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            seen += line
            if line.startswith("phase 1"):
                process.send_signal(signal.SIGINT)
                break
        seen += process.stderr.read()
    assert process.returncode == 130, seen
    assert "interrupted; finished stages are kept. Continue with:" in seen
    assert f"edgekit run --data {pictures}" in seen
    assert "Traceback" not in seen
