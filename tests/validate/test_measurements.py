"""Measurements made elsewhere are read, doubted, and held against a budget."""

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import digest, mean_tflite

from edgekit.errors import EdgekitError, IntegrityError, SpecError
from edgekit.records import Check, Status
from edgekit.validate.accuracy import paired_drop
from edgekit.validate.measurements import (
    MAX_BYTES,
    Measurements,
    accuracy_of,
    answers_of,
    latency_of,
    origin,
    read_measurements,
    refuse_other_model,
    warnings_about,
)
from edgekit.validate.verdict import check_latency

pytestmark = pytest.mark.proves(
    "--measurements: made elsewhere", "files, one of them by a real litert-benchmark run"
)

SHA256 = "ab" * 32
BUDGET_MS = 5.1


def samples(seed: int = 1, count: int = 300, over: int = 30) -> list[float]:
    """Returns quiet samples below the budget but for `over` of them, evenly spread."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(5.0, BUDGET_MS - 0.001, count)
    places = np.linspace(0, count - 1, over).astype(int) if over else []
    values[places] = rng.uniform(BUDGET_MS + 0.001, 5.2, over)
    return [float(value) for value in values]


def session(seed: int = 1, over: int = 30, **facts: Any) -> dict[str, Any]:
    return {"samples_ms": samples(seed, over=over), "fresh_process": True, "load": 1.1, **facts}


def content(**changes: Any) -> dict[str, Any]:
    """Returns what a valid file holds, with five good sessions; None leaves a key out."""
    known = {
        "edgekit_measurements": 1,
        "sha256": SHA256,
        "by": "Ada Lovelace",
        "at": "2026-11-20T18:04:05+01:00",
        "device": "Pixel 8, Tensor G3",
        "os": "Android 16",
        "cores": 9,
        "runtime": "LiteRT",
        "runtime_version": "2.3.0",
        "threads": 1,
        "delegate": "XNNPACK",
        "latency": [session(seed) for seed in range(5)],
    }
    return {key: value for key, value in {**known, **changes}.items() if value is not None}


def written(folder: Path, values: object) -> Path:
    path = folder / "measured.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def litert_result(**times: float) -> dict[str, Any]:
    """Returns what `litert-benchmark --result_json` of ai-edge-litert 2.3.0 writes."""
    known = {
        "init_ms": 9.69,
        "warmup_first_ms": 6.06,
        "warmup_avg_ms": 5.12,
        "num_warmup_runs": 5,
        "avg_ms": 5.05,
        "min_ms": 4.99,
        "max_ms": 5.31,
        "median_ms": 5.04,
        "std_ms": 0.04,
        "p5_ms": 5.0,
        "p95_ms": 5.09,
        "num_runs": 100,
    }
    return {
        "model": "model.tflite",
        "model_size_mb": 4.08,
        "accelerators": ["CPU"],
        "signature": "serving_default",
        "fully_accelerated": True,
        "num_threads": 1,
        "latency": {**known, **times},
        "throughput_mb_s": 35.39,
    }


def benchmark_log(
    counts: str = "count=100 first=5100 curr=5040 min=4990 max=5310 avg=5050.5 std=40 "
    "p5=5000 median=5040 p95=5090",
    mean: str = "5050.5",
    init: int = 5388,
    prefix: str = "INFO: ",
) -> str:
    """Returns what TFLite's benchmark_model prints."""
    lines = [
        "Log parameter values verbosely: [0]",
        "Num threads: [1]",
        "Loaded model model.tflite",
        "The input model file size (MB): 4.27635",
        "Initialized session in 5.388ms.",
        "Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if "
        "exceeding 150 seconds.",
        "count=9 first=9100 curr=5530 min=5490 max=9102 avg=6012.55 std=1180 p5=5490 median=5530 "
        "p95=9102",
        "",
        "Running benchmark for at least 50 iterations and at least 1 seconds but terminate if "
        "exceeding 150 seconds.",
        counts,
        "",
        f"Inference timings in us: Init: {init}, First inference: 9100, Warmup (avg): 6012.55, "
        f"Inference (avg): {mean}",
        "Overall peak memory footprint (MB) via periodic monitoring: 93.2383",
    ]
    return "".join(f"{prefix}{line}\n" if line else "\n" for line in lines)


CLASSES = ("cat", "dog", "owl")
FILES = ("test/cat/1.jpg", "test/dog/1.jpg", "test/dog/2.jpg", "test/owl/1.jpg")
DIGESTS = tuple(character * 64 for character in "1234")
LABELS = np.array([0, 1, 1, 2], np.int32)
ANSWERS = ("cat", "dog", "owl", "owl")


