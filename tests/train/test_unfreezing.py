"""Progressive unfreezing on the tiny pictures: what may change does, what may not does not."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tiny_network import ALPHA, CLASSES, SIZE_PX, Trained, Untyped

from edgekit.network.graph import mobilenet_v2, weighted
from edgekit.records import FloatModelRecord

pytest.importorskip("tensorflow")

from edgekit.fitting.loop import cross_entropy
from edgekit.fitting.pictures import compiled
from edgekit.network import keras_model


@pytest.fixture(scope="module")
def searched(fine_tune: Callable[[Untyped], Trained], train_plan: Untyped) -> Trained:
    """Returns three phases of which the steps of all after the first are far too large."""
    plan = replace(
        train_plan,
        strategy="progressive",
        unfreeze_from=None,
        head_epochs=1,
        phase_epochs=1,
        patience=2,
        unfreeze_learning_rate=0.5,
    )
    return fine_tune(plan)


def changed(trained: Trained) -> set[str]:
    """Returns the layers with a variable that is not the starting one, bit for bit."""
    start = trained.start
    return {
        name.split("/")[0]
        for name, value in trained.arrays.items()
        if not np.array_equal(value, start[name])
    }


def test_only_the_layers_from_the_cut_on_change(trained: Trained) -> None:
    # block_16_project and Conv_1 train, the head is new; no BatchNorm moves, and nothing before.
    assert changed(trained) == {"block_16_project", "Conv_1", "logits"}
    assert set(trained.record.unfrozen_layers) == changed(trained)
    assert trained.record.cut == "block_16_project"


def test_every_array_of_the_network_is_written(trained: Trained) -> None:
    assert set(trained.arrays) == set(trained.start)
    assert {array.dtype for array in trained.arrays.values()} == {np.dtype(np.float32)}


def test_a_phase_that_is_not_better_leaves_no_trace(searched: Trained) -> None:
    assert [phase.improved for phase in searched.record.phases] == [True, False, False]
    assert searched.record.cut == "head"
    assert changed(searched) == {"logits"}
    assert searched.record.unfrozen_layers == ("logits",)
    assert searched.record.stopped_because == (
        "2 phases in a row did not lower the validation loss by 0.0"
    )


def test_the_search_goes_from_the_head_towards_the_input(searched: Trained) -> None:
    phases = searched.record.phases
    assert [phase.cut for phase in phases] == ["head", "Conv_1", "block_16_expand"]
    trainable = [phase.trainable_parameters for phase in phases]
    shapes = {name: value.size for name, value in searched.arrays.items()}
    head = shapes["logits/kernel"] + shapes["logits/bias"]
    last = shapes["Conv_1/kernel"]
    block = sum(size for name, size in shapes.items() if name.endswith("kernel") and "16" in name)
    assert trainable == [head, head + last, head + last + block]
    assert [phase.learning_rate for phase in phases] == [1e-2, 0.5, 0.25]


def test_each_phase_is_told_in_a_line(searched: Trained) -> None:
    told = [line for line in searched.said if line.startswith("phase ")]
    assert [line.split(": ")[1] for line in told] == ["from head", "from Conv_1",
                                                      "from block_16_expand"]  # fmt: skip
    for line, phase in zip(told, searched.record.phases, strict=True):
        assert f"{phase.trainable_parameters:,} parameters" in line
        assert f"validation loss {phase.epochs[phase.best_epoch].validation_loss:.4f}" in line
        assert ("not better" in line) == (not phase.improved)
    assert searched.said[1] == "strategy progressive: block after block, as asked"
    assert searched.said[-1].startswith("ships: head has the lowest validation loss")


@pytest.mark.parametrize("name", ["trained", "searched"])
def test_the_record_is_of_the_weights_that_were_written(
    name: str, pictures: Untyped, request: pytest.FixtureRequest
) -> None:
    result: Trained = request.getfixturevalue(name)
    record, validation = result.record, pictures[1]
    assert (record.alpha, record.input_size_px, record.class_count) == (ALPHA, SIZE_PX, 3)
    model = keras_model.build(
        alpha=ALPHA,
        input_size_px=SIZE_PX,
        class_count=len(CLASSES),
        weights="none",
        seed=99,
    )
    keras_model.assign(model, result.arrays)
    logits = compiled(lambda images: model(images, training=False), validation)()
    # The phase ran its frozen part with BatchNorm folded and rounded its activations to float16,
    # 2e-4 of their size: a thousandth of the loss. The twin: an epoch more is another loss.
    loss = cross_entropy(logits, validation.labels)
    assert record.validation_loss == pytest.approx(loss, rel=1e-3)
    others = {e.validation_loss for p in record.phases for e in p.epochs} - {record.validation_loss}
    assert others
    assert all(other != pytest.approx(loss, rel=1e-3) for other in others)
    assert record.validation_accuracy == (logits.argmax(1) == validation.labels).mean()
    # The restored weights are those of the best epoch of the phase that ships.
    best = next(phase for phase in record.phases if phase.cut == record.cut)
    lowest = min(epoch.validation_loss for epoch in best.epochs)
    assert best.epochs[best.best_epoch].validation_loss == lowest == record.validation_loss


def test_unfreezing_lowered_the_loss(trained: Trained) -> None:
    head, further = trained.record.phases
    assert further.improved
    assert trained.record.validation_loss < min(epoch.validation_loss for epoch in head.epochs)


def without_times(record: FloatModelRecord) -> Untyped:
    told = record.model_dump()
    for phase in told["phases"]:
        for timed in (*phase["epochs"], phase["prefix"]):
            del timed["seconds"], timed["images_per_second"]
    return told


def test_the_same_plan_gives_the_same_bits(
    trained: Trained, fine_tune: Callable[[Untyped], Trained], train_plan: Untyped
) -> None:
    again = fine_tune(train_plan)
    assert without_times(again.record) == without_times(trained.record)
    assert all(np.array_equal(again.arrays[name], trained.arrays[name]) for name in trained.arrays)


def test_another_seed_gives_another_network(
    trained: Trained, fine_tune: Callable[[Untyped], Trained], train_plan: Untyped
) -> None:
    plan = replace(train_plan, seed=6, strategy="head", unfreeze_from=None, head_epochs=1)
    other = fine_tune(plan)
    assert [phase.cut for phase in other.record.phases] == ["head"]
    assert not np.array_equal(other.arrays["logits/kernel"], trained.arrays["logits/kernel"])


def test_a_cut_inside_a_residual_block_trains_its_second_half(
    fine_tune: Callable[[Untyped], Trained], train_plan: Untyped
) -> None:
    plan = replace(train_plan, unfreeze_from="block_15_project", head_epochs=1, phase_epochs=1)
    result = fine_tune(plan)
    names = [node.name for node in weighted(mobilenet_v2(ALPHA))]
    expected = names[names.index("block_15_project") :]
    assert list(result.record.unfrozen_layers) == expected
    assert changed(result) == set(expected)
