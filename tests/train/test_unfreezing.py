"""Fine-tuning the tiny pictures: what may change does, what may not does not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_network import (
    ALPHA,
    CLASSES,
    SIZE_PX,
    Arrays,
    Trained,
    Untyped,
    arrays_in,
    but,
    changed,
    told,
)

from edgekit.network.graph import mobilenet_v2, weighted
from edgekit.recipe import TrainSpec

pytest.importorskip("tensorflow")

from edgekit.fitting.losses import validation_losses
from edgekit.fitting.pictures import compiled
from edgekit.network import keras_model
from edgekit.train.unfreezing import schedule

FineTune = Callable[[Untyped], Trained]


@pytest.fixture(scope="module")
def ruined(fine_tune: FineTune, train_plan: Untyped) -> Trained:
    """Returns a comparison in which the steps of every trial are far too large."""
    plan = but(
        train_plan,
        strategy="progressive",
        unfreeze_from=None,
        unfreeze_until="Conv_1",
        learning_rate=0.5,
    )
    return fine_tune(plan)


def normalized(layers: set[str]) -> set[str]:
    """Returns layers with the BatchNorms that stand behind them."""
    nodes = weighted(mobilenet_v2(ALPHA))
    return layers | {n.batch_norm for n in nodes if n.name in layers and n.batch_norm}


def test_only_the_layers_from_the_cut_on_change(trained: Trained) -> None:
    # block_16_project and Conv_1 train, the head is new; nothing before them moves.
    unfrozen = {"block_16_project", "Conv_1", "logits"}
    assert set(trained.record.unfrozen_layers) == unfrozen
    assert changed(trained) == normalized(unfrozen) == unfrozen | {
        "block_16_project_BN", "Conv_1_bn",
    }  # fmt: skip
    assert trained.record.cut == "block_16_project"


def test_of_a_batch_norm_beta_alone_changes(trained: Trained) -> None:
    for layer in ("block_16_project_BN", "Conv_1_bn"):
        for variable in ("gamma", "beta", "moving_mean", "moving_variance"):
            name = f"{layer}/{variable}"
            same = np.array_equal(trained.arrays[name], trained.start[name])
            assert same == (variable != "beta"), name


def test_every_array_of_the_network_is_written(trained: Trained) -> None:
    assert set(trained.arrays) == set(trained.start)
    assert {array.dtype for array in trained.arrays.values()} == {np.dtype(np.float32)}


def kept_weights(result: Trained, number: int) -> Arrays:
    """Returns the weights that the store holds of a phase."""
    record = json.loads(result.record.phases[number].model_dump_json())
    (folder,) = (
        file.parent
        for file in (result.folder / "store" / "train-phase").glob("*/record.json")
        if json.loads(file.read_bytes())["record"] == record
    )
    return arrays_in(Path(folder) / "weights.npz")


@pytest.mark.parametrize("name", ["trained", "ruined"])
def test_what_ships_is_what_was_trained_bit_for_bit(
    name: str, request: pytest.FixtureRequest
) -> None:
    result: Trained = request.getfixturevalue(name)
    shipped = result.record.shipped_phase
    for number in range(len(result.record.phases)):
        weights = kept_weights(result, number)
        same = all(np.array_equal(value, result.arrays[key]) for key, value in weights.items())
        assert same == (number == shipped)


def test_trials_leave_no_trace(ruined: Trained) -> None:
    assert [phase.purpose for phase in ruined.record.phases] == ["head", *["trial"] * 3]
    assert (ruined.record.cut, ruined.record.shipped_phase) == ("head", 0)
    assert changed(ruined) == {"logits"}
    assert ruined.record.unfrozen_layers == ("logits",)


def test_trainable_parameters_are_those_of_the_unfrozen_part(
    ruined: Trained, trained: Trained
) -> None:
    shapes = {name: value.size for name, value in ruined.arrays.items()}
    head = shapes["logits/kernel"] + shapes["logits/bias"]
    last = shapes["Conv_1/kernel"] + shapes["Conv_1_bn/beta"]
    more = shapes["block_16_project/kernel"] + shapes["block_16_project_BN/beta"]
    found = [phase.trainable_parameters for phase in ruined.record.phases]
    assert found == [head, *[head + last] * 3]
    assert trained.record.phases[-1].trainable_parameters == head + last + more


@pytest.mark.parametrize("name", ["trained", "ruined"])
def test_each_phase_is_told_in_a_line(name: str, request: pytest.FixtureRequest) -> None:
    result: Trained = request.getfixturevalue(name)
    lines = [line for line in result.said if " parameters, " in line]
    for line, phase in zip(lines, result.record.phases, strict=True):
        name = "head" if phase.purpose == "head" else f"{phase.purpose} from {phase.cut}"
        assert line.startswith(f"{name}: ")
        assert f"{phase.trainable_parameters:,} parameters, {len(phase.epochs)} epochs" in line
        assert f"validation loss {phase.epochs[phase.best_epoch].validation_loss:.4f}" in line
        assert "fold" not in line
    assert result.said[-1] == f"ships: {result.record.chosen_because}"


@pytest.mark.parametrize("name", ["trained", "ruined"])
def test_the_record_is_of_the_weights_that_were_written(
    name: str, pictures: Untyped, request: pytest.FixtureRequest
) -> None:
    result: Trained = request.getfixturevalue(name)
    record, validation = result.record, pictures[1]
    assert (record.alpha, record.input_size_px, record.class_count) == (
        ALPHA,
        (SIZE_PX, SIZE_PX),
        3,
    )
    model = keras_model.build(
        alpha=ALPHA,
        input_size_px=(SIZE_PX, SIZE_PX),
        class_count=len(CLASSES),
        weights=None,
        seed=99,
    )
    keras_model.assign(model, result.arrays)
    logits = compiled(lambda images: model(images, training=False), validation)()
    # The phase ran its frozen part with BatchNorm folded and rounded its activations to float16,
    # 2e-4 of their size: a thousandth of the loss. The twin: an epoch more is another loss.
    loss = float(validation_losses(logits, validation.labels).mean())
    assert record.validation_loss == pytest.approx(loss, rel=1e-3)
    others = {e.validation_loss for p in record.phases for e in p.epochs} - {record.validation_loss}
    assert others
    assert all(other != pytest.approx(loss, rel=1e-3) for other in others)
    assert record.validation_accuracy == (logits.argmax(1) == validation.labels).mean()
    # The restored weights are those of the best epoch of the phase that ships.
    best = record.phases[record.shipped_phase]
    assert best.cut == record.cut
    lowest = min(epoch.validation_loss for epoch in best.epochs)
    assert best.epochs[best.best_epoch].validation_loss == lowest == record.validation_loss


def test_unfreezing_lowered_the_loss(trained: Trained) -> None:
    head, final = trained.record.phases
    assert (head.purpose, final.purpose) == ("head", "final")
    assert trained.record.validation_loss < min(epoch.validation_loss for epoch in head.epochs)
    assert trained.record.warnings == ()


@pytest.mark.slow
def test_the_weight_of_a_class_lies_on_its_logit_and_changes_nothing_else(
    fine_tune: FineTune, train_plan: Untyped
) -> None:
    plan = but(train_plan, strategy="head", unfreeze_from=None, head_epochs=1)
    alike, weighed = fine_tune(plan), fine_tune(but(plan, class_weights={"red": 50.0}))
    assert alike.record.class_weights is None
    assert weighed.record.class_weights == (1.0, 1.0, 50.0)
    assert weighed.said[0] == (
        "classes: weighed as asked: a mistake on red counts 50.0 times one on blue"
    )
    bias, kernel = "logits/bias", "logits/kernel"
    # Sums of 1280 products in float32, in training, are what the steps differ by.
    assert np.allclose(weighed.arrays[kernel], alike.arrays[kernel], atol=1e-4)
    on_top = np.log([1, 1, 50])
    assert np.allclose(weighed.arrays[bias] - alike.arrays[bias], on_top, atol=1e-4)
    assert weighed.record.validation_loss == pytest.approx(alike.record.validation_loss, rel=1e-3)


@pytest.mark.slow
def test_the_same_plan_gives_the_same_bits(
    trained: Trained, fine_tune: FineTune, train_plan: Untyped
) -> None:
    again = fine_tune(train_plan)
    assert told(again.record) == told(trained.record)
    assert all(np.array_equal(again.arrays[name], trained.arrays[name]) for name in trained.arrays)


def test_another_seed_gives_another_network(
    trained: Trained, fine_tune: FineTune, train_plan: Untyped
) -> None:
    plan = but(train_plan, seed=6, strategy="head", unfreeze_from=None, head_epochs=1)
    other = fine_tune(plan)
    assert [phase.cut for phase in other.record.phases] == ["head"]
    assert not np.array_equal(other.arrays["logits/kernel"], trained.arrays["logits/kernel"])


def test_a_cut_inside_a_residual_block_trains_its_second_half(
    fine_tune: FineTune, train_plan: Untyped
) -> None:
    plan = but(train_plan, unfreeze_from="block_15_project", head_epochs=1, epochs=1)
    result = fine_tune(plan)
    names = [node.name for node in weighted(mobilenet_v2(ALPHA))]
    expected = names[names.index("block_15_project") :]
    assert list(result.record.unfrozen_layers) == expected
    assert changed(result) == normalized(set(expected))


@pytest.fixture(scope="module")
def long_plan(train_plan: Untyped) -> TrainSpec:
    """Returns a plan that asks for steps."""
    return but(
        train_plan, head_epochs=4, trial_epochs=2, epochs=8, batch_size=10, min_steps=400
    ).spec


@pytest.mark.parametrize(
    ("rows", "head", "trial", "final"),
    [
        # 400 steps of the final training make 100 of a trial and 200 of the head.
        (100, 20, 10, 40),
        (91, 20, 10, 40),  # ten steps an epoch, too
        (90, 23, 12, 45),
        (1, 200, 100, 400),
        # Where the epochs asked for have as many steps, they stay.
        (500, 4, 2, 8),
        (10_000, 4, 2, 8),
        (490, 5, 3, 9),
    ],
)
def test_few_pictures_raise_the_epochs_to_the_fewest_steps(
    long_plan: TrainSpec, rows: int, head: int, trial: int, final: int
) -> None:
    found = [schedule(long_plan, p, rows, 1e-3).epochs for p in ("head", "trial", "final")]
    assert found == [head, trial, final]
    # Twin: no steps are asked for.
    short = long_plan.model_copy(update={"min_steps": 0})
    assert [schedule(short, p, rows, 1e-3).epochs for p in ("head", "trial", "final")] == [4, 2, 8]


def test_a_trial_of_few_pictures_takes_no_more_steps_than_one_of_many(long_plan: TrainSpec) -> None:
    plan = long_plan.model_copy(update={"min_steps": 4000})
    # In proportion it were 1000 steps; two epochs of 1600 pictures are 320.
    assert schedule(plan, "trial", 100, 1e-3).epochs == 32
    assert schedule(plan, "trial", 1600, 1e-3).epochs == 2
    # Twin: the other phases have no such limit.
    assert [schedule(plan, p, 100, 1e-3).epochs for p in ("head", "final")] == [200, 400]


def test_a_schedule_has_the_peak_and_the_warmup_of_its_plan(long_plan: TrainSpec) -> None:
    trial = schedule(long_plan, "trial", 100, 0.25)
    assert (trial.peak, trial.warmup_steps) == (0.25, long_plan.warmup_steps)
