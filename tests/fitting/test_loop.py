"""The training loop: it learns, stops, restores the best epoch and repeats itself bit for bit."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tiny_network import CLASSES, Untyped, coloured

from edgekit.errors import TrainingError
from edgekit.records import EpochRecord, Preprocess

tf = pytest.importorskip("tensorflow")

from edgekit.fitting.augment import Augmentation  # noqa: E402 - after the check for TensorFlow
from edgekit.fitting.loop import Fit, Pictures, compiled, cross_entropy, fit  # noqa: E402

SIDE = 8
WOBBLY = Augmentation(flip=True, shift=0.1, zoom=0.1, brightness=0.1, contrast=0.1)


def pictures(folder: Path, count: int, seed: int) -> Pictures:
    """Returns memory-mapped pictures of three classes that a linear model separates."""
    images, labels = coloured(count, seed, SIDE)
    np.save(folder / f"{seed}.npy", images)
    contract = Preprocess(height_px=SIDE, width_px=SIDE)
    return Pictures(np.load(folder / f"{seed}.npy", mmap_mode="r"), labels, contract)


def linear() -> Untyped:
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input((SIDE, SIDE, 3)),
            layers.GlobalAveragePooling2D(),
            layers.Dense(len(CLASSES), kernel_initializer="zeros"),
        ]
    )


def mean_cross_entropy(_images: Untyped, labels: Untyped, logits: Untyped) -> Untyped:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


@dataclass
class Run:
    """A fit of the linear model, and what was seen on the way."""

    folder: Path
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
    ) -> Fit:
        train = pictures(self.folder, 40, 1)
        validation = self.validation()

        def done(epoch: int, record: EpochRecord) -> None:
            assert epoch == len(self.seen)
            self.seen.append(record)
            self.variables.append([variable.numpy() for variable in self.tail.variables])

        return fit(
            lambda images: [images],
            self.tail,
            loss,
            train,
            validation,
            learning_rates=rates,
            patience=patience,
            batch_size=16,  # 40 is no multiple: the last batch is smaller
            augmentation=WOBBLY,
            seed=seed,
            first_epoch=first_epoch,
            epoch_done=done,
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
    dense = run.tail.layers[-1]
    dense.add_weight(name="fixed", shape=(2,), initializer="ones", trainable=False)
    run.go([0.1])
    assert dense.non_trainable_weights[0].numpy().tolist() == [1, 1]
    assert all(variable.numpy().any() for variable in run.tail.trainable_variables)


def test_a_loss_that_is_not_a_number_ends_the_training(tmp_path: Path) -> None:
    def broken(_images: Untyped, _labels: Untyped, logits: Untyped) -> Untyped:
        return tf.math.log(-tf.abs(tf.reduce_mean(logits)) - 1.0)

    with pytest.raises(TrainingError, match="the loss became nan") as caught:
        Run(tmp_path).go([0.1], loss=broken)
    assert "lower the learning rate" in caught.value.remedy


def test_weights_that_overflow_in_the_last_step_end_the_training(tmp_path: Path) -> None:
    run = Run(tmp_path)
    # float32 ends at 3.4e38. The loss of this only step is still that of the first weights; the
    # validation after it is the first to see infinite logits.
    one_batch = pictures(tmp_path, 16, 1)
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf)"):
        fit(
            lambda images: [images * 1e3],
            run.tail,
            mean_cross_entropy,
            one_batch,
            pictures(tmp_path, 70, 2),
            learning_rates=[3e38],
            patience=1,
            batch_size=16,
            augmentation=None,
            seed=1,
            first_epoch=0,
            epoch_done=lambda _epoch, _record: None,
        )


def test_the_pictures_on_disk_are_left_as_they_were(tmp_path: Path) -> None:
    train, validation = pictures(tmp_path, 40, 1), pictures(tmp_path, 70, 2)
    files = [tmp_path / "1.npy", tmp_path / "2.npy"]
    before = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    # Writable maps: a change would reach the file instead of failing.
    writable = [
        Pictures(np.load(file, mmap_mode="r+"), split.labels, split.preprocess)
        for file, split in zip(files, (train, validation), strict=True)
    ]
    fit(
        lambda images: [images],
        linear(),
        mean_cross_entropy,
        *writable,
        learning_rates=[0.1],
        patience=1,
        batch_size=16,
        augmentation=WOBBLY,
        seed=1,
        first_epoch=0,
        epoch_done=lambda _epoch, _record: None,
    )
    for split in writable:
        split.images.flush()  # type: ignore[attr-defined] - a numpy.memmap
    assert [hashlib.sha256(file.read_bytes()).digest() for file in files] == before


def test_normalizing_follows_the_contract_per_channel() -> None:
    contract = Preprocess(
        height_px=1, width_px=1, scale=(0.5, 0.25, 0.125), offset=(-1.0, 0.0, 2.0)
    )
    split = Pictures(np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, np.int32), contract)
    values = split.normalize(np.full((1, 1, 1, 3), 8, np.uint8)).numpy()
    assert values.ravel().tolist() == [3.0, 2.0, 3.0]


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
