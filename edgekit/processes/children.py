"""Starts programs that end with this process, and ends them."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
Stream = IO[bytes] | int | None


def start(
    command: Sequence[str],
    *,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = subprocess.PIPE,
    stderr: Stream = subprocess.PIPE,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a program in a session of its own, which Ctrl-C does not reach.

    It and its children are killed when this process is gone, when nobody refers to the returned
    object any more, or by `end`.

    Args:
        command: Program and arguments; no shell.
        stdin: As of `subprocess.Popen`. Defaults to nothing to read.
        stdout: As of `subprocess.Popen`. Defaults to a pipe.
        stderr: As of `subprocess.Popen`. Defaults to a pipe.
        folder: Its working folder. Defaults to None: this process's own.
        environment: Its whole environment. Defaults to None: this process's own.

    Returns:
        The process; exit code or signal are the program's. A program that exists and yet cannot be
        started ends with code 127 and says why on stderr.

    Raises:
        OSError: If there is no such program, or no process can be made.
    """
    _check(command[0], os.environ if environment is None else environment)
    watched, held = os.pipe()
    try:
        # -I, -S: only Python itself, so that it starts in a few milliseconds.
        process = subprocess.Popen(  # noqa: S603 - an argument list, no shell
            (sys.executable, "-I", "-S", str(_SUPERVISOR), str(watched), *command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            env=environment,
            pass_fds=(watched,),
            start_new_session=True,
        )
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(watched)
    weakref.finalize(process, os.close, held)
    return process


def run(
    command: Sequence[str],
    timeout_seconds: float,
    *,
    content: bytes | None = None,
    stdout: Stream = subprocess.PIPE,
    stderr: Stream = subprocess.PIPE,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a program to its end; afterwards it is gone, whatever happens.

    Args:
        command: Program and arguments; no shell.
        timeout_seconds: Wall time that it may take.
        content: What it reads from stdin. Defaults to None: nothing.
        stdout: As of `start`.
        stderr: As of `start`.
        folder: As of `start`.
        environment: As of `start`.

    Raises:
        subprocess.TimeoutExpired: If it takes longer.
        OSError: As `start`.
    """
    process = start(
        command,
        stdin=subprocess.DEVNULL if content is None else subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        folder=folder,
        environment=environment,
    )
    try:
        out, said = process.communicate(content, timeout=timeout_seconds)
    finally:
        end(process)
    return subprocess.CompletedProcess(command, process.returncode, out, said)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a program that still runs, with its children, and closes its pipes.

    Args:
        process: From `start`.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    close(process)


def close(process: subprocess.Popen[bytes]) -> None:
    """Closes the pipes of a process."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _check(program: str, environment: Mapping[str, str]) -> None:
    """Refuses what is no program, as `subprocess.Popen` would."""
    if shutil.which(program, path=environment.get("PATH")) is None:
        number = errno.EACCES if os.path.lexists(program) else errno.ENOENT
        raise OSError(number, os.strerror(number), program)
