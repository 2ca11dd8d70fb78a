package @@PACKAGE@@

import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.max
import kotlin.math.min

/** An RGB picture: three bytes a pixel, row by row. */
class Picture(val width: Int, val height: Int, val rgb: ByteArray) {
    init {
        require(width > 0 && height > 0 && rgb.size == width * height * 3) {
            "$width x $height pixels in ${rgb.size} bytes"
        }
    }

    /** Returns the picture as the viewer should see it. [orientation] is EXIF's, 1 to 8. */
    fun upright(orientation: Int): Picture {
        if (orientation !in 2..8) return this
        val turned = orientation >= 5
        val newWidth = if (turned) height else width
        val newHeight = if (turned) width else height
        val result = ByteArray(rgb.size)
        for (y in 0 until newHeight) {
            for (x in 0 until newWidth) {
                val column = when (orientation) {
                    2, 3 -> width - 1 - x
                    4 -> x
                    5, 6 -> y
                    else -> width - 1 - y
                }
                val row = when (orientation) {
                    2 -> y
                    3, 4 -> height - 1 - y
                    5, 8 -> x
                    else -> height - 1 - x
                }
                rgb.copyInto(
                    result, (y * newWidth + x) * 3,
                    (row * width + column) * 3, (row * width + column) * 3 + 3,
                )
            }
        }
        return Picture(newWidth, newHeight, result)
    }

    /**
     * Returns the picture cropped and resized as the contract says: 3 bytes a pixel in the channel
     * order of the tensor, or three times the luma.
     *
     * [fullWidth] and [fullHeight] are those of the upright picture in its file. Where it was
     * decoded below them, a whole pixel is too coarse a step for the edge of a crop.
     */
    fun fit(to: Preprocess, fullWidth: Int = width, fullHeight: Int = height): ByteArray {
        val shrunk = fullWidth != width || fullHeight != height
        var picture = if (to.channels == "grey") grey() else this
        var box = doubleArrayOf(0.0, 0.0, width.toDouble(), height.toDouble())
        if (to.crop == "center") {
            val ratio = min(width.toDouble() / to.width, height.toDouble() / to.height)
            val keptWidth = to.width * ratio
            val keptHeight = to.height * ratio
            if (shrunk) {
                val left = (width - keptWidth) / 2
                val top = (height - keptHeight) / 2
                box = doubleArrayOf(left, top, left + keptWidth, top + keptHeight)
            } else {
                // Math.rint rounds a half to the even neighbour, as the training side does.
                picture = picture.cropped(Math.rint(keptWidth).toInt(), Math.rint(keptHeight).toInt())
                box = doubleArrayOf(0.0, 0.0, picture.width.toDouble(), picture.height.toDouble())
            }
        }
        val pixels = if (to.crop == "letterbox") {
            picture.letterboxed(to, fullWidth.toLong(), fullHeight.toLong())
        } else {
            picture.resized(to.width, to.height, to.resize, box).rgb
        }
        if (to.channels == "bgr") {
            for (i in pixels.indices step 3) {
                val red = pixels[i]
                pixels[i] = pixels[i + 2]
                pixels[i + 2] = red
            }
        }
        return pixels
    }

