"""What is no image classifier, or not the file that was named, is refused without running it."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tiny_models import (
    SIZE,
    digest,
    mean_tflite,
    save_onnx,
)

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import TensorInfo
from edgekit.runtimes import RuntimeName, read_ends


def ends(path: Path, runtime: RuntimeName) -> tuple[TensorInfo, TensorInfo]:
    return read_ends(path, runtime, digest(path))


def test_digest_is_checked(tmp_path: Path) -> None:
    path = mean_tflite(tmp_path / "m.tflite")
    read_ends(path, "litert", digest(path))
    with pytest.raises(IntegrityError, match="SHA-256"):
        read_ends(path, "litert", "0" * 64)


def test_runtime_must_fit_the_format(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="tflite format, for the runtime onnxruntime"):
        ends(mean_tflite(tmp_path / "m.tflite"), "onnxruntime")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
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
        ends(tmp_path / "m.onnx", "onnxruntime")


def test_fixed_batch_in_tflite(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="fixed batch of 8"):
        ends(mean_tflite(tmp_path / "m.tflite", batch=8), "litert")


def test_two_outputs(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], [n], axes=[1, 2], keepdims=0) for n in "ab"],
        "g",
        [value("image", TensorProto.FLOAT, [1, SIZE, SIZE, 3])],
        [value(name, TensorProto.FLOAT, [1, 3]) for name in "ab"],
    )
    save_onnx(onnx, graph, tmp_path / "m.onnx")
    with pytest.raises(IntegrityError, match="2 outputs"):
        ends(tmp_path / "m.onnx", "onnxruntime")
