"""A Linux machine with Python, reached by the system's OpenSSH client. Device layer.

The user's own configuration, keys, agent and known hosts decide how a host is reached; only what
could ask a question, add a key or run something here is fixed. There, a shell keeps the working
folder: it is the first session of the one connection that all others share, and it ends every
program and removes the folder as soon as its input closes, be that by the end of the context, the
death of this process or the loss of the connection.
"""

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import IO

from pydantic import Field, ValidationError

from edgekit.devices.place import Found, Machine, Place
from edgekit.devices.process import KEPT_BYTES, Take, hear
from edgekit.devices.wheels import PIP_OPTIONS, VARIABLE
from edgekit.errors import DeviceError, SpecError
from edgekit.folders import scratch_folder
from edgekit.processes import close, end, start
from edgekit.records import Record
from edgekit.runtimes.base import printable

# The first value of an option wins in ssh, so neither the user's options nor a configuration file
# changes these: https://man.openbsd.org/ssh_config
FIXED = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ControlPersist=no",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
)
USER = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}"
HOST = r"[A-Za-z0-9_][A-Za-z0-9_.:%-]{0,252}"
MODULE = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"
FOLDER = rb"edgekit-folder (/[^\x00-\x1f\x7f]{0,200}/edgekit-[A-Za-z0-9]{10})\n"
NAME = r"[A-Za-z0-9_.-]{1,100}"
SUFFIX = r"\.[A-Za-z0-9]{1,16}"
# sun_path of unix(7) holds 108 bytes; ssh binds a name 17 characters longer first (mux.c).
SOCKET_FOLDER_CHARACTERS = 80
OWN_CODE = 255  # of ssh itself; a program's own 255 arrives as 254
TOO_OLD = 69
NO_FILE = 66
NO_FOLDER = 73
NOT_WRITTEN = 74
NOT_FOUND = (126, 127)  # what a POSIX shell ends with: not executable, not found
CALL_SECONDS = 60.0
PROBE_SECONDS = 180.0  # importing a runtime from a slow memory card
INSTALL_SECONDS = 1800.0
SLOWEST_BYTES_PER_SECOND = 50_000.0
CONFIG_DEPTH = 16  # as deep as ssh follows Include

