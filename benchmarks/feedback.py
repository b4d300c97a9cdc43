"""Federated averaging of clients that return, with and without the feedback of their errors.

Error feedback (Seide et al. 2014; Karimireddy et al. 2019): a client adds to its update what the encoding of its last
one left out. In theory an unbiased encoding has to be scaled down for it, so that it errs by less than it is given.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks.deltas import Federation
from benchmarks.quantisers import lossy, top_k
from device_runtime.tensors import FloatArray

_SHRINKAGE = {1: 1 / 1.8, 2: 1 / 1.2}  # one over one plus the error of a single update
Encoding = Callable[[FloatArray, int, int], FloatArray]

SCHEMES = (
    "f32",
    "q2",
    "q1",
    "q2, with feedback",
    "q1, with feedback",
    "q2, scaled down, with feedback",
    "q1, scaled down, with feedback",
    "top-k of q2's size",
    "top-k of q1's size",
    "top-k of q2's size, with feedback",
    "top-k of q1's size, with feedback",
)


def _encoding(scheme: str) -> Encoding:
    if scheme == "f32":
        return lambda values, client, number: values
    bits = 2 if "q2" in scheme else 1
    if scheme.startswith("top-k"):
        return lambda values, client, number: top_k(values, bits)
    codec = lossy(bits)[f"q{bits}: as in the codec"]
    factor = np.float32(_SHRINKAGE[bits] if "scaled" in scheme else 1)
    return lambda values, client, number: codec(values, client, number) * factor


def train(federation: Federation, scheme: str, rounds: int) -> tuple[float, float]:
    """Test loss and accuracy after so many rounds in which every client takes part."""
    encoding, feedback = _encoding(scheme), scheme.endswith("with feedback")
    clients = federation.cohort(10)
    left: dict[str, npt.NDArray[np.float32]] = {}
    for number in range(1, rounds + 1):
        read = []
        for client, (name, change) in enumerate(federation.updates(clients)):
            wanted = change + left[name] if name in left else change
            sent = encoding(wanted, client, number)
            if feedback:
                left[name] = wanted - sent
            read.append(sent)
        federation.commit(np.mean(read, axis=0, dtype=np.float64))
    result = federation.evaluate()
    return result.loss, result.accuracy
