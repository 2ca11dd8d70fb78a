"""Measures exported files on this machine, each in fresh processes. Device layer."""

import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.devices.exchange import ReportProgress, exchange
from edgekit.devices.protocol import Done, Job, Subject
from edgekit.errors import DeviceError
from edgekit.records import LatencySession, TensorInfo

# Address space, not memory in use: thread stacks and allocator arenas reserve far more than they
# touch, so the limit only stops a model that asks for absurd amounts.
MEMORY_LIMIT_BYTES = 16 * 1024**3
RUNNER = "edgekit.devices.session"


@dataclass(frozen=True)
class Answers:
    """Every answer of one file.

    Args:
        raw: Scores of shape `(images, classes)` in the file's own dtype.
        output: The output tensor; gives the quantization of `raw`.
        runtime: Runtime and version.
    """

    raw: npt.NDArray[np.generic]
    output: TensorInfo
    runtime: str


@dataclass(frozen=True)
class Timing:
    """Every timed session of one file, in the order they ran."""

    sessions: tuple[LatencySession, ...]
    runtime: str


@dataclass(frozen=True)
class Pace:
    """How one latency session runs: design and defaults from the "standard" profile.

    Args:
        warmup_seconds: Untimed running first, at least five calls. Defaults to 0.5.
        min_queries: Fewest samples. Defaults to 200.
        min_seconds: Shortest timed part. Defaults to 10.
    """

    warmup_seconds: float = 0.5
    min_queries: int = 200
    min_seconds: float = 10.0


def answer(
    subject: Subject,
    timeout_seconds: float = 3600.0,
    progress: ReportProgress | None = None,
    memory_limit_bytes: int | None = MEMORY_LIMIT_BYTES,
) -> Answers:
    """Returns the answers of one file to every image, one image per call.

    Args:
        subject: File, runtime, images and preprocessing.
        timeout_seconds: Wall time for the whole run. Defaults to an hour.
        progress: Called with fractions from 0 to 1. Defaults to None.
        memory_limit_bytes: Address space of the process. Defaults to 16 GiB; None for no limit.

    Raises:
        IntegrityError: If the file is not the one named, damaged, untrusted or crashes.
        DeviceError: If the runtime fails, hangs or answers nonsense.
        SpecError: If images, preprocessing and model do not fit together.
        DataError: If the images cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        job = Job(
            subject=subject,
            mode="accuracy",
            results=Path(folder) / "answers.npy",
            memory_limit_bytes=memory_limit_bytes,
            time_limit_seconds=_own_limit(timeout_seconds),
        )
        done = _run(job, timeout_seconds, progress)
        shape = (_image_count(subject.images), done.output.shape[-1])
        if done.count != shape[0]:
            found = f"{subject.model}: {done.count} answers"
            raise DeviceError(found, f"{shape[0]} answers, one per image", "run it again")
        raw = _results(job, shape, done.output.dtype)
    return Answers(raw=raw, output=done.output, runtime=done.runtime)


def time_sessions(
    subjects: Sequence[Subject],
    sessions: int = 5,
    pace: Pace | None = None,
    timeout_seconds: float = 600.0,
    progress: ReportProgress | None = None,
    memory_limit_bytes: int | None = MEMORY_LIMIT_BYTES,
) -> list[Timing]:
    """Times every file in fresh processes, interleaved: session 1 of each, then session 2 of each.

    Levels differ between processes and neighbouring sessions share their noise, so sessions of one
    file lie as far apart as they can.

    Args:
        subjects: What to time; each as in `answer`.
        sessions: Processes per file. Defaults to 5, the fewest that can show a PASS.
        pace: How long each session warms up and measures. Defaults to `Pace()`.
        timeout_seconds: Wall time of one session. Defaults to 600.
        progress: Called with fractions from 0 to 1 of the whole. Defaults to None.
        memory_limit_bytes: Address space of a process. Defaults to 16 GiB; None for no limit.

    Returns:
        One `Timing` per subject, in order.

    Raises:
        EdgekitError: As `answer`.
    """
    pace = pace or Pace()
    timed: list[list[tuple[LatencySession, str]]] = [[] for _ in subjects]
    total = sessions * len(subjects)
    for turn in range(total):
        which = turn % len(subjects)
        share = _share(progress, turn, total)
        timed[which].append(
            _time_once(subjects[which], pace, timeout_seconds, share, memory_limit_bytes)
        )
    return [
        Timing(tuple(session for session, _ in entries), entries[0][1] if entries else "")
        for entries in timed
    ]


def scores(raw: npt.NDArray[np.generic], output: TensorInfo) -> npt.NDArray[np.float32]:
    """Returns raw answers as real numbers.

    Args:
        raw: Scores of shape `(images, classes)` in the file's own dtype.
        output: The output tensor; without a `scale` the numbers are taken as they are.

    Returns:
        `scale * (raw - zero_point)`, float32 of the same shape.
    """
    real = raw.astype(np.float32)
    if output.scale is None:
        return real
    zero_point = np.float32(output.zero_point or 0)
    return np.asarray(np.float32(output.scale) * (real - zero_point), dtype=np.float32)


def _share(progress: ReportProgress | None, turn: int, total: int) -> ReportProgress | None:
    """Returns a reporter for one session out of `total`."""
    if progress is None:
        return None
    report = progress
    return lambda fraction: report((turn + fraction) / total)


def _time_once(
    subject: Subject,
    pace: Pace,
    timeout_seconds: float,
    progress: ReportProgress | None,
    memory_limit_bytes: int | None,
) -> tuple[LatencySession, str]:
    """Runs one session in one process; returns it with the runtime's version."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        job = Job(
            subject=subject,
            mode="latency",
            results=Path(folder) / "samples.npy",
            warmup_seconds=pace.warmup_seconds,
            min_queries=pace.min_queries,
            min_seconds=pace.min_seconds,
            memory_limit_bytes=memory_limit_bytes,
            time_limit_seconds=_own_limit(timeout_seconds),
        )
        done = _run(job, timeout_seconds, progress)
        samples = _results(job, (done.count,), "float64").astype(np.float64)
    around = done.surroundings
    valid = done.count >= pace.min_queries and np.isfinite(samples).all() and (samples >= 0).all()
    if around is None or not valid:
        found = f"{subject.model}: {done.count} samples, some not usable"
        expected = f"at least {pace.min_queries} finite times of 0 ms or more"
        raise DeviceError(found, expected, "check the device's clock and run it again")
    session = LatencySession(
        samples_ms=tuple(samples.tolist()), threads=subject.threads, **around.model_dump()
    )
    return session, done.runtime


