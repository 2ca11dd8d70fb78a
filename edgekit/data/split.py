"""Which picture goes into which split or into none, by content and seed; what is unfit as a whole.

The same pixels under two classes, or on both sides of a split that was given, go into no split
or into one.
"""

import hashlib
import itertools
import math
from bisect import bisect, insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.data.files import printable
from edgekit.data.names import SPLITS
from edgekit.data.picture import MINIATURE_PX, Fingerprint
from edgekit.data.scan import Source
from edgekit.errors import DataError
from edgekit.records import SplitName

# Two pictures are near-identical if their difference hashes are at most _NEAR_BITS apart and no
# value of their miniatures differs by more than _NEAR_LEVELS + _NEAR_CONTRAST * contrast, contrast
# being the standard deviation of a miniature around its mean colour (the smaller of the two).
# Measured on the 3781 photographs of shared/data/clothing: (largest difference - 4) / contrast of a
# copy to its original is at most 0.13 at JPEG quality 40, 0.27 at half the size and 0.38 at both;
# of two different photographs it is at least 1.0 over all 7.1 million pairs. One pair, under two
# classes, is the same photograph (-0.04). 0.6 is the geometric middle. The 4 levels are for flat
# pictures, where JPEG rounds the mean colour. Within 4 bits lie 99.8 %, 99.1 % and 98.0 % of the
# copies, within 2 bits only 97 %, 91 % and 83 %. Pictures far below 128 px a side are told apart
# too readily: at quality 75 98 % of the copies are found at 64 px, 57 % at 32 px.
_NEAR_BITS = 4
_NEAR_LEVELS = 4
_NEAR_CONTRAST = 0.6
# Thousands of drawings on white can share one hash; comparing only with those nearest in mean
# brightness, of which near-identical pictures differ little, keeps the time near-linear.
_CANDIDATES = 64
_HASH_BITS = 64
_SHOWN = 5


@dataclass(frozen=True)
class Decoded:
    """A readable picture: its source and what its pixels look like."""

    source: Source
    look: Fingerprint


@dataclass(frozen=True)
class Copy:
    """A picture that is left out, because its pixels stand elsewhere, too.

    Args:
        index: Which picture.
        same_as: Index of one with the same pixels.
        kind: "two-classes" where that one is of another class, and both are left out; "copy" where
            it is in a split that is held out from more.
    """

    index: int
    same_as: int
    kind: Literal["two-classes", "copy"]


@dataclass(frozen=True)
class _Look:
    """What is compared: values (256, 3) of the miniature, their sum, and their contrast."""

    difference_hash: int
    values: npt.NDArray[np.int16]
    brightness: int
    contrast: float


def _look(found: Fingerprint) -> _Look:
    values = np.frombuffer(found.miniature, np.uint8).reshape(MINIATURE_PX**2, 3)
    contrast = float(values.std(axis=0).mean())
    return _Look(found.difference_hash, values.astype(np.int16), int(values.sum()), contrast)


def assign(
    pictures: Sequence[Decoded], *, validation_fraction: float, test_fraction: float, seed: int
) -> tuple[tuple[SplitName, ...], list[list[int]]]:
    """Returns the split of every picture, and the groups that were kept on one side.

    Folders that already are splits are kept. What is in none of them, or in train where validation
    or test is missing, is divided class by class, but near-identical pictures, of one class or of
    several, go together; the order is that of sha256(seed, digest of the pixels), so adding
    pictures moves few others.

    Args:
        pictures: All readable pictures.
        validation_fraction: Share of what is divided of each class for validation.
        test_fraction: Share of it for test.
        seed: Seed of the recipe.

    Returns:
        The splits in the order of `pictures`, and the indices of each group of more than one.
    """
    shares: dict[SplitName, float] = {"test": test_fraction, "validation": validation_fraction}
    fractions = {split: shares[split] for split in _made(pictures)}
    result = {index: _given(picture) for index, picture in enumerate(pictures)}
    if not fractions:
        return tuple(result.values()), []
    divided = [index for index, split in result.items() if split == "train"]
    groups = [
        [divided[i] for i in group] for group in _near_identical([pictures[i] for i in divided])
    ]
    groups.sort(key=lambda group: min(_order(pictures[i].look.pixels, seed) for i in group))
    wanted = {
        (split, label): round(size * fraction)
        for label, size in Counter(pictures[i].source.label for i in divided).items()
        for split, fraction in fractions.items()
    }
    for group in groups:
        labels = Counter(pictures[i].source.label for i in group)
        chosen: SplitName = "train"
        for split in fractions:
            if all(wanted[split, label] >= size for label, size in labels.items()):
                for label, size in labels.items():
                    wanted[split, label] -= size
                chosen = split
                break
        result.update(dict.fromkeys(group, chosen))
    splits = tuple(result[index] for index in range(len(pictures)))
    return splits, [group for group in groups if len(group) > 1]


