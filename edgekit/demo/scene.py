"""Draws a figure under the nuisances of a real camera. Shared by both procedural tasks.

A figure is a tuple of `Shape`s in figure units: x to the right, y down, everything inside about
the unit circle. `paint_scene` gives it a random place, size, rotation, colour and texture on a
random background, with clutter, occlusion, uneven light, blur and noise. No colour, place or size
depends on the figure, so only its form tells one class from another. numpy and Pillow only.
"""

import math
import os
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from edgekit.errors import SpecError

Points: TypeAlias = npt.NDArray[np.float64]
Pixels: TypeAlias = npt.NDArray[np.uint8]
Levels: TypeAlias = npt.NDArray[np.float32]

SUPERSAMPLING = 2
SMALLEST_SIZE_PX = 32
SMALLEST_CONTRAST = 70.0
PICTURES_PER_WORKER = 200


@dataclass(frozen=True)
class Shape:
    """One part of a figure.

    Args:
        points: Vertices, float64 of shape (n, 2), in figure units.
        width: Width of the stroke along `points` in figure units. Defaults to 0: a filled polygon.
        cuts: Whether the part erases what earlier parts drew. Defaults to False.
    """

    points: Points
    width: float = 0.0
    cuts: bool = False


Figure: TypeAlias = tuple[Shape, ...]


@dataclass(frozen=True)
class Conditions:
    """How hard the scenes are. Pairs are (lowest, highest) of a uniform draw.

    Args:
        radius: Radius of the figure as a fraction of the side of the picture.
        stretch: Ratio of the two axes of the figure, drawn log-uniformly from 1/stretch to stretch.
        distractors: Clutter shapes behind the figure, drawn from 0 to this number inclusive.
        occluders: Clutter shapes in front of the figure, likewise.
        texture: Amplitude of background and figure texture in grey levels.
        light: Largest relative change of brightness from the centre to an edge of the picture.
        blur_px: Standard deviation of the blur for a picture of 100 px; scales with its size.
        noise: Standard deviation of the pixel noise in grey levels.
    """

    radius: tuple[float, float] = (0.22, 0.42)
    stretch: float = 1.25
    distractors: int = 6
    occluders: int = 2
    texture: tuple[float, float] = (5.0, 60.0)
    light: float = 0.45
    blur_px: tuple[float, float] = (0.2, 1.1)
    noise: tuple[float, float] = (2.0, 14.0)


def regular_polygon(corners: int, radius: float = 1.0, turn: float = 0.0) -> Points:
    """Returns the corners of a regular polygon around the origin.

    Args:
        corners: Number of corners; many make a disc.
        radius: Radius of the circle through the corners, figure units. Defaults to 1.
        turn: Angle of the first corner in radians. Defaults to 0.

    Returns:
        float64 array of shape (corners, 2).
    """
    angles = turn + np.arange(corners) * (2 * math.pi / corners)
    points: Points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius
    return points


def arc(centre: tuple[float, float], radius: float, start: float, stop: float) -> Points:
    """Returns 24 points along an arc.

    Args:
        centre: Centre (x, y) in figure units.
        radius: Radius in figure units.
        start: Angle of the first point in radians, clockwise on the screen from the x axis.
        stop: Angle of the last point in radians.

    Returns:
        float64 array of shape (24, 2).
    """
    angles = np.linspace(start, stop, 24)
    points: Points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + centre
    return points


