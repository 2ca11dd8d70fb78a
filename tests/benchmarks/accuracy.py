"""Accuracy on several data sets: fine-tuning as the guides have it, edgekit's schedule, edgekit.

    python tests/benchmarks/accuracy.py --data DIR --weights FILE --alpha 0.35 --input-size 96 \
        --seeds 1 2 3 --out results.json
    python tests/benchmarks/accuracy.py --data DIR --sets waste leaf --ways guide ... --threads 1
    python tests/benchmarks/accuracy.py --table results.json

DIR holds data sets as NAME/{train,validation,test}/CLASS/*.jpg, or is one itself. The ways:

    guide    tf_keras as the transfer-learning guides have it: the head alone (at most 12 epochs at
             1e-3), then everything from block_6_expand on (at most 12 more), at 1e-4 and, from the
             same head, at 1e-3, of which the lower validation loss counts; Adam, the best epoch by
             validation loss with a patience of 3, flips and shifts; gamma and beta of unfrozen
             BatchNorms train. Its seconds are those of the head and of the rate that counts.
    edgekit  `edgekit run` with a recipe that names data, network, weights and seed and shortens the
             time measurements: its float32 TFLite file, the int8 file that ships, and int8 by
             calibration alone. Its seconds are those of the train stage.
    plain    tf_keras with the schedule of edgekit's recipe: head, then one phase from the layer and
             with the peak rate of the phase that edgekit ships with the same seed (so edgekit runs
             first). Adam, label smoothing, warm-up and cosine step by step, the mean of the weights
             validated, the best epoch by validation loss, the recipe's random changes (contrast
             by one factor a batch, as tf_keras's layer has it). Of a BatchNorm beta trains and
             gamma does not.

Both ways with tf_keras compute the whole network in every step, BatchNorm in inference mode, with
random changes as layers of the model (on pixels 0..255, which RandomContrast clips to, then
p / 128 - 1, edgekit's contract), on the pictures as edgekit decodes them. Macro recall is the mean
of the recalls of the classes. A spread is the sample standard deviation over the seeds; that of the
mean over sets, of the seeds' means.

Every measurement is a process of its own and is kept in --out when it ends; what is there of the
same machine, versions, commit, settings and pictures is not measured again. A commit that ends in
"-dirty" stands for any state of the files behind it: start a new file after a change. --threads
restricts everything to so many cores, which changes accuracy too.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import edgekit  # also sets what TensorFlow reads from the environment

Row = dict[str, Any]
WAYS = ("guide", "edgekit", "plain")  # in the order of the runs: plain needs edgekit's cut
SPLITS = ("train", "validation", "test")
PACKAGES = (
    "tensorflow", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert",
    "opencv-python-headless", "numpy", "pillow",
)  # fmt: skip
# The guides.
BATCH, DROPOUT, SHIFT = 32, 0.2, 0.1
HEAD_RATE, RATES, EPOCHS, PATIENCE = 1e-3, (1e-4, 1e-3), 12, 3
CUT = "block_6_expand"
HEAD = "head"
RECIPE = """
seed = {seed}
targets = ["host-litert"]
[data]
path = {data}
check_labels = false
[model]
alpha = {alpha}
input_size_px = {size}
weights = {weights}
[validation]
sessions = 3
min_seconds = 0.3
warmup_seconds = 0.3
"""
# Exit codes of a run that ended: all PASS, any MISS, any not decided.
ENDED = (0, 4, 5)
# Columns of the accuracies: title, way, prefix of the keys in its rows.
COLUMNS = (
    ("guide", "guide", ""),
    ("plain", "plain", ""),
    ("edgekit float32", "edgekit", ""),
    ("edgekit int8", "edgekit", "int8_"),
    ("int8 by calibration", "edgekit", "calibrated_"),
)


def main() -> None:
    """Measures what is missing in the file and prints its tables; with --one, measures one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", help="folder of data sets, or one of them")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="only these; default: all")
    parser.add_argument("--weights", type=Path, help="MobileNetV2 no-top .h5 file")
    parser.add_argument("--alpha", type=float, default=0.35)
    parser.add_argument("--input-size", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--threads", type=int, help="cores to use; default: all")
    parser.add_argument("--out", type=Path, default=Path("accuracy.json"), help="results, kept")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print what is kept in a file")
    parser.add_argument("--one", nargs=3, metavar=("SET", "WAY", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--decoded", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        if not options.table.is_file():
            parser.error(f"--table: there is no file {options.table}")
        for run in load(options.table):
            show(run)
        return
    if not (options.data and options.weights):
        parser.error("--data and --weights say what to train; or name a file with --table")
    if options.threads:
        allowed = sorted(os.sched_getaffinity(0))
        if not 1 <= options.threads <= len(allowed):
            parser.error(f"--threads {options.threads}: there are 1 to {len(allowed)}")
        os.sched_setaffinity(0, allowed[: options.threads])
    found = find_sets(options.data)
    names = options.sets or list(found)
    if not names or not set(names) <= set(found):
        parser.error(f"sets in {', '.join(map(str, options.data))}: {', '.join(found) or 'none'}")
    if options.one:
        name, way, seed = options.one
        print(json.dumps(measure(options, found[name], way, int(seed))))
        return
    failed = [line for name in names for line in measure_set(options, name, found[name])]
    for run in load(options.out):
        if about(run) == circumstances(options):
            show(run)
    if failed:
        raise SystemExit("not measured:\n  " + "\n  ".join(failed))


def find_sets(folders: Sequence[Path]) -> dict[str, Path]:
    """Returns the data sets in the folders, or that these are, by name."""

    def is_set(folder: Path) -> bool:
        return all((folder / split).is_dir() for split in SPLITS)

    inside = {
        folder: [folder] if is_set(folder) else sorted(filter(is_set, folder.glob("*")))
        for folder in map(Path.resolve, folders)
    }
    return {path.name: path for paths in inside.values() for path in paths}


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """Returns everything that rows of one table have in common."""
    from edgekit.devices.local import processor
    from edgekit.store import file_digest, tool_version

    return {
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: tool_version(name) for name in PACKAGES},
        },
        "commit": _commit(),
        "settings": {
            "alpha": options.alpha,
            "input_size": options.input_size,
            "weights": f"{options.weights.name}, sha256 {file_digest(options.weights)[:12]}",
            "threads": len(os.sched_getaffinity(0)),
        },
    }


def _commit() -> str:
    """Returns the commit of the edgekit that is measured, which need not lie beside this file."""
    command = ["git", "--no-optional-locks", "-C", str(Path(edgekit.__file__).parent), "describe"]
    command += ["--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def about(run: dict[str, Any]) -> dict[str, Any]:
    """Returns what a kept run says about its rows."""
    return {name: value for name, value in run.items() if name != "rows"}


def load(path: Path) -> list[dict[str, Any]]:
    """Returns the kept runs: each `circumstances` and the rows measured in them."""
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.is_file() else []
    return runs


def keep(path: Path, measured_in: dict[str, Any], row: Row) -> None:
    """Adds a row to the file, which another process may have changed meanwhile."""
    from edgekit.store import write_atomically

    runs = load(path)
    run = next((run for run in runs if about(run) == measured_in), None)
    if run is None:
        run = {**measured_in, "rows": []}
        runs.append(run)
    run["rows"] = [kept for kept in run["rows"] if _place(kept) != _place(row)] + [row]
    write_atomically(path, (json.dumps({"runs": runs}, indent=1) + "\n").encode())


def _place(row: Row) -> tuple[str, str, int]:
    return row["set"], row["way"], row["seed"]


def kept_row(
    path: Path, measured_in: dict[str, Any], place: tuple[str, str, int], pictures: str
) -> Row | None:
    """Returns the row that was measured on the same pictures in the same circumstances, if any."""
    for run in load(path):
        for row in run["rows"] if about(run) == measured_in else ():
            if _place(row) == place and row["pictures"] == pictures:
                return dict(row)
    return None


def measure_set(options: argparse.Namespace, name: str, data: Path) -> list[str]:
    """Measures what is missing of a set, each in a process of its own; returns what failed."""
    from edgekit.data.scan import scan

    scanned = scan(data)
    pictures = scanned.digest[:12]
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            for way in (way for way in WAYS if way in options.ways):
                now = circumstances(options)
                if kept_row(options.out, now, (name, way, seed), pictures):
                    continue
                # Through the file, so that edgekit may have run at another time.
                known = kept_row(options.out, now, (name, "edgekit", seed), pictures)
                if way == "plain" and known is None:
                    failed.append(f"{name}, seed {seed}, plain: edgekit's cut is not known")
                    continue
                if way != "edgekit":
                    decode(scanned, options.input_size, Path(scratch))
                command = [sys.executable, __file__, *sys.argv[1:], "--one", name, way, str(seed)]
                command += ["--decoded", scratch]
                if way == "plain" and known:
                    command += ["--start", json.dumps({key: known[key] for key in ("cut", "rate")})]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    failed.append(f"{name}, seed {seed}, {way}: exit code {done.returncode}")
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                row = {"set": name, "way": way, "seed": seed, "pictures": pictures, **found}
                keep(options.out, now, row)
                print(
                    f"  {name}, seed {seed}, {way}: top-1 {row['top1']:.2%}, validation loss "
                    f"{row['val_loss']:.4f}, {row['train_seconds']:.1f} s, from {row['cut']}",
                    file=sys.stderr,
                    flush=True,
                )
    return failed


def decode(scanned: Any, side: int, folder: Path) -> None:
    """Decodes the pictures of a set once, as edgekit's data stage does, into the folder."""
    from edgekit.data.decode import decode as decode_pictures
    from edgekit.records import Preprocess

    done = folder / "decoded"
    if done.is_file():
        return
    decode_pictures(
        scanned,
        Preprocess(height_px=side, width_px=side),
        folder,
        validation_fraction=0.15,
        test_fraction=0.15,
        min_images_per_class=1,
        max_bad_fraction=0.01,
        seed=1,
        progress=lambda *_: None,
    )
    done.touch()


def measure(options: argparse.Namespace, data: Path, way: str, seed: int) -> Row:
    """Returns what one way gives on one set with one seed."""
    if way == "edgekit":
        return with_edgekit(options, data, seed)
    from edgekit.network.native_log import muted

    with muted():  # not by `load_tensorflow`, which gives an operation one thread
        from edgekit.network.keras_model import make_deterministic

        make_deterministic(seed)
    if way == "guide":
        return guide(options, seed)
    start = json.loads(options.start)
    return plain(options, seed, start["cut"], start["rate"])


def with_edgekit(options: argparse.Namespace, data: Path, seed: int) -> Row:
    """Runs edgekit as a user does and reads its report."""
    from edgekit.records import RunReport

    with tempfile.TemporaryDirectory() as scratch:
        recipe, out = Path(scratch) / "recipe.toml", Path(scratch) / "run"
        recipe.write_text(
            RECIPE.format(
                seed=seed,
                data=json.dumps(str(data)),
                alpha=options.alpha,
                size=options.input_size,
                weights=json.dumps(str(options.weights.resolve())),
            )
        )
        # -P: the current folder must not hold another edgekit than the one imported here.
        command = [sys.executable, "-P", "-m", "edgekit", "run", str(recipe), "--out", str(out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode not in ENDED:
            raise SystemExit(done.stdout[-2000:])
        report = RunReport.model_validate_json((out / "report.json").read_bytes())
    trained, quantized = report.float_model, report.quantized
    phase = trained.phases[trained.shipped_phase]
    seconds = {time.stage: time.seconds for time in report.stages}
    losses = {each.name: each.validation_loss for each in quantized.candidates}
    row = {
        **_judged(report, "", "float32", None),
        "val_loss": trained.validation_loss,
        "train_seconds": seconds["train"],
        "quantize_seconds": seconds["quantize"],
        "stage_seconds": seconds,
        "peak_bytes": report.peak_memory_bytes,
        "cut": trained.cut,
        "rate": phase.learning_rate,
        "epochs": len(phase.epochs),
        "strategy": trained.strategy,
        "chosen_because": trained.chosen_because,
        "warnings": [*trained.warnings, *quantized.warnings],
        "int8_ships": quantized.shipped,
        **_judged(report, "int8_", "int8", quantized.shipped),
        "int8_val_loss": losses[quantized.shipped],
    }
    for prefix, candidate in (("calibrated_", "ptq"), ("qat_", "qat")):
        if candidate in losses:
            row |= _judged(report, prefix, "int8", candidate)
            row[f"{prefix}val_loss"] = losses[candidate]
    return row


def _judged(report: Any, prefix: str, variant: str, candidate: str | None) -> Row:
    """Returns the accuracies of a TFLite file on the test split; nothing if there is none."""
    evaluations = report.validation.on_one_thread
    for artifact in report.export.artifacts:
        made = (artifact.format, artifact.variant, artifact.candidate)
        if made == ("tflite", variant, candidate) and artifact.sha256 in evaluations:
            accuracy = evaluations[artifact.sha256].accuracy
            recalls = [recall for recall in accuracy.recall_per_class if recall is not None]
            return {
                f"{prefix}top1": accuracy.top1,
                f"{prefix}macro_recall": statistics.fmean(recalls),
            }
    return {}


def guide(options: argparse.Namespace, seed: int) -> Row:
    """Fine-tunes as the transfer-learning guides do."""
    import tf_keras

    layers = tf_keras.layers
    started = time.perf_counter()
    data = _Data(options.decoded, BATCH, seed)
    changes = [
        layers.RandomFlip("horizontal", seed=seed),
        layers.RandomTranslation(SHIFT, SHIFT, seed=seed),
    ]
    base, model = _network(options, data, changes, DROPOUT, tf_keras.Model)

    def fitted(rate: float) -> list[float]:
        model.compile(
            tf_keras.optimizers.Adam(rate),
            tf_keras.losses.CategoricalCrossentropy(from_logits=True),
        )
        stop = tf_keras.callbacks.EarlyStopping(
            "val_loss", patience=PATIENCE, restore_best_weights=True
        )
        history = model.fit(
            data.train, epochs=EPOCHS, validation_data=data.validation, callbacks=[stop], verbose=0
        )
        losses: list[float] = history.history["val_loss"]
        return losses

    base.trainable = False
    head_losses = fitted(HEAD_RATE)
    head, head_seconds = model.get_weights(), time.perf_counter() - started
    head_top1 = _accuracy(model, data)["top1"]
    _unfreeze(base, CUT)
    tried: list[Row] = []
    weights = []
    for rate in RATES:
        begun = time.perf_counter()
        model.set_weights(head)
        losses = fitted(rate)
        seconds = time.perf_counter() - begun
        weights.append(model.get_weights())
        tried.append(
            {"rate": rate, "val_loss": min(losses), "epochs": len(losses), "seconds": seconds}
            | _accuracy(model, data)
        )
    # A loss that is not a number is no best one.
    best = min(tried, key=lambda one: math.inf if math.isnan(one["val_loss"]) else one["val_loss"])
    peak = peak_bytes()
    return {
        **best,
        "train_seconds": head_seconds + best["seconds"],
        "head_seconds": head_seconds,
        "peak_bytes": peak,
        "cut": CUT,
        "head_top1": head_top1,
        "head_val_loss": min(head_losses),
        "head_epochs": len(head_losses),
        "tried": tried,
    }


def plain(options: argparse.Namespace, seed: int, cut: str, rate: float) -> Row:
    """Fine-tunes with the schedule of edgekit's recipe, from one layer on.

    Args:
        options: The command line.
        seed: Seed of weights, order, changes and dropout.
        cut: First layer that trains behind the head's phase, or "head" for no further phase.
        rate: Peak learning rate of that phase.
    """
    import tf_keras

    from edgekit.fitting.loop import AVERAGING
    from edgekit.recipe import ModelSpec, TrainSpec

    spec = TrainSpec()
    started = time.perf_counter()
    data = _Data(options.decoded, spec.batch_size, seed)
    mean = _Mean(AVERAGING)
    changes = _changes(spec.augment, seed)
    base, model = _network(options, data, changes, ModelSpec().dropout, _averaged(mean))
    steps = math.ceil(data.count / spec.batch_size)
    phases = []

    def fitted(asked: int, peak: float) -> float:
        fewest = spec.min_steps * asked / spec.epochs
        epochs = max(asked, math.ceil(fewest / steps))
        warmup = max(1, min(spec.warmup_steps, epochs * steps // 4))
        # Step s of the warm-up, from 0, is taken at peak * (s + 1) / warmup.
        schedule = tf_keras.optimizers.schedules.CosineDecay(
            peak / warmup, epochs * steps - warmup + 1, warmup_target=peak, warmup_steps=warmup - 1
        )
        model.compile(
            tf_keras.optimizers.Adam(schedule),
            tf_keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=spec.label_smoothing
            ),
        )
        begun = time.perf_counter()
        loss, best_epoch = _best_epoch(model, mean, data, epochs)
        phases.append(
            {
                "peak": peak,
                "epochs": epochs,
                "best_epoch": best_epoch,
                "val_loss": loss,
                "seconds": time.perf_counter() - begun,
                "trained": sum(math.prod(each.shape) for each in model.trainable_variables),
            }
        )
        return loss

    base.trainable = False
    loss = fitted(spec.head_epochs, spec.head_learning_rate)
    if cut != HEAD:
        _unfreeze(base, cut)
        loss = fitted(spec.epochs, rate)
    seconds, peak = time.perf_counter() - started, peak_bytes()
    return {
        **_accuracy(model, data),
        "val_loss": loss,
        "train_seconds": seconds,
        "peak_bytes": peak,
        "cut": cut,
        "rate": phases[-1]["peak"],
        "epochs": phases[-1]["epochs"],
        "phases": phases,
    }


def _changes(augment: Any, seed: int) -> list[Any]:
    """Returns the layers that change training pictures as the recipe asks, on pixels 0..255."""
    import tf_keras

    if not augment.enabled:
        return []
    layers = tf_keras.layers
    flips = [layers.RandomFlip("horizontal", seed=seed)] if augment.flip else []
    others = (
        (layers.RandomTranslation, (augment.shift, augment.shift)),
        (layers.RandomZoom, (augment.zoom,)),
        (layers.RandomBrightness, (augment.brightness,)),
        (layers.RandomContrast, (augment.contrast,)),
    )
    # RandomContrast refuses 0.
    return [*flips, *(layer(*most, seed=seed) for layer, most in others if any(most))]


def _best_epoch(model: Any, mean: "_Mean", data: "_Data", epochs: int) -> tuple[float, int]:
    """Trains, leaves the mean of the weights of the best epoch in place; returns its loss."""
    from edgekit.fitting.losses import validation_losses

    mean.start(model.trainable_variables)
    lowest, best, weights = math.inf, 0, model.get_weights()
    for epoch in range(epochs):
        model.fit(data.train, epochs=1, verbose=0)
        mean.swap()
        logits = model.predict(data.validation, verbose=0)
        loss = float(validation_losses(logits, data.labels["validation"]).mean())
        if loss < lowest:
            lowest, best, weights = loss, epoch, model.get_weights()
        mean.swap()
    model.set_weights(weights)
    return lowest, best


class _Mean:
    """Exponential mean of variables over the steps, corrected as Adam's moments are."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._pairs: list[tuple[Any, Any]] = []

    def start(self, variables: Iterable[Any]) -> None:
        """Starts anew; what the variables are now does not count."""
        import tensorflow as tf

        self._pairs = [(tf.Variable(each, trainable=False), each) for each in variables]

    def move(self, step: Any) -> None:
        """Moves the mean behind a step, numbered from 1; traced."""
        import tensorflow as tf

        power = tf.pow(self._decay, tf.cast(step, tf.float32))
        share = (1 - self._decay) / (1 - power)
        for mean, variable in self._pairs:
            mean.assign_add(share * (variable - mean))

    def swap(self) -> None:
        """Exchanges the variables and their means."""
        for mean, variable in self._pairs:
            value = variable.numpy()
            variable.assign(mean)
            mean.assign(value)


def _averaged(mean: _Mean) -> Any:
    """Returns a kind of model that trains no gamma and takes the mean of what it trains."""
    import tf_keras

    class Averaged(tf_keras.Model):  # type: ignore[misc]
        @property
        def trainable_weights(self) -> list[Any]:
            return [each for each in super().trainable_weights if "/gamma" not in each.name]

        def train_step(self, batch: Any) -> Any:
            found = super().train_step(batch)
            mean.move(self.optimizer.iterations)
            return found

    return Averaged


def _unfreeze(base: Any, cut: str) -> None:
    """Makes every layer of the backbone from one on trainable, and no other."""
    base.trainable = True
    for layer in base.layers[: [layer.name for layer in base.layers].index(cut)]:
        layer.trainable = False


def _network(
    options: argparse.Namespace, data: "_Data", changes: list[Any], dropout: float, kind: Any
) -> tuple[Any, Any]:
    """Returns the backbone and the model around it, from pixels 0..255 to logits."""
    import tf_keras

    layers = tf_keras.layers
    shape = (options.input_size, options.input_size, 3)
    base = tf_keras.applications.MobileNetV2(
        input_shape=shape, alpha=options.alpha, include_top=False, weights=str(options.weights)
    )
    image = changed = tf_keras.Input(shape)
    for change in changes:
        changed = change(changed)
    features = base(layers.Rescaling(1 / 128, offset=-1.0)(changed), training=False)
    pooled = layers.Dropout(dropout)(layers.GlobalAveragePooling2D()(features))
    return base, kind(image, layers.Dense(data.classes)(pooled))


class _Data:
    """The decoded pictures of a set as batches of float32 pixels 0..255 and one-hot labels.

    They are read from their files batch by batch, which the system keeps in memory as far as there
    is room.
    """

    def __init__(self, folder: Path, batch: int, seed: int) -> None:
        import numpy as np

        self.labels = {split: np.load(folder / f"{split}.labels.npy") for split in SPLITS}
        self.classes = 1 + max(int(labels.max()) for labels in self.labels.values())
        self.count = len(self.labels["train"])
        self.train = self._batches(folder, "train", batch, seed)
        self.validation = self._batches(folder, "validation", batch, None)
        self.test = self._batches(folder, "test", batch, None)

    def _batches(self, folder: Path, split: str, batch: int, seed: int | None) -> Any:
        """Returns batches, shuffled anew in every epoch if there is a seed."""
        import numpy as np
        import tensorflow as tf

        images, labels = np.load(folder / f"{split}.images.npy", mmap_mode="r"), self.labels[split]
        answers = tf.one_hot(labels, self.classes)

        def read(rows: Any) -> tuple[Any, Any]:
            pixels = tf.numpy_function(lambda at: images[at], [rows], tf.uint8, stateful=False)
            pixels = tf.ensure_shape(pixels, (None, *images.shape[1:]))
            return tf.cast(pixels, tf.float32), tf.gather(answers, rows)

        data = tf.data.Dataset.range(len(labels))
        if seed is not None:
            data = data.shuffle(len(labels), seed=seed)
        return data.batch(batch).map(read, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _accuracy(model: Any, data: _Data) -> Row:
    answers, labels = model.predict(data.test, verbose=0).argmax(1), data.labels["test"]
    right = answers == labels
    recalls = [float(right[labels == label].mean()) for label in sorted(set(labels.tolist()))]
    return {"top1": float(right.mean()), "macro_recall": statistics.fmean(recalls)}


def peak_bytes() -> int:
    """Returns the most memory that this process held at a time."""
    # Not ru_maxrss, which a child inherits from its parent.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def show(run: dict[str, Any]) -> None:
    """Prints the tables of one kept run as Markdown."""
    machine, settings = run["machine"], run["settings"]
    rows = {_place(row): row for row in run["rows"]}
    sets = list(dict.fromkeys(name for name, _, _ in rows))
    seeds = sorted({seed for _, _, seed in rows})
    print(
        f"\nMobileNetV2 {settings['alpha']} at {settings['input_size']} px from "
        f"{settings['weights']}; seeds {', '.join(map(str, seeds))}; {settings['threads']} of "
        f"{machine['cores']} cores, {machine['processor']}; commit {run['commit']}; "
        + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    )

    def by_seed(name: str, way: str, key: str) -> dict[int, float]:
        found = {seed: rows.get((name, way, seed), {}).get(key) for seed in seeds}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean_of_sets(way: str, key: str) -> dict[int, float]:
        """For each seed that every set has; the mean over some sets would compare with nothing."""
        each = [by_seed(name, way, key) for name in sets]
        return {
            seed: statistics.fmean(one[seed] for one in each)
            for seed in seeds
            if all(seed in one for one in each)
        }

    for title, key in (("test top-1", "top1"), ("macro recall", "macro_recall")):
        table = [
            [name, *(_percent(by_seed(name, way, start + key)) for _, way, start in COLUMNS)]
            for name in sets
        ]
        cuts = [
            [
                rows[name, "edgekit", seed]["cut"]
                for seed in seeds
                if (name, "edgekit", seed) in rows
            ]
            for name in sets
        ]
        table = [[*line, ", ".join(cut) or "-"] for line, cut in zip(table, cuts, strict=True)]
        means = (_percent(mean_of_sets(way, start + key)) for _, way, start in COLUMNS)
        table.append(["mean over sets", *means, ""])
        _print_table([f"{title}, %", *(name for name, _, _ in COLUMNS), "unfrozen from"], table)
    table = []
    for name in [*sets, None]:
        find = mean_of_sets if name is None else lambda *of, name=name: by_seed(name, *of)
        table.append([name or "mean over sets", *_seconds(find)])
    titles = ["guide", "plain / guide", "plain", "edgekit", "plain / edgekit", "edgekit's int8"]
    peaks = "peak MB: guide, plain, edgekit"
    _print_table(["seconds of training", *titles, peaks], table)


def _percent(values: dict[int, float]) -> str:
    """Returns mean and sample standard deviation of the seeds' fractions, in percent."""
    if not values:
        return "-"
    percents = [100 * value for value in values.values()]
    spread = f" ± {statistics.stdev(percents):.2f}" if len(percents) > 1 else ""
    return f"{statistics.fmean(percents):.2f}{spread}"


def _seconds(find: Callable[[str, str], dict[int, float]]) -> list[str]:
    """Returns the cells of a line about time and memory; `find` gives a key of a way by seed."""
    taken = {way: find(way, "train_seconds") for way in WAYS}

    def mean(values: dict[int, float], unit: float = 1.0) -> str:
        return f"{statistics.fmean(values.values()) / unit:.1f}" if values else "-"

    def ratio(way: str) -> str:
        both = taken["plain"].keys() & taken[way].keys()
        if not both:
            return "-"
        slow, fast = (sum(taken[each][seed] for seed in both) for each in ("plain", way))
        return f"{slow / fast:.2f}"

    peaks = ", ".join(mean(find(way, "peak_bytes"), 1e6) for way in ("guide", "plain", "edgekit"))
    return [
        mean(taken["guide"]),
        ratio("guide"),
        mean(taken["plain"]),
        mean(taken["edgekit"]),
        ratio("edgekit"),
        mean(find("edgekit", "quantize_seconds")),
        peaks,
    ]


def _print_table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    print("\n| " + " | ".join(titles) + " |\n|" + " --- |" * len(titles))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
