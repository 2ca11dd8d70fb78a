"""The command line as a user meets it: real processes, real messages, real exit codes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.table import Table
from tiny_models import mean_tflite

from edgekit import console
from edgekit.cli import execute
from edgekit.demo.recipe import WEIGHTS
from edgekit.target import shipped_targets


def edgekit(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=cwd)


def draw_classes(root: Path, *, classes: int = 3, count: int = 14, size_px: int = 40) -> Path:
    """Writes noise pictures of distinct mean colour, one folder per class."""
    random = np.random.default_rng(5)
    for label in range(classes):
        folder = root / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(count):
            noise = random.integers(0, 90, (size_px, size_px, 3))
            noise[..., label % 3] += 120
            Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_classes(tmp_path_factory.mktemp("cli") / "pictures")


def test_text_of_others_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is said in: an error, a class name, a value of a target, a table, a bug."""
    evil = "\x1b]0;owned\x07\x1b[31m\u202e"
    for arguments in (
        ("targets", "check", str(tmp_path / f"{evil}.toml")),
        ("verify", str(tmp_path / evil)),
        ("report", str(tmp_path / evil)),
    ):
        assert execute(arguments) == 2
    console.out.print(evil, markup=False)
    console.out.print(f"[bold]{evil}[/]")
    table = Table(title=evil)
    table.add_column(evil)
    table.add_row(evil)
    console.out.print(table)
    console.Work(None).say(evil)

    def bug(_name: str) -> None:
        raise RuntimeError(evil)

    monkeypatch.setattr("edgekit.target.load_target", bug)
    assert execute(["targets", "check", "x"]) == 1
    said = capsys.readouterr()
    assert not set(said.out + said.err) & {"\x1b", "\x07", "\u202e"}
    assert said.out.count("owned") == 5
    assert said.err.count("owned") >= 4
    # The twin: what is no control character is shown as it is.
    console.out.print("Größe 猫\nनमस्ते", markup=False)
    assert capsys.readouterr().out == "Größe 猫\nनमस्ते\n"


def test_help_lists_commands_and_exit_codes() -> None:
    shown = edgekit("--help")
    assert shown.returncode == 0
    for word in (
        "demo",
        "init",
        "run",
        "validate",
        "targets",
        "devices",
        "report",
        "130 interrupted",
    ):
        assert word in shown.stdout


@pytest.mark.parametrize(
    "command", ["demo", "init", "run", "validate", "predict", "targets", "devices", "report"]
)
def test_help_of_every_command_has_an_example(command: str) -> None:
    shown = edgekit(command, "--help")
    assert shown.returncode == 0
    assert f"edgekit {command}" in " ".join(shown.stdout.split())


def test_unknown_command_is_a_usage_error() -> None:
    shown = edgekit("frobnicate")
    assert shown.returncode == 2
    assert "frobnicate" in shown.stderr


def test_targets_are_listed_and_shown_with_sources() -> None:
    listed = edgekit("targets")
    assert all(name in listed.stdout for name in shipped_targets())
    assert "# source:" in edgekit("targets", "pixel-8").stdout
    as_json = json.loads(edgekit("targets", "--json").stdout)
    assert [item["name"] for item in as_json] == list(shipped_targets())


def test_unknown_target_names_the_nearest(pictures: Path) -> None:
    shown = edgekit("run", "--data", pictures, "--target", "pixl-8")
    assert shown.returncode == 2
    assert "did you mean pixel-8?" in shown.stderr


def test_error_is_one_json_document_too() -> None:
    shown = edgekit("targets", "pixl-8", "--json")
    error = json.loads(shown.stdout)["error"]
    assert (shown.returncode, error["exit_code"], error["kind"]) == (2, 2, "SpecError")


def test_run_without_anything_says_what_to_give() -> None:
    shown = edgekit("run")
    assert shown.returncode == 2
    assert "--data" in shown.stderr


