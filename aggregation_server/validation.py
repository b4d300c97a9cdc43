"""From the bytes of a report to an update that may be counted.

A bad client is refused with a reason, counted by it, and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from device_runtime import codec
from device_runtime.bundle import Manifest
from device_runtime.codec import EncodedUpdate
from device_runtime.errors import UpdateError
from device_runtime.messages import EvaluationReport
from device_runtime.tensors import TensorSpec

# The format gives a metric's name one byte of length; ASCII characters make the longest name that fits.
_LONGEST_METRICS = [f"{index:0>255}" for index in range(codec.MAX_METRICS)]


def validated_update(body: bytes, manifest: Manifest, round_number: int) -> EncodedUpdate:
    """Decode a report and check all that can be checked without knowing the other reports.

    Args:
        body: an encoded update, as it came.
        manifest: of the bundle that the round trains.
        round_number: the round that the report's token belongs to.

    Raises:
        UpdateError: with the reason ``truncated``, ``checksum``, ``format``, ``model`` or ``shape`` (see
            `device_runtime.codec.read_update`), ``wrong_round``, ``weight`` or ``non_finite``.
    """
    update = codec.read_update(body, manifest.tensors, manifest.model_id)
    header = update.header
    if header.round_number != round_number:
        raise UpdateError("wrong_round", f"update: made in round {header.round_number}, expected {round_number}")
    if header.weight < 1:
        raise UpdateError("weight", f"update: its weight should be at least 1 example, not {header.weight}")
    if not update.finite:
        raise UpdateError("non_finite", "update: holds values that are not finite")
    for name, value in header.metrics.items():
        if not math.isfinite(value):
            raise UpdateError("non_finite", f"update: the metric {name!r} is not finite")
    return update


def largest_update(specs: Sequence[TensorSpec]) -> int:
    """Length in bytes of the longest encoded update that can be valid for a model with these tensors."""
    return max(codec.encoded_size(specs, name, _LONGEST_METRICS) for name in codec.CODECS)


def validated_evaluation(body: bytes, round_number: int) -> EvaluationReport:
    raise NotImplementedError
