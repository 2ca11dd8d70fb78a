"""A real Chromium runs real files; HTTP clients play pages that are not to be trusted."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pytest
from processes import eventually
from tiny_models import (
    SIZE,
    colour_images,
    digest,
    endless_onnx,
    mean_onnx,
    mean_tflite,
    quantized_onnx,
)

from edgekit.devices import browser
from edgekit.devices.browser import BrowserAnswer, BrowserJob, Runtime, Window
from edgekit.devices.browser_page import packages as npm
from edgekit.devices.browser_page.server import PageServer
from edgekit.devices.measure import answer
from edgekit.devices.protocol import Subject
from edgekit.errors import DataError, DeviceError, IntegrityError, SpecError
from edgekit.folders import cache_folder
from edgekit.records import Preprocess, input_codes
from edgekit.runtimes import RuntimeName

pytestmark = pytest.mark.proves(
    "browser: ONNX Runtime Web, LiteRT.js", "measured in a real Chromium on this machine"
)

PIXELS = Preprocess(height_px=SIZE, width_px=SIZE)
COUNT = 12
HOST_RUNTIME: dict[Runtime, RuntimeName] = {"onnxruntime-web": "onnxruntime", "litert-js": "litert"}
# Sums of 16 float32 numbers below 1, added in another order.
TOLERANCE = 1e-6


def needed(reason: str) -> None:
    """Skips the test, but fails it in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def packages() -> Path:
    try:
        return npm.prepare(cache_folder(), print)
    except DeviceError as err:
        needed(f"needs npm and its registry: {err}")
        raise


@pytest.fixture(scope="session")
def chromium() -> str:
    found = [entry for entry in browser.find() if not entry.problem]
    if not found:
        needed("needs Chromium")
    return found[0].name


@pytest.fixture(scope="module")
def window(packages: Path, chromium: str) -> Iterator[Window]:
    """Opens one Chromium, as a user would, that does one job after the other."""
    lines: list[str] = []
    program = shutil.which(chromium) or ""
    with (
        browser.opened(packages, browser=browser.MANUAL, say=lines.append) as opened,
        browser.started(program, lines[0].split()[-1]),
    ):
        yield opened
    assert len(lines) == 1


@pytest.fixture
def leftovers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checks that no profile and no browser process is left behind."""
    monkeypatch.setenv(*MARK.split("="))
    before = abandoned()
    yield
    # Crash handlers watch the browser from outside its process group and end when it has.
    assert eventually(lambda: abandoned() == before and not browser_processes())


def abandoned() -> set[Path]:
    """Returns the profiles that no process uses: tests beside this one have browsers, too."""
    folders = {path.parent for path in Path(tempfile.gettempdir()).glob("edgekit-*/profile")}
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = command.read_bytes()
            folders = {folder for folder in folders if bytes(folder) not in words}
    return folders


def browser_processes() -> list[int]:
    """Returns the process ids of this test's browsers, without what a browser's zygote forked."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if MARK.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return [process for process in found if process != os.getpid()]


def renderers() -> list[int]:
    """Returns the process ids of the renderers of this test's browsers."""
    groups = browser_processes()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes()
            if b"--type=renderer" in words and os.getpgid(int(folder.name)) in groups:
                found.append(int(folder.name))
    return found


MARK = f"EDGEKIT_TEST_BROWSER={os.getpid()}"


def job_of(folder: Path, model: Path, runtime: Runtime, **changes: Any) -> BrowserJob:
    """Returns an accuracy job on twelve images, made unless they are there."""
    if not (folder / "i.npy").exists():
        colour_images(folder / "i.npy", COUNT)
        np.save(folder / "c.npy", input_codes(PIXELS, "float32"))
    values: dict[str, Any] = {
        "model": model,
        "sha256": digest(model),
        "runtime": runtime,
        "threads": 1,
        "images": folder / "i.npy",
        "codes": folder / "c.npy",
        "mode": "accuracy",
        **changes,
    }
    return BrowserJob(**values)


def measure(
    job: BrowserJob,
    packages: Path,
    program: str | None,
    seconds: float = 60,
    progress: Callable[[float], None] | None = None,
    say: Callable[[str], None] = print,
) -> BrowserAnswer:
    with browser.opened(packages, browser=program, say=say) as window:
        return window.run(job, seconds, progress)


