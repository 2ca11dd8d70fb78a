#!/usr/bin/env python3
"""Says whether this bundle is whole and answers here as it did where it was judged.

    python3 verify.py [--json] [FOLDER]

Needs Python 3.9 or newer and nothing else to check every file against manifest.json, and what the
files say about the model against one another (claims). With numpy and ai-edge-litert (for .tflite)
or onnxruntime (for .onnx and .ort) it also gives the goldens' exact input tensors to the model and
compares its raw outputs (level A); with Pillow too, it prepares the goldens' pictures itself and
compares the classes (level B).

It finds damage and contradictions, not forgery: nothing but a signature protects manifest.json, and
whoever changes a file can change it, too. Where there is a model.sig, `edgekit verify --public-key`
or OpenSSF's model_signing tells who made the bundle; this program does not.

Exit code: 0 if nothing wrong was found (what could not be run is said), 6 if something is wrong,
2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import stat
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

MANIFEST, GOLDENS, LABELS = "manifest.json", "goldens/goldens.json", "labels.txt"
INPUTS, OUTPUTS, IMAGES = "goldens/inputs.bin", "goldens/outputs.bin", "goldens/images/"
MODELS = ("model.tflite", "model.onnx", "model.ort")
CARD, PROVENANCE, PARTS = "MODEL_CARD.md", "provenance.json", "sbom.cdx.json"
SIGNATURE = "model.sig"
# What every bundle has beside its model and the folder of its kind.
COMMON = (LABELS, CARD, PROVENANCE, PARTS, "verify.py")
READ = (*MODELS, *COMMON, "web/labels.json")
# What a kind of package reads of the model, wherever it lies there.
CONTRACTS = ("contract.json", "preprocess.json")
# A file of each kind of package that no other kind has.
KINDS = {
    "android": "android/build.gradle.kts",
    "ios": "ios/Package.swift",
    "linux": "linux/python/selfcheck.py",
    "micro": "micro/golden_check.cc",
    "web": "web/selfcheck.html",
}
MAX_JSON_BYTES = 16 * 1024**2
MAX_SIGNATURE_BYTES = 4 * 1024**2
MAX_BUNDLE_BYTES = 512 * 1024**2
MAX_FILES = 4096
MAX_PIXELS = 50_000_000
MAX_DEPTH = 16
MAX_GOLDENS = 64
MAX_SECONDS = 300.0
# How far raw outputs may lie apart: so many codes, or this share of the largest output of a float
# file; behind integers inside, one code more moves a float output by steps.
TOLERANCE_STEPS = 1
TOLERANCE_SHARE = 1e-4
TOLERANCE_SHARE_INTEGER = 0.05
FLOAT_VARIANTS = ("float32", "float16")
# The goldens that are no pictures.
SYNTHETIC = ("all_zero", "all_255", "gradient")
# A target's status is the first of these that one of its checks has.
WORST_FIRST = ("MISS", "UNMEASURED", "INCONCLUSIVE", "PASS")
ITEM_BYTES = {"float32": 4, "uint8": 1, "int8": 1}
# Where the tables of a TFLite file hold what: version, buffers and metadata of 10 fields.
# https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
VERSION, BUFFERS, METADATA, FIELDS = 0, 4, 6, 10
MAX_MODEL_DIRECTORY_BYTES = 65536
SHOWN = 5
# Other versions of the JPEG library decode photographs 1 of 255 apart (libjpeg-turbo 3.1.1 and
# 3.2.0, in Pillow 11.3 and 13.0); that can turn a class that won by a hair.
DECODER_STEPS = 2
WRONG = 6
PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT RUN"
# What turns a picture upright, by the value of its EXIF orientation; 1 is upright.
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
SIDEWAYS = ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")  # width and height change
ORIENTATION = 0x0112
# On x86 without VNNI onnxruntime's default multiplies 8 bits in a way that overflows, unless this
# option is on; with VNNI the default is exact, and the option makes it slow.
EXACT = "session.x64quantprecision"
VNNI = {"avx512_vnni", "avx_vnni"}
DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}

Content = dict[str, bytes]
Listed = dict[str, dict[str, Any]]
Run = Callable[[Any], Any]


class WrongError(Exception):
    """Something about the bundle is wrong; the text says what."""


class Missing(Exception):  # noqa: N818 - nothing is wrong
    """Something to run the goldens with is not there; the text says what."""


class Problem(NamedTuple):
    """What is wrong with a file: "missing", "extra", "changed" or "special"; or with a "claim"."""

    kind: str
    path: str
    text: str


class Outcome(NamedTuple):
    """What one part of the check came to.

    Args:
        status: PASS, FAIL or NOT RUN.
        text: Why, in words.
        checked: How many files, labels or goldens were looked at.
        failed: Names of the goldens that failed.
        problems: What is wrong with files.
    """

    status: str
    text: str
    checked: int = 0
    failed: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


class Goldens(NamedTuple):
    """The goldens as their files describe them, what runs the model, and until when it may."""

    about: dict[str, Any]
    inputs: list[Any]
    outputs: list[Any]
    run: Run
    runtime: str
    until: float


# ---- files


def check_files(root: Path) -> tuple[Outcome, dict[str, Any], Content]:
    """Compares every file with the manifest; returns that and the content of what is read below."""
    try:
        manifest = read_manifest(root)
        found, problems = files_in(root)
    except WrongError as error:
        return Outcome(FAIL, str(error)), {}, {}
    listed: Listed = manifest["files"]
    content: Content = {}
    for path in sorted(found - set(listed)):
        text = f"{shown(path)} is here and not in {MANIFEST}: remove it"
        problems.append(Problem("extra", path, text))
    for path in sorted(listed):
        if path not in found:
            if not any(problem.path == path for problem in problems):
                text = f"{shown(path)} is in {MANIFEST} and not here: copy the bundle again"
                problems.append(Problem("missing", path, text))
            continue
        wanted = listed[path]
        try:
            bytes_found = read_limited(root / path, wanted["size_bytes"])
        except OSError as error:
            text = f"{shown(path)} cannot be read ({error.strerror})"
            problems.append(Problem("changed", path, text))
            continue
        digest = hashlib.sha256(bytes_found).hexdigest()
        if digest != wanted["sha256"]:
            text = (
                f"{shown(path)} is not the file that was packed: SHA-256 {digest[:16]}..., "
                f"{MANIFEST} says {wanted['sha256'][:16]}...: copy the bundle again"
            )
            problems.append(Problem("changed", path, text))
        elif path in READ or path.startswith("goldens/") or path.rpartition("/")[2] in CONTRACTS:
            content[path] = bytes_found
    if problems:
        text = f"{len(problems)} of {len(listed)} files are not as {MANIFEST} says"
        return Outcome(FAIL, text, len(listed), (), tuple(problems)), {}, {}
    text = f"{len(listed)} files have the digests of {MANIFEST}"
    return Outcome(PASS, text, len(listed)), manifest, content


def read_manifest(root: Path) -> dict[str, Any]:
    """Returns the manifest, whose "files" has size and digest of every file by its path."""
    try:
        if stat.S_ISLNK(os.lstat(root / MANIFEST).st_mode):
            raise WrongError(f"{MANIFEST} is a symbolic link: copy the bundle again")
        content = read_limited(root / MANIFEST, MAX_JSON_BYTES)
    except OSError as error:
        raise WrongError(
            f"{shown(str(root))} has no {MANIFEST} that can be read ({error.strerror}): it is no "
            "bundle, or not all of one"
        ) from None
    manifest = parsed(content, MANIFEST)
    schema = manifest.get("schema_version")
    if type(schema) is not int or schema != 1:
        raise WrongError(
            f"{MANIFEST} has schema version {shown(str(schema))}; this verify.py knows 1: use the "
            "verify.py of the same bundle"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise WrongError(f"{MANIFEST} lists no files")
    if len(files) > MAX_FILES:
        raise WrongError(f"{MANIFEST} lists {len(files)} files, more than {MAX_FILES}")
    total = 0
    for path, wanted in files.items():
        if not is_below(path):
            raise WrongError(f"{MANIFEST} names '{shown(path)}', which is not below the bundle")
        size, digest = (
            (wanted.get("size_bytes"), wanted.get("sha256"))
            if isinstance(wanted, dict)
            else (None, None)
        )
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise WrongError(f"{MANIFEST} has no SHA-256 for {shown(path)}")
        if type(size) is not int or not 0 <= size <= MAX_BUNDLE_BYTES:
            raise WrongError(f"{MANIFEST} has no usable size for {shown(path)}")
        total += size
    if total > MAX_BUNDLE_BYTES:
        raise WrongError(f"{MANIFEST} lists {total} bytes, more than {MAX_BUNDLE_BYTES}")
    return manifest


def is_below(path: str) -> bool:
    """Returns whether a path stays in its folder on every system."""
    parts = path.split("/")
    return not re.search(r"[\\:\0]", path) and not {"", ".", ".."} & set(parts)


def files_in(root: Path) -> tuple[set[str], list[Problem]]:
    """Returns every plain file below the bundle but the manifest and its signature."""
    found: set[str] = set()
    problems: list[Problem] = []
    for folder, below, names in os.walk(root):
        if len(Path(folder).relative_to(root).parts) > MAX_DEPTH:
            raise WrongError(f"the bundle has folders more than {MAX_DEPTH} deep: copy it again")
        for name in (*below, *names):
            full = Path(folder) / name
            path = full.relative_to(root).as_posix()
            mode = os.lstat(full).st_mode
            if stat.S_ISDIR(mode) or path == MANIFEST:
                continue
            if not stat.S_ISREG(mode):
                kind = "symbolic link" if stat.S_ISLNK(mode) else "special file"
                text = f"{shown(path)} is a {kind}: a bundle holds plain files only"
                problems.append(Problem("special", path, text))
            elif path != SIGNATURE:
                found.add(path)
            elif os.lstat(full).st_size > MAX_SIGNATURE_BYTES:
                text = f"{SIGNATURE} has more than {MAX_SIGNATURE_BYTES} bytes: it is no signature"
                problems.append(Problem("changed", path, text))
            if len(found) + len(problems) > 2 * MAX_FILES:
                raise WrongError(f"the bundle has more than {MAX_FILES} files: copy it again")
    return found, problems


def read_limited(path: Path, limit: int) -> bytes:
    """Returns at most one byte more than the limit, so that a longer file is not read whole."""
    with path.open("rb") as stream:
        return stream.read(limit + 1)


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """Returns a JSON object; a key that stands in it twice would be read differently elsewhere."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands in it twice")
        return dict(pairs)

    if len(content) > MAX_JSON_BYTES:
        raise WrongError(f"{name} has more than {MAX_JSON_BYTES} bytes: copy the bundle again")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise WrongError(
            f"{name} is damaged ({shown(str(error))}): copy the bundle again"
        ) from None
    if not isinstance(value, dict):
        raise WrongError(f"{name} is damaged (not an object): copy the bundle again")
    return value


