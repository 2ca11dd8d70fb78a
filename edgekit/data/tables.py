"""Pictures whose classes stand in a table beside them: `.csv`, `.tsv` and `.jsonl` files.

As Kaggle, Hugging Face's `imagefolder` and labelling tools write them. Which column is what is told
by what the columns hold and, where that is not enough, by the names that are usual for them.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekit.data.files import FOLDERS_AROUND, Form, Listed, Reading, Tree, printable
from edgekit.data.names import listed, made_from_train, plain, split_names
from edgekit.errors import DataError
from edgekit.limits import DATA_TABLE_BYTES, DATA_TABLE_COLUMNS
from edgekit.records import SkippedFile, SplitName
from edgekit.spreadsheet import decoded, separated

SUFFIXES = (".csv", ".tsv", ".jsonl")
_METADATA = ("metadata.csv", "metadata.jsonl")  # of Hugging Face's `imagefolder`
# In the names of tables that show what a competition wants handed in: their classes are made up.
_HANDED_IN = "submission"
# Rows that tell which column names pictures; at least half of them must.
_LOOKED_AT = 400
LABEL_NAMES = (
    "label", "labels", "class", "classes", "class_name", "classname", "class_label", "category",
    "target", "species", "breed", "variety", "diagnosis", "dx", "type", "y", "label_name",
    "level", "grade", "tag", "tags", "annotation", "class_id", "label_id",
)  # fmt: skip
_SPLIT_NAMES = ("split", "subset", "set", "partition", "phase", "fold", "data_set", "dataset")
_TO_SAY = (
    "say which column is what: data.path_column, data.label_column and data.split_column, or "
    "--path-column, --label-column and --split-column"
)


@dataclass(frozen=True)
class _Table:
    """A table as it was read: what it is called, and its cells as text, row by row."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    first_line: int


class _Pictures:
    """The picture files of a data folder, by what a table may call them."""

    def __init__(self, tree: Tree, skipped: list[SkippedFile]) -> None:
        self.tree = tree
        self.all = list(tree.pictures(tree.root, skipped))
        self._named: dict[str, list[Path]] = defaultdict(list)
        for path in self.all:
            tail = tree.relative(path)
            while tail:
                self._named[tail].append(path)
                if path.suffix:  # without it, too, as identifiers stand in competitions' tables
                    self._named[tail[: -len(path.suffix)]].append(path)
                tail = tail.partition("/")[2]

    def find(self, value: str, beside: Path) -> list[Path]:
        """Returns the pictures that a cell of a table may mean; those nearest to it alone.

        Args:
            value: The cell.
            beside: The folder of the table.
        """
        found = self._named.get(value.strip().replace("\\", "/").removeprefix("./"), [])
        if len(found) < 2:
            return found
        near = [path for path in found if path.is_relative_to(beside)]
        return near or found


def find_table(tree: Tree) -> Path | None:
    """Returns the table of a data folder's classes, or the folder of several; None without one.

    Args:
        tree: The data folder.

    Raises:
        DataError: If there are several, and nothing tells which.
    """
    here = tree.root
    for _ in range(FOLDERS_AROUND):
        found = _tables(tree, here)
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            named = split_names(path.stem for path in found)
            labelled = [path for path in found if path.stem in named]
            if len({named[path.stem] for path in labelled}) > 1:
                return here
            raise DataError(
                f"{printable(str(here))} holds {listed(tree.shown(path) for path in found)}",
                "one table of the pictures' classes",
                "name it: data.table or --table FILE",
            )
        inner = tree.holding(here)
        if len(inner) > 1 and all(_tables(tree, folder) for folder in inner):
            return here
        if len(inner) != 1:
            return None
        here = inner[0]
    return None


def _tables(tree: Tree, folder: Path) -> list[Path]:
    files = [Path(entry) for entry in tree.entries(folder) if entry.is_file()]
    found = [
        path
        for path in files
        if path.suffix.lower() in SUFFIXES and _HANDED_IN not in plain(path.stem)
    ]
    return [path for path in found if path.name in _METADATA] or found


