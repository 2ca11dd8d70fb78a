"""Bundles altered as zip files, as folders, and with a manifest written anew behind the alteration.

`edgekit verify` must refuse each, unless two readers that share nothing with it find the very files
of the unaltered bundle: Python's zipfile, which believes the archive's directory, and one here that
reads from the front, as programs do that unpack a stream.
"""

import hashlib
import io
import json
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from crafted_bundles import ALTERATIONS, Alteration

from campaign.alter import BYTES, FILES, changed, flip, ways
from campaign.attack import Attack, Outcome, trouble
from campaign.base import TARGETS, Base

ZIP, FOLDER, SEALED = "bundles, zip", "bundles, folder", "bundles, sealed anew"
CRAFTED = "bundles, crafted"
RANDOM_PER_TARGET = 120
_FILES_PER_WAY = 10
_MANIFEST = "manifest.json"
Files = dict[str, bytes]
Entry = tuple[zipfile.ZipInfo, bytes]
_DIRECTORY, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
# What differs between two zip files of the same content: sizes and digests are in both headers.
_LOCAL_FIELDS = {"flags": 6, "method": 8, "crc": 14, "packed size": 18, "size": 22, "name": 30}
_DIRECTORY_FIELDS = {
    "system": 5,
    "flags": 8,
    "method": 10,
    "crc": 16,
    "packed size": 20,
    "size": 24,
    "disk": 34,
    "attributes": 38,
    "offset": 42,
    "name": 46,
}
_END_FIELDS = {"disk": 4, "directory's disk": 6, "files here": 8, "files": 10, "size": 12,
               "offset": 16, "comment": 20}  # fmt: skip
_HOSTILE = ("../out.txt", "/etc/passwd", "C:/x", "a\\b", "con", "model.tflite ", "MODEL.TFLITE",
            "a/../b", "./a", "a//b", "x\u202e.txt", "e\u0301", "a\nb", "." * 300)  # fmt: skip


def attacks(base: Base) -> Iterator[Attack]:
    """Yields the attacks on the bundles of a finished run.

    Args:
        base: The run.
    """
    for target in TARGETS:
        archive = base.bundle(target)
        for number in range(RANDOM_PER_TARGET):
            how = tuple(BYTES)[number % len(BYTES)]
            yield Attack(ZIP, f"{target}: {how} {number:03d}", _spoilt(base, archive, how))
        for field in _LOCAL_FIELDS:
            yield Attack(ZIP, f"{target}: front header, {field}", _header(base, archive, field, 0))
        for field in _DIRECTORY_FIELDS:
            yield Attack(ZIP, f"{target}: directory, {field}", _header(base, archive, field, 1))
        for field in _END_FIELDS:
            yield Attack(ZIP, f"{target}: end, {field}", _header(base, archive, field, 2))
        for name, change in ENTRIES.items():
            yield Attack(ZIP, f"{target}: {name}", _entries(base, archive, change))
        yield from _folder_attacks(base, target)
        for name, reseal in SEALED_CHANGES.items():
            yield Attack(SEALED, f"{target}: {name}", _sealed(base, archive, reseal))
    for name, alteration in ALTERATIONS:
        # They are made for a bundle of this kind.
        yield Attack(CRAFTED, name, _crafted(base, base.bundle("host-litert"), alteration))
    for name in _HOSTILE:
        yield Attack(ZIP, f"name {name[:20]!a}", _entries(base, archive, _named(name)))


