"""The part that trains: Keras's answers, Keras's gradients, and dropout that repeats itself."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import ALPHA, SIZE_PX, Arrays, Network, Untyped, checkpoints, coloured

from edgekit.network.graph import LOGITS, boundary, fold, mobilenet_v2, split, weighted

tf = pytest.importorskip("tensorflow")

from edgekit.network import keras_model  # noqa: E402 - after the check for TensorFlow
from edgekit.network.tail import Tail  # noqa: E402

NODES = mobilenet_v2(ALPHA)
WEIGHTED = [node.name for node in weighted(NODES)]
# Only the head; a cut between blocks; one inside a residual block, which two tensors cross; all.
CUTS = [LOGITS, "block_13_expand", "block_15_project", "Conv1"]
# As in test_graph: what float32 sums of at most 1792 terms lose over 53 layers.
FLOAT_ROUNDING = 1e-4
IMAGES, LABELS = coloured(12, 6)
VALUES = IMAGES.astype(np.float32) / 128 - 1


def tail_of(arrays: Arrays, cut: str, *, dropout: float = 0.0) -> tuple[Tail, tuple[str, ...]]:
    """Returns the network from a layer on, and the names of what enters it."""
    prefix, nodes = split(NODES, frozenset(WEIGHTED[WEIGHTED.index(cut) :]))
    names = boundary(prefix, nodes)
    return Tail(nodes, names, arrays, dropout=dropout, seed=5), names


def entering(model: Untyped, names: tuple[str, ...]) -> list[npt.NDArray[np.float32]]:
    """Returns what Keras's layers make of the pictures in front of the cut."""
    return list(keras_model.tensors_of(model, NODES, names, VALUES).values())


@pytest.mark.parametrize("cut", CUTS)
def test_it_answers_as_the_keras_model(network: Network, cut: str) -> None:
    model = network(ALPHA, SIZE_PX)
    arrays = keras_model.arrays_of(model)
    expected = model(VALUES, training=False).numpy()
    tail, names = tail_of(arrays, cut, dropout=0.5)
    bound = FLOAT_ROUNDING * float(np.abs(expected).max())
    tensors = entering(model, names)
    assert np.abs(tail(tensors, training=False).numpy() - expected).max() <= bound
    # Without dropout training asks for the same function.
    still, _ = tail_of(arrays, cut)
    assert np.abs(still(tensors, training=True).numpy() - expected).max() <= bound
    # Twins: the answers of the next picture, and one channel of one BatchNorm.
    assert np.abs(np.roll(tail(tensors, training=False), 1, axis=0) - expected).max() > bound
    name = {LOGITS: f"{LOGITS}/bias", "Conv1": "bn_Conv1/moving_mean"}.get(
        cut, f"{cut}_BN/moving_mean"
    )
    nudged = arrays[name].copy()
    nudged[0] += 0.5
    other, _ = tail_of({**arrays, name: nudged}, cut)
    assert np.abs(other(tensors, training=False).numpy() - expected).max() > bound


def loss_of(logits: Untyped) -> Untyped:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, logits))


def keras_gradients(model: Untyped, names: list[str], training: bool) -> Arrays:
    """Returns the gradient of the loss for some of the model's variables, in float32."""
    variables = {variable.name.split(":")[0]: variable for variable in model.variables}
    with tf.GradientTape() as tape:
        value = loss_of(model(VALUES, training=training))
    gradients = tape.gradient(value, [variables[name] for name in names])
    return {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)}


def tail_gradients(tail: Tail, tensors: list[npt.NDArray[np.float32]]) -> Arrays:
    with tf.GradientTape() as tape:
        value = loss_of(tail(tensors, training=True))
    gradients = tape.gradient(value, tail.trained())
    return {name: g.numpy() for name, g in zip(tail.arrays(), gradients, strict=True)}


