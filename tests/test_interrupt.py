"""Ctrl-C and SIGKILL at every stage of the work: what is said, what is kept, what comes out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.store import file_digest

pytest.importorskip("tensorflow")

from edgekit.demo.pictures import make_pictures
from edgekit.demo.recipe import WEIGHTS

EPOCHS = 6
QAT_EPOCHS = 4
RECIPE = """
[data]
path = "{pictures}"
check_labels = false
[model]
alpha = 0.35
input_size_px = 48
weights = "{weights}"
[train]
strategy = "progressive"
granularity = "block"
unfreeze_until = "block_16_expand"
patience = 9
head_epochs = 2
trial_epochs = 2
epochs = {epochs}
min_steps = 0
views = 3
[quantize]
qat_epochs = {qat_epochs}
calibration_images = 36
"""


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


def command(pictures: Path, out: Path, until: str = "train") -> list[str]:
    """Returns the command line of a short run that trains four phases of several epochs."""
    recipe = out.with_suffix(".toml")
    recipe.write_text(
        RECIPE.format(pictures=pictures, weights=WEIGHTS, epochs=EPOCHS, qat_epochs=QAT_EPOCHS)
    )
    return [sys.executable, "-m", "edgekit", "run", str(recipe), "--until", until,
            "--out", str(out)]  # fmt: skip


def finish(arguments: list[str]) -> str:
    """Runs a command to its end and returns its stderr."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stderr


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


def kill_when(ready: Callable[[], bool], arguments: list[str]) -> None:
    """Runs a command and kills it at a moment at which something is true.

    It is halted first and looked at again, so that it holds when the command dies.
    """
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(0.0005)
            if not ready():
                continue
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if process.poll() is None and ready():
                process.kill()
                break
            process.send_signal(signal.SIGCONT)
    assert process.returncode == -signal.SIGKILL, "the command ended before the moment came"


def stored(out: Path, stage: str) -> list[dict[str, Any]]:
    """Returns the entries of all finished results that the store holds of a stage."""
    found = []
    for file in (out / ".store").glob(f"{stage}/[!.]*/record.json"):
        try:
            found.append(json.loads(file.read_bytes()))
        except FileNotFoundError:  # deleted in the meantime
            return []
    return found


def epochs_of(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the epochs of the checkpoint that went furthest."""
    return max((entry["record"]["epochs"] for entry in entries), key=len, default=[])


def checkpoints(out: Path, phase: int) -> list[dict[str, Any]]:
    """Returns the checkpoints of a phase of training, the head being 0."""
    return [
        entry for entry in stored(out, "train-epoch") if entry["key"]["params"]["number"] == phase
    ]


def digests(out: Path, stage: str) -> dict[str, str]:
    """Returns the sha256 of everything that a stage of a run made."""
    (folder,) = (out / ".store" / stage).iterdir()
    return {file.name: file_digest(file) for file in folder.iterdir() if file.name != "record.json"}


def leftovers(out: Path) -> set[str]:
    """Returns what lies in the store beside the results of stages."""
    stages = {"lock", "data", "train", "quantize"}
    return {path.name for path in (out / ".store").iterdir()} - stages


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run to the end of quantization that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert "kept from before" not in finish(command(pictures, out, "quantize"))
    return out


@pytest.mark.slow
def test_an_uninterrupted_run_leaves_no_steps(whole: Path) -> None:
    assert leftovers(whole) == set()
    (trained,) = stored(whole, "train")
    phases = trained["record"]["phases"]
    assert [(phase["purpose"], phase["cut"]) for phase in phases] == [
        ("head", "head"), ("trial", "Conv_1"), ("trial", "block_16_expand"),
        ("final", "block_16_expand"),
    ]  # fmt: skip
    assert [len(phase["epochs"]) for phase in phases] == [2, 2, 2, EPOCHS]
    assert [phase["prefix"]["views_stored"] for phase in phases] == [2, 2, 2, 3]


def test_interrupted_run_says_how_to_continue(pictures: Path, tmp_path: Path) -> None:
    arguments = command(pictures, tmp_path / "out")
    code, seen = stop_after("head: ", arguments, signal.SIGINT)
    assert code == 130, seen
    assert "finished stages" in seen
    assert "are kept. Continue with:" in seen
    assert f"edgekit run {tmp_path / 'out.toml'}" in seen
    assert "Traceback" not in seen


@pytest.mark.parametrize(("kept", "said"), [(True, "interrupted"), (False, "went on")])
def test_an_interrupt_in_a_finalizer_is_not_lost(kept: bool, said: str) -> None:
    """Python reports what a finalizer raises, and goes on; the twin shows that it does."""
    script = f"""
import os, signal, time
from edgekit.__main__ import keep_interrupts

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

if {kept}:
    keep_interrupts()
try:
    Finalized()
    time.sleep(60 if {kept} else 1)
    print("went on")
except KeyboardInterrupt:
    print("interrupted")
"""
    # The limit ends a hang; it does not measure.
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.strip() == said
    assert ("KeyboardInterrupt" in done.stderr) == (not kept)


@pytest.mark.slow
def test_killed_run_continues_behind_the_last_epoch_with_the_same_weights(
    pictures: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = command(pictures, out)
    kill_when(lambda: 2 <= len(epochs_of(checkpoints(out, 3))) < EPOCHS, arguments)
    kept = epochs_of(checkpoints(out, 3))
    assert len(stored(out, "train-phase")) == 3
    seen = finish(arguments)
    told = [line for line in seen.splitlines() if line.endswith("kept from before")]
    before = ["head", "trial from Conv_1", "trial from block_16_expand"]
    assert [line.split(":")[0] for line in told] == before
    # Epochs that had been run again would have taken another time.
    (trained,) = stored(out, "train")
    assert trained["record"]["phases"][3]["epochs"][: len(kept)] == kept
    assert digests(out, "train") == digests(whole, "train")
    assert leftovers(out) == set(), "no longer needed"


@pytest.mark.slow
def test_damaged_activations_of_a_killed_run_are_named_and_made_again(
    pictures: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = command(pictures, out)

    def computing() -> bool:
        """Whether activations are being written while others are finished."""
        root = out / ".store"
        return any(root.glob("activations-*/.draft-*")) and len(stored(out, "activations-*")) > 0

    kill_when(computing, arguments)
    assert not stored(out, "train-phase")
    shard = next((out / ".store").glob("activations-*/[!.]*/*.npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    stage, name = shard.parent.parent.name, shard.name
    seen = finish(arguments)
    assert f"stored {stage} result is damaged and is made again: {name} has sha256" in seen
    assert digests(out, "train") == digests(whole, "train")
    assert leftovers(out) == {"quarantine"}


@pytest.mark.slow
def test_killed_quantization_aware_training_continues_behind_its_last_epoch(
    pictures: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / ".store" / "quantize")
    arguments = command(pictures, out, "quantize")
    kill_when(lambda: 2 <= len(epochs_of(stored(out, "quantize-epoch"))) < QAT_EPOCHS, arguments)
    kept = epochs_of(stored(out, "quantize-epoch"))
    seen = finish(arguments)
    assert "train: unchanged, reused" in seen
    assert digests(out, "quantize") == digests(whole, "quantize")
    assert leftovers(out) == set()
    (quantized,) = stored(out, "quantize")
    trained = next(c for c in quantized["record"]["candidates"] if c["name"] == "qat")
    assert trained["epochs"][: len(kept)] == kept
