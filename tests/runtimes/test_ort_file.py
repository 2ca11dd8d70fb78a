"""Files in onnxruntime's own format are read without being trusted."""

import contextlib
from pathlib import Path

import pytest
from tiny_models import mean_onnx, opened, quantized_onnx

from edgekit.errors import IntegrityError
from edgekit.runtimes.inspect import inspect_model

pytest.importorskip("onnxruntime")

from edgekit.export.ort_file import convert


@pytest.fixture
def mean_ort(tmp_path: Path) -> Path:
    path = tmp_path / "model.ort"
    path.write_bytes(convert(mean_onnx(tmp_path / "m.onnx", metadata={"note": "hi"}).read_bytes()))
    return path


def test_its_facts_are_those_of_its_source(mean_ort: Path, tmp_path: Path) -> None:
    facts, source = inspect_model(mean_ort), inspect_model(tmp_path / "m.onnx")
    assert facts.format == "ort"
    assert (facts.inputs, facts.outputs) == (source.inputs, source.outputs)
    assert facts.metadata == {"note": "hi"}
    assert facts.float_tensors == ("last",)
    assert "Gemm" in facts.operators


def test_a_convolution_that_stays_float_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.ort"
    path.write_bytes(convert(quantized_onnx(tmp_path / "q.onnx").read_bytes()))
    # The one convolution has no quantized output, so it is float to the optimizer.
    assert inspect_model(path).float_tensors == ("k",)


def test_it_is_opened_by_onnxruntime(mean_ort: Path) -> None:
    session = opened(mean_ort, "onnxruntime")
    assert session.input_shape[0] == 1


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ort"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(IntegrityError, match=r"not an \.ort file"):
        inspect_model(path)


def test_no_cut_and_no_flipped_offset_gets_past(mean_ort: Path) -> None:
    content = mean_ort.read_bytes()
    for length in range(8, len(content) - 64, max(1, len(content) // 60)):
        mean_ort.write_bytes(content[:length])
        with pytest.raises(IntegrityError):
            inspect_model(mean_ort)
    # An offset that lies is an IntegrityError or changes a fact, never another exception.
    for position in range(8, min(len(content), 2048), 4):
        mean_ort.write_bytes(content[:position] + b"\xf0\xff\xff\x7f" + content[position + 4 :])
        with contextlib.suppress(IntegrityError):
            inspect_model(mean_ort)
