"""Content-addressed store of finished stages: atomic, verified on read, resumable.

    ROOT/<stage>/<key>/        blobs, then record.json, which carries the digests of all blobs and
                               of itself; the folder appears whole, by one rename
    ROOT/quarantine/           what failed verification, kept for inspection

The key of a stage is the sha256 of everything its result depends on; the digest of a stored stage
is the sha256 of that key and of all blob digests, and is what later stages put into their keys.
"""

import contextlib
import errno
import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout

from edgekit.errors import SpecError
from edgekit.records import Record

R = TypeVar("R", bound=Record)
_SCHEMA = 3
_RECORD = "record.json"
_LITTLE_BYTES = 1_000_000
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class StageKey:
    """Everything a stage's result depends on.

    Args:
        stage: Name of the stage.
        code: Version of the stage's code; raise it when the result would change.
        params: The parameters that this stage uses, and no others; JSON values.
        inputs: Digests of what it reads, by name; never paths or times.
        tools: Packages whose version matters.
        seed: Seed of the recipe.
    """

    stage: str
    code: int
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    tools: tuple[str, ...]
    seed: int

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of all fields, with the installed version of each tool."""
        return hashlib.sha256(canonical({"schema": _SCHEMA, **self.described()})).hexdigest()

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
    """A verified stage result: its record, the folder of its blobs, its digest."""

    record: R
    folder: Path
    digest: str
    reused: bool
    cost: Cost = field(compare=False)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
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
        try:
            yield
        finally:
            lock.release()

    def get(self, key: StageKey, record_type: type[R]) -> Stored[R] | None:
        """Returns the stored result of a stage, or None when there is none that verifies.

        Every blob's size and sha256 are recomputed; a result that does not match is moved to
        `quarantine/`, named in one line, and treated as absent.
        """
        folder = self.root / key.stage / key.digest
        if not folder.is_dir():
            return None
        try:
            entry = json.loads((folder / _RECORD).read_bytes())
            sealed = entry.pop("sha256") == hashlib.sha256(canonical(entry)).hexdigest()
            record = record_type.model_validate_json(json.dumps(entry["record"]))
            blobs, cost = dict(entry["blobs"]), Cost(**entry["cost"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
            problem: str | None = f"{_RECORD} cannot be read ({err.__class__.__name__})"
        else:
            problem = _damage(folder, blobs) if sealed else f"{_RECORD} has been altered"
        if problem is not None:
            self._set_aside(folder, problem)
            return None
        return Stored(record, folder, _digest(key, blobs), True, cost)

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
            still_good: Whether a stored record may be used; if not, it is made again. Defaults to
                any.
            durable: Whether it is to survive a power cut. Defaults to True; without it it may be
                lost or come out damaged, which the next read notices.

        Raises:
            SpecError: If the store cannot be written: no space, no right, a read-only disk.
        """
        found = self.get(key, record_type)
        if found is not None:
            if still_good(found.record):
                return found
            shutil.rmtree(found.folder)
        parent = self.root / key.stage
        draft = None
        started = time.monotonic()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(parent)
            draft = Path(tempfile.mkdtemp(dir=parent, prefix=".draft-"))
            record = make(draft)
            cost = Cost(time.monotonic() - started, _peak_memory_bytes())
            return self._commit(key, draft, record, cost, durable)
        except OSError as error:
            free = self.free_bytes()
            # NumPy reports a short write without an error number.
            full = error.errno in _FULL or (error.errno is None and free < _LITTLE_BYTES)
            if not full and not str(error.filename).startswith(str(parent)):
                raise
            raise SpecError(
                f"cannot write {error.filename or parent}: {error.strerror or error}",
                "a writable folder with enough space",
                f"{free / 1e6:.0f} MB are free there; make room or give another --out",
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
        draft.rename(final)
        if durable:
            _sync(final.parent)
        return Stored(record, final, _digest(key, blobs), False, cost)

    def _set_aside(self, folder: Path, problem: str) -> None:
        quarantine = self.root / "quarantine"
        quarantine.mkdir(exist_ok=True)
        target = Path(tempfile.mkdtemp(dir=quarantine, prefix=f"{folder.parent.name}-"))
        folder.rename(target / folder.name)
        self._say(f"stored {folder.parent.name} result is damaged and is made again: {problem}")


def _damage(folder: Path, blobs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns what is wrong with the blobs, or None."""
    for name, expected in blobs.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size_bytes"]:
            return f"{name} has {path.stat().st_size} bytes, expected {expected['size_bytes']}"
        try:
            found = file_digest(path)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != expected["sha256"]:
            return f"{name} has sha256 {found[:12]}, expected {expected['sha256'][:12]}"
    return None


def _digest(key: StageKey, blobs: Mapping[str, Mapping[str, Any]]) -> str:
    digests = {name: blob["sha256"] for name, blob in blobs.items()}
    return hashlib.sha256(canonical({"key": key.digest, "blobs": digests})).hexdigest()


def _peak_memory_bytes() -> int:
    """Returns the largest resident set of this process; Linux counts in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _remove_leftovers(parent: Path) -> None:
    """Deletes drafts of killed processes; the run lock guarantees that none is alive."""
    for draft in parent.glob(".draft-*"):
        shutil.rmtree(draft, ignore_errors=True)