def _folder_attacks(base: Base, target: str) -> Iterator[Attack]:
    folder = base.bundle(target).with_suffix("")
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    # Every file of a bundle would be thousands of attacks; a spread of them is taken for each way.
    for offset, how in enumerate(FILES):
        step = max(len(paths) // _FILES_PER_WAY, 1)
        for path in paths[offset % step :: step]:
            if how in ways(folder / path):
                name = f"{target}: {path.as_posix()}: {how}"
                yield Attack(FOLDER, name, _in_folder(base, folder, path, how))


# ---- what verify says


def _verified(base: Base, place: Path, bundle: Path, same: Callable[[], bool]) -> Outcome:
    """Returns what `edgekit verify` makes of a bundle; `same` proves that nothing has changed."""
    ran = base.call(place, "verify", str(bundle))
    told = trouble(ran, (0,))
    if told is not None:
        return told
    if same():
        return Outcome("harmless", "holds the very files of the unaltered bundle", (ran,))
    return Outcome("accepted", ran.stdout.strip()[:200], (ran,))


def _spoilt(base: Base, archive: Path, how: str) -> Callable[[Path, Random], Outcome]:
    def attack(place: Path, random: Random) -> Outcome:
        return zip_outcome(base, place, archive, changed(archive.read_bytes(), how, random))

    return attack


def zip_outcome(base: Base, place: Path, archive: Path, content: bytes) -> Outcome:
    """Returns what came of verifying a zip file.

    Args:
        base: How edgekit is started.
        place: Folder of the attack.
        archive: The unaltered bundle.
        content: The zip file.
    """
    bundle = place / archive.name
    bundle.write_bytes(content)
    return _verified(base, place, bundle, lambda: same_files(content, archive.read_bytes()))


def same_files(content: bytes, unaltered: bytes) -> bool:
    """Returns whether both readers find the unaltered bundle's files, and nothing but plain ones.

    Args:
        content: A zip file.
        unaltered: The unaltered one.
    """
    wanted = read_by_directory(unaltered)
    try:
        return read_by_directory(content) == wanted == read_from_front(content)
    except (ValueError, zipfile.BadZipFile, zlib.error, struct.error, OSError, RuntimeError,
            NotImplementedError, EOFError):  # fmt: skip
        return False


def read_by_directory(content: bytes) -> Files:
    """Returns the files of a zip file as its directory lists them.

    Raises:
        ValueError: If one is listed twice or is no plain file.
        BadZipFile: If it is damaged.
    """
    files: Files = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            if entry.filename in files or stat.S_IFMT(entry.external_attr >> 16) != stat.S_IFREG:
                raise ValueError(entry.filename)
            files[entry.filename] = archive.read(entry)
    return files


def read_from_front(content: bytes) -> Files:
    """Returns the files of a zip file as a program finds them that reads a stream.

    Raises:
        ValueError: If a header is one that such a program cannot follow, a file is there twice, or
            its digest is another one than its header says.
    """
    files: Files = {}
    at = 0
    while content[at : at + 4] == _LOCAL:
        head = _LOCAL_HEADER.unpack_from(content, at)
        _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = head
        start = at + _LOCAL_HEADER.size + name_bytes + extra_bytes
        name = content[at + _LOCAL_HEADER.size :][:name_bytes].decode()
        data = content[start : start + packed]
        if flags & ~0x800 or method or packed != size or zlib.crc32(data) != crc or name in files:
            raise ValueError(name)
        files[name] = data
        at = start + packed
    if content[at : at + 4] != _DIRECTORY:
        raise ValueError("something else stands between the files and the directory")
    return files


def _crafted(
    base: Base, archive: Path, alteration: Alteration
) -> Callable[[Path, Random], Outcome]:
    """Nothing proves these harmless: whatever they hold, they are not as edgekit writes them."""

    def attack(place: Path, random: Random) -> Outcome:
        bundle = place / archive.name
        bundle.write_bytes(alteration(archive.read_bytes()))
        return _verified(base, place, bundle, lambda: False)

    return attack


# ---- zip files


def _header(base: Base, archive: Path, field: str, which: int) -> Callable[[Path, Random], Outcome]:
    """Flips a bit of a header's field: of a file's, of the directory's, or of the end."""

    def attack(place: Path, random: Random) -> Outcome:
        content = bytearray(archive.read_bytes())
        with zipfile.ZipFile(io.BytesIO(content)) as read:
            entries, directory = read.infolist(), read.start_dir
        end = len(content) - 22
        chosen = random.randrange(len(entries))
        starts = [directory]
        while len(starts) <= chosen:
            starts.append(content.find(_DIRECTORY, starts[-1] + 4))
        start = (entries[chosen].header_offset, starts[chosen], end)[which]
        fields = (_LOCAL_FIELDS, _DIRECTORY_FIELDS, _END_FIELDS)[which]
        content[start + fields[field]] ^= 1 << random.randrange(8)
        return zip_outcome(base, place, archive, bytes(content))

    return attack


def _entries(
    base: Base, archive: Path, change: Callable[[list[Entry], Random], list[Entry]]
) -> Callable[[Path, Random], Outcome]:
    def attack(place: Path, random: Random) -> Outcome:
        with zipfile.ZipFile(archive) as read:
            entries = [(entry, read.read(entry)) for entry in read.infolist()]
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as write:
            for entry, content in change(entries, random):
                write.writestr(entry, content)
        return zip_outcome(base, place, archive, stream.getvalue())

    return attack


def _entry(name: str, like: zipfile.ZipInfo) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, like.date_time)
    entry.create_system, entry.external_attr = like.create_system, like.external_attr
    return entry


