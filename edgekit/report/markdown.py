"""The report as Markdown: verdicts first, then files, curve, quantization and how to repeat it."""

from collections.abc import Iterable, Sequence

from edgekit.records import (
    Accuracy,
    Artifact,
    Evaluation,
    FloatModelRecord,
    Latency,
    RunReport,
    Verdict,
)
from edgekit.report.sentences import (
    agreement_sentence,
    int8_sentence,
    labels_sentences,
    parity_sentences,
    sensitivity_sentences,
)

ANSWERS_NAME = "answers.csv"


def markdown(report: RunReport) -> str:
    """Returns the whole page; every number in it stands in `report.json` too."""
    sections = (
        _summary(report),
        _verdicts(report),
        _files(report),
        *_devices(report),
        _curve(report),
        _quantization(report),
        _classes(report),
        *_labels(report),
        *_other(report),
        _parity(report),
        _repeat(report),
    )
    return "\n\n".join(sections) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; pipes and line breaks in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    clean = text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return clean.replace("<", "&lt;") if text != "---" else text


def _summary(report: RunReport) -> str:
    model, data = report.float_model, report.dataset
    counts = ", ".join(f"{split.count} {name}" for name, split in data.splits.items())
    lines = [
        "# edgekit report",
        "",
        f"MobileNetV2 {model.alpha} at {model.size_in_words}, {model.class_count} classes, "
        f"{counts} images. Fine-tuned from `{model.cut}` on; {model.stopped_because}.",
    ]
    lines += [f"\n> {note}" for note in (*report.notes, *parity_sentences(report.export))]
    return "\n".join(lines)


def _labels(report: RunReport) -> tuple[str, ...]:
    """Returns the labels that are contradicted by what their pictures show."""
    found = report.labels
    if found is None or not (found.first or found.confused):
        return ()
    rows = [
        (item.path, item.split, item.label, item.suggested, f"{item.confidence:.1%}")
        for item in found.first
    ]
    about = labels_sentences(found)
    header = ("picture", "split", "label", "looks like", "probability")
    first = () if not rows else ("", table(header, rows))
    listed = "suspicious_labels.csv and suspicious_labels.html have all of them" if rows else ""
    lines = (f"- {_cell(sentence)}." for sentence in about)
    return ("\n".join(("## Labels", "", *lines, *first, "", listed)).rstrip(),)


def _other(report: RunReport) -> tuple[str, ...]:
    """Returns above which score the answers of every file count, if pictures of no class say."""
    found = report.validation.other
    if found is None:
        return ()
    rows = []
    for artifact in report.export.artifacts:
        of_file = found.by_digest[artifact.sha256]
        share = f"{of_file.false_accepts / found.held_out:.2%}"
        right = of_file.accepted_right / of_file.accepted if of_file.accepted else None
        rows.append(
            (
                artifact.path,
                f"{of_file.threshold:.6g}",
                f"{share} ({of_file.low:.2%} to {of_file.high:.2%})",
                f"{of_file.accepted / found.images:.2%}",
                "-" if right is None else f"{right:.2%}",
            )
        )
    header = ("file", "score above", "of no class, answered (95 %)", "of a class, answered",
              "right of these")  # fmt: skip
    about = (
        "The score is the highest output. An answer counts if its score is above the one here, "
        f"which follows from {found.deciding} pictures of no class so that with 95 % confidence at "
        f"most {found.false_accept_rate:.1%} of all such pictures get an answer"
    )
    if found.deciding < found.needed:
        about += f"; {found.needed} would be needed for that, so it is the highest of their scores"
    return (
        "\n".join(
            (
                "## Pictures of no class",
                "",
                table(header, rows),
                "",
                f"{about}. The shares are those of {found.held_out} held-out pictures of no class "
                f"and of {found.images} test pictures.",
            )
        ),
    )


def _verdicts(report: RunReport) -> str:
    header = ("target", "status", "measured", "file")
    parts = ["## Verdicts", "", table(header, map(_verdict_row, _v(report)))]
    for verdict in _v(report):
        rows = [(c.name, c.status, c.measured, c.budget, c.detail) for c in verdict.checks]
        parts += [
            "",
            f"### {verdict.target}: {verdict.status}",
            "",
            table(("check", "status", "measured", "budget", "why"), rows),
            *(f"\nNote: {note}." for note in verdict.notes),
        ]
    return "\n".join(parts)


def _v(report: RunReport) -> tuple[Verdict, ...]:
    return report.validation.verdicts


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    file = f"{verdict.artifact_path} (sha256 {(verdict.artifact_sha256 or '')[:12]}...)"
    return verdict.target, verdict.status, verdict.in_words, file


