"""Answers of a file and times of calls, each in fresh processes. Device layer."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgekit import limits
from edgekit.devices import local
from edgekit.devices.exchange import PATIENT, ReportProgress, Waiting, exchange
from edgekit.devices.place import Machine, Place
from edgekit.devices.program import runner_file
from edgekit.devices.protocol import Done, Job, Subject
from edgekit.errors import DataError, DeviceError, SpecError
from edgekit.folders import scratch_folder
from edgekit.records import LatencySession, Preprocess, TensorInfo, input_codes
from edgekit.runner.program import MIN_WARMUP_RUNS
from edgekit.runtimes import read_ends
from edgekit.runtimes.ends import Readout, feed_of

# The process ends itself a little after its parent should have ended it.
_GRACE_SECONDS = 10
# Above what the header of a .npy file takes.
_HEADER_BYTES = 1024


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
    """Every timed session of one file, in the order they ran.

    Args:
        sessions: The sessions.
        runtime: Runtime and version.
        disturbances: What the device itself says against them, in words. Defaults to nothing.
        cores: Cores of the device. Defaults to None: those of this machine.
    """

    sessions: tuple[LatencySession, ...]
    runtime: str
    disturbances: tuple[str, ...] = ()
    cores: int | None = None


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


@dataclass(frozen=True)
class Task:
    """One fresh process on a device.

    Args:
        subject: File, runtime, images and preprocessing.
        input: Input of the file.
        output: Output of the file.
        codes: The tensor value of every pixel value per channel, of shape (256, channels).
        images: How many images there are.
        mode: "accuracy" answers every image; "latency" times single calls.
        pace: How latency is measured.
        timeout_seconds: Wall time for the whole task.
        waiting: How long the process may be silent.
        memory_limit_bytes: Address space of the process; None for no limit.
    """

    subject: Subject
    input: TensorInfo
    output: TensorInfo
    codes: npt.NDArray[np.generic]
    images: int
    mode: Literal["accuracy", "latency"]
    pace: Pace
    timeout_seconds: float
    waiting: Waiting
    memory_limit_bytes: int | None


class Device(Protocol):
    """Where files are measured."""

    @property
    def machine(self) -> Machine:
        """What it is."""

    def disturbances(self) -> tuple[str, ...]:
        """Returns what speaks against timing there now and a session cannot see, in words."""

    def run(
        self, task: Task, progress: ReportProgress | None
    ) -> tuple[Done, npt.NDArray[np.generic]]:
        """Does one task in a fresh process; returns its last line and its array.

        Raises:
            EdgekitError: As `answer`.
        """


def answer(
    subject: Subject,
    timeout_seconds: float = math.inf,
    progress: ReportProgress | None = None,
    memory_limit_bytes: int | None = limits.PROCESS_MEMORY_BYTES,
    device: Device | None = None,
    waiting: Waiting | None = None,
) -> Answers:
    """Returns the answers of one file to every image, one image per call.

    Args:
        subject: File, runtime, images and preprocessing.
        timeout_seconds: Wall time for the whole run. Defaults to no limit but that of `waiting`.
        progress: Called with fractions from 0 to 1. Defaults to None.
        memory_limit_bytes: Address space of the process. Defaults to
            `limits.PROCESS_MEMORY_BYTES`; None for no limit.
        device: Where. Defaults to None: this machine.
        waiting: How long it may take to answer. Defaults to None: `Waiting()` on this machine,
            `PATIENT` elsewhere.

    Raises:
        IntegrityError: If the file is not the one named, damaged, untrusted or crashes.
        DeviceError: If the runtime fails, hangs or answers nonsense, or the device cannot be used.
        SpecError: If images, preprocessing and model do not fit together.
        DataError: If the images cannot be read.
    """
    waiting = waiting or _waiting(device)
    task = _task(subject, "accuracy", Pace(), timeout_seconds, waiting, memory_limit_bytes)
    with _on(device) as used:
        done, raw = used.run(task, progress)
    _check_array(task, raw, (task.images, task.output.shape[-1]), task.output.dtype)
    return Answers(raw=raw, output=task.output, runtime=done.runtime)


def time_sessions(
    subjects: Sequence[Subject],
    sessions: int = 5,
    pace: Pace | None = None,
    timeout_seconds: float = 600.0,
    progress: ReportProgress | None = None,
    memory_limit_bytes: int | None = limits.PROCESS_MEMORY_BYTES,
    device: Device | None = None,
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
        memory_limit_bytes: As in `answer`.
        device: Where. Defaults to None: this machine.

    Returns:
        One `Timing` per subject, in order.

    Raises:
        EdgekitError: As `answer`.
    """
    pace, waiting = pace or Pace(), _waiting(device)
    tasks = [
        _task(subject, "latency", pace, timeout_seconds, waiting, memory_limit_bytes)
        for subject in subjects
    ]
    timed: list[list[tuple[LatencySession, str]]] = [[] for _ in tasks]
    total = sessions * len(tasks)
    with _on(device) as used:
        disturbed = dict.fromkeys(used.disturbances())
        for turn in range(total):
            which = turn % len(tasks)
            timed[which].append(_time_once(used, tasks[which], _share(progress, turn, total)))
        disturbed |= dict.fromkeys(used.disturbances())
        cores = used.machine.cores
    return [
        Timing(
            tuple(session for session, _ in entries),
            entries[0][1] if entries else "",
            tuple(disturbed),
            cores,
        )
        for entries in timed
    ]


