"""Reaches an Android phone through the system's adb program. Device layer.

What a phone needs:

* Android 7 or newer (earlier ones do not tell a program's exit code) with USB debugging on.
* For `Place.command`: a Python 3.9 or newer with numpy and the runtime, built for Android or
  brought along with its own C library, in a folder that adb's shell user may read and execute,
  such as /data/local/tmp/python. Android has none of its own, and that of Termux lies in Termux's
  private folder, where only Termux may go. edgekit installs nothing there.
* For `benchmark`: nothing; the user supplies the `benchmark_model` program of LiteRT for Android.

Everything lies in one folder with a random name below `FOLDER`, which is removed at the end. Only
a phone that was unplugged keeps it; then `say` gets the command that removes it.
"""

import contextlib
import hashlib
import os
import re
import secrets
import selectors
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from edgekit.devices.place import Found, Machine
from edgekit.devices.process import CHUNK_BYTES
from edgekit.errors import DeviceError, SpecError
from edgekit.processes import end, start
from edgekit.runtimes.base import printable

Say = Callable[[str], None]

# The folder of adb's shell user, the only one where it may both write and execute.
FOLDER = "/data/local/tmp"
OLDEST_PYTHON = (3, 9)
SHELL_SECONDS = 30.0
TRANSFER_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 1_000_000
WATCH_SECONDS = 0.2
OUTPUT_LIMIT_BYTES = 1024 * 1024
KEPT_CHARACTERS = 65536
# adb exits with 0 or 1 of its own when it loses the phone, so a command there says its own code.
END_MARK = "__EDGEKIT_RC="
# Serial numbers are what adb lists: of USB devices, `host:port`, or mDNS names; never an option.
SERIAL = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:%\[\]-]{0,254}")
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,254}")
ABSOLUTE = re.compile(r"/[^\0\n]{1,1000}")
FILE_NAME = re.compile(r"(?!\.{1,2}$)[^/\0\n]{1,200}")
SUFFIX = re.compile(r"\.[a-z0-9]{1,10}")
PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

INSTALL = (
    "install Android's platform tools (Debian: apt-get install adb; others: "
    "https://developer.android.com/tools/releases/platform-tools), or say where adb is"
)
ACCEPT = "unlock the phone and accept its question about USB debugging from this computer"
REPLUG = "unplug the phone and plug it in again; if it stays so, run: adb kill-server"
# States of `adb devices`: https://developer.android.com/tools/adb#devicestatus
REMEDIES = {
    "unauthorized": ACCEPT,
    "authorizing": ACCEPT,
    "offline": REPLUG,
    "connecting": REPLUG,
    "no permissions": "let your user open USB devices of phones (Debian: apt-get install "
    "android-sdk-platform-tools-common, join group plugdev), then plug it in again",
}
OTHER_STATE = "start Android on it"
# What adb and Android say about a phone that cannot go on, and what helps.
TROUBLES = (
    ("cannot write '", "space for the result", "free space on this computer"),
    ("No space left on device", "space for the files", "free space on the phone"),
    ("device unauthorized", "a phone that accepts this computer", ACCEPT),
    ("still authorizing", "a phone that accepts this computer", ACCEPT),
    ("device offline", "a phone that answers", REPLUG),
    ("still connecting", "a phone that answers", REPLUG),
    ("' not found", "a phone that stays connected", "plug it in again and run it again"),
)
PYTHON_REMEDY = (
    "unpack a Python for Android with numpy and the runtime below /data/local/tmp and name its "
    "program (that of Termux is closed to adb's shell user), or judge latency alone with LiteRT's "
    "benchmark_model"
)
PYTHON_CHECK = (
    "import sys; from importlib.util import find_spec; print('EDGEKIT', *sys.version_info[:2], "
    "*[name for name in sys.argv[1:] if find_spec(name) is None])"
)
PROPERTIES = (
    "ro.product.manufacturer",
    "ro.product.model",
    "ro.product.cpu.abi",
    "ro.build.version.release",
    "ro.hardware",
    "ro.boot.qemu",
    "ro.kernel.qemu",
)
# Virtual boards of Android's emulator (goldfish, ranchu) and of Cuttlefish (cutf_cvm).
VIRTUAL = ("goldfish", "ranchu", "cutf_cvm")
# PowerManager.THERMAL_STATUS_*: https://developer.android.com/reference/android/os/PowerManager
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
# BatteryManager.BATTERY_HEALTH_OVERHEAT
OVERHEAT = "3"
# AndroidX Benchmark calls results below this charge invalid (LOW-BATTERY in its Errors.kt).
LOW_BATTERY_PERCENT = 25


