"""The program in every bundle: run as its users run it, on whole bundles and on spoilt ones."""

import hashlib
import importlib.util
import io
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tiny_models import SIZE, classifier, mean_tflite, opened, save_onnx

import edgekit.package
from edgekit import limits
from edgekit.data import picture as reference
from edgekit.package import contents
from edgekit.package.metadata import write_metadata
from edgekit.package.signing import SIGNATURE_NAME
from edgekit.packaging import MOST_PICTURES
from edgekit.records import Check, Preprocess, Status, input_codes
from edgekit.target import PackageKind
from edgekit.validate.verdict import combine

SCRIPT = Path(edgekit.package.__file__).parent / "templates" / "verify.py"
LABELS = ["red \u202eder", "green's <b>\u2028", 'blue "\\']
RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)
SYNTHETIC = ("all_zero", "all_255", "gradient")
Change = Callable[[Path], None]


def painted(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    """A picture with an upper and a lower half."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16], pixels[16:] = top, bottom
    return Image.fromarray(pixels)


def encoded(image: Image.Image, turn: int = 1, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif)
    return stream.getvalue()


def speckled() -> Image.Image:
    """Blue, but red where "nearest" looks."""
    pixels = np.full((32, 32, 3), BLUE, np.uint8)
    pixels[4::8, 4::8] = RED
    return Image.fromarray(pixels)


def pictures() -> dict[str, bytes]:
    """Each gets its answer only if it is prepared as the contract says."""
    upside_down = painted(GREEN, RED).transpose(Image.Transpose.ROTATE_180)
    return {
        "plain.png": encoded(painted(RED, GREEN)),
        "turned.png": encoded(upside_down, turn=3),
        "speckled.png": encoded(speckled()),
        "photo.jpg": encoded(painted(BLUE, RED).resize((400, 300)), kind="JPEG"),
    }


def top_half_onnx(path: Path) -> Path:
    """Writes a float classifier that answers the brightest channel of the upper half."""
    import onnx
    from onnx import helper, numpy_helper

    weights = np.zeros((SIZE, SIZE, 3, 3), np.float32)
    weights[: SIZE // 2, :, range(3), range(3)] = 1
    shape = np.array([1, SIZE * SIZE * 3], np.int64)
    constants = [
        numpy_helper.from_array(weights.reshape(-1, 3), "weights"),
        numpy_helper.from_array(shape, "shape"),
    ]
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["scores"]),
    ]
    save_onnx(onnx, classifier(nodes, constants), path)
    return path


def sealed(bundle: Path) -> None:
    """Writes all that tells of the other files anew, as whoever changes a file on purpose would."""
    path = bundle / "goldens" / "goldens.json"
    about = json.loads(path.read_text()) if path.exists() else {}
    (model,) = sorted(path.name for path in bundle.glob("model.*") if path.suffix != ".sig")[:1]
    digest = digest_of(bundle / model)
    name, zeros, target = "tiny", "0" * 64, "board"
    facts = {"recipe_sha256": zeros, "data_digest": zeros, "edgekit": "1", "weights_sha256": zeros}
    (bundle / "MODEL_CARD.md").write_text(
        f"MobileNetV2 (tiny): `{model}`, SHA-256 `{digest}`.\n\n"
        f"Judged for the target {target}: **PASS** (every budget).\n\n"
        f"## Verdict for {target}: PASS\n\n"
        "| check | status | measured | budget | why |\n| --- | --- | --- | --- | --- |\n"
        "| size | PASS | 9 bytes | 9 bytes | - |\n\n"
    )
    properties = {"file": model, "format": model[6:], "variant": "float32", "verdict": "PASS",
                  "target": target}  # fmt: skip
    component = {
        "name": name,
        "version": digest[:12],
        "description": name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"expression": "other"}],
        "properties": [{"name": f"edgekit:{k}", "value": v} for k, v in properties.items()],
    }
    told = {"recipe:sha256": zeros, **facts}
    parts = {
        "metadata": {"component": component},
        "properties": [{"name": f"edgekit:{k}", "value": v} for k, v in told.items()],
    }
    (bundle / "sbom.cdx.json").write_text(json.dumps(parts))
    (bundle / "linux" / "python").mkdir(parents=True, exist_ok=True)
    (bundle / "linux" / "python" / "selfcheck.py").touch()
    (bundle / "provenance.json").unlink(missing_ok=True)
    made_of = {"data": "edgekit-dataset-sha256", "recipe": "edgekit-recipe-sha256",
               "weights": "sha256"}  # fmt: skip
    build = {
        "externalParameters": {
            "package": {"name": name, "title": name, "licence": "other"},
            "target": {"name": target},
        },
        "resolvedDependencies": [{"name": n, "digest": {k: zeros}} for n, k in made_of.items()],
    }
    statement = {
        "subject": [
            {"name": path, "digest": {"sha256": entry["sha256"]}}
            for path, entry in listed(bundle).items()
        ],
        "predicate": {
            "buildDefinition": build,
            "runDetails": {"builder": {"version": {"edgekit": "1"}}},
        },
    }
    (bundle / "provenance.json").write_text(json.dumps(statement))
    about = about if isinstance(about, dict) else {}
    output = about.get("output", {})
    goldens = about.get("goldens")
    manifest = {
        "schema_version": 1,
        "edgekit_version": "1",
        "kind": "linux",
        "name": name,
        "title": name,
        "licence": "other",
        "model": model,
        "model_sha256": digest,
        "judged_sha256": digest,
        "preprocess": about.get("preprocess"),
        "input": {"name": "image", **(about.get("input") or {})},
        "output": {
            "name": "scores",
            "shape": [1, output.get("classes")],
            **{key: output.get(key) for key in ("dtype", "scale", "zero_point")},
        },
        "class_names": about.get("labels"),
        "score_threshold": about.get("score_threshold"),
        "verdict": {
            "target": target,
            "artifact_path": model,
            "artifact_sha256": digest,
            "checks": [{"name": "size", "status": "PASS"}],
            "status": "PASS",
        },
        "goldens": len(goldens) if isinstance(goldens, list) else 0,
        "images": bool(isinstance(goldens, list) and any(g["picture"] for g in goldens)),
        "facts": facts,
        "files": listed(bundle),
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def listed(bundle: Path) -> dict[str, dict[str, Any]]:
    return {
        path.relative_to(bundle).as_posix(): {
            "sha256": digest_of(path),
            "size_bytes": path.stat().st_size,
        }
        for path in sorted(bundle.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "model.sig")
    }


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_bundle(bundle: Path, model: Path, runtime: str, dtype: str, scaled: bool) -> Path:
    """Writes a bundle with the goldens of a model, prepared by edgekit itself."""
    contract = Preprocess(height_px=SIZE, width_px=SIZE)
    scale, zero = (1 / 128, {"uint8": 128, "int8": 0}[dtype]) if scaled else (None, None)
    codes = input_codes(contract, dtype, scale, zero)
    run = opened(model, runtime).run
    (bundle / "goldens" / "images").mkdir(parents=True)
    ramp = np.linspace(0, 255, SIZE).astype(np.uint8)
    inputs: list[npt.NDArray[np.generic]] = [
        np.ascontiguousarray(np.broadcast_to(row, (1, SIZE, SIZE, 3)))
        for row in (codes[0], codes[255], codes[ramp, np.arange(3)[:, None]].T[:, :])
    ]
    names: list[str | None] = [None, None, None]
    for name, content in pictures().items():
        (bundle / "goldens" / "images" / name).write_bytes(content)
        image = reference.pixels(content, contract)
        inputs.append(codes[image, np.arange(3)][None])
        names.append(name)
    outputs = [run(tensor) for tensor in inputs]
    goldens = [
        {
            "name": SYNTHETIC[index] if name is None else name.partition(".")[0],
            "picture": name,
            "label": None if name is None else 0,
            "answer": int(out.argmax()),
            "accepted": None,
            "input_offset": index * into.nbytes,
            "input_bytes": into.nbytes,
            "output_offset": index * out.nbytes,
            "output_bytes": out.nbytes,
        }
        for index, (name, into, out) in enumerate(zip(names, inputs, outputs, strict=True))
    ]
    about = {
        "schema_version": 1,
        "input": {
            "dtype": dtype,
            "shape": [1, SIZE, SIZE, 3],
            "scale": scale,
            "zero_point": zero,
        },
        "output": {"dtype": outputs[0].dtype.name, "classes": 3, "scale": None, "zero_point": None},
        "score_threshold": None,
        "tolerance_steps": 1,
        "tolerance_share": 1e-4,
        "preprocess": contract.model_dump(mode="json"),
        "labels": LABELS,
        "goldens": goldens,
    }
    (bundle / "goldens" / "goldens.json").write_text(json.dumps(about))
    (bundle / "goldens" / "inputs.bin").write_bytes(b"".join(t.tobytes() for t in inputs))
    (bundle / "goldens" / "outputs.bin").write_bytes(b"".join(o.tobytes() for o in outputs))
    (bundle / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (bundle / f"model{model.suffix}").write_bytes(model.read_bytes())
    (bundle / "verify.py").write_bytes(SCRIPT.read_bytes())
    (bundle / "model.sig").write_text("a signature is not in the manifest")
    sealed(bundle)
    return bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = top_half_onnx(tmp_path / "half.onnx")
    return make_bundle(tmp_path / "bundle", model, "onnxruntime", "float32", scaled=False)


@pytest.fixture(params=["uint8", "int8", "float32"])
def lite_bundle(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    model = mean_tflite(tmp_path / "mean.tflite", request.param)
    scaled = request.param != "float32"
    return make_bundle(tmp_path / "bundle", model, "litert", request.param, scaled)


def run(
    bundle: Path, *options: str, hide: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs the program as it lies in the bundle, from elsewhere."""
    command = [sys.executable, str(bundle / "verify.py"), *options]
    if hide:
        blocked = f"import sys; sys.modules.update(dict.fromkeys({hide!r}))"
        start = f"{blocked}; import runpy; sys.argv = sys.argv[1:]; "
        start += "runpy.run_path(sys.argv[0], run_name='__main__')"
        command = [sys.executable, "-c", start, *command[1:]]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
        cwd="/",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def result(bundle: Path, code: int, **more: Any) -> dict[str, Any]:
    done = run(bundle, "--json", **more)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["passed"] == (code == 0)
    return found


def statuses(found: dict[str, Any]) -> list[str]:
    parts = ("files", "labels", "claims", "level_a", "level_b")
    assert found.keys() == {"schema_version", "passed", *parts, "signature"}
    return [found[part]["status"] for part in parts]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# ---- whole bundles


def test_a_whole_bundle_passes(bundle: Path) -> None:
    found = result(bundle, 0)
    assert statuses(found) == ["PASS"] * 5
    assert found["files"]["checked"] == 14
    assert found["level_a"]["checked"] == 7
    assert found["level_b"]["checked"] == 4
    # The pictures were prepared to the very bits of edgekit's own preparation.
    assert "0 of 4 tensors differ" in found["level_b"]["text"]
    done = run(bundle)
    assert done.returncode == 0
    assert [line[:9].strip() for line in done.stdout.splitlines()] == [
        "files", "labels", "claims", "level A", "level B", "signature",
    ]  # fmt: skip


def test_a_whole_tflite_bundle_passes(lite_bundle: Path) -> None:
    found = result(lite_bundle, 0)
    assert statuses(found) == ["PASS"] * 5
    assert "0 of 4 tensors differ" in found["level_b"]["text"]


def test_another_folder_can_be_named(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(bundle)], capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("hide", "level_a", "level_b"),
    [
        (("numpy",), "pip install numpy", "level A is first"),
        (("onnxruntime",), "pip install onnxruntime", "level A is first"),
        (("PIL",), "7 goldens with onnxruntime", "pip install pillow"),
    ],
)
def test_what_is_not_installed_is_said(
    bundle: Path, hide: tuple[str, ...], level_a: str, level_b: str
) -> None:
    found = result(bundle, 0, hide=hide)
    assert statuses(found)[:3] == ["PASS"] * 3
    assert level_a in found["level_a"]["text"]
    assert found["level_b"]["status"] == "NOT RUN"
    assert level_b in found["level_b"]["text"]
    # Without them damage is still found.
    flip(bundle / "model.onnx")
    assert statuses(result(bundle, 6, hide=hide))[0] == "FAIL"


