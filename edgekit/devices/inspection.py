"""Reads a foreign model file in a process of its own. Device layer.

`python -m edgekit.devices.inspection FILE FACTS.json` is that process: parsers are native code in
part, and a file that crashes one, fills the memory or never ends takes down nothing else.
"""

import hashlib
import sys
from pathlib import Path

from pydantic import ValidationError

from edgekit import limits
from edgekit.devices import child
from edgekit.devices.exchange import exchange
from edgekit.devices.protocol import Done, Failure
from edgekit.errors import DeviceError, EdgekitError, IntegrityError
from edgekit.folders import scratch_folder, writing
from edgekit.records import Record
from edgekit.runner.model import AGAIN, Request
from edgekit.runner.onnx_runtime import open_onnxruntime
from edgekit.runner.program import answer_channel
from edgekit.runner.refusal import Refusal
from edgekit.runtimes.base import ModelFacts
from edgekit.runtimes.inspect import inspect_content, model_format, read_model
from edgekit.runtimes.tflite_metadata import Metadata, metadata_of

_MODULE = "edgekit.devices.inspection"


class Inspection(Record):
    """What a file says about itself, and which bytes said it.

    Args:
        facts: As `edgekit.runtimes.inspect.inspect_content`.
        sha256: Digest of the bytes.
        size_bytes: How many there are.
        said: The TFLite metadata; None where there are none.
        unsaid_because: Why there are none to read although the file has some; else empty.
    """

    facts: ModelFacts
    sha256: str
    size_bytes: int
    said: Metadata | None = None
    unsaid_because: str = ""


def inspect_apart(path: Path, timeout_seconds: float = limits.READING_SECONDS) -> Inspection:
    """Returns what a .tflite, .onnx or .ort file says about itself, read in another process.

    Args:
        path: The file; its suffix says the format.
        timeout_seconds: Wall time. Defaults to `limits.READING_SECONDS`.

    Raises:
        SpecError: If the file cannot be read or its suffix is none of the three.
        IntegrityError: If it is damaged, untrusted, or crashes what reads it.
        DeviceError: If reading it does not end.
    """
    with scratch_folder() as folder:
        facts = folder / "facts.json"
        command = child.command(
            _MODULE, str(path.absolute()), str(facts), timeout_seconds=timeout_seconds
        )
        # What a library leaves in the folder for temporary files is gone with this one.
        around = {**child.environment(), "TMPDIR": str(folder)}
        exchange(command, str(path), timeout_seconds, environment=around)
        try:
            with facts.open("rb") as stream:
                return Inspection.model_validate_json(stream.read(limits.MODEL_FACTS_BYTES))
        except (OSError, ValidationError) as err:
            found = f"{path}: what it says of itself is more than {limits.MODEL_FACTS_BYTES} bytes"
            raise IntegrityError(found, "an image classifier", "do not use this file") from err


def main(arguments: list[str]) -> int:
    """Reads the file and writes what it says; returns the exit code.

    Args:
        arguments: The file, and where the facts go.
    """
    with answer_channel() as channel:
        line, code = _inspect(Path(arguments[0]), Path(arguments[1]))
        channel.write(line.model_dump_json() + "\n")
    return code


def _inspect(path: Path, result: Path) -> tuple[Done | Failure, int]:
    """Returns the last line of this process and its exit code."""
    try:
        content = read_model(path)
        facts = inspect_content(content, model_format(path), str(path), doubtful=True)
        if facts.doubt:
            _let_the_runtime_judge(content, path, facts.doubt)
        said, unsaid_because = _metadata(content) if facts.format == "tflite" else (None, "")
        found = Inspection(
            facts=facts,
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            said=said,
            unsaid_because=unsaid_because,
        )
    except MemoryError:
        return _refuse(
            IntegrityError(
                f"{path}: reading it takes more than {limits.PROCESS_MEMORY_BYTES:,} bytes of "
                "address space",
                "an image classifier that is read in less",
                "do not use this file",
            )
        )
    except EdgekitError as err:
        return _refuse(err)
    try:
        with writing(result):
            result.write_text(found.model_dump_json(), encoding="utf-8")
    except OSError as err:
        return _refuse(child.unwritable(err))
    return Done(runtime="inspection", count=1), 0


def _let_the_runtime_judge(content: bytes, path: Path, doubt: str) -> None:
    """Refuses a file that onnxruntime does not open either.

    Raises:
        IntegrityError: With the words of onnxruntime; if these are none of a known cause, with
            those of ONNX's checker, too.
        DeviceError: If onnxruntime is not installed.
    """
    try:
        open_onnxruntime(Request(content, str(path)))
    except Refusal as refusal:
        said = f"; ONNX's checker: {doubt}" if refusal.remedy == AGAIN else ""
        kind = IntegrityError if refusal.error == "IntegrityError" else DeviceError
        raise kind(f"{refusal.received}{said}", refusal.expected, refusal.remedy) from refusal


def _metadata(model: bytes) -> tuple[Metadata | None, str]:
    """Returns the metadata of a TFLite file; damaged ones are none, and the file runs without."""
    try:
        return metadata_of(model), ""
    except IntegrityError as err:
        return None, err.received


def _refuse(err: EdgekitError) -> tuple[Failure, int]:
    texts = {"received": err.received, "expected": err.expected, "remedy": err.remedy}
    return Failure.model_validate({"error": type(err).__name__, **texts}), err.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
