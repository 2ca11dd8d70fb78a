"""The order of the stages; nothing else knows it. Heavy stages are imported when they run."""

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

import edgekit
from edgekit.errors import SpecError
from edgekit.network.graph import check_names, mobilenet_v2
from edgekit.network.native_log import load_tensorflow
from edgekit.network.pretrained import weight_file
from edgekit.recipe import Recipe, TrainSpec
from edgekit.records import (
    DatasetRecord,
    ExportRecord,
    FloatModelRecord,
    Preprocess,
    QuantizedModelRecord,
    Record,
    RunReport,
    StageTime,
    Status,
    ValidationRecord,
)
from edgekit.report import JSON_NAME, MARKDOWN_NAME, describes, write_report
from edgekit.store import StageKey, Store, Stored, canonical, file_digest, tool_version
from edgekit.target import Target, refuse_float_layers, refuse_granularity, refuse_same_names

R = TypeVar("R", bound=Record)
Stage = Literal["data", "train", "quantize", "export", "validate"]
STAGES: tuple[Stage, ...] = ("data", "train", "quantize", "export", "validate")
PACKAGES = (
    "tensorflow",
    "tf_keras",
    "tensorflow-model-optimization",
    "onnx",
    "tf2onnx",
    "onnxruntime",
    "ai-edge-litert",
    "opencv-python-headless",
    "numpy",
    "pillow",
)
_CODE = {"data": 2, "train": 9, "quantize": 15, "export": 7, "validate": 4}
ARTIFACTS = "artifacts"
ARTIFACTS_RECORD = "artifacts.json"


@dataclass(frozen=True)
class Telling:
    """How a run tells what it does.

    Args:
        say: Called with one line worth keeping.
        progress: Called with (what, done, in all) while something long runs.
    """

    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]


@dataclass
class _Run:
    """What one run carries from stage to stage."""

    recipe: Recipe
    store: Store
    telling: Telling
    times: list[StageTime] = field(default_factory=list)
    peak_memory_bytes: int = 0

    def stage(
        self,
        stage: Stage,
        record_type: type[R],
        make: Callable[[Path], R],
        *,
        params: dict[str, Any],
        inputs: dict[str, str],
        tools: tuple[str, ...],
        still_good: Callable[[R], bool] = lambda _: True,
    ) -> Stored[R]:
        """Reuses or makes one stage, tells which, and remembers what it took."""
        key = StageKey(stage, _CODE[stage], params, inputs, tools, self.recipe.seed)
        stored = self.store.build(key, record_type, make, still_good)
        cost = stored.cost
        self.times.append(StageTime(stage=stage, seconds=cost.seconds, reused=stored.reused))
        self.peak_memory_bytes = max(self.peak_memory_bytes, cost.peak_memory_bytes)
        done = "unchanged, reused" if stored.reused else f"done in {cost.seconds:.1f} s"
        self.telling.say(f"{stage}: {done}")
        return stored


