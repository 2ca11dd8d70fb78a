"""Writing and reading `report.json`, and `report.md` beside it."""

from pathlib import Path

from pydantic import ValidationError

from edgekit.errors import IntegrityError, SpecError
from edgekit.records import RunReport
from edgekit.report.markdown import markdown
from edgekit.store import write_atomically

JSON_NAME = "report.json"
MARKDOWN_NAME = "report.md"


def write_report(report: RunReport, folder: Path) -> None:
    """Writes both files into the run folder; a reader never sees half of one."""
    write_atomically(folder / JSON_NAME, (report.model_dump_json(indent=1) + "\n").encode())
    write_atomically(folder / MARKDOWN_NAME, markdown(report).encode())


def read_report(folder: Path) -> RunReport:
    """Reads the report of a run folder.

    Raises:
        SpecError: If the folder holds no report.
        IntegrityError: If its report was not written by this version of edgekit or was changed.
    """
    path = folder / JSON_NAME
    if not path.is_file():
        raise SpecError(
            f"{folder} holds no {JSON_NAME}",
            "the folder of a finished edgekit run",
            "finish it with edgekit run --out " + str(folder),
        )
    try:
        return RunReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise IntegrityError(
            f"{path}: {error.error_count()} fields are missing or not as written",
            "a report as this version of edgekit writes it",
            "run the recipe again with this version; finished stages are reused",
        ) from error