    // ITU-R 601-2 with 16 bits behind the point, as Pillow's convert("L").
    private fun grey(): Picture {
        val result = ByteArray(rgb.size)
        for (at in rgb.indices step 3) {
            val red = rgb[at].toInt() and 0xFF
            val green = rgb[at + 1].toInt() and 0xFF
            val blue = rgb[at + 2].toInt() and 0xFF
            val luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) shr 16
            result.fill(luma.toByte(), at, at + 3)
        }
        return Picture(width, height, result)
    }

    // In whole numbers, so that every device rounds alike; they do not fit into 32 bits.
    private fun letterboxed(to: Preprocess, fullWidth: Long, fullHeight: Long): ByteArray {
        var newWidth = to.width
        var newHeight = to.height
        if (fullWidth * to.height >= fullHeight * to.width) {
            val scaled = (2 * fullHeight * to.width + fullWidth) / (2 * fullWidth)
            newHeight = max(1, scaled.toInt())
        } else {
            val scaled = (2 * fullWidth * to.height + fullHeight) / (2 * fullHeight)
            newWidth = max(1, scaled.toInt())
        }
        val box = doubleArrayOf(0.0, 0.0, width.toDouble(), height.toDouble())
        val small = resized(newWidth, newHeight, to.resize, box).rgb
        val result = ByteArray(to.width * to.height * 3) { to.fill[it % 3] }
        val left = (to.width - newWidth) / 2
        val top = (to.height - newHeight) / 2
        for (y in 0 until newHeight) {
            val at = ((top + y) * to.width + left) * 3
            small.copyInto(result, at, y * newWidth * 3, (y + 1) * newWidth * 3)
        }
        return result
    }

    private fun cropped(newWidth: Int, newHeight: Int): Picture {
        val left = (width - newWidth) / 2
        val top = (height - newHeight) / 2
        val result = ByteArray(newWidth * newHeight * 3)
        for (y in 0 until newHeight) {
            val start = ((top + y) * width + left) * 3
            rgb.copyInto(result, y * newWidth * 3, start, start + newWidth * 3)
        }
        return Picture(newWidth, newHeight, result)
    }

    /**
     * Returns [box] (left, top, right, bottom) of the picture at another size.
     *
     * Antialiased and in fixed point, byte for byte as Image.resize of Pillow 13, which made the
     * training data: one pass for the columns and one for the rows, with 22 bits behind the point.
     * Bitmap.createScaledBitmap is not antialiased and would show the network other pictures.
     */
    internal fun resized(newWidth: Int, newHeight: Int, filter: String, box: DoubleArray): Picture {
        // Pillow keeps the box in 32-bit floats.
        val (left, top, right, bottom) = box.map { it.toFloat() }
        val isWidth = newWidth == width && left == 0f && right == width.toFloat()
        val isHeight = newHeight == height && top == 0f && bottom == height.toFloat()
        if (isWidth && isHeight) return Picture(width, height, rgb.copyOf())
        if (filter == "nearest") {
            val columns = nearest(width, newWidth, left, right)
            val rows = nearest(height, newHeight, top, bottom)
            return picked(columns, rows)
        }
        val columns = if (isWidth) null else Taps(width, left, right, newWidth, filter)
        val rows = if (isHeight) null else Taps(height, top, bottom, newHeight, filter)
        // Between the two, pixels are rounded to whole numbers, so the order shows in the result.
        val isTall = height - newHeight > maxOf(0, (width - newWidth) * 2)
        return if (isTall) stacked(rows).sampled(columns) else sampled(columns).stacked(rows)
    }

    private fun picked(columns: IntArray, rows: IntArray): Picture {
        val result = ByteArray(columns.size * rows.size * 3)
        var at = 0
        for (row in rows) {
            for (column in columns) {
                rgb.copyInto(
                    result, at, (row * width + column) * 3, (row * width + column) * 3 + 3,
                )
                at += 3
            }
        }
        return Picture(columns.size, rows.size, result)
    }

    private fun sampled(taps: Taps?): Picture {
        if (taps == null) return this
        val newWidth = taps.count.size
        val result = ByteArray(newWidth * height * 3)
        for (y in 0 until height) {
            for (x in 0 until newWidth) {
                val start = (y * width + taps.first[x]) * 3
                for (channel in 0 until 3) {
                    var sum = HALF
                    var at = start + channel
                    for (k in 0 until taps.count[x]) {
                        sum += (rgb[at].toInt() and 0xFF) * taps.weights[x * taps.most + k]
                        at += 3
                    }
                    result[(y * newWidth + x) * 3 + channel] = clipped(sum)
                }
            }
        }
        return Picture(newWidth, height, result)
    }

    private fun stacked(taps: Taps?): Picture {
        if (taps == null) return this
        val line = width * 3
        val newHeight = taps.count.size
        val result = ByteArray(newHeight * line)
        val sums = IntArray(line)
        for (y in 0 until newHeight) {
            sums.fill(HALF)
            for (k in 0 until taps.count[y]) {
                val weight = taps.weights[y * taps.most + k]
                val start = (taps.first[y] + k) * line
                for (i in 0 until line) sums[i] += (rgb[start + i].toInt() and 0xFF) * weight
            }
            for (i in 0 until line) result[y * line + i] = clipped(sums[i])
        }
        return Picture(width, newHeight, result)
    }

    companion object {
        /**
         * Returns the picture behind a bitmap's bytes (red, green, blue, alpha), on white where it
         * is transparent, as the training side shows it.
         */
        fun onWhite(width: Int, height: Int, rgba: ByteArray, premultiplied: Boolean): Picture {
            val rgb = ByteArray(width * height * 3)
            for (pixel in 0 until width * height) {
                val alpha = rgba[pixel * 4 + 3].toInt() and 0xFF
                for (channel in 0 until 3) {
                    val value = rgba[pixel * 4 + channel].toInt() and 0xFF
                    rgb[pixel * 3 + channel] = when {
                        alpha == 255 -> value
                        premultiplied -> min(255, value + 255 - alpha)
                        else -> over(value, alpha)
                    }.toByte()
                }
            }
            return Picture(width, height, rgb)
        }

        // Division by 255 as Pillow's alpha_composite does it.
        private fun over(value: Int, alpha: Int): Int {
            val sum = (value * alpha + 255 * (255 - alpha) + 128) shl 7
            return ((sum shr 8) + sum) shr 8 shr 7
        }
    }
}

