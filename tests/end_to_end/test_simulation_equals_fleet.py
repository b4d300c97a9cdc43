"""What you simulate is what you ship: TFF's weights and those of real device processes agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import models
from cli.fleet import run_fleet
from device_runtime.examples import Examples
from device_runtime.selftest import relative_difference
from device_runtime.work import ClientWork
from export.bundle_writer import export_bundle
from tff_sim import datasets

ROUNDS = 3
SEED = 8
SIZES = {"client-a": 64, "client-b": 37, "client-c": 1}  # unequal, a last smaller batch, and fewer than B


def _clients(side: int) -> dict[str, Examples]:
    """Genuine digits for three clients, enlarged to `side` pixels where the model wants it."""
    train = datasets.load("digits").train
    x = train.x
    if side != x.shape[1]:
        times = side // x.shape[1]
        margin = (side - times * x.shape[1]) // 2
        x = np.pad(x.repeat(times, 1).repeat(times, 2), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    ends = np.cumsum(list(SIZES.values()))
    pieces = zip(SIZES, np.split(x[: ends[-1]], ends[:-1]), np.split(train.y[: ends[-1]], ends[:-1]), strict=True)
    return {name: Examples(part, labels) for name, part, labels in pieces}


@pytest.mark.parametrize(
    ("name", "side", "codec"), [("digits_mlp", 8, "f32"), ("mnist_2nn", 28, "f32"), ("digits_mlp", 8, "q4")]
)
def test_three_rounds_agree_to_a_relative_1e_minus_4(name: str, side: int, codec: str, tmp_path: Path) -> None:
    from tff_sim.algorithms.fed_avg import build_fed_avg
    from tff_sim.engines.engine import ProcessEngine
    from tff_sim.plan import honest
    from tff_sim.simulation import always, simulate
    from tff_sim.workers.local import local_worker

    spec = models.get(name)
    clients = _clients(side)
    work = ClientWork(epochs=2, batch_size=10, learning_rate=0.1, seed=SEED, codec=codec)
    bundle = export_bundle(spec, tmp_path / "bundles", seed=SEED)
    initial = bundle.initial_weights()

    engine, plan = ProcessEngine(build_fed_avg(spec, work, initial)), always(honest(list(clients)))
    with local_worker():
        rounds = simulate(engine, always(clients), always(work), plan, range(1, ROUNDS + 1))
        simulated = [done.result for done in rounds]

    files = []
    for client, examples in clients.items():
        files.append(tmp_path / f"{client}.npz")
        np.savez(files[-1], x=examples.x, y=examples.y)
    arguments = [
        *("--goal", "3", "--over-selection", "1", "--minimum", "3", "--codec", codec, "--rounds", str(ROUNDS)),
        *("--epochs", "2", "--batch-size", "10", "--lr", "0.1", "--seed", str(SEED), "--retry-seconds", "0.3"),
    ]
    fleet = run_fleet(bundle.path, bundle.manifest.tensors, arguments, name, files, tmp_path)

    assert [done.number for done in fleet.rounds] == [1, 2, 3]
    for ours, theirs in zip(simulated, fleet.rounds, strict=True):
        assert theirs.examples == ours.examples == sum(SIZES.values())
        assert theirs.train_loss == pytest.approx(ours.train_loss, rel=1e-4)
        for spec_, got, want in zip(bundle.manifest.tensors, theirs.weights, ours.weights, strict=True):
            assert relative_difference(got, want) <= 1e-4, spec_.name
    # The weights moved by far more than the tolerance, so that agreement means something.
    moved = max(relative_difference(a, b) for a, b in zip(simulated[-1].weights, initial, strict=True))
    assert moved > 1e-2
