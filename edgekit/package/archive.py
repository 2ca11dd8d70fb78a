"""Bundles as zip files and folders: written to the byte the same, read as untrusted.

Package layer. What is refused is refused as a whole: nothing is renamed, skipped or repaired, since
another program would repair it differently and then see another bundle than the one checked here.
"""

import io
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, NoReturn

from edgekit.errors import IntegrityError
from edgekit.runtimes.base import printable

MAX_FILES = 4096
MAX_TOTAL_BYTES = 512 * 1024**2
MAX_RATIO = 200
MAX_DEPTH = 16
MAX_PART_BYTES = 255
MAX_PATH_BYTES = 1024

# The earliest time that a zip file can hold.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_UTF8_FLAG = 0x800
# Traditional encryption, strong encryption, encrypted directory. Source: APPNOTE.TXT 6.3.10, 4.4.4.
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_END = struct.Struct("<4s4H2LH")  # end of central directory, without a comment
_END_MAGIC, _WIDE_MAGIC, _FIRST_MAGIC = b"PK\x05\x06", b"PK\x06\x07", b"PK\x03\x04"
_WIDE_BYTES = 20
_LOCAL_BYTES = 30
# Source: https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_RESERVED = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])[ ]*(?:\..*)?", re.I
)
_FORBIDDEN = '<>"|?*'
# What zipfile and zlib raise on damaged files.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    ValueError,
    OverflowError,
)
_MAKE_AGAIN = "get the bundle again from where it was made"


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
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = _UNIX
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, files[name])
    return stream.getvalue()


def read_zip(path: Path) -> dict[str, bytes]:
    """Returns the files of a zip file that may be hostile, by path.

    Nothing is written anywhere. Folder entries are checked like files and left out.

    Args:
        path: The zip file, at most 512 MiB.

    Raises:
        IntegrityError: If it is damaged, is not a plain zip file, holds a name that some file
            system would take for another place or another file, holds anything but plain files, is
            encrypted, or would take more than 4096 files, 512 MiB or 200 times its own size.
    """
    where = printable(str(path))
    content = _content(path, where)
    _check_frame(content, where)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            for entry in entries:
                _check_entry(entry, where)
            _check_layout(entries, where)
            check_paths((entry.filename for entry in entries), where)
            return {entry.filename: archive.read(entry) for entry in entries if not entry.is_dir()}
    except _DAMAGE as error:
        _refuse(
            f"{where}: damaged ({printable(str(error)) or error.__class__.__name__})",
            "a complete zip file",
        )


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
                content = _plain_file(relative + name, handle, where, MAX_TOTAL_BYTES - total)
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
    if len(encoded) > MAX_PATH_BYTES:
        _refuse(f"{said} has {len(encoded)} bytes", f"at most {MAX_PATH_BYTES} bytes")
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
    if len(parts) > MAX_DEPTH:
        _refuse(f"{said} is {len(parts)} folders deep", f"at most {MAX_DEPTH}")
    for part in parts:
        _check_part(part, said)


def _check_part(part: str, said: str) -> None:
    """Refuses one part of a path."""
    if part == "..":
        _refuse(f"{said} leaves its folder", "a path below the bundle, without '..'")
    if part in ("", "."):
        _refuse(f"{said} has an empty part or a '.'", "one way of writing a path")
    if len(part.encode()) > MAX_PART_BYTES:
        _refuse(f"{said} has a part of {len(part.encode())} bytes", f"at most {MAX_PART_BYTES}")
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
            content = stream.read(MAX_TOTAL_BYTES + 1)
    except OSError as error:
        _refuse(f"{where}: {error.strerror or error}", "a zip file that can be read")
    _check_total(where, len(content))
    return content


def _check_frame(content: bytes, where: str) -> None:
    """Refuses what programs read differently: text before or behind the files, wide sizes."""
    if not content.startswith((_FIRST_MAGIC, _END_MAGIC)):
        _refuse(f"{where}: does not start as a zip file", "a zip file, with nothing before it")
    if len(content) < _END.size or content[-_END.size :][:4] != _END_MAGIC:
        _refuse(
            f"{where}: truncated, or something follows the end", "a zip file, with nothing behind"
        )
    before = content[: -_END.size]
    if before[-_WIDE_BYTES:][:4] == _WIDE_MAGIC:
        _refuse(f"{where}: uses ZIP64", f"a plain zip file of at most {MAX_TOTAL_BYTES} bytes")
    _, _, _, _, count, size, start, _ = _END.unpack(content[-_END.size :])
    if start + size != len(before):
        _refuse(f"{where}: its directory is not where it says", "a complete zip file")
    # Checked before zipfile makes an object of each.
    _check_count(where, max(count, before.count(b"PK\x01\x02", start)))


def _check_entry(entry: zipfile.ZipInfo, where: str) -> None:
    """Refuses one entry for what the directory of the archive says about it."""
    # zipfile cuts a name at a zero byte, so the path is checked as it stands in the file.
    check_path(entry.orig_filename, where)
    said = f"{where}: {printable(entry.orig_filename)}"
    if not entry.orig_filename.isascii() and not entry.flag_bits & _UTF8_FLAG:
        _refuse(f"{said} is a name in an unknown encoding", "names marked as UTF-8")
    if entry.flag_bits & _ENCRYPTED_FLAGS:
        _refuse(f"{said} is encrypted", "files without a password")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        _refuse(f"{said} is a symbolic link", "plain files")
    if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
        _refuse(f"{said} is a special file", "plain files")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        _refuse(f"{said} is compressed by method {entry.compress_type}", "stored or deflated files")
    stored = entry.compress_type == zipfile.ZIP_STORED
    if (stored or entry.is_dir()) and entry.file_size != entry.compress_size:
        _refuse(f"{said} has two sizes", "a stored file with one size")
    if entry.is_dir() and entry.file_size:
        _refuse(f"{said} is a folder with content", "folders without content")
    if entry.file_size > MAX_RATIO * entry.compress_size:
        _refuse(
            f"{said}: {entry.compress_size} bytes become {entry.file_size}",
            f"at most {MAX_RATIO} times as many bytes",
        )


def _check_layout(entries: list[zipfile.ZipInfo], where: str) -> None:
    """Refuses entries that share bytes, so that a small file becomes a large one."""
    _check_total(where, sum(entry.file_size for entry in entries))
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            _refuse(f"{where}: {printable(entry.filename)} overlaps another file", "separate files")
        end = entry.header_offset + _LOCAL_BYTES + len(entry.filename.encode())
        end += entry.compress_size


def _check_count(where: str, count: int) -> None:
    if count > MAX_FILES:
        _refuse(f"{where}: {count} files and folders or more", f"at most {MAX_FILES}")


def _check_total(where: str, size: int) -> None:
    if size > MAX_TOTAL_BYTES:
        _refuse(f"{where}: {size} bytes", f"at most {MAX_TOTAL_BYTES} bytes")


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
        _refuse(f"{where}: more than {MAX_TOTAL_BYTES} bytes", f"at most {MAX_TOTAL_BYTES} bytes")
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


def _refuse(received: str, expected: str) -> NoReturn:
    raise IntegrityError(received, expected, _MAKE_AGAIN)
