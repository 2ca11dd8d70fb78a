"""Which picture format a file holds, told by its first bytes; names of files decide nothing."""

import importlib.util
from pathlib import Path
from typing import Literal, get_args

Format = Literal["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "AVIF", "HEIF"]
# By Pillow's names, and pillow-heif's.
FORMATS: tuple[Format, ...] = get_args(Format)
READ = "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIC"
# Names that say "this is a picture": such a file is tried, and missed where it cannot be read.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
    ".heic", ".heif", ".hif",
)  # fmt: skip
# So many bytes tell: DICOM's mark is the farthest, behind 128 bytes.
HEAD_BYTES = 256
HEIF_EXTRA = (
    "HEIC picture, which the extra package of 'edgekit[heic]' reads: install it, or convert "
    "the pictures to JPEG"
)
# Pictures of other programs, by the beginning of the file: each is missed like a damaged one.
_OTHERS = (
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xffO\xffQ", "JPEG 2000"),
    (b"\xff\n", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\0\0\x01\0", "icon"),
    (b"qoif", "QOI"),
    (b"P4\n", "PNM"),
    (b"P5\n", "PNM"),
    (b"P6\n", "PNM"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"IIRO", "camera raw"),
    (b"IIRS", "camera raw"),
    (b"IIU\0", "camera raw"),
    (b"SIMPLE  =", "FITS"),
)
# The same by their names, where the beginning does not tell.
_OTHER_SUFFIXES = {
    **dict.fromkeys((".dng", ".nef", ".arw", ".cr2", ".cr3", ".orf", ".rw2", ".raf", ".pef",
                     ".srw"), "camera raw"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PNM"),
    ".jxl": "JPEG XL", ".psd": "Photoshop", ".exr": "OpenEXR", ".tga": "Targa", ".svg": "SVG",
}  # fmt: skip
# Sizes of the header behind the first 14 bytes of a BMP file, by its version. Source:
# https://learn.microsoft.com/windows/win32/gdi/bitmap-header-types
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
# ISO/IEC 14496-12 (ftyp) and 23008-12, annex B and 10.2; AVIF 1.1, section 8.
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")
_HEIF_BRANDS = (b"mif1", b"mif2", b"msf1")  # whatever codec


def format_of(head: bytes) -> Format | None:
    """Returns the format of a picture, or None for what edgekit reads as none.

    Args:
        head: The first `HEAD_BYTES` bytes of a file, or all of a shorter one.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    # Little-endian and big-endian, each with offsets of 32 or 64 bits.
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")) and head[8:10] != b"CR":
        return "TIFF"
    # "BM" alone begins many a text.
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return _of_boxes(head)


def _of_boxes(head: bytes) -> Format | None:
    """Returns which of the two formats in boxes it is, by the brands that the file names."""
    if head[4:8] != b"ftyp":
        return None
    named = head[8 : max(16, int.from_bytes(head[:4], "big"))]
    # The first says what the file is; behind a version come those that it can be read as, too.
    brands = [named[at : at + 4] for at in range(0, len(named) - 3, 4) if at != 4]
    for brand in brands:
        if brand in _AVIF_BRANDS:
            return "AVIF"
        if brand in _HEIC_BRANDS:
            return "HEIF"
    return "HEIF" if any(brand in _HEIF_BRANDS for brand in brands) else None


def is_named_picture(path: Path) -> bool:
    """Returns whether the name of a file says that it is a picture."""
    return path.suffix.lower() in SUFFIXES


def other_format(path: Path, head: bytes) -> str | None:
    """Returns the name of a picture format that edgekit does not read; None for anything else.

    Args:
        path: The file.
        head: Its first `HEAD_BYTES` bytes.
    """
    if head[4:12] == b"ftypcrx " or (head.startswith(b"II*\0") and head[8:10] == b"CR"):
        return "camera raw"
    if head[128:132] == b"DICM":
        return "DICOM"
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "SVG"
    named = _OTHER_SUFFIXES.get(path.suffix.lower())
    return next((name for start, name in _OTHERS if head.startswith(start)), named)


def reads_heif() -> bool:
    """Returns whether the package that reads HEIC is installed."""
    return importlib.util.find_spec("pillow_heif") is not None