def on_host(job: BrowserJob) -> npt.NDArray[np.generic]:
    subject = Subject(
        model=job.model,
        sha256=digest(job.model),
        runtime=HOST_RUNTIME[job.runtime],
        images=job.images,
        preprocess=PIXELS,
    )
    return answer(subject, 60).raw


def tiny(folder: Path, runtime: Runtime) -> Path:
    if runtime == "litert-js":
        return mean_tflite(folder / "m.tflite", "float32")
    return mean_onnx(folder / "m.onnx")


@pytest.mark.usefixtures("leftovers")
@pytest.mark.parametrize("runtime", ["onnxruntime-web", "litert-js"])
def test_scores_are_those_of_the_host(
    tmp_path: Path, packages: Path, chromium: str, runtime: Runtime
) -> None:
    job = job_of(tmp_path, tiny(tmp_path, runtime), runtime)
    found = measure(job, packages, chromium)
    assert found.array.dtype == np.float32
    assert found.array.shape == (COUNT, 3)
    np.testing.assert_allclose(found.array, on_host(job), atol=TOLERANCE)
    assert found.runtime in ("onnxruntime-web 1.30.0", "@litertjs/core 2.5.3")
    assert "Chrome/" in found.user_agent
    assert found.hardware_concurrency >= 1
    assert found.visible
    assert found.cross_origin_isolated


def test_the_twin_altered_codes_change_the_scores(tmp_path: Path, window: Window) -> None:
    job = job_of(tmp_path, mean_onnx(tmp_path / "m.onnx"), "onnxruntime-web")
    codes = np.load(job.codes)
    codes[:, 0] += 1e-3
    np.save(job.codes, codes)
    difference = np.abs(window.run(job, 60).array - on_host(job)).max(axis=0)
    # Only red, which the model answers last, is read through the altered column.
    assert difference[2] > 100 * TOLERANCE
    assert (difference[:2] <= TOLERANCE).all()


