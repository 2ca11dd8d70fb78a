"""The int8 TFLite and the int8 ONNX file of one model, compared layer by layer on real pictures.

Both are asked for the codes of every tensor, made by the kernels that run the files: every layer's
tensor is made an output of the TFLite file, and every QuantizeLinear's of the ONNX file; XNNPACK
and onnxruntime compute as before.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from onnx import helper

from edgekit.errors import ConversionError
from edgekit.export.tflite_objects import packed, unpacked
from edgekit.network.graph import Node
from edgekit.network.native_log import muted
from edgekit.records import LayerParity, Preprocess, input_codes
from edgekit.runner.onnx_runtime import ERRORS_ONLY, exact_arithmetic
from edgekit.runtimes.inspect import inspect_model

Codes = dict[str, npt.NDArray[np.int16]]
_AROUND = (
    schema.BuiltinOperator.QUANTIZE,
    schema.BuiltinOperator.DEQUANTIZE,
    schema.BuiltinOperator.RESHAPE,
)


def compare_layers(
    nodes: Sequence[Node],
    tflite: Path,
    onnx_file: Path,
    images: npt.NDArray[np.uint8],
    preprocess: Preprocess,
    kept_float: Collection[str] = (),
) -> tuple[LayerParity, ...]:
    """Returns how far the codes of every int8 layer lie apart, in network order.

    Args:
        nodes: The network that both files were made from.
        tflite: The int8 file with integer input and a static batch of one.
        onnx_file: The int8 file with a static batch of one.
        images: uint8 (n, h, w, channels).
        preprocess: The contract that turns a pixel into a tensor value.
        kept_float: Nodes that compute in float32. Defaults to none.

    Raises:
        ConversionError: If a file does not have one int8 tensor for each other node.
    """
    int8 = [node for node in nodes if node.name not in kept_float]
    ours = litert_codes(nodes, tflite, images, preprocess, kept_float)
    theirs = onnx_codes(int8, onnx_file, images, preprocess)
    found = []
    for node in int8:
        apart = np.abs(ours[node.name] - theirs[node.name])
        found.append(
            LayerParity(
                layer=node.name,
                values=apart.size,
                equal=float((apart == 0).mean()),
                within_one=float((apart <= 1).mean()),
                largest_steps=int(apart.max()),
            )
        )
    return tuple(found)


def first_departing(compared: Sequence[LayerParity]) -> str | None:
    """Returns the first layer of which the files have a value of another code, or None."""
    return next((layer.layer for layer in compared if layer.largest_steps > 0), None)


def litert_codes(
    nodes: Sequence[Node],
    path: Path,
    images: npt.NDArray[np.uint8],
    preprocess: Preprocess,
    kept_float: Collection[str] = (),
) -> Codes:
    """Returns the codes that LiteRT makes with XNNPACK: int16 (n, h, w, channels), -128..127.

    Raises:
        ConversionError: If the file does not have one operator for each node.
    """
    (entering,) = inspect_model(path).inputs
    if entering.dtype == "float32":
        raise ConversionError(
            f"{path.name} has a float32 input, not int8",
            "the int8 file with integer input",
            "compare the file that was exported with int8 or uint8 input",
        )
    table = input_codes(preprocess, entering.dtype, entering.scale, entering.zero_point)
    model = unpacked(path.read_bytes())
    graph = model.subgraphs[0]
    kinds = [max(code.deprecatedBuiltinCode, code.builtinCode) for code in model.operatorCodes]
    layers = [op for op in graph.operators if kinds[op.opcodeIndex] not in _AROUND]
    _check_count(path, len(layers), len(nodes))
    made = {
        node.name: operator.outputs[0]
        for node, operator in zip(nodes, layers, strict=True)
        if node.name not in kept_float
    }
    graph.outputs, model.signatureDefs = np.array(list(made.values()), np.int32), []
    with muted():
        interpreter = Interpreter(model_content=packed(model))
        interpreter.allocate_tensors()
    (index,) = (details["index"] for details in interpreter.get_input_details())
    codes: dict[str, list[npt.NDArray[np.int16]]] = {name: [] for name in made}
    for picture in images:
        interpreter.set_tensor(index, _entering(table, picture))
        interpreter.invoke()
        for name, tensor in zip(made, interpreter.get_output_details(), strict=True):
            codes[name].append(interpreter.get_tensor(tensor["index"]).astype(np.int16))
    return {name: np.concatenate(values) for name, values in codes.items()}


def onnx_codes(
    nodes: Sequence[Node], path: Path, images: npt.NDArray[np.uint8], preprocess: Preprocess
) -> Codes:
    """Returns the codes that onnxruntime makes of int8 nodes: int16 (n, h, w, channels), -128..127.

    Raises:
        ConversionError: If the file does not quantize each node's tensor.
    """
    model = onnx.load(path)
    names = {node.name for node in nodes}
    tensors: dict[str, str] = {}
    for operation in model.graph.node:
        if operation.op_type == "QuantizeLinear":
            # A tensor that is only reshaped is quantized twice with the same range.
            tensors.setdefault(operation.input[1].removesuffix("/scale"), operation.output[0])
    tensors = {name: tensor for name, tensor in tensors.items() if name in names}
    _check_count(path, len(tensors), len(nodes))
    for tensor in tensors.values():
        info = helper.make_tensor_value_info(tensor, onnx.TensorProto.UINT8, None)
        model.graph.output.append(info)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*exact_arithmetic())
    options.log_severity_level = ERRORS_ONLY
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    table = input_codes(preprocess, "float32")
    codes: dict[str, list[npt.NDArray[np.int16]]] = {name: [] for name in tensors}
    for picture in images:
        answers = session.run(
            list(tensors.values()), {model.graph.input[0].name: _entering(table, picture)}
        )
        for name, answer in zip(tensors, answers, strict=True):
            codes[name].append(answer.transpose(0, 2, 3, 1).astype(np.int16) - 128)
    return {name: np.concatenate(values) for name, values in codes.items()}


def _entering(
    table: npt.NDArray[np.generic], picture: npt.NDArray[np.uint8]
) -> npt.NDArray[np.generic]:
    """Returns one picture as the network takes it, (1, h, w, channels)."""
    return np.asarray(table[picture, np.arange(picture.shape[2])])[None]


def _check_count(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise ConversionError(
            f"{path.name} has {found} quantized layers",
            f"{expected}, one for each node of the network",
            "report this with the recipe; it is a bug in edgekit",
        )
