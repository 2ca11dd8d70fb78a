"""Judging one finished file on a folder of labelled pictures: the order of the steps."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from edgekit import limits
from edgekit.data.decode import read_folder
from edgekit.data.files import Form, printable
from edgekit.data.scan import Scan, scan
from edgekit.devices import measure
from edgekit.devices.local import this_machine
from edgekit.devices.transports import reached
from edgekit.errors import DataError, IntegrityError, SpecError
from edgekit.folders import scratch_folder
from edgekit.records import (
    Accuracy,
    Check,
    Crop,
    DeviceEvaluation,
    ExportRecord,
    Latency,
    PairedDrop,
    Record,
    SkippedFile,
    SplitName,
    Status,
    Verdict,
)
from edgekit.report.sentences import left_out
from edgekit.spec import build
from edgekit.store import file_digest, write_atomically
from edgekit.target import (
    BudgetSpec,
    Target,
    load_target,
    refuse_same_names,
    refuse_unused,
    with_latency_budget,
)
from edgekit.validate.answers import Answers, answers_table
from edgekit.validate.contract_trial import FIRST_PICTURES, rank_contracts, spread
from edgekit.validate.contracts import (
    USUAL,
    InputOptions,
    Recorded,
    UnsaidScalingError,
    filling,
    per_channel,
    usual_contracts,
)
from edgekit.validate.estimates import estimated
from edgekit.validate.external import (
    Plan,
    drop_against,
    judge_external,
    plan_answers,
    plan_external,
    plan_reference,
    refuse_too_much,
    subject,
)
from edgekit.validate.judging import checks_of, is_host, told, unasked_estimates
from edgekit.validate.labels import read_labels
from edgekit.validate.latency import summarize
from edgekit.validate.measurements import (
    Measurements,
    origin,
    read_measurements,
    refuse_other_model,
    warnings_about,
)
from edgekit.validate.on_device import (
    HostAnswers,
    Measured,
    Measuring,
    Pictures,
    Timed,
    evaluate_import,
    measure_target,
    measured_here,
    measured_of,
    measuring_of,
    refuse_other_device,
    time_here,
)
from edgekit.validate.outputs import OutputOptions, threshold_words
from edgekit.validate.verdict import check_granularity, combine

_HOST_TARGET = {"tflite": "host-litert", "onnx": "host-onnxruntime", "ort": "host-onnxruntime"}
_SIDE_RECORD = "artifacts.json"
# Five sessions of a second each answer within half a minute; a recipe can ask for more.
_MEASURING = Measuring(5, measure.Pace(min_seconds=1.0), 600.0)
_NO_REFERENCE = (
    "no --reference file was given to compare with; --min-accuracy judges by a floor instead"
)
# The percentile of the summary; a target's own percentile decides its verdict.
_SHOWN_PERCENTILE = 90


@dataclass(frozen=True)
class Question:
    """What the user asks about a file; see the options of `edgekit validate`.

    `resize`, `crop`, `fill`, `channels`, `input_scale` and `input_offset` go before what the file
    or the record beside it says; None leaves it to them, and without them to the defaults of
    `edgekit.records.Preprocess`.
    """

    file: Path
    data: Path
    reference: Path | None = None
    labels: Path | None = None
    label_offset: int = 0
    input_scale: tuple[float, ...] | None = None
    input_offset: tuple[float, ...] | None = None
    resize: Literal["bilinear", "bicubic", "nearest"] | None = None
    crop: Crop | None = None
    fill: tuple[int, ...] | None = None
    channels: Literal["rgb", "bgr"] | None = None
    output: str | None = None
    threshold: float | None = None
    targets: tuple[Target, ...] = ()
    min_accuracy_percent: float | None = None
    latency_budget_ms: float | None = None
    measurements: Path | None = None
    form: Form = field(default_factory=Form)
    max_bad_fraction: float = 0.01
    max_megapixels: float = limits.PICTURE_MEGAPIXELS
    answers: Path | None = None


class FileReport(Record):
    """What was measured about a finished file, and the verdict per target.

    Args:
        file: Its name.
        sha256: Its digest.
        size_bytes: Its size.
        runtime: Runtime and version.
        machine: Where it was measured, in words.
        split: The split that was judged; None for a folder without splits.
        class_names: Folder names in label order.
        reading: How the input is fed and the output read, where that is not as usual.
        accuracy: Against the labels of the folders.
        plausible: Whether its answers fit the labels the way they were matched.
        reference: Name of the reference file; None without one.
        reference_plausible: The same as `plausible` for the reference.
        drop: Against the reference; None without one that can be compared with.
        no_drop_because: Why `drop` is None; empty if it is not.
        latency: On one thread.
        skipped: Files left out.
        verdicts: One per target, in the order asked.
        on_devices: One for every target whose device is not simply this machine.
    """

    file: str
    sha256: str
    size_bytes: int
    runtime: str
    machine: str
    split: SplitName | None = None
    class_names: tuple[str, ...]
    reading: tuple[str, ...] = ()
    accuracy: Accuracy
    plausible: Check
    reference: str | None = None
    reference_plausible: Check | None = None
    drop: PairedDrop | None
    no_drop_because: str = ""
    latency: Latency
    skipped: tuple[SkippedFile, ...]
    verdicts: tuple[Verdict, ...]
    on_devices: tuple[DeviceEvaluation, ...] = ()

    def summary(self) -> str:
        """Returns the measurements in a few lines."""
        a, t = self.accuracy, self.latency
        top5 = "" if a.top5 is None else f", top-5 {a.top5:.2%}"
        pictures = "pictures" if self.split is None else f"pictures of the {self.split} split"
        threads = "1 thread" if t.threads == 1 else f"{t.threads} threads"
        governor = "" if t.governor is None else f", CPU governor {t.governor}"
        lines = [
            f"{self.file} ({self.size_bytes:,} bytes, sha256 {self.sha256[:12]}...)",
            f"  {a.images} {pictures}, top-1 {a.top1:.2%} (95 %: {a.top1_low:.2%} to "
            f"{a.top1_high:.2%}){top5}",
            *(f"  {words}" for words in self.reading),
            *self._comparison(),
            f"  p50 {t.p50_ms:.3f} ms, p90 {t.p90_ms:.3f} ms, p95 {t.p95_ms:.3f} ms, "
            f"p99 {t.p99_ms:.3f} ms, longest {t.max_ms:.3f} ms; "
            f"{self.runtime}, {threads}, {self.machine}",
            f"  {t.samples} samples in {len(t.session_percentile_ms)} processes, worth "
            f"{t.effective_samples:.0f} independent ones; {t.context_switches_involuntary} "
            f"involuntary context switches{governor}",
            *([f"  these are {t.means}: one call is too short for the clock"] if t.means else []),
            *(f"  disturbed: {disturbance}" for disturbance in t.disturbances),
        ]
        weak = [
            f"{name} {recall:.0%}"
            for name, recall in zip(self.class_names, a.recall_per_class, strict=True)
            if recall is not None and recall < a.top1 - 0.1
        ]
        if weak:
            lines.append(f"  recall more than 10 points below top-1: {', '.join(weak[:10])}")
        return "\n".join(lines)

    def _comparison(self) -> tuple[str, ...]:
        """Returns the line about the reference, if there is one."""
        if self.reference is None:
            return ()
        if self.drop is None:
            return (f"  not compared with {self.reference}: {self.no_drop_because}",)
        d = self.drop
        return (
            f"  {d.drop_points:+.2f} points lost against {self.reference} (95 %: at most "
            f"{d.upper_points:+.2f}); McNemar p {d.mcnemar_p:.3g}, {d.agreement:.1%} same answers",
        )


def judge_file(
    question: Question,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> FileReport:
    """Measures a file here and on the asked targets' devices, and holds it against the targets.

    Args:
        question: The file, the pictures and how to read both.
        say: Called with one line worth keeping.
        progress: Called with (what, done, in all).

    Of a folder with splits only the test split is judged: the others were seen in training.

    Raises:
        SpecError: If the file does not say how its input is prepared and neither does the
            question, or classes, targets, reference and file do not fit together.
        DataError: If the pictures are refused.
        IntegrityError: If a file is damaged or untrusted.
        DeviceError: If a runtime fails or hangs.
    """
    _check_answers(question.answers)
    scanned, split = _unseen(
        scan(question.data, lambda d, t: progress("reading", d, t), question.form), say
    )
    options = _options(question)
    planned = partial(
        plan_external,
        question.file,
        scanned.class_names,
        label_lines=_labels(question.labels, say),
        label_offset=question.label_offset,
        recorded=_recorded(question.file),
        reading=OutputOptions(name=question.output, threshold=question.threshold),
    )
    try:
        plan = planned(options=options)
    except UnsaidScalingError as unsaid:
        raise _with_the_best(unsaid, planned, options, scanned, progress) from unsaid
    refuse_too_much(plan, len(scanned.sources))
    targets = _targets(question, plan)
    imported = _imported(question, plan, targets)
    refuse_same_names(targets)
    if imported is None:
        reached(targets, say)  # before anything long begins
    reference_plan = None
    if question.reference is not None:
        recorded = _recorded(question.reference)
        reading = OutputOptions(name=question.output, threshold=question.threshold)
        reference_plan = plan_reference(question.reference, plan, options, recorded, reading)
    reference, drop, no_drop_because = None, None, _NO_REFERENCE
    with scratch_folder() as scratch:
        images, labels, sources, skipped, notes = read_folder(
            scanned,
            plan.preprocess,
            scratch,
            lambda d, t: progress("decoding", d, t),
            max_bad_fraction=question.max_bad_fraction,
            max_megapixels=question.max_megapixels,
        )
        for line in (*left_out(skipped), *(f"note: {note}" for note in notes)):
            say(line)
        judged = judge_external(
            plan, images, labels, progress=_share(progress, plan), trying=progress
        )
        plan = plan.model_copy(update={"readout": judged.readout})
        if reference_plan is not None:
            reference = judge_external(
                reference_plan, images, labels, progress=_share(progress, reference_plan)
            )
            drop, no_drop_because = drop_against(reference, judged, labels)
        if question.answers is not None:
            names = [printable(source.relative) for source in sources]
            answered = (Answers(judged.top1, judged.best),)
            page = answers_table(names, labels, answered, plan.class_names)
            write_atomically(question.answers, page.encode())
        pictures = Pictures(
            labels,
            [printable(source.relative) for source in sources],
            len(plan.class_names),
            np.array(plan.output_index, dtype=np.int64),
        )
        host = HostAnswers(
            judged.raw, judged.top1, reference.top1 if reference and drop else None, judged.runtime
        )
        timings = _time(plan, images, targets, progress)
        on_devices, measured = {}, {}
        for target in targets:
            if is_host(target):
                timing = timings[_timed_for(plan, target)]
                measured[target.name] = measured_here(
                    target, judged.accuracy, drop, timing, no_drop_because
                )
                continue
            asked = subject(plan, images, target.runtime.threads, target.runtime.delegate)
            if imported is None and not target.is_measured:
                measured[target.name] = estimated(target, asked, host, pictures, say, progress)
                continue
            if imported is not None:
                found = evaluate_import(
                    imported,
                    target,
                    plan.preprocess,
                    host,
                    pictures,
                    [source.relative for source in sources],
                    [source.sha256 for source in sources],
                    plan.class_names,
                )
            else:
                found, _ = measure_target(
                    target, [asked], host, pictures, _MEASURING, say, progress
                )
            on_devices[target.name] = found
            measured[target.name] = measured_of(found, no_drop_because)
    shown = timings[plan.sha256, 1, _MEASURING]
    notes = () if imported is None else (origin(imported), *warnings_about(imported))
    machine = this_machine()
    return FileReport(
        file=question.file.name,
        sha256=plan.sha256,
        size_bytes=plan.size_bytes,
        runtime=judged.runtime,
        machine=machine,
        split=split,
        class_names=plan.class_names,
        reading=(*plan.words, *judged.words),
        accuracy=judged.accuracy,
        plausible=judged.plausible,
        reference=reference_plan.model.name if reference_plan else None,
        reference_plausible=reference.plausible if reference else None,
        drop=drop,
        no_drop_because=no_drop_because,
        latency=summarize(shown.sessions, _SHOWN_PERCENTILE, machine, shown.runtime),
        skipped=skipped,
        verdicts=tuple(
            _verdict(target, plan, judged.plausible, measured[target.name], notes)
            for target in targets
        ),
        on_devices=tuple(on_devices.values()),
    )


def _check_answers(path: Path | None) -> None:
    """Refuses a place for the answers that is none, before anything long begins."""
    if path is None or (path.suffix.lower() == ".csv" and path.parent.is_dir()):
        return
    raise SpecError(
        f"--answers {path}",
        "a name that ends in .csv, in a folder that exists",
        "correct the path",
    )


def answering(
    file: Path,
    labels: Path | None,
    label_offset: int,
    options: InputOptions,
    reading: OutputOptions,
    say: Callable[[str], None],
) -> Plan:
    """Returns how a file answers pictures that nobody labelled, by the record beside it, too.

    Args:
        file: A .tflite, .onnx or .ort file.
        labels: Labels file; None for none.
        label_offset: Output of its first line.
        options: What the user says about the input.
        reading: What the user says about the output.
        say: Called with what the labels file was taken for, and how input and output are used
            where that is not as usual.

    Raises:
        SpecError, IntegrityError: As `edgekit.validate.external.plan_answers`.
    """
    lines = _labels(labels, say)
    plan = plan_answers(file, options, lines, label_offset, _recorded(file), reading)
    for words in plan.words:
        say(words)
    if plan.readout.single and plan.readout.threshold is not None:
        say(threshold_words(plan.readout, plan.readout.threshold, plan.class_names))
    return plan


def _unseen(scanned: Scan, say: Callable[[str], None]) -> tuple[Scan, SplitName | None]:
    """Returns what may be judged: the test split of a folder with splits, else everything."""
    for sentence in scanned.words:
        say(f"data: {sentence}")
    if all(source.split is None for source in scanned.sources):
        return scanned, None
    given = {source.split for source in scanned.sources}
    split: SplitName = "validation" if "validation" in given and "test" not in given else "test"
    sources = tuple(source for source in scanned.sources if source.split == split)
    if not sources:
        raise DataError(
            f"no usable picture in the test split of {scanned.root}",
            "pictures that training did not see",
            "add some, or give a folder without splits",
        )
    say(f"judging the {split} split ({len(sources)} pictures); training saw the others")
    folder = os.path.commonpath([str(Path(source.relative).parent) for source in sources])
    beside = f"{printable(Path(folder).as_posix())}/" if folder else ""
    skipped = tuple(item for item in scanned.skipped if item.path.startswith(beside))
    return dataclasses.replace(scanned, sources=sources, skipped=skipped), split


def _with_the_best(
    unsaid: UnsaidScalingError,
    planned: Callable[..., Plan],
    options: InputOptions,
    scanned: Scan,
    progress: Callable[[str, int, int], None],
) -> SpecError:
    """Returns the refusal of a file that does not say its scaling, with what the pictures say.

    A guess is no contract: what answers best is told, and the user gives it or something else.
    """
    update = USUAL[0].model_dump(include={"scale", "offset"})
    plan = planned(options=options.model_copy(update=update))
    if plan.input_dtype != "float32":
        return unsaid
    order = np.unique([source.label for source in scanned.sources], return_inverse=True)[1]
    few = [scanned.sources[row] for row in spread(order.astype(np.int32), FIRST_PICTURES)]
    sample = dataclasses.replace(scanned, sources=tuple(few))
    refuse_too_much(plan, len(few))
    contracts = usual_contracts(plan.input, options.channels)
    with scratch_folder() as scratch:
        images, labels, *_ = read_folder(
            sample,
            plan.preprocess,
            scratch,
            lambda d, t: progress("decoding", d, t),
            max_bad_fraction=1.0,  # of a few; of all of them it is asked where they are judged
        )
        index = np.array(plan.output_index, dtype=np.int64)
        ranks = rank_contracts(subject(plan, images), contracts, index, labels, progress)
    return SpecError(
        unsaid.received,
        f"{unsaid.expected}; tried on {len(labels)} of these pictures: {'; '.join(ranks[:3])}",
        f"{unsaid.remedy}; nothing but how it was trained decides, and what answers best is likely",
    )


def _options(question: Question) -> InputOptions:
    return InputOptions(
        scale=per_channel(question.input_scale, "--input-scale"),
        offset=per_channel(question.input_offset, "--input-offset"),
        resize=question.resize,
        crop=question.crop,
        fill=filling(question.fill),
        channels=question.channels,
    )


def _share(progress: Callable[[str, int, int], None], plan: Plan) -> Callable[[float], None]:
    return lambda done: progress(f"accuracy of {plan.model.name}", round(1000 * done), 1000)


def _recorded(file: Path) -> Recorded | None:
    """Returns what edgekit's own record beside a file says, if the file is one of those in it."""
    path = file.parent / _SIDE_RECORD
    if not path.is_file() or not file.is_file():
        return None
    try:
        record = ExportRecord.model_validate_json(_read_text(path, "run the recipe again"))
    except ValidationError as error:
        raise IntegrityError(
            f"{path}: {error.error_count()} fields are not as edgekit writes them",
            "the record of the exported files",
            "run the recipe again, or move the model file to another folder",
        ) from error
    digest = file_digest(file)
    for artifact in record.artifacts:
        if artifact.sha256 == digest:
            return Recorded(
                preprocess=record.preprocess,
                variant=artifact.variant,
                class_names=record.class_names,
            )
    return None


