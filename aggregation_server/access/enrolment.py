"""Who may take part: enrolment codes, devices, and their end."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select, update

from aggregation_server.access.tokens import hashed, same
from aggregation_server.storage.ledger import Ledger
from aggregation_server.storage.schema import DEVICES, ENROLMENT_CODES
from aggregation_server.storage.store import Store
from aggregation_server.task import Task
from device_runtime.errors import InputError
from device_runtime.messages import CLIENT_NAME, SHORTEST_SECRET, Enrolment, EnrolmentReply

PEOPLE = ("operator", "viewer")
"""Names that are no device's: people call by them."""
_MOST_CODES = 10_000
_LONGEST_SECRET = 256


@dataclass(frozen=True)
class DeviceRecord:
    """An enrolled device, for people to read; times are wall-clock seconds since 1970.

    Attributes:
        name: its name.
        state: ``enrolled`` where it never checked in, ``active``, or ``revoked``.
        runtime: what it said at its last check-in.
        enrolled: when.
        seen: its last check-in.
        reports: how many were counted.
    """

    name: str
    state: str
    runtime: str
    enrolled: float
    seen: float | None
    reports: int


class Enrolments:
    """The fleet's register.

    Args:
        store: holds it.
        task: for the ledger.
        anybody: whether a device needs no code, for trials on one machine.
    """

    def __init__(self, store: Store, task: Task, anybody: bool = False) -> None:
        self._store = store
        self._task = task
        self._anybody = anybody

    def enrol(self, message: Enrolment) -> EnrolmentReply:
        """Make a device known, by its code. The same enrolment again is answered as the first one.

        Raises:
            StoreError: the database failed.
        """
        name, secret = message.client, message.secret
        if not re.fullmatch(CLIENT_NAME, name) or name in PEOPLE:
            wanted = "letters, digits, '-', '_' and '.', 1 to 64, and not 'operator' or 'viewer'"
            return EnrolmentReply("refused", "client", f"a device's name has {wanted}")
        if not re.fullmatch(f"[!-~]{{{SHORTEST_SECRET},{_LONGEST_SECRET}}}", secret):
            wanted = f"{SHORTEST_SECRET} to {_LONGEST_SECRET} printable characters"
            return EnrolmentReply("refused", "secret", f"a device's secret has {wanted}")
        with self._store.ledger(self._task.round) as ledger:
            return self._enrolled(ledger, message.code, name, hashed(secret))

    def _enrolled(self, ledger: Ledger, code: str, name: str, secret: bytes) -> EnrolmentReply:
        now, connection = time.time(), ledger.connection  # for people to read
        known = ledger.devices([name]).get(name)
        if known is not None and not known.revoked and same(known.secret, secret):
            return EnrolmentReply("enrolled")
        anybody = self._anybody and not code
        bound = None
        if not anybody:
            row = connection.execute(
                select(ENROLMENT_CODES).where(ENROLMENT_CODES.c.code == hashed(code))
            ).one_or_none()
            expired = row is not None and row.expires <= ledger.fleet.clock
            if row is None or expired or row.used_by is not None or row.client not in (None, name):
                message = "the code is not known, was used, has expired or is another client's; ask for a new one"
                return EnrolmentReply("refused", "code", message)
            bound = row.client
        if known is not None and bound is None:
            message = f"another device is {name!r} already; choose another name, or ask for a code for this one"
            return EnrolmentReply("refused", "taken", message)
        values = {"secret": secret, "enrolled": now, "revoked": None}
        if known is None:
            connection.execute(insert(DEVICES).values(name=name, **values, runtime="", reports=0))
        else:
            connection.execute(update(DEVICES).where(DEVICES.c.name == name).values(**values))
        if not anybody:
            used = update(ENROLMENT_CODES).where(ENROLMENT_CODES.c.code == hashed(code))
            connection.execute(used.values(used_by=name))
        return EnrolmentReply("enrolled")

    def new_codes(self, count: int, hours: float, client: str | None = None) -> list[str]:
        """One-use codes.

        Args:
            count: how many.
            hours: how long they can be used, by the server's clock.
            client: the only name that they enrol, also where it is taken: for a device that lost its secret. None for
                any name that is free.

        Raises:
            InputError: an argument is out of range.
            StoreError: the database failed.
        """
        if not 1 <= count <= (_MOST_CODES if client is None else 1):
            limit = f"from 1 to {_MOST_CODES}" if client is None else "1 for a named client"
            raise InputError(f"enrolment codes: count should be {limit}, not {count}")
        if not 0 < hours <= 24 * 366:
            raise InputError(f"enrolment codes: hours should be above 0 and at most a year, not {hours}")
        if client is not None and (not re.fullmatch(CLIENT_NAME, client) or client in PEOPLE):
            raise InputError(f"enrolment codes: client should be a device's name, not {client!r}")
        codes = [_new_code() for _ in range(count)]
        with self._store.ledger(self._task.round) as ledger:
            expires = ledger.fleet.clock + 3600 * hours
            rows = [{"code": hashed(code), "expires": expires, "client": client} for code in codes]
            ledger.connection.execute(insert(ENROLMENT_CODES), rows)
        return codes

    def revoke(self, name: str) -> None:
        """Know a device no more; it holds for the next request already.

        Raises:
            InputError: there is no such device.
            StoreError: the database failed.
        """
        if not re.fullmatch(CLIENT_NAME, name):  # PostgreSQL does not even look for every text
            raise InputError(f"device {name!r}: no such device is enrolled")
        with self._store.ledger(self._task.round) as ledger:
            query = update(DEVICES).where(DEVICES.c.name == name, DEVICES.c.revoked.is_(None))
            if not ledger.connection.execute(query.values(revoked=time.time())).rowcount:
                raise InputError(f"device {name!r}: no such device is enrolled")

    def devices(self, limit: int = 1000, after: str = "") -> list[DeviceRecord]:
        """Devices in the order of their names, from the first one behind `after`."""
        query = select(DEVICES).where(DEVICES.c.name > after).order_by(DEVICES.c.name).limit(limit)
        with self._store.database.reading() as connection:
            return [
                DeviceRecord(row.name, _state(row), row.runtime, row.enrolled, row.seen, row.reports)
                for row in connection.execute(query)
            ]

    def summary(self) -> dict[str, dict[str, int]]:
        """Numbers of devices by state, and of those that are not revoked by runtime."""
        count = func.count()
        columns = (
            DEVICES.c.runtime,
            DEVICES.c.revoked.is_(None).label("in_force"),
            DEVICES.c.seen.is_(None).label("new"),
        )
        by_state: dict[str, int] = {"enrolled": 0, "active": 0, "revoked": 0}
        by_runtime: dict[str, int] = {}
        with self._store.database.reading() as connection:
            for row in connection.execute(select(*columns, count.label("devices")).group_by(*columns)):
                state = "revoked" if not row.in_force else "enrolled" if row.new else "active"
                by_state[state] += row.devices
                if state == "active":
                    by_runtime[row.runtime] = by_runtime.get(row.runtime, 0) + row.devices
        return {"states": by_state, "runtimes": by_runtime}


def _state(row: Any) -> str:
    if row.revoked is not None:
        return "revoked"
    return "enrolled" if row.seen is None else "active"


def _new_code() -> str:
    while True:
        code = secrets.token_urlsafe(18)
        if not code.startswith("-"):  # or the command line of the device takes it for an option
            return code
