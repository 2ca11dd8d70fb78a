"""The quantize stage: what is trained, what is calibrated and why, and which candidate ships."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from tiny_network import (
    ALPHA,
    Network,
    QuantizeAsked,
    Quantized,
    Trained,
    Untyped,
    arrays_in,
    but,
    checkpoints,
    coloured,
    int8_file_logits,
    shelf,
)

from edgekit.errors import SpecError
from edgekit.network.graph import INPUT, fold, mobilenet_v2, weighted
from edgekit.network.ranges import keeping_float
from edgekit.recipe import AugmentSpec
from edgekit.records import Preprocess

pytest.importorskip("tensorflow")

from edgekit.fitting import cores
from edgekit.fitting.losses import validation_losses
from edgekit.fitting.pictures import Pictures, compiled
from edgekit.network import keras_model
from edgekit.network.forward import logits_function
from edgekit.quantize.candidates import choice, quantize_model

NODES = mobilenet_v2(ALPHA)
WEIGHTED = [node.name for node in weighted(NODES)]


def test_the_unfrozen_layers_are_trained_and_the_others_calibrated(
    quantized: Quantized, trained: Trained
) -> None:
    ptq, qat = quantized.record.candidates
    assert (ptq.name, qat.name) == ("ptq", "qat")
    for candidate in (ptq, qat):
        assert [layer.layer for layer in candidate.layers] == WEIGHTED
    by_training = [layer.layer for layer in qat_layers(quantized)]
    assert by_training == list(trained.record.unfrozen_layers) == WEIGHTED[-3:]
    assert {layer.how for layer in ptq.layers} == {"calibrated"}
    for layer in (*ptq.layers, *qat.layers):
        expected = {
            ("qat", True): "unfrozen from block_16_project on",
            (
                "qat",
                False,
            ): "frozen in fine-tuning: ranges from 36 class-balanced training pictures",
            ("ptq", False): "post-training: ranges from 36 class-balanced training pictures",
        }
        name = "qat" if layer in qat.layers else "ptq"
        assert layer.reason == expected[name, layer.how == "qat"]


def test_only_the_unfrozen_layers_differ_from_the_float_ones(
    quantized: Quantized, trained: Trained
) -> None:
    folded = arrays_in(quantized.folder / "float.weights.npz")
    expected = fold(NODES, trained.arrays)
    assert set(folded) == set(expected)
    assert all(np.array_equal(folded[name], expected[name]) for name in expected)
    ptq, qat = quantized.weights("ptq"), quantized.weights("qat")
    assert all(np.array_equal(ptq[name], folded[name]) for name in folded)
    moved = {name for name in folded if not np.array_equal(qat[name], folded[name])}
    assert moved == {f"{n}/{part}" for n in WEIGHTED[-3:] for part in ("kernel", "bias")}


def test_only_the_tail_has_trained_ranges(quantized: Quantized) -> None:
    ptq, qat = quantized.table("ptq").activations, quantized.table("qat").activations
    names = [node.name for node in NODES]
    assert list(ptq) == list(qat) == [INPUT, *names]
    tail = names[names.index("block_16_project") :]
    assert {name for name, span in qat.items() if span.source == "trained"} == set(tail)
    assert all(qat[name] == ptq[name] for name in qat if name not in tail)
    assert any(qat[name] != ptq[name] for name in tail)


@pytest.mark.parametrize("name", ["ptq", "qat"])
def test_the_record_is_of_the_answers_of_the_file(
    quantized: Quantized, pictures: Untyped, tmp_path: Path, name: str
) -> None:
    (record,) = (c for c in quantized.record.candidates if c.name == name)
    validation = pictures[1]
    weights, table = quantized.weights(name), quantized.table(name)
    logits = int8_file_logits(NODES, weights, table, validation, tmp_path)
    assert record.validation_loss == pytest.approx(
        validation_losses(logits, validation.labels).mean(), 1e-6
    )
    assert record.validation_accuracy == (logits.argmax(1) == validation.labels).mean()
    reference = compiled(
        logits_function(NODES, arrays_in(quantized.folder / "float.weights.npz")), validation
    )()
    assert record.agreement_with_float == (logits.argmax(1) == reference.argmax(1)).mean()
    # Twin: TensorFlow's simulation of the same network has some codes otherwise.
    simulated = compiled(logits_function(NODES, weights, table), validation)()
    assert record.validation_loss != pytest.approx(
        validation_losses(simulated, validation.labels).mean(), rel=1e-6
    )


def test_the_lower_validation_loss_ships(quantized: Quantized) -> None:
    reason = quantized.record.reason
    losses = {
        c.name: float(re.search(rf"{c.name}: loss (\d\.\d{{4}}), top-1", reason)[1])
        for c in quantized.record.candidates
    }
    assert quantized.record.shipped == min(losses, key=lambda name: losses[name])
    assert len(set(losses.values())) == 2
    assert reason.startswith(quantized.record.shipped)
    for candidate in quantized.record.candidates:
        assert losses[candidate.name] == pytest.approx(candidate.validation_loss, abs=5e-5)


@pytest.mark.slow
def test_training_that_did_harm_does_not_ship(
    quantize_it: Callable[[Untyped], Quantized], quantize_plan: Untyped
) -> None:
    spoiled = quantize_it(but(quantize_plan, qat_epochs=1, qat_learning_rate=1.0))
    ptq, qat = spoiled.record.candidates
    assert qat.validation_loss > ptq.validation_loss
    assert spoiled.record.shipped == "ptq"
    assert spoiled.record.reason.startswith("ptq has the lower loss")


@pytest.mark.slow
def test_without_epochs_there_is_one_candidate(
    quantize_it: Callable[[Untyped], Quantized], quantize_plan: Untyped, quantized: Quantized
) -> None:
    only = quantize_it(but(quantize_plan, qat_epochs=0))
    assert [candidate.name for candidate in only.record.candidates] == ["ptq"]
    assert only.record.shipped == "ptq"
    assert "qat_epochs = 0" in only.record.reason
    assert {file.name for file in only.folder.iterdir() if file.is_file()} == {
        "float.weights.npz",
        "ptq.weights.npz",
        "ptq.ranges.json",
    }
    # The post-training candidate does not depend on what else is tried.
    assert only.record.candidates[0] == quantized.record.candidates[0]
    assert only.table("ptq") == quantized.table("ptq")


@pytest.mark.slow
def test_one_grid_for_a_whole_kernel_is_simulated_as_such(
    quantize_it: Callable[[Untyped], Quantized], quantize_plan: Untyped, quantized: Quantized
) -> None:
    whole = quantize_it(but(quantize_plan, granularity="tensor"))
    for name in ("ptq", "qat"):
        weights, table = whole.weights(name), whole.table(name)
        for node in weighted(NODES):
            largest = float(np.abs(weights[f"{node.name}/kernel"]).max())
            assert table.kernels[node.name] == (largest,)
    # Only the kernels are coarser.
    assert whole.table("ptq").activations == quantized.table("ptq").activations
    ptq, coarse = quantized.record.candidates[0], whole.record.candidates[0]
    assert coarse.validation_loss != ptq.validation_loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "size_px", "cut"),
    [
        (0.35, 224, "Conv1"),
        (0.5, 128, "logits"),
        (0.75, 192, "block_13_expand"),
        (1.0, 160, "block_6_depthwise"),
        (1.3, 96, "block_16_project"),
        (1.4, 96, "Conv1"),
    ],
)
def test_every_width_size_and_cut_trains_and_ships(
    quantize_it: Callable[..., Quantized], quantize_plan: Untyped, trained: Trained,
    network: Network, tmp_path: Path, alpha: float, size_px: int, cut: str,
) -> None:  # fmt: skip
    nodes = mobilenet_v2(alpha)
    names = [node.name for node in weighted(nodes)]
    unfrozen = tuple(names[names.index(cut) :])
    record = trained.record.model_copy(
        update={
            "alpha": alpha,
            "input_size_px": (size_px,) * 2,
            "cut": cut,
            "unfrozen_layers": unfrozen,
        }
    )
    contract = Preprocess(height_px=size_px, width_px=size_px)
    splits = [Pictures(*coloured(n, n, size_px), contract) for n in (24, 12)]
    plan = but(quantize_plan, qat_epochs=1, calibration_images=12, calibration="min-max")
    arrays = keras_model.arrays_of(network(alpha, size_px))
    made = quantize_it(plan, replace(trained, record=record, arrays=arrays), splits)
    for candidate in made.record.candidates:
        weights, table = made.weights(candidate.name), made.table(candidate.name)
        logits = int8_file_logits(nodes, weights, table, splits[1], tmp_path)
        loss = validation_losses(logits, splits[1].labels).mean()
        assert candidate.validation_loss == pytest.approx(loss, rel=1e-6)
    ptq, qat = made.weights("ptq"), made.weights("qat")
    moved = {name.partition("/")[0] for name in qat if not np.array_equal(qat[name], ptq[name])}
    assert moved == set(unfrozen)
    assert [layer.layer for layer in qat_layers(made)] == list(unfrozen)


def qat_layers(quantized: Quantized) -> Untyped:
    return [layer for layer in quantized.record.candidates[1].layers if layer.how == "qat"]


@pytest.mark.slow
def test_layers_can_be_kept_in_float_by_name(
    quantize_it: Callable[[Untyped], Quantized], quantize_plan: Untyped, quantized: Quantized
) -> None:
    named = ("Conv1", "block_16_project", "Conv_1")
    kept = quantize_it(but(quantize_plan, keep_float=named))
    for candidate in kept.record.candidates:
        table = kept.table(candidate.name)
        assert table.kept_float == named
        assert not set(named) & set(table.kernels)
        assert "block_16_project" not in table.activations  # float between float layers
        layers = {layer.layer: layer for layer in candidate.layers}
        assert {name for name, layer in layers.items() if layer.how == "float"} == set(named)
        assert layers["Conv1"].reason == "named in quantize.keep_float"
    assert {item.layer for item in kept.record.sensitivity} == {n.name for n in NODES} - set(named)
    # Kept layers train all the same, only without rounding.
    assert not np.array_equal(
        kept.weights("qat")["Conv_1/kernel"], kept.weights("ptq")["Conv_1/kernel"]
    )
    # Twin: without names nothing is kept.
    assert quantized.table("ptq").kept_float == ()


@pytest.mark.slow
def test_what_int8_costs_is_that_of_calibration_whatever_ships(
    quantize_it: Callable[[Untyped], Quantized], quantize_plan: Untyped, quantized: Quantized
) -> None:
    only = quantize_it(but(quantize_plan, qat_epochs=0))
    assert only.record.sensitivity == quantized.record.sensitivity
    assert [item.layer for item in only.record.sensitivity] == [node.name for node in NODES]


def test_a_name_that_no_layer_has_is_refused_with_the_nearest(
    quantize_it: Callable[[Untyped], Quantized], quantize_plan: Untyped
) -> None:
    with pytest.raises(SpecError, match="block_16_projekt") as caught:
        quantize_it(but(quantize_plan, keep_float=("block_16_projekt",)))
    assert caught.value.remedy == "did you mean block_16_project?"


@pytest.mark.slow
def test_a_drop_that_is_met_keeps_nothing_and_says_so(
    quantize_it: Callable[[Untyped], Quantized], quantize_plan: Untyped
) -> None:
    easy = quantize_it(but(quantize_plan, qat_epochs=0, max_drop=99.0))
    assert easy.table("ptq").kept_float == ()
    assert "max_drop = 99: no layer needs to stay float32" in easy.record.kept_because


@pytest.fixture(scope="module")
def longer(fine_tune: Callable[[Untyped], Trained], train_plan: Untyped) -> Trained:
    """Returns a network that was trained for longer than the others: it has answers to lose."""
    return fine_tune(but(train_plan, head_epochs=6, epochs=6))


@pytest.fixture(scope="module")
def coarse_plan(
    longer: Trained, quantize_it: Callable[..., Quantized], quantize_plan: Untyped
) -> Untyped:
    """Returns a plan whose int8 is bad enough to be mended.

    It has one grid for a whole kernel and ranges of one picture, which a seed picks.
    """
    plan = but(quantize_plan, granularity="tensor", calibration_images=1)
    for seed in range(8):
        found = quantize_it(but(plan, qat_epochs=0, seed=seed), longer)
        drop = longer.record.validation_accuracy - found.record.candidates[0].validation_accuracy
        if drop > 0.02:
            return but(plan, seed=seed)
    pytest.fail("int8 is as good as float with every seed")


@pytest.mark.slow
def test_a_drop_that_int8_exceeds_keeps_layers_until_it_does_not(
    longer: Trained,
    coarse_plan: Untyped,
    quantize_it: Callable[..., Quantized],
    pictures: Untyped,
) -> None:
    plan = but(coarse_plan, qat_epochs=0)
    before = quantize_it(plan, longer)
    validation = pictures[1]
    folded = arrays_in(before.folder / "float.weights.npz")
    right = compiled(logits_function(NODES, folded), validation)().argmax(1) == validation.labels
    lost = 100 * (float(right.mean()) - before.record.candidates[0].validation_accuracy)
    assert lost > 2
    allowed = 0.6 * lost  # no whole number of pictures, so that rounding decides nothing
    mended = quantize_it(but(plan, max_drop=allowed), longer)
    (candidate,) = mended.record.candidates
    kept = [layer for layer in candidate.layers if layer.how == "float"]
    assert 0 < len(kept) < len(NODES)
    assert all(layer.reason == f"for quantize.max_drop = {allowed:g}" for layer in kept)
    assert 100 * (float(right.mean()) - candidate.validation_accuracy) <= allowed
    assert set(mended.table("ptq").kept_float) == {layer.layer for layer in kept}
    # Twin: without the last one that was kept, the drop is not met.
    order = mended.record.kept_because.partition("(")[2].partition(")")[0].split(", ")
    assert set(order) == {layer.layer for layer in kept}
    fewer = keeping_float(NODES, before.table("ptq"), order[:-1])
    answers = compiled(logits_function(NODES, folded, fewer), validation)()
    still = float((answers.argmax(1) == validation.labels).mean())
    assert 100 * (float(right.mean()) - still) > allowed


@pytest.mark.slow
def test_training_starts_again_behind_the_layers_that_are_kept(
    longer: Trained, coarse_plan: Untyped, quantize_it: Callable[..., Quantized]
) -> None:
    # At such a rate training mends nothing.
    plan = but(coarse_plan, qat_epochs=1, qat_learning_rate=1e-7)
    asked = quantize_it(but(plan, max_drop=2.0), longer)
    named = asked.table("qat").kept_float
    assert named
    # The same as if they had been named.
    by_name = quantize_it(but(plan, keep_float=named), longer)
    for name in ("ptq", "qat"):
        ours, theirs = asked.weights(name), by_name.weights(name)
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
        assert asked.table(name) == by_name.table(name)


@pytest.mark.parametrize(
    ("drops", "max_drop", "ships"),
    [
        ((3.0, 3.0), None, "qat"),
        ((0.4, 3.0), None, "qat"),
        ((0.4, 0.3), 0.5, "qat"),
        ((0.5, 0.6), 0.5, "ptq"),
        ((0.6, 0.5), 0.5, "qat"),
        ((-1.0, 0.1), 0.0, "ptq"),
        ((0.6, 3.0), 0.5, "qat"),
    ],
)
def test_a_candidate_that_keeps_to_the_drop_ships_before_one_of_a_lower_loss(
    drops: tuple[float, float], max_drop: float | None, ships: str
) -> None:
    ptq, qat = drops
    assert choice({"ptq": 0.7, "qat": 0.6}, {"ptq": ptq, "qat": qat}, max_drop) == ships


@pytest.mark.slow
def test_training_stops_when_the_loss_of_int8_stops_falling(
    quantize_it: Callable[..., Quantized], quantize_plan: Untyped
) -> None:
    plan = but(quantize_plan, qat_epochs=8, qat_learning_rate=1.0, qat_patience=1)
    _, qat = quantize_it(plan).record.candidates
    losses = [epoch.validation_loss for epoch in qat.epochs]
    assert len(losses) < 8
    assert losses[-1] >= losses[-2]


class InterruptionError(Exception):
    """What ends a run in the middle, as Ctrl-C does."""


@dataclass
class Training:
    """Quantization-aware training on changed pictures, with its own store."""

    trained: Trained
    pictures: Untyped
    plan: QuantizeAsked
    root: Path
    budget_bytes: int = 10**9
    told: list[int] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)

    def go(self, stop_after: int | None = None) -> Quantized:
        def done(epoch: int, _record: Untyped) -> None:
            self.told.append(epoch)
            if epoch == stop_after:
                raise InterruptionError

        folder = self.root / f"result {len(self.told)}"
        folder.mkdir(parents=True)
        place = shelf(self.root / "store", budget_bytes=self.budget_bytes)
        record = quantize_model(
            self.trained.record,
            self.trained.arrays,
            *self.pictures,
            self.plan.spec,
            self.plan.training,
            folder,
            seed=self.plan.seed,
            checkpoints=checkpoints(self.root / "store"),
            shelf=replace(place, progress=lambda what, _done, _total: self.computed.append(what)),
            say=lambda _line: None,
            progress=lambda _what, _done, _total: None,
            epoch_done=done,
        )
        return Quantized(folder, record)

    def shards(self) -> int:
        return len(list((self.root / "store").glob("activations-*/*")))


@pytest.fixture(scope="module")
def wobbly_plan(quantize_plan: Untyped) -> Untyped:
    """Returns a plan with two views of which one is seen twice."""
    wobbly = AugmentSpec(flip=True, shift=0.1, zoom=0.1, brightness=0.1, contrast=0.1)
    return but(quantize_plan, augment=wobbly, views=2, qat_epochs=3)


@pytest.mark.slow
def test_a_last_batch_with_fewer_pictures_than_cores_trains(
    quantize_it: Callable[..., Quantized], quantize_plan: Untyped, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(count: int, batch_size: int = 47) -> float:
        monkeypatch.setattr(cores, "COUNT", count)
        # Of 48 pictures one is left for a second batch.
        made = quantize_it(but(quantize_plan, batch_size=batch_size, qat_epochs=1))
        return made.record.candidates[1].epochs[0].train_loss

    # Shares are summed in another order, and what they are taken from is rounded to int8.
    whole = loss(1)
    assert loss(4) == pytest.approx(whole, rel=1e-3)
    assert loss(4, batch_size=40) != pytest.approx(whole, rel=1e-3)  # twin


@dataclass(frozen=True)
class Stored:
    """Training that nothing interrupts, with room for everything."""

    training: Training
    result: Quantized


@pytest.fixture(scope="module")
def stored(
    trained: Trained,
    pictures: Untyped,
    wobbly_plan: Untyped,
    tmp_path_factory: pytest.TempPathFactory,
) -> Stored:
    training = Training(trained, pictures, wobbly_plan, tmp_path_factory.mktemp("stored"))
    return Stored(training, training.go())


def told(quantized: Quantized) -> Untyped:
    """Returns the record without what only says how long it took."""
    record = quantized.record.model_dump()
    for candidate in record["candidates"]:
        for epoch in candidate["epochs"]:
            del epoch["seconds"], epoch["images_per_second"]
    return record


def check_same(one: Quantized, other: Quantized) -> None:
    assert told(one) == told(other)
    for name in ("ptq", "qat"):
        assert one.table(name) == other.table(name)
        weights = other.weights(name)
        assert one.weights(name).keys() == weights.keys()
        assert all(np.array_equal(value, weights[k]) for k, value in one.weights(name).items())


@pytest.mark.slow
def test_what_is_stored_changes_no_weight(
    stored: Stored, trained: Trained, pictures: Untyped, wobbly_plan: Untyped, tmp_path: Path
) -> None:
    poor = Training(trained, pictures, wobbly_plan, tmp_path, budget_bytes=0)
    result = poor.go()
    assert stored.training.shards() >= 2  # validation, and the view that is seen twice
    assert poor.shards() == 0
    check_same(result, stored.result)
    # Twin: pictures that are not changed.
    still = Training(
        trained, pictures, but(wobbly_plan, augment=AugmentSpec(enabled=False)), tmp_path / "still"
    ).go()
    with pytest.raises(AssertionError):
        check_same(still, stored.result)


@pytest.mark.slow
def test_interrupted_training_goes_on_behind_its_last_epoch(
    stored: Stored,
    trained: Trained,
    pictures: Untyped,
    wobbly_plan: Untyped,
    tmp_path: Path,
) -> None:
    training = Training(trained, pictures, wobbly_plan, tmp_path)
    with pytest.raises(InterruptionError):
        training.go(stop_after=0)
    result = training.go()
    assert training.told == [0, 1, 2]
    check_same(result, stored.result)
    computed = [what.partition(":")[0] for what in training.computed]
    # Once each: what was stored is used again. One of the three epochs sees the second view.
    assert computed == ["frozen part, validation", "frozen part, train, view 1 of 2"]