def _own_limit(timeout_seconds: float) -> int:
    """Returns when a runner ends itself: a little after its parent should have done so."""
    return math.ceil(timeout_seconds) + 10


def _run(job: Job, timeout_seconds: float, progress: ReportProgress | None) -> Done:
    """Writes the job file and runs the runner program on it."""
    path = job.results.with_name("job.json")
    path.write_text(job.model_dump_json(), encoding="utf-8")
    # -P: a module in the current folder must not shadow one of the runner's.
    command = (sys.executable, "-P", "-m", RUNNER, str(path))
    return exchange(command, str(job.subject.model), timeout_seconds, progress, _environment())


def _environment() -> Mapping[str, str]:
    """Returns the runner's environment: this edgekit, and no thread pools beside the runtime's."""
    package_parent = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    search = os.pathsep.join(filter(None, (package_parent, inherited)))
    return {
        **os.environ,
        "PYTHONPATH": search,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _image_count(path: Path) -> int:
    """Returns the rows of an images file that a runner has already read."""
    return len(np.load(path, mmap_mode="r", allow_pickle=False))


def _results(job: Job, shape: tuple[int, ...], dtype: str) -> npt.NDArray[np.generic]:
    """Returns the array a runner wrote, after checking that it is what its last line claims.

    Raises:
        DeviceError: If the array is missing, or of another shape or dtype.
    """
    try:
        # Mapped first: shape and dtype are checked before anything is read into memory.
        array = np.load(job.results, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        found = f"{job.subject.model}: the runner's results: {err}"
        raise DeviceError(found, "an array of numbers", "run it again") from err
    if array.shape != shape or array.dtype != np.dtype(dtype):
        found = f"{job.subject.model}: {array.dtype} results of shape {array.shape}"
        raise DeviceError(found, f"{dtype} of shape {shape}", "run it again")
    return np.array(array)