def test_a_bundle_without_pictures(bundle: Path) -> None:
    about = goldens_of(bundle)
    for golden in about["goldens"]:
        golden["picture"] = None
    shutil.rmtree(bundle / "goldens" / "images")
    rewrite(bundle, about)
    found = result(bundle, 0)
    assert found["level_a"]["status"] == "PASS"
    assert found["level_b"]["text"] == "the bundle ships no pictures"


# ---- files


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def _linked(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


FILE_FAULTS: list[tuple[Change, str, str, str]] = [
    (lambda b: flip(b / "model.onnx"), "changed", "model.onnx", "is not the file that was packed"),
    (lambda b: flip(b / "verify.py", 400), "changed", "verify.py", "is not the file"),
    (
        lambda b: (b / "labels.txt").write_text("x" * 10**6) and None,
        "changed",
        "labels.txt",
        "is not",
    ),
    (lambda b: (b / "labels.txt").unlink(), "missing", "labels.txt", "and not here"),
    (lambda b: (b / "new").mkdir() or (b / "new/x.so").touch(), "extra", "new/x.so", "remove it"),
    (lambda b: (b / "goldens/a.sig").touch(), "extra", "goldens/a.sig", "remove it"),
    (lambda b: (b / "x.sig").touch(), "extra", "x.sig", "remove it"),
    (
        lambda b: (b / "model.sig").write_bytes(bytes(5 * 1024**2)) and None,
        "changed",
        "model.sig",
        "it is no signature",
    ),
    (lambda b: _linked(b / "labels.txt", "/etc/hostname"), "special", "labels.txt", "symbolic"),
    (lambda b: _linked(b / "more", "/etc"), "special", "more", "is a symbolic link"),
    (lambda b: os.mkfifo(b / "pipe"), "special", "pipe", "is a special file"),
    (lambda b: (b / "\x1b[2J\n").touch(), "extra", "\x1b[2J\n", "?[2J? is here"),
    (lambda b: Path(os.fsdecode(os.fsencode(b) + b"/\xff")).touch(), "extra", "\udcff", "? is"),
]


@pytest.mark.parametrize(("change", "kind", "path", "said"), FILE_FAULTS)
def test_a_file_that_is_not_as_packed(
    bundle: Path, change: Change, kind: str, path: str, said: str
) -> None:
    change(bundle)
    found = result(bundle, 6)
    assert statuses(found) == ["FAIL", *["NOT RUN"] * 4]
    (problem,) = found["files"]["problems"]
    assert (problem["kind"], problem["path"]) == (kind, path)
    assert said in problem["text"]
    done = run(bundle)
    assert done.returncode == 6
    assert f"  {kind}: " in done.stdout
    assert "\x1b" not in done.stdout


def test_every_wrong_file_is_named(bundle: Path) -> None:
    flip(bundle / "model.onnx")
    (bundle / "labels.txt").unlink()
    (bundle / "new").touch()
    kinds = {problem["kind"] for problem in result(bundle, 6)["files"]["problems"]}
    assert kinds == {"changed", "missing", "extra"}


def _manifest(text: str) -> Change:
    return lambda bundle: (bundle / "manifest.json").write_text(text) and None


def _listing(path: str, **wanted: Any) -> Change:
    return _manifest(json.dumps({"schema_version": 1, "files": {path: wanted}}))


ZEROS = "0" * 64
MANIFEST_FAULTS = [
    (lambda b: (b / "manifest.json").unlink(), "has no manifest.json that can be read"),
    (lambda b: _linked(b / "manifest.json", "/etc/hostname"), "is a symbolic link"),
    (_manifest("{"), "is damaged"),
    (_manifest("[]"), "is damaged (not an object)"),
    (_manifest("[" * 100_000), "is damaged"),
    (_manifest('{"schema_version": 1, "files": {}, "files": {}}'), "a key stands in it twice"),
    (_manifest('{"schema_version": 2, "files": {}}'), "schema version 2"),
    (_manifest('{"schema_version": 1, "files": {}}'), "lists no files"),
    (_listing("../x", sha256=ZEROS, size_bytes=1), "is not below the bundle"),
    (_listing("/etc/x", sha256=ZEROS, size_bytes=1), "is not below the bundle"),
    (_listing("C:x", sha256=ZEROS, size_bytes=1), "is not below the bundle"),
    (_listing("a\\b", sha256=ZEROS, size_bytes=1), "is not below the bundle"),
    (_manifest('{"schema_version": 1, "files": {"a": 5}}'), "has no SHA-256 for a"),
    (_listing("a", sha256="00", size_bytes=1), "has no SHA-256 for a"),
    (_listing("a", sha256=ZEROS, size_bytes=1e300), "has no usable size for a"),
    (_listing("a", sha256=ZEROS, size_bytes=-1), "has no usable size for a"),
    (_listing("a", sha256=ZEROS), "has no usable size for a"),
    (
        _manifest(json.dumps({"schema_version": 1, "files": dict.fromkeys(map(str, range(5000)))})),
        "lists 5000 files",
    ),
    (
        _manifest(
            json.dumps(
                {
                    "schema_version": 1,
                    "files": {
                        name: {"sha256": ZEROS, "size_bytes": 300 * 1024**2} for name in "ab"
                    },
                }
            )
        ),
        "lists 629145600 bytes",
    ),
]


@pytest.mark.parametrize(("change", "said"), MANIFEST_FAULTS)
def test_a_manifest_that_cannot_be_used(bundle: Path, change: Change, said: str) -> None:
    change(bundle)
    found = result(bundle, 6)
    assert said in found["files"]["text"]
    assert statuses(found) == ["FAIL", *["NOT RUN"] * 4]


# ---- labels, level A and level B: here the manifest agrees with the fault


def goldens_of(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "goldens" / "goldens.json").read_text())
    return found


