"""What runs in int8 beside training makes the codes of the file that ships."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import ALPHA, SIZE_PX, Exported, Untyped, altered, int8_file_logits

from edgekit.network.graph import INPUT, LOGITS, boundary, mobilenet_v2, split, weighted
from edgekit.network.ranges import from_limits, table_of
from edgekit.records import Preprocess, RangeTable

pytest.importorskip("tensorflow")

from edgekit.export.layers import litert_codes
from edgekit.prefix.inference import Inference

NODES = mobilenet_v2(ALPHA)
WEIGHTED = [node.name for node in weighted(NODES)]


def codes_entering(
    cut: str, sources: Untyped, table: RangeTable, images: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.int64]]:
    """Returns the codes of what enters at a cut, of any number of pictures."""
    prefix, tail = split(NODES, frozenset(WEIGHTED[WEIGHTED.index(cut) :]))
    names = boundary(prefix, tail)
    frozen = Inference(prefix, sources.int8.weights, {INPUT: (SIZE_PX, SIZE_PX, 3)}, names, table)
    found = {}
    for name, value in zip(names, frozen([images]), strict=True):
        span = table.activations[name]
        steps = value.astype(np.float64) / span.scale
        # float16 keeps 11 bits: of 255 steps an eighth of one is lost at most.
        assert np.abs(steps - np.round(steps)).max() <= 0.125
        found[name] = np.round(steps).astype(np.int64) + span.zero_point
    return found


@pytest.mark.parametrize("cut", ["Conv_1", "block_8_expand", "block_2_project"])
def test_int8_makes_the_codes_of_the_file_that_ships(
    exported: Exported, sources: Untyped, pictures: Untyped, contract: Preprocess, cut: str
) -> None:
    pixels = np.array(pictures[1].images[:13])  # of the last call eight rows are not all pictures
    images = pictures[1].normalize(pixels.astype(np.float32))
    path = exported.folder / "model_int8_int8_io.tflite"
    ships = litert_codes(NODES, path, pixels, contract)
    found = codes_entering(cut, sources, sources.int8.table, images)
    assert len(found) == (2 if cut == "block_2_project" else 1)
    assert all(np.array_equal(codes, ships[name]) for name, codes in found.items())
    # Twin: one tensor near the input on another grid.
    wider = altered(sources.int8.table, {"Conv1": from_limits(0, 5.5, "calibrated")})
    other = codes_entering(cut, sources, wider, images)
    assert not any(np.array_equal(codes, ships[name]) for name, codes in other.items())


@pytest.mark.slow
@pytest.mark.parametrize("dead", [("Conv_1",), ("block_2_project", "block_2_add"), ("logits",)])
def test_a_tensor_that_is_always_zero_is_no_reason_to_refuse_the_file(
    sources: Untyped, pictures: Untyped, tmp_path: Path, dead: tuple[str, ...]
) -> None:
    weights = sources.int8.weights
    spans = {name: from_limits(0, 0, "calibrated") for name in dead}
    narrow = altered(sources.int8.table, spans)
    table = table_of(NODES, weights, narrow.activations, "channel")
    inputs = {INPUT: (SIZE_PX, SIZE_PX, 3)}
    few = replace(pictures[1], images=np.array(pictures[1].images[:5]))
    images = few.normalize(few.images.astype(np.float32))
    (answers,) = Inference(NODES, weights, inputs, (LOGITS,), table)([images])
    real = int8_file_logits(NODES, weights, table, few, tmp_path)
    assert np.array_equal(real.astype(np.float16), answers.reshape(real.shape))
    # Twin: as calibration leaves the range of such a tensor.
    with pytest.raises(RuntimeError, match="failed to prepare"):
        Inference(NODES, weights, inputs, (LOGITS,), narrow)
