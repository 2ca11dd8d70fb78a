"""A stripped picture shows the same pixels and tells nothing else; the originals do tell."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from edgekit.data.bare import bare
from edgekit.data.picture import UnreadableError, decode, pixels
from edgekit.records import Preprocess

SECRET = b"Ada's garden"
PREPROCESS = Preprocess(height_px=32, width_px=32)
ORIENTATION, GPS, MAKER = 0x0112, 0x8825, 0x010F


def noise(mode: str = "RGB", size: tuple[int, int] = (190, 150), seed: int = 3) -> Image.Image:
    """Returns smooth random colours: noise at a quarter of the size, made larger."""
    small = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 4), np.uint8)
    picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    return picture.convert(mode) if mode != "RGBA" else picture


def exif(orientation: int | None) -> Image.Exif:
    """Returns EXIF with a place, a maker, and an orientation if there is one."""
    made = Image.Exif()
    if orientation is not None:
        made[ORIENTATION] = orientation
    made[MAKER] = SECRET.decode()
    made.get_ifd(GPS).update({1: "N", 2: (51.0, 28.0, 38.0), 3: "W", 4: (0.0, 0.0, 5.0)})
    return made


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + SECRET


def saved(picture: Image.Image, kind: str, **more: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **more)
    return file.getvalue()


def jpeg(orientation: int | None = None, mode: str = "RGB", **more: object) -> bytes:
    """Returns a JPEG with all that cameras write, and a film behind its end."""
    content = saved(
        noise(mode), "JPEG", exif=exif(orientation), icc_profile=PROFILE, comment=SECRET, **more
    )
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x>" + SECRET + b"</x>"
    segment = struct.pack(">BBH", 0xFF, 0xE1, len(xmp) + 2) + xmp
    return content[:2] + segment + content[2:] + b"ftypmp42" + SECRET


def of_adobe() -> bytes:
    """Returns a JPEG of which Adobe's segment alone says that its data are RGB, not YCbCr."""
    content = saved(noise(), "JPEG", comment=SECRET)
    length = struct.unpack_from(">H", content, 4)[0]
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
    return content[:2] + adobe + content[4 + length :]


def png(picture: Image.Image, orientation: int | None = None, **more: object) -> bytes:
    about = PngImagePlugin.PngInfo()
    about.add_text("Author", SECRET.decode())
    about.add_itxt("XML:com.adobe.xmp", f"<x>{SECRET.decode()}</x>", zip=False)
    content = saved(
        picture, "PNG", pnginfo=about, exif=exif(orientation), icc_profile=PROFILE, **more
    )
    return content + SECRET


def palette() -> Image.Image:
    return noise().quantize(16)


def webp(orientation: int | None = None, mode: str = "RGB", **more: object) -> bytes:
    return saved(
        noise(mode), "WEBP", exif=exif(orientation), icc_profile=PROFILE, xmp=SECRET, **more
    )


def several() -> bytes:
    """Returns a JPEG of two pictures, as phones write them."""
    content = saved(
        noise(), "MPO", save_all=True, append_images=[noise(seed=4)], exif=exif(6), comment=SECRET
    )
    assert Image.open(io.BytesIO(content)).format == "MPO"
    return content


def bitmap() -> bytes:
    content = bytearray(saved(noise(), "BMP") + SECRET)
    content[6:10] = SECRET[:4]  # the reserved fields
    return bytes(content)


