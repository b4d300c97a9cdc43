"""Rounds over several workers: the same result as on one machine, whoever is lost on the way."""

from __future__ import annotations

import contextlib
import csv
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import models
from cli.main import main
from device_runtime.errors import InputError, NetworkError
from device_runtime.examples import Examples
from device_runtime.tensors import Weights
from device_runtime.work import ClientWork
from tests.tff_sim.hosts import Host, RunningWorker, two_hosts, when_it_computes, worker_on, workers_at
from tff_sim import build_fed_avg, local_worker
from tff_sim.engines.engine import EngineRound, ProcessEngine
from tff_sim.plan import honest
from tff_sim.simulation import always, simulate
from tff_sim.workers.addresses import Workers, parse_addresses
from tff_sim.workers.remote import remote_workers

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

TIMEOUT = 600.0
SPEC = models.get("digits_mlp")
SHORT = ClientWork(epochs=2, batch_size=5, seed=3)
LONG = ClientWork(epochs=1500, batch_size=5, learning_rate=0.01, seed=3)  # seconds, so that something can happen


@pytest.fixture(scope="module")
def clients() -> dict[str, Examples]:
    rng = np.random.default_rng(0)
    return {
        f"client-{number}": Examples(
            rng.random((20 + number, 8, 8, 1), np.float32), rng.integers(0, 10, 20 + number).astype(np.int32)
        )
        for number in range(5)
    }


@pytest.fixture(scope="module")
def engine() -> ProcessEngine:
    return ProcessEngine(build_fed_avg(SPEC, SHORT, models.initial_weights(SPEC, 0)))


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as both:
        yield both


@pytest.fixture
def pair(hosts: tuple[Host, Host]) -> Iterator[tuple[RunningWorker, RunningWorker]]:
    with worker_on(hosts[0]) as first, worker_on(hosts[1]) as second:
        yield first, second


def _rounds(
    engine: ProcessEngine,
    clients: dict[str, Examples],
    work: ClientWork,
    numbers: Iterable[int],
    names: Sequence[str] = (),
    state: object = None,
) -> list[EngineRound]:
    plan = always(honest(list(names or clients)))
    return [done.result for done in simulate(engine, always(clients), always(work), plan, numbers, state)]


def _same_bits(left: Weights, right: Weights) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("names", [(), ("client-3",)], ids=["five clients", "fewer clients than workers"])
def test_two_workers_give_what_one_machine_gives(
    names: Sequence[str],
    engine: ProcessEngine,
    clients: dict[str, Examples],
    pair: tuple[RunningWorker, RunningWorker],
) -> None:
    with local_worker():
        alone = _rounds(engine, clients, SHORT, [1, 2], names)[-1]
    notices: list[str] = []
    with remote_workers(workers_at(pair), notices.append):
        together = _rounds(engine, clients, SHORT, [1, 2], names)[-1]
    assert notices == []
    assert (together.clients, together.examples) == (alone.clients, alone.examples)
    assert together.train_loss == pytest.approx(alone.train_loss, rel=1e-6)
    for ours, theirs in zip(together.weights, alone.weights, strict=True):
        # relative to the tensor's largest: a sum of a few terms in another order, where terms cancel out
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * float(np.abs(theirs).max()))


def _kill(worker: RunningWorker) -> None:
    worker.signal(signal.SIGKILL)


def _stop(worker: RunningWorker) -> None:
    worker.signal(signal.SIGSTOP)


def _go_on(worker: RunningWorker, stack: contextlib.ExitStack) -> None:
    worker.signal(signal.SIGCONT)


def _start_again(worker: RunningWorker, stack: contextlib.ExitStack) -> None:
    stack.enter_context(worker_on(worker.host))


def _cable(worker: RunningWorker, state: str) -> None:
    if worker.host.namespace is None:
        pytest.skip("network namespaces need root and 'ip'")
    subprocess.run(["ip", "-n", worker.host.namespace, "link", "set", "eth0", state], check=True)