@pytest.mark.parametrize("runtime", ["onnxruntime-web", "litert-js"])
def test_the_twin_altered_model_changes_the_scores_or_is_refused(
    tmp_path: Path, window: Window, runtime: Runtime
) -> None:
    job = job_of(tmp_path, tiny(tmp_path, runtime), runtime)
    honest = on_host(job)
    if runtime == "litert-js":
        mean_tflite(job.model, "float32", reduction="REDUCE_MAX")
    else:
        content = job.model.read_bytes()
        one = struct.pack("<f", 1.0)
        job.model.write_bytes(content.replace(one, struct.pack("<f", 1.01), 1))
    with pytest.raises(IntegrityError, match="SHA-256"):
        window.run(job, 60)
    told = job_of(tmp_path, job.model, runtime)
    found = window.run(told, 60).array
    assert np.abs(found - honest).max() > 100 * TOLERANCE
    np.testing.assert_allclose(found, on_host(told), atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.usefixtures("leftovers")
@pytest.mark.parametrize(("runtime", "threads"), [("onnxruntime-web", 1), ("litert-js", 2)])
def test_latency_samples(
    tmp_path: Path, packages: Path, chromium: str, runtime: Runtime, threads: int
) -> None:
    job = job_of(
        tmp_path,
        tiny(tmp_path, runtime),
        runtime,
        threads=threads,
        mode="latency",
        warmup_seconds=0.1,
        min_queries=40,
        min_seconds=1.5,
    )
    heard: list[float] = []
    found = measure(job, packages, chromium, progress=heard.append)
    assert found.array.dtype == np.float64
    assert len(found.array) >= 40
    # The clock of the page is coarse, so a call of this model is timed in batches that span so
    # many of its steps that none can come out as 0.
    assert found.clock_step_ms is not None
    spans = found.calls_per_sample * found.array
    assert spans.min() > 0
    # 200 are aimed at; a machine that was ten times as busy when that was found out is allowed for.
    assert np.median(spans) >= 20 * found.clock_step_ms
    assert found.warmup_runs >= 5
    # Everything that was timed lies within the time that was asked for, and something was.
    assert 0 < spans.sum() < 60_000
    assert all(0 < fraction <= 1 for fraction in heard)


def ranked_tflite(path: Path, batch: int) -> Path:
    """Writes a float classifier whose tensors have a rank, as the TFLite converter does."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = mean_tflite(path, "float32", batch=batch).read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for tensor in model.subgraphs[0].tensors:
        tensor.hasRank = True
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.usefixtures("leftovers")
def test_interrupt_leaves_nothing_behind(tmp_path: Path, packages: Path, chromium: str) -> None:
    model = mean_onnx(tmp_path / "m.onnx")
    job = job_of(tmp_path, model, "onnxruntime-web", mode="latency", min_seconds=60.0)

    def interrupt(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(job, packages, chromium, progress=interrupt)


def arguments_with(words: bytes) -> int:
    """Returns how many processes of this machine show some words in their arguments."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += words in (folder / "cmdline").read_bytes()
    return found


@pytest.mark.usefixtures("leftovers")
def test_no_argument_of_a_process_shows_the_secret_address(
    tmp_path: Path, packages: Path, chromium: str
) -> None:
    """Every user of the machine can read them; nobody else can read the folder of the browser."""
    model = mean_onnx(tmp_path / "m.onnx")
    job = job_of(tmp_path, model, "onnxruntime-web", mode="latency", min_seconds=1.5)
    shown, modes = [], []
    with browser.opened(packages, browser=chromium, say=print) as opened:
        token = opened.server.token.encode()

        def look(_fraction: float) -> None:
            assert renderers()
            shown.append(arguments_with(token))
            command = Path(f"/proc/{browser_processes()[0]}/cmdline").read_bytes().decode()
            folder = Path(command[command.index("--user-data-dir=") + 16 :].split("\0")[0]).parent
            modes.append(stat.S_IMODE(folder.stat().st_mode))

        opened.run(job, 60, look)
        assert set(shown) == {0}
        assert set(modes) == {0o700}
        waiting = [sys.executable, "-c", "print(flush=True); input()", opened.server.url]
        with subprocess.Popen(
            waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as twin:
            assert twin.stdout is not None
            twin.stdout.readline()
            assert arguments_with(token) == 1


AS_ANOTHER_USER = """\
import os, sys
from pathlib import Path
from edgekit.devices import browser
from edgekit.errors import DeviceError

folder, packages, program, digest = sys.argv[1:]
job = browser.BrowserJob(
    Path(folder, "m.onnx"), digest, "onnxruntime-web", 1, Path(folder, "i.npy"),
    Path(folder, "c.npy"), "latency", min_seconds=2.0,
)
print(os.geteuid(), flush=True)
try:
    with browser.opened(Path(packages), browser=program, say=print) as window:
        print(len(window.run(job, 60).array) >= 200)
except DeviceError as err:
    print(err)
"""


@contextlib.contextmanager
def by_another_user(
    folder: Path, packages: Path, chromium: str, namespaces: bool
) -> Iterator[subprocess.Popen[str]]:
    """Yields a process that runs a job and is not root: user 1000 of a user namespace of its own.

    Args:
        folder: Where the files of the job lie.
        packages: The npm packages.
        chromium: The browser.
        namespaces: Whether Chromium may make a user namespace for its sandbox there.
    """
    job = job_of(folder, mean_onnx(folder / "m.onnx"), "onnxruntime-web")
    (folder / "run.py").write_text(AS_ANOTHER_USER, encoding="utf-8")
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--keep-caps"]
    if os.geteuid() != 0 or subprocess.run([*user, "true"], check=False).returncode != 0:
        needed("needs root and user namespaces")
    script = [sys.executable, str(folder / "run.py")]
    words = [*script, str(folder), str(packages), chromium, job.sha256]
    limit = "" if namespaces else "echo 0 >/proc/sys/user/max_user_namespaces; "
    command = [*user, "sh", "-c", f'{limit}exec "$@"', "sh", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.usefixtures("leftovers")
def test_a_user_who_is_not_root_gets_a_sandbox(
    tmp_path: Path, packages: Path, chromium: str
) -> None:
    inside = set()
    with by_another_user(tmp_path, packages, chromium, namespaces=True) as process:
        deadline = time.monotonic() + 30
        while not inside and time.monotonic() < deadline and process.poll() is None:
            for page in renderers():
                with contextlib.suppress(OSError):
                    assert b"--no-sandbox" not in Path(f"/proc/{page}/cmdline").read_bytes()
                    inside.add(Path(f"/proc/{page}/ns/user").readlink())
            time.sleep(0.1)
        outside = Path(f"/proc/{process.pid}/ns/user").readlink()
        said, _ = process.communicate(timeout=60)
    assert said.split() == ["1000", "True"]
    assert inside
    assert outside not in inside


@pytest.mark.usefixtures("leftovers")
def test_a_sandbox_that_cannot_be_had_is_named_and_not_left_out(
    tmp_path: Path, packages: Path, chromium: str
) -> None:
    with by_another_user(tmp_path, packages, chromium, namespaces=False) as process:
        said, _ = process.communicate(timeout=60)
    assert said.startswith("1000\n")
    assert "the browser may not start its sandbox here (No usable sandbox)" in said
    assert "chromium-sandbox" in said
    assert "True" not in said


REFUSED: list[tuple[str, Runtime, Callable[[Path], Path], str]] = [
    ("int8 TFLite", "litert-js", lambda p: mean_tflite(p, "int8"), "INT8 is not supported"),
    ("uint8 TFLite", "litert-js", lambda p: mean_tflite(p, "uint8"), "type uint8"),
    ("free batch", "litert-js", lambda p: ranked_tflite(p, -1), "dynamic batch"),
    ("uint8 ONNX", "onnxruntime-web", quantized_onnx, "type uint8"),
    (
        "custom operator",
        "litert-js",
        lambda p: mean_tflite(p, "float32", custom="X"),
        "custom op: X",
    ),
    ("no ONNX", "onnxruntime-web", lambda p: mean_tflite(p, "float32"), "refuses"),
    ("no TFLite", "litert-js", mean_onnx, "refuses"),
]


@pytest.mark.parametrize(
    ("runtime", "make", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_models_that_a_runtime_does_not_take_are_refused_in_words(
    tmp_path: Path,
    window: Window,
    runtime: Runtime,
    make: Callable[[Path], Path],
    said: str,
) -> None:
    job = job_of(tmp_path, make(tmp_path / "m.model"), runtime)
    with pytest.raises(IntegrityError, match=said) as caught:
        window.run(job, 60)
    assert caught.value.received.startswith(str(job.model))
    assert caught.value.remedy.startswith("export")


def test_the_twin_a_fixed_batch_is_taken_by_litert_js(tmp_path: Path, window: Window) -> None:
    job = job_of(tmp_path, ranked_tflite(tmp_path / "m.tflite", 1), "litert-js")
    np.testing.assert_allclose(window.run(job, 60).array, on_host(job), atol=TOLERANCE)


def test_the_page_goes_on_after_a_refusal(tmp_path: Path, window: Window) -> None:
    """The user opens one address once: the page starts anew for each job."""
    mean = job_of(tmp_path, mean_onnx(tmp_path / "m.onnx"), "onnxruntime-web")
    int8 = job_of(tmp_path, mean_tflite(tmp_path / "m.tflite", "int8"), "litert-js")
    for _ in range(2):
        with pytest.raises(IntegrityError, match="INT8"):
            window.run(int8, 60)
        assert window.run(mean, 60).array.shape == (COUNT, 3)


def test_the_twin_a_free_batch_is_taken_by_onnxruntime_web(tmp_path: Path, window: Window) -> None:
    model = mean_onnx(tmp_path / "m.onnx", shape=("n", SIZE, SIZE, 3))
    job = job_of(tmp_path, model, "onnxruntime-web")
    np.testing.assert_allclose(window.run(job, 60).array, on_host(job), atol=TOLERANCE)


def test_images_and_codes_that_do_not_fit(tmp_path: Path, window: Window) -> None:
    job = job_of(tmp_path, mean_onnx(tmp_path / "m.onnx"), "onnxruntime-web")
    colour_images(job.images, COUNT, size=SIZE + 1)
    with pytest.raises(SpecError, match="images of 5 x 5"):
        window.run(job, 60)
    np.save(job.images, np.zeros((2, SIZE, SIZE, 3), np.float32))
    with pytest.raises(DataError, match="float32"):
        window.run(job, 60)
    colour_images(job.images, COUNT)
    np.save(job.codes, np.zeros((256, 3), np.uint8))
    with pytest.raises(SpecError, match="uint8"):
        window.run(job, 60)
    job.codes.unlink()
    with pytest.raises(DataError, match=r"c\.npy"):
        window.run(job, 60)


@pytest.mark.slow
@pytest.mark.usefixtures("leftovers")
def test_model_that_never_ends(tmp_path: Path, packages: Path, chromium: str) -> None:
    job = job_of(tmp_path, endless_onnx(tmp_path / "m.onnx"), "onnxruntime-web")
    began = time.monotonic()
    with pytest.raises(DeviceError, match="no answer from the browser after 8 s"):
        measure(job, packages, chromium, seconds=8)
    assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.usefixtures("leftovers")
@pytest.mark.parametrize(
    ("victims", "said"),
    [(renderers, "crashed or was closed"), (browser_processes, "ended by itself")],
    ids=["page", "browser"],
)
def test_crash_is_told_at_once(
    tmp_path: Path,
    packages: Path,
    chromium: str,
    victims: Callable[[], list[int]],
    said: str,
) -> None:
    job = job_of(tmp_path, endless_onnx(tmp_path / "m.onnx"), "onnxruntime-web")
    killed: list[float] = []

    def crash(server: PageServer) -> None:
        while server.task is None or not server.task.arrived:
            time.sleep(0.1)
        time.sleep(1)
        for process in victims():
            os.kill(process, signal.SIGKILL)
        killed.append(time.monotonic())

    with browser.opened(packages, browser=chromium, say=print) as opened:
        thread = threading.Thread(target=crash, args=(opened.server,))
        thread.start()
        with pytest.raises(DeviceError, match=said):
            opened.run(job, 100)
        thread.join()
    assert time.monotonic() - killed[0] < 60  # of the 100 s that it has


@pytest.mark.usefixtures("leftovers")
def test_browser_that_does_not_start(tmp_path: Path, packages: Path) -> None:
    job = job_of(tmp_path, mean_onnx(tmp_path / "m.onnx"), "onnxruntime-web")
    with pytest.raises(DeviceError, match="no program 'no-such-browser'"):
        measure(job, packages, "no-such-browser")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nprintf 'no \\033[31mdisplay' >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(DeviceError, match=r"with code 3 \(no  ?\[31mdisplay\)"):
        measure(job, packages, str(broken))


def test_no_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packages: Path) -> None:
    job = job_of(tmp_path, mean_onnx(tmp_path / "m.onnx"), "onnxruntime-web")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [entry.problem for entry in browser.find()] == [browser.TO_INSTALL]
    with pytest.raises(DeviceError, match="no Chromium-like browser") as caught:
        measure(job, packages, None)
    assert "apt-get install chromium" in caught.value.remedy


def test_find_tells_the_version(chromium: str) -> None:
    words = {entry.name: entry.words for entry in browser.find()}[chromium]
    said = subprocess.run([chromium, "--version"], capture_output=True, text=True, check=True)
    assert words == said.stdout.strip()


def test_packages_that_are_missing_or_altered(tmp_path: Path, packages: Path) -> None:
    job = job_of(tmp_path, mean_onnx(tmp_path / "m.onnx"), "onnxruntime-web")
    with pytest.raises(DeviceError, match="No such file"):
        measure(job, tmp_path / "nothing", browser.MANUAL)
    altered = shutil.copytree(packages, tmp_path / "altered")
    script = altered / "@litertjs" / "core" / "dist" / "index.js"
    script.write_bytes(script.read_bytes() + b" ")
    with pytest.raises(DeviceError, match=r"index\.js: SHA-256"):
        measure(job, altered, browser.MANUAL)


def test_prepare_without_npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no npm on PATH") as caught:
        npm.prepare(tmp_path / "cache", print)
    assert "apt-get install npm" in caught.value.remedy


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no network >&2; exit 5", r"code 5 \(no network\)"),
        ("exit 0", "other content than listed"),
    ],
)
def test_prepare_with_an_npm_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    fake = tmp_path / "npm"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DeviceError, match=said):
        npm.prepare(tmp_path / "cache", print)
    assert not list((tmp_path / "cache").iterdir())


def test_prepare_fetches_exact_versions_and_mends_what_is_altered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packages: Path
) -> None:
    """The fake npm "installs" what the real one did and notes its arguments."""
    fake = tmp_path / "npm"
    fake.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\ncp -r {packages} node_modules\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cache = tmp_path / "cache"
    lines: list[str] = []
    prepared = npm.prepare(cache, lines.append)
    assert npm.prepare(cache, lines.append) == prepared
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(lines) == len(asked) == 1
    assert "install --ignore-scripts" in asked[0]
    for name in ("onnxruntime-web@1.30.0", "@litertjs/core@2.5.3", "@litertjs/wasm-utils@2.5.3"):
        assert name in asked[0].split()
    altered = prepared / "onnxruntime-web" / "dist" / "ort.wasm.min.mjs"
    altered.write_text("alert(1)")
    assert npm.problem(prepared) is not None
    assert npm.prepare(cache, lines.append) == prepared
    assert npm.problem(prepared) is None
    assert list(cache.iterdir()) == [prepared]


