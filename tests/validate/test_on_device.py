"""A target's file on the target's device: agreement with the host, causes, protocols, budgets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_models import CLASSES, SIZE, colour_images, digest, mean_tflite

from edgekit.devices import local, measure
from edgekit.devices.exchange import ReportProgress
from edgekit.devices.place import Machine
from edgekit.devices.protocol import Done, Subject
from edgekit.records import DeviceEvaluation, Preprocess, Status
from edgekit.target import Target
from edgekit.validate.accuracy import top1_classes
from edgekit.validate.judging import checks_of
from edgekit.validate.on_device import (
    HostAnswers,
    Measured,
    Measuring,
    Pictures,
    measure_on,
    measured_of,
    measuring_of,
)

IMAGES = 60
QUICK = Measuring(5, measure.Pace(0.0, 5, 0.0), 60.0)
INDEX = np.arange(3)[::-1]  # outputs are red, green, blue; classes blue, green, red


def target(**changed: object) -> Target:
    tables: dict[str, object] = {
        "name": "board",
        "description": "d",
        "device": {"transport": "local", "description": "a board"},
        "runtime": {"name": "litert", "delegate": "none"},
        "artifact": {"format": "tflite", "variant": "int8", "io": "uint8"},
        "budget": {"accuracy_drop_points": 5.0},
    }
    return Target.model_validate({**tables, **changed})


class Board(measure.RunnerDevice):
    """This machine, said to be another; answers can be changed on their way."""

    real = True
    change: Callable[[npt.NDArray[np.generic]], None] = staticmethod(lambda raw: None)

    @property
    def machine(self) -> Machine:
        return Machine("a board", 2, self.real)

    def run(
        self, task: measure.Task, progress: ReportProgress | None
    ) -> tuple[Done, npt.NDArray[np.generic]]:
        done, array = super().run(task, progress)
        if task.mode == "accuracy":
            self.change(array)
        return done, array


def evaluate(
    tmp_path: Path, kind: type[Board], asked: Target | None = None, dtype: str = "uint8"
) -> tuple[DeviceEvaluation, list[measure.Timing]]:
    labels = colour_images(tmp_path / "i.npy", IMAGES)
    model = mean_tflite(tmp_path / "m.tflite", dtype)
    subject = Subject(
        model=model,
        sha256=digest(model),
        runtime="litert",
        images=tmp_path / "i.npy",
        preprocess=Preprocess(height_px=SIZE, width_px=SIZE),
    )
    here = measure.answer(subject)
    top1 = top1_classes(measure.scores(here.raw, here.output), 3, INDEX)
    pictures = Pictures(labels, [f"{n}.png" for n in range(IMAGES)], len(CLASSES), INDEX)
    host = HostAnswers(here.raw, top1, top1, here.runtime)
    with local.reach() as place:
        return measure_on(
            kind(place), asked or target(), [subject], host, pictures, QUICK, lambda *_: None
        )


def test_the_same_file_answers_the_same(tmp_path: Path) -> None:
    found, timings = evaluate(tmp_path, Board)
    same = found.against_host
    assert (same.top1_agreement, same.equal, same.cause, same.differing) == (1.0, 1.0, "", ())
    assert found.device == "a board"
    assert len(timings[0].sessions) == 5
    assert found.latency is not None
    assert found.latency.device == "a board"
    assert found.latency.memory_bytes


class RoundsOtherwise(Board):
    @staticmethod
    def change(raw: npt.NDArray[np.generic]) -> None:
        raw[::2] += 1


class AnswersOtherwise(Board):
    @staticmethod
    def change(raw: npt.NDArray[np.generic]) -> None:
        raw[:30] = raw[:30, ::-1]


def test_a_difference_names_the_pictures_and_the_likely_cause(tmp_path: Path) -> None:
    rounding = evaluate(tmp_path, RoundsOtherwise)[0].against_host
    assert (rounding.equal, rounding.largest_steps, rounding.differing) == (0.5, 1.0, ())
    assert "round otherwise" in rounding.cause
    found = evaluate(tmp_path, AnswersOtherwise)[0]
    other = found.against_host
    # Green stays in the middle; the other two thirds of the 30 pictures are turned round.
    assert (other.differing_images, len(other.differing)) == (20, 20)
    assert other.differing[:3] == ("0.png", "2.png", "3.png")
    assert "do not trust this file there" in other.cause
    assert found.drop is not None
    assert found.drop.drop_points == pytest.approx(100 * 20 / IMAGES)


class AnswersNonsense(Board):
    @staticmethod
    def change(raw: npt.NDArray[np.generic]) -> None:
        raw[3] = np.nan


def test_scores_that_are_not_finite_are_told(tmp_path: Path) -> None:
    asked = target(artifact={"format": "tflite", "variant": "float32", "io": "float32"})
    found = evaluate(tmp_path, AnswersNonsense, asked, "float32")[0].against_host
    assert found is not None
    assert (found.differing, found.largest_share) == (("3.png",), None)
    assert "not finite" in found.cause


class Emulated(Board):
    real = False


def test_time_under_emulation_never_counts(tmp_path: Path) -> None:
    asked = target(budget={"accuracy_drop_points": 5.0, "latency_ms": 1e6, "memory_bytes": 10**9})
    found, timings = evaluate(tmp_path, Emulated, asked)
    assert (found.latency, timings) == (None, [])
    checks = {c.name: c for c in checks_of(asked, 1, (), measured_of(found))}
    assert checks["accuracy_drop"].status == Status.PASS
    assert checks["latency"].status == checks["memory"].status == Status.UNMEASURED
    assert "no time that counts" in checks["latency"].detail
    # The twin: the same on a real one.
    found, _ = evaluate(tmp_path, Board, asked)
    checks = {c.name: c for c in checks_of(asked, 1, (), measured_of(found))}
    assert checks["memory"].status == Status.PASS
    assert checks["latency"].status in (Status.PASS, Status.INCONCLUSIVE)


def test_a_target_brings_its_own_protocol() -> None:
    assert measuring_of(target(), QUICK) is QUICK
    mobile = measuring_of(target(protocol="mlperf-mobile"), QUICK)
    assert (mobile.sessions, mobile.pace.min_queries, mobile.pace.min_seconds) == (5, 1024, 60.0)
    assert mobile.timeout_seconds > 1024
    assert measuring_of(target(protocol="quick"), QUICK).sessions == 3


def test_an_estimate_is_shown_and_never_passes() -> None:
    asked = target(
        device={"transport": "none", "description": "a board"},
        runtime={"name": "tflite-micro"},
        artifact={"format": "tflite", "variant": "int8", "io": "int8"},
        budget={"memory_bytes": 100_000, "flash_bytes": 100},
    )
    known = Measured(estimates=(("memory", "90,000 bytes by tflite-micro"),))
    memory, flash = checks_of(asked, 1, (), known)
    assert (memory.status, flash.status) == (Status.UNMEASURED, Status.UNMEASURED)
    assert memory.measured == "estimate: 90,000 bytes by tflite-micro"
    assert flash.measured == "none"


def test_operators_that_the_device_lacks_are_a_miss() -> None:
    artifact = {"format": "tflite", "variant": "int8", "io": "uint8", "operators": ["CONV_2D"]}
    asked = target(artifact=artifact)
    check = checks_of(asked, 1, ("CONV_2D", "SOFTMAX"), Measured())[-1]
    assert (check.name, check.status, check.measured) == ("operators", Status.MISS, "SOFTMAX")
    check = checks_of(asked, 1, ("CONV_2D",), Measured())[-1]
    assert (check.name, check.status) == ("operators", Status.PASS)


def test_what_is_too_good_to_be_true_is_flagged(tmp_path: Path) -> None:
    budget = {"accuracy_drop_points": 5.0, "latency_ms": 1e6}
    expect = {"latency_min_ms": 1e5, "accuracy_max_percent": 99.0}
    found, _ = evaluate(tmp_path, Board)
    flagged = checks_of(target(budget=budget, expect=expect), 1, (), measured_of(found))
    by_name = {c.name: c.status for c in flagged}
    assert by_name["believable_latency"] == Status.INCONCLUSIVE
    assert by_name["believable_accuracy"] == Status.INCONCLUSIVE
    expect = {"latency_min_ms": 1e-9}
    calm = checks_of(target(budget=budget, expect=expect), 1, (), measured_of(found))
    assert {c.name: c.status for c in calm}["believable_latency"] == Status.PASS
