"""The validate stage on real, tiny files: which measurements decide about which target."""

import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import SIZE, colour_images, digest, mean_tflite
from tiny_network import Exported

from edgekit.devices.local import this_machine
from edgekit.devices.measure import Pace, Timing
from edgekit.records import (
    Artifact,
    ExportRecord,
    IoType,
    Latency,
    LatencySession,
    Parity,
    Preprocess,
    Status,
    ValidationRecord,
    Variant,
    Verdict,
)
from edgekit.report.sentences import parity_sentences
from edgekit.runtimes.inspect import inspect_model
from edgekit.target import Target
from edgekit.validate.judging import (
    checks_of,
    float_of,
    judge,
    slower_than_float,
    unasked_estimates,
)
from edgekit.validate.latency import summarize
from edgekit.validate.on_device import Measured, Measuring
from edgekit.validate.verdict import exit_code

# Keeps a runner busy for over half a second, after which it tells how far it is.
IMAGES = 300_000


def target_of(name: str, transport: str, artifact: tuple[str, str], **budget: float) -> Target:
    variant, io = artifact
    return Target.model_validate(
        {
            "name": name,
            "description": "For a test.",
            "device": {"transport": transport, "description": "a device"},
            "runtime": {"name": "litert", "threads": 2},
            "artifact": {"format": "tflite", "variant": variant, "io": io},
            "budget": budget,
        }
    )


REFERENCE = target_of("reference", "local", ("float32", "float32"), accuracy_drop_points=2.0)
ABSENT = target_of("absent", "none", ("int8", "int8"), size_bytes=1_000_000)


def artifact_of(path: Path, variant: Variant, io: IoType, ships: bool = True) -> Artifact:
    facts = inspect_model(path)
    return Artifact(
        format="tflite",
        variant=variant,
        io=io,
        path=path.name,
        sha256=digest(path),
        size_bytes=path.stat().st_size,
        inputs=facts.inputs,
        outputs=facts.outputs,
        operators=facts.operators,
        float_tensors=facts.float_tensors,
        ships=ships,
    )


Progress = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[ValidationRecord, Progress]:
    folder = tmp_path_factory.mktemp("judging")
    labels = 2 - colour_images(folder / "images.npy", IMAGES)  # outputs are red, green, blue
    images = np.load(folder / "images.npy", mmap_mode="r+")
    # A bright pixel in another channel: it hardly moves the mean, but it is the brightest.
    images[np.arange(0, IMAGES, 3), 0, 0, (labels[::3] + 1) % 3] = 255
    images.flush()
    exported = ExportRecord(
        preprocess=Preprocess(height_px=SIZE, width_px=SIZE),
        class_names=("red", "green", "blue"),
        artifacts=(
            artifact_of(mean_tflite(folder / "f.tflite", "float32"), "float32", "float32"),
            artifact_of(
                mean_tflite(folder / "lost.tflite", "int8", reduction="REDUCE_MAX"),
                "int8",
                "int8",
                False,
            ),
            artifact_of(mean_tflite(folder / "i.tflite", "int8"), "int8", "int8"),
        ),
        parity=(),
    )
    told: Progress = []
    record = judge(
        exported,
        folder,
        folder / "images.npy",
        labels.astype(np.int32),
        (REFERENCE, ABSENT),
        Measuring(1, Pace(0.0, 5, 0.0), 60.0),
        names=[f"{index}.png" for index in range(IMAGES)],
        answers=folder / "answers.csv",
        say=lambda line: None,
        progress=lambda *what: told.append(what),
    )
    return record, told


def test_the_reference_itself_can_be_asked_for(judged: tuple[ValidationRecord, Progress]) -> None:
    verdict = judged[0].verdicts[0]
    assert [(c.name, c.status) for c in verdict.checks] == [("accuracy_drop", Status.PASS)]
    assert judged[0].evaluations[0].drop is None


def test_every_thread_count_is_an_evaluation_and_the_deciding_one_is_named(
    judged: tuple[ValidationRecord, Progress],
) -> None:
    evaluations = judged[0].evaluations
    assert [e.threads for e in evaluations] == [1, 1, 1, 2]
    assert evaluations[3].artifact_sha256 == evaluations[0].artifact_sha256
    assert evaluations[3].latency is not None
    assert evaluations[3].latency.threads == 2
    assert judged[0].decided_by == (3, None)


def test_the_candidate_that_lost_is_compared_but_neither_timed_nor_given_to_a_target(
    judged: tuple[ValidationRecord, Progress],
) -> None:
    record, _ = judged
    _, lost, ships, _ = record.evaluations
    assert lost.latency is None
    assert ships.latency is not None
    assert record.verdicts[1].artifact_path == "i.tflite"
    against = record.int8_against_other
    assert against is not None
    assert lost.drop is not None
    assert ships.drop is not None
    lead = lost.drop.drop_points - ships.drop.drop_points
    assert against.drop_points == pytest.approx(-lead)
    # The brightest pixel of a channel is a worse guess than its mean.
    assert lead > 10
    assert lost.sqnr_db is not None
    assert ships.sqnr_db is not None
    assert lost.sqnr_db < ships.sqnr_db
    assert record.evaluations[0].sqnr_db is None


