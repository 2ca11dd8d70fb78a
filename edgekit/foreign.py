"""Judging one finished file on a folder of labelled pictures: the order of the steps."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from edgekit.data.decode import read_folder
from edgekit.data.scan import scan
from edgekit.devices import local
from edgekit.errors import IntegrityError, SpecError
from edgekit.records import (
    Accuracy,
    Check,
    ExportRecord,
    Latency,
    PairedDrop,
    Record,
    SkippedFile,
    Verdict,
)
from edgekit.runtimes.base import classifier_io
from edgekit.runtimes.inspect import inspect_model
from edgekit.spec import build
from edgekit.store import file_digest
from edgekit.target import BudgetSpec, Target, load_target, with_latency_budget
from edgekit.validate.accuracy import paired_drop
from edgekit.validate.external import (
    InputOptions,
    Judgement,
    Plan,
    judge_external,
    per_channel,
    plan_external,
    subject,
)
from edgekit.validate.judging import checks_of, this_machine
from edgekit.validate.latency import summarize
from edgekit.validate.verdict import combine

_DEFAULT_TARGET = {"tflite": "host-litert", "onnx": "host-onnxruntime"}
_SIDE_RECORD = "artifacts.json"
# Five sessions of a second each answer within half a minute; a recipe can ask for more.
_MIN_SECONDS = 1.0
_NO_REFERENCE = "no --reference file was given to compare with"


@dataclass(frozen=True)
class Question:
    """What the user asks about a file; see the options of `edgekit validate`."""

    file: Path
    data: Path
    reference: Path | None = None
    labels: Path | None = None
    label_offset: int = 0
    input_scale: tuple[float, ...] | None = None
    input_offset: tuple[float, ...] | None = None
    resize: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    crop: Literal["none", "center"] = "none"
    channels: Literal["rgb", "bgr"] = "rgb"
    targets: tuple[str, ...] = ()
    min_accuracy_percent: float | None = None
    latency_budget_ms: float | None = None


class FileReport(Record):
    """What was measured about a finished file, and the verdict per target."""

    file: str
    sha256: str
    size_bytes: int
    runtime: str
    machine: str
    class_names: tuple[str, ...]
    accuracy: Accuracy
    plausible: Check
    drop: PairedDrop | None
    latency: Latency
    skipped: tuple[SkippedFile, ...]
    verdicts: tuple[Verdict, ...]

    def summary(self) -> str:
        """Returns the measurements in a few lines."""
        a, t = self.accuracy, self.latency
        top5 = "" if a.top5 is None else f", top-5 {a.top5:.2%}"
        lines = [
            f"{self.file} ({self.size_bytes:,} bytes, sha256 {self.sha256[:12]}...)",
            f"  {a.images} pictures, top-1 {a.top1:.2%} (95 %: {a.top1_low:.2%} to "
            f"{a.top1_high:.2%}){top5}",
            f"  p50 {t.p50_ms:.3f} ms, p90 {t.p90_ms:.3f} ms, p99 {t.p99_ms:.3f} ms; "
            f"{self.runtime}, {t.threads} thread, {self.machine}",
        ]
        weak = [
            f"{name} {recall:.0%}"
            for name, recall in zip(self.class_names, a.recall_per_class, strict=True)
            if recall is not None and recall < a.top1 - 0.1
        ]
        if weak:
            lines.append(f"  recall more than 10 points below top-1: {', '.join(weak[:10])}")
        return "\n".join(lines)


def judge_file(
    question: Question,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> FileReport:
    """Measures a file on this machine and holds it against the asked targets.

    Args:
        question: The file, the pictures and how to read both.
        say: Called with one line worth keeping.
        progress: Called with (what, done, in all).

    Raises:
        SpecError: If the file does not say how its input is prepared and neither does the
            question, or classes, targets and file do not fit together.
        DataError: If the pictures are refused.
        IntegrityError: If the file is damaged or untrusted.
        DeviceError: If a runtime fails or hangs.
    """
    scanned = scan(question.data)
    plan = _plan(question, scanned.class_names)
    targets = _targets(question, plan)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        images, labels, skipped = read_folder(
            scanned, plan.preprocess, Path(scratch), lambda d, t: progress("decoding", d, t)
        )
        for item in skipped[:10]:
            say(f"skipped {item.path}: {item.reason}")
        judged = judge_external(
            plan, images, labels, progress=lambda f: progress("accuracy", round(1000 * f), 1000)
        )
        drop = None
        if question.reference is not None:
            reference = judge_external(_reference_plan(question.reference, plan), images, labels)
            drop = paired_drop(reference.top1, judged.top1, labels)
        threads = sorted({1, *(t.runtime.threads for t in targets if _is_here(t))})
        timings = local.time_sessions(
            [subject(plan, images, count) for count in threads],
            pace=local.Pace(min_seconds=_MIN_SECONDS),
            progress=lambda f: progress("latency", round(1000 * f), 1000),
        )
    by_threads = dict(zip(threads, timings, strict=True))
    return FileReport(
        file=question.file.name,
        sha256=plan.sha256,
        size_bytes=plan.size_bytes,
        runtime=judged.runtime,
        machine=this_machine(),
        class_names=plan.class_names,
        accuracy=judged.accuracy,
        plausible=judged.plausible,
        drop=drop,
        latency=summarize(timings[0].sessions, 90, this_machine(), timings[0].runtime),
        skipped=skipped,
        verdicts=tuple(_verdict(t, plan, judged, drop, by_threads) for t in targets),
    )


def _plan(question: Question, class_names: tuple[str, ...]) -> Plan:
    known = _side_record(question.file)
    scale = per_channel(question.input_scale, "--input-scale")
    offset = per_channel(question.input_offset, "--input-offset")
    options = InputOptions(
        scale=scale,
        offset=offset,
        resize=question.resize,
        crop=question.crop,
        channels=question.channels,
    )
    lines = _label_lines(question.labels)
    if known is not None:
        if scale is None and offset is None:
            contract = known.preprocess.model_dump(exclude={"height_px", "width_px"})
            options = InputOptions(**contract)
        lines = lines or known.class_names
    return plan_external(question.file, class_names, options, lines, question.label_offset)


def _side_record(file: Path) -> ExportRecord | None:
    """Returns edgekit's own record beside a file that it exported, if the file is unchanged."""
    path = file.parent / _SIDE_RECORD
    if not path.is_file() or not file.is_file():
        return None
    try:
        record = ExportRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise IntegrityError(
            f"{path}: {error.error_count()} fields are not as edgekit writes them",
            "the record of the exported files",
            "run the recipe again, or move the model file to another folder",
        ) from error
    digest = file_digest(file)
    return record if any(a.sha256 == digest for a in record.artifacts) else None