# From here on an HTTP client plays the page, as any program on this machine could try to.


class Page:
    """Opens the address of a manual job and says what it is told to."""

    def __init__(self, url: str) -> None:
        self.host, self.path = urlsplit(url).netloc, urlsplit(url).path

    def ask(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=20)
        try:
            connection.request(
                "GET" if body is None else "POST", path, body=body, headers=headers or {}
            )
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, name: str, body: bytes) -> int:
        return self.ask(f"{self.path}{name}", body)[0]


def play(
    job: BrowserJob,
    packages: Path,
    act: Callable[[Page], None],
    seconds: float = 60,
    progress: Callable[[float], None] | None = None,
) -> BrowserAnswer:
    """Runs a manual job whose page is `act`; whatever the page asserts is raised here."""
    trouble: list[BaseException] = []
    threads: list[threading.Thread] = []

    def page(url: str) -> None:
        try:
            played = Page(url)
            # The address is said before there is a job.
            assert eventually(lambda: played.ask(f"{played.path}job.json")[0] == 200)
            act(played)
        except BaseException as err:  # noqa: BLE001 - raised again below
            trouble.append(err)

    def say(line: str) -> None:
        url = line[line.index("http://") :]
        threads.append(threading.Thread(target=page, args=(url,)))
        threads[-1].start()

    try:
        return measure(job, packages, browser.MANUAL, seconds, progress, say)
    finally:
        for thread in threads:
            thread.join()
        if trouble:
            raise trouble[0]


