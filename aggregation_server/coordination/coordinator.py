"""`Coordinator`: what the fleet's callers are answered, and when its rounds begin and end.

The decisions are made in the pure modules; what is left here is to ask the clock, to open a round where there is none,
to end those that time out, and to count. Requests come in batches (`handle`), one thread at a time; another thread
turns reports into new weights (`committer`). What is shared by all servers of a fleet is in the store; what is kept
here is only a copy of what does not change.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from aggregation_server.access.limits import RateLimits
from aggregation_server.access.tokens import Ticket, read_token
from aggregation_server.aggregation.downlink import Downlink, EncodedWeights
from aggregation_server.aggregation.state import ServerState
from aggregation_server.aggregation.validation import validated_evaluation, validated_update
from aggregation_server.coordination.clock import ServerClock
from aggregation_server.coordination.closing import abandon
from aggregation_server.coordination.pace import JITTER, PaceSteering, RoundLengths
from aggregation_server.coordination.requests import (
    Admission,
    Caller,
    DeniedError,
    LimitedError,
    ReportRequest,
    Request,
)
from aggregation_server.coordination.turn import Checked, Denial, Reply, Turn, Turns, admitted
from aggregation_server.history import Counts
from aggregation_server.rounds import UNKNOWN_TOKEN, Phase, Round
from aggregation_server.storage.database import StoreError
from aggregation_server.storage.ledger import Ledger
from aggregation_server.storage.rows import Device
from aggregation_server.storage.spool import Spool, SpoolError
from aggregation_server.storage.store import Store
from aggregation_server.task import Task
from device_runtime.bundle import Bundle, Manifest
from device_runtime.errors import IntegrityError, UpdateError
from device_runtime.messages import Configuration, ReportReply
from device_runtime.work import client_seed

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 86_400.0  # seconds
_MOST_PREDICTIONS = 10**9
_CLOCK_SECONDS = 1.0  # by which the database's clock may be behind while nothing changes
_AGAIN_SECONDS = 1.0  # after a turn that failed, until one that nobody asks for


class Coordinator:
    """One server's part in the rounds of a fleet.

    Args:
        bundle: what devices train with; of the store's model.
        task: what they are to do.
        store: holds the state; closed by the caller.
        spool: holds the reports of the open round.
        clock: the server's.
        rng: of the selection, and of the retry windows' jitter.
        limits: of each device's requests; None for no limit.

    Attributes:
        committing: whether a round has its reports, and waits to be committed.
        complete: whether the task has had all its rounds.
        turns: that this server has taken for somebody.
    """

    def __init__(
        self,
        bundle: Bundle,
        task: Task,
        store: Store,
        spool: Spool,
        *,
        clock: ServerClock | None = None,
        rng: random.Random | None = None,
        limits: RateLimits | None = None,
    ) -> None:
        self.bundle = bundle
        self.task = task
        self.population = task.population if task.population is not None else bundle.manifest.name
        self.store = store
        self.spool = spool
        self.clock = clock or ServerClock()
        manifest = bundle.manifest
        self.downlink = Downlink(manifest.tensors, manifest.model_id, task.downlink, task.seed)
        self._rng = rng or random.SystemRandom()
        self._limits = limits
        self._counts = Counts()  # of what was answered without a turn
        self._counting = threading.Lock()
        self._loading = threading.Lock()
        self._most_predictions = _most_predictions(manifest, task)
        self._pacing = threading.Lock()
        fleet = store.fleet()
        self.token_key = fleet.token_key
        store.claim_spool(spool.identity, spool.folder)
        self.clock.agree(fleet.clock)
        self._state = self._made = self._load(fleet.number, fleet.weights)
        self._due = self._again = self.clock.now()
        self._open: int | None = None
        self._running: Round | None = None
        self._lengths = RoundLengths()
        self._pace = PaceSteering(task.checkin_rate, task.retry_seconds)
        self.committing = False
        self.complete = False
        self.turns = Turns()
        if fleet.number:
            logger.info("going on after version %d", fleet.number, extra={"event": "started", "version": fleet.number})
        self.handle(())
        spool.forget_before(store.first_open_id())  # a server that was killed could not

    @property
    def state(self) -> ServerState:
        """The version that is in force, as far as this server knows."""
        return self._state

    def state_of(self, number: int, identity: str) -> ServerState:
        """A version of the weights as a state; usually the one that is at hand."""
        for state in (self._state, self._made):
            if (state.round_number, state.identity) == (number, identity):
                return state
        return self._load(number, identity)

    def made(self, state: ServerState, encoded: EncodedWeights | None) -> None:
        """Have a version at hand, and its encoded form, that is about to be committed here."""
        with self._loading:
            self.downlink.remember(state.identity, encoded)
        self._made = state

    def due(self) -> bool:
        """Whether a turn is worth while although nobody asks for anything."""
        now = self.clock.now()
        return now >= self._again and (bool(self._counts) or now >= self._due)

    def hurry(self) -> None:
        """A turn is worth while now: something has changed."""
        self._due = self.clock.now()

    def handle(self, requests: Sequence[Request]) -> list[Reply | Exception]:
        """Answer a batch of requests in one transaction, and make the transitions that are due.

        Returns:
            For each request its answer, `DeniedError` for a caller that is not known, `LimitedError` for one that asks
            too often, or `StoreError` where the
            database or the disk failed: then it changed nothing, and may be asked again.
        """
        asked = [request for request in requests if isinstance(request, Admission)]
        others = [request for request in requests if not isinstance(request, Admission)]
        admissions = iter(self._admissions(asked) if asked else ())
        replies = iter(self._replies(others) if others or not asked else ())
        return [next(admissions if isinstance(request, Admission) else replies) for request in requests]

    def refuse(self, reason: str, message: str) -> ReportReply:
        """Count a report that is refused before it is looked at, and say so."""
        with self._counting:
            self._counts.refuse(reason)
        return ReportReply("refused", reason, message)

    def downloaded(self, size: int) -> None:
        """Count bytes of a bundle or of weights that go to a device."""
        with self._counting:
            self._counts.download_bytes += size

    def ticket(self, token: str, client: str) -> Ticket | None:
        """What a token says; None where it is not this client's."""
        return read_token(token, client, self.token_key)

    def weights_at_hand(self, identity: str) -> bytes | None:
        """As `weights`, of what is in memory alone: the latest."""
        state = self._state
        return state.data if identity == state.identity else None

    def weights(self, identity: str) -> bytes | None:
        """The weights with this content hash; None where there is no such version, or not any more."""
        return self.weights_at_hand(identity) or self.store.weights(identity)

    def encoded_weights(self, identity: str) -> bytes | None:
        """Encoded weights by the SHA-256 of their bytes; None where there are none. `Downlink.encoded` is at hand."""
        return self.downlink.encoded(identity) or self.store.encoded_weights(identity)

    def _admissions(self, asked: Sequence[Admission]) -> list[Reply | Exception]:
        """Who may download: a question that changes nothing, and can be answered when nothing can be written."""
        try:
            devices = self.store.devices({request.caller.name for request in asked})
        except StoreError as error:
            return [error] * len(asked)
        callers = [request.caller for request in asked]
        return [self._admission(caller, devices.get(caller.name)) for caller in callers]

    def _admission(self, caller: Caller, device: Device | None) -> Reply | Exception:
        if not admitted(caller, device):
            return DeniedError(caller.name)
        wait = 0.0 if self._limits is None else self._limits.take(caller.name, self.clock.now())
        return LimitedError(wait) if wait > 0 else True

    def _replies(self, requests: Sequence[Request]) -> list[Reply | Exception]:
        checked = {
            place: self._checked(request)
            for place, request in enumerate(requests)
            if isinstance(request, ReportRequest)
        }
        try:
            return self._turn(requests, checked)
        except SpoolError as error:  # the others need no disk
            logger.error("reports are refused: %s", error, extra={"event": "storage_failed"})
            others = [request for place, request in enumerate(requests) if place not in checked]
            answers = iter(self._replies(others) if others else ())
            return [error if place in checked else next(answers) for place in range(len(requests))]
        except StoreError as error:
            what = f"{len(requests)} requests are refused" if requests else "the round does not go on"
            logger.error("%s: %s", what, error, extra={"event": "storage_failed"})
            self._again = self.clock.now() + _AGAIN_SECONDS
            return [error] * len(requests)

    def _turn(self, requests: Sequence[Request], checked: dict[int, Checked]) -> list[Reply | Exception]:
        with self._counting:
            counted, self._counts = self._counts, Counts()
        try:
            with self.store.ledger(self.task.round) as ledger:
                began = time.perf_counter()
                if self.spool.in_doubt:
                    self.spool.cut(ledger.counted_bytes(*self.spool.segment))
                now = self.clock.agree(ledger.fleet.clock)
                complete, current, counts = self._advance(ledger, now)
                self._state = self.state_of(ledger.fleet.number, ledger.fleet.weights)
                turn = Turn(
                    ledger,
                    self.task,
                    self.population,
                    now,
                    self._rng,
                    current,
                    counts + counted,
                    complete,
                    self._configure,
                    self.retry_after,
                    self._limits,
                )
                answers: list[Reply | Denial] = turn.answer(requests, checked)
                turn.finish(self.spool)
                if current is None and turn.counts:  # nobody's round: it goes to the fleet's account
                    ledger.set_fleet(counts=asdict(ledger.fleet.counts + turn.counts))
                if ledger.changed or now - ledger.fleet.clock >= _CLOCK_SECONDS:
                    ledger.set_fleet(clock=now)
        except BaseException:
            with self._counting:
                self._counts += counted
            raise
        if requests:
            self.turns = self.turns.after(len(requests), time.perf_counter() - began)
        self.spool.keep()
        self.complete, after = complete, turn.round
        self._follow(after, now)
        with self._pacing:
            for _ in range(turn.counts.accepted - counts.accepted):  # they come back too
                self._pace.arrived(now)
        self.committing = after is not None and after.phase is Phase.COMMITTING
        self._due = now + self._idle_seconds(after, now)
        return list(answers)

    def _advance(self, ledger: Ledger, now: float) -> tuple[bool, Round | None, Counts]:
        """Whether the task is complete, and the open round after what was due."""
        found = ledger.open_round()
        if found is not None:
            current, counts, opened = found
            waiting = current.phase is Phase.SELECTION
            if ledger.fleet.paused and waiting:
                return False, None, Counts()
            after = current.tick(now)
            if after.phase is not Phase.ABANDONED:
                return False, after, counts
            if not current.cohort and current.task == "training":
                return False, replace(current, since=now), counts  # nobody came: there is nothing to remember
            abandon(ledger, after, counts, opened, now)
        if ledger.fleet.paused:
            return False, None, Counts()
        number = ledger.fleet.number
        every = self.task.evaluate_every
        if every is not None and number and number % every == 0 and not ledger.evaluated(number):
            return False, ledger.begin_round(number, "evaluation", now), Counts()
        if self.task.rounds is not None and number >= self.task.rounds:
            return True, None, Counts()
        return False, ledger.begin_round(number + 1, "training", now), Counts()

    def _checked(self, request: ReportRequest) -> Checked:
        """What is to be kept of a report, or why nothing is."""
        ticket = self.ticket(request.token, request.caller.name)
        if ticket is None:
            return UNKNOWN_TOKEN
        manifest = self.bundle.manifest
        try:
            if ticket.task == "evaluation":
                return validated_evaluation(request.body, manifest.metric, ticket.round_number, self._most_predictions)
            validated_update(request.body, manifest, ticket.round_number, self.task.bounds)
        except UpdateError as error:
            return ReportReply("refused", error.reason, str(error))
        return request.body

    def _configure(self, current: Round, client: str, holds: str, now: float) -> Configuration:
        seed = client_seed(self.task.seed, current.number, client)
        work = replace(self.task.work, seed=seed, deadline_seconds=max(current.deadline - now, 1e-3))
        route = self.downlink.route(holds, self._state.identity, len(self._state.data))
        return Configuration(
            "start",
            round_number=current.number,
            task=current.task,
            bundle=self.bundle.identity,
            weights=self._state.identity,
            base=route.base,
            encoded=list(route.encoded),
            work=work.to_json(),
        )

    def retry_after(self, rest: float = 0.0) -> float:
        """Seconds for which a device that checked in just now is to wait; at least `rest`.

        Devices vary every wait by themselves, so that those that were rejected together do not come back together.
        """
        now = self.clock.now()
        running = self._running
        needed = None if running is None else self._lengths.next_selection(running.since, now, running.deadline)
        with self._pacing:
            self._pace.arrived(now)
            return min(max(self._pace.window(now, needed), rest), _LONGEST_WAIT)

    def busy_seconds(self) -> int:
        """Whole seconds of ``Retry-After``, for a caller whom the server is too busy for; in any thread.

        Devices lengthen this wait by up to 20 % and never shorten it. So it is shortened here, for them to come back as
        those that were rejected do.
        """
        return math.ceil(self.retry_after() * self._rng.uniform(1 - JITTER, 1))

    def _follow(self, after: Round | None, now: float) -> None:
        """Learn from how the open round stands, and from the end of the one before."""
        if self._open is not None and (after is None or after.id != self._open):
            self.spool.forget_before(self._open + 1)  # no update outlives its round
        self._open = None if after is None else after.id
        running = after if after is not None and after.phase is Phase.REPORTING else None
        if self._running is not None and running is None:
            self._lengths.ended(now - self._running.since)
        self._running = running

    def _idle_seconds(self, current: Round | None, now: float) -> float:
        """How long the fleet can do without another turn, if nobody asks for anything."""
        if self.store.database.shared:  # other servers change it
            return self.task.tick_seconds
        # While devices wait, the clock goes on in the database too; nobody minds when it does not.
        longest = 1.0 if current is not None and current.cohort else 60.0
        return longest if current is None else min(max(current.due - now, 0.0), longest)

    def _load(self, number: int, identity: str) -> ServerState:
        data = self.store.weights(identity)
        if data is None:
            raise StoreError(f"{self.store.database.name}: the weights {identity[:16]}… are not there")
        with self._loading:  # both of the server's threads may come here
            for weights, base, encoded in self.store.encoded_forms():
                self.downlink.remember(weights, EncodedWeights(base, encoded))
        moments = self.store.optimizer(number) or b""
        try:
            return ServerState.load(number, data, self.bundle.manifest.tensors, self.task.optimizer, moments)
        except IntegrityError as error:
            message = f"{error}; start the server with the --server-optimizer that made it"
            raise StoreError(f"{self.store.database.name}: version {number}: {message}") from None


def _most_predictions(manifest: Manifest, task: Task) -> int:
    """How many predictions a device may say that it evaluated: each of an example's labels is one."""
    if task.bounds.examples is None or "train" not in manifest.signatures:
        return _MOST_PREDICTIONS
    _, labels = manifest.examples
    return task.bounds.examples * math.prod(size for size in labels.shape if size is not None)
