"""What int8 costs layer by layer, and which layers to keep in float32 for a wanted accuracy."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.fitting.pictures import Pictures, compiled
from edgekit.network.forward import compute, float_weights, quantize, rounded_weights
from edgekit.network.graph import INPUT, Arrays, Node
from edgekit.network.ranges import int8_tensors
from edgekit.records import LayerSensitivity, RangeTable

Logits = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


class Trials:
    """A network in which any node and any tensor can be switched between float32 and int8.

    It is traced once, for all trials.

    Args:
        nodes: The network.
        weights: Folded float weights.
        table: Grids of all tensors and kernels.
        pictures: What it answers.
    """

    def __init__(
        self, nodes: tuple[Node, ...], weights: Arrays, table: RangeTable, pictures: Pictures
    ) -> None:
        self.nodes = nodes
        names = [INPUT, *(node.name for node in nodes)]
        self._position = {name: i for i, name in enumerate(names)}
        # Whether a node's kernel and bias, and whether a tensor, are rounded to their grids.
        self._nodes_on = tf.Variable(tf.zeros(len(names), tf.bool))
        self._tensors_on = tf.Variable(tf.zeros(len(names), tf.bool))

        def rounded(name: str, value: Any) -> Any:
            on = self._tensors_on[self._position[name]]
            return tf.cond(on, lambda: quantize(value, table.activations[name]), lambda: value)

        def logits(images: Any) -> Any:
            known = {INPUT: rounded(INPUT, images)}
            for node in nodes:
                on = self._nodes_on[self._position[node.name]]
                pairs = zip(
                    rounded_weights(node, weights, table), float_weights(node, weights), strict=True
                )
                constants = [tf.where(on, int8, real) for int8, real in pairs]
                value = compute(node, [known[name] for name in node.inputs], *constants)
                known[node.name] = rounded(node.name, value)
            last = known[nodes[-1].name]
            return tf.reshape(last, (-1, last.shape[-1]))

        self._answer = compiled(logits, pictures)

    def logits(self, nodes: Collection[str], tensors: Collection[str]) -> Logits:
        """Returns float32 logits (n, classes) with these nodes and tensors in int8."""
        for switches, names in ((self._nodes_on, nodes), (self._tensors_on, tensors)):
            values = np.zeros(len(self._position), np.bool_)
            values[[self._position[name] for name in names]] = True
            switches.assign(values)
        return self._answer()

    def keeping(self, kept: Collection[str]) -> Logits:
        """Returns float32 logits (n, classes) of the int8 network with some nodes in float32."""
        others = [node.name for node in self.nodes if node.name not in kept]
        return self.logits(others, int8_tensors(self.nodes, kept))


def sensitivity(
    trials: Trials, kept: Collection[str], progress: Progress
) -> tuple[LayerSensitivity, ...]:
    """Returns what int8 costs at each node that is not kept in float32, in network order.

    Args:
        trials: The float model's weights.
        kept: Nodes in float32.
        progress: Called with (trials done, trials in all).
    """
    reference = trials.logits((), ())
    power = float(np.square(reference, dtype=np.float64).sum())
    noise_of_all = _noise(reference, trials.keeping(kept))
    asked = [node.name for node in trials.nodes if node.name not in kept]
    found = []
    for number, name in enumerate(asked, 1):
        alone = _noise(reference, trials.logits([name], [name]))
        without = _noise(reference, trials.keeping({*kept, name}))
        found.append(
            LayerSensitivity(
                layer=name,
                alone_db=_decibels(power / alone),
                regained_db=_decibels(noise_of_all / without),
            )
        )
        progress(number, len(asked))
    return tuple(found)


def fewest_to_keep(
    trials: Trials,
    kept: tuple[str, ...],
    good_enough: Callable[[tuple[str, ...]], bool],
    progress: Progress,
) -> tuple[str, ...]:
    """Returns nodes to keep in float32, one more at a time, until the network is good enough.

    Each time the node that lowers the noise in the logits most joins those that were kept before,
    so that two neighbours, between which a tensor then stays float32, find each other.

    Args:
        trials: The network.
        kept: Nodes that are in float32 anyway.
        good_enough: Whether the network will do with these nodes in float32.
        progress: Called with (trials done in this round, trials in it).

    Returns:
        The kept nodes, then those that joined in their order; all of them if nothing will do.
    """
    reference = trials.logits((), ())
    while not good_enough(kept):
        others = [node.name for node in trials.nodes if node.name not in kept]
        if not others:
            break
        noises = []
        for number, name in enumerate(others, 1):
            noises.append(_noise(reference, trials.keeping({*kept, name})))
            progress(number, len(others))
        kept = (*kept, others[int(np.argmin(noises))])
    return kept


def _noise(reference: Logits, logits: Logits) -> float:
    # What rounds nothing still has a logarithm.
    return max(float(np.square(reference - logits, dtype=np.float64).sum()), 1e-30)


def _decibels(ratio: float) -> float:
    return float(10 * np.log10(max(ratio, 1e-30)))
