"""TFF's computations over several workers, on this machine or on others.

A computation such as a round is split where TFF would aggregate over the clients, into what TFF calls a mergeable
computation. Each worker trains its share of the cohort and returns a partial sum; the sums are merged, and the server's
part is computed, in a worker on this machine. TFF's own context for it (`create_mergeable_comp_execution_context`) asks
one worker after the other, merges in the order in which they come, and waits without end for one that is lost.

As many shares are dealt as there are workers at the start, whoever computes them, and they are merged in their order. A
computation has no other inputs than its arguments, so that a share can be computed again elsewhere when a worker is
lost, and the result is the same to the bit.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import tensorflow_federated as tff

from device_runtime.errors import InputError, NetworkError
from tff_sim.workers.addresses import Address, Workers, require_reachable
from tff_sim.workers.connection import WorkerConnection, WorkerLostError, first_line
from tff_sim.workers.local import local_context, local_worker
from tff_sim.workers.notices import Notice, to_stderr

_POLL_SECONDS = 0.05


def computing_on(
    workers: Workers | None, threads: int, notice: Notice = to_stderr
) -> contextlib.AbstractContextManager[None]:
    """`remote_workers` where there are any, else `local_worker` with so many threads a client."""
    return local_worker(notice, threads) if workers is None else remote_workers(workers, notice)


@contextlib.contextmanager
def remote_workers(workers: Workers, notice: Notice = to_stderr) -> Iterator[None]:
    """Run TFF's computations on these workers for the time of the `with` block, as `local_worker` does on one.

    A worker that is lost is left out; where it comes back, it takes part again from the next computation on.

    Args:
        workers: where they are.
        notice: told, in a line, of each worker that is lost or back.

    Raises:
        InputError: an address leads to the same worker as another; in the block: a computation can't be split.
        NetworkError: a worker can't be reached at the start, or is no worker; in the block: all are lost.
    """
    require_reachable(workers.addresses, workers.silence)
    with contextlib.ExitStack() as stack:
        pool = [_Worker(address, workers.silence, workers.limit) for address in workers.addresses]
        for worker in pool:
            stack.callback(worker.close)
        end = time.monotonic() + workers.silence
        for worker in pool:
            worker.wait_until_ready(end)
        server = stack.enter_context(local_context(notice))
        threads = stack.enter_context(ThreadPoolExecutor(len(pool), "pocketfed-worker"))
        # Before the pool waits for its threads: where the block was left in the middle, their calls end here.
        for worker in pool:
            stack.callback(worker.stop)
        context = _WorkersContext(pool, server, threads, notice)
        stack.enter_context(tff.framework.get_context_stack().install(context))
        yield


class _Worker:
    """A worker at an address, over as many connections as it takes, one at a time.

    `lost`: it is left out at the moment; `busy`: it computes.
    """

    def __init__(self, address: Address, silence: float, limit: float | None) -> None:
        self.address = address
        self.lost = False
        self.busy = False
        self._silence = silence
        self._connect: Callable[[], WorkerConnection] = functools.partial(
            WorkerConnection, f"dns:///{address}", silence, limit
        )
        self._connection = self._connect()

    def wait_until_ready(self, end: float) -> None:
        """Wait until the connection stands, at most until this instant of `time.monotonic`; and see what it is."""
        while not self._connection.is_ready:
            if time.monotonic() > end:
                raise NetworkError(
                    f"worker {self.address}: something listens there, but did not answer as a worker within"
                    f" {self._silence:g} s"
                )
            time.sleep(_POLL_SECONDS)
        try:
            self._connection.check()
        except NetworkError as error:
            raise NetworkError(f"worker {self.address}: {error}") from error

    def invoke(self, computation: Any, argument: Any) -> Any:
        """The computation's result.

        Raises:
            WorkerLostError: the worker is lost, and another may compute it.
            NetworkError: the worker lives, and says that it can't.
        """
        self.busy = True
        try:
            return self._connection.context.invoke(computation, argument)
        except grpc.RpcError as error:
            raise NetworkError(
                f"worker {self.address} can't compute its share ({error.code().name}: {first_line(error.details())});"
                " do the examples fit the model, and does it run the same version?"
            ) from error
        finally:
            self.busy = False

    def lose(self) -> None:
        """Give up the connection, and try for a new one meanwhile."""
        self.lost = True
        self._connection.abandon()
        self._connection = self._connect()

    def return_if_ready(self) -> bool:
        """Whether it was lost and is not any more."""
        if not self.lost:
            return False
        if not self._connection.is_ready:
            self._connection.connect()
            return False
        try:
            self._connection.check()
        except NetworkError:  # something else listens there now, until a worker does again
            self.lose()
            return False
        self.lost = False
        return True

    def stop(self) -> None:
        """End a computation that goes on."""
        if self.busy:
            self._connection.abandon()

    def close(self) -> None:
        """Leave nothing behind in the worker, where it can still be told."""
        if self.lost:
            self._connection.abandon()
        else:
            self._connection.close()


class _WorkersContext(tff.framework.SyncContext):
    def __init__(self, workers: Sequence[_Worker], server: Any, threads: ThreadPoolExecutor, notice: Notice) -> None:
        self._workers = workers
        self._server = server
        self._threads = threads
        self._notice = notice

    def invoke(self, comp: Any, arg: Any) -> Any:
        if not _has_clients(comp.type_signature.parameter):
            return self._server.invoke(comp, arg)
        form = _mergeable(comp)
        parameter = form.up_to_merge.type_signature.parameter
        sums = self._sums(form.up_to_merge, _shares(arg, parameter, len(self._workers)))
        merged = functools.reduce(
            lambda left, right: self._server.invoke(form.merge, tff.structure.Struct.unnamed(left, right)), sums
        )
        # What is left to do depends on no client any more.
        no_clients = _map_clients(arg, parameter, lambda clients: [])
        return self._server.invoke(form.after_merge, tff.structure.Struct.unnamed(no_clients, merged))

    def _sums(self, computation: Any, shares: Sequence[Any]) -> list[Any]:
        """The computation of every share, each by one worker at a time, and again elsewhere where a worker is lost."""
        for worker in self._workers:
            if worker.return_if_ready():
                self._notice(f"worker {worker.address} is back")
        done: dict[int, Any] = {}
        while len(done) < len(shares):
            left = [worker for worker in self._workers if not worker.lost]
            open_shares = [number for number in range(len(shares)) if number not in done]
            calls = [
                (number, worker, self._threads.submit(worker.invoke, computation, shares[number]))
                for number, worker in zip(open_shares, left, strict=False)
            ]
            for number, worker, call in calls:
                try:
                    done[number] = call.result()
                except WorkerLostError as error:
                    worker.lose()
                    self._tell(worker, error)
        return [done[number] for number in range(len(shares))]

    def _tell(self, lost: _Worker, error: WorkerLostError) -> None:
        left = [str(worker.address) for worker in self._workers if not worker.lost]
        if not left:
            raise NetworkError(f"no worker is left; the last, {lost.address}, is lost: {error}") from error
        self._notice(f"worker {lost.address} is lost: {error}; its share of the round goes to {' or '.join(left)}")


@functools.lru_cache(maxsize=32)
def _mergeable(computation: Any) -> Any:
    try:
        return tff.backends.native.compile_to_mergeable_comp_form(computation)
    except (TypeError, ValueError) as error:
        raise InputError(
            "this computation can't be split over workers: an aggregation in it waits for the result of another;"
            " run it on one machine"
        ) from error


def _has_clients(type_spec: Any) -> bool:
    if isinstance(type_spec, tff.StructType):
        return any(_has_clients(element) for _, element in tff.structure.iter_elements(type_spec))
    return _is_clients(type_spec)


def _is_clients(type_spec: Any) -> bool:
    return isinstance(type_spec, tff.FederatedType) and type_spec.placement is tff.CLIENTS and not type_spec.all_equal


def _map_clients(value: Any, type_spec: Any, choose: Callable[[Any], Any]) -> Any:
    """The value, with `choose` of each list that holds an element a client."""
    if isinstance(type_spec, tff.StructType):
        values = [element for _, element in tff.structure.iter_elements(tff.structure.from_container(value))]
        return tff.structure.Struct(
            (name, _map_clients(element, spec, choose))
            for element, (name, spec) in zip(values, tff.structure.iter_elements(type_spec), strict=True)
        )
    return choose(value) if _is_clients(type_spec) else value


def _shares(value: Any, type_spec: Any, number: int) -> list[Any]:
    """The value in at most `number` parts, with as many clients each as can be, in their order."""
    counts: list[int] = []
    _map_clients(value, type_spec, lambda clients: counts.append(len(clients)))
    parts = max(min(number, counts[0]), 1)
    bounds = [counts[0] * part // parts for part in range(parts + 1)]
    return [
        _map_clients(value, type_spec, operator.itemgetter(slice(start, stop)))
        for start, stop in itertools.pairwise(bounds)
    ]
