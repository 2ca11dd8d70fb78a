"""Hears what a process of this machine says. Device layer."""

import os
import selectors
import subprocess
import time
from collections.abc import Callable

CHUNK_BYTES = 65536
# Of stderr; what a program says last is what explains its end.
KEPT_BYTES = 16384
# Takes a piece of stdout; returns whether that was enough.
Take = Callable[[bytes], bool]


def hear(process: subprocess.Popen[bytes], deadline: Callable[[], float], take: Take) -> str:
    """Reads stdout and stderr until both close or `take` has enough.

    Args:
        process: With pipes for both.
        deadline: Returns when to give up, on the clock of `time.monotonic`; asked again after each
            piece.
        take: Called with each piece of stdout; True ends the reading.

    Returns:
        The end of stderr, at most 16 KiB; not made safe to print.

    Raises:
        TimeoutError: At the deadline.
    """
    said = b""
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            remaining = deadline() - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            for key, _ in selector.select(remaining):
                chunk = os.read(key.fd, CHUNK_BYTES)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    said = (said + chunk)[-KEPT_BYTES:]
                elif take(chunk):
                    return said.decode("utf-8", "replace")
    return said.decode("utf-8", "replace")
