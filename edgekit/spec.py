"""Reads TOML into strict, frozen models and names everything that is wrong at once.

Bottom layer, above `errors` only: `recipe` and `target` are made of it.
"""

import datetime
import difflib
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from edgekit.errors import SpecError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32

Key = tuple[str, ...]
Schema = Mapping[str, Any]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"[ \t]*({_PART}(?:[ \t]*\.[ \t]*{_PART})*)[ \t]*"
_HEADER = re.compile(rf"[ \t]*\[(\[?){_DOTTED}\]")
_ASSIGNMENT = re.compile(rf"{_DOTTED}=")
# tomllib needs quadratic time for a key of many parts, so long ones are refused before it runs.
_TOO_DEEP = re.compile(
    r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+)"""
    rf"{{{MAX_DEPTH}}}"
)


class Spec(BaseModel):
    """Base of everything a user writes: immutable, no unknown keys, no silent conversions.

    An integer is accepted where a real number is asked; NaN and infinity never are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Spec)


class _Problem(NamedTuple):
    key: Key
    received: str
    accepted: str
    remedy: str


def conflict(received: str, accepted: str) -> PydanticCustomError:
    """Returns the error that a model validator raises when fields contradict each other.

    Args:
        received: The fields and values that do not go together.
        accepted: Which combinations are accepted.
    """
    return PydanticCustomError("conflict", "conflict", {"received": received, "accepted": accepted})


def load(path: Path, model: type[S]) -> S:
    """Returns the spec that a TOML file holds.

    Args:
        path: A UTF-8 TOML file of at most `MAX_BYTES` bytes; a byte order mark is ignored.
        model: The spec to read it into.

    Raises:
        SpecError: If the file cannot be read, is not TOML or does not fit `model`; the message
            names every problem with its key, its line and what is accepted there.
    """
    return parse(_read(path), model, str(path))


def parse(text: str, model: type[S], origin: str) -> S:
    """Returns the spec that TOML text holds.

    Args:
        text: TOML of at most `MAX_BYTES` characters.
        model: The spec to read it into.
        origin: Where the text came from, for messages.

    Raises:
        SpecError: If the text is not TOML or does not fit `model`.
    """
    return build(_tables(text, origin), model, origin, text)


def build(values: Mapping[str, object], model: type[S], origin: str, text: str = "") -> S:
    """Returns the spec made of plain values, checked as strictly as a file.

    Args:
        values: Field values by name; nested mappings for nested specs.
        model: The spec to make.
        origin: Where the values came from, for messages.
        text: TOML source of the values, to find line numbers in. Defaults to none.

    Raises:
        SpecError: If the values do not fit `model`; lists all problems.
    """
    try:
        return model.model_validate(values)
    except ValidationError as err:
        schema = model.model_json_schema()
        found: dict[tuple[Key, bool], _Problem] = {}
        for error in err.errors(include_url=False, include_input=False):
            problem = _problem(error, values, schema)
            # A union reports one error per member; the first stands for the field.
            found.setdefault((problem.key, error["type"] == "conflict"), problem)
        raise _refusal(list(found.values()), origin, text) from err


def render(spec: Spec) -> str:
    """Returns TOML that reads back as `spec`, each key below a comment made from its field.

    Fields that are None are written as a commented example.

    Raises:
        SpecError: If a text, such as a path, is not valid Unicode and so cannot stand in TOML.
    """
    schema = type(spec).model_json_schema()
    return "\n".join(_rendered(spec, schema, schema, ())).strip() + "\n"


def _read(path: Path) -> str:
    try:
        if not path.exists():
            received = f"{path}: no such file"
            raise SpecError(received, "a TOML file", "check the path")
        if not path.is_file():
            received = f"{path}: " + ("a directory" if path.is_dir() else "not a regular file")
            raise SpecError(received, "a TOML file", "give the path of the file itself")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as err:
        received = f"{path}: {err.strerror}"
        raise SpecError(received, "a readable file", "check its rights") from err
    _check_size(len(raw), str(path))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = raw.count(b"\n", 0, err.start) + 1
        received = f"{path}, line {line}: byte 0x{raw[err.start]:02x} is not UTF-8"
        raise SpecError(received, "UTF-8 text", "save the file as UTF-8") from err


def _check_size(size: int, origin: str) -> None:
    if size > MAX_BYTES:
        received = f"{origin}: more than {MAX_BYTES} bytes"
        expected = f"a file of at most {MAX_BYTES} bytes"
        raise SpecError(received, expected, "check that this is the file you meant")


