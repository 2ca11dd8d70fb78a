"""Formulas against published numbers, brute force and seeded simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from edgekit.validate import statistics as st


@pytest.mark.parametrize(("b", "c"), [(10, 3), (3, 10), (1, 0), (25, 25)])
def test_tango_reduces_to_mcnemar(b: int, c: int) -> None:
    assert st.tango_z(b, c, 200, 0.0) == pytest.approx((b - c) / math.sqrt(b + c))


def _likelihood(b: int, c: int, n: int, first: float, second: float) -> float:
    def term(count: int, probability: float) -> float:
        if count == 0:
            return 0.0
        return count * math.log(probability) if probability > 0 else -math.inf

    return term(b, first) + term(c, second) + term(n - b - c, 1 - first - second)


@pytest.mark.parametrize(("b", "c", "n"), [(5, 2, 60), (0, 3, 40), (7, 0, 30), (0, 0, 50)])
@pytest.mark.parametrize("drop", [-0.2, -0.02, 0.01, 0.1, 0.3])
def test_tango_variance_is_that_of_the_constrained_likelihood(
    b: int, c: int, n: int, drop: float
) -> None:
    """The closed form of q must be where the likelihood with p_b = p_c + drop is largest."""
    low, high = max(0.0, -drop), (1 - drop) / 2
    grid = np.linspace(low, high, 200_001)
    best = max(grid[::2_000], key=lambda q: _likelihood(b, c, n, q + drop, q))
    near = grid[np.abs(grid - best) <= 2 * (high - low) / 100]
    q = max(near, key=lambda q: _likelihood(b, c, n, q + drop, q))
    expected = (b - c - n * drop) / math.sqrt(n * (2 * q + drop * (1 - drop)))
    assert st.tango_z(b, c, n, drop) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 10), (5, 2, 60), (60, 0, 60), (0, 60, 60)])
def test_tango_limits_enclose_the_estimate_and_mirror(b: int, c: int, n: int) -> None:
    upper, lower = st.tango_upper(b, c, n), st.tango_lower(b, c, n)
    assert -1 <= lower <= (b - c) / n <= upper <= 1
    assert lower == pytest.approx(-st.tango_upper(c, b, n))
    if upper < 1:
        assert st.tango_z(b, c, n, upper) == pytest.approx(-1.6448536, abs=1e-6)


def test_impossible_counts_are_refused() -> None:
    for counts in ((5, 6, 10), (-1, 0, 10), (0, 0, 0)):
        with pytest.raises(ValueError, match="counts"):
            st.tango_upper(*counts)


@pytest.mark.parametrize(("margin", "images"), [(0.01, 268), (0.02, 133), (0.05, 52)])
def test_fewest_images_that_certify_a_margin(margin: float, images: int) -> None:
    assert st.images_to_certify(margin) == images
    assert st.tango_upper(0, 0, images) <= margin < st.tango_upper(0, 0, images - 1)


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.1, math.nan])
def test_margins_that_make_no_sense(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        st.images_to_certify(margin)


@pytest.mark.parametrize(("b", "c", "n", "margin"), [(2, 1, 100, 0.02), (8, 2, 100, 0.02)])
def test_images_to_decide_is_where_the_limit_touches_the_margin(
    b: int, c: int, n: int, margin: float
) -> None:
    number = st.images_to_decide(b, c, n, margin)
    assert number is not None
    z = st.tango_z(b * number / n, c * number / n, number, margin)
    assert abs(z) == pytest.approx(1.645, abs=0.01)
    # The nearest whole multiples of the observed counts lie on either side of the decision.
    limit = st.tango_upper if (b - c) / n < margin else st.tango_lower
    short, enough = number // n, number // n + 1
    side = (b - c) / n < margin
    assert (limit(b * enough, c * enough, n * enough) < margin) == side
    assert (limit(b * short, c * short, n * short) < margin) != side


def test_no_number_decides_when_the_drop_equals_the_margin() -> None:
    assert st.images_to_decide(3, 1, 100, 0.02) is None
    assert st.images_to_decide(0, 0, 100, 0.0) is None


def _verdicts(drop: float, discordance: float, images: int, trials: int) -> tuple[float, float]:
    """Returns how often Tango's rule and the point estimate pass at a true drop of the margin."""
    rng = np.random.default_rng(11)
    rates = [(discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance]
    counts = rng.multinomial(images, rates, trials)
    tango = np.mean([st.tango_upper(b, c, images) <= drop for b, c, _ in counts.tolist()])
    point = np.mean((counts[:, 0] - counts[:, 1]) / images <= drop)
    return float(tango), float(point)


@pytest.mark.parametrize(("drop", "discordance", "images"), [(0.02, 0.05, 200), (0.02, 0.05, 1000)])
def test_false_pass_rate_at_the_margin(drop: float, discordance: float, images: int) -> None:
    """Tango passes in about 5 %; its twin, the point estimate, in more than 40 %."""
    tango, point = _verdicts(drop, discordance, images, trials=2000)
    # 2000 trials: three standard errors of 5 % are 1.5 points; the rule itself has steps.
    assert 0.02 < tango < 0.07
    assert point > 0.40


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (9, 3), (3, 9), (40, 60), (700, 650)])
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert st.mcnemar_p(b, c) == pytest.approx(expected)


