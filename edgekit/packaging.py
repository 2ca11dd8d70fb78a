"""Packaging a finished run: the order of the steps."""

import hashlib
import importlib
import io
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

import edgekit
from edgekit.data.bare import bare
from edgekit.data.files import FORM, Form, printable
from edgekit.data.other import FILES, IMAGES
from edgekit.data.packed import unpacked
from edgekit.data.picture import ORIENTATION, UnreadableError, decode, pixels
from edgekit.devices import measure
from edgekit.devices.protocol import subject_of
from edgekit.errors import IntegrityError, SpecError
from edgekit.folders import replace_folder, scratch_folder, writing
from edgekit.package.archive import write_folder, write_zip
from edgekit.package.contents import Contents, Golden
from edgekit.package.goldens import golden_files
from edgekit.package.manifest import NAME, Manifest, manifest_json, manifest_of
from edgekit.package.signing import SIGNATURE_NAME, sign
from edgekit.package.verification import SCRIPT
from edgekit.pipeline import ARTIFACTS, STORE, Stage
from edgekit.records import (
    Artifact,
    DatasetRecord,
    OtherRecord,
    Preprocess,
    Record,
    RunReport,
    Status,
    Verdict,
)
from edgekit.report import read_report
from edgekit.store import Stored, file_digest, finished, write_atomically
from edgekit.target import PackageKind, Target, package_kind

PACKAGES = "packages"
# 16 to 32 pictures; one of every class where there are so many.
FEWEST_PICTURES = 16
MOST_PICTURES = 32
OTHER_PICTURES = 2  # of no class, beside those
LARGEST_PICTURE_BYTES = 2_000_000
LARGEST_PICTURE_MEGAPIXELS = 50.0  # what verify.py and a phone decode
# A golden picture must not lie between two classes: an app's resize may differ by a grey level,
# which was seen to flip answers whose lead was up to 8 % of the range of the scores.
LEAST_LEAD = 0.1
# EXIF orientation 6: the camera was turned clockwise by 90 degrees.
TURNED = 6
Say = Callable[[str], None]
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Wanted:
    """What the user asks for.

    Args:
        run: Folder of a finished run.
        target: Name of one of its targets.
        out: Folder that receives the bundle. Defaults to None: `packages/` in the run folder.
        name: Identifier in generated code. Defaults to None: made from the target's name.
        title: Name for people. Defaults to None: made from the classes.
        licence: SPDX identifier of the model's licence.
        with_images: Whether pictures may be shipped. Defaults to True.
        allow_miss: Whether a file that missed its budgets may be packaged. Defaults to False.
        private_key: PEM file to sign the folder with. Defaults to None: it is not signed.
    """

    run: Path
    target: str
    out: Path | None = None
    name: str | None = None
    title: str | None = None
    licence: str = "other"
    with_images: bool = True
    allow_miss: bool = False
    private_key: Path | None = None


@dataclass(frozen=True)
class Packaged:
    """What was written: folder, zip, its digest, and the manifest."""

    folder: Path
    archive: Path
    sha256: str
    manifest: Manifest


@dataclass(frozen=True)
class _Picture:
    """A picture that may become a golden; its content is `bare`, its label None for no class."""

    suffix: str
    label: int | None
    content: bytes
    turned: bool
    pixels: npt.NDArray[np.uint8]


class _Row(NamedTuple):
    """A row that was judged: path below its folder, label or None for no class, pixels."""

    name: str
    label: int | None
    pixels: npt.NDArray[np.uint8]


