"""What is wrong with single pictures is said, listed in a table, and acted on where that is safe.

Through the command line: pictures on disk, `edgekit run --until data`, and what it prints, writes
and leaves in the splits.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.cli import execute
from edgekit.data.names import SPLITS

CLASSES = ("cat", "dog")


def texture(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return Image.fromarray(cells).resize((192, 128), Image.Resampling.BICUBIC)


def draw(folder: Path, start: int, count: int = 6) -> None:
    """Writes pictures of both classes; the content of each follows from its number."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            texture(start + 1000 * label + index).save(folder / name / f"{index:02d}.png")


@pytest.fixture
def undivided(tmp_path: Path) -> Path:
    draw(tmp_path / "pictures", 0, 20)
    return tmp_path / "pictures"


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    for number, split in enumerate(SPLITS):
        draw(tmp_path / "pictures" / split, 100 * number, 16)
    return tmp_path / "pictures"


class Run:
    """One run of the data stage."""

    def __init__(self, pictures: Path, capsys: pytest.CaptureFixture[str], *lines: str) -> None:
        recipe = pictures.parent / "recipe.toml"
        about = "\n".join(('path = "pictures"', "min_images_per_class = 8", *lines))
        model = 'weights = "none"\nalpha = 0.35\ninput_size_px = 64'
        recipe.write_text(f"[data]\n{about}\n[model]\n{model}\n")
        self.out = pictures.parent / "out"
        self.code = execute(["run", str(recipe), "--until", "data", "--out", str(self.out)])
        printed = capsys.readouterr()
        self.said = " ".join((printed.out + printed.err).split())

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.out / name).open(newline="") as lines:
            return list(csv.DictReader(lines))

    def files(self, split: str) -> list[str]:
        stored = self.out.glob(f".store/data/*/{split}.files.json")
        newest = max(stored, key=lambda path: path.stat().st_mtime_ns)
        found: list[str] = json.loads(newest.read_text())
        return found

    @property
    def used(self) -> set[str]:
        return {name for split in SPLITS for name in self.files(split)}


def again(picture: Path, copy: Path) -> str:
    """Saves a picture again: other bytes, the same pixels."""
    with Image.open(picture) as shown:
        shown.save(copy)
    return copy.relative_to(picture.parents[1]).as_posix()


