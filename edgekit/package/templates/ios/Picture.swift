import Foundation

/// An RGB picture: three bytes a pixel, row by row.
public struct Picture {
    public let width: Int
    public let height: Int
    public let rgb: [UInt8]

    public init(width: Int, height: Int, rgb: [UInt8]) {
        precondition(width > 0 && height > 0 && rgb.count == width * height * 3)
        self.width = width
        self.height = height
        self.rgb = rgb
    }

    /// Returns the picture as the viewer should see it; `orientation` is EXIF's, 1 to 8.
    public func upright(_ orientation: Int) -> Picture {
        guard (2...8).contains(orientation) else { return self }
        let isTurned = orientation >= 5
        let newWidth = isTurned ? height : width
        let newHeight = isTurned ? width : height
        var result = [UInt8](repeating: 0, count: rgb.count)
        for y in 0..<newHeight {
            for x in 0..<newWidth {
                let column: Int
                switch orientation {
                case 2, 3: column = width - 1 - x
                case 4: column = x
                case 5, 6: column = y
                default: column = width - 1 - y
                }
                let row: Int
                switch orientation {
                case 2: row = y
                case 3, 4: row = height - 1 - y
                case 5, 8: row = x
                default: row = height - 1 - x
                }
                let to = (y * newWidth + x) * 3
                let from = (row * width + column) * 3
                for channel in 0..<3 { result[to + channel] = rgb[from + channel] }
            }
        }
        return Picture(width: newWidth, height: newHeight, rgb: result)
    }

    /// Returns the picture cropped and resized as the contract says: 3 bytes a pixel in the channel
    /// order of the tensor, or three times the luma.
    public func fit(_ to: Preprocess) -> [UInt8] {
        var picture = to.channels == "grey" ? grey() : self
        if to.crop == "center" {
            let ratio = min(Double(width) / Double(to.widthPx), Double(height) / Double(to.heightPx))
            // A half goes to the even neighbour, as on the training side.
            picture = picture.cropped(
                Int((Double(to.widthPx) * ratio).rounded(.toNearestOrEven)),
                Int((Double(to.heightPx) * ratio).rounded(.toNearestOrEven)))
        }
        var pixels = to.crop == "letterbox" ? picture.letterboxed(to)
            : picture.resized(width: to.widthPx, height: to.heightPx, filter: to.resize).rgb
        if to.channels == "bgr" {
            for i in stride(from: 0, to: pixels.count, by: 3) { pixels.swapAt(i, i + 2) }
        }
        return pixels
    }

    // ITU-R 601-2 with 16 bits behind the point, as Pillow's convert("L").
    private func grey() -> Picture {
        var result = [UInt8](repeating: 0, count: rgb.count)
        for at in stride(from: 0, to: rgb.count, by: 3) {
            let sum = 19595 * Int(rgb[at]) + 38470 * Int(rgb[at + 1]) + 7471 * Int(rgb[at + 2])
            let luma = UInt8((sum + 0x8000) >> 16)
            for channel in 0..<3 { result[at + channel] = luma }
        }
        return Picture(width: width, height: height, rgb: result)
    }

    // In whole numbers, so that every device rounds alike.
    private func letterboxed(_ to: Preprocess) -> [UInt8] {
        var (newWidth, newHeight) = (to.widthPx, to.heightPx)
        if width * to.heightPx >= height * to.widthPx {
            newHeight = max(1, (2 * height * to.widthPx + width) / (2 * width))
        } else {
            newWidth = max(1, (2 * width * to.heightPx + height) / (2 * height))
        }
        let small = resized(width: newWidth, height: newHeight, filter: to.resize).rgb
        var result = (0..<to.widthPx * to.heightPx * 3).map { to.fill[$0 % 3] }
        let left = (to.widthPx - newWidth) / 2
        let top = (to.heightPx - newHeight) / 2
        for y in 0..<newHeight {
            let at = ((top + y) * to.widthPx + left) * 3
            let row = small[y * newWidth * 3..<(y + 1) * newWidth * 3]
            result.replaceSubrange(at..<at + newWidth * 3, with: row)
        }
        return result
    }

    private func cropped(_ newWidth: Int, _ newHeight: Int) -> Picture {
        let left = (width - newWidth) / 2
        let top = (height - newHeight) / 2
        var result: [UInt8] = []
        result.reserveCapacity(newWidth * newHeight * 3)
        for y in 0..<newHeight {
            let start = ((top + y) * width + left) * 3
            result += rgb[start..<start + newWidth * 3]
        }
        return Picture(width: newWidth, height: newHeight, rgb: result)
    }

