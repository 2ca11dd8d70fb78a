"""Weights of classes: when they are made, what they are, and what is refused."""

import numpy as np
import pytest

from edgekit.errors import SpecError
from edgekit.fitting.class_weights import class_weights

NAMES = ("cat", "dog", "owl")


def test_auto_weighs_from_ten_to_one_on() -> None:
    weights, why = class_weights("auto", np.array([100, 40, 10]), NAMES)
    assert weights is not None
    assert np.allclose(weights, np.sqrt([1, 2.5, 10]))
    assert "cat has 10.0 times the pictures of owl" in why
    assert "a mistake on owl counts 3.2 times one on cat" in why
    assert class_weights("auto", np.array([99, 40, 10]), NAMES) == (
        None,
        "every mistake counts alike: cat has 9.9 times the pictures of owl, below 10",
    )


def test_weights_that_are_asked_for_are_relative() -> None:
    weights, why = class_weights({"owl": 4.0}, np.array([10, 10, 20]), NAMES)
    assert weights == (1.0, 1.0, 4.0)
    assert why == "weighed as asked: a mistake on owl counts 4.0 times one on cat"
    assert class_weights({"owl": 0.25}, np.array([10, 10, 20]), NAMES)[0] == (4.0, 4.0, 1.0)
    same = class_weights(dict.fromkeys(NAMES, 3.0), np.array([10, 10, 20]), NAMES)
    assert same == class_weights("none", np.array([1000, 1, 1]), NAMES)
    assert same[0] is None


def test_a_class_that_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match="names the class 'owls'") as refused:
        class_weights({"owls": 4.0}, np.array([10, 10, 20]), NAMES)
    assert "did you mean owl?" in str(refused.value.remedy)
