"""`pocketfed demo`: the whole way on the embedded digits, from simulation to a fleet of device processes."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.demo_report import Curve, write_report
from cli.options import JSON, SEED, print_json
from device_runtime.errors import CheckFailedError, InputError

if TYPE_CHECKING:
    from cli.fleet import FleetResult
    from device_runtime.bundle import Bundle
    from device_runtime.examples import Examples
    from device_runtime.tensors import Weights
    from device_runtime.work import ClientWork
    from export.parity import ParityReport

MODEL = "digits_mlp"
CLIENTS = 20
DEVICES = 5
SIMULATED_ROUNDS = 20
FLEET_ROUNDS = 10
EPOCHS = 5
LEARNING_RATE = 0.3
CODEC = "q8"


@click.command(short_help="The whole way, in a minute or two.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Results.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of data, weights, cohorts and rounding.")
@JSON
def demo(out: Path, seed: int, as_json: bool) -> None:
    """Simulate, export, check parity, then train on real device processes.

    All on the digits that scikit-learn ships: 20 clients are simulated for 20 rounds; the same model is
    exported and checked; a server and 5 device processes on 127.0.0.1, each with the data of 4 of the
    clients, train it for 10 rounds. Writes report.html and summary.json into the folder --out.
    """
    from tff_sim.availability import require_tff

    require_tff()
    started = time.perf_counter()
    scratch = _clean(out)
    demonstration = _Demonstration(scratch, seed)
    click.echo(f"1/4 simulating {CLIENTS} clients, then what to expect of {DEVICES} devices", err=True)
    simulated, expected, expected_weights = demonstration.simulate()
    click.echo("2/4 exporting the model as a bundle of TFLite builtins", err=True)
    bundle = demonstration.export()
    click.echo("3/4 checking parity between Keras and the device's interpreter", err=True)
    parity = demonstration.check_parity(bundle)
    click.echo(f"4/4 training on {DEVICES} device processes for {FLEET_ROUNDS} rounds", err=True)
    fleet, fleet_weights, upload_float32 = demonstration.run_fleet(bundle)

    from device_runtime.selftest import relative_difference

    curves = (simulated, expected, fleet)
    summary = {
        "simulated_accuracy": simulated.accuracies[-1],
        "fleet_accuracy": fleet.accuracies[-1],
        "fleet_simulated_accuracy": expected.accuracies[-1],
        "fleet_difference": max(
            relative_difference(got, want) for got, want in zip(fleet_weights, expected_weights, strict=True)
        ),
        "parity": parity.to_json(),
        "rounds": fleet.rounds,
        "simulated_rounds": simulated.rounds,
        "codec": CODEC,
        "upload_bytes": fleet.upload_bytes,
        "upload_bytes_float32": upload_float32,
        "download_bytes": fleet.download_bytes,
        "model": MODEL,
        "seed": seed,
        "seconds": time.perf_counter() - started,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_report(out, curves, summary)
    if as_json:
        print_json(summary)
    else:
        _print(curves, summary, out)


class _Demonstration:
    """The four stages; they share data, initial weights and client work."""

    def __init__(self, scratch: Path, seed: int) -> None:
        import models
        from device_runtime.work import ClientWork
        from tff_sim import datasets
        from tff_sim.partition import partition

        self._scratch = scratch
        self._seed = seed
        self._spec = models.get(MODEL)
        self._initial: Weights = models.initial_weights(self._spec, seed)
        self._data = datasets.load("digits")
        self._clients = partition(self._data.train, "iid", CLIENTS, seed)
        self._devices = _pool(self._clients, DEVICES)
        self._work: ClientWork = ClientWork(EPOCHS, batch_size=10, learning_rate=LEARNING_RATE, seed=seed, codec=CODEC)

    def simulate(self) -> tuple[Curve, Curve, Weights]:
        """20 clients of which 5 take part in a round; then, for comparison, the very fleet of stage four."""
        from cli.progress import round_progress
        from tff_sim.algorithms.fed_avg import build_fed_avg
        from tff_sim.engines.engine import ProcessEngine
        from tff_sim.experiments.evaluation import Evaluator
        from tff_sim.plan import honest, random_cohorts
        from tff_sim.simulation import always, simulate
        from tff_sim.workers.local import local_worker

        evaluate = Evaluator(self._spec, self._data.test)
        start = evaluate(self._initial).accuracy
        engine = ProcessEngine(build_fed_avg(self._spec, self._work, self._initial))
        random = random_cohorts(list(self._clients), DEVICES / CLIENTS, self._seed)
        plans = (
            (f"simulated, {CLIENTS} clients", self._clients, random, SIMULATED_ROUNDS),
            (f"simulated, {DEVICES} devices", self._devices, always(honest(list(self._devices))), FLEET_ROUNDS),
        )
        curves = []
        weights = self._initial
        with local_worker():
            for name, clients, plan, rounds in plans:
                accuracies, seconds = [start], 0.0
                with round_progress(name, rounds) as progress:
                    for done in simulate(engine, always(clients), always(self._work), plan, range(1, rounds + 1)):
                        weights = done.result.weights
                        accuracies.append(evaluate(weights).accuracy)
                        seconds += done.seconds
                        progress(done.number, f"loss {done.result.train_loss:.4f}  accuracy {accuracies[-1]:.2%}")
                sent = rounds * DEVICES
                curves.append(
                    Curve(name, tuple(accuracies), sent * self._upload(CODEC), sent * self._download(), seconds)
                )
        return curves[0], curves[1], weights

    def export(self) -> Bundle:
        from export.bundle_writer import export_bundle

        return export_bundle(self._spec, self._scratch / "bundles", seed=self._seed)

    def check_parity(self, bundle: Bundle) -> ParityReport:
        from export.parity import check_parity

        report = check_parity(bundle, seed=self._seed)
        if not report.ok:
            raise CheckFailedError(f"parity fails: {report.tensor} differs first, at step {report.step}")
        return report

    def run_fleet(self, bundle: Bundle) -> tuple[Curve, Weights, int]:
        """Rounds on real processes; also what the reports would have taken as float32."""
        import numpy as np

        from cli.fleet import run_fleet
        from cli.progress import round_progress
        from device_runtime.trainer import Trainer

        folder = self._scratch / "fleet"
        folder.mkdir()
        files = []
        for name, examples in self._devices.items():
            files.append(folder / f"{name}.npz")
            np.savez(files[-1], x=examples.x, y=examples.y)
        arguments = [
            *("--goal", str(DEVICES), "--over-selection", "1", "--minimum", str(DEVICES), "--codec", CODEC),
            *("--rounds", str(FLEET_ROUNDS), "--retry-seconds", "0.2", "--seed", str(self._seed)),
            *("--epochs", str(EPOCHS), "--batch-size", "10", "--lr", str(LEARNING_RATE)),
        ]
        started = time.perf_counter()
        with round_progress(f"fleet of {DEVICES} devices", FLEET_ROUNDS) as progress:
            result: FleetResult = run_fleet(
                bundle.path, bundle.manifest.tensors, arguments, MODEL, files, folder, progress
            )
        seconds = time.perf_counter() - started
        trainer = Trainer(bundle)
        accuracies = []
        for weights in (self._initial, *(done.weights for done in result.rounds)):
            trainer.set_weights(weights)
            accuracies.append(trainer.evaluate(self._data.test).accuracy)
        curve = Curve(
            f"device processes, {CODEC}",
            tuple(accuracies),
            result.upload_bytes,
            result.download_bytes,
            seconds,
        )
        return curve, result.rounds[-1].weights, FLEET_ROUNDS * DEVICES * self._upload("f32")

    def _upload(self, codec: str) -> int:
        from device_runtime.codec import encoded_size

        return encoded_size(self._tensors(), codec, ["loss"])

    def _download(self) -> int:
        from device_runtime.weights import dump_weights

        return len(dump_weights(self._initial, self._tensors()))

    def _tensors(self) -> list[Any]:
        import models
        from device_runtime.tensors import TensorSpec

        names = models.tensor_names(self._spec.build())
        return [TensorSpec(name, value.shape) for name, value in zip(names, self._initial, strict=True)]


def _pool(clients: dict[str, Examples], devices: int) -> dict[str, Examples]:
    """Deal the clients' data to fewer devices: device d gets that of clients d, d + devices, …"""
    import numpy as np

    from device_runtime.examples import Examples

    hands = list(clients.values())
    return {
        f"device-{index}": Examples(
            np.concatenate([hand.x for hand in hands[index::devices]]),
            np.concatenate([hand.y for hand in hands[index::devices]]),
        )
        for index in range(devices)
    }


def _clean(out: Path) -> Path:
    """A fresh folder for the run's working files, below `out`; only one that a demo has made is emptied."""
    scratch = out / "run"
    marker = scratch / ".pocketfed-demo"
    try:
        if scratch.exists() and not marker.exists():
            raise InputError(f"{scratch}: not a demo's folder, so that it is not overwritten; change --out")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        marker.touch()
    except OSError as error:
        raise InputError(f"{out}: can't write there: {error.strerror}; change --out") from None
    return scratch


def _print(curves: tuple[Curve, ...], summary: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("")
    for heading in ("rounds", "accuracy", "bytes up", "bytes down", "seconds"):
        table.add_column(heading, justify="right")
    for curve in curves:
        table.add_row(curve.name, *curve.cells())
    console = Console()
    console.print(table)
    share = summary["upload_bytes"] / summary["upload_bytes_float32"]
    console.print(
        f"parity over {summary['parity']['steps']} steps: largest relative difference"
        f" {summary['parity']['max_rel']:.1e}; {CODEC} took {share:.1%} of the bytes of float32;"
        f" {summary['seconds']:.0f} s in all",
        highlight=False,
    )
    console.print(f"report: {out / 'report.html'}", highlight=False)
