"""Data folders as people unpack them: the same classes, splits and counts, however they are laid.

The last tests go through the command line; the others through `scan`, which it calls.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from data_folders import write
from PIL import Image

from edgekit.data.files import Form
from edgekit.data.scan import Scan, scan
from edgekit.errors import DataError

CLASSES = ("cat", "dog")


def lay(root: Path, pattern: str, *splits: str, count: int = 2) -> Path:
    """Writes pictures of both classes for folders of splits; `{}` stands for split and class."""
    return write(
        root,
        *(f"{pattern.format(s, c)}/{i}.jpg" for s in splits for c in CLASSES for i in range(count)),
    )


def counts(found: Scan) -> dict[str | None, int]:
    """Returns the pictures of each split, and makes sure that both classes have as many."""
    assert found.class_names == CLASSES
    per: dict[tuple[str | None, int], int] = {}
    for source in found.sources:
        per[source.split, source.label] = per.get((source.split, source.label), 0) + 1
    splits = dict.fromkeys(split for split, _ in per)
    assert all(per[split, 0] == per[split, 1] for split in splits)
    return {split: per[split, 0] for split in splits}


TRAIN, VALIDATION, TEST = "train", "validation", "test"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("Training", "Testing"), (TRAIN, TEST)),
        (("Train", "Test", "Validation"), (TRAIN, TEST, VALIDATION)),
        (("train", "val"), (TRAIN, VALIDATION)),
        (("train", "valid", "test"), (TRAIN, VALIDATION, TEST)),
        (("TRAIN", "DEV", "TEST"), (TRAIN, VALIDATION, TEST)),
        (("seg_train", "seg_test"), (TRAIN, TEST)),
        (("my_train", "my_val", "my_test"), (TRAIN, VALIDATION, TEST)),
        (("train_set", "test_set"), (TRAIN, TEST)),
        (("training_data", "validation_data", "testing_data"), (TRAIN, VALIDATION, TEST)),
        (("images_train", "images_eval"), (TRAIN, TEST)),
        (("train", "eval", "test"), (TRAIN, VALIDATION, TEST)),
        (("train", "holdout"), (TRAIN, TEST)),
        (("chest_xray-train", "chest_xray-tst"), (TRAIN, TEST)),
    ],
)
def test_splits_by_the_names_that_people_give_them(
    tmp_path: Path, names: tuple[str, ...], splits: tuple[str, ...]
) -> None:
    found = scan(lay(tmp_path, "{}/{}", *names))
    assert counts(found) == dict.fromkeys(sorted(splits, key=[TRAIN, VALIDATION, TEST].index), 2)
    said = " ".join(found.words)
    for name, split in zip(names, splits, strict=True):
        assert name == split or f"{name} is {split}" in said
    for split in {VALIDATION, TEST} - set(splits):
        assert f"{split} is made from" in said


@pytest.mark.parametrize(
    "folders",
    [
        ("test", "valid", "specimen"),
        ("train", "bus", "car"),
        ("train", "plane"),
        ("validated", "rejected"),
        ("development", "research"),
    ],
)
def test_classes_may_be_called_as_splits_are(tmp_path: Path, folders: tuple[str, ...]) -> None:
    found = scan(write(tmp_path, *(f"{name}/{i}.jpg" for name in folders for i in range(2))))
    assert found.class_names == tuple(sorted(folders))
    assert {source.split for source in found.sources} == {None}


def test_a_class_called_train_may_hold_folders_of_its_own(tmp_path: Path) -> None:
    found = scan(write(tmp_path, "train/steam/1.jpg", "train/diesel/1.jpg", "bus/1.jpg"))
    assert found.class_names == ("bus", "train")
    assert {source.split for source in found.sources} == {None}


def test_splits_without_a_class_in_common_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/eel/1.jpg", "test/fox/1.jpg")
    with pytest.raises(DataError, match=r"test and train in .* hold no class folder in common"):
        scan(tmp_path)
    write(
        tmp_path, *(f"test/{name}/1.jpg" for name in CLASSES), "train/eel/1.jpg", "train/fox/1.jpg"
    )
    assert len(scan(tmp_path).class_names) == 4


@pytest.mark.parametrize("inner", [("indoor", "outdoor"), ("train", "old")])
def test_classes_that_hold_the_same_folders_stay_classes(
    tmp_path: Path, inner: tuple[str, ...]
) -> None:
    found = scan(write(tmp_path, *(f"{c}/{name}/1.jpg" for c in CLASSES for name in inner)))
    assert found.class_names == CLASSES
    assert "if these are the classes and the others are splits" in found.words[0]


@pytest.mark.parametrize(
    "pattern",
    [
        "{0}/{0}/{1}",  # as the zip files of Intel's scenes
        "{0}/images/{1}",
        "archive/{0}/{1}",
        "archive/data-v2/{0}/{1}",
        "{1}/{0}",
        "pictures/{1}/{0}",
        "{0}/{1}/{1}",
    ],
)
def test_folders_around_and_inside_are_seen_through(tmp_path: Path, pattern: str) -> None:
    found = scan(lay(tmp_path, pattern, "train", "val", "test"))
    assert counts(found) == {TRAIN: 2, VALIDATION: 2, TEST: 2}


def test_one_folder_around_classes_is_entered_and_said(tmp_path: Path) -> None:
    found = scan(lay(tmp_path, "my-data/{1}", "-"))
    assert counts(found) == {None: 2}
    assert found.words == ("everything lies in the folder my-data",)
    write(tmp_path, "loose.jpg")  # now the folder may be a class
    with pytest.raises(DataError, match="holds one class only: 'my-data'"):
        scan(tmp_path)


def test_a_train_folder_alone_is_divided(tmp_path: Path) -> None:
    found = scan(lay(tmp_path, "{}/{}", "train"))
    assert counts(found) == {TRAIN: 2}
    assert found.words == ("validation and test are made from train",)


def test_the_case_of_a_class_may_differ_between_splits(tmp_path: Path) -> None:
    found = scan(write(tmp_path, "train/Cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg",
                       "test/Dog/1.jpg"))  # fmt: skip
    assert found.class_names == ("Cat", "dog")
    write(tmp_path, "train/cat/1.jpg")
    with pytest.raises(DataError, match="differ only by case"):
        scan(tmp_path)


def test_a_folder_that_may_be_a_split_is_asked_about(tmp_path: Path) -> None:
    lay(tmp_path, "{}/{}", "train", "test", "extra")
    with pytest.raises(DataError, match=r"extra stands in .*is it a split, and which") as caught:
        scan(tmp_path)
    assert "data.ignore = ['extra'] or --ignore extra" in caught.value.remedy
    assert counts(scan(tmp_path, form=Form(ignore=("extra",)))) == {TRAIN: 2, TEST: 2}
    with pytest.raises(DataError, match="nothing of that name"):
        scan(tmp_path, form=Form(ignore=("extras",)))


def test_pictures_without_labels_beside_the_splits_are_left_out(tmp_path: Path) -> None:
    lay(tmp_path, "{}/{}", "seg_train", "seg_test")
    write(tmp_path, "seg_pred/1.jpg", "__MACOSX/seg_train/cat/1.jpg")
    found = scan(tmp_path)
    assert counts(found) == {TRAIN: 2, TEST: 2}
    assert [item.path for item in found.skipped] == ["seg_pred"]


def test_a_test_folder_without_labels_is_said(tmp_path: Path) -> None:
    lay(tmp_path, "{}/{}", "train", "val")
    write(tmp_path, "test/1.jpg")
    found = scan(tmp_path)
    assert counts(found) == {TRAIN: 2, VALIDATION: 2}
    assert "test holds no class folders, and is left out" in found.words
    assert "test is made from train" in found.words


def test_splits_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    write(tmp_path, "train/1.jpg", "test/1.jpg")
    with pytest.raises(
        DataError, match=r"test and train in .* hold pictures and no class"
    ) as caught:
        scan(tmp_path)
    assert "--table FILE" in caught.value.remedy


def test_links_are_followed_as_far_as_they_are_asked_to_be(tmp_path: Path) -> None:
    root = lay(tmp_path / "data", "{1}", "-")
    lay(tmp_path / "far", "{1}", "-", count=3)
    write(root, "more/9.jpg")
    (root / "more").rename(root / "cat" / "more")
    (root / "dog" / "again").symlink_to(root / "cat" / "more")
    (root / "dog" / "far").symlink_to(tmp_path / "far" / "dog")
    (root / "cat" / "round").symlink_to(root)
    found = scan(root)
    assert [s.relative for s in found.sources if s.label] == [
        "dog/0.jpg", "dog/1.jpg", "dog/again/9.jpg",
    ]  # fmt: skip
    why = {item.path: item.reason for item in found.skipped}
    for number in range(3):
        assert "--follow-links follows it" in why[f"dog/far/{number}.jpg"]
    assert "holds it" in why["cat/round"]
    followed = scan(root, form=Form(follow_links=True))
    assert len(followed.sources) == len(found.sources) + 3
    assert [item.path for item in followed.skipped] == ["cat/round"]


# ---- tables

PICTURES = [f"{name}_{i}" for name in CLASSES for i in range(4)]


def table(root: Path, name: str, rows: list[dict[str, object]], separator: str = ",") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    with (root / name).open("w", newline="") as stream:
        if name.endswith(".jsonl"):
            stream.writelines(f"{json.dumps(row)}\n" for row in rows)
            return
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def row_of(stem: str, **more: object) -> dict[str, object]:
    return {"image": f"{stem}.jpg", "kind": stem.partition("_")[0], **more}


def _kaggle(root: Path) -> None:
    write(root, *(f"train/{stem}.jpg" for stem in PICTURES), "test/unknown.jpg")
    rows = [{"id": stem, "breed": stem.partition("_")[0]} for stem in PICTURES]
    table(root, "labels.csv", rows)


def _one_hot(root: Path) -> None:
    write(root, *(f"images/{stem}.jpg" for stem in PICTURES))
    table(root, "truth.csv", [
        {"image": stem, "cat": float(stem.startswith("cat")), "dog": float(stem.startswith("dog"))}
        for stem in PICTURES
    ])  # fmt: skip


def _semicolons(root: Path) -> None:
    write(root, *(f"images/{stem}.jpg" for stem in PICTURES))
    table(root, "list.csv", [row_of(stem, number=i) for i, stem in enumerate(PICTURES)], ";")


def _tabs(root: Path) -> None:
    write(root, *(f"deep/images/{stem}.jpg" for stem in PICTURES))
    table(root, "deep/list.tsv", [row_of(stem) for stem in PICTURES], "\t")


def _no_heading(root: Path) -> None:
    write(root, *(f"images/{stem}.jpg" for stem in PICTURES))
    lines = [f"images/{stem}.jpg,{stem.partition('_')[0]}\n" for stem in PICTURES]
    (root / "list.csv").write_text("".join(lines))


def _json_lines(root: Path) -> None:
    write(root, *(f"images/{stem}.jpg" for stem in PICTURES))
    table(root, "metadata.jsonl", [
        {"file_name": f"images/{stem}.jpg", "label": stem.partition("_")[0]} for stem in PICTURES
    ])  # fmt: skip


@pytest.mark.parametrize("make", [_kaggle, _one_hot, _semicolons, _tabs, _no_heading, _json_lines])
def test_a_table_tells_the_classes(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    found = scan(tmp_path)
    assert counts(found) == {None: 4}
    assert all(CLASSES[s.label] in s.path.name for s in found.sources)


def test_a_table_tells_the_splits(tmp_path: Path) -> None:
    write(tmp_path, *(f"images/{stem}.jpg" for stem in PICTURES))
    split_of = {"0": "train", "1": "train", "2": "val", "3": "test"}
    table(tmp_path, "list.csv", [row_of(stem, subset=split_of[stem[-1]]) for stem in PICTURES])
    found = scan(tmp_path)
    assert counts(found) == {TRAIN: 2, VALIDATION: 1, TEST: 1}
    assert "classes by 'kind', splits by 'subset'" in found.words[0]


@pytest.mark.parametrize("place", ["{}.csv", "{}/metadata.csv"])
def test_a_table_for_each_split(tmp_path: Path, place: str) -> None:
    for split, numbers in (("train", "01"), ("test", "23")):
        stems = [stem for stem in PICTURES if stem[-1] in numbers]
        write(tmp_path, *(f"{split}/{stem}.jpg" for stem in stems))
        rows: list[dict[str, object]] = [
            {"file_name": f"{stem}.jpg", "label": stem.partition("_")[0]} for stem in stems
        ]
        table(tmp_path, place.format(split), rows)
    found = scan(tmp_path)
    assert counts(found) == {TRAIN: 2, TEST: 2}
    assert "validation is made from train" in found.words


def test_tables_of_splits_may_call_other_pictures_alike(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path, *(f"{split}/{i}.jpg" for i in range(4)))
        rows: list[dict[str, object]] = [
            {"file_name": f"{i}.jpg", "label": CLASSES[i % 2]} for i in range(4)
        ]
        table(tmp_path, f"{split}/metadata.csv", rows)
    found = scan(tmp_path)
    assert counts(found) == {TRAIN: 2, TEST: 2}
    assert found.skipped == ()


def test_the_digest_follows_the_classes_that_a_table_gives(tmp_path: Path) -> None:
    write(tmp_path, *(f"images/{stem}.jpg" for stem in PICTURES))
    rows = [row_of(stem) for stem in PICTURES]
    table(tmp_path, "list.csv", rows)
    before = scan(tmp_path)
    assert scan(tmp_path).digest == before.digest
    rows[0]["kind"], rows[4]["kind"] = rows[4]["kind"], rows[0]["kind"]
    table(tmp_path, "list.csv", rows)
    after = scan(tmp_path)
    assert after.digest != before.digest
    assert [s.sha256 for s in after.sources] == [s.sha256 for s in before.sources]


def test_what_a_table_and_the_pictures_do_not_share_is_listed(tmp_path: Path) -> None:
    write(tmp_path, *(f"images/{stem}.jpg" for stem in PICTURES), "images/more.jpg")
    write(tmp_path.parent, "secret.jpg")
    rows = [row_of(stem) for stem in PICTURES]
    rows += [
        row_of("cat_9"),
        row_of("cat_0", kind="dog"),
        {"image": "../secret.jpg", "kind": "cat"},
    ]
    rows[7]["kind"] = ""
    table(tmp_path, "list.csv", rows)
    found = scan(tmp_path)
    assert len(found.sources) == 6
    assert sorted(item.reason for item in found.skipped) == [
        "no class in row 9 of the table",
        "no picture of that name",
        "no picture of that name",
        "no row of the table names it",
        "two rows of the table differ about it",
    ]
    missed = [item.path for item in found.skipped if item.kind == "unusable"]
    assert len(missed) == 4  # a file that the table does not name may be meant so


def test_columns_that_do_not_tell_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path, *(f"images/{stem}.jpg" for stem in PICTURES))
    rows = [row_of(stem, colour="red" if stem[-1] in "01" else "blue") for stem in PICTURES]
    table(tmp_path, "list.csv", rows)
    with pytest.raises(DataError, match="kind and colour of the columns") as caught:
        scan(tmp_path)
    assert "--label-column" in caught.value.remedy
    assert counts(scan(tmp_path, form=Form(tmp_path / "list.csv", label_column="kind")))
    with pytest.raises(DataError, match="has no column 'kin'"):
        scan(tmp_path, form=Form(tmp_path / "list.csv", label_column="kin"))
    table(tmp_path, "list.csv", [{"image": "a.jpg", "kind": "cat"}])
    with pytest.raises(DataError, match="no column names pictures of"):
        scan(tmp_path)
    (tmp_path / "list.csv").write_bytes(b'"\x00\xff')
    with pytest.raises(DataError, match=r"list\.csv"):
        scan(tmp_path)


def test_one_store_in_pieces_is_no_classes_where_a_table_lies(tmp_path: Path) -> None:
    for number, stem in enumerate(PICTURES):
        write(tmp_path, f"images_part_{1 + number % 2}/{stem}.jpg")
    assert scan(tmp_path).class_names == ("images_part_1", "images_part_2")
    rows = [row_of(stem) for stem in PICTURES]
    table(tmp_path, "list.csv", rows)
    assert counts(scan(tmp_path)) == {None: 4}
    for number in (1, 2):
        (tmp_path / f"images_part_{number}").rename(tmp_path / f"grade_{number}")
    assert scan(tmp_path).class_names == ("grade_1", "grade_2")


def test_folders_tell_the_splits_where_all_that_a_table_names_lies_in_them(tmp_path: Path) -> None:
    rows = []
    for number, stem in enumerate(PICTURES):
        path = f"deep/{'test' if number % 4 == 3 else 'train'}/{stem}.jpg"
        write(tmp_path, path)
        rows.append(row_of(stem))
    table(tmp_path, "list.csv", rows)
    found = scan(tmp_path)
    assert counts(found) == {TRAIN: 3, TEST: 1}
    assert "splits by the folders test and train" in found.words
    (tmp_path / "deep/test/cat_3.jpg").rename(tmp_path / "deep/cat_3.jpg")
    assert counts(scan(tmp_path)) == {None: 4}


def test_what_a_competition_wants_handed_in_tells_no_classes(tmp_path: Path) -> None:
    _kaggle(tmp_path)
    table(tmp_path, "sample_submission.csv", [{"id": "unknown", "breed": "cat"}])
    found = scan(tmp_path)
    assert counts(found) == {None: 4}
    assert [(item.path, item.kind) for item in found.skipped if item.kind == "ignored"] == [
        ("test/unknown.jpg", "ignored")
    ]
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(DataError, match="pictures and no class folders"):
        scan(tmp_path)


def test_a_named_column_speaks_of_a_table_and_not_of_the_folders(tmp_path: Path) -> None:
    write(tmp_path, *(f"{place}/{stem}.jpg" for stem in PICTURES for place in (stem[-1],)))
    assert scan(tmp_path).class_names == ("0", "1", "2", "3")
    asked = Form(label_column="kind")
    with pytest.raises(DataError, match="column 'kind' was named, and no table lies in"):
        scan(tmp_path, form=asked)
    table(tmp_path, "list.csv", [row_of(stem) for stem in PICTURES])
    assert scan(tmp_path).class_names == ("0", "1", "2", "3")
    assert counts(scan(tmp_path, form=asked)) == {None: 4}


# ---- the command line


def edgekit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def draw(root: Path, names: list[str]) -> None:
    """Draws a picture of its own for every name, bright for dogs."""
    for number, name in enumerate(names):
        colour = (number * 9 % 100 + 100 * ("dog" in name), number * 37 % 256, number * 71 % 256)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (40, 40), colour)
        picture.putpixel((number % 40, 3), (255, 255, 255))
        picture.save(path)


def test_init_says_what_it_understood_and_run_decodes_it(tmp_path: Path) -> None:
    pictures = tmp_path / "download"
    draw(pictures, [f"set/{s}/{c}/{i}.png" for s in ("Training", "Testing") for c in CLASSES
                    for i in range(20)])  # fmt: skip
    recipe = tmp_path / "recipe.toml"
    looked = edgekit("init", str(pictures), "--out", str(recipe))
    assert looked.returncode == 0, looked.stderr
    assert "set/Testing is test and set/Training is train" in looked.stdout
    assert "validation is made from set/Training" in looked.stdout
    assert "all 2 classes     40    40" in looked.stdout
    run = edgekit("run", str(recipe), "--weights", "none", "--until", "data", "--out",
                  str(tmp_path / "out"))  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "2 classes, 34 train, 6 validation, 40 test" in run.stderr


def test_init_writes_the_table_and_columns_into_the_recipe(tmp_path: Path) -> None:
    stems = [f"{c}_{i}" for c in CLASSES for i in range(20)]
    draw(tmp_path / "pictures", [f"all/{stem}.png" for stem in stems])
    rows: list[dict[str, object]] = [
        {"nr": stem, "what": stem[:3], "where": "in" if stem[-1] in "01234" else "out"}
        for stem in stems
    ]
    table(tmp_path, "list.csv", rows)
    recipe = tmp_path / "recipe.toml"
    asked = ("init", str(tmp_path / "pictures"), "--out", str(recipe), "--table",
             str(tmp_path / "list.csv"))  # fmt: skip
    refused = edgekit(*asked)
    assert refused.returncode == 3
    assert "what and where of the columns" in refused.stderr
    looked = edgekit(*asked, "--label-column", "what", "--json")
    assert looked.returncode == 0, looked.stderr
    assert json.loads(looked.stdout)["classes"] == {
        "cat": {"undivided": 20}, "dog": {"undivided": 20},
    }  # fmt: skip
    run = edgekit("run", str(recipe), "--weights", "none", "--until", "data", "--out",
                  str(tmp_path / "out"))  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "2 classes, 28 train, 6 validation, 6 test" in run.stderr
