"""The validate stage: measures every exported file here and holds it against each target."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.devices import measure
from edgekit.devices.local import this_machine
from edgekit.devices.protocol import Subject, subject_of
from edgekit.errors import SpecError
from edgekit.records import (
    Accuracy,
    Artifact,
    Check,
    Evaluation,
    ExportRecord,
    Latency,
    PairedDrop,
    Status,
    ValidationRecord,
    Verdict,
)
from edgekit.target import Target
from edgekit.validate.accuracy import (
    measure_accuracy,
    paired_drop,
    seconds_allowed,
    sqnr_db,
    top1_classes,
)
from edgekit.validate.latency import summarize
from edgekit.validate.verdict import (
    check_accuracy_drop,
    check_accuracy_floor,
    check_device,
    check_latency,
    check_memory,
    check_size,
    combine,
)

Labels = npt.NDArray[np.int32]
# The percentile of the variant table; a target's own percentile decides its verdict.
_TABLE_PERCENTILE = 90


@dataclass(frozen=True)
class Measuring:
    """How latency is measured: fresh processes per file, their pace and their time limit."""

    sessions: int
    pace: measure.Pace
    timeout_seconds: float


@dataclass(frozen=True)
class _Answered:
    """One file's answers on the test split."""

    artifact: Artifact
    accuracy: Accuracy
    scores: npt.NDArray[np.float32]
    top1: Labels
    runtime: str


def judge(
    exported: ExportRecord,
    folder: Path,
    images: Path,
    labels: Labels,
    targets: Sequence[Target],
    measuring: Measuring,
    *,
    progress: Callable[[str, int, int], None],
) -> ValidationRecord:
    """Judges every file on the test split and every target by the file it asks for.

    Args:
        exported: The files, with the preprocessing contract.
        folder: Where they lie.
        images: `.npy`, uint8 (n, h, w, 3), the test split.
        labels: int32 (n,).
        targets: Targets in the order asked.
        measuring: How latency is measured.
        progress: Called with (what, done, in all).

    Raises:
        SpecError: If a target asks for a file that was not exported.
        IntegrityError: If a file does not have its recorded digest or crashes its runtime.
        DeviceError: If a runtime fails or hangs.
    """
    answered = {}
    for artifact in exported.artifacts:
        subject = subject_of(artifact, folder, images, exported.preprocess)
        answered[artifact.sha256] = _answer(
            subject, artifact, labels, len(exported.class_names), progress
        )
    reference = next(
        a
        for a in answered.values()
        if (a.artifact.format, a.artifact.variant) == ("tflite", "float32")
    )
    drops = {digest: paired_drop(reference.top1, a.top1, labels) for digest, a in answered.items()}
    timings = _time(exported, folder, images, targets, measuring, progress)
    wanted = dict.fromkeys((*((digest, 1) for digest in answered), *timings))
    evaluations = []
    for digest, threads in wanted:
        found, timing = answered[digest], timings.get((digest, threads))
        evaluations.append(
            Evaluation(
                artifact_sha256=digest,
                runtime=found.runtime,
                threads=threads,
                accuracy=found.accuracy,
                drop=None if found is reference else drops[digest],
                sqnr_db=sqnr_db(reference.scores, found.scores),
                latency=None if timing is None else _summary(timing, _TABLE_PERCENTILE),
            )
        )
    accuracies = {digest: a.accuracy for digest, a in answered.items()}
    positions = {key: position for position, key in enumerate(wanted)}
    verdicts = tuple(
        _verdict(target, artifact_for(target, exported), exported, accuracies, drops, timings)
        for target in targets
    )
    return ValidationRecord(
        reference=reference.artifact.path,
        evaluations=tuple(evaluations),
        verdicts=verdicts,
        decided_by=tuple(
            positions[artifact_for(target, exported).sha256, target.runtime.threads]
            if target.is_here
            else None
            for target in targets
        ),
        int8_against_other=_against_other(answered.values(), labels),
    )


def _against_other(answered: Iterable[_Answered], labels: Labels) -> PairedDrop | None:
    """Holds the int8 TFLite file that ships against the candidate that lost."""
    int8 = [a for a in answered if (a.artifact.format, a.artifact.variant) == ("tflite", "int8")]
    ships = next((a for a in int8 if a.artifact.ships), None)
    lost = next((a for a in int8 if not a.artifact.ships), None)
    return paired_drop(lost.top1, ships.top1, labels) if lost and ships else None


def artifact_for(target: Target, exported: ExportRecord) -> Artifact:
    """Returns the file that a target asks for.

    Raises:
        SpecError: If there is none of that format, variant and I/O type.
    """
    wanted = target.artifact
    for artifact in exported.artifacts:
        found = (artifact.format, artifact.variant, artifact.io, artifact.batch)
        if artifact.ships and found == (wanted.format, wanted.variant, wanted.io, wanted.batch):
            return artifact
    raise SpecError(
        f"target {target.name} asks for {wanted.format} {wanted.variant} with {wanted.io} I/O and "
        f"a batch of {wanted.batch}",
        "one of " + ", ".join(artifact.path for artifact in exported.artifacts if artifact.ships),
        "correct the target's [artifact] table",
    )


