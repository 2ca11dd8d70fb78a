"""Tables of text that spreadsheets open safely: CSV with a heading. Bottom layer."""

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


def _guarded(text: str) -> str:
    return f"{_GUARD}{text}" if text.lstrip().startswith((*_FORMULA, _GUARD)) else text
