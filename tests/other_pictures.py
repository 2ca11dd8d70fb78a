"""Pictures that belong to no class of any test: smooth noise of random colours."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw_other(folder: Path, count: int, *, side_px: int = 64, seed: int = 0) -> Path:
    """Writes JPEG files, in sub-folders that mean nothing."""
    random = np.random.default_rng(seed)
    for number in range(count):
        rows, columns = random.integers(2, 9, 2)
        coarse = random.integers(0, 256, (rows, columns, 3), np.uint8)
        path = folder / f"part-{number % 3}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((side_px, side_px)).save(path, quality=90)
    return folder
