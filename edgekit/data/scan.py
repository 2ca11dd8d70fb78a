"""Finding the pictures: which files, which classes, which splits. Reads bytes, decodes nothing."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgekit.data.files import LAYOUT, Form, Listed, Reading, Tree, printable
from edgekit.data.formats import HEAD_BYTES, HEIF_EXTRA, format_of, reads_heif
from edgekit.data.layout import ClassFolder, Layout, find_layout, no_layout
from edgekit.data.names import SPLITS, are_pieces, plain
from edgekit.data.packed import find_shards, read_packed
from edgekit.data.tables import find_table, read_table
from edgekit.errors import DataError
from edgekit.limits import DATA_CLASSES, PICTURE_FILE_BYTES
from edgekit.records import SkippedFile, SplitName

Progress = Callable[[int, int], None]
# Files that a thread hashes before it asks for more: asking takes as long as hashing a small one.
_AT_ONCE = 32


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
    """What lies in a data folder: class names and pictures in order, and what was left out.

    `words` are sentences about what is not plain from the names of the folders.
    """

    root: Path
    class_names: tuple[str, ...]
    sources: tuple[Source, ...]
    skipped: tuple[SkippedFile, ...]
    words: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 over class names, the files and what is known of each, and what was left out."""
        used = [(s.relative, s.label, s.split, s.sha256) for s in self.sources]
        left_out = [(item.path, item.reason) for item in self.skipped]
        return hashlib.sha256(json.dumps([self.class_names, used, left_out]).encode()).hexdigest()


def scan(root: Path, progress: Progress | None = None, form: Form = Form()) -> Scan:  # noqa: B008
    """Lists every picture below a data folder and hashes its bytes.

    Args:
        root: `DIR/<class>/`, or splits of such folders by the names that people give them
            (`edgekit.data.names`), or pictures with a table of their classes
            (`edgekit.data.tables`), or shards that hold them (`edgekit.data.packed`); one folder
            around all of it is entered.
        progress: Called with (files read, files in all). Defaults to None: nobody is told.
        form: What is said about the folder beside its path. Defaults to nothing.

    Returns:
        The scan, sorted by class name and relative path, so that file-creation order is irrelevant.

    Raises:
        DataError: If the folder is missing, unreadable or without any usable picture, holds one
            class only, a split lacks a class, a folder may be a split or not, a table does not
            say which column is what, or a class folder is unusable (its name, or a symbolic link
            out of the data folder).
    """
    try:
        return _scan(root, progress or _silent, form)
    except OSError as error:
        raise DataError(
            f"{printable(str(error.filename or root))}: {error.strerror}",
            "folders that can be listed",
            "check the rights of the data folder and of everything in it",
        ) from error


def scan_other(root: Path, follow_links: bool = False) -> Scan:
    """Lists every picture below a folder of pictures of no class, and hashes its bytes.

    Args:
        root: The folder; what lies in it how deep has no meaning.
        follow_links: Whether symbolic links that lead out of it are followed. Defaults to False.

    Returns:
        The scan, of one class without a name, sorted by relative path.

    Raises:
        DataError: If there is no such folder, it cannot be listed, or it holds no picture.
    """
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"data.other: {root} {found}", "a folder of pictures of no class", "correct the path"
        )
    found_here, skipped = pictures_below(root, follow_links)
    if not found_here:
        raise DataError(
            f"data.other: no picture in {root}", "pictures of no class", "check the path"
        )
    tree = Tree(root, follow_links)
    listed = [Listed(path, tree.relative(path), "", None) for path in found_here]
    return _hashed(root, Reading(("",), listed, list(skipped), ()), _silent)


def _silent(done: int, total: int) -> None:
    """Tells nobody."""


def _scan(root: Path, progress: Progress, form: Form) -> Scan:
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"data folder {root} {found}", f"a folder laid out as {LAYOUT}", "correct the path"
        )
    _refuse_unknown(root, form.ignore)
    tree = Tree(root, form.follow_links, frozenset(form.ignore))
    if form.table is None:
        reading = _understood(tree, form, progress)
    else:
        reading = read_table(tree, form.table, form)
    names = reading.class_names
    _check_names(root, names)
    if not reading.pictures:
        raise DataError(f"no picture in {root}", f"pictures as {LAYOUT}", "check the path")
    return _hashed(root, reading, progress)


def _hashed(root: Path, reading: Reading, progress: Progress) -> Scan:
    """Returns what was understood with the digests of the files."""
    skipped = list(reading.skipped)
    digests: list[tuple[str, str]] = []
    paths = [picture.path for picture in reading.pictures]
    with ThreadPoolExecutor() as pool:
        some = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
        for each in pool.map(_file_digests, some):
            digests += each
            progress(len(digests), len(paths))
    label_of = {name: label for label, name in enumerate(reading.class_names)}
    sources = []
    for picture, (digest, reason) in zip(reading.pictures, digests, strict=True):
        if reason:
            skipped.append(SkippedFile(path=printable(picture.relative), reason=reason))
        elif picture.sha256 not in (None, digest):
            raise DataError(
                f"{printable(str(picture.path))} is not what edgekit unpacked there",
                "files that nothing changes",
                "delete the folder that it says it unpacked into; it unpacks the shards again",
            )
        else:
            label = label_of[picture.class_name]
            sources.append(Source(picture.path, picture.relative, label, picture.split, digest))
    if not sources:
        raise DataError(
            f"none of the {len(digests)} picture files in {root} is usable; {skipped[-1].path}: "
            f"{skipped[-1].reason}",
            "pictures that can be read",
            "check how the folder was copied",
        )
    return Scan(root, reading.class_names, tuple(sources), tuple(skipped), reading.words)