def _files(report: RunReport) -> str:
    by_digest = report.validation.on_one_thread
    beside = _beside(by_digest[a.sha256].latency for a in report.export.artifacts)
    rows = [_file_row(a, by_digest[a.sha256], report, beside) for a in report.export.artifacts]
    header = ("file", "size", "test top-1 (95 %)", "macro recall", "top-5",
              "drop in points (limit)", "McNemar p", "agrees", "SQNR dB",
              "p50 ms", "p90 ms", "p99 ms",
              *beside,
              "judged for")  # fmt: skip
    timed = report.validation.evaluations[0].latency
    about = f"Latency: one image a call, one thread, on {report.machine}"
    if timed is not None:
        about += f", {len(timed.session_percentile_ms)} fresh processes per file"
    return "\n".join(
        (
            "## Files",
            "",
            table(header, rows),
            "",
            f"Drop: against {report.validation.reference}, paired on the same images; the limit is "
            "Tango's one-sided 95 % upper limit. SQNR: power of its scores over the power of the "
            "difference from them. Macro recall: mean of the recalls of the classes.",
            f"{about}.",
            "",
            f"`{ANSWERS_NAME}` beside this page holds what each file answered for each test "
            "picture.",
        )
    )


def _file_row(
    artifact: Artifact, evaluation: Evaluation, report: RunReport, beside: tuple[str, ...]
) -> tuple[str, ...]:
    drop, latency = evaluation.drop, evaluation.latency
    judged = [
        f"{verdict.target} {verdict.status}"
        for verdict in _v(report)
        if verdict.artifact_sha256 == artifact.sha256
    ]
    return (
        artifact.path,
        f"{artifact.size_bytes / 1000:,.0f} kB",
        _accuracy(evaluation.accuracy),
        f"{evaluation.accuracy.macro_recall:.2%}",
        "-" if evaluation.accuracy.top5 is None else f"{evaluation.accuracy.top5:.2%}",
        "reference" if drop is None else f"{drop.drop_points:+.2f} ({drop.upper_points:+.2f})",
        "-" if drop is None else f"{drop.mcnemar_p:.3f}",
        "-" if drop is None else f"{drop.agreement:.1%}",
        "-" if evaluation.sqnr_db is None else f"{evaluation.sqnr_db:.1f}",
        *_times(latency),
        *(_caveat(latency) for _ in beside),
        (", ".join(judged) or "-") if artifact.ships else "does not ship",
    )


def _devices(report: RunReport) -> tuple[str, ...]:
    """Returns what was measured on the targets' own devices."""
    found = report.validation.on_devices
    if not found:
        return ()
    beside = _beside(e.latency for e in found)
    rows = [
        (
            e.target,
            e.device,
            f"{e.runtime}, {e.threads} threads",
            "-" if e.accuracy is None else _accuracy(e.accuracy),
            "-" if e.drop is None else f"{e.drop.drop_points:+.2f} ({e.drop.upper_points:+.2f})",
            *_times(e.latency),
            *(_caveat(e.latency) for _ in beside),
            "-" if e.latency is None or e.latency.hottest_c is None
            else f"{e.latency.hottest_c:.0f} °C",
        )
        for e in found
    ]  # fmt: skip
    header = ("target", "device", "runtime", "test top-1 (95 %)", "drop in points (limit)",
              "p50 ms", "p90 ms", "p99 ms", *beside, "hottest")  # fmt: skip
    sentences = (f"- {e.target}: {agreement_sentence(e)}." for e in found)
    return ("\n".join(("## On the devices", "", table(header, rows), "", *sentences)),)


