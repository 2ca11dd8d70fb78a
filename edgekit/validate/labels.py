"""Reads files of labels, as edgekit and other tools write them. Stage layer.

What comes out is one text per output, in order; `edgekit.validate.classes` finds folders in it.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgekit import limits
from edgekit.errors import IntegrityError, SpecError
from edgekit.runtimes.base import LABELS_KEY, printable

_TEXTS = TypeAdapter(tuple[str, ...])
_EXPECTED = "one class per line, or the labels file of a known tool"
_NAME_COLUMNS = ("name", "label", "class", "class_name", "display_name", "labels", "classes")
_NUMBER_COLUMNS = ("id", "index", "class_id", "class_index", "label_id", "idx", "")
_NUMBERED = re.compile(r"\s*(\d{1,9})(?:\s*[:,;\t]\s*|\s+)(\S.*?)\s*")
# The first of the ImageNet labels of TF-Slim, and of label maps of its object detection.
_BACKGROUND = ("background", "dummy", "???", "__background__", "_background_")
_YAML_NAMES = re.compile(r"^names[ \t]*:[ \t]*(.*)$", re.MULTILINE)
_PBTXT_ITEM = re.compile(r"\bitem\s*\{([^{}]*)\}")
_PBTXT_FIELD = re.compile(r"\b(id|name|display_name)\s*:\s*(?:\"([^\"]*)\"|'([^']*)'|(\d{1,9}))")


def stored_labels(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Returns the labels that edgekit itself wrote into a file, if there are any.

    Raises:
        IntegrityError: If the entry is no list of texts.
    """
    if LABELS_KEY not in metadata:
        return None
    try:
        return _TEXTS.validate_json(metadata[LABELS_KEY], strict=True)
    except ValidationError as err:
        found = f"metadata {LABELS_KEY!r} that is not a list of labels"
        remedy = "give the labels with --labels, or export the model again"
        raise IntegrityError(found, "a JSON list of texts", remedy) from err


def read_labels(path: Path, content: bytes) -> tuple[tuple[str, ...], str]:
    """Returns the labels of a file in the order of the outputs, and what the file is, in words.

    Known are, besides one label per line: lines numbered from 0 or 1 (Teachable Machine, Coral),
    `class_indices` of Keras and other JSON, `names:` of Ultralytics' YAML, CSV with a header (TF
    Hub) and label maps of TensorFlow's object detection. A byte-order mark, UTF-16 with one, and
    any line ends are taken as they come.

    Args:
        path: The file's name, for its suffix and for messages.
        content: What it holds.

    Raises:
        SpecError: If it is no text, or claims to be of a known kind and is broken.
    """
    text = _decoded(path, content)
    suffix = path.suffix.lower()
    if text.lstrip()[:1] in ("{", "[") or suffix == ".json":
        return _from_json(path, text)
    if suffix in (".yaml", ".yml"):
        return _from_yaml(path, text), "the names of a YAML file"
    if _PBTXT_ITEM.search(text):
        return _from_items(path, text), "a label map of items"
    lines = _lines(text)
    table = _from_table(path, lines)
    if table is not None:
        return table, "a table with a header"
    numbered = _from_numbered(lines)
    if numbered is not None:
        return numbered, "numbered lines"
    return tuple(lines), ""


def _decoded(path: Path, content: bytes) -> str:
    utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"--labels {path}: {error}",
            "a text file in UTF-8",
            "save it as UTF-8, one class per line",
        ) from error
    if "\0" in text:
        raise SpecError(
            f"--labels {path}: a file with zero bytes, no text",
            "a text file in UTF-8",
            "give the labels file, not the model or an archive",
        )
    return text


def _lines(text: str) -> list[str]:
    """Returns the lines without white space around them; empty ones at the end are left out."""
    # str.splitlines knows more line ends, and labels may hold them.
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _from_json(path: Path, text: str) -> tuple[tuple[str, ...], str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"JSON that ends early or is broken ({error})") from error
    if isinstance(found, dict):
        # As config.json of Hugging Face's models, and as metadata of other exporters.
        for key in ("id2label", "names", "labels", "class_indices", "classes"):
            if isinstance(found.get(key), (dict, list)):
                found = found[key]
                break
    if isinstance(found, list):
        rows = [_of_entry(entry) for entry in found]
        if rows and all(number is not None and name is not None for number, name in rows):
            pairs = [(int(n), str(t)) for n, t in rows if n is not None]
            return _placed(path, pairs), "a JSON list of numbered labels"
        if rows and all(name is not None for _, name in rows):
            return tuple(str(name) for _, name in rows), "a JSON list"
        raise _broken(path, "a JSON list that does not hold texts")
    if isinstance(found, dict) and found:
        if all(_is_number(value) for value in found.values()):
            pairs = [(int(value), key) for key, value in found.items()]
            return _placed(path, pairs), "class indices in JSON (name: index)"
        if all(_is_number(key) for key in found):
            named = [(int(key), _name_of(value)) for key, value in found.items()]
            if all(name is not None for _, name in named):
                return _placed(path, [(n, str(t)) for n, t in named]), "JSON (index: name)"
    raise _broken(path, "JSON that is neither names by index nor indices by name")


def _of_entry(entry: Any) -> tuple[int | None, str | None]:
    """Returns number and name of an entry of a list, which may be a text alone."""
    if not isinstance(entry, dict):
        return None, _name_of(entry)
    keys = {str(key).lower(): value for key, value in entry.items()}
    name = next((keys[k] for k in _NAME_COLUMNS if isinstance(keys.get(k), str)), None)
    number = next((keys[k] for k in _NUMBER_COLUMNS if _is_number(keys.get(k))), None)
    return (None if number is None else int(number)), name


