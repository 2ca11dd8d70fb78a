"""Records: immutable, exact in JSON; and the one table from pixel to network input."""

import json
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgekit.records import (
    Artifact,
    CutScore,
    DatasetRecord,
    EpochRecord,
    FloatModelRecord,
    PhaseRecord,
    PrefixRecord,
    Preprocess,
    SkippedFile,
    SplitRecord,
    Status,
    TensorInfo,
    TensorRange,
    Verdict,
    input_codes,
)

DEFAULT = Preprocess(height_px=96, width_px=96)
PIXELS = np.arange(256)
PHASE = PhaseRecord(
    purpose="trial",
    fold=2,
    cut="head",
    cut_index=156,
    trainable_parameters=3843,
    training_pictures=1600,
    learning_rate=1e-3,
    start_loss=1 / 3,
    epochs=(
        EpochRecord(
            train_loss=0.1,
            train_accuracy=1 / 3,
            validation_loss=2 / 3,
            validation_accuracy=1 / 3,
            seconds=0.01,
            images_per_second=1e4 / 7,
        ),
    ),
    best_epoch=0,
    gradient_norms={"Conv_1": 1e-30, "head": 1 / 7},
    prefix=PrefixRecord(
        tensors=("block_14_add", "block_15_depthwise"),
        bytes_per_image=3568,
        views=2,
        views_stored=1,
        views_refused=1,
        departure=3e-4,
        images_per_second=None,
        seconds=0.0,
    ),
)

SCORE = CutScore(
    cut="head",
    validation_loss=2 / 3,
    excess=0.0,
    standard_error=0.0,
    seconds=1 / 7,
    trainable_parameters=3843,
)


def contract(scale: float, offset: float) -> Preprocess:
    return DEFAULT.model_copy(update={"scale": (scale,) * 3, "offset": (offset,) * 3})


@pytest.mark.parametrize(("dtype", "zero_point", "first"), [("uint8", 128, 0), ("int8", 0, -128)])
def test_the_default_contract_needs_no_arithmetic(dtype: str, zero_point: int, first: int) -> None:
    codes = input_codes(DEFAULT, dtype, 1 / 128, zero_point)
    assert (codes.shape, codes.dtype) == ((256, 3), np.dtype(dtype))
    for channel in range(3):
        assert codes[:, channel].astype(int).tolist() == list(range(first, first + 256))
    # The twin: with the usual 1/127.5 the codes are not the pixels.
    usual = input_codes(contract(1 / 127.5, -1.0), dtype, 1 / 128, zero_point)
    assert usual[:, 0].astype(int).tolist() != list(range(first, first + 256))


def test_float_input_is_the_contract() -> None:
    mixed = DEFAULT.model_copy(update={"scale": (1.0, 0.5, 0.017), "offset": (0.0, -1.0, -2.1)})
    codes = input_codes(mixed, "float32")
    assert codes.dtype == np.float32
    assert codes[:, 0].tolist() == PIXELS.tolist()
    assert codes[:, 1].tolist() == (PIXELS * 0.5 - 1).tolist()
    # Computed in float64 and rounded once: half a float32 step of values up to 2.3.
    error = np.abs(codes[:, 2].astype(np.float64) - (PIXELS * 0.017 - 2.1))
    assert error.max() <= 2**-23
    assert error.max() > 0


@pytest.mark.parametrize(
    ("step", "zero_point", "expected"),
    [
        # real values 0, 0.5, 1, 1.5, 2, 2.5 in steps of 1: halves go up
        (1.0, 0, [0, 1, 1, 2, 2, 3]),
        (1.0, 10, [10, 11, 11, 12, 12, 13]),
    ],
)
def test_halves_go_away_from_zero(step: float, zero_point: int, expected: list[int]) -> None:
    up = input_codes(contract(0.5, 0.0), "int8", step, zero_point)[:6, 0].tolist()
    down = input_codes(contract(-0.5, 0.0), "int8", step, zero_point)[:6, 0].tolist()
    assert up == expected
    assert down == [2 * zero_point - code for code in expected]
    # The twin: rounding half to even, as numpy does, is another answer.
    assert up != (np.round(PIXELS[:6] * 0.5 / step).astype(int) + zero_point).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_codes_saturate(dtype: str) -> None:
    limits = np.iinfo(dtype)
    codes = input_codes(contract(10.0, -1000.0), dtype, 1.0, 0)[:, 0]
    assert (int(codes[0]), int(codes[255])) == (limits.min, limits.max)
    assert (np.diff(codes.astype(int)) >= 0).all()  # a wrap around would fall somewhere
    shifted = input_codes(DEFAULT, dtype, 1 / 128, limits.max)[:, 0]
    assert int(shifted[255]) == limits.max


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"),
    [
        ("int16", 1.0, 0),
        ("float16", None, None),
        ("", None, None),
        ("int8", None, 0),
        ("uint8", 1.0, None),
        ("int8", None, None),
    ],
)
def test_inputs_that_have_no_codes(dtype: str, scale: float | None, zero_point: int | None) -> None:
    with pytest.raises(ValueError, match=f"input dtype '{dtype}' with scale {scale}"):
        input_codes(DEFAULT, dtype, scale, zero_point)