@dataclass(frozen=True)
class BenchmarkRun:
    """What one run of `benchmark_model` left.

    Args:
        exit_code: Its exit code.
        text: What it printed, stdout before stderr: the last 65536 characters, without control
            characters but line ends.
    """

    exit_code: int
    text: str


@dataclass(frozen=True)
class _Answer:
    """What a program said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class _Listed:
    """One line of `adb devices -l`."""

    serial: str
    state: str
    model: str


@dataclass(frozen=True)
class Phone:
    """A phone, reached: a `Place`. Made by `reach`.

    Args:
        adb: Program and arguments that name this phone.
        serial: Its serial number.
        folder: The only folder there that is used.
        machine: What it is.
        python: Path of a Python there; None if there is none.
    """

    adb: tuple[str, ...]
    serial: str
    folder: str
    machine: Machine
    python: str | None
    _sent: dict[str, str] = field(default_factory=dict, repr=False)

    def put(self, file: Path) -> str:
        """Brings a file there, once for each content, and returns its path there.

        Raises:
            SpecError: If the file cannot be read here.
            DeviceError: If the phone is gone, full, or got another content.
        """
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            size = file.stat().st_size
        except OSError as err:
            found = f"{file}: {err.strerror}"
            raise SpecError(found, "a file that can be read", "check the path") from err
        if digest not in self._sent:
            suffix = file.suffix if SUFFIX.fullmatch(file.suffix) else ""
            there = f"{self.folder}/{digest}{suffix}"
            answer = _call(
                (*self.adb, "push", str(file.resolve()), there), self.serial, _patience(size)
            )
            if answer.code != 0:
                raise _trouble(f"{self.serial}: {file.name}", answer)
            self._compare(file.name, self._measure(there), size, digest)
            self._sent[digest] = there
        return self._sent[digest]

    def path(self, name: str) -> str:
        """Returns the path there of a file that does not exist yet, named `name`.

        Raises:
            SpecError: If `name` is not a plain file name.
        """
        if not FILE_NAME.fullmatch(name):
            raise SpecError(f"file name {name!r}", "a plain file name", "leave the folder out")
        return f"{self.folder}/{name}"

    def command(self, program: str, job: str) -> Sequence[str]:
        """Returns arguments of a process here that runs a Python program with one argument there.

        Ending the process ends the program: adb's daemon sends SIGHUP to what it started, which
        `exec` makes the program itself. One that ignores it is killed when the phone is left.

        Raises:
            SpecError: If the phone was reached without a Python.
        """
        if self.python is None:
            found = f"{self.serial}: no Python is named for this phone"
            raise SpecError(found, "the path of a Python there", PYTHON_REMEDY)
        folder = shlex.quote(self.folder)
        run = shlex.join((self.python, program, job))
        return (
            *self.adb,
            "shell",
            f"cd {folder} && export HOME={folder} TMPDIR={folder} PYTHONDONTWRITEBYTECODE=1 "
            f"&& exec {run}",
        )

    def environment(self) -> Mapping[str, str] | None:
        """Returns None: adb runs in this process's own environment."""
        return None

    def get(self, there: str, here: Path, limit_bytes: int) -> None:
        """Brings a file from there here and removes it there.

        Args:
            there: From `path`.
            here: Where it goes.
            limit_bytes: Largest file that is taken.

        Raises:
            DeviceError: If there is no such file, it is larger, or the phone is gone.
        """
        try:
            self._fetch(there, here, limit_bytes)
        except BaseException:
            here.unlink(missing_ok=True)
            raise
        finally:
            with contextlib.suppress(DeviceError):  # the folder goes at the end anyway
                self._shell(f"rm -f {shlex.quote(there)}")

    def explain(self, code: int, said: str) -> DeviceError | None:  # noqa: ARG002
        """Returns the error of a phone that went away: `adb shell` then ends as if all were well.

        Args:
            code: Exit code of a run without a result.
            said: The end of its stderr.
        """
        if code != 0:
            return None
        found = f"{self.serial}: the phone went away while it worked"
        return DeviceError(found, "a phone that stays attached", "check the cable and run it again")

    def disturbances(self) -> tuple[str, ...]:
        """Returns what makes time measured now doubtful, in words; empty if nothing is known.

        Raises:
            DeviceError: If the phone is gone.
        """
        said = self._shell(
            'echo "saver=$(settings get global low_power)"; dumpsys battery; dumpsys thermalservice'
        ).out
        found = []
        if _value(r"^saver=(\S+)", said) == "1":
            found.append("battery saver is on")
        level = _value(r"^ *level: (\d{1,3})\r?$", said)
        if level and int(level) < LOW_BATTERY_PERCENT:
            found.append(f"battery at {level} %; below {LOW_BATTERY_PERCENT} % phones slow down")
        if _value(r"^ *health: (\d+)\r?$", said) == OVERHEAT:
            found.append("battery is overheated")
        heat = _value(r"^Thermal Status: ([1-6])\r?$", said)
        if heat:
            found.append(f"slowed down by heat: thermal status {THERMAL[int(heat)]}")
        return tuple(found)

    def _shell(self, command: str, seconds: float = SHELL_SECONDS) -> _Answer:
        return _shell(self.adb, self.serial, command, seconds)

    def _fetch(self, there: str, here: Path, limit_bytes: int) -> None:
        """Brings a file here; see `get`."""
        measured = self._measure(there)
        if measured[0] > limit_bytes:
            raise _too_large(self.serial, limit_bytes)
        command = (*self.adb, "pull", there, str(here.resolve()))
        answer = _call(command, self.serial, _patience(measured[0]), here, limit_bytes)
        if answer.code != 0:
            raise _trouble(f"{self.serial}: {printable(there)}", answer)
        content = here.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self._compare(printable(there), measured, len(content), digest)

    def _compare(
        self, name: str, there: tuple[int, str | None], size_bytes: int, digest: str
    ) -> None:
        """Refuses a file whose two ends differ; `there` is from `_measure`."""
        if there not in ((size_bytes, digest), (size_bytes, None)):
            found = f"{self.serial}: {name} arrived with another content"
            raise DeviceError(found, "the same bytes at both ends", "check the cable and try again")

    def _measure(self, there: str) -> tuple[int, str | None]:
        """Returns size and digest of a file there; a phone without sha256sum gives no digest."""
        name = shlex.quote(there)
        answer = self._shell(
            f"wc -c < {name} && "
            f"if command -v sha256sum > /dev/null; then sha256sum < {name}; else echo none; fi"
        )
        match = re.match(r"\s*(\d{1,18})\s+([0-9a-f]{64}|none)\b", answer.out)
        if answer.code != 0 or match is None:
            raise _trouble(f"{self.serial}: {printable(there)}", answer)
        return int(match[1]), None if match[2] == "none" else match[2]

    def _end_programs(self) -> None:
        """Kills every program there that was started with a file of this folder."""
        name = self.folder.rpartition("/")[2]
        # The brackets keep this very command line from matching.
        self._shell(
            f"for f in $(grep -ls '[{name[0]}]{name[1:]}' /proc/[0-9]*/cmdline); do "
            "p=${f#/proc/}; kill -9 ${p%/*}; done 2> /dev/null"
        )


