"""The export stage from weights to audited files, and what it refuses."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_network import ALPHA, CLASSES, Exported, Trained, Untyped, altered

from edgekit.errors import ConversionError
from edgekit.network.graph import mobilenet_v2
from edgekit.network.ranges import from_limits, keeping_float, read
from edgekit.records import RangeTable

pytest.importorskip("tensorflow")

from edgekit.devices import measure
from edgekit.devices.protocol import subject_of
from edgekit.export import onnx_file
from edgekit.export.files import (
    STANDARD,
    Int8,
    Request,
    check_formats_agree,
    compare,
    export_files,
)

NAMES = (
    "model_float32.tflite",
    "model_float16.tflite",
    "model_dynamic.tflite",
    "model_int8_int8_io.tflite",
    "model_float32.onnx",
    "model_int8.onnx",
)
INT8_PAIR = (Request("tflite", "int8", "int8"), Request("onnx", "int8", "float32"))


def test_every_run_makes_the_standard_files() -> None:
    assert tuple(request.name for request in STANDARD) == NAMES


def test_the_files_are_those_of_the_record(exported: Exported) -> None:
    paths = [artifact.path for artifact in exported.record.artifacts]
    more = ("int8_uint8_io.tflite", "int8_float32_io.tflite", "int8_any_batch.onnx",
            "int16x8.tflite", "int8.ort", "int8_ptq_int8_io.tflite")  # fmt: skip
    assert paths == [*NAMES, *(f"model_{name}" for name in more)]
    found = {file.name for file in exported.folder.iterdir()}
    operators = "model_int8.ort.required_operators.config"
    assert found == {*paths, "labels.txt", "ranges.json", operators}
    for artifact in exported.record.artifacts:
        content = (exported.folder / artifact.path).read_bytes()
        assert artifact.sha256 == hashlib.sha256(content).hexdigest()
        assert artifact.size_bytes == len(content)
        assert {tensor.dtype for tensor in (*artifact.inputs, *artifact.outputs)} == {artifact.io}
        free = "any_batch" in artifact.path
        rows = -1 if free else 1
        assert {tensor.shape[0] for tensor in (*artifact.inputs, *artifact.outputs)} == {rows}
        assert artifact.batch == ("any" if free else "one")
        integers = artifact.variant in ("int8", "int16x8")
        if integers:
            assert artifact.float_tensors == ()
        lost = "ptq" in artifact.path
        assert artifact.ships == (not lost)
        how = "ptq" if lost else "qat"
        assert artifact.candidate == (how if integers else None)


def test_labels_and_ranges_lie_beside_the_files(exported: Exported, sources: Untyped) -> None:
    assert (exported.folder / "labels.txt").read_text() == "blue\ngreen\nred\n"
    assert exported.record.class_names == CLASSES
    assert read(exported.folder / "ranges.json") == sources.int8.table


def test_every_file_was_compared_with_its_source(exported: Exported) -> None:
    for artifact, parity in zip(exported.record.artifacts, exported.record.parity, strict=True):
        assert parity.artifact_sha256 == artifact.sha256
        assert parity.images == 72  # 24 of validation, filled up with the 48 of training
        integers = artifact.variant in ("int8", "int16x8")
        source = "Keras model"
        if integers:
            source = f"simulated {artifact.variant}"
        elif artifact.variant == "float16":
            source = "network with float16 weights"
        assert parity.source == source
        bounded = artifact.variant in ("float32", "float16", "int16x8")
        assert (parity.largest_difference_bound is not None) == bounded
        if parity.largest_difference_bound is not None:
            assert parity.largest_difference <= parity.largest_difference_bound
            assert parity.top1_agreement >= (0.97 if integers else 1.0)


def export(
    trained: Trained,
    sources: Untyped,
    pictures: Untyped,
    folder: Path,
    requests: tuple[Request, ...],
) -> list[tuple[str, int, int]]:
    told: list[tuple[str, int, int]] = []
    export_files(
        trained.record,
        sources,
        *pictures,
        CLASSES,
        requests,
        folder,
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    return told


@pytest.mark.slow
def test_layers_kept_in_float_pass_every_check_of_the_export(
    trained: Trained, sources: Untyped, pictures: Untyped, tmp_path: Path
) -> None:
    kept = ("Conv1", "block_5_depthwise", "block_5_project", "block_5_add")
    nodes = mobilenet_v2(ALPHA)
    mixed = Int8(sources.int8.weights, keeping_float(nodes, sources.int8.table, kept))
    sources = replace(sources, candidates={"qat": mixed})
    record = export_files(
        trained.record, sources, *pictures, CLASSES, INT8_PAIR, tmp_path,
        progress=lambda _what, _done, _total: None,
    )  # fmt: skip
    lite, onnx = record.artifacts
    assert "block_5_depthwise" in lite.float_tensors
    assert "block_5_depthwise" in onnx.float_tensors
    assert "Conv1_codes" not in lite.float_tensors
    assert record.formats is not None
    compared = [layer.layer for layer in record.formats.layers]
    assert compared == [node.name for node in nodes if node.name not in kept]
    assert read(tmp_path / "ranges.json").kept_float == kept


def test_progress_counts_writing_and_checking(
    trained: Trained, sources: Untyped, pictures: Untyped, tmp_path: Path
) -> None:
    told = export(trained, sources, pictures, tmp_path, (Request("tflite", "float32", "float32"),))
    assert told == [("model_float32.tflite", 0, 2), ("model_float32.tflite", 1, 2)]


@pytest.mark.parametrize("file_format", ["tflite", "onnx"])
def test_a_float_file_of_other_weights_is_refused(
    trained: Trained,
    sources: Untyped,
    pictures: Untyped,
    tmp_path: Path,
    file_format: Any,
) -> None:
    kernel = sources.float_weights["block_7_project/kernel"] * np.float32(1.01)
    wrong = replace(
        sources, float_weights={**sources.float_weights, "block_7_project/kernel": kernel}
    )
    request = Request(file_format, "float32", "float32")
    with pytest.raises(ConversionError, match="differs from the Keras model") as caught:
        export(trained, wrong, pictures, tmp_path, (request,))
    assert request.name in caught.value.received
    assert caught.value.exit_code == 1


@pytest.mark.slow
def test_an_onnx_file_with_altered_scales_is_refused(
    trained: Trained,
    sources: Untyped,
    pictures: Untyped,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = onnx_file.quantized_model

    def dishonest(model: Untyped, nodes: Untyped, weights: Untyped, table: RangeTable) -> Untyped:
        """Writes a real file, but with other ranges than the table's for two tensors."""
        highest = table.activations["Conv_1"].maximum
        wrong = {
            "Conv_1": from_limits(0.0, 0.05 * highest, "trained"),
            "global_average_pool": from_limits(0.0, 40.0, "trained"),
        }
        return honest(model, nodes, weights, altered(table, wrong))

    monkeypatch.setattr(onnx_file, "quantized_model", dishonest)
    with pytest.raises(ConversionError, match=r"model_int8.onnx differs from the simulated int8"):
        export(trained, sources, pictures, tmp_path, INT8_PAIR)
    # Twin: with the table's own ranges the same two files pass.
    monkeypatch.undo()
    export(trained, sources, pictures, tmp_path, INT8_PAIR)


