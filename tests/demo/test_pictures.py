"""The demo's pictures, its pretraining task and its pretrained weights."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import edgekit.demo
from edgekit.demo.pictures import make_pictures
from edgekit.demo.pretraining_task import CLASS_NAMES, make_arrays
from edgekit.errors import DataError, SpecError

Rows = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

CLASSES = ("bolt", "gear", "hammer", "key", "mallet", "screw", "sprocket", "wrench")
CHANCE = 1 / len(CLASSES)
WEIGHTS = Path(edgekit.demo.__file__).parent / "weights.npz"
GRADIENT_STEPS = 150
VARIABLES = {"kernel", "depthwise_kernel", "gamma", "beta", "moving_mean", "moving_variance"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A modest data set: 48 px, 100 training and 60 test pictures of each class."""
    root = tmp_path_factory.mktemp("demo") / "pictures"
    names = make_pictures(
        root, train_per_class=100, validation_per_class=3, test_per_class=60, size_px=48
    )
    assert names == CLASSES
    return root


def _files(root: Path) -> dict[str, bytes]:
    """Returns the bytes of every file under `root` by its relative path."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def _read(root: Path, split: str) -> tuple[npt.NDArray[np.uint8], Labels]:
    """Returns the images and labels of one split."""
    images, labels = [], []
    for label, name in enumerate(CLASSES):
        for path in sorted((root / split / name).iterdir()):
            with Image.open(path) as image:
                images.append(np.asarray(image))
            labels.append(label)
    return np.stack(images), np.array(labels)


def _standardised(train: Rows, test: Rows) -> tuple[Rows, Rows]:
    """Returns both with the mean and standard deviation of the training columns taken out."""
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
    return (train - mean) / deviation, (test - mean) / deviation


def _logistic_accuracy(
    train: Rows, labels: Labels, test: Rows, truth: Labels, decay: float
) -> float:
    """Returns the test accuracy of multinomial logistic regression with weight decay.

    Gradient descent with momentum on the convex loss. The weights are kept as `train.T @ mixture`,
    which they always are, so that a step costs the same however many columns there are.
    """
    train, test = _standardised(train, test)
    gram, test_gram = train @ train.T, test @ train.T
    targets = np.eye(len(CLASSES))[labels]
    curvature = np.linalg.norm(gram, 2) / (2 * len(train)) + decay
    mixture = np.zeros_like(targets)
    velocity = np.zeros_like(targets)
    for _ in range(GRADIENT_STEPS):
        scores = gram @ mixture
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        gradient = (odds - targets) / len(train) + decay * mixture
        velocity = 0.95 * velocity - gradient / curvature
        mixture += velocity
    return float(np.mean(np.argmax(test_gram @ mixture, axis=1) == truth))


def _centroid_accuracy(train: Rows, labels: Labels, test: Rows, truth: Labels) -> float:
    """Returns the test accuracy of the nearest class mean."""
    train, test = _standardised(train, test)
    means = np.stack([train[labels == label].mean(axis=0) for label in range(len(CLASSES))])
    distances = np.linalg.norm(test[:, None, :] - means[None, :, :], axis=2)
    return float(np.mean(np.argmin(distances, axis=1) == truth))


def test_every_split_has_every_class_with_the_asked_number(pictures: Path) -> None:
    expected = {
        f"{split}/{name}/{number:04d}.jpg"
        for split, count in (("train", 100), ("validation", 3), ("test", 60))
        for name in CLASSES
        for number in range(count)
    }
    assert set(_files(pictures)) == expected
    for path in pictures.rglob("0000.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))


def test_the_seed_alone_decides_the_bytes(tmp_path: Path) -> None:
    counts = {"train_per_class": 2, "validation_per_class": 1, "test_per_class": 1}
    make_pictures(tmp_path / "one", seed=3, workers=1, **counts)
    make_pictures(tmp_path / "two", seed=3, workers=2, **counts)
    make_pictures(tmp_path / "other", seed=4, workers=1, **counts)
    one, other = _files(tmp_path / "one"), _files(tmp_path / "other")
    assert one == _files(tmp_path / "two")
    assert one.keys() == other.keys()
    assert all(one[path] != other[path] for path in one)
    assert len(set(one.values())) == len(one)


def test_more_pictures_leave_the_others_as_they_are(tmp_path: Path) -> None:
    few = {"train_per_class": 1, "validation_per_class": 1, "test_per_class": 1}
    make_pictures(tmp_path / "few", size_px=48, **few)
    make_pictures(tmp_path / "many", size_px=48, **(few | {"train_per_class": 3}))
    assert _files(tmp_path / "few").items() <= _files(tmp_path / "many").items()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="not empty"):
        make_pictures(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"test_per_class": 0}, {"size_px": 16}, {"workers": 0}]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        make_pictures(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_a_linear_model_on_raw_pixels_fails(pictures: Path) -> None:
    images, labels = _read(pictures, "train")
    unseen, truth = _read(pictures, "test")
    train = images.reshape(len(images), -1) / 255
    test = unseen.reshape(len(unseen), -1) / 255
    for decay in (0.1, 10.0):
        assert _logistic_accuracy(train, labels, test, truth, decay) <= 0.30


def test_colour_says_nothing_about_the_class(pictures: Path) -> None:
    images, labels = _read(pictures, "train")
    unseen, truth = _read(pictures, "test")
    train, test = images.mean(axis=(1, 2)), unseen.mean(axis=(1, 2))
    assert _centroid_accuracy(train, labels, test, truth) <= CHANCE + 0.08
    assert _logistic_accuracy(train, labels, test, truth, 1e-3) <= CHANCE + 0.08


def test_the_pretraining_task_is_another_task() -> None:
    assert 24 <= len(CLASS_NAMES) <= 40
    assert not set(CLASS_NAMES) & set(CLASSES)
    images, labels = make_arrays(2, seed=1, size_px=48, workers=1)
    assert images.dtype == np.uint8
    assert images.shape == (2 * len(CLASS_NAMES), 48, 48, 3)
    assert labels.dtype == np.int32
    assert np.bincount(labels).tolist() == [2] * len(CLASS_NAMES)
    again, _ = make_arrays(2, seed=1, size_px=48, workers=2)
    other, _ = make_arrays(2, seed=2, size_px=48, workers=1)
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)
    with pytest.raises(SpecError):
        make_arrays(0)


def test_the_weights_are_small_half_precision_and_finite() -> None:
    assert WEIGHTS.stat().st_size <= 1_500_000
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        for key, value in arrays.items():
            layer, _, variable = key.rpartition("/")
            assert layer
            assert variable in VARIABLES
            assert value.dtype == np.float16
            assert np.isfinite(value).all()
            if variable == "moving_variance":
                assert value.min() >= 6e-5


def test_the_weights_cover_the_backbone() -> None:
    tf_keras = pytest.importorskip("tf_keras")
    backbone = tf_keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), alpha=0.35, include_top=False, weights=None
    )
    shapes = {weight.name.split(":")[0]: tuple(weight.shape) for weight in backbone.weights}
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        assert {key: value.shape for key, value in arrays.items()} == shapes
