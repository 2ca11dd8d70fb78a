"""The train stage: head first, then one block after another until the loss stops improving."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.errors import ConversionError
from edgekit.fitting.augment import Augmentation
from edgekit.fitting.checkpoints import Checkpoints
from edgekit.fitting.loop import Fit, cross_entropies, fit
from edgekit.fitting.pictures import Pictures
from edgekit.network import keras_model
from edgekit.network.graph import LOGITS, Arrays, fold, mobilenet_v2, split
from edgekit.network.tail import Tail
from edgekit.prefix.activations import Shelf
from edgekit.prefix.frozen import CHECKED_PICTURES, Frozen, describe
from edgekit.prefix.levels import CLOSE
from edgekit.records import EpochRecord, FloatModelRecord, PhaseRecord
from edgekit.store import StageKey, Store
from edgekit.train.cuts import HEAD, Cut, block_of, fixed, progressive
from edgekit.train.strategy import Decision, Probe, Strategy, choose, decide

Say = Callable[[str], None]
EpochTold = Callable[[str, int, EpochRecord], None]
PHASE_STAGE = "train-phase"
EPOCH_STAGE = "train-epoch"
_WEIGHTS = "weights.npz"
_STATISTICS_PICTURES = 64
_LOGITS = "logits.npy"


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
        strategy: How far to unfreeze.
        unfreeze_from: The cut of "fixed", or None.
        unfreeze_until: The earliest cut that a search may come to, or None.
        epoch_patience: Epochs without a lower validation loss before a phase ends.
        min_delta: Least fall of the validation loss that counts as an improvement.
        patience: Phases without improvement before the search ends.
        label_smoothing: Share of the label's mass that is spread over all classes.
        augmentation: Random changes of training pictures, or None.
        head_views: Differently changed versions of each training picture if only the head trains.
        views: The same in every phase of the other strategies.
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
    strategy: Strategy
    unfreeze_from: int | str | None
    unfreeze_until: int | str | None
    epoch_patience: int
    min_delta: float
    patience: int
    label_smoothing: float
    augmentation: Augmentation | None
    head_views: int
    views: int
    seed: int


@dataclass(frozen=True)
class Keeping:
    """Where a search keeps what lets it continue when it is interrupted.

    Args:
        store: The store.
        key: What the whole stage depends on.
        shelf: Where activations are kept.
    """

    store: Store
    key: StageKey
    shelf: Shelf

    def phase(self, number: int, previous: str) -> StageKey:
        """Returns the key of a phase, which follows from the stage and the phases before it."""
        params = {**self.key.params, "number": number}
        inputs = {**self.key.inputs, "previous": previous}
        return replace(self.key, stage=PHASE_STAGE, params=params, inputs=inputs)


def train(
    train_pictures: Pictures,
    validation: Pictures,
    class_count: int,
    plan: Plan,
    folder: Path,
    *,
    keeping: Keeping,
    say: Say,
    epoch_done: EpochTold,
) -> FloatModelRecord:
    """Fine-tunes the network and writes `weights.npz` (float32, `layer/variable`) into `folder`.

    Args:
        train_pictures: Pictures to learn from.
        validation: Pictures that decide every choice; the test split is never seen.
        class_count: Number of classes.
        plan: What the recipe asks for.
        folder: Where the weights go.
        keeping: Keeps every finished phase and epoch, so that an interrupted run continues behind
            the last, and the activations of the frozen part.
        say: Called with one line when a phase ends.
        epoch_done: Called with (cut, epoch in the phase, record) after every epoch.

    Raises:
        SpecError: If the starting weights or the fixed cut do not exist.
        TrainingError: If the loss stops being finite.
        ConversionError: If the frozen part or the result answers otherwise than Keras's layers do.
    """
    keras_model.make_deterministic(plan.seed)
    size = int(train_pictures.images.shape[1])
    model = keras_model.build(
        alpha=plan.alpha,
        input_size_px=size,
        class_count=class_count,
        weights=plan.weights,
        seed=plan.seed,
    )
    if plan.weights == "none":
        every = max(1, len(train_pictures.images) // _STATISTICS_PICTURES)
        shown = train_pictures.images[::every].astype(np.float32)
        keras_model.take_statistics(model, train_pictures.normalize(shown))
    search = _Search(model, train_pictures, validation, plan, keeping, say, epoch_done)
    search.go()
    chosen, curve, reason = choose([phase.cut for phase in search.phases], search.losses)
    if plan.strategy == "fixed":
        chosen, reason = len(curve) - 1, f"{curve[-1].cut} was asked for"
    arrays = {**search.start, **search.weights(chosen)}
    keras_model.assign(model, arrays)
    _check(model, validation, search.logits(chosen))
    np.savez(folder / _WEIGHTS, allow_pickle=False, **arrays)
    best = search.phases[chosen].epochs[search.phases[chosen].best_epoch]
    cut = search.cuts[chosen]
    say(f"ships: {reason}")
    return FloatModelRecord(
        alpha=plan.alpha,
        input_size_px=size,
        class_count=class_count,
        cut=cut.name,
        unfrozen_layers=tuple(sorted(cut.unfrozen, key=search.layers.index)),
        phases=tuple(search.phases),
        curve=curve,
        strategy=search.decision.reason,
        chosen_because=reason,
        warnings=tuple(search.warnings),
        validation_accuracy=best.validation_accuracy,
        validation_loss=best.validation_loss,
        stopped_because=search.stopped_because,
    )


class _Search:
    """State of one search: the phases so far and the best of them."""

    def __init__(
        self,
        model: Any,
        train_pictures: Pictures,
        validation: Pictures,
        plan: Plan,
        keeping: Keeping,
        say: Say,
        epoch_done: EpochTold,
    ) -> None:
        self._train = train_pictures
        self._validation = validation
        self._plan = plan
        self._keeping = keeping
        self._say = say
        self._epoch_done = epoch_done
        self._nodes = mobilenet_v2(plan.alpha)
        self._epochs_run = 0
        self._previous = ""
        self._best = 0
        self._folders: list[Path] = []
        self.start = keras_model.arrays_of(model)
        self.layers = [layer.name for layer in model.layers]
        self.phases: list[PhaseRecord] = []
        self.cuts: list[Cut] = []
        self.losses: list[npt.NDArray[np.float64]] = []
        self.warnings: list[str] = []
        self.stopped_because = ""
        self._told_of_room = False
        self._head, *self._further = progressive(self.layers, self._nodes, plan.granularity)
        self._asked: Cut | None = None
        if plan.unfreeze_from is not None:
            key = "train.unfreeze_from"
            self._asked = fixed(key, plan.unfreeze_from, self.layers, self._nodes)
        if plan.unfreeze_until is not None:
            last = fixed("train.unfreeze_until", plan.unfreeze_until, self.layers, self._nodes)
            self._further = [cut for cut in self._further if cut.index >= last.index]
        ahead = {"head": [], "fixed": [self._asked]}.get(plan.strategy, self._further)
        # No layer in front of a cut has changed, so the whole search has one frozen network.
        self._frozen = Frozen(
            self._nodes,
            fold(self._nodes, self.start),
            [self._place(cut) for cut in (self._head, *ahead) if cut is not None],
            train=train_pictures,
            validation=validation,
            augmentation=plan.augmentation,
            seed=plan.seed,
            shelf=keeping.shelf,
            reference=partial(keras_model.tensors_of, model, self._nodes),
        )

    def _place(self, cut: Cut) -> str:
        """Returns the first node that trains."""
        return split(self._nodes, cut.unfrozen)[1][0].name

    def logits(self, number: int) -> npt.NDArray[np.float32]:
        """Returns the validation logits of the best epoch of a phase."""
        found: npt.NDArray[np.float32] = np.load(self._folders[number] / _LOGITS)
        return found

    def weights(self, number: int) -> Arrays:
        """Returns the variables that a phase trained, as its best epoch left them."""
        with np.load(self._folders[number] / _WEIGHTS, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def go(self) -> None:
        """Runs all phases."""
        plan = self._plan
        self._phase(self._head, [plan.head_learning_rate] * plan.head_epochs)
        self.decision = decide(
            plan.strategy, self._further, self._asked, plan.patience, self._probe()
        )
        self._say(f"strategy {self.decision.reason}")
        self.stopped_because = self._unfreeze(self.decision)

    def _unfreeze(self, decision: Decision) -> str:
        """Runs the phases behind the head and returns why it stopped, in words."""
        plan = self._plan
        misses = 0
        for number, cut in enumerate(decision.cuts):
            rate = plan.unfreeze_learning_rate * plan.learning_rate_decay**number
            self._phase(cut, [rate] * plan.phase_epochs)
            if self.phases[-1].improved:
                self._best, misses = len(self.phases) - 1, 0
                continue
            misses += 1
            if misses >= decision.patience and plan.strategy != "fixed":
                rows = "a phase" if misses == 1 else f"{misses} phases in a row"
                return f"{rows} did not lower the validation loss by {plan.min_delta}"
        if plan.strategy == "fixed":
            return f"train.unfreeze_from = {plan.unfreeze_from!r} was asked for"
        if self.cuts[-1].index <= 1:
            return "the input was reached"
        if plan.unfreeze_until is not None and self.cuts[-1] in self._further[-1:]:
            return f"{self.cuts[-1].name} was reached (train.unfreeze_until)"
        return f"the strategy ends at {self.cuts[-1].name}"

    def _probe(self) -> Probe:
        head = self.phases[0]
        best = head.epochs[head.best_epoch]
        labels = self._validation.labels
        return Probe(
            images_per_class=int(np.median(np.bincount(self._train.labels))),
            validation_accuracy=best.validation_accuracy,
            train_accuracy=best.train_accuracy,
            validation_errors=round(len(labels) * (1 - best.validation_accuracy)),
        )

    def _phase(self, cut: Cut, learning_rates: list[float]) -> None:
        key = self._keeping.phase(len(self.phases), self._previous)

        def make(folder: Path) -> PhaseRecord:
            record, logits, trained = self._run(cut, learning_rates, key)
            np.savez(folder / _WEIGHTS, allow_pickle=False, **trained)
            np.save(folder / _LOGITS, logits)
            return record

        kept = self._keeping.store.build(key, PhaseRecord, make)
        if not kept.reused:  # else they are those of a later phase, which was interrupted
            self._keeping.store.discard(EPOCH_STAGE)
        self._previous = kept.digest
        self._epochs_run += len(kept.record.epochs)
        self._folders.append(kept.folder)
        self.cuts.append(cut)
        self.phases.append(kept.record)
        self.losses.append(cross_entropies(self.logits(-1), self._validation.labels))
        self._tell(kept.record, kept.reused)

    def _run(
        self, cut: Cut, learning_rates: list[float], key: StageKey
    ) -> tuple[PhaseRecord, npt.NDArray[np.float32], Arrays]:
        """Trains from the best phase so far; returns the record, the logits and the weights."""
        before = {**self.start, **(self.weights(self._best) if self.phases else {})}
        tail_nodes = split(self._nodes, cut.unfrozen)[1]
        # Every phase of a search reads the same views at an anchor, so the head's are nearly free.
        views = self._plan.head_views if self._plan.strategy == "head" else self._plan.views
        first = self._epochs_run
        epochs = range(first, first + len(learning_rates))
        feeds = self._frozen.feeds(tail_nodes[0].name, views=views, epochs=epochs)
        names = feeds["train"].names
        tail = Tail(tail_nodes, names, before, dropout=self._plan.dropout, seed=self._plan.seed)
        result = fit(
            tail,
            tail.trained(),
            len(names),
            _smoothed_cross_entropy(self._plan.label_smoothing),
            feeds["train"],
            feeds["validation"],
            learning_rates=learning_rates,
            patience=self._plan.epoch_patience,
            batch_size=self._plan.batch_size,
            seed=self._plan.seed,
            first_epoch=first,
            checkpoints=Checkpoints(self._keeping.store, replace(key, stage=EPOCH_STAGE)),
            epoch_done=partial(self._epoch_done, cut.name),
            set_clock=tail.set_clock,
        )
        trained = tail.arrays()
        start = cross_entropies(result.start, self._validation.labels)
        lowest = result.epochs[result.best_epoch].validation_loss
        known = self.losses[self._best].mean() if self.phases else np.inf
        noise = float(start.std(ddof=1) / np.sqrt(len(start))) if len(start) > 1 else 0.0
        return (
            PhaseRecord(
                cut=cut.name,
                cut_index=cut.index,
                trainable_parameters=sum(value.size for value in trained.values()),
                learning_rate=learning_rates[0],
                start_loss=float(start.mean()),
                epochs=result.epochs,
                best_epoch=result.best_epoch,
                improved=lowest < known - self._plan.min_delta,
                forgetting=bool(
                    self.phases and result.epochs[0].validation_loss > float(start.mean()) + noise
                ),
                gradient_norms=_by_block(result, list(trained)),
                prefix=describe(feeds, self._frozen.departure),
            ),
            result.logits,
            trained,
        )

    def _tell(self, phase: PhaseRecord, reused: bool) -> None:
        best = phase.epochs[phase.best_epoch]
        seconds = sum(epoch.seconds for epoch in phase.epochs) + phase.prefix.seconds
        rates = f"{np.median([epoch.images_per_second for epoch in phase.epochs]):.0f} images/s"
        if phase.prefix.images_per_second is not None:
            rates += f", frozen part {phase.prefix.images_per_second:.0f} images/s"
        self._say(
            f"phase {len(self.phases)}: from {phase.cut}: {phase.trainable_parameters:,} "
            f"parameters, validation loss {best.validation_loss:.4f}, top-1 "
            f"{best.validation_accuracy:.2%}, {'better' if phase.improved else 'not better'}, "
            f"{'kept from before' if reused else f'{seconds:.0f} s ({rates})'}"
        )
        if phase.forgetting and not phase.improved:
            self.warnings.append(
                f"forgetting: unfreezing from {phase.cut} raised the validation loss from "
                f"{phase.start_loss:.4f} to {phase.epochs[0].validation_loss:.4f} in its first "
                "epoch, and the phase did not make up for it; try a lower "
                "train.unfreeze_learning_rate"
            )
            self._say(f"warning: {self.warnings[-1]}")
        if phase.prefix.views_refused and not self._told_of_room:
            self._told_of_room = True
            self._say(
                f"note: there was no room to store {phase.prefix.views_refused} of "
                f"{phase.prefix.views} views (train.activations_budget_bytes, half of the free "
                "disk space); they are computed again in every epoch, with the same result"
            )


def _by_block(result: Fit, variables: list[str]) -> dict[str, float]:
    """Returns the gradient norm of each block: the root of the summed squares of its variables."""
    squares: dict[str, float] = {}
    for name, norm in zip(variables, result.gradient_norms, strict=True):
        layer = name.split("/")[0]
        block = HEAD if layer == LOGITS else block_of(layer)
        squares[block] = squares.get(block, 0.0) + norm**2
    return {block: float(np.sqrt(total)) for block, total in squares.items()}


def _smoothed_cross_entropy(smoothing: float) -> Callable[[Sequence[Any], Any, Any], Any]:
    def loss(_tensors: Sequence[Any], labels: Any, logits: Any) -> Any:
        classes = logits.shape[-1]
        targets = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))

    return loss


def _check(model: Any, pictures: Pictures, logits: npt.NDArray[np.float32]) -> None:
    """Refuses a shipped network that answers otherwise than the phase that trained it did."""
    shown = pictures.images[:CHECKED_PICTURES].astype(np.float32)
    answers = model(pictures.normalize(shown), training=False).numpy()
    expected = logits[: len(shown)]
    off = np.sqrt(np.square(answers - expected).mean() / max(np.square(expected).mean(), 1e-9))
    if not off <= CLOSE:
        raise ConversionError(
            f"the trained network departs by {off:.2g} of its logits from its own training",
            f"at most {CLOSE}",
            "report this with the recipe; it is a bug in edgekit",
        )
