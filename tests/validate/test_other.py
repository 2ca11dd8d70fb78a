"""Scores above which answers count: how many pictures of no class get one, and what it costs."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from edgekit.validate.other import Other, OtherScores, judge_other, threshold_of

RATE = 0.05


@pytest.mark.parametrize("count", [59, 92, 93, 400, 1000])
def test_as_many_are_above_as_clopper_and_pearson_allow(count: int) -> None:
    scores = np.random.default_rng(count).normal(size=count).astype(np.float32)
    above = int((scores > threshold_of(scores, RATE, 0.0)).sum())
    # `above` of `count` still show at most RATE with 95 % confidence, and one more does not.
    assert binom.cdf(above, count, RATE) <= 0.05 < binom.cdf(above + 1, count, RATE)


def test_too_few_to_show_it_let_none_of_them_pass() -> None:
    scores = np.arange(58, dtype=np.float32)
    assert threshold_of(scores, RATE, 0.0) == 57.0


def test_the_rate_is_kept_in_19_of_20_cases_and_by_a_plain_percentile_in_half_of_them() -> None:
    random = np.random.default_rng(1)
    kept = percentile = 0
    for _ in range(1000):
        scores = random.uniform(size=200).astype(np.float32)  # the true rate above t is 1 - t
        kept += 1 - threshold_of(scores, RATE, 0.0) <= RATE
        percentile += 1 - np.quantile(scores, 1 - RATE) <= RATE
    assert kept >= 930
    assert percentile < 650


def test_between_codes_it_lies_half_a_step_above() -> None:
    scores = np.array([0.25] * 59 + [0.5] * 3, np.float32)
    assert threshold_of(scores, 0.2, 0.25) == pytest.approx(0.375)
    assert threshold_of(scores[::-1].copy(), RATE, 0.25) == pytest.approx(0.625)


def judged(other: list[float], images: list[float], right: list[bool], deciding: int) -> tuple:
    scores = OtherScores(
        "0" * 64, 0.0, np.array(other, np.float32), np.array(images, np.float32), np.array(right)
    )
    found = judge_other(Other(Path("x"), deciding, 0.5), [scores])
    (file,) = found.files
    return file.threshold, file.false_accepts, file.accepted, file.accepted_right


def test_what_it_comes_to_is_counted_on_pictures_that_did_not_decide() -> None:
    other = [1.0, 2.0, 3.0, 3.5, 4.0, 2.0]
    assert judged(other, [3.0, 3.1, 9.0], [True, False, True], 3) == (3.0, 2, 2, 1)


def test_pictures_that_decided_count_nowhere_else() -> None:
    deciding = [float(score) for score in range(1, 13)]
    threshold, false_accepts, _, _ = judged([*deciding, 0.0, 99.0], [1.0], [True], 12)
    assert sum(score > threshold for score in deciding) > 0
    assert false_accepts == 1


def test_a_score_that_is_no_number_counts_nowhere() -> None:
    nan = float("nan")
    assert judged([1.0, nan, 3.0, nan, 4.0], [nan, 5.0], [True, True], 3) == (3.0, 1, 1, 1)