def plain(text: str) -> str:
    """Returns text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def shown(text: str) -> str:
    """Returns text from the bundle, not too long, without what a terminal would obey."""
    clean = plain(text)
    return clean if len(clean) <= 200 else clean[:200] + "..."


# ---- labels


def check_labels(manifest: dict[str, Any], content: Content) -> Outcome:
    """Compares labels.txt with the labels of the manifest and of the goldens."""
    try:
        about = parsed(needed(content, GOLDENS), GOLDENS)
        found = needed(content, LABELS).decode("utf-8").removesuffix("\n").split("\n")
        lists = {GOLDENS: list(about["labels"]), MANIFEST: list(manifest["class_names"])}
        outputs = about["output"]["classes"]
    except WrongError as error:
        return Outcome(FAIL, str(error))
    except (KeyError, TypeError, ValueError) as error:
        return Outcome(FAIL, f"labels cannot be read ({shown(repr(error))})")
    for name, wanted in lists.items():
        if len(wanted) != outputs:
            text = f"{name} has {len(wanted)} labels, the model has {shown(str(outputs))} outputs"
            return Outcome(FAIL, text, len(wanted))
        if len(found) != len(wanted):
            text = f"{LABELS} has {len(found)} lines, the model has {len(wanted)} outputs"
            return Outcome(FAIL, text, len(wanted))
        for number, (one, other) in enumerate(zip(found, wanted), 1):  # noqa: B905 - Python 3.9
            if one != other:
                text = (
                    f"{LABELS}, line {number} is '{shown(one)}', {name} says "
                    f"'{shown(str(other))}': answers would get wrong names"
                )
                return Outcome(FAIL, text, len(wanted))
    return Outcome(PASS, f"{len(found)} labels in the order of the outputs", len(found))


def needed(content: Content, path: str) -> bytes:
    """Returns the content of a file that every bundle has."""
    if path not in content:
        raise WrongError(f"{path} is not in {MANIFEST}")
    return content[path]


# ---- claims: what the files of a bundle say about the same thing


def check_claims(manifest: dict[str, Any], content: Content) -> Outcome:
    """Holds what the manifest says against the other files, and these against one another."""
    told: list[str] = []
    count = 0
    for check in (
        claims_about_kind,
        claims_about_model,
        claims_about_contract,
        claims_about_goldens,
        claims_about_verdict,
        claims_about_origin,
    ):
        try:
            for right, text in check(manifest, content):
                count += 1
                if not right:
                    told.append(text)
        except WrongError as error:
            told.append(str(error))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error) as error:
            subject = check.__name__.rpartition("_")[2]
            told.append(f"what is said about the {subject} cannot be used ({shown(repr(error))})")
    if told:
        problems = tuple(Problem("claim", MANIFEST, text) for text in told)
        text = f"{len(told)} claims do not hold"
        return Outcome(FAIL, text, count, (), problems)
    return Outcome(PASS, f"{count} claims of {MANIFEST} agree with the other files", count)


Claims = Iterator[tuple[bool, str]]


def claims_about_kind(manifest: dict[str, Any], content: Content) -> Claims:
    """The folders are those of the kind, and copies of the same file in them are equal."""
    kind, files, model = manifest["kind"], manifest["files"], manifest["model"]
    tops = {path.partition("/")[0] for path in files if "/" in path}
    yield (
        kind in KINDS and tops == {"goldens", kind} and KINDS[kind] in files,
        f"{MANIFEST} says that this is a package of the kind '{shown(str(kind))}'; its folders are "
        f"{shown(', '.join(sorted(tops)))}",
    )
    alone = {path for path in files if "/" not in path}
    yield (
        model in MODELS and alone == {model, *COMMON},
        f"beside the folders are {shown(', '.join(sorted(alone)))}, not one model and "
        f"{', '.join(COMMON)}",
    )
    for path, wanted in files.items():
        folder, _, name = path.rpartition("/")
        first = f"goldens/{path.rpartition('/goldens/')[2]}" if "/goldens/" in path else name
        copied = first in (model, LABELS) or first.startswith("goldens/")
        if copied and folder.partition("/")[0] == kind:
            same = first in files and files[first]["sha256"] == wanted["sha256"]
            yield same, f"{shown(path)} is another file than {shown(first)}"
    for path in sorted(files):
        if path.rpartition("/")[2] in CONTRACTS:
            same = parsed(needed(content, path), path)["score_threshold"]
            text = f"{shown(path)} has another score_threshold than {MANIFEST}"
            yield same_json(same, manifest["score_threshold"]), text
    if kind == "web":
        labels = json.loads(needed(content, "web/labels.json"))
        yield labels == manifest["class_names"], f"web/labels.json has other labels than {MANIFEST}"
        about = parsed(needed(content, "web/contract.json"), "web/contract.json")
        digest = f"web/contract.json is about another model than {MANIFEST}"
        yield about["sha256"] == manifest["model_sha256"], digest
        goldens = parsed(needed(content, GOLDENS), GOLDENS)
        share = f"web/contract.json allows goldens other differences than {GOLDENS}"
        yield about["tolerance_share"] == goldens["tolerance_share"], share


def claims_about_model(manifest: dict[str, Any], content: Content) -> Claims:
    """The model is the judged file, or that with nothing but metadata around it."""
    name, digest, judged = manifest["model"], manifest["model_sha256"], manifest["judged_sha256"]
    model = needed(content, name)
    yield (
        digest == manifest["files"][name]["sha256"],
        f"{MANIFEST} gives {name} two digests, as the model and in its list of files",
    )
    if judged == digest:
        return
    if name != "model.tflite":
        yield False, f"{name} is not the file that was judged, by its digest"
        return
    labels = without_metadata(model, judged)
    yield labels == needed(content, LABELS), f"the labels inside {name} are not those of {LABELS}"


def without_metadata(model: bytes, judged: str) -> bytes:
    """Returns the labels that were put behind a judged TFLite file.

    The judged file stays in the shipped one byte for byte: a new root is in front of it, and an
    archive of one file behind. What the new root says, but for metadata, must be the old one's.
    """
    wrong = WrongError(
        "model.tflite is not the file that was judged with metadata around it: get the bundle again"
    )
    # The archive: one stored file, a directory of one entry, the end.
    end = len(model) - 22
    magic, *_, count, size, directory, comment = struct.unpack("<4s4H2LH", model[end:])
    if (magic, count, comment) != (b"PK\x05\x06", 1, 0) or size > MAX_MODEL_DIRECTORY_BYTES:
        raise wrong
    if directory + size != end or model[directory : directory + 4] != b"PK\x01\x02":
        raise wrong
    (start,) = struct.unpack_from("<L", model, directory + 42)
    length, name_bytes, extra_bytes = struct.unpack_from("<L2H", model, start + 22)
    labels = start + 30 + name_bytes + extra_bytes
    if (
        model[4:8] != b"TFL3"
        or model[start : start + 4] != b"PK\x03\x04"
        or labels + length != directory
    ):
        raise wrong
    # Everything is aligned to 16 bytes, and a flatbuffer has its mark behind the place of its root.
    places = [at for at in range(16, min(start, 2**20), 16) if model[at + 4 : at + 8] == b"TFL3"]
    for place in places[:SHOWN]:
        digest = hashlib.sha256(model[place : max(place, start - 16)])
        for byte in range(max(place, start - 16), start + 1):
            if digest.hexdigest() == judged and not model[byte:start].strip(b"\0"):
                if not same_network(model[:start], place):
                    raise wrong
                return model[labels:directory]
            digest.update(model[byte : byte + 1])
    raise wrong


def same_network(model: bytes, place: int) -> bool:
    """Returns whether the root of a flatbuffer leads where that of the one at `place` in it does.

    Fields hold the distance to what they mean, so equal sums of place and distance are one table.
    """

    def number(form: str, at: int) -> int:
        if at < 0:
            raise ValueError("a place outside the file")
        return int(struct.unpack_from(form, model, at)[0])

    def fields(start: int) -> dict[int, int]:
        root = start + number("<L", start)
        table = root - number("<l", root)
        places = range(table + 4, table + number("<H", table), 2)
        held = {(at - table - 4) // 2: number("<H", at) for at in places}
        return {slot: root + offset for slot, offset in held.items() if offset}

    def vector(at: int | None) -> list[int]:
        if at is None:
            return []
        start = at + number("<L", at)
        length = number("<L", start)
        if length > len(model) // 4:
            raise ValueError("a list longer than the file")
        return [item + number("<L", item) for item in range(start + 4, start + 4 + 4 * length, 4)]

    new, old = fields(0), fields(place)
    same = new.keys() | {METADATA} == old.keys() | {METADATA} and max(new) < FIELDS
    for slot in old.keys() - {BUFFERS, METADATA}:
        one, other = (number("<L", places.get(slot, 0)) for places in (new, old))
        if slot != VERSION:
            one, other = one + new.get(slot, 0), other + old[slot]
        same = same and one == other
    for slot in (BUFFERS, METADATA):
        more, kept = vector(new.get(slot)), vector(old.get(slot))
        same = same and more[:-1] == kept and len(more) == len(kept) + 1
    return same


def claims_about_contract(manifest: dict[str, Any], content: Content) -> Claims:
    """The goldens were made by the same contract: preparation, input and output."""
    about = parsed(needed(content, GOLDENS), GOLDENS)
    into = {key: value for key, value in manifest["input"].items() if key != "name"}
    out = manifest["output"]
    pairs = {
        "preprocessing": (manifest["preprocess"], about["preprocess"]),
        "input": (into, about["input"]),
        "output": (
            [out["dtype"], out["shape"][-1], out["scale"], out["zero_point"]],
            [about["output"][key] for key in ("dtype", "classes", "scale", "zero_point")],
        ),
    }
    for what, (one, other) in pairs.items():
        yield same_json(one, other), f"{MANIFEST} and {GOLDENS} describe another {what}"


def claims_about_goldens(manifest: dict[str, Any], content: Content) -> Claims:
    """As many goldens as the manifest says, no two alike, and no more allowance than is written."""
    about = parsed(needed(content, GOLDENS), GOLDENS)
    goldens, classes = about["goldens"], about["output"]["classes"]
    if not isinstance(goldens, list) or not 1 <= len(goldens) <= MAX_GOLDENS:
        count = len(goldens) if isinstance(goldens, list) else 0
        raise WrongError(f"{GOLDENS} has {count} goldens, a bundle has 1 to {MAX_GOLDENS}")
    yield (
        len(goldens) == manifest["goldens"],
        f"{GOLDENS} has {len(goldens)} goldens, {MANIFEST} says {shown(str(manifest['goldens']))}",
    )
    steps, share = about["tolerance_steps"], about["tolerance_share"]
    variant = facts_of_parts(content)[1]["variant"]
    most = TOLERANCE_SHARE if variant in FLOAT_VARIANTS else TOLERANCE_SHARE_INTEGER
    yield (
        type(steps) in (int, float) and 0 <= steps <= TOLERANCE_STEPS,
        f"{GOLDENS} allows {shown(str(steps))} steps between outputs, {TOLERANCE_STEPS} at most",
    )
    yield (
        type(share) in (int, float) and 0 <= share <= most,
        f"{GOLDENS} allows {shown(str(share))} of the largest output, {most:g} at most for "
        f"'{shown(str(variant))}'",
    )
    names = [golden["name"] for golden in goldens]
    yield len({*names}) == len(names), f"{GOLDENS} has two goldens of one name"
    yield {*SYNTHETIC} <= {*names}, f"{GOLDENS} lacks one of {', '.join(SYNTHETIC)}"
    shape, dtypes = about["input"]["shape"], (about["input"]["dtype"], about["output"]["dtype"])
    if shape[0] not in (1, -1) or min(shape[1:]) < 1:
        raise WrongError(f"{GOLDENS} has inputs of the shape {shown(str(shape))}")
    values = 1
    for side in shape[1:]:
        values *= side
    seen = set()
    for kind, path, count, dtype in (
        ("input", INPUTS, values, dtypes[0]), ("output", OUTPUTS, classes, dtypes[1])
    ):  # fmt: skip
        size, all_bytes = count * ITEM_BYTES[dtype], needed(content, path)
        places = [(golden[f"{kind}_offset"], golden[f"{kind}_bytes"]) for golden in goldens]
        yield (
            places == [(number * size, size) for number in range(len(goldens))]
            and len(all_bytes) == size * len(goldens),
            f"{path} does not hold one {kind} behind the other, as {GOLDENS} says",
        )
        if kind == "input":
            seen = {all_bytes[start : start + length] for start, length in places}
    yield len(seen) == len(goldens), f"{INPUTS} holds the same input twice"
    shipped = {path[len(IMAGES) :] for path in manifest["files"] if path.startswith(IMAGES)}
    pictured = [golden for golden in goldens if golden["name"] not in SYNTHETIC]
    pictures = [golden["picture"] for golden in goldens if golden["picture"] is not None]
    yield (
        len({*pictures}) == len(pictures) and {*pictures} == shipped,
        f"{GOLDENS} and {IMAGES} do not have the same pictures",
    )
    yield (
        len(pictures) == (len(pictured) if manifest["images"] else 0),
        f"{len(pictures)} of {len(pictured)} goldens that are no synthetic ones have their picture "
        f"here; {MANIFEST} says that pictures were "
        f"{'packed' if manifest['images'] else 'left out'}",
    )
    threshold = manifest["score_threshold"]
    yield (
        same_json(threshold, about["score_threshold"]),
        f"{MANIFEST} and {GOLDENS} have another score_threshold",
    )
    for golden in goldens:
        synthetic = golden["name"] in SYNTHETIC
        accepted = golden["accepted"]
        yield (
            accepted is None or (type(accepted) is bool and threshold is not None),
            f"the golden {shown(str(golden['name']))} counts, or does not, without a threshold",
        )
        # A picture of no class has no label.
        unlabelled = synthetic or (golden["label"] is None and accepted is False)
        answers = [golden["answer"], *([] if unlabelled else [golden["label"]])]
        yield (
            all(type(index) is int and 0 <= index < classes for index in answers)
            and not (synthetic and (golden["label"], golden["picture"]) != (None, None)),
            f"the golden {shown(str(golden['name']))} has a class that is none of the model's",
        )


def claims_about_verdict(manifest: dict[str, Any], content: Content) -> Claims:
    """The verdict follows from its checks, is about this file, and the card says the same."""
    verdict = manifest["verdict"]
    found = [check["status"] for check in verdict["checks"]]
    right = next((status for status in WORST_FIRST if status in found), "UNMEASURED")
    yield (
        verdict["status"] == right and {*found} <= {*WORST_FIRST},
        f"the verdict is {shown(str(verdict['status']))}, its checks make it {right}",
    )
    judged, shipped = manifest["judged_sha256"], manifest["model_sha256"]
    yield verdict["artifact_sha256"] == judged, "the verdict is about another file than was judged"
    suffix = manifest["model"].rpartition(".")[2]
    other = f"the verdict is about '{shown(verdict['artifact_path'])}', the bundle's is a .{suffix}"
    yield verdict["artifact_path"].endswith(f".{suffix}"), other
    card = needed(content, CARD).decode("utf-8")
    status = verdict["status"]
    told = re.findall(r"^Judged for the target .*: \*\*([A-Z]+)\*\* \(", card, re.M)
    heads = re.findall(r"^## Verdict for .*: ([A-Z]+)$", card, re.M)
    yield told == heads == [status], f"{CARD} has another verdict than {MANIFEST}"
    table = card.partition("\n## Verdict for ")[2].partition("\n| --- |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| [^|]* \| ([A-Z]+) \| ", table, re.M)
    yield rows == found, f"the checks in {CARD} came to something else than those in {MANIFEST}"
    digests = re.findall(r"^MobileNetV2 .* SHA-256 `([0-9a-f]{64})`", card, re.M)
    without = re.findall(r"^MobileNetV2 .* judged without, as `([0-9a-f]{64})`", card, re.M)
    yield (
        digests == [shipped] and without == ([] if judged == shipped else [judged]),
        f"{CARD} is about another model than {MANIFEST}",
    )


def facts_of_parts(content: Content) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the model's component in sbom.cdx.json, and what edgekit adds about it."""
    component = parsed(needed(content, PARTS), PARTS)["metadata"]["component"]
    start = "edgekit:"
    return component, {
        entry["name"][len(start) :]: entry["value"]
        for entry in component["properties"]
        if entry["name"].startswith(start)
    }