def run(
    recipe: Recipe,
    targets: tuple[Target, ...],
    out: Path,
    *,
    command: tuple[str, ...],
    until: Stage,
    telling: Telling,
) -> RunReport | None:
    """Runs the stages in order, reusing every stage whose inputs did not change.

    Args:
        recipe: What the user asks for, with absolute paths.
        targets: Its targets, loaded.
        out: Run folder; receives `artifacts/`, `report.json`, `report.md` and `.store/`.
        command: The command line, for the report.
        until: Last stage to run.
        telling: Where lines and progress go.

    Returns:
        The report, or None when `until` stops before the last stage.

    Raises:
        EdgekitError: As the stages do.
    """
    if out.resolve().is_relative_to(recipe.data.path.resolve()):
        raise SpecError(
            f"the run folder {out} lies inside the data folder {recipe.data.path}",
            "a run folder elsewhere, or its files would be taken for pictures",
            "give another folder with --out",
        )
    asked = recipe.quantize
    check_names(mobilenet_v2(recipe.model.alpha), asked.keep_float, "quantize.keep_float")
    options = [f"quantize.{name}" for name, given in
               (("keep_float", bool(asked.keep_float)), ("max_drop", asked.max_drop is not None))
               if given]  # fmt: skip
    refuse_float_layers(options, targets)
    refuse_granularity(asked.granularity, targets)
    refuse_same_names(targets)
    devices: dict[str, str] = {}
    if until == "validate":
        # A cable left out is found now and not after training.
        from edgekit.devices.transports import reached

        devices = reached(targets, telling.say)
    store = Store(out / ".store", telling.say)
    with store.locked():
        state = _Run(recipe, store, telling)
        if recipe.model.weights != "imagenet":
            # Found missing now, not after the pictures were decoded; a download can wait.
            weight_file(recipe.model.weights, recipe.model.alpha, recipe.model.input_size_px)
        notes = _notes_before(recipe)
        dataset = _data(state)
        notes += _notes_after_data(dataset.record, targets)
        for note in notes:
            telling.say(f"note: {note}")
        if until == "data":
            return None
        float_model = _train(state, dataset)
        if until == "train":
            return None
        quantized = _quantize(state, dataset, float_model)
        if until == "quantize":
            return None
        exported = _export(state, dataset, float_model, quantized, targets)
        publish(exported, out)
        if until == "export":
            return None
        validation = _validate(state, dataset, exported, targets, devices)
        return _report(
            state, out, command, notes, dataset, float_model, quantized, exported, validation
        )


def _preprocess(recipe: Recipe) -> Preprocess:
    size = recipe.model.input_size_px
    return Preprocess(
        height_px=size, width_px=size, resize=recipe.data.resize, crop=recipe.data.crop
    )


def _data(state: _Run) -> Stored[DatasetRecord]:
    from edgekit.data.decode import decode
    from edgekit.data.scan import scan

    spec, contract = state.recipe.data, _preprocess(state.recipe)
    scanned = scan(spec.path, lambda done, total: state.telling.progress("reading", done, total))
    limits: dict[str, Any] = {
        "validation_fraction": spec.validation_fraction,
        "test_fraction": spec.test_fraction,
        "min_images_per_class": spec.min_images_per_class,
        "max_bad_fraction": spec.max_bad_fraction,
    }

    def make(folder: Path) -> DatasetRecord:
        started = time.monotonic()

        def decoded(done: int, total: int) -> None:
            rate = done / (time.monotonic() - started)
            state.telling.progress(f"decoding: {rate:.0f} images/s", done, total)

        return decode(
            scanned,
            contract,
            folder,
            **limits,
            seed=state.recipe.seed,
            progress=decoded,
        )

    stored = state.stage(
        "data",
        DatasetRecord,
        make,
        params={**limits, "preprocess": contract.model_dump(mode="json")},
        inputs={"files": scanned.digest},
        tools=("pillow", "numpy"),
    )
    record = stored.record
    sizes = ", ".join(f"{split.count} {name}" for name, split in record.splits.items())
    rate = "" if stored.reused else f", decoded at {record.images_per_second:.0f} images/s"
    state.telling.say(f"data: {len(record.class_names)} classes, {sizes}{rate}")
    for item in record.skipped[:10]:
        state.telling.say(f"skipped {item.path}: {item.reason}")
    if len(record.skipped) > 10:
        state.telling.say(f"skipped {len(record.skipped) - 10} more files; report.json lists them")
    return stored


