"""Tries attacks, tells how it goes, and writes the table."""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from campaign import bundles, kills, models, store, texts, weights
from campaign.attack import BAD, Attack, Outcome, Result, tidy
from campaign.base import EDGEKIT, Base, make_base

# A subject's attacks on a run, by the name that --only takes.
SUBJECTS: dict[str, Callable[[Base], Iterator[Attack]]] = {
    "store": store.attacks,
    "bundles": bundles.attacks,
    "models": models.attacks,
    "weights": weights.attacks,
    "texts": texts.attacks,
    "kills": kills.attacks,
}
SAMPLE_PER_KIND = 12
_COLUMNS: tuple[Result, ...] = ("refused", "rebuilt", "harmless", *BAD)


@dataclass(frozen=True)
class Tried:
    """One attack's outcome, for the table and the journal."""

    subject: str
    kind: str
    name: str
    result: Result
    why: str
    seconds: float
    peak_mb: float


def choose(attacks: Iterable[Attack], per_kind: int, seed: int) -> list[Attack]:
    """Returns a sample of attacks, the same for the same seed, in their order.

    Args:
        attacks: All.
        per_kind: At most this many of each kind.
        seed: What it depends on, with the names.
    """
    by_kind: dict[str, list[Attack]] = {}
    for attack in attacks:
        by_kind.setdefault(attack.kind, []).append(attack)
    chosen = []
    for kind, of_kind in by_kind.items():
        few = min(per_kind, len(of_kind))
        picked = Random(f"{seed}/{kind}").sample(range(len(of_kind)), few)
        chosen += [of_kind[index] for index in sorted(picked)]
    return chosen


def attempt(attack: Attack, seed: int, scratch: Path) -> Outcome:
    """Returns the outcome of one attack; its folder is gone afterwards.

    Args:
        attack: The attack.
        seed: With the attack's kind and name, the seed of its random numbers.
        scratch: Where its folder is made.
    """
    place = Path(tempfile.mkdtemp(prefix="attack-", dir=scratch))
    try:
        return tidy(attack.run(place, Random(f"{seed}/{attack.kind}/{attack.name}")))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def table(tried: Sequence[Tried]) -> str:
    """Returns a Markdown table with a row for each kind of attack."""
    head = ("kind", "tried", *_COLUMNS, "worst s", "worst MB")
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    kinds = list(dict.fromkeys(item.kind for item in tried))
    for kind in (*kinds, "all"):
        rows = [item for item in tried if kind in (item.kind, "all")]
        counts = Counter(item.result for item in rows)
        worst = (
            f"{max((item.seconds for item in rows), default=0):.1f}",
            f"{max((item.peak_mb for item in rows), default=0):.0f}",
        )
        cells = (kind, len(rows), *(counts[result] for result in _COLUMNS), *worst)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def repeat(item: Tried, seed: int) -> str:
    """Returns the command line that tries an attack again."""
    case = shlex.quote(item.name)
    return f"python -m campaign --only {item.subject} --case {case} --seed {seed}"