def claims_about_origin(manifest: dict[str, Any], content: Content) -> Claims:
    """Provenance and bill of materials are about the same files, model, target and run."""
    statement = parsed(needed(content, PROVENANCE), PROVENANCE)
    listed = {
        path: wanted["sha256"] for path, wanted in manifest["files"].items() if path != PROVENANCE
    }
    subject = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
    unlike = f"{PROVENANCE} and {MANIFEST}"
    yield subject == listed, f"{unlike} list other files"
    build = statement["predicate"]["buildDefinition"]
    asked, facts = build["externalParameters"], manifest["facts"]
    names = {key: manifest[key] for key in ("name", "title", "licence")}
    yield asked["package"] == names, f"{unlike} have another name, title or licence"
    target = manifest["verdict"]["target"]
    yield asked["target"]["name"] == target, f"{unlike} have another target"
    versions = [
        manifest["edgekit_version"], facts["edgekit"],
        statement["predicate"]["runDetails"]["builder"]["version"]["edgekit"],
    ]  # fmt: skip
    yield len({*versions}) == 1, f"{unlike} have other versions of edgekit"
    made_of = {entry["name"]: entry for entry in build["resolvedDependencies"]}
    digests = {
        "data": ("edgekit-dataset-sha256", facts["data_digest"]),
        "recipe": ("edgekit-recipe-sha256", facts["recipe_sha256"]),
        "weights": ("sha256", facts.get("weights_sha256")),
    }
    for name, (key, digest) in digests.items():
        found = made_of.get(name, {}).get("digest", {}).get(key)
        yield found == digest, f"{unlike} have another digest of the {name}"
    component, properties = facts_of_parts(content)
    unlike = f"{PARTS} and {MANIFEST}"
    yield (
        component["hashes"] == [{"alg": "SHA-256", "content": manifest["model_sha256"]}]
        and component["version"] == manifest["judged_sha256"][:12],
        f"{unlike} have another digest of the model",
    )
    told = [component["name"], component["description"], component["licenses"][0]["expression"]]
    yield told == [*names.values()], f"{unlike} have another name, title or licence"
    said = {key: properties[key] for key in ("file", "format", "verdict", "target")}
    model = manifest["model"]
    yield (
        said == {"file": model, "format": model.rpartition(".")[2],
                 "verdict": manifest["verdict"]["status"], "target": target},
        f"{unlike} have another model file, verdict or target",
    )  # fmt: skip
    kept = {f"edgekit:{key}": value for key, value in facts.items()}
    kept["edgekit:recipe:sha256"] = facts["recipe_sha256"]
    bill = parsed(needed(content, PARTS), PARTS)["properties"]
    yield {entry["name"]: entry["value"] for entry in bill} == kept, f"{unlike} have other facts"


