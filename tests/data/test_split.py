"""Which picture goes into which split, and the data that is refused."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageDraw

from edgekit.data.names import SPLITS
from edgekit.data.picture import Fingerprint, decode, fingerprint
from edgekit.data.scan import Source
from edgekit.data.split import (
    Copy,
    Decoded,
    assign,
    check,
    copies,
    count,
    near_identical,
    refuse_conflicts,
)
from edgekit.errors import DataError
from edgekit.records import SplitName

NAMES = ("cat", "dog")


def item(
    name: str,
    label: int = 0,
    *,
    pixels: str | None = None,
    near: int | None = None,
    scene: str | None = None,
    split: SplitName | None = None,
) -> Decoded:
    """Returns a readable picture; pixels, hash and miniature follow from the name unless given."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    source = Source(Path(name), name, label, split, digest)
    miniature = hashlib.shake_256((scene or name).encode()).digest(16 * 16 * 3)
    near = int(digest[:16], 16) if near is None else near
    return Decoded(source, Fingerprint(pixels or digest, near, miniature))


def shown(name: str, picture: Image.Image) -> Decoded:
    return Decoded(item(name).source, fingerprint(picture))


def class_of(size: int, label: int = 0, prefix: str = "") -> list[Decoded]:
    return [item(f"{prefix}{label}/{index}.jpg", label) for index in range(size)]


def divided(
    pictures: Sequence[Decoded], validation: float = 0.15, test: float = 0.15, seed: int = 0
) -> dict[str, SplitName]:
    splits, _ = assign(pictures, validation_fraction=validation, test_fraction=test, seed=seed)
    assert len(splits) == len(pictures)
    return {p.source.relative: split for p, split in zip(pictures, splits, strict=True)}


def test_fractions_hold_in_every_class() -> None:
    pictures = [*class_of(100, 0), *class_of(40, 1)]
    splits, _ = assign(pictures, validation_fraction=0.2, test_fraction=0.1, seed=0)
    assert count(pictures, splits, 2) == {
        "train": [70, 28],
        "validation": [20, 8],
        "test": [10, 4],
    }


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    validation=st.floats(0.01, 0.5),
    test=st.floats(0.01, 0.5),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_picture_is_in_one_split_and_every_split_has_its_size(
    sizes: list[int], validation: float, test: float, seed: int
) -> None:
    pictures = [p for label, size in enumerate(sizes) for p in class_of(size, label)]
    splits, _ = assign(pictures, validation_fraction=validation, test_fraction=test, seed=seed)
    assert len(splits) == len(pictures)
    counts = count(pictures, splits, len(sizes))
    assert counts.keys() == set(SPLITS)
    for label, size in enumerate(sizes):
        wanted = round(size * test)
        assert counts["test"][label] == wanted
        assert counts["validation"][label] == min(round(size * validation), size - wanted)
        assert sum(counts[split][label] for split in SPLITS) == size


def test_the_order_of_the_files_does_not_matter() -> None:
    chain = [item(str(i), near=(1 << 3 * i) - 1, scene="s") for i in range(21)]
    pictures = [*class_of(50, 0), *class_of(50, 1), *chain]
    assert divided(pictures[::-1]) == divided(pictures)


def test_the_seed_decides() -> None:
    pictures = class_of(200)
    assert divided(pictures, seed=7) == divided(pictures, seed=7)
    moved = [
        name
        for name, split in divided(pictures, seed=7).items()
        if divided(pictures, seed=8)[name] != split
    ]
    # Two independent draws of 70/15/15 differ in 1 - (.49 + .0225 + .0225) = 46 % of 200.
    assert 60 < len(moved) < 125


def test_the_name_does_not_decide() -> None:
    pictures = class_of(60)
    renamed = [
        item(f"new-{p.source.relative}", pixels=p.look.pixels, near=p.look.difference_hash)
        for p in pictures
    ]
    assert list(divided(pictures).values()) == list(divided(renamed).values())


