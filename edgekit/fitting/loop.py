"""One phase of training: epochs over stored activations until the loss stops improving."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.errors import TrainingError
from edgekit.fitting import cores
from edgekit.fitting.checkpoints import Checkpoints
from edgekit.fitting.feed import Feed
from edgekit.fitting.losses import validation_losses
from edgekit.fitting.pictures import EVALUATED_ROWS
from edgekit.records import CheckpointRecord, EpochRecord

# (tensors of the feed, labels, logits) -> losses (n,)
Loss = Callable[[Sequence[Any], Any, Any], Any]
# (number of the step, its rows) -> random numbers (rows, ...)
Noise = Callable[[Any, Any], Any]
EpochDone = Callable[[int, EpochRecord], None]
# (in words, done, in all)
Progress = Callable[[str, int, int], None]
# Adam as in arXiv:1412.6980 with the constants that tf_keras takes.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7
# Entering bytes of one call, which takes many small steps or few large ones.
_CALL_BYTES = 16_000_000
_WATCHED_STEPS = 8
# Fewest pictures of a share of a batch, which costs 1.2 times as much by eights as by sixteens
# (alpha 0.35, 96 px, from block_6), and most shares, each of which is traced. Conventions.
_LEAST_ROWS, _MOST_SHARES = 4, 8
_SHUFFLED_BYTES = 4_000_000_000
_BLOCK_ROWS, _WINDOW_BLOCKS = 256, 64
# Decay a step of the mean of the trained variables that is validated and ships; about the last 100
# steps. Validation loss of int8 without and with it (clothing pictures, alpha 0.35, 96 px): 0.6299
# and 0.6196 (3e-4, seed 1), 0.6100 and 0.6073 (3e-4, seed 3), 0.4939 and 0.4736 (1e-3, seed 3).
AVERAGING = 0.99


class Trainable(Protocol):
    """What is fitted: a `network.tail.Tail`, or a Keras model, which needs no noise."""

    variables: Sequence[Any]

    def __call__(self, entering: Any, *noise: Any) -> Any:
        """Returns float32 logits (n, classes); a step of a noisy one gives its noise as well."""


@dataclass(frozen=True)
class Schedule:
    """A learning rate for every step: up to its peak along a line, then to zero along a cosine.

    Cosine: Loshchilov, Hutter, arXiv:1608.03983, formula 5, without restarts; linear warm-up:
    Goyal et al., arXiv:1706.02677, section 2.2.

    Args:
        peak: Learning rate behind the warm-up.
        epochs: Length of the whole schedule, as long as no patience ends it.
        warmup_steps: Steps of the warm-up; never more than a quarter of all steps are.
    """

    peak: float
    epochs: int
    warmup_steps: int

    def lengths(self, epoch_steps: int) -> tuple[int, int]:
        """Returns the steps of the warm-up and of the whole, for so many steps an epoch."""
        total = self.epochs * epoch_steps
        return max(1, min(self.warmup_steps, total // 4)), total


def unshifted(logits: Any, class_weights: Sequence[float] | None) -> Any:
    """Returns logits without what the weights of their classes put on top; traced.

    Args:
        logits: float32 (n, classes).
        class_weights: Of each class, see `fitting.class_weights`; None for 1.
    """
    return logits if class_weights is None else logits - tf.math.log(tf.constant(class_weights))


def learning_rate(step: Any, peak: Any, warmup: Any, total: Any) -> Any:
    """Returns the rate of a step under a `Schedule`, float32; traced.

    Args:
        step: Its number in the phase, from 0, a float32 tensor.
        peak: Learning rate behind the warm-up, a number or a float32 tensor, as the others.
        warmup: Steps of the warm-up.
        total: Steps of the whole.
    """
    done = tf.clip_by_value((step - warmup) / tf.maximum(1.0, total - warmup), 0.0, 1.0)
    falling = 0.5 * (1 + tf.cos(math.pi * done))
    return peak * tf.minimum((step + 1) / warmup, 1.0) * falling


def enough_epochs(epochs: int, steps: float, rows: int, batch_size: int) -> int:
    """Returns the epochs that are asked for, or as many as it takes to make so many steps.

    A few hundred pictures make a dozen steps an epoch: less than a warm-up and a mean over a
    hundred steps need.

    Args:
        epochs: Epochs asked for.
        steps: Fewest steps.
        rows: Pictures of an epoch.
        batch_size: Pictures of a step.
    """
    return max(epochs, math.ceil(steps / math.ceil(rows / batch_size)))


@dataclass(frozen=True)
class Fit:
    """Outcome of one phase.

    Args:
        epochs: Its curve.
        best_epoch: The epoch whose variables were left in place.
        start: Validation logits before the first step, float32 (n, classes).
        logits: Validation logits of the best epoch, float32 (n, classes).
        gradient_norms: For each trained variable, the root mean square of its gradient's norm over
            the first steps, at most 8.
    """

    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    start: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    gradient_norms: tuple[float, ...]


class Trainer:
    """What trains, with its optimizer, traced once for all phases that train the same variables.

    Args:
        tail: The part that trains: float32 tensors to logits (n, classes).
        trained: Its variables that Adam updates.
        inputs: How many of a feed's tensors enter it; the loss sees all of them.
        loss: Loss of each picture, float32 (n,), of the feed's float32 tensors, int32 labels (n,)
            and float32 logits (n, classes).
        like: A feed with the shapes and the type of all to come.
        batch_size: Rows per step.
        noise: Called with the number of the step in its phase, from 0, and its rows, both int32
            tensors, for a tail that needs random numbers (rows, ...) to train. Defaults to None: it
            needs none.
        averaging: Decay a step of the exponential mean of the trained variables, from 0 to 1. Only
            what steps made of them counts, not what they were before the first: the correction of
            Adam's moments (Kingma, Ba, arXiv:1412.6980, section 3). Unless it is 0, the mean stands
            in for them in validation and is what is left in place. Defaults to 0.
    """

    def __init__(
        self,
        tail: Trainable,
        trained: Sequence[Any],
        inputs: int,
        loss: Loss,
        like: Feed,
        *,
        batch_size: int,
        noise: Noise | None = None,
        averaging: float = 0.0,
    ) -> None:
        self.batch_size = batch_size
        self.state = _State(tail, trained, averaging)
        entering = tuple(tf.TensorSpec((None, *shape), like.dtype) for shape in like.shapes)
        self.take_steps = _steps(tail, inputs, loss, noise, self.state, batch_size, entering)
        self._logits = tf.function(
            lambda tensors: tail([tf.cast(each, tf.float32) for each in tensors[:inputs]]),
            input_signature=[entering],
            autograph=False,
        )

    def classify(self, feed: Feed) -> tuple[npt.NDArray[np.float32], float]:
        """Returns the logits of all rows, float32 (n, classes), and the seconds in the tail."""
        answers: list[npt.NDArray[np.float32]] = []
        seconds = 0.0
        every = np.arange(len(feed.labels))
        read = EVALUATED_ROWS * cores.COUNT
        for start in range(0, len(every), read):
            tensors = feed.read(0, every[start : start + read])
            begun = time.monotonic()
            parts = [
                tuple(tensor[first : first + EVALUATED_ROWS] for tensor in tensors)
                for first in range(0, len(tensors[0]), EVALUATED_ROWS)
            ]
            answers += cores.each(lambda part: self._logits(part).numpy(), parts)
            seconds += time.monotonic() - begun
        return np.concatenate(answers), seconds


def fit(
    trainer: Trainer,
    train: Feed,
    validation: Feed,
    *,
    schedule: Schedule,
    patience: int,
    seed: int,
    checkpoints: Checkpoints,
    class_weights: Sequence[float] | None = None,
    epoch_done: EpochDone | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Trains from the variables as they are and leaves the best epoch's in place.

    Args:
        trainer: What trains; of its optimizer nothing is left of a phase before.
        train: What to learn from.
        validation: Its loss, see `validation_losses`, picks the epoch and stops the phase.
        schedule: Learning rate of every step, and the largest number of epochs.
        patience: Epochs without a lower validation loss before the phase stops.
        seed: Seed of the recipe; order and view follow from it and the number of the epoch.
        checkpoints: Where every finished epoch is kept; a phase that was interrupted continues
            behind the last one, on as many cores with the same bits as if it had not been.
        class_weights: As in `validation_losses`. Defaults to None.
        epoch_done: Called after every epoch with its number in the phase, when it is kept.
        progress: Called as steps are taken with the last epoch in words, pictures seen, and
            pictures of the whole phase.

    Raises:
        TrainingError: If the loss stops being finite.
    """
    state, count = trainer.state, len(train.labels)
    epoch_steps = math.ceil(count / trainer.batch_size)
    state.begin(schedule, epoch_steps)
    validation.prepare(0)
    kept = checkpoints.latest(schedule.epochs)
    if kept is None:
        records: list[EpochRecord] = []
        best, norms = 0, tuple[float, ...]()
        state.remember("start", trainer.classify(validation)[0])
    else:
        state.load(kept.arrays)
        records, best = list(kept.record.epochs), kept.record.best_epoch
        norms = kept.record.gradient_norms
    for epoch in range(len(records), schedule.epochs):
        if records and epoch - 1 - best >= patience:
            break
        train.prepare(epoch)
        totals, stepping, pictures = np.zeros(2), 0.0, epoch * count
        for call in _calls(train, trainer.batch_size, seed, epoch):
            begun = time.monotonic()
            seen, squared_norms = trainer.take_steps(*call)
            totals += seen.numpy()
            norms = norms or tuple(float(norm) for norm in np.sqrt(squared_norms.numpy()))
            stepping += time.monotonic() - begun
            pictures += len(call[1])
            if progress is not None:
                progress(_last_in_words(records), pictures, schedule.epochs * count)
        state.swap_averages()
        answers, validating = trainer.classify(validation)
        record = EpochRecord(
            train_loss=_finite(totals[0] / count),
            train_accuracy=totals[1] / count,
            validation_loss=_finite(
                validation_losses(answers, validation.labels, class_weights).mean()
            ),
            validation_accuracy=float((answers.argmax(1) == validation.labels).mean()),
            seconds=stepping + validating,
            images_per_second=count / stepping,
        )
        records.append(record)
        if epoch == 0 or record.validation_loss < records[best].validation_loss:
            best = epoch
            state.remember("best", answers)
        state.swap_averages()
        checkpoints.save(
            CheckpointRecord(epochs=tuple(records), best_epoch=best, gradient_norms=norms),
            state.arrays(),
        )
        if epoch_done is not None:
            epoch_done(epoch, record)
    state.restore_best()
    return Fit(tuple(records), best, state.kept["start"], state.kept["best"], norms)


