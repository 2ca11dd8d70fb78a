"""Fine-tuning as the guides write it against edgekit: seconds, accuracy, memory, growth.

    python tests/benchmarks/finetune.py --data DIR --weights FILE --alpha 1.0 --input-size 160 \
        --seeds 1 2 3

Same decoded pictures, schedule (head, then from a fixed cut; warm-up and cosine in each), batch
size, seed and kinds of augmentation. The baseline is tf_keras: the whole network in every step,
BatchNorm in inference mode (as in the guides, gamma and beta of unfrozen layers train; in edgekit
beta alone), `tf.data` from memory with parallel augmentation and prefetch; the epoch of the lowest
validation loss is kept. edgekit is its train stage with everything that belongs to it: building the
model, converting and checking the frozen part, writing activations, checkpoints, the mean of the
weights, which the baseline does not take. Decoding and the final test are outside of both. Every
measurement is a process of its own.

Two times are compared: that of the whole schedule, and that until the validation loss was first as
low as the worse of both came to.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accuracy import decode, peak_bytes  # the other benchmark beside this file

import edgekit  # noqa: F401 - sets what TensorFlow reads from the environment
from edgekit.data.scan import scan

BATCH = 32
SMOOTHING = 0.1
HEAD_RATE, RATE, WARMUP_STEPS = 1e-3, 1e-3, 100
CHANGES = {"flip": True, "shift": 0.08, "zoom": 0.12, "brightness": 0.15, "contrast": 0.15}
CASES = {
    "head": {"head_epochs": 20, "epochs": 1, "cut": None, "augment": False, "times": 1},
    "head, views": {"head_epochs": 20, "epochs": 1, "cut": None, "augment": True, "times": 1},
    **{
        f"from {block}": {
            "head_epochs": 6,
            "epochs": 12,
            "cut": f"{block}_expand",
            "augment": True,
            "times": 1,
        }
        for block in ("block_13", "block_10", "block_6")
    },
    **{
        f"growth {times}x": {
            "head_epochs": 1,
            "epochs": 1,
            "cut": "Conv_1",
            "augment": True,
            "times": times,
        }
        for times in (1, 2, 4)
    },
}


def main() -> None:
    """Runs the cases and prints the tables; or, with --one, measures one and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--data", type=Path, required=True, help="folder with three split folders")
    parser.add_argument("--weights", required=True, help="MobileNetV2 no-top weight file")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--input-size", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--views", type=int, default=12, help="edgekit's train.views")
    parser.add_argument("--cache", type=Path, help="keep decoded pictures in this folder")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, seed = options.one
        run = {"plain": plain, "edgekit": with_edgekit}[way]
        print(json.dumps(run(options, CASES[options.cases[0]], int(seed))))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.cache = (options.cache or Path(folder)) / f"{options.input_size}px"
        options.cache.mkdir(parents=True, exist_ok=True)
        decode(scan(options.data), options.input_size, options.cache)
        for case in options.cases:
            seeds = options.seeds if CASES[case]["epochs"] > 1 else options.seeds[:1]
            show(case, [(seed, measured(options, case, seed)) for seed in seeds])


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def measured(options: argparse.Namespace, case: str, seed: int) -> dict[str, dict[str, Any]]:
    """Returns what both ways gave, each in a process of its own, one after the other."""
    results = {}
    arguments = sys.argv[1:]
    for way in ("edgekit", "plain"):
        command = [sys.executable, __file__, *arguments, "--cases", case, "--one", way, str(seed)]
        command += ["--cache", str(options.cache)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"  {case}, seed {seed}, {way}: {results[way]}", file=sys.stderr, flush=True)
    return results


