"""Bundles as zip files and folders: written to the byte the same, read as untrusted.

Package layer. What is refused is refused as a whole: nothing is renamed, skipped or repaired, since
another program would repair it differently and then see another bundle than the one checked here.
"""

import os
import re
import stat
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from edgekit import limits
from edgekit.errors import IntegrityError
from edgekit.runtimes.base import printable

# The records of a zip file. Source: APPNOTE.TXT 6.3.10, 4.3.7, 4.3.12 and 4.3.16.
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCAL_MAGIC, _ENTRY_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
# Version 2.0, and where files have modes: Unix.
_VERSION, _UNIX = 20, 3 << 8
# 1980-01-01, the earliest day that a zip file can hold.
_DAY = 0x21
_UTF8_FLAG = 0x800
_MODE = (stat.S_IFREG | 0o644) << 16
# What each number of a directory entry says, for messages.
_ENTRY_FIELDS = (
    "signature", "version of its writer", "version needed", "flags", "compression method",
    "time", "day", "checksum", "compressed size", "size", "length of name",
    "length of extra data", "length of comment", "disk", "internal attributes",
    "attributes", "place",
)  # fmt: skip
# Source: https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_RESERVED = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])[ ]*(?:\..*)?", re.I
)
_FORBIDDEN = '<>"|?*'
_MAKE_AGAIN = "get the bundle again from where it was made"
_ANOTHER_FORM = (
    "get the zip file that edgekit package wrote; if another program packed the folder anew, "
    "unpack it and verify the folder"
)


class _Entry(NamedTuple):
    """One file of a zip file: its name, checksum and size, and where its local header begins."""

    name: str
    checksum: int
    size: int
    place: int

    @property
    def flags(self) -> int:
        return 0 if self.name.isascii() else _UTF8_FLAG

    def local(self) -> bytes:
        """Returns the header in front of its content."""
        name = self.name.encode()
        form = (_LOCAL_MAGIC, _VERSION, self.flags, 0, 0, _DAY)
        return _LOCAL.pack(*form, self.checksum, self.size, self.size, len(name), 0) + name

    def listed(self) -> bytes:
        """Returns its entry in the directory."""
        name = self.name.encode()
        form = (_ENTRY_MAGIC, _UNIX | _VERSION, _VERSION, self.flags, 0, 0, _DAY)
        sizes = (self.checksum, self.size, self.size, len(name), 0, 0)
        return _ENTRY.pack(*form, *sizes, 0, 0, _MODE, self.place) + name


def write_zip(files: Mapping[str, bytes]) -> bytes:
    """Returns a zip file that depends on nothing but the names and the bytes of the files.

    Files are sorted by name, dated 1980-01-01 and readable by everybody (mode 0644). They are
    stored, not compressed: what deflate makes of the same bytes differs between zlib, its forks and
    their versions, and a model and its pictures hardly shrink.

    Args:
        files: Content by path below the bundle, with forward slashes.

    Raises:
        IntegrityError: If `read_zip` would refuse it.
    """
    check_paths(files, "the bundle")
    _check_total("the bundle", sum(map(len, files.values())))
    content, directory = bytearray(), bytearray()
    for name in sorted(files):
        data = files[name]
        entry = _Entry(name, zlib.crc32(data), len(data), len(content))
        content += entry.local() + data
        directory += entry.listed()
    return bytes(content + directory) + _end(len(files), len(directory), len(content))


