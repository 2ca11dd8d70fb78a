"""The trained network as a `.keras` file for Keras 3, to look into or to train on."""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.network.graph import LOGITS, Arrays
from edgekit.records import FloatModelRecord, Preprocess

NAME = "model.keras"
# Neither the time of day nor where objects lay in memory is part of a model.
_TIME = (1980, 1, 1, 0, 0, 0)
_VOLATILE = ("date_saved", "shared_object_id")


def write(path: Path, float_model: FloatModelRecord, arrays: Arrays, contract: Preprocess) -> None:
    """Writes the float32 network as it was trained, before anything was folded or rounded.

    `keras.saving.load_model` (Keras 3, which TensorFlow has been using from 2.16 on) reads it. It
    takes pixels, RGB or luma, as float32 (n, height, width, channels) from 0 to 255, fitted as the
    contract says, since its first layer applies the contract's scale and offset, and answers with
    logits (n, classes). The same network gives the same bytes.

    Args:
        path: Where to.
        float_model: What training made.
        arrays: Its arrays, `layer/variable`, as `network.keras_model.arrays_of` names them.
        contract: The preprocessing.

    Raises:
        ValueError: If an array is missing or has another shape.
    """
    # Whatever else is installed: TensorFlow is here.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    channels = contract.input_channels
    size = (contract.height_px, contract.width_px, channels)
    pixels = keras.Input(size, name="pixels")
    layers = keras.layers
    scale, offset = (list(each[:channels]) for each in (contract.scale, contract.offset))
    real = layers.Rescaling(scale, offset, name="contract")(pixels)
    backbone = keras.applications.MobileNetV2(
        input_tensor=real, alpha=float_model.alpha, include_top=False, weights=None
    )
    pooled = layers.GlobalAveragePooling2D(name="global_average_pool")(backbone.output)
    logits = layers.Dense(float_model.class_count, name=LOGITS)(pooled)
    model = keras.Model(pixels, logits, name="mobilenet_v2")
    for weight in model.weights:
        weight.assign(_array(arrays, weight.path, weight.shape))
    keras.saving.save_model(model, path)
    path.write_bytes(_settled(path.read_bytes()))


def _array(
    arrays: Mapping[str, npt.NDArray[np.float32]], path: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Returns an array by the path of Keras 3, which knows a depthwise kernel as a kernel."""
    layer, variable = path.rsplit("/", 1)
    found = arrays.get(path, arrays.get(f"{layer}/depthwise_{variable}"))
    if found is None:
        msg = f"no array named {path}"
        raise ValueError(msg)
    # The head is a 1 x 1 convolution while it is trained.
    return found.reshape(shape) if layer == LOGITS else found


def _settled(content: bytes) -> bytes:
    """Returns a `.keras` archive without what differs from one writing to the next."""
    settled = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as given, zipfile.ZipFile(settled, "w") as made:
        for name in given.namelist():
            data = given.read(name)
            if name.endswith(".json"):
                data = json.dumps(_without(json.loads(data))).encode()
            made.writestr(zipfile.ZipInfo(name, _TIME), data)
    return settled.getvalue()


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(each) for key, each in value.items() if key not in _VOLATILE}
    return [_without(each) for each in value] if isinstance(value, list) else value
