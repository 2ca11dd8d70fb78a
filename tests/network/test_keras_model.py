"""The Keras model: its arrays go out and in, and are those that Keras itself reads."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from crafted_weights import whole_h5
from tiny_models import shared_file
from tiny_network import ALPHA, SIZE_PX, Arrays, Network

from edgekit.network.graph import INPUT, backbone_shapes, fold, layer_names, mobilenet_v2
from edgekit.network.starting_weights import starting_weights
from edgekit.recipe import WIDTHS

tf_keras = pytest.importorskip("tf_keras")

from edgekit.network import keras_model  # noqa: E402 - after the check that TensorFlow is there

# As in test_graph: what float32 sums of at most 1792 terms lose over 53 layers.
FLOAT_ROUNDING = 1e-4


def build(weights: Arrays | None, seed: int = 1) -> tf_keras.Model:
    return keras_model.build(
        alpha=ALPHA,
        input_size_px=(SIZE_PX, SIZE_PX),
        class_count=3,
        weights=weights,
        seed=seed,
    )


def test_arrays_go_out_and_in(network: Network) -> None:
    source, other = network(ALPHA, SIZE_PX), build(None, seed=2)
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


def backbone(alpha: float) -> tf_keras.Model:
    return tf_keras.applications.MobileNetV2(
        input_shape=(SIZE_PX, SIZE_PX, 3), alpha=alpha, include_top=False, weights=None
    )


@pytest.mark.slow
@pytest.mark.parametrize("alpha", WIDTHS)
def test_the_backbone_has_the_arrays_of_keras_in_its_order(alpha: float) -> None:
    variables = [variable for layer in backbone(alpha).layers for variable in layer.weights]
    shapes = {variable.name.split(":")[0]: tuple(variable.shape) for variable in variables}
    assert list(backbone_shapes(alpha).items()) == list(shapes.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saved.h5", "saved.weights.h5", "model.h5"])
def test_what_keras_saves_is_read_as_keras_reads_it(tmp_path: Path, name: str) -> None:
    source, path = backbone(ALPHA), tmp_path / name
    source.load_weights(whole_h5(tmp_path))
    if name == "model.h5":
        with warnings.catch_warnings(action="ignore"):  # Keras calls the format legacy
            source.save(path)
    else:
        source.save_weights(path)
    read = starting_weights(str(path), ALPHA, (SIZE_PX, SIZE_PX))
    assert read is not None
    for key, expected in keras_model.arrays_of(source).items():
        assert read.arrays[key].tobytes() == expected.tobytes(), key


def test_weights_of_the_same_width_are_loaded(network: Network) -> None:
    stored = keras_model.arrays_of(network(ALPHA, SIZE_PX))
    loaded = keras_model.arrays_of(build(stored))
    for name in stored:
        # The head is new: it starts from the seed, not from the file.
        assert np.array_equal(loaded[name], stored[name]) == (name != "logits/kernel"), name


def test_a_network_of_one_channel_answers_grey_as_three_equal_channels_did(
    network: Network,
) -> None:
    colour = network(ALPHA, SIZE_PX)
    stored = keras_model.arrays_of(colour)
    grey = keras_model.build(
        alpha=ALPHA, input_size_px=(SIZE_PX, SIZE_PX), channels=1, class_count=3,
        weights=stored, seed=3,
    )  # fmt: skip
    arrays = keras_model.arrays_of(grey) | {"logits/kernel": stored["logits/kernel"]}
    keras_model.assign(grey, arrays | {"logits/bias": stored["logits/bias"]})
    assert grey.input_shape == (None, SIZE_PX, SIZE_PX, 1)
    luma = np.random.default_rng(2).uniform(-1, 1, (4, SIZE_PX, SIZE_PX, 1)).astype(np.float32)
    expected = colour(np.repeat(luma, 3, axis=3), training=False).numpy()
    found = grey(luma, training=False).numpy()
    spread = np.ptp(expected)
    assert np.abs(found - expected).max() < 1e-4 * spread
    # The twin: one of the three kernels alone is another network.
    keras_model.assign(grey, arrays | {"Conv1/kernel": stored["Conv1/kernel"][:, :, :1]})
    assert np.abs(grey(luma, training=False).numpy() - expected).max() > 0.01 * spread


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
    model = build(None)
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


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("mobilenet_v2_0.35_224_no_top.h5", 0.35),
        ("mobilenet_v2_1.0_224_no_top_from_int8.h5", 1.0),
    ],
)
def test_real_weights_are_read_as_keras_reads_them(name: str, alpha: float) -> None:
    path = shared_file("weights", name)
    read, keras = starting_weights(str(path), alpha, (SIZE_PX, SIZE_PX)), backbone(alpha)
    assert read is not None
    keras.load_weights(path)
    expected = keras_model.arrays_of(keras)
    assert read.arrays.keys() == expected.keys()
    assert all(read.arrays[key].tobytes() == expected[key].tobytes() for key in expected)


@pytest.mark.parametrize("alpha", [0.35, 1.0, 1.4])
def test_the_names_of_its_layers_are_known_without_it(alpha: float) -> None:
    built = keras_model.build(
        alpha=alpha, input_size_px=(SIZE_PX, SIZE_PX), class_count=3, weights=None, seed=0
    )
    _, *names = layer_names(mobilenet_v2(alpha))  # Keras numbers its input layers
    assert names == [layer.name for layer in built.layers][1:]
