"""Bundles altered as an attacker, an accident or another program would; none may pass `verify`.

`ALTERATIONS` lists a name and a function from the bytes of a zip file that `edgekit package` wrote
to those of the altered one; `altered(name, content)` applies one. What alters files writes digests
anew wherever they stand, as whoever forges a bundle would, so that no digest gives it away.
"""

import hashlib
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from typing import Any

Files = dict[str, bytes]
Alteration = Callable[[bytes], bytes]

LOCAL = ("magic", "version", "flags", "method", "time", "day", "checksum", "packed", "size",
         "name_bytes", "extra_bytes")  # fmt: skip
LISTED = ("magic", "made_by", "version", "flags", "method", "time", "day", "checksum", "packed",
          "size", "name_bytes", "extra_bytes", "comment_bytes", "disk", "internal", "attributes",
          "place")  # fmt: skip
_LOCAL = struct.Struct("<4s5H3L2H")
_LISTED = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
MODE = (stat.S_IFREG | 0o644) << 16
EVIL = b"#!/bin/sh\necho altered\n"


# ---- zip files


def packed(
    files: Iterable[tuple[str, bytes]],
    local: Mapping[str, Any] | None = None,
    listed: Mapping[str, Any] | None = None,
    of: str | None = None,
    gap: Mapping[str | None, bytes] | None = None,
    tail: bytes = b"",
    end: Mapping[str, Any] | None = None,
) -> bytes:
    """Returns a zip file as `edgekit package` writes it, but for what is asked.

    Args:
        files: Paths and contents, in order.
        local: Other values for fields of local headers; "name" and "extra" are bytes in them.
        listed: The same for entries of the directory; a list for "place" is shared bytes.
        of: Path of the file whose headers these are. Defaults to None: of every file.
        gap: Bytes in front of the file of that path; of the directory under None.
        tail: Bytes between the directory and the end record.
        end: Other values for "count", "size", "place" or "comment" of the end record.
    """
    content, directory, count = bytearray(), bytearray(), 0
    gap = gap or {}
    for name, data in files:
        content += gap.get(name, b"")
        asked = of in (None, name)
        base: dict[str, Any] = {
            "version": 20, "flags": 0 if name.isascii() else 0x800, "method": 0, "time": 0,
            "day": 0x21, "checksum": zlib.crc32(data), "packed": len(data), "size": len(data),
            "made_by": 3 << 8 | 20, "comment_bytes": 0, "disk": 0, "internal": 0,
            "attributes": MODE, "place": len(content), "name": name.encode(), "extra": b"",
        }  # fmt: skip
        own, entry = (base | dict((more or {}) if asked else {}) for more in (local, listed))
        for form, magic, names, values in (
            (_LOCAL, b"PK\x03\x04", LOCAL, own), (_LISTED, b"PK\x01\x02", LISTED, entry)
        ):  # fmt: skip
            lengths = {"name_bytes": len(values["name"]), "extra_bytes": len(values["extra"])}
            values = {"magic": magic, **lengths, **values}
            made = form.pack(*(values[key] for key in names)) + values["name"] + values["extra"]
            if form is _LOCAL:
                content += made + data
            else:
                directory += made
        count += 1
    content += gap.get(None, b"")
    said = {"count": count, "size": len(directory), "place": len(content), "comment": b""}
    said |= end or {}
    last = (b"PK\x05\x06", 0, 0, said["count"], said["count"], said["size"], said["place"])
    return bytes(
        content + directory + tail + _END.pack(*last, len(said["comment"])) + said["comment"]
    )