FACTS: dict[str, Any] = {
    "rows": COUNT,
    "columns": 3,
    "warmup_runs": 5,
    "user_agent": "a \x1b[31mbrowser",
    "hardware_concurrency": 4,
    "visible": False,
    "cross_origin_isolated": True,
    "clock_step_ms": 0.005,
    "calls_per_sample": 1,
}


def result(numbers: npt.NDArray[Any], **changes: Any) -> bytes:
    return json.dumps({**FACTS, **changes}).encode() + b"\n" + numbers.tobytes()


@pytest.fixture
def onnx_job(tmp_path: Path) -> BrowserJob:
    return job_of(tmp_path, mean_onnx(tmp_path / "m.onnx"), "onnxruntime-web", min_queries=COUNT)


def test_the_users_own_browser(onnx_job: BrowserJob, packages: Path) -> None:
    scores = np.arange(COUNT * 3, dtype="<f4").reshape(COUNT, 3)
    found = play(onnx_job, packages, lambda page: page.post("result/1", result(scores)) and None)
    np.testing.assert_array_equal(found.array, scores)
    assert found.user_agent == "a [31mbrowser"
    assert not found.visible


SCORES = np.zeros((COUNT, 3), "<f4")
# Less than the page can be through in, however fast it plays.
SAMPLES = np.full(COUNT, 1e-3)
UNUSABLE: list[tuple[str, str, bytes]] = [
    ("NaN", "accuracy", result(np.full((COUNT, 3), np.nan, "<f4"))),
    ("fewer bytes than told", "accuracy", result(SCORES[:-1])),
    ("fewer rows than images", "accuracy", result(SCORES[:-1], rows=COUNT - 1)),
    ("no classes", "accuracy", result(SCORES[:, :0], columns=0)),
    ("unknown fact", "accuracy", result(SCORES, more=1)),
    ("words for numbers", "accuracy", result(SCORES, rows="12")),
    ("no facts", "accuracy", b"\x00" * 100),
    ("nothing", "accuracy", b""),
    ("negative", "latency", result(-SAMPLES, columns=1)),
    ("infinite", "latency", result(SAMPLES * np.inf, columns=1)),
    ("too few", "latency", result(SAMPLES[:-1], columns=1, rows=COUNT - 1)),
    ("more time than passed", "latency", result(SAMPLES * 1e9, columns=1)),
    ("not warmed up", "latency", result(SAMPLES, columns=1, warmup_runs=4)),
    ("nothing but zeros", "latency", result(0 * SAMPLES, columns=1)),
    ("more time in batches", "latency", result(SAMPLES, columns=1, calls_per_sample=10**7)),
    ("batches of nothing", "latency", result(SAMPLES, columns=1, calls_per_sample=0)),
    ("no clock", "latency", result(SAMPLES, columns=1, clock_step_ms=None)),
    ("a clock without steps", "latency", result(SAMPLES, columns=1, clock_step_ms=0.0)),
]


