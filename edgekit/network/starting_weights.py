"""Reads the backbone's starting weights, an untrusted file, in a process of its own.

`python -m edgekit.network.starting_weights ALPHA FOLDER < FILE` is that process: HDF5 is native
code, and a file that crashes it, fills the memory or never ends takes down nothing else. It gets
the bytes and not the path, takes the arrays that the network has and no others, and looks at what
each is declared to be before it reads it. It loads no TensorFlow.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgekit import limits
from edgekit.devices import child
from edgekit.devices.exchange import CRASHES
from edgekit.errors import DeviceError, EdgekitError, IntegrityError, SpecError
from edgekit.folders import scratch_folder
from edgekit.network.graph import Arrays, backbone_shapes
from edgekit.network.pretrained import check_published, weight_file
from edgekit.processes import run
from edgekit.runtimes.base import SHOWN_CHARACTERS, printable

Shapes = Mapping[str, tuple[int, ...]]

_MODULE = "edgekit.network.starting_weights"
_ARRAYS, _ANSWER = "arrays.f32", "answer.json"
_ANSWER_BYTES = 65536
# What the content of a file begins with, by the suffix that says so.
_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_BEGINNINGS = {".h5": _HDF5, ".npz": _ZIP, ".keras": _ZIP}
# Where Keras puts the weights in a .keras file.
_KERAS_WEIGHTS = "model.weights.h5"
# Models within a model, of which the innermost is the backbone, and layers that may stand around
# one whose layers are named otherwise.
_MODELS_DEEP, _LAYERS_AROUND = 4, 16
# Others that are taken for weight files.
_STRANGERS = {
    b"\x93NUMPY": "a single NumPy array",
    b"version https://git-lfs": "a pointer of Git LFS, which git lfs pull replaces by the file",
}
# How the weight files of PyTorch begin, by what they are. Sources: torch.save, and the format of
# https://github.com/huggingface/safetensors . A pickle is a program, which edgekit never runs.
_PYTORCH = "a file of PyTorch"
# Expected and remedy of each kind of refusal; `{network}` is what the weights must belong to.
_REFUSALS: dict[str, tuple[type[EdgekitError], str, str]] = {
    "another": (
        SpecError,
        "weights of {network}",
        "give the file that belongs to this alpha, or set model.alpha to the file's",
    ),
    "layers": (
        SpecError,
        "the layers of {network} and nothing on top of them",
        "save the backbone alone (include_top=False), with its save_weights()",
    ),
    "diverged": (
        SpecError,
        "weights that are all finite, and no negative variance",
        "give a file of a training that did not diverge",
    ),
    "package": (
        SpecError,
        "the extra that training needs",
        "install it: pip install 'edgekit[train]'",
    ),
    "damaged": (
        IntegrityError,
        "a whole weight file, as Keras or NumPy writes it",
        "copy or download it again",
    ),
    "untrusted": (
        IntegrityError,
        "plain arrays of numbers that lie in the file itself, each once",
        "do not use this file; or load it where it was made and save its weights again",
    ),
    "memory": (
        IntegrityError,
        f"a weight file that takes at most {limits.WEIGHT_MEMORY_BYTES} bytes of memory",
        "do not use this file; or load it where it was made and save its weights again",
    ),
}


@dataclass(frozen=True)
class StartingWeights:
    """What the backbone starts from.

    Args:
        arrays: float32 arrays named `layer/variable`; shapes as `graph.backbone_shapes`.
        sha256: Digest of the file that they were read from.
        note: What to tell about the file, if anything.
    """

    arrays: Arrays
    sha256: str
    note: str | None


class _Refused(Exception):  # noqa: N818 - it becomes an error of edgekit's own
    """The file is refused; `kind` is a key of `_REFUSALS`."""

    def __init__(self, kind: str, received: str) -> None:
        super().__init__(kind, received)
        self.kind = kind
        self.received = received


def starting_weights(
    weights: str,
    alpha: float,
    input_size_px: tuple[int, int],
    *,
    download: bool = True,
    timeout_seconds: float = limits.WEIGHT_SECONDS,
    memory_limit_bytes: int = limits.WEIGHT_MEMORY_BYTES,
) -> StartingWeights | None:
    """Returns the starting weights, or None for "none".

    Args:
        weights: "imagenet", "none", or the path of a file: an `.h5` or a `.keras` as Keras writes
            it (`save_weights`, `save`, `.weights.h5`), also of a whole model with the backbone
            inside, or an `.npz` with arrays named `layer/variable`; further arrays are ignored.
        alpha: Width multiplier.
        input_size_px: Height and width of the input.
        download: Whether "imagenet" may be downloaded; if not, and it was not before, None is
            returned. Defaults to True.
        timeout_seconds: Wall time for reading the file. Defaults to a minute.
        memory_limit_bytes: Address space of the process that reads it. Defaults to 1 GiB.

    Raises:
        SpecError: If there is no such file or it cannot be read or downloaded, it belongs to
            another network, or an array holds NaN or infinity.
        IntegrityError: If the file is damaged, not what its name says, not the published one, asks
            for bytes outside itself or for too much memory or time, or crashes what reads it.
        DeviceError: If the process that reads it is killed from outside.
    """
    path = weight_file(weights, alpha, input_size_px, download=download)
    if path is None:
        return None
    subject = f"model.weights = {weights!r}"
    if weights == "imagenet":
        subject = f'model.weights = "imagenet": {path}'
    content = _content(path, subject)
    sha256 = hashlib.sha256(content).hexdigest()
    note = check_published(path, sha256) if weights == "imagenet" else None
    _check_beginning(content, path, subject)
    with scratch_folder() as folder:
        command = child.command(
            _MODULE,
            repr(alpha),
            str(folder),
            timeout_seconds=timeout_seconds,
            memory_limit_bytes=memory_limit_bytes,
        )
        ended = _run(command, content, subject, timeout_seconds)
        refusal = _refusal(folder / _ANSWER)
        if refusal is not None:
            kind, expected, remedy = _REFUSALS[refusal.kind]
            network = f"MobileNetV2(alpha={alpha}, include_top=False)"
            said = f"{subject}: {printable(refusal.received)}"
            raise kind(said, expected.format(network=network), remedy)
        if ended.returncode != 0:
            raise _unexplained(ended, subject)
        arrays = _arrays(folder / _ARRAYS, backbone_shapes(alpha), subject)
    return StartingWeights(arrays, sha256, note)


def _content(path: Path, subject: str) -> bytes:
    """Returns the bytes of a file of a sane size."""
    try:
        # Was it exchanged for a FIFO meanwhile, opening it must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            content = stream.read(limits.WEIGHT_FILE_BYTES + 1)
    except OSError as err:
        raise SpecError(
            f"{subject}: {err.strerror or err}", "a file that can be read", "correct the path"
        ) from err
    if len(content) > limits.WEIGHT_FILE_BYTES:
        raise IntegrityError(
            f"{subject}: larger than {limits.WEIGHT_FILE_BYTES} bytes",
            "weights of a MobileNetV2, which take a fraction of that",
            "give the weights of the backbone alone",
        )
    return content


def _check_beginning(content: bytes, path: Path, subject: str) -> None:
    """Refuses content that is not what the name of the file says."""
    if _is_pytorch(content):
        raise SpecError(
            f"{subject}: {_PYTORCH}",
            "weights of Keras's MobileNetV2: .h5, .keras or .npz",
            'start from Keras\'s (--weights imagenet) or another file of Keras: "MobileNetV2" of '
            "PyTorch pads on other sides and normalizes with another epsilon, so its weights do "
            "not fit",
        )
    wanted = _BEGINNINGS.get(path.suffix)
    if wanted is not None and content.startswith(wanted):
        return
    names = {_HDF5: "HDF5", _ZIP: "a zip archive", **_STRANGERS}
    known = [name for beginning, name in names.items() if content.startswith(beginning)]
    found = known[0] if known else "neither HDF5 nor a zip archive" if content else "empty"
    raise IntegrityError(
        f"{subject}: its name ends in {path.suffix}, but its content is {found}",
        "HDF5 in a file named .h5, or a zip archive in one named .keras or .npz",
        "give the weight file itself, under a name that says what it is",
    )


def _is_pytorch(content: bytes) -> bool:
    """Returns whether a file is a pickle, an archive around one, or of safetensors."""
    if content.startswith(_ZIP):  # the name of the first entry stands behind 30 bytes
        return b"/data.pkl" in content[30:286]
    header_bytes = int.from_bytes(content[:8], "little")
    if content[8:10] == b'{"' and header_bytes < len(content):
        return True
    return content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _run(
    command: list[str], content: bytes, subject: str, timeout_seconds: float
) -> subprocess.CompletedProcess[bytes]:
    try:
        return run(
            command,
            timeout_seconds,
            content=content,
            stdout=subprocess.DEVNULL,
            environment=child.environment(),
        )
    except subprocess.TimeoutExpired as err:
        raise IntegrityError(
            f"{subject}: reading it did not end within {timeout_seconds:g} s",
            "a weight file, which is read in a second",
            "do not use this file; or, if this machine is very busy, run it again",
        ) from err


def _refusal(path: Path) -> _Refused | None:
    """Returns why the process refused the file, or None if it did not say."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError), path.open("rb") as stream:
        answer = json.loads(stream.read(_ANSWER_BYTES))
        if answer["kind"] in _REFUSALS:
            return _Refused(answer["kind"], str(answer["received"]))
    return None


