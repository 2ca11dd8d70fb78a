"""Tables of TFLite model metadata, to and from a flatbuffer. Package layer.

Names, order and types of the fields are those of `metadata_schema.fbs`, schema version 1.5.0, first
published in https://github.com/tensorflow/tflite-support, now in `mediapipe/tasks/metadata` of
https://github.com/google-ai-edge/mediapipe, Apache License 2.0. Only these numbers are taken from
it, and only of fields that matter to an image classifier. A table is a dictionary here, a member of
a union the pair of its table's name and its dictionary.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import flatbuffers

from edgekit import limits

# Values of a table by field; builders of flatbuffers carry no type hints.
Values: TypeAlias = Mapping[str, Any]
Untyped: TypeAlias = Any

IDENTIFIER = b"M001"
# `Buffer.data` of a model starts at a multiple of this (schema.fbs of TensorFlow Lite).
ALIGNMENT = 16
FILE_TYPES = (
    "UNKNOWN",
    "DESCRIPTIONS",
    "TENSOR_AXIS_LABELS",
    "TENSOR_VALUE_LABELS",
    "TENSOR_AXIS_SCORE_CALIBRATION",
    "VOCABULARY",
    "SCANN_INDEX_FILE",
)
COLOR_SPACES = ("UNKNOWN", "RGB", "GRAYSCALE")
_TABLE_BYTES = 64


@dataclass(frozen=True)
class Field:
    """Where a field of a table is and what it holds.

    Args:
        slot: Its number; a union takes this one for the member's type and the next for its value.
        kind: What it holds.
        tables: Name of the table; of a union all members, in order. Empty for other kinds.
    """

    slot: int
    kind: Literal["string", "byte", "uint", "float", "floats", "table", "tables", "union"]
    tables: tuple[str, ...] = ()


_FILES = ("AssociatedFile",)
_TENSORS = ("TensorMetadata",)
_CONTENT = ("FeatureProperties", "ImageProperties", "BoundingBoxProperties", "AudioProperties")
_OPTIONS = ("NormalizationOptions", "ScoreCalibrationOptions", "ScoreThresholdingOptions")
TABLES: dict[str, dict[str, Field]] = {
    "ModelMetadata": {
        "name": Field(0, "string"),
        "description": Field(1, "string"),
        "version": Field(2, "string"),
        "subgraph_metadata": Field(3, "tables", ("SubGraphMetadata",)),
        "author": Field(4, "string"),
        "license": Field(5, "string"),
        "min_parser_version": Field(7, "string"),
    },
    "SubGraphMetadata": {
        "input_tensor_metadata": Field(2, "tables", _TENSORS),
        "output_tensor_metadata": Field(3, "tables", _TENSORS),
    },
    "TensorMetadata": {
        "name": Field(0, "string"),
        "description": Field(1, "string"),
        "content": Field(3, "table", ("Content",)),
        "process_units": Field(4, "tables", ("ProcessUnit",)),
        "stats": Field(5, "table", ("Stats",)),
        "associated_files": Field(6, "tables", _FILES),
    },
    "Content": {"content_properties": Field(0, "union", _CONTENT)},
    "FeatureProperties": {},
    "ImageProperties": {
        "color_space": Field(0, "byte"),
        "default_size": Field(1, "table", ("ImageSize",)),
    },
    "ImageSize": {"width": Field(0, "uint"), "height": Field(1, "uint")},
    "BoundingBoxProperties": {},
    "AudioProperties": {},
    "ProcessUnit": {"options": Field(0, "union", _OPTIONS)},
    "NormalizationOptions": {"mean": Field(0, "floats"), "std": Field(1, "floats")},
    "ScoreCalibrationOptions": {},
    "ScoreThresholdingOptions": {"global_score_threshold": Field(0, "float")},
    "Stats": {"max": Field(0, "floats"), "min": Field(1, "floats")},
    "AssociatedFile": {
        "name": Field(0, "string"),
        "description": Field(1, "string"),
        "type": Field(2, "byte"),
        "locale": Field(3, "string"),
    },
}


def write(values: Values) -> bytes:
    """Returns a `ModelMetadata` flatbuffer, its length a multiple of `ALIGNMENT`.

    Args:
        values: Its fields; those that are left out are absent in the file, too.
    """
    builder = flatbuffers.Builder(0)
    builder.Prep(ALIGNMENT, 0)
    builder.Finish(_write_table(builder, "ModelMetadata", values), IDENTIFIER)
    return bytes(builder.Output())


def write_offsets(builder: Untyped, offsets: Sequence[int]) -> int:
    """Writes a vector of offsets, each counted from the file's end; returns its own."""
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _write_table(builder: Untyped, name: str, values: Values) -> int:
    # A flatbuffer is built from its end: whatever a table points to is written before it.
    fields = [(TABLES[name][key], value) for key, value in values.items()]
    made = [(field, _write_value(builder, field, value)) for field, value in fields]
    builder.StartObject(max((field.slot + 2 for field, _ in made), default=0))
    for field, value in made:
        if field.kind == "byte":
            builder.PrependInt8Slot(field.slot, value, 0)
        elif field.kind == "uint":
            builder.PrependUint32Slot(field.slot, value, 0)
        elif field.kind == "float":
            builder.PrependFloat32Slot(field.slot, value, 0.0)
        elif field.kind == "union":
            member, offset = value
            builder.PrependUint8Slot(field.slot, member, 0)
            builder.PrependUOffsetTRelativeSlot(field.slot + 1, offset, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(field.slot, value, 0)
    return int(builder.EndObject())


def _write_value(builder: Untyped, field: Field, value: Any) -> Any:
    """Returns a number as it is, a union as its member and offset, all else as its offset."""
    if field.kind == "string":
        return builder.CreateString(value)
    if field.kind == "floats":
        builder.StartVector(4, len(value), 4)
        for number in reversed(value):
            builder.PrependFloat32(number)
        return builder.EndVector()
    if field.kind == "table":
        return _write_table(builder, field.tables[0], value)
    if field.kind == "tables":
        made = [_write_table(builder, field.tables[0], item) for item in value]
        return write_offsets(builder, made)
    if field.kind == "union":
        name, members = value
        return field.tables.index(name) + 1, _write_table(builder, name, members)
    return value


def read(content: bytes) -> dict[str, Any]:
    """Returns the fields of a `ModelMetadata` flatbuffer; absent ones are left out.

    Members of a union that edgekit does not know are left out, too.

    Raises:
        ValueError: If it is none, is damaged, or holds more values than
            `limits.MODEL_METADATA_BYTES`.
    """
    if content[4:8] != IDENTIFIER:
        msg = f"identifier {content[4:8]!r} instead of {IDENTIFIER!r}"
        raise ValueError(msg)
    reader = _Reader(content)
    return reader.table("ModelMetadata", reader.target(0))


class _Reader:
    """Follows the offsets of an untrusted flatbuffer and never steps outside it."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._left_bytes = limits.MODEL_METADATA_BYTES

    def table(self, name: str, place: int) -> dict[str, Any]:
        """Returns the fields of the table at `place`."""
        self._spend(_TABLE_BYTES)
        fields = place - self._number("<i", place)
        size = self._number("<H", fields)
        found: dict[str, Any] = {}
        for key, field in TABLES[name].items():
            places = [self._field(place, fields, size, field.slot + i) for i in (0, 1)]
            value = self._value(field, places[0], places[1])
            if value is not None:
                found[key] = value
        return found

    def target(self, place: int) -> int:
        """Returns where the offset at `place` points."""
        return place + self._number("<I", place)

    def _field(self, place: int, fields: int, size: int, slot: int) -> int | None:
        """Returns where the value of a slot is; None if the table does not have it."""
        entry = 4 + 2 * slot
        if entry + 2 > size:
            return None
        offset = self._number("<H", fields + entry)
        return place + offset if offset else None

    def _value(self, field: Field, place: int | None, following: int | None) -> Any:
        if place is None:
            return None
        if field.kind == "byte":
            return self._number("<b", place)
        if field.kind == "uint":
            return self._number("<I", place)
        if field.kind == "float":
            return self._unpacked("<f", place)
        if field.kind == "union":
            member = self._number("<B", place)
            if following is None or not 0 < member <= len(field.tables):
                return None
            name = field.tables[member - 1]
            return name, self.table(name, self.target(following))
        if field.kind == "table":
            return self.table(field.tables[0], self.target(place))
        return self._vector(field, self.target(place))

    def _vector(self, field: Field, place: int) -> Any:
        count = self._number("<I", place)
        start = place + 4
        end = start + count * (1 if field.kind == "string" else 4)
        if end > len(self._content):
            msg = f"{count} entries at byte {place}"
            raise ValueError(msg)
        self._spend(end - start)
        if field.kind == "string":
            return self._content[start:end].decode("utf-8")
        if field.kind == "floats":
            return struct.unpack_from(f"<{count}f", self._content, start)
        places = range(start, end, 4)
        return [self.table(field.tables[0], self.target(position)) for position in places]

    def _number(self, form: str, place: int) -> int:
        return int(self._unpacked(form, place))

    def _unpacked(self, form: str, place: int) -> float:
        # struct would take a negative place from the end.
        if place < 0:
            msg = f"an offset to byte {place}"
            raise ValueError(msg)
        (value,) = struct.unpack_from(form, self._content, place)
        return float(value)

    def _spend(self, amount_bytes: int) -> None:
        self._left_bytes -= amount_bytes
        if self._left_bytes < 0:
            msg = f"more than {limits.MODEL_METADATA_BYTES} bytes of values"
            raise ValueError(msg)