def _labels(path: Path | None, say: Callable[[str], None]) -> tuple[str, ...] | None:
    """Returns the labels that the user gave, and says what their file was taken for."""
    if path is None:
        return None
    try:
        content = _read_text(path, "give a list of class names")
    except OSError as error:
        raise SpecError(
            f"--labels {path}: {error}", "a UTF-8 text file, one class per line", "correct the path"
        ) from error
    labels, kind = read_labels(path, content)
    if kind:
        say(f"{path.name}: taken for {kind}, {len(labels)} labels")
    return labels


def _read_text(path: Path, remedy: str) -> bytes:
    """Returns a text that lies beside a model, which may be as long as it likes.

    Raises:
        IntegrityError: If it is longer than `limits.TEXT_FILE_BYTES`.
        OSError: If it cannot be read.
    """
    with path.open("rb") as stream:
        content = stream.read(limits.TEXT_FILE_BYTES + 1)
    if len(content) > limits.TEXT_FILE_BYTES:
        most = f"{limits.TEXT_FILE_BYTES:,} bytes"
        raise IntegrityError(f"{path}: more than {most}", f"at most {most}", remedy)
    return content


def _targets(question: Question, plan: Plan) -> tuple[Target, ...]:
    asked = question.targets
    for target in asked:
        _check_takes(target, plan)
    targets = asked or (_this_machine(plan, compared=question.reference is not None),)
    given = {
        "--latency-budget-ms": question.latency_budget_ms,
        "--min-accuracy": question.min_accuracy_percent,
    }
    unused = [option for option, value in given.items() if value is not None]
    refuse_unused(unused, targets)
    return tuple(_with_budgets(target, question) for target in targets)