@pytest.mark.parametrize("added", [1, 3])
def test_new_pictures_move_few_others(added: int) -> None:
    pictures = class_of(200)
    before = divided(pictures)
    after = divided([*class_of(added, prefix="new"), *pictures])
    moved = [name for name in before if before[name] != after[name]]
    # Each new picture can push one over each of the two borders, and so can the rounding.
    assert len(moved) <= 2 * added + 2
    # The twin: another seed moves far more.
    again = divided([*class_of(added, prefix="new"), *pictures], seed=1)
    assert len([name for name in before if before[name] != again[name]]) > 60


def test_near_identical_pictures_stay_together() -> None:
    rng = np.random.default_rng(0)
    bursts = {}
    for scene in range(60):
        near = int(rng.integers(0, 2**63))
        for frame in range(3):
            bits = rng.choice(64, frame, replace=False)
            name = f"{scene}-{frame}"
            bursts[name] = item(
                name, near=near ^ sum(1 << int(bit) for bit in bits), scene=str(scene)
            )
    split_of = divided(list(bursts.values()), 0.21, 0.21)
    for scene in range(60):
        assert len({split_of[f"{scene}-{frame}"] for frame in range(3)}) == 1
    # 38 of 180 are wanted, and a burst of 3 that does not fit stays in train.
    assert Counter(split_of.values()) == {"train": 108, "validation": 36, "test": 36}


def separated(pictures: Sequence[Decoded]) -> bool:
    """Returns whether any of 20 seeds puts the pictures on more than one side."""
    return any(len(set(divided(pictures, 0.5, 0.0, seed).values())) > 1 for seed in range(20))


def test_the_twin_pictures_further_apart_are_split() -> None:
    first = item("a", near=0, scene="s")
    assert not separated([first, item("b", near=0b1111, scene="s")])
    assert separated([first, item("b", near=0b11111, scene="s")])
    # One hash is not enough: what the pictures show decides.
    assert separated([first, item("b", near=0, scene="t")])


@pytest.mark.parametrize(
    ("spread", "difference", "apart"),
    [(0, 4, False), (0, 5, True), (50, 33, False), (50, 35, True)],
)
def test_the_tolerance_grows_with_the_contrast(spread: int, difference: int, apart: bool) -> None:
    """4 levels and 0.6 times the standard deviation, which is `spread` for +- spread."""
    values = np.full((256, 3), 100, np.uint8)
    values[::2] += np.uint8(spread)
    values[1::2] -= np.uint8(spread)
    other = values.copy()
    other[7, 1] += np.uint8(difference)  # one value of one part
    pictures = [
        Decoded(item(name).source, Fingerprint(name, 0, shown.tobytes()))
        for name, shown in (("a", values), ("b", other))
    ]
    assert separated(pictures) == apart


def test_a_chain_of_near_pictures_is_no_group() -> None:
    chain = [item(str(i), near=(1 << 3 * i) - 1, scene="s") for i in range(20)]  # 3 bits per step
    splits, merged = assign(chain, validation_fraction=0.3, test_fraction=0.3, seed=0)
    assert count(chain, splits, 1) == {"train": [8], "validation": [6], "test": [6]}
    assert max(map(len, merged)) <= 3  # the first and one on each side of it


def ellipse(rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (128, 128), "white")
    x, y = rng.integers(40, 88, 2).tolist()
    a, b = rng.integers(4, 40, 2).tolist()
    colour = tuple(rng.integers(0, 256, 3).tolist())
    ImageDraw.Draw(picture).ellipse((x - a, y - b, x + a, y + b), fill=colour)
    return picture


def digit(rng: np.random.Generator) -> Image.Image:
    """Returns a white "1" of 28 px on black: its place, slant, grey and width vary."""
    picture = Image.new("L", (28, 28))
    x, top, slant = int(rng.integers(10, 18)), int(rng.integers(4, 7)), int(rng.integers(-3, 4))
    fill = int(rng.integers(128, 256))
    line = (x, top, x + slant, 24)
    ImageDraw.Draw(picture).line(line, fill=fill, width=int(rng.integers(2, 4)))
    return picture.convert("RGB")


