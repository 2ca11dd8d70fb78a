"""Training on more pictures than fit into the store of activations: what it takes, step by step.

    python tests/benchmarks/large.py 100000 --weights FILE --alpha 1.0 --input-size 160

Draws pictures of ten classes, circles and squares of a hue each before a blurred background, and
trains on them with one epoch and one view of each kind, as a process of its own whose lines are
shown as they come: what a phase is foretold to take stands before it, what it took behind it. Then
come the minutes of the whole and the most memory, of which the mapped pictures, which the system
takes back as it needs, are a part.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

CLASSES, SIDE = 10, 160
RECIPE = """
seed = 1
[data]
path = "pictures"
check_labels = false
[model]
alpha = {alpha}
input_size_px = {size}
weights = {weights}
[train]
head_epochs = 1
trial_epochs = 1
epochs = 1
min_steps = 0
views = 1
"""


def main() -> None:
    """Draws the pictures, trains, and prints what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "count", type=int, help="pictures; 100,000 take 0.35 GB, and 7.7 GB decoded at 160 px"
    )
    parser.add_argument("--weights", type=Path, required=True, help="MobileNetV2 no-top weights")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--input-size", type=int, default=160)
    parser.add_argument("--folder", type=Path, help="where the pictures and the run lie meanwhile")
    options = parser.parse_args()
    if not options.weights.is_file():
        parser.error(f"--weights {options.weights}: no such file")
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        draw(folder / "pictures", options.count)
        (folder / "recipe.toml").write_text(
            RECIPE.format(
                alpha=options.alpha,
                size=options.input_size,
                weights=json.dumps(str(options.weights.resolve())),
            )
        )
        command = [sys.executable, "-P", "-m", "edgekit", "run", "recipe.toml", "--until", "train"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder)
        seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.returncode)  # edgekit has said why
    most = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e9
    print(
        f"{options.count:,} pictures, {options.alpha} at {options.input_size} px, "
        f"{len(os.sched_getaffinity(0))} cores: {seconds / 60:.1f} minutes, "
        f"{most:.1f} GB"
    )


def draw(folder: Path, count: int) -> None:
    """Writes so many JPEG files, in turns into one folder for each class."""
    random = np.random.default_rng(1)
    for name in range(CLASSES):
        (folder / f"class_{name}").mkdir(parents=True)
    for number in range(count):
        name = number % CLASSES
        rough = random.integers(0, 256, (6, 6, 3), np.uint8)
        image = cv2.resize(rough, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        hue = cv2.cvtColor(np.uint8([[[18 * name, 200, 230]]]), cv2.COLOR_HSV2BGR)
        colour = tuple(map(int, hue[0, 0]))
        x, y = map(int, random.integers(40, 120, 2))
        radius = int(random.integers(15, 40))
        if name % 2:
            cv2.circle(image, (x, y), radius, colour, -1)
        else:
            corners = (x - radius, y - radius), (x + radius, y + radius)
            cv2.rectangle(image, *corners, colour, -1)
        file = folder / f"class_{name}" / f"{number}.jpg"
        cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, 80])


if __name__ == "__main__":
    main()