def _this_machine(plan: Plan, compared: bool) -> Target:
    """Returns what a file is held against when no target was asked for.

    It is the host target of the file's format, but takes whatever the file is, also what edgekit
    does not make; so the fields of its artifact are not checked against each other. Nor does it ask
    what is lost against a float model that nobody gave.
    """
    host = load_target(_HOST_TARGET[plan.format])
    variant = plan.variants[0] if plan.variants else host.artifact.variant
    artifact = host.artifact.model_copy(
        update={"variant": variant, "io": plan.input_dtype, "batch": plan.batch}
    )
    name = f"this-machine-{host.runtime.name}"
    description = "This machine, for any file."
    budget = host.budget
    if not compared:
        budget = budget.model_copy(update={"accuracy_drop_points": None})
    return host.model_copy(
        update={"name": name, "description": description, "artifact": artifact, "budget": budget}
    )


def _check_takes(target: Target, plan: Plan) -> None:
    """Refuses a target that asks for a file of another format, variant or I/O type."""
    wanted = target.artifact
    if (
        wanted.format == plan.format
        and wanted.variant in plan.variants
        and wanted.io == plan.input_dtype == plan.output_dtype
        and wanted.batch == plan.batch
    ):
        return
    variant = " or ".join(plan.variants) or "partly quantized"
    raise SpecError(
        f"target {target.name} takes {wanted.format} {wanted.variant} with {wanted.io} I/O and a "
        f"batch of {wanted.batch}; {plan.model.name} is {plan.format} {variant} with "
        f"{plan.input_dtype} input, {plan.output_dtype} output and a batch of {plan.batch}",
        "a target that takes this file",
        "choose one from edgekit targets, leave out --target, or export the file it asks for",
    )


