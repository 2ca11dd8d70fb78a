"""The import graph of the real package keeps its layers; the same checker reports a made-up breach.

The command line must answer `--help` at once, so heavy libraries are loaded only where they work.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import edgekit

PACKAGE = Path(edgekit.__file__).parent

_SYSTEM = "folders processes"
_BASE = f"errors limits spec records code_version spreadsheet {_SYSTEM}"
_ASKED = "recipe target"
_MACHINES = "runner runtimes devices estimate"
_NETWORKS = "network fitting prefix"
_STAGES = "data train quantize export validate package"
_UNTIL_STORE = f"root {_BASE} {_ASKED} store"
_UNTIL_STAGES = f"{_UNTIL_STORE} {_MACHINES} {_NETWORKS}"
_PIPELINES = "pipeline foreign packaging predict"
_UNTIL_PIPELINES = f"{_UNTIL_STAGES} {_STAGES} report"

# What each part may import, besides itself. `root` is edgekit/__init__.py.
ALLOWED = {
    "root": "",
    "errors": "",
    "code_version": "",
    "folders": "",
    "limits": "",
    "spreadsheet": "",
    "processes": "errors",
    "spec": "limits errors",
    "records": "limits errors spec",
    "recipe": _BASE,
    "target": _BASE,
    "store": f"{_BASE} {_ASKED}",
    "runner": "",
    "runtimes": f"{_BASE} {_ASKED}",
    "devices": f"{_BASE} {_ASKED} runner runtimes",
    "estimate": f"{_BASE} {_ASKED} runner runtimes devices",
    # Starting weights are read in a child of `devices`.
    "network": f"{_BASE} {_ASKED} runner runtimes devices",
    "fitting": f"{_BASE} {_ASKED} store network",
    "prefix": f"{_BASE} {_ASKED} store network fitting",
    # Shards of pictures are read in a child of `devices`.
    "data": f"{_UNTIL_STORE} runner runtimes devices",
    "train": f"{_UNTIL_STORE} {_NETWORKS}",
    "quantize": f"{_UNTIL_STORE} {_NETWORKS}",
    "export": f"{_UNTIL_STORE} {_NETWORKS} {_MACHINES}",
    "validate": f"{_UNTIL_STORE} {_MACHINES}",
    "package": f"{_UNTIL_STORE} {_MACHINES}",
    "report": "errors records folders store",
    "pipeline": _UNTIL_PIPELINES,
    "foreign": _UNTIL_PIPELINES,
    "packaging": f"{_UNTIL_PIPELINES} pipeline",
    "predict": f"{_UNTIL_PIPELINES} pipeline",
    "demo": f"{_UNTIL_PIPELINES} {_PIPELINES}",
    "console": f"{_UNTIL_PIPELINES} {_PIPELINES} demo",
    "cli": f"{_UNTIL_PIPELINES} {_PIPELINES} demo console",
    "__main__": "root cli folders",
}

_TRAINING = ("network", "fitting", "prefix", "train", "quantize", "export", "demo.pretrain")
# Where, by the beginning of the module's name, each heavy library may be imported at all.
CONFINED = {
    "keras": ("export",),
    "tensorflow": (*_TRAINING, "data.packed"),
    "tf_keras": _TRAINING,
    "tensorflow_model_optimization": ("quantize",),
}
NOT_AT_START = (
    "tensorflow",
    "keras",
    "tf_keras",
    "tensorflow_model_optimization",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "ai_edge_litert",
    "h5py",
    "pyarrow",
    "scipy",
    "matplotlib",
)
VAGUE = ("utils", "util", "helpers", "helper", "manager", "managers", "common", "misc")


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands and the module or name it asks for, in full."""

    module: str
    line: int
    asked: str


