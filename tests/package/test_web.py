"""The web package in a real Chromium: it passes its own check, and every injected fault is told."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms
from score_threshold import with_threshold
from ssh_server import program
from tiny_models import SIZE, digest, mean_onnx, mean_tflite, save_onnx

from edgekit.data.picture import decode, fit
from edgekit.devices import browser
from edgekit.devices.browser_page import packages as npm
from edgekit.devices.measure import answer
from edgekit.devices.protocol import Subject
from edgekit.errors import DeviceError, SpecError
from edgekit.folders import cache_folder
from edgekit.package import web
from edgekit.package.contents import TOLERANCE_SHARE, Contents, Golden
from edgekit.package.goldens import golden_files
from edgekit.records import Artifact, Preprocess, Status, Verdict, input_codes
from edgekit.runtimes import RUNTIME_OF_FORMAT
from edgekit.runtimes.inspect import inspect_model
from edgekit.target import load_target
from edgekit.validate.measurements import answers_of, latency_of, read_measurements

Json: TypeAlias = Any
Pixels: TypeAlias = npt.NDArray[np.uint8]
Files: TypeAlias = dict[str, bytes]

PREPROCESS = Preprocess(height_px=SIZE, width_px=SIZE)
# In the order of the outputs of the tiny models of each format.
COLOURS = {"onnx": ("blue", "green", "red"), "tflite": ("red", "green", "blue")}
CHANNEL = {"red": 0, "green": 1, "blue": 2}
HOSTILE = (
    "<script>window.harmed = 1</script>",
    "\"';*/ //${harmed} \\(x) </li> 🙂",
    "שלום <img src=x onerror='window.harmed = 1'>",
)
TYPESCRIPT = "typescript@5.9.3"
PAGE_SECONDS = 100.0


def needed(reason: str) -> None:
    """Skips the test, but fails it in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def picture(colour: str, seed: int, size: tuple[int, int] = (60, 45)) -> Pixels:
    """Returns noise in which one channel is bright, and brighter to the left and to the top."""
    rng = np.random.default_rng(seed)
    width, height = size
    pixels = rng.integers(0, 90, (height, width, 3))
    pixels += np.linspace(60, 0, width, dtype=int)[None, :, None]
    pixels += np.linspace(30, 0, height, dtype=int)[:, None, None]
    pixels[..., CHANNEL[colour]] += 70
    return pixels.astype(np.uint8)


def saved(pixels: Pixels, kind: str = "PNG", orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, exif=exif, **options)
    return file.getvalue()


