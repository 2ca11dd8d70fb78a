"""How pictures go into a classifier and scores come out of it, as its file says. Runtime layer.

A file tells by the shape of its input how a picture is fed, and by its outputs what there is to
read. The two records here say it; whoever runs a file, on whatever device, goes by them.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit import limits
from edgekit.errors import IntegrityError
from edgekit.records import Record, TensorInfo
from edgekit.runtimes.base import ModelFacts, printable

IO_DTYPES = ("float32", "uint8", "int8")
Layout = Literal["NHWC", "NCHW"]
# Axes of height and width, by layout.
_SIDES: dict[Layout, slice] = {"NHWC": slice(1, 3), "NCHW": slice(2, 4)}
# A probability is rounded by as much where it is made of codes of 8 bits, whose step is 1/256.
_ROUNDING = 1 / 256
# Where a dense layer or a convolution makes the only score, so many answers have to lie inside 0 to
# 1 before it is taken for a probability, as of a network trained on squared error, and not a logit.
_INSIDE_IF_LINEAR = 10
_SIGMOIDS = ("Sigmoid", "QLinearSigmoid", "LOGISTIC")
_LINEAR = (
    *("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add", "Conv", "FusedConv"),
    *("QLinearMatMul", "QLinearConv", "QLinearAdd", "QGemm"),
    *("FULLY_CONNECTED", "ADD", "CONV_2D", "BATCH_MATMUL"),
)
_SHOWN_OUTPUTS = 8


class Feed(Record):
    """How one picture is fed to an input; its values are for the contract (`Preprocess`) to say.

    Args:
        layout: "NHWC", channels last, or "NCHW", channels first.
        channels: 3, or 1 for a network that takes the luma of a picture.
        height_px: Height of the input.
        width_px: Width of the input.
    """

    layout: Layout
    channels: Literal[1, 3]
    height_px: int
    width_px: int

    @property
    def words(self) -> tuple[str, ...]:
        """What is not as usual about it."""
        said = []
        if self.layout == "NCHW":
            said.append("channels first: each picture is fed transposed")
        if self.channels == 1:
            # The weights of Pillow's convert("L").
            said.append(
                "one channel: each picture is fed as its luma (ITU-R 601-2: 0.299 red + 0.587 "
                "green + 0.114 blue)"
            )
        return tuple(said)


class Readout(Record):
    """Which output of a file is read, and how its numbers answer.

    Args:
        output: Its position among the outputs. Defaults to None: it is the only one.
        single: Whether it is one number for two classes; else each class has a score, of which the
            highest answers. Defaults to False.
        threshold: Above it the single number answers the second class, at or below it the first.
            Defaults to None: the answers decide, see `threshold_of`.
        least_inside: How many answers, all of them inside 0 to 1, make it a probability. Defaults
            to 1.
    """

    output: int | None = None
    single: bool = False
    threshold: float | None = None
    least_inside: int = 1

    def threshold_of(self, real: npt.NDArray[np.float32]) -> float:
        """Returns the threshold: as given, else 0.5 for probabilities and 0 for logits.

        Args:
            real: Answers of the single output, any shape; a number below 0 or above 1 is of a
                logit.
        """
        if self.threshold is not None:
            return self.threshold
        outside = (real < -_ROUNDING) | (real > 1 + _ROUNDING)
        return 0.0 if outside.any() or real.size < self.least_inside else 0.5

    def scores(self, real: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns a score for each class: the highest answers, and equal ones the first class.

        Args:
            real: Answers of shape `(pictures, outputs)`.

        Returns:
            The same; of a single output s with the threshold t the pair 2 t - s and s, which is
            1 - s and s for a probability, -s and s for a logit.
        """
        if not self.single:
            return real
        other = np.float32(2 * self.threshold_of(real)) - real
        return np.concatenate([other, real], axis=1)


def feed_of(info: TensorInfo) -> Feed:
    """Returns how a picture is fed to an input that `classifier_io` returned."""
    layout, channels = _layout(info.shape) or ("NHWC", 3)
    height, width = info.shape[_SIDES[layout]]
    return Feed(layout=layout, channels=channels, height_px=height, width_px=width)


def readout_of(facts: ModelFacts, output: int, threshold: float | None = None) -> Readout:
    """Returns how an output is read, as far as the file says.

    Args:
        facts: What the file says about itself.
        output: Position of the output.
        threshold: What the user says. Defaults to None: the operator that makes a single score
            tells, or the answers.
    """
    single = facts.outputs[output].shape[-1] == 1
    last = facts.last_operators[output] if output < len(facts.last_operators) else ""
    if single and threshold is None and last in _SIGMOIDS:
        threshold = 0.5
    return Readout(
        output=output,
        single=single,
        threshold=threshold,
        least_inside=_INSIDE_IF_LINEAR if last in _LINEAR else 1,
    )


