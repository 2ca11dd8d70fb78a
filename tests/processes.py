"""What the tests of devices ask about processes of this machine."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgekit.devices.exchange import exchange
from edgekit.errors import DeviceError


def eventually(fact: Callable[[], bool], seconds: float = 60) -> bool:
    """Returns whether something comes true within some seconds; a busy machine may take many."""
    deadline = time.monotonic() + seconds
    while not fact() and time.monotonic() < deadline:
        time.sleep(0.02)
    return fact()


def alive(pid: int) -> bool:
    """Returns whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stopped_at_its_limit(command: Sequence[str], noted: Path) -> None:
    """Lets the time limit end a program that notes something in a file as soon as it runs.

    A machine that is too busy to start it in time gets a longer limit.
    """
    for seconds in (2, 10, 60):
        with pytest.raises(DeviceError, match=f"no answer after {seconds} s"):
            exchange(command, "m", seconds)
        if noted.exists() and noted.read_text():
            return
    pytest.fail("it did not start")
