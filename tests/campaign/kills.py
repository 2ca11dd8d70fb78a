"""SIGKILL at random moments of a run and of packaging; then the same command until it is done."""

import functools
from collections.abc import Iterator
from pathlib import Path
from random import Random

from campaign.attack import Attack, Outcome, trouble
from campaign.base import DONE, LIMITS, TARGETS, Base, difference, package, published
from campaign.store import left_over
from campaign.watch import Ran, watched
from edgekit.pipeline import STAGES
from edgekit.store import file_digest

RUN, PACKAGE = "kills of run", "kills of package"
CHAINS, PACKAGE_CHAINS = 30, 12
KILLS_PER_CHAIN = 2
# Starting takes about this long before a stage is reached.
_START_SECONDS = 2.0


def attacks(base: Base) -> Iterator[Attack]:
    """Yields runs that are killed and continued.

    The first kill of each is drawn uniformly over the time that the whole takes uninterrupted, the
    next one over what is left of it.

    Args:
        base: The uninterrupted run.
    """
    for number in range(CHAINS):
        yield Attack(RUN, f"chain-{number:03d}", functools.partial(_run_chain, base))
    for number in range(PACKAGE_CHAINS):
        yield Attack(
            PACKAGE,
            f"chain-{number:03d}",
            lambda place, random: _package_chain(base, place, random),
        )


def _run_chain(base: Base, place: Path, random: Random) -> Outcome:
    out = place / "out"
    command = (*base.edgekit, "run", str(base.recipe), "--out", str(out))
    left, done = base.seconds, []
    stages = []
    for _ in range(KILLS_PER_CHAIN):
        moment = random.uniform(0, left)
        killed = watched(command, place, LIMITS, lambda now, at=moment: now >= at)
        done.append(killed)
        if killed.code != -9 or killed.broke:
            break  # it was faster
        stages.append(f"{_stage(killed)} at {moment:.1f} s")
        left = max(left - moment + _START_SECONDS, _START_SECONDS)
    last = base.run(place)
    return _same_as_whole(base, place, stages, (*done, last))


def _same_as_whole(base: Base, place: Path, stages: list[str], ran: tuple[Ran, ...]) -> Outcome:
    """Returns whether the run came to the same, its bundle too, and left nothing lying about."""
    out, target = place / "out", TARGETS[0]
    when = f"killed in {', '.join(stages) or 'no stage'}"
    told = trouble(ran[-1], DONE)
    if told is not None:
        return Outcome(told.result, f"{when}: {told.why}", ran)
    apart = difference(published(out), base.published)
    if apart:
        return Outcome("accepted", f"{when}: {apart}", ran)
    lying = left_over(out)
    if lying:
        return Outcome("left over", f"{when}: {', '.join(lying)}", ran)
    packaged = package(base, place, out, target, place / "packages")
    told = trouble(packaged, (0,))
    if told is not None:
        return Outcome(told.result, f"{when}: {told.why}", (*ran, packaged))
    if file_digest(place / "packages" / f"{target}.zip") != base.bundles[target]:
        return Outcome("accepted", f"{when}: another bundle", (*ran, packaged))
    return Outcome("rebuilt", when, (*ran, packaged))


def _stage(ran: Ran) -> str:
    """Returns the stage that a killed run was in."""
    ended = [line.partition(":")[0] for line in ran.stderr.splitlines() if _ends_stage(line)]
    return next((stage for stage in STAGES if stage not in ended), "report")


def _ends_stage(line: str) -> bool:
    return ": done in " in line or line.endswith(": unchanged, reused")


def _package_chain(base: Base, place: Path, random: Random) -> Outcome:
    out, target, packages = base.restore(place), TARGETS[0], place / "packages"
    command = (*base.edgekit, "package", str(out), "--for", target, "--allow-miss", "--out",
               str(packages))  # fmt: skip
    done, moments = [], []
    archive = packages / f"{target}.zip"
    for _ in range(KILLS_PER_CHAIN):
        moment = random.uniform(0, base.package_seconds)
        killed = watched(command, place, LIMITS, lambda now, at=moment: now >= at)
        done.append(killed)
        moments.append(f"{moment:.2f} s")
        if archive.exists() and file_digest(archive) != base.bundles[target]:
            return Outcome("accepted", f"half a bundle after {moment:.2f} s", tuple(done))
    last = watched(command, place, LIMITS)
    when, ran = f"killed at {', '.join(moments)}", (*done, last)
    told = trouble(last, (0,))
    if told is not None:
        return Outcome(told.result, f"{when}: {told.why}", ran)
    if file_digest(archive) != base.bundles[target]:
        return Outcome("accepted", f"{when}: another bundle", ran)
    lying = sorted({path.name for path in packages.iterdir()} - {target, archive.name})
    if lying:
        return Outcome("left over", f"{when}: {', '.join(lying)}", ran)
    return Outcome("rebuilt", when, ran)


def by_stage(whys: list[str]) -> str:
    """Returns how often each stage was hit, in words, from what outcomes of `attacks` say."""
    said = " ".join(whys)
    counts = {stage: said.count(f"{stage} at ") for stage in (*STAGES, "report")}
    return ", ".join(f"{stage} {count}" for stage, count in counts.items())
