"""The Android package: its portable sources run here, the others are compiled against stand-ins."""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mobile_package import (
    HOSTILE,
    TITLE,
    App,
    contents_of,
    fits,
    fitted,
    grey_contents,
    missing,
    network,
    set_contract,
    source_pictures,
    target_of,
    training_pixels,
    turned,
    write,
)
from PIL import Image
from score_threshold import with_threshold
from tiny_models import SIZE

from edgekit.data import picture as pictures
from edgekit.errors import SpecError
from edgekit.package import android
from edgekit.records import Preprocess, TensorInfo, input_codes
from edgekit.runner.clock import calls_per_sample
from edgekit.validate.measurements import read_measurements

# Debian: libandroid-json-java, Android's own org.json; junit4.
JSON_JAR = Path("/usr/share/java/com.android.json.jar")
JUNIT_JAR = Path("/usr/share/java/junit4.jar")

CONTRACT = Preprocess(height_px=SIZE, width_px=SIZE)

DRIVER = r"""
package edgekit.fun_days_model

import java.io.File
import java.nio.ByteBuffer
import java.util.Base64
import org.json.JSONArray
import org.json.JSONObject

private lateinit var contract: Contract
private fun bytes(text: String) = Base64.getDecoder().decode(text)
private fun text(bytes: ByteArray) = Base64.getEncoder().encodeToString(bytes)
private fun say(message: JSONObject) = println(message.toString())
private fun call(name: String, data: ByteArray, sample: Int = 1): JSONObject {
    say(JSONObject().put("call", name).put("data", text(data)).put("sample", sample))
    return JSONObject(readln())
}

private fun prepare(file: ByteArray, fault: String): ByteArray {
    val size = call("size", file)
    val to = contract.preprocess
    val isJpeg = size.getBoolean("jpeg")
    val sample = if (isJpeg) to.sampleSize(size.getInt("width"), size.getInt("height")) else 1
    val made = call("decode", file, sample)
    val rgba = bytes(made.getString("data"))
    val picture = Picture.onWhite(made.getInt("width"), made.getInt("height"), rgba, false)
    val upright = picture.upright(if (fault == "exif") 1 else exifOrientation(file))
    val pixels = if (fault == "resize") {
        val box = doubleArrayOf(0.0, 0.0, upright.width.toDouble(), upright.height.toDouble())
        upright.resized(to.width, to.height, "nearest", box).rgb
    } else {
        val turned = exifOrientation(file) >= 5
        val (width, height) = size.getInt("width") to size.getInt("height")
        upright.fit(to, if (turned) height else width, if (turned) width else height)
    }
    if (fault == "bgr") {
        for (i in pixels.indices step 3) {
            pixels[i] = pixels[i + 2].also { pixels[i + 2] = pixels[i] }
        }
    }
    return contract.tensor(pixels)
}

private fun check(folder: String, fault: String): SelfCheck {
    val goldens = File(folder)
    return SelfCheck(
        File(goldens, "goldens.json").readText(), File(goldens, "inputs.bin").readBytes(),
        File(goldens, "outputs.bin").readBytes(), contract,
        { bytes(call("run", it).getString("data")) }, { prepare(it, fault) },
    )
}

/** Returns a clock of which every third reading is a step further. */
private fun ticking(step: Long): () -> Long {
    var readings = 0L
    return { readings++ / 3 * step }
}

fun main() {
    while (true) {
        val asked = JSONObject(readlnOrNull() ?: return)
        val result: Any? = when (asked.getString("do")) {
            "contract" -> {
                contract = Contract(asked.getString("json"), asked.getString("labels"))
                contract.labels.joinToString("\n")
            }
            "load" -> {
                val model = ByteBuffer.wrap(bytes(asked.getString("model")))
                runCatching { contract.refuseOther(model) }.exceptionOrNull()?.message
            }
            "exif" -> exifOrientation(bytes(asked.getString("file")))
            "sample" ->
                contract.preprocess.sampleSize(asked.getInt("width"), asked.getInt("height"))
            "fit" -> {
                val picture = Picture.onWhite(
                    asked.getInt("width"), asked.getInt("height"), bytes(asked.getString("rgba")),
                    asked.optBoolean("premultiplied"),
                )
                val upright = picture.upright(asked.optInt("orientation", 1))
                val pixels = upright.fit(
                    contract.preprocess, asked.optInt("fullWidth", upright.width),
                    asked.optInt("fullHeight", upright.height),
                )
                text(if (asked.optBoolean("tensor")) contract.tensor(pixels) else pixels)
            }
            "said" -> {
                val said = contract.prediction(bytes(asked.getString("raw")))
                JSONArray(listOf(said.label, said.index, said.score, said.probability))
            }
            "check" -> {
                val folder = asked.getString("goldens")
                val check = check(folder, asked.optString("fault"))
                check.problem { File(folder, "images/$it").readBytes() }
            }
            "measure" -> {
                val check = check(asked.getString("goldens"), "")
                val about = asked.getJSONObject("about")
                val folder = if (asked.has("pictures")) File(asked.getString("pictures")) else null
                val fresh = if (asked.has("fresh")) asked.getBoolean("fresh") else null
                check.measurements(
                    about.keys().asSequence().associateWith { about.get(it) },
                    folder?.let { check.answers(it) },
                    fresh?.let { check.session(it, 0.0, 0.0, 6) },
                    asked.optString("earlier"),
                )
            }
            "batch" -> {
                val step = asked.getLong("step")
                val found = SelfCheck.callsPerSample(SelfCheck.clockStep(ticking(step))) { count ->
                    count * asked.getLong("call") / step * step
                }
                found
            }
            else -> error(asked)
        }
        say(JSONObject().put("result", result ?: JSONObject.NULL))
    }
}
"""

