"""Where the network can be cut into a frozen and an unfrozen part."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgekit.errors import SpecError
from edgekit.network.graph import LOGITS, STAGE_STARTS, Node, weighted

Granularity = Literal["stage", "block", "layer"]
HEAD = "head"
# Where a comparison ends unless the recipe says otherwise. Validation loss (alpha 0.35, 96 px, one
# seed) from here and from block_3, which takes 1.4 times as long a step: clothing 0.405, 0.411;
# waste 0.452, 0.477; leaf 0.093, 0.096; hands 0.356, 0.318; mri 0.259, 0.242; grocery 1.18, 1.13.
EARLIEST = "block_6_expand"
_STAGE_BLOCKS = {f"block_{start}" for start in STAGE_STARTS}


@dataclass(frozen=True)
class Cut:
    """One way of cutting.

    Args:
        name: First layer that trains, or "head".
        index: Its index in the Keras model; this and every later layer is unfrozen.
        unfrozen: Names of the unfrozen layers that carry weights, BatchNorm excepted.
    """

    name: str
    index: int
    unfrozen: frozenset[str]


def cut_at(index: int, layers: Sequence[str], nodes: tuple[Node, ...]) -> Cut:
    """Returns the cut that unfreezes every layer from `index` on.

    Args:
        index: Index into `layers`, 0 for the whole network.
        layers: Names of the Keras layers in order.
        nodes: The folded network.
    """
    later = set(layers[index:])
    unfrozen = frozenset(node.name for node in weighted(nodes) if node.name in later)
    name = next(name for name in layers[index:] if name in unfrozen)
    return Cut(HEAD if unfrozen == {LOGITS} else name, layers.index(name), unfrozen)


def progressive(
    layers: Sequence[str], nodes: tuple[Node, ...], granularity: Granularity
) -> tuple[Cut, ...]:
    """Returns the cuts from the head to the input.

    Args:
        layers: Names of the Keras layers in order.
        nodes: The folded network.
        granularity: "layer" for one weighted layer at a time, "block" for one block, "stage" for
            all blocks of a width; what stands before the first and behind the last block belongs to
            their stages then.
    """
    cuts = []
    names = [node.name for node in weighted(nodes)]
    for name, earlier in zip(reversed(names), [*reversed(names[:-1]), None], strict=True):
        block = block_of(name)
        starts_block = earlier is None or block_of(earlier) != block
        starts_stage = earlier is None or name == LOGITS or block in _STAGE_BLOCKS
        if granularity == "layer" or (starts_block and (granularity == "block" or starts_stage)):
            cuts.append(cut_at(layers.index(name), layers, nodes))
    return tuple(cuts)


def fixed(key: str, asked: int | str, layers: Sequence[str], nodes: tuple[Node, ...]) -> Cut:
    """Returns the cut that a recipe asks for by name or index.

    Args:
        key: The key of the recipe, for messages.
        asked: Index of a Keras layer, name of a layer, "head" or "all".
        layers: Names of the Keras layers in order.
        nodes: The folded network.

    Raises:
        SpecError: If there is no such layer or index.
    """
    head_index = layers.index(LOGITS)
    if asked == HEAD:
        return cut_at(head_index, layers, nodes)
    if asked == "all":
        return cut_at(0, layers, nodes)
    if isinstance(asked, int):
        if not 0 <= asked <= head_index:
            raise SpecError(
                f"{key} = {asked}",
                f"a layer index from 0 to {head_index} ({LOGITS})",
                "count from the input, as Keras's model.layers does",
            )
        return cut_at(asked, layers, nodes)
    known = layers[: head_index + 1]  # nothing after the head has weights
    if asked not in known:
        near = difflib.get_close_matches(asked, known, 3, 0.3) or ["block_13_expand"]
        raise SpecError(
            f"{key} = {asked!r}: the network has no such layer to train from",
            'a layer index, a layer name, "head" or "all"',
            f"nearest names: {', '.join(near)}",
        )
    return cut_at(layers.index(asked), layers, nodes)


def block_of(name: str) -> str:
    """Returns the block that a layer belongs to; a layer outside of blocks is its own."""
    if name.startswith("block_"):
        return "_".join(name.split("_")[:2])
    return "expanded_conv" if name.startswith("expanded_conv") else name
