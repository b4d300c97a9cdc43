"""What clients that mean harm do to a model, and what the server's defences leave of it.

    python -m benchmarks.poisoning

`digits_mlp`, trained by a device's `Trainer` on the embedded digits, dealt at random to 30 clients who all take part in
every round; 3 of them poison. They train like the others and then change what they report. The server's own validation,
aggregation and step do the rest, in this process, without HTTP.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aggregation_server.aggregation.robust import Aggregation, aggregate_round
from aggregation_server.aggregation.state import ServerState
from aggregation_server.aggregation.validation import UNBOUNDED, Bounds, norm_of, validated_update
from benchmarks.exported import exported
from device_runtime.bundle import Bundle, open_bundle
from device_runtime.codec import EncodedUpdate, UpdateHeader, codec_named, read_update, shaped, write_update
from device_runtime.errors import IntegrityError, UpdateError
from device_runtime.tensors import FloatArray
from device_runtime.trainer import Trainer
from device_runtime.work import ClientWork, client_seed
from tff_sim import datasets
from tff_sim.partition import partition

CLIENTS, POISONERS = 30, 3
ROUNDS = 30
_CODEC = "q4"
_EPOCHS, _BATCH, _LEARNING_RATE = 1, 10, 0.3
_SCALE, _FLIP = 100.0, -10.0
_CLAIM = 2**30  # examples
_MARGIN = 2.0  # of the bounds, over the largest honest norm and number of examples

ATTACKS = {
    "scaled": "a hundred times the change",
    "flipped": "ten times the change, with the other sign",
    "NaN": "values that are no numbers",
    "replayed": "the first round's change again, encoded for this round",
    "weighted": "the change with the other sign, said to be of 2³⁰ examples",
    "hidden": "the change with the other sign, as long as the norm's bound allows",
}
"""Name → what a poisoner reports."""


@dataclass(frozen=True)
class Defence:
    """What a server does about it.

    Attributes:
        bounds: of norm and weight; None is no validation beyond the format, which no server is without.
        aggregation: of the updates.
    """

    bounds: Bounds | None
    aggregation: Aggregation


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        accuracy: on the test examples, at the end.
        norm, examples: the largest of an honest client's update.
        refused: reports, by reason.
        abandoned: rounds without a step, for the new weights would not have been finite.
    """

    accuracy: float = 0.0
    norm: float = 0.0
    examples: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    abandoned: int = 0

    def look_at(self, update: EncodedUpdate) -> None:
        """Of an honest client."""
        self.norm = max(self.norm, norm_of(update))
        self.examples = max(self.examples, update.header.weight)


