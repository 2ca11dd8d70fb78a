"""The web kind of package: a folder shaped as an npm package, and a page that checks it.

Package layer. The sources are the same for every model (`templates/web`); what is about this one is
data beside them: `contract.json` and `labels.json`.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from edgekit.devices.browser_page.packages import versions
from edgekit.errors import SpecError
from edgekit.package.contents import Contents
from edgekit.package.goldens import tolerance_share
from edgekit.records import Format

FOLDER = "web"
_TEMPLATES = resources.files(__package__) / "templates" / "web"
_SOURCES = ("index.d.ts", "checks.js", "selfcheck.css", "selfcheck.js")


@dataclass(frozen=True)
class _Runtime:
    """What runs a format in browsers.

    Args:
        name: Its name in targets and measurements.
        source: The template that calls it.
        packages: The npm packages that it needs; the first is the one that is imported.
        modules: What is imported, and the file below `node_modules` that a page without a bundler
            gets for it.
        folder: Where its .wasm files are, below `node_modules`.
    """

    name: str
    source: str
    packages: tuple[str, ...]
    modules: dict[str, str]
    folder: str


_ONNX = _Runtime(
    name="onnxruntime-web",
    source="runtime_onnx.js",
    packages=("onnxruntime-web",),
    modules={"onnxruntime-web/wasm": "onnxruntime-web/dist/ort.wasm.min.mjs"},
    folder="onnxruntime-web/dist/",
)
_LITERT = _Runtime(
    name="litert-js",
    source="runtime_litert.js",
    packages=("@litertjs/core", "@litertjs/wasm-utils"),
    modules={
        "@litertjs/core": "@litertjs/core/dist/index.js",
        "@litertjs/wasm-utils": "@litertjs/wasm-utils/dist/index.js",
    },
    folder="@litertjs/core/wasm/",
)
_RUNTIMES: dict[Format, _Runtime] = {"onnx": _ONNX, "ort": _ONNX, "tflite": _LITERT}


def files(contents: Contents) -> dict[str, bytes]:
    """Returns what the web kind adds to a bundle.

    `web/selfcheck.html` reads the bundle's `goldens/` beside its folder.

    Args:
        contents: What the package is made from.

    Raises:
        SpecError: If the file has other than float32 input and output, or a batch that browsers'
            runtimes do not take.
    """
    _refuse_unrunnable(contents)
    runtime = _RUNTIMES[contents.artifact.format]
    model = f"model.{contents.artifact.format}"
    made = {name: _template(name) for name in _SOURCES}
    made["runtime.js"] = _template(runtime.source)
    made["index.js"] = _filled(_template("index.js"), {"MODEL": model})
    made["selfcheck.html"] = _page(runtime)
    made["README.md"] = _readme(contents, runtime)
    made["package.json"] = _json(_manifest(contents, runtime, model))
    made["contract.json"] = _json(_contract(contents, runtime))
    made["labels.json"] = _json(list(contents.class_names))
    encoded = {f"{FOLDER}/{name}": text.encode() for name, text in made.items()}
    return {**encoded, f"{FOLDER}/{model}": contents.model}


def _refuse_unrunnable(contents: Contents) -> None:
    """Refuses a file that a page could not run.

    Raises:
        SpecError: If it is one.
    """
    name = contents.artifact.path
    ends = (contents.input.dtype, contents.output.dtype)
    if ends != ("float32", "float32"):
        raise SpecError(
            f"{name}: {ends[0]} input and {ends[1]} output for a web package",
            "float32 input and output, which is what browsers' runtimes take",
            'set artifact.io = "float32" in the target; the arithmetic inside may stay int8',
        )
    batch = contents.input.shape[0]
    free = batch == -1 and _RUNTIMES[contents.artifact.format] is _ONNX
    if batch != 1 and not free:
        raise SpecError(
            f"{name}: a {'free batch' if batch == -1 else f'batch of {batch}'} for a web package",
            "a batch of 1: a page classifies one picture at a time, and LiteRT.js runs no dynamic "
            "shapes",
            'set artifact.batch = "one" in the target',
        )


def _manifest(contents: Contents, runtime: _Runtime, model: str) -> dict[str, Any]:
    """Returns package.json."""
    shipped = ["index.js", "index.d.ts", "runtime.js", "contract.json", "labels.json", model]
    return {
        "name": contents.name,
        # Another model is another version; letters in front keep digits from being a number.
        "version": f"0.0.0-sha256.h{contents.artifact.sha256[:12]}",
        "description": contents.title,
        "license": contents.licence,
        # Publishing is for its owner to decide.
        "private": True,
        "type": "module",
        "types": "./index.d.ts",
        "exports": {
            ".": {"types": "./index.d.ts", "default": "./index.js"},
            f"./{model}": f"./{model}",
        },
        "files": shipped,
        "sideEffects": False,
        "peerDependencies": {name: versions()[name] for name in runtime.packages},
    }


def _contract(contents: Contents, runtime: _Runtime) -> dict[str, Any]:
    """Returns what the sources need to know about this model."""
    preprocess = contents.preprocess
    package = runtime.packages[0]
    return {
        "schema_version": 1,
        "title": contents.title,
        "sha256": hashlib.sha256(contents.model).hexdigest(),
        "runtime": {"name": runtime.name, "package": package, "version": versions()[package]},
        "threads": contents.target.runtime.threads,
        "tolerance_share": tolerance_share(contents),
        "score_threshold": contents.score_threshold,
        "height": preprocess.height_px,
        "width": preprocess.width_px,
        "crop": preprocess.crop,
        "fill": preprocess.ground,
        "resize": preprocess.resize,
        "channels": preprocess.channels,
        "scale": preprocess.scale,
        "offset": preprocess.offset,
    }


def _page(runtime: _Runtime) -> str:
    """Returns the page, whose policy lets no script run but its own."""
    modules = {name: f"./node_modules/{path}" for name, path in runtime.modules.items()}
    imports = json.dumps({"imports": modules}, sort_keys=True)
    digest = base64.b64encode(hashlib.sha256(imports.encode()).digest()).decode()
    values = {
        "IMPORT_MAP": imports,
        "IMPORT_MAP_HASH": f"sha256-{digest}",
        "RUNTIME_BASE": f"./node_modules/{runtime.folder}",
    }
    return _filled(_template("selfcheck.html"), values)


def _readme(contents: Contents, runtime: _Runtime) -> str:
    package = runtime.packages[0]
    pinned = [f"{name}@{versions()[name]}" for name in runtime.packages]
    values = {
        "PACKAGE": contents.name,
        "SHA256": hashlib.sha256(contents.model).hexdigest(),
        "CLASSES": str(len(contents.class_names)),
        "RUNTIME": package,
        "VERSION": versions()[package],
        "INSTALL": " ".join(pinned),
        "WASM_FOLDER": runtime.folder,
        "SPECIFIERS": " and ".join(f"`{name}`" for name in runtime.modules),
    }
    return _filled(_template("README.md"), values)


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"@@{name}@@", value)
    return text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