def _without_one(entries: list[Entry], random: Random) -> list[Entry]:
    left_out = random.randrange(len(entries))
    return entries[:left_out] + entries[left_out + 1 :]


def _one_twice(entries: list[Entry], random: Random) -> list[Entry]:
    entry, content = random.choice(entries)
    return [*entries, (_entry(entry.filename, entry), flip(content, random))]


def _contents_swapped(entries: list[Entry], random: Random) -> list[Entry]:
    one, other = random.sample(range(len(entries)), 2)
    contents = [content for _, content in entries]
    contents[one], contents[other] = contents[other], contents[one]
    return [(entry, content) for (entry, _), content in zip(entries, contents, strict=True)]


def _one_renamed(entries: list[Entry], random: Random) -> list[Entry]:
    chosen = random.randrange(len(entries))
    entry, content = entries[chosen]
    renamed = (_entry(f"{entry.filename}.bak", entry), content)
    return [*entries[:chosen], renamed, *entries[chosen + 1 :]]


def _one_more(entries: list[Entry], random: Random) -> list[Entry]:
    return [*entries, (_entry("EXTRA.md", entries[0][0]), random.randbytes(100))]


def _named(name: str) -> Callable[[list[Entry], Random], list[Entry]]:
    return lambda entries, random: [*entries, (_entry(name, entries[0][0]), b"x")]


def _one_linked(entries: list[Entry], random: Random) -> list[Entry]:
    chosen = random.randrange(len(entries))
    entry = _entry(entries[chosen][0].filename, entries[chosen][0])
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return [*entries[:chosen], (entry, b"/etc/passwd"), *entries[chosen + 1 :]]


def _bomb(entries: list[Entry], random: Random) -> list[Entry]:
    entry = _entry("bomb.bin", entries[0][0])
    entry.compress_type = zipfile.ZIP_DEFLATED
    return [*entries, (entry, bytes(600 * 1024**2))]


def _many(entries: list[Entry], random: Random) -> list[Entry]:
    return [*entries, *((_entry(f"more/{i}", entries[0][0]), b"") for i in range(20000))]


def _packed(entries: list[Entry], random: Random) -> list[Entry]:
    chosen = random.randrange(len(entries))
    entry = _entry(entries[chosen][0].filename, entries[chosen][0])
    entry.compress_type = random.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    return [*entries[:chosen], (entry, entries[chosen][1]), *entries[chosen + 1 :]]


ENTRIES: dict[str, Callable[[list[Entry], Random], list[Entry]]] = {
    "one file missing": _without_one,
    "one file twice": _one_twice,
    "two contents swapped": _contents_swapped,
    "one file renamed": _one_renamed,
    "one file more": _one_more,
    "one file a link": _one_linked,
    "one file packed otherwise": _packed,
    "600 MiB of zeros": _bomb,
    "20000 files": _many,
    "no file": lambda entries, random: [],
}


# ---- folders


def _in_folder(
    base: Base, folder: Path, path: Path, how: str
) -> Callable[[Path, Random], Outcome]:  # fmt: skip
    def attack(place: Path, random: Random) -> Outcome:
        bundle = Path(shutil.copytree(folder, place / "bundle"))
        FILES[how](bundle / path, random, place / "outside")
        return _verified(base, place, bundle, lambda: _folder(bundle) == _folder(folder))

    return attack


