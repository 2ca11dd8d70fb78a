"""What a bundle's manifest claims, held against what its model file says about itself.

Package layer. What needs no library to be read is held by `templates/verify.py`, which every bundle
ships and `edgekit verify` runs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from edgekit.errors import IntegrityError
from edgekit.package.card import escaped, verdict_table
from edgekit.package.manifest import NAME, Manifest
from edgekit.package.metadata import color_space_of, normalization_of
from edgekit.runtimes.base import ModelFacts, printable
from edgekit.runtimes.ends import classifier_io, feed_of
from edgekit.runtimes.inspect import inspect_content, model_format
from edgekit.runtimes.tflite_metadata import read_metadata

CARD = "MODEL_CARD.md"


def check_model_claims(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Refuses a manifest that its own model file or model card contradicts.

    Args:
        manifest: The manifest; its model is among the files.
        files: Every file of the bundle, by path.

    Raises:
        IntegrityError: If the model is no image classifier, has another input or output, carries
            other labels or another preprocessing, or the card has other checks.
    """
    model = files[manifest.model]
    file_format = model_format(Path(manifest.model))
    facts = inspect_content(model, file_format, manifest.model)
    for what, found, wanted in zip(
        ("input", "output"),
        classifier_io(facts, manifest.model),
        (manifest.input, manifest.output),
        strict=True,
    ):
        if found != wanted:
            _refuse(f"another {what} than {manifest.model} has: {wanted}", f"{found}")
    feed, channels = feed_of(manifest.input), manifest.preprocess.input_channels
    if (feed.layout, feed.channels) != ("NHWC", channels):
        _refuse(f"an input of shape {manifest.input.shape}", f"channels last, {channels} of them")
    if file_format == "tflite":
        _check_tflite(manifest, model)
    else:
        _check_texts(manifest, facts)
    _check_card(manifest, files)


def _check_tflite(manifest: Manifest, model: bytes) -> None:
    """Holds the metadata that edgekit puts into a TFLite file against the manifest."""
    said = read_metadata(model)
    if said is None:
        if manifest.model_sha256 != manifest.judged_sha256:
            _refuse("a model with metadata added", f"metadata in {manifest.model}")
        return
    if 0 in manifest.preprocess.scale:
        _refuse("a preprocessing with scale 0", "a scale other than 0 for every channel")
    # The metadata hold float32.
    mean, std = np.array(normalization_of(manifest.preprocess), np.float32).tolist()
    image = said.inputs[0] if said.inputs else None
    threshold = manifest.score_threshold
    pairs = {
        "labels": (manifest.class_names, said.labels),
        "score threshold": (
            None if threshold is None else float(np.float32(threshold)),
            said.outputs[0].score_threshold if said.outputs else None,
        ),
        "title": (manifest.title, said.name),
        "licence": (manifest.licence, said.licence),
        "recipe_sha256": (manifest.facts.get("recipe_sha256", "")[:12], said.version),
        "version of edgekit": (f"edgekit {manifest.edgekit_version}", said.author),
        "colours": (
            color_space_of(manifest.preprocess),
            None if image is None else image.color_space,
        ),
        "mean": (mean, None if image is None else list(image.mean)),
        "standard deviation": (std, None if image is None else list(image.std)),
    }
    for what, (claimed, found) in pairs.items():
        if claimed != found:
            _refuse(f"other metadata than {manifest.model} has, {what}: {claimed!r}", f"{found!r}")


def _check_texts(manifest: Manifest, facts: ModelFacts) -> None:
    """Holds the entries that edgekit puts into an ONNX or ORT file against the manifest."""
    claimed = {
        "edgekit.preprocess": manifest.preprocess.model_dump(mode="json"),
        "edgekit.labels": list(manifest.class_names),
    }
    for key, value in claimed.items():
        try:
            found = json.loads(facts.metadata[key])
        except (KeyError, ValueError, RecursionError):
            _refuse(f"a {manifest.model} of edgekit", f"the entry {key} in it")
        if found != value:
            _refuse(f"other metadata than {manifest.model} has, {key}: {value!r}", f"{found!r}")


def _check_card(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Holds the verdict's checks and notes in words against the model card."""
    card = files.get(CARD, b"").decode("utf-8", "replace")
    verdict = manifest.verdict
    told = [
        f"## Verdict for {escaped(verdict.target)}: {verdict.status}",
        f"\n| {escaped(verdict.artifact_path)} (this bundle) | ",
        # With the empty line, or rows at the end could be left out.
        f"\n\n{verdict_table(verdict)}\n\n",
        *(f"\n\nNote: {escaped(note)}.\n\n" for note in verdict.notes),
    ]
    if any(part not in card for part in told) or card.count("\nNote: ") != len(verdict.notes):
        _refuse(
            f"another file, other checks or notes than {CARD} has", "one account of the verdict"
        )


def _refuse(claimed: str, found: str) -> NoReturn:
    raise IntegrityError(
        printable(f"{NAME} claims {claimed}"),
        printable(found),
        "do not use it; get it again from who made it",
    )