def _times(latency: Latency | None) -> tuple[str, ...]:
    if latency is None:
        return "-", "-", "-"
    return tuple(f"{value:.3f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms))


def _beside(latencies: Iterable[Latency | None]) -> tuple[str, ...]:
    """Returns the heading of the column beside times; none where nothing has to stand there."""
    return ("about the times",) if any(x is not None and x.caveat for x in latencies) else ()


def _caveat(latency: Latency | None) -> str:
    return "-" if latency is None else latency.caveat or "-"


def _accuracy(accuracy: Accuracy) -> str:
    return f"{accuracy.top1:.2%} ({accuracy.top1_low:.1%} to {accuracy.top1_high:.1%})"


def _curve(report: RunReport) -> str:
    model = report.float_model
    return "\n".join(
        (
            "## Progressive unfreezing",
            "",
            *_compared(model),
            *_phases(model),
            "",
            "Train loss is smoothed cross-entropy on augmented pictures, by the weights themselves;"
            " validation loss is neither smoothed nor augmented, by the mean of the weights, and at"
            " the temperature at which it is lowest.",
            "",
            f"- Classes: {model.weighed_because}.",
            f"- Strategy {model.strategy}.",
            f"- Stopped: {model.stopped_because}.",
            f"- Shipped: {model.chosen_because}.",
            *(f"- Warning: {warning}." for warning in model.warnings),
            "",
            _speed(report),
        )
    )


def _compared(model: FloatModelRecord) -> tuple[str, ...]:
    """Returns validation loss and cost against the cut, if cuts were compared."""
    if not model.curve:
        return ()
    finals = [phase.cut for phase in model.phases if phase.purpose == "final"]
    chosen = finals[0] if finals else model.cut
    rows = [
        (
            score.cut + (" (chosen)" if score.cut == chosen else ""),
            f"{score.trainable_parameters:,}",
            f"{score.validation_loss:.4f}",
            f"{score.excess:+.4f} ({score.standard_error:.4f})",
            f"{score.seconds:.1f}",
        )
        for score in model.curve
    ]
    header = ("unfrozen from", "parameters", "validation loss of its trial",
              "above the lowest (std. error)", "seconds")  # fmt: skip
    return (table(header, rows), "")


def _phases(model: FloatModelRecord) -> tuple[str, ...]:
    """Returns the phases that are no trials, and what their best epochs came to."""
    rows = []
    for number, phase in enumerate(model.phases):
        if phase.purpose == "trial":
            continue
        best = phase.epochs[phase.best_epoch]
        rows.append(
            (
                phase.purpose,
                phase.cut + (" (ships)" if number == model.shipped_phase else ""),
                f"{phase.trainable_parameters:,}",
                f"{phase.learning_rate:.2e}",
                f"{phase.best_epoch + 1} of {len(phase.epochs)}",
                f"{best.train_loss:.4f}",
                f"{best.train_accuracy:.2%}",
                f"{best.validation_loss:.4f}",
                f"{best.validation_accuracy:.2%}",
            )
        )
    header = ("training", "unfrozen from", "parameters", "peak learning rate", "best epoch",
              "train loss", "train top-1", "validation loss", "validation top-1")  # fmt: skip
    return (table(header, rows),)


def _speed(report: RunReport) -> str:
    """Returns what limited the training, and how hard each block was pulled, folded away."""
    rows = []
    for phase in report.float_model.phases:
        prefix = phase.prefix
        frozen = "-" if prefix.images_per_second is None else f"{prefix.images_per_second:,.0f}"
        fastest = max(epoch.images_per_second for epoch in phase.epochs)
        rows.append(
            (
                phase.purpose,
                phase.cut + ("" if phase.fold is None else f", fold {phase.fold + 1}"),
                f"{phase.training_pictures:,}",
                frozen,
                f"{prefix.seconds:.1f}",
                f"{fastest:,.0f}",
                f"{sum(epoch.seconds for epoch in phase.epochs):.1f}",
                f"{prefix.views_stored} of {prefix.views}",
                f"{prefix.bytes_per_image:,}",
                ", ".join(prefix.tensors),
                "-" if prefix.departure is None else f"{prefix.departure:.1e}",
                ", ".join(f"{block} {norm:.2g}" for block, norm in phase.gradient_norms.items()),
            )
        )
    header = ("training", "unfrozen from", "pictures", "frozen part images/s", "seconds",
              "unfrozen part images/s", "seconds", "views stored",
              "bytes per picture and view at the cut", "tensors at the cut",
              "relative difference from Keras",
              "gradient norm of each block, first steps")  # fmt: skip
    decoded = f"Decoding ran at {report.dataset.images_per_second:,.0f} images/s."
    return "\n".join(
        (
            "<details><summary>Speed and gradients</summary>",
            "",
            table(header, rows),
            "",
            decoded,
            "",
            "</details>",
        )
    )


def _quantization(report: RunReport) -> str:
    quantized = report.quantized
    rows = [
        (
            c.name + (" (ships)" if c.name == quantized.shipped else ""),
            f"{c.validation_accuracy:.2%}",
            f"{c.validation_loss:.4f}",
            f"{c.agreement_with_float:.1%}",
            str(len(c.epochs)),
        )
        for c in quantized.candidates
    ]
    header = ("candidate", "validation top-1", "validation loss", "agrees with float", "epochs")
    shipped = next(c for c in quantized.candidates if c.name == quantized.shipped)
    costs = {item.layer: item for item in quantized.sensitivity}
    kept = {item.layer: item for item in shipped.layers}
    layers = [
        (
            name,
            kept[name].how if name in kept else "calibrated",
            f"{costs[name].alone_db:.1f}" if name in costs else "-",
            f"{costs[name].regained_db:+.2f}" if name in costs else "-",
            kept[name].reason if name in kept else "carries no weights",
        )
        for name in dict.fromkeys((*costs, *kept))
    ]
    return "\n".join(
        (
            "## Quantization",
            "",
            table(header, rows),
            "",
            f"{int8_sentence(report)}.",
            *(f"\n{sentence}." for sentence in sensitivity_sentences(report)),
            *(f"\nWarning: {warning}." for warning in quantized.warnings),
            "",
            "<details><summary>Layer by layer</summary>",
            "",
            table(
                (
                    "layer",
                    "how",
                    "SQNR dB if it alone is int8",
                    "dB if it alone stays float32",
                    "why",
                ),
                layers,
            ),
            "",
            "</details>",
        )
    )


def _classes(report: RunReport) -> str:
    names = report.dataset.class_names
    by_digest = {e.artifact_sha256: e.accuracy for e in report.validation.evaluations}
    chosen = [v for v in _v(report) if v.artifact_sha256 in by_digest][:1]
    if not chosen:
        return "## Classes\n\nNo file was judged."
    accuracy = by_digest[chosen[0].artifact_sha256 or ""]
    per_class = report.dataset.splits["test"].per_class
    rows = []
    for index, name in enumerate(names):
        recall = accuracy.recall_per_class[index]
        confused = [
            (count, other) for other, count in enumerate(accuracy.confusion[index])
            if other != index and count
        ]  # fmt: skip
        most = max(confused, default=None)
        known = most is not None and most[1] < len(names)
        rows.append(
            (
                name,
                str(per_class[index]),
                "-" if recall is None else f"{recall:.1%}",
                "-" if most is None else f"{names[most[1]] if known else 'outside'} ({most[0]})",
            )
        )
    title = f"## Classes ({chosen[0].artifact_path})"
    classes = table(("class", "test images", "recall", "most often taken for"), rows)
    return "\n".join((title, "", classes, "", _confusion(names, accuracy)))


def _confusion(names: Sequence[str], accuracy: Accuracy) -> str:
    """Returns the confusion matrix, folded away; the last column counts answers outside."""
    rows = [
        (name, *(str(count) for count in counts))
        for name, counts in zip(names, accuracy.confusion, strict=True)
    ]
    header = ("is / answered", *names, "outside")
    matrix = table(header, rows)
    return f"<details><summary>Confusion matrix</summary>\n\n{matrix}\n\n</details>"


def _parity(report: RunReport) -> str:
    paths = {artifact.sha256: artifact.path for artifact in report.export.artifacts}
    rows = [
        (
            paths[p.artifact_sha256],
            p.source,
            f"{p.same_answers} of {p.images}",
            "-" if p.sqnr_db is None else f"{p.sqnr_db:.1f}",
            "-" if p.explained_db is None else f"{p.explained_db:.1f}",
            p.status,
            p.reason,
        )
        for p in report.export.parity
    ]
    header = ("file", "made from", "same answer", "SQNR dB", "rounding explains dB", "status",
              "why")  # fmt: skip
    return "\n".join(("## Parity", "", table(header, rows), *_formats(report)))


def _formats(report: RunReport) -> tuple[str, ...]:
    """Returns how alike the two int8 formats answer, and every layer folded away."""
    found = report.export.formats
    if found is None:
        return ()
    departs = (
        f"the first layer with a value of another code is `{found.departs}`, and what it changes "
        "passes through the next."
        if found.departs
        else "every layer makes the same codes."
    )
    rows = [
        (
            layer.layer,
            f"{layer.values:,}",
            f"{layer.equal:.3%}",
            f"{layer.within_one:.3%}",
            str(layer.largest_steps),
        )
        for layer in found.layers
    ]
    header = ("layer", "values", "same code", "at most one apart", "most apart")
    return (
        "",
        f"int8 TFLite and int8 ONNX: the same answer to {found.top1_agreement:.2%} of "
        f"{found.images} pictures; {found.equal:.2%} of the logits have the same code, "
        f"{found.within_two:.2%} are at most two steps apart, the furthest "
        f"{found.largest_steps:g}. Layer by layer, on {found.layer_images} pictures, {departs}",
        "",
        "<details><summary>Codes of every layer, XNNPACK and onnxruntime</summary>",
        "",
        table(header, rows),
        "",
        "</details>",
    )


def _repeat(report: RunReport) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in report.packages.items())
    stages = ", ".join(
        f"{s.stage} {s.seconds:.1f} s{' (reused)' if s.reused else ''}" for s in report.stages
    )
    return "\n".join(
        (
            "## How to repeat it",
            "",
            "```",
            report.command,
            "```",
            "",
            f"Stages: {stages}. Peak memory: {report.peak_memory_bytes / 1e6:,.0f} MB.",
            "",
            f"edgekit {report.edgekit_version}; {packages}. Data digest {report.dataset.digest}, "
            f"recipe digest {report.recipe_sha256}.",
        )
    )
