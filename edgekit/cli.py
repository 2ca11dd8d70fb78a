"""The command line. Loads no heavy package until a command needs it."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit import __version__
from edgekit.errors import EdgekitError, SpecError
from edgekit.folders import DOES_NOT_FIT, free_bytes

if TYPE_CHECKING:
    from edgekit.console import Work
    from edgekit.data.files import Form
    from edgekit.pipeline import Stage
    from edgekit.predict import Prediction
    from edgekit.recipe import Recipe
    from edgekit.records import RunReport
    from edgekit.target import Target

INTERRUPTED = 130
# What pydantic writes.
_JSON_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
TRAINING_PACKAGES = ("tensorflow", "tf_keras", "tensorflow_model_optimization")
_EXIT_CODES = """
Exit codes: 0 every asked target PASS; 2 usage, recipe or target file; 3 data refused; 4 any MISS;
5 some INCONCLUSIVE or UNMEASURED; 6 damaged or untrusted file; 7 device trouble; 130 interrupted;
1 a bug in edgekit.
"""

app = typer.Typer(
    name="edgekit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Fine-tune MobileNetV2 on your pictures, quantize it, export TFLite and ONNX, and judge "
    "the exported files against each device's budget.\n\n"
    "Try it without any data: `edgekit demo`. Your own pictures: `edgekit run --data pictures/`.",
    epilog=_EXIT_CODES.replace("\n", " ").strip(),
)

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")
]
TargetNames = Annotated[
    list[str] | None,
    typer.Option("--target", "-t", help="Target name or .toml file; repeat for several."),
]
DeviceNames = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="TARGET=WHERE",
        help="Where a target's device is: USER@HOST[:PORT] for ssh, a serial for adb, a program "
        "for a browser; repeat for several.",
    ),
]
Install = Annotated[
    bool,
    typer.Option(
        "--install",
        help="Install the runtime on ssh devices that lack it, into ~/.cache/edgekit there.",
    ),
]
LatencyBudget = Annotated[
    float | None,
    typer.Option(
        "--latency-budget-ms",
        help="Latency budget in milliseconds for the asked targets that can be measured.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help='"imagenet", "none", or the path of a .h5, .keras or .npz file with a MobileNetV2, '
        "alone or inside a model."
    ),
]
MeasureAgain = Annotated[
    bool,
    typer.Option(
        "--measure-again",
        help="Measure once more what was judged before; the earlier sessions count, too. Sensible "
        "where a latency is INCONCLUSIVE and the device is quiet now. Without it a verdict stands.",
    ),
]
Table = Annotated[
    Path | None,
    typer.Option(
        help="Table of the pictures' classes: .csv, .tsv or .jsonl. Without it the folders tell "
        "them, or a table that lies beside the pictures."
    ),
]
PathColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the table that names the pictures, or of Parquet that holds them."
    ),
]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the table: the classes.")]
SplitColumn = Annotated[str | None, typer.Option(help="Column of the table: the splits.")]
Ignore = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="Left out of the data folder; repeat for several."),
]
FollowLinks = Annotated[
    bool,
    typer.Option("--follow-links", help="Follow symbolic links that lead out of the data folder."),
]
MaxBadFraction = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Largest fraction of pictures that may be left out as unusable."
    ),
]
MaxMegapixels = Annotated[
    float | None, typer.Option(help="Largest picture that is read, in millions of pixels.")
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="Labels file: line i names output i, or as Keras, Teachable Machine, Coral, TF Hub or "
        "Ultralytics write them. Needed unless the file carries its labels."
    ),
]
LabelOffset = Annotated[
    int, typer.Option(help="Added to every label index; 1 where output 0 is background.")
]
InputScale = Annotated[
    list[float] | None,
    typer.Option(help="Input value = pixel * scale + offset; once, or once per channel."),
]
InputOffset = Annotated[list[float] | None, typer.Option(help="See --input-scale.")]
Resize = Annotated[str | None, typer.Option(help="bilinear (default), bicubic or nearest.")]
Crop = Annotated[str | None, typer.Option(help="none (stretch, default), center or letterbox.")]
Fill = Annotated[
    list[int] | None,
    typer.Option(
        help="What a letterbox is filled with, 0 to 255: once, or for red, green and blue; 114 "
        "without it."
    ),
]
Channels = Annotated[str | None, typer.Option(help="rgb (default) or bgr.")]
Output = Annotated[
    str | None,
    typer.Option(
        help="Name of the output that has the scores, or its number from 0; needed where a file "
        "has several and not just one of them has as many scores as there are labels."
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Of a single score for two classes: above it the second label is answered; 0.5 for a "
        "probability, 0 for a logit. Without it the file and its answers tell."
    ),
]
Out = Annotated[Path, typer.Option(help="Run folder: artifacts, report and stored stages.")]


def execute(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; shows every error in its three parts.

    Args:
        arguments: What follows the program's name.
    """
    as_json = "--json" in arguments
    # Ended by another program, edgekit cleans up devices as it does at Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = app(list(arguments), standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except EdgekitError as error:
        return _show_error(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:
        if error.filename is not None or not _cannot_print():
            return _show_error(_unusable_path(error), as_json)
        unprinted = SpecError(
            f"standard output: {error.strerror}",
            "a place that takes what edgekit prints",
            "make room there, or print to another place",
        )
        return _show_error(unprinted, as_json=False)
    except Exception as error:  # noqa: BLE001 - the one place that sees everything
        return _usage_or_bug(error, as_json)
    if code == INTERRUPTED:  # the command-line library turns Ctrl-C into this code itself
        sys.stderr.write(
            "\ninterrupted; finished stages, phases and epochs are kept. Continue with:\n"
            f"  {_command_line(arguments)}\n"
        )
        if as_json:
            _show_json_error("Interrupted", _command_line(arguments), INTERRUPTED)
    return code


def _show_error(error: EdgekitError, as_json: bool) -> int:
    from edgekit.console import show_error

    show_error(error, as_json)
    return error.exit_code


def _unusable_path(error: OSError) -> SpecError:
    """Returns the error for a file or folder that cannot be read or written."""
    # Of two paths the second is the one that was written.
    named = error.filename2 or error.filename or "a file that the system did not name"
    path = os.fsdecode(named) if isinstance(named, bytes) else str(named)
    received = f"{path}: {error.strerror or error}"
    if error.errno not in DOES_NOT_FIT:
        expected = "a file or folder that can be read and written"
        return SpecError(received, expected, "check the path, its rights and its disk")
    free = free_bytes(path)
    return SpecError(
        received,
        "a file or folder that can be written, and space for it",
        ("" if free is None else f"{free / 1e6:.1f} MB are free there; ")
        + "make room, or use another disk: --out says where a run goes, TMPDIR where temporary "
        "files go",
    )


def _cannot_print() -> bool:
    """Returns whether standard output fails; if so, what is still to be printed is dropped."""
    try:
        sys.stdout.write("\n")  # nothing is tried by writing nothing
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _show_json_error(kind: str, text: str, code: int) -> None:
    from edgekit.console import show_json

    show_json({"error": {"kind": kind, "received": text, "exit_code": code}})


def _usage_or_bug(error: Exception, as_json: bool) -> int:
    show = getattr(error, "show", None)
    if callable(show):  # a usage error of the command-line library
        show()
        code = int(getattr(error, "exit_code", 2))
    else:
        from edgekit.console import visible

        code = 1
        sys.stderr.write(
            f"{visible(traceback.format_exc())}\nThis is a bug in edgekit {__version__}: please "
            "report it with the lines above. Finished stages are kept.\n"
        )
    if as_json:
        _show_json_error(type(error).__name__, str(error), code)
    return code


def _command_line(arguments: Sequence[str]) -> str:
    import shlex

    return shlex.join(("edgekit", *arguments))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgekit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Holds the options that stand before a command."""


@app.command(epilog="Example: `edgekit demo --out my-demo`")
def demo(
    measure_again: MeasureAgain = False, out: Out = Path("edgekit-demo"), as_json: Json = False
) -> None:
    """Run everything on generated pictures: no network, no data, under five minutes on 2 cores.

    Draws a labelled picture set, fine-tunes a small pretrained MobileNetV2 by progressive
    unfreezing, quantizes it, exports TFLite and ONNX, judges both on this machine, and writes the
    report. Running it again reuses what is there.
    """
    from edgekit.console import working
    from edgekit.demo.recipe import demo_recipe

    _check_training_is_installed()
    with working() as work:
        recipe = demo_recipe(out, work.say)
        asked = _targets(recipe.targets)
        command = ("edgekit", "demo", "--out", str(out))
        _run(recipe, asked, out, command, "validate", work, as_json, measure_again)


@app.command(
    epilog="Examples: `edgekit run recipe.toml` | "
    "`edgekit run --data pictures/ --alpha 0.35 --input-size 96 --target pixel-8` | "
    "`edgekit run --data pictures/ --until train`"
)
def run(
    recipe: Annotated[
        Path | None, typer.Argument(help="Recipe file; `edgekit init` writes one.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures: DIR/<class>/, DIR/{train,validation,test}/<class>/ by the "
            "names that people give them, pictures with a table, or Parquet or TFRecord files."
        ),
    ] = None,
    table: Table = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    ignore: Ignore = None,
    follow_links: FollowLinks = False,
    corrections: Annotated[
        Path | None,
        typer.Option(
            help="Table of pictures to leave out or relabel: suspicious_labels.csv, filled in."
        ),
    ] = None,
    other: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures of no class: above which score an answer counts follows."
        ),
    ] = None,
    max_bad_fraction: MaxBadFraction = None,
    max_megapixels: MaxMegapixels = None,
    target: TargetNames = None,
    weights: Weights = None,
    alpha: Annotated[float | None, typer.Option(help="Width multiplier of MobileNetV2.")] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="PX|HxW",
            help="Side of the square input in pixels, or its height and width: 160x224.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="How far to unfreeze: auto, head, progressive or fixed."),
    ] = None,
    unfreeze_from: Annotated[
        str | None, typer.Option(help="Fixed cut: layer index, layer name, head or all.")
    ] = None,
    device: DeviceNames = None,
    install: Install = False,
    latency_budget_ms: LatencyBudget = None,
    until: Annotated[
        str,
        typer.Option(help="Last stage: data, other, labels, train, quantize, export or validate."),
    ] = "validate",
    measure_again: MeasureAgain = False,
    out: Out = Path("edgekit-run"),
    as_json: Json = False,
) -> None:
    """Train, quantize, export and judge. Running it again continues or reuses what is done.

    Options override the recipe. Without a recipe, `--data` is enough.
    """
    from edgekit.console import working

    form = _form(table, path_column, label_column, split_column, ignore, follow_links)
    overrides = {
        "seed": seed,
        "targets": tuple(target) if target else None,
        "data.path": None if data is None else str(data.absolute()),
        **{f"data.{name}": value for name, value in _said(form).items()},
        "data.corrections": None if corrections is None else str(corrections.absolute()),
        "data.other": None if other is None else str(other.absolute()),
        "data.max_bad_fraction": max_bad_fraction,
        "data.max_megapixels": max_megapixels,
        "model.weights": _absolute_weights(weights),
        "model.alpha": alpha,
        "model.input_size_px": _input_size(input_size),
        "train.strategy": strategy or ("fixed" if unfreeze_from else None),
        "train.unfreeze_from": _cut(unfreeze_from),
    }
    overrides = {key: value for key, value in overrides.items() if value is not None}
    if strategy not in (None, "fixed"):  # a cut that the recipe fixes ends with its strategy
        overrides["train.unfreeze_from"] = _cut(unfreeze_from)
    if overrides.get("train.strategy") in ("head", "fixed"):  # nor does the limit of a search
        overrides["train.unfreeze_until"] = None
    wanted = _recipe(recipe, data, overrides)
    stage = _stage(until)
    if measure_again and stage != "validate":
        raise SpecError(
            f"--measure-again with --until {stage}",
            "a run that measures",
            "leave out one of them",
        )
    asked = _targets(wanted.targets, device, latency_budget_ms, install)
    with working() as work:
        command = ("edgekit", *sys.argv[1:])
        _run(wanted, asked, out, command, stage, work, as_json, measure_again)


@app.command(epilog="Example: `edgekit init pictures/ --out recipe.toml`")
def init(
    directory: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    table: Table = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    ignore: Ignore = None,
    follow_links: FollowLinks = False,
    out: Annotated[Path, typer.Option(help="Recipe file to write.")] = Path("recipe.toml"),
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Look at a folder of pictures and write a commented recipe for it.

    Beside the recipe comes a page of the same name with a few pictures of each class and split, to
    be opened in a browser.
    """
    from edgekit.console import out as console, show_json, working
    from edgekit.data.contact_sheet import contact_sheet
    from edgekit.data.decode import look_into
    from edgekit.data.overview import counts_of, pictures_table, refused
    from edgekit.data.scan import scan
    from edgekit.recipe import default_recipe, recipe_toml
    from edgekit.report.sentences import left_out
    from edgekit.store import write_atomically

    sheet = out.with_suffix(".html")
    for path in (out, sheet):
        if path.exists() and not force:
            raise SpecError(
                f"{path} exists",
                "a new file",
                "give another name with --out, or overwrite with --force",
            )
    form = _form(table, path_column, label_column, split_column, ignore, follow_links)
    recipe = default_recipe(directory.absolute(), **_said(form))
    with working() as work:
        found = scan(directory, lambda done, total: work.progress("reading", done, total), form)
        look = look_into(found, recipe.data.max_megapixels)
        skipped = (*found.skipped, *look.skipped)
        lines = left_out(skipped)
        page = contact_sheet(
            found, lines, lambda done, total: work.progress("contact sheet", done, total)
        )
    write_atomically(out, recipe_toml(recipe).encode())
    write_atomically(sheet, page.encode())
    warning = refused(found, look, recipe.data.max_bad_fraction)
    if as_json:
        show_json(
            {
                "recipe": str(out),
                "sheet": str(sheet),
                "words": list(found.words),
                "classes": counts_of(found),
                "looked_into": look.tried,
                "notes": list(look.notes),
                "skipped": [item.model_dump(mode="json") for item in skipped],
                "refused": warning,
            }
        )
        return
    for sentence in found.words:
        console.print(f"understood: {sentence}", markup=False)
    console.print(pictures_table(found))
    for line in lines:
        console.print(line, markup=False)
    for note in look.notes:
        console.print(f"note, of {look.tried:,} pictures looked into: {note}", markup=False)
    if warning:
        console.print(f"edgekit run will refuse this: {warning}", markup=False)
    said = f"wrote {out} and {sheet}, which shows them; next: {_command_line(('run', str(out)))}"
    console.print(said, markup=False)


@app.command(
    epilog="Examples: `edgekit validate model.tflite --data pictures/test --labels labels.txt` | "
    "`edgekit validate model.onnx --data pictures/ --input-scale 0.00784314 --input-offset -1 "
    "--reference float.onnx`"
)
def validate(
    file: Annotated[Path, typer.Argument(help="A .tflite, .onnx or .ort image classifier.")],
    data: Annotated[Path, typer.Option(help="Folder of labelled pictures, as for run.")],
    table: Table = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    ignore: Ignore = None,
    follow_links: FollowLinks = False,
    max_bad_fraction: MaxBadFraction = None,
    max_megapixels: MaxMegapixels = None,
    target: TargetNames = None,
    device: DeviceNames = None,
    install: Install = False,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Float file of the same network; the accuracy drop is measured against it."
        ),
    ] = None,
    labels: Labels = None,
    label_offset: LabelOffset = 0,
    input_scale: InputScale = None,
    input_offset: InputOffset = None,
    resize: Resize = None,
    crop: Crop = None,
    fill: Fill = None,
    channels: Channels = None,
    output: Output = None,
    threshold: Threshold = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(help="Accuracy floor in percent, for targets that can be measured."),
    ] = None,
    latency_budget_ms: LatencyBudget = None,
    measurements: Annotated[
        Path | None,
        typer.Option(help="What was measured elsewhere on the target's device, as JSON."),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="CSV file to write: picture, truth, answer and score, a line each."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge any .tflite, .onnx or .ort classifier, also one that edgekit did not make.

    Files that edgekit exported carry or stand beside their preprocessing and labels. For others the
    input is read from TFLite metadata or the file's quantization, or given with --input-scale and
    --input-offset; what you give wins. Where another usual preparation, label order or offset
    answers your pictures surely better, that is said, and nothing passes. Of a folder with splits,
    only test is judged.

    Channels first or last, three or one (the luma is fed), scores of every class or one for two
    classes: what the file says is gone by and said. Of several outputs --output names one.

    Nothing is kept: each judgement stands for itself, so the first one counts. Of a run's files
    `edgekit run --measure-again` counts all that was measured.
    """
    from edgekit.console import out as console, show_json, show_verdicts, working
    from edgekit.foreign import Question, judge_file
    from edgekit.report.sentences import agreement_sentence, what_follows_of_file
    from edgekit.validate.verdict import exit_code

    question = Question(
        file=file,
        data=data,
        reference=reference,
        labels=labels,
        label_offset=label_offset,
        input_scale=tuple(input_scale) if input_scale else None,
        input_offset=tuple(input_offset) if input_offset else None,
        fill=tuple(fill) if fill else None,
        **_choices(resize, crop, channels),
        output=output,
        threshold=threshold,
        targets=_targets(tuple(target or ()), device, None, install),
        min_accuracy_percent=min_accuracy,
        latency_budget_ms=latency_budget_ms,
        measurements=measurements,
        form=_form(table, path_column, label_column, split_column, ignore, follow_links),
        answers=answers,
        **_limits(max_bad_fraction, max_megapixels),
    )
    with working() as work:
        result = judge_file(question, work.say, work.progress)
    if as_json:
        show_json(result.model_dump(mode="json"))
    else:
        console.print(result.summary(), markup=False)
        for found in result.on_devices:
            console.print(f"  {found.target}: {agreement_sentence(found)}", markup=False)
        show_verdicts(result.verdicts)
        for sentence in what_follows_of_file(result.verdicts, file, data):
            console.print(f"\n{sentence}", markup=False)
    raise typer.Exit(exit_code(verdict.status for verdict in result.verdicts))


@app.command(
    epilog="Examples: `edgekit predict edgekit-run photo.jpg` | "
    "`edgekit predict model.tflite photos/ --labels labels.txt --top 3 --json`"
)
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE", help="Folder of a finished run, or a .tflite, .onnx or .ort file."
        ),
    ],
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Files or folders.")],
    file: Annotated[
        str | None,
        typer.Option(help="Which file of RUN answers; that of its first target if not given."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes of each picture, best first.")] = 1,
    labels: Labels = None,
    label_offset: LabelOffset = 0,
    input_scale: InputScale = None,
    input_offset: InputOffset = None,
    resize: Resize = None,
    crop: Crop = None,
    fill: Fill = None,
    channels: Channels = None,
    output: Output = None,
    threshold: Threshold = None,
    follow_links: FollowLinks = False,
    max_megapixels: MaxMegapixels = None,
    as_json: Json = False,
) -> None:
    """Answer pictures with class and score, as the file answered when it was judged.

    Prints a line for each picture and class: picture, class and score with tabs between them. The
    score is the file's own output: a logit from files that edgekit made. Where it is known above
    which score an answer counts (a run with `data.other`), "accepted" or "of no class" follows it.
    Pictures that cannot be answered are named on stderr, the others are answered, and the exit code
    is 3.
    """
    from edgekit.console import working
    from edgekit.foreign import answering
    from edgekit.predict import predict as answer, shipped_file, threshold_of_file
    from edgekit.validate.contracts import InputOptions, filling, per_channel
    from edgekit.validate.outputs import OutputOptions

    if file is not None and not model.is_dir():
        raise SpecError(f"--file {file} with {model}", "a run folder", "leave out --file")
    options = InputOptions(
        scale=per_channel(input_scale, "--input-scale"),
        offset=per_channel(input_offset, "--input-offset"),
        fill=filling(fill),
        **_choices(resize, crop, channels),
    )
    reading = OutputOptions(name=output, threshold=threshold)
    with working() as work:
        chosen = shipped_file(model, file, work.say) if model.is_dir() else model
        plan = answering(chosen, labels, label_offset, options, reading, work.say)
        answered = answer(
            plan,
            pictures,
            top,
            work.progress,
            work.say,
            score_threshold=threshold_of_file(model, chosen),
            follow_links=follow_links,
            **_limits(max_megapixels=max_megapixels),
        )
        _print_answers(chosen, answered, work, as_json)


@app.command(
    epilog="Examples: `edgekit targets` | `edgekit targets raspberry-pi-5` | "
    "`edgekit targets check my-board.toml` | `edgekit targets schema > target.schema.json`"
)
def targets(
    name: Annotated[
        str | None,
        typer.Argument(
            help='A target to show with its sources; "check" explains one in words; "schema" '
            "prints the JSON Schema of a target file, for editors."
        ),
    ] = None,
    checked: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Target name or .toml file to check.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the shipped targets, show one with the source of every number, or check a file."""
    from edgekit.console import out as console, show_json
    from edgekit.target import Target, explain, load_target, shipped_targets, target_text

    if (name == "check") != (checked is not None):
        raise SpecError(
            "edgekit targets " + " ".join(text for text in (name, checked) if text),
            "edgekit targets, edgekit targets NAME, edgekit targets check FILE or edgekit targets "
            "schema",
            "see edgekit targets --help",
        )
    if name == "schema":
        show_json({"$schema": _JSON_SCHEMA, **Target.model_json_schema()})
    elif checked is not None:
        sentences = explain(load_target(checked))
        if as_json:
            show_json({"target": checked, "in_words": list(sentences)})
        else:
            console.print("\n".join(sentences), markup=False)
    elif name is not None:
        found = load_target(name)
        if as_json:
            show_json(found.model_dump(mode="json"))
        else:
            text = Path(name).read_text("utf-8") if name.endswith(".toml") else target_text(name)
            console.print(text.rstrip(), markup=False)
    elif as_json:
        show_json([load_target(item).model_dump(mode="json") for item in shipped_targets()])
    else:
        for item in (load_target(shipped) for shipped in shipped_targets()):
            wanted = item.artifact
            console.print(f"[bold]{item.name}[/]  ({item.device.transport})")
            console.print(
                f"  {item.description} Takes {wanted.format} {wanted.variant}, {wanted.io} I/O.",
                markup=False,
            )


@app.command(epilog="Example: `edgekit devices`")
def devices(as_json: Json = False) -> None:
    """List what edgekit can measure on now, and why it cannot on the rest."""
    from dataclasses import asdict

    from edgekit.console import out as console, show_json
    from edgekit.devices.transports import find_devices

    found = find_devices()
    if as_json:
        show_json([asdict(item) for item in found])
        return
    for item in found:
        console.print(f"{item.transport}  {item.name}".rstrip(), style="bold", markup=False)
        console.print(f"  {item.problem or item.words}", markup=False)


@app.command(
    epilog="Examples: `edgekit package edgekit-run --for pixel-8` | "
    "`edgekit package edgekit-run --for cortex-m7 --no-images --licence CC0-1.0`"
)
def package(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    target: Annotated[
        list[str], typer.Option("--for", help="Target the run was judged for; repeat for several.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the bundles; RUN/packages if not given.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Identifier in generated code, such as shoe_finder.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Name for people.")] = None,
    licence: Annotated[
        str, typer.Option(help="SPDX identifier of the model's licence, such as CC0-1.0.")
    ] = "other",
    images: Annotated[
        bool, typer.Option(help="Whether some test pictures are shipped as goldens.")
    ] = True,
    allow_miss: Annotated[
        bool, typer.Option("--allow-miss", help="Package a file that missed its budgets; it says.")
    ] = False,
    sign: Annotated[
        Path | None, typer.Option(help="Private key (PEM); needs 'edgekit[sign]'.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what a developer drops into an app or a board: the judged file, code and its proof."""
    from edgekit.console import out as console, show_json, working
    from edgekit.packaging import Wanted, package as write_package

    with working() as work:
        made = [
            write_package(
                Wanted(
                    run=run_folder,
                    target=item,
                    out=out,
                    name=name,
                    title=title,
                    licence=licence,
                    with_images=images,
                    allow_miss=allow_miss,
                    private_key=sign,
                ),
                work.say,
            )
            for item in target
        ]
    if as_json:
        show_json(
            [
                {
                    "target": item.manifest.verdict.target,
                    "kind": item.manifest.kind,
                    "status": item.manifest.verdict.status,
                    "folder": str(item.folder),
                    "zip": str(item.archive),
                    "sha256": item.sha256,
                }
                for item in made
            ]
        )
        return
    for item in made:
        manifest = item.manifest
        console.print(
            f"{manifest.verdict.target}: {manifest.kind} package of {len(manifest.files)} files, "
            f"judged {manifest.verdict.status}\n  {item.folder}\n  {item.archive} "
            f"(sha256 {item.sha256})",
            markup=False,
        )


@app.command(epilog="Example: `edgekit verify edgekit-run/packages/pixel-8.zip`")
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder or zip that edgekit package wrote.")],
    public_key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) that its signature must be of.")
    ] = None,
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Refuse a bundle without a signature.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a bundle: digests, missing and extra files, claims, signature, and its goldens."""
    from edgekit.console import out as console, show_json
    from edgekit.package.verification import verify as verify_bundle

    found = verify_bundle(bundle, public_key, require_signature)
    if as_json:
        show_json(found.model_dump(mode="json"))
        return
    protection = {
        "verified": f"signature by {public_key}: verified",
        "not checked": "signature: not checked; give the key of whoever made the bundle with "
        "--public-key",
        "absent": "signature: none, and nothing else protects the manifest itself: whoever altered "
        "the files could alter it, too",
    }
    console.print(
        f"{bundle}: {found.manifest.kind} package for {found.manifest.verdict.target}, "
        f"{len(found.manifest.files)} files as listed; {found.goldens}\n"
        f"{protection[found.signature]}",
        markup=False,
    )


@app.command(epilog="Example: `edgekit metadata model.tflite`")
def metadata(
    file: Annotated[Path, typer.Argument(help="A .tflite, .onnx or .ort file.")],
) -> None:
    """Print what a model file says about itself, as JSON: what `edgekit validate` reads of it.

    Inputs, outputs, operators, metadata; the labels and the contract of the input that it carries;
    how a picture would be fed and an answer read, or why it would not be judged.
    """
    from edgekit.console import show_json
    from edgekit.validate.description import describe

    show_json(describe(file))


@app.command(epilog="Example: `edgekit report edgekit-run`")
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    as_json: Json = False,
) -> None:
    """Write report.md again from report.json, and show the verdicts."""
    from edgekit.pipeline import ARTIFACTS
    from edgekit.report import read_report, write_report
    from edgekit.validate.verdict import exit_code

    found = read_report(run_folder, run_folder / ARTIFACTS)
    write_report(found, run_folder)
    _show(found, run_folder, as_json)
    raise typer.Exit(exit_code(verdict.status for verdict in found.validation.verdicts))


def _print_answers(file: Path, found: Iterable["Prediction"], work: "Work", as_json: bool) -> None:
    """Prints predictions as they come; JSON when all are there, so that it is a whole document.

    Raises:
        DataError: If a picture was not answered, behind all that were.
    """
    import json
    import shutil
    import tempfile

    from edgekit.data.files import printable
    from edgekit.errors import DataError

    count, refused = 0, 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as kept:
        for each in found:
            count += 1
            if each.refused:
                refused += 1
                work.say(f"not answered: {each.picture}: {each.refused}")
            if as_json:
                kept.write(",\n" if count > 1 else "")
                kept.write(json.dumps(each.model_dump(mode="json"), allow_nan=False))
            else:
                counts = {None: "", True: "\taccepted", False: "\tof no class"}[each.accepted]
                for guess in each.guesses:
                    name = printable(guess.name)
                    sys.stdout.write(f"{each.picture}\t{name}\t{guess.score:.6g}{counts}\n")
        if as_json:
            kept.seek(0)
            head = f'{{"file": {json.dumps(file.name)}, "refused": {refused}, "pictures": [\n'
            sys.stdout.write(head)
            shutil.copyfileobj(kept, sys.stdout)
            sys.stdout.write("\n]}\n")
    sys.stdout.flush()
    if refused == 0 and count > 0:
        return
    if as_json and count > 0:
        raise typer.Exit(DataError.exit_code)
    raise DataError(
        f"{refused} of {count} pictures could not be answered",
        "pictures that can be read",
        "repair those named above, or leave them out",
    )


def _recipe(path: Path | None, data: Path | None, overrides: dict[str, Any]) -> "Recipe":
    from edgekit.recipe import Recipe, default_recipe, load_recipe
    from edgekit.spec import build

    if path is None and data is None:
        raise SpecError(
            "neither a recipe nor --data",
            "edgekit run RECIPE.toml, or edgekit run --data DIR",
            "write a recipe with edgekit init DIR, or give --data",
        )
    start = load_recipe(path) if path is not None else default_recipe((data or Path()).absolute())
    values = start.model_dump(mode="json")
    for key, value in overrides.items():
        *tables, name = key.split(".")
        table = values
        for part in tables:
            table = table[part]
        table[name] = value
    return build(values, Recipe, "command line" if path is None else f"{path} and command line")


def _form(
    table: Path | None,
    path_column: str | None,
    label_column: str | None,
    split_column: str | None,
    ignore: list[str] | None,
    follow_links: bool,
) -> "Form":
    """Returns what the options say about the form of a data folder."""
    from edgekit.data.files import Form

    return Form(
        table=None if table is None else table.absolute(),
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
        ignore=tuple(ignore or ()),
        follow_links=follow_links,
    )


def _limits(
    max_bad_fraction: float | None = None, max_megapixels: float | None = None
) -> dict[str, Any]:
    """Returns the limits on pictures that options set, by the names that a recipe has for them."""
    from edgekit.recipe import DataSpec
    from edgekit.spec import build

    given = {"max_bad_fraction": max_bad_fraction, "max_megapixels": max_megapixels}
    said = {name: value for name, value in given.items() if value is not None}
    spec = build({"path": ".", **said}, DataSpec, "command line")
    return {name: getattr(spec, name) for name in said}


def _said(form: "Form") -> dict[str, Any]:
    """Returns what a form says, by the names that a recipe has for it."""
    from dataclasses import asdict

    return {name: value for name, value in asdict(form).items() if value}


def _absolute_weights(weights: str | None) -> str | None:
    if weights is None or weights in ("imagenet", "none"):
        return weights
    return str(Path(weights).absolute())


def _cut(text: str | None) -> int | str | None:
    # Not str.isdigit: it takes a superscript for a digit, and int() does not.
    return int(text) if text is not None and re.fullmatch("-?[0-9]{1,18}", text) else text


def _input_size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    sides = re.fullmatch("([0-9]{1,9})(?:[xX]([0-9]{1,9}))?", text)
    if sides is None:
        raise SpecError(
            f"--input-size {text}",
            "a number of pixels, or height and width as in 160x224",
            "correct the option",
        )
    height, width = sides.groups()
    return int(height) if width is None else (int(height), int(width))


def _stage(text: str) -> "Stage":
    from edgekit.pipeline import STAGES

    stage: Stage = _one_of(text, STAGES, "--until")
    return stage


def _choices(resize: str | None, crop: str | None, channels: str | None) -> dict[str, Any]:
    """Returns how an input is prepared, as far as an option chooses among names."""
    return {
        "resize": _one_of(resize, ("bilinear", "bicubic", "nearest"), "--resize"),
        "crop": _one_of(crop, ("none", "center", "letterbox"), "--crop"),
        "channels": _one_of(channels, ("rgb", "bgr"), "--channels"),
    }


def _one_of(text: str | None, allowed: tuple[Any, ...], option: str) -> Any:
    if text is not None and text not in allowed:
        import difflib

        near = difflib.get_close_matches(text, allowed, 1)
        raise SpecError(
            f"{option} {text}",
            f"one of {', '.join(allowed)}",
            f"did you mean {near[0]}?" if near else "choose one of them",
        )
    return text


def _targets(
    names: tuple[str, ...],
    devices: list[str] | None = None,
    latency_budget_ms: float | None = None,
    install: bool = False,
) -> tuple["Target", ...]:
    from edgekit.target import (
        load_target,
        refuse_unused,
        with_device,
        with_installing,
        with_latency_budget,
    )

    loaded = tuple(load_target(name) for name in names)
    for given in devices or ():
        name, _, where = given.partition("=")
        if not where or name not in {item.name for item in loaded}:
            raise SpecError(
                f"--device {given}",
                "TARGET=WHERE, with a target among those asked: "
                + (", ".join(item.name for item in loaded) or "none was"),
                "ask for the target with --target, too",
            )
        loaded = tuple(with_device(t, where) if t.name == name else t for t in loaded)
    if install:
        loaded = tuple(with_installing(item) for item in loaded)
    if latency_budget_ms is None:
        return loaded
    refuse_unused(["--latency-budget-ms"], loaded)
    return tuple(with_latency_budget(t, latency_budget_ms) if t.is_measured else t for t in loaded)


def _run(
    recipe: "Recipe",
    asked: tuple["Target", ...],
    out: Path,
    command: tuple[str, ...],
    until: "Stage",
    work: "Work",
    as_json: bool,
    measure_again: bool,
) -> None:
    from edgekit.console import show_json
    from edgekit.pipeline import Telling, run as run_pipeline
    from edgekit.validate.verdict import exit_code

    _check_training_is_installed()
    telling = Telling(work.say, work.progress)
    result = run_pipeline(
        recipe,
        asked,
        out,
        command=command,
        until=until,
        telling=telling,
        measure_again=measure_again,
    )
    if result is None:
        work.say(f"stopped after {until}, as asked; without --until the run continues from here")
        if as_json:
            show_json({"stopped_after": until, "out": str(out)})
        raise typer.Exit(0)
    _show(result, out, as_json)
    raise typer.Exit(exit_code(verdict.status for verdict in result.validation.verdicts))


def _check_training_is_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in TRAINING_PACKAGES if find_spec(name) is None]
    if missing:
        raise SpecError(
            f"{', '.join(missing)} not installed",
            "the training packages",
            "install them: pip install 'edgekit[train]'",
        )


def _show(result: "RunReport", out: Path, as_json: bool) -> None:
    from edgekit.console import out as console, show_json, show_verdicts
    from edgekit.report.sentences import (
        agreement_sentence,
        int8_sentence,
        other_sentences,
        unfreezing_sentence,
        what_follows,
    )
    from edgekit.report.terminal import files_table

    if as_json:
        show_json(result.model_dump(mode="json"))
        return
    console.print(unfreezing_sentence(result), markup=False)
    console.print(int8_sentence(result), markup=False)
    for sentence in other_sentences(result):
        console.print(f"no class: {sentence}", markup=False)
    console.print()
    console.print(files_table(result))
    for found in result.validation.on_devices:
        console.print(f"\n{found.target}: {agreement_sentence(found)}", markup=False)
    console.print()
    show_verdicts(result.validation.verdicts)
    console.print(f"\nfiles:  {out / 'artifacts'}\nreport: {out / 'report.md'}", markup=False)
    for sentence in what_follows(result.validation.verdicts, out):
        console.print(f"\n{sentence}", markup=False)
