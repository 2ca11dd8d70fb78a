"""Picture formats as people have them: told by content, read, or missed and said.

The first tests ask what a file holds, the next what becomes of its pixels, the last ones go through
the command line.
"""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tiny_models import CHANNEL, CLASSES, mean_tflite

from edgekit.data.formats import FORMATS, HEAD_BYTES, Format, format_of, other_format
from edgekit.data.picture import UnreadableError, decode, pixels
from edgekit.data.scan import pictures_below, scan
from edgekit.records import Preprocess

CONTRACT = Preprocess(height_px=32, width_px=32)
Pixels = npt.NDArray[np.uint8]


def drawing(number: int = 0, side: int = 40) -> Image.Image:
    """Returns a smooth picture of its own for every number."""
    cells = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def content(kind: str, picture: Image.Image | None = None, **options: Any) -> bytes:
    picture, file = picture or drawing(), io.BytesIO()
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="edgekit[heic]").from_pillow(picture).save(file)
    else:
        picture.save(file, kind, **options)
    return file.getvalue()


def boxes(*brands: str) -> bytes:
    """Returns the beginning of a file in boxes: what it is, a version, what else it is."""
    first, *others = (brand.encode() for brand in brands)
    body = b"ftyp" + first + bytes(4) + b"".join(others)
    return (len(body) + 4).to_bytes(4, "big") + body + b"\0\0\0\x08mdat"


@pytest.mark.parametrize("kind", FORMATS)
def test_the_beginning_of_a_file_tells_its_format(kind: Format) -> None:
    whole = content(kind)
    assert format_of(whole[:HEAD_BYTES]) == kind
    # The twin: without its mark it is nothing.
    assert format_of(b"\0" * 12 + whole[12:HEAD_BYTES]) is None


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (boxes("heic", "mif1", "heic", "miaf"), "HEIF"),  # a telephone's
        (boxes("mif1", "heic", "hevc"), "HEIF"),
        (boxes("mif1", "avif", "miaf"), "AVIF"),
        (boxes("avif", "mif1", "heic"), "AVIF"),
        (boxes("heix", "mif1", "avif"), "HEIF"),
        (boxes("mif1"), "HEIF"),
        (boxes("isom", "iso2", "avc1", "mp41"), None),  # films
        (boxes("qt  "), None),
        (b"II+\0\x08\0\0\0", "TIFF"),  # offsets of 64 bits
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"II*\0\x10\0\0\0CR\x02\0", None),  # a camera's raw data
        (b"BMI,weight,height\n1,2,3\n", None),
        (b"RIFF\x24\0\0\0WAVEfmt ", None),
        (b"\xff\xd8", None),
        (b"", None),
    ],
)
def test_what_looks_alike_is_told_apart(head: bytes, told: Format | None) -> None:
    assert format_of(head) == told


@pytest.mark.parametrize(
    ("name", "head", "told"),
    [
        ("a.jp2", content("JPEG2000"), "JPEG 2000"),
        ("no_suffix", content("JPEG2000"), "JPEG 2000"),
        ("a.bin", b"8BPS\0\x01", "Photoshop"),
        ("a.CR3", boxes("crx ", "crx ", "isom"), "camera raw"),
        ("a", b"II*\0\x10\0\0\0CR\x02\0", "camera raw"),
        ("scan", bytes(128) + b"DICM", "DICOM"),
        ("a.svg", b"<?xml version='1.0'?>\n<svg/>", "SVG"),
        ("a.ppm", b"P3\n1 1\n255\n0 0 0\n", "PNM"),
        ("notes.txt", b"P7 is a node", None),
        ("list.xml", b"<?xml version='1.0'?>\n<annotation/>", None),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0", None),
        ("empty", b"", None),
    ],
)
def test_pictures_in_other_formats_are_known_by_name(
    name: str, head: bytes, told: str | None
) -> None:
    assert other_format(Path(name), head[:HEAD_BYTES]) == told


# ---- pixels


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_shows_the_picture(kind: Format) -> None:
    picture = drawing(3)
    seen = np.asarray(decode(content(kind, picture)), int)
    assert np.abs(seen - np.asarray(picture, int)).mean() < 8  # palettes of GIF, blocks of others
    assert np.abs(seen - np.asarray(drawing(4), int)).mean() > 30


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "AVIF", "MPO"])
def test_of_several_pictures_the_first_is_read(kind: str) -> None:
    first, second = drawing(1), drawing(2)
    seen = np.asarray(decode(content(kind, first, save_all=True, append_images=[second])), int)
    assert np.abs(seen - np.asarray(first, int)).mean() < 8
    assert np.abs(seen - np.asarray(second, int)).mean() > 30