def _with_budgets(target: Target, question: Question) -> Target:
    if not target.is_measured:
        return target
    if question.latency_budget_ms is not None:
        target = with_latency_budget(target, question.latency_budget_ms)
    if question.min_accuracy_percent is not None:
        values = target.budget.model_dump()
        values["accuracy_min_percent"] = question.min_accuracy_percent
        if question.reference is None:  # the floor takes the place of the comparison
            values["accuracy_drop_points"] = None
        budget = build(values, BudgetSpec, "--min-accuracy")
        target = target.model_copy(update={"budget": budget})
    return target


def _timed_for(plan: Plan, target: Target) -> Timed:
    """Returns with how many threads and how the file is timed for a target of this machine."""
    return plan.sha256, target.runtime.threads, measuring_of(target, _MEASURING)


def _time(
    plan: Plan,
    images: Path,
    targets: tuple[Target, ...],
    progress: Callable[[str, int, int], None],
) -> dict[Timed, measure.Timing]:
    """Times the file on one thread for the summary, and as each target of this machine asks."""
    hosts = (_timed_for(plan, target) for target in targets if is_host(target))
    wanted = dict.fromkeys(((plan.sha256, 1, _MEASURING), *hosts))
    return time_here({key: subject(plan, images, key[1]) for key in wanted}, progress)


