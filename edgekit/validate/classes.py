"""Matches class folders to the outputs of a model that edgekit did not make. Stage layer."""

import difflib
from collections.abc import Mapping, Sequence

from edgekit.errors import SpecError


def match_classes(
    class_names: Sequence[str],
    outputs: int,
    label_lines: Sequence[str] | None = None,
    label_offset: int = 0,
) -> tuple[int, ...]:
    """Returns the output that stands for each class.

    With a labels file, the line that names the class; else a numeric folder name is the output
    itself; else the position in sorted order. `label_offset` is added in every case.

    Args:
        class_names: Folder names in label order.
        outputs: Number of outputs of the model.
        label_lines: Lines of a labels file, or the labels that the model carries. Defaults to
            None.
        label_offset: Added to every index. Defaults to 0.

    Raises:
        SpecError: If a class cannot be matched, or the numbers do not fit the outputs.
    """
    if label_lines is not None:
        positions = _by_label(class_names, label_lines, outputs, label_offset)
    elif all(name.isascii() and name.isdigit() for name in class_names):
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


def _by_label(
    class_names: Sequence[str], label_lines: Sequence[str], outputs: int, label_offset: int
) -> list[int]:
    lines = [line.strip() for line in label_lines]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) + label_offset != outputs:
        found = f"{len(lines)} labels for {outputs} outputs (offset {label_offset})"
        raise SpecError(
            found,
            f"{outputs - label_offset} labels, or --label-offset {outputs - len(lines)}",
            "give the labels file of this very model with --labels",
        )
    exact: dict[str, list[int]] = {}
    loose: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        exact.setdefault(line, []).append(number)
        for synonym in {_plain(line), *(_plain(part) for part in line.split(","))}:
            loose.setdefault(synonym, []).append(number)
    return [_line_of(name, exact, loose) for name in class_names]


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
