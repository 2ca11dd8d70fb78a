"""TFLite files: float32, float16, dynamic range, int8 and int16x8, static batch of one."""

from typing import Any

import tensorflow as tf

from edgekit.errors import ConversionError
from edgekit.export import tflite_mixed
from edgekit.network.forward import logits_function
from edgekit.network.graph import Arrays, Node, input_channels, output_shapes
from edgekit.network.native_log import muted
from edgekit.records import Bits, IoType, RangeTable, Variant

_TYPES = {"float32": tf.float32, "int8": tf.int8, "uint8": tf.uint8}


def convert(
    nodes: tuple[Node, ...],
    weights: Arrays,
    table: RangeTable | None,
    *,
    variant: Variant,
    io: IoType,
    size_px: tuple[int, int],
) -> bytes:
    """Returns the bytes of a `.tflite` file.

    The int8 variant is converted from a graph in which every kernel and every activation carries
    its fake quantization, so the converter has nothing left to estimate: every scale in the file
    comes from the weights and the table. With layers kept in float32, for "int16x8", and where the
    pool has a single value, whose grid the converter leaves out, what it cannot make is written by
    `tflite_mixed` from its float32 file.

    Args:
        nodes: The network.
        weights: Folded kernels and biases.
        table: The range table; needed for "int8" and "int16x8", unused otherwise.
        variant: What to make.
        io: Type of input and output; other than "float32" only for "int8".
        size_px: (height, width) of the input.

    Raises:
        ConversionError: If the converter refuses the graph.
    """
    if table is not None and (
        variant == "int16x8"
        or (variant == "int8" and (table.kept_float or _pools_one_value(nodes, weights, size_px)))
    ):
        plain = convert(nodes, weights, None, variant="float32", io="float32", size_px=size_px)
        bits: Bits = 16 if variant == "int16x8" else 8
        return tflite_mixed.rewritten(plain, nodes, weights, table, io=io, bits=bits)
    function = tf.function(
        logits_function(nodes, weights, table if variant == "int8" else None),
        input_signature=[
            tf.TensorSpec((1, *size_px, input_channels(nodes, weights)), tf.float32, name="image")
        ],
        autograph=False,
    )
    holder = tf.Module()
    holder.function = function
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], holder
    )
    if variant != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if variant == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if variant == "int8":
        converter.inference_input_type = _TYPES[io]
        converter.inference_output_type = _TYPES[io]
    try:
        with muted():
            content: Any = converter.convert()
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise ConversionError(
            f"the TFLite converter refused {variant}: {str(error).partition(chr(10))[0]}",
            "a convertible graph",
            "report this with the recipe; it is a bug in edgekit",
        ) from error
    return bytes(content)


def _pools_one_value(nodes: tuple[Node, ...], weights: Arrays, size_px: tuple[int, int]) -> bool:
    """Returns whether the pool reads a single value of each channel, as at 32 px."""
    shapes = output_shapes(nodes, weights, size_px)
    return any(shapes[node.inputs[0]][:2] == (1, 1) for node in nodes if node.op == "pool")
