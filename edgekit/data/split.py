"""Which picture goes into which split, by content and seed, and what makes a data set unfit."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.data.scan import SPLITS, Source, printable
from edgekit.errors import DataError
from edgekit.records import SplitName

# Perceptual hashes at most this many bits apart count as the same scene when edgekit splits.
_NEAR_BITS = 2
_SHOWN = 5


@dataclass(frozen=True)
class Decoded:
    """A readable picture: its source, the digest of its pixels and its perceptual hash."""

    source: Source
    pixels: str
    difference_hash: int


def assign(
    pictures: Sequence[Decoded], *, validation_fraction: float, test_fraction: float, seed: int
) -> tuple[SplitName, ...]:
    """Returns the split of every picture.

    Folders that already are splits are kept. Otherwise every class is divided on its own; pictures
    that are near-identical (same pixels, or perceptual hashes at most 2 bits apart) go together;
    the order is that of sha256(seed, digest of the pixels), so adding pictures moves few others.

    Args:
        pictures: All readable pictures.
        validation_fraction: Share of each class for validation.
        test_fraction: Share of each class for test.
        seed: Seed of the recipe.
    """
    if all(picture.source.split is not None for picture in pictures):
        return tuple(picture.source.split or "train" for picture in pictures)
    result: dict[int, SplitName] = {}
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        by_class[picture.source.label].append(index)
    for members in by_class.values():
        groups = _near_identical(pictures, members)
        groups.sort(key=lambda group: min(_order(pictures[i].pixels, seed) for i in group))
        wanted = {
            "test": round(len(members) * test_fraction),
            "validation": round(len(members) * validation_fraction),
        }
        for group in groups:
            split: SplitName = "train"
            for name in ("test", "validation"):
                if wanted[name] >= len(group):
                    wanted[name] -= len(group)
                    split = "test" if name == "test" else "validation"
                    break
            result.update(dict.fromkeys(group, split))
    return tuple(result[index] for index in range(len(pictures)))


def _order(pixels: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{pixels}".encode()).hexdigest()


def _near_identical(pictures: Sequence[Decoded], members: list[int]) -> list[list[int]]:
    """Groups indices whose hashes are within `_NEAR_BITS`, transitively."""
    parent = {index: index for index in members}

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    # With d differing bits allowed, one of d + 1 equal parts of the hash must match exactly.
    bands = _NEAR_BITS + 1
    width = -(-64 // bands)
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in members:
        for band in range(bands):
            part = pictures[index].difference_hash >> (band * width) & ((1 << width) - 1)
            buckets[band, part].append(index)
    for bucket in buckets.values():
        for position, first in enumerate(bucket):
            for second in bucket[position + 1 :]:
                if root(first) == root(second):
                    continue
                bits = pictures[first].difference_hash ^ pictures[second].difference_hash
                if bits.bit_count() <= _NEAR_BITS:
                    parent[root(second)] = root(first)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in members:
        groups[root(index)].append(index)
    return list(groups.values())


def check(
    pictures: Sequence[Decoded],
    splits: Sequence[SplitName],
    class_names: tuple[str, ...],
    min_images_per_class: int,
) -> None:
    """Refuses data on which a result would mean nothing.

    Args:
        pictures: All readable pictures.
        splits: Split of each picture.
        class_names: Names in label order.
        min_images_per_class: Fewest training pictures a class may have.

    Raises:
        DataError: If the same pixels stand under two classes or in train and test (or validation
            and test, or train and validation), a class has too few training pictures, or a split
            lacks a class; files are named.
    """
    by_pixels: dict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        by_pixels[picture.pixels].append(index)
    repeated = [group for group in by_pixels.values() if len(group) > 1]
    conflicts = [g for g in repeated if len({pictures[i].source.label for i in g}) > 1]
    if conflicts:
        raise DataError(
            f"{len(conflicts)} pictures stand under two classes: {_name(pictures, conflicts)}",
            "one class per picture",
            "delete the wrong copy of each",
        )
    leaks = [g for g in repeated if len({splits[i] for i in g}) > 1]
    if leaks:
        raise DataError(
            f"{len(leaks)} pictures stand in more than one split: {_name(pictures, leaks)}",
            "no picture of train in validation or test, which would flatter the accuracy",
            "delete one copy of each",
        )
    counts = count(pictures, splits, len(class_names))
    for label, name in enumerate(class_names):
        for split in SPLITS:
            minimum = min_images_per_class if split == "train" else 1
            if counts[split][label] < minimum:
                raise DataError(
                    f"class {printable(name)!r} has {counts[split][label]} readable pictures in "
                    f"{split}",
                    f"at least {minimum}",
                    "add pictures, remove the class, or lower data.min_images_per_class",
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
