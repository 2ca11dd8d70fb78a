"""Reading TOML: every refusal names the file, the key, what was received and what is accepted."""

import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from edgekit.errors import SpecError
from edgekit.spec import MAX_BYTES, MAX_DEPTH, Spec, build, load, parse, render


class Inner(Spec):
    width: float = Field(default=1.5, gt=0, lt=9, description="Width in metres.")
    height: float = Field(default=0.0, description="Height in metres, any.")
    mode: Literal["slow", "fast"] = Field(default="slow", description="How.")


class Outer(Spec):
    name: str = Field(min_length=1, description="A name.")
    count: int = Field(default=3, ge=1, le=7, description="How many.")
    loud: bool = Field(default=False, description="Whether it is loud.")
    start: Annotated[int, Field(ge=0)] | str | None = Field(
        default=None, description="Where.", examples=["here"]
    )
    words: tuple[str, ...] = Field(default=("a",), strict=False, description="Words.")
    file: Path = Field(default=Path("f"), strict=False, description="A file.")
    inner: Inner = Field(default=Inner(), description="The inside.")


def refused(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse(text, Outer, "my.toml")
    assert caught.value.exit_code == 2
    assert caught.value.received.startswith("my.toml")
    return caught.value


@pytest.mark.parametrize(
    ("line", "received", "accepted"),
    [
        ("count = 'ten'", "the text 'ten'", "a whole number from 1 to 7 (default 3)"),
        ("count = 8", "received 8", "a whole number from 1 to 7 (default 3)"),
        ("count = -1", "received -1", "a whole number from 1 to 7 (default 3)"),
        ("count = 2.0", "received 2.0", "a whole number"),
        ("count = true", "received true", "a whole number"),
        ("count = 0x" + "f" * 5000, "beyond 64 bits", "a whole number"),
        ("count = 1979-05-27", "the date 1979-05-27", "a whole number"),
        ("loud = 1", "received 1", "true or false (default false)"),
        ("start = -1", "received -1", "a whole number at least 0 or text (left out by default)"),
        ("words = 'a'", "the text 'a'", 'a list of any number of items, each text (default ["a"])'),
        ("words = [1]", "received [1]", "each text"),
        ("file = 3", "received 3", "a path"),
        ("inner = 3", "received 3", "a table with the keys width, height, mode"),
        ("inner.width = nan", "received nan", "a number above 0 and below 9 (default 1.5)"),
        ("inner.width = -inf", "received -inf", "a number above 0 and below 9 (default 1.5)"),
        ("inner.height = nan", "received nan", "a number (default 0.0)"),
        ("inner.height = inf", "received inf", "a number (default 0.0)"),
        ("inner.width = true", "received true", "a number above 0"),
        ("inner.width = 9", "received 9", "a number above 0 and below 9"),
        ("inner.mode = 'medium'", "'medium'", 'one of "slow", "fast" (default "slow")'),
    ],
)
def test_a_wrong_value_is_shown_beside_what_is_accepted(
    line: str, received: str, accepted: str
) -> None:
    error = refused(f"name = 'x'\n{line}\n")
    key = line.split(" =")[0]
    assert error.received.startswith(f"my.toml, line 2: {key}: ")
    assert received in error.received
    assert f"{key}: " in error.expected
    assert accepted in error.expected
    assert error.received.count("\n") == 0


def test_a_right_value_is_accepted() -> None:
    spec = parse("name='x'\ncount=7\ninner={width=2}\nwords=['b']\nstart='q'", Outer, "my.toml")
    assert spec == Outer(name="x", count=7, inner=Inner(width=2.0), words=("b",), start="q")
    assert isinstance(spec.inner.width, float)


def test_a_missing_key_is_named() -> None:
    error = refused("count = 2")
    assert "name: nothing" in error.received
    assert "text that is not empty (required)" in error.expected
    assert "add it" in error.remedy


def test_a_misspelled_key_gets_the_nearest_and_all_valid_ones() -> None:
    error = refused("name = 'x'\n\n[inner]\nwitdh = 2\n")
    assert error.received == "my.toml, line 4: inner.witdh: unknown key"
    assert error.expected == "inner.witdh: one of width, height, mode"
    assert error.remedy == "inner.witdh: did you mean width?"


def test_a_key_in_the_wrong_table_is_sent_home() -> None:
    assert refused("name = 'x'\nmode = 'fast'").remedy == "mode: move it to [inner]"
    assert "move it to the top" in refused("name = 'x'\n[inner]\ncount = 2").remedy


def test_all_problems_are_reported_at_once() -> None:
    error = refused("count = 0\nloud = 'no'\nzzz = 1\n[inner]\nwidth = -1\n")
    keys = {"count", "loud", "zzz", "inner.width", "name"}
    for part in (error.received, error.expected, error.remedy):
        assert len(part.split("\n")) == len(keys)
    assert {line.split(": ")[1] for line in error.received.split("\n")} == keys


def test_control_characters_are_never_printed() -> None:
    error = refused('name = "\\u001b[31m"\ncount = "\\u001b[2J"\n"\\u001b]0;x" = 1')
    assert "\x1b" not in str(error)
    assert "\\x1b[2J" in error.received


@pytest.mark.parametrize(
    ("text", "second", "first"),
    [
        ("name = 'x'\ncount = 1\ncount = 1\n", "line 3: count is a duplicate key", "line 2"),
        ("[inner]\nwidth = 1\nwidth = 2", "line 3: inner.width is a duplicate key", "line 2"),
        ("[inner]\n\n[inner]\n", "line 3: inner is a duplicate key", "line 1"),
        ("inner = {width = 1, width = 2}", "line 1", "duplicate key"),
    ],
)
def test_a_duplicate_key_is_refused_with_both_lines(text: str, second: str, first: str) -> None:
    error = refused(text)
    assert second in error.received
    assert first in error.received


def test_invalid_toml_gets_line_and_column() -> None:
    assert "line 2, column 9" in refused("name = 'x'\ncount = \n").received
    assert "line 2, end of document" in refused("name = 'x'\ncount").received


@pytest.mark.parametrize(
    "text",
    [
        "count = " + "[" * 50_000,
        "count = " + "{a=" * 50_000,
        ".".join("a" * 400_000) + " = 1",
        "[" + ".".join("a" * 400_000) + "]",
        ". ".join(["'a'"] * 100_000) + " = 1",
        "count = " + "1" * 100_000,
        "a" * 900_000,
        '"' * 900_000,
        "'a" * 400_000,
        "a = 1\n" * 100_000,
        "x" * (MAX_BYTES + 1),
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.timeout(30)
def test_a_bomb_is_refused_and_does_not_hang(text: str) -> None:
    error = refused(text)
    assert len(str(error)) < 1000


def test_nesting_up_to_the_limit_is_not_called_too_deep() -> None:
    key = ".".join("a" * MAX_DEPTH)
    assert "unknown key" in refused(f"name = 'x'\n{key} = 1").received
    assert "too deeply" in refused(f"name = 'x'\n{key}.a = 1").received


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    cases = {"missing": "no such file", "folder": "a directory", "latin": "line 2: byte 0xe9"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"name = 'x'\n# caf\xe9\n")
    (tmp_path / "big").write_bytes(b"#" * (MAX_BYTES + 1))
    for name, received in {**cases, "big": "more than 1000000 bytes"}.items():
        with pytest.raises(SpecError) as caught:
            load(tmp_path / name, Outer)
        assert caught.value.received.startswith(str(tmp_path / name))
        assert received in caught.value.received


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match="not a regular file"):
        load(tmp_path / "pipe", Outer)


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(SpecError, match=r"a (TOML|readable) file"):
            load(tmp_path / name, Outer)


def test_a_byte_order_mark_and_windows_lines_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbfname = 'x'\r\ncount = 2\r\n")
    assert load(file, Outer) == Outer(name="x", count=2)


def test_values_without_a_file_are_checked_as_strictly() -> None:
    assert build({"width": 2}, Inner, "here") == Inner(width=2.0)
    with pytest.raises(SpecError, match="here: width: received the text '2'"):
        build({"width": "2"}, Inner, "here")


@pytest.mark.parametrize(
    "spec",
    [
        Outer(name="x"),
        Outer(name='quote " back \\ line \n tab \t del \x7f ümlaut 🙂', words=()),
        Outer(name="x", start=0, loud=True, inner=Inner(width=1e-5, mode="fast")),
        Outer(name="x", start="", words=("a, b", "#"), file=Path("a b/'c'.h5")),
    ],
)
def test_rendered_toml_reads_back_as_the_same_spec(spec: Outer) -> None:
    assert parse(render(spec), Outer, "rendered") == spec


def test_rendered_toml_explains_every_key() -> None:
    text = render(Outer(name="x"))
    assert "# How many. Takes a whole number from 1 to 7 (default 3).\ncount = 3\n" in text
    assert '# start = "here"' in text
    assert max(map(len, text.split("\n"))) <= 100


def test_text_that_is_not_unicode_cannot_be_rendered() -> None:
    with pytest.raises(SpecError, match="not valid Unicode"):
        render(Outer(name="x", file=Path("\udcff")))
