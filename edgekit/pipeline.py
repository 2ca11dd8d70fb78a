"""The order of the stages; nothing else knows it. Heavy stages are imported when they run."""

import hashlib
import json
import os
import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

import edgekit
from edgekit.code_version import code_version
from edgekit.data.files import printable
from edgekit.data.scan import Scan
from edgekit.errors import DataError, SpecError
from edgekit.folders import replace_folder, scratch_folder, writing
from edgekit.network.graph import check_names, layer_names, mobilenet_v2
from edgekit.network.native_log import load_tensorflow
from edgekit.network.starting_weights import StartingWeights, starting_weights
from edgekit.recipe import Recipe
from edgekit.records import (
    DatasetRecord,
    ExportRecord,
    FloatModelRecord,
    LabelsRecord,
    OtherRecord,
    Preprocess,
    QuantizedModelRecord,
    Record,
    RunReport,
    StageTime,
    ValidationRecord,
    Verdict,
)
from edgekit.report import ANSWERS_NAME, JSON_NAME, describes, discard_report, write_report
from edgekit.report.sentences import labels_sentences, left_out, parity_sentences
from edgekit.store import StageKey, Store, Stored, canonical, tool_version, write_atomically
from edgekit.target import (
    Target,
    refuse_float_layers,
    refuse_granularity,
    refuse_same_names,
)
from edgekit.train.cuts import fixed
from edgekit.train.suspicion import PAGE, TABLE

R = TypeVar("R", bound=Record)
Stage = Literal["data", "other", "labels", "train", "quantize", "export", "validate"]
STAGES: tuple[Stage, ...] = (
    "data",
    "other",
    "labels",
    "train",
    "quantize",
    "export",
    "validate",
)
PACKAGES = (
    "tensorflow",
    "tf_keras",
    "tensorflow-model-optimization",
    "onnx",
    "onnxruntime",
    "ai-edge-litert",
    "opencv-python-headless",
    "numpy",
    "pillow",
    "pillow-heif",
)
# What the work of each stage begins with; its version follows from the sources from there on.
# Starting weights are read by a process of their own, which begins at `main`.
ENTRIES: dict[Stage, tuple[str, ...]] = {
    "data": (
        "edgekit.data.scan.scan",
        "edgekit.data.corrections.corrected",
        "edgekit.data.decode.decode",
        "edgekit.data.findings.TABLES",
    ),
    "other": ("edgekit.data.scan.scan_other", "edgekit.data.other.decode_other"),
    "labels": ("edgekit.network.starting_weights.main", "edgekit.train.labels.check_labels"),
    "train": ("edgekit.network.starting_weights.main", "edgekit.train.unfreezing.train"),
    "quantize": ("edgekit.quantize.candidates.quantize_model",),
    "export": (
        "edgekit.export.files.STANDARD",
        "edgekit.export.files.export_files",
        "edgekit.network.ranges.read",
    ),
    "validate": ("edgekit.validate.judging.judge",),
}
# Fields of a recipe's `[data]` that are about pictures of no class alone.
_OF_OTHER = ("other", "false_accept_rate")
STORE = ".store"
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
    out: Path
    store: Store
    telling: Telling
    times: list[StageTime] = field(default_factory=list)
    peak_memory_bytes: int = 0

    def key(
        self, stage: Stage, params: dict[str, Any], inputs: dict[str, str], tools: tuple[str, ...]
    ) -> StageKey:
        """Returns the key of a stage of this run."""
        version = code_version(*ENTRIES[stage])
        return StageKey(stage, version, params, inputs, tools, self.recipe.seed)

    def stage(
        self,
        key: StageKey,
        record_type: type[R],
        make: Callable[[Path], R],
        still_good: Callable[[R], bool] = lambda _: True,
    ) -> Stored[R]:
        """Reuses or makes one stage, tells which, and remembers what it took."""
        stored = self.store.build(key, record_type, make, still_good)
        cost = stored.cost
        self.times.append(StageTime(stage=key.stage, seconds=cost.seconds, reused=stored.reused))
        self.peak_memory_bytes = max(self.peak_memory_bytes, cost.peak_memory_bytes)
        done = "unchanged, reused" if stored.reused else f"done in {cost.seconds:.1f} s"
        self.telling.say(f"{key.stage}: {done}")
        return stored


