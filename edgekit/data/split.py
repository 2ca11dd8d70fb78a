"""Which picture goes into which split, by content and seed, and what makes a data set unfit."""

import hashlib
import math
from bisect import bisect, insort
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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
    given = {picture.source.split for picture in pictures}
    shares: dict[SplitName, float] = {"test": test_fraction, "validation": validation_fraction}
    fractions = {split: share for split, share in shares.items() if split not in given}
    result = {index: picture.source.split or "train" for index, picture in enumerate(pictures)}
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


def _order(pixels: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{pixels}".encode()).hexdigest()


def _near_identical(pictures: Sequence[Decoded]) -> list[list[int]]:
    """Groups indices: each picture is near-identical to the first of its group.

    Nothing is linked through a third picture, or a class of similar drawings would become one
    chain. The digests give the order, so neither file names nor the order of files decide.
    """
    by_pixels = _by_pixels(pictures)
    first: list[_Look] = []
    groups: list[list[int]] = []
    # With d differing bits allowed, one of d + 1 parts of the hash must match exactly.
    buckets: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for digest in sorted(by_pixels):
        look = _look(pictures[by_pixels[digest][0]].look)
        parts = _parts(look.difference_hash)
        candidates: set[int] = set()
        for part in parts:
            bucket = buckets[part]
            place = bisect(bucket, (look.brightness, 0))
            nearest = bucket[max(0, place - _CANDIDATES // 2) : place + _CANDIDATES // 2]
            candidates.update(number for _, number in nearest)
        near = next((n for n in sorted(candidates) if _are_near(first[n], look)), None)
        if near is not None:
            groups[near] += by_pixels[digest]
            continue
        for part in parts:
            insort(buckets[part], (look.brightness, len(groups)))
        groups.append(by_pixels[digest])
        first.append(look)
    return groups


def _parts(difference_hash: int) -> list[tuple[int, int]]:
    count = _NEAR_BITS + 1
    width = -(-_HASH_BITS // count)
    mask = (1 << width) - 1
    return [(part, difference_hash >> (part * width) & mask) for part in range(count)]


def _are_near(one: _Look, other: _Look) -> bool:
    if (one.difference_hash ^ other.difference_hash).bit_count() > _NEAR_BITS:
        return False
    limit = _NEAR_LEVELS + _NEAR_CONTRAST * min(one.contrast, other.contrast)
    return bool(np.abs(one.values - other.values).max() <= limit)


def _by_pixels(pictures: Sequence[Decoded]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        groups[picture.look.pixels].append(index)
    return groups


def refuse_conflicts(pictures: Sequence[Decoded]) -> None:
    """Refuses the same pixels under two classes.

    Raises:
        DataError: If there are any; the files are named.
    """
    groups = _by_pixels(pictures).values()
    conflicts = [g for g in groups if len({pictures[i].source.label for i in g}) > 1]
    if conflicts:
        raise DataError(
            f"{len(conflicts)} pictures stand under two classes: {_name(pictures, conflicts)}",
            "one class per picture",
            "delete the wrong copy of each",
        )


def check(
    pictures: Sequence[Decoded],
    splits: Sequence[SplitName],
    class_names: tuple[str, ...],
    *,
    min_images_per_class: int,
    validation_fraction: float,
    test_fraction: float,
) -> None:
    """Refuses data on which a result would mean nothing.

    Args:
        pictures: All readable pictures.
        splits: Split of each picture.
        class_names: Names in label order.
        min_images_per_class: Fewest training pictures a class may have.
        validation_fraction: Share of each class that was to become validation.
        test_fraction: Share of each class that was to become test.

    Raises:
        DataError: If the same pixels stand under two classes or in train and test (or validation
            and test, or train and validation), a class has too few training pictures, or a split
            lacks a class; files are named.
    """
    refuse_conflicts(pictures)
    leaks = [g for g in _by_pixels(pictures).values() if len({splits[i] for i in g}) > 1]
    if leaks:
        raise DataError(
            f"{len(leaks)} pictures stand in more than one split: {_name(pictures, leaks)}",
            "no picture of train in validation or test, which would flatter the accuracy",
            "delete one copy of each",
        )
    counts = count(pictures, splits, len(class_names))
    fractions: dict[SplitName, float] = {"validation": validation_fraction, "test": test_fraction}
    given = {picture.source.split for picture in pictures}
    for label, name in enumerate(class_names):
        if counts["train"][label] < min_images_per_class:
            raise DataError(
                f"class {printable(name)!r} has {counts['train'][label]} readable pictures in "
                "train",
                f"at least {min_images_per_class}",
                "add pictures, remove the class, or lower data.min_images_per_class",
            )
        total = sum(counts[split][label] for split in SPLITS)
        for split, fraction in fractions.items():
            if counts[split][label] == 0:
                received = f"class {printable(name)!r} has 0 readable pictures in {split}"
                if split in given:
                    remedy = f"add pictures of it to the folder {split}, or remove the class"
                    raise DataError(received, "at least 1", remedy)
                option = f"data.{split}_fraction = {fraction:g}"
                raise DataError(f"{received}, of {total} in all", *_share(option, fraction, total))


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


def _name(pictures: Sequence[Decoded], groups: list[list[int]]) -> str:
    shown = [
        " = ".join(printable(pictures[index].source.relative) for index in group)
        for group in groups[:_SHOWN]
    ]
    more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    return "; ".join(shown) + more
