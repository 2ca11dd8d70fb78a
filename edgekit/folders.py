"""Folders that vanish with their maker, and such as take another's place at once. Bottom layer.

A scratch folder holds a lock file that its process keeps locked. The system lets go of the lock
however that process ends, so an unlocked one is dead: the next scratch folder in the same place, or
the next start of the command line, removes it. Nothing else is ever removed.
"""

import atexit
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "edgekit-"
# As `tempfile.mkdtemp` names them; hidden where they lie beside what a user looks at.
_NAME = re.compile(r"\.?edgekit-[a-z0-9_]{8}(\.unlocked)?")
_LOCK = ".edgekit-lock"
# Ends the name of a folder that is being made or removed: its lock may be missing, and nothing else
# is in it.
_UNLOCKED = ".unlocked"
# Holds, below a scratch folder, what lay in a place beside it until something else came there.
_REPLACED = ".edgekit-replaced"
# Killed processes may still be writing into a folder for a moment.
_REMOVAL_TRIES, _REMOVAL_SECONDS = 50, 0.1
# Of renameat2(2) and of renamex_np(2).
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_RENAME_SWAP = 2
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
# Errors of the system that come while a file is written, and then name no file.
DOES_NOT_FIT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def scratch_folder(beside: Path | None = None) -> Iterator[Path]:
    """Yields a new private folder, which is gone afterwards.

    If this process is killed, the next one that asks for a scratch folder in the same place removes
    it.

    Args:
        beside: Folder in which it is made, hidden, so that what is in it can be renamed into place;
            made if missing. Defaults to None: the system's folder for temporary files.

    Raises:
        OSError: If it cannot be made, or what is written into it does not fit; it names the folder.
    """
    prefix, parent = _PREFIX, Path(tempfile.gettempdir())
    if beside is not None:
        prefix, parent = f".{_PREFIX}", beside.absolute()
        parent.mkdir(parents=True, exist_ok=True)
    remove_dead(parent)
    folder, lock = _make(parent, prefix)
    try:
        with writing(folder):
            yield folder
    finally:
        _remove(folder)
        os.close(lock)


def use_own_temporary_folder() -> None:
    """Gives this process and its children a folder for temporary files that vanishes with it.

    For what libraries write there: TensorFlow a file for each function that it traces, onnxruntime
    one when it is imported. If none can be made, the system's stays.
    """
    stack = contextlib.ExitStack()
    with contextlib.suppress(OSError):
        folder = str(stack.enter_context(scratch_folder()))
        atexit.register(stack.close)  # before any library, so that theirs are closed by then
        tempfile.tempdir = os.environ["TMPDIR"] = folder


@functools.cache
def remove_dead(parent: Path) -> None:
    """Removes the scratch folders of killed processes from a folder; looks once per process.

    What is removed is named as one, belongs to this user, who alone may enter it, is a folder and
    no link, and holds a lock file that nobody has locked. What it had moved out of another folder's
    way, see `replace_folder`, goes back if that place is empty.

    Args:
        parent: Where to look. One that cannot be read is left alone.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_dead(parent / entry.name)


def replace_folder(fresh: Path, folder: Path) -> None:
    """Gives a finished folder its place; what was there takes the finished one's.

    Whoever looks, and whoever finds it after this process was killed, sees the old or the new
    folder there. Where the file system cannot exchange two folders, a kill at the wrong moment
    leaves none; the next `scratch_folder` beside it puts the old one back.

    Args:
        fresh: A folder in a `scratch_folder` beside `folder`.
        folder: Its place.

    Raises:
        OSError: If it cannot be renamed.
    """
    if not os.path.lexists(folder) and _rename_to_nothing(fresh, folder):
        return
    try:
        _exchange(fresh, folder)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        kept = fresh.parent / _REPLACED
        kept.mkdir()
        folder.rename(kept / folder.name)
        fresh.rename(folder)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names what is being written in an error that does not say it, such as that of a full disk.

    Args:
        path: The file or folder.

    Raises:
        OSError: The error of the system, with a path.
    """
    try:
        yield
    except OSError as error:
        # NumPy reports a short write in words alone.
        in_words = error.errno is None and type(error) is OSError
        if error.filename is None and (in_words or error.errno in DOES_NOT_FIT):
            number = error.errno or errno.EIO
            raise OSError(number, error.strerror or str(error), str(path)) from error
        raise