@contextlib.contextmanager
def reach(
    *,
    serial: str | None = None,
    model: str | None = None,
    python: str | None = None,
    packages: Sequence[str] = (),
    adb: str = "adb",
    server: tuple[str, int] | None = None,
    say: Say,
) -> Iterator[Phone]:
    """Reaches one phone; afterwards nothing of edgekit is left on it.

    Args:
        serial: Serial number as `adb devices` prints it. Defaults to None: the only phone.
        model: Only a phone of this model, such as "Pixel 8". Defaults to None: any.
        python: Absolute path of a Python there, see the top of this module. Defaults to None:
            then `Phone.command` cannot be used.
        packages: What that Python must be able to import; "ai-edge-litert==2.3.0" counts as the
            module `ai_edge_litert` of any version. Defaults to nothing.
        adb: The adb program, a name or a path. Defaults to "adb".
        server: Host and port of adb's server. Defaults to None: adb's own choice.
        say: Called with a line for the user when the phone could not be cleaned up.

    Raises:
        SpecError: If an argument is not acceptable.
        DeviceError: If there is no adb, no such phone, several, or it is not usable.
    """
    _check_arguments(serial, python)
    base = _base(adb, server)
    chosen = _choose(_devices(base), serial, model).serial
    program = (*base, "-s", chosen)
    features = _call((*program, "features"), chosen, SHELL_SECONDS)
    if features.code != 0:
        raise _trouble(chosen, features)
    if "shell_v2" not in features.out.split():
        found = f"{chosen}: this Android does not tell exit codes (no shell_v2)"
        raise DeviceError(found, "Android 7 or newer", "use a newer phone")
    folder = f"{FOLDER}/edgekit-{secrets.token_hex(8)}"
    phone = Phone(program, chosen, folder, _machine(program, chosen), python)
    try:
        made = phone._shell(f"umask 077 && mkdir {shlex.quote(folder)}")
        if made.code != 0:
            raise _trouble(f"{chosen}: {folder} cannot be made", made)
        if python is not None:
            _check_python(phone, python, packages)
        yield phone
    finally:
        _leave(phone, say)


