"""What the machine does while something is timed. Device layer.

The paths are the Linux kernel's own and the same on every machine; where one is missing (another
system, a container), the fact is None or falls back as its function says.
"""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from edgekit.devices.protocol import Surroundings

CPU_FOLDER = Path("/sys/devices/system/cpu")
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
    """

    wall_seconds: float
    own_cpu_seconds: float
    busy_cpu_seconds: float | None
    switches: int
    governor: str | None
    frequency_khz: int | None


def look() -> Look:
    """Returns what can be read about the machine right now."""
    own = os.times()
    return Look(
        wall_seconds=time.monotonic(),
        own_cpu_seconds=own.user + own.system,
        busy_cpu_seconds=_busy_seconds(),
        switches=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        governor=_read(CPU_FOLDER / "cpu0" / "cpufreq" / "scaling_governor"),
        frequency_khz=_highest_frequency(),
    )


def compare(before: Look, after: Look, threads: int, warmup_runs: int) -> Surroundings:
    """Returns what went on between two looks.

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
    return Surroundings(
        warmup_runs=warmup_runs,
        context_switches_involuntary=after.switches - before.switches,
        load_average=load,
        governor=before.governor,
        frequency_before_khz=before.frequency_khz,
        frequency_after_khz=after.frequency_khz,
    )


def _busy_seconds() -> float | None:
    """Returns the CPU time that all cores spent working or were denied by a hypervisor."""
    text = _read(CPU_TIMES)
    fields = text.splitlines()[0].split()[1 : TIME_COLUMNS + 1] if text else []
    if len(fields) < TIME_COLUMNS or not all(field.isdigit() for field in fields):
        return None
    ticks = sum(int(f) for column, f in enumerate(fields) if column not in IDLE_COLUMNS)
    return ticks / os.sysconf("SC_CLK_TCK")


def _highest_frequency() -> int | None:
    texts = [_read(path) for path in CPU_FOLDER.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    return max((int(text) for text in texts if text and text.isdigit()), default=None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
