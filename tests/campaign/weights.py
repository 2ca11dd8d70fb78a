"""Altered starting weights, `.h5` and `.npz`; `edgekit run --until train` with the head alone.

A weight file carries no digest, so one with another number in it is another weight file. Where
edgekit trains from an altered file, another reader must find every array in it, finite and of the
network's shapes, and the backbone of the trained network, which the head's training leaves as it
is, must be those arrays to the bit.
"""

import io
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from crafted_weights import CRAFTED, Builder

from campaign.alter import BYTES, changed
from campaign.attack import Attack, Outcome, trouble
from campaign.base import SEED, Base, write_recipe
from edgekit.demo.recipe import WEIGHTS

RANDOM_PER_FORMAT = 48
_MARK = "executed"
Arrays = dict[str, npt.NDArray[Any]]


def attacks(base: Base) -> Iterator[Attack]:
    """Yields the attacks by weight files.

    Args:
        base: A run, whose decoded pictures are used.
    """
    for suffix in (".h5", ".npz"):
        start(base, suffix)  # before attacks run side by side
        kind = f"weights, {suffix[1:]}"
        for number in range(RANDOM_PER_FORMAT):
            how = tuple(BYTES)[number % len(BYTES)]
            # Most of a file is numbers; every other alteration goes where its structure is.
            where = "structure" if number // len(BYTES) % 2 == 0 else "anywhere"
            name = f"{how} {where} {number:03d}"
            yield Attack(kind, name, _spoilt(base, suffix, how, where))
        for name, change in ARRAYS.items():
            yield Attack(kind, name, _rearranged(base, suffix, change))
    for name, build in CRAFTED:
        yield Attack("weights, crafted", name, _crafted(base, build))
    for name, content in MEMBERS.items():
        yield Attack("weights, npz", name, _members(base, content))


def start(base: Base, suffix: str) -> Path:
    """Returns the unaltered weight file of a format.

    Args:
        base: The run; the file is made beside it where it is not there yet.
        suffix: ".h5" or ".npz".
    """
    if suffix == ".npz":
        return WEIGHTS
    path = base.work / "weights.h5"
    if not path.exists():
        draft = path.with_suffix(".new")
        write_h5(draft, read_npz(WEIGHTS))
        draft.rename(path)
    return path


def read_npz(path: Path, wanted: Collection[str] | None = None) -> Arrays:
    """Returns arrays of an .npz file by `layer/variable`.

    Args:
        path: The file.
        wanted: Names of those that are read. Defaults to None: all.

    Raises:
        ValueError: If one of them is no plain array, or stands in the file twice.
    """
    found: Arrays = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if wanted is not None and name not in wanted:
                continue
            if name in found:
                raise ValueError(f"{name} stands in it twice")
            content = io.BytesIO(archive.read(entry))
            found[name] = np.lib.format.read_array(content, allow_pickle=False)
    return found


