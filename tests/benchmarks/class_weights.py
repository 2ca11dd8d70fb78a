"""What class weights do for small classes: sets made 20:1, balanced recall by power of the weights.

    python tests/benchmarks/class_weights.py --data DIR --weights FILE --seeds 1 2 3 4 5 \
        --powers 0 0.5 1 --choose
    python tests/benchmarks/class_weights.py --data DIR --weights FILE --sets clothing \
        --seeds 1 2 3 4 5 --powers 0 0.5

DIR holds data sets as NAME/{train,validation,test}/CLASS/*.jpg. The largest class keeps its
training pictures, the smallest a twentieth of that, those between fall along a geometric series
(Cui et al., arXiv:1901.05555, section 5.1), fewer where a class has fewer; which pictures, follows
from the seed. A picture of a class of n weighs n ** -power; 0 is "none".

With --choose the head alone is trained, on what the frozen backbone makes of each picture: logistic
regression with smoothed labels and the logarithms of the weights taken off its logits, as training
has it; judged by the validation split, and test pictures are not looked at. Beside it stands the
same with the weights as factors of the losses. Without --choose, `edgekit run` trains as far as the
recipe has it, and the float32 file is judged by the test split.

Printed are macro recall and top-1 in percent: mean and sample standard deviation over the seeds,
and the mean of the differences from the first power, paired by seed.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, TypeVar

from accuracy import ENDED, RECIPE, find_sets

if TYPE_CHECKING:
    import numpy as np

    Floats = np.typing.NDArray[np.float64]
Rows = dict[str, list[tuple[float, float]]]
T = TypeVar("T")

MORE = """
[quantize]
qat_epochs = 0
[train]
{train}
class_weights = {weights}
"""
RATIO = 20


def main() -> None:
    """Measures every set, power and seed, a line each, then prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, nargs="+")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--powers", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--train", default="", help="lines for the recipe's [train]")
    parser.add_argument("--alpha", type=float, default=0.35)
    parser.add_argument("--input-size", type=int, default=96)
    options = parser.parse_args()
    found = {name: path for name, path in find_sets(options.data).items()
             if options.sets is None or name in options.sets}  # fmt: skip
    for name, data in found.items():
        if options.choose:
            show(name, choose(options, data))
            continue
        rows: Rows = {}
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as scratch:
                counts = lay_out(data, Path(scratch) / "pictures", seed)
                for power in options.powers:
                    recall, top1 = measure(options, Path(scratch), counts, power, seed)
                    rows.setdefault(f"{power:g}", []).append((recall, top1))
                    print(f"{name} seed {seed} power {power:g}: macro recall {recall:.2%}, "
                          f"top-1 {top1:.2%}", flush=True)  # fmt: skip
        show(name, rows)


def thinned(of_class: Mapping[str, Sequence[T]], seed: int) -> dict[str, list[T]]:
    """Returns what is kept of each class."""
    draw = random.Random(seed)
    ranked = sorted(of_class, key=lambda name: -len(of_class[name]))
    most, kept = len(of_class[ranked[0]]), {}
    for rank, name in enumerate(ranked):
        shuffled = draw.sample(of_class[name], len(of_class[name]))
        kept[name] = shuffled[: max(1, round(most * RATIO ** (-rank / (len(ranked) - 1))))]
    return kept


def lay_out(data: Path, place: Path, seed: int) -> dict[str, int]:
    """Copies a set made 20:1 into a folder and returns the counts of its classes."""
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    of_class = {name: sorted((data / "train" / name).iterdir()) for name in classes}
    kept = thinned(of_class, seed)
    for name in classes:
        for split in ("validation", "test"):
            _copy(sorted((data / split / name).iterdir()), place / split / name)
        _copy(kept[name], place / "train" / name)
    return {name: len(files) for name, files in kept.items()}


def _copy(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())


def choose(options: argparse.Namespace, data: Path) -> Rows:
    """Trains heads on frozen features; returns macro recall and top-1 on the validation split."""
    import numpy as np

    x, y = features(options, data / "train")
    held_out, truth = features(options, data / "validation")
    of_class = {str(label): np.flatnonzero(y == label).tolist() for label in range(y.max() + 1)}
    rows: Rows = {}
    for seed in options.seeds:
        kept = thinned(of_class, seed)
        counts = np.array([len(kept[name]) for name in of_class])
        used = np.concatenate([kept[name] for name in of_class])
        for power in options.powers:
            weights = counts.astype(float) ** -power
            ways = {f"{power:g}": (1.0, np.log(weights)), f"{power:g}, factors": (weights, 0.0)}
            for way, (factors, shift) in ways.items():
                head = logistic(x[used], y[used], np.ones(len(counts)) * factors, shift, seed)
                right = (held_out @ head).argmax(1) == truth
                recalls = [right[truth == label].mean() for label in range(len(counts))]
                rows.setdefault(way, []).append((float(np.mean(recalls)), float(right.mean())))
    return rows


