"""The device's codecs as TensorFlow computations, the same to the bit, and the aggregator that uses them.

`aggregator` is what others use. docs/codec.md gives the format, and says where TensorFlow's optimiser of graphs, which
rewrites sums and quotients with constants, has to be kept from changing bits.
"""
