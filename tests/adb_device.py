"""The device end of the adb protocol, so that the real adb program has a phone to talk to.

Written after the protocol's own documents (adb/protocol.txt, SYNC.TXT, shell_protocol.h and
file_sync_protocol.h of the Android Open Source Project). Commands really run here, in the phone's
shell (mksh and toybox, as on Android, where they are installed), but see only the tools in `bin`.
"""

import os
import queue
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

VERSION = 0x01000001  # from this version on, payloads carry no checksum
LARGEST = 256 * 1024
SYNC_LARGEST = 64 * 1024
COMMANDS = {name: int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY")}
COMMANDS |= {name: int.from_bytes(name, "little") for name in (b"CLSE", b"WRTE")}
NAMES = {number: name for name, number in COMMANDS.items()}
AUTH_TOKEN, AUTH_PUBLIC_KEY = 1, 3
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
TOOLS = ("cat", "chmod", "grep", "mkdir", "nproc", "rm", "sha256sum", "sleep", "wc")


def adb_program() -> str:
    """Returns the real adb; skips the test where there is none, but fails in CI."""
    return installed("adb")


def installed(name: str) -> str:
    path = shutil.which(name)
    if path is not None:
        return path
    reason = f"needs the program {name}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Stream:
    """One service on one connection."""

    connection: "Connection"
    local: int
    remote: int
    incoming: "queue.Queue[bytes | None]" = field(default_factory=queue.Queue)
    ready: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1))
    closed: threading.Event = field(default_factory=threading.Event)
    pid: int | None = None
    _read: bytes = b""

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), LARGEST):
            self.ready.acquire()
            if self.closed.is_set():
                return
            self.connection.write(b"WRTE", self.local, self.remote, data[start : start + LARGEST])

    def receive(self, count: int) -> bytes:
        """Returns `count` bytes; raises EOFError at the end of the stream."""
        while len(self._read) < count:
            more = self.incoming.get()
            if more is None:
                raise EOFError
            self._read += more
        data, self._read = self._read[:count], self._read[count:]
        return data

    def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self.connection.write(b"CLSE", self.local, self.remote)

    def hang_up(self) -> None:
        """The other end is gone: adbd sends SIGHUP to the process it started, and to no other."""
        self.closed.set()
        self.incoming.put(None)
        self.ready.release(1000)
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGHUP)


class Connection:
    """One connection from an adb server."""

    def __init__(self, phone: "Phone", link: socket.socket) -> None:
        self.phone = phone
        self.link = link
        self.streams: dict[int, Stream] = {}
        self._lock = threading.Lock()

    def write(self, name: bytes, first: int, second: int, data: bytes = b"") -> None:
        number = COMMANDS[name]
        head = struct.pack(
            "<6I", number, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF
        )
        with self._lock, suppress(OSError):
            self.link.sendall(head + data)

    def serve(self) -> None:
        with suppress(OSError, EOFError), self.link, self.link.makefile("rb") as incoming:
            while head := incoming.read(24):
                number, first, second, length, _, _ = struct.unpack("<6I", head)
                self.handle(NAMES[number], first, second, incoming.read(length))
        for stream in list(self.streams.values()):
            stream.hang_up()

    def handle(self, name: bytes, first: int, second: int, data: bytes) -> None:
        phone = self.phone
        if name in (b"CNXN", b"AUTH"):
            if phone.authorized:
                self.write(b"CNXN", VERSION, LARGEST, phone.banner())
            elif first != AUTH_PUBLIC_KEY:  # no key is good enough until somebody accepts one
                self.write(b"AUTH", AUTH_TOKEN, 0, os.urandom(20))
        elif name == b"OPEN":
            stream = Stream(self, local=len(self.streams) + 1, remote=first)
            self.streams[stream.local] = stream
            service = data.rstrip(b"\0").decode()
            phone.heard.append(service)
            threading.Thread(target=self.open, args=(stream, service), daemon=True).start()
        elif stream := self.streams.get(second):
            if name == b"OKAY":
                stream.ready.release()
            elif name == b"WRTE":
                self.write(b"OKAY", stream.local, stream.remote)
                stream.incoming.put(data)
            elif name == b"CLSE":
                stream.hang_up()

    def open(self, stream: Stream, service: str) -> None:
        self.write(b"OKAY", stream.local, stream.remote)
        kind, _, command = service.partition(":")
        with suppress(EOFError, OSError):
            if kind == "sync":
                Sync(self.phone, stream).serve()
            elif kind.split(",")[0] == "shell":
                self.phone.shell(stream, command, "v2" in kind.split(","))
        stream.close()


