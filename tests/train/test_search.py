"""Comparing cuts, calming steps that are too large, what is recorded, and room for activations."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_network import (
    ALPHA,
    CLASSES,
    SIZE_PX,
    Trained,
    Untyped,
    arrays_in,
    but,
    changed,
    coloured,
    keeping,
    told,
    tune,
)

from edgekit.errors import TrainingError
from edgekit.network.graph import mobilenet_v2, weighted
from edgekit.recipe import AugmentSpec
from edgekit.records import PhaseRecord
from edgekit.train.cuts import block_of

tf = pytest.importorskip("tensorflow")

from edgekit.fitting.pictures import Pictures  # noqa: E402 - after the check for TensorFlow
from edgekit.network import keras_model  # noqa: E402
from edgekit.train.unfreezing import TRIAL_PICTURES, train  # noqa: E402

FineTune = Callable[[Untyped], Trained]
SHORT = {
    "unfreeze_from": None,
    "head_epochs": 1,
    "trial_epochs": 1,
    "epochs": 1,
    "learning_rate": 2e-3,
}
COMPARED = {**SHORT, "strategy": "progressive", "unfreeze_until": "block_16_expand", "patience": 9}


@pytest.fixture(scope="module")
def compared(fine_tune: FineTune, train_plan: Untyped) -> Trained:
    """Returns a comparison up to block_16_expand in which Conv_1 is the lowest by far."""
    return fine_tune(but(train_plan, **COMPARED))


@pytest.fixture(scope="module")
def crossed(fine_tune: FineTune, train_plan: Untyped) -> Trained:
    """Returns a comparison of the head and Conv_1 by cross-validation."""
    plan = but(train_plan, **SHORT, strategy="auto", unfreeze_until="Conv_1")
    return fine_tune(plan)


@pytest.fixture(scope="module")
def ruined(fine_tune: FineTune, train_plan: Untyped) -> Trained:
    """Returns a fixed cut whose training is ruined by its steps, however calm."""
    return fine_tune(but(train_plan, learning_rate=0.5))


@pytest.fixture(scope="module")
def fallen(fine_tune: FineTune, train_plan: Untyped) -> Trained:
    """Returns a run whose trial from Conv_1 is better than the head, and whose final is not.

    Its trials are so much longer that they recover from steps that are far too large.
    """
    plan = but(
        train_plan,
        **{**COMPARED, "unfreeze_until": "Conv_1", "trial_epochs": 16, "learning_rate": 0.4},
    )
    return fine_tune(plan)


@pytest.fixture(scope="module")
def whole(fine_tune: FineTune, train_plan: Untyped) -> Trained:
    """Returns the whole network unfrozen, with no activation left to store."""
    return fine_tune(but(train_plan, unfreeze_from="all", head_epochs=1, epochs=1))


def outline(phases: Sequence[PhaseRecord]) -> list[tuple[str, str]]:
    return [(phase.purpose, phase.cut) for phase in phases]


def lowest(phase: PhaseRecord) -> float:
    """Returns the loss of the epoch that a phase left."""
    return phase.epochs[phase.best_epoch].validation_loss


def test_the_head_is_trained_then_each_cut_tried_and_the_best_trained(compared: Trained) -> None:
    record = compared.record
    assert outline(record.phases) == [
        ("head", "head"), ("trial", "Conv_1"), ("trial", "block_16_expand"), ("final", "Conv_1"),
    ]  # fmt: skip
    assert {phase.fold for phase in record.phases} == {None}
    assert [phase.learning_rate for phase in record.phases] == [1e-2, 2e-3, 2e-3, 2e-3]
    assert {phase.training_pictures for phase in record.phases} == {48}
    assert record.strategy.startswith("progressive: ")
    wrong = 24 - round(record.phases[0].epochs[0].validation_accuracy * 24)
    assert f"the head alone is wrong on {wrong} of 24 validation pictures" in record.strategy
    assert f"strategy {record.strategy}" in compared.said
    assert record.stopped_because == "block_16_expand was reached (train.unfreeze_until)"
    assert record.warnings == ()


def test_the_final_training_ships(compared: Trained) -> None:
    record = compared.record
    assert (record.cut, record.shipped_phase) == ("Conv_1", 3)
    assert record.unfrozen_layers == ("Conv_1", "logits")
    assert changed(compared) == {"Conv_1", "Conv_1_bn", "logits"}
    assert record.validation_loss == lowest(record.phases[3]) < lowest(record.phases[0])
    assert record.chosen_because == "Conv_1 has the lowest validation loss in its trial"
    assert f"cut: {record.chosen_because}" in compared.said
    assert compared.said[-1] == f"ships: {record.chosen_because}"


def test_trials_and_final_training_start_from_the_weights_of_the_head(compared: Trained) -> None:
    head, first, second, final = compared.record.phases
    for phase in (first, second, final):
        # The same weights; only the activations are rounded to float16 at another place.
        assert phase.start_loss == pytest.approx(lowest(head), rel=1e-3)
    # Twin: those that a trial ended with are others.
    assert second.start_loss != pytest.approx(lowest(first), rel=1e-3)
    assert final.start_loss != pytest.approx(lowest(second), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compared", "crossed", "fallen", "trained", "ruined", "whole"])
def test_the_curve_has_a_point_for_each_trial(name: str, request: pytest.FixtureRequest) -> None:
    record = request.getfixturevalue(name).record
    trials = [phase for phase in record.phases if phase.purpose == "trial"]
    cuts = dict.fromkeys(phase.cut for phase in trials)
    assert [score.cut for score in record.curve] == list({"head": None, **cuts} if trials else {})
    best = min((score.validation_loss for score in record.curve), default=0)
    for score in record.curve:
        judged = [phase for phase in trials if phase.cut == score.cut] or [record.phases[0]]
        if judged[0].fold is None:
            judged = judged[-1:]  # the calmest
        parts = [lowest(phase) for phase in judged]
        # The same float32 logits, summed in float64; all folds have 24 pictures.
        assert score.validation_loss == pytest.approx(sum(parts) / len(parts), rel=1e-12)
        assert score.excess == score.validation_loss - best
        assert (score.standard_error == 0) == (score.excess == 0)
        assert score.trainable_parameters == judged[0].trainable_parameters
        spent = sum(e.seconds for phase in judged for e in phase.epochs)
        assert score.seconds == pytest.approx(spent + sum(p.prefix.seconds for p in judged))


def test_every_fold_has_its_own_head_and_trials(crossed: Trained) -> None:
    phases = crossed.record.phases
    assert [(phase.purpose, phase.cut, phase.fold) for phase in phases] == [
        ("head", "head", None),
        *[("trial", "head", fold) for fold in range(3)],
        *[("trial", "Conv_1", fold) for fold in range(3)],
        ("final", "Conv_1", None),
    ]
    # Two thirds of 48 + 24 pictures.
    assert [phase.training_pictures for phase in phases] == [48] * 8
    for fold in range(3):
        head, trial = phases[1 + fold], phases[4 + fold]
        assert trial.start_loss == pytest.approx(lowest(head), rel=1e-3)
        assert trial.start_loss != pytest.approx(lowest(phases[1 + (fold + 1) % 3]), rel=1e-3)
    assert phases[7].start_loss == pytest.approx(lowest(phases[0]), rel=1e-3)
    assert crossed.record.strategy.startswith("auto: ")
    assert (
        "by cross-validation in 3 parts over 72 training and validation pictures, as 24 validation "
        "pictures are too few to choose by"
    ) in crossed.record.strategy
    lines = [line for line in crossed.said if line.startswith("trial ")]
    assert [line.partition(":")[0] for line in lines] == [
        f"trial from {cut}, fold {fold} of 3" for cut in ("head", "Conv_1") for fold in (1, 2, 3)
    ]


def test_cross_validation_only_chooses_what_is_trained(compared: Trained, crossed: Trained) -> None:
    # Conv_1 in both; the way there makes no difference to what ships.
    assert crossed.record.cut == compared.record.cut == "Conv_1"
    for name, value in compared.arrays.items():
        assert np.array_equal(crossed.arrays[name], value)


@pytest.mark.slow
def test_cross_validation_gives_the_same_bits_again(
    fine_tune: FineTune, train_plan: Untyped, crossed: Trained
) -> None:
    plan = but(train_plan, **SHORT, strategy="auto", unfreeze_until="Conv_1")
    again = fine_tune(plan)
    assert told(again.record) == told(crossed.record)
    assert all(np.array_equal(again.arrays[name], value) for name, value in crossed.arrays.items())
    # Twin: the folds of another seed.
    other = fine_tune(but(plan, seed=plan.seed + 1))
    assert told(other.record) != told(crossed.record)


@pytest.mark.slow
def test_a_comparison_ends_behind_a_trial_that_is_worse(
    fine_tune: FineTune, train_plan: Untyped, compared: Trained
) -> None:
    plan = but(train_plan, **{**COMPARED, "patience": 1, "unfreeze_until": "block_14_expand"})
    record = fine_tune(plan).record
    # Conv_1 is better than the head, block_16_expand worse than it: block_15_expand is not tried.
    assert outline(record.phases) == outline(compared.record.phases)
    assert record.stopped_because == (
        "unfreezing from block_16_expand raised the validation loss by more than two standard "
        "errors"
    )
    # Twin: `compared`, which ends where the recipe says.
    assert record.stopped_because != compared.record.stopped_because
    assert [score.validation_loss for score in record.curve] == [
        score.validation_loss for score in compared.record.curve
    ]


@pytest.mark.slow
def test_a_comparison_goes_stage_by_stage(fine_tune: FineTune, train_plan: Untyped) -> None:
    plan = but(train_plan, **{**COMPARED, "granularity": "stage", "unfreeze_until": None}, views=1)
    record = fine_tune(plan).record
    assert [score.cut for score in record.curve] == [
        "head", "block_16_expand", "block_13_expand", "block_10_expand", "block_6_expand",
    ]  # fmt: skip
    assert record.stopped_because == "block_6_expand was reached (train.unfreeze_until)"


@pytest.mark.slow
def test_the_final_training_sees_more_views_than_the_comparison(
    fine_tune: FineTune, train_plan: Untyped
) -> None:
    plan = but(train_plan, **{**COMPARED, "unfreeze_until": "Conv_1", "epochs": 2})
    result = fine_tune(plan)
    assert [(phase.purpose, phase.prefix.views) for phase in result.record.phases] == [
        ("head", 1), ("trial", 1), ("final", 2),
    ]  # fmt: skip
    fixed = but(train_plan, trial_epochs=1, epochs=2)
    assert [phase.prefix.views for phase in fine_tune(fixed).record.phases] == [1, 2]
    # What each reads once is stored by none.
    once = fine_tune(but(train_plan, trial_epochs=2, head_epochs=2, epochs=3, views=3))
    assert [(phase.prefix.views, phase.prefix.views_stored) for phase in once.record.phases] == [
        (2, 0),
        (3, 0),
    ]
    # Twin: a final training of one epoch has no use for a second view.
    for one in (but(plan, epochs=1), but(fixed, epochs=1)):
        assert {phase.prefix.views for phase in fine_tune(one).record.phases} == {1}


@pytest.mark.slow
def test_layers_may_be_unfrozen_one_at_a_time(
    fine_tune: FineTune, train_plan: Untyped, compared: Trained
) -> None:
    plan = but(
        train_plan, **{**COMPARED, "granularity": "layer", "unfreeze_until": "block_16_project"}
    )
    result = fine_tune(plan)
    phases = result.record.phases
    assert [phase.cut for phase in phases[:3]] == ["head", "Conv_1", "block_16_project"]
    for phase in phases:
        assert math.isfinite(phase.start_loss)
        assert all(math.isfinite(epoch.validation_loss) for epoch in phase.epochs)
    assert list(phases[2].gradient_norms) == ["block_16", "Conv_1", "head"]
    # Blocks and layers come to Conv_1 alike.
    known = compared.record.phases[1].epochs[0].validation_loss
    assert phases[1].epochs[0].validation_loss == known


@pytest.mark.slow
def test_a_limit_at_the_head_leaves_the_head_alone(
    fine_tune: FineTune, train_plan: Untyped
) -> None:
    record = fine_tune(but(train_plan, **{**COMPARED, "unfreeze_until": "head"})).record
    assert [(phase.purpose, phase.cut) for phase in record.phases] == [("head", "head")]
    assert [score.cut for score in record.curve] == ["head"]
    assert record.stopped_because == "head was reached (train.unfreeze_until)"


@pytest.mark.slow
def test_the_head_ships_where_no_rate_keeps_the_loss_finite(
    fine_tune: FineTune, train_plan: Untyped
) -> None:
    plan = but(train_plan, **{**COMPARED, "unfreeze_until": "Conv_1", "learning_rate": 1e38})
    record = fine_tune(plan).record
    assert [(phase.purpose, phase.cut) for phase in record.phases] == [("head", "head")]
    assert record.stopped_because == "the loss of training from Conv_1 did not stay finite"
    assert len(record.warnings) == 2
    # Twin: a cut that was asked for is not passed over in silence.
    fixed = but(train_plan, learning_rate=1e38)
    with pytest.raises(TrainingError, match="block_16_project did not stay finite"):
        fine_tune(fixed)


@pytest.mark.slow
def test_trials_learn_from_a_sample_and_the_rest_from_all(
    contract: Untyped, pictures: Untyped, train_plan: Untyped, tmp_path: Path
) -> None:
    count = TRIAL_PICTURES + 50
    many = Pictures(*coloured(count, seed=3), contract)
    plan = but(
        train_plan, **{**COMPARED, "unfreeze_until": "Conv_1"}, batch_size=64, views=1, min_steps=30
    )
    record = tune(plan, (many, pictures[1]), tmp_path / "many").record
    assert outline(record.phases)[:2] == [("head", "head"), ("trial", "Conv_1")]
    found = {phase.purpose: phase.training_pictures for phase in record.phases}
    assert found == {"head": count, "trial": TRIAL_PICTURES, "final": count}
    # 26 steps of 64 an epoch: two epochs make 30. A trial takes the 25 of its sample and no more.
    assert [len(phase.epochs) for phase in record.phases] == [2, 1, 2]
    # What is computed instead of stored is of the same pictures, in trials, too.
    cramped = tune(plan, (many, pictures[1]), tmp_path / "cramped", budget_bytes=0).record
    losses = [
        [[epoch.validation_loss for epoch in phase.epochs] for phase in each.phases]
        for each in (record, cramped)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_the_head_alone_is_trained_where_that_is_asked_for(
    fine_tune: FineTune, train_plan: Untyped
) -> None:
    for changes in (
        {"strategy": "head", "unfreeze_from": None},
        {"strategy": "fixed", "unfreeze_from": "head"},
    ):
        result = fine_tune(but(train_plan, head_epochs=1, **changes))
        record = result.record
        assert outline(record.phases) == [("head", "head")]
        assert (record.cut, record.shipped_phase, record.curve) == ("head", 0, ())
        assert changed(result) == {"logits"}
        assert record.chosen_because == "head was asked for"
        assert record.stopped_because == "no cuts were compared"


def test_a_fixed_cut_ships_even_if_it_is_worse(ruined: Trained) -> None:
    record = ruined.record
    head, *_, last = record.phases
    assert record.cut == "block_16_project"
    assert record.shipped_phase == len(record.phases) - 1
    assert changed(ruined) >= {"block_16_project", "Conv_1", "logits"}
    assert record.validation_loss == lowest(last) > lowest(head)
    assert record.strategy == "fixed: from block_16_project, as asked"
    assert record.chosen_because == "block_16_project was asked for"
    assert record.stopped_because == "no cuts were compared"
    # Twin: `fallen`, in which the cut was not asked for.


@pytest.mark.slow
def test_training_that_makes_the_network_worse_is_repeated_at_a_quarter_of_the_rate(
    ruined: Trained, trained: Trained
) -> None:
    head, *attempts = ruined.record.phases
    assert outline(attempts) == [("final", "block_16_project")] * 3
    assert [phase.learning_rate for phase in attempts] == [0.5, 0.125, 0.03125]
    for phase in attempts:
        assert phase.start_loss == pytest.approx(lowest(head), rel=1e-3)
        assert lowest(phase) > lowest(head)
    # The last attempt stands as it is.
    assert ruined.record.warnings == tuple(
        f"training from block_16_project at a learning rate of {rate}: the validation loss rose "
        f"from {lowest(head):.4f} to {lowest(phase):.4f}; trained again at {lower}"
        for rate, lower, phase in zip(("0.5", "0.12"), ("0.12", "0.031"), attempts[:2], strict=True)
    )
    for warning in ruined.record.warnings:
        assert f"warning: {warning}" in ruined.said
    # The twin: the same plan with small steps.
    assert outline(trained.record.phases)[1:] == [("final", "block_16_project")]
    assert trained.record.warnings == ()
    assert not any(line.startswith("warning") for line in trained.said)


@pytest.mark.slow
def test_a_calmer_attempt_that_does_not_harm_is_the_last(fallen: Trained) -> None:
    head, first, second, *_ = fallen.record.phases
    assert [phase.learning_rate for phase in (first, second)] == [0.4, 0.1]
    assert lowest(first) > lowest(head) > lowest(second)
    trials = [phase for phase in fallen.record.phases if phase.purpose == "trial"]
    assert outline(trials) == [("trial", "Conv_1")] * 2
    assert fallen.record.curve[1].validation_loss == pytest.approx(lowest(second), rel=1e-12)


@pytest.mark.slow
def test_the_head_ships_if_the_final_training_stays_worse(fallen: Trained) -> None:
    record = fallen.record
    head, last = record.phases[0], record.phases[-1]
    assert outline(record.phases[3:]) == [("final", "Conv_1")] * 3
    assert lowest(last) > lowest(head)
    assert (record.cut, record.shipped_phase) == ("head", 0)
    assert record.validation_loss == lowest(head)
    assert changed(fallen) == {"logits"}
    assert record.chosen_because == record.warnings[-1] == (
        f"the head alone, as training from Conv_1 raised the validation loss from "
        f"{lowest(head):.4f} to {lowest(last):.4f}"
    )  # fmt: skip
    assert len(record.warnings) == 4  # one of three trials, two of three final trainings, this


@pytest.mark.slow
def test_a_loss_that_stops_being_finite_is_calmed(fine_tune: FineTune, train_plan: Untyped) -> None:
    # Above 1e33 the loss of a batch of such logits overflows float32, at a sixteenth it does not.
    plan = but(train_plan, **{**COMPARED, "unfreeze_until": "Conv_1", "learning_rate": 4e33})
    result = fine_tune(plan)
    record = result.record
    assert (record.cut, record.shipped_phase) == ("head", 0)
    assert changed(result) == {"logits"}
    first, *_ = record.warnings
    assert first == (
        "training from Conv_1 at a learning rate of 4e+33: the loss stopped being finite; trained "
        "again at 1e+33"
    )
    # What diverged left no record, what did not is one.
    assert record.phases[-1].learning_rate < 4e33
    assert all(math.isfinite(lowest(phase)) for phase in record.phases)


def blocks(first: str) -> list[str]:
    """Returns the blocks from a layer on, as the gradient norms name them."""
    names = [node.name for node in weighted(mobilenet_v2(ALPHA))]
    later = names[names.index(first) : -1]
    return [*dict.fromkeys(block_of(name) for name in later), "head"]


@pytest.mark.slow
def test_every_unfrozen_block_has_a_gradient(trained: Trained, whole: Trained) -> None:
    assert list(trained.record.phases[0].gradient_norms) == ["head"]
    assert list(trained.record.phases[1].gradient_norms) == blocks("block_16_project")
    assert list(whole.record.phases[1].gradient_norms) == blocks("Conv1")
    assert len(blocks("Conv1")) == 20
    for result in (trained, whole):
        for phase in result.record.phases:
            for norm in phase.gradient_norms.values():
                assert math.isfinite(norm)
                assert norm > 0


@pytest.mark.slow
def test_the_gradient_norm_is_that_of_the_loss(
    fine_tune: FineTune, train_plan: Untyped, pictures: Untyped
) -> None:
    # One step of no length on all pictures, which nothing changes at random.
    plan = but(
        train_plan,
        head_epochs=1,
        epochs=1,
        head_learning_rate=1e-30,
        learning_rate=1e-30,
        batch_size=48,
        augment=AugmentSpec(enabled=False),
        dropout=0.0,
    )
    result = fine_tune(plan)
    model = keras_model.build(
        alpha=ALPHA, input_size_px=(SIZE_PX, SIZE_PX), class_count=3, weights=None, seed=9
    )
    keras_model.assign(model, result.arrays)
    split = pictures[0]
    images = split.normalize(split.images.astype(np.float32))
    names = {
        "block_16": ("block_16_project/kernel", "block_16_project_BN/beta"),
        "Conv_1": ("Conv_1/kernel", "Conv_1_bn/beta"),
        "head": ("logits/kernel", "logits/bias"),
    }
    known = {v.name: v for v in model.variables}

    def norms(smoothing: float) -> list[float]:
        targets = tf.one_hot(split.labels, 3) * (1 - smoothing) + smoothing / 3
        with tf.GradientTape() as tape:
            logits = model(images, training=False)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
        variables = [[known[f"{name}:0"] for name in pair] for pair in names.values()]
        gradients = tape.gradient(loss, variables)
        return [math.hypot(*(float(tf.norm(each)) for each in pair)) for pair in gradients]

    found = result.record.phases[1].gradient_norms
    assert list(found) == list(names)
    # Activations in float16 are off by up to 5e-4 of their size.
    assert list(found.values()) == pytest.approx(norms(0.1), rel=1e-3)
    assert list(found.values()) != pytest.approx(norms(0.05), rel=1e-3)


@pytest.mark.slow
def test_another_view_is_another_epoch(
    fine_tune: FineTune, train_plan: Untyped, trained: Trained
) -> None:
    plan = but(train_plan, strategy="head", unfreeze_from=None, views=1)
    result = fine_tune(plan)
    assert result.record.strategy == "head: feature extraction alone, as asked"
    (first, second), (same, other) = (
        [epoch.train_loss for epoch in run.record.phases[0].epochs] for run in (result, trained)
    )
    # Both start with the first view; then one sees it again and the other the second view.
    assert first == pytest.approx(same, rel=1e-4)
    assert second != pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_still_pictures_have_one_view(fine_tune: FineTune, train_plan: Untyped) -> None:
    still = AugmentSpec(enabled=False)
    plan = but(train_plan, strategy="head", unfreeze_from=None, augment=still, views=3)
    prefix = fine_tune(plan).record.phases[0].prefix
    assert (prefix.views, prefix.views_stored, prefix.views_refused) == (1, 1, 0)


class InterruptionError(Exception):
    """What ends a run in the middle, as Ctrl-C does."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "finals"),
    [
        ({"epochs": 3, "head_epochs": 2}, 1),
        ({"strategy": "auto", "unfreeze_until": "Conv_1", "unfreeze_from": None}, 1),
        ({"learning_rate": 0.5}, 3),
    ],
)
def test_a_run_that_is_interrupted_behind_every_epoch_comes_to_the_same(
    changes: dict[str, Untyped],
    finals: int,
    pictures: Untyped,
    train_plan: Untyped,
    tmp_path: Path,
) -> None:
    plan = but(train_plan, **{**SHORT, "unfreeze_from": "Conv_1", **changes})
    known = tune(plan, pictures, tmp_path / "known")
    assert sum(phase.purpose == "final" for phase in known.record.phases) == finals
    done: list[tuple[str, int, int]] = []

    def interrupt(what: str, epoch: int, epochs: int, _record: Untyped) -> None:
        done.append((what.split()[-1], epoch, epochs))
        raise InterruptionError

    record = None
    while record is None:
        place = keeping(tmp_path / "store", lambda _line: None)
        before = len(done)
        try:
            record = train(
                *pictures, CLASSES, plan.model, plan.spec, tmp_path, weights=plan.weights,
                seed=plan.seed, keeping=place,
                say=lambda _line: None, progress=lambda *_: None, epoch_done=interrupt,
            )  # fmt: skip
        except InterruptionError:
            assert len(done) == before + 1
    # No epoch was run twice, and none was left out.
    assert done == [
        (phase.cut, epoch, len(phase.epochs))
        for phase in known.record.phases
        for epoch in range(len(phase.epochs))
    ]
    arrays = arrays_in(tmp_path / "weights.npz")
    assert all(np.array_equal(arrays[key], value) for key, value in known.arrays.items())
    assert record.warnings == known.record.warnings
    assert record.chosen_because == known.record.chosen_because
    for phase, same in zip(record.phases, known.record.phases, strict=True):
        losses = [epoch.validation_loss for epoch in phase.epochs]
        assert losses == [epoch.validation_loss for epoch in same.epochs]
        assert phase.gradient_norms == same.gradient_norms
    assert not (tmp_path / "store" / "train-epoch").exists()