# Shell scripts stand on one line each: csh refuses a quoted text of several.
KEEPER = (
    "LC_ALL=C; export LC_ALL; umask 077; "
    f'd=$(mktemp -d "${{TMPDIR:-/tmp}}/edgekit-XXXXXXXXXX") || exit {NO_FOLDER}; '
    "trap : HUP INT TERM PIPE; "
    'echo "edgekit-folder $d"; '
    "read -r word; "
    'for f in "$d"/*.pid; do f=${f##*/}; kill -9 "-${f%.pid}" 2>/dev/null; done; '
    'rm -rf "$d" || { sleep 1; rm -rf "$d"; }'
)
PUT = (
    "LC_ALL=C; export LC_ALL; umask 077; "
    f'cat >"$1" || {{ rm -f "$1"; exit {NOT_WRITTEN}; }}; '
    'sha256sum <"$1" 2>/dev/null || wc -c <"$1"'
)
GET = f'[ -f "$1" ] || exit {NO_FILE}; head -c "$2" <"$1" && rm -f "$1"'
REMOVE = 'rm -rf "$1"'
# Runs a Python program there and ends it when nobody listens any more: poll reports an error on
# the writing end of a pipe whose reader is gone. Its own group, so that children end too.
WATCH = f"""\
import os, select, signal, sys

if sys.version_info < (3, 9):
    sys.stderr.write(sys.version.split()[0])
    sys.exit({TOO_OLD})
folder = os.path.dirname(os.path.abspath(__file__))
os.chdir(folder)
os.environ["TMPDIR"] = folder
ended, woken = os.pipe()
os.set_blocking(woken, False)
signal.set_wakeup_fd(woken)
signal.signal(signal.SIGCHLD, lambda number, frame: None)
program = os.fork()
if program == 0:
    try:
        os.setsid()
        os.close(os.open("%d.pid" % os.getpid(), os.O_CREAT | os.O_EXCL, 0o600))
        os.execv(sys.executable, [sys.executable] + sys.argv[1:])
    finally:
        os._exit(71)
poll = select.poll()
poll.register(1, 0)
poll.register(ended, select.POLLIN)
if any(number == 1 for number, _ in poll.poll()):
    os.kill(program, signal.SIGKILL)
os.waitid(os.P_PID, program, os.WEXITED | os.WNOWAIT)
try:
    os.killpg(program, signal.SIGKILL)
except (ProcessLookupError, PermissionError):
    pass
_, status = os.waitpid(program, 0)
try:
    os.unlink("%d.pid" % program)
except FileNotFoundError:
    pass
code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
sys.exit(min(code, 254))
"""
PROBE = """\
import json, os, platform, subprocess, sys


def model():
    try:
        with open("/proc/device-tree/model", encoding="utf-8", errors="replace") as stream:
            return stream.read(200).strip("\\0 ")
    except OSError:
        pass
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            pairs = [line.split(":", 1) for line in stream if ":" in line]
    except OSError:
        return ""
    facts = {key.strip().lower(): value.strip() for key, value in pairs}
    named = (facts.get(key) for key in ("model name", "model", "hardware", "cpu model"))
    return next((name for name in named if name), "")[:200]


def trouble(name):
    tried = subprocess.run(
        [sys.executable, "-c", "import " + name],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )
    if tried.returncode == 0:
        return ""
    said = tried.stderr.decode("utf-8", "replace").strip().splitlines()
    return (said[-1] if said else "ended with code %d" % tried.returncode)[:200]


print(json.dumps({
    "version": platform.python_version(),
    "executable": sys.executable,
    "home": os.path.expanduser("~"),
    "system": platform.system() + " " + platform.release(),
    "architecture": platform.machine(),
    "model": model(),
    "cores": len(os.sched_getaffinity(0)),
    "trouble": {name: trouble(name) for name in sys.argv[1:]},
}))
"""
ABSOLUTE = r"^/[^\x00-\x1f\x7f]{1,400}$"

# What ssh says, and what it means: received, expected, remedy. The first that fits counts.
TROUBLES = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key{key} is not the one that is known here",
        "the key in the known_hosts file",
        "if the device was set up anew, forget the old key with `ssh-keygen -R {known}` and add "
        "the new one by `{login}`; if not, somebody may stand in between: do not connect",
    ),
    (
        "host key is known for|Host key verification failed",
        "its host key{key} is not known here",
        "a host key in the known_hosts file; edgekit never adds one",
        "run `{login}` once, compare the fingerprint with what `ssh-keygen -lf "
        "/etc/ssh/ssh_host_ed25519_key.pub` prints on the device itself, and answer yes",
    ),
    (
        "Permission denied|Too many authentication failures",
        "it refused every key",
        "a key that logs in without a question; edgekit never asks for a password",
        "copy a key there with `ssh-copy-id`, unlock it with `ssh-add`, then check that `{login}` "
        "asks for nothing",
    ),
    (
        "Could not resolve hostname",
        "no such host name",
        "a name or address, or a Host of ~/.ssh/config",
        "check the name; try the address of the device",
    ),
    (
        "Connection refused",
        "it is there, but nothing listens on its SSH port",
        "an SSH server",
        "start it there (`sudo systemctl enable --now ssh`), or check the port",
    ),
    (
        "No route to host|Network is unreachable|Host is down",
        "no way there from this machine",
        "a device on a network that this machine reaches",
        "check that it is switched on and in the same network, and its address",
    ),
    (
        "timed out|not responding",
        "it does not answer",
        "an answer of its SSH server",
        "check that it is switched on, not overloaded, and that no firewall drops the connection",
    ),
    (
        "Session open refused",
        "its SSH server allows only one session in a connection",
        "MaxSessions of at least 3 in its sshd_config",
        "raise MaxSessions there and reload the server",
    ),
    (
        "closed|reset|Broken pipe|mux_client|kex_exchange_identification|master",
        "the connection broke",
        "a connection that lasts until the end",
        "check that the device still runs and its network holds, then `{login}`",
    ),
)


