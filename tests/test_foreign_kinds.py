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
from tiny_models import CHANNEL, CLASSES, SIZE, classifier, mean_onnx, mean_tflite, save_onnx

from edgekit import foreign
from edgekit.cli import execute
from edgekit.devices.measure import Pace
from edgekit.validate.on_device import Measuring

PIXELS = ("--input-scale", "1", "--input-offset", "0")
UNIT = ("--input-scale", "0.00392157", "--input-offset", "0")
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


def answered(done: Done) -> float:
    """Returns the share of pictures to which `predict` answered the name of their folder."""
    assert done.code == 0, done.err
    lines = [line.split("\t") for line in done.out.splitlines()]
    return float(np.mean([Path(picture).parent.name == name for picture, name, _ in lines]))


def labels(folder: Path, *names: str) -> tuple[str, Path]:
    """Writes a labels file; returns the option that gives it."""
    path = folder / "labels.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    return "--labels", path


def onnx_file(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    outputs: dict[str, tuple[Sequence[int], int]],
    constants: dict[str, Any],
) -> Path:
    """Writes a model from a float "image"; outputs are shape and element type by name."""
    graph = helper.make_graph(
        list(nodes),
        "kind",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, kind, dims) for n, (dims, kind) in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    save_onnx(onnx, graph, path)
    return path


def planes_onnx(path: Path, batch: int | str = 1) -> Path:
    """Writes what `mean_onnx` does for an input with its channels first, as PyTorch exports."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["mean", "order"], ["scores"]),
    ]
    shape = (batch, 3, SIZE, SIZE + 2)
    scores = {"scores": ((1, 3), TensorProto.FLOAT)}
    return onnx_file(path, nodes, shape, scores, {"order": np.eye(3, dtype=np.float32)[::-1]})


def single_onnx(path: Path, last: str = "", codes: bool = False) -> Path:
    """Writes red minus blue, from -1 to 1 for pixels of 0 to 1, as the only score.

    Args:
        path: Where to.
        last: Operator behind it, such as "Sigmoid"; it takes eight times the difference.
        codes: Whether the score is quantized to uint8 in steps of 1/256.
    """
    scale = 8.0 if last else 1.0
    weights = np.array([[scale], [0], [-scale]], np.float32)
    made = "scores" if not last and not codes else "difference"
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["mean", "weights"], [made]),
    ]
    if last:
        nodes.append(helper.make_node(last, [made], ["chance" if codes else "scores"]))
    if codes:
        nodes.append(helper.make_node("QuantizeLinear", ["chance", "step", "zero"], ["scores"]))
    kind = TensorProto.UINT8 if codes else TensorProto.FLOAT
    constants = {"weights": weights, "step": np.float32(1 / 256), "zero": np.uint8(0)}
    return onnx_file(path, nodes, (1, SIZE, SIZE, 3), {"scores": ((1, 1), kind)}, constants)


def heads_onnx(path: Path, *names: str) -> Path:
    """Writes a model with an output of five numbers, and the three scores under each name."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["mean", "wide"], ["embedding"]),
        *(helper.make_node("Gemm", ["mean", f"of {name}"], [name]) for name in names),
    ]
    order = np.eye(3, dtype=np.float32)[::-1]
    # The last head has the right order, those in front of it another one.
    weights = {f"of {name}": np.roll(order, len(names) - 1 - i, 1) for i, name in enumerate(names)}
    outputs = dict.fromkeys(names, ((1, 3), TensorProto.FLOAT))
    return onnx_file(
        path,
        nodes,
        (1, SIZE, SIZE, 3),
        {"embedding": ((1, 5), TensorProto.FLOAT), **outputs},
        {"wide": np.ones((3, 5), np.float32), **weights},
    )


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
    done = edgekit("predict", path, colours / "red" / "0.png", *PIXELS)
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
        done = edgekit("predict", path, colours / "red" / "0.png", *PIXELS)
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


@pytest.mark.parametrize("batch", [1, "n"])
def test_channels_first_are_fed_transposed(
    tmp_path: Path, colours: Path, edgekit: Any, batch: int | str
) -> None:
    """Pixels in another order than the input's would mix the colours: no answer would be right."""
    path = planes_onnx(tmp_path / "m.onnx", batch)
    done = edgekit("predict", path, colours, *UNIT, *labels(tmp_path, *CLASSES))
    assert answered(done) == 1.0
    assert "channels first: each picture is fed transposed" in done.err