def linear_profile() -> bytes:
    """Returns an ICC profile that is sRGB but for a gamma of 1, so that it changes every colour."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    curve = re.compile(rb"(para\0{5}\x03\0\0)....", re.DOTALL)
    linear, count = curve.subn(lambda found: found[1] + b"\0\1\0\0", profile)
    assert count
    return linear


def contents_of(model: Path, class_names: tuple[str, ...] = (), **changed: Any) -> Contents:
    """Returns what a package of a tiny model is made from: six pictures and one synthetic input."""
    facts = inspect_model(model)
    colours = COLOURS[facts.format]
    pictures = [
        # Two lie on their side, another one has a colour profile.
        saved(
            picture(colours[i % 3], i),
            "JPEG",
            6 if i in (1, 2) else 1,
            quality=95,
            icc_profile=linear_profile() if i == 4 else None,
        )
        for i in range(6)
    ]
    preprocess = changed.get("preprocess", PREPROCESS)
    pixels = [fit(decode(content), preprocess) for content in pictures]
    pixels.append(np.zeros_like(pixels[0]))
    images = model.parent / "pixels.npy"
    np.save(images, np.stack(pixels))
    runtime = RUNTIME_OF_FORMAT[facts.format]
    subject = Subject(
        model=model, sha256=digest(model), runtime=runtime, images=images, preprocess=preprocess
    )
    outputs = answer(subject, 60).raw
    goldens = [
        Golden(
            name=f"golden_{i:02d}",
            input=tensor(pixels[i], preprocess),
            output=outputs[i].astype(np.float32),
            label=i % 3 if i < 6 else None,
            picture=pictures[i] if i < 6 else None,
            picture_name=f"golden_{i:02d}.jpg" if i < 6 else "",
        )
        for i in range(7)
    ]
    target = load_target("web-litert" if facts.format == "tflite" else "web-wasm")
    artifact = Artifact(
        format=facts.format,
        variant="float32",
        io="float32",
        path=model.name,
        sha256=digest(model),
        size_bytes=model.stat().st_size,
        inputs=facts.inputs,
        outputs=facts.outputs,
        operators=facts.operators,
        float_tensors=facts.float_tensors,
    )
    verdict = Verdict(
        target=target.name,
        artifact_path=model.name,
        artifact_sha256=artifact.sha256,
        checks=(),
        status=Status.PASS,
    )
    values: dict[str, Any] = {
        "name": "tiny_colours",
        "title": f"Colours {HOSTILE[0]}",
        "licence": "Apache-2.0",
        "model": model.read_bytes(),
        "model_name": f"model.{facts.format}",
        "artifact": artifact,
        "input": facts.inputs[0],
        "output": facts.outputs[0],
        "preprocess": PREPROCESS,
        "class_names": class_names or colours,
        "goldens": tuple(goldens),
        "target": target,
        "verdict": verdict,
        "arena_bytes": None,
        "facts": {},
        **changed,
    }
    return Contents(**values)


def tensor(pixels: Pixels, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    channels = np.arange(preprocess.input_channels)
    codes = input_codes(preprocess, "float32")
    return codes[pixels[..., channels], channels][None].astype(np.float32)


def columns_onnx(path: Path) -> Path:
    """Writes a classifier of luma: the mean of each column."""
    import onnx
    from onnx import TensorProto, helper

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", [1, SIZE, SIZE, 1]), ("scores", [1, SIZE]))
    ]
    mean = helper.make_node("ReduceMean", ["image"], ["scores"], axes=[1, 3], keepdims=0)
    save_onnx(onnx, helper.make_graph([mean], "columns", ends[:1], ends[1:]), path)
    return path


class Site(ThreadingHTTPServer):
    """Serves a folder on loopback; npm packages appear as what `npm install` makes in web/."""

    daemon_threads = True

    def __init__(self, root: Path, packages: Path) -> None:
        super().__init__(("127.0.0.1", 0), Visitor)
        self.root, self.packages = root, packages
        self.said: dict[str, list[Json]] = {}

    def wait(self, names: list[str]) -> None:
        """Waits until the pages have said something under each name, however many they are."""
        heard, deadline = 0, time.monotonic() + PAGE_SECONDS
        while missing := [name for name in names if name not in self.said]:
            if len(self.said) > heard:
                heard, deadline = len(self.said), time.monotonic() + PAGE_SECONDS
            assert time.monotonic() < deadline, f"nothing was said about {missing}: {self.said}"
            time.sleep(0.05)


class Visitor(SimpleHTTPRequestHandler):
    server: Site

    def translate_path(self, path: str) -> str:
        path = path.partition("?")[0]
        bundle, installed, package = path.partition("/web/node_modules/")
        if installed and bundle != "/no_runtime":
            return str(self.server.packages / package)
        return str(self.server.root / path.lstrip("/"))

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.said.setdefault(self.path.lstrip("/"), []).append(json.loads(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def packages() -> Path:
    try:
        return npm.prepare(cache_folder(), print)
    except DeviceError as err:
        needed(f"needs npm and its registry: {err}")
        raise


@contextmanager
def visited(root: Path, packages: Path, page: str) -> Iterator[Site]:
    """Yields a site that a fresh Chromium has opened a page of."""
    chromium = program("chromium")
    with Site(root, packages) as site:
        threading.Thread(target=site.serve_forever, args=(0.1,), daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}/{page}"
        with browser.started(chromium, url):
            yield site
        site.shutdown()


def written(root: Path, files: Files) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def replaced(name: str, old: str, new: str) -> Callable[[Files], None]:
    def spoil(files: Files) -> None:
        text = files[name].decode()
        assert text.count(old) == 1
        files[name] = text.replace(old, new).encode()

    return spoil


def flipped(name: str, place: int) -> Callable[[Files], None]:
    def spoil(files: Files) -> None:
        content = bytearray(files[name])
        content[place] ^= 1
        files[name] = bytes(content)

    return spoil


def wrong_output(files: Files) -> None:
    outputs = np.frombuffer(files["goldens/outputs.bin"], "<f4").copy()
    outputs[4] += 0.01
    files["goldens/outputs.bin"] = outputs.tobytes()


SECOND = '"picture": "golden_02.jpg",\n   "label": 2,\n   "answer": '
# A decoder that knows no EXIF sees no "Exif" in the file.
BARE = """createImageBitmap(new Blob([new Uint8Array(await source.arrayBuffer()).map(
  (byte, i, all) => String.fromCharCode(...all.subarray(i, i + 4)) === "Exif" ? 0 : byte)]), {"""
# What is done to a good package, the only check that then fails, and what it must say.
FAULTS: dict[str, tuple[Callable[[Files], Any], str, str]] = {
    "bit": (flipped("web/model.onnx", 100), "model", "this is not the file that was judged"),
    "no_runtime": (lambda files: None, "model", "run npm install"),
    "labels": (
        replaced("web/labels.json", '"green",\n  "red"', '"red",\n  "green"'),
        "labels",
        'class 1: "red", expected "green"',
    ),
    "output": (wrong_output, "A", "look at the model file, and at the runtime"),
    "threshold": (
        replaced("web/contract.json", '"score_threshold": ', '"score_threshold": 99, "x": '),
        "A",
        "does not count, but must: contract.json has another score_threshold",
    ),
    "nearest": (
        replaced("web/index.js", 'contract.resize === "nearest"', "true"),
        "B",
        "Most likely: the resize",
    ),
    "bgr": (
        replaced("web/index.js", 'contract.channels === "bgr"', "true"),
        "B",
        "Most likely: the channel order is reversed",
    ),
    "luma": (
        replaced("web/index.js", "isGrey ? grey(rgba) : rgba", "rgba"),
        "B",
        "6 of 6 pictures failed. Level A passes",
    ),
    "exif": (
        replaced("web/index.js", "createImageBitmap(source, {", BARE),
        "B",
        "2 of 6 pictures failed. Level A passes, so the model and the runtime are right: look at "
        "the app's resize, channel order, EXIF rotation or normalization. Most likely: the EXIF "
        "rotation is not applied",
    ),
    "profile": (
        replaced("web/index.js", 'colorSpaceConversion: "none",', ""),
        "B",
        "1 of 6 pictures failed",
    ),
    "offset": (
        replaced("web/index.js", "scale[i % 3] + offset[i % 3]", "scale[i % 3]"),
        "B",
        "Most likely: the normalization",
    ),
    "class": (
        replaced("goldens/goldens.json", f"{SECOND}2", f"{SECOND}1"),
        "B",
        'golden_02: answered "red", expected "green"',
    ),
    "tolerance": (
        lambda files: (
            wrong_output(files),
            replaced("goldens/goldens.json", '"tolerance_share": ', '"tolerance_share": 9')(files),
        ),
        "A",
        "look at the model file, and at the runtime",
    ),
    "empty_goldens": (
        replaced("goldens/goldens.json", '"goldens": [', '"goldens": [], "x": ['),
        "page",
        "goldens.json has no goldens, so nothing shows what the model answers",
    ),
    "no_goldens": (
        lambda files: files.pop("goldens/inputs.bin"),
        "page",
        "with the folder goldens beside the folder of this page",
    ),
}  # fmt: skip
GOOD = ("good_onnx", "good_tflite", "grey", "hostile", "no_pictures")

# Opens one self-check after the other in a frame, as a user would, and says what it shows.
DRIVER = """<!doctype html><meta charset="utf-8"><script type="module">
const post = (path, value) => fetch(path, { method: "POST", body: JSON.stringify(value) });
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
for (const name of NAMES) {
  const frame = document.createElement("iframe");
  frame.src = `/${name}/web/selfcheck.html?seconds=0&report=/result/${name}`;
  document.body.append(frame);
  const page = () => frame.contentDocument;
  while (!page()?.body?.className) await pause(20);
  if (name === "good_onnx") {
    const files = await Promise.all(PICTURES.map(async (path) => {
      const file = new File([await (await fetch(`/pictures/${path}`)).blob()], "x");
      Object.defineProperty(file, "webkitRelativePath", { value: path });
      return file;
    }));
    while (page().getElementById("folder").disabled) await pause(20);
    Object.defineProperty(page().getElementById("folder"), "files", { value: files });
    page().getElementById("folder").dispatchEvent(new Event("change"));
    while (!page().getElementById("accuracy").textContent.includes("right")) await pause(20);
    page().getElementById("device").value = "a bench";
    frame.contentWindow.HTMLAnchorElement.prototype.click = function () {
      const path = `/${this.download}`;
      fetch(this.href).then((file) => file.json()).then((saved) => post(path, saved));
    };
    page().getElementById("download").click();
  }
  await post(`/shown/${name}`, {
    text: page().body.textContent,
    title: page().getElementById("title").textContent,
    names: [...page().querySelectorAll("#facts bdi")].map((name) => name.textContent),
    tags: [...page().querySelectorAll("script, img")].length,
    harmed: "harmed" in frame.contentWindow,
  });
  frame.remove();
}
</script>"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Contents]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "onnx": with_threshold(contents_of(mean_onnx(folder / "m.onnx"))),
        "tflite": contents_of(mean_tflite(folder / "m.tflite", "float32")),
        "grey": contents_of(
            columns_onnx(folder / "grey.onnx"),
            tuple("abcd"),
            preprocess=PREPROCESS.model_copy(update={"channels": "grey"}),
        ),
    }


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, packages: Path, models: dict[str, Contents]
) -> Site:
    """Returns what every page said: the good packages' and one for each fault."""
    root = tmp_path_factory.mktemp("site")
    onnx = models["onnx"]
    without = tuple(dataclasses.replace(g, picture=None, picture_name="") for g in onnx.goldens)
    good = {
        "good_onnx": onnx,
        "good_tflite": models["tflite"],
        "grey": models["grey"],
        "hostile": dataclasses.replace(onnx, class_names=HOSTILE),
        "no_pictures": dataclasses.replace(onnx, goldens=without),
    }
    for name, contents in good.items():
        written(root / name, {**web.files(contents), **golden_files(contents)})
    for name, (spoil, _, _) in FAULTS.items():
        contents = models["grey" if name == "luma" else "onnx"]
        files = {**web.files(contents), **golden_files(contents)}
        spoil(files)
        written(root / name, files)
    pictures = {f"test/{colour}/{i}.png": saved(picture(colour, i)) for colour, i in PICKED}
    pictures |= {"test/other/0.png": saved(picture("red", 9)), "test/red/note.txt": b"no picture"}
    written(root / "pictures", pictures)
    names = [*good, *FAULTS]
    driver = DRIVER.replace("NAMES", json.dumps(names)).replace("PICTURES", json.dumps([*pictures]))
    written(root, {"driver.html": driver.encode()})
    with visited(root, packages, "driver.html") as opened:
        said = [f"{kind}/{name}" for name in names for kind in ("result", "shown")]
        opened.wait([*said, "measurements.json"])
    return opened