class _Probe(Record):
    """What the probe prints; see `PROBE`."""

    version: str = Field(max_length=40)
    executable: str = Field(pattern=ABSOLUTE)
    home: str = Field(pattern=ABSOLUTE)
    system: str = Field(max_length=200)
    architecture: str = Field(max_length=80)
    model: str = Field(max_length=200)
    cores: int = Field(ge=1, le=65536)
    trouble: dict[str, str]

    def missing(self) -> dict[str, str]:
        """Returns the modules that cannot be imported there, with the reason."""
        return {name: printable(why) for name, why in self.trouble.items() if why}


@dataclass(frozen=True)
class _Client:
    """How `ssh` is called for one host."""

    program: str
    host: str
    port: int | None
    options: tuple[str, ...]
    socket: Path

    @property
    def login(self) -> str:
        """Returns the command that a user types to reach the host."""
        port = () if self.port is None else ("-p", str(self.port))
        return shlex.join(("ssh", *self.options, *port, self.host))

    @property
    def known(self) -> str:
        """Returns the name of the host in a known_hosts file, quoted for a shell."""
        host = self.host.rpartition("@")[2]
        return shlex.quote(host if self.port in (None, 22) else f"[{host}]:{self.port}")

    def connect(self, remote: str, seconds: float, log: str = "ERROR") -> list[str]:
        """Returns arguments that open the connection which every `session` shares."""
        fixed = (*FIXED, f"LogLevel={log}", f"ConnectTimeout={max(1, round(seconds))}")
        port = () if self.port is None else ("-p", str(self.port))
        own = [part for option in fixed for part in ("-o", option)]
        own += ["-T", "-o", "ControlMaster=yes", "-S", str(self.socket)]
        return [self.program, *own, *port, *self.options, "--", self.host, remote]

    def session(self, remote: str) -> list[str]:
        """Returns arguments that run a command through the open connection, and only through it."""
        # Without the socket ssh would connect anew; a proxy that ends at once lets that fail.
        fixed = (*FIXED, "LogLevel=ERROR", "ControlMaster=no", "ProxyCommand=false")
        own = [part for option in fixed for part in ("-o", option)]
        own += ["-F", "none", "-T", "-S", str(self.socket)]
        return [self.program, *own, "--", self.host, remote]

    def trouble(self, said: str, seconds: float | None = None) -> DeviceError:
        """Returns the error for what ssh said when it failed by itself.

        Args:
            said: Its stderr.
            seconds: Time limit of a connection; given, the server's host key is asked for where
                the message is about it. Defaults to None.
        """
        for pattern, received, expected, remedy in TROUBLES:
            if re.search(pattern, said):
                about_key = "host key" in received and seconds is not None
                key = self._host_key(seconds) if about_key and seconds is not None else ""
                found = f"{self.host}: {received.format(key=key)} ({_shown(said)})"
                to_do = remedy.format(login=self.login, known=self.known)
                return DeviceError(found, expected, to_do)
        found = f"{self.host}: ssh failed ({_shown(said) or 'it said nothing'})"
        return DeviceError(found, "a connection", f"find out with `{self.login}`")

    def _host_key(self, seconds: float) -> str:
        """Returns type and fingerprint of the server's host key, in brackets; "" if unknown."""
        command = self.connect("true", seconds, log="DEBUG1")
        heard = _Heard(KEPT_BYTES)
        with contextlib.suppress(DeviceError):
            _, said = _run(command, self.host, seconds, heard.take)
            found = re.search(r"Server host key: ([\w@.-]+ SHA256:[A-Za-z0-9+/]+)", said)
            return f" ({found.group(1)})" if found else ""
        return ""


@dataclass
class _Heard:
    """Output of a command, up to a limit."""

    limit_bytes: int
    data: bytes = b""

    def take(self, chunk: bytes) -> bool:
        """Keeps a chunk; returns whether that is enough."""
        self.data += chunk
        return len(self.data) > self.limit_bytes

    @property
    def text(self) -> str:
        """Returns what was heard, made safe to print."""
        return printable(self.data.decode("utf-8", "replace"))