def _train(state: _Run, dataset: Stored[DatasetRecord]) -> Stored[FloatModelRecord]:
    recipe, spec = state.recipe, state.recipe.train
    weights = weight_file(recipe.model.weights, recipe.model.alpha, recipe.model.input_size_px)
    # Where activations are stored changes no result.
    params = {
        "model": recipe.model.model_dump(mode="json", exclude={"weights"}),
        "train": spec.model_dump(mode="json", exclude={"activations_budget_bytes"}),
    }
    weights_sha256 = file_digest(weights) if weights else None
    inputs = {"data": dataset.digest, "weights": weights_sha256 or "none"}
    tools = ("tensorflow", "tf_keras", "ai-edge-litert", "opencv-python-headless", "numpy")

    def make(folder: Path) -> FloatModelRecord:
        load_tensorflow()
        from edgekit.fitting.pictures import Pictures
        from edgekit.train.unfreezing import Keeping, Plan, train

        contract = dataset.record.preprocess
        plan = Plan(
            alpha=recipe.model.alpha,
            dropout=recipe.model.dropout,
            weights=str(weights or "none"),
            batch_size=spec.batch_size,
            head_epochs=spec.head_epochs,
            head_learning_rate=spec.head_learning_rate,
            trial_epochs=spec.trial_epochs,
            epochs=spec.epochs,
            min_steps=spec.min_steps,
            learning_rate=spec.learning_rate,
            warmup_steps=spec.warmup_steps,
            granularity=spec.granularity,
            strategy=spec.strategy,
            unfreeze_from=spec.unfreeze_from,
            unfreeze_until=spec.unfreeze_until,
            patience=spec.patience,
            label_smoothing=spec.label_smoothing,
            augmentation=_augmentation(spec),
            views=spec.views,
            seed=recipe.seed,
        )
        key = StageKey("train", _CODE["train"], params, inputs, tools, recipe.seed)

        trained = train(
            Pictures.load(dataset.folder, "train", contract),
            Pictures.load(dataset.folder, "validation", contract),
            len(dataset.record.class_names),
            plan,
            folder,
            keeping=Keeping(state.store, key, _shelf(state, dataset)),
            say=state.telling.say,
            progress=state.telling.progress,
        )
        return trained.model_copy(update={"weights_sha256": weights_sha256})

    stored = state.stage("train", FloatModelRecord, make, params=params, inputs=inputs, tools=tools)
    state.store.discard("train-*")  # its phases and epochs
    if not stored.reused:  # else they may be those of an interrupted quantization
        state.store.discard("activations-*")
    return stored


def _shelf(state: _Run, dataset: Stored[DatasetRecord]) -> Any:
    from edgekit.prefix.activations import Shelf

    return Shelf(
        state.store,
        dataset.digest,
        state.recipe.train.activations_budget_bytes,
        state.telling.say,
        state.telling.progress,
    )


def _augmentation(spec: TrainSpec) -> Any:
    from edgekit.fitting.augment import Augmentation

    if not spec.augment.enabled:
        return None
    return Augmentation(**spec.augment.model_dump(exclude={"enabled"}))