def rewrite(bundle: Path, about: dict[str, Any]) -> None:
    (bundle / "goldens" / "goldens.json").write_text(json.dumps(about))
    sealed(bundle)


def test_swapped_labels(bundle: Path) -> None:
    (bundle / "labels.txt").write_text("\n".join([LABELS[1], LABELS[0], LABELS[2]]) + "\n")
    sealed(bundle)
    found = result(bundle, 6)
    assert statuses(found) == ["PASS", "FAIL", "PASS", "PASS", "PASS"]
    assert "labels.txt, line 1 is" in found["labels"]["text"]
    (bundle / "labels.txt").write_text("\n".join(LABELS[:2]) + "\n")
    sealed(bundle)
    assert "has 2 lines, the model has 3 outputs" in result(bundle, 6)["labels"]["text"]


def _other_onnx(bundle: Path) -> None:
    content = (bundle / "model.onnx").read_bytes()
    one = np.float32(1).tobytes()
    assert content.count(one) >= SIZE
    # The top bit of a mantissa of one weight of the first pixel, which is not dark in "plain".
    position = content.index(one) + 2
    changed = bytearray(content)
    changed[position] ^= 0x40
    (bundle / "model.onnx").write_bytes(changed)


def _other_outputs(bundle: Path) -> None:
    outputs = np.frombuffer((bundle / "goldens/outputs.bin").read_bytes(), "<f4").copy()
    outputs[10] += np.abs(outputs[9:12]).max() * 2e-4
    (bundle / "goldens/outputs.bin").write_bytes(outputs.tobytes())