def _tables(text: str, origin: str) -> dict[str, Any]:
    _check_size(len(text), origin)
    if deep := _TOO_DEEP.search(text):
        where = f"{origin}, line {text.count(chr(10), 0, deep.start()) + 1}"
        raise _too_deep(where)
    try:
        return tomllib.loads(text)
    except RecursionError as err:
        raise _too_deep(origin) from err
    except tomllib.TOMLDecodeError as err:
        raise _syntax_error(str(err), text, origin) from err
    except ValueError as err:  # tomllib passes on int()'s refusal of very long numbers
        received = f"{origin}: a number with thousands of digits"
        raise SpecError(received, "numbers of ordinary length", "correct the number") from err


def _too_deep(where: str) -> SpecError:
    return SpecError(
        f"{where}: tables, lists or keys nested too deeply",
        f"at most {MAX_DEPTH} levels",
        "remove the nesting",
    )


def _syntax_error(message: str, text: str, origin: str) -> SpecError:
    reason, _, at = message.partition(" (at ")
    where = at.rstrip(")")
    last = text.rstrip().count("\n") + 1
    line = int(where.split()[1].rstrip(",")) if where.startswith("line") else last
    if where == "end of document":
        where = f"line {line}, {where}"
    if reason.startswith(("Cannot overwrite", "Cannot declare", "Duplicate")):
        for key, lines in _positions(text).items():
            if line in lines[1:]:
                received = f"{origin}, line {line}: {_dotted(key)} is a duplicate key"
                received += f", first set on line {lines[0]}"
                return SpecError(received, "each key once", "remove one of the two lines")
        reason = f"duplicate key ({reason})"
    return SpecError(
        f"{origin}, {where}: {reason}", "valid TOML (https://toml.io)", "correct that line"
    )


def _positions(text: str) -> dict[Key, list[int]]:
    """Returns the lines, from 1, on which each key or table is written.

    Good enough for messages: keys inside inline tables are not found.
    """
    table: Key = ()
    found: dict[Key, list[int]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER.match(line):
            table = _split(header[2])
            if not header[1]:
                found.setdefault(table, []).append(number)
        elif assignment := _ASSIGNMENT.match(line):
            found.setdefault((*table, *_split(assignment[1])), []).append(number)
    return found


def _split(dotted: str) -> Key:
    return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))


def _problem(error: ErrorDetails, values: Mapping[str, object], schema: Schema) -> _Problem:
    location = tuple(str(part) for part in error["loc"])
    if error["type"] == "conflict":
        context = error["ctx"]
        return _Problem(location, context["received"], context["accepted"], "change one of them")
    if error["type"] == "extra_forbidden":
        return _unknown(location, schema)
    key, node, required = _find(location, schema)
    accepted = _accepted(node, schema) + _default(node, required)
    if error["type"] == "missing":
        return _Problem(key, "nothing (the key is missing)", accepted, "add it")
    value: Any = values
    for part in key:
        value = value[part] if isinstance(value, Mapping) else getattr(value, part, value)
    remedy = "correct the value"
    if key == ("schema_version",):
        remedy = "it was written for another version of edgekit: update edgekit"
    return _Problem(key, f"received {_shown(value)}", accepted, remedy)


def _unknown(location: Key, schema: Schema) -> _Problem:
    _, table, _ = _find(location[:-1], schema)
    name = location[-1]
    valid = list(table.get("properties", {}))
    accepted = "one of " + ", ".join(valid)
    homes = [".".join(path) for path in _tables_with(name, schema, schema, ())]
    if homes:
        remedy = f"move it to [{homes[0]}]" if homes[0] else "move it to the top, above all tables"
    elif near := difflib.get_close_matches(name.lower(), valid, n=1, cutoff=0.5):
        remedy = f"did you mean {near[0]}?"
    else:
        remedy = "remove it"
    return _Problem(location, "unknown key", accepted, remedy)


def _resolved(node: Schema, schema: Schema) -> Schema:
    """Returns the node with its reference, if any, replaced by what it refers to."""
    if "$ref" not in node:
        return node
    target: Schema = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return {**target, **node}


def _find(location: Key, schema: Schema) -> tuple[Key, Schema, bool]:
    """Returns the key of a field, its schema and whether it is required.

    A location goes on below its field when the field is a union or a list; that part is dropped.
    """
    node = schema
    required = True
    for depth, part in enumerate(location):
        if part not in node.get("properties", {}):
            return location[:depth], node, required
        required = part in node.get("required", ())
        node = _resolved(node["properties"][part], schema)
    return location, node, required


def _tables_with(name: str, node: Schema, schema: Schema, path: Key) -> Iterator[Key]:
    for key, child in node.get("properties", {}).items():
        if key == name:
            yield path
        yield from _tables_with(name, _resolved(child, schema), schema, (*path, key))


