"""The task the demo's backbone is pretrained on: 32 abstract figures, none a class of the demo.

It stands in for ImageNet, which a demo without a network cannot have. numpy and Pillow only.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgekit.demo.scene import (
    Conditions,
    Figure,
    Pixels,
    Points,
    Shape,
    arc,
    box,
    check_size,
    disc,
    paint_scene,
    path,
    regular_polygon,
    worker_count,
)
from edgekit.errors import SpecError
from edgekit.processes import apart

PICTURES_PER_BATCH = 256
HARD = Conditions()
EASY = Conditions(
    radius=(0.3, 0.42),
    stretch=1.1,
    distractors=1,
    occluders=0,
    texture=(0.0, 20.0),
    light=0.2,
    blur_px=(0.2, 0.6),
    noise=(0.0, 4.0),
)

FigureMaker = Callable[[np.random.Generator], Figure]


def make_arrays(
    per_class: int,
    *,
    seed: int = 0,
    size_px: int = 96,
    conditions: Conditions = HARD,
    workers: int | None = None,
) -> tuple[Pixels, npt.NDArray[np.int32]]:
    """Draws the pretraining pictures in memory.

    Row `i` shows class `i % 32`, so that every slice of whole rounds is balanced.

    Args:
        per_class: Pictures of each class, at least 1.
        seed: Seed of every random choice, 0 or more. Defaults to 0.
        size_px: Side of the square pictures in pixels, at least 32. Defaults to 96.
        conditions: How hard the scenes are. Defaults to `HARD`, harder than the demo.
        workers: Processes to draw with. Defaults to None: one per processor if that pays.

    Returns:
        uint8 images of shape (n, size_px, size_px, 3), RGB, and int32 labels of shape (n,), where
        n is `per_class` times the number of classes. A label is an index into `CLASS_NAMES`.

    Raises:
        SpecError: If a number is out of range.
    """
    check_size(size_px)
    if seed < 0 or per_class < 1:
        raise SpecError(
            f"seed={seed}, per_class={per_class}",
            "a seed of 0 or more and at least 1 picture of each class",
            "correct these numbers",
        )
    total = per_class * len(FIGURES)
    images = np.empty((total, size_px, size_px, 3), np.uint8)
    batches = [
        range(start, min(start + PICTURES_PER_BATCH, total))
        for start in range(0, total, PICTURES_PER_BATCH)
    ]
    work = functools.partial(_draw_rows, seed, size_px, conditions)
    processes = worker_count(total, workers)
    if processes == 1:
        for rows in batches:
            images[rows.start : rows.stop] = work(rows)
    else:
        with apart(work, batches, processes) as drawing:
            for rows, drawn in zip(batches, drawing, strict=True):
                images[rows.start : rows.stop] = drawn
    labels = (np.arange(total) % len(FIGURES)).astype(np.int32)
    return images, labels


def _draw_rows(seed: int, size_px: int, conditions: Conditions, numbers: range) -> Pixels:
    """Draws some rows; runs in a worker."""
    rows = np.empty((len(numbers), size_px, size_px, 3), np.uint8)
    for row in numbers:
        name = CLASS_NAMES[row % len(CLASS_NAMES)]
        rng = np.random.default_rng((seed, row))
        rows[row - numbers.start] = paint_scene(FIGURES[name](rng), rng, size_px, conditions)
    return rows


def _solid(corners: int) -> FigureMaker:
    """Returns the maker of a filled regular polygon."""
    return lambda rng: (Shape(regular_polygon(corners, rng.uniform(0.75, 1.0))),)


def _outline(corners: int) -> FigureMaker:
    """Returns the maker of the outline of a regular polygon."""

    def make(rng: np.random.Generator) -> Figure:
        points = regular_polygon(corners, 0.9)
        return (Shape(np.concatenate([points, points[:1]]), rng.uniform(0.12, 0.24)),)

    return make


def _star(rays: int) -> FigureMaker:
    """Returns the maker of a star."""

    def make(rng: np.random.Generator) -> Figure:
        points = regular_polygon(2 * rays)
        points[1::2] *= rng.uniform(0.35, 0.5)
        return (Shape(points),)

    return make


def _dots(count: int) -> FigureMaker:
    """Returns the maker of equal dots on a circle."""

    def make(rng: np.random.Generator) -> Figure:
        radius = rng.uniform(0.2, 0.32)
        places = regular_polygon(count, rng.uniform(0.6, 0.75))
        return tuple(Shape(disc(float(x), float(y), radius)) for x, y in places)

    return make


def _bars(count: int) -> FigureMaker:
    """Returns the maker of equal parallel bars."""

    def make(rng: np.random.Generator) -> Figure:
        half = rng.uniform(0.09, 0.16)
        places = np.linspace(-0.6, 0.6, count)
        return tuple(Shape(box(-0.75, float(y) - half, 0.75, float(y) + half)) for y in places)

    return make


def _glyph(*lines: Points) -> FigureMaker:
    """Returns the maker of a figure of strokes along `lines`, each corner moved a little."""

    def make(rng: np.random.Generator) -> Figure:
        width = rng.uniform(0.13, 0.3)
        shift = rng.normal(0, 0.05, 2)
        return tuple(Shape(line + rng.normal(0, 0.04, line.shape) + shift, width) for line in lines)

    return make


def _fixed(*shapes: Shape) -> FigureMaker:
    """Returns the maker of one unchanging figure."""
    return lambda _rng: shapes


def _crescent(rng: np.random.Generator) -> Figure:
    """A disc with a disc bitten out of its side."""
    aside = rng.uniform(0.35, 0.55)
    return (Shape(disc(0, 0, 0.95)), Shape(disc(aside, 0, 0.75), cuts=True))


def _pie(rng: np.random.Generator) -> Figure:
    """A disc that lacks a slice."""
    half = rng.uniform(0.3, 0.8)
    rim = arc((0, 0), 0.95, half, 2 * math.pi - half)
    return (Shape(np.concatenate([rim, path((0, 0))])),)


def _spiral(rng: np.random.Generator) -> Figure:
    """A stroke that winds outwards."""
    angles = np.linspace(0, 2 * math.pi * rng.uniform(1.7, 2.4), 60)
    radii = np.linspace(0.08, 0.92, 60)
    points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return (Shape(points, rng.uniform(0.1, 0.2)),)


def _wave(rng: np.random.Generator) -> Figure:
    """A stroke along one and a half periods of a sine."""
    along = np.linspace(-0.9, 0.9, 40)
    points = np.stack([along, 0.45 * np.sin(along * 5.2 + rng.uniform(0, 6.28))], axis=1)
    return (Shape(points, rng.uniform(0.14, 0.28)),)


def _flower(rng: np.random.Generator) -> Figure:
    """Five petals around a hole."""
    radius = rng.uniform(0.32, 0.4)
    petals = tuple(Shape(disc(float(x), float(y), radius)) for x, y in regular_polygon(5, 0.58))
    return (*petals, Shape(disc(0, 0, 0.25), cuts=True))


def _house(rng: np.random.Generator) -> Figure:
    """A box with a roof and a door."""
    eave = rng.uniform(-0.3, 0.0)
    door = box(-0.15, 0.25, 0.2, 0.8)
    roof = path((-0.9, eave), (0, -0.9), (0.9, eave))
    return (Shape(box(-0.65, eave - 0.05, 0.65, 0.8)), Shape(roof), Shape(door, cuts=True))


def _comb(rng: np.random.Generator) -> Figure:
    """A back with teeth on one side."""
    teeth = int(rng.integers(4, 7))
    lefts = np.linspace(-0.9, 0.7, teeth)
    prongs = tuple(Shape(box(float(left), -0.3, float(left) + 0.2, 0.6)) for left in lefts)
    return (Shape(box(-0.9, -0.6, 0.9, -0.2)), *prongs)


def _dumbbell(rng: np.random.Generator) -> Figure:
    """Two discs joined by a rod."""
    radius = rng.uniform(0.28, 0.4)
    rod = box(-0.6, -0.1, 0.6, 0.1)
    return (Shape(rod), Shape(disc(-0.6, 0, radius)), Shape(disc(0.6, 0, radius)))


FIGURES: dict[str, FigureMaker] = {
    "arrow": _fixed(
        Shape(box(-0.9, -0.16, 0.3, 0.16)), Shape(path((0.2, -0.55), (0.95, 0), (0.2, 0.55)))
    ),
    "bars 2": _bars(2),
    "bars 3": _bars(3),
    "bars 4": _bars(4),
    "comb": _comb,
    "crescent": _crescent,
    "cross": _fixed(Shape(box(-0.9, -0.28, 0.9, 0.28)), Shape(box(-0.28, -0.9, 0.28, 0.9))),
    "disc": _solid(32),
    "dots 2": _dots(2),
    "dots 3": _dots(3),
    "dots 4": _dots(4),
    "dots 5": _dots(5),
    "dumbbell": _dumbbell,
    "flower": _flower,
    "glyph A": _glyph(path((-0.65, 0.9), (0, -0.9), (0.65, 0.9)), path((-0.4, 0.25), (0.4, 0.25))),
    "glyph E": _glyph(
        path((0.6, -0.8), (-0.6, -0.8), (-0.6, 0.8), (0.6, 0.8)), path((-0.6, 0), (0.45, 0))
    ),
    "glyph F": _glyph(path((0.6, -0.8), (-0.5, -0.8), (-0.5, 0.9)), path((-0.5, 0), (0.4, 0))),
    "glyph H": _glyph(
        path((-0.6, -0.8), (-0.6, 0.8)), path((0.6, -0.8), (0.6, 0.8)), path((-0.6, 0), (0.6, 0))
    ),
    "glyph L": _glyph(path((-0.5, -0.9), (-0.5, 0.8), (0.6, 0.8))),
    "glyph Y": _glyph(path((-0.7, -0.8), (0, 0), (0.7, -0.8)), path((0, 0), (0, 0.9))),
    "glyph Z": _glyph(path((-0.7, -0.8), (0.7, -0.8), (-0.7, 0.8), (0.7, 0.8))),
    "house": _house,
    "pentagon": _solid(5),
    "pie": _pie,
    "ring": _outline(32),
    "spiral": _spiral,
    "square": _solid(4),
    "star 4": _star(4),
    "star 5": _star(5),
    "triangle": _solid(3),
    "triangle outline": _outline(3),
    "wave": _wave,
}
CLASS_NAMES = tuple(FIGURES)
