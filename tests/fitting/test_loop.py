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
from edgekit.records import EpochRecord, Preprocess

tf = pytest.importorskip("tensorflow")

from edgekit.fitting import loop  # noqa: E402 - after the check for TensorFlow
from edgekit.fitting.augment import Augmentation  # noqa: E402
from edgekit.fitting.loop import Fit, cross_entropy, fit  # noqa: E402
from edgekit.fitting.pictures import Pictures, compiled  # noqa: E402
from edgekit.network.graph import INPUT  # noqa: E402
from edgekit.prefix.frozen import CutFeed, store_levels  # noqa: E402
from edgekit.prefix.levels import Compute, Level  # noqa: E402

SIDE = 8
WOBBLY = Augmentation(flip=True, shift=0.1, zoom=0.1, brightness=0.1, contrast=0.1)


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
    augmentation: Augmentation | None = WOBBLY,
) -> tuple[CutFeed, CutFeed]:
    """Returns feeds of the pictures themselves, those of training in three versions."""
    found = store_levels(
        (),
        train=train,
        validation=validation,
        augmentation=augmentation,
        views=3,
        epochs=range(8),
        seed=1,
        shelf=shelf(folder / "store"),
        keep_anchor=False,
    )
    return found["train"], found["validation"]


def linear() -> Untyped:
    import tf_keras

    layers = tf_keras.layers
    images = layers.Input((SIDE, SIDE, 3))
    pooled = layers.GlobalAveragePooling2D()(images)
    dense = layers.Dense(len(CLASSES), kernel_initializer="zeros", name="dense")
    return tf_keras.Model([images], dense(pooled))


def mean_cross_entropy(_tensors: Untyped, labels: Untyped, logits: Untyped) -> Untyped:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def fitted(
    tail: Untyped,
    loss: Untyped,
    train: Untyped,
    validation: Untyped,
    folder: Path,
    *,
    rates: Sequence[float],
    batch_size: int,
) -> Fit:
    """Returns a fit to its last epoch, with what is of no matter to the test."""
    return fit(
        tail,
        tail.trainable_variables,
        1,
        loss,
        train,
        validation,
        learning_rates=rates,
        patience=len(rates),
        batch_size=batch_size,
        seed=1,
        first_epoch=0,
        checkpoints=checkpoints(folder),
        epoch_done=lambda _epoch, _record: None,
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
    augmentation: Augmentation | None = WOBBLY
    tail: Untyped = field(default_factory=linear)
    seen: list[EpochRecord] = field(default_factory=list)
    variables: list[list[np.ndarray]] = field(default_factory=list)

    def validation(self) -> Pictures:
        """Returns pictures of which a tenth has a wrong label: being too sure costs there."""
        split = pictures(self.folder, 70, 2)
        split.labels[:7] = (split.labels[:7] + 1) % len(CLASSES)
        return split

    def go(
        self,
        rates: Sequence[float],
        *,
        seed: int = 1,
        patience: int = 100,
        first_epoch: int = 0,
        loss: Untyped = mean_cross_entropy,
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

        return fit(
            self.tail,
            self.tail.trainable_variables,
            1,
            loss,
            self.train,
            validation,
            learning_rates=rates,
            patience=patience,
            batch_size=self.batch_size,
            seed=seed,
            first_epoch=first_epoch,
            checkpoints=saved,
            epoch_done=done,
            averaging=averaging,
        )

    def validation_loss(self) -> float:
        validation = self.validation()
        return cross_entropy(compiled(self.tail, validation)(), validation.labels)


def test_the_loss_falls_on_pictures_that_can_be_told_apart(tmp_path: Path) -> None:
    run = Run(tmp_path)
    chance = float(np.log(len(CLASSES)))
    assert run.validation_loss() == pytest.approx(chance, rel=1e-6)
    result = run.go([0.1] * 8)
    assert list(result.epochs) == run.seen
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    assert result.epochs[-1].validation_loss < 0.8 * chance
    assert result.epochs[-1].validation_accuracy == 0.9


def test_the_record_is_of_the_variables_at_the_end_of_the_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path)
    result = run.go([0.1])
    # The same function of the same variables; only float64 sums may be ordered otherwise.
    assert result.epochs[0].validation_loss == pytest.approx(run.validation_loss(), rel=1e-12)


def test_the_training_loss_is_the_mean_over_the_changed_pictures(tmp_path: Path) -> None:
    run = Run(tmp_path)
    random = np.random.default_rng(6)
    run.tail.set_weights([random.normal(size=(3, 3)), random.normal(size=3)])
    result = run.go([1e-30])  # steps that change nothing
    images = run.train.feed.read(0, np.arange(40))[0]
    logits = run.tail([images], training=False).numpy()
    (epoch,) = result.epochs
    # float32 sums of 40 rows.
    expected = cross_entropy(logits, run.train.labels)
    assert epoch.train_loss == pytest.approx(expected, rel=1e-5)
    assert epoch.train_accuracy == (logits.argmax(1) == run.train.labels).mean()
    # Twin: the pictures of another view.
    others = run.tail([run.train.feed.read(1, np.arange(40))[0]], training=False).numpy()
    assert epoch.train_loss != pytest.approx(cross_entropy(others, run.train.labels), rel=1e-5)


def test_the_best_epoch_is_restored(tmp_path: Path) -> None:
    run = Run(tmp_path)
    # The huge steps of the last two epochs throw away what the first ones learned.
    result = run.go([0.1, 0.1, 0.1, 50.0, 50.0])
    losses = [record.validation_loss for record in result.epochs]
    assert result.best_epoch == int(np.argmin(losses)) == 2
    assert losses[-1] > losses[2]
    for variable, seen, last in zip(
        run.tail.variables, run.variables[2], run.variables[-1], strict=True
    ):
        assert np.array_equal(variable.numpy(), seen)
        assert not np.array_equal(last, seen)
    assert run.validation_loss() == pytest.approx(losses[2], rel=1e-12)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (9, 6)])
