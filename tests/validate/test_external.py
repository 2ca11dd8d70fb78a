"""Files that edgekit did not make: what they say is used, what they do not must be given."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import (
    CLASSES,
    SIZE,
    colour_images,
    mean_onnx,
    mean_tflite,
    quantized_onnx,
    shared_file,
)

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import Preprocess, Status, TensorInfo, input_codes
from edgekit.runtimes.inspect import inspect_model
from edgekit.validate.accuracy import measure_accuracy
from edgekit.validate.contracts import (
    InputOptions,
    Recorded,
    external_preprocess,
    per_channel,
)
from edgekit.validate.external import (
    Judgement,
    Plan,
    drop_against,
    judge_external,
    plan_external,
    plan_reference,
    variants_of,
)
from edgekit.validate.plausible import plausibility

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


def test_what_the_user_says_goes_before_every_stored_contract() -> None:
    stored = Preprocess(height_px=6, width_px=8, crop="center", channels="bgr", resize="nearest")
    metadata = {"edgekit.preprocess": stored.model_dump_json()}
    recorded = Recorded(
        preprocess=stored.model_copy(update={"resize": "bicubic"}),
        variant="float32",
        class_names=CLASSES,
    )
    for known, resize in ((None, "nearest"), (recorded, "bicubic")):
        read = external_preprocess(image_input("float32"), metadata, InputOptions(), known)
        assert (read.resize, read.crop, read.channels) == (resize, "center", "bgr")
        said = InputOptions(crop="none", channels="rgb")
        told = external_preprocess(image_input("float32"), metadata, said, known)
        assert (told.resize, told.crop, told.channels) == (resize, "none", "rgb")
        assert told.scale == stored.scale
        scaled = external_preprocess(image_input("float32"), metadata, UNIT, known)
        assert (scaled.crop, scaled.scale) == ("center", (1 / 255,) * 3)


def test_labels_in_the_file_are_used_unless_others_are_given(tmp_path: Path) -> None:
    model = mean_onnx(tmp_path / "m.onnx", metadata={"edgekit.labels": '["red", "green", "blue"]'})
    assert plan_external(model, CLASSES, UNIT).output_index == (2, 1, 0)
    assert plan_external(model, CLASSES, UNIT, list(CLASSES)).output_index == (0, 1, 2)
    recorded = Recorded(
        preprocess=Preprocess(height_px=SIZE, width_px=SIZE),
        variant="float32",
        class_names=("green", "blue", "red"),
    )
    assert plan_external(model, CLASSES, UNIT, recorded=recorded).output_index == (1, 0, 2)
    broken = mean_onnx(tmp_path / "b.onnx", metadata={"edgekit.labels": '{"red": 1}'})
    with pytest.raises(IntegrityError, match=r"'edgekit\.labels' that is not a list of labels"):
        plan_external(broken, CLASSES, UNIT)


def test_variants_by_what_files_say(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for facts, variants in (
        (inspect_model(mean_onnx(path.with_suffix(".onnx"))), ("float32",)),
        (inspect_model(quantized_onnx(path.with_suffix(".onnx"))), ("int8",)),
        (inspect_model(quantized_onnx(path.with_suffix(".onnx"), dequantize=False)), ()),
        (inspect_model(mean_tflite(path.with_suffix(".tflite"), "uint8")), ("int8",)),
        (
            inspect_model(mean_tflite(path.with_suffix(".tflite"), "float32", relu=True)),
            ("float32", "dynamic"),
        ),
    ):
        assert variants_of(facts) == variants
    plain = inspect_model(mean_tflite(path.with_suffix(".tflite"), "float32", relu=True))
    half = plain.model_copy(update={"operators": {"DEQUANTIZE": 2, "MEAN": 1}})
    assert variants_of(half) == ("float16",)
    island = plain.model_copy(update={"operators": {"QUANTIZE": 1, "DEQUANTIZE": 1, "MEAN": 1}})
    assert variants_of(island) == ()
    wide = island.model_copy(update={"float_tensors": (), "wide_tensors": ("means",)})
    assert variants_of(wide) == ("int16x8",)
    wrapped = island.model_copy(update={"float_tensors": ()})
    assert variants_of(wrapped) == ("int8",)
    moving = inspect_model(mean_onnx(path.with_suffix(".onnx")))
    moving = moving.model_copy(update={"operators": {"DynamicQuantizeLinear": 1, "ConvInteger": 1}})
    assert variants_of(moving) == ("dynamic",)


@pytest.fixture
def quantized_plan(tmp_path: Path) -> Plan:
    """Plan of a uint8 file whose quantization says: pixel / 128 - 1."""
    model = mean_tflite(tmp_path / "judged.tflite")
    return plan_external(model, CLASSES, label_lines=["red", "green", "blue"])


def test_a_reference_runs_on_the_same_pixels_for_the_same_classes(
    tmp_path: Path, quantized_plan: Plan
) -> None:
    # 1 / 128 and -1 + 0.4 / 128: within the rounding of the codes.
    close = Preprocess(height_px=SIZE, width_px=SIZE, offset=(-1 + 0.4 / 128,) * 3)
    stored = {"edgekit.preprocess": close.model_dump_json()}
    silent = plan_reference(mean_onnx(tmp_path / "r.onnx"), quantized_plan)
    assert silent.preprocess == quantized_plan.preprocess
    assert silent.output_index == quantized_plan.output_index == (2, 1, 0)
    own = plan_reference(mean_onnx(tmp_path / "r.onnx", metadata=stored), quantized_plan)
    assert own.preprocess == close


def test_the_judged_file_is_no_reference_of_itself(tmp_path: Path) -> None:
    model = mean_onnx(tmp_path / "m.onnx")
    plan = plan_external(model, CLASSES, UNIT)
    copied = tmp_path / "copy.onnx"
    copied.write_bytes(model.read_bytes())
    with pytest.raises(SpecError, match="the judged file itself"):
        plan_reference(copied, plan)


def test_a_reference_that_is_not_float_is_refused(tmp_path: Path, quantized_plan: Plan) -> None:
    integer = mean_tflite(tmp_path / "r.tflite", "int8")
    with pytest.raises(SpecError, match=r"not a float file \(int8, int8 input, int8 output\)"):
        plan_reference(integer, quantized_plan)
    with pytest.raises(SpecError, match=r"not a float file \(partly quantized"):
        plan_reference(quantized_onnx(tmp_path / "r.onnx", dequantize=False), quantized_plan)
    looks_float = mean_tflite(tmp_path / "f.tflite", "float32")
    assert plan_reference(looks_float, quantized_plan).variants == ("float32", "dynamic")
    recorded = Recorded(
        preprocess=quantized_plan.preprocess, variant="dynamic", class_names=CLASSES
    )
    with pytest.raises(SpecError, match=r"not a float file \(dynamic"):
        plan_reference(looks_float, quantized_plan, recorded=recorded)


def test_a_reference_of_another_network_is_refused(tmp_path: Path, quantized_plan: Plan) -> None:
    with pytest.raises(SpecError, match=r"4 outputs\n  expected: 3 outputs") as caught:
        plan_reference(mean_onnx(tmp_path / "r.onnx", lead=1), quantized_plan)
    assert "labels" not in str(caught.value)
    with pytest.raises(SpecError, match=r"an input of \(8, 8\) pixels"):
        plan_reference(mean_onnx(tmp_path / "r.onnx", shape=(1, 8, 8, 3)), quantized_plan)


@pytest.mark.parametrize(
    ("differing", "words"),
    [
        ({"scale": (1 / 255,) * 3, "offset": (0.0,) * 3}, "scale .* and offset"),
        ({"offset": (-1.0, -1.0, -0.9)}, "scale .* and offset"),
        ({"crop": "center"}, "crop center"),
        ({"resize": "bicubic"}, "resize bicubic"),
        ({"channels": "bgr"}, "channels bgr"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_reference_with_a_contract_of_its_own_is_refused(
    tmp_path: Path,
    quantized_plan: Plan,
    differing: dict[str, object],
    words: str,
    beside: bool,
) -> None:
    contract = Preprocess(height_px=SIZE, width_px=SIZE).model_copy(update=differing)
    metadata = None if beside else {"edgekit.preprocess": contract.model_dump_json()}
    recorded = Recorded(preprocess=contract, variant="float32", class_names=CLASSES)
    model = mean_onnx(tmp_path / "r.onnx", metadata=metadata)
    with pytest.raises(SpecError, match=words):
        plan_reference(model, quantized_plan, recorded=recorded if beside else None)


def judgement_of(top1: list[int], labels: list[int]) -> Judgement:
    """Returns what answers show, as `judge_external` would."""
    answers, truth = np.array(top1, np.int32), np.array(labels, np.int32)
    scores = np.eye(4, dtype=np.float32)[answers]
    return Judgement(
        accuracy=measure_accuracy(scores, truth, 4, np.arange(4)),
        plausible=plausibility(scores, truth, np.arange(4)),
        raw=scores,
        top1=answers,
        best=scores.max(axis=1),
        runtime="a runtime",
    )


def test_a_reference_that_answers_badly_is_none_to_compare_with() -> None:
    labels = [n % 4 for n in range(400)]
    turned = [(label + 2) % 4 for label in labels]
    judged = judgement_of(labels, labels)
    truth = np.array(labels, np.int32)
    guessing = judgement_of([0] * 400, labels)
    assert drop_against(guessing, judged, truth)[0] is None
    assert "not plausible itself" in drop_against(guessing, judged, truth)[1]
    poor = judgement_of(labels[:300] + turned[300:], labels)
    assert poor.plausible.status == Status.PASS
    assert drop_against(poor, judged, truth)[0] is None
    assert "worse than the judged file by 25.0 points" in drop_against(poor, judged, truth)[1]
    nearly = judgement_of(labels[:384] + turned[384:], labels)
    drop, reason = drop_against(nearly, judged, truth)
    assert drop is not None
    assert (drop.drop_points, reason) == (-4.0, "")


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
    assert alone.status == Status.INCONCLUSIVE  # a model that always answers 0 does as well


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
    judgement = judge_external(plan, tmp_path / "i.npy", labels)
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
