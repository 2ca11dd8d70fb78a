"""What a picture looks like as a whole: too dark, too bright, one colour, blurred, odd, or tiny."""

from collections.abc import Sequence
from statistics import median
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.records import Preprocess

Finding = Literal["very dark", "very bright", "one colour", "blurred", "odd-shaped", "tiny"]
# Mean grey levels of 255. Of 1800 pictures of six public sets the darkest photograph has 50 and
# the brightest 224; slices of MR scans, white on black, begin at 13, and 1 % of them is below 22.
_DARK = 16
_BRIGHT = 240
# A standard deviation of 2 grey levels: JPEG makes as much of one colour.
_FLAT = 4.0
# Of the median sharpness of the set. Of the 1800 pictures none was below it at 96 px, and 1 of 300
# of one set at 160 px; of the same blurred by a Gaussian of 3 px of the input 95 to 100 % were, of
# 2 px 80 to 100 % (hands, 100 px wide, at 160 px: 35 %), of 1 px 2 to 13 % but for leaf (85 %).
_BLURRED = 1 / 20
_LONGEST = 4.0
_TINY = 1 / 2  # of the side of the input


class Appearance(NamedTuple):
    """What is measured of one picture.

    Args:
        width_px: Width of the file's picture.
        height_px: Its height.
        brightness: Mean grey level at the size of the input, 0 to 255.
        variance: Variance of the grey levels there.
        sharpness: Variance of their Laplacian over that variance; 0 without any.
    """

    width_px: int
    height_px: int
    brightness: float
    variance: float
    sharpness: float


def appearance(size: tuple[int, int], pixels: npt.NDArray[np.uint8], order: str) -> Appearance:
    """Measures a picture.

    Sharpness is the variance of the Laplacian (Pech-Pacheco et al., Diatom autofocusing in
    brightfield microscopy: a comparative study, ICPR 2000), here over the variance of the grey
    levels, so that contrast does not count, and at the size of the input: a blur that is lost
    with the resizing harms nothing.

    Args:
        size: Width and height of the file's picture, upright.
        pixels: uint8 of shape (h, w, 3), as the network gets it, but for what fills a letterbox.
        order: "rgb" or "bgr".
    """
    # Weights of ITU-R BT.601, as Pillow makes grey.
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    grey = pixels.astype(np.float32) @ (weights if order == "rgb" else weights[::-1])
    variance = float(grey.var())
    inner = grey[1:-1, 1:-1]
    laplacian = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    # A letterboxed strip may be too thin for it.
    sharpness = float(laplacian.var()) / variance if variance > 0 and laplacian.size else 0.0
    return Appearance(*size, float(grey.mean()), variance, sharpness)


def unusual(
    appearances: Sequence[Appearance], preprocess: Preprocess
) -> dict[Finding, list[tuple[int, str]]]:
    """Returns the pictures that look unlike what a network learns from.

    Args:
        appearances: Of all pictures that are used.
        preprocess: Says the size of the input.

    Returns:
        Index of each picture and what was measured of it, in words, by finding.
    """
    found: dict[Finding, list[tuple[int, str]]] = {}
    with_content = [a.sharpness for a in appearances if a.variance >= _FLAT]
    blurred = _BLURRED * median(with_content) if with_content else 0.0
    tiny_px = min(preprocess.width_px, preprocess.height_px) * _TINY

    def note(finding: Finding, index: int, measured: str) -> None:
        found.setdefault(finding, []).append((index, measured))

    for index, seen in enumerate(appearances):
        long, short = max(seen[:2]), min(seen[:2])
        if seen.variance < _FLAT:
            note("one colour", index, f"standard deviation {seen.variance**0.5:.1f} of 255")
        elif seen.brightness < _DARK:
            note("very dark", index, f"mean {seen.brightness:.0f} of 255")
        elif seen.brightness > _BRIGHT:
            note("very bright", index, f"mean {seen.brightness:.0f} of 255")
        elif seen.sharpness < blurred:
            share = seen.sharpness / (blurred / _BLURRED)
            note("blurred", index, f"sharpness {share:.3f} of the median")
        if long > _LONGEST * short:
            note("odd-shaped", index, f"{long / short:.1f} : 1")
        if short < tiny_px:
            note("tiny", index, f"{seen.width_px} x {seen.height_px} px")
    return found


def in_words(finding: Finding) -> str:
    """Returns what a finding means, with its limit."""
    return {
        "very dark": f"very dark (mean below {_DARK} of 255)",
        "very bright": f"very bright (mean above {_BRIGHT} of 255)",
        "one colour": "of one colour",
        "blurred": f"blurred (sharpness below {_BLURRED:g} of the median)",
        "odd-shaped": f"odd-shaped (longer than {_LONGEST:g} : 1)",
        "tiny": f"tiny (short side below {_TINY:g} of the input's)",
    }[finding]