def read_zip(path: Path) -> dict[str, bytes]:
    """Returns the files of a zip file that may be hostile, by path.

    Nothing is written anywhere. Every byte is accounted for: the file must be in the one form that
    `write_zip` makes, so that no unpacker finds another file in it, or the same with other content.

    Args:
        path: The zip file, at most 512 MiB.

    Raises:
        IntegrityError: If it is damaged or in another form: compressed, encrypted, with more than
            plain files, with anything before, between or behind the files, with two accounts of a
            file that differ; if it holds a name that some file system would take for another place
            or another file; or more than 4096 files or 512 MiB.
    """
    where = printable(str(path))
    content = _content(path, where)
    files: dict[str, bytes] = {}
    last, end = "", 0
    for entry in _directory(content, where):
        said = f"{where}: {printable(entry.name)}"
        check_path(entry.name, where)
        if entry.name.endswith("/"):
            _refuse(f"{said} is a folder", "plain files, whose paths name their folders")
        if entry.name in files:
            _refuse(f"{said} is in it twice", "every file once")
        if entry.name < last:
            _refuse(f"{said} is listed behind {printable(last)}", "files sorted by name")
        if entry.place != end:
            how = "overlaps another file" if entry.place < end else "has hidden bytes before it"
            _refuse(f"{said} {how}", "files that touch one another", _ANOTHER_FORM)
        header = entry.local()
        start, last = end + len(header), entry.name
        end = start + entry.size
        if content[entry.place : start] != header:
            _refuse(
                f"{said}: the header in front of it is not what the directory says",
                "one account of every file",
                _ANOTHER_FORM,
            )
        data = content[start:end]
        if len(data) != entry.size or zlib.crc32(data) != entry.checksum:
            _refuse(f"{said} is damaged: its checksum is another", "a complete zip file")
        files[entry.name] = data
    check_paths(files, where)
    if end != _END.unpack(content[-_END.size :])[6]:
        _refuse(f"{where}: hidden bytes behind the last file", "nothing but files", _ANOTHER_FORM)
    return files


