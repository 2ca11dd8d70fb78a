import Foundation

#if canImport(TensorFlowLite)
import TensorFlowLite

/// Runs the file with LiteRT on the CPU, as it was judged.
public final class Engine: ModelRunner {
    public static let runtime = "LiteRT"
    public static let version = TensorFlowLite.Runtime.version
    public static let delegate = "@@DELEGATE@@"

    private let interpreter: Interpreter

    init(model: URL, contract: Contract, threads: Int) throws {
        var options = Interpreter.Options()
        options.threadCount = threads
        options.isXNNPackEnabled = @@XNNPACK@@
        interpreter = try Interpreter(modelPath: model.path, options: options)
        try interpreter.allocateTensors()
    }

    public func run(_ tensor: Data) throws -> Data {
        try interpreter.copy(tensor, toInputAt: 0)
        try interpreter.invoke()
        return try interpreter.output(at: 0).data
    }
}
#else
/// Stands where TensorFlowLite is not linked; give `Classifier` a `ModelRunner` of your own there.
public final class Engine: ModelRunner {
    public static let runtime = "none"
    public static let version = "none"
    public static let delegate = "none"

    init(model: URL, contract: Contract, threads: Int) throws {
        throw ClassifierError("no runtime: install the pod, or pass Classifier a network")
    }

    public func run(_ tensor: Data) throws -> Data { throw ClassifierError("no runtime") }
}
#endif
