"""Which labels contradict what the backbone sees, and which classes it hardly tells apart.

Each picture is judged by a linear classifier that was made without it. What the classifier is sure
about and the label denies is suspicious: confident learning (Northcutt, Jiang and Chuang, Confident
Learning: Estimating Uncertainty in Dataset Labels, JAIR 70, 2021). NumPy only.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.train.folds import Rows, folds

# What a run folder gets, if anything is suspicious.
TABLE, PAGE = "suspicious_labels.csv", "suspicious_labels.html"
FOLDS = 5
# Weight of the mean variance in the covariance, as in regularized discriminant analysis (Friedman,
# JASA 84, 1989). Of 5 % flipped labels (0.35 at 96 px, one seed) the ranking finds with 0.3, 0.6
# and 0.85, as mean precision: hands 0.83, 0.89, 0.88; leaf 0.88, 0.92, 0.91; waste 0.65, 0.70,
# 0.68; mri 0.61, 0.65, 0.62. Logistic regression on 200 principal components found no more (0.82,
# 0.94, 0.68, 0.58) and took ten times as long.
_SHRINKAGE = 0.6
# Nothing is said of a class of fewer: some fold would know too little of it.
_FEWEST = 5
# Log odds of another class against the label from which on a label is suspicious, and the share of
# a class's mean probability that a picture must reach to count as one of it. Chosen on 5 % flipped
# labels of training pictures of six sets by the mean of the harmonic means of precision and recall
# (tests/benchmarks/suspicion.py --choose --seeds 11 12): 0.711, against 0.673 at odds of 2 and
# 0.704 at 3.25. With a share of 1, as in confident learning, it is 0.06 lower, and without any as
# high, but for many classes (grocery: precision 0.56 instead of 0.59).
THRESHOLD = 2.75
_OF_USUAL = 0.5
# Two classes are hardly told apart where of each this share of pictures looks more like the other.
# Of classes that cannot be told apart it is one half.
_CONFUSED = 0.25


@dataclass(frozen=True)
class Suspicion:
    """A label that what the picture shows contradicts.

    Args:
        row: Which picture.
        suggested: Index of the class that it looks like.
        confidence: Probability of that class, from 0 to 1.
        odds: Natural logarithm of that probability over that of the label.
    """

    row: int
    suggested: int
    confidence: float
    odds: float


@dataclass(frozen=True)
class Confusion:
    """Two classes that a linear classifier hardly tells apart.

    Args:
        first: Index of one.
        second: Index of the other.
        first_as_second: Share of the first's pictures that look more like the second, 0 to 1.
        second_as_first: The other way round.
    """

    first: int
    second: int
    first_as_second: float
    second_as_first: float


def judged_by_others(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], class_count: int, seed: int
) -> npt.NDArray[np.float64]:
    """Returns how much each picture looks like each class, by classifiers made without it.

    Linear discriminant analysis with a shrunken covariance, in five folds: its solution is closed,
    so it is the same in every run.

    Args:
        features: float32 (n, d).
        labels: int32 (n,).
        class_count: Number of classes.
        seed: Seed of the recipe, which deals the folds.

    Returns:
        float64 (n, class_count): logarithms of probabilities, at the temperature at which the
        labels are most likely.
    """
    spread = features.std(axis=0)
    values = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    scores = np.empty((len(labels), class_count))
    every = np.ones(len(labels), bool)
    moment = values.T @ values
    for rows in folds(labels, FOLDS, seed):
        every[rows] = False
        left = values[rows]
        weights, bias = _discriminant(
            values[every], labels[every], moment - left.T @ left, class_count
        )
        scores[rows] = left @ weights + bias
        every[rows] = True
    return _tempered(scores, labels)


def _discriminant(
    values: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int32],
    moment: npt.NDArray[np.float32],
    class_count: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns weights (d, classes) and bias (classes,) of the classifier.

    Args:
        values: float32 (n, d).
        labels: int32 (n,).
        moment: values.T @ values.
        class_count: Number of classes.
    """
    counts = np.bincount(labels, minlength=class_count)
    sums = np.zeros((class_count, values.shape[1]))
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    seen = counts > 0
    sums[seen] = np.add.reduceat(values[order].astype(np.float64), starts[seen], axis=0)
    means = sums / np.maximum(counts, 1)[:, None]
    within = (moment - (means.T * counts) @ means) / len(labels)
    size = len(within)
    shrunken = (1 - _SHRINKAGE) * within
    # The smallest positive number of a set whose pictures are all alike within their classes.
    shrunken[np.diag_indices(size)] += max(_SHRINKAGE * np.trace(within) / size, 1e-9)
    weights = np.linalg.solve(shrunken, means.T).astype(np.float64)
    prior = np.log(np.maximum(counts, 0.5) / len(labels))
    return weights, prior - 0.5 * (means.T * weights).sum(axis=0)


