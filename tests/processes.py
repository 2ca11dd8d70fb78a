"""What the tests of devices ask about processes of this machine."""

import time
from collections.abc import Callable
from pathlib import Path


def eventually(fact: Callable[[], bool], seconds: float = 15) -> bool:
    """Returns whether something comes true within some seconds."""
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