def test_records_are_frozen() -> None:
    record = SkippedFile(path="a", reason="b")
    with pytest.raises(ValidationError, match="frozen"):
        record.path = "c"  # type: ignore[misc]
    assert record == SkippedFile(path="a", reason="b")
    assert record != SkippedFile(path="a", reason="c")


@pytest.mark.parametrize(
    ("record", "changes"),
    [
        (SkippedFile, {"path": "a", "reason": "b", "reasons": "c"}),
        (SkippedFile, {"path": "a"}),
        (SkippedFile, {"path": "a", "reason": 7}),
        (Preprocess, {"height_px": 0, "width_px": 9}),
        (Preprocess, {"height_px": 9, "width_px": 9, "resize": "lanczos"}),
        (Preprocess, {"height_px": 9, "width_px": 9, "scale": (1.0, 1.0)}),
        (Preprocess, {"height_px": 9, "width_px": 9, "offset": (0.0, math.nan, 0.0)}),
        (Preprocess, {"height_px": 9, "width_px": 9, "scale": (math.inf, 1.0, 1.0)}),
        (DatasetRecord, {"splits": {"training": {"count": 1, "per_class": [1]}}}),
        (CutScore, {**SCORE.model_dump(), "validation_loss": math.inf}),
        (CutScore, {**SCORE.model_dump(), "standard_error": math.nan}),
        (CutScore, {**SCORE.model_dump(), "trainable_parameters": 0.5}),
        (PhaseRecord, {**PHASE.model_dump(), "purpose": "search"}),
        (PhaseRecord, {**PHASE.model_dump(), "fold": 0.5}),
        (PhaseRecord, {**PHASE.model_dump(), "start_loss": math.nan}),
        (PhaseRecord, {**PHASE.model_dump(), "gradient_norms": {"head": math.inf}}),
        (TensorRange, {"minimum": -1.0, "maximum": 1.0, "scale": 0.0, "zero_point": 0}),
        (TensorRange, {"minimum": -1.0, "maximum": 1.0, "scale": 0.1, "zero_point": 128}),
    ],
)
def test_records_refuse(record: type[Any], changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        record.model_validate(changes)


ROUND_TRIPS = [
    Preprocess(height_px=3, width_px=5, crop="center", scale=(0.1, 1 / 3, 2**-40), channels="bgr"),
    DatasetRecord(
        class_names=("a\u0301", "'\"\\"),
        preprocess=DEFAULT,
        splits={"train": SplitRecord(count=3, per_class=(1, 2))},
        skipped=(SkippedFile(path="a", reason="b"),),
        notes=(),
        digest="0" * 64,
        images_per_second=1e3 / 3,
    ),
    FloatModelRecord(
        alpha=0.35,
        input_size_px=(96, 128),
        class_count=3,
        cut="head",
        unfrozen_layers=("logits",),
        phases=(PHASE,),
        shipped_phase=0,
        curve=(SCORE,),
        strategy="head: as asked",
        class_weights=None,
        weighed_because="every picture counts alike",
        chosen_because="lowest",
        warnings=("calmed: \u2026",),
        validation_accuracy=1 / 3,
        validation_loss=2 / 3,
        stopped_because="the strategy goes no further",
    ),
    Artifact(
        format="tflite",
        variant="int8",
        io="uint8",
        path="model.tflite",
        sha256="0" * 64,
        size_bytes=2**40,
        inputs=(TensorInfo(name="x", dtype="uint8", shape=(-1, 3), scale=1 / 128, zero_point=128),),
        outputs=(TensorInfo(name="y", dtype="float32", shape=(1, 2)),),
        operators={"CONV_2D": 7},
        float_tensors=(),
    ),
    Verdict(target="t", artifact_path="p", artifact_sha256=None, checks=(), status=Status.MISS),
]


@pytest.mark.parametrize("record", ROUND_TRIPS, ids=lambda record: type(record).__name__)
def test_json_gives_the_same_record(record: Any) -> None:
    text = record.model_dump_json()
    assert type(record).model_validate_json(text) == record
    assert type(record).model_validate_json(json.dumps(record.model_dump(mode="json"))) == record
    altered = {**json.loads(text), "more": 1}
    with pytest.raises(ValidationError, match="more"):
        type(record).model_validate_json(json.dumps(altered))


def test_statuses_are_their_names() -> None:
    assert json.dumps(list(Status)) == '["PASS", "MISS", "INCONCLUSIVE", "UNMEASURED"]'
