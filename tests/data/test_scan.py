"""What lies in a data folder, and every folder that is refused, on real files."""

import itertools
import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from data_folders import write

from edgekit.data.files import printable
from edgekit.data.scan import Scan, scan
from edgekit.errors import DataError

SPLIT_NAMES = ("train", "validation", "test")


def refused(root: Path) -> str:
    """Returns what a refusal says; the exit code is 3 and the folder is named."""
    with pytest.raises(DataError) as caught:
        scan(root)
    assert caught.value.exit_code == 3
    assert str(root) in caught.value.received
    assert caught.value.expected
    assert caught.value.remedy
    return caught.value.received


def reasons(scanned: Scan) -> dict[str, str]:
    return {item.path: item.reason for item in scanned.skipped}


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    return write(tmp_path / "pictures", "cat/1.jpg", "dog/1.jpg")


def test_class_folders(tmp_path: Path) -> None:
    found = scan(write(tmp_path, "dog/b.PNG", "cat/x/deep.webp", "cat/a.jpeg", "dog/a.bmp"))
    assert found.class_names == ("cat", "dog")
    assert [(s.relative, s.label, s.split) for s in found.sources] == [
        ("cat/a.jpeg", 0, None),
        ("cat/x/deep.webp", 0, None),
        ("dog/a.bmp", 1, None),
        ("dog/b.PNG", 1, None),
    ]
    assert [s.path.read_bytes().decode() for s in found.sources] == [
        s.relative for s in found.sources
    ]
    assert found.skipped == ()


def test_split_folders(tmp_path: Path) -> None:
    names = [f"{split}/{label}/1.jpg" for split in SPLIT_NAMES for label in ("b", "a")]
    found = scan(write(tmp_path, *names))
    assert found.class_names == ("a", "b")
    assert [(s.split, s.label) for s in found.sources] == [
        (split, label) for split in SPLIT_NAMES for label in (0, 1)
    ]


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    found = scan(write(tmp_path, "test/1.jpg", "specimen/1.jpg"))
    assert found.class_names == ("specimen", "test")
    assert {s.split for s in found.sources} == {None}


def test_creation_order_does_not_matter(tmp_path: Path) -> None:
    names = [f"{label}/{i}.jpg" for label in ("cat", "dog", "eel") for i in range(20)]
    scans = []
    for seed in range(3):
        random.Random(seed).shuffle(names)
        scans.append(scan(write(tmp_path / str(seed), *names)))
    listed = [[(s.relative, s.label, s.sha256) for s in found.sources] for found in scans]
    assert listed[0] == listed[1] == listed[2]
    assert scans[0].digest == scans[1].digest == scans[2].digest


@pytest.mark.parametrize(
    "change", ["content", "name", "class", "class name", "new class", "new file", "new empty file"]
)
def test_the_digest_follows_what_is_there(two_classes: Path, change: str) -> None:
    before = scan(two_classes).digest
    picture = two_classes / "cat" / "1.jpg"
    match change:
        case "content":
            picture.write_bytes(b"other")
        case "name":
            picture.rename(picture.with_name("2.jpg"))
        case "class":
            write(two_classes, "cat/2.jpg")
            picture.rename(two_classes / "dog" / "2.jpg")
        case "class name":
            picture.parent.rename(two_classes / "bat")
        case "new class":
            (two_classes / "eel").mkdir()
        case "new empty file":
            (two_classes / "cat" / "2.png").touch()
        case _:
            write(two_classes, "cat/2.jpg")
    assert scan(two_classes).digest != before


def test_the_digest_follows_why_a_file_is_left_out(two_classes: Path) -> None:
    extra = two_classes / "cat" / "2.jpg"
    extra.touch()
    before = scan(two_classes)
    extra.unlink()
    os.mkfifo(extra)
    after = scan(two_classes)
    assert (before.class_names, before.sources) == (after.class_names, after.sources)
    assert before.digest != after.digest


def test_the_digest_cannot_be_forged_by_names(tmp_path: Path) -> None:
    one = scan(write(tmp_path / "one", "cat/1.jpg", "dog/1.jpg"))
    source = one.sources[0]
    joined = replace(source, relative=f"{source.relative}\n{one.sources[1].relative}")
    assert replace(one, sources=(joined,)).digest != one.digest
    assert len(replace(one, sources=(replace(source, relative="\udcff"),)).digest) == 64


def test_the_digest_ignores_times_and_the_place(two_classes: Path, tmp_path: Path) -> None:
    before = scan(two_classes).digest
    os.utime(two_classes / "cat" / "1.jpg", (1, 1))
    assert scan(two_classes.rename(tmp_path / "elsewhere")).digest == before


