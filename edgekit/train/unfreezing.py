"""The train stage: the head, a comparison of cuts from the output side, a training from the best.

Unfreezing stage by stage tells how much of the network to fine-tune; then it is fine-tuned. Each
cut of the comparison has a whole schedule of its own from the same head, so that none profits from
the steps of another and no learning rate has fallen before it starts.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.errors import ConversionError, TrainingError
from edgekit.fitting.augment import changes_of
from edgekit.fitting.checkpoints import Checkpoints
from edgekit.fitting.class_weights import class_weights
from edgekit.fitting.feed import Feed
from edgekit.fitting.loop import (
    AVERAGING,
    Fit,
    Progress,
    Schedule,
    Trainer,
    enough_epochs,
    fit,
    unshifted,
)
from edgekit.fitting.losses import validation_losses
from edgekit.fitting.pictures import Pictures
from edgekit.network import keras_model
from edgekit.network.graph import LOGITS, Arrays, fold, layer_names, mobilenet_v2, split
from edgekit.network.tail import Tail
from edgekit.prefix.activations import Shelf
from edgekit.prefix.frozen import CHECKED_PICTURES, CutFeed, Frozen, describe
from edgekit.prefix.level import CLOSE
from edgekit.recipe import ModelSpec, TrainSpec
from edgekit.records import CutScore, EpochRecord, FloatModelRecord, PhaseRecord, Purpose
from edgekit.store import StageKey, Store
from edgekit.train.cuts import EARLIEST, HEAD, Cut, block_of, fixed, progressive
from edgekit.train.folds import Part, Rows, folds, sample
from edgekit.train.strategy import (
    FOLDS,
    Probe,
    Trial,
    choose,
    cross_validate,
    lowest,
    worse,
)

Say = Callable[[str], None]
EpochTold = Callable[[str, int, int, EpochRecord], None]
PHASE_STAGE = "train-phase"
EPOCH_STAGE = "train-epoch"
_WEIGHTS = "weights.npz"
_STATISTICS_PICTURES = 64
_LOGITS = "logits.npy"
# Training pictures of a trial: 50 steps of 32 an epoch. A comparison takes as many steps for two
# thousand pictures as for a million. A convention, not measured.
TRIAL_PICTURES = 1600
# What takes longer is announced.
_LONG_SECONDS = 120.0
# The learning rate is divided by this when training made the network worse, at most so many times.
# Conventions, not measured: at the default rate no training of the six sets needed it.
_CALMER, _MOST_CALMED = 4.0, 2


def few_views(spec: TrainSpec) -> int:
    """Returns the views of each training picture that the head and the trials see."""
    return min(spec.views, spec.trial_epochs)


def schedule(spec: TrainSpec, purpose: Purpose, rows: int, peak: float) -> Schedule:
    """Returns the schedule of a phase.

    Its epochs are raised so that the final training takes `min_steps` at least, and the other
    phases in proportion; but a trial no more than one of `TRIAL_PICTURES` pictures takes.

    Args:
        spec: What the recipe asks for.
        purpose: What the phase is for.
        rows: Pictures of an epoch.
        peak: Its peak learning rate.
    """
    asked = {"head": spec.head_epochs, "trial": spec.trial_epochs, "final": spec.epochs}
    steps = spec.min_steps * asked[purpose] / spec.epochs
    if purpose == "trial":  # no more for a few hundred pictures than for a million
        steps = min(steps, spec.trial_epochs * TRIAL_PICTURES / spec.batch_size)
    epochs = enough_epochs(asked[purpose], steps, rows, spec.batch_size)
    return Schedule(peak, epochs, spec.warmup_steps)


@dataclass(frozen=True)
class Keeping:
    """Where a run keeps what lets it continue when it is interrupted.

    Args:
        store: The store.
        key: What the whole stage depends on.
        shelf: Where activations are kept.
    """

    store: Store
    key: StageKey
    shelf: Shelf

    def phase(self, number: int, previous: str, peak: float) -> StageKey:
        """Returns the key of a phase, which follows from the stage and the phases before it."""
        params = {**self.key.params, "number": number, "peak": peak}
        inputs = {**self.key.inputs, "previous": previous}
        return replace(self.key, stage=PHASE_STAGE, params=params, inputs=inputs)


@dataclass(frozen=True)
class _Side:
    """What a phase learns from and what judges it.

    Args:
        frozen: The frozen part of both.
        fold: Number of the fold that judges, from 0; None for the validation split.
        learn: Rows to learn from, or None for all.
        judge: Rows that judge, or None for all.
    """

    frozen: Frozen
    fold: int | None = None
    learn: Rows | None = None
    judge: Rows | None = None


@dataclass(frozen=True)
class _Phase:
    """A finished phase: its record, where its blobs lie, and what it was judged by."""

    record: PhaseRecord
    folder: Path
    labels: npt.NDArray[np.int32]
    class_weights: tuple[float, ...] | None

    @cached_property
    def logits(self) -> npt.NDArray[np.float32]:
        """Logits of its best epoch for the pictures that judged it, float32 (n, classes)."""
        found: npt.NDArray[np.float32] = np.load(self.folder / _LOGITS)
        return found

    @cached_property
    def losses(self) -> npt.NDArray[np.float64]:
        """Losses of those pictures, float64 (n,), in nats, see `validation_losses`."""
        return validation_losses(self.logits, self.labels, self.class_weights)

    def weights(self) -> Arrays:
        """Returns the variables that it trained, as its best epoch left them."""
        with np.load(self.folder / _WEIGHTS, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    @property
    def seconds(self) -> float:
        """What it took, the frozen part included."""
        epochs = sum(epoch.seconds for epoch in self.record.epochs)
        return epochs + self.record.prefix.seconds


def train(
    train_pictures: Pictures,
    validation: Pictures,
    class_names: Sequence[str],
    model: ModelSpec,
    spec: TrainSpec,
    folder: Path,
    *,
    weights: Arrays | None,
    seed: int,
    keeping: Keeping,
    say: Say,
    progress: Progress,
    epoch_done: EpochTold | None = None,
) -> FloatModelRecord:
    """Fine-tunes the network and writes `weights.npz` (float32, `layer/variable`) into `folder`.

    Args:
        train_pictures: Pictures to learn from.
        validation: Pictures that decide every choice; the test split is never seen.
        class_names: Names of the classes.
        model: The network that the recipe asks for.
        spec: How it is to be trained.
        folder: Where the weights go.
        weights: Arrays that the backbone starts from, or None for random ones.
        seed: Seed of the recipe.
        keeping: Keeps every finished phase and epoch, so that an interrupted run continues behind
            the last, and the activations of the frozen part.
        say: Called with one line when a phase ends.
        progress: Called with (what trains, pictures seen, pictures of the phase) as steps are
            taken.
        epoch_done: Called with (what trains, epoch in the phase, epochs of the phase, record) after
            every epoch, when it is kept.

    Raises:
        SpecError: If the fixed cut does not exist, or weights are asked for a class that does not.
        TrainingError: If the loss of the head, or of the cut of "fixed", stops being finite.
        ConversionError: If the frozen part answers otherwise than Keras's layers do, or the result
            with NaN. A result that departs from its training is a warning of the record.
    """
    keras_model.make_deterministic(seed)
    counts = np.bincount(train_pictures.labels, minlength=len(class_names))
    of_classes, weighed_because = class_weights(spec.class_weights, counts, class_names)
    say(f"classes: {weighed_because}")
    height, width, channels = (int(side) for side in train_pictures.images.shape[1:])
    network = keras_model.build(
        alpha=model.alpha,
        input_size_px=(height, width),
        channels=channels,
        class_count=len(class_names),
        weights=weights,
        seed=seed,
    )
    if weights is None:
        every = max(1, len(train_pictures.images) // _STATISTICS_PICTURES)
        shown = train_pictures.images[::every].astype(np.float32)
        keras_model.take_statistics(network, train_pictures.normalize(shown))
    if of_classes is not None:  # where training would bring it, but in how many steps?
        network.get_layer(LOGITS).bias.assign(np.log(of_classes))
    run = _Run(
        network, train_pictures, validation, model, spec, of_classes, seed, keeping, say, progress,
        epoch_done,
    )  # fmt: skip
    shipped = run.go()
    arrays = {**run.start, **shipped.weights()}
    keras_model.assign(network, arrays)
    _check(network, validation, shipped.logits, run.warn)
    np.savez(folder / _WEIGHTS, allow_pickle=False, **arrays)
    record = shipped.record
    best = record.epochs[record.best_epoch]
    unfrozen = run.cut_named(record.cut).unfrozen
    return FloatModelRecord(
        alpha=model.alpha,
        input_size_px=(height, width),
        class_count=len(class_names),
        cut=record.cut,
        unfrozen_layers=tuple(sorted(unfrozen, key=run.layers.index)),
        phases=tuple(phase.record for phase in run.phases),
        shipped_phase=run.phases.index(shipped),
        curve=run.curve,
        strategy=run.strategy,
        chosen_because=run.chosen_because,
        warnings=tuple(run.warnings),
        class_weights=of_classes,
        weighed_because=weighed_because,
        validation_accuracy=best.validation_accuracy,
        validation_loss=best.validation_loss,
        stopped_because=run.stopped_because,
    )


class _Run:
    """State of one train stage: the phases so far, and what was decided by them."""

    def __init__(
        self,
        network: Any,
        train_pictures: Pictures,
        validation: Pictures,
        model: ModelSpec,
        spec: TrainSpec,
        of_classes: tuple[float, ...] | None,
        seed: int,
        keeping: Keeping,
        say: Say,
        progress: Progress,
        epoch_done: EpochTold | None,
    ) -> None:
        self._network = network
        self._train = train_pictures
        self._validation = validation
        self._dropout = model.dropout
        self._spec = spec
        self._class_weights = of_classes
        self._seed = seed
        self._keeping = keeping
        self._say = say
        self._progress = progress
        self._epoch_done = epoch_done
        self._nodes = mobilenet_v2(model.alpha)
        self._previous = ""
        self.start = keras_model.arrays_of(network)
        self.layers = layer_names(self._nodes)
        self.phases: list[_Phase] = []
        self._traced: tuple[str, Tail, Trainer] | None = None  # of the last cut
        self.curve: tuple[CutScore, ...] = ()
        self.warnings: list[str] = []
        self.strategy = self.chosen_because = self.stopped_because = ""
        self._told_of_room = False
        self._head, *further = progressive(self.layers, self._nodes, spec.granularity)
        until = EARLIEST if spec.unfreeze_until is None else spec.unfreeze_until
        last = fixed("train.unfreeze_until", until, self.layers, self._nodes)
        further = [cut for cut in further if cut.index >= last.index]
        self._last = last.name
        if spec.unfreeze_from is not None:
            key = "train.unfreeze_from"
            further = [fixed(key, spec.unfreeze_from, self.layers, self._nodes)]
        self._further = () if spec.strategy == "head" else tuple(further)
        self._cuts = (self._head, *self._further)
        # Before the final training a few views do; where it sees more of them, it makes them at its
        # own cut alone.
        few = few_views(spec) if self._further else spec.views
        final = schedule(spec, "final", len(train_pictures.labels), spec.learning_rate)
        self._makes_own_views = spec.augment.enabled and few < min(spec.views, final.epochs)
        alone = spec.strategy == "fixed" and self._makes_own_views
        cuts = (self._head,) if alone else self._cuts
        self._read_again = len(cuts) > 1  # what the head reads, by the phases behind it
        shelf = keeping.shelf
        self._whole = _Side(self._frozen(train_pictures, validation, shelf, cuts, few))

    def _frozen(
        self, train: Pictures, judge: Pictures, shelf: Shelf, cuts: Sequence[Cut], views: int
    ) -> Frozen:
        return Frozen(
            self._nodes,
            fold(self._nodes, self.start),
            [self._place(cut) for cut in cuts],
            train=train,
            validation=judge,
            augmentation=changes_of(self._spec.augment),
            views=views,
            seed=self._seed,
            shelf=shelf,
            reference=partial(keras_model.tensors_of, self._network, self._nodes),
        )

    def _place(self, cut: Cut) -> str:
        """Returns the first node that trains."""
        return split(self._nodes, cut.unfrozen)[1][0].name

    def warn(self, warning: str) -> None:
        """Keeps a warning for the record, and says it."""
        self.warnings.append(warning)
        self._say(f"warning: {warning}")

    def cut_named(self, name: str) -> Cut:
        """Returns one of the cuts of this run."""
        return next(cut for cut in self._cuts if cut.name == name)

    def go(self) -> _Phase:
        """Runs all phases and returns the one that ships."""
        spec = self._spec
        head = self._phase("head", self._head, spec.head_learning_rate, self._whole, None)
        if spec.strategy in ("head", "fixed"):
            cut = self._further[0] if self._further else self._head
            self.strategy = (
                "head: feature extraction alone, as asked"
                if spec.strategy == "head"
                else f"fixed: from {cut.name}, as asked"
            )
            self.stopped_because = "no cuts were compared"
            self._say(f"strategy {self.strategy}")
        else:
            cut = self._compared(head)
        if cut.name == HEAD:
            self.chosen_because = self.chosen_because or "head was asked for"
            self._say(f"ships: {self.chosen_because}")
            return head
        self.chosen_because = self.chosen_because or f"{cut.name} was asked for"
        shipped = self._final(cut, head)
        self._say(f"ships: {self.chosen_because}")
        return shipped

    def _compared(self, head: _Phase) -> Cut:
        """Compares the cuts from the output side on and returns the best."""
        crossed, self.strategy = cross_validate(self._spec.strategy, self._probe(head))
        self._say(f"strategy {self.strategy}")
        sides = self._folds() if crossed else (self._trial_side(),)
        rate = self._spec.head_learning_rate
        heads = (
            [self._phase("trial", self._head, rate, side, None) for side in sides]
            if crossed
            else [head]
        )
        trials = [_trial(HEAD, heads)]
        misses = 0
        self.stopped_because = f"{self._last} was reached (train.unfreeze_until)"
        for cut in self._further:
            tried = [
                self._calmed("trial", cut, side, start, self._spec.learning_rate)
                for side, start in zip(sides, heads, strict=True)
            ]
            phases = [phase for phase in tried if phase is not None]
            if len(phases) < len(tried):
                self.stopped_because = f"the loss of training from {cut.name} did not stay finite"
                break
            trials.append(_trial(cut.name, phases))
            misses = misses + 1 if worse(trials[-1], trials[lowest(trials)]) else 0
            if misses >= self._spec.patience:
                self.stopped_because = (
                    f"unfreezing from {cut.name} raised the validation loss by more than two "
                    "standard errors"
                )
                break
        chosen, self.curve, self.chosen_because = choose(trials)
        self._say(f"cut: {self.chosen_because}")
        return self.cut_named(trials[chosen].cut)

    def _probe(self, head: _Phase) -> Probe:
        wrong = head.logits.argmax(1) != self._validation.labels
        return Probe(
            train_pictures=len(self._train.labels),
            per_class=int(np.median(np.bincount(self._train.labels))),
            validation_pictures=len(wrong),
            validation_errors=int(wrong.sum()),
        )

    def _trial_side(self) -> _Side:
        # Where nothing is kept, the rows of a trial alone are computed.
        learn = sample(self._train.labels, TRIAL_PICTURES, self._seed)
        return replace(self._whole, learn=learn)

    def _folds(self) -> tuple[_Side, ...]:
        """Returns a side for each fold of the training and the validation pictures together."""
        both = (self._train, self._validation)
        labels = np.concatenate([pictures.labels for pictures in both])
        images = np.concatenate([pictures.images for pictures in both])
        together = Pictures(images, labels, self._train.preprocess)
        shelf = replace(self._keeping.shelf, data=f"{self._keeping.shelf.data} and validation")
        frozen = self._frozen(together, together, shelf, self._cuts, few_views(self._spec))
        every = np.arange(len(labels))
        return tuple(
            _Side(frozen, number, np.setdiff1d(every, rows), rows)
            for number, rows in enumerate(folds(labels, FOLDS, self._seed))
        )

    def _final(self, cut: Cut, head: _Phase) -> _Phase:
        """Trains from the chosen cut; the head alone ships if that makes the network worse."""
        spec = self._spec
        tried = [p.record.learning_rate for p in self.phases if p.record.cut == cut.name]
        rate = min([spec.learning_rate, *tried])
        if self._makes_own_views:
            pictures, shelf = (self._train, self._validation), self._keeping.shelf
            # In its place: files that are mapped keep their room on the disk.
            self._whole = _Side(self._frozen(*pictures, shelf, (cut,), spec.views))
        found = self._calmed("final", cut, self._whole, head, rate)
        fixed_cut = spec.strategy == "fixed"
        if found is not None and (fixed_cut or found.losses.mean() <= head.losses.mean()):
            return found
        what = (
            f"the loss of training from {cut.name} did not stay finite"
            if found is None
            else f"training from {cut.name} raised the validation loss from "
            f"{head.losses.mean():.4f} to {found.losses.mean():.4f}"
        )
        if fixed_cut:
            raise TrainingError(what, "a finite loss", "lower train.learning_rate in the recipe")
        self.chosen_because = f"the head alone, as {what}"
        self.warnings.append(self.chosen_because)
        return head

    def _calmed(
        self,
        purpose: Purpose,
        cut: Cut,
        side: _Side,
        head: _Phase,
        rate: float,
        attempts: int = _MOST_CALMED,
    ) -> _Phase | None:
        """Trains from a cut; again at a lower rate if that made the network worse.

        Returns:
            The last attempt; None if its loss stopped being finite.
        """
        try:
            found = self._phase(purpose, cut, rate, side, head)
        except TrainingError:
            if attempts == 0:
                return None
            why = "the loss stopped being finite"
        else:
            if attempts == 0 or not _worse(found, head):
                return found
            why = (
                f"the validation loss rose from {head.losses.mean():.4f} to "
                f"{found.losses.mean():.4f}"
            )
        calmer = rate / _CALMER
        self.warnings.append(
            f"training from {cut.name} at a learning rate of {rate:.2g}: {why}; trained again at "
            f"{calmer:.2g}"
        )
        self._say(f"warning: {self.warnings[-1]}")
        return self._calmed(purpose, cut, side, head, calmer, attempts - 1)

    def _phase(
        self, purpose: Purpose, cut: Cut, peak: float, side: _Side, start: _Phase | None
    ) -> _Phase:
        key = self._keeping.phase(len(self.phases), self._previous, peak)

        def make(folder: Path) -> PhaseRecord:
            record, logits, trained = self._trained(purpose, cut, peak, side, start, key)
            np.savez(folder / _WEIGHTS, allow_pickle=False, **trained)
            np.save(folder / _LOGITS, logits)
            return record

        kept = self._keeping.store.build(key, PhaseRecord, make)
        if not kept.reused:  # else they are those of a later phase, which was interrupted
            self._keeping.store.discard(EPOCH_STAGE)
        self._previous = kept.digest
        labels = side.frozen.validation.labels
        judged_by = labels if side.judge is None else labels[side.judge]
        found = _Phase(kept.record, kept.folder, judged_by, self._class_weights)
        self.phases.append(found)
        self._tell(found, kept.reused)
        return found

    def _trained(
        self,
        purpose: Purpose,
        cut: Cut,
        peak: float,
        side: _Side,
        start: _Phase | None,
        key: StageKey,
    ) -> tuple[PhaseRecord, npt.NDArray[np.float32], Arrays]:
        """Trains and returns the record, the logits and the weights."""
        spec = self._spec
        before = {**self.start, **(start.weights() if start else {})}
        rows = len(side.frozen.train.labels) if side.learn is None else len(side.learn)
        planned = schedule(spec, purpose, rows, peak)
        again = purpose == "trial" or (purpose == "head" and self._read_again)
        feeds = side.frozen.feeds(self._place(cut), epochs=planned.epochs, again=again)
        self._foretell(purpose, cut, side.frozen, rows, planned.epochs)
        tail, trainer = self._trainer(cut, feeds["train"])
        tail.start(before)
        what = _name(purpose, cut.name)

        def done(epoch: int, record: EpochRecord) -> None:
            if self._epoch_done is not None:
                self._epoch_done(what, epoch, planned.epochs, record)

        result = fit(
            trainer,
            _part(feeds["train"], side.learn),
            _part(feeds["validation"], side.judge),
            schedule=planned,
            patience=planned.epochs,
            seed=self._seed,
            checkpoints=Checkpoints(self._keeping.store, replace(key, stage=EPOCH_STAGE)),
            class_weights=self._class_weights,
            epoch_done=done,
            progress=lambda last, *seen: self._progress(f"training {what}{last}", *seen),
        )
        trained = tail.arrays()
        judged_by = _part(feeds["validation"], side.judge).labels
        started = validation_losses(result.start, judged_by, self._class_weights)
        return (
            PhaseRecord(
                purpose=purpose,
                fold=side.fold,
                cut=cut.name,
                cut_index=cut.index,
                trainable_parameters=sum(value.size for value in trained.values()),
                training_pictures=rows,
                learning_rate=peak,
                start_loss=float(started.mean()),
                epochs=result.epochs,
                best_epoch=result.best_epoch,
                gradient_norms=_by_block(result, tail.names()),
                prefix=describe(feeds, side.frozen.departure),
            ),
            result.logits,
            trained,
        )

    def _trainer(self, cut: Cut, like: CutFeed) -> tuple[Tail, Trainer]:
        """Returns what trains from a cut, the same as for the phase before if that had this cut."""
        if self._traced is None or self._traced[0] != cut.name:
            # Traced functions refer to themselves; uncollected they pile up cut after cut.
            self._traced = None
            gc.collect()
            spec = self._spec
            nodes = split(self._nodes, cut.unfrozen)[1]
            tail = Tail(nodes, like.names, self.start, dropout=self._dropout, seed=self._seed)
            trainer = Trainer(
                tail,
                tail.trained(),
                len(like.names),
                _smoothed_cross_entropy(spec.label_smoothing, self._class_weights),
                like,
                batch_size=spec.batch_size,
                noise=tail.noise if self._dropout else None,
                averaging=AVERAGING,
            )
            self._traced = cut.name, tail, trainer
        return self._traced[1:]

    def _foretell(self, purpose: Purpose, cut: Cut, frozen: Frozen, rows: int, epochs: int) -> None:
        """Says what a phase will about take, if that is long; its trial tells the speed."""
        seconds, stored = frozen.outlook(epochs, rows)
        speeds = [
            epoch.images_per_second
            for phase in self.phases
            if phase.record.cut == cut.name and purpose == "final"
            for epoch in phase.record.epochs
        ]
        seconds += epochs * rows / max(speeds) if speeds else 0.0
        if seconds > _LONG_SECONDS:
            self._say(
                f"{_name(purpose, cut.name)}: {epochs} epochs of {rows:,} pictures, about "
                f"{_duration(seconds)}"
                f"{'' if speeds else ' for the frozen part'}, with {stored / 1e9:.1f} GB of "
                "activations on disk"
            )

    def _tell(self, phase: _Phase, reused: bool) -> None:
        record = phase.record
        best = record.epochs[record.best_epoch]
        rates = f"{np.median([epoch.images_per_second for epoch in record.epochs]):.0f} images/s"
        if record.prefix.images_per_second is not None:
            rates += f", frozen part {record.prefix.images_per_second:.0f} images/s"
        fold = "" if record.fold is None else f", fold {record.fold + 1} of {FOLDS}"
        self._say(
            f"{_name(record.purpose, record.cut)}{fold}: {record.trainable_parameters:,} "
            f"parameters, {len(record.epochs)} epochs, validation loss {best.validation_loss:.4f}, "
            f"top-1 {best.validation_accuracy:.2%}, "
            f"{'kept from before' if reused else f'{phase.seconds:.0f} s ({rates})'}"
        )
        if record.prefix.views_refused and not self._told_of_room:
            self._told_of_room = True
            self._say(
                f"note: there was no room to store {record.prefix.views_refused} of "
                f"{record.prefix.views} views (train.activations_budget_bytes, half of the free "
                "disk space); they are computed again in every epoch, with the same result"
            )


def _name(purpose: Purpose, cut: str) -> str:
    return cut if (purpose, cut) == ("head", HEAD) else f"{purpose} from {cut}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _part(feed: CutFeed, rows: Rows | None) -> Feed:
    return feed if rows is None else Part(feed, rows)


def _trial(cut: str, phases: Sequence[_Phase]) -> Trial:
    return Trial(
        cut,
        np.concatenate([phase.losses for phase in phases]),
        sum(phase.seconds for phase in phases),
        phases[0].record.trainable_parameters,
    )


def _worse(phase: _Phase, head: _Phase) -> bool:
    """Returns whether a phase ended above the head that it started from, beyond the noise."""
    return worse(_trial(phase.record.cut, [phase]), _trial(HEAD, [head]))


def _by_block(result: Fit, variables: Sequence[str]) -> Mapping[str, float]:
    """Returns the gradient norm of each block: the root of the summed squares of its variables."""
    squares: dict[str, float] = {}
    for layer, norm in zip(variables, result.gradient_norms, strict=True):
        block = HEAD if layer == LOGITS else block_of(layer)
        squares[block] = squares.get(block, 0.0) + norm**2
    return {block: float(np.sqrt(total)) for block, total in squares.items()}


def _smoothed_cross_entropy(
    smoothing: float, class_weights: Sequence[float] | None
) -> Callable[[Sequence[Any], Any, Any], Any]:
    def loss(_tensors: Sequence[Any], labels: Any, logits: Any) -> Any:
        classes = logits.shape[-1]
        targets = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        return tf.nn.softmax_cross_entropy_with_logits(targets, unshifted(logits, class_weights))

    return loss


def _check(model: Any, pictures: Pictures, logits: npt.NDArray[np.float32], warn: Say) -> None:
    """Holds the shipped network against what the phase that trained it answered."""
    shown = pictures.images[:CHECKED_PICTURES].astype(np.float32)
    answers = model(pictures.normalize(shown), training=False).numpy()
    expected = logits[: len(shown)]
    off = np.sqrt(np.square(answers - expected).mean() / max(np.square(expected).mean(), 1e-9))
    if not np.isfinite(off):
        raise ConversionError(
            "the trained network answers with NaN or infinity, and its training did not",
            "finite logits",
            "report this with the recipe; it is a bug in edgekit",
        )
    if off > CLOSE:
        warn(
            f"the trained network departs by {off:.2g} of its logits from its own training, where "
            f"at most {CLOSE} is usual; what is exported is judged by its own answers"
        )
