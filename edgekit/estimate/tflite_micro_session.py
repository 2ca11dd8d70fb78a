"""The program that runs TensorFlow Lite Micro: `tflite_micro_session JOB.json`. Estimate layer.

It speaks the lines of `edgekit.devices.protocol`; `edgekit.estimate.tflite_micro` starts it.
"""

import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgekit.devices import child
from edgekit.devices.protocol import Done, Failure, Progress
from edgekit.errors import DataError, DeviceError, EdgekitError, IntegrityError, SpecError
from edgekit.folders import writing
from edgekit.records import Record, TensorInfo
from edgekit.runner.program import encoder
from edgekit.runtimes import check_digest
from edgekit.runtimes.base import FLATBUFFER_DAMAGE, printable
from edgekit.runtimes.ends import classifier_io, feed_of
from edgekit.runtimes.inspect import inspect_content, read_model

Untyped: TypeAlias = Any  # the library has no type hints
Report: TypeAlias = Callable[[float], None]
Array: TypeAlias = npt.NDArray[np.generic]
Encode: TypeAlias = Callable[[Array], Array]

# Where a file is tried first; its pages are only taken when they are written. A model that needs
# more is for no microcontroller.
ROOM_BYTES = 256 * 1024**2
# Source: MicroArenaBufferAlignment in tensorflow/lite/micro/micro_arena_constants.h of
# https://github.com/tensorflow/tflite-micro .
ALIGNMENT_BYTES = 16
PROGRESS_SECONDS = 0.5
# What the interpreter raises; the others come from its reading of the flatbuffer in Python.
REFUSALS = (RuntimeError, *FLATBUFFER_DAMAGE)

_TOTALS = re.compile(r"^\[RecordingMicroAllocator\] Arena allocation (\w+) (\d+) bytes\r?$", re.M)
_PARTS = re.compile(r"^\[RecordingMicroAllocator\] '([^']+)' used (\d+) bytes ", re.M)
_NO_KERNEL = re.compile(r"Didn't find op for builtin opcode '([A-Z0-9_]+)'")
_NO_ROOM = re.compile(r"Failed to (allocate|resize)|Unable to allocate")


class MicroJob(Record):
    """One run of the program.

    Args:
        model: A .tflite file.
        sha256: Digest that the file must have, in hex.
        images: A .npy file, uint8 of shape `(count, height_px, width_px, 3)`.
        codes: A .npy file of shape `(256, channels)`: the input tensor's value of every pixel
            value.
        output: Position of the output that is read; None for the only one.
        arena_bytes: Arena that answers; None for the smallest that works.
        answer_seconds: Wall time for each line after the first.
        answers: Where the raw answers go.
        arena: Where the `Arena` goes, as JSON.
    """

    model: Path
    sha256: str
    images: Path
    codes: Path
    output: int | None = None
    arena_bytes: int | None = None
    answer_seconds: float = Field(gt=0)
    answers: Path
    arena: Path


class Arena(Record):
    """Working memory that one file needs on this machine's reference kernels, in bytes.

    On the device it differs: pointers here have 8 bytes and there 4, which shrinks the tail, and
    optimized kernels want scratch memory of their own.

    Args:
        needed_bytes: Smallest arena, a multiple of 16, in which the interpreter starts.
        recorded_bytes: What the interpreter's own recorder adds up; `head_bytes + tail_bytes`.
        head_bytes: Activations and scratch memory, shared over time.
        tail_bytes: What stays: tensors, operators, quantization.
        parts: The recorder's own words and the bytes of each part of the tail.
    """

    needed_bytes: int = Field(ge=1)
    recorded_bytes: int = Field(ge=1)
    head_bytes: int = Field(ge=0)
    tail_bytes: int = Field(ge=0)
    parts: dict[str, int]


