"""The range table: the int8 grid of every activation tensor, read by both exporters. numpy only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from edgekit.records import Preprocess, TensorRange

Ranges = Mapping[str, TensorRange]

# A tensor that is always zero still needs a scale; this one is far below any real activation.
_SMALLEST_SPAN = 1e-6


def from_limits(
    minimum: float, maximum: float, source: Literal["trained", "calibrated", "contract"]
) -> TensorRange:
    """Returns the 8-bit grid that covers the limits and represents zero exactly.

    scale = (max - min) / 255; the zero point is `-min / scale` rounded to a code, and the limits
    move with it. Source: `Nudge` of TensorFlow's fake quantization (fake_quant_ops_functor.h),
    which the TFLite converter applies as well.

    Args:
        minimum: Smallest real value; widened to 0 if above.
        maximum: Largest real value; widened to 0 if below.
        source: Where the limits come from.
    """
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    high = max(high, low + _SMALLEST_SPAN)
    scale = (high - low) / 255
    code = int(np.clip(np.floor(-low / scale + 0.5), 0, 255))
    return TensorRange(
        minimum=-code * scale,
        maximum=(255 - code) * scale,
        scale=scale,
        zero_point=code - 128,
        source=source,
    )


def of_input(preprocess: Preprocess) -> TensorRange:
    """Returns the grid of the network input: what the pixels 0 and 255 become."""
    ends = [s * p + o for s, o in zip(preprocess.scale, preprocess.offset, strict=True)
            for p in (0, 255)]  # fmt: skip
    return from_limits(min(ends), max(ends), "contract")


def write(path: Path, ranges: Ranges) -> None:
    """Writes the table as JSON, one tensor a line, in network order."""
    lines = [f" {json.dumps(name)}: {span.model_dump_json()}" for name, span in ranges.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read(path: Path) -> dict[str, TensorRange]:
    """Reads a table that `write` wrote."""
    return {name: TensorRange(**span) for name, span in json.loads(path.read_text()).items()}
