"""Compiles int8 files for Arm's Ethos-U with Arm's own compiler, Vela. Estimate layer.

Every number here is the compiler's estimate. Arm says of them: "The cycle and bandwidth numbers
should not be taken as accurate representations of real performance numbers and they should not be
compared against those from other compilations that use different settings or configurations"
(README of ethos-u-vela 5.2.0, https://pypi.org/project/ethos-u-vela/). So they can refuse a model
early, but a device has to show that it is fast enough.
"""

import csv
import math
import re
import shutil
import signal
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from pydantic import Field

from edgekit.devices import child
from edgekit.devices.exchange import CRASHES
from edgekit.errors import DeviceError, EdgekitError, IntegrityError, SpecError
from edgekit.folders import scratch_folder
from edgekit.processes import run
from edgekit.records import Record
from edgekit.runtimes import check_digest
from edgekit.runtimes.base import FLATBUFFER_DAMAGE, SHOWN_CHARACTERS, printable
from edgekit.runtimes.inspect import inspect_content, read_model
from edgekit.target import Accelerator

Optimise = Literal["Performance", "Size"]
Table: TypeAlias = Any  # classes of the generated schema carry no type hints

ACCELERATORS: tuple[str, ...] = get_args(Accelerator)
# Source: https://github.com/tensorflow/tflite-micro, tensorflow/lite/micro/kernels/ethos_u: the
# custom operator into which Vela puts everything that runs on the NPU.
NPU_OPERATOR = b"ethos-u"
KIB = 1024
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_BAD_SETTING = re.compile(r"Error: (Incorrect argument to CLI option|Invalid configuration of)")


class NpuEstimate(Record):
    """What Vela says about one file on one NPU: the compiler's estimates, not measurements.

    Args:
        version: The compiler.
        accelerator: NPU and size, such as "ethos-u55-128".
        system_config: Section of Vela's `vela.ini` with clock and memory speeds.
        memory_mode: Section of Vela's `vela.ini` that says what lies in which memory.
        optimise: What Vela put first: "Performance" or "Size", which is less SRAM.
        clock_hz: Clock of the NPU in `system_config`.
        operators_in_all: Operators of the file.
        cpu_operators: Operators that stay on the CPU, as type and name of the output.
        sram_bytes: SRAM for activations and buffers of the NPU. What the interpreter keeps beside
            them is not in it.
        flash_bytes: On-chip and off-chip flash for weights and commands. In the memory mode
            "Sram_Only" Vela counts them as flash that is as fast as SRAM; where they lie in SRAM
            they come on top of `sram_bytes`.
        dram_bytes: DRAM, in memory modes that have it.
        compiled_bytes: Size of the compiled .tflite file, which the device keeps.
        cycles: NPU cycles of one image, waiting for memory included; 0 if nothing runs there.
            Operators on the CPU are not in it.
    """

    version: str
    accelerator: str
    system_config: str
    memory_mode: str
    optimise: Optimise
    clock_hz: float = Field(gt=0)
    operators_in_all: int = Field(ge=0)
    cpu_operators: tuple[str, ...]
    sram_bytes: int = Field(ge=0)
    flash_bytes: int = Field(ge=0)
    dram_bytes: int = Field(ge=0)
    compiled_bytes: int = Field(ge=1)
    cycles: int = Field(ge=0)

    @property
    def operators_on_npu(self) -> int:
        """Operators of the file that run on the NPU or vanish in those that do."""
        return self.operators_in_all - len(self.cpu_operators)

    @property
    def estimated_ms(self) -> float | None:
        """Estimated time of one image in milliseconds; None unless all of it is on the NPU."""
        if self.cpu_operators or not self.cycles:
            return None
        return self.cycles / self.clock_hz * 1000

    @property
    def settings(self) -> str:
        """What was estimated and how, in words."""
        return (
            f"estimated by Arm's compiler {self.version} for {self.accelerator} at "
            f"{self.clock_hz / 1e6:g} MHz, {self.system_config}, {self.memory_mode}, "
            f"optimised for {self.optimise.lower()}; not measured"
        )


