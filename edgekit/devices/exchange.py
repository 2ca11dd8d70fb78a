"""Talks to a runner process and trusts nothing it says. Device layer."""

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from edgekit import errors, limits
from edgekit.devices.process import hear
from edgekit.devices.protocol import LINE, Done, Failure, Progress
from edgekit.errors import DeviceError, EdgekitError, IntegrityError
from edgekit.processes import end, start
from edgekit.runtimes.base import SHOWN_CHARACTERS, printable

ReportProgress = Callable[[float], None]
Explain = Callable[[int, str], DeviceError | None]

LINE_LIMIT_BYTES = 65536
OUTPUT_LIMIT_BYTES = 16 * 1024 * 1024
# Signals by which a process ends itself; any other signal was sent by somebody else.
CRASHES = ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGBUS", "SIGILL", "SIGTRAP", "SIGSYS")


@dataclass(frozen=True)
class Waiting:
    """How long a runner may be silent; it says a line whenever answers were made.

    A limit for each answer, not for their sum: a model that never ends is ended as soon among many
    pictures as among few.

    Args:
        first_seconds: Until its first line: start, loading and first answer. Defaults to
            `limits.FIRST_ANSWER_SECONDS`.
        further_seconds: Until each further line. Defaults to `limits.ANSWER_SECONDS`.
    """

    first_seconds: float = limits.FIRST_ANSWER_SECONDS
    further_seconds: float = limits.ANSWER_SECONDS


# For whatever is slower than this machine.
PATIENT = Waiting(
    limits.TIMES_SLOWER_ELSEWHERE * limits.FIRST_ANSWER_SECONDS,
    limits.TIMES_SLOWER_ELSEWHERE * limits.ANSWER_SECONDS,
)


@dataclass
class _Heard:
    """What a runner has said so far; only `exchange` fills it.

    Args:
        silent_since: When it said its last line, or was started; on the clock of `time.monotonic`.
        lines: How many lines it said.
        fraction: The last progress that it said.
    """

    silent_since: float = field(default_factory=time.monotonic)
    lines: int = 0
    fraction: float = 0.0
    pending: bytes = b""
    received_bytes: int = 0
    last: Done | Failure | None = None
    stderr: str = field(default="", repr=False)


