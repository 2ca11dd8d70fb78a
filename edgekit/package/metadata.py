"""TFLite model metadata: how apps learn labels and normalization from the file itself.

Package layer. The format is that of TensorFlow Lite Support, which MediaPipe's tasks read: a
`ModelMetadata` flatbuffer in a buffer that the model names TFLITE_METADATA, and the files it speaks
of in a ZIP archive behind the model (https://ai.google.dev/edge/litert/conversion/tensorflow/metadata).
"""

import io
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import flatbuffers
import numpy as np

from edgekit import limits
from edgekit.errors import IntegrityError, SpecError
from edgekit.package import metadata_tables as tables
from edgekit.records import Preprocess, Record, TensorInfo, input_codes
from edgekit.runtimes.base import FLATBUFFER_DAMAGE, ModelFacts, classifier_io, printable
from edgekit.runtimes.inspect import inspect_content, inspect_model, model_format, read_model

# Classes of the generated schema carry no type hints.
Table: TypeAlias = Any

METADATA_NAME = "TFLITE_METADATA"
LABELS_FILE = "labels.txt"
# The first version of the schema has all fields that are written here.
MIN_PARSER_VERSION = "1.0.0"
# Slots of `Model` in schema.fbs of TensorFlow Lite, Apache License 2.0:
# https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
_VERSION_SLOT, _BUFFERS_SLOT, _METADATA_SLOT, _SLOTS = 0, 4, 6, 10
_WHERE = "the model"

# The record that ends a ZIP archive: signature, 8 bytes, directory's size and place, comment's
# length; and the signature of what stands before it in archives above 4 GiB (APPNOTE.TXT 4.3).
_ARCHIVE_END = struct.Struct("<4s8xIIH")
_ARCHIVE_END_SIGNATURE = b"PK\x05\x06"
# What zipfile raises on archives that are cut short, lie or ask for what it does not have.
_ARCHIVE_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError)
_LARGE_ARCHIVE_SIGNATURE, _LARGE_ARCHIVE_BYTES = b"PK\x06\x07", 20

# As the package mediapipe 1.2.2 describes itself; see https://goo.gle/mediapipe-privacy.
METRICS = (
    "MediaPipe Tasks send metrics about their use in the app, no pictures, to Google; whoever "
    "ships the app is responsible for its users' informed consent where the law asks for it."
)
LOGITS = (
    "Scores are passed through as they are: this classifier ends in logits, so they go below 0 and "
    "above 1 and are no probabilities; the order of the classes is right, and a score threshold "
    "counts in logits. An app that shows probabilities takes the softmax of all scores."
)


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


def write_metadata(
    model: bytes,
    *,
    name: str,
    description: str,
    version: str,
    author: str,
    licence: str,
    preprocess: Preprocess,
    class_names: Sequence[str],
) -> bytes:
    """Returns the model with metadata and, behind it, its labels.

    The given file stays in the new one byte for byte: only a new root is put in front of it, and
    the archive behind it. The same arguments make the same bytes.

    Args:
        model: A .tflite image classifier without metadata.
        name: For people.
        description: What the model does.
        version: Of the model.
        author: Who made it; may be empty.
        licence: SPDX identifier.
        preprocess: The contract; becomes mean and standard deviation: a pixel p becomes
            `(p - mean) / std`.
        class_names: Names of the classes in output order; each a line that is not empty.

    Raises:
        IntegrityError: If the model is damaged or no image classifier.
        SpecError: If it has metadata or an archive already or keeps tensors behind the flatbuffer,
            the names do not fit it, or the metadata cannot say the contract.
    """
    facts = inspect_content(model, "tflite", _WHERE)
    model_input, output = classifier_io(facts, _WHERE)
    with _untrusted("TFLite file"):
        _check_unwritten(model)
    _check_class_names(class_names, output.shape[-1])
    values = {
        "name": name,
        "description": description,
        "version": version,
        "subgraph_metadata": [
            {
                "input_tensor_metadata": [_input(model_input, preprocess)],
                "output_tensor_metadata": [_output(facts)],
            }
        ],
        "author": author,
        "license": licence,
        "min_parser_version": MIN_PARSER_VERSION,
    }
    try:
        labels = "".join(f"{line}\n" for line in class_names).encode()
        written = tables.write(values)
    except UnicodeEncodeError as err:
        found = f"text for the metadata that is not Unicode ({err.reason})"
        raise SpecError(found, "text that UTF-8 can hold", "correct the text") from err
    with _untrusted("TFLite file"):
        return _with_file(_with_metadata(model, written), LABELS_FILE, labels)