def test_channels_first_are_judged_and_said(tmp_path: Path, colours: Path, edgekit: Any) -> None:
    path = mean_tflite(tmp_path / "m.tflite", planes=True)
    names = labels(tmp_path, "red", "green", "blue")
    done = edgekit("validate", path, "--data", colours, *names, "--json")
    assert (done.code, accuracy(done)) == (0, 1.0)
    assert json.loads(done.out)["reading"] == [
        "input: channels first: each picture is fed transposed"
    ]
    plain = edgekit("validate", path, "--data", colours, *names)
    assert "channels first: each picture is fed transposed" in plain.out


def test_channels_first_that_do_not_say_their_range_are_told_what_fits(
    tmp_path: Path, colours: Path, edgekit: Any
) -> None:
    model = planes_onnx(tmp_path / "m.onnx")
    silent = edgekit("validate", model, "--data", colours, "--channels", "rgb")
    assert silent.code == 2
    assert "30 of 30 right" in " ".join(silent.err.split())


@pytest.mark.slow
def test_other_contracts_are_tried_on_channels_first(
    tmp_path: Path, colours: Path, edgekit: Any
) -> None:
    """Blue and red exchanged, by the order of channels as well as by their labels."""
    path = planes_onnx(tmp_path / "m.onnx")
    done = edgekit("validate", path, "--data", colours, *UNIT, "--channels", "bgr",
                   *labels(tmp_path, *CLASSES), "--min-accuracy", 10)  # fmt: skip
    assert done.code == 5
    assert "fed transposed" in done.out


def test_one_channel_is_fed_the_luma(tmp_path: Path, edgekit: Any) -> None:
    """By the mean of its channels blue would be brighter than green: 85 and 67."""
    draw(tmp_path / "data", "blue", (0, 0, 255))
    draw(tmp_path / "data", "green", (0, 200, 0))
    path = mean_tflite(tmp_path / "m.tflite", channels=1)
    # The middle of 29 and 117, as the codes of this file have it.
    asked = ("validate", path, "--data", tmp_path / "data", "--threshold", (73 - 128) / 128)
    done = edgekit(*asked, "--json")
    assert (done.code, accuracy(done)) == (0, 1.0)
    said = json.loads(done.out)["reading"]
    assert said[0].startswith("input: one channel: each picture is fed as its luma")
    assert said[1] == "one score for two classes: above -0.429688 it answers 'green', else 'blue'"
    for wrong in (("--channels", "bgr"), ("--input-scale", 1, "--input-scale", 2,
                  "--input-scale", 3, "--input-offset", 0)):  # fmt: skip
        refused = edgekit(*asked, *wrong)
        assert refused.code == 2
        assert "for an input that has one channel" in refused.err


def test_one_channel_that_does_not_say_its_range_is_told_what_fits(
    tmp_path: Path, edgekit: Any
) -> None:
    draw(tmp_path / "data", "dark", (40, 40, 40))
    draw(tmp_path / "data", "light", (200, 200, 200))
    path = mean_tflite(tmp_path / "m.tflite", "float32", channels=1)
    done = edgekit("validate", path, "--data", tmp_path / "data", "--threshold", 0.5)
    assert done.code == 2
    words = " ".join(done.err.split())
    assert "--input-scale 0.00392157 --input-offset 0 (0 to 1): 20 of 20 right" in words
    assert "bgr" not in words


@pytest.mark.parametrize(
    ("last", "codes", "threshold"),
    [("Sigmoid", False, 0.5), ("Sigmoid", True, 0.5), ("", False, 0)],
)
def test_one_score_stands_for_two_classes(
    tmp_path: Path, edgekit: Any, last: str, codes: bool, threshold: float
) -> None:
    draw(tmp_path / "data", "blue", (60, 60, 200))
    draw(tmp_path / "data", "red", (200, 60, 60))
    path = single_onnx(tmp_path / "m.onnx", last, codes)
    names = labels(tmp_path, "blue", "red")
    done = edgekit("predict", path, tmp_path / "data", *UNIT, *names)
    assert answered(done) == 1.0
    assert f"above {threshold:g} it answers 'red', else 'blue'" in done.err
    scores = [float(line.split("\t")[2]) for line in done.out.splitlines()]
    assert min(scores) > threshold
    if codes:
        done = edgekit("validate", path, "--data", tmp_path / "data", *UNIT, *names, "--json")
        assert (done.code, accuracy(done)) == (0, 1.0)