def read(folder: Path, **changes: Any) -> Measurements:
    return read_measurements(written(folder, content(**changes)))


def judged(measurements: Measurements, percentile: int = 90, budget: float = BUDGET_MS) -> Check:
    return check_latency(latency_of(measurements, percentile), budget)


def by_file() -> list[dict[str, Any]]:
    return [{"file": f, "answer": a} for f, a in zip(FILES, ANSWERS, strict=True)]


def answered(folder: Path, answers: list[dict[str, Any]], **how: Any) -> list[int]:
    top1 = answers_of(read(folder, latency=None, accuracy=answers), FILES, DIGESTS, CLASSES, **how)
    assert top1 is not None
    assert top1.dtype == np.int32
    return list(top1.tolist())


# The file as a whole


def test_a_file_with_everything_is_read(tmp_path: Path) -> None:
    full = session(
        warmup_runs=10,
        context_switches=3,
        governor="schedutil",
        frequency_before_khz=2_900_000,
        frequency_after_khz=2_850_000,
        temperature_before_c=31.5,
        temperature_after_c=33,
        battery_saver=False,
        thermal_status="none",
    )
    measured = read(tmp_path, latency=[full], accuracy=by_file(), memory_peak_bytes=12_000_000)
    assert measured.memory_peak_bytes == 12_000_000
    found = latency_of(measured, 90)
    assert found is not None
    assert (found.device, found.runtime) == (
        "Pixel 8, Tensor G3, Android 16",
        "LiteRT 2.3.0, XNNPACK",
    )
    assert (found.samples, found.context_switches_involuntary) == (300, 3)
    assert (found.governor, found.disturbances) == ("schedutil", ())


def test_null_stands_for_a_key_that_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    values = {**content(), "delegate": None, "accuracy": None}
    values["latency"] = [{**session(), "governor": None, "thermal_status": None}]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(values).encode())  # as PowerShell writes it
    assert read_measurements(path).delegate is None


def test_what_was_not_measured_is_none(tmp_path: Path) -> None:
    only_memory = read(tmp_path, latency=None, memory_peak_bytes=210_112)
    assert latency_of(only_memory, 90) is None
    assert answers_of(only_memory, FILES, DIGESTS, CLASSES) is None
    assert warnings_about(only_memory) == ()


def test_the_schema_explains_every_key() -> None:
    schema = Measurements.model_json_schema()
    own = {name: part for name, part in schema["$defs"].items() if not name.startswith("Litert")}
    keys = [
        (name, key, node)
        for name, part in {"": schema, **own}.items()
        for key, node in part["properties"].items()
    ]
    undescribed = {(name, key) for name, key, node in keys if "description" not in node}
    assert undescribed <= {("", "latency"), ("", "accuracy")}
    text = sys.modules[Measurements.__module__].__doc__ or ""
    assert [key for _, key, _ in keys if key not in text] == []


def test_who_measured_what_is_said_in_one_sentence(tmp_path: Path) -> None:
    assert origin(read(tmp_path)) == (
        "imported: measured by Ada Lovelace on Pixel 8, Tensor G3, Android 16 at "
        "2026-11-20T18:04:05+01:00 with LiteRT 2.3.0, XNNPACK, 1 thread"
    )


def test_texts_come_out_printable(tmp_path: Path) -> None:
    measured = read(tmp_path, by="Eve\x1b[2J\r\nPASS", device="x\u202ey", os="a\x00b")
    words = origin(measured)
    assert words.isprintable()
    assert "Eve [2J PASS" in words
    with pytest.raises(SpecError) as caught:
        read(tmp_path, **{"\x1b[31mkey\n": 1})
    assert str(caught.value).replace("\n", "").isprintable()
    with pytest.raises(IntegrityError) as impossible:
        answered(tmp_path, [{"file": "\x1b]0;x\x07.jpg", "answer": "\x1b[2Jcat"}])
    assert str(impossible.value).replace("\n", "").isprintable()


def without(key: str) -> Callable[[], dict[str, Any]]:
    return lambda: content(**{key: None})


def sessions(**facts: Any) -> Callable[[], dict[str, Any]]:
    return lambda: content(latency=[session(), session(2, **facts)])


def changed(**changes: Any) -> Callable[[], dict[str, Any]]:
    return lambda: content(**changes)


