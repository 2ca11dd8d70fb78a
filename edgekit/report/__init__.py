"""The report of a run: `report.json` for programs and `report.md` for people."""

from edgekit.report.files import (
    JSON_NAME,
    MARKDOWN_NAME,
    describes,
    read_report,
    write_report,
)

__all__ = ["JSON_NAME", "MARKDOWN_NAME", "describes", "read_report", "write_report"]
