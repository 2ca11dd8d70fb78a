"""What a run brought, in single sentences."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from edgekit.records import (
    Artifact,
    DeviceEvaluation,
    Evaluation,
    ExportRecord,
    LabelsRecord,
    RunReport,
    SkippedFile,
    Status,
    Verdict,
)

_REASONS_SHOWN = 5
_SUSPICIOUS_SHOWN = 3
# Where each names another file as its reason.
_SAME_REASON = {
    "two-classes": "the same pixels stand under two classes",
    "copy": "the same pixels stand in a split that is held out",
}
_HOW = {"qat": "quantization-aware training", "ptq": "calibration after training"}


def unfreezing_sentence(report: RunReport) -> str:
    """Returns what unfreezing brought."""
    model = report.float_model
    head = model.phases[0]
    start = head.epochs[head.best_epoch].validation_accuracy
    tried = f"{len(model.curve)} cuts compared; " if model.curve else ""
    return (
        f"validation top-1: {start:.2%} with the head alone, "
        f"{model.validation_accuracy:.2%} unfrozen from {model.cut} "
        f"({tried}{model.stopped_because})"
    )


def int8_sentence(report: RunReport) -> str:
    """Returns which int8 ships and why, and what it costs and gains on the test split."""
    ships, quantized = _int8(report), report.quantized
    parts = [f"int8: {quantized.reason}"]
    if ships is None:
        return parts[0]
    drop = ships[1].drop
    if drop is not None:
        limit = drop.upper_points
        least = f"at most {limit:.2f} below" if limit >= 0 else f"at least {-limit:.2f} above"
        parts.append(
            f"on the test split it is {abs(drop.drop_points):.2f} points "
            f"{'below' if drop.drop_points >= 0 else 'above'} {report.validation.reference} "
            f"({least} by the 95 % limit; McNemar p {drop.mcnemar_p:.2f})"
        )
    against = report.validation.int8_against_other
    if against is not None:
        lost = next(c.name for c in quantized.candidates if c.name != quantized.shipped)
        parts.append(
            f"and {abs(against.drop_points):.2f} points "
            f"{'below' if against.drop_points > 0 else 'above'} int8 by {_HOW[lost]} "
            f"(McNemar p {against.mcnemar_p:.2f})"
        )
    return "; ".join((parts[0], " ".join(parts[1:]))) + _gain(report, ships)


def sensitivity_sentences(report: RunReport) -> tuple[str, ...]:
    """Returns which layers int8 costs most, and what keeping layers in float32 came to."""
    quantized = report.quantized
    most = sorted(quantized.sensitivity, key=lambda item: -item.regained_db)[:3]
    found = ", ".join(f"{item.layer} {item.regained_db:+.2f} dB" for item in most)
    asked = (
        (f"Keeping layers in float32: {quantized.kept_because}",) if quantized.kept_because else ()
    )
    if not most:
        return asked
    return (
        f"int8 by calibration alone regains most SQNR if one layer stays float32: {found}",
        *asked,
    )


def parity_sentences(exported: ExportRecord) -> tuple[str, ...]:
    """Returns one sentence for each file that departs from its source more than rounding does."""
    paths = {artifact.sha256: artifact.path for artifact in exported.artifacts}
    return tuple(
        f"{paths[found.artifact_sha256]} departs from the {found.source}: {found.same_answers} of "
        f"{found.images} answers are the same; {found.reason}"
        for found in exported.parity
        if found.departs
    )


def agreement_sentence(evaluation: DeviceEvaluation) -> str:
    """Returns how a device answers the same pictures with the same file, and the likely cause."""
    found = evaluation.against_host
    if found is None:
        return "no answers came from it"
    said = (
        f"{found.top1_agreement:.2%} of {found.images} pictures have the same answer as on this "
        "machine"
    )
    if found.equal is not None:
        said += f", {found.equal:.2%} of the scores are equal to the bit"
    if found.largest_steps:
        said += f", the others at most {found.largest_steps:g} steps apart"
    if found.largest_share:
        said += f", the others at most {found.largest_share:.1e} of the largest score apart"
    if found.differing_images:
        drop = found.drop
        said += (
            f"; {drop.drop_points:+.2f} points lost against it (95 %: at most "
            f"{drop.upper_points:+.2f}; McNemar p {drop.mcnemar_p:.2f})"
        )
    if found.cause:
        said += f"; likely cause: {found.cause}"
    if found.differing:
        more = found.differing_images - len(found.differing)
        said += f"; other answers: {', '.join(found.differing)}"
        said += f" and {more} more" if more else ""
    return said


def what_follows(verdicts: Sequence[Verdict], run: Path) -> tuple[str, ...]:
    """Returns what the exit code means and what to do next, of everything that did not pass.

    Args:
        verdicts: Of a finished run.
        run: Its folder.
    """
    folder = shlex.quote(str(run))
    missed, absent = (_named(verdicts, status) for status in (Status.MISS, Status.UNMEASURED))
    measured = ""
    for verdict in verdicts:
        if verdict.status is Status.UNMEASURED and not measured:
            file = run / "artifacts" / verdict.artifact_path
            measured = _with_measurements(file, "DIR", verdict.target)
    return _met(
        verdicts,
        f"To ship it all the same: {_package(folder, missed)} --allow-miss",
        "All that can be made and judged here is",
        f"{_package(folder, absent)} writes what runs there, with a self-check; numbers that were "
        f"measured there are judged by: {measured}",
    )


def what_follows_of_file(verdicts: Sequence[Verdict], file: Path, data: Path) -> tuple[str, ...]:
    """Returns what the exit code means and what to do next, for a file that was judged alone.

    Args:
        verdicts: On it.
        file: The file.
        data: The pictures.
    """
    absent = _named(verdicts, Status.UNMEASURED)
    measured = _with_measurements(file, shlex.quote(str(data)), absent[0]) if absent else ""
    return _met(
        verdicts,
        "",
        "All that can be judged here is",
        "say where the device is with --device TARGET=WHERE, or measure there with any tool and "
        f"give the numbers: {measured}",
    )


def _met(verdicts: Sequence[Verdict], ship: str, done: str, measure: str) -> tuple[str, ...]:
    missed, undecided, absent = (
        _named(verdicts, status) for status in (Status.MISS, Status.INCONCLUSIVE, Status.UNMEASURED)
    )
    said = []
    if missed:
        said.append(
            f"Exit code 4: over budget for {_and(missed)}; what was asked and what was measured "
            f"stands above. {ship}".rstrip()
        )
    if undecided:
        said.append(
            f"{'' if missed else 'Exit code 5: '}measured, but not decided for {_and(undecided)}; "
            "beside each INCONCLUSIVE above stands what would decide it"
        )
    if absent:
        code = "" if missed or undecided else "Exit code 5: nothing failed. "
        said.append(
            f"{code}{done}, and {_and(absent)} {'was' if len(absent) == 1 else 'were'} not "
            f"measured on the device itself, which alone counts. Next: {measure}"
        )
    return tuple(said)


def _named(verdicts: Sequence[Verdict], status: Status) -> list[str]:
    return [verdict.target for verdict in verdicts if verdict.status is status]


def _with_measurements(file: Path, data: str, target: str) -> str:
    return (
        f"edgekit validate {shlex.quote(str(file))} --data {data} "
        f"--target {shlex.quote(target)} --measurements FILE"
    )


def _package(folder: str, targets: Sequence[str]) -> str:
    wanted = " ".join(f"--for {shlex.quote(target)}" for target in targets)
    return f"edgekit package {folder} {wanted}"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def labels_sentences(found: LabelsRecord) -> tuple[str, ...]:
    """Returns how many labels are suspicious, the first of them, and classes that are confused."""
    said = []
    if found.suspicious:
        shown = ", ".join(
            f"{item.path} ({item.label}, looks like {item.suggested})"
            for item in found.first[:_SUSPICIOUS_SHOWN]
        )
        more = found.suspicious - len(found.first[:_SUSPICIOUS_SHOWN])
        said.append(
            f"{found.suspicious:,} of {found.checked:,} pictures look like another class than they "
            f"are labelled: {shown}" + (f" and {more:,} more" if more else "")
        )
    said += [
        f"{pair.first} and {pair.second} are hardly told apart before "
        f"fine-tuning: {pair.first_as_second:.0%} of the first look more like the second, "
        f"{pair.second_as_first:.0%} the other way round"
        for pair in found.confused[:_SUSPICIOUS_SHOWN]
    ]
    return tuple(said)


def other_sentences(report: RunReport) -> tuple[str, ...]:
    """Returns above which score the answers of each file that a target gets count, if it is known.

    Only pictures of no class tell it.
    """
    found = report.validation.other
    if found is None:
        return ()
    judged = {verdict.artifact_sha256 for verdict in report.validation.verdicts}
    return tuple(
        found.in_words(artifact)
        for artifact in report.export.artifacts
        if artifact.sha256 in judged
    )


def left_out(skipped: Sequence[SkippedFile]) -> list[str]:
    """Returns how many files were left out for each reason, with an example of each."""
    by_reason: dict[str, list[SkippedFile]] = {}
    for item in skipped:
        by_reason.setdefault(_SAME_REASON.get(item.kind, item.reason), []).append(item)
    reasons = sorted(by_reason, key=lambda reason: -len(by_reason[reason]))
    lines = [
        f"left out: {len(by_reason[reason]):,} ({reason}), such as {by_reason[reason][0].path}"
        if len(by_reason[reason]) > 1
        else f"left out: {by_reason[reason][0].path} ({reason})"
        for reason in reasons[:_REASONS_SHOWN]
    ]
    rest = sum(len(by_reason[reason]) for reason in reasons[_REASONS_SHOWN:])
    if rest:
        lines.append(f"left out: {rest:,} for {len(reasons) - _REASONS_SHOWN} more reasons")
    return lines


def _int8(report: RunReport) -> tuple[Artifact, Evaluation] | None:
    """Returns the int8 TFLite file that ships, with its measurements on one thread."""
    found = report.validation.on_one_thread
    for artifact in report.export.artifacts:
        if (artifact.format, artifact.variant, artifact.ships) == ("tflite", "int8", True):
            return artifact, found[artifact.sha256]
    return None


def _gain(report: RunReport, ships: tuple[Artifact, Evaluation]) -> str:
    """Returns how much smaller and faster than the float32 file it is here, on one thread."""
    reference = report.validation.reference
    other = next(a for a in report.export.artifacts if a.path == reference)
    smaller = f"; {other.size_bytes / ships[0].size_bytes:.1f} times smaller"
    theirs = report.validation.on_one_thread[other.sha256].latency
    ours = ships[1].latency
    if ours is None or theirs is None:
        return smaller
    ratio = theirs.p50_ms / ours.p50_ms
    speed = f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times as slow"
    said = f"{smaller} and {speed} here (p50, one thread)"
    caveats = ((ships[0].path, ours.caveat), (reference, theirs.caveat))
    beside = "; ".join(f"{path}: {caveat}" for path, caveat in caveats if caveat)
    if ours.disturbances or theirs.disturbances:
        return f"{said}, a ratio of times that were disturbed, so rely on it no more: {beside}"
    return f"{said}, where times are means: {beside}" if beside else said
