"""Pictures packed into shards: Parquet of Hugging Face's `datasets`, TFRecords of TFDS.

They are unpacked once into files in the user's cache folder, in a place that the content of the
shards gives its name, and from there on they are pictures of a folder like all others: read, hashed
and decoded under the same limits.

`python -m edgekit.data.packed FOLDER < JSON` is the process that unpacks. Parquet and TFRecords are
read by native code, and a file that crashes it, fills the memory or never ends takes down nothing
else. It never decodes a picture.

Sources: the schema that `datasets` writes into its files (`Features._to_dict`, key "huggingface"),
and the files that TFDS writes (`features.json`, `<label>.labels.txt`), as of datasets 5.2.0 and
tensorflow-datasets 4.9.10, of which both were tried.
"""

import hashlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from edgekit import limits
from edgekit.data.files import TO_FOLLOW, Form, Listed, Reading, Tree, is_folder, printable
from edgekit.data.formats import HEAD_BYTES, format_of
from edgekit.data.names import listed, made_from_train, plain, split_names
from edgekit.data.tables import LABEL_NAMES
from edgekit.devices import child
from edgekit.errors import DataError, EdgekitError, SpecError
from edgekit.folders import cache_folder, free_bytes, replace_folder, scratch_folder
from edgekit.processes import end, start
from edgekit.records import SkippedFile, SplitName
from edgekit.runner.program import answer_channel

_MODULE = "edgekit.data.packed"
# Raised where the same shards are unpacked into other files.
_VERSION = 1
_KINDS = {
    "parquet": re.compile(r".+\.(parquet|pq)", re.IGNORECASE),
    "tfrecord": re.compile(r".+\.tfrecords?(-[0-9]{5,}-of-[0-9]{5,})?", re.IGNORECASE),
}
# What reads each kind: the module, and the extra that brings it.
_READERS = {"parquet": ("pyarrow", "parquet"), "tfrecord": ("tensorflow", "train")}
_SAID = {"parquet": "Parquet", "tfrecord": "TFRecord"}
_INDEX, _ABOUT, _ANSWER = "index.jsonl", "about.json", "answer.json"
_ANSWER_BYTES = 65536
_CACHED = "pictures"
_READ_BYTES = 1024**2
# Rows that are in memory at a time, of at most PICTURE_FILE_BYTES each as a rule.
_ROWS = 16
_SHOWN = 200
# Of the columns and features that hold a picture, where several do.
_PICTURE_NAMES = ("image", "img", "picture", "photo", "image/encoded", "image_raw", "bytes", "jpg")
# Features of records that say nothing about themselves, as TF-Slim and Object Detection write them.
_USUAL_LABELS = ("image/class/text", "label", "image/class/label", "class")
_LABEL_FILES = ("label.labels.txt", "labels.txt")
_LFS = b"version https://git-lfs"
_NAME_COLUMNS = (
    "name them: data.path_column (the pictures) and data.label_column, or --path-column and "
    "--label-column"
)


@dataclass(frozen=True)
class Shards:
    """The files that pictures are packed into, by their paths below the data folder.

    Args:
        kind: "parquet" or "tfrecord".
        files: In order.
    """

    kind: str
    files: tuple[Path, ...]


class _Row(NamedTuple):
    """One row of the index: where a picture lies in its shard, and what became of it."""

    shard: int
    row: int
    suffix: str
    class_name: str | None
    sha256: str
    reason: str


