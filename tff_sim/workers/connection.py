"""A connection to one of TFF's workers that ends where the worker does.

TFF's own calls have no time limit, and TFF repeats those that a dead worker can't answer, without end. Here such a
call raises `WorkerLostError` at once, and a worker that has fallen silent is noticed by asking it something else
meanwhile: that tells one that was stopped or cut off from one that is busy, however long its clients take.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import tensorflow_federated as tff

from device_runtime.errors import NetworkError

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # workers are on this machine or on a private network
    ("grpc.use_local_subchannel_pool", 1),  # a new connection after a lost one, never the lost one again
    ("grpc.max_reconnect_backoff_ms", 5000),
]
# FAILED_PRECONDITION is what a worker answers that was restarted since, and TFF would repeat such a call without end.
_GONE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.FAILED_PRECONDITION,
)
# No server has this method; any gRPC server that lives answers that it has not, at once and at no cost.
_PING = "/pocketfed/Ping"
_PING_SECONDS = 5.0
_COMPUTATIONS = 16  # that an executor keeps in its worker
_EXECUTORS = 16  # that a connection keeps: one for each size of a cohort
# A round makes four values. While one of them is there, the worker keeps all that the round's result was made of.
_DISPOSED_TOGETHER = 4


class WorkerLostError(NetworkError):
    """A worker died, was cut off, or exceeded a time limit; the message says which."""


class WorkerConnection:
    """TFF's computations in one worker: `context` is a TFF context, `close` ends all calls.

    Args:
        target: gRPC's name of the address, such as ``10.0.0.2:8000`` or ``unix:/run/worker``.
        silence: seconds without any answer until the worker is taken for lost; None waits for ever.
        limit: seconds that one computation may take; None for as long as it answers otherwise.
        lost: turns what happened into the error's message.
    """

    def __init__(
        self,
        target: str,
        silence: float | None = None,
        limit: float | None = None,
        lost: Callable[[str], str] = lambda reason: reason,
    ) -> None:
        self._channel = _WatchedChannel(grpc.insecure_channel(target, options=_OPTIONS), silence, limit, lost)
        self._stub = _Stub(self._channel)
        self._executors = _Executors(self._stub)
        self.context: Any = tff.framework.SyncExecutionContext(
            executor_fn=self._executors,
            compiler_fn=tff.backends.native.desugar_and_transform_to_native,
        )

    @property
    def is_ready(self) -> bool:
        """Whether the connection stands at this moment."""
        return bool(self._stub.is_ready)

    def connect(self) -> None:
        """Try again, which gRPC does of itself only where no connection has stood yet, or where there is a call."""
        self._channel.connect()

    def check(self) -> None:
        """Ask what only TFF's workers can answer.

        Raises:
            NetworkError: it is none.
        """
        try:
            self._executors.create_executor({})
        except WorkerLostError:
            raise
        except grpc.RpcError as error:
            raise NetworkError("what answers there is no worker of TensorFlow Federated") from error

    def close(self) -> None:
        """Leave nothing behind in the worker, and end the connection with all calls that wait."""
        self._executors.close()
        self.abandon()

    def abandon(self) -> None:
        """End the connection with all calls that wait."""
        self._channel.close()
        self._executors.forget()  # now that nothing of it can wait for the worker


class _Executors(tff.framework.ExecutorFactory):
    """An executor for each number of clients; of many, those that were used last.

    TFF's own factory forgets the others without closing them, so that they stay in the worker.
    """

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._used: dict[int, _Executor] = {}  # the last one last

    def create_executor(self, cardinalities: Any) -> Any:
        clients = cardinalities.get(tff.CLIENTS, 0)  # a computation of the server alone has none
        if clients not in self._used:
            while len(self._used) >= _EXECUTORS:
                self._used.pop(next(iter(self._used))).close()
            executor = _Executor(self._stub)
            executor.set_cardinalities({tff.CLIENTS: clients})
        else:
            executor = self._used.pop(clients)
        self._used[clients] = executor
        return executor

    def clean_up_executor(self, cardinalities: Any) -> None:
        executor = self._used.pop(cardinalities.get(tff.CLIENTS, 0), None)
        if executor is not None:
            executor.close()

    def close(self) -> None:
        while self._used:
            self._used.popitem()[1].close()

    def forget(self) -> None:
        """Let go of all that is in the worker, without a word to it."""
        for executor in list(self._used.values()):  # a call in another thread may add one
            executor.forget()


class _Executor(tff.framework.RemoteExecutor):
    """Sends a computation to the worker once, where TFF sends it whenever it is called."""

    def __init__(self, stub: Any) -> None:
        super().__init__(stub, dispose_batch_size=_DISPOSED_TOGETHER)
        # id → the computation, so that no other has its id; and the value. A value keeps its executor alive for as long
        # as it lives itself: so they have to be let go of.
        self._sent: dict[int, tuple[Any, Any]] = {}

    async def create_value(self, value: Any, type_spec: Any = None) -> Any:
        if not isinstance(type_spec, tff.FunctionType):
            return await super().create_value(value, type_spec)
        _, sent = self._sent.get(id(value), (None, None))
        if sent is None:
            sent = await super().create_value(value, type_spec)
            while len(self._sent) >= _COMPUTATIONS:
                self._sent.pop(next(iter(self._sent)))
            self._sent[id(value)] = value, sent
        return sent

    def close(self) -> None:
        super().close()
        self.forget()

    def forget(self) -> None:
        self._sent.clear()


class _Stub(tff.framework.RemoteExecutorGrpcStub):
    """What can't be disposed of any more is gone already."""

    def dispose(self, request: Any) -> Any:
        with contextlib.suppress(WorkerLostError):
            super().dispose(request)

    def dispose_executor(self, request: Any) -> Any:
        with contextlib.suppress(WorkerLostError):
            super().dispose_executor(request)