def checks_of(
    target: Target,
    size_bytes: int,
    accuracy: Accuracy | None,
    drop: PairedDrop | None,
    timing: measure.Timing | None,
    no_drop_because: str,
) -> tuple[Check, ...]:
    """Holds one file's measurements against every budget that a target states.

    Where edgekit cannot reach the device, at least one check is UNMEASURED, whatever the budgets.

    Args:
        target: The target.
        size_bytes: Size of the file.
        accuracy: Accuracy measured on the target's own device, or None.
        drop: Accuracy lost on it, or None.
        timing: Timed sessions on it, or None.
        no_drop_because: Why `drop` is None, if it is.
    """
    budget, reachable = target.budget, target.is_here
    absent = (
        "not measured"
        if reachable
        else f"edgekit cannot reach {target.device.description} yet; "
        "only a measurement on it counts"
    )
    checks = []
    if budget.accuracy_drop_points is not None:
        checks.append(
            check_accuracy_drop(drop, budget.accuracy_drop_points, no_drop_because or absent)
        )
    if budget.accuracy_min_percent is not None:
        checks.append(check_accuracy_floor(accuracy, budget.accuracy_min_percent, absent))
    if budget.latency_ms is not None:
        latency = _summary(timing, budget.latency_percentile) if timing else None
        checks.append(check_latency(latency, budget.latency_ms, absent))
    if budget.size_bytes is not None:
        checks.append(check_size(size_bytes, budget.size_bytes))
    if budget.memory_bytes is not None:
        checks.append(check_memory(None, budget.memory_bytes, absent))
    if not reachable and all(check.status != Status.UNMEASURED for check in checks):
        checks.append(check_device(absent))
    return tuple(checks)


def _answer(
    subject: Subject,
    artifact: Artifact,
    labels: Labels,
    classes: int,
    progress: Callable[[str, int, int], None],
) -> _Answered:
    answers = measure.answer(
        subject,
        seconds_allowed(len(labels)),
        lambda done: progress(f"accuracy of {artifact.path}", round(1000 * done), 1000),
    )
    scores = measure.scores(answers.raw, answers.output)
    index = np.arange(classes)
    return _Answered(
        artifact,
        measure_accuracy(scores, labels, classes, index),
        scores,
        top1_classes(scores, classes, index),
        answers.runtime,
    )


def _time(
    exported: ExportRecord,
    folder: Path,
    images: Path,
    targets: Sequence[Target],
    measuring: Measuring,
    progress: Callable[[str, int, int], None],
) -> dict[tuple[str, int], measure.Timing]:
    """Times every file that ships on one thread, and each local target's on its own threads.

    Where that is an int8 file, the float32 file of its format is timed as well.
    """
    wanted = {(artifact.sha256, 1): artifact for artifact in exported.artifacts if artifact.ships}
    for target in targets:
        if target.is_here:
            artifact = artifact_for(target, exported)
            for timed in (artifact, _float_of(artifact, exported)):
                wanted[timed.sha256, target.runtime.threads] = timed
    subjects = [
        subject_of(artifact, folder, images, exported.preprocess, threads)
        for (_, threads), artifact in wanted.items()
    ]
    timings = measure.time_sessions(
        subjects,
        measuring.sessions,
        measuring.pace,
        measuring.timeout_seconds,
        lambda done: progress("latency", round(1000 * done), 1000),
    )
    return dict(zip(wanted, timings, strict=True))


def _summary(timing: measure.Timing, percentile: int) -> Latency:
    return summarize(timing.sessions, percentile, this_machine(), timing.runtime)


def _float_of(artifact: Artifact, exported: ExportRecord) -> Artifact:
    """Returns the float32 file of an int8 file's format; any other file itself."""
    if artifact.variant != "int8":
        return artifact
    same = (a for a in exported.artifacts if (a.format, a.variant) == (artifact.format, "float32"))
    return next(same, artifact)


def slower_than_float(int8: measure.Timing, float32: measure.Timing) -> str | None:
    """Returns a sentence if int8 is slower than float32 on one device, else None.

    Slower means that every session's median is above every median of the float32 file. It happens
    where a processor has no instructions for int8, and nobody who ships int8 expects it.

    Args:
        int8: Timed sessions of the int8 file.
        float32: Timed sessions of the float32 file, with as many threads.
    """
    medians = [
        [float(np.median(session.samples_ms)) for session in timing.sessions]
        for timing in (int8, float32)
    ]
    if min(medians[0]) <= max(medians[1]):
        return None
    ours, theirs = (float(np.median(values)) for values in medians)
    return (
        f"int8 is slower than float32 here: {ours:.2f} ms against {theirs:.2f} ms a picture "
        f"({ours / theirs:.2f} times), in every session; ship it for its size, or take float32"
    )


def _verdict(
    target: Target,
    artifact: Artifact,
    exported: ExportRecord,
    accuracies: dict[str, Accuracy],
    drops: dict[str, PairedDrop],
    timings: dict[tuple[str, int], measure.Timing],
) -> Verdict:
    here, threads = target.is_here, target.runtime.threads
    timing = timings[artifact.sha256, threads] if here else None
    checks = checks_of(
        target,
        artifact.size_bytes,
        accuracies[artifact.sha256] if here else None,
        drops[artifact.sha256] if here else None,
        timing,
        "",
    )
    other = _float_of(artifact, exported)
    slow = None
    if timing and other is not artifact:
        slow = slower_than_float(timing, timings[other.sha256, threads])
    return Verdict(
        target=target.name,
        artifact_path=artifact.path,
        artifact_sha256=artifact.sha256,
        checks=checks,
        status=combine(checks),
        notes=(slow,) if slow else (),
    )
