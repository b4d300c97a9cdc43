"""CPU time of the codecs in the simulation, beside that of the device's encoder, by turns: docs/codec.md has the table.

python -m benchmarks.simulated_codec
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from device_runtime.codec import UpdateHeader, codec_named, write_update
from tff_sim.encoding.sums import sum_of

_SIZES = {"2NN": 199_210, "CNN": 1_663_370}
_CODECS = ("f16", "q8", "q4", "q2", "q1")
_TURNS = 15


def main() -> None:
    for model, size in _SIZES.items():
        for codec in _CODECS:
            times = measure(codec, size)
            print(f"{model} {codec}: " + ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in times.items()))


def measure(codec: str, size: int) -> dict[str, float]:
    """Median seconds of CPU time, of all threads together, by what was done."""
    delta = np.random.default_rng(0).standard_normal(size).astype(np.float32) * np.float32(1e-3)
    total = sum_of(codec, size)
    round_number, seed = tf.constant(3, tf.int64), tf.constant(12345, tf.int64)
    weight, examples = tf.constant(600.0), tf.constant(600.0, tf.float64)
    encode, add, mean = (tf.function(part, autograph=False) for part in (total.encode, total.add, total.mean))
    values, zero = tf.constant(delta), total.zero()
    encoded, _ = encode(values, round_number, seed)
    header = UpdateHeader(codec_named(codec).number, "0" * 32, 3, 600, 12345)
    parts: dict[str, Callable[[], object]] = {
        "encode": lambda: encode(values, round_number, seed)[1].numpy(),
        "device": lambda: write_update(io.BytesIO(), header, [delta]),
        "add": lambda: tf.nest.flatten(add(zero, encoded, seed, weight))[-1].numpy(),
        "mean": lambda: mean(zero, examples, round_number).numpy(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(_TURNS + 1):  # the first one traces
        for name, run in parts.items():
            started = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
