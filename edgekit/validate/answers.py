"""The answer to every picture, as a table that spreadsheets open safely. Stage layer."""

import csv
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.validate.accuracy import OUTSIDE, Classes

# A cell that begins so is a formula to a spreadsheet, in full width, too.
# Source: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def answers_table(
    names: Sequence[str],
    labels: Classes,
    answers: Classes,
    scores: npt.NDArray[np.float32],
    class_names: Sequence[str],
) -> str:
    """Returns CSV with a header: picture, truth, answer, score; one line a picture.

    Texts are quoted. One that a spreadsheet would compute, or that begins with an apostrophe, has
    an apostrophe in front. An answer outside the classes is empty, and so is a score that is no
    number.

    Args:
        names: What each picture is called, on one line.
        labels: int32 of shape `(images,)`, indexes into `class_names`.
        answers: The same; -1 outside the classes.
        scores: float32 of shape `(images,)`, the highest score of each picture.
        class_names: Names of the classes.
    """
    page = io.StringIO()
    lines = csv.writer(page, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    lines.writerow(("picture", "truth", "answer", "score"))
    for name, label, answer, score in zip(names, labels, answers, scores, strict=True):
        said = "" if answer == OUTSIDE else class_names[answer]
        number = float(score) if np.isfinite(score) else ""
        lines.writerow((_text(name), _text(class_names[label]), _text(said), number))
    return page.getvalue()


def _text(text: str) -> str:
    return f"'{text}" if text.lstrip().startswith((*_FORMULA, "'")) else text
