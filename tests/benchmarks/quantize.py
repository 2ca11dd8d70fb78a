"""int8 as edgekit makes it against the usual ways, from the same fine-tuned float models.

    python tests/benchmarks/quantize.py --data clothing --weights FILE --alpha 0.35 --input-size 96
    python tests/benchmarks/quantize.py ... --granularity tensor
    python tests/benchmarks/quantize.py ... --cut block_13_expand
    python tests/benchmarks/quantize.py ... --alpha 1.0 --input-size 224 --seeds 1 --latency
    python tests/benchmarks/quantize.py --time FOLDER

For every seed edgekit fine-tunes a model (kept in --work, so that a second benchmark starts from
it) and exports it; every way then makes int8 of that model:

    float                  edgekit's float32 TFLite file
    post-training          the TFLite converter with a representative dataset, as in its guide
    tfmot                  tfmot's quantize_model with its defaults, the whole network trained for
                           as many epochs as edgekit's, best epoch by validation loss, converted
    onnxruntime            onnxruntime's quantize_static (QDQ, uint8 activations, min-max) of
                           edgekit's float32 ONNX file
    edgekit post-training  edgekit's calibrated candidate
    edgekit qat            edgekit's candidate of quantization-aware training
    edgekit                the one of the two that ships

All answer the test and the validation split. Agreement and SQNR (power of the float logits over
power of the difference) are against the float file. A spread is the sample standard deviation over
the seeds. --cut fine-tunes from one layer on and does not search for the best one. --latency
compares times instead, one thread, in fresh processes that take turns; it trains for one epoch
only, since times do not depend on the weights. It leaves what it timed in the folder `latency` of
the run, which --time times on another processor, without TensorFlow. --statistics is for weights
recovered from a folded model: their BatchNorm has mean 0 and variance 1 whatever goes in, so that
normalizing by the batch, as tfmot trains, makes another, destroyed network of it. tfmot then starts
with the statistics of training pictures, from a network that answers the same.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import edgekit  # noqa: F401 - sets what TensorFlow reads from the environment
from edgekit.network.native_log import load_tensorflow

CALIBRATION_IMAGES = 512
EPOCHS = 6
BATCH = 32
WAYS = (
    "float", "post-training", "tfmot", "onnxruntime", "edgekit post-training", "edgekit qat",
    "edgekit",
)  # fmt: skip
RECIPE = """
seed = {seed}
[data]
path = "{data}"
check_labels = false
[model]
alpha = {alpha}
input_size_px = {size}
weights = "{weights}"
[quantize]
qat_epochs = {epochs}
calibration_images = {images}
granularity = "{granularity}"
"""
FIXED = """
[train]
unfreeze_from = "{cut}"
"""
HASTY = """
[train]
strategy = "head"
head_epochs = 1
min_steps = 0
views = 1
"""
# What --latency times: how it is called, and its file.
TIMED = {
    "tflite float32": "model_float32.tflite",
    "tflite int8": "model_int8_int8_io.tflite",
    "onnx float32": "model_float32.onnx",
    "onnx int8": "model_int8.onnx",
    "onnxruntime's own int8": "onnxruntime_int8.onnx",
    "public int8 tflite": "public_int8.tflite",
}
TIMED_IMAGES = "images.npy"
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Split:
    """Decoded pictures, uint8 (n, h, w, 3), and their labels."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]


