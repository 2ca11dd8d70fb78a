"""The iOS package: its portable sources run here, the others are compiled against stand-ins.

The Swift compiler is found on the PATH, or as `swiftlang` of Debian 13 in a folder of its own,
which EDGEKIT_SWIFT_ROOT names: the program runs there by chroot, so that takes root.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
    turned,
    write,
)
from PIL import Image
from score_threshold import with_threshold

from edgekit.data import picture as pictures
from edgekit.errors import SpecError
from edgekit.package import ios
from edgekit.records import Preprocess, input_codes
from edgekit.runner.clock import calls_per_sample
from edgekit.validate.measurements import read_measurements

TARGET = "FunDaysClassifier"
RESOURCES = f"ios/Sources/{TARGET}/Resources"
GOLDENS = f"ios/Tests/{TARGET}Tests/Resources/goldens"
# Mounts go with the process.
ENTER = (
    'mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" && exec env -i HOME=/tmp '
    "PATH=/usr/libexec/swift/bin:/usr/bin "
    "LD_LIBRARY_PATH=/usr/libexec/swift/lib/swift/linux:/usr/lib/x86_64-linux-gnu "
    '/usr/sbin/chroot "$0" "$@"'
)

DRIVER = r"""
import Foundation

@testable import FunDaysClassifier

var contract: Contract!

func bytes(_ value: Any?) -> Data { Data(base64Encoded: value as! String)! }
func say(_ message: [String: Any]) {
    let line = try! JSONSerialization.data(withJSONObject: message)
    FileHandle.standardOutput.write(line + Data([10]))
}
func hear() -> [String: Any]? {
    readLine().map { line in
        try! JSONSerialization.jsonObject(with: Data(line.utf8)) as! [String: Any]
    }
}
func call(_ name: String, _ data: Data) -> [String: Any] {
    say(["call": name, "data": data.base64EncodedString(), "sample": 1])
    return hear()!
}
func picture(_ made: [String: Any], _ key: String) -> Picture {
    let rgba = [UInt8](bytes(made[key]))
    var rgb: [UInt8] = []
    for i in stride(from: 0, to: rgba.count, by: 4) { rgb += rgba[i..<i + 3] }
    return Picture(width: made["width"] as! Int, height: made["height"] as! Int, rgb: rgb)
}
func prepare(_ file: Data, _ fault: String) -> Data {
    let made = call("decode", file)
    let turn = fault == "exif" ? 1 : made["orientation"] as! Int
    let upright = picture(made, "data").upright(turn)
    let to = contract.preprocess
    var pixels = fault == "resize"
        ? upright.resized(width: to.widthPx, height: to.heightPx, filter: "nearest").rgb
        : upright.fit(to)
    if fault == "bgr" {
        for i in stride(from: 0, to: pixels.count, by: 3) { pixels.swapAt(i, i + 2) }
    }
    return contract.tensor(pixels)
}
func check(_ asked: [String: Any]) throws -> SelfCheck {
    let folder = URL(fileURLWithPath: asked["goldens"] as! String)
    let fault = asked["fault"] as? String ?? ""
    return try SelfCheck(
        contract: contract,
        folder: { try Data(contentsOf: folder.appendingPathComponent($0)) },
        run: { bytes(call("run", $0)["data"]) },
        prepare: { prepare($0, fault) })
}