def find(adb: str = "adb", server: tuple[str, int] | None = None) -> list[Found]:
    """Returns what adb lists, and one line with the problem where adb cannot be used.

    Args:
        adb: As in `reach`. Defaults to "adb".
        server: As in `reach`. Defaults to None.
    """
    try:
        listed = _devices(_base(adb, server))
    except DeviceError as err:
        return [Found("adb", "", "Android phones", f"{err.received}; {err.remedy}")]
    return [
        Found("adb", entry.serial, entry.model.replace("_", " ") or "Android", _problem(entry))
        for entry in listed
    ]


def benchmark(
    phone: Phone,
    binary: Path,
    model: Path,
    *,
    threads: int = 1,
    runs: int = 200,
    seconds: float = 10.0,
    warmup_seconds: float = 0.5,
    timeout_seconds: float = 600.0,
) -> BenchmarkRun:
    """Runs LiteRT's `benchmark_model` on random input: latency only, and no accuracy.

    Flags: tflite/tools/benchmark/README.md of https://github.com/google-ai-edge/LiteRT.

    Args:
        phone: From `reach`.
        binary: The program, built for the phone's processor.
        model: A .tflite file.
        threads: Threads of the interpreter. Defaults to 1.
        runs: Fewest timed calls. Defaults to 200.
        seconds: Shortest timed part. Defaults to 10.
        warmup_seconds: Untimed part, at least five calls. Defaults to 0.5.
        timeout_seconds: Wall time for the whole run. Defaults to 600.

    Raises:
        SpecError: If a file cannot be read here.
        DeviceError: If the phone is gone or full, or the program hangs or prints without end.
    """
    program = phone.put(binary)
    arguments = (
        program,
        f"--graph={phone.put(model)}",
        f"--num_threads={threads}",
        f"--num_runs={runs}",
        f"--min_secs={seconds:g}",
        f"--max_secs={timeout_seconds / 3:g}",  # of the warm-up and of the timed part, each
        "--warmup_runs=5",
        f"--warmup_min_secs={warmup_seconds:g}",
    )
    folder, name = shlex.quote(phone.folder), shlex.quote(program)
    command = f"cd {folder} && chmod 700 {name} && {shlex.join(arguments)}"
    try:
        answer = phone._shell(command, timeout_seconds)
    except BaseException:
        with contextlib.suppress(DeviceError):
            phone._end_programs()
        raise
    lines = f"{answer.out}\n{answer.err}".splitlines()
    text = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)
    return BenchmarkRun(answer.code, text[-KEPT_CHARACTERS:])


