"""A stage's version follows from the sources that it runs through, and from nothing else."""

import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tiny_network import CLASSES, QuantizeAsked, TrainAsked, Untyped, but

import edgekit
from edgekit.code_version import CARRIERS, _package, code_version, reached
from edgekit.pipeline import ENTRIES, STAGES, Stage

PACKAGE = Path(edgekit.__file__).parent
SOURCES = {
    "__init__.py": "",
    "stage.py": (
        '"""A stage."""\n'
        "import json\n"
        "import math as m\n"
        "from edgekit import tools\n"
        "from edgekit.parts import shared as common, unused\n"
        "from edgekit.store import Store\n"
        "LIMIT = 3\n"
        "OTHER = 4\n"
        "def go(spec):\n"
        '    """Goes."""\n'
        "    from edgekit.late import late\n"
        "    return Worker().work(common(LIMIT)) + tools.tool() + late() + m.pi, Store\n"
        "class Worker:\n"
        "    def work(self, value):\n"
        "        return value + _hidden()\n"
        "def _hidden():\n"
        "    return 1\n"
        "def elsewhere():\n"
        "    return OTHER, json, unused\n"
    ),
    "tools.py": "def tool():\n    return 1\ndef other():\n    return 2\n",
    "parts/__init__.py": "from edgekit.parts.inner import shared, unused\n",
    "parts/inner.py": "def shared(x):\n    return x\ndef unused():\n    return 1\n",
    "late.py": "REGISTRY = {}\nREGISTRY['a'] = 1\nprint('loose')\ndef late():\n    return start()\n"
    "def start():\n    return 'edgekit.child'\ndef never():\n    return 1\n",
    "child/__init__.py": "",
    "child/page.js": "1",
    "child/main.py": "def main():\n    return 1\n",
    "store.py": "class Store:\n    x = 1\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return written(tmp_path / "edgekit", {})


def written(folder: Path, changes: dict[str, tuple[str, str]]) -> Path:
    for name, text in SOURCES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        old, new = changes.get(name, ("", ""))
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1) if old else text)
    return folder


def version(package: Path) -> str:
    return code_version("edgekit.stage.go", package=package)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stage.py", "m.pi", "m.e"),
        ("stage.py", "LIMIT = 3", "LIMIT = 5"),
        ("stage.py", "return value + _hidden()", "return value - _hidden()"),
        ("stage.py", "    return 1\n", "    return 2\n"),
        ("stage.py", "import math as m", "import cmath as m"),
        ("tools.py", "return 1", "return 3"),
        ("parts/inner.py", "return x", "return -x"),
        ("parts/__init__.py", "inner import shared", "inner import unused as shared"),
        ("late.py", "return start()", "return start"),
        ("late.py", "print('loose')", "print('lost')"),
        ("late.py", "REGISTRY['a'] = 1", "REGISTRY['a'] = 2"),
        ("child/main.py", "return 1", "return 2"),
        ("child/page.js", "1", "2"),
    ],
)
def test_what_a_stage_runs_through_counts(
    package: Path, tmp_path: Path, name: str, old: str, new: str
) -> None:
    other = written(tmp_path / "other" / "edgekit", {name: (old, new)})
    assert version(other) != version(package)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stage.py", '"""Goes."""', '"""Goes on."""'),
        ("stage.py", '"""A stage."""', "# nothing"),
        ("stage.py", "def go(spec):", "def go(  spec  ):  # on"),
        ("stage.py", "OTHER = 4", "OTHER = 5"),
        ("stage.py", "return OTHER", "return -OTHER"),
        ("tools.py", "return 2", "return 3"),
        ("parts/inner.py", "return 1", "return 2"),
        ("late.py", "def never():\n    return 1", "def never():\n    return 2"),
        ("store.py", "x = 1", "x = 2"),
    ],
)
def test_the_twin_what_it_does_not_run_through_does_not(
    package: Path, tmp_path: Path, name: str, old: str, new: str
) -> None:
    other = written(tmp_path / "other" / "edgekit", {name: (old, new)})
    assert version(other) == version(package)


def test_a_new_file_beside_a_program_counts(package: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other" / "edgekit", {})
    (other / "child" / "more.py").write_text("")
    assert version(other) == version(package)  # it says nothing yet
    (other / "child" / "more.py").write_text("x = 1")
    # Both are read once by a process, so a third copy.
    third = tmp_path / "third" / "edgekit"
    shutil.copytree(other, third)
    assert version(third) != version(package)


def test_an_entry_that_is_not_there_is_an_error(package: Path) -> None:
    with pytest.raises(LookupError, match=r"edgekit\.stage\.gone"):
        code_version("edgekit.stage.gone", package=package)


def test_every_stage_has_its_version() -> None:
    assert ENTRIES.keys() == set(STAGES)
    versions = {code_version(*ENTRIES[stage]) for stage in STAGES}
    assert len(versions) == len(STAGES)
    everything = {stage: reached(*ENTRIES[stage]) for stage in STAGES}
    # The program that other processes and devices run, and the page of the browser, are in it.
    assert "*" in everything["validate"]["edgekit.runner"]
    assert "edgekit.runner.program" in everything["export"]
    assert "edgekit.devices.browser_page" in everything["validate"]
    assert "edgekit.devices.ssh" not in everything["train"]
    # What they share changes them all alike.
    assert all("edgekit.records" in found for found in everything.values())


# What a stage's result does not follow from, though the pipeline mentions it.
BESIDE = {"edgekit.network.native_log.load_tensorflow", "edgekit.data.corrections.has_actions"}
# The process that it starts counts in its place.
APART = {"edgekit.network.starting_weights.starting_weights",
         "edgekit.network.starting_weights.StartingWeights"}  # fmt: skip
STAGE_PACKAGES = ("data", "train", "quantize", "export", "validate", "network", "fitting", "prefix")


def mentioned(stage: str) -> set[str]:
    """Returns what the pipeline's own function for a stage mentions of the stages' packages."""
    known = _package(PACKAGE)
    waiting, seen, found = [f"_{stage}"], set(), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for index in known["edgekit.pipeline"].defining[name]:
            for module, used in known.mentioned("edgekit.pipeline", index):
                if module.split(".")[1] in STAGE_PACKAGES:
                    found.add(f"{module}.{used}")
                elif module == "edgekit.pipeline" and used.startswith("_") and used != "_Run":
                    waiting += [used] if used not in seen else []
    return found - BESIDE - APART


@pytest.mark.parametrize("stage", STAGES)
def test_what_the_pipeline_gives_a_stage_counts(stage: Stage) -> None:
    counted = reached(*ENTRIES[stage])
    asked = mentioned(stage)
    assert asked
    left = {dotted for dotted in asked if dotted.rpartition(".")[2] not in
            counted.get(dotted.rpartition(".")[0], set())}  # fmt: skip
    assert left == set()
    # Twin: without one of its entries something is missing.
    for entry in ENTRIES[stage]:
        fewer = reached(*(other for other in ENTRIES[stage] if other != entry))
        module, _, name = entry.rpartition(".")
        assert name not in fewer.get(module, set())


@contextmanager
def traced() -> Iterator[set[tuple[str, str]]]:
    """Gathers module and outermost name of every function of the package that is called."""
    called: set[tuple[str, str]] = set()
    inside = f"{PACKAGE}/"
    if "edgekit.fitting.cores" in sys.modules:
        from edgekit.fitting import cores

        cores._pool.cache_clear()  # of its threads only those that start from now on are seen

    def seen(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(inside):
            module = frame.f_globals["__name__"]
            called.add((module, code.co_qualname.partition(".")[0]))

    before = sys.getprofile()
    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        yield called
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]


def uncounted(called: set[tuple[str, str]], entries: tuple[str, ...]) -> set[tuple[str, str]]:
    """Returns what was called without counting, by a stage's own modules or those below them."""
    counted = reached(*entries)
    return {
        (module, name)
        for module, name in called
        if module not in CARRIERS
        and not name.startswith("<")
        and not {"*", name} & counted.get(module, set())
    }