def unpacked(content: bytes) -> Files:
    """Returns the files of a whole bundle."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def hidden(name: str, data: bytes = EVIL) -> bytes:
    """Returns a local header and content, as unpackers that go through a file in order find it."""
    return packed([(name, data)])[: _LOCAL.size + len(name) + len(data)]


def _zip(**more: Any) -> Alteration:
    """Returns what packs the same files otherwise; headers asked for are those of labels.txt."""
    more.setdefault("of", "labels.txt")
    return lambda content: packed(unpacked(content).items(), **more)


def _each(**fields: Any) -> Alteration:
    return _zip(local=fields, listed=fields)


def _repacked(compression: int) -> Alteration:
    def change(content: bytes) -> bytes:
        stream = BytesIO()
        with zipfile.ZipFile(stream, "w", compression) as archive:
            for name, data in unpacked(content).items():
                archive.writestr(zipfile.ZipInfo(name, (2026, 11, 28, 1, 2, 4)), data, compression)
        return stream.getvalue()

    return change


def _listed_twice(content: bytes) -> bytes:
    files = list(unpacked(content).items())
    return packed([*files, ("labels.txt", EVIL)])


def _shared(content: bytes) -> bytes:
    """Two entries of the directory name the same bytes."""
    files = unpacked(content)
    name, data = "labels.txt", files["labels.txt"]
    whole = packed([*files.items(), (name, data)])
    place = whole.index(hidden(name, data))
    return packed([*files.items(), ("zabels.txt", data)], listed={"place": place}, of="zabels.txt")


def _with_folder(content: bytes) -> bytes:
    return packed(sorted([*unpacked(content).items(), ("linux/", b"")]))


def _reordered(content: bytes) -> bytes:
    return packed(reversed(unpacked(content).items()))


def _wide(content: bytes) -> bytes:
    return content[:-22] + b"PK\x06\x07" + bytes(16) + content[-22:]


_NO_DATA = {"checksum": 0, "packed": 0, "size": 0, "flags": 8}

ZIP_ALTERATIONS: list[tuple[str, Alteration]] = [
    ("hidden model before the directory", _zip(gap={None: hidden("model.tflite")})),
    ("hidden new file before the directory", _zip(gap={None: hidden("install.sh")})),
    ("hidden model between files", _zip(gap={"verify.py": hidden("model.tflite")})),
    ("zeros before the directory", _zip(gap={None: bytes(16)})),
    ("zeros between files", _zip(gap={"labels.txt": bytes(1)})),
    ("zeros behind the directory", _zip(tail=bytes(8))),
    ("hidden entry behind the directory", _zip(tail=b"PK\x01\x02" + bytes(42))),
    ("text in front", lambda content: b"#!/bin/sh\n" + content),
    ("text behind", lambda content: content + b"\n"),
    ("another zip in front", lambda content: packed([("model.tflite", EVIL)]) + content),
    ("another zip behind", lambda content: content + packed([("model.tflite", EVIL)])),
    ("a comment", _zip(end={"comment": b"hello"})),
    ("a comment with a directory", _zip(end={"comment": packed([("a", EVIL)])})),
    ("fewer entries than there are", lambda content: packed(
        unpacked(content).items(), end={"count": len(unpacked(content)) - 1})),
    ("ZIP64", _wide),
    ("truncated", lambda content: content[:-1]),
    ("local name is another", _zip(local={"name": b"Labels.txt"})),
    ("local name is longer", _zip(local={"name": b"labels.txt.sh"})),
    ("local name leaves the folder", _zip(local={"name": b"../abl.txt"})),
    ("local size is another", _zip(local={"packed": 3, "size": 3})),
    ("local checksum is another", _zip(local={"checksum": 0})),
    ("local method is deflate", _zip(local={"method": 8})),
    ("local flags say encrypted", _zip(local={"flags": 1})),
    ("local flags say sizes follow", _zip(local=_NO_DATA)),
    ("local time is another", _zip(local={"time": 0x6000})),
    ("local day is another", _zip(local={"day": 0x5D7C})),
    ("local version is another", _zip(local={"version": 10})),
    ("local extra data", _zip(local={"extra": b"\xfe\xca\x04\x00evil"})),
    ("listed name is another", _zip(listed={"name": b"Labels.txt"})),
    ("listed size is another", _zip(listed={"packed": 3, "size": 3})),
    ("listed with two sizes", _zip(listed={"size": 3})),
    ("listed checksum is another", _zip(listed={"checksum": 0})),
    ("listed method is deflate", _zip(listed={"method": 8})),
    ("listed flags say encrypted", _zip(listed={"flags": 1})),
    ("listed day is another", _zip(listed={"day": 0x5D7C})),
    ("listed as a link", _zip(listed={"attributes": (stat.S_IFLNK | 0o777) << 16})),
    ("listed as a program", _zip(listed={"attributes": (stat.S_IFREG | 0o755) << 16})),
    ("listed on another disk", _zip(listed={"disk": 1})),
    ("listed with internal attributes", _zip(listed={"internal": 1})),
    ("listed with extra data", _zip(listed={"extra": b"\xfe\xca\x04\x00evil"})),
    ("listed with a comment", _zip(listed={"comment_bytes": 4})),
    ("listed at another place", _zip(listed={"place": 0})),
    ("both with extra data", _each(extra=b"\xfe\xca\x04\x00evil")),
    ("both with another day", _each(day=0x5D7C)),
    ("both with a flag", _each(flags=0x800)),
    ("one path twice", _listed_twice),
    ("two paths share bytes", _shared),
    ("a folder", _with_folder),
    ("in another order", _reordered),
    ("packed by another program", _repacked(zipfile.ZIP_STORED)),
    ("compressed by another program", _repacked(zipfile.ZIP_DEFLATED)),
]  # fmt: skip


# ---- files


def written(path: str, value: Any) -> bytes:
    """Returns JSON as edgekit writes it in a bundle."""
    if path in ("provenance.json", "sbom.cdx.json"):
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def sealed(files: Files) -> Files:
    """Writes every digest and size anew, in provenance and manifest."""
    listed = {path: content for path, content in files.items()
              if path not in ("manifest.json", "model.sig")}  # fmt: skip
    if "provenance.json" in listed:
        statement = json.loads(listed["provenance.json"])
        statement["subject"] = [
            {"name": path, "digest": {"sha256": hashlib.sha256(content).hexdigest()}}
            for path, content in sorted(listed.items())
            if path != "provenance.json"
        ]
        listed["provenance.json"] = written("provenance.json", statement)
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {
        path: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for path, content in sorted(listed.items())
    }
    if manifest["model"] in listed:
        manifest["model_sha256"] = manifest["files"][manifest["model"]]["sha256"]
    return {**files, **listed, "manifest.json": written("manifest.json", manifest)}


def zipped(files: Files) -> bytes:
    """Returns the files as `edgekit package` packs them."""
    return packed(sorted(files.items()))


def _files(change: Callable[[Files], object], seal: bool = True) -> Alteration:
    """Returns what alters files, writes digests anew and packs them as edgekit would."""

    def alter(content: bytes) -> bytes:
        files = unpacked(content)
        change(files)
        return zipped(sealed(files) if seal else files)

    return alter


def edit(files: Files, path: str, change: Callable[[Any], object]) -> None:
    """Alters the value of a JSON file of a bundle."""
    value = json.loads(files[path])
    change(value)
    files[path] = written(path, value)


def put(*keys: Any) -> Callable[[Any], None]:
    """Returns what puts the last of the keys, a value, below the others."""
    *way, key, wanted = keys

    def change(value: Any) -> None:
        for step in way:
            value = value[step]
        value[key] = wanted

    return change


def _manifest(*keys: Any) -> Alteration:
    return _files(lambda files: edit(files, "manifest.json", put(*keys)))


def _goldens(change: Callable[[Any], object]) -> Alteration:
    """Returns what alters the goldens, with their number in the manifest."""

    def both(files: Files) -> None:
        edit(files, "goldens/goldens.json", change)
        count = len(json.loads(files["goldens/goldens.json"])["goldens"])
        edit(files, "manifest.json", put("goldens", count))
        for path in [path for path in files if path.endswith("/goldens/goldens.json")]:
            files[path] = files["goldens/goldens.json"]

    return _files(both)


def _contract(key: str, wanted: Any) -> Alteration:
    """Returns what alters the preprocessing wherever a file tells of it but in the model."""

    def change(files: Files) -> None:
        for path in ("manifest.json", "goldens/goldens.json"):
            edit(files, path, put("preprocess", key, wanted))

    return _files(change)


def _reversed_classes(files: Files) -> None:
    """The names of the classes in another order, wherever a file tells of it but in the model."""
    names = files["labels.txt"].decode().splitlines()[::-1]
    for path in [path for path in files if path.rpartition("/")[2] == "labels.txt"]:
        files[path] = "".join(f"{name}\n" for name in names).encode()
    edit(files, "manifest.json", put("class_names", names))
    edit(files, "goldens/goldens.json", put("labels", names))


def _swapped_lines(files: Files) -> None:
    names = files["labels.txt"].decode().splitlines()
    files["labels.txt"] = "".join(f"{name}\n" for name in (names[1], names[0], *names[2:])).encode()


def flipped(content: bytes, place: int) -> bytes:
    """Returns the bytes with the lowest bit of one of them turned."""
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _model(change: Callable[[bytes], bytes]) -> Alteration:
    def alter(files: Files) -> None:
        name = json.loads(files["manifest.json"])["model"]
        files[name] = change(files[name])
        digest = hashlib.sha256(files[name]).hexdigest()
        edit(files, "manifest.json", put("model_sha256", digest))

    return _files(alter)


def _repeated(about: Any) -> None:
    about["goldens"] = [about["goldens"][0]] * 20_000


def _renamed(about: Any) -> None:
    about["goldens"] = [{**about["goldens"][0], "name": f"g{i}"} for i in range(20_000)]


def _same_input(about: Any) -> None:
    first, second = about["goldens"][:2]
    about["goldens"][1] = {**second, "input_offset": first["input_offset"]}


def _doubled_input(files: Files) -> None:
    golden = json.loads(files["goldens/goldens.json"])["goldens"][0]
    size, content = golden["input_bytes"], files["goldens/inputs.bin"]
    files["goldens/inputs.bin"] = content[:size] * 2 + content[2 * size :]


def _no_synthetic(about: Any) -> None:
    about["goldens"] = [golden for golden in about["goldens"] if golden["picture"] is not None]


def _no_pictures(about: Any) -> None:
    for golden in about["goldens"]:
        golden["picture"] = None


def _pictures(files: Files) -> list[str]:
    """Returns the paths of the goldens' pictures; the names tell how they are turned."""
    return sorted(path for path in files if path.startswith("goldens/images/"))


