"""The export stage: every file of one model, audited and compared with what it was made from."""

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekit.devices import measure
from edgekit.devices.protocol import subject_of
from edgekit.errors import ConversionError
from edgekit.export import layers, onnx_file, ort_file, tflite
from edgekit.fitting.pictures import Pictures, compiled
from edgekit.folders import scratch_folder
from edgekit.network import keras_model, ranges as range_table
from edgekit.network.forward import logits_function
from edgekit.network.graph import Arrays, Node, mobilenet_v2
from edgekit.records import (
    Artifact,
    Batch,
    Candidate,
    ExportRecord,
    FloatModelRecord,
    Format,
    FormatParity,
    IoType,
    Parity,
    RangeTable,
    Variant,
)
from edgekit.runtimes.inspect import inspect_model
from edgekit.runtimes.ort_file import required_operators
from edgekit.store import file_digest

Logits = npt.NDArray[np.float32]
# What a file is compared with: the Keras model, the network with weights rounded to float16, what
# ships with int16 activations, or a candidate.
Source = Literal["float", "float16", "int16x8", Candidate]
# Number types whose arithmetic is integer, and which are made from a candidate.
_INTEGERS = ("int8", "int16x8")

# How far a file may be from its source, relative to the largest logit. float32, and float16 whose
# rounded weights compute in float32: the same sums in another order; 4.5e-6 was the most seen on
# four clothing models, and other processors differ. int16x8: rounding ties of 16 bits, which grow
# through 53 layers; 1.0e-3 on one clothing model.
_BOUNDS = {"float32": 1e-4, "float16": 1e-4, "int16x8": 1e-2}
_SOURCES: dict[Source, str] = {
    "float": "Keras model",
    "float16": "network with float16 weights",
    "int16x8": "simulated int16x8",
}
# The int8 files follow the simulation but for rounding ties, which grow through 53 layers on some
# pictures. Median distance in steps of the output on the clothing test split: 0 for three models of
# alpha 0.35 at 96 px, 1 for one of alpha 1.0 at 160 px.
_SIMULATION_STEPS = 2.0
# TFLite and ONNX compute the same integers; runtimes differ in how an exact tie is rounded.
_INT8_AGREEMENT = 0.99
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
    """Writes all files, `labels.txt` and `ranges.json` into `folder`, and the operators of an .ort.

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
        ConversionError: If a file is not what was asked for, a float file differs from Keras by
            more than rounding, or the int8 ONNX answers otherwise than the int8 TFLite.
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
        gc.collect()  # each conversion leaves graphs behind that refer to themselves
    range_table.write(folder / "ranges.json", sources.int8.table)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in class_names))
    with scratch_folder() as scratch:
        images = scratch / "images.npy"
        np.save(images, _parity_images(train, validation))
        wide = any(request.variant == "int16x8" for request in requests)
        references = _references(float_model, nodes, sources, validation, images, wide)
        answers = []
        for number, artifact in enumerate(artifacts):
            progress(artifact.path, len(requests) + number, 2 * len(requests))
            answers.append(_answers(folder, artifact, images, validation))
    parity = tuple(
        compare(artifact, answer, references)
        for artifact, answer in zip(artifacts, answers, strict=True)
    )
    check_formats_agree(artifacts, answers)
    kept_float = sources.int8.table.kept_float
    formats = _compare_formats(nodes, artifacts, answers, folder, validation, kept_float)
    return ExportRecord(
        preprocess=validation.preprocess,
        class_names=class_names,
        artifacts=tuple(artifacts),
        parity=parity,
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
        return tflite.convert(
            nodes, weights, int8.table, variant=request.variant, io=request.io, size_px=size
        )
    model = onnx_file.float_model(
        nodes, sources.float_weights, size, contract, class_names, request.batch
    )
    if request.variant == "int8":
        model = onnx_file.quantized_model(model, nodes, int8.weights, int8.table)
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
                "report this with the recipe; the converter did not do as told",
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
) -> dict[Source, Logits]:
    """Returns the logits of the Keras model and of what was simulated on the parity images."""
    model = keras_model.build(
        alpha=float_model.alpha,
        input_size_px=float_model.input_size_px,
        class_count=float_model.class_count,
        weights=None,
        seed=0,
    )
    keras_model.assign(model, sources.arrays)
    pictures = Pictures(np.load(images), np.zeros(0, np.int32), validation.preprocess)
    references: dict[Source, Logits] = {
        "float": compiled(lambda x: model(x, training=False), pictures)()
    }
    halves = {
        name: value.astype(np.float16).astype(np.float32)
        for name, value in sources.float_weights.items()
    }
    references["float16"] = compiled(logits_function(nodes, halves), pictures)()
    for name, int8 in sources.candidates.items():
        simulated = logits_function(nodes, int8.weights, int8.table)
        references[name] = compiled(simulated, pictures)()
    if wide:
        ships = sources.int8
        simulated = logits_function(nodes, ships.weights, ships.table, bits=16)
        references["int16x8"] = compiled(simulated, pictures)()
    return references


def _answers(folder: Path, artifact: Artifact, images: Path, pictures: Pictures) -> Logits:
    subject = subject_of(artifact, folder, images, pictures.preprocess)
    answered = measure.answer(subject)
    return measure.scores(answered.raw, answered.output)


def compare(artifact: Artifact, answers: Logits, references: Mapping[Source, Logits]) -> Parity:
    """Returns how closely a file follows its source.

    Args:
        artifact: The file.
        answers: Its logits, float32 (images, classes).
        references: Logits of the Keras model ("float"), of the network with weights rounded to
            float16, of every simulated int8 candidate and, for an int16x8 file, of its simulation,
            on the same images.

    Raises:
        ConversionError: If a float32 or float16 file is further from its source than the order of
            sums explains, an int16x8 file than rounding does, an int8 file is not what was
            simulated, or an answer is not finite.
    """
    int8 = artifact.variant == "int8"
    made_from: Source = artifact.candidate or "float"
    if artifact.variant in ("float16", "int16x8"):
        made_from = artifact.variant
    reference = references[made_from]
    source = _SOURCES.get(made_from, "simulated int8")
    distances = np.abs(answers - reference)
    largest = float(distances.max())
    bound = None
    if int8:
        unlike = not np.median(distances) <= _SIMULATION_STEPS * _step(reference)
    else:
        relative = _BOUNDS.get(artifact.variant)
        bound = relative and relative * max(1.0, float(np.abs(reference).max()))
        unlike = not np.isfinite(largest) or (bound is not None and largest > bound)
    if unlike:
        raise ConversionError(
            f"{artifact.path} differs from the {source} by up to {largest:.2e}",
            f"at most {_SIMULATION_STEPS} steps of the output in the median"
            if int8
            else f"at most {bound or np.inf:.2e}, what rounding explains",
            "report this with the recipe; the converted graph is not the trained one",
        )
    return Parity(
        artifact_sha256=artifact.sha256,
        source=source,
        images=len(answers),
        top1_agreement=float((answers.argmax(1) == reference.argmax(1)).mean()),
        largest_difference=largest,
        largest_difference_bound=bound,
    )


def check_formats_agree(artifacts: Sequence[Artifact], answers: Sequence[Logits]) -> None:
    """Refuses an int8 ONNX or ORT that computes something else than the int8 TFLite.

    Top-1 may differ on 1 % of the images, at least on one; and half of all logits must lie within
    one step of the output's scale, which catches a wrong scale that leaves the winner in place.

    Args:
        artifacts: All exported files.
        answers: Their logits on the same images, float32 (images, classes).

    Raises:
        ConversionError: If such a file and an int8 TFLite are further apart.
    """
    int8 = [
        (a, answer) for a, answer in zip(artifacts, answers, strict=True) if a.variant == "int8"
    ]
    for artifact, answer in (item for item in int8 if item[0].format != "tflite"):
        for other, expected in int8:
            if (other.format, other.candidate) != ("tflite", artifact.candidate):
                continue
            differing = int((answer.argmax(1) != expected.argmax(1)).sum())
            allowed = max(1, int((1 - _INT8_AGREEMENT) * len(answer)))
            step = _step(expected)
            apart = float(np.median(np.abs(answer - expected))) / step
            if differing > allowed or apart > 1.01:
                raise ConversionError(
                    f"{artifact.path} and {other.path} answer differently on {differing} of "
                    f"{len(answer)} images, their logits are {apart:.1f} steps apart (median)",
                    f"at most {allowed} images and 1 step",
                    "report this with the recipe; the two files do not compute the same",
                )


def _step(logits: Logits) -> float:
    """Returns the distance between neighbouring codes of quantized logits."""
    values = np.unique(logits)
    return float(np.diff(values).min()) if len(values) > 1 else 1.0
