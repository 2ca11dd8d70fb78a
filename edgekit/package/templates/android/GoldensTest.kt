package @@PACKAGE@@

import android.content.Context
import android.os.Build
import android.os.PowerManager
import androidx.test.platform.app.InstrumentationRegistry
import java.io.File
import org.json.JSONArray
import org.json.JSONObject
import org.junit.After
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Assume.assumeTrue
import org.junit.Test

/**
 * Holds this library against the goldens on the device, and measures it there.
 *
 * Results go to `measurements.json` for `edgekit validate --measurements`; the README says how.
 */
class GoldensTest {
    private val instrumentation = InstrumentationRegistry.getInstrumentation()
    private val arguments = InstrumentationRegistry.getArguments()
    private val assets = instrumentation.context.assets
    private val context = instrumentation.targetContext
    private val classifier = Classifier(context.assets)
    private val check = SelfCheck(
        String(asset("goldens.json"), Charsets.UTF_8), asset("inputs.bin"), asset("outputs.bin"),
        classifier.contract, classifier::run, classifier::input,
    )

    @After
    fun close() {
        classifier.close()
        hasWorked = true
    }

    @Test
    fun goldens() {
        assertNull(check.problem { asset("images/$it") })
    }

    /** A flipped bit must not go unseen: the check above could otherwise pass for any model. */
    @Test
    fun goldensFindWrongOutputs() {
        val broken = SelfCheck(
            String(asset("goldens.json"), Charsets.UTF_8), asset("inputs.bin"),
            asset("outputs.bin"), classifier.contract,
            { tensor -> classifier.run(tensor).also { it[it.size - 1] = (it.last() + 64).toByte() } },
            classifier::input,
        )
        assertTrue(broken.tensorProblem().orEmpty().startsWith("tensor level"))
    }

    @Test
    fun accuracy() {
        val folder = File(arguments.getString("pictures") ?: File(home(), "pictures").path)
        assumeTrue("no labelled pictures in $folder", folder.isDirectory)
        write(check.answers(folder), null)
    }

    @Test
    fun latency() {
        val isFresh = !hasWorked
        val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager
        val session = check.session(isFresh, warmUpSeconds = 0.5, seconds = 10.0, least = 200)
        session.put("battery_saver", power.isPowerSaveMode)
        if (Build.VERSION.SDK_INT >= 29) {
            THERMAL.getOrNull(power.currentThermalStatus)?.let { session.put("thermal_status", it) }
        }
        write(null, session)
    }

    private fun write(answers: JSONArray?, session: JSONObject?) {
        val file = File(home(), "measurements.json")
        val earlier = if (file.exists()) file.readText() else null
        val text = check.measurements(about(), answers, session, earlier)
        file.writeText(text)
        // Gradle pulls this folder from the device; without Gradle there is none.
        arguments.getString("additionalTestOutputDir")?.let {
            File(it, "measurements.json").writeText(text)
        }
    }

    private fun about(): Map<String, Any> = mapOf(
        "by" to "self-check of @@NAME@@",
        "device" to "${Build.MANUFACTURER} ${Build.MODEL} (${Build.HARDWARE})",
        "os" to "Android ${Build.VERSION.RELEASE} (API ${Build.VERSION.SDK_INT})",
        "cores" to Runtime.getRuntime().availableProcessors(),
        "runtime" to Classifier.RUNTIME,
        "runtime_version" to Classifier.runtimeVersion,
        "threads" to Classifier.THREADS,
        "delegate" to Classifier.DELEGATE,
        "emulated" to (Build.HARDWARE in listOf("goldfish", "ranchu", "cutf_cvm")),
    )

    private fun home(): File = checkNotNull(context.getExternalFilesDir(null)) { "no storage" }

    private fun asset(name: String): ByteArray =
        assets.open("@@NAME@@/goldens/$name").use { it.readBytes() }

    companion object {
        // Whether another test ran in this process; then its latency is not that of a fresh one.
        private var hasWorked = false

        // In the order of PowerManager.THERMAL_STATUS_NONE and so on.
        private val THERMAL =
            listOf("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
    }
}
