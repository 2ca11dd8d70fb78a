"""Decoded pictures: the contract turns pixels into values, and all are answered in order."""

from pathlib import Path

import numpy as np
import pytest
from tiny_network import SIZE_PX, Untyped, coloured

from edgekit.records import Preprocess

tf = pytest.importorskip("tensorflow")

from edgekit.fitting.pictures import Pictures, compiled  # noqa: E402 - after the check for TensorFlow

CONTRACT = Preprocess(height_px=1, width_px=1, scale=(0.5, 0.25, 0.125), offset=(-1.0, 0.0, 2.0))


@pytest.mark.parametrize("kind", [np.asarray, tf.constant])
def test_normalizing_follows_the_contract_per_channel(kind: Untyped) -> None:
    split = Pictures(np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, np.int32), CONTRACT)
    pixels = kind(np.full((1, 1, 1, 3), 8, np.float32))
    values = split.normalize(pixels)
    assert type(values) is type(pixels)
    assert values.dtype == np.float32
    assert np.array(values).ravel().tolist() == [3.0, 2.0, 3.0]


def test_a_split_is_opened_as_it_was_written(pictures: Untyped, contract: Preprocess) -> None:
    images, labels = coloured(48, 1)
    assert np.array_equal(pictures[0].images, images)
    assert np.array_equal(pictures[0].labels, labels)
    assert pictures[0].preprocess == contract
    assert not pictures[0].images.flags.writeable


def test_all_pictures_are_answered_in_order_by_the_variables_of_now(tmp_path: Path) -> None:
    images, labels = coloured(130, 4, SIZE_PX)  # two full batches of 64 and a rest
    contract = Preprocess(height_px=SIZE_PX, width_px=SIZE_PX)
    split = Pictures(images, labels, contract)
    factor = tf.Variable(1.0)
    answer = compiled(lambda values: factor * tf.reduce_mean(values, (1, 2)), split)
    # A mean of 48 * 48 values in float32, summed in another order.
    expected = (images.astype(np.float64) / 128 - 1).mean((1, 2))
    assert answer() == pytest.approx(expected, abs=1e-5)
    assert answer() != pytest.approx(np.roll(expected, 64, axis=0), abs=1e-5)
    factor.assign(2.0)
    assert answer() == pytest.approx(2 * expected, abs=1e-5)
