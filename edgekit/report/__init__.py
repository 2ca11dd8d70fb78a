"""The report of a run: `report.json` for programs and `report.md` for people."""

from edgekit.report.files import read_report, write_report

__all__ = ["read_report", "write_report"]