@dataclass
class SshPlace:
    """A working folder on a host; see `Place`. Made by `reach` only."""

    client: _Client
    keeper: subprocess.Popen[bytes]
    folder: str
    python: str
    machine: Machine = field(default_factory=lambda: Machine("", None))
    _there: set[str] = field(default_factory=set)
    _named: int = 0

    def put(self, file: Path) -> str:
        """Brings a file there, once for each content; see `Place.put`."""
        suffix = file.suffix if re.fullmatch(SUFFIX, file.suffix) else ""
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            there = f"{self.folder}/{digest}{suffix}"
            if there not in self._there:
                stream.seek(0)
                self._send(stream, there, digest, file.name)
                self._there.add(there)
        return there

    def path(self, name: str) -> str:
        """Returns the path there of a new file; see `Place.path`.

        Raises:
            SpecError: If the name is no name of a file.
        """
        # A "!" expands in csh even where it is quoted.
        if not re.fullmatch(NAME, name):
            found = f"file name {name!r}"
            raise SpecError(found, "up to 100 letters, digits and . _ -", "name it otherwise")
        self._named += 1
        return f"{self.folder}/{self._named}-{name}"

    def command(self, program: str, job: str) -> Sequence[str]:
        """Returns arguments of a process here that runs a program there; see `Place.command`.

        A program that a signal ended gives 128 + its number, as from a shell; a program's own code
        255, which ssh keeps for itself, arrives as 254.
        """
        return self._watched(program, job)

    def environment(self) -> None:
        """Returns None: ssh finds the user's agent in this process's own environment."""
        return

    def get(self, there: str, here: Path, limit_bytes: int) -> None:
        """Brings a file here and removes it there; see `Place.get`."""
        self._there.discard(there)
        taken = 0
        with here.open("wb") as stream:

            def take(chunk: bytes) -> bool:
                nonlocal taken
                taken += len(chunk)
                stream.write(chunk)
                return taken > limit_bytes

            seconds = CALL_SECONDS + limit_bytes / SLOWEST_BYTES_PER_SECOND
            try:
                code, said = self._call(
                    _script(GET, there, str(limit_bytes + 1)), seconds, take=take
                )
            except BaseException:
                here.unlink()
                raise
        if code == 0 and taken <= limit_bytes:
            return
        here.unlink()
        if taken > limit_bytes:
            found = f"{self.client.host}: a result of more than {limit_bytes} bytes"
            raise DeviceError(found, f"at most {limit_bytes} bytes", "check the device; run again")
        why = "no such file" if code == NO_FILE else f"{_shown(said)}, code {code}"
        raise DeviceError(
            f"{self.client.host}: no result {there} ({why})",
            "the file that the run has written",
            "check the disk of the device and run it again",
        )

    def explain(self, code: int, said: str) -> DeviceError | None:
        """Returns the error behind the end of a process of `command` that gave no result.

        Args:
            code: Its exit code.
            said: The end of its stderr.

        Returns:
            None if the code is the program's own, not ssh's.
        """
        if code != OWN_CODE:
            return None
        # ssh says nothing when the host has just fallen silent.
        return self.client.trouble(f"{_rest(self.keeper)} {said}".strip() or "connection closed")

    def disturbances(self) -> tuple[str, ...]:
        """Returns nothing: the runner sees the board as well as a shell does."""
        return ()

    def _send(self, stream: IO[bytes], there: str, digest: str, name: str) -> None:
        """Writes a stream into a file there and has it checked."""
        size = os.fstat(stream.fileno()).st_size
        heard = _Heard(KEPT_BYTES)
        seconds = CALL_SECONDS + size / SLOWEST_BYTES_PER_SECOND
        code, said = self._call(_script(PUT, there), seconds, stdin=stream, take=heard.take)
        if code != 0:
            raise _not_written(self.client.host, self.folder, name, size, said)
        words = heard.data.decode("ascii", "replace").split() or [""]
        # Where there is no sha256sum, `wc` gives the size.
        if words[0] not in (digest, str(size)):
            found = f"{self.client.host}: {name} arrived damaged: {printable(words[0])}"
            raise DeviceError(found, f"{size} bytes of SHA-256 {digest}", "try again")

    def send_watch(self) -> None:
        """Brings the program there that `command` starts others with.

        Raises:
            DeviceError: If there is no space or no connection.
        """
        self._write(WATCH, self._watch, "the first file")

    def _write(self, text: str, there: str, name: str) -> None:
        """Writes a text into a file there and has it checked."""
        with _text(text) as stream:
            self._send(stream, there, hashlib.sha256(text.encode()).hexdigest(), name)

    def probe(self, packages: Sequence[str]) -> _Probe | None:
        """Returns what `python` says about the device; None if there is no such program.

        Raises:
            DeviceError: If it is too old, fails or says nonsense.
        """
        heard = _Heard(KEPT_BYTES)
        with _text(PROBE) as stream:
            command = self._watched("-", *packages)
            code, said = _run(command, self.client.host, PROBE_SECONDS, heard.take, stream)
        if code in NOT_FOUND:
            return None
        if code == TOO_OLD:
            raise DeviceError(
                f"{self.client.host}: {self.python} is Python {_shown(said)}",
                "Python 3.9 or newer",
                "install a newer one there and name it as the device's python",
            )
        if code == OWN_CODE:
            raise self.explain(code, said) or self.client.trouble(said)
        try:
            found = _Probe.model_validate_json(heard.data, strict=True)
        except ValidationError as err:
            reason = err.errors(include_url=False, include_input=False)[0]["msg"]
            raise DeviceError(
                f"{self.client.host}: {self.python} answered {heard.text!r} ({reason}; "
                f"code {code}, {_shown(said) or 'no message'})",
                "facts about the device, as JSON",
                f"check what `{self.client.login} {self.python} --version` prints",
            ) from err
        if found.trouble.keys() != set(packages):
            raise DeviceError(
                f"{self.client.host}: it answered about other modules",
                "the asked ones",
                "try again",
            )
        return found

    def install(self, packages: Sequence[str], wheels: str, home: str, version: str) -> str:
        """Makes a virtual environment in the user's cache folder there; returns its Python.

        Args:
            packages: Modules that must be importable in it.
            wheels: Requirements that bring them, each file known by its digest.
            home: The user's home folder there.
            version: Of the Python that makes it.

        Raises:
            DeviceError: If that fails; then the environment is removed.
        """
        asked = "\n".join((version, *sorted(packages), wheels))
        folder = f"{home}/.cache/edgekit/venv-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
        python = f"{folder}/bin/python"
        own = replace(self, python=python)
        known = own.probe(packages)
        if known is not None and not known.missing():
            return python
        listed = f"{self.folder}/wheels.txt"
        pip = ("-m", "pip", "install", "-q", "--no-input", "--no-cache-dir", *PIP_OPTIONS)
        try:
            self._must("make a virtual environment", "-m", "venv", "--clear", folder)
            self._write(wheels, listed, "the list of wheels")
            own._must("install the packages", *pip, "--disable-pip-version-check", "-r", listed)
        except BaseException:
            with contextlib.suppress(DeviceError):
                self._call(_script(REMOVE, folder), CALL_SECONDS)
            raise
        return python

    def _must(self, what: str, *arguments: str) -> None:
        """Runs Python there with arguments; raises DeviceError if it fails."""
        heard = _Heard(KEPT_BYTES)
        command = self._watched(*arguments)
        code, said = _run(command, self.client.host, INSTALL_SECONDS, heard.take)
        if code != 0:
            failed = self.explain(code, said)
            if failed is not None:
                raise failed
            raise DeviceError(
                f"{self.client.host}: could not {what} there (code {code}: "
                f"{printable(said[-250:]) or heard.text})",
                "Python 3.11 or newer with venv and pip, a network, and the known wheels for it",
                "on Debian `sudo apt install python3-venv`; for other versions, such as an older "
                f"Python's, name your own list in {VARIABLE}; or install the packages by hand",
            )

    @property
    def _watch(self) -> str:
        return f"{self.folder}/watch.py"

    def _watched(self, *arguments: str) -> list[str]:
        """Returns arguments of a process here that runs Python there and ends it with itself."""
        # A quoted ~ would not be expanded there.
        home = self.python.startswith("~/")
        python = f'"$HOME"/{shlex.quote(self.python[2:])}' if home else shlex.quote(self.python)
        return self.client.session(f"{python} {shlex.join((self._watch, *arguments))}")

    def _call(
        self, remote: str, seconds: float, stdin: IO[bytes] | None = None, take: Take | None = None
    ) -> tuple[int, str]:
        """Runs a shell command there; returns the exit code and stderr of the command.

        Raises:
            DeviceError: If ssh itself fails, or it lasts too long.
        """
        take = take or _Heard(KEPT_BYTES).take
        code, said = _run(self.client.session(remote), self.client.host, seconds, take, stdin)
        failed = self.explain(code, said)
        if failed is not None:
            raise failed
        return code, said