def test_it_stops_when_the_loss_stops_falling(tmp_path: Path, patience: int, epochs: int) -> None:
    result = Run(tmp_path).go([0.1, 0.1, 50.0, 50.0, 50.0, 50.0], patience=patience)
    assert result.best_epoch == 1
    assert len(result.epochs) == epochs


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    rates = [0.1, 0.05]
    losses, (first, again, other, later) = [], (Run(tmp_path) for _ in range(4))
    for run, seed, start in ((first, 1, 0), (again, 1, 0), (other, 2, 0), (later, 1, 7)):
        result = run.go(rates, seed=seed, first_epoch=start)
        losses.append([epoch.train_loss for epoch in result.epochs])

    def same(one: Run, two: Run) -> bool:
        pairs = zip(one.tail.variables, two.tail.variables, strict=True)
        return all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs)

    assert same(first, again)
    assert losses[0] == losses[1]
    assert not same(first, other)
    assert not same(first, later)  # order and augmentation follow the epoch of the whole run


def test_only_trainable_variables_change(tmp_path: Path) -> None:
    run = Run(tmp_path)
    dense = run.tail.get_layer("dense")
    dense.add_weight(name="fixed", shape=(2,), initializer="ones", trainable=False)
    run.go([0.1])
    assert dense.non_trainable_weights[0].numpy().tolist() == [1, 1]
    assert all(variable.numpy().any() for variable in run.tail.trainable_variables)


def test_a_loss_that_is_not_a_number_ends_the_training(tmp_path: Path) -> None:
    def broken(_tensors: Untyped, _labels: Untyped, logits: Untyped) -> Untyped:
        return tf.math.log(-tf.abs(tf.reduce_mean(logits)) - 1.0)

    with pytest.raises(TrainingError, match="the loss became nan") as caught:
        Run(tmp_path).go([0.1], loss=broken)
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
            mean_cross_entropy,
            *feeds(tmp_path, *splits, augmentation=None),
            tmp_path / "store",
            rates=[3e38],
            batch_size=16,
        )
    assert list((tmp_path / "store").glob("epoch/*")) == []  # and no such epoch is kept


