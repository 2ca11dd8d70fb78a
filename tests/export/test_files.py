"""The export stage from weights to audited files, and what it refuses."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_network import ALPHA, CLASSES, Exported, Trained, Untyped, altered

from edgekit.errors import ConversionError
from edgekit.network.graph import mobilenet_v2
from edgekit.network.ranges import from_limits, keeping_float, read
from edgekit.records import ExportRecord, Preprocess, RangeTable, Status
from edgekit.runtimes.inspect import inspect_model

pytest.importorskip("tensorflow")

from edgekit.export import keras_file, onnx_file
from edgekit.export.files import STANDARD, Int8, Request, export_files

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


def test_every_file_carries_its_labels_and_its_contract(exported: Exported) -> None:
    """A copy without the record beside it is read as the run read it."""
    for artifact in exported.record.artifacts:
        texts = inspect_model(exported.folder / artifact.path).metadata
        assert json.loads(texts["edgekit.labels"]) == list(CLASSES)
        contract = Preprocess.model_validate_json(texts["edgekit.preprocess"])
        assert contract == exported.record.preprocess


def test_the_files_are_those_of_the_record(exported: Exported) -> None:
    paths = [artifact.path for artifact in exported.record.artifacts]
    more = ("int8_uint8_io.tflite", "int8_float32_io.tflite", "int8_any_batch.onnx",
            "int16x8.tflite", "int8.ort", "int8_ptq_int8_io.tflite")  # fmt: skip
    assert paths == [*NAMES, *(f"model_{name}" for name in more)]
    found = {file.name for file in exported.folder.iterdir()}
    operators = "model_int8.ort.required_operators.config"
    assert found == {*paths, "labels.txt", "ranges.json", "model.keras", operators}
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


def test_the_keras_model_has_the_same_bytes_whenever_it_is_written(
    exported: Exported, trained: Trained, pictures: Untyped, tmp_path: Path
) -> None:
    again, other = tmp_path / "again.keras", tmp_path / "other.keras"
    contract = pictures[0].preprocess
    keras_file.write(again, trained.record, trained.arrays, contract)
    assert again.read_bytes() == (exported.folder / "model.keras").read_bytes()
    shifted = {**trained.arrays, "logits/bias": trained.arrays["logits/bias"] + 1}
    keras_file.write(other, trained.record, shifted, contract)
    assert other.read_bytes() != again.read_bytes()


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
        if artifact.variant == "dynamic":
            assert (parity.status, parity.explained_db) == (Status.UNMEASURED, None)
            continue
        assert parity.status == Status.PASS, parity
        assert parity.explained_db is not None
        assert parity.sqnr_db is None or parity.sqnr_db > parity.explained_db
        # Close scores change places with the rounding, and which ones are close with the number of
        # cores that trained: whether there are too many of them is what the status says.
        assert parity.same_answers >= (65 if integers else 72)


def export(
    trained: Trained,
    sources: Untyped,
    pictures: Untyped,
    folder: Path,
    requests: tuple[Request, ...],
) -> ExportRecord:
    return export_files(
        trained.record,
        sources,
        *pictures,
        CLASSES,
        requests,
        folder,
        progress=lambda _what, _done, _total: None,
    )


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


@pytest.mark.slow
def test_progress_counts_writing_and_checking(
    trained: Trained, sources: Untyped, pictures: Untyped, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    requests = (Request("tflite", "float32", "float32"),)
    export_files(
        trained.record, sources, *pictures, CLASSES, requests, tmp_path,
        progress=lambda what, done, total: told.append((what, done, total)),
    )  # fmt: skip
    assert told == [("model_float32.tflite", 0, 2), ("model_float32.tflite", 1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["tflite", "onnx"])
def test_a_float_file_of_other_weights_is_written_and_found(
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
    # Its twin, the file of the right weights, passes in the test above.
    (parity,) = export(trained, wrong, pictures, tmp_path, (request,)).parity
    assert parity.status == Status.INCONCLUSIVE
    assert "72 of 72 pictures are further from it than rounding explains" in parity.reason
    assert (tmp_path / request.name).is_file()


@pytest.mark.slow
def test_an_onnx_file_with_altered_scales_misses(
    trained: Trained,
    sources: Untyped,
    pictures: Untyped,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = onnx_file.write

    def dishonest(nodes: Untyped, weights: Untyped, table: RangeTable, **asked: Untyped) -> Untyped:
        """Writes a real file, but with other ranges than the table's for two tensors."""
        highest = table.activations["Conv_1"].maximum
        wrong = {
            "Conv_1": from_limits(0.0, 0.05 * highest, "trained"),
            "global_average_pool": from_limits(0.0, 40.0, "trained"),
        }
        return honest(nodes, weights, altered(table, wrong), **asked)

    monkeypatch.setattr(onnx_file, "write", dishonest)
    found = export(trained, sources, pictures, tmp_path, INT8_PAIR)
    assert [parity.status for parity in found.parity] == [Status.PASS, Status.MISS]
    assert "more answers differ than rounding explains" in found.parity[1].reason
    # Twin: with the table's own ranges the same two files pass.
    monkeypatch.undo()
    found = export(trained, sources, pictures, tmp_path, INT8_PAIR)
    assert [parity.status for parity in found.parity] == [Status.PASS, Status.PASS]


def test_a_type_that_the_file_does_not_have_is_refused(
    trained: Trained, sources: Untyped, pictures: Untyped, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="is float32") as caught:
        export(trained, sources, pictures, tmp_path, (Request("onnx", "float32", "int8"),))
    assert caught.value.expected == "int8 input and output"
