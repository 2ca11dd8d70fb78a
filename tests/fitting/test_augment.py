"""Random changes of pictures: reproducible row by row, exact where they can be."""

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("tensorflow")

from edgekit.fitting.augment import Augmentation, Draws, apply, draw

STILL = Augmentation(flip=False, shift=0, zoom=0, brightness=0, contrast=0)
LIVELY = Augmentation(flip=True, shift=0.2, zoom=0.3, brightness=0.2, contrast=0.4)
HEIGHT, WIDTH = 12, 17


def some(count: int = 8) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(2)
    return random.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def draws(augmentation: Augmentation, count: int = 8, seed: int = 1, epoch: int = 0) -> Draws:
    return draw(augmentation, count=count, size_px=(HEIGHT, WIDTH), seed=seed, epoch=epoch)


def changed(images: npt.NDArray[np.uint8], given: Draws) -> npt.NDArray[np.float32]:
    result: npt.NDArray[np.float32] = apply(
        images, given.transforms, given.gain, given.lift
    ).numpy()
    return result


@pytest.mark.parametrize("name", [field.name for field in fields(Draws)])
def test_a_row_depends_on_seed_epoch_and_row_only(name: str) -> None:
    few, many = getattr(draws(LIVELY, 5), name), getattr(draws(LIVELY, 64), name)
    assert few.dtype == np.float32
    assert np.array_equal(few, many[:5])
    assert not np.array_equal(few, getattr(draws(LIVELY, 5, seed=2), name))
    assert not np.array_equal(few, getattr(draws(LIVELY, 5, epoch=1), name))
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
    right.transforms[0, 2] = 3  # the output's column 0 shows the input's column 3
    result = changed(images, right)
    assert np.array_equal(result[:, :, : WIDTH - 3], images[:, :, 3:])
    assert np.array_equal(result[:, :, WIDTH - 3 :], images[:, :, : WIDTH - 4 : -1])


@pytest.mark.parametrize("seed", range(3))
def test_no_parameter_leaves_its_range(seed: int) -> None:
    given = draws(LIVELY, 1000, seed)
    zoom = given.transforms[:, 4]
    assert np.abs(zoom - 1).max() <= LIVELY.zoom + 1e-6
    assert np.array_equal(np.abs(given.transforms[:, 0]), zoom)
    # The centre of the picture moves by at most the shift, whatever the zoom.
    center = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2, 1])
    moved_x = given.transforms[:, :3] @ center - center[0]
    moved_y = given.transforms[:, 3:6] @ center - center[1]
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
