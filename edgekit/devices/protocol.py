"""What goes into a runner process and what may come out of it. Device layer.

A runner is told its job in a JSON file and answers with JSON lines on stdout; arrays travel in .npy
files. The parent treats every line as untrusted, so the models here are also its validation.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from edgekit.records import Artifact, Delegate, Preprocess, Record
from edgekit.runtimes.base import RUNTIME_OF_FORMAT, RuntimeName
from edgekit.runtimes.ends import Layout, Readout

# Twenty minutes of calls of 60 microseconds, or as many pictures.
MOST_ROWS = 20_000_000
Seconds = Annotated[float, Field(ge=0)]
ErrorKind = Literal["SpecError", "DataError", "IntegrityError", "DeviceError"]


class Subject(Record):
    """What is measured: the very file, who runs it, and the images it sees.

    Args:
        model: A .tflite, .onnx or .ort file.
        sha256: Digest that the file must have, in hex; checked on the bytes that are loaded.
        runtime: "litert" or "onnxruntime".
        threads: Threads the runtime may use. Defaults to 1.
        delegate: What computes in place of the runtime's own kernels. Defaults to "default": what
            the runtime takes by itself on a CPU.
        images: A .npy file, uint8 of shape `(count, height_px, width_px, 3)`, in the channel order
            of `preprocess`.
        preprocess: The contract that turns a pixel into a tensor value.
        readout: Which output is read, and how. Defaults to the only one, a score a class.
    """

    model: Path
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    runtime: RuntimeName
    threads: int = Field(default=1, ge=1)
    delegate: Delegate = "default"
    images: Path
    preprocess: Preprocess
    readout: Readout = Readout()


def subject_of(
    artifact: Artifact,
    folder: Path,
    images: Path,
    preprocess: Preprocess,
    threads: int = 1,
    delegate: Delegate = "default",
) -> Subject:
    """Returns what is measured for one exported file.

    Args:
        artifact: The file's record.
        folder: Where the file lies.
        images: As in `Subject`.
        preprocess: As in `Subject`.
        threads: As in `Subject`. Defaults to 1.
        delegate: As in `Subject`. Defaults to "default".
    """
    return Subject(
        model=folder / artifact.path,
        sha256=artifact.sha256,
        runtime=RUNTIME_OF_FORMAT[artifact.format],
        threads=threads,
        delegate=delegate,
        images=images,
        preprocess=preprocess,
    )


class Job(Record):
    """One run of the runner program; every path is one of the device.

    Args:
        model: The file.
        sha256: Digest that it must have.
        runtime: Who runs it.
        threads: Threads the runtime may use.
        delegate: As in `Subject`.
        input_dtype: Dtype of its input, as the file says; so are the next six.
        input_shape: Shape of its input, the batch included.
        layout: How a picture is fed: "NHWC" or "NCHW".
        output: Position of the output that is read.
        output_dtype: Dtype of its output.
        classes: Scores of one answer.
        images: As in `Subject`.
        codes: A .npy file of shape (256, channels) in the dtype of the input: the tensor value of
            every pixel value, per channel.
        mode: "accuracy" answers every image; "latency" times single calls.
        results: Where the array goes: raw scores of shape `(count, classes)` in the file's own
            dtype, or float64 samples in milliseconds a call of shape `(samples,)`.
        warmup_seconds: Latency: untimed running before the first sample. Defaults to 0.5.
        min_queries: Latency: fewest samples. Defaults to 200.
        min_seconds: Latency: shortest timed part. Defaults to 10.
        memory_limit_bytes: Limit of the address space. Defaults to None: no limit.
        first_answer_seconds: The process ends itself when it has said no line after this long,
            even when its parent is gone.
        answer_seconds: The same for each further line; it says one whenever it has answered.
    """

    model: str
    sha256: str
    runtime: RuntimeName
    threads: int
    delegate: Delegate
    input_dtype: str
    input_shape: tuple[int, ...]
    layout: Layout
    output: int
    output_dtype: str
    classes: int
    images: str
    codes: str
    mode: Literal["accuracy", "latency"]
    results: str
    warmup_seconds: Seconds = 0.5
    min_queries: int = Field(default=200, ge=1)
    min_seconds: Seconds = 10.0
    memory_limit_bytes: int | None = Field(default=None, ge=1)
    first_answer_seconds: int = Field(ge=1)
    answer_seconds: int = Field(ge=1)


class Progress(Record):
    """A line on the way: the fraction that is done, from 0 to 1."""

    kind: Literal["progress"] = "progress"
    progress: float = Field(ge=0, le=1)


class Surroundings(Record):
    """What the machine did while samples were taken; see `LatencySession`."""

    warmup_runs: int = Field(ge=0)
    context_switches_involuntary: int = Field(ge=0)
    load_average: float = Field(ge=0)
    governor: str | None = Field(max_length=64)
    frequency_before_khz: int | None = Field(ge=0)
    frequency_after_khz: int | None = Field(ge=0)
    temperature_before_c: float | None = Field(ge=-50, le=200)
    temperature_after_c: float | None = Field(ge=-50, le=200)
    throttled: int | None = Field(ge=0)
    power_saving: bool | None
    clock_step_ms: float = Field(gt=0)
    calls_per_sample: int = Field(ge=1)


class Done(Record):
    """The last line of a run that worked.

    Args:
        runtime: Runtime and version.
        count: Rows in the results file.
        surroundings: Present in latency mode only.
        memory_bytes: Most that the process's memory grew from before the runtime was loaded; None
            where the system does not say.
    """

    kind: Literal["done"] = "done"
    runtime: str = Field(max_length=200)
    count: int = Field(ge=0, le=MOST_ROWS)
    surroundings: Surroundings | None = None
    memory_bytes: int | None = Field(default=None, ge=0)


class Failure(Record):
    """The last line of a run that did not work: an edgekit error in its three parts."""

    kind: Literal["failure"] = "failure"
    error: ErrorKind
    received: str
    expected: str
    remedy: str


Line = Annotated[Progress | Done | Failure, Field(discriminator="kind")]
LINE: TypeAdapter[Progress | Done | Failure] = TypeAdapter(Line)
