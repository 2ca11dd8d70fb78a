"""Real files on the real interpreter of TensorFlow Lite Micro, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_models import (
    SIZE,
    Untyped,
    colour_images,
    digest,
    mean_onnx,
    mean_tflite,
    shared_file,
)
from tiny_network import SIZE_PX, Exported, coloured

from edgekit.devices import measure
from edgekit.devices.protocol import Subject
from edgekit.errors import DataError, DeviceError, IntegrityError, SpecError
from edgekit.estimate.tflite_micro import MicroAnswers, answers
from edgekit.estimate.tflite_micro_session import ROOM_BYTES, parse_allocations
from edgekit.records import Preprocess, input_codes

pytestmark = pytest.mark.proves(
    "tflite-micro: microcontrollers", "estimate: its reference kernels on this machine"
)

PIXELS = Preprocess(height_px=SIZE, width_px=SIZE)
# What mean_tflite's ends say: a pixel p becomes p / 128 - 1.
CODES = {
    "int8": input_codes(PIXELS, "int8", 1 / 128, 0),
    "uint8": input_codes(PIXELS, "uint8", 1 / 128, 128),
    "float32": input_codes(PIXELS, "float32"),
}


@pytest.fixture(scope="module")
def micro() -> None:
    """Skips where the wheel is missing, but fails in CI."""
    if importlib.util.find_spec("tflite_micro") is None:
        reason = "needs the package tflite-micro (edgekit[micro])"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def run(model: Path, images: Path, dtype: str = "int8", arena_bytes: int | None = None) -> Untyped:
    return answers(model, digest(model), images, CODES[dtype], arena_bytes, timeout_seconds=120)


def altered(model: Path, change: Callable[[Untyped], None]) -> Path:
    """Rewrites a file after a change of its unpacked flatbuffer."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    unpacked = schema.ModelT.InitFromPackedBuf(model.read_bytes(), 0)
    change(unpacked)
    builder = flatbuffers.Builder(1024)
    builder.Finish(unpacked.Pack(builder), b"TFL3")
    model.write_bytes(bytes(builder.Output()))
    return model