@pytest.mark.parametrize("change", [_other_onnx, _other_outputs])
def test_level_a_finds_another_model(bundle: Path, change: Change) -> None:
    change(bundle)
    sealed(bundle)
    found = result(bundle, 6)
    assert statuses(found) == ["PASS", "PASS", "PASS", "FAIL", "NOT RUN"]
    assert "plain" in found["level_a"]["failed"]
    said = found["level_a"]["text"]
    assert "it is the model file, or the runtime and its kernels" in said
    assert "no picture was involved" in said


@pytest.mark.parametrize("lite_bundle", ["uint8", "int8"], indirect=True)
def test_level_a_allows_one_step_and_not_two(lite_bundle: Path) -> None:
    path = lite_bundle / "goldens/outputs.bin"
    whole = path.read_bytes()
    codes = np.frombuffer(whole, goldens_of(lite_bundle)["output"]["dtype"])
    near = codes + np.where(codes > 0, -1, 1).astype(codes.dtype)
    path.write_bytes(near.astype(codes.dtype).tobytes())
    sealed(lite_bundle)
    assert "largest difference 1 steps, allowed 1" in result(lite_bundle, 0)["level_a"]["text"]
    far = codes + np.where(codes > 0, -2, 2).astype(codes.dtype)
    path.write_bytes(far.astype(codes.dtype).tobytes())
    sealed(lite_bundle)
    assert "largest difference 2 steps, allowed 1" in result(lite_bundle, 6)["level_a"]["text"]


