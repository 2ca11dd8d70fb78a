"""How cuts are compared and which one is trained from: every branch, and the rule's definition."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from edgekit.train.strategy import (
    FEW_PER_CLASS,
    FEW_VALIDATION_PICTURES,
    FOLDS,
    MOST_CROSS_VALIDATED,
    Probe,
    Trial,
    choose,
    cross_validate,
    lowest,
    worse,
)

Losses = npt.NDArray[np.float64]
# Enough pictures to choose by and some errors: the plain case of "auto".
PLAIN = Probe(train_pictures=900, per_class=200, validation_pictures=300, validation_errors=40)
MANY = MOST_CROSS_VALIDATED - PLAIN.validation_pictures
SEEN = "; the head alone is wrong on 40 of 300 validation pictures"
FEW_JUDGES = replace(PLAIN, validation_pictures=FEW_VALIDATION_PICTURES - 1)


@pytest.mark.parametrize(
    ("changes", "crossed", "words"),
    [
        # Every limit with the value beside it, which decides otherwise.
        ({}, False, "judged by the validation split;"),
        ({"validation_pictures": 99}, True, "as 99 validation pictures are too few to choose by;"),
        ({"validation_pictures": 100}, False, "judged by the validation split;"),
        ({"per_class": 19}, True, "as there are but 19 training pictures in the median class;"),
        ({"per_class": 20}, False, "judged by the validation split;"),
        ({"validation_errors": 0}, True, "as the head alone is right on every validation picture;"),
        ({"validation_errors": 1}, False, "judged by the validation split;"),
        # The first reason is told, if there are several.
        ({"validation_pictures": 99, "per_class": 1}, True, "as 99 validation pictures are too"),
        ({"per_class": 19, "validation_errors": 0}, True, "as there are but 19 training pictures"),
        # With too many pictures to train thrice, the reason is told all the same.
        ({"train_pictures": MANY, "validation_errors": 0}, True, "as the head alone is right"),
        (
            {"train_pictures": MANY + 1, "validation_errors": 0},
            False,
            "judged by the validation split, though the head alone is right on every validation "
            "picture: there are too many training pictures to cross-validate;",
        ),
        ({"train_pictures": MANY + 1}, False, "judged by the validation split;"),
    ],
)
def test_auto_cross_validates_where_the_validation_pictures_tell_too_little(
    changes: dict[str, int], crossed: bool, words: str
) -> None:
    probe = replace(PLAIN, **changes)
    found, reason = cross_validate("auto", probe)
    assert found == crossed
    assert reason.startswith("auto: ")
    assert words in reason
    assert reason.endswith(
        f"; the head alone is wrong on {probe.validation_errors} of {probe.validation_pictures} "
        "validation pictures"
    )
    pictures = probe.train_pictures + probe.validation_pictures
    over = f"in {FOLDS} parts over {pictures} training and validation pictures"
    assert (over in reason) == crossed


def test_the_limits_are_those_of_the_cases_above() -> None:
    assert (FEW_VALIDATION_PICTURES, FEW_PER_CLASS) == (100, 20)


@pytest.mark.parametrize(
    "probe",
    [PLAIN, FEW_JUDGES, replace(PLAIN, per_class=1), replace(PLAIN, validation_errors=0)],
)
def test_progressive_never_cross_validates(probe: Probe) -> None:
    crossed, reason = cross_validate("progressive", probe)
    assert not crossed
    assert reason.startswith("progressive: ")
    assert "judged by the validation split; the head alone is wrong on " in reason


def test_the_words_of_the_plain_case_are_complete() -> None:
    assert cross_validate("auto", PLAIN)[1].endswith(f"judged by the validation split{SEEN}")


def pictures(*means: float, spread: float = 0.02, count: int = 200) -> list[Losses]:
    """Returns losses of the same pictures, easy and hard ones, in trials of given means.

    Between pictures the losses vary by 1, between trials a picture's loss varies by `spread`.
    """
    random = np.random.default_rng(4)
    difficulty = random.normal(3, 1, count)
    difficulty -= difficulty.mean()
    found = []
    for mean in means:
        own = random.normal(0, spread, count)
        found.append(difficulty + own - own.mean() + mean)
    return found


def trials(losses: list[Losses]) -> list[Trial]:
    """Returns trials of cuts 0, 1, ... that have different costs."""
    return [
        Trial(f"cut {number}", values, seconds=number + 0.5, parameters=10 * number + 1)
        for number, values in enumerate(losses)
    ]


def test_the_lowest_is_trained_from_when_it_is_clearly_the_lowest() -> None:
    # The standard error of a difference is 0.02 * sqrt(2) / sqrt(200) = 0.002.
    chosen, curve, reason = choose(trials(pictures(2.0, 1.5, 1.6)))
    assert chosen == 1
    assert [score.cut for score in curve] == ["cut 0", "cut 1", "cut 2"]
    assert [score.validation_loss for score in curve] == pytest.approx([2.0, 1.5, 1.6])
    assert [score.excess for score in curve] == pytest.approx([0.5, 0.0, 0.1])
    assert [score.standard_error for score in curve] == pytest.approx([0.002, 0, 0.002], rel=0.2)
    assert [score.seconds for score in curve] == [0.5, 1.5, 2.5]
    assert [score.trainable_parameters for score in curve] == [1, 11, 21]
    assert reason == "cut 1 has the lowest validation loss in its trial"


def test_what_unfreezes_most_within_two_standard_errors_is_trained_from() -> None:
    # cut 2 is 0.0005 above the lowest, cut 3 far above.
    chosen, curve, reason = choose(trials(pictures(2.0, 1.5, 1.5005, 1.6)))
    assert chosen == 2
    assert reason == (
        "cut 2 unfreezes most within two standard errors of the lowest validation loss in a trial "
        f"(0.0005 above cut 1, standard error {curve[2].standard_error:.4f})"
    )
    # Twins: just over two standard errors above it, it is not; just within, it is.
    (error,) = {score.standard_error for score in curve[2:3]}
    assert choose(trials(pictures(2.0, 1.5, 1.5 + 2.01 * error, 1.6)))[0] == 1
    assert choose(trials(pictures(2.0, 1.5, 1.5 + 1.99 * error, 1.6)))[0] == 2


def test_a_lower_loss_nearer_to_the_input_needs_no_margin() -> None:
    assert choose(trials(pictures(1.5005, 1.5)))[0] == 1


def test_a_tie_goes_to_the_larger_part() -> None:
    losses = pictures(1.5)[0]
    chosen, _, reason = choose(trials([losses, losses.copy()]))
    assert chosen == 1
    assert "cut 1 unfreezes most within two standard errors" in reason
    # Twin: above it by the same in every picture, there is no error to hide in.
    assert choose(trials([losses, losses + 2.0**-20]))[0] == 0


def test_a_single_trial_is_chosen() -> None:
    chosen, curve, reason = choose(trials(pictures(1.5)))
    assert (chosen, len(curve), curve[0].excess, curve[0].standard_error) == (0, 1, 0.0, 0.0)
    assert reason == "cut 0 has the lowest validation loss in its trial"


def test_a_single_picture_has_no_error_to_hide_in() -> None:
    one = trials([np.array([0.9]), np.array([1.0])])
    assert choose(one)[0] == 0
    assert worse(one[1], one[0])
    assert not worse(one[0], one[1])


def test_the_error_is_that_of_paired_pictures() -> None:
    losses = pictures(1.5, 1.52)
    assert choose(trials(losses))[0] == 0
    # The same losses of other pictures have the same means, but nothing is certain any more.
    mixed = np.random.default_rng(1).permutation(losses[1])
    chosen, curve, _ = choose(trials([losses[0], mixed]))
    assert chosen == 1
    assert curve[1].excess == pytest.approx(0.02)
    assert curve[1].standard_error == pytest.approx(2**0.5 / 200**0.5, rel=0.2)


@pytest.mark.parametrize(
    ("above", "expected"), [(0.006, True), (0.003, False), (0.0, False), (-0.1, False)]
)
def test_worse_is_above_by_more_than_two_standard_errors(above: float, expected: bool) -> None:
    one, other = trials(pictures(1.5, 1.5 + above))
    assert worse(other, one) == expected


@pytest.mark.parametrize(("means", "index"), [((2, 1, 3), 1), ((1, 2), 0), ((3, 2, 1), 2)])
def test_the_lowest_is_that_of_the_lowest_mean(means: tuple[float, ...], index: int) -> None:
    assert lowest(trials(pictures(*means))) == index


# Sums and differences of these are exact, and so are their means over 2, 4, 8 or 16 pictures.
exact = st.integers(0, 512).map(lambda number: number / 64)


@st.composite
def losses_of_trials(draw: st.DrawFn) -> list[Losses]:
    count = draw(st.sampled_from([2, 4, 8, 16]))
    rows = st.lists(exact, min_size=count, max_size=count)
    drawn = draw(st.lists(rows, min_size=1, max_size=6))
    # Real trials resemble each other; without that hardly any would be within a standard error.
    near = draw(st.sampled_from([1.0, 1 / 16]))
    return [np.array(drawn[0]) + near * (np.array(row) - np.array(drawn[0])) for row in drawn]


@settings(deadline=None)
@given(losses_of_trials(), st.integers(0, 1000))
def test_the_largest_part_within_two_standard_errors_of_the_lowest_is_chosen(
    losses: list[Losses], constant: int
) -> None:
    chosen, curve, reason = choose(trials(losses))
    best = min(range(len(losses)), key=lambda number: losses[number].mean())
    for values, score in zip(losses, curve, strict=True):
        differences = values - losses[best]
        mean = sum(differences) / len(differences)
        variance = sum((each - mean) ** 2 for each in differences) / (len(differences) - 1)
        assert score.excess == mean >= 0
        assert score.standard_error == pytest.approx((variance / len(differences)) ** 0.5)
    assert curve[chosen].excess <= 2 * curve[chosen].standard_error
    assert all(score.excess > 2 * score.standard_error for score in curve[chosen + 1 :])
    assert chosen >= best
    assert reason.startswith(f"cut {chosen} ")
    shifted, moved, _ = choose(trials([values + constant for values in losses]))
    assert shifted == chosen
    for before, after in zip(curve, moved, strict=True):
        assert (after.excess, after.standard_error) == (before.excess, before.standard_error)
        assert after.validation_loss == before.validation_loss + constant