def reference_kernels(
    model: Path, images: npt.NDArray[np.uint8], codes: Untyped
) -> npt.NDArray[np.generic]:
    """Returns LiteRT's answers without XNNPACK and without its optimized kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_path=str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    found = []
    for image in images:
        tensor = codes[image, np.arange(3)][None]
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], tensor)
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.array(found)


@pytest.mark.usefixtures("micro")
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_the_file_sees_the_tensor_that_the_codes_describe(tmp_path: Path, dtype: str) -> None:
    labels = colour_images(tmp_path / "i.npy", 12)
    found = run(mean_tflite(tmp_path / "m.tflite", dtype), tmp_path / "i.npy", dtype)
    assert found.raw.dtype == dtype
    real = np.load(tmp_path / "i.npy").mean(axis=(1, 2)) / 128 - 1
    # Codes are 1/128 apart and the int8 mean is rounded twice; float32 only rounds its sums.
    tolerance = 0.75 / 128 if dtype == "int8" else 1e-5
    np.testing.assert_allclose(measure.scores(found.raw, found.output), real, atol=tolerance)
    # Red, green, blue are the channels 0, 1, 2; labels count them from the other end.
    np.testing.assert_array_equal(2 - found.raw.argmax(axis=1), labels)
    assert found.runtime.startswith("TensorFlow Lite Micro 0.dev")


@pytest.mark.usefixtures("micro")
def test_the_twin_other_codes_give_other_answers(tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 12)
    model = mean_tflite(tmp_path / "m.tflite", "int8")
    other = CODES["int8"][::-1].copy()
    found = answers(model, digest(model), tmp_path / "i.npy", other, timeout_seconds=120)
    assert (found.raw != run(model, tmp_path / "i.npy").raw).all()


@pytest.mark.usefixtures("micro")
def test_a_real_network_answers_bit_for_bit_as_litert_reference_kernels(
    exported: Exported, tmp_path: Path
) -> None:
    model = exported.folder / "model_int8_int8_io.tflite"
    images, _ = coloured(24, 5)
    np.save(tmp_path / "i.npy", images)
    artifact = next(a for a in exported.record.artifacts if a.path == model.name)
    preprocess = Preprocess(height_px=SIZE_PX, width_px=SIZE_PX)
    (end,) = artifact.inputs
    codes = input_codes(preprocess, end.dtype, end.scale, end.zero_point)
    heard: list[float] = []
    found = answers(
        model, artifact.sha256, tmp_path / "i.npy", codes, None, 120, progress=heard.append
    )
    np.testing.assert_array_equal(found.raw, reference_kernels(model, images, codes))
    assert all(0 <= fraction <= 1 for fraction in heard)
    # The twin: the kernels that LiteRT itself chooses round otherwise, so equality says something.
    subject = Subject(
        model=model,
        sha256=artifact.sha256,
        runtime="litert",
        images=tmp_path / "i.npy",
        preprocess=preprocess,
    )
    assert (found.raw != measure.answer(subject, 120).raw).any()
    # A network's arena is what the interpreter itself adds up.
    detail = found.arena_detail
    assert 0 <= found.arena_bytes - detail.recorded_bytes < 16
    assert detail.head_bytes + detail.tail_bytes == detail.recorded_bytes
    assert sum(detail.parts.values()) <= detail.tail_bytes
    # In and out of the widest layer lie in the arena at once.
    assert detail.head_bytes > SIZE_PX**2


@pytest.mark.usefixtures("micro")
def test_a_public_network_answers_as_litert_reference_kernels(tmp_path: Path) -> None:
    model = shared_file("models", "tf2_mobilenet_v2_1.0_224_ptq.tflite")
    images, _ = coloured(2, 5, 224)
    np.save(tmp_path / "i.npy", images)
    codes = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    found = answers(model, digest(model), tmp_path / "i.npy", codes, None, 120)
    np.testing.assert_array_equal(found.raw, reference_kernels(model, images, codes))
    assert found.raw.any()
    # ST lists 832.64 KiB of activations for the narrower alpha 0.35 at 224 px.
    assert 1_500_000 < found.arena_bytes < 1_800_000


@pytest.fixture
def small(tmp_path: Path, micro: None) -> tuple[Path, Path, MicroAnswers]:
    """Returns a small network, its images and what was found about it."""
    colour_images(tmp_path / "i.npy", 3)
    model = mean_tflite(tmp_path / "m.tflite", "int8", relu=True)
    return model, tmp_path / "i.npy", run(model, tmp_path / "i.npy")


def test_the_arena_is_the_smallest_that_works(small: tuple[Path, Path, MicroAnswers]) -> None:
    model, images, found = small
    starts = "from sys import argv; from tflite_micro import runtime; "
    starts += "runtime.Interpreter.from_file(argv[1], arena_size=int(argv[2]))"

    def code(arena_bytes: int) -> int:
        command = [sys.executable, "-c", starts, str(model), str(arena_bytes)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert code(found.arena_bytes) == 0
    assert code(found.arena_bytes - 16) != 0
    same = run(model, images, arena_bytes=found.arena_bytes)
    np.testing.assert_array_equal(same.raw, found.raw)
    roomy = run(model, images, arena_bytes=1_000_000)
    np.testing.assert_array_equal(roomy.raw, found.raw)
    assert roomy.arena_detail == found.arena_detail


def test_an_arena_too_small_says_what_is_needed(small: tuple[Path, Path, MicroAnswers]) -> None:
    model, images, found = small
    for size in (found.arena_bytes - 1, 1, 0, -16):
        with pytest.raises(SpecError, match=f"the model needs {found.arena_bytes}"):
            run(model, images, arena_bytes=size)
    with pytest.raises(DeviceError, match="ran out of memory"):
        run(model, images, arena_bytes=2**40)


@pytest.mark.usefixtures("micro")
def test_a_model_for_no_microcontroller(tmp_path: Path) -> None:
    def grow(model: Untyped) -> None:
        model.subgraphs[0].tensors[3].shape = [ROOM_BYTES + 1]

    colour_images(tmp_path / "i.npy", 3)
    model = altered(mean_tflite(tmp_path / "m.tflite", "int8", relu=True), grow)
    with pytest.raises(SpecError, match=f"does not start in an arena of {ROOM_BYTES} bytes"):
        run(model, tmp_path / "i.npy")


def far(model: Untyped) -> None:
    model.subgraphs[0].operators[0].inputs = [0, 4_000_000]


@pytest.mark.usefixtures("micro")
def test_a_crash_is_an_answer(tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 3)
    model = altered(mean_tflite(tmp_path / "m.tflite", "int8"), far)
    with pytest.raises(IntegrityError, match=r"runtime crashed \(SIGSEGV\)"):
        run(model, tmp_path / "i.npy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i.npy", "m.tflite"]


@pytest.mark.usefixtures("micro")
def test_refused_files(tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", 3)
    product = mean_tflite(tmp_path / "p.tflite", "int8", reduction="REDUCE_PROD")
    with pytest.raises(IntegrityError, match=r"p\.tflite: .* has no kernel for REDUCE_PROD"):
        run(product, tmp_path / "i.npy")
    # Its MEAN takes no uint8; it says so only when it runs.
    unsigned = mean_tflite(tmp_path / "u.tflite", "uint8")
    with pytest.raises(IntegrityError, match=r"u\.tflite: .* int8 or int16 .* Node MEAN"):
        run(unsigned, tmp_path / "i.npy", "uint8")
    custom = mean_tflite(tmp_path / "c.tflite", "int8", custom="Own")
    with pytest.raises(IntegrityError, match="custom operator 'Own'"):
        run(custom, tmp_path / "i.npy")
    model = mean_tflite(tmp_path / "m.tflite", "int8")
    with pytest.raises(IntegrityError, match="SHA-256"):
        answers(model, "0" * 64, tmp_path / "i.npy", CODES["int8"])
    model.write_bytes(model.read_bytes()[:300])
    with pytest.raises(IntegrityError, match="damaged TFLite file"):
        run(model, tmp_path / "i.npy")
    with pytest.raises(SpecError, match="onnx format, for the runtime litert"):
        run(mean_onnx(tmp_path / "m.onnx"), tmp_path / "i.npy")


@pytest.mark.usefixtures("micro")
def test_what_does_not_fit_together(tmp_path: Path) -> None:
    model = mean_tflite(tmp_path / "m.tflite", "int8")
    colour_images(tmp_path / "i.npy", 3, SIZE + 1)
    with pytest.raises(SpecError, match="the same size"):
        run(model, tmp_path / "i.npy")
    colour_images(tmp_path / "i.npy", 3)
    with pytest.raises(SpecError, match="codes of float32"):
        run(model, tmp_path / "i.npy", "float32")
    with pytest.raises(SpecError, match=r"codes of shape \(3, 256\)"):
        answers(model, digest(model), tmp_path / "i.npy", CODES["int8"].T)
    (tmp_path / "i.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"i\.npy"):
        run(model, tmp_path / "i.npy")
    np.save(tmp_path / "i.npy", np.zeros((0, SIZE, SIZE, 3), np.uint8))
    with pytest.raises(DataError, match=r"uint8 of shape \(0, 4, 4, 3\)"):
        run(model, tmp_path / "i.npy")
    with pytest.raises(SpecError, match="No such file"):
        answers(tmp_path / "none.tflite", "0" * 64, tmp_path / "i.npy", CODES["int8"])


@pytest.mark.usefixtures("micro")
def test_a_time_limit_ends_it(tmp_path: Path) -> None:
    model = mean_tflite(tmp_path / "m.tflite", "int8")
    colour_images(tmp_path / "i.npy", 3)
    with pytest.raises(DeviceError, match=r"no answer after 0\.05 s"):
        answers(model, digest(model), tmp_path / "i.npy", CODES["int8"], None, 0.05)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def own_children() -> set[str]:
    tasks = Path("/proc/self/task").glob("*/children")
    return {child for task in tasks for child in task.read_text().split()}


@pytest.mark.usefixtures("micro")
def test_no_descriptor_and_no_process_stays(tmp_path: Path) -> None:
    model = mean_tflite(tmp_path / "m.tflite", "int8")
    colour_images(tmp_path / "i.npy", 3)
    before, children = open_descriptors(), own_children()
    run(model, tmp_path / "i.npy")
    assert open_descriptors() == before
    assert own_children() <= children  # other tests' servers may be among them


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tflite_micro", None)
    with pytest.raises(DeviceError, match=r"pip install 'edgekit\[micro\]'"):
        answers(tmp_path / "m.tflite", "0" * 64, tmp_path / "i.npy", CODES["int8"])


SAID = """[RecordingMicroAllocator] Arena allocation total 1152 bytes\r
[RecordingMicroAllocator] Arena allocation head 112 bytes\r
[RecordingMicroAllocator] Arena allocation tail 1040 bytes\r
[RecordingMicroAllocator] 'Persistent buffer data' used 111 bytes with alignment overhead\r
"""


def test_parse_allocations() -> None:
    assert parse_allocations(SAID, "m") == {
        "recorded_bytes": 1152,
        "head_bytes": 112,
        "tail_bytes": 1040,
        "parts": {"Persistent buffer data": 111},
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("total 1152", "total 1153"),
        ("head 112 bytes", "head 112 KiB"),
        ("allocation tail", "allocation heap"),
        ("Arena allocation head 112 bytes", "Arena allocation total 1152 bytes"),
        (SAID, ""),
        (SAID, 2 * SAID),
    ],
)
def test_the_twin_other_words_are_refused(old: str, new: str) -> None:
    with pytest.raises(DeviceError, match="tflite-micro said of its arena"):
        parse_allocations(SAID.replace(old, new), "m")
