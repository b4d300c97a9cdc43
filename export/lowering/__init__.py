"""How each TensorFlow operator becomes TFLite builtins, forward and backward; one module a family."""

from export.lowering import (
    convolution,
    elementwise,
    losses,
    matrix,
    normalization,
    pooling,
    reduction,
    resizing,
    shaping,
)
from export.lowering.call import LOWERINGS, Call, Gradient, Lowered, emit
from export.lowering.products import OuterProducts

__all__ = [
    "LOWERINGS", "Call", "Gradient", "Lowered", "OuterProducts", "convolution", "elementwise", "emit", "losses",
    "matrix", "normalization", "pooling", "reduction", "resizing", "shaping",
]  # fmt: skip
