"""A network for pictures that are not square, from the recipe to the package, as a user gets it."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import crafted_bundles
import numpy as np
import pytest
from PIL import Image
from small_run import edgekit, run, write_recipe
from tiny_models import CHANNEL, CLASSES, mean_tflite

from edgekit.cli import execute

RED = ("--fill", "255", "--fill", "0", "--fill", "0")


def draw(root: Path, count: int) -> Path:
    """Writes noisy pictures of one colour, twice as wide as they are high, one of them turned."""
    random = np.random.default_rng(9)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 100, (48, 96, 3))
            pixels[..., CHANNEL[name_index(name)]] += 120
            exif = Image.Exif()
            exif[0x0112] = 6 if index % 4 == 3 else 1
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / name / f"{index}.jpg", quality=95, exif=exif)
    return root


def name_index(name: str) -> int:
    return CLASSES.index(name)


def answers(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[list[str]]:
    """Returns picture, class and score as `edgekit predict` gives them."""
    assert execute(["predict", *map(str, arguments)]) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def share_right(found: list[list[str]]) -> float:
    return sum(Path(path).parent.name == name for path, name, _ in found) / len(found)


@pytest.mark.slow
def test_pictures_of_foreign_files_are_letterboxed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean of the whole input answers, so what fills it shows."""
    model, data = mean_tflite(tmp_path / "model.tflite"), draw(tmp_path / "data", 8)
    labels = tmp_path / "labels.txt"
    labels.write_text("red\ngreen\nblue\n")
    asked = (model, *data.iterdir(), "--labels", labels, "--crop", "letterbox")
    assert share_right(answers(capsys, *asked)) == 1.0
    assert share_right(answers(capsys, *asked, *RED)) == pytest.approx(1 / 3)
    judge = ["validate", *map(str, (model, "--data", data, "--labels", labels))]
    execute([*judge, "--crop", "letterbox", *RED, "--json"])
    assert json.loads(capsys.readouterr().out)["accuracy"]["top1"] == pytest.approx(1 / 3)
    for wrong, words in (
        (("--crop", "letterbox", "--fill", "256"), "--fill 256"),
        (("--fill", "0"), "--fill with crop none"),
    ):
        assert execute([*judge, *wrong]) == 2
        assert words in capsys.readouterr().err


KINDS = {"host-litert": "linux", "pixel-8": "android", "iphone-13": "ios", "cortex-m7": "micro"}


# Plain tests have no time for them.
@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in ("grey", "rgb")]
)
def finished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp(request.param)
    recipe = write_recipe(folder / "recipe.toml", draw(folder / "pictures", 40), qat_epochs=0)
    text = recipe.read_text().replace("[model]", 'crop = "letterbox"\nfill = [20, 0, 60]\n[model]')
    text = re.sub("targets = .*", f"targets = {json.dumps([*KINDS])}", text)
    # The head alone, in more steps: it must tell the colours apart for a wrong input to show.
    text = text.replace("head_epochs = 3", "head_epochs = 30\nhead_learning_rate = 0.02")
    text = text.replace('unfreeze_from = "block_16_expand"', 'strategy = "head"')
    recipe.write_text(text.replace("[train]", f'channels = "{request.param}"\n[train]'))
    done = run(recipe, folder / "out", "--input-size", "48x64", "--latency-budget-ms", "5000")
    assert done.returncode in (0, 4, 5), done.stderr
    return folder / "out"


def test_a_run_and_its_files_say_how_they_are_fed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = json.loads((finished / "report.json").read_text())["export"]["preprocess"]
    assert (contract["crop"], contract["fill"]) == ("letterbox", [20, 0, 60])
    assert (contract["height_px"], contract["width_px"]) == (48, 64)
    assert "at 48x64 px (height, width)" in (finished / "report.md").read_text()
    for name in ("model_float32.tflite", "model_float32.onnx"):
        # A file alone, without the record beside it: its own metadata say it.
        alone = finished.parent / name
        alone.write_bytes((finished / "artifacts" / name).read_bytes())
        found = answers(capsys, alone, finished.parent / "pictures")
        beside = answers(capsys, finished / "artifacts" / name, finished.parent / "pictures")
        assert found == beside
        assert share_right(found) > 0.5  # by luck a third, four standard errors below
        # The twin: other pixels give other scores.
        assert found != answers(capsys, alone, finished.parent / "pictures", "--crop", "none")


def test_files_of_both_formats_take_it_and_agree(finished: Path) -> None:
    exported = json.loads((finished / "report.json").read_text())["export"]
    shapes = {
        artifact["path"]: artifact["inputs"][0]["shape"] for artifact in exported["artifacts"]
    }
    channels = 1 if exported["preprocess"]["channels"] == "grey" else 3
    assert set(map(tuple, shapes.values())) == {(1, 48, 64, channels)}
    assert {"onnx", "tflite"} == {Path(path).suffix[1:] for path in shapes}
    assert {parity["status"] for parity in exported["parity"]} <= {"PASS", "UNMEASURED"}
    assert exported["formats"]["top1_agreement"] > 0.95


@pytest.mark.parametrize("size", ["48x", "x48", "48x64x3", "31x64", "64x2000", "-48", "48.0"])
def test_other_sizes_are_refused_before_anything_is_done(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ("run", "--data", str(tmp_path), "--out", str(out), f"--input-size={size}")
    assert execute(asked) == 2
    assert re.search("input[-_]size", capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize("target", KINDS)
def test_every_package_is_fed_as_the_run_was(finished: Path, target: str, tmp_path: Path) -> None:
    asked = ("--for", target, "--allow-miss", "--out", str(tmp_path))
    packed = edgekit("package", str(finished), *asked)
    assert packed.returncode == 0, packed.stderr
    assert f"{KINDS[target]}/" in str([*zipfile.ZipFile(tmp_path / f"{target}.zip").namelist()])
    checked = edgekit("verify", str(tmp_path / f"{target}.zip"))
    assert checked.returncode == 0, checked.stderr
    assert "level_b PASS" in checked.stdout


def test_the_package_letterboxes_as_training_did(finished: Path) -> None:
    packed = edgekit("package", str(finished), "--for", "host-litert", "--allow-miss")
    assert packed.returncode == 0, packed.stderr
    bundle = finished / "packages" / "host-litert"
    checked = edgekit("verify", str(bundle))
    assert checked.returncode == 0, checked.stderr
    assert "level_b PASS" in checked.stdout
    command = [sys.executable, str(bundle / "linux" / "python" / "selfcheck.py")]
    own = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert own.returncode == 0, own.stdout
    # A manifest that claims pictures of other channels than its model takes.
    files = crafted_bundles.unpacked(bundle.with_suffix(".zip").read_bytes())
    channels = json.loads(files["manifest.json"])["preprocess"]["channels"]
    other, wanted = ("rgb", 3) if channels == "grey" else ("grey", 1)
    crafted_bundles.edit(
        files, "manifest.json", lambda manifest: manifest["preprocess"].update(channels=other)
    )
    claimed = finished.parent / "claimed.zip"
    claimed.write_bytes(crafted_bundles.zipped(crafted_bundles.sealed(files)))
    refused = edgekit("verify", str(claimed))
    assert refused.returncode == 6
    assert f"expected: channels last, {wanted} of them" in refused.stderr
    # The twin: the same package, stretching.
    module = bundle / "linux" / "python" / "classifier.py"
    module.write_text(module.read_text().replace('"crop": "letterbox"', '"crop": "none"'))
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "FAIL  picture level" in wrong.stdout
