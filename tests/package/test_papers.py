"""Model card, ML-BOM and provenance: read back by the parsers of those who read them.

The class names, the title and what a device calls itself are hostile here.
"""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from edgekit.package.card import escaped, model_card
from edgekit.package.contents import Contents
from edgekit.package.provenance import provenance
from edgekit.package.sbom import sbom
from edgekit.records import (
    Accuracy,
    Artifact,
    Check,
    DatasetRecord,
    DeviceEvaluation,
    EpochRecord,
    Evaluation,
    ExportRecord,
    FloatModelRecord,
    Latency,
    PairedDrop,
    PhaseRecord,
    PrefixRecord,
    Preprocess,
    QuantizedModelRecord,
    RunReport,
    SplitRecord,
    Status,
    TensorInfo,
    ValidationRecord,
    Verdict,
)
from edgekit.target import DeviceSpec, load_target

HOSTILE = (
    "<script>alert(1)</script>",
    "| a | b |",
    "`code` ```",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "**bold** _it_ ~~no~~ # no",
    "&lt;b&gt; &amp; &#60;",
    "--- ",
    "no",
    "{}: [*a, &b] !!python/object %",
    "\"quoted\" 'it''s' \\",
    "$\\alpha$ <!-- ",
    "http://evil.example www.evil.example",
    "\u202eder\u202c \u2066x\u2069",
    "one\u2028two\u0085three\ufeff",
    "🍎 яблоко تفاحة",
    "*/ // \\( ${x} %s {{x}}",
    "</details></td></table>",
)
SHA = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("float", "int8", "other")}
PREPROCESS = Preprocess(height_px=96, width_px=96)
TOLD_BY_DEVICE = "Pixel <img src=x onerror=alert(1)> | **8**"


def accuracy(classes: int, top1: float) -> Accuracy:
    confusion = [[0] * (classes + 1) for _ in range(classes)]
    for index in range(classes):
        confusion[index][index] = 30
        confusion[index][(index + 1) % classes] = 10
    confusion[0][classes] = 11
    return Accuracy(
        images=40 * classes + 11,
        top1=top1,
        top1_low=top1 - 0.0345,
        top1_high=top1 + 0.0321,
        top5=0.99,
        recall_per_class=(None, *[0.75] * (classes - 1)),
        confusion=tuple(tuple(row) for row in confusion),
    )


