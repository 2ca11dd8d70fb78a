package @@PACKAGE@@

import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * Returns the EXIF orientation (1 to 8) of a JPEG, PNG or WebP file; 1 where it has none.
 *
 * BitmapFactory decodes the pixels as they are stored and leaves the turning to the app. Every read
 * is checked: a file is not trusted to be what its header says.
 */
fun exifOrientation(file: ByteArray): Int {
    val parts = runCatching { metadata(file) }.getOrDefault(emptyList())
    val fromExif = parts.firstNotNullOfOrNull { (kind, data) ->
        if (kind == "exif") runCatching { fromTiff(data) }.getOrNull() else null
    }
    val found = fromExif ?: parts.firstNotNullOfOrNull { (kind, data) ->
        if (kind == "xmp") fromXmp(data) else null
    }
    return if (found != null && found in 1..8) found else 1
}

private fun metadata(file: ByteArray): List<Pair<String, ByteArray>> = when {
    file.startsWith(0, "\u00FF\u00D8") -> inJpeg(file)
    file.startsWith(0, "\u0089PNG\r\n\u001A\n") -> inPng(file)
    file.startsWith(0, "RIFF") && file.startsWith(8, "WEBP") -> inWebp(file)
    else -> emptyList()
}

private fun inJpeg(file: ByteArray): List<Pair<String, ByteArray>> {
    val found = mutableListOf<Pair<String, ByteArray>>()
    var at = 2
    while (at + 4 <= file.size && file.byte(at) == 0xFF) {
        val marker = file.byte(at + 1)
        if (marker == 0xFF) {
            at += 1
            continue
        }
        if (marker == 0xDA || marker == 0xD9) break // the picture itself, or the end
        val length = file.byte(at + 2) * 256 + file.byte(at + 3)
        val end = at + 2 + length
        if (length < 2 || end > file.size) break
        if (marker == 0xE1 && file.startsWith(at + 4, EXIF_NAME)) {
            found += "exif" to file.copyOfRange(at + 4 + EXIF_NAME.length, end)
        }
        if (marker == 0xE1 && file.startsWith(at + 4, XMP_NAME)) {
            found += "xmp" to file.copyOfRange(at + 4 + XMP_NAME.length, end)
        }
        at = end
    }
    return found
}

private fun inPng(file: ByteArray): List<Pair<String, ByteArray>> {
    val found = mutableListOf<Pair<String, ByteArray>>()
    val buffer = ByteBuffer.wrap(file)
    var at = 8
    while (at + 12 <= file.size) {
        val length = buffer.getInt(at)
        if (length < 0 || length > file.size - at - 12) break
        val data = file.copyOfRange(at + 8, at + 8 + length)
        if (file.startsWith(at + 4, "eXIf")) found += "exif" to data
        if (file.startsWith(at + 4, "iTXt") && data.startsWith(0, PNG_XMP_NAME)) {
            found += "xmp" to data
        }
        at += 12 + length
    }
    return found
}

private fun inWebp(file: ByteArray): List<Pair<String, ByteArray>> {
    val found = mutableListOf<Pair<String, ByteArray>>()
    val buffer = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN)
    var at = 12
    while (at + 8 <= file.size) {
        val length = buffer.getInt(at + 4)
        if (length < 0 || length > file.size - at - 8) break
        val data = file.copyOfRange(at + 8, at + 8 + length)
        if (file.startsWith(at, "EXIF")) {
            val skipped = if (data.startsWith(0, EXIF_NAME)) EXIF_NAME.length else 0
            found += "exif" to data.copyOfRange(skipped, data.size)
        }
        if (file.startsWith(at, "XMP ")) found += "xmp" to data
        at += 8 + length + length % 2
    }
    return found
}

private fun fromTiff(data: ByteArray): Int? {
    val isLittle = data.startsWith(0, "II")
    val order = if (isLittle) ByteOrder.LITTLE_ENDIAN else ByteOrder.BIG_ENDIAN
    val buffer = ByteBuffer.wrap(data).order(order)
    if (buffer.getShort(2).toInt() != 42) return null
    val directory = buffer.getInt(4)
    val entries = buffer.getShort(directory).toInt() and 0xFFFF
    for (entry in 0 until entries) {
        val at = directory + 2 + entry * 12
        if (buffer.getShort(at).toInt() != ORIENTATION) continue
        return when (buffer.getShort(at + 2).toInt()) {
            3 -> buffer.getShort(at + 8).toInt() and 0xFFFF
            4 -> buffer.getInt(at + 8)
            else -> data.byte(at + 8)
        }
    }
    return null
}

private fun fromXmp(data: ByteArray): Int? =
    Regex("tiff:Orientation(?:=\"|>)([0-9])").find(String(data, Charsets.ISO_8859_1))
        ?.let { it.groupValues[1].toInt() }

private const val ORIENTATION = 0x0112
private const val EXIF_NAME = "Exif\u0000\u0000"
private const val XMP_NAME = "http://ns.adobe.com/xap/1.0/\u0000"
private const val PNG_XMP_NAME = "XML:com.adobe.xmp\u0000"

private fun ByteArray.byte(at: Int): Int = this[at].toInt() and 0xFF

private fun ByteArray.startsWith(at: Int, text: String): Boolean =
    at + text.length <= size && text.indices.all { byte(at + it) == text[it].code }