def find_shards(tree: Tree) -> Shards | None:
    """Returns the shards below a data folder, or None where there are none.

    Args:
        tree: The data folder.

    Raises:
        DataError: If one is a link that leads out and is not followed, or there are two kinds.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path in _files(tree):
        for kind, name in _KINDS.items():
            if name.fullmatch(path.name):
                if tree.leads_out(path):
                    raise DataError(
                        f"{tree.shown(path)} in {_shown(tree.root)} is a symbolic link that leads "
                        "out of it",
                        "all files inside the data folder",
                        f"say that links may be followed: {TO_FOLLOW}",
                    )
                found[kind].append(path)
    if len(found) > 1:
        names = listed(tree.shown(paths[0]) for paths in found.values())
        raise DataError(
            f"{_shown(tree.root)} holds {names}",
            "shards of one kind",
            "leave the others out with data.ignore or --ignore",
        )
    return next((Shards(kind, tuple(sorted(files))) for kind, files in found.items()), None)


def _files(tree: Tree) -> Iterator[Path]:
    """Yields what lies below a data folder and is no folder; links to folders are not followed."""
    waiting = [(tree.root, 1)]
    while waiting:
        here, depth = waiting.pop()
        for entry in tree.entries(here):
            if not is_folder(entry):
                yield Path(entry)
            elif not entry.is_symlink() and depth <= limits.DATA_FOLDERS_DEEP:
                waiting.append((Path(entry), depth + 1))


def read_packed(
    tree: Tree, shards: Shards, form: Form, progress: Callable[[int, int], None]
) -> Reading:
    """Returns the pictures of shards, unpacked unless they were before.

    Args:
        tree: The data folder.
        shards: From `find_shards`.
        form: Names columns that are not found by themselves.
        progress: Called with (pictures unpacked, pictures in all) while that lasts; where nothing
            says how many there are, both are the same.

    Raises:
        DataError: If a shard cannot be read, does not say which column is what, or holds no
            labelled picture, or shards are of several data sets.
        SpecError: If the extra that reads them is missing, or they do not fit on the disk.
    """
    if form.split_column is not None:
        raise DataError(
            f"data.split_column {form.split_column!r}, and {_shown(tree.root)} holds "
            f"{_SAID[shards.kind]} files",
            "splits by the names of the files, such as train-00000-of-00002.parquet",
            "leave the column out",
        )
    splits = _splits(tree, shards)
    folder = _place(tree, shards, form)
    if not (folder / _ABOUT).is_file():
        _unpack(tree, shards, form, folder, progress)
    return _reading(tree, shards, splits, folder)


def unpacked(root: Path, form: Form) -> Path:
    """Returns the folder below which the files of a scan's pictures lie.

    Args:
        root: The data folder.
        form: What was said about it.

    Returns:
        The folder that its shards were unpacked into; without any, the data folder itself.
    """
    if not root.is_dir():
        return root
    tree = Tree(root, form.follow_links, frozenset(form.ignore))
    shards = find_shards(tree)
    place = root if shards is None else _place(tree, shards, form)
    return place if place.is_dir() else root


def _shown(path: Path) -> str:
    return printable(str(path))


def _splits(tree: Tree, shards: Shards) -> dict[Path, SplitName | None]:
    """Returns the shards that are read and their splits.

    Without training pictures, or where no name says anything, they are one set.
    """
    relative = {tree.relative(file): file for file in shards.files}
    named = split_names(relative)
    unknown = [name for name in relative if name not in named]
    if split_names(unknown):
        raise DataError(
            f"{_shown(tree.root)} holds several data sets, such as "
            f"{tree.shown(relative[next(iter(named))])} and {tree.shown(relative[unknown[0]])}",
            "the shards of one",
            "give its folder, or leave the others out with data.ignore or --ignore",
        )
    if not named:
        return dict.fromkeys(shards.files)
    alone = "train" not in named.values()
    return {relative[name]: None if alone else split for name, split in named.items()}


def _place(tree: Tree, shards: Shards, form: Form) -> Path:
    """Returns the folder that shards of such content are unpacked into."""
    about = [_VERSION, shards.kind, form.path_column, form.label_column]
    files = [*shards.files, *_beside(shards)]
    content = [(tree.relative(file), _digest(file)) for file in files]
    key = hashlib.sha256(json.dumps([about, content]).encode()).hexdigest()
    return cache_folder() / _CACHED / key[:32]


def _beside(shards: Shards) -> list[Path]:
    """Returns the files beside records that say what is in them."""
    if shards.kind != "tfrecord":
        return []
    found: list[Path] = []
    for folder in sorted({file.parent for file in shards.files}):
        found += [folder / "features.json", *sorted(folder.glob("*labels.txt"))]
    return [path for path in found if path.is_file()]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _unpack(
    tree: Tree,
    shards: Shards,
    form: Form,
    folder: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Unpacks shards into a folder that appears when all of it is there."""
    module, extra = _READERS[shards.kind]
    if importlib.util.find_spec(module) is None:
        raise SpecError(
            f"{tree.shown(shards.files[0])} in {_shown(tree.root)} is a {_SAID[shards.kind]} file, "
            f"and {module} is not installed",
            "the extra that reads it",
            f"install it: pip install 'edgekit[{extra}]'",
        )
    needed = sum(file.stat().st_size for file in shards.files)
    free = free_bytes(folder)
    if free is not None and needed > free:
        raise _no_room(f"{folder}: {needed:,} bytes of pictures, and {free:,} are free")
    asked = {
        "kind": shards.kind,
        "root": str(tree.root),
        "files": [tree.relative(file) for file in shards.files],
        "beside": [tree.relative(file) for file in _beside(shards)],
        "picture": form.path_column,
        "label": form.label_column,
        "most_bytes": limits.PACKED_TIMES_LARGER * needed + limits.PACKED_MORE_BYTES,
    }
    try:
        with scratch_folder(beside=folder.parent) as scratch:
            made = scratch / folder.name
            made.mkdir()
            _run(tree, asked, made, progress)
            replace_folder(made, folder)
    except OSError as error:
        raise _no_room(f"{error.filename or folder}: {error.strerror or error}") from error