@contextmanager
def reach(
    host: str,
    *,
    port: int | None = None,
    python: str = "python3",
    packages: Sequence[str] = (),
    wheels: str | None = None,
    options: Sequence[str] = (),
    connect_seconds: float = 20.0,
    say: Callable[[str], None],
) -> Iterator[Place]:
    """Connects to a host, makes a working folder there, and removes it in the end.

    Args:
        host: Name, address or `Host` of the user's configuration; `user@` may stand before it.
        port: TCP port. Defaults to None: what the configuration says, or 22.
        python: Python there, a name or a path; `~/` is the home there. Defaults to "python3".
        packages: Modules that must be importable there, such as "ai_edge_litert".
        wheels: Requirements, as `wheels.requirements` returns them, that bring missing `packages`
            into a virtual environment below `~/.cache/edgekit` there, which stays. Defaults to
            None: nothing is installed.
        options: Further arguments of `ssh`, such as `("-F", "config")`. Only from the user: some
            of them name programs to run here.
        connect_seconds: Longest wait for a connection; again as long for its first answer.
            Defaults to 20.
        say: Takes one line about the device, or about what stays there.

    Raises:
        SpecError: If an argument cannot be one.
        DeviceError: If the host cannot be reached or lacks what is needed.
    """
    _check(host, port, python, packages)
    program = shutil.which("ssh")
    if program is None:
        raise DeviceError("no program ssh", "OpenSSH", "install the package openssh-client")
    with _socket_folder() as folder:
        client = _Client(program, host, port, tuple(options), folder / "s")
        with _kept(client, connect_seconds, say) as (keeper, there):
            place = SshPlace(client, keeper, there, python)
            place.send_watch()
            _equip(place, packages, wheels, say)
            say(f"{host}: {place.machine.words}, {place.machine.cores} cores")
            yield place