def test_level_a_refuses_what_is_not_the_model(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"nonsense")
    sealed(bundle)
    assert "onnxruntime refuses the model" in result(bundle, 6)["level_a"]["text"]
    (bundle / "model.onnx").unlink()
    mean_tflite(bundle / "model.tflite", "uint8")
    sealed(bundle)
    assert "takes uint8 and answers uint8" in result(bundle, 6)["level_a"]["text"]
    top_half_onnx(bundle / "model.onnx")
    sealed(bundle)
    assert "not one model and" in told(result(bundle, 6))
    (bundle / "model.onnx").unlink()
    (bundle / "model.tflite").write_bytes(b"\0" * 100)
    sealed(bundle)
    assert "LiteRT refuses the model" in result(bundle, 6)["level_a"]["text"]


def _preprocess(**changes: Any) -> Change:
    def change(bundle: Path) -> None:
        about = goldens_of(bundle)
        about["preprocess"].update(changes)
        rewrite(bundle, about)

    return change


def _without_exif(bundle: Path) -> None:
    path = bundle / "goldens" / "images" / "turned.png"
    path.write_bytes(encoded(Image.open(path)))
    sealed(bundle)


LEVEL_B_FAULTS = [
    (_preprocess(resize="nearest"), ["speckled"]),
    (_preprocess(channels="bgr"), ["plain", "speckled", "photo"]),
    (_preprocess(scale=[-1 / 128, 1 / 128, 1 / 128]), ["plain"]),
    (_without_exif, ["turned"]),
]


@pytest.mark.parametrize(("change", "failed"), LEVEL_B_FAULTS)
def test_level_b_finds_another_preparation(bundle: Path, change: Change, failed: list[str]) -> None:
    change(bundle)
    found = result(bundle, 6)
    assert statuses(found) == ["PASS", "PASS", "PASS", "PASS", "FAIL"]
    assert set(failed) <= set(found["level_b"]["failed"])
    said = found["level_b"]["text"]
    assert "Level A passed, so the model and the runtime are right" in said
    assert "resize, channel order, EXIF rotation or normalization" in said
    assert "\u202e" not in said