def test_no_folder(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere")
    file = tmp_path / "pictures.zip"
    file.write_bytes(b"PK")
    assert "is a file" in refused(file)
    with pytest.raises(DataError, match=r"train,validation,test.*<class>"):
        scan(tmp_path / "nowhere")


def test_nothing_in_the_folder(tmp_path: Path) -> None:
    assert "no class folder" in refused(tmp_path)
    write(tmp_path, "1.jpg")
    assert "no class folder" in refused(tmp_path)
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    assert "no picture in" in refused(tmp_path)


def test_no_usable_picture(two_classes: Path) -> None:
    for path in two_classes.rglob("*.jpg"):
        path.write_bytes(b"")
    assert "none of the 2 picture files" in refused(two_classes)


def test_one_class(tmp_path: Path) -> None:
    assert "one class only: 'cat'" in refused(write(tmp_path, "cat/1.jpg", "cat/2.jpg"))


def test_training_pictures_are_missing(tmp_path: Path) -> None:
    for split in ("validation", "test"):
        write(tmp_path, f"{split}/cat/1.jpg", f"{split}/dog/1.jpg")
    assert "has test and validation, and no training pictures" in refused(tmp_path)


def test_a_class_is_missing_in_a_split(tmp_path: Path) -> None:
    write(tmp_path, *(f"{split}/{c}/1.jpg" for split in SPLIT_NAMES for c in ("cat", "dog")))
    write(tmp_path, "train/eel/1.jpg", "test/eel/1.jpg")
    assert f"{tmp_path / 'validation'} has no folder for eel" in refused(tmp_path)


TWINS = [
    ("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9"), r"'cafe\u0301'"),
    ("Cat", "cat", "'Cat'"),
    ("STRASSE", "stra\u00dfe", r"'stra\xdfe'"),
]


@pytest.mark.parametrize(("first", "second", "code_points"), TWINS)
def test_twins(tmp_path: Path, first: str, second: str, code_points: str) -> None:
    write(tmp_path, f"{first}/1.jpg", f"{second}/1.jpg")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system keeps only one of them")
    with pytest.raises(DataError, match="differ only by case or Unicode form") as caught:
        scan(tmp_path)
    assert first in caught.value.received
    assert second in caught.value.received
    assert code_points in caught.value.received


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\tb", r"a\tb"),
        ("a\rb", r"a\rb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2028b", r"a\u2028b"),
        (os.fsdecode(b"a\xff"), r"a\udcff"),
        (" ", "' '"),
    ],
)
def test_class_names_that_break_a_labels_file(tmp_path: Path, name: str, shown: str) -> None:
    write(tmp_path, f"{name}/1.jpg", "dog/1.jpg")
    with pytest.raises(DataError, match="cannot be printed") as caught:
        scan(tmp_path)
    assert shown in caught.value.received.replace("\\\\", "\\")
    assert caught.value.received.isprintable()


def test_names_a_shell_or_a_page_would_mind_are_only_names(tmp_path: Path) -> None:
    names = sorted(["-rf", "$(id)", "`x`", "a;b", "a'b\"c", "<script>", "=1+1", "zwei W\u00f6rter"])
    found = scan(write(tmp_path, *(f"{name}/1.jpg" for name in names)))
    assert found.class_names == tuple(names)


def test_hidden_and_system_files_are_ignored(two_classes: Path) -> None:
    before = scan(two_classes)
    write(
        two_classes,
        ".git/1.jpg",
        "__MACOSX/1.jpg",
        "cat/.hidden.jpg",
        "cat/.ipynb_checkpoints/1.jpg",
        "cat/__MACOSX/1.jpg",
        "cat/Thumbs.db",
        "dog/desktop.ini",
    )
    assert scan(two_classes) == before


def test_other_files_are_listed(two_classes: Path) -> None:
    write(two_classes, "cat/notes.txt", "cat/deep/labels.json", "dog/none", "dog/film.mp4")
    found = scan(two_classes)
    assert reasons(found).keys() == {
        "cat/notes.txt", "cat/deep/labels.json", "dog/none", "dog/film.mp4"
    }  # fmt: skip
    assert {(item.reason, item.kind) for item in found.skipped} == {
        ("not a picture", "not-a-picture")
    }


def test_pictures_beside_the_class_folders_are_listed(two_classes: Path) -> None:
    write(two_classes, "loose.JPG", "README.md", ".hidden.jpg")
    found = scan(two_classes)
    assert reasons(found) == {"loose.JPG": "picture beside the class folders, so of no class"}
    assert [item.kind for item in found.skipped] == ["ignored"]
    assert len(found.sources) == 2