def _check_arguments(serial: str | None, python: str | None) -> None:
    if serial is not None and not SERIAL.fullmatch(serial):
        found = f"serial number {printable(serial)!r}"
        raise SpecError(found, "a serial number as `adb devices` prints it", "copy it from there")
    if python is not None and not ABSOLUTE.fullmatch(python):
        found = f"python {printable(python)!r}"
        raise SpecError(found, "an absolute path on the phone", PYTHON_REMEDY)


def _base(adb: str, server: tuple[str, int] | None) -> tuple[str, ...]:
    """Returns the adb program with the arguments that name its server."""
    program = shutil.which(adb)
    if program is None:
        found = f"no program {printable(adb)!r} on this computer"
        raise DeviceError(found, "Android's adb", INSTALL)
    if server is None:
        return (program,)
    host, port = server
    if not HOST.fullmatch(host) or not 0 < port < 65536:
        found = f"adb server {printable(host)!r}, port {port}"
        raise SpecError(found, "a host name and a port from 1 to 65535", "correct the address")
    return (program, "-H", host, "-P", str(port))


def _devices(base: tuple[str, ...]) -> list[_Listed]:
    """Returns what `adb devices` lists; starts adb's server where it does not run."""
    answer = _call((*base, "devices", "-l"), "adb", SHELL_SECONDS)
    _, header, lines = answer.out.partition("List of devices attached\n")
    if answer.code != 0 or not header:
        raise _trouble("adb devices", answer)
    listed = []
    for line in lines.splitlines():
        match = re.match(r"(\(no serial number\)|\S+)\s+(no permissions|\S+)", line)
        if match is not None:
            model = _value(r"\bmodel:(\S+)", line)
            listed.append(_Listed(*(printable(text) for text in (match[1], match[2], model))))
    return listed


def _problem(entry: _Listed) -> str:
    """Returns why a listed phone cannot be used, or nothing."""
    if entry.state == "device":
        return ""
    return f"{entry.state}: {REMEDIES.get(entry.state, OTHER_STATE)}"


def _choose(listed: Sequence[_Listed], serial: str | None, model: str | None) -> _Listed:
    """Returns the one phone that is meant; see `reach`."""
    # `adb devices -l` prints a model with underscores for everything but letters and digits.
    wanted = re.sub(r"\W", "_", model) if model is not None else None
    named = [entry for entry in listed if serial in (None, entry.serial)]
    meant = [entry for entry in named if wanted in (None, entry.model)]
    meant = meant or [entry for entry in named if not entry.model]  # a locked phone tells none
    shown = "; ".join(
        f"{entry.serial} ({entry.model or 'model unknown'}, {entry.state})" for entry in listed
    )
    if not meant:
        asked = " ".join(word for word in (serial, model) if word)
        found = f"no phone {printable(asked)} among: {shown}" if listed else "no phone is connected"
        raise DeviceError(
            found,
            "a phone that `adb devices` lists",
            "connect it, turn on USB debugging in its developer options and accept this computer",
        )
    if len(meant) > 1:
        found = f"{len(meant)} phones: {shown}"
        raise DeviceError(found, "one phone, or its serial number", "name one serial number")
    if meant[0].state != "device":
        found = f"{meant[0].serial}: {meant[0].state}"
        raise DeviceError(found, "a phone that answers", REMEDIES.get(meant[0].state, OTHER_STATE))
    return meant[0]


