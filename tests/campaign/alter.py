"""Ways to spoil bytes and files; all random numbers come from the caller."""

import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

ChangeBytes = Callable[[bytes, Random], bytes]
ChangeFile = Callable[[Path, Random, Path], None]
# Ends of ranges, and what lengths and offsets are compared with.
_NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 65535, 65536, 2**24, 2**30, 2**31 - 1, -(2**31))


def flip(content: bytes, random: Random) -> bytes:
    """Returns the bytes with one bit flipped."""
    return flipped(content, random.randrange(8 * len(content)))


def flipped(content: bytes, bit: int) -> bytes:
    """Returns the bytes with this bit flipped."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _flips(content: bytes, random: Random) -> bytes:
    for _ in range(random.randint(2, 16)):
        content = flip(content, random)
    return content


def _byte(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content))
    return content[:at] + random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) + content[at + 1 :]


def _number(content: bytes, random: Random) -> bytes:
    """Overwrites an aligned 32-bit number, which in flatbuffers are lengths and offsets."""
    at = random.randrange(max(len(content) // 4, 1)) * 4
    number = random.choice((*_NUMBERS, len(content), -len(content)))
    return content[:at] + struct.pack("<i", number)[: len(content) - at] + content[at + 4 :]


def _truncate(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def _part(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(content))
    return start, min(len(content), start + random.choice((1, 4, 16, 64, 1024)))


def _zeros(content: bytes, random: Random) -> bytes:
    start, stop = _part(content, random)
    return content[:start] + bytes(stop - start) + content[stop:]


def _noise(content: bytes, random: Random) -> bytes:
    start, stop = _part(content, random)
    return content[:start] + random.randbytes(stop - start) + content[stop:]


def _remove(content: bytes, random: Random) -> bytes:
    start, stop = _part(content, random)
    return content[:start] + content[stop:]


def _repeat(content: bytes, random: Random) -> bytes:
    start, stop = _part(content, random)
    return content[:stop] + content[start:stop] * random.randint(1, 8) + content[stop:]


def _insert(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.randbytes(random.randint(1, 32)) + content[at:]


def _move(content: bytes, random: Random) -> bytes:
    """Overwrites one part with another, as a bad copy does."""
    start, stop = _part(content, random)
    other = random.randrange(len(content) - (stop - start) + 1)
    return content[:start] + content[other : other + stop - start] + content[stop:]


def _append(content: bytes, random: Random) -> bytes:
    return content + random.randbytes(random.randint(1, 64))


BYTES: Mapping[str, ChangeBytes] = {
    "flip": flip,
    "flips": _flips,
    "byte": _byte,
    "number": _number,
    "truncate": _truncate,
    "zeros": _zeros,
    "noise": _noise,
    "remove": _remove,
    "repeat": _repeat,
    "insert": _insert,
    "move": _move,
    "append": _append,
}


def changed(content: bytes, how: str, random: Random) -> bytes:
    """Returns the bytes changed in one of the ways of `BYTES`; they differ.

    Args:
        content: At least one byte.
        how: The way; where it changes nothing, as zeros among zeros, a bit is flipped.
        random: Where its numbers come from.
    """
    for _ in range(20):
        if (other := BYTES[how](content, random)) != content:
            return other
    return flip(content, random)


def _rewrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _to_directory(path: Path, _random: Random, _outside: Path) -> None:
    path.unlink()
    path.mkdir()


def _to_fifo(path: Path, _random: Random, _outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _moved_outside(path: Path, outside: Path) -> Path:
    outside.mkdir(exist_ok=True)
    return Path(shutil.move(path, outside / path.name))


def _to_link(path: Path, _random: Random, outside: Path) -> None:
    path.symlink_to(_moved_outside(path, outside))


def _to_dangling_link(path: Path, _random: Random, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside / "nothing")


def _to_device(path: Path, _random: Random, _outside: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _extra_file(path: Path, random: Random, _outside: Path) -> None:
    path.with_name(f"extra-{path.name}").write_bytes(random.randbytes(1000))


def _extra_link(path: Path, random: Random, outside: Path) -> None:
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_bytes(random.randbytes(1000))
    path.with_name(f"extra-{path.name}").symlink_to(outside / "secret")


def _extra_fifo(path: Path, _random: Random, _outside: Path) -> None:
    os.mkfifo(path.with_name(f"extra-{path.name}"))


# What may be done to a file; an empty one can only be replaced.
FILES: Mapping[str, ChangeFile] = {
    "flip": lambda path, random, _: _rewrite(path, flip(path.read_bytes(), random)),
    "truncate": lambda path, random, _: _rewrite(path, _truncate(path.read_bytes(), random)),
    "empty": lambda path, _random, _: _rewrite(path, b""),
    "delete": lambda path, _random, _: path.unlink(),
    "noise": lambda path, random, _: _rewrite(path, random.randbytes(path.stat().st_size)),
    "grow": lambda path, random, _: _rewrite(path, _append(path.read_bytes(), random)),
    "directory": _to_directory,
    "fifo": _to_fifo,
    "link": _to_link,
    "dangling link": _to_dangling_link,
    "link to a device": _to_device,
    "extra file": _extra_file,
    "extra link": _extra_link,
    "extra fifo": _extra_fifo,
}
# These need something to change.
_NEED_BYTES = ("flip", "truncate", "empty", "noise")


def ways(path: Path) -> tuple[str, ...]:
    """Returns the ways of `FILES` that make another file of this one."""
    size = path.stat().st_size
    return tuple(how for how in FILES if size or how not in _NEED_BYTES)
