"""Zip files and folders: the same bytes everywhere, and a refusal of its own for every trick."""

import hashlib
import os
import socket
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crafted_bundles import ZIP_ALTERATIONS, Alteration, hidden, packed
from hypothesis import given, settings, strategies as st

from edgekit import limits
from edgekit.errors import IntegrityError
from edgekit.package.archive import read_folder, read_zip, write_zip

FILES = {
    "model.tflite": bytes(range(256)) * 40,
    "labels.txt": "katze\nHündin\n猫\n".encode(),
    "goldens/images/cat_00.jpg": b"\xff\xd8\xff" + b"\0" * 500,
    "ios/Größe.txt": b"",
}


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(IntegrityError) as caught:
        call()
    assert caught.value.expected
    assert caught.value.remedy
    return caught.value.received


def zipped(path: Path, entries: list[tuple[zipfile.ZipInfo | str, bytes]], **more: int) -> Path:
    with zipfile.ZipFile(path, "w", **more) as made:
        for name, content in entries:
            made.writestr(name, content)
    return path


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.create_system = 3
    found.external_attr = mode << 16
    return found


def renamed(path: Path, old: str, new: str) -> Path:
    """Writes names that zipfile would not: the same number of bytes put in place of others."""
    content = path.read_bytes()
    assert content.count(old.encode()) == 2
    path.write_bytes(content.replace(old.encode(), new.encode()))
    return path


# ---- writing


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(write_zip(FILES))
    assert read_zip(path) == FILES
    assert list(read_zip(path)) == sorted(FILES)
    # Another program reads the same, with plain files that everybody may read.
    with zipfile.ZipFile(path) as other:
        assert other.testzip() is None
        assert {i.external_attr >> 16 for i in other.infolist()} == {0o100644}
        assert {i.date_time for i in other.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_bytes_are_pinned() -> None:
    """A new Python or zlib that changes them fails here."""
    made = hashlib.sha256(write_zip(FILES)).hexdigest()
    assert made == "93d3f982d3c972a7280079ff87c9d2bc0b7f1b047c0abd243b3dbb32af7c3620"
    assert hashlib.sha256(write_zip(FILES | {"labels.txt": b"x"})).hexdigest() != made


def test_order_locale_zone_mask_and_clock_do_not_matter() -> None:
    program = (
        "import os, sys; os.umask(int(sys.argv[1], 8)); "
        "from edgekit.package.archive import write_zip; "
        "files = {name: name.encode() * 9 for name in sys.argv[2:]}; "
        "sys.stdout.buffer.write(write_zip(files))"
    )
    made = set()
    for mask, names, zone, locale, seed in (
        ("022", ["b", "a/Ü", "a/z"], "UTC", "C.UTF-8", "1"),
        ("077", ["a/z", "b", "a/Ü"], "Asia/Kathmandu", "C", "2"),
        ("000", ["a/Ü", "a/z", "b"], "America/Adak", "POSIX", "3"),
    ):
        done = subprocess.run(
            [sys.executable, "-X", "utf8", "-c", program, mask, *names],
            env={**os.environ, "TZ": zone, "LC_ALL": locale, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=60,
        )
        made.add(done.stdout)
    assert len(made) == 1


def test_what_could_not_be_read_is_not_written() -> None:
    assert "leaves its folder" in refused(lambda: write_zip({"../x": b""}))
    assert "ignore case" in refused(lambda: write_zip({"a": b"", "A": b""}))


# ---- hostile names, in zip files and in folders

NAMES = [
    ("../evil.txt", "leaves its folder"),
    ("a/../../evil.txt", "leaves its folder"),
    ("/etc/passwd", "is absolute"),
    ("C:/evil.txt", "starts with a drive"),
    ("a\\evil.txt", "holds a backslash"),
    ("a//b", "has an empty part"),
    ("a/./b", "has an empty part or a '.'"),
    ("", "has an empty part"),
    ("a/b:stream", "holds a colon"),
    ("cafe\u0301.txt", "composed form"),
    ("con", "is a device on Windows"),
    ("a/NUL.txt", "is a device on Windows"),
    ("com¹", "is a device on Windows"),
    ("a /b", "ends in a dot or a space"),
    ("a.", "ends in a dot or a space"),
    ("what?", 'holds one of <>"|?*'),
    ("new\nline", "holds a control character"),
    ("\x1b[2Jclear", "holds a control character"),
    ("line\u2028", "holds a control character"),
    ("x" * 256, "has a part of 256 bytes"),
    ("/".join(["a"] * 17), "17 folders deep"),
    ("/".join(["x" * 250] * 5), "at most 1024"),
]


@pytest.mark.parametrize(("name", "said"), NAMES)
def test_a_hostile_name_is_refused(name: str, said: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [(entry("ok"), b""), (entry(name), b"x")])
    with pytest.raises(IntegrityError) as caught:
        read_zip(path)
    assert said in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["console", "nullable.txt", "com10", "a b", ".hidden", "日本.jpg"])
def test_the_twin_a_harmless_name_is_not(name: str, tmp_path: Path) -> None:
    assert read_zip(zipped(tmp_path / "a.zip", [(entry(name), b"x")])) == {name: b"x"}


def test_a_name_with_a_zero_byte(tmp_path: Path) -> None:
    made = zipped(tmp_path / "a.zip", [(entry("good.txtX.sh"), b"")])
    path = renamed(made, "X.sh", "\0.sh")
    assert "zero byte" in refused(lambda: read_zip(path))


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [(entry("grXnXs"), b"")])
    path.write_bytes(path.read_bytes().replace(b"grXnXs", b"gr\xfcn\xdfs"))
    assert "is not UTF-8" in refused(lambda: read_zip(path))
    # The twin: the same name in UTF-8 and marked as that.
    assert read_zip(zipped(tmp_path / "b.zip", [(entry("grünß"), b"")])) == {"grünß": b""}


