"""Metadata in .tflite files: what is written, what is refused, and what MediaPipe makes of it."""

import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from filelock import FileLock
from tiny_models import SIZE, Untyped, colour_images, mean_tflite
from tiny_network import CLASSES, Exported, coloured

from edgekit.errors import EdgekitError, IntegrityError, SpecError
from edgekit.folders import cache_folder
from edgekit.package.metadata import (
    LOGITS,
    mediapipe_notes,
    mediapipe_problem,
    write_metadata,
)
from edgekit.records import Preprocess
from edgekit.runtimes import tflite_metadata_tables as metadata_tables
from edgekit.runtimes.inspect import inspect_content
from edgekit.runtimes.tflite_metadata import Metadata, read_metadata

CONTRACT = Preprocess(height_px=SIZE, width_px=SIZE)
NAMES = ("red", "green", "blue")
HOSTILE = ('a "q" \\ */ // $x \\(y)', " spaces ", "שלום \U0001f600 <script>\u2028x")
MEDIAPIPE = "1.2.2"


def written(
    model: bytes, names: tuple[str, ...] = NAMES, preprocess: Preprocess = CONTRACT
) -> bytes:
    return write_metadata(
        model,
        name="Brightest channel",
        description="Says which channel is brightest — für alle.\nSecond line.",
        version="3",
        author="The authors",
        licence="Apache-2.0",
        preprocess=preprocess,
        class_names=names,
    )


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    return mean_tflite(tmp_path / "m.tflite", "float32").read_bytes()


def found_in(content: bytes) -> Metadata:
    found = read_metadata(content)
    assert found is not None
    return found


