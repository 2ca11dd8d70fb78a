"""Content-addressed store of finished stages: atomic, verified on read, resumable.

    ROOT/<stage>/<key>/        blobs, then record.json, which carries the digests of all blobs and
                               of itself; the folder appears whole, by one rename
    ROOT/quarantine/           what failed verification, kept for inspection

The key of a stage is the sha256 of everything its result depends on; the digest of a stored stage
is the sha256 of that key and of all blob digests, and is what later stages put into their keys.

What a record does not name is not part of a result, and neither is what a link leads to.
"""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from filelock import FileLock, Timeout

from edgekit.errors import IntegrityError, SpecError
from edgekit.folders import DOES_NOT_FIT, free_bytes, scratch_folder, writing
from edgekit.records import Record

R = TypeVar("R", bound=Record)
_SCHEMA = 4
_RECORD = "record.json"
# A record of a million skipped files takes some 200 MB.
_LARGEST_RECORD_BYTES = 512 * 1024**2
_CHUNK_BYTES = 1024**2
_DRAFT = ".draft-"


@dataclass(frozen=True)
class StageKey:
    """Everything a stage's result depends on.

    Args:
        stage: Name of the stage.
        code: Version of the stage's code, see `edgekit.code_version`.
        params: The parameters that this stage uses, and no others; JSON values.
        inputs: Digests of what it reads, by name; never paths or times.
        tools: Packages whose version matters.
        seed: Seed of the recipe.
    """

    stage: str
    code: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    tools: tuple[str, ...]
    seed: int

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of all fields, with the installed version of each tool."""
        return _key_digest(self.described())

    def described(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "stage": self.stage,
            "code": self.code,
            "params": dict(self.params),
            "inputs": dict(self.inputs),
            "tools": {name: tool_version(name) for name in self.tools},
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Cost:
    """What making a stage took: wall seconds, and the process's largest resident set by its end."""

    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Stored(Generic[R]):
    """A verified stage result.

    Args:
        record: Its record.
        folder: Where its blobs lie.
        blobs: sha256 of every blob by its name, a relative path.
        digest: Its digest.
        reused: Whether it was there already.
        cost: What making it took.
    """

    record: R
    folder: Path
    blobs: Mapping[str, str]
    digest: str
    reused: bool
    cost: Cost = field(compare=False)

    def copy_to(self, folder: Path) -> None:
        """Copies the blobs, and nothing else that lies beside them, into another folder.

        Raises:
            IntegrityError: If one is no longer what was verified.
        """
        for name, expected in self.blobs.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                with _opened(self.folder, name) as blob, (folder / name).open("wb") as copy:
                    found = _sha256(blob, copy)
            except _DamagedError as error:
                found = str(error)
            if found != expected:
                raise IntegrityError(
                    f"{self.folder / name}: {found}",
                    f"sha256 {expected}",
                    "something else writes there; end it and run again",
                )


