"""Folders that vanish with their maker, also a killed one, and folders that appear at once."""

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit import folders
from edgekit.folders import remove_dead, replace_folder, scratch_folder, writing

# Makes a scratch folder with something in it, says its name, and waits.
MAKER = """
import sys
from pathlib import Path
from edgekit.folders import scratch_folder
with scratch_folder(Path(sys.argv[1]) if len(sys.argv) > 1 else None) as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("much")
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def maker(temporary: Path, *arguments: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Yields a living process and its scratch folder."""
    command = [sys.executable, "-c", MAKER, *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().rstrip("\n"))
        process.kill()


def killed(temporary: Path, *arguments: Path) -> Path:
    """Returns the scratch folder of a process that was killed."""
    with maker(temporary, *arguments) as (process, folder):
        process.kill()
    assert (folder / "deep" / "file").is_file()
    return folder


def edgekit(temporary: Path, *arguments: str) -> None:
    """Starts the command line as a user does."""
    subprocess.run(
        [sys.executable, "-m", "edgekit", *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )


def test_a_scratch_folder_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with scratch_folder() as system, scratch_folder(tmp_path / "new") as beside:
        assert stat.S_IMODE(system.stat().st_mode) == stat.S_IMODE(beside.stat().st_mode) == 0o700
        assert beside.parent == tmp_path / "new"
        (beside / "file").touch()
    assert not system.exists()
    assert list((tmp_path / "new").iterdir()) == []


def test_the_next_start_removes_the_folder_of_a_killed_process(tmp_path: Path) -> None:
    folder = killed(tmp_path)
    assert folder.parent == tmp_path
    edgekit(tmp_path, "--version")
    assert list(tmp_path.iterdir()) == []


def test_the_next_scratch_folder_beside_it_removes_it_too(tmp_path: Path) -> None:
    folder = killed(tmp_path, tmp_path / "place")
    assert folder.name.startswith(".")
    remove_dead(tmp_path)  # another place
    assert folder.exists()
    with scratch_folder(tmp_path / "place"):
        assert not folder.exists()


# What a library does: a temporary file that it never removes; here and in a child.
CARELESS = """
import os, signal, subprocess, sys, tempfile
from edgekit.folders import use_own_temporary_folder
use_own_temporary_folder()
child = "import tempfile; print(tempfile.mkstemp()[1])"
print(tempfile.mkstemp()[1], subprocess.check_output([sys.executable, "-c", child], text=True))
sys.stdout.flush()
if len(sys.argv) > 1:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_libraries_leave_behind_goes_with_the_process(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    for arguments, left in (((), 0), (("killed",), 1)):
        command = [sys.executable, "-c", CARELESS, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        written = [Path(name) for name in done.stdout.split()]
        assert len(written) == 2, done.stderr
        assert all(path.parent.parent == tmp_path for path in written)
        assert len(list(tmp_path.iterdir())) == left
    edgekit(tmp_path, "targets")
    assert list(tmp_path.iterdir()) == []


def test_the_twin_the_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    with maker(tmp_path) as (process, folder):
        dead = killed(tmp_path)
        edgekit(tmp_path, "--version")
        assert not dead.exists()
        assert (folder / "deep" / "file").is_file()
        assert process.poll() is None
        process.communicate("")
    assert not folder.exists()


def without_lock(folder: Path) -> None:
    (folder / ".edgekit-lock").unlink()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir(0o700)


def not_only_a_lock(folder: Path) -> None:
    folder.rename(folder.with_suffix(".unlocked"))


def open_to_others(folder: Path) -> None:
    folder.chmod(0o750)


def of_another_user(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(folder, 12345, -1)


def otherwise_named(folder: Path) -> None:
    folder.rename(folder.with_name("edgekit-of-somebody"))


def lock_is_a_link(folder: Path) -> None:
    (folder / ".edgekit-lock").rename(folder / "elsewhere")
    (folder / ".edgekit-lock").symlink_to("elsewhere")


def lock_is_a_pipe(folder: Path) -> None:
    (folder / ".edgekit-lock").unlink()
    os.mkfifo(folder / ".edgekit-lock")


def is_a_link(folder: Path) -> None:
    folder.rename(folder.with_name("kept"))
    folder.symlink_to("kept")


def is_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("mine")


@pytest.mark.parametrize(
    "change",
    [without_lock, empty, not_only_a_lock, open_to_others, of_another_user, otherwise_named,
     lock_is_a_link, lock_is_a_pipe, is_a_link, is_a_file],
)  # fmt: skip
def test_the_twin_what_only_looks_like_a_dead_one_stays(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(killed(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    edgekit(tmp_path, "--version")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("locked", [False, True])
def test_what_was_killed_while_it_was_made_or_removed_is_removed(
    tmp_path: Path, locked: bool
) -> None:
    folder = tmp_path / "edgekit-abcdefgh.unlocked"
    folder.mkdir(0o700)
    if locked:
        (folder / ".edgekit-lock").touch()
    edgekit(tmp_path, "--version")
    assert list(tmp_path.iterdir()) == []


MANY = """
from edgekit.folders import remove_dead, scratch_folder
for _ in range(60):
    remove_dead.cache_clear()  # as many starts
    with scratch_folder() as folder:
        (folder / "file").write_text("mine")
        with scratch_folder():
            pass
        assert (folder / "file").read_text() == "mine"
"""


def test_many_starts_at_once_keep_their_own_and_remove_the_dead(tmp_path: Path) -> None:
    dead = [killed(tmp_path) for _ in range(5)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", MANY], env=environment) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0, 0]
    assert not any(folder.exists() for folder in dead)
    assert list(tmp_path.iterdir()) == []


def filled(folder: Path, text: str) -> Path:
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


def test_a_folder_comes_to_an_empty_place_or_replaces_what_is_there(tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    for text in ("first", "second"):
        with scratch_folder(tmp_path) as scratch:
            replace_folder(filled(scratch / "bundle", text), place)
        assert contents(place) == {text}
        assert list(tmp_path.iterdir()) == [place]
    with scratch_folder(tmp_path) as scratch:
        place = tmp_path / "file"
        place.write_text("a file")
        replace_folder(filled(scratch / "bundle", "third"), place)
    assert contents(place) == {"third"}


def test_whoever_looks_meanwhile_sees_one_of_the_two(tmp_path: Path) -> None:
    place = filled(tmp_path / "bundle", "first")
    absences, ended = [], threading.Event()

    def look() -> None:
        while not ended.is_set():
            if not (place / "a").exists():
                absences.append(1)

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(100):
        with scratch_folder(tmp_path) as scratch:
            replace_folder(filled(scratch / "bundle", str(number)), place)
    ended.set()
    looking.join()
    assert not absences


def no_exchange(_one: Path, other: Path) -> None:
    raise OSError(errno.EINVAL, "not on this file system", str(other))


def test_without_exchange_it_is_replaced_in_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_exchange", no_exchange)
    place = filled(tmp_path / "bundle", "old")
    with scratch_folder(tmp_path) as scratch:
        replace_folder(filled(scratch / "bundle", "new"), place)
    assert contents(place) == {"new"}
    assert list(tmp_path.iterdir()) == [place]


# Dies between the two steps.
HALF = """
import os, signal, sys
from pathlib import Path
from edgekit import folders
def no_exchange(one, other):
    raise OSError(22, "not on this file system")
folders._exchange = no_exchange
rename = Path.rename
def last(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
place = Path(sys.argv[1])
with folders.scratch_folder(place.parent) as scratch:
    fresh = scratch / place.name
    fresh.mkdir()
    (fresh / "a").write_text("new")
    Path.rename = last
    folders.replace_folder(fresh, place)
"""


@pytest.mark.parametrize("since", ["nothing", "another"])
def test_a_kill_between_the_two_steps_loses_nothing(tmp_path: Path, since: str) -> None:
    place = filled(tmp_path / "bundle", "old")
    done = subprocess.run([sys.executable, "-c", HALF, str(place)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not place.exists()
    if since == "another":
        filled(place, "another")
    with scratch_folder(tmp_path):
        pass
    assert contents(place) == {"old" if since == "nothing" else "another"}
    assert list(tmp_path.iterdir()) == [place]


def test_what_cannot_be_put_there_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_exchange", no_exchange)
    place = filled(tmp_path / "bundle", "old")
    with pytest.raises(FileNotFoundError), scratch_folder(tmp_path) as scratch:
        replace_folder(scratch / "missing", place)
    assert contents(place) == {"old"}
    assert list(tmp_path.iterdir()) == [place]


def with_python(place: Path) -> None:
    place.write_bytes(bytes(2**21))


def with_numpy(place: Path) -> None:
    with place.open("wb") as stream:
        np.save(stream, np.zeros(2**18))


def with_zip(place: Path) -> None:
    np.savez(place, a=np.zeros(2**18))


SAID = "No space left on device|requested and [0-9]+ written"


@pytest.mark.parametrize("write", [with_python, with_numpy, with_zip])
def test_what_does_not_fit_names_its_path(small_disk: Path, write: Callable[[Path], None]) -> None:
    place = small_disk / "much.npz"
    with pytest.raises(OSError, match=SAID) as caught, writing(place):
        write(place)
    assert caught.value.filename == str(place)
    place.unlink()
    with pytest.raises(OSError, match=SAID) as caught, scratch_folder(small_disk) as scratch:
        write(scratch / "much.npz")
    assert caught.value.filename == str(scratch)
    assert list(small_disk.iterdir()) == []


def test_the_twin_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing, writing(tmp_path):
        (tmp_path / "missing").read_bytes()
    assert missing.value.filename == str(tmp_path / "missing")
    with pytest.raises(ConnectionResetError) as reset, writing(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "gone")
    assert reset.value.filename is None