def write_h5(path: Path, arrays: Arrays) -> None:
    """Writes arrays as Keras's `save_weights` does: a group for each layer, which lists its own."""
    import h5py

    layers: dict[str, list[str]] = {}
    for name in arrays:
        layers.setdefault(name.rpartition("/")[0], []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([name.encode() for name in layers])
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.21.0"
        for layer, names in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = np.array([f"{name}:0".encode() for name in names])
            for name in names:
                group.create_dataset(f"{name}:0", data=arrays[name])


def read_h5(path: Path) -> Arrays:
    """Returns the arrays of an .h5 file of weights by `layer/variable`.

    Raises:
        OSError, KeyError, ValueError, TypeError, AttributeError: If it is no such file.
    """
    import h5py

    found = {}
    with h5py.File(path, "r") as file:
        for layer in file.attrs["layer_names"]:
            group = file[layer]
            for name in group.attrs["weight_names"]:
                text = name.decode() if isinstance(name, bytes) else str(name)
                found[text.removesuffix(":0")] = group[name][()]
    return found


# ---- what comes of a file


def trained_from(base: Base, place: Path, weights: Path) -> Outcome:
    """Returns what came of training from a weight file.

    Args:
        base: A run, whose decoded pictures are used.
        place: Folder of the attack.
        weights: The file.
    """
    data = base.out / ".store" / "data"
    shutil.copytree(data, place / "out" / ".store" / "data")
    recipe = write_recipe(place / "recipe.toml", base, SEED, strategy="head", weights=weights)
    ran = base.call(
        place, "run", str(recipe), "--until", "train", "--out", str(place / "out")
    )  # fmt: skip
    if (place / _MARK).exists():
        return Outcome("accepted", "something in it was executed", (ran,))
    told = trouble(ran, (0,))
    if told is not None:
        return told
    (folder,) = (place / "out" / ".store" / "train").iterdir()
    with np.load(folder / "weights.npz") as stored:
        backbone = {name: stored[name] for name in stored.files if not name.startswith("logits/")}
    problem = differs(weights, backbone)
    if problem:
        return Outcome("accepted", f"trained, but {problem}", (ran,))
    return Outcome(
        "harmless", "another reader finds the very arrays that were trained from", (ran,)
    )


def differs(weights: Path, backbone: Arrays) -> str:
    """Returns how a weight file, read by another reader, differs from a backbone; "" if it doesn't.

    Args:
        weights: The file.
        backbone: The arrays by `layer/variable`, float32.
    """
    try:
        is_npz = weights.suffix == ".npz"
        found = read_npz(weights, backbone) if is_npz else read_h5(weights)
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes its reader raise
        return f"another reader finds {type(error).__name__}: {str(error)[:100]}"
    for name, trained in backbone.items():
        array = found.get(name)
        if array is None or array.shape != trained.shape or array.dtype.kind not in "fiu":
            return f"another reader finds no array {name} of shape {trained.shape}"
        if not np.array_equal(array.astype(np.float32), trained):
            return f"{name} is not the file's"
    return ""


def _crafted(base: Base, build: Builder) -> Callable[[Path, Random], Outcome]:
    """Each tries something, so that none may be trained from."""

    def attack(place: Path, random: Random) -> Outcome:
        folder = place / "given"
        folder.mkdir()
        found = trained_from(base, place, build(folder))
        if found.result == "harmless":
            return Outcome("accepted", found.why, found.ran)
        return found

    return attack


def _spoilt(base: Base, suffix: str, how: str, where: str) -> Callable[[Path, Random], Outcome]:
    def attack(place: Path, random: Random) -> Outcome:
        content = start(base, suffix).read_bytes()
        weights = place / f"weights{suffix}"
        if where == "anywhere":
            weights.write_bytes(changed(content, how, random))
        else:
            first, stop = random.choice(structure(content, suffix))
            part = changed(content[first:stop], how, random)
            weights.write_bytes(content[:first] + part + content[stop:])
        return trained_from(base, place, weights)

    return attack


def structure(content: bytes, suffix: str) -> list[tuple[int, int]]:
    """Returns the parts of a weight file that are not numbers, as (start, stop).

    Args:
        content: The file.
        suffix: ".h5" or ".npz".
    """
    if suffix == ".npz":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            heads = [entry.header_offset for entry in archive.infolist()]
            return [(head, head + 200) for head in heads] + [(archive.start_dir, len(content))] * 20
    marks = (b"TREE", b"SNOD", b"HEAP", b"OHDR", b"\x89HDF", b"GCOL")
    found = []
    for mark in marks:
        at = content.find(mark)
        while at >= 0:
            found.append((at, min(at + 256, len(content))))
            at = content.find(mark, at + 1)
    return found


# ---- arrays rearranged, written as a valid file


def _rearranged(
    base: Base, suffix: str, change: Callable[[Arrays, Random], None]
) -> Callable[[Path, Random], Outcome]:
    def attack(place: Path, random: Random) -> Outcome:
        arrays = read_npz(WEIGHTS)
        change(arrays, random)
        weights = place / f"weights{suffix}"
        if suffix == ".npz":
            np.savez(weights, allow_pickle=False, **arrays)
        else:
            write_h5(weights, arrays)
        return trained_from(base, place, weights)

    return attack


def _kernels(arrays: Arrays) -> list[str]:
    return sorted(name for name in arrays if name.endswith("kernel"))


def _one_missing(arrays: Arrays, random: Random) -> None:
    del arrays[random.choice(sorted(arrays))]


def _one_renamed(arrays: Arrays, random: Random) -> None:
    name = random.choice(sorted(arrays))
    arrays[f"{name}_x"] = arrays.pop(name)


def _with(value: float) -> Callable[[Arrays, Random], None]:
    def change(arrays: Arrays, random: Random) -> None:
        array = arrays[random.choice(sorted(arrays))]
        array.reshape(-1)[random.randrange(array.size)] = value

    return change


def _one_turned(arrays: Arrays, random: Random) -> None:
    name = random.choice([n for n in _kernels(arrays) if len(set(arrays[n].shape)) > 1])
    arrays[name] = arrays[name].transpose()


def _two_swapped(arrays: Arrays, random: Random) -> None:
    """Swaps the names of two arrays of one shape, whose order in the file stays."""
    names = [name for name in sorted(arrays) if arrays[name].shape == arrays["bn_Conv1/beta"].shape]
    one, other = random.sample(names, 2)
    swapped = {one: other, other: one}
    content = {swapped.get(name, name): array for name, array in arrays.items()}
    arrays.clear()
    arrays.update(content)


def _other_order(arrays: Arrays, random: Random) -> None:
    names = sorted(arrays)
    random.shuffle(names)
    content = [(name, arrays[name]) for name in names]
    arrays.clear()
    arrays.update(content)


def _of_type(dtype: str) -> Callable[[Arrays, Random], None]:
    def change(arrays: Arrays, random: Random) -> None:
        for name in arrays:
            arrays[name] = arrays[name].astype(dtype)

    return change


def _one_larger(arrays: Arrays, random: Random) -> None:
    name = random.choice(_kernels(arrays))
    arrays[name] = np.concatenate([arrays[name], arrays[name]], axis=-1)


def _one_alone(arrays: Arrays, random: Random) -> None:
    arrays[random.choice(_kernels(arrays))] = np.zeros((), np.float32)


def _one_more(arrays: Arrays, random: Random) -> None:
    arrays["another/kernel"] = np.zeros((3, 3), np.float32)


def _negative_variance(arrays: Arrays, random: Random) -> None:
    name = random.choice([name for name in sorted(arrays) if name.endswith("variance")])
    arrays[name] = -np.abs(arrays[name]) - 1


ARRAYS: dict[str, Callable[[Arrays, Random], None]] = {
    "one missing": _one_missing,
    "one renamed": _one_renamed,
    "a NaN": _with(float("nan")),
    "an infinity": _with(float("inf")),
    "a huge number": _with(3e38),
    "one turned": _one_turned,
    "two of a shape swapped by name": _two_swapped,
    "in another order": _other_order,
    "float64": _of_type("<f8"),
    "float16": _of_type("<f2"),
    "big-endian": _of_type(">f4"),
    "integers": _of_type("<i4"),
    "complex": _of_type("<c8"),
    "text": _of_type("S8"),
    "one larger": _one_larger,
    "one a scalar": _one_alone,
    "one more": _one_more,
    "a negative variance": _negative_variance,
    "none": lambda arrays, random: arrays.clear(),
}


# ---- members of an .npz that numpy.savez does not write


def _members(
    base: Base, content: Callable[[Path], dict[str, bytes]]
) -> Callable[[Path, Random], Outcome]:
    def attack(place: Path, random: Random) -> Outcome:
        weights = place / "weights.npz"
        shutil.copyfile(WEIGHTS, weights)
        with zipfile.ZipFile(weights) as archive:
            kept = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in {**kept, **content(place)}.items():
                archive.writestr(name, data)
        return trained_from(base, place, weights)

    return attack


_FIRST = "Conv1/kernel.npy"


def _header(shape: str, dtype: str = "'<f4'") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


class _Executed:
    """Unpickled, it writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place / _MARK,))


def _pickled(place: Path) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([_Executed(place)], dtype=object), allow_pickle=True)
    return stream.getvalue()


MEMBERS: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "a pickled object": lambda place: {_FIRST: _pickled(place)},
    "a pickled object more": lambda place: {"more.npy": _pickled(place)},
    "a header of a terabyte": lambda _: {_FIRST: _header("(1000000000000,)")},
    "a header of a negative shape": lambda _: {_FIRST: _header("(-1, 3)")},
    "a header that is an expression": lambda _: {_FIRST: _header("(3,) * 10**9")},
    "a header of nested brackets": lambda _: {_FIRST: _header("(" * 30000 + ")" * 30000)},
    "a header of no type": lambda _: {_FIRST: _header("(3,)", "'<q99'")},
    "a header of a structure": lambda _: {_FIRST: _header("(3,)", "[('a', '<f4')]")},
    "no array": lambda _: {_FIRST: b"text"},
    "an empty member": lambda _: {_FIRST: b""},
    "a gigabyte of zeros more": lambda _: {"more.npy": bytes(1024**3)},
}