def run(
    recipe: Recipe,
    targets: tuple[Target, ...],
    out: Path,
    *,
    command: tuple[str, ...],
    until: Stage,
    telling: Telling,
    measure_again: bool = False,
) -> RunReport | None:
    """Runs the stages in order, reusing every stage whose inputs did not change.

    Args:
        recipe: What the user asks for, with absolute paths.
        targets: Its targets, loaded.
        out: Run folder; receives `artifacts/`, `report.json`, `report.md`, `answers.csv`, `.store/`
            and tables of what there is to say about single pictures.
        command: The command line, for the report.
        until: Last stage to run.
        telling: Where lines and progress go.
        measure_again: Whether files that were judged before are measured once more; what was
            measured before counts as well. Defaults to False: a stored verdict stands.

    Returns:
        The report, or None when `until` stops before the last stage.

    Raises:
        EdgekitError: As the stages do.
    """
    _refuse_beforehand(recipe, targets, out, command)
    devices: dict[str, str] = {}
    if until == "validate":
        # A cable left out is found now and not after training.
        from edgekit.devices.transports import reached

        devices = reached(targets, telling.say)
    store = Store(out / STORE, telling.say)
    with store.locked():
        state = _Run(recipe, out, store, telling)
        # Refused now, not after the pictures were decoded; a download can wait.
        _starting_weights(recipe, download=False)
        notes = _notes_before(recipe)
        others = _scan_other(recipe)
        dataset = _data(state)
        notes += _notes_after_data(dataset.record, targets)
        for note in notes:
            telling.say(f"note: {note}")
        if until == "data":
            return None
        other = None if others is None else _other(state, dataset, others)
        for note in _notes_after_other(recipe, other):
            telling.say(f"note: {note}")
            notes += (note,)
        if until == "other":
            return None
        weights = _starting_weights(recipe)
        labels = _labels(state, dataset, weights)
        if until == "labels":
            return None
        float_model = _train(state, dataset, weights)
        if until == "train":
            return None
        quantized = _quantize(state, dataset, float_model)
        if until == "quantize":
            return None
        exported = _export(state, dataset, float_model, quantized, targets)
        for sentence in parity_sentences(exported.record):
            telling.say(f"warning: {sentence}")
        publish(exported, out)
        if until == "export":
            return None
        validation = _validate(state, dataset, other, exported, targets, devices, measure_again)
        return _report(
            state, targets, out, command, notes,
            dataset, other, labels, float_model, quantized, exported, validation,
        )  # fmt: skip


def _refuse_beforehand(
    recipe: Recipe, targets: tuple[Target, ...], out: Path, command: tuple[str, ...]
) -> None:
    """Refuses what recipe and targets alone show to fail in a later stage.

    Raises:
        SpecError: If they do.
    """
    data = recipe.data
    about = (data.path, data.table, data.corrections, data.other, recipe.model.weights)
    for text in (*command, *map(str, about), *recipe.targets):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise SpecError(
                f"{printable(text)}: a name that is not valid Unicode",
                "text that a report can hold",
                "rename the file or folder",
            )
    # Path.resolve raises on a loop of links.
    for folder in filter(None, (data.path, data.other)):
        if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
            raise SpecError(
                f"the run folder {out} lies inside the data folder {folder}",
                "a run folder elsewhere, or its files would be taken for pictures",
                "give another folder with --out",
            )
    asked, nodes = recipe.quantize, mobilenet_v2(recipe.model.alpha)
    check_names(nodes, asked.keep_float, "quantize.keep_float")
    for key in ("unfreeze_from", "unfreeze_until"):
        cut = getattr(recipe.train, key)
        if cut is not None:
            fixed(f"train.{key}", cut, layer_names(nodes), nodes)
    options = [f"quantize.{name}" for name, given in
               (("keep_float", bool(asked.keep_float)), ("max_drop", asked.max_drop is not None))
               if given]  # fmt: skip
    refuse_float_layers(options, targets)
    refuse_granularity(asked.granularity, targets)
    refuse_same_names(targets)


def _preprocess(recipe: Recipe) -> Preprocess:
    height, width = recipe.model.size_px
    data = recipe.data
    return Preprocess(
        height_px=height,
        width_px=width,
        resize=data.resize,
        crop=data.crop,
        fill=data.fill_rgb,
        channels=recipe.model.channels,
    )


