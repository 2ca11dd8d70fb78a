"""The demo's data set: eight kinds of workshop parts, drawn from a seed. numpy and Pillow only.

The parts come in pairs that look alike (bolt and screw, gear and sprocket, hammer and mallet, key
and wrench): features of another task tell the pairs apart but not the two of a pair, which is what
unfreezing has to learn.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from edgekit.demo.scene import (
    Conditions,
    Figure,
    Pixels,
    Points,
    Shape,
    box,
    check_size,
    disc,
    paint_scene,
    path,
    regular_polygon,
    worker_count,
)
from edgekit.errors import DataError, SpecError
from edgekit.processes import apart

SPLITS = ("train", "validation", "test")
JPEG_QUALITY = 90
CONDITIONS = Conditions(
    radius=(0.32, 0.46),
    stretch=1.1,
    distractors=2,
    occluders=1,
    texture=(5.0, 30.0),
    light=0.3,
    blur_px=(0.2, 0.7),
    noise=(2.0, 8.0),
)


def make_pictures(
    directory: Path,
    *,
    seed: int = 0,
    train_per_class: int = 250,
    validation_per_class: int = 60,
    test_per_class: int = 180,
    size_px: int = 112,
    workers: int | None = None,
) -> tuple[str, ...]:
    """Writes labelled pictures to `directory/{train,validation,test}/<class>/NNNN.jpg`.

    Each picture has its own random stream, made of the seed, its split, class and number: asking
    for more pictures leaves the others as they are, and so does the number of processes.

    Args:
        directory: Folder to fill; made if missing, otherwise empty.
        seed: Seed of every random choice, 0 or more. Defaults to 0.
        train_per_class: Training pictures of each class. Defaults to 250.
        validation_per_class: Validation pictures of each class. Defaults to 60.
        test_per_class: Test pictures of each class. Defaults to 180.
        size_px: Side of the square pictures in pixels, at least 32. Defaults to 112.
        workers: Processes to draw with. Defaults to None: one per processor if that pays.

    Returns:
        Names of the classes in alphabetical order.

    Raises:
        DataError: If `directory` already holds something.
        SpecError: If a number is out of range.
    """
    check_size(size_px)
    counts = dict(zip(SPLITS, (train_per_class, validation_per_class, test_per_class), strict=True))
    if seed < 0 or min(counts.values()) < 1:
        raise SpecError(
            f"seed={seed}, pictures per class {counts}",
            "a seed of 0 or more and at least 1 picture of each class in each split",
            "correct these numbers",
        )
    if directory.is_dir() and any(directory.iterdir()):
        raise DataError(
            f"{directory} is not empty",
            "a new or empty folder, so that no older picture mixes in",
            "remove the folder or name another one",
        )
    jobs = [
        (split, name, number)
        for split, count in counts.items()
        for name in FIGURES
        for number in range(count)
    ]
    processes = worker_count(len(jobs), workers)
    for split in counts:
        for name in FIGURES:
            (directory / split / name).mkdir(parents=True)
    if processes == 1:
        _write_pictures(directory, seed, size_px, jobs)
    else:
        shares = [jobs[start::processes] for start in range(processes)]
        work = functools.partial(_write_pictures, directory, seed, size_px)
        with apart(work, shares, processes) as drawing:
            for _ in drawing:
                pass
    return tuple(FIGURES)


def draw_picture(name: str, *, seed: int, split: str, number: int, size_px: int = 112) -> Pixels:
    """Draws one picture of the data set, before JPEG.

    Args:
        name: Class, a key of `FIGURES`.
        seed: Seed of the data set.
        split: "train", "validation" or "test".
        number: Number of the picture in its class and split.
        size_px: Side of the picture in pixels. Defaults to 112.

    Returns:
        uint8 array of shape (size_px, size_px, 3), RGB.
    """
    stream = (seed, SPLITS.index(split), list(FIGURES).index(name), number)
    rng = np.random.default_rng(stream)
    return paint_scene(FIGURES[name](rng), rng, size_px, CONDITIONS)


def _write_pictures(
    directory: Path, seed: int, size_px: int, jobs: list[tuple[str, str, int]]
) -> None:
    """Draws and writes the pictures (split, class, number) of `jobs`; runs in a worker."""
    for split, name, number in jobs:
        picture = draw_picture(name, seed=seed, split=split, number=number, size_px=size_px)
        target = directory / split / name / f"{number:04d}.jpg"
        Image.fromarray(picture).save(target, quality=JPEG_QUALITY)


def _bolt(rng: np.random.Generator) -> Figure:
    """Side view: a wide head and a threaded shank."""
    head, half = rng.uniform(0.24, 0.36), rng.uniform(0.38, 0.55)
    shank = rng.uniform(0.15, 0.22)
    start = -0.9 + head
    return (Shape(box(-0.9, -half, start, half)), Shape(_threaded(rng, start, 0.9, shank)))


def _threaded(rng: np.random.Generator, start: float, stop: float, half: float) -> Points:
    """Returns the outline of a shank along x, ridged from some place on up to `stop`."""
    count = 2 * int(rng.integers(5, 9))
    ridge = np.linspace(rng.uniform(start, start + 0.3), stop, count)
    depth = np.where(np.arange(count) % 2 == 0, half, half + 0.1)
    upper = np.stack([ridge, -depth], axis=1)
    lower = np.stack([ridge, depth], axis=1)[::-1]
    return np.concatenate([path((start, -half)), upper, lower, path((start, half))])


def _gear(rng: np.random.Generator) -> Figure:
    """A toothed disc with a round hole."""
    teeth = int(rng.integers(6, 10))
    root = rng.uniform(0.62, 0.72)
    steps = np.arange(4 * teeth)
    angles = steps * (2 * math.pi / (4 * teeth))
    radii = np.where(steps % 4 < 2, 0.98, root)
    outline = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return (Shape(outline), Shape(disc(0, 0, rng.uniform(0.25, 0.45)), cuts=True))


def _hammer(rng: np.random.Generator) -> Figure:
    """A handle with a head across it: blunt on one side, tapered on the other."""
    half, top = rng.uniform(0.09, 0.14), rng.uniform(0.16, 0.22)
    face, peen = rng.uniform(0.32, 0.44), rng.uniform(0.6, 0.8)
    head = path((-0.9, -face), (-0.9 + 2 * top, -face), (-0.9 + 2 * top, 0.1), (-0.9 + top, peen))
    return (Shape(box(-0.8, -half, 0.92, half)), Shape(np.concatenate([head, path((-0.9, 0.1))])))


def _key(rng: np.random.Generator) -> Figure:
    """A round bow with a hole, a shaft and two or three bits at its end."""
    bow, half = rng.uniform(0.34, 0.42), rng.uniform(0.07, 0.11)
    parts = [
        Shape(disc(-0.92 + bow, 0, bow)),
        Shape(disc(-0.92 + bow, 0, bow * rng.uniform(0.4, 0.6)), cuts=True),
        Shape(box(-0.95 + 2 * bow, -half, 0.92, half)),
    ]
    for place in range(int(rng.integers(2, 4))):
        left = 0.76 - 0.24 * place
        parts.append(Shape(box(left, 0, left + 0.14, half + rng.uniform(0.2, 0.36))))
    return tuple(parts)


def _mallet(rng: np.random.Generator) -> Figure:
    """A handle with the same blunt block on both sides."""
    half, top = rng.uniform(0.09, 0.14), rng.uniform(0.19, 0.27)
    face = rng.uniform(0.44, 0.62)
    return (Shape(box(-0.8, -half, 0.92, half)), Shape(box(-0.9, -face, -0.9 + 2 * top, face)))


def _screw(rng: np.random.Generator) -> Figure:
    """Side view: a countersunk head and a threaded shank that ends in a point."""
    head, half = rng.uniform(0.24, 0.36), rng.uniform(0.38, 0.55)
    shank, tip = rng.uniform(0.15, 0.22), rng.uniform(0.35, 0.5)
    start = -0.9 + head
    cone = path((-0.9, -half), (-0.8, -half), (start, -shank), (start, shank), (-0.8, half))
    return (
        Shape(np.concatenate([cone, path((-0.9, half))])),
        Shape(_threaded(rng, start, 0.9 - tip, shank)),
        Shape(path((0.85 - tip, -shank), (0.95, 0), (0.85 - tip, shank))),
    )


def _sprocket(rng: np.random.Generator) -> Figure:
    """A disc with pointed teeth and a round hole."""
    teeth = int(rng.integers(8, 13))
    outline = regular_polygon(2 * teeth, 1.05)
    outline[1::2] *= rng.uniform(0.54, 0.62)
    return (Shape(outline), Shape(disc(0, 0, rng.uniform(0.25, 0.4)), cuts=True))


def _wrench(rng: np.random.Generator) -> Figure:
    """A handle with an open jaw at one end and a ring at the other."""
    half, jaw, ring = rng.uniform(0.1, 0.15), rng.uniform(0.34, 0.42), rng.uniform(0.24, 0.3)
    gap = jaw * rng.uniform(0.4, 0.55)
    mouth: Points = box(-1.0, -gap, -0.95 + jaw, gap)
    return (
        Shape(box(-0.6, -half, 0.7, half)),
        Shape(disc(-0.95 + jaw, 0, jaw)),
        Shape(mouth, cuts=True),
        Shape(disc(0.95 - ring, 0, ring)),
        Shape(disc(0.95 - ring, 0, ring * rng.uniform(0.45, 0.6)), cuts=True),
    )


FIGURES: dict[str, Callable[[np.random.Generator], Figure]] = {
    "bolt": _bolt,
    "gear": _gear,
    "hammer": _hammer,
    "key": _key,
    "mallet": _mallet,
    "screw": _screw,
    "sprocket": _sprocket,
    "wrench": _wrench,
}
