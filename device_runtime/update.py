"""`ClientUpdate`: what a client reports after its local training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from device_runtime.tensors import Weights


@dataclass(frozen=True)
class ClientUpdate:
    """A client's result in one round.

    Attributes:
        delta: weights after local training minus the weights received, float32, in the manifest's order.
        weight: n_k, the number of local examples: the update's weight in the average.
        round_number: the round that it belongs to.
        metrics: named numbers, such as ``loss``, the mean over all examples of all local steps.
    """

    delta: Weights
    weight: int
    round_number: int
    metrics: Mapping[str, float] = field(default_factory=dict)