def main(arguments: list[str]) -> int:
    """Runs the job and returns the exit code.

    Args:
        arguments: One path, of the JSON file with the `MicroJob`.
    """
    job = MicroJob.model_validate_json(Path(arguments[0]).read_bytes())
    # Native code prints to descriptor 1 too; this keeps its words out of the answers.
    own = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(own, "w", encoding="utf-8") as channel:
        try:
            _say(channel, _work(job, lambda part: _say(channel, Progress(progress=part))))
        except EdgekitError as err:
            _say(channel, _failure(err))
            return err.exit_code
        except OSError as err:
            unwritable = child.unwritable(err)
            _say(channel, _failure(unwritable))
            return unwritable.exit_code
        except MemoryError:
            shortage = DeviceError(
                f"{job.model}: ran out of memory", "a model of usual size", "judge fewer images"
            )
            _say(channel, _failure(shortage))
            return shortage.exit_code
    return 0


def parse_allocations(words: str, path: str) -> dict[str, Any]:
    """Returns the fields of `Arena` that the interpreter prints itself.

    Args:
        words: What `print_allocations` wrote.
        path: The model, for messages.

    Raises:
        DeviceError: If it is not what the tested version writes.
    """
    found = _TOTALS.findall(words)
    totals = {name: int(count) for name, count in found}
    parts = _PARTS.findall(words)
    if (
        len(found) != 3
        or totals.keys() != {"total", "head", "tail"}
        or totals["total"] != totals["head"] + totals["tail"]
        or len(dict(parts)) != len(parts)
    ):
        raise DeviceError(
            f"{path}: tflite-micro said of its arena {printable(words)!r}",
            "one total, head and tail that add up",
            "install the version of tflite-micro that edgekit[micro] asks for",
        )
    return {
        "recorded_bytes": totals["total"],
        "head_bytes": totals["head"],
        "tail_bytes": totals["tail"],
        "parts": {name: int(count) for name, count in parts},
    }


def _say(channel: IO[str], line: Record) -> None:
    channel.write(line.model_dump_json() + "\n")
    channel.flush()


def _failure(err: EdgekitError) -> Failure:
    texts = {"received": err.received, "expected": err.expected, "remedy": err.remedy}
    return Failure.model_validate({"error": type(err).__name__, **texts})


def _work(job: MicroJob, report: Report) -> Done:
    """Measures the arena, then answers every image inside it."""
    path = str(job.model)
    content = read_model(job.model)
    check_digest(content, job.sha256, job.model)
    facts = inspect_content(content, "tflite", path)
    model_input, output = classifier_io(facts, path, job.output)
    images, encode = _open_images(job, model_input)
    arena = _measure(content, path)
    size = arena.needed_bytes if job.arena_bytes is None else job.arena_bytes
    if size < arena.needed_bytes:
        raise SpecError(
            f"{path}: an arena of {size} bytes, but the model needs {arena.needed_bytes}",
            f"at least {arena.needed_bytes} bytes",
            "give it more memory, or train with a smaller input or width",
        )
    count = _answer_all(job, content, size, (images, encode), output, report)
    with writing(job.arena):
        job.arena.write_text(arena.model_dump_json(), encoding="utf-8")
    named = f"TensorFlow Lite Micro {version('tflite-micro')}, reference kernels"
    return Done(runtime=named, count=count)


