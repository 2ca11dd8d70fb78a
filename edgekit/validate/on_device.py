"""What one file does on the device a target names, against the host and the float model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.devices import measure
from edgekit.devices.protocol import Subject
from edgekit.errors import SpecError
from edgekit.records import (
    Accuracy,
    DeviceEvaluation,
    HostAgreement,
    Latency,
    PairedDrop,
    Preprocess,
    TensorInfo,
)
from edgekit.target import PROTOCOLS, Target
from edgekit.validate.accuracy import (
    Classes,
    OutputIndex,
    measure_accuracy,
    paired_drop,
    seconds_allowed,
    top1_classes,
)
from edgekit.validate.latency import summarize
from edgekit.validate.measurements import (
    Measurements,
    accuracy_of,
    answers_of,
    latency_of,
    origin,
)

NAMED_IMAGES = 20
# Kernels of two processors may round the same sum to neighbouring codes, layer after layer; seen
# between LiteRT's own kernels and XNNPACK on arm64: up to 6 steps at the output.
ROUNDING_STEPS = 6
# The same for float32 outputs, as a share of the largest score.
ROUNDING_SHARE = 1e-3
# Two kernels that only round otherwise seldom disagree on more pictures than this.
ROUNDING_DISAGREEMENT = 0.03


@dataclass(frozen=True)
class Measuring:
    """How latency is measured: fresh processes per file, their pace and their time limit."""

    sessions: int
    pace: measure.Pace
    timeout_seconds: float


@dataclass(frozen=True)
class HostAnswers:
    """What the same file answers on this machine, and what its float reference answers.

    Args:
        raw: Raw scores of shape `(images, outputs)` in the file's own dtype.
        top1: Class that each image was answered with.
        reference_top1: The same by the float reference; None without one.
        runtime: Runtime and version here.
    """

    raw: npt.NDArray[np.generic]
    top1: Classes
    reference_top1: Classes | None
    runtime: str


@dataclass(frozen=True)
class Pictures:
    """What is answered.

    Args:
        labels: int32 of shape `(images,)`.
        names: What each picture is called, for people.
        classes: Number of classes.
        output_index: The output that stands for each class.
    """

    labels: Classes
    names: Sequence[str]
    classes: int
    output_index: OutputIndex


@dataclass(frozen=True)
class Measured:
    """What is known about a target's file on the target's own device.

    Args:
        accuracy: On its own kernels; None where it was not measured.
        drop: Against the float reference.
        latency: At the target's percentile.
        memory_bytes: Most memory that the runtime and the file took.
        no_drop_because: Why `drop` is None; empty: because nothing was measured.
        no_latency_because: Why `latency` is None; empty: because nothing was measured.
        estimates: What a model of the device says instead of it, in words, by the check's name.
    """

    accuracy: Accuracy | None = None
    drop: PairedDrop | None = None
    latency: Latency | None = None
    memory_bytes: int | None = None
    no_drop_because: str = ""
    no_latency_because: str = ""
    estimates: tuple[tuple[str, str], ...] = ()

    @property
    def anything(self) -> bool:
        """Whether anything was measured on the device."""
        return (self.accuracy, self.latency, self.memory_bytes) != (None, None, None)


def measuring_of(target: Target, given: Measuring) -> Measuring:
    """Returns how a target's latency is measured: its own protocol, or what was given."""
    if target.protocol is None:
        return given
    wanted = PROTOCOLS[target.protocol]
    pace = measure.Pace(wanted.warmup_seconds, wanted.min_queries, wanted.min_seconds)
    # A device a hundred times slower than a phone still ends its fewest queries in this time.
    least = 2 * (wanted.warmup_seconds + wanted.min_seconds) + wanted.min_queries
    return Measuring(wanted.sessions, pace, max(given.timeout_seconds, least))


