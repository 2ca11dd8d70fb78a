"""What a user fills into a table is done to the pictures, through the command line, too."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.cli import execute
from edgekit.data.corrections import corrected, has_actions
from edgekit.data.names import SPLITS
from edgekit.data.scan import Scan, scan
from edgekit.errors import DataError
from edgekit.spreadsheet import decoded, separated, table_bytes, table_text, unguarded

COLUMNS = ("path", "split", "label", "suggested", "confidence", "action")


@pytest.fixture
def found(tmp_path: Path) -> Scan:
    """Returns three classes of three pictures, some of them named to trouble a spreadsheet."""
    for name in ("cat", "dog", "=cow"):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for file in ("0.jpg", "1.jpg", "käse, gelb.jpg"):
            (folder / file).write_bytes(f"{name}/{file}".encode())
    return scan(tmp_path / "pictures")


def labels(found: Scan) -> dict[str, str]:
    return {source.relative: found.class_names[source.label] for source in found.sources}


def made(found: Scan, content: str | bytes) -> Scan:
    table = found.root.parent / "corrections.csv"
    table.write_bytes(content.encode() if isinstance(content, str) else content)
    return corrected(found, table)


def test_pictures_are_left_out_and_relabelled(found: Scan) -> None:
    after = made(found, "path,action,label\ncat/0.jpg,leave out,\ndog/1.jpg,Relabel,cat\n")
    expected = {**labels(found), "dog/1.jpg": "cat"}
    del expected["cat/0.jpg"]
    assert labels(after) == expected
    assert after.words[-1] == "corrections.csv: 1 pictures left out, 1 given another class"
    assert [(s.path, s.reason, s.kind) for s in after.skipped] == [
        ("cat/0.jpg", "left out by corrections.csv", "ignored")
    ]
    assert after.digest != found.digest
    # Twin: without an action nothing changes.
    assert labels(made(found, "path,action,label\ncat/0.jpg,,dog\n")) == labels(found)


SUSPICIOUS = [
    ("dog/käse, gelb.jpg", "train", "dog", "cat", 0.93, "relabel"),
    ("=cow/0.jpg", "train", "=cow", "dog", 0.91, "relabel"),
    ("cat/1.jpg", "train", "cat", "=cow", 0.9, "leave out"),
    ("cat/0.jpg", "train", "cat", "=cow", 0.9, ""),
    ("dog/0.jpg", "train", "=cow", "cat", 0.9, "relabel"),  # neither, says the user
]


def saved(separator: str, encoding: str, first: str = "") -> bytes:
    """Returns that table as a spreadsheet saves it that has read what edgekit writes."""
    cells = csv.reader(table_text(COLUMNS, SUSPICIOUS).splitlines())
    lines = [separator.join(f'"{c}"' if separator in c else c for c in row) for row in cells]
    return (first + "\r\n".join([*lines, ""])).encode(encoding)


@pytest.mark.parametrize(
    "content",
    [
        table_bytes(COLUMNS, SUSPICIOUS),
        saved(",", "utf-8-sig"),
        saved(";", "utf-8-sig"),
        saved(";", "cp1252"),
        saved(";", "utf-8", "sep=;\r\n"),
        saved("\t", "utf-16"),
    ],
    ids=["as written", "mark", "semicolon", "windows", "sep=", "utf-16"],
)
def test_the_table_of_suspicious_labels_is_read_as_spreadsheets_save_it(
    found: Scan, content: bytes
) -> None:
    after = labels(made(found, content))
    assert after == {
        **{path: name for path, name in labels(found).items() if path != "cat/1.jpg"},
        "dog/käse, gelb.jpg": "cat",
        "=cow/0.jpg": "dog",
        "dog/0.jpg": "=cow",
    }


@pytest.mark.parametrize(
    ("rows", "line", "said"),
    [
        ("cat/0.jpg,leave out,\ncat/9.jpg,leave out,", 3, "no picture 'cat/9.jpg' in "),
        ("cat/0.jpg,,\n\ncat/1.jpg,relabel,cow", 4, "no class 'cow'"),
        ("cat/0.jpg,relabel,cat", 2, "relabel cat/0.jpg, which is 'cat' already"),
        ("cat/0.jpg,relabel,", 2, "relabel cat/0.jpg, which is 'cat' already"),
        ("cat/0.jpg,delete,", 2, "the action 'delete'"),
        ("cat/0.jpg,relabel,dog\ncat/0.jpg,leave out,", 3,
         "it says otherwise about cat/0.jpg than line 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_its_line(
    found: Scan, rows: str, line: int, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        made(found, f"path,action,label\n{rows}\n")
    assert f"corrections.csv, line {line}: {said}" in caught.value.received
    assert caught.value.exit_code == 3


def test_a_row_that_ends_early_is_refused_with_its_line(found: Scan) -> None:
    with pytest.raises(DataError, match="line 2: no picture ''"):
        made(found, "action,path\nleave out\n")
    assert labels(made(found, "path,action,label\ncat/0.jpg\n")) == labels(found)


def test_the_same_said_twice_is_no_contradiction(found: Scan) -> None:
    after = made(found, "path,action,label\n" + 2 * "cat/0.jpg,leave out,\n")
    assert after.words[-1].startswith("corrections.csv: 1 pictures left out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"picture,action\nx,\n", "no column path; it has picture and action"),
        (b"path\nx\n", "no column action"),
        (b"", "no column path and action; it has none"),
    ],
)
def test_a_table_of_something_else_is_refused(found: Scan, content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        made(found, content)
    with pytest.raises(DataError, match="No such file"):
        corrected(found, found.root / "none.csv")


def test_formulas_are_guarded_and_read_back() -> None:
    for text in ("=1+1", "+x", "-1.jpg", "@a", "'quoted", "'=x", "  =x", "\uff1dx"):
        ((_, _), (_, cells)) = separated(table_text(("path",), [(text,)]))
        assert cells == [f"'{text}"]
        assert unguarded(cells[0]) == text
    assert unguarded("plain") == "plain"
    assert unguarded("'plain") == "'plain"  # nobody guarded that
    assert decoded(table_bytes(("a",), [("ä",)])) == '"a"\n"ä"\n'
    assert not table_bytes(("a",), [("b",)]).startswith(b"\xef")


def test_filled_in_tables_are_known(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(table_bytes(COLUMNS, [(*SUSPICIOUS[0][:5], "")]))
    assert not has_actions(table)
    table.write_bytes(table_bytes(COLUMNS, SUSPICIOUS))
    assert has_actions(table)
    table.write_text("my own notes")
    assert has_actions(table)


def texture(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return Image.fromarray(cells).resize((96, 64), Image.Resampling.BICUBIC)


def test_a_table_of_a_run_is_filled_in_and_given_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(20):
            texture(1000 * label + index).save(tmp_path / "pictures" / name / f"{index:02d}.png")
    texture(3).save(tmp_path / "pictures" / "dog" / "wrong.png")
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    text = '[data]\npath = "pictures"\n{}\n[model]\nweights = "none"\ninput_size_px = 32\n'

    def run(line: str, *options: str) -> str:
        recipe.write_text(text.format(line))
        code = execute(["run", str(recipe), "--until", "data", "--out", str(out), *options])
        printed = capsys.readouterr()
        return f"{code} " + " ".join((printed.out + printed.err).split())

    def of_dogs() -> int:
        stored = out.glob(".store/data/*/record.json")
        newest = max(stored, key=lambda path: path.stat().st_mtime_ns)
        splits = json.loads(newest.read_text())["record"]["splits"]
        return sum(int(splits[split]["per_class"][1]) for split in SPLITS)

    run("")
    assert of_dogs() == 20
    left_out = out / "left_out.csv"
    table = left_out.read_text()
    line = next(line for line in table.splitlines() if line.startswith('"dog/wrong.png"'))
    left_out.write_text(table.replace(line, line[:-2] + '"leave out"'))
    said = run('corrections = "out/left_out.csv"')
    assert "data: left_out.csv: 1 pictures left out, 0 given another class" in said
    assert "two classes" not in said
    assert of_dogs() == 20
    assert '"leave out"' in left_out.read_text()  # what the user wrote stays
    assert f"data: {out / 'left_out.2.csv'}" in said
    # Nor is the second table written over once it is filled in.
    second = out / "left_out.2.csv"
    second.write_text(left_out.read_text())
    assert f"data: {out / 'left_out.3.csv'}" in run('corrections = "out/left_out.2.csv"')
    assert second.read_text() == left_out.read_text()
    left_out.unlink()
    second.unlink()
    run("")
    assert [path.name for path in out.glob("left_out*")] == ["left_out.csv"]
    # By an option, too; what is unknown is refused.
    other = tmp_path / "other.csv"
    other.write_text("path;action;label\ncat/03.png;relabel;dog\n")
    said = run("", "--corrections", str(other))
    assert said.startswith("0 ")
    assert "other.csv: 0 pictures left out, 1 given another class" in said
    assert of_dogs() == 22  # the same pixels in one class are no conflict
    other.write_text("path;action;label\ncat/99.png;relabel;dog\n")
    said = run("", "--corrections", str(other))
    assert said.startswith("3 ")
    assert "other.csv, line 2: no picture 'cat/99.png' in " in said
