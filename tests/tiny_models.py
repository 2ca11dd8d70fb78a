"""Makes real, tiny classifiers: they answer which colour channel of an image is brightest."""

import hashlib
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

# Modules and messages of libraries without type hints.
Untyped: TypeAlias = Any

SIZE = 4
CLASSES = ("blue", "green", "red")
# Channel that is bright in images of each class, in the order of CLASSES.
CHANNEL = (2, 1, 0)
SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_file(*parts: str) -> Path:
    """Returns a shared file; skips the test where there is none, but fails in CI."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        reason = f"needs {Path('..', 'shared', *parts)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def subject_of(model: Path, images: Path, threads: int = 1) -> Untyped:
    """Returns a classifier and its pictures as what is measured, by the runtime of its format."""
    from edgekit.devices.protocol import Subject
    from edgekit.records import Preprocess
    from edgekit.runtimes.base import RUNTIME_OF_FORMAT
    from edgekit.runtimes.inspect import model_format

    return Subject(
        model=model,
        sha256=digest(model),
        runtime=RUNTIME_OF_FORMAT[model_format(model)],
        threads=threads,
        images=images,
        preprocess=Preprocess(height_px=SIZE, width_px=SIZE),
    )


def opened(path: Path, runtime: Any, threads: int = 1, delegate: str = "default") -> Untyped:
    """Opens a classifier in this process, as the runner does in its own."""
    from edgekit.runner.program import open_model
    from edgekit.runtimes import read_ends

    read_ends(path, runtime, digest(path))
    return open_model(str(path), digest(path), runtime, threads, delegate)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def colour_images(
    path: Path, count: int = 30, size: int = SIZE, seed: int = 7
) -> npt.NDArray[np.int32]:
    """Writes noisy one-colour images to `path`; returns their labels, indexes into CLASSES."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % len(CLASSES)).astype(np.int32)
    images = rng.integers(0, 100, (count, size, size, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[..., CHANNEL[label]] += 120
    np.save(path, images)
    return labels


def mean_onnx(
    path: Path,
    lead: int = 0,
    shape: tuple[int | str, ...] = (1, SIZE, SIZE, 3),
    metadata: dict[str, str] | None = None,
) -> Path:
    """Writes a float ONNX classifier: blue, green, red = mean of each channel, reversed.

    `lead` puts that many outputs of -1000 in front, as a "background" class would be.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    order = np.eye(3, dtype=np.float32)[::-1].copy()
    constants = [
        numpy_helper.from_array(order, "order"),
        numpy_helper.from_array(np.full((1, max(lead, 1)), -1000, np.float32), "front"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["mean", "order"], ["colours"], name="last"),
    ]
    if lead:
        nodes.append(helper.make_node("Concat", ["front", "colours"], ["scores"], axis=1))
    else:
        nodes.append(helper.make_node("Identity", ["colours"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3 + lead])],
        constants,
    )
    save_onnx(onnx, graph, path, metadata)
    return path


def classifier(nodes: list[Untyped], constants: list[Untyped], dtype: str = "FLOAT") -> Untyped:
    """Returns a graph from "image" (1, SIZE, SIZE, 3) to "scores" (1, 3), float32 by default."""
    from onnx import TensorProto, helper

    kind = TensorProto.DataType.Value(dtype)
    image = helper.make_tensor_value_info("image", kind, (1, SIZE, SIZE, 3))
    scores = helper.make_tensor_value_info("scores", kind, (1, 3))
    return helper.make_graph(nodes, "classifier", [image], [scores], constants)


def save_onnx(
    onnx: Untyped, graph: Untyped, path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Saves a graph with opset 17, which every supported onnxruntime reads."""
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    for key, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())


def looping_body() -> Any:
    """Returns the body of an ONNX Loop that goes on as long as its number of turns lets it."""
    from onnx import TensorProto, helper

    return helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 3]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1, 3]),
        ],
    )