def _without_images(files: Files) -> None:
    for path in _pictures(files):
        del files[path]
    edit(files, "goldens/goldens.json", _no_pictures)


def _text(path: str, old: str, new: str) -> Alteration:
    def change(files: Files) -> None:
        text = files[path].decode()
        assert old in text
        files[path] = text.replace(old, new, 1).encode()

    return _files(change)


def _other_verdict(files: Files) -> None:
    status = json.loads(files["manifest.json"])["verdict"]["status"]
    other = "PASS" if status != "PASS" else "MISS"
    files["MODEL_CARD.md"] = files["MODEL_CARD.md"].replace(
        f": **{status}** (".encode(), f": **{other}** (".encode(), 1
    )


def _status(status: str) -> Alteration:
    return _manifest("verdict", "status", status)


def _raw(change: Callable[[bytes], bytes]) -> Alteration:
    def alter(files: Files) -> None:
        files["manifest.json"] = change(files["manifest.json"])

    return _files(alter, seal=False)


FILE_ALTERATIONS: list[tuple[str, Alteration]] = [
    ("manifest: another status", _status("MISS")),
    ("manifest: a check that missed", _manifest("verdict", "checks", 0, "status", "MISS")),
    ("manifest: no checks", _manifest("verdict", "checks", [])),
    ("manifest: another target", _manifest("verdict", "target", "\x1b]0;owned\x07\x1b[31mpixel")),
    ("manifest: another judged file", _manifest("verdict", "artifact_sha256", "0" * 64)),
    ("manifest: another file's name", _manifest("verdict", "artifact_path", "other.tflite")),
    ("manifest: a note", _manifest("verdict", "notes", ["all is well"])),
    ("manifest: another measurement", _manifest("verdict", "checks", 0, "measured", "0.00 points")),
    ("manifest: classes reversed", _files(lambda files: edit(
        files, "manifest.json", lambda value: value["class_names"].reverse()))),
    ("manifest: another class", _manifest("class_names", 0, "\x1b[2Jnothing")),
    ("manifest: another preprocessing", _manifest("preprocess", "channels", "bgr")),
    ("manifest: another input", _manifest("input", "zero_point", 127)),
    ("manifest: another input's name", _manifest("input", "name", "picture")),
    ("manifest: another output", _manifest("output", "scale", 1.0)),
    ("manifest: another judged digest", _manifest("judged_sha256", "0" * 64)),
    ("manifest: another kind", _manifest("kind", "ios")),
    ("manifest: another name", _manifest("name", "other")),
    ("manifest: another title", _manifest("title", "Certified \x1b[1mclassifier")),
    ("manifest: another licence", _manifest("licence", "MIT")),
    ("manifest: another version", _manifest("edgekit_version", "9.9.9")),
    ("manifest: other data", _manifest("facts", "data_digest", "0" * 64)),
    ("manifest: another recipe", _manifest("facts", "recipe_sha256", "0" * 64)),
    ("manifest: other weights", _manifest("facts", "weights_sha256", "0" * 64)),
    ("manifest: another package", _manifest("facts", "version.numpy", "1.0")),
    ("manifest: a further fact", _manifest("facts", "audited", "yes")),
    ("manifest: other number of goldens", _manifest("goldens", 3)),
    ("manifest: pictures left out", _manifest("images", False)),
    ("manifest: a key twice", _raw(lambda text: text.replace(
        b'{\n "schema_version": 1', b'{\n "kind": "ios",\n "schema_version": 1', 1))),
    ("manifest: other white space", _raw(lambda text: text.replace(b"\n ", b"\n\t", 1))),
    ("manifest: a number as text", _raw(lambda text: text.replace(
        b'"schema_version": 1', b'"schema_version": true', 1))),
    ("manifest: not JSON", _raw(lambda text: text[:-3])),
    ("manifest: too deep", _raw(lambda text: b"[" * 100_000)),
    ("preprocessing reversed everywhere but in the model", _contract("channels", "bgr")),
    ("preprocessing scaled everywhere but in the model", _contract("scale", [0.004, 0.004, 0.004])),
    ("classes reversed everywhere but in the model", _files(_reversed_classes)),
    ("labels.txt: two lines swapped", _files(_swapped_lines)),
    ("labels.txt: a line more", _files(lambda files: files.update(
        {"labels.txt": files["labels.txt"] + b"more\n"}))),
    ("goldens: none", _goldens(lambda about: about["goldens"].clear())),
    ("goldens: none, and nothing in their files", _files(lambda files: (
        edit(files, "goldens/goldens.json", lambda about: about["goldens"].clear()),
        files.update({"goldens/inputs.bin": b"", "goldens/outputs.bin": b""}),
        edit(files, "manifest.json", put("goldens", 1)),
    ))),
    ("goldens: no synthetic ones", _goldens(_no_synthetic)),
    ("goldens: no pictures named", _goldens(_no_pictures)),
    ("goldens: no pictures in the bundle", _files(_without_images)),
    ("goldens: 20,000 times the same", _goldens(_repeated)),
    ("goldens: 20,000 times the same under other names", _goldens(_renamed)),
    ("goldens: one name twice", _goldens(lambda about: about["goldens"][1].update(
        {"name": about["goldens"][0]["name"]}))),
    ("goldens: one place twice", _goldens(_same_input)),
    ("goldens: one input twice", _files(_doubled_input)),
    ("goldens: bytes behind the inputs", _files(lambda files: files.update(
        {"goldens/inputs.bin": files["goldens/inputs.bin"] + EVIL}))),
    ("goldens: an answer out of range", _goldens(put("goldens", 0, "answer", 10**6))),
    ("goldens: a label out of range", _goldens(put("goldens", 0, "label", -1))),
    ("goldens: a tolerance of 1e9 steps", _goldens(put("tolerance_steps", 1e9))),
    ("goldens: a tolerance of 2 steps", _goldens(put("tolerance_steps", 2))),
    ("goldens: a tolerance that is not a number", _goldens(put("tolerance_steps", float("nan")))),
    ("goldens: a share of 1e9", _goldens(put("tolerance_share", 1e9))),
    ("goldens: a share of 0.06", _goldens(put("tolerance_share", 0.06))),
    ("goldens: one that does not count does", _goldens(put("goldens", 0, "accepted", True))),
    ("goldens: another threshold", _goldens(put("score_threshold", -1e9))),
    ("another threshold everywhere but in the model", _files(lambda files: [
        edit(files, path, put("score_threshold", -1e9)) for path in files
        if path.endswith(("manifest.json", "goldens.json", "preprocess.json"))
    ] and None)),
    ("goldens: another preprocessing", _goldens(put("preprocess", "crop", "center"))),
    ("goldens: outputs of another model", _files(lambda files: files.update(
        {"goldens/outputs.bin": files["goldens/outputs.bin"][::-1]}))),
    ("model: a bit of a weight", _model(lambda model: flipped(model, len(model) // 2))),
    ("model: a bit of its root", _model(lambda model: flipped(model, 0))),
    ("model: a label behind it", _model(lambda model: flipped(
        model, max(model.rfind(b"PK\x01\x02") - 3, 0)))),
    ("model: bytes behind it", _model(lambda model: model + bytes(16))),
    ("model: missing", _files(lambda files: files.pop(
        json.loads(files["manifest.json"])["model"]))),
    ("model: a second one", _files(lambda files: files.update({"model.ort": b"ORTM" * 8}))),
    ("provenance: another target", _files(lambda files: edit(files, "provenance.json", put(
        "predicate", "buildDefinition", "externalParameters", "target", "name", "other")))),
    ("provenance: other data", _text("provenance.json", '"edgekit-dataset-sha256": "', '"x": "')),
    ("provenance: missing", _files(lambda files: files.pop("provenance.json"))),
    ("parts: another verdict", _text("sbom.cdx.json", '"edgekit:verdict"', '"edgekit:verdicts"')),
    ("parts: float arithmetic", _text("sbom.cdx.json", '"int8"', '"float32"')),
    ("card: another verdict", _files(_other_verdict)),
    ("card: another model", _text("MODEL_CARD.md", "SHA-256 `", "SHA-256 `0")),
    ("card: missing", _files(lambda files: files.pop("MODEL_CARD.md"))),
    ("a folder of another kind", _files(lambda files: files.update({"ios/Package.swift": EVIL}))),
    ("a file beside the others", _files(lambda files: files.update({"install.sh": EVIL}))),
    ("a file that is not listed", _files(lambda files: files.update({"more.txt": EVIL}), False)),
    ("a file called as a signature", _files(lambda files: files.update({"x.sig": EVIL}), False)),
    ("a signature of 5 MiB", _files(lambda files: files.update(
        {"model.sig": bytes(5 * 1024**2)}), False)),
    ("a file less", _files(lambda files: files.pop(_pictures(files)[1]), False)),
    ("a picture of nothing", _files(lambda files: files.update({_pictures(files)[1]: EVIL}))),
]  # fmt: skip

ALTERATIONS = [*ZIP_ALTERATIONS, *FILE_ALTERATIONS]
# Found by edgekit alone: in the form of the zip file or of the manifest, in what the model's own
# metadata says, or in words of the card. `verify.py` has neither; it reads a folder with Python.
ONLY_EDGEKIT = {
    "manifest: another file's name",
    "manifest: a note",
    "manifest: another measurement",
    "manifest: another input's name",
    "manifest: other white space",
    "preprocessing scaled everywhere but in the model",
    "preprocessing reversed everywhere but in the model",
}


def altered(name: str, content: bytes) -> bytes:
    """Returns the bytes of a zip file after the alteration of that name."""
    return dict(ALTERATIONS)[name](content)
