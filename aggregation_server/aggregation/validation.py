"""From the bytes of a report to an update, or an evaluation, that may be counted.

A bad client is refused with a reason, counted by it, and changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_runtime import codec
from device_runtime.bundle import Manifest
from device_runtime.codec import EncodedUpdate
from device_runtime.errors import InputError, UpdateError
from device_runtime.messages import EvaluationReport
from device_runtime.tensors import TensorSpec
from device_runtime.work import is_number

# The format gives a metric's name one byte of length; ASCII characters make the longest name that fits.
_LONGEST_METRICS = [f"{index:0>255}" for index in range(codec.MAX_METRICS)]
MOST_EXAMPLES = 2**31 - 1
"""More than any device has; and a round's sum of them fits into 64 bits, as the database holds it."""
_RUN = 1 << 16  # values that are gone through at a time


@dataclass(frozen=True)
class Bounds:
    """What a device may report.

    Attributes:
        norm: largest L2 norm of a delta, over all tensors together; above 0. Looking at it takes as long as adding the
            update. None is no bound.
        examples: most examples that a device may say it has, from 1 to `MOST_EXAMPLES`, which None stands for.

    Raises:
        InputError: a bound is out of range; the message names the option of the command line.
    """

    norm: float | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        if self.norm is not None and not (is_number(self.norm) and self.norm > 0):
            raise InputError(f"--max-update-norm should be a finite number above 0, not {self.norm!r}")
        if self.examples is not None and not (type(self.examples) is int and 1 <= self.examples <= MOST_EXAMPLES):
            expected = f"a whole number from 1 to {MOST_EXAMPLES}"
            raise InputError(f"--max-examples should be {expected}, not {self.examples!r}")


UNBOUNDED = Bounds()


def validated_update(body: bytes, manifest: Manifest, round_number: int, bounds: Bounds = UNBOUNDED) -> EncodedUpdate:
    """Decode a report and check all that can be checked without knowing the other reports.

    Args:
        body: an encoded update, as it came.
        manifest: of the bundle that the round trains.
        round_number: the round that the report's token belongs to.
        bounds: of norm and weight.

    Raises:
        UpdateError: with the reason ``truncated``, ``checksum``, ``format``, ``model`` or ``shape`` (see
            `device_runtime.codec.read_update`), ``wrong_round``, ``weight``, ``non_finite`` or ``norm``.
    """
    update = codec.read_update(body, manifest.tensors, manifest.model_id)
    header = update.header
    if header.round_number != round_number:
        raise UpdateError("wrong_round", f"update: made in round {header.round_number}, expected {round_number}")
    if header.weight < 1:
        raise UpdateError("weight", f"update: its weight should be at least 1 example, not {header.weight}")
    most = MOST_EXAMPLES if bounds.examples is None else bounds.examples
    if header.weight > most:
        raise UpdateError("weight", f"update: its weight should be at most {most}, not {header.weight}")
    if not update.finite:
        raise UpdateError("non_finite", "update: holds values that are not finite")
    for name, value in header.metrics.items():
        if not math.isfinite(value):
            raise UpdateError("non_finite", f"update: the metric {name!r} is not finite")
    if bounds.norm is not None and (norm := norm_of(update)) > bounds.norm:
        raise UpdateError("norm", f"update: its norm should be at most {bounds.norm:g}, not {norm:g}")
    return update


def norm_of(update: EncodedUpdate) -> float:
    """The L2 norm of a finite update over all tensors together.

    That of its values as they are encoded: a rotation changes no norm, so it need not be undone. Computed in float64,
    which holds the square of every float32.
    """
    total = codec.Total(codec.values_of(update.specs))
    update.add_to(total, 1.0)
    values = total.settle()
    squares = 0.0
    for start in range(0, values.size, _RUN):
        run = values[start : start + _RUN].astype(np.float64)
        squares += float(np.dot(run, run))
    return math.sqrt(squares)


def validated_evaluation(body: bytes, metric: str, round_number: int, most: int) -> EvaluationReport:
    """Read the report of an evaluation, JSON, and check all that can be checked without knowing the other reports.

    Args:
        body: as it came; keys that are not a report's are passed over.
        metric: the manifest's; what is summed up in `correct`.
        round_number: the round that the report's token belongs to.
        most: predictions that a device may say it has looked at.

    Raises:
        UpdateError: with the reason ``format``, ``wrong_round``, ``weight`` or ``non_finite``.
    """
    fields = _json_object(body)
    number = _whole(fields, "round_number")
    count = _whole(fields, "count")
    correct, loss_sum = _number(fields, "correct"), _number(fields, "loss_sum")
    if number != round_number:
        raise UpdateError("wrong_round", f"evaluation: made in round {number}, expected {round_number}")
    if not 1 <= count <= most:
        raise UpdateError("weight", f"evaluation: count should be from 1 to {most}, not {count}")
    if not (math.isfinite(correct) and math.isfinite(loss_sum)):
        raise UpdateError("non_finite", "evaluation: correct and loss_sum should be finite numbers")
    if correct < 0 and metric != "accuracy":  # an error's sum has no other bound
        raise UpdateError("format", f"evaluation: correct should be at least 0, not {correct:g}")
    if metric == "accuracy" and not 0 <= correct <= count:
        raise UpdateError("format", f"evaluation: correct should be from 0 to count, {count}, not {correct:g}")
    return EvaluationReport(number, count, correct, loss_sum)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise UpdateError("format", "evaluation: not JSON") from None
    if not isinstance(fields, dict):
        raise UpdateError("format", "evaluation: not a JSON object")
    return fields


def _whole(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not -(2**63) <= value < 2**63:  # messages print it: not with a thousand digits
        raise UpdateError("format", f"evaluation: {name} should be a whole number")
    return value


def _number(fields: dict[str, Any], name: str) -> float:
    value = fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UpdateError("format", f"evaluation: {name} should be a number")
    try:
        return float(value)
    except OverflowError:  # an integer that no float holds
        return math.inf


def largest_update(specs: Sequence[TensorSpec]) -> int:
    """Length in bytes of the longest encoded update that can be valid for a model with these tensors."""
    return max(codec.encoded_size(specs, name, _LONGEST_METRICS) for name in codec.CODECS)