def _refuse_unknown(root: Path, ignored: Sequence[str]) -> None:
    for name in ignored:
        if not os.path.lexists(root / name):
            raise DataError(
                f"data.ignore {name!r}: nothing of that name is in {root}",
                "paths below the data folder",
                "correct the name, or leave it out",
            )


def _understood(tree: Tree, form: Form, progress: Progress) -> Reading:
    """Returns the pictures by their folders, or where these tell no classes by a table or shards.

    Who names a column speaks of a table or shards, whatever the folders tell; and folders that are
    called as pieces of one store are no classes where a table lies beside them.
    """
    columns = [name for name in (form.path_column, form.label_column, form.split_column) if name]
    layout = None if columns else find_layout(tree)
    if layout is None or are_pieces(layout.class_names):
        held = tree.holds_pictures(tree.root)
        table = find_table(tree) if held else None
        shards = find_shards(tree) if layout is None and table is None else None
        if shards is not None:
            return read_packed(tree, shards, form, progress)
        table = table if held else find_table(tree)
        if table is not None:
            return read_table(tree, table, form)
    if layout is not None:
        return _by_folders(tree, layout)
    if not columns:
        raise no_layout(tree)
    raise DataError(
        f"the column {columns[0]!r} was named, and no table lies in {printable(str(tree.root))}",
        "a .csv, .tsv or .jsonl file with a row for each picture, or shards of pictures",
        "name it: data.table or --table FILE; or leave the column out",
    )


def _by_folders(tree: Tree, layout: Layout) -> Reading:
    _refuse_many(tree.root, len(layout.class_names))
    skipped = list(layout.skipped)
    listed = [
        Listed(path, tree.relative(path), folder.class_name, folder.split)
        for folder in sorted(layout.folders, key=_order)
        for path in tree.pictures(folder.path, skipped)
    ]
    return Reading(layout.class_names, listed, skipped, layout.words)


def _order(folder: ClassFolder) -> tuple[int, str, tuple[str, ...]]:
    split = 0 if folder.split is None else SPLITS.index(folder.split)
    return split, folder.class_name, folder.path.parts


def _refuse_many(root: Path, classes: int) -> None:
    if classes > DATA_CLASSES:
        raise DataError(
            f"{printable(str(root))} holds {classes} classes",
            f"at most {DATA_CLASSES} classes",
            "check the path: each folder in it is taken for a class",
        )


def _check_names(root: Path, names: Sequence[str]) -> None:
    _refuse_many(root, len(names))
    if len(names) == 1:
        raise DataError(
            f"{printable(str(root))} holds one class only: {printable(names[0])!r}",
            "at least two classes",
            "add a folder of pictures of something else",
        )
    for name in names:
        if not name.isprintable() or not name.strip():
            raise DataError(
                f"class {printable(name)!r} contains characters that cannot be printed",
                "names that survive as one line of a labels file",
                "rename it",
            )
    seen: dict[str, str] = {}
    for name in names:
        key = plain(name)
        if key in seen:
            raise DataError(
                f"classes {seen[key]!r} and {name!r} differ only by case or Unicode form "
                f"({seen[key]!a} and {name!a})",
                "names that every file system keeps apart",
                "merge or rename one of them",
            )
        seen[key] = name


def pictures_below(
    folder: Path, follow_links: bool = False
) -> tuple[list[Path], tuple[SkippedFile, ...]]:
    """Returns the pictures in a folder and in those below it, by name, and what was left out.

    Args:
        folder: The folder.
        follow_links: Whether symbolic links that lead out of it are followed. Defaults to False.

    Raises:
        DataError: If a folder cannot be listed, or they lie too deep.
    """
    skipped: list[SkippedFile] = []
    try:
        return list(Tree(folder, follow_links).pictures(folder, skipped)), tuple(skipped)
    except OSError as error:
        raise DataError(
            f"{printable(str(error.filename or folder))}: {error.strerror}",
            "folders that can be listed",
            "check the rights of the folder and of everything in it",
        ) from error


def _file_digests(paths: Sequence[Path]) -> list[tuple[str, str]]:
    return [_file_digest(path) for path in paths]


def _file_digest(path: Path) -> tuple[str, str]:
    """Returns the sha256 of the bytes, and the reason why the file is not read, or ""."""
    try:
        refused = _refused(path)
        if refused:
            return "", refused
        with path.open("rb") as stream:
            if format_of(stream.read(HEAD_BYTES)) == "HEIF" and not reads_heif():
                return "", HEIF_EXTRA
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest(), ""
    except OSError as error:
        return "", f"cannot be read ({error.strerror})"


def content_of(path: Path) -> bytes | str:
    """Returns the bytes of a picture file, or the reason in words why they are not read."""
    try:
        return _refused(path) or path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _refused(path: Path) -> str:
    """Returns why a file is not read, or ""."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        return "not a regular file"
    if state.st_size == 0:
        return "empty file"
    if state.st_size > PICTURE_FILE_BYTES:
        return f"too large: {state.st_size:,} bytes, at most {PICTURE_FILE_BYTES:,}"
    return ""
