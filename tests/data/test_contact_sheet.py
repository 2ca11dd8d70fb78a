"""The page that `edgekit init` writes beside a recipe, through the command line."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from edgekit.cli import execute

ODD = '<b>cat & "dog"<i>\''


class Page(HTMLParser):
    """What a browser would find on a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.titles: list[str] = []
        self.pictures: list[bytes] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.titles += [found["title"] or ""] if "title" in found else []
        if tag == "img":
            start, _, data = str(found["src"]).partition(",")
            assert start == "data:image/jpeg;base64"
            self.pictures.append(base64.b64decode(data))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 30), (seed * 37 % 256, seed * 91 % 256, seed % 256)).save(path)


def sheet(root: Path, out: Path, *more: str) -> Page:
    assert execute(["init", str(root), "--out", str(out), *more]) == 0
    return Page(out.with_suffix(".html"))


def test_some_pictures_of_each_class_and_split_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("Training", 9), ("Testing", 3)):
        for name in (ODD, "eel"):
            for i in range(count):
                draw(tmp_path / "pets" / split / name / f"{i}.png", i)
    (tmp_path / "pets/Testing/eel/0.png").write_bytes(b"no picture")
    page = sheet(tmp_path / "pets", tmp_path / "my.toml")
    assert "my.html, which shows them" in capsys.readouterr().out
    assert "Testing is test and Training is train" in page.texts
    assert page.texts.count(ODD) == 1
    assert not {"b", "i", "script"} & set(page.tags)
    assert page.tags.count("figure") == 4
    assert len(page.pictures) == 2 * 6 + 3 + 2
    assert page.texts.count("cannot be read") == 1
    assert any(title.startswith("Testing/eel/0.png: not a JPEG") for title in page.titles)
    row = page.texts[page.texts.index("train", page.texts.index("split")) :][:4]
    assert row == ["train", "18", "9", "9"]
    for content in page.pictures:
        assert max(Image.open(io.BytesIO(content)).size) == 60  # never larger than it was
    assert not re.search(r"https?:|url\(", (tmp_path / "my.html").read_text())


def test_the_page_does_not_grow_with_the_data(tmp_path: Path) -> None:
    for label in range(203):
        for i in range(20):
            path = tmp_path / "many" / f"class_{label:03}" / f"{i}.png"
            if label == i == 0:
                draw(path, 0)
                first = path.read_bytes()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(first)
    page = sheet(tmp_path / "many", tmp_path / "recipe.toml")
    assert "and 3 more classes" in page.texts
    assert len(page.pictures) == 1000
    assert "to be divided" in page.texts


def test_a_page_of_that_name_is_kept_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ant", "bee"):
        draw(tmp_path / "pets" / name / "1.png", 1)
    (tmp_path / "recipe.html").write_text("mine")
    asked = ["init", str(tmp_path / "pets"), "--out", str(tmp_path / "recipe.toml")]
    assert execute(asked) == 2
    assert "recipe.html exists" in capsys.readouterr().err
    assert (tmp_path / "recipe.html").read_text() == "mine"
    assert not (tmp_path / "recipe.toml").exists()
    assert execute([*asked, "--force"]) == 0
    assert "<h1>Pictures of pets</h1>" in (tmp_path / "recipe.html").read_text()
