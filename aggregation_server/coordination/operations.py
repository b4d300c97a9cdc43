"""What the people who run a fleet do to it: pause, resume, roll back, release."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import asdict, replace

from aggregation_server.coordination.closing import abandon
from aggregation_server.coordination.coordinator import Coordinator
from aggregation_server.history import RoundRecord
from aggregation_server.rounds import Phase
from aggregation_server.storage.ledger import Ledger
from device_runtime.errors import InputError, IntegrityError


class Operations:
    """An operator's calls; each is one transaction.

    Every method raises StoreError where the database failed, and nothing happened then.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def pause(self) -> None:
        """Begin no further round. One that waits for devices is abandoned, one that waits for reports goes on."""
        with self._ledger() as ledger:
            self._end_open_round(ledger, "paused", (Phase.SELECTION,))
            ledger.set_fleet(paused=True)
        self._coordinator.hurry()

    def resume(self) -> None:
        """Go on with rounds."""
        with self._ledger() as ledger:
            ledger.set_fleet(paused=False)
        self._coordinator.hurry()

    def rollback(self, number: int) -> RoundRecord:
        """Make an earlier version's weights, and its optimiser's state, the latest version.

        The open round is abandoned. The history stays: going back makes a version of its own, with the next number.

        Raises:
            InputError: the version is not there any more, or never was, or another optimiser made it.
        """
        coordinator = self._coordinator
        with self._ledger() as ledger:
            fleet = ledger.fleet
            identity = ledger.version(number) if 0 <= number < fleet.number else None
            if identity is None:
                raise InputError(
                    f"version {number}: not there to go back to; the last {coordinator.task.keep_versions} versions up"
                    f" to {fleet.number}, the first and the released one are kept"
                )
            optimizer = ledger.optimizer(number) if number else None
            self._require_loadable(number, optimizer)
            self._end_open_round(ledger, "rollback", (Phase.SELECTION, Phase.REPORTING, Phase.COMMITTING))
            now = time.time()
            record = RoundRecord(fleet.number + 1, "committed", identity, now, now, task="rollback")
            record = replace(record, reason=f"to {number}")
            record = ledger.insert_record(record, coordinator.clock.agree(fleet.clock), optimizer)
            ledger.set_fleet(number=record.number, weights=identity)
        coordinator.hurry()
        return record

    def release(self, number: int) -> str:
        """Say that a version is the one for users; the content hash of its weights. They are kept from now on.

        Raises:
            InputError: the version is not there any more, or never was.
        """
        with self._ledger() as ledger:
            identity = ledger.version(number) if 0 <= number <= ledger.fleet.number else None
            if identity is None:
                raise InputError(
                    f"version {number}: not there to be released; the last {self._coordinator.task.keep_versions}"
                    f" versions up to {ledger.fleet.number}, the first and the released one are kept"
                )
            ledger.set_fleet(released=number)
        return identity

    def _require_loadable(self, number: int, optimizer: bytes | None) -> None:
        """Raise InputError where no server with this task could go on from a version: all would stand still."""
        coordinator = self._coordinator
        try:
            coordinator.task.optimizer.load(optimizer or b"", coordinator.bundle.manifest.tensors)
        except IntegrityError:
            raise InputError(
                f"version {number}: made with another --server-optimizer than {coordinator.task.optimizer.name}; start"
                " the server with that one first"
            ) from None

    def _ledger(self) -> AbstractContextManager[Ledger]:
        return self._coordinator.store.ledger(self._coordinator.task.round)

    def _end_open_round(self, ledger: Ledger, reason: str, phases: tuple[Phase, ...]) -> None:
        found = ledger.open_round()
        if found is None or found[0].phase not in phases:
            return
        current, counts, opened = found
        if not current.cohort:  # nobody was in it: there is nothing to remember but who asked
            ledger.set_fleet(counts=asdict(ledger.fleet.counts + counts))
            ledger.drop_round(current.id)
            return
        now = self._coordinator.clock.agree(ledger.fleet.clock)
        abandon(ledger, current.abandoned(reason, now), counts, opened, now)