def test_wrong_key_in_a_recipe(pictures: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[data]\npath = "{pictures}"\n[train]\nbatchsize = 8\n')
    shown = edgekit("run", recipe, "--out", tmp_path / "out")
    assert shown.returncode == 2
    assert "batchsize" in shown.stderr
    assert "batch_size" in shown.stderr
    assert not (tmp_path / "out").exists()


def test_unknown_strategy_names_the_known_ones(pictures: Path, tmp_path: Path) -> None:
    shown = edgekit("run", "--data", pictures, "--strategy", "sideways", "--out", tmp_path / "out")
    assert shown.returncode == 2
    assert "strategy: received the text 'sideways'" in shown.stderr
    assert 'one of "auto", "head", "progressive", "fixed"' in shown.stderr
    assert not (tmp_path / "out").exists()


def test_strategy_and_cut_that_contradict_each_other_are_refused(
    pictures: Path, tmp_path: Path
) -> None:
    start = ("run", "--data", pictures, "--out", tmp_path / "out")
    shown = edgekit(*start, "--strategy", "progressive", "--unfreeze-from", "block_13_expand")
    assert shown.returncode == 2
    assert "unfreeze_from 'block_13_expand' with strategy \"progressive\"" in shown.stderr
    shown = edgekit(*start, "--strategy", "fixed")
    assert shown.returncode == 2
    assert 'strategy "fixed" without unfreeze_from' in shown.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_cut_on_the_command_line_overrides_the_strategy_of_the_recipe(
    pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorflow")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[data]\npath = "{pictures}"\n'
        f'[model]\nalpha = 0.35\ninput_size_px = 48\nweights = "{WEIGHTS}"\n'
        '[train]\nstrategy = "progressive"\nhead_epochs = 1\nmin_steps = 0\n'
    )
    shown = edgekit(
        "run", recipe, "--unfreeze-from", "head", "--until", "train", "--out", tmp_path / "out"
    )
    assert shown.returncode == 0, shown.stderr
    assert "ships: head was asked for" in shown.stderr
    assert "trial" not in shown.stderr
    assert "final" not in shown.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fixed", "head", "auto", "progressive"])
def test_a_strategy_on_the_command_line_goes_with_the_cut_of_the_recipe(
    pictures: Path, tmp_path: Path, strategy: str
) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(
        f'[data]\npath = "{pictures}"\n[model]\nalpha = 0.35\ninput_size_px = 48\n'
        f'weights = "{WEIGHTS}"\n[train]\nunfreeze_from = "block_13_expand"\n'
    )
    # Without the cut "fixed" would be refused, and with it every other strategy.
    shown = edgekit("run", recipe, "--strategy", strategy, "--until", "data", "--out", out)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.slow
def test_random_weights_can_be_tried(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    shown = edgekit(
        "run", "--data", pictures, "--weights", "none", "--input-size", "32", "--alpha", "0.35",
        "--strategy", "head", "--until", "train", "--out", tmp_path / "out",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "ships: head was asked for" in shown.stderr


def test_missing_weight_file_is_found_before_the_pictures_are_decoded(
    pictures: Path, tmp_path: Path
) -> None:
    shown = edgekit("run", "--data", pictures, "--weights", "nowhere.h5", "--out", tmp_path / "out")
    assert shown.returncode == 2
    assert "nowhere.h5" in shown.stderr
    assert not (tmp_path / "out" / ".store" / "data").exists()


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shown = edgekit("run", "--data", tmp_path / "empty", "--out", tmp_path / "out")
    assert shown.returncode == 3
    assert "no class folder" in shown.stderr


def test_damaged_pictures_are_named_and_refused(pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "class-0" / "00.jpg").write_text("not an image")
    whole = next((data / "class-1").glob("*.png")).read_bytes()
    (data / "class-1" / "half.png").write_bytes(whole[: len(whole) // 2])
    shown = edgekit("run", "--data", data, "--weights", "none", "--out", tmp_path / "out")
    assert shown.returncode == 3
    assert "class-0/00.jpg: not a" in shown.stderr
    assert "class-1/half.png: truncated or damaged" in shown.stderr


def test_run_folder_inside_the_data_is_refused(pictures: Path) -> None:
    shown = edgekit("run", "--data", pictures, "--weights", "none", "--out", pictures / "run")
    assert shown.returncode == 2
    assert "lies inside the data folder" in shown.stderr


def test_init_writes_a_recipe_that_run_accepts(pictures: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    shown = edgekit("init", pictures, "--out", recipe)
    assert shown.returncode == 0
    assert re.search(r"^all 3 classes +42$", shown.stdout, re.M)
    assert edgekit("init", pictures, "--out", recipe).returncode == 2, "would overwrite"
    started = edgekit(
        "run", recipe, "--weights", "none", "--input-size", "32", "--until", "data",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    assert "3 classes, 30 train, 6 validation, 6 test" in started.stderr


def test_report_of_nothing(tmp_path: Path) -> None:
    shown = edgekit("report", tmp_path)
    assert shown.returncode == 2
    assert "report.json" in shown.stderr


@pytest.mark.parametrize("arguments", [("targets",), ("targets", "--json"), ("--help",)])
def test_what_cannot_be_printed_is_told(arguments: tuple[str, ...]) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "edgekit", *arguments],
            stdout=stream,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: No space left on device\n")
    assert "Traceback" not in done.stderr


def fill(disk: Path, room_bytes: int) -> None:
    """Leaves some bytes of a disk."""
    with (disk / "filler").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(disk).free - room_bytes)


def test_a_recipe_that_does_not_fit_is_told(pictures: Path, small_disk: Path) -> None:
    fill(small_disk, 0)
    recipe = small_disk / "recipe.toml"
    done = edgekit("init", pictures, "--out", recipe)
    assert done.returncode == 2
    assert f"error: {recipe}: No space left on device" in done.stderr
    assert "0.0 MB are free there" in done.stderr
    (small_disk / "filler").unlink()
    assert edgekit("init", pictures, "--out", recipe).returncode == 0


# Where the first, the second, ... of the temporary files does not fit.
@pytest.mark.slow
@pytest.mark.parametrize("room_bytes", [4096, 3 * 4096, None])
def test_temporary_files_that_do_not_fit_are_told(
    pictures: Path, small_disk: Path, tmp_path: Path, room_bytes: int | None
) -> None:
    if room_bytes is not None:
        fill(small_disk, room_bytes)
    labels = tmp_path / "labels.txt"
    labels.write_text("class-0\nclass-1\nclass-2\n")
    model = mean_tflite(tmp_path / "model.tflite")
    command = [sys.executable, "-m", "edgekit", "validate", model, "--data", pictures]
    done = subprocess.run(
        [*command, "--labels", labels, "--target", "host-litert"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(small_disk)},
    )
    assert "Traceback" not in done.stderr
    if room_bytes is None:
        assert done.returncode in (0, 4, 5), done.stderr
        assert list(small_disk.iterdir()) == []
        return
    assert done.returncode in (2, 7), done.stderr
    assert f"{small_disk}/edgekit-" in done.stderr
    assert "No space left on device" in done.stderr
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_an_interrupt_is_no_bug_at_any_moment_of_the_start(tmp_path: Path) -> None:
    """From the first line of edgekit's own code on; what Python does before is not edgekit's."""
    command = [sys.executable, "-X", "importtime", "-m", "edgekit", "targets"]
    for moment in ("edgekit.errors", "typer", "edgekit.folders", "edgekit.target"):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.rpartition("|")[2].strip() == moment:
                    process.send_signal(signal.SIGINT)
                    break
            said = process.stderr.read()
        assert process.returncode == 130, moment
        assert "Traceback" not in said


def test_a_command_to_type_is_quoted(pictures: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "it's my recipe.toml"
    done = edgekit("init", pictures, "--out", recipe)
    assert f"next: edgekit run {shlex.quote(str(recipe))}" in done.stdout
    empty = tmp_path / "an empty run"
    empty.mkdir()
    assert f"edgekit run --out '{empty}'" in edgekit("report", empty).stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--5", "train.unfreeze_from = '--5': the network has no such layer"),
        ("²", "train.unfreeze_from = '²': the network has no such layer"),
        ("\uff13", "train.unfreeze_from = '\uff13': the network has no such layer"),
        (" 3", "train.unfreeze_from = ' 3': the network has no such layer"),
        ("-1", "train.unfreeze_from: received -1"),
        ("9999999999", "a layer index from 0 to 155 (logits)"),
        ("9" * 5000, "the network has no such layer"),
        ("", "train.unfreeze_from: received the text ''"),
        ("block_13_expnd", "block_13_expand"),
    ],
)
def test_a_cut_that_is_none_is_refused_before_anything_is_done(
    pictures: Path, tmp_path: Path, given: str, said: str
) -> None:
    out = tmp_path / "out"
    done = edgekit("run", "--data", pictures, f"--unfreeze-from={given}", "--out", out)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not out.exists()


def test_a_cut_by_its_index_is_taken(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = edgekit("run", "--data", pictures, "--weights", "none", "--unfreeze-from=155",
                   "--until", "data", "--out", out)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("key", ["unfreeze_from", "unfreeze_until"])
@pytest.mark.parametrize("value", ['"²"', "156", '"block_13_pd"'])
def test_a_cut_of_a_recipe_that_is_none_is_refused_before_anything_is_done(
    pictures: Path, tmp_path: Path, key: str, value: str
) -> None:
    recipe = tmp_path / "recipe.toml"
    data = json.dumps(str(pictures))
    recipe.write_text(f"[data]\npath = {data}\n[train]\n{key} = {value}\n", encoding="utf-8")
    done = edgekit("run", recipe, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert f"train.{key} = " in done.stderr
    assert not (tmp_path / "out").exists()


def test_data_that_is_a_circle_of_links_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    done = edgekit(
        "run", "--data", tmp_path / "one", "--weights", "none", "--out", tmp_path / "out"
    )
    assert done.returncode == 3, done.stderr
    assert "does not exist" in done.stderr


def test_a_data_folder_whose_name_no_report_can_hold_is_refused_before_training(
    tmp_path: Path,
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xff"))
    draw_classes(folder)
    out = tmp_path / "out"
    done = edgekit("run", "--data", folder, "--weights", "none", "--until", "data", "--out", out)
    assert done.returncode == 2, done.stderr
    assert "p\\udcff: a name that is not valid Unicode" in done.stderr
    assert not out.exists()
    # Twin: any other name will do.
    named = folder.rename(tmp_path / "p\u00ff \u732b")
    done = edgekit("run", "--data", named, "--weights", "none", "--until", "data", "--out", out)
    assert done.returncode == 0, done.stderr