@pytest.mark.parametrize(
    ("mode", "body"), [case[1:] for case in UNUSABLE], ids=[case[0] for case in UNUSABLE]
)
def test_nonsense_from_the_page(
    onnx_job: BrowserJob, packages: Path, mode: str, body: bytes
) -> None:
    job = job_of(
        onnx_job.model.parent, onnx_job.model, "onnxruntime-web", mode=mode, min_queries=COUNT
    )
    with pytest.raises(DeviceError, match="the page answered") as caught:
        play(job, packages, lambda page: page.post("result/1", body) and None)
    assert str(caught.value).replace("\n", "").isprintable()


def test_the_twin_good_samples_are_taken(onnx_job: BrowserJob, packages: Path) -> None:
    job = job_of(
        onnx_job.model.parent, onnx_job.model, "onnxruntime-web", mode="latency", min_queries=COUNT
    )
    body = result(SAMPLES, columns=1)
    found = play(job, packages, lambda page: page.post("result/1", body) and None)
    np.testing.assert_array_equal(found.array, SAMPLES)


def test_progress_of_the_page_is_told(onnx_job: BrowserJob, packages: Path) -> None:
    heard: list[float] = []

    def act(page: Page) -> None:
        assert page.post("progress/1", b"0.25") == 200
        assert eventually(lambda: heard == [0.25])
        assert page.post("result/1", result(SCORES)) == 200

    play(onnx_job, packages, act, seconds=60, progress=heard.append)


