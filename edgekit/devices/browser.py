"""Runs exported files in a real browser, by ONNX Runtime Web or LiteRT.js. Device layer.

There is no Python in a browser, so this is no `Place`: a page that edgekit serves on loopback does
what the runner program does elsewhere, and what it sends back is as untrusted.
"""

import contextlib
import html
import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from edgekit import errors, limits
from edgekit.devices.browser_page.packages import (
    prepare,
    problem as packages_problem,
    versions,
)
from edgekit.devices.browser_page.server import PageServer, Task, serving
from edgekit.devices.exchange import ReportProgress
from edgekit.devices.place import Found
from edgekit.devices.protocol import Failure
from edgekit.errors import DataError, DeviceError, EdgekitError, SpecError
from edgekit.folders import scratch_folder
from edgekit.processes import end, run, start
from edgekit.records import Record
from edgekit.runner import clock
from edgekit.runtimes.base import SHOWN_CHARACTERS, printable
from edgekit.runtimes.ends import Layout

__all__ = [
    "MANUAL",
    "BrowserAnswer",
    "BrowserJob",
    "Process",
    "Window",
    "find",
    "opened",
    "prepare",
    "started",
]

Runtime = Literal["onnxruntime-web", "litert-js"]
Say = Callable[[str], None]

PACKAGE_OF_RUNTIME: dict[Runtime, str] = {
    "onnxruntime-web": "onnxruntime-web",
    "litert-js": "@litertjs/core",
}
MANUAL = "manual"
PROGRAMS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
    "brave-browser",
)
TO_INSTALL = "install Chromium (Debian: apt-get install chromium) or Google Chrome"
# source: https://peter.sh/experiments/chromium-command-line-switches/ (list of all switches)
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-breakpad",
    # No name is ever looked up, so nothing but edgekit's own page can be reached.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
# Leads to the page at once, and leaves no step back to itself.
FIRST_PAGE = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={url}">'
)
# What Chromium says before it ends, where a user who is not root may have no sandbox.
NO_SANDBOX = "No usable sandbox"
MAX_SAMPLES = 10_000_000
MAX_RESULT_BYTES = 1024**3
MIN_WARMUP_RUNS = 5
START_SECONDS = 60.0
# A page that is loaded anew is away for a moment.
AWAY_SECONDS = 5.0
LOOK_SECONDS = 0.1
VERSION_SECONDS = 20.0
STDERR_READ_BYTES = 65536


@dataclass(frozen=True)
class BrowserJob:
    """One measurement in a fresh page.

    Args:
        model: An .onnx or .tflite file with float32 input and output and, for LiteRT.js, a static
            batch of 1.
        sha256: Digest that the page must find, in hex.
        runtime: "onnxruntime-web" or "litert-js", both in WebAssembly.
        threads: Threads the runtime may use.
        images: A .npy file, uint8 of shape `(count, height, width, 3)`.
        codes: A .npy file, float32 of shape `(256, channels)`: the tensor value of each pixel
            value, per channel.
        mode: "accuracy" answers every image; "latency" times single calls.
        layout: How a picture is fed. Defaults to "NHWC".
        output: Position of the output that is read. Defaults to None: the only one.
        warmup_seconds: Latency: untimed running first, at least five calls. Defaults to 0.5.
        min_queries: Latency: fewest samples. Defaults to 200.
        min_seconds: Latency: shortest timed part. Defaults to 10.
    """

    model: Path
    sha256: str
    runtime: Runtime
    threads: int
    images: Path
    codes: Path
    mode: Literal["accuracy", "latency"]
    layout: Layout = "NHWC"
    output: int | None = None
    warmup_seconds: float = 0.5
    min_queries: int = 200
    min_seconds: float = 10.0


@dataclass(frozen=True)
class BrowserAnswer:
    """What a page measured.

    Args:
        runtime: Package and version.
        user_agent: What the browser calls itself; printable.
        array: float32 scores of shape `(count, classes)`, or float64 samples in milliseconds a call
            of shape `(samples,)`.
        hardware_concurrency: Logical cores that the browser admits to.
        visible: Whether the page could be seen all the time; browsers slow hidden pages down.
        warmup_runs: Untimed calls before the first sample.
        cross_origin_isolated: Whether the page had a clock of 5 microseconds, and threads.
        clock_step_ms: Least by which that clock moved; None where nothing was timed.
        calls_per_sample: Calls that a sample is the mean of.
    """

    runtime: str
    user_agent: str
    array: npt.NDArray[np.float32] | npt.NDArray[np.float64]
    hardware_concurrency: int
    visible: bool
    warmup_runs: int
    cross_origin_isolated: bool
    clock_step_ms: float | None
    calls_per_sample: int


