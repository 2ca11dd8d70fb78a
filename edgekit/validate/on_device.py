"""What one file does on the device a target names, against the host and the float model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.devices import adb, measure
from edgekit.devices.local import this_machine
from edgekit.devices.protocol import Subject
from edgekit.devices.transports import open_device
from edgekit.errors import DeviceError, SpecError
from edgekit.records import (
    Accuracy,
    DeviceEvaluation,
    HostAgreement,
    Latency,
    PairedDrop,
    Preprocess,
    TensorInfo,
)
from edgekit.runtimes.base import SHOWN_CHARACTERS, printable
from edgekit.target import PROTOCOLS, RuntimeName, Target
from edgekit.validate.accuracy import (
    Classes,
    OutputIndex,
    measure_accuracy,
    paired_drop,
    top1_classes,
)
from edgekit.validate.latency import summarize
from edgekit.validate.measurements import (
    Measurements,
    accuracy_of,
    answers_of,
    latency_of,
    origin,
    refuse_other_model,
)

NAMED_IMAGES = 20
# Kernels of two processors may round the same sum to neighbouring codes, layer after layer; seen
# between LiteRT's own kernels and XNNPACK on arm64: up to 6 steps at the output.
ROUNDING_STEPS = 6
# The same for float32 outputs, as a share of the largest score.
ROUNDING_SHARE = 1e-3
# Two kernels that only round otherwise seldom disagree on more pictures than this.
ROUNDING_DISAGREEMENT = 0.03

# How people and tools spell the runtimes; the first is the usual name.
_NAMES: dict[RuntimeName, tuple[str, ...]] = {
    "litert": ("litert", "lite rt", "tflite", "tensorflow lite"),
    "litert-js": ("litert",),
    "onnxruntime": ("onnxruntime", "onnx runtime", "ort"),
    "onnxruntime-web": ("onnxruntime", "onnx runtime", "ort"),
    "tflite-micro": ("tflite-micro", "tflite micro", "tensorflow lite micro", "tflm"),
    "ethos-u": ("ethos-u", "ethos"),
    "edgetpu": ("edgetpu", "edge tpu"),
}
# What a runtime is said to compute with where it takes no delegate of its own.
_CPU = ("", "none", "cpu", "xnnpack", "wasm")


@dataclass(frozen=True)
class Measuring:
    """How latency is measured: fresh processes per file, their pace and their time limit."""

    sessions: int
    pace: measure.Pace
    timeout_seconds: float


# Digest, threads, and how: what timed sessions belong to.
Timed = tuple[str, int, Measuring]


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
        earlier: Measurements of its latency before this one, oldest first, which count as well.
        no_drop_because: Why `drop` is None; empty: because nothing was measured.
        no_latency_because: Why `latency` is None; empty: because nothing was measured.
        estimates: What a model of the device says instead of it, in words, by the check's name.
        no_estimate_because: Why there are none although there should be.
    """

    accuracy: Accuracy | None = None
    drop: PairedDrop | None = None
    latency: Latency | None = None
    memory_bytes: int | None = None
    earlier: tuple[Latency, ...] = ()
    no_drop_because: str = ""
    no_latency_because: str = ""
    estimates: tuple[tuple[str, str], ...] = ()
    no_estimate_because: str = ""

    @property
    def latencies(self) -> tuple[Latency, ...]:
        """Every measurement of its latency, oldest first."""
        return self.earlier if self.latency is None else (*self.earlier, self.latency)

    @property
    def most_memory_bytes(self) -> int | None:
        """Most memory of all measurements; None if unknown."""
        known = (self.memory_bytes, *(look.memory_bytes for look in self.earlier))
        return max((value for value in known if value is not None), default=None)

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


def time_here(
    wanted: Mapping[Timed, Subject], progress: Callable[[str, int, int], None]
) -> dict[Timed, measure.Timing]:
    """Times files on this machine; those that are timed alike take turns.

    Args:
        wanted: What to time, by a key whose last part says how.
        progress: Called with (what, done, in all).

    Returns:
        The sessions of each, by the same key.

    Raises:
        EdgekitError: As `edgekit.devices.measure.answer`.
    """
    timings: dict[Timed, measure.Timing] = {}
    for way in dict.fromkeys(key[-1] for key in wanted):
        keys = [key for key in wanted if key[-1] == way]
        found = measure.time_sessions(
            [wanted[key] for key in keys],
            way.sessions,
            way.pace,
            way.timeout_seconds,
            lambda done: progress("latency", round(1000 * done), 1000),
        )
        timings.update(zip(keys, found, strict=True))
    return timings