def same_json(one: Any, other: Any) -> bool:
    """Returns whether two JSON values are the same; to Python, true is 1 and 1.0."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# ---- signature


def said_of_signature(root: Path) -> Outcome:
    """Says what protects the manifest; a signature needs more than Python to be checked."""
    if os.path.lexists(root / SIGNATURE):
        text = (
            f"{SIGNATURE} is here and was not checked; edgekit verify --public-key KEY does, with "
            "the key of whoever made the bundle"
        )
        return Outcome(NOT_RUN, text)
    text = (
        f"there is none, and nothing else protects {MANIFEST} itself: whoever altered the files "
        "could alter it, too"
    )
    return Outcome(NOT_RUN, text)


# ---- goldens


def load_goldens(content: Content) -> Goldens:
    """Reads the goldens and opens the model."""
    try:
        import numpy as np
    except ImportError:
        raise Missing("numpy is not here: pip install numpy") from None
    models = [name for name in MODELS if name in content]
    if len(models) != 1:
        raise WrongError(f"the bundle has {len(models)} models, not one")
    about = parsed(needed(content, GOLDENS), GOLDENS)
    try:
        if about["schema_version"] != 1:
            raise WrongError(f"{GOLDENS} has another schema version than 1")
        into, out = about["input"], about["output"]
        if not about["goldens"]:
            raise WrongError(f"{GOLDENS} has no goldens: nothing shows what the model answers")
        inputs: list[Any] = []
        outputs: list[Any] = []
        for golden in about["goldens"]:
            for path, kind, shape, found in (
                (INPUTS, "input", into["shape"], inputs),
                (OUTPUTS, "output", [out["classes"]], outputs),
            ):
                start, size = golden[f"{kind}_offset"], golden[f"{kind}_bytes"]
                part = needed(content, path)[start : start + size]
                if start < 0 or len(part) != size:
                    raise WrongError(f"{path} is too short for the golden {shown(golden['name'])}")
                dtype = np.dtype(about[kind]["dtype"]).newbyteorder("<")
                found.append(
                    np.frombuffer(part, dtype).astype(dtype.newbyteorder("=")).reshape(shape)
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WrongError(f"{GOLDENS} cannot be used ({shown(repr(error))})") from None
    opening = open_litert if models[0].endswith(".tflite") else open_onnxruntime
    run, runtime = opening(content[models[0]], about)
    return Goldens(about, inputs, outputs, run, runtime, time.monotonic() + MAX_SECONDS)


def open_litert(content: bytes, about: dict[str, Any]) -> tuple[Run, str]:
    """Opens a TensorFlow Lite file on LiteRT."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise Missing("LiteRT is not here: pip install ai-edge-litert") from None
    try:
        interpreter = Interpreter(model_content=content, num_threads=1)
        asked, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        if int(asked["shape_signature"][0]) == -1:
            interpreter.resize_tensor_input(asked["index"], about["input"]["shape"])
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise WrongError(f"LiteRT refuses the model ({shown(str(error))})") from None
    check_ends(about, asked["dtype"].__name__, answer["dtype"].__name__)

    def run(tensor: Any) -> Any:
        interpreter.set_tensor(asked["index"], tensor)
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"]).reshape(-1)

    return run, f"LiteRT {version('ai-edge-litert')}"


