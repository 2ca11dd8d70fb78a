"""Real sets in every form that data sets are published in: the same pictures, classes and splits.

Of each class and split a few pictures are taken, and laid out anew as the form says.
"""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_models import shared_file

from edgekit.cli import execute
from edgekit.data.names import SPLITS
from edgekit.data.scan import scan
from edgekit.records import SplitName

SETS = ("waste", "leaf", "hands", "mri", "grocery")
TAKEN: dict[SplitName, int] = {"train": 2, "validation": 1, "test": 1}
Known = tuple[str, SplitName | None]


class Picture(NamedTuple):
    """One picture of a set as it lies in the shared folder."""

    path: Path
    class_name: str
    split: SplitName

    @property
    def name(self) -> str:
        """A name that no other picture of the set has."""
        return f"{self.split}-{self.class_name}-{self.path.name}"


def some(root: Path) -> Iterator[Picture]:
    """Yields a few pictures of each class and split."""
    for split in SPLITS:
        for folder in sorted((root / split).iterdir()):
            for path in sorted(folder.iterdir())[: TAKEN[split]]:
                yield Picture(path, folder.name, split)


def _copy(picture: Picture, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture.path, target)


def _known(
    pictures: list[Picture], said: Callable[[Picture], Known | None]
) -> dict[str, tuple[str, SplitName | None]]:
    """Returns by file name what a form says of each picture."""
    return {p.path.as_posix(): known for p in pictures if (known := said(p))}


def _in_folders(**names: str) -> Callable[[Path, list[Picture]], dict[str, Known]]:
    """Returns how splits are laid out as folders; pictures of one without a name are left out.

    Args:
        names: The folder of each split, with `{}` for the class.
    """

    def lay(root: Path, pictures: list[Picture]) -> dict[str, Known]:
        for p in pictures:
            if p.split in names:
                _copy(p, root / names[p.split].format(p.class_name) / p.path.name)
        return _known(pictures, lambda p: (p.class_name, p.split) if p.split in names else None)

    return lay


def _classes_alone(root: Path, pictures: list[Picture]) -> dict[str, Known]:
    for p in pictures:
        _copy(p, root / p.class_name / p.name)
    return _known(pictures, lambda p: (p.class_name, None))


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes a table as its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        if path.suffix == ".jsonl":
            stream.writelines(f"{json.dumps(row)}\n" for row in rows)
            return
        separator = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def _by_table(name: str) -> Callable[[Path, list[Picture]], dict[str, Known]]:
    """Returns how pictures lie in one folder beside a table of path, label and split."""

    def lay(root: Path, pictures: list[Picture]) -> dict[str, Known]:
        for p in pictures:
            _copy(p, root / "images" / p.name)
        write_table(
            root / name,
            [
                {"path": f"images/{p.name}", "label": p.class_name, "split": p.split}
                for p in pictures
            ],
        )
        return _known(pictures, lambda p: (p.class_name, p.split))

    return lay


def _imagefolder(root: Path, pictures: list[Picture]) -> dict[str, Known]:
    """As Hugging Face's `imagefolder` wants it: metadata.csv beside the pictures of each split."""
    for split in SPLITS:
        own = [p for p in pictures if p.split == split]
        for p in own:
            _copy(p, root / split / p.name)
        rows: list[dict[str, object]] = [
            {"file_name": p.name, "label": p.class_name, "width": 160} for p in own
        ]
        write_table(root / split / "metadata.csv", rows)
    return _known(pictures, lambda p: (p.class_name, p.split))


def _imagefolder_in_one(root: Path, pictures: list[Picture]) -> dict[str, Known]:
    """Likewise with one metadata.csv, whose file names tell the splits."""
    for p in pictures:
        _copy(p, root / p.split / p.name)
    rows: list[dict[str, object]] = [
        {"file_name": f"{p.split}/{p.name}", "label": p.class_name} for p in pictures
    ]
    write_table(root / "metadata.csv", rows)
    return _known(pictures, lambda p: (p.class_name, p.split))


