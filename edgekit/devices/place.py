"""What a transport offers: files there and back, and the runner program started there.

Device layer. A transport is a module with one context manager that yields a `Place`; whatever
happens inside it, nothing of edgekit is left on the device afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit.errors import DeviceError


@dataclass(frozen=True)
class Machine:
    """What a transport found out about a device.

    Args:
        words: Processor, architecture and system, for reports; printable.
        cores: Number of CPU cores; None where it does not say.
        real: Whether time measured there is the device's own. False under emulation, where
            accuracy counts and latency never does.
    """

    words: str
    cores: int | None
    real: bool = True


class Place(Protocol):
    """One device, reached: the runner program can be started there."""

    @property
    def machine(self) -> Machine:
        """What the transport found out about the device."""

    def put(self, file: Path) -> str:
        """Brings a file there, once for each content, and returns its path there.

        Raises:
            DeviceError: If the device cannot be reached or has no space.
        """

    def path(self, name: str) -> str:
        """Returns the path there of a file that does not exist yet, named `name`."""

    def command(self, program: str, job: str) -> Sequence[str]:
        """Returns arguments of a process here that runs a Python program with one argument there.

        Its stdout, stderr and exit code are those of the program, and ending it ends the program.

        Args:
            program: Path there, as `put` returned it.
            job: Its only argument: a path there.
        """

    def environment(self) -> Mapping[str, str] | None:
        """Returns the environment of that process here; None for this process's own."""

    def get(self, there: str, here: Path, limit_bytes: int) -> None:
        """Brings a file from there here and removes it there.

        Args:
            there: From `path`.
            here: Where it goes.
            limit_bytes: Largest file that is taken.

        Raises:
            DeviceError: If there is no such file, it is larger, or the device is gone.
        """

    def explain(self, code: int, said: str) -> DeviceError | None:
        """Returns the error behind a process of `command` that ended without a result.

        Args:
            code: Its exit code.
            said: The end of its stderr, printable.

        Returns:
            None where the transport has nothing to do with it.
        """

    def disturbances(self) -> tuple[str, ...]:
        """Returns what speaks against timing there now and the runner cannot see, in words."""


@dataclass(frozen=True)
class Found:
    """One line of `edgekit devices`.

    Args:
        transport: The transport that looked.
        name: What to call the device in a target or on the command line.
        words: What it is.
        problem: Why it cannot be used now; empty if it can.
    """

    transport: str
    name: str
    words: str
    problem: str = ""


def check_size(path: Path, limit_bytes: int) -> None:
    """Refuses a result that is missing, no regular file, or larger than it can be.

    Raises:
        DeviceError: If it is.
    """
    size = path.stat().st_size if path.is_file() and not path.is_symlink() else None
    if size is None or size > limit_bytes:
        found = f"{path.name}: {'no result file' if size is None else f'{size} bytes'}"
        raise DeviceError(
            found, f"a file of at most {limit_bytes} bytes", "check the device and run it again"
        )
