package @@PACKAGE@@

import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import kotlin.math.abs
import kotlin.math.exp
import kotlin.math.min
import org.json.JSONObject

/** How a picture becomes an input of the network; the same rules made the training data. */
class Preprocess internal constructor(json: JSONObject) {
    val height: Int = json.getInt("height_px")
    val width: Int = json.getInt("width_px")
    val resize: String = json.getString("resize")
    val crop: String = json.getString("crop")

    /** What lies around a letterboxed picture: red, green and blue, or three times the luma. */
    val fill: ByteArray = json.getJSONArray("fill").let { levels ->
        ByteArray(3) { levels.getInt(it).toByte() }
    }
    val channels: String = json.getString("channels")

    /** Channels of the tensor: one for a network that sees luma, the first of a pixel's three. */
    internal val inputChannels: Int = if (channels == "grey") 1 else 3

    /**
     * Returns by how much a JPEG of this size may be shrunk while it is decoded, as
     * `BitmapFactory.Options.inSampleSize`; the filter behind it still decides every pixel.
     */
    fun sampleSize(jpegWidth: Int, jpegHeight: Int): Int {
        if (resize == "nearest") return 1 // picks single pixels, which a shrunk picture lacks
        val least = 2 * maxOf(width, height)
        val scale = min(jpegWidth / least, jpegHeight / least)
        return intArrayOf(8, 4, 2).firstOrNull { scale >= it } ?: 1
    }
}

/** What the network says about one picture. */
class Prediction(
    /** Name of the class with the highest score; null if that output is of no class. */
    val label: String?,
    /** Index of the highest output, the lowest of equal ones. */
    val index: Int,
    /** The highest output, as the network gives it. */
    val score: Float,
    /** Share of that class among all, from 0 to 1. Not calibrated. */
    val probability: Float,
    /** All outputs. */
    val outputs: FloatArray,
    /**
     * Whether the answer counts: the score is above [Contract.scoreThreshold]. Every answer does
     * where the package was made without pictures of no class.
     */
    val isAccepted: Boolean,
)

/** What the judged file takes and gives. Read from `preprocess.json` and `labels.txt`. */
class Contract(json: String, labelLines: String) {
    private val root = JSONObject(json)
    private val input = root.getJSONObject("input")
    private val output = root.getJSONObject("output")
    private val isProbability = root.getBoolean("outputs_are_probabilities")
    private val scale = output.optDouble("scale", 1.0)
    private val zeroPoint = output.optInt("zero_point", 0)

    /** File name of the model, and SHA-256 of its bytes. */
    val model: String = root.getString("model")
    val sha256: String = root.getString("sha256")
    val preprocess = Preprocess(root.getJSONObject("preprocess"))
    val labels: List<String> = labelLines.removeSuffix("\n").split("\n")
    val inputType: String = input.getString("dtype")
    val outputType: String = output.getString("dtype")

    /** Few pictures of no class have a score above this; null if nobody knows such a score. */
    val scoreThreshold: Double? =
        if (root.isNull("score_threshold")) null else root.getDouble("score_threshold")
    val outputs: Int = output.getInt("classes")
    val inputBytes: Int =
        preprocess.height * preprocess.width * preprocess.inputChannels * bytesOf(inputType)
    val outputBytes: Int = outputs * bytesOf(outputType)

    // Value of the tensor for every pixel value 0..255 and channel.
    private val codes: Array<ByteArray>

    init {
        val table = input.getJSONArray("codes")
        val bytes = bytesOf(inputType)
        codes = Array(256 * 3) { i ->
            val value = table.getJSONArray(i / 3).getDouble(i % 3)
            if (bytes == 1) {
                byteArrayOf(value.toInt().toByte())
            } else {
                val four = ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN)
                four.putFloat(value.toFloat()).array()
            }
        }
    }

    /** Throws an IOException unless these are the bytes of the file that was judged. */
    fun refuseOther(model: ByteBuffer) {
        val digest = MessageDigest.getInstance("SHA-256")
        digest.update(model.duplicate())
        val found = digest.digest().joinToString("") { "%02x".format(it.toInt() and 0xFF) }
        if (found != sha256) {
            throw IOException(
                "${this.model} has SHA-256 $found, not $sha256: " +
                    "the model file is damaged or not the one that was judged",
            )
        }
    }

    /** Returns the input tensor (little-endian) of pixels that `Picture.fit` made. */
    fun tensor(pixels: ByteArray): ByteArray {
        val bytes = bytesOf(inputType)
        val channels = preprocess.inputChannels
        val result = ByteArray(pixels.size / 3 * channels * bytes)
        for (i in 0 until pixels.size / 3 * channels) {
            val pixel = pixels[i / channels * 3 + i % channels].toInt() and 0xFF
            codes[pixel * 3 + i % channels].copyInto(result, i * bytes)
        }
        return result
    }

    /** Returns how far two input tensors lie apart, in steps of a pixel value, on average. */
    fun pixelDifference(one: ByteArray, other: ByteArray): Double {
        val a = values(one, inputType)
        val b = values(other, inputType)
        val steps = DoubleArray(3) { c ->
            (values(codes[255 * 3 + c], inputType)[0] - values(codes[c], inputType)[0]) / 255.0
        }
        val channels = preprocess.inputChannels
        return a.indices.sumOf { i -> abs((a[i] - b[i]) / steps[i % channels]) } / a.size
    }

    /** Returns the numbers of a little-endian tensor. */
    fun values(tensor: ByteArray, type: String): FloatArray {
        if (type == "float32") {
            val buffer = ByteBuffer.wrap(tensor).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
            return FloatArray(buffer.remaining()).also { buffer.get(it) }
        }
        return FloatArray(tensor.size) {
            (if (type == "uint8") tensor[it].toInt() and 0xFF else tensor[it].toInt()).toFloat()
        }
    }

    /** Returns what a raw output means. */
    fun prediction(raw: ByteArray): Prediction {
        val real = values(raw, outputType)
        if (outputType != "float32") {
            for (i in real.indices) real[i] = ((real[i] - zeroPoint) * scale).toFloat()
        }
        val best = real.indices.maxByOrNull { real[it] } ?: 0
        val sum = real.sumOf { exp((it - real[best]).toDouble()) }
        val share = if (isProbability) real[best] else (1 / sum).toFloat()
        val counts = scoreThreshold == null || real[best] > scoreThreshold
        return Prediction(labels.getOrNull(best), best, real[best], share, real, counts)
    }
}

internal fun bytesOf(type: String): Int = if (type == "float32") 4 else 1
