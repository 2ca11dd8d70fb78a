"""The package for Linux boards, run as a board does: elsewhere, with its requirements only."""

import ast
import importlib.util
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from score_threshold import with_threshold
from tiny_models import CLASSES, SIZE, digest, mean_onnx, mean_tflite, quantized_onnx

import edgekit.package
from edgekit.data import picture
from edgekit.data.scan import scan
from edgekit.folders import cache_folder
from edgekit.package import linux
from edgekit.package.contents import Contents, Golden
from edgekit.package.goldens import golden_files
from edgekit.records import Artifact, Preprocess, Status, TensorInfo, Verdict, input_codes
from edgekit.runner.onnx_runtime import exact_arithmetic
from edgekit.runtimes.inspect import inspect_model
from edgekit.target import load_target
from edgekit.validate.measurements import (
    answers_of,
    latency_of,
    read_measurements,
    refuse_other_model,
)

HOSTILE = ('it\'s "red" \\(a) $x', "g*/ // <script>alert(1)</script>", "שלום 🦊 naïve")
# What a board's environment has: nothing that leads to edgekit.
BARE = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
Array = npt.NDArray[Any]


def needed(what: str) -> None:
    """Skips the test for lack of something; in CI it fails."""
    if os.environ.get("CI"):
        pytest.fail(f"needs {what}")
    pytest.skip(f"needs {what}")


def photo(channel: int, seed: int, size: tuple[int, int] = (45, 60)) -> Image.Image:
    """Returns a picture with shapes in it, in which one channel is bright."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 120, (7, 5, 3), dtype=np.uint8)
    coarse[..., channel] += 100
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, orientation: int = 1, **options: Any) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def png(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def right_input(image: bytes, preprocess: Preprocess, tensor: TensorInfo) -> Array:
    """Returns the input tensor as edgekit itself makes it."""
    fitted = picture.pixels(image, preprocess)
    codes = input_codes(preprocess, tensor.dtype, tensor.scale, tensor.zero_point)
    return codes[fitted, np.arange(3)][None]


MODELS: dict[str, tuple[str, str, Callable[[Path], Path]]] = {
    "uint8.tflite": ("host-litert", "model.tflite", mean_tflite),
    "int8.tflite": ("host-litert", "model.tflite", lambda p: mean_tflite(p, "int8")),
    "float32.tflite": ("host-litert", "model.tflite", lambda p: mean_tflite(p, "float32")),
    "uint8.onnx": ("host-onnxruntime", "model.onnx", quantized_onnx),
    "float32.onnx": (
        "host-onnxruntime",
        "model.onnx",
        lambda p: mean_onnx(p, shape=("batch", SIZE, SIZE, 3)),
    ),
}


def made(
    folder: Path,
    kind: str = "uint8.tflite",
    names: tuple[str, ...] = CLASSES,
    **changed: Any,
) -> Contents:
    """Returns contents whose goldens are answered by arithmetic, not by the package."""
    target_name, model_name, build = MODELS[kind]
    model = build(folder / model_name)
    preprocess = Preprocess(height_px=SIZE, width_px=SIZE, **changed)
    facts = inspect_model(model)
    asked, answer = facts.inputs[0], facts.outputs[0]
    goldens = []
    for number, orientation in enumerate((1, 6, 1, 3, 8, 1)):
        content = jpeg(photo(number % 3, number), orientation)
        tensor = right_input(content, preprocess, asked)
        means = tensor.astype(np.float64).mean(axis=(0, 1, 2))
        # The TFLite model keeps the order of the channels, the ONNX models turn it round.
        scores = means if model_name == "model.tflite" else means[::-1]
        rounded = scores if answer.dtype == "float32" else np.round(scores)
        raw = rounded.astype(answer.dtype)
        name = f"golden_{number}"
        goldens.append(Golden(name, tensor, raw, number % 3, content, f"{name}.jpg"))
    zero = np.zeros((1, SIZE, SIZE, 3), asked.dtype)
    zeros = np.zeros(3, answer.dtype)
    goldens.append(Golden("all_zero", zero, zeros, None, None, ""))
    artifact = Artifact(
        format="tflite" if model_name == "model.tflite" else "onnx",
        variant="float32" if asked.dtype == "float32" else "int8",
        io=asked.dtype,  # type: ignore[arg-type]
        path=model_name,
        sha256=digest(model),
        size_bytes=model.stat().st_size,
        inputs=(asked,),
        outputs=(answer,),
        operators=facts.operators,
        float_tensors=(),
    )
    return Contents(
        name="colours",
        title="Colours",
        licence="Apache-2.0",
        model=model.read_bytes(),
        model_name=model_name,
        artifact=artifact,
        input=asked,
        output=answer,
        preprocess=preprocess,
        class_names=names,
        goldens=tuple(goldens),
        target=load_target(target_name),
        verdict=Verdict(
            target=target_name,
            artifact_path=model_name,
            artifact_sha256=artifact.sha256,
            checks=(),
            status=Status.PASS,
        ),
        arena_bytes=None,
        facts={},
    )


def written(contents: Contents, bundle: Path) -> Path:
    """Writes a bundle with what every bundle has and the package reads."""
    found = dict(linux.files(contents))
    found[contents.model_name] = contents.model
    found["labels.txt"] = "".join(f"{name}\n" for name in contents.class_names).encode()
    found |= golden_files(contents)
    for name, content in found.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(content)
    return bundle


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that is made once per machine."""
    final = cache_folder() / "tests" / name
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=final.parent))
        try:
            make(unfinished)
            unfinished.replace(final)
        except OSError:  # another process was faster
            if not final.exists():
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return final