def measured_here(
    target: Target,
    accuracy: Accuracy,
    drop: PairedDrop | None,
    timing: measure.Timing,
    no_drop_because: str = "",
) -> Measured:
    """Returns what this machine, being the target's device, says about the file.

    Args:
        target: The target.
        accuracy: Of the answers of this machine.
        drop: Against the float reference; None without one.
        timing: Timed sessions as the target asks.
        no_drop_because: Why `drop` is None. Defaults to nothing.
    """
    percentile = target.budget.latency_percentile
    latency = summarize(timing.sessions, percentile, this_machine(), timing.runtime)
    return Measured(
        accuracy=accuracy,
        drop=drop,
        latency=latency,
        memory_bytes=latency.memory_bytes,
        no_drop_because=no_drop_because,
    )


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
        progress=lambda done: progress(f"accuracy on {target.name}", round(1000 * done), 1000),
        device=device,
    )
    scores = measure.scores(answers.raw, answers.output, subject.readout)
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


def measure_target(
    target: Target,
    subjects: Sequence[Subject],
    host: HostAnswers,
    pictures: Pictures,
    measuring: Measuring,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> tuple[DeviceEvaluation, list[measure.Timing]]:
    """Reaches a target's device and measures there; see `measure_on`.

    Args:
        target: The target; edgekit can look for its device.
        subjects: As in `measure_on`.
        host: As in `measure_on`.
        pictures: As in `measure_on`.
        measuring: As in `measure_on`.
        say: Called with one line worth keeping.
        progress: Called with (what, done, in all).

    Raises:
        EdgekitError: As `open_device` and `measure_on`.
    """
    if target.device.benchmark is not None:
        return _benchmark(target, subjects[0], measuring_of(target, measuring), say, progress), []
    with open_device(target.device, target.runtime.name, say) as device:
        return measure_on(device, target, subjects, host, pictures, measuring, progress)


def _benchmark(
    target: Target,
    subject: Subject,
    measuring: Measuring,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> DeviceEvaluation:
    """Returns the latency that LiteRT's own benchmark program sees on a phone, and no answers."""
    device, pace, texts = target.device, measuring.pace, []
    with adb.reach(serial=device.serial, model=device.model, say=say) as phone:
        machine, disturbed = phone.machine, dict.fromkeys(phone.disturbances())
        for turn in range(measuring.sessions):
            progress(f"latency on {target.name}", turn, measuring.sessions)
            ran = adb.benchmark(
                phone,
                Path(device.benchmark or ""),
                subject.model,
                threads=subject.threads,
                runs=pace.min_queries,
                seconds=pace.min_seconds,
                warmup_seconds=pace.warmup_seconds,
                timeout_seconds=measuring.timeout_seconds,
            )
            if ran.exit_code != 0:
                raise DeviceError(
                    f"{device.benchmark} ended with code {ran.exit_code}: "
                    f"{printable(ran.text[-SHOWN_CHARACTERS:])}",
                    "a run of benchmark_model",
                    "check that it is built for the phone's processor",
                )
            texts.append(ran.text)
        disturbed |= dict.fromkeys(phone.disturbances())
    said = Measurements.model_validate(
        {
            "edgekit_measurements": 1,
            "sha256": subject.sha256,
            "by": "edgekit",
            "at": datetime.now(UTC).isoformat(),
            "device": machine.words,
            "os": "Android",
            "cores": machine.cores or 1,
            "runtime": "LiteRT",
            "runtime_version": "of benchmark_model",
            "threads": subject.threads,
            "emulated": not machine.real,
            "benchmark_model": texts,
        }
    )
    refuse_other_model(said, subject.sha256, subject.model.stat().st_size)
    latency = latency_of(said, target.budget.latency_percentile)
    if latency is not None:
        latency = latency.model_copy(update={"disturbances": (*latency.disturbances, *disturbed)})
    return DeviceEvaluation(
        target=target.name,
        device=machine.words,
        runtime=f"{said.runtime} {said.runtime_version}",
        threads=subject.threads,
        accuracy=None,
        drop=None,
        latency=latency if machine.real else None,
        against_host=None,
    )


def summary(timing: measure.Timing, percentile: int, device: measure.Device) -> Latency:
    """Returns the latency of one file's sessions on a device."""
    machine = device.machine
    return summarize(
        timing.sessions,
        percentile,
        machine.words,
        timing.runtime,
        timing.cores,
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
    here, there = host.raw.astype(np.float64), raw.astype(np.float64)
    same = (here == there) | (np.isnan(here) & np.isnan(there))
    apart = np.abs(there[~same] - here[~same])
    integer = output.dtype != "float32"
    largest = float(np.abs(here[np.isfinite(here)]).max(initial=1e-30))
    finite = bool(np.isfinite(apart).all())
    steps = float(apart.max(initial=0.0)) / (1.0 if integer else largest) if finite else math.inf
    share = float(np.mean(top1 != host.top1))
    found = _agreement(
        host,
        top1,
        pictures,
        _cause(steps, integer, share, host.runtime, runtime, target),
    )
    return found.model_copy(
        update={
            "equal": float(np.mean(same)),
            "largest_steps": steps if integer else None,
            "largest_share": None if integer or not finite else steps,
        }
    )


def _agreement(host: HostAnswers, top1: Classes, pictures: Pictures, cause: str) -> HostAgreement:
    """Returns how a device's classes differ from the host's."""
    differing = np.flatnonzero(top1 != host.top1)
    return HostAgreement(
        images=len(top1),
        top1_agreement=float(np.mean(top1 == host.top1)),
        equal=None,
        largest_steps=None,
        largest_share=None,
        differing=tuple(str(pictures.names[index]) for index in differing[:NAMED_IMAGES]),
        differing_images=len(differing),
        cause=cause,
        drop=paired_drop(host.top1, top1, pictures.labels),
    )


def _cause(apart: float, integer: bool, share: float, here: str, there: str, target: Target) -> str:
    """Returns the likely cause of a difference in words; empty where nothing differs.

    Device and host get the same pixels and the same table from pixel to tensor, so preprocessing
    is ruled out and what remains is arithmetic.
    """
    if apart == 0:
        return ""
    if math.isinf(apart):
        return "it answers scores that are not finite; do not trust this file there"
    if target.runtime.delegate not in ("default", "none", "xnnpack"):
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
        measurements: Read and found to be of the judged file and the target's device.
        target: The target they are held against.
        preprocess: The contract that the pictures should have been prepared by there.
        host: What the same file answers here.
        pictures: What was answered.
        files: Path of each picture below the data folder.
        digests: sha256 of each picture's bytes.
        class_names: Names of the classes in label order.

    Raises:
        SpecError: If they are of other pictures.
        IntegrityError: If they contradict themselves.
    """
    m = measurements
    latency = latency_of(m, target.budget.latency_percentile)
    index = pictures.output_index.tolist()
    top1 = answers_of(m, files, digests, class_names, index)
    accuracy = drop = same = None
    if top1 is not None:
        accuracy = accuracy_of(top1, pictures.labels, pictures.classes)
        if host.reference_top1 is not None:
            drop = paired_drop(host.reference_top1, top1, pictures.labels)
        share = float(np.mean(top1 != host.top1))
        same = _agreement(host, top1, pictures, _prepared_otherwise(preprocess, share))
    return DeviceEvaluation(
        target=target.name,
        device=m.device,
        runtime=f"{m.runtime} {m.runtime_version}",
        threads=m.threads,
        accuracy=accuracy,
        drop=drop,
        latency=None if m.emulated else latency,
        memory_bytes=None if m.emulated else m.memory_peak_bytes,
        against_host=same,
        origin=origin(m),
    )


def refuse_other_device(m: Measurements, target: Target) -> None:
    """Refuses measurements of another runtime, delegate or device than the target names.

    Args:
        m: Measurements made elsewhere.
        target: The target they shall count for.

    Raises:
        SpecError: If they are.
    """
    device, runtime = target.device, target.runtime
    delegate = (m.delegate or "").lower()
    names, said = _NAMES[runtime.name], f"{m.runtime} {m.delegate or ''}".lower()
    usual = delegate in _CPU if runtime.delegate == "default" else delegate == runtime.delegate
    problems = (
        (not any(name in said for name in names), f"runtime {m.runtime}", names[0]),
        (m.threads != runtime.threads, f"{m.threads} threads", f"{runtime.threads}"),
        (not usual, f"delegate {m.delegate}", f"the delegate {runtime.delegate}"),
        (device.cores not in (None, m.cores), f"{m.cores} cores", f"{device.cores} cores"),
        (
            device.model is not None and device.model not in m.device,
            f"device {m.device}",
            f"a device that calls itself {device.model}",
        ),
    )
    wrong = [(found, wanted) for is_wrong, found, wanted in problems if is_wrong]
    if wrong:
        raise SpecError(
            f"measurements with {', '.join(found for found, _ in wrong)} for {target.name}",
            f"{', '.join(wanted for _, wanted in wrong)}, as the target says",
            "measure again so, or change that in a copy of the target's file",
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
        f"{preprocess.width_px} x {preprocess.height_px}, crop {preprocess.crop}"
        f"{f', fill {preprocess.fill}' if preprocess.crop == 'letterbox' else ''}, order "
        f"{preprocess.channels}, and take pixel * {preprocess.scale[0]:g} "
        f"+ {preprocess.offset[0]:g}"
    )
