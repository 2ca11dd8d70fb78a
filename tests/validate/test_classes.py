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
