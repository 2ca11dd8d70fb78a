"""A phase that is interrupted goes on behind its last finished epoch, bit for bit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_network import Untyped, coloured, shelf

from edgekit.network.graph import LOGITS, mobilenet_v2
from edgekit.recipe import AugmentSpec
from edgekit.records import CheckpointRecord, EpochRecord, Preprocess
from edgekit.store import StageKey, Store

tf = pytest.importorskip("tensorflow")

from edgekit.fitting.checkpoints import Checkpoints  # noqa: E402 - after the check
from edgekit.fitting.loop import Fit, Schedule, Trainer, fit  # noqa: E402
from edgekit.fitting.pictures import Pictures  # noqa: E402
from edgekit.network.tail import Tail  # noqa: E402
from edgekit.prefix.frozen import CutFeed, activations_of, plan_storage  # noqa: E402
from edgekit.prefix.level import Level  # noqa: E402

SIDE, FEATURES = 8, 48
POOLED = "global_average_pool"
WOBBLY = AugmentSpec(flip=True, shift=0.1, zoom=0.1, brightness=0.1, contrast=0.1)
# 42 rows in batches of 4: eleven steps an epoch. From the third epoch on it learns by heart.
SCHEDULE = Schedule(peak=1e-2, epochs=4, warmup_steps=11)
KEY = StageKey("train-epoch", "1", {"number": 3}, {"data": "d"}, (), 5)
EPOCH = EpochRecord(
    train_loss=1.25,
    train_accuracy=0.5,
    validation_loss=0.1 + 0.2,  # every bit of it has to come back
    validation_accuracy=1 / 3,
    seconds=2.0,
    images_per_second=20.0,
)


class InterruptionError(Exception):
    """What ends a run in the middle, as Ctrl-C does."""


def features(tensors: Sequence[npt.NDArray[np.float32]]) -> tuple[npt.NDArray[np.float16], ...]:
    """Returns the means of 2 x 2 pixels as pooled features."""
    (images,) = tensors
    means = images.reshape(len(images), SIDE // 2, 2, SIDE // 2, 2, 3).mean((2, 4))
    return (means.reshape(-1, 1, 1, FEATURES).astype(np.float16),)


def feeds(root: Path) -> tuple[CutFeed, CutFeed]:
    """Returns stored features of three versions of the training pictures, and of validation."""
    contract = Preprocess(height_px=SIDE, width_px=SIDE)
    level = Level("features", {POOLED: (1, 1, FEATURES)}, features, "features")
    train, validation = (
        Pictures(*coloured(count, seed, SIDE), contract) for count, seed in ((42, 1), (30, 2))
    )
    train.labels[:18] = (train.labels[:18] + 1) % 3  # learned by heart, these do harm
    place = shelf(root)
    made = activations_of(
        level,
        train=train,
        validation=validation,
        augmentation=WOBBLY,
        views=3,
        seed=5,
        shelf=place,
    )
    plan_storage(made, epochs=4, again=False, shelf=place)  # of training the first view alone
    return CutFeed(made["train"], (POOLED,)), CutFeed(made["validation"], (POOLED,))


class Breaking:
    """A feed that interrupts the run at a given read; an epoch is two reads here."""

    def __init__(self, feed: CutFeed, reads: int | None) -> None:
        self._feed = feed
        self._left = reads

    def __getattr__(self, name: str) -> Untyped:
        return getattr(self._feed, name)

    def read(self, epoch: int, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Untyped], ...]:
        if self._left is not None:
            if self._left == 0:
                raise InterruptionError
            self._left -= 1
        return self._feed.read(epoch, rows)


def head() -> Tail:
    """Returns the last layer of the network with half of its features dropped while it trains."""
    random = np.random.default_rng(8)
    arrays = {
        f"{LOGITS}/kernel": random.normal(0, 0.1, (1, 1, FEATURES, 3)).astype(np.float32),
        f"{LOGITS}/bias": np.zeros(3, np.float32),
    }
    return Tail(mobilenet_v2(1.0)[-1:], (POOLED,), arrays, dropout=0.5, seed=5)


def losses_of(_tensors: Untyped, labels: Untyped, logits: Untyped) -> Untyped:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


@dataclass
class Run:
    """Fits of a new head each, which share the store that they keep their epochs in."""

    root: Path
    schedule: Schedule = SCHEDULE
    patience: int = 100
    told: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def go(self, *, stop_after: int | None = None, stop_at_read: int | None = None) -> Fit:
        """Runs until its end, until an epoch is done, or until the training rows are read."""
        tail = head()
        train, validation = feeds(self.root)

        def done(epoch: int, _record: EpochRecord) -> None:
            self.told.append(epoch)
            if epoch == stop_after:
                raise InterruptionError

        learned = Breaking(train, stop_at_read)
        trainer = Trainer(
            tail,
            tail.trained(),
            1,
            losses_of,
            learned,
            batch_size=4,  # of the eleven steps the first eight are one call
            noise=tail.noise,
            averaging=0.5,
        )
        result = fit(
            trainer,
            learned,
            validation,
            schedule=self.schedule,
            patience=self.patience,
            seed=5,
            checkpoints=self.checkpoints(),
            epoch_done=done,
        )
        self.arrays = tail.arrays()
        return result

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(Store(self.root, self.said.append), KEY)

    def kept(self) -> list[Path]:
        return list(self.root.glob(f"{KEY.stage}/*/state.npz"))


@dataclass(frozen=True)
class Outcome:
    """What a run that nothing interrupts makes."""

    run: Run
    result: Fit


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    run = Run(tmp_path_factory.mktemp("quiet"))
    result = run.go()
    assert run.told == [0, 1, 2, 3]
    assert result.best_epoch == 1
    return Outcome(run, result)


def check_same(run: Run, result: Fit, expected: Outcome) -> None:
    assert [without_times(epoch) for epoch in result.epochs] == [
        without_times(epoch) for epoch in expected.result.epochs
    ]
    assert result.best_epoch == expected.result.best_epoch
    assert result.gradient_norms == expected.result.gradient_norms
    assert np.array_equal(result.start, expected.result.start)
    assert np.array_equal(result.logits, expected.result.logits)
    assert run.arrays.keys() == expected.run.arrays.keys()
    assert all(np.array_equal(run.arrays[k], expected.run.arrays[k]) for k in run.arrays)


def without_times(epoch: EpochRecord) -> Untyped:
    return epoch.model_dump(exclude={"seconds", "images_per_second"})


@pytest.mark.parametrize("epoch", range(4))
def test_interrupted_after_an_epoch_nothing_is_repeated(
    tmp_path: Path, quiet: Outcome, epoch: int
) -> None:
    run = Run(tmp_path)
    with pytest.raises(InterruptionError):
        run.go(stop_after=epoch)
    result = run.go()
    assert run.told == [0, 1, 2, 3]
    check_same(run, result, quiet)
    assert run.said == []


@pytest.mark.parametrize("read", [0, 1, 3, 4, 7])
def test_interrupted_inside_an_epoch_only_that_one_is_repeated(
    tmp_path: Path, quiet: Outcome, read: int
) -> None:
    run = Run(tmp_path)
    with pytest.raises(InterruptionError):
        run.go(stop_at_read=read)
    assert run.told == list(range(read // 2))
    result = run.go()
    assert run.told == [0, 1, 2, 3]
    check_same(run, result, quiet)


def test_interrupted_again_and_again_it_still_arrives(tmp_path: Path, quiet: Outcome) -> None:
    run = Run(tmp_path)
    for epoch in range(4):
        with pytest.raises(InterruptionError):
            run.go(stop_after=epoch)
        assert len(run.kept()) == 1
    check_same(run, run.go(), quiet)
    assert run.told == [0, 1, 2, 3]


def test_a_phase_that_had_ended_is_not_trained_again(quiet: Outcome) -> None:
    again = replace(quiet.run, told=[])
    result = again.go(stop_at_read=0)  # not a single row is read
    assert again.told == []
    check_same(again, result, quiet)


def test_the_schedule_goes_on_where_it_was(tmp_path: Path, quiet: Outcome) -> None:
    """Twin of the tests above: the rest of another schedule does not end the same."""
    for schedule in (replace(SCHEDULE, warmup_steps=5), replace(SCHEDULE, peak=1.01e-2)):
        run = Run(tmp_path / str(schedule.peak))
        with pytest.raises(InterruptionError):
            run.go(stop_after=1)
        rest = replace(run, schedule=schedule)
        result = rest.go()
        assert rest.told == [0, 1, 2, 3]
        same = result.epochs[-1].train_loss == quiet.result.epochs[-1].train_loss
        # By then the warm-up is over, and the cosine alone is another.
        assert not same


@pytest.mark.slow
def test_everything_in_a_checkpoint_counts(tmp_path: Path, quiet: Outcome) -> None:
    """Twin of the tests above: with one part altered the run does not end the same."""
    run = Run(tmp_path)
    with pytest.raises(InterruptionError):
        run.go(stop_after=0)
    stored = run.checkpoints().latest(4)
    assert stored is not None
    # Kernel and bias, two moments and the mean of each, in turn, and the number of steps; the best
    # epoch is still to come.
    sizes = [*(4 * [4 * 3 * FEATURES, 4 * 3]), 4]
    ends = np.cumsum(sizes)
    assert stored.arrays["now"].shape == (ends[-1],)
    types = [*(8 * [np.float32]), np.int32]
    changes: Untyped = [
        ("now", slice(end - size, end), kind)
        for end, size, kind in zip(ends, sizes, types, strict=True)
    ]
    for number, (name, part, kind) in enumerate([*changes, ("logits/start", ..., np.float32)]):
        altered = stored.arrays[name].copy()
        altered[part].view(kind)[:] += 1
        other = Run(tmp_path / str(number))
        other.checkpoints().save(stored.record, {**stored.arrays, name: altered})
        result = other.go()
        assert other.told == [1, 2, 3]
        with pytest.raises(AssertionError):
            check_same(other, result, quiet)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, cut_short, delete])
def test_a_damaged_checkpoint_is_named_and_the_phase_starts_over(
    tmp_path: Path, quiet: Outcome, damage: Callable[[Path], None]
) -> None:
    run = Run(tmp_path)
    with pytest.raises(InterruptionError):
        run.go(stop_after=2)
    (path,) = run.kept()
    damage(path)
    result = run.go()
    assert run.told == [0, 1, 2, 0, 1, 2, 3]
    assert len(run.said) == 1
    assert run.said[0].startswith(
        "stored train-epoch result is damaged and is made again: state.npz "
    )
    check_same(run, result, quiet)


@pytest.mark.parametrize(
    ("patience", "epochs", "stop_after"), [(1, 3, 1), (1, 3, 2), (2, 4, 2), (9, 5, 3)]
)
def test_patience_counts_the_epochs_before_the_interruption(
    tmp_path: Path, patience: int, epochs: int, stop_after: int
) -> None:
    schedule = replace(SCHEDULE, epochs=5)
    run = Run(tmp_path, schedule, patience)
    with pytest.raises(InterruptionError):
        run.go(stop_after=stop_after)
    result = run.go()
    assert result.best_epoch == 1
    assert run.told == list(range(epochs))
    assert len(result.epochs) == epochs
    straight = Run(tmp_path / "straight", schedule, patience)
    check_same(run, result, Outcome(straight, straight.go()))


def arrays(seed: int) -> dict[str, npt.NDArray[Untyped]]:
    random = np.random.default_rng(seed)
    return {
        "now/0": random.normal(size=(3, 4)).astype(np.float32),
        "now/1": np.array(7, np.int32),
        "logits/best": random.normal(size=(5, 2)).astype(np.float32),
    }


def record(epochs: int, best: int = 0) -> CheckpointRecord:
    return CheckpointRecord(epochs=(EPOCH,) * epochs, best_epoch=best, gradient_norms=(0.1, 1e-30))


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    return Checkpoints(Store(tmp_path / "store", [].append), KEY)


def test_a_checkpoint_comes_back_as_it_was(saved: Checkpoints) -> None:
    assert saved.latest(9) is None
    saved.save(record(1), arrays(1))
    found = saved.latest(9)
    assert found is not None
    assert found.record == record(1)
    assert set(found.arrays) == set(arrays(1))
    for name, expected in arrays(1).items():
        assert found.arrays[name].dtype == expected.dtype
        assert np.array_equal(found.arrays[name], expected)


def test_only_the_last_checkpoint_of_a_phase_is_kept(saved: Checkpoints) -> None:
    other = replace(saved, key=replace(KEY, params={"number": 4}))
    other.save(record(1), arrays(9))
    for epochs in (1, 2, 3):
        saved.save(record(epochs, epochs - 1), arrays(epochs))
        found = saved.latest(9)
        assert found is not None
        assert found.record == record(epochs, epochs - 1)
        assert np.array_equal(found.arrays["now/0"], arrays(epochs)["now/0"])
    assert len(list((saved.store.root / KEY.stage).iterdir())) == 2
    untouched = other.latest(9)
    assert untouched is not None
    assert np.array_equal(untouched.arrays["now/0"], arrays(9)["now/0"])


def test_killed_before_the_one_before_was_dropped_the_newer_counts(saved: Checkpoints) -> None:
    saved.save(record(1), arrays(1))
    (first,) = (saved.store.root / KEY.stage).iterdir()
    kept = {path.name: path.read_bytes() for path in first.iterdir()}
    saved.save(record(2), arrays(2))
    first.mkdir()
    for name, content in kept.items():
        (first / name).write_bytes(content)
    found = saved.latest(9)
    assert found is not None
    assert found.record == record(2)
    older = saved.latest(1)  # a recipe that now asks for a single epoch
    assert older is not None
    assert older.record == record(1)


def test_the_key_of_the_phase_decides_which_checkpoint_is_found(saved: Checkpoints) -> None:
    saved.save(record(1), arrays(1))
    for key in (
        replace(KEY, params={"number": 4}),
        replace(KEY, inputs={"data": "e"}),
        replace(KEY, seed=6),
        replace(KEY, stage="quantize-epoch"),
    ):
        assert Checkpoints(saved.store, key).latest(9) is None
    assert saved.latest(9) is not None
