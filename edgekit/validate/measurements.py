"""Reads measurements made elsewhere: a device farm, a colleague's phone, an app's self-check.

Stage layer. One JSON file (UTF-8, at most 16 MiB) is about one model file on one device. Nothing in
it is trusted, and nothing in it is more than its writer's word: reports say who measured, where and
when. Keys, of which those marked * must be there:

    edgekit_measurements *  1; says what the file is and the version of the format
    sha256 *                digest of the very model file that ran, 64 lower-case hex digits
    by *                    who measured, in words
    at *                    when, ISO 8601 with time zone: "2026-11-20T18:04:05Z"
    device *, os *          model and processor, and operating system, in words
    cores *                 CPU cores of the device
    runtime *               what ran the file, and
    runtime_version *       its version
    threads *               CPU threads it was given
    delegate                what it computed with: "XNNPACK", "GPU", "CoreML", "wasm" ...
    emulated                true on an emulator or simulator, whose time never decides
    memory_peak_bytes       most memory while it ran; on a microcontroller, the arena
    latency                 list of sessions: each one process that was started for it
        samples_ms *            wall time of every single-image call, in the order they were made;
                                of calls that are too short for the clock, the mean of each batch
        fresh_process *         false if the process had measured or worked before
        warmup_runs             calls before the first sample (0)
        clock_step_ms           least by which the clock moves; a sample has to span 100 steps
        calls_per_sample        calls that each sample is the mean of (1)
        load                    mean number of cores that were busy, own threads included
        context_switches        involuntary ones (0)
        governor                CPU frequency governor
        frequency_before_khz    highest core frequency before the first sample, and
        frequency_after_khz     after the last
        temperature_before_c    in degrees Celsius; for the record, what counts is whether the
        temperature_after_c     samples slow down
        battery_saver           whether the system saved energy
        thermal_status          the worst state the system reported, in the words of Android or iOS
    accuracy                list of answers, one for each test picture
        file, sha256 *          path below the data folder, digest of the file's bytes; one or both
        answer *                name of the class with the highest score; null if it is none
        score                   that score
        outputs                 every output of the model; checked against `answer`

At least one of latency, accuracy and memory_peak_bytes must be there. null stands for a key that is
left out. In place of `latency` one of these can stand, what other tools say about a run:

    litert_benchmark        list of what `litert-benchmark --result_json` wrote, one for each run
    benchmark_model         list of what TFLite's `benchmark_model` printed, one text for each run

Such a summary holds no samples. Fewer than five of them, or a mean, can never decide: the numbers
are shown and the verdict is INCONCLUSIVE. Five or more can decide where the target asks for the
50th or the 95th percentile, which they hold, and where each proves itself quiet: its 95th
percentile is within 10 % of its 5th, so that no slowdown hides in it, and its numbers are not
rounded to more than 1 % of its median.
"""

import difflib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import Accuracy, Latency, LatencySession, Record
from edgekit.runtimes.base import printable
from edgekit.validate.accuracy import OUTSIDE, Classes, measure_accuracy
from edgekit.validate.latency import DRIFT_RATIO, TIMER_SHARE, summarize
from edgekit.validate.statistics import samples_needed

MAX_BYTES = 16 * 1024 * 1024
_VERSION_KEY = "edgekit_measurements"
_SHOWN = 3
_PROBLEMS_SHOWN = 8
_MOST_KEYS = 100
_UNANSWERED = -2
# A sequence this long does not repeat itself by chance, unless all of it is one number.
_REPEATS_BY_CHANCE = 20
# From here on the medians of the first and the last third lie between the 5th and 95th percentile.
_RUNS_THAT_SHOW_DRIFT = 20
# Clocks of devices are seldom further apart.
_CLOCK_TOLERANCE = timedelta(minutes=10)
# TensorFlow Lite was announced in November 2017:
# https://developers.googleblog.com/announcing-tensorflow-lite
_FIRST_YEAR = 2017
# States in which nothing is slowed down yet. Sources:
# https://developer.android.com/reference/android/os/PowerManager#THERMAL_STATUS_NONE
# https://developer.apple.com/documentation/foundation/processinfo/thermalstate-swift.enum
_COOL = ("none", "nominal", "fair")
_WRAPPER = (
    f'{{"{_VERSION_KEY}": 1, "sha256": ..., "by": ..., "at": ..., "device": ..., "os": ..., '
    '"cores": ..., "runtime": ..., "runtime_version": ..., "threads": ..., "%s": [...]}'
)


def _cleaned(text: str) -> str:
    clean = printable(text)
    if not clean:
        msg = "text that can be printed"
        raise ValueError(msg)
    return clean


