"""Why the runner did not do its job, in the three parts of every edgekit error."""

from __future__ import annotations

# What a process exits with that says so; the codes of edgekit's own commands.
EXIT_CODES = {"SpecError": 2, "DataError": 3, "IntegrityError": 6, "DeviceError": 7}


class Refusal(Exception):  # noqa: N818 - it crosses to the other side as an error of edgekit's own
    """The job cannot be done.

    Args:
        error: Name of the edgekit error that it becomes; a key of `EXIT_CODES`.
        received: What was found.
        expected: What would have been accepted.
        remedy: What the user can do.
    """

    def __init__(self, error: str, received: str, expected: str, remedy: str) -> None:
        super().__init__(error, received, expected, remedy)
        self.error = error
        self.received = received
        self.expected = expected
        self.remedy = remedy
