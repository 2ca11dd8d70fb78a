"""The validate stage: measures every exported file here and holds it against each target."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    DeviceEvaluation,
    Evaluation,
    ExportRecord,
    Latency,
    PairedDrop,
    Status,
    ValidationRecord,
    Verdict,
)
from edgekit.runtimes.base import RUNTIME_OF_FORMAT
from edgekit.target import Target
from edgekit.validate.accuracy import (
    measure_accuracy,
    paired_drop,
    sqnr_db,
    top1_classes,
)
from edgekit.validate.answers import Answers, answers_table
from edgekit.validate.estimates import estimated
from edgekit.validate.latency import summarize
from edgekit.validate.on_device import (
    HostAnswers,
    Measured,
    Measuring,
    Pictures,
    Timed,
    measure_target,
    measured_here,
    measured_of,
    measuring_of,
    time_here,
)
from edgekit.validate.other import Other, OtherScores, judge_other
from edgekit.validate.verdict import (
    check_accuracy_drop,
    check_accuracy_floor,
    check_believable_accuracy,
    check_believable_latency,
    check_device,
    check_flash,
    check_informative,
    check_latency,
    check_memory,
    check_operators,
    check_parity,
    check_size,
    combine,
    in_words,
)

Labels = npt.NDArray[np.int32]
# The percentile of the variant table; a target's own percentile decides its verdict.
_TABLE_PERCENTILE = 90


@dataclass(frozen=True)
class _Answered:
    """One file's answers on the test split."""

    artifact: Artifact
    accuracy: Accuracy
    raw: npt.NDArray[np.generic]
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
    names: Sequence[str],
    answers: Path,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
    earlier: Sequence[Verdict] = (),
    other: Other | None = None,
) -> ValidationRecord:
    """Judges every file on the test split and every target by the file it asks for.

    Every file is answered and timed on this machine; a target's file also on the target's device,
    where edgekit can reach it.

    Args:
        exported: The files, with the preprocessing contract.
        folder: Where they lie.
        images: `.npy`, uint8 (n, h, w, 3), the test split.
        labels: int32 (n,).
        targets: Targets in the order asked.
        measuring: How latency is measured, where a target has no protocol of its own.
        names: What each image is called, for people.
        answers: CSV file that receives what each file answered on this machine for each image.
        say: Called with one line worth keeping.
        progress: Called with (what, done, in all).
        earlier: Verdicts on the same files for the same targets, with all else equal; their
            measurements of latency count as well. Defaults to none.
        other: Pictures of no class, which every file answers too. Defaults to None: none are given.

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
    told = [Answers(a.top1, a.scores.max(axis=1), a.artifact.path) for a in answered.values()]
    answers.write_bytes(answers_table(names, labels, told, exported.class_names).encode())
    drops = {digest: paired_drop(reference.top1, a.top1, labels) for digest, a in answered.items()}
    pictures = Pictures(labels, names, len(exported.class_names), _every(exported))
    on_devices, estimates = {}, {}
    for target in targets:
        if is_host(target):
            continue
        subject = subject_of(artifact_for(target, exported), folder, images, exported.preprocess)
        found = answered[subject.sha256]
        host = HostAnswers(found.raw, found.top1, reference.top1, found.runtime)
        if target.is_measured:
            on_devices[target.name] = _on_device(
                target, exported, folder, images, host, pictures, measuring, say, progress
            )
        else:
            estimates[target.name] = estimated(target, subject, host, pictures, say, progress)
    timings = _time(exported, folder, images, targets, measuring, progress)
    wanted = dict.fromkeys((*((digest, 1, measuring) for digest in answered), *timings))
    evaluations = []
    for digest, threads, way in wanted:
        found, timing = answered[digest], timings.get((digest, threads, way))
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
    positions = {key: position for position, key in enumerate(wanted)}
    verdicts = []
    before = {(v.target, v.artifact_sha256): v.latency_measurements for v in earlier}
    for target in targets:
        artifact = artifact_for(target, exported)
        if is_host(target):
            timing, float_timing = (
                timings[a.sha256, target.runtime.threads, measuring_of(target, measuring)]
                for a in (artifact, float_of(artifact, exported))
            )
            accuracy = answered[artifact.sha256].accuracy
            measured = measured_here(target, accuracy, drops[artifact.sha256], timing)
            notes = _notes(timing, float_timing)
        elif target.name in on_devices:
            evaluation, notes = on_devices[target.name]
            measured = measured_of(evaluation)
        else:
            measured, notes = estimates[target.name], ()
        measured = replace(measured, earlier=before.get((target.name, artifact.sha256), ()))
        verdicts.append(_verdict(target, artifact, measured, notes, exported))
    return ValidationRecord(
        reference=reference.artifact.path,
        evaluations=tuple(evaluations),
        verdicts=tuple(verdicts),
        decided_by=tuple(
            positions[
                artifact_for(target, exported).sha256,
                target.runtime.threads,
                measuring_of(target, measuring),
            ]
            if is_host(target)
            else None
            for target in targets
        ),
        on_devices=tuple(evaluation for evaluation, _ in on_devices.values()),
        int8_against_other=_against_other(answered.values(), labels),
        other=None
        if other is None
        else judge_other(
            other,
            [
                _other_scores(a, other, folder, exported, labels, progress)
                for a in answered.values()
            ],
        ),
    )


def _other_scores(
    answered: _Answered,
    other: Other,
    folder: Path,
    exported: ExportRecord,
    labels: Labels,
    progress: Callable[[str, int, int], None],
) -> OtherScores:
    """Returns what a file gives to pictures of no class."""
    artifact = answered.artifact
    found = measure.answer(
        subject_of(artifact, folder, other.images, exported.preprocess),
        progress=lambda done: progress(f"no class, {artifact.path}", round(1000 * done), 1000),
    )
    return OtherScores(
        artifact.sha256,
        found.output.scale or 0.0,
        measure.scores(found.raw, found.output).max(axis=1),
        answered.scores.max(axis=1),
        answered.top1 == labels,
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
    operators: Collection[str],
    measured: Measured,
    class_names: Sequence[str] = (),
) -> tuple[Check, ...]:
    """Holds one file's measurements against every budget that a target states.

    Where nothing was measured on the device, at least one check is UNMEASURED, whatever the
    budgets. Answers that say nothing about the pictures pass nothing.

    Args:
        target: The target.
        size_bytes: Size of the file.
        operators: Names of the operators in the file.
        measured: What is known about it on the target's own device.
        class_names: Names of the classes. Defaults to none: numbers.
    """
    budget, expect = target.budget, target.expect
    absent = "not measured"
    if target.device.missing:
        absent = f"{target.device.missing}; only a measurement on it counts"
    if measured.no_estimate_because:
        absent += f"; no estimate: {measured.no_estimate_because}"
    no_time = measured.no_latency_because or absent
    no_memory = "the device does not tell it" if measured.anything else absent
    estimates = dict(measured.estimates)
    asked: tuple[tuple[Any, Callable[[Any], Check]], ...] = (
        (
            budget.accuracy_drop_points,
            lambda most: check_accuracy_drop(
                measured.drop,
                most,
                measured.no_drop_because or absent,
                estimates.get("accuracy_drop"),
                measured.accuracy,
            ),
        ),
        (
            budget.accuracy_min_percent,
            lambda least: check_accuracy_floor(
                measured.accuracy, least, absent, estimates.get("accuracy")
            ),
        ),
        (
            expect.accuracy_max_percent,
            lambda most: check_believable_accuracy(measured.accuracy, most, absent),
        ),
        (
            budget.latency_ms,
            lambda most: check_latency(
                measured.latency, most, no_time, estimates.get("latency"), measured.earlier
            ),
        ),
        (
            expect.latency_min_ms,
            lambda least: check_believable_latency(
                measured.latency, least, no_time, measured.earlier
            ),
        ),
        (budget.size_bytes, lambda most: check_size(size_bytes, most)),
        (
            budget.memory_bytes,
            lambda most: check_memory(
                measured.most_memory_bytes, most, no_memory, estimates.get("memory")
            ),
        ),
        (budget.flash_bytes, lambda most: check_flash(most, absent, estimates.get("flash"))),
        (target.artifact.operators, lambda allowed: check_operators(operators, allowed)),
    )
    checks = [check(limit) for limit, check in asked if limit is not None]
    if measured.accuracy is not None:
        silent = check_informative(measured.accuracy, class_names)
        checks += [silent] if silent else []
    if not measured.anything and all(c.status != Status.UNMEASURED for c in checks):
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
        progress=lambda done: progress(f"accuracy of {artifact.path}", round(1000 * done), 1000),
    )
    scores = measure.scores(answers.raw, answers.output)
    index = np.arange(classes)
    return _Answered(
        artifact,
        measure_accuracy(scores, labels, classes, index),
        answers.raw,
        scores,
        top1_classes(scores, classes, index),
        answers.runtime,
    )


def _every(exported: ExportRecord) -> npt.NDArray[np.int64]:
    """Returns the outputs that stand for the classes: all of them, in order."""
    return np.arange(len(exported.class_names))


def unasked_estimates(measured: Measured, checks: Sequence[Check]) -> tuple[str, ...]:
    """Returns the estimates that stand beside no check, because no budget asks for them."""
    asked = {check.name for check in checks}
    return tuple(
        f"estimate of {name}: {text}" for name, text in measured.estimates if name not in asked
    )


def is_host(target: Target) -> bool:
    """Returns whether a target is answered by what every file is measured with anyway."""
    return target.is_here and target.runtime.delegate == "default"


def _on_device(
    target: Target,
    exported: ExportRecord,
    folder: Path,
    images: Path,
    host: HostAnswers,
    pictures: Pictures,
    measuring: Measuring,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> tuple[DeviceEvaluation, tuple[str, ...]]:
    """Measures a target's file on the target's device, and beside it its float32 file."""
    artifact = artifact_for(target, exported)
    other, runtime = float_of(artifact, exported), target.runtime
    subjects = [
        subject_of(a, folder, images, exported.preprocess, runtime.threads, runtime.delegate)
        for a in ((artifact,) if other is artifact else (artifact, other))
    ]
    evaluation, timings = measure_target(target, subjects, host, pictures, measuring, say, progress)
    return evaluation, _notes(*timings) if timings else ()


def _time(
    exported: ExportRecord,
    folder: Path,
    images: Path,
    targets: Sequence[Target],
    measuring: Measuring,
    progress: Callable[[str, int, int], None],
) -> dict[Timed, measure.Timing]:
    """Times every file that ships on one thread, and each host target's on its own threads.

    Where that is an int8 file, its runtime's float32 file is timed as well. A target's protocol
    holds for what is timed for it.
    """
    wanted: dict[Timed, Artifact] = {
        (artifact.sha256, 1, measuring): artifact
        for artifact in exported.artifacts
        if artifact.ships
    }
    for target in targets:
        if is_host(target):
            artifact, own = artifact_for(target, exported), measuring_of(target, measuring)
            for timed in (artifact, float_of(artifact, exported)):
                wanted[timed.sha256, target.runtime.threads, own] = timed
    subjects = {
        key: subject_of(artifact, folder, images, exported.preprocess, key[1])
        for key, artifact in wanted.items()
    }
    return time_here(subjects, progress)


def _summary(timing: measure.Timing, percentile: int) -> Latency:
    return summarize(timing.sessions, percentile, this_machine(), timing.runtime)


def float_of(artifact: Artifact, exported: ExportRecord) -> Artifact:
    """Returns the float32 file that an int8 file's runtime runs; any other file itself."""
    if artifact.variant != "int8":
        return artifact
    runtime = RUNTIME_OF_FORMAT[artifact.format]
    others = (a for a in exported.artifacts if a.variant == "float32")
    return next((a for a in others if RUNTIME_OF_FORMAT[a.format] == runtime), artifact)


