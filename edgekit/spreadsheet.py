"""Tables of text as spreadsheets open them safely, and as they save them: CSV. Bottom layer."""

import csv
import io
from collections.abc import Iterable, Sequence

# A cell that begins so is a formula to a spreadsheet, in full width, too.
# Source: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_GUARD = "'"


def table_text(columns: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """Returns comma-separated values with a heading; texts are quoted, numbers are not.

    A text that a spreadsheet would compute, or that begins with an apostrophe, has an apostrophe
    in front.

    Args:
        columns: Names of the columns.
        rows: Cells in their order.
    """
    page = io.StringIO()
    lines = csv.writer(page, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    lines.writerow(columns)
    for row in rows:
        lines.writerow([_guarded(cell) if isinstance(cell, str) else cell for cell in row])
    return page.getvalue()


def table_bytes(columns: Sequence[str], rows: Iterable[Sequence[str | float]]) -> bytes:
    """Returns `table_text` in UTF-8, for a table that a user is to fill in and save.

    It has a mark in front where it is not plain ASCII: some spreadsheets know UTF-8 by that alone,
    and would save other letters than they read.
    """
    text = table_text(columns, rows)
    return text.encode("utf-8" if text.isascii() else "utf-8-sig")


def _guarded(text: str) -> str:
    return f"{_GUARD}{text}" if text.lstrip().startswith((*_FORMULA, _GUARD)) else text


def unguarded(cell: str) -> str:
    """Returns a text without the apostrophe that `table_text` put in front of it."""
    rest = cell.removeprefix(_GUARD)
    return rest if rest != cell and _guarded(rest) == cell else cell


def decoded(content: bytes) -> str:
    """Returns the text of a table: UTF-8 or UTF-16 with or without a mark, else Windows-1252.

    Spreadsheets in the west of Europe save the last, and UTF-16 as "Unicode text".
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def separated(text: str, *, separator: str | None = None) -> list[tuple[int, list[str]]]:
    """Returns the lines of a table that are not empty, each with its number, from 1.

    Args:
        text: The table.
        separator: What stands between cells. Defaults to None: a first line `sep=;` says so, as
            spreadsheets write it, or the one of `,`, `;`, tab and `|` that stands in every line,
            and most often.

    Raises:
        csv.Error: If it is no such table.
    """
    start = 1
    if separator is None and text[:4].lower() == "sep=":
        first, _, text = text.partition("\n")
        separator, start = (first[4:].strip('\r"') or ","), 2
    if separator is None:
        head = text[:100_000].splitlines()[:50]
        counts = {mark: min((line.count(mark) for line in head if line), default=0)
                  for mark in ",;\t|"}  # fmt: skip
        separator = max(counts, key=lambda mark: counts[mark])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    found, number = [], start
    for cells in reader:
        if cells:
            found.append((number, cells))
        number = start + reader.line_num
    return found