def test_the_seconds_of_an_epoch_leave_the_frozen_part_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()  # every look at the clock finds it one second later
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
        mean_cross_entropy,
        Slow(train),
        Slow(validation),
        tmp_path / "run",
        rates=[0.1, 0.1],
        batch_size=40,
    )
    # One call of the training steps, and two of validation: 64 rows and 6.
    assert [record.seconds for record in result.epochs] == [3, 3]
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
        level = Level(names[0], (INPUT,), dict.fromkeys(names, (3,)), answer, names[0])
        entering = tf_keras.layers.Input((3,))
        dense = tf_keras.layers.Dense(3, kernel_initializer="zeros")
        tail = tf_keras.Model([entering], dense(entering))
        found = store_levels(
            (level,),
            train=pictures(tmp_path, 40, 1),
            validation=pictures(tmp_path, 70, 2),
            augmentation=None,
            views=1,
            epochs=range(1),
            seed=1,
            shelf=shelf(tmp_path / "store"),
            keep_anchor=False,
        )
        result = fitted(
            tail,
            lambda tensors, _labels, logits: tf.reduce_mean(tf.square(logits - tensors[1])),
            found["train"],
            found["validation"],
            tmp_path / names[0],
            rates=[0.1],
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
    tail = linear()
    fit(
        tail,
        tail.trainable_variables,
        1,
        mean_cross_entropy,
        *feeds(tmp_path, *writable),
        learning_rates=[0.1],
        patience=1,
        batch_size=16,
        seed=1,
        first_epoch=0,
        checkpoints=checkpoints(tmp_path / "store"),
        epoch_done=lambda _epoch, _record: None,
    )
    for split in writable:
        split.images.flush()  # type: ignore[attr-defined] - a numpy.memmap
    assert [hashlib.sha256(file.read_bytes()).digest() for file in files] == before


def test_every_epoch_reads_every_row_of_its_own_view_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go([0.1] * 3, first_epoch=4)
    assert run.train.prepared == [4, 5, 6]
    orders = {
        epoch: np.concatenate([rows for number, rows in run.train.read_rows if number == epoch])
        for epoch in (4, 5, 6)
    }
    assert all(np.array_equal(np.sort(order), np.arange(40)) for order in orders.values())
    assert not np.array_equal(orders[4], orders[5])
    assert not np.array_equal(orders[5], orders[6])


def test_the_logits_are_those_before_the_first_step_and_of_the_best_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path)
    result = run.go([0.1, 0.1, 50.0])
    labels = run.validation().labels
    assert result.start.dtype == result.logits.dtype == np.float32
    assert not result.start.any()  # the model starts from zeros
    assert cross_entropy(result.logits, labels) == result.epochs[1].validation_loss
    assert result.logits == pytest.approx(compiled(run.tail, run.validation())(), rel=1e-6)