# What the sources use of Android, LiteRT and ONNX Runtime, as their documentation declares it:
# https://developer.android.com/reference , https://developer.android.com/reference/androidx/test ,
# https://ai.google.dev/edge/api/tflite/java/org/tensorflow/lite/Interpreter ,
# https://onnxruntime.ai/docs/api/java/ . They hold compilers to types; nothing runs.
STAND_INS = {
    "android/content/ContentResolver": """public abstract class ContentResolver {
        public final java.io.InputStream openInputStream(android.net.Uri uri)
            throws java.io.FileNotFoundException { return null; } }""",
    "android/net/Uri": "public abstract class Uri {}",
    "android/content/Context": """public abstract class Context {
        public static final String POWER_SERVICE = "power";
        public abstract android.content.res.AssetManager getAssets();
        public abstract Object getSystemService(String name);
        public abstract java.io.File getExternalFilesDir(String type); }""",
    "android/content/res/AssetManager": """public final class AssetManager {
        public java.io.InputStream open(String name) throws java.io.IOException { return null; }
        public AssetFileDescriptor openFd(String name) throws java.io.IOException { return null; }
        }""",
    "android/content/res/AssetFileDescriptor": """public class AssetFileDescriptor
        implements java.io.Closeable {
        public java.io.FileDescriptor getFileDescriptor() { return null; }
        public long getStartOffset() { return 0; }
        public long getDeclaredLength() { return 0; }
        public void close() throws java.io.IOException {} }""",
    "android/graphics/Bitmap": """public final class Bitmap {
        public enum Config { ALPHA_8, RGB_565, ARGB_4444, ARGB_8888, RGBA_F16, HARDWARE }
        public Config getConfig() { return null; }
        public Bitmap copy(Config config, boolean isMutable) { return null; }
        public int getWidth() { return 0; }
        public int getHeight() { return 0; }
        public int getRowBytes() { return 0; }
        public boolean isPremultiplied() { return true; }
        public void recycle() {}
        public void copyPixelsToBuffer(java.nio.Buffer dst) {} }""",
    "android/graphics/BitmapFactory": """public class BitmapFactory {
        public static class Options {
            public boolean inJustDecodeBounds, inScaled, inPremultiplied;
            public Bitmap.Config inPreferredConfig;
            public int inSampleSize, outWidth, outHeight;
            public String outMimeType; }
        public static Bitmap decodeByteArray(byte[] data, int offset, int length, Options opts) {
            return null; } }""",
    "android/os/Build": """public class Build {
        public static final String MANUFACTURER = null, MODEL = null, HARDWARE = null;
        public static class VERSION {
            public static final String RELEASE = null;
            public static final int SDK_INT = Integer.parseInt("0"); } }""",
    "android/os/Bundle": """public final class Bundle {
        public String getString(String key) { return null; } }""",
    "android/os/PowerManager": """public final class PowerManager {
        public boolean isPowerSaveMode() { return false; }
        public int getCurrentThermalStatus() { return 0; } }""",
    "android/app/Instrumentation": """public class Instrumentation {
        public android.content.Context getContext() { return null; }
        public android.content.Context getTargetContext() { return null; } }""",
    "androidx/test/platform/app/InstrumentationRegistry": """public final class
        InstrumentationRegistry {
        public static android.app.Instrumentation getInstrumentation() { return null; }
        public static android.os.Bundle getArguments() { return null; } }""",
    "org/tensorflow/lite/Tensor": "public interface Tensor { int numBytes(); }",
    "org/tensorflow/lite/TensorFlowLite": """public final class TensorFlowLite {
        public static String runtimeVersion() { return null; } }""",
    "org/tensorflow/lite/Interpreter": """public final class Interpreter
        implements AutoCloseable {
        public static class Options {
            public Options setNumThreads(int numThreads) { return this; }
            public Options setUseXNNPACK(boolean useXNNPACK) { return this; } }
        public Interpreter(java.nio.ByteBuffer byteBuffer, Options options) {}
        public Tensor getInputTensor(int index) { return null; }
        public Tensor getOutputTensor(int index) { return null; }
        public void run(Object input, Object output) {}
        public void close() {} }""",
    "ai/onnxruntime/OrtException": "public class OrtException extends Exception {}",
    "ai/onnxruntime/OnnxValue": """public interface OnnxValue extends AutoCloseable {
        @Override void close(); }""",
    "ai/onnxruntime/OnnxTensor": """public class OnnxTensor implements OnnxValue {
        public static OnnxTensor createTensor(OrtEnvironment env, java.nio.FloatBuffer data,
            long[] shape) throws OrtException { return null; }
        public java.nio.FloatBuffer getFloatBuffer() { return null; }
        @Override public void close() {} }""",
    "ai/onnxruntime/OrtEnvironment": """public final class OrtEnvironment
        implements AutoCloseable {
        public static OrtEnvironment getEnvironment() { return null; }
        public OrtSession createSession(java.nio.ByteBuffer model,
            OrtSession.SessionOptions options) throws OrtException { return null; }
        public String getVersion() { return null; }
        @Override public void close() {} }""",
    "ai/onnxruntime/OrtSession": """public class OrtSession implements AutoCloseable {
        public static class SessionOptions {
            public void setIntraOpNumThreads(int numThreads) throws OrtException {}
            public void addConfigEntry(String configKey, String configValue)
                throws OrtException {} }
        public static class Result implements AutoCloseable {
            public OnnxValue get(int index) { return null; }
            @Override public void close() {} }
        public java.util.Set<String> getInputNames() { return null; }
        public Result run(java.util.Map<String, ? extends OnnxTensor> inputs)
            throws OrtException { return null; }
        @Override public void close() throws OrtException {} }""",
}