class Campaign:
    """Tries attacks one after the other or side by side, and keeps what came of them.

    Args:
        base: The run that they start from.
        seed: Of every random number.
        journal: File that receives every outcome as it comes, one JSON object a line.
        say: Called with each line to show.
    """

    def __init__(self, base: Base, seed: int, journal: Path, say: Callable[[str], None]) -> None:
        self.base = base
        self.seed = seed
        self.tried: list[Tried] = []
        self._journal = journal
        self._say = say
        self._lock = threading.Lock()
        self._scratch = base.work.parent / "attacks"
        self._scratch.mkdir(exist_ok=True)

    def resume(self, subjects: Sequence[str]) -> None:
        """Takes over what an earlier campaign of the same seed wrote into the journal."""
        if not self._journal.is_file():
            return
        for line in self._journal.read_text().splitlines():
            item = Tried(**json.loads(line))
            if item.subject in subjects:
                self.tried.append(item)
        self._say(f"{len(self.tried)} outcomes are taken over from {self._journal}")

    def go(self, wanted: Sequence[tuple[str, Attack]], jobs: int) -> None:
        """Tries what has not been tried yet; Ctrl-C ends it after the attacks that run."""
        known = {(item.kind, item.name) for item in self.tried}
        waiting = [pair for pair in wanted if (pair[1].kind, pair[1].name) not in known]
        started = time.monotonic()
        pool = ThreadPoolExecutor(jobs)
        futures = [pool.submit(self._one, *pair) for pair in waiting]
        try:
            for number, future in enumerate(futures, 1):
                item = future.result()
                if item.result in BAD or number % 20 == 0 or number == len(futures):
                    minutes = (time.monotonic() - started) / 60
                    self._say(f"{number}/{len(futures)} in {minutes:.1f} min; {item.kind}, "
                              f"{item.name}: {item.result}, {item.why}")  # fmt: skip
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _one(self, subject: str, attack: Attack) -> Tried:
        found = attempt(attack, self.seed, self._scratch)
        item = Tried(subject, attack.kind, attack.name, found.result, found.why[:600],
                     found.seconds, found.peak_mb)  # fmt: skip
        with self._lock:
            self.tried.append(item)
            with self._journal.open("a") as stream:
                stream.write(json.dumps(asdict(item)) + "\n")
        return item

    @property
    def bad(self) -> list[Tried]:
        """What edgekit did not withstand."""
        return [item for item in self.tried if item.result in BAD]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a campaign; returns 1 if edgekit did not withstand some of it.

    Args:
        arguments: The command line. Defaults to the program's.
    """
    asked = _parser().parse_args(arguments)
    subjects = asked.only or list(SUBJECTS)
    work = asked.work or Path(tempfile.gettempdir()) / "edgekit-campaign"
    _say(f"making the base run in {work}, unless it is there")
    base = make_base(work.absolute() / "base", thorough=True, command=EDGEKIT)
    _say(f"it took {base.seconds:.1f} s")
    pairs = []
    for subject in subjects:
        attacks = list(SUBJECTS[subject](base))
        if asked.case:
            attacks = [attack for attack in attacks if attack.name in asked.case]
        elif not asked.long:
            attacks = choose(attacks, asked.per_kind, asked.seed)
        pairs += [(subject, attack) for attack in attacks]
    _say(f"{len(pairs)} attacks")
    journal = work / f"outcomes-{asked.seed}.jsonl"
    campaign = Campaign(base, asked.seed, journal, _say)
    if asked.resume:
        campaign.resume(subjects)
    elif not asked.case:
        journal.unlink(missing_ok=True)
    try:
        campaign.go(pairs, asked.jobs)
    except KeyboardInterrupt:
        _say("interrupted; --resume goes on from here")
    _show(campaign, asked.json)
    return 1 if campaign.bad else 0


def _show(campaign: Campaign, file: Path | None) -> None:
    _say(f"\n{table(campaign.tried)}")
    whys = [item.why for item in campaign.tried if item.kind == kills.RUN]
    if whys:
        _say(f"\nkilled in: {kills.by_stage(whys)}")
    for item in campaign.bad:
        _say(f"\n{item.result}: {item.kind}, {item.name}\n  {item.why}\n  "
             f"{repeat(item, campaign.seed)}")  # fmt: skip
    if file is not None:
        outcomes = [asdict(item) for item in campaign.tried]
        file.write_text(json.dumps({"seed": campaign.seed, "outcomes": outcomes}, indent=1))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m campaign", description="Attacks edgekit.")
    parser.add_argument("--long", action="store_true", help="all attacks and not a sample")
    parser.add_argument("--per-kind", type=int, default=SAMPLE_PER_KIND, metavar="N",
                        help="size of the sample (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(SUBJECTS))
    parser.add_argument("--case", action="append", metavar="NAME", help="these attacks only")
    parser.add_argument("--jobs", type=int, default=1, help="attacks side by side (%(default)s)")
    parser.add_argument("--work", type=Path, help="folder of the base run and the attacks")
    parser.add_argument("--resume", action="store_true", help="go on from the journal in it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome there")
    return parser
