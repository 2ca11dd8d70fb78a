"""The one real run that attacks start from: made by the command line, once, then kept."""

import dataclasses
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgekit
from campaign.watch import Limits, Ran, watched
from edgekit.demo.pictures import make_pictures
from edgekit.demo.recipe import WEIGHTS
from edgekit.store import file_digest

EDGEKIT = (sys.executable, "-m", "edgekit")
SEED, OTHER_SEED = 3, 4
# One is never measured, so that two runs make the same bundle; the other is measured here.
TARGETS = ("pixel-8", "host-litert")
PIXELS = 48
# With two of these nobody may call a run finished; see `edgekit --help`.
DONE = (0, 4, 5)
_RECIPE = """
targets = {targets}
[data]
path = {pictures}
check_labels = false
[model]
alpha = 0.35
input_size_px = {pixels}
weights = {weights}
[train]
strategy = "{strategy}"
{cut}head_epochs = 2
epochs = 2
min_steps = 0
[quantize]
qat_epochs = {qat_epochs}
calibration_images = 32
[validation]
sessions = 3
min_queries = 40
min_seconds = 0.0
warmup_seconds = 0.05
"""
LIMITS = Limits()
_CUT = 'unfreeze_from = "block_16_expand"\n'
# What a clock and a machine's load decide.
_MILLISECONDS = re.compile(r"[0-9] ms\b")
_TIMES = frozenset(
    (
        "command", "stages", "peak_memory_bytes", "seconds", "images_per_second", "latency",
        "latency_measurements",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A finished run and what stands beside it.

    Args:
        work: Folder of all of it.
        edgekit: The command that is attacked.
        thorough: Whether all stages have a second key and quantization was trained.
        seconds: Wall time that the run took uninterrupted.
        package_seconds: Wall time of packaging it for a target.
        published: What it came to; see `published`.
        bundles: Digest of the bundle of each target.
    """

    work: Path
    edgekit: tuple[str, ...]
    thorough: bool
    seconds: float
    package_seconds: float
    published: dict[str, Any]
    bundles: dict[str, str]

    @property
    def recipe(self) -> Path:
        """The recipe of the run."""
        return self.work / "recipe.toml"

    @property
    def out(self) -> Path:
        """The run folder, whose store holds the results of another run, too."""
        return self.work / "out"

    @property
    def pictures(self) -> Path:
        """The pictures, in three splits."""
        return self.work / "pictures"

    def bundle(self, target: str) -> Path:
        """Returns the zip of a target's bundle; its folder lies beside it."""
        return self.work / "bundles" / f"{target}.zip"

    def restore(self, place: Path) -> Path:
        """Returns a fresh copy of the run folder in an attack's folder."""
        return Path(shutil.copytree(self.out, place / "out", symlinks=True))

    def run(self, place: Path, *more: str) -> Ran:
        """Runs `edgekit run` with the recipe on `place/out`."""
        return self.call(place, "run", str(self.recipe), "--out", str(place / "out"), *more)

    def call(self, place: Path, *arguments: str) -> Ran:
        """Runs an edgekit command in a folder."""
        return watched((*self.edgekit, *arguments), place, LIMITS)


def make_base(work: Path, *, thorough: bool, command: Sequence[str] = EDGEKIT) -> Base:
    """Makes the run, or returns the one that this version of edgekit made before.

    Args:
        work: Where everything goes.
        thorough: Whether to train the quantized network and to run the other recipe to the end,
            which takes three times as long; without it the other one has a data stage only.
        command: How edgekit is started. Defaults to this Python's.
    """
    stamp = {"edgekit": _digest_of_sources(), "thorough": thorough, "command": list(command)}
    kept = work / "base.json"
    if kept.is_file():
        told = json.loads(kept.read_text())
        if told.pop("stamp") == stamp:
            return Base(work, tuple(command), **told)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    base = _made(Base(work, tuple(command), thorough, 0.0, 0.0, {}, {}))
    fields = ("thorough", "seconds", "package_seconds", "published", "bundles")
    told = {name: getattr(base, name) for name in fields}
    kept.write_text(json.dumps({"stamp": stamp, **told}))
    return base


def _made(base: Base) -> Base:
    work = base.work
    for seed, folder in ((0, base.pictures), (1, work / "other-pictures")):
        make_pictures(folder, seed=seed, train_per_class=10, validation_per_class=3,
                      test_per_class=4, size_px=PIXELS, workers=1)  # fmt: skip
    write_recipe(base.recipe, base, SEED)
    started = time.monotonic()
    _done(base.run(work))
    seconds = time.monotonic() - started
    found = published(base.out)
    bundles = {}
    for target in TARGETS:
        started = time.monotonic()
        _done(package(base, work, base.out, target, work / "bundles"))
        package_seconds = time.monotonic() - started
        bundles[target] = file_digest(base.bundle(target))
    other = write_recipe(work / "other.toml", base, OTHER_SEED, pictures=work / "other-pictures")
    more = () if base.thorough else ("--until", "data")
    _done(base.call(work, "run", str(other), "--out", str(work / "other"), *more))
    for folder in sorted((work / "other" / ".store").glob("*/*")):
        shutil.copytree(folder, base.out / ".store" / folder.parent.name / folder.name)
    again = base.run(work)
    _done(again)
    if " done in " in again.stderr or published(base.out) != found:
        raise RuntimeError(f"an unaltered run is not reused: {again.stderr}")
    return dataclasses.replace(
        base, seconds=seconds, package_seconds=package_seconds, published=found, bundles=bundles
    )


def write_recipe(
    path: Path,
    base: Base,
    seed: int,
    *,
    strategy: str = "fixed",
    weights: Path = WEIGHTS,
    pictures: Path | None = None,
) -> Path:
    """Writes a recipe of a small run.

    Args:
        path: Where to.
        base: The base.
        seed: Its seed.
        strategy: "fixed" trains the last block too, "head" leaves the backbone as it is.
        weights: Starting weights.
        pictures: Its pictures. Defaults to None: the base's.
    """
    text = _RECIPE.format(
        targets=json.dumps(TARGETS),
        pictures=json.dumps(str(pictures or base.pictures)),
        pixels=PIXELS,
        weights=json.dumps(str(weights)),
        strategy=strategy,
        cut=_CUT if strategy == "fixed" else "",
        qat_epochs=int(base.thorough),
    )
    path.write_text(f"seed = {seed}\n{text}")
    return path


def package(base: Base, place: Path, run: Path, target: str, out: Path) -> Ran:
    """Runs `edgekit package` on a run folder."""
    return base.call(place, "package", str(run), "--for", target, "--allow-miss", "--out", str(out))


def published(out: Path) -> dict[str, Any]:
    """Returns what a run folder tells the world, but for times: artifacts, answers and report.

    Args:
        out: The run folder.
    """
    artifacts = {
        path.relative_to(out).as_posix(): _told(path)
        for path in sorted((out / "artifacts").rglob("*"))
    }
    file = out / "report.json"
    report = json.loads(file.read_bytes()) if file.is_file() else None
    answers = {"answers": _told(out / "answers.csv")}
    return {"artifacts": artifacts, **answers, "report": _without_times(report)}


def _told(path: Path) -> str:
    """Returns the digest of a file, or what else it is."""
    if path.is_symlink():
        return "link"
    return file_digest(path) if path.is_file() else "folder"


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Returns the first way in which two results of `published` differ, or ""."""
    return _difference(found, wanted, "")


def _difference(one: Any, other: Any, where: str) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            told = _difference(one.get(key, "nothing"), other.get(key, "nothing"), f"{where}/{key}")
            if told:
                return told
        return ""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = (_difference(*both, f"{where}/{i}") for i, both in enumerate(zip(one, other)))  # noqa: B905
        return next(filter(None, parts), "")
    return "" if one == other else f"{where} is {str(one)[:80]}, was {str(other)[:80]}"


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in _TIMES}
    if isinstance(value, list):
        return [_without_times(item) for item in value if not _tells_a_time(item)]
    return value


def _tells_a_time(item: Any) -> bool:
    """Returns whether a note is there, or not, for what this machine was busy with."""
    return isinstance(item, str) and bool(_MILLISECONDS.search(item))


def _done(ran: Ran) -> None:
    if ran.code not in DONE or ran.broke:
        raise RuntimeError(f"the unaltered base does not come about: {ran.stderr or ran.broke}")


def _digest_of_sources() -> str:
    folder = Path(edgekit.__file__).parent
    digests = [file_digest(path) for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256("".join([*digests, _RECIPE]).encode()).hexdigest()
