"""Matches class folders to the outputs of a model that edgekit did not make. Stage layer."""

import difflib
import re
from collections.abc import Mapping, Sequence

from edgekit.errors import SpecError
from edgekit.validate.labels import without_background

_IN_BRACKETS = re.compile(r"(.+?)\s*\(([^()]+)\)")


def match_classes(
    class_names: Sequence[str],
    outputs: int,
    label_lines: Sequence[str] | None = None,
    label_offset: int = 0,
) -> tuple[int, ...]:
    """Returns the output that stands for each class.

    With a labels file, the line that names the class, in whole, by one of its synonyms (between
    commas) or by one of its two names ("Latin (common)"); else a numeric folder name is the output
    itself; else the position in sorted order. `label_offset` is added in every case.

    Args:
        class_names: Folder names in label order.
        outputs: Number of outputs of the model.
        label_lines: Lines of a labels file, or the labels that the model carries. Defaults to
            None.
        label_offset: Added to every index. Defaults to 0.

    Raises:
        SpecError: If a class cannot be matched, the numbers do not fit the outputs, or numeric
            names fit them in two orders: as numbers, and sorted as texts.
    """
    if label_lines is not None:
        positions = _by_label(class_names, label_lines, outputs, label_offset)
    elif named_by_number(class_names):
        _refuse_two_orders(class_names, outputs)
        positions = [int(name) for name in class_names]
    else:
        positions = _by_order(class_names, outputs, label_offset)
    index = tuple(position + label_offset for position in positions)
    wrong = [n for n, i in zip(class_names, index, strict=True) if not 0 <= i < outputs]
    if wrong or len(set(index)) != len(index):
        named = ", ".join(repr(name) for name in wrong[:5]) or "two names for one output"
        found = f"classes outside the model's outputs: {named}"
        raise SpecError(
            found,
            f"outputs 0 to {outputs - 1}, each for one class (offset {label_offset} included)",
            "correct the folder names, the labels file or --label-offset",
        )
    return index


def named_by_number(class_names: Sequence[str], label_lines: Sequence[str] = ()) -> bool:
    """Returns whether folders are named by numbers, none of which is one of the labels."""
    labels = {line.strip() for line in label_lines}
    return all(n.isascii() and n.isdigit() and n not in labels for n in class_names)


def _refuse_two_orders(class_names: Sequence[str], outputs: int) -> None:
    """Refuses numeric names, one per output, whose order as texts is not that of the numbers.

    Keras' `flow_from_directory` and edgekit order folders as texts: 0, 1, 10, 2.
    """
    as_texts, as_numbers = sorted(class_names), sorted(class_names, key=int)
    if as_texts == as_numbers or len(class_names) != outputs:
        return
    first = next(i for i, (a, b) in enumerate(zip(as_texts, as_numbers, strict=True)) if a != b)
    shown = ", ".join(as_texts[: first + 2])
    raise SpecError(
        f"{len(class_names)} class folders that are named by numbers and sort as {shown} as texts, "
        f"for a model with {outputs} outputs that does not name them",
        "--labels FILE, which says whether the outputs stand in the order of the numbers "
        f"({', '.join(as_numbers[: first + 2])}) or of the texts ({shown}, as Keras and edgekit "
        "sort folders)",
        "write the folder names into a text file, one per line, in the order of the outputs, and "
        "give it with --labels",
    )


def _by_order(class_names: Sequence[str], outputs: int, label_offset: int) -> list[int]:
    if outputs != len(class_names) + label_offset:
        found = (
            f"{len(class_names)} class folders for a model with {outputs} outputs "
            f"(offset {label_offset})"
        )
        raise SpecError(
            found,
            f"{outputs - label_offset} folders, or a way to match them",
            "give --labels FILE with one class per line, name the folders after the output "
            "numbers, or give --label-offset",
        )
    order = sorted(class_names)
    return [order.index(name) for name in class_names]


def fitting_lines(label_lines: Sequence[str], outputs: int, label_offset: int) -> list[str]:
    """Returns the labels of the outputs behind an offset, a background that is not there left out.

    Args:
        label_lines: As in `match_classes`.
        outputs: Number of outputs of the model.
        label_offset: Output of the first label; -1 if the first label has none.

    Raises:
        SpecError: If they are not as many as these outputs.
    """
    lines = [line.strip() for line in label_lines]
    while lines and not lines[-1]:
        lines.pop()
    if label_offset == 0:
        lines = list(without_background(lines, outputs) or lines)
    if len(lines) + label_offset != outputs:
        found = f"{len(lines)} labels for {outputs} outputs (offset {label_offset})"
        raise SpecError(
            found,
            f"{outputs - label_offset} labels, or --label-offset {outputs - len(lines)}",
            "give the labels file of this very model with --labels",
        )
    return lines


def _by_label(
    class_names: Sequence[str], label_lines: Sequence[str], outputs: int, label_offset: int
) -> list[int]:
    lines = fitting_lines(label_lines, outputs, label_offset)
    exact: dict[str, list[int]] = {}
    loose: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        exact.setdefault(line, []).append(number)
        for synonym in {_plain(name) for name in _names_in(line)}:
            loose.setdefault(synonym, []).append(number)
    return [_line_of(name, exact, loose) for name in class_names]


def _names_in(line: str) -> tuple[str, ...]:
    """Returns the names that a line holds: itself, its synonyms, "Latin (common)" as both."""
    two = _IN_BRACKETS.fullmatch(line)
    return (line, *line.split(","), *(two.groups() if two else ()))


def _line_of(name: str, exact: Mapping[str, list[int]], loose: Mapping[str, list[int]]) -> int:
    """Returns the one line that names a class: word for word, else by a synonym."""
    numbers = exact.get(name) or loose.get(_plain(name)) or []
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        found = f"class {name!r} on lines {', '.join(str(n + 1) for n in numbers)} of the labels"
        remedy = "name the folder like the whole line, or after the output number"
        raise SpecError(found, "one line per class", remedy)
    near = difflib.get_close_matches(_plain(name), loose, n=1, cutoff=0.6)
    hint = f" (nearest: {near[0]!r})" if near else ""
    found = f"class {name!r} on no line of the labels{hint}"
    raise SpecError(found, "every folder named in the labels", "rename the folder")


def _plain(text: str) -> str:
    """Folds case and the separators that folder names use in place of spaces."""
    return " ".join(text.replace("_", " ").replace("-", " ").split()).casefold()
