"""What TensorFlow's converter and tf2onnx make of a network: a check of edgekit's own files."""

import numpy as np
import tensorflow as tf
import tf2onnx
from tiny_network import Untyped

from edgekit.network.forward import logits_function
from edgekit.network.graph import Arrays, Node, input_channels
from edgekit.network.native_log import muted
from edgekit.records import RangeTable

_TYPES = {"float32": tf.float32, "int8": tf.int8, "uint8": tf.uint8}


def tflite_file(
    nodes: tuple[Node, ...],
    weights: Arrays,
    table: RangeTable | None,
    *,
    variant: str,
    io: str,
    size_px: tuple[int, int],
) -> bytes:
    """Returns the converter's file; "int8" from a graph in which all is fake-quantized."""
    function = _traced(nodes, weights, table if variant == "int8" else None, size_px)
    holder = tf.Module()
    holder.function = function
    concrete = [function.get_concrete_function()]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(concrete, holder)
    if variant != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if variant == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if variant == "int8":
        converter.inference_input_type = converter.inference_output_type = _TYPES[io]
    with muted():
        return bytes(converter.convert())


def onnx_file(nodes: tuple[Node, ...], weights: Arrays, size_px: tuple[int, int]) -> bytes:
    """Returns tf2onnx's float32 file."""
    function = _traced(nodes, weights, None, size_px)
    with muted():
        model, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=17)
    return bytes(model.SerializeToString())


def _traced(
    nodes: tuple[Node, ...], weights: Arrays, table: RangeTable | None, size_px: tuple[int, int]
) -> Untyped:
    shape = (1, *size_px, input_channels(nodes, weights))
    signature = [tf.TensorSpec(shape, tf.float32, name="image")]
    return tf.function(
        logits_function(nodes, weights, table), input_signature=signature, autograph=False
    )


def litert_answers(content: bytes, images: Untyped) -> Untyped:
    """Returns the raw outputs of a TFLite file to real inputs, rounded to its own grid."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (entering,), (leaving,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = entering["quantization"]
    if scale:
        limits = np.iinfo(entering["dtype"])
        codes = np.clip(np.round(images / scale) + zero_point, limits.min, limits.max)
        images = codes.astype(entering["dtype"])
    found = []
    for image in images:
        interpreter.set_tensor(entering["index"], image[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(leaving["index"]))
    return np.concatenate(found)