def compiled(
    out: Path, sources: list[Path], libraries: list[Path]
) -> subprocess.CompletedProcess[str]:
    """Runs the Kotlin compiler; every warning is an error."""
    compiler = shutil.which("kotlinc")
    if compiler is None:
        missing("needs kotlinc (npm package kotlin-compiler, bin/kotlinc)")
    for library in libraries:
        if library.suffix == ".jar" and not library.exists():
            missing(f"needs {library} (Debian packages libandroid-json-java and junit4)")
    command = [compiler, "-Werror", "-no-reflect", "-cp", ":".join(map(str, libraries))]
    return subprocess.run(
        [str(c) for c in (*command, "-d", out, *sources)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        # A program that runs for seconds is quickest without the second compiler.
        env=os.environ | {"JAVA_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx1g"},
    )


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the classes of `STAND_INS`."""
    folder = tmp_path_factory.mktemp("java")
    texts = {
        f"{path}.java": f"package {path.rpartition('/')[0].replace('/', '.')};\n{text}\n".encode()
        for path, text in STAND_INS.items()
    }
    java = sorted(write(texts, folder).rglob("*.java"))
    compiler = shutil.which("javac")
    if compiler is None:
        missing("needs javac")
    subprocess.run([str(compiler), "-d", str(folder), *map(str, java)], check=True)
    return folder


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, stand_ins: Path) -> Iterator[App]:
    """Runs the package's portable Kotlin with the driver.

    All sources of packages for both runtimes, with names that are words of the language, are
    compiled in the same go.
    """
    folder = tmp_path_factory.mktemp("app")
    sources = []
    for name, dtype in (("class", "uint8"), ("package", "onnx"), ("fun_days", "uint8")):
        root = write(android.files(contents_of(folder, dtype, name=name)), folder / name)
        sources += [*root.rglob("src/**/*.kt")]
    assert len(sources) == 3 * 7
    driver = folder / "Driver.kt"
    driver.write_text(DRIVER)
    classes = folder / "classes"
    done = compiled(classes, [*sources, driver], [JSON_JAR, JUNIT_JAR, stand_ins])
    assert done.returncode == 0, done.stderr
    runtime = Path(str(shutil.which("kotlinc"))).resolve().parents[1] / "lib/kotlin-stdlib.jar"
    path = f"{classes}:{JSON_JAR}:{runtime}"
    command = ["java", "-cp", path, "edgekit.fun_days_model.DriverKt"]
    with App(command) as running:
        yield running


@pytest.fixture
def package(app: App, tmp_path: Path) -> Any:
    """Returns the files of a package whose contract the app has, and its goldens' folder."""
    contents = contents_of(tmp_path)
    files = android.files(contents)
    set_contract(app, files, "android/src/main/assets/fun_days")
    app.run = network(contents.model)
    write(files, tmp_path)
    return contents, tmp_path / "android/src/androidTest/assets/fun_days/goldens"


def test_the_largest_picture_is_that_of_the_run(tmp_path: Path) -> None:
    contents = contents_of(tmp_path)
    code = b"".join(android.files(contents).values())
    assert b"MOST_PIXELS = 205000000L" in code
    assert b"MOST_DECODED = 50000000L" in code
    code = b"".join(android.files(replace(contents, max_pixels=4_000_000)).values())
    assert b"MOST_PIXELS = 4000000L" in code


def test_layout(tmp_path: Path) -> None:
    contents = contents_of(tmp_path)
    files = android.files(contents)
    assets = "android/src/main/assets/fun_days"
    assert files[f"{assets}/model.tflite"] == contents.model
    assert files[f"{assets}/labels.txt"].decode() == "red\ngreen\nblue\n"
    contract = json.loads(files[f"{assets}/preprocess.json"])
    assert contract["sha256"] == hashlib.sha256(contents.model).hexdigest()
    gradle = files["android/build.gradle.kts"].decode()
    assert 'noCompress += "tflite"' in gradle
    assert "com.google.ai.edge.litert:litert:" in gradle
    assert not [
        path for path, content in files.items() if path.endswith(".kt") and b"@@" in content
    ]
    # What checks the app is not shipped in it.
    assert not [path for path in files if "main" in path and "golden" in path]
    onnx = android.files(contents_of(tmp_path, "onnx"))
    assert b"onnxruntime-android" in onnx["android/build.gradle.kts"]
    (engine,) = (content for path, content in onnx.items() if path.endswith("/Engine.kt"))
    assert b'addConfigEntry("session.x64quantprecision", "1")' in engine
    assert android.files(contents) == files


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": {"runtime": {"name": "onnxruntime"},
                     "artifact": {"format": "onnx", "variant": "float32", "io": "float32"}}},
         'a .tflite file for runtime "onnxruntime"'),
        ({"target": {"runtime": {"name": "edgetpu"}}}, 'a .tflite file for runtime "edgetpu"'),
        ({"input": {"dtype": "int16"}}, "int16 input"),
        ({"output": {"dtype": "int16"}}, "int16 output"),
        ({"input": {"shape": (1, 3, 4, 4)}}, "input shape (1, 3, 4, 4)"),
    ],
)  # fmt: skip
def test_refuses_what_android_cannot_run(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    contents = contents_of(tmp_path)
    if "target" in changes:
        contents = replace(contents, target=target_of(**changes["target"]))
    for end in ("input", "output"):
        if end in changes:
            info: TensorInfo = getattr(contents, end)
            contents = replace(contents, **{end: info.model_copy(update=changes[end])})
    with pytest.raises(SpecError) as error:
        android.files(contents)
    assert words in error.value.received


def test_refuses_ort_for_litert_and_delegates(tmp_path: Path) -> None:
    contents = contents_of(tmp_path)
    ort = contents.artifact.model_copy(update={"format": "ort"})
    with pytest.raises(SpecError) as error:
        android.files(replace(contents, artifact=ort))
    assert 'a .ort file for runtime "litert"' in error.value.received
    onnx = contents_of(tmp_path, "onnx")
    for delegate in ("nnapi", "xnnpack"):
        runtime = {"name": "onnxruntime", "delegate": delegate}
        artifact = {"format": "onnx", "variant": "float32", "io": "float32"}
        with pytest.raises(SpecError) as error:
            android.files(replace(onnx, target=target_of(runtime=runtime, artifact=artifact)))
        assert f'delegate "{delegate}"' in error.value.received


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("crop", ["none", "center", "letterbox"])
def test_resizes_as_the_training_side(app: App, tmp_path: Path, resize: str, crop: str) -> None:
    for contract, pixels in fits(resize, crop):
        ask_for(app, contract, tmp_path)
        pixels[..., 3] = 255
        picture = Image.fromarray(pixels[..., :3].copy())
        for size in (picture.size, (2 * picture.width - 1, 2 * picture.height)):
            wanted = pictures.fit(picture, contract, size).ravel()
            got = fitted(app, pixels, fullWidth=size[0], fullHeight=size[1])
            assert np.array_equal(got, wanted)
        if contract.height_px < picture.height // 2 and resize != "nearest":
            size = (contract.width_px, contract.height_px)
            plain = picture.resize(size, Image.Resampling.NEAREST)
            assert not np.array_equal(np.asarray(plain).ravel(), wanted)


def ask_for(app: App, contract: Preprocess, folder: Path) -> None:
    """Gives the app a contract for another size than the model has."""
    contents = contents_of(folder)
    info = contents.input.model_copy(
        update={"shape": (1, contract.height_px, contract.width_px, contract.input_channels)}
    )
    files = android.files(replace(contents, preprocess=contract, input=info))
    set_contract(app, files, "android/src/main/assets/fun_days")


def test_turns_pictures_upright(app: App, tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    pixels = random.integers(0, 256, (20, 31, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    ask_for(app, Preprocess(height_px=31, width_px=31), tmp_path)
    seen = set()
    for orientation in range(1, 9):
        upright = pictures.decode(turned(pixels, orientation))
        wanted = pictures.fit(upright, Preprocess(height_px=31, width_px=31)).ravel()
        got = fitted(app, pixels, orientation=orientation)
        assert np.array_equal(got, wanted)
        seen.add(got.tobytes())
    assert len(seen) == 8


def test_shows_transparency_on_white(app: App, tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    pixels = random.integers(0, 256, (64, 64, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    wanted = np.asarray(pictures.decode(buffer.getvalue())).ravel()
    ask_for(app, Preprocess(height_px=64, width_px=64), tmp_path)
    assert np.array_equal(fitted(app, pixels), wanted)
    multiplied = pixels.copy()
    multiplied[..., :3] = np.rint(pixels[..., :3] * (pixels[..., 3:] / 255))
    got = fitted(app, multiplied, premultiplied=True).astype(int)
    assert np.abs(got - wanted).max() <= 1
    assert np.abs(fitted(app, multiplied).astype(int) - wanted).max() > 1


def metadata_files() -> dict[str, bytes]:
    image = Image.fromarray(np.zeros((20, 16, 3), np.uint8))
    made = {}
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        for orientation in (1, 3, 6, 9):
            exif = Image.Exif()
            exif[0x010F] = "maker"
            exif[0x0112] = orientation
            buffer = io.BytesIO()
            image.save(buffer, kind, **({} if kind == "BMP" else {"exif": exif}))
            made[f"{kind} {orientation}"] = buffer.getvalue()
        buffer = io.BytesIO()
        image.save(buffer, kind)
        made[f"{kind} without"] = buffer.getvalue()
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", xmp=xmp)
    made["JPEG XMP"] = buffer.getvalue()
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", xmp=xmp)
    made["WEBP XMP"] = buffer.getvalue()
    for order in "<>":
        exif = Image.Exif()
        exif.endian = order
        exif[0x0112] = 5
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", exif=b"Exif\0\0" + exif.tobytes()[6:])
        made[f"JPEG {order}"] = buffer.getvalue()
    return made


def test_reads_the_orientation(app: App) -> None:
    for name, file in metadata_files().items():
        stored = Image.open(io.BytesIO(file)).getexif().get(0x0112, 1)
        wanted = stored if stored in pictures._TURNS else 1
        assert app.ask("exif", file=file) == wanted, name


def test_damaged_metadata_is_upright_or_right(app: App) -> None:
    random = np.random.default_rng(8)
    files = list(metadata_files().values())
    for number in range(300):
        file = bytearray(files[number % len(files)])
        for at in random.integers(0, min(len(file), 120), 4):
            file[at] = random.integers(0, 256)
        cut = bytes(file[: random.integers(0, len(file) + 1)])
        assert app.ask("exif", file=cut) in range(1, 9)


def test_shrinks_jpegs_as_the_training_side(app: App, tmp_path: Path) -> None:
    contract = Preprocess(height_px=24, width_px=32)
    ask_for(app, contract, tmp_path)
    found = set()
    for width, height in ((40, 40), (64, 64), (128, 127), (130, 128), (300, 260), (600, 700)):
        buffer = io.BytesIO()
        Image.new("RGB", (width, height)).save(buffer, "JPEG")
        decoded = pictures.decode(buffer.getvalue(), pictures._least_px(contract))
        sample = app.ask("sample", width=width, height=height)
        assert decoded.size == (-(-width // sample), -(-height // sample))
        found.add(sample)
    assert len(found) > 2


@pytest.mark.parametrize("channels", ["rgb", "grey"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_fills_the_tensor(app: App, tmp_path: Path, dtype: str, channels: Any) -> None:
    contract = Preprocess(
        height_px=16,
        width_px=48,
        scale=(0.02, 0.01, 0.03),
        offset=(-2.1, 0.3, -1.7),
        channels=channels,
    )
    contents = contents_of(tmp_path, dtype)
    taken = np.arange(contract.input_channels)
    info = contents.input.model_copy(update={"shape": (1, 16, 48, len(taken))})
    contents = replace(contents, preprocess=contract, input=info)
    set_contract(app, android.files(contents), "android/src/main/assets/fun_days")
    pixels = np.arange(16 * 48 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 48, 3)
    rgba = np.dstack([pixels, np.full((16, 48), 255, np.uint8)])
    got = base64.b64decode(app.ask("fit", width=48, height=16, rgba=rgba.tobytes(), tensor=True))
    table = input_codes(contract, dtype, info.scale, info.zero_point)
    seen = pictures.fit(Image.fromarray(pixels), contract)
    assert got == table[seen[..., taken], taken].tobytes()


@pytest.mark.parametrize("fault", [None, "exif", "resize"])
def test_goldens_of_a_network_that_sees_luma(app: App, tmp_path: Path, fault: str | None) -> None:
    contents, app.run = grey_contents(tmp_path)
    files = android.files(contents)
    set_contract(app, files, "android/src/main/assets/fun_days")
    goldens = write(files, tmp_path) / "android/src/androidTest/assets/fun_days/goldens"
    problem = app.ask("check", goldens=str(goldens), **({"fault": fault} if fault else {}))
    assert (problem or "").startswith("picture level: ") is (fault is not None), problem


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32", "onnx"])
def test_goldens_pass(app: App, tmp_path: Path, dtype: str) -> None:
    contents = contents_of(tmp_path, dtype)
    files = android.files(contents)
    set_contract(app, files, "android/src/main/assets/fun_days")
    app.run = network(contents.model)
    goldens = write(files, tmp_path) / "android/src/androidTest/assets/fun_days/goldens"
    assert app.ask("check", goldens=str(goldens)) is None


def test_prepares_the_goldens_as_the_training_side(app: App, package: Any) -> None:
    contents, _ = package
    for _, _, file in source_pictures():
        image = Image.open(io.BytesIO(file))
        least = pictures._least_px(CONTRACT)
        if image.format == "JPEG":
            image.draft(None, (least, least))
        rgba = np.asarray(image.convert("RGBA"))
        orientation = app.ask("exif", file=file)
        width, height = Image.open(io.BytesIO(file)).size
        full = (height, width) if orientation >= 5 else (width, height)
        got = fitted(app, rgba, orientation=orientation, fullWidth=full[0], fullHeight=full[1])
        assert np.array_equal(got, training_pixels(file, contents.preprocess).ravel())


def test_says_label_score_and_share(app: App, package: Any) -> None:
    raw = np.array([130, 160, 128], np.uint8)
    said = app.ask("said", raw=raw.tobytes())
    real = (raw.astype(float) - 128) / 128
    share = np.exp(real[1]) / np.exp(real).sum()
    assert said == ["green", 1, pytest.approx(real[1]), pytest.approx(share, rel=1e-6)]


@pytest.mark.parametrize("fault", ["bgr", "exif", "resize"])
def test_wrong_preprocessing_is_the_picture_level(app: App, package: Any, fault: str) -> None:
    _, goldens = package
    problem = app.ask("check", goldens=str(goldens), fault=fault)
    assert problem.startswith("picture level: ")
    assert "EXIF rotation" in problem


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"goldens": [', '"goldens": [], "x": [', "goldens.json has none"),
        ('"tolerance_steps": 1', '"tolerance_steps": 1e9', "other differences than were packed"),
        ('"tolerance_share": 0.0', '"tolerance_share": 90.0', "other differences than were packed"),
    ],
)
def test_goldens_that_show_nothing(app: App, package: Any, old: str, new: str, said: str) -> None:
    _, goldens = package
    assert app.ask("check", goldens=str(goldens)) is None
    text = (goldens / "goldens.json").read_text()
    assert old in text
    (goldens / "goldens.json").write_text(text.replace(old, new, 1))
    problem = app.ask("check", goldens=str(goldens))
    assert problem.startswith("goldens: ")
    assert said in problem


@pytest.mark.parametrize("threshold", [99.0, None])
def test_another_score_threshold_is_told(app: App, tmp_path: Path, threshold: float | None) -> None:
    contents = with_threshold(contents_of(tmp_path))
    files = android.files(contents)
    write(files, tmp_path)
    app.run = network(contents.model)
    goldens = str(tmp_path / "android/src/androidTest/assets/fun_days/goldens")
    for judged, told in ((contents, False), (replace(contents, score_threshold=threshold), True)):
        set_contract(app, android.files(judged), "android/src/main/assets/fun_days")
        problem = app.ask("check", goldens=goldens)
        assert (problem or "").startswith("threshold: ") is told, problem
        assert (problem is None) is not told


def test_flipped_bit_in_the_model_is_the_tensor_level(app: App, package: Any) -> None:
    contents, goldens = package
    flipped = bytearray(contents.model)
    at = flipped.index(np.float32(1 / 128).tobytes(), len(flipped) // 2)
    flipped[at + 2] ^= 0x10
    app.run = network(bytes(flipped))
    assert app.ask("check", goldens=str(goldens)).startswith("tensor level: ")


def test_flipped_bit_is_refused_when_the_model_is_loaded(app: App, package: Any) -> None:
    """One in the last bits of a weight changes no golden."""
    contents, _ = package
    assert app.ask("load", model=contents.model) is None
    flipped = bytearray(contents.model)
    flipped[-1] ^= 1
    problem = app.ask("load", model=bytes(flipped))
    assert "the model file is damaged or not the one that was judged" in problem


def test_outputs_that_are_no_numbers_are_the_tensor_level(app: App, tmp_path: Path) -> None:
    contents = contents_of(tmp_path, "float32")
    files = android.files(contents)
    set_contract(app, files, "android/src/main/assets/fun_days")
    goldens = write(files, tmp_path) / "android/src/androidTest/assets/fun_days/goldens"
    app.run = lambda _tensor: np.full(3, np.nan, np.float32).tobytes()
    assert app.ask("check", goldens=str(goldens)).startswith("tensor level: ")


def test_swapped_labels_are_named(app: App, package: Any) -> None:
    contents, goldens = package
    files = android.files(replace(contents, class_names=contents.class_names[::-1]))
    set_contract(app, files, "android/src/main/assets/fun_days")
    problem = app.ask("check", goldens=str(goldens))
    assert problem.startswith("labels: ")
    assert "line 1 is 'blue', expected 'red'" in problem


def test_measurements_are_read_by_edgekit(app: App, package: Any, tmp_path: Path) -> None:
    contents, goldens = package
    folder = tmp_path / "pictures"
    for colour, number, file in source_pictures():
        (folder / colour).mkdir(parents=True, exist_ok=True)
        (folder / colour / f"{number}.jpg").write_bytes(file)
    about = {
        "by": "test",
        "device": "this machine",
        "os": "Linux",
        "cores": 2,
        "runtime": "LiteRT",
        "runtime_version": "2.3.0",
        "threads": 1,
        "emulated": False,
    }
    first = app.ask("measure", goldens=str(goldens), about=about, fresh=True)
    both = app.ask(
        "measure",
        goldens=str(goldens),
        about=about,
        fresh=False,
        pictures=str(folder),
        earlier=first,
    )
    path = tmp_path / "measurements.json"
    path.write_text(both)
    read = read_measurements(path)
    assert read.sha256 == hashlib.sha256(contents.model).hexdigest()
    assert [session.fresh_process for session in read.latency or ()] == [True, False]
    for session in read.latency or ():
        assert session.clock_step_ms is not None
        assert min(session.samples_ms) > 0
    assert all(len(session.samples_ms) == 6 for session in read.latency or ())
    digests = {hashlib.sha256(file).hexdigest(): colour for colour, _, file in source_pictures()}
    assert {a.sha256: a.answer for a in read.accuracy or ()} == digests
    other = json.dumps(json.loads(first) | {"sha256": "0" * 64})
    alone = json.loads(
        app.ask("measure", goldens=str(goldens), about=about, fresh=True, earlier=other)
    )
    assert len(alone["latency"]) == 1


@pytest.mark.parametrize(
    ("step", "call"), [(5_000, 1_000), (1_000, 10**6), (10**8, 50_000), (40, 60_000), (40, 7)]
)
def test_calls_too_short_for_a_clock_are_timed_in_batches(app: App, step: int, call: int) -> None:
    """As many at once as the runner would take."""
    wanted, _ = calls_per_sample(lambda calls: calls * call // step * step, step)
    assert app.ask("batch", step=step, call=call) == wanted


def test_hostile_labels_and_title_stay_data(app: App, tmp_path: Path) -> None:
    contents = contents_of(tmp_path)
    tame = android.files(contents)
    files = android.files(replace(contents, class_names=HOSTILE, title=TITLE))
    assert files["android/src/main/assets/fun_days/labels.txt"].decode().split("\n")[:-1] == list(
        HOSTILE
    )
    readme = files.pop("android/README.md").decode()
    assert "<script>" not in readme
    assert "\\<script\\>" in readme
    changed = {path for path, content in files.items() if content != tame[path]}
    assert {Path(path).name for path in changed} == {"labels.txt", "goldens.json"}
    answer = app.ask(
        "contract",
        json=files["android/src/main/assets/fun_days/preprocess.json"].decode(),
        labels=files["android/src/main/assets/fun_days/labels.txt"].decode(),
    )
    assert answer.split("\n") == list(HOSTILE)


@pytest.mark.slow
def test_compiler_finds_what_android_does_not_have(tmp_path: Path, stand_ins: Path) -> None:
    """The twin of compiling the sources, which `app` does."""
    root = write(android.files(contents_of(tmp_path)), tmp_path)
    sources = [path for path in root.rglob("*.kt") if "main" in path.parts]
    broken = next(path for path in sources if path.name == "Classifier.kt")
    broken.write_text(broken.read_text().replace("openInputStream", "openInputStreams"))
    done = compiled(tmp_path / "classes", sources, [JSON_JAR, stand_ins])
    assert done.returncode != 0
    assert "openInputStreams" in done.stderr
