"""Finding the file with the starting weights. Loads TensorFlow only when it has to download."""

import contextlib
import os
import stat
import sys
from pathlib import Path

from edgekit.errors import IntegrityError, SpecError

_ORIGIN = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
# Keras publishes ImageNet weights for these square inputs only; others start from 224.
_PUBLISHED_SIZES_PX = (96, 128, 160, 192, 224)
_NAME = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{}_{}_no_top.h5"
# SHA-256 of published files, by width and size. Keras checks none and publishes none. These are
# what public projects that pin the file wrote down, three of them 1.0 and one 0.35, whose loader
# compares it at every download; edgekit's makers did not download the files themselves.
_PUBLISHED_SHA256 = {
    _NAME.format(0.35, 224): "df1c3db1d0d9193719c4c70f707c56f7021f999f825bdc57454c275cf6def19f",
    _NAME.format(1.0, 224): "f8aff69536bd77a692c594f559c798c19bf7f3f36668fc9fa00b21c6aab4797c",
}


def weight_file(
    weights: str, alpha: float, input_size_px: tuple[int, int], *, download: bool = True
) -> Path | None:
    """Returns the file that holds the starting weights, or None for "none".

    Args:
        weights: "imagenet" for Keras's own download and cache, "none", or a path.
        alpha: Width multiplier.
        input_size_px: Height and width of the input; "imagenet" has weights of their own for some
            squares, and those of 224 px serve all others.
        download: Whether "imagenet" may be downloaded; if not, and it is not in the cache, None is
            returned. Defaults to True.

    Raises:
        SpecError: If a given path leads to no regular file, or ImageNet weights can be neither
            found in Keras's cache nor downloaded; the message names the file and where to put it.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        path = Path(weights)
        trouble = _trouble(path)
        if trouble is not None:
            raise SpecError(
                f"model.weights = {weights!r}: {trouble}",
                '"imagenet", "none", or the path of a MobileNetV2 file: .h5, .keras or .npz',
                "correct the path"
                if not path.is_dir()
                else "give a file; a SavedModel is loaded where it was made and saved as .keras",
            )
        return path
    height, width = input_size_px
    size = height if height == width and height in _PUBLISHED_SIZES_PX else 224
    name = _NAME.format(alpha, size)
    folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
    cached = folder / name
    if cached.is_file() or not download:
        return cached if cached.is_file() else None
    return _download(name, folder)


def check_published(path: Path, sha256: str) -> str | None:
    """Refuses a file of Keras's cache that is not the published one.

    Args:
        path: The file, under the name that Keras gives it.
        sha256: Its digest, in hex.

    Returns:
        A line that says that the published file's digest is not known; None where it is the same.

    Raises:
        IntegrityError: If it is known and another.
    """
    published = _PUBLISHED_SHA256.get(path.name)
    if published is None:
        return (
            f"starting weights: edgekit does not know the digest of {path.name} and cannot tell "
            f"whether this is the published file; its SHA-256 is {sha256}"
        )
    if sha256 != published:
        raise IntegrityError(
            f'model.weights = "imagenet": {path} has SHA-256 {sha256}',
            f"{published}, the file that Keras publishes",
            "delete it, so that it is downloaded again; to use it nevertheless, give it with "
            "--weights",
        )
    return None


def _trouble(path: Path) -> str | None:
    """Returns why a path leads to no regular file, or None if it does."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, ValueError) as err:
        return str(getattr(err, "strerror", None) or err)
    if stat.S_ISDIR(mode):
        return "this is a folder"
    return None if stat.S_ISREG(mode) else "this is no regular file"


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