while let asked = hear() {
    let result: Any?
    switch asked["do"] as! String {
    case "contract":
        contract = try Contract(
            json: Data((asked["json"] as! String).utf8),
            labels: Data((asked["labels"] as! String).utf8))
        result = contract.labels
    case "fit":
        let upright = picture(asked, "rgba").upright(asked["orientation"] as? Int ?? 1)
        let pixels = upright.fit(contract.preprocess)
        let isTensor = asked["tensor"] as? Bool ?? false
        let made = isTensor ? contract.tensor(pixels) : Data(pixels)
        result = made.base64EncodedString()
    case "said":
        let said = contract.prediction(bytes(asked["raw"]))
        result = [said.label!, said.index, Double(said.score), Double(said.probability)] as [Any]
    case "check":
        result = try check(asked).problem()
    case "measure":
        let check = try check(asked)
        let folder = (asked["pictures"] as? String).map { URL(fileURLWithPath: $0) }
        let session = try (asked["fresh"] as? Bool).map { fresh in
            try check.session(fresh: fresh, warmUpSeconds: 0, seconds: 0, least: 6)
        }
        let text = try check.measurements(
            about: asked["about"] as! [String: Any],
            answers: folder.map { try check.answers($0) { "\($0.count)-digest" } },
            session: session, earlier: (asked["earlier"] as? String).map { Data($0.utf8) })
        result = String(decoding: text, as: UTF8.self)
    case "batch":
        let (step, one) = (UInt64(asked["step"] as! Int), UInt64(asked["call"] as! Int))
        var readings: UInt64 = 0
        // Every third reading is a step further.
        let found = SelfCheck.clockStep {
            readings += 1
            return readings / 3 * step
        }
        result = SelfCheck.callsPerSample(step: found) { UInt64($0) * one / step * step }
    default:
        fatalError("\(asked)")
    }
    say(["result": result ?? NSNull()])
}
"""

# What the sources use of Apple's frameworks, TensorFlowLite and ONNX Runtime, as they declare it:
# https://developer.apple.com/documentation ,
# https://github.com/tensorflow/tensorflow/tree/master/tensorflow/lite/swift/Sources ,
# https://github.com/microsoft/onnxruntime/tree/main/objectivec/include . They hold the compiler to
# types; nothing runs.
STAND_INS = {
    "CoreGraphics": """
        import Foundation
        public enum CGColorSpaceModel { case rgb, monochrome, cmyk }
        public final class CGColorSpace {
            public var model: CGColorSpaceModel { .rgb }
            public var supportsOutput: Bool { true } }
        public func CGColorSpaceCreateDeviceRGB() -> CGColorSpace { fatalError() }
        public final class CGImage {
            public var width: Int { 0 }
            public var height: Int { 0 }
            public var colorSpace: CGColorSpace? { nil } }
        public enum CGImageAlphaInfo: UInt32 { case none, noneSkipLast }
        public enum CGInterpolationQuality { case `default`, none }
        public final class CGContext {
            public init?(data: UnsafeMutableRawPointer?, width: Int, height: Int,
                bitsPerComponent: Int, bytesPerRow: Int, space: CGColorSpace, bitmapInfo: UInt32) {}
            public var interpolationQuality: CGInterpolationQuality = .default
            public func draw(_ image: CGImage, in rect: CGRect) {} }
        """,
    "CoreVideo": "public final class CVPixelBuffer {}",
    "VideoToolbox": """
        import CoreGraphics
        import CoreVideo
        import Foundation
        @discardableResult
        public func VTCreateCGImageFromCVPixelBuffer(_ pixelBuffer: CVPixelBuffer,
            options: NSDictionary?, imageOut: UnsafeMutablePointer<CGImage?>) -> Int32 { 0 }
        """,
    "CryptoKit": """
        import Foundation
        public struct SHA256Digest: Sequence {
            public func makeIterator() -> Array<UInt8>.Iterator { [UInt8]().makeIterator() } }
        public enum SHA256 {
            public static func hash<D: DataProtocol>(data: D) -> SHA256Digest { SHA256Digest() } }
        """,
    "ImageIO": """
        import CoreGraphics
        import Foundation
        public typealias CFData = NSData
        public typealias CFString = NSString
        public final class CGImageSource {}
        public enum CGImagePropertyOrientation: UInt32 { case up = 1, right = 6 }
        public let kCGImagePropertyPixelWidth: CFString = NSString(string: "")
        public let kCGImagePropertyPixelHeight: CFString = NSString(string: "")
        public let kCGImagePropertyOrientation: CFString = NSString(string: "")
        public func CGImageSourceCreateWithData(_ data: CFData, _ options: NSDictionary?)
            -> CGImageSource? { nil }
        public func CGImageSourceCopyPropertiesAtIndex(_ source: CGImageSource, _ index: Int,
            _ options: NSDictionary?) -> NSDictionary? { nil }
        public func CGImageSourceCreateImageAtIndex(_ source: CGImageSource, _ index: Int,
            _ options: NSDictionary?) -> CGImage? { nil }
        """,
    "TensorFlowLite": """
        import Foundation
        public enum Runtime { public static let version = "" }
        public struct Tensor { public let data: Data }
        public final class Interpreter {
            public struct Options {
                public var threadCount: Int?
                public var isXNNPackEnabled = false
                public init() {} }
            public init(modelPath: String, options: Options? = nil, delegates: [String]? = nil)
                throws {}
            public func allocateTensors() throws {}
            @discardableResult
            public func copy(_ data: Data, toInputAt index: Int) throws -> Tensor { fatalError() }
            public func invoke() throws {}
            public func output(at index: Int) throws -> Tensor { fatalError() } }
        """,
    "OnnxRuntimeBindings": """
        import Foundation
        public enum ORTLoggingLevel { case verbose, info, warning }
        public enum ORTTensorElementDataType { case undefined, float, int8 }
        public class ORTEnv { public init(loggingLevel: ORTLoggingLevel) throws {} }
        public class ORTRunOptions {}
        public class ORTSessionOptions {
            public init() throws {}
            public func setIntraOpNumThreads(_ intraOpNumThreads: Int32) throws {}
            public func addConfigEntry(withKey key: String, value: String) throws {} }
        public class ORTValue {
            public init(tensorData: NSMutableData, elementType: ORTTensorElementDataType,
                shape: [NSNumber]) throws {}
            public func tensorData() throws -> NSMutableData { fatalError() } }
        public class ORTSession {
            public init(env: ORTEnv, modelPath: String, sessionOptions: ORTSessionOptions?)
                throws {}
            public func inputNames() throws -> [String] { [] }
            public func outputNames() throws -> [String] { [] }
            public func run(withInputs inputs: [String: ORTValue], outputNames: Set<String>,
                runOptions: ORTRunOptions?) throws -> [String: ORTValue] { [:] } }
        """,
}
# What is in Foundation and XCTest of Apple's systems, but not of Linux, or made by the package
# manager.
BESIDE = """
import Foundation
import XCTest
extension Bundle { static var module: Bundle { .main } }
extension ProcessInfo {
    enum State: Int { case nominal }
    var thermalState: State { .nominal }
    var isLowPowerModeEnabled: Bool { false } }
