"""Does one job: answers every picture, or times calls.

One fresh process per job, for accuracy and for latency alike, so both judge the same bytes by the
same code. A model that crashes or hangs takes this process down and nothing else. Unix only.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import clock, surroundings
from .model import Array, Model, Request
from .refusal import EXIT_CODES, Refusal

MIN_WARMUP_RUNS = 5
# Different pictures that latency cycles through, and the memory of their tensors.
MAX_TIMED_IMAGES = 64
MAX_TIMED_BYTES = 256 * 1024**2
PROGRESS_SECONDS = 0.5
# Module of this folder and function in it that opens a model, by the runtime's name.
RUNTIMES = {
    "litert": ("litert", "open_litert"),
    "onnxruntime": ("onnx_runtime", "open_onnxruntime"),
}
Job = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Does the job and returns the exit code.

    Args:
        arguments: One path, of a JSON file with the fields of `edgekit.devices.protocol.Job`.
    """
    job: Job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    # When whoever started this is gone, nobody else ends a model that hangs inside native code.
    signal.alarm(job["first_answer_seconds"])
    if job["memory_limit_bytes"] is not None:
        limit(resource.RLIMIT_AS, job["memory_limit_bytes"])
    with answer_channel() as channel:
        try:
            _say(channel, {"kind": "done", **_work(job, channel)})
        except Refusal as refusal:
            return _refuse(channel, refusal)
        except MemoryError:
            return _refuse(channel, _out_of_memory(job))
        except OSError as error:
            return _refuse(channel, _unusable(error, job))
    return 0


def limit(what: int, most: int) -> None:
    """Limits what this process may take, or leaves a limit that is lower already.

    Args:
        what: A constant of the module resource, such as `resource.RLIMIT_AS`: the address space.
        most: The limit, in the unit of the constant.
    """
    _, hard = resource.getrlimit(what)
    lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (lower, lower))


@contextlib.contextmanager
def answer_channel() -> Iterator[IO[str]]:
    """Yields the real stdout and points descriptor 1 at stderr.

    Native runtimes print to descriptor 1 too; this keeps their words out of the answers.
    """
    own = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(own, "w", encoding="utf-8") as channel:
        yield channel


def _say(channel: IO[str], line: dict[str, Any]) -> None:
    channel.write(json.dumps(line) + "\n")
    channel.flush()


def _refuse(channel: IO[str], refusal: Refusal) -> int:
    parts = ("error", "received", "expected", "remedy")
    _say(channel, {"kind": "failure", **{part: getattr(refusal, part) for part in parts}})
    return EXIT_CODES[refusal.error]


def _out_of_memory(job: Job) -> Refusal:
    most = job["memory_limit_bytes"]
    return Refusal(
        "DeviceError",
        f"{job['model']}: ran out of memory",
        "the memory of the device" if most is None else f"at most {most:,} bytes of address space",
        "do not use this file, or export it with a smaller input",
    )


def _unusable(error: OSError, job: Job) -> Refusal:
    # A full disk names no file; only results are written.
    return Refusal(
        "DeviceError",
        f"{error.filename or job['results']} on the device: {error.strerror or error}",
        "a folder that can be read and written, and space in it",
        "free some space on the device and run it again",
    )