def test_wilson_against_a_published_interval() -> None:
    """Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (correct, images), interval in published.items():
        assert st.wilson(correct, images) == pytest.approx(interval, abs=5e-5)
    assert st.wilson(7, 7)[1] == 1.0


def test_images_to_decide_a_floor() -> None:
    number = st.images_to_decide_floor(92, 100, 0.9)
    assert number is not None
    whole = math.ceil(number / 100) * 100
    assert st.wilson(92 * whole // 100, whole)[0] >= 0.9
    assert st.wilson(92 * (whole - 100) // 100, whole - 100)[0] < 0.9
    assert st.images_to_decide_floor(90, 100, 0.9) is None
    assert st.images_to_decide_floor(90, 100, 1.0) == 100


@pytest.mark.parametrize(
    ("percentile", "rank"), [(50, 5), (90, 9), (91, 10), (99, 10), (100, 10), (1, 1)]
)
def test_order_quantile_is_a_sample(percentile: int, rank: int) -> None:
    assert st.order_quantile(list(range(10, 0, -1)), percentile) == rank


def test_order_quantile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no samples"):
        st.order_quantile([], 50)


@pytest.mark.parametrize(("percentile", "needed"), [(50, 5), (90, 29), (95, 59), (99, 299)])
def test_samples_needed(percentile: int, needed: int) -> None:
    assert st.samples_needed(percentile) == needed
    assert st.order_upper(range(needed), percentile) == needed - 1
    assert st.order_upper(range(needed - 1), percentile) is None


def test_order_upper_is_the_binomial_rank() -> None:
    for n, percentile in itertools.product((64, 200), (50, 90)):
        ranks = [k for k in range(1, n + 1) if binom.cdf(k - 1, n, percentile / 100) >= 0.95]
        assert st.order_upper(range(1, n + 1), percentile) == ranks[0]


def test_effective_samples_of_an_autoregression() -> None:
    """An AR(1) series with coefficient r has tau = (1 + r) / (1 - r): 19 for 0.9, 1 for 0."""
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(20_000)
    series = np.empty_like(noise)
    series[0] = noise[0]
    for i in range(1, noise.size):
        series[i] = 0.9 * series[i - 1] + noise[i]
    # The estimate of tau has a relative error of about sqrt(2 (2M + 1) / n), here 10 %.
    assert st.effective_samples(series) == pytest.approx(20_000 / 19, rel=0.3)
    assert st.effective_samples(noise) == pytest.approx(20_000, rel=0.1)


def test_effective_samples_at_the_ends() -> None:
    assert st.effective_samples([]) == 0
    assert st.effective_samples([1.0] * 50) == 50
    assert st.effective_samples([1.0, 2.0] * 50) == 100
    assert st.effective_samples([0.0] * 50 + [1.0] * 50) < 10
    assert st.pooled_effective_samples([[1.0] * 50, [2.0] * 50]) == 100


@pytest.mark.parametrize("sessions", [5, 6, 7, 10, 20])
def test_all_looks_together_spend_no_more_than_the_error(sessions: int) -> None:
    levels = [st.sign_level(look, sessions) for look in range(1, 200)]
    assert sum(levels) <= 0.05 + 1e-12
    assert sum(levels) == pytest.approx(0.05)
    assert levels[0] == 0.5**sessions
    with pytest.raises(ValueError, match="look 1 with 4 sessions"):
        st.sign_level(1, 4)  # 6.3 % alone
    with pytest.raises(ValueError, match="look 0"):
        st.sign_level(0, sessions)


def test_sign_p() -> None:
    assert st.sign_p(0, 5) == 0.5**5
    assert st.sign_p(1, 10) == 11 / 1024
    assert st.sign_p(10, 10) == 1.0
    # The second of two looks at five sessions each can decide; with half of what is left, it
    # could not.
    left = 1 - st.CONFIDENCE - 0.5**5
    assert 0.5 * left < st.sign_p(1, 10) <= st.sign_level(2, 5)
    with pytest.raises(ValueError, match="counts 6"):
        st.sign_p(6, 5)


def _exact_agreement(labels: list[int], answers: list[int]) -> float:
    agreed = sum(a == b for a, b in zip(labels, answers, strict=True))
    orders = list(itertools.permutations(labels))
    as_good = [sum(a == b for a, b in zip(o, answers, strict=True)) >= agreed for o in orders]
    return sum(as_good) / len(orders)


@pytest.mark.parametrize(
    ("labels", "answers"),
    [
        ([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]),
        ([0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2, 0]),
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 5, 4]),
        ([0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]),
        ([0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]),
    ],
)
def test_agreement_is_that_of_all_permutations(labels: list[int], answers: list[int]) -> None:
    confusion = np.zeros((6, 7), int)
    np.add.at(confusion, (labels, answers), 1)
    exact = _exact_agreement(labels, answers)
    spread = 4 * math.sqrt(exact * (1 - exact) / st.PERMUTATIONS)
    assert abs(st.agreement_p(confusion) - exact) <= spread + 1 / st.PERMUTATIONS
    assert st.agreement_p(confusion) == st.agreement_p(confusion)


def test_one_answer_or_one_label_agrees_with_nothing() -> None:
    assert st.agreement_p([[150, 0, 0], [27, 0, 0]]) == 1.0
    assert st.agreement_p([[150, 27, 0], [0, 0, 0]]) == 1.0
    assert st.agreement_p([[0, 0, 10], [0, 0, 10]]) == 1.0
    assert st.agreement_p([[149, 1, 0], [22, 5, 0]]) < 0.01


def test_answers_drawn_at_random_rarely_agree_surely() -> None:
    """At 5 %, of 200 models that know nothing at most 19 pass (99.7 %), many classes or few."""
    rng = np.random.default_rng(4)
    for classes, images, favourite in ((2, 10, 0.5), (3, 60, 0.9), (100, 200, 0.0)):
        passed = 0
        for _ in range(200):
            labels = np.where(rng.random(images) < favourite, 0, rng.integers(0, classes, images))
            answers = np.where(rng.random(images) < favourite, 0, rng.integers(0, classes, images))
            confusion = np.zeros((classes, classes + 1), int)
            np.add.at(confusion, (labels, answers), 1)
            passed += st.agreement_p(confusion) <= 0.05
        assert passed <= 19


def test_surely_better_is_mcnemar_for_one_side_and_counts_what_was_tried() -> None:
    wanted = binomtest(20, 25, 0.5, alternative="greater").pvalue
    assert st.surely_better_p(20, 5) == pytest.approx(wanted)
    assert st.surely_better_p(20, 5, 9) == pytest.approx(9 * wanted)
    assert st.surely_better_p(0, 0) == st.surely_better_p(5, 20, 9) == 1.0
