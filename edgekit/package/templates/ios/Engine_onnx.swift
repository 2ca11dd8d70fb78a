import Foundation
import OnnxRuntimeBindings

/// Runs the file with ONNX Runtime on the CPU, as it was judged.
public final class Engine: ModelRunner {
    public static let runtime = "ONNX Runtime"
    public static let version = "@@VERSION@@"
    public static let delegate = "@@DELEGATE@@"

    private let environment: ORTEnv
    private let session: ORTSession
    private let names: (input: String, output: String)
    private let shape: [NSNumber]

    init(model: URL, contract: Contract, threads: Int) throws {
        environment = try ORTEnv(loggingLevel: .warning)
        let options = try ORTSessionOptions()
        try options.setIntraOpNumThreads(Int32(threads))
        // Without it, simulators on x86 without VNNI multiply in 16 bits, which overflow.
        try options.addConfigEntry(withKey: "session.x64quantprecision", value: "1")
        session = try ORTSession(env: environment, modelPath: model.path, sessionOptions: options)
        guard let input = try session.inputNames().first,
            let output = try session.outputNames().first
        else { throw ClassifierError("a model without input or output") }
        names = (input, output)
        let preprocess = contract.preprocess
        shape = [1, preprocess.heightPx, preprocess.widthPx, 3].map { NSNumber(value: $0) }
    }

    public func run(_ tensor: Data) throws -> Data {
        let value = try ORTValue(
            tensorData: NSMutableData(data: tensor), elementType: .float, shape: shape)
        let outputs = try session.run(
            withInputs: [names.input: value], outputNames: [names.output], runOptions: nil)
        guard let output = outputs[names.output] else { throw ClassifierError("no output") }
        // Memory of the runtime's, which goes with the value.
        let memory = try output.tensorData()
        return Data(bytes: memory.bytes, count: memory.length)
    }
}
