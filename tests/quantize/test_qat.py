"""Quantization-aware training: the wrapped tail simulates what ships, channel by channel."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import ALPHA, SIZE_PX, Arrays, Trained, Untyped

from edgekit.network.graph import (
    INPUT,
    LOGITS,
    Node,
    boundary,
    fold,
    kernel_codes,
    kernel_limits,
    mobilenet_v2,
    split,
    weighted,
)
from edgekit.network.ranges import Ranges, from_limits, keeping_float, table_of
from edgekit.records import RangeTable, TensorRange

tf = pytest.importorskip("tensorflow")

from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (  # noqa: E402
    QuantizeWrapperV2,
)

from edgekit.network.forward import quantize, round_bias, run  # noqa: E402 - after the check for TensorFlow
from edgekit.quantize import qat  # noqa: E402
from edgekit.quantize.calibration import Rows, calibrate  # noqa: E402

NODES = mobilenet_v2(ALPHA)
WEIGHTED = [node.name for node in weighted(NODES)]
CUTS = [LOGITS, "block_16_expand", "block_15_project", "Conv1"]


@dataclass(frozen=True)
class Tail:
    """A wrapped tail and everything it was made from."""

    nodes: tuple[Node, ...]
    model: Untyped
    entering: list[Untyped]
    weights: Arrays
    ranges: Ranges

    def simulated(
        self, weights: Arrays | None = None, ranges: Ranges | None = None
    ) -> npt.NDArray[np.float32]:
        """Returns what `forward.run`, from which the files are exported, makes of the input."""
        known = dict(
            zip(boundary(NODES[: -len(self.nodes)], self.nodes), self.entering, strict=True)
        )
        weights = weights or self.weights
        table = table_of(self.nodes, weights, ranges or self.ranges, "channel")
        tensors = run(self.nodes, weights, known, table)
        result: npt.NDArray[np.float32] = tensors[LOGITS].numpy().reshape(len(self.entering[0]), -1)
        return result

    def answers(self) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = self.model(self.entering, training=False).numpy()
        return result


@pytest.fixture(scope="module")
def prepared(trained: Trained, pictures: Untyped) -> tuple[Arrays, Ranges]:
    weights = fold(NODES, trained.arrays)
    rows = Rows(np.arange(48), np.arange(0))
    found = calibrate(NODES, weights, pictures[0], rows, lambda _done, _total: None, "min-max")
    ranges = table_of(NODES, weights, found, "channel").activations
    # Biases on the int32 grid that they ship on. What ships rounds them and training does not; over
    # 53 layers that alone moves the logits by several steps and would hide everything else.
    for node in weighted(NODES):
        scales = scales_of(node, weights)
        bias = weights[f"{node.name}/bias"]
        weights[f"{node.name}/bias"] = round_bias(bias, scales, ranges[node.inputs[0]].scale)
    return weights, ranges


def grids(ranges: Ranges) -> RangeTable:
    """Returns the part of a table that training starts from: kernels follow the weights."""
    return RangeTable(activations=dict(ranges), kernels={})


def scales_of(node: Node, weights: Arrays) -> npt.NDArray[np.float32]:
    kernel = weights[f"{node.name}/kernel"]
    return kernel_codes(node, kernel, kernel_limits(node, kernel, "channel"))[1]


def entering_of(
    prefix: tuple[Node, ...], weights: Arrays, ranges: Ranges, pictures: Untyped
) -> dict[str, Untyped]:
    """Returns all tensors of a frozen prefix in int8 for the first 16 pictures."""
    table = table_of(prefix, weights, ranges, "channel")
    images = quantize(pictures[0].normalize(pictures[0].images[:16]), ranges[INPUT])
    return run(prefix, weights, {INPUT: images}, table)


@pytest.fixture(params=CUTS, scope="module")
def tail(
    request: pytest.FixtureRequest,
    prepared: tuple[Arrays, Ranges],
    pictures: Untyped,
) -> Tail:
    weights, ranges = prepared
    later = frozenset(WEIGHTED[WEIGHTED.index(request.param) :])
    prefix, nodes = split(NODES, later)
    names = boundary(prefix, nodes)
    tensors = entering_of(prefix, weights, ranges, pictures)
    entering = [tensors[name] for name in names]
    shapes = [tuple(tensor.shape[1:]) for tensor in entering]
    model = qat.wrap(nodes, names, shapes, weights, grids(ranges), "channel")
    return Tail(nodes, model, entering, weights, ranges)


def test_before_training_it_answers_as_what_ships(tail: Tail) -> None:
    step = tail.ranges[LOGITS].scale
    wrapped, shipped = tail.answers(), tail.simulated()
    # float32 may put a value at the border of two codes on either side: nearly all answers are the
    # same bits, and the others one step off, not two. Before 52 more layers one step may become
    # several, and the first layers have so many values that half of the pictures have one.
    whole = len(tail.nodes) == len(NODES)
    assert same_answers(wrapped, shipped, step) >= (0.4 if whole else 0.9)
    assert np.abs(wrapped - shipped).max() <= (8 if whole else 1.001) * step
    assert np.abs(shipped).max() > 10 * step
    # Twins: one range a tenth wider, or one kernel of the tail scaled.
    last = tail.ranges[LOGITS]
    wider = {**tail.ranges, LOGITS: from_limits(1.1 * last.minimum, 1.1 * last.maximum, "trained")}
    clipped = {
        **tail.ranges,
        LOGITS: from_limits(0.9 * last.minimum, 0.9 * last.maximum, "trained"),
    }
    assert same_answers(wrapped, tail.simulated(ranges=wider), step) < 0.2
    assert same_answers(wrapped, tail.simulated(ranges=clipped), step) < 0.2
    first = next(node.name for node in tail.nodes if node.op in ("conv", "depthwise"))
    scaled = {**tail.weights, f"{first}/kernel": 1.5 * tail.weights[f"{first}/kernel"]}
    assert same_answers(wrapped, tail.simulated(weights=scaled), step) < 0.2


def same_answers(
    one: npt.NDArray[np.float32], other: npt.NDArray[np.float32], step: float
) -> float:
    """Returns the fraction of logits with the same code."""
    return float((np.abs(one - other) < 0.01 * step).mean())


def test_exactly_the_layers_of_the_tail_are_wrapped_by_tfmot(tail: Tail) -> None:
    wrapped = [layer for layer in tail.model.layers if isinstance(layer, QuantizeWrapperV2)]
    inner = {layer.layer.name.removesuffix("_output") for layer in wrapped}
    assert inner == {node.name for node in tail.nodes}
    # A convolution with a ReLU6 is two wrapped layers: kernel quantized, then output quantized.
    assert len(wrapped) == len(tail.nodes) + sum(node.relu6 for node in tail.nodes)
    bare = [type(x).__name__ for x in tail.model.layers if not isinstance(x, QuantizeWrapperV2)]
    assert sorted(bare) == ["InputLayer"] * len(tail.entering) + ["Reshape"]


def test_kernels_biases_and_limits_train_and_nothing_else(tail: Tail) -> None:
    carrying = weighted(tail.nodes)
    limits = 2 * len(tail.nodes)
    assert len(tail.model.trainable_variables) == 2 * len(carrying) + limits
    trainable = sum(int(np.prod(v.shape)) for v in tail.model.trainable_variables)
    names = [f"{node.name}/{part}" for node in carrying for part in ("kernel", "bias")]
    assert trainable == sum(tail.weights[name].size for name in names) + limits


def test_unwrapping_returns_what_went_in(tail: Tail) -> None:
    weights, ranges = qat.unwrap(tail.model, tail.nodes, tail.ranges)
    assert set(weights) == {
        f"{n.name}/{p}" for n in weighted(tail.nodes) for p in ("kernel", "bias")
    }
    assert all(np.array_equal(weights[name], tail.weights[name]) for name in weights)
    assert list(ranges) == [node.name for node in tail.nodes]
    for name, span in ranges.items():
        assert (span.source, span.method) == ("trained", "min-max")
        assert span.zero_point == tail.ranges[name].zero_point
        # The limits were float32 variables in between.
        assert span.scale == pytest.approx(tail.ranges[name].scale, rel=2.0**-21)


def last_layers(
    prepared: tuple[Arrays, Ranges], pictures: Untyped
) -> tuple[tuple[Node, ...], Untyped, Untyped]:
    """Returns the nodes from Conv_1 on, what enters them, and the wrapped model."""
    weights, ranges = prepared
    prefix, nodes = split(NODES, frozenset(WEIGHTED[WEIGHTED.index("Conv_1") :]))
    (name,) = boundary(prefix, nodes)
    entering = entering_of(prefix, weights, ranges, pictures)[name]
    shapes = [tuple(entering.shape[1:])]
    return nodes, entering, qat.wrap(nodes, [name], shapes, weights, grids(ranges), "channel")


def train_three_steps(
    model: Untyped, entering: Untyped, rate: float, loss_of: Callable[[Untyped], Untyped]
) -> None:
    """Trains everything that is trainable by Adam on the mean loss of one batch."""
    import tf_keras

    optimizer = tf_keras.optimizers.Adam(rate)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(loss_of(model([entering], training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def test_unwrapping_returns_what_was_trained(
    prepared: tuple[Arrays, Ranges], pictures: Untyped
) -> None:
    weights, ranges = prepared
    nodes, entering, model = last_layers(prepared, pictures)
    labels = pictures[0].labels[:16]
    train_three_steps(
        model,
        entering,
        1e-2,
        lambda logits: tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits),
    )
    tuned, learned = qat.unwrap(model, nodes, ranges)
    assert all(not np.array_equal(tuned[key], weights[key]) for key in tuned)
    tail = Tail(nodes, model, [entering], weights, ranges)
    step = learned[LOGITS].scale
    trained_answers = tail.answers()
    shipped = tail.simulated({**weights, **tuned}, {**ranges, **learned})
    # The shipped biases are rounded to int32 steps and the trained ones are not, so a value at the
    # border of two codes may fall on either side: one step. The twin is the untrained network.
    assert np.abs(trained_answers - shipped).max() <= 1.001 * step
    assert np.abs(trained_answers - tail.simulated()).max() > 1.001 * step


def test_ranges_learn_from_what_they_clip(
    prepared: tuple[Arrays, Ranges], pictures: Untyped
) -> None:
    weights, ranges = prepared
    prefix, nodes = split(NODES, frozenset({LOGITS}))
    entering = entering_of(prefix, weights, ranges, pictures)["global_average_pool"]
    shapes = [tuple(entering.shape[1:])]

    def learned(start: TensorRange, wanted: float) -> TensorRange:
        """Returns the range of the logits behind a few steps towards larger or smaller logits."""
        table = grids({**ranges, LOGITS: start})
        model = qat.wrap(nodes, ["global_average_pool"], shapes, weights, table, "channel")
        assert qat.unwrap(model, nodes, ranges)[1][LOGITS].maximum == pytest.approx(
            start.maximum, rel=1e-6
        )
        train_three_steps(model, entering, 1e-3, lambda logits: tf.square(logits - wanted))
        return qat.unwrap(model, nodes, ranges)[1][LOGITS]

    narrow = from_limits(-0.1, 0.1, "calibrated")
    # Three steps of Adam move a logarithm by 10 * 3 * 1e-3.
    wider = learned(narrow, 5.0)
    assert wider.maximum == pytest.approx(narrow.maximum * np.exp(0.03), rel=0.02)
    assert learned(narrow, 0.0).maximum < narrow.maximum
    # Twin: a range that clips nothing gets no gradient and stays.
    seen = run(nodes, weights, {"global_average_pool": entering})[LOGITS].numpy()
    largest = float(np.abs(seen).max())
    wide = from_limits(-2 * largest, 2 * largest, "calibrated")
    assert learned(wide, 0.0).maximum == pytest.approx(wide.maximum, rel=1e-6)


def test_the_range_of_a_relu6_never_exceeds_six(
    prepared: tuple[Arrays, Ranges], pictures: Untyped
) -> None:
    ranges = prepared[1]
    nodes, entering, model = last_layers(prepared, pictures)
    (logarithm,) = (
        variable for variable in model.get_layer("Conv_1_output").trainable_weights
        if variable.name.endswith("max_log:0")
    )  # fmt: skip
    logarithm.assign(1.0)  # exp(10) times the first limit
    assert qat.unwrap(model, nodes, ranges)[1]["Conv_1"].maximum == 6.0
    logarithm.assign(-0.1)
    smaller = ranges["Conv_1"].maximum * np.exp(-1)
    assert qat.unwrap(model, nodes, ranges)[1]["Conv_1"].maximum == pytest.approx(smaller, rel=1e-5)
    assert np.isfinite(model([entering], training=True).numpy()).all()


KEPT = ("block_16_depthwise", "block_16_project", "Conv_1")


def test_layers_kept_in_float_are_not_wrapped_and_answer_as_what_ships(
    prepared: tuple[Arrays, Ranges], pictures: Untyped
) -> None:
    weights, ranges = prepared
    table = keeping_float(NODES, table_of(NODES, weights, ranges, "channel"), KEPT)
    prefix, nodes = split(NODES, frozenset(WEIGHTED[WEIGHTED.index("block_16_expand") :]))
    (name,) = boundary(prefix, nodes)
    entering = entering_of(prefix, weights, ranges, pictures)[name]
    model = qat.wrap(nodes, [name], [tuple(entering.shape[1:])], weights, table, "channel")
    wrapped = {x.layer.name for x in model.layers if isinstance(x, QuantizeWrapperV2)}
    # Conv_1 is float, but the pooling behind it reads codes, so its output is rounded.
    assert wrapped == {
        "block_16_expand", "block_16_expand_output", "Conv_1_output",
        "global_average_pool_output", f"{LOGITS}_output",
    }  # fmt: skip
    step = ranges[LOGITS].scale
    answers = model([entering], training=False).numpy()
    shipped = run(nodes, weights, {name: entering}, table)[LOGITS].numpy().reshape(16, -1)
    assert same_answers(answers, shipped, step) >= 0.9
    # Twin: the network without layers in float is another.
    all_int8 = run(nodes, weights, {name: entering}, table_of(NODES, weights, ranges, "channel"))
    assert same_answers(answers, all_int8[LOGITS].numpy().reshape(16, -1), step) < 0.9
    tuned, learned = qat.unwrap(model, nodes, table.activations)
    assert set(tuned) == {f"{n.name}/{p}" for n in weighted(nodes) for p in ("kernel", "bias")}
    assert list(learned) == ["block_16_expand", "Conv_1", "global_average_pool", LOGITS]


GAINS = (0.01, 0.1, 1.0)


def depthwise_tail() -> tuple[tuple[Node, ...], Arrays, Ranges]:
    """Returns a network of one depthwise layer whose channels differ a hundredfold."""
    nodes = (
        Node("dw", "depthwise", (INPUT,)),
        Node("pool", "pool", ("dw",)),
        Node(LOGITS, "conv", ("pool",)),
    )
    random = np.random.default_rng(5)
    kernel = random.uniform(-1, 1, (3, 3, 3, 1)) * np.array(GAINS)[:, None]
    weights = {
        "dw/kernel": kernel.astype(np.float32),
        "dw/bias": np.zeros(3, np.float32),
        f"{LOGITS}/kernel": np.eye(3, dtype=np.float32)[None, None],
        f"{LOGITS}/bias": np.zeros(3, np.float32),
    }
    ranges = {name: from_limits(-9, 9, "calibrated") for name in (INPUT, "dw", "pool", LOGITS)}
    return nodes, weights, ranges


def test_every_channel_of_a_depthwise_kernel_uses_all_codes() -> None:
    nodes, weights, ranges = depthwise_tail()
    model = qat.wrap(nodes, [INPUT], [(SIZE_PX, SIZE_PX, 3)], weights, grids(ranges), "channel")
    model([tf.zeros((1, SIZE_PX, SIZE_PX, 3))], training=True)
    # After an eager call the wrapped layer holds the kernel it just used: the rounded one.
    used = np.array(model.get_layer("dw_output").layer.depthwise_kernel)
    limits = kernel_limits(nodes[0], weights["dw/kernel"], "channel")
    codes, scales = kernel_codes(nodes[0], weights["dw/kernel"], limits)
    levels = used[..., 0] / scales
    # float32 rounds code * scale and the quotient: 127 * 2**-22, far below half a code.
    assert np.abs(levels - codes[..., 0]).max() < 1e-4
    assert np.abs(levels).max((0, 1)) == pytest.approx([127, 127, 127], abs=1e-4)
    # Twin: with tfmot's one range for all channels the first has two or three levels left.
    one = np.abs(weights["dw/kernel"]).max() / 127
    assert np.abs(np.round(weights["dw/kernel"][..., 0] / one)).max((0, 1))[0] < 3


def test_one_grid_for_a_whole_kernel_follows_its_largest_channel() -> None:
    nodes, weights, ranges = depthwise_tail()
    model = qat.wrap(nodes, [INPUT], [(SIZE_PX, SIZE_PX, 3)], weights, grids(ranges), "tensor")
    model([tf.zeros((1, SIZE_PX, SIZE_PX, 3))], training=True)
    used = np.array(model.get_layer("dw_output").layer.depthwise_kernel)
    limits = kernel_limits(nodes[0], weights["dw/kernel"], "tensor")
    codes, (scale,) = kernel_codes(nodes[0], weights["dw/kernel"], limits)
    assert np.abs(used / scale - codes).max() < 1e-4
    # Channels whose weights are a hundredth and a tenth of the largest get as few codes.
    assert np.abs(codes).max((0, 1, 3)).tolist() == [1, 13, 127]


def test_a_channel_of_zeros_stays_zero() -> None:
    nodes, weights, ranges = depthwise_tail()
    silent = weights["dw/kernel"].copy()
    silent[:, :, 1] = 0
    model = qat.wrap(
        nodes,
        [INPUT],
        [(SIZE_PX, SIZE_PX, 3)],
        {**weights, "dw/kernel": silent},
        grids(ranges),
        "channel",
    )
    answers = model([tf.ones((1, SIZE_PX, SIZE_PX, 3))], training=True).numpy()
    assert np.isfinite(answers).all()
    assert answers[0, 1] == 0