def flat(rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", (32, 32), tuple(rng.integers(0, 256, 3).tolist()))


@pytest.mark.parametrize("draw", [ellipse, digit, flat])
def test_a_class_of_similar_drawings_is_divided(
    draw: Callable[[np.random.Generator], Image.Image],
) -> None:
    rng = np.random.default_rng(5)
    pictures = [shown(f"{i}", draw(rng)) for i in range(400)]
    splits, merged = assign(pictures, validation_fraction=0.15, test_fraction=0.15, seed=0)
    assert count(pictures, splits, 1) == {"train": [280], "validation": [60], "test": [60]}
    assert max((len(group) for group in merged), default=1) <= 8


@pytest.mark.timeout(60)
def test_thousands_of_drawings_with_one_hash_do_not_hang() -> None:
    """4000 drawings that share one hash are 8 million pairs; not all of them are compared."""
    rng = np.random.default_rng(6)
    pictures = []
    for index in range(4000):
        values = np.full((256, 3), 255, np.uint8)
        values[rng.integers(0, 256, 4)] = rng.integers(0, 255, 3)
        look = Fingerprint(hashlib.sha256(str(index).encode()).hexdigest(), 0, values.tobytes())
        pictures.append(Decoded(item(str(index)).source, look))
    splits, _ = assign(pictures, validation_fraction=0.15, test_fraction=0.15, seed=0)
    assert splits.count("test") == splits.count("validation") == 600


def test_near_identical_pictures_of_two_classes_stay_together() -> None:
    others = [item(f"{label}/{i}", label) for label in (0, 1) for i in range(40)]
    twins = [
        item(f"{label}/twin {i}", label, near=7 * i, scene=f"scene {i}")
        for i in range(20)
        for label in (0, 1)
    ]
    for seed in range(3):
        split_of = divided([*others, *twins], 0.25, 0.25, seed)
        assert all(split_of[f"0/twin {i}"] == split_of[f"1/twin {i}"] for i in range(20))
        assert len({split_of[f"0/twin {i}"] for i in range(20)}) == 3
        assert Counter(split_of.values()) == {"train": 60, "validation": 30, "test": 30}


@pytest.mark.parametrize("crowded", [0, 1])
def test_a_group_of_two_classes_must_fit_the_share_of_both(crowded: int) -> None:
    mixed = [
        item("one", 1 - crowded, pixels="0", near=0, scene="s"),  # the first of the group
        *(item(f"three {i}", crowded, near=0, scene="s") for i in range(3)),
    ]
    pictures = [*class_of(60, 1 - crowded), *class_of(1, crowded, "x"), *mixed]
    for seed in range(10):
        splits, _ = assign(pictures, validation_fraction=0.25, test_fraction=0.25, seed=seed)
        counts = count(pictures, splits, 2)
        # A quarter of 4 is 1: the three do not fit.
        assert {split: counts[split][crowded] for split in SPLITS} == {
            "train": 3,
            "validation": 0,
            "test": 1,
        }


def test_merged_groups_are_told() -> None:
    pictures = [item("a", near=0, scene="s"), item("b"), item("c", 1, near=1, scene="s")]
    _, merged = assign(pictures, validation_fraction=0.2, test_fraction=0.2, seed=0)
    assert [sorted(group) for group in merged] == [[0, 2]]


def test_same_pixels_in_one_class_stay_together() -> None:
    pictures = class_of(30)
    copies = [
        item(f"copy {i}", pixels=p.look.pixels, near=p.look.difference_hash)
        for i, p in enumerate(pictures)
    ]
    split_of = divided([*pictures, *copies], 0.3, 0.3)
    assert all(split_of[p.source.relative] == split_of[f"copy {i}"] for i, p in enumerate(pictures))
    both = [*pictures, *copies]
    splits, _ = assign(both, validation_fraction=0.3, test_fraction=0.3, seed=0)
    checked(both, splits, ("cat",), 1)


def test_recompressed_pictures_stay_together() -> None:
    rng = np.random.default_rng(3)
    pictures = []
    for scene in range(20):
        cells = Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8))
        picture = cells.resize((180, 160), Image.Resampling.NEAREST)
        for quality in (95, 60):
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=quality)
            seen = decode(stream.getvalue())
            name = f"{scene} at {quality}"
            pictures.append(shown(name, seen))
    assert len({p.look.pixels for p in pictures}) == 40
    split_of = divided(pictures, 0.2, 0.2)
    assert set(split_of.values()) == set(SPLITS)
    for scene in range(20):
        assert split_of[f"{scene} at 95"] == split_of[f"{scene} at 60"]


