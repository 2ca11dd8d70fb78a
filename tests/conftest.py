"""One tiny network, trained, quantized and exported once for all tests; and a disk that fills up.

TensorFlow is imported inside the fixtures only: tests of the lower layers run without it.
"""

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_network import (
    ALPHA,
    CLASSES,
    SIZE_PX,
    Arrays,
    Exported,
    Network,
    QuantizeAsked,
    Quantized,
    TrainAsked,
    Trained,
    Untyped,
    arrays_in,
    checkpoints,
    coloured,
    shelf,
    tune,
)

from edgekit.recipe import AugmentSpec, ModelSpec, QuantizeSpec, TrainSpec
from edgekit.records import Preprocess

PROVES = "proves"


class Support:
    """Gathers what each test marked `proves(what, how)` came to, for the README's table.

    With `--support-table FILE` the table between the file's `support` marks is written anew from
    the tests that ran; what was skipped or failed is said there, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Of each test, since those of several processes come in any order.
        self.outcomes: dict[str, tuple[tuple[str, ...], str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            for name, row in report.user_properties:
                if name == PROVES:
                    self.outcomes[report.nodeid] = (tuple(row), report.outcome)

    def pytest_sessionfinish(self) -> None:
        lines = ["| where files are judged | proven by | tests |", "| --- | --- | --- |"]
        rows: dict[tuple[str, ...], Counter[str]] = {}
        for _, (row, outcome) in sorted(self.outcomes.items()):
            rows.setdefault(row, Counter())[outcome] += 1
        for (what, how), counts in rows.items():
            ran = ", ".join(
                f"{counts[o]} {o}" for o in ("passed", "failed", "skipped") if counts[o]
            )
            lines.append(f"| {what} | {how} | {ran} |")
        start, end = "<!-- support -->\n", "<!-- /support -->"
        text = self.path.read_text()
        head, _, rest = text.partition(start)
        self.path.write_text(head + start + "\n".join(lines) + "\n" + end + rest.partition(end)[2])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--support-table", metavar="FILE", help=Support.__doc__)


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background jobs ignore Ctrl-C, and so would every program that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Under nohup a hangup is ignored, by the programs that stand for a phone's, too. Programs that
    # are started do not inherit a handler.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    config.addinivalue_line("markers", f"{PROVES}(what, how): a row of the README's support table")
    config.addinivalue_line("markers", "slow: seconds to a minute; only with -m slow, as in CI")
    path = config.getoption("--support-table")
    if path and not hasattr(config, "workerinput"):  # one process writes it, not every worker
        config.pluginmanager.register(Support(Path(path)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker(PROVES)
        if mark is not None:
            # Reports carry them from the process that runs the test to the one that counts.
            item.user_properties.append((PROVES, list(mark.args)))


@pytest.fixture(scope="session")
def contract() -> Preprocess:
    return Preprocess(height_px=SIZE_PX, width_px=SIZE_PX)


@pytest.fixture(scope="session")
def network() -> Network:
    """Returns a source of Keras networks (alpha, size) that are random but healthy.

    Random kernels with a fresh BatchNorm let the signal die within a few blocks. Here scales and
    shifts are random too, and the moving statistics are those of one batch of noise, so that
    every layer has activations worth comparing. Most of them lie inside 0..6: a random network that
    saturates a lot is chaotic and turns one rounding into another answer. A network that is asked
    for again comes with its first weights again.
    """
    pytest.importorskip("tensorflow")
    from edgekit.network import keras_model

    built: dict[tuple[float, int], tuple[Untyped, Arrays]] = {}

    def make(alpha: float, size_px: int) -> Untyped:
        if (alpha, size_px) not in built:
            model = keras_model.build(
                alpha=alpha,
                input_size_px=(size_px, size_px),
                class_count=len(CLASSES),
                weights=None,
                seed=3,
            )
            _liven(model, size_px)
            built[alpha, size_px] = model, keras_model.arrays_of(model)
        model, arrays = built[alpha, size_px]
        keras_model.assign(model, arrays)
        return model

    return make


def _liven(model: Untyped, size_px: int) -> None:
    random = np.random.default_rng(11)
    kernels = [weight for weight in model.weights if "kernel" in weight.name]
    for kernel in kernels:
        shape = tuple(kernel.shape)
        taps = shape[0] * shape[1] * (1 if "depthwise" in kernel.name else shape[2])
        kernel.assign(random.normal(0, (2 / taps) ** 0.5, shape))
    normalizations = [layer for layer in model.layers if hasattr(layer, "moving_mean")]
    for layer in normalizations:
        layer.gamma.assign(random.uniform(0.4, 1.0, layer.gamma.shape))
        layer.beta.assign(random.normal(1.0, 0.5, layer.beta.shape))
        layer.momentum = 0.0
    model(random.uniform(-1, 1, (48, size_px, size_px, 3)).astype(np.float32), training=True)
    for layer in normalizations:
        layer.momentum = 0.999


@pytest.fixture(scope="session")
def starting_weights(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns an `.npz` of backbone weights for `model.weights`."""
    from edgekit.network import keras_model

    path = tmp_path_factory.mktemp("weights") / "backbone.npz"
    arrays = keras_model.arrays_of(network(ALPHA, SIZE_PX))
    np.savez(path, allow_pickle=False, **arrays)
    return path


