"""The export stage: every file of one model, audited and compared with what it was made from."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.devices import measure
from edgekit.devices.protocol import subject_of
from edgekit.errors import ConversionError
from edgekit.export import keras_file, layers, onnx_file, ort_file, parity, tflite
from edgekit.fitting.pictures import Pictures, compiled
from edgekit.folders import scratch_folder
from edgekit.network import keras_model, ranges as range_table
from edgekit.network.forward import logits_function
from edgekit.network.graph import Arrays, Node, longest_sum, mobilenet_v2
from edgekit.records import (
    Artifact,
    Batch,
    Bits,
    Candidate,
    ExportRecord,
    FloatModelRecord,
    Format,
    FormatParity,
    IoType,
    RangeTable,
    Variant,
)
from edgekit.runtimes.base import contract_texts
from edgekit.runtimes.inspect import inspect_model
from edgekit.runtimes.ort_file import required_operators
from edgekit.runtimes.tflite_metadata import with_entries
from edgekit.store import file_digest

Logits = npt.NDArray[np.float32]
# Number types whose arithmetic is integer, and which are made from a candidate.
_INTEGERS = ("int8", "int16x8")

_PARITY_IMAGES = 1024
_PARITY_BYTES = 256 * 1024 * 1024
# The codes of all tensors of eight pictures, in two bytes, take 0.1 GB a file at 224 px, alpha 1.0.
_LAYER_IMAGES = 8


@dataclass(frozen=True)
class Request:
    """One file to make.

    Args:
        format: Its format.
        variant: Its number type.
        io: Type of its input and output.
        candidate: An int8 candidate that does not ship. Defaults to None, what ships.
        batch: Pictures of one call; "any" not for TFLite. Defaults to "one".
    """

    format: Format
    variant: Variant
    io: IoType
    candidate: Candidate | None = None
    batch: Batch = "one"

    @property
    def name(self) -> str:
        """File name: the variant, the candidate that lost, the I/O type and batch if unusual."""
        lost = f"_{self.candidate}" if self.candidate else ""
        io = f"_{self.io}_io" if self.variant == "int8" and self.format == "tflite" else ""
        batch = "_any_batch" if self.batch == "any" else ""
        return f"model_{self.variant}{lost}{io}{batch}.{self.format}"


# Made for every run, since the report compares them; targets may add int8 I/O types.
STANDARD = (
    Request("tflite", "float32", "float32"),
    Request("tflite", "float16", "float32"),
    Request("tflite", "dynamic", "float32"),
    Request("tflite", "int8", "int8"),
    Request("onnx", "float32", "float32"),
    Request("onnx", "int8", "float32"),
)


@dataclass(frozen=True)
class Int8:
    """One candidate: its folded weights and its range table."""

    weights: Arrays
    table: RangeTable


@dataclass(frozen=True)
class Sources:
    """What the files are made from.

    Args:
        arrays: Float arrays of the Keras model, `layer/variable`.
        float_weights: Its folded weights.
        candidates: The int8 candidates.
        shipped: The one that ships.
    """

    arrays: Arrays
    float_weights: Arrays
    candidates: Mapping[Candidate, Int8]
    shipped: Candidate

    @property
    def int8(self) -> Int8:
        """The candidate that ships."""
        return self.candidates[self.shipped]

    @property
    def comparisons(self) -> tuple[Request, ...]:
        """Files of the candidates that lost, to be compared with what ships."""
        lost = (name for name in self.candidates if name != self.shipped)
        return tuple(Request("tflite", "int8", "int8", name) for name in lost)


def export_files(
    float_model: FloatModelRecord,
    sources: Sources,
    train: Pictures,
    validation: Pictures,
    class_names: tuple[str, ...],
    requests: Sequence[Request],
    folder: Path,
    *,
    progress: Callable[[str, int, int], None],
) -> ExportRecord:
    """Writes all files into `folder`; `labels.txt`, `ranges.json`, the trained Keras model.

    Beside an .ort file go the operators that it needs.

    Args:
        float_model: What training made.
        sources: Weights and ranges.
        train: Pictures that fill up the parity check.
        validation: Pictures of the parity check; the test split is not used.
        class_names: Names in output order.
        requests: What to make.
        folder: Where the files go.
        progress: Called with (file, files done, files in all).

    Raises:
        ConversionError: If a file has other types, shapes or operators than were asked for, or
            answers with NaN. How far its answers are from its source is in the record.
    """
    nodes = mobilenet_v2(float_model.alpha)
    artifacts = []
    for number, request in enumerate(requests):
        progress(request.name, number, 2 * len(requests))
        content = _content(request, nodes, sources, train, class_names)
        if request.format == "ort":
            content = ort_file.convert(content)
            # What a build of onnxruntime for this file alone must hold.
            operators = folder / f"{request.name}.required_operators.config"
            operators.write_text(required_operators(content))
        (folder / request.name).write_bytes(content)
        artifacts.append(_audited(folder / request.name, request, sources))
    range_table.write(folder / "ranges.json", sources.int8.table)
    keras_file.write(folder / keras_file.NAME, float_model, sources.arrays, validation.preprocess)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in class_names))
    with scratch_folder() as scratch:
        images = scratch / "images.npy"
        # As the data stage has them, with luma three times, which is how any file is fed.
        chosen = _parity_images(train, validation)
        np.save(images, np.broadcast_to(chosen, (*chosen.shape[:3], 3)))
        wide = any(request.variant == "int16x8" for request in requests)
        known = _references(float_model, nodes, sources, validation, images, wide)
        answers = []
        for number, artifact in enumerate(artifacts):
            progress(artifact.path, len(requests) + number, 2 * len(requests))
            answers.append(_answers(folder, artifact, images, validation))
    compared = tuple(
        parity.compare(artifact, answer, known)
        for artifact, answer in zip(artifacts, answers, strict=True)
    )
    kept_float = sources.int8.table.kept_float
    formats = _compare_formats(nodes, artifacts, answers, folder, validation, kept_float)
    return ExportRecord(
        preprocess=validation.preprocess,
        class_names=class_names,
        artifacts=tuple(artifacts),
        parity=compared,
        formats=formats,
    )


def _compare_formats(
    nodes: tuple[Node, ...],
    artifacts: Sequence[Artifact],
    answers: Sequence[Logits],
    folder: Path,
    validation: Pictures,
    kept_float: Collection[str],
) -> FormatParity | None:
    """Compares the int8 files that ship, TFLite with integer ends and ONNX with a batch of one."""
    found = {
        artifact.format: (artifact, answer)
        for artifact, answer in zip(artifacts, answers, strict=True)
        if artifact.variant == "int8" and artifact.ships and artifact.batch == "one"
        if artifact.format == "onnx" or (artifact.format == "tflite" and artifact.io == "int8")
    }
    if set(found) != {"tflite", "onnx"}:
        return None
    (tflite_file, ours), (onnx_artifact, theirs) = found["tflite"], found["onnx"]
    apart = np.abs(ours - theirs) / _step(ours)
    images = _spread(validation.images, _LAYER_IMAGES)
    compared = layers.compare_layers(
        nodes,
        folder / tflite_file.path,
        folder / onnx_artifact.path,
        images,
        validation.preprocess,
        kept_float,
    )
    return FormatParity(
        images=len(ours),
        top1_agreement=float((ours.argmax(1) == theirs.argmax(1)).mean()),
        # Both are whole steps but for float32's rounding.
        equal=float((apart < 0.5).mean()),
        within_two=float((apart < 2.5).mean()),
        largest_steps=float(apart.max().round(1)),
        layer_images=len(images),
        layers=compared,
        departs=layers.first_departing(compared),
    )


def _content(
    request: Request,
    nodes: tuple[Node, ...],
    sources: Sources,
    pictures: Pictures,
    class_names: tuple[str, ...],
) -> bytes:
    contract = pictures.preprocess
    size = (contract.height_px, contract.width_px)
    int8 = sources.candidates[request.candidate or sources.shipped]
    if request.format == "tflite":
        weights = int8.weights if request.variant in _INTEGERS else sources.float_weights
        plain = tflite.write(
            nodes, weights, int8.table, variant=request.variant, io=request.io, size_px=size
        )
        # So that the file alone, wherever it is copied to, says how it is to be read.
        texts = contract_texts(contract, class_names)
        return with_entries(plain, {key: text.encode() for key, text in texts.items()})
    in_int8 = request.variant == "int8"
    model = onnx_file.write(
        nodes,
        int8.weights if in_int8 else sources.float_weights,
        int8.table if in_int8 else None,
        size_px=size,
        preprocess=contract,
        class_names=class_names,
        batch=request.batch,
    )
    return bytes(model.SerializeToString(deterministic=True))


def _audited(path: Path, request: Request, sources: Sources) -> Artifact:
    """Reads a file back and refuses it where it is not what was asked for."""
    candidate = request.candidate or sources.shipped
    integers = request.variant in _INTEGERS and not sources.candidates[candidate].table.kept_float
    facts = inspect_model(path)
    ends = (*facts.inputs, *facts.outputs)
    wrong = [f"{t.name} is {t.dtype}" for t in ends if t.dtype != request.io]
    batch = -1 if request.batch == "any" else 1
    free = [f"{t.name} has shape {t.shape}" for t in ends if t.shape[0] != batch]
    islands = facts.float_tensors if integers else ()
    for problem, expected in (
        (wrong, f"{request.io} input and output"),
        (free, f"a batch of {request.batch}"),
        (islands, "integers only between input and output"),
    ):
        if problem:
            raise ConversionError(
                f"{path.name}: {', '.join(problem[:10])}",
                expected,
                "report this with the recipe; it is a bug in edgekit",
            )
    return Artifact(
        format=request.format,
        variant=request.variant,
        io=request.io,
        path=path.name,
        sha256=file_digest(path),
        size_bytes=path.stat().st_size,
        inputs=facts.inputs,
        outputs=facts.outputs,
        operators=facts.operators,
        float_tensors=facts.float_tensors,
        candidate=candidate if request.variant in _INTEGERS else None,
        ships=request.candidate is None,
    )


def _parity_images(train: Pictures, validation: Pictures) -> npt.NDArray[np.uint8]:
    """Returns validation pictures, filled up with training pictures, spread over all classes."""
    picture_bytes = int(np.prod(validation.images.shape[1:]))
    most = max(1, min(_PARITY_IMAGES, _PARITY_BYTES // picture_bytes))
    chosen = [_spread(validation.images, most)]
    chosen.append(_spread(train.images, most - len(chosen[0])))
    return np.concatenate(chosen)


def _spread(images: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    rows = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(np.int64)
    return images[rows]


def _references(
    float_model: FloatModelRecord,
    nodes: tuple[Node, ...],
    sources: Sources,
    validation: Pictures,
    images: Path,
    wide: bool,
) -> parity.References:
    """Returns what every file should answer on the parity images, and what rounding may change.

    A float file is held against what float16 weights change; an integer file against what the
    rounding of activations changes in its own simulation.
    """
    model = keras_model.build(
        alpha=float_model.alpha,
        input_size_px=float_model.input_size_px,
        channels=validation.preprocess.input_channels,
        class_count=float_model.class_count,
        weights=None,
        seed=0,
    )
    keras_model.assign(model, sources.arrays)
    shown = np.load(images)[..., : validation.preprocess.input_channels]
    pictures = Pictures(shown, np.zeros(0, np.int32), validation.preprocess)
    trained = compiled(lambda x: model(x, training=False), pictures)()
    weights = sources.float_weights
    halves = {name: value.astype(np.float16).astype(np.float32) for name, value in weights.items()}
    coarse = compiled(logits_function(nodes, halves), pictures)()
    share = parity.FLOAT_SHARE_PER_PRODUCT * longest_sum(nodes, weights)
    known: dict[tuple[Variant, Candidate | None], parity.Reference] = {
        ("float32", None): parity.Reference("Keras model", trained, coarse, share),
        ("float16", None): parity.Reference("network with float16 weights", coarse, trained, share),
        ("dynamic", None): parity.Reference("Keras model", trained),
    }

    def simulated(variant: Variant, int8: Int8, bits: Bits, share: float) -> parity.Reference:
        answer = partial(logits_function, nodes, int8.weights, int8.table, bits)
        rounded, clipped = (compiled(answer(rounded=r), pictures)() for r in (True, False))
        return parity.Reference(f"simulated {variant}", rounded, clipped, share)

    for name, int8 in sources.candidates.items():
        known["int8", name] = simulated("int8", int8, 8, parity.INT8_SHARE)
    if wide:
        known["int16x8", sources.shipped] = simulated(
            "int16x8", sources.int8, 16, parity.INT16_SHARE
        )
    return known


def _answers(folder: Path, artifact: Artifact, images: Path, pictures: Pictures) -> Logits:
    subject = subject_of(artifact, folder, images, pictures.preprocess)
    answered = measure.answer(subject)
    return measure.scores(answered.raw, answered.output)


def _step(logits: Logits) -> float:
    """Returns the distance between neighbouring codes of quantized logits."""
    values = np.unique(logits)
    return float(np.diff(values).min()) if len(values) > 1 else 1.0
