"""The store: what is reused, what is set aside, and what a killed process leaves behind."""

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import SkippedFile
from edgekit.store import (
    StageKey,
    Store,
    Stored,
    canonical,
    file_digest,
    finished,
    tool_version,
    write_atomically,
)

KEY = StageKey("train", "1", {"rate": 0.1}, {"data": "d1"}, ("numpy",), 7)
BLOBS = {"weights.npz": bytes(range(256)) * 20, "deep/curve.json": b"[1, 2]", "empty": b""}
RECORD = SkippedFile(path="a", reason="b")


def make(folder: Path) -> SkippedFile:
    for name, content in BLOBS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return RECORD


def never(folder: Path) -> SkippedFile:
    pytest.fail("made again")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Store:
    return Store(tmp_path / "run" / "store", said.append)


def test_a_result_is_made_once(store: Store, said: list[str]) -> None:
    assert store.get(KEY, SkippedFile) is None
    first = store.build(KEY, SkippedFile, make)
    again = store.build(KEY, SkippedFile, never)
    assert (first.reused, again.reused) == (False, True)
    assert replace(first, reused=True) == again
    assert again == store.get(KEY, SkippedFile)
    assert again.record == RECORD
    assert again.folder == store.root / "train" / KEY.digest
    assert {name: (again.folder / name).read_bytes() for name in BLOBS} == BLOBS
    assert {p.name for p in again.folder.iterdir()} == {
        "weights.npz",
        "deep",
        "empty",
        "record.json",
    }
    assert said == []


def test_another_store_object_finds_it(store: Store, said: list[str]) -> None:
    first = store.build(KEY, SkippedFile, make)
    assert Store(store.root, said.append).build(KEY, SkippedFile, never).digest == first.digest


def test_the_digest_of_a_result_follows_key_and_blobs(store: Store, tmp_path: Path) -> None:
    first = store.build(KEY, SkippedFile, make)
    elsewhere = Store(tmp_path / "elsewhere", [].append)
    assert elsewhere.build(KEY, SkippedFile, make).digest == first.digest

    def other(folder: Path) -> SkippedFile:
        make(folder)
        (folder / "empty").write_bytes(b"x")
        return RECORD

    assert (
        Store(tmp_path / "third", [].append).build(KEY, SkippedFile, other).digest != first.digest
    )
    assert store.build(replace(KEY, seed=8), SkippedFile, make).digest != first.digest


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, stage="quantize"),
        replace(KEY, code="2"),
        replace(KEY, params={"rate": 0.2}),
        replace(KEY, params={"rate": 0.1, "more": None}),
        replace(KEY, params={"rates": 0.1}),
        replace(KEY, inputs={"data": "d2"}),
        replace(KEY, inputs={"datum": "d1"}),
        replace(KEY, inputs={}),
        replace(KEY, tools=()),
        replace(KEY, tools=("numpy", "pillow")),
        replace(KEY, seed=8),
    ],
    ids=lambda key: str(key.digest[:8]),
)
def test_every_field_of_the_key_counts(store: Store, other: StageKey) -> None:
    assert other.digest != KEY.digest
    store.build(KEY, SkippedFile, make)
    assert store.get(other, SkippedFile) is None
    assert store.get(replace(KEY), SkippedFile) is not None


def test_the_order_of_the_fields_does_not_count() -> None:
    first = replace(KEY, params={"a": 1, "b": (2, 3)}, tools=("numpy", "pillow"))
    second = replace(KEY, params={"b": [2, 3], "a": 1}, tools=("pillow", "numpy"))
    assert first.digest == second.digest


def test_a_key_without_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = replace(KEY, params={"rate": float("nan")}).digest
    assert canonical({"b": 1, "a": [0.1, None]}) == b'{"a":[0.1,null],"b":1}'


def test_the_version_of_a_tool_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = replace(KEY, tools=("edgekit-made-up-tool",))
    digests = [key.digest]
    assert tool_version("edgekit-made-up-tool") == "absent"
    for number in ("1.0", "1.1"):
        info = tmp_path / number / f"edgekit_made_up_tool-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: edgekit-made-up-tool\nVersion: {number}\n")
        monkeypatch.syspath_prepend(info.parent)
        tool_version.cache_clear()  # as in a new process
        assert tool_version("edgekit-made-up-tool") == number
        digests.append(key.digest)
    assert len(set(digests)) == 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def delete(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    """Replaces the file by a link to a copy that has the very same bytes."""
    copy = path.with_name(f"{path.name}.copy")
    path.rename(copy)
    path.symlink_to(copy)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    *(
        (name, damage, words)
        for name in ("weights.npz", "deep/curve.json")
        for damage, words in [
            (flip, r"has sha256 [0-9a-f]{12}, expected [0-9a-f]{12}"),
            (truncate, r"has \d+ bytes, expected \d+"),
        ]
    ),
    *(
        (name, damage, words)
        for name in BLOBS
        for damage, words in [
            (grow, r"has \d+ bytes, expected \d+"),
            (delete, "is missing"),
            (link, r"cannot be read \(Too many levels of symbolic links\)"),
            (folder_instead, "is not a regular file"),
            (pipe, "is not a regular file"),
        ]
    ),
]


