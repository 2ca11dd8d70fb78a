"""Reading a data folder: what it takes by folders and by a table, against a plain loop.

    python tests/benchmarks/scan.py 100000

Draws small pictures of a hundred classes, and links the same files into one folder beside a table.
Of each form the scan, the decoding into arrays at 32 px and, within that, the division into splits
are measured in a process of their own: seconds on the clock, and those that it computed itself,
which other work on the machine moves less; pictures are decoded by others. The plain loop is
`os.walk` and Pillow's `verify` on every file, in one process, which reads and checks every picture
and keeps nothing; ratios are to it, on the clock and in seconds of its own. The memory is the most
that a process had, with the arrays, which are mapped: the system takes them back as it needs.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES, SIDE_PX, INPUT_PX = 100, 64, 32
MIB = 1024**2


@dataclass
class Took:
    """What a process took: of each step seconds on the clock and its own, and the most memory."""

    steps: dict[str, tuple[float, float]] = field(default_factory=dict)
    memory_mib: float = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measures what is done meanwhile."""
        clock, own = time.perf_counter(), time.process_time()
        yield
        self.steps[name] = time.perf_counter() - clock, time.process_time() - own
        # ru_maxrss is in KiB.
        self.memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Draws the pictures, measures each form, and prints what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int, help="pictures; 100,000 take 0.4 GB on the disk")
    parser.add_argument("--folder", type=Path, help="where the pictures lie meanwhile")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        form, root = options.measure
        print(json.dumps(asdict(FORMS[form](Path(root)))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        draw(folder / "folders", options.count)
        link(folder / "folders", folder / "table")
        arrays = 2 * options.count * INPUT_PX**2 * 3 / MIB
        print(
            f"{options.count:,} pictures, {len(os.sched_getaffinity(0))} cores; decode holds "
            f"{arrays:,.0f} MiB of arrays"
        )
        plain = measured("plain loop", folder / "folders")
        loop = plain.steps["verify"]
        show("plain loop", plain, loop)
        for form in ("folders", "table"):
            show(form, measured(form, folder / form), loop)


def show(form: str, took: Took, loop: tuple[float, float]) -> None:
    """Prints what a form took.

    Args:
        form: Its name.
        took: What it took.
        loop: What the plain loop took, on the clock and its own.
    """
    print(f"{form}: {took.memory_mib:,.0f} MiB")
    for step, (clock, own) in took.steps.items():
        ratios = f"{clock / loop[0]:6.2f}x and {own / loop[1]:5.2f}x"
        print(f"  {step:<8} {clock:7.1f} s, its own {own:6.1f} s: {ratios}", flush=True)


def draw(root: Path, count: int) -> None:
    """Draws pictures of a few random patches each, so that no two look alike."""
    for label in range(CLASSES):
        (root / f"class_{label:03}").mkdir(parents=True)
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        picture = Image.fromarray(values).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
        path = root / f"class_{number % CLASSES:03}" / f"{number:07}.jpg"
        picture.save(path, "JPEG", quality=80)


def link(root: Path, target: Path) -> None:
    """Links the same files into one folder, beside a table of their classes."""
    (target / "images").mkdir(parents=True)
    with (target / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("id", "label"))
        for path in sorted(root.rglob("*.jpg")):
            (target / "images" / path.name).hardlink_to(path)
            writer.writerow((path.stem, path.parent.name))


def measured(form: str, root: Path) -> Took:
    """Returns what a form took in a process of its own."""
    command = (sys.executable, __file__, "0", "--measure", form, str(root))
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return Took(**json.loads(done.stdout))


def plain(root: Path) -> Took:
    """Walks over the files and lets Pillow verify each."""
    took = Took()
    with took.step("verify"):
        for folder, _, names in os.walk(root):
            for name in names:
                with Image.open(Path(folder) / name) as picture:
                    picture.verify()
    return took


def read(root: Path) -> Took:
    """Scans, decodes and divides the pictures as edgekit does."""
    from edgekit.data import decode as stage
    from edgekit.data.scan import scan
    from edgekit.recipe import DataSpec
    from edgekit.records import Preprocess

    took = Took()
    assign = stage.assign

    def timed(*arguments: Any, **named: Any) -> Any:
        with took.step("split"):
            return assign(*arguments, **named)

    stage.assign = timed
    with took.step("scan"):
        found = scan(root)
    contract = Preprocess(height_px=INPUT_PX, width_px=INPUT_PX, resize="bilinear", crop="none")
    asked = DataSpec(path=root, min_images_per_class=1)
    with tempfile.TemporaryDirectory(dir=root.parent) as arrays, took.step("decode"):
        stage.decode(found, contract, asked, Path(arrays), seed=1, progress=lambda *_: None)
    return took


FORMS = {"plain loop": plain, "folders": read, "table": read}

if __name__ == "__main__":
    main()