def compile_for(
    model: Path,
    sha256: str,
    accelerator: str = "ethos-u55-128",
    system_config: str | None = None,
    memory_mode: str | None = None,
    optimise: Optimise = "Performance",
    timeout_seconds: float = 600.0,
    output: Path | None = None,
) -> NpuEstimate:
    """Compiles one file and returns what the compiler estimates.

    Args:
        model: A .tflite file.
        sha256: Digest that it must have, in hex; checked on the bytes that are compiled.
        accelerator: NPU and size, one of `ACCELERATORS`. Defaults to "ethos-u55-128".
        system_config: Section of Vela's `vela.ini` with clock and memory speeds. Defaults to None:
            Vela's own default, for Ethos-U55 "Ethos_U55_High_End_Embedded", 500 MHz.
        memory_mode: Section of Vela's `vela.ini` that says what lies in which memory. Defaults to
            None: Vela's own default, for Ethos-U55 "Shared_Sram", weights in flash.
        optimise: "Performance", or "Size" for less SRAM and more time. Defaults to "Performance".
        timeout_seconds: Wall time for the compiler. Defaults to 600.
        output: Where the compiled .tflite goes, which needs a runtime with the Ethos-U driver.
            Defaults to None: nowhere.

    Raises:
        IntegrityError: If the file is not the one named, damaged, untrusted, refused by the
            compiler, or crashes it.
        DeviceError: If ethos-u-vela is not installed, hangs, or writes what its tested version
            does not.
        SpecError: If a setting does not exist, does not fit the NPU, or `output` cannot be written.
    """
    options = [*_options(accelerator, system_config, memory_mode), f"--optimise={optimise}"]
    child.require("ethosu", "ethos-u-vela")
    content = read_model(model)
    check_digest(content, sha256, model)
    facts = inspect_content(content, "tflite", str(model))
    with scratch_folder() as place:
        (place / "model.tflite").write_bytes(content)
        _compile(place, options, str(model), timeout_seconds)
        compiled = _read(place / "model_vela.tflite", str(model))
        cpu_operators = _cpu_operators(compiled, str(model))
        in_all = sum(facts.operators.values())
        if len(cpu_operators) > in_all:
            found = f"{model}: {in_all} operators, {len(cpu_operators)} of them on the CPU"
            raise _unexpected(found)
        estimate = NpuEstimate(
            version=f"ethos-u-vela {version('ethos-u-vela')}",
            accelerator=accelerator,
            optimise=optimise,
            operators_in_all=in_all,
            cpu_operators=cpu_operators,
            compiled_bytes=len(compiled),
            **read_summary(_summary_in(place, str(model)), accelerator, str(model)),
        )
        if output is not None:
            _deliver(place / "model_vela.tflite", output)
    return estimate


def read_summary(text: str, accelerator: str, path: str) -> dict[str, Any]:
    """Returns the fields of `NpuEstimate` that stand in Vela's summary.

    Args:
        text: The CSV file: one line of names, one of values. Memory is in KiB, time in seconds.
        accelerator: NPU that it must be about.
        path: The model, for messages.

    Raises:
        DeviceError: If it is not what the tested version writes.
    """
    rows = list(csv.reader(text.splitlines()))
    if len(rows) != 2 or len(rows[0]) != len(rows[1]) or len(set(rows[0])) != len(rows[0]):
        raise _unexpected(f"{path}: a summary of {len(rows)} lines")
    row = dict(zip(*rows, strict=True))
    try:
        clock_hz, seconds = float(row["core_clock"]), float(row["inference_time"])
        cycles = int(row["cycles_total"])
        kept = {
            area: float(row[f"{area}_memory_used"]) * KIB
            for area in ("sram", "dram", "on_chip_flash", "off_chip_flash")
        }
        named = row["accelerator_configuration"].lower().replace("_", "-")
        sections = {key: row[key] for key in ("system_config", "memory_mode")}
        one_image = int(row["batch_size"]) == 1
    except (KeyError, ValueError) as err:
        raise _unexpected(f"{path}: a summary without a usable {printable(str(err))}") from err
    sensible = (
        named == accelerator
        and one_image
        and math.isfinite(clock_hz)
        and clock_hz > 0
        and cycles >= 0
        and math.isclose(seconds * clock_hz, cycles, rel_tol=1e-6, abs_tol=0.5)
        and all(used >= 0 and used.is_integer() for used in kept.values())
        and all(_NAME.fullmatch(name) for name in sections.values())
    )
    if not sensible:
        raise _unexpected(
            f"{path}: a summary for {printable(named)} of {cycles} cycles, {seconds} s at "
            f"{clock_hz} Hz, memory {kept}"
        )
    return {
        **sections,
        "clock_hz": clock_hz,
        "cycles": cycles,
        "sram_bytes": int(kept["sram"]),
        "dram_bytes": int(kept["dram"]),
        "flash_bytes": int(kept["on_chip_flash"] + kept["off_chip_flash"]),
    }


def _options(accelerator: str, system_config: str | None, memory_mode: str | None) -> list[str]:
    """Returns Vela's arguments; refuses settings that cannot be."""
    if accelerator not in ACCELERATORS:
        raise SpecError(f"accelerator {accelerator!a}", ", ".join(ACCELERATORS), "choose one")
    options = [f"--accelerator-config={accelerator}"]
    for name, value in (("system-config", system_config), ("memory-mode", memory_mode)):
        if value is None:
            continue
        if not _NAME.fullmatch(value):
            expected = "a name of letters, digits and underscores"
            raise SpecError(f"{name} {value!a}", expected, "choose a section of Vela's vela.ini")
        options.append(f"--{name}={value}")
    family = accelerator.split("-")[1].upper()
    if system_config is not None and not system_config.startswith(f"Ethos_{family}_"):
        # Vela would estimate one NPU at another one's clock without a word.
        raise SpecError(
            f"system-config {system_config} for {accelerator}",
            f"a name that begins with Ethos_{family}_",
            "choose a section of Vela's vela.ini",
        )
    return options


