"""Finding the pictures: which files, which classes, which splits. Reads bytes, decodes nothing."""

import hashlib
import json
import os
import stat
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import DataError
from edgekit.limits import DATA_CLASSES, DATA_FOLDERS_DEEP, PICTURE_FILE_BYTES
from edgekit.records import SkippedFile, SplitName

Progress = Callable[[int, int], None]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini")
_LAYOUT = "DIR/{train,validation,test}/<class>/*.jpg, or DIR/<class>/*.jpg"


@dataclass(frozen=True)
class Source:
    """One picture file.

    Args:
        path: Where it lies.
        relative: Its path below the data folder, with forward slashes.
        label: Index of its class.
        split: The split its folder puts it in, or None when edgekit splits.
        sha256: Digest of its bytes.
    """

    path: Path
    relative: str
    label: int
    split: SplitName | None
    sha256: str


@dataclass(frozen=True)
class Scan:
    """What lies in a data folder: class names and pictures in order, and what was left out."""

    root: Path
    class_names: tuple[str, ...]
    sources: tuple[Source, ...]
    skipped: tuple[SkippedFile, ...]

    @property
    def digest(self) -> str:
        """sha256 over class names, the path, split and digest of files, and what was left out."""
        used = [(source.relative, source.split, source.sha256) for source in self.sources]
        left_out = [(item.path, item.reason) for item in self.skipped]
        return hashlib.sha256(json.dumps([self.class_names, used, left_out]).encode()).hexdigest()


def scan(root: Path, progress: Progress | None = None) -> Scan:
    """Lists every picture below a data folder and hashes its bytes.

    Args:
        root: `DIR/{train,validation,test}/<class>/` or `DIR/<class>/`; pictures directly in a class
            folder or in folders below it.
        progress: Called with (files read, files in all).

    Returns:
        The scan, sorted by class name and relative path, so that file-creation order is irrelevant.

    Raises:
        DataError: If the folder is missing, unreadable or without any usable picture, holds one
            class only, a split lacks a class, or a class folder is unusable (its name, or a
            symbolic link out of the data folder).
    """
    try:
        return _scan(root, progress or _silent)
    except OSError as error:
        raise DataError(
            f"{printable(str(error.filename or root))}: {error.strerror}",
            "folders that can be listed",
            "check the rights of the data folder and of everything in it",
        ) from error


def _silent(done: int, total: int) -> None:
    """Tells nobody."""


def _scan(root: Path, progress: Progress) -> Scan:
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"data folder {root} {found}", f"a folder laid out as {_LAYOUT}", "correct the path"
        )
    parts = _parts(root)
    names = _class_names(root, parts)
    skipped = _strays(root, parts)
    listed = [
        (path, label, part)
        for part, folder in parts.items()
        for label, name in enumerate(names)
        for path in _pictures(root, folder / name, skipped)
    ]
    if not listed:
        raise DataError(f"no picture in {root}", f"pictures as {_LAYOUT}", "check the path")
    digests: list[str] = []
    with ThreadPoolExecutor() as pool:
        for digest in pool.map(_file_digest, (path for path, _, _ in listed)):
            digests.append(digest)
            progress(len(digests), len(listed))
    sources = []
    for (path, label, part), digest in zip(listed, digests, strict=True):
        relative = path.relative_to(root).as_posix()
        if len(digest) != 64:
            skipped.append(SkippedFile(path=printable(relative), reason=digest))
        else:
            sources.append(Source(path, relative, label, part, digest))
    if not sources:
        raise DataError(
            f"none of the {len(listed)} picture files in {root} is usable; {skipped[-1].path}: "
            f"{skipped[-1].reason}",
            f"pictures as {_LAYOUT}",
            "check how the folder was copied",
        )
    return Scan(root, names, tuple(sources), tuple(skipped))


def printable(text: str) -> str:
    """Returns the text with undecodable bytes and control characters escaped, safe to print."""
    clean = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in clean)


def _parts(root: Path) -> dict[SplitName | None, Path]:
    """Returns the folders that hold the class folders, by split; one under None when unsplit."""
    found = [name for name in SPLITS if (root / name).is_dir()]
    # A class may be called "test"; two of the three names, or "train", are no coincidence.
    if "train" not in found and len(found) < 2:
        return {None: root}
    if len(found) < len(SPLITS):
        missing = " and no ".join(name for name in SPLITS if name not in found)
        raise DataError(
            f"{root} has a folder {' and a folder '.join(found)} but no {missing}",
            f"all three splits, or class folders only: {_LAYOUT}",
            "add the missing split, or let edgekit split: one folder per class and no other",
        )
    for name in found:
        _refuse_link(root, root / name)
    return {name: root / name for name in found}


