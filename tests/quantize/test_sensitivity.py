"""What int8 costs at each layer: switched on alone, and switched off alone."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_network import ALPHA, Quantized, Untyped

from edgekit.network.graph import INPUT, mobilenet_v2
from edgekit.network.ranges import from_limits, keeping_float
from edgekit.records import RangeTable

pytest.importorskip("tensorflow")

from edgekit.fitting.pictures import compiled
from edgekit.network.forward import logits_function
from edgekit.quantize.sensitivity import Trials, fewest_to_keep, sensitivity

NODES = mobilenet_v2(ALPHA)
NAMES = [node.name for node in NODES]
COARSE = "block_5_expand"


def silent(_done: int, _total: int) -> None:
    """Tells nobody."""


@pytest.fixture(scope="module")
def coarse_table(quantized: Quantized) -> RangeTable:
    """Returns a table in which the kernel of one layer has but three codes that are used."""
    table = quantized.table("ptq")
    limits = tuple(100 * limit for limit in table.kernels[COARSE])
    return table.model_copy(update={"kernels": {**table.kernels, COARSE: limits}})


@pytest.fixture(scope="module")
def trials(quantized: Quantized, coarse_table: RangeTable, pictures: Untyped) -> Trials:
    return Trials(NODES, quantized.weights("ptq"), coarse_table, pictures[1])


@pytest.mark.parametrize(
    "kept", [(), (COARSE,), ("Conv1", "block_13_expand", "block_13_depthwise")]
)
def test_any_part_is_switched_as_it_would_ship(
    trials: Trials,
    quantized: Quantized,
    coarse_table: RangeTable,
    pictures: Untyped,
    kept: tuple[str, ...],
) -> None:
    weights = quantized.weights("ptq")
    step = coarse_table.activations["logits"].scale

    def shipped(names: tuple[str, ...]) -> Untyped:
        table = keeping_float(NODES, coarse_table, names)
        return compiled(logits_function(NODES, weights, table), pictures[1])()

    # Two traces of one arithmetic may differ in the last bit, which moves a value at the border of
    # two codes: nearly all answers are the same.
    apart = np.abs(trials.keeping(kept) - shipped(kept)) / step
    assert (apart < 0.01).mean() > 0.8
    # Twin: another network.
    other = () if kept else (COARSE,)
    assert (np.abs(trials.keeping(kept) - shipped(other)) / step < 0.01).mean() < 0.5


def test_with_nothing_in_int8_it_is_the_float_network(
    trials: Trials, quantized: Quantized, pictures: Untyped
) -> None:
    weights = quantized.weights("ptq")
    expected = compiled(logits_function(NODES, weights), pictures[1])()
    assert np.allclose(trials.logits((), ()), expected, rtol=1e-4, atol=1e-4)


def test_the_layer_that_costs_most_is_found(trials: Trials) -> None:
    told: list[tuple[int, int]] = []
    found = sensitivity(trials, (), lambda *done: told.append(done))
    assert [item.layer for item in found] == NAMES
    assert told == [(n, len(NODES)) for n in range(1, len(NODES) + 1)]
    assert min(found, key=lambda item: item.alone_db).layer == COARSE
    assert max(found, key=lambda item: item.regained_db).layer == COARSE
    # An addition between codes carries nothing of its own that float32 would mend.
    (addition,) = (item for item in found if item.layer == "block_5_add")
    assert addition.regained_db == pytest.approx(0, abs=0.2)


def test_what_is_kept_is_not_measured_again(trials: Trials) -> None:
    found = sensitivity(trials, (COARSE, "Conv1"), silent)
    assert [item.layer for item in found] == [n for n in NAMES if n not in (COARSE, "Conv1")]


def test_the_fewest_layers_are_kept_worst_first(trials: Trials) -> None:
    tried: list[tuple[str, ...]] = []

    def good_enough(kept: tuple[str, ...]) -> bool:
        tried.append(kept)
        return len(kept) == 2

    kept = fewest_to_keep(trials, (), good_enough, silent)
    assert kept[0] == COARSE
    assert tried == [(), kept[:1], kept]


def test_where_nothing_will_do_every_layer_is_kept(pictures: Untyped) -> None:
    nodes = (replace(NODES[-2], inputs=(INPUT,)), NODES[-1])
    spans = {node.name: from_limits(-6, 6, "calibrated") for node in nodes}
    spans[INPUT] = from_limits(-1, 1, "contract")
    random = np.random.default_rng(3)
    weights = {
        "logits/kernel": random.normal(size=(1, 1, 3, 3)).astype(np.float32),
        "logits/bias": np.zeros(3, np.float32),
    }
    table = RangeTable(activations=spans, kernels={"logits": (3.0,)})
    small = Trials(nodes, weights, table, pictures[1])
    assert small.logits((), ()).shape == (len(pictures[1].images), 3)
    kept = fewest_to_keep(small, (), lambda _kept: False, silent)
    assert set(kept) == {"global_average_pool", "logits"}
