"""Turns timed sessions into one latency, with everything that speaks against it. Stage layer."""

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.records import Latency, LatencySession
from edgekit.validate import statistics

Number = TypeVar("Number", int, float)
# Drift as in Jetpack Microbenchmark's check for throttling (1.10 x its baseline); a frequency that
# moves as far, and a timer coarser than 1 % of what it times, are doubted for the same reason.
DRIFT_RATIO = 1.10
FREQUENCY_CHANGE = 0.10
TIMER_SHARE = 0.01
# Cores that background services may use before a machine counts as overloaded; without it a run
# with as many threads as cores could never be quiet.
LOAD_ALLOWANCE = 0.25


def summarize(
    sessions: Sequence[LatencySession],
    percentile: int,
    device: str,
    runtime: str,
    cores: int | None = None,
    said: Sequence[str] = (),
) -> Latency:
    """Returns the latency of one file on one device.

    Args:
        sessions: Fresh-process sessions, at least one, each with samples.
        percentile: The percentile that decides, 50 to 99.
        device: Where it was measured, in words.
        runtime: Runtime and version.
        cores: Cores of the device. Defaults to None: those of this machine.
        said: What the device itself says against the samples. Defaults to nothing.

    Raises:
        ValueError: If there is no session, or one without samples.
    """
    if not sessions or not all(session.samples_ms for session in sessions):
        msg = "latency needs at least one session with samples"
        raise ValueError(msg)
    series = [np.asarray(session.samples_ms, dtype=np.float64) for session in sessions]
    pooled = np.concatenate(series)
    governors = sorted({session.governor for session in sessions if session.governor})
    return Latency(
        device=device,
        runtime=runtime,
        threads=sessions[0].threads,
        percentile=percentile,
        session_percentile_ms=tuple(statistics.order_quantile(s, percentile) for s in series),
        p50_ms=statistics.order_quantile(pooled, 50),
        p90_ms=statistics.order_quantile(pooled, 90),
        p95_ms=statistics.order_quantile(pooled, 95),
        p99_ms=statistics.order_quantile(pooled, 99),
        max_ms=float(pooled.max()),
        samples=pooled.size,
        effective_samples=statistics.pooled_effective_samples(series),
        context_switches_involuntary=sum(s.context_switches_involuntary for s in sessions),
        governor=" and ".join(governors) or None,
        memory_bytes=_largest(session.memory_bytes for session in sessions),
        hottest_c=_largest(session.temperature_after_c for session in sessions),
        clock_step_ms=_largest(session.clock_step_ms for session in sessions),
        session_calls_per_sample=tuple(session.calls_per_sample for session in sessions),
        disturbances=(
            *said,
            *disturbances(sessions, percentile, cores or os.cpu_count() or 1),
        ),
    )


def disturbances(
    sessions: Sequence[LatencySession], percentile: int, cores: int
) -> tuple[str, ...]:
    """Returns what speaks against trusting the samples, in words; empty when nothing does.

    Args:
        sessions: Fresh-process sessions with samples.
        percentile: The percentile that decides.
        cores: Cores of the device.
    """
    found = []
    for number, session in enumerate(sessions, start=1):
        reasons = (
            _load(session, cores),
            _frequency(session),
            _heat(session),
            _power(session),
            _drift(session),
            _clock(session),
            _too_few(session, percentile),
        )
        found += [f"session {number}: {reason}" for reason in reasons if reason]
    samples = np.concatenate([np.asarray(s.samples_ms, dtype=np.float64) for s in sessions])
    timer = _timer(samples)
    return (*found, timer) if timer else tuple(found)


def _load(session: LatencySession, cores: int) -> str | None:
    if session.load_average <= cores + LOAD_ALLOWANCE:
        return None
    return f"load {session.load_average:.1f} on {cores} cores"


def _frequency(session: LatencySession) -> str | None:
    before, after = session.frequency_before_khz, session.frequency_after_khz
    if not before or after is None or abs(after - before) <= FREQUENCY_CHANGE * before:
        return None
    return f"CPU frequency went from {before / 1000:.0f} to {after / 1000:.0f} MHz"


def _heat(session: LatencySession) -> str | None:
    if not session.throttled:
        return None
    return f"the processor was slowed down for heat {session.throttled} times"


def _power(session: LatencySession) -> str | None:
    return "a mode that saves power was on" if session.power_saving else None


def _drift(session: LatencySession) -> str | None:
    """Compares the medians of the first and last third: a device that heats up gets slower."""
    third = len(session.samples_ms) // 3
    if third == 0:
        return None
    first = float(np.median(session.samples_ms[:third]))
    last = float(np.median(session.samples_ms[-third:]))
    if last <= DRIFT_RATIO * first:
        return None
    return f"slowed down from {first:.3g} to {last:.3g} ms (median of first and last third)"


def _too_few(session: LatencySession, percentile: int) -> str | None:
    needed = statistics.samples_needed(percentile)
    if len(session.samples_ms) >= needed:
        return None
    return f"{len(session.samples_ms)} samples, p{percentile} needs {needed}"


def _clock(session: LatencySession) -> str | None:
    """Compares the clock's step, where it is known, with what one sample spans."""
    step = session.clock_step_ms
    spanned = session.calls_per_sample * float(np.median(session.samples_ms))
    if step is None or step <= TIMER_SHARE * spanned:
        return None
    calls = session.calls_per_sample
    of = f"{calls} calls" if calls > 1 else "a call"
    return f"the clock moves in steps of {step:.3g} ms, and {of} took {spanned:.3g} ms (median)"


def _timer(samples: npt.NDArray[np.float64]) -> str | None:
    """Finds a coarse clock by its traces: all samples are multiples of its tick.

    The smallest gap between different samples is at least one tick, whatever device took them. All
    samples equal means that the tick is larger than what was timed.
    """
    median = float(np.median(samples))
    gaps = np.diff(np.unique(samples))
    zeros = int(np.count_nonzero(samples == 0))
    if zeros:
        return f"{zeros} of {samples.size} samples are 0 ms: the timer is too coarse"
    if samples.size > 1 and gaps.size == 0:
        return f"all samples are {median:.3g} ms: the timer is too coarse"
    # Few samples can lie far apart by chance; too few of them is reported on its own.
    if samples.size < 20 or float(gaps.min()) <= TIMER_SHARE * median:
        return None
    return f"timer resolution of about {float(gaps.min()):.3g} ms for a median of {median:.3g} ms"


def _largest(values: Iterable[Number | None]) -> Number | None:
    """Returns the largest of what is known."""
    return max((value for value in values if value is not None), default=None)
