"""One picture file to one uint8 array, under the preprocessing contract. Pillow and numpy only."""

import hashlib
import io
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from edgekit.data.appearance import Appearance, appearance
from edgekit.errors import DataError
from edgekit.records import Preprocess

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MAX_PIXELS = 50_000_000
MIN_SIDE_PX = 16
MINIATURE_PX = 16
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # of JPEG and PNG
# What Pillow's parsers raise on damaged files, beside its own exceptions.
_PARSER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    struct.error,
)
ORIENTATION = 0x0112  # tag of EXIF
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


def decode(content: bytes, least_px: int | None = None) -> Image.Image:
    """Returns an upright RGB picture.

    EXIF orientation is applied; transparency is composed on white; 16-bit and CMYK are converted.
    The header is checked before any pixel is decoded, so a small file cannot ask for much memory.

    Args:
        content: The bytes of a JPEG, PNG, BMP or WebP file, whatever its name says.
        least_px: If given, a JPEG may come out at a half, a quarter or an eighth of its size, as
            long as both sides keep at least so many pixels: its decoder then computes only these.
            Defaults to None: the full size.

    Raises:
        UnreadableError: If it is none of these, is truncated or damaged, is smaller than 16 px on a
            side or larger than 50 megapixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd metadata; pixels decide here
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            _check_size(*picture.size)
            # Decoding a PNG leaves some of its checksums out.
            Image.open(io.BytesIO(content), formats=FORMATS).verify()
            if least_px is not None and picture.format == "JPEG":
                picture.draft(None, (least_px, least_px))
            picture.load()
            turn = _TURNS.get(picture.getexif().get(ORIENTATION, 1))
            upright: Image.Image = picture if turn is None else picture.transpose(turn)
    except UnreadableError:
        raise
    except UnidentifiedImageError:
        if content.startswith(_MAGIC):
            raise UnreadableError("truncated or damaged (the header cannot be read)") from None
        start = content[:8].decode("latin-1").encode("unicode_escape").decode()
        raise UnreadableError(
            f"not a {', '.join(FORMATS)} picture (starts with '{start}')"
        ) from None
    except Image.DecompressionBombError:
        raise UnreadableError(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except _PARSER_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else error.__class__.__name__
        raise UnreadableError(f"truncated or damaged ({reason})") from None
    return _rgb(upright)


def kind_and_orientation(content: bytes) -> tuple[str, int]:
    """Returns Pillow's name of a picture's format, and the EXIF orientation, 1 to 8.

    Args:
        content: The bytes of a file that `decode` takes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        picture.load()  # in a PNG it may stand behind the pixels
        found = picture.getexif().get(ORIENTATION, 1)
    return str(picture.format), int(found) if found in _TURNS else 1


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        megapixels = width * height / 1e6
        raise UnreadableError(f"{megapixels:.1f} megapixels > {MAX_PIXELS // 1_000_000}")
    if min(width, height) < MIN_SIDE_PX:
        raise UnreadableError(f"{width} x {height} px, smaller than {MIN_SIDE_PX} px")


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        # Only a 16-bit grey PNG comes so; Pillow clips it instead of scaling it.
        values = np.asarray(picture, dtype=np.float64)
        picture = Image.fromarray((values / 257).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return picture.convert("RGB")


def fit(
    picture: Image.Image, preprocess: Preprocess, shrunk: bool = False
) -> npt.NDArray[np.uint8]:
    """Returns the picture cropped and resized as the contract says.

    Args:
        picture: Upright RGB picture.
        preprocess: The contract.
        shrunk: Whether it was decoded below its full size, where a whole pixel is too coarse a
            step for the edge of a crop. Defaults to False.

    Returns:
        uint8 array of shape (height_px, width_px, 3) in the contract's channel order; three times
        the luma where that is "grey".
    """
    if preprocess.channels == "grey":
        picture = picture.convert("L").convert("RGB")
    width, height = preprocess.width_px, preprocess.height_px
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
            picture = picture.crop((*corner, corner[0] + kept_width, corner[1] + kept_height))
    resized = picture.resize((width, height), _FILTERS[preprocess.resize], box)
    pixels = np.asarray(resized, dtype=np.uint8)
    return pixels[..., ::-1] if preprocess.channels == "bgr" else pixels


def pixel_digest(picture: Image.Image) -> str:
    """Returns the sha256 of size and pixels: equal for equal pictures in different files."""
    size = f"{picture.width}x{picture.height}:".encode()
    return hashlib.sha256(size + picture.tobytes()).hexdigest()


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


def read(
    path: Path, preprocess: Preprocess, sha256: str
) -> tuple[npt.NDArray[np.uint8], Fingerprint, Appearance]:
    """Returns the fitted pixels of one file, its fingerprint, and what it looks like.

    Args:
        path: The file.
        preprocess: The contract.
        sha256: Digest of the bytes that were scanned, which later stages rely on.

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
    picture, size = _decoded(content, preprocess)
    pixels = fit(picture, preprocess, max(picture.size) < max(size))
    return pixels, fingerprint(picture), appearance(size, pixels, preprocess.channels)


def pixels(content: bytes, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Returns the fitted pixels of one picture, as training and judging see it.

    Args:
        content: The bytes of the file.
        preprocess: The contract.

    Raises:
        UnreadableError: If it is not a usable picture.
    """
    picture, size = _decoded(content, preprocess)
    return fit(picture, preprocess, max(picture.size) < max(size))


def _decoded(content: bytes, preprocess: Preprocess) -> tuple[Image.Image, tuple[int, int]]:
    """Returns the picture, perhaps decoded below its full size, and its full size in the file."""
    picture = decode(content, _least_px(preprocess))
    return picture, Image.open(io.BytesIO(content)).size


def _least_px(preprocess: Preprocess) -> int | None:
    """Returns the side that a scaled decode must keep so that the filter behind it decides.

    At twice the input's side, photographs of 2000 x 3600 px decode 4 times as fast, and a pixel
    value differs from the full decode's by 0.2 of 255 on average, less than rounding does.
    """
    if preprocess.resize == "nearest":  # picks single pixels, which a scaled decode does not have
        return None
    return 2 * max(preprocess.width_px, preprocess.height_px)