def _moment(value: object) -> datetime:
    wanted = 'a time with its time zone, such as "2026-11-20T18:04:05Z"'
    if not isinstance(value, str):
        raise ValueError(wanted)  # noqa: TRY004 - pydantic passes on no TypeError
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(wanted) from error
    if moment.utcoffset() is None:
        raise ValueError(wanted)
    return moment


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Words = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_cleaned)]
# Compared with names of the user's, so never altered; printed only by `_named`.
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Milliseconds = Annotated[float, Field(ge=0, le=3_600_000)]
Moment = Annotated[datetime, BeforeValidator(_moment)]
Kilohertz = Annotated[int, Field(ge=0, le=10**9)]
Celsius = Annotated[float, Field(ge=-273.15, le=1000)]
ThermalStatus = Literal[
    "none",
    "light",
    "moderate",
    "severe",
    "critical",
    "emergency",
    "shutdown",
    "nominal",
    "fair",
    "serious",
]


class _Untrusted(Record):
    """A part of the file: no conversions, and no list of a million errors."""

    model_config = ConfigDict(strict=True)


class Session(_Untrusted):
    """One process that timed the model; see the top of this module."""

    samples_ms: tuple[Milliseconds, ...] = Field(
        strict=False,
        fail_fast=True,
        min_length=1,
        max_length=100_000,
        description="Wall time of every single-image call, in the order they were made.",
    )
    fresh_process: bool = Field(
        description="Whether the process was started for this session alone."
    )
    warmup_runs: int = Field(
        default=0, ge=0, le=10**9, description="Calls before the first sample."
    )
    clock_step_ms: float | None = Field(
        default=None, gt=0, le=3_600_000, description="Least by which the clock moves."
    )
    calls_per_sample: int = Field(
        default=1, ge=1, le=10**6, description="Calls that each sample is the mean of."
    )
    load: float | None = Field(
        default=None, ge=0, le=10**6, description="Mean number of busy cores, own threads included."
    )
    context_switches: int = Field(
        default=0, ge=0, le=10**12, description="Involuntary context switches of the process."
    )
    governor: Words | None = Field(default=None, description="CPU frequency governor.")
    frequency_before_khz: Kilohertz | None = Field(
        default=None, description="Highest core frequency before the first sample."
    )
    frequency_after_khz: Kilohertz | None = Field(
        default=None, description="Highest core frequency after the last sample."
    )
    temperature_before_c: Celsius | None = Field(
        default=None, description="Temperature before the first sample, in degrees Celsius."
    )
    temperature_after_c: Celsius | None = Field(
        default=None, description="Temperature after the last sample, in degrees Celsius."
    )
    battery_saver: bool | None = Field(
        default=None, description="Whether the system saved energy meanwhile."
    )
    thermal_status: ThermalStatus | None = Field(
        default=None, description="Worst thermal state that Android or iOS reported meanwhile."
    )


class Answer(_Untrusted):
    """What the model answered to one test picture; see the top of this module."""

    file: Name | None = Field(
        default=None, description="Path of the picture below the data folder, with slashes."
    )
    sha256: Digest | None = Field(default=None, description="Digest of the picture file's bytes.")
    answer: Name | None = Field(
        description="Class with the highest score; null if the highest score is of no class."
    )
    score: float | None = Field(default=None, description="The highest score.")
    outputs: tuple[float, ...] | None = Field(
        default=None,
        strict=False,
        fail_fast=True,
        min_length=1,
        max_length=100_000,
        description="Every output of the model, in its order.",
    )


class LitertTimes(Record):
    """The times that `litert-benchmark` writes, rounded to 0.01 ms."""

    model_config = ConfigDict(strict=True, extra="ignore")

    init_ms: Milliseconds
    avg_ms: Milliseconds
    min_ms: Milliseconds
    max_ms: Milliseconds
    median_ms: Milliseconds
    p5_ms: Milliseconds
    p95_ms: Milliseconds
    num_runs: int = Field(ge=1, le=10**9)


