"""Ways to deal a data set to clients: a frozen dataclass each, with its name and its parameters.

Each deals every example exactly once, and at least one to each client; the generator that comes in decides the rest.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError

_LEAST_ALPHA = 1e-6  # each label's examples have gone to one client long before; NumPy draws for ever below 1e-8
_MOST_ALPHA = 1e300  # shares are alike long before; NumPy divides by a sum over all clients, which is to be finite

_LARGEST = 2**63  # of a whole number in the place of a real one: JSON has larger ones than float64

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class Scheme:
    """A way to deal; a subclass each.

    Attributes:
        name: of the command line's --partition.
        needs_classes: whether an example must have one whole number as its label.
    """

    name: ClassVar[str]
    needs_classes: ClassVar[bool] = False

    def pieces(self, clients: int) -> int:
        """How many examples it takes at least for so many clients."""
        return clients

    def deal(self, labels: Labels, clients: int, rng: np.random.Generator) -> list[Indices]:
        """The numbers of each client's examples.

        Args:
            labels: of the n examples; [n], or [n, …] where the scheme does not look at them.
            clients: K, with `pieces(clients)` from 1 to n.
            rng: a fresh generator; the same one deals the same hands.
        """
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def __str__(self) -> str:
        parameters = ", ".join(f"{name} {value:g}" for name, value in asdict(self).items())
        return f"{self.name} ({parameters})" if parameters else self.name


@dataclass(frozen=True)
class Iid(Scheme):
    """Shuffle, and deal evenly; sizes differ by one at the most (McMahan et al. 2017, section 3)."""

    name: ClassVar[str] = "iid"

    def deal(self, labels: Labels, clients: int, rng: np.random.Generator) -> list[Indices]:
        return np.array_split(rng.permutation(len(labels)), clients)


@dataclass(frozen=True)
class Shards(Scheme):
    """Sort by label, cut into as many shards a client as said, and deal them at random.

    With two, most clients see two labels only: the pathological non-IID partition of McMahan et al. 2017, section 3.
    """

    name: ClassVar[str] = "shards"
    needs_classes: ClassVar[bool] = True
    shards_per_client: int = 2

    def __post_init__(self) -> None:
        if self.shards_per_client < 1:
            raise InputError(f"--shards-per-client should be at least 1, not {self.shards_per_client}")

    def pieces(self, clients: int) -> int:
        return clients * self.shards_per_client

    def deal(self, labels: Labels, clients: int, rng: np.random.Generator) -> list[Indices]:
        pieces = np.array_split(np.argsort(labels, kind="stable"), self.pieces(clients))
        dealt = rng.permutation(len(pieces)).reshape(clients, self.shards_per_client)
        return [np.concatenate([pieces[piece] for piece in hand]) for hand in dealt]


@dataclass(frozen=True)
class Dirichlet(Scheme):
    """Each label's examples are split in proportions drawn from Dir(α), anew for each label (Yurochkin et al. 2019).

    The smaller α, the fewer labels a client has; sizes vary, too. Whoever would get nothing gets one example of
    whoever has most.
    """

    name: ClassVar[str] = "dirichlet"
    needs_classes: ClassVar[bool] = True
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= _LEAST_ALPHA):
            raise InputError(f"--alpha should be a finite number of at least {_LEAST_ALPHA:g}, not {self.alpha}")

    def deal(self, labels: Labels, clients: int, rng: np.random.Generator) -> list[Indices]:
        owners = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(clients, min(self.alpha, _MOST_ALPHA)))
            owners[members] = np.repeat(np.arange(clients), _sizes(shares, len(members)))
        sizes = np.bincount(owners, minlength=clients)
        for client in np.flatnonzero(sizes == 0):
            richest = sizes.argmax()
            owners[rng.choice(np.flatnonzero(owners == richest))] = client
            sizes[richest] -= 1
            sizes[client] += 1
        return np.split(np.argsort(owners, kind="stable"), np.cumsum(sizes)[:-1])


@dataclass(frozen=True)
class LogNormal(Scheme):
    """Shuffle, and deal unevenly: sizes are proportional to exp(σ·z), z standard normal; labels stay mixed."""

    name: ClassVar[str] = "log-normal"
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise InputError(f"--sigma should be a finite number of at least 0, not {self.sigma}")

    def deal(self, labels: Labels, clients: int, rng: np.random.Generator) -> list[Indices]:
        exponents = self.sigma * rng.standard_normal(clients)
        return _uneven(np.exp(exponents - exponents.max()), len(labels), rng)


@dataclass(frozen=True)
class PowerLaw(Scheme):
    """Shuffle, and deal unevenly: the size of the r-th largest client is proportional to r^−exponent (Zipf's law).

    Which client is the r-th is drawn; labels stay mixed.
    """

    name: ClassVar[str] = "power-law"
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise InputError(f"--exponent should be a finite number of at least 0, not {self.exponent}")

    def deal(self, labels: Labels, clients: int, rng: np.random.Generator) -> list[Indices]:
        return _uneven(rng.permutation(np.arange(1.0, clients + 1) ** -self.exponent), len(labels), rng)


@dataclass(frozen=True)
class Natural(Scheme):
    """Everybody has their own: the writers, roles or users of the data (`tff_sim.datasets.Owners`).

    Of more clients than asked for, the generator draws those that take part, with all of their examples.
    """

    name: ClassVar[str] = "natural"

    def deal(self, labels: Labels, clients: int, rng: np.random.Generator) -> list[Indices]:
        """Here `labels` are the numbers of the owners, int [n]; hands come in the order of these numbers."""
        order = np.argsort(labels, kind="stable")
        everybody = np.split(order, np.cumsum(np.bincount(labels))[:-1])
        chosen = np.sort(rng.choice(len(everybody), clients, replace=False))
        return [everybody[index] for index in chosen]


SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme for scheme in (Iid, Shards, Dirichlet, LogNormal, PowerLaw, Natural)
}


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


def scheme_from_json(value: Any, where: str) -> Scheme:
    """Read what `Scheme.to_json` wrote; `InputError`, which names `where`, if it is something else."""
    kind = None
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        kind = SCHEMES.get(value["name"])
    if kind is not None:
        parameters = {name: number for name, number in value.items() if name != "name"}
        defaults = asdict(kind())
        if set(parameters) == set(defaults) and all(_is_like(v, defaults[n]) for n, v in parameters.items()):
            try:
                return kind(**parameters)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
    raise InputError(f"{where}: expected a partition's name and parameters, not {ascii(value)[:60]}")


def _is_like(value: Any, default: float) -> bool:
    """Whether it is a number of the default's kind; whole ones are real ones too, unless a float has them not."""
    return type(value) is type(default) or (type(value) is int and isinstance(default, float) and abs(value) < _LARGEST)


def _uneven(weights: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> list[Indices]:
    """Shuffle `count` examples; one to each, and the others in the proportions of `weights`."""
    sizes = 1 + _sizes(weights / weights.sum(), count - len(weights))
    return np.split(rng.permutation(count), np.cumsum(sizes)[:-1])


def _sizes(shares: npt.NDArray[np.float64], count: int) -> Indices:
    """Whole numbers near shares·count that add up to count; `shares` add up to 1, but for rounding."""
    bounds = np.rint(np.cumsum(shares) * count).astype(np.int64)
    bounds[-1] = count
    return np.diff(np.minimum(bounds, count), prepend=0)