def open_model(
    path: str,
    sha256: str,
    runtime: str,
    threads: int = 1,
    delegate: str = "default",
    output: int = 0,
) -> Model:
    """Opens a model file; the bytes that are hashed are the bytes that run.

    Args:
        path: The file.
        sha256: Digest that it must have, in hex.
        runtime: A key of `RUNTIMES`.
        threads: Threads for one call. Defaults to 1.
        delegate: As in `Request`. Defaults to "default".
        output: As in `Request`. Defaults to 0.

    Raises:
        Refusal: If the file has another digest, or as the runtimes do.
    """
    content = Path(path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise Refusal(
            "IntegrityError",
            f"{path}: SHA-256 {digest}",
            f"SHA-256 {sha256}",
            "the file changed since it was exported; export it again, or copy it again",
        )
    module, function = RUNTIMES[runtime]
    opening = getattr(importlib.import_module(f".{module}", __package__), function)
    opened: Model = opening(Request(content, path, threads, delegate, output))
    return opened


def _work(job: Job, channel: IO[str]) -> dict[str, Any]:
    """Loads the model and answers or times the pictures."""
    images = np.load(job["images"], mmap_mode="r", allow_pickle=False)
    encode = encoder(np.load(job["codes"], allow_pickle=False), job["layout"])
    timed = _tensors(images, encode) if job["mode"] == "latency" else []
    before = surroundings.reset_peak_memory()
    asked = (job["runtime"], job["threads"], job["delegate"], job["output"])
    model = open_model(job["model"], job["sha256"], *asked)
    _check_ends(model, job)

    def report(fraction: float) -> None:
        signal.alarm(job["answer_seconds"])
        _say(channel, {"kind": "progress", "progress": min(fraction, 1.0)})

    if job["mode"] == "accuracy":
        count, around = _answer_all(model, images, encode, job, report), None
    else:
        count, around = _time_calls(model, timed, job, report)
    peak = surroundings.peak_memory()
    return {
        "runtime": model.version,
        "count": count,
        "surroundings": around,
        "memory_bytes": None if before is None or peak is None or peak <= before else peak - before,
    }


def _check_ends(model: Model, job: Job) -> None:
    """Refuses a runtime that sees other ends in the file than were read from it."""
    shape = tuple(job["input_shape"][1:])
    wanted = (job["input_dtype"], shape, job["output_dtype"], job["classes"])
    found = (model.input_dtype, model.input_shape[1:], model.output_dtype, model.classes)
    if found != wanted:
        raise Refusal(
            "IntegrityError",
            f"{job['model']}: the runtime sees (input, shape, output, classes) {found}",
            f"{wanted}, as the file says",
            "export it again, or install the version of the runtime that edgekit names",
        )


def _check_answer(scores: Array, model: Model, job: Job) -> None:
    """Refuses an answer of another size than the file says; it may be as large as memory."""
    if scores.shape != (model.classes,):
        raise Refusal(
            "IntegrityError",
            f"{job['model']}: an answer of {scores.size} scores",
            f"{model.classes} scores, as the file says",
            "do not use this file; export the model with an output of fixed shape",
        )


def encoder(codes: Array, layout: str) -> Callable[[Array], Array]:
    """Returns the function from one picture (height, width, 3) to the model's input tensor.

    Args:
        codes: The tensor value of every pixel value, of shape (256, channels); with one channel the
            first one of the picture is fed.
        layout: "NHWC" or "NCHW".
    """
    channels = codes.shape[1]
    channel = np.arange(channels)
    if layout == "NHWC":
        return lambda image: codes[image[..., :channels], channel][None]
    return lambda image: np.ascontiguousarray(
        codes[image[..., :channels], channel].transpose(2, 0, 1)[None]
    )


def _tensors(images: Array, encode: Callable[[Array], Array]) -> list[Array]:
    fitting = max(1, MAX_TIMED_BYTES // encode(images[0]).nbytes)
    count = min(len(images), MAX_TIMED_IMAGES, fitting)
    chosen = np.linspace(0, len(images) - 1, count).astype(int)
    return [np.ascontiguousarray(encode(images[index])) for index in chosen]


def _answer_all(
    model: Model,
    images: Array,
    encode: Callable[[Array], Array],
    job: Job,
    report: Callable[[float], None],
) -> int:
    """Writes the raw scores of every picture; returns how many there are."""
    dtype = np.dtype(model.output_dtype)
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (len(images), model.classes),
    }
    unfinished = Path(job["results"] + ".part")
    last = time.monotonic()
    # Row by row, so memory does not grow with the pictures.
    with unfinished.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for index, image in enumerate(images):
            scores = model.run(encode(image))
            _check_answer(scores, model, job)
            stream.write(scores.astype(dtype, copy=False).tobytes())
            if not index or time.monotonic() - last > PROGRESS_SECONDS:
                last = time.monotonic()
                report(index / len(images))
    unfinished.replace(job["results"])
    return len(images)


def _time_calls(
    model: Model, tensors: list[Array], job: Job, report: Callable[[float], None]
) -> tuple[int, dict[str, Any]]:
    """Warms up, times calls, writes the samples; returns their number and what went on."""
    warmup_runs = _warm_up(model, tensors, job, report)
    # Collections inside a sample would be Python's time, not the model's.
    gc.collect()
    gc.disable()
    step = clock.step_ns(time.perf_counter_ns)
    calls, made = clock.calls_per_sample(lambda count: _timed_ns(model, tensors, 0, count), step)
    before = surroundings.look()
    samples_ns = sample(model, tensors, job, report, calls)
    around = surroundings.compare(before, surroundings.look(), job["threads"], warmup_runs + made)
    gc.enable()
    unfinished = Path(job["results"] + ".part")
    with unfinished.open("wb") as stream:
        np.save(stream, np.array(samples_ns, dtype=np.float64) / (1e6 * calls))
    unfinished.replace(job["results"])
    return len(samples_ns), {**around, "clock_step_ms": step / 1e6, "calls_per_sample": calls}


def _warm_up(model: Model, tensors: list[Array], job: Job, report: Callable[[float], None]) -> int:
    """Runs untimed calls, at least "warmup_seconds" and `MIN_WARMUP_RUNS`; returns their number."""
    start = last = time.perf_counter()
    runs = 0
    while runs < MIN_WARMUP_RUNS or time.perf_counter() - start < job["warmup_seconds"]:
        scores = model.run(tensors[runs % len(tensors)])
        _check_answer(scores, model, job)
        runs += 1
        if runs == 1 or time.perf_counter() - last > PROGRESS_SECONDS:
            last = time.perf_counter()
            report(0.0)
    return runs


def sample(
    model: Model,
    tensors: list[Array],
    job: Job,
    report: Callable[[float], None],
    calls: int = 1,
) -> list[int]:
    """Returns the wall time of single calls, or of as many as make a sample, in nanoseconds.

    A call is one `Model.run`: the input tensor goes in, the answer is copied out.

    Args:
        model: An open model, warmed up.
        tensors: Inputs, which take turns.
        job: "min_queries" and "min_seconds" say how long; both are reached.
        report: Called with fractions from 0 to 1.
        calls: Calls that are timed as one sample. Defaults to 1.
    """
    least, seconds = job["min_queries"], job["min_seconds"]
    samples: list[int] = []
    begin = last = time.perf_counter()
    while len(samples) < least or time.perf_counter() - begin < seconds:
        samples.append(_timed_ns(model, tensors, len(samples) * calls, calls))
        now = time.perf_counter()
        if now - last > PROGRESS_SECONDS:
            last = now
            elapsed = (now - begin) / seconds if seconds else 1.0
            report(min(elapsed, len(samples) / least))
    return samples


def _timed_ns(model: Model, tensors: list[Array], first: int, calls: int) -> int:
    """Returns the wall time of calls one behind the other, from the `first` tensor on."""
    inputs = [tensors[number % len(tensors)] for number in range(first, first + calls)]
    now, run = time.perf_counter_ns, model.run
    start = now()
    for tensor in inputs:
        run(tensor)
    return now() - start
