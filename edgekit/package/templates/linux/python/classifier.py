"""Classifies pictures with the packaged model, preprocessed exactly as it was trained and judged.

Needs what requirements.txt names, and Python 3.9 or newer. `labels.txt` and the model are looked
for beside this file and at the top of the bundle.

    from classifier import Classifier

    classifier = Classifier()
    for label, probability in classifier.classify("picture.jpg"):
        print(label, probability)
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

# What the model was judged with. A model with another digest is another model: package it again.
CONTRACT: dict[str, Any] = {}  # @@CONTRACT@@

HERE = Path(__file__).resolve().parent
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MIN_SIDE_PX = 16
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
# What Pillow's parsers raise on damaged files, beside its own exceptions.
_PARSER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    struct.error,
)
_ORIENTATION = 0x0112
# What turns a picture upright, by the value of its EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # those that exchange width and height

Array = npt.NDArray[Any]


class PackageError(Exception):
    """Something that keeps the package from working; the text says what and what to do."""


class PictureError(PackageError):
    """A file that is not a usable picture; the text says why."""


class Classifier:
    """The packaged model, loaded and checked.

    Args:
        threads: CPU threads of one call. Defaults to None: as many as it was judged with.

    Raises:
        PackageError: If model, labels or runtime are missing or not those of the package.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = int(CONTRACT["threads"]) if threads is None else threads
        content = find(CONTRACT["model"]).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != CONTRACT["sha256"]:
            raise PackageError(
                f"{CONTRACT['model']} is not the file that was judged: its sha256 is {digest}, not "
                f"{CONTRACT['sha256']}. It was damaged or replaced: copy it from the bundle again."
            )
        self.labels = _labels()
        self.codes = _codes()
        is_tflite = CONTRACT["format"] == "tflite"
        opening = _open_litert if is_tflite else _open_onnxruntime
        self.runtime = "LiteRT" if is_tflite else "onnxruntime"
        self.runtime_version, self._run = opening(content, self.threads)

    def classify(self, picture: str | Path | bytes, top: int = 5) -> list[tuple[str, float]]:
        """Returns the likeliest classes and their probabilities, from 0 to 1, the highest first.

        Args:
            picture: Path of a JPEG, PNG, BMP or WebP file, or its bytes.
            top: How many. Defaults to 5.

        Raises:
            PictureError: If it is not a usable picture.
        """
        return self.likeliest(self.run(self.preprocess(picture)), top)

    def likeliest(self, raw: Array, top: int = 5) -> list[tuple[str, float]]:
        """Returns the likeliest classes and their probabilities, from a raw output.

        Args:
            raw: The output.
            top: How many. Defaults to 5.
        """
        likely = self.probabilities(raw)
        best = np.argsort(-likely, kind="stable")[:top]
        return [(self.labels[index], float(likely[index])) for index in best]

    def preprocess(self, picture: str | Path | bytes) -> Array:
        """Returns the input tensor of a picture, of shape `(1, height, width, channels)`.

        Args:
            picture: Path of a JPEG, PNG, BMP or WebP file, or its bytes.

        Raises:
            PictureError: If it is not a usable picture.
        """
        return self.tensor(pixels(read(picture)))

    def tensor(self, fitted: Array) -> Array:
        """Returns the input tensor of uint8 pixels that have the model's size and channel order."""
        channels = np.arange(self.codes.shape[1])
        return np.ascontiguousarray(self.codes[fitted[..., channels], channels][None])

    def run(self, tensor: Array) -> Array:
        """Returns the raw output of shape `(classes,)` to an input tensor, in the model's dtype."""
        return self._run(tensor)

    def scores(self, raw: Array) -> Array:
        """Returns a raw output as real numbers, float32."""
        real = raw.astype(np.float32)
        if CONTRACT["output_scale"] is None:
            return real
        zero_point = np.float32(CONTRACT["output_zero_point"])
        return np.asarray(np.float32(CONTRACT["output_scale"]) * (real - zero_point))

    def accepts(self, raw: Array) -> bool:
        """Returns whether the answer in a raw output counts.

        It does if its score is above the contract's `score_threshold`, which keeps out most
        pictures of no class; every one does where the package was made without such pictures.
        """
        threshold = CONTRACT["score_threshold"]
        return threshold is None or bool(self.scores(raw).max() > threshold)

    def probabilities(self, raw: Array) -> Array:
        """Returns the probability of every class, from a raw output; they add up to 1."""
        real = self.scores(raw).astype(np.float64)
        if CONTRACT["gives_probabilities"]:
            return real
        powers = np.exp(real - real.max())
        return np.asarray(powers / powers.sum())