class _State:
    """Everything that changes while a phase trains, as variables and as arrays."""

    def __init__(self, tail: Trainable, trained: Sequence[Any], averaging: float) -> None:
        self.trained = list(trained)
        self._averaging = averaging
        # With their variables.
        self._averages = [(tf.Variable(variable), variable) for variable in trained if averaging]
        # Peak, steps of the warm-up and of the whole.
        self._schedule = [tf.Variable(0.0) for _ in range(3)]
        self.means = [tf.Variable(tf.zeros_like(variable)) for variable in self.trained]
        self.squares = [tf.Variable(tf.zeros_like(variable)) for variable in self.trained]
        self.done = tf.Variable(0, dtype=tf.int32)  # steps of the phase
        self._of_tail = list(tail.variables)
        averages = [average for average, _ in self._averages]
        self._all = [*self._of_tail, *self.means, *self.squares, *averages, self.done]
        self._best = np.empty(0, np.uint8)  # the tail's variables, see `_flat`
        # Validation logits before the first step ("start") and of the best epoch ("best").
        self.kept: dict[str, npt.NDArray[np.float32]] = {}

    def begin(self, schedule: Schedule, epoch_steps: int) -> None:
        """Starts a phase from the variables as they are."""
        for variable in (*self.means, *self.squares, self.done):
            variable.assign(tf.zeros_like(variable))
        for average, variable in self._averages:
            average.assign(variable)
        numbers = schedule.peak, *schedule.lengths(epoch_steps)
        for variable, number in zip(self._schedule, numbers, strict=True):
            variable.assign(number)
        self._best, self.kept = np.empty(0, np.uint8), {}

    def rate(self, step: Any) -> Any:
        """Returns the learning rate of a step, from 0; traced."""
        return learning_rate(step, *self._schedule)

    def average(self) -> None:
        """Moves the averages towards the trained variables by one step; traced."""
        power = tf.pow(self._averaging, tf.cast(self.done, tf.float32))
        decay = (self._averaging - power) / (1 - power)
        for average, variable in self._averages:
            average.assign_add((1 - decay) * (variable - average))

    def swap_averages(self) -> None:
        """Exchanges the trained variables and their averages, if any are kept."""
        averages = [average for average, _ in self._averages]
        variables = [variable for _, variable in self._averages]
        held, mean = _read(variables), _read(averages)
        _write(variables, mean)
        _write(averages, held)

    def remember(self, what: str, logits: npt.NDArray[np.float32]) -> None:
        """Keeps validation logits, and the tail's variables if they are of the best epoch."""
        self.kept[what] = logits
        if what == "best":
            self._best = _flat(self._of_tail)

    def restore_best(self) -> None:
        """Gives the tail the variables of the best epoch."""
        _spread(self._best, self._of_tail)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns what `load` needs to go on from here."""
        logits = {f"logits/{what}": value for what, value in self.kept.items()}
        return {"now": _flat(self._all), "best": self._best, **logits}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Puts back what `arrays` returned."""
        _spread(arrays["now"], self._all)
        self._best = arrays["best"]
        self.kept = {what: arrays[f"logits/{what}"] for what in ("start", "best")}