def _no_room(received: str) -> SpecError:
    return SpecError(
        printable(received),
        "a folder for unpacked pictures that can be written, and space for them",
        "make room there, or name a cache folder on another disk by XDG_CACHE_HOME",
    )


def _run(
    tree: Tree, asked: Mapping[str, Any], made: Path, progress: Callable[[int, int], None]
) -> None:
    """Lets the process of its own unpack; it says a line whenever it has unpacked some.

    Raises:
        DataError: If it refuses a file, or one ends it.
        SpecError: If there is no room.
    """
    command = child.command(_MODULE, str(made), timeout_seconds=limits.PACKED_SECONDS)
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as said:
        question.write(json.dumps(asked).encode())
        question.seek(0)
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "",
                 "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}  # fmt: skip
        process = start(
            command,
            stdin=question,
            stdout=subprocess.PIPE,
            stderr=said,
            environment={**child.environment(), **quiet},
        )
        try:
            for line in process.stdout or ():
                done, total = (int(word) for word in line.split())
                progress(done, max(done, total))
            code = process.wait()
        finally:
            end(process)
        refusal = _refusal(made / _ANSWER)
        if refusal is not None:
            raise refusal
        if code != 0:
            said.seek(0)
            raise _unexplained(tree, code, said.read()[-_SHOWN:])