REFUSED = [
    (without("sha256"), "sha256: missing", "sha256sum"),
    (without("edgekit_measurements"), "edgekit_measurements: missing", "add it"),
    (changed(edgekit_measurements=2), "edgekit_measurements: received 2", "update edgekit"),
    (changed(sha256="AB" * 32), "sha256: received ABAB", "64 lower-case hex digits"),
    (changed(sha256="ab" * 31), "sha256: received abab", "sha256sum"),
    (changed(at="2026-11-20T18:04:05"), "at: received 2026", "time zone"),
    (changed(at="yesterday"), "at: received yesterday", "time zone"),
    (changed(at=1_763_600_000), "at: received 1763600000", "time zone"),
    (changed(by="\x1b\x00"), "by: received", "can be printed"),
    (changed(cores=0), "cores: received 0", "greater than or equal to 1"),
    (changed(threads="1"), "threads: received 1", "valid integer"),
    (changed(delgate="GPU"), "delgate: unknown key", "did you mean delegate?"),
    (changed(memory_peak_bytes=-1), "memory_peak_bytes: received -1", "0"),
    (without("latency"), "nothing that was measured", "latency, accuracy or memory_peak_bytes"),
    (changed(latency=[]), "latency: received a list of 0 items", "at least 1 item"),
    (changed(latency={}), "latency: received an object of 0 keys", "a JSON list"),
    (changed(latency=["x"]), "latency[0]: received x", "a JSON object"),
    (sessions(samples_ms=[]), "latency[1].samples_ms: received a list of 0", "at least 1 item"),
    (sessions(samples_ms=[1, -2.5]), "latency[1].samples_ms[1]: received -2.5", "equal to 0"),
    (sessions(samples_ms=[float("nan")]), "samples_ms[0]: received NaN", "finite"),
    (sessions(samples_ms=[float("inf")]), "samples_ms[0]: received Infinity", "finite"),
    (sessions(samples_ms=[1e300]), "samples_ms[0]: received 1e+300", "3600000"),
    (sessions(samples_ms=[10**400]), "samples_ms[0]: received a number beyond 64 bits", "number"),
    (sessions(samples_ms=[None]), "samples_ms[0]: received null", "number"),
    (sessions(samples_ms=[True]), "samples_ms[0]: received true", "number"),
    (sessions(samples_ms=["5.0"]), "samples_ms[0]: received 5.0", "number"),
    (sessions(samples_ms=[1.0] * 100_001), "samples_ms: received a list of 100001", "100000"),
    (sessions(sample_ms=[1]), "latency[1].sample_ms: unknown key", "did you mean samples_ms?"),
    (sessions(thermal_status="hot"), "thermal_status: received hot", "'severe'"),
    (sessions(calls_per_sample=0), "calls_per_sample: received 0", "greater than or equal to 1"),
    (sessions(calls_per_sample=1.5), "calls_per_sample: received 1.5", "valid integer"),
    (sessions(clock_step_ms=0), "clock_step_ms: received 0", "greater than 0"),
    (sessions(clock_step_ms=-1.0), "clock_step_ms: received -1", "greater than 0"),
    (sessions(fresh_process=1), "fresh_process: received 1", "boolean"),
    (changed(accuracy=[{"file": "a"}]), "accuracy[0].answer: missing", "null if"),
    (changed(accuracy=[{"answer": "cat"}]), "accuracy[0] with neither", "sha256 of its bytes"),
    (
        changed(accuracy=[{"sha256": "1", "answer": "cat"}]),
        "accuracy[0].sha256: received 1",
        "picture file",
    ),
    (changed(litert_benchmark=[litert_result()]), "latency and litert_benchmark", "one of them"),
    (
        changed(latency=None, litert_benchmark=[{"latency": {}}]),
        "litert_benchmark[0].num_threads: missing",
        "add the value",
    ),
]


@pytest.mark.parametrize(("values", "received", "help_"), REFUSED)
def test_what_is_not_the_format_is_refused(
    tmp_path: Path, values: Callable[[], dict[str, Any]], received: str, help_: str
) -> None:
    path = written(tmp_path, values())
    with pytest.raises(SpecError) as caught:
        read_measurements(path)
    assert received in caught.value.received
    assert str(path) in caught.value.received
    assert "\n" not in caught.value.received or "litert" in received  # one problem, said once
    assert help_ in f"{caught.value.expected} {caught.value.remedy}"