def exchange(
    command: Sequence[str],
    subject: str,
    timeout_seconds: float,
    progress: ReportProgress | None = None,
    environment: Mapping[str, str] | None = None,
    explain: Explain | None = None,
    waiting: Waiting | None = None,
) -> Done:
    """Runs a runner process to its end and returns its last line.

    Whatever happens, an interrupt or a kill included, the process and its children are gone
    afterwards.

    Args:
        command: Program and arguments; no shell.
        subject: What is measured, for messages.
        timeout_seconds: Wall time for the whole run.
        progress: Called with fractions from 0 to 1. Defaults to None.
        environment: Environment of the process. Defaults to None: this process's own.
        explain: Called with exit code and end of stderr of a run without a result; returns the
            error where the transport knows what happened. Defaults to None: it never does.
        waiting: How long it may be silent. Defaults to None: as long as the whole run may take.

    Raises:
        IntegrityError: If the runner crashed, or says that the file is damaged or untrusted.
        DeviceError: If it hangs, breaks the protocol, is killed, or says that the runtime failed.
        SpecError: If it says that the job does not fit the file.
        DataError: If it says that the images are unusable.
    """
    process = start(command, environment=environment)
    heard = _Heard()
    end_at = heard.silent_since + timeout_seconds

    def take(chunk: bytes) -> bool:
        _take(chunk, heard, subject, progress)
        return False

    def deadline() -> float:
        if waiting is None:
            return end_at
        seconds = waiting.further_seconds if heard.lines else waiting.first_seconds
        return min(end_at, heard.silent_since + seconds)

    try:
        heard.stderr = hear(process, deadline, take)
        process.wait(timeout=max(0.0, deadline() - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired) as err:
        raise _too_slow(subject, timeout_seconds, waiting, end_at, heard) from err
    finally:
        end(process)
    return _verdict(process.returncode, heard, subject, explain)


def _too_slow(
    subject: str, timeout_seconds: float, waiting: Waiting | None, end_at: float, heard: _Heard
) -> DeviceError:
    """Returns the error for a runner that was silent for too long, or took too long in all."""
    remedy = "do not use this file if its model has no end; a slow one needs a faster machine"
    if waiting is None or time.monotonic() >= end_at:
        found = f"{subject}: no answer after {timeout_seconds:g} s"
        return DeviceError(found, "an end within that time", remedy)
    if not heard.lines:
        found = f"{subject}: no answer after {waiting.first_seconds:g} s"
        return DeviceError(found, "the first answer within that time", remedy)
    return DeviceError(
        f"{subject}: no further answer for {waiting.further_seconds:g} s, with "
        f"{heard.fraction:.0%} done",
        "an answer to one picture within that time",
        remedy,
    )


def _take(chunk: bytes, heard: _Heard, subject: str, progress: ReportProgress | None) -> None:
    """Splits stdout into lines and acts on each."""
    heard.received_bytes += len(chunk)
    *lines, heard.pending = (heard.pending + chunk).split(b"\n")
    longest = max(len(part) for part in (*lines, heard.pending))
    if longest > LINE_LIMIT_BYTES or heard.received_bytes > OUTPUT_LIMIT_BYTES:
        found = f"{subject}: the runner wrote {heard.received_bytes} bytes, a line of {longest}"
        raise DeviceError(
            found,
            f"lines up to {LINE_LIMIT_BYTES} bytes, {OUTPUT_LIMIT_BYTES} in all",
            "something else writes into its output; check the device",
        )
    for line in lines:
        message = _parse(line, heard, subject)
        heard.lines, heard.silent_since = heard.lines + 1, time.monotonic()
        if not isinstance(message, Progress):
            heard.last = message
            continue
        heard.fraction = message.progress
        if progress is not None:
            progress(message.progress)


def _parse(line: bytes, heard: _Heard, subject: str) -> Progress | Done | Failure:
    """Returns one validated line."""
    shown = printable(line.decode("utf-8", "replace"))
    if heard.last is not None:
        found = f"{subject}: the runner went on after its last line: {shown!r}"
        raise DeviceError(found, "nothing after the result", "check the device and run it again")
    try:
        return LINE.validate_json(line, strict=True)
    except ValidationError as err:
        reason = err.errors(include_url=False, include_input=False)[0]["msg"]
        found = f"{subject}: the runner said {shown!r} ({reason})"
        raise DeviceError(
            found,
            "a progress or result line of this version of edgekit",
            "something else writes into its output, or its edgekit differs; check the device",
        ) from err


def _verdict(returncode: int, heard: _Heard, subject: str, explain: Explain | None) -> Done:
    """Turns the end of a run into its result or its error."""
    if isinstance(heard.last, Failure):
        raise _as_error(heard.last)
    number = _signal(returncode)
    if number is not None:
        raise _killed(number, subject)
    if returncode != 0 or heard.last is None or heard.pending:
        said = printable(heard.stderr[-SHOWN_CHARACTERS:])
        known = explain(returncode, said) if explain else None
        if known is not None:
            raise known
        found = f"{subject}: the runner ended with code {returncode} and no result ({said})"
        raise DeviceError(
            found,
            "a result line",
            "read the message of the runner above; check the device and run it again",
        )
    return heard.last


def _signal(returncode: int) -> int | None:
    """Returns the signal that ended a runner; one behind a shell says it as 128 and the number."""
    if returncode < 0:
        return -returncode
    known = {128 + entry.value for entry in signal.Signals}
    return returncode - 128 if returncode in known else None


def _as_error(failure: Failure) -> EdgekitError:
    """Returns the error that a runner reported, its texts made safe to print."""
    kind: type[EdgekitError] = getattr(errors, failure.error)
    return kind(printable(failure.received), printable(failure.expected), printable(failure.remedy))


def _killed(number: int, subject: str) -> EdgekitError:
    """Returns the error for a runner that a signal ended."""
    known = {entry.value: entry.name for entry in signal.Signals}
    name = known.get(number, f"signal {number}")
    if name in CRASHES:
        return IntegrityError(
            f"{subject}: runtime crashed ({name})",
            "a model that its runtime can load and run",
            "do not ship this file; export it again and report the crash to the runtime",
        )
    return DeviceError(
        f"{subject}: the runner was ended from outside ({name})",
        "a run that ends by itself",
        "check the memory of the machine (SIGKILL often means that it ran out) and run it again",
    )