def write_folder(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes the files of a bundle into a folder, which is made where it does not exist.

    Args:
        files: Content by path below the folder, with forward slashes, as `check_paths` allows.
        folder: Where they go. What is there under other names stays.
    """
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def read_folder(path: Path) -> dict[str, bytes]:
    """Returns the files of a folder that may be hostile, by path below it.

    Args:
        path: The folder. It may itself be a link; nothing in it may.

    Raises:
        IntegrityError: If there is no such folder, something in it cannot be read, is neither a
            plain file nor a folder, has a name that `read_zip` would refuse, or it holds more than
            4096 files or 512 MiB.
    """
    where = printable(str(path))
    folders: list[str] = []
    files: dict[str, bytes] = {}
    total = 0
    try:
        top = str(path.resolve(strict=True))
        if not path.is_dir():
            _refuse(f"{where}: not a folder", "the folder of a bundle")
        for folder, below, found, handle in os.fwalk(top, onerror=_raise):
            relative = "" if folder == top else f"{os.path.relpath(folder, top)}/"
            for name in (*below, *found):
                check_path(relative + name, where)
            for name in below:
                _check_plain(os.lstat(name, dir_fd=handle), relative + name, where, folder=True)
                folders.append(f"{relative}{name}/")
            _check_count(where, len(folders) + len(files) + len(found))
            for name in sorted(found):
                content = _plain_file(relative + name, handle, where, limits.BUNDLE_BYTES - total)
                files[relative + name] = content
                total += len(content)
    except OSError as error:
        at = printable(str(error.filename or path))
        _refuse(f"{at}: {error.strerror or error}", "a folder whose files can be read")
    check_paths((*folders, *files), where)
    return dict(sorted(files.items()))


def check_paths(names: Iterable[str], where: str) -> None:
    """Refuses paths that some file system or program would take for another place or file.

    Args:
        names: Paths below a bundle, with forward slashes; folders end in one.
        where: What holds them, for messages.

    Raises:
        IntegrityError: If one is absolute, leaves its folder, is not portable, or two meet.
    """
    files: set[str] = set()
    folders: dict[str, str] = {}
    plain: dict[str, str] = {}
    for count, name in enumerate(names, 1):
        _check_count(where, count)
        check_path(name, where)
        path = name.rstrip("/")
        if not name.endswith("/"):
            if path in files:
                _refuse(f"{where}: {printable(path)} is in it twice", "every file once")
            files.add(path)
            _refuse_twin(plain, path, where)
        parts = path.split("/")
        for depth in range(1, len(parts) + name.endswith("/")):
            _refuse_twin(folders, "/".join(parts[:depth]), where)
    for folded in plain.keys() & folders.keys():
        _refuse(
            f"{where}: {printable(plain[folded])} is a file and a folder",
            "every path once, on file systems that ignore case too",
        )


def check_path(name: str, where: str) -> None:
    """Refuses one path; see `check_paths`.

    Raises:
        IntegrityError: If it is absolute, leaves its folder or is not portable.
    """
    said = f"{where}: the path '{printable(name)}'"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        _refuse(f"{said} is not UTF-8", "names in UTF-8")
    if len(encoded) > limits.PATH_BYTES:
        _refuse(f"{said} has {len(encoded)} bytes", f"at most {limits.PATH_BYTES} bytes")
    if "\0" in name:
        _refuse(f"{said} holds a zero byte, where some programs end it", "a name without it")
    if "\\" in name:
        _refuse(f"{said} holds a backslash, which Windows takes for a slash", "forward slashes")
    if name.startswith("/"):
        _refuse(f"{said} is absolute", "a path below the bundle")
    if re.match(r"[A-Za-z]:", name):
        _refuse(f"{said} starts with a drive", "a path below the bundle")
    if unicodedata.normalize("NFC", name) != name:
        _refuse(
            f"{said} is not in Unicode's composed form (NFC), so some file systems rename it",
            "names in NFC",
        )
    parts = name.removesuffix("/").split("/")
    if len(parts) > limits.BUNDLE_FOLDERS_DEEP:
        _refuse(f"{said} is {len(parts)} folders deep", f"at most {limits.BUNDLE_FOLDERS_DEEP}")
    for part in parts:
        _check_part(part, said)


def _check_part(part: str, said: str) -> None:
    """Refuses one part of a path."""
    if part == "..":
        _refuse(f"{said} leaves its folder", "a path below the bundle, without '..'")
    if part in ("", "."):
        _refuse(f"{said} has an empty part or a '.'", "one way of writing a path")
    if len(part.encode()) > limits.PATH_PART_BYTES:
        _refuse(
            f"{said} has a part of {len(part.encode())} bytes",
            f"at most {limits.PATH_PART_BYTES}",
        )
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in part):
        _refuse(f"{said} holds a control character", "names without control characters")
    if ":" in part:
        _refuse(f"{said} holds a colon, which Windows takes for a stream", "names without colons")
    if any(character in _FORBIDDEN for character in part):
        _refuse(f"{said} holds one of {_FORBIDDEN}", "names that Windows can store")
    if part[-1] in ". ":
        _refuse(f"{said} ends in a dot or a space, which Windows drops", "names without that")
    if _RESERVED.fullmatch(part):
        _refuse(f"{said} is a device on Windows", "names that are files everywhere")


def _refuse_twin(seen: dict[str, str], path: str, where: str) -> None:
    """Refuses a path that differs from another only in ways that some file systems ignore."""
    folded = unicodedata.normalize("NFC", path.casefold())
    if seen.setdefault(folded, path) != path:
        _refuse(
            f"{where}: {printable(seen[folded])} and {printable(path)} are one on file systems "
            "that ignore case",
            "names that differ in more than case",
        )


def _content(path: Path, where: str) -> bytes:
    """Returns the bytes of a file, read once, so that what is checked is what is used."""
    try:
        with _opened(path) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                _refuse(f"{where}: not a plain file", "a zip file")
            _check_total(where, status.st_size)
            content = stream.read(limits.BUNDLE_BYTES + 1)
    except OSError as error:
        _refuse(f"{where}: {error.strerror or error}", "a zip file that can be read")
    _check_total(where, len(content))
    return content


def _end(count: int, size: int, place: int) -> bytes:
    """Returns the record that ends a zip file of so many files, with its directory there."""
    return _END.pack(_END_MAGIC, 0, 0, count, count, size, place, 0)


def _directory(content: bytes, where: str) -> Iterable[_Entry]:
    """Yields the entries of the directory; every byte of it and of the end record is held."""
    if not content.startswith((_LOCAL_MAGIC, _END_MAGIC)):
        _refuse(f"{where}: does not start as a zip file", "a zip file, with nothing before it")
    if len(content) < _END.size or content[-_END.size :][:4] != _END_MAGIC:
        _refuse(
            f"{where}: truncated, or something follows the end", "a zip file, with nothing behind"
        )
    before = len(content) - _END.size
    _, _, _, _, count, size, at, _ = _END.unpack(content[before:])
    _check_count(where, count)
    if at + size != before or content[before:] != _end(count, size, at):
        _refuse(
            f"{where}: its directory is not where it says, or its end says more",
            "a complete zip file, without a comment, ZIP64 or further disks",
            _ANOTHER_FORM,
        )
    for number in range(1, count + 1):
        if at + _ENTRY.size > before or content[at : at + 4] != _ENTRY_MAGIC:
            _refuse(f"{where}: its directory ends before entry {number}", "a complete zip file")
        fields = _ENTRY.unpack_from(content, at)
        name = content[at + _ENTRY.size : at + _ENTRY.size + fields[10]]
        try:
            entry = _Entry(name.decode(), fields[7], fields[9], fields[16])
        except UnicodeDecodeError:
            said = printable(name.decode("utf-8", "replace"))
            _refuse(f"{where}: the path '{said}' is not UTF-8", "names in UTF-8")
        wanted = entry.listed()
        if content[at : at + len(wanted)] != wanted:
            _refuse_entry(fields, _ENTRY.unpack_from(wanted), f"{where}: {printable(entry.name)}")
        at += len(wanted)
        yield entry
    if at != before:
        _refuse(f"{where}: hidden bytes in its directory", f"{count} entries", _ANOTHER_FORM)


def _refuse_entry(
    found: tuple[int | bytes, ...], wanted: tuple[int | bytes, ...], said: str
) -> NoReturn:
    """Refuses a directory entry and says which of its numbers is not as `write_zip` writes it."""
    for name, one, other in zip(_ENTRY_FIELDS, found, wanted, strict=True):
        if one != other:
            _refuse(
                f"{said}: the directory gives {one!r} for its {name}",
                f"{other!r}, as edgekit package writes it: plain files, stored, with one size",
                _ANOTHER_FORM,
            )
    _refuse(f"{said}: its name is cut short", "a complete zip file")


def _check_count(where: str, count: int) -> None:
    if count > limits.BUNDLE_FILES:
        _refuse(f"{where}: {count} files and folders or more", f"at most {limits.BUNDLE_FILES}")


def _check_total(where: str, size: int) -> None:
    if size > limits.BUNDLE_BYTES:
        _refuse(f"{where}: {size} bytes", f"at most {limits.BUNDLE_BYTES} bytes")


def _check_plain(status: os.stat_result, name: str, where: str, *, folder: bool = False) -> None:
    """Refuses what is neither a plain file nor, where that is expected, a folder."""
    said = f"{where}: {printable(name)}"
    if stat.S_ISLNK(status.st_mode):
        _refuse(f"{said} is a symbolic link", "plain files")
    if stat.S_IFMT(status.st_mode) != (stat.S_IFDIR if folder else stat.S_IFREG):
        _refuse(f"{said} is a special file", "plain files")


def _plain_file(name: str, folder: int, where: str, limit: int) -> bytes:
    """Returns the content of a file in an open folder."""
    base = name.rpartition("/")[2]
    _check_plain(os.lstat(base, dir_fd=folder), name, where)
    with _opened(Path(base), os.O_NOFOLLOW, folder) as stream:  # it may be a link by now
        _check_plain(os.fstat(stream.fileno()), name, where)
        content = stream.read(limit + 1)
    if len(content) > limit:
        _refuse(
            f"{where}: more than {limits.BUNDLE_BYTES} bytes",
            f"at most {limits.BUNDLE_BYTES} bytes",
        )
    return content


def _opened(path: Path, flags: int = 0, folder: int | None = None) -> IO[bytes]:
    """Opens a file without waiting for the other end of a pipe."""
    return open(
        path,
        "rb",
        opener=lambda name, own: os.open(name, own | flags | os.O_NONBLOCK, dir_fd=folder),
    )


def _raise(error: OSError) -> NoReturn:
    raise error


def _refuse(received: str, expected: str, remedy: str = _MAKE_AGAIN) -> NoReturn:
    raise IntegrityError(received, expected, remedy)
