"""How a data set is dealt to clients, by a named scheme, and kept in a file that experiment and devices share."""

from __future__ import annotations

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim.client_names import NumberedNames
from tff_sim.partition.dealt import DEFAULT_CLIENTS, Partition, deal, hands
from tff_sim.partition.schemes import SCHEMES, Scheme

__all__ = ["DEFAULT_CLIENTS", "SCHEMES", "Partition", "Scheme", "deal", "partition", "scheme"]


def scheme(name: str, **parameters: float) -> Scheme:
    """The way to deal with this name; parameters that it has not are refused, those not given have their defaults.

    Raises:
        InputError: the name is not known, or a parameter is not of this scheme or out of range.
    """
    if name not in SCHEMES:
        raise InputError(f"unknown partition {name!r}; known partitions: {', '.join(SCHEMES)}")
    known = SCHEMES[name].__dataclass_fields__
    for parameter in parameters:
        if parameter not in known:
            raise InputError(f"partition {name!r} has no --{parameter.replace('_', '-')}: leave it out")
    return SCHEMES[name](**parameters)


def partition(examples: Examples, name: str, clients: int, seed: int) -> dict[str, Examples]:
    """Deal `examples` to clients named ``client-000``, ``client-001``, …: names and hands as devices may have them.

    Args:
        examples: the training set, n examples.
        name: one of `SCHEMES`, with its parameters' defaults; ``natural`` needs a `Dataset`, and `deal`.
        clients: K; at least 1, and few enough that each gets an example.
        seed: of the shuffle; the same seed deals the same hands.

    Raises:
        InputError: the name is not known, or there are too few or too many clients, or not as many labels as examples.
    """
    chosen = scheme(name)
    if name == "natural":
        raise InputError(
            "partition 'natural' is of a data set with natural clients: deal that with tff_sim.partition.deal"
        )
    dealt = hands(examples, chosen, clients, seed)
    names = NumberedNames(len(dealt))
    return {name: Examples(examples.x[hand], examples.y[hand]) for name, hand in zip(names, dealt, strict=True)}