def _refusal(path: Path) -> EdgekitError | None:
    """Returns why the process refused a file, or None if it did not say."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        answer = json.loads(stream.read(_ANSWER_BYTES))
    received, expected, remedy = (printable(str(text)) for text in answer["said"])
    return _no_room(received) if answer["room"] else DataError(received, expected, remedy)


def _unexplained(tree: Tree, code: int, said: bytes) -> DataError:
    """Returns the error for a process that ended without a word about its files."""
    name = next((entry.name for entry in signal.Signals if entry.value == -code), None)
    how = f"was ended ({name})" if name else f"ended with code {code}"
    if name == "SIGALRM":
        how = f"made nothing of them in {limits.PACKED_SECONDS:g} s"
    words = printable(said.decode("utf-8", "replace").strip()) if name is None else ""
    return DataError(
        f"{_shown(tree.root)}: what reads its files {how}{f' ({words})' if words else ''}",
        "files that can be read",
        "copy or download them again; if it was ended from outside (SIGKILL), check the memory of "
        "the machine",
    )


def _reading(
    tree: Tree, shards: Shards, splits: Mapping[Path, SplitName | None], folder: Path
) -> Reading:
    """Returns what the index of unpacked shards says."""
    about = json.loads((folder / _ABOUT).read_bytes())
    found: list[Listed] = []
    skipped: list[SkippedFile] = []
    unlabelled: dict[int, list[SkippedFile]] = defaultdict(list)
    labelled: set[int] = set()
    for row in _rows(folder):
        file = shards.files[row.shard]
        if file not in splits:
            continue
        name = f"{tree.relative(file)}/{row.row:07}{row.suffix}"
        if row.reason:
            skipped.append(SkippedFile(path=printable(name), reason=row.reason))
        elif row.class_name is None:
            unlabelled[row.shard].append(
                SkippedFile(path=printable(name), reason="no class", kind="ignored")
            )
        else:
            labelled.add(row.shard)
            found.append(Listed(folder / name, name, row.class_name, splits[file], row.sha256))
    words = [_words(about, shards, folder)]
    without = [shard for shard in unlabelled if shard not in labelled]
    for shard, rows in unlabelled.items():
        if shard in labelled:
            skipped += rows
        else:
            file = shards.files[shard]
            skipped.append(tree.skipped(file, "shard without classes", "ignored"))
    words += _left_out(tree, [shards.files[i] for i in without], "name no classes")
    strange = [file for file in shards.files if file not in splits]
    skipped += [tree.skipped(file, "its name is that of no split", "ignored") for file in strange]
    words += _left_out(tree, strange, "have names of no split")
    words += made_from_train({item.split for item in found})
    classes = tuple(sorted({item.class_name for item in found}))
    return Reading(classes, found, skipped, tuple(words))


def _left_out(tree: Tree, files: Sequence[Path], why: str) -> list[str]:
    names = listed(map(tree.shown, files), 3)
    return [f"left out, as they {why}: {names}"] if files else []


def _rows(folder: Path) -> Iterator[_Row]:
    with (folder / _INDEX).open(encoding="utf-8") as stream:
        for line in stream:
            yield _Row(*json.loads(line))


def _words(about: Mapping[str, str], shards: Shards, folder: Path) -> str:
    count = len(shards.files)
    return (
        f"{count} {_SAID[shards.kind]} file{'s' if count > 1 else ''}: pictures by "
        f"{printable(about['picture'])!r}, classes by {printable(about['label'])!r}, unpacked in "
        f"{_shown(folder)}, which may be deleted"
    )


# ---- The process that unpacks


class _Refused(Exception):  # noqa: N818 - it becomes an error of edgekit's own
    """A file is refused: what was received, what was expected, what to do."""

    def __init__(self, received: str, expected: str, remedy: str) -> None:
        super().__init__(received)
        self.said = (received, expected, remedy)


class _Packed(NamedTuple):
    """One picture as it was packed.

    Args:
        content: The bytes of its file, or None where the row holds none.
        label: Its class, or None where the row names none.
    """

    content: bytes | None
    label: str | None


def main(arguments: list[str]) -> int:
    """Unpacks the shards that stdin names into a folder; returns 0.

    Args:
        arguments: The folder.
    """
    folder = Path(arguments[0])
    asked = json.load(sys.stdin)
    file = ""

    def named(name: str) -> None:
        nonlocal file
        file = name

    try:
        with answer_channel() as channel:
            _unpack_all(asked, folder, named, channel)
    except _Refused as refused:
        _answer(folder, refused.said)
    except MemoryError:
        _answer(folder, _damaged(file, "reading it takes more memory than pictures do"))
    except OSError as error:
        # What reads Parquet says damage as an error of the system that names no file.
        if error.filename is not None or error.errno is not None:
            _answer(folder, (f"{error.filename or folder}: {error.strerror}", "", ""), room=True)
        else:
            _answer(folder, _damaged(file, str(error)))
    except Exception as error:  # noqa: BLE001 - whatever the libraries raise, it is the file's doing
        _answer(folder, _damaged(file, f"{type(error).__name__}: {error}"))
    return 0


def _damaged(file: str, said: str) -> tuple[str, str, str]:
    words = " ".join(said.split())[:_SHOWN]
    return (
        f"{file}: damaged ({words})",
        "a whole file, as datasets or TFDS writes it",
        "copy or download it again, or leave it out with data.ignore or --ignore",
    )


def _answer(folder: Path, said: tuple[str, str, str], room: bool = False) -> None:
    (folder / _ANSWER).write_text(json.dumps({"said": said, "room": room}), encoding="ascii")


def _unpack_all(
    asked: Mapping[str, Any], folder: Path, named: Callable[[str], None], channel: IO[str]
) -> None:
    root, files = Path(asked["root"]), asked["files"]
    reader: _Reader = (_ParquetReader if asked["kind"] == "parquet" else _RecordReader)(asked)
    written, done = 0, 0
    for file in files:
        named(file)
        _refuse_pointer(root / file, file)
        reader.count(root / file)
    with (folder / _INDEX).open("w", encoding="utf-8") as index:
        for number, file in enumerate(files):
            named(file)
            place = folder / file
            place.mkdir(parents=True)
            for row, picture in enumerate(reader.rows(root / file, file)):
                entry = _entry(number, row, picture, place)
                index.write(f"{json.dumps(entry)}\n")
                written += len(picture.content or b"") if entry.suffix else 0
                done += 1
                if written > asked["most_bytes"] or done > limits.PACKED_PICTURES:
                    raise _Refused(
                        f"{file}: {done:,} pictures of {written:,} bytes in what was read so far",
                        f"at most {limits.PACKED_PICTURES:,}, and at most {asked['most_bytes']:,} "
                        "bytes in files of that size",
                        "do not use these files; or unpack them where they were made",
                    )
                if done % _ROWS == 0:
                    child.still_working(limits.PACKED_SECONDS)
                    channel.write(f"{done} {reader.total}\n")
                    channel.flush()
    about = {"picture": reader.picture, "label": reader.label}
    (folder / _ABOUT).write_text(json.dumps(about), encoding="ascii")


def _entry(shard: int, row: int, picture: _Packed, place: Path) -> _Row:
    """Writes a picture, and returns its row of the index."""
    content = picture.content
    if not content:
        return _Row(shard, row, "", None, "", "no picture in this row")
    if len(content) > limits.PICTURE_FILE_BYTES:
        reason = f"{len(content)} bytes > {limits.PICTURE_FILE_BYTES}"
        return _Row(shard, row, "", None, "", reason)
    suffix = _suffix(content)
    (place / f"{row:07}{suffix}").write_bytes(content)
    return _Row(shard, row, suffix, picture.label, hashlib.sha256(content).hexdigest(), "")


def _suffix(content: bytes) -> str:
    """Returns the suffix that a picture's bytes ask for; what they really are, decoding tells."""
    return f".{format_of(content[:HEAD_BYTES]) or 'unknown'}".lower()