FILES: dict[str, tuple[Callable[[], bytes], str, int]] = {
    **{f"JPEG turned {turn}": (lambda turn=turn: jpeg(turn), ".jpg", turn) for turn in range(1, 9)},
    "JPEG without orientation": (jpeg, ".jpg", 1),
    "grey JPEG": (lambda: jpeg(3, "L"), ".jpg", 3),
    "CMYK JPEG": (lambda: jpeg(8, "CMYK"), ".jpg", 8),
    "JPEG of Adobe": (of_adobe, ".jpg", 1),
    "RGB JPEG": (lambda: jpeg(8, keep_rgb=True), ".jpg", 8),
    "progressive JPEG": (lambda: jpeg(5, progressive=True), ".jpg", 5),
    "JPEG with restarts": (lambda: jpeg(5, restart_marker_blocks=3), ".jpg", 5),
    "several pictures": (several, ".jpg", 6),
    "PNG": (lambda: png(noise(), 7), ".png", 7),
    "PNG with transparency": (lambda: png(noise("RGBA")), ".png", 1),
    "PNG with a palette": (lambda: png(palette(), 2, transparency=3), ".png", 2),
    "16-bit PNG": (
        lambda: png(Image.fromarray(np.asarray(noise("L"), np.uint16) * 257 + 9), 4), ".png", 4),
    "animated PNG": (
        lambda: png(noise(), save_all=True, append_images=[noise(seed=4)]), ".png", 1),
    "WebP": (lambda: webp(6), ".webp", 6),
    "lossless WebP": (lambda: webp(6, lossless=True), ".webp", 6),
    "WebP with transparency": (lambda: webp(3, "RGBA"), ".webp", 3),
    "animated WebP": (
        lambda: webp(save_all=True, append_images=[noise(seed=4)]), ".png", 1),
    "BMP": (bitmap, ".png", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_stay_and_nothing_else(name: str) -> None:
    make, suffix, orientation = FILES[name]
    content = make()
    assert SECRET[:4] in content
    found, found_suffix = bare(content)
    assert found_suffix == suffix
    assert decode(found).tobytes() == decode(content).tobytes()
    if name != "several pictures":  # which a decoder never makes smaller while it decodes
        assert pixels(found, PREPROCESS).tobytes() == pixels(content, PREPROCESS).tobytes()
    for secret in (SECRET, b"GPS", b"ICC_PROFILE", b"iCCP", b"xap", b"ftyp", b"MPF\0"):
        assert secret not in found, secret
    left = Image.open(io.BytesIO(found))
    left.load()
    assert dict(left.getexif()) == ({} if orientation == 1 else {ORIENTATION: orientation})
    assert not {"comment", "icc_profile", "xmp", "Author"} & left.info.keys()
    assert getattr(left, "n_frames", 1) == 1
    assert bare(found) == (found, suffix)


def test_the_twin_the_originals_tell(subtests: pytest.Subtests) -> None:
    for name, (make, *_) in FILES.items():
        if name not in ("BMP", "several pictures", "JPEG of Adobe"):
            with subtests.test(name):
                original = Image.open(io.BytesIO(make()))
                original.load()
                assert original.getexif()[MAKER] == SECRET.decode()
                assert original.getexif().get_ifd(GPS)[1] == "N"


def test_the_twin_a_segment_that_decides_about_colours_cannot_go() -> None:
    """Without Adobe's segment the same data are other colours."""
    found, _ = bare(of_adobe())
    at = found.index(b"\xff\xee")
    length = struct.unpack_from(">H", found, at + 2)[0]
    without = found[:at] + found[at + 2 + length :]
    assert decode(without).tobytes() != decode(found).tobytes()


def test_a_file_without_metadata_stays_byte_for_byte() -> None:
    for content, suffix in (
        (saved(noise(), "JPEG"), ".jpg"),
        (saved(noise(), "PNG"), ".png"),
        (saved(noise(), "WEBP"), ".webp"),
    ):
        assert bare(content) == (content, suffix)


def test_what_no_scan_may_hold_ends_it() -> None:
    """A comment between the scans of a progressive JPEG goes, the scans stay."""
    content = saved(noise(), "JPEG", progressive=True)
    at = content.rindex(b"\xff\xda")
    comment = b"\xff\xfe" + struct.pack(">H", len(SECRET) + 2) + SECRET
    assert bare(content[:at] + comment + content[at:])[0] == content


def test_damaged_files_are_refused_or_lose_nothing() -> None:
    """Whatever bytes are altered: the pixels are those of the decoder, or there are none."""
    draw = random.Random(5)
    refused = 0
    for make in (lambda: jpeg(6), lambda: png(palette(), 2), lambda: webp(6)):
        original = make()
        for _ in range(40):
            content = bytearray(original)
            for _ in range(draw.choice((1, 3))):
                content[draw.randrange(len(content))] = draw.randrange(256)
            if draw.random() < 0.2:
                del content[draw.randrange(len(content)) :]
            try:
                found, _suffix = bare(bytes(content))
            except UnreadableError:
                refused += 1
                continue
            assert decode(found).tobytes() == decode(bytes(content)).tobytes()
    assert 0 < refused < 120


def test_chunks_of_a_png_keep_their_checksums() -> None:
    found, _ = bare(png(noise(), 7))
    at, names = 8, []
    while at < len(found):
        length, name = struct.unpack_from(">I4s", found, at)
        data = found[at + 4 : at + 8 + length]
        assert struct.unpack_from(">I", found, at + 8 + length)[0] == zlib.crc32(data)
        names.append(name)
        at += 12 + length
    assert set(names) == {b"IHDR", b"eXIf", b"IDAT", b"IEND"}