class LitertBenchmark(Record):
    """What is used of a result file of `litert-benchmark`, as ai-edge-litert 2.3.0 writes it.

    Other keys are ignored: another version may have others.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    model_size_mb: float = Field(ge=0, le=10**9)
    num_threads: int = Field(ge=1, le=1024)
    latency: LitertTimes


class Measurements(_Untrusted):
    """What one file says; every key is explained at the top of this module."""

    edgekit_measurements: Literal[1] = Field(description="Version of this format.")
    sha256: Digest = Field(description="Digest of the model file that ran.")
    by: Words = Field(description="Who measured.")
    at: Moment = Field(description="When, with time zone.")
    device: Words = Field(description="Model and processor of the device.")
    os: Words = Field(description="Operating system and version.")
    cores: int = Field(ge=1, le=1024, description="CPU cores of the device.")
    runtime: Words = Field(description="What ran the file.")
    runtime_version: Words = Field(description="Version of the runtime.")
    threads: int = Field(ge=1, le=1024, description="CPU threads the runtime was given.")
    delegate: Words | None = Field(default=None, description="Delegate or execution provider.")
    emulated: bool = Field(default=False, description="Whether the device was emulated.")
    memory_peak_bytes: int | None = Field(
        default=None, gt=0, le=2**50, description="Most memory while it ran."
    )
    latency: tuple[Session, ...] | None = Field(
        default=None, strict=False, fail_fast=True, min_length=1, max_length=1000
    )
    accuracy: tuple[Answer, ...] | None = Field(
        default=None, strict=False, fail_fast=True, min_length=1, max_length=1_000_000
    )
    litert_benchmark: tuple[LitertBenchmark, ...] | None = Field(
        default=None,
        strict=False,
        fail_fast=True,
        min_length=1,
        max_length=1000,
        description="What litert-benchmark --result_json wrote, one for each run.",
    )
    benchmark_model: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        fail_fast=True,
        min_length=1,
        max_length=1000,
        description="What TFLite's benchmark_model printed, one text for each run.",
    )


@dataclass(frozen=True)
class _Run:
    """What another tool says about one run.

    Args:
        mean_ms: Mean of the runs.
        held_ms: What it holds by percentile, where 0 is the shortest and 100 the longest.
        count: Timed calls; 0 if it does not say.
        init_ms: Time to load.
        step_ms: What the numbers are rounded to.
        threads: None if it does not say.
        size_bytes: Smallest and largest file that it can be about; None if it does not say.
    """

    mean_ms: float
    held_ms: dict[int, float]
    count: int
    init_ms: float
    step_ms: float
    threads: int | None
    size_bytes: tuple[float, float] | None

    def at_most(self, percentile: int) -> float:
        """Returns the percentile, or else the next higher one that is held, or else the mean."""
        above = [key for key in self.held_ms if key >= percentile]
        return self.held_ms[min(above)] if above else self.mean_ms


# In the words of JSON what pydantic says in those of Python.
_EXPECTED = {
    "string_pattern_mismatch": "64 lower-case hex digits",
    "model_type": "a JSON object",
    "tuple_type": "a JSON list",
}
_PARTS: dict[str, type[Record]] = {"latency": Session, "accuracy": Answer}


def read_measurements(path: Path) -> Measurements:
    """Returns the measurements that a file holds.

    Args:
        path: A file in the format that the top of this module describes.

    Raises:
        SpecError: If the file cannot be read or is not in the format; names what is wrong.
        IntegrityError: If it is, but cannot be true.
    """
    values = _values(path)
    try:
        measurements = Measurements.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, path) from error
    latencies = [
        name
        for name in ("latency", "litert_benchmark", "benchmark_model")
        if getattr(measurements, name) is not None
    ]
    if len(latencies) > 1:
        raise SpecError(
            f"{path}: {' and '.join(latencies)}", "one of them", "write a file for each of them"
        )
    if not latencies and measurements.accuracy is None and measurements.memory_peak_bytes is None:
        raise SpecError(
            f"{path}: nothing that was measured",
            "latency, accuracy or memory_peak_bytes",
            "add what was measured",
        )
    _refuse_impossible(measurements, path)
    return measurements


def refuse_other_model(measurements: Measurements, sha256: str, size_bytes: int) -> None:
    """Refuses measurements of another file than the one that is judged.

    Args:
        measurements: What was measured.
        sha256: Digest of the judged file.
        size_bytes: Its size. What other tools say about the size is held against it too, as they
            know no digest and somebody wrote it beside them.

    Raises:
        IntegrityError: If they are of another file.
    """
    remedy = "measure the very file that ships, or give that file to edgekit validate"
    if measurements.sha256 != sha256:
        raise IntegrityError(
            f"measurements of a file with sha256 {measurements.sha256}", f"sha256 {sha256}", remedy
        )
    for number, run in enumerate(_runs(measurements), start=1):
        if run.size_bytes and not run.size_bytes[0] <= size_bytes <= run.size_bytes[1]:
            raise IntegrityError(
                f"run {number} says that its model has {run.size_bytes[0]:,.0f} to "
                f"{run.size_bytes[1]:,.0f} bytes",
                f"the judged file of {size_bytes:,} bytes",
                remedy,
            )


def origin(measurements: Measurements) -> str:
    """Returns who measured what where and when, in one sentence for reports."""
    m = measurements
    threads = "1 thread" if m.threads == 1 else f"{m.threads} threads"
    emulated = ", emulated" if m.emulated else ""
    return (
        f"imported: measured by {m.by} on {_device(m)}{emulated} at {m.at.isoformat()} with "
        f"{_runtime(m)}, {threads}"
    )


def warnings_about(measurements: Measurements, now: datetime | None = None) -> tuple[str, ...]:
    """Returns what a reader should know about measurements that are used all the same, in words.

    Args:
        measurements: What was measured.
        now: The present, with time zone. Defaults to None: this machine's clock.
    """
    found = []
    when = measurements.at.isoformat()
    if measurements.at > (now or datetime.now(UTC)) + _CLOCK_TOLERANCE:
        found.append(f"measured at {when}, which is still to come: one of the clocks is wrong")
    if measurements.at.year < _FIRST_YEAR:
        found.append(f"measured at {when}, before such models existed: the clock was not set")
    sessions = measurements.latency or ()
    if any(session.load is None for session in sessions):
        found.append("how busy the device was is not recorded")
    return tuple(found)


def latency_of(measurements: Measurements, percentile: int) -> Latency | None:
    """Returns the latency, with everything that speaks against it, or None if there is none.

    A summary by another tool holds few percentiles. One that it lacks is given as the next higher
    one that it holds, so p90 as p95 and p99 as the longest call; pooled ones as those of the
    slowest run. All are upper limits, but for a text that holds nothing but a mean, which stands
    for all. `effective_samples` is then the number of runs.

    Args:
        measurements: What was measured.
        percentile: The percentile that decides, 50 to 99.
    """
    runs = _runs(measurements)
    if measurements.latency is not None:
        sessions = [_session(session, measurements.threads) for session in measurements.latency]
        found = summarize(
            sessions, percentile, _device(measurements), _runtime(measurements), measurements.cores
        )
    elif runs:
        found = _latency_of_runs(measurements, runs, percentile)
    else:
        return None
    stated = tuple(_stated(measurements))
    return found.model_copy(update={"disturbances": (*found.disturbances, *stated)})


def answers_of(
    measurements: Measurements,
    files: Sequence[str],
    digests: Sequence[str] | None,
    class_names: Sequence[str],
    output_index: Sequence[int] | None = None,
) -> Classes | None:
    """Returns the class each test picture was answered with, or None if there are no answers.

    Every picture must be answered, so that both models of a comparison saw the same.

    Args:
        measurements: What was measured.
        files: Paths of the pictures below the data folder, in the order of the labels.
        digests: sha256 of the bytes of each; None if unknown, then answers need paths.
        class_names: Names of the classes in label order.
        output_index: The output that stands for each class. Defaults to None: in label order.

    Returns:
        int32 of shape `(pictures,)`; `OUTSIDE` (-1) for an answer outside the classes.

    Raises:
        SpecError: If the answers are to other pictures, or not to all of them.
        IntegrityError: If a picture is answered twice, by what is no class, or against its outputs.
    """
    if measurements.accuracy is None:
        return None
    pictures = _Pictures(files, digests)
    class_index = {_composed(name): number for number, name in enumerate(class_names)}
    index = range(len(class_names)) if output_index is None else output_index
    top1 = np.full(len(files), _UNANSWERED, np.int32)
    unknown = []
    for position, answer in enumerate(measurements.accuracy):
        where = f"accuracy[{position}]"
        top = _class_of(answer, class_index, where)
        _refuse_contradiction(answer, top, index, where)
        rows = pictures.rows(answer, where)
        if not rows:
            unknown.append(_named(answer.file or answer.sha256))
        elif any(top1[row] not in (_UNANSWERED, top) for row in rows):
            raise _twice(answer, where)
        top1[rows] = top
    missing = [
        _named(name) for name, top in zip(files, top1.tolist(), strict=True) if top == _UNANSWERED
    ]
    if unknown or missing:
        raise _other_pictures(unknown, missing, len(files))
    return top1


def accuracy_of(top1: Classes, labels: Classes, class_count: int) -> Accuracy:
    """Returns the accuracy of answers of which only the class is known, so without top-5.

    Args:
        top1: int32 of shape `(pictures,)`, as `answers_of` returns it.
        labels: int32 of the same shape, from 0 to `class_count - 1`.
        class_count: Number of classes.

    Raises:
        ValueError: As `edgekit.validate.accuracy.measure_accuracy`.
    """
    columns = np.where(top1 == OUTSIDE, class_count, top1)
    scores = np.eye(class_count + 1, dtype=np.float32)[columns]
    measured = measure_accuracy(scores, labels, class_count, np.arange(class_count))
    return measured.model_copy(update={"top5": None})


class _Pictures:
    """The user's test pictures, found by path or by content."""

    def __init__(self, files: Sequence[str], digests: Sequence[str] | None) -> None:
        self._digests = digests
        self._by_file = {_composed(name): row for row, name in enumerate(files)}
        self._by_digest: dict[str, list[int]] = {}
        for row, digest in enumerate(digests or ()):
            self._by_digest.setdefault(digest, []).append(row)
        self._seen: Counter[str] = Counter()

    def rows(self, answer: Answer, where: str) -> list[int]:
        """Returns the rows that an answer is about: several for copies of one picture.

        Raises:
            IntegrityError: If it is the second answer to a picture, or its path and digest do not
                belong together.
        """
        if answer.file is None:
            key = answer.sha256 or ""
            rows = self._by_digest.get(key, [])
            allowed = len(rows)
        else:
            key = _composed(answer.file)
            rows = [self._by_file[key]] if key in self._by_file else []
            allowed = 1
            known = self._digests[rows[0]] if rows and self._digests else answer.sha256
            if answer.sha256 not in (None, known):
                raise IntegrityError(
                    f"{where}: {_named(answer.file)} with sha256 {answer.sha256}",
                    f"the picture of that name, with sha256 {known}",
                    "measure on the same pictures as those in --data",
                )
        self._seen[key] += 1
        if rows and self._seen[key] > allowed:
            raise _twice(answer, where)
        return rows