def _kaggle(root: Path, pictures: list[Picture]) -> dict[str, Known]:
    """A competition: labels of the training pictures, and an example of what is handed in."""
    classes = sorted({p.class_name for p in pictures})
    rows: list[dict[str, object]] = []
    handed_in: list[dict[str, object]] = []
    for number, p in enumerate(pictures):
        kind = "test" if p.split == "test" else "train"
        _copy(p, root / kind / f"{number:05}{p.path.suffix}")
        if kind == "train":
            rows.append({"id": f"{number:05}", "label": p.class_name})
        else:
            handed_in.append({"id": f"{number:05}", "label": classes[0]})
    write_table(root / "train.csv", rows)
    write_table(root / "sample_submission.csv", handed_in)
    return _known(pictures, lambda p: None if p.split == "test" else (p.class_name, None))


def _kaggle_with_test(root: Path, pictures: list[Picture]) -> dict[str, Known]:
    """Likewise with a table of the test pictures, which has no labels."""
    known = _kaggle(root, pictures)
    ids = [path.stem for path in sorted((root / "test").iterdir())]
    write_table(root / "test.csv", [{"id": name} for name in ids])
    return {name: (class_name, "train") for name, (class_name, _) in known.items()}


def _in_parts(root: Path, pictures: list[Picture]) -> dict[str, Known]:
    """As HAM10000: two folders of pictures, because one zip file was too large, and a table."""
    rows: list[dict[str, object]] = []
    for number, p in enumerate(pictures):
        part = 1 + (2 * number >= len(pictures))
        _copy(p, root / f"HAM10000_images_part_{part}" / f"ISIC_{number:07}{p.path.suffix}")
        rows.append(
            {
                "lesion_id": f"HAM_{number // 2:07}",
                "image_id": f"ISIC_{number:07}",
                "dx": p.class_name,
                "dx_type": "histo",
                "age": number % 80,
                "sex": "male" if number % 2 else "female",
            }
        )
    write_table(root / "HAM10000_metadata.csv", rows)
    return _known(pictures, lambda p: (p.class_name, None))


FORMS: dict[str, Callable[[Path, list[Picture]], dict[str, Known]]] = {
    "DIR/class": _classes_alone,
    "train, validation, test": _in_folders(**{s: f"{s}/{{}}" for s in SPLITS}),
    "Train, Val, Test": _in_folders(train="Train/{}", validation="Val/{}", test="Test/{}"),
    "Training, Testing": _in_folders(train="Training/{}", test="Testing/{}"),
    "a prefix in common": _in_folders(
        train="my_train/{}", validation="my_valid/{}", test="my_test/{}"
    ),
    "a folder around": _in_folders(
        train="set-main/train/{}", validation="set-main/val/{}", test="set-main/test/{}"
    ),
    "csv": _by_table("list.csv"),
    "tsv": _by_table("list.tsv"),
    "jsonl": _by_table("list.jsonl"),
    "imagefolder": _imagefolder,
    "imagefolder, one table": _imagefolder_in_one,
    "kaggle": _kaggle,
    "kaggle, test.csv": _kaggle_with_test,
    "parts": _in_parts,
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_init_says_what_it_understood_of_every_form(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = list(some(shared_file("data", "leaf")))
    wanted = Counter(FORMS[form](tmp_path / "set", pictures).values())
    asked = ["init", str(tmp_path / "set"), "--out", str(tmp_path / "recipe.toml"), "--json"]
    assert execute(asked) == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    assert {
        (name, None if split == "undivided" else split): count
        for name, counts in classes.items()
        for split, count in counts.items()
    } == wanted


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SETS)
def test_a_set_is_the_same_in_every_form(tmp_path: Path, name: str, form: str) -> None:
    pictures = list(some(shared_file("data", name)))
    wanted = FORMS[form](tmp_path, pictures)
    found = scan(tmp_path)
    assert found.class_names == tuple(sorted({p.class_name for p in pictures}))
    read = sorted(
        (source.path.read_bytes(), found.class_names[source.label], str(source.split))
        for source in found.sources
    )
    assert read == sorted(
        (Path(path).read_bytes(), class_name, str(split))
        for path, (class_name, split) in wanted.items()
    )
    assert len(read) == len(wanted) > 0