class CountedImages:
    """Pictures on disk that count how often one is read."""

    def __init__(self, images: Untyped) -> None:
        self.images = images
        self.shape, self.dtype, self.nbytes = images.shape, images.dtype, images.nbytes
        self.read = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Untyped) -> Untyped:
        found = self.images[rows]
        self.read += len(found) if np.ndim(rows) else 1
        return found


@pytest.mark.slow
def test_all_phases_share_one_pass_over_the_pictures(
    pictures: Untyped, train_plan: Untyped, tmp_path: Path
) -> None:
    images = CountedImages(pictures[0].images)
    counted = Pictures(images, pictures[0].labels, pictures[0].preprocess)
    plan = but(train_plan, **COMPARED, views=1)
    result = tune(plan, (counted, pictures[1]), tmp_path / "counted")
    assert len(result.record.phases) == 4
    assert images.read == 48
    # The twin: where nothing can be kept, head, trials and final training read all of them.
    again = CountedImages(pictures[0].images)
    tune(plan, (replace(counted, images=again), pictures[1]), tmp_path / "again", 0)
    assert again.read >= 3 * 48


def stored_bytes(result: Trained) -> int:
    """Returns the bytes of all activations that lie in the store of a run."""
    files = (result.folder / "store").glob("activations-*/*/*.npy")
    return sum(np.load(file, mmap_mode="r").nbytes for file in files)