def _unexplained(ended: subprocess.CompletedProcess[bytes], subject: str) -> EdgekitError:
    """Returns the error for a process that ended without a word about the file."""
    signals = {-entry.value: entry.name for entry in signal.Signals}
    name = signals.get(ended.returncode)
    if name is not None and name not in CRASHES:
        return DeviceError(
            f"{subject}: the process that reads it was ended from outside ({name})",
            "a process that ends by itself",
            "check the memory of the machine (SIGKILL often means that it ran out) and run it "
            "again",
        )
    said = printable(ended.stderr.decode("utf-8", "replace")[-SHOWN_CHARACTERS:])
    how = f"crashed ({name})" if name else f"ended with code {ended.returncode} ({said})"
    return IntegrityError(
        f"{subject}: what reads it {how}",
        "a weight file that can be read",
        "do not use this file; or load it where it was made and save its weights again",
    )


def _arrays(path: Path, shapes: Shapes, subject: str) -> dict[str, npt.NDArray[np.float32]]:
    """Returns the arrays that the process wrote one behind the other."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    if not path.is_file() or path.stat().st_size != 4 * sum(sizes):
        raise IntegrityError(
            f"{subject}: what reads it wrote other arrays than the network has",
            f"{sum(sizes)} weights",
            "do not use this file",
        )
    values = np.fromfile(path, "<f4").astype(np.float32, copy=False)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return {
        name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)
    }


def main(arguments: list[str]) -> int:
    """Reads a weight file from stdin, writes its arrays or why it is refused; returns 0.

    Args:
        arguments: Width multiplier, and the folder to write into.
    """
    shapes, folder = backbone_shapes(float(arguments[0])), Path(arguments[1])
    try:
        arrays = _parsed(sys.stdin.buffer.read(), shapes)
        flat = np.concatenate([array.ravel() for array in arrays])
        flat.astype("<f4", copy=False).tofile(folder / _ARRAYS)
    except _Refused as refused:
        _answer(folder, refused)
    except MemoryError:
        _answer(folder, _Refused("memory", "reading it takes more memory than a weight file does"))
    except ImportError as err:
        _answer(folder, _Refused("package", f"{err.name} is not installed"))
    except Exception as err:  # noqa: BLE001 - whatever the libraries raise, it is the file's doing
        said = str(err).partition("\n")[0]
        _answer(folder, _Refused("damaged", f"damaged ({type(err).__name__}: {said})"))
    return 0


def _answer(folder: Path, refused: _Refused) -> None:
    answer = {"kind": refused.kind, "received": printable(refused.received)}
    (folder / _ANSWER).write_text(json.dumps(answer), encoding="ascii")


def _parsed(content: bytes, shapes: Shapes) -> list[npt.NDArray[np.float32]]:
    """Returns the arrays of a weight file as float32, in the order of `shapes`."""
    if content.startswith(_ZIP):
        inside = _keras_weights(content)
        read, content = (_read_npz, content) if inside is None else (_read_hdf5, inside)
    else:
        read = _read_hdf5
    arrays = []
    for name, array in read(content, shapes):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity
            arrays.append(array.astype(np.float32))
        if not np.isfinite(arrays[-1]).all():
            raise _Refused("diverged", f"{name} holds NaN or infinity")
        if name.endswith("/moving_variance") and (arrays[-1] < 0).any():
            raise _Refused("diverged", f"{name} holds a negative number")
    return arrays


def _check(name: str, found: Any, wanted: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuses an array by what it is declared to be."""
    if dtype.kind not in "fiu":
        raise _Refused("untrusted", f"{name} holds {dtype!s:.40}, not numbers")
    if found != wanted:
        raise _Refused("another", f"{name} has shape {found}, the network needs {wanted}")


