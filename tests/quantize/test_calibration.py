"""Calibration: which pictures are looked at, what limits follow, and which of them are taken."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import ALPHA, Trained, Untyped

from edgekit.errors import TrainingError
from edgekit.network.ranges import from_limits
from edgekit.records import CalibrationMethod, TensorRange

pytest.importorskip("tensorflow")

from edgekit.network.forward import quantize, run
from edgekit.network.graph import INPUT, LOGITS, fold, mobilenet_v2
from edgekit.quantize.calibration import (
    METHODS,
    Rows,
    calibrate,
    mse_limits,
    percentile_limits,
    representative_rows,
    warnings_about,
)

NODES = mobilenet_v2(ALPHA)
# 100, 10 and 3 pictures of three classes, mixed.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 10, 3])).astype(np.int32)
ROWS = Rows(np.arange(20), np.arange(20, 40))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [1, 0, 0]), (9, [3, 3, 3]), (15, [6, 6, 3]), (40, [27, 10, 3]), (999, [72, 10, 3])],
)
def test_classes_take_turns_until_one_has_no_pictures_left(count: int, expected: list[int]) -> None:
    rows = representative_rows(LABELS, count, seed=1)
    assert (np.diff(rows.calibration) > 0).all()  # sorted, none twice
    assert np.bincount(LABELS[rows.calibration], minlength=3).tolist() == expected
    # A quarter of the 113 pictures is left to choose by, and none of it was calibrated on.
    assert len(rows.held_out) == 28
    assert not set(rows.held_out) & set(rows.calibration)


def test_a_single_picture_does_both() -> None:
    rows = representative_rows(np.zeros(1, np.int32), 512, seed=1)
    assert (rows.calibration.tolist(), rows.held_out.tolist()) == ([0], [0])


def test_the_seed_decides_which_pictures() -> None:
    one, same, other = (representative_rows(LABELS, 20, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.calibration, same.calibration)
    assert np.array_equal(one.held_out, same.held_out)
    assert not np.array_equal(one.calibration, other.calibration)


def histogram(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], float, float]:
    counts, _ = np.histogram(values, 2048, (values.min(), values.max()))
    return counts, float(values.min()), float(values.max())


def test_a_percentile_leaves_a_ten_thousandth_outside_on_each_side() -> None:
    values = np.random.default_rng(3).normal(size=1_000_000)
    low, high = percentile_limits(*histogram(values))
    bin_share = 2e-5  # what one of 2048 bins holds out there, at most
    for outside in ((values < low).mean(), (values > high).mean()):
        assert 1e-4 - bin_share <= outside <= 1e-4
    # Twin: the extremes leave nothing outside.
    assert low > values.min()
    assert high < values.max()


@pytest.mark.parametrize("values", [np.ones(50), np.zeros(50), np.array([0.0, 6.0])])
def test_few_values_stay_inside(values: npt.NDArray[np.float64]) -> None:
    counts, low, high = histogram(values)
    if low == high:
        # All values fall into one bin, as in TensorFlow's histogram of an empty interval.
        counts = np.zeros(2048, np.int64)
        counts[-1] = 50
    for limits in (percentile_limits(counts, low, high), mse_limits(counts, low, high)):
        assert limits[0] <= low
        assert limits[1] >= high


def squared_error(values: npt.NDArray[np.float64], low: float, high: float) -> float:
    span = from_limits(low, high, "calibrated")
    inside = np.clip(values, span.minimum, span.maximum)
    return float(np.square(values - np.round(inside / span.scale) * span.scale).mean())


@pytest.mark.parametrize("shape", ["normal", "laplace", "relu"])
def test_no_other_limits_lose_less_squared_error(shape: str) -> None:
    random = np.random.default_rng(4)
    values = random.laplace(size=200_000) if shape == "laplace" else random.normal(size=200_000)
    values = np.maximum(values, 0) if shape == "relu" else values
    counts, low, high = histogram(values)
    found = squared_error(values, *mse_limits(counts, low, high))
    tried = [
        squared_error(values, a * low, b * high)
        for a in np.linspace(0.25, 1, 16)
        for b in np.linspace(0.25, 1, 16)
    ]
    # The histogram's bins are a tenth of a step wide; the grid of limits has steps of 2 %.
    assert found <= 1.01 * min(tried)
    # Twin: the extremes waste codes on the tails.
    assert found < 0.98 * squared_error(values, low, high)


def ranges_of(
    trained: Trained, pictures: Untyped, method: CalibrationMethod | None, rows: Rows = ROWS
) -> dict[str, TensorRange]:
    told: list[tuple[int, int]] = []
    weights = fold(NODES, trained.arrays)
    ranges = calibrate(
        NODES, weights, pictures[0], rows, lambda done, total: told.append((done, total)), method
    )
    passes = {"min-max": 20, None: 60}.get(method, 40)
    assert told[-1] == (passes, passes)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    return ranges


@pytest.fixture(scope="module")
def by_method(trained: Trained, pictures: Untyped) -> dict[str, dict[str, TensorRange]]:
    return {method: ranges_of(trained, pictures, method) for method in METHODS}


@pytest.fixture(scope="module")
def best(trained: Trained, pictures: Untyped) -> dict[str, TensorRange]:
    return ranges_of(trained, pictures, None)


@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_has_a_range_in_network_order(
    by_method: dict[str, dict[str, TensorRange]], method: CalibrationMethod
) -> None:
    ranges = by_method[method]
    assert list(ranges) == [INPUT, *(node.name for node in NODES)]
    assert (ranges[INPUT].source, ranges[INPUT].method) == ("contract", None)
    assert {ranges[node.name].source for node in NODES} == {"calibrated"}
    assert {ranges[node.name].method for node in NODES} == {method}


def test_min_max_gives_the_extremes_of_the_values(
    trained: Trained, pictures: Untyped, by_method: dict[str, dict[str, TensorRange]]
) -> None:
    images = pictures[0].normalize(pictures[0].images[:20])
    tensors = run(NODES, fold(NODES, trained.arrays), {INPUT: images})
    for node in NODES:
        values, span = tensors[node.name].numpy(), by_method["min-max"][node.name]
        # Making zero a code moves both limits by at most half a step; values beyond a limit by
        # less than that still round to it. float32 adds 1e-5 of the range (see test_graph).
        slack = span.scale * 0.5 + 1e-5 * (span.maximum - span.minimum)
        assert span.minimum - slack <= values.min(), node.name
        assert values.max() <= span.maximum + slack, node.name
        # Nor is a code wasted.
        assert min(values.min(), 0) <= span.minimum + slack, node.name
        assert span.maximum - slack <= max(values.max(), 0), node.name


def test_the_other_methods_clip(by_method: dict[str, dict[str, TensorRange]]) -> None:
    for method in ("percentile", "mse"):
        for name, span in by_method[method].items():
            # Half a step for making zero a code, and another for that of the wider grid.
            assert span.scale <= 1.01 * by_method["min-max"][name].scale, (method, name)
        assert any(
            span.scale < 0.95 * by_method["min-max"][name].scale
            for name, span in by_method[method].items()
        )


def test_each_tensor_gets_the_method_that_moves_held_out_answers_least(
    trained: Trained,
    pictures: Untyped,
    by_method: dict[str, dict[str, TensorRange]],
    best: dict[str, TensorRange],
) -> None:
    weights = fold(NODES, trained.arrays)
    images = pictures[0].normalize(pictures[0].images[20:40])
    tensors = run(NODES, weights, {INPUT: images})

    def moved(position: int, span: TensorRange) -> float:
        node = NODES[position]
        changed = {**tensors, node.name: quantize(tensors[node.name], span)}
        logits = run(NODES[position + 1 :], weights, changed)[LOGITS]
        return float(np.square(logits - tensors[LOGITS]).sum())

    assert len({span.method for span in best.values()}) == 4  # None is the input's
    for position in range(0, len(NODES), 7):
        name = NODES[position].name
        by_hand = {method: moved(position, by_method[method][name]) for method in METHODS}
        span = best[name]
        assert span.method is not None
        assert span == by_method[span.method][name]
        # A batch of another size adds in another order.
        assert by_hand[span.method] <= 1.001 * min(by_hand.values()), name


def test_pictures_beyond_the_first_batch_count(trained: Trained, pictures: Untyped) -> None:
    weights = fold(NODES, trained.arrays)
    rows = (Rows(np.arange(count), np.arange(0)) for count in (8, 20))
    few, all_of_them = (
        calibrate(NODES, weights, pictures[0], chosen, lambda *_: None, "min-max")
        for chosen in rows
    )
    assert any(few[name].scale < 0.99 * span.scale for name, span in all_of_them.items())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("block_5_project/kernel", np.nan, "block_5_project/kernel is not finite"),
        ("block_5_project/kernel", np.inf, "block_5_project/kernel is not finite"),
        ("block_5_expand/bias", np.inf, "block_5_expand/bias is not finite"),  # behind it is ReLU6
        ("block_5_project/kernel", 3e38, "block_5_project makes values that are not finite"),
    ],
)
def test_weights_that_are_not_finite_are_refused(
    trained: Trained, pictures: Untyped, name: str, value: float, said: str
) -> None:
    weights = fold(NODES, trained.arrays)
    array = weights[name].copy()
    array.reshape(-1)[:8] = value
    with pytest.raises(TrainingError, match=said):
        calibrate(
            NODES,
            {**weights, name: array},
            pictures[0],
            ROWS,
            lambda *_: None,
            "min-max",
        )


@pytest.mark.parametrize(("count", "few"), [(1, True), (31, True), (32, False)])
def test_few_pictures_are_warned_about(pictures: Untyped, count: int, few: bool) -> None:
    said = warnings_about(pictures[0], Rows(np.arange(count), np.arange(0)))
    assert len(said) == few
    if few:
        assert f"rest on {count} training picture{'' if count == 1 else 's'}," in said[0]


def test_pictures_of_one_shade_are_warned_about(pictures: Untyped) -> None:
    images = np.full_like(pictures[0].images, 128)
    images[:, :, :, :] += np.arange(48, dtype=np.uint8)[:, None, None, None]
    rows = Rows(np.arange(40), np.arange(0))
    (said,) = warnings_about(replace(pictures[0], images=images), rows)
    assert "of one shade" in said
    # Twin: one picture with a single other pixel.
    images[7, 3, 3, 1] = 0
    assert warnings_about(replace(pictures[0], images=images), rows) == ()


def test_pictures_of_one_colour_give_a_table(trained: Trained, pictures: Untyped) -> None:
    grey = replace(pictures[0], images=np.full_like(pictures[0].images, 128))
    ranges = calibrate(NODES, fold(NODES, trained.arrays), grey, ROWS, lambda *_: None)
    assert all(0 < span.scale < 1 for span in ranges.values())
