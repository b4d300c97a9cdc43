"""`Experiment`: what to simulate, as a tree of frozen dataclasses; `tff_sim.runner` runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from device_runtime.work import ClientWork
from models.optimizers import PLAIN_SGD, ClientOptimizer
from tff_sim.settings import SettingError
from tff_sim.world import World


@dataclass(frozen=True)
class Data:
    """The examples, and how they are dealt to clients.

    Attributes:
        dataset, data_dir: a name in `tff_sim.datasets.NAMES`, and its folder.
        partition: a name in `tff_sim.partition.PARTITIONS`.
        clients: K.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    partition: str = "iid"
    clients: int = 100


@dataclass(frozen=True)
class Experiment:
    """What to simulate.

    Attributes:
        model: a name in the registry of `models`.
        fraction: C, the share of clients in each round; 0 is one client.
        rounds: at most so many.
        target_accuracy: stop when the test accuracy reaches it.
        data: the examples and their clients.
        work: E, B, η, μ, the codec, and the seed of the whole experiment.
        optimizer: of the clients; plain SGD by default.
        world: who is there, who drops out, and who does harm; nobody by default.

    Raises:
        SettingError: a number is out of its range.
    """

    model: str = "digits_mlp"
    fraction: float = 0.1
    rounds: int = 100
    target_accuracy: float | None = None
    data: Data = field(default_factory=Data)
    work: ClientWork = field(default_factory=ClientWork)
    optimizer: ClientOptimizer = PLAIN_SGD
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise SettingError("fraction", f"should be from 0 to 1, not {self.fraction}")
        if self.rounds < 1:
            raise SettingError("rounds", f"should be at least 1, not {self.rounds}")
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise SettingError("target_accuracy", f"should be above 0 and at most 1, not {self.target_accuracy}")