class Sync:
    """The file service of one stream."""

    def __init__(self, phone: "Phone", stream: Stream) -> None:
        self.phone = phone
        self.stream = stream

    def serve(self) -> None:
        while True:
            kind, length = struct.unpack("<4sI", self.stream.receive(8))
            path = self.stream.receive(length).decode()
            self.phone.heard.append(f"{kind.decode()} {path}")
            if kind == b"STAT":
                self.stat(Path(path))
            elif kind == b"SEND":
                self.take(*path.rsplit(",", 1))
            elif kind == b"RECV":
                self.give(Path(path))
            else:
                return  # QUIT

    def stat(self, path: Path) -> None:
        try:
            found = path.stat()
            facts = (found.st_mode, found.st_size, int(found.st_mtime))
        except OSError:
            facts = (0, 0, 0)
        self.stream.send(struct.pack("<4s3I", b"STAT", *facts))

    def take(self, path: str, mode: str) -> None:
        content = b""
        while True:
            kind, length = struct.unpack("<4sI", self.stream.receive(8))
            if kind == b"DONE":
                break
            content += self.stream.receive(length)
        if len(content) > self.phone.free_bytes:
            self.fail("write failed: No space left on device")
            return
        if self.phone.damages and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        try:
            Path(path).write_bytes(content)
            Path(path).chmod(stat.S_IMODE(int(mode)))
        except OSError as err:
            self.fail(f"couldn't create file: {err.strerror}")
        else:
            self.stream.send(struct.pack("<4sI", b"OKAY", 0))

    def give(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as err:
            self.fail(f"open failed: {err.strerror}")
            return
        while self.phone.endless and not self.stream.closed.is_set():
            self.data(bytes(SYNC_LARGEST))
        for start in range(0, len(content), SYNC_LARGEST):
            self.data(content[start : start + SYNC_LARGEST])
        self.stream.send(struct.pack("<4sI", b"DONE", 0))

    def data(self, content: bytes) -> None:
        self.stream.send(struct.pack("<4sI", b"DATA", len(content)) + content)

    def fail(self, words: str) -> None:
        self.stream.send(struct.pack("<4sI", b"FAIL", len(words)) + words.encode())


class Phone:
    """A phone that listens for an adb server on a port of this machine.

    `answers` are the shell scripts behind `getprop`, `dumpsys` and `settings`; `heard` is every
    service that was asked for.
    """

    def __init__(self, folder: Path, model: str = "Edge 1", *, android: bool = False) -> None:
        self.folder = folder / "data"
        self.model = model
        self.features = "shell_v2,cmd"
        self.authorized = True
        self.free_bytes = 1 << 40
        self.damages = False
        self.endless = False
        self.heard: list[str] = []
        self.bin = folder / "bin"
        self.sh = "/bin/sh"
        self.folder.mkdir(parents=True)
        self.bin.mkdir()
        self._fill(android)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[Connection] = []
        self.port = self._listener.getsockname()[1]
        self.serial = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _fill(self, android: bool) -> None:
        if android:
            self.sh = installed("mksh")
        for name in TOOLS:
            (self.bin / name).symlink_to(installed("toybox" if android else name))
        self.tool("python3", f'exec {sys.executable} "$@"')
        self.tool(
            "getprop",
            'case "$1" in\n'
            "ro.product.manufacturer) echo Maker;;\n"
            f"ro.product.model) echo '{self.model}';;\n"
            "ro.product.cpu.abi) echo arm64-v8a;;\n"
            "ro.build.version.release) echo 14;;\n"
            "ro.hardware) echo chip;;\n"
            "*) echo;;\nesac",
        )
        self.tool("settings", "echo 0")
        self.dumpsys()

    def dumpsys(self, level: int = 80, health: int = 2, thermal: int = 0) -> None:
        self.tool(
            "dumpsys",
            'case "$1" in\n'
            "battery) echo 'Current Battery Service state:\n  AC powered: false\n"
            f"  status: 2\n  health: {health}\n  present: true\n  level: {level}\n"
            "  scale: 100\n  temperature: 312';;\n"
            f"thermalservice) echo 'IsStatusOverride: false\nThermal Status: {thermal}\n"
            "Cached temperatures:';;\nesac",
        )

    def tool(self, name: str, script: str) -> None:
        """Puts a shell script into the phone's path."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!{self.sh}\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def banner(self) -> bytes:
        name = self.model.replace(" ", "_")
        return (
            f"device::ro.product.name=edge;ro.product.model={name};ro.product.device=edge;"
            f"features={self.features}"
        ).encode()

    def left(self) -> list[str]:
        """Returns what lies in the phone's folder."""
        return sorted(path.name for path in self.folder.iterdir())

    def unplug(self) -> None:
        """Breaks every connection and takes no new one."""
        for link in (self._listener, *(connection.link for connection in self._connections)):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = Connection(self, self._listener.accept()[0])
                self._connections.append(connection)
                threading.Thread(target=connection.serve, daemon=True).start()

    def shell(self, stream: Stream, command: str, packets: bool) -> None:
        process = subprocess.Popen(
            [self.sh, "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if packets else subprocess.STDOUT,
            start_new_session=True,
            env={"PATH": str(self.bin)},
            cwd=self.folder.parent,
        )
        stream.pid = process.pid
        if stream.closed.is_set():
            stream.hang_up()

        threading.Thread(target=_feed, args=(stream, process, packets), daemon=True).start()
        pumps = [
            threading.Thread(target=_pump, args=(pipe, number, stream, packets), daemon=True)
            for pipe, number in ((process.stdout, STDOUT), (process.stderr, STDERR))
            if pipe is not None
        ]
        for thread in pumps:
            thread.start()
        for thread in pumps:
            thread.join()
        code = process.wait()
        stream.pid = None
        if packets:
            stream.send(struct.pack("<BIB", EXIT, 1, code if code >= 0 else 128 - code))


def _pump(pipe: IO[bytes], number: int, stream: Stream, packets: bool) -> None:
    with pipe:
        while chunk := os.read(pipe.fileno(), 16 * 1024):
            stream.send((struct.pack("<BI", number, len(chunk)) if packets else b"") + chunk)


def _feed(stream: Stream, process: subprocess.Popen[bytes], packets: bool) -> None:
    with suppress(EOFError, OSError), process.stdin as pipe:
        while packets:
            number, length = struct.unpack("<BI", stream.receive(5))
            data = stream.receive(length)
            if number == CLOSE_STDIN:
                return
            if number == STDIN:
                os.write(pipe.fileno(), data)


@dataclass(frozen=True)
class Server:
    """A private adb server."""

    program: str
    port: int
    environment: dict[str, str]

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def adb(self, *arguments: str) -> str:
        command = [self.program, "-P", str(self.port), *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout + done.stderr

    def connect(self, phone: Phone) -> str:
        return self.adb("connect", phone.serial)


@contextmanager
def adb_server(home: Path) -> Iterator[Server]:
    """Starts a private adb server and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # Without a port of its own the server would look for emulators on this machine.
    more = {"HOME": str(home), "TMPDIR": str(home), "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553"}
    server = Server(adb_program(), port, os.environ | more)
    try:
        server.adb("start-server")
        yield server
    finally:
        server.adb("kill-server")