def _values(path: Path) -> dict[str, Any]:
    """Returns the JSON object that a file holds."""
    text = _text(path)
    if "Inference timings in us" in text and not text.lstrip().startswith("{"):
        raise _bare(path, "what benchmark_model printed", "benchmark_model")
    try:
        values = json.loads(text, object_pairs_hook=partial(_object, path))
    except json.JSONDecodeError as error:
        raise SpecError(
            f"{path}, line {error.lineno}, column {error.colno}: {error.msg}",
            "a JSON file of measurements",
            "correct the file, or check that it was copied to the end",
        ) from error
    except (ValueError, RecursionError) as error:
        raise SpecError(
            f"{path}: numbers or nesting beyond all measure",
            "a JSON file of measurements",
            "check that this is the file you meant",
        ) from error
    if not isinstance(values, dict):
        raise SpecError(
            f"{path}: no JSON object but {type(values).__name__}",
            "one JSON object of measurements",
            "write one file for each model file and device",
        )
    if _VERSION_KEY not in values and {"num_threads", "latency", "model"} <= values.keys():
        raise _bare(path, "what litert-benchmark wrote", "litert_benchmark")
    return values


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            found = "no such file" if not path.exists() else "not a regular file"
            raise SpecError(f"{path}: {found}", "a JSON file of measurements", "check the path")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(
            f"{path}: {error.strerror}", "a file that can be read", "check its rights"
        ) from error
    if len(raw) > MAX_BYTES:
        raise SpecError(
            f"{path}: more than {MAX_BYTES:,} bytes",
            f"a file of measurements of at most {MAX_BYTES:,} bytes",
            "leave out the outputs, which no verdict needs, or write fewer samples",
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path}: byte {error.start} is not UTF-8",
            "a JSON file of measurements in UTF-8",
            "save it as UTF-8; of other tools hand in what they print, not what they save as "
            "protocol buffers",
        ) from error


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MOST_KEYS:
        raise SpecError(
            f"{path}: an object of {len(pairs)} keys",
            f"at most {_MOST_KEYS}",
            "check that this is the file you meant",
        )
    values = dict(pairs)
    if len(values) < len(pairs):
        key = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise SpecError(
            f"{path}: the key {_named(key)} twice in one object", "each key once", "remove one"
        )
    return values