def _label_lines(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        return tuple(path.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"--labels {path}: {error}", "a UTF-8 text file, one class per line", "correct the path"
        ) from error


def _reference_plan(reference: Path, plan: Plan) -> Plan:
    """Returns how the reference runs: on the same pixels, under the same contract."""
    contract = plan.preprocess
    options = InputOptions(
        scale=contract.scale,
        offset=contract.offset,
        resize=contract.resize,
        crop=contract.crop,
        channels=contract.channels,
    )
    names = [""] * plan.outputs
    for name, output in zip(plan.class_names, plan.output_index, strict=True):
        names[output] = name
    filler = [name or f"\0{number}" for number, name in enumerate(names)]
    return plan_external(reference, plan.class_names, options, filler)


def _is_here(target: Target) -> bool:
    return target.device.transport == "local"


def _targets(question: Question, plan: Plan) -> tuple[Target, ...]:
    names = question.targets or (_DEFAULT_TARGET[plan.format],)
    targets = tuple(load_target(name) for name in names)
    io = classifier_io(inspect_model(plan.model), str(plan.model))[0].dtype
    for target in targets:
        wanted = target.artifact
        if wanted.format != plan.format or (question.targets and wanted.io != io):
            raise SpecError(
                f"target {target.name} takes {wanted.format} with {wanted.io} I/O; "
                f"{plan.model.name} is {plan.format} with {io}",
                "a target that takes this file",
                "choose one from edgekit targets, or export the file it asks for",
            )
    return tuple(_with_budgets(target, question) for target in targets)


def _with_budgets(target: Target, question: Question) -> Target:
    if not _is_here(target):
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


def _verdict(
    target: Target,
    plan: Plan,
    judged: Judgement,
    drop: PairedDrop | None,
    timings: dict[int, local.Timing],
) -> Verdict:
    here = _is_here(target)
    checks = (
        judged.plausible,
        *checks_of(
            target,
            plan.size_bytes,
            judged.accuracy if here else None,
            drop if here else None,
            timings[target.runtime.threads] if here else None,
            _NO_REFERENCE if here and drop is None else "",
        ),
    )
    return Verdict(
        target=target.name,
        artifact_path=plan.model.name,
        artifact_sha256=plan.sha256,
        checks=checks,
        status=combine(checks),
    )
