"""The data stage: decode every picture once, in parallel, into memory-mapped uint8 arrays."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.data.appearance import Appearance, unusual
from edgekit.data.files import printable
from edgekit.data.findings import (
    LEFT_OUT,
    copy_notes,
    near_notes,
    skipped_copies,
    unusual_notes,
    write_left_out,
    write_near_identical,
    write_unusual,
)
from edgekit.data.names import SPLITS
from edgekit.data.picture import Seen, Traits, UnreadableError, read
from edgekit.data.scan import Progress, Scan, Source
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
from edgekit.errors import DataError, SpecError
from edgekit.limits import PICTURE_MEGAPIXELS
from edgekit.processes import apart
from edgekit.recipe import DataSpec
from edgekit.records import DatasetRecord, Preprocess, SkippedFile, SplitName, SplitRecord

# Pictures that one process decodes at a time, and the memory that they take.
_CHUNK = 64
_CHUNK_BYTES = 64 * 1024**2
_SHOWN = 10
# Grey pictures of 16 bits that leave two or more of them unused hold what a sensor of 14, 12 or 10
# bits wrote: their brightest value is below a quarter of white.
_FEW_BITS = 14
# Pictures that `look_into` decodes: at most 1.5 % of all are unusable at a 95 % limit where none of
# them is (the rule of three: 3 / 200).
_LOOKED_INTO = 200
_WHITE = 65535
# At 2 : 1 the answer "always the larger class" is right for 2 of 3 pictures of the two classes:
# about where an accuracy can look good while the smaller class is never recognized.
_IMBALANCED = 2


def decode(
    scanned: Scan,
    preprocess: Preprocess,
    spec: DataSpec,
    folder: Path,
    *,
    seed: int,
    progress: Progress,
) -> DatasetRecord:
    """Decodes all pictures and writes the arrays of each split into `folder`.

    Args:
        scanned: The files.
        preprocess: Size, crop, filter and channel order.
        spec: What the recipe asks for: shares of the splits when edgekit splits, and what refuses
            the data.
        folder: Receives `<split>.images.npy` (uint8, (n, h, w, 3)), `<split>.labels.npy` (int32,
            (n,)) and `<split>.files.json` (relative paths), rows in scan order, and the tables of
            `findings` that have something to list, also where the data is refused.
        seed: Seed of the split.
        progress: Called with (pictures done, pictures in all).

    Raises:
        DataError: If too many pictures are unusable or stand under two classes, one changed since
            the scan, or `split.check` refuses the data.
    """
    pixels_path = folder / "all.tmp.npy"
    started = time.monotonic()
    found = decode_all(scanned, preprocess, pixels_path, progress, spec.max_megapixels)
    decoded = found.decoded
    rate = len(scanned.sources) / (time.monotonic() - started)
    doubled = copies(decoded)
    left_out = (*scanned.skipped, *found.skipped, *skipped_copies(decoded, doubled))
    write_left_out(folder, left_out)
    refuse_many(len(decoded), left_out, spec.max_bad_fraction, f"\n  {LEFT_OUT} lists all of them")
    refuse_conflicts(decoded, doubled, spec.max_conflicting_fraction)
    fractions = {
        "validation_fraction": spec.validation_fraction,
        "test_fraction": spec.test_fraction,
    }
    rows = _kept(decoded, doubled)
    used = [decoded[row] for row in rows]
    splits, merged = assign(used, **fractions, seed=seed)
    near = near_identical(used, splits)
    write_near_identical(folder, used, splits, scanned.class_names, near)
    odd = unusual([found.appearances[row] for row in rows], preprocess)
    write_unusual(folder, used, splits, scanned.class_names, odd)
    check(
        used,
        splits,
        scanned.class_names,
        min_images_per_class=spec.min_images_per_class,
        **fractions,
        left_out=[decoded[copy.index].source for copy in doubled],
    )
    pixels = np.load(pixels_path, mmap_mode="r")
    for split in SPLITS:
        chosen = [i for i, name in enumerate(splits) if name == split]
        write_rows(folder / f"{split}.images.npy", pixels, [rows[i] for i in chosen])
        _write_labels(folder, split, [used[i] for i in chosen])
    del pixels
    pixels_path.unlink()
    counts = count(used, splits, len(scanned.class_names))
    return DatasetRecord(
        class_names=scanned.class_names,
        preprocess=preprocess,
        splits={s: SplitRecord(count=sum(counts[s]), per_class=tuple(counts[s])) for s in SPLITS},
        skipped=left_out,
        notes=(
            *copy_notes(decoded, doubled),
            *_imbalance(scanned.class_names, counts["train"]),
            *_merged(merged),
            *near_notes(used, splits, near),
            *unusual_notes(used, odd),
            *_told(found.traits),
        ),
        digest=scanned.digest,
        images_per_second=rate,
    )


def _kept(pictures: Sequence[Decoded], left_out: Sequence[Copy]) -> list[int]:
    """Returns the indices of the pictures that are used."""
    out = {copy.index for copy in left_out}
    return [index for index in range(len(pictures)) if index not in out]


class Folder(NamedTuple):
    """A labelled folder, decoded as one set.

    Args:
        images: Path of a uint8 `.npy` of shape (n, h, w, 3).
        labels: int32 of shape (n,).
        sources: The file of each row.
        skipped: Files left out.
        notes: What is worth saying of the pictures.
    """

    images: Path
    labels: npt.NDArray[np.int32]
    sources: tuple[Source, ...]
    skipped: tuple[SkippedFile, ...]
    notes: tuple[str, ...]


def read_folder(
    scanned: Scan,
    preprocess: Preprocess,
    folder: Path,
    progress: Progress,
    *,
    max_bad_fraction: float = 0.01,
    max_conflicting_fraction: float = 0.01,
    max_megapixels: float = PICTURE_MEGAPIXELS,
) -> Folder:
    """Decodes a labelled folder as one set, whatever its splits, to judge a finished file on it.

    Pictures under two classes with the same pixels are left out, as no answer to them is right.

    Args:
        scanned: The files.
        preprocess: Size, crop, filter and channel order.
        folder: Receives the pixels.
        progress: Called with (pictures done, pictures in all).
        max_bad_fraction: Largest share of pictures that may be unusable. Defaults to 0.01.
        max_conflicting_fraction: Largest share of pictures that may stand under two classes, but
            for one group of them. Defaults to 0.01.
        max_megapixels: Largest picture that is decoded, in millions of pixels.

    Returns:
        The pictures, in scan order.

    Raises:
        DataError: If too many pictures are unusable or stand under two classes, none is readable,
            or one changed since the scan.
    """
    path, every = folder / "images.npy", folder / "all.tmp.npy"
    found = decode_all(scanned, preprocess, every, progress, max_megapixels)
    decoded, skipped = found.decoded, found.skipped
    refuse_many(len(decoded), (*scanned.skipped, *skipped), max_bad_fraction)
    if not decoded:
        raise DataError(
            f"none of the {len(skipped)} picture files is readable; {skipped[0].path}: "
            f"{skipped[0].reason}",
            "at least one readable picture",
            "check how the folder was copied",
        )
    # Of one set as a whole, copies in several splits are nothing to leave out.
    doubled = [copy for copy in copies(decoded) if copy.kind == "two-classes"]
    refuse_conflicts(decoded, doubled, max_conflicting_fraction)
    rows = _kept(decoded, doubled)
    write_rows(path, np.load(every, mmap_mode="r"), rows)
    every.unlink()
    labels = np.array([decoded[row].source.label for row in rows], np.int32)
    sources = tuple(decoded[row].source for row in rows)
    left_out = (*scanned.skipped, *skipped, *skipped_copies(decoded, doubled))
    return Folder(path, labels, sources, left_out, _told(found.traits))


class Look(NamedTuple):
    """What some pictures of a folder are like.

    Args:
        tried: How many were decoded, or could not be.
        skipped: Those that cannot be used.
        notes: What is worth saying of the others.
    """

    tried: int
    skipped: tuple[SkippedFile, ...]
    notes: tuple[str, ...]


def look_into(scanned: Scan, max_megapixels: float = PICTURE_MEGAPIXELS) -> Look:
    """Decodes up to 200 pictures, spread over a folder, and returns what they are like.

    Args:
        scanned: The files.
        max_megapixels: Largest picture that is decoded, in millions of pixels.

    Raises:
        DataError: If one changed since the scan.
    """
    step = max(1, math.ceil(len(scanned.sources) / _LOOKED_INTO))
    some = scanned.sources[::step]
    traits: dict[str, Traits] = {}
    skipped = []
    contract = Preprocess(height_px=160, width_px=160)
    for source, seen in _seen(some, 1, contract, max_megapixels):
        if isinstance(seen, str):
            skipped.append(SkippedFile(path=printable(source.relative), reason=seen))
        else:
            traits[source.relative] = seen.traits
    return Look(len(some), tuple(skipped), _told(traits))


def too_many_left_out(usable: int, skipped: Sequence[SkippedFile], max_bad_fraction: float) -> str:
    """Returns in words how many pictures cannot be used, if they are too many; else "".

    Args:
        usable: How many can be used.
        skipped: What is left out, of whatever kind.
        max_bad_fraction: Largest share of all pictures that may be unusable.
    """
    bad = sum(item.kind == "unusable" for item in skipped)
    total = usable + bad
    if bad <= max_bad_fraction * total:
        return ""
    return f"{bad:,} of {total:,} pictures ({bad / total:.1%}) cannot be used"


class _Read(NamedTuple):
    """What decoding came to.

    Args:
        decoded: The readable pictures.
        appearances: What they look like.
        traits: What is worth saying of one, by its path.
        skipped: The others.
    """

    decoded: list[Decoded]
    appearances: list[Appearance]
    traits: dict[str, Traits]
    skipped: list[SkippedFile]


def decode_all(
    scanned: Scan, preprocess: Preprocess, path: Path, progress: Progress, max_megapixels: float
) -> _Read:
    """Writes the readable pictures one behind the other; rows after the last stay unused."""
    total = len(scanned.sources)
    shape = (total, preprocess.height_px, preprocess.width_px, 3)
    # A second copy is written before this one is deleted.
    _refuse_without_room(path.parent, 2 * math.prod(shape), scanned.root)
    pixels = _new_array(path, shape)
    step = _rows_at_once(shape)
    decoded, appearances, traits, skipped = found = _Read([], [], {}, [])
    for source, seen in _seen(scanned.sources, step, preprocess, max_megapixels):
        if isinstance(seen, str):
            skipped.append(SkippedFile(path=printable(source.relative), reason=seen))
        else:
            pixels[len(decoded)] = seen.pixels
            decoded.append(Decoded(source, seen.look))
            appearances.append(seen.appearance)
            if seen.traits != Traits():
                traits[source.relative] = seen.traits
        done = len(decoded) + len(skipped)
        if done % step == 0 or done == total:
            progress(done, total)
    pixels.flush()
    return found


def _seen(
    sources: Sequence[Source], step: int, preprocess: Preprocess, max_megapixels: float
) -> Iterator[tuple[Source, Seen | str]]:
    """Yields each file with what is seen of it, or why it is not read; `step` at a time."""
    chunks = [sources[i : i + step] for i in range(0, len(sources), step)]
    work = partial(_decode_chunk, preprocess=preprocess, max_megapixels=max_megapixels)
    with apart(work, chunks, os.cpu_count() or 1) as decoding:
        for chunk, results in zip(chunks, decoding, strict=True):
            yield from zip(chunk, results, strict=True)


def _refuse_without_room(folder: Path, needed_bytes: int, root: Path) -> None:
    """Refuses to write pictures that the disk has no room for, before it is full."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise SpecError(
            f"{root}: decoding its pictures takes {needed_bytes:,} bytes in {folder}, and "
            f"{free_bytes:,} are free",
            "space on that disk",
            "free some, or use another disk: --out says where a run goes, TMPDIR where temporary "
            "files go",
        )


