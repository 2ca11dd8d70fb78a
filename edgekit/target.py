"""What a device is and must meet: the TOML target, typed and frozen. Bottom layer, above `spec`."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from edgekit.errors import SpecError
from edgekit.records import Batch, Delegate, Format, Granularity, IoType, Variant
from edgekit.spec import Spec, build, conflict, load, parse

Transport = Literal["local", "ssh", "adb", "browser", "emulated", "none"]
RuntimeName = Literal[
    "litert",
    "litert-js",
    "onnxruntime",
    "onnxruntime-web",
    "tflite-micro",
    "ethos-u",
    "edgetpu",
]
# Source: vela --help of ethos-u-vela 5.2.0. The last number counts the 8-bit multiplications of one
# cycle.
Accelerator = Literal[
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-128",
    "ethos-u85-256",
    "ethos-u85-512",
    "ethos-u85-1024",
    "ethos-u85-2048",
]
PackageKind = Literal["android", "ios", "linux", "micro", "web"]
ProtocolName = Literal["quick", "standard", "mlperf-mobile", "sustained"]
_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.:%-]{0,252}")
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
    # Source: https://developer.arm.com/documentation/109267 : Vela maps 8-bit (and 16-bit)
    # operators to the NPU and leaves the rest to the processor beside it.
    "ethos-u": _Takes(("tflite",), ("int8",), ("int8", "uint8"), float_layers=False),
    # Source: https://coral.ai/docs/edgetpu/models-intro : only models fully quantized to 8 bits.
    "edgetpu": _Takes(("tflite",), ("int8",), ("uint8", "int8"), float_layers=False),
}
_NATIVE: tuple[RuntimeName, ...] = ("litert", "onnxruntime")
_IN_PAGES: tuple[RuntimeName, ...] = ("onnxruntime-web", "litert-js")
_RUNS_ON: dict[Transport, tuple[RuntimeName, ...]] = {
    "local": _NATIVE,
    "ssh": _NATIVE,
    "adb": _NATIVE,
    "emulated": _NATIVE,
    "browser": _IN_PAGES,
}
_DELEGATES: dict[RuntimeName, tuple[Delegate, ...]] = {
    "litert": ("default", "none", "xnnpack"),
    "onnxruntime": ("default", "none", "xnnpack", "coreml", "nnapi", "qnn"),
}


class Protocol(NamedTuple):
    """How latency is measured: fresh processes, and what each of them does.

    Args:
        sessions: Fresh processes.
        warmup_seconds: Untimed running of each, at least five calls.
        min_queries: Fewest samples of each.
        min_seconds: Shortest timed part of each.
        words: What it is for.
    """

    sessions: int
    warmup_seconds: float
    min_queries: int
    min_seconds: float
    words: str


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "quick": Protocol(3, 0.5, 200, 1.0, "three sessions show a level and cannot decide"),
    "standard": Protocol(5, 0.5, 200, 10.0, "five sessions of ten seconds decide"),
    # Source: https://mlcommons.org/en/inference-mobile-30/ : a single stream of at least 1024
    # queries and 60 s, judged by its 90th percentile.
    "mlperf-mobile": Protocol(5, 0.5, 1024, 60.0, "MLPerf Mobile's 1024 queries and 60 seconds"),
    # The sessions follow each other, so what is judged is a device that has been working.
    "sustained": Protocol(5, 120.0, 200, 10.0, "two minutes of work before each session"),
}


class DeviceSpec(Spec):
    """The device, and how edgekit finds it.

    Args:
        transport: "local" is this machine, "ssh" a Linux board, "adb" an Android device, "browser"
            a browser on this machine, "emulated" arm64 Linux under emulation, where time never
            counts. "none" means that edgekit cannot reach such a device, so everything that must
            be measured on it stays UNMEASURED.
        description: The device in words.
        cores: Number of CPU cores. Defaults to unknown.
        host: For ssh: a host of ~/.ssh/config, HOST or USER@HOST. Defaults to none: it is given on
            the command line, or the device stays UNMEASURED.
        port: For ssh. Defaults to what ~/.ssh/config says.
        serial: For adb: which of several attached devices. Defaults to the only one.
        model: For ssh and adb: what the device must call itself (the board's model, or Android's
            ro.product.model begins so). Defaults to any.
        python: For ssh and adb: the Python there. Defaults to python3 for ssh; adb needs a path.
        benchmark: For adb: LiteRT's benchmark_model on this machine, built for the device. It runs
            in place of a Python there: latency only, no answers, and a summary that decides only
            for the 50th and the 95th percentile.
        install: For ssh: whether the runtime may be installed there, into a folder of its own below
            ~/.cache/edgekit, which stays. Defaults to no.
        program: For a browser: its program on this machine, or "manual" for one that the user opens
            at the address that is shown. Defaults to the Chromium found.
    """

    transport: Transport = Field(description="How edgekit reaches the device.")
    description: NonEmpty = Field(description="The device in words.")
    cores: int | None = Field(default=None, ge=1, le=1024, description="Number of CPU cores.")
    host: NonEmpty | None = Field(
        default=None,
        description="For ssh: HOST or USER@HOST.",
        examples=["pi@raspberrypi.local"],
        json_schema_extra={
            "x-accepted": "HOST or USER@HOST of letters, digits and . _ - : %, no hyphen first"
        },
    )
    port: int | None = Field(default=None, ge=1, le=65535, description="For ssh: the port.")
    serial: NonEmpty | None = Field(
        default=None, description="For adb: which of several attached devices."
    )
    model: NonEmpty | None = Field(
        default=None, description="For ssh and adb: what the device must call itself."
    )
    python: NonEmpty | None = Field(
        default=None, description="For ssh and adb: the Python there, python3 by default for ssh."
    )
    benchmark: Path | None = Field(
        default=None,
        strict=False,
        description="For adb: LiteRT's benchmark_model on this machine, run in place of a Python.",
    )
    install: bool = Field(
        default=False,
        description="For ssh: whether the runtime may be installed there, in a folder of its own.",
    )
    program: NonEmpty | None = Field(
        default=None,
        description='For a browser: its program on this machine, or "manual" for one you open.',
    )

    @field_validator("host")
    @classmethod
    def _host_is_plain(cls, value: str | None) -> str | None:
        # A host such as -oProxyCommand=... would be taken for an option.
        if value is not None and not _HOST.fullmatch(value):
            msg = "not a plain host"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _finds_what_it_names(self) -> Self:
        takes: dict[str, tuple[Transport, ...]] = {
            "host": ("ssh",),
            "port": ("ssh",),
            "serial": ("adb",),
            "model": ("ssh", "adb"),
            "python": ("ssh", "adb"),
            "install": ("ssh",),
            "benchmark": ("adb",),
            "program": ("browser",),
        }
        for name, transports in takes.items():
            if getattr(self, name) not in (None, False) and self.transport not in transports:
                received = f'{name} with transport "{self.transport}"'
                raise conflict(received, f"{name} with transport {_either(transports)}")
        return self

    @property
    def missing(self) -> str:
        """What must still be said before edgekit can look for the device; empty if nothing."""
        if self.transport == "none":
            return f"edgekit cannot reach {self.description}"
        if self.transport == "ssh" and self.host is None:
            return f"no host is named for {self.description}: give --device TARGET=USER@HOST"
        if self.transport == "adb" and self.python is None and self.benchmark is None:
            return (
                f"no Python is named on {self.description}: set device.python to the path of one "
                "that adb's shell may run, set device.benchmark to LiteRT's benchmark_model "
                "(latency only), or import what an app measured there"
            )
        return ""


class RuntimeSpec(Spec):
    """What runs the file on the device.

    Args:
        name: The runtime.
        threads: CPU threads that it is given. Defaults to 1.
        delegate: What computes in place of the runtime's own kernels: "default" is what it takes
            by itself on a CPU (LiteRT: XNNPACK), "none" its own kernels. Defaults to "default".
        accelerator: For ethos-u: the NPU. Defaults to "ethos-u55-128".
    """

    name: RuntimeName = Field(description="The runtime.")
    threads: int = Field(default=1, ge=1, le=64, description="CPU threads it is given.")
    delegate: Delegate = Field(
        default="default", description="What computes in place of the runtime's own kernels."
    )

    accelerator: Accelerator | None = Field(default=None, description="For ethos-u: the NPU.")

    @model_validator(mode="after")
    def _runtime_has_the_delegate(self) -> Self:
        if self.accelerator is not None and self.name != "ethos-u":
            received = f'accelerator "{self.accelerator}" with runtime "{self.name}"'
            raise conflict(received, 'no accelerator, or runtime "ethos-u"')
        takes = _DELEGATES.get(self.name, ("default",))
        if self.delegate not in takes:
            received = f'delegate "{self.delegate}" with runtime "{self.name}"'
            raise conflict(received, f'for "{self.name}": {_either(takes)}')
        return self


class ArtifactSpec(Spec):
    """Which exported file the device wants.

    Args:
        format: File format.
        variant: Arithmetic and weights inside.
        io: Element type of the input and the output.
        batch: Pictures of one call: one, which every runtime takes, or any number.
        granularity: Scales of an int8 kernel: one for each "channel" or one for the whole "tensor".
            Defaults to either.
        operators: Names of the operators that the device has. Defaults to all.
    """

    format: Format = Field(description="File format.")
    variant: Variant = Field(description="Arithmetic and weights inside.")
    io: IoType = Field(description="Element type of input and output.")
    batch: Batch = Field(
        default="one",
        description='Pictures of one call: "one", which every runtime takes, or "any", which '
        "tflite does not.",
    )
    granularity: Granularity | None = Field(
        default=None, description="Scales of an int8 kernel that the device takes; either if unset."
    )
    operators: tuple[NonEmpty, ...] | None = Field(
        default=None,
        strict=False,
        min_length=1,
        description="Operators that the device has, as the file names them; all if unset.",
        examples=[["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"]],
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
        memory_bytes: Most memory while running, in bytes; on a microcontroller, the arena; on a
            computer, what the process grows by from before the runtime is loaded.
        flash_bytes: Most flash that the compiled model takes, in bytes.
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
    flash_bytes: int | None = Field(
        default=None, gt=0, le=2**40, description="Most flash of the compiled model, in bytes."
    )

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        # A target without budgets would pass whatever it is given.
        budgets = [name for name in type(self).model_fields if name != "latency_percentile"]
        if all(getattr(self, name) is None for name in budgets):
            received = "no budget at all"
            raise conflict(received, "at least one of " + ", ".join(budgets))
        return self


class ExpectSpec(Spec):
    """What would be too good to be true; a result beyond it is flagged, not passed.

    Args:
        latency_min_ms: Least latency to believe, at the budget's percentile, in milliseconds.
        accuracy_max_percent: Most top-1 accuracy to believe, in percent.
    """

    latency_min_ms: float | None = Field(
        default=None, gt=0, le=3_600_000, description="Least latency to believe, in milliseconds."
    )
    accuracy_max_percent: float | None = Field(
        default=None, gt=0, lt=100, description="Most top-1 accuracy to believe, in percent."
    )


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
    expect: ExpectSpec = Field(
        default=ExpectSpec(), description="What would be too good to be true."
    )
    protocol: ProtocolName | None = Field(
        default=None, description="How latency is measured; as the recipe says if unset."
    )
    package: PackageKind | None = Field(
        default=None, description="Which package it gets; by runtime and transport if unset."
    )

    @property
    def is_here(self) -> bool:
        """Whether it is the machine edgekit runs on."""
        return self.device.transport == "local"

    @property
    def is_measured(self) -> bool:
        """Whether edgekit can measure it: it is this machine, or can be looked for."""
        return not self.device.missing

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
    def _expects_less_than_the_budget(self) -> Self:
        least, most = self.expect.latency_min_ms, self.budget.latency_ms
        if least is not None and most is not None and least >= most:
            received = f"expect.latency_min_ms {least:g} with budget.latency_ms {most:g}"
            raise conflict(received, "less than the budget")
        return self

    @model_validator(mode="after")
    def _runtime_fits_the_device(self) -> Self:
        runtime = self.runtime
        transport = self.device.transport
        runs = _RUNS_ON.get(transport)
        if runs is not None and runtime.name not in runs:
            received = f'runtime "{runtime.name}" with transport "{transport}"'
            raise conflict(received, f'transport "none", or runtime {_either(runs)}')
        if self.device.cores is not None and runtime.threads > self.device.cores:
            received = f"{runtime.threads} threads on a device of {self.device.cores} cores"
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
    """Refuses budgets for targets that edgekit can measure when none of them was asked for.

    Args:
        options: The options that were given.
        targets: The asked targets.

    Raises:
        SpecError: If there are options but no target that can be measured.
    """
    if options and not any(target.is_measured for target in targets):
        names = ", ".join(target.name for target in targets)
        raise SpecError(
            f"{' and '.join(options)} for {names}, which edgekit cannot measure",
            "a target that can be measured among those asked",
            "leave out --target, or add one whose device edgekit reaches: edgekit devices",
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


def refuse_granularity(granularity: Granularity, targets: Sequence[Target]) -> None:
    """Refuses a granularity of int8 kernels that a target does not take.

    Args:
        granularity: Of the recipe.
        targets: The asked targets.

    Raises:
        SpecError: If a target asks for the other one.
    """
    for target in targets:
        asked = target.artifact.granularity
        if asked not in (None, granularity):
            raise SpecError(
                f'quantize.granularity "{granularity}" for {target.name}, which takes "{asked}"',
                "the granularity that every asked target takes",
                f'set quantize.granularity = "{asked}", or make this target in a run of its own',
            )


def package_kind(target: Target) -> PackageKind | None:
    """Returns which package a target wants; None if nothing tells."""
    if target.package is not None:
        return target.package
    by_runtime: dict[str, PackageKind] = {
        "tflite-micro": "micro",
        "litert-js": "web",
        "onnxruntime-web": "web",
    }
    by_transport: dict[str, PackageKind] = {"adb": "android", "ssh": "linux", "local": "linux",
                                            "emulated": "linux"}  # fmt: skip
    return by_runtime.get(target.runtime.name) or by_transport.get(target.device.transport)


def with_device(target: Target, where: str) -> Target:
    """Returns the target with its device found elsewhere than the file says.

    Args:
        target: The target to start from.
        where: For ssh HOST or USER@HOST, optionally with :PORT; for adb a serial; for a browser its
            program.

    Raises:
        SpecError: If its transport looks for nothing, or the device is not valid then.
    """
    device = target.device
    named: dict[Transport, dict[str, object]] = {
        "ssh": _host_and_port(where),
        "adb": {"serial": where},
        "browser": {"program": where},
    }
    if device.transport not in named:
        raise SpecError(
            f'--device {target.name}={where}: its transport is "{device.transport}"',
            f"a target with transport {_either(tuple(named))}",
            "leave it out, or change device.transport in a copy of the target's file",
        )
    values = {**device.model_dump(exclude_none=True), **named[device.transport]}
    return target.model_copy(
        update={"device": build(values, DeviceSpec, f"--device {target.name}={where}")}
    )


def _host_and_port(where: str) -> dict[str, object]:
    """Returns host and port of HOST, USER@HOST, either with :PORT, or USER@[IPV6]:PORT."""
    bracketed = re.fullmatch(r"((?:[^@]*@)?)\[([^\]]*)\](?::([0-9]{1,5}))?", where)
    plain = re.fullmatch(r"((?:[^@]*@)?)([^:]*)(?::([0-9]{1,5}))?", where)
    found = bracketed or plain
    if found is None:
        return {"host": where}
    host: dict[str, object] = {"host": found[1] + found[2]}
    return host if found[3] is None else {**host, "port": int(found[3])}


def refuse_same_names(targets: Sequence[Target]) -> None:
    """Refuses two targets of one name: what was measured for one would stand for the other.

    Args:
        targets: The asked targets.

    Raises:
        SpecError: If a name stands for two of them.
    """
    twice = [name for name, count in Counter(t.name for t in targets).items() if count > 1]
    if twice:
        raise SpecError(
            f"two targets named {', '.join(twice)}",
            "a name of its own for each target",
            "ask for each target once, or rename one of them in its file",
        )


def with_installing(target: Target) -> Target:
    """Returns the target, its runtime being installed on the device where it is missing."""
    if target.device.transport != "ssh":
        return target
    return target.model_copy(update={"device": target.device.model_copy(update={"install": True})})


def explain(target: Target) -> tuple[str, ...]:
    """Returns a target in sentences: what is sent where, how it is judged and what never passes."""
    asked, runtime, budget = target.artifact, target.runtime, target.budget
    threads = "1 thread" if runtime.threads == 1 else f"{runtime.threads} threads"
    delegate = "" if runtime.delegate == "default" else f", delegate {runtime.delegate}"
    kernels = (
        "" if asked.granularity is None else f", one scale for each kernel's {asked.granularity}"
    )
    batch = "" if asked.batch == "one" else ", any number of pictures a call"
    said = [
        f"{target.name}: {target.description}",
        f"It takes {asked.format} files, {asked.variant}{kernels}, with {asked.io} input and "
        f"output{batch}; {runtime.name} runs it on {threads}{delegate}.",
        _where(target),
    ]
    said.append(f"It passes if {'; '.join(_budgets(budget))}.")
    if asked.operators is not None:
        said.append(f"The file may use only {', '.join(asked.operators)}.")
    believed = target.expect
    if believed.latency_min_ms is not None:
        said.append(f"Less than {believed.latency_min_ms:g} ms is flagged as too good to be true.")
    if believed.accuracy_max_percent is not None:
        said.append(
            f"Top-1 above {believed.accuracy_max_percent:g} % is flagged as too good to be true."
        )
    if budget.latency_ms is not None and target.is_measured:
        said.append(_how_timed(target))
    return tuple(said)


def _where(target: Target) -> str:
    device = target.device
    if target.device.missing:
        return f"It stays UNMEASURED: {device.missing}."
    ways: dict[Transport, str] = {
        "local": "It is measured on this machine.",
        "ssh": f"It is measured on {device.host} by ssh.",
        "adb": "It is measured by adb on "
        + (f"the device {device.serial}." if device.serial else "the one device attached."),
        "browser": "It is measured in a browser on this machine.",
        "emulated": "Its accuracy is measured under emulation; its latency stays UNMEASURED.",
    }
    return ways[device.transport]


def _budgets(budget: BudgetSpec) -> list[str]:
    """Returns every budget as the end of a sentence."""
    found = {
        "accuracy_drop_points": "it loses at most {} points of top-1 against the float model, by "
        "the 95 % limit",
        "accuracy_min_percent": "its top-1 is at least {} %, by the 95 % interval",
        "latency_ms": f"the {budget.latency_percentile}th percentile of its latency is at most "
        "{} ms in every session",
        "size_bytes": "the file has at most {} bytes",
        "memory_bytes": "running it takes at most {} bytes of memory",
        "flash_bytes": "the compiled model takes at most {} bytes of flash",
    }
    values = ((text, getattr(budget, name)) for name, text in found.items())
    return [text.format(f"{value:,}") for text, value in values if value is not None]


def _how_timed(target: Target) -> str:
    if target.device.transport == "emulated":
        return "Time under emulation says nothing about a device."
    if target.protocol is None:
        return "Latency is measured as the recipe's [validation] or edgekit validate says."
    way = PROTOCOLS[target.protocol]
    return (
        f"Latency by the protocol {target.protocol}: {way.sessions} fresh processes, each "
        f"{way.warmup_seconds:g} s of warm-up and at least {way.min_queries} calls and "
        f"{way.min_seconds:g} s; {way.words}."
    )


def _folder() -> Path:
    """Returns where the shipped targets lie: inside a wheel, or beside a checked-out package."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_targets", package.parent / "targets"):
        if any(folder.glob("*.toml")):
            return folder
    received = f"{package}: an installation without targets"
    raise SpecError(received, "targets/*.toml", "install edgekit again")
