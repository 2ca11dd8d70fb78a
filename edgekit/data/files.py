"""Files and folders below a data folder: what is looked at, where links lead, how it is shown."""

import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from edgekit.data.formats import HEAD_BYTES, format_of, is_named_picture, other_format
from edgekit.errors import DataError
from edgekit.limits import DATA_FOLDERS_DEEP, LINKED_ENTRIES
from edgekit.records import SkippedFile, SplitName

_IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN")
LEADS_OUT = "symbolic link that leads out of the data folder"
TO_FOLLOW = "data.follow_links = true or --follow-links follows it"
# A zip file unpacked into a folder of its name, in a folder of the same name, is two; five is a
# download of a download.
FOLDERS_AROUND = 5
LAYOUT = "DIR/{train,validation,test}/<class>/*.jpg, or DIR/<class>/*.jpg"


@dataclass(frozen=True)
class Form:
    """What is said about the form of a data folder, beside its path.

    Args:
        table: A table of the pictures' classes, below the folder or elsewhere. Defaults to None:
            the folders tell the classes, or a table is looked for where they do not.
        path_column: The column of that table that names the pictures. Defaults to None: found by
            its name and content, as are the next two.
        label_column: The column of the classes.
        split_column: The column of the splits.
        ignore: Paths below the folder that are not looked at. Defaults to none.
        follow_links: Whether symbolic links that lead out of the folder are followed. Defaults to
            False.
    """

    table: Path | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    ignore: tuple[str, ...] = ()
    follow_links: bool = False


# The fields of a recipe's `[data]` that say it.
FORM = tuple(field.name for field in fields(Form))


@dataclass(frozen=True)
class Listed:
    """One file that may be a picture, with its class.

    Args:
        path: Where it lies.
        relative: Its path below the data folder, with forward slashes.
        class_name: Its class.
        split: The split that it is given to, or None if edgekit splits.
        sha256: Digest that its bytes had when edgekit itself wrote the file. Defaults to None: it
            did not.
    """

    path: Path
    relative: str
    class_name: str
    split: SplitName | None
    sha256: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a data folder was understood to hold, before any picture is read.

    Args:
        class_names: In label order.
        pictures: Every file that may be a picture.
        skipped: What was left out, with the reason.
        words: Sentences about the form of the data.
    """

    class_names: tuple[str, ...]
    pictures: list[Listed]
    skipped: list[SkippedFile]
    words: tuple[str, ...]


def printable(text: str) -> str:
    """Returns the text with undecodable bytes and control characters escaped, safe to print."""
    clean = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in clean)


def head_of(path: Path) -> bytes:
    """Returns the first bytes of a file, as many as tell its format; none of what is no file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError:
        return b""


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder or a link to one; a loop of links is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 # unlike Path.is_dir, it does not raise on a loop


