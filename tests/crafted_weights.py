"""Weight files that try something: `CRAFTED` has a builder for each, `WHOLE` for good ones.

A builder writes into an empty folder and returns the path to give as `--weights`. All are of
MobileNetV2 with alpha `ALPHA`, and of the same arrays. Nothing here imports TensorFlow.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.limits import WEIGHT_FILE_BYTES, WEIGHT_NAMES
from edgekit.network.graph import backbone_shapes

h5py: Any
try:
    import h5py
except ImportError:  # it comes with the training packages
    h5py = None

Builder = Callable[[Path], Path]
Arrays = dict[str, npt.NDArray[Any]]

ALPHA = 0.35
# A kernel and a vector that the crafted files do something to.
KERNEL, VECTOR = "block_5_expand/kernel", "block_5_depthwise_BN/moving_variance"
GROUP = KERNEL.split("/")[0]
(CHANNELS,) = backbone_shapes(ALPHA)[VECTOR]
SECRET = b"bytes of another file " * 4096
BOMB_BYTES = 64 * 1024**2


def arrays(alpha: float = ALPHA) -> Arrays:
    """Returns weights of the backbone that are random but plausible."""
    random = np.random.default_rng(6)
    return {
        name: random.uniform(0.02, 0.2, shape).astype(np.float32)
        for name, shape in backbone_shapes(alpha).items()
    }


def write_npz(path: Path, values: Arrays) -> Path:
    np.savez(path, allow_pickle=False, **values)
    return path


def write_h5(path: Path, values: Arrays) -> Path:
    """Writes the file that Keras's `save_weights` writes, with a layer that has no weights."""
    with h5py.File(path, "w") as file:
        fill(file, values)
    return path


def fill(root: Any, values: Arrays) -> None:
    layers = {name: list(keys) for name, keys in groupby(values, lambda key: key.split("/")[0])}
    root.attrs["layer_names"] = ["input_1", *layers]
    root.create_group("input_1").attrs["weight_names"] = []
    for layer, keys in layers.items():
        group = root.create_group(layer)
        group.attrs["weight_names"] = [f"{key}:0" for key in keys]
        for key in keys:
            group[f"{key}:0"] = values[key]


def as_counted(path: Path, inside: str = "") -> Path:
    """Writes a `.weights.h5`, in which the layers of each class are counted.

    Args:
        path: Where to.
        inside: Place of the model that the network is inside another one, with a slash behind it;
            beside it stands a classifier.
    """
    classes = {"kernel": "conv2d", "depthwise_kernel": "depthwise_conv2d"}
    seen: dict[str, int] = {}
    with h5py.File(path, "w") as file:
        for _, items in groupby(arrays().items(), lambda item: item[0].split("/")[0]):
            for index, (key, value) in enumerate(items):
                kind = classes.get(key.split("/")[1], "batch_normalization")
                if index == 0:
                    seen[kind] = seen.get(kind, -1) + 1
                number = f"_{seen[kind]}" if seen[kind] else ""
                file[f"{inside}layers/{kind}{number}/vars/{index}"] = value
        if inside:
            file["layers/dense/vars/0"] = np.zeros((1280, 5))
    return path


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Yields a whole HDF5 file, open to be changed."""
    path = write_h5(folder / "weights.h5", arrays())
    with h5py.File(path, "r+") as file:
        yield path, file


def place(key: str = KERNEL) -> str:
    """Returns where an array lies in the HDF5 file."""
    return f"{key.split('/')[0]}/{key}:0"


def npz_with(**changed: Any) -> Builder:
    """Returns a builder of an archive in which arrays are replaced or added."""
    pickled = any(np.asarray(value).dtype == object for value in changed.values())

    def build(folder: Path) -> Path:
        path = folder / "weights.npz"
        np.savez(path, allow_pickle=pickled, **{**arrays(), **changed})
        return path

    return build


def entry(key: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Builder:
    """Returns a builder of an archive in which the bytes of one array are others."""

    def build(folder: Path) -> Path:
        kept = {name: value for name, value in arrays().items() if name != key}
        path = write_npz(folder / "weights.npz", kept)
        with zipfile.ZipFile(path, "a", compression, compresslevel=1) as archive:
            archive.writestr(f"{key}.npy", content)
        return path

    return build


def npy(array: npt.NDArray[Any], shape: tuple[int, ...] | None = None) -> bytes:
    """Returns an array as NumPy writes it, perhaps with another shape in its header."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(stream, {**header, "shape": shape or array.shape})
    return stream.getvalue() + array.tobytes()


