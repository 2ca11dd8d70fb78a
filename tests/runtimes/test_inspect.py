"""What a model file says about itself, and which files are refused before a runtime sees them."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import (
    SIZE,
    mean_onnx,
    mean_tflite,
    quantized_onnx,
    save_onnx,
    shared_file,
)

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import TensorInfo
from edgekit.runtimes import inspect_model


def test_tflite_facts(tmp_path: Path) -> None:
    facts = inspect_model(mean_tflite(tmp_path / "m.tflite", "int8"))
    image = TensorInfo(
        name="image", dtype="int8", shape=(1, SIZE, SIZE, 3), scale=1 / 128, zero_point=0
    )
    scores = TensorInfo(name="scores", dtype="int8", shape=(1, 3), scale=1 / 128, zero_point=0)
    assert (facts.format, facts.schema_version) == ("tflite", 3)
    assert facts.inputs == (image,)
    assert facts.outputs == (scores,)
    assert facts.operators == {"MEAN": 1}
    assert facts.float_tensors == ()


def test_free_batch_shows_as_minus_one(tmp_path: Path) -> None:
    facts = inspect_model(mean_tflite(tmp_path / "m.tflite", batch=-1))
    assert facts.inputs[0].shape == (-1, SIZE, SIZE, 3)
    named = inspect_model(mean_onnx(tmp_path / "m.onnx", shape=("n", SIZE, SIZE, 3)))
    assert named.inputs[0].shape == (-1, SIZE, SIZE, 3)


def test_public_int8_model_has_no_float_activation() -> None:
    facts = inspect_model(shared_file("models", "tf2_mobilenet_v2_1.0_224_ptq.tflite"))
    assert facts.float_tensors == ()
    assert facts.operators["CONV_2D"] == 36
    assert facts.operators["DEPTHWISE_CONV_2D"] == 17
    assert facts.outputs[0].shape == (1, 1001)


def test_tflite_float_activations_are_named(tmp_path: Path) -> None:
    facts = inspect_model(mean_tflite(tmp_path / "f.tflite", "float32", relu=True))
    assert facts.float_tensors == ("means",)
    assert facts.operators == {"MEAN": 1, "RELU": 1}
    twin = inspect_model(mean_tflite(tmp_path / "i.tflite", "int8", relu=True))
    assert twin.float_tensors == ()


def test_onnx_facts(tmp_path: Path) -> None:
    facts = inspect_model(mean_onnx(tmp_path / "m.onnx", metadata={"edgekit.note": "hi"}))
    assert (facts.format, facts.schema_version) == ("onnx", 17)
    assert facts.inputs[0] == TensorInfo(name="image", dtype="float32", shape=(1, SIZE, SIZE, 3))
    assert facts.outputs[0].shape == (1, 3)
    assert facts.operators == {"Gemm": 1, "Identity": 1, "ReduceMean": 1}
    assert facts.float_tensors == ("last",)
    assert facts.metadata == {"edgekit.note": "hi"}


def test_onnx_quantized_ends_and_compute(tmp_path: Path) -> None:
    facts = inspect_model(quantized_onnx(tmp_path / "q.onnx"))
    assert (facts.inputs[0].dtype, facts.inputs[0].scale) == ("uint8", 1 / 128)
    assert (facts.outputs[0].zero_point, facts.outputs[0].scale) == (128, 1 / 128)
    assert facts.float_tensors == ()
    twin = inspect_model(quantized_onnx(tmp_path / "t.onnx", dequantize=False))
    assert twin.float_tensors == ("k",)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tflite", b"", "empty file"),
        ("a.tflite", b"PK\x03\x04" + bytes(60), "a ZIP archive"),
        ("a.tflite", b"TFL3", "too short"),
        ("a.tflite", bytes(64), "not a TFLite file"),
        ("a.tflite", b"\x10\x00\x00\x00TFL3" + b"\xff" * 64, "damaged TFLite file"),
        ("a.onnx", b"", "empty file"),
        ("a.onnx", b"\xff" * 64, "not an ONNX file"),
        ("a.onnx", b"hello, I am a text file", "not an ONNX file"),
    ],
)
def test_not_a_model(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=words):
        inspect_model(path)


def test_wrong_suffix_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"\.keras"):
        inspect_model(tmp_path / "m.keras")
    with pytest.raises(SpecError, match="No such file"):
        inspect_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", ["tflite", "onnx"])
def test_every_cut_is_refused_or_complete(tmp_path: Path, kind: str) -> None:
    """No length of the file makes the reader raise anything but an IntegrityError."""
    make = mean_tflite if kind == "tflite" else mean_onnx
    whole = make(tmp_path / f"m.{kind}").read_bytes()
    path = tmp_path / f"cut.{kind}"
    refused = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            inspect_model(path)
        except IntegrityError:
            refused += 1
    assert refused > 0.9 * len(whole)


@pytest.mark.parametrize("kind", ["tflite", "onnx"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, kind: str) -> None:
    make = mean_tflite if kind == "tflite" else mean_onnx
    whole = np.frombuffer(make(tmp_path / f"m.{kind}").read_bytes(), np.uint8)
    rng = np.random.default_rng(5)
    path = tmp_path / f"damaged.{kind}"
    refused = 0
    for _ in range(400):
        damaged = whole.copy()
        where = rng.integers(8, whole.size, 3)
        damaged[where] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            inspect_model(path)
        except IntegrityError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", ["FlexErf", "TFLite_Detection_PostProcess"])
def test_custom_tflite_operator(tmp_path: Path, name: str) -> None:
    with pytest.raises(IntegrityError, match=f"custom operator '{name}'"):
        inspect_model(mean_tflite(tmp_path / "m.tflite", custom=name))


def _external(name: str, shape: tuple[int, ...] = (3, 3)) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    return tensor


def _with_weights(path: Path, where: str) -> Path:
    """Writes a model whose tensor in the place `where` keeps its data in weights.bin."""
    tensor = _external("order")
    extra, initializers, sparse = [], [], []
    if where == "initializer":
        initializers = [tensor]
    elif where == "attribute":
        extra = [helper.make_node("Constant", [], ["order"], value=tensor)]
    elif where == "subgraph":
        result = [helper.make_tensor_value_info("order", TensorProto.FLOAT, [3, 3])]
        branch = helper.make_graph([], "branch", [], result, [tensor])
        extra = [helper.make_node("If", ["yes"], ["order"], then_branch=branch, else_branch=branch)]
        initializers = [numpy_helper.from_array(np.array(True), "yes")]
    else:
        places = numpy_helper.from_array(np.arange(9, dtype=np.int64), "places")
        values = helper.make_sparse_tensor(_external("order", (9,)), places, [3, 3])
        if where == "sparse attribute":
            extra = [helper.make_node("Constant", [], ["order"], sparse_value=values)]
        else:
            sparse = [values]
    graph = helper.make_graph(
        [
            *extra,
            helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("Gemm", ["mean", "order"], ["scores"]),
        ],
        "hostile",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, SIZE, SIZE, 3))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])],
        initializers,
        sparse_initializer=sparse,
    )
    save_onnx(onnx, graph, path)
    return path


@pytest.mark.parametrize(
    "where", ["initializer", "attribute", "subgraph", "sparse attribute", "sparse initializer"]
)
def test_external_data_are_refused_wherever_they_hide(tmp_path: Path, where: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.zeros(9, np.float32).tobytes())
    # A hard link is what onnxruntime 1.31 would follow.
    os.link(secret, tmp_path / "weights.bin")
    path = _with_weights(tmp_path / "m.onnx", where)
    with pytest.raises(IntegrityError, match="keeps its data in another file"):
        inspect_model(path)


@pytest.mark.parametrize(
    ("domain", "name"), [("evil.domain", "Run"), ("com.microsoft", "EPContext")]
)
def test_custom_onnx_operator(tmp_path: Path, domain: str, name: str) -> None:
    graph = helper.make_graph(
        [helper.make_node(name, ["image"], ["scores"], domain=domain)],
        "custom",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, SIZE, SIZE, 3))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])],
    )
    save_onnx(onnx, graph, tmp_path / "m.onnx")
    with pytest.raises(IntegrityError, match=f"custom operator {domain}.{name}"):
        inspect_model(tmp_path / "m.onnx")


def test_names_in_messages_carry_no_terminal_escapes(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Run\x1b[2J", ["image"], ["scores"], domain="evil\n")],
        "custom",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, SIZE, SIZE, 3))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])],
    )
    save_onnx(onnx, graph, tmp_path / "m.onnx")
    with pytest.raises(IntegrityError) as caught:
        inspect_model(tmp_path / "m.onnx")
    assert caught.value.received.endswith("custom operator evil .Run [2J")


def test_subgraphs_that_share_one_long_table_are_refused(tmp_path: Path) -> None:
    """Each subgraph alone fits into the file; all together would take hours to read."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(mean_tflite(tmp_path / "m.tflite").read_bytes())
    model.subgraphs[0].tensors += [schema.TensorT() for _ in range(500)]
    builder = flatbuffers.Builder(1024)
    graph = model.subgraphs[0].Pack(builder)
    code = model.operatorCodes[0].Pack(builder)
    buffers = [buffer.Pack(builder) for buffer in model.buffers]
    vectors = []
    for offsets in ([graph] * 2000, [code], buffers):
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        vectors.append(builder.EndVector())
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, vectors[0])
    schema.ModelAddOperatorCodes(builder, vectors[1])
    schema.ModelAddBuffers(builder, vectors[2])
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    path = tmp_path / "many.tflite"
    path.write_bytes(bytes(builder.Output()))
    with pytest.raises(IntegrityError, match="a table of 1006000 entries"):
        inspect_model(path)