def endless_onnx(path: Path) -> Path:
    """Writes a valid classifier whose loop does not end within a lifetime."""
    import onnx
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Loop", ["turns", "yes", "mean"], ["scores"], body=looping_body()),
    ]
    constants = [
        numpy_helper.from_array(np.array(2**62, np.int64), "turns"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    save_onnx(onnx, classifier(nodes, constants), path)
    return path


def quantized_onnx(path: Path, dequantize: bool = True) -> Path:
    """Writes a uint8 ONNX classifier: quantized ends, one Conv, mean.

    Without `dequantize` the data of the Conv come from a Transpose, not a DequantizeLinear, and its
    kernel is float32.
    """
    import onnx
    from onnx import helper, numpy_helper

    kernel = np.eye(3, dtype=np.float32)[::-1].reshape(3, 3, 1, 1).copy()
    constants = [
        numpy_helper.from_array(np.array(1 / 128, np.float32), "scale"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero"),
        numpy_helper.from_array(np.array(1, np.float32), "kernel_scale"),
        numpy_helper.from_array(kernel.astype(np.int8) if dequantize else kernel, "kernel"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["image", "scale", "zero"], ["real"]),
        helper.make_node("Transpose", ["real"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("QuantizeLinear", ["planes", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["data"]),
        *([helper.make_node("DequantizeLinear", ["kernel", "kernel_scale"], ["w"])] * dequantize),
        helper.make_node(
            "Conv", ["data", "w"] if dequantize else ["planes", "kernel"], ["c"], name="k"
        ),
        helper.make_node("ReduceMean", ["c"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("QuantizeLinear", ["mean", "scale", "zero"], ["scores"]),
    ]
    save_onnx(onnx, classifier(nodes, constants, "UINT8"), path)
    return path


def large_products_onnx(path: Path) -> Path:
    """Writes a float ONNX classifier: a third, two thirds, all of the brightness, in int8."""
    import onnx
    from onnx import helper, numpy_helper

    count = SIZE * SIZE * 3
    weights = np.tile(np.array([42, 85, 127], np.int8), (count, 1))
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "weight_scale": np.float32(1 / 127),
        "weight_zero": np.int8(0),
        "weights": weights,
        "scale": np.float32(count),  # so that the answers are those of one pixel
        "shape": np.array([1, count], np.int64),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "one", "zero"], ["pixels"]),
        helper.make_node("Reshape", ["pixels", "shape"], ["row"]),
        helper.make_node(
            "QLinearMatMul",
            ["row", "one", "zero", "weights", "weight_scale", "weight_zero", "scale", "zero"],
            ["codes"],
        ),
        helper.make_node("DequantizeLinear", ["codes", "one", "zero"], ["scores"]),
    ]
    tensors = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    ]
    save_onnx(onnx, classifier(nodes, tensors), path)
    return path


def mean_tflite(
    path: Path,
    dtype: str = "uint8",
    batch: int = 1,
    custom: str | None = None,
    quantized: bool = True,
    relu: bool = False,
    reduction: str = "MEAN",
    channels: int = 3,
    planes: bool = False,
) -> Path:
    """Writes a TFLite classifier: red, green, blue = mean of each channel.

    Args:
        path: Where to.
        dtype: "uint8", "int8" or "float32".
        batch: Fixed batch size; -1 for a free one.
        custom: Name of a custom operator to use in place of MEAN.
        quantized: Whether integer tensors say what their codes mean.
        relu: Whether a RELU follows, so that there is a tensor "means" in the middle.
        reduction: What is computed of each channel, as TFLite names the operator.
        channels: Of the input; with 1 the only score is its mean.
        planes: Whether the input has its channels first.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    sides = [SIZE, SIZE]
    shape = [abs(batch), *([channels, *sides] if planes else [*sides, channels])]
    model = schema.ModelT()
    model.version = 3
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, "CUSTOM" if custom else reduction)
    code.deprecatedBuiltinCode, code.version = code.builtinCode, 2
    code.customCode = custom.encode() if custom else None
    model.operatorCodes = [code]
    rectifier = schema.OperatorCodeT()
    rectifier.builtinCode = rectifier.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    axes = schema.BufferT()
    axes.data = np.frombuffer(np.array([2, 3] if planes else [1, 2], "<i4").tobytes(), np.uint8)
    model.buffers = [schema.BufferT(), axes]
    kind = getattr(schema.TensorType, dtype.upper())
    zero = {"uint8": 128, "int8": 0, "float32": None}[dtype] if quantized else None
    tensors = [
        _tensor(schema, "image", shape, kind, zero),
        _tensor(schema, "axes", [2], schema.TensorType.INT32, None, 1),
        _tensor(schema, "scores", [abs(batch), channels], kind, zero),
    ]
    if batch == -1:
        tensors[0].shapeSignature = [-1, *shape[1:]]
        tensors[2].shapeSignature = [-1, channels]
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1], [2]
    if not custom:
        operator.builtinOptionsType = schema.BuiltinOptions.ReducerOptions
        operator.builtinOptions = schema.ReducerOptionsT()
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs = tensors, [0], [2]
    graph.operators, graph.name = [operator], b"main"
    if relu:
        tensors.append(_tensor(schema, "means", [abs(batch), channels], kind, zero))
        operator.outputs = [3]
        second = schema.OperatorT()
        second.opcodeIndex, second.inputs, second.outputs = 1, [3], [2]
        graph.operators.append(second)
        model.operatorCodes.append(rectifier)
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _tensor(
    schema: Untyped, name: str, shape: list[int], kind: int, zero: int | None, buffer: int = 0
) -> Untyped:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name.encode(), shape, kind, buffer
    if zero is not None:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [1 / 128], [zero]
    return tensor