def find(name: str) -> Path:
    """Returns where a file of the package lies: beside this one, or at the top of the bundle.

    Raises:
        PackageError: If it is in neither place.
    """
    for folder in (HERE, HERE.parent.parent):
        if (folder / name).is_file():
            return folder / name
    raise PackageError(
        f"{name} is missing: it is neither in {HERE} nor in {HERE.parent.parent}. Copy the whole "
        "bundle to the board, or this file of it beside classifier.py."
    )


def read(picture: str | Path | bytes) -> bytes:
    """Returns the bytes of a picture file.

    Raises:
        PictureError: If there is no such file or it cannot be read.
    """
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise PictureError(f"cannot be read ({error.strerror})") from None


def pixels(content: bytes) -> Array:
    """Returns the upright, cropped and resized picture in the model's size and channel order.

    Args:
        content: The bytes of the file.

    Returns:
        uint8 of shape `(height, width, 3)`.

    Raises:
        PictureError: If it is not a usable picture.
    """
    with _own_limit():
        picture = decode(content, least_px())
        opened = Image.open(io.BytesIO(content))
        # Only a JPEG comes out smaller, and its orientation is known before its pixels.
        if max(picture.size) == max(opened.size):
            return fit(picture)
        turned = opened.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
        return fit(picture, opened.size[::-1] if turned else opened.size)


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Takes Pillow's limit of pixels out of the way, in whose place `_check_size` stands."""
    kept = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = kept