def _quantize(
    state: _Run, dataset: Stored[DatasetRecord], float_model: Stored[FloatModelRecord]
) -> Stored[QuantizedModelRecord]:
    recipe, spec = state.recipe, state.recipe.quantize
    shared = recipe.train.model_dump(mode="json", include={"batch_size", "augment", "views"})
    # In proportion to those of the final training.
    least_steps = recipe.train.min_steps * spec.qat_epochs / recipe.train.epochs
    params = {**spec.model_dump(mode="json"), **shared, "qat_min_steps": least_steps}
    inputs = {"data": dataset.digest, "train": float_model.digest}
    tools = (
        "tensorflow",
        "tf_keras",
        "tensorflow-model-optimization",
        "ai-edge-litert",
        "opencv-python-headless",
        "numpy",
    )

    def make(folder: Path) -> QuantizedModelRecord:
        load_tensorflow()
        from edgekit.fitting.checkpoints import Checkpoints
        from edgekit.fitting.pictures import Pictures
        from edgekit.quantize.candidates import Plan, quantize_model

        contract = dataset.record.preprocess
        plan = Plan(
            qat_epochs=spec.qat_epochs,
            qat_min_steps=least_steps,
            qat_learning_rate=spec.qat_learning_rate,
            qat_patience=spec.qat_patience,
            temperature=spec.temperature,
            calibration_images=spec.calibration_images,
            calibration=None if spec.calibration == "auto" else spec.calibration,
            granularity=spec.granularity,
            keep_float=spec.keep_float,
            max_drop=spec.max_drop,
            batch_size=recipe.train.batch_size,
            augmentation=_augmentation(recipe.train),
            views=recipe.train.views,
            seed=recipe.seed,
        )

        key = StageKey("quantize-epoch", _CODE["quantize"], params, inputs, tools, recipe.seed)

        return quantize_model(
            float_model.record,
            _arrays(float_model.folder / "weights.npz"),
            Pictures.load(dataset.folder, "train", contract),
            Pictures.load(dataset.folder, "validation", contract),
            plan,
            folder,
            checkpoints=Checkpoints(state.store, key),
            shelf=_shelf(state, dataset),
            say=state.telling.say,
            progress=state.telling.progress,
        )

    stored = state.stage(
        "quantize", QuantizedModelRecord, make, params=params, inputs=inputs, tools=tools
    )
    for stage in ("quantize-*", "activations-*"):
        state.store.discard(stage)
    state.telling.say(f"int8: {stored.record.reason}")
    if stored.record.kept_because:
        state.telling.say(f"float32 layers: {stored.record.kept_because}")
    return stored


def _export(
    state: _Run,
    dataset: Stored[DatasetRecord],
    float_model: Stored[FloatModelRecord],
    quantized: Stored[QuantizedModelRecord],
    targets: tuple[Target, ...],
) -> Stored[ExportRecord]:
    specs = (target.artifact for target in targets)
    asked = sorted({(spec.format, spec.variant, spec.io, spec.batch) for spec in specs})

    def make(folder: Path) -> ExportRecord:
        load_tensorflow()
        from edgekit.export.files import STANDARD, Int8, Request, Sources, export_files
        from edgekit.fitting.pictures import Pictures
        from edgekit.network.ranges import read

        sources = Sources(
            arrays=_arrays(float_model.folder / "weights.npz"),
            float_weights=_arrays(quantized.folder / "float.weights.npz"),
            candidates={
                candidate.name: Int8(
                    _arrays(quantized.folder / f"{candidate.name}.weights.npz"),
                    read(quantized.folder / f"{candidate.name}.ranges.json"),
                )
                for candidate in quantized.record.candidates
            },
            shipped=quantized.record.shipped,
        )
        wanted = (Request(file, variant, io, batch=batch) for file, variant, io, batch in asked)
        requests = dict.fromkeys((*STANDARD, *wanted, *sources.comparisons))
        contract = dataset.record.preprocess
        return export_files(
            float_model.record,
            sources,
            Pictures.load(dataset.folder, "train", contract),
            Pictures.load(dataset.folder, "validation", contract),
            dataset.record.class_names,
            tuple(requests),
            folder,
            progress=lambda what, done, total: state.telling.progress(
                f"exporting {what}", done, total
            ),
        )

    return state.stage(
        "export",
        ExportRecord,
        make,
        params={"files": asked, "class_names": dataset.record.class_names},
        inputs={"data": dataset.digest, "quantize": quantized.digest},
        tools=("tensorflow", "onnx", "tf2onnx", "ai-edge-litert", "onnxruntime"),
    )


