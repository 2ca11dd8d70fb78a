"""Altered recipes, target files and measurements: no text may crash edgekit or keep it busy."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from campaign.alter import BYTES, changed
from campaign.attack import Attack, Outcome, trouble
from campaign.base import DONE, Base
from edgekit.target import load_target, target_text

PER_KIND = 60
# What such files hold and what they do not.
_WORDS = (
    "nan", "inf", "-1", "0", "1e400", "9" * 400, '""', "[]", "{}", "true", "null", "\\u0000",
    '"\u202e"', "[[[[", "1979-05-27", '"../../etc/passwd"', "0x7fffffffffffffff", "= =", "\n[a]\n",
)  # fmt: skip


def attacks(base: Base) -> Iterator[Attack]:
    """Yields the attacks by texts.

    Args:
        base: A run, whose recipe is altered.
    """
    ways = (*BYTES, "word", "word", "line", "line")
    for number in range(PER_KIND):
        how = ways[number % len(ways)]
        name = f"{how} {number:03d}"
        for kind, tried in TRIES.items():
            yield Attack(kind, name, tried(base, how))
    for kind, tried in (
        ("recipes", _recipe),
        ("targets", _target),
        ("measurements", _measurements),
    ):
        yield Attack(kind, "brackets within brackets", tried(base, "deep"))


def _changed(text: bytes, how: str, random: Random) -> bytes:
    if how == "not at all":
        return text
    if how == "deep":
        return text + b"\ndeep = " + b"[" * 50000 + b"]" * 50000 + b"\n"
    if how == "word":
        words = text.split(b" ")
        words[random.randrange(len(words))] = random.choice(_WORDS).encode()
        return b" ".join(words)
    if how == "line":
        lines = text.splitlines(keepends=True)
        chosen = random.randrange(len(lines))
        return b"".join(lines[:chosen] + lines[chosen : chosen + 1] * random.choice((0, 2, 3))
                        + lines[chosen + 1 :])  # fmt: skip
    return changed(text, how, random)


def _tried(base: Base, place: Path, codes: tuple[int, ...], *arguments: str) -> Outcome:
    ran = base.call(place, *arguments)
    return trouble(ran, codes) or Outcome("harmless", "still means something", (ran,))


def _recipe(base: Base, how: str) -> Callable[[Path, Random], Outcome]:
    def attack(place: Path, random: Random) -> Outcome:
        recipe = place / "recipe.toml"
        recipe.write_bytes(_changed(base.recipe.read_bytes(), how, random))
        out = str(place / "out")
        return _tried(base, place, (0,), "run", str(recipe), "--until", "data", "--out", out)

    return attack


def _target(base: Base, how: str) -> Callable[[Path, Random], Outcome]:
    def attack(place: Path, random: Random) -> Outcome:
        target = place / "target.toml"
        target.write_bytes(_changed(target_text("pixel-8").encode(), how, random))
        return _tried(base, place, (0,), "targets", "check", str(target))

    return attack


def _measurements(base: Base, how: str) -> Callable[[Path, Random], Outcome]:
    def attack(place: Path, random: Random) -> Outcome:
        report = json.loads((base.out / "report.json").read_bytes())
        verdict = report["validation"]["verdicts"][0]
        told = {
            "edgekit_measurements": 1,
            "sha256": verdict["artifact_sha256"],
            "by": "a colleague",
            "at": "2026-11-20T18:04:05Z",
            "device": "Google Pixel 8",
            "os": "Android 15",
            "cores": 9,
            "runtime": "LiteRT",
            "runtime_version": "2.3.0",
            "threads": load_target(verdict["target"]).runtime.threads,
            "latency": [
                {"samples_ms": [random.uniform(4, 5) for _ in range(60)], "fresh_process": True}
                for _ in range(5)
            ],
        }
        path = place / "measured.json"
        path.write_bytes(_changed(json.dumps(told, indent=1).encode(), how, random))
        model = base.out / "artifacts" / verdict["artifact_path"]
        return _tried(
            base, place, DONE, "validate", str(model), "--data", str(base.pictures / "test"),
            "--target", verdict["target"], "--measurements", str(path),
        )  # fmt: skip

    return attack


# How a text of each kind is tried: changed in some way, or "not at all".
TRIES = {"recipes": _recipe, "targets": _target, "measurements": _measurements}
