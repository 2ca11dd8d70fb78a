import CryptoKit
import XCTest

@testable import @@TARGET@@

/// Holds this package against the goldens on the device, and measures it there.
///
/// Results are attached to the test as `measurements.json`, for `edgekit validate --measurements`;
/// the README says how.
final class GoldensTests: XCTestCase {
    // Whether another test ran in this process; then its latency is not that of a fresh one.
    private static var hasWorked = false

    private var classifier: Classifier!
    private var check: SelfCheck!

    override func setUpWithError() throws {
        classifier = try Classifier()
        check = try selfCheck(run: classifier.run)
    }

    override func tearDown() { GoldensTests.hasWorked = true }

    func testGoldens() throws {
        XCTAssertNil(try check.problem())
    }

    /// Wrong outputs must not go unseen: the test above could otherwise pass for any model.
    func testGoldensFindWrongOutputs() throws {
        let run: (Data) throws -> Data = classifier.run
        let broken = try selfCheck { tensor in
            var raw = try run(tensor)
            raw[raw.endIndex - 1] &+= 64
            return raw
        }
        XCTAssertTrue(try broken.tensorProblem()?.hasPrefix("tensor level") ?? false)
    }

    func testAccuracy() throws {
        let given = ProcessInfo.processInfo.environment["EDGEKIT_PICTURES"]
        let folder = given.map { URL(fileURLWithPath: $0) } ?? resources("pictures")
        guard FileManager.default.fileExists(atPath: folder.path) else {
            throw XCTSkip("no labelled pictures in \(folder.path)")
        }
        let answers = try check.answers(folder) { bytes in
            SHA256.hash(data: bytes).map { String(format: "%02x", $0) }.joined()
        }
        try keep(answers: answers, session: nil)
    }

    func testLatency() throws {
        let isFresh = !GoldensTests.hasWorked
        var session = try check.session(fresh: isFresh, warmUpSeconds: 0.5, seconds: 10, least: 200)
        session["battery_saver"] = ProcessInfo.processInfo.isLowPowerModeEnabled
        let states = ["nominal", "fair", "serious", "critical"]
        let state = ProcessInfo.processInfo.thermalState.rawValue
        if states.indices.contains(state) { session["thermal_status"] = states[state] }
        try keep(answers: nil, session: session)
    }

    private func selfCheck(run: @escaping (Data) throws -> Data) throws -> SelfCheck {
        let goldens = resources("goldens")
        return try SelfCheck(
            contract: classifier.contract,
            folder: { try Data(contentsOf: goldens.appendingPathComponent($0)) },
            run: run, prepare: classifier.input(file:))
    }

    private func resources(_ name: String) -> URL {
        #if SWIFT_PACKAGE
        let bundle = Bundle.module
        #else
        let bundle = Bundle(for: GoldensTests.self)
        #endif
        let root = bundle.resourceURL ?? bundle.bundleURL
        return root.appendingPathComponent("Resources").appendingPathComponent(name)
    }

    private func keep(answers: [[String: Any]]?, session: [String: Any]?) throws {
        let folder = try FileManager.default.url(
            for: .documentDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let file = folder.appendingPathComponent("@@NAME@@-measurements.json")
        let text = try check.measurements(
            about: about(), answers: answers, session: session, earlier: try? Data(contentsOf: file))
        try text.write(to: file)
        let attachment = XCTAttachment(data: text, uniformTypeIdentifier: "public.json")
        attachment.name = "measurements.json"
        attachment.lifetime = .keepAlways
        add(attachment)
    }

    private func about() -> [String: Any] {
        var system = utsname()
        uname(&system)
        let machine = withUnsafeBytes(of: system.machine) { raw in
            String(decoding: raw.prefix { $0 != 0 }, as: UTF8.self)
        }
        #if targetEnvironment(simulator)
        let isEmulated = true
        #else
        let isEmulated = false
        #endif
        return [
            "by": "self-check of @@NAME@@",
            "device": "Apple \(machine)",
            "os": ProcessInfo.processInfo.operatingSystemVersionString,
            "cores": ProcessInfo.processInfo.processorCount,
            "runtime": Engine.runtime,
            "runtime_version": Engine.version,
            "threads": Classifier.threads,
            "delegate": Engine.delegate,
            "emulated": isEmulated,
        ]
    }
}
