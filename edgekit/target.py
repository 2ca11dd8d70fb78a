"""What a device is and must meet: the TOML target, typed and frozen. Bottom layer, above `spec`."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from edgekit.errors import SpecError
from edgekit.records import Batch, Format, IoType, Variant
from edgekit.spec import Spec, build, conflict, load, parse

Transport = Literal["local", "none"]
RuntimeName = Literal[
    "litert", "litert-js", "onnxruntime", "onnxruntime-web", "tflite-micro", "edgetpu"
]
NonEmpty = Annotated[str, Field(min_length=1)]


class _Takes(NamedTuple):
    """What a runtime accepts."""

    formats: tuple[Format, ...]
    variants: tuple[Variant, ...]
    io: tuple[IoType, ...]
    # Whether an int8 file may compute some layers in float32.
    float_layers: bool = True


_EVERY_IO: tuple[IoType, ...] = ("float32", "uint8", "int8")
_TAKES: dict[RuntimeName, _Takes] = {
    "litert": _Takes(("tflite",), ("float32", "float16", "dynamic", "int8", "int16x8"), _EVERY_IO),
    # LiteRT.js 2.5.3 answers 'Element type INT8 is not supported' to an int8 input.
    "litert-js": _Takes(("tflite",), ("float32", "float16", "dynamic", "int8"), ("float32",)),
    # edgekit writes ONNX as a float or a QDQ graph; both have float inputs, and so has the .ort
    # form of them.
    "onnxruntime": _Takes(("onnx", "ort"), ("float32", "int8"), ("float32",)),
    "onnxruntime-web": _Takes(("onnx", "ort"), ("float32", "int8"), ("float32",)),
    # Source: tflite-micro's person_detection example: its kernels prefer signed int8 over the
    # legacy unsigned format; it has no kernels for float16 or mixed arithmetic. Many
    # microcontrollers have no floating-point unit.
    "tflite-micro": _Takes(
        ("tflite",), ("float32", "int8"), ("float32", "int8"), float_layers=False
    ),
    # Source: https://coral.ai/docs/edgetpu/models-intro : only models fully quantized to 8 bits.
    "edgetpu": _Takes(("tflite",), ("int8",), ("uint8", "int8"), float_layers=False),
}
_LOCAL: tuple[RuntimeName, ...] = ("litert", "onnxruntime")


class DeviceSpec(Spec):
    """The device.

    Args:
        transport: "local" is this machine. "none" means that edgekit cannot reach such a device,
            so everything that must be measured on it stays UNMEASURED.
        description: The device in words.
        cores: Number of CPU cores. Defaults to unknown.
    """

    transport: Transport = Field(description="How edgekit reaches the device.")
    description: NonEmpty = Field(description="The device in words.")
    cores: int | None = Field(default=None, ge=1, le=1024, description="Number of CPU cores.")


class RuntimeSpec(Spec):
    """What runs the file on the device.

    Args:
        name: The runtime.
        threads: CPU threads that it is given. Defaults to 1.
    """

    name: RuntimeName = Field(description="The runtime.")
    threads: int = Field(default=1, ge=1, le=64, description="CPU threads it is given.")


class ArtifactSpec(Spec):
    """Which exported file the device wants.

    Args:
        format: File format.
        variant: Arithmetic and weights inside.
        io: Element type of the input and the output.
        batch: Pictures of one call: one, which every runtime takes, or any number.
    """

    format: Format = Field(description="File format.")
    variant: Variant = Field(description="Arithmetic and weights inside.")
    io: IoType = Field(description="Element type of input and output.")
    batch: Batch = Field(
        default="one",
        description='Pictures of one call: "one", which every runtime takes, or "any", which '
        "tflite does not.",
    )

    @model_validator(mode="after")
    def _edgekit_makes_it(self) -> Self:
        if self.io != "float32" and self.variant != "int8":
            received = f'io "{self.io}" with variant "{self.variant}"'
            raise conflict(received, 'io "float32", or variant "int8"')
        if self.format != "tflite" and (
            self.variant not in ("float32", "int8") or self.io != "float32"
        ):
            received = (
                f'format "{self.format}" with variant "{self.variant}" and io "{self.io}", which '
                "edgekit does not make"
            )
            accepted = f'for "{self.format}": variant "float32" or "int8", io "float32"'
            raise conflict(received, accepted)
        if self.batch == "any" and self.format == "tflite":
            received = f'batch "any" with format "{self.format}"'
            raise conflict(received, 'batch "one", or format "onnx" or "ort"')
        return self


class BudgetSpec(Spec):
    """What the file must meet; a budget that is left out is not judged, but one must be set.

    Args:
        accuracy_drop_points: Most top-1 accuracy lost against the float model, in percentage
            points. Must be shown by the 95 % limit, so 0 could never pass; 100 would always.
        accuracy_min_percent: Least top-1 accuracy, in percent.
        latency_ms: Most wall time of one single-image call, in milliseconds.
        latency_percentile: The percentile of the latency that decides. Defaults to 90.
        size_bytes: Largest file, in bytes.
        memory_bytes: Most memory while running, in bytes; on a microcontroller, the arena.
    """

    accuracy_drop_points: float | None = Field(
        default=None, gt=0, lt=100, description="Most top-1 accuracy lost, in percentage points."
    )
    accuracy_min_percent: float | None = Field(
        default=None, gt=0, lt=100, description="Least top-1 accuracy, in percent."
    )
    latency_ms: float | None = Field(
        default=None, gt=0, le=3_600_000, description="Most wall time of a call, in milliseconds."
    )
    latency_percentile: int = Field(
        default=90, ge=50, le=99, description="The percentile of the latency that decides."
    )
    size_bytes: int | None = Field(
        default=None, gt=0, le=2**40, description="Largest file, in bytes."
    )
    memory_bytes: int | None = Field(
        default=None, gt=0, le=2**40, description="Most memory while running, in bytes."
    )

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        # A target without budgets would pass whatever it is given.
        budgets = [name for name in type(self).model_fields if name != "latency_percentile"]
        if all(getattr(self, name) is None for name in budgets):
            received = "no budget at all"
            raise conflict(received, "at least one of " + ", ".join(budgets))
        return self


class Target(Spec):
    """A device, the file it wants and what that file must meet there."""

    schema_version: Literal[1] = Field(default=1, description="Version of the format of this file.")
    name: str = Field(
        description="Short name.",
        json_schema_extra={
            "x-accepted": "up to 64 lower-case letters, digits and hyphens, a letter first"
        },
    )
    description: NonEmpty = Field(description="What the target stands for, in one sentence.")
    device: DeviceSpec = Field(description="The device.")
    runtime: RuntimeSpec = Field(description="What runs the file there.")
    artifact: ArtifactSpec = Field(description="Which exported file it wants.")
    budget: BudgetSpec = Field(description="What the file must meet.")

    @property
    def is_here(self) -> bool:
        """Whether edgekit can measure the target: it is the machine edgekit runs on."""
        return self.device.transport == "local"

    @property
    def takes_float_layers(self) -> bool:
        """Whether its file may compute some layers in float32 although it is int8."""
        return self.artifact.variant != "int8" or _TAKES[self.runtime.name].float_layers

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        # Names end up in file names and in pages.
        plain = value.isascii() and value.replace("-", "").isalnum() and value == value.lower()
        if not plain or not value[0].isalpha() or len(value) > 64:
            msg = "not a plain name"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _runtime_takes_the_file(self) -> Self:
        takes = _TAKES[self.runtime.name]
        asked = self.artifact
        if (
            asked.format not in takes.formats
            or asked.variant not in takes.variants
            or asked.io not in takes.io
        ):
            received = (
                f'runtime "{self.runtime.name}" with a file of format "{asked.format}", variant '
                f'"{asked.variant}" and io "{asked.io}"'
            )
            accepted = (
                f'for "{self.runtime.name}": format {_either(takes.formats)}, variant '
                f"{_either(takes.variants)}, io {_either(takes.io)}"
            )
            raise conflict(received, accepted)
        return self

    @model_validator(mode="after")
    def _runtime_fits_the_device(self) -> Self:
        runtime = self.runtime
        if self.is_here and runtime.name not in _LOCAL:
            received = f'runtime "{runtime.name}" with transport "local"'
            raise conflict(received, f'transport "none", or runtime {_either(_LOCAL)}')
        if self.device.cores is not None and runtime.threads > self.device.cores:
            received = f"{runtime.threads} threads on {self.device.cores} cores"
            raise conflict(received, "no more threads than cores")
        return self


def _either(values: tuple[str, ...]) -> str:
    return " or ".join(f'"{value}"' for value in values)


def load_target(name_or_path: str) -> Target:
    """Returns a shipped target by its name, or the one in a file.

    Args:
        name_or_path: A name that `shipped_targets` lists, or the path of a .toml file.

    Raises:
        SpecError: If there is no such target or it is not valid.
    """
    if name_or_path.endswith(".toml"):
        return load(Path(name_or_path), Target)
    return parse(target_text(name_or_path), Target, f"{name_or_path}.toml")


def shipped_targets() -> tuple[str, ...]:
    """Returns the names of all targets that come with edgekit, sorted.

    Raises:
        SpecError: If the installation holds none.
    """
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def target_text(name: str) -> str:
    """Returns the TOML of a shipped target, with the sources of its numbers.

    Raises:
        SpecError: If there is none of that name.
    """
    names = shipped_targets()
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
        received = f"target {name!a}, which does not exist"
        expected = f"the path of a .toml file, or one of {', '.join(names)}"
        remedy = f"did you mean {near[0]}?" if near else "list them with: edgekit targets"
        raise SpecError(received, expected, remedy)
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")


def with_latency_budget(target: Target, latency_ms: float) -> Target:
    """Returns the target with another latency budget.

    Args:
        target: The target to start from.
        latency_ms: Most wall time of one single-image call, in milliseconds.

    Raises:
        SpecError: If the budget is not a finite number above zero.
    """
    values = {**target.budget.model_dump(), "latency_ms": latency_ms}
    budget = build(values, BudgetSpec, f"budget of {target.name}")
    return target.model_copy(update={"budget": budget})


def refuse_unused(options: Sequence[str], targets: Sequence[Target]) -> None:
    """Refuses budgets that only targets of this machine can take when none of them was asked for.

    Args:
        options: The options that were given.
        targets: The asked targets.

    Raises:
        SpecError: If there are options but no target of this machine.
    """
    if options and not any(target.is_here for target in targets):
        names = ", ".join(target.name for target in targets)
        raise SpecError(
            f"{' and '.join(options)} for {names}, not measured here",
            "a target of this machine among those asked",
            "leave out --target, or add one that edgekit targets lists as measured here",
        )


def refuse_float_layers(options: Sequence[str], targets: Sequence[Target]) -> None:
    """Refuses layers in float32 for targets that need integers throughout.

    Args:
        options: Keys of the recipe that ask for such layers.
        targets: The asked targets.

    Raises:
        SpecError: If there are options and a target that does not take float layers.
    """
    names = [target.name for target in targets if not target.takes_float_layers]
    if options and names:
        raise SpecError(
            f"{' and '.join(options)} for {', '.join(names)}, where integers are needed throughout",
            "targets whose runtime computes single layers in float32",
            f"leave out {' and '.join(options)}, or make these targets in a run of their own",
        )


def _folder() -> Path:
    """Returns where the shipped targets lie: inside a wheel, or beside a checked-out package."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_targets", package.parent / "targets"):
        if any(folder.glob("*.toml")):
            return folder
    received = f"{package}: an installation without targets"
    raise SpecError(received, "targets/*.toml", "install edgekit again")