def main() -> None:
    """Runs the comparison and prints its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with three split folders")
    parser.add_argument("--weights", type=Path, help="MobileNetV2 no-top file")
    parser.add_argument("--alpha", type=float, default=0.35)
    parser.add_argument("--input-size", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--cut", help="unfreeze from this layer on instead of searching")
    parser.add_argument("--granularity", choices=("channel", "tensor"), default="channel")
    parser.add_argument("--tfmot-rate", type=float, default=1e-4, help="tfmot's learning rate")
    parser.add_argument("--statistics", action="store_true", help="set BatchNorm's before tfmot")
    parser.add_argument("--without", nargs="*", default=[], choices=WAYS, help="ways to leave out")
    parser.add_argument("--work", type=Path, default=Path("quantize-benchmark"))
    parser.add_argument("--latency", action="store_true", help="time files instead")
    parser.add_argument("--public", type=Path, help="another int8 TFLite file to time")
    parser.add_argument("--time", type=Path, metavar="FOLDER", help="what --latency left there")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        show_latency(options.time)
        return
    if not (options.data and options.weights):
        parser.error("--data and --weights say what to train; or name a folder with --time")
    if options.one:
        load_tensorflow()
        print(json.dumps(measure(options, options.one[0], int(options.one[1]))))
    elif options.latency:
        show_latency(make_timed(options))
    else:
        results = {seed: measured(options, seed) for seed in options.seeds}
        show(options, results)


def run_folder(options: argparse.Namespace, seed: int) -> Path:
    """Returns the run folder of a seed; both granularities share its training."""
    training = "-hasty" if options.latency else f"-{options.cut}" if options.cut else ""
    return Path(options.work) / f"{options.alpha}-{options.input_size}px-seed{seed}{training}"


def make_models(options: argparse.Namespace, seed: int) -> Path:
    """Fine-tunes, quantizes and exports with edgekit as far as it is not done; returns the run."""
    folder = run_folder(options, seed)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / f"{options.granularity}.toml"
    recipe.write_text(
        RECIPE.format(
            seed=seed,
            data=options.data.resolve(),
            alpha=options.alpha,
            size=options.input_size,
            weights=options.weights.resolve(),
            epochs=0 if options.latency else EPOCHS,
            images=CALIBRATION_IMAGES,
            granularity=options.granularity,
        )
        + (HASTY if options.latency else FIXED.format(cut=options.cut) if options.cut else "")
    )
    command = [sys.executable, "-m", "edgekit", "run", str(recipe), "--out", str(folder)]
    done = subprocess.run([*command, "--until", "export"], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return folder


def measured(options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Makes one seed's model and every way's int8 of it, each way in a process of its own."""
    make_models(options, seed)
    found = {}
    for way in WAYS:
        if way in options.without:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--one", way, str(seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"  seed {seed}, {way}: {found[way]}", file=sys.stderr, flush=True)
    return found


def show(options: argparse.Namespace, results: dict[int, dict[str, dict[str, float]]]) -> None:
    """Prints mean and spread over the seeds, and every seed's accuracy."""
    print(
        f"MobileNetV2 {options.alpha} at {options.input_size} px, {options.granularity}, "
        f"seeds {', '.join(map(str, results))}; test and validation pictures"
    )
    print(f"{'':23}{'top-1 %':>15}{'- float':>16}{'agrees %':>10}{'SQNR dB':>9}  seed by seed")
    for way in results[next(iter(results))]:
        rows = [found[way] for found in results.values()]
        top1 = 100 * np.array([row["top1"] for row in rows])
        lost = top1 - 100 * np.array([found["float"]["top1"] for found in results.values()])
        agrees = 100 * np.mean([row["agreement"] for row in rows])
        sqnr = np.mean([row["sqnr"] for row in rows])
        print(
            f"{way:23}{top1.mean():8.2f} ±{_spread(top1):5.2f}"
            f"{lost.mean():+9.2f} ±{_spread(lost):5.2f}{agrees:10.1f}{sqnr:9.1f}  "
            + " ".join(f"{value:.2f}" for value in top1)
        )


