"""Calibration: which pictures are looked at, and that the ranges cover everything seen in them."""

import numpy as np
import pytest
from tiny_network import ALPHA, Trained, Untyped

pytest.importorskip("tensorflow")

from edgekit.network.forward import run
from edgekit.network.graph import INPUT, fold, mobilenet_v2
from edgekit.quantize.calibration import calibrate, representative_rows
from edgekit.records import TensorRange

NODES = mobilenet_v2(ALPHA)
# 100, 10 and 3 pictures of three classes, mixed.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 10, 3])).astype(np.int32)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [1, 0, 0]), (9, [3, 3, 3]), (15, [6, 6, 3]), (40, [27, 10, 3]), (999, [100, 10, 3])],
)
def test_classes_take_turns_until_one_has_no_pictures_left(count: int, expected: list[int]) -> None:
    rows = representative_rows(LABELS, count, seed=1)
    assert len(rows) == min(count, len(LABELS))
    assert (np.diff(rows) > 0).all()  # sorted, none twice
    assert np.bincount(LABELS[rows], minlength=3).tolist() == expected


def test_the_seed_decides_which_pictures() -> None:
    assert np.array_equal(representative_rows(LABELS, 20, 1), representative_rows(LABELS, 20, 1))
    assert not np.array_equal(
        representative_rows(LABELS, 20, 1), representative_rows(LABELS, 20, 2)
    )


def ranges_with(
    trained: Trained, pictures: Untyped, batch_size: int, rows: int = 20
) -> dict[str, TensorRange]:
    told: list[tuple[int, int]] = []
    table = calibrate(
        NODES,
        fold(NODES, trained.arrays),
        pictures[0],
        np.arange(rows),
        lambda done, total: told.append((done, total)),
        batch_size,
    )
    assert told[-1] == (rows, rows)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    return table


@pytest.fixture(scope="module")
def table(trained: Trained, pictures: Untyped) -> dict[str, TensorRange]:
    return ranges_with(trained, pictures, batch_size=20)


def test_every_tensor_has_a_range_in_network_order(table: dict[str, TensorRange]) -> None:
    assert list(table) == [INPUT, *(node.name for node in NODES)]
    assert table[INPUT].source == "contract"
    assert {table[node.name].source for node in NODES} == {"calibrated"}


def test_the_ranges_are_the_extremes_of_the_values(
    trained: Trained, pictures: Untyped, table: dict[str, TensorRange]
) -> None:
    images = pictures[0].normalize(pictures[0].images[:20])
    tensors = run(NODES, fold(NODES, trained.arrays), {INPUT: images})
    for node in NODES:
        values, span = tensors[node.name].numpy(), table[node.name]
        # Making zero a code moves both limits by at most half a step; values beyond a limit by
        # less than that still round to it. float32 adds 1e-5 of the range (see test_graph).
        slack = span.scale * 0.5 + 1e-5 * (span.maximum - span.minimum)
        assert span.minimum - slack <= values.min(), node.name
        assert values.max() <= span.maximum + slack, node.name
        # Nor is a code wasted.
        assert min(values.min(), 0) <= span.minimum + slack, node.name
        assert span.maximum - slack <= max(values.max(), 0), node.name


def test_the_batch_size_changes_nothing(
    trained: Trained, pictures: Untyped, table: dict[str, TensorRange]
) -> None:
    again = ranges_with(trained, pictures, batch_size=7)
    fewer = ranges_with(trained, pictures, batch_size=7, rows=7)
    for name, span in table.items():
        # A convolution may add in another order for another batch: float32 rounding.
        assert again[name].scale == pytest.approx(span.scale, rel=1e-4), name
    # Twin: if the last batch counted for nothing, or only the first did, this would show.
    assert any(fewer[name].scale < 0.99 * span.scale for name, span in table.items())