class _Facts(Record):
    """What the page says in front of its numbers."""

    rows: int = Field(ge=1, le=MAX_SAMPLES)
    columns: int = Field(ge=1, le=limits.MODEL_CLASSES)
    warmup_runs: int = Field(ge=0, le=MAX_SAMPLES)
    user_agent: str = Field(max_length=1000)
    hardware_concurrency: int = Field(ge=1, le=65536)
    visible: bool
    cross_origin_isolated: bool
    clock_step_ms: float | None = Field(gt=0)
    calls_per_sample: int = Field(ge=1, le=MAX_SAMPLES)


@dataclass(frozen=True)
class Window:
    """A way to a browser; `run` takes one job after the other."""

    server: PageServer
    program: str | None

    def run(
        self,
        job: BrowserJob,
        timeout_seconds: float,
        progress: ReportProgress | None = None,
        silence_seconds: float = math.inf,
    ) -> BrowserAnswer:
        """Runs one job in a fresh page: in a fresh browser, or in the user's own, loaded anew.

        Args:
            job: What to measure.
            timeout_seconds: Wall time for the whole job, the start of the browser included.
            progress: Called with fractions from 0 to 1. Defaults to None.
            silence_seconds: Wall time in which something must be done. Defaults to no limit but
                that of the whole job.

        Raises:
            IntegrityError: If the file is not the one named, or the runtime refuses it.
            DeviceError: If the browser does not start, crashes, hangs or answers nonsense.
            SpecError: If images, codes and model do not fit together.
            DataError: If the images cannot be read.
        """
        task = _task(job)
        self.server.give(task)
        began = time.monotonic()
        patience = (timeout_seconds, silence_seconds)
        try:
            if self.program is None:
                _wait(task, None, job, began, patience, progress)
            else:
                with started(self.program, self.server.url) as process:
                    _wait(task, process, job, began, patience, progress)
        finally:
            task.ended.set()
        return _judge(task, job, time.monotonic() - began)


@contextlib.contextmanager
def opened(packages: Path, *, browser: str | None, say: Say) -> Iterator[Window]:
    """Yields a way to run jobs in a browser, and ends it afterwards.

    Args:
        packages: Folder of the npm packages, from `prepare`.
        browser: Name or path of a Chromium-like browser; None for the first that is found; "manual"
            for one that the user opens at the address that `say` gets, and keeps open.
        say: Takes lines for the user.

    Raises:
        DeviceError: If there is no such browser, or the packages are missing or altered.
    """
    program = None if browser == MANUAL else _program(browser)
    wrong = packages_problem(packages)
    if wrong is not None:
        raise DeviceError(
            f"the npm packages for the browser: {wrong}",
            "the files that edgekit lists, byte for byte",
            "fetch them again with npm (edgekit does so when the folder is missing)",
        )
    with serving(packages) as server:
        if program is None:
            say(f"open this address in a browser on this machine, and keep it open: {server.url}")
        yield Window(server, program)


def find() -> list[Found]:
    """Returns the Chromium-like browsers on PATH, or one line that says what to install."""
    found: dict[Path, Found] = {}
    for name in PROGRAMS:
        path = shutil.which(name)
        # Names often lead to the same program.
        if path is not None and Path(path).resolve() not in found:
            found[Path(path).resolve()] = _look(name, path)
    missing = Found("browser", PROGRAMS[0], "no Chromium-like browser on PATH", TO_INSTALL)
    return list(found.values()) or [missing]


def _look(name: str, path: str) -> Found:
    """Asks one browser for its version."""
    try:
        done = run([path, "--version"], VERSION_SECONDS)
        done.check_returncode()
    except (OSError, subprocess.SubprocessError) as err:
        return Found("browser", name, path, printable(f"does not tell its version: {err}"))
    return Found("browser", name, printable(done.stdout.decode("utf-8", "replace")))


def _program(browser: str | None) -> str:
    """Returns the path of the browser that was asked for."""
    for name in PROGRAMS if browser is None else (browser,):
        path = shutil.which(name)
        if path is not None:
            return path
    found = "no Chromium-like browser on PATH" if browser is None else f"no program {browser!r}"
    raise DeviceError(found, f"one of {', '.join(PROGRAMS)}, a path, or {MANUAL!r}", TO_INSTALL)


