"""To which layer each operator of a training step belongs.

Only some tensors carry a layer's name: the last operator of a layer forward, and the weights. The rest follows from
the flow of data: what reads a layer's weight belongs to it, and what feeds something else belongs where its first
reader does, up to the weight that is assigned at the end.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from export.single_operator import inputs_of

_THROUGH = frozenset({"RESHAPE", "TRANSPOSE", "EXPAND_DIMS", "SPLIT", "READ_VARIABLE", "VAR_HANDLE"})
"""A weight is still the weight after these."""


def layers_of(subgraph: Any, names: Sequence[str], model: str, weighted: Collection[str]) -> list[str]:
    """A layer's name for each operator, or an empty one.

    Args:
        subgraph: in the flatbuffer's object form.
        names: of its operators' kinds.
        model: the Keras model's name, with which the scopes of its layers begin.
        weighted: names of the layers that have weights.
    """
    weights: dict[int, str] = {}  # tensor → the layer whose weight it is
    found: list[str] = []
    for name, operator in zip(names, subgraph.operators, strict=True):
        outputs = [int(index) for index in operator.outputs]
        layer = next(filter(None, (_scope(subgraph, index, model, weighted) for index in outputs)), "")
        layer = layer or next((weights[index] for index in inputs_of(operator) if index in weights), "")
        if name == "VAR_HANDLE" or (name in _THROUGH and any(index in weights for index in inputs_of(operator))):
            weights.update((index, layer) for index in outputs if layer)
        found.append(layer)
    _from_readers(subgraph, found)
    # A variable without a layer's name, such as a weight that is stored transposed, is that of the layer that reads it.
    pairs = list(zip(names, subgraph.operators, strict=True))
    read = {
        int(one.inputs[0]): layer for (name, one), layer in zip(pairs, found, strict=True) if name == "READ_VARIABLE"
    }
    for position, (name, operator) in enumerate(pairs):
        if name == "ASSIGN_VARIABLE" and not found[position]:
            found[position] = read.get(int(operator.inputs[0]), "")
    _from_readers(subgraph, found)
    return found


def _from_readers(subgraph: Any, found: list[str]) -> None:
    reader: dict[int, str] = {}  # tensor → the layer of the first operator that reads it
    for position in reversed(range(len(found))):
        operator = subgraph.operators[position]
        if not found[position]:
            found[position] = next(filter(None, (reader.get(int(index), "") for index in operator.outputs)), "")
        if found[position]:
            reader.update((index, found[position]) for index in inputs_of(operator))


def _scope(subgraph: Any, index: int, model: str, weighted: Collection[str]) -> str:
    # Where the converter merged operators, the tensor has all their names, with semicolons between.
    for name in (subgraph.tensors[index].name or b"").decode(errors="replace").split(";"):
        first, *rest = re.sub(r"^StatefulPartitionedCall/", "", name).split("/")
        if first in weighted and rest:
            return str(first)
        if first == model and len(rest) > 1:
            return str(rest[0])
    return ""
