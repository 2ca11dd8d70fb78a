"""The quantize stage: post-training and quantization-aware int8 of a model, and a choice."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.fitting.augment import changes_of
from edgekit.fitting.checkpoints import Checkpoints
from edgekit.fitting.loop import (
    AVERAGING,
    EpochDone,
    Progress,
    Schedule,
    Trainer,
    enough_epochs,
    fit,
    unshifted,
)
from edgekit.fitting.losses import validation_losses
from edgekit.fitting.pictures import Pictures, compiled
from edgekit.network import keras_model, ranges as range_table
from edgekit.network.forward import logits_function, quantize, run
from edgekit.network.graph import (
    INPUT,
    LOGITS,
    Arrays,
    Node,
    boundary,
    check_names,
    fold,
    mobilenet_v2,
    split,
)
from edgekit.network.ranges import keeping_float, table_of
from edgekit.prefix.activations import Shelf
from edgekit.prefix.frozen import CutFeed, activations_of, plan_storage
from edgekit.prefix.inference import BATCH_ROWS, Inference, in_batches
from edgekit.prefix.level import Level, level_digest
from edgekit.quantize import qat
from edgekit.quantize.calibration import calibrate, representative_rows, warnings_about
from edgekit.quantize.sensitivity import Trials, fewest_to_keep, sensitivity
from edgekit.recipe import QuantizeSpec, TrainSpec
from edgekit.records import (
    Candidate,
    CandidateRecord,
    EpochRecord,
    FloatModelRecord,
    LayerQuantization,
    QuantizedModelRecord,
    RangeTable,
    TensorRange,
)
from edgekit.store import canonical

Logits = npt.NDArray[np.float32]
_TEACHER = "teacher"
# Steps to the peak of the learning rate.
_WARMUP_STEPS = 20


@dataclass(frozen=True)
class _Made:
    """One candidate in memory: what it ships and how it answers on the validation split.

    Args:
        name: How it was quantized.
        weights: Folded weights.
        full: Its grids if every node were int8.
        kept: Why nodes compute in float32, by their names.
        logits: Its answers.
        loss: Their mean loss, see `validation_losses`.
        epochs: Of quantization-aware training.
    """

    name: Candidate
    weights: Arrays
    full: RangeTable
    kept: Mapping[str, str]
    logits: Logits
    loss: float
    epochs: tuple[EpochRecord, ...]


def quantize_model(
    float_model: FloatModelRecord,
    arrays: Arrays,
    train: Pictures,
    validation: Pictures,
    spec: QuantizeSpec,
    training: TrainSpec,
    folder: Path,
    *,
    seed: int,
    checkpoints: Checkpoints,
    shelf: Shelf,
    say: Callable[[str], None],
    progress: Progress,
    epoch_done: EpochDone | None = None,
) -> QuantizedModelRecord:
    """Makes the int8 candidates and picks the one that ships.

    Writes into `folder`: `float.weights.npz` (BatchNorm folded), and for each candidate
    `<name>.weights.npz` and `<name>.ranges.json`.

    Args:
        float_model: What training made.
        arrays: Its float arrays, `layer/variable`.
        train: Pictures for calibration and quantization-aware training.
        validation: Pictures that decide which candidate ships.
        spec: What the recipe asks for.
        training: How the float model was trained: quantization-aware training sees the same views
            in batches of the same size, and takes `min_steps` in proportion to its epochs.
        folder: Where the files go.
        seed: Seed of the recipe.
        checkpoints: Keeps the finished epochs of quantization-aware training.
        shelf: Where the activations of the frozen part are kept.
        say: Called with one line per candidate.
        progress: Called with (what, done, in all) while calibrating, training and measuring layers.
        epoch_done: Called with (epoch, record) after each epoch of quantization-aware training,
            when it is kept.

    Raises:
        SpecError: If `spec.keep_float` names a node that the network does not have.
        TrainingError: If the loss stops being finite.
    """
    keras_model.make_deterministic(seed)
    nodes = mobilenet_v2(float_model.alpha)
    check_names(nodes, spec.keep_float, "quantize.keep_float")
    weights = fold(nodes, arrays)
    rows = representative_rows(train.labels, spec.calibration_images, seed)
    warnings = warnings_about(train, rows)
    for warning in warnings:
        say(f"warning: {warning}")
    method = None if spec.calibration == "auto" else spec.calibration
    found = calibrate(
        nodes, weights, train, rows, lambda *done: progress("calibrating", *done), method
    )
    full = table_of(nodes, weights, found, spec.granularity)
    float_logits = compiled(logits_function(nodes, weights), validation)()
    unfrozen = frozenset(float_model.unfrozen_layers)
    of_classes = float_model.class_weights

    def candidates(kept: Mapping[str, str]) -> list[_Made]:
        made = [_answered("ptq", nodes, weights, full, kept, validation, of_classes, ())]
        if spec.qat_epochs:
            tuned, learned, epochs = _train(
                nodes, unfrozen, weights, full, tuple(kept), train, validation, of_classes, spec,
                training, seed,
                checkpoints, shelf, progress, epoch_done,
            )  # fmt: skip
            made.append(
                _answered("qat", nodes, tuned, learned, kept, validation, of_classes, epochs)
            )
        return made

    kept = dict.fromkeys(spec.keep_float, "named in quantize.keep_float")
    made = candidates(kept)
    chosen = Pictures(train.images[rows.held_out], train.labels[rows.held_out], train.preprocess)
    # Of the calibrated network: training behind int8 layers answers worse behind float32 ones.
    trials = Trials(nodes, weights, full, chosen)
    costs = sensitivity(
        trials, spec.keep_float, lambda *done: progress("measuring each layer in int8", *done)
    )
    most = spec.max_drop

    def dropped(logits: Logits) -> float:
        """Returns the top-1 accuracy lost, in percentage points."""
        right = [(it.argmax(1) == validation.labels).mean() for it in (float_logits, logits)]
        return float(100 * (right[0] - right[1]))

    def best(made: Sequence[_Made]) -> _Made:
        losses = {it.name: it.loss for it in made}
        name = choice(losses, {it.name: dropped(it.logits) for it in made}, most)
        return next(item for item in made if item.name == name)

    kept_because = ""
    if most is not None:
        limit = most
        more: tuple[str, ...] = ()
        before = dropped(best(made).logits)
        if before > limit:
            more = _more_to_keep(
                trials, Trials(nodes, weights, full, validation), tuple(kept),
                lambda logits: dropped(logits) <= limit, progress,
            )  # fmt: skip
            why = f"for quantize.max_drop = {limit:g}"
            made = candidates({**kept, **dict.fromkeys(more, why)})
        after = dropped(best(made).logits)
        kept_because = _kept_because(limit, before, after, more, len(nodes))
        if after > limit:
            warnings = (*warnings, kept_because)
    shipped = best(made)
    reason = _reason(made, shipped, validation, most)
    np.savez(folder / "float.weights.npz", allow_pickle=False, **weights)
    records = []
    for item in made:
        np.savez(folder / f"{item.name}.weights.npz", allow_pickle=False, **item.weights)
        table = keeping_float(nodes, item.full, item.kept)
        range_table.write(folder / f"{item.name}.ranges.json", table)
        records.append(
            _record(item, nodes, float_model, float_logits, validation, len(rows.calibration))
        )
        say(
            f"{item.name}: validation top-1 {records[-1].validation_accuracy:.2%}, "
            f"loss {records[-1].validation_loss:.4f}, "
            f"agrees with float on {records[-1].agreement_with_float:.1%}"
        )
    return QuantizedModelRecord(
        candidates=tuple(records),
        shipped=shipped.name,
        reason=reason,
        warnings=warnings,
        sensitivity=costs,
        kept_because=kept_because,
    )


def _answered(
    name: Candidate,
    nodes: tuple[Node, ...],
    weights: Arrays,
    full: RangeTable,
    kept: Mapping[str, str],
    validation: Pictures,
    of_classes: tuple[float, ...] | None,
    epochs: tuple[EpochRecord, ...],
) -> _Made:
    table = keeping_float(nodes, full, kept)
    answer = _in_int8(nodes, weights, (LOGITS,), table, validation)
    stored = validation.answered(
        lambda pixels: answer([validation.normalize(pixels.astype(np.float32))])[0]
    )
    on_grid = _on_grid(stored.astype(np.float32), table.activations.get(LOGITS))
    logits = on_grid.numpy().reshape(len(stored), -1)
    loss = float(validation_losses(logits, validation.labels, of_classes).mean())
    return _Made(name, weights, full, kept, logits, loss, epochs)


def choice(
    losses: Mapping[Candidate, float], drops: Mapping[Candidate, float], max_drop: float | None
) -> Candidate:
    """Returns which candidate ships: that of the lowest loss, far less noisy than the accuracy.

    Args:
        losses: Loss of each candidate on the validation split, see `validation_losses`.
        drops: Top-1 accuracy that it loses there, in percentage points.
        max_drop: Most that it may lose; only candidates that keep to it are looked at, unless none
            does. None for any.
    """
    met = [name for name in losses if max_drop is None or drops[name] <= max_drop]
    return min(met or losses, key=lambda name: losses[name])


def _more_to_keep(
    trials: Trials,
    answers: Trials,
    kept: tuple[str, ...],
    good_enough: Callable[[Logits], bool],
    progress: Progress,
) -> tuple[str, ...]:
    """Returns the nodes that, in float32 as well, make calibrated int8 good enough.

    Training goes on from there, behind them in float32: a tail that was trained behind int8 layers
    does not carry over.

    Args:
        trials: The calibrated network on the pictures to choose by.
        answers: The same on the validation split.
        kept: Nodes in float32 anyway.
        good_enough: Whether the answers on the validation split will do.
        progress: Called with (what, done, in all).
    """
    found = fewest_to_keep(
        trials,
        kept,
        # Without more of them its file is not: the simulation is not asked, which may think so.
        lambda names: names != kept and good_enough(answers.keeping(names)),
        lambda *done: progress("looking for layers to keep in float32", *done),
    )
    return found[len(kept) :]


def _kept_because(
    max_drop: float, before: float, after: float, more: tuple[str, ...], count: int
) -> str:
    if not more:
        said = f"no layer needs to stay float32 for it: int8 loses {after:.2f} points"
    else:
        said = (
            f"{len(more)} of {count} layers stay float32 for it ({', '.join(more)}): int8 loses "
            f"{after:.2f} instead of {before:.2f} points"
        )
    missed = ", which is still more" if after > max_drop else ""
    return f"max_drop = {max_drop:g}: {said} on the validation split{missed}"


def _train(
    nodes: tuple[Node, ...],
    unfrozen: frozenset[str],
    weights: Arrays,
    full: RangeTable,
    kept: tuple[str, ...],
    train: Pictures,
    validation: Pictures,
    of_classes: tuple[float, ...] | None,
    spec: QuantizeSpec,
    training: TrainSpec,
    seed: int,
    checkpoints: Checkpoints,
    shelf: Shelf,
    progress: Progress,
    epoch_done: EpochDone | None,
) -> tuple[Arrays, RangeTable, tuple[EpochRecord, ...]]:
    prefix_nodes, tail_nodes = split(nodes, unfrozen)
    names = boundary(prefix_nodes, tail_nodes)
    table = keeping_float(nodes, full, kept)
    key = replace(checkpoints.key, params={**checkpoints.key.params, "kept_float": kept})
    level = _frozen_level(prefix_nodes, names, nodes, weights, table, train)
    made = activations_of(
        level,
        train=train,
        validation=validation,
        augmentation=changes_of(training.augment),
        views=training.views,
        seed=seed,
        shelf=shelf,
    )
    # In proportion to those of the final training.
    steps = training.min_steps * spec.qat_epochs / training.epochs
    epochs = enough_epochs(spec.qat_epochs, steps, len(train.labels), training.batch_size)
    plan_storage(made, epochs=epochs, again=False, shelf=shelf)
    entering = tuple(level.outputs)
    feeds = {split: CutFeed(activations, entering) for split, activations in made.items()}
    shapes = feeds["train"].shapes
    spans = table.activations
    tail = qat.wrap(tail_nodes, names, shapes[: len(names)], weights, table, spec.granularity)
    trainer = Trainer(
        _OnGrid(tail, [spans.get(name) for name in names]),
        tail.trainable_variables,
        len(names),
        _distillation(spec.temperature, of_classes),
        feeds["train"],
        batch_size=training.batch_size,
        averaging=AVERAGING,
    )
    result = fit(
        trainer,
        feeds["train"],
        feeds["validation"],
        schedule=Schedule(spec.qat_learning_rate, epochs, _WARMUP_STEPS),
        patience=math.ceil(spec.qat_patience * epochs / spec.qat_epochs),
        seed=seed,
        checkpoints=replace(checkpoints, key=key),
        class_weights=of_classes,
        epoch_done=epoch_done,
        progress=lambda last, *seen: progress(f"quantization-aware training{last}", *seen),
    )
    tuned, learned = qat.unwrap(tail, tail_nodes, spans)
    trained = {**weights, **tuned}
    return (
        trained,
        table_of(nodes, trained, {**full.activations, **learned}, spec.granularity),
        result.epochs,
    )


def _frozen_level(
    prefix: tuple[Node, ...],
    names: tuple[str, ...],
    nodes: tuple[Node, ...],
    weights: Arrays,
    table: RangeTable,
    pictures: Pictures,
) -> Level:
    """Returns what enters the unfrozen part, and the logits of the float model as teacher.

    The frozen part answers as its int8 form will, so that the tail learns to live with it.
    """
    frozen = _in_int8(prefix, weights, names, table, pictures)
    teacher = Inference(nodes, weights, _entering(pictures), (LOGITS,))
    (*_, classes) = teacher.shapes[LOGITS]
    # What enters is on the int8 grid, not the picture itself, so it gets a name of its own.
    outputs = {f"{name}_int8": shape for name, shape in frozen.shapes.items()}

    def compute(
        tensors: Sequence[npt.NDArray[np.float32]],
    ) -> tuple[npt.NDArray[np.float16], ...]:
        (logits,) = teacher(tensors)
        return (*frozen(tensors), logits.reshape(-1, classes))

    outputs[_TEACHER] = (classes,)
    grids = canonical(table.model_dump(mode="json")).decode()
    how = f"{frozen.__class__.__name__} {grids}"
    digest = level_digest(nodes, weights, tuple(outputs), how)
    return Level("int8", outputs, compute, digest)


def _entering(pictures: Pictures) -> dict[str, tuple[int, ...]]:
    return {INPUT: tuple(int(side) for side in pictures.images.shape[1:])}


def _in_int8(
    nodes: tuple[Node, ...],
    weights: Arrays,
    names: Sequence[str],
    table: RangeTable,
    pictures: Pictures,
) -> "Inference | _Simulation":
    """Returns what answers as these nodes of the int8 files, exactly if none is in float32."""
    entering = _entering(pictures)
    if nodes and not {node.name for node in nodes} & {*table.kept_float}:
        return Inference(nodes, weights, entering, names, table)
    return _Simulation(nodes, weights, entering, names, table)


class _Simulation:
    """An `Inference` by TensorFlow, for a picture alone, or with some layers in float32."""

    def __init__(
        self,
        nodes: tuple[Node, ...],
        weights: Arrays,
        inputs: Mapping[str, tuple[int, ...]],
        outputs: Sequence[str],
        table: RangeTable,
    ) -> None:
        def answer(images: Any) -> list[Any]:
            start = {INPUT: quantize(images, table.activations[INPUT])}
            tensors = run(nodes, weights, start, table)
            return [tensors[name] for name in outputs]

        signature = [tf.TensorSpec((BATCH_ROWS, *inputs[INPUT]), tf.float32)]
        self._answer = tf.function(answer, input_signature=signature, autograph=False)
        made = self._answer.get_concrete_function().structured_outputs
        self.shapes = {
            name: tuple(int(side) for side in tensor.shape[1:])
            for name, tensor in zip(outputs, made, strict=True)
        }

    def __call__(
        self, tensors: Sequence[npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float16], ...]:
        def numbers(images: Any) -> list[Any]:
            return [tensor.numpy() for tensor in self._answer(images)]

        return in_batches(numbers, tensors, self.shapes.values())


class _OnGrid:
    """The tail behind tensors that storing as float16 moved off their int8 grid by a little."""

    def __init__(self, tail: Any, spans: Sequence[TensorRange | None]) -> None:
        self._tail = tail
        self._spans = spans
        self.variables = tail.variables

    def __call__(self, entering: Sequence[Any]) -> Any:
        """Returns the tail's logits for the tensors rounded to their grids again."""
        rounded = [_on_grid(value, it) for value, it in zip(entering, self._spans, strict=True)]
        return self._tail(rounded)


