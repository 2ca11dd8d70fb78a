"""One picture file to one uint8 array, under the preprocessing contract. Pillow and numpy only."""

import contextlib
import hashlib
import io
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from edgekit.data.appearance import Appearance, appearance
from edgekit.data.formats import (
    HEAD_BYTES,
    HEIF_EXTRA,
    READ,
    Format,
    format_of,
    reads_heif,
)
from edgekit.errors import DataError
from edgekit.limits import PICTURE_MEGAPIXELS
from edgekit.records import Preprocess

MIN_SIDE_PX = 16
MINIATURE_PX = 16
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
# Conversions of many bytes a pixel work on so many pixels at a time.
_PIXELS_AT_ONCE = 4_000_000
# What Pillow's parsers raise on damaged files, beside its own exceptions.
_PARSER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
)
ORIENTATION = 0x0112  # tag of EXIF
# Tags of TIFF 6.0, sections 8 and 4: whether a picture is a smaller version of another one in the
# file, how many bits a value has, and whether 0 is white.
_SUBFILE, _BITS, _PHOTOMETRIC = 254, 258, 262
# What turns a picture upright, by the value of its EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # those that exchange width and height


class UnreadableError(ValueError):
    """A file that is not a usable picture; the text says why."""


class Fingerprint(NamedTuple):
    """What tells pictures apart without their files.

    Args:
        pixels: `pixel_digest`: equal for equal pixels.
        difference_hash: `difference_hash`: few bits apart for near-identical pictures.
        miniature: `miniature`: decides whether they are.
    """

    pixels: str
    difference_hash: int
    miniature: bytes


class Traits(NamedTuple):
    """What is worth saying of a picture that can be read.

    Args:
        is_first: Whether the file holds more pictures, of which this is the first (animations,
            pages).
        grey_bits: How many bits the largest value of a grey picture of 16 bits takes, 0 to 16;
            None for every other picture.
    """

    is_first: bool = False
    grey_bits: int | None = None


class _Decoded(NamedTuple):
    """An upright RGB picture, perhaps decoded below its full size, and that full size, upright."""

    picture: Image.Image
    size_px: tuple[int, int]
    traits: Traits


def decode(
    content: bytes, least_px: int | None = None, max_megapixels: float = PICTURE_MEGAPIXELS
) -> Image.Image:
    """Returns an upright RGB picture, of an animation or of several pages the first.

    EXIF orientation is applied; transparency is composed on white; palettes, CMYK and grey values
    of 1 to 16 bits are converted. The header is checked before any pixel is decoded, so a small
    file cannot ask for much memory; what is converted is converted in strips.

    Peak memory of a process that reads one for an input of 160 px, the 47 MB of a process that
    reads none included, measured with Pillow 13.0 on files of 8192 x 6144 and 16320 x 12240 px:
    JPEG 62 and 100 MB, progressive JPEG 211 and 695 MB (its decoder holds all coefficients), RGB
    PNG 404 and 1436 MB, grey 16-bit PNG 470 and 1483 MB, RGBA PNG 649 and 2195 MB. The files
    themselves, of up to 468 MB, are part of that.

    Args:
        content: The bytes of a JPEG, PNG, BMP, WebP, GIF, TIFF, AVIF or, with `edgekit[heic]`,
            HEIC file, whatever its name says.
        least_px: If given, a JPEG may come out at a half, a quarter or an eighth of its size, as
            long as both sides keep at least so many pixels: its decoder then computes only these.
            Defaults to None: the full size.
        max_megapixels: Largest picture that is decoded, in millions of pixels.

    Raises:
        UnreadableError: If it is none of these, is truncated or damaged, is smaller than 16 px on a
            side or too large.
    """
    return _decode(content, least_px, max_megapixels).picture


def _decode(content: bytes, least_px: int | None, max_megapixels: float) -> _Decoded:
    kind = _kind(content)
    try:
        with _decoding():
            picture = _opened(content, kind)
            _check_size(*picture.size, max_megapixels)
            if kind == "PNG":  # decoding one leaves some of its checksums out
                _opened(content, kind).verify()
            full = picture.size
            if least_px is not None and kind == "JPEG":
                picture.draft(None, (least_px, least_px))
            _check_values(picture, kind)
            picture.load()
            orientation = picture.getexif().get(ORIENTATION, 1)
            turn = _TURNS.get(orientation)
            upright: Image.Image = picture if turn is None else picture.transpose(turn)
            rgb, grey_bits = _rgb(upright, *_grey_range(picture, kind))
            size = full[::-1] if orientation in _SIDEWAYS else full
            return _Decoded(rgb, size, Traits(_is_first(content, kind), grey_bits))
    except UnreadableError:
        raise
    except UnidentifiedImageError:
        raise UnreadableError("truncated or damaged (the header cannot be read)") from None
    except _PARSER_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else error.__class__.__name__
        raise UnreadableError(f"truncated or damaged ({reason})") from None


