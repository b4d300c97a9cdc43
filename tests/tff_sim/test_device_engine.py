"""Rounds of clients that device processes train: those of TensorFlow, the same again, and what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from device_runtime.bundle import Bundle
from device_runtime.errors import InputError, NetworkError
from device_runtime.examples import Examples
from device_runtime.selftest import relative_difference
from device_runtime.work import ClientWork
from tff_sim import build_fed_avg
from tff_sim.algorithms.algorithm import Algorithm, ServerOptimizer
from tff_sim.engines.device import DeviceEngine
from tff_sim.engines.device.pool import DevicePool
from tff_sim.engines.engine import ClientTask, Engine, EngineRound, ProcessEngine
from tff_sim.plan import Planner, RoundPlan, honest
from tff_sim.simulation import always, simulate

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

SPEC = models.get("digits_mlp")
WORK = ClientWork(epochs=2, batch_size=5, learning_rate=0.1, proximal=0.1, seed=4)
SIZES = {"large": 43, "uneven": 12, "few": 3, "single": 1}
LONG = replace(WORK, epochs=600)  # a second or so


@pytest.fixture(scope="module")
def clients(digits_examples: Callable[[int, int], Examples]) -> dict[str, Examples]:
    return {name: digits_examples(size, seed) for seed, (name, size) in enumerate(SIZES.items())}


@pytest.fixture(scope="module")
def engine(digits_bundle: Bundle) -> Iterator[DeviceEngine]:
    with DeviceEngine(digits_bundle.path, WORK, processes=2) as engine:
        yield engine


def _rounds(
    engine: Engine, clients: dict[str, Examples], work: ClientWork = WORK, plan: Planner | None = None
) -> list[EngineRound]:
    plan = plan or always(honest(list(clients)))
    return [done.result for done in simulate(engine, always(clients), always(work), plan, (1, 2))]


def _bytes(round_: EngineRound) -> list[bytes]:
    return [weight.tobytes() for weight in round_.weights]


@pytest.mark.parametrize(
    ("algorithm", "codec"),
    [
        (Algorithm(), "f32"),
        (Algorithm(aggregator="median", optimizer=ServerOptimizer("momentum")), "f32"),
        (Algorithm(weighting="uniform", clip_norm=0.05), "f32"),
        (Algorithm(), "f16"),
        (Algorithm(), "q4"),
        (Algorithm(clip_norm=0.05), "q1"),
    ],
)
def test_rounds_are_those_of_tensorflow(
    algorithm: Algorithm, codec: str, digits_bundle: Bundle, clients: dict[str, Examples]
) -> None:
    work = replace(WORK, codec=codec)
    initial = digits_bundle.initial_weights()
    plans = {
        1: RoundPlan({"large": 1.0, "few": -0.5, "single": 1.0}),
        2: RoundPlan({"uneven": 1.0, "large": 1.0, "few": 2.0, "single": 1.0}),
    }
    wanted = _rounds(ProcessEngine(build_fed_avg(SPEC, work, initial, algorithm)), clients, plan=plans.__getitem__)
    with DeviceEngine(digits_bundle.path, work, algorithm) as engine:
        got = _rounds(engine, clients, plan=plans.__getitem__)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert (ours.clients, ours.examples, ours.counts) == (theirs.clients, theirs.examples, theirs.counts)
        for one, two in zip(ours.weights, theirs.weights, strict=True):
            assert one.dtype == np.float32
            assert relative_difference(one, two) <= 1e-4
    moved = max(relative_difference(a, b) for a, b in zip(got[-1].weights, initial, strict=True))
    assert moved > 1e-2


def test_the_same_seed_is_the_same_run_to_the_bit(
    digits_bundle: Bundle, clients: dict[str, Examples], engine: DeviceEngine
) -> None:
    first = _rounds(engine, clients)
    for processes in (1, 3):
        with DeviceEngine(digits_bundle.path, WORK, processes=processes) as other:
            assert len(other.processes) == processes
            again = _rounds(other, clients)
        assert [_bytes(one) for one in again] == [_bytes(one) for one in first]
        assert [one.train_loss for one in again] == [one.train_loss for one in first]
    assert _bytes(_rounds(engine, clients, replace(WORK, seed=5))[0]) != _bytes(first[0])


def test_training_that_diverges_counts_for_nothing(
    engine: DeviceEngine, clients: dict[str, Examples], digits_bundle: Bundle
) -> None:
    state = engine.initialize()
    diverging = engine.round(state, replace(WORK, learning_rate=1e30), [ClientTask("few", clients["few"], 1)])
    assert np.isnan(diverging.train_loss)
    assert (diverging.clients, diverging.examples) == (0, 0)
    assert diverging.counts["non_finite"] == 1
    assert [w.tobytes() for w in diverging.weights] == [w.tobytes() for w in digits_bundle.initial_weights()]


def test_a_process_that_is_killed_in_the_middle_is_replaced(engine: DeviceEngine, clients: dict[str, Examples]) -> None:
    tasks = [ClientTask(name, examples, 7) for name, examples in clients.items()]
    state = engine.initialize()
    undisturbed = engine.round(state, LONG, tasks)
    before = engine.processes
    victim = before[0]
    seen: list[float] = []

    def kill() -> None:
        while not seen or _cpu_seconds(victim) < seen[0] + 0.2:  # it is in the middle of its training
            seen.append(_cpu_seconds(victim))
            time.sleep(0.02)
        os.kill(victim, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    disturbed = engine.round(state, LONG, tasks)
    thread.join()
    assert victim not in engine.processes
    assert len(engine.processes) == len(before)
    assert _bytes(disturbed) == _bytes(undisturbed)


def test_a_client_that_kills_every_process_is_named(engine: DeviceEngine, clients: dict[str, Examples]) -> None:
    state = engine.initialize()
    over = threading.Event()

    def kill_all() -> None:
        while not over.is_set():
            for process in engine.processes:
                if _cpu_seconds(process) > 0:
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)

    thread = threading.Thread(target=kill_all)
    thread.start()
    try:
        with pytest.raises(NetworkError) as caught:
            engine.round(state, LONG, [ClientTask("large", clients["large"], 7)])
    finally:
        over.set()
        thread.join()
    assert str(caught.value) in (
        "a device process ended with code -9 while it trained 'large', and so did the one that took its place; was the"
        " memory used up?",
        "a device process ended with code -9 as it started",
    )
    # The engine itself is as good as before.
    assert engine.round(state, WORK, [ClientTask("few", clients["few"], 7)]).clients == 1


def _cpu_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_bundle_of_another_model_is_named(engine: DeviceEngine, digits_bundle: Bundle) -> None:
    images = Examples(np.zeros((2, 28, 28, 1), np.float32), np.zeros(2, np.int32))
    with pytest.raises(InputError) as caught:
        engine.round(engine.initialize(), WORK, [ClientTask("client-000", images, 0)])
    assert str(caught.value) == (
        f"{digits_bundle.path}: a bundle of another model: it takes x of float32[n, 8, 8, 1], and the examples of"
        " 'client-000' have float32[2, 28, 28, 1]"
    )


def test_weights_of_another_model_are_refused_by_the_device(
    engine: DeviceEngine, digits_bundle: Bundle, clients: dict[str, Examples]
) -> None:
    state: Any = engine.initialize()
    weights = [np.zeros((3, 3), np.float32), *list(state.global_model_weights.trainable)[1:]]
    state = state._replace(global_model_weights=state.global_model_weights._replace(trainable=weights))
    with pytest.raises(InputError) as caught:
        engine.round(state, WORK, [ClientTask("few", clients["few"], 0)])
    assert str(caught.value).startswith(f"{digits_bundle.path}: can't train 'few': set_weights: tensor ")


def test_a_client_without_examples_is_refused(engine: DeviceEngine) -> None:
    nothing = Examples(np.zeros((0, 8, 8, 1), np.float32), np.zeros(0, np.int32))
    with pytest.raises(InputError) as caught:
        engine.round(engine.initialize(), WORK, [ClientTask("nobody", nothing, 0)])
    assert str(caught.value) == "'nobody' has no examples; leave it out of the cohort"


def test_the_number_of_processes_is_at_least_one(digits_bundle: Bundle) -> None:
    with pytest.raises(InputError) as caught:
        DevicePool(digits_bundle.path, 0)
    assert str(caught.value) == "the number of device processes should be at least 1, not 0"


def test_a_bundle_that_a_process_can_t_read_is_told_as_the_device_tells_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path / "none")), DevicePool(tmp_path / "none", 1):
        pass


def test_a_process_is_small() -> None:
    program = (
        "import sys, tff_sim.engines.device.worker; print(*{'tensorflow', 'tensorflow_federated'} & {*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


@pytest.mark.parametrize("way", ["block", "kill"])
def test_no_process_is_left(way: str, digits_bundle: Bundle) -> None:
    program = (
        "import sys; from pathlib import Path; from tff_sim.engines.device.pool import DevicePool\n"
        "with DevicePool(Path(sys.argv[1]), 2) as pool:\n"
        "    print(*pool.processes, flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(digits_bundle.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    processes = list(map(int, holder.stdout.readline().split()))
    assert len(processes) == 2
    assert all(map(_runs, processes))
    if way == "kill":
        holder.kill()
    holder.communicate()
    end = time.monotonic() + 30
    while any(map(_runs, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(_runs, processes))


def _runs(process: int) -> bool:
    try:
        return b"engines.device" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
