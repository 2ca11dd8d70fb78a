"""Real runtimes answer real files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_models import (
    SIZE,
    colour_images,
    large_products_onnx,
    mean_onnx,
    mean_tflite,
    opened,
    quantized_onnx,
    shared_file,
)

from edgekit.runner.onnx_runtime import exact_arithmetic
from edgekit.runner.refusal import Refusal
from edgekit.runtimes import RuntimeName

_CPUINFO = Path("/proc/cpuinfo")
PROCESSOR = _CPUINFO.read_text() if _CPUINFO.is_file() else ""
HAS_VNNI = "avx512_vnni" in PROCESSOR or "avx_vnni" in PROCESSOR


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("batch", [1, -1])
def test_litert_answers_with_the_mean_of_each_channel(
    tmp_path: Path, dtype: str, batch: int
) -> None:
    model = opened(mean_tflite(tmp_path / "m.tflite", dtype, batch), "litert", threads=2)
    image = np.random.default_rng(1).integers(0, 256, (1, SIZE, SIZE, 3)).astype(dtype)
    answer = model.run(image)
    assert answer.shape == (3,)
    assert answer.dtype == dtype
    assert model.version.startswith("LiteRT ")
    # Half a code for the rounding of the mean; float32 adds 16 numbers below 256.
    tolerance = 0.5 if dtype == "uint8" else 1e-4
    np.testing.assert_allclose(answer.astype(float), image.mean(axis=(0, 1, 2)), atol=tolerance)


@pytest.mark.parametrize("batch", [1, "n"])
def test_onnxruntime_answers_with_the_mean_of_each_channel(
    tmp_path: Path, batch: int | str
) -> None:
    path = mean_onnx(tmp_path / "m.onnx", shape=(batch, SIZE, SIZE, 3))
    model = opened(path, "onnxruntime", threads=1)
    image = np.random.default_rng(1).random((1, SIZE, SIZE, 3), np.float32)
    answer = model.run(image).astype(float)
    np.testing.assert_allclose(answer, image.mean(axis=(0, 1, 2))[::-1], atol=1e-6)
    assert model.version.startswith("onnxruntime ")


WHITE = np.full((1, SIZE, SIZE, 3), 255, np.float32)


def test_int8_arithmetic_of_onnxruntime_is_exact(tmp_path: Path) -> None:
    model = opened(large_products_onnx(tmp_path / "m.onnx"), "onnxruntime", threads=1)
    assert model.run(WHITE).tolist() == [84, 171, 255]
    assert model.version.endswith(f"session.x64quantprecision={0 if HAS_VNNI else 1}")


@pytest.mark.skipif(
    "avx2" not in PROCESSOR or HAS_VNNI, reason="needs an x86 processor without VNNI"
)
def test_the_default_of_onnxruntime_is_not_exact_without_vnni(tmp_path: Path) -> None:
    import onnxruntime

    model = onnxruntime.InferenceSession(large_products_onnx(tmp_path / "m.onnx"))
    (answer,) = model.run(None, {"image": WHITE})
    assert answer.tolist() != [[84, 171, 255]]


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ("fma avx2 sha_ni vaes", "1"),  # AMD EPYC 7003
        ("avx2 avx512f avx512_vnni amx_int8", "0"),  # Intel Xeon, fifth generation
        ("avx2 avx_vnni", "0"),  # Intel Core, twelfth generation
        ("avx2 avx512_vnni2", "1"),
        ("", "1"),
    ],
)
def test_only_processors_with_vnni_take_the_fast_arithmetic(
    tmp_path: Path, flags: str, value: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse2\nbugs\t: spectre\n")
    assert exact_arithmetic(cpuinfo) == ("session.x64quantprecision", value)
    assert exact_arithmetic(tmp_path / "none") == ("session.x64quantprecision", "1")


def test_answers_survive_the_next_call(tmp_path: Path) -> None:
    """A runtime's own buffer is reused; an answer that is a view of it would change."""
    models: tuple[tuple[Path, RuntimeName], ...] = (
        (mean_tflite(tmp_path / "m.tflite"), "litert"),
        (quantized_onnx(tmp_path / "m.onnx"), "onnxruntime"),
    )
    for path, runtime in models:
        model = opened(path, runtime, threads=1)
        first = model.run(np.full((1, SIZE, SIZE, 3), 10, np.uint8))
        kept = first.copy()
        model.run(np.full((1, SIZE, SIZE, 3), 200, np.uint8))
        np.testing.assert_array_equal(first, kept)


def test_delegates_are_named_or_refused(tmp_path: Path) -> None:
    lite, onnx_file = mean_tflite(tmp_path / "m.tflite"), mean_onnx(tmp_path / "m.onnx")
    picture = np.full((1, SIZE, SIZE, 3), 100, np.uint8)
    own = opened(lite, "litert", delegate="none")
    assert own.version.endswith("no XNNPACK")
    np.testing.assert_array_equal(own.run(picture), opened(lite, "litert").run(picture))
    for delegate in ("coreml", "nnapi", "qnn"):
        with pytest.raises(Refusal, match=f"{delegate}.*this onnxruntime has .*CPUExec"):
            opened(onnx_file, "onnxruntime", delegate=delegate)
    with pytest.raises(Refusal, match="nnapi") as caught:
        opened(lite, "litert", delegate="nnapi")
    assert caught.value.error == "DeviceError"


def test_model_that_the_runtime_refuses(tmp_path: Path) -> None:
    """Valid by ONNX's checker, but the shapes of the product do not fit."""
    path = mean_onnx(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.zeros((7, 3), np.float32), "order")
    )
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Refusal, match="onnxruntime refuses it"):
        opened(path, "onnxruntime", 1)


def test_public_model_knows_a_shape(tmp_path: Path) -> None:
    model = opened(shared_file("models", "tf2_mobilenet_v2_1.0_224_ptq.tflite"), "litert", 2)
    colour_images(tmp_path / "i.npy", 1, 224)
    answer = model.run(np.load(tmp_path / "i.npy"))
    assert answer.shape == (1001,)
    assert answer.dtype == np.uint8
    # A softmax in steps of 1/256: its sum is 1 but for the rounding of the larger scores.
    assert 200 < int(answer.astype(int).sum()) < 300