def _kind(content: bytes) -> Format:
    kind = format_of(content[:HEAD_BYTES])
    if kind is None:
        start = content[:8].decode("latin-1").encode("unicode_escape").decode()
        raise UnreadableError(f"not a {READ} picture (starts with '{start}')")
    if kind == "HEIF" and not reads_heif():
        raise UnreadableError(HEIF_EXTRA)
    return kind


def _opened(content: bytes, kind: Format) -> ImageFile:
    """Returns a picture of which only the header is read, by the decoder of this format alone."""
    if kind != "HEIF":
        return Image.open(io.BytesIO(content), formats=(kind,))
    from pillow_heif.as_plugin import HeifImageFile

    opened: ImageFile = HeifImageFile(io.BytesIO(content))
    return opened


_PILLOW = threading.RLock()


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Takes Pillow's own limit of pixels, one for the whole process, out of the way.

    `_check_size` stands in its place, before anything is decoded.
    """
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata; pixels decide here
        kept = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = kept


def kind_and_orientation(content: bytes) -> tuple[Format, int]:
    """Returns a picture's format, and the EXIF orientation, 1 to 8, that is to be applied.

    Args:
        content: The bytes of a file that `decode` takes.
    """
    kind = _kind(content)
    with _decoding():
        picture = _opened(content, kind)
        picture.load()  # in a PNG it may stand behind the pixels
        found = picture.getexif().get(ORIENTATION, 1)
    return kind, int(found) if found in _TURNS else 1


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise UnreadableError(
            f"too large: {width} x {height} px, {width * height / 1e6:.1f} megapixels, at most "
            f"{max_megapixels:g}; set data.max_megapixels or --max-megapixels"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise UnreadableError(f"{width} x {height} px, smaller than {MIN_SIDE_PX} px")


def _check_values(picture: ImageFile, kind: Format) -> None:
    """Refuses a TIFF file whose first picture is no picture in the sense of the others."""
    tags = getattr(picture, "tag_v2", {}) if kind == "TIFF" else {}
    if tags.get(_SUBFILE, 0) & 1:
        raise UnreadableError(
            "its first picture is a preview of another (camera raw files are built so): convert it"
        )
    if picture.mode in ("I", "F"):
        raise UnreadableError(
            "its values are signed or have 32 bits, and nothing says which one is white: write it "
            "with 8 or 16 bits"
        )


def _grey_range(picture: ImageFile, kind: Format) -> tuple[int, bool]:
    """Returns which value is white in a grey picture of 16 bits, and whether 0 is white instead."""
    tags = getattr(picture, "tag_v2", {}) if kind == "TIFF" else {}
    return 4095 if tags.get(_BITS) == (12,) else 65535, tags.get(_PHOTOMETRIC) == 0


def _is_first(content: bytes, kind: Format) -> bool:
    """Returns whether more pictures follow; a JPEG's are what cameras add to one picture."""
    if kind == "JPEG":
        return False
    try:
        return bool(getattr(_opened(content, kind), "is_animated", False))
    except (*_PARSER_ERRORS, UnidentifiedImageError):
        return True  # it goes on behind the first one, in some way that cannot be read


