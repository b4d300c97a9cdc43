"""The server's optimisers (Reddi et al. 2021, Algorithms 1 and 2) in float32: from the clients' mean delta to a step.

The same formulas, in the same order of operations, and the same values where nothing is said, as in the simulation
(`tff_sim.algorithms`); tests hold one against the other, to the bit. Only numbers below 2**-126 in magnitude can
differ, which TensorFlow takes for zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_runtime.errors import InputError, IntegrityError
from device_runtime.tensors import FloatArray, TensorSpec, Weights
from device_runtime.weights import dump_weights, load_weights
from device_runtime.work import is_number

_MOMENTS = {"learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
SERVER_OPTIMIZERS: Mapping[str, Mapping[str, float]] = {
    "sgd": {"learning_rate": 1.0},
    "momentum": {"learning_rate": 1.0, "momentum": 0.9},
    "fedadagrad": {"learning_rate": 0.01, "beta_1": 0.0, "tau": 1e-3},
    "fedadam": _MOMENTS,
    "fedyogi": _MOMENTS,
}
"""Name → its parameters, and what they are unless said otherwise; β_1, β_2 and τ as in Reddi et al. 2021."""

_OPTIONS = {
    "learning_rate": "--server-lr",
    "momentum": "--server-momentum",
    "beta_1": "--server-beta1",
    "beta_2": "--server-beta2",
    "tau": "--server-tau",
}
_ONE = np.float32(1)


@dataclass(frozen=True)
class ServerOptimizer:
    """How the server turns the clients' mean delta Δ into a step; ``sgd`` with a learning rate of 1 is FedAvg.

    A parameter that is None has its value of `SERVER_OPTIMIZERS`, where it also says which optimiser has which.

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
        if self.name not in SERVER_OPTIMIZERS:
            known = ", ".join(SERVER_OPTIMIZERS)
            raise InputError(f"--server-optimizer should be one of {known}, not {self.name!r}")
        for parameter, option in _OPTIONS.items():
            value = getattr(self, parameter)
            if value is not None:
                self._check(parameter, option, value)

    def _check(self, parameter: str, option: str, value: Any) -> None:
        if parameter not in SERVER_OPTIMIZERS[self.name]:
            having = " or ".join(name for name, parameters in SERVER_OPTIMIZERS.items() if parameter in parameters)
            raise InputError(
                f"{option} does not go with --server-optimizer {self.name}: leave it out, or choose {having}"
            )
        if parameter in ("learning_rate", "tau"):
            if not (is_number(value) and value > 0):
                raise InputError(f"{option} should be a finite number above 0, not {value!r}")
        elif not (is_number(value) and 0 <= value < 1):
            raise InputError(f"{option} should be at least 0 and below 1, not {value!r}")

    @property
    def parameters(self) -> dict[str, float]:
        """Those that this optimiser has, with the values that count."""
        given = {name: getattr(self, name) for name in SERVER_OPTIMIZERS[self.name]}
        return {name: SERVER_OPTIMIZERS[self.name][name] if given[name] is None else given[name] for name in given}

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **self.parameters}

    def slots(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The tensors of its state for a model with these: those of the velocity, or of m and then of v; or none."""
        names = {"sgd": (), "momentum": ("velocity",)}.get(self.name, ("m", "v"))
        return tuple(TensorSpec(f"{slot}/{spec.name}", spec.shape) for slot in names for spec in specs)

    def initial(self, specs: Sequence[TensorSpec]) -> Weights:
        """The state before the first round."""
        first = np.float32(np.square(self.parameters.get("tau", 0.0)))
        return tuple(
            np.full([size for size in slot.shape if size is not None], first if slot.name.startswith("v/") else 0, "f4")
            for slot in self.slots(specs)
        )

    def step(self, mean_delta: Weights, state: Weights) -> tuple[Weights, Weights]:
        """What is to be added to the weights, and the next state. Either may hold what is not finite.

        Args:
            mean_delta: Δ, float32.
            state: that after the round before; as `slots` has it.
        """
        count = len(mean_delta)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            rate = np.float32(self.parameters["learning_rate"])
            if self.name == "sgd":
                return tuple(rate * delta for delta in mean_delta), ()
            if self.name == "momentum":
                decay = np.float32(self.parameters["momentum"])
                state = tuple(decay * old + delta for old, delta in zip(state, mean_delta, strict=True))
                return tuple(rate * velocity for velocity in state), state
            beta_1, tau = np.float32(self.parameters["beta_1"]), np.float32(self.parameters["tau"])
            pairs = zip(state[:count], mean_delta, strict=True)
            first = tuple(beta_1 * m + (_ONE - beta_1) * delta for m, delta in pairs)
            second = tuple(self._second(v, delta) for v, delta in zip(state[count:], mean_delta, strict=True))
            steps = tuple(rate * m / (np.sqrt(v) + tau) for m, v in zip(first, second, strict=True))
            return steps, (*first, *second)

    def _second(self, v: FloatArray, delta: FloatArray) -> FloatArray:
        """The next second moment."""
        if self.name == "fedadagrad":
            return v + delta * delta
        beta_2 = np.float32(self.parameters["beta_2"])
        if self.name == "fedadam":
            return beta_2 * v + (_ONE - beta_2) * delta * delta
        square = delta * delta
        yogi: FloatArray = v - (_ONE - beta_2) * square * np.sign(v - square)
        return yogi

    def dump(self, state: Weights, specs: Sequence[TensorSpec]) -> bytes:
        """The state as canonical safetensors bytes; none at all where it has no tensors."""
        slots = self.slots(specs)
        return dump_weights(state, slots) if slots else b""

    def load(self, data: bytes, specs: Sequence[TensorSpec]) -> Weights:
        """Read what `dump` wrote; of no bytes, the state before the first round.

        Raises:
            IntegrityError: the bytes are no state of this optimiser for this model.
        """
        if not data:
            return self.initial(specs)
        slots = self.slots(specs)
        if not slots:
            raise IntegrityError(f"stored optimiser: {len(data)} bytes of another optimiser, for {self.name} has none")
        return load_weights(data, slots, "stored optimiser")


FED_AVG = ServerOptimizer()