def canonical(value: Any) -> bytes:
    """Returns the one JSON encoding of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@cache
def tool_version(name: str) -> str:
    """Returns the installed version of a package, or "absent"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old or the new content, never a part.

    Raises:
        OSError: If the folder cannot be written; no partial file is left.
    """
    with scratch_folder(path.parent) as folder, writing(path):
        temporary = folder / path.name
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Store:
    """Stage results below one folder.

    Args:
        root: The folder; created when missing.
        say: Called with one line when a damaged result is set aside.
    """

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self.root = root
        self._say = say
        root.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run folder for this process.

        Raises:
            SpecError: If another process holds it.
        """
        lock = FileLock(self.root / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise SpecError(
                f"{self.root.parent} is in use by another edgekit",
                "one edgekit per run folder",
                "wait for it to end, or give another folder with --out",
            ) from None
        except OSError as error:
            raise SpecError(
                f"cannot lock {lock.lock_file}: {error.strerror or error}",
                "a run folder that can be written to",
                "give another folder with --out",
            ) from error
        try:
            for stage in self.root.glob("*"):
                _remove_leftovers(stage)
            yield
        finally:
            lock.release()

    def get(self, key: StageKey, record_type: type[R]) -> Stored[R] | None:
        """Returns the stored result of a stage, or None when there is none that verifies.

        See `finished`; a result that does not match is moved to `quarantine/`, named in one line,
        and treated as absent.

        Raises:
            SpecError: If it cannot be moved.
        """
        folder = self.root / key.stage / key.digest
        if not os.path.lexists(folder):
            return None
        try:
            return _verified(folder, record_type)
        except _DamagedError as error:
            self._set_aside(folder, str(error))
            return None

    def free_bytes(self) -> int:
        """Returns the bytes that are free where the store lies."""
        return shutil.disk_usage(self.root).free

    def has(self, key: StageKey) -> bool:
        """Returns whether there is a result, without verifying it."""
        return (self.root / key.stage / key.digest).is_dir()

    def remove(self, key: StageKey) -> None:
        """Deletes one result, if it is there."""
        shutil.rmtree(self.root / key.stage / key.digest, ignore_errors=True)

    def discard(self, stage: str, keep: Collection[StageKey] = ()) -> None:
        """Deletes results that nothing needs any more.

        Args:
            stage: Name of the stage; "*" stands for any text.
            keep: Keys of the results to keep. Defaults to none.
        """
        kept = {key.digest for key in keep}
        for folder in self.root.glob(f"{stage}/*"):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self.root.glob(stage):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()

    def bytes_of(self, stage: str) -> int:
        """Returns the bytes that the results of stages take; "*" stands for any text."""
        return sum(path.stat().st_size for path in self.root.glob(f"{stage}/*/*"))

    def build(
        self,
        key: StageKey,
        record_type: type[R],
        make: Callable[[Path], R],
        still_good: Callable[[R], bool] = lambda _: True,
        *,
        durable: bool = True,
    ) -> Stored[R]:
        """Returns the stored result, or makes, stores and returns it.

        Args:
            key: What the result depends on.
            record_type: Type of the record.
            make: Writes blobs into the folder it is given and returns the record.
            still_good: Whether a stored record may be used; if not, it is made again, and stays
                until that is done. Defaults to any.
            durable: Whether it is to survive a power cut. Defaults to True; without it it may be
                lost or come out damaged, which the next read notices.

        Raises:
            SpecError: If the store cannot be written: no space, no right, a read-only disk.
        """
        found = self.get(key, record_type)
        if found is not None and still_good(found.record):
            return found
        parent = self.root / key.stage
        draft = None
        started = time.monotonic()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(parent)
            draft = Path(tempfile.mkdtemp(dir=parent, prefix=_DRAFT))
            with writing(draft):
                record = make(draft)
            cost = Cost(time.monotonic() - started, _peak_memory_bytes())
            return self._commit(key, draft, record, cost, durable)
        except OSError as error:
            place = str(error.filename or parent)
            inside = place.startswith(str(parent))
            if error.errno not in DOES_NOT_FIT and not inside:
                raise
            option = "give another --out" if inside else "name another folder in TMPDIR"
            raise SpecError(
                f"cannot write {place}: {error.strerror or error}",
                "a writable folder with enough space",
                f"{(free_bytes(place) or 0) / 1e6:.0f} MB are free there; make room or {option}",
            ) from error
        finally:
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)

    def _commit(
        self, key: StageKey, draft: Path, record: R, cost: Cost, durable: bool
    ) -> Stored[R]:
        blobs: dict[str, dict[str, Any]] = {}
        for path in sorted(p for p in draft.rglob("*") if p.is_file()):
            name = path.relative_to(draft).as_posix()
            blobs[name] = {"sha256": file_digest(path), "size_bytes": path.stat().st_size}
        entry = {
            "schema": _SCHEMA,
            "key": key.described(),
            "blobs": blobs,
            "cost": asdict(cost),
            "record": record.model_dump(mode="json"),
        }
        entry["sha256"] = hashlib.sha256(canonical(entry)).hexdigest()
        # Nobody sees the draft before it is renamed, so that its files need no renaming each.
        (draft / _RECORD).write_bytes(json.dumps(entry, indent=1, allow_nan=False).encode())
        draft.chmod(0o755)
        if durable:
            for name in (*blobs, _RECORD, "."):
                _sync(draft / name)
        final = self.root / key.stage / key.digest
        shutil.rmtree(final, ignore_errors=True)  # of a result that was made again
        draft.rename(final)
        if durable:
            _sync(final.parent)
        digests = {name: blob["sha256"] for name, blob in blobs.items()}
        return Stored(record, final, digests, _digest(key.digest, digests), False, cost)

    def _set_aside(self, folder: Path, problem: str) -> None:
        quarantine = self.root / "quarantine"
        try:
            quarantine.mkdir(exist_ok=True)
            target = Path(tempfile.mkdtemp(dir=quarantine, prefix=f"{folder.parent.name}-"))
            folder.rename(target / folder.name)
        except OSError as error:
            raise SpecError(
                f"{folder} is damaged ({problem}) and cannot be moved to {quarantine}: "
                f"{error.strerror or error}",
                "a run folder that can be written to",
                f"delete {folder}, or give another folder with --out",
            ) from error
        self._say(f"stored {folder.parent.name} result is damaged and is made again: {problem}")


class _DamagedError(Exception):
    """A stored result, or a file of it, that is not as it was stored; says how."""


