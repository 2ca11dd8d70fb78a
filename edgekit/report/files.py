"""Writing and reading `report.json`, and `report.md` beside it."""

import shlex
from pathlib import Path

from pydantic import ValidationError

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import ExportRecord, RunReport
from edgekit.report.markdown import markdown
from edgekit.store import file_digest, write_atomically

JSON_NAME = "report.json"
MARKDOWN_NAME = "report.md"


def write_report(report: RunReport, folder: Path) -> None:
    """Writes both files into the run folder; a reader never sees half of one."""
    write_atomically(folder / JSON_NAME, (report.model_dump_json(indent=1) + "\n").encode())
    write_atomically(folder / MARKDOWN_NAME, markdown(report).encode())


def describes(path: Path, exported: ExportRecord) -> bool:
    """Returns whether a `report.json` is about exactly these exported files."""
    try:
        report = RunReport.model_validate_json(path.read_bytes())
    except ValidationError:
        return False
    return _digests(report.export) == _digests(exported)


def _digests(exported: ExportRecord) -> dict[str, str]:
    return {artifact.path: artifact.sha256 for artifact in exported.artifacts}


def read_report(folder: Path, artifacts: Path) -> RunReport:
    """Reads the report of a run folder and checks that it is about the files that lie there.

    Args:
        folder: The run folder.
        artifacts: Where its exported files lie.

    Raises:
        SpecError: If the folder holds no report.
        IntegrityError: If its report was not written by this version of edgekit, or a file it
            describes is missing or has another digest.
    """
    path = folder / JSON_NAME
    if not path.is_file():
        raise SpecError(
            f"{folder} holds no {JSON_NAME}",
            "the folder of a finished edgekit run",
            f"finish it with edgekit run --out {shlex.quote(str(folder))}",
        )
    try:
        report = RunReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise IntegrityError(
            f"{path}: {error.error_count()} fields are missing or not as written",
            "a report as this version of edgekit writes it",
            "run the recipe again with this version; finished stages are reused",
        ) from error
    for name, expected in _digests(report.export).items():
        judged = artifacts / name
        found = file_digest(judged) if judged.is_file() else "no file"
        if found != expected:
            raise IntegrityError(
                f"{judged}: sha256 {found[:12]}, but the report judged {expected[:12]}",
                "the very files that were judged",
                "run the recipe again; finished stages are reused",
            )
    return report
