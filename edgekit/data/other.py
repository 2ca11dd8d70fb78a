"""Pictures that belong to no class: decoded, and parted in those that decide and those held out."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.data.decode import decode_all, refuse_many, write_rows
from edgekit.data.files import printable
from edgekit.data.findings import OTHER_LEFT_OUT, write_left_out
from edgekit.data.names import SPLITS
from edgekit.data.scan import Progress, Scan
from edgekit.data.split import assign
from edgekit.errors import DataError
from edgekit.recipe import DataSpec
from edgekit.records import OtherRecord, Preprocess, SkippedFile

IMAGES, FILES = "other.images.npy", "other.files.json"
# One half decides about a score, the other shows what that comes to.
_HELD_OUT = 0.5
_FEWEST = 10


def decode_other(
    scanned: Scan,
    dataset: Path,
    preprocess: Preprocess,
    spec: DataSpec,
    folder: Path,
    *,
    seed: int,
    progress: Progress,
) -> OtherRecord:
    """Decodes pictures of no class, those that decide first, then those that are held out.

    Near-identical ones go to one half. One whose pixels stand in the data set is left out, as it
    belongs to a class.

    Args:
        scanned: The files.
        dataset: Where the arrays of the data set lie, decoded under the same contract.
        preprocess: Size, crop, filter and channel order.
        spec: What the recipe asks for.
        folder: Receives `other.images.npy` (uint8, (n, h, w, 3)), `other.files.json` (paths below
            the folder, in the same order) and, if any are left out, `other_left_out.csv`.
        seed: Seed of the halves.
        progress: Called with (pictures done, pictures in all).

    Raises:
        DataError: If too many are unusable, or fewer than 10 remain for a half.
    """
    path, started = folder / "all.tmp.npy", time.monotonic()
    found = decode_all(scanned, preprocess, path, progress, spec.max_megapixels)
    rate = len(scanned.sources) / (time.monotonic() - started)
    pixels = np.load(path, mmap_mode="r")
    known = _digests_of(dataset)
    fresh, copies = [], []
    for row, picture in enumerate(found.decoded):
        same = known.get(_digest(pixels[row]))
        if same is None:
            fresh.append(row)
        else:
            reason = f"the same pixels as {same} of the data set"
            name = printable(picture.source.relative)
            copies.append(SkippedFile(path=name, reason=reason, kind="copy"))
    left_out = (*scanned.skipped, *found.skipped, *copies)
    write_left_out(folder, left_out, OTHER_LEFT_OUT)
    refuse_many(len(found.decoded), left_out, spec.max_bad_fraction)
    used = [found.decoded[row] for row in fresh]
    splits, _ = assign(used, validation_fraction=0.0, test_fraction=_HELD_OUT, seed=seed)
    parts = [[row for row, s in zip(fresh, splits, strict=True) if (s == "test") is held_out]
             for held_out in (False, True)]  # fmt: skip
    if min(map(len, parts)) < _FEWEST:
        raise DataError(
            f"data.other: {len(fresh)} pictures in {scanned.root} can be used, of which "
            f"{len(parts[0])} decide and {len(parts[1])} are held out; {len(copies)} have the same "
            "pixels as pictures of the data set",
            f"at least {_FEWEST} of each that are not near-identical",
            "add pictures of what a camera will see beside the classes, or leave data.other out",
        )
    rows = [*parts[0], *parts[1]]
    write_rows(folder / IMAGES, pixels, rows)
    names = [printable(found.decoded[row].source.relative) for row in rows]
    (folder / FILES).write_text(json.dumps(names, indent=0))
    del pixels
    path.unlink()
    return OtherRecord(
        deciding=len(parts[0]),
        held_out=len(parts[1]),
        skipped=left_out,
        images_per_second=rate,
    )


def _digests_of(dataset: Path) -> dict[str, str]:
    """Returns the name of each picture of a data set by the digest of its decoded pixels."""
    known: dict[str, str] = {}
    for split in SPLITS:
        names = json.loads((dataset / f"{split}.files.json").read_text())
        images = np.load(dataset / f"{split}.images.npy", mmap_mode="r")
        known |= {_digest(image): name for image, name in zip(images, names, strict=True)}
    return known


def _digest(image: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