def _accepted(node: Schema, schema: Schema) -> str:
    """Returns in words which values a field takes: type, range or choices."""
    node = _resolved(node, schema)
    if "x-accepted" in node:
        return str(node["x-accepted"])
    if "anyOf" in node:
        return " or ".join(_accepted(n, schema) for n in node["anyOf"] if n.get("type") != "null")
    if "const" in node:
        return _toml(node["const"])
    if "enum" in node:
        return "one of " + ", ".join(_toml(value) for value in node["enum"])
    if node["type"] == "object":
        return "a table with the keys " + ", ".join(node.get("properties", {}))
    if node["type"] == "array":
        least = "at least one item" if node.get("minItems") else "any number of items"
        return f"a list of {least}, each {_accepted(node['items'], schema)}"
    if node["type"] == "string":
        return _accepted_text(node)
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    return words[node["type"]] + _range(node)


def _accepted_text(node: Schema) -> str:
    if node.get("format") == "path":
        return "a path"
    return "text" + (" that is not empty" if node.get("minLength") else "")


def _range(node: Schema) -> str:
    if "minimum" in node and "maximum" in node:
        return f" from {node['minimum']} to {node['maximum']}"
    names = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = [f"{word} {node[name]}" for name, word in names.items() if name in node]
    return " " + " and ".join(limits) if limits else ""


def _default(node: Schema, required: bool) -> str:
    if required:
        return " (required)"
    if node.get("default") is None:
        return " (left out by default)"
    if isinstance(node["default"], Mapping):
        return ""
    return f" (default {_toml(node['default'])})"


def _shown(value: object, nested: bool = False) -> str:
    """Returns a received value in words that are short and safe to print."""
    if isinstance(value, Mapping):
        return f"a table of {len(value)} keys"
    if isinstance(value, list | tuple):
        if nested or len(value) > 5:
            return f"a list of {len(value)} items"
        return "[" + ", ".join(_shown(item, nested=True) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {textwrap.shorten(ascii(value[:100]), 80)}"
    if isinstance(value, datetime.date | datetime.time):
        return f"the date {value.isoformat()}"
    # Python refuses to print integers of thousands of digits.
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number beyond 64 bits"
    return str(value)


def _dotted(key: Key) -> str:
    bare = re.compile(r"[A-Za-z0-9_-]+")
    return ".".join(part if bare.fullmatch(part) else ascii(part[:60]) for part in key)


def _refusal(problems: list[_Problem], origin: str, text: str) -> SpecError:
    """Returns one error for all problems, one line each in every part of the message."""
    lines = _positions(text)

    def at(key: Key) -> str:
        for length in range(len(key), 0, -1):
            if key[:length] in lines:
                return f", line {lines[key[:length]][0]}"
        return ""

    names = [_dotted(problem.key) or "the file as a whole" for problem in problems]
    received = "\n".join(
        f"{origin}{at(problem.key)}: {name}: {problem.received}"
        for name, problem in zip(names, problems, strict=True)
    )
    separator = "\n" + " " * len("  expected: ")
    pairs = list(zip(names, problems, strict=True))
    expected = separator.join(f"{name}: {problem.accepted}" for name, problem in pairs)
    remedy = separator.join(f"{name}: {problem.remedy}" for name, problem in pairs)
    return SpecError(received, expected, remedy)


def _rendered(spec: Spec, node: Schema, schema: Schema, path: Key) -> Iterator[str]:
    """Yields the lines of one table: its own keys first, then its sub-tables."""
    tables: list[tuple[str, Spec, Schema]] = []
    for name, child in node["properties"].items():
        value = getattr(spec, name)
        field = _resolved(child, schema)
        if isinstance(value, Spec):
            tables.append((name, value, field))
            continue
        required = name in node.get("required", ())
        about = f"{_accepted(field, schema)}{_default(field, required)}"
        yield from _comment(f"{field.get('description', '')} Takes {about}.")
        if value is None:
            yield f"# {name} = {_toml(field.get('examples', ['...'])[0])}"
        else:
            yield f"{name} = {_toml(value)}"
        yield ""
    for name, table, field in tables:
        yield from _comment(field.get("description", ""))
        yield f"[{'.'.join((*path, name))}]"
        yield ""
        yield from _rendered(table, field, schema, (*path, name))


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 98, initial_indent="# ", subsequent_indent="# ")


def _toml(value: object) -> str:
    """Returns a value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str | Path):
        text = str(value)
        if not _is_unicode(text):
            received = f"the text {text!a}, which is not valid Unicode"
            raise SpecError(received, "text that UTF-8 can hold", "rename the file or folder")
        # JSON strings are TOML strings but for the one control character JSON leaves alone.
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