def test_what_lies_beside_the_splits_is_listed(tmp_path: Path) -> None:
    write(tmp_path, *(f"{split}/{c}/1.jpg" for split in SPLIT_NAMES for c in ("cat", "dog")))
    before = scan(tmp_path)
    assert before.skipped == ()
    write(tmp_path, "eel/1.jpg", "loose.jpg", "train/x.png", "LICENSE", ".git/1.jpg")
    found = scan(tmp_path)
    beside = "beside the folders of the splits, so in no split"
    assert reasons(found) == {
        "train/x.png": "picture beside the class folders, so of no class",
        "eel": f"folder {beside}",
        "loose.jpg": f"picture {beside}",
    }
    assert {item.kind for item in found.skipped} == {"ignored"}
    assert found.sources == before.sources


def test_the_kind_says_what_counts_as_damage(two_classes: Path, tmp_path: Path) -> None:
    write(two_classes, "loose.jpg", "cat/notes.txt")
    write(tmp_path, "far.jpg")
    (two_classes / "cat" / "empty.jpg").touch()
    (two_classes / "dog" / "out.jpg").symlink_to(tmp_path / "far.jpg")
    assert {item.path: item.kind for item in scan(two_classes).skipped} == {
        "loose.jpg": "ignored",
        "cat/notes.txt": "not-a-picture",
        "cat/empty.jpg": "unusable",
        "dog/out.jpg": "unusable",
    }


def test_progress_counts_the_files(tmp_path: Path) -> None:
    root = write(tmp_path, *(f"{label}/{i}.jpg" for label in ("cat", "dog") for i in range(50)))
    (root / "cat" / "empty.jpg").touch()
    told: list[tuple[int, int]] = []
    with_progress = scan(root, lambda done, total: told.append((done, total)))
    assert [total for _, total in told] == [101] * len(told)
    done = [0, *(done for done, _ in told)]
    assert done[-1] == 101
    assert all(0 < after - before < 50 for before, after in itertools.pairwise(done))
    assert with_progress == scan(root)


def test_an_empty_file_is_listed(two_classes: Path) -> None:
    (two_classes / "cat" / "0.jpg").touch()
    found = scan(two_classes)
    assert reasons(found) == {"cat/0.jpg": "empty file"}
    assert [s.relative for s in found.sources] == ["cat/1.jpg", "dog/1.jpg"]


def test_a_huge_file_is_not_read(two_classes: Path) -> None:
    with (two_classes / "cat" / "big.jpg").open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: takes no space
    assert reasons(scan(two_classes)) == {
        "cat/big.jpg": "too large: 1,099,511,627,776 bytes, at most 671,088,640"
    }