PICKED = (("red", 0), ("green", 1), ("blue", 2), ("blue", 3))


@pytest.mark.parametrize("name", GOOD)
def test_a_good_package_passes(site: Site, name: str) -> None:
    (said, *_) = site.said[f"result/{name}"]
    assert said["passed"], said["checks"]
    statuses = {check["level"]: check["status"] for check in said["checks"]}
    pictures = "skipped" if name == "no_pictures" else "pass"
    assert statuses == {"model": "pass", "labels": "pass", "A": "pass", "B": pictures}
    (shown,) = site.said[f"shown/{name}"]
    assert "Passed: this browser answers as the judged model does" in shown["text"]
    assert ("not everything checked" in shown["text"]) == (name == "no_pictures")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_by_its_level(site: Site, name: str) -> None:
    _, level, words = FAULTS[name]
    (said,) = site.said[f"result/{name}"]
    assert not said["passed"]
    (failed,) = [check for check in said["checks"] if check["status"] == "fail"]
    assert failed["level"] == level
    assert words in " ".join([failed["message"], *failed["details"]])
    (shown,) = site.said[f"shown/{name}"]
    assert failed["message"] in shown["text"]
    assert f"Failed: {failed['name']}" in shown["text"]


def test_hostile_names_are_text(site: Site) -> None:
    (shown,) = site.said["shown/hostile"]
    assert tuple(shown["names"]) == HOSTILE
    assert shown["title"] == f"Colours {HOSTILE[0]}"
    assert not shown["harmed"]
    (plain,) = site.said["shown/good_onnx"]
    assert shown["tags"] == plain["tags"]