class _WatchedChannel:
    """The part of `grpc.Channel` that TFF's stub uses, with calls that end."""

    def __init__(self, channel: Any, silence: float | None, limit: float | None, lost: Callable[[str], str]) -> None:
        self._channel = channel
        self._silence = silence
        self._limit = limit
        self._lost = lost
        self._error: WorkerLostError | None = None
        self._ping = channel.unary_unary(_PING)
        self.subscribe = channel.subscribe

    def unary_unary(self, method: str, **serializers: Any) -> Callable[[Any], Any]:
        start = self._channel.unary_unary(method, **serializers)

        def call(request: Any) -> Any:
            if self._error is not None:
                raise self._error
            try:
                return self._answer(start, request)
            except grpc.FutureCancelledError as error:
                raise self._gone("the connection was closed") from error
            except grpc.RpcError as error:
                if error.code() not in _GONE:
                    raise
                raise self._gone(self._reason(error)) from error

        return call

    def connect(self) -> None:
        def ignore(state: grpc.ChannelConnectivity) -> None: ...

        self._channel.subscribe(ignore, try_to_connect=True)
        self._channel.unsubscribe(ignore)

    def close(self) -> None:
        self._channel.close()

    def _answer(self, start: Any, request: Any) -> Any:
        try:
            if self._silence is None:
                return start(request, timeout=self._limit)  # without a thread of its own, which `future` starts
            call = start.future(request, timeout=self._limit)
        except ValueError as error:  # so says gRPC where the channel is closed
            raise self._gone("the connection was closed") from error
        while True:
            with contextlib.suppress(grpc.FutureTimeoutError):
                return call.result(_PING_SECONDS)
            try:
                self._ping(b"", timeout=self._silence)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    call.cancel()
                    raise self._gone(f"no answer for {self._silence:g} s") from None

    def _gone(self, reason: str) -> WorkerLostError:
        self._error = WorkerLostError(self._lost(reason))
        return self._error

    def _reason(self, error: Any) -> str:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"not done within {self._limit:g} s"
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            return f"it was restarted, or failed: {first_line(error.details())}"
        return "the connection broke off"


def first_line(text: str | None) -> str:
    """Of what gRPC says, which can be pages."""
    return ((text or "").splitlines() or ["no reason given"])[0]
