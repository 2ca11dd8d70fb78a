"""Writing and reading `report.json`, and `report.md` beside it."""

import shlex
from pathlib import Path

from pydantic import ValidationError

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import ExportRecord, RunReport
from edgekit.report.markdown import ANSWERS_NAME, markdown
from edgekit.store import file_digest, write_atomically

JSON_NAME = "report.json"
MARKDOWN_NAME = "report.md"


def write_report(report: RunReport, folder: Path, answers: bytes | None = None) -> None:
    """Writes the report into the run folder; a reader never sees half of a file.

    Args:
        report: The report.
        folder: The run folder.
        answers: What each file answered for each test picture, as CSV. Defaults to None: what lies
            there stays.
    """
    if answers is not None:
        write_atomically(folder / ANSWERS_NAME, answers)
    write_atomically(folder / JSON_NAME, (report.model_dump_json(indent=1) + "\n").encode())
    write_atomically(folder / MARKDOWN_NAME, markdown(report).encode())


def discard_report(folder: Path) -> None:
    """Removes the report and what belongs to it from a run folder."""
    for name in (JSON_NAME, MARKDOWN_NAME, ANSWERS_NAME):
        if (folder / name).is_file():  # anything else is written over, or refused, later
            (folder / name).unlink()


def describes(path: Path, exported: ExportRecord) -> bool:
    """Returns whether there is a `report.json` and it is about exactly these exported files."""
    if not path.is_file():
        return False
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
