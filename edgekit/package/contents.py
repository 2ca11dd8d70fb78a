"""What every kind of package is made from: the judged file, its contract and its goldens.

Package layer. Each kind is one module with `files(contents) -> dict[str, bytes]`: paths below the
bundle, with forward slashes, and their content. The same contents make the same bytes;
`edgekit.packaging` adds what every bundle has and writes folder and zip.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.limits import PICTURE_MEGAPIXELS
from edgekit.records import Artifact, Preprocess, TensorInfo, Verdict
from edgekit.target import Target

# Raw outputs of one file may differ by so many codes between kernels of different processors.
TOLERANCE_STEPS = 1
# The same for float32 outputs, as a share of the largest output of the golden: behind float
# arithmetic, and behind integers, where one code more inside moves the output by steps. Measured
# between x86-64 and WebAssembly: "dynamic" 1.6 %, "int8" none; an overflow in a kernel, which is
# what goldens are to find, moved outputs by 6 to 20 %.
TOLERANCE_SHARE = 1e-4
TOLERANCE_SHARE_INTEGER = 0.05
# What the code of a phone decodes at once: 200 MB at 4 bytes a pixel. Android decodes a JPEG at a
# fraction of its size, so a larger one is read there.
DECODED_PIXELS_OF_A_PHONE = 50_000_000


@dataclass(frozen=True)
class Golden:
    """One input with the answer that the judged file gives to it here.

    Args:
        name: What it is called: "cat_00", "all_zero"; letters, digits and underscores.
        input: The exact input tensor of shape `(1, height, width, 3)` in the file's own dtype.
        output: The raw output of shape `(classes,)` in the file's own dtype.
        label: Index of its true class; None for a synthetic input, or a picture of no class.
        picture: The source picture's file, EXIF included; None for a synthetic input, or where no
            pictures may be shipped.
        picture_name: Name of the file in `goldens/images/`; empty without a picture.
        accepted: Whether its answer counts, see `Contents.score_threshold`. Defaults to None:
            there is no threshold, or the score lies too near to it to be checked elsewhere.
    """

    name: str
    input: npt.NDArray[np.generic]
    output: npt.NDArray[np.generic]
    label: int | None
    picture: bytes | None
    picture_name: str
    accepted: bool | None = None

    @property
    def answer(self) -> int:
        """Index of the highest output; the lowest of equal ones."""
        return int(self.output.argmax())


@dataclass(frozen=True)
class Contents:
    """What a package is made from.

    Args:
        name: Identifier in generated code: a lower-case letter, then lower-case letters, digits and
            underscores, at most 63 in all.
        title: Name for people.
        licence: SPDX identifier of the model's licence.
        model: The judged file, byte for byte; a TFLite file with metadata added, which answers the
            goldens to the bit as the judged one.
        model_name: Its name in the bundle, such as "model.tflite".
        artifact: Its record: format, variant, io, operators.
        input: Its input tensor: dtype, shape, scale, zero point.
        output: Its output tensor.
        preprocess: The contract from picture to tensor.
        class_names: Names of the classes in output order; any text without control characters.
        goldens: 16 to 32 with pictures, where there are as many, and three synthetic ones.
        target: The target that the file was judged for.
        verdict: How it was judged.
        arena_bytes: For microcontrollers: arena measured by TensorFlow Lite Micro's recorder on the
            host; None where it is not known.
        facts: Further strings that the card and the manifest name: versions and digests, by key.
        score_threshold: Above which score, the highest output as a real number, an answer counts,
            so that few pictures of no class get one. Defaults to None: every answer counts.
        max_pixels: Largest picture that the package's own code reads, in pixels, as the run did.
            Defaults to that of a recipe.
    """

    name: str
    title: str
    licence: str
    model: bytes
    model_name: str
    artifact: Artifact
    input: TensorInfo
    output: TensorInfo
    preprocess: Preprocess
    class_names: tuple[str, ...]
    goldens: tuple[Golden, ...]
    target: Target
    verdict: Verdict
    arena_bytes: int | None
    facts: dict[str, str]
    score_threshold: float | None = None
    max_pixels: int = int(PICTURE_MEGAPIXELS * 1e6)