def read_table(tree: Tree, place: Path, form: Form) -> Reading:
    """Returns the pictures that a table, or one for each split, gives a class.

    Args:
        tree: The data folder.
        place: The table, or the folder that holds several.
        form: Names columns that are not found by themselves.

    Raises:
        DataError: If a table cannot be read, does not say which column is what, or names no picture
            of the folder.
    """
    skipped: list[SkippedFile] = []
    pictures = _Pictures(tree, skipped)
    class_of: dict[Path, tuple[str, SplitName | None]] = {}
    words: list[str] = []
    unlabelled = []
    several = _by_split(tree, place)
    for file, split in several:
        table = _read(file)
        path_column = _path_column(table, pictures, form)
        if len(several) > 1 and not _has_label(table, path_column, form):
            unlabelled.append(file)  # the test set of a competition
            continue
        _take(table, path_column, split, pictures, form, class_of, skipped, words)
    names = [printable(file.name) for file in unlabelled]
    words += [f"{name} names no classes, and is left out" for name in names]
    used = {split for _, split in class_of.values()}
    if used == {None}:
        words += _split_by_folders(tree, class_of)
        used = {split for _, split in class_of.values()}
    if None not in used and "train" not in used:
        raise DataError(
            f"{_shown(several[0][0])}: {listed(sorted(map(str, used)))}, and no training pictures",
            "pictures of the split train",
            "correct the column of the splits, or name another with data.split_column",
        )
    words += made_from_train(used)
    own = {tree.shown(file) for file, _ in several if file.is_relative_to(tree.root)}
    skipped = [item for item in skipped if item.path not in own]
    left = [path for path in pictures.all if path not in class_of]
    mentioned = {item.path for item in skipped}
    skipped += [
        tree.skipped(path, "no row of the table names it", "ignored")
        for path in left
        if tree.shown(path) not in mentioned
    ]
    found = [
        Listed(path, tree.relative(path), *class_of[path])
        for path in pictures.all
        if path in class_of
    ]
    classes = tuple(sorted({item.class_name for item in found}))
    return Reading(classes, found, skipped, tuple(words))


def _by_split(tree: Tree, place: Path) -> list[tuple[Path, SplitName | None]]:
    """Returns a table, or those in a folder with the split that each file or folder is named by."""
    if not place.is_dir():
        return [(place, None)]
    own = _tables(tree, place)
    if own:
        named = split_names(path.stem for path in own)
        return [(path, named[path.stem]) for path in own if path.stem in named]
    folders = tree.holding(place)
    named = split_names(folder.name for folder in folders)
    return [(_tables(tree, folder)[0], named.get(folder.name)) for folder in folders]


def _shown(path: Path) -> str:
    return printable(str(path))


def _read(path: Path) -> _Table:
    try:
        with path.open("rb") as stream:
            content = stream.read(DATA_TABLE_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"{_shown(path)}: {error.strerror}", "a table that can be read", "correct the path"
        ) from error
    if len(content) > DATA_TABLE_BYTES:
        most = f"at most {DATA_TABLE_BYTES:,} bytes"
        raise DataError(f"{_shown(path)}: more than {DATA_TABLE_BYTES:,} bytes", most, "split it")
    text = decoded(content)
    try:
        if path.suffix.lower() == ".jsonl":
            return _json_lines(path, text)
        return _separated(path, text)
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(
            f"{_shown(path)}: {error}",
            "a table with a row for each picture",
            "write it again as comma-separated values in UTF-8",
        ) from error


def _json_lines(path: Path, text: str) -> _Table:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError(f"line {number} is no JSON object")  # noqa: TRY004
        plain_cells = {k: v for k, v in value.items() if isinstance(v, str | int | float)}
        rows.append({key: str(cell) for key, cell in plain_cells.items()})
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return _Table(path, columns, tuple(rows), 1)


