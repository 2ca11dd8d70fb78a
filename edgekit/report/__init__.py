"""The report of a run: `report.json` for programs and `report.md` for people, and `answers.csv`."""

from edgekit.report.files import (
    JSON_NAME,
    describes,
    discard_report,
    read_report,
    write_report,
)
from edgekit.report.markdown import ANSWERS_NAME

__all__ = [
    "ANSWERS_NAME",
    "JSON_NAME",
    "describes",
    "discard_report",
    "read_report",
    "write_report",
]
