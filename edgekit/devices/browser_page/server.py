"""Serves the page and one task at a time on loopback, and takes what the page sends. Device layer.

The page is untrusted: it reaches nothing but its own files, and what it sends is limited in size
here and judged by the caller.
"""

import contextlib
import hmac
import json
import re
import secrets
import select
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from edgekit.devices.browser_page.packages import digests

HOST = "127.0.0.1"
PAGE_FILES = {"": "index.html", "page.js": "page.js", "runtimes.js": "runtimes.js"}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
}
# Cross-origin isolation (COOP and COEP) gives the page threads and a clock of 5 microseconds.
# source: https://developer.mozilla.org/en-US/docs/Web/API/Performance_API/High_precision_timing
# The content security policy keeps third-party code from talking to anybody but this server.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; img-src data:; style-src 'nonce-{nonce}'; "
        "script-src 'self' 'wasm-unsafe-eval' 'nonce-{nonce}'; worker-src 'self' blob:"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
TOKEN_BYTES = 32
SMALL_BODY_BYTES = 65536
IDLE_SECONDS = 60
LOOK_SECONDS = 0.5


@dataclass
class Task:
    """What the page shall do, and what it has said so far.

    Args:
        description: What the page reads as `job.json`; `number` is added.
        model: The file it fetches.
        images: uint8 of shape `(count, height, width, 3)`.
        codes: float32 of shape `(256, 3)`.
        limit_bytes: Largest result that is taken.
    """

    description: dict[str, Any]
    model: Path
    images: npt.NDArray[np.uint8]
    codes: npt.NDArray[np.float32]
    limit_bytes: int
    number: int = 0
    progress: float = 0.0
    said: tuple[str, bytes] | None = field(default=None, repr=False)
    ended: threading.Event = field(default_factory=threading.Event)
    arrived: bool = False
    left: float | None = None
    _pages: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def page(self) -> Iterator[None]:
        """Notes that a page is there; `left` tells since when the last one is gone."""
        with self._lock:
            self._pages += 1
            self.arrived, self.left = True, None
        try:
            yield
        finally:
            with self._lock:
                self._pages -= 1
                self.left = None if self._pages else time.monotonic()


class PageServer(ThreadingHTTPServer):
    """The server; its address is secret, so that no other page or user can reach it.

    Args:
        packages: Folder of the npm packages.
    """

    daemon_threads = True

    def __init__(self, packages: Path) -> None:
        super().__init__((HOST, 0), _Handler)
        self.packages = packages
        self.served = digests()
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self.task: Task | None = None
        self.numbers = 0

    @property
    def host(self) -> str:
        """Returns the address with the port."""
        return f"{HOST}:{self.server_port}"

    @property
    def url(self) -> str:
        """Returns the address of the page."""
        return f"http://{self.host}/{self.token}/"

    def give(self, task: Task) -> None:
        """Makes `task` the one that a page gets from now on."""
        self.numbers += 1
        task.number = self.numbers
        self.task = task

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stays silent about connections that a browser dropped; shows everything else."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(packages: Path) -> Iterator[PageServer]:
    """Yields a running server and ends it afterwards.

    Args:
        packages: Folder of the npm packages.
    """
    with PageServer(packages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            if server.task is not None:
                server.task.ended.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version = "edgekit"
    sys_version = ""
    timeout = IDLE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Sends a file of the page, of the packages, or of the task."""
        path = self._below_token()
        task = self.server.task
        if path is None or task is None:
            self._refuse(404)
        elif path in PAGE_FILES:
            self._send_page(PAGE_FILES[path])
        elif path.removeprefix("packages/") in self.server.served:
            self._send_file(self.server.packages / path.removeprefix("packages/"))
        elif path == "job.json":
            description = {**task.description, "number": task.number}
            self._send(json.dumps(description).encode(), TYPES[".json"])
        elif path == "model":
            self._send_file(task.model)
        elif path == "codes":
            self._send(task.codes.astype("<f4").tobytes())
        elif match := re.fullmatch(r"images/(\d{1,9})-(\d{1,9})", path):
            self._send(task.images[int(match[1]) : int(match[2])].tobytes())
        elif path == f"alive/{task.number}":
            self._stay(task)
        else:
            self._refuse(404)

    def do_POST(self) -> None:
        """Takes progress, the failure or the result of the task."""
        path = self._below_token()
        task = self.server.task
        if path is None or task is None:
            self._refuse(404)
            return
        kind, _, number = path.partition("/")
        limits = {"result": task.limit_bytes + SMALL_BODY_BYTES}
        body = self._body(limits.get(kind, SMALL_BODY_BYTES))
        if body is None:
            self._refuse(413)
        elif number != str(task.number) or task.ended.is_set():
            self._refuse(409)
        elif kind == "progress":
            with contextlib.suppress(ValueError):
                # Not a number becomes 0, too.
                task.progress = min(1.0, max(0.0, float(body)))
            self._send(b"")
        elif kind in ("result", "failure"):
            task.said = (kind, body)
            self._send(b"")
            task.ended.set()
        else:
            self._refuse(404)

    def _below_token(self) -> str | None:
        """Returns the path behind the token, None where it or the host is another.

        The host is checked so that no name of another site can be made to lead here.
        """
        token, _, path = urlsplit(self.path).path.removeprefix("/").partition("/")
        right = hmac.compare_digest(token.encode(), self.server.token.encode())
        return path if right and self.headers.get("Host") == self.server.host else None

    def _body(self, limit_bytes: int) -> bytes | None:
        """Returns the body of a request, None if it is too large or its length is not given."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length) or int(length) > limit_bytes:
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def _send_page(self, name: str) -> None:
        """Sends a file of the page."""
        content = (resources.files(__package__) / name).read_text(encoding="utf-8")
        nonce = secrets.token_urlsafe()
        if name.endswith(".html"):
            content = content.replace("{nonce}", nonce)
        self._send(content.encode(), TYPES[Path(name).suffix], nonce)

    def _send(
        self, content: bytes, content_type: str = "application/octet-stream", nonce: str = ""
    ) -> None:
        self._start(content_type, len(content), nonce)
        self.wfile.write(content)

    def _send_file(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                size = path.stat().st_size
                self._start(TYPES.get(path.suffix, "application/octet-stream"), size)
                shutil.copyfileobj(stream, self.wfile)
        except FileNotFoundError:
            self._refuse(404)

    def _start(self, content_type: str, length: int | None, nonce: str = "") -> None:
        """Sends the head of an answer; without a length the answer ends with the connection."""
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        if length is not None:
            self.send_header("Content-Length", str(length))
        else:
            self.send_header("Connection", "close")
        for name, value in HEADERS.items():
            self.send_header(name, value.replace("{nonce}", nonce or secrets.token_urlsafe()))
        self.end_headers()

    def _refuse(self, status: int) -> None:
        self.close_connection = True
        self.send_error(status)

    def _stay(self, task: Task) -> None:
        """Holds an answer open until the task ends or the page, crashed or closed, hangs up."""
        self._start("text/plain", None)
        self.close_connection = True
        with task.page():
            while not task.ended.is_set():
                ready, _, _ = select.select([self.connection], [], [], LOOK_SECONDS)
                if ready and not self.connection.recv(1):
                    break
