"""Reads TFLite model metadata, and puts entries into a TFLite file. Runtime layer.

The format is that of TensorFlow Lite Support, which Model Maker, TF Hub, Coral and MediaPipe write:
a `ModelMetadata` flatbuffer in a buffer that the model names TFLITE_METADATA, and the files it
speaks of in a ZIP archive behind the model
(https://ai.google.dev/edge/litert/conversion/tensorflow/metadata).
"""

import io
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import flatbuffers

from edgekit import limits
from edgekit.errors import IntegrityError
from edgekit.records import Record
from edgekit.runtimes import tflite_metadata_tables as tables
from edgekit.runtimes.base import FLATBUFFER_DAMAGE, printable
from edgekit.runtimes.tflite_file import IDENTIFIER, read_tflite

# Classes of the generated schema carry no type hints.
Table: TypeAlias = Any

METADATA_NAME = "TFLITE_METADATA"
# Slots of `Model` in schema.fbs of TensorFlow Lite, Apache License 2.0:
# https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
_VERSION_SLOT, _BUFFERS_SLOT, _METADATA_SLOT, SLOTS = 0, 4, 6, 10

# The record that ends a ZIP archive: signature, 8 bytes, directory's size and place, comment's
# length; and the signature of what stands before it in archives above 4 GiB (APPNOTE.TXT 4.3).
_ARCHIVE_END = struct.Struct("<4s8xIIH")
_ARCHIVE_END_SIGNATURE = b"PK\x05\x06"
# What zipfile raises on archives that are cut short, lie or ask for what it does not have.
_ARCHIVE_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError)
_LARGE_ARCHIVE_SIGNATURE, _LARGE_ARCHIVE_BYTES = b"PK\x06\x07", 20


class AssociatedFile(Record):
    """A file behind the model; `type` as the schema names it, `locale` such as "en" or empty."""

    name: str
    description: str
    type: str
    locale: str


class TensorMetadata(Record):
    """What the metadata say about one input or output.

    Args:
        name: Its name.
        description: What it holds, in words.
        content: Table of its content: "ImageProperties", "FeatureProperties"; empty if unknown.
        color_space: Of an image: "RGB", "GRAYSCALE" or "UNKNOWN"; empty for others.
        mean: Value `(pixel - mean) / std` per channel; empty where none is said.
        std: The same.
        minimum: Lowest value per channel; empty where none is said.
        maximum: Highest value per channel; empty where none is said.
        files: The files behind the model that belong to it.
        score_threshold: Score below which an answer does not count; None where none is said.
    """

    name: str
    description: str
    content: str
    color_space: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    files: tuple[AssociatedFile, ...]
    score_threshold: float | None = None


class Metadata(Record):
    """What a .tflite file says about itself; texts are as they stand there, not yet printable.

    Args:
        name: Of the model.
        description: What it does.
        version: Of the model.
        author: Who made it.
        licence: Its licence.
        min_parser_version: Oldest version of the schema that knows all fields.
        inputs: Of the first subgraph.
        outputs: Of the first subgraph.
        labels: Lines of the first output's first file of labels; None if it has none.
    """

    name: str
    description: str
    version: str
    author: str
    licence: str
    min_parser_version: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    labels: tuple[str, ...] | None


def read_metadata(model: bytes) -> Metadata | None:
    """Returns the metadata of any .tflite file, None if it has none.

    Args:
        model: The whole file; nothing in it is trusted.

    Raises:
        IntegrityError: If the file, its metadata or the archive behind it are damaged, or hold more
            than edgekit reads.
    """
    read_tflite(model, "the model")  # refuses what is damaged or lies outside the file
    return metadata_of(model)


def with_entries(model: bytes, entries: Mapping[str, bytes]) -> bytes:
    """Returns the model with one more buffer for each entry, named as its key.

    Offsets in a flatbuffer point forward and are relative, so the whole file can stay as it is
    behind a new root table that points into it. The same arguments make the same bytes.

    Args:
        model: A .tflite file whose own tables were checked, without an archive behind it.
        entries: Content by name.
    """
    schema = _schema()
    root = root_of(model)
    kept = model + bytes(-len(model) % tables.ALIGNMENT)
    builder = flatbuffers.Builder(0)
    builder.Bytes, builder.head, builder.minalign = bytearray(kept), 0, tables.ALIGNMENT

    def place(table: Table) -> int:
        return len(kept) - int(table._tab.Pos)  # a builder counts from the end

    buffers = [place(root.Buffers(i)) for i in range(root.BuffersLength())]
    listed = [place(root.Metadata(i)) for i in range(root.MetadataLength())]
    for name, content in entries.items():
        builder.StartVector(1, len(content), tables.ALIGNMENT)
        builder.head = int(builder.Head() - len(content))
        builder.Bytes[builder.Head() : builder.Head() + len(content)] = content
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        buffer = schema.BufferEnd(builder)
        label = builder.CreateString(name)
        schema.MetadataStart(builder)
        schema.MetadataAddName(builder, label)
        schema.MetadataAddBuffer(builder, len(buffers))
        listed.append(schema.MetadataEnd(builder))
        buffers.append(buffer)
    vectors = {
        _BUFFERS_SLOT: tables.write_offsets(builder, buffers),
        _METADATA_SLOT: tables.write_offsets(builder, listed),
    }
    for slot in range(_VERSION_SLOT + 1, SLOTS):
        field = root._tab.Offset(4 + 2 * slot)
        if slot not in vectors and field:
            vectors[slot] = len(kept) - int(root._tab.Indirect(root._tab.Pos + field))
    builder.StartObject(SLOTS)
    builder.PrependUint32Slot(_VERSION_SLOT, root.Version(), 0)
    for slot, offset in vectors.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    builder.Finish(builder.EndObject(), IDENTIFIER)
    return bytes(builder.Output())


