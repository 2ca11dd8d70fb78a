package @@PACKAGE@@

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.Closeable
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** Runs the file with ONNX Runtime on the CPU, as it was judged. */
internal class Engine(model: ByteBuffer, private val contract: Contract, threads: Int) : Closeable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession
    private val inputName: String
    private val shape = longArrayOf(
        1, contract.preprocess.height.toLong(), contract.preprocess.width.toLong(), 3,
    )

    init {
        val options = OrtSession.SessionOptions()
        options.setIntraOpNumThreads(threads)
        // Without it, emulators on x86 without VNNI multiply in 16 bits, which overflow.
        options.addConfigEntry("session.x64quantprecision", "1")
        session = environment.createSession(model, options)
        inputName = session.inputNames.first()
    }

    fun run(tensor: ByteArray): ByteArray {
        require(tensor.size == contract.inputBytes) {
            "${tensor.size} bytes, expected ${contract.inputBytes}"
        }
        val values = ByteBuffer.wrap(tensor).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
        OnnxTensor.createTensor(environment, values, shape).use { input ->
            session.run(mapOf(inputName to input)).use { result ->
                val outputs = (result.get(0) as OnnxTensor).floatBuffer
                val raw = ByteBuffer.allocate(contract.outputBytes).order(ByteOrder.LITTLE_ENDIAN)
                raw.asFloatBuffer().put(outputs)
                return raw.array()
            }
        }
    }

    override fun close() = session.close()

    companion object {
        const val RUNTIME = "ONNX Runtime"
        const val DELEGATE = "@@DELEGATE@@"
        val version: String get() = OrtEnvironment.getEnvironment().version
    }
}
