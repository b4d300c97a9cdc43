"""How a data set is dealt to clients, by a named scheme, and kept in a file that experiment and devices share."""

from __future__ import annotations

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim.client_names import NumberedNames
from tff_sim.partition.dealt import DEFAULT_CLIENTS, Partition, deal, hands
from tff_sim.partition.schemes import SCHEMES, Scheme, scheme

__all__ = ["DEFAULT_CLIENTS", "SCHEMES", "Partition", "Scheme", "deal", "partition", "scheme"]


def partition(examples: Examples, name: str, clients: int, seed: int) -> dict[str, Examples]:
    """Deal `examples` to clients named ``client-000``, ``client-001``, …: names and hands as devices may have them.

    Args:
        examples: the training set, n examples.
        name: one of `SCHEMES`, with its parameters' defaults; ``natural`` needs a `Dataset`, and `deal`.
        clients: K; at least 1, and few enough that each gets an example.
        seed: of the shuffle, at least 0; the same seed deals the same hands.

    Raises:
        InputError: the name is not known, the seed is below 0, there are too few or too many clients, or not as many
            labels as examples.
    """
    chosen = scheme(name)
    if name == "natural":
        raise InputError(
            "partition 'natural' is of a data set with natural clients: deal that with tff_sim.partition.deal"
        )
    dealt = hands(examples, chosen, clients, seed)
    names = NumberedNames(len(dealt))
    return {name: Examples(examples.x[hand], examples.y[hand]) for name, hand in zip(names, dealt, strict=True)}