class Fleet:
    """Clients, some of whom poison, and a server.

    Args:
        bundle: of `digits_mlp`.
        seed: fixes the dealing of the examples, who poisons, and all training.
        rounds: of each run.
    """

    def __init__(self, bundle: Bundle, seed: int, rounds: int = ROUNDS) -> None:
        data = datasets.load("digits")
        self._clients = partition(data.train, "iid", CLIENTS, seed)
        self._test = data.test
        self._seed, self._rounds = seed, rounds
        self._bundle, self._manifest = bundle, bundle.manifest
        self._trainer = Trainer(bundle)
        names = sorted(self._clients)
        draws = np.random.Generator(np.random.Philox(seed))
        self._poisoners = set(draws.choice(names, POISONERS, replace=False).tolist())

    def run(self, attack: str | None, defence: Defence, norm: float = 0.0) -> Outcome:
        """Train with one of `ATTACKS`, or without.

        Args:
            attack: what poisoners do; None for nothing.
            defence: of the server.
            norm: to which a hidden attack stretches.
        """
        specs, outcome = self._manifest.tensors, Outcome()
        state = ServerState.of(0, self._bundle.initial_weights(), specs)
        first: dict[str, FloatArray] = {}
        for number in range(1, self._rounds + 1):
            reports = []
            for name in sorted(self._clients):
                delta = self._delta(state, name, number)
                try:
                    if attack is None or name not in self._poisoners:
                        body = self._encoded(delta, name, number)
                        outcome.look_at(read_update(body, specs, self._manifest.model_id))
                    else:
                        body = self._poisoned(attack, delta, first.setdefault(name, delta), name, number, norm)
                    reports.append(self._validated(body, number, defence.bounds))
                except UpdateError as error:  # a device refuses, too, once its training has come to no number
                    outcome.refused[error.reason] += 1
            if not reports:
                outcome.abandoned += 1
                continue
            key = (self._seed, number)
            mean, _ = aggregate_round(reports, lambda update: update, specs, defence.aggregation, key)
            try:
                state = state.after(mean, specs)
            except IntegrityError:
                outcome.abandoned += 1
        self._trainer.set_weights(state.weights)
        outcome.accuracy = self._trainer.evaluate(self._test).accuracy
        return outcome

    def _delta(self, state: ServerState, name: str, number: int) -> FloatArray:
        work = ClientWork(_EPOCHS, _BATCH, _LEARNING_RATE, seed=client_seed(self._seed, number, name))
        trained = self._trainer.train(state.weights, self._clients[name], work, number)
        return np.concatenate([tensor.reshape(-1) for tensor in trained.deltas()])

    def _validated(self, body: bytes, number: int, bounds: Bounds | None) -> EncodedUpdate:
        if bounds is None:
            return read_update(body, self._manifest.tensors, self._manifest.model_id)
        return validated_update(body, self._manifest, number, bounds)

    def _encoded(
        self, delta: FloatArray, name: str, number: int, weight: int | None = None, codec: str = _CODEC
    ) -> bytes:
        examples = len(self._clients[name]) if weight is None else weight
        seed = client_seed(self._seed, number, name)
        header = UpdateHeader(codec_named(codec).number, self._manifest.model_id, number, examples, seed)
        file = io.BytesIO()
        write_update(file, header, shaped(delta, self._manifest.tensors))
        return file.getvalue()

    def _poisoned(
        self, attack: str, delta: FloatArray, first: FloatArray, name: str, number: int, norm: float
    ) -> bytes:
        if attack == "NaN":  # no encoder writes them
            content = self._encoded(delta, name, number, codec="f32")[:-8] + struct.pack("<f", np.nan)
            return content + struct.pack("<I", zlib.crc32(content))
        if attack == "weighted":
            return self._encoded(-delta, name, number, _CLAIM)
        stretch = 0.99 * norm / float(np.linalg.norm(delta))  # what is decoded may be a little longer
        changed = {"scaled": _SCALE * delta, "flipped": _FLIP * delta, "replayed": first, "hidden": -stretch * delta}
        return self._encoded(changed[attack].astype(np.float32), name, number)


def defences(honest: Outcome) -> dict[str, Defence]:
    """Those of the table, with bounds that honest clients keep."""
    bounds = Bounds(_MARGIN * honest.norm, round(_MARGIN * honest.examples))
    trimmed = Aggregation("trimmed_mean", CLIENTS, POISONERS / CLIENTS)
    return {
        "none": Defence(None, Aggregation()),
        "bounds": Defence(bounds, Aggregation()),
        "trimmed mean": Defence(None, trimmed),
        "bounds, trimmed mean": Defence(bounds, trimmed),
        "bounds, median of 10": Defence(bounds, Aggregation("median", 10)),
    }


def measure(
    bundle: Bundle, seeds: int, rounds: int, tell: Callable[[str], None] = lambda line: None
) -> dict[tuple[str, str], list[Outcome]]:
    """(attack or "nobody", defence) → the outcome with each seed."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for seed in range(seeds):
        fleet = Fleet(bundle, seed, rounds)
        honest = fleet.run(None, Defence(UNBOUNDED, Aggregation()))
        tell(f"seed {seed}: honest norms up to {honest.norm:.3g}, examples up to {honest.examples}")
        for attack in (None, *ATTACKS):
            for title, defence in defences(honest).items():
                outcome = fleet.run(attack, defence, _MARGIN * honest.norm)
                found.setdefault((attack or "nobody", title), []).append(outcome)
                tell(f"seed {seed}, {attack or 'nobody'}, {title}: {outcome}")
    return found


def table(found: dict[tuple[str, str], list[Outcome]]) -> str:
    """In Markdown: accuracy in percent, mean over the seeds."""
    titles = list(dict.fromkeys(title for _, title in found))
    lines = ["| 3 of 30 clients report | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(titles)]
    for attack in dict.fromkeys(attack for attack, _ in found):
        cells = [_cell(found[attack, title]) for title in titles]
        lines.append(f"| {ATTACKS.get(attack, 'as the others')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(outcomes: list[Outcome]) -> str:
    return f"{100 * np.mean([outcome.accuracy for outcome in outcomes]):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(exported("digits_mlp", Path(folder))[0])
        print(table(measure(bundle, arguments.seeds, arguments.rounds, lambda line: print(line, file=sys.stderr))))


if __name__ == "__main__":
    main()
