"""One picture file to one array: every format and orientation, and every file that is refused."""

import hashlib
import io
import math
import struct
import tracemalloc
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgekit.data.formats import READ
from edgekit.data.picture import (
    UnreadableError,
    decode,
    difference_hash,
    fingerprint,
    fit,
    miniature,
    pixel_digest,
    pixels as fitted_pixels,
    read,
)
from edgekit.errors import DataError
from edgekit.records import Preprocess

Pixels = npt.NDArray[np.uint8]
CONTRACT = Preprocess(height_px=24, width_px=32)
WHITE = (255, 255, 255)
KINDS = ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "AVIF", "HEIF"]


def texture(seed: int = 0, width: int = 48, height: int = 32) -> Image.Image:
    """Returns a smooth picture without any symmetry, so that every turn of it differs."""
    cells = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    if kind == "HEIF":
        heif = pytest.importorskip("pillow_heif", reason="edgekit[heic]")
        exif = options.pop("exif", None)
        # As cameras do, it turns the picture by a box of its own, too.
        made = heif.from_pillow(picture)
        made.info["exif"] = None if exif is None else exif.tobytes()
        made.save(stream, **options)
    else:
        picture.save(stream, kind, **options)
    return stream.getvalue()


def pixels(picture: Image.Image) -> Pixels:
    assert picture.mode == "RGB"
    return np.asarray(picture)


def upright(stored: Pixels, orientation: int) -> Pixels:
    """Returns what a viewer shows, from the EXIF standard: where row 0 and column 0 belong.

    Source: CIPA DC-008 (Exif 2.32), 4.6.4, tag 274.
    """
    rows_first = {
        1: stored,  # row 0 at the top, column 0 at the left
        2: stored[:, ::-1],  # top, right
        3: stored[::-1, ::-1],  # bottom, right
        4: stored[::-1],  # bottom, left
    }
    if orientation in rows_first:
        return rows_first[orientation]
    turned = stored.transpose(1, 0, 2)
    return {
        5: turned,  # row 0 at the left, column 0 at the top
        6: turned[:, ::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[::-1],  # left, bottom
    }[orientation]


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int, kind: str) -> None:
    stored = texture()
    content = saved(stored, kind, exif=oriented(orientation), lossless=True)
    shown = pixels(decode(content))
    assert np.array_equal(shown, upright(np.asarray(stored), orientation))
    # The twin: no other turn gives the same picture.
    for other in set(range(1, 9)) - {orientation}:
        assert not np.array_equal(shown, upright(np.asarray(stored), other))


def mean_difference(first: Pixels, second: Pixels) -> float:
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_camera_file(orientation: int, tmp_path: Path) -> None:
    stored = texture()
    path = tmp_path / "camera.jpg"
    content = saved(stored, "JPEG", quality=95, subsampling=0, exif=oriented(orientation))
    path.write_bytes(content)
    seen, *_ = read(path, CONTRACT, hashlib.sha256(content).hexdigest())
    expected = fit(Image.fromarray(upright(np.asarray(stored), orientation)), CONTRACT)
    assert mean_difference(seen, expected) < 2  # quality 95 changes a smooth picture by about 1
    for other in set(range(1, 9)) - {orientation}:
        wrong = fit(Image.fromarray(upright(np.asarray(stored), other)), CONTRACT)
        assert mean_difference(seen, wrong) > 20


def test_an_orientation_that_does_not_exist_is_upright() -> None:
    assert np.array_equal(
        pixels(decode(saved(texture(), "PNG", exif=oriented(9)))), np.asarray(texture())
    )