def modules(package: Path) -> dict[str, Path]:
    """Returns the files of a package by dotted name, a folder standing for its __init__.py."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> list[Import]:
    """Returns every import in a package, those inside functions and for type checkers too."""
    found = []
    for module, path in modules(package).items():
        base = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found += [Import(module, node.lineno, asked) for asked in _asked(node, base)]
    return found


def _asked(node: ast.AST, base: str) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (name.name for name in names)
        case ast.ImportFrom(module=source, names=names, level=level):
            above = base.split(".")[: len(base.split(".")) - level + 1] if level else []
            full = ".".join([*above, *([source] if source else [])])
            yield from (f"{full}.{name.name}" for name in names)
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(value=str(asked)), *_],
        ):
            yield asked


def edges(package: Path) -> dict[str, dict[str, int]]:
    """Returns, for each module, the modules of the package it imports and the line."""
    known = modules(package)
    graph: dict[str, dict[str, int]] = {module: {} for module in known}
    for found in imports(package):
        asked = found.asked
        while asked and asked not in known:
            asked = asked.rpartition(".")[0]
        if asked and asked != found.module:
            graph[found.module].setdefault(asked, found.line)
    return graph


def part(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "root"


def breaches(package: Path) -> list[str]:
    """Returns one line for each import, cycle and name that the rules of this page forbid."""
    found = [
        f"{module}:{line} may not import {asked}"
        for module, targets in edges(package).items()
        for asked, line in targets.items()
        if part(asked) not in {part(module), *ALLOWED.get(part(module), "").split()}
    ]
    strangers = [module for module in modules(package) if part(module) not in ALLOWED]
    found += [f"{module}: no layer is written down for it" for module in strangers]
    for item in imports(package):
        library, inside = item.asked.split(".")[0], item.module.partition(".")[2]
        places = CONFINED.get(library)
        if places is not None and not any(f"{inside}.".startswith(f"{p}.") for p in places):
            found.append(f"{item.module}:{item.line} may not import {library}")
    found += [f"cycle: {' -> '.join(cycle)}" for cycle in _cycles(edges(package))]
    found += [f"{m}: a vague name" for m in modules(package) if set(m.split(".")) & set(VAGUE)]
    return found


def _cycles(graph: dict[str, dict[str, int]]) -> list[list[str]]:
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for asked in graph[module]:
                visit(asked, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return found


def test_the_package_keeps_the_rules() -> None:
    assert breaches(PACKAGE) == []


def test_the_rules_cover_what_exists() -> None:
    graph = edges(PACKAGE)
    assert {part(module) for module in graph} == ALLOWED.keys()
    # The graph is really read: known imports at the top, inside a function, of a submodule.
    assert "edgekit.errors" in graph["edgekit.store"]
    assert "edgekit.data.decode" in graph["edgekit.pipeline"]
    assert "edgekit.devices.measure" in graph["edgekit.export.files"]
    libraries = {found.asked.split(".")[0] for found in imports(PACKAGE)}
    assert CONFINED.keys() <= libraries


def test_the_layers_are_an_order() -> None:
    """The table itself allows no way around: what is below never reaches what is above."""
    graph = {name: dict.fromkeys(allowed.split(), 0) for name, allowed in ALLOWED.items()}
    assert _cycles(graph) == []
    stages = set(_STAGES.split())
    for stage in stages:
        assert not stages & graph[stage].keys()


BREACHES = [
    ("errors.py", "from edgekit.spec import load", "edgekit.errors:1 may not import edgekit.spec"),
    ("spec.py", "import edgekit.recipe", "edgekit.spec:1 may not import edgekit.recipe"),
    ("records.py", "from edgekit import store", "edgekit.records:1 may not import edgekit.store"),
    ("store.py", "from . import pipeline", "edgekit.store:1 may not import edgekit.pipeline"),
    (
        "train/loop.py",
        "def late():\n    from edgekit.export.files import write",
        "edgekit.train.loop:2 may not import edgekit.export.files",
    ),
    (
        "train/loop.py",
        "from ..export import files",
        "edgekit.train.loop:1 may not import edgekit.export.files",
    ),
    (
        "export/files.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from edgekit.validate import x",
        "edgekit.export.files:3 may not import edgekit.validate",
    ),
    (
        "quantize/qat.py",
        "from edgekit.devices import local",
        "edgekit.quantize.qat:1 may not import edgekit.devices",
    ),
    (
        "validate/judging.py",
        "from edgekit.network import graph",
        "edgekit.validate.judging:1 may not import edgekit.network",
    ),
    (
        "report/page.py",
        "import edgekit.target",
        "edgekit.report.page:1 may not import edgekit.target",
    ),
    (
        "pipeline.py",
        "from edgekit import console",
        "edgekit.pipeline:1 may not import edgekit.console",
    ),
    (
        "pipeline.py",
        "import importlib\nimportlib.import_module('edgekit.cli')",
        "edgekit.pipeline:2 may not import edgekit.cli",
    ),
    ("data/scan.py", "import tensorflow as tf", "edgekit.data.scan:1 may not import tensorflow"),
    (
        "demo/pictures.py",
        "def late():\n    from tf_keras.layers import Dense",
        "edgekit.demo.pictures:2 may not import tf_keras",
    ),
    (
        "export/files.py",
        "import tensorflow_model_optimization",
        "edgekit.export.files:1 may not import tensorflow_model_optimization",
    ),
    (
        "data/split.py",
        "from edgekit.data import scan",
        "cycle: edgekit.data.scan -> edgekit.data.split -> edgekit.data.scan",
    ),
    ("data/utils.py", "", "edgekit.data.utils: a vague name"),
    ("parcel.py", "", "edgekit.parcel: no layer is written down for it"),
]


@pytest.mark.parametrize(("name", "text", "said"), BREACHES)
def test_the_twin_a_breach_is_reported(tmp_path: Path, name: str, text: str, said: str) -> None:
    package = tmp_path / "edgekit"
    for folder in ["", *_STAGES.split(), *_MACHINES.split(), *_NETWORKS.split(), "demo", "report"]:
        (package / folder).mkdir()
        (package / folder / "__init__.py").touch()
    good = {
        "errors.py": "",
        "spec.py": "from edgekit.errors import SpecError",
        "recipe.py": "from edgekit import spec",
        "store.py": "from . import errors",
        "console.py": "import edgekit.errors",
        "cli.py": "from edgekit import console, pipeline",
        "pipeline.py": "def late():\n    from edgekit.data.scan import scan\n    import scipy",
        "target.py": "",
        "data/scan.py": "from edgekit.data.split import SPLITS" if name == "data/split.py" else "",
        "data/split.py": "",
        "export/files.py": "import tensorflow as tf",
    }
    for path, content in good.items():
        (package / path).write_text(content)
    assert breaches(package) == []
    (package / name).write_text(text)
    found = breaches(package)
    assert said in found
    assert all(line.startswith("cycle: ") for line in found if line != said)


LOADED = """
import sys
{statement}
print(*sorted(name for name in sys.modules if "." not in name))
"""


def loaded_by(statement: str) -> set[str]:
    command = [sys.executable, "-c", LOADED.format(statement=statement)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import edgekit",
        "import edgekit.cli",
        "import edgekit.pipeline",
        "import edgekit.data.decode",
        "from edgekit.cli import execute; execute(['--help'])",
        "from edgekit.cli import execute; execute(['targets'])",
    ],
)
def test_nothing_heavy_is_loaded_at_the_start(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "edgekit" in loaded
    assert not loaded & set(NOT_AT_START)


def test_the_twin_a_heavy_import_is_seen() -> None:
    heavy = loaded_by("import edgekit.cli, scipy, onnx")
    assert {"edgekit", "scipy", "onnx"} == heavy & {"edgekit", *NOT_AT_START}
