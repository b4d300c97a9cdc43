"""Rounds until the paper's 2NN reaches an accuracy, on a real fleet: a server and device processes, codec by codec.

McMahan et al. 2017: 100 clients with 600 examples of MNIST each, a tenth of them in a round, E = 1, B = 10. In every
round the same ten clients take part, whatever the codec, each in a new process of its own that goes on from its folder;
so the codecs differ in what they lose and in nothing else.

    python -m benchmarks.rounds --data-dir mnist --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import models
from benchmarks.errors import BenchmarkError
from benchmarks.kills import viewer
from device_runtime.bundle import Bundle
from device_runtime.examples import Examples
from device_runtime.messages import LATEST_WEIGHTS, STATUS
from device_runtime.trainer import Trainer
from device_runtime.transport import Transport
from device_runtime.weights import load_weights
from export.bundle_writer import export_bundle
from tff_sim import datasets
from tff_sim.child_process import dies_with_parent
from tff_sim.experiments.results import rounds_to_target
from tff_sim.partition import partition
from tff_sim.plan import random_cohorts

MODEL = "mnist_2nn"
LEARNING_RATE = 0.215
_LARGEST = 1 << 30
_DEVICE_SECONDS = 120.0


@dataclass(frozen=True)
class Run:
    """What one codec took.

    Attributes:
        codec, downlink: of the run.
        seed: of cohorts and clients.
        rounds: to the target, interpolated as in the paper; None where it was not reached.
        accuracies: after each round.
        upload_bytes: of a device in a round, on average.
        weights_bytes: that it fetched, beside the bundle, on average.
    """

    codec: str
    downlink: str
    seed: int
    rounds: float | None
    accuracies: tuple[float, ...]
    upload_bytes: float
    weights_bytes: float


class Fleet:
    """The 2NN's bundle, and a file of examples for each client."""

    def __init__(self, data_dir: Path, folder: Path, clients: int) -> None:
        self._folder = folder
        self.bundle: Bundle = export_bundle(models.get(MODEL), folder / "bundles", seed=0)
        data = datasets.load("mnist", data_dir)
        self._test: Examples = data.test
        self._trainer = Trainer(self.bundle)
        self.clients: list[str] = []
        for name, examples in partition(data.train, "iid", clients, seed=0).items():
            np.savez(folder / f"{name}.npz", x=examples.x, y=examples.y)
            self.clients.append(name)

    def run(self, codec: str, downlink: str, seed: int, cohort_size: int, target: float, limit: int) -> Run:
        """Rounds until the target accuracy is reached, or `limit` of them."""
        plan = random_cohorts(self.clients, cohort_size / len(self.clients), seed)
        accuracies: list[float] = []
        start = self._accuracy(self.bundle.file("weights.safetensors").read_bytes())
        options = ["--goal", str(cohort_size), "--over-selection", "1", "--minimum", str(cohort_size)]
        options += ["--codec", codec, "--downlink", downlink, "--seed", str(seed), "--lr", str(LEARNING_RATE)]
        options += ["--epochs", "1", "--batch-size", "10"]
        with tempfile.TemporaryDirectory(dir=self._folder) as name, self._server(name, options) as url:
            transport = Transport(url, caller=viewer(Path(name)))
            for number in range(1, limit + 1):
                self._round(url, list(plan(number).reports), Path(name))
                while json.loads(transport.request("GET", STATUS).body)["committed_rounds"] < number:
                    time.sleep(0.01)
                accuracies.append(self._accuracy(transport.request("GET", LATEST_WEIGHTS, limit=_LARGEST).body))
                if accuracies[-1] >= target:
                    break
            counts = json.loads(transport.request("GET", STATUS, limit=_LARGEST).body)["counts"]
        sessions = cohort_size * len(accuracies)
        seen = len({client for number in range(1, len(accuracies) + 1) for client in plan(number).reports})
        manifest = self.bundle.manifest
        bundle_bytes = len(manifest.dump()) + sum(entry.size for entry in manifest.files.values())
        return Run(
            codec,
            downlink,
            seed,
            rounds_to_target(start, accuracies, target),
            tuple(accuracies),
            counts["upload_bytes"] / sessions,
            (counts["download_bytes"] - seen * bundle_bytes) / sessions,
        )

    def _accuracy(self, weights: bytes) -> float:
        self._trainer.set_weights(load_weights(weights, self.bundle.manifest.tensors, "weights"))
        return self._trainer.evaluate(self._test).accuracy

    @contextmanager
    def _server(self, folder: str, options: Sequence[str]) -> Iterator[str]:
        arguments = [str(self.bundle.path), "--port", "0", "--db", f"sqlite:///{folder}/server.db", *options]
        arguments += ["--spool", f"{folder}/spool", "--keys", folder, "--open-enrolment"]
        with (Path(folder) / "server.log").open("w") as log:
            process = subprocess.Popen(
                dies_with_parent([str(Path(sys.executable).with_name("pocketfed")), "serve", *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                raise BenchmarkError(f"the server did not come up: {(Path(folder) / 'server.log').read_text()[-500:]}")
            yield line.removeprefix("listening on ").strip()
        finally:
            process.terminate()
            process.wait()

    def _round(self, url: str, cohort: Sequence[str], folder: Path) -> None:
        """Let these clients take part once; each goes on from a folder of its own."""
        with ExitStack() as stack:
            devices = []
            for client in cohort:
                log = stack.enter_context((folder / f"{client}.log").open("w"))
                arguments = ["--server", url, "--population", MODEL, "--client", client, "--rounds", "1"]
                arguments += ["--data", str(self._folder / f"{client}.npz"), "--cache", str(folder / client)]
                command = [sys.executable, "-m", "device_runtime.cli", "run", *arguments]
                devices.append(
                    subprocess.Popen(
                        dies_with_parent(command), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                    )
                )
            for client, device in zip(cohort, devices, strict=True):
                if device.wait(_DEVICE_SECONDS):
                    raise BenchmarkError(f"{client} failed: {(folder / f'{client}.log').read_text()[-500:]}")


def measure(
    data_dir: Path,
    codecs: Sequence[str],
    downlinks: Sequence[str],
    seeds: Sequence[int],
    clients: int,
    cohort_size: int,
    target: float,
    limit: int,
) -> Iterator[Run]:
    """The runs of all combinations, as they end."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(data_dir, Path(folder), clients)
        for seed in seeds:
            for downlink in downlinks:
                for codec in codecs:
                    yield fleet.run(codec, downlink, seed, cohort_size, target, limit)


def main() -> None:
    """Measure, and print a line of JSON for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with MNIST's IDX files")
    parser.add_argument("--codecs", nargs="+", default=["f32", "q8", "q4", "q2", "q1"])
    parser.add_argument("--downlinks", nargs="+", default=["f32"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--clients", type=int, default=100, help="among whom the examples are dealt (%(default)s)")
    parser.add_argument("--cohort", type=int, default=10, help="clients in a round (%(default)s)")
    parser.add_argument("--target", type=float, default=0.97)
    parser.add_argument("--limit", type=int, default=120)
    options = parser.parse_args()
    runs = measure(
        options.data_dir,
        options.codecs,
        options.downlinks,
        options.seeds,
        options.clients,
        options.cohort,
        options.target,
        options.limit,
    )
    for run in runs:
        print(json.dumps(asdict(run)), flush=True)


if __name__ == "__main__":
    main()