def make_timed(options: argparse.Namespace) -> Path:
    """Makes the files of `TIMED` and some pictures; returns their folder."""
    seed = options.seeds[0]
    run = make_models(options, seed)
    folder = run / "latency"
    folder.mkdir(exist_ok=True)
    np.save(folder / TIMED_IMAGES, _split(run, "test").images[:8])
    for name in TIMED.values():
        if (run / "artifacts" / name).is_file():
            shutil.copyfile(run / "artifacts" / name, folder / name)
    with tempfile.TemporaryDirectory() as scratch:
        own = _onnxruntime(options, run, seed, Path(scratch))
        shutil.copyfile(own, folder / TIMED["onnxruntime's own int8"])
    if options.public:
        shutil.copyfile(options.public, folder / TIMED["public int8 tflite"])
    return folder


def show_latency(folder: Path) -> None:
    """Prints the median time of one picture for each file, and the ratios that matter."""
    from edgekit.devices.local import processor
    from edgekit.devices.measure import Pace, time_sessions
    from edgekit.devices.protocol import Subject
    from edgekit.records import Preprocess
    from edgekit.runner.onnx_runtime import EXACT, exact_arithmetic
    from edgekit.runtimes.base import RUNTIME_OF_FORMAT
    from edgekit.store import file_digest
    from edgekit.validate.latency import summarize

    images = folder / TIMED_IMAGES
    (_, height, width, _) = np.load(images, mmap_mode="r").shape
    files = {name: folder / file for name, file in TIMED.items() if (folder / file).is_file()}
    subjects = [
        Subject(
            model=path,
            sha256=file_digest(path),
            runtime=RUNTIME_OF_FORMAT["onnx" if path.suffix == ".onnx" else "tflite"],
            images=images,
            preprocess=Preprocess(height_px=height, width_px=width),
        )
        for path in files.values()
    ]
    timings = time_sessions(subjects, sessions=5, pace=Pace(min_queries=100, min_seconds=2))
    # The lowest of the sessions' medians: noise only ever adds time.
    ms = {
        name: min(float(np.median(session.samples_ms)) for session in timing.sessions)
        for name, timing in zip(files, timings, strict=True)
    }
    vnni = "without" if exact_arithmetic() == EXACT else "with"
    print(f"{height} px, one thread, median ms of the best session, on {processor()} {vnni} VNNI")
    about = {
        name: summarize(
            timing.sessions, 50, "", timing.runtime, timing.cores, timing.disturbances
        ).caveat
        for name, timing in zip(files, timings, strict=True)
    }
    for name, value in ms.items():
        print(f"  {name:23}{value:8.3f}  {about[name]}".rstrip())
    pairs = [
        ("tflite int8", "tflite float32"),
        ("onnx int8", "onnx float32"),
        ("onnx int8", "onnxruntime's own int8"),
        ("tflite int8", "public int8 tflite"),
    ]
    for one, other in pairs:
        if other in ms:
            noisy = any("disturbed" in about[name] for name in (one, other))
            print(
                f"  {one} / {other}: {ms[one] / ms[other]:.2f}"
                + (" (disturbed, see above)" if noisy else "")
            )


