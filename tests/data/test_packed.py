"""Pictures in shards: Parquet as `datasets` writes it, TFRecords as TFDS does.

The files are laid out as those of datasets 5.2.0 and tensorflow-datasets 4.9.10 were seen to be.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from tiny_models import mean_tflite

from edgekit import limits
from edgekit.cli import execute
from edgekit.data import packed
from edgekit.data.decode import decode
from edgekit.data.files import Form
from edgekit.data.scan import Scan, scan
from edgekit.errors import DataError, SpecError
from edgekit.recipe import DataSpec
from edgekit.records import Preprocess

NAMES = ("dog", "cat", "ant")  # not in the order of the alphabet
SPLITS = {"train": 4, "validation": 2, "test": 2}
Row = tuple[bytes | None, Any]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


def picture(seed: int, kind: str = "JPEG") -> bytes:
    """Returns a picture of its own for every seed."""
    values = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).resize((24, 24)).save(stream, kind)
    return stream.getvalue()


def rows_of(split: str) -> list[Row]:
    """Returns the pictures of a split, the classes taking turns; every format but WebP is in it."""
    first = 100 * list(SPLITS).index(split)
    kinds = ("JPEG", "PNG", "BMP")
    return [(picture(first + i, kinds[i % 3]), i % 3) for i in range(3 * SPLITS[split])]


def write_parquet(
    path: Path,
    rows: list[Row],
    names: tuple[str, ...] | None = NAMES,
    label: str = "label",
    kind: pa.DataType | None = None,
) -> None:
    """Writes a shard as `datasets` does: row groups, a schema with the features of the columns."""
    pictures = pa.array(
        [{"bytes": content, "path": f"{i}.jpg"} for i, (content, _) in enumerate(rows)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": pictures, label: pa.array([value for _, value in rows], kind)})
    if names is not None:
        features = {"image": {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=5)


def write_set(root: Path) -> Path:
    """Writes train in two shards, and one each of the other splits."""
    rows = rows_of("train")
    write_parquet(root / "data/train-00000-of-00002.parquet", rows[:7])
    write_parquet(root / "data/train-00001-of-00002.parquet", rows[7:])
    for split in ("validation", "test"):
        write_parquet(root / f"data/{split}-00000-of-00001.parquet", rows_of(split))
    (root / "README.md").write_text("---\ndataset_info: ...\n---\n")
    return root


def write_records(root: Path, about: bool = True) -> Path:
    """Writes records as TFDS does, with the files that say what is in them."""
    import tensorflow as tf

    root.mkdir(parents=True)
    for split in SPLITS:
        rows, shards = rows_of(split), 2 if split == "train" else 1
        for number in range(shards):
            name = f"pets-{split}.tfrecord-{number:05}-of-{shards:05}"
            with tf.io.TFRecordWriter(str(root / name)) as writer:
                for content, label in rows[number::shards]:
                    feature = {
                        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
                        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                    }
                    features = tf.train.Features(feature=feature)
                    writer.write(tf.train.Example(features=features).SerializeToString())
    (root / "label.labels.txt").write_text("".join(f"{name}\n" for name in NAMES))
    if about:
        image = {"image": {"dtype": "uint8"}, "pythonClassName": "...image_feature.Image"}
        label = {"classLabel": {"numClasses": "3"}, "pythonClassName": "...ClassLabel"}
        features = {"featuresDict": {"features": {"image": image, "label": label}}}
        (root / "features.json").write_text(json.dumps(features))
        (root / "dataset_info.json").write_text(json.dumps({"name": "pets"}))
    return root


def write_folders(root: Path) -> Path:
    """Writes the same pictures into folders."""
    for split in SPLITS:
        for number, (content, label) in enumerate(rows_of(split)):
            path = root / split / NAMES[label] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content or b"")
    return root


def known(found: Scan) -> Counter[tuple[str, str, str]]:
    return Counter(
        (source.sha256, found.class_names[source.label], str(source.split))
        for source in found.sources
    )


# ---- what is read


def test_parquet_is_read_as_the_same_pictures_in_folders(tmp_path: Path) -> None:
    found = scan(write_set(tmp_path / "packed"))
    wanted = scan(write_folders(tmp_path / "folders"))
    assert found.class_names == wanted.class_names == tuple(sorted(NAMES))
    assert known(found) == known(wanted)
    assert found.skipped == ()
    assert "4 Parquet files: pictures by 'image', classes by 'label'" in found.words[0]
    names = [source.relative for source in found.sources]
    assert names == sorted(names)
    assert "data/train-00001-of-00002.parquet/0000000.png" in names
    assert {source.path.suffix for source in found.sources} == {".jpeg", ".png", ".bmp"}


@pytest.mark.parametrize("about", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_records_are_read_as_the_same_pictures_in_folders(
    tmp_path: Path, about: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "records/pets/1.0.0", about)
    asked = ["init", str(tmp_path / "records"), "--out", str(tmp_path / "recipe.toml"), "--json"]
    assert execute(asked) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["classes"] == dict.fromkeys(sorted(NAMES), SPLITS)
    found = scan(tmp_path / "records")
    wanted = scan(write_folders(tmp_path / "folders"))
    assert found.class_names == wanted.class_names
    assert known(found) == known(wanted)
    assert "4 TFRecord files" in found.words[0]


def test_shards_are_unpacked_once_and_anew_where_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    root = write_set(tmp_path / "packed")
    first = scan(root)
    with monkeypatch.context() as without:
        without.setattr(packed, "start", None)  # no process could be started
        assert scan(root) == first
        assert packed.unpacked(root, Form()) == first.sources[0].path.parents[2]
    assert all((packed.unpacked(root, Form()) / s.relative).is_file() for s in first.sources)
    write_parquet(root / "data/test-00000-of-00001.parquet", rows_of("test")[::-1])
    second = scan(root)
    assert known(second) == known(first)
    assert second.digest != first.digest
    assert len(list((cache / "edgekit/pictures").iterdir())) == 2


def test_a_picture_that_was_exchanged_after_unpacking_is_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path / "packed")
    found = scan(root)
    path, other = found.sources[0].path, found.sources[4].path
    kept = path.read_bytes()
    path.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match="is not what edgekit unpacked there") as caught:
        scan(root)
    assert "delete the folder" in caught.value.remedy
    path.write_bytes(kept)
    assert scan(root) == found
    shutil.rmtree(packed.unpacked(root, Form()))
    assert scan(root) == found


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("default/train/0000.parquet", "default/test/0000.parquet"), {"train", "test"}),
        (("train.parquet", "val.parquet"), {"train", "validation"}),
        (("train-00000-of-00001.parquet", "extra-00000-of-00001.parquet"), {"train"}),
        (("test-00000-of-00002.parquet", "test-00001-of-00002.parquet"), {None}),
        (("0000.parquet", "0001.parquet"), {None}),
    ],
)
def test_splits_are_told_by_the_names_of_shards(
    tmp_path: Path, names: tuple[str, str], splits: set[str | None]
) -> None:
    for name, split in zip(names, ("train", "test"), strict=True):
        write_parquet(tmp_path / name, rows_of(split))
    found = scan(tmp_path)
    assert {source.split for source in found.sources} == splits
    extra = [item.path for item in found.skipped]
    assert extra == [name for name in names if name.startswith("extra")]


def test_classes_as_text_or_numbers_need_no_words_of_a_library(tmp_path: Path) -> None:
    for number, values in enumerate((["ant", "bee"], [0, 1])):
        rows = [(picture(i), values[i % 2]) for i in range(4)]
        write_parquet(tmp_path / str(number) / "a.parquet", rows, None, "species")
        found = scan(tmp_path / str(number))
        assert found.class_names == tuple(map(str, values))
        assert "classes by 'species'" in found.words[0]


def test_rows_without_a_picture_or_a_class_are_listed(tmp_path: Path) -> None:
    rows = rows_of("train")
    rows[2], rows[4], rows[5] = (None, 1), (rows[4][0], -1), (b"a picture it is not", 2)
    write_parquet(tmp_path / "train.parquet", rows)
    write_parquet(tmp_path / "test.parquet", [(picture(7), -1), (picture(8), -1)])
    found = scan(tmp_path)
    assert len(found.sources) == len(rows) - 2
    assert sorted((item.path, item.reason, item.kind) for item in found.skipped) == [
        ("test.parquet", "shard without classes", "ignored"),
        ("train.parquet/0000002", "no picture in this row", "unusable"),
        ("train.parquet/0000004.png", "no class", "ignored"),
    ]
    assert "left out, as they name no classes: test.parquet" in found.words
    # What is no picture is found where all are decoded, and counts as a damaged file.
    contract = Preprocess(height_px=16, width_px=16, resize="bilinear", crop="none")
    with pytest.raises(DataError, match=r"train\.parquet/0000005\.unknown: not a JPEG"):
        decode(found, contract, DataSpec(path=tmp_path), tmp_path, seed=1,
               progress=lambda *_: None)  # fmt: skip


# ---- what is refused


def test_columns_that_do_not_tell_are_asked_for(tmp_path: Path) -> None:
    rows = rows_of("train")
    table = pa.table({"img": [content for content, _ in rows], "shade": ["a", "b"] * 6,
                      "thing": ["c", "d"] * 6})  # fmt: skip
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="none of the columns img, shade and thing") as caught:
        scan(tmp_path)
    assert "--label-column" in caught.value.remedy
    assert scan(tmp_path, form=Form(label_column="thing")).class_names == ("c", "d")
    with pytest.raises(DataError, match="has no column 'thin'"):
        scan(tmp_path, form=Form(label_column="thin"))
    with pytest.raises(DataError, match="splits by the names of the files"):
        scan(tmp_path, form=Form(split_column="shade"))


def test_several_classes_of_a_picture_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [(picture(i), [0, 1]) for i in range(3)], None)
    with pytest.raises(DataError, match=r"\[0, 1\] as the class of a picture"):
        scan(tmp_path)


def test_several_sets_are_refused_until_one_is_named(tmp_path: Path) -> None:
    for name in ("small", "large"):
        write_parquet(tmp_path / name / "train.parquet", rows_of("train"))
        write_parquet(tmp_path / name / "test.parquet", rows_of("test"))
    with pytest.raises(DataError, match="holds several data sets, such as"):
        scan(tmp_path)
    assert len(scan(tmp_path / "small").sources) == 18
    assert scan(tmp_path, form=Form(ignore=("large",))).class_names == tuple(sorted(NAMES))


def test_a_link_out_of_the_folder_is_followed_where_that_is_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "blobs/0a1b", rows_of("train"))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/train.parquet").symlink_to(tmp_path / "blobs/0a1b")
    with pytest.raises(DataError, match=r"train\.parquet .*leads out of it") as caught:
        scan(tmp_path / "snapshot")
    assert "--follow-links" in caught.value.remedy
    assert len(scan(tmp_path / "snapshot", form=Form(follow_links=True)).sources) == 12


@pytest.mark.parametrize("how", ["truncated", "altered", "no parquet", "pointer", "empty"])
def test_damaged_parquet_is_named(tmp_path: Path, how: str, cache: Path) -> None:
    root = write_set(tmp_path / "packed")
    path = root / "data/train-00001-of-00002.parquet"
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[:-20]
    elif how == "altered":
        content[-60:-30] = bytes(range(30))
    elif how == "no parquet":
        content = bytearray(b"PAR1 and nothing behind it")
    elif how == "pointer":
        content = bytearray(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    path.write_bytes(b"" if how == "empty" else content)
    wanted = "pointer of Git LFS" if how == "pointer" else r"damaged \("
    with pytest.raises(DataError, match=rf"train-00001-of-00002\.parquet.*{wanted}"):
        scan(root)
    assert not list((cache / "edgekit/pictures").glob("[!.]*"))


@pytest.mark.slow
def test_damaged_records_are_named(tmp_path: Path) -> None:
    root = write_records(tmp_path / "records")
    path = root / "pets-train.tfrecord-00001-of-00002"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"pets-train\.tfrecord-00001-of-00002: damaged \(DataLoss"):
        scan(root)


def test_a_file_that_ends_what_reads_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(packed.child, "command", lambda *_, **__: [sys.executable, "-c", crash])
    with pytest.raises(DataError, match=r"what reads its files was ended \(SIGSEGV\)"):
        scan(write_set(tmp_path / "packed"))


def test_one_picture_repeated_beyond_all_use_fills_no_disk(tmp_path: Path) -> None:
    content = picture(1, "BMP") + bytes(4 * 1024**2)
    path = tmp_path / "train.parquet"
    write_parquet(path, [(content, i % 2) for i in range(64)])  # packed once, by a dictionary
    most = limits.PACKED_TIMES_LARGER * path.stat().st_size + limits.PACKED_MORE_BYTES
    assert most < 64 * len(content)
    with pytest.raises(DataError, match=r"pictures of .* bytes in what was read so far"):
        scan(tmp_path)


def test_what_reads_shards_is_asked_for_by_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path / "packed")
    monkeypatch.setattr(packed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match="pyarrow is not installed"):
        scan(root)
    assert execute(["init", str(root), "--out", str(tmp_path / "recipe.toml")]) == 2
    assert "pip install 'edgekit[parquet]'" in capsys.readouterr().err
    (tmp_path / "records").mkdir()
    (tmp_path / "records/a-train.tfrecord-00000-of-00001").write_bytes(b"")
    with pytest.raises(SpecError, match="tensorflow is not installed") as caught:
        scan(tmp_path / "records")
    assert "edgekit[train]" in caught.value.remedy


def test_a_cache_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SpecError, match="file") as caught:
        scan(write_set(tmp_path / "packed"))
    assert "XDG_CACHE_HOME" in caught.value.remedy


# ---- the command line


def edgekit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ)


def test_run_decodes_parquet_and_says_where_it_lies(tmp_path: Path, cache: Path) -> None:
    root, recipe = write_set(tmp_path / "packed"), tmp_path / "recipe.toml"
    looked = edgekit("init", str(root), "--out", str(recipe), "--json")
    assert looked.returncode == 0, looked.stderr
    shown = json.loads(looked.stdout)
    assert shown["classes"]["cat"] == {"train": 4, "validation": 2, "test": 2}
    assert str(cache / "edgekit/pictures") in shown["words"][0]
    recipe.write_text(f"{recipe.read_text()}\n".replace("min_images_per_class = 10",
                                                        "min_images_per_class = 4"))  # fmt: skip
    run = edgekit("run", str(recipe), "--weights", "none", "--until", "data", "--out",
                  str(tmp_path / "out"))  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "3 classes, 12 train, 6 validation, 6 test" in run.stderr


@pytest.mark.slow
def test_validate_judges_a_model_on_the_test_shard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, rows = ("red", "green", "blue"), list[Row]()
    for i in range(18):
        stream = io.BytesIO()
        colour = [40 + i, 30 + i, 20 + i]
        colour[i % 3] = 200 + i
        Image.new("RGB", (20, 20), tuple(colour)).save(stream, "PNG")
        rows.append((stream.getvalue(), i % 3))
    write_parquet(tmp_path / "packed/train.parquet", rows[:6], names)
    write_parquet(tmp_path / "packed/test.parquet", rows[6:], names)
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    model = mean_tflite(tmp_path / "model.tflite")
    asked = ["validate", str(model), "--data", str(tmp_path / "packed")]
    asked += ["--labels", str(tmp_path / "labels.txt"), "--json"]
    execute(asked)
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"]["images"], found["accuracy"]["top1"]) == (12, 1.0)