def finished(root: Path, stage: str, record_type: type[R]) -> Iterator[Stored[R] | str]:
    """Yields every result of a stage: verified, or in words what is wrong with it.

    A result verifies if its record is whole, lies under the key that it was made for, and every
    blob that it names is a regular file of the recorded size and sha256. Nothing is changed.

    Args:
        root: Folder of the store.
        stage: Name of the stage.
        record_type: Type of its record.
    """
    for folder in sorted(root.glob(f"{stage}/*")):
        if folder.name.startswith(_DRAFT):
            continue
        try:
            yield _verified(folder, record_type)
        except _DamagedError as error:
            yield f"{folder}: {error}"


def _verified(folder: Path, record_type: type[R]) -> Stored[R]:
    """Returns the result that lies in a folder, see `finished`.

    Raises:
        _DamagedError: If it does not verify.
    """
    content = _content(folder, _RECORD)
    try:
        entry = json.loads(content)
        seal = entry.pop("sha256")
        key, blobs = _key_digest(entry["key"]), dict(entry["blobs"])
        stage, cost = entry["key"]["stage"], Cost(**entry["cost"])
        sealed = seal == hashlib.sha256(canonical(entry)).hexdigest()
        record = record_type.model_validate_json(json.dumps(entry["record"]))
        expected = {n: (str(blob["sha256"]), blob["size_bytes"]) for n, blob in blobs.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _DamagedError(f"{_RECORD} cannot be read ({error.__class__.__name__})") from error
    if not sealed:
        raise _DamagedError(f"{_RECORD} has been altered")
    if (stage, key) != (folder.parent.name, folder.name):
        raise _DamagedError(f"{_RECORD} is that of {stage}/{key[:12]}")
    for name, (sha256, size_bytes) in expected.items():
        with _opened(folder, name) as blob:
            size = os.fstat(blob.fileno()).st_size
            if size != size_bytes:
                raise _DamagedError(f"{name} has {size} bytes, expected {size_bytes}")
            found = _sha256(blob)
        if found != sha256:
            raise _DamagedError(f"{name} has sha256 {found[:12]}, expected {sha256[:12]}")
    digests = {name: sha256 for name, (sha256, _) in expected.items()}
    return Stored(record, folder, digests, _digest(key, digests), True, cost)


def _content(folder: Path, name: str) -> bytes:
    with _opened(folder, name) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > _LARGEST_RECORD_BYTES:
            raise _DamagedError(f"{name} has {size} bytes, expected {_LARGEST_RECORD_BYTES}")
        try:
            return stream.read()
        except OSError as error:
            raise _DamagedError(f"{name} cannot be read ({error.strerror})") from error


@contextlib.contextmanager
def _opened(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Opens a regular file below a folder, without following a link or waiting for a pipe.

    Raises:
        _DamagedError: If it is no such file, or cannot be opened.
    """
    *above, last = name.split("/")
    if not {"", ".", ".."}.isdisjoint((*above, last)):
        raise _DamagedError(f"{name!r} is no name of a file in it")
    with contextlib.ExitStack() as stack:

        def opened(part: str, flags: int, within: int | None) -> int:
            try:
                return os.open(part, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=within)
            except FileNotFoundError as error:
                raise _DamagedError(f"{name} is missing") from error
            except OSError as error:
                raise _DamagedError(f"{name} cannot be read ({error.strerror})") from error

        within = None
        for part in (str(folder), *above):
            within = opened(part, os.O_RDONLY | os.O_DIRECTORY, within)
            stack.callback(os.close, within)
        handle = opened(last, os.O_RDONLY, within)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise _DamagedError(f"{name} is not a regular file")
        yield stack.enter_context(os.fdopen(handle, "rb"))


def _sha256(stream: BinaryIO, copy: BinaryIO | None = None) -> str:
    """Returns the sha256 of what is left of a file; writes it to another one, too, if asked."""
    found = hashlib.sha256()
    try:
        while chunk := stream.read(_CHUNK_BYTES):
            found.update(chunk)
            if copy is not None:
                copy.write(chunk)
    except OSError as error:
        if copy is not None:
            raise  # it is the copy that cannot be written
        raise _DamagedError(f"a blob cannot be read ({error.strerror})") from error
    return found.hexdigest()


def _key_digest(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({"schema": _SCHEMA, **described})).hexdigest()


def _digest(key: str, blobs: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical({"key": key, "blobs": blobs})).hexdigest()


def _peak_memory_bytes() -> int:
    """Returns the largest resident set of this process; Linux counts in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _remove_leftovers(parent: Path) -> None:
    """Deletes drafts of killed processes; the run lock guarantees that none is alive."""
    for draft in parent.glob(f"{_DRAFT}*"):
        shutil.rmtree(draft, ignore_errors=True)
