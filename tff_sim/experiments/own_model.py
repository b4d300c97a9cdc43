"""`OwnModel`: a model that is in no registry, as an experiment's file has it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import models
from device_runtime.errors import InputError
from models.identity import fingerprint
from models.losses import LOSSES
from tff_sim.experiments.settings import expanded

if TYPE_CHECKING:
    from models import ModelSpec
    from tff_sim.experiments.experiment import Experiment

_FILE_ENDING = ".keras"
_METRIC = "accuracy"


@dataclass(frozen=True)
class OwnModel:
    """Where a model comes from, and what it is trained for.

    Attributes:
        source: path of a ``.keras`` file, or ``module:function``; of a script's spec, what that says.
        loss: a key of `models.losses.LOSSES`.
        sha256: its `models.identity.fingerprint`, once it has been made.

    Raises:
        ValueError: there is no source, or no such loss.
    """

    source: str = ""
    loss: str = ""
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError(f"source should be a .keras file or module:function, not {self.source!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss should be one of {', '.join(sorted(LOSSES))}, not {self.loss!r}")

    def within(self, folder: Path) -> Self:
        """With its source `located` in this folder."""
        return replace(self, source=located(self.source, folder))


def located(source: str, folder: Path) -> str:
    """A source, with a file's path below this folder where it is not absolute."""
    return str(folder / expanded(source)) if source.endswith(_FILE_ENDING) else source


def with_model(experiment: Experiment, spec: ModelSpec) -> Experiment:
    """The experiment, with this model in the place of one of the registry.

    Raises:
        InputError: it is another one than the experiment was made with, or has no accuracy, which experiments follow.
    """
    if spec.metric != _METRIC:
        raise InputError(
            f"model {spec.name!r}: its metric is {spec.metric}, and experiments follow the accuracy: take a loss over"
            " classes, or rounds of your own with tff_sim.build_fed_avg"
        )
    # A script's own spec may draw its weights, after the seed as the experiment will.
    model = OwnModel(spec.source, spec.loss, fingerprint(models.seeded_model(spec, experiment.work.seed)))
    before = experiment.keras
    if before is not None and before.sha256 not in (None, model.sha256):
        raise InputError(
            f"{spec.source}: its layers or weights are not those that the experiment was made with (their SHA-256"
            " differs): give it its own model, or take sha256 out of the experiment's file"
        )
    return replace(experiment, model=spec.name, keras=model)
