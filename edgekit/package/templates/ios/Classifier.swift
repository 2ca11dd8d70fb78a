import CoreGraphics
import CoreVideo
import CryptoKit
import Foundation
import ImageIO
import VideoToolbox

/// Says what is on a picture.
///
/// One instance runs one picture at a time; calls from several threads wait for each other. Load it
/// off the main thread.
public final class Classifier {
    /// CPU threads with which the file was judged.
    public static let threads = @@THREADS@@

    public let contract: Contract
    private let runner: ModelRunner
    private let lock = NSLock()

    /// Loads the model that is part of this package.
    ///
    /// - Parameter runner: What runs the model; its default is the runtime of `Engine`.
    /// - Throws: `ClassifierError` if the model is damaged or not the one that was judged.
    public init(threads: Int = Classifier.threads, runner: ModelRunner? = nil) throws {
        contract = try Contract(
            json: Data(contentsOf: Classifier.file("preprocess.json")),
            labels: Data(contentsOf: Classifier.file("labels.txt")))
        let model = try Classifier.file(contract.model)
        let bytes = try Data(contentsOf: model, options: .alwaysMapped)
        let found = SHA256.hash(data: bytes).map { String(format: "%02x", $0) }.joined()
        guard found == contract.sha256 else {
            throw ClassifierError(
                "\(contract.model) has SHA-256 \(found), not \(contract.sha256): "
                    + "the model file is damaged or not the one that was judged")
        }
        self.runner = try runner ?? Engine(model: model, contract: contract, threads: threads)
    }

    /// Returns what is on a picture file, such as JPEG, PNG or HEIC, turned upright by its EXIF.
    public func classify(file: Data) throws -> Prediction {
        contract.prediction(try run(input(file: file)))
    }

    /// Returns what is on a picture file.
    public func classify(contentsOf url: URL) throws -> Prediction {
        try classify(file: Data(contentsOf: url))
    }

    /// Returns what is on a picture; of a `UIImage` pass `cgImage` and its orientation.
    public func classify(
        _ image: CGImage, orientation: CGImagePropertyOrientation = .up
    ) throws -> Prediction {
        let tensor = try input(image, orientation: Int(orientation.rawValue))
        return contract.prediction(try run(tensor))
    }

    /// Returns what is on a camera frame.
    public func classify(
        _ frame: CVPixelBuffer, orientation: CGImagePropertyOrientation = .up
    ) throws -> Prediction {
        var image: CGImage?
        VTCreateCGImageFromCVPixelBuffer(frame, options: nil, imageOut: &image)
        guard let picture = image else { throw ClassifierError("a frame that is no picture") }
        return try classify(picture, orientation: orientation)
    }

    /// Returns the input tensor that a picture file becomes.
    public func input(file: Data) throws -> Data {
        guard let source = CGImageSourceCreateWithData(NSData(data: file) as CFData, nil),
            let facts = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
            let width = facts[kCGImagePropertyPixelWidth] as? Int,
            let height = facts[kCGImagePropertyPixelHeight] as? Int
        else { throw ClassifierError("not a picture") }
        guard width * height <= Classifier.mostPixels else {
            throw ClassifierError("more than \(Classifier.mostPixels) pixels")
        }
        // The decoder leaves the pixels as they are stored.
        guard let image = CGImageSourceCreateImageAtIndex(source, 0, nil) else {
            throw ClassifierError("a picture that is damaged")
        }
        return try input(image, orientation: facts[kCGImagePropertyOrientation] as? Int ?? 1)
    }

    /// Returns the raw output of the network for an input tensor, both little-endian.
    public func run(_ tensor: Data) throws -> Data {
        guard tensor.count == contract.inputBytes else {
            throw ClassifierError("\(tensor.count) bytes, expected \(contract.inputBytes)")
        }
        lock.lock()
        defer { lock.unlock() }
        let raw = try runner.run(tensor)
        guard raw.count == contract.outputBytes else {
            throw ClassifierError("the model gives \(raw.count) bytes, not its contract's")
        }
        return raw
    }

    private func input(_ image: CGImage, orientation: Int) throws -> Data {
        let picture = try Classifier.pixels(image).upright(orientation)
        return contract.tensor(picture.fit(contract.preprocess))
    }

    // The whole picture is decoded.
    private static let mostPixels = @@MOST_PIXELS@@

    private static func file(_ name: String) throws -> URL {
        #if SWIFT_PACKAGE
        let bundle = Bundle.module
        #else
        let framework = Bundle(for: Classifier.self)
        let inner = framework.url(forResource: "@@TARGET@@", withExtension: "bundle")
        let bundle = inner.flatMap(Bundle.init(url:)) ?? framework
        #endif
        guard let url = bundle.url(forResource: name, withExtension: nil) else {
            throw ClassifierError("\(name) is missing in \(bundle.bundlePath)")
        }
        return url
    }

    /// Returns the pixels of an image, on white where it is transparent.
    private static func pixels(_ image: CGImage) throws -> Picture {
        let (width, height) = (image.width, image.height)
        // Its own colour space, so that no value is converted: the training side converts none.
        let own = image.colorSpace.flatMap { $0.model == .rgb && $0.supportsOutput ? $0 : nil }
        var rgba = [UInt8](repeating: 255, count: width * height * 4)
        let isDrawn = rgba.withUnsafeMutableBytes { memory -> Bool in
            guard
                let context = CGContext(
                    data: memory.baseAddress, width: width, height: height, bitsPerComponent: 8,
                    bytesPerRow: width * 4, space: own ?? CGColorSpaceCreateDeviceRGB(),
                    bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.interpolationQuality = .none
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard isDrawn else { throw ClassifierError("a picture of an unknown kind") }
        var rgb = [UInt8](repeating: 0, count: width * height * 3)
        for pixel in 0..<width * height {
            for channel in 0..<3 { rgb[pixel * 3 + channel] = rgba[pixel * 4 + channel] }
        }
        return Picture(width: width, height: height, rgb: rgb)
    }
}