def _separated(path: Path, text: str) -> _Table:
    tabs = "\t" if path.suffix.lower() == ".tsv" else None
    lines = [cells for _, cells in separated(text, separator=tabs)]
    if not lines:
        raise ValueError("an empty table")
    columns = [name.strip() for name in lines[0]]
    if len(columns) > DATA_TABLE_COLUMNS:
        raise ValueError(f"{len(columns)} columns, at most {DATA_TABLE_COLUMNS}")
    return _Table(path, tuple(columns), tuple(_rows(columns, lines[1:])), 2)


def _rows(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[Mapping[str, str]]:
    for line in lines:
        yield {name: cell.strip() for name, cell in zip(columns, line, strict=False)}


def _without_head(table: _Table) -> _Table:
    """Returns a table whose first row is no heading but a picture like the others."""
    names = tuple(f"column {number}" for number in range(1, len(table.columns) + 1))
    head = dict(zip(names, table.columns, strict=True))
    renamed = ({new: row.get(old, "") for new, old in zip(names, table.columns, strict=True)}
               for row in table.rows)  # fmt: skip
    return _Table(table.path, names, (head, *renamed), 1)


def _named(table: _Table, asked: str, key: str) -> str:
    if asked not in table.columns:
        raise DataError(
            f"{_shown(table.path)} has no column {asked!r} ({key})",
            f"one of {listed(map(printable, table.columns))}",
            "correct the name",
        )
    return asked


def _path_column(table: _Table, pictures: _Pictures, form: Form) -> str:
    if form.path_column is not None:
        return _named(table, form.path_column, "data.path_column")
    beside = table.path.parent
    some = table.rows[:: max(1, len(table.rows) // _LOOKED_AT)][:_LOOKED_AT]
    shares = {
        name: sum(bool(pictures.find(row.get(name, ""), beside)) for row in some)
        for name in table.columns
    }
    best = max(shares, key=lambda name: shares[name], default=None)
    if best is None or shares[best] == 0 or 2 * shares[best] < len(some):
        example = printable(next((" | ".join(row.values()) for row in table.rows), ""))[:200]
        raise DataError(
            f"{_shown(table.path)}: no column names pictures of {_shown(pictures.tree.root)}; "
            f"columns {listed(map(printable, table.columns))}; the first row is {example}",
            "a column of file names, with or without folders and suffixes",
            f"check the path of the pictures, or {_TO_SAY}",
        )
    return best


def _has_label(table: _Table, path_column: str, form: Form) -> bool:
    others = [name for name in table.columns if name != path_column]
    return form.label_column in table.columns if form.label_column else bool(others)


def _label_of(table: _Table, path_column: str, split_column: str | None, form: Form) -> list[str]:
    """Returns the column of the classes, or the columns of which each is one class."""
    if form.label_column is not None:
        return [_named(table, form.label_column, "data.label_column")]
    others = [name for name in table.columns if name not in (path_column, split_column)]
    usual = [name for name in others if plain(name).replace(" ", "_") in LABEL_NAMES]
    if usual:
        return [min(usual, key=lambda name: LABEL_NAMES.index(plain(name).replace(" ", "_")))]
    one_hot = [name for name in others if _is_zero_or_one(table, name)]
    if len(one_hot) > 1 and _one_each(table, one_hot):
        return one_hot
    # A column of classes has fewer of them than there are pictures.
    few = [name for name in others if _classes(table, name) * 2 <= max(len(table.rows), 2)]
    if len(few) == 1:
        return few
    raise DataError(
        f"{_shown(table.path)}: {'none' if not few else listed(map(printable, few))} of the "
        f"columns {listed(map(printable, others))} may be the classes",
        "one column of the pictures' classes",
        _TO_SAY,
    )


def _classes(table: _Table, name: str) -> int:
    return len({row.get(name, "") for row in table.rows})


def _is_zero_or_one(table: _Table, name: str) -> bool:
    return {row.get(name, "") for row in table.rows} <= {"0", "1", "0.0", "1.0"}


def _one_each(table: _Table, names: Sequence[str]) -> bool:
    return all(sum(float(row.get(name, 0)) for name in names) == 1 for row in table.rows)


def _split_of(table: _Table, path_column: str, form: Form) -> str | None:
    if form.split_column is not None:
        return _named(table, form.split_column, "data.split_column")
    for name in table.columns:
        if name == path_column or plain(name).replace(" ", "_") not in _SPLIT_NAMES:
            continue
        values = {row.get(name, "") for row in table.rows} - {""}
        if values and set(split_names(values)) == values:
            return name
    return None


def _take(
    table: _Table,
    path_column: str,
    split: SplitName | None,
    pictures: _Pictures,
    form: Form,
    class_of: dict[Path, tuple[str, SplitName | None]],
    skipped: list[SkippedFile],
    words: list[str],
) -> None:
    """Gives pictures the classes and splits of a table's rows."""
    if pictures.find(path_column, table.path.parent) and form.path_column is None:
        table, path_column = _without_head(table), f"column {table.columns.index(path_column) + 1}"
    split_column = None if split is not None else _split_of(table, path_column, form)
    label_columns = _label_of(table, path_column, split_column, form)
    splits = _splits_in(table, split_column)
    disputed: set[Path] = set()
    for number, row in enumerate(table.rows, table.first_line):
        cell = row.get(path_column, "")
        found = pictures.find(cell, table.path.parent)
        where = f"{_shown(table.path)}, row {number}: {printable(cell)}"
        if len(found) != 1:
            reason = "no picture of that name" if not found else "several pictures of that name"
            skipped.append(SkippedFile(path=where, reason=reason))
            continue
        name = _class_in(row, label_columns)
        own = splits.get(row.get(split_column, ""), split) if split_column else split
        path = found[0]
        if not name or (split_column and own is None):
            what = "class" if not name else "split"
            skipped.append(pictures.tree.skipped(path, f"no {what} in row {number} of the table"))
        elif class_of.setdefault(path, (name, own)) != (name, own):
            disputed.add(path)
    for path in sorted(disputed):
        del class_of[path]
        skipped.append(pictures.tree.skipped(path, "two rows of the table differ about it"))
    said = f"{_shown(table.path)}: pictures by {printable(path_column)!r}, classes by "
    said += (
        repr(printable(label_columns[0]))
        if len(label_columns) == 1
        else (f"the columns {listed(map(printable, label_columns), 5)}")
    )
    if split_column:
        said += f", splits by {printable(split_column)!r}"
    elif split is not None:
        said += f", the split {split}"
    words.append(said)


def _split_by_folders(tree: Tree, class_of: dict[Path, tuple[str, SplitName | None]]) -> list[str]:
    """Gives pictures the splits that folders are called by, if all of them lie in such folders.

    As where one `metadata.csv` names `train/1.jpg` and `test/1.jpg`. Returns what it understood.
    """
    around = {path: PurePosixPath(tree.relative(path)).parts[:-1] for path in class_of}
    for depth in range(min(FOLDERS_AROUND, *map(len, around.values())) if around else 0):
        names = {folders[depth] for folders in around.values()}
        splits = split_names(names)
        if set(splits) == names and "train" in splits.values() and len(set(splits.values())) > 1:
            for path, folders in around.items():
                class_of[path] = class_of[path][0], splits[folders[depth]]
            return [f"splits by the folders {listed(sorted(map(printable, names)))}"]
    return []


def _splits_in(table: _Table, column: str | None) -> dict[str, SplitName]:
    if column is None:
        return {}
    values = {row.get(column, "") for row in table.rows} - {""}
    found = split_names(values)
    unknown = sorted(values - set(found))
    if unknown:
        raise DataError(
            f"{_shown(table.path)}: {listed(map(printable, unknown))} in the column {column!r}",
            "names of splits, such as train, validation and test",
            "correct them, or name another column with data.split_column",
        )
    return found


def _class_in(row: Mapping[str, str], columns: Sequence[str]) -> str:
    if len(columns) == 1:
        return row.get(columns[0], "")
    return next((name for name in columns if float(row.get(name, 0)) == 1), "")