def decode(content: bytes, least_px: int | None = None) -> Image.Image:
    """Returns an upright RGB picture.

    EXIF orientation is applied; transparency is composed on white; 16-bit and CMYK are converted.

    Args:
        content: The bytes of a JPEG, PNG, BMP or WebP file, whatever its name says.
        least_px: If given, a JPEG may come out at a half, a quarter or an eighth of its size, as
            long as both sides keep so many pixels: faster, and how the model was trained.

    Raises:
        PictureError: If it is none of these, damaged, too small or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata; pixels decide here
            picture: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
            _check_size(*picture.size)
            # Decoding a PNG leaves some of its checksums out.
            Image.open(io.BytesIO(content), formats=FORMATS).verify()
            # MPO: a JPEG of a camera with more pictures behind the first.
            if least_px is not None and picture.format in ("JPEG", "MPO"):
                picture.draft(None, (least_px, least_px))  # type: ignore[arg-type,unused-ignore]
            picture.load()
            turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
            upright = picture if turn is None else picture.transpose(turn)
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"not a {', '.join(FORMATS)} picture, or damaged") from None
    except Image.DecompressionBombError:
        raise PictureError("too large for Pillow") from None
    except _PARSER_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else error.__class__.__name__
        raise PictureError(f"truncated or damaged ({reason})") from None
    return _rgb(upright)


def _check_size(width: int, height: int) -> None:
    if width * height > CONTRACT["max_pixels"]:
        most = CONTRACT["max_pixels"] / 1e6
        raise PictureError(f"too large: {width} x {height} px, at most {most:g} megapixels")
    if min(width, height) < MIN_SIDE_PX:
        raise PictureError(f"{width} x {height} px, smaller than {MIN_SIDE_PX} px")


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        # Only a 16-bit grey PNG comes so; Pillow clips it instead of scaling it.
        values = np.asarray(picture, dtype=np.float64)
        picture = Image.fromarray((values / 257).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return picture.convert("RGB")


def fit(picture: Image.Image, size: tuple[int, int] | None = None) -> Array:
    """Returns an upright RGB picture cropped, or letterboxed, and resized for the model.

    Args:
        picture: The picture.
        size: Width and height of the upright picture in its file. Where it was decoded below
            that, a whole pixel is too coarse a step for the edge of a crop. Defaults to None: the
            picture has its full size.

    Returns:
        uint8 of shape `(height, width, 3)` in the model's channel order; three times the luma
        where that is "grey".
    """
    width, height = CONTRACT["width_px"], CONTRACT["height_px"]
    fill = Image.new("RGB", (1, 1), tuple(CONTRACT["fill"]))
    if CONTRACT["channels"] == "grey":
        picture, fill = (each.convert("L").convert("RGB") for each in (picture, fill))
    shrunk = size is not None and size != picture.size
    box: tuple[float, float, float, float] | None = None
    if CONTRACT["crop"] == "center":
        ratio = min(picture.width / width, picture.height / height)
        kept_width, kept_height = width * ratio, height * ratio
        if not shrunk:
            kept_width, kept_height = round(kept_width), round(kept_height)
        left, top = (picture.width - kept_width) / 2, (picture.height - kept_height) / 2
        if shrunk:
            box = (left, top, left + kept_width, top + kept_height)
        else:
            corner = int(left), int(top)
            picture = picture.crop((*corner, corner[0] + kept_width, corner[1] + kept_height))
    if CONTRACT["crop"] == "letterbox":
        place, kept = letterbox(*(size or picture.size))
        resized = fill.resize((width, height))
        resized.paste(picture.resize(kept, _FILTERS[CONTRACT["resize"]]), place)
    else:
        resized = picture.resize((width, height), _FILTERS[CONTRACT["resize"]], box)
    rgb = np.asarray(resized, dtype=np.uint8)
    return rgb[..., ::-1] if CONTRACT["channels"] == "bgr" else rgb


def letterbox(width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns where a whole upright picture of this size lies in the input, and how large.

    In whole numbers, so that no device rounds otherwise.

    Returns:
        (left, top) and (width, height).
    """
    into = CONTRACT["width_px"], CONTRACT["height_px"]
    if width * into[1] >= height * into[0]:
        kept = into[0], max(1, (2 * height * into[0] + width) // (2 * width))
    else:
        kept = max(1, (2 * width * into[1] + height) // (2 * height)), into[1]
    return ((into[0] - kept[0]) // 2, (into[1] - kept[1]) // 2), kept


def least_px() -> int | None:
    """Returns the side that a reduced decoding keeps; None where the whole picture is decoded."""
    if CONTRACT["resize"] == "nearest":  # picks single pixels, which a scaled decode has not
        return None
    return int(2 * max(CONTRACT["width_px"], CONTRACT["height_px"]))


def _codes() -> Array:
    """Returns the tensor value of every pixel value, per channel, of shape `(256, channels)`."""
    levels = np.arange(256, dtype=np.float64)[:, None]
    real = levels * np.array(CONTRACT["scale"]) + np.array(CONTRACT["offset"])
    real = real[:, : CONTRACT["input_channels"]]
    if CONTRACT["input_dtype"] == "float32":
        return np.asarray(real.astype(np.float32))
    limits = np.iinfo(CONTRACT["input_dtype"])
    steps = real / CONTRACT["input_scale"]
    rounded = np.trunc(steps + np.copysign(0.5, steps)) + CONTRACT["input_zero_point"]
    return np.asarray(np.clip(rounded, limits.min, limits.max).astype(CONTRACT["input_dtype"]))


def _labels() -> list[str]:
    content = find("labels.txt").read_bytes().replace(b"\r\n", b"\n")
    content = content[:-1] if content.endswith(b"\n") else content
    if hashlib.sha256(content).hexdigest() != CONTRACT["labels_sha256"]:
        raise PackageError(
            "labels.txt does not hold the names that this model was judged with, in their order: "
            "every answer could get a wrong name. Copy it from the bundle again."
        )
    return content.decode("utf-8").split("\n")


def _open_litert(content: bytes, threads: int) -> tuple[str, Callable[[Array], Array]]:
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise _missing("ai-edge-litert", error) from error
    own = CONTRACT["delegate"] == "none"
    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if own else OpResolverType.AUTO
    try:
        interpreter = Interpreter(
            model_content=content, num_threads=threads, experimental_op_resolver_type=kernels
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise PackageError(f"LiteRT does not take {CONTRACT['model']}: {error}") from error
    asked = interpreter.get_input_details()[0]["index"]
    answer = interpreter.get_output_details()[0]["index"]

    def run(tensor: Array) -> Array:
        interpreter.set_tensor(asked, tensor)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(answer)).reshape(-1)

    return version("ai-edge-litert"), run


def _open_onnxruntime(content: bytes, threads: int) -> tuple[str, Callable[[Array], Array]]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise _missing("onnxruntime", error) from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    # Without it, x86 without VNNI multiplies uint8 by int8 in 16 bits, which overflow; with VNNI it
    # only takes longer. Source: onnxruntime_session_options_config_keys.h
    options.add_session_config_entry("session.x64quantprecision", "0" if _has_vnni() else "1")
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise PackageError(f"onnxruntime does not take {CONTRACT['model']}: {error}") from error
    asked = session.get_inputs()[0].name

    def run(tensor: Array) -> Array:
        return np.asarray(session.run(None, {asked: tensor})[0]).reshape(-1)

    try:
        return version("onnxruntime"), run
    except PackageNotFoundError:  # builds with other providers have other package names
        return str(ort.__version__), run


def _has_vnni() -> bool:
    """Returns whether Linux says that this processor has instructions for products of 8 bits."""
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace").split()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _missing(package: str, error: ImportError) -> PackageError:
    return PackageError(
        f"{package} cannot be imported ({error}). Install what the package needs: "
        "python3 -m pip install -r requirements.txt"
    )
