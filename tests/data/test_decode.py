"""Folders of real pictures, decoded by worker processes into memory-mapped arrays."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.data.decode import Folder, decode, read_folder
from edgekit.data.names import SPLITS
from edgekit.data.picture import fit
from edgekit.data.scan import scan
from edgekit.errors import DataError
from edgekit.recipe import DataSpec
from edgekit.records import DatasetRecord, Preprocess

CONTRACT = Preprocess(height_px=20, width_px=28)
CLASSES = {"cat": 40, "dog": 30}
BAD = {
    "cat/00-empty.jpg": b"",
    "cat/005-text.jpg": b"not a picture",
    "dog/00-tiny.png": b"",
}


ENOUGH = 3.01 / 73  # 3 of 73 picture files; the text file counts on neither side


def texture(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return Image.fromarray(cells).resize((48, 32), Image.Resampling.BICUBIC)


def write_pictures(root: Path, classes: dict[str, int], start: int = 0) -> Path:
    """Writes PNG pictures; the content of each follows from its number."""
    for label, (name, size) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(size):
            texture(start + 1000 * label + index).save(root / name / f"{index:03d}.png")
    return root


def write_bad(root: Path) -> None:
    for name, content in BAD.items():
        (root / name).write_bytes(content)
    Image.new("RGB", (3, 3)).save(root / "dog" / "00-tiny.png")


def decoded(
    root: Path,
    folder: Path,
    *,
    max_bad_fraction: float = 0.0,
    minimum: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetRecord:
    folder.mkdir(parents=True, exist_ok=True)
    return decode(
        scan(root),
        CONTRACT,
        DataSpec(
            path=root,
            validation_fraction=0.2,
            test_fraction=0.2,
            min_images_per_class=minimum,
            max_bad_fraction=max_bad_fraction,
        ),
        folder,
        seed=seed,
        progress=progress,
    )


@dataclass(frozen=True)
class Finished:
    """A decoded data set."""

    root: Path
    folder: Path
    record: DatasetRecord
    progress: list[tuple[int, int]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Decodes 70 good and 3 bad pictures once; more than one chunk."""
    base = tmp_path_factory.mktemp("decoded")
    root = write_pictures(base / "pictures", CLASSES)
    write_bad(root)
    (root / "cat" / "notes.txt").write_text("no picture")
    told: list[tuple[int, int]] = []
    record = decoded(
        root,
        base / "out",
        max_bad_fraction=ENOUGH,
        progress=lambda done, total: told.append((done, total)),
    )
    return Finished(root, base / "out", record, told)


def test_what_is_written(finished: Finished) -> None:
    record, folder = finished.record, finished.folder
    assert record.class_names == ("cat", "dog")
    assert record.preprocess == CONTRACT
    assert record.digest == scan(finished.root).digest
    assert {s: record.splits[s].per_class for s in SPLITS} == {
        "train": (24, 18),
        "validation": (8, 6),
        "test": (8, 6),
    }
    assert {path.name for path in folder.iterdir()} == {
        "left_out.csv",
        *(f"{s}.{kind}" for s in SPLITS for kind in ("images.npy", "labels.npy", "files.json")),
    }
    for split in SPLITS:
        images = np.load(folder / f"{split}.images.npy", mmap_mode="r")
        labels = np.load(folder / f"{split}.labels.npy")
        size = record.splits[split].count
        assert (images.shape, images.dtype) == ((size, 20, 28, 3), np.dtype(np.uint8))
        assert isinstance(images, np.memmap)
        assert (labels.shape, labels.dtype) == ((size,), np.dtype(np.int32))
        assert tuple(np.bincount(labels)) == record.splits[split].per_class


def test_every_row_is_its_file(finished: Finished) -> None:
    seen: list[str] = []
    for split in SPLITS:
        images = np.load(finished.folder / f"{split}.images.npy")
        labels = np.load(finished.folder / f"{split}.labels.npy")
        names = json.loads((finished.folder / f"{split}.files.json").read_text())
        assert len(names) == len(images)
        for name, image, label in zip(names, images, labels, strict=True):
            with Image.open(finished.root / name) as picture:
                assert np.array_equal(image, fit(picture, CONTRACT)), name
            assert finished.record.class_names[label] == Path(name).parent.name
        # The twin: one row further, no row is its file.
        shifted = np.roll(images, 1, axis=0)
        assert not any((a == b).all() for a, b in zip(images, shifted, strict=True))
        assert names == sorted(names)
        seen += names
    assert sorted(seen) == sorted(
        f"{name}/{i:03d}.png" for name, size in CLASSES.items() for i in range(size)
    )


