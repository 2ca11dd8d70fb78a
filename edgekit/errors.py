"""Exceptions of edgekit: one base, one class per kind of trouble. Bottom layer; imports nothing.

An exception means edgekit cannot go on. A measured but bad result is never an exception: it is a
`Check` with status MISS.

    EdgekitError
      SpecError        exit 2   usage, recipe or target file, or a run folder that cannot be used
      TrainingError    exit 2   the recipe's settings do not lead to a usable model
      DataError        exit 3   the images were refused
      IntegrityError   exit 6   a file is damaged, untrusted or not what it claims to be
      DeviceError      exit 7   a runtime or device failed while it was measuring
      ConversionError  exit 1   an exported file is not what was asked for
"""


class EdgekitError(Exception):
    """Base of every error that edgekit raises on purpose.

    Args:
        received: What edgekit was given or found, with the path, key or line.
        expected: What it would have accepted.
        remedy: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, received: str, expected: str, remedy: str) -> None:
        super().__init__(received, expected, remedy)
        self.received = received
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.received}\n  expected: {self.expected}\n  to do:    {self.remedy}"


class SpecError(EdgekitError):
    """A command line, recipe or target file that edgekit does not accept."""

    exit_code = 2


class DataError(EdgekitError):
    """Images or labels that edgekit refuses to train or judge on."""

    exit_code = 3


class IntegrityError(EdgekitError):
    """A model or stored file that is damaged, untrusted or not what it claims to be."""

    exit_code = 6


class DeviceError(EdgekitError):
    """A runtime or device that failed, hung or answered nonsense while measuring."""

    exit_code = 7


class TrainingError(EdgekitError):
    """Training or quantization that could not produce a usable model with these settings."""

    exit_code = 2


class ConversionError(EdgekitError):
    """An exported file that is not what was asked for: other types or shapes, or NaN."""
