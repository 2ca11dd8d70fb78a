"""What the user asks for: the TOML recipe, typed and frozen. Bottom layer, above `spec`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from edgekit.errors import SpecError
from edgekit.limits import PICTURE_MEGAPIXELS
from edgekit.records import Crop, Level
from edgekit.spec import Spec, conflict, load, render

WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)

NonEmpty = Annotated[str, Field(min_length=1)]
# Below it the last blocks of MobileNetV2, which halves five times, would see less than one pixel.
Side = Annotated[int, Field(ge=32, le=1024)]


class DataSpec(Spec):
    """Where the images are and how they become splits."""

    # TOML has no paths; a text stands for one.
    path: Path = Field(
        strict=False,
        description="Folder of images, relative to this file: sub-folders of classes or of splits, "
        "images with a table, or Parquet or TFRecord files of them.",
    )
    table: Path | None = Field(
        default=None,
        strict=False,
        description="Table of the pictures' classes (.csv, .tsv, .jsonl), relative to this file; "
        "without it the folders tell the classes, or a table that lies beside the pictures.",
        examples=["labels.csv"],
    )
    path_column: NonEmpty | None = Field(
        default=None,
        description="Column of that table that names the pictures, or of Parquet that holds them; "
        "found by itself where it can.",
        examples=["image_id"],
    )
    label_column: NonEmpty | None = Field(
        default=None, description="Column of the classes, likewise.", examples=["breed"]
    )
    split_column: NonEmpty | None = Field(
        default=None, description="Column of the splits, likewise.", examples=["subset"]
    )
    corrections: Path | None = Field(
        default=None,
        strict=False,
        description="Table of images to leave out or to give another class, relative to this file: "
        "columns path, action (leave out or relabel) and label; suspicious_labels.csv of a run, "
        "filled in, is one.",
        examples=["corrections.csv"],
    )
    other: Path | None = Field(
        default=None,
        strict=False,
        description="Folder of pictures that belong to no class, relative to this file: they "
        "decide above which score an answer counts, and train nothing.",
        examples=["other"],
    )
    false_accept_rate: float = Field(
        default=0.05,
        ge=0.001,
        le=0.5,
        description="Largest share of pictures of no class whose answer may count.",
    )
    ignore: tuple[NonEmpty, ...] = Field(
        default=(),
        strict=False,
        description="Files and folders below the data folder that are not looked at.",
        examples=[["raw", "rejected"]],
    )
    follow_links: bool = Field(
        default=False,
        description="Whether symbolic links that lead out of the data folder are followed.",
    )
    crop: Crop = Field(
        default="none",
        description='"none" stretches the whole picture, "center" takes its largest centred part '
        'with the shape of the input, "letterbox" scales all of it to fit inside and fills the '
        "rest.",
    )
    fill: Level | Annotated[tuple[Level, Level, Level], Field(strict=False)] = Field(
        default=114,
        description='What "letterbox" fills with: one number for all channels, or red, green and '
        "blue.",
        json_schema_extra={"x-accepted": "a whole number from 0 to 255, or a list of three"},
    )
    resize: Literal["bilinear", "bicubic", "nearest"] = Field(
        default="bilinear", description="Antialiased filter that scales a picture to the input."
    )
    validation_fraction: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="Fraction of the images that training is steered by.",
    )
    test_fraction: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="Fraction of the images that only the final verdict sees.",
    )
    min_images_per_class: int = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="Smallest number of training images of a class; fewer refuses the data.",
    )
    max_bad_fraction: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Largest fraction of pictures that may be left out because they cannot be read "
        "or are not followed to; more refuses the data.",
    )
    # A picture that is no JPEG takes 4 bytes of memory a pixel, and more beside it while it is
    # converted; a process for each core decodes one.
    max_megapixels: float = Field(
        default=PICTURE_MEGAPIXELS,
        gt=0,
        le=2000,
        description="Largest picture that is read, in millions of pixels.",
    )
    max_conflicting_fraction: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Largest fraction of images that is left out because the same pixels stand "
        "under two classes; more refuses the data. One group of them passes, unless this is 0.",
    )

    check_labels: bool = Field(
        default=True,
        description="Whether labels that the images contradict are looked for before training; "
        "needs starting weights, and takes about as long as an epoch of the head.",
    )

    @field_validator("path", mode="before")
    @classmethod
    def _path_is_given(cls, value: object) -> object:
        # Path("") is the current folder, which nobody means by an empty text.
        if value == "":
            msg = "empty path"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _only_a_letterbox_is_filled(self) -> Self:
        if self.crop != "letterbox" and self.fill != type(self).model_fields["fill"].default:
            raise conflict(f'fill with crop "{self.crop}"', 'crop = "letterbox", or no fill')
        return self

    @property
    def fill_rgb(self) -> tuple[int, int, int]:
        """Red, green and blue that a letterbox is filled with."""
        return self.fill if isinstance(self.fill, tuple) else (self.fill,) * 3

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            received = (
                f"validation_fraction {self.validation_fraction} and test_fraction "
                f"{self.test_fraction} leave no image to train on"
            )
            raise conflict(received, "a sum below 1")
        return self


class ModelSpec(Spec):
    """Which MobileNetV2."""

    alpha: float = Field(
        default=1.0,
        description="Width of MobileNetV2: channels per layer relative to the published network.",
        json_schema_extra={"enum": list(WIDTHS)},
    )
    input_size_px: Side | Annotated[tuple[Side, Side], Field(strict=False)] = Field(
        default=160,
        description="Side of the square input in pixels, or its height and its width.",
        json_schema_extra={
            "x-accepted": "a whole number from 32 to 1024, or a list of two: height and width"
        },
    )
    channels: Literal["rgb", "grey"] = Field(
        default="rgb",
        description='"grey" is for devices with a grey camera: the input has one channel, the luma '
        "of each picture, and the first kernel is that of the weights summed over red, green and "
        "blue.",
    )
    weights: str = Field(
        default="imagenet",
        description='Where training starts: "imagenet" downloads the published weights, "none" '
        "starts at random, a path (relative to this file) reads backbone weights from a file.",
        json_schema_extra={
            "x-accepted": '"imagenet", "none" or a path that ends in .h5, .keras or .npz'
        },
    )
    dropout: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Fraction of the features before the classifier that a training step drops.",
    )

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        side = self.input_size_px
        return side if isinstance(side, tuple) else (side, side)

    @field_validator("alpha")
    @classmethod
    def _width_is_published(cls, value: float) -> float:
        if value not in WIDTHS:
            msg = "not a published width"
            raise ValueError(msg)
        return value

    @field_validator("weights")
    @classmethod
    def _weights_are_a_name_or_a_file(cls, value: str) -> str:
        # What a file is, its content says; a word without a suffix is none of the names.
        if value not in ("imagenet", "none") and not Path(value).suffix:
            msg = "neither a name nor a weight file"
            raise ValueError(msg)
        return value


# Where defaults below are compared by validation loss, it is the cross-entropy as it is, not at the
# best temperature (`fitting.losses.validation_losses`), unless that is said.
class AugmentSpec(Spec):
    """How training pictures are varied."""

    # Not here, as they brought nothing: a random rectangle made grey, and random resized crops of
    # half the area or more, both without mirroring. Loss against neither, and its standard error,
    # of all training and validation pictures in four folds (block_6, alpha 0.35, 96 px, seed 1):
    # clothing +0.004 and +0.006 (0.009); waste, two folds, +0.038 and -0.011 (0.017).

    enabled: bool = Field(default=True, description="Whether training pictures are varied at all.")
    # Validation loss with it, against without (block_6, alpha 0.35, 96 px, one or two seeds):
    # clothing 0.405, 0.405; waste 0.498, 0.445; leaf 0.088, 0.082; hands 0.193, 0.107; mri 0.235,
    # 0.210; grocery 1.043, 1.026; top-1 is 0.3 to 7.5 points lower. It brings nothing in so few
    # epochs, and costs much where a mirrored picture means something else.
    flip: bool = Field(
        default=False,
        description="Whether half of the pictures are mirrored left to right; not where direction "
        "matters, as in text, road signs or hands.",
    )
    shift: float = Field(
        default=0.08, ge=0, le=0.5, description="Largest shift, as a fraction of the side."
    )
    zoom: float = Field(
        default=0.12, ge=0, le=0.9, description="Largest change of scale, as a fraction."
    )
    brightness: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Largest change of brightness, as a fraction of the full range.",
    )
    contrast: float = Field(
        default=0.15, ge=0, le=1, description="Largest change of contrast, as a fraction."
    )


class TrainSpec(Spec):
    """Head first, then a comparison of cuts from the output side, then a training from the best."""

    batch_size: int = Field(default=32, ge=1, le=4096, description="Images per training step.")
    head_epochs: int = Field(
        default=12,
        ge=1,
        le=1000,
        description="Epochs of the first phase, in which only the new head trains.",
    )
    head_learning_rate: float = Field(
        default=1e-3, gt=0, le=1, description="Peak learning rate of the first phase."
    )
    trial_epochs: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Epochs of each cut in the comparison, over at most 1600 training images.",
    )
    epochs: int = Field(
        default=12, ge=1, le=1000, description="Epochs of the final training from the best cut."
    )
    # Validation loss with 600, against 1000 (block_6, alpha 0.35, 96 px, two seeds): leaf 0.096,
    # 0.088; grocery 1.076, 1.043; mri 0.245, 0.235; waste 0.50, 0.50; hands 0.19, 0.19.
    min_steps: int = Field(
        default=1000,
        ge=0,
        le=1_000_000,
        description="Fewest steps of the final training: where the images are few, its epochs are "
        "raised to that, and those of the other phases in proportion; those of a trial to no more "
        "steps than one of 1600 images takes.",
    )
    # Validation loss from block_6 (alpha 0.35, 96 px) at 5e-4, mean of seeds 1 and 2, against 1e-3:
    # clothing 0.470, 0.414; hands 0.241, 0.19 (seed 1); leaf 0.084, 0.096; grocery 1.13, 1.08. At
    # 2e-3, seed 1: clothing 0.454, waste 0.502 against 0.452.
    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        le=1,
        description="Peak learning rate of the comparison and the final training; falls to zero "
        "along a cosine. Where it makes the network worse, a quarter of it is taken.",
    )
    warmup_steps: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="Steps in which the learning rate rises to its peak; at most a quarter of all.",
    )
    granularity: Literal["stage", "block", "layer"] = Field(
        default="stage",
        description="How much more each cut of the comparison unfreezes; a stage is all blocks of "
        "one width.",
    )
    strategy: Literal["auto", "head", "progressive", "fixed"] = Field(
        default="auto",
        description='How far to unfreeze: "head" trains the classifier alone, "progressive" '
        "compares cuts from the output side by the validation images as long as that helps, "
        '"auto" does so by cross-validation where these are too few, "fixed" trains from '
        "unfreeze_from on.",
    )
    unfreeze_from: Annotated[int, Field(ge=0)] | NonEmpty | None = Field(
        default=None,
        description='First layer to train with strategy "fixed": its index in the network, its '
        'name, "head" for the classifier alone or "all".',
        examples=["block_13_expand"],
    )
    unfreeze_until: Annotated[int, Field(ge=0)] | NonEmpty | None = Field(
        default=None,
        description="Earliest layer that a comparison may unfreeze, as in unfreeze_from; "
        "block_6_expand without it.",
        examples=["block_11_expand"],
    )
    patience: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="Cuts in a row with a higher validation loss than the best, by more than two "
        "standard errors, that end the comparison.",
    )
    # Validation top-1 with 0.05 (as at `AugmentSpec.flip`, one to three seeds): lower by 2.7 points
    # on clothing, 0.6 on leaf and 1.1 on grocery, level on hands, higher by 0.5 on waste and 1.9
    # on mri.
    label_smoothing: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Fraction of the label that is spread over all classes.",
    )
    class_weights: Literal["auto", "none"] | dict[NonEmpty, Annotated[float, Field(gt=0)]] = Field(
        default="auto",
        description='How much a mistake on a picture of each class counts: "none" for alike; '
        '"auto" likewise, unless the largest class has ten times the pictures of the smallest, and '
        "then the root of the inverse frequency; or a table of weights by class, 1 where none is "
        "given.",
        examples=[{"rare_class": 4.0}],
        json_schema_extra={"x-accepted": '"auto", "none" or a table of numbers above 0 by class'},
    )
    augment: AugmentSpec = Field(
        default=AugmentSpec(), description="Variation of the training pictures."
    )
    # Validation loss with 4 instead of 12 (block_6, alpha 0.35, 96 px, 600 steps or more): clothing
    # 0.428, 0.414; hands 0.261, 0.19 (seed 1); leaf 0.093, 0.096; grocery 1.13, 1.08.
    views: int = Field(
        default=12,
        ge=1,
        le=1000,
        description="Varied versions of each training picture, taken in turn epoch after epoch, in "
        "quantization-aware training too; what the frozen layers make of each is computed once. "
        "Where more than the head trains, head and trials see the first trial_epochs of them.",
    )
    activations_budget_bytes: int = Field(
        default=4_000_000_000,
        ge=0,
        description="Most disk space for stored activations while a run trains; never more than "
        "half of what is free. What does not fit is computed again when it is needed, with the "
        "same result.",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_cut_alone_is_fixed(cls, values: object) -> object:
        if isinstance(values, dict) and "strategy" not in values:
            strategy = "auto" if values.get("unfreeze_from") is None else "fixed"
            return {**values, "strategy": strategy}
        return values

    @model_validator(mode="after")
    def _a_limit_belongs_to_a_search(self) -> Self:
        if self.unfreeze_until is not None and self.strategy in ("head", "fixed"):
            received = f'unfreeze_until {self.unfreeze_until!r} with strategy "{self.strategy}"'
            raise conflict(received, 'strategy "auto" or "progressive", or no unfreeze_until')
        return self

    @model_validator(mode="after")
    def _a_cut_belongs_to_fixed(self) -> Self:
        if (self.strategy == "fixed") == (self.unfreeze_from is not None):
            return self
        if self.strategy == "fixed":
            raise conflict(
                'strategy "fixed" without unfreeze_from', "unfreeze_from, or another strategy"
            )
        received = f'unfreeze_from {self.unfreeze_from!r} with strategy "{self.strategy}"'
        raise conflict(received, 'strategy "fixed", or no unfreeze_from')


class QuantizeSpec(Spec):
    """Quantization-aware training and calibration."""

    qat_epochs: int = Field(
        default=6,
        ge=0,
        le=1000,
        description="Epochs of quantization-aware training; 0 quantizes after training only.",
    )
    # Validation loss of int8 (clothing pictures, alpha 0.35, 96 px, seeds 1 and 3), averaged as
    # `quantize.candidates` does, but with the start in the mean: 0.6352, 0.6189 at 1e-4; 0.6196,
    # 0.6073 at 3e-4; 0.5949, 0.5400 at 6e-4 (without the start: 0.5948, 0.5333); 0.5636, 0.4736 at
    # 1e-3, with test and validation top-1 as at 6e-4; and 1.5409 (seed 3), so no more than
    # post-training int8 ships, at 2e-3.
    qat_learning_rate: float = Field(
        default=6e-4,
        gt=0,
        le=1,
        description="Learning rate of quantization-aware training; falls to zero along a cosine.",
    )
    qat_patience: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Epochs without a lower validation loss of int8 after which it stops; the best "
        "epoch ships in any case.",
    )
    temperature: float = Field(
        default=2.0,
        gt=0,
        le=100,
        description="Softmax temperature at which the quantized model imitates the float model.",
    )
    calibration_images: int = Field(
        default=512,
        ge=1,
        le=100_000,
        description="Training images that the activation ranges are measured on.",
    )
    calibration: Literal["auto", "min-max", "percentile", "mse"] = Field(
        default="auto",
        description="How a range follows from the values seen; auto takes for each tensor what "
        "moves the answers to held-out training images least.",
    )
    granularity: Literal["channel", "tensor"] = Field(
        default="channel",
        description="One int8 grid for each output channel of a kernel, or one for the whole "
        'kernel ("tensor"), as some accelerators want.',
    )
    keep_float: tuple[NonEmpty, ...] = Field(
        default=(),
        strict=False,
        description="Layers that compute in float32 inside the int8 files; report.md lists what "
        "int8 costs at each. Refused for targets that need integers throughout.",
        examples=[["Conv1", "block_13_expand"]],
    )
    max_drop: float | None = Field(
        default=None,
        ge=0,
        lt=100,
        description="Most top-1 accuracy that int8 may lose on the validation images, in "
        "percentage points; where it loses more, layers are kept in float32, one more at a time, "
        "until calibrated int8 does not, and training starts again behind them.",
        examples=[0.5],
    )


class ValidateSpec(Spec):
    """How long latency is measured."""

    sessions: int = Field(
        default=5,
        ge=3,
        le=59,
        description="Fresh processes per file; the spread between them decides the verdict.",
    )
    min_queries: int = Field(
        default=200, ge=1, le=1_000_000, description="Fewest timed calls per process."
    )
    min_seconds: float = Field(
        default=1.0, ge=0, le=3600, description="Shortest timed part of a process, in seconds."
    )
    warmup_seconds: float = Field(
        default=0.5, ge=0, le=3600, description="Untimed calls before it, in seconds."
    )
    session_timeout_seconds: float = Field(
        default=300.0, gt=0, le=86_400, description="Seconds after which a process fails."
    )

    @model_validator(mode="after")
    def _sessions_can_end_in_time(self) -> Self:
        shortest = self.warmup_seconds + self.min_seconds
        if self.session_timeout_seconds <= shortest:
            received = (
                f"session_timeout_seconds {self.session_timeout_seconds} is over before "
                f"warmup_seconds and min_seconds, {shortest} together, are"
            )
            raise conflict(received, "a timeout above the sum of the two")
        return self


class Recipe(Spec):
    """Everything that decides what a run makes.

    Paths are absolute when the recipe comes from `load_recipe`.
    """

    schema_version: Literal[1] = Field(default=1, description="Version of the format of this file.")
    seed: int = Field(
        default=1,
        ge=0,
        le=2**31 - 1,
        description="Start of every random sequence: splits, order, augmentation, new weights.",
    )
    targets: tuple[NonEmpty, ...] = Field(
        default=("host-litert", "host-onnxruntime"),
        strict=False,
        min_length=1,
        description="Devices to judge the result for: names that `edgekit targets` lists, or "
        "paths of .toml files, relative to this file.",
    )
    data: DataSpec = Field(description="The images.")
    model: ModelSpec = Field(default=ModelSpec(), description="The network.")
    train: TrainSpec = Field(default=TrainSpec(), description="Fine-tuning.")
    quantize: QuantizeSpec = Field(default=QuantizeSpec(), description="Quantization.")
    validation: ValidateSpec = Field(
        default=ValidateSpec(), description="How the exported files are measured."
    )

    @model_validator(mode="after")
    def _targets_differ(self) -> Self:
        if len(set(self.targets)) < len(self.targets):
            received = f"targets {', '.join(self.targets)}"
            raise conflict(received, "each target once")
        return self


def load_recipe(path: Path) -> Recipe:
    """Returns the recipe in a TOML file, with its paths made absolute.

    Args:
        path: The recipe. Relative paths in it start at its folder; "~" is the home folder.

    Raises:
        SpecError: If the file cannot be read, is not a valid recipe or holds a path that cannot be
            followed. Whether the images, weights and targets exist is checked where they are used.
    """
    recipe = load(path, Recipe)
    folder = path.resolve().parent

    def located(text: str) -> Path:
        try:
            return (folder / Path(text).expanduser()).resolve()
        except (OSError, RuntimeError, ValueError) as err:  # NUL, symlink loop, unknown "~user"
            received = f"{path}: the path {text!a}: {err}"
            raise SpecError(received, "a path that can be followed", "correct it") from err

    weights = recipe.model.weights
    if weights not in ("imagenet", "none"):
        weights = str(located(weights))
    return recipe.model_copy(
        update={
            "targets": tuple(
                str(located(name)) if name.endswith(".toml") else name for name in recipe.targets
            ),
            "data": recipe.data.model_copy(
                update={
                    key: located(str(path))
                    for key in ("path", "table", "corrections", "other")
                    if (path := getattr(recipe.data, key)) is not None
                }
            ),
            "model": recipe.model.model_copy(update={"weights": weights}),
        }
    )


def default_recipe(data: Path, **form: Any) -> Recipe:
    """Returns the recipe that only names its images; everything else has its default.

    Args:
        data: Folder of images; kept as given.
        form: Other fields of `DataSpec`.
    """
    return Recipe(data=DataSpec(path=data, **form))


def recipe_toml(recipe: Recipe) -> str:
    """Returns the recipe as TOML in which a comment explains every key, its range and default.

    Raises:
        SpecError: If a path in it is not valid Unicode.
    """
    return "# An edgekit recipe. Run it with: edgekit run RECIPE.toml\n\n" + render(recipe)
