"""The .ort file: the ONNX file in onnxruntime's own format, and the operators that it needs."""

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import Exported, Untyped

from edgekit.runner.onnx_runtime import ERRORS_ONLY, exact_arithmetic
from edgekit.runtimes.inspect import inspect_model

onnxruntime = pytest.importorskip("onnxruntime")

from edgekit.export.ort_file import convert  # noqa: E402 - after the check for onnxruntime


def answers_of(
    content: bytes, images: Untyped, *option: tuple[str, str]
) -> npt.NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    for key, value in option:
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


@pytest.mark.parametrize("name", ["model_int8", "model_float32"])
def test_it_answers_as_the_onnx_file(exported: Exported, pictures: Untyped, name: str) -> None:
    source = (exported.folder / f"{name}.onnx").read_bytes()
    content = convert(source)
    images = pictures[1].normalize(pictures[1].images.astype(np.float32))
    # The .ort file needs no option to be exact.
    expected = answers_of(source, images, exact_arithmetic())
    answers = answers_of(content, images)
    # int8: the same integers. float32: an ONNX file is laid out for this processor when loaded, so
    # sums are taken in another order.
    assert np.allclose(answers, expected, rtol=0, atol=0 if "int8" in name else 1e-4)
    # Twin: of other pictures.
    assert not np.allclose(answers_of(content, images[::-1]), expected, rtol=0, atol=1e-4)


def test_the_same_file_gives_the_same_bytes(exported: Exported) -> None:
    source = (exported.folder / "model_int8.onnx").read_bytes()
    made = [convert(source) for _ in range(3)]
    assert set(made) == {(exported.folder / "model_int8.ort").read_bytes()}


def test_it_runs_in_integers_and_carries_the_contract(exported: Exported) -> None:
    facts = inspect_model(exported.folder / "model_int8.ort")
    source = inspect_model(exported.folder / "model_int8.onnx")
    assert (facts.format, facts.schema_version) == ("ort", source.schema_version)
    assert (facts.inputs, facts.outputs) == (source.inputs, source.outputs)
    assert facts.metadata == source.metadata
    assert (facts.operators["QLinearConv"], facts.operators["QLinearAdd"]) == (53, 10)
    assert facts.float_tensors == ()


def test_the_operators_are_those_of_the_file(exported: Exported) -> None:
    lines = (exported.folder / "model_int8.ort.required_operators.config").read_text().splitlines()
    found = {name for line in lines for name in line.split(";")[2].split(",")}
    assert found == set(inspect_model(exported.folder / "model_int8.ort").operators)
    assert {line.split(";")[0] for line in lines} == {"ai.onnx", "com.microsoft"}
