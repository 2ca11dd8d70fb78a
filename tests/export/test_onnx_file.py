"""The ONNX files: valid, self-contained, quantized with the table and fused throughout."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_network import ALPHA, CLASSES, SIZE_PX, Exported, Untyped, altered

from edgekit.errors import ConversionError
from edgekit.network.graph import bias_codes, kernel_codes, mobilenet_v2, weighted
from edgekit.network.ranges import from_limits, keeping_float, table_of
from edgekit.records import Preprocess
from edgekit.runner.onnx_runtime import exact_arithmetic

pytest.importorskip("tensorflow")
onnx = pytest.importorskip("onnx")

from edgekit.export import onnx_file  # noqa: E402 - after the checks that the converters are there
from edgekit.network.forward import logits_function  # noqa: E402

NODES = mobilenet_v2(ALPHA)
FILES = ("model_float32.onnx", "model_int8.onnx")


@pytest.fixture(scope="module")
def write(contract: Preprocess) -> Callable[..., Untyped]:
    """Returns a function from nodes, weights and a table to a model."""
    return functools.partial(
        onnx_file.write, size_px=(SIZE_PX, SIZE_PX), preprocess=contract, class_names=CLASSES
    )


def parameters(model: Untyped) -> dict[str, Untyped]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_valid_and_self_contained(exported: Exported, name: str) -> None:
    path = exported.folder / name
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [
        ("", 17)
    ]
    assert model.ir_version == 8
    assert all(not tensor.external_data for tensor in model.graph.initializer)
    (entering,), (leaving,) = model.graph.input, model.graph.output
    assert (entering.name, leaving.name) == ("image", "logits")

    def shape(value: Untyped) -> list[int]:
        return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]

    assert (shape(entering), shape(leaving)) == ([1, SIZE_PX, SIZE_PX, 3], [1, 3])


@pytest.mark.parametrize("name", FILES)
def test_the_metadata_say_how_to_use_it(
    exported: Exported, contract: Preprocess, name: str
) -> None:
    model = onnx.load(exported.folder / name)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert Preprocess.model_validate_json(metadata["edgekit.preprocess"]) == contract
    assert tuple(json.loads(metadata["edgekit.labels"])) == CLASSES
    options = metadata.get("edgekit.session_options_x86_without_vnni")
    assert options == ('{"session.x64quantprecision": "1"}' if "int8" in name else None)


def graph_that_runs(path: Path, folder: Path) -> Iterator[Untyped]:
    """Returns the nodes that onnxruntime is left with after all optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file fits this processor only
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return iter(onnx.load(folder / "optimized.onnx").graph.node)


def test_every_convolution_runs_in_integers(exported: Exported, tmp_path: Path) -> None:
    path = exported.folder / "model_int8.onnx"
    used = Counter(node.op_type for node in graph_that_runs(path, tmp_path))
    assert used["QLinearConv"] == 53
    assert used["QLinearAdd"] == 10
    assert not {"Conv", "FusedConv", "Clip", "Add"} & set(used)
    # One at each end, and nothing in between goes back to float.
    assert (used["QuantizeLinear"], used["DequantizeLinear"]) == (1, 1)


def test_one_grid_for_a_whole_kernel_runs_in_integers_too(
    write: Callable[..., Untyped], sources: Untyped, tmp_path: Path
) -> None:
    weights = sources.int8.weights
    table = table_of(NODES, weights, sources.int8.table.activations, "tensor")
    model = write(NODES, weights, table)
    onnx.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    used = Counter(node.op_type for node in graph_that_runs(tmp_path / "model.onnx", tmp_path))
    assert (used["QLinearConv"], used["QLinearAdd"], used["DequantizeLinear"]) == (53, 10, 1)
    stored = parameters(model)
    for node in weighted(NODES):
        kernel = weights[f"{node.name}/kernel"]
        assert stored[f"{node.name}/kernel/scale"] == np.float32(np.abs(kernel).max()) / 127
        assert stored[f"{node.name}/kernel/zero_point"].shape == ()


KEPT = ("Conv1", "block_2_depthwise", "block_2_project", "block_5_expand", "block_5_depthwise")


def test_layers_kept_in_float_run_in_float_and_all_others_in_integers(
    write: Callable[..., Untyped], sources: Untyped, pictures: Untyped, tmp_path: Path
) -> None:
    import onnxruntime

    weights, table = sources.int8.weights, keeping_float(NODES, sources.int8.table, KEPT)
    model = write(NODES, weights, table)
    onnx.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    used = Counter(node.op_type for node in graph_that_runs(tmp_path / "model.onnx", tmp_path))
    # Not even a single layer between int8 neighbours is quantized by onnxruntime's own choice.
    assert used["Conv"] + used["FusedConv"] == len(KEPT)
    assert (used["QLinearConv"], used["QLinearAdd"]) == (53 - len(KEPT), 10)
    stored = parameters(model)
    for name in KEPT:
        axes = (2, 3, 0, 1) if "depthwise" in name else (3, 2, 0, 1)
        assert np.array_equal(stored[f"{name}/kernel"], weights[f"{name}/kernel"].transpose(axes))
        assert f"{name}/kernel/codes" not in stored
    assert "block_5_expand/scale" not in stored
    images = pictures[1].normalize(pictures[1].images.astype(np.float32))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*exact_arithmetic())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    answers = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    simulated = logits_function(NODES, weights, table)(images).numpy()
    all_int8 = logits_function(NODES, weights, sources.int8.table)(images).numpy()
    step = table.activations["logits"].scale
    assert np.median(np.abs(answers - simulated)) <= 1.001 * step
    # Twin: the simulation without layers in float.
    assert np.abs(answers - simulated).mean() < 0.5 * np.abs(answers - all_int8).mean()