def _on_grid(tensor: Any, span: TensorRange | None) -> Any:
    """Returns a tensor that storing as float16 moved off its int8 grid on it again."""
    return quantize(tensor, span) if span else tf.convert_to_tensor(tensor)


def _distillation(temperature: float, class_weights: Sequence[float] | None) -> Callable[..., Any]:
    """Returns T^2 KL(teacher / T || student / T) plus the cross-entropy of the labels, halved.

    Source: Hinton, Vinyals, Dean, arXiv:1503.02531, section 2, with equal weights.
    """

    def loss(tensors: Sequence[Any], labels: Any, logits: Any) -> Any:
        soft = tf.nn.softmax(tensors[-1] / temperature)
        student = tf.nn.log_softmax(logits / temperature)
        divergence = tf.reduce_sum(soft * (tf.math.log(soft + 1e-12) - student), axis=1)
        plain = unshifted(logits, class_weights)
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, plain)
        return 0.5 * temperature**2 * divergence + 0.5 * hard

    return loss


def _record(
    item: _Made,
    nodes: tuple[Node, ...],
    float_model: FloatModelRecord,
    float_logits: Logits,
    validation: Pictures,
    calibration_images: int,
) -> CandidateRecord:
    answers = item.logits.argmax(1)
    calibrated = f"ranges from {calibration_images} class-balanced training pictures"
    layers = []
    for node in nodes:
        if node.name in item.kept:
            why = item.kept[node.name]
            layers.append(LayerQuantization(layer=node.name, how="float", reason=why))
        if node.name in item.kept or node.op not in ("conv", "depthwise"):
            continue
        if item.name == "qat" and node.name in float_model.unfrozen_layers:
            layer = LayerQuantization(
                layer=node.name, how="qat", reason=f"unfrozen from {float_model.cut} on"
            )
        else:
            why = "frozen in fine-tuning" if item.name == "qat" else "post-training"
            layer = LayerQuantization(
                layer=node.name, how="calibrated", reason=f"{why}: {calibrated}"
            )
        layers.append(layer)
    return CandidateRecord(
        name=item.name,
        validation_accuracy=float((answers == validation.labels).mean()),
        validation_loss=item.loss,
        agreement_with_float=float((answers == float_logits.argmax(1)).mean()),
        layers=tuple(layers),
        epochs=item.epochs,
    )


def _reason(
    made: Sequence[_Made], shipped: _Made, validation: Pictures, max_drop: float | None
) -> str:
    """Returns in words why a candidate ships."""
    if len(made) == 1:
        return "only post-training int8 was asked for (quantize.qat_epochs = 0)"
    losses = {item.name: item.loss for item in made}
    shown = "; ".join(
        f"{item.name}: loss {losses[item.name]:.4f}, "
        f"top-1 {(item.logits.argmax(1) == validation.labels).mean():.2%}"
        for item in made
    )
    lower = min(losses, key=lambda name: losses[name])
    if shipped.name != lower:
        return (
            f"{shipped.name} keeps to quantize.max_drop = {max_drop:g} on the validation split, "
            f"{lower} does not ({shown})"
        )
    return f"{shipped.name} has the lower loss on the validation split ({shown})"