def scores(
    raw: npt.NDArray[np.generic], output: TensorInfo, readout: Readout | None = None
) -> npt.NDArray[np.float32]:
    """Returns raw answers as real numbers.

    Args:
        raw: Scores of shape `(images, classes)` in the file's own dtype.
        output: The output tensor; without a `scale` the numbers are taken as they are.
        readout: How they answer. Defaults to None: a score a class.

    Returns:
        `scale * (raw - zero_point)`, float32 of the same shape; of a single output the two scores
        that `Readout.scores` makes of it.
    """
    real = raw.astype(np.float32)
    if output.scale is not None:
        zero_point = np.float32(output.zero_point or 0)
        real = np.asarray(np.float32(output.scale) * (real - zero_point), dtype=np.float32)
    return real if readout is None else readout.scores(real)


@dataclass(frozen=True)
class RunnerDevice:
    """A device on which the runner program is started.

    Args:
        place: The device, reached.
    """

    place: Place

    @property
    def machine(self) -> Machine:
        """What it is."""
        return self.place.machine

    def disturbances(self) -> tuple[str, ...]:
        """Returns what speaks against timing there now; see `Device.disturbances`."""
        return self.place.disturbances()

    def run(
        self, task: Task, progress: ReportProgress | None
    ) -> tuple[Done, npt.NDArray[np.generic]]:
        """Does one task in a fresh process of the runner; see `Device.run`."""
        subject, place = task.subject, self.place
        program = place.put(runner_file())
        with scratch_folder() as scratch:
            table, job_file = scratch / "codes.npy", scratch / "job.json"
            np.save(table, task.codes)
            job = Job(
                model=place.put(subject.model),
                sha256=subject.sha256,
                runtime=subject.runtime,
                threads=subject.threads,
                delegate=subject.delegate,
                input_dtype=task.input.dtype,
                input_shape=task.input.shape,
                layout=feed_of(task.input).layout,
                output=subject.readout.output or 0,
                output_dtype=task.output.dtype,
                classes=task.output.shape[-1],
                images=place.put(subject.images),
                codes=place.put(table),
                mode=task.mode,
                results=place.path("results.npy"),
                warmup_seconds=task.pace.warmup_seconds,
                min_queries=task.pace.min_queries,
                min_seconds=task.pace.min_seconds,
                memory_limit_bytes=task.memory_limit_bytes,
                first_answer_seconds=math.ceil(task.waiting.first_seconds) + _GRACE_SECONDS,
                answer_seconds=math.ceil(task.waiting.further_seconds) + _GRACE_SECONDS,
            )
            job_file.write_text(job.model_dump_json(), encoding="utf-8")
            command = place.command(program, place.put(job_file))
            done = exchange(
                command,
                str(subject.model),
                task.timeout_seconds,
                progress,
                place.environment(),
                place.explain,
                task.waiting,
            )
            results = scratch / "results.npy"
            place.get(job.results, results, _largest(task, done))
            return done, _array(task, results)


@contextmanager
def _on(device: Device | None) -> Iterator[Device]:
    """Yields the device, or this machine."""
    if device is not None:
        yield device
        return
    with local.reach() as place:
        yield RunnerDevice(place)


def _waiting(device: Device | None) -> Waiting:
    """Returns how long answers may take on a device; None is this machine."""
    return Waiting() if device is None else PATIENT


def _task(
    subject: Subject,
    mode: Literal["accuracy", "latency"],
    pace: Pace,
    timeout_seconds: float,
    waiting: Waiting,
    memory_limit_bytes: int | None,
) -> Task:
    """Reads the ends of the file and checks that images, contract and file fit together."""
    model_input, output = read_ends(
        subject.model, subject.runtime, subject.sha256, subject.readout.output
    )
    return Task(
        subject=subject,
        input=model_input,
        output=output,
        codes=codes(subject.preprocess, model_input),
        images=_check_images(subject.images, model_input, subject.preprocess),
        mode=mode,
        pace=pace,
        timeout_seconds=timeout_seconds,
        waiting=waiting,
        memory_limit_bytes=memory_limit_bytes,
    )


