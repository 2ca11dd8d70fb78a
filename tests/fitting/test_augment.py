"""Random changes of pictures: reproducible row by row, exact where they can be."""

from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.recipe import AugmentSpec
from edgekit.records import Preprocess

pytest.importorskip("cv2")

from edgekit.fitting.augment import Draws, changed, draw

STILL = AugmentSpec(flip=False, shift=0, zoom=0, brightness=0, contrast=0)
LIVELY = AugmentSpec(flip=True, shift=0.2, zoom=0.3, brightness=0.2, contrast=0.4)
HEIGHT, WIDTH = 12, 17


def some(count: int = 8) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(2)
    return random.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def draws(augmentation: AugmentSpec, count: int = 8, seed: int = 1, view: int = 0) -> Draws:
    return draw(augmentation, count=count, size_px=(HEIGHT, WIDTH), seed=seed, view=view)


def as_it_is(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return pixels


def pixels_of(images: npt.NDArray[np.uint8], given: Draws) -> npt.NDArray[np.float32]:
    """Returns the changed pictures in pixel values."""
    return np.stack([changed(image, given, row, as_it_is) for row, image in enumerate(images)])


@pytest.mark.parametrize("name", [field.name for field in fields(Draws)])
def test_a_row_depends_on_seed_view_and_row_only(name: str) -> None:
    few, many = getattr(draws(LIVELY, 5), name), getattr(draws(LIVELY, 64), name)
    assert np.array_equal(few, many[:5])
    assert not np.array_equal(few, getattr(draws(LIVELY, 5, seed=2), name))
    assert not np.array_equal(few, getattr(draws(LIVELY, 5, view=1), name))
    if many.dtype == np.float32:
        assert len(np.unique(many, axis=0)) == 64


def test_no_change_gives_the_same_pixels() -> None:
    images = some()
    assert np.array_equal(pixels_of(images, draws(STILL)), images)
    # Twin: a shift of up to a pixel is a change.
    moved = AugmentSpec(flip=False, shift=1 / HEIGHT, zoom=0, brightness=0, contrast=0)
    assert not np.array_equal(pixels_of(images, draws(moved)), images)


def test_a_flip_is_an_exact_mirror_of_half_of_the_pictures() -> None:
    images = some(200)
    flipping = AugmentSpec(flip=True, shift=0, zoom=0, brightness=0, contrast=0)
    result = pixels_of(images, draws(flipping, 200))
    same = (result == images).all((1, 2, 3))
    mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    # 200 fair coins: 65..135 heads with all but one chance in a million.
    assert 65 <= mirrored.sum() <= 135


def test_a_shift_moves_the_picture_and_reflects_its_edge() -> None:
    images = some(1)
    right = draws(STILL, 1)
    right.windows[0, 0] = 3  # the output's column 0 shows the input's column 3
    result = pixels_of(images, right)
    assert np.array_equal(result[:, :, : WIDTH - 3], images[:, :, 3:])
    assert np.array_equal(result[:, :, WIDTH - 3 :], images[:, :, : WIDTH - 4 : -1])


@pytest.mark.parametrize("seed", range(3))
def test_no_parameter_leaves_its_range(seed: int) -> None:
    given = draws(LIVELY, 1000, seed)
    left, top, columns, rows = given.windows.T.astype(np.float64)
    # Sides and positions are whole pixels: half a pixel either way.
    zooms = np.concatenate([columns / WIDTH, rows / HEIGHT]) - 1
    assert np.abs(columns / WIDTH - 1).max() <= LIVELY.zoom + 0.5 / WIDTH
    assert np.abs(rows / HEIGHT - 1).max() <= LIVELY.zoom + 0.5 / HEIGHT
    # The centre of the picture moves by at most the shift, whatever the zoom.
    moved_x, moved_y = left + columns / 2 - WIDTH / 2, top + rows / 2 - HEIGHT / 2
    assert np.abs(moved_x).max() <= LIVELY.shift * WIDTH + 0.5
    assert np.abs(moved_y).max() <= LIVELY.shift * HEIGHT + 0.5
    assert set(given.mirrored.tolist()) == {False, True}
    assert np.abs(given.lift).max() <= 255 * LIVELY.brightness
    assert np.abs(given.gain - 1).max() <= LIVELY.contrast + 1e-6
    # And they use it: none of these would hold if a range were half as wide.
    assert np.abs(moved_x).max() > 0.9 * LIVELY.shift * WIDTH
    assert np.abs(moved_y).max() > 0.9 * LIVELY.shift * HEIGHT
    assert np.abs(zooms).max() > 0.9 * LIVELY.zoom
    assert np.abs(given.lift).max() > 0.9 * 255 * LIVELY.brightness
    assert np.abs(given.gain - 1).max() > 0.9 * LIVELY.contrast


def test_one_channel_is_changed_as_each_of_three_equal_ones() -> None:
    images = np.repeat(some(8)[..., :1], 3, axis=3)
    given = draws(LIVELY, 8)
    three, one = (pixels_of(shown, given) for shown in (images, images[..., :1]))
    assert one.shape == (*images.shape[:3], 1)
    assert np.array_equal(np.repeat(one, 3, axis=3), three)


def test_values_stay_in_the_range_of_a_pixel() -> None:
    glaring = AugmentSpec(flip=True, shift=0.5, zoom=0.9, brightness=1, contrast=1)
    result = pixels_of(some(64), draws(glaring, 64))
    assert result.dtype == np.float32
    assert (result.min(), result.max()) == (0, 255)


def test_contrast_keeps_mid_grey_and_brightness_adds() -> None:
    grey = np.full((1, HEIGHT, WIDTH, 3), 100, np.uint8)
    given = draws(STILL, 1)
    given.gain[0], given.lift[0] = 2.0, 10.0
    # (100 - 127.5) * 2 + 127.5 + 10: every step is exact in float32.
    assert np.array_equal(pixels_of(grey, given), np.full(grey.shape, 82.5, np.float32))


def reflected(position: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Returns the pixel that stands for one outside: the edge is repeated, again and again."""
    position = position % (2 * count)
    return np.where(position < count, position, 2 * count - 1 - position)


def by_definition(images: npt.NDArray[np.uint8], given: Draws) -> npt.NDArray[np.float64]:
    """Returns the pictures as the formulas change them: bilinear, in float64, never rounded."""
    results = []
    for row, image in enumerate(images.astype(np.float64)):
        left, top, columns, rows = given.windows[row].tolist()
        # Centres of pixels lie at halves; behind the window's edge the edge goes on.
        x = np.clip((np.arange(WIDTH) + 0.5) * columns / WIDTH - 0.5, 0, columns - 1) + left
        y = np.clip((np.arange(HEIGHT) + 0.5) * rows / HEIGHT - 0.5, 0, rows - 1) + top
        if given.mirrored[row]:
            x = x[::-1]
        west, north = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        part_x, part_y = (x - west)[:, None], (y - north)[:, None, None]
        across = (1 - part_x) * image[:, reflected(west, WIDTH)]
        across += part_x * image[:, reflected(west + 1, WIDTH)]
        moved = (1 - part_y) * across[reflected(north, HEIGHT)]
        moved += part_y * across[reflected(north + 1, HEIGHT)]
        lit = (moved - 127.5) * np.float64(given.gain[row]) + 127.5 + np.float64(given.lift[row])
        results.append(np.clip(lit, 0, 255))
    return np.stack(results)


# The last moves pictures by more than their side: the reflection is reflected again.
WILD = LIVELY.model_copy(update={"shift": 1.5, "zoom": 0.9})


@pytest.mark.parametrize("augmentation", [STILL, LIVELY, WILD], ids=["still", "lively", "wild"])
def test_it_is_bilinear_and_rounded_to_whole_pixel_values(augmentation: AugmentSpec) -> None:
    images, given = some(100), draws(augmentation, 100)
    expected = by_definition(images, given)

    def off(given: Draws) -> float:
        """Returns the largest difference in pixel values, before contrast made it larger."""
        apart = np.abs(pixels_of(images, given) - expected) / given.gain[:, None, None, None]
        return float(apart.max())

    # OpenCV computes in integers: weights are multiples of 1 / 2048, and each of its two steps
    # rounds. Together that stays below one pixel value.
    assert off(given) < 1
    # Twins: another row of the same view, and a shift of a pixel.
    others = Draws(*(np.roll(getattr(given, field.name), 1, axis=0) for field in fields(Draws)))
    if augmentation is not STILL:
        assert off(others) > 1
    moved = replace(given, windows=given.windows + np.int32([1, 0, 0, 0]))
    assert off(moved) > 1


def test_light_is_changed_behind_the_rounding() -> None:
    images, given = some(20), draws(LIVELY, 20)
    plain = replace(given, gain=np.ones_like(given.gain), lift=np.zeros_like(given.lift))
    moved = pixels_of(images, plain)
    assert np.array_equal(moved, np.round(moved))
    gain, lift = given.gain[:, None, None, None], given.lift[:, None, None, None]
    expected = np.clip((moved - 127.5) * gain + 127.5 + lift, 0, 255)
    assert np.array_equal(pixels_of(images, given), expected)
    # Twin: another order.
    other = np.clip((moved + lift - 127.5) * gain + 127.5, 0, 255)
    assert not np.array_equal(pixels_of(images, given), other)


@pytest.mark.parametrize(
    ("scale", "offset"),
    [((1 / 128,) * 3, (-1.0,) * 3), ((0.5, 0.25, 0.125), (-1.0, 0.0, 2.0))],
    ids=["all channels alike", "each channel"],
)
def test_what_enters_is_normalized_under_the_contract(
    scale: tuple[float, float, float], offset: tuple[float, float, float]
) -> None:
    pytest.importorskip("tensorflow")
    from edgekit.fitting.pictures import Pictures

    images, given = some(), draws(LIVELY)
    contract = Preprocess(height_px=HEIGHT, width_px=WIDTH, scale=scale, offset=offset)
    split = Pictures(images, np.zeros(len(images), np.int32), contract)
    expected = split.normalize(pixels_of(images, given))
    for row, image in enumerate(images):
        found = changed(image, given, row, split.normalize)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected[row])
        # Twin: the channels the other way round, unless all are treated alike.
        turned = split.normalize(pixels_of(images, given)[row, ..., ::-1])[..., ::-1]
        assert np.array_equal(found, turned) == (len(set(scale)) == 1)


def test_a_row_is_changed_alike_whatever_lies_beside_it() -> None:
    images, given = some(8), draws(LIVELY, 64)
    before = images.copy()
    alone = changed(images[5], given, 5, as_it_is)
    assert np.array_equal(alone, pixels_of(images, given)[5])
    assert not np.array_equal(alone, changed(images[5], given, 6, as_it_is))
    assert np.array_equal(images, before)
