"""What --workers takes, and what it says of addresses where no worker can be."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from device_runtime.errors import InputError, NetworkError
from tff_sim.workers.addresses import Address, Workers, parse_addresses, require_reachable


def test_addresses_are_read_and_written_alike() -> None:
    text = "10.0.0.2:8000, worker-1.workers:8000,[fd00::2]:65535"
    addresses = parse_addresses(text)
    assert addresses == (Address("10.0.0.2", 8000), Address("worker-1.workers", 8000), Address("fd00::2", 65535))
    assert ", ".join(map(str, addresses)) == "10.0.0.2:8000, worker-1.workers:8000, [fd00::2]:65535"


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":8000", "host:0", "host:65536", "fd00::2:8000", "http://host:8000", "host:80x", "a b:1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_addresses(f"10.0.0.2:8000,{text}")
    assert str(caught.value) == f"worker {text!r} should be HOST:PORT, such as 10.0.0.2:8000 or [fd00::2]:8000"


def test_an_address_that_is_named_twice_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        parse_addresses("10.0.0.2:8000,10.0.0.3:8000,10.0.0.2:8000")
    assert str(caught.value) == "worker 10.0.0.2:8000 is named twice; name each once"


def test_two_names_of_one_worker_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError) as caught:
            require_reachable(parse_addresses(f"127.0.0.1:{port},localhost:{port}"), 5)
    assert str(caught.value) == f"127.0.0.1:{port} and localhost:{port} are the same worker; name each once"


def test_an_address_where_nothing_listens() -> None:
    with socket.socket() as bound:  # and not listening, so that nobody else does
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(NetworkError) as caught:
            require_reachable(parse_addresses(f"127.0.0.1:{port}"), 5)
    assert str(caught.value) == (
        f"worker 127.0.0.1:{port} can't be reached (Connection refused);"
        " is 'pocketfed worker' running there, with --bind?"
    )


def test_a_host_that_nobody_knows() -> None:
    with pytest.raises(NetworkError) as caught:
        require_reachable(parse_addresses("nowhere.invalid:8000"), 5)
    assert str(caught.value).startswith("worker nowhere.invalid:8000: the host is unknown (")


@pytest.mark.parametrize("addresses", [(), "10.0.0.2:8000", ("10.0.0.2:8000",)])
def test_workers_are_addresses(addresses: Any) -> None:
    with pytest.raises(InputError) as caught:
        Workers(addresses)
    assert str(caught.value) == (
        "workers should be addresses, at least one, as parse_addresses('10.0.0.2:8000,10.0.0.3:8000') gives them,"
        f" not {addresses!r}"
    )


@pytest.mark.parametrize(("name", "seconds"), [("silence", 0), ("silence", -1.0), ("limit", 0.0)])
def test_workers_are_waited_for(name: str, seconds: float) -> None:
    with pytest.raises(InputError) as caught:
        Workers(parse_addresses("10.0.0.2:8000"), **{name: seconds})
    assert str(caught.value) == f"workers: {name} should be a number of seconds above 0, not {seconds!r}"