def package(wanted: Wanted, say: Say) -> Packaged:
    """Writes the bundle of one target of a finished run, as a folder and as a zip.

    Args:
        wanted: What is asked for.
        say: Called with one line worth keeping.

    Raises:
        SpecError: If the run does not know the target, the target says of no package what it is,
            its file missed a budget, or the package cannot hold such a file or such labels.
        IntegrityError: If the file is not the one that was judged.
        DeviceError: If the runtime fails on a golden.
    """
    report = read_report(wanted.run, wanted.run / ARTIFACTS)
    target, verdict = _judged(report, wanted)
    kind = kind_of(target)  # before the model runs: it may be refused
    contents = _contents(report, target, verdict, kind, wanted, say)
    files = _every_file(contents, kind, report)
    folder = (wanted.out or wanted.run / PACKAGES) / target.name
    archive = folder.with_name(f"{folder.name}.zip")
    # Whatever fails or ends this process, a bundle that was there before is not lost.
    with scratch_folder(folder.parent) as scratch:
        fresh = scratch / folder.name
        with writing(folder):
            write_folder(files, fresh)
        if wanted.private_key is not None:
            files[SIGNATURE_NAME] = sign(fresh, wanted.private_key).read_bytes()
        replace_folder(fresh, folder)
    write_atomically(archive, write_zip(files))
    manifest = Manifest.model_validate_json(files[NAME])
    return Packaged(folder, archive, file_digest(archive), manifest)


def kind_of(target: Target) -> PackageKind:
    """Returns which package a target wants.

    Raises:
        SpecError: If its file does not say and nothing follows from its runtime.
    """
    if target.package is None and target.runtime.name == "ethos-u":
        raise SpecError(
            f"target {target.name}, whose file still has to go through Arm's compiler",
            "a target whose runtime takes the exported file as it is",
            "compile artifacts/*.tflite with vela yourself; edgekit only estimates for it",
        )
    found = package_kind(target)
    if found is None:
        raise SpecError(
            f"target {target.name} does not say which package it wants",
            'package = "android", "ios", "linux", "micro" or "web"',
            "add it to the target's file, above all tables",
        )
    return found


def _judged(report: RunReport, wanted: Wanted) -> tuple[Target, Verdict]:
    """Returns the target and how its file was judged.

    Raises:
        SpecError: If the run did not judge for it, or the file missed a budget.
        IntegrityError: If the file is another one now.
    """
    judged = {str(asked["name"]): asked for asked in report.targets}
    if wanted.target not in judged:
        raise SpecError(
            f"--for {wanted.target}, which {wanted.run} was not judged for",
            f"one of {', '.join(judged)}",
            f"run again with --target {wanted.target}",
        )
    # Not its file, which may say something else by now.
    target = Target.model_validate_json(json.dumps(judged[wanted.target]))
    verdict = next(v for v in report.validation.verdicts if v.target == wanted.target)
    if verdict.status == Status.MISS and not wanted.allow_miss:
        missed = ", ".join(c.name for c in verdict.checks if c.status == Status.MISS)
        raise SpecError(
            f"{verdict.artifact_path} misses {missed} of {wanted.target}",
            "a file that meets its budgets",
            "change the model or the budget and run again, or give --allow-miss, and the card says "
            "so",
        )
    path = wanted.run / ARTIFACTS / verdict.artifact_path
    if file_digest(path) != verdict.artifact_sha256:
        raise IntegrityError(
            f"{path}: SHA-256 {file_digest(path)}",
            f"SHA-256 {verdict.artifact_sha256}, the file that was judged",
            "run again; only what was judged is packaged",
        )
    return target, verdict


def _contents(
    report: RunReport, target: Target, verdict: Verdict, kind: PackageKind, wanted: Wanted, say: Say
) -> Contents:
    artifact = next(a for a in report.export.artifacts if a.path == verdict.artifact_path)
    folder = wanted.run / ARTIFACTS
    names = report.export.class_names
    versions = {f"version.{name}": version for name, version in report.packages.items()}
    weights = report.float_model.weights_sha256
    name = _identifier(wanted.name or target.name.replace("-", "_"))
    title = wanted.title or f"Classifier of {len(names)} classes for {target.name}"
    model = (folder / artifact.path).read_bytes()
    other = report.validation.other
    threshold = None if other is None else other.by_digest[artifact.sha256].threshold
    if artifact.format == "tflite":
        model = _described(model, title, report, wanted, artifact, threshold)
    usable = _usable(report, wanted.run)
    unknown = [] if threshold is None else _of_no_class(report, wanted.run)
    chosen = _goldens(report, artifact, folder, model, [*unknown, *usable], threshold)
    pictures = sum(golden.label is not None for golden in chosen)
    if pictures < FEWEST_PICTURES:
        say(
            f"{wanted.target}: {pictures} golden pictures, where {FEWEST_PICTURES} to "
            f"{MOST_PICTURES} are usual: no more test pictures are in "
            f"{report.recipe['data']['path']} that the model tells apart clearly"
        )
    if not wanted.with_images:
        chosen = [replace(golden, picture=None, picture_name="") for golden in chosen]
    return Contents(
        name=name,
        title=title,
        licence=wanted.licence,
        model=model,
        model_name=f"model{Path(artifact.path).suffix}",
        artifact=artifact,
        input=artifact.inputs[0],
        output=artifact.outputs[0],
        preprocess=report.export.preprocess,
        class_names=names,
        goldens=tuple(chosen),
        target=target,
        verdict=verdict,
        arena_bytes=_arena(report, kind, folder / artifact.path, artifact),
        facts={
            "recipe_sha256": report.recipe_sha256,
            "data_digest": report.dataset.digest,
            "edgekit": report.edgekit_version,
            **({"weights_sha256": weights} if weights else {}),
            **versions,
        },
        score_threshold=threshold,
        max_pixels=int(report.recipe["data"]["max_megapixels"] * 1e6),
    )


