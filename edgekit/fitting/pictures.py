"""Decoded pictures of one split, and answering all of them. Imports TensorFlow."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from edgekit.fitting import cores
from edgekit.records import Preprocess, SplitName

# Pictures of one call; every core makes one.
EVALUATED_ROWS = 16


@dataclass(frozen=True)
class Pictures:
    """One decoded split.

    Args:
        images: uint8 (n, h, w, channels), usually memory-mapped; 3 channels, or 1 under a contract
            of luma.
        labels: int32 (n,).
        preprocess: The contract that turns pixels into real values.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    preprocess: Preprocess

    @staticmethod
    def load(folder: Path, split: SplitName, preprocess: Preprocess) -> "Pictures":
        """Opens a split that the data stage wrote, which has luma three times."""
        images = np.load(folder / f"{split}.images.npy", mmap_mode="r")
        return Pictures(
            images[..., : preprocess.input_channels],
            np.load(folder / f"{split}.labels.npy"),
            preprocess,
        )

    def normalize(self, pixels: Any) -> Any:
        """Returns the real values of float32 pixels (..., channels) under the contract, float32.

        Args:
            pixels: A NumPy array or a tensor; the result is of the same kind.
        """
        return pixels * _factor(self.preprocess.scale) + _factor(self.preprocess.offset)

    def answered(
        self, answer: Callable[[npt.NDArray[np.uint8]], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """Returns the answers to all pictures, in order.

        Args:
            answer: Called by all cores with 16 pictures, uint8 (n, h, w, channels); see
                `cores.each`.
        """

        def part(start: int) -> npt.NDArray[Any]:
            stop = start + EVALUATED_ROWS
            return answer(np.ascontiguousarray(self.images[start:stop]))

        return np.concatenate(cores.each(part, range(0, len(self.images), EVALUATED_ROWS)))


def _factor(channels: tuple[float, ...]) -> Any:
    """Returns one number if all channels have the same: NumPy is nine times as fast with it."""
    values = np.array(channels, np.float32)
    return values[0] if (values == values[0]).all() else values


def compiled(
    function: Callable[[Any], Any], pictures: Pictures
) -> Callable[[], npt.NDArray[np.float32]]:
    """Returns a call that answers all pictures with the function's current variables.

    Args:
        function: Normalized float32 images (n, h, w, 3) to float32 logits (n, classes).
        pictures: What to answer.
    """
    batch = tf.function(
        lambda pixels: function(pictures.normalize(tf.cast(pixels, tf.float32))),
        input_signature=[tf.TensorSpec((None, *pictures.images.shape[1:]), tf.uint8)],
        autograph=False,
    )
    return lambda: pictures.answered(lambda pixels: batch(pixels).numpy())
