"""Finding the file with the starting weights. Loads TensorFlow only when it has to download."""

import contextlib
import os
import sys
from pathlib import Path

from edgekit.errors import SpecError

_ORIGIN = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
# Keras publishes ImageNet weights for these square inputs only; others start from 224.
_PUBLISHED_SIZES_PX = (96, 128, 160, 192, 224)


def weight_file(weights: str, alpha: float, input_size_px: int) -> Path | None:
    """Returns the file that holds the starting weights, or None for "none".

    Args:
        weights: "imagenet" for Keras's own download and cache, "none", or a path.
        alpha: Width multiplier.
        input_size_px: Side of the square input.

    Raises:
        SpecError: If a given path does not exist, or ImageNet weights can be neither found in
            Keras's cache nor downloaded; the message names the file and where to put it.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        path = Path(weights)
        if not path.is_file():
            raise SpecError(
                f"model.weights = {weights!r}: there is no such file",
                '"imagenet", "none", or the path of a MobileNetV2 no-top .h5 file or an .npz',
                "correct the path",
            )
        return path
    size = input_size_px if input_size_px in _PUBLISHED_SIZES_PX else 224
    name = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}_no_top.h5"
    folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
    cached = folder / name
    return cached if cached.is_file() else _download(name, folder)


def _download(name: str, folder: Path) -> Path:
    import tf_keras

    try:
        # Keras writes its progress to stdout, which belongs to --json. Unlike the rest of Keras,
        # get_file ignores KERAS_HOME unless it is told.
        with contextlib.redirect_stdout(sys.stderr):
            got = tf_keras.utils.get_file(
                name, _ORIGIN + name, cache_subdir=folder.name, cache_dir=str(folder.parent)
            )
        return Path(got)
    except Exception as error:
        raise SpecError(
            f'model.weights = "imagenet": {name} is not in {folder} and could not be downloaded '
            f"({str(error).partition(chr(10))[0]})",
            "a network connection, or the file in Keras's cache",
            f"download {_ORIGIN}{name} on a connected machine and put it into {folder}, or give "
            "the path of such a file with --weights",
        ) from error
