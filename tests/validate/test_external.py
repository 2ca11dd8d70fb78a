"""Files that edgekit did not make: what they say is used, what they do not must be given."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import (
    CLASSES,
    colour_images,
    mean_onnx,
    mean_tflite,
    quantized_onnx,
    shared_file,
)

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import Preprocess, Status, TensorInfo, input_codes
from edgekit.validate.external import (
    InputOptions,
    external_preprocess,
    judge_external,
    per_channel,
    plan_external,
    plausibility,
)

UNIT = InputOptions(scale=(1 / 255,) * 3, offset=(0.0,) * 3)


def image_input(dtype: str, scale: float | None = None, zero: int | None = None) -> TensorInfo:
    return TensorInfo(name="image", dtype=dtype, shape=(1, 6, 8, 3), scale=scale, zero_point=zero)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero", "shift"),
    [
        ("uint8", 1 / 128, 128, 0),
        ("uint8", 0.007843137718737125, 127, 0),
        ("uint8", 0.0173, 114, 0),
        ("int8", 1 / 128, 0, 128),
        ("int8", 0.0039, -128, 128),
    ],
)
def test_integer_inputs_take_the_pixel_itself(
    dtype: str, scale: float, zero: int, shift: int
) -> None:
    model_input = image_input(dtype, scale, zero)
    contract = external_preprocess(model_input, {}, InputOptions())
    assert (contract.height_px, contract.width_px) == (6, 8)
    codes = input_codes(contract, dtype, scale, zero)
    np.testing.assert_array_equal(codes.astype(int), np.arange(256)[:, None] - [shift] * 3)


def test_uint8_without_quantization_takes_plain_pixels() -> None:
    contract = external_preprocess(image_input("uint8"), {}, InputOptions())
    assert (contract.scale, contract.offset) == ((1.0,) * 3, (0.0,) * 3)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_input_that_says_nothing_needs_options(dtype: str) -> None:
    with pytest.raises(SpecError, match="--input-scale and --input-offset"):
        external_preprocess(image_input(dtype), {}, InputOptions())
    contract = external_preprocess(image_input(dtype), {}, UNIT)
    assert contract.scale == (1 / 255,) * 3


def test_one_option_alone_is_refused() -> None:
    with pytest.raises(SpecError, match="--input-scale alone"):
        external_preprocess(image_input("float32"), {}, InputOptions(scale=(1.0, 1.0, 1.0)))


def test_a_stored_contract_is_used_and_checked() -> None:
    stored = Preprocess(height_px=6, width_px=8, crop="center", channels="bgr")
    metadata = {"edgekit.preprocess": stored.model_dump_json()}
    assert external_preprocess(image_input("float32"), metadata, InputOptions()) == stored
    assert external_preprocess(image_input("float32"), metadata, UNIT).scale == (1 / 255,) * 3
    other = Preprocess(height_px=8, width_px=8).model_dump_json()
    with pytest.raises(IntegrityError, match=r"\(8, 8\) in a model for \(6, 8\)"):
        external_preprocess(image_input("float32"), {"edgekit.preprocess": other}, InputOptions())
    with pytest.raises(IntegrityError, match="not a preprocessing contract"):
        external_preprocess(image_input("float32"), {"edgekit.preprocess": "{}"}, InputOptions())


def test_numbers_per_channel() -> None:
    assert per_channel(None, "--input-scale") is None
    assert per_channel(0.5, "--input-scale") == (0.5, 0.5, 0.5)
    assert per_channel([1, 2, 3], "--input-scale") == (1, 2, 3)
    for wrong in ([1.0, 2.0], [], float("nan")):
        with pytest.raises(SpecError, match="--input-scale"):
            per_channel(wrong, "--input-scale")


def test_plausibility_finds_the_right_offset() -> None:
    labels = (np.arange(60) % 3).astype(np.int32)
    scores = np.eye(4, dtype=np.float32)[labels + 1]
    wrong = plausibility(scores, labels, np.arange(3), 0)
    assert wrong.status == Status.INCONCLUSIVE
    assert "answers fit --label-offset 1 (100.0 %)" in wrong.detail
    assert plausibility(scores, labels, np.arange(3) + 1, 1).status == Status.PASS


def test_plausibility_of_guessing() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200).astype(np.int32)
    scores = rng.random((200, 3), np.float32)
    assert plausibility(scores, labels, np.arange(3)).status == Status.INCONCLUSIVE


def test_answers_outside_the_folders_are_not_taken_for_guessing() -> None:
    """Right in 25 % and elsewhere among 100 outputs in 75 %: far better than guessing."""
    labels = (np.arange(80) % 2).astype(np.int32)
    answers = np.where(np.arange(80) < 20, labels, 50)
    scores = np.eye(100, dtype=np.float32)[answers]
    assert plausibility(scores, labels, np.arange(2)).status == Status.PASS
    swapped = plausibility(scores, 1 - labels, np.array([0, 1]))
    assert swapped.status == Status.INCONCLUSIVE
    alone = plausibility(scores[:20:2], labels[:20:2], np.arange(1))
    assert alone.status == Status.PASS


@pytest.mark.parametrize("kind", ["tflite", "onnx", "float onnx"])
def test_judging_a_foreign_file(tmp_path: Path, kind: str) -> None:
    labels = colour_images(tmp_path / "i.npy", 60)
    if kind == "tflite":  # its outputs are red, green, blue
        model = mean_tflite(tmp_path / "m.tflite")
        plan = plan_external(model, CLASSES, label_lines=["red", "green", "blue"])
    elif kind == "onnx":
        plan = plan_external(quantized_onnx(tmp_path / "m.onnx"), CLASSES)
    else:
        plan = plan_external(mean_onnx(tmp_path / "m.onnx"), CLASSES, UNIT)
    judgement = judge_external(plan, tmp_path / "i.npy", labels, timeout_seconds=60)
    assert judgement.accuracy.top1 == 1.0
    assert judgement.plausible.status == Status.PASS
    np.testing.assert_array_equal(judgement.top1, labels)
    assert plan.size_bytes == plan.model.stat().st_size


def test_judging_with_a_background_output(tmp_path: Path) -> None:
    labels = colour_images(tmp_path / "i.npy", 60)
    model = mean_onnx(tmp_path / "m.onnx", lead=1)
    right = plan_external(model, CLASSES, UNIT, label_offset=1)
    assert judge_external(right, tmp_path / "i.npy", labels).accuracy.top1 == 1.0
    lines = [*CLASSES, "other"]
    wrong = judge_external(plan_external(model, CLASSES, UNIT, lines), tmp_path / "i.npy", labels)
    assert wrong.accuracy.top1 == 0.0
    assert wrong.plausible.status == Status.INCONCLUSIVE
    assert "fit --label-offset 1 (100.0 %)" in wrong.plausible.detail


def test_public_model_is_planned_from_what_it_says() -> None:
    model = shared_file("models", "tf2_mobilenet_v2_1.0_224_ptq.tflite")
    lines = shared_file("models", "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    plan = plan_external(model, ["jersey", "cowboy_hat", "Running Shoe"], label_lines=lines)
    assert [lines[i].split(",")[0] for i in plan.output_index] == [
        "jersey",
        "cowboy hat",
        "running shoe",
    ]
    assert (plan.preprocess.height_px, plan.outputs) == (224, 1001)
    codes = input_codes(plan.preprocess, "uint8", 0.007843137718737125, 127)
    np.testing.assert_array_equal(codes[:, 0], np.arange(256))
