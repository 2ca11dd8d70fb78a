"""How far a search goes and which of its phases ships: every branch, and the rule's definition."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, strategies as st

from edgekit.train.cuts import Cut
from edgekit.train.strategy import (
    FEW_PER_CLASS,
    GOOD_PROBE,
    LITTLE_PER_CLASS,
    POOR_PROBE,
    Probe,
    Strategy,
    choose,
    decide,
)

Losses = npt.NDArray[np.float64]
NAMES = ("Conv_1", *(f"block_{number}_expand" for number in range(16, 10, -1)))
FURTHER = tuple(Cut(name, 150 - 9 * i, frozenset({name})) for i, name in enumerate(NAMES))
# Neither few pictures nor many errors: the plain case of "auto".
PLAIN = Probe(
    images_per_class=200, validation_accuracy=0.8, train_accuracy=0.85, validation_errors=40
)
PERFECT = replace(PLAIN, validation_accuracy=1.0, validation_errors=0)


@pytest.mark.parametrize("probe", [PLAIN, PERFECT, replace(PLAIN, images_per_class=1)])
@pytest.mark.parametrize(
    ("strategy", "cuts", "reason"),
    [
        ("head", (), "head: feature extraction alone, as asked"),
        ("progressive", FURTHER, "progressive: block after block, as asked"),
    ],
)
def test_what_is_asked_for_is_done_whatever_the_head_shows(
    probe: Probe, strategy: Strategy, cuts: tuple[Cut, ...], reason: str
) -> None:
    decision = decide(strategy, FURTHER, None, 3, probe)
    assert (decision.cuts, decision.patience, decision.reason) == (cuts, 3, reason)


def test_a_fixed_cut_is_the_only_one() -> None:
    inside = Cut("block_14_project", 130, frozenset({"block_14_project", "logits"}))
    decision = decide("fixed", FURTHER, inside, 2, PERFECT)
    assert decision.cuts == (inside,)
    assert decision.reason == "fixed: from block_14_project, as asked"


def test_a_fixed_head_needs_no_further_phase() -> None:
    decision = decide("fixed", FURTHER, Cut("head", 156, frozenset({"logits"})), 2, PLAIN)
    assert decision.cuts == ()
    assert decision.reason == "fixed: from head, as asked"


@pytest.mark.parametrize(
    ("changes", "cuts", "patience", "words"),
    [
        # Every limit with the value beside it, which decides otherwise.
        ({"images_per_class": FEW_PER_CLASS - 1}, 0, 2, "feature extraction, as"),
        ({"images_per_class": FEW_PER_CLASS}, 4, 1, "late cuts only, as"),
        ({"images_per_class": LITTLE_PER_CLASS - 1}, 4, 1, "late cuts only, as"),
        ({"images_per_class": LITTLE_PER_CLASS}, 7, 2, "as far as it helps;"),
        ({"validation_accuracy": GOOD_PROBE}, 4, 1, "late cuts only, as the head alone is"),
        ({"validation_accuracy": GOOD_PROBE - 1e-3}, 7, 2, "as far as it helps;"),
        ({"validation_accuracy": POOR_PROBE}, 7, 2, "as far as it helps;"),
        ({"validation_accuracy": POOR_PROBE - 1e-3}, 7, 3, "one phase more patient, as the head"),
        ({"validation_errors": 0}, 0, 2, "no error is left to remove"),
        ({"validation_errors": 1}, 7, 2, "as far as it helps;"),
        # Few pictures weigh more than a poor head, and a perfect head more than little data.
        ({"images_per_class": 1, "validation_accuracy": 0.2}, 0, 2, "in the median class"),
        ({"images_per_class": FEW_PER_CLASS, "validation_errors": 0}, 0, 2, "no error is left"),
        ({"images_per_class": FEW_PER_CLASS, "validation_accuracy": 0.2}, 4, 1, "late cuts only"),
    ],
)
def test_auto_decides_by_the_pictures_and_the_head(
    changes: dict[str, float], cuts: int, patience: int, words: str
) -> None:
    decision = decide("auto", FURTHER, None, 2, replace(PLAIN, **changes))
    assert decision.cuts == FURTHER[:cuts]
    assert decision.patience == patience
    assert decision.reason.startswith("auto: ")
    assert words in decision.reason


@pytest.mark.parametrize("train", [0.85, 0.7, 0.8])
def test_auto_tells_what_it_saw(train: float) -> None:
    for changes in ({}, {"images_per_class": 1}, {"images_per_class": FEW_PER_CLASS}):
        probe = replace(PLAIN, train_accuracy=train, **changes)
        reason = decide("auto", FURTHER, None, 2, probe).reason
        assert "right on 80.0% of the validation pictures" in reason
        assert f"and {train:.1%} of the augmented training pictures" in reason
        assert f"{probe.images_per_class} pictures in the median class" in reason


def test_short_searches_stay_short() -> None:
    for changes in ({}, {"images_per_class": FEW_PER_CLASS}, {"validation_accuracy": 0.1}):
        assert decide("auto", FURTHER[:2], None, 2, replace(PLAIN, **changes)).cuts == FURTHER[:2]


def pictures(*means: float, spread: float = 0.02, count: int = 200) -> list[Losses]:
    """Returns losses of the same pictures, easy and hard ones, under phases of given means.

    Between pictures the losses vary by 1, between phases a picture's loss varies by `spread`.
    """
    random = np.random.default_rng(4)
    difficulty = random.normal(3, 1, count)
    difficulty -= difficulty.mean()
    found = []
    for mean in means:
        own = random.normal(0, spread, count)
        found.append(difficulty + own - own.mean() + mean)
    return found


def test_the_lowest_ships_when_it_is_clearly_the_lowest() -> None:
    # The standard error of a difference is 0.02 * sqrt(2) / sqrt(200) = 0.002.
    chosen, curve, reason = choose(("head", "Conv_1", "b"), pictures(2.0, 1.5, 1.6))
    assert chosen == 1
    assert [score.cut for score in curve] == ["head", "Conv_1", "b"]
    assert [score.validation_loss for score in curve] == pytest.approx([2.0, 1.5, 1.6])
    assert [score.excess for score in curve] == pytest.approx([0.5, 0.0, 0.1])
    assert [score.standard_error for score in curve] == pytest.approx([0.002, 0, 0.002], rel=0.2)
    assert reason == (
        "Conv_1 has the lowest validation loss, 1.5000, and no smaller unfrozen part is within one "
        "standard error of it"
    )


def test_a_smaller_part_within_one_standard_error_ships_instead() -> None:
    losses = pictures(2.0, 1.501, 1.5005, 1.5)
    chosen, curve, reason = choose(("head", "Conv_1", "b", "c"), losses)
    assert chosen == 1
    error = curve[1].standard_error
    assert reason == (
        "Conv_1 is the smallest unfrozen part within one standard error of the lowest validation "
        f"loss: 0.0010 above c, standard error {error:.4f}"
    )
    # Twin: four standard errors above it, it does not.
    assert choose(("head", "Conv_1", "c"), pictures(2.0, 1.508, 1.5))[0] == 2


def test_a_tie_goes_to_the_smaller_part() -> None:
    losses = pictures(1.5)[0]
    chosen, _, reason = choose(("head", "Conv_1"), [losses, losses.copy()])
    assert chosen == 0
    assert reason == "head has the lowest validation loss, 1.5000"
    assert choose(("head", "Conv_1"), [losses + 2.0**-20, losses])[0] == 1


def test_a_single_phase_ships() -> None:
    chosen, curve, reason = choose(("head",), pictures(1.5))
    assert (chosen, len(curve), curve[0].excess, curve[0].standard_error) == (0, 1, 0.0, 0.0)
    assert reason == "head has the lowest validation loss, 1.5000"


def test_a_single_picture_has_no_error_to_hide_in() -> None:
    assert choose(("head", "Conv_1"), [np.array([1.0]), np.array([0.9])])[0] == 1


def test_the_error_is_that_of_paired_pictures() -> None:
    losses = pictures(1.52, 1.5)
    assert choose(("head", "Conv_1"), losses)[0] == 1
    # The same losses of other pictures have the same means, but nothing is certain any more.
    mixed = np.random.default_rng(1).permutation(losses[1])
    chosen, curve, _ = choose(("head", "Conv_1"), [losses[0], mixed])
    assert chosen == 0
    assert curve[0].excess == pytest.approx(0.02)
    assert curve[0].standard_error == pytest.approx(2**0.5 / 200**0.5, rel=0.2)


# Sums and differences of these are exact, and so are their means over 2, 4, 8 or 16 pictures.
exact = st.integers(0, 512).map(lambda number: number / 64)


@st.composite
def phases(draw: st.DrawFn) -> list[Losses]:
    count = draw(st.sampled_from([2, 4, 8, 16]))
    rows = st.lists(exact, min_size=count, max_size=count)
    drawn = draw(st.lists(rows, min_size=1, max_size=6))
    # Real phases resemble each other; without that hardly any would be within a standard error.
    near = draw(st.sampled_from([1.0, 1 / 16]))
    return [np.array(drawn[0]) + near * (np.array(row) - np.array(drawn[0])) for row in drawn]


@given(phases(), st.integers(0, 1000))
def test_the_smallest_part_within_one_standard_error_of_the_lowest_ships(
    losses: list[Losses], constant: int
) -> None:
    names = [f"cut {number}" for number in range(len(losses))]
    chosen, curve, reason = choose(names, losses)
    lowest = min(range(len(losses)), key=lambda number: losses[number].mean())
    for values, score in zip(losses, curve, strict=True):
        differences = values - losses[lowest]
        mean = sum(differences) / len(differences)
        variance = sum((each - mean) ** 2 for each in differences) / (len(differences) - 1)
        assert score.excess == mean >= 0
        assert score.standard_error == pytest.approx((variance / len(differences)) ** 0.5)
    assert curve[chosen].excess <= curve[chosen].standard_error
    assert all(score.excess > score.standard_error for score in curve[:chosen])
    assert chosen <= lowest
    assert reason.startswith(names[chosen])
    shifted, moved, _ = choose(names, [values + constant for values in losses])
    assert shifted == chosen
    for before, after in zip(curve, moved, strict=True):
        assert (after.excess, after.standard_error) == (before.excess, before.standard_error)
        assert after.validation_loss == before.validation_loss + constant