def _given(picture: Decoded) -> SplitName:
    """Returns the split of a picture that comes with splits; what is to be divided is train."""
    return picture.source.split or "train"


def _made(pictures: Sequence[Decoded]) -> tuple[SplitName, ...]:
    """Returns the splits that edgekit makes from train."""
    given = {picture.source.split for picture in pictures}
    held_out: tuple[SplitName, ...] = ("test", "validation")
    return tuple(split for split in held_out if split not in given)


def _order(pixels: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{pixels}".encode()).hexdigest()


def _near_identical(pictures: Sequence[Decoded]) -> list[list[int]]:
    """Groups indices: each picture is near-identical to the first of its group.

    Nothing is linked through a third picture, or a class of similar drawings would become one
    chain. The digests give the order, so neither file names nor the order of files decide.
    """
    by_pixels = _by_pixels(pictures)
    known = _Known(len(by_pixels))
    groups: list[list[int]] = []
    for digest in sorted(by_pixels):
        look = _look(pictures[by_pixels[digest][0]].look)
        near = next(known.near(look), None)
        if near is None:
            known.add(look)
            groups.append(by_pixels[digest])
        else:
            groups[near] += by_pixels[digest]
    return groups


class _Known:
    """Looks, numbered in the order in which they were added, and found by near-identical ones.

    Args:
        most: How many will be added at most.
    """

    def __init__(self, most: int) -> None:
        self._looks: list[_Look] = []
        self._hashes = np.empty(most, np.uint64)
        # With d differing bits allowed, one of d + 1 parts of the hash must match exactly.
        self._buckets: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)

    def add(self, look: _Look) -> None:
        for part in _parts(look.difference_hash):
            insort(self._buckets[part], (look.brightness, len(self._looks)))
        self._hashes[len(self._looks)] = look.difference_hash
        self._looks.append(look)

    def near(self, look: _Look) -> Iterator[int]:
        """Yields the numbers of near-identical looks, the first ones first."""
        candidates: list[int] = []
        for part in _parts(look.difference_hash):
            bucket = self._buckets[part]
            place = bisect(bucket, (look.brightness, 0))
            nearest = bucket[max(0, place - _CANDIDATES // 2) : place + _CANDIDATES // 2]
            candidates += [number for _, number in nearest]
        differing = np.bitwise_count(self._hashes[candidates] ^ np.uint64(look.difference_hash))
        close = itertools.compress(candidates, differing <= _NEAR_BITS)
        return (n for n in sorted(set(close)) if _are_alike(self._looks[n], look))


def _parts(difference_hash: int) -> list[tuple[int, int]]:
    count = _NEAR_BITS + 1
    width = -(-_HASH_BITS // count)
    mask = (1 << width) - 1
    return [(part, difference_hash >> (part * width) & mask) for part in range(count)]


def _are_alike(one: _Look, other: _Look) -> bool:
    """Returns whether two pictures whose hashes are near are near-identical."""
    limit = _NEAR_LEVELS + _NEAR_CONTRAST * min(one.contrast, other.contrast)
    return bool(np.abs(one.values - other.values).max() <= limit)


def _by_pixels(pictures: Sequence[Decoded]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        groups[picture.look.pixels].append(index)
    return groups


def copies(pictures: Sequence[Decoded]) -> list[Copy]:
    """Returns the pictures to leave out, as their pixels stand under another class or split, too.

    Of pixels in several splits that were given, those in test stay, else those in validation:
    a result on pictures that training saw would be flattered. What edgekit divides itself needs
    no leaving out, as it goes to one side.

    Args:
        pictures: All readable pictures.
    """
    found = []
    for group in _by_pixels(pictures).values():
        labels = [pictures[i].source.label for i in group]
        if len(set(labels)) > 1:
            others = {label: next(i for i, other in zip(group, labels, strict=True)
                                  if other != label) for label in set(labels)}  # fmt: skip
            found += [
                Copy(i, others[label], "two-classes")
                for i, label in zip(group, labels, strict=True)
            ]
            continue
        kept = max(group, key=lambda i: SPLITS.index(_given(pictures[i])))
        found += [
            Copy(i, kept, "copy") for i in group if _given(pictures[i]) != _given(pictures[kept])
        ]
    return sorted(found, key=lambda copy: copy.index)


def refuse_conflicts(
    pictures: Sequence[Decoded], left_out: Sequence[Copy], max_fraction: float
) -> None:
    """Refuses too many pictures whose pixels stand under two classes.

    One group of equal pictures always passes, unless none is to: one mistake in a small set is
    no reason to stop.

    Args:
        pictures: All readable pictures.
        left_out: What `copies` returns for them.
        max_fraction: Largest share of the pictures that may be left out for this.

    Raises:
        DataError: If there are more, or nothing is left; the first files are named.
    """
    groups = conflicting(pictures, left_out)
    count = sum(map(len, groups))
    passes = count <= max_fraction * len(pictures) or (len(groups) == 1 and max_fraction > 0)
    if not groups or (passes and count < len(pictures)):
        return
    raise DataError(
        f"{count} of {len(pictures)} pictures stand under two classes with the same pixels: "
        f"{name_groups(pictures, groups)}",
        f"at most {max_fraction:.1%} (data.max_conflicting_fraction), which are left out",
        "delete the wrong copy of each, or raise data.max_conflicting_fraction",
    )


def conflicting(pictures: Sequence[Decoded], left_out: Sequence[Copy]) -> list[list[int]]:
    """Returns the groups of equal pictures under several classes."""
    return _grouped(pictures, [copy.index for copy in left_out if copy.kind == "two-classes"])


def _grouped(pictures: Sequence[Decoded], chosen: Sequence[int]) -> list[list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index in chosen:
        groups[pictures[index].look.pixels].append(index)
    return list(groups.values())


@dataclass(frozen=True)
class NearIdentical:
    """Near-identical pictures where that matters: the index of each, and that of one it is like.

    Args:
        across_splits: Pictures of a split that was given to them, like one of a split that is held
            out from less: test like validation or train, validation like train.
        across_classes: Pictures like one of another class.
    """

    across_splits: Mapping[int, int]
    across_classes: Mapping[int, int]


def near_identical(pictures: Sequence[Decoded], splits: Sequence[SplitName]) -> NearIdentical:
    """Returns which pictures are near-identical to one of another split or of another class.

    Args:
        pictures: The pictures that are used.
        splits: Split of each.
    """
    by_pixels = _by_pixels(pictures)
    known = _Known(len(by_pixels))
    members: list[list[int]] = []
    divided = bool(_made(pictures))
    across_splits: dict[int, int] = {}
    across_classes: dict[int, int] = {}

    def place(index: int) -> tuple[int, int]:
        return SPLITS.index(splits[index]), index

    def meet(one: int, other: int) -> None:
        made = divided and {_given(pictures[one]), _given(pictures[other])} == {"train"}
        if splits[one] != splits[other] and not made:
            seen, held_out = sorted((one, other), key=place)
            across_splits[held_out] = min(across_splits.get(held_out, seen), seen, key=place)
        if pictures[one].source.label != pictures[other].source.label:
            for here, there in ((one, other), (other, one)):
                across_classes[here] = min(across_classes.get(here, there), there)

    for digest in sorted(by_pixels):
        group = by_pixels[digest]
        look = _look(pictures[group[0]].look)
        for near in known.near(look):
            for one in group:
                for other in members[near]:
                    meet(one, other)
        known.add(look)
        members.append(group)
    return NearIdentical(dict(sorted(across_splits.items())), dict(sorted(across_classes.items())))


def check(
    pictures: Sequence[Decoded],
    splits: Sequence[SplitName],
    class_names: tuple[str, ...],
    *,
    min_images_per_class: int,
    validation_fraction: float,
    test_fraction: float,
    left_out: Sequence[Source] = (),
) -> None:
    """Refuses data on which a result would mean nothing.

    Args:
        pictures: All readable pictures.
        splits: Split of each picture.
        class_names: Names in label order.
        min_images_per_class: Fewest training pictures a class may have.
        validation_fraction: Share of each class that was to become validation.
        test_fraction: Share of each class that was to become test.
        left_out: Pictures that `copies` took out. Defaults to none.

    Raises:
        DataError: If a class has too few training pictures, or a split lacks a class.
    """
    counts = count(pictures, splits, len(class_names))
    fractions: dict[SplitName, float] = {"validation": validation_fraction, "test": test_fraction}
    given = {picture.source.split for picture in pictures}
    for label, name in enumerate(class_names):
        if counts["train"][label] < min_images_per_class:
            raise DataError(
                f"class {printable(name)!r} has {counts['train'][label]} readable pictures in "
                f"train{_besides(left_out, label, 'train')}",
                f"at least {min_images_per_class}",
                "add pictures, remove the class, or lower data.min_images_per_class",
            )
        total = sum(counts[split][label] for split in SPLITS)
        for split, fraction in fractions.items():
            if counts[split][label] == 0:
                received = f"class {printable(name)!r} has 0 readable pictures in {split}"
                received += _besides(left_out, label, split)
                if split in given:
                    remedy = f"add pictures of it to the folder {split}, or remove the class"
                    raise DataError(received, "at least 1", remedy)
                option = f"data.{split}_fraction = {fraction:g}"
                raise DataError(f"{received}, of {total} in all", *_share(option, fraction, total))


def _besides(left_out: Sequence[Source], label: int, split: SplitName) -> str:
    """Returns how many more a split would have of a class if none had been left out."""
    count = sum(s.label == label and (s.split or "train") == split for s in left_out)
    return f", beside {count} left out as copies of others" if count else ""


def _share(option: str, fraction: float, total: int) -> tuple[str, str]:
    """Returns what was expected and what to do where a class got no picture of its share."""
    needed = int(0.5 / fraction) + 1  # the smallest n with round(n * fraction) >= 1
    if total >= needed:
        return (
            f"a share of {round(total * fraction)} ({option}) that near-identical pictures, which "
            "stay together, fit into",
            "add pictures of other scenes, remove the class, or raise that fraction",
        )
    return (
        f"at least {needed} pictures, of which {option} gives 1",
        f"add {needed - total} pictures, remove the class, or raise that fraction above "
        f"{math.ceil(50 / total) / 100:g}",
    )


def count(
    pictures: Sequence[Decoded], splits: Sequence[SplitName], class_count: int
) -> dict[SplitName, list[int]]:
    """Returns the number of pictures per split and class."""
    counts: dict[SplitName, list[int]] = {split: [0] * class_count for split in SPLITS}
    for picture, split in zip(pictures, splits, strict=True):
        counts[split][picture.source.label] += 1
    return counts


def name_groups(pictures: Sequence[Decoded], groups: Sequence[Sequence[int]]) -> str:
    """Returns the paths of the first groups of pictures, and how many more groups there are."""
    shown = [
        " = ".join(printable(pictures[index].source.relative) for index in group)
        for group in groups[:_SHOWN]
    ]
    more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    return "; ".join(shown) + more