def test_odd_metadata_does_not_stop_a_good_picture() -> None:
    # 0x9286 is a comment of type "rational" with a denominator of 0, beside orientation 6.
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x9286, 5, 1, 38)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + bytes(4)
    content = saved(texture(), "PNG", exif=exif + struct.pack(">II", 1, 0))
    assert np.array_equal(pixels(decode(content)), upright(np.asarray(texture()), 6))


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_bytes_never_raise_anything_else(kind: str) -> None:
    """Flips bytes of small files; only `UnreadableError` may come out."""
    exif = oriented(6)
    exif[0x010E] = "text"
    exif[0x011A] = 72.0
    good = saved(texture(width=20, height=16), kind, exif=exif)
    pages = [texture(1, 20, 16)] if kind in ("GIF", "TIFF") else []
    if pages:
        good = saved(texture(width=20, height=16), kind, save_all=True, append_images=pages)
    rng = np.random.default_rng(4)
    outcomes = set()
    for _ in range(1500):
        content = bytearray(good)
        for _ in range(int(rng.integers(1, 5))):
            content[int(rng.integers(len(content)))] = int(rng.integers(256))
        if kind == "PNG":
            content = with_good_checksums(content)
        try:
            outcomes.add(decode(bytes(content)).mode)
        except UnreadableError:
            outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}


def with_good_checksums(content: bytearray) -> bytearray:
    """Repairs the checksums of a PNG, so that damage reaches the code behind them."""
    start = 8
    while start + 12 <= len(content):
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return content


def test_cmyk() -> None:
    # Pillow writes plain (not inverted) CMYK; a flat colour survives JPEG up to rounding.
    flat = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    assert mean_difference(pixels(decode(saved(flat, "JPEG", quality=100))), red(32, 32)) <= 3
    flat = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    assert mean_difference(pixels(decode(saved(flat, "JPEG", quality=100))), red(32, 32)) > 100


def red(width: int, height: int) -> Pixels:
    return np.full((height, width, 3), (255, 0, 0), np.uint8)


@pytest.mark.parametrize("top", [65535, 20000, 255])
def test_16_bit_grey_is_scaled_by_its_range_not_by_its_content(top: int) -> None:
    ramp = np.linspace(0, top, 32 * 20).reshape(20, 32).astype(np.uint16)
    seen = pixels(decode(saved(Image.fromarray(ramp), "PNG")))
    expected = np.round(ramp / 257).astype(np.uint8)
    assert np.array_equal(seen, np.repeat(expected[..., None], 3, axis=2))


def test_rgba_lies_on_white() -> None:
    alpha = Image.new("L", (48, 32), 0)
    alpha.paste(255, (0, 0, 24, 32))
    layered = texture()
    layered.putalpha(alpha)
    seen = pixels(decode(saved(layered, "PNG")))
    assert np.array_equal(seen[:, :24], np.asarray(texture())[:, :24])
    assert (seen[:, 24:] == 255).all()
    half = Image.new("RGBA", (32, 32), (0, 0, 0, 128))
    assert set(np.unique(pixels(decode(saved(half, "PNG"))))) == {127}