def _machine(adb: tuple[str, ...], serial: str) -> Machine:
    """Returns what a phone says about itself."""
    reads = "; ".join(f'echo "{name}=$(getprop {name})"' for name in PROPERTIES)
    said = _shell(adb, serial, f'{reads}; echo "nproc=$(nproc)"', SHELL_SECONDS).out
    facts = {
        name: printable(_value(rf"^{re.escape(name)}=(.*)$", said))[:60] for name in PROPERTIES
    }
    maker, model, abi, release, hardware, boot, kernel = facts.values()
    virtual = hardware in VIRTUAL or "1" in (boot, kernel)
    name = model if model.startswith(maker) else f"{maker} {model}"
    words = f"{name or 'unknown phone'}, {abi or 'unknown processor'}, Android {release or '?'}"
    cores = _value(r"^nproc=(\d{1,4})\r?$", said)
    return Machine(
        words=f"{words}, emulated" if virtual else words,
        cores=int(cores) or None if cores else None,
        real=not virtual,
    )


def _check_python(phone: Phone, python: str, packages: Sequence[str]) -> None:
    """Refuses a Python that does not run there, is too old or lacks a package."""
    names = []
    for package in packages:
        match = PACKAGE.match(package)
        if match is None:
            found = f"package {printable(package)!r}"
            raise SpecError(found, "the name of a package", "correct the name")
        names.append(match[0].replace("-", "_"))
    run = shlex.join((python, "-c", PYTHON_CHECK, *names))
    answer = phone._shell(f"export PYTHONDONTWRITEBYTECODE=1; {run}")
    match = re.search(r"^EDGEKIT (\d{1,3}) (\d{1,3})((?: \S+)*)\r?$", answer.out, re.MULTILINE)
    if answer.code != 0 or match is None:
        said = printable(answer.err or answer.out)
        found = f"{phone.serial}: {python} does not run there ({said})"
        raise DeviceError(found, "a Python that adb's shell user may run", PYTHON_REMEDY)
    version = (int(match[1]), int(match[2]))
    if version < OLDEST_PYTHON:
        found = f"{phone.serial}: {python} is Python {version[0]}.{version[1]}"
        raise DeviceError(found, "Python 3.9 or newer", PYTHON_REMEDY)
    missing = printable(match[3])
    if missing:
        found = f"{phone.serial}: {python} cannot import {missing}"
        raise DeviceError(found, "a Python with these packages", PYTHON_REMEDY)


def _leave(phone: Phone, say: Say) -> None:
    """Ends what still runs there and removes the folder, or says how to."""
    folder = shlex.quote(phone.folder)
    removed = False
    try:
        phone._end_programs()
        removed = phone._shell(f"rm -rf {folder}; [ ! -e {folder} ]").code == 0
    except DeviceError:
        pass  # it is gone; what matters is said below
    finally:
        if not removed:
            say(
                f"{phone.serial}: {phone.folder} may still lie on the phone; when it is connected "
                f"again, run: adb -s {shlex.quote(phone.serial)} shell rm -rf {folder}"
            )


