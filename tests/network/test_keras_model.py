"""The Keras model: its arrays go out and in, and weights that do not fit are refused."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import shared_file
from tiny_network import ALPHA, SIZE_PX, Network, arrays_in

from edgekit.errors import SpecError
from edgekit.network.graph import INPUT, fold, mobilenet_v2

tf_keras = pytest.importorskip("tf_keras")

from edgekit.network import keras_model  # noqa: E402 - after the check that TensorFlow is there

# As in test_graph: what float32 sums of at most 1792 terms lose over 53 layers.
FLOAT_ROUNDING = 1e-4


def build(weights: str, alpha: float = ALPHA, seed: int = 1) -> tf_keras.Model:
    return keras_model.build(
        alpha=alpha,
        input_size_px=SIZE_PX,
        class_count=3,
        weights=weights,
        seed=seed,
    )


def test_arrays_go_out_and_in(network: Network) -> None:
    source, other = network(ALPHA, SIZE_PX), build("none", seed=2)
    images = np.random.default_rng(1).uniform(-1, 1, (2, SIZE_PX, SIZE_PX, 3)).astype(np.float32)
    expected = source(images, training=False).numpy()
    assert not np.array_equal(other(images, training=False).numpy(), expected)
    arrays = keras_model.arrays_of(source)
    assert len(arrays) == len(source.weights) == 262
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    keras_model.assign(other, {**arrays, "left over": np.zeros(1)})
    assert np.array_equal(other(images, training=False).numpy(), expected)


def test_the_arrays_are_copies(network: Network) -> None:
    model = network(ALPHA, SIZE_PX)
    arrays = keras_model.arrays_of(model)
    kept = arrays["logits/bias"].copy()
    model.get_layer("logits").bias.assign([7.0, 8.0, 9.0])
    assert np.array_equal(arrays["logits/bias"], kept)


def test_assigning_needs_every_array_in_its_shape(network: Network) -> None:
    model = network(ALPHA, SIZE_PX)
    arrays = keras_model.arrays_of(model)
    shorter = {**arrays, "bn_Conv1/beta": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"bn_Conv1/beta has shape \(3,\), the network needs"):
        keras_model.assign(model, shorter)
    del arrays["bn_Conv1/beta"]
    with pytest.raises(ValueError, match="no array named bn_Conv1/beta"):
        keras_model.assign(model, arrays)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_weights_of_another_width_are_refused(
    network: Network, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"narrow{suffix}"
    if suffix == ".npz":
        np.savez(path, allow_pickle=False, **keras_model.arrays_of(network(ALPHA, SIZE_PX)))
    else:
        tf_keras.applications.MobileNetV2(
            input_shape=(SIZE_PX, SIZE_PX, 3), alpha=ALPHA, include_top=False, weights=None
        ).save_weights(path)
    with pytest.raises(SpecError, match=r"MobileNetV2\(alpha=0.5, include_top=False\)") as caught:
        build(str(path), alpha=0.5)
    assert caught.value.exit_code == 2
    assert str(path) in caught.value.received


def test_weights_of_the_same_width_are_loaded(starting_weights: Path) -> None:
    loaded = keras_model.arrays_of(build(str(starting_weights)))
    stored = arrays_in(starting_weights)
    for name in stored:
        # The head is new: it starts from the seed, not from the file.
        assert np.array_equal(loaded[name], stored[name]) == (name != "logits/kernel"), name


@pytest.mark.parametrize("content", [b"", b"not a weight file"])
@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_a_damaged_weight_file_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        build(str(path))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(
    starting_weights: Path, tmp_path: Path, value: float
) -> None:
    arrays = arrays_in(starting_weights)
    arrays["block_5_depthwise_BN/moving_variance"][3] = value
    path = tmp_path / "diverged.npz"
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(SpecError) as caught:
        build(str(path))
    assert "diverged.npz" in caught.value.received
    assert "block_5_depthwise_BN/moving_variance holds NaN or infinity" in caught.value.received


def test_a_cut_short_weight_file_is_refused(starting_weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.npz"
    content = starting_weights.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SpecError):
        build(str(path))


def test_the_tensors_of_all_nodes_are_those_of_the_folded_network(network: Network) -> None:
    from edgekit.network.forward import run

    model, nodes = network(ALPHA, SIZE_PX), mobilenet_v2(ALPHA)
    images = np.random.default_rng(1).uniform(-1, 1, (2, SIZE_PX, SIZE_PX, 3)).astype(np.float32)
    names = [node.name for node in nodes]
    found = keras_model.tensors_of(model, nodes, names, images)
    assert list(found) == names
    folded = run(nodes, fold(nodes, keras_model.arrays_of(model)), {INPUT: images})
    for node in nodes:
        expected = folded[node.name].numpy()
        bound = FLOAT_ROUNDING * np.abs(expected).max()
        assert found[node.name].shape == expected.shape
        assert np.abs(found[node.name] - expected).max() <= bound, node.name
        # Twin: the other picture.
        assert np.abs(found[node.name][::-1] - expected).max() > bound
    (alone,) = keras_model.tensors_of(model, nodes, ["block_5_add"], images).values()
    assert np.array_equal(alone, found["block_5_add"])
    assert keras_model.tensors_of(model, nodes, [], images) == {}
    (itself,) = keras_model.tensors_of(model, nodes, [INPUT], images).values()
    assert np.array_equal(itself, images)


@pytest.mark.slow
def test_statistics_of_a_batch_keep_the_signal_of_a_random_network_alive() -> None:
    model = build("none")
    images = np.random.default_rng(1).uniform(-1, 1, (8, SIZE_PX, SIZE_PX, 3)).astype(np.float32)
    before = keras_model.arrays_of(model)
    spread = model(images, training=False).numpy().std(0).max()
    keras_model.take_statistics(model, images)
    after = keras_model.arrays_of(model)
    assert model(images, training=False).numpy().std(0).max() > 100 * spread
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split("/")[1] for name in changed} == {"moving_mean", "moving_variance"}
    assert len(changed) == 2 * 52
    first = tf_keras.Model(model.input, model.get_layer("Conv1").output)(images).numpy()
    # Sums of 8 * 24 * 24 values in float32.
    assert after["bn_Conv1/moving_mean"] == pytest.approx(first.mean((0, 1, 2)), abs=1e-4)
    assert after["bn_Conv1/moving_variance"] == pytest.approx(first.var((0, 1, 2)), rel=1e-2)
    # The same again changes nothing more, and training goes on as slowly as before.
    keras_model.take_statistics(model, images)
    again = keras_model.arrays_of(model)
    assert all(again[name] == pytest.approx(after[name], rel=1e-4, abs=1e-6) for name in after)
    model(images + 1, training=True)
    moved = keras_model.arrays_of(model)["bn_Conv1/moving_mean"] - after["bn_Conv1/moving_mean"]
    whole = tf_keras.Model(model.input, model.get_layer("Conv1").output)(images + 1).numpy()
    step = whole.mean((0, 1, 2)) - after["bn_Conv1/moving_mean"]
    assert moved == pytest.approx(0.001 * step, abs=1e-6)


def test_published_weights_load_by_path() -> None:
    h5py = pytest.importorskip("h5py")
    path = shared_file("weights", "mobilenet_v2_0.35_224_no_top.h5")
    loaded = keras_model.arrays_of(build(str(path)))
    with h5py.File(path) as stored:
        expected = stored["block_13_expand/block_13_expand/kernel:0"][()]
    assert np.array_equal(loaded["block_13_expand/kernel"], expected)