def test_measurements_are_what_validate_reads(
    site: Site, models: dict[str, Contents], tmp_path: Path
) -> None:
    before, after = [said["measurements"] for said in site.said["result/good_onnx"]]
    (downloaded,) = site.said["measurements.json"]
    assert "accuracy" not in before
    assert downloaded == {**after, "device": "a bench", "at": downloaded["at"]}
    (tmp_path / "m.json").write_text(json.dumps(downloaded))
    read = read_measurements(tmp_path / "m.json")
    assert read.sha256 == models["onnx"].artifact.sha256
    assert (read.runtime, read.threads, read.delegate) == ("onnxruntime-web", 1, "wasm")
    latency = latency_of(read, 90)
    assert latency is not None
    assert latency.samples >= 200
    (timed,) = read.latency or ()
    assert timed.clock_step_ms is not None
    assert min(timed.samples_ms) > 0
    # 200 are aimed at; a machine that was ten times as busy when that was found out is allowed for.
    spanned = timed.calls_per_sample * float(np.median(timed.samples_ms))
    assert spanned >= 20 * timed.clock_step_ms
    # A page cannot know that nothing ran before it.
    assert "session 1: not a fresh process" in latency.disturbances
    folder = site.root / "pictures" / "test"
    files = [f"{colour}/{i}.png" for colour, i in PICKED]
    top1 = answers_of(read, files, [digest(folder / file) for file in files], COLOURS["onnx"])
    assert top1 is not None
    assert [COLOURS["onnx"][k] for k in top1] == [colour for colour, _ in PICKED]
    (shown,) = site.said["shown/good_onnx"]
    assert "4 of 4 pictures answered right (100.0 %); 2 files left out" in shown["text"]
    assert 'test/other/0.png: "other" is no class' in shown["text"]


