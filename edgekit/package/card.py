"""The model card of a bundle: Hugging Face metadata, then what the model is, was judged and lacks.

Package layer. Class names, titles and what devices say about themselves are untrusted: they come
out as text, never as Markdown, HTML or YAML.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from edgekit.package.contents import Contents
from edgekit.records import Accuracy, Evaluation, RunReport, Status, Verdict

# SPDX identifiers that Hugging Face knows by the same name in lower case.
# Source: https://huggingface.co/docs/hub/repositories-licenses
_HUB_LICENCES = re.compile(
    "apache-2.0|mit|afl-3.0|artistic-2.0|bsl-1.0|bsd-[23]-clause|bsd-3-clause-clear|cc0-1.0"
    "|cc-by(-sa)?-[34].0|cc-by-2.[05]|cc-by-nc(-sa)?-[234].0|cc-by-nd-4.0|cc-by-nc-nd-[34].0"
    "|ecl-2.0|epl-[12].0|eupl-1.[12]|isc|lppl-1.3c|mpl-2.0|ms-pl|ncsa|ofl-1.1|osl-3.0|postgresql"
    "|unlicense|wtfpl|zlib".replace(".", r"\.")
)
# The four MobileNetV2 that the Hub has, by width and input. Keras's published weights are
# translations of the same checkpoints. Source: the head of keras_applications/mobilenet_v2.py.
_HUB_MODELS = {
    (0.35, 96): "google/mobilenet_v2_0.35_96",
    (0.75, 160): "google/mobilenet_v2_0.75_160",
    (1.0, 224): "google/mobilenet_v2_1.0_224",
    (1.4, 224): "google/mobilenet_v2_1.4_224",
}
_LIBRARIES = {"tflite": "litert", "onnx": "onnx", "ort": "onnx"}
_FEW_IMAGES = 30
# Marks that turn or break the lines of whoever reads them, and halves of characters.
_INVISIBLE = re.compile(
    "[\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\x00-\x1f\x7f-\x9f\ud800-\udfff]"
)
_MARKUP = re.compile(r"([\\`*_{}\[\]#!|~$@]|(?<=:)/(?=/)|(?<=www)\.)", re.I)
# What YAML 1.1 and 1.2 refuse or take for line breaks in a quoted text although JSON does not.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_MEANING = {
    Status.PASS: "every budget was checked and is met",
    Status.MISS: "at least one budget is not met",
    Status.INCONCLUSIVE: "the measurements do not decide at least one budget",
    Status.UNMEASURED: "at least one budget was not measured on the device, so nobody knows",
}


def model_card(report: RunReport, contents: Contents) -> str:
    """Returns MODEL_CARD.md.

    Args:
        report: The run that made the file.
        contents: What is packed.
    """
    sections = (
        _head(report, contents),
        _intended(contents),
        _data(report),
        _training(report),
        _variants(report, contents),
        _verdict(report, contents),
        _classes(report, contents),
        *_other(report, contents),
        _limits(report, contents),
        _origin(report, contents),
    )
    return _metadata(report, contents) + "\n" + "\n\n".join(sections) + "\n"


def judged_here(report: RunReport, contents: Contents) -> Evaluation | None:
    """Returns what was measured of the packed file on the machine that made it, or None."""
    return report.validation.on_one_thread.get(contents.artifact.sha256)


def data_name(report: RunReport) -> str:
    """Returns the name of the data folder, without the folders of the machine it lay on."""
    path = str(report.recipe.get("data", {}).get("path", ""))
    return PurePath(path.replace("\\", "/")).name or "pictures"


def escaped(text: str) -> str:
    """Returns text that Markdown and HTML show as it is.

    Marks that would turn the reading direction or break the line are named, as in [U+202E].
    """
    named = _INVISIBLE.sub(lambda found: f"[U+{ord(found.group()):04X}]", text)
    plain = named.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", plain)


def _quoted(value: str | float) -> str:
    """Returns one YAML scalar: a number, or a text in JSON's quotes, which YAML reads alike."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _metadata(report: RunReport, contents: Contents) -> str:
    """Returns the YAML header. Source: huggingface/hub-docs, modelcard.md."""
    spdx = contents.licence.lower()
    lines = [f"license: {_quoted(spdx)}"]
    if not _HUB_LICENCES.fullmatch(spdx):
        lines = ['license: "other"', f"license_name: {_quoted(spdx)}"]
        if re.fullmatch(r"[A-Za-z0-9.+-]+", contents.licence):
            link = f"https://spdx.org/licenses/{contents.licence}.html"
            lines.append(f"license_link: {_quoted(link)}")
    artifact = contents.artifact
    lines += [
        f"library_name: {_quoted(_LIBRARIES[artifact.format])}",
        'pipeline_tag: "image-classification"',
    ]
    base = _base_model(report)
    if base is not None:
        lines += [f"base_model: {_quoted(base)}", 'base_model_relation: "finetune"']
    lines += ["tags:"]
    lines += [
        f"- {_quoted(tag)}"
        for tag in ("mobilenet_v2", "edge", artifact.format, artifact.variant, "edgekit")
    ]
    measured = judged_here(report, contents)
    if measured is not None:
        accuracy = measured.accuracy
        metrics = [("Top-1 accuracy", accuracy.top1)]
        metrics += [("Top-5 accuracy", accuracy.top5)] if accuracy.top5 is not None else []
        lines += [
            "metrics:",
            '- "accuracy"',
            "model-index:",
            f"- name: {_quoted(contents.title)}",
            "  results:",
            "  - task:",
            '      type: "image-classification"',
            "    dataset:",
            f"      name: {_quoted(data_name(report))}",
            '      type: "imagefolder"',
            '      split: "test"',
            "    metrics:",
        ]
        for name, value in metrics:
            kind = '    - type: "accuracy"'
            lines += [kind, f"      name: {_quoted(name)}", f"      value: {_quoted(value)}"]
    return "\n".join(("---", *lines, "---")) + "\n"


