"""The stage that looks for wrong labels before training. Imports TensorFlow."""

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgekit.fitting.pictures import Pictures
from edgekit.network.graph import Arrays
from edgekit.records import (
    ConfusedClasses,
    LabelsRecord,
    Preprocess,
    SplitName,
    SuspiciousLabel,
)
from edgekit.spreadsheet import table_bytes
from edgekit.train.features import features
from edgekit.train.folds import Rows, sample
from edgekit.train.suspicion import PAGE, TABLE, confusions, judged_by_others, suspicions

COLUMNS = ("path", "split", "label", "suggested", "confidence", "action")
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
# The features of so many pictures take 0.26 GB, and three times that while they are judged. Of
# more, so many are looked at, of every class in proportion.
MOST_PICTURES = 50_000
# A page of 500 thumbnails of 160 px has 4 MB.
_ON_PAGE = 500
_IN_RECORD = 20
_STYLE = (
    "body{font:16px/1.4 system-ui,sans-serif;margin:2em;max-width:75em}"
    "ul{display:flex;flex-wrap:wrap;gap:1em;padding:0;list-style:none}"
    "li{width:11em;font-size:85%;overflow-wrap:anywhere}"
    "img{width:100%;image-rendering:auto;display:block}b{color:#a00}"
)


def check_labels(
    data: Path,
    class_names: Sequence[str],
    preprocess: Preprocess,
    alpha: float,
    weights: Arrays,
    folder: Path,
    *,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> LabelsRecord:
    """Looks for labels that the pictures contradict, in all splits together.

    Args:
        data: Folder that the data stage wrote.
        class_names: Names in label order.
        preprocess: The contract.
        alpha: Width multiplier.
        weights: Arrays of the backbone before training.
        folder: Receives the table and the page of what was found, if anything was.
        seed: Seed of the recipe.
        progress: Called with (what, pictures done, pictures in all).
    """
    splits = [Pictures.load(data, split, preprocess) for split in SPLITS]
    every = np.concatenate([pictures.labels for pictures in splits])
    rows = sample(every, MOST_PICTURES, seed)
    labels, ends = every[rows], np.cumsum([len(pictures.labels) for pictures in splits])
    parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
    starts = (0, *ends[:-1])
    found = features(
        splits,
        [part - start for part, start in zip(parts, starts, strict=True)],
        alpha,
        weights,
        lambda done, total: progress("looking for wrong labels", done, total),
    )
    logarithms = judged_by_others(found, labels, len(class_names), seed)
    chosen = suspicions(logarithms, labels)
    names = [
        name for split in SPLITS for name in json.loads((data / f"{split}.files.json").read_text())
    ]
    suspicious = [
        SuspiciousLabel(
            path=names[rows[item.row]],
            split=SPLITS[int(np.searchsorted(ends, rows[item.row], side="right"))],
            label=class_names[labels[item.row]],
            suggested=class_names[item.suggested],
            confidence=round(item.confidence, 4),
        )
        for item in chosen
    ]
    if suspicious:
        images = [_image(splits, ends, int(rows[item.row])) for item in chosen[:_ON_PAGE]]
        (folder / TABLE).write_bytes(_table(suspicious))
        page = _page(suspicious, images, preprocess.channels)
        (folder / PAGE).write_text(page, encoding="utf-8")
    return LabelsRecord(
        checked=len(labels),
        suspicious=len(suspicious),
        first=tuple(suspicious[:_IN_RECORD]),
        confused=tuple(
            ConfusedClasses(
                first=class_names[pair.first],
                second=class_names[pair.second],
                first_as_second=round(pair.first_as_second, 4),
                second_as_first=round(pair.second_as_first, 4),
            )
            for pair in confusions(logarithms, labels)[:_IN_RECORD]
        ),
    )


def _image(splits: Sequence[Pictures], ends: Rows, row: int) -> npt.NDArray[np.uint8]:
    number = int(np.searchsorted(ends, row, side="right"))
    start = ends[number - 1] if number else 0
    return np.asarray(splits[number].images[row - start])


def _table(found: Sequence[SuspiciousLabel]) -> bytes:
    rows = [
        (item.path, item.split, item.label, item.suggested, item.confidence, "") for item in found
    ]
    return table_bytes(COLUMNS, rows)


def _page(
    found: Sequence[SuspiciousLabel], images: Sequence[npt.NDArray[np.uint8]], channels: str
) -> str:
    """Returns one page that needs nothing beside it."""
    items = "\n".join(
        f'<li><img alt="" src="data:image/jpeg;base64,{_jpeg(image, channels)}">'
        f"<b>{html.escape(item.label)}</b>? looks like {html.escape(item.suggested)} "
        f"({item.confidence:.0%})<br>{html.escape(item.path)}</li>"
        for item, image in zip(found, images, strict=False)
    )
    shown = min(len(found), len(images))
    more = f", of which the first {shown} are shown" if shown < len(found) else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Suspicious labels</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><h1>Suspicious labels</h1>\n<p>{len(found):,} pictures that look "
        f"like another class than they are labelled{more}, the surest first. Many are right all "
        f"the same: look before you change one. What {TABLE} says in its column "
        "<code>action</code> (<code>relabel</code> or <code>leave out</code>) is done where the "
        f"recipe names that table as <code>data.corrections</code>.</p>\n<ul>\n{items}\n</ul>\n"
    )


def _jpeg(image: npt.NDArray[np.uint8], channels: str) -> str:
    ordered = image[..., ::-1] if channels == "bgr" else image
    pixels = np.broadcast_to(ordered, (*ordered.shape[:2], 3))
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