def _spread(values: npt.NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def measure(options: argparse.Namespace, way: str, seed: int) -> dict[str, float]:
    """Returns top-1, agreement with the float file and SQNR in dB of one way."""
    folder = run_folder(options, seed)
    shown = [_split(folder, name) for name in ("test", "validation")]
    images = np.concatenate([split.images for split in shown])
    labels = np.concatenate([split.labels for split in shown])
    reference = _answers(folder / "artifacts" / "model_float32.tflite", images)
    with tempfile.TemporaryDirectory() as scratch:
        path = _make(options, way, seed, folder, Path(scratch))
        logits = _answers(path, images)
    noise = float(np.square(logits - reference, dtype=np.float64).sum())
    power = float(np.square(reference, dtype=np.float64).sum())
    return {
        "top1": float((logits.argmax(1) == labels).mean()),
        "agreement": float((logits.argmax(1) == reference.argmax(1)).mean()),
        "sqnr": float(10 * np.log10(power / noise)) if noise else 99.0,
    }


def _make(options: argparse.Namespace, way: str, seed: int, folder: Path, scratch: Path) -> Path:
    if way == "float":
        return folder / "artifacts" / "model_float32.tflite"
    if way == "post-training":
        return _converted(options, _keras(options, folder), folder, seed, scratch)
    if way == "tfmot":
        return _tfmot(options, folder, seed, scratch)
    if way == "onnxruntime":
        return _onnxruntime(options, folder, seed, scratch)
    return _edgekit(options, way.removeprefix("edgekit").strip(), folder, scratch)


def _split(folder: Path, name: str) -> Split:
    (data,) = (folder / ".store" / "data").iterdir()
    return Split(
        np.load(data / f"{name}.images.npy", mmap_mode="r"), np.load(data / f"{name}.labels.npy")
    )


def _real(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return images.astype(np.float32) / 128 - 1


def _calibration(folder: Path, seed: int) -> npt.NDArray[np.float32]:
    """Returns the training pictures that edgekit calibrates on, so that all ways see the same."""
    from edgekit.quantize.calibration import representative_rows

    train = _split(folder, "train")
    rows = representative_rows(train.labels, CALIBRATION_IMAGES, seed).calibration
    return _real(train.images[rows])


def _keras(options: argparse.Namespace, folder: Path) -> Any:
    """Returns the fine-tuned float model as the guides have it, BatchNorm in place."""
    from edgekit.network import keras_model

    (trained,) = (folder / ".store" / "train").iterdir()
    with np.load(trained / "weights.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    model = keras_model.build(
        alpha=options.alpha,
        input_size_px=(options.input_size, options.input_size),
        class_count=int(_split(folder, "train").labels.max()) + 1,
        weights=None,
        seed=0,
    )
    keras_model.assign(model, arrays)
    return model


def _converted(
    options: argparse.Namespace, model: Any, folder: Path, seed: int, scratch: Path
) -> Path:
    """Converts a Keras model to int8 with the TFLite converter and its representative dataset."""
    import tensorflow as tf

    def representative() -> Iterator[list[npt.NDArray[np.float32]]]:
        for picture in _calibration(folder, seed):
            yield [picture[None]]

    size = options.input_size
    signature = tf.TensorSpec((1, size, size, 3), tf.float32)
    function = tf.function(lambda image: model(image, training=False))
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function(signature)], model
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if options.granularity == "tensor":
        converter._experimental_disable_per_channel = True
    path = scratch / "model.tflite"
    path.write_bytes(converter.convert())
    return path


def _tfmot(options: argparse.Namespace, folder: Path, seed: int, scratch: Path) -> Path:
    """Trains the whole network with tfmot's defaults and converts it."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    tf_keras.utils.set_random_seed(seed)
    floating = _keras(options, folder)
    if options.statistics:
        _give_statistics(floating, _calibration(folder, seed))
    model = tfmot.quantization.keras.quantize_model(floating)
    model.compile(
        tf_keras.optimizers.Adam(options.tfmot_rate),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    train, validation = (_split(folder, name) for name in ("train", "validation"))

    def batches(split: Split, shuffled: bool) -> Any:
        data = tf.data.Dataset.from_tensor_slices((np.array(split.images), split.labels))
        data = data.shuffle(len(split.labels), seed=seed) if shuffled else data
        return (
            data.batch(BATCH)
            .map(lambda images, labels: (tf.cast(images, tf.float32) / 128 - 1, labels))
            .prefetch(tf.data.AUTOTUNE)
        )

    best = tf_keras.callbacks.ModelCheckpoint(
        str(scratch / "best.weights.h5"), "val_loss", save_best_only=True, save_weights_only=True
    )
    model.fit(
        batches(train, True),
        validation_data=batches(validation, False),
        epochs=EPOCHS,
        callbacks=[best],
        verbose=0,
    )
    model.load_weights(str(scratch / "best.weights.h5"))
    return _converted(options, model, folder, seed, scratch)


def _give_statistics(model: Any, images: npt.NDArray[np.float32]) -> None:
    """Gives every BatchNorm the statistics of its input; what the model answers stays the same."""
    import tf_keras

    layers = [
        layer for layer in model.layers if isinstance(layer, tf_keras.layers.BatchNormalization)
    ]
    inputs = tf_keras.Model(model.input, [layer.input for layer in layers])
    sums = [np.zeros((2, layer.gamma.shape[0])) for layer in layers]
    counts = np.zeros(len(layers))
    for start in range(0, len(images), 16):
        found = inputs(images[start : start + 16], training=False)
        for index, tensor in enumerate(found):
            rows = tensor.numpy().reshape(-1, tensor.shape[-1]).astype(np.float64)
            sums[index] += rows.sum(axis=0), np.square(rows).sum(axis=0)
            counts[index] += len(rows)
    for layer, (total, squares), count in zip(layers, sums, counts, strict=True):
        mean = total / count
        variance = squares / count - mean**2
        scale = layer.gamma.numpy() / np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
        layer.gamma.assign(scale * np.sqrt(variance + layer.epsilon))
        layer.beta.assign(layer.beta.numpy() + scale * (mean - layer.moving_mean.numpy()))
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)


def _onnxruntime(options: argparse.Namespace, folder: Path, seed: int, scratch: Path) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(_calibration(folder, seed))

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            picture = next(self._left, None)
            return None if picture is None else {"image": picture[None]}

    path = scratch / "model.onnx"
    quantize_static(
        folder / "artifacts" / "model_float32.onnx",
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=options.granularity == "channel",
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return path


def _edgekit(options: argparse.Namespace, candidate: str, folder: Path, scratch: Path) -> Path:
    """Writes one candidate as the export stage does, with float32 input and output."""
    from edgekit.export import tflite
    from edgekit.network.graph import mobilenet_v2
    from edgekit.network.ranges import read

    made = _quantized(folder, options.granularity)
    record = json.loads((made / "record.json").read_text())["record"]
    name = {"post-training": "ptq", "qat": "qat"}.get(candidate, record["shipped"])
    with np.load(made / f"{name}.weights.npz") as stored:
        weights = {key: stored[key] for key in stored.files}
    size = (options.input_size, options.input_size)
    path = scratch / "model.tflite"
    path.write_bytes(
        tflite.write(
            mobilenet_v2(options.alpha),
            weights,
            read(made / f"{name}.ranges.json"),
            variant="int8",
            io="float32",
            size_px=size,
        )
    )
    return path


def _quantized(folder: Path, granularity: str) -> Path:
    """Returns the newest stored result of the quantize stage with this granularity.

    An older one may be of another version of edgekit.
    """
    found = [
        (record.stat().st_mtime, record.parent)
        for record in (folder / ".store" / "quantize").glob("*/record.json")
        if json.loads(record.read_text())["key"]["params"]["granularity"] == granularity
    ]
    if not found:
        raise SystemExit(f"{folder} holds no quantized model with granularity {granularity}")
    return max(found)[1]


def _answers(path: Path, images: npt.NDArray[np.uint8]) -> Logits:
    """Returns float32 logits (n, classes) of a file with float32 input and output."""
    if path.suffix == ".onnx":
        import onnxruntime

        from edgekit.runner.onnx_runtime import exact_arithmetic

        settings = onnxruntime.SessionOptions()
        settings.add_session_config_entry(*exact_arithmetic())
        session = onnxruntime.InferenceSession(path, settings)
        return np.concatenate([session.run(None, {"image": _real(i[None])})[0] for i in images])
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=2)
    interpreter.allocate_tensors()
    entering = interpreter.get_input_details()[0]["index"]
    leaving = interpreter.get_output_details()[0]["index"]
    answers = []
    for picture in images:
        interpreter.set_tensor(entering, _real(picture[None]))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(leaving))
    return np.concatenate(answers)


if __name__ == "__main__":
    main()
