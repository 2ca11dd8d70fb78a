"""Records of what each stage made: frozen, typed, to and from JSON. Bottom layer.

Specs (what was asked) live in `recipe` and `target`; everything here was produced by a run.
Units stand in field names; accuracies are fractions from 0 to 1 unless a name says `_points`.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

# Beside a number; all of them stand in the record.
_DISTURBANCES_SHOWN = 2


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Status(StrEnum):
    """Outcome of one check or of a whole target (design: statuses)."""

    PASS = "PASS"  # noqa: S105 - a status, not a password
    MISS = "MISS"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNMEASURED = "UNMEASURED"


SplitName = Literal["train", "validation", "test"]
Format = Literal["tflite", "onnx", "ort"]
Variant = Literal["float32", "float16", "dynamic", "int8", "int16x8"]
IoType = Literal["float32", "uint8", "int8"]
Batch = Literal["one", "any"]
Granularity = Literal["channel", "tensor"]
Delegate = Literal["default", "none", "xnnpack", "coreml", "nnapi", "qnn"]
Bits = Literal[8, 16]
CalibrationMethod = Literal["min-max", "percentile", "mse"]
Candidate = Literal["ptq", "qat"]
Crop = Literal["none", "center", "letterbox"]
Level = Annotated[int, Field(ge=0, le=255)]


class Preprocess(Record):
    """The one preprocessing contract that training, calibration, judging and apps all read.

    EXIF orientation is applied, the picture is converted to RGB, cropped as `crop` says, resized to
    `(height_px, width_px)` with an antialiased `resize` filter, and each uint8 channel value `p`
    becomes the real number `p * scale + offset`.

    With `crop = "letterbox"` the whole picture is scaled to fit inside the input, centred, and the
    rest filled. Of an upright picture of w x h pixels (those of its file, also where fewer were
    decoded) it takes, in whole numbers, so that no device rounds otherwise,

        if w * height_px >= h * width_px:
            width = width_px, height = max(1, (2 * h * width_px + w) // (2 * w))
        else:
            width = max(1, (2 * w * height_px + h) // (2 * h)), height = height_px
        left = (width_px - width) // 2, top = (height_px - height) // 2

    which is the real size rounded to the next pixel, a half upwards. The products need up to 33
    bits.

    The default `scale = 1/128, offset = -1` differs from the usual 1/127.5 by 0.4 % and makes the
    quantized input exact: with quantization scale 1/128 the uint8 code is the pixel itself and the
    int8 code is `pixel - 128`, so a device needs no arithmetic at all.

    Args:
        height_px: Height of the network input in pixels.
        width_px: Width of the network input in pixels.
        resize: Resampling filter. Defaults to "bilinear".
        crop: "none" stretches the whole picture, "center" takes the largest centred part that has
            the aspect ratio of the input, "letterbox" keeps all of it and its shape. Defaults to
            "none".
        fill: Red, green and blue around a letterboxed picture, as pixels from 0 to 255, whatever
            the order of `channels`; "grey" takes its luma. Defaults to 114 for each, the grey of
            YOLO tools (`LetterBox` in
            https://github.com/ultralytics/ultralytics/blob/main/ultralytics/data/augment.py).
        scale: Multiplier per channel. Defaults to 1/128 for each.
        offset: Addend per channel. Defaults to -1 for each.
        channels: Channel order in the tensor; "grey" is the luma of the picture (ITU-R 601-2, as
            Pillow's "L") in each channel that the input has. Defaults to "rgb".
    """

    height_px: int = Field(ge=1)
    width_px: int = Field(ge=1)
    resize: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    crop: Crop = "none"
    fill: tuple[Level, Level, Level] = (114, 114, 114)
    scale: tuple[float, float, float] = (1 / 128, 1 / 128, 1 / 128)
    offset: tuple[float, float, float] = (-1.0, -1.0, -1.0)
    channels: Literal["rgb", "bgr", "grey"] = "rgb"

    @property
    def input_channels(self) -> Literal[1, 3]:
        """Channels of the input of a network that is trained under this contract."""
        return 1 if self.channels == "grey" else 3

    @property
    def ground(self) -> tuple[int, int, int]:
        """`fill` as the network sees it: its luma in each channel where `channels` is "grey".

        ITU-R 601-2 in 16 bits behind the point, as Pillow's `L24` in src/libImaging/Convert.c.
        """
        if self.channels != "grey":
            return self.fill
        red, green, blue = self.fill
        return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16,) * 3

    def letterbox(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Returns left, top, width and height of a letterboxed picture inside the input.

        Args:
            width: Of the upright picture in its file, in pixels.
            height: Likewise.
        """
        if width * self.height_px >= height * self.width_px:
            kept = self.width_px, max(1, (2 * height * self.width_px + width) // (2 * width))
        else:
            kept = max(1, (2 * width * self.height_px + height) // (2 * height)), self.height_px
        return (self.width_px - kept[0]) // 2, (self.height_px - kept[1]) // 2, *kept


class SplitRecord(Record):
    """One split of the data set after decoding.

    Args:
        count: Number of images.
        per_class: Images of each class, in the order of `DatasetRecord.class_names`.
    """

    count: int
    per_class: tuple[int, ...]


class SkippedFile(Record):
    """A file that was left out, with the reason in words.

    Args:
        path: Its path below the data folder, safe to print.
        reason: Why it was left out.
        kind: "unusable" is a picture that is missed, by its name or its content, or may be one
            (damaged, too large, a format that is not read, behind a link that is not followed),
            and counts against `data.max_bad_fraction`; "not-a-picture" is another kind of file;
            "ignored" lies where no class or no split is; "two-classes" has the pixels of a picture
            of another class, and counts against `data.max_conflicting_fraction`; "copy" has those
            of one in a split that is held out.
    """

    path: str
    reason: str
    kind: Literal["unusable", "not-a-picture", "ignored", "two-classes", "copy"] = "unusable"


class DatasetRecord(Record):
    """The decoded data set. Blobs beside it: `<split>.images.npy` and `<split>.labels.npy`.

    Images are uint8 of shape `(count, height_px, width_px, 3)` in the contract's channel order, of
    which a network that sees luma takes the first channel,
    labels int32 of shape `(count,)`; `<split>.files.json` lists the source of each row. What
    is to be said about single pictures stands in the tables that `data.findings` names.
    `images_per_second` counts pictures read, decoded, resized and fingerprinted, by all cores.
    """

    class_names: tuple[str, ...]
    preprocess: Preprocess
    splits: dict[SplitName, SplitRecord]
    skipped: tuple[SkippedFile, ...]
    notes: tuple[str, ...]
    digest: str
    images_per_second: float


class OtherRecord(Record):
    """Pictures of no class. Blobs beside it: `other.images.npy` and `other.files.json`.

    Images are uint8 of shape `(deciding + held_out, height_px, width_px, 3)`, as those of the data
    set; the files are the sources of the rows, paths below the folder.

    Args:
        deciding: Pictures that decide above which score an answer counts; the first rows.
        held_out: Pictures that show what that comes to; the last rows.
        skipped: Files left out.
        images_per_second: Pictures read and decoded, by all cores.
    """

    deciding: int
    held_out: int
    skipped: tuple[SkippedFile, ...]
    images_per_second: float


class SuspiciousLabel(Record):
    """A picture whose label is contradicted by what it shows; see `train.suspicion`.

    Args:
        path: Its path below the data folder, safe to print.
        split: Where it is.
        label: Name of its class.
        suggested: Name of the class that it looks like.
        confidence: Probability of that class, from 0 to 1.
    """

    path: str
    split: SplitName
    label: str
    suggested: str
    confidence: float


class ConfusedClasses(Record):
    """Two classes that a linear classifier on the backbone hardly tells apart.

    Args:
        first: Name of one.
        second: Name of the other.
        first_as_second: Share of the first's pictures that look more like the second, 0 to 1.
        second_as_first: The other way round.
    """

    first: str
    second: str
    first_as_second: float
    second_as_first: float


class LabelsRecord(Record):
    """What is suspicious about the labels. Blobs beside it: the table and the page of all of them.

    Args:
        checked: Pictures that were looked at.
        suspicious: How many labels are contradicted.
        first: The surest of them.
        confused: Pairs of classes that are hardly told apart, the most alike first.
    """

    checked: int
    suspicious: int
    first: tuple[SuspiciousLabel, ...]
    confused: tuple[ConfusedClasses, ...]


class EpochRecord(Record):
    """One epoch of training: mean losses (natural log) and top-1 accuracies from 0 to 1.

    The validation loss, here and in every other record, is the cross-entropy at the temperature
    where it is lowest, see `fitting.losses.validation_losses`; the training loss is what the steps
    minimize, smoothed labels included.

    Where the mean of the weights is validated (see `fitting.loop.fit`), what concerns training is
    of the weights themselves.

    `seconds` is the epoch with its validation but without the frozen part (see `PrefixRecord`),
    `images_per_second` the unfrozen part's training alone.
    """

    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    images_per_second: float


class CheckpointRecord(Record):
    """A phase behind one of its epochs. Blob beside it: `state.npz`.

    Args:
        epochs: The learning curve so far.
        best_epoch: Index into `epochs` of the lowest validation loss.
        gradient_norms: Of each trained variable, see `fitting.loop.Fit`.
    """

    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    gradient_norms: tuple[float, ...]


class ShardRecord(Record):
    """Stored activations of some rows of one view. Blobs beside it: `<tensor>.npy`, float16."""


class PrefixRecord(Record):
    """How the frozen part of a phase was computed.

    Args:
        tensors: Names of the tensors that enter the part that trains.
        bytes_per_image: Bytes of these tensors for one picture in one view; 0 if pictures enter.
        views: Differently augmented versions of each training picture.
        views_stored: Views that were on disk when the phase ended; those that nothing reads twice
            never are.
        views_refused: Views that were not kept for lack of room.
        images_per_second: Pictures a second, augmentation included, through as much of the network
            as this and the other cuts need that one pass serves. None if nothing had to be
            computed in this phase.
        seconds: Seconds spent on that.
        departure: Largest relative difference from Keras's own layers on 8 validation pictures:
            root mean square of the difference over that of the tensor. None if pictures enter.
    """

    tensors: tuple[str, ...]
    bytes_per_image: int
    views: int
    views_stored: int
    views_refused: int
    images_per_second: float | None
    seconds: float
    departure: float | None


# Training the new head alone, one cut of the comparison, or what the comparison was for.
Purpose = Literal["head", "trial", "final"]


class PhaseRecord(Record):
    """One phase of progressive unfreezing. Blobs beside it: `weights.npz`, `logits.npy`.

    Args:
        purpose: What it was for.
        fold: Number of the fold of a cross-validation that judged it, from 0; None if the
            validation split did.
        cut: First layer that trains ("head" when only the new head does).
        cut_index: Index of that layer in the Keras model; every layer from it on is unfrozen.
        trainable_parameters: Number of scalars that the optimizer updates.
        training_pictures: Pictures that it learned from.
        learning_rate: Learning rate at its peak.
        start_loss: Validation loss before the first step, with the same unfrozen part.
        epochs: The learning curve, in order.
        best_epoch: Index into `epochs` of the lowest validation loss.
        gradient_norms: For each unfrozen block, the root mean square of its gradient's norm over
            the first steps (at most 8), from the input to the output.
        prefix: How the frozen part was computed.
    """

    purpose: Purpose
    fold: int | None
    cut: str
    cut_index: int
    trainable_parameters: int
    training_pictures: int
    learning_rate: float
    start_loss: float
    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    gradient_norms: dict[str, float]
    prefix: PrefixRecord


class CutScore(Record):
    """One point of the curve that a comparison draws: validation loss and cost against cut.

    Args:
        cut: First unfrozen layer.
        validation_loss: Lowest validation loss of its trial, in nats; mean over the pictures of all
            folds where there are several.
        excess: How much that is above the lowest of all trials.
        standard_error: Standard error of `excess`, from the paired losses of the pictures.
        seconds: What the trial took, with what it had to compute of the frozen part.
        trainable_parameters: Number of scalars that trained.
    """

    cut: str
    validation_loss: float
    excess: float
    standard_error: float
    seconds: float
    trainable_parameters: int


class FloatModelRecord(Record):
    """The fine-tuned float model. Blob beside it: `weights.npz`, arrays named `layer/variable`.

    Args:
        alpha: Width multiplier of MobileNetV2.
        input_size_px: Height and width of the input.
        class_count: Number of classes.
        cut: Name of the first unfrozen layer of the phase that ships.
        unfrozen_layers: Names of the layers that carry weights and were trained in it.
        phases: The learning curve of every phase: the head, the trials, the final training.
        shipped_phase: Index into `phases` of the one whose weights these are.
        curve: Validation loss and cost against cut; empty if none were compared.
        strategy: How the cuts were compared and why, in words.
        chosen_because: Why the cut was chosen, in words.
        warnings: What a user should know about the training, in words.
        class_weights: How much a mistake on each class counts in every loss, see
            `fitting.class_weights`; None if all count alike.
        weighed_because: Why, in words.
        validation_accuracy: Top-1 on the validation split with the restored weights.
        validation_loss: Loss on the validation split with the restored weights.
        stopped_because: Why the comparison ended, in words.
        weights_sha256: Digest of the file that the backbone started from. Defaults to None: from
            random weights.
    """

    alpha: float
    input_size_px: tuple[int, int]
    class_count: int
    cut: str
    unfrozen_layers: tuple[str, ...]
    phases: tuple[PhaseRecord, ...]
    shipped_phase: int
    curve: tuple[CutScore, ...]
    strategy: str
    chosen_because: str
    warnings: tuple[str, ...]
    class_weights: tuple[float, ...] | None
    weighed_because: str
    validation_accuracy: float
    validation_loss: float
    stopped_because: str
    weights_sha256: str | None = None

    @property
    def size_in_words(self) -> str:
        """The side of a square input; else its height and width, as `--input-size` takes them."""
        height, width = self.input_size_px
        return f"{height} px" if height == width else f"{height}x{width} px (height, width)"


class TensorRange(Record):
    """Range of one activation tensor and the affine quantization that follows from it.

    `real = scale * (code_int8 - zero_point)`; zero is exactly representable.

    Args:
        minimum: Real value of code -128.
        maximum: Real value of code 127.
        scale: Distance of neighbouring codes.
        zero_point: Code of zero.
        source: "trained" with the weights, "calibrated" on training pictures, or what the
            preprocessing "contract" makes of the pixels 0 and 255.
        method: How a calibrated range was found; that of its start if it was trained. None for the
            contract's.
    """

    minimum: float
    maximum: float
    scale: float = Field(gt=0)
    zero_point: int = Field(ge=-128, le=127)
    source: Literal["trained", "calibrated", "contract"]
    method: CalibrationMethod | None = None


class RangeTable(Record):
    """Everything that turns a folded network into int8; both formats are written from it.

    Args:
        activations: Range of every tensor that is int8, in network order, the input first.
        kernels: Largest magnitude of each output channel of every folded int8 kernel, or a single
            one for the whole kernel.
        kept_float: Nodes that compute in float32. Their kernels have no limits here, and a tensor
            that only such nodes make and read has no range.
    """

    activations: dict[str, TensorRange]
    kernels: dict[str, tuple[float, ...]]
    kept_float: tuple[str, ...] = ()


class LayerQuantization(Record):
    """How one layer was quantized, and why."""

    layer: str
    how: Literal["qat", "calibrated", "float"]
    reason: str


class LayerSensitivity(Record):
    """What calibrated int8 costs at one layer, measured in the logits of held-out pictures.

    Args:
        layer: The node.
        alone_db: SQNR in decibels if only this node's kernel, bias and output are int8.
        regained_db: How much the SQNR of the int8 network rises if only this node computes in
            float32, between int8 neighbours, in decibels.
    """

    layer: str
    alone_db: float
    regained_db: float


class CandidateRecord(Record):
    """One way of quantizing the float model, simulated on the validation split.

    Blobs beside it: `<name>.weights.npz` (BatchNorm folded) and `<name>.ranges.json`.
    """

    name: Candidate
    validation_accuracy: float
    validation_loss: float
    agreement_with_float: float
    layers: tuple[LayerQuantization, ...]
    epochs: tuple[EpochRecord, ...]


class QuantizedModelRecord(Record):
    """All candidates, the one that ships and the reason. Blob beside it: `float.weights.npz`.

    Args:
        candidates: Post-training int8, and quantization-aware training unless it was switched off.
        shipped: The candidate that ships.
        reason: Why it ships, in words.
        warnings: What a user should know about the quantization, in words.
        sensitivity: What int8 by calibration alone costs at each layer, in network order.
        kept_because: What `quantize.max_drop` came to, in words; empty without it.
    """

    candidates: tuple[CandidateRecord, ...]
    shipped: Candidate
    reason: str
    warnings: tuple[str, ...] = ()
    sensitivity: tuple[LayerSensitivity, ...] = ()
    kept_because: str = ""


class TensorInfo(Record):
    """Input or output of an exported file; `scale`/`zero_point` are None for float tensors.

    `zero_point` is in the tensor's own dtype; -1 in `shape` stands for a free dimension.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None


class Artifact(Record):
    """One exported model file. `path` is relative to the folder that holds the record.

    Args:
        candidate: How an int8 or int16x8 file was quantized; None for the others.
        ships: False for the int8 candidate that lost. It is exported to be compared with the one
            that won; no target gets it.
    """

    format: Format
    variant: Variant
    io: IoType
    path: str
    sha256: str
    size_bytes: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: dict[str, int]
    float_tensors: tuple[str, ...]
    candidate: Candidate | None = None
    ships: bool = True

    @property
    def batch(self) -> Batch:
        """How many pictures one call takes."""
        return "any" if self.inputs and self.inputs[0].shape[0] == -1 else "one"


class Parity(Record):
    """How closely an exported file follows the model it was made from, on the same real images.

    Args:
        artifact_sha256: The file.
        source: What it was made from, in words.
        images: Pictures that both answered.
        same_answers: How many of them have the same top-1 answer.
        sqnr_db: Power of the source's scores over the power of the difference from them, in
            decibels; None where nothing differs.
        explained_db: The SQNR that rounding alone may come to on these pictures; None where that is
            unknown.
        status: PASS where rounding explains the difference, MISS where it does not explain the
            answers, INCONCLUSIVE where it does not explain the scores alone, UNMEASURED where
            nothing tells what rounding may come to.
        reason: Why, in words.
    """

    artifact_sha256: str
    source: str
    images: int
    same_answers: int
    sqnr_db: float | None
    explained_db: float | None
    status: Status
    reason: str

    @property
    def departs(self) -> bool:
        """Whether the file is further from its source than rounding explains."""
        return self.status in (Status.MISS, Status.INCONCLUSIVE)


class LayerParity(Record):
    """How far the codes of one layer lie apart in the int8 TFLite and the int8 ONNX file.

    Args:
        layer: The node whose output is compared.
        values: Number of values compared.
        equal: Share of values with the same code.
        within_one: Share of values at most one code apart.
        largest_steps: Most codes that a value is apart.
    """

    layer: str
    values: int
    equal: float
    within_one: float
    largest_steps: int


class FormatParity(Record):
    """How alike the int8 TFLite and the int8 ONNX file of one model answer, on real pictures.

    Args:
        images: Pictures whose answers were compared, by the runtimes that users run.
        top1_agreement: Share of pictures with the same top-1 answer.
        equal: Share of logits with the same code.
        within_two: Share of logits at most two steps of the output apart.
        largest_steps: Most steps that a logit is apart.
        layer_images: Pictures whose layers were compared.
        layers: Every layer in network order; a difference that one makes passes through the next.
        departs: First layer with a value of another code, or None.
    """

    images: int
    top1_agreement: float
    equal: float
    within_two: float
    largest_steps: float
    layer_images: int
    layers: tuple[LayerParity, ...]
    departs: str | None


class ExportRecord(Record):
    """All exported files with their parity. The files lie beside the record.

    Args:
        preprocess: The contract of their input.
        class_names: Names of the classes in output order.
        artifacts: The files.
        parity: Each file against what it was made from.
        formats: The int8 files of the two formats against each other; None if one is missing.
    """

    preprocess: Preprocess
    class_names: tuple[str, ...]
    artifacts: tuple[Artifact, ...]
    parity: tuple[Parity, ...]
    formats: FormatParity | None = None


class Accuracy(Record):
    """Accuracy of one file on one labelled split.

    Args:
        images: Number of images judged.
        top1: Fraction whose highest score is the label.
        top1_low: Lower end of the two-sided 95 % Wilson interval of `top1`.
        top1_high: Upper end of it.
        top5: Fraction whose label is among the five highest scores; None below six classes.
        recall_per_class: Recall of each class; None where the class has no image.
        confusion: `confusion[i][j]` images of class i answered as class j; a last extra column
            counts answers outside the classes.
    """

    images: int
    top1: float
    top1_low: float
    top1_high: float
    top5: float | None
    recall_per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def macro_recall(self) -> float:
        """Mean recall of the classes that have images: each counts alike, however many it has."""
        known = [recall for recall in self.recall_per_class if recall is not None]
        return sum(known) / len(known)


class PairedDrop(Record):
    """Accuracy lost against a reference on the same images.

    Args:
        images: Number of images both models judged.
        reference_only: Images that only the reference got right (b).
        model_only: Images that only the judged file got right (c).
        drop_points: `100 * (b - c) / images`, percentage points.
        upper_points: One-sided 95 % upper limit of the drop by Tango's score method, in points.
        lower_points: One-sided 95 % lower limit of it, in points.
        mcnemar_p: Exact two-sided McNemar p-value.
        agreement: Fraction of images with the same top-1 answer.
    """

    images: int
    reference_only: int
    model_only: int
    drop_points: float
    upper_points: float
    lower_points: float
    mcnemar_p: float
    agreement: float


class OtherThreshold(Record):
    """Above which score an answer of one file counts, and what that comes to.

    The score is the highest output as a real number; equal to the threshold, it does not count.

    Args:
        artifact_sha256: The file.
        threshold: The score.
        false_accepts: Held-out pictures of no class whose answer counts.
        low: Lower end of the two-sided 95 % Wilson interval of their share.
        high: Upper end of it.
        accepted: Test pictures whose answer counts.
        accepted_right: Those of them whose answer is right.
    """

    artifact_sha256: str
    threshold: float
    false_accepts: int
    low: float
    high: float
    accepted: int
    accepted_right: int


class OtherEvaluation(Record):
    """What tells pictures of no class from those of a class, for every file.

    Args:
        false_accept_rate: Share of pictures of no class whose answer may count, as asked.
        deciding: Pictures of no class whose scores the thresholds follow from.
        needed: Fewest of them that can show that rate with 95 % confidence.
        held_out: Pictures of no class that were judged with the thresholds.
        images: Test pictures, all of a class.
        files: One for each file, in the order of the export.
    """

    false_accept_rate: float
    deciding: int
    needed: int
    held_out: int
    images: int
    files: tuple[OtherThreshold, ...]

    @property
    def by_digest(self) -> dict[str, OtherThreshold]:
        """The threshold of every file, by the file's digest."""
        return {file.artifact_sha256: file for file in self.files}

    def in_words(self, artifact: Artifact) -> str:
        """Returns above which score the answers of one file count, and what that comes to."""
        file = self.by_digest[artifact.sha256]
        asked = f"at most {self.false_accept_rate:.1%} was asked"
        if self.deciding < self.needed:
            asked += f", which {self.deciding} deciding pictures cannot show ({self.needed} can)"
        said = (
            f"{artifact.path} answers {file.false_accepts} of {self.held_out} held-out pictures of "
            f"no class with a score above {file.threshold:.6g} "
            f"({file.false_accepts / self.held_out:.1%}, 95 %: {file.low:.1%} to {file.high:.1%}; "
            f"{asked}), and {file.accepted} of {self.images} test pictures "
            f"({file.accepted / self.images:.1%})"
        )
        if file.accepted:
            said += f", {file.accepted_right / file.accepted:.1%} of these rightly"
        return said


class LatencySession(Record):
    """One fresh process: every sample in milliseconds of wall time, and what disturbed it.

    Args:
        samples_ms: Wall time of a call, in the order they were made; where a call is too short for
            the clock, the mean of `calls_per_sample` calls one behind the other.
        threads: Threads the runtime was given.
        warmup_runs: Untimed calls before the first sample.
        context_switches_involuntary: Of this process, while it was timed.
        load_average: Mean number of cores in demand while it was timed: the threads given to the
            runtime plus the cores that other processes (and the hypervisor) kept busy.
        governor: CPU frequency governor; None where unreadable, as are all that follow.
        frequency_before_khz: Highest core frequency after the warm-up.
        frequency_after_khz: The same after the last sample.
        temperature_before_c: Highest temperature after the warm-up, in degrees Celsius.
        temperature_after_c: The same after the last sample.
        throttled: How often the cores were slowed down for heat while it was timed.
        power_saving: Whether a mode that saves power was on.
        memory_bytes: Most that the process's memory grew from before the runtime was loaded.
        clock_step_ms: Least by which the clock moves; None if unknown.
        calls_per_sample: Calls that a sample is the mean of.
    """

    samples_ms: tuple[float, ...]
    threads: int
    warmup_runs: int
    context_switches_involuntary: int
    load_average: float
    governor: str | None
    frequency_before_khz: int | None
    frequency_after_khz: int | None
    temperature_before_c: float | None = None
    temperature_after_c: float | None = None
    throttled: int | None = None
    power_saving: bool | None = None
    memory_bytes: int | None = None
    clock_step_ms: float | None = None
    calls_per_sample: int = 1


class Latency(Record):
    """Latency of one file on one device, single-image calls, milliseconds of wall time.

    Args:
        device: Where it was measured, in words.
        runtime: Runtime and version.
        threads: Threads the runtime was given.
        percentile: The percentile that decides (50 to 99).
        session_percentile_ms: Order-statistic estimate of that percentile in each fresh process.
        p50_ms: Pooled median.
        p90_ms: Pooled 90th percentile.
        p95_ms: Pooled 95th percentile.
        p99_ms: Pooled 99th percentile.
        max_ms: Longest sample.
        samples: Number of pooled samples.
        effective_samples: Samples divided by their autocorrelation time.
        context_switches_involuntary: How often the system interrupted the timed processes, in all.
        governor: CPU frequency governor; None where unreadable.
        memory_bytes: Most memory that a process grew by; None where unreadable.
        hottest_c: Highest temperature seen, in degrees Celsius; None where unreadable.
        clock_step_ms: Coarsest step of the clock in a session; None where unknown.
        session_calls_per_sample: Calls that each session's samples are the means of. Defaults to
            none: every sample is a single call.
        disturbances: What speaks against trusting the numbers, in words; empty when quiet.
    """

    device: str
    runtime: str
    threads: int
    percentile: int
    session_percentile_ms: tuple[float, ...]
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    samples: int
    effective_samples: float
    context_switches_involuntary: int
    governor: str | None
    memory_bytes: int | None = None
    hottest_c: float | None = None
    clock_step_ms: float | None = None
    session_calls_per_sample: tuple[int, ...] = ()
    disturbances: tuple[str, ...]

    @property
    def means(self) -> str:
        """What its samples are where they are not single calls, in words; else empty."""
        most = max(self.session_calls_per_sample, default=1)
        if most == 1:
            return ""
        least = min(self.session_calls_per_sample)
        return f"means of {most if least == most else f'{least} to {most}'} calls"

    @property
    def caveat(self) -> str:
        """What has to stand beside its numbers wherever they are shown, in words; or nothing."""
        said = [self.means] if self.means else []
        if self.disturbances:
            more = len(self.disturbances) - _DISTURBANCES_SHOWN
            shown = "; ".join(self.disturbances[:_DISTURBANCES_SHOWN])
            said.append(f"disturbed: {shown}" + (f"; and {more} more" if more > 0 else ""))
        return ", ".join(said)


class Check(Record):
    """One budget held against one measurement. `detail` says what was measured and what decides."""

    name: str
    status: Status
    measured: str
    budget: str
    detail: str


class Verdict(Record):
    """Whether one file meets one target; carries the digest of the very file that was judged.

    Args:
        target: Name of the target.
        artifact_path: The file.
        artifact_sha256: Its digest; None if there is no such file.
        checks: Every budget held against its measurement.
        status: The worst of them.
        in_words: What was measured and what was not asked for, for whoever reads nothing else.
        notes: What the target's owner should know although no budget asks for it, in words.
        latency_measurements: Every measurement of this file's latency for this target, oldest
            first; each more than one was asked for, and all of them decide together.
    """

    target: str
    artifact_path: str
    artifact_sha256: str | None
    checks: tuple[Check, ...]
    status: Status
    in_words: str = ""
    notes: tuple[str, ...] = ()
    latency_measurements: tuple[Latency, ...] = ()


class Evaluation(Record):
    """Everything measured about one exported file on this machine, with one number of threads.

    Args:
        artifact_sha256: The file.
        runtime: Runtime and version.
        threads: Threads of the timed sessions. Accuracy is measured on one; it is the same record
            in every evaluation of a file.
        accuracy: On the test split.
        drop: Against the reference; None for the reference itself.
        sqnr_db: Power of the reference's scores over the power of the difference from them, in
            decibels; None for the reference itself, or where nothing differs.
        latency: At the 90th percentile; None for a file that does not ship.
    """

    artifact_sha256: str
    runtime: str
    threads: int = 1
    accuracy: Accuracy
    drop: PairedDrop | None
    sqnr_db: float | None = None
    latency: Latency | None


class HostAgreement(Record):
    """How a device answers the same pixels with the same file, against this machine.

    Args:
        images: Pictures that both answered.
        top1_agreement: Share of them with the same class.
        equal: Share of the scores that are equal to the bit.
            None where only classes are known, as are the next two.
        largest_steps: Most codes that an integer score is apart; None for float scores.
        largest_share: Largest difference of a float score over the largest score; else None.
        differing: Names of the first pictures with another class.
        differing_images: How many there are.
        cause: What most likely makes the difference, in words; empty where there is none.
        drop: Accuracy lost against this machine's answers, paired on the same pictures.
    """

    images: int
    top1_agreement: float
    equal: float | None
    largest_steps: float | None
    largest_share: float | None
    differing: tuple[str, ...]
    differing_images: int
    cause: str
    drop: PairedDrop


class DeviceEvaluation(Record):
    """What the file of one target does on the device that the target names.

    Args:
        target: Name of the target.
        device: The device, in words.
        runtime: Runtime and version there.
        threads: Threads of the timed sessions.
        accuracy: Of the answers that came from it; None if none did.
        drop: Against the reference's answers on this machine; None without a reference.
        latency: At the percentile of the target; None where time does not count.
        memory_bytes: Most memory that the runtime and the file took; None if unknown.
        against_host: Against this machine's answers with the same file; None without answers.
        origin: Who measured it where and when, in words, if it was not this edgekit.
    """

    target: str
    device: str
    runtime: str
    threads: int
    accuracy: Accuracy | None
    drop: PairedDrop | None
    latency: Latency | None
    memory_bytes: int | None = None
    against_host: HostAgreement | None
    origin: str = ""


class ValidationRecord(Record):
    """Result of the validate stage: measurements per file and a verdict per target.

    Args:
        reference: The file whose accuracy the drops are measured against.
        evaluations: One per file and thread count: every file on one thread, in the order of the
            export, then the files that a local target runs on more.
        verdicts: One per target, in the order asked.
        decided_by: For each verdict the position in `evaluations` of the measurements it rests on;
            None where the target's device was not measured.
        int8_against_other: The int8 file that ships against the int8 candidate that lost, as the
            reference; None where there was only one candidate.
        on_devices: One for every target whose device is not simply this machine.
        other: What tells pictures of no class from the others; None where none were given.
    """

    reference: str
    evaluations: tuple[Evaluation, ...]
    verdicts: tuple[Verdict, ...]
    decided_by: tuple[int | None, ...] = ()
    int8_against_other: PairedDrop | None = None
    on_devices: tuple[DeviceEvaluation, ...] = ()
    other: OtherEvaluation | None = None

    @property
    def on_one_thread(self) -> dict[str, Evaluation]:
        """The evaluation of every file on one thread, by the file's digest."""
        found: dict[str, Evaluation] = {}
        for evaluation in self.evaluations:
            if evaluation.threads == 1:  # further ones are a target's own protocol
                found.setdefault(evaluation.artifact_sha256, evaluation)
        return found


class StageTime(Record):
    """Wall seconds a stage took when it was made, and whether this run reused it."""

    stage: str
    seconds: float
    reused: bool


class RunReport(Record):
    """Everything a run made and measured; `report.json`.

    Args:
        schema_version: Version of this layout.
        edgekit_version: Version that wrote it.
        command: The command line that repeats the run.
        machine: Processor, cores and system it was measured on.
        packages: Versions of the packages that matter.
        recipe: The recipe as it was used.
        recipe_sha256: Digest of its canonical JSON.
        targets: The targets as they were judged, options of the command line included; fields of
            `edgekit.target.Target`.
        dataset: The data.
        other: Pictures of no class. Defaults to None: none were given.
        labels: What is suspicious about its labels. Defaults to None: not looked at.
        float_model: Training.
        quantized: Quantization.
        export: Files and parity.
        validation: Measurements and verdicts.
        stages: Time per stage.
        notes: What a reader should know before trusting the numbers.
        peak_memory_bytes: Largest resident set of the process that made any of the stages.
    """

    schema_version: Literal[2] = 2
    edgekit_version: str
    command: str
    machine: str
    packages: dict[str, str]
    recipe: dict[str, Any]
    recipe_sha256: str
    targets: tuple[dict[str, Any], ...]
    dataset: DatasetRecord
    other: OtherRecord | None = None
    labels: LabelsRecord | None = None
    float_model: FloatModelRecord
    quantized: QuantizedModelRecord
    export: ExportRecord
    validation: ValidationRecord
    stages: tuple[StageTime, ...]
    notes: tuple[str, ...]
    peak_memory_bytes: int


def input_codes(
    preprocess: Preprocess, dtype: str, scale: float | None = None, zero_point: int | None = None
) -> npt.NDArray[np.generic]:
    """Returns the tensor value of every possible pixel value, per channel.

    Args:
        preprocess: The contract whose `scale` and `offset` give the real value of a pixel.
        dtype: Dtype of the network input: "float32", "uint8" or "int8".
        scale: Quantization scale of the input; required for the integer dtypes.
        zero_point: Quantization zero point in `dtype`; required for the integer dtypes.

    Returns:
        Array of shape (256, 3) and dtype `dtype`; row p holds the values of a pixel p, the first of
        them for an input of one channel. Integer values are rounded half away from zero, as
        TFLite's QUANTIZE does, and saturated.

    Raises:
        ValueError: If `dtype` is none of the three or an integer dtype comes without `scale`.
    """
    pixels = np.arange(256, dtype=np.float64)[:, None]
    real = pixels * np.array(preprocess.scale) + np.array(preprocess.offset)
    codes: npt.NDArray[np.generic]
    if dtype == "float32":
        codes = real.astype(np.float32)
        return codes
    if dtype not in ("uint8", "int8") or scale is None or zero_point is None:
        msg = f"input dtype {dtype!r} with scale {scale} and zero point {zero_point}"
        raise ValueError(msg)
    limits = np.iinfo(dtype)
    steps = real / scale
    rounded = np.trunc(steps + np.copysign(0.5, steps)) + zero_point
    codes = np.clip(rounded, limits.min, limits.max).astype(dtype)
    return codes
