"""From the bytes of a report to a `ClientUpdate` that may be counted.

A bad client is refused with a reason, counted by it, and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from device_runtime import codec
from device_runtime.bundle import Manifest
from device_runtime.errors import UpdateError
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate

# The format gives a metric's name one byte of length; ASCII characters make the longest name that fits.
_LONGEST_METRICS = [f"{index:0>255}" for index in range(codec.MAX_METRICS)]


def validated_update(body: bytes, manifest: Manifest, round_number: int) -> ClientUpdate:
    """Decode a report and check all that can be checked without knowing the other reports.

    Args:
        body: an encoded update, as it came.
        manifest: of the bundle that the round trains.
        round_number: the round that the report's token belongs to.

    Raises:
        UpdateError: with the reason ``truncated``, ``checksum``, ``format``, ``model`` or ``shape`` (see
            `device_runtime.codec.decode`), ``wrong_round``, ``weight`` or ``non_finite``.
    """
    update = codec.decode(body, manifest.tensors, manifest.model_id)
    if update.round_number != round_number:
        raise UpdateError("wrong_round", f"update: made in round {update.round_number}, expected {round_number}")
    if update.weight < 1:
        raise UpdateError("weight", f"update: its weight should be at least 1 example, not {update.weight}")
    codec.require_finite(update.delta, manifest.tensors)
    for name, value in update.metrics.items():
        if not math.isfinite(value):
            raise UpdateError("non_finite", f"update: the metric {name!r} is not finite")
    return update


def largest_update(specs: Sequence[TensorSpec]) -> int:
    """Length in bytes of the longest encoded update that can be valid for a model with these tensors."""
    return max(codec.encoded_size(specs, name, _LONGEST_METRICS) for name in codec.CODECS)
