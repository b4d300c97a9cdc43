/* An app's round with what docs/devices.md gives: reads a file of numbers, writes the update, tells of the rest. */

import java.io.DataInputStream
import java.io.File

/** The page's calls, one after the other: their answers. */
fun call(url: String, secret: String) {
    val server = Server(url, "phone-0", secret)
    val calls = listOf(
        { server.enrol("a-code") },
        { server.checkIn("digits_mlp", "LiteRT") },
        { server.configuration("the-token") },
        { server.report("the-token", byteArrayOf(1, -1, 0)) },
        { server.download("/v1/weights/latest") }
    )
    for (call in calls) call().let { println("${it.status} ${String(it.body)}") }
}

fun main(arguments: Array<String>) {
    if (arguments[0] == "call") return call(arguments[1], newSecret())
    val (artifact, input, output) = arguments
    val data = DataInputStream(File(input).inputStream().buffered())
    fun floats(count: Int) = FloatArray(count) { data.readFloat() }
    fun numbers() = IntArray(data.readInt()) { data.readInt() }

    val shapes = List(data.readInt()) { numbers() }
    val variables = List(data.readInt()) { numbers() }.map { (tensor, start, size, turned) ->
        Variable(tensor, start, size, turned == 1)
    }
    val weights = shapes.map { shape -> floats(shape.fold(1) { size, dimension -> size * dimension }) }
    val (examples, height, width, channels) = numbers()
    val x = Array(examples) { Array(height) { Array(width) { floats(channels) } } }
    val y = numbers()
    val modelId = ByteArray(16).also { data.readFully(it) }
    val (epochs, batchSize, seed, number) = numbers()
    val work = Work(epochs, if (batchSize == 0) null else batchSize, data.readFloat(), data.readFloat(), seed.toLong())

    val training = TrainingArtifact(File(artifact), shapes, variables)
    File(output).writeBytes(round(training, weights, x, y, work, modelId, number))
    println(training.evaluate(x, y).joinToString(" "))
    println(training.infer(x, examples, 10).joinToString(" "))
    training.close()
    println(epochOrder(100_000, (1L shl 53) - 1, 3).fold(7) { hash, index -> 31 * hash + index })
    val seeds = Philox((1L shl 53) - 1, Long.MAX_VALUE)
    println(List(5) { (seeds.next64() ushr 33).toInt() }.joinToString(" "))
}