def _rgb(picture: Image.Image, white: int, is_inverted: bool) -> tuple[Image.Image, int | None]:
    """Returns a picture in RGB, and how many bits the values of a grey one of 16 take."""
    is_deep = picture.mode.startswith("I;16")
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture, None
    found = Image.new("RGB", picture.size)
    top, rows = 0, max(1, _PIXELS_AT_ONCE // picture.width)
    for start in range(0, picture.height, rows):
        part = picture.crop((0, start, picture.width, min(start + rows, picture.height)))
        if is_deep:
            values = np.asarray(part, np.float32)
            top = max(top, int(values.max()))
            # Pillow would clip them instead of scaling them.
            levels = np.minimum(values / (white / 255), 255).round().astype(np.uint8)
            part = Image.fromarray(255 - levels if is_inverted else levels)
        found.paste(_on_white(part), (0, start))
    return found, top.bit_length() if is_deep and white == 65535 else None


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return picture.convert("RGB")


def fit(
    picture: Image.Image, preprocess: Preprocess, size: tuple[int, int] | None = None
) -> npt.NDArray[np.uint8]:
    """Returns the picture cropped and resized as the contract says.

    Args:
        picture: Upright RGB picture.
        preprocess: The contract.
        size: Width and height of the upright picture in its file. Where it was decoded below
            that, a whole pixel is too coarse a step for the edge of a crop. Defaults to None: the
            picture has its full size.

    Returns:
        uint8 array of shape (height_px, width_px, 3) in the contract's channel order; three times
        the luma where that is "grey".
    """
    if preprocess.channels == "grey":
        picture = picture.convert("L").convert("RGB")
    width, height = preprocess.width_px, preprocess.height_px
    shrunk = size not in (None, picture.size)
    box: tuple[float, float, float, float] | None = None
    if preprocess.crop == "center":
        ratio = min(picture.width / width, picture.height / height)
        kept_width, kept_height = width * ratio, height * ratio
        if not shrunk:
            # Whole pixels, as an app on the device would cut them off before resizing.
            kept_width, kept_height = round(kept_width), round(kept_height)
        left, top = (picture.width - kept_width) / 2, (picture.height - kept_height) / 2
        if shrunk:
            # Rounding can put the edge of a crop a hair outside the picture.
            right = min(left + kept_width, picture.width)
            bottom = min(top + kept_height, picture.height)
            box = (max(left, 0.0), max(top, 0.0), right, bottom)
        else:
            corner = int(left), int(top)
            with _decoding():
                picture = picture.crop((*corner, corner[0] + kept_width, corner[1] + kept_height))
    if preprocess.crop == "letterbox":
        left, top, *kept = preprocess.letterbox(*(size or picture.size))
        resized = Image.new("RGB", (width, height), preprocess.ground)
        resized.paste(picture.resize(kept, _FILTERS[preprocess.resize]), (left, top))
    else:
        resized = picture.resize((width, height), _FILTERS[preprocess.resize], box)
    pixels = np.asarray(resized, dtype=np.uint8)
    return pixels[..., ::-1] if preprocess.channels == "bgr" else pixels


def pixel_digest(picture: Image.Image) -> str:
    """Returns the sha256 of size and pixels: equal for equal pictures in different files."""
    digest = hashlib.sha256(f"{picture.width}x{picture.height}:".encode())
    rows = max(1, _PIXELS_AT_ONCE // picture.width)
    for top in range(0, picture.height, rows):
        below = min(top + rows, picture.height)
        digest.update(picture.crop((0, top, picture.width, below)).tobytes())
    return digest.hexdigest()


def difference_hash(picture: Image.Image) -> int:
    """Returns a 64-bit perceptual hash: is each cell of a 9 x 8 miniature darker than the next.

    Near-identical pictures (recompressed, resized) differ in few bits or none.
    """
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def miniature(picture: Image.Image) -> bytes:
    """Returns the mean colours of 16 x 16 equal parts: uint8 RGB, row by row."""
    side = (MINIATURE_PX, MINIATURE_PX)
    return picture.resize(side, Image.Resampling.BOX).tobytes()


def fingerprint(picture: Image.Image) -> Fingerprint:
    """Returns the fingerprint of an upright RGB picture."""
    return Fingerprint(pixel_digest(picture), difference_hash(picture), miniature(picture))


class Seen(NamedTuple):
    """One picture file as training and judging see it.

    Args:
        pixels: uint8 of shape `(height_px, width_px, 3)` in the contract's channel order.
        look: Its fingerprint.
        appearance: What it looks like.
        traits: What is worth saying of it.
    """

    pixels: npt.NDArray[np.uint8]
    look: Fingerprint
    appearance: Appearance
    traits: Traits


def read(
    path: Path, preprocess: Preprocess, sha256: str, max_megapixels: float = PICTURE_MEGAPIXELS
) -> Seen:
    """Returns the fitted pixels of one file and what is known of it.

    Args:
        path: The file.
        preprocess: The contract.
        sha256: Digest of the bytes that were scanned, which later stages rely on.
        max_megapixels: Largest picture that is decoded, in millions of pixels.

    Raises:
        UnreadableError: If the file is not a usable picture.
        DataError: If its bytes are not those that were scanned.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{path} changed while edgekit was reading the data folder",
            "a folder that nothing writes to during the run",
            "start again when nothing changes it any more",
        )
    found = _decode(content, _least_px(preprocess), max_megapixels)
    del content
    pixels = fit(found.picture, preprocess, found.size_px)
    shown = pixels
    if preprocess.crop == "letterbox":  # what surrounds a picture says nothing about it
        left, top, width, height = preprocess.letterbox(*found.size_px)
        shown = pixels[top : top + height, left : left + width]
    seen = appearance(found.size_px, shown, preprocess.channels)
    return Seen(pixels, fingerprint(found.picture), seen, found.traits)


def pixels(
    content: bytes, preprocess: Preprocess, max_megapixels: float = PICTURE_MEGAPIXELS
) -> npt.NDArray[np.uint8]:
    """Returns the fitted pixels of one picture, as training and judging see it.

    Args:
        content: The bytes of the file.
        preprocess: The contract.
        max_megapixels: Largest picture that is decoded, in millions of pixels.

    Raises:
        UnreadableError: If it is not a usable picture.
    """
    found = _decode(content, _least_px(preprocess), max_megapixels)
    return fit(found.picture, preprocess, found.size_px)


def _least_px(preprocess: Preprocess) -> int | None:
    """Returns the side that a scaled decode must keep so that the filter behind it decides.

    At twice the input's side, photographs of 2000 x 3600 px decode 4 times as fast, and a pixel
    value differs from the full decode's by 0.2 of 255 on average, less than rounding does.
    """
    if preprocess.resize == "nearest":  # picks single pixels, which a scaled decode does not have
        return None
    return 2 * max(preprocess.width_px, preprocess.height_px)
