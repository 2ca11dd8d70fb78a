"""Label files of other tools are taken for what they are, or named."""

import json
from pathlib import Path

import pytest

from edgekit.errors import SpecError
from edgekit.validate.labels import read_labels

GREEN_RED = ("green", "red")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.txt", "green\nred\n"),
        ("windows.txt", "green\r\nred\r\n\r\n\r\n"),
        ("old_mac.txt", "green\rred\r"),
        ("spaces.txt", "  green \n red\n \n"),
        ("teachable.txt", "0 green\n1 red\n"),
        ("coral.txt", "0  green\n1  red"),
        ("from_one.txt", "1: green\n2: red"),
        ("class_indices.json", '{"red": 1, "green": 0}'),
        ("by_index.json", '{"1": "red", "0": "green"}'),
        ("imagenet_class_index.json", '{"0": ["green"], "1": ["red"]}'),
        ("config.json", '{"id2label": {"0": "green", "1": "red"}, "label2id": {"green": 0}}'),
        ("list.json", '["green", "red"]'),
        ("records.json", '[{"id": 1, "name": "red"}, {"id": 0, "name": "green"}]'),
        ("labelmap.csv", "id,name\n0,green\n1,red\n"),
        ("class_map.csv", "index,mid,display_name\n1,/m/2,red\n0,/m/1,green\n"),
        ("names.csv", "class;colour\ngreen;x\nred;y\n"),
        ("data.yaml", "path: ../x\nnames:\n  0: green\n  1: 'red'\nnc: 2\n"),
        ("list.yaml", "names:\n- green\n- red  # warm\nnc: 2\n"),
        ("inline.yml", "nc: 2\nnames: ['green', \"red\"]\n"),
        ("mapping.yaml", "names: {0: green, 1: red}\n"),
        ("label_map.pbtxt", "item {\n id: 1\n name: 'green'\n}\nitem { id: 2 name: \"red\" }"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_tools_write_is_read_in_the_order_of_the_outputs(
    name: str, content: str, encoding: str
) -> None:
    assert read_labels(Path(name), content.encode(encoding))[0] == GREEN_RED


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("7 up\n12 monkeys\n", ("7 up", "12 monkeys")),  # numbers that count nothing
        ("101\n102\n", ("101", "102")),
        ("tench, Tinca tinca\ngoldfish\n", ("tench, Tinca tinca", "goldfish")),
        ("name\nred\n", ("name", "red")),
        ("red\n\ngreen\n", ("red", "", "green")),
        ("a\x0bb\u2028c\nd", ("a\x0bb\u2028c", "d")),
    ],
)
def test_plain_lines_stay_what_they_are(content: str, wanted: tuple[str, ...]) -> None:
    assert read_labels(Path("labels.txt"), content.encode()) == (wanted, "")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'{"green": 0, "red": 2}', "1 is missing"),
        ("a.json", b'{"green": 0, "red": 0}', "one of them twice"),
        ("a.json", b'{"green": "red"}', "neither names by index nor indices by name"),
        ("a.json", b'["green", 3]', "does not hold texts"),
        ("a.json", b'{"green": 0,', "broken"),
        ("a.json", b"[" * 100_000, "broken"),
        ("a.json", json.dumps({"a": 10**12, "b": 1}).encode(), "neither"),
        ("a.yaml", b"nc: 2\n", "without `names:`"),
        ("a.yaml", b"names:\nnc: 2\n", "without a name"),
        ("a.yaml", b"names: data.txt\n", "neither a list nor a mapping"),
        ("a.csv", b"id,name\n0,green\n1\n", "rows shorter than its header"),
        ("a.pbtxt", b"item { name: 'x' }", "without an id or a name"),
        ("a.txt", b"gr\xfcn\n", "UTF-8"),
        ("a.txt", b"TFL3\0\0\0\0", "zero bytes"),
    ],
)
def test_what_is_broken_is_named(name: str, content: bytes, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_labels(Path(name), content)