    /// Returns the picture at another size.
    ///
    /// Antialiased and in fixed point, byte for byte as Image.resize of Pillow 13, which made the
    /// training data: one pass for the columns and one for the rows, with 22 bits behind the point.
    /// What Core Graphics and Core Image resize looks alike, but is not equal.
    func resized(width newWidth: Int, height newHeight: Int, filter: String) -> Picture {
        if newWidth == width && newHeight == height { return self }
        if filter == "nearest" { return picked(newWidth, newHeight) }
        let columns = newWidth == width ? nil : Taps(width, newWidth, filter)
        let rows = newHeight == height ? nil : Taps(height, newHeight, filter)
        // Between the two, pixels are rounded to whole numbers, so the order shows in the result.
        let isTall = height - newHeight > max(0, (width - newWidth) * 2)
        return isTall ? stacked(rows).sampled(columns) : sampled(columns).stacked(rows)
    }

    private func picked(_ newWidth: Int, _ newHeight: Int) -> Picture {
        let columns = nearest(width, newWidth)
        var result: [UInt8] = []
        result.reserveCapacity(newWidth * newHeight * 3)
        for row in nearest(height, newHeight) {
            for column in columns {
                let from = (row * width + column) * 3
                result += rgb[from..<from + 3]
            }
        }
        return Picture(width: newWidth, height: newHeight, rgb: result)
    }

    private func sampled(_ taps: Taps?) -> Picture {
        guard let taps = taps else { return self }
        let newWidth = taps.count.count
        var result = [UInt8](repeating: 0, count: newWidth * height * 3)
        rgb.withUnsafeBufferPointer { source in
            for y in 0..<height {
                for x in 0..<newWidth {
                    let start = (y * width + taps.first[x]) * 3
                    for channel in 0..<3 {
                        var sum = half
                        for k in 0..<taps.count[x] {
                            sum += Int32(source[start + k * 3 + channel])
                                * taps.weights[x * taps.most + k]
                        }
                        result[(y * newWidth + x) * 3 + channel] = clipped(sum)
                    }
                }
            }
        }
        return Picture(width: newWidth, height: height, rgb: result)
    }

    private func stacked(_ taps: Taps?) -> Picture {
        guard let taps = taps else { return self }
        let line = width * 3
        let newHeight = taps.count.count
        var result = [UInt8](repeating: 0, count: newHeight * line)
        var sums = [Int32](repeating: 0, count: line)
        rgb.withUnsafeBufferPointer { source in
            for y in 0..<newHeight {
                for i in 0..<line { sums[i] = half }
                for k in 0..<taps.count[y] {
                    let weight = taps.weights[y * taps.most + k]
                    let start = (taps.first[y] + k) * line
                    for i in 0..<line { sums[i] += Int32(source[start + i]) * weight }
                }
                for i in 0..<line { result[y * line + i] = clipped(sums[i]) }
            }
        }
        return Picture(width: width, height: newHeight, rgb: result)
    }
}

private let precisionBits: Int32 = 22
private let half: Int32 = 1 << (precisionBits - 1)

private func clipped(_ sum: Int32) -> UInt8 { UInt8(max(0, min(255, sum >> precisionBits))) }

private func nearest(_ size: Int, _ newSize: Int) -> [Int] {
    let scale = Double(size) / Double(newSize)
    var at = scale * 0.5
    return (0..<newSize).map { _ in
        defer { at += scale }
        return min(size - 1, Int(at))
    }
}

/// Which neighbouring samples make each new one, and how much each of them counts.
private struct Taps {
    var first: [Int] = []
    var count: [Int] = []
    var weights: [Int32]
    let most: Int

    init(_ size: Int, _ newSize: Int, _ filter: String) {
        let scale = Double(size) / Double(newSize)
        // A filter as wide as what becomes one pixel: this is the antialiasing.
        let stretch = max(scale, 1)
        let support = (filter == "bicubic" ? 2 : 1) * stretch
        most = Int(support.rounded(.up)) * 2 + 1
        weights = [Int32](repeating: 0, count: newSize * most)
        for x in 0..<newSize {
            let center = (Double(x) + 0.5) * scale
            let start = max(0, Int(center - support + 0.5))
            let end = min(size, Int(center + support + 0.5))
            let real = (start..<end).map { sample -> Double in
                let distance = (Double(sample) - center + 0.5) * (1 / stretch)
                return filter == "bicubic" ? bicubic(distance) : bilinear(distance)
            }
            let sum = real.reduce(0, +)
            for (k, weight) in real.enumerated() {
                let fixed = (sum != 0 ? weight / sum : weight) * Double(1 << precisionBits)
                weights[x * most + k] = Int32(fixed < 0 ? fixed - 0.5 : fixed + 0.5)
            }
            first.append(start)
            count.append(end - start)
        }
    }
}

private func bilinear(_ distance: Double) -> Double { max(0, 1 - abs(distance)) }

// Keys's cubic convolution with a = -0.5, as Pillow has it.
private func bicubic(_ distance: Double) -> Double {
    let a = -0.5
    let x = abs(distance)
    if x < 1 { return ((a + 2) * x - (a + 3)) * x * x + 1 }
    if x < 2 { return (((x - 5) * x + 8) * x - 4) * a }
    return 0
}
