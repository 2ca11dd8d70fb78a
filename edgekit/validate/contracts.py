"""How the input of a foreign file is prepared: who says so, and what is usual. Stage layer."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import ValidationError

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import (
    Crop,
    Level,
    Preprocess,
    Record,
    TensorInfo,
    Variant,
    input_codes,
)
from edgekit.runtimes.base import PREPROCESS_KEY
from edgekit.runtimes.ends import feed_of
from edgekit.runtimes.tflite_metadata import Metadata

PerChannel = float | Sequence[float]
# Two contracts may differ by half a grey level: that is how a quantized input rounds a float one.
ROUNDING_LEVELS = 0.51
# 1/128 and 1/127.5 are one apart at white, and rounding adds its half.
_ONE_LEVEL = 1.5
# Fewer tensor values than this for the 256 of a pixel: a contract that an integer input cannot
# hold.
_LEAST_VALUES = 64


class UnsaidScalingError(SpecError):
    """Neither the user nor the file says how pixels become the values of the input."""


class Usual(Record):
    """One of the contracts that classifiers are trained with.

    Args:
        words: What it is, for people.
        scale: Multiplier per channel of `pixel * scale + offset`, in the order of `channels`.
        offset: Addend per channel.
        channels: "rgb", "bgr" or "grey".
    """

    words: str
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    channels: Literal["rgb", "bgr", "grey"] = "rgb"

    @property
    def swapped(self) -> "Usual":
        """The same for a network that takes the channels the other way round."""
        bgr = self.channels == "rgb"
        return Usual(
            words=f"{self.words}, {'blue' if bgr else 'red'} first",
            scale=self.scale[::-1],
            offset=self.offset[::-1],
            channels="bgr" if bgr else "rgb",
        )

    @property
    def flags(self) -> str:
        """How it is given on the command line."""
        said = []
        for option, numbers in (("--input-scale", self.scale), ("--input-offset", self.offset)):
            shown = numbers[:1] if len(set(numbers)) == 1 else numbers
            said += [f"{option} {number:.6g}" for number in shown]
        return " ".join((*said, *(["--channels bgr"] if self.channels == "bgr" else [])))


# Keras' `preprocess_input` knows "tf" (MobileNet, Inception), "torch" (DenseNet, and all models of
# torchvision) and "caffe" (ResNet, VGG), in
# https://github.com/keras-team/keras/blob/master/keras/src/applications/imagenet_utils.py; other
# networks start with a Rescaling layer of their own (EfficientNet, MobileNetV3) or take 0 to 1
# (TF Hub).
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
USUAL = (
    Usual(words="-1 to 1", scale=(1 / 127.5,) * 3, offset=(-1.0,) * 3),
    Usual(words="0 to 1", scale=(1 / 255,) * 3, offset=(0.0,) * 3),
    Usual(words="0 to 255", scale=(1.0,) * 3, offset=(0.0,) * 3),
    Usual(
        words="ImageNet's mean and deviation",
        scale=(1 / (255 * _STD[0]), 1 / (255 * _STD[1]), 1 / (255 * _STD[2])),
        offset=(-_MEAN[0] / _STD[0], -_MEAN[1] / _STD[1], -_MEAN[2] / _STD[2]),
    ),
    Usual(
        words="ImageNet's mean, blue first",
        scale=(1.0,) * 3,
        offset=(-103.939, -116.779, -123.68),
        channels="bgr",
    ),
)
EVERY_USUAL = (*USUAL, *(usual.swapped for usual in USUAL[:4]))
# Those that say the same of each channel.
USUAL_GREY = tuple(usual.model_copy(update={"channels": "grey"}) for usual in USUAL[:3])


class InputOptions(Record):
    """How the input of a foreign model is prepared, as far as the user says so.

    Args:
        scale: Multiplier per channel of `pixel * scale + offset`. Defaults to None: from the file.
        offset: Addend per channel. Defaults to None: from the file.
        resize: Resampling filter. Defaults to None: from the file, else "bilinear".
        crop: "none", "center" or "letterbox". Defaults to None: from the file, else "none".
        fill: What a letterbox is filled with. Defaults to None: from the file, else 114 for each.
        channels: "rgb" or "bgr". Defaults to None: from the file, else "rgb".
    """

    scale: tuple[float, float, float] | None = None
    offset: tuple[float, float, float] | None = None
    resize: Literal["bilinear", "bicubic", "nearest"] | None = None
    crop: Crop | None = None
    fill: tuple[Level, Level, Level] | None = None
    channels: Literal["rgb", "bgr"] | None = None


class Recorded(Record):
    """What edgekit's own record beside a file that it exported says about that file."""

    preprocess: Preprocess
    variant: Variant
    class_names: tuple[str, ...]


