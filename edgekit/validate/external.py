"""Judges a .tflite or .onnx file that edgekit did not make. Stage layer.

Such a file seldom says how its input was prepared or which output stands for which class. What it
does say is used, what it does not must be given, and `plausibility` tells when the guess was wrong.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from edgekit.devices import local
from edgekit.devices.exchange import ReportProgress
from edgekit.devices.protocol import Subject
from edgekit.errors import IntegrityError, SpecError
from edgekit.records import Accuracy, Check, Format, Preprocess, Record, TensorInfo
from edgekit.runtimes.base import RUNTIME_OF_FORMAT, RuntimeName, classifier_io
from edgekit.runtimes.inspect import inspect_content, model_format, read_model
from edgekit.validate.accuracy import (
    OUTSIDE,
    Classes,
    OutputIndex,
    Scores,
    measure_accuracy,
    top1_classes,
)
from edgekit.validate.classes import match_classes
from edgekit.validate.verdict import check_plausible

METADATA_KEY = "edgekit.preprocess"
OFFSETS_TRIED = (-1, 0, 1)
PerChannel = float | Sequence[float]


class InputOptions(Record):
    """How the input of a foreign model is prepared, as far as the user says so.

    Args:
        scale: Multiplier per channel of `pixel * scale + offset`. Defaults to None: from the file.
        offset: Addend per channel. Defaults to None: from the file.
        resize: Resampling filter. Defaults to "bilinear".
        crop: "none" or "center". Defaults to "none".
        channels: "rgb" or "bgr". Defaults to "rgb".
    """

    scale: tuple[float, float, float] | None = None
    offset: tuple[float, float, float] | None = None
    resize: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    crop: Literal["none", "center"] = "none"
    channels: Literal["rgb", "bgr"] = "rgb"


class Plan(Record):
    """Everything needed to judge a foreign file, known before any image is decoded.

    Args:
        model: The file.
        sha256: Its digest.
        size_bytes: Its size.
        format: "tflite" or "onnx".
        runtime: Who will run it.
        preprocess: How to decode the images.
        class_names: Folder names, in label order.
        output_index: The output that stands for each class.
        outputs: Number of outputs.
        label_offset: The offset that `output_index` includes.
    """

    model: Path
    sha256: str
    size_bytes: int
    format: Format
    runtime: RuntimeName
    preprocess: Preprocess
    class_names: tuple[str, ...]
    output_index: tuple[int, ...]
    outputs: int
    label_offset: int


@dataclass(frozen=True)
class Judgement:
    """What the answers of a foreign file show.

    Args:
        accuracy: Against the labels of the folders.
        plausible: Whether the labels were matched the right way.
        top1: Class of each answer, int32 of shape `(images,)`; -1 outside the classes.
        runtime: Runtime and version.
    """

    accuracy: Accuracy
    plausible: Check
    top1: Classes
    runtime: str


def per_channel(value: PerChannel | None, option: str) -> tuple[float, float, float] | None:
    """Returns a number or three as one per channel.

    Raises:
        SpecError: If there are neither one nor three numbers.
    """
    if value is None:
        return None
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(numbers) not in (1, 3) or not np.isfinite(numbers).all():
        found = f"{option} {' '.join(str(n) for n in numbers)}"
        raise SpecError(found, "one finite number, or three", "give one per channel, or one")
    first, second, third = numbers * (3 // len(numbers))
    return first, second, third


def plan_external(
    model: Path,
    class_names: Sequence[str],
    options: InputOptions | None = None,
    label_lines: Sequence[str] | None = None,
    label_offset: int = 0,
) -> Plan:
    """Returns how a foreign file will be judged.

    Args:
        model: A .tflite or .onnx file.
        class_names: Folder names in label order.
        options: What the user says about the input. Defaults to None: nothing.
        label_lines: Lines of a labels file. Defaults to None: there is none.
        label_offset: Added to every output index. Defaults to 0.

    Raises:
        SpecError: If the file cannot be read, does not say how its input is scaled, or the classes
            cannot be matched to its outputs.
        IntegrityError: If it is damaged, untrusted or no image classifier.
    """
    content, file_format = read_model(model), model_format(model)
    facts = inspect_content(content, file_format, str(model))
    model_input, output = classifier_io(facts, str(model))
    return Plan(
        model=model,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        format=file_format,
        runtime=RUNTIME_OF_FORMAT[file_format],
        preprocess=external_preprocess(model_input, facts.metadata, options or InputOptions()),
        class_names=tuple(class_names),
        output_index=match_classes(class_names, output.shape[-1], label_lines, label_offset),
        outputs=output.shape[-1],
        label_offset=label_offset,
    )


def judge_external(
    plan: Plan,
    images: Path,
    labels: Classes,
    threads: int = 1,
    timeout_seconds: float = 3600.0,
    progress: ReportProgress | None = None,
) -> Judgement:
    """Runs a foreign file on decoded images and returns what its answers show.

    Args:
        plan: From `plan_external`.
        images: A .npy file, uint8 of shape `(count, height_px, width_px, 3)`, decoded as
            `plan.preprocess` says.
        labels: int32 of shape `(count,)`, indexes into `plan.class_names`.
        threads: Threads of the runtime. Defaults to 1.
        timeout_seconds: Wall time for the whole run. Defaults to an hour.
        progress: Called with fractions from 0 to 1. Defaults to None.

    Raises:
        EdgekitError: As `edgekit.devices.local.answer`.
    """
    answers = local.answer(subject(plan, images, threads), timeout_seconds, progress)
    scores = local.scores(answers.raw, answers.output)
    index = np.array(plan.output_index, dtype=np.int64)
    count = len(plan.class_names)
    return Judgement(
        accuracy=measure_accuracy(scores, labels, count, index),
        plausible=plausibility(scores, labels, index, plan.label_offset),
        top1=top1_classes(scores, count, index),
        runtime=answers.runtime,
    )


def subject(plan: Plan, images: Path, threads: int = 1) -> Subject:
    """Returns what the device layer measures, for accuracy and for latency alike."""
    return Subject(
        model=plan.model,
        sha256=plan.sha256,
        runtime=plan.runtime,
        threads=threads,
        images=images,
        preprocess=plan.preprocess,
    )


def external_preprocess(
    model_input: TensorInfo, metadata: Mapping[str, str], options: InputOptions
) -> Preprocess:
    """Returns the contract of a foreign input.

    In this order: what the user says; the contract in the file's metadata; the quantization of an
    integer input, where the usual convention makes the uint8 code the pixel itself and the int8
    code `pixel - 128`.

    Args:
        model_input: Input of shape `(1, height, width, 3)`.
        metadata: Text entries of the file.
        options: What the user says.

    Raises:
        SpecError: If neither the user nor the file says how the input is scaled.
        IntegrityError: If the contract in the file is broken or contradicts its input.
    """
    if (options.scale is None) != (options.offset is None):
        given = "--input-scale" if options.offset is None else "--input-offset"
        found = f"{given} alone"
        raise SpecError(found, "--input-scale and --input-offset together", "give both")
    if options.scale is None and METADATA_KEY in metadata:
        return _stored_contract(metadata[METADATA_KEY], model_input)
    if options.scale is not None and options.offset is not None:
        scale, offset = options.scale, options.offset
    else:
        one_scale, one_offset = _quantized_contract(model_input)
        scale, offset = (one_scale,) * 3, (one_offset,) * 3
    return Preprocess(
        height_px=model_input.shape[1],
        width_px=model_input.shape[2],
        resize=options.resize,
        crop=options.crop,
        scale=scale,
        offset=offset,
        channels=options.channels,
    )


def _stored_contract(text: str, model_input: TensorInfo) -> Preprocess:
    """Returns the contract that edgekit itself wrote into a file."""
    try:
        contract = Preprocess.model_validate_json(text)
    except ValidationError as err:
        found = f"metadata {METADATA_KEY!r} that is not a preprocessing contract"
        remedy = "give --input-scale and --input-offset, or export the model again"
        raise IntegrityError(found, "the JSON of a Preprocess record", remedy) from err
    size = (contract.height_px, contract.width_px)
    if size != model_input.shape[1:3]:
        found = f"a contract for {size} in a model for {model_input.shape[1:3]} (height, width)"
        raise IntegrityError(found, "the same size in both", "export the model again")
    return contract


def _quantized_contract(model_input: TensorInfo) -> tuple[float, float]:
    """Returns scale and offset that turn pixels into the codes an integer input expects."""
    scale, zero_point = model_input.scale, model_input.zero_point or 0
    if model_input.dtype == "uint8":
        # Without quantization a uint8 input takes plain pixels.
        return (scale, -scale * zero_point) if scale else (1.0, 0.0)
    if model_input.dtype == "int8" and scale:
        return scale, -scale * (128 + zero_point)
    found = f"a {model_input.dtype} input that does not say how pixels are scaled"
    raise SpecError(
        found,
        "--input-scale and --input-offset (value = pixel * scale + offset)",
        "use what it was trained with: 0.00784314 and -1 for -1 to 1 (MobileNetV2), "
        "0.00392157 and 0 for 0 to 1, 1 and 0 for 0 to 255",
    )


def plausibility(
    scores: Scores, labels: Classes, output_index: OutputIndex, label_offset: int = 0
) -> Check:
    """Checks whether the answers fit another label offset better, or are no better than guessing.

    Args:
        scores: float32 of shape `(images, outputs)`.
        labels: int32 of shape `(images,)`.
        output_index: int64 of shape `(classes,)`, with `label_offset` included.
        label_offset: The offset in use. Defaults to 0.
    """
    classes = len(output_index)
    correct = {
        label_offset + shift: _correct(scores, labels, output_index + shift)
        for shift in OFFSETS_TRIED
    }
    answers = top1_classes(scores, classes, output_index)
    # A model with a thousand outputs seldom guesses one of three folders: what guessing reaches is
    # one in `classes` of the answers that fall inside them. One class alone is always guessed.
    inside = float(np.mean(answers != OUTSIDE))
    chance = inside / classes if classes > 1 else 1 / max(2, scores.shape[1])
    return check_plausible(correct, label_offset, len(labels), chance)


def _correct(scores: Scores, labels: Classes, output_index: OutputIndex) -> int:
    answers = top1_classes(scores, len(output_index), output_index)
    return int(np.count_nonzero((answers == labels) & (answers != OUTSIDE)))
