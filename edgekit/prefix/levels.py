"""The frozen part as a chain of levels: pictures, an anchor, the tensors at the cuts behind it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import ConversionError
from edgekit.network.graph import INPUT, Arrays, Node, boundary, weighted
from edgekit.prefix.inference import BATCH_ROWS, Inference

Tensors = Mapping[str, npt.NDArray[np.float32]]
Compute = Callable[[Sequence[npt.NDArray[np.float32]]], tuple[npt.NDArray[np.float16], ...]]
# First layers of the blocks in front of which activations are rounded to float16 and may be kept,
# so that what lies behind is derived from there; no residual connection leads around them. One
# for each resolution: 10 x 10 x 64, 20 x 20 x 32 and 40 x 40 x 24 at alpha 1.0 and 160 px.
ANCHORS = ("block_3_expand", "block_6_expand", "block_10_expand")
# Rounding to float16 once costs 2e-4 of the size of the activations (half of 2**-11, root mean
# square); real runs stay below 1e-3 with an anchor between. A wrong layer gives 1e-1 and more.
CLOSE = 2e-3


@dataclass(frozen=True)
class Level:
    """One link of the chain.

    Args:
        name: Names the folder of its stored activations.
        inputs: Tensors of the level before that it reads; `graph.INPUT` for the pictures.
        outputs: Tensors that it makes, with their shapes without the batch.
        compute: From float32 tensors of any number of rows to float16 tensors, in these orders.
            What it makes of a row does not depend on the rows beside it.
        digest: sha256 of everything that the values follow from, the levels before included.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, tuple[int, ...]]
    compute: Compute
    digest: str


def anchor_level(
    nodes: tuple[Node, ...], weights: Arrays, place: str, size_px: tuple[int, int]
) -> Level | None:
    """Returns the level from the pictures to the anchor of a place, or None if it has none.

    Args:
        nodes: The whole network.
        weights: Folded weights of its frozen part.
        place: First unfrozen layer.
        size_px: (height, width) of the pictures.
    """
    found = anchor(nodes, place)
    if found is None:
        return None
    stop = [node.name for node in nodes].index(found)
    entering = boundary(nodes[:stop], nodes[stop:])
    return _level(nodes[:stop], weights, {INPUT: (*size_px, 3)}, entering, "")


def chain_to(
    nodes: tuple[Node, ...],
    weights: Arrays,
    place: str,
    size_px: tuple[int, int],
    before: Level | None,
) -> tuple[Level, ...]:
    """Returns the levels from the pictures to the tensors that enter at a place.

    Values are rounded to float16 behind every level whether they are stored or not, so a result
    does not depend on what was stored.

    Args:
        nodes: The whole network.
        weights: Folded weights of its frozen part.
        place: First unfrozen layer.
        size_px: (height, width) of the pictures.
        before: What `anchor_level` returned for the place, or None to round at no anchor.

    Returns:
        No level if only pictures enter; otherwise one, or two with an anchor between.
    """
    names = [node.name for node in nodes]
    stop = names.index(place)
    entering = boundary(nodes[:stop], nodes[stop:])
    found = anchor(nodes, place)
    if before is None or found is None:
        level = _level(nodes[:stop], weights, {INPUT: (*size_px, 3)}, entering, "")
        return () if level is None else (level,)
    between = nodes[names.index(found) : stop]
    level = _level(between, weights, before.outputs, entering, before.digest)
    return (before,) if level is None else (before, level)


def _level(
    nodes: tuple[Node, ...],
    weights: Arrays,
    known: Mapping[str, tuple[int, ...]],
    wanted: tuple[str, ...],
    before: str,
) -> Level | None:
    """Returns the level that makes the wanted tensors, or None if none of them is computed."""
    made = tuple(node.name for node in nodes if node.name in wanted)
    if not made:
        return None
    inputs = tuple(name for name in known if any(name in node.inputs for node in nodes))
    run = Inference(nodes, weights, {name: known[name] for name in inputs}, made)
    digest = level_digest(nodes, weights, (*inputs, *made), before)
    return Level(nodes[-1].name, inputs, run.shapes, run, digest)


def anchor(nodes: tuple[Node, ...], place: str) -> str | None:
    """Returns the last anchor at or before a layer, or None when there is none."""
    names = [node.name for node in nodes]
    before = [name for name in ANCHORS if names.index(name) <= names.index(place)]
    return before[-1] if before else None


def check(
    chain: Sequence[Level], images: npt.NDArray[np.float32], reference: Tensors
) -> dict[str, float]:
    """Compares what the levels make of real pictures with another implementation.

    Args:
        chain: The levels.
        images: Normalized float32 pictures (n, h, w, 3).
        reference: What every output of every level should be.

    Returns:
        For each tensor, the root mean square of the difference over that of the reference.

    Raises:
        ConversionError: If one is above 2e-3.
    """
    known: dict[str, npt.NDArray[np.float32]] = {INPUT: images}
    off: dict[str, float] = {}
    for level in chain:
        results = level.compute([known[name] for name in level.inputs])
        known = {
            name: value.astype(np.float32)
            for name, value in zip(level.outputs, results, strict=True)
        }
        for name, value in known.items():
            size = float(np.sqrt(np.square(reference[name]).mean()))
            off[name] = float(np.sqrt(np.square(value - reference[name]).mean())) / max(size, 1e-9)
    far = [name for name, value in off.items() if not value <= CLOSE]  # NaN is far, too
    if far:
        worst = far[0]
        raise ConversionError(
            f"the frozen part departs from Keras by {off[worst]:.2g} of its size at {worst}",
            f"at most {CLOSE}",
            "report this with the recipe; it is a bug in edgekit",
        )
    return off


def level_digest(
    nodes: Sequence[Node], weights: Arrays, tensors: tuple[str, ...], before: str
) -> str:
    """Returns the sha256 of what a level's values follow from.

    Args:
        nodes: What it runs.
        weights: The folded weights of these nodes; others are not looked at.
        tensors: Names of what enters and leaves it, in order.
        before: Digest of the level before it, or whatever else matters.
    """
    sha = hashlib.sha256(f"{before} {BATCH_ROWS}".encode())
    sha.update(json.dumps([tensors, [asdict(node) for node in nodes]]).encode())
    for node in weighted(tuple(nodes)):
        for name in (f"{node.name}/kernel", f"{node.name}/bias"):
            sha.update(np.ascontiguousarray(weights[name]).tobytes())
    return sha.hexdigest()