def disc(x: float, y: float, radius: float) -> Points:
    """Returns the outline of a disc around (x, y), float64 of shape (32, 2), figure units."""
    points: Points = np.add(regular_polygon(32, radius), (x, y))
    return points


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """Returns the corners of an upright rectangle, float64 of shape (4, 2), figure units."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def path(*points: tuple[float, float]) -> Points:
    """Returns the given (x, y) points as a float64 array of shape (n, 2)."""
    return np.array(points, dtype=np.float64)


def paint_scene(
    figure: Figure, rng: np.random.Generator, size_px: int, conditions: Conditions
) -> Pixels:
    """Paints one picture of a figure.

    Args:
        figure: What to draw, in figure units.
        rng: Source of every random choice.
        size_px: Side of the picture in pixels.
        conditions: How hard the scene is.

    Returns:
        uint8 array of shape (size_px, size_px, 3), RGB.
    """
    big = size_px * SUPERSAMPLING
    ground, ground_mean = _textured(rng, size_px, conditions, unlike=None)
    canvas = ground.resize((big, big), Image.Resampling.BILINEAR)
    surface, _ = _textured(rng, size_px, conditions, unlike=ground_mean)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, conditions.distractors + 1))):
        _draw_clutter(draw, rng, big, at=rng.uniform(0, big, 2), reach=rng.uniform(0.05, 0.2) * big)

    radius = rng.uniform(*conditions.radius) * big
    margin = max(0.0, big / 2 - 0.9 * radius)
    centre = big / 2 + rng.uniform(-margin, margin, 2)
    mask = _coverage(figure, _random_map(rng, radius, conditions.stretch), centre, big)
    if rng.random() < 0.5:
        offset = rng.uniform(-0.12, 0.12, 2) * radius
        shadow = Image.new("L", (big, big))
        half = mask.point([level // 2 for level in range(256)])
        shadow.paste(half, (int(offset[0]), int(offset[1])))
        canvas.paste((0, 0, 0), (0, 0), shadow)
    canvas.paste(surface.resize((big, big), Image.Resampling.BILINEAR), (0, 0), mask)

    for _ in range(int(rng.integers(0, conditions.occluders + 1))):
        angle = rng.uniform(0, 2 * math.pi)
        aside = rng.uniform(0.3, 1.0) * radius * np.array([math.cos(angle), math.sin(angle)])
        _draw_clutter(draw, rng, big, at=centre + aside, reach=rng.uniform(0.15, 0.35) * radius)
    return _photographed(canvas.reduce(SUPERSAMPLING), rng, conditions)


def worker_count(pictures: int, workers: int | None) -> int:
    """Returns how many processes to draw with.

    Args:
        pictures: Number of pictures to draw.
        workers: What the caller asked for; None means one per processor, and no more processes
            than their start is worth.

    Raises:
        SpecError: If `workers` is less than 1.
    """
    if workers is None:
        return max(1, min(os.cpu_count() or 1, pictures // PICTURES_PER_WORKER))
    if workers < 1:
        raise SpecError(f"workers={workers}", "at least 1", "leave it out to use every processor")
    return workers


def check_size(size_px: int) -> None:
    """Refuses pictures in which no figure could be told apart.

    Raises:
        SpecError: If `size_px` is less than `SMALLEST_SIZE_PX`.
    """
    if size_px < SMALLEST_SIZE_PX:
        raise SpecError(
            f"size_px={size_px}",
            f"at least {SMALLEST_SIZE_PX} pixels",
            "ask for larger pictures",
        )


def _field(rng: np.random.Generator, size_px: int) -> Levels:
    """Returns a random pattern, float32 of shape (size_px, size_px), values from -1 to 1."""
    cells = int(rng.integers(2, 14))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    cloud = np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC), np.float32)
    cloud = cloud / 127.5 - 1
    kind = rng.integers(4)
    if kind < 2:
        return cloud
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    waves = rng.uniform(3, 14)
    along = np.float32(math.pi * waves) * _slope(size_px, angle) + np.float32(phase)
    if kind == 2:
        waved: Levels = np.sin(along + np.float32(0.8) * cloud)
        return waved
    across = np.float32(math.pi * waves) * _slope(size_px, angle + math.pi / 2)
    checked: Levels = np.sign(np.sin(along) * np.sin(across))
    return checked


def _slope(size_px: int, angle: float) -> Levels:
    """Returns a plane that rises from -1 to 1 along the x axis turned by `angle`, float32."""
    axis = np.linspace(-1, 1, size_px, dtype=np.float32)
    across, down = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    plane: Levels = across * axis[None, :] + down * axis[:, None]
    return plane


def _textured(
    rng: np.random.Generator,
    size_px: int,
    conditions: Conditions,
    unlike: npt.NDArray[np.float64] | None,
) -> tuple[Image.Image, npt.NDArray[np.float64]]:
    """Returns a textured RGB image and its base colour, at a distance from colour `unlike`."""
    colour = rng.uniform(15, 240, 3)
    while unlike is not None and np.linalg.norm(colour - unlike) < SMALLEST_CONTRAST:
        colour = rng.uniform(15, 240, 3)
    swing = rng.normal(0, 1, 3)
    swing *= rng.uniform(*conditions.texture) / np.linalg.norm(swing)
    levels = colour.astype(np.float32) + _field(rng, size_px)[:, :, None] * swing.astype(np.float32)
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)), colour


def _random_map(rng: np.random.Generator, radius: float, stretch: float) -> Points:
    """Returns a 2 x 2 matrix from figure units to canvas pixels: stretch in any direction, turn."""
    ratio = math.exp(rng.uniform(-math.log(stretch), math.log(stretch)) / 2)
    before, after = (
        np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        for angle in rng.uniform(0, 2 * math.pi, 2)
    )
    mapped: Points = radius * (after @ np.diag([ratio, 1 / ratio]) @ before)
    return mapped


def _coverage(figure: Figure, matrix: Points, centre: Points, size_px: int) -> Image.Image:
    """Returns where the figure lies, mode "L" of `size_px` squared: 255 inside, 0 outside."""
    mask = Image.new("L", (size_px, size_px))
    draw = ImageDraw.Draw(mask)
    unit_px = math.sqrt(abs(float(np.linalg.det(matrix))))
    for shape in figure:
        points = [(float(x), float(y)) for x, y in shape.points @ matrix.T + centre]
        level = 0 if shape.cuts else 255
        if shape.width > 0:
            _draw_stroke(draw, points, shape.width * unit_px, level)
        else:
            draw.polygon(points, fill=level)
    return mask


def _draw_stroke(
    draw: ImageDraw.ImageDraw,
    points: list[tuple[float, float]],
    width_px: float,
    fill: int | tuple[int, int, int],
) -> None:
    """Draws a polyline with round joints and ends."""
    width = max(2, round(width_px))
    draw.line(points, fill=fill, width=width, joint="curve")
    for x, y in (points[0], points[-1]):
        reach = width / 2
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)


def _draw_clutter(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, size_px: int, at: Points, reach: float
) -> None:
    """Draws one random blob or stroke of radius `reach` canvas pixels around `at`."""
    red, green, blue = (int(level) for level in rng.integers(0, 256, 3))
    if rng.random() < 0.5:
        angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(4, 9))))
        lengths = rng.uniform(0.5, 1.1, len(angles)) * reach
        corners = at + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=(red, green, blue))
        return
    steps = rng.normal(0, 0.9, (int(rng.integers(3, 6)), 2)) * reach
    corners = at + steps - steps.mean(axis=0)
    points = [(float(x), float(y)) for x, y in corners]
    _draw_stroke(draw, points, rng.uniform(0.01, 0.035) * size_px, (red, green, blue))


def _photographed(image: Image.Image, rng: np.random.Generator, conditions: Conditions) -> Pixels:
    """Returns the image under uneven light, out of focus and noisy; uint8 (side, side, 3)."""
    side = image.width
    blur_px = rng.uniform(*conditions.blur_px) * side / 100
    levels = np.asarray(image.filter(ImageFilter.GaussianBlur(blur_px)), np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    fall = np.float32(rng.uniform(0, conditions.light))
    light = (1 + fall * _slope(side, angle)) * np.float32(rng.uniform(0.75, 1.15))
    noise = rng.standard_normal((side, side, 3), dtype=np.float32)
    noise *= np.float32(rng.uniform(*conditions.noise))
    exposed: Pixels = np.clip(levels * light[:, :, None] + noise + 0.5, 0, 255).astype(np.uint8)
    return exposed