def _refuse_pointer(path: Path, file: str) -> None:
    with path.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise _Refused(
                f"{file} is a pointer of Git LFS", "the file itself", "git lfs pull replaces it"
            )


class _Reader:
    """Reads shards of one kind.

    Args:
        asked: What stdin said.
    """

    picture: str
    label: str
    total = 0

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.picture = asked["picture"] or ""
        self.label = asked["label"] or ""

    def count(self, path: Path) -> None:
        """Adds the pictures of a shard to `total`, where it tells how many they are."""

    def rows(self, path: Path, file: str) -> Iterator[_Packed]:
        """Yields the pictures of a shard in order."""
        raise NotImplementedError


class _ParquetReader(_Reader):
    """Reads Parquet whose rows are pictures: `image` with `bytes`, and a class."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        super().__init__(asked)
        pa.set_cpu_count(1)
        self._open = parquet.ParquetFile
        self._types = pa.types

    def count(self, path: Path) -> None:
        with self._open(path) as shard:
            self.total += shard.metadata.num_rows

    def rows(self, path: Path, file: str) -> Iterator[_Packed]:
        with self._open(path, pre_buffer=False, buffer_size=_READ_BYTES) as shard:
            schema = shard.schema_arrow
            features = _features(schema.metadata)
            self.picture = self.picture or self._picture(schema, features, file)
            self.label = self.label or self._label(schema, features, file)
            for name in (self.picture, self.label):
                _refuse_missing(name, schema.names, file)
            names = features.get(self.label, {}).get("names")
            for batch in shard.iter_batches(
                _ROWS, columns=[self.picture, self.label], use_threads=False
            ):
                for cell, label in zip(
                    batch.column(self.picture), batch.column(self.label), strict=True
                ):
                    value = cell.as_py()
                    content = value.get("bytes") if isinstance(value, dict) else value
                    yield _Packed(_bytes(content), _class(label.as_py(), names, file))

    def _picture(self, schema: Any, features: Mapping[str, Any], file: str) -> str:
        said = [name for name, about in features.items() if about.get("_type") == "Image"]
        found = said or [field.name for field in schema if self._holds_bytes(field.type)]
        return _one(found, _PICTURE_NAMES, schema.names, "pictures", file)

    def _holds_bytes(self, kind: Any) -> bool:
        types = self._types
        if types.is_struct(kind):
            inner = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
            return "bytes" in inner and self._holds_bytes(inner["bytes"])
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def _label(self, schema: Any, features: Mapping[str, Any], file: str) -> str:
        said = [name for name, about in features.items() if about.get("_type") == "ClassLabel"]
        others = [field.name for field in schema if field.name != self.picture]
        usual = [n for n in others if plain(n).replace(" ", "_") in LABEL_NAMES]
        return _one(said or usual, LABEL_NAMES, schema.names, "classes", file)


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """Returns what `datasets` says of the columns."""
    try:
        found = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: about for name, about in found.items() if isinstance(about, dict)}


class _RecordReader(_Reader):
    """Reads TFRecords of `tf.train.Example`: a feature with a picture's bytes, and a class."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        import tensorflow as tf

        super().__init__(asked)
        self._tf = tf
        paths = [Path(asked["root"]) / name for name in asked["beside"]]
        self._beside: dict[str, Path] = {path.name: path for path in paths}
        self._chosen = False
        self._names: Sequence[str] | None = None
        about = self._beside.get("features.json")
        if about is not None:
            self._said(json.loads(_text(about)))

    def _said(self, about: Any) -> None:
        """Takes the names of the features from what TFDS says of them."""
        features = about["featuresDict"]["features"]
        pictures = [name for name, said in features.items() if "image" in said]
        labels = [name for name, said in features.items() if "classLabel" in said]
        file = "features.json"
        self.picture = self.picture or _one(
            pictures, _PICTURE_NAMES, list(features), "pictures", file
        )
        self.label = self.label or _one(labels, LABEL_NAMES, list(features), "classes", file)

    def rows(self, path: Path, file: str) -> Iterator[_Packed]:
        for record in self._tf.data.TFRecordDataset(str(path)):
            found = self._tf.train.Example.FromString(record.numpy()).features.feature
            self._choose(list(found), file)
            yield _Packed(
                _bytes(_first(found, self.picture)),
                _class(_first(found, self.label), self._names, file),
            )

    def _choose(self, names: list[str], file: str) -> None:
        """Makes sure, at the first record, which features are meant and what the numbers mean."""
        if self._chosen:
            return
        self._chosen = True
        picture = [name for name in _PICTURE_NAMES if name in names]
        label = [name for name in _USUAL_LABELS if name in names]
        self.picture = self.picture or _one(picture[:1], (), names, "pictures", file)
        self.label = self.label or _one(label[:1], (), names, "classes", file)
        for name in (self.picture, self.label):
            _refuse_missing(name, names, file)
        for name in (f"{self.label}.labels.txt", *_LABEL_FILES):
            if name in self._beside:
                self._names = _text(self._beside[name]).splitlines()
                return


