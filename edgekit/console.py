"""What a person sees while edgekit works: lines and progress on stderr, results on stdout."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from edgekit.errors import EdgekitError
from edgekit.records import Status, Verdict


class _Terminal(Console):
    """A console that shows no text as anything but text, wherever the text came from.

    Class names, manifests, measurement files, targets, file names and what devices answer are other
    people's: a control character in them could move the cursor, recolour or retitle the terminal.
    """

    def render_str(self, text: str, **more: Any) -> Text:
        """Returns text with its markup applied and every other control made visible."""
        return super().render_str(visible(text), **more)


def visible(text: str) -> str:
    """Returns text whose control characters, line ends and tabs apart, are escaped.

    Marks that turn the reading direction count as such; so do halves of characters.
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


# Where nobody looks at a terminal, a table need not fit into 80 columns.
_WIDTH = None if sys.stdout.isatty() else 160
out = _Terminal(highlight=False, soft_wrap=True, width=_WIDTH)
err = _Terminal(stderr=True, highlight=False, soft_wrap=True)

_STYLES = {
    Status.PASS: "green",
    Status.MISS: "red",
    Status.INCONCLUSIVE: "yellow",
    Status.UNMEASURED: "yellow",
}
# Without a terminal a line each so often shows that something moves.
_PLAIN_SECONDS = 10.0


class Work:
    """Shows lines and one progress bar; plain lines where stderr is no terminal."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._last_line = time.monotonic()

    def say(self, line: str) -> None:
        """Shows one line that stays."""
        (self._bar.console if self._bar else err).print(escape(line))

    def progress(self, what: str, done: int, total: int) -> None:
        """Shows how far something long has come."""
        if self._bar is None:
            if time.monotonic() - self._last_line >= _PLAIN_SECONDS:
                self._last_line = time.monotonic()
                err.print(escape(f"  {what}: {100 * done // max(total, 1)} %"))
            return
        if self._task is None:
            self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, description=escape(visible(what)), completed=done, total=total)


@contextlib.contextmanager
def working() -> Iterator[Work]:
    """Provides a `Work` and removes its bar at the end."""
    if not err.is_terminal:
        yield Work(None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        yield Work(bar)


def show_error(error: EdgekitError, as_json: bool) -> None:
    """Shows an error in its three parts: on stderr, and as JSON on stdout if asked."""
    if as_json:
        parts = {
            "kind": type(error).__name__,
            "received": error.received,
            "expected": error.expected,
            "remedy": error.remedy,
            "exit_code": error.exit_code,
        }
        show_json({"error": parts})
    err.print(f"[bold red]error:[/] {escape(error.received)}")
    for label, text in (("expected:", error.expected), ("to do:", error.remedy)):
        err.print(f"  [bold]{label:<9}[/] {escape(text)}".replace("\n", "\n            "))


def show_json(value: Any) -> None:
    """Writes one JSON document to stdout."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
    sys.stdout.flush()


def show_verdicts(verdicts: tuple[Verdict, ...]) -> None:
    """Shows the status of every target, and below it each check with its reason."""
    for verdict in verdicts:
        style = _STYLES[verdict.status]
        out.print(
            f"[bold]{escape(verdict.target)}[/]: [bold {style}]{verdict.status}[/]  "
            f"{escape(verdict.artifact_path)}: {escape(verdict.in_words)}"
        )
        for check in verdict.checks:
            out.print(
                f"  {escape(check.name)} [{_STYLES[check.status]}]{check.status}[/]: "
                f"{escape(check.measured)}; budget {escape(check.budget)}; {escape(check.detail)}"
            )
        for note in verdict.notes:
            out.print(f"  note: {note}", markup=False)
