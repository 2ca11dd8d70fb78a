"""Runs a program and watches its wall time, memory, disk use and what outlives it. Linux only."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# What a process holds and the most that it held, in KiB. The kernel's own account of a child starts
# with what its parent held.
_MEMORY = re.compile(r"^(VmRSS|VmHWM):\s*(\d+)", re.M)
_MEMORY_EVERY_SECONDS = 0.03
_DISK_EVERY_SECONDS = 0.3
# onnxruntime writes the first when it is imported: the number of its telemetry's session.
_OF_OTHERS = (".ses",)
# A process that measures a model notices within seconds that nobody listens any more.
GRACE_SECONDS = 12.0


@dataclass(frozen=True)
class Limits:
    """What an attack may make edgekit take.

    Args:
        seconds: Wall time. Defaults to 300: on a quiet machine the longest command, a whole run,
            takes 40.
        idle_seconds: Wall time in which neither the program nor a descendant computes anything.
            Defaults to 30: who waits that long for a file or another process waits for ever.
        memory_mb: Resident memory of the program and its descendants together. Defaults to 2500:
            a run with TensorFlow takes 1100, and a bundle of the 512 MiB that are allowed is held
            in memory.
        disk_mb: Growth of the attack's folder, in which the temporary folder lies. Defaults to
            700: such a bundle is unpacked once.
    """

    seconds: float = 300.0
    idle_seconds: float = 30.0
    memory_mb: float = 2500.0
    disk_mb: float = 700.0


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Args:
        code: Exit code; -9 if it was killed.
        stdout: What it printed.
        stderr: What it said.
        seconds: Wall time.
        peak_mb: Most resident memory of it and its descendants together, sampled, or the peak
            of a single one of them where that is more.
        disk_mb: Most growth of its folder.
        broke: Name of the limit that it broke, or "".
        outlived: Descendants that were alive a while after it, as command lines; they were ended.
        temporary: What it left in its temporary folder.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    peak_mb: float
    disk_mb: float
    broke: str = ""
    outlived: tuple[str, ...] = ()
    temporary: tuple[str, ...] = ()


def watched(
    command: Sequence[str],
    place: Path,
    limits: Limits,
    kill_when: Callable[[float], bool] | None = None,
) -> Ran:
    """Runs a program in a folder, with a temporary folder in it, until it ends or breaks a limit.

    Args:
        command: Program and arguments.
        place: Working folder; what it grows by counts as disk use.
        limits: What it may take.
        kill_when: Called with the seconds since the start, often; when it returns true, the program
            is killed, but not its descendants, as the kernel would when memory is short. Defaults
            to None: never.
    """
    temporary = place / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    before = _disk_bytes(place)
    started = time.monotonic()
    with (place / "stdout").open("wb") as out, (place / "stderr").open("wb") as err:
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,  # Ctrl-C is for the campaign
        )
    peak = grown = 0
    broke, looked, worked, ticks = "", 0.0, 0.0, -1
    try:
        while True:
            if process.poll() is not None:
                break
            seconds = time.monotonic() - started
            if kill_when is not None and kill_when(seconds):
                process.kill()
                continue
            members = family(process.pid)
            peak = max(peak, _memory_bytes(members))
            if (computed := sum(map(_ticks, members))) != ticks:
                ticks, worked = computed, seconds
            if seconds - looked >= _DISK_EVERY_SECONDS:
                looked, grown = seconds, max(grown, _disk_bytes(place) - before)
            broke = _broken(limits, seconds, seconds - worked, peak, grown)
            if broke:
                for each in family(process.pid):
                    end(each)
                process.wait()
                break
            time.sleep(_MEMORY_EVERY_SECONDS)
    except BaseException:
        for each in family(process.pid):
            end(each)
        process.wait()
        raise
    seconds = time.monotonic() - started
    grown = max(grown, _disk_bytes(place) - before)
    return Ran(
        code=process.returncode,
        stdout=(place / "stdout").read_text("utf-8", "replace"),
        stderr=(place / "stderr").read_text("utf-8", "replace"),
        seconds=seconds,
        peak_mb=peak / 1e6,
        disk_mb=grown / 1e6,
        broke=broke or _broken(limits, 0.0, 0.0, peak, grown),
        outlived=() if broke else _outlived(temporary),
        temporary=tuple(sorted({path.name for path in temporary.iterdir()} - {*_OF_OTHERS})),
    )


def _broken(
    limits: Limits, seconds: float, idle_seconds: float, peak_bytes: int, grown_bytes: int
) -> str:
    """Returns the name of the limit that is broken, or ""."""
    taken = {
        "seconds": seconds,
        "idle_seconds": idle_seconds,
        "memory_mb": peak_bytes / 1e6,
        "disk_mb": grown_bytes / 1e6,
    }
    return next((name for name, value in taken.items() if value > getattr(limits, name)), "")


def family(pid: int) -> list[int]:
    """Returns a process and its descendants, as far as they are not orphaned."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{found[-1]}/task").iterdir():
                with contextlib.suppress(OSError):
                    waiting += map(int, (task / "children").read_text().split())
    return found


def end(pid: int) -> None:
    """Ends one process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _memory_bytes(members: Sequence[int]) -> int:
    """Returns what processes hold together, or the peak of a single one where that is more."""
    now, peaks = [0], [0]
    for pid in members:
        with contextlib.suppress(OSError):
            found = dict(_MEMORY.findall(Path(f"/proc/{pid}/status").read_text()))
            now.append(int(found.get("VmRSS", 0)))
            peaks.append(int(found.get("VmHWM", 0)))
    return max(sum(now), *peaks) * 1024


def _ticks(pid: int) -> int:
    """Returns the CPU time that a process has used, in clock ticks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, IndexError):
        return 0


def _outlived(temporary: Path) -> tuple[str, ...]:
    """Waits a while for descendants to end; ends those that do not and returns what they are.

    An orphan no longer has the program for a parent, but still its temporary folder.
    """
    mark = f"TMPDIR={temporary}".encode()
    deadline = time.monotonic() + GRACE_SECONDS
    while found := [pid for pid in _processes() if mark in _environment(pid)]:
        if time.monotonic() > deadline:
            said = tuple(_command_line(pid) for pid in found)
            for pid in found:
                end(pid)
            return said
        time.sleep(0.05)
    return ()


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"process {pid}"
    return b" ".join(words).decode("utf-8", "replace")[:200]


def _disk_bytes(folder: Path) -> int:
    """Returns what a folder takes on the disk; links are not followed."""
    total = 0
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return 0
    for entry in entries:
        with contextlib.suppress(OSError):
            total += entry.stat(follow_symlinks=False).st_blocks * 512
            if entry.is_dir(follow_symlinks=False):
                total += _disk_bytes(Path(entry.path))
    return total