def test_split_folders_are_kept() -> None:
    pictures = [item(f"{i}", split=SPLITS[i % 3], near=0) for i in range(9)]
    for seed in range(3):
        assert list(divided(pictures, seed=seed).values()) == [SPLITS[i % 3] for i in range(9)]


def arranged(*extra: Decoded) -> list[Decoded]:
    """Returns three pictures of each class in each split, and more."""
    return [
        *(
            item(f"{split}/{NAMES[label]}/{i}.jpg", label, split=split)
            for split in SPLITS
            for label in (0, 1)
            for i in range(3)
        ),
        *extra,
    ]


def checked(
    pictures: Sequence[Decoded],
    splits: Sequence[SplitName],
    names: tuple[str, ...],
    minimum: int,
    *,
    validation: float = 0.2,
    test: float = 0.2,
) -> None:
    check(
        pictures,
        splits,
        names,
        min_images_per_class=minimum,
        validation_fraction=validation,
        test_fraction=test,
    )


def refusal(
    pictures: Sequence[Decoded], minimum: int = 3, validation: float = 0.2, test: float = 0.2
) -> DataError:
    splits, _ = assign(pictures, validation_fraction=validation, test_fraction=test, seed=0)
    with pytest.raises(DataError) as caught:
        checked(pictures, splits, NAMES, minimum, validation=validation, test=test)
    assert caught.value.exit_code == 3
    assert caught.value.remedy
    return caught.value


def refused(pictures: Sequence[Decoded], minimum: int = 3) -> str:
    return refusal(pictures, minimum).received


def test_good_data_is_not_refused() -> None:
    pictures = arranged()
    splits, _ = assign(pictures, validation_fraction=0.2, test_fraction=0.2, seed=0)
    checked(pictures, splits, NAMES, 3)


def test_one_picture_under_two_classes() -> None:
    copy = item("train/dog/x.jpg", 1, split="test", pixels=arranged()[0].look.pixels)
    assert copies(arranged(copy)) == [Copy(0, 18, "two-classes"), Copy(18, 0, "two-classes")]


@pytest.mark.parametrize(
    ("first", "second"), [("train", "test"), ("train", "validation"), ("validation", "test")]
)
def test_one_picture_in_two_splits(first: SplitName, second: SplitName) -> None:
    pictures = arranged(
        item("x.jpg", split=first, pixels="same"), item("y.jpg", split=second, pixels="same")
    )
    assert copies(pictures) == [Copy(18, 19, "copy")]
    assert copies([*pictures[:18], *pictures[:17:-1]]) == [Copy(19, 18, "copy")]


def test_pictures_that_are_divided_are_left_out_only_for_those_held_out_already() -> None:
    pair = [item(name, pixels="same") for name in ("x.jpg", "y.jpg")]
    assert copies([*class_of(4), *pair]) == []
    held_out = item("test/z.jpg", split="test", pixels="same")
    assert copies([*pair, held_out]) == [Copy(0, 2, "copy"), Copy(1, 2, "copy")]


def test_one_group_under_two_classes_passes_and_long_lists_are_shortened_and_escaped() -> None:
    pictures = [
        item(f"{NAMES[label]}/\x1b{i}.jpg", label, pixels=str(i))
        for i in range(8)
        for label in (0, 1)
    ]
    other = item("cat/other.jpg")
    refuse_conflicts([*pictures[:2], other], copies(pictures[:2]), 0.01)
    refuse_conflicts([*pictures, other], copies(pictures), 16 / 17)
    with pytest.raises(DataError, match="2 of 2"):  # nothing would be left
        refuse_conflicts(pictures[:2], copies(pictures[:2]), 1.0)
    with pytest.raises(DataError) as caught:
        refuse_conflicts([*pictures, other], copies(pictures), 0.94)
    assert caught.value.received.startswith("16 of 17 pictures stand under two classes")
    assert caught.value.received.endswith("dog/\\x1b4.jpg and 3 more")
    with pytest.raises(DataError, match="2 of 3"):
        refuse_conflicts([*pictures[:2], other], copies(pictures[:2]), 0.0)