def _task(job: BrowserJob) -> Task:
    """Reads the arrays of a job and describes it to the page."""
    images, codes = _array(job.images), _array(job.codes)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        found = f"{job.images}: {images.dtype} of shape {images.shape}"
        raise DataError(found, "uint8 of shape (count, height, width, 3)", "decode them again")
    if codes.dtype != np.float32 or codes.shape not in ((256, 3), (256, 1)):
        found = f"{job.codes}: {codes.dtype} of shape {codes.shape}"
        raise SpecError(
            found, "float32 of shape (256, 3 or 1)", "give the float32 codes of the preprocessing"
        )
    count, height, width, _ = images.shape
    description = {
        "name": printable(job.model.name),
        "sha256": job.sha256,
        "runtime": job.runtime,
        "runtime_version": _version(job),
        "threads": job.threads,
        "mode": job.mode,
        "count": count,
        "height": height,
        "width": width,
        "channels": codes.shape[1],
        "layout": job.layout,
        "output": job.output,
        "warmup_seconds": job.warmup_seconds,
        "min_queries": job.min_queries,
        "min_seconds": job.min_seconds,
        "sample_steps": clock.SAMPLE_STEPS,
        "longest_sample_ms": 1000 * clock.LONGEST_SAMPLE_SECONDS,
    }
    most = count * limits.MODEL_CLASSES * 4 if job.mode == "accuracy" else MAX_SAMPLES * 8
    return Task(description, job.model, images, codes, min(most, MAX_RESULT_BYTES))


def _array(path: Path) -> npt.NDArray[Any]:
    """Returns a memory-mapped array."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise DataError(f"{path}: {err}", "a .npy file", "decode the images again") from err
    return array


def _version(job: BrowserJob) -> str:
    package = PACKAGE_OF_RUNTIME[job.runtime]
    return f"{package} {versions()[package]}"


@dataclass(frozen=True)
class Process:
    """A browser that was started.

    Args:
        process: It, the leader of its own process group.
        log: The file that its stderr goes to.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        """Returns the end of what it wrote, in one line."""
        with self.log.open("rb") as stream:
            stream.seek(max(0, self.log.stat().st_size - STDERR_READ_BYTES))
            lines = stream.read(STDERR_READ_BYTES).decode("utf-8", "replace").splitlines()
        # Without a desktop Chromium complains about D-Bus all the time, and works.
        return " ".join(line for line in lines if ":dbus/" not in line)


@contextlib.contextmanager
def started(program: str, url: str) -> Iterator[Process]:
    """Yields a headless browser with an empty profile; ends it and removes all that it wrote.

    Args:
        program: Path of a Chromium-like browser.
        url: The only address that it opens. It is secret: every user of this machine can read the
            arguments of its processes, so the browser gets it from a file that only this user can
            read.

    Raises:
        DeviceError: If it cannot be started.
    """
    with scratch_folder() as folder:
        browser = Process(_start(program, url, folder), folder / "stderr")
        try:
            yield browser
        finally:
            end(browser.process)


def _start(program: str, url: str, folder: Path) -> subprocess.Popen[bytes]:
    """Starts a browser whose every file is below `folder`."""
    command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
    if os.geteuid() == 0:
        # Chromium refuses to start as root with its sandbox on.
        command.append("--no-sandbox")
    first_page = folder / "start.html"  # in a folder of mode 0700, as mkdtemp makes it
    first_page.write_text(FIRST_PAGE.format(url=html.escape(url)), encoding="utf-8")
    # A browser keeps caches, settings and sockets outside its profile, too.
    names = ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "TMPDIR")
    try:
        with (folder / "stderr").open("wb") as stderr:
            return start(
                [*command, first_page.as_uri()],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                environment={**os.environ, **dict.fromkeys(names, str(folder))},
            )
    except OSError as err:
        found = f"{program}: {err.strerror or err}"
        raise DeviceError(found, "a browser that starts", TO_INSTALL) from err