PAIRS = [
    (("a.txt", "a.txt"), "is in it twice"),
    (("a.txt", "A.TXT"), "ignore case"),
    (("straße", "STRASSE"), "ignore case"),
    (("ios/a", "IOS/b"), "ignore case"),
    (("a", "a/b"), "is a file and a folder"),
    (("A", "a/b"), "is a file and a folder"),
]


@pytest.mark.parametrize(("names", "said"), PAIRS)
def test_names_that_meet(names: tuple[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed([(name, b"") for name in sorted(names)]))
    assert said in refused(lambda: read_zip(path))


# ---- hostile entries: `crafted_bundles` has one of every trick, applied to whole bundles, too


@pytest.mark.parametrize(("name", "change"), ZIP_ALTERATIONS)
def test_every_other_form_is_refused(name: str, change: Alteration, tmp_path: Path) -> None:
    files = {**FILES, "verify.py": b"print()\n"}
    path = tmp_path / f"{name}.zip"
    path.write_bytes(write_zip(files))
    assert read_zip(path) == files
    path.write_bytes(change(path.read_bytes()))
    refused(lambda: read_zip(path))


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"gap": {None: hidden("labels.txt")}}, "hidden bytes behind the last file"),
    ({"gap": {"labels.txt": b"x"}}, "labels.txt has hidden bytes before it"),
    ({"local": {"method": 8}, "of": "labels.txt"}, "labels.txt: the header in front of it"),
    ({"listed": {"method": 8}, "of": "labels.txt"}, "gives 8 for its compression method"),
    ({"listed": {"flags": 1}, "of": "labels.txt"}, "gives 1 for its flags"),
    ({"listed": {"size": 4}, "of": "labels.txt"}, "for its compressed size"),
    ({"listed": {"attributes": (stat.S_IFLNK | 0o777) << 16}}, "for its attributes"),
    ({"tail": b"PK"}, "its directory is not where it says"),
]


@pytest.mark.parametrize(("form", "said"), FORMS)
def test_what_differs_is_named(form: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed(sorted(FILES.items()), **form))
    assert said in refused(lambda: read_zip(path))
    # The twin: without it the file is the very one that is written.
    assert packed(sorted(FILES.items())) == write_zip(FILES)


def test_a_folder_entry(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed([("a/", b""), ("a/b", b"x")]))
    assert "a/ is a folder" in refused(lambda: read_zip(path))


@pytest.mark.parametrize("value", [1, 0x80, 0xFF])
def test_no_byte_may_change(tmp_path: Path, value: int) -> None:
    content = write_zip({"labels.txt": b"cat\n", "m/model.bin": bytes(9), "ä": b"PK"})
    path = tmp_path / "a.zip"
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= value
        path.write_bytes(changed)
        refused(lambda: read_zip(path))
    path.write_bytes(content)
    assert len(read_zip(path)) == 3


def test_too_many_and_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(write_zip(FILES))
    monkeypatch.setattr(limits, "BUNDLE_FILES", 4)
    assert read_zip(path) == FILES
    monkeypatch.setattr(limits, "BUNDLE_FILES", 3)
    assert "4 files" in refused(lambda: read_zip(path))
    monkeypatch.setattr(limits, "BUNDLE_FILES", 4096)
    monkeypatch.setattr(limits, "BUNDLE_BYTES", path.stat().st_size - 1)
    assert "bytes" in refused(lambda: read_zip(path))