def made(
    labels: tuple[str, ...] = HOSTILE,
    status: Status = Status.PASS,
    weights: str = "imagenet",
    **recipe: Any,
) -> tuple[RunReport, Contents]:
    """A run with everything that the papers tell, and the contents of a package of it."""
    count = len(labels)
    drop = PairedDrop(
        images=400, reference_only=7, model_only=3, drop_points=1.0, upper_points=1.87,
        lower_points=0.1, mcnemar_p=0.34, agreement=0.97,
    )  # fmt: skip
    into = TensorInfo(name="image", dtype="int8", shape=(1, 96, 96, 3), scale=1 / 128, zero_point=0)
    out = TensorInfo(name="scores", dtype="int8", shape=(1, count), scale=0.1, zero_point=3)
    artifacts = tuple(
        Artifact(
            format="tflite", variant=variant, io=io, path=f"model_{variant}.tflite",
            sha256=SHA[variant if variant == "int8" else "float"], size_bytes=size, inputs=(into,),
            outputs=(out,), operators={"CONV_2D": 36}, float_tensors=(),
        )
        for variant, io, size in (("float32", "float32", 1_628_736), ("int8", "int8", 620_440))
    )  # fmt: skip
    epochs = tuple(
        EpochRecord(
            train_loss=1.2, train_accuracy=0.6, validation_loss=loss, validation_accuracy=0.7,
            seconds=2.0, images_per_second=500.0,
        )
        for loss in (0.9123, 0.8456)
    )  # fmt: skip
    phase = PhaseRecord(
        purpose="head", fold=None, cut="head", cut_index=155, trainable_parameters=12810,
        training_pictures=1234, learning_rate=0.001, start_loss=3.0, epochs=epochs, best_epoch=1,
        gradient_norms={"head": 1.0},
        prefix=PrefixRecord(
            tensors=("pool",), bytes_per_image=1, views=1, views_stored=0, views_refused=0,
            images_per_second=None, seconds=0.0, departure=None,
        ),
    )  # fmt: skip
    verdict = Verdict(
        target="pixel-8",
        artifact_path="model_int8.tflite",
        artifact_sha256=SHA["int8"],
        checks=(
            Check(name="accuracy_drop", status=Status.PASS, measured="1.00 points",
                  budget="at most 2 points", detail="400 images"),
            Check(name="latency", status=status, measured="p90 | 3 ms",
                  budget="at most 20 ms", detail=TOLD_BY_DEVICE),
        ),
        status=status,
    )  # fmt: skip
    report = RunReport(
        edgekit_version="0.1.0",
        command="edgekit run /home/somebody/recipe.toml",
        machine="AMD EPYC, 2 cores",
        packages={"tensorflow": "2.21.0", "tf_keras": "2.21.0", "tf2onnx": "absent"},
        recipe={
            "seed": 1,
            "targets": ["pixel-8", "/home/somebody/mine.toml"],
            "data": {"path": "/home/somebody/fruit: \"x\" <b>", "crop": "none"},
            "model": {"weights": weights, "alpha": 0.35},
            **recipe,
        },
        recipe_sha256=hashlib.sha256(b"recipe").hexdigest(),
        targets=(load_target("pixel-8").model_dump(mode="json"),),
        dataset=DatasetRecord(
            class_names=labels, preprocess=PREPROCESS,
            splits={
                name: SplitRecord(count=n * count, per_class=(n,) * count)
                for name, n in (("train", 1234), ("validation", 50), ("test", 40))
            },
            skipped=(), notes=(f"imbalance: {labels[0]}",), digest=hashlib.sha256(b"d").hexdigest(),
            images_per_second=1.0,
        ),
        float_model=FloatModelRecord(
            alpha=0.35, input_size_px=(96, 96), class_count=count, cut="head", unfrozen_layers=(),
            phases=(phase,), shipped_phase=0, curve=(), strategy="auto",
            chosen_because="lowest loss", warnings=(), class_weights=None,
            weighed_because="all count alike", validation_accuracy=0.7,
            validation_loss=0.8456, stopped_because="done",
        ),
        quantized=QuantizedModelRecord(candidates=(), shipped="ptq", reason="the only one"),
        export=ExportRecord(
            preprocess=PREPROCESS, class_names=labels, artifacts=artifacts, parity=()
        ),
        validation=ValidationRecord(
            reference="model_float32.tflite",
            evaluations=(
                Evaluation(artifact_sha256=SHA["float"], runtime="LiteRT 2.3.0",
                           accuracy=accuracy(count, 0.7613), drop=None, latency=None),
                Evaluation(artifact_sha256=SHA["int8"], runtime="LiteRT 2.3.0",
                           accuracy=accuracy(count, 0.7513), drop=drop, latency=None),
            ),
            verdicts=(verdict,),
            on_devices=() if status == Status.UNMEASURED else (
                DeviceEvaluation(target="pixel-8", device=TOLD_BY_DEVICE, runtime="LiteRT",
                                 threads=4, accuracy=accuracy(count, 0.7413), drop=drop,
                                 latency=None, against_host=None),
            ),
        ),
        stages=(),
        notes=("few images",),
        peak_memory_bytes=1,
    )  # fmt: skip
    contents = Contents(
        name="fruit",
        title=f"Fruit {labels[0]}",
        licence="Apache-2.0",
        model=b"model",
        model_name="model.tflite",
        artifact=artifacts[1],
        input=into,
        output=out,
        preprocess=PREPROCESS,
        class_names=labels,
        goldens=(),
        target=load_target("pixel-8"),
        verdict=verdict,
        arena_bytes=None,
        facts={"weights_sha256": SHA["other"]},
    )
    return report, contents


# ---- the card


def split(card: str) -> tuple[dict[str, Any], str]:
    """Returns the metadata and the text, as the Hub separates them."""
    import yaml

    found = re.match(r"^---\n([\s\S]+?)\n---\n", card)
    assert found is not None
    metadata: dict[str, Any] = yaml.safe_load(found.group(1))
    return metadata, card[found.end() :]