def _rows_at_once(shape: tuple[int, ...]) -> int:
    """Returns how many pictures of an array of shape (n, h, w, 3) are moved at a time."""
    return max(1, min(_CHUNK, _CHUNK_BYTES // math.prod(shape[1:])))


def _new_array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Returns a new memory-mapped file whose blocks exist, as a full disk kills who maps a hole."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def _decode_chunk(
    sources: Sequence[Source], preprocess: Preprocess, max_megapixels: float
) -> list[Seen | str]:
    results: list[Seen | str] = []
    for source in sources:
        try:
            results.append(read(source.path, preprocess, source.sha256, max_megapixels))
        except UnreadableError as reason:
            results.append(str(reason))
    return results


def refuse_many(
    usable: int, skipped: Sequence[SkippedFile], max_bad_fraction: float, listed: str = ""
) -> None:
    """Refuses too many pictures that cannot be used.

    Args:
        usable: How many can be used.
        skipped: What is left out, of whatever kind.
        max_bad_fraction: Largest share of all pictures that may be unusable.
        listed: What to say of where all of them are listed. Defaults to "": nothing.

    Raises:
        DataError: If there are more.
    """
    received = too_many_left_out(usable, skipped, max_bad_fraction)
    if not received:
        return
    bad = [item for item in skipped if item.kind == "unusable"]
    shown = "\n".join(f"  {item.path}: {item.reason}" for item in bad[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    raise DataError(
        f"{received}:\n{shown}{more}{listed}",
        f"at most {max_bad_fraction:.1%} (data.max_bad_fraction)",
        "repair, convert or delete these files, or raise data.max_bad_fraction or "
        "--max-bad-fraction",
    )


def write_rows(path: Path, pixels: npt.NDArray[np.uint8], rows: list[int]) -> None:
    """Writes some rows of an array of shape (n, h, w, 3) into a new one, some at a time."""
    images = _new_array(path, (len(rows), *pixels.shape[1:]))
    step = _rows_at_once(pixels.shape)
    for start in range(0, len(rows), step):
        images[start : start + step] = pixels[rows[start : start + step]]
    images.flush()


def _write_labels(folder: Path, split: SplitName, pictures: list[Decoded]) -> None:
    labels = np.array([picture.source.label for picture in pictures], np.int32)
    np.save(folder / f"{split}.labels.npy", labels)
    names = [printable(picture.source.relative) for picture in pictures]
    (folder / f"{split}.files.json").write_text(json.dumps(names, indent=0))


def _imbalance(class_names: tuple[str, ...], counts: list[int]) -> tuple[str, ...]:
    largest, smallest = int(np.argmax(counts)), int(np.argmin(counts))
    ratio = counts[largest] / max(counts[smallest], 1)
    if ratio < _IMBALANCED:
        return ()
    return (
        f"class imbalance in train: {class_names[largest]} has {counts[largest]} pictures, "
        f"{class_names[smallest]} has {counts[smallest]} ({ratio:.1f} : 1); "
        "read the recall per class, not only the accuracy",
    )


def _merged(groups: list[list[int]]) -> tuple[str, ...]:
    if not groups:
        return ()
    return (
        f"near-identical pictures were kept on one side of the split: {len(groups)} groups, "
        f"the largest of {max(map(len, groups))} pictures",
    )


def _told(traits: dict[str, Traits]) -> tuple[str, ...]:
    """Returns notes on pictures that may not be seen as they were meant."""
    notes = []
    firsts = [name for name, each in traits.items() if each.is_first]
    if firsts:
        notes.append(
            f"{len(firsts):,} files hold several pictures (animations, pages), of which the first "
            f"is read, such as {printable(firsts[0])}"
        )
    deep = {name: each.grey_bits for name, each in traits.items() if each.grey_bits is not None}
    dark = {name: bits for name, bits in deep.items() if bits <= _FEW_BITS}
    if dark:
        bits = max(1, *dark.values())
        top = 2**bits - 1
        notes.append(
            f"{len(dark):,} of {len(deep):,} grey pictures of 16 bits hold no value above {top} of "
            f"{_WHITE} ({bits} bits), so they are nearly black, such as "
            f"{printable(next(iter(dark)))}; if {top} means white there, multiply the values by "
            f"{_WHITE / top:.4g} first"
        )
    return tuple(notes)