def _text(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(limits.TEXT_FILE_BYTES).decode()


def _first(features: Any, name: str) -> Any:
    """Returns the one value of a feature of a record; None without any."""
    if name not in features:
        return None
    kind = features[name].WhichOneof("kind")
    values = list(getattr(features[name], kind).value) if kind else []
    return values[0] if len(values) == 1 else None


def _bytes(value: Any) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _class(value: Any, names: Sequence[str] | None, file: str) -> str | None:
    """Returns the class that a cell means; None where it means none."""
    if isinstance(value, list | dict):
        raise _Refused(
            f"{file}: {str(value)[:_SHOWN]} as the class of a picture", "one class", _NAME_COLUMNS
        )
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, int) and not isinstance(value, bool) and names is not None:
        return str(names[value]) if 0 <= value < len(names) else None
    # Sets without labels have -1 for all of them.
    return None if value in (None, "", -1) else str(value)


def _one(
    found: Sequence[str], usual: Sequence[str], every: Iterable[str], what: str, file: str
) -> str:
    """Returns the one column that is meant, by its usual name where there are several."""
    if len(found) > 1:
        known = {plain(name): name for name in found}
        found = [known[name] for name in usual if name in known][:1] or found
    if len(found) == 1:
        return found[0]
    received = f"{file}: {'none' if not found else listed(found)} of the columns "
    raise _Refused(f"{received}{listed(every)} may be the {what}", "one", _NAME_COLUMNS)


def _refuse_missing(name: str, every: Iterable[str], file: str) -> None:
    names = list(every)
    if name not in names:
        raise _Refused(f"{file} has no column {name!r}", f"one of {listed(names)}", "correct it")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