class XCTAttachment {
    enum Lifetime { case keepAlways }
    var name: String?
    var lifetime = Lifetime.keepAlways
    init(data: Data, uniformTypeIdentifier: String) {} }
extension XCTestCase { func add(_ attachment: XCTAttachment) {} }
"""


@dataclass(frozen=True)
class Swift:
    """The compiler, and a folder that it and what it makes can see.

    Args:
        folder: The folder as this process sees it.
        seen: The same as the compiler sees it.
        prefix: What a command begins with, so that it runs where the compiler does.
    """

    folder: Path
    seen: str
    prefix: tuple[str, ...]

    def command(self, *arguments: object) -> list[str]:
        return [*self.prefix, *(str(a).replace(str(self.folder), self.seen) for a in arguments)]

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, timeout=250
        )


@pytest.fixture(scope="module")
def swift() -> Iterator[Swift]:
    root = os.environ.get("EDGEKIT_SWIFT_ROOT")
    if root is None and shutil.which("swiftc") is None:
        missing("needs swiftc, or EDGEKIT_SWIFT_ROOT with Debian 13's swiftlang")
    with tempfile.TemporaryDirectory(dir=None if root is None else f"{root}/tmp") as folder:
        if root is None:
            yield Swift(Path(folder), folder, ())
        else:
            prefix = ("unshare", "--mount", "sh", "-c", ENTER, root)
            yield Swift(Path(folder), folder.removeprefix(root), prefix)


@pytest.fixture(scope="module")
def app(swift: Swift, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Runs the package's portable Swift with the driver; its module is built as a package's."""
    folder = swift.folder / "app"
    write(ios.files(contents_of(tmp_path_factory.mktemp("app"))), folder)
    sources = folder / f"ios/Sources/{TARGET}"
    main = folder / "main.swift"
    main.write_text(DRIVER)
    library = ("-emit-library", "-emit-module", "-module-name", TARGET, "-enable-testing")
    where = ("-emit-module-path", folder / f"{TARGET}.swiftmodule", "-o", folder / "lib.so")
    portable = (sources / "Picture.swift", sources / "Contract.swift")
    done = swift("swiftc", "-O", "-warnings-as-errors", *library, *where, *portable)
    assert done.returncode == 0, done.stderr
    checks = folder / f"ios/Tests/{TARGET}Tests/SelfCheck.swift"
    done = swift("swiftc", "-I", folder, folder / "lib.so", main, checks, "-o", folder / "driver")
    assert done.returncode == 0, done.stderr
    with App(swift.command(folder / "driver")) as running:
        yield running


