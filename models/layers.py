"""Layers that the paper's models need and Keras 2.14 does not have; ``.keras`` files hold them like its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


@tf.keras.saving.register_keras_serializable("pocketfed")
class LocalResponseNormalization(tf.keras.layers.Layer):
    """x / (bias + alpha·Σ x²)^beta, the sum over the channels at most `depth_radius` away.

    Krizhevsky et al. 2012, section 3.3. x float32 [B, height, width, channels]; the same shape out; no weights.
    """

    def __init__(
        self, depth_radius: int = 5, bias: float = 1.0, alpha: float = 1.0, beta: float = 0.5, **options: Any
    ) -> None:
        super().__init__(**options)
        self.depth_radius, self.bias, self.alpha, self.beta = depth_radius, bias, alpha, beta

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.local_response_normalization(inputs, self.depth_radius, self.bias, self.alpha, self.beta)

    def get_config(self) -> dict[str, Any]:
        own = {"depth_radius": self.depth_radius, "bias": self.bias, "alpha": self.alpha, "beta": self.beta}
        return {**super().get_config(), **own}


@tf.keras.saving.register_keras_serializable("pocketfed")
class PeepholeLSTMCell(tf.keras.layers.Layer):
    """One step of an LSTM whose gates also see the cell state; for `tf.keras.layers.RNN`.

    Gers, Schraudolph and Schmidhuber 2002, with diagonal peepholes:

        i = σ(x·W_i + h·U_i + b_i + p_i∘c)      c' = f∘c + i∘tanh(x·W_c + h·U_c + b_c)
        f = σ(x·W_f + h·U_f + b_f + p_f∘c)      h' = o∘tanh(c')
        o = σ(x·W_o + h·U_o + b_o + p_o∘c')

    Its weights are Keras's of an LSTM, gates in the order i, f, c, o, and the three peepholes: kernel
    [inputs, 4·units], recurrent_kernel [units, 4·units], bias [4·units] (at first 1 at the forget gate), and three
    times [units].
    """

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = units
        self.state_size = [units, units]
        self.output_size = units

    def build(self, input_shape: Any) -> None:
        units = self.units
        self.kernel = self.add_weight("kernel", (input_shape[-1], 4 * units), initializer="glorot_uniform")
        self.recurrent_kernel = self.add_weight("recurrent_kernel", (units, 4 * units), initializer="orthogonal")
        self.bias = self.add_weight("bias", (4 * units,), initializer=_forget_bias)
        self.input_peephole, self.forget_peephole, self.output_peephole = (
            self.add_weight(f"{gate}_peephole", (units,), initializer="glorot_uniform")
            for gate in ("input", "forget", "output")
        )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, states: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Inputs [B, inputs] and the states h and c, [B, units] each, to h' and [h', c']."""
        h, c = states
        gates = tf.matmul(inputs, self.kernel) + tf.matmul(h, self.recurrent_kernel) + self.bias
        i, f, new, o = tf.split(gates, 4, axis=1)
        c_next = tf.sigmoid(f + self.forget_peephole * c) * c + tf.sigmoid(i + self.input_peephole * c) * tf.tanh(new)
        h_next = tf.sigmoid(o + self.output_peephole * c_next) * tf.tanh(c_next)
        return h_next, [h_next, c_next]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}

    def get_build_config(self) -> None:
        """None: a loaded cell is built by the layer around it, under whose name its weights then stand."""


def _forget_bias(shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
    """Ones at the forget gate and zeros elsewhere (Jozefowicz et al. 2015), as in Keras."""
    units = shape[0] // 4
    return tf.concat([tf.zeros(units, dtype), tf.ones(units, dtype), tf.zeros(2 * units, dtype)], axis=0)