def measure_on(
    device: measure.Device,
    target: Target,
    subjects: Sequence[Subject],
    host: HostAnswers,
    pictures: Pictures,
    measuring: Measuring,
    progress: Callable[[str, int, int], None],
) -> tuple[DeviceEvaluation, list[measure.Timing]]:
    """Returns what a target's file does on its device.

    Args:
        device: The device, reached.
        target: The target.
        subjects: Its file, and further ones that are only timed beside it.
        host: What the same file answers here.
        pictures: What is answered.
        measuring: How latency is measured; the target's own protocol goes before it.
        progress: Called with (what, done, in all).

    Returns:
        The evaluation, and the timed sessions of every subject; none where time does not count.

    Raises:
        EdgekitError: As `edgekit.devices.measure.answer`.
    """
    subject, measuring = subjects[0], measuring_of(target, measuring)
    answers = measure.answer(
        subject,
        seconds_allowed(len(pictures.labels)),
        lambda done: progress(f"accuracy on {target.name}", round(1000 * done), 1000),
        device=device,
    )
    scores = measure.scores(answers.raw, answers.output)
    top1 = top1_classes(scores, pictures.classes, pictures.output_index)
    timings: list[measure.Timing] = []
    if device.machine.real:
        timings = measure.time_sessions(
            subjects,
            measuring.sessions,
            measuring.pace,
            measuring.timeout_seconds,
            lambda done: progress(f"latency on {target.name}", round(1000 * done), 1000),
            device=device,
        )
    reference = host.reference_top1
    latency = summary(timings[0], target.budget.latency_percentile, device) if timings else None
    evaluation = DeviceEvaluation(
        target=target.name,
        device=device.machine.words,
        runtime=answers.runtime,
        threads=subject.threads,
        accuracy=measure_accuracy(scores, pictures.labels, pictures.classes, pictures.output_index),
        drop=None if reference is None else paired_drop(reference, top1, pictures.labels),
        latency=latency,
        memory_bytes=None if latency is None else latency.memory_bytes,
        against_host=agreement(
            host, answers.raw, top1, answers.output, answers.runtime, pictures, target
        ),
    )
    return evaluation, timings


def summary(timing: measure.Timing, percentile: int, device: measure.Device) -> Latency:
    """Returns the latency of one file's sessions on a device."""
    machine = device.machine
    return summarize(
        timing.sessions,
        percentile,
        machine.words,
        timing.runtime,
        machine.cores,
        timing.disturbances,
    )


def measured_of(evaluation: DeviceEvaluation, no_drop_because: str = "") -> Measured:
    """Returns an evaluation as what is held against the budgets."""
    return Measured(
        accuracy=evaluation.accuracy,
        drop=evaluation.drop,
        latency=evaluation.latency,
        memory_bytes=evaluation.memory_bytes,
        no_drop_because=no_drop_because,
        no_latency_because=f"{evaluation.device}: no time that counts was measured there",
    )


def agreement(
    host: HostAnswers,
    raw: npt.NDArray[np.generic],
    top1: Classes,
    output: TensorInfo,
    runtime: str,
    pictures: Pictures,
    target: Target,
) -> HostAgreement:
    """Returns how a device's answers differ from the host's to the same pixels by the same file.

    Args:
        host: The host's answers.
        raw: The device's raw scores, same shape and dtype.
        top1: The device's classes.
        output: The output tensor; a step is one code of it, or of a float a share of the largest.
        runtime: Runtime and version there.
        pictures: Names and labels.
        target: Whose delegate may be the cause.
    """
    apart = np.abs(raw.astype(np.float64) - host.raw.astype(np.float64))
    integer = output.dtype != "float32"
    largest = float(np.abs(host.raw.astype(np.float64)).max())
    steps = float(apart.max()) if integer else float(apart.max()) / max(largest, 1e-30)
    differing = np.flatnonzero(top1 != host.top1)
    return HostAgreement(
        images=len(top1),
        top1_agreement=float(np.mean(top1 == host.top1)),
        equal=float(np.mean(apart == 0)),
        largest_steps=steps if integer else None,
        largest_share=None if integer else steps,
        differing=tuple(str(pictures.names[index]) for index in differing[:NAMED_IMAGES]),
        differing_images=len(differing),
        cause=_cause(steps, integer, len(differing) / len(top1), host.runtime, runtime, target),
    )


