"""Budgets against measurements: every status, and properties that hold for all inputs."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as some

from edgekit.records import Accuracy, Check, Latency, PairedDrop, Status, Verdict
from edgekit.report.sentences import what_follows, what_follows_of_file
from edgekit.validate import statistics
from edgekit.validate.accuracy import measure_accuracy
from edgekit.validate.verdict import (
    check_accuracy_drop,
    check_accuracy_floor,
    check_believable_latency,
    check_device,
    check_informative,
    check_latency,
    check_memory,
    check_plausible,
    check_size,
    combine,
    exit_code,
    in_words,
)

PASS, MISS = Status.PASS, Status.MISS
INCONCLUSIVE, UNMEASURED = Status.INCONCLUSIVE, Status.UNMEASURED


def drop_of(b: int, c: int, n: int) -> PairedDrop:
    return PairedDrop(
        images=n,
        reference_only=b,
        model_only=c,
        drop_points=100 * (b - c) / n,
        upper_points=100 * statistics.tango_upper(b, c, n),
        lower_points=100 * statistics.tango_lower(b, c, n),
        mcnemar_p=statistics.mcnemar_p(b, c),
        agreement=1 - (b + c) / n,
    )


def accuracy_of(correct: int, images: int) -> Accuracy:
    low, high = statistics.wilson(correct, images)
    return Accuracy(
        images=images,
        top1=correct / images,
        top1_low=low,
        top1_high=high,
        top5=None,
        recall_per_class=(),
        confusion=(),
    )


def latency_of(*sessions: float, disturbances: tuple[str, ...] = ()) -> Latency:
    return Latency(
        device="this machine",
        runtime="LiteRT 2",
        threads=1,
        percentile=90,
        session_percentile_ms=sessions,
        p50_ms=1,
        p90_ms=1,
        p95_ms=1,
        p99_ms=1,
        max_ms=1,
        samples=1000,
        effective_samples=900,
        context_switches_involuntary=0,
        governor=None,
        disturbances=disturbances,
    )


@pytest.mark.parametrize(
    ("counts", "budget", "status"),
    [
        ((0, 0, 268), 1.0, PASS),
        ((0, 0, 267), 1.0, INCONCLUSIVE),
        ((30, 5, 400), 2.0, MISS),
        ((8, 5, 400), 2.0, INCONCLUSIVE),
        ((0, 20, 400), 0.0, PASS),
    ],
)
def test_accuracy_drop(counts: tuple[int, int, int], budget: float, status: Status) -> None:
    assert check_accuracy_drop(drop_of(*counts), budget).status == status


def test_inconclusive_drop_names_the_images_that_would_decide() -> None:
    check = check_accuracy_drop(drop_of(0, 0, 100), 1.0)
    assert "about 268 images would decide" in check.detail
    equal = check_accuracy_drop(drop_of(3, 1, 100), 2.0)
    assert "no number of images decides" in equal.detail
    zero = check_accuracy_drop(drop_of(0, 0, 100), 0.0)
    assert (zero.status, "no number of images" in zero.detail) == (INCONCLUSIVE, True)


def test_a_drop_that_nothing_was_compared_for_is_open_where_the_accuracy_is_known() -> None:
    known = check_accuracy_drop(None, 1.0, "no reference", accuracy=accuracy_of(9, 10))
    assert (known.status, known.measured) == (INCONCLUSIVE, "90.0 % right, compared with nothing")
    assert check_accuracy_drop(None, 1.0, "no reference").status == UNMEASURED


def test_in_words_say_what_was_measured_and_what_nobody_asked() -> None:
    accuracy, drop, latency = accuracy_of(869, 1000), drop_of(7, 2, 1000), latency_of(3, 3)
    assert in_words(accuracy, drop, latency, None, None) == (
        "86.9 % right of 1000 pictures; lost 0.5 points against the float model; no accuracy floor "
        "asked; no latency budget asked"
    )
    assert in_words(accuracy, drop_of(2, 7, 1000), latency, 80.0, 5.0) == (
        "86.9 % right of 1000 pictures; gained 0.5 points against the float model"
    )
    assert in_words(accuracy, None, None, 80.0, 5.0) == (
        "86.9 % right of 1000 pictures; compared with no float model"
    )
    assert in_words(None, None, latency, None, 5.0) == "accuracy not measured"
    assert in_words(None, None, None, None, None) == "nothing was measured on the device"


def verdict_of(target: str, status: Status) -> Verdict:
    return Verdict(
        target=target, artifact_path="m.tflite", artifact_sha256="0", checks=(), status=status
    )


def test_what_follows_names_the_exit_code_and_the_next_command() -> None:
    run = Path("my runs")
    assert what_follows([verdict_of("a", PASS)], run) == ()
    (said,) = what_follows([verdict_of("a", PASS), verdict_of("b", UNMEASURED)], run)
    assert said.startswith("Exit code 5: nothing failed. ")
    assert "edgekit package 'my runs' --for b writes what runs there" in said
    assert "edgekit validate 'my runs/artifacts/m.tflite' --data DIR --target b" in said
    missed, undecided, absent = what_follows(
        [verdict_of(name, status) for name, status in zip("abcd", (MISS, INCONCLUSIVE, UNMEASURED,
                                                                   UNMEASURED), strict=True)],
        run,
    )  # fmt: skip
    assert missed.startswith("Exit code 4: over budget for a; ")
    assert missed.endswith("edgekit package 'my runs' --for a --allow-miss")
    assert undecided.startswith("measured, but not decided for b; ")
    assert "and c and d were not measured" in absent
    assert "--for c --for d writes" in absent
    assert not [said for said in (undecided, absent) if "Exit code" in said]


def test_what_follows_of_a_file_alone_offers_no_package() -> None:
    file, data = Path("my.tflite"), Path("my pictures")
    assert what_follows_of_file([verdict_of("a", PASS)], file, data) == ()
    missed, absent = what_follows_of_file(
        [verdict_of("a", MISS), verdict_of("b", UNMEASURED)], file, data
    )
    assert missed.endswith("stands above.")
    assert absent.endswith(
        "edgekit validate my.tflite --data 'my pictures' --target b --measurements FILE"
    )
    assert "--device TARGET=WHERE" in absent
    assert not [said for said in (missed, absent) if "edgekit package" in said]


@pytest.mark.parametrize(
    ("correct", "floor", "status"), [(95, 85, PASS), (95, 99, MISS), (95, 93, INCONCLUSIVE)]
)
def test_accuracy_floor(correct: int, floor: float, status: Status) -> None:
    check = check_accuracy_floor(accuracy_of(correct, 100), floor)
    assert check.status == status
    assert ("images would decide" in check.detail) == (status == INCONCLUSIVE)


@pytest.mark.parametrize(
    ("latency", "status", "words"),
    [
        (latency_of(4, 4, 4, 4, 5), PASS, "every session is within"),
        (latency_of(6, 7, 6, 6, 5.1), MISS, "every session is over"),
        (latency_of(4, 4, 4, 4, 5.1), INCONCLUSIVE, "1 of 5 sessions are over"),
        (latency_of(4, 4, 4, 4), INCONCLUSIVE, "4 sessions cannot decide; 5 can"),
        (latency_of(6, 6, 6, 6), INCONCLUSIVE, "4 sessions cannot decide; 5 can"),
        (latency_of(4, 4, 4, 4, 4, disturbances=("load 9",)), INCONCLUSIVE, "disturbed: load 9"),
        (latency_of(6, 6, 6, 6, 6, disturbances=("load 9",)), INCONCLUSIVE, "disturbed: load 9"),
        (latency_of(), UNMEASURED, "not measured"),
    ],
)
def test_latency(latency: Latency, status: Status, words: str) -> None:
    check = check_latency(latency, 5.0)
    assert check.status == status
    assert words in check.detail
    if status == INCONCLUSIVE:
        assert "measure again" in check.detail


def looks(*measurements: tuple[float, ...]) -> tuple[Latency, ...]:
    return tuple(latency_of(*sessions) for sessions in measurements)


NOISY = latency_of(9, 9, 9, 9, 9, disturbances=("load 9",))


@pytest.mark.parametrize(
    ("earlier", "last", "status", "words"),
    [
        # One over in five: the second measurement decides by luck of 11/1024, of 1.125 % allowed.
        (looks((4, 4, 4, 4, 6)), (4,) * 5, PASS, "by luck in 1.07% of cases, of 1.13% allowed"),
        (looks((6, 6, 6, 6, 4)), (6,) * 5, MISS, "9 of 10 sessions are over the budget"),
        (looks((4, 4, 4, 6, 6)), (4,) * 5, INCONCLUSIVE, "2 of 10 sessions are over the budget"),
        (looks((4, 4, 4, 4, 6)), (4, 4, 4, 4, 6), INCONCLUSIVE, "measure again"),
        # What was within is not forgotten, nor what was over.
        (looks((4,) * 5), (4,) * 5, PASS, "every session is within"),
        (looks((4,) * 5), (6,) * 5, INCONCLUSIVE, "5 of 10 sessions are over the budget"),
        (looks((6,) * 5), (4,) * 5, INCONCLUSIVE, "5 of 10 sessions are over the budget"),
        # Too few to decide are no look, but count.
        (looks((4, 4, 4)), (4, 4), PASS, "every session is within"),
        (looks((4, 4)), (4, 4), INCONCLUSIVE, "4 sessions cannot decide; 5 can"),
        # Neither is a disturbed one, whatever its times, before or behind.
        ((NOISY,), (4,) * 5, PASS, "measurement 1 was disturbed: load 9"),
        ((NOISY, NOISY), (4, 4, 4, 4, 6), INCONCLUSIVE, "1 of 5 sessions are over"),
    ],
)
def test_latency_measured_again(
    earlier: tuple[Latency, ...], last: tuple[float, ...], status: Status, words: str
) -> None:
    check = check_latency(latency_of(*last), 5.0, earlier=earlier)
    assert check.status == status
    assert words in check.detail
    assert f"measured {len(earlier) + 1} times" in check.detail


def test_the_check_says_that_percentiles_are_of_means() -> None:
    single = latency_of(4, 4, 4, 4, 4)
    batches = single.model_copy(update={"session_calls_per_sample": (8, 8, 8, 8, 16)})
    check = check_latency(batches, 5.0)
    assert check.status == PASS
    assert check.measured == "p90 of means of 8 to 16 calls 4 to 4 ms over 5 sessions"
    assert "single slow calls do not show in means" in check.detail
    # The twin: single calls.
    alone = single.model_copy(update={"session_calls_per_sample": (1,) * 5})
    for latency in (single, alone):
        check = check_latency(latency, 5.0)
        assert check.measured == "p90 4 to 4 ms over 5 sessions"
        assert "means" not in check.detail


@pytest.mark.parametrize(("times", "status"), [((4,) * 5, PASS), ((6,) * 5, MISS)])
def test_noise_does_not_wash_a_verdict_out(times: tuple[float, ...], status: Status) -> None:
    check = check_latency(NOISY, 5.0, earlier=looks(times))
    assert check.status == status
    assert "measurement 2 was disturbed: load 9" in check.detail
    # Twin: noise alone decides nothing.
    assert check_latency(NOISY, 5.0, earlier=(NOISY,)).status == INCONCLUSIVE


def test_a_session_too_fast_to_be_believed_is_not_forgotten() -> None:
    quick, usual = latency_of(0.1, 4, 4), latency_of(4, 4, 4)
    assert check_believable_latency(usual, 1.0, earlier=(quick,)).status == INCONCLUSIVE
    assert check_believable_latency(usual, 1.0, earlier=(usual,)).status == PASS


def test_size_and_memory_are_exact() -> None:
    assert check_size(100, 100).status == PASS
    assert check_size(101, 100).status == MISS
    assert check_memory(100, 100).status == PASS
    assert check_memory(101, 100).status == MISS


def test_what_was_not_measured_is_unmeasured_and_says_why() -> None:
    why = "no such device attached"
    for check in (
        check_accuracy_drop(None, 1.0, why),
        check_accuracy_floor(None, 90, why),
        check_latency(None, 5.0, why),
        check_memory(None, 1000, why),
        check_size(None, 1000, why),
        check_device(why),
    ):
        assert (check.status, check.detail) == (UNMEASURED, why)


def test_an_unmeasured_device_never_passes() -> None:
    """Size counts for an absent device, and can miss, but never makes it pass."""
    absent = [check_latency(None, 5.0), check_accuracy_drop(None, 1.0)]
    assert combine([check_size(1, 100), *absent]) == UNMEASURED
    assert combine([check_size(101, 100), *absent]) == MISS
    assert combine([]) == UNMEASURED


def test_plausible() -> None:
    """Beside a better reading and luck, a single answer or a single label is said to be one."""
    names = ("a", "b")

    def check(counts: list[list[int]], better: str | None = None) -> Check:
        return check_plausible(np.array(counts), 0, names, better, "nothing fits better")

    good = check([[45, 5, 0], [5, 45, 0]])
    assert (good.status, good.measured) == (PASS, "90.0 % at --label-offset 0")
    misread = check([[45, 5, 0], [5, 45, 0]], "another reading")
    assert (misread.status, misread.detail) == (INCONCLUSIVE, "another reading")
    for counts, words in (
        ([[25, 25, 0], [25, 25, 0]], "no better than guessing"),
        ([[90, 0, 0], [10, 0, 0]], "all 100 answers are 'a' whatever the picture"),
        ([[0, 0, 90], [0, 0, 10]], "all 100 answers are 'none of the classes'"),
        ([[90, 10, 0], [0, 0, 0]], "all 100 pictures are of 'a'"),
    ):
        poor = check(counts)
        assert poor.status == INCONCLUSIVE
        assert words in poor.detail


def test_answers_that_say_nothing_are_told_and_others_add_no_check() -> None:
    def counted(counts: list[list[int]]) -> Accuracy:
        labels, answers = (
            np.repeat(kind.ravel(), np.array(counts).ravel()).astype(np.int32)
            for kind in np.indices((2, 2))
        )
        return measure_accuracy(np.eye(2, dtype=np.float32)[answers], labels, 2, np.arange(2))

    dead = check_informative(counted([[150, 0], [27, 0]]), ("a", "b"))
    assert dead is not None
    assert (dead.name, dead.status) == ("informative", INCONCLUSIVE)
    assert "all 177 answers are 'a' whatever the picture" in dead.detail
    # Weak: below the share of the largest class, and yet it knows something.
    assert check_informative(counted([[130, 20], [12, 15]]), ("a", "b")) is None


def check_of(status: Status) -> Check:
    return Check(name="n", status=status, measured="", budget="", detail="")


def test_combine_takes_the_worst() -> None:
    order = [PASS, INCONCLUSIVE, UNMEASURED, MISS]
    for chosen in itertools.product(order, repeat=3):
        worst = max(chosen, key=order.index)
        assert combine([check_of(status) for status in chosen]) == worst


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([PASS, PASS], 0),
        ([PASS, UNMEASURED, MISS], 4),
        ([PASS, INCONCLUSIVE], 5),
        ([UNMEASURED], 5),
        ([], 5),
    ],
)
def test_exit_code(statuses: list[Status], code: int) -> None:
    assert exit_code(statuses) == code


# Larger is better; a looser budget must never move a status to the left.
ORDER = [MISS, INCONCLUSIVE, PASS]
counts = some.tuples(some.integers(0, 40), some.integers(0, 40), some.integers(80, 2000))
times = some.lists(some.floats(0.1, 50), min_size=1, max_size=7)
budgets = some.tuples(some.floats(0, 30), some.floats(0, 30))


@given(counts, budgets)
def test_loosening_a_drop_budget_never_hurts(
    found: tuple[int, int, int], pair: tuple[float, float]
) -> None:
    drop = drop_of(*found)
    tight, loose = (check_accuracy_drop(drop, b).status for b in sorted(pair))
    assert ORDER.index(tight) <= ORDER.index(loose)


@given(times, budgets, some.booleans())
def test_loosening_a_latency_budget_never_hurts(
    sessions: list[float], pair: tuple[float, float], noisy: bool
) -> None:
    latency = latency_of(*sessions, disturbances=("load 9",) if noisy else ())
    tight, loose = (check_latency(latency, b).status for b in sorted(pair))
    assert ORDER.index(tight) <= ORDER.index(loose)
    if noisy or len(sessions) < 5:
        assert {tight, loose} == {INCONCLUSIVE}


@given(some.integers(0, 200), some.tuples(some.floats(0, 100), some.floats(0, 100)))
def test_lowering_a_floor_never_hurts(correct: int, pair: tuple[float, float]) -> None:
    accuracy = accuracy_of(correct, 200)
    tight, loose = (
        check_accuracy_floor(accuracy, floor).status for floor in sorted(pair, reverse=True)
    )
    assert ORDER.index(tight) <= ORDER.index(loose)


def test_five_sessions_hold_their_error_rate() -> None:
    """When the median session just misses the budget, five in a row pass in 0.5^5 = 3.1 %."""
    levels = np.random.default_rng(4).lognormal(np.log(10.0), 0.1, (4000, 5))
    passed = [check_latency(latency_of(*row), 10.0).status == PASS for row in levels.tolist()]
    # Three standard errors of 3.1 % in 4000 trials are 0.8 points; the twin asks one session.
    assert np.mean(passed) == pytest.approx(0.5**5, abs=0.008)
    assert np.mean(levels[:, 0] <= 10.0) > 0.4


def test_measuring_until_it_passes_holds_the_error_rate() -> None:
    """The median session just misses the budget, and somebody measures up to eight times."""
    levels = np.random.default_rng(5).lognormal(np.log(10.0), 0.1, (2000, 8, 5)).tolist()
    measurements = [looks(*map(tuple, repeats)) for repeats in levels]

    def ever_passes(found: tuple[Latency, ...], *, all_count: bool) -> bool:
        return any(
            check_latency(last, 10.0, earlier=found[:index] if all_count else ()).status == PASS
            for index, last in enumerate(found)
        )

    passed = np.mean([ever_passes(found, all_count=True) for found in measurements])
    # Three standard errors of 5 % in 2000 trials are 1.5 points; what is spent by the eighth look
    # is a little less than 5 %.
    assert passed <= 0.05 + 0.015
    # The twin, each measurement for itself until one passes: 1 - (31/32)^8 = 22 %.
    twin = np.mean([ever_passes(found, all_count=False) for found in measurements])
    assert twin == pytest.approx(1 - (31 / 32) ** 8, abs=0.03)


def test_measuring_again_finds_what_one_measurement_leaves_open() -> None:
    """Nine of ten sessions are within the budget: five in a row are 59 %, five times five more."""
    levels = np.random.default_rng(6).random((500, 5, 5))
    decided = [0, 0]
    for repeats in np.where(levels < 0.9, 9.0, 11.0).tolist():
        found = looks(*map(tuple, repeats))
        statuses = [
            check_latency(last, 10.0, earlier=found[:index]).status
            for index, last in enumerate(found)
        ]
        decided[0] += statuses[0] == PASS
        decided[1] += statuses[-1] == PASS
    assert decided[0] / 500 == pytest.approx(0.9**5, abs=0.07)
    assert decided[1] / 500 > 0.9
