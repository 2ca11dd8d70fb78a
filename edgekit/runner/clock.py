"""How fine the clock is, and how many calls make a sample that it can tell.

A sample is the difference of two readings, so it is wrong by up to one step of the clock. Where one
call takes few steps, its percentiles are those of the clock; then a sample is the mean of so many
calls, one behind the other, that a step matters little. Single slow calls do not show in it, so
whoever shows the samples has to say how many calls they are the means of.
"""

from __future__ import annotations

from collections.abc import Callable

from .refusal import Refusal

# A step is then at most half a percent of a sample. Judging doubts samples of which it is more than
# one percent (`edgekit.validate.latency.TIMER_SHARE`), so calls may get twice as fast meanwhile.
SAMPLE_STEPS = 200
# The fewest samples of a session, 200, then take less than a minute on any clock. On one whose step
# is above 1.25 ms a sample may span fewer steps for it, which judging sees.
LONGEST_SAMPLE_SECONDS = 0.25
# Batches of which the shortest decides: one that is interrupted must not end the search.
TRIES = 5
CHANGES = 50
# A clock with a step of a second is seen to move; this many readings take about half of one.
MOST_READINGS = 10_000_000


def step_ns(clock: Callable[[], int]) -> int:
    """Returns the clock's step: the least by which it moved from one reading to the next.

    Where the clock is finer than the time that a reading takes, this is that time.

    Args:
        clock: The one that calls are timed with; returns nanoseconds.

    Raises:
        Refusal: If the clock does not move.
    """
    least = changes = 0
    last = clock()
    for _ in range(MOST_READINGS):
        now = clock()
        if now > last:
            least = min(least, now - last) if changes else now - last
            changes += 1
            if changes == CHANGES:
                break
        last = now
    if not changes:
        raise Refusal(
            "DeviceError", "a clock that stands still", "a clock that moves", "check the device"
        )
    return least


def calls_per_sample(timed_ns: Callable[[int], int], step: int) -> tuple[int, int]:
    """Returns how many calls make one sample, and how many were made to find out.

    It is the first power of two of which even the shortest of some batches spans `SAMPLE_STEPS`
    steps, or of which twice as many calls would take longer than `LONGEST_SAMPLE_SECONDS`.

    Args:
        timed_ns: Makes so many calls, one behind the other; returns their time in nanoseconds.
        step: Of the clock, in nanoseconds.
    """
    calls, made = 1, 0
    while True:
        shortest = min(timed_ns(calls) for _ in range(TRIES))
        made += TRIES * calls
        if shortest >= SAMPLE_STEPS * step or 2 * shortest > 1e9 * LONGEST_SAMPLE_SECONDS:
            return calls, made
        calls *= 2
