"""A piece of the frozen network on LiteRT with XNNPACK, in float32 or in int8.

Imports TensorFlow for the conversion.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.fitting import cores
from edgekit.network.forward import quantize, run
from edgekit.network.graph import Arrays, Node
from edgekit.network.native_log import muted
from edgekit.records import RangeTable

# Rows of one call. MobileNetV2 1.0 at 160 px: 1 to 8 are equally fast, 32 are a fifth slower.
BATCH_ROWS = 8
# What is too large for float16 becomes its largest value.
_LARGEST = np.float32(np.finfo(np.float16).max)


class Inference:
    """Runs some nodes; what it makes of a row does not depend on the rows beside it.

    Calls from several threads run beside one another, as many as there are cores.

    Args:
        nodes: What to run, in topological order.
        weights: Its folded weights.
        inputs: Names and shapes (without the batch) of the tensors that enter.
        outputs: Names of the tensors to return.
        table: If given, everything is computed in int8 on its grids, as the int8 files do; it must
            keep none of the nodes in float32. Defaults to None, float32.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        weights: Arrays,
        inputs: Mapping[str, tuple[int, ...]],
        outputs: Sequence[str],
        table: RangeTable | None = None,
    ) -> None:
        from ai_edge_litert.interpreter import Interpreter

        content = _converted(nodes, weights, inputs, outputs, table)
        # One interpreter a core: two of them took 0.6 to 1.1 of the time of one with two threads.
        self._free: SimpleQueue[Any] = SimpleQueue()
        with muted():  # it logs that it uses XNNPACK
            for _ in range(cores.COUNT):
                interpreter = Interpreter(model_content=content, num_threads=1)
                interpreter.allocate_tensors()
                self._free.put(interpreter)
        # The converter numbers their names, but may list them in another order.
        entering, leaving = (
            sorted(tensors, key=lambda tensor: (len(tensor["name"]), tensor["name"]))
            for tensors in (interpreter.get_input_details(), interpreter.get_output_details())
        )
        self._inputs = [tensor["index"] for tensor in entering]
        self._outputs = [tensor["index"] for tensor in leaving]
        self.shapes = {
            name: tuple(int(side) for side in tensor["shape"][1:])
            for name, tensor in zip(outputs, leaving, strict=True)
        }

    def __call__(
        self, tensors: Sequence[npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float16], ...]:
        """Returns the outputs for any number of rows; a short last batch is filled up."""
        return in_batches(self._answer, tensors, self.shapes.values())

    def _answer(self, *tensors: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        interpreter = self._free.get()
        try:
            for index, tensor in zip(self._inputs, tensors, strict=True):
                interpreter.set_tensor(index, tensor)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in self._outputs]
        finally:
            self._free.put(interpreter)


def in_batches(
    answer: Callable[..., Sequence[npt.NDArray[np.float32]]],
    tensors: Sequence[npt.NDArray[np.float32]],
    shapes: Iterable[tuple[int, ...]],
) -> tuple[npt.NDArray[np.float16], ...]:
    """Returns the answers of a function that takes exactly `BATCH_ROWS` rows, to any number.

    They are rounded to float16. A short last batch is filled up with zeros, so that every row is
    computed alike.

    Args:
        answer: The function: one argument for each of `tensors`.
        tensors: float32 (n, ...).
        shapes: Shapes of its answers without the batch.
    """
    count = len(tensors[0])
    results = tuple(np.empty((count, *shape), np.float16) for shape in shapes)
    for start in range(0, count, BATCH_ROWS):
        stop = min(start + BATCH_ROWS, count)
        answers = answer(*(_filled(tensor[start:stop]) for tensor in tensors))
        for result, value in zip(results, answers, strict=True):
            np.clip(value, -_LARGEST, _LARGEST, out=value)
            result[start:stop] = value[: stop - start]
    return results


def _filled(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    missing = BATCH_ROWS - len(rows)
    if missing == 0:
        return rows
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), np.float32)])


def _converted(
    nodes: tuple[Node, ...],
    weights: Arrays,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Sequence[str],
    table: RangeTable | None,
) -> bytes:
    def answer(*tensors: Any) -> list[Any]:
        known = dict(zip(inputs, tensors, strict=True))
        if table is not None:
            known = {name: quantize(known[name], table.activations[name]) for name in known}
        known = run(nodes, weights, known, table)
        return [known[name] for name in outputs]

    signature = [
        tf.TensorSpec((BATCH_ROWS, *shape), tf.float32, name=f"x{i}")
        for i, shape in enumerate(inputs.values())
    ]
    holder = tf.Module()
    holder.answer = tf.function(answer, input_signature=signature, autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [holder.answer.get_concrete_function()], holder
    )
    if table is None:
        # The way through a saved model takes 2.5 times as long for the same graph.
        converter.experimental_lower_to_saved_model = False
    else:  # without it the converter misses statistics of the input, whose grid it is given
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with muted():
        return bytes(converter.convert())