def _bare(path: Path, found: str, key: str) -> SpecError:
    return SpecError(
        f"{path}: {found}, which says neither the sha256 of the model nor who measured it when",
        "a file of measurements around it",
        f"put it into {_WRAPPER % key}; sha256sum MODEL prints the digest",
    )


def _refusal(error: ValidationError, path: Path) -> SpecError:
    """Returns one error for what does not fit the format, a line for each problem."""
    # A list that is given up at its first problem is reported once more, as too short.
    problems = [
        problem
        for problem in error.errors(include_url=False)
        if problem["type"] != "too_short" or not problem["input"]
    ]
    lines = [_problem(problem) for problem in problems[:_PROBLEMS_SHOWN]]
    if len(problems) > _PROBLEMS_SHOWN:
        more = len(problems) - _PROBLEMS_SHOWN
        lines.append((f"and {more} more problems", "a file without them", "correct these first"))
    separator = "\n" + " " * len("  expected: ")
    received, expected, remedy = zip(*lines, strict=True)
    return SpecError(
        "\n".join(f"{path}: {line}" for line in received),
        separator.join(expected),
        separator.join(remedy),
    )


def _problem(problem: ErrorDetails) -> tuple[str, str, str]:
    location, kind = problem["loc"], problem["type"]
    part = _PARTS.get(str(location[0]), Measurements) if len(location) > 2 else Measurements
    key = str(location[-1])
    where = _named(
        "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)[1:]
    )
    remedy = "correct the value"
    if kind == "extra_forbidden":
        keys = list(part.model_fields)
        near = difflib.get_close_matches(key.lower(), keys, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else "remove it"
        return f"{where}: unknown key", f"one of {', '.join(keys)}", remedy
    if key == "sha256":
        subject = "picture" if len(location) > 1 else "model"
        remedy = f"write the digest of the {subject} file, as sha256sum prints it"
    if key == _VERSION_KEY:
        remedy = "add it, or update edgekit if the file is of a later version"
    if kind == "missing":
        expected = part.model_fields[key].description if key in part.model_fields else None
        return f"{where}: missing", expected or "this key", remedy.replace("correct", "add")
    said = str(problem["ctx"]["error"]) if kind == "value_error" else problem["msg"]
    expected = _EXPECTED.get(kind, said.replace("Tuple", "List"))
    return f"{where}: received {_shown(problem['input'])}", expected, remedy


def _shown(value: object) -> str:
    """Returns a value that was received, short and safe to print."""
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)} items"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number beyond 64 bits"
    return _named(value) if isinstance(value, str) else json.dumps(value)