class Page(HTMLParser):
    """What a browser makes of the rendered card."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self.in_cell = False
        self.text = ""
        html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        self.feed(html.render(text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert all(name == "style" for name, _ in attrs)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data

    def table(self, first: str) -> dict[str, list[str]]:
        """Returns the rows of the table with this first heading, by their first cell."""
        (found,) = (table for table in self.tables if table[0][:2] == first.split("|"))
        return {row[0]: row[1:] for row in found[1:]}


def visible(label: str) -> str:
    """What a reader sees of a label: marks that turn or break a line are named."""
    marks = "\u2028\u2029\u0085\ufeff\u202e\u202c\u2066\u2069"
    return "".join(f"[U+{ord(c):04X}]" if c in marks else c for c in label).strip()


PLAIN_TAGS = {
    "h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "strong", "ul", "li",
    "details", "summary",
}  # fmt: skip


def test_every_hostile_label_is_shown_as_it_is() -> None:
    page = Page(split(model_card(*made()))[1])
    assert page.tags == PLAIN_TAGS
    data, results = page.table("class|train"), page.table("class|test pictures")
    assert list(data) == [*map(visible, HOSTILE), "all"]
    assert list(results) == list(map(visible, HOSTILE))
    assert data[visible(HOSTILE[0])] == ["1,234", "50", "40"]
    # The class that it is most often taken for is a label, too.
    assert results[visible(HOSTILE[1])] == ["40", "75.0%", f"{visible(HOSTILE[2])} (10)"]
    assert results[visible(HOSTILE[0])] == ["51", "-", "another class (11)"]
    assert TOLD_BY_DEVICE in page.text
    assert f"Fruit {HOSTILE[0]}" in page.text


@pytest.mark.parametrize("label", HOSTILE)
def test_escaped_text_is_one_line_of_text(label: str) -> None:
    page = Page(
        f"| a | b |\n| --- | --- |\n| {escaped(label)} | end |\n\nIn a line {escaped(label)}."
    )
    assert page.tables == [[["a", "b"], [visible(label), "end"]]]
    assert f"In a line {visible(label)}" in page.text
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td", "p"}


def test_the_twin_without_escaping_the_page_is_another() -> None:
    changed = 0
    for label in HOSTILE:
        try:
            page = Page(f"| a | b |\n| --- | --- |\n| {label} | end |")
            changed += page.tables != [[["a", "b"], [visible(label), "end"]]]
        except AssertionError:
            changed += 1
    assert changed >= 10


def test_links_in_labels_are_not_made_into_links() -> None:
    """GitHub links what looks like an address; an escaped character in it stops that."""
    assert escaped("http://evil.example www.evil.example @you") == (
        "http:\\//evil.example www\\.evil.example \\@you"
    )


def test_the_metadata() -> None:
    metadata, _ = split(model_card(*made()))
    assert metadata == {
        "license": "apache-2.0",
        "library_name": "litert",
        "pipeline_tag": "image-classification",
        "base_model": "google/mobilenet_v2_0.35_96",
        "base_model_relation": "finetune",
        "tags": ["mobilenet_v2", "edge", "tflite", "int8", "edgekit"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": f"Fruit {HOSTILE[0]}",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {
                            "name": 'fruit: "x" <b>',
                            "type": "imagefolder",
                            "split": "test",
                        },
                        "metrics": [
                            {"type": "accuracy", "name": "Top-1 accuracy", "value": 0.7513},
                            {"type": "accuracy", "name": "Top-5 accuracy", "value": 0.99},
                        ],
                    }
                ],
            }
        ],
    }


TITLES = (*HOSTILE, "a\n---\nlicense: mit", "\ud83d", "\x7f", "null", "1", "2026-01-01", "", " x ")


@pytest.mark.parametrize("title", TITLES)
def test_any_title_comes_back_from_the_metadata(title: str) -> None:
    report, contents = made(("a", "b"))
    card = model_card(report, dataclasses.replace(contents, title=title))
    metadata, text = split(card)
    assert metadata["model-index"][0]["name"] == title
    assert metadata["license"] == "apache-2.0"
    assert text.startswith("\n# ")
    assert card.encode()


def test_the_twin_without_quotes_most_titles_do_not() -> None:
    import yaml

    changed = 0
    for title in TITLES:
        try:
            changed += yaml.safe_load(f"name: {title}") != {"name": title}
        except yaml.YAMLError:
            changed += 1
    assert changed >= 12


def test_what_is_not_true_is_not_in_the_metadata() -> None:
    report, contents = made(weights="/home/somebody/own.h5")
    unknown = contents.artifact.model_copy(update={"sha256": SHA["other"]})
    other = dataclasses.replace(contents, artifact=unknown, licence="LicenseRef-Company Secret\n")
    card = model_card(report, other)
    metadata, text = split(card)
    assert not {"base_model", "metrics", "model-index", "license_link"} & metadata.keys()
    assert metadata["license"] == "other"
    assert metadata["license_name"] == "licenseref-company secret\n"
    assert "were not recorded" in text
    assert "somebody" not in card
    onnx = contents.artifact.model_copy(update={"format": "onnx"})
    gpl = dataclasses.replace(contents, artifact=onnx, licence="GPL-3.0-only")
    metadata, _ = split(model_card(report, gpl))
    assert metadata["library_name"] == "onnx"
    assert metadata["license_link"] == "https://spdx.org/licenses/GPL-3.0-only.html"


def test_the_numbers_of_the_card() -> None:
    report, contents = made(("cat", "dog"))
    page = Page(split(model_card(report, contents))[1])
    variants = page.table("file|kind")
    assert variants["model_int8.tflite (this bundle)"] == [
        "tflite int8", "620 kB", "75.13% (71.7% to 78.3%)", "+1.00 (+1.87)",
    ]  # fmt: skip
    assert variants["model_float32.tflite"][-1] == "-"
    assert page.table("unfrozen from|epoch")["head"] == [
        "2 (kept)", "1.2000", "60.00%", "0.8456", "70.00%",
    ]  # fmt: skip
    assert page.table("check|status")["latency"][0] == "PASS"
    assert report.dataset.digest in page.text
    assert contents.artifact.sha256 in page.text
    assert "test top-1 74.13%" in page.text
    assert "Not measured" not in page.text


def test_what_was_not_measured_is_said_plainly() -> None:
    page = Page(split(model_card(*made(("cat", "dog"), Status.UNMEASURED)))[1])
    assert "Verdict for pixel-8: UNMEASURED" in page.text
    assert "was not measured on the device, so nobody knows" in page.text
    assert "Not measured: latency." in page.text
    assert "No answers or times from the target's own device stand behind this card." in page.text


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"disturbances": ("load 9.5 on | 9 <b> cores",)}, "disturbed: load 9.5 on | 9 <b> cores"),
        ({"session_calls_per_sample": (4, 8)}, "means of 4 to 8 calls"),
        ({}, ""),
    ],
)
def test_what_speaks_against_a_time_stands_beside_it(facts: dict[str, Any], said: str) -> None:
    report, contents = made(("cat", "dog"))
    latency = Latency.model_validate(
        {
            **dict.fromkeys(("p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms"), 12.5),
            "device": "d", "runtime": "r", "threads": 4, "percentile": 90, "samples": 9,
            "session_percentile_ms": (12.5,), "effective_samples": 9.0, "governor": None,
            "context_switches_involuntary": 0, "disturbances": (), **facts,
        }
    )  # fmt: skip
    (device,) = report.validation.on_devices
    told = report.validation.model_copy(
        update={"on_devices": (device.model_copy(update={"latency": latency}),)}
    )
    card = model_card(report.model_copy(update={"validation": told}), contents)
    beside = f" ({said})" if said else ""
    assert f", p90 12.5 ms, threads: 4{beside}." in Page(split(card)[1]).text


# ---- ML-BOM


def problems(bom: bytes) -> Any:
    """Returns what CycloneDX's own schema has against it, or None."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom.decode())