def repacked(model: bytes, entries: dict[str, bytes], offset: int = 0) -> bytes:
    """Returns the model, made anew, with metadata, and with a tensor said to lie at `offset`."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    root = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    root.metadata = []
    for name, data in entries.items():
        entry, buffer = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer = name.encode(), len(root.buffers)
        buffer.data = np.frombuffer(data, np.uint8)
        root.metadata.append(entry)
        root.buffers.append(buffer)
    if offset:
        root.buffers[1].offset, root.buffers[1].size = offset, 1
    builder = flatbuffers.Builder(0)
    builder.Finish(root.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def answers(model: bytes, images: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    given, got = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for image in images:
        interpreter.set_tensor(given["index"], image[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(got["index"])[0].copy())
    return np.array(rows)


def test_what_is_written_is_read(model: bytes) -> None:
    assert read_metadata(model) is None
    found = found_in(written(model, HOSTILE))
    assert (found.name, found.version, found.author) == ("Brightest channel", "3", "The authors")
    assert found.description == "Says which channel is brightest — für alle.\nSecond line."
    assert (found.licence, found.min_parser_version) == ("Apache-2.0", "1.0.0")
    assert found.labels == HOSTILE
    (image,), (scores,) = found.inputs, found.outputs
    assert (image.content, image.color_space) == ("ImageProperties", "RGB")
    assert (image.mean, image.std) == ((128.0,) * 3, (128.0,) * 3)
    assert (image.minimum, image.maximum) == ((-1.0,) * 3, (127 / 128,) * 3)
    assert scores.content == "FeatureProperties"
    assert [(f.name, f.type) for f in scores.files] == [("labels.txt", "TENSOR_AXIS_LABELS")]


def test_normalization_is_that_of_the_contract(model: bytes) -> None:
    scale, offset = (1 / 255, 1 / 58.395, -2.0), (0.0, -2.1179, 3.0)
    contract = CONTRACT.model_copy(update={"scale": scale, "offset": offset})
    image = found_in(written(model, preprocess=contract)).inputs[0]
    pixel = np.array([[0.0], [100.0], [255.0]])
    ours = pixel * np.array(scale) + np.array(offset)
    theirs = (pixel - np.array(image.mean)) / np.array(image.std)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)
    assert image.minimum[2] == -507.0  # a negative scale turns the range around
    with pytest.raises(AssertionError):  # the twin: another contract
        np.testing.assert_allclose(theirs, ours + 0.01, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int8"])
@pytest.mark.parametrize("batch", [1, -1])
@pytest.mark.parametrize("odd", [0, 4])
def test_the_model_stays_what_it_was(tmp_path: Path, dtype: str, batch: int, odd: int) -> None:
    given = mean_tflite(tmp_path / "m.tflite", dtype, batch=batch, relu=True).read_bytes()
    given += bytes(odd)  # a length that is no multiple of 16
    made = written(given)
    assert made == written(given)
    assert made.count(given) == 1
    assert made.index(given) % 16 == 0
    assert inspect_content(made, "tflite", "m") == inspect_content(given, "tflite", "m")
    labels = colour_images(tmp_path / "images.npy")
    images = np.load(tmp_path / "images.npy").astype(np.int32)
    if dtype != "uint8":
        images -= 128
    ready = images.astype(dtype)
    before, after = answers(given, ready), answers(made, ready)
    assert before.tobytes() == after.tobytes()
    assert len(set(before.argmax(axis=1))) == len(set(labels)) == 3


def test_other_metadata_are_kept(model: bytes) -> None:
    given = repacked(model, {"min_runtime_version": b"1.5.0", "edgekit.note": b"hi"})
    found = inspect_content(written(given), "tflite", "m").metadata
    assert found == {"min_runtime_version": "1.5.0", "edgekit.note": "hi"}


def test_archive_has_no_date_and_is_stored(model: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(written(model))) as archive:
        (entry,) = archive.infolist()
        assert archive.read(entry) == b"red\ngreen\nblue\n"
    assert (entry.filename, entry.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
    assert entry.date_time == (1980, 1, 1, 0, 0, 0)


def test_bytes_of_the_model_that_look_like_an_archive_stay(model: bytes) -> None:
    fake = io.BytesIO()
    with zipfile.ZipFile(fake, "w") as archive:
        archive.writestr("labels.txt", "evil\n" * 3)
    given = model + fake.getvalue() + bytes(64)
    made = written(given)
    assert given in made
    assert found_in(made).labels == NAMES


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a", "b"), "2 class names for a model with 3 outputs"),
        (("a", "b", "c\nd"), "one line"),
        (("a", "b", "c\r"), "one line"),
        (("a", "", "c"), "not empty"),
        (("a", "b", "\udc80"), "not Unicode"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    model: bytes, names: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        written(model, names)


def test_models_that_cannot_carry_metadata_are_refused(model: bytes) -> None:
    with pytest.raises(SpecError, match="has metadata already"):
        written(written(model))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("labels.txt", "a")
    with pytest.raises(SpecError, match="archive behind it"):
        written(model + archive.getvalue())
    with pytest.raises(SpecError, match="behind its flatbuffer"):
        written(repacked(model, {}, offset=8))
    with pytest.raises(SpecError, match="scale"):
        written(model, preprocess=CONTRACT.model_copy(update={"scale": (0.0, 1.0, 1.0)}))
    with pytest.raises(IntegrityError):
        written(model[: len(model) // 2])


def test_damaged_files_end_in_integrity_errors(model: bytes) -> None:
    made, chance = written(model), random.Random(3)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(600):
        damaged = bytearray(made)
        for _ in range(chance.choice((1, 1, 4))):
            damaged[chance.randrange(8, len(damaged))] = chance.choice((0, 1, 127, 128, 255))
        try:
            found = read_metadata(bytes(damaged))
            outcomes["read"] += 1
            mediapipe_problem(bytes(damaged), CONTRACT)
            if found is None:
                written(bytes(damaged))
        except (IntegrityError, SpecError):
            outcomes["refused"] += 1
    bare = bytearray(model)
    for place in range(8, len(bare)):
        for value in (0, 255):
            damaged = bare.copy()
            damaged[place] = value
            try:
                written(bytes(damaged))
            except (IntegrityError, SpecError):
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20
    for length in range(8, len(made), 37):
        with pytest.raises(IntegrityError):
            read_metadata(made[:length])


def test_metadata_alone_damaged(model: bytes) -> None:
    good = metadata_tables.write({"name": "n", "subgraph_metadata": [{}] * 10})
    assert found_in(repacked(model, {"TFLITE_METADATA": good})).name == "n"
    many = metadata_tables.write({"subgraph_metadata": [{}] * 100_000})
    backwards = bytearray(good)
    struct.pack_into("<i", backwards, struct.unpack_from("<I", good, 0)[0], 2**30)
    unknown = metadata_tables.write({"name": "n"}).replace(b"M001", b"M002")
    endless = metadata_tables.write(
        {"subgraph_metadata": [{"input_tensor_metadata": [{"stats": {"max": [float("inf")]}}]}]}
    )
    for bad in (many, bytes(backwards), unknown, endless, good[:20], b"\0"):
        with pytest.raises(IntegrityError, match="damaged model metadata"):
            read_metadata(repacked(model, {"TFLITE_METADATA": bad}))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "no archive with"),
        ("other", "no item named"),
        ("deflated", "compressed or encrypted"),
        ("large", "of 1048577 bytes"),
        ("flipped", "CRC"),
        ("directory", "a directory of"),
    ],
)
def test_archives_that_are_not_read(model: bytes, kind: str, words: str) -> None:
    made = written(model)
    alone = made[: made.rindex(b"PK\x03\x04")]
    names = {"other": "other.txt"}.get(kind, "labels.txt")
    method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
    content = b"red\n" + b"x" * (2**20 + 1 - 4 if kind == "large" else 0)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as opened:
        opened.writestr(names, content)
        for number in range(1500 if kind == "directory" else 0):
            opened.writestr(f"{number}", b"")
    tail = archive.getvalue()
    if kind == "flipped":
        tail = tail.replace(b"red\n", b"rec\n")
    with pytest.raises(IntegrityError, match=words):
        read_metadata(alone + (b"" if kind == "none" else tail))


def changed(**update: object) -> Preprocess:
    return CONTRACT.model_copy(update=update)


PER_CHANNEL = changed(scale=(1 / 128, 1 / 128, 1 / 64))
OTHER = changed(scale=(1 / 255,) * 3, offset=(0.0,) * 3)


@pytest.mark.parametrize(
    ("dtype", "preprocess", "words"),
    [
        ("float32", CONTRACT, None),
        ("uint8", CONTRACT, None),
        ("float32", OTHER, None),
        ("int8", CONTRACT, "this file has int8"),
        ("float32", PER_CHANNEL, "other values for each channel"),
        ("uint8", PER_CHANNEL, "expects other codes"),
        ("uint8", OTHER, "expects other codes"),
        ("float32", changed(channels="bgr"), "expects BGR"),
    ],
)
def test_what_mediapipe_would_refuse(
    tmp_path: Path, dtype: str, preprocess: Preprocess, words: str | None
) -> None:
    made = written(mean_tflite(tmp_path / "m", dtype).read_bytes(), preprocess=preprocess)
    problem = mediapipe_problem(made, preprocess)
    assert problem is None if words is None else problem is not None and words in problem


def test_what_mediapipe_would_refuse_in_metadata(tmp_path: Path, model: bytes) -> None:
    assert "no metadata" in str(mediapipe_problem(model, CONTRACT))
    uint8 = mean_tflite(tmp_path / "u.tflite", "uint8").read_bytes()
    assert mediapipe_problem(uint8, CONTRACT) is None
    assert "another normalization" in str(mediapipe_problem(written(model), OTHER))
    fewer = written(model).replace(b"red\ngreen\nblue\n", b"red-green\nblue\n")
    assert read_or_none(fewer) is None  # the archive's checksum finds it
    bgr = written(model, preprocess=changed(channels="bgr"))
    assert "the metadata say UNKNOWN" in str(mediapipe_problem(bgr, CONTRACT))
    unquantized = mean_tflite(tmp_path / "q.tflite", "uint8", quantized=False).read_bytes()
    assert "does not say its quantization" in str(mediapipe_problem(unquantized, CONTRACT))


def read_or_none(content: bytes) -> Metadata | None:
    try:
        return read_metadata(content)
    except EdgekitError:
        return None


def test_notes_say_what_scores_are() -> None:
    assert LOGITS in mediapipe_notes(CONTRACT, {"MEAN": 1})
    assert LOGITS not in mediapipe_notes(CONTRACT, {"SOFTMAX": 1})
    assert len(mediapipe_notes(changed(crop="center"), {})) == 4


# Runs where MediaPipe is installed: for every file its answers to every picture, or why it refuses.
PROGRAM = """
import json, sys
import numpy as np
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
from mediapipe.tasks.python.core.base_options import BaseOptions
from mediapipe.tasks.python.vision.core.image import Image, ImageFormat
from mediapipe.tasks.python.vision.image_classifier import ImageClassifier, ImageClassifierOptions