def _named(text: str | None) -> str:
    """Returns an untrusted name, short and safe to print."""
    clean = printable(text or "")
    return f"{clean[:80]}..." if len(clean) > 80 else clean


def _composed(name: str) -> str:
    """Folds the two Unicode forms of one name: some systems take file names apart."""
    return unicodedata.normalize("NFC", name)


def _refuse_impossible(measurements: Measurements, path: Path) -> None:
    """Refuses what fits the format but cannot be true."""
    sessions = measurements.latency or ()
    for number, session in enumerate(sessions):
        _refuse_impossible_times(session, f"{path}: latency[{number}]")
    series = [s.samples_ms for s in sessions if len(s.samples_ms) >= _REPEATS_BY_CHANCE]
    _refuse_copies([s for s in series if min(s) < max(s)], f"{path}: latency")
    runs = _runs(measurements)
    _refuse_copies(
        [(run.init_ms, run.mean_ms, run.count, *run.held_ms.values()) for run in runs],
        f"{path}: runs",
    )
    for number, run in enumerate(runs, start=1):
        found = f"{path}: run {number}"
        if run.threads not in (None, measurements.threads):
            raise IntegrityError(
                f"{found} with {run.threads} threads",
                f"{measurements.threads} threads, as the file says",
                "write a file for each number of threads",
            )
        numbers = [run.held_ms[key] for key in sorted(run.held_ms)]
        slack = run.step_ms + 1e-5 * run.mean_ms  # six digits of the mean are printed
        inside = not numbers or numbers[0] - slack <= run.mean_ms <= numbers[-1] + slack
        if numbers != sorted(numbers) or not inside:
            raise IntegrityError(
                f"{found} whose shortest, mean, percentiles and longest contradict each other",
                "what the tool said, unaltered",
                "run the tool again",
            )
    for position, answer in enumerate(measurements.accuracy or ()):
        if answer.file is None and answer.sha256 is None:
            raise SpecError(
                f"{path}: accuracy[{position}] with neither file nor sha256",
                "the picture that was answered",
                "add its path below the data folder, or the sha256 of its bytes",
            )


def _refuse_impossible_times(session: Session, where: str) -> None:
    """Refuses times that no clock, or not the clock that is named, can have shown."""
    batch = (
        "time so many calls one behind the other that they take 200 steps of the clock, and write "
        "their mean and calls_per_sample"
    )
    if not any(session.samples_ms):
        raise IntegrityError(
            f"{where} of {len(session.samples_ms)} samples that are all 0 ms",
            "times that the clock can tell from 0",
            batch,
        )
    step = session.clock_step_ms or 0.0
    shortest = session.calls_per_sample * min(filter(None, session.samples_ms))
    # Half a step allows for a step that was measured a little too long.
    if shortest < step / 2:
        raise IntegrityError(
            f"{where} with a sample of {shortest:.3g} ms by a clock that moves in steps of "
            f"{step:.3g} ms",
            "0 or at least one step: calls_per_sample times the sample",
            "write what the clock showed, unaltered",
        )


def _refuse_copies(series: Sequence[tuple[float, ...]], where: str) -> None:
    if len(set(series)) < len(series):
        raise IntegrityError(
            f"{where} with the same numbers twice",
            "every run once",
            "remove the copy: a run that counts twice decides what it must not",
        )