def _identifier(name: str) -> str:
    """Returns a name that is safe in the sources of every language.

    Raises:
        SpecError: If it is not.
    """
    if not re.fullmatch("[a-z][a-z0-9_]{0,62}", name):
        raise SpecError(
            f"--name {printable(name)!r}",
            "a lower-case letter, then lower-case letters, digits and underscores, 63 at most",
            "choose such a name",
        )
    return name


def _described(
    model: bytes,
    title: str,
    report: RunReport,
    wanted: Wanted,
    artifact: Artifact,
    threshold: float | None,
) -> bytes:
    """Returns the model with TFLite metadata; what it computes is not touched."""
    from edgekit.package.metadata import write_metadata

    return write_metadata(
        model,
        name=title,
        description=f"MobileNetV2 {report.float_model.alpha}, {artifact.variant}",
        version=report.recipe_sha256[:12],
        author=f"edgekit {report.edgekit_version}",
        licence=wanted.licence,
        preprocess=report.export.preprocess,
        class_names=report.export.class_names,
        score_threshold=threshold,
    )


def _usable(report: RunReport, run: Path) -> list[_Picture]:
    """Returns the test pictures that may become goldens, the classes taking turns.

    Twice as many as are shipped, since not every one has a clear answer; behind the first one comes
    the same, turned as by a camera. Of their files only what decides about their pixels is taken:
    a bundle is given away, and must not tell where or by whom a picture was taken.
    """
    data, contract = report.recipe["data"], report.export.preprocess
    root = Path(data["path"])
    if not data.get("table"):
        root = unpacked(root, Form(**{name: data[name] for name in FORM if name in data}))
    usable = _bare(root, _in_turns(_test_pictures(report, run)), contract, 2 * MOST_PICTURES)
    if usable:
        first = usable[0]
        turned = _turned(first.content)
        usable.insert(1, _Picture(".jpg", first.label, turned, True, pixels(turned, contract)))
    return usable


def _of_no_class(report: RunReport, run: Path) -> list[_Picture]:
    """Returns held-out pictures of no class that may become goldens; twice as many as are shipped.

    Raises:
        SpecError: If the run folder no longer holds its stage of them.
        IntegrityError: If it is damaged.
    """
    stored = _stage_of(run, "other", OtherRecord, lambda found: found == report.other)
    names = json.loads((stored.folder / FILES).read_bytes())
    images = np.load(stored.folder / IMAGES, mmap_mode="r")
    rows = [_Row(name, None, image) for name, image in zip(names, images, strict=True)]
    root = Path(report.recipe["data"]["other"])
    held_out = rows[stored.record.deciding :]
    return _bare(root, held_out, report.export.preprocess, 2 * OTHER_PICTURES)


def _bare(root: Path, rows: list[_Row], contract: Preprocess, most: int) -> list[_Picture]:
    """Returns the first pictures that still are what was judged, stripped of what they tell."""
    usable: list[_Picture] = []
    for row in rows:
        if len(usable) == most:
            break
        try:
            content = (root / row.name).read_bytes()
            if len(content) > LARGEST_PICTURE_BYTES:
                continue
            seen = pixels(content, contract, LARGEST_PICTURE_MEGAPIXELS)
            if not np.array_equal(seen, row.pixels):
                continue  # another picture by now, which the run did not judge
            content, suffix = bare(content)
        except (OSError, UnreadableError):
            continue
        if len(content) <= LARGEST_PICTURE_BYTES:
            usable.append(_Picture(suffix, row.label, content, False, pixels(content, contract)))
    return usable


