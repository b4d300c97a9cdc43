"""An aggregation whose rounds know nothing of each other, as a `tff.templates.AggregationProcess`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_federated as tff


def stateless_aggregation(update_type: Any, aggregate: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    """A weighted aggregation process.

    Args:
        update_type: TFF's type of an update.
        aggregate: called in a federated computation with the clients' updates and their weights, float32; gives the
            result and the measurements, both at the server.
    """

    @tff.federated_computation
    def initialize() -> Any:
        return tff.federated_value((), tff.SERVER)

    @tff.federated_computation(
        initialize.type_signature.result,
        tff.FederatedType(update_type, tff.CLIENTS),
        tff.FederatedType(np.float32, tff.CLIENTS),
    )
    def next_fn(state: Any, updates: Any, weights: Any) -> Any:
        result, measurements = aggregate(updates, weights)
        return tff.templates.MeasuredProcessOutput(state, result, measurements)

    return tff.templates.AggregationProcess(initialize, next_fn)