def _cause(apart: float, integer: bool, share: float, here: str, there: str, target: Target) -> str:
    """Returns the likely cause of a difference in words; empty where nothing differs.

    Device and host get the same pixels and the same table from pixel to tensor, so preprocessing
    is ruled out and what remains is arithmetic.
    """
    if apart == 0:
        return ""
    if target.runtime.delegate not in ("default", "none"):
        return f"the delegate {target.runtime.delegate} computes otherwise than the CPU here"
    small = apart <= (ROUNDING_STEPS if integer else ROUNDING_SHARE)
    if small and share <= ROUNDING_DISAGREEMENT:
        return "the kernels of the two processors round otherwise"
    if here != there:
        return f"another runtime or version: {here} here, {there} there"
    return "the kernels of that processor compute otherwise; do not trust this file there"


def evaluate_import(
    measurements: Measurements,
    target: Target,
    preprocess: Preprocess,
    host: HostAnswers,
    pictures: Pictures,
    files: Sequence[str],
    digests: Sequence[str],
    class_names: Sequence[str],
) -> DeviceEvaluation:
    """Returns what measurements made elsewhere say about a target.

    Args:
        measurements: Read and found to be of the judged file.
        target: The target they are held against.
        preprocess: The contract that the pictures should have been prepared by there.
        host: What the same file answers here.
        pictures: What was answered.
        files: Path of each picture below the data folder.
        digests: sha256 of each picture's bytes.
        class_names: Names of the classes in label order.

    Raises:
        SpecError: If they were taken with other threads, or of other pictures.
        IntegrityError: If they contradict themselves.
    """
    m = measurements
    if m.threads != target.runtime.threads:
        raise SpecError(
            f"measurements with {m.threads} threads for {target.name}",
            f"{target.runtime.threads} threads, as the target says",
            "measure again with as many, or change runtime.threads in a copy of the target's file",
        )
    latency = latency_of(m, target.budget.latency_percentile)
    index = pictures.output_index.tolist()
    top1 = answers_of(m, files, digests, class_names, index)
    accuracy = drop = same = None
    if top1 is not None:
        accuracy = accuracy_of(top1, pictures.labels, pictures.classes)
        if host.reference_top1 is not None:
            drop = paired_drop(host.reference_top1, top1, pictures.labels)
        differing = np.flatnonzero(top1 != host.top1)
        same = HostAgreement(
            images=len(top1),
            top1_agreement=float(np.mean(top1 == host.top1)),
            equal=None,
            largest_steps=None,
            largest_share=None,
            differing=tuple(str(pictures.names[row]) for row in differing[:NAMED_IMAGES]),
            differing_images=len(differing),
            cause=_prepared_otherwise(preprocess, len(differing) / len(top1)),
        )
    return DeviceEvaluation(
        target=target.name,
        device=m.device,
        runtime=f"{m.runtime} {m.runtime_version}",
        threads=m.threads,
        accuracy=accuracy,
        drop=drop,
        latency=None if m.emulated else latency,
        memory_bytes=m.memory_peak_bytes,
        against_host=same,
        origin=origin(m),
    )


def _prepared_otherwise(preprocess: Preprocess, share: float) -> str:
    """Returns the likely cause where an app prepared the pictures itself.

    Args:
        preprocess: The contract that it should have followed.
        share: Share of the pictures with another answer than on the host.
    """
    if share == 0:
        return ""
    if share <= ROUNDING_DISAGREEMENT:
        return "kernels or resizing that round otherwise"
    return (
        f"preprocessing: it must rotate by EXIF, resize {preprocess.resize} to "
        f"{preprocess.width_px} x {preprocess.height_px}, crop {preprocess.crop}, order "
        f"{preprocess.channels}, and take pixel * {preprocess.scale[0]:g} "
        f"+ {preprocess.offset[0]:g}"
    )