def _data(state: _Run) -> Stored[DatasetRecord]:
    from edgekit.data.corrections import corrected
    from edgekit.data.decode import decode
    from edgekit.data.files import FORM, Form
    from edgekit.data.scan import scan

    spec, contract = state.recipe.data, _preprocess(state.recipe)
    form = Form(**{name: getattr(spec, name) for name in FORM})
    scanned = scan(
        spec.path, lambda done, total: state.telling.progress("reading", done, total), form
    )
    if spec.corrections is not None:
        scanned = corrected(scanned, spec.corrections)
    for sentence in scanned.words:
        state.telling.say(f"data: {sentence}")
    # The files count by their digest, and what becomes of a picture by the contract.
    beside = {"path", "corrections", "crop", "fill", "resize", "check_labels", *_OF_OTHER}
    asked = spec.model_dump(mode="json", exclude={*beside, *FORM})
    key = state.key(
        "data",
        {**asked, "preprocess": contract.model_dump(mode="json")},
        {"files": scanned.digest},
        ("pillow", "pillow-heif", "numpy"),
    )

    def make(folder: Path) -> DatasetRecord:
        started = time.monotonic()

        def decoded(done: int, total: int) -> None:
            rate = done / (time.monotonic() - started)
            state.telling.progress(f"decoding: {rate:.0f} images/s", done, total)

        try:
            return decode(scanned, contract, spec, folder, seed=state.recipe.seed, progress=decoded)
        except DataError:
            _publish_tables(folder, state)  # of what was refused
            raise

    stored = state.stage(key, DatasetRecord, make)
    record = stored.record
    sizes = ", ".join(f"{split.count} {name}" for name, split in record.splits.items())
    rate = "" if stored.reused else f", decoded at {record.images_per_second:.0f} images/s"
    state.telling.say(f"data: {len(record.class_names)} classes, {sizes}{rate}")
    # Of those left out for their pixels the notes speak.
    for line in left_out([s for s in record.skipped if s.kind not in ("two-classes", "copy")]):
        state.telling.say(line)
    _publish_tables(stored.folder, state)
    return stored


def _publish_tables(folder: Path, state: _Run) -> None:
    """Copies the tables about single pictures into the run folder; old ones go."""
    from edgekit.data.findings import TABLES

    for name in TABLES:
        _publish_file(folder / name, state, "data")


def _publish_file(made: Path, state: _Run, stage: Stage) -> None:
    """Copies a file to where a user finds it, or deletes an old one.

    A table in which the user filled in what is to be done stays, and the new one lies beside it.
    """
    path, number = state.out / made.name, 1
    while _is_filled_in(path):
        number += 1
        path = (state.out / made.name).with_suffix(f".{number}{made.suffix}")
    for old in state.out.glob(f"{made.stem}.[0-9]*{made.suffix}"):
        if not _is_filled_in(old):
            old.unlink()
    path.unlink(missing_ok=True)
    if made.is_file():
        write_atomically(path, made.read_bytes())
        state.telling.say(f"{stage}: {path}")


def _is_filled_in(path: Path) -> bool:
    from edgekit.data.corrections import has_actions

    return path.suffix == ".csv" and path.is_file() and has_actions(path)


def _scan_other(recipe: Recipe) -> Scan | None:
    """Lists the pictures of no class, if the recipe names some; before those of the classes."""
    from edgekit.data.scan import scan_other

    spec = recipe.data
    return None if spec.other is None else scan_other(spec.other, spec.follow_links)


def _other(state: _Run, dataset: Stored[DatasetRecord], scanned: Scan) -> Stored[OtherRecord]:
    """Decodes pictures of no class."""
    from edgekit.data.findings import OTHER_LEFT_OUT
    from edgekit.data.other import decode_other

    spec = state.recipe.data
    limits = {name: getattr(spec, name) for name in ("max_bad_fraction", "max_megapixels")}
    key = state.key(
        "other",
        limits,
        {"data": dataset.digest, "files": scanned.digest},
        ("pillow", "pillow-heif", "numpy"),
    )

    def make(folder: Path) -> OtherRecord:
        try:
            return decode_other(
                scanned,
                dataset.folder,
                dataset.record.preprocess,
                spec,
                folder,
                seed=state.recipe.seed,
                progress=lambda done, total: state.telling.progress(
                    "decoding pictures of no class", done, total
                ),
            )
        except DataError:
            _publish_file(folder / OTHER_LEFT_OUT, state, "other")
            raise

    stored = state.stage(key, OtherRecord, make)
    record = stored.record
    state.telling.say(
        f"other: {record.deciding} pictures of no class decide above which score an answer counts, "
        f"{record.held_out} show what that comes to"
    )
    for line in left_out(record.skipped):
        state.telling.say(line)
    _publish_file(stored.folder / OTHER_LEFT_OUT, state, "other")
    return stored