@pytest.mark.slow
def test_what_training_and_quantization_call_counts(
    train_plan: TrainAsked,
    quantize_plan: QuantizeAsked,
    pictures: Untyped,
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorflow")
    from tiny_network import arrays_in, checkpoints, keeping, shelf

    from edgekit.quantize.candidates import quantize_model
    from edgekit.train.unfreezing import train

    def silent(*_told: Any) -> None:
        pass

    compared = but(
        train_plan, strategy="progressive", unfreeze_from=None, unfreeze_until="Conv_1",
        head_epochs=1, trial_epochs=1, epochs=1,
    )  # fmt: skip
    place = keeping(tmp_path / "store", silent)
    with traced() as called:
        record = train(
            *pictures, CLASSES, compared.model, compared.spec, tmp_path,
            weights=compared.weights, seed=compared.seed,
            keeping=place, say=silent, progress=silent,
        )  # fmt: skip
    assert ("edgekit.fitting.loop", "fit") in called
    assert ("edgekit.fitting.augment", "changed") in called  # in threads
    assert uncounted(called, ENTRIES["train"]) == set()
    # Twin: the other way round it is seen.
    assert ("edgekit.fitting.loop", "fit") in uncounted(called, ENTRIES["data"])

    plan = but(quantize_plan, qat_epochs=1, max_drop=0.0)
    ready, saved = shelf(tmp_path / "store"), checkpoints(tmp_path / "store")
    arrays = arrays_in(tmp_path / "weights.npz")
    with traced() as called:
        quantize_model(
            record, arrays, *pictures, plan.spec, plan.training, tmp_path, seed=plan.seed,
            checkpoints=saved, shelf=ready, say=silent, progress=silent,
        )  # fmt: skip
    assert ("edgekit.fitting.checkpoints", "Checkpoints") in called
    assert uncounted(called, ENTRIES["quantize"]) == set()


@pytest.mark.slow
def test_what_export_calls_counts(
    trained: Untyped, sources: Untyped, pictures: Untyped, tmp_path: Path
) -> None:
    from edgekit.export.files import STANDARD, Request, export_files

    requests = (*STANDARD, Request("onnx", "int8", "float32"), Request("ort", "int8", "float32"))
    with traced() as called:
        export_files(
            trained.record, sources, *pictures, CLASSES, requests, tmp_path,
            progress=lambda _what, _done, _total: None,
        )  # fmt: skip
    assert ("edgekit.export.tflite", "write") in called
    assert uncounted(called, ENTRIES["export"]) == set()


def test_what_the_data_stage_calls_counts(tmp_path: Path, contract: Untyped) -> None:
    from edgekit.data.decode import decode
    from edgekit.data.scan import scan
    from edgekit.demo.pictures import make_pictures
    from edgekit.recipe import DataSpec

    make_pictures(
        tmp_path / "in", train_per_class=3, validation_per_class=1, test_per_class=1, size_px=32,
        workers=1,
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    with traced() as called:
        scanned = scan(tmp_path / "in")
        spec = DataSpec(path=tmp_path / "in", min_images_per_class=1)
        decode(scanned, contract, spec, tmp_path / "out", seed=1, progress=lambda _d, _t: None)
    assert ("edgekit.data.split", "assign") in called
    assert uncounted(called, ENTRIES["data"]) == set()