def _base_model(report: RunReport) -> str | None:
    model = report.float_model
    if report.recipe.get("model", {}).get("weights") != "imagenet":
        return None
    height, width = model.input_size_px
    return _HUB_MODELS.get((model.alpha, height)) if height == width else None


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [[escaped(cell) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _head(report: RunReport, contents: Contents) -> str:
    model, artifact, verdict = report.float_model, contents.artifact, contents.verdict
    shipped = hashlib.sha256(contents.model).hexdigest()
    judged = (
        ""
        if shipped == artifact.sha256
        else f" (with metadata; judged without, as `{artifact.sha256}`, with the same answers)"
    )
    return (
        f"# {escaped(contents.title)}\n\n"
        f"MobileNetV2 (width {model.alpha:g}, {model.size_in_words}) that tells "
        f"{len(contents.class_names)} classes of pictures apart. This bundle holds "
        f"`{contents.model_name}`: {artifact.format}, {artifact.variant}, {artifact.io} input and "
        f"output, {len(contents.model):,} bytes, SHA-256 `{shipped}`{judged}.\n\n"
        f"Judged for the target {escaped(verdict.target)}: **{verdict.status}** "
        f"({_MEANING[verdict.status]})."
    )


def _intended(contents: Contents) -> str:
    into, preprocess = contents.input, contents.preprocess
    fitted = {
        "none": "stretched, resized to",
        "center": "its largest centred part of that shape, resized to",
        "letterbox": f"the whole of it, on {preprocess.fill}, scaled to fit inside",
    }[preprocess.crop]
    channels = f"channels in {preprocess.channels} order"
    if preprocess.channels == "grey":
        channels = "its luma (ITU-R 601-2, taken before resizing) in the only channel"
    threshold = contents.score_threshold
    unknown = "it always answers one of its classes"
    if threshold is not None:
        unknown += ", most of them with a score that does not count"
    counts = (
        "" if threshold is None else f" An answer counts if its score is above {threshold:.9g}."
    )
    coded = (
        ""
        if into.scale is None
        else f", quantized with scale {into.scale:.9g} and zero point {into.zero_point}"
    )
    return (
        "## Intended use\n\n"
        "Naming the one class that a photograph shows, on a device, among the classes below and "
        f"for pictures like those it was trained on. The target it was made for: "
        f"{escaped(contents.target.description)}\n\n"
        f"Not for: pictures of anything else ({unknown}), several "
        "objects in one picture, finding where something is, identifying people, or decisions "
        "about people's health, safety or rights.\n\n"
        f"Input: RGB picture, EXIF orientation applied, {fitted} {preprocess.width_px} x "
        f"{preprocess.height_px} px ({preprocess.resize}, antialiased), {channels}, pixel p "
        f"becomes p * scale + offset with scale {_numbers(preprocess.scale)} and offset "
        f"{_numbers(preprocess.offset)}, as {into.dtype}"
        f"{coded}. Output: one score for each line of `labels.txt`, in that order.{counts}"
    )


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.9g}" for value in values) + ")"


