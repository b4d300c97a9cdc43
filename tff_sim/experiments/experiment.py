"""`Experiment`: what to simulate, as a tree of frozen dataclasses; `tff_sim.experiments.runner` runs it."""

from __future__ import annotations

from dataclasses import dataclass, field

from device_runtime.codec import CODECS
from device_runtime.plain import make_plain
from device_runtime.work import ClientWork, is_number
from models.optimizers import PLAIN_SGD, ClientOptimizer
from tff_sim.algorithms.algorithm import FED_AVG, Algorithm
from tff_sim.algorithms.schedules import CONSTANT, Schedule
from tff_sim.experiments.data_settings import Data
from tff_sim.experiments.own_model import OwnModel
from tff_sim.experiments.settings import SettingError
from tff_sim.world import World

ENGINES = ("tff", "device")


@dataclass(frozen=True)
class Experiment:
    """What to simulate.

    Attributes:
        model: a name in the registry of `models`; with `keras` the name of that model, which may be empty for its own.
        fraction: C, the share of clients in each round; 0 is one client.
        rounds: at most so many.
        target_accuracy: stop when the test accuracy reaches it.
        engine: ``tff``, or ``device`` for clients that are trained by the exported artifact.
        data: the examples and their clients.
        work: E, B, η, μ, the codec, and the seed of the whole experiment.
        optimizer: of the clients; plain SGD by default.
        schedule: of their learning rate over the rounds.
        algorithm: what the server makes of their deltas; FedAvg by default.
        world: who is there, who drops out, and who does harm; nobody by default.
        keras: a model of the user's own; None takes one of the registry.

    Raises:
        SettingError: a number is out of its range.
    """

    model: str = "digits_mlp"
    fraction: float = 0.1
    rounds: int = 100
    target_accuracy: float | None = None
    engine: str = "tff"
    data: Data = field(default_factory=Data)
    work: ClientWork = field(default_factory=ClientWork)
    optimizer: ClientOptimizer = PLAIN_SGD
    schedule: Schedule = CONSTANT
    algorithm: Algorithm = FED_AVG
    world: World = field(default_factory=World)
    keras: OwnModel | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        if not self.model and self.keras is None:
            raise SettingError("model", "should be a model's name, not ''")
        if not (is_number(self.fraction) and 0 <= self.fraction <= 1):
            raise SettingError("fraction", f"should be from 0 to 1, not {self.fraction!r}")
        if not isinstance(self.rounds, int):
            raise SettingError("rounds", f"should be a whole number, not {self.rounds!r}")
        if self.rounds < 1:
            raise SettingError("rounds", f"should be at least 1, not {self.rounds}")
        target = self.target_accuracy
        if target is not None and not (is_number(target) and 0 < target <= 1):
            raise SettingError("target_accuracy", f"should be above 0 and at most 1, not {target!r}")
        if self.engine not in ENGINES:
            raise SettingError("engine", f"should be one of {', '.join(ENGINES)}, not {self.engine!r}")
        if self.work.codec not in CODECS:
            raise SettingError("codec", f"should be one of {', '.join(CODECS)}, not {self.work.codec!r}")
