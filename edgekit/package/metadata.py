"""TFLite model metadata: how apps learn labels and normalization from the file itself.

Package layer. The format is that of TensorFlow Lite Support, which MediaPipe's tasks read: a
`ModelMetadata` flatbuffer in a buffer that the model names TFLITE_METADATA, and the files it speaks
of in a ZIP archive behind the model (https://ai.google.dev/edge/litert/conversion/tensorflow/metadata).
"""

import io
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.errors import SpecError
from edgekit.records import Preprocess, TensorInfo, input_codes
from edgekit.runtimes import tflite_metadata_tables as tables
from edgekit.runtimes.base import ModelFacts
from edgekit.runtimes.ends import classifier_io
from edgekit.runtimes.inspect import inspect_content
from edgekit.runtimes.tflite_metadata import (
    METADATA_NAME,
    SLOTS,
    Metadata,
    archive_place,
    entry_names,
    metadata_of,
    root_of,
    untrusted,
    with_entries,
)

LABELS_FILE = "labels.txt"
# The first version of the schema has all fields that are written here.
MIN_PARSER_VERSION = "1.0.0"
_WHERE = "the model"

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
    score_threshold: float | None = None,
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
        score_threshold: Above which score an answer counts. Defaults to None: every answer does.

    Raises:
        IntegrityError: If the model is damaged or no image classifier.
        SpecError: If it has metadata or an archive already or keeps tensors behind the flatbuffer,
            the names do not fit it, or the metadata cannot say the contract.
    """
    facts = inspect_content(model, "tflite", _WHERE)
    model_input, output = classifier_io(facts, _WHERE)
    with untrusted("TFLite file"):
        _check_unwritten(model)
    _check_class_names(class_names, output.shape[-1])
    values = {
        "name": name,
        "description": description,
        "version": version,
        "subgraph_metadata": [
            {
                "input_tensor_metadata": [_input(model_input, preprocess)],
                "output_tensor_metadata": [_output(facts, score_threshold)],
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
    with untrusted("TFLite file"):
        return _with_file(with_entries(model, {METADATA_NAME: written}), LABELS_FILE, labels)


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
        IntegrityError: If its metadata are damaged, or if the file is no image classifier.
    """
    facts = inspect_content(model, "tflite", _WHERE)
    model_input, output = classifier_io(facts, _WHERE)
    metadata = metadata_of(model)
    if root_of(model).SubgraphsLength() != 1:
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
    if preprocess.crop == "letterbox":
        notes.append(
            "MediaPipe stretches the whole picture; give one that the app has scaled to fit inside "
            f"the input and filled with {preprocess.fill} around it."
        )
    if not _has_probabilities(operators):
        notes.append(LOGITS)
    return tuple(notes)


def _check_unwritten(model: bytes) -> None:
    """Refuses a model to which metadata cannot be added; see `write_metadata`."""
    table = root_of(model)
    remedy = "give the file as it was exported"
    if METADATA_NAME in entry_names(table):
        raise SpecError("a model that has metadata already", "a model without", remedy)
    if archive_place(model) is not None:
        raise SpecError("a model with a ZIP archive behind it", "the model alone", remedy)
    if any(table.Buffers(i).Offset() > 1 for i in range(table.BuffersLength())):
        found = "a model that keeps tensors behind its flatbuffer, at fixed places in the file"
        raise SpecError(found, "a model below 2 GiB with its tensors inside", remedy)
    (back,) = struct.unpack_from("<i", model, table._tab.Pos)
    (size,) = struct.unpack_from("<H", model, table._tab.Pos - back)
    if any(table._tab.Offset(entry) for entry in range(4 + 2 * SLOTS, size, 2)):
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
    """Returns mean and standard deviation per channel: `p * scale + offset = (p - mean) / std`."""
    if 0 in preprocess.scale:
        raise SpecError(
            f"preprocessing with scale {preprocess.scale}",
            "a scale other than 0 for every channel",
            "correct the preprocessing",
        )
    pairs = list(zip(preprocess.scale, preprocess.offset, strict=True))[: preprocess.input_channels]
    mean = tuple(0.0 - offset / scale for scale, offset in pairs)
    return mean, tuple(1 / scale for scale, _ in pairs)


def color_space_of(preprocess: Preprocess) -> str:
    """Returns how metadata name the channels; "UNKNOWN" for BGR, which has no name there."""
    return {"rgb": "RGB", "grey": "GRAYSCALE"}.get(preprocess.channels, "UNKNOWN")


def _input(info: TensorInfo, preprocess: Preprocess) -> dict[str, Any]:
    mean, std = normalization_of(preprocess)
    codes = input_codes(preprocess, info.dtype, info.scale, info.zero_point).astype(np.float64)
    codes = codes[:, : preprocess.input_channels]
    order = preprocess.channels.upper()
    # Quantized inputs share the normalization of the float model, as the schema has it.
    then = "" if info.dtype == "float32" else ", quantized as the tensor says"
    height_px, width_px = info.shape[1:3]
    return {
        "name": "image",
        "description": f"{order} picture of {width_px} x {height_px} pixels: "
        f"(pixel - mean) / std{then}",
        "content": {
            "content_properties": (
                "ImageProperties",
                {
                    "color_space": tables.COLOR_SPACES.index(color_space_of(preprocess)),
                    "default_size": {"width": width_px, "height": height_px},
                },
            )
        },
        "process_units": [{"options": ("NormalizationOptions", {"mean": mean, "std": std})}],
        "stats": {"max": codes.max(axis=0).tolist(), "min": codes.min(axis=0).tolist()},
    }


def _output(facts: ModelFacts, score_threshold: float | None) -> dict[str, Any]:
    options = {} if score_threshold is None else {"global_score_threshold": score_threshold}
    kind = "score" if _has_probabilities(facts.operators) else "logit (no probability)"
    return {
        "name": "scores",
        "description": f"One {kind} per class, in the order of {LABELS_FILE}",
        "content": {"content_properties": ("FeatureProperties", {})},
        **(
            {"process_units": [{"options": ("ScoreThresholdingOptions", options)}]}
            if options
            else {}
        ),
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


def _with_file(model: bytes, name: str, content: bytes) -> bytes:
    """Returns the model with an archive of one file behind it, at places counted from the start."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    # Zeros in the model's place: in its last bytes zipfile would look for an archive to go on with.
    stream = io.BytesIO(bytes(len(model)))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(entry, content)
    return model + stream.getvalue()[len(model) :]


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
