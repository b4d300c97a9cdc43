"""`Coordinator`: ties round, aggregate, state, store and bundle together; called from one thread only.

The decisions are made in the pure modules; what is left here is to ask the clock, to replace the current
round by its successor, to write to the store, and to count.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aggregation_server.aggregate import Aggregate
from aggregation_server.downlink import Downlink
from aggregation_server.history import Counts, Outcome, RoundRecord
from aggregation_server.rounds import Phase, Round
from aggregation_server.state import ServerState
from aggregation_server.store import ConflictError, Store, StoreError
from aggregation_server.task import Task
from aggregation_server.validation import validated_update
from device_runtime.bundle import MANIFEST, MANIFEST_HASH, MANIFEST_SIGNATURE, Bundle
from device_runtime.errors import IntegrityError, UpdateError
from device_runtime.messages import CheckIn, CheckInReply, Configuration, ReportReply
from device_runtime.work import client_seed

logger = logging.getLogger(__name__)

_CLIENT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLOSED_ROUNDS = 16  # whose tokens are still known, so that a straggler hears that it is late
_JITTER = 0.2  # of every retry window: devices that were rejected together do not come back together
_STORE_RETRY_SECONDS = 1.0


class Coordinator:
    """One server's task, from check-in to commit."""

    def __init__(
        self,
        bundle: Bundle,
        task: Task,
        store: Store,
        *,
        clock: Callable[[], float] = time.monotonic,
        new_token: Callable[[], str] = secrets.token_urlsafe,
        rng: random.Random | None = None,
    ) -> None:
        """Go on from the store's last committed round.

        Args:
            bundle: what devices train with; of the store's model.
            task: what they are to do.
            store: holds the state; closed by the caller.
            clock: monotonic seconds.
            new_token: an unguessable string at every call.
            rng: of the retry windows' jitter.
        """
        self.bundle = bundle
        self.task = task
        self.population = task.population if task.population is not None else bundle.manifest.name
        self._store = store
        self._clock = clock
        self._new_token = new_token
        self._rng = rng or random.SystemRandom()
        manifest = bundle.manifest
        self._downlink = Downlink(manifest.tensors, manifest.model_id, task.downlink, task.seed)
        self._load()
        if self._state.round_number:
            logger.info("going on after round %d%s", self._state.round_number, "; complete" if self.complete else "")
        self._counts = Counts()
        self._closed: deque[Round] = deque(maxlen=_CLOSED_ROUNDS)
        self._round: Round
        self._aggregate: Aggregate
        self._open_round(clock())

    @property
    def complete(self) -> bool:
        """The task has had all its rounds."""
        return self.task.rounds is not None and self._state.round_number >= self.task.rounds

    def check_in(self, message: CheckIn) -> CheckInReply:
        """Accept a device into the current round's cohort, or reject it with a retry window.

        Beside the round's reasons there are ``population`` and ``client``, for a device that asks this server
        for another population, or whose name is not one: these will not change by waiting.
        """
        now = self._advance()
        self._counts.checked_in += 1
        if message.population != self.population:
            reply = CheckInReply("reject", "population")
        elif not _CLIENT.fullmatch(message.client):
            reply = CheckInReply("reject", "client")
        elif self.complete:
            return CheckInReply("complete")
        else:
            self._round, reply = self._round.check_in(message.client, self._new_token(), now)
        if reply.decision == "accept":
            self._counts.accepted += 1
            return replace(reply, retry_after_seconds=self._jittered(self.task.poll_seconds))
        self._counts.reject(reply.reason)
        return replace(reply, retry_after_seconds=self._jittered(self.task.retry_seconds))

    def configuration(self, token: str, holds: str = "") -> Configuration:
        """The work of an accepted device, once its round has started.

        Args:
            token: of its acceptance.
            holds: identity of the weights that it has already; empty for none.

        A token that this server does not know, such as one from before a restart, is answered ``aborted`` like
        one whose round is over: either way the device checks in again.
        """
        now = self._advance()
        current = self._round
        if token in current.cohort and current.phase is Phase.SELECTION:
            return Configuration("wait", self._jittered(self.task.poll_seconds))
        if token not in current.cohort or current.phase is not Phase.REPORTING:
            return Configuration("aborted")
        seed = client_seed(self.task.seed, current.number, current.cohort[token])
        work = replace(self.task.work, seed=seed, deadline_seconds=current.deadline - now)
        route = self._downlink.route(holds, self._state.identity, len(self._state.data))
        return Configuration(
            "start",
            round_number=current.number,
            bundle=self.bundle.identity,
            weights=self._state.identity,
            base=route.base,
            encoded=list(route.encoded),
            work=work.to_json(),
        )

    def report(self, token: str, body: bytes) -> ReportReply:
        """Aggregate an encoded update, or say why not; a token is used up only by a report that is counted."""
        now = self._advance()
        self._counts.upload_bytes += len(body)
        addressed = next((closed for closed in self._closed if token in closed.cohort), self._round)
        counted, reply = addressed.report(token, now)
        if reply.verdict == "refused":
            return self.refuse(reply.reason, reply.message)
        if reply.verdict == "aborted":
            self._counts.late += 1
            return reply
        try:
            update = validated_update(body, self.bundle.manifest, addressed.number)
        except UpdateError as error:
            return self.refuse(error.reason, str(error))
        self._aggregate.add(update)
        self._round = counted
        self._counts.reported += 1
        self._advance()
        return reply

    def refuse(self, reason: str, message: str) -> ReportReply:
        """Count a report that is refused, and say so."""
        self._counts.refuse(reason)
        return ReportReply("refused", reason, message)

    def tick(self) -> None:
        """Make the transitions that are due; to be called several times a second."""
        self._advance()

    def bundle_file(self, identity: str, name: str) -> Path | None:
        """The file with this name of the bundle; None where there is no such file."""
        manifest = self.bundle.manifest
        known = {*manifest.files, MANIFEST, MANIFEST_HASH, MANIFEST_SIGNATURE}
        if identity != self.bundle.identity or name not in known:
            return None
        path = self.bundle.file(name)
        if name == MANIFEST_SIGNATURE and not path.is_file():  # not every bundle is signed
            return None
        return path

    @property
    def latest_weights(self) -> bytes:
        """The weights that were committed last, as safetensors bytes; not counted as a device's download."""
        return self._state.data

    def weights(self, identity: str) -> bytes | None:
        """The weights with this content hash; None where there is no such version."""
        return self._state.data if identity == self._state.identity else self._store.weights(identity)

    def downloaded(self, size: int) -> None:
        """Count bytes of a bundle or of weights that go to a device."""
        self._counts.download_bytes += size

    def encoded_weights(self, identity: str) -> bytes | None:
        """Encoded weights by the SHA-256 of their bytes; None where there are none."""
        return self._downlink.encoded(identity)

    def status(self) -> dict[str, Any]:
        """What the status page says, as JSON; docs/protocol.md describes the keys."""
        self._advance()
        config, manifest = self.task.round, self.bundle.manifest
        return {
            "task": {
                "population": self.population,
                "model": manifest.name,
                "model_id": manifest.model_id,
                "bundle": self.bundle.identity,
                "work": self.task.work.to_json(),
                "seed": self.task.seed,
                "downlink": self.task.downlink,
                "rounds": self.task.rounds,
                "cohort_size": config.cohort_size,
                **asdict(config),
            },
            "phase": "complete" if self.complete else self._round.phase.value,
            "round": self._state.round_number if self.complete else self._round.number,
            "cohort": len(self._round.cohort),
            "reports": len(self._round.reported),
            "committed_rounds": self._state.round_number,
            "complete": self.complete,
            "initial_weights": self._initial_weights,
            "weights": self._state.identity,
            "counts": asdict(self._past_counts + self._counts),
            "history": [record.to_json() for record in self._history],
        }

    def _load(self) -> None:
        """Take state and history from the store."""
        self._state = ServerState.load(*self._store.latest(), self.bundle.manifest.tensors)
        first, *self._history = self._store.history()
        self._initial_weights = first.weights
        self._past_counts = sum((record.counts for record in self._history), Counts())

    def _advance(self) -> float:
        now = self._clock()
        if not self.complete:
            self._round = self._round.tick(now)
            if self._round.phase is Phase.COMMITTING and now >= self._commit_after:
                self._commit(now)
            elif self._round.phase is Phase.ABANDONED:
                self._abandon(now)
        return now

    def _commit(self, now: float) -> None:
        try:
            state, encoded = self._downlink.next(self._state, self._aggregate.result())
        except IntegrityError as error:
            logger.warning("round %d: %s", self._round.number, error)
            self._round = self._round.abandoned("non_finite", now)
            return self._abandon(now)
        record = self._record("committed", state.identity, now)
        try:
            try:
                self._store.commit(record, state.data)
            except ConflictError:
                return self._settle(state, now)
        except StoreError as error:
            # The reports are in memory and the old state is in the store: nothing is lost by trying again.
            logger.error("round %d is not committed yet: %s", self._round.number, error)
            self._commit_after = self._clock() + _STORE_RETRY_SECONDS  # the attempt itself may have taken long
            return None
        self._round = self._round.committed(now)
        self._state = state
        self._downlink.remember(state.identity, encoded)
        logger.info("round %d committed: %d reports, loss %s", record.number, record.clients, record.loss)
        return self._finish(record, now)

    def _settle(self, state: ServerState, now: float) -> None:
        """Somebody has committed this round: this server, whose acknowledgement was lost, or another one."""
        self._load()
        if (self._state.round_number, self._state.identity) == (state.round_number, state.identity):
            self._round = self._round.committed(now)
            return self._close(now)
        logger.error("round %d was committed by another server; this one's reports are dropped", self._round.number)
        self._round = self._round.abandoned("superseded", now)
        return self._abandon(now)

    def _abandon(self, now: float) -> None:
        if not self._round.cohort:
            return self._open_round(now)  # nobody came: an idle server has nothing to remember
        record = self._record("abandoned", self._state.identity, now)
        logger.warning("round %d abandoned: %s", record.number, record.reason)
        try:
            self._store.abandon(record)
        except StoreError as error:
            logger.error("round %d: its abandonment is not remembered: %s", record.number, error)
        return self._finish(record, now)

    def _record(self, outcome: Outcome, weights: str, now: float) -> RoundRecord:
        ended = time.time()
        seconds = now - self._opened
        return RoundRecord(
            number=self._round.number,
            outcome=outcome,
            weights=weights,
            started=ended - seconds,
            ended=ended,
            seconds=seconds,
            reason=self._round.reason,
            loss=self._aggregate.loss,
            examples=self._aggregate.examples,
            clients=self._aggregate.clients,
            counts=self._counts,
        )

    def _finish(self, record: RoundRecord, now: float) -> None:
        self._history.append(record)
        self._past_counts += record.counts
        self._close(now)

    def _close(self, now: float) -> None:
        self._counts = Counts()
        self._closed.append(self._round)
        self._open_round(now)

    def _open_round(self, now: float) -> None:
        self._round = Round(self._state.round_number + 1, self.task.round, now)
        self._aggregate = Aggregate(self.bundle.manifest.tensors)
        self._opened = now
        self._commit_after = now

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
