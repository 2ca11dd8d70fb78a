"""The data stage: decode every picture once, in parallel, into memory-mapped uint8 arrays."""

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.data.appearance import Appearance, unusual
from edgekit.data.files import printable
from edgekit.data.findings import (
    copy_notes,
    near_notes,
    skipped_copies,
    unusual_notes,
    write_left_out,
    write_near_identical,
    write_unusual,
)
from edgekit.data.names import SPLITS
from edgekit.data.picture import Fingerprint, UnreadableError, read
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
from edgekit.processes import apart
from edgekit.recipe import DataSpec
from edgekit.records import DatasetRecord, Preprocess, SkippedFile, SplitName, SplitRecord

# Pictures that one process decodes at a time, and the memory that they take.
_CHUNK = 64
_CHUNK_BYTES = 64 * 1024**2
_SHOWN = 10
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
        DataError: If too many files are damaged or stand under two classes, one changed since the
            scan, or `split.check` refuses the data.
    """
    pixels_path = folder / "all.tmp.npy"
    started = time.monotonic()
    decoded, appearances, skipped = _decode_all(scanned, preprocess, pixels_path, progress)
    rate = len(scanned.sources) / (time.monotonic() - started)
    doubled = copies(decoded)
    left_out = (*scanned.skipped, *skipped, *skipped_copies(decoded, doubled))
    write_left_out(folder, left_out)
    _refuse_many(decoded, left_out, spec.max_bad_fraction)
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
    odd = unusual([appearances[row] for row in rows], preprocess)
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
        _write_rows(folder / f"{split}.images.npy", pixels, [rows[i] for i in chosen])
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
    """

    images: Path
    labels: npt.NDArray[np.int32]
    sources: tuple[Source, ...]
    skipped: tuple[SkippedFile, ...]


def read_folder(
    scanned: Scan,
    preprocess: Preprocess,
    folder: Path,
    progress: Progress,
    *,
    max_bad_fraction: float = 0.01,
    max_conflicting_fraction: float = 0.01,
) -> Folder:
    """Decodes a labelled folder as one set, whatever its splits, to judge a finished file on it.

    Pictures under two classes with the same pixels are left out, as no answer to them is right.

    Args:
        scanned: The files.
        preprocess: Size, crop, filter and channel order.
        folder: Receives the pixels.
        progress: Called with (pictures done, pictures in all).
        max_bad_fraction: Largest share of files that may be skipped as damaged. Defaults to 0.01.
        max_conflicting_fraction: Largest share of pictures that may stand under two classes, but
            for one group of them. Defaults to 0.01.

    Returns:
        The pictures, in scan order.

    Raises:
        DataError: If too many files are damaged or stand under two classes, none is readable, or
            one changed since the scan.
    """
    path, every = folder / "images.npy", folder / "all.tmp.npy"
    decoded, _, skipped = _decode_all(scanned, preprocess, every, progress)
    _refuse_many(decoded, (*scanned.skipped, *skipped), max_bad_fraction)
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
    _write_rows(path, np.load(every, mmap_mode="r"), rows)
    every.unlink()
    labels = np.array([decoded[row].source.label for row in rows], np.int32)
    sources = tuple(decoded[row].source for row in rows)
    left_out = (*scanned.skipped, *skipped, *skipped_copies(decoded, doubled))
    return Folder(path, labels, sources, left_out)


def _decode_all(
    scanned: Scan, preprocess: Preprocess, path: Path, progress: Progress
) -> tuple[list[Decoded], list[Appearance], list[SkippedFile]]:
    """Writes the readable pictures one behind the other; rows after the last stay unused."""
    total = len(scanned.sources)
    shape = (total, preprocess.height_px, preprocess.width_px, 3)
    # A second copy is written before this one is deleted.
    _refuse_without_room(path.parent, 2 * math.prod(shape), scanned.root)
    pixels = _new_array(path, shape)
    step = _rows_at_once(shape)
    chunks = [scanned.sources[i : i + step] for i in range(0, total, step)]
    decoded: list[Decoded] = []
    appearances: list[Appearance] = []
    skipped: list[SkippedFile] = []
    work = partial(_decode_chunk, preprocess=preprocess)
    with apart(work, chunks, os.cpu_count() or 1) as decoding:
        for chunk, results in zip(chunks, decoding, strict=True):
            for source, result in zip(chunk, results, strict=True):
                if isinstance(result, str):
                    skipped.append(SkippedFile(path=printable(source.relative), reason=result))
                else:
                    pixels[len(decoded)] = result[0]
                    decoded.append(Decoded(source, result[1]))
                    appearances.append(result[2])
            progress(len(decoded) + len(skipped), total)
    pixels.flush()
    return decoded, appearances, skipped


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
    sources: Sequence[Source], preprocess: Preprocess
) -> list[tuple[npt.NDArray[np.uint8], Fingerprint, Appearance] | str]:
    results: list[tuple[npt.NDArray[np.uint8], Fingerprint, Appearance] | str] = []
    for source in sources:
        try:
            results.append(read(source.path, preprocess, source.sha256))
        except UnreadableError as reason:
            results.append(str(reason))
    return results


def _refuse_many(
    decoded: list[Decoded], skipped: tuple[SkippedFile, ...], max_bad_fraction: float
) -> None:
    damaged = [item for item in skipped if item.kind == "damaged"]
    total = len(decoded) + len(damaged)
    if len(damaged) <= max_bad_fraction * total:
        return
    shown = "\n".join(f"  {item.path}: {item.reason}" for item in damaged[:_SHOWN])
    more = f"\n  and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    raise DataError(
        f"{len(damaged)} of {total} files are damaged or unreadable:\n{shown}{more}",
        f"at most {max_bad_fraction:.1%} (data.max_bad_fraction)",
        "repair or delete these files, or raise data.max_bad_fraction",
    )


def _write_rows(path: Path, pixels: npt.NDArray[np.uint8], rows: list[int]) -> None:
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