def flipped(path: Path, at: int, mask: int = 0xFF) -> Path:
    """Changes one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= mask
    path.write_bytes(content)
    return path


def named(suffix: str, content: bytes | Builder) -> Builder:
    """Returns a builder of a file under a name that its content does not fit."""

    def build(folder: Path) -> Path:
        path = folder / f"weights{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content(folder).read_bytes())
        return path

    return build


def whole_npz(folder: Path) -> Path:
    return write_npz(folder / "whole.npz", arrays())


def whole_h5(folder: Path) -> Path:
    return write_h5(folder / "whole.h5", arrays())


def in_keras_3(key: str) -> str:
    """Returns the name that Keras 3 gives an array of a model inside another one."""
    return f"model/{key.replace('depthwise_kernel', 'kernel')}"


def keras_of(content: bytes) -> Builder:
    """Returns what writes a .keras archive around a file of weights."""

    def build(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "whole.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("model.weights.h5", content)
        return folder / "whole.keras"

    return build


def pytorch(folder: Path) -> Path:
    """An archive that begins as those of torch.save do."""
    path = folder / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/version", "3\n")
    return path


def half(build: Builder) -> Builder:
    def cut(folder: Path) -> Path:
        path = build(folder)
        os.truncate(path, path.stat().st_size // 2)
        return path

    return cut


def duplicate(folder: Path) -> Path:
    path = whole_npz(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(KERNEL, npy(arrays()[KERNEL]))  # without .npy: the same name to NumPy
    return path


def wrong_checksum(folder: Path) -> Path:
    path = whole_npz(folder)
    return flipped(path, path.read_bytes().index(arrays()[KERNEL].tobytes()) + 2)


def encrypted(folder: Path) -> Path:
    path = whole_npz(folder)
    content = path.read_bytes()
    flipped(path, content.index(b"PK\x03\x04") + 6, 1)
    return flipped(path, content.index(b"PK\x01\x02") + 8, 1)


def strange_compression(folder: Path) -> Path:
    return entry(KERNEL, npy(arrays()[KERNEL]), zipfile.ZIP_LZMA)(folder)


def external_link(folder: Path) -> Path:
    write_h5(folder / "other.h5", arrays())
    with opened(folder) as (path, file):
        del file[place()]
        file[place()] = h5py.ExternalLink("other.h5", place())
    return path


def external_layer(folder: Path) -> Path:
    write_h5(folder / "other.h5", arrays())
    with opened(folder) as (path, file):
        del file[GROUP]
        file[GROUP] = h5py.ExternalLink("other.h5", GROUP)
    return path


def external_storage(folder: Path) -> Path:
    secret = folder / "secret"
    secret.write_bytes(SECRET)
    value = arrays()[KERNEL]
    with opened(folder) as (path, file):
        del file[place()]
        where = [(str(secret), 0, value.nbytes)]
        file.create_dataset(place(), value.shape, value.dtype, external=where)
    return path


def virtual_data(folder: Path) -> Path:
    write_h5(folder / "other.h5", arrays())
    value = arrays()[KERNEL]
    with opened(folder) as (path, file):
        del file[place()]
        layout = h5py.VirtualLayout(value.shape, value.dtype)
        layout[...] = h5py.VirtualSource("other.h5", place(), value.shape)
        file.create_virtual_dataset(place(), layout)
    return path


def soft_cycle(folder: Path) -> Path:
    with opened(folder) as (path, file):
        del file[place()]
        file[place()] = h5py.SoftLink(f"/{place()}")
    return path


def soft_link(folder: Path) -> Path:
    with opened(folder) as (path, file):
        file.move(place(), "elsewhere")
        file[place()] = h5py.SoftLink("/elsewhere")
    return path


def cyclic_names(folder: Path) -> Path:
    """A group that holds itself, and a name that goes around in it."""
    with opened(folder) as (path, file):
        group = file[GROUP]
        group["again"] = group
        group.attrs["weight_names"] = ["again/" * 5000 + f"{KERNEL}:0"]
    return path


def h5_replacing(make: Callable[[Any, str], object]) -> Builder:
    """Returns a builder of an HDF5 file in which `make(file, path)` writes the kernel anew."""

    def build(folder: Path) -> Path:
        with opened(folder) as (path, file):
            del file[place()]
            make(file, place())
        return path

    return build


def huge_chunks(file: Any, where: str) -> None:
    shape, chunks = backbone_shapes(ALPHA)[KERNEL], (1, 1, 16384, 16384)
    file.create_dataset(where, shape, "f4", chunks=chunks, maxshape=(None,) * 4, compression="gzip")


def foreign_filter(file: Any, where: str) -> None:
    """A filter that HDF5 looks for on the machine: 32015 is Zstandard, as a plugin."""
    value = arrays()[KERNEL]
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk(value.shape)
    layout.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    space = h5py.h5s.create_simple(value.shape)
    group, _, name = where.rpartition("/")
    parent = file.require_group(group).id
    h5py.h5d.create(parent, name.encode(), h5py.h5t.IEEE_F32LE, space, layout)


def layer_twice(folder: Path) -> Path:
    with opened(folder) as (path, file):
        names = list(file.attrs["layer_names"])
        file.attrs["layer_names"] = [GROUP, *names[1:]]
    return path


def too_many_names(folder: Path) -> Path:
    with opened(folder) as (path, file):
        file.attrs["layer_names"] = np.full(WEIGHT_NAMES + 1, b"x")
    return path


def with_a_top(folder: Path) -> Path:
    """The file of a network whose layers have other names, with layers around them."""
    renamed = {f"my_{key}": value for key, value in arrays().items()}
    front = {"norm/mean": np.zeros(3), "norm/variance": np.ones(3)}
    top = {"dense/kernel": np.zeros((1280, 5)), "dense/bias": np.zeros(5)}
    return write_h5(folder / "weights.h5", {**front, **renamed, **top})


def another_with_a_top(folder: Path) -> Path:
    """The same of another width."""
    renamed = {f"my_{key}": value for key, value in arrays(0.5).items()}
    return write_h5(folder / "weights.h5", {**renamed, "dense/bias": np.zeros(5)})


def nested(folder: Path, names: Callable[[str], str] = "{}:0".format, twice: str = "") -> Path:
    """What `save` writes for a backbone inside a model with a classifier.

    Args:
        folder: Where to.
        names: From an array's name to the one that Keras gives it. Weights that train, here every
            second one, are written in front of the others.
        twice: An array that is listed once more.
    """
    path = folder / "weights.h5"
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = ["backbone", "dense"]
        backbone = root.create_group("backbone")
        keys = list(arrays())
        listed = [names(key) for key in (*keys[::2], *keys[1::2])]
        backbone.attrs["weight_names"] = [*listed, *([names(twice)] if twice else [])]
        for key, value in arrays().items():
            backbone[names(key)] = value
        dense = root.create_group("dense")
        dense.attrs["weight_names"] = ["dense/bias:0"]
        dense["dense/bias:0"] = np.zeros(5)
    return path


def crash(folder: Path) -> Path:
    """One byte, the kind of a list of names, which is a text no longer, crashes HDF5 1.14.6."""
    path = whole_h5(folder)
    content = path.read_bytes()
    return flipped(path, content.index(b"\x19\x01", content.rindex(b"weight_names")) + 1, 0xFE)


def fifo(folder: Path) -> Path:
    path = folder / "weights.h5"
    os.mkfifo(path)
    return path


def link_to(target: str) -> Builder:
    def build(folder: Path) -> Path:
        path = folder / "weights.h5"
        path.symlink_to(target)
        return path

    return build


def a_folder(folder: Path) -> Path:
    path = folder / "weights.h5"
    path.mkdir()
    return path


def too_large(folder: Path) -> Path:
    path = whole_h5(folder)
    os.truncate(path, WEIGHT_FILE_BYTES + 1)  # the end is a hole and takes no space
    return path


def _infinite() -> npt.NDArray[Any]:
    value = arrays()[VECTOR]
    value[3] = np.inf
    return value


CRAFTED: list[tuple[str, Builder]] = [
    ("missing", lambda folder: folder / "nowhere.h5"),
    ("name too long", lambda folder: folder / f"{'w' * 300}.h5"),
    ("folder", a_folder),
    ("fifo", fifo),
    ("device", link_to("/dev/zero")),
    ("link to itself", link_to("weights.h5")),
    ("too large", too_large),
    ("empty npz", named(".npz", b"")),
    ("text as h5", named(".h5", b"<!DOCTYPE html><title>404</title>")),
    ("pointer of Git LFS", named(".h5", b"version https://git-lfs.github.com/spec/v1\noid")),
    ("npy as npz", named(".npz", npy(np.zeros(3)))),
    ("npy as h5", named(".h5", npy(np.zeros(3)))),
    ("h5 as npz", named(".npz", whole_h5)),
    ("npz as h5", named(".h5", whole_npz)),
    ("npz cut short", half(whole_npz)),
    ("npz with a wrong checksum", wrong_checksum),
    ("npz bomb", entry(KERNEL, npy(arrays()[KERNEL]) + bytes(BOMB_BYTES))),
    ("npz of a huge shape", entry(KERNEL, npy(np.zeros(4, np.float32), (1 << 20, 1 << 20)))),
    ("npz shorter than its shape", entry(KERNEL, npy(arrays()[KERNEL])[:-4])),
    ("npz with a header of gigabytes", entry(KERNEL, b"\x93NUMPY\x02\x00\xff\xff\xff\xff{")),
    ("npz with a pickle", npz_with(**{KERNEL: np.array([{}, print], object)})),
    ("npz of text", npz_with(**{VECTOR: np.full(CHANNELS, "1")})),
    ("npz of complex numbers", npz_with(**{VECTOR: np.zeros(CHANNELS, np.complex64)})),
    ("npz with an array twice", duplicate),
    ("npz encrypted", encrypted),
    ("npz compressed strangely", strange_compression),
    ("npz without an array", lambda folder: write_npz(
        folder / "weights.npz", {k: v for k, v in arrays().items() if k != KERNEL})),
    ("npz of another width", lambda folder: write_npz(folder / "weights.npz", arrays(0.5))),
    ("npz with NaN", npz_with(**{VECTOR: np.full(CHANNELS, np.nan)})),
    ("npz with a negative variance", npz_with(**{VECTOR: np.full(CHANNELS, -1.0)})),
    ("npz too large for float32", npz_with(**{VECTOR: np.full(CHANNELS, 1e300)})),
    ("h5 cut short", half(whole_h5)),
    ("h5 that crashes HDF5", crash),
    ("h5 with an external link", external_link),
    ("h5 with an external layer", external_layer),
    ("h5 with external storage", external_storage),
    ("h5 with virtual data", virtual_data),
    ("h5 with a cycle of soft links", soft_cycle),
    ("h5 with a soft link", soft_link),
    ("h5 with a layer twice", layer_twice),
    ("h5 with too many names", too_many_names),
    ("h5 of a huge shape", h5_replacing(lambda file, where: file.create_dataset(
        where, (1 << 20, 1 << 20), "f4", chunks=(1024, 1024)))),
    ("h5 without a shape", h5_replacing(lambda file, where: file.create_dataset(
        where, data=h5py.Empty("f4")))),
    ("h5 of text", h5_replacing(lambda file, where: file.create_dataset(where, data="weights"))),
    ("h5 of references", h5_replacing(lambda file, where: file.create_dataset(
        where, backbone_shapes(ALPHA)[KERNEL], h5py.ref_dtype))),
    ("h5 in huge chunks", h5_replacing(huge_chunks)),
    ("h5 with a foreign filter", h5_replacing(foreign_filter)),
    ("h5 without an array", h5_replacing(lambda file, where: None)),
    ("h5 with a group for an array", h5_replacing(lambda file, where: file.create_group(where))),
    ("h5 of another width", lambda folder: write_h5(folder / "weights.h5", arrays(0.5))),
    ("h5 of another width with a top", another_with_a_top),
    ("h5 of a nested model with an array twice", lambda folder: nested(folder, twice=KERNEL)),
    ("keras bomb", keras_of(bytes(WEIGHT_FILE_BYTES + 1))),
    ("keras of nothing", keras_of(b"")),
    ("PyTorch", named(".pt", pytorch)),
    ("PyTorch before 1.6", named(".pth", b"\x80\x02\x8a\nl\xfc\x9cF\xf9")),
    ("safetensors", named(".safetensors", b'\x02\0\0\0\0\0\0\0{"a":1}')),
    ("h5 with infinity", lambda folder: write_h5(
        folder / "weights.h5", {**arrays(), VECTOR: _infinite()})),
]  # fmt: skip


def foreign_names(folder: Path) -> Path:
    """The published files call their layers otherwise; Keras goes by the order."""
    renamed = {f"mobl_{key}": value for key, value in arrays().items()}
    return write_h5(folder / "whole.h5", renamed)


def known_names_and_a_top(folder: Path) -> Path:
    top = {"dense/kernel": np.zeros((1280, 5)), "dense/bias": np.zeros(5)}
    return write_h5(folder / "whole.h5", {**arrays(), **top})


def saved_model(folder: Path) -> Path:
    path = folder / "whole.h5"
    with h5py.File(path, "w") as file:
        fill(file.create_group("model_weights"), arrays())
        file["optimizer_weights/iterations"] = 7
    return path


def compressed_h5(folder: Path) -> Path:
    def shrink(file: Any, where: str) -> None:
        file.create_dataset(
            where, data=arrays()[KERNEL], compression="gzip", shuffle=True, fletcher32=True
        )

    return h5_replacing(shrink)(folder)


def numbered_names(folder: Path) -> Path:
    """Lists of names that do not fit into one attribute stand in several."""
    with opened(folder) as (path, file):
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:60], names[60:]
    return path


def foreign_links_beside(folder: Path) -> Path:
    """What nobody asks for is never followed."""
    with opened(folder) as (path, file):
        file["more"] = h5py.ExternalLink("/etc/hostname", "x")
        file["around"] = file["/"]
        file[f"{GROUP}/around"] = h5py.SoftLink(f"/{GROUP}/around")
    return path


def compressed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "whole.npz", **arrays())
    return folder / "whole.npz"


# Good files, all of the arrays that `arrays` returns.
WHOLE: list[tuple[str, Builder]] = [
    ("npz", whole_npz),
    ("npz, compressed", compressed_npz),
    ("npz with a bomb nobody asks for", entry("more", npy(np.zeros(BOMB_BYTES // 4, np.float32)))),
    ("npz, big-endian", npz_with(**{k: v.astype(">f4") for k, v in arrays().items()})),
    ("npz, double", npz_with(**{k: v.astype(np.float64) for k, v in arrays().items()})),
    ("npz by columns", npz_with(**{k: np.asfortranarray(v) for k, v in arrays().items()})),
    ("h5", whole_h5),
    ("h5, big-endian", lambda folder: write_h5(
        folder / "whole.h5", {k: v.astype(">f4") for k, v in arrays().items()})),
    ("h5 with names of its own", foreign_names),
    ("h5 with known names and a top", known_names_and_a_top),
    ("h5 of a saved model", saved_model),
    ("h5, compressed", compressed_h5),
    ("h5 with numbered lists", numbered_names),
    ("h5 with links nobody asks for", foreign_links_beside),
    ("h5 with a top", with_a_top),
    ("h5 of a nested model", nested),
    ("h5 of a nested model of Keras 3", lambda folder: nested(folder, in_keras_3)),
    ("weights.h5", lambda folder: as_counted(folder / "whole.weights.h5")),
    ("weights.h5 of a nested model", lambda folder: as_counted(
        folder / "whole.weights.h5", "layers/sequential/layers/functional/")),
    ("keras", lambda folder: keras_of(as_counted(folder / "w.h5").read_bytes())(folder)),
    ("h5 with a group that holds itself", cyclic_names),
]  # fmt: skip
