package @@PACKAGE@@

import java.io.Closeable
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter
import org.tensorflow.lite.TensorFlowLite

/** Runs the file with LiteRT on the CPU, as it was judged. */
internal class Engine(model: ByteBuffer, private val contract: Contract, threads: Int) : Closeable {
    private val interpreter = Interpreter(
        model, Interpreter.Options().setNumThreads(threads).setUseXNNPACK(@@XNNPACK@@),
    )
    private val input = direct(contract.inputBytes)
    private val output = direct(contract.outputBytes)

    init {
        val takes = interpreter.getInputTensor(0).numBytes()
        val gives = interpreter.getOutputTensor(0).numBytes()
        if (takes != contract.inputBytes || gives != contract.outputBytes) {
            throw IOException("the model takes $takes bytes and gives $gives, which is not its contract")
        }
    }

    fun run(tensor: ByteArray): ByteArray {
        require(tensor.size == contract.inputBytes) {
            "${tensor.size} bytes, expected ${contract.inputBytes}"
        }
        input.clear()
        input.put(tensor)
        input.rewind()
        output.clear()
        interpreter.run(input, output)
        output.rewind()
        return ByteArray(contract.outputBytes).also { output.get(it) }
    }

    override fun close() = interpreter.close()

    companion object {
        const val RUNTIME = "LiteRT"
        const val DELEGATE = "@@DELEGATE@@"
        val version: String get() = TensorFlowLite.runtimeVersion()

        // All processors of Android are little-endian.
        private fun direct(bytes: Int) = ByteBuffer.allocateDirect(bytes).order(ByteOrder.LITTLE_ENDIAN)
    }
}
