package @@PACKAGE@@

import android.content.ContentResolver
import android.content.res.AssetManager
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.net.Uri
import java.io.Closeable
import java.io.File
import java.io.FileInputStream
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel

/**
 * Says what is on a picture.
 *
 * One instance runs one picture at a time; calls from several threads wait for each other. Load and
 * close it off the main thread.
 *
 * @throws IOException if the model in the assets is damaged or not the one that was judged.
 */
class Classifier(assets: AssetManager, threads: Int = THREADS) : Closeable {
    val contract = Contract(text(assets, "preprocess.json"), text(assets, "labels.txt"))
    private val engine = Engine(verified(assets, contract), contract, threads)

    /** Returns what is on a picture file: JPEG, PNG, WebP or BMP, turned upright by its EXIF. */
    fun classify(file: ByteArray): Prediction = contract.prediction(run(input(file)))

    /** Returns what is on a picture file. */
    fun classify(file: File): Prediction = classify(file.readBytes())

    /** Returns what is on a picture that another app shares. */
    fun classify(resolver: ContentResolver, uri: Uri): Prediction {
        val stream = resolver.openInputStream(uri) ?: throw IOException("$uri cannot be opened")
        return classify(stream.use { it.readBytes() })
    }

    /**
     * Returns what is on a bitmap.
     *
     * [orientation] is EXIF's, for pixels as a sensor gives them: 6 if the picture must be turned
     * by 90 degrees clockwise to be upright, 3 by 180, 8 by 270.
     */
    fun classify(bitmap: Bitmap, orientation: Int = 1): Prediction {
        val picture = pixels(bitmap).upright(orientation)
        return contract.prediction(run(contract.tensor(picture.fit(contract.preprocess))))
    }

    /** Returns the input tensor that a picture file becomes. */
    fun input(file: ByteArray): ByteArray {
        val options = BitmapFactory.Options()
        options.inJustDecodeBounds = true
        BitmapFactory.decodeByteArray(file, 0, file.size, options)
        if (options.outWidth < 1 || options.outHeight < 1) throw IOException("not a picture")
        if (options.outWidth.toLong() * options.outHeight > MOST_PIXELS) {
            throw IOException("more than $MOST_PIXELS pixels")
        }
        val isJpeg = options.outMimeType == "image/jpeg"
        val sample = if (isJpeg) {
            contract.preprocess.sampleSize(options.outWidth, options.outHeight)
        } else {
            1
        }
        if ((options.outWidth / sample).toLong() * (options.outHeight / sample) > MOST_DECODED) {
            throw IOException("more than $MOST_DECODED pixels to decode")
        }
        options.inJustDecodeBounds = false
        options.inScaled = false
        options.inPremultiplied = false
        options.inPreferredConfig = Bitmap.Config.ARGB_8888
        options.inSampleSize = sample
        val bitmap = BitmapFactory.decodeByteArray(file, 0, file.size, options)
            ?: throw IOException("not a picture, or damaged")
        val picture = pixels(bitmap)
        bitmap.recycle()
        val orientation = exifOrientation(file)
        val upright = picture.upright(orientation)
        if (sample == 1) return contract.tensor(upright.fit(contract.preprocess))
        val turned = orientation >= 5
        val width = if (turned) options.outHeight else options.outWidth
        val height = if (turned) options.outWidth else options.outHeight
        return contract.tensor(upright.fit(contract.preprocess, width, height))
    }

    /** Returns the raw output of the network for an input tensor, both little-endian. */
    @Synchronized
    fun run(input: ByteArray): ByteArray = engine.run(input)

    @Synchronized
    override fun close() = engine.close()

    companion object {
        /** CPU threads with which the file was judged. */
        const val THREADS = @@THREADS@@

        /** What runs the model. */
        const val RUNTIME = Engine.RUNTIME
        const val DELEGATE = Engine.DELEGATE
        val runtimeVersion: String get() = Engine.version
        private const val FOLDER = "@@NAME@@"
        private const val MOST_PIXELS = @@MOST_PIXELS@@L
        private const val MOST_DECODED = @@MOST_DECODED@@L

        private fun text(assets: AssetManager, name: String): String =
            assets.open("$FOLDER/$name").use { String(it.readBytes(), Charsets.UTF_8) }

        private fun verified(assets: AssetManager, contract: Contract): ByteBuffer {
            val model = assets.openFd("$FOLDER/${contract.model}").use { asset ->
                FileInputStream(asset.fileDescriptor).use { stream ->
                    stream.channel.map(
                        FileChannel.MapMode.READ_ONLY, asset.startOffset, asset.declaredLength,
                    )
                }
            }
            contract.refuseOther(model)
            return model
        }

        private fun pixels(bitmap: Bitmap): Picture {
            val isPlain = bitmap.config == Bitmap.Config.ARGB_8888
            val readable = if (isPlain) bitmap else bitmap.copy(Bitmap.Config.ARGB_8888, false)
            val width = readable.width
            val buffer = ByteBuffer.allocate(readable.rowBytes * readable.height)
            // Unlike getPixels, this neither converts colours nor undoes the alpha.
            readable.copyPixelsToBuffer(buffer)
            val bytes = buffer.array()
            val line = width * 4
            val rgba = if (readable.rowBytes == line) bytes else ByteArray(line * readable.height).also {
                for (y in 0 until readable.height) {
                    bytes.copyInto(it, y * line, y * readable.rowBytes, y * readable.rowBytes + line)
                }
            }
            val picture = Picture.onWhite(width, readable.height, rgba, readable.isPremultiplied)
            if (readable !== bitmap) readable.recycle()
            return picture
        }
    }
}