def _check_images(path: Path, model_input: TensorInfo, preprocess: Preprocess) -> int:
    """Returns how many images of shape (height, width, 3) a file holds.

    Raises:
        DataError: If the file is no such array.
        SpecError: If the images, the contract and the model disagree about the size.
    """
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        found = f"{path}: {err}"
        raise DataError(found, "a .npy file of images", "decode the images again") from err
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        found = f"{path}: {images.dtype} of shape {images.shape}"
        raise DataError(found, "uint8 of shape (count, height, width, 3)", "decode them again")
    asked = (preprocess.height_px, preprocess.width_px)
    feed = feed_of(model_input)
    fed = (feed.height_px, feed.width_px)
    if images.shape[1:3] != asked or fed != asked:
        found = (
            f"images of {images.shape[1:3]}, preprocessing to {asked}, "
            f"a model for {fed} (height, width)"
        )
        raise SpecError(found, "the same size in all three", "decode the images for this model")
    return len(images)


def codes(preprocess: Preprocess, model_input: TensorInfo) -> npt.NDArray[np.generic]:
    """Returns the tensor value of every pixel value for each channel of an input.

    Args:
        preprocess: The contract.
        model_input: As the file says.

    Returns:
        Shape `(256, channels)`, in the dtype of the input; see `edgekit.records.input_codes`.

    Raises:
        SpecError: If the input is int8 but the file does not say what its codes mean.
    """
    scale, zero_point = model_input.scale, model_input.zero_point
    if model_input.dtype == "uint8" and scale is None:
        # A uint8 input without quantization takes plain numbers: real value = code.
        scale, zero_point = 1.0, 0
    if model_input.dtype == "int8" and not scale:
        found = f"input {model_input.name!r} of type int8 without a quantization scale"
        raise SpecError(found, "scale and zero point in the file", "export it with them")
    every = input_codes(preprocess, model_input.dtype, scale, zero_point)
    return every[:, : feed_of(model_input).channels]


def _share(progress: ReportProgress | None, turn: int, total: int) -> ReportProgress | None:
    """Returns a reporter for one session out of `total`."""
    if progress is None:
        return None
    report = progress
    return lambda fraction: report((turn + fraction) / total)


def _time_once(
    device: Device, task: Task, progress: ReportProgress | None
) -> tuple[LatencySession, str]:
    """Runs one session in one process; returns it with the runtime's version."""
    started = time.monotonic()
    done, array = device.run(task, progress)
    elapsed_ms = 1000 * (time.monotonic() - started)
    _check_array(task, array, (done.count,), "float64")
    samples = array.astype(np.float64)
    around, least = done.surroundings, task.pace.min_queries
    valid = done.count >= least and np.isfinite(samples).all() and (samples >= 0).all()
    valid = valid and samples.max() > 0
    if around is None or not valid or around.warmup_runs < MIN_WARMUP_RUNS:
        found = f"{task.subject.model}: {done.count} samples, some not usable"
        expected = (
            f"at least {least} finite times of 0 ms or more, not all 0, behind {MIN_WARMUP_RUNS} "
            "other calls"
        )
        raise DeviceError(found, expected, "check the device's clock and run it again")
    timed_ms = around.calls_per_sample * samples.sum()
    if timed_ms > elapsed_ms:
        found = f"{task.subject.model}: calls of {timed_ms:.0f} ms in {elapsed_ms:.0f} ms"
        raise DeviceError(found, "no more than passed here", "check the device's clock")
    session = LatencySession(
        samples_ms=tuple(samples.tolist()),
        threads=task.subject.threads,
        memory_bytes=done.memory_bytes,
        **around.model_dump(),
    )
    return session, done.runtime


def _largest(task: Task, done: Done) -> int:
    """Returns the most bytes that the results of a task can have."""
    if task.mode == "latency":
        return _HEADER_BYTES + 8 * done.count
    scores_bytes = task.output.shape[-1] * np.dtype(task.output.dtype).itemsize
    return _HEADER_BYTES + task.images * scores_bytes


def _array(task: Task, path: Path) -> npt.NDArray[np.generic]:
    """Returns the array that a runner wrote.

    Raises:
        DeviceError: If it is no array.
    """
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as err:
        found = f"{task.subject.model}: the runner's results: {err}"
        raise DeviceError(found, "an array of numbers", "run it again") from err


def _check_array(
    task: Task, array: npt.NDArray[np.generic], shape: tuple[int, ...], dtype: str
) -> None:
    """Refuses an array that is not what the task asks for and the last line claims.

    Raises:
        DeviceError: If it is of another shape or dtype.
    """
    if array.shape != shape or array.dtype != np.dtype(dtype):
        found = f"{task.subject.model}: {array.dtype} results of shape {array.shape}"
        raise DeviceError(found, f"{dtype} of shape {shape}", "run it again")