def _keras_weights(content: bytes) -> bytes | None:
    """Returns the HDF5 file inside a .keras archive; None if it is no such archive."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    entries = [entry for entry in archive.infolist() if entry.filename == _KERAS_WEIGHTS]
    if not entries:
        return None
    if len(entries) > 1:
        raise _Refused("untrusted", f"{_KERAS_WEIGHTS} is in the archive twice")
    if entries[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _Refused("untrusted", f"{_KERAS_WEIGHTS} is compressed as Keras never does")
    with archive.open(entries[0]) as stream:
        inside = stream.read(limits.WEIGHT_FILE_BYTES + 1)
    if len(inside) > limits.WEIGHT_FILE_BYTES:
        most = limits.WEIGHT_FILE_BYTES
        raise _Refused("untrusted", f"{_KERAS_WEIGHTS} in it is larger than {most} bytes")
    if not inside.startswith(_HDF5):
        raise _Refused("damaged", f"{_KERAS_WEIGHTS} in it is not HDF5")
    return inside


def _read_npz(content: bytes, shapes: Shapes) -> Iterable[tuple[str, npt.NDArray[Any]]]:
    """Yields the arrays of an archive of NumPy."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name in entries:
            raise _Refused("untrusted", f"{name!a} is in the archive twice")
        entries[name] = entry
    for name, shape in shapes.items():
        if name not in entries:
            raise _Refused("another", f"no array named {name}")
        if entries[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Refused("untrusted", f"{name} is compressed as NumPy never does")
        with archive.open(entries[name]) as stream:
            yield name, _read_npy(stream, name, shape)


def _read_npy(stream: IO[bytes], name: str, wanted: tuple[int, ...]) -> npt.NDArray[Any]:
    """Returns one array, of which no more is decompressed than it is declared to have."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, by_columns, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise _Refused("untrusted", f"{name} has a header of version {version}, not 1.0 or 2.0")
    _check(name, shape, wanted, dtype)
    size_bytes = math.prod(shape) * dtype.itemsize
    data = stream.read(size_bytes)
    # Reading to the end is what makes zipfile compare the checksum.
    if len(data) < size_bytes or stream.read(1):
        how = "less" if len(data) < size_bytes else "more"
        raise _Refused("damaged", f"{name} holds {how} data than its shape says")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")


def _read_hdf5(content: bytes, shapes: Shapes) -> Iterable[tuple[str, npt.NDArray[Any]]]:
    """Yields the arrays of a file of Keras, after all were found and looked at."""
    import h5py

    file = h5py.File.in_memory(content)
    # `Model.save` puts the weights beside the model's description.
    inside = not _has_names(file) and file.id.links.exists(b"model_weights")
    root = _member(file, "model_weights") if inside else file
    found = _by_layer(root, shapes) if _has_names(root) else _by_class(_innermost(root), shapes)
    for name, dataset in found.items():
        _check_dataset(name, dataset, shapes[name])
    for name, dataset in found.items():
        yield name, dataset[()]


def _layers(shapes: Shapes) -> dict[str, list[str]]:
    """Returns the names of the arrays of each layer that has any."""
    groups = groupby(shapes, lambda name: name.rpartition("/")[0])
    return {layer: list(names) for layer, names in groups}


def _by_layer(root: Any, shapes: Shapes) -> dict[str, Any]:
    """Returns the data sets of a file that lists layers and their weights in order.

    Keras goes by the order, as the published files have other names than its layers. Where there is
    more than the backbone, its layers are those of their names, in the file itself or in a model
    inside it; else those behind one another whose shapes are the network's.
    """
    layers, names = _layers(shapes), _names(root, "layer_names")
    if len(set(names)) < len(names):
        raise _Refused("untrusted", "a layer is listed twice")
    stored = {name: (group, weights) for name in names
              for group in [_member(root, name)]
              if (weights := _names(group, "weight_names"))}  # fmt: skip
    if layers.keys() < stored.keys():
        stored = {layer: stored[layer] for layer in layers}
    elif len(stored) != len(layers):
        inside = _by_name(stored.values(), shapes)
        if inside is not None:
            return inside
        stored = _behind_one_another(stored, layers, shapes)
    found: dict[str, Any] = {}
    for wanted, (name, (group, weights)) in zip(layers.values(), stored.items(), strict=True):
        if len(weights) != len(wanted):
            counts = f"{len(weights)} arrays, the network needs {len(wanted)}"
            raise _Refused("another", f"layer {name!a} has {counts}")
        found |= {key: _member(group, weight) for key, weight in zip(wanted, weights, strict=True)}
    return found


def _by_name(stored: Iterable[tuple[Any, list[str]]], shapes: Shapes) -> dict[str, Any] | None:
    """Returns the data sets of a model inside the one that was saved; None if there is none.

    Keras writes all weights of such a model as if it were one layer, those that train first, under
    the names of its own layers: `Conv1/kernel:0`, in Keras 3 without the number, and without the
    word for a kernel that is `depthwise`.
    """
    wanted = {name.replace("/depthwise_kernel", "/kernel"): name for name in shapes}
    for group, weights in stored:
        places: dict[str, str] = {}
        for weight in weights:
            plain = "/".join(weight.split("/")[-2:]).partition(":")[0]
            name = wanted.get(plain.replace("/depthwise_kernel", "/kernel"))
            if name in places:
                raise _Refused("layers", f"{name} twice in it")
            if name is not None:
                places[name] = weight
        if len(places) == len(wanted):
            return {name: _member(group, places[name]) for name in shapes}
    return None


def _behind_one_another(
    stored: Mapping[str, tuple[Any, list[str]]],
    layers: Mapping[str, list[str]],
    shapes: Shapes,
) -> dict[str, tuple[Any, list[str]]]:
    """Returns the layers whose arrays have the network's shapes, without those around them."""
    wanted = [[shapes[name] for name in names] for names in layers.values()]
    items = list(stored.items())
    around = len(items) - len(wanted)
    for first in range(around + 1 if 0 < around <= _LAYERS_AROUND else 0):
        chosen = items[first : first + len(wanted)]
        if all(
            len(weights) == len(shape)
            and [getattr(_member(group, weight), "shape", None) for weight in weights] == shape
            for (_, (group, weights)), shape in zip(chosen, wanted, strict=True)
        ):
            return dict(chosen)
    names = [name for name, _ in items]
    shown = f"{', '.join(map(ascii, names[:3]))}{' ...' if len(names) > 3 else ''}"
    counts = f"{len(items)} layers with weights ({shown}), the network has {len(layers)}"
    raise _Refused("layers", f"{counts}, which are not among them by name or shape")


def _innermost(root: Any) -> Any:
    """Returns what holds the layers of the backbone in a `.weights.h5`: a model inside others."""
    import h5py

    models = [root]
    for _ in range(_MODELS_DEEP):
        inside = []
        for model in models:
            links = model.id.links if isinstance(model, h5py.Group) else None
            if links is None or not links.exists(b"layers"):
                continue
            layers = _member(model, "layers")
            if not isinstance(layers, h5py.Group) or len(layers) > limits.WEIGHT_NAMES:
                continue
            if layers.id.links.exists(b"depthwise_conv2d"):
                return model
            named = [name for name in layers if layers.get(name, getlink=True).__class__ is
                     h5py.HardLink]  # fmt: skip
            inside += [layers[name] for name in named]
        models = inside[: limits.WEIGHT_NAMES]
    return root


def _by_class(root: Any, shapes: Shapes) -> dict[str, Any]:
    """Returns the data sets of a `.weights.h5`, which counts the layers of each class."""
    classes = {"kernel": "conv2d", "depthwise_kernel": "depthwise_conv2d"}
    seen: dict[str, int] = {}
    found: dict[str, Any] = {}
    for wanted in _layers(shapes).values():
        kind = classes.get(wanted[0].rpartition("/")[2], "batch_normalization")
        number = seen[kind] = seen.get(kind, -1) + 1
        group = _member(root, f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars")
        if len(group) != len(wanted):
            counts = f"{len(group)} arrays, the network needs {len(wanted)}"
            raise _Refused("another", f"layer {kind} {number} has {counts}")
        found |= {name: _member(group, str(index)) for index, name in enumerate(wanted)}
    return found


def _member(group: Any, path: str) -> Any:
    """Returns what lies at a path, through nothing but groups of this file."""
    import h5py

    found = group
    for part in path.split("/"):
        links = found.id.links if isinstance(found, h5py.Group) else None
        if links is None or not part or not links.exists(part.encode()):
            raise _Refused("another", f"no {path!a} in it")
        if links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise _Refused("untrusted", f"{path!a} is a link to another place or file")
        found = found[part]
    return found


def _has_names(root: Any) -> bool:
    return any(name in root.attrs for name in ("layer_names", "layer_names0"))


def _names(group: Any, attribute: str) -> list[str]:
    """Returns the list of names in an attribute, which Keras cuts into numbered parts if long."""
    numbered = (f"{attribute}{number}" for number in count())
    names: list[str] = []
    for part in [attribute] if attribute in group.attrs else numbered:
        if part not in group.attrs:
            break
        declared = group.attrs.get_id(part)
        names_left = limits.WEIGHT_NAMES - len(names)
        if len(declared.shape) != 1 or declared.shape[0] > names_left:
            raise _Refused("untrusted", f"{part} has shape {declared.shape}, not a list of names")
        names += [
            name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs[part]
        ]
    return names


def _check_dataset(name: str, dataset: Any, wanted: tuple[int, ...]) -> None:
    """Refuses a data set by what it is declared to be."""
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise _Refused("another", f"{name} is no array")
    layout = dataset.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        raise _Refused("untrusted", f"the data of {name} lies in another file")
    _check(name, dataset.shape, wanted, dataset.dtype)
    # Any other filter is native code that HDF5 would look for on this machine.
    known = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
    filters = [layout.get_filter(index)[0] for index in range(layout.get_nfilters())]
    if not set(filters) <= {*known, h5py.h5z.FILTER_LZF}:
        raise _Refused("untrusted", f"{name} is stored with a filter that Keras does not use")
    size_bytes = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if size_bytes > max(limits.WEIGHT_CHUNK_BYTES, dataset.nbytes):
        raise _Refused("untrusted", f"{name} is stored in chunks of {size_bytes} bytes")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
