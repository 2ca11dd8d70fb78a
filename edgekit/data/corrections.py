"""What a user says is to be done about single pictures: left out, or given another class.

Any table that edgekit writes about single pictures can be filled in and given back as it is.
"""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from edgekit.data.files import printable
from edgekit.data.names import listed
from edgekit.data.scan import Scan
from edgekit.errors import DataError
from edgekit.limits import DATA_TABLE_BYTES
from edgekit.records import SkippedFile
from edgekit.spreadsheet import decoded, separated, unguarded

_LEAVE_OUT, _RELABEL = "leave out", "relabel"
_EXPECTED = "a row for each picture, with the columns path, action and label"


@dataclass(frozen=True)
class _Row:
    """One row that says what to do; cells by the name of their column."""

    line: int
    action: str
    cells: Mapping[str, str]


def has_actions(path: Path) -> bool:
    """Returns whether a file is a table in which somebody filled in what to do.

    What cannot be read as one counts, too: edgekit did not write it.
    """
    try:
        return bool(_rows(path))
    except DataError:
        return True


def corrected(found: Scan, table: Path) -> Scan:
    """Returns the scan with the corrections of a table made, and a sentence about them.

    The table has the columns `path` and `action`, "leave out" or "relabel"; a row without an
    action is passed over. A picture is given the class in the column `label`, or, where that is
    the one it has, the one in `suggested`.

    Args:
        found: What lies in the data folder.
        table: As a spreadsheet saves it: comma, semicolon or tab, UTF-8, UTF-16 or Windows-1252.

    Raises:
        DataError: If the table cannot be read, or a row is about an unknown picture or class, or
            two of them differ about a picture; the line is named.
    """
    index = {source.relative: number for number, source in enumerate(found.sources)}
    by_shown = {printable(name): number for name, number in index.items()} | index
    gone = {item.path for item in found.skipped}
    label_of = {name: label for label, name in enumerate(found.class_names)}
    label_of = {printable(name): label for name, label in label_of.items()} | label_of
    said: dict[int, tuple[int | None, int]] = {}  # the new class or None, and the line
    for row in _rows(table):
        name = _known(row.cells["path"], by_shown)
        if name is None:
            if row.action == _LEAVE_OUT and _known(row.cells["path"], dict.fromkeys(gone, 0)):
                continue  # it is left out as it is
            raise _refusal(
                table, row.line, f"no picture {printable(row.cells['path'])!r} in {found.root}",
                "paths below the data folder, as edgekit's tables have them",
            )  # fmt: skip
        number = by_shown[name]
        label = None
        if row.action == _RELABEL:
            label = _new_label(table, row, label_of, found, number)
        before = said.setdefault(number, (label, row.line))
        if before[0] != label:
            raise _refusal(
                table, row.line, f"it says otherwise about {printable(name)} than line {before[1]}",
                "one action for each picture",
            )  # fmt: skip
    shown = printable(table.name)
    sources, skipped = [], list(found.skipped)
    for number, source in enumerate(found.sources):
        label = said[number][0] if number in said else source.label
        if label is not None:
            sources.append(replace(source, label=label))
        else:
            path, reason = printable(source.relative), f"left out by {shown}"
            skipped.append(SkippedFile(path=path, reason=reason, kind="ignored"))
    counts = Counter(label is None for label, _ in said.values())
    word = f"{shown}: {counts[True]} pictures left out, {counts[False]} given another class"
    return replace(
        found, sources=tuple(sources), skipped=tuple(skipped), words=(*found.words, word)
    )


def _new_label(
    table: Path, row: _Row, label_of: Mapping[str, int], found: Scan, number: int
) -> int:
    """Returns the class that a row gives a picture."""
    now = found.sources[number].label
    asked = [row.cells.get(column, "") for column in ("label", "suggested")]
    for name in asked:
        known = _known(name, label_of)
        if known is None and name:
            raise _refusal(
                table, row.line, f"no class {printable(name)!r}",
                f"one of {listed(map(printable, found.class_names))}",
            )  # fmt: skip
        if known is not None and label_of[known] != now:
            return label_of[known]
    raise _refusal(
        table, row.line,
        f"{_RELABEL} {printable(row.cells['path'])}, which is "
        f"{printable(found.class_names[now])!r} already",
        "another class in the column label",
    )  # fmt: skip


def _known(cell: str, names: Mapping[str, object]) -> str | None:
    """Returns the name that a cell means, with or without what edgekit put in front of it."""
    tries = (cell, unguarded(cell), cell.replace("\\", "/"))
    return next((name for name in tries if name in names), None)


def _rows(path: Path) -> list[_Row]:
    """Returns the rows of a table that say what to do."""
    try:
        with path.open("rb") as stream:
            content = stream.read(DATA_TABLE_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"{printable(str(path))}: {error.strerror}",
            "a table of corrections",
            "correct data.corrections",
        ) from error
    if len(content) > DATA_TABLE_BYTES:
        most = f"at most {DATA_TABLE_BYTES:,} bytes"
        raise DataError(f"{printable(str(path))}: more than {most[8:]}", most, "split it")
    try:
        lines = separated(decoded(content))
    except csv.Error as error:
        raise DataError(
            f"{printable(str(path))}: {error}", _EXPECTED, "save it as comma-separated values"
        ) from error
    columns = [name.strip().lower() for name in lines[0][1]] if lines else []
    missing = [name for name in ("path", "action") if name not in columns]
    if missing:
        raise DataError(
            f"{printable(str(path))}: no column {' and '.join(missing)}; it has "
            f"{listed(map(printable, columns)) or 'none'}",
            _EXPECTED,
            "add it, or name another file in data.corrections",
        )
    rows = []
    for line, values in lines[1:]:
        filled = zip_longest(columns, values[: len(columns)], fillvalue="")
        cells = {name: value.strip() for name, value in filled}
        action = " ".join(cells["action"].lower().replace("_", " ").split())
        if not action:
            continue
        if action not in (_LEAVE_OUT, _RELABEL):
            raise _refusal(
                path, line, f"the action {printable(cells['action'])!r}",
                f'"{_LEAVE_OUT}", "{_RELABEL}" or nothing',
            )  # fmt: skip
        rows.append(_Row(line, action, cells))
    return rows


def _refusal(table: Path, line: int, received: str, expected: str) -> DataError:
    return DataError(
        f"{printable(str(table))}, line {line}: {received}", expected, "correct that line"
    )
