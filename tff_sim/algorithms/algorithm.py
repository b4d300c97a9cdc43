"""`Algorithm`: what the server makes of the clients' deltas. Loads no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from device_runtime.errors import InputError
from device_runtime.plain import make_plain
from tff_sim.algorithms.checks import check_choice, check_goes_with, check_number, check_positive

_MOMENTS = {"learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
SERVER_OPTIMIZERS: Mapping[str, Mapping[str, float]] = {
    "sgd": {"learning_rate": 1.0},
    "momentum": {"learning_rate": 1.0, "momentum": 0.9},
    "fedadagrad": {"learning_rate": 0.01, "beta_1": 0.0, "tau": 1e-3},
    "fedadam": _MOMENTS,
    "fedyogi": _MOMENTS,
}
"""Name → its parameters, and what they are unless said otherwise; β_1, β_2 and τ as in Reddi et al. 2021."""

_SERVER_OPTIONS = {
    "learning_rate": "--server-lr",
    "momentum": "--server-momentum",
    "beta_1": "--server-beta1",
    "beta_2": "--server-beta2",
    "tau": "--server-tau",
}

WEIGHTINGS = ("examples", "uniform")
AGGREGATORS = ("mean", "median", "trimmed_mean")
COUNTS = ("non_finite", "zeroed", "clipped")
"""What is counted of a round's deltas, each a number of clients; names of the aggregator's measurements."""
_TRIM = 0.1


@dataclass(frozen=True)
class ServerOptimizer:
    """How the server turns the clients' mean delta Δ into a step (Reddi et al. 2021, Algorithms 1 and 2).

    ``sgd`` with a learning rate of 1 is FedAvg as McMahan et al. 2017 have it. A parameter that is None has its value
    of `SERVER_OPTIMIZERS`, where it also says which optimiser has which.

    Attributes:
        name: ``sgd``, ``momentum`` (FedAvgM), ``fedadagrad``, ``fedadam`` or ``fedyogi``.
        learning_rate: η; above 0.
        momentum: of ``momentum``; 0 ≤ momentum < 1.
        beta_1: decay of the first moment, m ← β_1·m + (1 − β_1)·Δ; 0 ≤ β_1 < 1.
        beta_2: decay of the second moment v, of ``fedadam`` and ``fedyogi``; 0 ≤ β_2 < 1.
        tau: the step is η·m/(√v + τ), and v is τ² at first; above 0.

    Raises:
        InputError: a parameter is out of range, or one that this optimiser does not have.
    """

    name: str = "sgd"
    learning_rate: float | None = None
    momentum: float | None = None
    beta_1: float | None = None
    beta_2: float | None = None
    tau: float | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        check_choice("--server-optimizer", self.name, SERVER_OPTIMIZERS)
        for parameter, option in _SERVER_OPTIONS.items():
            value = getattr(self, parameter)
            if value is None:
                continue
            check_goes_with(option, parameter, "--server-optimizer", self.name, SERVER_OPTIMIZERS)
            if parameter in ("learning_rate", "tau"):
                check_positive(option, value)
            else:
                check_number(option, value, lambda number: 0 <= number < 1, "at least 0 and below 1")

    @property
    def parameters(self) -> dict[str, float]:
        """Those that this optimiser has, with the values that count."""
        given = {name: getattr(self, name) for name in SERVER_OPTIMIZERS[self.name]}
        return {name: SERVER_OPTIMIZERS[self.name][name] if given[name] is None else given[name] for name in given}

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **self.parameters}


@dataclass(frozen=True)
class Algorithm:
    """What the server makes of the clients' deltas in a round; the default is FedAvg (McMahan et al. 2017).

    A delta goes through these in turn: not finite anywhere, it counts as no delta; of a norm above `zero_norm`,
    likewise; of a norm above `clip_norm`, it is scaled down to it. Norms are over all tensors of a delta together.

    Attributes:
        optimizer: of the server.
        aggregator: ``mean``, ``median`` of each coordinate, or ``trimmed_mean``, the mean of each coordinate without
            its smallest and its largest values (Yin et al. 2018).
        weighting: of the mean: ``examples``, a client counts as often as it has examples, or ``uniform``, once. None is
            ``examples`` for a mean; the other aggregators know no weights.
        trim: β, the share of clients left out at each end by ``trimmed_mean``, 0 ≤ β < 0.5; None is a tenth.
        clip_norm: largest L2 norm of a delta; a longer one is scaled down to it. None is no limit.
        zero_norm: a delta with a larger L2 norm counts as no delta at all. None is no limit.

    Raises:
        InputError: a value is out of range, or two do not go together; the message names options of the command line.
    """

    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    aggregator: str = "mean"
    weighting: str | None = None
    trim: float | None = None
    clip_norm: float | None = None
    zero_norm: float | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        if not isinstance(self.optimizer, ServerOptimizer):
            raise InputError(f"expected a ServerOptimizer, such as ServerOptimizer('fedadam'), not {self.optimizer!r}")
        check_choice("--aggregator", self.aggregator, AGGREGATORS)
        if self.weighting is not None:
            check_choice("--weighting", self.weighting, WEIGHTINGS)
        if self.weighting == "examples" and self.aggregator != "mean":
            raise InputError(
                f"--weighting examples does not go with --aggregator {self.aggregator}, in which every client counts"
                " alike: leave it out"
            )
        if self.trim is not None:
            if self.aggregator != "trimmed_mean":
                raise InputError(f"--trim is for --aggregator trimmed_mean, not {self.aggregator}: leave it out")
            check_number("--trim", self.trim, lambda number: 0 <= number < 0.5, "at least 0 and below 0.5")
        for option, norm in (("--clip-update", self.clip_norm), ("--zero-update", self.zero_norm)):
            if norm is not None:
                check_positive(option, norm)
        if self.clip_norm is not None and self.zero_norm is not None and self.zero_norm <= self.clip_norm:
            raise InputError(
                f"--zero-update {self.zero_norm} leaves nothing to --clip-update {self.clip_norm}: it should be the"
                " larger of the two"
            )

    @property
    def weighted(self) -> bool:
        """Whether a client counts as often as it has examples."""
        return self.aggregator == "mean" and self.weighting != "uniform"

    @property
    def trimmed(self) -> float:
        """β of ``trimmed_mean``, whether it was said or not."""
        return _TRIM if self.trim is None else self.trim

    def to_json(self) -> dict[str, Any]:
        """For summaries: the values that count."""
        return {
            "optimizer": self.optimizer.to_json(),
            "aggregator": self.aggregator,
            "weighting": "examples" if self.weighted else "uniform",
            "trim": self.trimmed if self.aggregator == "trimmed_mean" else None,
            "clip_norm": self.clip_norm,
            "zero_norm": self.zero_norm,
        }


FED_AVG = Algorithm()