def classifier_io(
    facts: ModelFacts, path: str, output: int | None = None
) -> tuple[TensorInfo, TensorInfo]:
    """Returns the input and the output of a file that is an image classifier.

    Args:
        facts: What the file says about itself.
        path: The file, for messages.
        output: Position of the output that is read. Defaults to None: it must be the only one.

    Raises:
        IntegrityError: If there is not exactly one input of shape `(1, height, width, channels)` or
            `(1, channels, height, width)`, with 3 channels or 1, in float32, uint8 or int8; or the
            output has another shape than `(1, ..., 1, classes)` or is in none of these types; or
            either is larger than `edgekit.limits` allows. A free (-1) batch dimension counts as 1.
    """
    if len(facts.inputs) != 1:
        found = f"{path}: {len(facts.inputs)} inputs: {tensors_in_words(facts.inputs)}"
        raise IntegrityError(found, "one input, the picture", "export the classifier alone")
    count = len(facts.outputs)
    if not 0 <= (output or 0) < count or (output is None and count > 1):
        found = f"{path}: {count} outputs"
        raise IntegrityError(found, "one output", "export the classifier alone, or name an output")
    model_input, scores = facts.inputs[0], facts.outputs[output or 0]
    _check_input(model_input, path)
    _check_output(scores, path)
    return model_input, scores


def gives_scores(info: TensorInfo) -> bool:
    """Returns whether an output has one number for each class, whatever their type."""
    leading = info.shape[:-1]
    # A free last dimension (-1) would leave the number of classes unknown.
    return bool(leading) and info.shape[-1] >= 1 and all(size in (-1, 1) for size in leading)


def tensors_in_words(tensors: tuple[TensorInfo, ...]) -> str:
    """Returns the first inputs or outputs with name, shape and type, on one line."""
    said = [_words(info) for info in tensors[:_SHOWN_OUTPUTS]]
    if len(tensors) > _SHOWN_OUTPUTS:
        said.append(f"and {len(tensors) - _SHOWN_OUTPUTS} more")
    return "; ".join(said)


def _words(info: TensorInfo) -> str:
    """Returns an end of a file in one short line: its name and rank are as long as it likes."""
    return printable(f"{info.name!r} of shape {info.shape} and type {info.dtype}")


def _layout(shape: tuple[int, ...]) -> tuple[Layout, Literal[1, 3]] | None:
    """Returns where an input has its channels and how many; None if it is no picture.

    Three of them before one, and last before first.
    """
    if len(shape) != 4:
        return None
    channels: Literal[1, 3]
    for channels in (3, 1):
        if shape[3] == channels:
            return "NHWC", channels
        if shape[1] == channels:
            return "NCHW", channels
    return None


def _check_input(info: TensorInfo, path: str) -> None:
    """Refuses an input that is not one picture; see `classifier_io`."""
    found = f"{path}: input {_words(info)}"
    expected = (
        "a picture of fixed size: (1, height, width, 3) or (1, 3, height, width), or one channel "
        "in place of three"
    )
    read = _layout(info.shape)
    if read is None:
        raise IntegrityError(found, expected, "export it with such an input")
    height, width = info.shape[_SIDES[read[0]]]
    if min(height, width) < 1:
        raise IntegrityError(found, expected, "export with a fixed height and width")
    if info.shape[0] not in (-1, 1):
        found = f"{found} (fixed batch of {info.shape[0]})"
        raise IntegrityError(found, "a batch of 1, or a free batch", "export with batch size 1")
    if max(height, width) > limits.INPUT_SIDE_PX:
        raise IntegrityError(
            f"{found}: pictures of {width:,} x {height:,} px",
            f"at most {limits.INPUT_SIDE_PX:,} px a side",
            "do not use this file, or export the classifier with a smaller input (224 px is usual)",
        )
    if info.dtype not in IO_DTYPES:
        raise IntegrityError(
            found, f"type {', '.join(IO_DTYPES)}", "export with one of these input types"
        )


def _check_output(info: TensorInfo, path: str) -> None:
    """Refuses an output that is not one score a class; see `classifier_io`."""
    found = f"{path}: output {_words(info)}"
    if not gives_scores(info):
        raise IntegrityError(
            found,
            "shape (1, classes), one score per class",
            "export the classifier with its final layer and a batch of one",
        )
    if info.shape[-1] > limits.MODEL_CLASSES:
        raise IntegrityError(
            f"{found}: {info.shape[-1]:,} classes",
            f"at most {limits.MODEL_CLASSES:,} classes",
            "do not use this file, or export the classifier with its final layer",
        )
    if info.dtype not in IO_DTYPES:
        raise IntegrityError(
            found, f"type {', '.join(IO_DTYPES)}", "export with one of these output types"
        )