def test_what_was_measured_before_counts(tmp_path: Path) -> None:
    labels = 2 - colour_images(tmp_path / "images.npy", 12)
    model = artifact_of(mean_tflite(tmp_path / "f.tflite", "float32"), "float32", "float32")
    exported = ExportRecord(
        preprocess=Preprocess(height_px=SIZE, width_px=SIZE),
        class_names=("red", "green", "blue"),
        artifacts=(model,),
        parity=(),
    )

    def judged(earlier: tuple[Verdict, ...], artifact: str = model.sha256) -> Verdict:
        record = judge(
            exported,
            tmp_path,
            tmp_path / "images.npy",
            labels.astype(np.int32),
            (target_of("here", "local", ("float32", "float32"), latency_ms=1000.0),),
            Measuring(2, Pace(0.0, 5, 0.0), 60.0),
            names=[f"{index}.png" for index in range(12)],
            answers=tmp_path / "answers.csv",
            say=lambda line: None,
            progress=lambda *what: None,
            earlier=[v.model_copy(update={"artifact_sha256": artifact}) for v in earlier],
        )
        return record.verdicts[0]

    first = judged(())
    assert len(first.latency_measurements) == 1
    second = judged((first,))
    assert second.latency_measurements[:1] == first.latency_measurements
    assert len(second.latency_measurements) == 2
    assert "measured 2 times" in second.checks[0].detail
    # The twin: what was measured of another file does not count.
    assert len(judged((first,), "0" * 64).latency_measurements) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("dead", "status"), [(True, "INCONCLUSIVE"), (False, "PASS")])
def test_a_dead_float_model_and_its_dead_int8_file_do_not_pass(
    tmp_path: Path, dead: bool, status: str
) -> None:
    """The drop between two files that answer green to everything is 0."""
    colours = colour_images(tmp_path / "images.npy", IMAGES)
    labels = (2 - colours).astype(np.int32)
    if dead:
        images = np.load(tmp_path / "images.npy")
        np.save(tmp_path / "images.npy", np.repeat(images[1:2], IMAGES, axis=0))
    exported = ExportRecord(
        preprocess=Preprocess(height_px=SIZE, width_px=SIZE),
        class_names=("red", "green", "blue"),
        artifacts=(
            artifact_of(mean_tflite(tmp_path / "f.tflite", "float32"), "float32", "float32"),
            artifact_of(mean_tflite(tmp_path / "i.tflite", "int8"), "int8", "int8"),
        ),
        parity=(),
    )
    record = judge(
        exported,
        tmp_path,
        tmp_path / "images.npy",
        labels,
        (target_of("here", "local", ("int8", "int8"), accuracy_drop_points=5.0),),
        Measuring(1, Pace(0.0, 5, 0.0), 60.0),
        names=[f"{index}.png" for index in range(IMAGES)],
        answers=tmp_path / "answers.csv",
        say=lambda line: None,
        progress=lambda *what: None,
    )
    (verdict,) = record.verdicts
    assert verdict.status == status
    assert verdict.checks[0].status == Status.PASS  # nothing is lost
    silent = [check.detail for check in verdict.checks if check.name == "informative"]
    assert len(silent) == dead
    assert not dead or "answers are 'green' whatever the picture" in silent[0]


def test_memory_is_the_most_of_all_measurements() -> None:
    target = target_of("here", "local", ("int8", "int8"), memory_bytes=100)
    session = timing_of(2.0).sessions[0]
    little, much = (
        summarize([session.model_copy(update={"memory_bytes": b})], 90, "d", "r") for b in (90, 110)
    )

    def status(earlier: Latency) -> Status:
        measured = Measured(latency=little, memory_bytes=90, earlier=(earlier,))
        return checks_of(target, 1, (), measured)[0].status

    assert status(much) == Status.MISS
    assert status(little) == Status.PASS


def timing_of(*medians_ms: float) -> Timing:
    """Returns one session around each median."""
    sessions = tuple(
        LatencySession(
            samples_ms=(0.995 * median, median, 1.005 * median),
            threads=1,
            warmup_runs=5,
            context_switches_involuntary=0,
            load_average=0.0,
            governor=None,
            frequency_before_khz=None,
            frequency_after_khz=None,
        )
        for median in medians_ms
    )
    return Timing(sessions, "litert")


def test_int8_that_is_slower_in_every_session_is_said() -> None:
    said = slower_than_float(timing_of(3.0, 2.4, 2.6), timing_of(2.0, 2.2, 1.9))
    assert said is not None
    assert "2.60 ms against 2.00 ms a picture (1.30 times)" in said
    assert "disturbed: session 1: 3 samples, p50 needs 5" in said
    noisy = replace(timing_of(*[2.0] * 3), disturbances=("battery saver is on",))
    assert "float32: disturbed: battery saver is on" in (
        slower_than_float(timing_of(*[3.0] * 3), noisy) or ""
    )
    # Twins: one session as fast as the slowest of the float file, or faster throughout.
    assert slower_than_float(timing_of(3.0, 2.2, 2.6), timing_of(2.0, 2.2, 1.9)) is None
    assert slower_than_float(timing_of(2.0, 2.2, 1.9), timing_of(3.0, 2.4, 2.6)) is None


