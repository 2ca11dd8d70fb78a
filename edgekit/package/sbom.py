"""The parts of a bundle as a CycloneDX 1.6 ML-BOM: the model with its card, data and packages.

Package layer. Source: https://cyclonedx.org/docs/1.6/json/
"""

import hashlib
import json
import uuid
from typing import Any

from edgekit.package.card import data_name, judged_here
from edgekit.package.contents import Contents
from edgekit.records import RunReport
from edgekit.store import canonical

_SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_MODEL, _DATA, _WEIGHTS = "model", "data", "weights"


def sbom(report: RunReport, contents: Contents) -> bytes:
    """Returns sbom.cdx.json: the same bytes for the same run and contents, so without a time.

    Args:
        report: The run that made the file.
        contents: What is packed; the fact "weights_sha256" names the starting weights.
    """
    packages = [_package(name, version) for name, version in _packages(report).items()]
    weights = _weights(contents)
    bom: dict[str, Any] = {
        "$schema": _SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": "edgekit",
                        "version": report.edgekit_version,
                    }
                ]
            },
            "component": _model(report, contents),
        },
        "components": [_dataset(report), *weights, *packages],
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [_DATA, *(_WEIGHTS for _ in weights)]},
        ],
        "properties": [
            {"name": "edgekit:recipe:sha256", "value": report.recipe_sha256},
            *({"name": f"edgekit:{k}", "value": v} for k, v in sorted(contents.facts.items())),
        ],
    }
    # A number that says "the same parts" needs no randomness.
    digest = hashlib.sha256(canonical(bom)).hexdigest()
    bom["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}"
    return (json.dumps(bom, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def package_url(name: str, version: str) -> str:
    """Returns the package URL of a Python package.

    Source: https://github.com/package-url/purl-spec, type pypi: lower case, hyphens.
    """
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"


def _packages(report: RunReport) -> dict[str, str]:
    return {n: v for n, v in sorted(report.packages.items()) if v != "absent"}


def _package(name: str, version: str) -> dict[str, Any]:
    url = package_url(name, version)
    # It made the model; nothing of it is in the bundle.
    return {
        "type": "library", "bom-ref": url, "name": name, "version": version, "purl": url,
        "scope": "excluded",
    }  # fmt: skip


def _model(report: RunReport, contents: Contents) -> dict[str, Any]:
    artifact = contents.artifact
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": contents.name,
        "version": artifact.sha256[:12],
        "description": contents.title,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(contents.model).hexdigest()}],
        "licenses": [{"expression": contents.licence}],
        "modelCard": _card(report, contents),
        "properties": [
            {"name": "edgekit:file", "value": contents.model_name},
            {"name": "edgekit:bytes", "value": str(len(contents.model))},
            {"name": "edgekit:format", "value": artifact.format},
            {"name": "edgekit:variant", "value": artifact.variant},
            {"name": "edgekit:verdict", "value": contents.verdict.status},
            {"name": "edgekit:target", "value": contents.verdict.target},
        ],
    }


def _card(report: RunReport, contents: Contents) -> dict[str, Any]:
    into, out = contents.input, contents.output
    shape = " x ".join(map(str, into.shape))
    card: dict[str, Any] = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "image classification",
            "architectureFamily": "convolutional neural network",
            "modelArchitecture": f"MobileNetV2, width {report.float_model.alpha:g}, "
            f"{report.float_model.size_in_words}",
            "datasets": [{"ref": _DATA}],
            "inputs": [{"format": f"image, {into.dtype} tensor of {shape}"}],
            "outputs": [
                {"format": f"one {out.dtype} score for each of {len(contents.class_names)} classes"}
            ],
        },
        "considerations": {
            "useCases": ["naming the class that a photograph shows, on a device"],
            "technicalLimitations": [
                "answers one of its classes whatever the picture shows",
                "judged on pictures of the same collection as the training's",
            ],
        },
    }
    measured = judged_here(report, contents)
    if measured is not None:
        accuracy = measured.accuracy
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                {
                    "type": "top-1 accuracy",
                    "value": f"{accuracy.top1:.6f}",
                    "slice": f"test split, {accuracy.images} pictures, {measured.runtime}",
                    "confidenceInterval": {
                        "lowerBound": f"{accuracy.top1_low:.6f}",
                        "upperBound": f"{accuracy.top1_high:.6f}",
                    },
                }
            ]
        }
    return card


def _dataset(report: RunReport) -> dict[str, Any]:
    data = report.dataset
    counts = ", ".join(f"{split.count} {name}" for name, split in data.splits.items())
    name = data_name(report)
    return {
        "type": "data",
        "bom-ref": _DATA,
        "name": name,
        "data": [
            {
                "type": "dataset",
                "name": name,
                "description": f"labelled pictures of {len(data.class_names)} classes: {counts}",
                "contents": {
                    "properties": [
                        # Not a digest of one file, so no hash of the component.
                        {"name": "edgekit:dataset:sha256", "value": data.digest}
                    ]
                },
            }
        ],
    }


def _weights(contents: Contents) -> list[dict[str, Any]]:
    digest = contents.facts.get("weights_sha256")
    if digest is None:
        return []
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": _WEIGHTS,
            "name": "starting weights",
            "hashes": [{"alg": "SHA-256", "content": digest}],
            "scope": "excluded",
        }
    ]