def _read(variables: Sequence[Any]) -> list[Any]:
    """Returns what variables hold, several times as fast as their own methods.

    Epochs of few pictures are short, and there may be a thousand of them.
    """
    read = tf.raw_ops.ReadVariableOp
    return [read(resource=variable.handle, dtype=variable.dtype) for variable in variables]


def _write(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)


def _flat(variables: Sequence[Any]) -> npt.NDArray[np.uint8]:
    """Returns the bytes of variables in one; a file of hundreds takes several times as long."""
    return np.concatenate([np.ravel(value.numpy()).view(np.uint8) for value in _read(variables)])


def _spread(content: npt.NDArray[np.uint8], variables: Sequence[Any]) -> None:
    """Puts back what `_flat` returned."""
    sizes = [math.prod(each.shape) * each.dtype.size for each in variables]
    parts = np.split(content, np.cumsum(sizes)[:-1])
    values = [
        part.view(each.dtype.as_numpy_dtype).reshape(each.shape)
        for part, each in zip(parts, variables, strict=True)
    ]
    _write(variables, values)


def _shares(batch_size: int) -> int:
    """Returns into how many parts a batch is cut, one for each core."""
    return max(1, min(cores.COUNT, _MOST_SHARES, batch_size // _LEAST_ROWS))


def _steps(
    tail: Trainable,
    inputs: int,
    loss: Loss,
    noise: Noise | None,
    state: _State,
    batch_size: int,
    entering: tuple[Any, ...],
) -> Callable[..., Any]:
    """Returns a function that takes as many steps as the rows of a call make batches.

    Every core computes the gradients of its own share of a batch, which add up to those of the
    whole. The operations of a tail are too small to be cut: at alpha 0.35 and 96 px from block_6 on
    two cores, a step takes 19.3 ms with each operation cut in two and 10.9 ms this way (0.57).
    """
    shares = _shares(batch_size)

    def adam(gradients: list[Any]) -> None:
        power = tf.cast(state.done.assign_add(1), tf.float32)
        rate = state.rate(power - 1)
        for variable, mean, square, gradient in zip(
            state.trained, state.means, state.squares, gradients, strict=True
        ):
            # One fused operation; tf_keras's Adam makes seven passes over every variable.
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=mean.handle,
                v=square.handle,
                beta1_power=tf.pow(_BETA_1, power),
                beta2_power=tf.pow(_BETA_2, power),
                lr=rate,
                beta1=_BETA_1,
                beta2=_BETA_2,
                epsilon=_EPSILON,
                grad=gradient,
            )

    def share(tensors: Sequence[Any], answers: Any, counts: Any, *drawn: Any) -> Any:
        """Returns the sums of gradients, and those of losses and right answers."""
        with tf.GradientTape() as tape:
            logits = tail(tensors[:inputs], *drawn)
            value = counts * tf.reduce_sum(loss(tensors, answers, logits))
        right = tf.cast(tf.argmax(logits, 1, tf.int32) == answers, tf.float32)
        return tape.gradient(value, state.trained), tf.stack([value, counts * tf.reduce_sum(right)])

    def calls(entering: tuple[Any, ...], labels: Any) -> Any:
        rows = tf.shape(labels)[0]

        def batch(start: Any, totals: Any, squared: Any) -> Any:
            size = tf.minimum(batch_size, rows - start)
            drawn = () if noise is None else (noise(tf.identity(state.done), size),)
            parts, seen = [], []
            for part in range(shares):
                first, last = (size * end // shares for end in (part, part + 1))
                # Of fewer rows than shares some get none, which oneDNN's convolutions do not bear:
                # they take one that does not count.
                counts = tf.cast(last > first, tf.float32)
                first = tf.minimum(first, size - 1)
                last = tf.maximum(last, first + 1)
                mine = slice(start + first, start + last)
                gradients, sums = share(
                    [tf.cast(tensor[mine], tf.float32) for tensor in entering],
                    labels[mine],
                    counts,
                    *(each[first:last] for each in drawn),
                )
                parts.append(gradients)
                seen.append(sums)
            count = tf.cast(size, tf.float32)
            gradients = [tf.add_n(each) / count for each in zip(*parts, strict=True)]
            adam(gradients)
            state.average()
            norms = tf.stack([tf.reduce_sum(tf.square(gradient)) for gradient in gradients])
            return start + size, totals + tf.add_n(seen), squared + norms

        _, totals, squared = tf.while_loop(
            lambda start, *_: start < rows,
            batch,
            (0, tf.zeros(2), tf.zeros(len(state.trained))),
            parallel_iterations=1,
        )
        steps = tf.cast(tf.math.ceil(rows / batch_size), tf.float32)
        return totals, squared / steps

    signature = [entering, tf.TensorSpec((None,), tf.int32)]
    compiled_calls: Callable[..., Any] = tf.function(
        calls, input_signature=signature, autograph=False
    )
    return compiled_calls


def _calls(
    train: Feed, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[tuple[npt.NDArray[Any], ...], npt.NDArray[np.int32]]]:
    """Yields the rows of an epoch in its order; the first few batches alone, to watch them."""
    count = len(train.labels)
    order = epoch_order(count, train.source_bytes, np.random.default_rng((seed, epoch, 0x0D)))
    row_bytes = sum(math.prod(shape) for shape in train.shapes) * train.dtype.itemsize
    batches = max(1, _CALL_BYTES // (batch_size * row_bytes))
    start, stop = 0, min(_WATCHED_STEPS, batches) * batch_size
    while start < count:
        rows = order[start:stop]
        yield train.read(epoch, rows), train.labels[rows]
        start, stop = stop, stop + batches * batch_size


def epoch_order(
    count: int, source_bytes: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Returns the rows of an epoch in a random order.

    Pictures that may not fit into memory are read in blocks of 256 neighbouring rows: 64 random
    blocks at a time, all rows of which are mixed.

    Args:
        count: Number of rows.
        source_bytes: Bytes of their decoded pictures; above 4 GB there are blocks.
        random: Where the order comes from.
    """
    if source_bytes <= _SHUFFLED_BYTES:
        return random.permutation(count)
    blocks = random.permutation(-(-count // _BLOCK_ROWS))
    windows = []
    for start in range(0, len(blocks), _WINDOW_BLOCKS):
        first = blocks[start : start + _WINDOW_BLOCKS] * _BLOCK_ROWS
        rows = (first[:, None] + np.arange(_BLOCK_ROWS)).ravel()
        windows.append(random.permutation(rows[rows < count]))
    return np.concatenate(windows)


def _last_in_words(epochs: Sequence[EpochRecord]) -> str:
    if not epochs:
        return ""
    last = epochs[-1]
    return (
        f": {last.images_per_second:.0f} images/s, validation loss {last.validation_loss:.3f}, "
        f"top-1 {last.validation_accuracy:.1%}"
    )


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise TrainingError(
            f"the loss became {value}",
            "a finite loss",
            "lower the learning rate in the recipe",
        )
    return float(value)