@pytest.mark.parametrize(
    ("lose", "reason", "bring_back"),
    [
        pytest.param(_kill, "the connection broke off", _start_again, id="killed"),
        pytest.param(_stop, "no answer for 10 s", _go_on, id="stopped"),
        pytest.param(
            lambda worker: _cable(worker, "down"),
            "no answer for 10 s",
            lambda worker, stack: _cable(worker, "up"),
            id="unplugged",
        ),
    ],
)
def test_a_worker_that_is_lost_in_a_round_changes_nothing(
    lose: Callable[[RunningWorker], None],
    reason: str,
    bring_back: Callable[[RunningWorker, contextlib.ExitStack], None],
    engine: ProcessEngine,
    clients: dict[str, Examples],
    pair: tuple[RunningWorker, RunningWorker],
) -> None:
    if reason.startswith("no answer") and pair[1].host.namespace is None and lose is not _stop:
        pytest.skip("network namespaces need root and 'ip'")
    notices: list[str] = []
    with contextlib.ExitStack() as stack, remote_workers(workers_at(pair, silence=10), notices.append):
        first, undisturbed = _rounds(engine, clients, LONG, [1, 2])
        assert notices == []
        threading.Thread(target=when_it_computes, args=(pair[1], lambda: lose(pair[1]))).start()
        (disturbed,) = _rounds(engine, clients, LONG, [2], state=first.state)
        lost = f"worker {pair[1].address} is lost: {reason}; its share of the round goes to {pair[0].address}"
        assert notices == [lost]
        assert _same_bits(disturbed.weights, undisturbed.weights)

        bring_back(pair[1], stack)
        end = time.monotonic() + TIMEOUT
        while notices == [lost] and time.monotonic() < end:
            time.sleep(0.5)
            (again,) = _rounds(engine, clients, LONG, [2], state=first.state)
        assert notices == [lost, f"worker {pair[1].address} is back"]
        assert _same_bits(again.weights, undisturbed.weights)


def test_another_service_in_a_lost_worker_s_place_stays_out(
    engine: ProcessEngine, clients: dict[str, Examples]
) -> None:
    notices: list[str] = []
    here, there = Host("127.0.0.2"), Host("127.0.0.3")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(worker_on(here))
        second = stack.enter_context(worker_on(there))
        stack.enter_context(remote_workers(workers_at((first, second), silence=10), notices.append))
        _kill(second)
        _rounds(engine, clients, SHORT, [1])
        reason = "the connection broke off"
        lost = f"worker {second.address} is lost: {reason}; its share of the round goes to {first.address}"
        assert notices == [lost]
        asked: list[str] = []
        with _other_grpc_server(str(second.address), asked.append):
            end = time.monotonic() + 60
            while not any("Executor" in method for method in asked) and time.monotonic() < end:
                _rounds(engine, clients, SHORT, [1])
            _rounds(engine, clients, SHORT, [1])
        assert notices == [lost]
        stack.enter_context(worker_on(there))
        end = time.monotonic() + 60
        while notices == [lost] and time.monotonic() < end:
            _rounds(engine, clients, SHORT, [1])
        assert notices == [lost, f"worker {second.address} is back"]


def test_a_share_that_takes_too_long_everywhere_ends_the_run(
    engine: ProcessEngine, clients: dict[str, Examples], pair: tuple[RunningWorker, RunningWorker]
) -> None:
    endless = ClientWork(epochs=20_000, batch_size=1, learning_rate=0.01)
    notices: list[str] = []
    with (
        pytest.raises(NetworkError) as caught,
        remote_workers(workers_at(pair, limit=1), notices.append),
    ):
        _rounds(engine, clients, endless, [1])
    first, second = pair
    assert notices == [
        f"worker {first.address} is lost: not done within 1 s; its share of the round goes to {second.address}"
    ]
    assert str(caught.value) == f"no worker is left; the last, {second.address}, is lost: not done within 1 s"


def test_ctrl_c_does_not_wait_for_a_worker_that_stands_still(
    engine: ProcessEngine, clients: dict[str, Examples], pair: tuple[RunningWorker, RunningWorker]
) -> None:
    def stand_still() -> None:
        _stop(pair[1])
        os.kill(os.getpid(), signal.SIGINT)

    left: list[float] = []
    # Whoever runs the tests in a shell's background passes on that SIGINT is to be ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), remote_workers(workers_at(pair, silence=TIMEOUT)):
            threading.Thread(target=when_it_computes, args=(pair[1], stand_still)).start()
            try:
                _rounds(engine, clients, LONG, [1])
            finally:
                left.append(time.monotonic())
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - left[0] < 60
    assert [thread for thread in threading.enumerate() if thread.name.startswith("pocketfed-worker")] == []


