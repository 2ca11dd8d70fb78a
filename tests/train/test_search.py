"""Strategies, the phase that ships, what is recorded of each, and room for activations."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_network import ALPHA, CLASSES, SIZE_PX, Trained, Untyped, arrays_in, keeping

from edgekit.network.graph import mobilenet_v2, weighted
from edgekit.train.cuts import block_of

tf = pytest.importorskip("tensorflow")

from edgekit.fitting.pictures import Pictures  # noqa: E402 - after the check for TensorFlow
from edgekit.network import keras_model  # noqa: E402
from edgekit.train.unfreezing import train  # noqa: E402

FineTune = Callable[[Untyped], Trained]
SEARCH = {"strategy": "progressive", "unfreeze_from": None, "head_epochs": 1, "phase_epochs": 1}


def tune(plan: Untyped, pictures: Untyped, folder: Path, budget_bytes: int = 10**9) -> Trained:
    """Runs the train stage with a plan, pictures and room for activations."""
    folder.mkdir(exist_ok=True)
    said: list[str] = []
    record = train(
        *pictures,
        len(CLASSES),
        plan,
        folder,
        keeping=keeping(folder / "store", said.append, budget_bytes),
        say=said.append,
        epoch_done=lambda _cut, _epoch, _record: None,
    )
    start = arrays_in(Path(plan.weights))
    return Trained(folder, record, arrays_in(folder / "weights.npz"), start, tuple(said))


def changed(trained: Trained) -> set[str]:
    """Returns the layers with a variable that is not the starting one, bit for bit."""
    return {
        name.split("/")[0]
        for name, value in trained.arrays.items()
        if not np.array_equal(value, trained.start[name])
    }


@pytest.fixture(scope="module")
def ended(fine_tune: FineTune, train_plan: Untyped) -> Trained:
    """Returns a search that may go to block_16_expand, whose phase is ruined by its steps."""
    # Learning rates 1e-3 and 0.5.
    plan = replace(
        train_plan,
        **SEARCH,
        unfreeze_until="block_16_expand",
        patience=9,
        learning_rate_decay=500.0,
    )
    return fine_tune(plan)


@pytest.fixture(scope="module")
def ruined(fine_tune: FineTune, train_plan: Untyped) -> Trained:
    """Returns a fixed cut whose phase is ruined by its steps."""
    return fine_tune(replace(train_plan, unfreeze_learning_rate=0.5))


@pytest.fixture(scope="module")
def whole(fine_tune: FineTune, train_plan: Untyped) -> Trained:
    """Returns the whole network unfrozen, with no activation left to store."""
    return fine_tune(replace(train_plan, unfreeze_from="all", head_epochs=1, phase_epochs=1))


def test_a_search_ends_where_the_recipe_says(ended: Trained) -> None:
    assert [phase.cut for phase in ended.record.phases] == ["head", "Conv_1", "block_16_expand"]
    assert ended.record.strategy == "progressive: block after block, as asked"
    assert ended.record.stopped_because == "block_16_expand was reached (train.unfreeze_until)"


def test_the_best_phase_ships_and_not_the_last(ended: Trained) -> None:
    record = ended.record
    head, best, last = record.phases
    assert (best.improved, last.improved) == (True, False)
    assert record.cut == "Conv_1"
    assert record.unfrozen_layers == ("Conv_1", "logits")
    assert changed(ended) == {"Conv_1", "logits"}
    assert record.validation_loss == best.epochs[best.best_epoch].validation_loss
    assert record.validation_loss < min(head.epochs[0].validation_loss, last.start_loss * 2)
    assert last.epochs[0].validation_loss > 2 * record.validation_loss
    assert record.chosen_because.startswith("Conv_1 has the lowest validation loss")
    assert ended.said[-1] == f"ships: {record.chosen_because}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trained", "ended", "ruined", "whole"])
def test_the_curve_has_a_point_for_each_phase(name: str, request: pytest.FixtureRequest) -> None:
    record = request.getfixturevalue(name).record
    assert [score.cut for score in record.curve] == [phase.cut for phase in record.phases]
    lowest = min(score.validation_loss for score in record.curve)
    for score, phase in zip(record.curve, record.phases, strict=True):
        # The same float32 logits, summed in float64.
        loss = phase.epochs[phase.best_epoch].validation_loss
        assert score.validation_loss == pytest.approx(loss, rel=1e-12)
        assert score.excess == score.validation_loss - lowest
        assert (score.standard_error == 0) == (score.excess == 0)


def test_each_phase_starts_from_the_best_one_before(ended: Trained) -> None:
    head, better, last = ended.record.phases
    # The same weights; only the activations are rounded to float16 at another place.
    assert better.start_loss == pytest.approx(head.epochs[0].validation_loss, rel=1e-3)
    assert last.start_loss == pytest.approx(better.epochs[0].validation_loss, rel=1e-3)
    assert better.epochs[0].validation_loss != pytest.approx(head.epochs[0].validation_loss, 1e-3)


@pytest.mark.slow
def test_a_phase_that_is_not_better_is_not_built_on(
    fine_tune: FineTune, train_plan: Untyped, ended: Trained
) -> None:
    plan = replace(train_plan, **SEARCH, patience=2, min_delta=10.0)
    head, middle, last = fine_tune(plan).record.phases
    loss = head.epochs[0].validation_loss
    assert (middle.improved, last.improved) == (False, False)
    assert last.start_loss == pytest.approx(loss, rel=1e-3)
    assert middle.epochs[0].validation_loss != pytest.approx(loss, rel=1e-3)
    # Only `min_delta` differs so far.
    first = ended.record.phases[1]
    assert middle.epochs[0].validation_loss == first.epochs[0].validation_loss


def test_a_fixed_cut_ships_even_if_it_is_worse(ruined: Trained) -> None:
    record = ruined.record
    head, asked = record.phases
    assert not asked.improved
    assert record.cut == "block_16_project"
    assert changed(ruined) == {"block_16_project", "Conv_1", "logits"}
    assert record.validation_loss == asked.epochs[asked.best_epoch].validation_loss
    assert record.validation_loss > 10 * head.epochs[head.best_epoch].validation_loss
    assert record.strategy == "fixed: from block_16_project, as asked"
    assert record.chosen_because == "block_16_project was asked for"


def test_the_only_phase_of_a_fixed_cut_does_not_end_a_search(
    ruined: Trained, trained: Trained
) -> None:
    for result in (trained, ruined):
        stopped = result.record.stopped_because
        assert stopped == "train.unfreeze_from = 'block_16_project' was asked for"


def test_auto_leaves_it_at_the_head_when_pictures_are_few(
    pictures: Untyped, train_plan: Untyped, tmp_path: Path
) -> None:
    few = Pictures(pictures[0].images[:27], pictures[0].labels[:27], pictures[0].preprocess)
    plan = replace(train_plan, strategy="auto", unfreeze_from=None, head_epochs=1)
    result = tune(plan, (few, pictures[1]), tmp_path / "few")
    assert [phase.cut for phase in result.record.phases] == ["head"]
    assert changed(result) == {"logits"}
    seen = result.record.phases[0].epochs[0]
    assert result.record.strategy == (
        "auto: feature extraction, as there are but 9 pictures in the median class; the head alone "
        f"is right on {seen.validation_accuracy:.1%} of the validation pictures and "
        f"{seen.train_accuracy:.1%} of the augmented training pictures"
    )
    assert f"strategy {result.record.strategy}" in result.said
    assert result.record.stopped_because == "the strategy ends at head"


@pytest.mark.slow
def test_auto_goes_on_with_the_patience_that_it_chose(
    fine_tune: FineTune, train_plan: Untyped
) -> None:
    # 16 pictures of each class: late cuts, and the first phase that is not better ends the search.
    plan = replace(
        train_plan, **{**SEARCH, "strategy": "auto"}, patience=3, unfreeze_learning_rate=0.5
    )
    record = fine_tune(plan).record
    assert record.strategy.startswith("auto: late cuts only, as there are but 16 pictures in")
    assert [phase.cut for phase in record.phases] == ["head", "Conv_1"]
    assert record.cut == "head"
    assert record.stopped_because == "a phase did not lower the validation loss by 0.0"


@pytest.mark.slow
def test_layers_may_be_unfrozen_one_at_a_time(
    fine_tune: FineTune, train_plan: Untyped, ended: Trained
) -> None:
    plan = replace(
        train_plan, **SEARCH, granularity="layer", unfreeze_until="block_16_project", patience=9
    )
    result = fine_tune(plan)
    phases = result.record.phases
    assert [phase.cut for phase in phases] == ["head", "Conv_1", "block_16_project"]
    for phase in phases:
        assert math.isfinite(phase.start_loss)
        assert all(math.isfinite(epoch.validation_loss) for epoch in phase.epochs)
    assert list(phases[2].gradient_norms) == ["block_16", "Conv_1", "head"]
    assert changed(result) == set(result.record.unfrozen_layers)
    # Blocks and layers come to Conv_1 alike.
    known = ended.record.phases[1].epochs[0].validation_loss
    assert phases[1].epochs[0].validation_loss == known


def test_steps_that_are_too_large_are_told_as_forgetting(ruined: Trained, trained: Trained) -> None:
    head, asked = ruined.record.phases
    assert (head.forgetting, asked.forgetting) == (False, True)
    (warning,) = ruined.record.warnings
    assert warning == (
        f"forgetting: unfreezing from block_16_project raised the validation loss from "
        f"{asked.start_loss:.4f} to {asked.epochs[0].validation_loss:.4f} in its first epoch, "
        "and the phase did not make up for it; try a lower train.unfreeze_learning_rate"
    )
    assert f"warning: {warning}" in ruined.said
    # The twin: the same plan with small steps.
    assert not any(phase.forgetting for phase in trained.record.phases)
    assert trained.record.warnings == ()
    assert not any(line.startswith("warning") for line in trained.said)


@pytest.mark.slow
def test_forgetting_that_a_phase_makes_up_for_is_recorded_but_not_warned_of(
    fine_tune: FineTune, train_plan: Untyped, ruined: Trained
) -> None:
    # With seeds 5 to 8 the first epoch raises the loss 3.6 to 10 times; the best is a tenth of it.
    plan = replace(
        train_plan,
        head_epochs=1,
        head_learning_rate=1e-5,
        unfreeze_learning_rate=5e-3,
        phase_epochs=20,
        epoch_patience=20,
    )
    result = fine_tune(plan)
    asked = result.record.phases[1]
    assert asked.epochs[0].validation_loss > 2 * asked.start_loss
    assert (asked.forgetting, asked.improved) == (True, True)
    assert result.record.warnings == ()
    assert not any(line.startswith("warning") for line in result.said)
    # Twin: larger steps, of which it does not recover.
    assert (ruined.record.phases[1].forgetting, len(ruined.record.warnings)) == (True, 1)


def blocks(first: str) -> list[str]:
    """Returns the blocks from a layer on, as the gradient norms name them."""
    names = [node.name for node in weighted(mobilenet_v2(ALPHA))]
    later = names[names.index(first) : -1]
    return [*dict.fromkeys(block_of(name) for name in later), "head"]


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
    plan = replace(
        train_plan,
        head_epochs=1,
        phase_epochs=1,
        head_learning_rate=1e-30,
        unfreeze_learning_rate=1e-30,
        batch_size=48,
        augmentation=None,
        dropout=0.0,
    )
    result = fine_tune(plan)
    model = keras_model.build(
        alpha=ALPHA, input_size_px=SIZE_PX, class_count=3, weights="none", seed=9
    )
    keras_model.assign(model, result.arrays)
    split = pictures[0]
    images = split.normalize(split.images.astype(np.float32))
    names = ("block_16_project/kernel", "Conv_1/kernel", "logits/kernel", "logits/bias")
    variables = [next(v for v in model.variables if v.name == f"{name}:0") for name in names]

    def norms(smoothing: float) -> list[float]:
        targets = tf.one_hot(split.labels, 3) * (1 - smoothing) + smoothing / 3
        with tf.GradientTape() as tape:
            logits = model(images, training=False)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
        block, last, kernel, bias = (
            float(tf.norm(gradient)) for gradient in tape.gradient(loss, variables)
        )
        return [block, last, math.hypot(kernel, bias)]

    assert not result.record.phases[1].forgetting
    found = result.record.phases[1].gradient_norms
    assert list(found) == ["block_16", "Conv_1", "head"]
    # Activations in float16 are off by up to 5e-4 of their size.
    assert list(found.values()) == pytest.approx(norms(0.1), rel=1e-3)
    assert list(found.values()) != pytest.approx(norms(0.05), rel=1e-3)


def test_another_view_is_another_epoch(
    fine_tune: FineTune, train_plan: Untyped, trained: Trained
) -> None:
    plan = replace(train_plan, strategy="head", unfreeze_from=None)
    result = fine_tune(plan)
    assert [phase.cut for phase in result.record.phases] == ["head"]
    assert result.record.strategy == "head: feature extraction alone, as asked"
    (first, second), (same, other) = (
        [epoch.train_loss for epoch in run.record.phases[0].epochs] for run in (result, trained)
    )
    # Both start with the first view; then one sees it again and the other the second view.
    assert first == pytest.approx(same, rel=1e-4)
    assert second != pytest.approx(other, rel=1e-4)


def test_still_pictures_have_one_view(fine_tune: FineTune, train_plan: Untyped) -> None:
    plan = replace(train_plan, strategy="head", unfreeze_from=None, augmentation=None, head_views=3)
    prefix = fine_tune(plan).record.phases[0].prefix
    assert (prefix.views, prefix.views_stored, prefix.views_refused) == (1, 1, 0)


class InterruptionError(Exception):
    """What ends a run in the middle, as Ctrl-C does."""


@pytest.mark.slow
def test_a_phase_behind_a_finished_one_goes_on_where_it_was_interrupted(
    pictures: Untyped, train_plan: Untyped, trained: Trained, tmp_path: Path
) -> None:
    told: list[tuple[str, int]] = []

    def go(stop: bool) -> Untyped:
        def done(cut: str, epoch: int, _record: Untyped) -> None:
            told.append((cut, epoch))
            if stop and told[-1] == ("block_16_project", 1):
                raise InterruptionError

        place = keeping(tmp_path / "store", lambda _line: None)
        return train(
            *pictures, len(CLASSES), train_plan, tmp_path, keeping=place,
            say=lambda _line: None, epoch_done=done,
        )  # fmt: skip

    with pytest.raises(InterruptionError):
        go(stop=True)
    assert told == [("head", 0), ("head", 1), ("block_16_project", 0), ("block_16_project", 1)]
    record = go(stop=False)
    assert told[4:] == [("block_16_project", 2)]
    assert record.validation_loss == trained.record.validation_loss
    assert not (tmp_path / "store" / "train-epoch").exists()


class CountedImages:
    """Pictures on disk that count how often one is read."""

    def __init__(self, images: Untyped) -> None:
        self.images = images
        self.shape, self.dtype = images.shape, images.dtype
        self.read = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Untyped) -> Untyped:
        found = self.images[rows]
        self.read += len(found) if np.ndim(rows) else 1
        return found


@pytest.mark.slow
def test_all_cuts_behind_an_anchor_share_one_pass_over_the_pictures(
    pictures: Untyped, train_plan: Untyped, tmp_path: Path
) -> None:
    images = CountedImages(pictures[0].images)
    counted = Pictures(images, pictures[0].labels, pictures[0].preprocess)
    plan = replace(train_plan, **{**SEARCH, "phase_epochs": 2}, unfreeze_until="Conv_1", views=1)
    result = tune(plan, (counted, pictures[1]), tmp_path / "counted")
    assert [phase.cut for phase in result.record.phases] == ["head", "Conv_1"]
    assert images.read == 48
    # The twin: where nothing can be kept, every one of the three epochs reads all of them.
    again = CountedImages(pictures[0].images)
    tune(plan, (replace(counted, images=again), pictures[1]), tmp_path / "again", 0)
    assert again.read == 3 * 48


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
    """Returns a run with room for validation, and for one view at the anchor."""
    at_anchor, at_cut = trained.record.phases[1].prefix.bytes_per_image
    room = at_cut * 24 + at_anchor * (24 + 48)
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


def test_what_fits_is_stored_and_the_rest_is_told(
    trained: Trained, cramped: Trained, roomless: Trained
) -> None:
    at_anchor, at_cut = trained.record.phases[1].prefix.bytes_per_image
    # Of the last phase's three epochs two read the first view, and one the second; no cut follows,
    # but what the head phase stored at the anchor stays.
    assert stored_bytes(trained) == at_cut * (24 + 48) + at_anchor * (24 + 2 * 48)
    assert stored_bytes(cramped) == at_cut * 24 + at_anchor * (24 + 48)
    assert stored_bytes(roomless) == 0
    found = [
        (last.views, last.views_stored, last.views_at_anchor, last.views_refused > 0)
        for last in (run.record.phases[1].prefix for run in (trained, cramped, roomless))
    ]
    assert found == [(2, 1, 2, False), (2, 0, 1, True), (2, 0, 0, True)]
    notes = [
        [line for line in run.said if line.startswith("note: there was no room")]
        for run in (trained, cramped, roomless)
    ]
    assert [len(lines) for lines in notes] == [0, 1, 1]


def test_no_more_views_are_missed_than_there_are(roomless: Trained) -> None:
    notes = [line for line in roomless.said if line.startswith("note: there was no room")]
    assert notes
    for note in notes:
        missing, views = re.findall(r"store (\d+) of (\d+) views", note)[0]
        assert int(missing) <= int(views)


def test_nothing_is_missing_where_nothing_can_be_stored(whole: Trained) -> None:
    last = whole.record.phases[1].prefix
    assert last.tensors == ("input",)
    assert last.bytes_per_image == ()
    # All room is there: the pictures themselves enter.
    assert last.views_refused == 0
    assert not any("room" in line for line in whole.said)
