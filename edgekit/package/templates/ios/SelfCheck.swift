import Foundation

@testable import @@TARGET@@

/// Holds an app against the goldens: inputs with the answers of the file when it was judged.
struct SelfCheck {
    // Mean over the goldens. Measured on 60 photographs at 96, 160 and 224 px: a resize without
    // antialiasing 2.8, 1.4 and 0.8, single pixels 3.6, 2.4 and 2.0, BGR 13, no rotation 44; a
    // JPEG that is shrunk while it is decoded, 0.2.
    static let mostDifference = 1.0
    // The tolerances that this package was made with.
    static let mostSteps: Float = @@MOST_STEPS@@
    static let mostShare: Float = @@MOST_SHARE@@
    // A sample is wrong by up to one step of the clock, here by at most half a percent.
    static let sampleSteps: UInt64 = 200
    // Whatever the clock.
    static let longestSampleNanoseconds: UInt64 = 250_000_000

    private struct Golden: Decodable {
        let name: String
        let picture: String?
        let answer: Int
        let accepted: Bool?
        let inputOffset, inputBytes, outputOffset, outputBytes: Int
    }

    private struct File: Decodable {
        let labels: [String]
        let toleranceSteps: Float
        let toleranceShare: Float
        let goldens: [Golden]
    }

    private let file: File
    private let inputs: Data
    private let outputs: Data
    private let contract: Contract
    private let run: (Data) throws -> Data
    private let prepare: (Data) throws -> Data
    private let picture: (String) throws -> Data

    /// - Parameters:
    ///   - folder: Reads a file of the goldens, such as `goldens.json` or `images/cat_00.jpg`.
    ///   - run: The network, from tensor to raw output.
    ///   - prepare: Everything the app does before it, from a picture file to the tensor.
    init(
        contract: Contract, folder: @escaping (String) throws -> Data,
        run: @escaping (Data) throws -> Data, prepare: @escaping (Data) throws -> Data
    ) throws {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        file = try decoder.decode(File.self, from: folder("goldens.json"))
        inputs = try folder("inputs.bin")
        outputs = try folder("outputs.bin")
        picture = { try folder("images/\($0)") }
        self.contract = contract
        self.run = run
        self.prepare = prepare
    }

    /// Returns what is wrong, in words that say where to look; nil if all is well.
    func problem() throws -> String? {
        try goldensProblem() ?? labelProblem() ?? thresholdProblem() ?? tensorProblem()
            ?? pictureProblem()
    }

    /// Goldens: there are some, and they allow no more difference than was packed.
    func goldensProblem() -> String? {
        if file.goldens.isEmpty {
            return "goldens: goldens.json has none, so nothing shows what the model answers: copy "
                + "it again"
        }
        let isSmall = file.toleranceSteps <= SelfCheck.mostSteps
            && file.toleranceShare <= SelfCheck.mostShare
        return isSmall
            ? nil
            : "goldens: goldens.json allows other differences than were packed: copy it again"
    }

    /// Labels: the app shows the names that the file was judged with, in the same order.
    func labelProblem() -> String? {
        let (found, wanted) = (contract.labels, file.labels)
        // By bytes, as == takes differently composed letters for the same.
        if found.map({ Array($0.utf8) }) == wanted.map({ Array($0.utf8) }) { return nil }
        var what = "\(found.count) lines, expected \(wanted.count)"
        for (line, pair) in zip(found, wanted).enumerated()
        where Array(pair.0.utf8) != Array(pair.1.utf8) {
            what = "line \(line + 1) is '\(pair.0)', expected '\(pair.1)'"
            break
        }
        return "labels: labels.txt is not the one that was judged: \(what)"
    }

    /// Threshold: of the judged outputs, those count that did when the file was judged.
    func thresholdProblem() -> String? {
        let wrong = file.goldens.filter { golden in
            let output = slice(outputs, golden.outputOffset, golden.outputBytes)
            return golden.accepted.map { contract.prediction(output).isAccepted != $0 } ?? false
        }
        if wrong.isEmpty { return nil }
        return "threshold: \(wrong.count) of \(file.goldens.count) known outputs count that must "
            + "not, or do not and must (\(shown(wrong.map(\.name)))): preprocess.json has another "
            + "score_threshold than was judged: copy it again"
    }