def show(case: str, results: list[tuple[int, dict[str, dict[str, Any]]]]) -> None:
    """Prints one case: a line for each seed, then the phases of the first."""
    print(f"\n{case}: seconds, ratio, test top-1, peak memory (plain / edgekit)")
    for seed, found in results:
        slow, fast = found["plain"], found["edgekit"]
        print(
            f"  seed {seed}: {slow['seconds']:.1f} / {fast['seconds']:.1f} s = "
            f"{slow['seconds'] / fast['seconds']:.1f}x; {slow['test']:.2%} / {fast['test']:.2%}; "
            f"{slow['peak_bytes'] / 1e6:.0f} / {fast['peak_bytes'] / 1e6:.0f} MB"
        )
        loss = max(min(loss for _, loss in each["curve"]) for each in (slow, fast))
        first = [
            next(seconds for seconds, reached in each["curve"] if reached <= loss)
            for each in (slow, fast)
        ]
        print(
            f"    to a validation loss of {loss:.4f}: {first[0]:.1f} / {first[1]:.1f} s = "
            f"{first[0] / first[1]:.1f}x"
        )
    for way in ("plain", "edgekit"):
        tests = [found[way]["test"] for _, found in results]
        phases = ", ".join(f"{name} {s:.1f}" for name, s in results[0][1][way]["phases"])
        print(f"  {way}: mean test top-1 {sum(tests) / len(tests):.2%}; seconds: {phases}")
    fast = results[0][1]["edgekit"]
    parts = ", ".join(
        f"{part} {fast['spent'][part]:.1f} s (at least {fast['floor'][part]:.1f} s)"
        for part in ("frozen part", "tail")
    )
    print(f"  edgekit: {parts}, at {fast['rate'] / 1e9:.0f} G multiply-adds/s of a matrix product")
    sys.stdout.flush()


def _contract(options: argparse.Namespace) -> Any:
    from edgekit.records import Preprocess

    return Preprocess(height_px=options.input_size, width_px=options.input_size)


def _splits(options: argparse.Namespace, times: int) -> Iterator[tuple[Any, Any]]:
    import numpy as np

    for split in ("train", "validation", "test"):
        images = np.load(options.cache / f"{split}.images.npy", mmap_mode="r")
        labels = np.load(options.cache / f"{split}.labels.npy")
        if split == "train" and times > 1:
            path = options.cache / f"train.{times}.npy"
            if not path.is_file():
                draft = path.with_suffix(".tmp.npy")
                grown = np.lib.format.open_memmap(
                    draft, mode="w+", dtype=np.uint8, shape=(times * len(images), *images.shape[1:])
                )
                for part in range(times):
                    grown[part * len(images) : (part + 1) * len(images)] = images
                grown.flush()
                draft.rename(path)
            images, labels = np.load(path, mmap_mode="r"), np.tile(labels, times)
        yield images, labels


