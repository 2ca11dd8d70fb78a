import Foundation

/// How a picture becomes an input of the network; the same rules made the training data.
public struct Preprocess: Decodable {
    public let heightPx: Int
    public let widthPx: Int
    public let resize: String
    public let crop: String
    /// What lies around a letterboxed picture: red, green and blue, or three times the luma.
    public let fill: [UInt8]
    public let channels: String
    /// Channels of the tensor: one for a network that sees luma, the first of a pixel's three.
    var inputChannels: Int { channels == "grey" ? 1 : 3 }
}

/// What the network says about one picture.
public struct Prediction {
    /// Name of the class with the highest score; nil if that output is of no class.
    public let label: String?
    /// Index of the highest output, the lowest of equal ones.
    public let index: Int
    /// The highest output, as the network gives it.
    public let score: Float
    /// Share of that class among all, from 0 to 1. Not calibrated.
    public let probability: Float
    /// All outputs.
    public let outputs: [Float]
    /// Whether the answer counts: the score is above `Contract.scoreThreshold`. Every answer does
    /// where the package was made without pictures of no class.
    public let isAccepted: Bool
}

/// What runs the model: from input tensor to raw output, both little-endian.
public protocol ModelRunner {
    func run(_ tensor: Data) throws -> Data
}

/// What is wrong, in words.
public struct ClassifierError: Error, CustomStringConvertible {
    public let description: String

    public init(_ description: String) { self.description = description }
}

/// What the judged file takes and gives. Read from `preprocess.json` and `labels.txt`.
public struct Contract {
    private struct File: Decodable {
        struct Input: Decodable {
            let dtype: String
            let codes: [[Double]]
        }
        struct Output: Decodable {
            let dtype: String
            let classes: Int
            let scale: Double?
            let zeroPoint: Int?
        }
        let model: String
        let sha256: String
        let outputsAreProbabilities: Bool
        let scoreThreshold: Double?
        let preprocess: Preprocess
        let input: Input
        let output: Output
    }

    private let file: File
    // Bytes of the tensor for every pixel value 0...255 and channel.
    private let codes: [[UInt8]]
    public let labels: [String]

    public init(json: Data, labels lines: Data) throws {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let file = try decoder.decode(File.self, from: json)
        guard file.input.codes.count == 256, file.input.codes.allSatisfy({ $0.count == 3 }) else {
            throw ClassifierError("preprocess.json: no table of 256 x 3 codes")
        }
        self.file = file
        codes = file.input.codes.joined().map { value in
            switch file.input.dtype {
            case "float32": return withUnsafeBytes(of: Float(value).bitPattern.littleEndian, Array.init)
            case "int8": return [UInt8(bitPattern: Int8(value))]
            default: return [UInt8(value)]
            }
        }
        // By bytes: to Swift's characters, a line break and a combining mark are hard to part.
        labels = lines.split(separator: 10).map { String(decoding: $0, as: UTF8.self) }
    }

    /// File name of the model, and SHA-256 of its bytes.
    public var model: String { file.model }
    public var sha256: String { file.sha256 }
    public var preprocess: Preprocess { file.preprocess }
    /// Few pictures of no class have a score above this; nil if nobody knows such a score.
    public var scoreThreshold: Double? { file.scoreThreshold }
    public var outputType: String { file.output.dtype }
    public var inputBytes: Int {
        preprocess.heightPx * preprocess.widthPx * preprocess.inputChannels
            * bytesOf(file.input.dtype)
    }
    public var outputBytes: Int { file.output.classes * bytesOf(outputType) }

    /// Returns the input tensor of pixels that `Picture.fit` made.
    public func tensor(_ pixels: [UInt8]) -> Data {
        var result = Data(capacity: inputBytes)
        let channels = preprocess.inputChannels
        for i in 0..<pixels.count / 3 * channels {
            let pixel = Int(pixels[i / channels * 3 + i % channels])
            result.append(contentsOf: codes[pixel * 3 + i % channels])
        }
        return result
    }

    /// Returns how far two input tensors lie apart, in steps of a pixel value, on average.
    public func pixelDifference(_ one: Data, _ other: Data) -> Double {
        let a = values(one, file.input.dtype)
        let b = values(other, file.input.dtype)
        let steps = (0..<3).map { c in (file.input.codes[255][c] - file.input.codes[0][c]) / 255 }
        var sum = 0.0
        let channels = preprocess.inputChannels
        for i in a.indices { sum += abs(Double(a[i] - b[i]) / steps[i % channels]) }
        return sum / Double(a.count)
    }

    /// Returns the numbers of a little-endian tensor.
    public func values(_ tensor: Data, _ type: String) -> [Float] {
        switch type {
        case "float32":
            return tensor.withUnsafeBytes { raw in
                (0..<raw.count / 4).map { i in
                    let bits = raw.loadUnaligned(fromByteOffset: i * 4, as: UInt32.self)
                    return Float(bitPattern: UInt32(littleEndian: bits))
                }
            }
        case "int8": return tensor.map { Float(Int8(bitPattern: $0)) }
        default: return tensor.map { Float($0) }
        }
    }

    /// Returns what a raw output means.
    public func prediction(_ raw: Data) -> Prediction {
        let scale = file.output.scale ?? 1
        let zeroPoint = Double(file.output.zeroPoint ?? 0)
        let isFloat = outputType == "float32"
        let real = values(raw, outputType).map {
            isFloat ? $0 : Float((Double($0) - zeroPoint) * scale)
        }
        var best = 0
        for i in real.indices where real[i] > real[best] { best = i }
        let share = file.outputsAreProbabilities
            ? real[best] : Float(1 / real.reduce(0) { $0 + exp(Double($1 - real[best])) })
        let label = best < labels.count ? labels[best] : nil
        return Prediction(
            label: label, index: best, score: real[best], probability: share, outputs: real,
            isAccepted: scoreThreshold.map { Double(real[best]) > $0 } ?? true)
    }
}

func bytesOf(_ type: String) -> Int { type == "float32" ? 4 : 1 }