def _name_of(value: Any) -> str | None:
    """Returns a text; of a list, as in Keras' imagenet_class_index.json, all as synonyms."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return None


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdigit() and len(value) < 10
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9


def _from_yaml(path: Path, text: str) -> tuple[str, ...]:
    """Reads `names:` as Ultralytics writes it: a list or a mapping, in one line or in many."""
    head = _YAML_NAMES.search(text)
    if head is None:
        raise _broken(path, "a YAML file without `names:`")
    inline = head[1].partition(" #")[0].strip()
    if inline:
        if inline[0] + inline[-1] not in ("[]", "{}"):
            raise _broken(path, "`names:` that is neither a list nor a mapping in one line")
        quote = "'" if "'" in inline else '"'
        parts = next(csv.reader([inline[1:-1]], quotechar=quote, skipinitialspace=True), [])
        entries = [part for part in parts if part.strip()]
    else:
        entries = []
        for line in _lines(text[head.end() :].lstrip("\r\n")):
            bare = line.partition(" #")[0].strip()
            if bare.startswith("- ") or re.match(r"['\"]?\d+['\"]?\s*:", bare):
                entries.append(bare)
            elif bare and not bare.startswith("#"):
                break
    rows = [re.fullmatch(r"['\"]?(\d{1,9})['\"]?\s*:\s*(.+)", entry.strip()) for entry in entries]
    if entries and all(rows):
        return _placed(path, [(int(row[1]), _unquoted(row[2])) for row in rows if row])
    if not entries:
        raise _broken(path, "`names:` without a name")
    return tuple(_unquoted(entry.removeprefix("- ")) for entry in entries)


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _from_items(path: Path, text: str) -> tuple[str, ...]:
    """Reads `item { id: 1 name: 'x' }`; ids start at 1, since 0 is the background."""
    pairs = []
    for item in _PBTXT_ITEM.findall(text):
        fields = {key: double or single or number
                  for key, double, single, number in _PBTXT_FIELD.findall(item)}  # fmt: skip
        name = fields.get("display_name") or fields.get("name")
        if name is None or not _is_number(fields.get("id", "")):
            raise _broken(path, "an item without an id or a name")
        pairs.append((int(fields["id"]), name))
    return _placed(path, pairs)


def _from_table(path: Path, lines: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the column of names where the first line is a header; None where it is none."""
    if len(lines) < 2:
        return None
    dialect = next((mark for mark in (",", ";", "\t") if mark in lines[0]), None)
    if dialect is None:
        return None
    rows = list(csv.reader(lines, delimiter=dialect, skipinitialspace=True))
    header = [column.strip().lower() for column in rows[0]]
    names = [header.index(c) for c in _NAME_COLUMNS[::-1] if c in header]
    numbers = [header.index(column) for column in _NUMBER_COLUMNS if column in header]
    if not names or not (numbers or path.suffix.lower() in (".csv", ".tsv")):
        return None
    # yamnet_class_map.csv has "index", "mid" and "display_name".
    name = header.index("display_name") if "display_name" in header else names[-1]
    body = [row for row in rows[1:] if any(cell.strip() for cell in row)]
    if any(len(row) <= max(name, *numbers[:1], 0) for row in body):
        raise _broken(path, "a table with rows shorter than its header")
    if not numbers:
        return tuple(row[name].strip() for row in body)
    if not all(_is_number(row[numbers[0]].strip()) for row in body):
        return None
    return _placed(path, [(int(row[numbers[0]]), row[name].strip()) for row in body])


def _from_numbered(lines: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the names behind numbers that count the lines from 0 or from 1; else None."""
    rows = [_NUMBERED.fullmatch(line) for line in lines]
    if not rows or not all(rows):
        return None
    numbers = [int(row[1]) for row in rows if row]
    if numbers not in (list(range(len(rows))), list(range(1, len(rows) + 1))):
        return None
    return tuple(row[2] for row in rows if row)


def _placed(path: Path, pairs: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    """Returns names by number, from 0 or from 1.

    Raises:
        SpecError: If a number is missing or there twice.
    """
    by_number = dict(pairs)
    numbers = sorted(by_number)
    first = numbers[0] if numbers else 0
    twice = len(by_number) < len(pairs)
    if twice or numbers != list(range(first, first + len(pairs))):
        expected = set(range(first, first + min(len(pairs), limits.MODEL_CLASSES)))
        missing = sorted(expected - set(numbers))
        raise _broken(
            path,
            f"{len(pairs)} names with the numbers {', '.join(map(str, numbers[:5]))}..., "
            + ("one of them twice" if twice else f"of which {missing[0]} is missing"),
        )
    if first > 1:
        raise _broken(path, f"names numbered from {first}")
    return tuple(by_number[number] for number in numbers)


def _broken(path: Path, what: str) -> SpecError:
    return SpecError(
        f"--labels {path}: {printable(what)}",
        _EXPECTED,
        "write the classes into a text file, one per line, in the order of the outputs",
    )


def without_background(labels: Sequence[str], outputs: int) -> tuple[str, ...] | None:
    """Returns labels without a first line for a background that the model does not have.

    Args:
        labels: In the order of the outputs.
        outputs: Number of outputs.

    Returns:
        None unless there is one label too many and the first is called "background" or "dummy".
    """
    if len(labels) == outputs + 1 and labels[0].strip().casefold() in _BACKGROUND:
        return tuple(labels[1:])
    return None