def test_a_camera_file_with_several_pictures_is_decoded_at_a_fraction_too() -> None:
    first = drawing(1, 800)
    both = content("MPO", first, save_all=True, append_images=[drawing(2, 800)], quality=95)
    assert decode(both, 100).size == (100, 100)
    assert np.array_equal(pixels(both, CONTRACT), pixels(content("JPEG", first, quality=95),
                                                         CONTRACT))  # fmt: skip


def grey16(top: int, side: int = 40) -> Image.Image:
    ramp = np.linspace(0, top, side * side).round().astype(np.uint16)
    return Image.fromarray(ramp.reshape(side, side))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_tiff_of_16_bits_is_read_as_png_of_16_bits_is(compression: str | None) -> None:
    picture = grey16(65535)
    as_tiff = decode(content("TIFF", picture, compression=compression))
    assert np.array_equal(np.asarray(as_tiff), np.asarray(decode(content("PNG", picture))))
    inverted = decode(content("TIFF", picture, compression=compression, tiffinfo={262: 0}))
    assert np.array_equal(np.asarray(inverted), 255 - np.asarray(as_tiff))


def tiff_of_12_bits(values: npt.NDArray[np.uint16]) -> bytes:
    """Returns a TIFF in which two values take three bytes. Source: TIFF 6.0, section 8."""
    height, width = values.shape
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1
    ).astype(np.uint8)
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height,
            279: packed.size}  # fmt: skip
    start = 8 + packed.size
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )
    head = b"II*\0" + start.to_bytes(4, "little")
    return head + packed.tobytes() + len(tags).to_bytes(2, "little") + entries + bytes(4)


