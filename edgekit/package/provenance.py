"""Where a bundle came from: an in-toto statement in the form of SLSA provenance v1, unsigned.

Package layer. It says what edgekit was asked for and what it read; it proves nothing by itself and
claims no SLSA level. A signature of the bundle covers it like every other file.
Source: https://slsa.dev/spec/v1.1/provenance
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from edgekit.package.card import data_name
from edgekit.package.contents import Contents
from edgekit.package.sbom import package_url
from edgekit.records import RunReport

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:edgekit:package:v1"
BUILDER = "urn:edgekit"
# How somebody reached the device tells about them and their network, not about the model.
WAYS = {"host", "port", "serial", "python", "benchmark", "program", "install"}


def provenance(report: RunReport, contents: Contents, files: Mapping[str, bytes]) -> bytes:
    """Returns provenance.json: the same bytes for the same run, contents and files.

    Args:
        report: The run that made the model.
        contents: What is packed; the fact "weights_sha256" names the starting weights.
        files: Every file of the bundle that the statement is about, by path: all but
            provenance.json, manifest.json and the signature.
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": path, "digest": {"sha256": hashlib.sha256(files[path]).hexdigest()}}
            for path in sorted(files)
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "recipe": _without_folders(report.recipe),
                    "target": _without_folders(
                        contents.target.model_dump(
                            mode="json", exclude_none=True, exclude={"device": WAYS}
                        )
                    ),
                    "package": {
                        "name": contents.name,
                        "title": contents.title,
                        "licence": contents.licence,
                    },
                },
                "internalParameters": {"machine": report.machine},
                "resolvedDependencies": _dependencies(report, contents),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"edgekit": report.edgekit_version}}
            },
        },
    }
    return (json.dumps(statement, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _dependencies(report: RunReport, contents: Contents) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "name": "data",
            # No file has this digest: it covers class names, paths and digests of all pictures.
            "digest": {"edgekit-dataset-sha256": report.dataset.digest},
            "annotations": {"folder": data_name(report)},
        },
        {
            "name": "recipe",
            # Of its canonical JSON with the full paths, as in report.json.
            "digest": {"edgekit-recipe-sha256": report.recipe_sha256},
        },
    ]
    weights = contents.facts.get("weights_sha256")
    if weights is not None:
        found.append({"name": "weights", "digest": {"sha256": weights}})
    found += [
        {"name": name, "uri": package_url(name, version)}
        for name, version in sorted(report.packages.items())
        if version != "absent"
    ]
    return found


def _without_folders(value: Any) -> Any:
    """Returns JSON values with the last part of every absolute path in place of the whole.

    The folders of the machine it ran on tell about its owner and would make two machines differ;
    what the path led to is among the dependencies, by its digest.
    """
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    # A target file may be named from the folder that edgekit was started in.
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.endswith(".toml")):
        return PurePath(value).name
    return value
