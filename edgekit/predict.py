"""What a classifier answers for pictures that nobody labelled: a class and a score each."""

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.data.files import printable
from edgekit.data.picture import UnreadableError, pixels
from edgekit.data.scan import content_of, pictures_below
from edgekit.devices import measure
from edgekit.errors import SpecError
from edgekit.folders import scratch_folder
from edgekit.limits import PICTURE_MEGAPIXELS
from edgekit.pipeline import ARTIFACTS
from edgekit.processes import apart
from edgekit.records import Preprocess, Record
from edgekit.report import read_report
from edgekit.runtimes.inspect import model_format
from edgekit.runtimes.tflite_metadata import read_metadata
from edgekit.store import file_digest
from edgekit.validate.external import Plan, subject
from edgekit.validate.outputs import threshold_words

# Pictures of one process that answers, and the memory that their pixels take: whatever the number
# of pictures, no more than these are held.
_PICTURES = 512
_PIXEL_BYTES = 64 * 1024**2
# Pictures that a process decodes at a time.
_DECODED = 16


class Guess(Record):
    """One class and the file's own score for it: a logit where it ends without softmax."""

    name: str
    score: float


class Prediction(Record):
    """What is answered for one picture.

    Args:
        picture: Its path as it was given, or below the folder that was; safe to print.
        guesses: Classes from the highest score down; empty where there is no answer.
        accepted: Whether the answer counts: its score is above the one that keeps out most pictures
            of no class; None where nobody knows such a score.
        refused: Why there is none; empty where there is one.
    """

    picture: str
    guesses: tuple[Guess, ...] = ()
    accepted: bool | None = None
    refused: str = ""


def shipped_file(run: Path, name: str | None, say: Callable[[str], None]) -> Path:
    """Returns a model file of a finished run.

    Args:
        run: The run folder.
        name: Name of one of its files. None: the file of the first target, as it was judged.
        say: Called with one line that says which file it is.

    Raises:
        SpecError: If the folder holds no finished run, or it has no such file.
        IntegrityError: If a file is not the one that was judged.
    """
    report = read_report(run, run / ARTIFACTS)
    names = [artifact.path for artifact in report.export.artifacts]
    if name is None:
        verdicts = report.validation.verdicts
        chosen = verdicts[0].artifact_path if verdicts else report.validation.reference
        target = f", which ships for {verdicts[0].target}" if verdicts else ""
        say(f"answers of {chosen}{target}; --file chooses another")
    elif name in names:
        chosen = name
    else:
        near = difflib.get_close_matches(name, names, 1)
        raise SpecError(
            f"--file {name}",
            f"one of {', '.join(names)}",
            f"did you mean {near[0]}?" if near else "choose one of them",
        )
    return run / ARTIFACTS / chosen


def threshold_of_file(model: Path, file: Path) -> float | None:
    """Returns above which score an answer of a file counts; None where nobody says it.

    Args:
        model: The run folder that the file is of, which says it if pictures of no class were given;
            or the file itself: a TFLite file of a package says it in its metadata.
        file: The file.

    Raises:
        IntegrityError: If the file is damaged.
    """
    if model.is_dir():
        other = read_report(model, model / ARTIFACTS).validation.other
        return None if other is None else other.by_digest[file_digest(file)].threshold
    if model_format(file) != "tflite":
        return None
    said = read_metadata(file.read_bytes())
    return said.outputs[0].score_threshold if said is not None and said.outputs else None


