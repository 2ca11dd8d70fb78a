"""What a file says about itself is safe to print, and is what judging reads."""

import json
from pathlib import Path

import pytest
from tiny_models import SIZE, mean_onnx, mean_tflite

from edgekit.errors import SpecError
from edgekit.package.metadata import write_metadata
from edgekit.records import Preprocess
from edgekit.runtimes.base import contract_texts
from edgekit.validate.description import describe

CONTRACT = Preprocess(height_px=SIZE, width_px=SIZE)
HOSTILE = ("\x1b[31mred", "blue", "\u05e9\u05dc\u05d5\u05dd <script>\u2028x")


def test_labels_contract_and_texts_of_tflite_metadata(tmp_path: Path) -> None:
    path = mean_tflite(tmp_path / "m.tflite", "float32")
    bare = describe(path)
    assert (bare["metadata"], bare["labels"], bare["preprocess"]) == (None, None, None)
    path.write_bytes(
        write_metadata(
            path.read_bytes(),
            name="Colours",
            description="One line.\nSecond line.",
            version="1",
            author="",
            licence="CC0-1.0",
            preprocess=CONTRACT,
            class_names=HOSTILE,
        )
    )
    found = describe(path)
    assert found["metadata"]["description"] == "One line.\\nSecond line."
    shown = ["\\x1b[31mred", "blue", "\u05e9\u05dc\u05d5\u05dd <script>\\u2028x"]
    assert found["metadata"]["labels"] == found["labels"] == shown
    assert found["preprocess"] == CONTRACT.model_dump(mode="json")
    json.dumps(found)


def test_what_edgekit_wrote_and_what_is_broken(tmp_path: Path) -> None:
    texts = {**contract_texts(CONTRACT, ("a", "b", "c")), "edgekit.note": "\x1b[31mred"}
    found = describe(mean_onnx(tmp_path / "m.onnx", metadata=texts))
    assert found["metadata"]["edgekit.note"] == "\\x1b[31mred"
    assert (found["labels"], found["not_judged"]) == (["a", "b", "c"], None)
    assert found["preprocess"]["height_px"] == SIZE
    broken = mean_onnx(tmp_path / "b.onnx", metadata={"edgekit.labels": "{"})
    assert "not a list of labels" in describe(broken)["not_judged"]
    with pytest.raises(SpecError):
        describe(tmp_path / "none.tflite")
