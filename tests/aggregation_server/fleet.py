"""`Fleet`: one server's parts in this process and devices that call it, where nothing happens but what a test says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from aggregation_server.access.enrolment import Enrolments
from aggregation_server.coordination.clock import ServerClock
from aggregation_server.coordination.committer import Committer
from aggregation_server.coordination.coordinator import Coordinator
from aggregation_server.coordination.operations import Operations
from aggregation_server.coordination.requests import (
    Caller,
    CheckInRequest,
    ConfigurationRequest,
    ReportRequest,
    Request,
)
from aggregation_server.history import RoundRecord
from aggregation_server.monitoring.figures import Observer
from aggregation_server.monitoring.status import status_of
from aggregation_server.storage.spool import Spool
from aggregation_server.storage.store import Store
from aggregation_server.task import Task
from device_runtime.bundle import Bundle
from device_runtime.messages import CheckIn, CheckInReply, Configuration, Enrolment, EvaluationReport, ReportReply
from device_runtime.weights import dump_weights

TASKS = ("training", "evaluation")
_Reply = TypeVar("_Reply")


def secret_of(name: str) -> str:
    """The secret of a test's device: long enough, and no other device's."""
    return f"secret-of-{name}".ljust(43, "-")


def caller(name: str) -> Caller:
    """A device as it calls."""
    return Caller(name, secret_of(name))


class Fleet:
    """The parts of a server on a database and a spool that are files, and the devices of its fleet.

    Args:
        bundle: what the fleet trains.
        task: what it is to do.
        store_url: of the database.
        spool: folder of the reports.
        now: seconds of the monotonic clock, in its only element.
        make_report: the bytes of an update.
        chance: seed of the selection and of all jitter.

    Attributes:
        coordinator, committer, enrolments, operations, store, spool: the server's parts.
        now: to be moved on by the test.
        tokens: of each device, that of its last acceptance.
    """

    def __init__(
        self,
        bundle: Bundle,
        task: Task,
        store_url: str,
        spool: Path,
        now: list[float],
        make_report: Callable[..., bytes],
        chance: int = 1,
    ) -> None:
        manifest = bundle.manifest
        self.now = now
        self.tokens: dict[str, str] = {}
        self._make_report = make_report
        self.store = Store(store_url, manifest.model_id, dump_weights(bundle.initial_weights(), manifest.tensors))
        try:
            self.spool = Spool(spool)
            clock = ServerClock(lambda: now[0])
            self.coordinator = Coordinator(bundle, task, self.store, self.spool, clock=clock, rng=random.Random(chance))
        except BaseException:
            self.store.close()
            raise
        self.committer = Committer(self.coordinator)
        self.enrolments = Enrolments(self.store, task)
        self.operations = Operations(self.coordinator)
        self._enrolled = {device.name for device in self.enrolments.devices()}

    def close(self) -> None:
        """What is left is what a server that was killed leaves."""
        self.spool.close()
        self.store.close()

    def enrol(self, *names: str) -> None:
        """Enrol devices, each with a code; those that are enrolled already are left as they are."""
        new = [name for name in dict.fromkeys(names) if name not in self._enrolled]
        for name, code in zip(new, self.enrolments.new_codes(len(new), 1) if new else (), strict=True):
            reply = self.enrolments.enrol(Enrolment(code, name, secret_of(name)))
            assert reply.verdict == "enrolled", reply
        self._enrolled.update(new)

    def ask(self, request: Request, kind: type[_Reply]) -> _Reply:
        """The answer to one request in a turn of its own; an exception that is the answer is raised."""
        (answer,) = self.coordinator.handle([request])
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, kind)
        return answer

    def check_in(self, *names: str, tasks: tuple[str, ...] = TASKS) -> list[CheckInReply]:
        """Check in devices one after the other, in one turn; they are enrolled before."""
        self.enrol(*names)
        population = self.coordinator.population
        asked = [CheckInRequest(caller(name), CheckIn(population, name, "test", list(tasks))) for name in names]
        replies = []
        for name, reply in zip(names, self.coordinator.handle(asked), strict=True):
            if isinstance(reply, Exception):
                raise reply
            assert isinstance(reply, CheckInReply)
            replies.append(reply)
            if reply.decision == "accept":
                self.tokens[name] = reply.token
        return replies

    def join(self, *names: str) -> None:
        """Check in devices that are all accepted."""
        assert {reply.decision for reply in self.check_in(*names)} == {"accept"}

    def configuration(self, name: str, holds: str = "", token: str | None = None) -> Configuration:
        """The work of a device, by the token of its last acceptance or another one."""
        asked = ConfigurationRequest(caller(name), self.tokens[name] if token is None else token, holds)
        return self.ask(asked, Configuration)

    def report(self, name: str, body: bytes | None = None, token: str | None = None, **fields: Any) -> ReportReply:
        """Report `body`, or an update with the `fields` of the fixture `make_update`, by default for its round."""
        token = self.tokens[name] if token is None else token
        if body is None:
            ticket = self.coordinator.ticket(token, name)
            number = 1 if ticket is None else ticket.round_number
            body = self._make_report(**{"round_number": number} | fields)
        return self.ask(ReportRequest(caller(name), token, body), ReportReply)

    def commit(self) -> bool:
        """Commit the round that has its reports, if there is one, and open the next one."""
        committed = self.committer.commit()
        self.tick()
        return committed

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, and then a turn in which nobody asks for anything."""
        self.now[0] += seconds
        assert self.coordinator.handle(()) == []

    def run_round(self, *names: str, value: float = 1.0) -> None:
        """A whole round of exactly these devices, which all report."""
        self.join(*names)
        if self.status()["phase"] == "selection":
            self.tick(self.coordinator.task.round.selection_timeout)
        for name in names:
            assert self.report(name, value=value).verdict == "accepted"
        assert self.commit()

    def status(self) -> dict[str, Any]:
        """The server's status."""
        return status_of(Observer(self.coordinator, self.enrolments), 100)

    def history(self) -> list[RoundRecord]:
        """The rounds that are over, the oldest first."""
        return self.store.history(1000)


def evaluation(round_number: int, count: int = 10, correct: float = 5.0, loss_sum: float = 2.5) -> bytes:
    """An evaluation's report."""
    return json.dumps(EvaluationReport(round_number, count, correct, loss_sum).to_json()).encode()