def open_onnxruntime(content: bytes, about: dict[str, Any]) -> tuple[Run, str]:
    """Opens an ONNX or ORT file on onnxruntime."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise Missing("onnxruntime is not here: pip install onnxruntime") from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(EXACT, "0" if has_vnni() else "1")
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        asked, answer = session.get_inputs()[0], session.get_outputs()[0]
    except Exception as error:  # noqa: BLE001 - its exceptions share no other base
        raise WrongError(f"onnxruntime refuses the model ({shown(str(error))})") from None
    check_ends(about, DTYPES.get(asked.type, asked.type), DTYPES.get(answer.type, answer.type))

    def run(tensor: Any) -> Any:
        return session.run(None, {asked.name: tensor})[0].reshape(-1)

    return run, f"onnxruntime {ort.__version__}"


def has_vnni() -> bool:
    """Returns whether Linux says that this processor has instructions for products of 8 bits."""
    try:
        return bool(VNNI & set(Path("/proc/cpuinfo").read_text(errors="replace").split()))
    except OSError:
        return False


def check_ends(about: dict[str, Any], asked: str, answer: str) -> None:
    """Refuses a model whose tensors are not those of the goldens."""
    wanted = (about["input"]["dtype"], about["output"]["dtype"])
    if (asked, answer) != wanted:
        raise WrongError(
            f"the model takes {asked} and answers {answer}, the goldens are {wanted[0]} and "
            f"{wanted[1]}: it is not the model they were made with"
        )


def answered(goldens: Goldens, tensor: Any) -> Any:
    """Returns the raw outputs of the model, whatever the runtime raises."""
    if time.monotonic() > goldens.until:
        raise WrongError(f"the goldens take more than {MAX_SECONDS:g} s here: do not wait for them")
    try:
        return goldens.run(tensor)
    except Exception as error:  # noqa: BLE001 - runtimes have exceptions of their own
        raise WrongError(f"{goldens.runtime} stopped ({shown(str(error))})") from None


def check_tensors(goldens: Goldens) -> Outcome:
    """Level A: exact inputs, raw outputs within the tolerance of the goldens."""
    import numpy as np

    about = goldens.about
    worst, failed = 0.0, []
    whole = np.issubdtype(goldens.outputs[0].dtype, np.integer)
    for golden, tensor, wanted in zip(about["goldens"], goldens.inputs, goldens.outputs):  # noqa: B905
        score = float(wanted.max())
        if about["output"]["scale"] is not None:
            score = about["output"]["scale"] * (score - about["output"]["zero_point"])
        threshold = about["score_threshold"]
        counts = golden["accepted"] in (None, threshold is not None and score > threshold)
        if int(wanted.argmax()) != golden["answer"] or not counts:
            raise WrongError(f"{GOLDENS} and {OUTPUTS} disagree: get the bundle again")
        found = answered(goldens, tensor)
        if found.shape != wanted.shape:
            text = f"the model has {found.size} outputs, the goldens have {wanted.size}"
            return Outcome(FAIL, f"{text}: it is not the model they were made with")
        apart = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()
        if whole:
            allowed = about["tolerance_steps"]
        else:
            largest = float(np.abs(wanted).max()) or 1.0
            apart, allowed = apart / largest, about["tolerance_share"]
        if not apart <= allowed:  # not a number is no answer either
            failed.append(shown(golden["name"]))
        worst = max(worst, float(apart)) if np.isfinite(apart) else float("inf")
    unit = "steps" if whole else "of the largest output"
    said = f"largest difference {worst:.3g} {unit}, allowed {allowed:g}"
    count = len(about["goldens"])
    if failed:
        text = (
            f"{len(failed)} of {count} goldens give other raw outputs with {goldens.runtime} "
            f"({said}): {listing(failed)}. The inputs are exact, so it is the model file, or the "
            "runtime and its kernels here; no picture was involved"
        )
        return Outcome(FAIL, text, count, tuple(failed))
    return Outcome(PASS, f"{count} goldens with {goldens.runtime}: {said}", count)


def check_pictures(goldens: Goldens, content: Content) -> Outcome:
    """Level B: the source pictures, prepared here, get the same class."""
    import numpy as np

    try:
        import PIL
    except ImportError:
        raise Missing("Pillow is not here: pip install pillow") from None
    about = goldens.about
    codes, labels = input_codes(about), about["labels"]
    shape = tuple(goldens.inputs[0].shape)
    step = np.abs(np.diff(codes.astype(np.float64), axis=0)).max()
    failed, close, said, other, count = [], [], [], 0, 0
    for golden, wanted in zip(about["goldens"], goldens.inputs):  # noqa: B905 - Python 3.9
        if golden["picture"] is None:
            continue
        count += 1
        name = shown(golden["name"])
        try:
            pixels = prepared(needed(content, IMAGES + golden["picture"]), about["preprocess"])
        except (OSError, ValueError, SyntaxError) as error:
            raise WrongError(
                f"the picture of {name} cannot be read ({shown(str(error))})"
            ) from None
        channels = np.arange(about["input"]["shape"][-1])
        tensor = np.ascontiguousarray(codes[pixels[..., channels], channels][None])
        if tensor.shape != shape:
            raise WrongError(f"{GOLDENS} prepares pictures of another size than the model's input")
        apart = np.abs(tensor.astype(np.float64) - wanted.astype(np.float64)).max() / step
        other += bool(apart > 0)
        answer = int(answered(goldens, tensor).argmax())
        if answer == golden["answer"]:
            continue
        was, right = labels[answer], labels[golden["answer"]]
        told = f"{name} is '{shown(str(was))}', not '{shown(str(right))}'"
        if apart <= DECODER_STEPS * (1 + 1e-6):  # float32 rounds the values
            close.append(told)
        else:
            failed.append(name)
            said.append(told)
    if not count:
        raise Missing("the bundle ships no pictures")
    how = f"{other} of {count} tensors differ from the goldens' own, Pillow {PIL.__version__}"
    if close:
        how += f"; too close to count, at most {DECODER_STEPS} of 255 apart: {listing(close)}"
    if failed:
        text = (
            f"{len(failed)} of {count} pictures get another class ({listing(said)}; {how}). Level "
            "A passed, so the model and the runtime are right: it is the preparation of the "
            "picture: resize, channel order, EXIF rotation or normalization; compare it with "
            f"'preprocess' in {GOLDENS}"
        )
        return Outcome(FAIL, text, count, tuple(failed))
    text = f"{count - len(close)} of {count} pictures get the same class ({how})"
    return Outcome(PASS, text, count)


def listing(names: list[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# ---- from picture to tensor: what the model was trained, judged and packed with


def prepared(content: bytes, preprocess: dict[str, Any]) -> Any:
    """Returns the uint8 pixels (height, width, 3) that a picture file stands for."""
    import numpy as np
    from PIL import Image

    width, height = preprocess["width_px"], preprocess["height_px"]
    picture, size = decoded(content, preprocess)
    fill = Image.new("RGB", (1, 1), tuple(preprocess["fill"]))
    if preprocess["channels"] == "grey":
        picture, fill = (each.convert("L").convert("RGB") for each in (picture, fill))
    shrunk = picture.size != size
    box: tuple[float, float, float, float] | None = None
    if preprocess["crop"] == "center":
        ratio = min(picture.width / width, picture.height / height)
        kept_width, kept_height = width * ratio, height * ratio
        if not shrunk:
            kept_width, kept_height = round(kept_width), round(kept_height)
        left, top = (picture.width - kept_width) / 2, (picture.height - kept_height) / 2
        if shrunk:
            box = (left, top, left + kept_width, top + kept_height)
        else:
            corner = int(left), int(top)
            picture = picture.crop((*corner, corner[0] + kept_width, corner[1] + kept_height))
    elif preprocess["crop"] not in ("none", "letterbox"):
        raise ValueError(f"crop {preprocess['crop']!r} is unknown")
    filters = {name.lower(): getattr(Image.Resampling, name)
               for name in ("BILINEAR", "BICUBIC", "NEAREST")}  # fmt: skip
    if preprocess["resize"] not in filters:
        raise ValueError(f"resize {preprocess['resize']!r} is unknown")
    if preprocess["crop"] == "letterbox":
        place, kept = letterbox(size, (width, height))
        resized = fill.resize((width, height))
        resized.paste(picture.resize(kept, filters[preprocess["resize"]]), place)
    else:
        resized = picture.resize((width, height), filters[preprocess["resize"]], box)
    pixels = np.asarray(resized, dtype=np.uint8)
    return pixels[..., ::-1] if preprocess["channels"] == "bgr" else pixels


def letterbox(size: tuple[int, int], into: tuple[int, int]) -> tuple[Any, tuple[int, int]]:
    """Returns where a whole picture lies in the input, and its size there, in whole numbers."""
    (width, height), (right, bottom) = size, into
    if width * bottom >= height * right:
        kept = right, max(1, (2 * height * right + width) // (2 * width))
    else:
        kept = max(1, (2 * width * bottom + height) // (2 * height)), bottom
    return ((right - kept[0]) // 2, (bottom - kept[1]) // 2), kept


def decoded(content: bytes, preprocess: dict[str, Any]) -> tuple[Any, tuple[int, int]]:
    """Returns an upright RGB picture, perhaps decoded below its full size, and that size."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata; pixels decide here
        picture: Any = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "BMP", "WEBP"))
        size = picture.size
        if size[0] * size[1] > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS} pixels")
        if preprocess["resize"] != "nearest" and picture.format == "JPEG":
            # Computes a half, a quarter or an eighth of the pixels where these are enough.
            side = 2 * max(preprocess["width_px"], preprocess["height_px"])
            picture.draft(None, (side, side))
        picture.load()
        turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
        if turn is not None:
            picture = picture.transpose(getattr(Image.Transpose, turn))
            if turn in SIDEWAYS:
                size = size[::-1]
    return rgb(picture), size


