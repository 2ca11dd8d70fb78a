"""The validate stage: measures every exported file here and holds it against each target."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.devices import local
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
    pace: local.Pace
    timeout_seconds: float


@dataclass(frozen=True)
class _Answered:
    """One file's answers on the test split."""

    artifact: Artifact
    accuracy: Accuracy
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
    evaluations = tuple(
        Evaluation(
            artifact_sha256=digest,
            runtime=answered[digest].runtime,
            threads=threads,
            accuracy=answered[digest].accuracy,
            drop=None if answered[digest] is reference else drops[digest],
            latency=_summary(timing, _TABLE_PERCENTILE),
        )
        for (digest, threads), timing in timings.items()
    )
    accuracies = {digest: a.accuracy for digest, a in answered.items()}
    positions = {key: position for position, key in enumerate(timings)}
    verdicts = tuple(
        _verdict(target, artifact_for(target, exported), accuracies, drops, timings)
        for target in targets
    )
    return ValidationRecord(
        reference=reference.artifact.path,
        evaluations=evaluations,
        verdicts=verdicts,
        decided_by=tuple(
            positions[artifact_for(target, exported).sha256, target.runtime.threads]
            if target.is_here
            else None
            for target in targets
        ),
    )


def artifact_for(target: Target, exported: ExportRecord) -> Artifact:
    """Returns the file that a target asks for.

    Raises:
        SpecError: If there is none of that format, variant and I/O type.
    """
    wanted = target.artifact
    for artifact in exported.artifacts:
        if (artifact.format, artifact.variant, artifact.io) == (
            wanted.format,
            wanted.variant,
            wanted.io,
        ):
            return artifact
    raise SpecError(
        f"target {target.name} asks for {wanted.format} {wanted.variant} with {wanted.io} I/O",
        "one of " + ", ".join(artifact.path for artifact in exported.artifacts),
        "correct the target's [artifact] table",
    )


def this_machine() -> str:
    """Returns the processor, cores, architecture, system and name of this machine, in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    system = f"{platform.machine()}, {platform.system()} {platform.release()}"
    return f"{model}, {os.cpu_count()} cores, {system}, {platform.node()}"


def checks_of(
    target: Target,
    size_bytes: int,
    accuracy: Accuracy | None,
    drop: PairedDrop | None,
    timing: local.Timing | None,
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
    answers = local.answer(
        subject,
        seconds_allowed(len(labels)),
        lambda done: progress(f"accuracy of {artifact.path}", round(1000 * done), 1000),
    )
    scores = local.scores(answers.raw, answers.output)
    index = np.arange(classes)
    return _Answered(
        artifact,
        measure_accuracy(scores, labels, classes, index),
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
) -> dict[tuple[str, int], local.Timing]:
    """Times every file on one thread, and each local target's file on its own threads."""
    wanted = {(artifact.sha256, 1): artifact for artifact in exported.artifacts}
    for target in targets:
        if target.is_here:
            artifact = artifact_for(target, exported)
            wanted[artifact.sha256, target.runtime.threads] = artifact
    subjects = [
        subject_of(artifact, folder, images, exported.preprocess, threads)
        for (_, threads), artifact in wanted.items()
    ]
    timings = local.time_sessions(
        subjects,
        measuring.sessions,
        measuring.pace,
        measuring.timeout_seconds,
        lambda done: progress("latency", round(1000 * done), 1000),
    )
    return dict(zip(wanted, timings, strict=True))


def _summary(timing: local.Timing, percentile: int) -> Latency:
    return summarize(timing.sessions, percentile, this_machine(), timing.runtime)


def _verdict(
    target: Target,
    artifact: Artifact,
    accuracies: dict[str, Accuracy],
    drops: dict[str, PairedDrop],
    timings: dict[tuple[str, int], local.Timing],
) -> Verdict:
    here = target.is_here
    checks = checks_of(
        target,
        artifact.size_bytes,
        accuracies[artifact.sha256] if here else None,
        drops[artifact.sha256] if here else None,
        timings[artifact.sha256, target.runtime.threads] if here else None,
        "",
    )
    return Verdict(
        target=target.name,
        artifact_path=artifact.path,
        artifact_sha256=artifact.sha256,
        checks=checks,
        status=combine(checks),
    )
