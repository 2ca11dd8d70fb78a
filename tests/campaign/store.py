"""Every file of a finished run's store, spoilt in every way; then the run or its packaging again.

Behind the alteration edgekit must end with the artifacts, the report and the bundle of the
unaltered run, or refuse. The run folder's own files, `artifacts/` and `report.json`, are attacked
likewise before packaging; a run writes them anew.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from campaign.alter import FILES, ways
from campaign.attack import Attack, Outcome, trouble
from campaign.base import DONE, TARGETS, Base, difference, package, published
from edgekit.data.findings import TABLES
from edgekit.store import file_digest

RUN, PACKAGE, FOLDER = "store, then run", "store, then package", "run folder, then package"
# Names that a finished run folder and its store hold.
_OWN = {"artifacts", "report.json", "report.md", "answers.csv", ".store", *TABLES}
# Of the files of a run folder; a report that does not come from this run is another matter.
_FOLDER_WAYS = ("flip", "truncate", "empty", "delete", "noise", "directory", "fifo", "link")
Change = Callable[[Path, Random, Path], None]


def attacks(base: Base) -> Iterator[Attack]:
    """Yields the attacks on the store of a finished run.

    Args:
        base: The run.
    """
    store = base.out / ".store"
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        below = path.relative_to(base.out)
        shown = _shown(below)
        for how in ways(path):
            yield from _both(base, f"{shown}: {how}", below, FILES[how])
        for name, change in _swaps(base, below):
            yield from _both(base, f"{shown}: {name}", below, change)
    for folder in sorted(store.glob("*/*")):
        below = folder.relative_to(base.out)
        for name, change in _folder_swaps(base, below):
            yield from _both(base, f"{_shown(below)}: {name}", below, change)
    for path in (*sorted((base.out / "artifacts").iterdir()), base.out / "report.json"):
        below = path.relative_to(base.out)
        for how in _FOLDER_WAYS:
            yield Attack(FOLDER, f"{below}: {how}", packaging(base, below, FILES[how]))


def _shown(below: Path) -> str:
    """Returns a path in the store with its key cut short."""
    parts = below.relative_to(".store").parts
    return "/".join((*parts[:1], *(part[:8] for part in parts[1:2]), *parts[2:]))


def _both(base: Base, name: str, below: Path, change: Change) -> Iterator[Attack]:
    yield Attack(RUN, name, running(base, below, change))
    yield Attack(PACKAGE, name, packaging(base, below, change))


def _siblings(base: Base, folder: Path) -> list[Path]:
    """Returns the folders of other keys of the same stage, below the run folder."""
    found = sorted((base.out / folder.parent).iterdir())
    return [path.relative_to(base.out) for path in found if path.name != folder.name]


def _swaps(base: Base, below: Path) -> Iterator[tuple[str, Change]]:
    """Yields what can be done to a file with the same file of another key."""
    for other in _siblings(base, below.parent) if len(below.parts) == 4 else ():
        if not (base.out / other / below.name).is_file():
            continue

        def swap(path: Path, _random: Random, _outside: Path, other: Path = other) -> None:
            twin = path.parents[3] / other / path.name
            spare = path.with_name("spare")
            path.rename(spare)
            twin.rename(path)
            spare.rename(twin)

        def copy(path: Path, _random: Random, _outside: Path, other: Path = other) -> None:
            shutil.copyfile(path.parents[3] / other / path.name, path)

        yield "swapped with another key's", swap
        yield "copied from another key", copy


def _folder_swaps(base: Base, below: Path) -> Iterator[tuple[str, Change]]:
    """Yields what can be done to a whole result."""
    yield "whole result deleted", lambda path, _random, _outside: shutil.rmtree(path)
    yield "whole result a file", _to_file
    yield "whole result linked", _to_linked
    for other in _siblings(base, below):

        def swap(path: Path, _random: Random, _outside: Path, other: Path = other) -> None:
            twin, spare = path.with_name(other.name), path.with_name("spare")
            path.rename(spare)
            twin.rename(path)
            spare.rename(twin)

        yield "whole result swapped with another key's", swap


def _to_file(path: Path, random: Random, _outside: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(random.randbytes(100))


def _to_linked(path: Path, _random: Random, outside: Path) -> None:
    path.symlink_to(shutil.move(path, outside))


def running(base: Base, below: Path, change: Change) -> Callable[[Path, Random], Outcome]:
    """Returns an attack that changes something of a finished run and runs it again.

    Args:
        base: The finished run.
        below: What to change, below the run folder.
        change: How.
    """

    def attack(place: Path, random: Random) -> Outcome:
        out = base.restore(place)
        change(out / below, random, place / "outside")
        # So that what lies there afterwards was published by this run.
        shutil.rmtree(out / "artifacts")
        (out / "report.json").unlink()
        ran = base.run(place)
        told = trouble(ran, DONE)
        if told is not None:
            return told
        told_apart = difference(published(out), base.published)
        if told_apart:
            return Outcome("accepted", told_apart, (ran,))
        lying = left_over(out)
        if lying:
            return Outcome("left over", ", ".join(lying), (ran,))
        made = [line for line in ran.stderr.splitlines() if ": done in " in line]
        if made:
            return Outcome("rebuilt", "; ".join(made), (ran,))
        return Outcome("harmless", "all reused, with the same artifacts and report", (ran,))

    return attack


def packaging(base: Base, below: Path, change: Change) -> Callable[[Path, Random], Outcome]:
    """Returns an attack that changes something of a finished run and packages it; see `running`."""

    def attack(place: Path, random: Random) -> Outcome:
        out = base.restore(place)
        change(out / below, random, place / "outside")
        target = TARGETS[0]
        ran = package(base, place, out, target, place / "packages")
        told = trouble(ran, (0,))
        if told is not None:
            return told
        if file_digest(place / "packages" / f"{target}.zip") != base.bundles[target]:
            return Outcome("accepted", f"another bundle: {ran.stderr.strip()}", (ran,))
        return Outcome("harmless", "the same bundle", (ran,))

    return attack


def left_over(out: Path) -> list[str]:
    """Returns what lies in a finished run folder and belongs to no result of it."""
    strange = [path for path in out.iterdir() if path.name not in _OWN]
    strange += [path for path in out.rglob(".*") if path != out / ".store"]
    steps = (out / ".store").glob("*-*")  # of a stage that runs
    strange += [path for path in steps if path.is_dir() and not path.is_symlink()]
    return sorted({path.relative_to(out).as_posix() for path in strange})