def rgb(picture: Any) -> Any:
    """Returns a picture in RGB: 16 bits become 8, transparency becomes white."""
    import numpy as np
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        picture = Image.fromarray((values / 257).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return picture.convert("RGB")


def input_codes(about: dict[str, Any]) -> Any:
    """Returns the tensor value of every pixel value per channel, of shape (256, 3)."""
    import numpy as np

    into, preprocess = about["input"], about["preprocess"]
    pixels = np.arange(256, dtype=np.float64)[:, None]
    real = pixels * np.array(preprocess["scale"]) + np.array(preprocess["offset"])
    if into["dtype"] == "float32":
        return real.astype(np.float32)
    limits = np.iinfo(into["dtype"])
    steps = real / into["scale"]
    rounded = np.trunc(steps + np.copysign(0.5, steps)) + into["zero_point"]
    return np.clip(rounded, limits.min, limits.max).astype(into["dtype"])


# ---- the program


def verify(root: Path) -> dict[str, Outcome]:
    """Returns what every part of the check came to."""
    files, manifest, content = check_files(root)
    found = {"files": files}
    levels = ("level A", "level B")
    if files.status == FAIL:
        skipped = Outcome(NOT_RUN, "the files are not those that were packed")
        found.update(dict.fromkeys(("labels", "claims", *levels), skipped))
        return {**found, "signature": said_of_signature(root)}
    found["labels"] = check_labels(manifest, content)
    found["claims"] = check_claims(manifest, content)
    goldens: Goldens | None = None
    found["level A"], found["level B"] = Outcome(NOT_RUN, ""), Outcome(NOT_RUN, "level A is first")
    found["signature"] = said_of_signature(root)
    if found["claims"].status == FAIL:
        found["level A"] = found["level B"] = Outcome(NOT_RUN, "the claims are first")
        return found
    for level in levels:
        try:
            if goldens is None:
                goldens = load_goldens(content)
                found[level] = check_tensors(goldens)
            else:
                found[level] = check_pictures(goldens, content)
        except Missing as error:
            found[level] = Outcome(NOT_RUN, str(error))
        except WrongError as error:
            found[level] = Outcome(FAIL, str(error))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            found[level] = Outcome(FAIL, f"{GOLDENS} cannot be used ({shown(repr(error))})")
        if found[level].status != PASS:
            break
    return found


def write(found: dict[str, Outcome], as_json: bool, stream: IO[str]) -> None:
    """Writes the result for a person or a program."""
    passed = all(outcome.status != FAIL for outcome in found.values())
    if as_json:
        parts = {
            name.replace(" ", "_").lower(): {
                **outcome._asdict(), "problems": [p._asdict() for p in outcome.problems]
            }
            for name, outcome in found.items()
        }  # fmt: skip
        stream.write(json.dumps({"schema_version": 1, "passed": passed, **parts}, indent=1) + "\n")
        return
    for name, outcome in found.items():
        stream.write(f"{name:9} {outcome.status:8} {plain(outcome.text)}\n")
        for problem in outcome.problems:
            stream.write(f"  {problem.kind}: {plain(problem.text)}\n")


def main(arguments: list[str]) -> int:
    """Checks a bundle and returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Checks every file of a bundle and, where a runtime is installed, its answers."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent,
                        help="the bundle; by default the folder of this program")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="write the result as JSON")
    asked = parser.parse_args(arguments)
    sys.stdout.flush()
    # Runtimes print to descriptor 1 too; this keeps their words out of the result.
    own = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(own, "w", encoding="utf-8") as stream:
        found = verify(asked.folder)
        write(found, asked.json, stream)
    return WRONG if any(outcome.status == FAIL for outcome in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