TEXTS = [
    (b"", "line 1, column 1"),
    (b"[1]", "no JSON object but list"),
    (b'{"a": 1,', "line 1, column 9"),
    (b'{"by": "a", "by": "b"}', "the key by twice"),
    (json.dumps({str(n): n for n in range(101)}).encode(), "an object of 101 keys"),
    (b"[" * 100_000, "nesting beyond all measure"),
    (b'{"a": ' + b"1" * 5000 + b"}", "beyond all measure"),
    (b"\x0a\x07\xff\xfe", "byte 2 is not UTF-8"),
    ('{"by": 1}'.encode("utf-16"), "is not UTF-8"),
]


@pytest.mark.parametrize(("raw", "received"), TEXTS)
def test_what_is_not_json_is_refused(tmp_path: Path, raw: bytes, received: str) -> None:
    path = tmp_path / "measured.json"
    path.write_bytes(raw)
    with pytest.raises(SpecError) as caught:
        read_measurements(path)
    assert received in caught.value.received


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)  # a hole: takes no space
    with pytest.raises(SpecError, match=f"more than {MAX_BYTES:,} bytes"):
        read_measurements(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        read_measurements(tmp_path / "absent.json")
    with pytest.raises(SpecError, match="not a regular file"):
        read_measurements(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match="not a regular file"):
        read_measurements(tmp_path / "pipe")


def test_many_problems_are_named_up_to_a_point(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read_measurements(written(tmp_path, {f"key{n}": 1 for n in range(50)}))
    assert "and 52 more problems" in caught.value.received
    assert len(caught.value.received.splitlines()) == 9


# The model and the time


def test_measurements_of_another_file_are_refused(tmp_path: Path) -> None:
    refuse_other_model(read(tmp_path), SHA256, 1)
    with pytest.raises(IntegrityError, match="measurements of a file with sha256 abab"):
        refuse_other_model(read(tmp_path), "cd" * 32, 1)


@pytest.mark.parametrize(
    ("result", "smallest", "largest"),
    [
        ({"litert_benchmark": [litert_result()]}, 4_272_947, 4_283_431),
        ({"benchmark_model": [benchmark_log()]}, 4_276_345, 4_276_355),
    ],
)
def test_a_digest_beside_another_tool_is_held_against_the_size(
    tmp_path: Path, result: dict[str, Any], smallest: int, largest: int
) -> None:
    measured = read(tmp_path, latency=None, **result)
    for fitting in (smallest, largest):
        refuse_other_model(measured, SHA256, fitting)
    for other in (smallest - 200, largest + 200):
        with pytest.raises(IntegrityError, match="run 1 says that its model has"):
            refuse_other_model(measured, SHA256, other)


def test_a_clock_that_is_wrong_is_told(tmp_path: Path) -> None:
    now = datetime(2026, 11, 20, 17, 4, 5, tzinfo=UTC)
    assert warnings_about(read(tmp_path), now) == ()
    assert warnings_about(read(tmp_path), now - timedelta(minutes=9)) == ()
    future = warnings_about(read(tmp_path), now - timedelta(minutes=11))
    assert "still to come" in future[0]
    for early in ("1970-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59"):
        assert "clock was not set" in warnings_about(read(tmp_path, at=early), now)[0]
    late = warnings_about(read(tmp_path, at="9999-12-31T23:59:59-23:59"), now)
    assert "still to come" in late[0]
    ahead = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert "still to come" in warnings_about(read(tmp_path, at=ahead))[0]


def test_an_unknown_load_is_told_and_is_no_disturbance(tmp_path: Path) -> None:
    measured = read(tmp_path, latency=[session(seed, load=None) for seed in range(5)])
    assert warnings_about(measured) == ("how busy the device was is not recorded",)
    assert judged(measured).status is Status.PASS


# Latency


def test_five_good_sessions_decide(tmp_path: Path) -> None:
    found = judged(read(tmp_path))
    assert found.status is Status.PASS
    assert "Pixel 8, Tensor G3, Android 16, LiteRT 2.3.0, XNNPACK, 1 threads" in found.detail


def test_the_twin_one_sample_more_over_the_budget_in_every_session_misses(tmp_path: Path) -> None:
    # 30 of 300 samples over the budget leave the 90th percentile within it, 31 do not.
    assert judged(read(tmp_path, latency=[session(s, 30) for s in range(5)])).status is Status.PASS
    assert judged(read(tmp_path, latency=[session(s, 31) for s in range(5)])).status is Status.MISS
    mixed = [session(s, 31 if s else 30) for s in range(5)]
    assert judged(read(tmp_path, latency=mixed)).status is Status.INCONCLUSIVE


@pytest.mark.parametrize("count", [1, 4])
def test_fewer_sessions_do_not_decide(tmp_path: Path, count: int) -> None:
    for over in (0, 300):
        measured = read(tmp_path, latency=[session(seed, over) for seed in range(count)])
        assert judged(measured).status is Status.INCONCLUSIVE


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"fresh_process": False}, "session 5: not a fresh process"),
        ({"battery_saver": True}, "session 5: battery saver"),
        ({"thermal_status": "light"}, "session 5: thermal status light"),
        ({"thermal_status": "serious"}, "session 5: thermal status serious"),
        ({"load": 9.5}, "session 5: load 9.5 on 9 cores"),
        (
            {"frequency_before_khz": 2_900_000, "frequency_after_khz": 1_400_000},
            "session 5: CPU frequency went from 2900 to 1400 MHz",
        ),
        ({"samples_ms": sorted(samples(5, over=0))[:28]}, "session 5: 28 samples, p90 needs 29"),
        ({"samples_ms": [4.0] * 150 + [5.0] * 150}, "session 5: slowed down from 4 to 5 ms"),
    ],
)
def test_what_disturbed_a_session_keeps_it_from_deciding(
    tmp_path: Path, facts: dict[str, Any], said: str
) -> None:
    measured = read(tmp_path, latency=[*map(session, range(4)), session(5, **facts)])
    found = judged(measured)
    assert found.status is Status.INCONCLUSIVE
    assert said in found.detail


