"""One phase of training: epochs over decoded pictures until the loss stops improving."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from edgekit.errors import TrainingError
from edgekit.fitting.augment import Augmentation, apply, draw
from edgekit.records import EpochRecord, Preprocess, SplitName

# images -> the tensors at the boundary; (images, labels, logits) -> mean loss
Prefix = Callable[[Any], Sequence[Any]]
Loss = Callable[[Any, Any, Any], Any]
EpochDone = Callable[[int, EpochRecord], None]
_EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Pictures:
    """One decoded split.

    Args:
        images: uint8 (n, h, w, 3), usually memory-mapped.
        labels: int32 (n,).
        preprocess: The contract that turns pixels into real values.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    preprocess: Preprocess

    @staticmethod
    def load(folder: Path, split: SplitName, preprocess: Preprocess) -> "Pictures":
        """Opens a split that the data stage wrote."""
        return Pictures(
            np.load(folder / f"{split}.images.npy", mmap_mode="r"),
            np.load(folder / f"{split}.labels.npy"),
            preprocess,
        )

    def normalize(self, pixels: Any) -> Any:
        """Returns the real values of a pixel tensor under the contract, float32."""
        scale = tf.constant(self.preprocess.scale, tf.float32)
        return tf.cast(pixels, tf.float32) * scale + tf.constant(self.preprocess.offset, tf.float32)

    def batches(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yields the pictures in order, 64 at a time."""
        for start in range(0, len(self.images), _EVALUATION_BATCH):
            yield np.ascontiguousarray(self.images[start : start + _EVALUATION_BATCH])


@dataclass(frozen=True)
class Fit:
    """Outcome of one phase: its curve, and which epoch the tail was left with."""

    epochs: tuple[EpochRecord, ...]
    best_epoch: int


def fit(
    prefix: Prefix,
    tail: tf_keras.Model,
    loss: Loss,
    train: Pictures,
    validation: Pictures,
    *,
    learning_rates: Sequence[float],
    patience: int,
    batch_size: int,
    augmentation: Augmentation | None,
    seed: int,
    first_epoch: int,
    epoch_done: EpochDone,
    set_clock: Callable[[int], None] | None = None,
) -> Fit:
    """Trains the trainable variables of `tail` with Adam and leaves the best epoch's in place.

    Args:
        prefix: The frozen part: normalized float32 (n, h, w, 3) to the tail's inputs.
        tail: The part that trains: a model from those inputs to logits (n, classes).
        loss: Mean loss of a batch.
        train: Pictures to learn from.
        validation: Pictures whose cross-entropy picks the epoch and stops the phase.
        learning_rates: One per epoch; its length is the largest number of epochs.
        patience: Epochs without a lower validation loss before the phase stops.
        batch_size: Pictures per step.
        augmentation: Random changes, or None.
        seed: Seed of the recipe.
        first_epoch: Number of the first epoch in the whole run; order and augmentation follow
            from (seed, epoch, row).
        epoch_done: Called after every epoch with its number in the phase.
        set_clock: Called before each step with its number in the whole run, for layers that draw
            random numbers. Defaults to None: there are none.

    Raises:
        TrainingError: If the loss stops being finite.
    """
    optimizer = tf_keras.optimizers.Adam(learning_rates[0])
    step = _training_step(prefix, tail, loss, train, optimizer)
    classify = compiled(lambda images: tail(prefix(images), training=False), validation)
    records: list[EpochRecord] = []
    best, best_loss = 0, np.inf
    best_variables = [variable.numpy() for variable in tail.variables]
    for epoch, rate in enumerate(learning_rates):
        started = time.monotonic()
        optimizer.learning_rate.assign(rate)
        total = np.zeros(2)
        batches = _epoch(train, batch_size, augmentation, seed, first_epoch + epoch)
        for number, batch in enumerate(batches, (first_epoch + epoch) * len(train.labels)):
            if set_clock is not None:
                set_clock(number)
            total += step(*batch).numpy()
        mean_loss, accuracy = total / len(train.labels)
        logits = classify()
        record = EpochRecord(
            train_loss=_finite(mean_loss),
            train_accuracy=accuracy,
            validation_loss=_finite(cross_entropy(logits, validation.labels)),
            validation_accuracy=float((logits.argmax(1) == validation.labels).mean()),
            seconds=time.monotonic() - started,
        )
        records.append(record)
        if record.validation_loss < best_loss:
            best, best_loss = epoch, record.validation_loss
            best_variables = [variable.numpy() for variable in tail.variables]
        epoch_done(epoch, record)
        if epoch - best >= patience:
            break
    for variable, value in zip(tail.variables, best_variables, strict=True):
        variable.assign(value)
    # Traced functions refer to themselves; uncollected they pile up phase after phase.
    del step, classify
    gc.collect()
    return Fit(tuple(records), best)


def compiled(
    function: Callable[[Any], Any], pictures: Pictures
) -> Callable[[], npt.NDArray[np.float32]]:
    """Returns a call that answers all pictures with the function's current variables.

    Args:
        function: Normalized float32 images (n, h, w, 3) to float32 logits (n, classes).
        pictures: What to answer; read 64 at a time.
    """
    batch = tf.function(
        lambda pixels: function(pictures.normalize(pixels)),
        input_signature=[tf.TensorSpec((None, *pictures.images.shape[1:]), tf.uint8)],
        autograph=False,
    )
    return lambda: np.concatenate([batch(pixels).numpy() for pixels in pictures.batches()])


def _training_step(
    prefix: Prefix, tail: tf_keras.Model, loss: Loss, train: Pictures, optimizer: Any
) -> Callable[..., Any]:
    variables = tail.trainable_variables
    optimizer.build(variables)
    pixel_shape = (None, *train.images.shape[1:])

    signature = [
        tf.TensorSpec(pixel_shape, tf.uint8),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None, 8), tf.float32),
        tf.TensorSpec((None,), tf.float32),
        tf.TensorSpec((None,), tf.float32),
    ]

    def step(pixels: Any, labels: Any, transforms: Any, gain: Any, lift: Any) -> Any:
        changed = apply(pixels, transforms, gain, lift)
        images = train.normalize(changed)
        entering = [tf.stop_gradient(tensor) for tensor in prefix(images)]
        with tf.GradientTape() as tape:
            logits = tail(entering, training=True)
            value = loss(images, labels, logits)
        optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))
        count = tf.cast(tf.shape(labels)[0], tf.float32)
        right = tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32)
        return tf.stack([value * count, tf.reduce_sum(right)])

    compiled_step: Callable[..., Any] = tf.function(
        step, input_signature=signature, autograph=False
    )
    return compiled_step


def _epoch(
    train: Pictures, batch_size: int, augmentation: Augmentation | None, seed: int, epoch: int
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    count = len(train.labels)
    height, width = train.images.shape[1:3]
    still = Augmentation(flip=False, shift=0, zoom=0, brightness=0, contrast=0)
    draws = draw(
        augmentation or still, count=count, size_px=(height, width), seed=seed, epoch=epoch
    )
    order = np.random.default_rng((seed, epoch, 0x0D)).permutation(count)
    for start in range(0, count, batch_size):
        rows = np.sort(order[start : start + batch_size])
        yield (
            train.images[rows],
            train.labels[rows],
            draws.transforms[rows],
            draws.gain[rows],
            draws.lift[rows],
        )


def cross_entropy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> float:
    """Returns the mean natural-log cross-entropy of logits (n, k) against labels (n,)."""
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller refuses
        shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    chosen = shifted[np.arange(len(labels)), labels]
    return float((np.log(np.exp(shifted).sum(1)) - chosen).mean())


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise TrainingError(
            f"the loss became {value}",
            "a finite loss",
            "lower the learning rate in the recipe",
        )
    return float(value)
