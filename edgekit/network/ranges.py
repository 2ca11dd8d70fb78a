"""The range table: int8 grids of activations and kernels, read by both exporters. numpy only."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.network.graph import INPUT, Arrays, Node, kernel_limits, weighted
from edgekit.records import CalibrationMethod, Granularity, Preprocess, RangeTable, TensorRange

Ranges = Mapping[str, TensorRange]

# A tensor that is always zero still needs a scale; this one is far below any real activation.
_SMALLEST_SPAN = 1e-6
# Most steps of a tensor in one step of what is added up for it. XNNPACK refuses 256 ("greater or
# equal to 256.0", convolution-nhwc.c), and ends the process where a sum has some millions of them.
_MOST_STEPS = 255
# How near to the border of two codes float32 may err: a few roundings of numbers below 512.
_BORDER = 2.0**-14
# Steps of 1e-5 by which the range of a sum may grow: 2 %.
_WIDENINGS = 2000


def from_limits(
    minimum: float,
    maximum: float,
    source: Literal["trained", "calibrated", "contract"],
    method: CalibrationMethod | None = None,
) -> TensorRange:
    """Returns the 8-bit grid that covers the limits and represents zero exactly.

    scale = (max - min) / 255; the zero point is `-min / scale` rounded to a code, and the limits
    move with it. Source: `Nudge` of TensorFlow's fake quantization (fake_quant_ops_functor.h),
    which the TFLite converter applies as well. It is given the limits in float32, so they are
    rounded to that and the scale follows from them: then every file holds the same bits.

    Args:
        minimum: Smallest real value; widened to 0 if above.
        maximum: Largest real value; widened to 0 if below.
        source: Where the limits come from.
        method: How they were found. Defaults to None.
    """
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    high = max(high, low + _SMALLEST_SPAN)
    scale = (high - low) / 255
    code = int(np.clip(np.floor(-low / scale + 0.5), 0, 255))
    lowest, highest = (float(np.float32(steps * scale)) for steps in (-code, 255 - code))
    return TensorRange(
        minimum=lowest,
        maximum=highest,
        scale=(highest - lowest) / 255,
        zero_point=code - 128,
        source=source,
        method=method,
    )


def int16_scale(span: TensorRange) -> float:
    """Returns the scale of the symmetric int16 grid of a range, whose codes are -32767..32767."""
    return max(-span.minimum, span.maximum) / 32767


def of_input(preprocess: Preprocess) -> TensorRange:
    """Returns the grid of the network input: what the pixels 0 and 255 become."""
    ends = [s * p + o for s, o in zip(preprocess.scale, preprocess.offset, strict=True)
            for p in (0, 255)]  # fmt: skip
    return from_limits(min(ends), max(ends), "contract")


def table_of(
    nodes: tuple[Node, ...], weights: Arrays, activations: Ranges, granularity: Granularity
) -> RangeTable:
    """Returns the table of a network whose kernels use their whole grids.

    A range so narrow that XNNPACK would refuse the file is widened: a tensor that is always zero
    has one, and a much too high learning rate leaves some. So is that of a sum, by
    `off_the_borders`.

    Args:
        nodes: The network.
        weights: Folded kernels.
        activations: Range of every tensor.
        granularity: One grid for each output channel of a kernel, or one for the whole kernel.
    """
    limits = {
        node.name: kernel_limits(node, weights[f"{node.name}/kernel"], granularity)
        for node in weighted(nodes)
    }
    spans = dict(activations)
    for node in nodes:
        finest = _step_added(node, spans, limits) / _MOST_STEPS
        if spans[node.name].scale < finest:
            spans[node.name] = _widened(spans[node.name], finest / spans[node.name].scale)
        if node.op == "add":
            spans[node.name] = off_the_borders(*(spans[n] for n in (*node.inputs, node.name)))
    return RangeTable(activations=spans, kernels=limits)


def _step_added(node: Node, spans: Ranges, limits: Mapping[str, tuple[float, ...]]) -> float:
    """Returns the largest step of what a node adds up: products or, of a sum, its summands."""
    if node.name in limits:
        return spans[node.inputs[0]].scale * max(limits[node.name]) / 127
    return max(spans[name].scale for name in node.inputs) if node.op == "add" else 0.0


def _widened(span: TensorRange, factor: float) -> TensorRange:
    limits = factor * span.minimum, factor * span.maximum
    return from_limits(*limits, span.source, span.method)


def off_the_borders(one: TensorRange, other: TensorRange, total: TensorRange) -> TensorRange:
    """Returns the range of a sum, widened until no two codes add up to the border of two codes.

    XNNPACK adds in fixed point, onnxruntime in float32. Two codes whose sum lies within their
    errors of a border are added differently in every picture that has them, and the layers behind
    make many codes of that one. Of the 65,536 pairs some lie there by chance; with a slightly
    larger step of the sum, none do.

    Args:
        one: Range of one summand.
        other: Range of the other.
        total: Range of the sum.

    Returns:
        A range at most 2 % wider, or `total` where none of those is free of such pairs. The 20
        additions of two fine-tuned MobileNetV2 0.35 needed 0.001 to 0.05 %.
    """
    codes = np.arange(-128, 128)
    first, second = np.meshgrid(codes - one.zero_point, codes - other.zero_point, indexing="ij")
    scales = np.float32(one.scale), np.float32(other.scale)
    real = np.float64(scales[0]) * first + np.float64(scales[1]) * second
    inside = np.abs(real / total.scale + total.zero_point + 0.5) < 129  # others are clipped
    first, second, real = first[inside], second[inside], real[inside]
    for widening in range(_WIDENINGS):
        span = _widened(total, 1 + 1e-5 * widening) if widening else total
        step = np.float32(span.scale)
        # A whole number is the border of two codes.
        places = real / step + 0.5
        rounded = np.floor(places)
        if np.abs(places - rounded - 0.5).max(initial=0.0) > 0.5 - _BORDER:
            continue
        if np.array_equal(_added_by_xnnpack(first, second, *(s / step for s in scales)), rounded):
            return span
    return total


def _added_by_xnnpack(
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    first_ratio: np.float32,
    second_ratio: np.float32,
) -> npt.NDArray[np.int64]:
    """Returns what XNNPACK makes of codes without zero points, before it clips.

    Source: `xnn_init_qs8_add_minmax_scalar_params` (microparams-init.c): the larger multiplier has
    21 bits, and halves are rounded up.
    """
    shift = 20 - int(np.floor(np.log2(max(first_ratio, second_ratio))))
    factors = [round(float(ratio) * 2**shift) for ratio in (first_ratio, second_ratio)]
    sums: npt.NDArray[np.int64] = first * factors[0] + second * factors[1] + (1 << (shift - 1))
    return sums >> shift


def keeping_float(nodes: tuple[Node, ...], table: RangeTable, kept: Collection[str]) -> RangeTable:
    """Returns the table of a network some of whose nodes compute in float32.

    Args:
        nodes: The network.
        table: A table in which all nodes are int8.
        kept: Names of the nodes.
    """
    int8 = int8_tensors(nodes, kept)
    return RangeTable(
        activations={name: span for name, span in table.activations.items() if name in int8},
        kernels={name: limits for name, limits in table.kernels.items() if name not in kept},
        kept_float=tuple(node.name for node in nodes if node.name in kept),
    )


def in_float(nodes: tuple[Node, ...]) -> RangeTable:
    """Returns the table of a network all of whose nodes compute in float32: it has no grid."""
    names = tuple(node.name for node in nodes)
    return RangeTable(activations={}, kernels={}, kept_float=names)


def int8_tensors(nodes: tuple[Node, ...], kept: Collection[str]) -> frozenset[str]:
    """Returns the tensors that stay int8 while some nodes compute in float32.

    A tensor becomes float32 if its maker and all its readers are float32. The input and the logits
    stay int8, since applications and targets read their scales.

    Args:
        nodes: The network.
        kept: Names of the nodes in float32.
    """
    read_as_int8 = {name for node in nodes if node.name not in kept for name in node.inputs}
    made_as_int8 = {node.name for node in nodes if node.name not in kept}
    return frozenset({INPUT, nodes[-1].name} | read_as_int8 | made_as_int8)


def write(path: Path, table: RangeTable) -> None:
    """Writes the table as JSON in network order, one tensor or kernel a line."""
    spans = {name: span.model_dump_json() for name, span in table.activations.items()}
    kernels = {name: json.dumps(limits) for name, limits in table.kernels.items()}
    path.write_text(
        f'{{"activations": {{\n{_lines(spans)}\n}},\n"kernels": {{\n{_lines(kernels)}\n}},\n'
        f'"kept_float": {json.dumps(table.kept_float)}}}\n'
    )


def _lines(values: Mapping[str, str]) -> str:
    return ",\n".join(f" {json.dumps(name)}: {value}" for name, value in values.items())


def read(path: Path) -> RangeTable:
    """Reads a table that `write` wrote."""
    return RangeTable.model_validate_json(path.read_bytes())
