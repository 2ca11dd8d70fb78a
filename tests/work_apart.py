"""What the tests of `edgekit.processes.apart` have done in other processes, which import it."""

import os
import signal
import time

from edgekit.errors import DataError


def square(value: int) -> int:
    time.sleep(0.05 if value == 0 else 0.0)
    return value * value


def refuse_odd(value: int) -> int:
    if value % 2:
        raise DataError(f"{value}", "an even number", "double it")
    return value


def kill_itself(value: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return value
