"""The frozen part as one step: from pictures to the tensors at one cut, or at several."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import ConversionError, SpecError
from edgekit.network.graph import INPUT, Arrays, Node, boundary, input_channels, weighted
from edgekit.prefix.inference import BATCH_ROWS, Inference

Tensors = Mapping[str, npt.NDArray[np.float32]]
Compute = Callable[[Sequence[npt.NDArray[np.float32]]], tuple[npt.NDArray[np.float16], ...]]
# Rounding to float16 once costs 2e-4 of the size of the activations (half of 2**-11, root mean
# square); real runs stay below 1e-3. A wrong layer gives 1e-1 and more.
CLOSE = 2e-3


@dataclass(frozen=True)
class Level:
    """What the frozen part makes of pictures.

    Args:
        name: Names the folder of its stored activations.
        outputs: Tensors that it makes, with their shapes without the batch.
        compute: From normalized float32 pictures, any number of rows, to float16 tensors in this
            order. What it makes of a row does not depend on the rows beside it.
        digest: sha256 of everything that the values follow from.
    """

    name: str
    outputs: Mapping[str, tuple[int, ...]]
    compute: Compute
    digest: str


def level_to(
    nodes: tuple[Node, ...], weights: Arrays, places: Sequence[str], size_px: tuple[int, int]
) -> Level | None:
    """Returns the level from the pictures to all tensors that enter at some places.

    Args:
        nodes: The whole network.
        weights: Folded weights of its frozen part.
        places: First unfrozen layers.
        size_px: (height, width) of the pictures.

    Returns:
        None if only pictures enter.
    """
    wanted = {name for place in places for name in entering(nodes, place)} - {INPUT}
    if not wanted:
        return None
    made = tuple(node.name for node in nodes if node.name in wanted)
    part = nodes[: 1 + max(i for i, node in enumerate(nodes) if node.name in wanted)]
    run = Inference(part, weights, {INPUT: (*size_px, input_channels(part, weights))}, made)
    return Level(part[-1].name, run.shapes, run, level_digest(part, weights, made, ""))


def entering(nodes: tuple[Node, ...], place: str) -> tuple[str, ...]:
    """Returns the names of the tensors, or `graph.INPUT`, that a tail reads.

    Args:
        nodes: The whole network.
        place: First node of the tail.
    """
    stop = [node.name for node in nodes].index(place)
    return boundary(nodes[:stop], nodes[stop:])


def check(level: Level, images: npt.NDArray[np.float32], reference: Tensors) -> dict[str, float]:
    """Compares what a level makes of real pictures with another implementation.

    Args:
        level: The level.
        images: Normalized float32 pictures (n, h, w, 3).
        reference: What every output of the level should be.

    Returns:
        For each tensor, the root mean square of the difference over that of the reference.

    Raises:
        SpecError: If the reference holds NaN, or what float16 does not.
        ConversionError: If one is above 2e-3.
    """
    for name, values in reference.items():
        largest = np.abs(values).max(initial=0.0)
        if not largest <= np.finfo(np.float16).max:  # NaN is none, either
            raise SpecError(
                f"the starting weights make {largest:.3g} of pictures at {name}",
                f"at most {np.finfo(np.float16).max:,.0f}, far above what a trained network makes",
                "give model.weights of a network that was trained, with the BatchNorm statistics "
                "of its training",
            )
    off: dict[str, float] = {}
    for name, value in zip(level.outputs, level.compute([images]), strict=True):
        size = float(np.sqrt(np.square(reference[name]).mean()))
        difference = value.astype(np.float32) - reference[name]
        off[name] = float(np.sqrt(np.square(difference).mean())) / max(size, 1e-9)
    far = [name for name, value in off.items() if not value <= CLOSE]  # NaN is far, too
    if far:
        worst = far[0]
        raise ConversionError(
            f"the frozen part departs from Keras by {off[worst]:.2g} of its size at {worst}",
            f"at most {CLOSE}",
            "report this with the recipe; it is a bug in edgekit",
        )
    return off


def level_digest(nodes: Sequence[Node], weights: Arrays, tensors: tuple[str, ...], how: str) -> str:
    """Returns the sha256 of what a level's values follow from.

    Args:
        nodes: What it runs.
        weights: The folded weights of these nodes; others are not looked at.
        tensors: Names of what leaves it, in order.
        how: Whatever else matters.
    """
    sha = hashlib.sha256(f"{how} {BATCH_ROWS}".encode())
    sha.update(json.dumps([tensors, [asdict(node) for node in nodes]]).encode())
    for node in weighted(tuple(nodes)):
        for name in (f"{node.name}/kernel", f"{node.name}/bias"):
            sha.update(np.ascontiguousarray(weights[name]).tobytes())
    return sha.hexdigest()


def bytes_per_row(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns the bytes that one stored row of tensors of the given shapes takes."""
    return sum(2 * int(np.prod(shape)) for shape in shapes.values())
