"""Which picture goes into which split, and the data that is refused."""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from edgekit.data.picture import decode, difference_hash, pixel_digest
from edgekit.data.scan import SPLITS, Source
from edgekit.data.split import Decoded, assign, check, count
from edgekit.errors import DataError
from edgekit.records import SplitName

NAMES = ("cat", "dog")


def item(
    name: str,
    label: int = 0,
    *,
    pixels: str | None = None,
    near: int | None = None,
    split: SplitName | None = None,
) -> Decoded:
    """Returns a readable picture; its pixels and its hash follow from the name unless given."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    source = Source(Path(name), name, label, split, digest)
    return Decoded(source, pixels or digest, int(digest[:16], 16) if near is None else near)


def class_of(size: int, label: int = 0, prefix: str = "") -> list[Decoded]:
    return [item(f"{prefix}{label}/{index}.jpg", label) for index in range(size)]


def divided(
    pictures: Sequence[Decoded], validation: float = 0.15, test: float = 0.15, seed: int = 0
) -> dict[str, SplitName]:
    splits = assign(pictures, validation_fraction=validation, test_fraction=test, seed=seed)
    assert len(splits) == len(pictures)
    return {p.source.relative: split for p, split in zip(pictures, splits, strict=True)}


def test_fractions_hold_in_every_class() -> None:
    pictures = [*class_of(100, 0), *class_of(40, 1)]
    splits = assign(pictures, validation_fraction=0.2, test_fraction=0.1, seed=0)
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
    splits = assign(pictures, validation_fraction=validation, test_fraction=test, seed=seed)
    assert len(splits) == len(pictures)
    counts = count(pictures, splits, len(sizes))
    assert counts.keys() == set(SPLITS)
    for label, size in enumerate(sizes):
        wanted = round(size * test)
        assert counts["test"][label] == wanted
        assert counts["validation"][label] == min(round(size * validation), size - wanted)
        assert sum(counts[split][label] for split in SPLITS) == size


def test_the_order_of_the_files_does_not_matter() -> None:
    pictures = [*class_of(50, 0), *class_of(50, 1)]
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
        item(f"new-{p.source.relative}", pixels=p.pixels, near=p.difference_hash) for p in pictures
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
            bursts[name] = item(name, near=near ^ sum(1 << int(bit) for bit in bits))
    split_of = divided(list(bursts.values()), 0.21, 0.21)
    for scene in range(60):
        assert len({split_of[f"{scene}-{frame}"] for frame in range(3)}) == 1
    # 38 of 180 are wanted, and a burst of 3 that does not fit stays in train.
    assert Counter(split_of.values()) == {"train": 108, "validation": 36, "test": 36}


def test_the_twin_pictures_further_apart_are_split() -> None:
    far = [
        item(f"{i}-{frame}", near=0b111 * frame << (i * 3)) for i in range(1) for frame in (0, 1)
    ]
    for seed in range(20):
        if len(set(divided(far, 0.5, 0.0, seed).values())) == 2:
            break
    else:
        pytest.fail("pictures 3 bits apart were never separated")
    close = [item("a", near=0), item("b", near=0b11)]
    for seed in range(20):
        assert len(set(divided(close, 0.5, 0.0, seed).values())) == 1


def test_a_chain_of_near_pictures_stays_together() -> None:
    chain = [item(str(i), near=(1 << 2 * i) - 1) for i in range(20)]  # 2 bits from step to step
    others = [item(f"other {i}") for i in range(80)]
    split_of = divided([*others, *chain], 0.3, 0.3)
    assert len({split_of[str(i)] for i in range(20)}) == 1


def test_same_pixels_in_one_class_stay_together() -> None:
    pictures = class_of(30)
    copies = [
        item(f"copy {i}", pixels=p.pixels, near=p.difference_hash) for i, p in enumerate(pictures)
    ]
    split_of = divided([*pictures, *copies], 0.3, 0.3)
    assert all(split_of[p.source.relative] == split_of[f"copy {i}"] for i, p in enumerate(pictures))
    both = [*pictures, *copies]
    splits = assign(both, validation_fraction=0.3, test_fraction=0.3, seed=0)
    check(both, splits, ("cat",), 1)


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
            pictures.append(item(name, pixels=pixel_digest(seen), near=difference_hash(seen)))
    assert len({p.pixels for p in pictures}) == 40
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


def refused(pictures: Sequence[Decoded], minimum: int = 3) -> str:
    splits = assign(pictures, validation_fraction=0.2, test_fraction=0.2, seed=0)
    with pytest.raises(DataError) as caught:
        check(pictures, splits, NAMES, minimum)
    assert caught.value.exit_code == 3
    assert caught.value.remedy
    return caught.value.received


def test_good_data_is_not_refused() -> None:
    pictures = arranged()
    splits = assign(pictures, validation_fraction=0.2, test_fraction=0.2, seed=0)
    check(pictures, splits, NAMES, 3)


def test_one_picture_under_two_classes() -> None:
    copy = item("train/dog/x.jpg", 1, split="train", pixels=arranged()[0].pixels)
    said = refused(arranged(copy))
    assert said.startswith("1 pictures stand under two classes")
    assert "train/cat/0.jpg = train/dog/x.jpg" in said


@pytest.mark.parametrize(
    ("first", "second"), [("train", "test"), ("train", "validation"), ("validation", "test")]
)
def test_one_picture_in_two_splits(first: SplitName, second: SplitName) -> None:
    names = f"{first}/cat/x.jpg", f"{second}/cat/y.jpg"
    said = refused(
        arranged(
            item(names[0], split=first, pixels="same"), item(names[1], split=second, pixels="same")
        )
    )
    assert said == f"1 pictures stand in more than one split: {names[0]} = {names[1]}"


def test_long_lists_are_shortened_and_escaped() -> None:
    copies = [
        item(f"{split}/cat/\x1b{i}.jpg", split=split, pixels=str(i))
        for i in range(8)
        for split in SPLITS
    ]
    said = refused(arranged(*copies))
    assert said.startswith("8 pictures stand in more than one split")
    assert said.endswith("test/cat/\\x1b4.jpg and 3 more")


@pytest.mark.parametrize("split", SPLITS)
def test_a_class_without_pictures_in_a_split(split: SplitName) -> None:
    pictures = [p for p in arranged() if not p.source.relative.startswith(f"{split}/dog")]
    assert refused(pictures) == f"class 'dog' has 0 readable pictures in {split}"


def test_too_few_training_pictures() -> None:
    assert refused(arranged(), minimum=4) == "class 'cat' has 3 readable pictures in train"
    assert "class '0'" not in refused([*class_of(2, 0), *class_of(100, 1)], minimum=1)
    with pytest.raises(DataError, match="at least 4"):
        check(arranged(), [p.source.split or "train" for p in arranged()], NAMES, 4)