def test_near_identical_pictures_across_splits_and_classes() -> None:
    pictures = [
        item("train", split="train", near=0, scene="s"),
        item("validation", split="validation", near=1, scene="s"),
        item("test", 1, split="test", near=3, scene="s"),
        item("other", 1, split="test", near=0, scene="t"),
    ]
    found = near_identical(pictures, [p.source.split or "train" for p in pictures])
    assert found.across_splits == {1: 0, 2: 0}  # of several the one that training sees
    assert found.across_classes == {0: 2, 1: 2, 2: 0}


def test_near_identical_pictures_on_both_sides_of_a_split_that_edgekit_made_are_no_news() -> None:
    chain = [item(str(i), near=(1 << 3 * i) - 1, scene="s") for i in range(20)]
    splits, _ = assign(chain, validation_fraction=0.3, test_fraction=0.3, seed=0)
    assert not near_identical(chain, splits).across_splits
    # Twin: of a split that was given they are.
    held_out = item("given", near=0, scene="s", split="test")
    splits, _ = assign([*chain, held_out], validation_fraction=0.3, test_fraction=0.3, seed=0)
    assert near_identical([*chain, held_out], splits).across_splits == {20: 0}


@pytest.mark.parametrize("split", SPLITS)
def test_a_class_without_pictures_in_a_split(split: SplitName) -> None:
    pictures = [p for p in arranged() if not p.source.relative.startswith(f"{split}/dog")]
    assert refused(pictures) == f"class 'dog' has 0 readable pictures in {split}"


def test_too_few_training_pictures() -> None:
    assert refused(arranged(), minimum=4) == "class 'cat' has 3 readable pictures in train"
    assert "class '0'" not in refused([*class_of(2, 0), *class_of(100, 1)], minimum=1)
    with pytest.raises(DataError, match="at least 4"):
        checked(arranged(), [p.source.split or "train" for p in arranged()], NAMES, 4)


@pytest.mark.parametrize(("split", "option"), [("validation", "validation"), ("test", "test")])
def test_the_remedy_for_an_empty_split_is_its_fraction(split: str, option: str) -> None:
    shares = {"validation": 0.3, "test": 0.3, split: 0.1}
    pictures = [*class_of(5, 0), *class_of(6, 1)]
    said = refusal(pictures, minimum=1, **shares)
    assert said.received == f"class 'cat' has 0 readable pictures in {split}, of 5 in all"
    assert said.expected == f"at least 6 pictures, of which data.{option}_fraction = 0.1 gives 1"
    assert said.remedy == ("add 1 pictures, remove the class, or raise that fraction above 0.1")
    # Both remedies work.
    for repaired, fraction in (([*class_of(6, 0), *class_of(6, 1)], 0.1), (pictures, 0.11)):
        splits, _ = assign(
            repaired,
            validation_fraction=(shares | {split: fraction})["validation"],
            test_fraction=(shares | {split: fraction})["test"],
            seed=0,
        )
        checked(repaired, splits, NAMES, 1)


def test_the_remedy_where_near_identical_pictures_leave_a_split_empty() -> None:
    same = [item(f"{i}", near=0, scene="s") for i in range(30)]
    said = refusal([*same, *class_of(30, 1)])
    assert said.received == "class 'cat' has 0 readable pictures in validation, of 30 in all"
    assert "data.validation_fraction = 0.2" in said.expected
    assert "near-identical" in said.expected
    assert "other scenes" in said.remedy
    assert "min_images" not in said.remedy


def test_the_remedy_for_an_empty_split_folder() -> None:
    pictures = [p for p in arranged() if not p.source.relative.startswith("test/dog")]
    assert refusal(pictures).remedy == (
        "add pictures of it to the folder test, or remove the class"
    )
