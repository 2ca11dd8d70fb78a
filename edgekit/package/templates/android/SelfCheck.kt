package @@PACKAGE@@

import java.io.File
import java.security.MessageDigest
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import kotlin.math.abs
import org.json.JSONArray
import org.json.JSONObject

/**
 * Holds an app against the goldens: inputs with the answers of the file when it was judged.
 *
 * [run] is the network, from tensor to raw output; [prepare] is everything the app does before it,
 * from a picture file to the tensor.
 */
class SelfCheck(
    goldensJson: String,
    private val inputs: ByteArray,
    private val outputs: ByteArray,
    private val contract: Contract,
    private val run: (ByteArray) -> ByteArray,
    private val prepare: (ByteArray) -> ByteArray,
) {
    private val root = JSONObject(goldensJson)
    private val goldens = root.getJSONArray("goldens").let { list ->
        List(list.length()) { list.getJSONObject(it) }
    }

    /** Returns what is wrong, in words that say where to look; null if all is well. */
    fun problem(picture: (String) -> ByteArray): String? =
        goldensProblem() ?: labelProblem() ?: thresholdProblem() ?: tensorProblem()
            ?: pictureProblem(picture)

    /** Goldens: there are some, and they allow no more difference than was packed. */
    fun goldensProblem(): String? = when {
        goldens.isEmpty() ->
            "goldens: goldens.json has none, so nothing shows what the model answers: copy it again"
        !(root.getDouble("tolerance_steps") <= MOST_STEPS) ||
            !(root.getDouble("tolerance_share") <= MOST_SHARE) ->
            "goldens: goldens.json allows other differences than were packed: copy it again"
        else -> null
    }

    /** Labels: the app shows the names that the file was judged with, in the same order. */
    fun labelProblem(): String? {
        val wanted = root.getJSONArray("labels").let { list -> List(list.length(), list::getString) }
        if (contract.labels == wanted) return null
        val line = contract.labels.zip(wanted).indexOfFirst { it.first != it.second }
        val what = if (line < 0) {
            "${contract.labels.size} lines, expected ${wanted.size}"
        } else {
            "line ${line + 1} is '${contract.labels[line]}', expected '${wanted[line]}'"
        }
        return "labels: labels.txt is not the one that was judged: $what"
    }

    /** Threshold: of the judged outputs, those count that did when the file was judged. */
    fun thresholdProblem(): String? {
        val wrong = goldens.filter { !it.isNull("accepted") }.filter { golden ->
            val counts = contract.prediction(slice(outputs, golden, "output")).isAccepted
            counts != golden.getBoolean("accepted")
        }
        if (wrong.isEmpty()) return null
        return "threshold: ${wrong.size} of ${goldens.size} known outputs count that must not, or " +
            "do not and must (${shown(wrong.map { it.getString("name") })}): preprocess.json has " +
            "another score_threshold than was judged: copy it again"
    }

    /** Tensor level: the exact input gives the judged output, within the tolerance of kernels. */
    fun tensorProblem(): String? {
        val wrong = goldens.mapNotNull { golden ->
            val wanted = slice(outputs, golden, "output")
            val got = run(slice(inputs, golden, "input"))
            if (near(wanted, got)) null else golden.getString("name")
        }
        if (wrong.isEmpty()) return null
        return "tensor level: ${wrong.size} of ${goldens.size} goldens give other outputs " +
            "(${shown(wrong)}): the model file is damaged or another one, or the runtime's kernels " +
            "compute something else"
    }

    /** Picture level: the app's own preprocessing of the picture gives the judged answer. */
    fun pictureProblem(picture: (String) -> ByteArray): String? {
        val pictured = goldens.filter { !it.isNull("picture") }
        if (pictured.isEmpty()) return null
        val wrong = mutableListOf<String>()
        var difference = 0.0
        for (golden in pictured) {
            val tensor = prepare(picture(golden.getString("picture")))
            difference += contract.pixelDifference(tensor, slice(inputs, golden, "input"))
            val answer = contract.prediction(run(tensor)).index
            val wanted = golden.getInt("answer")
            if (answer != wanted) {
                wrong += "${golden.getString("name")}: ${name(answer)}, expected ${name(wanted)}"
            }
        }
        difference /= pictured.size
        if (wrong.isEmpty() && difference <= MOST_DIFFERENCE) return null
        val pixels = "%.1f".format(Locale.ROOT, difference)
        return "picture level: ${wrong.size} of ${pictured.size} pictures get another answer " +
            "(${shown(wrong)}) and pixels are $pixels of 255 apart on average, although the same " +
            "tensors give the judged outputs: look at the app's decoding, EXIF rotation, crop, " +
            "resize, channel order and normalization"
    }

    /** Returns the answers to all pictures `folder/<class>/<file>`, for `edgekit validate`. */
    fun answers(folder: File): JSONArray {
        val result = JSONArray()
        val classes = folder.listFiles { file -> file.isDirectory }.orEmpty().sortedBy { it.name }
        for (file in classes.flatMap { it.listFiles().orEmpty().sortedBy { f -> f.name } }) {
            val bytes = file.readBytes()
            val said = contract.prediction(run(prepare(bytes)))
            result.put(
                JSONObject()
                    .put("sha256", sha256(bytes))
                    .put("answer", said.label ?: JSONObject.NULL)
                    .put("score", said.score.toDouble())
                    .put("outputs", JSONArray(said.outputs.map { it.toDouble() })),
            )
        }
        return result
    }

    /**
     * Returns one session of single-image latency, for `edgekit validate`.
     *
     * [fresh] says that this process was started for it alone and has run nothing before. A call
     * that is too short for the clock is timed in batches, and a sample is the mean of one.
     */
    fun session(fresh: Boolean, warmUpSeconds: Double, seconds: Double, least: Int): JSONObject {
        val input = slice(inputs, goldens.first(), "input")
        var warmUps = 0
        val start = System.nanoTime()
        while (warmUps < 5 || elapsed(start) < warmUpSeconds * 1000) {
            run(input)
            warmUps++
        }
        val step = clockStep(System::nanoTime)
        fun timed(calls: Int): Long {
            val begin = System.nanoTime()
            repeat(calls) { run(input) }
            return System.nanoTime() - begin
        }
        val calls = callsPerSample(step) { count ->
            warmUps += count
            timed(count)
        }
        val samples = JSONArray()
        val first = System.nanoTime()
        while (samples.length() < least || elapsed(first) < seconds * 1000) {
            samples.put(timed(calls) / 1e6 / calls)
        }
        return JSONObject()
            .put("samples_ms", samples)
            .put("fresh_process", fresh)
            .put("warmup_runs", warmUps)
            .put("clock_step_ms", step / 1e6)
            .put("calls_per_sample", calls)
    }

    /**
     * Returns the measurements as `edgekit validate --measurements` reads them.
     *
     * [about] names by, device, os, cores, runtime, runtime_version, threads and more of that
     * format. Latency sessions of [earlier] measurements of the same file are kept.
     */
    fun measurements(
        about: Map<String, Any>, answers: JSONArray?, session: JSONObject?, earlier: String?,
    ): String {
        val result = JSONObject().put("edgekit_measurements", 1).put("sha256", contract.sha256)
        val clock = SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT)
        clock.timeZone = TimeZone.getTimeZone("UTC")
        result.put("at", clock.format(Date()))
        for ((key, value) in about) result.put(key, value)
        val before = earlier?.let { runCatching { JSONObject(it) }.getOrNull() }
            ?.takeIf { it.optString("sha256") == contract.sha256 }
        val sessions = before?.optJSONArray("latency") ?: JSONArray()
        if (session != null) sessions.put(session)
        if (sessions.length() > 0) result.put("latency", sessions)
        val said = answers?.takeIf { it.length() > 0 } ?: before?.optJSONArray("accuracy")
        if (said != null) result.put("accuracy", said)
        return result.toString(1)
    }

    private fun near(wanted: ByteArray, got: ByteArray): Boolean {
        if (wanted.size != got.size) return false
        val expected = contract.values(wanted, contract.outputType)
        val found = contract.values(got, contract.outputType)
        val most = if (contract.outputType == "float32") {
            expected.maxOf { abs(it) } * root.getDouble("tolerance_share")
        } else {
            root.getDouble("tolerance_steps")
        }
        // Written so that a NaN is not near.
        return expected.indices.all { abs(expected[it] - found[it]) <= most }
    }

    private fun slice(all: ByteArray, golden: JSONObject, which: String): ByteArray {
        val start = golden.getInt("${which}_offset")
        return all.copyOfRange(start, start + golden.getInt("${which}_bytes"))
    }

    private fun name(index: Int): String = contract.labels.getOrNull(index)?.let { "'$it'" } ?: "none"

    private fun shown(list: List<String>): String =
        list.take(3).joinToString("; ") + if (list.size > 3) "; ..." else ""

    private fun elapsed(since: Long): Double = (System.nanoTime() - since) / 1e6

    companion object {
        // Mean over the goldens. Measured on 60 photographs at 96, 160 and 224 px: a resize without
        // antialiasing 2.8, 1.4 and 0.8, single pixels 3.6, 2.4 and 2.0, BGR 13, no rotation 44; a
        // JPEG that is shrunk while it is decoded, 0.2.
        const val MOST_DIFFERENCE = 1.0
        // The tolerances that this package was made with.
        const val MOST_STEPS = @@MOST_STEPS@@
        const val MOST_SHARE = @@MOST_SHARE@@

        // A sample is wrong by up to one step of the clock, here by at most half a percent.
        const val SAMPLE_STEPS = 200

        // Whatever the clock.
        const val LONGEST_SAMPLE_NANOSECONDS = 250_000_000L

        /** Returns the least by which a clock moves from one reading to the next. */
        fun clockStep(clock: () -> Long): Long {
            var step = Long.MAX_VALUE
            var changes = 0
            var readings = 0
            var last = clock()
            while (changes < 50 && readings < 10_000_000) {
                val now = clock()
                if (now > last) {
                    step = minOf(step, now - last)
                    changes++
                }
                readings++
                last = now
            }
            check(changes > 0) { "the clock of this device stands still" }
            return step
        }

        /**
         * Returns how many calls span enough steps of the clock; [timed] makes so many.
         *
         * Of some batches the shortest decides: one that is interrupted must not end the search.
         */
        fun callsPerSample(step: Long, timed: (Int) -> Long): Int {
            var calls = 1
            while (true) {
                val shortest = (1..5).minOf { timed(calls) }
                if (shortest >= SAMPLE_STEPS * step || 2 * shortest > LONGEST_SAMPLE_NANOSECONDS) {
                    return calls
                }
                calls *= 2
            }
        }

        fun sha256(bytes: ByteArray): String =
            MessageDigest.getInstance("SHA-256").digest(bytes)
                .joinToString("") { "%02x".format(it.toInt() and 0xFF) }
    }
}
