"""What models of a device say where nothing can be measured on it. Stage layer.

Estimates are shown beside an UNMEASURED check; none of them ever passes or misses a budget.
"""

from collections.abc import Callable
from pathlib import Path

from edgekit.devices import measure
from edgekit.devices.protocol import Subject
from edgekit.errors import EdgekitError
from edgekit.estimate import ethos_u, tflite_micro
from edgekit.runtimes import read_ends
from edgekit.target import Accelerator, Target
from edgekit.validate.accuracy import (
    measure_accuracy,
    paired_drop,
    top1_classes,
)
from edgekit.validate.on_device import HostAnswers, Measured, Pictures
from edgekit.validate.verdict import check_accuracy_drop

Progress = Callable[[str, int, int], None]
DEFAULT_ACCELERATOR: Accelerator = "ethos-u55-128"


def estimated(
    target: Target,
    subject: Subject,
    host: HostAnswers,
    pictures: Pictures,
    say: Callable[[str], None],
    progress: Progress,
) -> Measured:
    """Returns what can be said about a file without its device: estimates only.

    Args:
        target: A target that edgekit cannot measure.
        subject: Its file and the pictures.
        host: What the same file and its reference answer here.
        pictures: Labels and names.
        say: Called where there is no estimate, with the reason.
        progress: Called with (what, done, in all).
    """
    if target.runtime.name not in ("tflite-micro", "ethos-u"):
        return Measured()
    try:
        if target.runtime.name == "ethos-u":
            return Measured(estimates=_npu(target, subject.model, subject.sha256))
        return Measured(estimates=_micro(target, subject, host, pictures, progress))
    except EdgekitError as err:
        # What is estimated for one target must not cost the others what was measured for them.
        say(f"{target.name}: no estimates: {err.received}; {err.remedy}")
        return Measured(no_estimate_because=err.received)


def _micro(
    target: Target, subject: Subject, host: HostAnswers, pictures: Pictures, progress: Progress
) -> tuple[tuple[str, str], ...]:
    """Returns accuracy on TensorFlow Lite Micro's kernels, and its arena, both on this machine."""
    readout = subject.readout
    model_input, _ = read_ends(subject.model, subject.runtime, subject.sha256, readout.output)
    codes = measure.codes(subject.preprocess, model_input)
    found = tflite_micro.answers(
        subject.model,
        subject.sha256,
        subject.images,
        codes,
        progress=lambda done: progress(f"tflite-micro for {target.name}", round(1000 * done), 1000),
        output=readout.output,
    )
    scores = measure.scores(found.raw, found.output, readout)
    top1 = top1_classes(scores, pictures.classes, pictures.output_index)
    accuracy = measure_accuracy(scores, pictures.labels, pictures.classes, pictures.output_index)
    same = (top1 == host.top1).mean()
    where = f"{found.runtime}, on this machine"
    estimates = [
        ("accuracy", f"{accuracy.top1:.2%} of {accuracy.images} pictures, {where}"),
        (
            "memory",
            f"an arena of {_share(found.arena_bytes, target.budget.memory_bytes)}, {where}, where "
            "pointers have 8 bytes",
        ),
        (
            "flash",
            f"{_share(subject.model.stat().st_size, target.budget.flash_bytes)} for the model "
            "alone, without the program around it",
        ),
    ]
    if host.reference_top1 is not None:
        drop = paired_drop(host.reference_top1, top1, pictures.labels)
        said = check_accuracy_drop(drop, target.budget.accuracy_drop_points or 100.0)
        estimates.append(
            ("accuracy_drop", f"{said.measured}, {same:.1%} answers as by LiteRT; {where}")
        )
    return tuple(estimates)


def _npu(target: Target, model: Path, sha256: str) -> tuple[tuple[str, str], ...]:
    """Returns what Arm's compiler says about the file on an Ethos-U."""
    accelerator = target.runtime.accelerator or DEFAULT_ACCELERATOR
    found = ethos_u.compile_for(model, sha256, accelerator)
    where = (
        f"{found.settings}; {found.operators_on_npu} of {found.operators_in_all} operators on it"
    )
    estimates = [
        ("memory", f"{_share(found.sram_bytes, target.budget.memory_bytes)} of SRAM, {where}"),
        ("flash", f"{_share(found.flash_bytes, target.budget.flash_bytes)} of flash, {where}"),
    ]
    if found.estimated_ms is not None:
        estimates.append(("latency", f"{found.estimated_ms:.2f} ms, {where}"))
    return tuple(estimates)


def _share(used: int, budget: int | None) -> str:
    """Returns a number of bytes and how much of a budget it would be."""
    part = "" if budget is None else f" ({used / budget:.0%} of the budget)"
    return f"{used:,} bytes{part}"
