"""What the machine did between two looks."""

import dataclasses
import time

import pytest

from edgekit.runner.surroundings import Look, compare, look

BEFORE = Look(
    wall_seconds=100.0,
    own_cpu_seconds=5.0,
    busy_cpu_seconds=1000.0,
    switches=3,
    governor="performance",
    frequency_khz=2_000_000,
)


@pytest.mark.parametrize(
    ("busy", "own", "threads", "load"),
    [(10.0, 10.0, 1, 1.0), (15.0, 10.0, 1, 1.5), (20.0, 5.0, 2, 3.5), (9.9, 10.0, 1, 1.0)],
)
def test_load_is_own_threads_plus_what_others_used(
    busy: float, own: float, threads: int, load: float
) -> None:
    after = dataclasses.replace(
        BEFORE,
        wall_seconds=110.0,
        own_cpu_seconds=5.0 + own,
        busy_cpu_seconds=1000.0 + busy,
        switches=10,
        frequency_khz=1_500_000,
    )
    around = compare(BEFORE, after, threads, warmup_runs=7)
    assert around["load_average"] == pytest.approx(load)
    assert around["context_switches_involuntary"] == 7
    assert (around["frequency_before_khz"], around["frequency_after_khz"]) == (2_000_000, 1_500_000)
    assert (around["governor"], around["warmup_runs"]) == ("performance", 7)


def test_unreadable_times_fall_back_to_the_load_average() -> None:
    blind = dataclasses.replace(BEFORE, busy_cpu_seconds=None)
    assert compare(blind, BEFORE, 1, 5)["load_average"] >= 0


def test_a_real_look_counts_this_process() -> None:
    before = look()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    after = look()
    assert after.own_cpu_seconds - before.own_cpu_seconds >= 0.1
    if before.busy_cpu_seconds is not None and after.busy_cpu_seconds is not None:
        assert after.busy_cpu_seconds - before.busy_cpu_seconds >= 0.1
