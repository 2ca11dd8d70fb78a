"""What the machine does while something is timed.

The paths are the Linux kernel's own and the same on every machine; where one is missing (another
system, a container), the fact is None or falls back as its function says.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU_FOLDER = Path("/sys/devices/system/cpu")
THERMAL_FOLDER = Path("/sys/class/thermal")
PLATFORM_PROFILE = Path("/sys/firmware/acpi/platform_profile")
CPU_TIMES = Path("/proc/stat")
# Columns of the "cpu" line, proc(5): user nice system idle iowait irq softirq steal ...
IDLE_COLUMNS = (3, 4)
TIME_COLUMNS = 8


@dataclass(frozen=True)
class Look:
    """One look at the machine.

    Args:
        wall_seconds: Monotonic clock.
        own_cpu_seconds: CPU time of this process, all threads.
        busy_cpu_seconds: CPU time of everything on the machine; None where unreadable.
        switches: Involuntary context switches of this process so far.
        governor: Frequency governor of the first core.
        frequency_khz: Highest current frequency of any core.
        temperature_c: Highest temperature of any thermal zone, in degrees Celsius.
        throttled: How often the cores were slowed down for heat since the start of the machine.
        power_saving: Whether a platform profile that saves power is on.
    """

    wall_seconds: float
    own_cpu_seconds: float
    busy_cpu_seconds: float | None
    switches: int
    governor: str | None
    frequency_khz: int | None
    temperature_c: float | None = None
    throttled: int | None = None
    power_saving: bool | None = None


def look() -> Look:
    """Returns what can be read about the machine right now."""
    own = os.times()
    profile = _read(PLATFORM_PROFILE)
    return Look(
        wall_seconds=time.monotonic(),
        own_cpu_seconds=own.user + own.system,
        busy_cpu_seconds=_busy_seconds(),
        switches=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        governor=_read(CPU_FOLDER / "cpu0" / "cpufreq" / "scaling_governor"),
        frequency_khz=_highest(CPU_FOLDER, "cpu[0-9]*/cpufreq/scaling_cur_freq"),
        temperature_c=_temperature(),
        throttled=_highest(CPU_FOLDER, "cpu[0-9]*/thermal_throttle/core_throttle_count"),
        power_saving=None if profile is None else profile == "low-power",
    )


def compare(before: Look, after: Look, threads: int, warmup_runs: int) -> dict[str, Any]:
    """Returns what went on between two looks; the keys are those of `LatencySession`.

    The load is `threads` plus the cores that others kept busy in between. The kernel's one-minute
    load average would still count the work edgekit itself did before the measurement; it is used
    only where the CPU times cannot be read.
    """
    wall = max(after.wall_seconds - before.wall_seconds, 1e-9)
    if before.busy_cpu_seconds is None or after.busy_cpu_seconds is None:
        load = os.getloadavg()[0]
    else:
        busy = after.busy_cpu_seconds - before.busy_cpu_seconds
        own = after.own_cpu_seconds - before.own_cpu_seconds
        load = threads + max(0.0, busy - own) / wall
    counted = before.throttled is not None and after.throttled is not None
    return {
        "warmup_runs": warmup_runs,
        "context_switches_involuntary": after.switches - before.switches,
        "load_average": load,
        "governor": before.governor,
        "frequency_before_khz": before.frequency_khz,
        "frequency_after_khz": after.frequency_khz,
        "temperature_before_c": before.temperature_c,
        "temperature_after_c": after.temperature_c,
        "throttled": (after.throttled or 0) - (before.throttled or 0) if counted else None,
        "power_saving": after.power_saving,
    }


def reset_peak_memory() -> int | None:
    """Starts a new peak of this process's memory; returns what it uses now, in bytes.

    Source: proc(5), /proc/pid/clear_refs: writing 5 resets the peak resident set size.

    Returns:
        The resident set; None where the system does not say.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _memory("VmRSS")


def peak_memory() -> int | None:
    """Returns the largest resident set since `reset_peak_memory`, in bytes; None if unreadable."""
    return _memory("VmHWM")


def _memory(field: str) -> int | None:
    for line in (_read(Path("/proc/self/status")) or "").splitlines():
        name, _, value = line.partition(":")
        if name == field and value.split()[0].isdigit():
            return int(value.split()[0]) * 1024
    return None


def _busy_seconds() -> float | None:
    """Returns the CPU time that all cores spent working or were denied by a hypervisor."""
    text = _read(CPU_TIMES)
    fields = text.splitlines()[0].split()[1 : TIME_COLUMNS + 1] if text else []
    if len(fields) < TIME_COLUMNS or not all(field.isdigit() for field in fields):
        return None
    ticks = sum(int(f) for column, f in enumerate(fields) if column not in IDLE_COLUMNS)
    return ticks / os.sysconf("SC_CLK_TCK")


def _temperature() -> float | None:
    """Returns the highest temperature; sensors that say nothing sensible are left out."""
    texts = [_read(path) for path in THERMAL_FOLDER.glob("thermal_zone*/temp")]
    values = [int(text) / 1000 for text in texts if text and text.removeprefix("-").isdecimal()]
    return max((value for value in values if -50 < value < 200), default=None)


def _highest(folder: Path, pattern: str) -> int | None:
    texts = [_read(path) for path in folder.glob(pattern)]
    return max((int(text) for text in texts if text and text.isdigit()), default=None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