def plain(options: argparse.Namespace, case: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fine-tunes as the transfer-learning guides do."""
    import numpy as np
    import tensorflow as tf
    import tf_keras

    (x, y), (vx, vy), (tx, ty) = _splits(options, case["times"])
    classes = int(y.max()) + 1
    started = time.perf_counter()
    tf_keras.utils.set_random_seed(seed)
    layers = tf_keras.layers
    change = tf_keras.Sequential(
        [
            layers.RandomFlip("horizontal", seed=seed),
            layers.RandomTranslation(CHANGES["shift"], CHANGES["shift"], seed=seed),
            layers.RandomZoom(CHANGES["zoom"], seed=seed),
            layers.RandomBrightness(CHANGES["brightness"], seed=seed),
            layers.RandomContrast(CHANGES["contrast"], seed=seed),
        ]
    )

    def ready(images: Any, labels: Any) -> Any:
        return tf.cast(images, tf.float32) / 128 - 1, tf.one_hot(labels, classes)

    def changed(images: Any, labels: Any) -> Any:
        return change(tf.cast(images, tf.float32), training=True), labels

    def batches(images: Any, labels: Any, train: bool) -> Any:
        # Rows are shuffled, not pictures: they come class by class, so all of them must be mixed.
        pictures, answers = tf.constant(np.asarray(images)), tf.constant(labels)
        data = tf.data.Dataset.range(len(labels))
        if train:
            data = data.shuffle(len(labels), seed=seed)
        data = data.batch(BATCH).map(
            lambda rows: (tf.gather(pictures, rows), tf.gather(answers, rows)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        if train and case["augment"]:
            data = data.map(changed, num_parallel_calls=tf.data.AUTOTUNE)
        return data.map(ready, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    train, validation = batches(x, y, True), batches(vx, vy, False)
    base = tf_keras.applications.MobileNetV2(
        input_shape=x.shape[1:], alpha=options.alpha, include_top=False, weights=options.weights
    )
    image = tf_keras.Input(x.shape[1:])
    features = layers.GlobalAveragePooling2D()(base(image, training=False))
    logits = layers.Dense(classes)(layers.Dropout(0.2)(features))
    model = tf_keras.Model(image, logits)
    names = [layer.name for layer in base.layers]
    best = _Best(validation, np.asarray(vy), started)
    phases: list[tuple[str, float]] = []
    steps = -(-len(y) // BATCH)
    for cut in ["head", *([case["cut"]] if case["cut"] else [])]:
        begun = time.perf_counter() if phases else started
        base.trainable = cut != "head"
        for layer in base.layers[: names.index(cut) if cut != "head" else 0]:
            layer.trainable = False
        best.restore(model)
        epochs = case["head_epochs"] if cut == "head" else case["epochs"]
        rate = HEAD_RATE if cut == "head" else RATE
        model.compile(
            tf_keras.optimizers.Adam(_schedule(rate, epochs * steps)),
            tf_keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=SMOOTHING),
        )
        best.phase(model, train, epochs)
        phases.append((cut, time.perf_counter() - begun))
    best.restore(model)
    seconds = time.perf_counter() - started
    peak = peak_bytes()
    return {
        "seconds": seconds,
        "phases": phases,
        "curve": best.curve,
        "peak_bytes": peak,
        "test": _accuracy(lambda images: model.predict(images, verbose=0), tx, ty),
    }


def _schedule(peak: float, steps: int) -> Any:
    """Returns `fitting.loop.Schedule` as tf_keras takes it."""
    import tf_keras

    from edgekit.fitting.loop import Schedule, learning_rate

    class Steps(tf_keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            import tensorflow as tf

            lengths = Schedule(peak, 1, WARMUP_STEPS).lengths(steps)
            return learning_rate(tf.cast(step, tf.float32), peak, *lengths)

        def get_config(self) -> dict[str, Any]:
            return {}

    return Steps()


class _Best:
    """The weights with the lowest validation loss, as edgekit defines it."""

    def __init__(self, validation: Any, labels: Any, started: float) -> None:
        self._validation = validation
        self._labels = labels
        self._started = started
        self.curve: list[tuple[float, float]] = []
        self._weights: list[Any] | None = None
        self._lowest = float("inf")

    def restore(self, model: Any) -> None:
        if self._weights is not None:
            model.set_weights(self._weights)

    def phase(self, model: Any, train: Any, epochs: int) -> None:
        from edgekit.fitting.losses import validation_losses

        for _ in range(epochs):
            model.fit(train, epochs=1, verbose=0)
            logits = model.predict(self._validation, verbose=0)
            loss = float(validation_losses(logits, self._labels).mean())
            self.curve.append((time.perf_counter() - self._started, loss))
            if loss < self._lowest:
                self._lowest, self._weights = loss, model.get_weights()


def with_edgekit(options: argparse.Namespace, case: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fine-tunes with edgekit's train stage."""
    from edgekit.network.native_log import load_tensorflow

    load_tensorflow()
    import numpy as np

    from edgekit.fitting.pictures import Pictures
    from edgekit.network import keras_model
    from edgekit.network.starting_weights import starting_weights
    from edgekit.prefix.activations import Shelf
    from edgekit.recipe import AugmentSpec, ModelSpec, TrainSpec
    from edgekit.store import StageKey, Store
    from edgekit.train.unfreezing import Keeping, train

    contract = _contract(options)
    (x, y), (vx, vy), (tx, ty) = _splits(options, case["times"])
    classes = int(y.max()) + 1
    start = starting_weights(options.weights, options.alpha, (options.input_size,) * 2)
    model = ModelSpec(alpha=options.alpha)
    spec = TrainSpec(
        batch_size=BATCH,
        head_epochs=case["head_epochs"],
        head_learning_rate=HEAD_RATE,
        epochs=case["epochs"],
        min_steps=0,
        learning_rate=RATE,
        warmup_steps=WARMUP_STEPS,
        strategy="fixed" if case["cut"] else "head",
        unfreeze_from=case["cut"],
        label_smoothing=SMOOTHING,
        augment=AugmentSpec(enabled=case["augment"], **CHANGES),
        views=options.views if case["cut"] else min(2, options.views),
    )
    marks: list[tuple[str, float]] = []
    curve: list[tuple[float, float]] = []

    def say(line: str) -> None:
        if line.startswith(("head: ", "final from ")) and "parameters" in line:
            marks.append((line.split(":")[0], time.perf_counter()))

    def epoch_done(_what: str, _epoch: int, _epochs: int, record: Any) -> None:
        curve.append((time.perf_counter() - started, record.validation_loss))

    with tempfile.TemporaryDirectory(dir=options.cache) as folder:
        store = Store(Path(folder), say)
        shelf = Shelf(store, "pictures", 4_000_000_000, say, lambda *_: None)
        key = StageKey("train", "1", {}, {}, (), seed)
        rate = _rate()
        started = time.perf_counter()
        record = train(
            Pictures(x, y, contract),
            Pictures(vx, vy, contract),
            [str(number) for number in range(classes)],
            model,
            spec,
            Path(folder),
            weights=start.arrays if start else None,
            seed=seed,
            keeping=Keeping(store, key, shelf),
            say=say,
            progress=lambda *_: None,
            epoch_done=epoch_done,
        )
        seconds = time.perf_counter() - started
        peak = peak_bytes()
        with np.load(Path(folder) / "weights.npz") as stored:
            arrays = {name: stored[name] for name in stored.files}
    model = keras_model.build(
        alpha=options.alpha,
        input_size_px=(options.input_size, options.input_size),
        class_count=classes,
        weights=None,
        seed=seed,
    )
    keras_model.assign(model, arrays)
    times = [started, *(mark for _, mark in marks)]
    phases = [(name, mark - before) for (name, mark), before in zip(marks, times, strict=False)]
    phases.append(("the rest", started + seconds - times[-1]))
    steps = [epoch.seconds for phase in record.phases for epoch in phase.epochs]
    test = _accuracy(lambda images: model.predict(images, verbose=0), tx, ty)
    adds = _multiply_adds(model, record.phases, options.alpha)
    return {
        "spent": {
            "frozen part": sum(phase.prefix.seconds for phase in record.phases),
            "tail": sum(steps),
        },
        "floor": {part: len(y) * count / rate for part, count in adds.items()},
        "rate": rate,
        "seconds": seconds,
        "phases": phases,
        "curve": curve,
        "peak_bytes": peak,
        "test": test,
    }


def _rate() -> float:
    """Returns the multiply-adds a second of large float32 matrix products, one on each core."""
    import tensorflow as tf

    from edgekit.fitting import cores

    side = 2048
    matrix = tf.random.stateless_uniform((side, side), (1, 2))
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        cores.each(lambda _: tf.matmul(matrix, matrix).numpy(), range(cores.COUNT))
        best = min(best, time.perf_counter() - begun)
    return cores.COUNT * side**3 / best


def _multiply_adds(model: Any, phases: Sequence[Any], alpha: float) -> dict[str, int]:
    """Returns how many each part of a run costs a training picture, if none is done twice.

    Convolutions only; `phases` are the records of the run, in order.
    """
    import numpy as np

    from edgekit.network.graph import LOGITS, mobilenet_v2, weighted

    nodes = mobilenet_v2(alpha)
    order = [node.name for node in weighted(nodes)]
    layers = [model.get_layer(name) for name in order]
    costs = [int(np.prod(n.weights[0].shape) * np.prod(n.output_shape[1:3])) for n in layers]
    tail = 0
    furthest: dict[int, int] = {}  # that a view is computed to
    for phase in phases:
        place = LOGITS if phase.cut == "head" else phase.cut
        stop = order.index(place)
        for view in range(min(phase.prefix.views, len(phase.epochs))):
            furthest[view] = max(furthest.get(view, 0), stop)
        # Forward, then the gradients of the kernels and, but for the first, of what enters.
        tail += len(phase.epochs) * (3 * sum(costs[stop:]) - costs[stop])
    return {"frozen part": sum(sum(costs[:stop]) for stop in furthest.values()), "tail": tail}


def _accuracy(predict: Callable[[Any], Any], images: Any, labels: Any) -> float:
    import numpy as np

    answers = predict(np.asarray(images, np.float32) / 128 - 1).argmax(1)
    return float((answers == labels).mean())


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