def test_the_float_file_runs_fused(exported: Exported, tmp_path: Path) -> None:
    path = exported.folder / "model_float32.onnx"
    used = Counter(node.op_type for node in graph_that_runs(path, tmp_path))
    assert used["Conv"] + used["FusedConv"] == 53
    assert not {"QLinearConv", "Clip", "BatchNormalization"} & set(used)


def test_scales_and_codes_are_those_of_the_table(exported: Exported, sources: Untyped) -> None:
    stored = parameters(onnx.load(exported.folder / "model_int8.onnx"))

    def differing(ranges: Untyped) -> list[str]:
        return [
            name
            for name, span in ranges.items()
            if stored[f"{name}/scale"] != np.float32(span.scale)
            or stored[f"{name}/zero_point"] != span.zero_point + 128
        ]

    ranges = sources.int8.table.activations
    assert differing(ranges) == []
    span = ranges["block_5_add"]
    wider = span.model_copy(update={"scale": span.scale * 1.00001})
    assert differing({**ranges, "block_5_add": wider}) == ["block_5_add"]
    for node in weighted(NODES):
        codes, scales = kernel_codes(
            node, sources.int8.weights[f"{node.name}/kernel"], sources.int8.table.kernels[node.name]
        )
        axes = (2, 3, 0, 1) if node.op == "depthwise" else (3, 2, 0, 1)
        assert np.array_equal(stored[f"{node.name}/kernel/codes"], codes.transpose(axes))
        assert np.array_equal(stored[f"{node.name}/kernel/scale"], scales)
        assert not stored[f"{node.name}/kernel/zero_point"].any()
        entering = ranges[node.inputs[0]].scale
        bias = bias_codes(sources.int8.weights[f"{node.name}/bias"], scales, entering)
        assert np.array_equal(stored[f"{node.name}/bias/codes"], bias)


def test_any_number_of_pictures_is_answered_as_one_at_a_time(
    exported: Exported, pictures: Untyped, tmp_path: Path
) -> None:
    import onnxruntime

    path = exported.folder / "model_int8_any_batch.onnx"
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path).graph
    for end in (graph.input[0], graph.output[0]):
        assert end.type.tensor_type.shape.dim[0].dim_param == "batch"
    used = Counter(node.op_type for node in graph_that_runs(path, tmp_path))
    assert (used["QLinearConv"], used["Conv"], used["DequantizeLinear"]) == (53, 0, 1)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*exact_arithmetic())
    one, many = (
        onnxruntime.InferenceSession(exported.folder / name, options)
        for name in ("model_int8.onnx", path.name)
    )
    images = (pictures[1].images[:7] / 128 - 1).astype(np.float32)
    expected = np.concatenate([one.run(None, {"image": image[None]})[0] for image in images])
    answers = many.run(None, {"image": images})[0]
    assert np.array_equal(answers, expected)
    assert not np.array_equal(answers, np.roll(expected, 1, axis=0))


def test_the_same_network_gives_the_same_bytes(
    write: Callable[..., Untyped], sources: Untyped, exported: Exported
) -> None:
    made = write(NODES, sources.int8.weights, sources.int8.table)
    content = (exported.folder / "model_int8.onnx").read_bytes()
    assert made.SerializeToString(deterministic=True) == content


def test_a_range_that_a_relu6_cannot_have_is_refused(
    write: Callable[..., Untyped], sources: Untyped
) -> None:
    for low, high in ((-1.0, 6.0), (0.0, 6.1)):
        table = altered(sources.int8.table, {"Conv_1": from_limits(low, high, "trained")})
        with pytest.raises(ConversionError, match="the range of Conv_1") as caught:
            write(NODES, sources.int8.weights, table)
        assert "inside 0..6" in caught.value.expected


@pytest.mark.slow
def test_tf2onnx_s_file_of_the_same_network_answers_the_same_to_the_bit(
    write: Callable[..., Untyped], sources: Untyped, pictures: Untyped
) -> None:
    import converted
    import onnxruntime

    images = (pictures[1].images[:7] / 128 - 1).astype(np.float32)

    def answers(content: bytes) -> Untyped:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])

    weights = sources.float_weights
    ours = answers(write(NODES, weights, None).SerializeToString())
    assert np.array_equal(ours, answers(converted.onnx_file(NODES, weights, (SIZE_PX, SIZE_PX))))
    # Twin: one tap of the first kernel.
    kernel = weights["Conv1/kernel"].copy()
    kernel[0, 0, 0, 0] += 0.1 * np.abs(kernel).max()
    other = write(NODES, {**weights, "Conv1/kernel": kernel}, None)
    assert not np.array_equal(answers(other.SerializeToString()), ours)
