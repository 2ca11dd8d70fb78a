"""What an attack is, and what its outcome may be."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

from campaign.watch import Ran

Result = Literal[
    "refused", "rebuilt", "harmless", "accepted", "traceback", "hang", "memory", "disk", "left over"
]
GOOD: tuple[Result, ...] = ("refused", "rebuilt", "harmless")
BAD: tuple[Result, ...] = ("accepted", "traceback", "hang", "memory", "disk", "left over")
# Usage, recipe or target; data; integrity; device. See edgekit/errors.py.
REFUSALS = (2, 3, 6, 7)
_BROKEN: dict[str, Result] = {
    "seconds": "hang",
    "idle_seconds": "hang",
    "memory_mb": "memory",
    "disk_mb": "disk",
}
_PARTS = re.compile(r"^error: \S.*^  expected: \S.*^  to do: +\S", re.M | re.S)


@dataclass(frozen=True)
class Outcome:
    """What came of an attack.

    Args:
        result: refused: by an exit code and a sentence of three parts; rebuilt: what was spoilt was
            noticed and made again, to the same bytes; harmless: the result is proven to be that of
            the unaltered; accepted: it is another result, or something altered was said to be
            right; traceback: edgekit crashed or refused without its three parts; hang, memory,
            disk: it broke a limit; left over: it left processes or files behind.
        why: In words.
        ran: The processes it took.
    """

    result: Result
    why: str
    ran: tuple[Ran, ...] = field(default=(), repr=False)

    @property
    def seconds(self) -> float:
        """Wall time of the longest process."""
        return max((ran.seconds for ran in self.ran), default=0.0)

    @property
    def peak_mb(self) -> float:
        """Most memory of a process and its descendants."""
        return max((ran.peak_mb for ran in self.ran), default=0.0)


@dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        kind: Its row in the table.
        name: Unique in its kind; with the seed it says everything.
        run: Tries it in an empty folder with its own random numbers.
    """

    kind: str
    name: str
    run: Callable[[Path, Random], Outcome]


def last_words(text: str, most: int = 300) -> str:
    """Returns the end of what a program said, in one line."""
    return " ".join(text.split())[-most:]


def trouble(ran: Ran, codes: tuple[int, ...]) -> Outcome | None:
    """Returns what is wrong with how edgekit ended, or a refusal, or None if it did its work.

    Args:
        ran: How it ended.
        codes: Exit codes with which it has done its work.
    """
    said = last_words(ran.stderr)
    if ran.broke:
        taken = f"{ran.seconds:.1f} s, {ran.peak_mb:.0f} MB, {ran.disk_mb:.0f} MB on disk"
        return Outcome(_BROKEN[ran.broke], f"{taken}: {said}", (ran,))
    if "Traceback (most recent call last)" in ran.stderr or ran.code == 1 or ran.code < 0:
        return Outcome("traceback", f"exit code {ran.code}: {said}", (ran,))
    if ran.code in codes:
        return None
    if ran.code in REFUSALS and _PARTS.search(ran.stderr):
        (sentence, *_) = re.findall(r"^error: .*", ran.stderr, re.M)
        return Outcome("refused", f"{ran.code}: {sentence}", (ran,))
    return Outcome("traceback", f"exit code {ran.code} without three parts: {said}", (ran,))


def tidy(found: Outcome) -> Outcome:
    """Returns a good outcome as one of something left over, if something was.

    Processes must not outlive any of an attack's programs; files in the temporary folder must be
    gone behind the last, which may be the one that clears up after a killed one.

    Args:
        found: What came of an attack.
    """
    if found.result not in GOOD or not found.ran:
        return found
    running = [line for ran in found.ran for line in ran.outlived]
    if running:
        return Outcome("left over", f"{found.why}; still running: {'; '.join(running)}", found.ran)
    files = found.ran[-1].temporary
    if files:
        some = f"{', '.join(files[:5])}{' and more' * (len(files) > 5)}"
        return Outcome("left over", f"{found.why}; temporary: {some}", found.ran)
    return found