def _labels(
    state: _Run, dataset: Stored[DatasetRecord], weights: StartingWeights | None
) -> LabelsRecord | None:
    """Looks for wrong labels, unless the recipe does not want that or the weights are random."""
    if not state.recipe.data.check_labels:
        return None
    if weights is None:
        state.telling.say("labels: not checked, as random weights see nothing in a picture")
        return None
    alpha = state.recipe.model.alpha
    key = state.key(
        "labels",
        {"alpha": alpha},
        {"data": dataset.digest, "weights": weights.sha256},
        ("tensorflow", "ai-edge-litert", "numpy", "pillow"),
    )

    def make(folder: Path) -> LabelsRecord:
        load_tensorflow()
        from edgekit.train.labels import check_labels

        return check_labels(
            dataset.folder,
            dataset.record.class_names,
            dataset.record.preprocess,
            alpha,
            weights.arrays,
            folder,
            seed=state.recipe.seed,
            progress=state.telling.progress,
        )

    stored = state.stage(key, LabelsRecord, make)
    for name in (TABLE, PAGE):
        _publish_file(stored.folder / name, state, "labels")
    for sentence in labels_sentences(stored.record):
        state.telling.say(f"labels: {sentence}")
    return stored.record


def _train(
    state: _Run, dataset: Stored[DatasetRecord], weights: StartingWeights | None
) -> Stored[FloatModelRecord]:
    spec = state.recipe.train
    model = state.recipe.model
    if weights is not None and weights.note is not None:
        state.telling.say(weights.note)
    weights_sha256 = weights.sha256 if weights else None
    key = state.key(
        "train",
        {
            # The input has the size of the pictures.
            "model": model.model_dump(mode="json", exclude={"weights", "input_size_px"}),
            # Where activations are stored changes no result.
            "train": spec.model_dump(mode="json", exclude={"activations_budget_bytes"}),
        },
        {"data": dataset.digest, "weights": weights_sha256 or "none"},
        ("tensorflow", "tf_keras", "ai-edge-litert", "opencv-python-headless", "numpy"),
    )

    def make(folder: Path) -> FloatModelRecord:
        load_tensorflow()
        from edgekit.train.unfreezing import Keeping, train

        trained = train(
            *_pictures(dataset),
            dataset.record.class_names,
            model,
            spec,
            folder,
            weights=weights.arrays if weights else None,
            seed=state.recipe.seed,
            keeping=Keeping(state.store, key, _shelf(state, dataset)),
            say=state.telling.say,
            progress=state.telling.progress,
        )
        return trained.model_copy(update={"weights_sha256": weights_sha256})

    stored = state.stage(key, FloatModelRecord, make)
    state.store.discard("train-*")  # its phases and epochs
    if not stored.reused:  # else they may be those of an interrupted quantization
        state.store.discard("activations-*")
    return stored


def _starting_weights(recipe: Recipe, *, download: bool = True) -> StartingWeights | None:
    model = recipe.model
    return starting_weights(model.weights, model.alpha, model.size_px, download=download)


def _shelf(state: _Run, dataset: Stored[DatasetRecord]) -> Any:
    from edgekit.prefix.activations import Shelf

    return Shelf(
        state.store,
        dataset.digest,
        state.recipe.train.activations_budget_bytes,
        state.telling.say,
        state.telling.progress,
    )


def _pictures(dataset: Stored[DatasetRecord]) -> tuple[Any, Any]:
    """Returns the training and the validation pictures."""
    from edgekit.fitting.pictures import Pictures

    contract = dataset.record.preprocess
    train, validation = (
        Pictures.load(dataset.folder, split, contract) for split in ("train", "validation")
    )
    return train, validation


def _quantize(
    state: _Run, dataset: Stored[DatasetRecord], float_model: Stored[FloatModelRecord]
) -> Stored[QuantizedModelRecord]:
    recipe = state.recipe
    key = state.key(
        "quantize",
        # The training's own wishes count by its digest.
        recipe.quantize.model_dump(mode="json"),
        {"data": dataset.digest, "train": float_model.digest},
        (
            "tensorflow",
            "tf_keras",
            "tensorflow-model-optimization",
            "ai-edge-litert",
            "opencv-python-headless",
            "numpy",
        ),
    )

    def make(folder: Path) -> QuantizedModelRecord:
        load_tensorflow()
        from edgekit.fitting.checkpoints import Checkpoints
        from edgekit.quantize.candidates import quantize_model

        return quantize_model(
            float_model.record,
            _arrays(float_model.folder / "weights.npz"),
            *_pictures(dataset),
            recipe.quantize,
            recipe.train,
            folder,
            seed=recipe.seed,
            checkpoints=Checkpoints(state.store, replace(key, stage="quantize-epoch")),
            shelf=_shelf(state, dataset),
            say=state.telling.say,
            progress=state.telling.progress,
        )

    stored = state.stage(key, QuantizedModelRecord, make)
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
    key = state.key(
        "export",
        {"files": asked, "class_names": dataset.record.class_names},
        {"data": dataset.digest, "quantize": quantized.digest},
        ("tensorflow", "onnx", "ai-edge-litert", "onnxruntime"),
    )

    def make(folder: Path) -> ExportRecord:
        load_tensorflow()
        from edgekit.export.files import STANDARD, Int8, Request, Sources, export_files
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
        return export_files(
            float_model.record,
            sources,
            *_pictures(dataset),
            dataset.record.class_names,
            tuple(requests),
            folder,
            progress=lambda what, done, total: state.telling.progress(
                f"exporting {what}", done, total
            ),
        )

    return state.stage(key, ExportRecord, make)