def test_the_same_pixels_under_two_classes_are_left_out_and_listed(
    undivided: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = again(undivided / "cat" / "03.png", undivided / "dog" / "copy.bmp")
    run = Run(undivided, capsys)
    assert run.code == 0
    assert (
        "left out of all splits: 2 pictures that stand under two classes with the same pixels: "
        "cat/03.png = dog/copy.bmp; left_out.csv lists them"
    ) in run.said
    assert run.table("left_out.csv") == [
        {"path": "cat/03.png", "kind": "two-classes", "action": "",
         "reason": "the same pixels as dog/copy.bmp, under another class"},
        {"path": copy, "kind": "two-classes", "action": "",
         "reason": "the same pixels as cat/03.png, under another class"},
    ]  # fmt: skip
    assert len(run.used) == 39
    assert not {"cat/03.png", copy} & run.used
    # Twin: with the copy gone nothing is left out, and the table of before does not stay.
    (undivided / copy).unlink()
    after = Run(undivided, capsys)
    assert "left out" not in after.said
    assert len(after.used | run.used) == 40
    assert not (after.out / "left_out.csv").exists()


def test_more_of_them_than_the_recipe_allows_are_refused_and_listed(
    undivided: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(7):
        again(undivided / "cat" / f"{index:02d}.png", undivided / "dog" / f"copy {index}.bmp")
    run = Run(undivided, capsys)
    assert run.code == 3
    assert "14 of 47 pictures stand under two classes with the same pixels: cat/00.png" in run.said
    assert "cat/04.png = dog/copy 4.bmp and 2 more" in run.said
    assert "dog/copy 5.bmp" not in run.said
    assert "at most 1.0% (data.max_conflicting_fraction)" in run.said
    assert len(run.table("left_out.csv")) == 14
    # Twin: the very share passes.
    allowed = Run(undivided, capsys, f"max_conflicting_fraction = {14 / 47}")
    assert allowed.code == 0
    assert len(allowed.used) == 47 - 14


def test_damaged_files_are_listed_where_they_refuse_the_data(
    undivided: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(12):
        (undivided / "cat" / f"bad {index:02d}.jpg").write_bytes(b"no picture")
    run = Run(undivided, capsys)
    assert run.code == 3
    assert "bad 09.jpg" in run.said
    assert "and 2 more" in run.said
    assert [row["path"] for row in run.table("left_out.csv")] == [
        f"cat/bad {index:02d}.jpg" for index in range(12)
    ]


def test_the_same_pixels_in_two_splits_stay_in_the_one_held_out(
    divided: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        with Image.open(divided / other / "dog" / f"{len(split):02d}.png") as picture:
            picture.save(divided / split / "dog" / f"of {other}.bmp")
    again(divided / "train" / "cat" / "05.png", divided / "train" / "cat" / "twice.bmp")
    run = Run(divided, capsys)
    assert run.code == 0
    assert (
        "left out of train: 2 pictures whose pixels stand in validation or test, too: "
        "test/dog/05.png = train/dog/of test.bmp; validation/dog/05.png = "
        "train/dog/of validation.bmp; left_out.csv lists them"
    ) in run.said
    assert (
        "left out of validation: 1 pictures whose pixels stand in test, too: "
        "test/dog/10.png = validation/dog/of test.bmp;"
    ) in run.said
    assert [len(run.files(split)) for split in SPLITS] == [33, 32, 32]
    assert "train/cat/twice.bmp" in run.files("train")  # of one split
    assert [row["reason"] for row in run.table("left_out.csv")] == [
        "the same pixels as test/dog/05.png",
        "the same pixels as validation/dog/05.png",
        "the same pixels as test/dog/10.png",
    ]


def test_a_train_folder_that_is_all_in_test_is_refused_for_that(
    divided: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (divided / "train" / "dog").iterdir():
        (divided / "test" / "dog" / f"copy {path.name}").write_bytes(path.read_bytes())
    run = Run(divided, capsys)
    assert run.code == 3
    assert (
        "class 'dog' has 0 readable pictures in train, beside 16 left out as copies of others"
    ) in run.said
    assert len(run.table("left_out.csv")) == 16


def test_saved_again_and_smaller_across_given_splits_is_said_and_listed(
    divided: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(7):
        with Image.open(divided / "test" / "dog" / f"{index:02d}.png") as picture:
            smaller = picture.resize((96, 64))
            smaller.save(divided / "train" / "dog" / f"copy {index}.jpg", quality=80)
    run = Run(divided, capsys)
    assert (
        "7 pictures of test are near-identical to pictures of train, which flatters the accuracy, "
        "such as test/dog/00.png and train/dog/copy 0.jpg; near_identical.csv lists them"
    ) in run.said
    rows = run.table("near_identical.csv")
    assert [(row["path"], row["like_path"], row["like_split"]) for row in rows] == [
        (f"test/dog/{index:02d}.png", f"train/dog/copy {index}.jpg", "train") for index in range(7)
    ]
    assert len(run.files("train")) == 39  # said, not left out


def test_near_identical_pictures_of_two_classes_are_said_and_listed(
    undivided: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texture(5).save(undivided / "dog" / "=wrong.jpg", quality=80)
    run = Run(undivided, capsys)
    assert (
        "2 pictures are near-identical to one of another class, such as cat/05.png and "
        "dog/=wrong.jpg: one label of each pair may be wrong"
    ) in run.said
    rows = run.table("near_identical.csv")
    assert [(row["path"], row["label"], row["like_label"]) for row in rows] == [
        ("cat/05.png", "cat", "dog"),
        ("dog/=wrong.jpg", "dog", "cat"),
    ]
    assert {"cat/05.png", "dog/=wrong.jpg"} <= run.used


def test_pictures_that_look_unlike_the_others_are_counted_and_listed(
    undivided: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Run(undivided, capsys)
    assert not (plain.out / "unusual_pictures.csv").exists()
    assert "pictures are" not in plain.said
    odd = {
        "dark": texture(70).point(lambda value: value // 12),
        "bright": texture(71).point(lambda value: 255 - (255 - value) // 12),
        "flat": Image.new("RGB", (192, 128), (90, 100, 110)),
        "blurred": Image.linear_gradient("L").convert("RGB"),
        "long": texture(73).resize((500, 120)),
        "square enough": texture(74).resize((480, 120)),
        "tiny": texture(75).resize((31, 40)),
        "small enough": texture(76).resize((32, 32)),
    }
    for name, picture in odd.items():
        picture.save(undivided / "dog" / f"{name}.png")
    for index in range(3):
        texture(80 + index).resize((20, 20)).save(undivided / "cat" / f"tiny {index}.png")
    run = Run(undivided, capsys)
    found = {row["path"]: (row["finding"], row["measured"])
             for row in run.table("unusual_pictures.csv")}  # fmt: skip
    assert {path: finding for path, (finding, _) in found.items()} == {
        "dog/dark.png": "very dark",
        "dog/bright.png": "very bright",
        "dog/flat.png": "one colour",
        "dog/blurred.png": "blurred",
        "dog/long.png": "odd-shaped",
        "dog/tiny.png": "tiny",
        **{f"cat/tiny {index}.png": "tiny" for index in range(3)},
    }
    assert found["dog/long.png"][1] == "4.2 : 1"
    assert found["dog/tiny.png"][1] == "31 x 40 px"
    assert (
        "4 pictures are tiny (short side below 0.5 of the input's): cat/tiny 0.png, "
        "cat/tiny 1.png, cat/tiny 2.png and 1 more; unusual_pictures.csv lists them"
    ) in run.said
    assert "1 picture is blurred (sharpness below 0.05 of the median): dog/blurred.png" in run.said
    assert {f"dog/{name}.png" for name in odd} <= run.used  # said, not left out
