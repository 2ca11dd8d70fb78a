"""What goes into a runner process and what may come out of it. Device layer.

A runner is told its job in a JSON file and answers with JSON lines on stdout; arrays travel in .npy
files. The parent treats every line as untrusted, so the models here are also its validation.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from edgekit.records import Artifact, Preprocess, Record, TensorInfo
from edgekit.runtimes.base import RUNTIME_OF_FORMAT, RuntimeName

Seconds = Annotated[float, Field(ge=0)]
ErrorKind = Literal["SpecError", "DataError", "IntegrityError", "DeviceError"]


class Subject(Record):
    """What is measured: the very file, who runs it, and the images it sees.

    Args:
        model: A .tflite, .onnx or .ort file.
        sha256: Digest that the file must have, in hex; checked on the bytes that are loaded.
        runtime: "litert" or "onnxruntime".
        threads: Threads the runtime may use. Defaults to 1.
        images: A .npy file, uint8 of shape `(count, height_px, width_px, 3)`, in the channel order
            of `preprocess`.
        preprocess: The contract that turns a pixel into a tensor value.
    """

    model: Path
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    runtime: RuntimeName
    threads: int = Field(default=1, ge=1)
    images: Path
    preprocess: Preprocess


def subject_of(
    artifact: Artifact, folder: Path, images: Path, preprocess: Preprocess, threads: int = 1
) -> Subject:
    """Returns what is measured for one exported file.

    Args:
        artifact: The file's record.
        folder: Where the file lies.
        images: As in `Subject`.
        preprocess: As in `Subject`.
        threads: As in `Subject`. Defaults to 1.
    """
    return Subject(
        model=folder / artifact.path,
        sha256=artifact.sha256,
        runtime=RUNTIME_OF_FORMAT[artifact.format],
        threads=threads,
        images=images,
        preprocess=preprocess,
    )


class Job(Record):
    """One run of the runner program.

    Args:
        subject: What is measured.
        mode: "accuracy" answers every image; "latency" times single calls.
        results: Where the array goes: raw scores of shape `(count, classes)` in the file's own
            dtype, or float64 samples in milliseconds of shape `(samples,)`.
        warmup_seconds: Latency: untimed running before the first sample. Defaults to 0.5.
        min_queries: Latency: fewest samples. Defaults to 200.
        min_seconds: Latency: shortest timed part. Defaults to 10.
        memory_limit_bytes: Limit of the address space. Defaults to None: no limit.
        time_limit_seconds: The process ends itself after this, even when its parent is gone.
    """

    subject: Subject
    mode: Literal["accuracy", "latency"]
    results: Path
    warmup_seconds: Seconds = 0.5
    min_queries: int = Field(default=200, ge=1)
    min_seconds: Seconds = 10.0
    memory_limit_bytes: int | None = Field(default=None, ge=1)
    time_limit_seconds: int = Field(ge=1)


class Progress(Record):
    """A line on the way: the fraction that is done, from 0 to 1."""

    kind: Literal["progress"] = "progress"
    progress: float = Field(ge=0, le=1)


class Surroundings(Record):
    """What the machine did while samples were taken; see `LatencySession`.

    Args:
        warmup_runs: Untimed calls before the first sample.
        context_switches_involuntary: Of this process, while it was timed.
        load_average: Mean number of cores in demand while it was timed: the threads given to the
            runtime plus the cores that other processes (and the hypervisor) kept busy.
        governor: CPU frequency governor; None where unreadable.
        frequency_before_khz: Highest core frequency after the warm-up; None where unreadable.
        frequency_after_khz: The same after the last sample.
    """

    warmup_runs: int = Field(ge=0)
    context_switches_involuntary: int = Field(ge=0)
    load_average: float = Field(ge=0)
    governor: str | None = Field(max_length=64)
    frequency_before_khz: int | None = Field(ge=0)
    frequency_after_khz: int | None = Field(ge=0)


class Done(Record):
    """The last line of a run that worked.

    Args:
        runtime: Runtime and version.
        output: The output tensor of the file.
        count: Rows in the results file.
        surroundings: Present in latency mode only.
    """

    kind: Literal["done"] = "done"
    runtime: str = Field(max_length=200)
    output: TensorInfo
    count: int = Field(ge=0)
    surroundings: Surroundings | None = None


class Failure(Record):
    """The last line of a run that did not work: an edgekit error in its three parts."""

    kind: Literal["failure"] = "failure"
    error: ErrorKind
    received: str
    expected: str
    remedy: str


Line = Annotated[Progress | Done | Failure, Field(discriminator="kind")]
LINE: TypeAdapter[Progress | Done | Failure] = TypeAdapter(Line)