@pytest.fixture
def package(app: App, swift: Swift, tmp_path: Path) -> Any:
    """Returns the files of a package whose contract the app has, and its goldens' folder."""
    contents = contents_of(tmp_path)
    return contents, given(app, swift, contents, tmp_path)


def given(app: App, swift: Swift, contents: Any, tmp_path: Path) -> str:
    """Gives the app a package; returns its goldens' folder as the app sees it."""
    files = ios.files(contents)
    set_contract(app, files, RESOURCES)
    app.run = network(contents.model)
    write(files, swift.folder / tmp_path.name)
    return f"{swift.seen}/{tmp_path.name}/{GOLDENS}"


def ask_for(app: App, contract: Preprocess, folder: Path) -> None:
    """Gives the app a contract for another size than the model has."""
    contents = contents_of(folder)
    info = contents.input.model_copy(
        update={"shape": (1, contract.height_px, contract.width_px, contract.input_channels)}
    )
    set_contract(app, ios.files(replace(contents, preprocess=contract, input=info)), RESOURCES)


@pytest.mark.parametrize(("asked", "most"), [(205_000_000, 50_000_000), (4_000_000, 4_000_000)])
def test_the_largest_picture_is_that_of_the_run(tmp_path: Path, asked: int, most: int) -> None:
    """A phone decodes it whole, so there is a limit of its own."""
    code = b"".join(ios.files(replace(contents_of(tmp_path), max_pixels=asked)).values())
    assert b"mostPixels = %d\n" % most in code


def test_layout(tmp_path: Path) -> None:
    contents = contents_of(tmp_path)
    files = ios.files(contents)
    assert files[f"{RESOURCES}/model.tflite"] == contents.model
    assert files[f"{RESOURCES}/labels.txt"].decode() == "red\ngreen\nblue\n"
    contract = json.loads(files[f"{RESOURCES}/preprocess.json"])
    assert contract["sha256"] == hashlib.sha256(contents.model).hexdigest()
    manifest = files["ios/Package.swift"].decode()
    assert manifest.startswith("// swift-tools-version: 5.9\n")
    assert '.copy("Resources/model.tflite")' in manifest
    assert "'TensorFlowLiteSwift'" in files[f"ios/{TARGET}.podspec"].decode()
    assert not [p for p, c in files.items() if p.endswith((".swift", ".podspec")) and b"@@" in c]
    # What checks the app is not shipped in it.
    assert not [path for path in files if "Sources" in path and "golden" in path.lower()]
    onnx = ios.files(contents_of(tmp_path, "onnx"))
    assert b"onnxruntime-swift-package-manager" in onnx["ios/Package.swift"]
    (engine,) = (content for path, content in onnx.items() if path.endswith("/Engine.swift"))
    assert b'addConfigEntry(withKey: "session.x64quantprecision", value: "1")' in engine
    assert not [path for path in onnx if path.endswith(".podspec")]
    assert ios.files(contents) == files


@pytest.mark.parametrize(
    ("name", "module"),
    [("a", "AClassifier"), ("class", "ClassClassifier"), ("x_1__", "X1Classifier")],
)
def test_module_names(name: str, module: str) -> None:
    assert ios.target_name(name) == module


