"""The variant table for a terminal."""

from rich.markup import escape
from rich.table import Table

from edgekit.records import RunReport


def files_table(report: RunReport) -> Table:
    """Returns one row per exported file: size, test accuracy, drop, latency here."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("file")
    for column in ("size", "test top-1", "drop (limit)", "SQNR dB", "p50 ms", "p90 ms"):
        grid.add_column(column, justify="right")
    by_digest = report.validation.on_one_thread
    caveats = [found.latency.caveat for found in by_digest.values() if found.latency is not None]
    if any(caveats):
        grid.add_column("about the times")
    for artifact in report.export.artifacts:
        found = by_digest[artifact.sha256]
        drop, latency = found.drop, found.latency
        grid.add_row(
            artifact.path,
            f"{artifact.size_bytes / 1000:,.0f} kB",
            f"{found.accuracy.top1:.2%}",
            "-" if drop is None else f"{drop.drop_points:+.2f} ({drop.upper_points:+.2f})",
            "-" if found.sqnr_db is None else f"{found.sqnr_db:.1f}",
            "-" if latency is None else f"{latency.p50_ms:.3f}",
            "-" if latency is None else f"{latency.p90_ms:.3f}",
            *(["-" if latency is None else escape(latency.caveat)] if any(caveats) else []),
        )
    return grid
