"""The train stage: head first, then one block after another until the loss stops improving."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tf_keras

from edgekit.errors import TrainingError
from edgekit.fitting.augment import Augmentation
from edgekit.fitting.loop import Fit, Pictures, compiled, cross_entropy, fit
from edgekit.network import keras_model
from edgekit.network.forward import run
from edgekit.network.graph import INPUT, Node, boundary, fold, mobilenet_v2, split
from edgekit.records import EpochRecord, FloatModelRecord, PhaseRecord
from edgekit.store import Stored
from edgekit.train.cuts import Cut, fixed, progressive

Say = Callable[[str], None]
_WEIGHTS = "weights.npz"


# (number, digest of the phase before, make) -> the phase, made or kept from an interrupted run. A
# phase follows from the plan, the data and the phases before it, so these two identify it.
Keep = Callable[[int, str, Callable[[Path], PhaseRecord]], Stored[PhaseRecord]]


@dataclass(frozen=True)
class Plan:
    """Everything the train stage reads from the recipe.

    Args:
        alpha: Width multiplier.
        dropout: Fraction of pooled features dropped while training.
        weights: Starting weights, see `keras_model.build`.
        batch_size: Pictures per step.
        head_epochs: Most epochs of the head phase.
        head_learning_rate: Adam's learning rate in the head phase.
        phase_epochs: Most epochs of each later phase.
        unfreeze_learning_rate: Learning rate of the first unfreezing phase.
        learning_rate_decay: Factor on the learning rate after each phase.
        granularity: What one more phase unfreezes.
        unfreeze_from: A fixed cut, or None to search.
        epoch_patience: Epochs without a lower validation loss before a phase ends.
        min_delta: Least fall of the validation loss that counts as an improvement.
        patience: Phases without improvement before the search ends.
        label_smoothing: Share of the label's mass that is spread over all classes.
        augmentation: Random changes of training pictures, or None.
        seed: Seed of the recipe.
    """

    alpha: float
    dropout: float
    weights: str
    batch_size: int
    head_epochs: int
    head_learning_rate: float
    phase_epochs: int
    unfreeze_learning_rate: float
    learning_rate_decay: float
    granularity: Literal["block", "layer"]
    unfreeze_from: int | str | None
    epoch_patience: int
    min_delta: float
    patience: int
    label_smoothing: float
    augmentation: Augmentation | None
    seed: int


def train(
    train_pictures: Pictures,
    validation: Pictures,
    class_count: int,
    plan: Plan,
    folder: Path,
    *,
    keep: Keep,
    say: Say,
    epoch_done: Callable[[str, int, EpochRecord], None],
) -> FloatModelRecord:
    """Fine-tunes the network and writes `weights.npz` (float32, `layer/variable`) into `folder`.

    Args:
        train_pictures: Pictures to learn from.
        validation: Pictures that decide every choice; the test split is never seen.
        class_count: Number of classes.
        plan: What the recipe asks for.
        folder: Where the weights go.
        keep: Keeps every finished phase, so that an interrupted run continues behind the last.
        say: Called with one line when a phase ends.
        epoch_done: Called with (cut, epoch in the phase, record) after every epoch.

    Raises:
        SpecError: If the starting weights or the fixed cut do not exist.
        TrainingError: If the loss stops being finite or nothing was learned at all.
    """
    keras_model.make_deterministic(plan.seed)
    size = int(train_pictures.images.shape[1])
    model = keras_model.build(
        alpha=plan.alpha,
        input_size_px=size,
        class_count=class_count,
        dropout=plan.dropout,
        weights=plan.weights,
        seed=plan.seed,
    )
    search = _Search(model, train_pictures, validation, plan, keep, say, epoch_done)
    search.go()
    best = search.phases[search.best]
    logits = _logits(model, validation)
    np.savez(folder / _WEIGHTS, allow_pickle=False, **keras_model.arrays_of(model))
    cut = search.cuts[search.best]
    order = [layer.name for layer in model.layers]
    return FloatModelRecord(
        alpha=plan.alpha,
        input_size_px=size,
        class_count=class_count,
        cut=best.cut,
        unfrozen_layers=tuple(sorted(cut.unfrozen, key=order.index)),
        phases=tuple(search.phases),
        validation_accuracy=float((logits.argmax(1) == validation.labels).mean()),
        validation_loss=cross_entropy(logits, validation.labels),
        stopped_because=search.stopped_because,
    )


class _Search:
    """State of one search: the model, the phases so far and the best of them."""

    def __init__(
        self,
        model: tf_keras.Model,
        train_pictures: Pictures,
        validation: Pictures,
        plan: Plan,
        keep: Keep,
        say: Say,
        epoch_done: Callable[[str, int, EpochRecord], None],
    ) -> None:
        self._model = model
        self._train = train_pictures
        self._validation = validation
        self._plan = plan
        self._keep = keep
        self._say = say
        self._epoch_done = epoch_done
        self._nodes = mobilenet_v2(plan.alpha)
        self._epochs_run = 0
        self._previous = ""
        self.phases: list[PhaseRecord] = []
        self.cuts: list[Cut] = []
        self.best = 0
        self.stopped_because = ""

    def go(self) -> None:
        """Runs all phases; leaves the model with the weights of the best one."""
        plan = self._plan
        layers = [layer.name for layer in self._model.layers]
        head, *further = progressive(layers, self._nodes, plan.granularity)
        if plan.unfreeze_from is not None:
            cut = fixed(plan.unfreeze_from, layers, self._nodes)
            further = [] if cut.unfrozen == head.unfrozen else [cut]
        rates = [plan.head_learning_rate] * plan.head_epochs
        self._phase(head, rates)
        best_weights = self._model.get_weights()
        misses = 0
        self.stopped_because = "the input was reached"
        if plan.unfreeze_from is not None:
            self._ship_fixed(further)
            return
        for number, cut in enumerate(further):
            rate = plan.unfreeze_learning_rate * plan.learning_rate_decay**number
            self._phase(cut, [rate] * plan.phase_epochs)
            if self.phases[-1].improved:
                self.best, misses = len(self.phases) - 1, 0
                best_weights = self._model.get_weights()
                continue
            self._model.set_weights(best_weights)
            misses += 1
            if misses >= plan.patience:
                self.stopped_because = (
                    f"{misses} phases in a row did not lower the validation loss by "
                    f"{plan.min_delta}"
                )
                break

    def _ship_fixed(self, cuts: list[Cut]) -> None:
        """Trains the one cut that the recipe asks for and keeps it, better or not."""
        plan = self._plan
        for cut in cuts:
            self._phase(cut, [plan.unfreeze_learning_rate] * plan.phase_epochs)
        self.best = len(self.phases) - 1
        lost = "" if self.phases[-1].improved else ", although the head alone was as good"
        self.stopped_because = f"train.unfreeze_from = {plan.unfreeze_from!r} was asked for{lost}"

    def _phase(self, cut: Cut, learning_rates: list[float]) -> None:
        def make(folder: Path) -> PhaseRecord:
            record = self._run(cut, learning_rates)
            arrays = keras_model.arrays_of(self._model)
            np.savez(folder / _WEIGHTS, allow_pickle=False, **arrays)
            return record

        kept = self._keep(len(self.phases), self._previous, make)
        if kept.reused:
            with np.load(kept.folder / _WEIGHTS, allow_pickle=False) as stored:
                keras_model.assign(self._model, {name: stored[name] for name in stored.files})
        self._previous = kept.digest
        self._epochs_run += len(kept.record.epochs)
        self.cuts.append(cut)
        self.phases.append(kept.record)
        self._tell(kept.record, kept.reused)

    def _run(self, cut: Cut, learning_rates: list[float]) -> PhaseRecord:
        result = self._fit(cut, learning_rates)
        lowest = result.epochs[result.best_epoch].validation_loss
        known = np.inf
        if self.phases:
            best = self.phases[self.best]
            known = best.epochs[best.best_epoch].validation_loss
        return PhaseRecord(
            cut=cut.name,
            cut_index=cut.index,
            trainable_parameters=sum(
                int(np.prod(variable.shape)) for variable in self._model.trainable_variables
            ),
            learning_rate=learning_rates[0],
            epochs=result.epochs,
            best_epoch=result.best_epoch,
            improved=lowest < known - self._plan.min_delta,
        )

    def _tell(self, phase: PhaseRecord, reused: bool) -> None:
        best = phase.epochs[phase.best_epoch]
        seconds = sum(epoch.seconds for epoch in phase.epochs)
        self._say(
            f"phase {len(self.phases)}: from {phase.cut}: {phase.trainable_parameters:,} "
            f"parameters, validation loss {best.validation_loss:.4f}, top-1 "
            f"{best.validation_accuracy:.2%}, {'better' if phase.improved else 'not better'}, "
            f"{'kept from before' if reused else f'{seconds:.0f} s'}"
        )

    def _fit(self, cut: Cut, learning_rates: list[float]) -> Fit:
        plan = self._plan
        for layer in self._model.layers:
            layer.trainable = layer.name in cut.unfrozen
        prefix_nodes, tail_nodes = split(self._nodes, cut.unfrozen)
        names = boundary(prefix_nodes, tail_nodes)
        tail = tf_keras.Model(
            [_output_of(self._model, self._nodes, name) for name in names], self._model.output
        )
        # The frozen part never changes inside a phase, so it runs with BatchNorm folded.
        weights = fold(self._nodes, keras_model.arrays_of(self._model))

        def prefix(images: Any) -> list[Any]:
            tensors = run(prefix_nodes, weights, {INPUT: images})
            return [tensors[name] for name in names]

        dropout = self._model.get_layer("dropout")
        return fit(
            prefix,
            tail,
            _smoothed_cross_entropy(plan.label_smoothing),
            self._train,
            self._validation,
            learning_rates=learning_rates,
            patience=plan.epoch_patience,
            batch_size=plan.batch_size,
            augmentation=plan.augmentation,
            seed=plan.seed,
            first_epoch=self._epochs_run,
            epoch_done=partial(self._epoch_done, cut.name),
            set_clock=dropout.set_clock,
        )


def _output_of(model: tf_keras.Model, nodes: tuple[Node, ...], name: str) -> Any:
    """Returns the Keras tensor that equals the output of a folded node."""
    if name == INPUT:
        return model.input
    node = next(node for node in nodes if node.name == name)
    if node.op == "add" or node.op == "pool":
        return model.get_layer(name).output
    if not node.relu6:
        return model.get_layer(node.batch_norm or name).output
    relu = {"Conv_1": "out_relu"}.get(name, f"{name}_relu")
    return model.get_layer(relu).output


def _smoothed_cross_entropy(smoothing: float) -> Callable[[Any, Any, Any], Any]:
    def loss(_images: Any, labels: Any, logits: Any) -> Any:
        classes = logits.shape[-1]
        targets = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))

    return loss


def _logits(model: tf_keras.Model, pictures: Pictures) -> Any:
    result = compiled(lambda images: model(images, training=False), pictures)()
    if not np.isfinite(result).all():
        raise TrainingError(
            "the trained network answers with NaN or infinity",
            "finite logits",
            "check the starting weights and lower the learning rates",
        )
    return result