def answers(path, images):
    options = ImageClassifierOptions(base_options=BaseOptions(model_asset_path=path))
    with ImageClassifier.create_from_options(options) as classifier:
        return [
            [[c.category_name, c.index, c.score] for c in
             classifier.classify(Image(image_format=ImageFormat.SRGB, data=image))
             .classifications[0].categories]
            for image in images
        ]

found = {}
for path, pictures in json.load(open(sys.argv[1])).items():
    try:
        found[path] = {"answers": answers(path, np.load(pictures))}
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        found[path] = {"refused": str(error)}
    content = open(path, "rb").read()
    mark = content.rfind(b"M001")
    if mark >= 0:
        read = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(content, mark - 4))
        image = read.subgraphMetadata[0].inputTensorMetadata[0]
        normalization = image.processUnits[0].options
        found[path]["metadata"] = [
            read.name.decode(), read.license.decode(),
            [float(x) for x in normalization.mean], [float(x) for x in normalization.std],
            image.content.contentProperties.colorSpace,
        ]
json.dump(found, open(sys.argv[2], "w"))
"""

LOADING = """
import ctypes, pathlib
from mediapipe.tasks.python.vision import image_classifier
root = pathlib.Path(image_classifier.__file__).parents[3]
ctypes.CDLL(str(root / "tasks" / "c" / "libmediapipe.so"))
"""


def needed(reason: str) -> None:
    """Skips the test, but fails it in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def mediapipe() -> Path:
    """Returns a Python that has MediaPipe; its environment is made once and kept."""
    place = cache_folder() / f"mediapipe-{MEDIAPIPE}"
    python, done = place / "bin" / "python", place / "done"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            install = [str(python), "-m", "pip", "install", "-q", f"mediapipe=={MEDIAPIPE}"]
            try:
                subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=120)
                subprocess.run(install, check=True, timeout=600, capture_output=True)
            except (OSError, subprocess.SubprocessError) as err:
                needed(f"needs mediapipe {MEDIAPIPE} from a package registry: {err}")
            done.touch()
    loaded = subprocess.run(
        [str(python), "-c", LOADING], capture_output=True, text=True, timeout=120, check=False
    )
    if loaded.returncode:
        needed(
            "MediaPipe needs the libraries of libegl1, libgles2, libgl1 and libglib2.0-0: "
            f"{loaded.stderr[-300:]}"
        )
    return python