private const val PRECISION_BITS = 22
private const val HALF = 1 shl (PRECISION_BITS - 1)

private fun clipped(sum: Int): Byte = max(0, min(255, sum shr PRECISION_BITS)).toByte()

private fun nearest(size: Int, newSize: Int, from: Float, to: Float): IntArray {
    val scale = (to - from).toDouble() / newSize
    var at = from + scale * 0.5
    return IntArray(newSize) { min(size - 1, at.toInt()).also { at += scale } }
}

/** Which neighbouring samples make each new one, and how much each of them counts. */
private class Taps(size: Int, from: Float, to: Float, newSize: Int, filter: String) {
    val first = IntArray(newSize)
    val count = IntArray(newSize)
    val most: Int
    val weights: IntArray

    init {
        val scale = (to - from).toDouble() / newSize
        // A filter as wide as what becomes one pixel: this is the antialiasing.
        val stretch = max(scale, 1.0)
        val support = (if (filter == "bicubic") 2.0 else 1.0) * stretch
        most = ceil(support).toInt() * 2 + 1
        weights = IntArray(newSize * most)
        val real = DoubleArray(most)
        for (x in 0 until newSize) {
            val center = from + (x + 0.5) * scale
            first[x] = max(0, (center - support + 0.5).toInt())
            count[x] = min(size, (center + support + 0.5).toInt()) - first[x]
            var sum = 0.0
            for (k in 0 until count[x]) {
                val distance = (k + first[x] - center + 0.5) * (1.0 / stretch)
                real[k] = if (filter == "bicubic") bicubic(distance) else bilinear(distance)
                sum += real[k]
            }
            for (k in 0 until count[x]) {
                val fixed = (if (sum != 0.0) real[k] / sum else real[k]) * (1 shl PRECISION_BITS)
                weights[x * most + k] = (if (fixed < 0) fixed - 0.5 else fixed + 0.5).toInt()
            }
        }
    }
}

private fun bilinear(distance: Double): Double = max(0.0, 1.0 - abs(distance))

// Keys's cubic convolution with a = -0.5, as Pillow has it.
private fun bicubic(distance: Double): Double {
    val a = -0.5
    val x = abs(distance)
    return when {
        x < 1.0 -> ((a + 2.0) * x - (a + 3.0)) * x * x + 1
        x < 2.0 -> (((x - 5) * x + 8) * x - 4) * a
        else -> 0.0
    }
}