@pytest.mark.parametrize("mode", ["P", "P with levels", "L", "1", "RGB", "LA"])
def test_transparency_of_other_kinds_lies_on_white(mode: str) -> None:
    black = Image.new("RGB", (32, 32))
    match mode:
        case "P":
            content = saved(
                black.convert("P"), "PNG", transparency=black.convert("P").getpixel((0, 0))
            )
        case "P with levels":
            content = saved(black.convert("P"), "PNG", transparency=bytes(256))
        case "L" | "1":
            content = saved(black.convert(mode), "PNG", transparency=0)
        case "RGB":
            content = saved(black, "PNG", transparency=(0, 0, 0))
        case _:
            content = saved(Image.new("LA", (32, 32), (0, 0)), "PNG")
    assert (pixels(decode(content)) == 255).all()
    # The twin: the same picture without transparency is black.
    opaque = black.convert(mode.split(maxsplit=1)[0])
    assert (pixels(decode(saved(opaque, "PNG"))) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_content_decides_not_the_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.jpg"
    content = saved(texture(), kind)
    path.write_bytes(content)
    seen, look, *_ = read(path, CONTRACT, hashlib.sha256(content).hexdigest())
    picture = decode(content)
    assert np.array_equal(seen, fit(picture, CONTRACT))
    assert look == fingerprint(picture)
    assert look == (pixel_digest(picture), difference_hash(picture), miniature(picture))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png_of(width: int, height: int, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(rows, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


PNG = saved(texture(), "PNG")
JPEG = saved(texture(), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"not an image at all",
            f"not a {READ} picture (starts with 'not an i')",
        ),
        (b"\x1b[31m\n\xff", "(starts with '\\x1b[31m\\n\\xff')"),
        (b"", "(starts with '')"),
        (JPEG[: len(JPEG) // 2], "truncated or damaged (Truncated File Read"),
        (JPEG[:100], "truncated or damaged"),
        (JPEG[:3], "truncated or damaged (the header cannot be read)"),
        (PNG[: len(PNG) // 2], "truncated or damaged"),
        (flipped(PNG, 29), "truncated or damaged (the header cannot be read)"),
        (flipped(PNG, PNG.index(b"IEND") - 5), "truncated or damaged (broken PNG file"),
        (flipped(PNG, 60), "truncated or damaged"),
        (png_of(0, 32), "truncated or damaged (the header cannot be read)"),
        (png_of(32, 0), "truncated or damaged (the header cannot be read)"),
        (saved(texture(), "PPM"), "not a JPEG, PNG, WebP"),
        (saved(texture(), "JPEG2000"), "not a JPEG, PNG, WebP"),
        (saved(texture(), "GIF")[:20], "truncated or damaged"),
        (saved(texture(), "TIFF")[:2000], "truncated or damaged"),
        (saved(texture(), "AVIF")[:-99], "truncated or damaged"),
        (saved(texture(), "TIFF", tiffinfo={254: 1}), "a preview of another"),
        (saved(texture().convert("L").convert("F"), "TIFF"), "have 32 bits"),
        (saved(texture().convert("L").convert("I"), "TIFF"), "have 32 bits"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "starts with '<svg xml'"),
        (saved(texture(width=15, height=99), "PNG"), "15 x 99 px, smaller than 16 px"),
        (saved(texture(width=1, height=1), "PNG"), "1 x 1 px, smaller than 16 px"),
        (png_of(14400, 14400), "too large: 14400 x 14400 px, 207.4 megapixels, at most 205; set"),
        (png_of(40_000, 20_000), "too large: 40000 x 20000 px, 800.0 megapixels, at most 205"),
        (png_of(2**31 - 1, 2**31 - 1), "too large: 2147483647 x 2147483647 px"),
    ],
)
def test_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        decode(content)
    assert reason in str(caught.value)


def test_the_smallest_and_a_truly_good_file_are_not_refused() -> None:
    assert decode(saved(texture(width=16, height=16), "PNG")).size == (16, 16)
    assert decode(png_of(64, 64, bytes(9 * 64))).size == (64, 64)


def test_a_bomb_costs_no_memory() -> None:
    side = 14400  # above 205 megapixels, and below the limit that Pillow itself refuses at
    bomb = png_of(side, side, bytes((side // 8 + 1) * side))
    assert len(bomb) < 40_000
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match="too large"):
            decode(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_a_file_that_is_gone_or_changed(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with pytest.raises(UnreadableError, match=r"cannot be read \(No such file"):
        read(path, CONTRACT, "0" * 64)
    path.write_bytes(PNG)
    with pytest.raises(DataError, match="changed while") as caught:
        read(path, CONTRACT, hashlib.sha256(JPEG).hexdigest())
    assert str(path) in caught.value.received


def stripes(width: int, height: int) -> Image.Image:
    """Returns blue with a red band over the left and the right eighth of the width."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 2] = 255
    picture[:, : width // 8] = picture[:, -width // 8 :] = (255, 0, 0)
    return Image.fromarray(picture)


def test_stretch_keeps_the_edges_and_a_center_crop_drops_them() -> None:
    wide = stripes(128, 64)
    stretched = fit(wide, Preprocess(height_px=32, width_px=32))
    cropped = fit(wide, Preprocess(height_px=32, width_px=32, crop="center"))
    assert stretched.shape == cropped.shape == (32, 32, 3)
    assert tuple(stretched[0, 0]) == tuple(stretched[31, 31]) == (255, 0, 0)
    assert (cropped == (0, 0, 255)).all()  # the middle half of the width


@pytest.mark.parametrize(
    ("size", "box"), [((48, 32), (8, 0, 40, 32)), ((32, 48), (0, 8, 32, 40)), ((32, 32), None)]
)
@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "nearest"])
def test_center_crop_is_a_crop_and_then_a_resize(
    size: tuple[int, int], box: tuple[int, int, int, int] | None, resize: str
) -> None:
    picture = texture(1, *size)
    contract = Preprocess.model_validate(
        {"height_px": 16, "width_px": 16, "crop": "center", "resize": resize}
    )
    filters = {
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "nearest": Image.Resampling.NEAREST,
    }
    # At the border Pillow's filter reaches beyond the box; inside, both ways must agree exactly.
    inside = np.s_[2:-2, 2:-2]
    seen = fit(picture, contract)[inside]
    for name, sampling in filters.items():
        by_hand = np.asarray(picture.crop(box).resize((16, 16), sampling))[inside]
        assert np.array_equal(seen, by_hand) == (name == resize)


# Upright size of a picture, size of the input, and where the picture then lies in it: left, top,
# width, height.
LETTERBOXES = [
    ((64, 32), (32, 32), (0, 8, 32, 16)),
    ((32, 64), (32, 32), (8, 0, 16, 32)),
    ((48, 48), (32, 24), (4, 0, 24, 24)),
    ((100, 75), (32, 24), (0, 0, 32, 24)),
    ((64, 33), (32, 32), (0, 7, 32, 17)),  # 16.5, and the odd row below
    ((64, 31), (32, 32), (0, 8, 32, 16)),  # 15.5
    ((2000, 16), (32, 32), (0, 15, 32, 1)),  # 0.256
    ((16, 17), (160, 160), (4, 0, 151, 160)),
    ((50_000_000 // 16, 16), (1024, 1024), (0, 511, 1024, 1)),
]


@pytest.mark.parametrize(("size", "into", "place"), LETTERBOXES)
def test_a_letterbox_lies_where_the_contract_says(
    size: tuple[int, int], into: tuple[int, int], place: tuple[int, int, int, int]
) -> None:
    contract = Preprocess(height_px=into[1], width_px=into[0], crop="letterbox")
    assert contract.letterbox(*size) == place
    # The twin: the exact size, whose nearest pixel it is, is no whole number in most cases.
    ratio = min(Fraction(into[0], size[0]), Fraction(into[1], size[1]))
    for kept, side in zip(place[2:], size, strict=True):
        assert kept == max(1, math.floor(side * ratio + Fraction(1, 2)))


@pytest.mark.parametrize("channels", ["rgb", "bgr", "grey"])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "nearest"])
def test_a_letterbox_keeps_the_shape_on_ground_of_one_colour(resize: str, channels: str) -> None:
    contract = Preprocess.model_validate(
        {"height_px": 24, "width_px": 31, "crop": "letterbox", "resize": resize,
         "channels": channels, "fill": (7, 130, 250)}
    )  # fmt: skip
    picture = texture(3, 40, 50)
    left, top, width, height = contract.letterbox(40, 50)
    assert (left, top, width, height) == (6, 0, 19, 24)
    sampling = Image.Resampling[resize.upper()]
    shown = picture.convert("L").convert("RGB") if channels == "grey" else picture
    inside = np.asarray(shown.resize((width, height), sampling))
    # ITU-R 601-2: 0.299 * 7 + 0.587 * 130 + 0.114 * 250 = 106.9
    ground = (107, 107, 107) if channels == "grey" else contract.fill
    wanted = np.full((24, 31, 3), ground, np.uint8)
    wanted[:, left : left + width] = inside
    seen = fit(picture, contract)
    assert np.array_equal(seen, wanted[..., ::-1] if channels == "bgr" else wanted)
    stretched = fit(picture, contract.model_copy(update={"crop": "none"}))
    assert not np.array_equal(seen, stretched)


def test_a_letterbox_is_placed_by_the_size_in_the_file_however_it_was_decoded() -> None:
    contract = Preprocess(height_px=40, width_px=40, crop="letterbox", fill=(0, 0, 255))
    # Decoded at a quarter, 247 x 100 px: 16.19 rows of 40, of which half a row is more than 16.
    size = (985, 400)
    content = saved(Image.new("RGB", size, (255, 255, 0)), "JPEG", exif=oriented(6))
    assert decode(content, 80).size == (100, 247)
    seen = fitted_pixels(content, contract)
    filled = np.flatnonzero((seen == (0, 0, 255)).all(axis=(0, 2)))
    left, _, width, _ = contract.letterbox(400, 985)
    assert list(filled) == [*range(left), *range(left + width, 40)]
    assert np.array_equal(seen, fit(decode(content), contract))


def test_what_fills_a_letterbox_does_not_make_a_picture_look_otherwise(tmp_path: Path) -> None:
    content = saved(Image.new("RGB", (200, 40), (3, 3, 3)), "PNG")
    path = tmp_path / "dark.png"
    path.write_bytes(content)
    contract = Preprocess(height_px=32, width_px=32, crop="letterbox")
    seen, _, looks, _ = read(path, contract, hashlib.sha256(content).hexdigest())
    assert looks.brightness == pytest.approx(3)
    assert seen.mean() > 50


def test_height_is_height_and_bgr_is_reversed() -> None:
    rgb = fit(texture(), CONTRACT)
    assert (rgb.shape, rgb.dtype) == ((24, 32, 3), np.dtype(np.uint8))
    bgr = fit(texture(), CONTRACT.model_copy(update={"channels": "bgr"}))
    assert np.array_equal(bgr[..., ::-1], rgb)
    assert not np.array_equal(bgr, rgb)


def test_downscaling_averages() -> None:
    checks = np.indices((128, 128)).sum(axis=0) % 2 * 255
    picture = Image.fromarray(checks.astype(np.uint8)).convert("RGB")
    small = fit(picture, Preprocess(height_px=16, width_px=16))
    assert np.abs(small.astype(int) - 127).max() <= 2
    aliased = fit(picture, Preprocess(height_px=16, width_px=16, resize="nearest"))
    assert np.abs(aliased.astype(int) - 127).max() > 100


def test_the_pixel_digest_is_that_of_the_pixels() -> None:
    contents = [
        PNG,
        saved(texture(), "PNG", compress_level=0),
        saved(texture(), "BMP"),
        saved(texture(), "WEBP", lossless=True),
        saved(Image.fromarray(upright(np.asarray(texture()), 8)), "PNG", exif=oriented(6)),
    ]
    assert len({hashlib.sha256(content).digest() for content in contents}) == len(contents)
    assert len({pixel_digest(decode(content)) for content in contents}) == 1
    digest = pixel_digest(decode(PNG))
    touched = texture()
    red_value, green, blue = np.asarray(touched)[0, 0].tolist()
    touched.putpixel((0, 0), (red_value ^ 1, green, blue))
    assert pixel_digest(touched) != digest
    reshaped = Image.frombytes("RGB", (32, 48), texture().tobytes())
    assert pixel_digest(reshaped) != digest
    assert pixel_digest(decode(JPEG)) != digest


def bits_apart(first: Image.Image, second: Image.Image) -> int:
    return (difference_hash(first) ^ difference_hash(second)).bit_count()


@pytest.mark.parametrize("seed", range(5))
def test_the_difference_hash_is_near_for_the_same_scene(seed: int) -> None:
    scene = texture(seed, 192, 128)
    for quality in (90, 50):
        assert bits_apart(scene, decode(saved(scene, "JPEG", quality=quality))) <= 2
    assert bits_apart(scene, scene.resize((96, 64))) <= 6
    noise = np.random.default_rng(seed).normal(0, 25, (128, 192, 3))
    noisy = np.clip(np.asarray(scene) + noise, 0, 255).astype(np.uint8)
    assert bits_apart(scene, Image.fromarray(noisy)) <= 2
    # The twins: another scene, and the mirrored one.
    assert bits_apart(scene, texture(seed + 100, 192, 128)) > 12
    assert bits_apart(scene, scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 12


def test_the_difference_hash_reads_rows_from_left_to_right() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 252, 7, dtype=np.uint8), (32, 1))).convert("RGB")
    assert difference_hash(ramp) == 2**64 - 1
    assert difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    assert difference_hash(Image.new("RGB", (32, 32), WHITE)) == 0


def test_the_miniature_is_the_mean_of_equal_parts() -> None:
    parts = np.random.default_rng(9).integers(0, 256, (16, 16, 3), np.uint8)
    large = np.repeat(np.repeat(parts, 3, axis=0), 5, axis=1)
    assert miniature(Image.fromarray(large)) == parts.tobytes()
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 200
    grey = Image.fromarray(checks.astype(np.uint8)).convert("RGB")
    assert set(miniature(grey)) == {100}


def large(width: int = 1200, height: int = 900) -> Image.Image:
    """Returns a large smooth picture with some detail."""
    rng = np.random.default_rng(8)
    coarse = rng.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("least", "shown"),
    [(None, (1200, 900)), (901, (1200, 900)), (450, (600, 450)), (200, (300, 225))],
)
def test_a_jpeg_comes_out_scaled_only_as_far_as_asked(
    least: int | None, shown: tuple[int, int]
) -> None:
    assert decode(saved(large(), "JPEG"), least).size == shown
    assert decode(saved(large(), "PNG"), least).size == (1200, 900)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("crop", ["none", "center"])
def test_a_scaled_decode_changes_less_than_rounding(
    crop: str, orientation: int, tmp_path: Path
) -> None:
    contract = CONTRACT.model_copy(update={"height_px": 64, "width_px": 64, "crop": crop})
    content = saved(large(), "JPEG", quality=95, exif=oriented(orientation))
    path = tmp_path / "large.jpg"
    path.write_bytes(content)
    seen, *_ = read(path, contract, hashlib.sha256(content).hexdigest())
    assert mean_difference(seen, fit(decode(content), contract)) < 0.5
    # The twin: a decode below the input's side blurs what the input could still show.
    assert mean_difference(fit(decode(content, 30), contract), fit(decode(content), contract)) > 1


def test_nearest_takes_pixels_of_the_full_picture(tmp_path: Path) -> None:
    contract = CONTRACT.model_copy(update={"resize": "nearest"})
    content = saved(large(), "JPEG", quality=95)
    path = tmp_path / "large.jpg"
    path.write_bytes(content)
    seen, *_ = read(path, contract, hashlib.sha256(content).hexdigest())
    assert np.array_equal(seen, fit(decode(content), contract))
    scaled = fit(decode(content, 2 * contract.height_px), contract)
    assert not np.array_equal(seen, scaled)


def test_a_crop_that_rounding_puts_outside_is_cut_to_the_picture() -> None:
    """424 x 425 pixels for an input of 97 x 96 (height, width): the crop is 425 and a hair high."""
    contract = Preprocess(height_px=97, width_px=96, crop="center")
    picture = Image.new("RGB", (424, 425), (9, 8, 7))
    assert (fit(picture, contract, (3392, 3400)) == (9, 8, 7)).all()
