"""How pictures are fed and scores are read, by what a file says."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import mean_onnx, mean_tflite

from edgekit.errors import IntegrityError
from edgekit.records import TensorInfo
from edgekit.runner.program import encoder
from edgekit.runtimes import inspect_model
from edgekit.runtimes.base import ModelFacts
from edgekit.runtimes.ends import Readout, classifier_io, feed_of, readout_of


def facts(shape: tuple[int, ...], *outputs: tuple[int, ...], last: str = "") -> ModelFacts:
    return ModelFacts(
        format="onnx",
        schema_version=17,
        inputs=(TensorInfo(name="image", dtype="float32", shape=shape),),
        outputs=tuple(TensorInfo(name="s", dtype="float32", shape=o) for o in outputs),
        operators={},
        float_tensors=(),
        metadata={},
        last_operators=(last,) * len(outputs),
    )


@pytest.mark.parametrize(
    ("shape", "layout", "channels"),
    [
        ((1, 5, 7, 3), "NHWC", 3),
        ((-1, 3, 5, 7), "NCHW", 3),
        ((1, 5, 7, 1), "NHWC", 1),
        ((1, 1, 5, 7), "NCHW", 1),
        ((1, 3, 5, 3), "NHWC", 3),
        ((1, 1, 5, 3), "NHWC", 3),
    ],
)
def test_the_shape_says_layout_and_channels(
    shape: tuple[int, ...], layout: str, channels: int
) -> None:
    asked, _ = classifier_io(facts(shape, (1, 4)), "m")
    feed = feed_of(asked)
    assert (feed.layout, feed.channels) == (layout, channels)
    sides = shape[1:3] if layout == "NHWC" else shape[2:]
    assert (feed.height_px, feed.width_px) == sides
    assert len(feed.words) == (layout == "NCHW") + (channels == 1)


@pytest.mark.parametrize(
    "shape",
    [(1, 5, 7, 4), (1, -1, -1, 3), (1, 3, -1, -1), (2, 3, 5, 7), (3, 5, 7), (1, 3, 9999, 8)],
)
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(IntegrityError, match="input 'image' of shape"):
        classifier_io(facts(shape, (1, 4)), "m")


def test_an_output_is_read_by_its_position() -> None:
    both = facts((1, 5, 7, 3), (1, 9), (1, 4))
    assert classifier_io(both, "m", 1)[1].shape == (1, 4)
    for position in (None, 2):
        with pytest.raises(IntegrityError, match="2 outputs"):
            classifier_io(both, "m", position)


def test_pictures_are_fed_transposed_or_by_one_channel() -> None:
    image = np.random.default_rng(1).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    codes = np.arange(256)[:, None] * np.array([1, 10, 100])
    wanted = image * np.array([1, 10, 100])
    np.testing.assert_array_equal(encoder(codes, "NHWC")(image), wanted[None])
    planes = encoder(codes, "NCHW")(image)
    np.testing.assert_array_equal(planes, wanted.transpose(2, 0, 1)[None])
    assert not np.array_equal(planes, wanted.reshape(1, 3, 4, 6))
    np.testing.assert_array_equal(encoder(codes[:, :1], "NHWC")(image), image[None, ..., :1])
    np.testing.assert_array_equal(encoder(codes[:, :1], "NCHW")(image), image[None, None, ..., 0])


@pytest.mark.parametrize(
    ("last", "answers", "threshold"),
    [
        ("Sigmoid", [0.2, 7.0], 0.5),  # whatever it answers
        ("Softplus", [0.2, 0.9], 0.5),
        ("Softplus", [0.2, 1.1], 0.0),
        ("Softplus", [-0.1, 0.9], 0.0),
        ("Gemm", [0.2, 0.9], 0.0),  # too few to tell
        ("Gemm", [0.2, 0.9] * 5, 0.5),
        ("Gemm", [0.2, 0.9] * 5 + [1.1], 0.0),
        ("FULLY_CONNECTED", [-0.2], 0.0),
    ],
)
def test_a_single_score_is_a_probability_or_a_logit(
    last: str, answers: list[float], threshold: float
) -> None:
    readout = readout_of(facts((1, 5, 7, 3), (1, 1), last=last), 0)
    real = np.array(answers, np.float32)[:, None]
    assert readout.threshold_of(real) == threshold
    scores = readout.scores(real)
    np.testing.assert_array_equal(scores.argmax(axis=1), real[:, 0] > threshold)


def test_the_threshold_itself_is_the_first_class_and_many_scores_stay() -> None:
    single = Readout(output=0, single=True, threshold=0.5)
    assert single.scores(np.array([[0.5]], np.float32)).argmax() == 0
    many = np.array([[0.1, 0.7, 0.2]], np.float32)
    assert readout_of(facts((1, 5, 7, 3), (1, 3)), 0).scores(many) is many


def test_the_last_operator_is_that_behind_conversions(tmp_path: Path) -> None:
    assert inspect_model(mean_onnx(tmp_path / "m.onnx")).last_operators == ("Gemm",)
    assert inspect_model(mean_tflite(tmp_path / "m.tflite")).last_operators == ("MEAN",)
    relu = mean_tflite(tmp_path / "r.tflite", relu=True)
    assert inspect_model(relu).last_operators == ("RELU",)