def test_refuses_what_ios_cannot_run(tmp_path: Path) -> None:
    contents = contents_of(tmp_path)
    ort = contents.artifact.model_copy(update={"format": "ort"})
    for other, words in (
        (replace(contents, artifact=ort), 'iOS package of a .ort file for runtime "litert"'),
        (replace(contents, target=target_of(runtime={"name": "tflite-micro"},
                                            artifact={"io": "int8"})),
         'iOS package of a .tflite file for runtime "tflite-micro"'),
        (replace(contents, input=contents.input.model_copy(update={"dtype": "int16"})),
         "int16 input"),
    ):  # fmt: skip
        with pytest.raises(SpecError) as error:
            ios.files(other)
        assert words in error.value.received
    runtime = {"name": "onnxruntime", "delegate": "coreml"}
    artifact = {"format": "onnx", "variant": "float32", "io": "float32"}
    onnx = contents_of(tmp_path, "onnx")
    with pytest.raises(SpecError) as error:
        ios.files(replace(onnx, target=target_of(runtime=runtime, artifact=artifact)))
    assert 'delegate "coreml"' in error.value.received


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("crop", ["none", "center", "letterbox"])
def test_resizes_as_the_training_side(app: App, tmp_path: Path, resize: str, crop: str) -> None:
    for contract, pixels in fits(resize, crop):
        ask_for(app, contract, tmp_path)
        picture = Image.fromarray(pixels[..., :3].copy())
        wanted = pictures.fit(picture, contract).ravel()
        assert np.array_equal(fitted(app, pixels), wanted)
        if contract.height_px < picture.height // 2 and resize != "nearest":
            size = (contract.width_px, contract.height_px)
            plain = picture.resize(size, Image.Resampling.NEAREST)
            assert not np.array_equal(np.asarray(plain).ravel(), wanted)