# Preprocessing: the contract and the picture of each case.
WIDE = Preprocess(height_px=16, width_px=24)
CASES: dict[str, tuple[Preprocess, bytes]] = {
    "down": (WIDE, saved(picture("red", 1, (301, 187)))),
    "strips": (WIDE, saved(picture("red", 2, (70, 500)))),
    "up": (WIDE, saved(picture("green", 3, (17, 16)))),
    "same": (WIDE, saved(picture("green", 3, (24, 16)))),
    "bicubic": (
        WIDE.model_copy(update={"resize": "bicubic"}),
        saved(picture("blue", 4, (157, 93))),
    ),
    "nearest": (
        WIDE.model_copy(update={"resize": "nearest"}),
        saved(picture("blue", 4, (157, 193))),
    ),
    "center": (WIDE.model_copy(update={"crop": "center"}), saved(picture("red", 5, (90, 131)))),
    "half": (WIDE.model_copy(update={"crop": "center"}), saved(picture("red", 5, (85, 45)))),
    **{
        f"letterbox_{name}": (
            WIDE.model_copy(
                update={
                    "crop": "letterbox",
                    "resize": resize,
                    "channels": order,
                    "fill": (7, 130, 250),
                }
            ),
            saved(picture("red", 5, size)),
        )
        for name, resize, order, size in (
            ("wide", "bilinear", "rgb", (131, 61)),
            ("tall", "bicubic", "bgr", (61, 131)),
            ("strip", "bilinear", "rgb", (16, 530)),
            ("single", "nearest", "rgb", (90, 131)),
        )
    },
    "bgr": (
        WIDE.model_copy(update={"channels": "bgr", "scale": (1 / 57, 1 / 58, 1 / 59)}),
        saved(picture("red", 6)),
    ),
    "jpeg": (WIDE, saved(picture("red", 7, (160, 120)), "JPEG", quality=90)),
    "grey": (WIDE, saved(picture("red", 8)[..., 0])),
    "clear": (
        WIDE,
        saved(np.dstack([picture("red", 9), np.full((45, 60), 77, np.uint8)])),
    ),
    **{
        f"exif_{turn}": (WIDE, saved(picture("green", turn), "JPEG", turn, quality=90))
        for turn in range(1, 9)
    },
}
APP = """<!doctype html><meta charset="utf-8">
<script type="importmap">{"imports": {"onnxruntime-web/wasm":
  "/web/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs"}}</script>
<script type="module">
const post = (path, value) => fetch(path, { method: "POST", body: JSON.stringify(value) });
const runtimeBase = "/web/node_modules/onnxruntime-web/dist";
for (const name of NAMES) {
  const { load } = await import(`/${name}/web/index.js`);
  const classifier = await load({ runtimeBase });
  const picture = await (await fetch(`/${name}/picture`)).blob();
  await post(`/tensor/${name}`, [...await classifier.preprocess(picture)]);
  await classifier.close();
}
const { load } = await import("/down/web/index.js");
const classifier = await load({ runtimeBase, modelUrl: "/down/web/model.onnx", threads: 2 });
const blob = await (await fetch("/exif_6/picture")).blob();
const image = new Image();
image.src = URL.createObjectURL(blob);
const bitmap = await createImageBitmap(blob);
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [bitmap.width, bitmap.height];
const context = canvas.getContext("2d");
context.drawImage(bitmap, 0, 0);
const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height);
const sources = { blob, image, bitmap, canvas, pixels };
for (const [name, source] of Object.entries(sources)) {
  await post(`/source/${name}`, [...await classifier.preprocess(source)]);
}
const once = await classifier.classify(blob);
// All at once.
const again = await Promise.all(Object.values(sources).map((it) => classifier.classify(it)));
await post("/answers", { once, again });
const refused = await classifier.run(new Float32Array(3)).catch((error) => String(error));
const recovered = await classifier.classify(blob);
await post("/refusal", { refused, recovered });
</script>"""


