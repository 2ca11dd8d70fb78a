"""The statistics behind a verdict: pure functions of counts and samples. Stage layer.

Sources: Tango, Statistics in Medicine 17:891 (1998); Wilson, JASA 22:209 (1927); McNemar,
Psychometrika 12:153 (1947); Hahn & Meeker, Statistical Intervals, for order statistics; Geyer,
Statistical Science 7:473 (1992), for the initial positive sequence; Arbuthnott, Philosophical
Transactions 27:186 (1710), for the sign test; Lan & DeMets, Biometrika 70:659 (1983), for error
that is spent look by look, here added up by Bonferroni's inequality; Fisher, The Design of
Experiments (1935), for the permutation test, Phipson & Smyth, Statistical Applications in Genetics
and Molecular Biology 9:39 (2010), for its p-value, and Cohen, Educational and Psychological
Measurement 20:37 (1960), for agreement beyond chance.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
# p-values of a permutation test are multiples of one in this many, the least of them included.
PERMUTATIONS = 2000
# Any number does; the same one gives the same p-value every time.
_PERMUTATION_SEED = 0
# Labels that are permuted in one go: 16 MB.
_PERMUTED_AT_ONCE = 4_000_000
# Share of the error that is left which the next look at the same sessions may spend. With five
# sessions a look, 1 over of 10 has a probability of 11/1024 = 1.07 %; three fifths of what is left
# behind the first look are 1.13 %, half would be 0.94 % and the second look could then never decide
# what the first did not.
SPENT_SHARE = 0.6
_BISECTIONS = 60  # halves an interval of width 2 to below 1e-17


def normal_quantile(probability: float) -> float:
    """Returns the standard normal quantile; 1.645 for 0.95."""
    return NormalDist().inv_cdf(probability)


def tango_z(reference_only: float, model_only: float, images: float, drop: float) -> float:
    """Returns Tango's score statistic of the hypothesis that the true drop is `drop`.

    With n images, b and c: `A = 2n`, `B = -b - c + (2n - b + c) D`, `C = -c D (1 - D)`,
    `q = (sqrt(B^2 - 4AC) - B) / 2A`, `Z = (b - c - nD) / sqrt(n (2q + D (1 - D)))`.
    At `drop = 0` it is McNemar's `(b - c) / sqrt(b + c)`.

    Args:
        reference_only: Images that only the reference got right (b); need not be whole.
        model_only: Images that only the judged file got right (c); need not be whole.
        images: Images that both judged (n).
        drop: The hypothesis, a fraction from -1 to 1.

    Returns:
        Positive where the observed drop exceeds `drop`; infinite where `drop` is impossible.
    """
    b, c, n = reference_only, model_only, images
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    q = (root - linear) / (4 * n)
    variance = n * (2 * q + drop * (1 - drop))
    difference = b - c - n * drop
    # Rounding can leave a tiny negative or positive variance where the exact value is 0.
    if variance <= 1e-12 * n:
        return 0.0 if abs(difference) <= 1e-12 * n else math.copysign(math.inf, difference)
    return difference / math.sqrt(variance)


def tango_upper(
    reference_only: int, model_only: int, images: int, confidence: float = CONFIDENCE
) -> float:
    """Returns the one-sided upper limit of the drop, a fraction from -1 to 1, by bisection.

    Args:
        reference_only: b of `tango_z`.
        model_only: c of `tango_z`.
        images: n of `tango_z`, at least 1.
        confidence: One-sided confidence. Defaults to 0.95.

    Raises:
        ValueError: If the counts are impossible.
    """
    _check_counts(reference_only, model_only, images)
    critical = -normal_quantile(confidence)
    low, high = (reference_only - model_only) / images, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if tango_z(reference_only, model_only, images, middle) > critical:
            low = middle
        else:
            high = middle
    return high


def tango_lower(
    reference_only: int, model_only: int, images: int, confidence: float = CONFIDENCE
) -> float:
    """Returns the one-sided lower limit of the drop; the mirror image of `tango_upper`.

    Args:
        reference_only: b of `tango_z`.
        model_only: c of `tango_z`.
        images: n of `tango_z`, at least 1.
        confidence: One-sided confidence. Defaults to 0.95.

    Raises:
        ValueError: If the counts are impossible.
    """
    return -tango_upper(model_only, reference_only, images, confidence)


def images_to_certify(margin: float, confidence: float = CONFIDENCE) -> int:
    """Returns the fewest images that can ever show a drop within `margin`.

    With no disagreement at all Tango's upper limit is `z^2 / (n + z^2)`, so
    `n >= z^2 (1 - margin) / margin`: 268 for one point, 133 for two, 52 for five.

    Args:
        margin: Allowed drop, a fraction above 0 and below 1.
        confidence: One-sided confidence. Defaults to 0.95.

    Raises:
        ValueError: If `margin` is not between 0 and 1.
    """
    if not 0 < margin < 1:
        msg = f"margin {margin} is not between 0 and 1"
        raise ValueError(msg)
    z = normal_quantile(confidence)
    return math.ceil(z * z * (1 - margin) / margin)


def images_to_decide(
    reference_only: int,
    model_only: int,
    images: int,
    margin: float,
    confidence: float = CONFIDENCE,
) -> int | None:
    """Returns how many images would decide about `margin` if the observed rates stayed.

    With b/n and c/n fixed, q does not depend on n and Z grows with its square root, so the answer
    is `n (z / Z)^2`. A new set of that size decides in about half of the cases.

    Returns:
        The number, or None when the observed drop equals the margin: no number would do.
    """
    _check_counts(reference_only, model_only, images)
    statistic = tango_z(reference_only, model_only, images, margin)
    return _scaled(images, statistic, confidence)


def images_to_decide_floor(
    correct: int, images: int, floor: float, confidence: float = CONFIDENCE
) -> int | None:
    """Returns how many images would put the Wilson interval on one side of `floor`.

    Wilson's interval excludes `floor` when `|p - floor| > z sqrt(floor (1 - floor) / n)`.

    Args:
        correct: Images answered right.
        images: Images judged, at least 1.
        floor: The accuracy to decide about, a fraction.
        confidence: Two-sided confidence of the interval. Defaults to 0.95.

    Returns:
        The number, or None when the observed accuracy equals the floor.
    """
    spread = math.sqrt(floor * (1 - floor) / images)
    difference = correct / images - floor
    if spread == 0:
        return images if difference else None
    return _scaled(images, difference / spread, (1 + confidence) / 2)


def mcnemar_p(reference_only: int, model_only: int) -> float:
    """Returns the exact two-sided McNemar p-value: `min(1, 2 P(X <= min(b, c)))`, X binomial.

    Args:
        reference_only: b of `tango_z`.
        model_only: c of `tango_z`.
    """
    from scipy.special import bdtr  # slow to load, needed by few callers

    discordant = reference_only + model_only
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(reference_only, model_only), discordant, 0.5)))


def surely_better_p(better: int, worse: int, tried: int = 1) -> float:
    """Returns the p-value that one way to read answers is right more often than another.

    McNemar's exact test, one-sided: `P(X >= better)`, X ~ B(better + worse, 1/2), times the number
    of ways that were tried (Bonferroni).

    Args:
        better: Images that only this way reads right.
        worse: Images that only the other way reads right.
        tried: Ways that were tried, this one included. Defaults to 1.
    """
    from scipy.special import bdtr  # slow to load, needed by few callers

    return min(1.0, tried * float(bdtr(worse, better + worse, 0.5)))


def agreement_p(confusion: npt.ArrayLike) -> float:
    """Returns how likely answers that know nothing of the truth agree with it as often as these.

    A permutation test: with the numbers of each label and of each answer kept, labels are dealt to
    answers anew, 1999 times by a fixed seed; the p-value is `(1 + k) / 2000` where k of them agree
    at least as often. It holds for few images, many classes and unequal ones, since nothing is
    assumed about either margin; where every answer or every label is the same, it is 1. Its
    statistic is the number of right answers, which orders permutations as Cohen's kappa does.

    Args:
        confusion: Counts of shape `(classes, classes or more)`: row the label, column the answer;
            columns beyond the classes are answers that are none of them.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    agreed = int(np.trace(counts))
    kinds = np.indices(counts.shape)
    labels, answers = (np.repeat(kind.ravel(), counts.ravel()).astype(np.int32) for kind in kinds)
    if not len(labels) or len(set(labels.tolist())) == 1 or len(set(answers.tolist())) == 1:
        return 1.0
    random = np.random.default_rng(_PERMUTATION_SEED)
    as_good, left = 0, PERMUTATIONS - 1
    while left:
        rows = max(1, min(left, _PERMUTED_AT_ONCE // len(labels)))
        dealt = random.permuted(np.tile(labels, (rows, 1)), axis=1)
        as_good += int(np.count_nonzero((dealt == answers).sum(axis=1) >= agreed))
        left -= rows
    return (1 + as_good) / PERMUTATIONS


def wilson(correct: int, images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns the two-sided Wilson score interval of a fraction.

    Args:
        correct: Successes.
        images: Trials, at least 1.
        confidence: Two-sided confidence. Defaults to 0.95.

    Raises:
        ValueError: If the counts are impossible.
    """
    _check_counts(correct, 0, images)
    z = normal_quantile((1 + confidence) / 2)
    share = correct / images
    centre = share + z * z / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    # Rounding must not push the ends past 0 and 1, nor past the estimate itself.
    low = min(share, max(0.0, (centre - half) / scale))
    return low, max(share, min(1.0, (centre + half) / scale))


def order_quantile(samples: npt.ArrayLike, percentile: int) -> float:
    """Returns the order-statistic estimate of a percentile: the `ceil(n p)`-th smallest sample.

    Args:
        samples: At least one number.
        percentile: From 1 to 100.

    Raises:
        ValueError: If there are no samples.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    if ordered.size == 0:
        msg = "no samples"
        raise ValueError(msg)
    # Integer arithmetic: 0.9 * 10 would round up to the wrong rank.
    rank = -(-ordered.size * percentile // 100)
    return float(ordered[max(rank, 1) - 1])


def order_upper(
    samples: npt.ArrayLike, percentile: float, confidence: float = CONFIDENCE
) -> float | None:
    """Returns the distribution-free upper limit of a percentile for independent samples.

    It is the k-th smallest sample, k the least with `binom.cdf(k - 1, n, p) >= confidence`.

    Args:
        samples: Numbers.
        percentile: From 1 to 99.
        confidence: One-sided confidence. Defaults to 0.95.

    Returns:
        The limit, or None below `samples_needed(percentile)` samples, where none exists.
    """
    from scipy.special import bdtr  # slow to load, needed by few callers

    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    below = bdtr(np.arange(ordered.size), ordered.size, percentile / 100)
    ranks = np.flatnonzero(below >= confidence)
    return float(ordered[ranks[0]]) if ranks.size else None


def samples_needed(percentile: float, confidence: float = CONFIDENCE) -> int:
    """Returns the fewest samples that can bound a percentile: `ln(1 - confidence) / ln p`.

    5 for the median, 29 for the 90th, 59 for the 95th, 299 for the 99th percentile.

    Args:
        percentile: From 1 to 99.
        confidence: One-sided confidence. Defaults to 0.95.
    """
    return math.ceil(math.log(1 - confidence) / math.log(percentile / 100))


def sign_p(fewest: int, sessions: int) -> float:
    """Returns the exact one-sided p-value of the sign test: `P(X <= fewest)`, X ~ B(sessions, 1/2).

    It is how likely at most so many sessions lie on that side of a budget when at least half of all
    such sessions do.

    Args:
        fewest: Sessions on the side that is doubted.
        sessions: All of them, at least 1.

    Raises:
        ValueError: If the counts are impossible.
    """
    _check_counts(fewest, 0, sessions)
    ways = sum(math.comb(sessions, count) for count in range(fewest + 1))
    return ways / (1 << sessions)


def sign_level(look: int, sessions_at_first: int, confidence: float = CONFIDENCE) -> float:
    """Returns the p-value up to which one look at sessions that become more may decide.

    The first look decides when all its n sessions lie on one side, so it spends `0.5 ** n`. Each
    later look, at all sessions so far, may spend three fifths of what is left (see `SPENT_SHARE`).
    All levels together are at most `1 - confidence`, so by Bonferroni's inequality a wrong decision
    at any look, however many follow and whatever made somebody look again, is no more probable.

    Args:
        look: Number of the look, from 1; only those count that could decide.
        sessions_at_first: Sessions at the first look.
        confidence: One-sided confidence over all looks. Defaults to 0.95.

    Raises:
        ValueError: If the first look alone could exceed the error, or `look` is below 1.
    """
    first, allowed = 0.5**sessions_at_first, 1 - confidence
    if look < 1 or first > allowed:
        msg = f"look {look} with {sessions_at_first} sessions at the first"
        raise ValueError(msg)
    if look == 1:
        return first
    return (allowed - first) * SPENT_SHARE * (1 - SPENT_SHARE) ** (look - 2)


def effective_samples(samples: npt.ArrayLike) -> float:
    """Returns n divided by the autocorrelation time, by Geyer's initial positive sequence.

    `tau = -1 + 2 sum(r[2m] + r[2m + 1])` over the pairs before the first that is not positive;
    tau below 1 (alternating samples) counts as 1.

    Args:
        samples: Numbers in the order they were taken.
    """
    series = np.asarray(samples, dtype=np.float64)
    count = series.size
    centred = series - series.mean() if count else series
    power = float(centred @ centred)
    if count < 4 or power <= 1e-24 * max(1.0, float(series @ series)):
        return float(count)
    # Zero padding to twice the length makes the circular correlation a plain one.
    spectrum = np.fft.rfft(centred, 2 * count)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, 2 * count)[:count] / power
    pairs = correlation[: count // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    kept = pairs[: ends[0]] if ends.size else pairs
    return float(count / max(1.0, 2 * kept.sum() - 1))


def pooled_effective_samples(sessions: Sequence[npt.ArrayLike]) -> float:
    """Returns the effective samples of all sessions; different processes count as independent."""
    return float(sum(effective_samples(samples) for samples in sessions))


def _scaled(images: int, statistic: float, confidence: float) -> int | None:
    """Returns the number of images at which a statistic that grows with sqrt(n) is critical."""
    if abs(statistic) < 1e-9:
        return None
    ratio = normal_quantile(confidence) / abs(statistic)
    return max(1, math.ceil(images * ratio * ratio - 1e-9))


def _check_counts(first: int, second: int, images: int) -> None:
    if images < 1 or first < 0 or second < 0 or first + second > images:
        msg = f"counts {first} and {second} of {images} images"
        raise ValueError(msg)
