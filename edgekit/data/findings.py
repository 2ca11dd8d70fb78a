"""What is said about single pictures: sentences for a screen, and tables that list all of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.data.appearance import Finding, in_words
from edgekit.data.files import printable
from edgekit.data.split import Copy, Decoded, NearIdentical, conflicting, name_groups
from edgekit.records import SkippedFile, SplitName
from edgekit.spreadsheet import table_bytes

LEFT_OUT = "left_out.csv"
OTHER_LEFT_OUT = "other_left_out.csv"
NEAR_IDENTICAL = "near_identical.csv"
UNUSUAL = "unusual_pictures.csv"
# An empty column for the user, see `corrections`.
ACTION = "action"
# What a run folder may hold of the data stage; only those with something to say are written.
TABLES = (LEFT_OUT, NEAR_IDENTICAL, UNUSUAL)
_SHOWN = 3


def skipped_copies(pictures: Sequence[Decoded], left_out: Sequence[Copy]) -> list[SkippedFile]:
    """Returns the records of pictures that are left out for their pixels."""
    return [
        SkippedFile(
            path=_path(pictures[copy.index]),
            reason=f"the same pixels as {_path(pictures[copy.same_as])}"
            + (", under another class" if copy.kind == "two-classes" else ""),
            kind=copy.kind,
        )
        for copy in left_out
    ]


def write_left_out(folder: Path, skipped: Sequence[SkippedFile], name: str = LEFT_OUT) -> None:
    """Writes which files are left out and why, if any are; into a file of that name."""
    if skipped:
        rows = [(item.path, item.kind, item.reason, "") for item in skipped]
        _write(folder / name, ("path", "kind", "reason", ACTION), rows)


def write_near_identical(
    folder: Path,
    pictures: Sequence[Decoded],
    splits: Sequence[SplitName],
    class_names: Sequence[str],
    found: NearIdentical,
) -> None:
    """Writes which pictures are near-identical to one of another split or class, if any are."""

    def cells(index: int) -> tuple[str, str, str]:
        picture = pictures[index]
        return _path(picture), splits[index], printable(class_names[picture.source.label])

    pairs = {*found.across_splits.items(), *found.across_classes.items()}
    if pairs:
        like = ("like_path", "like_split", "like_label")
        rows = [(*cells(one), *cells(other), "") for one, other in sorted(pairs)]
        _write(folder / NEAR_IDENTICAL, ("path", "split", "label", *like, ACTION), rows)


def write_unusual(
    folder: Path,
    pictures: Sequence[Decoded],
    splits: Sequence[SplitName],
    class_names: Sequence[str],
    found: Mapping[Finding, Sequence[tuple[int, str]]],
) -> None:
    """Writes which pictures look unlike what a network learns from, if any do."""
    rows = [
        (
            _path(pictures[index]),
            splits[index],
            printable(class_names[pictures[index].source.label]),
            finding,
            measured,
            "",
        )
        for finding, members in found.items()
        for index, measured in members
    ]
    if rows:
        columns = ("path", "split", "label", "finding", "measured", ACTION)
        _write(folder / UNUSUAL, columns, sorted(rows))


def copy_notes(pictures: Sequence[Decoded], left_out: Sequence[Copy]) -> tuple[str, ...]:
    """Returns how many pictures are left out for their pixels, and which ones first."""
    notes = []
    groups = conflicting(pictures, left_out)
    if groups:
        notes.append(
            f"left out of all splits: {sum(map(len, groups))} pictures that stand under two "
            f"classes with the same pixels: {name_groups(pictures, groups)}; {LEFT_OUT} lists them"
        )
    held_out = [copy for copy in left_out if copy.kind == "copy"]
    for split, later in (("train", "validation or test"), ("validation", "test")):
        pairs = [
            (copy.same_as, copy.index)
            for copy in held_out
            if (pictures[copy.index].source.split or "train") == split
        ]
        if pairs:
            notes.append(
                f"left out of {split}: {len(pairs)} pictures whose pixels stand in {later}, too: "
                f"{name_groups(pictures, pairs)}; {LEFT_OUT} lists them"
            )
    return tuple(notes)


def near_notes(
    pictures: Sequence[Decoded], splits: Sequence[SplitName], found: NearIdentical
) -> tuple[str, ...]:
    """Returns how many pictures are near-identical to one of another split or class."""

    def example(pairs: list[tuple[int, int]]) -> str:
        one, other = pairs[0]
        return f"such as {_path(pictures[one])} and {_path(pictures[other])}"

    notes = []
    counts = Counter((splits[held], splits[seen]) for held, seen in found.across_splits.items())
    if counts:
        shares = " and ".join(
            f"{_are(count, f' of {held}')} near-identical to pictures of {seen}"
            for (held, seen), count in sorted(counts.items())
        )
        pairs = list(found.across_splits.items())
        notes.append(
            f"{shares}, which flatters the accuracy, {example(pairs)}; {NEAR_IDENTICAL} lists them"
        )
    if found.across_classes:
        pairs = list(found.across_classes.items())
        notes.append(
            f"{_are(len(pairs))} near-identical to one of another class, {example(pairs)}: "
            f"one label of each pair may be wrong; {NEAR_IDENTICAL} lists them"
        )
    return tuple(notes)


def unusual_notes(
    pictures: Sequence[Decoded], found: Mapping[Finding, Sequence[tuple[int, str]]]
) -> tuple[str, ...]:
    """Returns how many pictures look unlike what a network learns from, of each kind."""
    notes = []
    for finding, members in found.items():
        shown = ", ".join(_path(pictures[index]) for index, _ in members[:_SHOWN])
        more = f" and {len(members) - _SHOWN} more" if len(members) > _SHOWN else ""
        notes.append(
            f"{_are(len(members))} {in_words(finding)}: {shown}{more}; {UNUSUAL} lists them"
        )
    return tuple(notes)


def _are(count: int, which: str = "") -> str:
    return f"1 picture{which} is" if count == 1 else f"{count:,} pictures{which} are"


def _path(picture: Decoded) -> str:
    return printable(picture.source.relative)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    path.write_bytes(table_bytes(columns, rows))
