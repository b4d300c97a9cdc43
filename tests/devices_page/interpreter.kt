/* What docs/devices.md uses of LiteRT's Interpreter, with tflite-runtime behind it: `peer.py` runs the signatures. */

package org.tensorflow.lite

import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File
import java.nio.FloatBuffer

class Interpreter(file: File, @Suppress("UNUSED_PARAMETER") options: Options) : AutoCloseable {
    class Options {
        fun setNumThreads(@Suppress("UNUSED_PARAMETER") count: Int) = this
    }

    private val peer = ProcessBuilder(System.getenv("PEER").split("\n") + file.path)
        .redirectError(ProcessBuilder.Redirect.INHERIT).start()
    private val to = DataOutputStream(peer.outputStream.buffered())
    private val from = DataInputStream(peer.inputStream.buffered())

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, signature: String) {
        to.writeUTF(signature)
        to.writeInt(inputs.size)
        for ((name, value) in inputs) {
            val values = elements(value)
            val shape = shape(value)
            to.writeUTF(name)
            to.writeUTF(if (values[0] is Int) "int32" else "float32")
            to.writeInt(shape.size)
            shape.forEach(to::writeInt)
            values.forEach { if (it is Int) to.writeInt(it) else to.writeFloat(it as Float) }
        }
        to.flush()
        val results = List(from.readInt()) { from.readUTF() to FloatArray(from.readInt()) { from.readFloat() } }.toMap()
        for ((name, buffer) in outputs) (buffer as FloatBuffer).put(results.getValue(name))
    }

    override fun close() {
        to.close()
        check(peer.waitFor() == 0)
    }

    /** As LiteRT reads it: arrays in arrays have a dimension each, and a boxed number none. */
    private fun shape(value: Any): List<Int> = when (value) {
        is Array<*> -> listOf(value.size) + shape(value[0]!!)
        is FloatArray -> listOf(value.size)
        is IntArray -> listOf(value.size)
        is Float, is Int -> listOf()
        else -> throw IllegalArgumentException("DataType error: cannot resolve DataType of ${value.javaClass.name}")
    }

    private fun elements(value: Any): List<Any> = when (value) {
        is Array<*> -> value.flatMap { elements(it!!) }
        is FloatArray -> value.asList()
        is IntArray -> value.asList()
        else -> listOf(value)
    }
}