@pytest.mark.parametrize(("apart", "code"), [(2, 0), (3, 6)])
def test_a_class_that_won_by_a_hair_may_turn_with_the_decoder(
    bundle: Path, apart: int, code: int
) -> None:
    """Here it is blue by one of 255; where it was judged red was a little brighter."""
    picture = encoded(Image.new("RGB", (32, 32), (100, 100, 101)))
    (bundle / "goldens" / "images" / "plain.png").write_bytes(picture)
    pixels = np.full((1, SIZE, SIZE, 3), (100 + apart, 100, 101))
    there = (pixels / 128 - 1).astype(np.float32)
    answer = opened(bundle / "model.onnx", "onnxruntime").run(there)
    golden = goldens_of(bundle)["goldens"][3]
    for kind, changed in (("input", there), ("output", answer)):
        path = bundle / "goldens" / f"{kind}s.bin"
        content = bytearray(path.read_bytes())
        start = golden[f"{kind}_offset"]
        content[start : start + golden[f"{kind}_bytes"]] = changed.tobytes()
        path.write_bytes(content)
    sealed(bundle)
    found = result(bundle, code)
    assert found["level_a"]["status"] == "PASS"
    assert ("too close to count" in found["level_b"]["text"]) == (code == 0)
    assert "plain is" in found["level_b"]["text"]
    assert found["level_b"]["failed"] == ([] if code == 0 else ["plain"])


def _set(*keys: Any) -> Change:
    *path, key, value = keys

    def change(bundle: Path) -> None:
        about = found = goldens_of(bundle)
        for step in path:
            found = found[step]
        if value is None:
            del found[key]
        else:
            found[key] = value
        rewrite(bundle, about)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("schema_version", 2),
        _set("input", None),
        _set("input", "shape", [1, 4, 4]),
        _set("input", "dtype", "object"),
        _set("goldens", []),
        _set("goldens", 5),
        _set("goldens", 0, "input_offset", -48),
        _set("goldens", 0, "input_bytes", 10**9),
        _set("goldens", 3, "picture", "../../labels.txt"),
        _set("goldens", 3, "picture", ["plain.png"]),
        _set("goldens", 3, "answer", None),
        _set("goldens", 3, "answer", 2),
        _set("goldens", 3, "accepted", True),
        _set("score_threshold", "high"),
        _set("tolerance_share", "all"),
        _set("preprocess", "height_px", 5),
        _set("preprocess", "height_px", -4),
        _set("preprocess", "resize", "box"),
        _set("preprocess", "crop", "left"),
        _set("labels", None),
        _set("output", "classes", 4),
        lambda b: (b / "goldens/images/plain.png").write_bytes(b"no picture") and sealed(b),
        lambda b: (b / "goldens/inputs.bin").unlink() or sealed(b),
        lambda b: (b / "goldens/goldens.json").write_text("[]") and sealed(b),
        lambda b: (b / "goldens/goldens.json").unlink() or sealed(b),
    ],
)
def test_goldens_that_cannot_be_used_are_wrong_and_not_a_crash(
    bundle: Path, script: ModuleType, change: Change
) -> None:
    change(bundle)
    found = script.verify(bundle)
    assert found["files"].status == "PASS"
    assert "FAIL" in {outcome.status for outcome in found.values()}


# ---- claims


def told(found: dict[str, Any]) -> str:
    return "\n".join(problem["text"] for problem in found["claims"]["problems"])


def _tolerance(**more: Any) -> Change:
    def change(bundle: Path) -> None:
        rewrite(bundle, goldens_of(bundle) | more)

    return change


def _goldens(change: Callable[[list[dict[str, Any]]], object]) -> Change:
    def alter(bundle: Path) -> None:
        about = goldens_of(bundle)
        change(about["goldens"])
        rewrite(bundle, about)

    return alter


def _claimed(**more: Any) -> Change:
    def change(bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps(manifest | more))

    return change


CLAIM_FAULTS: list[tuple[Change, str]] = [
    (_tolerance(tolerance_share=1e9), "allows 1000000000.0 of the largest output"),
    (_tolerance(tolerance_share=2e-4), "0.0001 at most for 'float32'"),
    (_tolerance(tolerance_steps=2), "allows 2 steps"),
    (_tolerance(tolerance_steps=True), "allows True steps"),
    (_goldens(list.clear), "has 0 goldens"),
    (_goldens(lambda goldens: goldens.pop(0)), "lacks one of all_zero, all_255, gradient"),
    (_goldens(lambda goldens: goldens.extend(goldens * 2857)), "has 20006 goldens"),
    (_goldens(lambda goldens: goldens.append(goldens[-1])), "two goldens of one name"),
    (_goldens(lambda goldens: goldens[3].update(picture=None)), "do not have the same pictures"),
    (_claimed(score_threshold=0.5), "have another score_threshold"),
    (_goldens(lambda goldens: goldens[3].update(accepted=True)), "without a threshold"),
    (_goldens(lambda goldens: goldens[3].update(label=None)), "class that is none of the model's"),
    (_claimed(goldens=8), "has 7 goldens, manifest.json says 8"),
    (_claimed(images=False), "says that pictures were left out"),
    (_claimed(kind="web\x1b[2J"), "of the kind 'web?[2J'"),
    (_claimed(judged_sha256=ZEROS), "is not the file that was judged"),
    (_claimed(model_sha256=ZEROS), "two digests"),
    (_claimed(verdict={}), "what is said about the verdict cannot be used"),
    (_claimed(edgekit_version="2"), "other versions of edgekit"),
    (_claimed(title="other"), "another name, title or licence"),
]


