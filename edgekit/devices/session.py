"""The runner program: `python -m edgekit.devices.session JOB.json`. Device layer.

One fresh process per call, for accuracy and for latency alike, so both judge the same bytes by the
same code. A model that crashes or hangs takes this process down, never edgekit. Unix only.
"""

import contextlib
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from edgekit.devices import surroundings
from edgekit.devices.protocol import Done, Failure, Job, Progress, Surroundings
from edgekit.errors import DataError, DeviceError, EdgekitError, SpecError
from edgekit.records import Preprocess, Record, TensorInfo, input_codes
from edgekit.runtimes import Session, open_model

Array = npt.NDArray[np.generic]
Images = npt.NDArray[np.uint8]

MIN_WARMUP_RUNS = 5
# Different images that latency cycles through; bounds the memory of the pre-built tensors.
MAX_TIMED_IMAGES = 64
PROGRESS_SECONDS = 0.5


def main(arguments: list[str]) -> int:
    """Runs the job and returns the exit code.

    Args:
        arguments: One path, of the JSON file with the `Job`.
    """
    job = Job.model_validate_json(Path(arguments[0]).read_bytes())
    # When the parent is killed, nobody else ends a model that hangs inside native code.
    signal.alarm(job.time_limit_seconds)
    if job.memory_limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (job.memory_limit_bytes, job.memory_limit_bytes))
    with _answer_channel() as channel:
        try:
            _say(channel, _work(job, channel))
        except EdgekitError as err:
            _say(channel, _failure(err))
            return err.exit_code
        except MemoryError:
            shortage = _out_of_memory(job)
            _say(channel, _failure(shortage))
            return shortage.exit_code
    return 0


@contextlib.contextmanager
def _answer_channel() -> Iterator[IO[str]]:
    """Yields the real stdout and points descriptor 1 at stderr.

    Native runtimes print to descriptor 1 too; this keeps their words out of the answers.
    """
    own = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(own, "w", encoding="utf-8") as channel:
        yield channel


def _say(channel: IO[str], line: Record) -> None:
    channel.write(line.model_dump_json() + "\n")
    channel.flush()


def _failure(err: EdgekitError) -> Failure:
    return Failure.model_validate(
        {
            "error": type(err).__name__,
            "received": err.received,
            "expected": err.expected,
            "remedy": err.remedy,
        }
    )


def _out_of_memory(job: Job) -> EdgekitError:
    return DeviceError(
        f"{job.subject.model}: ran out of memory",
        f"at most {job.memory_limit_bytes} bytes of address space",
        "judge fewer or smaller images, or raise the memory limit",
    )


def _work(job: Job, channel: IO[str]) -> Done:
    """Loads the model and answers or times the images."""
    subject = job.subject
    session = open_model(subject.model, subject.runtime, subject.threads, subject.sha256)
    images = _open_images(subject.images, session.input, subject.preprocess)
    encode = _encoder(subject.preprocess, session.input)

    def report(fraction: float) -> None:
        _say(channel, Progress(progress=min(fraction, 1.0)))

    if job.mode == "accuracy":
        count, around = _answer_all(session, images, encode, job, report), None
    else:
        count, around = _time_calls(session, images, encode, job, report)
    return Done(runtime=session.version, output=session.output, count=count, surroundings=around)


def _open_images(path: Path, model_input: TensorInfo, preprocess: Preprocess) -> Images:
    """Returns the memory-mapped images of shape (count, height, width, 3).

    Raises:
        DataError: If the file is no such array.
        SpecError: If the images, the contract and the model disagree about the size.
    """
    try:
        images: Images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        found = f"{path}: {err}"
        raise DataError(found, "a .npy file of images", "decode the images again") from err
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        found = f"{path}: {images.dtype} of shape {images.shape}"
        raise DataError(found, "uint8 of shape (count, height, width, 3)", "decode them again")
    asked = (preprocess.height_px, preprocess.width_px)
    if images.shape[1:3] != asked or model_input.shape[1:3] != asked:
        found = (
            f"images of {images.shape[1:3]}, preprocessing to {asked}, "
            f"a model for {model_input.shape[1:3]} (height, width)"
        )
        raise SpecError(found, "the same size in all three", "decode the images for this model")
    return images


def _encoder(preprocess: Preprocess, model_input: TensorInfo) -> Callable[[Images], Array]:
    """Returns the function from one image (height, width, 3) to the model's input tensor.

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
    codes = input_codes(preprocess, model_input.dtype, scale, zero_point)
    channel = np.arange(codes.shape[1])
    return lambda image: codes[image, channel][None]


def _answer_all(
    session: Session,
    images: Images,
    encode: Callable[[Images], Array],
    job: Job,
    report: Callable[[float], None],
) -> int:
    """Writes the raw scores of every image; returns how many there are."""
    dtype = np.dtype(session.output.dtype)
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (len(images), session.output.shape[-1]),
    }
    unfinished = job.results.with_suffix(".part")
    last = time.monotonic()
    # Row by row, so memory does not grow with the images.
    with unfinished.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for index, image in enumerate(images):
            stream.write(session.run(encode(image)).astype(dtype, copy=False).tobytes())
            if time.monotonic() - last > PROGRESS_SECONDS:
                last = time.monotonic()
                report(index / len(images))
    unfinished.replace(job.results)
    return len(images)


def _time_calls(
    session: Session,
    images: Images,
    encode: Callable[[Images], Array],
    job: Job,
    report: Callable[[float], None],
) -> tuple[int, Surroundings]:
    """Warms up, times single calls, writes the samples; returns their number and what went on."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), MAX_TIMED_IMAGES)).astype(int)
    tensors = [np.ascontiguousarray(encode(images[i])) for i in chosen]
    warmup_runs = _warm_up(session, tensors, job.warmup_seconds)
    # Collections inside a sample would be Python's time, not the model's.
    gc.collect()
    gc.disable()
    before = surroundings.look()
    samples_ns = _sample(session, tensors, job, report)
    around = surroundings.compare(before, surroundings.look(), job.subject.threads, warmup_runs)
    gc.enable()
    unfinished = job.results.with_suffix(".part")
    with unfinished.open("wb") as stream:
        np.save(stream, np.array(samples_ns, dtype=np.float64) / 1e6)
    unfinished.replace(job.results)
    return len(samples_ns), around


def _warm_up(session: Session, tensors: list[Array], seconds: float) -> int:
    """Runs untimed calls for at least `seconds` and `MIN_WARMUP_RUNS`; returns their number."""
    start, runs = time.perf_counter(), 0
    while runs < MIN_WARMUP_RUNS or time.perf_counter() - start < seconds:
        session.run(tensors[runs % len(tensors)])
        runs += 1
    return runs


def _sample(
    session: Session, tensors: list[Array], job: Job, report: Callable[[float], None]
) -> list[int]:
    """Returns the wall time of single calls in nanoseconds.

    A sample spans one `Session.run`: the input tensor goes in, the answer is copied out.
    """
    samples: list[int] = []
    clock, run = time.perf_counter_ns, session.run
    begin = last = time.perf_counter()
    while len(samples) < job.min_queries or time.perf_counter() - begin < job.min_seconds:
        tensor = tensors[len(samples) % len(tensors)]
        start = clock()
        run(tensor)
        samples.append(clock() - start)
        now = time.perf_counter()
        if now - last > PROGRESS_SECONDS:
            last = now
            elapsed = (now - begin) / job.min_seconds if job.min_seconds else 1.0
            report(min(elapsed, len(samples) / job.min_queries))
    return samples


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
