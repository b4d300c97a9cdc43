"""Tokens of a round, keys of people, and the server's clock."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_server.access.tokens import Ticket, hashed, read_key, read_token, same, token_for
from aggregation_server.coordination.clock import ServerClock
from aggregation_server.coordination.requests import Caller
from aggregation_server.web.callers import Keys
from device_runtime.errors import InputError

KEY = bytes(range(32))
TICKETS = st.builds(Ticket, st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from(["training", "evaluation"]))
NAMES = st.text("ab-1.", min_size=1, max_size=6)


@given(TICKETS, NAMES)
def test_a_token_says_what_it_was_made_of_and_is_the_same_every_time(ticket: Ticket, name: str) -> None:
    token = token_for(ticket, name, KEY)
    assert token == token_for(ticket, name, KEY)
    assert token.isascii() and token.isprintable() and " " not in token
    assert read_token(token, name, KEY) == ticket


@given(TICKETS, NAMES, TICKETS, NAMES)
def test_another_device_s_token_another_round_s_and_another_fleet_s_are_none(
    ticket: Ticket, name: str, other: Ticket, stranger: str
) -> None:
    token = token_for(ticket, name, KEY)
    if stranger != name:
        assert read_token(token, stranger, KEY) is None
    assert read_token(token, name, KEY[::-1]) is None
    if other != ticket:
        text, code = token_for(other, name, KEY).rpartition("-")[0], token.rpartition("-")[2]
        assert read_token(f"{text}-{code}", name, KEY) is None


@given(st.text(max_size=100))
def test_what_is_no_token_is_none(text: str) -> None:
    assert read_token(text, "a", KEY) is None


@given(st.integers(0, 200), st.characters())
def test_a_token_with_one_character_changed_is_none(place: int, character: str) -> None:
    token = token_for(Ticket(12, 34, "training"), "a", KEY)
    place %= len(token)
    if character != token[place]:
        assert read_token(token[:place] + character + token[place + 1 :], "a", KEY) is None


def test_secrets_are_compared_by_their_hashes() -> None:
    assert hashed("secret").hex() == "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    assert same(hashed("secret"), hashed("secret")) and not same(hashed("secret"), hashed("Secret"))


def test_a_key_is_drawn_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "operator.key"
    mask = os.umask(0)
    try:
        key = read_key(path, "operator")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) == 43 and path.read_text() == key + "\n"
    assert read_key(path, "operator") == key
    assert read_key(tmp_path / "viewer.key", "viewer") != key


def test_a_disk_that_is_full_leaves_no_key_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "operator.key"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(InputError) as caught:
        patched.setattr("os.fsync", full)
        read_key(path, "operator")
    assert str(caught.value) == f"{path}: can't keep the operator's key there: No space left on device"
    assert list(tmp_path.iterdir()) == []
    assert len(read_key(path, "operator")) == 43


def test_servers_that_start_at_once_have_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "operator.key"
    draw = secrets.token_urlsafe

    def slowly(length: int) -> str:
        time.sleep(0.02)
        return draw(length)

    monkeypatch.setattr(secrets, "token_urlsafe", slowly)
    with ThreadPoolExecutor(16) as executor:
        keys = list(executor.map(lambda _: read_key(path, "operator"), range(64)))
    assert len(set(keys)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "viewer.key"
    read_key(path, "viewer")
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(InputError) as caught:
            read_key(path, "viewer")
        assert str(caught.value) == f"{path}: others may read the viewer's key; do chmod 600 {path}"


@pytest.mark.parametrize("content", [b"", b"short\n", b"x" * 31, b"x" * 20 + b" " + b"x" * 20, "ä".encode() * 40])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "operator.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_key(path, "operator")
    wanted = "expected the operator's key, a line of at least 32 characters; delete it for a new one"
    assert str(caught.value) == f"{path}: {wanted}"


def test_a_key_that_can_not_be_read_or_kept_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "operator.key"
    path.touch(0o600)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match=rf"^{path}: can't read the operator's key: 'utf-8' codec"):
        read_key(path, "operator")
    folder = tmp_path / "folder.key"
    folder.mkdir(0o700)
    with pytest.raises(InputError, match=rf"^{folder}: can't read the operator's key: Is a directory$"):
        read_key(folder, "operator")
    missing = tmp_path / "none" / "viewer.key"
    with pytest.raises(InputError, match=rf"^{missing}: can't keep the viewer's key there: No such file or directory$"):
        read_key(missing, "viewer")


def test_people_are_known_by_name_and_key() -> None:
    keys = Keys("o" * 40, "v" * 40)
    assert keys.role(Caller("operator", "o" * 40)) == "operator"
    assert keys.role(Caller("viewer", "v" * 40)) == "viewer"
    for name, secret in (("operator", "v" * 40), ("viewer", "o" * 40), ("Operator", "o" * 40), ("operator", "")):
        assert keys.role(Caller(name, secret)) is None


def test_the_clock_goes_on_from_what_is_stored_and_never_back() -> None:
    mono = [5000.0]
    clock = ServerClock(lambda: mono[0])
    assert clock.now() == 0.0
    assert clock.agree(70.0) == 70.0
    mono[0] += 3
    assert clock.now() == 73.0
    assert clock.agree(71.0) == 73.0, "another server is behind"
    assert clock.agree(90.0) == 90.0, "another server is ahead"
    mono[0] += 1
    assert clock.now() == 91.0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e9))))
def test_no_order_of_agreements_turns_it_back(steps: list[tuple[float, float]]) -> None:
    mono = [0.0]
    clock, before = ServerClock(lambda: mono[0]), 0.0
    for seconds, stored in steps:
        mono[0] += seconds
        now = clock.agree(stored)
        assert now >= before - 1e-6 and now >= stored - 1e-6
        before = now