def _notes(timing: measure.Timing, float_timing: measure.Timing | None = None) -> tuple[str, ...]:
    """Returns what a target's owner should know about its times although no budget asks for it."""
    if float_timing is None or float_timing is timing:
        return ()
    slow = slower_than_float(timing, float_timing)
    return (slow,) if slow else ()


def slower_than_float(int8: measure.Timing, float32: measure.Timing) -> str | None:
    """Returns a sentence if int8 is slower than float32 on one device, else None.

    Slower means that every session's median is above every median of the float32 file. It happens
    where a processor has no instructions for int8, and nobody who ships int8 expects it. What
    disturbed either stands beside it.

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
    said = (
        f"int8 is slower than float32 here: {ours:#.3g} ms against {theirs:#.3g} ms a picture "
        f"({ours / theirs:.2f} times), in every session; ship it for its size, or take float32"
    )
    caveats = [
        f"{name}: {latency.caveat}"
        for name, latency in (("int8", _medians(int8)), ("float32", _medians(float32)))
        if latency.caveat
    ]
    return "; ".join((said, *caveats))


def _medians(timing: measure.Timing) -> Latency:
    """Returns sessions as the latency at their medians, with what disturbed them."""
    said, cores = timing.disturbances, timing.cores
    return summarize(timing.sessions, 50, "", timing.runtime, cores, said)


def told(target: Target, measured: Measured) -> str:
    """Returns what was measured for a target, in words; see `verdict.in_words`."""
    budget = target.budget
    return in_words(
        measured.accuracy,
        measured.drop,
        measured.latency,
        budget.accuracy_min_percent,
        budget.latency_ms,
    )


def _verdict(
    target: Target,
    artifact: Artifact,
    measured: Measured,
    notes: tuple[str, ...],
    exported: ExportRecord,
) -> Verdict:
    checks = checks_of(
        target, artifact.size_bytes, artifact.operators, measured, exported.class_names
    )
    notes = (*notes, *unasked_estimates(measured, checks))
    # No budget asks for parity, so it passes nothing; what it finds is not to be shipped unseen.
    checks += tuple(
        check_parity(found)
        for found in exported.parity
        if found.artifact_sha256 == artifact.sha256 and found.departs
    )
    return Verdict(
        target=target.name,
        artifact_path=artifact.path,
        artifact_sha256=artifact.sha256,
        checks=checks,
        status=combine(checks),
        in_words=told(target, measured),
        notes=notes,
        latency_measurements=measured.latencies,
    )