@pytest.mark.parametrize(
    ("name", "damage", "words"), DAMAGES, ids=[f"{n}-{d.__name__}" for n, d, _ in DAMAGES]
)
def test_damage_is_set_aside_and_made_again(
    store: Store, said: list[str], name: str, damage: Callable[[Path], None], words: str
) -> None:
    first = store.build(KEY, SkippedFile, make)
    damage(first.folder / name)
    check_rebuilt(store, said, first, rf"{re.escape(name)} {words}")


def check_rebuilt(store: Store, said: list[str], first: Stored[SkippedFile], words: str) -> None:
    assert store.get(KEY, SkippedFile) is None
    assert len(said) == 1
    pattern = rf"stored train result is damaged and is made again: {words}"
    assert re.fullmatch(pattern, said[0]), said[0]
    kept = list((store.root / "quarantine").glob(f"train-*/{KEY.digest}"))
    assert len(kept) == 1
    assert not first.folder.exists()
    again = store.build(KEY, SkippedFile, make)
    assert again == first
    assert store.build(KEY, SkippedFile, never).digest == first.digest
    assert len(said) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"record": {}, "blobs": {}}',
        b"[" * 200_000,
    ],
    ids=range(9),
)
def test_a_record_that_is_garbage(store: Store, said: list[str], content: bytes) -> None:
    first = store.build(KEY, SkippedFile, make)
    (first.folder / "record.json").write_bytes(content)
    check_rebuilt(store, said, first, r"record\.json cannot be read \(\w+\)")


def test_a_record_that_is_gone(store: Store, said: list[str]) -> None:
    first = store.build(KEY, SkippedFile, make)
    (first.folder / "record.json").unlink()
    check_rebuilt(store, said, first, r"record\.json is missing")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (pipe, "is not a regular file"),
        (folder_instead, "is not a regular file"),
        (link, r"cannot be read \(Too many levels of symbolic links\)"),
    ],
)
def test_a_record_that_is_no_regular_file(
    store: Store, said: list[str], damage: Callable[[Path], None], words: str
) -> None:
    first = store.build(KEY, SkippedFile, make)
    damage(first.folder / "record.json")
    check_rebuilt(store, said, first, rf"record\.json {words}")


@pytest.mark.parametrize("other", [replace(KEY, seed=8), replace(KEY, stage="quantize")])
def test_the_whole_result_of_another_key_is_not_taken(
    store: Store, said: list[str], other: StageKey
) -> None:
    first = store.build(KEY, SkippedFile, make)
    theirs = store.build(other, SkippedFile, make)
    # Twin: it verifies where it belongs.
    assert store.get(other, SkippedFile) == replace(theirs, reused=True)
    shutil.rmtree(first.folder)
    shutil.copytree(theirs.folder, first.folder)
    words = rf"record\.json is that of {other.stage}/{other.digest[:12]}"
    check_rebuilt(store, said, first, words)


@pytest.mark.parametrize("inner", [".", "deep"])
def test_a_folder_that_is_a_link_is_not_followed(
    store: Store, said: list[str], tmp_path: Path, inner: str
) -> None:
    first = store.build(KEY, SkippedFile, make)
    folder = first.folder / inner
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert (first.folder / "deep" / "curve.json").read_bytes() == BLOBS["deep/curve.json"]
    check_rebuilt(store, said, first, r"[a-z/.]+ cannot be read \(Not a directory\)")


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "deep//curve.json", "./empty"])
def test_a_record_that_names_what_lies_elsewhere(store: Store, said: list[str], name: str) -> None:
    first = store.build(KEY, SkippedFile, make)
    (store.root / "outside").write_bytes(b"")
    path = first.folder / "record.json"
    entry = json.loads(path.read_bytes())
    entry["blobs"][name] = entry["blobs"].pop("empty")
    del entry["sha256"]
    entry["sha256"] = hashlib.sha256(canonical(entry)).hexdigest()  # as whoever forges it would
    path.write_text(json.dumps(entry))
    check_rebuilt(store, said, first, rf"'{re.escape(name)}' is no name of a file in it")


