"""Files as other tools write them, through the command line: fed and read rightly, or named."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_models import CHANNEL, CLASSES, classifier, mean_onnx, mean_tflite, save_onnx

from edgekit import foreign
from edgekit.cli import execute
from edgekit.devices.measure import Pace
from edgekit.validate.on_device import Measuring

PIXELS = ("--input-scale", "1", "--input-offset", "0")
SIDE = 32  # of the pictures, in pixels


class Done(NamedTuple):
    """What a command line did: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def edgekit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command line in this process; latencies are timed for a moment only."""
    quick = Measuring(1, Pace(warmup_seconds=0.0, min_queries=20, min_seconds=0.0), 60.0)
    monkeypatch.setattr(foreign, "_MEASURING", quick)

    def run(*arguments: str | Path | float) -> Done:
        capsys.readouterr()
        code = execute([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return run


def draw(folder: Path, name: str, colour: Sequence[int], count: int = 10) -> None:
    """Writes pictures of one colour with a little noise."""
    (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(sum(colour))
    for index in range(count):
        pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (SIDE, SIDE, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Pictures of each of CLASSES."""
    folder = tmp_path / "colours"
    for name, channel in zip(CLASSES, CHANNEL, strict=True):
        draw(folder, name, [200 if number == channel else 60 for number in range(3)])
    return folder


def accuracy(done: Done) -> float:
    """Returns the share of pictures that `validate --json` found right."""
    assert done.out, done.err
    return float(json.loads(done.out)["accuracy"]["top1"])


def unsorted_onnx(path: Path) -> Path:
    """Writes the classifier of `mean_onnx` with its nodes in the reverse order."""
    model = onnx.load(mean_onnx(path))
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with pytest.raises(onnx.checker.ValidationError, match="topologically sorted"):
        onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def unsorted_branch_onnx(path: Path) -> Path:
    """Writes a classifier whose branches hold their nodes in the reverse order."""
    said = helper.make_tensor_value_info("same", TensorProto.FLOAT, (1, 3))
    nodes = [
        helper.make_node("Neg", ["turned"], ["same"]),
        helper.make_node("Neg", ["mean"], ["turned"]),
    ]
    branch = helper.make_graph(nodes, "branch", [], [said])
    outer = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("If", ["yes"], ["scores"], then_branch=branch, else_branch=branch),
    ]
    save_onnx(onnx, classifier(outer, [numpy_helper.from_array(np.array(True), "yes")]), path)
    return path


def altered(path: Path, **fields: int) -> Path:
    """Sets fields of the model in a file; "opset" is that of ONNX's own operators."""
    model = onnx.load(path)
    for name, value in fields.items():
        if name == "opset":
            model.opset_import[0].version = value
        else:
            setattr(model, name, value)
    path.write_bytes(model.SerializeToString())
    return path


def test_nodes_in_any_order_are_judged(tmp_path: Path, colours: Path, edgekit: Any) -> None:
    done = edgekit("validate", unsorted_onnx(tmp_path / "m.onnx"), "--data", colours, *PIXELS,
                   "--json")  # fmt: skip
    assert (done.code, accuracy(done)) == (0, 1.0)


def test_what_onnxruntime_does_not_run_has_its_reason(
    tmp_path: Path, colours: Path, edgekit: Any
) -> None:
    """Of branches onnxruntime wants the nodes in order; a tensor that nobody makes runs nowhere."""
    branches = unsorted_branch_onnx(tmp_path / "branches.onnx")
    done = edgekit("validate", branches, "--data", colours, *PIXELS)
    assert done.code == 6
    assert "damaged" not in done.err
    assert "must be topologically sorted" in done.err
    assert "sort the nodes of every subgraph" in done.err
    model = onnx.load(mean_onnx(tmp_path / "m.onnx"))
    model.graph.node[0].input[0] = "nobody"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    done = edgekit("validate", tmp_path / "m.onnx", "--data", colours, *PIXELS)
    assert done.code == 6
    assert "onnxruntime refuses it" in done.err
    assert "'nobody'" in done.err


def test_a_file_that_the_checker_refuses_keeps_no_data_elsewhere(
    tmp_path: Path, colours: Path, edgekit: Any
) -> None:
    path = unsorted_onnx(tmp_path / "m.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    path.write_bytes(model.SerializeToString())
    done = edgekit("validate", path, "--data", colours, *PIXELS)
    assert done.code == 6
    assert "keeps its data in another file, 'weights.bin'" in done.err
    assert 'onnx.save(onnx.load("model.onnx"), "whole.onnx")' in done.err


@pytest.mark.parametrize(
    ("fields", "reason", "remedy"),
    [
        ({"ir_version": 99}, r"Unsupported model IR version: 99, max supported IR version: \d+",
         r"export with ir_version at most \d+"),
        ({"opset": 99}, r"Opset 99 is under development", r"export with opset at most \d+"),
    ],
)  # fmt: skip
def test_a_version_that_is_too_new_is_named_with_the_one_to_export(
    tmp_path: Path, colours: Path, edgekit: Any, fields: dict[str, int], reason: str, remedy: str
) -> None:
    path = altered(mean_onnx(tmp_path / "m.onnx"), **fields)
    done = edgekit("predict", path, colours, *PIXELS)
    assert done.code == 6
    words = " ".join(done.err.split())
    assert re.search(reason, words)
    assert re.search(remedy, words)


def test_an_operator_that_the_runtime_lacks_is_named(
    tmp_path: Path, colours: Path, edgekit: Any
) -> None:
    for domain, name in (("", "NoSuch"), ("com.microsoft", "NoSuch"), ("my.domain", "NoSuch")):
        path = tmp_path / "m.onnx"
        node = helper.make_node(name, ["image"], ["scores"], domain=domain)
        save_onnx(onnx, classifier([node], []), path)
        model = onnx.load(path)
        if domain:
            model.opset_import.add(domain=domain, version=1)
        path.write_bytes(model.SerializeToString())
        done = edgekit("predict", path, colours, *PIXELS)
        assert done.code == 6
        assert name in done.err
        assert "export" in done.err.partition("to do:")[2]


def test_a_file_for_the_edge_tpu_is_named_for_what_it_is(
    tmp_path: Path, colours: Path, edgekit: Any
) -> None:
    path = mean_tflite(tmp_path / "m_edgetpu.tflite", custom="edgetpu-custom-op")
    done = edgekit("validate", path, "--data", colours)
    assert done.code == 6
    assert "before the Edge TPU compiler" in done.err
    assert "give the file that edgetpu_compiler was given" in " ".join(done.err.split())
    done = edgekit("validate", mean_tflite(path, custom="FlexErf"), "--data", colours)
    assert "without SELECT_TF_OPS" in done.err