@pytest.mark.timeout(60, func_only=True)  # it took minutes
@pytest.mark.parametrize(("change", "said"), CLAIM_FAULTS)
def test_claims_that_do_not_hold(
    bundle: Path, change: Change, said: str, capsys: pytest.CaptureFixture[str], script: ModuleType
) -> None:
    assert script.verify(bundle)["claims"].status == "PASS"
    change(bundle)
    found = script.verify(bundle)
    assert found["claims"].status == "FAIL"
    assert {found["level A"].status, found["level B"].status} == {"NOT RUN"}
    assert said in "\n".join(problem.text for problem in found["claims"].problems)
    script.write(found, False, sys.stdout)
    assert "\x1b" not in capsys.readouterr().out


def test_empty_goldens_are_wrong_without_anything_installed(bundle: Path) -> None:
    _goldens(list.clear)(bundle)
    found = result(bundle, 6, hide=("numpy", "onnxruntime"))
    assert "has 0 goldens" in told(found)


def test_what_protects_the_manifest_is_said(bundle: Path) -> None:
    text = result(bundle, 0)["signature"]["text"]
    assert text.startswith("model.sig is here and was not checked")
    (bundle / "model.sig").unlink()
    text = result(bundle, 0)["signature"]["text"]
    assert "nothing else protects manifest.json itself" in text


def described(model: Path) -> bytes:
    contract = Preprocess(height_px=SIZE, width_px=SIZE)
    return write_metadata(model.read_bytes(), name="tiny", description="", version="", author="",
                          licence="other", preprocess=contract, class_names=LABELS)  # fmt: skip


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_metadata_around_a_judged_file_are_seen_to_be_nothing_more(
    tmp_path: Path, script: ModuleType, dtype: str
) -> None:
    judged = mean_tflite(tmp_path / "mean.tflite", dtype)
    digest, shipped = digest_of(judged), described(judged)
    labels = "".join(f"{label}\n" for label in LABELS).encode()
    assert script.without_metadata(shipped, digest) == labels
    kept = shipped.index(judged.read_bytes())
    end = len(shipped) - 22
    places = [*range(0, kept, 3), *range(kept, end, 97), end - 30]
    refused = {script.WrongError, ValueError, struct.error, IndexError, OverflowError}
    passed = 0
    for place in places:
        changed = bytearray(shipped)
        changed[place] ^= 1
        try:
            script.without_metadata(bytes(changed), digest)
        except tuple(refused):
            continue
        assert not kept <= place < kept + judged.stat().st_size
        passed += 1
        # What is left is metadata, or padding: the network answers as before, or not at all.
        assert same_answers(bytes(changed), judged.read_bytes())
    assert passed


def test_a_judged_file_beside_another_network_is_not_enough(
    tmp_path: Path, script: ModuleType
) -> None:
    """Its bytes are in the file, but the root leads to the other network."""
    judged = mean_tflite(tmp_path / "mean.tflite", "uint8")
    other = bytearray(judged.read_bytes())
    other[-20] ^= 1
    (tmp_path / "both.tflite").write_bytes(other + bytes(-len(other) % 16) + judged.read_bytes())
    shipped = described(tmp_path / "both.tflite")
    assert judged.read_bytes() in shipped
    with pytest.raises(script.WrongError, match="is not the file that was judged"):
        script.without_metadata(shipped, digest_of(judged))
    # The twin: it is the place of the root that is refused, not the bytes in front.
    assert script.without_metadata(described(judged), digest_of(judged))


def same_answers(one: bytes, other: bytes) -> bool:
    from ai_edge_litert.interpreter import Interpreter

    outputs = []
    for content in (one, other):
        try:
            model = Interpreter(model_content=content)
        except ValueError:
            return content is one
        model.allocate_tensors()
        asked, answer = model.get_input_details()[0], model.get_output_details()[0]
        model.set_tensor(asked["index"], np.full(asked["shape"], 9, asked["dtype"]))
        model.invoke()
        outputs.append(model.get_tensor(answer["index"]))
    return np.array_equal(*outputs)


