"""The part that trains: Keras's answers, Keras's gradients, and dropout that repeats itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import ALPHA, SIZE_PX, Arrays, Network, Untyped, checkpoints, coloured

from edgekit.network.graph import (
    LOGITS,
    Node,
    boundary,
    fold,
    mobilenet_v2,
    normalization,
    split,
    weighted,
)

tf = pytest.importorskip("tensorflow")

from edgekit.fitting import cores  # noqa: E402 - after the check for TensorFlow
from edgekit.fitting.loop import Schedule, Trainer, fit, learning_rate  # noqa: E402
from edgekit.network import keras_model  # noqa: E402
from edgekit.network.forward import compute  # noqa: E402
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
    assert np.abs(tail(tensors).numpy() - expected).max() <= bound
    # Without dropout training asks for the same function.
    still, _ = tail_of(arrays, cut)
    noise = still.noise(tf.constant(0), len(tensors[0]))
    assert np.abs(still(tensors, noise).numpy() - expected).max() <= bound
    # Twins: the answers of the next picture, and one channel of one BatchNorm.
    assert np.abs(np.roll(tail(tensors), 1, axis=0) - expected).max() > bound
    name = {LOGITS: f"{LOGITS}/bias", "Conv1": "bn_Conv1/moving_mean"}.get(
        cut, f"{cut}_BN/moving_mean"
    )
    nudged = arrays[name].copy()
    nudged[0] += 0.5
    other, _ = tail_of({**arrays, name: nudged}, cut)
    assert np.abs(other(tensors).numpy() - expected).max() > bound


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
        value = loss_of(tail(tensors))
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
    assert len(found) == 2 * (len(WEIGHTED) - WEIGHTED.index(cut))  # kernels and biases
    # Ten times what float32 leaves after up to 53 layers here; a ReLU6 within rounding of its edge
    # would open or close and show.
    assert max(departure(found, keras_gradients(model, list(found), False)).values()) <= 2e-5
    # Twin: what a BatchNorm that still learns gives. The head has none.
    if cut != LOGITS:
        off = departure(found, keras_gradients(model, list(found), True))
        assert min(off[name] for name in off if not name.startswith(LOGITS)) > 1e-2


def names_of(cut: str) -> list[str]:
    """Returns what Keras calls the variables that train: all kernels, then beta or the bias."""
    nodes = weighted(NODES)[WEIGHTED.index(cut) :]
    kernels = [f"{n.name}/{'depthwise_' * (n.op == 'depthwise')}kernel" for n in nodes]
    shifts = [f"{n.batch_norm}/beta" if n.batch_norm else f"{n.name}/bias" for n in nodes]
    return [*kernels, *shifts]


@pytest.mark.parametrize("cut", CUTS)
def test_what_did_not_train_comes_back_bit_for_bit(network: Network, cut: str) -> None:
    arrays = keras_model.arrays_of(network(ALPHA, SIZE_PX))
    tail, _ = tail_of(arrays, cut)
    kept = tail.arrays()
    assert list(kept) == names_of(cut)
    assert tail.names() == [*WEIGHTED[WEIGHTED.index(cut) :]] * 2
    assert [tuple(v.shape) for v in tail.trained()] == [value.shape for value in kept.values()]
    assert all(kept[name].tobytes() == arrays[name].tobytes() for name in kept)
    # Twin: beta computed back from the folded bias has lost bits.
    lost = 0
    for node in weighted(NODES)[WEIGHTED.index(cut) :]:
        if node.batch_norm is not None:
            _, bias = normalization(node, arrays)
            nothing = np.zeros_like(arrays[f"{node.batch_norm}/beta"])
            _, behind = normalization(node, {**arrays, f"{node.batch_norm}/beta": nothing})
            back = (bias.astype(np.float32) - behind).astype(np.float32)
            lost += int((back != arrays[f"{node.batch_norm}/beta"]).sum())
    assert (lost > 0) == (cut != LOGITS)


@pytest.mark.parametrize("cut", CUTS)
def test_what_trained_goes_back_into_the_keras_model(network: Network, cut: str) -> None:
    model = network(ALPHA, SIZE_PX)
    arrays = keras_model.arrays_of(model)
    tail, names = tail_of(arrays, cut)
    tensors, kept = entering(model, names), tail.arrays()
    for variable in tail.trained():
        variable.assign(variable * 0.9)
    assert all(np.array_equal(kept[name], arrays[name]) for name in kept)  # they were copies
    trained = tail.arrays()
    answers = tail(tensors).numpy()

    def off(found: Arrays) -> float:
        """Returns how far Keras with these arrays answers otherwise, in parts of its answers."""
        keras_model.assign(model, {**arrays, **found})
        expected = model(VALUES, training=False).numpy()
        return float(np.abs(answers - expected).max() / np.abs(expected).max())

    assert off(trained) <= FLOAT_ROUNDING
    # Twins: any one of the first layer's two variables as it was.
    count = len(trained) // 2
    for name in (names_of(cut)[0], names_of(cut)[count]):
        if name != f"{LOGITS}/bias":  # zeros stay zeros
            assert off({**trained, name: arrays[name]}) > FLOAT_ROUNDING
    # And folding sees what trained.
    for name in (f"{cut}/kernel", f"{cut}/bias"):
        if name != f"{LOGITS}/bias":
            folded = fold(NODES, {**arrays, **trained})[name]
            assert not np.array_equal(folded, fold(NODES, arrays)[name])


def trained_by_keras(
    model: Untyped, names: list[str], schedule: Schedule, steps: int, frozen: bool = True
) -> Arrays:
    """Returns variables of the model after steps of Adam that leave all others alone.

    BatchNorms are in inference mode, unless they are not to be frozen.
    """
    adam = pytest.importorskip("tf_keras").optimizers.Adam()
    variables = {variable.name.split(":")[0]: variable for variable in model.variables}
    chosen = [variables[name] for name in names]
    for step in range(steps):
        with tf.GradientTape() as tape:
            value = loss_of(model(VALUES, training=not frozen))
        adam.learning_rate = float(
            learning_rate(tf.constant(step, tf.float32), schedule.peak, *schedule.lengths(1))
        )
        adam.apply_gradients(zip(tape.gradient(value, chosen), chosen, strict=True))
    return {name: variable.numpy() for name, variable in zip(names, chosen, strict=True)}


@pytest.mark.parametrize("cut", ["block_15_project"])
def test_it_trains_as_keras_with_gamma_and_statistics_frozen(
    network: Network, tmp_path: Path, cut: str
) -> None:
    model, names = network(ALPHA, SIZE_PX), names_of(cut)
    before = keras_model.arrays_of(model)
    tail, inputs = tail_of(before, cut)
    feed = Fixed(entering(model, inputs))
    schedule, steps = Schedule(1e-4, 5, 1), 5  # one step an epoch
    losses: list[float] = []
    trainer = Trainer(
        tail,
        tail.trained(),
        len(inputs),
        lambda _tensors, labels, logits: tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, logits
        ),
        feed,
        batch_size=len(LABELS),
    )
    fit(
        trainer,
        feed,
        feed,
        schedule=schedule,
        patience=steps,
        seed=5,
        checkpoints=checkpoints(tmp_path),
        epoch_done=lambda _epoch, record: losses.append(record.validation_loss),
    )
    assert np.argmin(losses) == steps - 1  # so the last step is what is left
    found = tail.arrays()

    def off(expected: Arrays, kind: str) -> float:
        """Returns how far kernels or biases are apart, in parts of the way they went."""
        which = [name for name in names if name.endswith("kernel") == (kind == "kernel")]
        apart, way = (
            np.sqrt(sum(float(np.square(a[name] - b[name]).sum()) for name in which))
            for a, b in ((found, expected), (expected, before))
        )
        return float(apart / way)

    def by_keras(**change: Untyped) -> Arrays:
        keras_model.assign(model, before)
        given = {"schedule": schedule, "steps": steps, **change}
        return trained_by_keras(model, names, **given)

    expected = by_keras()
    # In Keras gamma and the statistics are as they were.
    after = keras_model.arrays_of(model)
    same = {name for name in after if np.array_equal(after[name], before[name])}
    assert same == set(after) - set(names)
    assert all(not np.array_equal(found[name], before[name]) for name in names)
    # Twins: one step less, a peak a twentieth higher, and BatchNorms that see the batch.
    others = (
        by_keras(steps=steps - 1),
        by_keras(schedule=replace(schedule, peak=1.05 * schedule.peak)),
        by_keras(frozen=False),
    )
    for kind in ("kernel", "bias"):
        # Rounding decides the sign of a gradient near zero, which is the size of Adam's first step.
        assert off(expected, kind) <= 2e-3
        assert min(off(other, kind) for other in others) > 1e-2


@pytest.mark.parametrize("name", ["Conv_1", "block_13_expand", "block_2_project", LOGITS])
def test_a_1x1_convolution_is_a_matrix_product(name: str) -> None:
    node = next(node for node in NODES if node.name == name)
    random = np.random.default_rng(7)
    side = 1 if name == LOGITS else 5
    image = random.normal(size=(4, side, side + side // 2, 40)).astype(np.float32)
    kernel = random.normal(size=(1, 1, 40, 40)).astype(np.float32)
    bias = random.normal(size=40).astype(np.float32)
    expected = compute(node, [image], kernel, bias).numpy()
    # A sum of 40 products in another order: sqrt(40) * 2**-24 of the largest, ten times over.
    bound = 4e-6 * float(np.abs(expected).max())

    def off(kernel: npt.NDArray[np.float32]) -> float:
        found = compute(node, [tf.constant(image)], kernel, bias, as_product=True).numpy()
        assert found.shape == expected.shape
        return float(np.abs(found - expected).max())

    assert off(kernel) <= bound
    # Twins: the kernel the other way round, and one weight a hundredth larger.
    assert off(kernel.swapaxes(2, 3)) > bound
    bent = kernel.copy()
    bent.flat[0] *= 1.01
    assert off(bent) > bound


def test_what_is_no_1x1_convolution_is_not_computed_as_a_product() -> None:
    random = np.random.default_rng(7)
    image = random.normal(size=(2, 7, 7, 8)).astype(np.float32)
    bias = random.normal(size=8).astype(np.float32)
    for node, shape in (
        (Node("strided", "conv", ("x",), stride=2), (1, 1, 8, 8)),
        (Node("wide", "conv", ("x",), relu6=True), (3, 3, 8, 8)),
        (Node("depthwise", "depthwise", ("x",), stride=2), (3, 3, 8, 1)),
    ):
        kernel = random.normal(size=shape).astype(np.float32)
        usual = compute(node, [image], kernel, bias).numpy()
        assert np.array_equal(compute(node, [image], kernel, bias, as_product=True), usual)


class Fixed:
    """A feed of tensors in memory, the same in every epoch."""

    def __init__(self, tensors: list[npt.NDArray[np.float32]]) -> None:
        self._tensors = tensors
        self.labels = LABELS
        self.shapes = tuple(tensor.shape[1:] for tensor in tensors)
        self.dtype = np.dtype(np.float32)
        self.source_bytes = IMAGES.nbytes

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
    noise = tail.noise(tf.constant(step), len(FEATURES))
    result: npt.NDArray[np.float32] = tail([FEATURES], noise).numpy()
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
    assert not np.array_equal(third, thinned(tail, 4))
    tf.random.set_seed(99)
    tf.random.uniform((7,))
    assert np.array_equal(third, thinned(see_through(0.5), 3))
    assert not np.array_equal(third, thinned(see_through(0.5, seed=6), 3))
    # Traced into a graph it is the same, and so are the rows of a part.
    traced = tf.function(
        lambda step: tail([FEATURES[8:]], tail.noise(step, 40)[8:]), autograph=False
    )
    assert np.array_equal(traced(tf.constant(3)).numpy(), third[8:])


def test_nothing_is_dropped_when_it_only_answers() -> None:
    assert np.array_equal(see_through(0.5)([FEATURES]).numpy(), FEATURES[:, 0, 0])


def test_each_step_drops_what_follows_from_its_number_on_any_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(place: str, count: int, number: Untyped = lambda step: step) -> Untyped:
        """Returns the kernel behind two epochs of two steps, the second with fewer rows."""
        monkeypatch.setattr(cores, "COUNT", count)
        tail = see_through(0.5)
        feed = Fixed([FEATURES[: len(LABELS)]])
        trainer = Trainer(
            tail,
            tail.trained(),
            1,
            lambda _tensors, labels, logits: tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, logits
            ),
            feed,
            batch_size=8,
            noise=lambda step, rows: tail.noise(number(step), rows),
        )
        fit(
            trainer,
            feed,
            feed,
            schedule=Schedule(1e-3, 2, 1),
            patience=2,
            seed=5,
            checkpoints=checkpoints(tmp_path / place),
        )
        return tail.arrays()[f"{LOGITS}/kernel"]

    one = kernel("one", 1)
    assert np.abs(kernel("two", 2) - one).max() < 1e-6
    # Twins: the same in every step, and the same in both epochs.
    assert np.abs(kernel("every", 1, tf.zeros_like) - one).max() > 1e-5
    assert np.abs(kernel("both", 1, lambda step: step % 2) - one).max() > 1e-5


def test_the_largest_seed_of_a_recipe_can_be_used() -> None:
    answers = thinned(see_through(0.5, seed=2**31 - 1), 0)
    assert 0.4 < (answers == 0).mean() < 0.6
