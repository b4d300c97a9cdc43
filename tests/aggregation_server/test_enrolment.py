"""The fleet's register: codes, names, secrets, revocations."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from sqlalchemy import select, update

from aggregation_server.access.enrolment import Enrolments
from aggregation_server.access.tokens import hashed
from aggregation_server.coordination.requests import Admission, DeniedError
from aggregation_server.storage.schema import DEVICES, ENROLMENT_CODES
from device_runtime.errors import InputError
from device_runtime.messages import Enrolment, EnrolmentReply
from tests.aggregation_server.conftest import ENROLLED
from tests.aggregation_server.fleet import Fleet, caller, secret_of

Make = Callable[..., Fleet]
NAME = EnrolmentReply(
    "refused",
    "client",
    "a device's name has letters, digits, '-', '_' and '.', 1 to 64, and not 'operator' or 'viewer'",
)
SECRET = EnrolmentReply("refused", "secret", "a device's secret has 32 to 256 printable characters")
CODE = EnrolmentReply(
    "refused", "code", "the code is not known, was used, has expired or is another client's; ask for a new one"
)
DONE = EnrolmentReply("enrolled")


def taken(name: str) -> EnrolmentReply:
    message = f"another device is {name!r} already; choose another name, or ask for a code for this one"
    return EnrolmentReply("refused", "taken", message)


def enrol(fleet: Fleet, code: str, name: str, secret: str = "") -> EnrolmentReply:
    return fleet.enrolments.enrol(Enrolment(code, name, secret or secret_of(name)))


def admitted(fleet: Fleet, name: str) -> bool:
    (answer,) = fleet.coordinator.handle([Admission(caller(name))])
    return not isinstance(answer, DeniedError)


def test_a_code_enrols_one_device_once(make_fleet: Make) -> None:
    fleet = make_fleet()
    (code,) = fleet.enrolments.new_codes(1, 24)
    assert not admitted(fleet, "new")
    assert enrol(fleet, code, "new") == DONE
    assert admitted(fleet, "new")
    assert enrol(fleet, code, "other") == CODE
    assert not admitted(fleet, "other")
    with fleet.store.database.reading() as connection:
        row = connection.execute(select(DEVICES).where(DEVICES.c.name == "new")).one()
        assert bytes(row.secret) == hashed(secret_of("new"))
        assert abs(row.enrolled - time.time()) < 60
        used = connection.execute(select(ENROLMENT_CODES)).one()
        assert (bytes(used.code), used.used_by) == (hashed(code), "new")


def test_an_enrolment_whose_answer_was_lost_can_be_repeated_with_its_secret_alone(make_fleet: Make) -> None:
    fleet = make_fleet()
    first, second = fleet.enrolments.new_codes(2, 24)
    assert [enrol(fleet, first, "new"), enrol(fleet, first, "new"), enrol(fleet, "", "new")] == [DONE] * 3
    assert enrol(fleet, first, "new", "x" * 40) == CODE
    assert enrol(fleet, second, "new", "x" * 40) == taken("new")
    assert enrol(fleet, second, "another") == DONE, "a refused enrolment used up the code"
    assert admitted(fleet, "new")


@pytest.mark.parametrize("name", ["", "a b", "ä", "a/b", "../a", "a\n", "x" * 65, "operator", "viewer", "a:b", "a\0"])
def test_what_is_no_name(make_fleet: Make, name: str) -> None:
    fleet = make_fleet()
    (code,) = fleet.enrolments.new_codes(1, 24)
    assert enrol(fleet, code, name, "x" * 40) == NAME
    assert enrol(fleet, code, "Board-7_b.2" + "x" * 53) == DONE


@pytest.mark.parametrize("secret", ["x" * 31, "x" * 257, "x" * 39 + " ", "x" * 39 + "ä", "x" * 39 + "\n"])
def test_what_is_no_secret(make_fleet: Make, secret: str) -> None:
    fleet = make_fleet()
    (code,) = fleet.enrolments.new_codes(1, 24)
    assert enrol(fleet, code, "new", secret) == SECRET
    assert enrol(fleet, code, "new", "x" * 32) == DONE


def test_no_code_looks_like_an_option_of_a_command_line(make_fleet: Make) -> None:
    codes = make_fleet().enrolments.new_codes(2000, 24)  # of which 31 would, drawn without a look at them
    assert len(set(codes)) == 2000
    assert not [code for code in codes if code.startswith("-")]


def test_without_a_code_nobody_enrols_but_where_anybody_may(make_fleet: Make) -> None:
    fleet = make_fleet()
    for code in ("", "guessed", "x" * 24):
        assert enrol(fleet, code, "new") == CODE
    anybody = Enrolments(fleet.store, fleet.coordinator.task, anybody=True)
    assert anybody.enrol(Enrolment("guessed", "new", "x" * 40)) == CODE, "a code that is given is looked at"
    assert anybody.enrol(Enrolment("", "new", "x" * 40)) == DONE
    assert anybody.enrol(Enrolment("", "new", "y" * 40)) == taken("new")


def test_a_code_expires(make_fleet: Make) -> None:
    fleet = make_fleet()
    (code,) = fleet.enrolments.new_codes(1, 2)
    with fleet.store.ledger(fleet.coordinator.task.round) as ledger:
        ledger.connection.execute(update(ENROLMENT_CODES).values(expires=ENROLMENT_CODES.c.expires - 7200))
    assert enrol(fleet, code, "new") == CODE


def test_a_bound_code_enrols_its_device_alone_also_with_a_new_secret(make_fleet: Make) -> None:
    fleet = make_fleet()
    (code,) = fleet.enrolments.new_codes(1, 24, "a")
    assert enrol(fleet, code, "b", "x" * 40) == CODE
    assert enrol(fleet, code, "a", "x" * 40) == DONE
    assert not admitted(fleet, "a"), "the old secret is of no use any more"
    assert enrol(fleet, code, "a", "y" * 40) == CODE
    (other,) = fleet.enrolments.new_codes(1, 24, "new")
    assert enrol(fleet, other, "new") == DONE


def test_a_revoked_device_is_denied_at_once_until_its_own_code_comes(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1)
    fleet.join("a", "b")
    fleet.enrolments.revoke("a")
    assert not admitted(fleet, "a")
    for ask in (fleet.configuration, fleet.report):
        with pytest.raises(DeniedError):
            ask("a")
    with pytest.raises(InputError, match=r"^device 'a': no such device is enrolled$"):
        fleet.enrolments.revoke("a")
    (free,), (bound,) = fleet.enrolments.new_codes(1, 24), fleet.enrolments.new_codes(1, 24, "a")
    assert enrol(fleet, free, "a") == taken("a")
    assert enrol(fleet, bound, "a") == DONE
    assert fleet.configuration("a").state == "start", "its seat is still its own"


def test_a_device_that_is_not_enrolled_can_not_be_revoked(make_fleet: Make) -> None:
    with pytest.raises(InputError, match=r"^device 'nobody': no such device is enrolled$"):
        make_fleet().enrolments.revoke("nobody")


@pytest.mark.parametrize(
    ("count", "hours", "client", "message"),
    [
        (0, 1, None, "count should be from 1 to 10000, not 0"),
        (10_001, 1, None, "count should be from 1 to 10000, not 10001"),
        (2, 1, "a", "count should be 1 for a named client, not 2"),
        (1, 0, None, "hours should be above 0 and at most a year, not 0"),
        (1, float("nan"), None, "hours should be above 0 and at most a year, not nan"),
        (1, 9000, None, "hours should be above 0 and at most a year, not 9000"),
        (1, 1, "a b", "client should be a device's name, not 'a b'"),
        (1, 1, "viewer", "client should be a device's name, not 'viewer'"),
    ],
)
def test_codes_out_of_range(make_fleet: Make, count: int, hours: float, client: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_fleet().enrolments.new_codes(count, hours, client)
    assert str(caught.value) == f"enrolment codes: {message}"


def test_codes_differ_and_the_database_can_not_give_them_away(make_fleet: Make) -> None:
    fleet = make_fleet()
    codes = fleet.enrolments.new_codes(500, 1)
    assert len(set(codes)) == 500 and min(map(len, codes)) >= 24
    with fleet.store.database.reading() as connection:
        stored = {bytes(code) for code in connection.execute(select(ENROLMENT_CODES.c.code)).scalars()}
    assert stored == {hashed(code) for code in codes}


def test_the_register_tells_names_states_and_runtimes_in_pages(make_fleet: Make) -> None:
    fleet = make_fleet(over_selection=1)
    fleet.run_round("a", "b")
    fleet.enrolments.revoke("b")
    fleet.enrolments.revoke("c")
    records = {record.name: record for record in fleet.enrolments.devices()}
    assert list(records) == list(ENROLLED)
    assert [(records[name].state, records[name].runtime, records[name].reports) for name in "abcd"] == [
        ("active", "test", 1),
        ("revoked", "test", 1),
        ("revoked", "", 0),
        ("enrolled", "", 0),
    ]
    seen = records["a"].seen
    assert seen is not None and records["a"].enrolled <= seen <= time.time()
    assert records["d"].seen is None
    pages = [fleet.enrolments.devices(limit=4), fleet.enrolments.devices(limit=4, after="d")]
    assert [[record.name for record in page] for page in pages] == [["a", "b", "c", "d"], ["e", "f"]]
    assert fleet.enrolments.summary() == {
        "states": {"enrolled": len(ENROLLED) - 3, "active": 1, "revoked": 2},
        "runtimes": {"test": 1},
    }