def _in_turns(pictures: list[_Row]) -> list[_Row]:
    """Returns the pictures in another order: the first of every class, the second of every one."""
    by_class = [
        [picture for picture in pictures if picture.label == label]
        for label in sorted({row.label for row in pictures if row.label is not None})
    ]
    rounds = itertools.zip_longest(*by_class)
    return [picture for turn in rounds for picture in turn if picture is not None]


def _test_pictures(report: RunReport, run: Path) -> list[_Row]:
    """Returns every test picture of the run's data stage, verified.

    Raises:
        SpecError: If the run folder no longer holds its data stage.
        IntegrityError: If it is damaged.
    """
    digest = report.dataset.digest
    stored = _stage_of(run, "data", DatasetRecord, lambda found: found.digest == digest)
    names = json.loads((stored.folder / "test.files.json").read_bytes())
    labels = np.load(stored.folder / "test.labels.npy").tolist()
    images = np.load(stored.folder / "test.images.npy", mmap_mode="r")
    return [_Row(*row) for row in zip(names, labels, images, strict=True)]


def _stage_of(
    run: Path, stage: Stage, record_type: type[R], is_it: Callable[[R], bool]
) -> Stored[R]:
    """Returns a stage of the run that the report is about, verified.

    Raises:
        SpecError: If the run folder no longer holds it.
        IntegrityError: If it is damaged.
    """
    problems = []
    for stored in finished(run / STORE, stage, record_type):
        if isinstance(stored, str):
            problems.append(stored)
        elif is_it(stored.record):
            return stored
    if problems:
        raise IntegrityError(
            problems[0],
            f"the {stage} stage as it was stored",
            "run again; what is damaged is made again, the rest is reused",
        )
    raise SpecError(
        f"{run}: the {stage} stage of its report is not in {STORE}",
        "the folder of the run as edgekit left it",
        "run again; finished stages are reused",
    )


def _goldens(
    report: RunReport,
    artifact: Artifact,
    folder: Path,
    model: bytes,
    usable: list[_Picture],
    threshold: float | None,
) -> list[Golden]:
    """Returns the goldens: pictures with a clear answer, one of them turned, and synthetic ones.

    First come those of no class, if there is a threshold that they do not reach.
    """
    contract = report.export.preprocess
    shape = (contract.height_px, contract.width_px, 3)
    ramp = np.linspace(0, 255, shape[1]).astype(np.uint8)[None, :, None]
    synthetic = {
        "all_zero": np.zeros(shape, np.uint8),
        "all_255": np.full(shape, 255, np.uint8),
        "gradient": np.broadcast_to(ramp, shape).copy(),
    }
    images = np.stack([*(picture.pixels for picture in usable), *synthetic.values()])
    raw, scores = _answers(report, artifact, folder, images)
    if hashlib.sha256(model).hexdigest() != artifact.sha256:
        _check_same(report, artifact, model, images, raw)
    asked = artifact.inputs[0]
    table = measure.codes(contract, asked)
    channels = np.arange(table.shape[1])
    tensors = [table[image[..., channels], channels][None] for image in images]
    accepted = [_accepted(each, threshold) for each in scores]
    chosen: list[Golden] = []
    unknown = 0
    seen = {tensor.tobytes() for tensor in tensors[len(usable) :]}
    for index, picture in enumerate(usable):
        second, best = np.sort(scores[index])[-2:]
        clear = best - second > LEAST_LEAD * np.ptp(scores[index])
        # The same input twice shows nothing more; of a picture of one colour there may be many.
        new = tensors[index].tobytes() not in seen
        if picture.label is None:
            wanted = unknown < OTHER_PICTURES and accepted[index] is False and clear
        else:
            wanted = len(chosen) - unknown < MOST_PICTURES and (clear or picture.turned)
        if wanted and new:
            seen.add(tensors[index].tobytes())
            unknown += picture.label is None
            stem = f"{len(chosen):02d}{'_turned' if picture.turned else ''}"
            chosen.append(
                Golden(
                    name=f"{'other' if picture.label is None else 'picture'}_{stem}",
                    input=tensors[index],
                    output=raw[index],
                    label=picture.label,
                    picture=picture.content,
                    picture_name=f"{stem}{picture.suffix}",
                    accepted=accepted[index],
                )
            )
    for index, name in enumerate(synthetic, start=len(usable)):
        chosen.append(Golden(name, tensors[index], raw[index], None, None, "", accepted[index]))
    return chosen