def logistic(
    x: "Floats", y: "np.typing.NDArray[np.int64]", factors: "Floats", shift: Any, seed: int
) -> "Floats":
    """Returns the matrix from features to logits that has the lowest loss."""
    import numpy as np
    from scipy.optimize import minimize

    from edgekit.recipe import TrainSpec

    shape = (x.shape[1], len(factors))
    each = (factors[y] / factors[y].sum())[:, None]
    smoothing = TrainSpec().label_smoothing
    targets = np.eye(shape[1])[y] * (1 - smoothing) + smoothing / shape[1]

    def loss(flat: "Floats") -> "tuple[float, Floats]":
        logits = x @ flat.reshape(shape) - shift
        logits -= logits.max(1, keepdims=True)
        log_odds = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        slope = x.T @ (each * (np.exp(log_odds) - targets))
        return float(-(each * targets * log_odds).sum()), slope.ravel()

    start = np.random.default_rng(seed).normal(0, 0.01, shape[0] * shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 150})
    head: Floats = found.x.reshape(shape)
    return head


def features(
    options: argparse.Namespace, folder: Path
) -> "tuple[Floats, np.typing.NDArray[np.int64]]":
    """Returns what the frozen backbone makes of each picture of a split, and 1; and labels."""
    import numpy as np
    import tf_keras
    from PIL import Image

    size = options.input_size
    backbone = tf_keras.applications.MobileNetV2(
        input_shape=(size, size, 3), alpha=options.alpha, include_top=False, pooling="avg",
        weights=str(options.weights),
    )  # fmt: skip
    pictures, labels = [], []
    for label, place in enumerate(sorted(folder.iterdir())):
        for file in sorted(place.iterdir()):
            with Image.open(file) as image:
                fitted = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
                pictures.append(np.asarray(fitted, np.float32) / 128 - 1)
            labels.append(label)
    found = backbone.predict(np.stack(pictures), verbose=0).astype(float)
    return np.hstack([found, np.ones((len(found), 1))]), np.array(labels)


def measure(
    options: argparse.Namespace, scratch: Path, counts: dict[str, int], power: float, seed: int
) -> tuple[float, float]:
    """Runs edgekit as a user does; returns macro recall and top-1 of the float32 file."""
    from edgekit.records import RunReport

    weights = '"none"'
    if power:
        pairs = (f"{json.dumps(name)} = {count**-power:.6f}" for name, count in counts.items())
        weights = f"{{ {', '.join(pairs)} }}"
    recipe, out = scratch / f"{power}.toml", scratch / f"run-{power}"
    text = RECIPE.format(
        seed=seed,
        data=json.dumps(str(scratch / "pictures")),
        alpha=options.alpha,
        size=options.input_size,
        weights=json.dumps(str(options.weights.resolve())),
    )
    text = text.replace("[model]", "min_images_per_class = 1\n[model]")
    recipe.write_text(text + MORE.format(train=options.train, weights=weights))
    command = [sys.executable, "-P", "-m", "edgekit", "run", str(recipe), "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode not in ENDED:
        raise SystemExit(done.stdout[-2000:])
    report = RunReport.model_validate_json((out / "report.json").read_bytes())
    digests = {each.path: each.sha256 for each in report.export.artifacts}
    accuracy = report.validation.on_one_thread[digests["model_float32.tflite"]].accuracy
    return accuracy.macro_recall, accuracy.top1


def show(name: str, rows: Rows) -> None:
    """Prints the table of a set."""
    first = next(iter(rows.values()))
    print(f"\n| {name}: power | macro recall | against the first | top-1 |\n|---|---|---|---|")
    for power, found in rows.items():
        recalls, top1s = ([100 * row[i] for row in found] for i in (0, 1))
        apart = fmean(100 * (a[0] - b[0]) for a, b in zip(found, first, strict=True))
        print(f"| {power} | {_spread(recalls)} | {apart:+.1f} | {_spread(top1s)} |", flush=True)
    print()


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}"


if __name__ == "__main__":
    main()
