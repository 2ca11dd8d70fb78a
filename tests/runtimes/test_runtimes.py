"""Real runtimes answer real files; what is no image classifier is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_models import (
    SIZE,
    colour_images,
    digest,
    large_products_onnx,
    mean_onnx,
    mean_tflite,
    quantized_onnx,
    save_onnx,
    shared_file,
)

from edgekit.errors import IntegrityError, SpecError
from edgekit.runtimes import RuntimeName, open_model

_CPUINFO = Path("/proc/cpuinfo")
PROCESSOR = _CPUINFO.read_text() if _CPUINFO.is_file() else ""


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("batch", [1, -1])
def test_litert_answers_with_the_mean_of_each_channel(
    tmp_path: Path, dtype: str, batch: int
) -> None:
    session = open_model(mean_tflite(tmp_path / "m.tflite", dtype, batch), "litert", threads=2)
    image = np.random.default_rng(1).integers(0, 256, (1, SIZE, SIZE, 3)).astype(dtype)
    answer = session.run(image)
    assert answer.shape == (3,)
    assert answer.dtype == dtype
    assert session.version.startswith("LiteRT ")
    # Half a code for the rounding of the mean; float32 adds 16 numbers below 256.
    tolerance = 0.5 if dtype == "uint8" else 1e-4
    np.testing.assert_allclose(answer.astype(float), image.mean(axis=(0, 1, 2)), atol=tolerance)


@pytest.mark.parametrize("batch", [1, "n"])
def test_onnxruntime_answers_with_the_mean_of_each_channel(
    tmp_path: Path, batch: int | str
) -> None:
    path = mean_onnx(tmp_path / "m.onnx", shape=(batch, SIZE, SIZE, 3))
    session = open_model(path, "onnxruntime", threads=1)
    image = np.random.default_rng(1).random((1, SIZE, SIZE, 3), np.float32)
    answer = session.run(image).astype(float)
    np.testing.assert_allclose(answer, image.mean(axis=(0, 1, 2))[::-1], atol=1e-6)
    assert session.version.startswith("onnxruntime ")


WHITE = np.full((1, SIZE, SIZE, 3), 255, np.float32)


def test_int8_arithmetic_of_onnxruntime_is_exact(tmp_path: Path) -> None:
    session = open_model(large_products_onnx(tmp_path / "m.onnx"), "onnxruntime", threads=1)
    assert session.run(WHITE).tolist() == [84, 171, 255]
    assert session.version.endswith("session.x64quantprecision=1")


@pytest.mark.skipif(
    "avx2" not in PROCESSOR or "vnni" in PROCESSOR, reason="needs an x86 processor without VNNI"
)
def test_the_default_of_onnxruntime_is_not_exact_without_vnni(tmp_path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(large_products_onnx(tmp_path / "m.onnx"))
    (answer,) = session.run(None, {"image": WHITE})
    assert answer.tolist() != [[84, 171, 255]]


def test_answers_survive_the_next_call(tmp_path: Path) -> None:
    """A runtime's own buffer is reused; an answer that is a view of it would change."""
    models: tuple[tuple[Path, RuntimeName], ...] = (
        (mean_tflite(tmp_path / "m.tflite"), "litert"),
        (quantized_onnx(tmp_path / "m.onnx"), "onnxruntime"),
    )
    for path, runtime in models:
        session = open_model(path, runtime, threads=1)
        first = session.run(np.full((1, SIZE, SIZE, 3), 10, np.uint8))
        kept = first.copy()
        session.run(np.full((1, SIZE, SIZE, 3), 200, np.uint8))
        np.testing.assert_array_equal(first, kept)


def test_digest_is_checked_on_the_bytes_that_run(tmp_path: Path) -> None:
    path = mean_tflite(tmp_path / "m.tflite")
    open_model(path, "litert", 1, digest(path))
    with pytest.raises(IntegrityError, match="SHA-256"):
        open_model(path, "litert", 1, "0" * 64)


def test_runtime_must_fit_the_format(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a tflite file for the runtime onnxruntime"):
        open_model(mean_tflite(tmp_path / "m.tflite"), "onnxruntime", 1)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 8, 8), "channels first"),
        ((1, 8, 8, 4), "shape"),
        ((1, 8, 3), "shape"),
        ((1, "h", "w", 3), "shape"),
        ((4, 8, 8, 3), "fixed batch of 4"),
    ],
)
def test_input_that_is_no_image(tmp_path: Path, shape: tuple[int | str, ...], words: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool" if len(shape) == 4 else "Relu", ["image"], ["s"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 3])],
    )
    save_onnx(onnx, graph, tmp_path / "m.onnx")
    with pytest.raises(IntegrityError, match=words):
        open_model(tmp_path / "m.onnx", "onnxruntime", 1)


def test_fixed_batch_in_tflite(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="fixed batch of 8"):
        open_model(mean_tflite(tmp_path / "m.tflite", batch=8), "litert", 1)


def test_two_outputs(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], [n], axes=[1, 2], keepdims=0) for n in "ab"],
        "g",
        [value("image", TensorProto.FLOAT, [1, SIZE, SIZE, 3])],
        [value(name, TensorProto.FLOAT, [1, 3]) for name in "ab"],
    )
    save_onnx(onnx, graph, tmp_path / "m.onnx")
    with pytest.raises(IntegrityError, match="1 inputs and 2 outputs"):
        open_model(tmp_path / "m.onnx", "onnxruntime", 1)


def test_model_that_the_runtime_refuses(tmp_path: Path) -> None:
    """Valid by ONNX's checker, but the shapes of the product do not fit."""
    path = mean_onnx(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.zeros((7, 3), np.float32), "order")
    )
    path.write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match="onnxruntime refuses it"):
        open_model(path, "onnxruntime", 1)


def test_public_model_knows_a_shape(tmp_path: Path) -> None:
    model = shared_file("models", "tf2_mobilenet_v2_1.0_224_ptq.tflite")
    session = open_model(model, "litert", 2)
    colour_images(tmp_path / "i.npy", 1, 224)
    answer = session.run(np.load(tmp_path / "i.npy"))
    assert answer.shape == (1001,)
    assert answer.dtype == np.uint8
    # A softmax in steps of 1/256: its sum is 1 but for the rounding of the larger scores.
    assert 200 < int(answer.astype(int).sum()) < 300