@pytest.fixture(scope="module")
def app(
    tmp_path_factory: pytest.TempPathFactory, packages: Path, models: dict[str, Contents]
) -> Site:
    """Returns what an app of one's own said about each case."""
    root = tmp_path_factory.mktemp("app")
    onnx = models["onnx"]
    wide = mean_onnx(root / "m.onnx", shape=(1, WIDE.height_px, WIDE.width_px, 3))
    artifact = onnx.artifact.model_copy(update={"sha256": digest(wide)})
    onnx = dataclasses.replace(onnx, model=wide.read_bytes(), artifact=artifact)
    for name, (preprocess, content) in CASES.items():
        files = web.files(dataclasses.replace(onnx, preprocess=preprocess))
        written(root / name, {**files, "picture": content})
    written(root, {"app.html": APP.replace("NAMES", json.dumps([*CASES])).encode()})
    with visited(root, packages, "app.html") as opened:
        opened.wait(["refusal"])
    return opened


def pixels_of(values: list[float], preprocess: Preprocess) -> Pixels:
    """Returns the pixels that a tensor was made from; fails if it has other values."""
    codes = input_codes(preprocess, "float32")
    found = np.array(values).reshape(preprocess.height_px, preprocess.width_px, 3)
    pixels = np.abs(codes[:, None, None, :] - found).argmin(axis=0)
    np.testing.assert_array_equal(codes[pixels, np.arange(3)], found.astype(np.float32))
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_pillows(app: Site, name: str) -> None:
    preprocess, content = CASES[name]
    found = pixels_of(app.said[f"tensor/{name}"][0], preprocess).astype(int)
    assert np.abs(found - fit(decode(content), preprocess)).max() <= 1
    # The twin: another filter is further away, unless there is nothing to resize.
    other = "nearest" if preprocess.resize != "nearest" else "bilinear"
    twin = fit(decode(content), preprocess.model_copy(update={"resize": other}))
    assert name == "same" or np.abs(found - twin).max() > 1