def test_a_run_tells_of_a_lost_worker_and_ends_when_all_are(
    tmp_path: Path, pair: tuple[RunningWorker, RunningWorker]
) -> None:
    out = tmp_path / "run"
    workers = ",".join(str(worker.address) for worker in pair)
    arguments = ["--clients", "20", "--rounds", "100000", "--out", str(out), "--workers", workers]
    run = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "simulate", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    watchdog = threading.Timer(TIMEOUT, run.kill)  # else a run that never speaks would hold the tests for ever
    watchdog.start()
    try:
        assert run.stderr is not None
        assert re.match(r"simulating 1/100000  loss \d", run.stderr.readline())
        _kill(pair[0])
        lines = iter(run.stderr.readline, "")
        told = next(line for line in lines if not line.startswith("simulating "))
        assert re.match(r"simulating \d+/100000  loss \d", next(lines))
        _kill(pair[1])
        stdout, stderr = run.communicate(timeout=TIMEOUT)
    finally:
        watchdog.cancel()
        run.kill()
        run.communicate()
    assert told == (
        f"worker {pair[0].address} is lost: the connection broke off;"
        f" its share of the round goes to {pair[1].address}\n"
    )
    *progress, last = stderr.splitlines()
    assert last == f"pocketfed: no worker is left; the last, {pair[1].address}, is lost: the connection broke off"
    assert [line for line in progress if not line.startswith("simulating ")] == []
    assert (run.returncode, stdout) == (3, "")
    with (out / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) >= 2
    assert (out / "weights.safetensors").is_file()
    # The checkpoint is of the last round, and the run goes on from it, here on this machine.
    resume = ["simulate", "--clients", "20", "--rounds", str(len(rows) + 1), "--resume", "--out", str(out)]
    assert main(resume) == 0
    with (out / "metrics.csv").open(newline="") as stream:
        after = list(csv.DictReader(stream))
    assert (after[:-1], after[-1]["round"]) == (rows, str(len(rows) + 1))


def test_an_aggregation_that_needs_another_can_t_be_split(pair: tuple[RunningWorker, RunningWorker]) -> None:
    @tff.tensorflow.computation(np.float32, np.float32)
    def difference(value: Any, mean: Any) -> Any:
        return value - mean

    @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
    def spread(values: Any) -> Any:
        mean = tff.federated_broadcast(tff.federated_mean(values))
        return tff.federated_sum(tff.federated_map(difference, (values, mean)))

    with pytest.raises(InputError) as caught, remote_workers(workers_at(pair)):
        spread([1.0, 2.0, 4.0])
    assert str(caught.value) == (
        "this computation can't be split over workers: an aggregation in it waits for the result of another;"
        " run it on one machine"
    )


def test_a_computation_that_fails_in_a_worker_ends_the_run_in_a_line(
    pair: tuple[RunningWorker, RunningWorker],
) -> None:
    @tff.tensorflow.computation(np.float32)
    def small(value: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less(value, 2.0, "far too large")]):
            return tf.identity(value)

    @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
    def total(values: Any) -> Any:
        return tff.federated_sum(tff.federated_map(small, values))

    with remote_workers(workers_at(pair)):
        assert total([0.5, 1.0, 1.5]) == 3.0
        with pytest.raises(NetworkError) as caught:
            total([0.5, 1.0, 4.0])
        assert total([0.5, 1.0, 1.0]) == 2.5  # the workers live
    message = str(caught.value)
    assert message.startswith(f"worker {pair[1].address} can't compute its share (")
    assert "far too large" in message
    assert message.endswith("; do the examples fit the model, and does it run the same version?")
    assert "\n" not in message


@contextlib.contextmanager
def _web_server() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@contextlib.contextmanager
def _silent_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class _Listening(grpc.GenericRpcHandler):
    """Has no method, and tells of those that are asked for."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> None:
        self._told(handler_call_details.method)


@contextlib.contextmanager
def _other_grpc_server(
    address: str = "127.0.0.1:0", told: Callable[[str], None] = lambda method: None
) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[_Listening(told)])
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("service", "message"),
    [
        (_web_server, "something listens there, but did not answer as a worker within 3 s"),
        (_silent_server, "something listens there, but did not answer as a worker within 3 s"),
        (_other_grpc_server, "what answers there is no worker of TensorFlow Federated"),
    ],
)
def test_another_service_at_the_address(
    service: Callable[[], contextlib.AbstractContextManager[int]], message: str
) -> None:
    with service() as port:
        with (
            pytest.raises(NetworkError) as caught,
            remote_workers(Workers(parse_addresses(f"127.0.0.1:{port}"), silence=3)),
        ):
            pass
        assert str(caught.value) == f"worker 127.0.0.1:{port}: {message}"
