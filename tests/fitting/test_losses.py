"""Cross-entropy, and the loss that validation judges by."""

import numpy as np
import pytest
from tiny_network import Untyped

from edgekit.fitting.losses import cross_entropies, validation_losses


@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_is_that_of_the_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 5, (50, 4)).astype(np.float32)
    labels = random.integers(0, 4, 50).astype(np.int32)
    odds = np.exp(logits.astype(np.float64))
    expected = -np.log(odds[np.arange(50), labels] / odds.sum(1)).mean()
    # float64 throughout: 1e-12 is four orders above its rounding.
    assert cross_entropies(logits, labels).mean() == pytest.approx(expected, rel=1e-12)
    assert cross_entropies(logits, np.roll(labels, 1)).mean() != pytest.approx(expected, rel=1e-3)
    # Logits far beyond the range of exp() are no trouble.
    huge = np.array([[3e38, 0.0]], np.float32)
    assert cross_entropies(huge, np.zeros(1, np.int32)) == 0.0


@pytest.mark.parametrize("losses", [cross_entropies, validation_losses])
def test_logits_that_are_not_finite_give_no_number_and_no_warning(losses: Untyped) -> None:
    label = np.zeros(1, np.int32)
    assert np.isnan(losses(np.array([[np.inf, 0.0]], np.float32), label))
    assert np.isfinite(losses(np.array([[3e38, 0.0]], np.float32), label))


def test_confidence_alone_makes_no_answers_better() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 5, 400).astype(np.int32)
    logits = random.normal(0, 1, (400, 5)).astype(np.float32)
    logits[np.arange(400), labels] += 2
    judged = validation_losses(logits, labels).mean()
    assert judged <= cross_entropies(logits, labels).mean()
    for confidence in (0.25, 4.0):
        told = confidence * logits
        assert validation_losses(told, labels).mean() == pytest.approx(judged, rel=1e-5)
        # Twin: the loss as it is differs by far more than models do.
        assert cross_entropies(told, labels).mean() > 1.1 * judged
    worse = logits + random.normal(0, 1, logits.shape).astype(np.float32)
    assert validation_losses(worse, labels).mean() > 1.1 * judged
    # Right everywhere: bounded, so that the surer of two still has the lower loss.
    surest = np.where(np.arange(5) == labels[:, None], np.float32(1), np.float32(-1))
    sure, surer = (validation_losses(scale * surest, labels).mean() for scale in (1, 2))
    assert 0 < surer < sure


def test_weights_of_classes_are_taken_off_the_logits_that_carry_them() -> None:
    random = np.random.default_rng(2)
    labels = random.integers(0, 3, 300).astype(np.int32)
    logits = random.normal(0, 1, (300, 3)).astype(np.float32)
    logits[np.arange(300), labels] += 2
    weights = (1.0, 3.0, 9.0)
    carrying = logits + np.log(weights).astype(np.float32)
    plain = validation_losses(logits, labels)
    assert np.allclose(validation_losses(carrying, labels, weights), plain, rtol=1e-4)
    # The twin: what carries the weights is far off without them.
    assert validation_losses(carrying, labels).mean() > 1.5 * plain.mean()