def _compile(place: Path, options: list[str], path: str, timeout_seconds: float) -> None:
    """Runs the compiler on `model.tflite` in `place`, which also takes what it writes."""
    arguments = (str(place / "model.tflite"), f"--output-dir={place}", *options)
    command = child.command("ethosu.vela", *arguments, timeout_seconds=timeout_seconds)
    words = place / "words.txt"
    try:
        with words.open("wb") as stream:
            done = run(
                command,
                timeout_seconds,
                stdout=stream,
                stderr=stream,
                folder=place,
                environment=child.environment(),
            )
    except subprocess.TimeoutExpired as err:
        found = f"{path}: Vela did not end after {timeout_seconds:g} s"
        raise DeviceError(
            found, "an end within that time", "do not use this file, or use a faster machine"
        ) from err
    if done.returncode != 0:
        raise _refusal(done.returncode, words.read_text("utf-8", "replace"), path)


def _refusal(returncode: int, words: str, path: str) -> EdgekitError:
    """Returns the error for a compiler that did not end well."""
    signals = {-entry.value: entry.name for entry in signal.Signals}
    if returncode in signals:
        name = signals[returncode]
        if name in CRASHES:
            return IntegrityError(
                f"{path}: Vela crashed ({name})",
                "a model that Vela can compile",
                "export it again and report the crash to Arm",
            )
        found = f"{path}: Vela was ended from outside ({name})"
        return DeviceError(found, "a run that ends by itself", "check the memory of the machine")
    lines = [line for line in words.splitlines() if line.strip()]
    said = printable(lines[-1][-SHOWN_CHARACTERS:] if lines else "without a word")
    if _BAD_SETTING.search(words):
        expected = "settings that Vela has and that fit the NPU"
        return SpecError(f"Vela: {said}", expected, "see vela --list-configs Arm/vela.ini")
    return IntegrityError(
        f"{path}: Vela refuses it with code {returncode} ({said})",
        "a model that Vela can compile",
        "export it as int8 with int8 input and output",
    )


def _read(file: Path, path: str) -> bytes:
    """Returns a file that the compiler should have written."""
    try:
        return file.read_bytes()
    except OSError as err:
        raise _unexpected(f"{path}: no {file.name}") from err


def _summary_in(place: Path, path: str) -> str:
    """Returns the one summary that the compiler wrote."""
    files = list(place.glob("model_summary_*.csv"))
    if len(files) != 1:
        raise _unexpected(f"{path}: {len(files)} summaries")
    return _read(files[0], path).decode("utf-8", "replace")


def _unexpected(found: str) -> DeviceError:
    """Returns the error for results that the tested version does not write."""
    return DeviceError(
        f"Vela's results: {found}",
        "what the tested version writes",
        "install the version of ethos-u-vela that edgekit[micro] asks for",
    )


def _cpu_operators(content: bytes, path: str) -> tuple[str, ...]:
    """Names the operators of a compiled file that are not the NPU's."""
    from ai_edge_litert import schema_py_generated as schema

    builtin = {code: name for name, code in vars(schema.BuiltinOperator).items() if name[0] != "_"}
    try:
        model = schema.Model.GetRootAs(content, 0)
        found = []
        for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
            for index in range(graph.OperatorsLength()):
                operator = graph.Operators(index)
                code = model.OperatorCodes(operator.OpcodeIndex())
                if code.CustomCode() == NPU_OPERATOR:
                    continue
                name = builtin[max(code.DeprecatedBuiltinCode(), code.BuiltinCode())]
                text = graph.Tensors(operator.Outputs(0)).Name().decode("utf-8", "replace")
                found.append(f"{name} {printable(text)}")
    except FLATBUFFER_DAMAGE as err:
        raise _unexpected(f"{path}: a damaged file ({printable(str(err))})") from err
    return tuple(found)


def _deliver(compiled: Path, output: Path) -> None:
    """Puts the compiled file where it was asked for, whole or not at all."""
    unfinished = output.with_name(f"{output.name}.part")
    try:
        shutil.copyfile(compiled, unfinished)
        unfinished.replace(output)
    except OSError as err:
        unfinished.unlink(missing_ok=True)
        found = f"{output}: {err.strerror or type(err).__name__}"
        raise SpecError(found, "a folder that can be written", "choose another place") from err
