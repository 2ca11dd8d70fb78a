"""A short campaign with nothing bad in it; and a campaign sees what is bad."""

import dataclasses
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("tensorflow")

from campaign import bundles, kills, models, store, texts, watch, weights
from campaign.alter import BYTES, changed
from campaign.attack import BAD, GOOD, Attack, Outcome, tidy, trouble
from campaign.base import TARGETS, Base, difference, make_base, published
from campaign.runner import SUBJECTS, Campaign, Tried, attempt, choose, repeat, table
from campaign.watch import Limits, watched

SEED = 1
# What each of these does in place of edgekit, and what a campaign calls it.
FAKES = {
    "import time; time.sleep(60)": "hang",
    "while True: pass": "hang",
    "raise ValueError('x')": "traceback",
    "import sys; sys.exit(1)": "traceback",
    "import os; os.abort()": "traceback",
    "import sys; sys.stderr.write('error: x\\n'); sys.exit(2)": "traceback",
    "x = b'x' * 400_000_000; import time; time.sleep(9)": "memory",
    "open('large', 'wb').write(bytes(80_000_000)); import time; time.sleep(9)": "disk",
    "import subprocess; subprocess.Popen(['sleep', '30'])": "left over",
    "import os; open(os.environ['TMPDIR'] + '/edgekit-1', 'w')": "left over",
    "import sys; sys.stderr.write('error: x\\n  expected: y\\n  to do:    z\\n'); sys.exit(6)":
        "refused",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("campaign") / "base", thorough=False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Limits that a fake breaks at once."""
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.5)
    return Limits(seconds=4.0, idle_seconds=2.0, memory_mb=200.0, disk_mb=40.0)


@pytest.mark.parametrize(("program", "result"), FAKES.items())
def test_every_way_to_fail_is_seen(
    program: str, result: str, quick: Limits, tmp_path: Path
) -> None:
    ran = watched((sys.executable, "-c", program), tmp_path, quick)
    found = tidy(trouble(ran, (0,)) or Outcome("harmless", "", (ran,)))
    assert found.result == result, found.why
    assert found.result in (*GOOD, *BAD)


def test_the_twin_who_does_the_work_is_in_no_trouble(quick: Limits, tmp_path: Path) -> None:
    ran = watched(
        (sys.executable, "-c", "print('x'); import time; time.sleep(0.3)"), tmp_path, quick
    )
    assert trouble(ran, (0,)) is None
    assert tidy(Outcome("harmless", "", (ran,))).result == "harmless"
    assert ran.stdout == "x\n"
    assert ran.peak_mb > 1
    # The same exit code where another one means that the work is done.
    found = trouble(ran, (5,))
    assert found is not None
    assert found.result == "traceback"


def test_a_kill_comes_when_it_is_asked_for(quick: Limits, tmp_path: Path) -> None:
    program = (sys.executable, "-c", "import time; time.sleep(60)")
    ran = watched(program, tmp_path, quick, lambda seconds: seconds > 0.3)
    assert (ran.code, ran.broke) == (-9, "")
    assert 0.3 < ran.seconds < 2


@pytest.mark.parametrize("how", BYTES)
def test_alterations_alter_and_depend_on_nothing_but_the_seed(how: str) -> None:
    for seed in range(20):
        content = Random(seed).randbytes(seed * 37 + 1)
        assert changed(content, how, Random(seed)) != content
        assert changed(content, how, Random(seed)) == changed(content, how, Random(seed))


@pytest.mark.slow
def test_the_long_form_is_as_large_as_it_says(base: Base) -> None:
    names = {s: [(a.kind, a.name) for a in SUBJECTS[s](base)] for s in SUBJECTS}
    for subject, found in names.items():
        assert len(set(found)) == len(found), f"{subject} has a name twice"
    by_kind = {kind: sum(k == kind for k, _ in names["models"]) for kind, _ in names["models"]}
    assert all(by_kind[f"models, {suffix}"] >= 300 for suffix in ("tflite", "onnx", "ort"))
    assert len(names["bundles"]) >= 300
    assert len(names["weights"]) >= 100
    runs = sum(kind == kills.RUN for kind, _ in names["kills"])
    assert runs * kills.KILLS_PER_CHAIN >= 50
    files = sum(path.is_file() for path in (base.out / ".store").rglob("*"))
    assert sum(kind == store.RUN for kind, _ in names["store"]) >= 10 * files


def short_form(base: Base) -> list[tuple[str, Attack]]:
    """Returns an attack of each kind that needs no training, and one killed packaging."""
    found = [("kills", next(a for a in kills.attacks(base) if a.kind == kills.PACKAGE))]
    for subject in ("bundles", "models", "texts", "store"):
        every = SUBJECTS[subject](base)
        quick = [a for a in every if a.kind != store.RUN or a.name.startswith("data/")]
        found += [(subject, attack) for attack in choose(quick, 1, SEED)]
    return found


def run_campaign(base: Base, wanted: list[tuple[str, Attack]], folder: Path) -> Campaign:
    campaign = Campaign(base, SEED, folder / "journal.jsonl", print)
    campaign.go(wanted, jobs=1)
    return campaign


@pytest.mark.slow
def test_short_form(base: Base, tmp_path: Path) -> None:
    campaign = run_campaign(base, short_form(base), tmp_path)
    shown = [f"{item.result}: {item.why}\n  {repeat(item, SEED)}" for item in campaign.bad]
    assert shown == [], table(campaign.tried)
    assert {item.result for item in campaign.tried} >= {"refused", "rebuilt"}
    assert len(campaign.tried) >= 13


def models_as_they_are(base: Base, start: str) -> dict[str, Callable[[Path, Random], Outcome]]:
    """Returns judging of the unaltered model files whose names start so."""
    return {
        source.path.name: lambda place, _, source=source: models.judged(
            base, place, source.path, source, hurry=True
        )
        for sources in models.make_sources(base).values()
        for source in sources
        if source.path.name.startswith(start)
    }


@pytest.mark.slow
def test_the_twin_what_is_not_altered_is_accepted_everywhere(base: Base, tmp_path: Path) -> None:
    def untouched(_path: Path, _random: Random, _outside: Path) -> None:
        """Changes nothing."""

    record = next((base.out / ".store" / "data").glob("*/record.json")).relative_to(base.out)
    archive = base.bundle(TARGETS[0])
    same: dict[str, Callable[[Path, Random], Outcome]] = {
        "run": store.running(base, record, untouched),
        "package": store.packaging(base, record, untouched),
        "zip": lambda place, _: bundles.zip_outcome(base, place, archive, archive.read_bytes()),
        **{kind: tried(base, "not at all") for kind, tried in texts.TRIES.items()},
    }
    same |= models_as_they_are(base, "tiny_float32")
    for name, attack in same.items():
        found = attempt(Attack("twin", name, attack), SEED, tmp_path)
        assert found.result == "harmless", f"{name}: {found.why}"
        assert "PASS, 100.0% right" in found.why or not name.startswith("tiny")
    assert len(same) == 9


# A fake edgekit that finds everything right: it copies what the unaltered one would write.
ACCEPTING = """
import json, os, shutil, sys
command, *rest = sys.argv[1:]
if command == "package":
    target, out = rest[rest.index("--for") + 1], rest[rest.index("--out") + 1]
    os.makedirs(out, exist_ok=True)
    open(os.path.join(out, target + ".zip"), "wb").write(b"a bundle")
if command == "validate":
    import hashlib
    digest = hashlib.sha256(open(rest[0], "rb").read()).hexdigest()
    verdict = {"status": "PASS"}
    print(json.dumps({"sha256": digest, "accuracy": {"top1": 1.0}, "verdicts": [verdict]}))
"""


@pytest.mark.slow
def test_a_check_that_accepts_everything_is_seen(base: Base, tmp_path: Path) -> None:
    fake = tmp_path / "fake.py"
    fake.write_text(ACCEPTING)
    weak = dataclasses.replace(base, edgekit=(sys.executable, str(fake)))
    chosen = [
        *choose(bundles.attacks(weak), 4, SEED),
        *choose(store.attacks(weak), 2, SEED),
    ]
    campaign = run_campaign(weak, [("x", attack) for attack in chosen], tmp_path)
    assert {item.result for item in campaign.tried} == {"accepted"}, table(campaign.tried)
    assert len(campaign.bad) == len(chosen)
    # A model of which half is gone, said to pass.
    sources = models.make_sources(base)["tflite"]
    tiny = next(source for source in sources if source.path.name == "tiny_uint8.tflite")
    place = tmp_path / "model"
    place.mkdir()
    model = place / "model.tflite"
    model.write_bytes(tiny.path.read_bytes()[:300])
    assert models.judged(weak, place, model, tiny, hurry=False).result == "accepted"


@pytest.mark.slow
def test_two_readers_tell_an_altered_bundle_from_one_that_is_stored_otherwise(base: Base) -> None:
    content = base.bundle(TARGETS[0]).read_bytes()
    assert bundles.same_files(content, content)
    with zipfile.ZipFile(base.bundle(TARGETS[0])) as archive:
        first, start = archive.infolist()[0], archive.start_dir
    dated = bytearray(content)
    dated[first.header_offset + 10] ^= 1  # the time
    assert bundles.same_files(bytes(dated), content)
    for place in (first.header_offset + 14, first.header_offset + 30, start + 46, start - 1):
        altered = bytearray(content)
        altered[place] ^= 1
        assert not bundles.same_files(bytes(altered), content), place


@pytest.mark.slow
def test_arrays_that_were_not_trained_from_the_file_are_seen(base: Base, tmp_path: Path) -> None:
    arrays = weights.read_npz(weights.start(base, ".npz"))
    for path in (weights.start(base, ".npz"), weights.start(base, ".h5")):
        assert weights.differs(path, arrays) == ""
    name = "block_5_expand/kernel"
    other = {**arrays, name: arrays[name] + 1}
    assert weights.differs(weights.start(base, ".h5"), other) == f"{name} is not the file's"
    cut = tmp_path / "cut.h5"
    cut.write_bytes(weights.start(base, ".h5").read_bytes()[:5000])
    assert "another reader finds OSError" in weights.differs(cut, arrays)


@pytest.mark.parametrize(
    ("note", "seen"),
    [
        ("int8 is slower than float32 here: 0.115 ms against 0.103 ms a picture", False),
        ("agrees on 70 of 72 answers", True),
    ],
)
def test_what_a_busy_machine_makes_a_report_say_is_no_difference(
    tmp_path: Path, note: str, seen: bool
) -> None:
    told = []
    for name, notes in (("one", [note]), ("other", [])):
        out = tmp_path / name
        (out / "artifacts").mkdir(parents=True)
        (out / "answers.csv").touch()
        (out / "report.json").write_text(json.dumps({"notes": notes}))
        told.append(published(out))
    assert bool(difference(*told)) is seen


@pytest.mark.slow
def test_the_table_counts_and_the_journal_goes_on(base: Base, tmp_path: Path) -> None:
    tried = [
        Tried("store", "a", "x", "refused", "", 1.0, 10.0),
        Tried("store", "a", "y z", "accepted", "", 3.0, 5.0),
        Tried("texts", "b", "z", "hang", "", 2.0, 1.0),
    ]
    lines = table(tried).splitlines()
    assert lines[2] == "| a | 2 | 1 | 0 | 0 | 1 | 0 | 0 | 0 | 0 | 0 | 3.0 | 10 |"
    assert lines[4] == "| all | 3 | 1 | 0 | 0 | 1 | 0 | 1 | 0 | 0 | 0 | 3.0 | 10 |"
    assert repeat(tried[1], 7) == "python -m campaign --only store --case 'y z' --seed 7"
    journal = tmp_path / "journal.jsonl"
    journal.write_text("".join(json.dumps(dataclasses.asdict(item)) + "\n" for item in tried))
    campaign = Campaign(base, 7, journal, print)
    campaign.resume(["store"])
    assert [item.name for item in campaign.bad] == ["y z"]
    never = Attack("a", "x", lambda _place, _random: pytest.fail("it was tried before"))
    campaign.go([("store", never)], jobs=1)
    assert len(campaign.tried) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_medium_form(tmp_path: Path) -> None:
    """Two killed runs too, weights, and stages that are made again."""
    base = make_base(tmp_path / "base", thorough=True)
    same = models_as_they_are(base, "")
    for suffix in (".h5", ".npz"):
        path = weights.start(base, suffix)
        same[suffix] = lambda place, _, path=path: weights.trained_from(base, place, path)
    for name, attack in same.items():
        found = attempt(Attack("twin", name, attack), SEED, tmp_path)
        assert found.result == "harmless", f"{name}: {found.why}"
    wanted = [("kills", attack) for attack in choose(kills.attacks(base), 1, SEED)]
    for subject in ("store", "bundles", "weights", "texts"):
        wanted += [(subject, a) for a in choose(SUBJECTS[subject](base), 2, SEED)]
    campaign = run_campaign(base, wanted, tmp_path)
    shown = [f"{item.result}: {item.why}\n  {repeat(item, SEED)}" for item in campaign.bad]
    assert shown == [], table(campaign.tried)
