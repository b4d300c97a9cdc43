"""How much one address and one device may ask: a real server, asked more than it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from aggregation_server.access.quotas import Quotas, rate_limits
from aggregation_server.rounds import RoundConfig
from aggregation_server.web.addresses import AddressLimits, address_of
from device_runtime import messages
from device_runtime.errors import InputError
from tests.aggregation_server.fleet import secret_of
from tests.aggregation_server.running import Running

# A rate so small that nothing comes back within a test: ten seconds' worth is all there is.
SCARCE = 0.1
TAKEN = 1


def statuses(answers: list[httpx.Response]) -> list[int]:
    return [answer.status_code for answer in answers]


def assert_told_to_wait(answer: httpx.Response) -> None:
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 10
    seconds = answer.headers["Retry-After"]
    assert answer.json() == {
        "reason": "too_many_requests",
        "message": f"too many requests: the next one is taken in {seconds} s",
    }


def test_an_address_is_answered_so_many_requests_and_then_told_when_to_come_back(
    start_server: Callable[..., Running],
) -> None:
    server = start_server(RoundConfig(2), quotas=Quotas(address_rate=SCARCE))
    answers = [server.nobody.get("/healthz") for _ in range(TAKEN + 2)]
    assert statuses(answers) == [200] * TAKEN + [429] * 2
    assert_told_to_wait(answers[-1])
    # Whoever it is, and whatever it asks for: nothing was looked at.
    assert server.operator.post("/v1/pause", content=b"x" * 100_000).status_code == 429


def test_an_address_that_fails_to_prove_who_it_is_is_soon_not_listened_to(start_server: Callable[..., Running]) -> None:
    server = start_server(RoundConfig(2), quotas=Quotas(failure_rate=SCARCE, trusted_proxies=("127.0.0.1",)))
    server.device("a")
    wrong = server.client(("a", secret_of("somebody else")))
    refused = {"code": "no such code", "client": "b", "secret": secret_of("b")}
    failures: list[tuple[httpx.Client, str, str, object, int]] = [
        (wrong, "GET", messages.LATEST_WEIGHTS, None, 401),
        (server.nobody, "GET", messages.STATUS, None, 401),
        (server.nobody, "POST", messages.ENROL, refused, 403),
        (server.viewer, "POST", "/v1/pause", {}, 403),
        (server.client(("operator", "x" * 40)), "POST", "/v1/pause", {}, 401),
    ]
    for number, (client, method, path, body, status) in enumerate(failures):
        address = {"X-Forwarded-For": f"192.0.2.{number}"}
        answers = [client.request(method, path, json=body, headers=address) for _ in range(TAKEN + 1)]
        assert statuses(answers) == [status] * TAKEN + [429]
        assert_told_to_wait(answers[-1])
        # The price: whoever else has the same address is not listened to either.
        assert server.device("a").get(messages.LATEST_WEIGHTS, headers=address).status_code == 429
    assert server.device("a").get(messages.LATEST_WEIGHTS).status_code == 200


def test_what_is_answered_does_not_count_as_a_failure(start_server: Callable[..., Running]) -> None:
    server = start_server(RoundConfig(2), quotas=Quotas(failure_rate=SCARCE))
    assert {server.device("a").get(messages.LATEST_WEIGHTS).status_code for _ in range(5)} == {200}


def test_a_device_is_answered_so_many_requests_whatever_others_do_in_its_name(
    start_server: Callable[..., Running],
) -> None:
    server = start_server(RoundConfig(2), quotas=Quotas(device_rate=SCARCE, failure_rate=0))
    impostor = server.client(("a", secret_of("an impostor")))
    server.device("a")
    assert {impostor.get(messages.LATEST_WEIGHTS).status_code for _ in range(5)} == {401}
    answers = [server.checked_in("a") for _ in range(TAKEN + 1)]  # nothing of it was used up
    assert statuses(answers) == [200] * TAKEN + [429]
    assert_told_to_wait(answers[-1])
    assert server.device("a").get(messages.LATEST_WEIGHTS).status_code == 429
    assert server.checked_in("b").status_code == 200  # another device has a budget of its own


def test_zero_is_no_limit(start_server: Callable[..., Running]) -> None:
    server = start_server(RoundConfig(2), quotas=Quotas(failure_rate=0))
    more = int(10 * Quotas().failure_rate) + 5
    assert {server.nobody.get(messages.STATUS).status_code for _ in range(more)} == {401}
    assert rate_limits(0.0) is None


def test_behind_a_proxy_each_address_has_its_own_budget(start_server: Callable[..., Running]) -> None:
    server = start_server(RoundConfig(2), quotas=Quotas(address_rate=SCARCE, trusted_proxies=("127.0.0.0/8",)))

    def ask(forwarded: str) -> int:
        return server.nobody.get("/healthz", headers={"X-Forwarded-For": forwarded}).status_code

    assert [ask("192.0.2.1") for _ in range(TAKEN + 1)] == [200] * TAKEN + [429]
    assert ask("192.0.2.2") == 200
    assert ask("198.51.100.7, 192.0.2.1") == 429  # what the client itself said comes first, and is not believed
    # A customer of IPv6 has as many addresses as there is sand, and one network.
    assert [ask(f"2001:db8::{number}") for number in range(TAKEN + 1)] == [200] * TAKEN + [429]
    assert ask("2001:db8:0:1::1") == 200


def test_who_is_no_proxy_of_ours_says_its_address_in_vain(start_server: Callable[..., Running]) -> None:
    server = start_server(RoundConfig(2), quotas=Quotas(address_rate=SCARCE))
    answers = [
        server.nobody.get("/healthz", headers={"X-Forwarded-For": f"192.0.2.{number}"}) for number in range(TAKEN + 1)
    ]
    assert statuses(answers) == [200] * TAKEN + [429]


def test_an_operator_is_told_once_of_a_proxy_that_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(app: ASGIApp) -> None:
        transport = httpx.ASGITransport(app, client=("10.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            for _ in range(2):
                await client.get("/", headers={"X-Forwarded-For": "192.0.2.1"})

    asyncio.run(ask(AddressLimits(PlainTextResponse("answer"), Quotas(trusted_proxies=("10.0.0.1",)))))
    assert caplog.messages == []
    asyncio.run(ask(AddressLimits(PlainTextResponse("answer"), Quotas())))
    assert caplog.messages == [
        "requests from 10.0.0.1 carry X-Forwarded-For: if a proxy of yours is there, name it with --trusted-proxy, or"
        " all devices behind it share one address's limits"
    ]


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("a:b", "a:b"),
        ("testclient", "testclient"),
    ],
)
def test_what_stands_for_an_address(host: str, key: str) -> None:
    assert address_of({"client": (host, 1)}) == key
    assert address_of({"client": None}) == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"address_rate": -1}, "--address-rate: should be at least 0.1 requests a second, or 0 for no limit, not -1"),
        ({"device_rate": 0.01}, "--device-rate: should be at least 0.1 requests a second, or 0 for no limit, not 0.01"),
        (
            {"failure_rate": float("nan")},
            "--failure-rate: should be at least 0.1 requests a second, or 0 for no limit, not nan",
        ),
        ({"connections": 0}, "--connections: should be at least 1, not 0"),
        ({"idle_seconds": 0}, "--idle-seconds: should be above 0, not 0"),
        ({"slow_seconds": float("inf")}, "--slow-seconds: should be above 0, not inf"),
        (
            {"trusted_proxies": ("proxy.example",)},
            "--trusted-proxy: 'proxy.example' is no address or network, such as 127.0.0.1 or 10.0.0.0/24",
        ),
    ],
)
def test_bounds_that_can_not_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Quotas(**wrong)  # type: ignore[arg-type]
    assert str(caught.value) == message