@pytest.fixture(scope="session")
def pictures(contract: Preprocess, tmp_path_factory: pytest.TempPathFactory) -> Untyped:
    """Returns (train, validation) as the data stage leaves them: memory-mapped."""
    pytest.importorskip("tensorflow")
    from edgekit.fitting.pictures import Pictures

    folder = tmp_path_factory.mktemp("pictures")
    for split, count, seed in (("train", 48, 1), ("validation", 24, 2)):
        images, labels = coloured(count, seed)
        np.save(folder / f"{split}.images.npy", images)
        np.save(folder / f"{split}.labels.npy", labels)
    return (
        Pictures.load(folder, "train", contract),
        Pictures.load(folder, "validation", contract),
    )


@pytest.fixture(scope="session")
def train_plan(starting_weights: Path) -> TrainAsked:
    """Returns a plan of two short phases: the head, then all from block_16_project on."""
    return TrainAsked(
        TrainSpec(
            batch_size=16,
            head_epochs=2,
            head_learning_rate=1e-2,
            trial_epochs=2,
            epochs=3,
            min_steps=0,
            learning_rate=1e-3,
            warmup_steps=2,
            granularity="block",
            unfreeze_from="block_16_project",
            patience=1,
            augment=AugmentSpec(flip=True, shift=0.05, zoom=0.05, brightness=0.05, contrast=0.05),
            views=2,
        ),
        ModelSpec(alpha=ALPHA, dropout=0.1),
        weights=arrays_in(starting_weights),
        seed=5,
    )


@pytest.fixture(scope="session")
def fine_tune(
    pictures: Untyped, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Untyped], Trained]:
    """Returns a function that runs the train stage with a plan."""

    def run(plan: TrainAsked) -> Trained:
        return tune(plan, pictures, tmp_path_factory.mktemp("train"))

    return run


@pytest.fixture(scope="session")
def trained(fine_tune: Callable[[Untyped], Trained], train_plan: TrainAsked) -> Trained:
    return fine_tune(train_plan)


@pytest.fixture(scope="session")
def quantize_plan() -> QuantizeAsked:
    return QuantizeAsked(
        QuantizeSpec(qat_epochs=2, qat_learning_rate=3e-4, calibration_images=36),
        TrainSpec(batch_size=16, min_steps=0, augment=AugmentSpec(enabled=False), views=1),
        seed=5,
    )


@pytest.fixture(scope="session")
def quantize_it(
    trained: Trained, pictures: Untyped, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Quantized]:
    """Returns a function that runs the quantize stage with a plan.

    It takes the trained network and its pictures, unless it is given others.
    """
    from edgekit.quantize.candidates import quantize_model

    def run(plan: QuantizeAsked, of: Trained = trained, splits: Untyped = pictures) -> Quantized:
        folder = tmp_path_factory.mktemp("quantize")
        record = quantize_model(
            of.record,
            of.arrays,
            *splits,
            plan.spec,
            plan.training,
            folder,
            seed=plan.seed,
            checkpoints=checkpoints(folder / "store"),
            shelf=shelf(folder / "store"),
            say=lambda _line: None,
            progress=lambda _what, _done, _total: None,
        )
        return Quantized(folder, record)

    return run


@pytest.fixture(scope="session")
def quantized(
    quantize_it: Callable[[Untyped], Quantized], quantize_plan: QuantizeAsked
) -> Quantized:
    return quantize_it(quantize_plan)


@pytest.fixture(scope="session")
def sources(trained: Trained, quantized: Quantized) -> Untyped:
    """Returns what the files are made from; the quantization-aware candidate ships."""
    from edgekit.export.files import Int8, Sources

    return Sources(
        arrays=trained.arrays,
        float_weights=arrays_in(quantized.folder / "float.weights.npz"),
        candidates={
            name: Int8(quantized.weights(name), quantized.table(name)) for name in ("ptq", "qat")
        },
        shipped="qat",
    )


@pytest.fixture(scope="session")
def exported(
    trained: Trained,
    sources: Untyped,
    pictures: Untyped,
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    """Returns every standard file, int8 files with other ends and any batch, int16x8 and .ort."""
    from edgekit.export.files import STANDARD, Request, export_files

    folder = tmp_path_factory.mktemp("export")
    more = (
        Request("tflite", "int8", "uint8"),
        Request("tflite", "int8", "float32"),
        Request("onnx", "int8", "float32", batch="any"),
        Request("tflite", "int16x8", "float32"),
        Request("ort", "int8", "float32"),
    )
    record = export_files(
        trained.record,
        sources,
        *pictures,
        CLASSES,
        (*STANDARD, *more, *sources.comparisons),
        folder,
        progress=lambda _what, _done, _total: None,
    )
    return Exported(folder, record)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mounts a file system of 1 MiB; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if mount is None or unmount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "edgekit-test", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not let the test mount a small disk")
    yield place
    subprocess.run([unmount, "-l", str(place)], check=True)  # an error may still map a file there
