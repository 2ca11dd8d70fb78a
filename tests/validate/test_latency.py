"""Sessions become one latency; everything that speaks against it is named."""

import numpy as np
import pytest

from edgekit.records import LatencySession
from edgekit.validate.latency import summarize


def quiet(count: int = 300, level: float = 5.0, seed: int = 1) -> tuple[float, ...]:
    noise = np.random.default_rng(seed).exponential(0.05, count)
    return tuple((level + noise).tolist())


def session(
    samples: tuple[float, ...] | None = None, **facts: float | str | None
) -> LatencySession:
    known = {
        "threads": 1,
        "warmup_runs": 10,
        "context_switches_involuntary": 0,
        "load_average": 1.0,
        "governor": None,
        "frequency_before_khz": 2_000_000,
        "frequency_after_khz": 1_900_000,
    }
    return LatencySession.model_validate({"samples_ms": samples or quiet(), **known, **facts})


def test_quiet_sessions_have_no_disturbance() -> None:
    sessions = [session(quiet(seed=s)) for s in range(5)]
    latency = summarize(sessions, 90, "this machine", "LiteRT 2", cores=2)
    assert latency.disturbances == ()
    assert latency.samples == 1500
    assert len(latency.session_percentile_ms) == 5
    pooled = np.sort(np.concatenate([s.samples_ms for s in sessions]))
    assert latency.p50_ms == pooled[749]
    assert latency.p90_ms == pooled[1349]
    assert latency.p95_ms == pooled[1424]
    assert latency.p99_ms == pooled[1484]
    assert latency.max_ms == pooled[-1]
    assert 750 < latency.effective_samples <= 1500
    assert latency.session_percentile_ms[0] == sorted(sessions[0].samples_ms)[269]


@pytest.mark.parametrize(
    ("disturbed", "words"),
    [
        (session(load_average=3.1), "session 2: load 3.1 on 2 cores"),
        (session(frequency_after_khz=1_700_000), "CPU frequency went from 2000 to 1700 MHz"),
        (session(frequency_after_khz=2_300_000), "CPU frequency went from 2000 to 2300 MHz"),
        (session(quiet(200) + quiet(100, 6.0)), "session 2: slowed down from 5.0"),
        (session(quiet(28)), "session 2: 28 samples, p90 needs 29"),
    ],
)
def test_each_disturbance_is_named(disturbed: LatencySession, words: str) -> None:
    latency = summarize([session(), disturbed], 90, "d", "r", cores=2)
    assert len(latency.disturbances) == 1
    assert words in latency.disturbances[0]


@pytest.mark.parametrize(
    "fine",
    [
        session(load_average=2.2),
        session(frequency_after_khz=None),
        session(frequency_before_khz=None),
        session(quiet(200) + quiet(100, 5.3)),
        session(quiet(200) + quiet(100, 4.0)),
        session(quiet(29)),
    ],
)
def test_what_lies_within_the_thresholds_is_quiet(fine: LatencySession) -> None:
    assert summarize([session(), fine], 90, "d", "r", cores=2).disturbances == ()


def test_what_surrounded_the_sessions_is_reported() -> None:
    first = session(context_switches_involuntary=3, governor="powersave")
    second = session(context_switches_involuntary=4, governor="performance")
    latency = summarize([first, second, first], 90, "d", "r", cores=2)
    assert latency.context_switches_involuntary == 10
    assert latency.governor == "performance and powersave"
    assert summarize([session()], 90, "d", "r").governor is None


def test_coarse_timer() -> None:
    ticks = tuple(np.round(np.array(quiet(level=0.5)) / 0.1) * 0.1)
    latency = summarize([session(ticks)], 50, "d", "r", cores=2)
    assert "timer resolution of about 0.1 ms" in latency.disturbances[0]
    same = summarize([session((5.0,) * 300)], 50, "d", "r", cores=2)
    assert same.disturbances == ("all samples are 5 ms: the timer is too coarse",)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"clock_step_ms": 0.06}, "steps of 0.06 ms, and a call took 5.0"),
        ({"clock_step_ms": 0.5, "calls_per_sample": 8}, "steps of 0.5 ms, and 8 calls took 40"),
    ],
)
def test_a_clock_that_is_known_to_be_coarse(facts: dict[str, float], words: str) -> None:
    latency = summarize([session(), session(**facts)], 90, "d", "r", cores=2)
    assert len(latency.disturbances) == 1
    assert latency.disturbances[0].startswith("session 2: the clock moves in ")
    assert words in latency.disturbances[0]
    # The twin: a step that is less than a percent of what a sample spans.
    fine = {**facts, "clock_step_ms": facts["clock_step_ms"] / 1.5}
    latency = summarize([session(), session(**fine)], 90, "d", "r", cores=2)
    assert latency.disturbances == ()
    assert latency.clock_step_ms == fine["clock_step_ms"]
    assert latency.session_calls_per_sample == (1, int(facts.get("calls_per_sample", 1)))


def test_samples_of_zero_are_no_times() -> None:
    some = session((0.0, *quiet(299)))
    latency = summarize([session(), some], 90, "d", "r", cores=2)
    assert latency.disturbances == ("1 of 600 samples are 0 ms: the timer is too coarse",)
    nothing = session((0.0,) * 300)
    latency = summarize([nothing], 90, "d", "r", cores=2)
    assert latency.disturbances == ("300 of 300 samples are 0 ms: the timer is too coarse",)


@pytest.mark.parametrize("sessions", [[], [session().model_copy(update={"samples_ms": ()})]])
def test_nothing_measured_is_no_latency(sessions: list[LatencySession]) -> None:
    with pytest.raises(ValueError, match="at least one session"):
        summarize(sessions, 90, "d", "r")
