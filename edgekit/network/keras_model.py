"""The Keras side of the network: build it, read and write its arrays. Imports TensorFlow."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from edgekit.network.graph import FLATTEN, INPUT, LOGITS, Arrays, Node, for_channels, relu_name

_BATCH_NORM = tf_keras.layers.BatchNormalization
# TensorFlow warns about newly traced functions; each cut needs its own.
logging.getLogger("tensorflow").setLevel(logging.ERROR)


def make_deterministic(seed: int) -> None:
    """Seeds Python, NumPy and TensorFlow and asks for deterministic kernels."""
    tf_keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def build(
    *,
    alpha: float,
    input_size_px: tuple[int, int],
    channels: int = 3,
    class_count: int,
    weights: Arrays | None,
    seed: int,
) -> tf_keras.Model:
    """Returns MobileNetV2 with a new head of global average pooling and dense logits.

    Args:
        alpha: Width multiplier.
        input_size_px: Height and width of the input, each at least 32.
        channels: 3, or 1 for luma. Defaults to 3.
        class_count: Number of logits.
        weights: Arrays of the backbone, as `network.starting_weights` reads them; None for random
            ones. They have three channels, see `network.graph.for_channels`.
        seed: Seed of the head's initial weights.

    Returns:
        Flat functional model from float32 (n, h, w, channels) to float32 logits (n, class_count).

    Raises:
        ValueError: If an array of the backbone is missing or has another shape.
    """
    backbone = tf_keras.applications.MobileNetV2(
        input_shape=(*input_size_px, channels), alpha=alpha, include_top=False, weights=None
    )
    if weights is not None:
        assign(backbone, for_channels(weights, channels))
    layers = tf_keras.layers
    pooled = layers.GlobalAveragePooling2D(keepdims=True, name="global_average_pool")(
        backbone.output
    )
    initial = tf_keras.initializers.GlorotUniform(seed=seed)
    # A dense layer written as a 1 x 1 convolution: every runtime quantizes those per channel.
    dense = layers.Conv2D(class_count, 1, kernel_initializer=initial, name=LOGITS)(pooled)
    logits = layers.Reshape((class_count,), name=FLATTEN)(dense)
    return tf_keras.Model(backbone.input, logits, name="mobilenet_v2")


def take_statistics(model: tf_keras.Model, images: npt.NDArray[np.float32]) -> None:
    """Sets the statistics of every BatchNorm to those of a batch, for weights that are random.

    Without it the signal of a random network shrinks from layer to layer until nothing is left.

    Args:
        model: The model to change.
        images: Normalized float32 pictures (n, h, w, 3).
    """
    layers = [each for each in model.layers if isinstance(each, _BATCH_NORM)]
    kept = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(layers, kept, strict=True):
        layer.momentum = momentum


def arrays_of(model: tf_keras.Model) -> dict[str, npt.NDArray[np.float32]]:
    """Returns every variable of the model as float32, named `layer/variable`."""
    return {weight.name.split(":")[0]: weight.numpy() for weight in model.weights}


def assign(model: tf_keras.Model, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Sets every variable of the model.

    Args:
        model: The model to change.
        arrays: Arrays named `layer/variable`; further names are ignored.

    Raises:
        ValueError: If a variable has no array or another shape.
    """
    for weight in model.weights:
        name = weight.name.split(":")[0]
        if name not in arrays:
            msg = f"no array named {name}"
            raise ValueError(msg)
        if tuple(arrays[name].shape) != tuple(weight.shape):
            msg = f"{name} has shape {arrays[name].shape}, the network needs {tuple(weight.shape)}"
            raise ValueError(msg)
        weight.assign(arrays[name].astype(np.float32))


def tensors_of(
    model: tf_keras.Model,
    nodes: tuple[Node, ...],
    names: Sequence[str],
    images: npt.NDArray[np.float32],
) -> dict[str, npt.NDArray[np.float32]]:
    """Returns what Keras's own layers compute for nodes of the folded network.

    Args:
        model: The model, as `build` returns it.
        nodes: The folded network.
        names: Names of nodes.
        images: Normalized float32 pictures (n, h, w, 3).
    """
    if not names:
        return {}
    part = tf_keras.Model(model.input, [_output_of(model, nodes, name) for name in names])
    results = part(images, training=False)
    found = results if len(names) > 1 else [results]
    return {name: value.numpy() for name, value in zip(names, found, strict=True)}


def _output_of(model: tf_keras.Model, nodes: tuple[Node, ...], name: str) -> Any:
    """Returns the Keras tensor that equals the output of a folded node."""
    if name == INPUT:
        return model.input
    node = next(node for node in nodes if node.name == name)
    if node.op in ("add", "pool"):
        return model.get_layer(name).output
    if not node.relu6:
        return model.get_layer(node.batch_norm or name).output
    return model.get_layer(relu_name(node)).output