@pytest.mark.timeout(60, func_only=True)  # it took minutes
@pytest.mark.parametrize("count", [1, 65535])
def test_a_million_entries_are_refused_at_once(tmp_path: Path, count: int) -> None:
    """Whatever the end record says of their number."""
    one = packed([("a", b"")], gap={None: b""})[31:78]
    directory, start = one * 1_000_000, packed([("a", b"")])[:31]
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), 31, 0)
    path = tmp_path / "a.zip"
    path.write_bytes(start + directory + end)
    refused(lambda: read_zip(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: b"#!/bin/sh\n" + c, "does not start as a zip file"),
        (lambda c: c + b"PK", "something follows the end"),
        (lambda c: c[:-1], "truncated"),
        (lambda c: c[:40] + c[41:], "its directory is not where it says"),
        (lambda _: b"", "does not start as a zip file"),
        (lambda c: c[:-22] + b"PK\x06\x07" + b"\0" * 16 + c[-22:], "is not where it says"),
        (lambda c: c.replace(b"katze", b"Katze"), "damaged"),
    ],
)
def test_a_damaged_file(change: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(change(write_zip(FILES)))
    assert said in refused(lambda: read_zip(path))


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    assert "No such file" in refused(lambda: read_zip(tmp_path / "none.zip"))
    assert "Is a directory" in refused(lambda: read_zip(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert "not a plain file" in refused(lambda: read_zip(tmp_path / "pipe"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_of_bytes_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = write_zip(FILES)
    changed = bytearray(content)
    tail = len(content) - 600
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1) | st.integers(tail, len(content) - 1))
        how = data.draw(st.sampled_from(["set", "insert", "remove"]))
        value = [] if how == "remove" else [data.draw(st.integers(0, 255))]
        changed[position : position + (how != "insert")] = bytes(value)
    path = tmp_path_factory.getbasetemp() / "changed.zip"
    path.write_bytes(changed)
    if changed == content:
        assert read_zip(path) == FILES
    else:
        refused(lambda: read_zip(path))


# ---- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "bundle"
    for name, content in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def test_a_folder_is_read_as_its_zip_file(folder: Path, tmp_path: Path) -> None:
    (folder / "empty").mkdir()
    assert read_folder(folder) == FILES
    (tmp_path / "link").symlink_to(folder)
    assert read_folder(tmp_path / "link") == FILES


def _socket(path: Path) -> None:
    there = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(there)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.symlink_to("/etc/passwd"), "x: is a symbolic link"),
        (lambda p: p.symlink_to("labels.txt"), "is a symbolic link"),
        (lambda p: p.symlink_to(p.parent), "is a symbolic link"),
        (lambda p: p.symlink_to("nowhere"), "is a symbolic link"),
        (os.mkfifo, "is a special file"),
        (_socket, "is a special file"),
    ],
)
def test_a_folder_with_more_than_files(
    folder: Path, make: Callable[[Path], None], said: str
) -> None:
    make(folder / "ios" / "x")
    said = said.replace("x: is", "ios/x is")
    assert said in refused(lambda: read_folder(folder))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"gr\xfcn", "is not UTF-8"),
        (b"a\\b", "holds a backslash"),
        (b"aux.c", "is a device on Windows"),
        (b"Labels.txt", "ignore case"),
        (b"IOS", "is a file and a folder"),
        ("e\u0301".encode(), "composed form"),
        (b"\x1b[2J", "holds a control character"),
    ],
)
def test_a_folder_with_a_hostile_name(folder: Path, name: bytes, said: str) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"x")
    assert said in refused(lambda: read_folder(folder))


def test_a_folder_too_deep_too_many_too_large(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = folder
    for _ in range(200):
        deep /= "d"
        deep.mkdir()
    assert "17 folders deep" in refused(lambda: read_folder(folder))
    (folder / "d").rename(folder.parent / "d")
    monkeypatch.setattr(limits, "BUNDLE_FILES", 6)
    assert "files and folders" in refused(lambda: read_folder(folder))
    monkeypatch.setattr(limits, "BUNDLE_FILES", 7)  # four files, three folders
    assert read_folder(folder) == FILES
    total = sum(map(len, FILES.values()))
    monkeypatch.setattr(limits, "BUNDLE_BYTES", total)
    assert read_folder(folder) == FILES
    monkeypatch.setattr(limits, "BUNDLE_BYTES", total - 1)
    assert "more than" in refused(lambda: read_folder(folder))


def test_no_folder(folder: Path) -> None:
    assert "No such file" in refused(lambda: read_folder(folder / "none"))
    assert "not a folder" in refused(lambda: read_folder(folder / "labels.txt"))