def _open_images(job: MicroJob, model_input: TensorInfo) -> tuple[npt.NDArray[np.uint8], Encode]:
    """Returns the memory-mapped images and what makes a tensor of one, both fit for the model."""
    try:
        images: npt.NDArray[np.uint8] = np.load(job.images, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        found = f"{job.images}: {err}"
        raise DataError(found, "a .npy file of images", "decode the images again") from err
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        found = f"{job.images}: {images.dtype} of shape {images.shape}"
        raise DataError(found, "uint8 of shape (count, height, width, 3)", "decode them again")
    codes = np.load(job.codes, allow_pickle=False)
    feed = feed_of(model_input)
    if images.shape[1:3] != (feed.height_px, feed.width_px) or codes.dtype != model_input.dtype:
        raise SpecError(
            f"images of {images.shape[1:3]} with codes of {codes.dtype}, a model for "
            f"{(feed.height_px, feed.width_px)} (height, width) of {model_input.dtype}",
            "the same size and type",
            "decode the images for this model",
        )
    return images, encoder(codes, feed.layout)


@contextlib.contextmanager
def _native_words() -> Iterator[Callable[[], str]]:
    """Catches what native code writes to descriptor 2; yields a function that returns it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield lambda: os.pread(log.fileno(), 65536, 0).decode("utf-8", "replace")
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _start(content: bytes, arena_bytes: int) -> Untyped:
    """Returns an interpreter that has planned its arena; raises one of `REFUSALS`."""
    from tflite_micro import runtime

    return runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)


def _measure(content: bytes, path: str) -> Arena:
    """Returns what a model needs; refuses one that the interpreter cannot run."""
    with _native_words() as words:
        try:
            _start(content, ROOM_BYTES).print_allocations()
        except REFUSALS as err:
            raise _refusal(path, words(), err) from err
        recorded = parse_allocations(words(), path)
    needed = _smallest_arena(content, recorded["recorded_bytes"], path)
    return Arena(needed_bytes=needed, **recorded)


def _smallest_arena(content: bytes, recorded_bytes: int, path: str) -> int:
    """Returns the smallest arena that works, from the recorded number upwards.

    For real networks it is the recorded number, rounded up. Planning takes some memory that is free
    again when the recorder adds up, so a network of a few operators needs more than that.
    """
    high = -(-recorded_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    if _starts_in(content, high):
        return high
    low, step = high, ALIGNMENT_BYTES
    while not _starts_in(content, high):
        low, high, step = high, high + step, 2 * step
        if high > 2 * ROOM_BYTES:
            found = f"{path}: starts in {ROOM_BYTES} bytes, but not again"
            raise DeviceError(found, "the same answer twice", "run it again")
    while high - low > ALIGNMENT_BYTES:
        middle = (low + high) // 2 // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        low, high = (low, middle) if _starts_in(content, middle) else (middle, high)
    return high


def _starts_in(content: bytes, arena_bytes: int) -> bool:
    """Tries an arena in a forked process: this interpreter may crash where memory is short."""
    process = os.fork()
    if process == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _start(content, arena_bytes)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(process, 0)[1] == 0


def _answer_all(
    job: MicroJob,
    content: bytes,
    arena_bytes: int,
    pictures: tuple[npt.NDArray[np.uint8], Encode],
    output: TensorInfo,
    report: Report,
) -> int:
    """Writes the raw answers to every image, one image per call; returns how many there are."""
    images, encode = pictures
    raw = np.empty((len(images), output.shape[-1]), np.dtype(output.dtype))
    last = time.monotonic()
    with _native_words() as words:
        try:
            interpreter = _start(content, arena_bytes)
            for index, image in enumerate(images):
                interpreter.set_input(encode(image), 0)
                interpreter.invoke()
                raw[index] = interpreter.get_output(job.output or 0).reshape(-1)
                if not index or time.monotonic() - last > PROGRESS_SECONDS:
                    last = time.monotonic()
                    child.still_working(job.answer_seconds)
                    report(index / len(images))
        except REFUSALS as err:
            raise _refusal(str(job.model), words(), err) from err
    with writing(job.answers), job.answers.open("wb") as stream:
        np.save(stream, raw)
    return len(images)


def _refusal(path: str, words: str, err: Exception) -> EdgekitError:
    """Returns the error for a model that the interpreter does not run, from its own words."""
    missing = _NO_KERNEL.search(words)
    if missing is not None:
        return IntegrityError(
            f"{path}: TensorFlow Lite Micro has no kernel for {missing[1]}",
            "operators that TensorFlow Lite Micro has",
            "export the model without this operator, or judge it on another runtime",
        )
    said = printable(f"{words} {err}")
    if _NO_ROOM.search(words):
        return SpecError(
            f"{path}: does not start in an arena of {ROOM_BYTES} bytes ({said})",
            "a model for a microcontroller",
            "train with a smaller input or width",
        )
    return IntegrityError(
        f"{path}: TensorFlow Lite Micro refuses it ({said})",
        "a model whose operators and types TensorFlow Lite Micro has kernels for",
        "export it as int8 with int8 input and output, or judge it on another runtime",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