def test_turns_pictures_upright(app: App, tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    pixels = random.integers(0, 256, (20, 31, 4), dtype=np.uint8)
    contract = Preprocess(height_px=31, width_px=31)
    ask_for(app, contract, tmp_path)
    seen = set()
    for orientation in range(1, 9):
        wanted = pictures.fit(pictures.decode(turned(pixels, orientation)), contract).ravel()
        got = fitted(app, pixels, orientation=orientation)
        assert np.array_equal(got, wanted)
        seen.add(got.tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_fills_the_tensor(app: App, tmp_path: Path, dtype: str) -> None:
    contract = Preprocess(
        height_px=16, width_px=48, scale=(0.02, 0.01, 0.03), offset=(-2.1, 0.3, -1.7)
    )
    contents = contents_of(tmp_path, dtype)
    info = contents.input.model_copy(update={"shape": (1, 16, 48, 3)})
    set_contract(app, ios.files(replace(contents, preprocess=contract, input=info)), RESOURCES)
    pixels = np.arange(16 * 48 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 48, 3)
    rgba = np.dstack([pixels, np.full((16, 48), 255, np.uint8)])
    got = base64.b64decode(app.ask("fit", width=48, height=16, rgba=rgba.tobytes(), tensor=True))
    table = input_codes(contract, dtype, info.scale, info.zero_point)
    assert got == table[pixels, np.arange(3)].tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32", "onnx"])
def test_goldens_pass(app: App, swift: Swift, tmp_path: Path, dtype: str) -> None:
    goldens = given(app, swift, contents_of(tmp_path, dtype), tmp_path)
    assert app.ask("check", goldens=goldens) is None


def test_says_label_score_and_share(app: App, package: Any) -> None:
    raw = np.array([130, 160, 128], np.uint8)
    said = app.ask("said", raw=raw.tobytes())
    real = (raw.astype(float) - 128) / 128
    share = np.exp(real[1]) / np.exp(real).sum()
    assert said == ["green", 1, pytest.approx(real[1]), pytest.approx(share, rel=1e-6)]


@pytest.mark.parametrize("fault", ["bgr", "exif", "resize"])
def test_wrong_preprocessing_is_the_picture_level(app: App, package: Any, fault: str) -> None:
    problem = app.ask("check", goldens=package[1], fault=fault)
    assert problem.startswith("picture level: ")
    assert "EXIF rotation" in problem


def test_flipped_bit_in_the_model_is_the_tensor_level(app: App, package: Any) -> None:
    contents, goldens = package
    flipped = bytearray(contents.model)
    at = flipped.index(np.float32(1 / 128).tobytes(), len(flipped) // 2)
    flipped[at + 2] ^= 0x10
    app.run = network(bytes(flipped))
    assert app.ask("check", goldens=goldens).startswith("tensor level: ")


def test_outputs_that_are_no_numbers_are_the_tensor_level(
    app: App, swift: Swift, tmp_path: Path
) -> None:
    goldens = given(app, swift, contents_of(tmp_path, "float32"), tmp_path)
    app.run = lambda _tensor: np.full(3, np.nan, np.float32).tobytes()
    assert app.ask("check", goldens=goldens).startswith("tensor level: ")


def test_swapped_labels_are_named(app: App, package: Any) -> None:
    contents, goldens = package
    swapped = replace(contents, class_names=contents.class_names[::-1])
    set_contract(app, ios.files(swapped), RESOURCES)
    problem = app.ask("check", goldens=goldens)
    assert problem.startswith("labels: ")
    assert "line 1 is 'blue', expected 'red'" in problem


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"goldens": [', '"goldens": [], "x": [', "goldens.json has none"),
        ('"tolerance_steps": 1', '"tolerance_steps": 1e9', "other differences than were packed"),
        ('"tolerance_share": 0.0', '"tolerance_share": 90.0', "other differences than were packed"),
    ],
)
def test_goldens_that_show_nothing(
    app: App, swift: Swift, tmp_path: Path, old: str, new: str, said: str
) -> None:
    goldens = given(app, swift, contents_of(tmp_path), tmp_path)
    assert app.ask("check", goldens=goldens) is None
    path = swift.folder / tmp_path.name / GOLDENS / "goldens.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    problem = app.ask("check", goldens=goldens)
    assert problem.startswith("goldens: ")
    assert said in problem


@pytest.mark.parametrize("fault", [None, "exif", "resize"])
def test_goldens_of_a_network_that_sees_luma(
    app: App, swift: Swift, tmp_path: Path, fault: str | None
) -> None:
    contents, run = grey_contents(tmp_path)
    goldens = given(app, swift, contents, tmp_path)
    app.run = run
    problem = app.ask("check", goldens=goldens, **({"fault": fault} if fault else {}))
    assert (problem or "").startswith("picture level: ") is (fault is not None), problem


@pytest.mark.parametrize("threshold", [99.0, None])
def test_another_score_threshold_is_told(
    app: App, swift: Swift, tmp_path: Path, threshold: float | None
) -> None:
    contents = with_threshold(contents_of(tmp_path))
    goldens = given(app, swift, contents, tmp_path)
    for judged, told in ((contents, False), (replace(contents, score_threshold=threshold), True)):
        set_contract(app, ios.files(judged), RESOURCES)
        problem = app.ask("check", goldens=goldens)
        assert (problem or "").startswith("threshold: ") is told, problem
        assert (problem is None) is not told


def test_labels_that_only_look_alike_are_named(app: App, swift: Swift, tmp_path: Path) -> None:
    contents = contents_of(tmp_path)
    names = ("\u00e9", "b", "c")
    goldens = given(app, swift, replace(contents, class_names=names), tmp_path)
    assert app.ask("check", goldens=goldens) is None
    other = replace(contents, class_names=("e\u0301", "b", "c"))
    set_contract(app, ios.files(other), RESOURCES)
    assert app.ask("check", goldens=goldens).startswith("labels: ")


def test_measurements_are_read_by_edgekit(
    app: App, swift: Swift, package: Any, tmp_path: Path
) -> None:
    contents, goldens = package
    folder = swift.folder / "pictures"
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
    first = app.ask("measure", goldens=goldens, about=about, fresh=True)
    both = app.ask(
        "measure",
        goldens=goldens,
        about=about,
        fresh=False,
        pictures=f"{swift.seen}/pictures",
        earlier=first,
    )
    # CryptoKit, which makes the digests, is Apple's: the driver says the number of bytes instead.
    value = json.loads(both)
    sizes = {f"{len(file)}-digest": colour for colour, _, file in source_pictures()}
    assert {a["sha256"]: a["answer"] for a in value["accuracy"]} == sizes
    for answer in value["accuracy"]:
        answer["sha256"] = hashlib.sha256(answer["sha256"].encode()).hexdigest()
    path = tmp_path / "measurements.json"
    path.write_text(json.dumps(value))
    read = read_measurements(path)
    assert read.sha256 == hashlib.sha256(contents.model).hexdigest()
    assert [session.fresh_process for session in read.latency or ()] == [True, False]
    for session in read.latency or ():
        assert session.clock_step_ms is not None
        assert min(session.samples_ms) > 0
    other = json.dumps(json.loads(first) | {"sha256": "0" * 64})
    alone = app.ask("measure", goldens=goldens, about=about, fresh=True, earlier=other)
    assert len(json.loads(alone)["latency"]) == 1


@pytest.mark.parametrize(
    ("step", "call"), [(5_000, 1_000), (1_000, 10**6), (10**8, 50_000), (40, 60_000), (40, 7)]
)
def test_calls_too_short_for_a_clock_are_timed_in_batches(app: App, step: int, call: int) -> None:
    """As many at once as the runner would take."""
    wanted, _ = calls_per_sample(lambda calls: calls * call // step * step, step)
    assert app.ask("batch", step=step, call=call) == wanted


def test_hostile_labels_and_title_stay_data(app: App, tmp_path: Path) -> None:
    contents = contents_of(tmp_path)
    tame = ios.files(contents)
    files = ios.files(replace(contents, class_names=HOSTILE, title=TITLE))
    readme = files.pop("ios/README.md").decode()
    assert "<script>" not in readme
    assert "\\<script\\>" in readme
    changed = {path for path, content in files.items() if content != tame[path]}
    assert {Path(path).name for path in changed} == {"labels.txt", "goldens.json"}
    set_contract(app, files, RESOURCES)
    labels = app.ask(
        "contract",
        json=files[f"{RESOURCES}/preprocess.json"].decode(),
        labels=files[f"{RESOURCES}/labels.txt"].decode(),
    )
    assert labels == list(HOSTILE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "onnx"])
def test_every_source_compiles_against_stand_ins(swift: Swift, tmp_path: Path, dtype: str) -> None:
    modules = swift.folder / "modules"
    for name, text in STAND_INS.items():
        write({f"{name}.swift": text.encode()}, modules)
        if not (modules / f"{name}.swiftmodule").exists():
            made = ("-emit-module", "-parse-as-library", "-module-name", name, "-I", modules)
            place = ("-emit-module-path", modules / f"{name}.swiftmodule")
            done = swift("swiftc", *made, *place, modules / f"{name}.swift")
            assert done.returncode == 0, done.stderr
    root = write(ios.files(contents_of(tmp_path, dtype)), swift.folder / f"all_{dtype}")
    done = swift("swift-package", "--package-path", root / "ios", "dump-package")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == TARGET
    beside = root / "Beside.swift"
    beside.write_text(BESIDE)
    library = sorted((root / f"ios/Sources/{TARGET}").glob("*.swift"))
    tests = sorted((root / f"ios/Tests/{TARGET}Tests").glob("*.swift"))
    assert (len(library), len(tests)) == (4, 2)
    flags = ("-D", "SWIFT_PACKAGE", "-swift-version", "5", "-I", modules, "-I", root)
    module = root / f"{TARGET}.swiftmodule"
    built = ("-emit-module", "-module-name", TARGET, "-enable-testing", "-emit-module-path", module)
    done = swift("swiftc", *flags, *built, *library, beside)
    assert done.returncode == 0, done.stderr
    done = swift("swiftc", "-typecheck", "-module-name", "Tests", *flags, *tests, beside)
    assert done.returncode == 0, done.stderr
    classifier = root / f"ios/Sources/{TARGET}/Classifier.swift"
    classifier.write_text(classifier.read_text().replace("facts[kCG", "fact[kCG"))
    done = swift("swiftc", "-typecheck", "-module-name", TARGET, *flags, *library, beside)
    assert done.returncode != 0
    assert "cannot find 'fact' in scope" in done.stderr