def test_int8_is_timed_against_the_float32_file_of_its_runtime(exported: Exported) -> None:
    found = {a.path: float_of(a, exported.record).path for a in exported.record.artifacts}
    assert found["model_int8_int8_io.tflite"] == "model_float32.tflite"
    assert found["model_int8.onnx"] == found["model_int8.ort"] == "model_float32.onnx"
    assert found["model_float16.tflite"] == "model_float16.tflite"


def test_a_device_out_of_reach_is_unmeasured_even_if_only_size_is_asked(
    judged: tuple[ValidationRecord, Progress],
) -> None:
    verdict = judged[0].verdicts[1]
    assert verdict.status == Status.UNMEASURED
    assert [(c.name, c.status) for c in verdict.checks] == [
        ("size", Status.PASS),
        ("device", Status.UNMEASURED),
    ]
    assert "cannot reach a device" in verdict.checks[1].detail


def test_no_second_reason_where_one_says_that_nothing_was_measured() -> None:
    asks_more = target_of("absent", "none", ("int8", "int8"), size_bytes=9, latency_ms=1.0)
    names = [c.name for c in checks_of(asks_more, 1, (), Measured())]
    assert names == ["latency", "size"]


def test_progress_is_told_within_each_file(judged: tuple[ValidationRecord, Progress]) -> None:
    for name in ("f.tflite", "i.tflite"):
        shares = [done / total for what, done, total in judged[1] if what == f"accuracy of {name}"]
        assert any(0 < share < 1 for share in shares)


def test_a_machine_is_told_by_its_cores_and_not_by_its_name() -> None:
    machine = this_machine()
    assert f"{os.cpu_count()} cores" in machine
    assert machine.endswith(f"{platform.system()} {platform.release()}")


def test_an_estimate_stands_beside_its_budget_or_in_the_notes() -> None:
    known = Measured(estimates=(("memory", "90,000 bytes"), ("accuracy", "-2.4 points")))
    asked = target_of("asked", "none", ("int8", "int8"), memory_bytes=100_000)
    checks = checks_of(asked, 1, (), known)
    assert [check.measured for check in checks] == ["estimate: 90,000 bytes"]
    assert unasked_estimates(known, checks) == ("estimate of accuracy: -2.4 points",)
    # The twin: nobody asked for anything.
    assert len(unasked_estimates(known, ())) == 2


@pytest.mark.parametrize(
    ("found", "status", "code"),
    [
        (Status.MISS, Status.MISS, 4),
        (Status.INCONCLUSIVE, Status.INCONCLUSIVE, 5),
        (Status.UNMEASURED, Status.PASS, 0),
        (Status.PASS, Status.PASS, 0),
    ],
)
def test_a_target_is_told_where_its_file_departs_from_its_source(
    tmp_path: Path, found: Status, status: Status, code: int
) -> None:
    labels = 2 - colour_images(tmp_path / "images.npy", 30)
    artifacts = (
        artifact_of(mean_tflite(tmp_path / "f.tflite", "float32"), "float32", "float32"),
        artifact_of(mean_tflite(tmp_path / "i.tflite", "int8"), "int8", "int8"),
    )
    parity = Parity(
        artifact_sha256=artifacts[1].sha256,
        source="simulated int8",
        images=30,
        same_answers=12,
        sqnr_db=3.04,
        explained_db=20.0,
        status=found,
        reason="more answers differ than rounding explains (exact p 1.0e-04)",
    )
    exported = ExportRecord(
        preprocess=Preprocess(height_px=SIZE, width_px=SIZE),
        class_names=("red", "green", "blue"),
        artifacts=artifacts,
        parity=(parity,),
    )
    ships = target_of("ships", "local", ("int8", "int8"), size_bytes=1_000_000)
    other = target_of("other", "local", ("float32", "float32"), size_bytes=1_000_000)
    record = judge(
        exported, tmp_path, tmp_path / "images.npy", labels.astype(np.int32), (ships, other),
        Measuring(1, Pace(0.0, 5, 0.0), 60.0), names=[""] * 30,
        answers=tmp_path / "answers.csv", say=lambda _line: None, progress=lambda *_what: None,
    )  # fmt: skip
    assert [verdict.status for verdict in record.verdicts] == [status, Status.PASS]
    assert exit_code(verdict.status for verdict in record.verdicts) == code
    told = [check for check in record.verdicts[0].checks if check.name == "parity"]
    if status == Status.PASS:
        assert told == []
        assert parity_sentences(exported) == ()
        return
    assert told[0].measured == "12 of 30 answers are those of simulated int8, SQNR 3.0 dB"
    assert told[0].budget == "what rounding explains: SQNR 20.0 dB"
    assert parity_sentences(exported) == (
        "i.tflite departs from the simulated int8: 12 of 30 answers are the same; more answers "
        "differ than rounding explains (exact p 1.0e-04)",
    )