def test_12_bits_of_a_tiff_fill_the_range() -> None:
    values = np.linspace(0, 4095, 40 * 40).round().astype(np.uint16).reshape(40, 40)
    seen = np.asarray(decode(tiff_of_12_bits(values)))[..., 0]
    assert np.array_equal(seen, np.round(values / (4095 / 255)).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_of_tiff_becomes_rgb(mode: str) -> None:
    flat = Image.new("RGB", (32, 32), (255, 255, 255)).convert(mode)
    assert (np.asarray(decode(content("TIFF", flat))) == 255).all()
    dark = Image.new("RGB", (32, 32), (0, 0, 0)).convert(mode)
    assert (np.asarray(decode(content("TIFF", dark))) < 60).all()


def test_a_large_picture_is_converted_in_strips_as_a_small_one_is() -> None:
    """2500 x 2000 px are two strips."""
    rng = np.random.default_rng(5)
    layered = Image.fromarray(rng.integers(0, 256, (2500, 2000, 4), np.uint8))
    seen = np.asarray(decode(content("PNG", layered, compress_level=1)))
    ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    assert np.array_equal(seen, np.asarray(Image.alpha_composite(ground, layered).convert("RGB")))
    assert not np.array_equal(seen, np.asarray(layered)[..., :3])


def test_the_limit_on_pixels_is_the_one_that_is_asked_for() -> None:
    whole = content("PNG", drawing(side=400))
    assert decode(whole, max_megapixels=0.16).size == (400, 400)
    with pytest.raises(UnreadableError, match=r"too large: 400 x 400 px, 0\.2 megapixels, at most"):
        decode(whole, max_megapixels=0.159)


# ---- what a folder is taken to hold


def test_the_content_finds_a_picture_whatever_its_file_is_called(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number, name in enumerate(("a.jfif", "b.JPE", "c", "d.txt", "e.dat", "f.png")):
            (tmp_path / label / name).write_bytes(content("JPEG", drawing(number)))
    (tmp_path / "cat" / "notes.txt").write_text("a cat")
    (tmp_path / "cat" / "index").write_bytes(b"BM is no picture")
    found = scan(tmp_path)
    assert len(found.sources) == 12
    assert {(item.path, item.reason, item.kind) for item in found.skipped} == {
        (f"cat/{name}", "not a picture", "not-a-picture") for name in ("notes.txt", "index")
    }


def test_a_class_of_pictures_without_suffixes_is_a_class(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for split in ("train", "test"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            (folder / "0001").write_bytes(content("WEBP"))
    found = scan(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert {source.split for source in found.sources} == {"train", "test"}


def test_pictures_in_formats_that_are_not_read_are_missed(tmp_path: Path) -> None:
    folder(tmp_path, 1)
    (tmp_path / "cat" / "a.jp2").write_bytes(content("JPEG2000"))
    (tmp_path / "cat" / "b").write_bytes(b"8BPS\0\x01")
    kinds = {item.path: item.kind for item in scan(tmp_path).skipped}
    assert kinds == {"cat/a.jp2": "unusable", "cat/b": "unusable"}


def test_what_lies_behind_a_link_is_counted_picture_by_picture(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures", 2)
    more = folder(tmp_path / "more", 3)
    (more / "cat" / "notes.txt").write_text("")
    (root / "cat" / "more").symlink_to(more / "cat")
    (root / "cat" / "inside").symlink_to(root / "dog")
    (root / "cat" / "gone").symlink_to(tmp_path / "unplugged")
    (root / "cat" / "list").symlink_to(more / "cat" / "notes.txt")
    (root / "cat" / "nothing").symlink_to("nowhere")
    found = scan(root)
    told = {item.path: item.kind for item in found.skipped}
    assert told == {
        **{f"cat/more/{number}.png": "unusable" for number in range(3)},
        "cat/gone": "unusable",
        "cat/list": "not-a-picture",
        "cat/nothing": "unusable",
    }
    inside = [source.relative for source in found.sources if "inside" in source.relative]
    assert inside == ["cat/inside/0.png", "cat/inside/1.png"]
    read, left = pictures_below(root / "cat", follow_links=True)
    assert len(read) == 2 + 2 + 3
    assert {item.path for item in left} == {"gone", "list", "nothing", "more/notes.txt"}


# ---- the command line


def edgekit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def run(data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return edgekit("run", "--data", data, "--weights", "none", "--alpha", "0.35", "--input-size",
                   "32", "--until", "data", "--out", out, *more)  # fmt: skip


def folder(
    root: Path,
    count: int,
    draw: Callable[[int], bytes] = lambda number: content("PNG", drawing(number)),
    suffix: str = ".png",
) -> Path:
    """Writes so many pictures of two classes."""
    for label, start in (("cat", 0), ("dog", 1000)):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / label / f"{number}{suffix}").write_bytes(draw(start + number))
    return root


def listed(out: Path) -> list[dict[str, str]]:
    with (out / "left_out.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def kinds() -> list[str]:
    """Returns the formats that can be read here."""
    return [kind for kind in FORMATS if kind != "HEIF" or find_spec("pillow_heif")]


def test_a_run_reads_every_format(tmp_path: Path) -> None:
    every = kinds()
    data = folder(
        tmp_path / "pictures", 20, lambda n: content(every[n % len(every)], drawing(n)), ".picture"
    )
    done = run(data, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "2 classes, 28 train, 6 validation, 6 test" in done.stderr
    assert "left out" not in done.stderr
    assert not (tmp_path / "out" / "left_out.csv").exists()


def test_a_quarter_of_the_pictures_does_not_vanish(tmp_path: Path) -> None:
    """Files that are pictures in a format that is not read count; others do not."""
    data = folder(tmp_path / "pictures", 20)
    for number in range(12):
        (data / "cat" / f"{number}.jp2").write_bytes(content("JPEG2000", drawing(number)))
    for name in ("list.csv", "cat/notes.txt", "cat/.DS_Store", "cat/Thumbs.db", "dog/1.json"):
        (data / name).write_text("no picture")
    out = tmp_path / "out"
    looked = edgekit("init", data, "--out", tmp_path / "recipe.toml")
    assert looked.returncode == 0, looked.stderr
    said = " ".join(looked.stdout.split())
    assert "12 (JPEG 2000 file, which edgekit does not read: convert it to JPEG" in said
    assert "edgekit run will refuse this: 12 of 52 pictures (23.1%) cannot be used" in said
    done = run(data, out)
    assert done.returncode == 3
    assert "12 of 52 pictures (23.1%) cannot be used" in done.stderr
    assert "and 2 more" in done.stderr
    assert str(out / "left_out.csv") in done.stderr.replace("\n", "")
    rows = listed(out)
    assert sorted(row["path"] for row in rows if row["kind"] == "unusable") == sorted(
        f"cat/{number}.jp2" for number in range(12)
    )
    assert [row["path"] for row in rows if row["kind"] != "unusable"] == [
        "cat/notes.txt", "dog/1.json"
    ]  # fmt: skip
    # The twin: who asks for it gets it, and the same list.
    asked = run(data, out, "--max-bad-fraction", "0.3")
    assert asked.returncode == 0, asked.stderr
    assert str(out / "left_out.csv") in asked.stderr.replace("\n", "")
    assert listed(out) == rows
    (out / "left_out.csv").unlink()
    again = run(data, out, "--max-bad-fraction", "0.3")
    assert "data: unchanged, reused" in again.stderr
    assert listed(out) == rows


def test_without_the_extra_package_heic_is_missed_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heic = content("HEIF")
    data = folder(tmp_path, 2)
    (data / "cat" / "phone.HEIC").write_bytes(heic)
    assert scan(data).skipped == ()
    decode(heic)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (item,) = scan(data).skipped
    assert (item.path, item.kind) == ("cat/phone.HEIC", "unusable")
    assert "edgekit[heic]" in item.reason
    with pytest.raises(UnreadableError, match=r"edgekit\[heic\]"):
        decode(heic)


@pytest.mark.slow
def test_what_is_read_in_part_is_noted(tmp_path: Path) -> None:
    """Animations and pages, and sensor data of 12 bits, in `run` and in `init`."""

    def draw(number: int) -> bytes:
        if number in (2, 3):
            return content("GIF", drawing(number), save_all=True, append_images=[drawing(99)])
        if number % 1000 in (5, 6, 7):
            return content("PNG", grey16(4000 - number))
        return content("PNG", drawing(number))

    data = folder(tmp_path / "pictures", 20, draw)
    (data / "dog" / "deep.png").write_bytes(content("PNG", grey16(65535)))
    done = run(data, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    looked = edgekit("init", data, "--out", tmp_path / "recipe.toml")
    for said in (done.stderr, looked.stdout):
        told = " ".join(said.split())
        assert "2 files hold several pictures (animations, pages), of which the first" in told
        assert (
            "6 of 7 grey pictures of 16 bits hold no value above 4095 of 65535 (12 bits), so they "
            "are nearly black, such as cat/5.png; if 4095 means white there, multiply the values "
            "by 16 first"
        ) in told
    as_json = edgekit("init", data, "--out", tmp_path / "other.toml", "--json")
    assert len(json.loads(as_json.stdout)["notes"]) == 2
    # The twin: the same pictures in the whole range.
    whole = folder(tmp_path / "whole", 20, lambda n: content("PNG", grey16(65535 - n)))
    assert "16 bits" not in run(whole, tmp_path / "out-whole").stderr


def test_a_picture_over_the_limit_is_too_large_and_not_damaged(tmp_path: Path) -> None:
    data = folder(tmp_path / "pictures", 20)
    (data / "cat" / "phone.jpg").write_bytes(content("JPEG", drawing(7, 1000)))
    done = run(data, tmp_path / "out", "--max-megapixels", "0.9")
    assert done.returncode == 3
    said = " ".join(done.stderr.split())
    assert "too large: 1000 x 1000 px, 1.0 megapixels, at most 0.9; set data.max_mega" in said
    assert "damaged" not in said
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"[data]\npath = '{data}'\nmax_megapixels = 1\n")
    assert run(data, tmp_path / "out", "--max-megapixels", "1").returncode == 0
    asked = edgekit("run", recipe, "--weights", "none", "--until", "data", "--out", tmp_path / "o")
    assert asked.returncode == 0, asked.stderr
    assert edgekit("run", recipe, "--max-megapixels", "0").returncode == 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.tflite"
    mean_tflite(path)
    return path


def colours(root: Path) -> Path:
    """Writes pictures of one colour each in a class of that name, as the model answers them."""
    for channel, name in zip(CHANNEL, CLASSES, strict=True):
        (root / name).mkdir(parents=True)
        for number, kind in enumerate(kinds()):
            values = np.full((20, 20, 3), 20 + number, np.uint8)
            values[..., channel] = 200 + number
            picture = Image.fromarray(values)
            (root / name / f"{number}.bin").write_bytes(content(kind, picture))
    return root


def test_validate_and_predict_read_every_format(tmp_path: Path, model: Path) -> None:
    data, count = colours(tmp_path / "data"), 3 * len(kinds())
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{name}\n" for name in reversed(CLASSES)))
    judged = edgekit("validate", model, "--data", data, "--labels", labels, "--min-accuracy", "90",
                     "--json")  # fmt: skip
    report = json.loads(judged.stdout)
    assert (report["accuracy"]["images"], report["accuracy"]["top1"]) == (count, 1.0)
    answered = edgekit("predict", model, data, "--labels", labels)
    assert answered.returncode == 0, answered.stderr
    lines = [line.split("\t") for line in answered.stdout.splitlines()]
    assert len(lines) == count
    assert all(Path(path).parent.name == name for path, name, _ in lines)


@pytest.mark.slow
def test_validate_and_predict_say_what_they_miss(tmp_path: Path, model: Path) -> None:
    data, count = colours(tmp_path / "data"), 3 * len(kinds())
    (data / CLASSES[0] / "large.tif").write_bytes(content("TIFF", drawing(side=300)))
    (tmp_path / "labels.txt").write_text("".join(f"{name}\n" for name in reversed(CLASSES)))
    more = ("--labels", tmp_path / "labels.txt", "--max-megapixels", "0.05")
    judged = edgekit("validate", model, "--data", data, *more)
    assert judged.returncode == 3
    assert f"1 of {count + 1} pictures" in judged.stderr
    assert "too large: 300 x 300 px" in judged.stderr
    judged = edgekit("validate", model, "--data", data, *more, "--max-bad-fraction", "0.1")
    assert judged.returncode in (0, 4, 5), judged.stderr
    answered = edgekit("predict", model, data, *more)
    assert answered.returncode == 3
    assert "too large: 300 x 300 px" in answered.stderr
    assert len(answered.stdout.splitlines()) == count
