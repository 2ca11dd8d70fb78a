"""The TFLite files, read back: types, shapes, and every scale in them is the table's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import ALPHA, SIZE_PX, Exported, Untyped, altered

from edgekit.network.graph import (
    INPUT,
    Arrays,
    bias_codes,
    bias_steps,
    kernel_codes,
    mobilenet_v2,
)
from edgekit.network.ranges import from_limits, int16_scale, keeping_float, table_of
from edgekit.records import RangeTable, TensorRange
from edgekit.runtimes.base import contract_texts
from edgekit.runtimes.inspect import inspect_model
from edgekit.runtimes.tflite_metadata import with_entries

pytest.importorskip("tensorflow")

from converted import litert_answers, tflite_file

from edgekit.export import tflite
from edgekit.network.forward import logits_function

NODES = mobilenet_v2(ALPHA)


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: its quantization and, if it is a constant, its bytes."""

    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.int64]
    shape: tuple[int, ...]
    content: bytes


def layers_in(content: bytes) -> list[list[Stored]]:
    """Returns (output, inputs...) of every operator that stands for a node, in order."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    builtin = schema.BuiltinOperator
    around = (builtin.QUANTIZE, builtin.DEQUANTIZE, builtin.RESHAPE)

    def stored(index: int) -> Stored:
        tensor = graph.Tensors(index)
        grid = tensor.Quantization()
        data = model.Buffers(tensor.Buffer()).DataAsNumpy()
        return Stored(
            np.array(grid.ScaleAsNumpy() if grid.ScaleLength() else (), np.float32),
            np.array(grid.ZeroPointAsNumpy() if grid.ZeroPointLength() else (), np.int64),
            tuple(tensor.ShapeAsNumpy().tolist()),
            b"" if isinstance(data, int) else data.tobytes(),
        )

    found = []
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        code = model.OperatorCodes(operator.OpcodeIndex())
        if max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) not in around:
            inputs = [stored(int(i)) for i in operator.InputsAsNumpy()]
            found.append([stored(int(operator.Outputs(0))), *inputs])
    return found


def differences(content: bytes, weights: Arrays, table: RangeTable) -> list[str]:
    """Returns what in a file is not the table's or the kernels' own quantization."""
    layers, ranges = layers_in(content), table.activations
    assert len(layers) == len(NODES)
    wrong = []
    for node, (output, *inputs) in zip(NODES, layers, strict=True):
        if node.name in table.kept_float:
            codes = [tensor for tensor in (output, *inputs) if len(tensor.scales)]
            wrong += [f"{node.name} has codes"] * bool(codes)
            continue
        wrong += [f"{node.name} output"] * (not same_grid(output, ranges[node.name]))
        read = inputs[:1] if node.op != "add" else inputs
        ours = [ranges[name] for name in node.inputs]
        pairs = list(zip(read, ours, strict=False))
        if node.op == "add" and not all(same_grid(a, b) for a, b in pairs):
            pairs = list(zip(reversed(read), ours, strict=True))  # an addition may be turned round
        wrong += [f"{node.name} input"] * (not all(same_grid(a, b) for a, b in pairs))
        if node.op not in ("conv", "depthwise"):
            continue
        codes, scales = kernel_codes(node, weights[f"{node.name}/kernel"], table.kernels[node.name])
        # (out, h, w, in) for a convolution, (1, h, w, channels) for a depthwise one.
        laid_out = codes.transpose((3, 0, 1, 2))
        kernel, bias = inputs[1:]
        same = kernel.content == laid_out.tobytes() and not kernel.zero_points.any()
        wrong += [f"{node.name} kernel codes"] * (not same)
        if kernel.scales.shape != scales.shape:
            wrong.append(f"{node.name} kernel scale")
            continue
        wrong += [f"{node.name} kernel scale"] * (not np.array_equal(kernel.scales, scales))
        entering = ranges[node.inputs[0]].scale
        expected = bias_codes(weights[f"{node.name}/bias"], scales, entering)
        same = np.array_equal(np.frombuffer(bias.content, np.int32), expected)
        steps = bias_steps(scales, entering).astype(np.float32)
        wrong += [f"{node.name} bias"] * (not same or not np.array_equal(bias.scales, steps))
    return wrong


def same_grid(tensor: Stored, span: TensorRange) -> bool:
    """Says whether a tensor has the very scale, in float32, and the zero point of a range."""
    return bool(
        tensor.scales.tolist() == [np.float32(span.scale)]
        and tensor.zero_points.tolist() == [span.zero_point]
    )


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_every_scale_in_the_file_is_the_tables(
    exported: Exported, sources: Untyped, io: str
) -> None:
    content = (exported.folder / f"model_int8_{io}_io.tflite").read_bytes()
    weights, table = sources.int8.weights, sources.int8.table
    assert differences(content, weights, table) == []
    # Twins: one entry of the table, one zero point, one limit, one kernel, one bias.
    span = table.activations["block_5_add"]
    wider = {"block_5_add": span.model_copy(update={"scale": span.scale * 1.00001})}
    found = differences(content, weights, altered(table, wider))
    assert found[:2] == ["block_5_add output", "block_6_expand input"]
    assert set(found[2:]) <= {"block_6_expand bias"}
    moved = {LAST: table.activations[LAST].model_copy(update={"zero_point": 0})}
    assert differences(content, weights, altered(table, moved)) == [f"{LAST} output"]
    first, *others = table.kernels["block_9_depthwise"]
    limits = {**table.kernels, "block_9_depthwise": (1.00001 * first, *others)}
    found = differences(content, weights, table.model_copy(update={"kernels": limits}))
    assert found[0] == "block_9_depthwise kernel scale"
    kernel = weights["block_9_depthwise/kernel"].copy()
    kernel[0, 0, 0, 0] += 0.6 * np.abs(kernel[:, :, 0]).max()
    changed = {**weights, "block_9_depthwise/kernel": kernel}
    assert "block_9_depthwise kernel codes" in differences(content, changed, table)
    shifted = {**weights, f"{LAST}/bias": weights[f"{LAST}/bias"] + 0.1}
    assert differences(content, shifted, table) == [f"{LAST} bias"]


LAST = "logits"


def test_one_grid_for_a_whole_kernel_is_one_scale_in_the_file(sources: Untyped) -> None:
    spans = sources.int8.table.activations
    weights = sources.int8.weights
    whole = table_of(NODES, weights, spans, "tensor")
    size = (SIZE_PX, SIZE_PX)
    content = tflite.write(NODES, weights, whole, variant="int8", io="int8", size_px=size)
    assert differences(content, weights, whole) == []
    kernels = [inputs[1] for _, *inputs in layers_in(content) if len(inputs) == 3]
    assert [kernel.scales.shape for kernel in kernels] == [(1,)] * 53
    # Twin: the same weights with a grid for each channel are another file.
    found = differences(content, weights, table_of(NODES, weights, spans, "channel"))
    assert "block_9_depthwise kernel codes" in found


KEPT = ("Conv1", "block_2_depthwise", "block_5_expand", "block_5_depthwise", "block_5_add", LAST)


def answers_of(content: bytes, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    found = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    return np.concatenate(found)


@pytest.mark.parametrize(
    ("variant", "io"),
    [
        ("int8", "int8"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("float32", "float32"),
                ("float16", "float32"),
                ("int8", "uint8"),
                ("int8", "float32"),
            )
        ),
    ],
)
def test_the_converters_file_of_the_same_network_answers_the_same_to_the_bit(
    sources: Untyped, variant: Untyped, io: Untyped
) -> None:
    size = (SIZE_PX, SIZE_PX)
    weights, table = sources.int8.weights, sources.int8.table
    asked = {"variant": variant, "io": io, "size_px": size}
    ours = tflite.write(NODES, weights, table, **asked)
    theirs = tflite_file(NODES, weights, table, **asked)
    images = np.random.default_rng(4).uniform(-1, 1, (12, *size, 3)).astype(np.float32)
    answers = litert_answers(theirs, images)
    assert np.array_equal(litert_answers(ours, images), answers)
    assert len(ours) <= len(theirs)
    if variant == "int8":
        assert differences(theirs, weights, table) == []
    # Twin: the bias of one class, by a step of the output or more.
    moved = {**weights, f"{LAST}/bias": weights[f"{LAST}/bias"] + 2 * table.activations[LAST].scale}
    assert not np.array_equal(
        litert_answers(tflite.write(NODES, moved, table, **asked), images), answers
    )


@pytest.mark.slow
def test_dynamic_range_is_the_converters_but_for_ties(sources: Untyped) -> None:
    size = (SIZE_PX, SIZE_PX)
    asked = {"variant": "dynamic", "io": "float32", "size_px": size}
    ours = tflite.write(NODES, sources.float_weights, None, **asked)
    theirs = tflite_file(NODES, sources.float_weights, None, **asked)
    for one, other in zip(layers_in(ours), layers_in(theirs), strict=True):
        for mine, converted in zip(one, other, strict=True):
            assert (mine.shape, len(mine.content)) == (converted.shape, len(converted.content))
            if len(mine.scales):
                codes = [np.frombuffer(t.content, np.int8).astype(int) for t in (mine, converted)]
                assert np.abs(codes[0] - codes[1]).max() <= 1
                assert (codes[0] != codes[1]).mean() < 1e-3
                assert mine.scales == pytest.approx(converted.scales, rel=1e-6)


def test_layers_kept_in_float_are_float_and_every_other_scale_is_the_tables(
    sources: Untyped, pictures: Untyped
) -> None:
    weights = sources.int8.weights
    table = keeping_float(NODES, sources.int8.table, KEPT)
    size = (SIZE_PX, SIZE_PX)
    content = tflite.write(NODES, weights, table, variant="int8", io="float32", size_px=size)
    assert differences(content, weights, table) == []
    # Twins: a table in which a layer is int8, and one with another scale.
    fewer = keeping_float(NODES, sources.int8.table, KEPT[1:])
    assert "Conv1 output" in differences(content, weights, fewer)
    span = table.activations["block_4_add"]
    wider = {"block_4_add": span.model_copy(update={"scale": span.scale * 1.00001})}
    assert "block_4_add output" in differences(content, weights, altered(table, wider))
    images = pictures[1].normalize(pictures[1].images.astype(np.float32))
    simulated = logits_function(NODES, weights, table)(images).numpy()
    all_int8 = logits_function(NODES, weights, sources.int8.table)(images).numpy()
    answers = answers_of(content, images)
    assert np.median(np.abs(answers - simulated)) <= 1.001 * table.activations[LAST].scale
    # Twin: the simulation without layers in float.
    assert np.abs(answers - simulated).mean() < 0.7 * np.abs(answers - all_int8).mean()


def test_int16_activations_have_the_symmetric_grids_of_the_ranges(
    exported: Exported, sources: Untyped, pictures: Untyped
) -> None:
    content = (exported.folder / "model_int16x8.tflite").read_bytes()
    weights, table = sources.int8.weights, sources.int8.table
    for node, (output, *inputs) in zip(NODES, layers_in(content), strict=True):
        scale = int16_scale(table.activations[node.name])
        assert output.scales == pytest.approx([scale], rel=2.0**-22)
        assert output.zero_points.tolist() == [0]
        if node.op in ("conv", "depthwise"):
            kernel = weights[f"{node.name}/kernel"]
            codes, _ = kernel_codes(node, kernel, table.kernels[node.name])
            assert inputs[1].content == codes.transpose((3, 0, 1, 2)).tobytes()
            assert len(inputs[2].content) == 8 * len(weights[f"{node.name}/bias"])
    images = pictures[1].normalize(pictures[1].images.astype(np.float32))
    answers = answers_of(content, images)
    wide = np.abs(answers - logits_function(NODES, weights, table, bits=16)(images).numpy())
    largest = np.abs(answers).max()
    assert wide.max() < 1e-2 * largest
    # Twin: with activations of 8 bits the same weights answer otherwise.
    narrow = np.abs(answers - logits_function(NODES, weights, table)(images).numpy())
    assert narrow.max() > 1e-2 * largest


@pytest.mark.parametrize("bits", [8, 16])
def test_constants_are_aligned_as_the_schema_demands(sources: Untyped, bits: Untyped) -> None:
    from ai_edge_litert import schema_py_generated as schema

    table = sources.int8.table
    table = keeping_float(NODES, table, KEPT) if bits == 8 else table
    variant: Untyped = "int8" if bits == 8 else "int16x8"
    size = (SIZE_PX, SIZE_PX)
    content = tflite.write(
        NODES, sources.int8.weights, table, variant=variant, io="float32", size_px=size
    )
    model = schema.Model.GetRootAs(content, 0)
    whole = np.frombuffer(content, np.uint8).ctypes.data
    filled = [model.Buffers(n) for n in range(model.BuffersLength())]
    starts = [buffer.DataAsNumpy().ctypes.data for buffer in filled if buffer.DataLength()]
    assert len(starts) >= 2 * 53
    assert {(start - whole) % 16 for start in starts} == {0}


def test_integer_ends_need_int8(sources: Untyped) -> None:
    for variant in ("float32", "int16x8"):
        with pytest.raises(ValueError, match="int8 input and output"):
            tflite.write(
                NODES, sources.int8.weights, sources.int8.table, variant=variant, io="int8",
                size_px=(SIZE_PX, SIZE_PX),
            )  # fmt: skip


def test_the_input_has_the_grid_of_the_contract(exported: Exported) -> None:
    facts = inspect_model(exported.folder / "model_int8_int8_io.tflite")
    (entering,) = facts.inputs
    assert (entering.scale, entering.zero_point) == (1 / 128, 0)
    facts = inspect_model(exported.folder / "model_int8_uint8_io.tflite")
    assert (facts.inputs[0].scale, facts.inputs[0].zero_point) == (1 / 128, 128)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model_float32.tflite", "float32"),
        ("model_float16.tflite", "float32"),
        ("model_dynamic.tflite", "float32"),
        ("model_int8_int8_io.tflite", "int8"),
        ("model_int8_uint8_io.tflite", "uint8"),
        ("model_int8_float32_io.tflite", "float32"),
        ("model_int16x8.tflite", "float32"),
    ],
)
def test_types_and_shapes_are_those_asked_for(exported: Exported, name: str, dtype: str) -> None:
    facts = inspect_model(exported.folder / name)
    (entering,), (leaving,) = facts.inputs, facts.outputs
    assert (entering.dtype, leaving.dtype) == (dtype, dtype)
    assert entering.shape == (1, SIZE_PX, SIZE_PX, 3)
    assert leaving.shape == (1, 3)
    assert facts.operators["CONV_2D"] == 36
    assert facts.operators["DEPTHWISE_CONV_2D"] == 17
    assert facts.operators["ADD"] == 10
    integers_only = name.startswith("model_int")
    assert bool(facts.wide_tensors) == ("int16" in name)
    assert (facts.float_tensors == ()) == integers_only
    if integers_only:
        ends = {"QUANTIZE", "DEQUANTIZE"} if dtype != "int8" else set()
        known = {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "RESHAPE"}
        assert set(facts.operators) <= known | ends


def test_smaller_variants_are_smaller(exported: Exported) -> None:
    size = {
        name: (exported.folder / f"model_{name}.tflite").stat().st_size
        for name in ("float32", "float16", "dynamic", "int8_int8_io")
    }
    # 4, 2 and 1 byte for each of some 400 000 weights, beside a graph of under 120 kB.
    assert size["float16"] < 0.65 * size["float32"]
    assert size["dynamic"] < 0.45 * size["float32"]
    assert size["int8_int8_io"] < 0.45 * size["float32"]


def test_the_same_network_gives_the_same_bytes(exported: Exported, sources: Untyped) -> None:
    made = tflite.write(
        NODES,
        sources.float_weights,
        None,
        variant="float32",
        io="float32",
        size_px=(SIZE_PX, SIZE_PX),
    )
    texts = contract_texts(exported.record.preprocess, exported.record.class_names)
    described = with_entries(made, {key: text.encode() for key, text in texts.items()})
    assert described == Path(exported.folder / "model_float32.tflite").read_bytes()


def test_an_input_is_part_of_the_table(sources: Untyped) -> None:
    spans = {name: span for name, span in sources.int8.table.activations.items() if name != INPUT}
    without = sources.int8.table.model_copy(update={"activations": spans})
    with pytest.raises(KeyError):
        tflite.write(
            NODES,
            sources.int8.weights,
            without,
            variant="int8",
            io="int8",
            size_px=(SIZE_PX, SIZE_PX),
        )


@pytest.mark.parametrize(
    ("bits", "kept"), [(8, ()), (16, ()), (8, ("Conv_1",)), (8, ("global_average_pool",))]
)
def test_the_mean_of_a_single_value_has_its_own_grid(
    sources: Untyped, bits: Untyped, kept: tuple[str, ...]
) -> None:
    weights, size = sources.int8.weights, (32, 32)
    span = sources.int8.table.activations["global_average_pool"]
    # A grid of its own, as training may leave it.
    own = altered(
        sources.int8.table,
        {"global_average_pool": from_limits(0.0, 0.8 * span.maximum, "trained")},
    )
    table = keeping_float(NODES, own, kept)
    variant: Untyped = "int8" if bits == 8 else "int16x8"
    content = tflite.write(NODES, weights, table, variant=variant, io="float32", size_px=size)
    images = np.random.default_rng(2).uniform(-1, 1, (16, *size, 3)).astype(np.float32)
    answers = answers_of(content, images)
    simulated = logits_function(NODES, weights, table, bits)(images).numpy()
    other = logits_function(NODES, weights, sources.int8.table, bits)(images).numpy()
    off = np.abs(answers - simulated).mean()
    # Twin: the simulation with the other grid.
    assert off < 0.3 * np.abs(answers - other).mean()
