"""Pictures of no class: which are used, which decide, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from other_pictures import draw_other
from PIL import Image

from edgekit.data.decode import decode
from edgekit.data.other import FILES, IMAGES, decode_other
from edgekit.data.scan import scan, scan_other
from edgekit.errors import DataError
from edgekit.recipe import DataSpec
from edgekit.records import OtherRecord, Preprocess

CONTRACT = Preprocess(height_px=32, width_px=32)


def ignore(_done: int, _total: int) -> None:
    """Shows no progress."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for seed, name in enumerate(("ham", "jam")):
        draw_other(folder / "pictures" / name, 20, seed=seed + 1)
    spec = DataSpec(path=folder / "pictures", min_images_per_class=1)
    (folder / "decoded").mkdir()
    decode(scan(spec.path), CONTRACT, spec, folder / "decoded", seed=1, progress=ignore)
    return folder


def read(dataset: Path, other: Path, out: Path, **asked: float) -> OtherRecord:
    out.mkdir()
    spec = DataSpec(path=dataset, other=other, **asked)
    return decode_other(
        scan_other(other), dataset / "decoded", CONTRACT, spec, out, seed=1, progress=ignore
    )


def test_half_decides_whatever_the_folders_are_called(dataset: Path, tmp_path: Path) -> None:
    record = read(dataset, draw_other(tmp_path / "other", 60), tmp_path / "out")
    assert (record.deciding, record.held_out) == (30, 30)
    names = json.loads((tmp_path / "out" / FILES).read_text())
    images = np.load(tmp_path / "out" / IMAGES)
    assert images.shape == (60, 32, 32, 3)
    assert len({*names}) == 60
    seen = np.asarray(Image.open(tmp_path / "other" / names[7]).resize((32, 32)))
    assert np.abs(images[7].astype(int) - seen).mean() < 8


def test_near_identical_ones_go_to_one_half(dataset: Path, tmp_path: Path) -> None:
    other = draw_other(tmp_path / "other", 40)
    for path in sorted(other.rglob("*.jpg")):
        Image.open(path).save(path.with_suffix(".png"))
        Image.open(path).save(path.with_stem(f"{path.stem}-again"), quality=70)
    record = read(dataset, other, tmp_path / "out")
    names = json.loads((tmp_path / "out" / FILES).read_text())
    halves = [
        {Path(name).name.partition(".")[0].removesuffix("-again") for name in half}
        for half in (names[: record.deciding], names[record.deciding :])
    ]
    assert len(names) == 120
    assert not halves[0] & halves[1]


def test_a_picture_of_a_class_is_left_out_and_listed(dataset: Path, tmp_path: Path) -> None:
    other = draw_other(tmp_path / "other", 30)
    shutil.copy(dataset / "pictures" / "ham" / "part-0" / "003.jpg", other / "ham.jpg")
    record = read(dataset, other, tmp_path / "out")
    assert record.deciding + record.held_out == 30
    (left_out,) = record.skipped
    assert (left_out.path, left_out.kind) == ("ham.jpg", "copy")
    assert left_out.reason == "the same pixels as ham/part-0/003.jpg of the data set"
    assert "ham.jpg" in (tmp_path / "out" / "other_left_out.csv").read_text()


def test_unusable_ones_count(dataset: Path, tmp_path: Path) -> None:
    other = draw_other(tmp_path / "other", 30)
    (other / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"1 of 31 pictures \(3\.2%\) cannot be used"):
        read(dataset, other, tmp_path / "out")
    assert "bad.jpg" in (tmp_path / "out" / "other_left_out.csv").read_text()
    assert read(dataset, other, tmp_path / "more", max_bad_fraction=0.1).deciding == 15


def test_too_few_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"18 pictures in .* 0 have the same pixels") as caught:
        read(dataset, draw_other(tmp_path / "other", 18), tmp_path / "out")
    assert "at least 10 of each" in caught.value.expected


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), "no picture in"),
    ],
)
def test_no_folder_of_pictures_is_a_sentence(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    make(tmp_path / "other")
    with pytest.raises(DataError, match=f"data.other: .*{said}|data.other: {said}"):
        scan_other(tmp_path / "other")