def root_of(model: bytes) -> Table:
    """Returns the root table of a TFLite file."""
    return _schema().Model.GetRootAs(model, 0)


def _schema() -> Any:
    # Imported on use: the generated schema is large.
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def metadata_of(model: bytes) -> Metadata | None:
    """Returns the metadata of a file whose own tables were checked; see `read_metadata`."""
    with untrusted("model metadata"):
        root = root_of(model)
        index = next((i for i, name in enumerate(entry_names(root)) if name == METADATA_NAME), None)
        if index is None:
            return None
        number = root.Metadata(index).Buffer()
        buffer = root.Buffers(number) if number < root.BuffersLength() else None
        if buffer is None or not buffer.DataLength():
            msg = f"no buffer {number}"
            raise ValueError(msg)
        return _metadata(tables.read(buffer.DataAsNumpy().tobytes()), model)


def entry_names(root: Table) -> list[str]:
    """Returns what a model calls its metadata buffers."""
    names = [root.Metadata(i).Name() for i in range(root.MetadataLength())]
    return [(name or b"").decode("utf-8", "replace") for name in names]


@contextmanager
def untrusted(what: str) -> Iterator[None]:
    """Turns what readers raise on damaged bytes into an `IntegrityError`."""
    try:
        yield
    except (*FLATBUFFER_DAMAGE, *_ARCHIVE_DAMAGE) as err:
        raise IntegrityError(
            f"damaged {what} ({printable(str(err))})",
            "a complete TFLite file, its metadata of version 1, its archive uncompressed",
            "copy the file again from where it was made, or use one without metadata",
        ) from err


def _metadata(values: tables.Values, model: bytes) -> Metadata:
    graph: tables.Values = next(iter(values.get("subgraph_metadata", [])), {})
    outputs = tuple(_tensor(t) for t in graph.get("output_tensor_metadata", []))
    files = outputs[0].files if outputs else ()
    labels = next((file.name for file in files if file.type == "TENSOR_AXIS_LABELS"), None)
    return Metadata(
        name=values.get("name", ""),
        description=values.get("description", ""),
        version=values.get("version", ""),
        author=values.get("author", ""),
        licence=values.get("license", ""),
        min_parser_version=values.get("min_parser_version", ""),
        inputs=tuple(_tensor(t) for t in graph.get("input_tensor_metadata", [])),
        outputs=outputs,
        labels=None if labels is None else _lines(_file(model, labels)),
    )


def _tensor(values: tables.Values) -> TensorMetadata:
    content, properties = values.get("content", {}).get("content_properties", ("", {}))
    options = [unit.get("options", ("", {})) for unit in values.get("process_units", [])]
    normalization: tables.Values = next(
        (unit for name, unit in options if name == "NormalizationOptions"), {}
    )
    thresholding: tables.Values = next(
        (unit for name, unit in options if name == "ScoreThresholdingOptions"), {}
    )
    threshold = thresholding.get("global_score_threshold")
    stats = values.get("stats", {})
    space = _named(tables.COLOR_SPACES, properties.get("color_space", 0))
    return TensorMetadata(
        name=values.get("name", ""),
        description=values.get("description", ""),
        content=content,
        color_space=space if content == "ImageProperties" else "",
        mean=normalization.get("mean", ()),
        std=normalization.get("std", ()),
        minimum=stats.get("min", ()),
        maximum=stats.get("max", ()),
        files=tuple(
            AssociatedFile(
                name=file.get("name", ""),
                description=file.get("description", ""),
                type=_named(tables.FILE_TYPES, file.get("type", 0)),
                locale=file.get("locale", ""),
            )
            for file in values.get("associated_files", [])
        ),
        score_threshold=threshold if threshold is not None and math.isfinite(threshold) else None,
    )


def _named(names: Sequence[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"type {number}"


def _lines(content: bytes) -> tuple[str, ...]:
    """Returns the lines as MediaPipe splits them: str.splitlines knows more line ends."""
    text = content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    return tuple(text.removesuffix("\n").split("\n"))


def archive_place(model: bytes) -> tuple[int, int] | None:
    """Returns size and place of the directory of an archive that ends the file; None without."""
    if len(model) < _ARCHIVE_END.size:
        return None
    signature, size, place, comment = _ARCHIVE_END.unpack(model[-_ARCHIVE_END.size :])
    return None if signature != _ARCHIVE_END_SIGNATURE or comment else (size, place)


def _file(model: bytes, name: str) -> bytes:
    """Returns a file from the archive behind a model.

    Only archives are read whose end is the file's end: then zipfile looks nowhere else, and the
    limits hold.
    """
    archive = archive_place(model)
    if archive is None:
        msg = f"no archive with {name!r} behind the model"
        raise ValueError(msg)
    if archive[0] > limits.MODEL_DIRECTORY_BYTES:
        msg = f"an archive with a directory of {archive[0]} bytes"
        raise ValueError(msg)
    end = len(model) - _ARCHIVE_END.size
    if model[max(0, end - _LARGE_ARCHIVE_BYTES) : end].startswith(_LARGE_ARCHIVE_SIGNATURE):
        msg = "an archive in the form for more than 4 GiB"
        raise ValueError(msg)
    with zipfile.ZipFile(io.BytesIO(model)) as files:
        entry = files.getinfo(name)
        # MediaPipe refuses compressed files, too.
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            msg = f"{name!r} is compressed or encrypted"
            raise ValueError(msg)
        if entry.file_size > limits.MODEL_ARCHIVE_BYTES:
            msg = f"{name!r} of {entry.file_size} bytes"
            raise ValueError(msg)
        return files.read(entry)
