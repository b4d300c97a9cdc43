"""`Turn`: a batch of requests, answered in one transaction.

All that the requests need to know is read at its beginning, in a few queries whatever their number. The requests are
then answered one after the other, by the pure rules of `rounds`; and what has changed is written at the end, with the
bytes of the reports that count brought to the disk before. Nothing is kept in memory between two turns.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aggregation_server.access.limits import RateLimits
from aggregation_server.access.tokens import Ticket, hashed, read_token, same, token_for
from aggregation_server.coordination.requests import (
    Caller,
    CheckInRequest,
    ConfigurationRequest,
    DeniedError,
    LimitedError,
    ReportRequest,
    Request,
)
from aggregation_server.history import Counts
from aggregation_server.rounds import UNKNOWN_TOKEN, Phase, Round, Standing
from aggregation_server.storage.ledger import Ledger
from aggregation_server.storage.rows import CountedReport, Device
from aggregation_server.storage.spool import Spool
from aggregation_server.task import Task
from device_runtime.messages import CheckInReply, Configuration, EvaluationReport, ReportReply

Reply = CheckInReply | Configuration | ReportReply | bool
Denial = DeniedError | LimitedError
Checked = bytes | EvaluationReport | ReportReply
"""A report whose content is valid, as it is to be kept, or the refusal of one that is not."""


@dataclass(frozen=True)
class Turns:
    """The turns that a server has taken since it started, but for those in which nobody asked for anything.

    Attributes:
        count: how many.
        requests: that they answered.
        seconds: for which they held the fleet's row, from when it was theirs to the end of the transaction.
    """

    count: int = 0
    requests: int = 0
    seconds: float = 0.0

    def after(self, requests: int, seconds: float) -> Turns:
        """With one turn more."""
        return Turns(self.count + 1, self.requests + requests, self.seconds + seconds)


class Turn:
    """One transaction's work.

    Args:
        ledger: the transaction.
        task: what the fleet does.
        population: its name.
        now: the server's time.
        rng: of retry windows and of the selection.
        current: the open round; None where the fleet is paused, or has nothing to do.
        counts: of the open round, so far.
        complete: whether the task has had all its rounds.
        configure: makes the `Configuration` of a device in a round that has started.
        retry_after: seconds until a rejected device may check in again.
        limits: of each device's requests; None for no limit.
    """

    def __init__(
        self,
        ledger: Ledger,
        task: Task,
        population: str,
        now: float,
        rng: random.Random,
        current: Round | None,
        counts: Counts,
        complete: bool,
        configure: Callable[[Round, str, str, float], Configuration],
        retry_after: Callable[[float], float],
        limits: RateLimits | None = None,
    ) -> None:
        self._ledger = ledger
        self._task = task
        self._population = population
        self._now = now
        self._rng = rng
        self.round = current
        self.counts = counts
        self._complete = complete
        self._configure = configure
        self._retry_after = retry_after
        self._limits = limits
        self._key = ledger.fleet.token_key
        self._devices: dict[str, Device] = {}
        self._standings: dict[tuple[int, str], Standing] = {}
        self._past: dict[int, Round] = {}
        self._holders: dict[int, str] = {}  # of seats, as far as they are known
        self._taken: set[int] = set()  # seats that others had before this turn
        self._seats = 0 if current is None else current.cohort  # that others may have had
        self._new: dict[str, Standing] = {}
        self._counted: dict[str, Checked] = {}
        self._seen: dict[str, str] = {}

    def answer(self, requests: Sequence[Request], checked: dict[int, Checked]) -> list[Reply | Denial]:
        """Answer requests in their order; `finish` writes what they lead to.

        Args:
            requests: of devices.
            checked: by the place of a report's request, what was found of its content.
        """
        tickets = [self._ticket(request) for request in requests]
        names = {request.caller.name for request in requests}
        ids = {ticket.round_id for ticket in tickets if ticket is not None}
        own = set() if self.round is None else {self.round.id}
        self._devices = self._ledger.devices(names)
        if ids | own:
            self._standings = self._ledger.standings(ids | own, names)
            held = [(one.seat, name) for (identity, name), one in self._standings.items() if identity in own]
            self._holders = {seat: name for seat, name in held if seat is not None}
        if ids - own:
            self._past = self._ledger.rounds(list(ids - own))
        return [
            self._answered(request, ticket, checked.get(place))
            for place, (request, ticket) in enumerate(zip(requests, tickets, strict=True))
        ]

    def finish(self, spool: Spool) -> None:
        """Write what has changed.

        Raises:
            StoreError: the disk or the database failed; nothing of this turn happened.
        """
        current, ledger = self.round, self._ledger
        if self._seen:
            ledger.saw(self._seen, time.time())
        if current is None:
            return
        if self._new:
            ledger.seat(current.id, sorted(self._taken), self._new)
        if self._counted:
            ledger.count_reports(current.id, self._kept(spool, current), self._now)
        ledger.update_round(current, self.counts)

    def _kept(self, spool: Spool, current: Round) -> list[CountedReport]:
        bodies = [report for report in self._counted.values() if isinstance(report, bytes)]
        places = iter(spool.append(current.id, bodies) if bodies else ())
        return [
            CountedReport(device, next(places), None)
            if isinstance(report, bytes)
            else CountedReport(device, None, _evaluation(report))
            for device, report in self._counted.items()
        ]

    def _ticket(self, request: Request) -> Ticket | None:
        if isinstance(request, ConfigurationRequest | ReportRequest):
            return read_token(request.token, request.caller.name, self._key)
        return None

    def _answered(self, request: Request, ticket: Ticket | None, checked: Checked | None) -> Reply | Denial:
        name = request.caller.name
        if not admitted(request.caller, self._devices.get(name)):
            return DeniedError(name)
        # Only now: whoever does not know its secret can't use up what a device may ask.
        wait = 0.0 if self._limits is None else self._limits.take(name, self._now)
        if wait > 0:
            return LimitedError(wait)
        if isinstance(request, CheckInRequest):
            return self._check_in(request)
        if isinstance(request, ConfigurationRequest):
            return self._configuration(request, ticket)
        assert isinstance(request, ReportRequest)  # who only asks to be admitted needs no turn
        return self._report(request, ticket, checked)

    def _check_in(self, request: CheckInRequest) -> CheckInReply:
        message, name = request.message, request.caller.name
        self.counts.checked_in += 1
        self._seen[name] = "".join(filter(str.isprintable, message.runtime[:64]))  # PostgreSQL takes no NUL in a text
        if message.population != self._population:
            return self._rejected("population")
        if message.client != name:
            return self._rejected("client")
        if self._complete:
            return CheckInReply("complete")
        current = self.round
        if current is None:
            return self._rejected("paused")
        standing = self._standings.get((current.id, name))
        if standing is None and current.task not in message.tasks:
            return self._rejected("other_task")
        rest = self._rest(name)
        if standing is None and rest > 0:
            return self._rejected("too_soon", rest)
        self.round, decision = current.check_in(standing, self._now, self._rng)
        self._stands(name, decision.standing, standing)
        if decision.verdict == "reject":
            return self._rejected(decision.reason)
        self.counts.accepted += 1
        return CheckInReply(
            "accept",
            round_number=current.number,
            token=token_for(Ticket(current.id, current.number, current.task), name, self._key),
            retry_after_seconds=self._poll_seconds(),
        )

    def _rest(self, name: str) -> float:
        """Seconds until a device may take part again."""
        last = self._devices[name].participated
        return 0.0 if last is None else last + self._task.participation_seconds - self._now

    def _rejected(self, reason: str, rest: float = 0.0) -> CheckInReply:
        self.counts.reject(reason)
        return CheckInReply("reject", reason, retry_after_seconds=self._retry_after(rest))

    def _stands(self, name: str, standing: Standing | None, before: Standing | None) -> None:
        """A device's standing in the open round, and that of whoever had its seat."""
        if standing is None or standing == before or self.round is None:
            return
        identity = self.round.id
        if standing.seat is not None:
            other = self._holders.get(standing.seat)
            if other is not None:
                lost = self._standings[identity, other] = replace(self._standings[identity, other], seat=None)
                if other in self._new:
                    self._new[other] = lost
            self._holders[standing.seat] = name
            if standing.seat < self._seats:
                self._taken.add(standing.seat)
        self._new[name] = self._standings[identity, name] = standing

    def _configuration(self, request: ConfigurationRequest, ticket: Ticket | None) -> Configuration:
        current, name = self.round, request.caller.name
        if current is None or ticket is None or ticket.round_id != current.id:
            return Configuration("aborted")
        standing = self._standings.get((current.id, name))
        if standing is None or standing.seat is None:
            return Configuration("aborted")
        if current.phase is Phase.SELECTION:
            return Configuration("wait", self._poll_seconds())
        if current.phase is not Phase.REPORTING:
            return Configuration("aborted")
        return self._configure(current, name, request.holds, self._now)

    def _report(self, request: ReportRequest, ticket: Ticket | None, checked: Checked | None) -> ReportReply:
        name, counts = request.caller.name, self.counts
        counts.upload_bytes += len(request.body)
        addressed = None if ticket is None else self._round_of(ticket)
        if addressed is None:
            return self._refused(UNKNOWN_TOKEN)
        after, reply = addressed.report(self._standings.get((addressed.id, name)), self._now)
        if reply.verdict == "refused":
            return self._refused(reply)
        if reply.verdict == "aborted":
            counts.late += 1
            return reply
        assert checked is not None  # every report is looked at
        if isinstance(checked, ReportReply):
            return self._refused(checked)
        self.round = after
        self._counted[name] = checked
        self._standings[after.id, name] = replace(self._standings[after.id, name], reported=True)
        counts.reported += 1
        return reply

    def _round_of(self, ticket: Ticket) -> Round | None:
        current = self.round
        return current if current is not None and current.id == ticket.round_id else self._past.get(ticket.round_id)

    def _refused(self, reply: ReportReply) -> ReportReply:
        self.counts.refuse(reply.reason)
        return reply

    def _poll_seconds(self) -> float:
        # All of a cohort ask until the round starts.
        seconds = max(self._task.poll_seconds, self._task.round.cohort_size / self._task.checkin_rate)
        return seconds * self._rng.uniform(0.8, 1.2)


def admitted(caller: Caller, device: Device | None) -> bool:
    """Whether the caller is a device that is enrolled."""
    # The hash is made and compared for nobody too: how long it takes tells no names.
    right = same(hashed(caller.secret), b"" if device is None else device.secret)
    return device is not None and right and not device.revoked


def _evaluation(report: Checked) -> dict[str, float]:
    assert isinstance(report, EvaluationReport)  # a refusal is never counted
    return report.to_json()
