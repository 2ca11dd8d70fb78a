"""Wrong labels are found by what the pictures show, through the command line too."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from small_run import edgekit, write_recipe

from edgekit.demo.pictures import make_pictures
from edgekit.train.suspicion import confusions, judged_by_others, suspicions

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]


def blobs(classes: int = 4, size: int = 30, apart: float = 1.0) -> tuple[Features, Labels]:
    """Returns features of classes around points that lie apart, in 40 dimensions."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(classes, dtype=np.int32), size)
    centres = apart * rng.normal(size=(classes, 40))
    return (centres[labels] + rng.normal(size=(len(labels), 40))).astype(np.float32), labels


def flipped(labels: Labels, rows: list[int]) -> Labels:
    wrong = labels.copy()
    wrong[rows] = (wrong[rows] + 1) % (labels.max() + 1)
    return wrong


def test_flipped_labels_are_found_with_the_right_class() -> None:
    features, labels = blobs()
    rows = [3, 40, 77, 111]
    wrong = flipped(labels, rows)
    found = suspicions(judged_by_others(features, wrong, 4, seed=1), wrong)
    assert sorted(item.row for item in found) == rows
    assert all(item.suggested == labels[item.row] for item in found)
    assert [item.odds for item in found] == sorted((i.odds for i in found), reverse=True)
    assert all(0.8 < item.confidence <= 1 for item in found)
    # Twins: right labels, and features that say nothing about them.
    assert suspicions(judged_by_others(features, labels, 4, seed=1), labels) == []
    noise = np.random.default_rng(2).normal(size=features.shape).astype(np.float32)
    assert suspicions(judged_by_others(noise, wrong, 4, seed=1), wrong) == []


def test_a_picture_has_no_part_in_its_own_judgement() -> None:
    """A row that is far from all others would vouch for itself."""
    features, labels = blobs()
    features[5] = features[60]
    features[5, :] += 0.01
    judged = judged_by_others(features, labels, 4, seed=1)
    assert judged[5].argmax() == labels[60] != labels[5]


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    features, labels = blobs(apart=0.3)
    once, again, other = (judged_by_others(features, labels, 4, seed) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
    assert np.allclose(np.exp(once).sum(axis=1), 1)


def test_nothing_is_said_of_classes_of_very_few_pictures() -> None:
    features, labels = blobs(classes=3)
    labels[:2] = 3
    judged = judged_by_others(features, labels, 5, seed=1)
    assert np.isfinite(judged).all()
    assert not [item for item in suspicions(judged, labels) if labels[item.row] == 3]
    assert not [item for item in suspicions(judged, labels) if item.suggested >= 3]


def test_features_that_are_all_alike_say_nothing() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), 10)
    judged = judged_by_others(np.ones((30, 8), np.float32), labels, 3, seed=1)
    assert np.isfinite(judged).all()
    assert suspicions(judged, labels) == []


def test_classes_that_cannot_be_told_apart_are_named() -> None:
    features, labels = blobs(classes=4, size=60, apart=2.0)
    labels[labels == 3] = np.tile([2, 3], 30)
    labels[labels == 2] = np.resize([2, 3], (labels == 2).sum())
    judged = judged_by_others(features, labels, 4, seed=1)
    (pair,) = confusions(judged, labels)
    assert (pair.first, pair.second) == (2, 3)
    assert min(pair.first_as_second, pair.second_as_first) > 0.25
    clear, right = blobs(classes=4, size=60, apart=2.0)
    assert confusions(judged_by_others(clear, right, 4, seed=1), right) == []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draws 8 classes of the demo, of which 6 pictures are put into another class."""
    pytest.importorskip("tensorflow")
    root = tmp_path_factory.mktemp("drawn") / "pictures"
    make_pictures(root, train_per_class=40, validation_per_class=12, test_per_class=12, size_px=64)
    for index in range(6):
        drawn = root / "train" / "gear" / f"{index:04d}.jpg"
        drawn.rename(root / "train" / "hammer" / f"gear {index}.jpg")
    return root


@pytest.mark.slow
def test_moved_pictures_are_named_before_training(pictures: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", pictures, check_labels=True)
    out = tmp_path / "out"
    done = edgekit("run", str(recipe), "--out", str(out), "--until", "labels")
    assert done.returncode == 0, done.stderr
    with (out / "suspicious_labels.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["path", "split", "label", "suggested", "confidence", "action"]
    moved = [row for row in rows if "/gear " in row["path"]]
    assert len(moved) >= 4
    assert {(row["label"], row["split"], row["action"]) for row in rows if row in moved} == {
        ("hammer", "train", "")
    }
    assert {row["suggested"] for row in moved} <= {"gear", "sprocket"}
    said = " ".join((done.stdout + done.stderr).split())
    told = re.search(r"labels: (\d+) of 512 pictures look like another class", said)
    assert told is not None
    assert int(told[1]) == len(rows)
    page = (out / "suspicious_labels.html").read_text()
    assert page.count("<img ") == len(rows)
    assert moved[0]["path"] in page
    assert "http" not in page  # it needs nothing beside it
    (record,) = out.glob(".store/labels/*/record.json")
    assert json.loads(record.read_text())["record"]["suspicious"] == len(rows)
    # Twin: where the recipe does not want it, nothing is looked for.
    unasked = write_recipe(tmp_path / "unasked.toml", pictures)
    done = edgekit("run", str(unasked), "--out", str(tmp_path / "other"), "--until", "labels")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "other" / "suspicious_labels.csv").exists()


def test_random_weights_see_nothing(pictures: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", pictures, check_labels=True)
    done = edgekit(
        "run", str(recipe), "--out", str(tmp_path / "out"), "--weights", "none",
        "--until", "labels",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "labels: not checked, as random weights see nothing" in done.stdout + done.stderr