def judged_by_mediapipe(python: Path, folder: Path, files: dict[str, str]) -> Untyped:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "job.json").write_text(json.dumps(files))
    command = [str(python), "program.py", "job.json", "found.json"]
    ran = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.timeout(1000)  # the first time MediaPipe and what it needs are installed
def test_mediapipe_answers_as_we_say(mediapipe: Path, tmp_path: Path) -> None:
    colour_images(tmp_path / "images.npy")
    pixels = np.load(tmp_path / "images.npy")
    files: dict[str, bytes] = {}
    expected: dict[str, str | None] = {}
    for dtype in ("float32", "uint8", "int8"):
        bare = mean_tflite(tmp_path / f"{dtype}.tflite", dtype).read_bytes()
        for kind, preprocess in (("plain", CONTRACT), ("channels", PER_CHANNEL)):
            name = str(tmp_path / f"{dtype}_{kind}.tflite")
            files[name] = written(bare, HOSTILE, preprocess)
            expected[name] = mediapipe_problem(files[name], preprocess)
        files[str(tmp_path / f"{dtype}.tflite")] = bare
        expected[str(tmp_path / f"{dtype}.tflite")] = mediapipe_problem(bare, CONTRACT)
    for name, content in files.items():
        Path(name).write_bytes(content)
    found = judged_by_mediapipe(mediapipe, tmp_path, dict.fromkeys(files, "images.npy"))

    # It gives pixels to a uint8 input whatever the contract says: nothing is refused, only wrong.
    silent = str(tmp_path / "uint8_channels.tflite")
    assert "other codes" in str(expected.pop(silent))
    assert found[silent]["answers"] == found[str(tmp_path / "uint8_plain.tflite")]["answers"]
    for name, problem in expected.items():
        assert (problem is None) == ("answers" in found[name]), (name, problem, found[name])
    assert "INT8" in found[str(tmp_path / "int8_plain.tflite")]["refused"]
    assert "NormalizationOptions" in found[str(tmp_path / "float32.tflite")]["refused"]
    assert "Per-channel" in found[str(tmp_path / "float32_channels.tflite")]["refused"]

    for name, step in (("float32_plain", 1e-6), ("uint8_plain", 1 / 128)):
        got = found[str(tmp_path / f"{name}.tflite")]
        means = pixels.reshape(len(pixels), -1, 3).mean(axis=1) / 128 - 1
        for row, mean in zip(got["answers"], means, strict=True):
            best = int(mean.argmax())
            assert (row[0][0], row[0][1]) == (HOSTILE[best], best)
            assert row[0][2] == pytest.approx(mean[best], abs=step)
        assert got["metadata"] == [
            "Brightest channel", "Apache-2.0", [128.0] * 3, [128.0] * 3, 1,
        ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_mediapipe_gives_the_class_of_every_golden(
    mediapipe: Path, exported: Exported, tmp_path: Path
) -> None:
    images, _ = coloured(16, 5)
    np.save(tmp_path / "images.npy", images)
    preprocess = exported.record.preprocess
    made: dict[tuple[str, str], tuple[str, bytes]] = {}
    for artifact in exported.record.artifacts:
        if artifact.format == "tflite":
            bare = (exported.folder / artifact.path).read_bytes()
            path = tmp_path / Path(artifact.path).name
            path.write_bytes(written(bare, CLASSES, preprocess))
            made.setdefault((artifact.variant, artifact.io), (str(path), bare))
    files = {path: "images.npy" for path, _ in made.values()}
    found = judged_by_mediapipe(mediapipe, tmp_path, files)

    for key, (path, bare) in made.items():
        problem = mediapipe_problem(Path(path).read_bytes(), preprocess)
        assert (problem is None) == ("answers" in found[path]), (key, problem, found[path])
        if problem is not None:
            assert key[1] == "int8"
            continue
        info = inspect_content(bare, "tflite", path)
        real = images if key[1] == "uint8" else (images / np.float32(128) - np.float32(1))
        raw = answers(bare, real)
        output = info.outputs[0]
        scores = raw.astype(np.float64)
        if output.scale is not None and output.zero_point is not None:
            scores = (scores - output.zero_point) * output.scale
        theirs = np.zeros_like(scores)
        for row, categories in enumerate(found[path]["answers"]):
            for _, index, score in categories:
                theirs[row, index] = score
            assert scores[row].max() == scores[row, categories[0][1]], (key, row)
            assert categories[0][0] == CLASSES[categories[0][1]]
        # Codes may be one apart between versions of the kernels, float sums by their order.
        np.testing.assert_allclose(theirs, scores, atol=max(1.01 * (output.scale or 0), 1e-3))
        assert scores.max() > 1 or scores.min() < 0  # logits, passed through
    assert {("float32", "float32"), ("int8", "uint8"), ("int8", "int8")} <= set(made)