def _shell(adb: tuple[str, ...], serial: str, command: str, seconds: float) -> _Answer:
    """Runs a command there to its end; its variable parts are quoted by the caller.

    Raises:
        DeviceError: If it did not come to its end.
    """
    whole = f"({command}\n); rc=$?; echo; echo {END_MARK}$rc"
    answer = _call((*adb, "shell", whole), serial, seconds)
    out, _, code = answer.out.rpartition(f"\n{END_MARK}")
    if not re.fullmatch(r"\d{1,3}\r?\n", code):
        raise _trouble(serial, answer)
    return _Answer(int(code), out, answer.err)


def _call(
    command: Sequence[str],
    subject: str,
    seconds: float,
    growing: Path | None = None,
    limit_bytes: int = OUTPUT_LIMIT_BYTES,
) -> _Answer:
    """Runs adb to its end, with limits on its time and on everything that it brings.

    Args:
        command: Program and arguments.
        subject: Who is meant, for messages.
        seconds: Wall time.
        growing: A file that it writes. Defaults to None.
        limit_bytes: Largest size of that file. Defaults to `OUTPUT_LIMIT_BYTES`.

    Raises:
        DeviceError: If a limit is reached.
    """
    process = start(command)  # Ctrl-C does not reach it: it may be a clean-up
    deadline = time.monotonic() + seconds
    said: dict[IO[bytes] | None, bytearray] = {
        process.stdout: bytearray(),
        process.stderr: bytearray(),
    }
    try:
        with selectors.DefaultSelector() as selector:
            for stream in said:
                if stream is not None:
                    selector.register(stream, selectors.EVENT_READ, said[stream])
            while selector.get_map():
                _listen(selector, said.values(), subject)
                if growing is not None and growing.is_file():
                    size = growing.stat().st_size
                    if size > limit_bytes:
                        raise _too_large(subject, limit_bytes)
                if time.monotonic() > deadline:
                    raise _too_slow(subject, seconds)
        process.wait(timeout=max(WATCH_SECONDS, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as err:
        raise _too_slow(subject, seconds) from err
    finally:
        end(process)
    out, err_text = (bytes(part).decode("utf-8", "replace") for part in said.values())
    return _Answer(process.returncode, out.replace("\r\n", "\n"), err_text)


def _listen(selector: selectors.DefaultSelector, said: Iterable[bytearray], subject: str) -> None:
    """Takes what comes within a moment."""
    for key, _ in selector.select(WATCH_SECONDS):
        chunk = os.read(key.fd, CHUNK_BYTES)
        if not chunk:
            selector.unregister(key.fileobj)
        key.data.extend(chunk)
    if sum(map(len, said)) > OUTPUT_LIMIT_BYTES:
        found = f"{subject}: more than {OUTPUT_LIMIT_BYTES} bytes of text"
        raise DeviceError(found, "an answer of some lines", "check the phone and run it again")


def _trouble(subject: str, answer: _Answer) -> DeviceError:
    """Returns the error for what adb or the phone said."""
    whole = f"{answer.err}\n{answer.out}"
    said = printable(whole) or "it stopped without a word"
    for words, expected, remedy in TROUBLES:
        if words in whole:
            return DeviceError(f"{subject}: {said}", expected, remedy)
    return DeviceError(
        f"{subject}: {said}",
        "an adb and a phone that do what they are asked",
        "check the cable, run `adb devices` and run it again",
    )


def _too_slow(subject: str, seconds: float) -> DeviceError:
    found = f"{subject}: no end after {seconds:g} s"
    return DeviceError(found, "an end within that time", REPLUG)


def _too_large(subject: str, limit_bytes: int) -> DeviceError:
    found = f"{subject}: a result of more than {limit_bytes} bytes"
    return DeviceError(found, "a result within that size", "check the phone and run it again")


def _patience(size_bytes: int) -> float:
    return TRANSFER_SECONDS + size_bytes / SLOWEST_BYTES_PER_SECOND


def _value(pattern: str, text: str) -> str:
    """Returns the first group of the first match, or nothing."""
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else ""
