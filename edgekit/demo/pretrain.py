"""Pretrains the demo's backbone: `python -m edgekit.demo.pretrain --out edgekit/demo/weights.npz`.

Takes 12 to 24 minutes on two processors, depending on what else they do, and is run by hand when
the pretraining task changes; the demo itself only reads the file. The file holds float16 arrays of
the backbone (no head), keyed `layer/variable`: kernel, depthwise_kernel, gamma, beta, moving_mean
and moving_variance, for MobileNetV2 with alpha 0.35 on RGB values `pixel / 128 - 1`.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from edgekit.demo.pretraining_task import CLASS_NAMES, EASY, make_arrays

SEED = 7
ALPHA = 0.35
SIZE_PX = 96
TRAIN_PER_CLASS = 480
HELD_OUT_PER_CLASS = 20
EASY_EPOCHS = 5
HARD_EPOCHS = 23
BATCH = 64
PEAK_RATE = 2e-3
WARMUP_STEPS = 300
LABEL_SMOOTHING = 0.05
BATCHNORM_MOMENTUM = 0.99
SMALLEST_VARIANCE = 6.2e-5  # the least float16 value with full precision is 6.104e-5
THREADS = 2


def pretrain(
    seed: int = SEED, easy_epochs: int = EASY_EPOCHS, hard_epochs: int = HARD_EPOCHS
) -> tuple[tf_keras.Model, float]:
    """Trains the backbone and a head on the pretraining task.

    Args:
        seed: Seed of pictures, weights and order. Defaults to 7.
        easy_epochs: Passes over pictures with little clutter, which get the training going:
            without them the loss stays at chance for epochs. Defaults to 5.
        hard_epochs: Passes over the pictures of `HARD`. Defaults to 23.

    Returns:
        The backbone, input float32 (n, 96, 96, 3), and the top-1 accuracy from 0 to 1 that it and
        its head reach on held-out pictures.
    """
    tf_keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    easy = make_arrays(TRAIN_PER_CLASS, seed=seed + 2, size_px=SIZE_PX, conditions=EASY)
    hard = make_arrays(TRAIN_PER_CLASS, seed=seed, size_px=SIZE_PX)
    held_images, held_labels = make_arrays(HELD_OUT_PER_CLASS, seed=seed + 1, size_px=SIZE_PX)
    held = (normalised(held_images), np.eye(len(CLASS_NAMES), dtype=np.float32)[held_labels])

    backbone = tf_keras.applications.MobileNetV2(
        input_shape=(SIZE_PX, SIZE_PX, 3), alpha=ALPHA, include_top=False, weights=None
    )
    for layer in backbone.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = BATCHNORM_MOMENTUM
    features = tf_keras.layers.GlobalAveragePooling2D()(backbone.output)
    model = tf_keras.Model(backbone.input, tf_keras.layers.Dense(len(CLASS_NAMES))(features))
    steps = len(hard[0]) // BATCH
    epochs = easy_epochs + hard_epochs
    schedule = tf_keras.optimizers.schedules.CosineDecay(
        0.0, epochs * steps - WARMUP_STEPS, warmup_target=PEAK_RATE, warmup_steps=WARMUP_STEPS
    )
    model.compile(
        optimizer=tf_keras.optimizers.AdamW(schedule, weight_decay=1e-3),
        loss=tf_keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=LABEL_SMOOTHING
        ),
        metrics=["accuracy"],
    )
    for (images, labels), first, last in ((easy, 0, easy_epochs), (hard, easy_epochs, epochs)):
        model.fit(
            _batches(images, labels, seed + first),
            steps_per_epoch=steps,
            initial_epoch=first,
            epochs=last,
            validation_data=held,
            verbose=2,
        )
    _, accuracy = model.evaluate(*held, verbose=0)
    return backbone, float(accuracy)


def normalised(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Returns the network input of uint8 images: float32 of the same shape, `pixel / 128 - 1`."""
    return images.astype(np.float32) / np.float32(128) - np.float32(1)


def backbone_arrays(backbone: tf_keras.Model) -> dict[str, npt.NDArray[np.float16]]:
    """Returns the weights of the backbone as float16 arrays, keyed `layer/variable`.

    Variances below the precise range of float16 are raised to it.

    Raises:
        OverflowError: If a weight does not fit into float16.
    """
    arrays: dict[str, npt.NDArray[np.float16]] = {}
    for weight in backbone.weights:
        key = weight.name.split(":")[0]
        value = weight.numpy()
        if key.endswith("/moving_variance"):
            value = np.maximum(value, np.float32(SMALLEST_VARIANCE))
        half = value.astype(np.float16)
        if not np.isfinite(half).all():
            msg = f"{key} reaches {np.abs(value).max()}, more than float16 can hold"
            raise OverflowError(msg)
        arrays[key] = half
    return arrays


def _batches(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], seed: int
) -> tf.data.Dataset:
    """Returns `_augmented_batches` as an endless data set: images and one-hot targets, float32."""
    signature = (
        tf.TensorSpec((BATCH, SIZE_PX, SIZE_PX, 3), tf.float32),
        tf.TensorSpec((BATCH, len(CLASS_NAMES)), tf.float32),
    )
    return tf.data.Dataset.from_generator(
        lambda: _augmented_batches(images, labels, np.random.default_rng(seed)),
        output_signature=signature,
    ).prefetch(2)


def _augmented_batches(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], rng: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Yields shuffled batches without end: mirrored, turned by 90 degrees, channels permuted."""
    targets = np.eye(len(CLASS_NAMES), dtype=np.float32)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            batch = images[rows]
            for picture in batch:
                view = np.rot90(picture, int(rng.integers(4)))
                if rng.random() < 0.5:
                    view = view[:, ::-1]
                picture[:] = view[:, :, rng.permutation(3)].copy()
            yield normalised(batch), targets[labels[rows]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; prints the curve, the accuracy and the size of the file."""
    parser = argparse.ArgumentParser(prog="python -m edgekit.demo.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file to write, .npz")
    options = parser.parse_args(arguments)
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    started = time.monotonic()
    backbone, accuracy = pretrain()
    arrays: dict[str, Any] = dict(backbone_arrays(backbone))
    np.savez_compressed(options.out, **arrays)
    sys.stdout.write(
        f"held-out accuracy {accuracy:.4f}, {options.out.stat().st_size} bytes, "
        f"{time.monotonic() - started:.0f} s\n"
    )


if __name__ == "__main__":
    main()
