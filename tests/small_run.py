"""The whole pipeline on a small generated data set, as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

from edgekit.demo.recipe import WEIGHTS

TARGETS = ("host-litert", "host-onnxruntime", "pixel-8", "cortex-m7")
RECIPE = """
seed = 3
targets = {targets}
[data]
path = {path}
check_labels = {check_labels}
[model]
alpha = 0.35
input_size_px = 64
weights = {weights}
[train]
head_epochs = 3
epochs = 1
min_steps = 0
unfreeze_from = "block_16_expand"
{training}
[quantize]
qat_epochs = {qat_epochs}
calibration_images = 64
[validation]
sessions = 3
min_queries = 40
min_seconds = 0.0
warmup_seconds = 0.05
"""


def write_recipe(
    path: Path,
    pictures: Path,
    qat_epochs: int = 1,
    training: str = "",
    *,
    check_labels: bool = False,
) -> Path:
    """Writes a recipe that runs in well under a minute; `training` is a line of [train]."""
    path.write_text(
        RECIPE.format(
            targets=json.dumps(TARGETS),
            path=json.dumps(str(pictures)),
            check_labels=json.dumps(check_labels),
            weights=json.dumps(str(WEIGHTS)),
            qat_epochs=qat_epochs,
            training=training,
        )
    )
    return path


def edgekit(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-m", "edgekit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def run(recipe: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs the pipeline as a user does."""
    return edgekit("run", str(recipe), "--out", str(out), *more)