def _strays(root: Path, parts: dict[SplitName | None, Path]) -> list[SkippedFile]:
    """Lists what looks like data but lies where no class or no split is."""
    beside_classes = "picture beside the class folders, so of no class"
    found = [(path, beside_classes) for folder in parts.values() for path in _own_pictures(folder)]
    if None not in parts:
        beside_splits = "beside the folders train, validation and test, so in no split"
        folders = [e for e in _visible(root) if e.is_dir() and e not in parts.values()]
        found += [(path, f"folder {beside_splits}") for path in folders]
        found += [(path, f"picture {beside_splits}") for path in _own_pictures(root)]
    return [SkippedFile(path=_shown(root, p), reason=why, kind="ignored") for p, why in found]


def _own_pictures(folder: Path) -> list[Path]:
    return [e for e in _visible(folder) if e.suffix.lower() in SUFFIXES and not e.is_dir()]


def _leads_out(root: Path, entry: Path) -> bool:
    # os.path.realpath, unlike Path.resolve, does not raise on a loop of links. It looks at every
    # folder above, so only links are asked for.
    if not entry.is_symlink():
        return False
    return not Path(os.path.realpath(entry)).is_relative_to(os.path.realpath(root))


def _refuse_link(root: Path, folder: Path) -> None:
    if _leads_out(root, folder):
        raise DataError(
            f"{_shown(root, folder)} in {root} is a symbolic link that leads out of it",
            "all pictures inside the data folder",
            "copy the folder there, or give the folder that holds all of them",
        )


def _visible(folder: Path) -> list[Path]:
    return [Path(entry) for entry in _entries(folder)]


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Returns what lies in a folder, by name; an entry knows what it is without asking again."""
    with os.scandir(folder) as found:
        entries = [e for e in found if not e.name.startswith(".") and e.name not in _IGNORED]
    return sorted(entries, key=lambda entry: entry.name)


def _class_names(root: Path, parts: dict[SplitName | None, Path]) -> tuple[str, ...]:
    per_part = {
        part: [entry.name for entry in _visible(folder) if entry.is_dir()]
        for part, folder in parts.items()
    }
    names = sorted({name for found in per_part.values() for name in found})
    if len(names) > DATA_CLASSES:
        raise DataError(
            f"{printable(str(root))} holds {len(names)} class folders",
            f"at most {DATA_CLASSES} classes",
            "check the path: each folder in it is taken for a class",
        )
    for part, found in per_part.items():
        for name in found:
            _refuse_link(root, parts[part] / name)
    if not names:
        raise DataError(
            f"no class folder in {root}", f"one folder per class: {_LAYOUT}", "check the path"
        )
    if len(names) == 1:
        raise DataError(
            f"{root} holds one class only: {printable(names[0])!r}",
            "at least two classes",
            "add a folder of pictures of something else",
        )
    for part, found in per_part.items():
        absent = sorted(set(names) - set(found))
        if absent:
            raise DataError(
                f"{parts[part]} has no folder for {', '.join(printable(n) for n in absent)}",
                "every class in every split",
                "add pictures of these classes, or remove the class everywhere",
            )
    _check_names(names)
    return tuple(names)


def _check_names(names: list[str]) -> None:
    for name in names:
        if not name.isprintable() or not name.strip():
            raise DataError(
                f"class folder {printable(name)!r} contains characters that cannot be printed",
                "names that survive as one line of a labels file",
                "rename the folder",
            )
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise DataError(
                f"class folders {seen[key]!r} and {name!r} differ only by case or Unicode form "
                f"({seen[key]!a} and {name!a})",
                "names that every file system keeps apart",
                "merge or rename one of them",
            )
        seen[key] = name


def _pictures(root: Path, folder: Path, skipped: list[SkippedFile]) -> list[Path]:
    """Lists the pictures of a class in order, a folder in the place of its name."""
    found: list[Path] = []
    waiting = [(entry, 1) for entry in reversed(_entries(folder))]
    while waiting:
        entry, depth = waiting.pop()
        if entry.is_dir(follow_symlinks=False):
            if depth > DATA_FOLDERS_DEEP:
                raise DataError(
                    f"{_shown(root, folder)} in {printable(str(root))} holds folders more than "
                    f"{DATA_FOLDERS_DEEP} deep",
                    f"pictures as {_LAYOUT}, in at most {DATA_FOLDERS_DEEP} folders below that",
                    "check how the folder was copied; one that holds itself was copied into itself",
                )
            waiting += [(inner, depth + 1) for inner in reversed(_entries(entry.path))]
            continue
        path = Path(entry)
        if _leads_out(root, path):
            reason = "symbolic link that leads out of the data folder"
            skipped.append(SkippedFile(path=_shown(root, path), reason=reason))
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            kinds = ", ".join(SUFFIXES)
            reason = f"not a picture file ({kinds})"
            skipped.append(
                SkippedFile(path=_shown(root, path), reason=reason, kind="not-a-picture")
            )
    return found


def _shown(root: Path, path: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def _file_digest(path: Path) -> str:
    """Returns the sha256 of the bytes, or the reason why the file is not read."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            return "not a regular file"
        if state.st_size == 0:
            return "empty file"
        if state.st_size > PICTURE_FILE_BYTES:
            return f"{state.st_size} bytes > {PICTURE_FILE_BYTES}"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