def test_a_pipe_does_not_hang(two_classes: Path) -> None:
    os.mkfifo(two_classes / "cat" / "pipe.jpg")
    script = (
        "import sys; from pathlib import Path; from edgekit.data.scan import scan\n"
        "print(*[f'{s.path}: {s.reason}' for s in scan(Path(sys.argv[1])).skipped])"
    )
    # The limit ends a hang; it does not measure.
    done = subprocess.run(
        [sys.executable, "-c", script, str(two_classes)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "cat/pipe.jpg: not a regular file\n"


def test_links(two_classes: Path, tmp_path: Path) -> None:
    write(tmp_path, "secret.jpg", "far/1.jpg", "pictures-2/1.jpg")
    cat = two_classes / "cat"
    (cat / "in.jpg").symlink_to(two_classes / "dog" / "1.jpg")
    (cat / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (cat / "near.jpg").symlink_to(tmp_path / "pictures-2" / "1.jpg")
    (cat / "folder").symlink_to(tmp_path / "far")
    (cat / "round").symlink_to(cat)
    (cat / "loop.jpg").symlink_to("loop.jpg")
    (cat / "gone.jpg").symlink_to("nothing.jpg")
    found = scan(two_classes)
    assert [s.relative for s in found.sources] == ["cat/1.jpg", "cat/in.jpg", "dog/1.jpg"]
    out = (
        "symbolic link that leads out of the data folder; data.follow_links = true or "
        "--follow-links follows it"
    )
    assert reasons(found) == {
        "cat/out.jpg": out,
        "cat/near.jpg": out,
        "cat/folder/1.jpg": out,
        "cat/round": "symbolic link to a folder that holds it",
        "cat/loop.jpg": "cannot be read (Too many levels of symbolic links)",
        "cat/gone.jpg": "cannot be read (No such file or directory)",
    }


def test_the_data_folder_itself_may_be_a_link(two_classes: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(two_classes)
    assert scan(tmp_path / "link").digest == scan(two_classes).digest


@pytest.mark.parametrize("link", ["eel", "train", "test/cat"])
def test_a_class_or_split_folder_must_not_lead_out(tmp_path: Path, link: str) -> None:
    root = tmp_path / "pictures"
    if link == "eel":
        write(root, "cat/1.jpg", "dog/1.jpg")
    else:
        write(root, *(f"{split}/{c}/1.jpg" for split in SPLIT_NAMES for c in ("cat", "dog")))
        (root / link).rename(tmp_path / "moved")
    write(tmp_path, "moved/1.jpg")
    (root / link).symlink_to(tmp_path / "moved")
    assert f"{link} in {root} is a symbolic link that leads out" in refused(root)


@pytest.fixture
def as_ordinary_user(two_classes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Takes root's rights away for a while, as root reads everything."""
    monkeypatch.chdir(two_classes)
    if os.geteuid() != 0:
        yield Path()
        return
    two_classes.chmod(0o755)
    os.seteuid(65534)
    try:
        yield Path()
    finally:
        os.seteuid(0)


def test_an_unreadable_file_is_listed(as_ordinary_user: Path, two_classes: Path) -> None:
    picture = Path("cat/1.jpg")
    assert reasons(scan(as_ordinary_user)) == {}
    uid = os.geteuid()
    os.seteuid(os.getuid())
    picture.chmod(0)
    os.seteuid(uid)
    found = scan(as_ordinary_user)
    assert reasons(found) == {"cat/1.jpg": "cannot be read (Permission denied)"}
    assert [s.relative for s in found.sources] == ["dog/1.jpg"]


@pytest.mark.parametrize("folder", ["cat", "cat/deep"])
def test_an_unreadable_folder_is_refused(
    as_ordinary_user: Path, two_classes: Path, folder: str
) -> None:
    uid = os.geteuid()
    os.seteuid(os.getuid())
    Path(folder).mkdir(exist_ok=True)
    Path(folder).chmod(0)
    os.seteuid(uid)
    try:
        with pytest.raises(DataError, match=rf"^{folder}: Permission denied") as caught:
            scan(as_ordinary_user)
    finally:
        os.seteuid(os.getuid())
        Path(folder).chmod(0o755)
        os.seteuid(uid)
    assert caught.value.exit_code == 3


def test_names_that_are_no_text(two_classes: Path) -> None:
    (two_classes / "cat" / os.fsdecode(b"\xff\x1b[2J.jpg")).write_bytes(b"x")
    (two_classes / "dog" / os.fsdecode(b"\xfe\n.txt")).write_bytes(b"x")
    found = scan(two_classes)
    assert len(found.sources) == 3
    assert len(found.digest) == 64
    assert found.skipped[0].path == r"dog/\udcfe\n.txt"
    assert printable(found.sources[1].relative) == r"cat/\udcff\x1b[2J.jpg"


def nested(folder: Path, depth: int) -> None:
    """Makes folders in folders with a picture in the innermost, one system call each."""
    folder.mkdir(parents=True, exist_ok=True)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=here)
        inner = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    picture = os.open("deep.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(picture, b"deep")
    os.close(picture)
    os.close(here)


@pytest.mark.parametrize("depth", [101, 1500, 5000])
def test_folders_nested_beyond_all_use_are_refused_at_once(two_classes: Path, depth: int) -> None:
    nested(two_classes / "cat", depth)
    try:
        assert "holds folders more than 100 deep" in refused(two_classes)
    finally:  # shutil, which pytest cleans up with, goes no deeper than Python's own stack
        subprocess.run(["rm", "-r", str(two_classes)], check=True)


def test_a_hundred_nested_folders_are_read(two_classes: Path) -> None:
    nested(two_classes / "cat", 100)
    found = [s.relative for s in scan(two_classes).sources]
    assert found == ["cat/1.jpg", "cat/" + 100 * "a/" + "deep.jpg", "dog/1.jpg"]


def test_many_empty_folders_are_no_trouble(two_classes: Path) -> None:
    for number in range(5000):
        (two_classes / "cat" / f"{number}").mkdir()
    assert [s.relative for s in scan(two_classes).sources] == ["cat/1.jpg", "dog/1.jpg"]


def test_more_class_folders_than_a_report_can_hold_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "0/1.jpg", "1/1.jpg")
    for number in range(2, 2000):
        (tmp_path / f"{number}").mkdir()
    # Twin: at the limit they are classes, though most of these hold nothing.
    assert len(scan(tmp_path).class_names) == 2000
    (tmp_path / "2000").mkdir()
    assert "holds 2001 classes" in refused(tmp_path)


def test_links_in_circles_are_not_followed(two_classes: Path) -> None:
    (two_classes / "cat" / "self").symlink_to("self")
    (two_classes / "cat" / "up").symlink_to("..")
    (two_classes / "circle").symlink_to("circle")
    found = scan(two_classes)
    assert found.class_names == ("cat", "dog")
    assert [s.relative for s in found.sources] == ["cat/1.jpg", "dog/1.jpg"]
    assert {path.split("/")[-1] for path in reasons(found)} == {"self", "up"}