def test_what_no_record_names_is_no_part_of_a_result(store: Store, tmp_path: Path) -> None:
    first = store.build(KEY, SkippedFile, make)
    secret = tmp_path / "secret"
    secret.write_text("not for others")
    (first.folder / "notes").symlink_to(secret)
    (first.folder / "more").write_text("more")
    os.mkfifo(first.folder / "pipe")
    assert store.get(KEY, SkippedFile) == replace(first, reused=True)
    copy = tmp_path / "copy"
    first.copy_to(copy)
    copied = {path.relative_to(copy).as_posix(): path for path in copy.rglob("*")}
    assert copied.keys() == {*BLOBS, "deep"}
    assert {name: copied[name].read_bytes() for name in BLOBS} == BLOBS


def test_a_copy_is_of_what_was_verified(store: Store, tmp_path: Path) -> None:
    first = store.build(KEY, SkippedFile, make)
    flip(first.folder / "weights.npz")
    with pytest.raises(IntegrityError, match="sha256"):
        first.copy_to(tmp_path / "copy")
    link(first.folder / "weights.npz")
    with pytest.raises(IntegrityError, match="symbolic links"):
        first.copy_to(tmp_path / "other")


def test_finished_results_are_listed_and_left_alone(store: Store, said: list[str]) -> None:
    good = store.build(KEY, SkippedFile, make)
    bad = store.build(replace(KEY, seed=8), SkippedFile, make)
    flip(bad.folder / "weights.npz")
    (store.root / "train" / ".draft-x").mkdir()
    found = list(finished(store.root, "train", SkippedFile))
    assert replace(good, reused=True) in found
    (problem,) = [item for item in found if isinstance(item, str)]
    assert problem.startswith(f"{bad.folder}: weights.npz has sha256 ")
    assert len(found) == 2
    assert bad.folder.is_dir()
    assert said == []
    assert list(finished(store.root, "export", SkippedFile)) == []


def test_a_quarantine_that_cannot_be_written_is_said(store: Store) -> None:
    first = store.build(KEY, SkippedFile, make)
    flip(first.folder / "weights.npz")
    (store.root / "quarantine").write_text("in the way")
    with pytest.raises(SpecError, match=r"is damaged .* and cannot be moved") as caught:
        store.get(KEY, SkippedFile)
    assert f"delete {first.folder}" in caught.value.remedy


def test_a_lock_that_cannot_be_taken_is_said(store: Store) -> None:
    (store.root / "lock").mkdir()
    with pytest.raises(SpecError, match=r"cannot lock .*lock: Is a directory"), store.locked():
        pytest.fail("locked")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"reason": "b"', '"reason": "c"'),  # what was measured
        ('"size_bytes": 6', '"size_bytes": 7'),
        ('"rate": 0.1', '"rate": 0.2'),
        ('"empty"', '"other"'),
    ],
)
def test_a_record_that_still_reads_well(store: Store, said: list[str], old: str, new: str) -> None:
    first = store.build(KEY, SkippedFile, make)
    path = first.folder / "record.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    check_rebuilt(store, said, first, r"record\.json has been altered")


def test_all_of_the_record_counts(store: Store, said: list[str]) -> None:
    """Changes byte after byte of the record: the result is refused, or is the same result."""
    first = store.build(KEY, SkippedFile, make)
    path = first.folder / "record.json"
    good = path.read_bytes()
    refused = 0
    for place in range(0, len(good), 5):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        found = store.get(KEY, SkippedFile)
        if found is None:
            refused += 1
            kept = next((store.root / "quarantine").glob(f"train-*/{KEY.digest}"))
            kept.rename(first.folder)
        else:
            assert json.loads(path.read_bytes()) == json.loads(good)  # white space only
            assert replace(found, reused=False) == first
    assert refused > 100
    assert len(said) == refused


def test_a_result_of_another_type_is_not_taken(store: Store) -> None:
    from edgekit.records import SplitRecord

    store.build(KEY, SkippedFile, make)
    assert store.get(KEY, SplitRecord) is None