def test_every_kind_of_source_gives_the_same_answer(app: Site) -> None:
    expected = fit(decode(CASES["exif_6"][1]), WIDE).astype(int)
    for name in ("blob", "image", "bitmap", "canvas", "pixels"):
        found = pixels_of(app.said[f"source/{name}"][0], WIDE)
        assert np.abs(found - expected).max() <= 1, name
    (answers,) = app.said["answers"]
    assert answers["again"] == [answers["once"]] * 5
    assert answers["once"][0]["label"] == "green"
    scores = [entry["score"] for entry in answers["once"]]
    assert scores == sorted(scores, reverse=True)
    assert {entry["index"]: entry["label"] for entry in answers["once"]} == dict(
        enumerate(COLOURS["onnx"])
    )


def test_a_failed_call_does_not_spoil_the_next(app: Site) -> None:
    (said,) = app.said["refusal"]
    assert "Error" in said["refused"]
    assert said["recovered"] == app.said["answers"][0]["once"]


def test_files_are_the_same_every_time_and_complete(models: dict[str, Contents]) -> None:
    for contents in models.values():
        files = web.files(contents)
        assert files == web.files(contents)
        for name, content in files.items():
            if not name.startswith("web/model."):
                assert b"@@" not in content, name
        assert json.loads(files["web/labels.json"]) == list(contents.class_names)
        manifest = json.loads(files["web/package.json"])
        pinned = npm.versions()
        assert manifest["peerDependencies"]
        for package, version in manifest["peerDependencies"].items():
            assert version == pinned[package]
    manifest = json.loads(web.files(models["tflite"])["web/package.json"])
    assert set(manifest["peerDependencies"]) == {"@litertjs/core", "@litertjs/wasm-utils"}


@pytest.mark.parametrize(
    ("kind", "changed", "reason"),
    [
        ("tflite", {"dtype": "int8"}, 'artifact.io = "float32"'),
        ("tflite", {"shape": (-1, SIZE, SIZE, 3)}, "LiteRT.js runs no dynamic shapes"),
        ("onnx", {"shape": (8, SIZE, SIZE, 3)}, "a batch of 8"),
    ],
)
def test_what_a_page_could_not_run_is_refused(
    models: dict[str, Contents], kind: str, changed: dict[str, Any], reason: str
) -> None:
    contents = models[kind]
    wrong = dataclasses.replace(contents, input=contents.input.model_copy(update=changed))
    with pytest.raises(SpecError) as caught:
        web.files(wrong)
    assert reason in str(caught.value)


