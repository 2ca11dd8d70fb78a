"""Judges a .tflite or .onnx file that edgekit did not make. Stage layer.

Such a file seldom says how its input was prepared or which output stands for which class. What it
does say is used, what it does not must be given, and `plausibility` tells when the guess was wrong.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit import limits
from edgekit.devices import measure
from edgekit.devices.exchange import ReportProgress, Waiting
from edgekit.devices.inspection import inspect_apart
from edgekit.devices.protocol import Subject
from edgekit.errors import SpecError
from edgekit.records import (
    Accuracy,
    Batch,
    Check,
    Delegate,
    Format,
    PairedDrop,
    Preprocess,
    Record,
    Status,
    TensorInfo,
    Variant,
)
from edgekit.runtimes.base import PREPROCESS_KEY, RUNTIME_OF_FORMAT, ModelFacts, RuntimeName
from edgekit.runtimes.ends import Readout, classifier_io, feed_of
from edgekit.runtimes.tflite_metadata import Metadata
from edgekit.validate.accuracy import Classes, measure_accuracy, paired_drop, top1_classes
from edgekit.validate.classes import fitting_lines, match_classes, named_by_number
from edgekit.validate.contract_trial import Reporting, Trial, try_contracts
from edgekit.validate.contracts import (
    InputOptions,
    Recorded,
    described_contract,
    external_preprocess,
    same_values,
)
from edgekit.validate.labels import stored_labels
from edgekit.validate.outputs import OutputOptions, chosen_readout, threshold_words
from edgekit.validate.plausible import other_thresholds, plausibility

# What marks arithmetic on integers, and what marks scales that are found anew for every image.
QUANTIZED_OPERATORS = {
    "QUANTIZE",
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
}
DYNAMIC_OPERATORS = {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
# Training for int8 goes on where float training stopped and can gain: 4 points were seen, 1.9 of
# them sure. A sure gain above this many says that the reference is not the float model of the
# judged file, or that its input is prepared otherwise.
_MOST_GAIN_POINTS = 5.0


class Plan(Record):
    """Everything needed to judge a foreign file, known before any image is decoded.

    Args:
        model: The file.
        sha256: Its digest.
        size_bytes: Its size.
        format: "tflite", "onnx" or "ort".
        runtime: Who will run it.
        variants: What the file can be; see `variants_of`.
        input_dtype: Element type of the input.
        output_dtype: Element type of the output.
        preprocess: How to decode the images.
        class_names: Folder names, in label order.
        output_index: The output that stands for each class.
        outputs: Scores of one answer: as many as the file's output has, or two of a single one.
        label_offset: The offset that `output_index` includes.
        operators: Names of the operators in the file.
        batch: Pictures of one call.
        input: The input, as the file says it.
        readout: Which output is read, and how.
        words: What of input and output is not as usual, a sentence each.
        own_contract: Whether edgekit made the file and the user says nothing else about its input,
            so that no other contract is worth a try.
    """

    model: Path
    sha256: str
    size_bytes: int
    format: Format
    runtime: RuntimeName
    variants: tuple[Variant, ...]
    input_dtype: str
    output_dtype: str
    preprocess: Preprocess
    class_names: tuple[str, ...]
    output_index: tuple[int, ...]
    outputs: int
    label_offset: int
    operators: tuple[str, ...]
    batch: Batch
    input: TensorInfo
    readout: Readout
    words: tuple[str, ...] = ()
    own_contract: bool = False


@dataclass(frozen=True)
class _File:
    """A model as it was read, before anything is known about the pictures."""

    model: Path
    sha256: str
    size_bytes: int
    facts: ModelFacts
    variants: tuple[Variant, ...]
    said: Metadata | None
    unsaid_because: str


@dataclass(frozen=True)
class _Ends:
    """What of a file is fed and read."""

    input: TensorInfo
    output: TensorInfo
    readout: Readout
    words: tuple[str, ...]

    @property
    def scores(self) -> int:
        """How many scores an answer has."""
        return 2 if self.readout.single else self.output.shape[-1]


@dataclass(frozen=True)
class Judgement:
    """What the answers of a foreign file show.

    Args:
        accuracy: Against the labels of the folders.
        plausible: Whether the labels were matched the right way.
        raw: Raw scores of shape `(images, outputs)` in the file's own dtype.
        top1: Class of each answer, int32 of shape `(images,)`; -1 outside the classes.
        best: Highest score of each answer, float32 of shape `(images,)`.
        runtime: Runtime and version.
        readout: How the output was read, with the threshold that its answers decided.
        words: How a single score was read; empty for several.
    """

    accuracy: Accuracy
    plausible: Check
    raw: npt.NDArray[np.generic]
    top1: Classes
    best: npt.NDArray[np.float32]
    runtime: str
    readout: Readout = field(default_factory=Readout)
    words: tuple[str, ...] = ()


def plan_external(
    model: Path,
    class_names: Sequence[str],
    options: InputOptions | None = None,
    label_lines: Sequence[str] | None = None,
    label_offset: int = 0,
    recorded: Recorded | None = None,
    reading: OutputOptions | None = None,
) -> Plan:
    """Returns how a foreign file will be judged.

    The user's word goes before the record beside the file, and that before the file's metadata.

    Args:
        model: A .tflite, .onnx or .ort file.
        class_names: Folder names in label order.
        options: What the user says about the input. Defaults to None: nothing.
        label_lines: Lines of a labels file. Defaults to None: there is none.
        label_offset: Added to every output index. Defaults to 0.
        recorded: From the record beside the file. Defaults to None: there is none.
        reading: What the user says about the output. Defaults to None: nothing.

    Raises:
        SpecError: If the file cannot be read, does not say how its input is scaled, or the classes
            cannot be matched to its outputs, or several outputs could be read.
        IntegrityError: If it is damaged, untrusted or no image classifier, or what it says about
            its input or its labels is broken.
    """
    file = _read(model, recorded)
    label_lines = _labels(file, label_lines, recorded, class_names)
    ends = _ends(file, reading, len(label_lines or class_names) + label_offset)
    options = options or InputOptions()
    with _telling(file):
        contract = external_preprocess(
            ends.input, file.facts.metadata, options, recorded, file.said
        )
        index = match_classes(class_names, ends.scores, label_lines, label_offset)
    made_here = recorded is not None or PREPROCESS_KEY in file.facts.metadata
    planned = _plan(file, ends, contract, tuple(class_names), index, label_offset)
    untold = options.scale is None and options.channels is None
    return planned.model_copy(update={"own_contract": made_here and untold})


def plan_answers(
    model: Path,
    options: InputOptions | None = None,
    label_lines: Sequence[str] | None = None,
    label_offset: int = 0,
    recorded: Recorded | None = None,
    reading: OutputOptions | None = None,
) -> Plan:
    """Returns how a foreign file answers pictures of unknown class: every output is a class.

    What the file says and what the user says count as in `plan_external`. Outputs without a label
    are named by their number.

    Args:
        model: A .tflite, .onnx or .ort file.
        options: What the user says about the input. Defaults to None: nothing.
        label_lines: Lines of a labels file. Defaults to None: there is none.
        label_offset: Output of the first line. Defaults to 0.
        recorded: From the record beside the file. Defaults to None: there is none.
        reading: As in `plan_external`. Defaults to None.

    Raises:
        SpecError: As `plan_external`, and if labels and outputs are not as many.
        IntegrityError: As `plan_external`.
    """
    file = _read(model, recorded)
    label_lines = _labels(file, label_lines, recorded)
    ends = _ends(file, reading, None if label_lines is None else len(label_lines) + label_offset)
    outputs, what = ends.scores, "class" if ends.readout.single else "output"
    names = tuple(f"{what} {number}" for number in range(outputs))
    with _telling(file):
        if label_lines is not None:
            lines = fitting_lines(label_lines, outputs, label_offset)
            names = (*names[: max(label_offset, 0)], *lines[max(-label_offset, 0) :])
        contract = external_preprocess(
            ends.input, file.facts.metadata, options or InputOptions(), recorded, file.said
        )
    return _plan(file, ends, contract, names, tuple(range(outputs)), label_offset)


def plan_reference(
    model: Path,
    judged: Plan,
    options: InputOptions | None = None,
    recorded: Recorded | None = None,
    reading: OutputOptions | None = None,
) -> Plan:
    """Returns how the float reference of a judged file runs: on the same pixels, for its classes.

    Args:
        model: A .tflite, .onnx or .ort file.
        judged: Plan of the file that is compared with it.
        options: What the user says about the input of both. Defaults to None: nothing.
        recorded: From the record beside the reference. Defaults to None: there is none.
        reading: What the user says about the output of the judged file; its name counts where the
            reference has several outputs, one of that name. Defaults to None: nothing.

    Raises:
        SpecError: If the reference is the judged file itself, is not float, has another input size
            or number of outputs, or says that its input is prepared otherwise.
        IntegrityError: As `plan_external`.
    """
    file = _read(model, recorded)
    reading = reading or OutputOptions()
    if reading.name not in {info.name for info in file.facts.outputs}:
        reading = reading.model_copy(update={"name": None})
    ends = _ends(file, reading, judged.outputs)
    _check_comparable(file, ends, judged)
    contract = judged.preprocess
    described = described_contract(file.said, ends.input)
    if recorded is not None or described or PREPROCESS_KEY in file.facts.metadata:
        contract = external_preprocess(
            ends.input, file.facts.metadata, options or InputOptions(), recorded, file.said
        )
        _check_contracts(model, contract, judged)
    return _plan(file, ends, contract, judged.class_names, judged.output_index, judged.label_offset)


def refuse_too_much(plan: Plan, pictures: int) -> None:
    """Refuses what a file asks edgekit to write and keep for a number of pictures.

    Args:
        plan: From `plan_external`.
        pictures: How many would be decoded and answered.

    Raises:
        SpecError: If that is more than `edgekit.limits` allows.
    """
    width, height = plan.preprocess.width_px, plan.preprocess.height_px
    decoded = pictures * height * width * 3
    if decoded > limits.DECODED_BYTES:
        raise SpecError(
            f"{plan.model}: {pictures:,} pictures of {width:,} x {height:,} px, {decoded:,} bytes",
            f"at most {limits.DECODED_BYTES:,} bytes of decoded pictures",
            "judge fewer pictures, or export the classifier with a smaller input",
        )
    answers = pictures * plan.outputs * np.dtype(np.float32).itemsize
    if answers > limits.ANSWERS_BYTES:
        raise SpecError(
            f"{plan.model}: {plan.outputs:,} scores for each of {pictures:,} pictures, "
            f"{answers:,} bytes",
            f"at most {limits.ANSWERS_BYTES:,} bytes of scores",
            "judge fewer pictures, or export the classifier for your own classes",
        )


def variants_of(facts: ModelFacts) -> tuple[Variant, ...]:
    """Returns the variants that a file can be by what it says about itself.

    Returns:
        One, or none for a mixture of integer and float arithmetic that no target asks for. A float
        TFLite file without DEQUANTIZE can be float32 or dynamic: only its weights differ.
    """
    used = facts.operators.keys()
    ends = {tensor.dtype for tensor in (*facts.inputs, *facts.outputs)}
    if used & DYNAMIC_OPERATORS:
        return ("dynamic",)
    # TFLite computes in the type of its tensors; ONNX says by operators where integers begin.
    integer_ends = facts.format == "tflite" and bool(ends & {"uint8", "int8"})
    if used & QUANTIZED_OPERATORS or integer_ends:
        integers: Variant = "int16x8" if facts.wide_tensors else "int8"
        return () if facts.float_tensors else (integers,)
    if facts.format != "tflite":
        return ("float32",)
    return ("float16",) if "DEQUANTIZE" in used else ("float32", "dynamic")


def _read(model: Path, recorded: Recorded | None) -> _File:
    found = inspect_apart(model)
    return _File(
        model=model,
        sha256=found.sha256,
        size_bytes=found.size_bytes,
        facts=found.facts,
        variants=(recorded.variant,) if recorded else variants_of(found.facts),
        said=found.said,
        unsaid_because=found.unsaid_because,
    )


def _ends(file: _File, reading: OutputOptions | None, classes: int | None) -> _Ends:
    """Returns what is fed and read; `classes` is how many labels there are, None if unknown."""
    path = str(file.model)
    readout, said = chosen_readout(file.facts, path, reading or OutputOptions(), classes)
    model_input, output = classifier_io(file.facts, path, readout.output)
    fed = tuple(f"input: {words}" for words in feed_of(model_input).words)
    return _Ends(model_input, output, readout, (*fed, *said))


def _labels(
    file: _File,
    given: Sequence[str] | None,
    recorded: Recorded | None,
    class_names: Sequence[str] = (),
) -> Sequence[str] | None:
    """Returns the labels of the outputs: the user's, the record's, edgekit's own, TFLite's.

    Folders that are named by the numbers of outputs need none that others wrote.
    """
    if given is not None:
        return given
    own = recorded.class_names if recorded else stored_labels(file.facts.metadata)
    if own is not None or file.said is None or file.said.labels is None:
        return own
    by_number = bool(class_names) and named_by_number(class_names, file.said.labels)
    return None if by_number else file.said.labels


@contextmanager
def _telling(file: _File) -> Iterator[None]:
    """Adds to what is refused for want of metadata that there are some, which are damaged."""
    try:
        yield
    except SpecError as err:
        if file.unsaid_because:
            err.received = f"{err.received}; {file.unsaid_because}"
        raise


def _plan(
    file: _File,
    ends: _Ends,
    preprocess: Preprocess,
    class_names: tuple[str, ...],
    output_index: tuple[int, ...],
    label_offset: int,
) -> Plan:
    return Plan(
        model=file.model,
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        format=file.facts.format,
        runtime=RUNTIME_OF_FORMAT[file.facts.format],
        variants=file.variants,
        input_dtype=ends.input.dtype,
        output_dtype=ends.output.dtype,
        preprocess=preprocess,
        class_names=class_names,
        output_index=output_index,
        outputs=ends.scores,
        label_offset=label_offset,
        operators=tuple(file.facts.operators),
        batch="any" if ends.input.shape[0] == -1 else "one",
        input=ends.input,
        readout=ends.readout,
        words=ends.words,
    )


def _check_comparable(file: _File, ends: _Ends, judged: Plan) -> None:
    """Refuses a reference that is the judged file, is not float, or is another network."""
    feed, outputs = feed_of(ends.input), ends.scores
    size = (feed.height_px, feed.width_px)
    wanted = (judged.preprocess.height_px, judged.preprocess.width_px)
    what = " or ".join(file.variants) or "partly quantized"
    is_float = ends.input.dtype == ends.output.dtype == "float32" and (
        "float32" in file.variants or "float16" in file.variants
    )
    problems = (
        (
            file.sha256 == judged.sha256,
            "the judged file itself",
            "the float file that it was made from",
        ),
        (
            not is_float,
            f"not a float file ({what}, {ends.input.dtype} input, {ends.output.dtype} output)",
            "float32 input and output and no quantized arithmetic",
        ),
        (
            size != wanted,
            f"an input of {size} pixels (height, width)",
            f"{wanted}, as the judged file has",
        ),
        (
            feed.channels != feed_of(judged.input).channels,
            f"an input of {feed.channels} channels",
            f"{feed_of(judged.input).channels}, as the judged file has",
        ),
        (
            outputs != judged.outputs,
            f"{outputs} outputs",
            f"{judged.outputs} outputs, as the judged file has",
        ),
    )
    for wrong, found, expected in problems:
        if wrong:
            raise SpecError(
                f"--reference {file.model}: {found}",
                expected,
                "give the float file of the same network, or --min-accuracy instead of a reference",
            )


def _check_contracts(model: Path, own: Preprocess, judged: Plan) -> None:
    """Refuses a reference whose contract would see other pixels than the judged file."""
    other = judged.preprocess
    differing = [
        f"{name} {getattr(own, name)}"
        for name in ("resize", "crop", "fill", "channels")
        if getattr(own, name) != getattr(other, name)
    ]
    if not same_values(own, other):
        differing.append(f"scale {own.scale} and offset {own.offset}")
    if differing:
        raise SpecError(
            f"--reference {model}: says that its input is prepared with {', '.join(differing)}",
            f"the contract of {judged.model.name}: {other!r}",
            "give the float file of the same network, or say with --input-scale, --input-offset, "
            "--resize, --crop, --fill and --channels what holds for both",
        )


def judge_external(
    plan: Plan,
    images: Path,
    labels: Classes,
    threads: int = 1,
    progress: ReportProgress | None = None,
    waiting: Waiting | None = None,
    trying: Reporting | None = None,
) -> Judgement:
    """Runs a foreign file on decoded images and returns what its answers show.

    Args:
        plan: From `plan_external`.
        images: A .npy file, uint8 of shape `(count, height_px, width_px, 3)`, decoded as
            `plan.preprocess` says.
        labels: int32 of shape `(count,)`, indexes into `plan.class_names`.
        threads: Threads of the runtime. Defaults to 1.
        progress: Called with fractions from 0 to 1. Defaults to None.
        waiting: As in `edgekit.devices.measure.answer`. Defaults to None.
        trying: Called with (what, done, in all) while other contracts are tried; see
            `edgekit.validate.contract_trial`. Defaults to None: none is.

    Raises:
        EdgekitError: As `edgekit.devices.measure.answer`.
    """
    asked = subject(plan, images, threads)
    started = time.monotonic()
    answers = measure.answer(asked, progress=progress, waiting=waiting)
    seconds = (time.monotonic() - started) / len(labels)
    real = measure.scores(answers.raw, answers.output)
    readout = plan.readout
    words: tuple[str, ...] = ()
    if readout.single:
        threshold = readout.threshold_of(real)
        words = (threshold_words(readout, threshold, _in_output_order(plan)),)
        readout = readout.model_copy(update={"threshold": threshold})
    scores = readout.scores(real)
    index = np.array(plan.output_index, dtype=np.int64)
    count = len(plan.class_names)
    top1 = top1_classes(scores, count, index)
    trial, others = Trial(), other_thresholds(real, readout, labels, index)
    if trying is not None and not plan.own_contract:
        trial = try_contracts(asked, plan.input, index, top1, labels, seconds, trying, waiting)
    return Judgement(
        accuracy=measure_accuracy(scores, labels, count, index),
        plausible=plausibility(
            scores,
            labels,
            index,
            plan.label_offset,
            plan.class_names,
            (*others, *trial.readings),
            trial.said,
        ),
        raw=answers.raw,
        top1=top1,
        best=scores.max(axis=1),
        runtime=answers.runtime,
        readout=readout,
        words=words,
    )


def _in_output_order(plan: Plan) -> tuple[str, ...]:
    """Returns the names of the two classes of a single score, the lower one first."""
    order = np.argsort(plan.output_index)
    names = [plan.class_names[place] for place in order]
    return (*names, "the other", "the other")[:2]


def drop_against(
    reference: Judgement, judged: Judgement, labels: Classes
) -> tuple[PairedDrop | None, str]:
    """Returns the accuracy lost against a reference, or None and why there is none to compare with.

    A reference whose input is prepared wrongly answers badly and would let any file pass.

    Args:
        reference: Of the float file.
        judged: Of the judged file, on the same images.
        labels: int32 of shape `(images,)`.
    """
    if reference.plausible.status != Status.PASS:
        return None, f"the reference is not plausible itself: {reference.plausible.detail}"
    drop = paired_drop(reference.top1, judged.top1, labels)
    if drop.upper_points < -_MOST_GAIN_POINTS:
        return None, (
            f"the reference is worse than the judged file by {-drop.drop_points:.1f} points, so it "
            "is not its float model, or its input is prepared otherwise"
        )
    return drop, ""


def subject(plan: Plan, images: Path, threads: int = 1, delegate: Delegate = "default") -> Subject:
    """Returns what the device layer measures, for accuracy and for latency alike."""
    return Subject(
        model=plan.model,
        sha256=plan.sha256,
        runtime=plan.runtime,
        threads=threads,
        delegate=delegate,
        images=images,
        preprocess=plan.preprocess,
        readout=plan.readout,
    )
