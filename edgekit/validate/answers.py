"""The answer to every picture, as a table that spreadsheets open safely. Stage layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.spreadsheet import table_text
from edgekit.validate.accuracy import OUTSIDE, Classes


@dataclass(frozen=True)
class Answers:
    """What one file answered.

    Args:
        classes: int32 of shape `(images,)`, indexes into the class names; -1 outside them.
        scores: float32 of shape `(images,)`, the highest score of each picture.
        file: The file's name, where several answered. Defaults to "".
    """

    classes: Classes
    scores: npt.NDArray[np.float32]
    file: str = ""


def answers_table(
    names: Sequence[str], labels: Classes, answered: Sequence[Answers], class_names: Sequence[str]
) -> str:
    """Returns CSV with a header: picture, truth, then answer and score of each file.

    One line a picture, pictures in the order given.

    An answer outside the classes is empty, and so is a score that is no number.

    Args:
        names: What each picture is called, on one line.
        labels: int32 of shape `(images,)`, indexes into `class_names`.
        answered: What each file answered.
        class_names: Names of the classes.
    """
    of = [f" of {each.file}" if each.file else "" for each in answered]
    columns = [f"{what}{file}" for file in of for what in ("answer", "score")]
    rows = []
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        cells: list[str | float] = [name, class_names[label]]
        for each in answered:
            answer, score = each.classes[row], each.scores[row]
            cells.append("" if answer == OUTSIDE else class_names[answer])
            cells.append(float(score) if np.isfinite(score) else "")
        rows.append(cells)
    return table_text(("picture", "truth", *columns), rows)