    /// Tensor level: the exact input gives the judged output, within the tolerance of kernels.
    func tensorProblem() throws -> String? {
        let wrong = try file.goldens.filter { golden in
            let wanted = slice(outputs, golden.outputOffset, golden.outputBytes)
            return try !near(wanted, run(input(golden)))
        }
        if wrong.isEmpty { return nil }
        return "tensor level: \(wrong.count) of \(file.goldens.count) goldens give other outputs "
            + "(\(shown(wrong.map(\.name)))): the model file is damaged or another one, or the "
            + "runtime's kernels compute something else"
    }

    /// Picture level: the app's own preprocessing of the picture gives the judged answer.
    func pictureProblem() throws -> String? {
        let pictured = file.goldens.filter { $0.picture != nil }
        if pictured.isEmpty { return nil }
        var wrong: [String] = []
        var difference = 0.0
        for golden in pictured {
            let tensor = try prepare(picture(golden.picture ?? ""))
            difference += contract.pixelDifference(tensor, input(golden)) / Double(pictured.count)
            let answer = contract.prediction(try run(tensor)).index
            if answer != golden.answer {
                wrong.append("\(golden.name): \(name(answer)), expected \(name(golden.answer))")
            }
        }
        if wrong.isEmpty && difference <= SelfCheck.mostDifference { return nil }
        let pixels = String(format: "%.1f", difference)
        return "picture level: \(wrong.count) of \(pictured.count) pictures get another answer "
            + "(\(shown(wrong))) and pixels are \(pixels) of 255 apart on average, although the same "
            + "tensors give the judged outputs: look at the app's decoding, EXIF rotation, crop, "
            + "resize, channel order and normalization"
    }

    /// Returns the answers to pictures `<class>/<file>`, for `edgekit validate`.
    ///
    /// - Parameter digest: SHA-256 of bytes in lower-case hex digits.
    func answers(_ folder: URL, digest: (Data) -> String) throws -> [[String: Any]] {
        let manager = FileManager.default
        var result: [[String: Any]] = []
        for one in try manager.contentsOfDirectory(atPath: folder.path).sorted() {
            let inner = folder.appendingPathComponent(one)
            for name in try manager.contentsOfDirectory(atPath: inner.path).sorted() {
                let bytes = try Data(contentsOf: inner.appendingPathComponent(name))
                let said = contract.prediction(try run(prepare(bytes)))
                result.append([
                    "sha256": digest(bytes),
                    "answer": said.label ?? NSNull(),
                    "score": Double(said.score),
                    "outputs": said.outputs.map(Double.init),
                ])
            }
        }
        return result
    }

    /// Returns one session of single-image latency, for `edgekit validate`.
    ///
    /// A call that is too short for the clock is timed in batches, and a sample is the mean of one.
    ///
    /// - Parameter fresh: Whether this process was started for it alone and has run nothing before.
    func session(
        fresh: Bool, warmUpSeconds: Double, seconds: Double, least: Int
    ) throws -> [String: Any] {
        let tensor = input(file.goldens[0])
        var warmUps = 0
        let start = DispatchTime.now()
        while warmUps < 5 || milliseconds(start) < warmUpSeconds * 1000 {
            _ = try run(tensor)
            warmUps += 1
        }
        let clock = { DispatchTime.now().uptimeNanoseconds }
        let timed = { (calls: Int) throws -> UInt64 in
            let begin = clock()
            for _ in 0..<calls { _ = try run(tensor) }
            return clock() - begin
        }
        let step = SelfCheck.clockStep(clock)
        let calls = try SelfCheck.callsPerSample(step: step) { count in
            warmUps += count
            return try timed(count)
        }
        var samples: [Double] = []
        let first = DispatchTime.now()
        while samples.count < least || milliseconds(first) < seconds * 1000 {
            samples.append(Double(try timed(calls)) / 1e6 / Double(calls))
        }
        return [
            "samples_ms": samples, "fresh_process": fresh, "warmup_runs": warmUps,
            "clock_step_ms": Double(step) / 1e6, "calls_per_sample": calls,
        ]
    }

