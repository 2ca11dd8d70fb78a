"""Calls a function for many values, in several processes.

The standard pools start a process by running the caller's main module again: a script that calls
edgekit outside of `if __name__ == "__main__":` would start itself over and over. These processes
import only what the function needs, and so they work from any script, notebook or prompt.
"""

import contextlib
import itertools
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edgekit.errors import DeviceError
from edgekit.processes.children import end, start

_WORKER = Path(__file__).with_name("worker.py")
V = TypeVar("V")
R = TypeVar("R")


class _Worker(NamedTuple):
    process: subprocess.Popen[bytes]
    channel: "Connection[Any, Any]"


@contextlib.contextmanager
def apart(function: Callable[[V], R], values: Sequence[V], processes: int) -> Iterator[Iterator[R]]:
    """Yields an iterator over the results of a function, in the order of the values.

    The processes are gone afterwards, also when not all results were taken. They print nothing but
    to stderr.

    Args:
        function: A function of an importable module; it, values and results can be pickled.
        values: What it is called with, one at a time.
        processes: How many processes there are at most.

    Raises:
        Exception: While the results are taken, what the function raised for the first value of
            those that failed.
        DeviceError: While the results are taken, if a process was killed.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker()) for _ in range(min(processes, len(values)))]
        yield _results(function, values, workers)


@contextlib.contextmanager
def _worker() -> Iterator[_Worker]:
    """Yields one process, which imports nothing before it is asked; ends it."""
    here, there = multiprocessing.Pipe()
    with here:
        with there:
            # -P: its folder holds no modules for others.
            process = start(
                (sys.executable, "-P", str(_WORKER)),
                stdin=there.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=None,
            )
        try:
            worker = _Worker(process, here)
            with _heard(worker):
                here.send(sys.path)
            yield worker
        finally:
            end(process)


def _results(
    function: Callable[[V], R], values: Sequence[V], workers: list[_Worker]
) -> Iterator[R]:
    """Keeps every process busy and yields the results in order."""
    waiting = iter(enumerate(values))
    busy: dict[Connection[Any, Any], tuple[int, _Worker]] = {}
    answers: dict[int, tuple[bool, Any]] = {}
    due = 0

    def employ(worker: _Worker) -> None:
        for index, value in itertools.islice(waiting, 1):
            with _heard(worker):
                worker.channel.send((function, value))
            busy[worker.channel] = index, worker

    for worker in workers:
        employ(worker)
    while busy:
        for channel in wait(list(busy)):
            index, worker = busy.pop(channel)  # type: ignore[call-overload] # it is one of them
            with _heard(worker):
                answers[index] = worker.channel.recv()
            employ(worker)
        while due in answers:
            succeeded, answer = answers.pop(due)
            if not succeeded:
                raise answer
            yield answer
            due += 1


@contextlib.contextmanager
def _heard(worker: _Worker) -> Iterator[None]:
    """Turns the silence of a process into the reason for it.

    Raises:
        DeviceError: If it has ended.
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        code = worker.process.wait()
        ending = signal.Signals(-code).name if code < 0 else f"code {code}"
        raise DeviceError(
            f"a worker process of edgekit was ended from outside ({ending})",
            "workers that end by themselves",
            "check the memory of the machine (SIGKILL often means that it ran out) and run it "
            "again; finished stages are kept",
        ) from error