def test_make_that_raises_leaves_nothing(store: Store) -> None:
    def broken(folder: Path) -> SkippedFile:
        make(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.build(KEY, SkippedFile, broken)
    assert list((store.root / "train").iterdir()) == []
    assert store.build(KEY, SkippedFile, make).reused is False


def test_a_missing_file_in_make_is_not_called_a_full_disk(store: Store, tmp_path: Path) -> None:
    def broken(folder: Path) -> SkippedFile:
        (tmp_path / "nowhere").read_bytes()
        return RECORD

    with pytest.raises(FileNotFoundError):
        store.build(KEY, SkippedFile, broken)
    assert list((store.root / "train").iterdir()) == []


# Runs a build once for every audited file operation, and dies by SIGKILL at exactly that one.
KILLED = """
import os, signal, sys
from pathlib import Path
from test_store import KEY, SkippedFile, Store, make

def build(root, place):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event.split(".")[0] in ("open", "os", "shutil", "tempfile"):
            seen += 1
            if seen == place:
                os.kill(os.getpid(), signal.SIGKILL)
    store = Store(root, print)
    sys.addaudithook(hook)
    store.build(KEY, SkippedFile, make)

place = 0
while True:
    place += 1
    child = os.fork()
    if child == 0:
        build(Path(sys.argv[1]) / str(place), place)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    print(place)
"""


def in_a_process(script: str, *arguments: str) -> subprocess.Popen[str]:
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": here},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_at_every_file_operation(tmp_path: Path) -> None:
    with in_a_process(KILLED, str(tmp_path / "killed")) as process:
        places = [int(line) for line in process.communicate()[0].split()]
    assert process.returncode == 0
    assert len(places) > 15
    expected = Store(tmp_path / "quiet", [].append).build(KEY, SkippedFile, make).digest
    leftovers = unfinished = 0
    for place in places:
        said: list[str] = []
        store = Store(tmp_path / "killed" / str(place), said.append)
        leftovers += len(list(store.root.glob("train/.draft-*")))
        found = store.get(KEY, SkippedFile)
        unfinished += found is None
        assert found is None or found.digest == expected
        assert store.build(KEY, SkippedFile, make).digest == expected
        assert said == []  # half a result is never taken for a damaged one
        assert [p.name for p in (store.root / "train").iterdir()] == [KEY.digest]
    assert leftovers > 10
    assert unfinished > 10


HOLDING = """
import sys
from pathlib import Path
from edgekit.store import Store
with Store(Path(sys.argv[1]), print).locked():
    print("holding", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_one_process_per_run_folder(store: Store, how: str) -> None:
    with in_a_process(HOLDING, str(store.root)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        with (
            pytest.raises(SpecError, match="in use by another edgekit") as caught,
            store.locked(),
        ):
            pass
        assert caught.value.exit_code == 2
        assert str(store.root.parent) in caught.value.received
        if how == "is killed":
            process.kill()
        process.communicate()
    with store.locked(), pytest.raises(SpecError), Store(store.root, [].append).locked():
        pass
    with store.locked():
        pass


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(path, b"n" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new and longer")
        assert reader.read() == b"old"


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # Source: FIPS 180-2, appendix B.1.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "a") == known


def as_bytes(folder: Path) -> None:
    (folder / "weights.npz").write_bytes(bytes(2_000_000))


def as_array(folder: Path) -> None:
    import numpy as np

    np.save(folder / "weights.npy", np.zeros(2_000_000, np.uint8))


def as_pictures(folder: Path) -> None:
    from PIL import Image

    from edgekit.data.decode import read_folder
    from edgekit.data.scan import scan
    from edgekit.records import Preprocess

    with tempfile.TemporaryDirectory() as name:
        for label in ("cat", "dog"):
            (Path(name) / label).mkdir()
            Image.new("RGB", (32, 32)).save(Path(name) / label / "1.png")
        contract = Preprocess(height_px=1000, width_px=1000)
        read_folder(scan(Path(name)), contract, folder, lambda done, total: None)


@pytest.mark.parametrize("write", [as_bytes, as_array, as_pictures])
def test_a_full_disk(small_disk: Path, write: Callable[[Path], None]) -> None:
    store = Store(small_disk / "store", [].append)
    kept = store.build(replace(KEY, stage="data"), SkippedFile, make)

    def too_large(folder: Path) -> SkippedFile:
        write(folder)
        return RECORD

    with pytest.raises(SpecError, match="are free") as caught:
        store.build(KEY, SkippedFile, too_large)
    assert caught.value.exit_code == 2
    assert str(store.root / "train") in caught.value.received
    assert list((store.root / "train").iterdir()) == []
    assert store.build(KEY, SkippedFile, make).reused is False
    assert store.get(replace(KEY, stage="data"), SkippedFile) == replace(kept, reused=True)


def test_a_record_that_is_no_longer_good_is_made_again(store: Store, said: list[str]) -> None:
    first = store.build(KEY, SkippedFile, make)
    again = store.build(KEY, SkippedFile, make, still_good=lambda _: False)
    assert (again.reused, again.digest) == (False, first.digest)
    assert store.build(KEY, SkippedFile, never, still_good=lambda _: True).reused
    assert said == []


def test_a_result_stays_until_it_has_been_made_again(store: Store) -> None:
    """Whoever measures again and stops halfway still has what was measured before."""
    first = store.build(KEY, SkippedFile, make)

    def interrupted(folder: Path) -> SkippedFile:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.build(KEY, SkippedFile, interrupted, still_good=lambda _: False)
    assert store.get(KEY, SkippedFile) == replace(first, reused=True)


def test_discarded_results_are_gone(store: Store) -> None:
    store.build(KEY, SkippedFile, make)
    store.discard(KEY.stage)
    assert store.get(KEY, SkippedFile) is None
    store.discard(KEY.stage)  # nothing there is no trouble


def test_a_pattern_discards_every_stage_that_it_matches(store: Store) -> None:
    stages = ("activations-block_9_add", "activations-", "activation", "train-activations-1", "a")
    for stage in stages:
        store.build(replace(KEY, stage=stage), SkippedFile, make)
    (store.root / "activations-note").write_bytes(b"a file is no result")
    with store.locked():
        store.discard("activations-*")
    assert {path.name for path in store.root.iterdir()} >= {*stages[2:], "activations-note", "lock"}
    found = [store.get(replace(KEY, stage=stage), SkippedFile) for stage in stages]
    assert [result is not None for result in found] == [False, False, True, True, True]


def test_planned_results_outlive_a_discard(store: Store) -> None:
    keys = [replace(KEY, stage=f"activations-{i}", seed=i % 2) for i in range(4)]
    for key in keys:
        store.build(key, SkippedFile, make)
    sizes = [store.bytes_of(key.stage) for key in keys]
    assert all(size > 0 for size in sizes)
    assert store.bytes_of("activations-*") == sum(sizes)
    store.discard("activations-*", keep=[keys[1], keys[2], replace(KEY, seed=9)])
    found = [store.get(key, SkippedFile) is not None for key in keys]
    assert found == [False, True, True, False]
    assert {path.name for path in store.root.glob("activations-*")} == {
        "activations-1", "activations-2"
    }  # fmt: skip
    assert store.bytes_of("activations-*") == sizes[1] + sizes[2]
    assert store.bytes_of("nothing-*") == 0


def test_one_result_is_removed(store: Store, said: list[str]) -> None:
    other = replace(KEY, seed=8)
    for key in (KEY, other):
        store.build(key, SkippedFile, make)
    store.remove(KEY)
    assert store.get(KEY, SkippedFile) is None
    assert store.get(other, SkippedFile) is not None
    store.remove(KEY)  # nothing there is no trouble
    assert store.build(KEY, SkippedFile, make).reused is False
    assert said == []


def test_only_what_is_to_survive_a_power_cut_is_flushed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    flush = os.fsync

    def counted(handle: int) -> None:
        flushed.append(handle)
        flush(handle)

    monkeypatch.setattr(os, "fsync", counted)
    durable = store.build(KEY, SkippedFile, make)
    # Every blob, the record, and the folder before and behind its renaming.
    assert len(flushed) == len(BLOBS) + 3
    quick = store.build(replace(KEY, seed=8), SkippedFile, make, durable=False)
    assert len(flushed) == len(BLOBS) + 3
    # It is as complete and as well guarded as any other.
    assert {name: (quick.folder / name).read_bytes() for name in BLOBS} == BLOBS
    assert quick.record == durable.record
    flip(quick.folder / "weights.npz")
    assert store.get(replace(KEY, seed=8), SkippedFile) is None
    assert store.get(KEY, SkippedFile) is not None


def test_the_free_bytes_are_those_of_its_disk(small_disk: Path, store: Store) -> None:
    small = Store(small_disk / "store", [].append)
    before = small.free_bytes()
    assert 0 < before <= 2**20 < store.free_bytes()
    (small_disk / "filler").write_bytes(bytes(500_000))
    assert 500_000 <= before - small.free_bytes() < 510_000


def test_the_cost_of_making_is_kept(store: Store) -> None:
    first = store.build(KEY, SkippedFile, make)
    again = store.build(KEY, SkippedFile, never)
    assert again.cost == first.cost
    assert first.cost.peak_memory_bytes > 1_000_000
