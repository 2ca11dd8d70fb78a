"""Class folders find their outputs, or the message says what to do."""

import pytest

from edgekit.errors import SpecError
from edgekit.validate.classes import match_classes


def test_classes_by_order() -> None:
    assert match_classes(["b", "a"], 2) == (1, 0)
    assert match_classes(["a", "b"], 3, label_offset=1) == (1, 2)
    with pytest.raises(SpecError, match="2 class folders for a model with 3 outputs"):
        match_classes(["a", "b"], 3)


def test_classes_by_number() -> None:
    assert match_classes(["0007", "12"], 1000) == (7, 12)
    assert match_classes(["7"], 1001, label_offset=1) == (8,)
    with pytest.raises(SpecError, match="'1000'"):
        match_classes(["1000"], 1000)
    with pytest.raises(SpecError, match="two names for one output"):
        match_classes(["1", "01"], 1000)


LINES = ["background", "tench, Tinca tinca", "crane", "hair-spray", "crane", "T-shirt", ""]


def test_classes_by_labels_file() -> None:
    names = ["T-shirt", "tinca_tinca", "tench", "Hair Spray"]
    assert match_classes(names[:2], 6, LINES) == (5, 1)
    assert match_classes(names[2:], 7, LINES, label_offset=1) == (2, 4)


@pytest.mark.parametrize(
    ("name", "outputs", "words"),
    [
        ("crane", 6, "on lines 3, 5"),
        ("tenhc", 6, "nearest: 'tench'"),
        ("zebra", 6, "on no line"),
        ("tench", 7, "6 labels for 7 outputs"),
    ],
)
def test_labels_that_do_not_fit(name: str, outputs: int, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        match_classes([name], outputs, LINES)


def test_numeric_folders_that_fit_in_two_orders_need_labels() -> None:
    names = [str(number) for number in range(11)]
    with pytest.raises(SpecError, match="sort as 0, 1, 10, 2 as texts") as caught:
        match_classes(names, 11)
    assert "--labels" in str(caught.value)
    assert match_classes(names, 11, sorted(names)) == (0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 2)
    assert match_classes(names, 11, names) == tuple(range(11))
    # One order only: few digits, leading zeros, or a model with more outputs than folders.
    assert match_classes(names[:10], 10) == tuple(range(10))
    assert match_classes([f"{n:02d}" for n in range(11)], 11) == tuple(range(11))
    assert match_classes(names, 1000) == tuple(range(11))


def test_both_names_of_a_line_and_a_background_that_the_model_lacks() -> None:
    lines = ["Turdus migratorius (American Robin)", "Pica pica (Eurasian Magpie)"]
    assert match_classes(["Eurasian Magpie", "turdus_migratorius"], 2, lines) == (1, 0)
    assert match_classes(["Pica pica (Eurasian Magpie)"], 2, lines) == (1,)
    assert match_classes(["green", "red"], 2, ["background", "red", "green"]) == (1, 0)
    with pytest.raises(SpecError, match="3 labels for 2 outputs"):
        match_classes(["green", "red"], 2, ["blue", "red", "green"])