def pip(*arguments: str, python: Path | str = sys.executable) -> None:
    command = [str(python), "-m", "pip", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode != 0:
        needed(f"a package registry: {done.stderr[-500:]}")


def board(bundle: Path) -> Path:
    """Returns the Python of an environment that holds the package's requirements, once made."""
    requirements = bundle / "linux" / "python" / "requirements.txt"

    def make(folder: Path) -> None:
        venv.create(folder, with_pip=True)
        pip("install", "-r", str(requirements), python=folder / "bin" / "python")

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cached(f"linux-{version}-{digest(requirements)[:16]}", make) / "bin" / "python"


def run(
    bundle: Path, program: str, *arguments: Path | str, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program of the package as a board does: nothing of edgekit is to be seen there."""
    return subprocess.run(
        [board(bundle), bundle / "linux" / "python" / program, *arguments],
        cwd=bundle.parent,
        env=BARE if path is None else {**BARE, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def module_of(contents: Contents, folder: Path) -> ModuleType:
    """Returns the shipped classifier.py, imported here."""
    return imported(written(contents, folder) / "linux" / "python" / "classifier.py")


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"shipped_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("flags", ["avx2 sha_ni", "avx2 avx512_vnni", "avx_vnni", "avx512_vnni2"])
def test_its_onnx_arithmetic_is_the_one_that_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: fpu {flags} sse2\n")
    verify = imported(Path(edgekit.package.__file__).parent / "templates" / "verify.py")
    classifier = module_of(made(tmp_path), tmp_path)
    for module, has_vnni in ((verify, verify.has_vnni), (classifier, classifier._has_vnni)):
        monkeypatch.setattr(module, "Path", lambda _path: cpuinfo)
        assert exact_arithmetic(cpuinfo)[1] == ("0" if has_vnni() else "1")
        monkeypatch.setattr(module, "Path", lambda _path: tmp_path / "none")
        assert not has_vnni()


@pytest.mark.parametrize("kind", MODELS)
def test_it_runs_with_nothing_but_its_requirements(tmp_path: Path, kind: str) -> None:
    bundle = written(made(tmp_path, kind), tmp_path / "bundle")
    for absent in ("edgekit", "tensorflow", "pydantic", "scipy"):
        done = subprocess.run(
            [board(bundle), "-c", f"import {absent}"], capture_output=True, cwd=tmp_path, env=BARE
        )
        assert b"ModuleNotFoundError" in done.stderr
    checked = run(bundle, "selfcheck.py")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "tensor level: 7 goldens" in checked.stdout
    assert "picture level: 6 pictures, at most 0.00 of 255 off" in checked.stdout
    red = bundle / "goldens" / "images" / "golden_0.jpg"
    classified = run(bundle, "classify.py", red)
    # The brightest channel is the first; the TFLite model answers in the order of the channels.
    name = CLASSES[0 if kind.endswith("tflite") else 2]
    lines = classified.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0] == str(red)
    assert lines[1].endswith(f"%  {name}")
    assert sum(float(line.split()[0]) for line in lines[1:]) == pytest.approx(100, abs=0.2)


def test_what_is_no_picture_is_said_and_the_rest_is_classified(tmp_path: Path) -> None:
    bundle = written(made(tmp_path), tmp_path / "bundle")
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    right = bundle / "goldens" / "images" / "golden_0.jpg"
    done = run(bundle, "classify.py", tmp_path / "absent.jpg", text, right)
    assert done.returncode == 1
    assert "absent.jpg: cannot be read (No such file or directory)" in done.stderr
    assert "text.jpg: not a JPEG, PNG, BMP, WEBP picture" in done.stderr
    assert "Traceback" not in done.stderr
    assert str(right) in done.stdout


def test_module_model_and_labels_may_lie_in_one_folder(tmp_path: Path) -> None:
    bundle = written(made(tmp_path), tmp_path / "bundle")
    app = tmp_path / "app" / "linux" / "python"
    app.mkdir(parents=True)
    for name in ("linux/python/classifier.py", "linux/python/classify.py", "labels.txt"):
        shutil.copy(bundle / name, app)
    shutil.copy(bundle / "linux" / "python" / "requirements.txt", app)
    right = bundle / "goldens" / "images" / "golden_0.jpg"
    without = run(tmp_path / "app", "classify.py", right)
    assert without.returncode == 1
    assert "model.tflite is missing" in without.stderr
    shutil.copy(bundle / "model.tflite", app)
    assert "blue" in run(tmp_path / "app", "classify.py", right).stdout


def every_picture() -> dict[str, bytes]:
    rng = np.random.default_rng(5)
    noise = Image.fromarray(rng.integers(0, 256, (75, 50, 3), dtype=np.uint8))
    rough = Image.fromarray(rng.integers(0, 256, (400, 700, 3), dtype=np.uint8))
    clear = noise.convert("RGBA")
    clear.putalpha(Image.fromarray(rng.integers(0, 256, (75, 50), dtype=np.uint8)))
    wide = Image.fromarray(rng.integers(0, 65536, (40, 60), dtype=np.uint16))
    webp, bmp, mpo = io.BytesIO(), io.BytesIO(), io.BytesIO()
    rough.save(mpo, "MPO", save_all=True, append_images=[rough.rotate(90)], quality=95)
    noise.save(webp, "WEBP", lossless=True)
    noise.save(bmp, "BMP")
    found = {f"exif {n}": jpeg(noise, n) for n in range(1, 9)}
    found |= {f"large, exif {n}": jpeg(rough, n) for n in (1, 6)}
    return found | {
        "large, with another one behind": mpo.getvalue(),
        "cmyk": jpeg(noise.convert("CMYK")),
        "grey": jpeg(noise.convert("L")),
        "rgba": png(clear),
        "grey with alpha": png(clear.convert("LA")),
        "palette": png(noise.quantize(16)),
        "palette with transparency": png(noise.quantize(16), transparency=3),
        "transparent colour": png(noise, transparency=(1, 2, 3)),
        "16 bits": png(wide),
        "1 bit": png(noise.convert("1")),
        "webp": webp.getvalue(),
        "bmp": bmp.getvalue(),
        "tall": png(noise.resize((20, 90))),
        "png with exif": png(noise, exif=struct.pack(">2sHIHHHIHHI", *TURNED)),
    }


# TIFF header and one directory: orientation, SHORT, one value, 6.
TURNED = (b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
CONTRACTS = {
    "bilinear": Preprocess(height_px=24, width_px=24),
    "centre": Preprocess(height_px=30, width_px=18, crop="center", resize="bicubic"),
    "nearest, bgr": Preprocess(height_px=16, width_px=20, resize="nearest", channels="bgr"),
    "letterbox": Preprocess(height_px=24, width_px=31, crop="letterbox"),
    "letterbox, bgr": Preprocess(
        height_px=29, width_px=18, crop="letterbox", channels="bgr", fill=(7, 130, 250)
    ),
    "grey": Preprocess(height_px=24, width_px=24, channels="grey"),
    "letterbox, grey": Preprocess(
        height_px=24, width_px=31, crop="letterbox", channels="grey", fill=(7, 130, 250)
    ),
    "letterbox, nearest": Preprocess(
        height_px=17, width_px=17, crop="letterbox", resize="nearest", fill=(0, 0, 0)
    ),
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_pixels_are_those_of_training_byte_for_byte(tmp_path: Path, name: str) -> None:
    contract = CONTRACTS[name]
    contents = made(tmp_path)
    contents = Contents(**{**vars(contents), "preprocess": contract})
    shipped = module_of(contents, tmp_path / "bundle")
    for what, content in every_picture().items():
        wanted = picture.pixels(content, contract)
        np.testing.assert_array_equal(shipped.pixels(content), wanted, err_msg=what)


def test_the_twin_other_ways_make_other_pixels(tmp_path: Path) -> None:
    """A reduced decode, a turned picture and another filter all show in the pixels compared."""
    contract = CONTRACTS["bilinear"]
    shipped = module_of(
        Contents(**{**vars(made(tmp_path)), "preprocess": contract}), tmp_path / "bundle"
    )
    pictures = every_picture()
    large = pictures["large, exif 1"]
    right = shipped.pixels(large)
    assert not np.array_equal(shipped.fit(shipped.decode(large)), right)
    shipped.CONTRACT["resize"] = "bicubic"
    assert not np.array_equal(shipped.pixels(large), right)
    assert not np.array_equal(
        shipped.pixels(pictures["exif 1"]), shipped.pixels(pictures["exif 6"])
    )


def test_the_largest_picture_is_that_of_the_run(tmp_path: Path) -> None:
    """By the recipe's field, also beyond the limit at which Pillow itself refuses."""
    contents = Contents(**{**vars(made(tmp_path)), "max_pixels": 30 * 40})
    shipped = module_of(contents, tmp_path / "bundle")
    with pytest.raises(shipped.PictureError, match=r"too large: 40 x 60 px, at most 0\.0012 mega"):
        shipped.pixels(png(photo(0, 1, (40, 60))))
    assert shipped.pixels(png(photo(0, 1, (40, 30)))).dtype == np.uint8
    shipped.CONTRACT["max_pixels"] = 10**9
    kept = shipped.Image.MAX_IMAGE_PIXELS
    try:
        shipped.Image.MAX_IMAGE_PIXELS = 100  # Pillow refuses what has twice as many
        assert shipped.pixels(png(photo(0, 1, (40, 60)))).dtype == np.uint8
        with pytest.raises(shipped.PictureError, match="too large for Pillow"):
            shipped.decode(png(photo(0, 1, (40, 60))))
    finally:
        shipped.Image.MAX_IMAGE_PIXELS = kept


@pytest.mark.parametrize("content", ["GIF89a", "", "cut", "small"])
def test_what_training_leaves_out_is_refused(tmp_path: Path, content: str) -> None:
    shipped = module_of(made(tmp_path), tmp_path / "bundle")
    whole = jpeg(photo(0, 1))
    small = png(photo(0, 1, (10, 40)))
    damaged = {"cut": whole[: len(whole) // 2], "small": small}.get(content, content.encode())
    with pytest.raises(picture.UnreadableError):
        picture.decode(damaged)
    with pytest.raises(shipped.PictureError):
        shipped.decode(damaged)


@pytest.mark.parametrize("kind", ["uint8.tflite", "int8.tflite", "float32.tflite"])
def test_codes_are_those_of_the_contract(tmp_path: Path, kind: str) -> None:
    scale, offset = (1 / 255, 0.0171, 1 / 127.5), (0.0, -1.3, -1.0)
    contents = made(tmp_path, kind, scale=scale, offset=offset)
    shipped = module_of(contents, tmp_path / "bundle")
    asked = contents.input
    wanted = input_codes(contents.preprocess, asked.dtype, asked.scale, asked.zero_point)
    codes = shipped.Classifier().codes
    assert codes.dtype == wanted.dtype
    np.testing.assert_array_equal(codes, wanted)


def altered(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def moved(path: Path, position: int, step: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] += step
    path.write_bytes(bytes(content))


MODULE = "linux/python/classifier.py"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "other threshold": (
        lambda b: altered(b / MODULE, ('"score_threshold": ', '"score_threshold": -9 + ')),
        "FAIL  tensor level",
    ),
    "flipped bit": (
        lambda b: moved(b / "model.tflite", -40, 1),
        "FAIL  model.tflite is not the file that was judged",
    ),
    "swapped labels": (
        lambda b: (b / "labels.txt").write_text("green\nblue\nred\n") and None,
        "FAIL  labels.txt does not hold the names",
    ),
    "goldens with other labels": (
        lambda b: altered(b / "goldens/goldens.json", ('"blue",\n  "green"', '"green",\n  "blue"')),
        "FAIL  labels.txt and goldens.json name other classes",
    ),
    "cut goldens": (
        lambda b: (b / "goldens/inputs.bin").write_bytes(b"\0\0\0") and None,
        "FAIL  the goldens in",
    ),
    "no goldens": (
        lambda b: altered(b / "goldens/goldens.json", ('"goldens": [', '"goldens": [], "x": [')),
        "FAIL  0 goldens are in",
    ),
    "a tolerance in the goldens": (
        lambda b: (
            altered(b / "goldens/goldens.json", ('"tolerance_steps": 1', '"tolerance_steps": 1e9'))
            or moved(b / "goldens/outputs.bin", 4, 2)
        ),
        "FAIL  tensor level",
    ),
    "other output": (lambda b: moved(b / "goldens/outputs.bin", 4, 2), "FAIL  tensor level"),
    "other kernels": (
        lambda b: altered(
            b / MODULE,
            (
                "return np.asarray(interpreter.get_tensor(answer)).reshape(-1)",
                "return np.asarray(interpreter.get_tensor(answer)).reshape(-1) // 2",
            ),
        ),
        "FAIL  tensor level",
    ),
    "other resize": (
        lambda b: altered(
            b / MODULE,
            ('"bilinear": Image.Resampling.BILINEAR', '"bilinear": Image.Resampling.NEAREST'),
        ),
        "FAIL  picture level",
    ),
    "bgr": (
        lambda b: altered(b / MODULE, ('CONTRACT["channels"] == "bgr"', "True")),
        "FAIL  picture level",
    ),
    "no exif": (
        lambda b: altered(b / MODULE, ("picture if turn is None else", "picture if True else")),
        "FAIL  picture level",
    ),
    "other normalization": (
        lambda b: altered(b / MODULE, ('np.array(CONTRACT["offset"])', "0.2")),
        "FAIL  picture level",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_selfcheck_says_which_level_failed(tmp_path: Path, fault: str) -> None:
    bundle = written(with_threshold(made(tmp_path)), tmp_path / "bundle")
    assert run(bundle, "selfcheck.py").returncode == 0
    inject, said = FAULTS[fault]
    inject(bundle)
    done = run(bundle, "selfcheck.py")
    assert done.returncode == 1
    assert said in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if "picture level" in said:
        assert "ok    tensor level" in done.stdout
        assert "resize, crop, channel order (RGB or BGR), EXIF rotation" in done.stdout
    elif "tensor level" in said:
        assert "Look at the runtime (LiteRT " in done.stdout


def test_names_of_goldens_reach_no_terminal(tmp_path: Path) -> None:
    bundle = written(made(tmp_path), tmp_path / "bundle")
    evil = ('"name": "golden_0"', '"name": "\\u001b[2Jgolden_0"')
    altered(bundle / "goldens/goldens.json", evil)
    moved(bundle / "goldens/outputs.bin", 0, 2)
    done = run(bundle, "selfcheck.py")
    assert done.returncode == 1
    assert "?[2Jgolden_0" in done.stdout
    assert "\x1b" not in done.stdout


def test_outputs_within_the_tolerance_pass(tmp_path: Path) -> None:
    bundle = written(made(tmp_path), tmp_path / "bundle")
    moved(bundle / "goldens/outputs.bin", 4, 1)
    done = run(bundle, "selfcheck.py")
    assert done.returncode == 0
    assert "largest difference of an output 1" in done.stdout


def test_a_turned_camera_is_tried_even_if_no_golden_was_turned(tmp_path: Path) -> None:
    contents = made(tmp_path)
    upright = [g for g in contents.goldens if g.name in ("golden_0", "golden_2")]
    contents = Contents(**{**vars(contents), "goldens": tuple(upright)})
    bundle = written(contents, tmp_path / "bundle")
    assert run(bundle, "selfcheck.py").returncode == 0
    FAULTS["no exif"][0](bundle)
    done = run(bundle, "selfcheck.py")
    assert done.returncode == 1
    assert "marked as taken with a turned camera, it is not turned upright" in done.stdout


def labelled(folder: Path, names: tuple[str, ...]) -> Path:
    """Writes a folder of pictures; all are answered right but one, and one file is damaged."""
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            (folder / name / f"{number}.jpg").write_bytes(jpeg(photo(index, 10 * index + number)))
    (folder / names[0] / "wrong.png").write_bytes(png(photo(1, 77)))
    (folder / names[0] / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def test_what_it_measures_is_read_by_edgekit(tmp_path: Path) -> None:
    names = ("a b", "b's", "ünï")
    contents = made(tmp_path, names=names)
    bundle = written(contents, tmp_path / "bundle")
    data, out = labelled(tmp_path / "data", names), tmp_path / "measured.json"
    arguments = ("--data", data, "--latency", "--seconds", "0", "--by", 'Ann "A"', "--json", out)
    done = run(bundle, "selfcheck.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy: 92.3 % of 13 pictures" in done.stdout
    measured = read_measurements(out)
    refuse_other_model(measured, contents.artifact.sha256, contents.artifact.size_bytes)
    assert (measured.by, measured.runtime, measured.threads) == ('Ann "A"', "LiteRT", 1)
    assert measured.delegate == "XNNPACK"
    assert measured.latency is not None
    assert len(measured.latency) == 5
    assert all(session.fresh_process for session in measured.latency)
    assert all(session.warmup_runs >= 5 for session in measured.latency)
    latency = latency_of(measured, 90)
    assert latency is not None
    assert latency.samples == 5 * 200
    scanned = scan(data)
    usable = [source for source in scanned.sources if "damaged" not in source.relative]
    answers = answers_of(
        measured, [s.relative for s in usable], [s.sha256 for s in usable], scanned.class_names
    )
    labels = [s.label for s in usable]
    wrong = [s.relative for s, a in zip(usable, answers, strict=True) if a != s.label]
    assert labels.count(0) == 5
    assert wrong == ["a b/wrong.png"]


@pytest.mark.slow
def test_a_clock_coarser_than_a_call_is_bridged_and_said(tmp_path: Path) -> None:
    bundle, out = written(made(tmp_path), tmp_path / "bundle"), tmp_path / "measured.json"
    (tmp_path / "coarse").mkdir()
    # What Python runs first, in every process that the self-check starts.
    (tmp_path / "coarse" / "sitecustomize.py").write_text(
        "import time\nfine = time.perf_counter_ns\n"
        "time.perf_counter_ns = lambda: fine() // 20_000 * 20_000\n"
    )
    arguments = ("--latency", "--seconds", "0", "--by", "Ann", "--json", out)
    done = run(bundle, "selfcheck.py", *arguments, path=tmp_path / "coarse")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "calls, in which single slow ones do not show" in done.stdout
    measured = read_measurements(out)
    for session in measured.latency or ():
        assert session.clock_step_ms == 0.02
        assert session.calls_per_sample > 1
        assert min(session.samples_ms) > 0
    latency = latency_of(measured, 90)
    assert latency is not None
    assert latency.means.endswith(" calls")


def test_of_a_folder_with_splits_the_test_split_is_measured(tmp_path: Path) -> None:
    bundle = written(made(tmp_path), tmp_path / "bundle")
    for split in ("train", "test"):
        labelled(tmp_path / "data" / split, CLASSES)
    out = tmp_path / "measured.json"
    arguments = ("--data", tmp_path / "data", "--by", "Ann", "--json", out)
    assert run(bundle, "selfcheck.py", *arguments).returncode == 0
    measured = read_measurements(out)
    assert measured.accuracy is not None
    assert {answer.file.split("/")[0] for answer in measured.accuracy if answer.file} == {"test"}


def test_nothing_is_written_by_a_package_that_fails(tmp_path: Path) -> None:
    bundle = written(made(tmp_path), tmp_path / "bundle")
    FAULTS["bgr"][0](bundle)
    out = tmp_path / "measured.json"
    done = run(bundle, "selfcheck.py", "--latency", "--by", "Ann", "--json", out)
    assert done.returncode == 1
    assert not out.exists()


def test_what_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    bundle = written(made(tmp_path), tmp_path / "bundle")
    for arguments in (("--json", "x.json", "--latency"), ("--json", "x.json", "--by", "Ann")):
        done = run(bundle, "selfcheck.py", *arguments)
        assert done.returncode == 2
        assert "--json needs --by NAME" in done.stderr
    empty = run(bundle, "selfcheck.py", "--data", tmp_path / "absent")
    assert empty.returncode == 1
    assert "lay it out as DIR/<class>/picture.jpg" in empty.stdout


def test_hostile_labels_come_out_unharmed(tmp_path: Path) -> None:
    bundle = written(made(tmp_path, names=HOSTILE), tmp_path / "bundle")
    assert run(bundle, "selfcheck.py").returncode == 0
    done = run(bundle, "classify.py", bundle / "goldens" / "images" / "golden_0.jpg")
    for name in HOSTILE:
        assert f"%  {name}\n" in done.stdout
    sources = [p for p in (bundle / "linux").rglob("*") if p.is_file()]
    assert sources
    assert not any("script>" in p.read_text(encoding="utf-8") for p in sources)


def test_files_are_pure_complete_and_run_on_python_3_9(tmp_path: Path) -> None:
    contents = made(tmp_path)
    found = linux.files(contents)
    assert found == linux.files(contents)
    assert all(name.startswith("linux/") for name in found)
    assert not [name for name, content in found.items() if b"@@" in content]
    for name, content in found.items():
        if name.endswith(".py"):
            ast.parse(content, feature_version=(3, 9))
    onnx = linux.files(made(tmp_path, "uint8.onnx"))
    assert not [name for name in onnx if "cpp" in name]
    assert b"only the package in Python" in onnx["linux/README.md"]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        needed("systemd-analyze")
    text = linux.files(made(tmp_path))["linux/colours-selfcheck.service"].decode()
    unit = tmp_path / "colours-selfcheck.service"
    unit.write_text(text.replace("/opt/colours/venv/bin/python", sys.executable))
    command = [str(analyze), "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert unit.name not in done.stderr, done.stderr
    unit.write_text(text.replace("Type=oneshot", "Type=once"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert unit.name in done.stderr


def tflite_c() -> Path:
    """Returns a libtensorflowlite_c.so, which a package of the Python index carries."""

    def make(folder: Path) -> None:
        pip("download", "--no-deps", "-d", str(folder), "pymicro-wakeword==2.5.0")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("/libtensorflowlite_c.so")]
            (folder / "libtensorflowlite_c.so").write_bytes(archive.read(name))
        wheel.unlink()

    return cached("pymicro-wakeword-2.5.0", make) / "libtensorflowlite_c.so"


def built(bundle: Path, folder: Path) -> Path:
    for program in ("cmake", "g++"):
        if shutil.which(program) is None:
            needed(program)
    options = (f"-DTFLITE_C_LIBRARY={tflite_c()}", "-DCMAKE_BUILD_TYPE=Debug")
    for command in (
        ["cmake", "-S", str(bundle / "linux" / "cpp"), "-B", str(folder), *options],
        ["cmake", "--build", str(folder)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def native(program: Path, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def ppm_of(image: Image.Image, path: Path) -> Path:
    image.convert("RGB").save(path, "PPM")
    return path


@pytest.fixture(scope="module")
def native_package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contents, Path]:
    """Returns contents and the folder of the programs that were built for them."""
    folder = tmp_path_factory.mktemp("native")
    contents = with_threshold(made(folder, "int8.tflite", names=HOSTILE))
    return contents, built(written(contents, folder / "bundle"), folder / "build")


def test_cpp_is_right_and_says_which_level_failed(
    tmp_path: Path, native_package: tuple[Contents, Path]
) -> None:
    contents, programs = native_package
    bundle, ppm = written(contents, tmp_path / "bundle"), tmp_path / "ppm"
    assert run(bundle, "selfcheck.py", "--write-ppm", ppm).returncode == 0
    selfcheck = programs / "selfcheck"

    right = native(selfcheck, bundle, "--ppm", ppm)
    assert right.returncode == 0, right.stdout + right.stderr
    assert "tensor level: 7 goldens, largest difference of an output 0" in right.stdout
    assert "picture level: 6 pictures, at most 0.00 of 255 off" in right.stdout
    classified = native(programs / "classify", bundle, ppm / "golden_1.ppm")
    python = run(bundle, "classify.py", bundle / "goldens" / "images" / "golden_1.jpg")
    assert classified.stdout.splitlines()[1:] == python.stdout.splitlines()[1:]
    assert HOSTILE[1] in classified.stdout.splitlines()[1]

    swapped = Image.open(ppm / "golden_0.ppm")
    ppm_of(Image.fromarray(np.asarray(swapped)[..., ::-1].copy()), ppm / "golden_0.ppm")
    wrong = native(selfcheck, bundle, "--ppm", ppm)
    assert wrong.returncode == 1
    assert "ok    tensor level" in wrong.stdout
    assert "FAIL  picture level: 1 failures" in wrong.stdout
    assert "The tensor level passed, so model and runtime are right" in wrong.stdout

    (ppm / "golden_0.ppm").write_bytes(b"P6\n9 9\n255\nshort")
    assert "golden_0.ppm: cut short" in native(selfcheck, bundle, "--ppm", ppm).stdout
    (ppm / "golden_0.ppm").write_bytes(b"P6\n20000 20000\n255\n")
    assert "at most 205000000 pixels" in native(selfcheck, bundle, "--ppm", ppm).stdout

    counting = [golden.name for golden in contents.goldens if golden.accepted]
    assert 0 < len(counting) < len(contents.goldens)
    ppms = [str(ppm / f"{name}.ppm") for name in ("golden_1", "golden_2")]
    told = native(programs / "classify", bundle, *ppms).stdout.splitlines()
    for path, line in zip(ppms, told[::4], strict=True):
        assert line.endswith(": of no class; likest") == (Path(path).stem not in counting)

    outputs = bundle / "goldens" / "outputs.bin"
    moved(outputs, 4, 2)
    wrong = native(selfcheck, bundle)
    assert wrong.returncode == 1
    assert "FAIL  tensor level: 1 failures" in wrong.stdout
    moved(outputs, 4, -1)
    assert "difference of an output 1" in native(selfcheck, bundle).stdout

    labels = bundle / "labels.txt"
    labels.write_text("a\nb\nc\n")
    assert "labels.txt does not hold the names" in native(selfcheck, bundle).stdout
    moved(bundle / "model.tflite", -40, 1)
    assert "is not the file that was judged" in native(selfcheck, bundle).stdout
    assert native(selfcheck).returncode == 2


def test_cpp_without_goldens_fails(tmp_path: Path) -> None:
    contents = Contents(**{**vars(made(tmp_path, "int8.tflite")), "goldens": ()})
    bundle = written(contents, tmp_path / "bundle")
    done = native(built(bundle, tmp_path / "build") / "selfcheck", bundle)
    assert done.returncode == 1
    assert "FAIL  contract.h has no goldens" in done.stdout


def test_what_cpp_measures_is_read_by_edgekit(
    tmp_path: Path, native_package: tuple[Contents, Path]
) -> None:
    contents, programs = native_package
    bundle = written(contents, tmp_path / "bundle")
    selfcheck, out = programs / "selfcheck", tmp_path / "m.json"
    arguments = (bundle, "--seconds", "0", "--by", 'Ann \\ "A"', "--json", out)
    done = native(selfcheck, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = read_measurements(out)
    refuse_other_model(measured, contents.artifact.sha256, contents.artifact.size_bytes)
    assert (measured.by, measured.delegate) == ('Ann \\ "A"', "XNNPACK")
    assert measured.latency is not None
    assert [len(session.samples_ms) for session in measured.latency] == [200] * 5
    for session in measured.latency:
        assert session.clock_step_ms is not None
        assert min(session.samples_ms) > 0
    assert native(selfcheck, bundle, "--json", out).returncode == 2


# Prints the input tensor of a PPM picture.
DUMP = """
#include <cstdio>
#include "classifier.h"
int main(int, char** arguments) {
  const auto tensor = classifier::preprocess(classifier::read_ppm(arguments[1]));
  std::fwrite(tensor.data(), sizeof tensor[0], tensor.size(), stdout);
}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("int8.tflite", {"crop": "center", "resize": "bicubic"}),
        ("float32.tflite", {"resize": "bilinear", "scale": (1 / 255, 0.017, 1 / 127.5)}),
        ("uint8.tflite", {"resize": "nearest", "channels": "bgr"}),
        ("uint8.tflite", {"crop": "letterbox", "channels": "bgr", "fill": (7, 130, 250)}),
        ("uint8.tflite", {"crop": "letterbox", "channels": "grey", "fill": (7, 130, 250)}),
    ],
)
def test_cpp_pixels_are_those_of_pillow(tmp_path: Path, kind: str, changed: Any) -> None:
    contents = made(tmp_path, kind)
    contract = Preprocess(height_px=40, width_px=28, **changed)
    contents = Contents(**{**vars(contents), "preprocess": contract, "goldens": ()})
    source = written(contents, tmp_path / "bundle") / "linux" / "cpp"
    (source / "dump.cpp").write_text(DUMP)
    program = tmp_path / "dump"
    if shutil.which("g++") is None:
        needed("g++")
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    files = [str(source / "dump.cpp"), str(source / "classifier.cpp"), str(tflite_c())]
    done = subprocess.run(
        [*command, *files, f"-Wl,-rpath,{tflite_c().parent}", "-o", str(program)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    asked = contents.input
    codes = input_codes(contract, asked.dtype, asked.scale, asked.zero_point)
    rng = np.random.default_rng(2)
    shapes = [(28, 40), (28, 90), (90, 40), (20, 200), (300, 41), (61, 106), (61, 107), (17, 19)]
    for width, height in shapes:
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = ppm_of(Image.fromarray(noise), tmp_path / "noise.ppm")
        fitted = picture.fit(Image.fromarray(noise), contract)
        channels = np.arange(contract.input_channels)
        wanted = codes[fitted[..., channels], channels]
        found = subprocess.run([program, path], capture_output=True, timeout=60).stdout
        assert found == wanted.tobytes(), (width, height)


def test_declarations_are_exported_by_the_library(tmp_path: Path) -> None:
    header = linux.files(made(tmp_path))["linux/cpp/tflite_c.h"].decode()
    declared = set(re.findall(r"\b(TfLite\w+)\(", header))
    assert len(declared) > 15
    exported = subprocess.run(["nm", "-D", str(tflite_c())], capture_output=True, text=True).stdout
    assert declared <= set(re.findall(r" T (TfLite\w+)", exported))