def _class_of(answer: Answer, class_index: dict[str, int], where: str) -> int:
    if answer.answer is None:
        return OUTSIDE
    name = _composed(answer.answer)
    if name in class_index:
        return class_index[name]
    near = difflib.get_close_matches(name, class_index, n=1, cutoff=0.6)
    hint = f"; the nearest is {_named(near[0])}" if near else ""
    raise IntegrityError(
        f"{where}: the answer {_named(name)}, which is no class",
        f"one of the {len(class_index)} class folders, or null{hint}",
        "give the app the labels of this very model",
    )


def _refuse_contradiction(answer: Answer, top: int, index: Sequence[int], where: str) -> None:
    """Refuses an answer whose outputs say otherwise: the app has other labels than the model."""
    outputs = answer.outputs
    if outputs is None or top == OUTSIDE:
        return
    if index[top] >= len(outputs) or outputs[index[top]] < max(outputs):
        highest = outputs.index(max(outputs))
        raise IntegrityError(
            f"{where}: the answer {_named(answer.answer)}, but output {highest} of {len(outputs)} "
            "is the highest",
            f"output {index[top]}, which stands for that class",
            "give the app the labels of this very model, in its order",
        )


def _twice(answer: Answer, where: str) -> IntegrityError:
    return IntegrityError(
        f"{where}: another answer to {_named(answer.file or answer.sha256)}",
        "one answer to every picture",
        "remove one of them",
    )


def _other_pictures(unknown: list[str], missing: list[str], pictures: int) -> SpecError:
    found = []
    if unknown:
        found.append(f"{len(unknown)} answers to pictures that are not here: {_few(unknown)}")
    if missing:
        found.append(f"no answer to {len(missing)} of {pictures} pictures: {_few(missing)}")
    return SpecError(
        "; ".join(found),
        "one answer to every test picture, and no other",
        "give the data folder that was measured on; of one with splits, measure the test split",
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def _device(measurements: Measurements) -> str:
    return f"{measurements.device}, {measurements.os}"


def _runtime(measurements: Measurements) -> str:
    delegate = f", {measurements.delegate}" if measurements.delegate else ""
    return f"{measurements.runtime} {measurements.runtime_version}{delegate}"


def _session(session: Session, threads: int) -> LatencySession:
    return LatencySession(
        samples_ms=session.samples_ms,
        threads=threads,
        warmup_runs=session.warmup_runs,
        clock_step_ms=session.clock_step_ms,
        calls_per_sample=session.calls_per_sample,
        context_switches_involuntary=session.context_switches,
        # An app cannot read it; what is not known speaks neither for nor against the samples.
        load_average=0.0 if session.load is None else session.load,
        governor=session.governor,
        frequency_before_khz=session.frequency_before_khz,
        frequency_after_khz=session.frequency_after_khz,
        temperature_before_c=session.temperature_before_c,
        temperature_after_c=session.temperature_after_c,
    )


def _stated(measurements: Measurements) -> list[str]:
    """Returns what the writer of the file says against the samples."""
    found = ["the time of an emulated device is not its own"] if measurements.emulated else []
    for number, session in enumerate(measurements.latency or (), start=1):
        if not session.fresh_process:
            found.append(f"session {number}: not a fresh process")
        if session.battery_saver:
            found.append(f"session {number}: battery saver")
        if session.thermal_status not in (None, *_COOL):
            found.append(f"session {number}: thermal status {session.thermal_status}")
    return found


def _runs(measurements: Measurements) -> list[_Run]:
    """Returns what other tools say, in the order given."""
    if measurements.litert_benchmark is not None:
        return [_litert_run(result) for result in measurements.litert_benchmark]
    texts = measurements.benchmark_model or ()
    return [_logged_run(text, f"benchmark_model[{n}]") for n, text in enumerate(texts)]


def _litert_run(result: LitertBenchmark) -> _Run:
    # Source: ai_edge_litert/tools/benchmark_litert_model.py of ai-edge-litert 2.3.0, which rounds
    # times and the size in MiB to two digits.
    times, mebibyte = result.latency, 1024 * 1024
    return _Run(
        mean_ms=times.avg_ms,
        held_ms={
            0: times.min_ms,
            5: times.p5_ms,
            50: times.median_ms,
            95: times.p95_ms,
            100: times.max_ms,
        },
        count=times.num_runs,
        init_ms=times.init_ms,
        step_ms=0.01,
        threads=result.num_threads,
        size_bytes=(
            (result.model_size_mb - 0.0051) * mebibyte,
            (result.model_size_mb + 0.0051) * mebibyte,
        ),
    )


# What benchmark_model prints, in microseconds and six digits. Sources, of TensorFlow:
# tensorflow/lite/tools/benchmark/benchmark_model.cc and xla/tsl/util/stats_calculator.h; before
# percentiles were added, the line ended with "std=".
_NUMBER = r"(\d{1,15}(?:\.\d{1,15})?(?:e[+-]?0\d)?)"
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, "
    rf"Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}"
)
_COUNTS = re.compile(r"\bcount=\d{1,15} [^\n]*")
_FIELD = re.compile(rf"\b(count|curr|min|max|avg|p5|median|p95)={_NUMBER}")
_SIZE = re.compile(rf"The input model file size \(MB\): {_NUMBER}")
_THREADS = re.compile(r"Num threads: \[([1-9]\d{0,3})\]")
_PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}