def _folder(folder: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        plain = path.is_file() and not path.is_symlink()
        found[path.relative_to(folder).as_posix()] = path.read_bytes() if plain else "other"
    return {name: content for name, content in found.items() if not (folder / name).is_dir()}


# ---- with a manifest written anew: what the goldens have to find


def _sealed(
    base: Base, archive: Path, change: Callable[[Files, Random], None]
) -> Callable[[Path, Random], Outcome]:
    def attack(place: Path, random: Random) -> Outcome:
        files = read_by_directory(archive.read_bytes())
        change(files, random)
        seal(files)
        stream = io.BytesIO()
        with zipfile.ZipFile(archive) as read, zipfile.ZipFile(stream, "w") as write:
            for name in sorted(files):
                write.writestr(_entry(name, read.infolist()[0]), files[name])
        return zip_outcome(base, place, archive, stream.getvalue())

    return attack


def seal(files: Files) -> None:
    """Writes the manifest anew, so that it fits the files as they are now."""
    manifest = json.loads(files.pop(_MANIFEST))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest["files"] = {
        name: {"sha256": digests[name], "size_bytes": len(files[name])} for name in sorted(files)
    }
    manifest["model_sha256"] = digests.get(manifest["model"], manifest["model_sha256"])
    files[_MANIFEST] = json.dumps(manifest, indent=1).encode()


def _model(files: Files) -> str:
    return str(json.loads(files[_MANIFEST])["model"])


def _weights_zeroed(files: Files, random: Random) -> None:
    content = files[_model(files)]
    start = len(content) // 4
    files[_model(files)] = content[:start] + bytes(len(content) // 2) + content[start * 3 :]


def _cut(files: Files, random: Random) -> None:
    content = files[_model(files)]
    files[_model(files)] = content[: random.randrange(len(content))]


def _labels_turned(files: Files, random: Random) -> None:
    labels = files["labels.txt"].decode().splitlines()
    files["labels.txt"] = "".join(f"{label}\n" for label in labels[::-1]).encode()


def _outputs_changed(files: Files, random: Random) -> None:
    content = files["goldens/outputs.bin"]
    files["goldens/outputs.bin"] = bytes(byte ^ 0x40 for byte in content)


def _inputs_zeroed(files: Files, random: Random) -> None:
    files["goldens/inputs.bin"] = bytes(len(files["goldens/inputs.bin"]))


def _pictures_swapped(files: Files, random: Random) -> None:
    names = sorted(name for name in files if name.startswith("goldens/images/"))
    contents = [files[name] for name in names]
    for name, content in zip(names, contents[1:] + contents[:1], strict=True):
        files[name] = content


def _no_goldens(files: Files, random: Random) -> None:
    for name in [name for name in files if name.startswith("goldens/")]:
        del files[name]


def _no_model(files: Files, random: Random) -> None:
    del files[_model(files)]


def _goldens_emptied(files: Files, random: Random) -> None:
    about = json.loads(files["goldens/goldens.json"])
    about["goldens"] = []
    files["goldens/goldens.json"] = json.dumps(about).encode()


def _tolerance_raised(files: Files, random: Random) -> None:
    about = json.loads(files["goldens/goldens.json"])
    about["tolerance_steps"], about["tolerance_share"] = 10**6, 10.0
    files["goldens/goldens.json"] = json.dumps(about).encode()
    _outputs_changed(files, random)


def _labels_in_both(files: Files, random: Random) -> None:
    about = json.loads(files["goldens/goldens.json"])
    about["labels"] = about["labels"][::-1]
    files["goldens/goldens.json"] = json.dumps(about).encode()
    _labels_turned(files, random)


SEALED_CHANGES: dict[str, Callable[[Files, Random], None]] = {
    "half of the model zeroed": _weights_zeroed,
    "model cut short": _cut,
    "model left out": _no_model,
    "labels turned round": _labels_turned,
    "labels turned round in the goldens, too": _labels_in_both,
    "goldens' outputs changed": _outputs_changed,
    "goldens' outputs changed and the tolerance raised": _tolerance_raised,
    "goldens' inputs zeroed": _inputs_zeroed,
    "goldens' pictures swapped": _pictures_swapped,
    "goldens left out": _no_goldens,
    "goldens emptied": _goldens_emptied,
}