def test_the_limits_and_rules_are_edgekits_own(script: ModuleType) -> None:
    """The program stands alone, so it has them once more."""
    assert script.MAX_BUNDLE_BYTES == limits.BUNDLE_BYTES
    assert script.MAX_FILES == limits.BUNDLE_FILES
    assert script.MAX_DEPTH == limits.BUNDLE_FOLDERS_DEEP
    assert script.MAX_JSON_BYTES == limits.MANIFEST_BYTES
    assert script.MAX_SIGNATURE_BYTES == limits.SIGNATURE_BYTES
    assert script.MAX_GOLDENS == limits.GOLDENS
    assert script.MAX_SECONDS == limits.VERIFY_SECONDS
    assert script.MAX_MODEL_DIRECTORY_BYTES == limits.MODEL_DIRECTORY_BYTES
    assert script.TOLERANCE_STEPS == contents.TOLERANCE_STEPS
    assert script.TOLERANCE_SHARE == contents.TOLERANCE_SHARE
    assert script.TOLERANCE_SHARE_INTEGER == contents.TOLERANCE_SHARE_INTEGER
    assert script.SIGNATURE == SIGNATURE_NAME
    assert script.KINDS.keys() == set(get_args(PackageKind))
    for found in itertools.product(Status, repeat=2):
        checks = [Check(name="", status=s, measured="", budget="", detail="") for s in found]
        wanted = combine(checks)
        assert next(s for s in script.WORST_FIRST if s in found) == wanted
    assert MOST_PICTURES + len(script.SYNTHETIC) <= limits.GOLDENS


# ---- the preparation of pictures, against edgekit's own


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * height)
    small = rng.integers(0, 256, (7, 9, 4), dtype=np.uint8)
    return Image.fromarray(small, "RGBA").resize((width, height), 1).convert(mode)


def saved(image: Image.Image, kind: str, turn: int = 1, **more: Any) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(stream, kind, **({"exif": exif} if kind != "BMP" else {}), **more)
    return stream.getvalue()


PICTURES = {
    **{f"turn {turn}": saved(noise(90, 70), "JPEG", turn) for turn in range(10)},
    "large photo": saved(noise(1200, 700), "JPEG", 6),
    "grey": saved(noise(50, 51, "L"), "JPEG"),
    "cmyk": saved(noise(50, 51, "CMYK"), "JPEG"),
    "transparent": saved(noise(50, 51, "RGBA"), "PNG"),
    "grey transparent": saved(noise(50, 51, "LA"), "PNG"),
    "palette": saved(noise(50, 51).convert("P"), "PNG", transparency=3),
    "16 bit": saved(Image.fromarray(np.arange(0, 65536, 16, np.uint16).reshape(64, 64)), "PNG"),
    "bit": saved(noise(50, 51, "1"), "PNG"),
    "webp": saved(noise(50, 51), "WEBP", 8),
    "bmp": saved(noise(50, 51), "BMP"),
}
CONTRACTS = [
    Preprocess(height_px=32, width_px=32),
    Preprocess(height_px=24, width_px=40, crop="center", resize="bicubic"),
    Preprocess(height_px=33, width_px=20, crop="center", resize="nearest", channels="bgr"),
    Preprocess(height_px=31, width_px=24, crop="letterbox", channels="bgr", fill=(7, 130, 250)),
    Preprocess(height_px=24, width_px=31, crop="letterbox", channels="grey", fill=(7, 130, 250)),
]


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_prepared_to_the_bit(
    script: ModuleType, name: str, contract: Preprocess
) -> None:
    wanted = reference.pixels(PICTURES[name], contract)
    found = script.prepared(PICTURES[name], contract.model_dump(mode="json"))
    np.testing.assert_array_equal(found, wanted)
    # The twin: the comparison tells another filter from the right one.
    other = "bicubic" if contract.resize != "bicubic" else "bilinear"
    changed = contract.model_copy(update={"resize": other})
    assert not np.array_equal(script.prepared(PICTURES[name], changed.model_dump()), wanted)


def test_the_limit_on_pixels(script: ModuleType) -> None:
    bomb = saved(Image.new("1", (9000, 9000)), "PNG")
    with pytest.raises(ValueError, match="pixels"):
        script.prepared(bomb, CONTRACTS[0].model_dump())


@pytest.mark.parametrize(
    ("dtype", "scale", "zero"),
    [("float32", None, None), ("uint8", 1 / 128, 128), ("int8", 1 / 128, 0), ("int8", 0.019, -14)],
)
def test_the_table_is_edgekits_own(
    script: ModuleType, dtype: str, scale: float | None, zero: int | None
) -> None:
    contract = Preprocess(
        height_px=8, width_px=8, scale=(0.017, 1 / 58, 1 / 57), offset=(-2.1, -2.0, -1.8)
    )
    about = {
        "input": {"dtype": dtype, "scale": scale, "zero_point": zero},
        "preprocess": contract.model_dump(mode="json"),
    }
    wanted = input_codes(contract, dtype, scale, zero)
    found = script.input_codes(about)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