@pytest.mark.parametrize("status", ["none", "nominal", "fair"])
def test_a_cool_device_is_not_disturbed(tmp_path: Path, status: str) -> None:
    cool = [session(seed, thermal_status=status, battery_saver=False) for seed in range(5)]
    assert judged(read(tmp_path, latency=cool)).status is Status.PASS


def test_time_under_emulation_never_decides(tmp_path: Path) -> None:
    for over in (0, 300):
        slow_or_fast = [session(seed, over) for seed in range(5)]
        measured = read(tmp_path, emulated=True, latency=slow_or_fast)
        assert judged(measured).status is Status.INCONCLUSIVE
    assert ", emulated at " in origin(measured)


def test_one_session_cannot_count_twice(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="same numbers twice"):
        read(tmp_path, latency=[session(1), session(2), session(1)])
    coarse = {"samples_ms": [5.0] * 300, "fresh_process": True}
    found = judged(read(tmp_path, latency=[coarse] * 5))
    assert "the timer is too coarse" in found.detail


def test_a_coarse_clock_is_said_and_batches_bridge_it(tmp_path: Path) -> None:
    def of(**facts: Any) -> Check:
        timed = [session(seed, 0, **facts) for seed in range(5)]
        return judged(read(tmp_path, latency=timed))

    coarse = of(clock_step_ms=0.1)
    assert coarse.status is Status.INCONCLUSIVE
    assert "session 1: the clock moves in steps of 0.1 ms, and a call took 5.0" in coarse.detail
    # The twin: as many calls at once as bridge that step.
    bridged = of(clock_step_ms=0.1, calls_per_sample=4)
    assert bridged.status is Status.PASS
    assert bridged.measured.startswith("p90 of means of 4 calls 5.0")


@pytest.mark.parametrize(
    ("facts", "received"),
    [
        ({"samples_ms": [0.0] * 40}, "latency[1] of 40 samples that are all 0 ms"),
        ({"samples_ms": [0] * 300}, "latency[1] of 300 samples that are all 0 ms"),
        (
            {"clock_step_ms": 11.0},
            "latency[1] with a sample of 5 ms by a clock that moves in steps of 11 ms",
        ),
        (
            {"clock_step_ms": 110.0, "calls_per_sample": 10},
            "latency[1] with a sample of 50 ms by a clock that moves in steps of 110 ms",
        ),
    ],
)
def test_times_that_no_clock_can_have_shown_are_refused(
    tmp_path: Path, facts: dict[str, Any], received: str
) -> None:
    with pytest.raises(IntegrityError) as caught:
        read(tmp_path, latency=[session(), {**session(2), **facts}])
    assert received in caught.value.received
    assert caught.value.remedy


def test_some_samples_of_zero_never_decide(tmp_path: Path) -> None:
    fast = [session(seed, 0) for seed in range(5)]
    fast[2]["samples_ms"][7] = 0.0
    found = judged(read(tmp_path, latency=fast))
    assert found.status is Status.INCONCLUSIVE
    assert "1 of 1500 samples are 0 ms: the timer is too coarse" in found.detail


# Accuracy