def _tempered(
    scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Returns log probabilities at the most likely of 49 temperatures from 1/8 to 512."""
    best: tuple[float, npt.NDArray[np.float64]] | None = None
    for temperature in np.geomspace(1 / 8, 512, 49):
        scaled = scores / temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        loss = -float(scaled[np.arange(len(labels)), labels].mean())
        if best is None or loss < best[0]:
            best = loss, scaled
    if best is None or not np.isfinite(best[0]):
        return np.full_like(scores, -np.log(scores.shape[1]))
    return best[1]


def suspicions(
    logarithms: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int32],
    threshold: float = THRESHOLD,
) -> list[Suspicion]:
    """Returns the labels that are contradicted with confidence, the surest first.

    As in confident learning, a picture counts as one of another class only if its probability of
    that class is not far below the mean of the pictures with that label: at least half of it.

    Args:
        logarithms: As `judged_by_others` returns them.
        labels: int32 (n,).
        threshold: Least logarithm of the odds of the other class. Defaults to `THRESHOLD`.
    """
    rows = np.arange(len(labels))
    probabilities = np.exp(logarithms)
    counts = np.bincount(labels, minlength=logarithms.shape[1])
    own = probabilities[rows, labels]
    usual = np.bincount(labels, own, len(counts)) / np.maximum(counts, 1)
    least = np.where(counts >= _FEWEST, _OF_USUAL * usual, np.inf)
    others = np.where(probabilities >= least, logarithms, -np.inf)
    others[rows, labels] = -np.inf
    suggested = others.argmax(axis=1)
    odds = others[rows, suggested] - logarithms[rows, labels]
    chosen = np.flatnonzero((odds >= threshold) & (counts[labels] >= _FEWEST))
    chosen = chosen[np.argsort(-odds[chosen], kind="stable")]
    return [
        Suspicion(
            int(row), int(suggested[row]), float(probabilities[row, suggested[row]]),
            float(odds[row]),
        )
        for row in chosen
    ]  # fmt: skip


def confusions(
    logarithms: npt.NDArray[np.float64], labels: npt.NDArray[np.int32]
) -> list[Confusion]:
    """Returns the pairs of classes that are hardly told apart, the most alike first.

    Args:
        logarithms: As `judged_by_others` returns them.
        labels: int32 (n,).
    """
    class_count = logarithms.shape[1]
    counts = np.bincount(labels, minlength=class_count)
    answers = logarithms.argmax(axis=1)
    taken = np.zeros((class_count, class_count), bool)
    taken[labels, answers] = True
    found = []
    for first, second in np.argwhere(np.triu(taken & taken.T, 1)):
        if min(counts[first], counts[second]) < _FEWEST:
            continue
        one, other = (_nearer(logarithms, np.flatnonzero(labels == a), a, b)
                      for a, b in ((first, second), (second, first)))  # fmt: skip
        if min(one, other) >= _CONFUSED:
            found.append(Confusion(int(first), int(second), one, other))
    return sorted(found, key=lambda pair: -(pair.first_as_second + pair.second_as_first))


def _nearer(logarithms: npt.NDArray[np.float64], rows: Rows, own: int, other: int) -> float:
    """Returns the share of a class's pictures that look more like another class."""
    return float((logarithms[rows, other] > logarithms[rows, own]).mean())
