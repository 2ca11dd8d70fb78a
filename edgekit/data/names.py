"""Which folders, files and values of a column are splits, by the names that people give them."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from edgekit.records import SplitName

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
# As published sets call theirs: train/val/test (Ultralytics, ImageNet, chest X-ray), train/valid/
# test (Roboflow), Training/Testing (brain MRI), seg_train/seg_test (Intel scenes), Train/Test
# (GTSRB), test1 (dogs and cats); and the keywords of Hugging Face's `datasets`: train, training;
# validation, valid, val, dev; test, testing, eval, evaluation.
_WORDS: dict[SplitName, str] = {
    "train": "training|train|trn",
    "validation": "validation|validate|validating|valid|vali|val|development|dev",
    "test": "testing|tests|test|tst|holdout|hold[-_ ]out",
}
# The last judgement as a rule; where a test split stands beside it, what training is steered by.
_EITHER = "evaluation|eval"
_FINDERS = [
    (split, re.compile(f"(?=({word}))"))
    for split, words in ((*_WORDS.items(), (None, _EITHER)))
    for word in words.split("|")
]
# What may stand around such a word in one name and not in the next: "train" beside "test1".
_GENERIC = frozenset(
    ("set", "sets", "data", "dataset", "images", "image", "imgs", "img", "pictures", "pics",
     "photos", "folder", "dir", "split", "subset", "part", "the", "of", "jpg", "png", "jpeg")
)  # fmt: skip
_IMAGES = re.compile("images?|imgs?|pictures?|pics?|photos?|jpe?gs?|pngs?|jpegimages|files?")
_PIECES = re.compile("parts?|batch|chunk|shard|volume|vol")
_PART = re.compile(r"[a-z]+|[0-9]+|[^\W\d_a-z]+")


def plain(name: str) -> str:
    """Returns a name as it is compared with others: composed, without case."""
    return unicodedata.normalize("NFC", name).casefold()


def split_names(names: Iterable[str]) -> dict[str, SplitName]:
    """Returns which of some names beside each other are names of splits.

    A name is one if it holds a word for a split, and what stands around that word is the same in
    all of them, as in `my_train` and `my_test`; what is generic there ("set", "images", a number)
    does not count. Names that fit to nothing are left out.

    Args:
        names: Names beside each other, such as those of the folders in a folder.
    """
    groups: dict[tuple[str, str], dict[str, SplitName | None]] = defaultdict(dict)
    for name in names:
        for around, split in _readings(plain(name)):
            groups[around].setdefault(name, split)
    if not groups:
        return {}

    def rank(around: tuple[str, str]) -> tuple[int, int, int]:
        found = groups[around]
        return (-len(set(found.values())), -len(found), len("".join(around)))

    found = groups[min(sorted(groups), key=rank)]
    evaluation: SplitName = "validation" if "test" in found.values() else "test"
    return {name: split or evaluation for name, split in found.items()}


def _readings(name: str) -> Iterator[tuple[tuple[str, str], SplitName | None]]:
    """Yields what stands around each word for a split in a name, and that split."""
    for split, finder in _FINDERS:
        for match in finder.finditer(name):
            before, after = name[: match.start()], name[match.end(1) :]
            yield (_telling(before), _telling(after)), split


def _telling(text: str) -> str:
    parts = _PART.findall(text)
    return " ".join(part for part in parts if part not in _GENERIC and not part.isdecimal())


def is_store(name: str) -> bool:
    """Returns whether a name says no more than that pictures are in there, as `images` does."""
    return any(_IMAGES.fullmatch(part) for part in _PART.findall(plain(name)))


def are_pieces(names: Iterable[str]) -> bool:
    """Returns whether names are those of one store in pieces, as `images_part_1` beside `..._2`.

    They differ by no more than a number, and say that pictures or parts are in there.
    """
    parts = [_PART.findall(plain(name)) for name in names]
    words = {tuple(part for part in name if not part.isdecimal()) for name in parts}
    return (
        len(parts) > 1
        and len(words) == 1
        and any(_IMAGES.fullmatch(w) or _PIECES.fullmatch(w) for w in next(iter(words)))
    )


def made_from_train(used: Collection[SplitName | None]) -> list[str]:
    """Returns in words which splits are made from train, where data come in splits.

    Args:
        used: The splits that there are; None stands for data in none.
    """
    missing = [split for split in SPLITS if split not in used]
    if None in used or not missing:
        return []
    return [f"{listed(missing)} {'is' if len(missing) == 1 else 'are'} made from train"]


def listed(names: Iterable[str], shown: int = 10) -> str:
    """Returns names in words: the first few, and how many more there are."""
    every = list(names)
    if len(every) > shown:
        return f"{', '.join(every[:shown])} and {len(every) - shown} more"
    return " and ".join(filter(None, [", ".join(every[:-1]), *every[-1:]]))