def test_answers_come_in_the_order_of_the_labels(tmp_path: Path) -> None:
    by_digest = [{"sha256": d, "answer": a} for d, a in zip(DIGESTS, ANSWERS, strict=True)]
    both = [{**f, **d} for f, d in zip(by_file(), by_digest, strict=True)]
    for answers in (by_file(), by_digest, both):
        assert answered(tmp_path, answers[::-1]) == [0, 1, 2, 2]
    measured = read(tmp_path, accuracy=by_file())
    unhashed = answers_of(measured, FILES, None, CLASSES)
    assert unhashed is not None
    assert unhashed.tolist() == [0, 1, 2, 2]


def test_answers_can_be_compared_with_a_reference_on_the_same_pictures(tmp_path: Path) -> None:
    top1 = answers_of(read(tmp_path, accuracy=by_file()), FILES, DIGESTS, CLASSES)
    assert top1 is not None
    drop = paired_drop(LABELS, top1, LABELS)
    assert (drop.images, drop.reference_only, drop.model_only) == (4, 1, 0)
    accuracy = accuracy_of(top1, LABELS, 3)
    assert (accuracy.images, accuracy.top1, accuracy.top5) == (4, 0.75, None)
    assert accuracy.confusion == ((1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 1, 0))


def test_an_answer_outside_the_classes_is_counted_as_such(tmp_path: Path) -> None:
    outside = [{**by_file()[0], "answer": None}, *by_file()[1:]]
    top1 = answers_of(read(tmp_path, accuracy=outside), FILES, DIGESTS, CLASSES)
    assert top1 is not None
    assert top1.tolist() == [-1, 1, 2, 2]
    assert accuracy_of(top1, LABELS, 3).confusion[0] == (0, 0, 0, 1)


def test_both_unicode_forms_of_a_name_are_one(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "Käfer")
    whole = unicodedata.normalize("NFC", "Käfer")
    measured = read(tmp_path, accuracy=[{"file": f"{apart}/1.jpg", "answer": apart}])
    top1 = answers_of(measured, [f"{whole}/1.jpg"], DIGESTS[:1], [whole])
    assert top1 is not None
    assert top1.tolist() == [0]


def test_copies_of_one_picture_share_its_answer(tmp_path: Path) -> None:
    twins = [*DIGESTS[:3], DIGESTS[2]]
    answers = [{"sha256": d, "answer": "dog"} for d in DIGESTS[:3]]
    for given in (answers, [*answers, answers[2]]):
        top1 = answers_of(read(tmp_path, accuracy=given), FILES, twins, CLASSES)
        assert top1 is not None
        assert top1.tolist() == [1, 1, 1, 1]
    with pytest.raises(IntegrityError, match=r"accuracy\[4\]: another answer to 333"):
        answers_of(read(tmp_path, accuracy=[*answers, *answers[2:] * 2]), FILES, twins, CLASSES)


def replaced(position: int, **change: Any) -> list[dict[str, Any]]:
    answers = by_file()
    answers[position] = {**answers[position], **change}
    return answers


WRONG_ANSWERS = [
    ([*by_file(), by_file()[0]], IntegrityError, "accuracy[4]: another answer to test/cat/1.jpg"),
    (
        [*by_file(), {"sha256": DIGESTS[0], "answer": "owl"}],
        IntegrityError,
        "accuracy[4]: another answer to 1111",
    ),
    (replaced(1, answer="Dog"), IntegrityError, "accuracy[1]: the answer Dog, which is no class"),
    (replaced(0, answer="hamster"), IntegrityError, "the answer hamster, which is no class"),
    (replaced(0, sha256=DIGESTS[1]), IntegrityError, "test/cat/1.jpg with sha256 2222"),
    (replaced(2, outputs=[0.1, 0.7, 0.2]), IntegrityError, "output 1 of 3 is the highest"),
    (replaced(2, outputs=[0.1, 0.7]), IntegrityError, "output 1 of 2 is the highest"),
    (by_file()[:3], SpecError, "no answer to 1 of 4 pictures: test/owl/1.jpg"),
    (
        [*by_file(), {"file": "train/owl/9.jpg", "answer": "owl"}],
        SpecError,
        "1 answers to pictures that are not here: train/owl/9.jpg",
    ),
    (
        [*by_file()[:3], {"sha256": "9" * 64, "answer": "owl"}],
        SpecError,
        "not here: 9999",
    ),
]


