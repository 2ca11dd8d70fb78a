"""Damaged, wrong and hostile weight files end in a sentence; good ones give their arrays."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import crafted_weights
import numpy as np
import pytest
from crafted_weights import ALPHA, CRAFTED, KERNEL, WHOLE, Builder, entry, flipped
from PIL import Image

from edgekit.cli import execute
from edgekit.demo.recipe import WEIGHTS
from edgekit.errors import EdgekitError, IntegrityError
from edgekit.limits import WEIGHT_FILE_BYTES
from edgekit.network.pretrained import check_published
from edgekit.network.starting_weights import starting_weights

pytest.importorskip("h5py")

NAME = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{}_{}_no_top.h5"
FLIPS, FEW_FLIPS = 40, 4
# Exit code and words for each crafted file.
EXPECTED = {
    "missing": (2, "there is no such file"),
    "name too long": (2, "File name too long"),
    "folder": (2, "this is a folder"),
    "fifo": (2, "this is no regular file"),
    "device": (2, "this is no regular file"),
    "link to itself": (2, "Too many levels of symbolic links"),
    "too large": (6, f"larger than {WEIGHT_FILE_BYTES} bytes"),
    "empty npz": (6, "its name ends in .npz, but its content is empty"),
    "text as h5": (6, "its name ends in .h5, but its content is neither HDF5 nor a zip archive"),
    "pointer of Git LFS": (6, "its content is a pointer of Git LFS"),
    "npy as npz": (6, "its name ends in .npz, but its content is a single NumPy array"),
    "npy as h5": (6, "its name ends in .h5, but its content is a single NumPy array"),
    "h5 as npz": (6, "its name ends in .npz, but its content is HDF5"),
    "npz as h5": (6, "its name ends in .h5, but its content is a zip archive"),
    "npz cut short": (6, "damaged (BadZipFile: "),
    "npz with a wrong checksum": (6, "damaged (BadZipFile: Bad CRC-32"),
    "npz bomb": (6, f"{KERNEL} holds more data than its shape says"),
    "npz of a huge shape": (2, f"{KERNEL} has shape (1048576, 1048576), the network needs"),
    "npz shorter than its shape": (6, f"{KERNEL} holds less data than its shape says"),
    "npz with a header of gigabytes": (6, "damaged (ValueError: EOF: reading array header"),
    "npz with a pickle": (6, f"{KERNEL} holds object, not numbers"),
    "npz of text": (6, "holds <U1, not numbers"),
    "npz of complex numbers": (6, "holds complex64, not numbers"),
    "npz with an array twice": (6, f"'{KERNEL}' is in the archive twice"),
    "npz encrypted": (6, "is encrypted"),
    "npz compressed strangely": (6, f"{KERNEL} is compressed as NumPy never does"),
    "npz without an array": (2, f"no array named {KERNEL}"),
    "npz of another width": (2, "MobileNetV2(alpha=0.35, include_top=False)"),
    "npz with NaN": (2, "moving_variance holds NaN or infinity"),
    "npz with a negative variance": (2, "moving_variance holds a negative number"),
    "npz too large for float32": (2, "moving_variance holds NaN or infinity"),
    "h5 cut short": (6, "truncated file"),
    # Another HDF5 than 1.14.6 may refuse the file instead.
    "h5 that crashes HDF5": (6, "what reads it crashed (SIGSEGV)"),
    "h5 with an external link": (6, f"'{KERNEL}:0' is a link to another place or file"),
    "h5 with an external layer": (6, "'block_5_expand' is a link to another place or file"),
    "h5 with external storage": (6, f"the data of {KERNEL} lies in another file"),
    "h5 with virtual data": (6, f"the data of {KERNEL} lies in another file"),
    "h5 with a cycle of soft links": (6, f"'{KERNEL}:0' is a link to another place or file"),
    "h5 with a soft link": (6, f"'{KERNEL}:0' is a link to another place or file"),
    "h5 with a layer twice": (6, "a layer is listed twice"),
    "h5 with too many names": (6, "layer_names has shape (4097,), not a list of names"),
    "h5 of a huge shape": (2, f"{KERNEL} has shape (1048576, 1048576), the network needs"),
    "h5 without a shape": (2, f"{KERNEL} has shape None, the network needs"),
    "h5 of text": (6, f"{KERNEL} holds object, not numbers"),
    "h5 of references": (6, f"{KERNEL} holds object, not numbers"),
    "h5 in huge chunks": (6, f"{KERNEL} is stored in chunks of 1073741824 bytes"),
    "h5 with a foreign filter": (6, f"{KERNEL} is stored with a filter that Keras does not use"),
    "h5 without an array": (2, f"no '{KERNEL}:0' in it"),
    "h5 with a group for an array": (2, f"{KERNEL} is no array"),
    "h5 of another width": (2, "MobileNetV2(alpha=0.35, include_top=False)"),
    "h5 of another width with a top": (2, "105 layers with weights ('my_Conv1', "),
    "h5 of a nested model with an array twice": (2, f"{KERNEL} twice in it"),
    "keras bomb": (6, f"model.weights.h5 in it is larger than {WEIGHT_FILE_BYTES} bytes"),
    "keras of nothing": (6, "model.weights.h5 in it is not HDF5"),
    "PyTorch": (2, "a file of PyTorch"),
    "PyTorch before 1.6": (2, "a file of PyTorch"),
    "safetensors": (2, "a file of PyTorch"),
    "h5 with infinity": (2, "moving_variance holds NaN or infinity"),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(1)
    for label in ("a", "b"):
        (root / label).mkdir()
        for number in range(20):
            picture = Image.fromarray(noise.integers(0, 255, (32, 32, 3), np.uint8))
            picture.save(root / label / f"{number}.png")
    return root


def arguments(pictures: Path, weights: Path, out: Path) -> list[str]:
    return [
        "run", "--data", str(pictures), "--weights", str(weights), "--alpha", str(ALPHA),
        "--input-size", "32", "--until", "data", "--out", str(out),
    ]  # fmt: skip


def test_every_crafted_file_has_its_sentence() -> None:
    assert [name for name, _ in CRAFTED] == list(EXPECTED)


@pytest.mark.parametrize(("name", "build"), CRAFTED, ids=[name for name, _ in CRAFTED])
def test_it_is_refused_before_a_picture_is_decoded(
    name: str, build: Builder, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    folder = tmp_path / "weights"
    folder.mkdir()
    code, words = EXPECTED[name]
    assert execute(arguments(pictures, build(folder), out)) == code
    said = capsys.readouterr().err
    assert words in " ".join(said.split())
    assert said.count("expected:") == said.count("to do:") == 1
    assert not (out / ".store" / "data").exists()


@pytest.mark.parametrize("name", ["h5 that crashes HDF5", "npz bomb", "fifo"])
def test_it_is_refused_by_the_program(name: str, pictures: Path, tmp_path: Path) -> None:
    path = dict(CRAFTED)[name](tmp_path)
    command = [sys.executable, "-m", "edgekit", *arguments(pictures, path, tmp_path / "out")]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == EXPECTED[name][0]
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("build", [crafted_weights.whole_h5, crafted_weights.whole_npz])
def test_the_twin_a_whole_file_is_accepted(build: Builder, pictures: Path, tmp_path: Path) -> None:
    assert execute(arguments(pictures, build(tmp_path), tmp_path / "out")) == 0
    assert (tmp_path / "out" / ".store" / "data").exists()


@pytest.mark.parametrize("build", [build for _, build in WHOLE], ids=[name for name, _ in WHOLE])
def test_a_good_file_gives_its_arrays(build: Builder, tmp_path: Path) -> None:
    path = build(tmp_path)
    read = starting_weights(str(path), ALPHA, (32, 32))
    assert read is not None
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read.note is None
    expected = crafted_weights.arrays()
    assert read.arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert read.arrays[name].dtype == np.float32
        assert read.arrays[name].tobytes() == array.tobytes(), name


def test_the_weights_of_the_demo_are_read_and_widened() -> None:
    read = starting_weights(str(WEIGHTS), ALPHA, (96, 96))
    assert read is not None
    with np.load(WEIGHTS, allow_pickle=False) as stored:
        assert {stored[name].dtype for name in stored.files} == {np.dtype(np.float16)}
        for name in stored.files:
            assert np.array_equal(read.arrays[name], stored[name].astype(np.float32)), name


def test_none_needs_no_file() -> None:
    assert starting_weights("none", 1.0, (160, 160)) is None


def survives(path: Path, places: Sequence[int], seed: int) -> str:
    """Flips a bit at one of the places; returns what became of the file: no other exception."""
    content, chance = path.read_bytes(), random.Random(seed)
    flipped(path, places[chance.randrange(len(places))], 1 << chance.randrange(8))
    try:
        read = starting_weights(str(path), ALPHA, (32, 32))
    except EdgekitError as error:
        return {2: "refused", 6: "refused"}[error.exit_code]
    finally:
        path.write_bytes(content)
    assert read is not None
    assert read.sha256 != hashlib.sha256(content).hexdigest()
    return "read"


def structure(path: Path) -> list[int]:
    """Returns the places of an HDF5 file at which no array lies."""
    import h5py

    free = np.ones(path.stat().st_size, np.bool_)

    def take(_: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            start = found.id.get_offset()
            free[start : start + found.nbytes] = False

    with h5py.File(path) as file:
        file.visititems(take)
    return np.flatnonzero(free).tolist()


@pytest.mark.parametrize("build", [crafted_weights.whole_h5, crafted_weights.whole_npz])
def test_a_flipped_bit_is_refused_or_read(build: Builder, tmp_path: Path) -> None:
    path = build(tmp_path)
    for seed in range(FEW_FLIPS):
        survives(path, range(path.stat().st_size), seed)


@pytest.mark.slow
def test_flips_in_an_archive_are_found(tmp_path: Path) -> None:
    path = crafted_weights.whole_npz(tmp_path)
    became = {survives(path, range(path.stat().st_size), seed) for seed in range(FLIPS)}
    assert became == {"refused"}  # its data has checksums


@pytest.mark.slow
def test_flips_in_the_structure_of_hdf5_are_refused_or_harmless(tmp_path: Path) -> None:
    path = crafted_weights.whole_h5(tmp_path)
    became = {survives(path, structure(path), seed) for seed in range(FLIPS)}
    assert became == {"refused", "read"}  # much of it is not in use


def test_reading_that_does_not_end_is_ended(tmp_path: Path) -> None:
    path = str(crafted_weights.whole_npz(tmp_path))
    with pytest.raises(IntegrityError, match=r"did not end within 0\.01 s"):
        starting_weights(path, ALPHA, (32, 32), timeout_seconds=0.01)


def test_reading_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    size_bytes = 256 * 1024**2
    content = b"\x93NUMPY\x02\x00" + size_bytes.to_bytes(4, "little") + bytes(size_bytes)
    path = entry(KERNEL, content)(tmp_path)
    assert path.stat().st_size < size_bytes / 50
    with pytest.raises(IntegrityError, match="takes more memory than a weight file does"):
        starting_weights(str(path), ALPHA, (32, 32), memory_limit_bytes=448 * 1024**2)
    # The twin: with the usual limit this much can be held, and is found to be no header.
    with pytest.raises(IntegrityError, match="damaged"):
        starting_weights(str(path), ALPHA, (32, 32))


def test_a_published_file_that_is_another_is_refused(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / NAME.format(ALPHA, 224)
    crafted_weights.whole_h5(tmp_path).rename(path)
    options = arguments(pictures, path, tmp_path / "out")
    options[options.index("--weights") + 1] = "imagenet"
    assert execute(options) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert hashlib.sha256(path.read_bytes()).hexdigest() in said
    assert "df1c3db1d0d9193719c4c70f707c56f7021f999f825bdc57454c275cf6def19f" in said
    # The twins: the same file by its path, and the digest of the published one.
    assert execute(arguments(pictures, path, tmp_path / "out")) == 0
    published = "df1c3db1d0d9193719c4c70f707c56f7021f999f825bdc57454c275cf6def19f"
    assert check_published(path, published) is None


def test_a_published_file_whose_digest_is_not_known_is_used_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert starting_weights("imagenet", ALPHA, (96, 96), download=False) is None
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / NAME.format(ALPHA, 96)
    crafted_weights.whole_h5(tmp_path).rename(path)
    read = starting_weights("imagenet", ALPHA, (96, 96), download=False)
    assert read is not None
    assert read.note is not None
    assert path.name in read.note
    assert read.sha256 in read.note


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = crafted_weights.whole_npz(tmp_path)
    path.chmod(0)
    with pytest.raises(EdgekitError, match="Permission denied") as caught:
        starting_weights(str(path), ALPHA, (32, 32))
    assert caught.value.exit_code == 2