def cache_folder() -> Path:
    """Returns where what is fetched or unpacked once is kept: `edgekit` in the user's cache folder.

    `XDG_CACHE_HOME` moves it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # A relative path there is to be ignored, says the XDG Base Directory Specification.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "edgekit"


def free_bytes(path: Path | str) -> int | None:
    """Returns the bytes that are free where a file or folder is or would be; None if unknown."""
    for place in (Path(path).absolute(), *Path(path).absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def _make(parent: Path, prefix: str) -> tuple[Path, int]:
    """Returns a new folder and its lock, which is open and, where there are locks, taken."""
    while True:
        unlocked = Path(tempfile.mkdtemp(prefix=prefix, suffix=_UNLOCKED, dir=parent))
        folder = unlocked.with_suffix("")
        with contextlib.ExitStack() as undone:
            undone.callback(shutil.rmtree, unlocked, ignore_errors=True)
            undone.callback(shutil.rmtree, folder, ignore_errors=True)
            # Another process may take it for a dead one, and remove it, until it is locked.
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                lock = os.open(unlocked / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                undone.callback(os.close, lock)
                _take(lock)
                unlocked.rename(folder)
                if os.path.samestat((folder / _LOCK).stat(), os.fstat(lock)):
                    undone.pop_all()
                    return folder, lock


def _take(lock: int) -> bool:
    """Takes a lock; returns False where the file system knows none.

    Raises:
        BlockingIOError: If another process holds it.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _remove_if_dead(folder: Path) -> None:
    """Removes one folder if it is a scratch folder and its process is gone.

    Raises:
        OSError: If it is not, or somebody else is removing it.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        about = os.fstat(handle)
        if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
            return
        if folder.name.endswith(_UNLOCKED):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
            if os.listdir(handle) != [_LOCK]:  # noqa: PTH208 - by its handle
                return
        lock = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
        try:
            # Another process may have removed it in the meantime.
            if (
                stat.S_ISREG(os.fstat(lock).st_mode)
                and _take(lock)
                and os.path.samestat(os.stat(_LOCK, dir_fd=handle), os.fstat(lock))
            ):
                _remove(folder)
        finally:
            os.close(lock)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Removes a scratch folder; a kill on the way leaves it recognizable."""
    _put_back(folder)
    for _ in range(_REMOVAL_TRIES):
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(folder)):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif entry.name != _LOCK:
                    Path(entry.path).unlink(missing_ok=True)
        if not folder.exists() or set(folder.iterdir()) <= {folder / _LOCK}:
            break
        time.sleep(_REMOVAL_SECONDS)
    unlocked = folder.with_suffix(_UNLOCKED)
    with contextlib.suppress(OSError):
        folder.rename(unlocked)
    with contextlib.suppress(OSError):
        (unlocked / _LOCK).unlink()
    with contextlib.suppress(OSError):
        unlocked.rmdir()


def _put_back(folder: Path) -> None:
    """Gives back the place of what had to leave it, unless something is there."""
    with contextlib.suppress(OSError):
        for kept in (folder / _REPLACED).iterdir():
            if not os.path.lexists(folder.parent / kept.name):
                kept.rename(folder.parent / kept.name)


def _rename_to_nothing(fresh: Path, folder: Path) -> bool:
    """Renames a folder to a place that was empty; returns whether it still was."""
    try:
        fresh.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _exchange(one: Path, other: Path) -> None:
    """Exchanges two paths of one file system at once.

    Raises:
        OSError: If that fails; with a number of `_NO_EXCHANGE` where it is not to be had.
    """
    system = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            failed = system.renamex_np(*paths, _RENAME_SWAP)
        else:
            here = _AT_FDCWD
            failed = system.renameat2(here, paths[0], here, paths[1], _RENAME_EXCHANGE)
    except AttributeError:  # an older C library
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(other)) from None
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