@pytest.mark.parametrize(("answers", "kind", "received"), WRONG_ANSWERS)
def test_answers_that_do_not_fit_the_pictures_are_refused(
    tmp_path: Path, answers: list[dict[str, Any]], kind: type[EdgekitError], received: str
) -> None:
    assert answered(tmp_path, by_file()) == [0, 1, 2, 2]
    with pytest.raises(kind) as caught:
        answered(tmp_path, answers)
    assert received in caught.value.received


def test_a_near_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="the nearest is dog"):
        answered(tmp_path, replaced(1, answer="dogs"))


def test_outputs_that_fit_the_answer_are_taken(tmp_path: Path) -> None:
    assert answered(tmp_path, replaced(2, outputs=[-3, 0.2, 0.2], score=0.2)) == [0, 1, 2, 2]
    # A model of another origin: output 0 is the background, and the order is its own.
    shifted = replaced(2, outputs=[0.1, 0.7, 0.0, 0.2])
    assert answered(tmp_path, shifted, output_index=(3, 2, 1)) == [0, 1, 2, 2]
    with pytest.raises(IntegrityError, match="output 1 of 4 is the highest"):
        answered(tmp_path, shifted, output_index=(1, 2, 3))


# What other tools wrote


def five_results(**times: float) -> list[dict[str, Any]]:
    return [litert_result(init_ms=9.0 + n / 10, **times) for n in range(5)]


def five_logs(**how: Any) -> list[str]:
    return [benchmark_log(init=5000 + n, **how) for n in range(5)]


@pytest.mark.parametrize(
    "one", [{"litert_benchmark": [litert_result()]}, {"benchmark_model": [benchmark_log()]}]
)
def test_one_summary_is_shown_and_never_decides(tmp_path: Path, one: dict[str, Any]) -> None:
    measured = read(tmp_path, latency=None, **one)
    found = latency_of(measured, 95)
    assert found is not None
    assert (found.p50_ms, found.p90_ms, found.p95_ms) == (5.04, 5.09, 5.09)
    assert (found.p99_ms, found.max_ms, found.samples) == (5.31, 5.31, 100)
    for percentile in (50, 90, 95, 99):
        for budget in (0.001, 1000.0):
            assert judged(measured, percentile, budget).status is Status.INCONCLUSIVE


@pytest.mark.parametrize(
    "five", [{"litert_benchmark": five_results()}, {"benchmark_model": five_logs()}]
)
def test_five_quiet_summaries_decide_about_what_they_hold(
    tmp_path: Path, five: dict[str, Any]
) -> None:
    measured = read(tmp_path, latency=None, **five)
    for percentile, edge in ((95, 5.09), (50, 5.04)):
        assert judged(measured, percentile, edge).status is Status.PASS
        assert judged(measured, percentile, edge - 0.001).status is Status.MISS
    for percentile in (90, 99):
        for budget in (0.001, 1000.0):
            found = judged(measured, percentile, budget)
            assert found.status is Status.INCONCLUSIVE
            assert f"without p{percentile}, for which an upper limit stands" in found.detail
            assert "mean 5.05" in found.detail


@pytest.mark.parametrize(
    ("times", "percentile", "said"),
    [
        ({"num_runs": 58}, 95, "run 1: 58 calls, p95 of a summary needs 59"),
        ({"num_runs": 19}, 50, "run 1: 19 calls, p50 of a summary needs 20"),
        ({"p95_ms": 5.51, "max_ms": 5.6}, 95, "whether it slowed down cannot be told"),
        (
            dict.fromkeys(("avg_ms", "min_ms", "max_ms", "median_ms", "p5_ms", "p95_ms"), 0.99),
            50,
            "rounded to 0.01 ms for a median of 0.99 ms",
        ),
    ],
)
def test_a_summary_that_does_not_prove_itself_quiet_does_not_decide(
    tmp_path: Path, times: dict[str, float], percentile: int, said: str
) -> None:
    quiet = read(tmp_path, latency=None, litert_benchmark=five_results())
    assert judged(quiet, percentile, 1000).status is Status.PASS
    doubtful = read(tmp_path, latency=None, litert_benchmark=five_results(**times))
    found = judged(doubtful, percentile, 1000)
    assert found.status is Status.INCONCLUSIVE
    assert said in found.detail