def _data(report: RunReport) -> str:
    data = report.dataset
    names = [name for name in ("train", "validation", "test") if name in data.splits]
    rows = [
        (label, *(f"{data.splits[name].per_class[index]:,}" for name in names))
        for index, label in enumerate(data.class_names)
    ]
    rows.append(("all", *(f"{data.splits[name].count:,}" for name in names)))
    notes = "".join(f"\n- {escaped(note)}" for note in data.notes)
    left_out = f"{len(data.skipped)} files of the folder were left out.\n" if data.skipped else ""
    return (
        f"## Data\n\nPictures of the folder {escaped(data_name(report))}; digest of all files and "
        f"their classes: `{data.digest}`.\n\n"
        f"{_table(('class', *names), rows)}\n\n{left_out}{notes}"
    ).rstrip()


def _training(report: RunReport) -> str:
    model = report.float_model
    rows = []
    for index, phase in enumerate(model.phases):
        if phase.purpose == "trial":
            continue
        for number, epoch in enumerate(phase.epochs, 1):
            kept = index == model.shipped_phase and number - 1 == phase.best_epoch
            rows.append(
                (
                    phase.cut,
                    f"{number}{' (kept)' if kept else ''}",
                    f"{epoch.train_loss:.4f}",
                    f"{epoch.train_accuracy:.2%}",
                    f"{epoch.validation_loss:.4f}",
                    f"{epoch.validation_accuracy:.2%}",
                )
            )
    header = ("unfrozen from", "epoch", "train loss", "train top-1",
              "validation loss", "validation top-1")  # fmt: skip
    warnings = "".join(f"\n- {escaped(warning)}" for warning in model.warnings)
    return (
        "## Training\n\nTransfer learning from "
        f"{_weights(report)}: a new head first, then the network behind a cut. "
        f"Kept: {escaped(model.chosen_because)}.\n\n"
        f"<details><summary>Learning curve</summary>\n\n{_table(header, rows)}\n\n</details>\n\n"
        "Train loss is smoothed cross-entropy on varied pictures; validation loss is neither, and "
        "is taken at the temperature at which it is lowest.\n"
        f"\nQuantization: {escaped(report.quantized.reason)}.\n{warnings}"
    ).rstrip()


def _weights(report: RunReport) -> str:
    weights = report.recipe.get("model", {}).get("weights")
    if weights == "imagenet":
        return "the ImageNet weights that Keras publishes"
    return "weights drawn at random" if weights == "none" else "weights of a file"


def _variants(report: RunReport, contents: Contents) -> str:
    found = report.validation.on_one_thread
    rows = []
    for artifact in report.export.artifacts:
        measured = found.get(artifact.sha256)
        drop = None if measured is None else measured.drop
        packed = " (this bundle)" if artifact.sha256 == contents.artifact.sha256 else ""
        rows.append(
            (
                artifact.path + packed,
                f"{artifact.format} {artifact.variant}",
                f"{artifact.size_bytes / 1000:,.0f} kB",
                "not measured" if measured is None else _accuracy(measured.accuracy),
                "-" if drop is None else f"{drop.drop_points:+.2f} ({drop.upper_points:+.2f})",
            )
        )
    header = ("file", "kind", "size", "test top-1 (95 % interval)", "drop in points (95 % limit)")
    reference = escaped(report.validation.reference)
    return (
        f"## Variants of this run\n\n{_table(header, rows)}\n\nDrop: against {reference} on the "
        "same pictures; its limit is Tango's one-sided upper limit. Intervals are Wilson's."
    )


def verdict_table(verdict: Verdict) -> str:
    """Returns the checks of a verdict as the card shows them."""
    rows = [(c.name, c.status, c.measured, c.budget, c.detail) for c in verdict.checks]
    return _table(("check", "status", "measured", "budget", "why"), rows)


def _accuracy(accuracy: Accuracy) -> str:
    return f"{accuracy.top1:.2%} ({accuracy.top1_low:.1%} to {accuracy.top1_high:.1%})"