def read_metadata(model: bytes) -> Metadata | None:
    """Returns the metadata of any .tflite file, None if it has none.

    Args:
        model: The whole file; nothing in it is trusted.

    Raises:
        IntegrityError: If the file, its metadata or the archive behind it are damaged, or hold more
            than edgekit reads.
    """
    inspect_content(model, "tflite", _WHERE)  # refuses what is damaged or lies outside the file
    return _read(model)


def mediapipe_problem(model: bytes, preprocess: Preprocess) -> str | None:
    """Says why MediaPipe's ImageClassifier refuses a file or would answer it wrong.

    The conditions are those of MediaPipe 1.2.2: `image_tensor_specs.cc`,
    `image_preprocessing_graph.cc`, `classification_postprocessing_graph.cc` and
    `tensors_to_classification_calculator.cc` in https://github.com/google-ai-edge/mediapipe.

    Args:
        model: The .tflite file as an app would load it, with its metadata.
        preprocess: What the network expects.

    Returns:
        The reason in words, or None if there is none. See also `mediapipe_notes`.

    Raises:
        IntegrityError: As `read_metadata`, or if the file is no image classifier.
    """
    facts = inspect_content(model, "tflite", _WHERE)
    model_input, output = classifier_io(facts, _WHERE)
    metadata = _read(model)
    if _schema().Model.GetRootAs(model, 0).SubgraphsLength() != 1:
        return "MediaPipe takes models with one subgraph only"
    return (
        _input_problem(model_input, preprocess, metadata)
        or _pixel_problem(model_input, preprocess, metadata)
        or _output_problem(output, metadata)
    )


def mediapipe_notes(preprocess: Preprocess, operators: Mapping[str, int]) -> tuple[str, ...]:
    """Says what an app must know although MediaPipe's ImageClassifier takes the file.

    Args:
        preprocess: What the network expects.
        operators: Uses of each operator, as in `ModelFacts.operators`.
    """
    notes = [
        "MediaPipe resizes by its own bilinear filter without antialiasing, so a large picture may "
        "get another answer than in edgekit; one that the app has resized to "
        f"{preprocess.width_px} x {preprocess.height_px} pixels gets the same. Pictures given as "
        "pixels must be upright: their EXIF orientation is lost by then.",
        METRICS,
    ]
    if preprocess.crop == "center":
        notes.append(
            "MediaPipe stretches the whole picture; give the centred part that has the input's "
            "aspect ratio as region of interest."
        )
    if not _has_probabilities(operators):
        notes.append(LOGITS)
    return tuple(notes)


def describe(path: Path) -> dict[str, Any]:
    """Returns what a .tflite, .onnx or .ort file says about itself, all texts safe to print.

    Args:
        path: The file; its suffix says the format.

    Returns:
        "format" and "metadata": for .tflite the fields of `Metadata` or None, for the others the
        text entries by key.

    Raises:
        SpecError: If the file cannot be read or its suffix is none of the three.
        IntegrityError: If it is damaged, or holds more metadata than edgekit reads.
    """
    file_format = model_format(path)
    if file_format != "tflite":
        return {"format": file_format, "metadata": _printable(inspect_model(path).metadata)}
    found = read_metadata(read_model(path))
    return {
        "format": file_format,
        "metadata": None if found is None else _printable(found.model_dump()),
    }


def _printable(value: Any) -> Any:
    """Returns the value with every character that could steer a terminal escaped."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_printable(item) for item in value]
    return value


def _schema() -> Any:
    # Imported on use: the generated schema is large.
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def _check_unwritten(model: bytes) -> None:
    """Refuses a model to which metadata cannot be added; see `write_metadata`."""
    table = _schema().Model.GetRootAs(model, 0)
    remedy = "give the file as it was exported"
    if METADATA_NAME in _names(table):
        raise SpecError("a model that has metadata already", "a model without", remedy)
    if _archive(model) is not None:
        raise SpecError("a model with a ZIP archive behind it", "the model alone", remedy)
    if any(table.Buffers(i).Offset() > 1 for i in range(table.BuffersLength())):
        found = "a model that keeps tensors behind its flatbuffer, at fixed places in the file"
        raise SpecError(found, "a model below 2 GiB with its tensors inside", remedy)
    (back,) = struct.unpack_from("<i", model, table._tab.Pos)
    (size,) = struct.unpack_from("<H", model, table._tab.Pos - back)
    if any(table._tab.Offset(entry) for entry in range(4 + 2 * _SLOTS, size, 2)):
        found = "a model with fields that this edgekit does not know"
        raise SpecError(found, "a file of the TFLite schema 3 as LiteRT 2.3 knows it", remedy)


def _check_class_names(class_names: Sequence[str], classes: int) -> None:
    if len(class_names) != classes:
        raise SpecError(
            f"{len(class_names)} class names for a model with {classes} outputs",
            "one name for every output",
            "give the names that the model was exported with",
        )
    # Line ends, as MediaPipe's util/str_util.cc splits a file of labels.
    bad = next((c for c in class_names if not c or "\n" in c or "\r" in c), None)
    if bad is not None:
        raise SpecError(
            f"class name {bad!r}", "one line that is not empty", "rename the class's folder"
        )


def normalization_of(preprocess: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation: `p * scale + offset = (p - mean) / std`."""
    if 0 in preprocess.scale:
        raise SpecError(
            f"preprocessing with scale {preprocess.scale}",
            "a scale other than 0 for every channel",
            "correct the preprocessing",
        )
    pairs = list(zip(preprocess.scale, preprocess.offset, strict=True))
    mean = tuple(0.0 - offset / scale for scale, offset in pairs)
    return mean, tuple(1 / scale for scale, _ in pairs)


