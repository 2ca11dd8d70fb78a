"""One process of `edgekit.processes.apart`: calls functions for whoever started it.

Its standard input is a socket that carries pickles both ways: first that process's `sys.path`, then
(function, value), each answered by (True, result) or (False, exception). It is started as a file.
"""

import os
import pickle
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Answers until the other end is closed."""
    channel: Connection[Any, Any] = Connection(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        sys.path[:] = channel.recv()
        while True:
            channel.send_bytes(_answer(channel.recv_bytes()))
    except (EOFError, ConnectionError):
        return


def _answer(asked: bytes) -> bytes:
    try:
        function, value = pickle.loads(asked)  # noqa: S301 - from the process that started this one
        return pickle.dumps((True, function(value)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001 - it is raised over there
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        try:
            return pickle.dumps((False, error))
        except Exception:  # noqa: BLE001 - whatever keeps it from being pickled
            return pickle.dumps((False, RuntimeError(traceback.format_exc())))


if __name__ == "__main__":
    main()