def predict(
    plan: Plan,
    asked: Sequence[Path],
    top: int,
    progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
    *,
    score_threshold: float | None = None,
    follow_links: bool = False,
    max_megapixels: float = PICTURE_MEGAPIXELS,
) -> Iterator[Prediction]:
    """Yields one prediction a picture, in the order asked; folders by the names in them.

    Pictures are decoded as for judging and answered by the same runtime in a process with limits,
    some hundred at a time, so memory does not grow with their number.

    Args:
        plan: The file, with a class name for each of its outputs.
        asked: Picture files, and folders of them.
        top: Classes of each picture, from 1.
        progress: Called with (what, done, in all).
        say: Called with how a single score was read; of what the file does not tell, the first
            pictures decide.
        score_threshold: Above which score an answer counts, see `threshold_of_file`. Defaults to
            None: nobody knows it.
        follow_links: Whether symbolic links that lead out of a folder are followed. Defaults to
            False.
        max_megapixels: Largest picture that is decoded, in millions of pixels.

    Raises:
        DataError: If a folder cannot be listed.
        EdgekitError: As `edgekit.devices.measure.answer`.
    """
    waiting = [picture for path in asked for picture in _pictures(path, follow_links)]
    side = plan.preprocess.height_px * plan.preprocess.width_px * 3
    step = max(1, min(_PICTURES, _PIXEL_BYTES // side))
    for start in range(0, len(waiting), step):
        progress("answering", start, len(waiting))
        plan, found = _answered(plan, waiting[start : start + step], top, max_megapixels, say)
        for each in found:
            if score_threshold is None or not each.guesses:
                yield each
            else:
                accepted = each.guesses[0].score > score_threshold
                yield each.model_copy(update={"accepted": accepted})


def _pictures(path: Path, follow_links: bool) -> list[tuple[Path, str]]:
    """Returns pictures with why one is refused unread; nothing for those that can be tried."""
    if not path.is_dir():
        return [(path, "")]
    found, skipped = pictures_below(path, follow_links)
    refused = [(path / item.path, item.reason) for item in skipped if item.kind == "unusable"]
    return [*((picture, "") for picture in found), *refused]


def _answered(
    plan: Plan,
    chunk: Sequence[tuple[Path, str]],
    top: int,
    max_megapixels: float,
    say: Callable[[str], None],
) -> tuple[Plan, list[Prediction]]:
    """Returns a prediction a picture, and the plan with what the answers decided."""
    paths = [path for path, refused in chunk if not refused]
    decoded = iter(_decoded(paths, plan.preprocess, max_megapixels))
    read = [refused or next(decoded) for _, refused in chunk]
    images = [each for each in read if not isinstance(each, str)]
    answers: Iterator[npt.NDArray[np.float32]] = iter(())
    if images:
        real = _real(plan, images)
        plan = _decided(plan, real, say)
        answers = iter(plan.readout.scores(real))
    found = []
    for (path, _), each in zip(chunk, read, strict=True):
        name = printable(str(path))
        if isinstance(each, str):
            found.append(Prediction(picture=name, refused=each))
            continue
        scores = next(answers)
        if not np.isfinite(scores).all():
            reason = "the model answered with what is no number"
            found.append(Prediction(picture=name, refused=reason))
            continue
        # As `argmax` does, equal scores go to the lowest output.
        best = np.argsort(-scores, kind="stable")[:top]
        guesses = tuple(Guess(name=plan.class_names[i], score=float(scores[i])) for i in best)
        found.append(Prediction(picture=name, guesses=guesses))
    return plan, found


def _decided(plan: Plan, real: npt.NDArray[np.float32], say: Callable[[str], None]) -> Plan:
    """Returns the plan with the threshold of a single score, and says it if answers decide."""
    if not plan.readout.single or plan.readout.threshold is not None:
        return plan
    threshold = plan.readout.threshold_of(real)
    say(threshold_words(plan.readout, threshold, plan.class_names))
    readout = plan.readout.model_copy(update={"threshold": threshold})
    return plan.model_copy(update={"readout": readout})


def _real(plan: Plan, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """Returns the file's own numbers, one row a picture."""
    with scratch_folder() as scratch:
        path = scratch / "images.npy"
        np.save(path, np.stack(images))
        found = measure.answer(subject(plan, path))
        return measure.scores(found.raw, found.output)


def _decoded(
    paths: Sequence[Path], contract: Preprocess, max_megapixels: float
) -> Iterable[npt.NDArray[np.uint8] | str]:
    work = partial(_decode_some, contract=contract, max_megapixels=max_megapixels)
    some = [paths[i : i + _DECODED] for i in range(0, len(paths), _DECODED)]
    if not some:
        return []
    with apart(work, some, os.cpu_count() or 1) as results:
        return [each for chunk in results for each in chunk]


def _decode_some(
    paths: Sequence[Path], contract: Preprocess, max_megapixels: float
) -> list[npt.NDArray[np.uint8] | str]:
    """Returns the fitted pixels of each picture, or why there are none."""
    results: list[npt.NDArray[np.uint8] | str] = []
    for path in paths:
        content = content_of(path)
        if isinstance(content, str):
            results.append(content)
            continue
        try:
            results.append(pixels(content, contract, max_megapixels))
        except UnreadableError as reason:
            results.append(str(reason))
    return results
