"""Random changes of pictures: reproducible row by row, exact where they can be."""

from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.fitting.augment import Augmentation, Draws, apply, draw

STILL = Augmentation(flip=False, shift=0, zoom=0, brightness=0, contrast=0)
LIVELY = Augmentation(flip=True, shift=0.2, zoom=0.3, brightness=0.2, contrast=0.4)
HEIGHT, WIDTH = 12, 17


def some(count: int = 8) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(2)
    return random.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def draws(augmentation: Augmentation, count: int = 8, seed: int = 1, view: int = 0) -> Draws:
    return draw(augmentation, count=count, size_px=(HEIGHT, WIDTH), seed=seed, view=view)


def changed(images: npt.NDArray[np.uint8], given: Draws) -> npt.NDArray[np.float32]:
    return np.stack([apply(image, given, row) for row, image in enumerate(images)])


@pytest.mark.parametrize("name", [field.name for field in fields(Draws)])
def test_a_row_depends_on_seed_view_and_row_only(name: str) -> None:
    few, many = getattr(draws(LIVELY, 5), name), getattr(draws(LIVELY, 64), name)
    assert few.dtype == np.float32
    assert np.array_equal(few, many[:5])
    assert not np.array_equal(few, getattr(draws(LIVELY, 5, seed=2), name))
    assert not np.array_equal(few, getattr(draws(LIVELY, 5, view=1), name))
    assert len(np.unique(many, axis=0)) == 64


def test_no_change_gives_the_same_pixels() -> None:
    images = some()
    assert np.array_equal(changed(images, draws(STILL)), images)
    # Twin: a shift of a thousandth of the side is a change.
    moved = Augmentation(flip=False, shift=1e-3, zoom=0, brightness=0, contrast=0)
    assert not np.array_equal(changed(images, draws(moved)), images)


def test_a_flip_is_an_exact_mirror_of_half_of_the_pictures() -> None:
    images = some(200)
    flipping = Augmentation(flip=True, shift=0, zoom=0, brightness=0, contrast=0)
    result = changed(images, draws(flipping, 200))
    same = (result == images).all((1, 2, 3))
    mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    # 200 fair coins: 65..135 heads with all but one chance in a million.
    assert 65 <= mirrored.sum() <= 135


def test_a_shift_moves_the_picture_and_reflects_its_edge() -> None:
    images = some(1)
    right = draws(STILL, 1)
    right.transforms[0, 1] = 3  # the output's column 0 shows the input's column 3
    result = changed(images, right)
    assert np.array_equal(result[:, :, : WIDTH - 3], images[:, :, 3:])
    assert np.array_equal(result[:, :, WIDTH - 3 :], images[:, :, : WIDTH - 4 : -1])


@pytest.mark.parametrize("seed", range(3))
def test_no_parameter_leaves_its_range(seed: int) -> None:
    given = draws(LIVELY, 1000, seed)
    zoom = given.transforms[:, 2]
    assert np.abs(zoom - 1).max() <= LIVELY.zoom + 1e-6
    assert np.array_equal(np.abs(given.transforms[:, 0]), zoom)
    # The centre of the picture moves by at most the shift, whatever the zoom.
    center_x, center_y = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    moved_x = given.transforms[:, :2] @ np.array([center_x, 1]) - center_x
    moved_y = given.transforms[:, 2:] @ np.array([center_y, 1]) - center_y
    assert np.abs(moved_x).max() <= LIVELY.shift * WIDTH + 1e-4
    assert np.abs(moved_y).max() <= LIVELY.shift * HEIGHT + 1e-4
    assert np.abs(given.lift).max() <= 255 * LIVELY.brightness
    assert np.abs(given.gain - 1).max() <= LIVELY.contrast + 1e-6
    # And they use it: none of these would hold if a range were half as wide.
    assert np.abs(moved_x).max() > 0.9 * LIVELY.shift * WIDTH
    assert np.abs(moved_y).max() > 0.9 * LIVELY.shift * HEIGHT
    assert np.abs(zoom - 1).max() > 0.9 * LIVELY.zoom
    assert np.abs(given.lift).max() > 0.9 * 255 * LIVELY.brightness
    assert np.abs(given.gain - 1).max() > 0.9 * LIVELY.contrast


def test_values_stay_in_the_range_of_a_pixel() -> None:
    glaring = Augmentation(flip=True, shift=0.5, zoom=0.9, brightness=1, contrast=1)
    result = changed(some(64), draws(glaring, 64))
    assert result.dtype == np.float32
    assert (result.min(), result.max()) == (0, 255)


def test_contrast_keeps_mid_grey_and_brightness_adds() -> None:
    grey = np.full((1, HEIGHT, WIDTH, 3), 100, np.uint8)
    given = draws(STILL, 1)
    given.gain[0], given.lift[0] = 2.0, 10.0
    # (100 - 127.5) * 2 + 127.5 + 10: every step is exact in float32.
    assert np.array_equal(changed(grey, given), np.full(grey.shape, 82.5, np.float32))


def by_tensorflow(images: npt.NDArray[np.uint8], given: Draws) -> npt.NDArray[np.float32]:
    """Returns the pictures as TensorFlow's general projective transform changes them."""
    tf = pytest.importorskip("tensorflow")
    scale_x, shift_x, scale_y, shift_y = given.transforms.T
    none = np.zeros_like(scale_x)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images.astype(np.float32),
        transforms=np.stack([scale_x, none, shift_x, none, scale_y, shift_y, none, none], axis=1),
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    ).numpy()
    gain, lift = given.gain[:, None, None, None], given.lift[:, None, None, None]
    result: npt.NDArray[np.float32] = np.clip((moved - 127.5) * gain + 127.5 + lift, 0, 255)
    return result


# The last moves pictures by more than their side: the reflection is reflected again.
WILD = Augmentation(flip=True, shift=1.5, zoom=0.9, brightness=0.3, contrast=0.2)


@pytest.mark.parametrize("augmentation", [STILL, LIVELY, WILD], ids=["still", "lively", "wild"])
def test_it_is_the_bilinear_transform_of_tensorflow(augmentation: Augmentation) -> None:
    images, given = some(100), draws(augmentation, 100)
    expected = by_tensorflow(images, given)
    # TensorFlow keeps positions in float32: 2**-24 of at most 50 pixels; neighbours in noise
    # differ by up to 255: 8e-4 of a pixel value, times a gain of 1.2.
    assert np.abs(changed(images, given) - expected).max() <= 1e-3
    # Twins: another row of the same view, and a shift of a hundredth of a pixel.
    others = Draws(*(np.roll(getattr(given, field.name), 1, axis=0) for field in fields(Draws)))
    if augmentation is not STILL:
        assert np.abs(changed(images, others) - expected).max() > 1
    moved = replace(given, transforms=given.transforms + np.float32([0, 0.01, 0, 0]))
    assert np.abs(changed(images, moved) - expected).max() > 1e-1


def test_a_row_is_changed_alike_whatever_lies_beside_it() -> None:
    images, given = some(8), draws(LIVELY, 64)
    before = images.copy()
    alone = apply(images[5], given, 5)
    assert np.array_equal(alone, changed(images, given)[5])
    assert not np.array_equal(alone, apply(images[5], given, 6))
    assert np.array_equal(images, before)