def per_channel(value: PerChannel | None, option: str) -> tuple[float, float, float] | None:
    """Returns a number or three as one per channel.

    Raises:
        SpecError: If there are neither one nor three numbers.
    """
    if value is None:
        return None
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(numbers) not in (1, 3) or not np.isfinite(numbers).all():
        found = f"{option} {' '.join(str(n) for n in numbers)}"
        raise SpecError(found, "one finite number, or three", "give one per channel, or one")
    first, second, third = numbers * (3 // len(numbers))
    return first, second, third


def filling(levels: Sequence[int] | None) -> tuple[int, int, int] | None:
    """Returns one level of `--fill` or three as red, green and blue.

    Raises:
        SpecError: If there are neither one nor three, or one is not from 0 to 255.
    """
    if levels is None:
        return None
    if len(levels) not in (1, 3) or not all(0 <= level <= 255 for level in levels):
        found = f"--fill {' '.join(map(str, levels[:4]))}"
        expected = "one whole number from 0 to 255, or three"
        raise SpecError(found, expected, "give one, or --fill for red, for green and for blue")
    red, green, blue = tuple(levels) * (3 // len(levels))
    return red, green, blue


def external_preprocess(
    model_input: TensorInfo,
    metadata: Mapping[str, str],
    options: InputOptions,
    recorded: Recorded | None = None,
    said: Metadata | None = None,
) -> Preprocess:
    """Returns the contract of a foreign input.

    In this order, item by item: what the user says; the contract in the record beside the file;
    the one that edgekit wrote into the file; the normalization in its TFLite metadata; the
    quantization of an integer input, where the usual convention makes the uint8 code the pixel
    itself and the int8 code `pixel - 128`.

    Args:
        model_input: The input of the file.
        metadata: Text entries of the file.
        options: What the user says.
        recorded: From the record beside the file. Defaults to None: there is none.
        said: The file's TFLite metadata. Defaults to None: it has none.

    Raises:
        UnsaidScalingError: If neither the user nor the file says how the input is scaled.
        SpecError: If scale or offset is given alone, or an order of channels or a number for each
            of them for an input that has one channel, or a fill without a letterbox.
        IntegrityError: If the contract in the file is broken or contradicts its input.
    """
    if (options.scale is None) != (options.offset is None):
        given = "--input-scale" if options.offset is None else "--input-offset"
        found = f"{given} alone"
        raise SpecError(found, "--input-scale and --input-offset together", "give both")
    known = recorded.preprocess if recorded else stored_contract(metadata)
    known = known or described_contract(said, model_input)
    if known is not None:
        _check_size(known, model_input)
    elif options.scale is not None:
        known = _for_size(model_input)
    else:
        known = _plain_contract(model_input)
    known = known.model_copy(update=options.model_dump(exclude_none=True))
    if options.fill is not None and known.crop != "letterbox":
        found = f"--fill with crop {known.crop}"
        raise SpecError(found, "--crop letterbox, which fills", "give both, or leave out --fill")
    return known if feed_of(model_input).channels == 3 else _grey(known, options)


def _for_size(model_input: TensorInfo) -> Preprocess:
    feed = feed_of(model_input)
    return Preprocess(height_px=feed.height_px, width_px=feed.width_px)


def _plain_contract(model_input: TensorInfo) -> Preprocess:
    """Returns the contract that makes the code of an integer input the pixel itself."""
    scale, offset = _quantized_contract(model_input)
    update = {"scale": (scale,) * 3, "offset": (offset,) * 3}
    return _for_size(model_input).model_copy(update=update)


def _grey(known: Preprocess, options: InputOptions) -> Preprocess:
    """Returns a contract for an input of one channel, which takes the luma of a picture."""
    given = [f"--channels {options.channels}"] if options.channels is not None else []
    given += [
        f"{option} {' '.join(f'{number:g}' for number in numbers)}"
        for option, numbers in (("--input-scale", known.scale), ("--input-offset", known.offset))
        if len(set(numbers)) > 1
    ]
    if given:
        raise SpecError(
            f"{' and '.join(given)} for an input that has one channel",
            "one number, and no order of channels: the luma of each picture is fed",
            "leave out --channels, and give --input-scale and --input-offset once",
        )
    return known.model_copy(update={"channels": "grey"})


def stored_contract(metadata: Mapping[str, str]) -> Preprocess | None:
    """Returns the contract that edgekit itself wrote into a file, if there is one."""
    if PREPROCESS_KEY not in metadata:
        return None
    try:
        return Preprocess.model_validate_json(metadata[PREPROCESS_KEY])
    except ValidationError as err:
        found = f"metadata {PREPROCESS_KEY!r} that is not a preprocessing contract"
        remedy = "export the model again"
        raise IntegrityError(found, "the JSON of a Preprocess record", remedy) from err


def described_contract(said: Metadata | None, model_input: TensorInfo) -> Preprocess | None:
    """Returns the contract that TFLite metadata states; None without one.

    A pixel p becomes `(p - mean) / std`; what comes out is quantized where the input is integer. A
    normalization whose results such an input cannot hold, as 0 and 1 beside a scale of 1/128, means
    the pixels themselves: MediaPipe and the TFLite Task Library never normalize for a uint8 input.
    So does one that differs from them by no more than a grey level.
    """
    image = said.inputs[0] if said is not None and said.inputs else None
    if image is None or not image.mean or len(image.mean) != len(image.std):
        return None
    if len(image.mean) not in (1, 3) or not np.isfinite((*image.mean, *image.std)).all():
        return None
    if min(map(abs, image.std)) == 0:
        return None
    times = 3 // len(image.mean)
    pairs = list(zip(image.mean, image.std, strict=True)) * times
    scale, offset = tuple(1 / std for _, std in pairs), tuple(-mean / std for mean, std in pairs)
    contract = _for_size(model_input).model_copy(update={"scale": scale, "offset": offset})
    if not _fits(contract, model_input):
        return None
    plain = None if model_input.dtype == "float32" else _plain_contract(model_input)
    return None if plain and same_values(contract, plain, _ONE_LEVEL) else contract


def _fits(contract: Preprocess, model_input: TensorInfo) -> bool:
    """Returns whether an input can hold what a contract makes of black and of white."""
    if model_input.dtype == "float32":
        return True
    if not model_input.scale:
        return False
    ends = np.outer((0, 255), contract.scale) + np.array(contract.offset)
    codes = ends / model_input.scale + (model_input.zero_point or 0)
    most = np.iinfo(model_input.dtype)
    # One code beyond the end: 255 is quantized as 256 where the scale is 1/128.
    inside = codes.min() >= most.min - 1.5 and codes.max() <= most.max + 1.5
    return bool(inside and np.ptp(codes, axis=0).min() >= _LEAST_VALUES)


def usual_contracts(model_input: TensorInfo, channels: str | None = None) -> tuple[Usual, ...]:
    """Returns the usual contracts of an input, as many channels as it has.

    Args:
        model_input: The input of the file.
        channels: The order of channels that the user says. Defaults to None: any.
    """
    if feed_of(model_input).channels == 1:
        return USUAL_GREY
    return tuple(usual for usual in EVERY_USUAL if channels in (None, usual.channels))


def other_contracts(given: Preprocess, model_input: TensorInfo) -> tuple[Usual, ...]:
    """Returns the usual contracts that a network could have been trained with instead.

    Args:
        given: The contract in use; those that say the same are left out.
        model_input: What they must fit.
    """
    own = Usual(words="the same", scale=given.scale, offset=given.offset, channels=given.channels)
    found: list[Usual] = []
    swapped = () if given.channels == "grey" else (own.swapped,)
    for usual in (*swapped, *usual_contracts(model_input)):
        contract = given.model_copy(update=usual.model_dump(exclude={"words"}))
        if _fits(contract, model_input) and not any(_same(usual, o) for o in (own, *found)):
            found.append(usual)
    return tuple(found)


def _same(one: Usual, other: Usual) -> bool:
    """Returns whether two contracts are one: 1/128 and 1/127.5 are a grey level apart at white."""
    seen, wanted = (
        Preprocess(height_px=1, width_px=1, scale=u.scale, offset=u.offset) for u in (one, other)
    )
    return one.channels == other.channels and same_values(seen, wanted, _ONE_LEVEL)


def same_values(one: Preprocess, other: Preprocess, levels: float = ROUNDING_LEVELS) -> bool:
    """Returns whether two contracts differ by no more grey levels; by default, by rounding."""
    seen, wanted = (input_codes(c, "float32").astype(np.float64) for c in (one, other))
    return bool((np.abs(seen - wanted) <= levels * np.abs(other.scale)).all())


def _check_size(contract: Preprocess, model_input: TensorInfo) -> None:
    size, feed = (contract.height_px, contract.width_px), feed_of(model_input)
    if size != (feed.height_px, feed.width_px):
        fed = (feed.height_px, feed.width_px)
        found = f"a contract for {size} in a model for {fed} (height, width)"
        raise IntegrityError(found, "the same size in both", "export the model again")


def _quantized_contract(model_input: TensorInfo) -> tuple[float, float]:
    """Returns scale and offset that turn pixels into the codes an integer input expects."""
    scale, zero_point = model_input.scale, model_input.zero_point or 0
    if model_input.dtype == "uint8":
        # Without quantization a uint8 input takes plain pixels.
        return (scale, -scale * zero_point) if scale else (1.0, 0.0)
    if model_input.dtype == "int8" and scale:
        return scale, -scale * (128 + zero_point)
    found = f"a {model_input.dtype} input that does not say how pixels are scaled"
    raise UnsaidScalingError(
        found,
        "--input-scale and --input-offset (value = pixel * scale + offset)",
        "use what it was trained with: 0.00784314 and -1 for -1 to 1 (MobileNetV2), "
        "0.00392157 and 0 for 0 to 1, 1 and 0 for 0 to 255",
    )