def _input(info: TensorInfo, preprocess: Preprocess) -> dict[str, Any]:
    mean, std = normalization_of(preprocess)
    codes = input_codes(preprocess, info.dtype, info.scale, info.zero_point).astype(np.float64)
    order = preprocess.channels.upper()
    # Quantized inputs share the normalization of the float model, as the schema has it.
    then = "" if info.dtype == "float32" else ", quantized as the tensor says"
    height_px, width_px = info.shape[1:3]
    # The schema has no name for BGR, and MediaPipe refuses "UNKNOWN".
    color_space = tables.COLOR_SPACES.index(order) if order == "RGB" else 0
    return {
        "name": "image",
        "description": f"{order} picture of {width_px} x {height_px} pixels: "
        f"(pixel - mean) / std{then}",
        "content": {
            "content_properties": (
                "ImageProperties",
                {
                    "color_space": color_space,
                    "default_size": {"width": width_px, "height": height_px},
                },
            )
        },
        "process_units": [{"options": ("NormalizationOptions", {"mean": mean, "std": std})}],
        "stats": {"max": codes.max(axis=0).tolist(), "min": codes.min(axis=0).tolist()},
    }


def _output(facts: ModelFacts) -> dict[str, Any]:
    kind = "score" if _has_probabilities(facts.operators) else "logit (no probability)"
    return {
        "name": "scores",
        "description": f"One {kind} per class, in the order of {LABELS_FILE}",
        "content": {"content_properties": ("FeatureProperties", {})},
        "associated_files": [
            {
                "name": LABELS_FILE,
                "description": "Name of each class, one a line",
                "type": tables.FILE_TYPES.index("TENSOR_AXIS_LABELS"),
            }
        ],
    }


def _has_probabilities(operators: Mapping[str, int]) -> bool:
    return "SOFTMAX" in operators or "LOGISTIC" in operators


def _with_metadata(model: bytes, metadata: bytes) -> bytes:
    """Returns the model with one more buffer, named `METADATA_NAME`.

    Offsets in a flatbuffer point forward and are relative, so the whole file can stay as it is
    behind a new root table that points into it.
    """
    schema = _schema()
    root = schema.Model.GetRootAs(model, 0)
    kept = model + bytes(-len(model) % tables.ALIGNMENT)
    builder = flatbuffers.Builder(0)
    builder.Bytes, builder.head, builder.minalign = bytearray(kept), 0, tables.ALIGNMENT

    def place(table: Table) -> int:
        return len(kept) - int(table._tab.Pos)  # a builder counts from the end

    data = builder.CreateByteVector(metadata)  # aligned: both lengths are multiples of 16
    schema.BufferStart(builder)
    schema.BufferAddData(builder, data)
    buffer = schema.BufferEnd(builder)
    label = builder.CreateString(METADATA_NAME)
    schema.MetadataStart(builder)
    schema.MetadataAddName(builder, label)
    schema.MetadataAddBuffer(builder, root.BuffersLength())
    entry = schema.MetadataEnd(builder)
    buffers = [place(root.Buffers(i)) for i in range(root.BuffersLength())]
    entries = [place(root.Metadata(i)) for i in range(root.MetadataLength())]
    vectors = {
        _BUFFERS_SLOT: tables.write_offsets(builder, [*buffers, buffer]),
        _METADATA_SLOT: tables.write_offsets(builder, [*entries, entry]),
    }
    for slot in range(_VERSION_SLOT + 1, _SLOTS):
        field = root._tab.Offset(4 + 2 * slot)
        if slot not in vectors and field:
            vectors[slot] = len(kept) - int(root._tab.Indirect(root._tab.Pos + field))
    builder.StartObject(_SLOTS)
    builder.PrependUint32Slot(_VERSION_SLOT, root.Version(), 0)
    for slot, offset in vectors.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    builder.Finish(builder.EndObject(), b"TFL3")
    return bytes(builder.Output())


