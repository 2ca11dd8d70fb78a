"""Runs int8 files on TensorFlow Lite Micro's own interpreter, on this machine. Estimate layer.

Answers are those of its reference kernels; a device with optimized kernels (CMSIS-NN) is meant to
give the same. The arena is an estimate, see `Arena`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from edgekit.devices import child
from edgekit.devices.exchange import PATIENT, ReportProgress, Waiting, exchange
from edgekit.errors import DeviceError, SpecError
from edgekit.estimate.tflite_micro_session import Arena, MicroJob
from edgekit.folders import scratch_folder
from edgekit.records import TensorInfo
from edgekit.runtimes import read_ends
from edgekit.runtimes.ends import feed_of

SESSION = "edgekit.estimate.tflite_micro_session"
ARENA_LIMIT_BYTES = 65536  # of the file that describes it


@dataclass(frozen=True)
class MicroAnswers:
    """Every answer of one file, and the working memory it needs.

    Args:
        raw: Scores of shape `(images, classes)` in the file's own dtype.
        output: The output tensor; gives the quantization of `raw`.
        runtime: Runtime and version.
        arena_bytes: Smallest arena that works on this machine, in bytes.
        arena_detail: What it is made of.
    """

    raw: npt.NDArray[np.generic]
    output: TensorInfo
    runtime: str
    arena_bytes: int
    arena_detail: Arena


def answers(
    model: Path,
    sha256: str,
    images: Path,
    codes: npt.NDArray[np.generic],
    arena_bytes: int | None = None,
    timeout_seconds: float = math.inf,
    progress: ReportProgress | None = None,
    waiting: Waiting = PATIENT,
    output: int | None = None,
) -> MicroAnswers:
    """Returns the answers of one file to every image, one image per call.

    Args:
        model: A .tflite file.
        sha256: Digest that it must have, in hex; checked on the bytes that run.
        images: A .npy file, uint8 of shape `(count, height_px, width_px, 3)`.
        codes: The input tensor's value of every pixel value per channel, shape `(256, channels)`,
            in the dtype of the input; see `edgekit.records.input_codes`.
        arena_bytes: Arena that answers, in bytes. Defaults to None: the smallest that works.
        timeout_seconds: Wall time for the whole run. Defaults to no limit but that of `waiting`.
        progress: Called with fractions from 0 to 1. Defaults to None.
        waiting: How long it may take to answer; the first answer includes the search for the
            arena. Defaults to `PATIENT`: reference kernels are slow.
        output: Position of the output that is read. Defaults to None: the only one.

    Raises:
        IntegrityError: If the file is not the one named, damaged, untrusted, has an operator that
            TensorFlow Lite Micro refuses, or crashes it.
        DeviceError: If tflite-micro is not installed, hangs or answers nonsense.
        SpecError: If images, codes and model do not fit together, or the model needs a larger
            arena than `arena_bytes`.
        DataError: If the images cannot be read.
    """
    child.require("tflite_micro", "tflite-micro")
    asked, answered = read_ends(model, "litert", sha256, output)
    if codes.shape != (256, feed_of(asked).channels):
        wanted = f"shape (256, {feed_of(asked).channels})"
        raise SpecError(f"codes of shape {codes.shape}", wanted, "use input_codes")
    with scratch_folder() as place:
        np.save(place / "codes.npy", codes)
        job = MicroJob(
            model=model,
            sha256=sha256,
            images=images,
            codes=place / "codes.npy",
            output=output,
            arena_bytes=arena_bytes,
            answer_seconds=waiting.further_seconds,
            answers=place / "answers.npy",
            arena=place / "arena.json",
        )
        (place / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
        command = child.command(
            SESSION, str(place / "job.json"), timeout_seconds=waiting.first_seconds
        )
        done = exchange(
            command,
            str(model),
            timeout_seconds,
            progress,
            child.environment(),
            waiting=waiting,
        )
        count = len(np.load(images, mmap_mode="r", allow_pickle=False))
        raw = _raw(job, (count, answered.shape[-1]), answered.dtype)
        arena = _arena(job)
    return MicroAnswers(
        raw=raw,
        output=answered,
        runtime=done.runtime,
        arena_bytes=arena.needed_bytes,
        arena_detail=arena,
    )


def _raw(job: MicroJob, shape: tuple[int, ...], dtype: str) -> npt.NDArray[np.generic]:
    """Returns the answers that the program wrote, after checking what they are."""
    try:
        # Mapped first: shape and dtype are checked before anything is read into memory.
        array = np.load(job.answers, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise DeviceError(f"{job.model}: {err}", "an array of answers", "run it again") from err
    if array.shape != shape or array.dtype != np.dtype(dtype):
        found = f"{job.model}: {array.dtype} answers of shape {array.shape}"
        raise DeviceError(found, f"{dtype} of shape {shape}", "run it again")
    return np.array(array)


def _arena(job: MicroJob) -> Arena:
    """Returns what the program wrote about the arena, after checking it."""
    try:
        with job.arena.open("rb") as stream:
            return Arena.model_validate_json(stream.read(ARENA_LIMIT_BYTES), strict=True)
    except (OSError, ValidationError) as err:
        found = f"{job.model}: no readable description of its arena"
        raise DeviceError(found, "sizes in bytes", "run it again") from err
