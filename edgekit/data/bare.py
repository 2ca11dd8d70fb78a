"""A picture's file without what it tells beside its pixels: place, time, camera, owner, comments.

Data layer. Cameras and programs write all of that into files (EXIF, XMP, IPTC, colour profiles,
whole previews and films behind the end), and who passes a file on passes that on. Nothing is
encoded again where it can be helped: what remains decodes to the very pixels.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from edgekit.data.formats import Format
from edgekit.data.picture import ORIENTATION, UnreadableError, decode, kind_and_orientation

# JPEG. Markers: ITU-T T.81, table B.1. What decoding reads: frames, tables, restart intervals,
# scans, and two application segments that say what the colours are: JFIF 1.02 and Adobe's
# Technical Note 5116, section 18.
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_END_OF_SCAN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # a marker that no scan holds
_STANDING_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # no length behind them
_DECODED = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xE0))) - {0xC8}
_SCAN, _JFIF, _EXIF, _ADOBE = 0xDA, 0xE0, 0xE1, 0xEE
_JFIF_BYTES, _ADOBE_BYTES = 12, 12  # JFIF's up to the size of its thumbnail
# PNG, third edition, chapter 11.
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_DECODED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# WebP: https://developers.google.com/speed/webp/docs/riff_container
_WEBP_DECODED = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L")
_WEBP_EXIF_FLAG, _WEBP_ALPHA_FLAG = 0x08, 0x10


def bare(content: bytes) -> tuple[bytes, str]:
    """Returns a picture without metadata but its orientation, and the suffix of such a file.

    Both are decoded, and have the same pixels at full size. Where a format cannot be stripped so
    (such as BMP, TIFF, HEIC, animated WebP), it becomes a PNG of the upright pixels.

    Args:
        content: The bytes of a file that `decode` takes.

    Returns:
        The bytes of the new file, and ".jpg", ".png" or ".webp".

    Raises:
        UnreadableError: If it is no usable picture, or no such file can be made of it.
    """
    seen = decode(content).tobytes()
    kind, orientation = kind_and_orientation(content)
    exif = b"" if orientation == 1 else _only(orientation)
    for suffix, strip in (*_STRIPPING.get(kind, ()), (".png", _encoded)):
        try:
            made = strip(content, exif)
            if decode(made).tobytes() == seen:
                return made, suffix
        except (UnreadableError, ValueError, struct.error):
            continue  # damaged in a way that decoders pass over
    raise UnreadableError("its pixels cannot be kept without its metadata")


def _only(orientation: int) -> bytes:
    """Returns EXIF with nothing but the orientation: a TIFF header, one entry, no further part."""
    return struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


def _jpeg(content: bytes, exif: bytes) -> bytes:
    """Returns a JPEG with what decoding reads, up to the end of its first picture."""
    head: dict[int, bytes] = {}
    body = []
    for marker, payload in _segments(content):
        if marker in _DECODED:
            body.append(bytes((0xFF, marker)) + payload)
        elif marker == _JFIF and payload[2:].startswith(b"JFIF\0"):
            head.setdefault(marker, payload[2 : 2 + _JFIF_BYTES] + b"\0\0")  # no thumbnail
        elif marker == _ADOBE and payload[2:].startswith(b"Adobe"):
            head.setdefault(marker, payload[2 : 2 + _ADOBE_BYTES])
    if exif:
        head[_EXIF] = b"Exif\0\0" + exif
    first = [
        struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
        for marker, payload in sorted(head.items())  # JFIF's is the first, as JFIF asks
    ]
    return b"\xff\xd8" + b"".join([*first, *body]) + b"\xff\xd9"


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields each marker with what follows it, from its length on, up to the end of a picture.

    Raises:
        ValueError, struct.error: If the file ends before that.
    """
    at = 2
    while True:
        # Decoders skip whatever else lies between two segments.
        found = _MARKER.search(content, at)
        if found is None:
            raise ValueError("no end")
        marker, at = found[1][0], found.end()
        if marker == 0xD9:
            return
        if marker in _STANDING_ALONE:
            continue
        end = at + struct.unpack_from(">H", content, at)[0]
        if marker == _SCAN:
            behind = _END_OF_SCAN.search(content, end)
            if behind is None:
                raise ValueError("no end")
            end = behind.start()
        yield marker, content[at:end]
        at = end


def _png(content: bytes, exif: bytes) -> bytes:
    """Returns a PNG with its picture, palette and transparency."""
    made = [_PNG_MAGIC]
    at, name = len(_PNG_MAGIC), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", content, at)
        if name in _PNG_DECODED:
            made.append(content[at : at + 12 + length])
        if name == b"IHDR" and exif:
            checked = b"eXIf" + exif
            made.append(struct.pack(">I", len(exif)) + checked)
            made.append(struct.pack(">I", zlib.crc32(checked)))
        at += 12 + length
    return b"".join(made)


def _webp(content: bytes, exif: bytes) -> bytes:
    """Returns a WebP with its picture and transparency."""
    parts: dict[bytes, bytes] = {}
    at, end = 12, 8 + struct.unpack_from("<I", content, 4)[0]
    while at < end:
        name, length = struct.unpack_from("<4sI", content, at)
        parts.setdefault(name, content[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    if b"ANIM" in parts:
        raise ValueError("an animation")
    kept = {name: parts[name] for name in _WEBP_DECODED if name in parts}
    if b"VP8X" in kept:
        flags = kept[b"VP8X"][0] & _WEBP_ALPHA_FLAG | (_WEBP_EXIF_FLAG if exif else 0)
        kept[b"VP8X"] = bytes((flags, 0, 0, 0)) + kept[b"VP8X"][4:10]
    if exif:
        kept[b"EXIF"] = exif
    body = b"WEBP" + b"".join(
        struct.pack("<4sI", name, len(data)) + data + bytes(len(data) % 2)
        for name, data in kept.items()
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _encoded(content: bytes, _exif: bytes) -> bytes:
    """Returns the upright pixels as a PNG."""
    file = io.BytesIO()
    # By way of an array: Pillow would take comments and colour profiles along.
    Image.fromarray(np.asarray(decode(content))).save(file, "PNG")
    return file.getvalue()


_STRIPPING: dict[Format, tuple[tuple[str, Callable[[bytes, bytes], bytes]], ...]] = {
    "JPEG": ((".jpg", _jpeg),),
    "PNG": ((".png", _png),),
    "WEBP": ((".webp", _webp),),
}
