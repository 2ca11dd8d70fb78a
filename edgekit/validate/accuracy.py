"""Accuracy of one file on labelled images, and its loss against a reference. Stage layer."""

import numpy as np
import numpy.typing as npt

from edgekit.records import Accuracy, PairedDrop
from edgekit.validate import statistics

OUTSIDE = -1
TOP = 5

Scores = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int32]
OutputIndex = npt.NDArray[np.int64]


def top1_classes(scores: Scores, class_count: int, output_index: OutputIndex) -> Classes:
    """Returns the class that each image was answered with.

    Args:
        scores: float32 of shape `(images, outputs)`.
        class_count: Number of classes of the labels.
        output_index: int64 of shape `(class_count,)`: the output that stands for each class. An
            index outside the outputs marks a class that the model cannot answer.

    Returns:
        int32 of shape `(images,)`; `OUTSIDE` (-1) where the highest score belongs to no class or a
        score is not finite. Equal scores go to the lowest output.
    """
    outputs = scores.shape[1]
    class_of_output = np.full(outputs, OUTSIDE, dtype=np.int32)
    reachable = (output_index >= 0) & (output_index < outputs)
    class_of_output[output_index[reachable]] = np.arange(class_count, dtype=np.int32)[reachable]
    answers = class_of_output[scores.argmax(axis=1)]
    return np.where(np.isfinite(scores).all(axis=1), answers, OUTSIDE).astype(np.int32)


def measure_accuracy(
    scores: Scores, labels: Classes, class_count: int, output_index: OutputIndex
) -> Accuracy:
    """Returns the accuracy of answers against labels.

    Args:
        scores: float32 of shape `(images, outputs)`, at least one image.
        labels: int32 of shape `(images,)`, from 0 to `class_count - 1`.
        class_count: Number of classes.
        output_index: As in `top1_classes`.

    Raises:
        ValueError: If the shapes disagree, there is no image, or a label is out of range.
    """
    _check_shapes(scores, labels, class_count, output_index)
    answers = top1_classes(scores, class_count, output_index)
    columns = np.where(answers == OUTSIDE, class_count, answers)
    confusion = np.zeros((class_count, class_count + 1), dtype=np.int64)
    np.add.at(confusion, (labels, columns), 1)
    correct = int(np.trace(confusion))
    low, high = statistics.wilson(correct, len(labels))
    totals = confusion.sum(axis=1)
    return Accuracy(
        images=len(labels),
        top1=correct / len(labels),
        top1_low=low,
        top1_high=high,
        top5=_top5(scores, output_index[labels]) if class_count > TOP else None,
        recall_per_class=tuple(
            float(confusion[i, i] / totals[i]) if totals[i] else None for i in range(class_count)
        ),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
    )


def paired_drop(reference_top1: Classes, model_top1: Classes, labels: Classes) -> PairedDrop:
    """Returns the accuracy lost against a reference on the same images.

    Args:
        reference_top1: Class that the reference answered, int32 of shape `(images,)`.
        model_top1: Class that the judged file answered, same shape; see `top1_classes`.
        labels: The true classes, same shape.

    Raises:
        ValueError: If the shapes disagree or there is no image.
    """
    if not reference_top1.shape == model_top1.shape == labels.shape or labels.size == 0:
        msg = f"shapes {reference_top1.shape}, {model_top1.shape} and {labels.shape}"
        raise ValueError(msg)
    reference_right, model_right = reference_top1 == labels, model_top1 == labels
    b = int(np.count_nonzero(reference_right & ~model_right))
    c = int(np.count_nonzero(model_right & ~reference_right))
    images = int(labels.size)
    return PairedDrop(
        images=images,
        reference_only=b,
        model_only=c,
        drop_points=100 * (b - c) / images,
        upper_points=100 * statistics.tango_upper(b, c, images),
        lower_points=100 * statistics.tango_lower(b, c, images),
        mcnemar_p=statistics.mcnemar_p(b, c),
        agreement=float(np.mean(reference_top1 == model_top1)),
    )


def sqnr_db(reference: Scores, scores: Scores) -> float | None:
    """Returns the signal-to-quantization-noise ratio of scores in decibels.

    10 log10(sum of reference^2 / sum of (reference - scores)^2), over all images and outputs.

    Args:
        reference: float32 scores of the float model, of shape `(images, outputs)`.
        scores: Scores of the judged file, same shape.

    Returns:
        None where nothing differs, or where a score is not finite.
    """
    noise = float(np.square(reference.astype(np.float64) - scores).sum())
    power = float(np.square(reference, dtype=np.float64).sum())
    if not np.isfinite([noise, power]).all() or noise == 0 or power == 0:
        return None
    return float(10 * np.log10(power / noise))


def _top5(scores: Scores, wanted: OutputIndex) -> float:
    """Returns the share of images whose wanted output is among the five highest.

    Equal scores rank by output number, as `argmax` does, so top-5 never falls below top-1.
    """
    outputs = scores.shape[1]
    possible = (wanted >= 0) & (wanted < outputs) & np.isfinite(scores).all(axis=1)
    column = np.clip(wanted, 0, outputs - 1)
    own = scores[np.arange(len(scores)), column][:, None]
    ahead = (scores > own) | ((scores == own) & (np.arange(outputs) < column[:, None]))
    return float(np.mean(possible & (ahead.sum(axis=1) < TOP)))


def _check_shapes(
    scores: Scores, labels: Classes, class_count: int, output_index: OutputIndex
) -> None:
    if scores.ndim != 2 or len(scores) != len(labels) or len(labels) == 0:
        msg = f"scores of shape {scores.shape} for labels of shape {labels.shape}"
        raise ValueError(msg)
    if output_index.shape != (class_count,):
        msg = f"output index of shape {output_index.shape} for {class_count} classes"
        raise ValueError(msg)
    if labels.min() < 0 or labels.max() >= class_count:
        msg = f"labels from {labels.min()} to {labels.max()} for {class_count} classes"
        raise ValueError(msg)