def _with_file(model: bytes, name: str, content: bytes) -> bytes:
    """Returns the model with an archive of one file behind it, at places counted from the start."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    # Zeros in the model's place: in its last bytes zipfile would look for an archive to go on with.
    stream = io.BytesIO(bytes(len(model)))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(entry, content)
    return model + stream.getvalue()[len(model) :]


def _read(model: bytes) -> Metadata | None:
    """Returns the metadata of a file whose own tables were checked; see `read_metadata`."""
    with _untrusted("model metadata"):
        root = _schema().Model.GetRootAs(model, 0)
        index = next((i for i, name in enumerate(_names(root)) if name == METADATA_NAME), None)
        if index is None:
            return None
        number = root.Metadata(index).Buffer()
        buffer = root.Buffers(number) if number < root.BuffersLength() else None
        if buffer is None or not buffer.DataLength():
            msg = f"no buffer {number}"
            raise ValueError(msg)
        return _metadata(tables.read(buffer.DataAsNumpy().tobytes()), model)


def _names(root: Table) -> list[str]:
    """Returns what a model calls its metadata buffers."""
    names = [root.Metadata(i).Name() for i in range(root.MetadataLength())]
    return [(name or b"").decode("utf-8", "replace") for name in names]


@contextmanager
def _untrusted(what: str) -> Iterator[None]:
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
    )


def _named(names: Sequence[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"type {number}"


def _lines(content: bytes) -> tuple[str, ...]:
    """Returns the lines as MediaPipe splits them: str.splitlines knows more line ends."""
    text = content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    return tuple(text.removesuffix("\n").split("\n"))


def _archive(model: bytes) -> tuple[int, int] | None:
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
    archive = _archive(model)
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


def _input_problem(
    info: TensorInfo, preprocess: Preprocess, metadata: Metadata | None
) -> str | None:
    if info.dtype not in ("float32", "uint8"):
        return f"MediaPipe takes a float32 or uint8 input, this file has {info.dtype}"
    if preprocess.channels != "rgb":
        return f"MediaPipe gives pictures as RGB, the network expects {preprocess.channels.upper()}"
    if metadata is None or not metadata.inputs:
        return "the file has no metadata about its input" if info.dtype == "float32" else None
    said = metadata.inputs[0]
    if said.content == "ImageProperties" and said.color_space != "RGB":
        return f"MediaPipe takes RGB pictures only, the metadata say {said.color_space}"
    if said.content not in ("ImageProperties", ""):
        return f"MediaPipe takes pictures, the metadata say {said.content}"
    return None


def _pixel_problem(
    info: TensorInfo, preprocess: Preprocess, metadata: Metadata | None
) -> str | None:
    """Says why MediaPipe's values for pixels are not those that the network expects."""
    if info.dtype == "uint8":
        if info.scale is None or info.zero_point is None:
            return "the uint8 input does not say its quantization"
        codes = input_codes(preprocess, "uint8", info.scale, info.zero_point)
        if (codes == np.arange(256)[:, None]).all():
            return None
        return "MediaPipe gives pixels unchanged to a uint8 input, this network expects other codes"
    said = metadata.inputs[0] if metadata is not None and metadata.inputs else None
    if said is None or len(said.mean) != len(said.std) or len(said.mean) not in (1, 3):
        return "MediaPipe needs the normalization of a float32 input in the metadata"
    if len({*said.mean}) != 1 or len({*said.std}) != 1:
        return "MediaPipe has no normalization with other values for each channel"
    wanted_mean, wanted_std = normalization_of(preprocess)
    pairs = [
        *((said.mean[0], mean) for mean in wanted_mean),
        *((said.std[0], std) for std in wanted_std),
    ]
    # The metadata hold float32.
    if not all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) for a, b in pairs):
        return "the metadata have another normalization than the network expects"
    return None


def _output_problem(info: TensorInfo, metadata: Metadata | None) -> str | None:
    if info.dtype not in ("float32", "uint8"):
        return f"MediaPipe takes a float32 or uint8 output, this file has {info.dtype}"
    if info.dtype == "uint8" and info.scale is None:
        return "the uint8 output does not say its quantization"
    if len(info.shape) not in (2, 4):
        return f"MediaPipe takes an output of 2 or 4 dimensions, this file has {len(info.shape)}"
    if metadata is None:
        return None
    if len(metadata.outputs) > 1:
        return f"the metadata speak of {len(metadata.outputs)} outputs, the file has one"
    if metadata.labels is not None and len(metadata.labels) != info.shape[-1]:
        return f"{len(metadata.labels)} labels for {info.shape[-1]} classes"
    return None