def test_bad_files_are_listed_with_reasons(finished: Finished) -> None:
    reasons = {item.path: item.reason for item in finished.record.skipped}
    assert reasons.keys() == {*BAD, "cat/notes.txt"}
    assert reasons["cat/00-empty.jpg"] == "empty file"
    assert "starts with 'not a pi'" in reasons["cat/005-text.jpg"]
    assert reasons["dog/00-tiny.png"] == "3 x 3 px, smaller than 16 px"


def test_progress_ends_at_the_number_of_files(finished: Finished) -> None:
    assert finished.progress == [(64, 72), (72, 72)]  # 73 less the empty one, 64 to a chunk


def test_the_bytes_do_not_depend_on_the_run(finished: Finished, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished.root, moved)
    record = decoded(moved, tmp_path / "out", max_bad_fraction=ENOUGH)
    assert record.model_copy(update={"images_per_second": 0.0}) == finished.record.model_copy(
        update={"images_per_second": 0.0}
    )
    assert digests(tmp_path / "out") == digests(finished.folder)
    # The twin: another seed gives other files.
    decoded(moved, tmp_path / "other", max_bad_fraction=ENOUGH, seed=1)
    assert digests(tmp_path / "other") != digests(finished.folder)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_more_bad_files_than_allowed(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        decoded(finished.root, tmp_path, max_bad_fraction=2.99 / 73)
    assert caught.value.exit_code == 3
    assert caught.value.received.startswith("3 of 73 pictures (4.1%) cannot be used")
    for name in BAD:
        assert f"{name}: " in caught.value.received
    assert "max_bad_fraction" in caught.value.expected
    assert "notes.txt" not in caught.value.received


def test_files_beside_the_pictures_do_not_hide_damage(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", {"cat": 10, "dog": 10})
    (root / "cat" / "bad.png").write_bytes(b"no")
    for index in range(200):
        (root / "cat" / f"{index}.xml").write_text("<annotation/>")
    with pytest.raises(DataError, match="1 of 21 pictures"):
        decoded(root, tmp_path / "out", max_bad_fraction=0.01)


def test_a_long_list_of_bad_files_is_shortened(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", {"cat": 1, "dog": 1})
    for index in range(13):
        (root / "dog" / f"x{index:02d}.jpg").write_bytes(b"no")
    with pytest.raises(DataError) as caught:
        decoded(root, tmp_path / "out")
    assert "x09.jpg" in caught.value.received
    assert "x10.jpg" not in caught.value.received
    assert "and 3 more" in caught.value.received


def test_a_file_that_changes_after_the_scan(tmp_path: Path) -> None:
    scanned = scan(write_pictures(tmp_path / "pictures", {"cat": 1, "dog": 1}))
    texture(77).save(tmp_path / "pictures" / "dog" / "000.png")
    with pytest.raises(DataError, match=r"dog/000\.png changed while"):
        read_folder(scanned, CONTRACT, tmp_path, lambda done, total: None)


@pytest.mark.parametrize(("dogs", "noted"), [(24, False), (30, True)])
def test_imbalance_is_noted(tmp_path: Path, dogs: int, noted: bool) -> None:
    root = write_pictures(tmp_path / "pictures", {"cat": 14, "dog": dogs})
    notes = decoded(root, tmp_path / "out").notes
    # Of 14, 24 and 30 pictures 8, 14 and 18 train.
    said = "class imbalance in train: dog has 18 pictures, cat has 8 (2.2 : 1)"
    assert [note.startswith(said) for note in notes] == ([True] if noted else [])


def test_near_identical_pictures_are_noted(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", {"cat": 20, "dog": 20})
    assert decoded(root, tmp_path / "before").notes == ()
    for quality in (95, 60):
        texture(5).save(root / "cat" / f"again-{quality}.jpg", quality=quality, subsampling=0)
    texture(1007).save(root / "dog" / "again.jpg", quality=90, subsampling=0)
    beginning = "near-identical pictures were kept on one side of the split: 2 groups, the largest "
    assert decoded(root, tmp_path / "out").notes == (f"{beginning}of 3 pictures",)
    texture(1007).save(root / "cat" / "wrong.jpg", quality=70, subsampling=0)
    record = decoded(root, tmp_path / "mixed")
    assert record.notes[0] == f"{beginning}of 3 pictures"
    assert record.notes[1].startswith("3 pictures are near-identical to one of another class, ")
    assert "cat/wrong.jpg" in record.notes[1]
    # What the note says is so.
    sides = {
        name: split
        for split in SPLITS
        for name in json.loads((tmp_path / "mixed" / f"{split}.files.json").read_text())
    }
    assert sides["cat/005.png"] == sides["cat/again-95.jpg"] == sides["cat/again-60.jpg"]
    assert sides["dog/007.png"] == sides["dog/again.jpg"] == sides["cat/wrong.jpg"]


def test_stray_pictures_are_listed_and_are_no_damage(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", {"cat": 8, "dog": 8})
    texture(99).save(root / "loose.png")
    record = decoded(root, tmp_path / "out", max_bad_fraction=0.0)
    assert [(item.path, item.kind) for item in record.skipped] == [("loose.png", "ignored")]


def read(root: Path, folder: Path, **limits: float) -> Folder:
    return read_folder(scan(root), CONTRACT, folder, lambda done, total: None, **limits)


def test_read_folder_refuses_many_damaged_files(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 of 73 pictures") as caught:
        read(finished.root, tmp_path)
    assert "at most 1.0%" in caught.value.expected
    with pytest.raises(DataError, match="3 of 73 pictures"):
        read(finished.root, tmp_path, max_bad_fraction=2.99 / 73)
    read(finished.root, tmp_path, max_bad_fraction=ENOUGH)


def test_read_folder_leaves_out_the_same_picture_under_two_classes(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", {"cat": 6, "dog": 6})
    assert read(root, tmp_path).skipped == ()
    for index in (3, 4):
        with Image.open(root / "cat" / f"00{index}.png") as picture:
            picture.save(root / "dog" / f"copy {index}.bmp")
    with pytest.raises(DataError, match=r"4 of 14 .*: cat/003\.png = dog/copy 3\.bmp"):
        read(root, tmp_path)
    (root / "dog" / "copy 4.bmp").unlink()  # a single one passes
    path, labels, sources, skipped, _ = read(root, tmp_path)
    assert [item.path for item in skipped] == ["cat/003.png", "dog/copy 3.bmp"]
    assert [s.relative for s in sources if "3" in s.relative] == ["dog/003.png"]
    assert labels.tolist() == [0] * 5 + [1] * 6
    for source, image in zip(sources, np.load(path), strict=True):
        with Image.open(source.path) as picture:
            assert np.array_equal(image, fit(picture, CONTRACT)), source.relative


def test_read_folder_without_a_readable_picture(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", {"cat": 1, "dog": 1})
    for path in root.rglob("*.png"):
        path.write_bytes(b"no")
    with pytest.raises(DataError, match="none of the 2 picture files is readable; cat/000") as told:
        read(root, tmp_path, max_bad_fraction=1.0)
    assert told.value.exit_code == 3


def test_read_folder_keeps_rows_and_labels_together(finished: Finished, tmp_path: Path) -> None:
    scanned = scan(finished.root)
    path, labels, sources, skipped, notes = read(finished.root, tmp_path, max_bad_fraction=ENOUGH)
    images = np.load(path)
    good = [s for s in scanned.sources if s.relative not in BAD]
    assert len(good) == len(images) == len(labels) == 70
    assert path.parent == tmp_path
    assert (images.dtype, labels.dtype) == (np.dtype(np.uint8), np.dtype(np.int32))
    # The bad files stand in front of good ones of both classes, so a shift would show.
    assert labels.tolist() == [s.label for s in good]
    assert list(sources) == good
    for source, image in zip(good, images, strict=True):
        with Image.open(source.path) as picture:
            assert np.array_equal(image, fit(picture, CONTRACT)), source.relative
    assert notes == ()
    assert [item.path for item in skipped] == [
        "cat/notes.txt",
        "cat/00-empty.jpg",
        "cat/005-text.jpg",
        "dog/00-tiny.png",
    ]