@pytest.mark.parametrize("status", list(Status))
def test_the_bom_is_valid(status: Status) -> None:
    report, contents = made(status=status)
    bom = sbom(report, contents)
    assert problems(bom) is None
    assert problems(sbom(report, dataclasses.replace(contents, facts={}))) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: b["metadata"]["component"].update(type="model"),
        lambda b: b["metadata"]["component"]["hashes"][0].update(content="xyz"),
        lambda b: b["metadata"]["component"]["modelCard"].update(limits=[]),
        lambda b: b.update(serialNumber="urn:uuid:5"),
        lambda b: b["components"][0].pop("type"),
    ],
)
def test_the_twin_a_spoilt_bom_is_not(spoil: Callable[[dict[str, Any]], None]) -> None:
    bom = json.loads(sbom(*made()))
    spoil(bom)
    assert problems(json.dumps(bom).encode()) is not None


def test_what_the_bom_tells() -> None:
    report, contents = made()
    bom = json.loads(sbom(report, contents))
    model = bom["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    packed = hashlib.sha256(contents.model).hexdigest()
    assert model["hashes"] == [{"alg": "SHA-256", "content": packed}]
    (metric,) = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metric["value"] == "0.751300"
    assert metric["confidenceInterval"] == {"lowerBound": "0.716800", "upperBound": "0.783400"}
    urls = {part.get("purl") for part in bom["components"]}
    assert {"pkg:pypi/tensorflow@2.21.0", "pkg:pypi/tf-keras@2.21.0"} <= urls
    assert not any("absent" in str(url) for url in urls)
    weights = [part for part in bom["components"] if part["bom-ref"] == "weights"]
    assert weights[0]["hashes"][0]["content"] == SHA["other"]
    assert report.dataset.digest in json.dumps(bom)
    assert "timestamp" not in json.dumps(bom)


def test_the_number_of_the_bom_follows_its_content() -> None:
    report, contents = made()
    number = json.loads(sbom(report, contents))["serialNumber"]
    assert json.loads(sbom(report, contents))["serialNumber"] == number
    other = dataclasses.replace(contents, title="Other")
    assert json.loads(sbom(report, other))["serialNumber"] != number


# ---- provenance

FILES = {"model.tflite": b"model", "MODEL_CARD.md": b"card", "goldens/inputs.bin": b""}


def test_the_statement() -> None:
    report, contents = made(extra={"deep": ["/home/somebody/a", {"b": 1.5}, "../x/t.toml"]})
    found = json.loads(provenance(report, contents, FILES))
    assert found.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {s["name"]: s["digest"]["sha256"] for s in found["subject"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()
    }
    build = found["predicate"]["buildDefinition"]
    assert build.keys() == {
        "buildType", "externalParameters", "internalParameters", "resolvedDependencies",
    }  # fmt: skip
    asked = build["externalParameters"]
    # Complete: every key of the recipe and of the target.
    assert asked["recipe"].keys() == report.recipe.keys()
    assert asked["recipe"]["model"] == {"weights": "imagenet", "alpha": 0.35}
    assert asked["recipe"]["extra"] == {"deep": ["a", {"b": 1.5}, "t.toml"]}
    assert asked["target"]["budget"]["size_bytes"] == contents.target.budget.size_bytes
    read = {item["name"]: item for item in build["resolvedDependencies"]}
    assert read["data"]["digest"] == {"edgekit-dataset-sha256": report.dataset.digest}
    assert read["weights"]["digest"] == {"sha256": SHA["other"]}
    assert read["tf_keras"]["uri"] == "pkg:pypi/tf-keras@2.21.0"
    assert "tf2onnx" not in read
    # Each names what it was by a digest or an address, as the specification demands.
    assert all({"digest", "uri"} & item.keys() for item in read.values())
    assert found["predicate"]["runDetails"]["builder"]["version"] == {"edgekit": "0.1.0"}


def test_no_paper_tells_where_it_was_made() -> None:
    report, contents = made(weights="/home/somebody/own.h5")
    for paper in (
        model_card(report, contents).encode(),
        sbom(report, contents),
        provenance(report, contents, FILES),
    ):
        assert b"somebody" not in paper
        assert b"/home" not in paper
    assert b"somebody" in report.model_dump_json().encode()


@pytest.mark.parametrize(
    ("target", "device"),
    [
        ("raspberry-pi-5", {"host": "somebody@attic.local", "port": 2222, "python": "~/x/python"}),
        ("pixel-8", {"serial": "0A1B2C3D", "python": "somebody/python3"}),
        ("web-wasm", {"program": "somebody/chrome"}),
    ],
)
def test_no_paper_tells_how_the_device_was_reached(target: str, device: dict[str, object]) -> None:
    report, contents = made()
    asked = load_target(target)
    spec = DeviceSpec.model_validate({**asked.device.model_dump(exclude_none=True), **device})
    contents = dataclasses.replace(contents, target=asked.model_copy(update={"device": spec}))
    said = json.loads(provenance(report, contents, FILES))
    told = said["predicate"]["buildDefinition"]["externalParameters"]["target"]["device"]
    assert not told.keys() & device.keys()
    # The twin: what device it is stays, and its ways stand in the target itself.
    assert told["description"] == asked.device.description
    assert contents.target.model_dump(mode="json")["device"].items() >= device.items()
    papers = model_card(report, contents).encode() + sbom(report, contents)
    for word in (b"somebody", b"attic", b"2222", b"0A1B2C3D"):
        assert word not in papers


def test_the_papers_are_the_same_bytes_in_every_process() -> None:
    program = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); import test_papers as t; "
        "r, c = t.made(); "
        "p = (t.model_card(r, c).encode(), t.sbom(r, c), t.provenance(r, c, t.FILES)); "
        "print([hashlib.sha256(x).hexdigest() for x in p])"
    )
    found = set()
    for seed, zone, locale in (("1", "UTC", "C.UTF-8"), ("2", "Asia/Kathmandu", "C")):
        done = subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": locale},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found.add(done.stdout)
    assert len(found) == 1