def departure(one: Arrays, other: Arrays) -> dict[str, float]:
    """Returns how far two gradients are apart, as a fraction of their length."""
    assert one.keys() == other.keys()
    return {
        name: float(np.linalg.norm(one[name] - other[name]) / np.linalg.norm(other[name]))
        for name in one
    }


@pytest.mark.parametrize("cut", CUTS)
def test_its_gradients_are_those_of_a_keras_model_with_frozen_batch_norm(
    network: Network, cut: str
) -> None:
    model = network(ALPHA, SIZE_PX)
    tail, names = tail_of(keras_model.arrays_of(model), cut)
    found = tail_gradients(tail, entering(model, names))
    assert len(found) == len(WEIGHTED) - WEIGHTED.index(cut) + 1  # kernels, and the head's bias
    # Ten times what float32 leaves after up to 53 layers here; a ReLU6 within rounding of its edge
    # would open or close and show.
    assert max(departure(found, keras_gradients(model, list(found), False)).values()) <= 2e-5
    # Twin: what a BatchNorm that still learns gives. The head has none.
    if cut != LOGITS:
        off = departure(found, keras_gradients(model, list(found), True))
        assert min(off[name] for name in off if not name.startswith(LOGITS)) > 1e-2


@pytest.mark.parametrize("cut", CUTS)
def test_its_variables_are_the_kernels_as_keras_names_them(network: Network, cut: str) -> None:
    model = network(ALPHA, SIZE_PX)
    arrays = keras_model.arrays_of(model)
    tail, _ = tail_of(arrays, cut)
    kept = tail.arrays()
    assert [name.split("/")[0] for name in kept] == [*WEIGHTED[WEIGHTED.index(cut) :], LOGITS]
    assert all(np.array_equal(kept[name], arrays[name]) for name in kept)
    # What training changes goes back into the Keras model, and both answer alike again.
    for variable in tail.trained():
        variable.assign(variable * 0.9)
    assert all(np.array_equal(kept[name], arrays[name]) for name in kept)  # they were copies
    keras_model.assign(model, {**arrays, **tail.arrays()})
    expected = model(VALUES, training=False).numpy()
    names = boundary(*split(NODES, frozenset(WEIGHTED[WEIGHTED.index(cut) :])))
    bound = FLOAT_ROUNDING * float(np.abs(expected).max())
    answers = tail(entering(model, names), training=False).numpy()
    assert np.abs(answers - expected).max() <= bound
    # And folding sees what trained.
    assert not np.array_equal(
        fold(NODES, {**arrays, **tail.arrays()})[f"{LOGITS}/kernel"],
        fold(NODES, arrays)[f"{LOGITS}/kernel"],
    )


@pytest.mark.parametrize("cut", ["block_15_project"])
def test_a_step_of_adam_leads_where_it_leads_in_keras(
    network: Network, tmp_path: Path, cut: str
) -> None:
    from edgekit.fitting.loop import fit

    adam = pytest.importorskip("tf_keras").optimizers.Adam
    model = network(ALPHA, SIZE_PX)
    tail, names = tail_of(keras_model.arrays_of(model), cut)
    before = tail.arrays()
    feed = Fixed(entering(model, names))
    rate = 1e-2
    fit(
        tail,
        tail.trained(),
        len(names),
        lambda _tensors, labels, logits: tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        ),
        feed,
        feed,
        learning_rates=[rate],
        patience=1,
        batch_size=len(LABELS),
        seed=5,
        first_epoch=0,
        checkpoints=checkpoints(tmp_path),
        epoch_done=lambda _epoch, _record: None,
        set_clock=tail.set_clock,
    )
    gradients = keras_gradients(model, list(before), False)

    def by_keras(optimizer: Untyped) -> Arrays:
        variables = [tf.Variable(value) for value in before.values()]
        optimizer.apply_gradients(zip(gradients.values(), variables, strict=True))
        return {name: v.numpy() for name, v in zip(before, variables, strict=True)}

    def off(expected: Arrays) -> float:
        """Returns the largest difference in parts of a step, small gradients left out."""
        # The first step is the sign of the gradient, which rounding decides where it is near zero.
        clear = {n: np.abs(g) > 1e-2 * np.abs(g).max() for n, g in gradients.items()}
        assert min(mask.mean() for mask in clear.values()) > 0.5
        trained = tail.arrays()
        return max(
            float(np.abs(trained[n] - expected[n])[mask].max()) / rate for n, mask in clear.items()
        )

    assert off(by_keras(adam(rate))) <= 1e-4
    assert all(not np.array_equal(tail.arrays()[name], before[name]) for name in before)
    # Twins: a rate one per cent higher, and another epsilon.
    assert off(by_keras(adam(1.01 * rate))) > 1e-4
    assert off(by_keras(adam(rate, epsilon=1e-3))) > 1e-4