def test_integer_arithmetic_gets_a_tolerance_of_its_own(models: dict[str, Contents]) -> None:
    shares = {}
    for variant in ("float32", "int8"):
        artifact = models["onnx"].artifact.model_copy(update={"variant": variant})
        files = web.files(dataclasses.replace(models["onnx"], artifact=artifact))
        shares[variant] = json.loads(files["web/contract.json"])["tolerance_share"]
    assert shares["float32"] == TOLERANCE_SHARE < shares["int8"] < 0.07


def ran(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_node_parses_it(models: dict[str, Contents], tmp_path: Path) -> None:
    for kind, contents in models.items():
        written(tmp_path / kind, web.files(contents))
        for script in (tmp_path / kind / "web").glob("*.js"):
            checked = ran([program("node"), "--check", script.name], script.parent)
            assert checked.returncode == 0, checked.stderr


def test_npm_packs_it(models: dict[str, Contents], tmp_path: Path) -> None:
    written(tmp_path, web.files(models["tflite"]))
    packed = ran([program("npm"), "pack", "--dry-run", "--json", "--offline"], tmp_path / "web")
    assert packed.returncode == 0, packed.stderr
    (said,) = json.loads(packed.stdout)
    assert {entry["path"] for entry in said["files"]} == {
        "package.json",
        "README.md",
        "index.js",
        "index.d.ts",
        "runtime.js",
        "contract.json",
        "labels.json",
        "model.tflite",
    }


USE = """import { load, type Answer } from "tiny_colours";
const classifier = await load({ runtimeBase: new URL("https://localhost/"), threads: 2 });
const answers: Answer[] = await classifier.classify(new Blob([]));
const [best] = await classifier.classify(document.createElement("canvas"));
const text: string = `${best?.label} ${best?.score}`;
const scores: Float32Array = await classifier.run(await classifier.preprocess(new Image()));
await classifier.close();
export { answers, text, scores };
"""
MISUSE = """import { load } from "tiny_colours";
const classifier = await load({});
await classifier.classify("cat.jpg");
classifier.labels.push("another");
"""


def test_typescript_takes_the_types(
    models: dict[str, Contents], tmp_path: Path, packages: Path
) -> None:
    written(tmp_path, web.files(models["onnx"]))
    (tmp_path / "node_modules").mkdir()
    shutil.move(tmp_path / "web", tmp_path / "node_modules" / "tiny_colours")
    tools = tmp_path / "tools"
    tools.mkdir()
    fetch = [program("npm"), "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    fetched = ran([*fetch, "--prefix", str(tools), TYPESCRIPT], tools)
    if fetched.returncode:
        needed(f"needs npm's registry: {fetched.stderr[-300:]}")
    (tmp_path / "use.mts").write_text(USE)
    (tmp_path / "misuse.mts").write_text(MISUSE)
    options = [
        "--strict",
        "--noEmit",
        "--skipDefaultLibCheck",
        "--target",
        "es2022",
        "--module",
        "nodenext",
    ]
    options += ["--moduleResolution", "nodenext", "--lib", "es2022,dom"]
    compiler = str(tools / "node_modules" / ".bin" / "tsc")
    good = ran([compiler, *options, "use.mts"], tmp_path)
    assert good.returncode == 0, good.stdout
    bad = ran([compiler, *options, "misuse.mts"], tmp_path)
    wrong = {
        int(line.split("(")[1].split(",")[0])
        for line in bad.stdout.splitlines()
        if "error TS" in line
    }
    assert wrong == {2, 3, 4}, bad.stdout