def _logged_run(text: str, where: str) -> _Run:
    """Returns what benchmark_model printed about one run.

    Raises:
        IntegrityError: If that is not the text of exactly one run.
    """
    found = list(_TIMINGS.finditer(text))
    if len(found) != 1:
        raise IntegrityError(
            f'{where}: {len(found)} lines "Inference timings in us: ..."',
            "one, as one run of benchmark_model prints it",
            "start benchmark_model once for each run and hand in what each printed",
        )
    before = text[: found[0].start()]
    mean_us = float(found[0][4])
    lines = _COUNTS.findall(before)
    fields = {key: float(value) for key, value in _FIELD.findall(lines[-1])} if lines else {}
    # A line that does not have this mean is about the warm-up.
    if not math.isclose(fields.get("avg", fields.get("curr", -1.0)), mean_us, rel_tol=1e-5):
        fields = {}
    if fields and "avg" not in fields:  # "count=50 curr=33130(all same)"
        fields = {**fields, "min": mean_us, "max": mean_us}
    held = {p: fields[name] / 1000 for name, p in _PERCENTILES.items() if name in fields}
    if not {5, 50, 95} <= held.keys():
        held = {p: ms for p, ms in held.items() if p in (0, 100)}
    size, threads = _SIZE.search(before), _THREADS.search(before)
    megabytes = float(size[1]) if size else 0.0
    return _Run(
        mean_ms=mean_us / 1000,
        held_ms=held,
        count=int(fields.get("count", 0)),
        init_ms=float(found[0][1]) / 1000,
        step_ms=0.001,
        threads=int(threads[1]) if threads else None,
        size_bytes=(megabytes * (1e6 - 10), megabytes * (1e6 + 10)) if size else None,
    )


def _latency_of_runs(measurements: Measurements, runs: Sequence[_Run], percentile: int) -> Latency:
    slowest = {p: max(run.at_most(p) for run in runs) for p in (50, 90, 95, 99, 100)}
    return Latency(
        device=_device(measurements),
        runtime=_runtime(measurements),
        threads=measurements.threads,
        percentile=percentile,
        session_percentile_ms=tuple(run.at_most(percentile) for run in runs),
        p50_ms=slowest[50],
        p90_ms=slowest[90],
        p95_ms=slowest[95],
        p99_ms=slowest[99],
        max_ms=slowest[100],
        samples=sum(run.count for run in runs),
        effective_samples=float(len(runs)),
        context_switches_involuntary=0,
        governor=None,
        disturbances=tuple(
            f"run {number}: {doubt}"
            for number, run in enumerate(runs, start=1)
            for doubt in _doubts(run, percentile)
        ),
    )


def _doubts(run: _Run, percentile: int) -> list[str]:
    """Returns why a summary cannot be taken for a session, in words."""
    if percentile not in run.held_ms:
        held = ", ".join(f"p{p} {ms:g} ms" for p, ms in run.held_ms.items() if 0 < p < 100)
        number = "the mean" if not run.held_ms else "an upper limit"
        known = f"mean {run.mean_ms:g} ms" + (f", {held}" if held else "")
        return [f"a summary ({known}) without p{percentile}, for which {number} stands"]
    found = []
    needed = max(samples_needed(percentile), _RUNS_THAT_SHOW_DRIFT)
    if run.count < needed:
        found.append(f"{run.count} calls, p{percentile} of a summary needs {needed}")
    if run.held_ms[95] > DRIFT_RATIO * run.held_ms[5]:
        found.append(
            f"p95 is {run.held_ms[95]:g} ms and p5 {run.held_ms[5]:g} ms: whether it slowed down "
            "cannot be told without the samples"
        )
    if run.step_ms > TIMER_SHARE * run.held_ms[50]:
        found.append(f"rounded to {run.step_ms:g} ms for a median of {run.held_ms[50]:g} ms")
    return found
