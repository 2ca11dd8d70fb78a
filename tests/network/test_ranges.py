"""The int8 grid of an activation: zero is on it, and it is the grid that TensorFlow rounds to."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.network.graph import Node, mobilenet_v2, weighted
from edgekit.network.ranges import (
    from_limits,
    int16_scale,
    keeping_float,
    of_input,
    off_the_borders,
    read,
    table_of,
    write,
)
from edgekit.records import Granularity, Preprocess, RangeTable, TensorRange

Codes = npt.NDArray[np.int64]


def limits(count: int = 60) -> list[tuple[float, float]]:
    random = np.random.default_rng(8)
    sizes = 10.0 ** random.uniform(-3, 3, (count, 2))
    return [(-float(low), float(high)) for low, high in sizes]


EDGES = [(0.0, 6.0), (-3.0, 0.0), (1.0, 6.0), (-6.0, -2.0), (-1.0, 1.0), (0.0, 0.0), (-1e-9, 5.0)]


@pytest.mark.parametrize(("low", "high"), [*EDGES, *limits()])
def test_zero_is_a_code_and_the_limits_are_covered(low: float, high: float) -> None:
    span = from_limits(low, high, "calibrated")
    grid = span.scale * (np.arange(-128, 128) - span.zero_point)
    assert 0.0 in grid
    # The limits are float32 numbers: each is off by at most half of a last bit, as is their span.
    close = 2 * 2.0**-24 * max(-span.minimum, span.maximum)
    assert (grid[0], grid[-1]) == pytest.approx((span.minimum, span.maximum), rel=0, abs=close)
    for limit in (span.minimum, span.maximum):
        assert limit == float(np.float32(limit))  # a float32 itself would be compared in float32
    # Moving the zero point to a code moves the limits by at most half a step.
    assert grid[0] - min(low, 0) == pytest.approx(0, abs=span.scale * 0.5001)
    if high - low > 1e-6:  # a tensor of zeros gets a small range above zero
        assert grid[-1] - max(high, 0) == pytest.approx(0, abs=span.scale * 0.5001)


@pytest.mark.parametrize(("low", "high"), [edge for edge in EDGES if edge != (0, 0)] + limits(20))
def test_the_grid_is_the_one_tensorflow_rounds_to(low: float, high: float) -> None:
    tf = pytest.importorskip("tensorflow")
    span = from_limits(low, high, "calibrated")
    width = span.maximum - span.minimum
    # More points than codes, and beyond both ends: every code is hit.
    reals = np.linspace(span.minimum - width, span.maximum + width, 4096, dtype=np.float32)
    ours = span.scale * (np.arange(-128, 128) - span.zero_point)
    # float32 keeps 24 bits of each limit and of the scale, and rounds the product once more.
    close = 4 * 2.0**-24 * width
    asked = [(span.minimum, span.maximum)]
    if low != -high:
        # Of -1..1 the zero point lies half-way between two codes; float32 and float64 may choose
        # differently. The nudged limits, which every stage passes on, leave no choice.
        asked.append((min(low, 0.0), max(high, 0.0)))  # TensorFlow wants zero inside
    for limit in asked:
        grid = np.unique(tf.quantization.fake_quant_with_min_max_args(reals, *limit).numpy())
        assert len(grid) == 256
        assert np.abs(grid - ours).max() <= close
        # Twin: the zero point one code off.
        assert np.abs(grid - (ours - span.scale)).max() > close


def test_the_nudged_limits_give_the_same_grid_again() -> None:
    for low, high in limits():
        once = from_limits(low, high, "calibrated")
        twice = from_limits(once.minimum, once.maximum, "calibrated")
        assert twice.zero_point == once.zero_point
        assert math.isclose(twice.scale, once.scale, rel_tol=2.0**-23)  # limits are float32


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    spans = {
        "input": from_limits(-1, 0.9921875, "contract"),
        "Conv1": from_limits(0.1, 5.123456789012345, "calibrated", "mse"),
        "logits": from_limits(-7.7, 3.3, "trained", "percentile"),
    }
    kernels = {"Conv1": (0.1, float(np.float32(1 / 3))), "logits": (7e-9,)}
    table = RangeTable(activations=spans, kernels=kernels, kept_float=("block_1_expand",))
    write(tmp_path / "ranges.json", table)
    again = read(tmp_path / "ranges.json")
    assert again == table
    assert [list(again.activations), list(again.kernels)] == [list(spans), list(kernels)]
    # One tensor or kernel a line, so that two tables can be compared line by line.
    assert len((tmp_path / "ranges.json").read_text().splitlines()) == 3 + 2 + 5


NODES = mobilenet_v2(0.35)


@pytest.mark.parametrize(
    ("kept", "real"),
    [
        # Between int8 neighbours a single layer reads and makes codes.
        (["block_5_depthwise"], []),
        (["block_5_expand", "block_5_depthwise"], ["block_5_expand"]),
        # An addition reads the block's input too: that one is int8 for the expansion.
        (["block_5_project", "block_5_add"], ["block_5_project"]),
        (["block_4_add", "block_5_expand"], []),
        (["block_4_add", "block_5_expand", "block_5_add"], ["block_4_add"]),
        # The ends stay codes, for applications read their scales.
        (["Conv1", "Conv_1", "global_average_pool", "logits"], ["Conv_1", "global_average_pool"]),
        ([node.name for node in NODES], [node.name for node in NODES][:-1]),
    ],
)
def test_a_tensor_is_float_between_float_layers_only(kept: list[str], real: list[str]) -> None:
    spans = {name: from_limits(0, 6, "calibrated") for name in ["input", *(n.name for n in NODES)]}
    limits = {node.name: (1.0,) for node in weighted(NODES)}
    table = keeping_float(NODES, RangeTable(activations=spans, kernels=limits), kept)
    assert [name for name in spans if name not in table.activations] == real
    assert set(limits) - set(table.kernels) == set(kept) & set(limits)
    assert table.kept_float == tuple(node.name for node in NODES if node.name in kept)


def test_the_int16_grid_is_symmetric_and_covers_the_range() -> None:
    span = from_limits(-1.0, 3.0, "calibrated")
    assert int16_scale(span) * 32767 == pytest.approx(span.maximum)
    span = from_limits(-3.0, 1.0, "calibrated")
    assert int16_scale(span) * -32767 == pytest.approx(span.minimum)


def test_pixels_are_the_codes_of_the_default_contract() -> None:
    span = of_input(Preprocess(height_px=32, width_px=32))
    assert span == TensorRange(
        minimum=-1.0, maximum=127 / 128, scale=1 / 128, zero_point=0, source="contract"
    )


def test_the_usual_contract_has_the_usual_grid() -> None:
    usual = Preprocess(height_px=32, width_px=32, scale=(1 / 127.5,) * 3, offset=(-1.0,) * 3)
    span = of_input(usual)
    assert span.scale == pytest.approx(2 / 255)
    assert span.minimum <= 0 <= span.maximum
    assert span.zero_point in (-1, 0)


def added_in_float32(one: TensorRange, other: TensorRange, total: TensorRange) -> Codes:
    """Returns the sums of all pairs of codes, added as onnxruntime does it: uint8, in float32."""
    ratios = [np.float32(span.scale) / np.float32(total.scale) for span in (one, other)]
    zeros = [np.float32(span.zero_point + 128) for span in (one, other, total)]
    codes = np.arange(256, dtype=np.float32)
    fixed = zeros[2] - (ratios[0] * zeros[0] + ratios[1] * zeros[1])
    sums = ratios[1] * codes + (ratios[0] * codes + fixed)[:, None]
    assert sums.dtype == np.float32
    return np.clip(np.rint(sums), 0, 255).astype(np.int64) - 128


def added_in_fixed_point(one: TensorRange, other: TensorRange, total: TensorRange) -> Codes:
    """Returns the same as XNNPACK adds int8."""
    ratios = [np.float32(span.scale) / np.float32(total.scale) for span in (one, other)]
    shift = 20 - math.floor(math.log2(max(ratios)))
    factors = [round(float(ratio) * 2**shift) for ratio in ratios]
    codes = np.arange(-128, 128)
    products = [f * (codes - s.zero_point) for f, s in zip(factors, (one, other), strict=True)]
    sums = (products[0][:, None] + products[1] + 2 ** (shift - 1)) >> shift
    return np.clip(sums + total.zero_point, -128, 127)


def test_two_codes_are_added_alike_in_fixed_point_and_in_float32() -> None:
    random = np.random.default_rng(4)
    differed = 0
    for _ in range(12):
        sides = random.uniform(0.5, 8, (3, 2))
        one, other, total = (from_limits(-low, high, "calibrated") for low, high in sides)
        spans = one, other, off_the_borders(one, other, total)
        assert np.array_equal(added_in_fixed_point(*spans), added_in_float32(*spans))
        assert 1 <= spans[2].scale / total.scale < 1.001
        assert spans[2].zero_point == total.zero_point
        assert off_the_borders(*spans) == spans[2]
        # Twin: the range as it was.
        plain = one, other, total
        differed += not np.array_equal(added_in_fixed_point(*plain), added_in_float32(*plain))
    assert differed >= 3


def test_a_table_has_no_sums_on_borders() -> None:
    nodes = (Node("a", "conv", ("input",)), Node("sum", "add", ("input", "a")))
    weights = {"a/kernel": np.ones((1, 1, 3, 3), np.float32)}
    sides = (("input", 1.3, 2.1), ("a", 1.7, 0.9), ("sum", 2.3, 3.3))
    spans = {name: from_limits(-low, high, "calibrated") for name, low, high in sides}
    table = table_of(nodes, weights, spans, "channel")
    assert table.activations["sum"] == off_the_borders(*spans.values())
    assert table.activations["sum"] != spans["sum"]
    assert {**table.activations, "sum": spans["sum"]} == spans


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_no_range_of_a_table_is_narrower_than_runtimes_take(granularity: Granularity) -> None:
    nodes = (
        Node("a", "conv", ("input",)),
        Node("b", "depthwise", ("a",)),
        Node("sum", "add", ("a", "b")),
    )
    random = np.random.default_rng(5)
    weights = {
        "a/kernel": random.normal(0, 1, (1, 1, 3, 4)).astype(np.float32),
        "b/kernel": random.normal(0, 1, (3, 3, 4, 1)).astype(np.float32),
    }
    zero, one = from_limits(0, 0, "calibrated"), from_limits(-1, 1, "calibrated")
    for dead in ({"a"}, {"b"}, {"a", "b", "sum"}, {"sum"}):
        spans = {name: zero if name in dead else one for name in ("input", "a", "b", "sum")}
        table = table_of(nodes, weights, spans, granularity)
        found = table.activations
        products = {
            node.name: found[node.inputs[0]].scale * max(table.kernels[node.name]) / 127
            for node in nodes[:2]
        }
        products["sum"] = max(found["a"].scale, found["b"].scale)
        for name in dead:
            ratio = products[name] / found[name].scale
            # Behind a tensor that is always zero itself, products are small enough.
            assert ratio == pytest.approx(255, rel=1e-3) if len(dead) == 1 else ratio < 255.3
            assert (found[name].minimum, found[name].zero_point) == (0, -128)
        # What is wide enough stays as it is, but for sums on borders.
        assert all(found[name] == one for name in {"input", "a", "b"} - dead)
        assert "sum" in dead or found["sum"].scale == pytest.approx(one.scale, rel=0.02)