def _verdict(report: RunReport, contents: Contents) -> str:
    verdict = contents.verdict
    parts = [
        f"## Verdict for {escaped(verdict.target)}: {verdict.status}",
        f"{verdict.status}: {_MEANING[verdict.status]}.",
        verdict_table(verdict),
    ]
    unmeasured = [check.name for check in verdict.checks if check.status == Status.UNMEASURED]
    if unmeasured:
        parts.append(
            f"**Not measured: {escaped(', '.join(unmeasured))}.** Nothing in this card says how "
            "the file does there; measure it on the device before relying on it."
        )
    parts += [f"Note: {escaped(note)}." for note in verdict.notes]
    on_device = [e for e in report.validation.on_devices if e.target == verdict.target]
    for found in on_device:
        said = f"On the device ({escaped(found.device)}; {escaped(found.runtime)})"
        if found.accuracy is not None:
            said += f": test top-1 {_accuracy(found.accuracy)}"
        if found.latency is not None:
            said += f", p90 {found.latency.p90_ms:.3g} ms, threads: {found.threads}"
            if found.latency.caveat:
                said += f" ({escaped(found.latency.caveat)})"
        parts.append(f"{said}. {escaped(found.origin)}".rstrip())
    if not on_device:
        parts.append("No answers or times from the target's own device stand behind this card.")
    return "\n\n".join(parts)


def _classes(report: RunReport, contents: Contents) -> str:
    measured = judged_here(report, contents)
    if measured is None:
        return "## Results by class\n\nThis file's answers on the test pictures were not recorded."
    rows, few = [], 0
    for index, label in enumerate(contents.class_names):
        recall = measured.accuracy.recall_per_class[index]
        row = measured.accuracy.confusion[index]
        count = sum(row)
        few += count < _FEW_IMAGES
        others = [(wrong, -other) for other, wrong in enumerate(row) if other != index and wrong]
        most = max(others, default=None)
        rows.append(
            (label, f"{count}", "-" if recall is None else f"{recall:.1%}", _taken(most, contents))
        )
    header = ("class", "test pictures", "recall", "most often taken for")
    warning = (
        f"\n\n{few} classes have fewer than {_FEW_IMAGES} test pictures; their recall says little."
        if few
        else ""
    )
    return (
        f"## Results by class\n\nOn the machine that made the bundle, {escaped(measured.runtime)}, "
        f"{measured.accuracy.images} test pictures: top-1 {_accuracy(measured.accuracy)}.\n\n"
        f"{_table(header, rows)}{warning}"
    )


def _taken(most: tuple[int, int] | None, contents: Contents) -> str:
    if most is None:
        return "-"
    count, other = most[0], -most[1]
    known = other < len(contents.class_names)
    return f"{contents.class_names[other] if known else 'another class'} ({count})"


def _other(report: RunReport, contents: Contents) -> tuple[str, ...]:
    """Returns what the score above which an answer counts comes to; nothing without one."""
    found = report.validation.other
    if found is None:
        return ()
    said = escaped(found.in_words(contents.artifact))
    return (f"## Pictures of no class\n\nOn the machine that made the bundle, {said}.",)


def _limits(report: RunReport, contents: Contents) -> str:
    limits = [
        "It knows nothing but its classes, and its scores are no probabilities of being right.",
        "Accuracy was measured on pictures of the same collection as the training's; on other "
        "cameras, places, light or people it may be lower.",
        "It was not tested for fairness between groups of people, nor against pictures made to "
        "deceive it.",
    ]
    if contents.artifact.variant not in ("float32", "float16"):
        limits.append(
            "Quantization moves scores; compare classes, not scores, with the float file."
        )
    limits += list(report.notes)
    return "## Limits\n\n" + "\n".join(f"- {escaped(limit)}" for limit in dict.fromkeys(limits))


def _origin(report: RunReport, contents: Contents) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in report.packages.items())
    facts = "".join(
        f"\n- {escaped(key)}: {escaped(value)}" for key, value in sorted(contents.facts.items())
    )
    return (
        f"## How it was made\n\nedgekit {escaped(report.edgekit_version)}; {escaped(packages)}. "
        f"Measured on {escaped(report.machine)}. Recipe digest `{report.recipe_sha256}`; the "
        "recipe stands in `provenance.json`, the parts in `sbom.cdx.json`. `python3 verify.py` "
        f"checks the files and the model's answers.\n{facts}"
    ).rstrip()
