"""Random changes of training pictures, each derived from (seed, epoch, row). Imports TensorFlow."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf


@dataclass(frozen=True)
class Augmentation:
    """How far pictures are changed; all zero and no flip means not at all.

    Args:
        flip: Whether half of the pictures are mirrored left to right.
        shift: Largest shift in each direction, as a fraction of the side.
        zoom: Largest relative change of size, drawn for both axes together.
        brightness: Largest additive change, as a fraction of the full range of 255.
        contrast: Largest relative change of the distance from mid-grey.
    """

    flip: bool
    shift: float
    zoom: float
    brightness: float
    contrast: float


@dataclass(frozen=True)
class Draws:
    """Random parameters of every row of one epoch.

    Args:
        transforms: float32 (n, 8), the projective transform of each picture from output to input
            pixel coordinates, as `ImageProjectiveTransformV3` takes it.
        gain: float32 (n,), multiplier of the distance from mid-grey.
        lift: float32 (n,), addend in pixel values.
    """

    transforms: npt.NDArray[np.float32]
    gain: npt.NDArray[np.float32]
    lift: npt.NDArray[np.float32]


def draw(
    augmentation: Augmentation, *, count: int, size_px: tuple[int, int], seed: int, epoch: int
) -> Draws:
    """Returns the parameters of all rows of an epoch; row i depends on (seed, epoch, i) only."""
    random = np.random.default_rng((seed, epoch, 0xA6))
    unit = random.uniform(-1, 1, (count, 6))
    mirrored = (unit[:, 5] < 0) & augmentation.flip
    height, width = size_px
    zoom = 1 + augmentation.zoom * unit[:, 0]
    horizontal = np.where(mirrored, -zoom, zoom)
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    transforms = np.zeros((count, 8), np.float32)
    transforms[:, 0] = horizontal
    transforms[:, 2] = center_x - horizontal * center_x + augmentation.shift * width * unit[:, 1]
    transforms[:, 4] = zoom
    transforms[:, 5] = center_y - zoom * center_y + augmentation.shift * height * unit[:, 2]
    return Draws(
        transforms,
        (1 + augmentation.contrast * unit[:, 3]).astype(np.float32),
        (255 * augmentation.brightness * unit[:, 4]).astype(np.float32),
    )


def apply(images: Any, transforms: Any, gain: Any, lift: Any) -> Any:
    """Returns float32 pixel values 0..255 of the changed pictures; edges are reflected.

    Args:
        images: uint8 tensor (n, h, w, 3).
        transforms: float32 tensor (n, 8).
        gain: float32 tensor (n,).
        lift: float32 tensor (n,).
    """
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    scaled = (moved - 127.5) * gain[:, None, None, None] + 127.5 + lift[:, None, None, None]
    return tf.clip_by_value(scaled, 0.0, 255.0)