def test_failures_from_the_page(onnx_job: BrowserJob, packages: Path) -> None:
    said = {
        "kind": "failure",
        "error": "IntegrityError",
        "received": "a \x1b[2Jb" + "x" * 1000,
        "expected": "c",
        "remedy": "d",
    }
    good, bad = json.dumps(said).encode(), json.dumps({**said, "error": "SystemExit"}).encode()
    with pytest.raises(IntegrityError) as caught:
        play(onnx_job, packages, lambda page: page.post("failure/1", good) and None)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 800
    with pytest.raises(DeviceError, match="the page answered"):
        play(onnx_job, packages, lambda page: page.post("failure/1", bad) and None)


def test_what_the_server_gives_and_takes(onnx_job: BrowserJob, packages: Path) -> None:
    secret = onnx_job.model.parent / "secret"
    secret.write_text("s")

    def act(page: Page) -> None:
        for path in ("/", "/model", "/x/model", f"{page.path[:-2]}/model"):
            assert page.ask(path)[0] == 404, path
        for name in (
            "packages/../secret",
            "packages/%2e%2e/secret",
            f"packages/{secret}",
            "packages/onnxruntime-web/package.json",
            "packages.json",
            "images/0-12/..",
            "nothing",
        ):
            assert page.ask(page.path + name)[0] == 404, name
        assert page.ask(page.path, headers={"Host": "evil.example"})[0] == 404
        assert page.ask(page.path + "model") == (200, onnx_job.model.read_bytes())
        images = np.load(onnx_job.images)
        assert page.ask(page.path + "images/1-3") == (200, images[1:3].tobytes())
        assert page.ask(page.path + "images/99-100") == (200, b"")
        assert page.post("progress/1", b"x" * 70000) == 413
        assert page.post("result/2", result(SCORES)) == 409
        assert page.post("progress/1", b"not a number") == 200
        assert page.post("progress/1", b"nan") == 200
        assert page.post("else/1", b"") == 404
        assert page.post("result/1", result(SCORES)) == 200

    heard: list[float] = []
    found = play(onnx_job, packages, act)
    assert not heard
    np.testing.assert_array_equal(found.array, SCORES)


def test_a_result_larger_than_can_be(onnx_job: BrowserJob, packages: Path) -> None:
    def act(page: Page) -> None:
        connection = http.client.HTTPConnection(page.host, timeout=20)
        connection.putrequest("POST", f"{page.path}result/1")
        connection.putheader("Content-Length", str(10**11))
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()

    with pytest.raises(DeviceError, match="no answer from the browser after 3 s"):
        play(onnx_job, packages, act, seconds=3)