def _validate(
    state: _Run,
    dataset: Stored[DatasetRecord],
    exported: Stored[ExportRecord],
    targets: tuple[Target, ...],
    devices: dict[str, str],
) -> Stored[ValidationRecord]:
    from edgekit.devices.local import this_machine
    from edgekit.devices.measure import Pace
    from edgekit.validate.judging import judge
    from edgekit.validate.on_device import Measuring

    spec = state.recipe.validation

    def make(_folder: Path) -> ValidationRecord:
        return judge(
            exported.record,
            exported.folder,
            dataset.folder / "test.images.npy",
            np.load(dataset.folder / "test.labels.npy"),
            targets,
            Measuring(
                spec.sessions,
                Pace(spec.warmup_seconds, spec.min_queries, spec.min_seconds),
                spec.session_timeout_seconds,
            ),
            names=json.loads((dataset.folder / "test.files.json").read_text()),
            say=state.telling.say,
            progress=state.telling.progress,
        )

    return state.stage(
        "validate",
        ValidationRecord,
        make,
        params={
            "targets": [target.model_dump(mode="json") for target in targets],
            "measuring": spec.model_dump(mode="json"),
            "machine": this_machine(),
            "devices": devices,
        },
        inputs={"data": dataset.digest, "export": exported.digest},
        tools=("ai-edge-litert", "onnxruntime", "tflite-micro", "ethos-u-vela"),
        still_good=_latency_is_decided,
    )


def _latency_is_decided(record: ValidationRecord) -> bool:
    """Returns whether a stored verdict may stand: a noisy latency is measured again instead."""
    return not any(
        check.name == "latency" and check.status == Status.INCONCLUSIVE
        for verdict in record.verdicts
        for check in verdict.checks
    )


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def publish(exported: Stored[ExportRecord], out: Path) -> None:
    """Copies the exported files to `out/artifacts`, where nothing but this export lies afterwards.

    Copies, not links: a file that a user edits must not change what the store verified.
    """
    folder = out / ARTIFACTS
    described = out / JSON_NAME
    if described.is_file() and not describes(described, exported.record):
        # A report must not speak of files that are no longer there.
        described.unlink()
        (out / MARKDOWN_NAME).unlink(missing_ok=True)
    fresh = out / f".{ARTIFACTS}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(exported.folder, fresh, ignore=shutil.ignore_patterns("record.json"))
    (fresh / ARTIFACTS_RECORD).write_text(exported.record.model_dump_json(indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _notes_before(recipe: Recipe) -> tuple[str, ...]:
    if recipe.model.weights != "none":
        return ()
    return (
        'model.weights = "none": the backbone starts from random weights and BatchNorm stays '
        "frozen, so expect a poor model; this is for trying the tool",
    )


def _notes_after_data(dataset: DatasetRecord, targets: tuple[Target, ...]) -> tuple[str, ...]:
    from edgekit.validate.statistics import images_to_certify

    count = dataset.splits["test"].count
    notes = []
    for target in targets:
        points = target.budget.accuracy_drop_points
        if points is None or not target.is_measured:
            continue
        needed = images_to_certify(points / 100)
        if count < needed:
            notes.append(
                f"{count} test images cannot show a drop of at most {points:g} points "
                f"(target {target.name}) even if no answer changes; at least {needed} are needed"
            )
    return (*dataset.notes, *notes)


def _report(
    state: _Run,
    out: Path,
    command: tuple[str, ...],
    notes: tuple[str, ...],
    dataset: Stored[DatasetRecord],
    float_model: Stored[FloatModelRecord],
    quantized: Stored[QuantizedModelRecord],
    exported: Stored[ExportRecord],
    validation: Stored[ValidationRecord],
) -> RunReport:
    from edgekit.devices.local import this_machine

    recipe = state.recipe.model_dump(mode="json")
    report = RunReport(
        edgekit_version=edgekit.__version__,
        command=shlex.join(command),
        machine=this_machine(),
        packages={name: tool_version(name) for name in PACKAGES},
        recipe=recipe,
        recipe_sha256=hashlib.sha256(canonical(recipe)).hexdigest(),
        dataset=dataset.record,
        float_model=float_model.record,
        quantized=quantized.record,
        export=exported.record,
        validation=validation.record,
        stages=tuple(state.times),
        notes=notes,
        peak_memory_bytes=state.peak_memory_bytes,
    )
    write_report(report, out)
    return report