def _accepted(scores: npt.NDArray[np.float32], threshold: float | None) -> bool | None:
    """Returns whether an answer counts; None without a threshold or too near to it."""
    if threshold is None:
        return None
    lead = float(scores.max()) - threshold
    return None if abs(lead) <= LEAST_LEAD * np.ptp(scores) else lead > 0


def _check_same(
    report: RunReport,
    artifact: Artifact,
    model: bytes,
    images: npt.NDArray[np.uint8],
    raw: npt.NDArray[np.generic],
) -> None:
    """Refuses a file that answers otherwise than the judged one, whose metadata it got.

    Raises:
        IntegrityError: If a single bit of an answer differs.
    """
    with scratch_folder() as scratch:
        path = scratch / artifact.path
        path.write_bytes(model)
        shipped = artifact.model_copy(update={"sha256": file_digest(path)})
        again, _ = _answers(report, shipped, scratch, images)
    if not np.array_equal(again, raw):
        raise IntegrityError(
            f"{artifact.path} with metadata answers otherwise than without",
            "the same answers to the bit",
            "report this as a bug in edgekit; do not ship the file",
        )


def _turned(content: bytes) -> bytes:
    """Returns a picture as a camera held upright would write it: turned, with EXIF saying so."""
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    file = io.BytesIO()
    decode(content).rotate(90, expand=True).save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    return file.getvalue()


def _answers(
    report: RunReport,
    artifact: Artifact,
    folder: Path,
    images: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32]]:
    """Returns raw outputs and scores of the judged file, by this machine's runtime."""
    with scratch_folder() as scratch:
        path = scratch / "images.npy"
        np.save(path, images)
        subject = subject_of(artifact, folder, path, report.export.preprocess)
        found = measure.answer(subject)
    return found.raw, measure.scores(found.raw, found.output)


def _arena(report: RunReport, kind: PackageKind, model: Path, artifact: Artifact) -> int | None:
    """Returns the arena that TensorFlow Lite Micro needs here, where it is installed."""
    from importlib.util import find_spec

    if kind != "micro" or find_spec("tflite_micro") is None:
        return None
    from edgekit.estimate import tflite_micro

    contract, asked = report.export.preprocess, artifact.inputs[0]
    with scratch_folder() as scratch:
        path = scratch / "images.npy"
        np.save(path, np.zeros((1, contract.height_px, contract.width_px, 3), np.uint8))
        codes = measure.codes(contract, asked)
        return tflite_micro.answers(model, artifact.sha256, path, codes).arena_bytes


def _every_file(contents: Contents, kind: PackageKind, report: RunReport) -> dict[str, bytes]:
    """Returns every file of the bundle, the manifest last."""
    from edgekit.package import card, provenance, sbom

    own: Callable[[Contents], dict[str, bytes]] = importlib.import_module(
        f"edgekit.package.{kind}"
    ).files
    for label in contents.class_names:
        if label != printable(label) or not label.isprintable():
            raise SpecError(
                f"class {printable(label)!r}, which holds control characters",
                "names that fit on one line",
                "rename its folder and run again",
            )
    files = {
        contents.model_name: contents.model,
        "labels.txt": "".join(f"{label}\n" for label in contents.class_names).encode(),
        **golden_files(contents),
        "MODEL_CARD.md": card.model_card(report, contents).encode(),
        "sbom.cdx.json": sbom.sbom(report, contents),
        "verify.py": SCRIPT.read_bytes(),
        **own(contents),
    }
    files["provenance.json"] = provenance.provenance(report, contents, files)
    return {**files, NAME: manifest_json(manifest_of(contents, kind, edgekit.__version__, files))}
