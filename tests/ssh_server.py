"""A real OpenSSH server on loopback, with keys, home and temporary folder of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import eventually

# Where privilege separation of a server started by root changes its root to: sshd(8).
PRIVATE = Path("/run/sshd")


def program(name: str) -> str:
    """Returns the path of a program; skips the test where there is none, but fails in CI."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        reason = f"needs the program {name}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@dataclass(frozen=True)
class Server:
    """A running server and what a client needs to reach it.

    Args:
        folder: Holds everything below.
        port: TCP port on 127.0.0.1.
        home: HOME of its sessions.
        temporary: TMPDIR of its sessions.
        config: Configuration of a client that knows its key and has one to log in.
    """

    folder: Path
    port: int
    home: Path
    temporary: Path
    config: Path
    process: "subprocess.Popen[bytes]"

    @property
    def options(self) -> tuple[str, ...]:
        return ("-F", str(self.config))

    def client(self, name: str, **changed: str) -> tuple[str, ...]:
        """Returns options of a client with some settings changed."""
        settings = dict(line.split(" ", 1) for line in self.config.read_text().splitlines() if line)
        path = self.folder / name
        path.write_text("".join(f"{k} {v}\n" for k, v in {**settings, **changed}.items()))
        return ("-F", str(path))

    def left(self) -> list[str]:
        """Returns what lies in its temporary folder."""
        return sorted(path.name for path in self.temporary.iterdir())


def new_key(path: Path) -> Path:
    """Makes a pair of keys; returns the private one."""
    command = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, timeout=30)
    return path


@contextmanager
def serving(
    folder: Path, *extra: str, temporary: Path | None = None, **variables: str
) -> Iterator[Server]:
    """Starts a server as this user and ends it with all its sessions.

    Args:
        folder: New folder of the server; its path must hold no space.
        extra: Further lines of its configuration.
        temporary: TMPDIR of its sessions. Defaults to None: a folder in `folder`.
        variables: More environment variables of its sessions.
    """
    daemon = program("sshd")
    if os.geteuid() == 0:
        PRIVATE.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir()
    home = folder / "home"
    home.mkdir()
    if temporary is None:
        temporary = folder / "temporary"
        temporary.mkdir()
    host_key, user_key = new_key(folder / "host"), new_key(folder / "user")
    shutil.copy(user_key.with_suffix(".pub"), folder / "authorized")
    environment = {"HOME": str(home), "TMPDIR": str(temporary), **variables}
    lines = [
        "ListenAddress 127.0.0.1",
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {folder / 'authorized'}",
        f"PidFile {folder / 'pid'}",
        "StrictModes no",
        "UsePAM no",
        "PermitRootLogin prohibit-password",
        "PasswordAuthentication no",
        "SetEnv " + " ".join(f'"{name}={value}"' for name, value in environment.items()),
        *extra,
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    public = host_key.with_suffix(".pub").read_text()
    client = {
        "UserKnownHostsFile": folder / "known",
        "GlobalKnownHostsFile": "/dev/null",
        "IdentityFile": user_key,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
    }
    (folder / "client").write_text("".join(f"{key} {value}\n" for key, value in client.items()))
    process, port = _started(
        [daemon, "-D", "-e", "-f", str(folder / "sshd_config")], folder / "log"
    )
    (folder / "known").write_text(f"[127.0.0.1]:{port} {public}")
    try:
        yield Server(folder, port, home, temporary, folder / "client", process)
    finally:
        # The sessions are groups of their own; their parents are this server's children.
        for session in _below(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(session, 9)
        process.kill()
        process.wait()


def _started(command: list[str], log: Path) -> "tuple[subprocess.Popen[bytes], int]":
    """Starts sshd; returns it and the port that it listens on."""
    for _ in range(5):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        # Before sshd has it, another program may take the port.
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*command, "-p", str(port)], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        if _listens(process, port, log):
            return process, port
        process.kill()
        process.wait()
    pytest.fail(f"sshd does not start: {log.read_text(errors='replace')}")


def _listens(process: "subprocess.Popen[bytes]", port: int, log: Path) -> bool:
    """Waits until sshd says that it listens, or has ended; returns whether it listens."""
    words = f"Server listening on 127.0.0.1 port {port}"
    eventually(lambda: process.poll() is not None or words in log.read_text(errors="replace"))
    return process.poll() is None and words in log.read_text(errors="replace")


def _below(parent: int) -> list[int]:
    """Returns every descendant of a process, the deepest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid: the name may hold anything, brackets too.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                child = int(stat.parent.name)
                found += [*_below(child), child]
    return found