    /// Returns the least by which a clock moves from one reading to the next, in nanoseconds.
    static func clockStep(_ clock: () -> UInt64) -> UInt64 {
        var step = UInt64.max
        var (changes, readings) = (0, 0)
        var last = clock()
        while changes < 50 && readings < 10_000_000 {
            let now = clock()
            if now > last {
                step = min(step, now - last)
                changes += 1
            }
            readings += 1
            last = now
        }
        precondition(changes > 0, "the clock of this device stands still")
        return step
    }

    /// Returns how many calls span enough steps of the clock.
    ///
    /// Of some batches the shortest decides: one that is interrupted must not end the search.
    ///
    /// - Parameter timed: Makes so many calls; returns their time in nanoseconds.
    static func callsPerSample(
        step: UInt64, timed: (Int) throws -> UInt64
    ) rethrows -> Int {
        var calls = 1
        while true {
            var shortest = UInt64.max
            for _ in 0..<5 { shortest = min(shortest, try timed(calls)) }
            let spans = shortest >= sampleSteps * step
            if spans || 2 * shortest > longestSampleNanoseconds { return calls }
            calls *= 2
        }
    }

    /// Returns the measurements as `edgekit validate --measurements` reads them.
    ///
    /// - Parameters:
    ///   - about: by, device, os, cores, runtime, runtime_version, threads and more of that format.
    ///   - earlier: Measurements of the same file, whose latency sessions are kept.
    func measurements(
        about: [String: Any], answers: [[String: Any]]?, session: [String: Any]?, earlier: Data?
    ) throws -> Data {
        var result = about
        result["edgekit_measurements"] = 1
        result["sha256"] = contract.sha256
        result["at"] = ISO8601DateFormatter().string(from: Date())
        let parsed = earlier.flatMap { try? JSONSerialization.jsonObject(with: $0) }
        var before = parsed as? [String: Any] ?? [:]
        if before["sha256"] as? String != contract.sha256 { before = [:] }
        let sessions = (before["latency"] as? [Any] ?? []) + (session.map { [$0] } ?? [])
        if !sessions.isEmpty { result["latency"] = sessions }
        let said = answers ?? before["accuracy"] as? [[String: Any]] ?? []
        if !said.isEmpty { result["accuracy"] = said }
        return try JSONSerialization.data(
            withJSONObject: result, options: [.prettyPrinted, .sortedKeys])
    }

    private func near(_ wanted: Data, _ got: Data) -> Bool {
        if wanted.count != got.count { return false }
        let expected = contract.values(wanted, contract.outputType)
        let found = contract.values(got, contract.outputType)
        let isFloat = contract.outputType == "float32"
        let largest = expected.map { abs($0) }.max() ?? 0
        let most = isFloat ? largest * file.toleranceShare : file.toleranceSteps
        // Written so that a NaN is not near.
        return zip(expected, found).allSatisfy { abs($0 - $1) <= most }
    }

    private func input(_ golden: Golden) -> Data {
        slice(inputs, golden.inputOffset, golden.inputBytes)
    }

    private func slice(_ all: Data, _ start: Int, _ count: Int) -> Data {
        all.subdata(in: start..<start + count)
    }

    private func name(_ index: Int) -> String {
        index < contract.labels.count ? "'\(contract.labels[index])'" : "none"
    }

    private func shown(_ list: [String]) -> String {
        list.prefix(3).joined(separator: "; ") + (list.count > 3 ? "; ..." : "")
    }

    private func milliseconds(_ since: DispatchTime) -> Double {
        Double(DispatchTime.now().uptimeNanoseconds - since.uptimeNanoseconds) / 1e6
    }
}
