"""`edgekit predict` on the command line: answers, order, names, what cannot be answered."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import mean_onnx, mean_tflite

from edgekit import predict as module
from edgekit.foreign import answering
from edgekit.validate.contracts import InputOptions
from edgekit.validate.outputs import OutputOptions

NAMES = ("red", "green", "blue")


def predict(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", "predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour each, their labels, and a model that sees the brightest channel."""
    root = tmp_path_factory.mktemp("predict")
    for channel, name in enumerate(NAMES):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((20, 20, 3), 20, np.uint8)
            pixels[..., channel] = 200 + number
            Image.fromarray(pixels).save(root / "photos" / name / f"{number}.png")
    (root / "labels.txt").write_text("".join(f"{name}\n" for name in NAMES))
    mean_tflite(root / "m.tflite")
    return root


def test_each_picture_gets_the_class_that_it_shows_in_the_order_asked(folder: Path) -> None:
    green = folder / "photos" / "green" / "1.png"
    done = predict(folder / "m.tflite", green, folder / "photos", "--labels", folder / "labels.txt")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(Path(path).parent.name, name) for path, name, _ in lines] == [
        ("green", "green"),
        *((name, name) for name in sorted(NAMES) for _ in range(3)),
    ]
    assert all(float(score) > 0 for _, _, score in lines)
    # The twin: channels in the other order are other answers.
    swapped = predict(
        folder / "m.tflite", folder / "photos" / "red", "--labels", folder / "labels.txt",
        "--channels", "bgr",
    )  # fmt: skip
    assert {line.split("\t")[1] for line in swapped.stdout.splitlines()} == {"blue"}


def test_what_cannot_be_answered_is_named_and_the_others_are_answered(
    folder: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "a\tb\n.png"
    bad.write_text("no picture")
    red, absent = folder / "photos" / "red" / "0.png", tmp_path / "absent.jpg"
    asked = (folder / "m.tflite", bad, red, absent, "--labels", folder / "labels.txt", "--top", "2")
    done = predict(*asked)
    assert done.returncode == 3
    lines = [line.split("\t")[:2] for line in done.stdout.splitlines()]
    assert lines[0] == [str(red), "red"]
    assert len(lines) == 2
    assert r"a\tb\n.png: not a" in done.stderr
    assert "absent.jpg: cannot be read (No such file or directory)" in done.stderr
    assert "2 of 3 pictures could not be answered" in done.stderr
    as_json = predict(*asked, "--json")
    assert as_json.returncode == 3
    found = json.loads(as_json.stdout)
    assert found["refused"] == 2
    assert [bool(each["refused"]) for each in found["pictures"]] == [True, False, True]
    assert found["pictures"][1]["guesses"][0]["name"] == "red"


@pytest.mark.slow
def test_without_labels_outputs_have_numbers_and_wrong_labels_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    red = folder / "photos" / "red" / "0.png"
    assert "\toutput 0\t" in predict(folder / "m.tflite", red).stdout
    (tmp_path / "two.txt").write_text("red\ngreen\n")
    refused = predict(folder / "m.tflite", red, "--labels", tmp_path / "two.txt")
    assert refused.returncode == 2
    assert "2 labels for 3 outputs" in refused.stderr
    # One label more than outputs: read as `validate` reads it.
    names = (folder / "labels.txt").read_text()
    (tmp_path / "four.txt").write_text(f"nothing\n{names}")
    assert predict(folder / "m.tflite", red, "--labels", tmp_path / "four.txt").returncode == 2
    known = predict(folder / "m.tflite", red, "--labels", folder / "labels.txt").stdout
    assert "\tred\t" in known
    shifted = ("--labels", tmp_path / "four.txt", "--label-offset", "-1")
    assert predict(folder / "m.tflite", red, *shifted).stdout == known
    (tmp_path / "four.txt").write_text(f"background\n{names}")
    assert predict(folder / "m.tflite", red, "--labels", tmp_path / "four.txt").stdout == known
    unsaid = predict(mean_onnx(tmp_path / "m.onnx"), red)
    assert unsaid.returncode == 2
    assert "--input-scale and --input-offset" in unsaid.stderr


def test_memory_holds_a_few_pictures_of_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded a few at a time, the answers are those of all at once."""
    plan = answering(
        folder / "m.tflite",
        folder / "labels.txt",
        0,
        InputOptions(),
        OutputOptions(),
        lambda line: None,
    )
    asked = [folder / "photos"]
    whole = list(module.predict(plan, asked, 1, lambda _what, _done, _total: None, print))
    monkeypatch.setattr(module, "_PICTURES", 4)
    steps: list[int] = []
    parts = module.predict(plan, asked, 1, lambda _what, done, _total: steps.append(done), print)
    first = next(parts)
    assert (first, steps) == (whole[0], [0])  # the others were not looked at yet
    assert [first, *parts] == whole
    assert steps == [0, 4, 8]
