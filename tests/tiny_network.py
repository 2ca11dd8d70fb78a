"""What the tests of training, quantization and export share: types, pictures and constants.

The fixtures of `conftest` make the objects. Nothing here imports TensorFlow.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from tiny_models import opened

from edgekit.network.ranges import read
from edgekit.recipe import ModelSpec, QuantizeSpec, TrainSpec
from edgekit.records import (
    ExportRecord,
    FloatModelRecord,
    QuantizedModelRecord,
    RangeTable,
    TensorRange,
)
from edgekit.store import StageKey, Store

# Keras models and edgekit types whose modules import TensorFlow.
Untyped: TypeAlias = Any
Arrays: TypeAlias = dict[str, npt.NDArray[np.float32]]
Network: TypeAlias = Callable[[float, int], Untyped]

ALPHA = 0.35
SIZE_PX = 48
CLASSES = ("blue", "green", "red")


@dataclass(frozen=True)
class TrainAsked:
    """What a recipe asks of the train stage."""

    spec: TrainSpec
    model: ModelSpec
    weights: Arrays
    seed: int


@dataclass(frozen=True)
class QuantizeAsked:
    """What a recipe asks of the quantize stage."""

    spec: QuantizeSpec
    training: TrainSpec
    seed: int


AskedT = TypeVar("AskedT", TrainAsked, QuantizeAsked)


def but(asked: AskedT, **changes: Any) -> AskedT:
    """Returns what is asked with some fields changed, also to what a recipe may not hold."""
    for name, value in changes.items():
        if name == "seed":
            asked = replace(asked, seed=value)
            continue
        place = next(p for p, spec in vars(asked).items() if hasattr(spec, name))
        asked = replace(asked, **{place: getattr(asked, place).model_copy(update={name: value})})
    return asked


@dataclass(frozen=True)
class Trained:
    """What the train stage made of the tiny pictures, and what it started from."""

    folder: Path
    record: FloatModelRecord
    arrays: Arrays
    start: Arrays
    said: tuple[str, ...]


@dataclass(frozen=True)
class Quantized:
    """What the quantize stage made of `Trained`."""

    folder: Path
    record: QuantizedModelRecord

    def weights(self, name: str) -> Arrays:
        return arrays_in(self.folder / f"{name}.weights.npz")

    def table(self, name: str) -> RangeTable:
        return read(self.folder / f"{name}.ranges.json")


@dataclass(frozen=True)
class Exported:
    """What the export stage made of `Quantized`."""

    folder: Path
    record: ExportRecord


def altered(table: RangeTable, spans: Mapping[str, TensorRange]) -> RangeTable:
    """Returns the table with other ranges for some tensors."""
    return table.model_copy(update={"activations": {**table.activations, **spans}})


def arrays_in(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def coloured(
    count: int, seed: int, size_px: int = SIZE_PX
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Returns noisy pictures whose brightest channel is their class, and the labels."""
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % len(CLASSES)).astype(np.int32)
    images = random.integers(0, 100, (count, size_px, size_px, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[..., 2 - label] += 120
    return images, labels


def int8_file_logits(
    nodes: Untyped, weights: Arrays, table: RangeTable, pictures: Untyped, folder: Path
) -> npt.NDArray[np.float32]:
    """Returns what a TFLite int8 file of a network answers on LiteRT, float32 (n, classes)."""
    from edgekit.export import tflite

    (_, height, width, _) = pictures.images.shape
    file = folder / "model.tflite"
    size_px = (height, width)
    file.write_bytes(
        tflite.write(nodes, weights, table, variant="int8", io="float32", size_px=size_px)
    )
    model = opened(file, "litert", 1)
    images = pictures.normalize(pictures.images.astype(np.float32))
    return np.array([model.run(image[None]) for image in images], np.float32)


def shelf(
    root: Path, say: Callable[[str], None] = lambda _line: None, budget_bytes: int = 10**9
) -> Untyped:
    """Returns a shelf in a real store."""
    from edgekit.prefix.activations import Shelf

    return Shelf(Store(root, say), "pictures", budget_bytes, say, lambda _what, _done, _total: None)


def checkpoints(root: Path) -> Untyped:
    """Returns checkpoints in a real store."""
    from edgekit.fitting.checkpoints import Checkpoints

    return Checkpoints(Store(root, lambda _line: None), StageKey("epoch", "1", {}, {}, (), 0))


def changed(trained: Trained) -> set[str]:
    """Returns the layers with a variable that is not the starting one, bit for bit."""
    return {
        name.split("/")[0]
        for name, value in trained.arrays.items()
        if not np.array_equal(value, trained.start[name])
    }


def told(record: FloatModelRecord) -> Untyped:
    """Returns a record without what only says how long it took."""
    found = record.model_dump()
    for phase in found["phases"]:
        for timed in (*phase["epochs"], phase["prefix"]):
            del timed["seconds"], timed["images_per_second"]
    for score in found["curve"]:
        del score["seconds"]
    return found


def keeping(root: Path, say: Callable[[str], None], budget_bytes: int = 10**9) -> Untyped:
    """Returns what keeps phases, epochs and activations in a real store, as the pipeline does."""
    from edgekit.train.unfreezing import Keeping

    place = shelf(root, say, budget_bytes)
    return Keeping(place.store, StageKey("train", "1", {}, {}, (), 0), place)


def tune(plan: TrainAsked, pictures: Untyped, folder: Path, budget_bytes: int = 10**9) -> Trained:
    """Runs the train stage with a plan, pictures and room for activations."""
    from edgekit.train.unfreezing import train

    folder.mkdir(exist_ok=True)
    said: list[str] = []
    record = train(
        *pictures,
        CLASSES,
        plan.model,
        plan.spec,
        folder,
        weights=plan.weights,
        seed=plan.seed,
        keeping=keeping(folder / "store", said.append, budget_bytes),
        say=said.append,
        progress=lambda _what, _done, _total: None,
    )
    arrays = arrays_in(folder / "weights.npz")
    return Trained(folder, record, arrays, plan.weights, tuple(said))