def test_a_threshold_is_for_one_score(tmp_path: Path, colours: Path, edgekit: Any) -> None:
    path = mean_onnx(tmp_path / "m.onnx")
    done = edgekit("predict", path, colours, *UNIT, "--threshold", 0.5)
    assert done.code == 2
    assert "--threshold 0.5 with 3 scores" in done.err


@pytest.mark.slow
def test_a_wrong_threshold_and_exchanged_labels_of_one_score_are_named(
    tmp_path: Path, edgekit: Any
) -> None:
    draw(tmp_path / "data", "blue", (60, 60, 200), 20)
    draw(tmp_path / "data", "red", (200, 60, 60), 20)
    path = single_onnx(tmp_path / "m.onnx", "Sigmoid")
    asked = ("validate", path, "--data", tmp_path / "data", *UNIT, "--min-accuracy", 10)
    done = edgekit(*asked, "--threshold", 0)
    assert done.code == 5
    assert "answers fit --threshold 0.5 (100.0 %) far better than 0 (50.0 %)" in done.out
    done = edgekit(*asked, *labels(tmp_path, "red", "blue"))
    assert done.code != 0
    assert "blue and red are exchanged" in done.out


def test_metadata_says_what_is_read_and_how(tmp_path: Path, edgekit: Any) -> None:
    path = mean_tflite(tmp_path / "m.tflite", planes=True)
    done = edgekit("metadata", path)
    assert done.code == 0
    found = json.loads(done.out)
    assert (found["format"], found["schema_version"], found["operators"]) == (
        "tflite", 3, {"MEAN": 1})  # fmt: skip
    assert found["inputs"] == [
        {"name": "image", "dtype": "uint8", "shape": [1, 3, SIZE, SIZE], "scale": 1 / 128,
         "zero_point": 128}
    ]  # fmt: skip
    assert found["outputs"][0]["shape"] == [1, 3]
    assert found["feed"]["layout"] == "NCHW"
    assert found["readout"]["single"] is False
    assert (found["labels"], found["preprocess"], found["not_judged"]) == (None, None, None)
    two = json.loads(edgekit("metadata", heads_onnx(tmp_path / "two.onnx", "a", "b")).out)
    assert [item["name"] for item in two["outputs"]] == ["embedding", "a", "b"]
    assert two["not_judged"].startswith(f"{tmp_path / 'two.onnx'}: 3 outputs: 'embedding'")
    assert edgekit("metadata", unsorted_onnx(tmp_path / "m.onnx")).code == 0


def test_of_several_outputs_one_is_read(tmp_path: Path, colours: Path, edgekit: Any) -> None:
    names = labels(tmp_path, *CLASSES)
    one = heads_onnx(tmp_path / "one.onnx", "probs")
    done = edgekit("predict", one, colours, *UNIT, *names)
    assert answered(done) == 1.0
    assert "output 'probs' is read, the only one of 2 with 3 scores" in done.err
    two = heads_onnx(tmp_path / "two.onnx", "coarse", "fine")
    refused = edgekit("validate", two, "--data", colours, *UNIT, *names)
    assert refused.code == 2
    words = " ".join(refused.err.split())
    assert "3 outputs: 'embedding' of shape (1, 5) and type float32; 'coarse' of shape" in words
    assert "--output NAME" in words
    done = edgekit("predict", two, colours, *UNIT, *names, "--output", "fine")
    assert answered(done) == 1.0
    assert "output 'fine' is read, as --output says" in done.err
    assert answered(edgekit("predict", two, colours / "red", *UNIT, *names, "--output", 1)) == 0.0
    refused = edgekit("predict", two, colours, *UNIT, *names, "--output", "probs")
    assert refused.code == 2
    assert "--output probs: the name of none" in refused.err
    silent = edgekit("predict", one, colours, *UNIT)
    assert silent.code == 2
    assert "2 outputs: 'embedding'" in silent.err