# A row is 768 bytes: one batch in each call or three, instead of 8 and the 12 that are left.
@pytest.mark.parametrize(("call_bytes", "batches"), [(1, 1), (3 * 2 * 768, 3)])
def test_batches_are_the_same_however_many_go_into_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_bytes: int, batches: int
) -> None:
    usual, split = Run(tmp_path, batch_size=2), Run(tmp_path, batch_size=2)
    expected = usual.go([0.1, 0.05])
    monkeypatch.setattr(loop, "_CALL_BYTES", call_bytes)
    result = split.go([0.1, 0.05])
    assert [len(rows) for _, rows in usual.train.read_rows] == [8 * 2, 12 * 2] * 2
    assert [len(rows) for _, rows in split.train.read_rows[:3]] == [batches * 2] * 3
    assert max(len(rows) for _, rows in split.train.read_rows) == batches * 2
    for one, other in zip(usual.variables, split.variables, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert np.array_equal(result.logits, expected.logits)
    # Those of the first call.
    _, norms = by_keras(usual, [0.1, 0.05], pytest.importorskip("tf_keras").optimizers.Adam())
    for fitted, count in ((expected, 8), (result, batches)):
        watched = np.sqrt(np.square(norms[:count]).mean(0))
        assert fitted.gradient_norms == pytest.approx(watched, rel=1e-5)
    # The losses of a call are added in float32.
    for one, other in zip(expected.epochs, result.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-6)
        assert other.train_accuracy == one.train_accuracy
        assert other.validation_loss == one.validation_loss


def by_keras(
    run: Run,
    rates: Sequence[float],
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
            loss = mean_cross_entropy(None, labels, tail([images], training=True))
        gradients = tape.gradient(loss, tail.trainable_variables)
        optimizer.learning_rate = rates[step * len(rates) // len(batches)]
        optimizer.apply_gradients(zip(gradients, tail.trainable_variables, strict=True))
        norms.append([float(np.linalg.norm(gradient)) for gradient in gradients])
        weights.append((1 - averaging) * averaging ** (len(batches) - 1 - step))
        seen.append([variable.numpy().astype(np.float64) for variable in tail.variables])
    means = [np.average(values, 0, weights) for values in zip(*seen, strict=True)]
    return [mean.astype(np.float32) for mean in means], np.array(norms)


def test_the_steps_are_those_of_adam(tmp_path: Path) -> None:
    adam = pytest.importorskip("tf_keras").optimizers.Adam
    run, rates = Run(tmp_path, batch_size=4), [0.05, 0.01]  # 10 steps in each epoch
    result = run.go(rates)
    expected, norms = by_keras(run, rates, adam())
    assert len(norms) == 20

    def off(variables: list[npt.NDArray[np.float32]]) -> float:
        pairs = zip(run.variables[-1], variables, strict=True)
        return max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)

    # The same formula in float32. What rounding does to the variables comes back by way of the
    # gradients: 4e-6 here.
    assert off(expected) <= 1e-5
    # Twins: other constants, and one learning rate for both epochs.
    assert off(by_keras(run, rates, adam(epsilon=1e-3))[0]) > 1e-5
    assert off(by_keras(run, rates, adam(beta_2=0.99))[0]) > 1e-5
    assert off(by_keras(run, [0.05, 0.05], adam())[0]) > 1e-5
    # Of the first 8 steps, the root mean square.
    watched = np.sqrt(np.square(norms[:8]).mean(0))
    assert result.gradient_norms == pytest.approx(watched, rel=1e-5)
    assert result.gradient_norms != pytest.approx(np.sqrt(np.square(norms[:9]).mean(0)), rel=1e-5)


@pytest.mark.parametrize("averaging", [0.5, 0.99])
def test_the_mean_of_the_variables_is_validated_and_left(tmp_path: Path, averaging: float) -> None:
    adam = pytest.importorskip("tf_keras").optimizers.Adam
    run, rates = Run(tmp_path, batch_size=4), [0.05, 0.01]
    result = run.go(rates, averaging=averaging)
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
    result = run.go([0.1, 0.1])
    images = pictures(tmp_path, 40, 1).images / np.float64(128) - 1
    odds = np.full((40, 3), 1 / 3)  # the model starts from zeros
    wrong = (odds - np.eye(3)[pictures(tmp_path, 40, 1).labels]) / 40
    kernel = images.mean((1, 2)).T @ wrong
    by_hand = [np.linalg.norm(kernel), np.linalg.norm(wrong.sum(0))]
    assert result.gradient_norms == pytest.approx(by_hand, rel=1e-5)
    assert result.gradient_norms != pytest.approx(by_hand[::-1], rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_is_that_of_the_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 5, (50, 4)).astype(np.float32)
    labels = random.integers(0, 4, 50).astype(np.int32)
    odds = np.exp(logits.astype(np.float64))
    expected = -np.log(odds[np.arange(50), labels] / odds.sum(1)).mean()
    # float64 throughout: 1e-12 is four orders above its rounding.
    assert cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-12)
    assert cross_entropy(logits, np.roll(labels, 1)) != pytest.approx(expected, rel=1e-3)
    # Logits that are not finite give no number, and no warning either.
    assert np.isnan(cross_entropy(np.array([[np.inf, 0.0]], np.float32), np.zeros(1, np.int32)))
    # Logits far beyond the range of exp() are no trouble.
    huge = np.array([[3e38, 0.0]], np.float32)
    assert cross_entropy(huge, np.zeros(1, np.int32)) == 0.0