@pytest.fixture(scope="module")
def roomless(
    pictures: Untyped, train_plan: Untyped, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Returns a run that must not store any activation."""
    return tune(train_plan, pictures, tmp_path_factory.mktemp("roomless"), 0)


@pytest.fixture(scope="module")
def cramped(
    pictures: Untyped,
    train_plan: Untyped,
    trained: Trained,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    """Returns a run with room for validation and one of two views at either cut."""
    room = max(phase.prefix.bytes_per_image for phase in trained.record.phases) * (24 + 48)
    return tune(train_plan, pictures, tmp_path_factory.mktemp("cramped"), room)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["roomless", "cramped"])
def test_little_room_changes_no_bit(
    name: str, trained: Trained, request: pytest.FixtureRequest
) -> None:
    result: Trained = request.getfixturevalue(name)
    for phase, known in zip(result.record.phases, trained.record.phases, strict=True):
        for epoch, same in zip(phase.epochs, known.epochs, strict=True):
            assert epoch.train_loss == same.train_loss
            assert epoch.validation_loss == same.validation_loss
            assert epoch.validation_accuracy == same.validation_accuracy
        assert phase.gradient_norms == known.gradient_norms
    assert all(np.array_equal(result.arrays[name], trained.arrays[name]) for name in result.arrays)


@pytest.mark.slow
def test_what_fits_is_stored_and_the_rest_is_told(
    trained: Trained, cramped: Trained, roomless: Trained
) -> None:
    at_head, at_cut = (phase.prefix.bytes_per_image for phase in trained.record.phases)
    # One pass makes what enters at both cuts, and both views of it are read again by the second
    # phase. Without room for that each cut has its own: the first phase reads each view once,
    # the second one view twice.
    assert stored_bytes(trained) == (at_head + at_cut) * (24 + 2 * 48)
    assert stored_bytes(cramped) == at_cut * (24 + 48)
    assert stored_bytes(roomless) == 0
    found = [
        [
            (phase.prefix.views, phase.prefix.views_stored, phase.prefix.views_refused)
            for phase in run.record.phases
        ]
        for run in (trained, cramped, roomless)
    ]
    assert found == [
        [(2, 2, 0), (2, 2, 0)],
        [(2, 0, 0), (2, 1, 0)],
        [(2, 0, 0), (2, 0, 1)],
    ]
    notes = [
        [line for line in run.said if line.startswith("note: there was no room")]
        for run in (trained, cramped, roomless)
    ]
    assert [len(lines) for lines in notes] == [0, 0, 1]


@pytest.mark.slow
def test_no_more_views_are_missed_than_there_are(roomless: Trained) -> None:
    notes = [line for line in roomless.said if line.startswith("note: there was no room")]
    assert notes
    for note in notes:
        missing, views = re.findall(r"store (\d+) of (\d+) views", note)[0]
        assert int(missing) <= int(views)


@pytest.mark.slow
def test_nothing_is_missing_where_nothing_can_be_stored(whole: Trained) -> None:
    last = whole.record.phases[1].prefix
    assert last.tensors == ("input",)
    assert last.bytes_per_image == 0
    # All room is there: the pictures themselves enter.
    assert last.views_refused == 0
    assert not any("room" in line for line in whole.said)
