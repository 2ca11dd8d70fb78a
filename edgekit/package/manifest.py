"""What a bundle says about itself: `manifest.json`. Package layer."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from edgekit import limits
from edgekit.errors import IntegrityError
from edgekit.package.contents import Contents
from edgekit.package.signing import SIGNATURE_NAME
from edgekit.records import Preprocess, Record, TensorInfo, Verdict

NAME = "manifest.json"
# Not listed in itself, and a signature is made over everything else.
UNLISTED = (NAME, SIGNATURE_NAME)
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ListedFile(Record):
    """Digest and size of one file."""

    sha256: Digest
    size_bytes: int = Field(ge=0)


class Manifest(Record):
    """Everything that makes a bundle what it is.

    Args:
        schema_version: Version of this layout.
        edgekit_version: What wrote it.
        kind: Which package it is.
        name: Identifier in generated code.
        title: Name for people.
        licence: SPDX identifier of the model's licence.
        model: Path of the model file.
        model_sha256: Its digest, the one that was judged unless `judged_sha256` says otherwise.
        judged_sha256: Digest of the file that was judged.
        preprocess: The contract from picture to tensor.
        input: Its input.
        output: Its output.
        class_names: Names of the classes in output order.
        score_threshold: Above which score an answer counts, a real number; None where every one
            does.
        verdict: How the file was judged for the target.
        goldens: How many inputs with answers are in the bundle, three of them synthetic.
        images: Whether the pictures that the others were made from are in it, too.
        facts: Versions and digests, by name.
        files: Every other file of the bundle.
    """

    schema_version: Literal[1] = 1
    edgekit_version: str
    kind: Literal["android", "ios", "linux", "micro", "web"]
    name: str
    title: str
    licence: str
    model: Literal["model.tflite", "model.onnx", "model.ort"]
    model_sha256: Digest
    judged_sha256: Digest
    preprocess: Preprocess
    input: TensorInfo
    output: TensorInfo
    class_names: tuple[str, ...]
    score_threshold: float | None
    verdict: Verdict
    goldens: int = Field(ge=1, le=limits.GOLDENS)
    images: bool
    facts: dict[str, str]
    files: dict[str, ListedFile]


def listed(files: Mapping[str, bytes]) -> dict[str, ListedFile]:
    """Returns digest and size of every file, by path, sorted."""
    return {
        path: ListedFile(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for path, content in sorted(files.items())
    }


def manifest_of(
    contents: Contents, kind: str, version: str, files: Mapping[str, bytes]
) -> Manifest:
    """Returns the manifest of a bundle.

    Args:
        contents: What it is made from.
        kind: Which package it is.
        version: Version of edgekit.
        files: Every other file.
    """
    return Manifest.model_validate(
        {
            "edgekit_version": version,
            "kind": kind,
            "name": contents.name,
            "title": contents.title,
            "licence": contents.licence,
            "model": contents.model_name,
            "model_sha256": hashlib.sha256(contents.model).hexdigest(),
            "judged_sha256": contents.artifact.sha256,
            "preprocess": contents.preprocess,
            "input": contents.input,
            "output": contents.output,
            "class_names": contents.class_names,
            "score_threshold": contents.score_threshold,
            "verdict": contents.verdict,
            "goldens": len(contents.goldens),
            "images": any(golden.picture is not None for golden in contents.goldens),
            "facts": contents.facts,
            "files": listed(files),
        }
    )


def manifest_json(manifest: Manifest) -> bytes:
    """Returns the one form in which a manifest is written and read."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    return f"{text}\n".encode()


def read_manifest(files: Mapping[str, bytes]) -> Manifest:
    """Returns the manifest of a bundle whose files agree with it.

    Args:
        files: Every file of the bundle, by path; from `edgekit.package.archive`.

    Raises:
        IntegrityError: If there is none, it is not as edgekit writes it, or a file is missing, not
            listed, or has another digest.
    """
    remedy = "do not use it; get it again from who made it"
    content = files.get(NAME)
    if content is None:
        raise IntegrityError(f"a bundle without {NAME}", "a bundle of edgekit package", remedy)
    if len(content) > limits.MANIFEST_BYTES:
        most = f"at most {limits.MANIFEST_BYTES}"
        raise IntegrityError(f"{NAME} of {len(content)} bytes", most, remedy)
    if len(files.get(SIGNATURE_NAME, b"")) > limits.SIGNATURE_BYTES:
        found = f"{SIGNATURE_NAME} of {len(files[SIGNATURE_NAME])} bytes"
        raise IntegrityError(found, f"at most {limits.SIGNATURE_BYTES}", remedy)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as err:
        problem = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "as a whole"
        found = f"{NAME}, {where}: {problem['msg']}"
        raise IntegrityError(found, "a manifest of this version of edgekit", remedy) from err
    # Other forms of the same values, such as a key twice, are read differently by other programs.
    if manifest_json(manifest) != content:
        found = f"{NAME} is not written as edgekit writes these values"
        raise IntegrityError(found, "the manifest, byte for byte", remedy)
    there = {path: content for path, content in files.items() if path not in UNLISTED}
    for path in sorted(manifest.files.keys() - there.keys()):
        raise IntegrityError(f"{path} is missing", f"every file that {NAME} lists", remedy)
    for path in sorted(there.keys() - manifest.files.keys()):
        raise IntegrityError(f"{path} is not listed", f"no file but those in {NAME}", remedy)
    for path, found_file in listed(there).items():
        wanted = manifest.files[path]
        if found_file != wanted:
            raise IntegrityError(
                f"{path}: SHA-256 {found_file.sha256}, {found_file.size_bytes} bytes",
                f"SHA-256 {wanted.sha256}, {wanted.size_bytes} bytes",
                remedy,
            )
    model = manifest.files.get(manifest.model)
    if model is None or model.sha256 != manifest.model_sha256:
        found = f"{NAME}: the model {manifest.model} is not the file that is listed"
        raise IntegrityError(found, "one model file, named and listed alike", remedy)
    return manifest
