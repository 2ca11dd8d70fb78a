"""Clocks coarser than a call: their step is found, and batches of calls bridge it."""

import itertools

import numpy as np
import pytest

from edgekit.runner.clock import (
    LONGEST_SAMPLE_SECONDS,
    SAMPLE_STEPS,
    TRIES,
    calls_per_sample,
    step_ns,
)
from edgekit.runner.refusal import Refusal
from edgekit.validate.latency import TIMER_SHARE


class Machine:
    """Time that passes only where something is done, shown by a clock with a step.

    Args:
        call_ns: What a call takes.
        step_ns: Least by which the clock moves.
        reading_ns: What a reading takes.
    """

    def __init__(self, call_ns: int, step_ns: int, reading_ns: int = 40) -> None:
        self.call_ns, self.step_ns, self.reading_ns = call_ns, step_ns, reading_ns
        self.time_ns = 17

    def clock(self) -> int:
        self.time_ns += self.reading_ns
        return self.time_ns // self.step_ns * self.step_ns

    def timed(self, calls: int) -> int:
        start = self.clock()
        self.time_ns += calls * self.call_ns
        return self.clock() - start

    def means(self, calls: int) -> list[float]:
        return [self.timed(calls) / calls for _ in range(300)]


def test_the_step_is_the_least_by_which_the_clock_moves() -> None:
    assert step_ns(Machine(1, 5_000).clock) == 5_000
    assert step_ns(Machine(1, 1_000_000).clock) == 1_000_000
    # A clock that is finer than a reading of it moves by what a reading takes.
    assert step_ns(Machine(1, 1).clock) == 40
    uneven = itertools.accumulate([5_000, 10_000] * 100)
    assert step_ns(lambda: next(uneven)) == 5_000


def test_a_clock_that_stands_still_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.runner.clock.MOST_READINGS", 1000)
    with pytest.raises(Refusal, match="stands still"):
        step_ns(lambda: 7)
    rare = iter([*[0] * 400, 9, *[9] * 1000])  # the twin: it moves once
    assert step_ns(lambda: next(rare)) == 9


@pytest.mark.parametrize("call_us", [1, 4, 6, 60, 900, 1500])
def test_a_batch_is_right_to_within_half_a_percent(call_us: int) -> None:
    machine = Machine(1000 * call_us, 5_000)
    calls, made = calls_per_sample(machine.timed, step_ns(machine.clock))
    means = np.array(machine.means(calls))
    true = machine.call_ns + machine.reading_ns / calls
    assert np.abs(means - true).max() <= true / SAMPLE_STEPS
    assert (calls == 1) == (call_us >= 5 * SAMPLE_STEPS)
    assert made == TRIES * (2 * calls - 1)
    # No larger than it must be, or slow calls hide in it for nothing.
    if calls > 1:
        assert calls * call_us < 2.1 * 5 * SAMPLE_STEPS


def test_the_twin_percentiles_of_single_calls_are_those_of_the_clock() -> None:
    machine = Machine(6_000, 5_000)
    found = np.percentile(machine.means(1), [50, 90])
    assert set(found) <= {5_000, 10_000}
    assert abs(found[1] / 6_040 - 1) > 0.6


def test_a_sample_does_not_take_for_ever() -> None:
    """The clocks of some browsers move in steps of 0.1 s, so that nobody is told by them."""
    machine = Machine(50_000, 100_000_000)
    calls, _ = calls_per_sample(machine.timed, step_ns(machine.clock))
    assert calls * machine.call_ns <= 1.1e9 * LONGEST_SAMPLE_SECONDS
    # Judging sees it: a step is more of a sample than it lets pass.
    assert machine.step_ns > TIMER_SHARE * calls * machine.call_ns
    slow = Machine(400_000_000, 1_000)
    assert calls_per_sample(slow.timed, 1_000) == (1, TRIES)


def test_what_is_aimed_at_is_twice_what_is_doubted() -> None:
    assert pytest.approx(2) == TIMER_SHARE * SAMPLE_STEPS
