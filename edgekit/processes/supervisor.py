"""Runs one program and ends it, with its children, as soon as who asked for it is gone.

`supervisor.py LIFELINE PROGRAM [ARGUMENT ...]`, started by `edgekit.processes.start` as the leader
of a session, as a file and without site packages, so it may import nothing of edgekit. LIFELINE is
a pipe whose other end that process alone holds: it closes however that process dies, by SIGKILL
too. It ends as its program did. Unix only; nothing here is special to Linux.
"""

import os
import resource
import select
import signal
import sys
from typing import NoReturn

# What a POSIX shell ends with when it cannot start a program.
CANNOT_START = 127


def main(lifeline: int, command: list[str]) -> NoReturn:
    """Starts the program and waits for its end or for that of whoever holds the lifeline.

    Args:
        lifeline: Descriptor of the reading end of the pipe.
        command: Program and arguments.
    """
    os.set_inheritable(lifeline, False)
    ended, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    program = os.fork()
    if program == 0:
        _become(command)
    # Whoever reads what the program prints must see its end.
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        if any(descriptor == lifeline for descriptor, _ in poll.poll()):
            os.killpg(0, signal.SIGKILL)  # this process too
        os.read(ended, 512)
        found, status = os.waitpid(program, os.WNOHANG)
        if found:
            _end_alike(status)


def _become(command: list[str]) -> NoReturn:
    """Becomes the program, with the signals that Python ignores as they were."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - an argument list, no shell
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode(errors="surrogateescape"))
    finally:
        os._exit(CANNOT_START)


def _end_alike(status: int) -> NoReturn:
    """Ends with the exit code or by the signal of the program."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program's own core is the one
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