class Fixed:
    """A feed of tensors in memory, the same in every epoch."""

    def __init__(self, tensors: list[npt.NDArray[np.float32]]) -> None:
        self._tensors = tensors
        self.labels = LABELS
        self.shapes = tuple(tensor.shape[1:] for tensor in tensors)
        self.dtype = np.dtype(np.float32)

    def prepare(self, epoch: int) -> None:
        return

    def read(self, epoch: int, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], ...]:
        return tuple(tensor[rows] for tensor in self._tensors)


WIDTH = 256
FEATURES = np.random.default_rng(3).uniform(0.5, 6, (40, 1, 1, WIDTH)).astype(np.float32)


def see_through(dropout: float, seed: int = 5) -> Tail:
    """Returns a head that answers with the features themselves."""
    arrays = {
        f"{LOGITS}/kernel": np.eye(WIDTH, dtype=np.float32)[None, None],
        f"{LOGITS}/bias": np.zeros(WIDTH, np.float32),
    }
    return Tail(NODES[-1:], ("global_average_pool",), arrays, dropout=dropout, seed=seed)


def thinned(tail: Tail, step: int) -> npt.NDArray[np.float32]:
    tail.set_clock(step)
    result: npt.NDArray[np.float32] = tail([FEATURES], training=True).numpy()
    return result


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    answers = thinned(see_through(0.25), 0)
    whole = FEATURES[:, 0, 0]
    dropped = answers == 0
    # Of 10240 features a quarter, 43 more or fewer (one standard deviation): five of those.
    assert abs(dropped.sum() - 2560) < 5 * 43.8
    assert np.array_equal(answers[~dropped], (whole / np.float32(0.75))[~dropped])
    assert len(np.unique(dropped, axis=0)) == 40  # each picture loses others


def test_dropout_follows_from_the_seed_and_the_step_alone() -> None:
    tail = see_through(0.5)
    third = thinned(tail, 3)
    fourth = tail([FEATURES], training=True).numpy()  # the clock has moved on by itself
    assert not np.array_equal(third, fourth)
    assert np.array_equal(fourth, thinned(tail, 4))
    tf.random.set_seed(99)
    tf.random.uniform((7,))
    assert np.array_equal(third, thinned(see_through(0.5), 3))
    assert not np.array_equal(third, thinned(see_through(0.5, seed=6), 3))
    # Traced into a graph it is the same.
    traced = tf.function(lambda features: tail([features], training=True), autograph=False)
    tail.set_clock(3)
    assert np.array_equal(traced(FEATURES).numpy(), third)
    assert np.array_equal(traced(FEATURES).numpy(), fourth)


def test_nothing_is_dropped_when_it_only_answers() -> None:
    tail = see_through(0.5)
    tail.set_clock(3)
    assert np.array_equal(tail([FEATURES], training=False).numpy(), FEATURES[:, 0, 0])
    # And the clock stands still.
    assert np.array_equal(tail([FEATURES], training=True).numpy(), thinned(see_through(0.5), 3))


def test_the_largest_seed_of_a_recipe_can_be_used() -> None:
    answers = thinned(see_through(0.5, seed=2**31 - 1), 0)
    assert 0.4 < (answers == 0).mean() < 0.6