def find(config: Path | None = None) -> list[Found]:
    """Returns the hosts that the user's SSH configuration names; connects to none of them.

    Args:
        config: Configuration file. Defaults to None: `~/.ssh/config`.
    """
    path = config or Path.home() / ".ssh" / "config"
    problem = "" if shutil.which("ssh") else "no program ssh here; install openssh-client"
    words = f"named in {'~/.ssh/config' if config is None else path}; not tried"
    names = dict.fromkeys(_hosts(path, path.parent.absolute(), CONFIG_DEPTH))
    return [Found("ssh", name, words, problem) for name in names]


def _hosts(path: Path, folder: Path, depth: int) -> Iterator[str]:
    """Yields the names of `Host` lines without patterns, those of included files too."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        setting = re.fullmatch(r"\s*(host|include)(\s*=\s*|\s+)(.*)", line, re.IGNORECASE)
        if not setting:
            continue
        words = re.findall(r'"[^"]*"|\S+', setting[3].partition(" #")[0])
        for name in (word.strip('"') for word in words):
            if setting[1].lower() == "include":
                wanted = folder / (Path.home() / name[2:] if name.startswith("~/") else name)
                for included in sorted(glob(str(wanted))):  # noqa: PTH207 - pathlib's may raise
                    if depth > 0:
                        yield from _hosts(Path(included), folder, depth - 1)
            elif re.fullmatch(f"({USER}@)?{HOST}", name):  # no pattern, no "!"
                yield name


def _check(host: str, port: int | None, python: str, packages: Sequence[str]) -> None:
    """Refuses what ssh or a shell could take for something else."""
    if not re.fullmatch(f"({USER}@)?{HOST}", host):
        found = f"host {printable(host)!r}"
        raise SpecError(
            found,
            "a name or address, or user@name: letters, digits and . _ - : %",
            "put unusual settings under a short name into ~/.ssh/config",
        )
    if port is not None and not 0 < port < 65536:
        raise SpecError(f"port {port}", "1 to 65535", "leave it out for the usual port, 22")
    if not python.isprintable() or not re.match(r"[A-Za-z0-9_./~]", python):
        raise SpecError(f"python {python!r}", "a program name or path", 'use "python3"')
    for name in packages:
        if not re.fullmatch(MODULE, name):
            raise SpecError(f"package {name!r}", "a name that Python can import", "correct it")


def _socket_folder() -> contextlib.AbstractContextManager[Path]:
    """Returns a private folder whose path is short enough for a socket."""
    short = len(tempfile.gettempdir().encode()) < SOCKET_FOLDER_CHARACTERS - 20
    return scratch_folder(None if short else Path("/tmp"))  # noqa: S108


@contextmanager
def _kept(
    client: _Client, seconds: float, say: Callable[[str], None]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Yields the process of the connection and the working folder there; ends both."""
    # Without a terminal no question of a jump host gets there.
    keeper = start(
        client.connect(_script(KEEPER), seconds),
        stdin=subprocess.PIPE,
        environment={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
    )
    folder = ""
    try:
        folder = _first_line(client, keeper, seconds)
        yield keeper, folder
    finally:
        try:
            code = _let_go(keeper, CALL_SECONDS if folder else seconds)
        finally:
            end(keeper)
        if folder and code != 0:
            say(
                f"{client.host}: the connection was gone at the end; the device removes {folder} "
                "itself when it notices"
            )


def _first_line(client: _Client, keeper: subprocess.Popen[bytes], seconds: float) -> str:
    """Returns the working folder that the keeper there has made."""
    heard = _Heard(KEPT_BYTES)
    limit = 2 * seconds
    deadline = time.monotonic() + limit

    def take(chunk: bytes) -> bool:
        return heard.take(chunk) or b"\n" in heard.data

    try:
        said = hear(keeper, lambda: deadline, take)
        if b"\n" not in heard.data and len(heard.data) <= KEPT_BYTES:
            keeper.wait(timeout=limit)
    except (TimeoutError, subprocess.TimeoutExpired) as err:
        raise DeviceError(
            f"{client.host}: no answer after {limit:g} s",
            "a shell that starts within that time",
            f"check with `{client.login}` that the device is up and not overloaded",
        ) from err
    found = re.fullmatch(FOLDER, heard.data)
    if found:
        return os.fsdecode(found.group(1))
    if heard.data:
        raise DeviceError(
            f"{client.host}: it printed {heard.text!r} before anything was asked",
            "nothing: only interactive shells may print when they start",
            f"check that `{client.login} true` prints nothing; guard or remove the echo in the "
            "start file of its shell (~/.bashrc, ~/.profile)",
        )
    if keeper.returncode == OWN_CODE:
        raise client.trouble(said, seconds)
    if keeper.returncode == NO_FOLDER:
        raise DeviceError(
            f"{client.host}: no folder for temporary files ({_shown(said)})",
            "a writable folder with space: TMPDIR there, or /tmp",
            "free space on its disk, or check the rights of the folder",
        )
    raise DeviceError(
        f"{client.host}: its shell ended with code {keeper.returncode} "
        f"({_shown(said) or 'no message'})",
        "an account that may run commands",
        f"check that `{client.login} true` works",
    )


def _equip(
    place: SshPlace, packages: Sequence[str], wheels: str | None, say: Callable[[str], None]
) -> None:
    """Finds a Python there that imports every package; describes the machine."""
    host = place.client.host
    found = place.probe(packages)
    if found is None:
        raise DeviceError(
            f"{host}: no Python {place.python!r} there",
            "Python 3.9 or newer",
            "install it there (on Debian `sudo apt install python3 python3-venv`), or name the "
            "path of another one",
        )
    if found.missing() and wheels is not None:
        place.python = found.executable
        python = place.install(packages, wheels, found.home, found.version)
        say(f"{host}: {', '.join(packages)} in {python.removesuffix('/bin/python')}, which stays")
        place.python = python
        found = place.probe(packages) or found
    if found.missing():
        whys = "; ".join(f"{name} ({why})" for name, why in found.missing().items())
        names = " ".join(packages)
        raise DeviceError(
            f"{host}: Python {printable(found.version)} there cannot import {whys}",
            f"a Python with {names}",
            f"add --install: edgekit then installs them into ~/.cache/edgekit there; or run "
            f"`{place.python} -m pip install {names}` there, or name a Python that has them",
        )
    place.python = found.executable
    words = (found.model, found.architecture, found.system, f"Python {found.version}")
    place.machine = Machine(printable(", ".join(w for w in words if w)), found.cores)


def _not_written(host: str, folder: str, name: str, size: int, said: str) -> DeviceError:
    """Returns the error for a file that could not be written there."""
    if re.search("No space left|quota|File too large", said):
        return DeviceError(
            f"{host}: its disk is full: no space for {printable(name)}, {size} bytes",
            f"{size} bytes free at {folder}",
            "remove files there, or set TMPDIR there to a folder on a larger disk",
        )
    return DeviceError(
        f"{host}: {printable(name)} cannot be written there ({_shown(said)})",
        f"a writable folder {folder}",
        "check the disk of the device",
    )


def _script(script: str, *arguments: str) -> str:
    """Returns a remote command that runs a fixed script of ours, whatever the login shell is."""
    return shlex.join(("sh", "-c", script, "sh", *arguments))


def _shown(said: str) -> str:
    """Returns a message of ssh without the frame of its warnings."""
    return printable(re.sub(r"@{3,}", " ", said))


@contextmanager
def _text(text: str) -> Iterator[IO[bytes]]:
    """Yields a file with a text, to be a process's input."""
    with tempfile.TemporaryFile() as stream:
        stream.write(text.encode())
        stream.flush()
        stream.seek(0)
        yield stream


def _run(
    command: Sequence[str],
    host: str,
    seconds: float,
    take: Take,
    stdin: IO[bytes] | None = None,
) -> tuple[int, str]:
    """Runs a process here to its end, or until `take` has enough; returns exit code and stderr.

    Raises:
        DeviceError: If it lasts too long.
    """
    process = start(
        command,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        environment={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
    )
    deadline = time.monotonic() + seconds
    full = False

    def taken(chunk: bytes) -> bool:
        nonlocal full
        full = take(chunk)
        return full

    try:
        said = hear(process, lambda: deadline, taken)
        if not full:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired) as err:
        raise DeviceError(
            f"{host}: no end after {seconds:g} s",
            "an end within that time",
            "check that the device is not overloaded and its network is fast enough",
        ) from err
    finally:
        end(process)
    return process.returncode, said


def _rest(keeper: subprocess.Popen[bytes]) -> str:
    """Returns what the process of the connection has said since, without waiting for it."""
    if keeper.stderr is None or keeper.stderr.closed:
        return ""
    os.set_blocking(keeper.stderr.fileno(), False)
    try:
        return os.read(keeper.stderr.fileno(), KEPT_BYTES).decode("utf-8", "replace")
    except BlockingIOError:
        return ""


def _let_go(keeper: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Lets the keeper there clean up; returns its exit code, None if it did not end in time."""
    if keeper.stdin is not None:
        # A line and not only the end: a process forked from this one may hold the pipe open.
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.write(b"end\n")
            keeper.stdin.flush()
    close(keeper)  # the outputs too: a shell there that prints without end must notice
    try:
        return keeper.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
