"""The training loop: it learns, stops, restores the best epoch and repeats itself bit for bit."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import CLASSES, Untyped, checkpoints, coloured, shelf

from edgekit.errors import TrainingError
from edgekit.recipe import AugmentSpec
from edgekit.records import EpochRecord, Preprocess

tf = pytest.importorskip("tensorflow")

from edgekit.fitting import cores, loop  # noqa: E402 - after the check for TensorFlow
from edgekit.fitting.loop import (  # noqa: E402
    AVERAGING,
    Fit,
    Schedule,
    Trainer,
    enough_epochs,
    epoch_order,
    fit,
    learning_rate,
)
from edgekit.fitting.losses import cross_entropies, validation_losses  # noqa: E402
from edgekit.fitting.pictures import Pictures, compiled  # noqa: E402
from edgekit.network.graph import INPUT  # noqa: E402
from edgekit.prefix.frozen import CutFeed, activations_of, plan_storage  # noqa: E402
from edgekit.prefix.level import Compute, Level  # noqa: E402

SIDE = 8
# Of the linear model on 40 pictures in batches of 16: it overfits from the third epoch on.
OVERFITTING = Schedule(peak=0.3, epochs=6, warmup_steps=1)
WOBBLY = AugmentSpec(flip=True, shift=0.1, zoom=0.1, brightness=0.1, contrast=0.1)


def pictures(folder: Path, count: int, seed: int) -> Pictures:
    """Returns memory-mapped pictures of three classes that a linear model separates."""
    images, labels = coloured(count, seed, SIDE)
    np.save(folder / f"{seed}.npy", images)
    contract = Preprocess(height_px=SIDE, width_px=SIDE)
    return Pictures(np.load(folder / f"{seed}.npy", mmap_mode="r"), labels, contract)


def feeds(
    folder: Path,
    train: Pictures,
    validation: Pictures,
    augmentation: AugmentSpec | None = WOBBLY,
) -> tuple[CutFeed, CutFeed]:
    """Returns feeds of the pictures themselves, those of training in three versions."""
    made = activations_of(
        None,
        train=train,
        validation=validation,
        augmentation=augmentation,
        views=3,
        seed=1,
        shelf=shelf(folder / "store"),
    )
    return CutFeed(made["train"], (INPUT,)), CutFeed(made["validation"], (INPUT,))


def linear() -> Untyped:
    import tf_keras

    layers = tf_keras.layers
    images = layers.Input((SIDE, SIDE, 3))
    pooled = layers.GlobalAveragePooling2D()(images)
    dense = layers.Dense(len(CLASSES), kernel_initializer="zeros", name="dense")
    return tf_keras.Model([images], dense(pooled))


def losses_of(_tensors: Untyped, labels: Untyped, logits: Untyped) -> Untyped:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def fitted(
    tail: Untyped,
    loss: Untyped,
    train: Untyped,
    validation: Untyped,
    folder: Path,
    *,
    schedule: Schedule,
    batch_size: int,
) -> Fit:
    """Returns a fit to its last epoch, with what is of no matter to the test."""
    trainer = Trainer(tail, tail.trainable_variables, 1, loss, train, batch_size=batch_size)
    return fit(
        trainer,
        train,
        validation,
        schedule=schedule,
        patience=schedule.epochs,
        seed=1,
        checkpoints=checkpoints(folder),
    )


class Watched:
    """A feed that remembers what was asked of it, in order."""

    def __init__(self, feed: CutFeed) -> None:
        self.feed = feed
        self.prepared: list[int] = []
        self.read_rows: list[tuple[int, npt.NDArray[np.int64]]] = []

    def __getattr__(self, name: str) -> Untyped:
        return getattr(self.feed, name)

    def prepare(self, epoch: int) -> None:
        self.prepared.append(epoch)
        self.feed.prepare(epoch)

    def read(self, epoch: int, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Untyped], ...]:
        assert self.prepared[-1] == epoch
        self.read_rows.append((epoch, rows))
        return self.feed.read(epoch, rows)

    def batches(self, size: int) -> list[tuple[npt.NDArray[Untyped], npt.NDArray[np.int32]]]:
        """Returns (pictures, labels) of every training step, in order."""
        return [
            (self.feed.read(epoch, rows[start : start + size])[0],
             self.feed.labels[rows[start : start + size]])
            for epoch, rows in self.read_rows
            for start in range(0, len(rows), size)
        ]  # fmt: skip


@dataclass
class Run:
    """A fit of the linear model, and what was seen on the way."""

    folder: Path
    batch_size: int = 16  # 40 is no multiple: the last batch is smaller
    augmentation: AugmentSpec | None = WOBBLY
    tail: Untyped = field(default_factory=linear)
    seen: list[EpochRecord] = field(default_factory=list)
    variables: list[list[np.ndarray]] = field(default_factory=list)
    told: list[tuple[str, int, int]] = field(default_factory=list)

    def validation(self) -> Pictures:
        """Returns pictures of which a tenth has a wrong label: being too sure costs there."""
        split = pictures(self.folder, 70, 2)
        split.labels[:7] = (split.labels[:7] + 1) % len(CLASSES)
        return split

    def go(
        self,
        schedule: Schedule,
        *,
        seed: int = 1,
        patience: int = 100,
        loss: Untyped = losses_of,
        averaging: float = 0.0,
    ) -> Fit:
        train, validation = feeds(
            self.folder, pictures(self.folder, 40, 1), self.validation(), self.augmentation
        )
        self.train = Watched(train)
        saved = checkpoints(self.folder / f"run {id(self)}")

        def done(epoch: int, record: EpochRecord) -> None:
            assert epoch == len(self.seen)
            self.seen.append(record)
            self.variables.append([variable.numpy() for variable in self.tail.variables])

        trainer = Trainer(
            self.tail,
            self.tail.trainable_variables,
            1,
            loss,
            self.train,
            batch_size=self.batch_size,
            averaging=averaging,
        )
        return fit(
            trainer,
            self.train,
            validation,
            schedule=schedule,
            patience=patience,
            seed=seed,
            checkpoints=saved,
            epoch_done=done,
            progress=lambda *told: self.told.append(told),
        )

    def validation_loss(self) -> float:
        validation = self.validation()
        return float(validation_losses(compiled(self.tail, validation)(), validation.labels).mean())


def test_the_loss_falls_on_pictures_that_can_be_told_apart(tmp_path: Path) -> None:
    run = Run(tmp_path)
    chance = float(np.log(len(CLASSES)))
    assert run.validation_loss() == pytest.approx(chance, rel=1e-6)
    result = run.go(Schedule(0.1, 8, 3))
    assert list(result.epochs) == run.seen
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    assert result.epochs[-1].validation_loss < 0.8 * chance
    assert result.epochs[-1].validation_accuracy == 0.9


def test_the_record_is_of_the_variables_at_the_end_of_the_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path)
    result = run.go(Schedule(0.1, 1, 1))
    # The same function of the same variables; only float64 sums may be ordered otherwise.
    assert result.epochs[0].validation_loss == pytest.approx(run.validation_loss(), rel=1e-12)


def test_the_training_loss_is_the_mean_over_the_changed_pictures(tmp_path: Path) -> None:
    run = Run(tmp_path)
    random = np.random.default_rng(6)
    run.tail.set_weights([random.normal(size=(3, 3)), random.normal(size=3)])
    result = run.go(Schedule(1e-30, 1, 1))  # steps that change nothing
    images = run.train.feed.read(0, np.arange(40))[0]
    logits = run.tail([images], training=False).numpy()
    (epoch,) = result.epochs
    # float32 sums of 40 rows.
    expected = cross_entropies(logits, run.train.labels).mean()
    assert epoch.train_loss == pytest.approx(expected, rel=1e-5)
    assert epoch.train_accuracy == (logits.argmax(1) == run.train.labels).mean()
    # Twin: the pictures of another view.
    others = run.tail([run.train.feed.read(1, np.arange(40))[0]], training=False).numpy()
    assert epoch.train_loss != pytest.approx(
        cross_entropies(others, run.train.labels).mean(), rel=1e-5
    )


def test_the_best_epoch_is_restored(tmp_path: Path) -> None:
    run = Run(tmp_path)
    result = run.go(OVERFITTING)
    losses = [record.validation_loss for record in result.epochs]
    assert result.best_epoch == int(np.argmin(losses)) == 1
    assert losses[-1] > losses[1]
    for variable, seen, last in zip(
        run.tail.variables, run.variables[1], run.variables[-1], strict=True
    ):
        assert np.array_equal(variable.numpy(), seen)
        assert not np.array_equal(last, seen)
    assert run.validation_loss() == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (9, 6)])
def test_it_stops_when_the_loss_stops_falling(tmp_path: Path, patience: int, epochs: int) -> None:
    result = Run(tmp_path).go(OVERFITTING, patience=patience)
    assert result.best_epoch == 1
    assert len(result.epochs) == epochs


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    losses, (first, again, other) = [], (Run(tmp_path) for _ in range(3))
    for run, seed in ((first, 1), (again, 1), (other, 2)):
        result = run.go(Schedule(0.1, 2, 1), seed=seed)
        losses.append([epoch.train_loss for epoch in result.epochs])

    def same(one: Run, two: Run) -> bool:
        pairs = zip(one.tail.variables, two.tail.variables, strict=True)
        return all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs)

    assert same(first, again)
    assert losses[0] == losses[1]
    assert not same(first, other)


def test_only_trainable_variables_change(tmp_path: Path) -> None:
    run = Run(tmp_path)
    dense = run.tail.get_layer("dense")
    dense.add_weight(name="fixed", shape=(2,), initializer="ones", trainable=False)
    run.go(Schedule(0.1, 1, 1))
    assert dense.non_trainable_weights[0].numpy().tolist() == [1, 1]
    assert all(variable.numpy().any() for variable in run.tail.trainable_variables)


def test_a_loss_that_is_not_a_number_ends_the_training(tmp_path: Path) -> None:
    def broken(_tensors: Untyped, _labels: Untyped, logits: Untyped) -> Untyped:
        return tf.math.log(-tf.abs(tf.reduce_mean(logits, 1)) - 1.0)

    with pytest.raises(TrainingError, match="the loss became nan") as caught:
        Run(tmp_path).go(Schedule(0.1, 1, 1), loss=broken)
    assert "lower the learning rate" in caught.value.remedy


def test_weights_that_overflow_in_the_last_step_end_the_training(tmp_path: Path) -> None:
    run = Run(tmp_path)
    # float32 ends at 3.4e38. The loss of this only step is still that of the first weights; the
    # validation after it is the first to see infinite logits.
    loud = Preprocess(height_px=SIDE, width_px=SIDE, scale=(10.0,) * 3, offset=(0.0,) * 3)
    splits = (replace(pictures(tmp_path, *split), preprocess=loud) for split in ((16, 1), (70, 2)))
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf)"):
        fitted(
            run.tail,
            losses_of,
            *feeds(tmp_path, *splits, augmentation=None),
            tmp_path / "store",
            schedule=Schedule(3e38, 1, 1),
            batch_size=16,
        )
    assert list((tmp_path / "store").glob("epoch/*")) == []  # and no such epoch is kept


def test_the_seconds_of_an_epoch_leave_the_frozen_part_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()  # every look at the clock finds it one second later
    monkeypatch.setattr(cores, "COUNT", 1)
    monkeypatch.setattr("edgekit.fitting.loop.time", SimpleNamespace(monotonic=seconds.__next__))

    class Slow(Watched):
        def prepare(self, epoch: int) -> None:
            next(itertools.islice(seconds, 1000, None))
            super().prepare(epoch)

        def read(self, epoch: int, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Untyped], ...]:
            next(itertools.islice(seconds, 100, None))
            return super().read(epoch, rows)

    train, validation = feeds(tmp_path, pictures(tmp_path, 40, 1), pictures(tmp_path, 70, 2))
    result = fitted(
        linear(),
        losses_of,
        Slow(train),
        Slow(validation),
        tmp_path / "run",
        schedule=Schedule(0.1, 2, 1),
        batch_size=40,
    )
    # One call of the training steps, and five of validation: 70 rows, sixteen at a time.
    assert [record.seconds for record in result.epochs] == [6, 6]
    assert [record.images_per_second for record in result.epochs] == [40, 40]
    assert next(seconds) > 2 * (1000 + 3 * 100)


def test_the_loss_sees_what_does_not_enter(tmp_path: Path) -> None:
    import tf_keras

    mixing = np.array([[1, -2, 0], [0, 1, 3], [2, 0, 1]], np.float32)

    def compute(
        tensors: Sequence[npt.NDArray[np.float32]],
    ) -> tuple[npt.NDArray[np.float16], ...]:
        means = tensors[0].mean((1, 2))
        return means.astype(np.float16), (means @ mixing).astype(np.float16)

    def the_other_way_round(
        tensors: Sequence[npt.NDArray[np.float32]],
    ) -> tuple[npt.NDArray[np.float16], ...]:
        return compute(tensors)[::-1]

    def first_loss(answer: Compute, *names: str) -> float:
        level = Level(names[0], dict.fromkeys(names, (3,)), answer, names[0])
        entering = tf_keras.layers.Input((3,))
        dense = tf_keras.layers.Dense(3, kernel_initializer="zeros")
        tail = tf_keras.Model([entering], dense(entering))
        place = shelf(tmp_path / "store")
        made = activations_of(
            level,
            train=pictures(tmp_path, 40, 1),
            validation=pictures(tmp_path, 70, 2),
            augmentation=None,
            views=1,
            seed=1,
            shelf=place,
        )
        plan_storage(made, epochs=1, again=False, shelf=place)
        result = fitted(
            tail,
            lambda tensors, _labels, logits: tf.reduce_mean(tf.square(logits - tensors[1]), 1),
            CutFeed(made["train"], names),
            CutFeed(made["validation"], names),
            tmp_path / names[0],
            schedule=Schedule(0.1, 1, 1),
            batch_size=40,
        )
        return result.epochs[0].train_loss

    # The only step starts from logits of zero.
    (_, mixed) = compute([np.float32(pictures(tmp_path, 40, 1).images) / 128 - 1])
    expected = np.square(mixed.astype(np.float64)).mean()
    assert first_loss(compute, "means", "mixed") == pytest.approx(expected, rel=1e-5)
    # Twin: the tensors the other way round.
    found = first_loss(the_other_way_round, "mixed", "means")
    assert found != pytest.approx(expected, rel=1e-5)


def test_the_pictures_on_disk_are_left_as_they_were(tmp_path: Path) -> None:
    train, validation = pictures(tmp_path, 40, 1), pictures(tmp_path, 70, 2)
    files = [tmp_path / "1.npy", tmp_path / "2.npy"]
    before = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    # Writable maps: a change would reach the file instead of failing.
    writable = [
        Pictures(np.load(file, mmap_mode="r+"), split.labels, split.preprocess)
        for file, split in zip(files, (train, validation), strict=True)
    ]
    fitted(
        linear(),
        losses_of,
        *feeds(tmp_path, *writable),
        tmp_path / "store",
        schedule=Schedule(0.1, 1, 1),
        batch_size=16,
    )
    for split in writable:
        split.images.flush()  # type: ignore[attr-defined] - a numpy.memmap
    assert [hashlib.sha256(file.read_bytes()).digest() for file in files] == before


def test_a_long_epoch_shows_how_far_it_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.fitting.loop._CALL_BYTES", 1)  # one batch in a call
    run = Run(tmp_path)
    first, _ = run.go(Schedule(1e-2, 2, 1)).epochs
    assert [(seen, of) for _, seen, of in run.told] == [
        (seen, 80) for seen in (16, 32, 40, 56, 72, 80)
    ]
    # In the second epoch with the curve up to the first.
    words = [told for told, _, _ in run.told]
    assert words[:3] == [""] * 3
    assert f"validation loss {first.validation_loss:.3f}, top-1" in words[3]
    assert words[3:] == words[3:4] * 3


def test_every_epoch_reads_every_row_of_its_own_view_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go(Schedule(0.1, 4, 1))
    assert run.train.prepared == [0, 1, 2, 3]
    orders = {
        epoch: np.concatenate([rows for number, rows in run.train.read_rows if number == epoch])
        for epoch in range(4)
    }
    assert all(np.array_equal(np.sort(order), np.arange(40)) for order in orders.values())
    assert len({order.tobytes() for order in orders.values()}) == 4
    # Three views: the fourth epoch sees the first again, in an order of its own.
    seen = [run.train.feed.read(epoch, np.arange(40))[0] for epoch in range(4)]
    same = [np.array_equal(images, seen[0]) for images in seen]
    assert same == [True, False, False, True]


def test_the_logits_are_those_before_the_first_step_and_of_the_best_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path)
    result = run.go(OVERFITTING)
    labels = run.validation().labels
    assert result.start.dtype == result.logits.dtype == np.float32
    assert not result.start.any()  # the model starts from zeros
    assert validation_losses(result.logits, labels).mean() == result.epochs[1].validation_loss
    assert result.logits == pytest.approx(compiled(run.tail, run.validation())(), rel=1e-6)


# A row is 768 bytes: one batch in each call or three, instead of 8 and the 12 that are left.
@pytest.mark.parametrize(("call_bytes", "batches"), [(1, 1), (3 * 2 * 768, 3)])
def test_batches_are_the_same_however_many_go_into_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_bytes: int, batches: int
) -> None:
    usual, split = Run(tmp_path, batch_size=2), Run(tmp_path, batch_size=2)
    schedule = Schedule(0.1, 2, 3)
    expected = usual.go(schedule)
    monkeypatch.setattr(loop, "_CALL_BYTES", call_bytes)
    result = split.go(schedule)
    assert [len(rows) for _, rows in usual.train.read_rows] == [8 * 2, 12 * 2] * 2
    assert [len(rows) for _, rows in split.train.read_rows[:3]] == [batches * 2] * 3
    assert max(len(rows) for _, rows in split.train.read_rows) == batches * 2
    for one, other in zip(usual.variables, split.variables, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert np.array_equal(result.logits, expected.logits)
    # Those of the first call.
    _, norms = by_keras(
        usual, rates_of(schedule, 20), pytest.importorskip("tf_keras").optimizers.Adam()
    )
    for fitted, count in ((expected, 8), (result, batches)):
        watched = np.sqrt(np.square(norms[:count]).mean(0))
        assert fitted.gradient_norms == pytest.approx(watched, rel=1e-5)
    # The losses of a call are added in float32.
    for one, other in zip(expected.epochs, result.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-6)
        assert other.train_accuracy == one.train_accuracy
        assert other.validation_loss == one.validation_loss


def rates_of(schedule: Schedule, epoch_steps: int) -> npt.NDArray[np.float64]:
    """Returns the learning rate of every step, from the formulas in float64."""
    total = schedule.epochs * epoch_steps
    warmup = max(1, min(schedule.warmup_steps, total // 4))
    rising = schedule.peak * np.arange(1, warmup + 1) / warmup
    done = np.arange(total - warmup) / max(1, total - warmup)
    return np.concatenate([rising, schedule.peak * (1 + np.cos(np.pi * done)) / 2])


@pytest.mark.parametrize(
    ("schedule", "epoch_steps", "warmup"),
    [
        (Schedule(1e-3, 4, 5), 7, 5),
        (Schedule(0.3, 1, 3), 100, 3),
        (Schedule(0.3, 5, 100), 12, 15),  # a quarter of all steps
        (Schedule(2.0, 3, 0), 1, 1),
        (Schedule(2.0, 1, 10), 1, 1),
    ],
)
def test_the_rate_rises_along_a_line_and_falls_along_a_cosine(
    schedule: Schedule, epoch_steps: int, warmup: int
) -> None:
    total = schedule.epochs * epoch_steps
    numbers = schedule.peak, *schedule.lengths(epoch_steps)
    traced = tf.function(lambda step: learning_rate(step, *numbers), autograph=False)
    found = np.array([traced(tf.constant(step, tf.float32)).numpy() for step in range(total)])
    # A few roundings of float32.
    bound = 1e-6 * schedule.peak
    assert found.dtype == np.float32
    assert np.abs(found - rates_of(schedule, epoch_steps)).max() <= bound
    # As the formulas say: an equal share more in each step of the warm-up, then the peak; half of
    # it half-way; nothing behind the last step.
    assert found[:warmup] == pytest.approx(schedule.peak * np.arange(1, warmup + 1) / warmup)
    assert found.max() == pytest.approx(schedule.peak)
    half_way = learning_rate(tf.constant((total + warmup) / 2, tf.float32), *numbers)
    behind = learning_rate(tf.constant(total, tf.float32), *numbers)
    if total > warmup:
        assert float(half_way) == pytest.approx(schedule.peak / 2)
        assert abs(float(behind)) <= bound
        assert 0 < found[-1] < schedule.peak or total == warmup + 1
        # Twins: another peak, one more epoch, and one step later.
        for other in (
            rates_of(replace(schedule, peak=1.01 * schedule.peak), epoch_steps),
            rates_of(replace(schedule, epochs=schedule.epochs + 1), epoch_steps)[:total],
            np.roll(rates_of(schedule, epoch_steps), 1),
        ):
            assert np.abs(found - other).max() > bound
    if warmup > 1:
        other = rates_of(replace(schedule, warmup_steps=warmup - 1), epoch_steps)
        assert np.abs(found - other).max() > bound


def by_keras(
    run: Run,
    rates: npt.NDArray[np.float64],
    optimizer: Untyped,
    averaging: float = 0.0,
    start: float = 0.0,
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float64]]:
    """Returns the variables after the run's batches, and (steps, variables) gradient norms.

    With `averaging`, of the variables the exponential means with this decay over the steps; where
    they were before the first one has `start` of the weight that it has without correction.
    """
    tail = linear()
    batches = run.train.batches(run.batch_size)
    norms = []
    seen = [[variable.numpy().astype(np.float64) for variable in tail.variables]]
    weights = [start * averaging ** len(batches)]
    for step, (images, labels) in enumerate(batches):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(losses_of(None, labels, tail([images], training=True)))
        gradients = tape.gradient(loss, tail.trainable_variables)
        optimizer.learning_rate = rates[step]
        optimizer.apply_gradients(zip(gradients, tail.trainable_variables, strict=True))
        norms.append([float(np.linalg.norm(gradient)) for gradient in gradients])
        weights.append((1 - averaging) * averaging ** (len(batches) - 1 - step))
        seen.append([variable.numpy().astype(np.float64) for variable in tail.variables])
    means = [np.average(values, 0, weights) for values in zip(*seen, strict=True)]
    return [mean.astype(np.float32) for mean in means], np.array(norms)


def test_the_steps_are_those_of_adam(tmp_path: Path) -> None:
    adam = pytest.importorskip("tf_keras").optimizers.Adam
    run, schedule = Run(tmp_path, batch_size=4), Schedule(0.05, 2, 3)
    result = run.go(schedule)
    rates = rates_of(schedule, 10)
    expected, norms = by_keras(run, rates, adam())
    assert len(norms) == 20

    def off(variables: list[npt.NDArray[np.float32]]) -> float:
        pairs = zip(run.variables[-1], variables, strict=True)
        return max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)

    # The same formula in float32. What rounding does to the variables comes back by way of the
    # gradients: 4e-6 here.
    assert off(expected) <= 1e-5
    # Twins: other constants, no warm-up, one rate throughout, and a schedule for each epoch.
    assert off(by_keras(run, rates, adam(epsilon=1e-3))[0]) > 1e-5
    assert off(by_keras(run, rates, adam(beta_2=0.99))[0]) > 1e-5
    for other in (
        rates_of(replace(schedule, warmup_steps=1), 10),
        np.full(20, 0.05),
        np.tile(rates_of(replace(schedule, epochs=1), 10), 2),
    ):
        assert off(by_keras(run, other, adam())[0]) > 1e-5
    # Of the first 8 steps, the root mean square.
    watched = np.sqrt(np.square(norms[:8]).mean(0))
    assert result.gradient_norms == pytest.approx(watched, rel=1e-5)
    assert result.gradient_norms != pytest.approx(np.sqrt(np.square(norms[:9]).mean(0)), rel=1e-5)


def test_nothing_is_left_of_a_phase_before(tmp_path: Path) -> None:
    train, validation = feeds(tmp_path, pictures(tmp_path, 40, 1), pictures(tmp_path, 70, 2))
    tail = linear()
    zeros = [variable.numpy() for variable in tail.variables]
    trainer = Trainer(
        tail, tail.trainable_variables, 1, losses_of, train, batch_size=16, averaging=AVERAGING
    )

    def logits(place: str, schedule: Schedule) -> npt.NDArray[np.float32]:
        return fit(
            trainer,
            train,
            validation,
            schedule=schedule,
            patience=9,
            seed=1,
            checkpoints=checkpoints(tmp_path / place),
        ).logits

    def from_zero(place: str, schedule: Schedule) -> npt.NDArray[np.float32]:
        for variable, value in zip(tail.variables, zeros, strict=True):
            variable.assign(value)
        return logits(place, schedule)

    short = Schedule(0.1, 2, 3)
    first = from_zero("first", short)
    other = from_zero("other", Schedule(0.3, 3, 1))
    assert np.array_equal(from_zero("again", short), first)
    # Twins: another schedule, and the variables that the phase before left.
    assert not np.array_equal(other, first)
    assert not np.array_equal(logits("behind", short), first)


def test_a_batch_that_is_cut_among_cores_takes_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adam = pytest.importorskip("tf_keras").optimizers.Adam
    monkeypatch.setattr(cores, "COUNT", 3)
    # Four batches: 13 pictures make parts of 4, 4 and 5; the last picture leaves two cores idle.
    run, schedule = Run(tmp_path, batch_size=13), Schedule(0.05, 1, 1)
    result = run.go(schedule)
    rates = rates_of(schedule, 4)
    expected, norms = by_keras(run, rates, adam())

    def off(variables: list[npt.NDArray[np.float32]]) -> float:
        pairs = zip(run.variables[-1], variables, strict=True)
        return max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)

    assert off(expected) <= 1e-5
    assert result.gradient_norms == pytest.approx(np.sqrt(np.square(norms).mean(0)), rel=1e-5)
    # Twin: other batches.
    run.batch_size = 14
    assert off(by_keras(run, rates, adam())[0]) > 1e-5


@pytest.mark.parametrize("averaging", [0.5, AVERAGING])
def test_the_mean_of_the_variables_is_validated_and_left(tmp_path: Path, averaging: float) -> None:
    adam = pytest.importorskip("tf_keras").optimizers.Adam
    run, schedule = Run(tmp_path, batch_size=4), Schedule(0.025, 2, 3)
    result, rates = run.go(schedule, averaging=averaging), rates_of(schedule, 10)
    assert result.best_epoch == 1

    def off(variables: list[npt.NDArray[np.float32]]) -> float:
        pairs = zip(run.tail.variables, variables, strict=True)
        return max(float(np.abs(mine.numpy() - theirs).max()) for mine, theirs in pairs)

    assert off(by_keras(run, rates, adam(), averaging)[0]) <= 1e-5
    assert run.validation_loss() == pytest.approx(result.epochs[1].validation_loss, rel=1e-6)
    # Training goes on from the variables themselves.
    assert max(
        float(np.abs(mine - theirs).max())
        for mine, theirs in zip(run.variables[-1], by_keras(run, rates, adam())[0], strict=True)
    ) <= 1e-5  # fmt: skip
    # Twins: the variables themselves, another decay, and of 20 steps a mean with their start in it.
    assert off(by_keras(run, rates, adam())[0]) > 1e-3
    assert off(by_keras(run, rates, adam(), averaging - 0.3)[0]) > 1e-3
    if averaging > 0.9:
        assert off(by_keras(run, rates, adam(), averaging, start=1)[0]) > 1e-2


def test_of_a_single_batch_the_norms_are_those_of_its_gradient(tmp_path: Path) -> None:
    run = Run(tmp_path, batch_size=40, augmentation=None)
    result = run.go(Schedule(0.1, 2, 1))
    images = pictures(tmp_path, 40, 1).images / np.float64(128) - 1
    odds = np.full((40, 3), 1 / 3)  # the model starts from zeros
    wrong = (odds - np.eye(3)[pictures(tmp_path, 40, 1).labels]) / 40
    kernel = images.mean((1, 2)).T @ wrong
    by_hand = [np.linalg.norm(kernel), np.linalg.norm(wrong.sum(0))]
    assert result.gradient_norms == pytest.approx(by_hand, rel=1e-5)
    assert result.gradient_norms != pytest.approx(by_hand[::-1], rel=1e-5)


def ordered(count: int, source_bytes: int, seed: int = 1) -> npt.NDArray[np.int64]:
    return epoch_order(count, source_bytes, np.random.default_rng(seed))


@pytest.mark.parametrize("source_bytes", [4_000_000_000, 4_000_000_001])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 64 * 256, 100_003])
def test_an_epoch_has_every_row_once_in_an_order_of_the_seed(count: int, source_bytes: int) -> None:
    order = ordered(count, source_bytes)
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(order, ordered(count, source_bytes))
    assert count == 1 or not np.array_equal(order, ordered(count, source_bytes, 2))


def test_pictures_that_may_not_fit_into_memory_are_read_block_by_block() -> None:
    count, window = 391 * 256, 64 * 256

    def blocks(order: npt.NDArray[np.int64]) -> list[int]:
        """Returns how many blocks of 256 neighbouring rows each window reads from."""
        starts = range(0, count, window)
        return [len(np.unique(order[start : start + window] // 256)) for start in starts]

    large = ordered(count, 4_000_000_001)
    assert blocks(large) == [64] * 6 + [7]
    # Inside a window all rows are mixed: few neighbours follow one another.
    assert (np.diff(large) == 1).mean() < 1e-3
    assert len(np.unique(large[:1000] // 256)) > 60
    # Twin: what fits is mixed as a whole.
    assert min(blocks(ordered(count, 4_000_000_000))) > 300


@pytest.mark.parametrize(
    ("epochs", "steps", "rows", "expected"),
    [
        (5, 0, 40, 5),
        (5, 15, 40, 5),
        (5, 15.1, 40, 6),
        (5, 60, 48, 20),
        (5, 60, 49, 15),
        (1, 9, 1, 9),
    ],
)
def test_a_few_pictures_get_more_epochs(
    epochs: int, steps: float, rows: int, expected: int
) -> None:
    assert enough_epochs(epochs, steps, rows, batch_size=16) == expected