def test_a_type_that_the_file_does_not_have_is_refused(
    trained: Trained, sources: Untyped, pictures: Untyped, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="is float32") as caught:
        export(trained, sources, pictures, tmp_path, (Request("onnx", "float32", "int8"),))
    assert caught.value.expected == "int8 input and output"


@pytest.fixture(scope="module")
def answers(exported: Exported, pictures: Untyped, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns the logits of every exported file on the training pictures."""
    train, _ = pictures
    images = tmp_path_factory.mktemp("answers") / "images.npy"
    np.save(images, train.images)
    found = []
    for artifact in exported.record.artifacts:
        subject = subject_of(artifact, exported.folder, images, train.preprocess)
        answered = measure.answer(subject)
        found.append(measure.scores(answered.raw, answered.output))
    return found


def test_int8_files_that_answer_otherwise_are_refused(exported: Exported, answers: Any) -> None:
    artifacts = exported.record.artifacts
    check_formats_agree(artifacts, answers)
    onnx = next(i for i, a in enumerate(artifacts) if (a.format, a.variant) == ("onnx", "int8"))
    step = float(np.diff(np.unique(answers[onnx])).min())
    for wrong in (
        answers[onnx][:, ::-1],  # other winners
        answers[onnx] + 3 * step,  # the same winners, but three steps away
    ):
        altered = [*answers[:onnx], wrong, *answers[onnx + 1 :]]
        with pytest.raises(ConversionError, match=r"model_int8\.onnx and model_int8") as caught:
            check_formats_agree(artifacts, altered)
        assert "1 step" in caught.value.expected


@pytest.mark.parametrize("variant", ["float32", "float16", "dynamic", "int8"])
def test_answers_too_far_from_the_source_are_refused(
    exported: Exported, answers: Any, variant: str
) -> None:
    index, artifact = next(
        (i, a) for i, a in enumerate(exported.record.artifacts) if a.variant == variant
    )
    own: Any = dict.fromkeys(("float", "float16", "qat"), answers[index])
    assert compare(artifact, answers[index], own).largest_difference == 0
    broken = np.full_like(answers[index], np.nan)
    with pytest.raises(ConversionError, match="differs from the"):
        compare(artifact, broken, own)
    if variant == "float16":  # what rounding its weights changes is more than the order of sums
        float32 = next(
            answer
            for a, answer in zip(exported.record.artifacts, answers, strict=True)
            if a.variant == "float32"
        )
        with pytest.raises(ConversionError, match="network with float16 weights"):
            compare(artifact, answers[index], {**own, "float16": float32})
    if variant != "dynamic":  # it has no bound: its activations are quantized on the fly
        with pytest.raises(ConversionError, match="differs from the"):
            compare(artifact, answers[index] * 1.5 + 1, own)