LOGS = [
    # Before percentiles were printed.
    ("count=100 first=5100 curr=5040 min=4990 max=5310 avg=5050.5 std=40", "5050.5", 5.31, 100),
    # As std::ostream prints large numbers.
    (
        "count=50 first=1200000 curr=1300000 min=1200000 max=1300000 avg=1.23457e+06 std=9 "
        "p5=1200000 median=1230000 p95=1290000",
        "1.23457e+06",
        1290.0,
        50,
    ),
    ("count=50 curr=5050(all same) p5=5050 median=5050 p95=5050", "5050", 5.05, 50),
    ("count=1 curr=5050 p5=5050 median=5050 p95=5050", "5050", 5.05, 1),
    # Only the lines that adb logcat | grep left: a mean.
    ("", "5050.5", 5.0505, 0),
    # Half a line: the percentiles that are there cannot be doubted, so they do not count.
    (
        "count=100 first=5100 curr=5040 min=4990 max=5310 avg=5050.5 median=5000",
        "5050.5",
        5.31,
        100,
    ),
]


@pytest.mark.parametrize(("counts", "mean", "p95_ms", "count"), LOGS)
@pytest.mark.parametrize("prefix", ["", "INFO: ", "07-14 13:14:52.097 22838 22838 I tflite  : "])
def test_every_form_of_the_text_is_read(
    tmp_path: Path, counts: str, mean: str, p95_ms: float, count: int, prefix: str
) -> None:
    text = benchmark_log(counts, mean, prefix=prefix)
    measured = read(tmp_path, latency=None, benchmark_model=[text])
    found = latency_of(measured, 95)
    assert found is not None
    assert found.session_percentile_ms == (p95_ms,)
    assert judged(measured, 50).status is Status.INCONCLUSIVE
    assert found.samples == count


def test_a_mean_never_decides(tmp_path: Path) -> None:
    logs = five_logs(counts="")
    measured = read(tmp_path, latency=None, benchmark_model=logs)
    for budget in (0.001, 1000.0):
        found = judged(measured, 50, budget)
        assert found.status is Status.INCONCLUSIVE
        assert "for which the mean stands" in found.detail


IMPOSSIBLE = [
    ({"litert_benchmark": [litert_result()] * 2}, "runs with the same numbers twice"),
    ({"benchmark_model": [benchmark_log()] * 2}, "runs with the same numbers twice"),
    ({"litert_benchmark": [litert_result(p5_ms=5.06)]}, "run 1 whose shortest, mean"),
    ({"litert_benchmark": [litert_result(avg_ms=5.33)]}, "run 1 whose shortest, mean"),
    ({"litert_benchmark": [litert_result()], "threads": 2}, "run 1 with 1 threads"),
    ({"benchmark_model": [benchmark_log()], "threads": 4}, "run 1 with 1 threads"),
    ({"benchmark_model": ["count=5"]}, 'benchmark_model[0]: 0 lines "Inference timings'),
    ({"benchmark_model": [benchmark_log() * 2]}, 'benchmark_model[0]: 2 lines "Inference timings'),
    ({"benchmark_model": [benchmark_log(mean="-nan")]}, "0 lines"),
]


@pytest.mark.parametrize(("result", "received"), IMPOSSIBLE)
def test_a_summary_that_cannot_be_true_is_refused(
    tmp_path: Path, result: dict[str, Any], received: str
) -> None:
    with pytest.raises(IntegrityError) as caught:
        read(tmp_path, latency=None, **result)
    assert received in caught.value.received


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (json.dumps(litert_result()), "litert_benchmark"),
        (benchmark_log(), "benchmark_model"),
    ],
)
def test_a_result_without_a_digest_is_refused_with_a_way_out(
    tmp_path: Path, text: str, key: str
) -> None:
    path = tmp_path / "result"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_measurements(path)
    assert "neither the sha256 of the model nor who measured it when" in caught.value.received
    assert '"sha256": ...' in caught.value.remedy
    assert f'"{key}": [...]' in caught.value.remedy


def test_a_real_run_of_litert_benchmark_is_imported(tmp_path: Path) -> None:
    model, result = mean_tflite(tmp_path / "mean.tflite", "float32"), tmp_path / "result.json"
    command = [
        Path(sys.executable).with_name("litert-benchmark"),
        *("--model", model, "--num_runs", "60", "--result_json", result),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with pytest.raises(SpecError, match="litert-benchmark"):
        read_measurements(result)
    real = json.loads(result.read_text())
    measured = read(tmp_path, latency=None, litert_benchmark=[real], sha256=digest(model))
    refuse_other_model(measured, digest(model), model.stat().st_size)
    found = latency_of(measured, 95)
    assert found is not None
    assert found.samples == 60
    assert found.session_percentile_ms == (real["latency"]["p95_ms"],)
    verdict = judged(measured, 95, 1000)
    assert verdict.status is Status.INCONCLUSIVE
    assert "1 sessions cannot decide; 5 can" in verdict.detail