def _imported(question: Question, plan: Plan, targets: tuple[Target, ...]) -> Measurements | None:
    """Reads measurements made elsewhere, which stand for the device of the one target asked."""
    if question.measurements is None:
        return None
    elsewhere = [t for t in targets if t.device.transport not in ("local", "emulated")]
    if len(question.targets) != 1 or not elsewhere:
        names = ", ".join(target.name for target in question.targets) or "no target"
        raise SpecError(
            f"--measurements {question.measurements} with {names}",
            "the one target whose device was measured elsewhere",
            "give it with --target, once for each file of measurements",
        )
    found = read_measurements(question.measurements)
    refuse_other_model(found, plan.sha256, plan.size_bytes)
    for target in elsewhere:
        refuse_other_device(found, target)
    return found


def _verdict(
    target: Target, plan: Plan, plausible: Check, measured: Measured, notes: tuple[str, ...]
) -> Verdict:
    checks = checks_of(target, plan.size_bytes, plan.operators, measured, plan.class_names)
    if target.artifact.granularity is not None:
        checks = (*checks, check_granularity(target.artifact.granularity))
    if measured.accuracy is not None:
        # Both say the same of answers that say nothing, but this one also what to look for.
        if plausible.status != Status.PASS:
            checks = tuple(check for check in checks if check.name != "informative")
        checks = (plausible, *checks)
    notes = (*notes, *unasked_estimates(measured, checks))
    return Verdict(
        target=target.name,
        artifact_path=plan.model.name,
        artifact_sha256=plan.sha256,
        checks=checks,
        status=combine(checks),
        in_words=told(target, measured),
        notes=notes,
        latency_measurements=measured.latencies,
    )