def _wait(
    task: Task,
    browser: Process | None,
    job: BrowserJob,
    began: float,
    patience: tuple[float, float],
    progress: ReportProgress | None,
) -> None:
    """Waits until the page has said its last word.

    Args:
        task: What the page does.
        browser: The browser; None for one that the user opened.
        job: What is measured.
        began: When the job was given, on the clock of `time.monotonic`.
        patience: Seconds for the whole job, and seconds in which something must be done.
        progress: As in `Window.run`.

    Raises:
        DeviceError: If that does not happen.
    """
    started_at = heard = time.monotonic()
    reported = 0.0
    timeout_seconds, silence_seconds = patience
    while not task.ended.wait(LOOK_SECONDS):
        now = time.monotonic()
        if task.progress != reported:
            reported, heard = task.progress, now
            if progress is not None:
                progress(reported)
        trouble = ""
        if now > began + timeout_seconds:
            trouble = f"no answer from the browser after {timeout_seconds:g} s"
        elif now > heard + silence_seconds:
            trouble = f"no further answer from the browser for {silence_seconds:g} s"
        elif browser is not None and browser.process.poll() is not None:
            trouble = f"the browser ended by itself with code {browser.process.returncode}"
        elif browser is not None and not task.arrived and now - started_at > START_SECONDS:
            trouble = f"the browser did not open the page within {START_SECONDS:g} s"
        elif task.left is not None and now - task.left > AWAY_SECONDS:
            trouble = "the page crashed or was closed"
        if trouble:
            said = browser.said() if browser is not None else ""
            if NO_SANDBOX in said:
                raise DeviceError(
                    f"{job.model}: the browser may not start its sandbox here ({NO_SANDBOX})",
                    "a sandbox around the page: edgekit switches it off for root alone, for whom "
                    "Chromium has none",
                    "install Debian's package chromium-sandbox, allow unprivileged user "
                    f'namespaces, or use your own browser (device.program = "{MANUAL}")',
                )
            shown = f" ({printable(said[-SHOWN_CHARACTERS:])})" if browser is not None else ""
            raise DeviceError(
                f"{job.model}: {trouble}{shown}",
                "a page that stays open until it has answered",
                "check that the model ends on one image and fits into the browser's memory",
            )


def _judge(task: Task, job: BrowserJob, elapsed_seconds: float) -> BrowserAnswer:
    """Turns the page's last word into the answer or the error that it reports."""
    kind, body = task.said or ("", b"")
    if kind == "failure":
        raise _failure(body, job)
    line, _, raw = body.partition(b"\n")
    try:
        facts = _Facts.model_validate_json(line, strict=True)
    except ValidationError as err:
        raise _nonsense(job, printable(line.decode("utf-8", "replace"))) from err
    array = _numbers(raw, facts, task, job, elapsed_seconds)
    return BrowserAnswer(
        runtime=_version(job),
        user_agent=printable(facts.user_agent),
        array=array,
        hardware_concurrency=facts.hardware_concurrency,
        visible=facts.visible,
        warmup_runs=facts.warmup_runs,
        cross_origin_isolated=facts.cross_origin_isolated,
        clock_step_ms=facts.clock_step_ms,
        calls_per_sample=facts.calls_per_sample,
    )


def _numbers(
    raw: bytes, facts: _Facts, task: Task, job: BrowserJob, elapsed_seconds: float
) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
    """Returns the numbers of a result, checked against what was asked."""
    timed = job.mode == "latency"
    size = facts.rows * facts.columns * (8 if timed else 4)
    if len(raw) != size:
        raise _nonsense(job, f"{len(raw)} bytes for {facts.rows} x {facts.columns} numbers")
    if not timed:
        scores = np.frombuffer(raw, "<f4").astype(np.float32).reshape(facts.rows, facts.columns)
        if facts.rows != len(task.images) or not np.isfinite(scores).all():
            found = f"{facts.rows} answers to {len(task.images)} images, or some not finite"
            raise _nonsense(job, found)
        return scores
    samples = np.frombuffer(raw, "<f8").astype(np.float64)
    enough = facts.columns == 1 and facts.rows >= job.min_queries
    usable = np.isfinite(samples).all() and (samples >= 0).all() and samples.max() > 0
    usable = usable and facts.clock_step_ms is not None
    # More time than has passed cannot have been measured.
    possible = usable and samples.sum() * facts.calls_per_sample <= elapsed_seconds * 1000
    if not (enough and possible and facts.warmup_runs >= MIN_WARMUP_RUNS):
        raise _nonsense(job, f"{facts.rows} samples, or some not usable")
    return samples


def _nonsense(job: BrowserJob, found: str) -> DeviceError:
    return DeviceError(
        f"{job.model}: the page answered {found}",
        "one finite number for each score or sample asked for",
        "run it again; if it stays, look at the model's outputs on this machine",
    )


def _failure(body: bytes, job: BrowserJob) -> EdgekitError:
    """Returns the error that the page reported, its texts made safe to print."""
    try:
        failure = Failure.model_validate(json.loads(body), strict=True)
    except ValueError as err:
        shown = printable(body[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace"))
        error: EdgekitError = _nonsense(job, shown)
        error.__cause__ = err
        return error
    kind: type[EdgekitError] = getattr(errors, failure.error)
    return kind(
        f"{job.model} in the browser: {printable(failure.received)}",
        printable(failure.expected),
        printable(failure.remedy),
    )