@dataclass(frozen=True)
class Tree:
    """A data folder and what is looked at in it.

    Args:
        root: The folder.
        follow_links: Whether symbolic links that lead out of it are followed. Defaults to False.
        ignore: Paths below it that are not looked at. Defaults to none.
    """

    root: Path
    follow_links: bool = False
    ignore: frozenset[str] = frozenset()
    _holding: dict[Path, bool] = field(default_factory=dict, compare=False)
    _content: dict[Path, bool] = field(default_factory=dict, compare=False)

    def relative(self, path: Path) -> str:
        """Returns a path below the data folder with forward slashes, "." for the folder itself."""
        # Path.relative_to takes both apart, which is most of a scan's time.
        text, around = path.as_posix(), f"{self.root.as_posix()}/"
        if text.startswith(around):
            return text[len(around) :]
        return path.relative_to(self.root).as_posix()

    def shown(self, path: Path) -> str:
        """Returns a path below the data folder, safe to print."""
        return printable(self.relative(path))

    def skipped(
        self,
        path: Path,
        reason: str,
        kind: Literal["unusable", "not-a-picture", "ignored"] = "unusable",
    ) -> SkippedFile:
        """Returns the record of something that is left out; see `SkippedFile` for the kinds."""
        return SkippedFile(path=self.shown(path), reason=reason, kind=kind)

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Returns what lies in a folder, by name; an entry knows what it is without asking."""
        with os.scandir(folder) as found:
            entries = [e for e in found if not e.name.startswith(".") and e.name not in _IGNORED]
        if self.ignore:
            entries = [e for e in entries if self.relative(Path(e)) not in self.ignore]
        return sorted(entries, key=lambda entry: entry.name)

    def folders(self, folder: Path) -> list[Path]:
        """Returns the folders in a folder, links to folders included."""
        return [Path(entry) for entry in self.entries(folder) if is_folder(entry)]

    def is_picture(self, path: Path) -> bool:
        """Returns whether a file is taken for a picture: by its content, or as its name says so.

        A damaged picture must be missed, so a name says enough; to be read, content does.
        """
        if is_named_picture(path):
            return True
        if path not in self._content:
            self._content[path] = format_of(head_of(path)) is not None
        return self._content[path]

    def own_pictures(self, folder: Path) -> list[Path]:
        """Returns the pictures that lie in a folder itself."""
        files = [Path(entry) for entry in self.entries(folder) if not is_folder(entry)]
        return [path for path in files if self.is_picture(path)]

    def holding(self, folder: Path) -> list[Path]:
        """Returns the folders in a folder that hold pictures, however deep."""
        return [inner for inner in self.folders(folder) if self.holds_pictures(inner)]

    def holds_pictures(self, folder: Path) -> bool:
        """Returns whether a picture lies below a folder.

        A link that is not followed counts, for what it leads to is refused by its name; so do
        folders too deep to look into.
        """
        if folder not in self._holding:
            self._holding[folder] = self._holds_pictures(folder)
        return self._holding[folder]

    def _holds_pictures(self, folder: Path) -> bool:
        waiting, seen = [(folder, 1)], {os.path.realpath(folder)}
        while waiting:
            here, depth = waiting.pop()
            if self.leads_out(here) or depth > DATA_FOLDERS_DEEP:
                return True
            entries = self.entries(here)
            if any(not is_folder(e) and self.is_picture(Path(e)) for e in entries):
                return True
            for entry in entries:
                if is_folder(entry):
                    if entry.is_symlink():
                        real = os.path.realpath(entry)
                        if real in seen or Path(os.path.realpath(here)).is_relative_to(real):
                            continue
                        seen.add(real)
                    waiting.append((Path(entry), depth + 1))
        return False

    def leads_out(self, path: Path) -> bool:
        """Returns whether a path is a link out of the data folder that is not to be followed."""
        # os.path.realpath, unlike Path.resolve, does not raise on a loop of links. It looks at
        # every folder above, so only links are asked for.
        if self.follow_links or not path.is_symlink():
            return False
        return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root))

    def refuse_link(self, folder: Path) -> None:
        """Refuses a folder of a class or split that is a link out of the data folder.

        Raises:
            DataError: If it is one.
        """
        if self.leads_out(folder):
            raise DataError(
                f"{self.shown(folder)} in {self.root} is a symbolic link that leads out of it",
                "all pictures inside the data folder",
                f"say that links may be followed ({TO_FOLLOW}), copy the folder there, or give the "
                "folder that holds all of them",
            )

    def pictures(self, folder: Path, skipped: list[SkippedFile]) -> Iterator[Path]:
        """Yields the pictures below a folder in order, a folder in the place of its name.

        A link to a folder is followed unless it leads out, to a folder above it, or to one whose
        pictures were listed already.

        Args:
            folder: Where to begin.
            skipped: Receives what is left out.

        Raises:
            DataError: If folders lie in folders beyond all use.
        """
        links = list(self._walk(folder, skipped, seen := {os.path.realpath(folder)}))
        files = [path for path in links if not _is_folder(path)]
        for link in links:
            if _is_folder(link):
                files += self._behind(link, skipped, seen)
        yield from sorted(files, key=lambda path: path.parts)

    def _behind(self, link: Path, skipped: list[SkippedFile], seen: set[str]) -> Iterator[Path]:
        """Yields the pictures behind a link to a folder, and behind those that it holds."""
        waiting = [link]
        while waiting:
            here = waiting.pop()
            real = os.path.realpath(here)
            if Path(os.path.realpath(here.parent)).is_relative_to(real):
                skipped.append(self.skipped(here, "symbolic link to a folder that holds it"))
            elif real in seen:
                skipped.append(
                    self.skipped(here, "symbolic link to a folder that was read already", "ignored")
                )
            else:
                seen.add(real)
                for path in self._walk(here, skipped, seen):
                    if _is_folder(path):
                        waiting.append(path)
                    else:
                        yield path

    def _walk(self, folder: Path, skipped: list[SkippedFile], seen: set[str]) -> Iterator[Path]:
        """Yields the pictures below a folder, and the links to folders that are not followed yet.

        Args:
            folder: Where to begin; may be a link itself.
            skipped: Receives what is left out.
            seen: The real paths of folders that were read; those read now are added.
        """
        real = os.path.realpath(folder)
        waiting = [(entry, 1) for entry in reversed(self.entries(folder))]
        while waiting:
            entry, depth = waiting.pop()
            path = Path(entry)
            if entry.is_dir(follow_symlinks=False):
                inside = os.path.join(real, path.relative_to(folder))  # noqa: PTH118 - no link
                if inside in seen:
                    continue
                seen.add(inside)
                self._refuse_depth(folder, depth)
                waiting += [(inner, depth + 1) for inner in reversed(self.entries(path))]
            elif entry.is_symlink() and self.leads_out(path):
                skipped += self._passed_over(path)
            elif is_folder(entry) or self.is_picture(path):
                yield path
            else:
                skipped.append(self._no_picture(path))

    def _passed_over(self, link: Path) -> list[SkippedFile]:
        """Returns what is missed behind a link that leads out: each picture, by its name."""
        reason = f"{LEADS_OUT}; {TO_FOLLOW}"
        if not _is_folder(link):
            real = Path(os.path.realpath(link))
            is_other = real.exists() and not is_named_picture(link) and not is_named_picture(real)
            return [self.skipped(link, reason, "not-a-picture" if is_other else "unusable")]
        walk = os.walk(link)
        names = (Path(here) / name for here, inner, names in walk for name in (*inner, *names))
        every = list(itertools.islice(names, LINKED_ENTRIES))
        missed = sorted(path for path in every if is_named_picture(path))
        return [self.skipped(path, reason) for path in missed] or [self.skipped(link, reason)]

    def _no_picture(self, path: Path) -> SkippedFile:
        """Returns the record of a file that is no picture, or none that edgekit reads."""
        if path.is_symlink() and not os.path.exists(path):  # noqa: PTH110 - as in `_is_folder`
            return self.skipped(path, "symbolic link to nothing")
        other = other_format(path, head_of(path))
        if other is None:
            return self.skipped(path, "not a picture", "not-a-picture")
        reason = f"{other} file, which edgekit does not read: convert it to JPEG or PNG"
        return self.skipped(path, reason)

    def _refuse_depth(self, folder: Path, depth: int) -> None:
        if depth > DATA_FOLDERS_DEEP:
            raise DataError(
                f"{self.shown(folder)} in {printable(str(self.root))} holds folders more than "
                f"{DATA_FOLDERS_DEEP} deep",
                f"pictures as {LAYOUT}, in at most {DATA_FOLDERS_DEEP} folders below that",
                "check how the folder was copied; one that holds itself was copied into itself",
            )