def _validate(
    state: _Run,
    dataset: Stored[DatasetRecord],
    other: Stored[OtherRecord] | None,
    exported: Stored[ExportRecord],
    targets: tuple[Target, ...],
    devices: dict[str, str],
    measure_again: bool,
) -> Stored[ValidationRecord]:
    from edgekit.devices.local import this_machine
    from edgekit.devices.measure import Pace
    from edgekit.validate.judging import judge
    from edgekit.validate.on_device import Measuring
    from edgekit.validate.other import Other

    spec = state.recipe.validation
    unknown, asked, read = None, dict[str, float](), dict[str, str]()
    if other is not None:
        rate = state.recipe.data.false_accept_rate
        unknown = Other(other.folder / "other.images.npy", other.record.deciding, rate)
        asked, read = {"false_accept_rate": rate}, {"other": other.digest}
    key = state.key(
        "validate",
        {
            "targets": [target.model_dump(mode="json") for target in targets],
            "measuring": spec.model_dump(mode="json"),
            # By its name, too: of two alike, one may be the slower.
            "machine": [this_machine(), platform.node()],
            "devices": devices,
            **asked,
        },
        {"data": dataset.digest, "export": exported.digest, **read},
        ("ai-edge-litert", "onnxruntime", "tflite-micro", "ethos-u-vela"),
    )
    earlier: list[Verdict] = []

    def stands(stored: ValidationRecord) -> bool:
        """Keeps a verdict, whatever it says, unless somebody asks for more measurements."""
        if measure_again:
            earlier.extend(stored.verdicts)
            state.telling.say("measuring again; what was measured before counts, too")
        return not measure_again

    def make(folder: Path) -> ValidationRecord:
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
            answers=folder / ANSWERS_NAME,
            say=state.telling.say,
            progress=state.telling.progress,
            earlier=earlier,
            other=unknown,
        )

    return state.stage(key, ValidationRecord, make, stands)


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def publish(exported: Stored[ExportRecord], out: Path) -> None:
    """Copies the exported files to `out/artifacts`, where nothing but this export lies afterwards.

    Copies, not links: a file that a user edits must not change what the store verified.
    """
    folder = out / ARTIFACTS
    if not describes(out / JSON_NAME, exported.record):
        # A report must not speak of files that are no longer there.
        discard_report(out)
    with scratch_folder(out) as scratch, writing(folder):
        fresh = scratch / ARTIFACTS
        fresh.mkdir()
        exported.copy_to(fresh)
        (fresh / ARTIFACTS_RECORD).write_text(exported.record.model_dump_json(indent=1))
        replace_folder(fresh, folder)


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


def _notes_after_other(recipe: Recipe, other: Stored[OtherRecord] | None) -> tuple[str, ...]:
    from edgekit.validate.statistics import samples_needed

    if other is None:
        return ()
    rate, deciding = recipe.data.false_accept_rate, other.record.deciding
    needed = samples_needed(100 * (1 - rate))
    if deciding >= needed:
        return ()
    return (
        f"{deciding} deciding pictures of no class cannot show that at most {rate:.1%} of such "
        f"pictures get an answer, so none of these {deciding} may; {needed} are needed "
        f"(data.other, of which half decides), or a higher data.false_accept_rate",
    )


def _report(
    state: _Run,
    targets: tuple[Target, ...],
    out: Path,
    command: tuple[str, ...],
    notes: tuple[str, ...],
    dataset: Stored[DatasetRecord],
    other: Stored[OtherRecord] | None,
    labels: LabelsRecord | None,
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
        targets=tuple(target.model_dump(mode="json") for target in targets),
        dataset=dataset.record,
        other=None if other is None else other.record,
        labels=labels,
        float_model=float_model.record,
        quantized=quantized.record,
        export=exported.record,
        validation=validation.record,
        stages=tuple(state.times),
        notes=notes,
        peak_memory_bytes=state.peak_memory_bytes,
    )
    write_report(report, out, (validation.folder / ANSWERS_NAME).read_bytes())
    return report
