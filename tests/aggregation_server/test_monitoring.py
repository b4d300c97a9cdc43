"""What a server says of itself: whether it is ready, how long requests take, and which failed."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from aggregation_server.coordination.committer import Committer
from aggregation_server.coordination.desk import Desk
from aggregation_server.monitoring.readiness import Readiness
from aggregation_server.rounds import RoundConfig
from aggregation_server.storage.spool import SpoolError
from aggregation_server.web.measured import Measured
from aggregation_server.web.page import page_files
from tests.aggregation_server.fleet import Fleet
from tests.aggregation_server.running import Running
from tests.disk import mounted

MakeFleet = Callable[..., Fleet]
Start = Callable[..., Running]


def _reasons(fleet: Fleet, between: Callable[[Desk], None] = lambda _: None) -> list[str]:
    async def ask() -> list[str]:
        desk = Desk(fleet.coordinator, Committer(fleet.coordinator))
        desk.start()
        try:
            between(desk)
            return await Readiness(desk).reasons()
        finally:
            desk.stop()

    return asyncio.run(ask())


def test_a_server_that_works_is_ready(start_server: Start) -> None:
    server = start_server(RoundConfig(goal_count=2))
    answer = server.nobody.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "reasons": []})
    assert server.nobody.get("/healthz").json() == {"status": "alive"}


def test_a_database_that_fails_makes_it_not_ready(start_server: Start, tmp_path: Path) -> None:
    server = start_server(RoundConfig(goal_count=2), f"sqlite:///{tmp_path / 'server.db'}")
    for path in tmp_path.glob("server.db*"):
        path.write_bytes(b"damaged" * 1000)
    end = time.monotonic() + 20
    while (answer := server.nobody.get("/readyz")).status_code == 200:  # an answer holds for a second
        assert time.monotonic() < end
        time.sleep(0.1)
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert answer.json()["reasons"] == ["database: it does not answer"]
    assert server.nobody.get("/healthz").status_code == 200  # a restart would not help
    server.kill()  # it would go on trying


def test_a_full_disk_makes_it_not_ready(make_fleet: MakeFleet, tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "256k") as disk:
        fleet = make_fleet(spool=disk / "spool")
        assert _reasons(fleet) == []
        (disk / "filler").write_bytes(bytes(200 << 10))
        assert fleet.spool.free() < 64 << 10
        with pytest.raises(SpoolError, match="can't write reports: No space left on device"):
            fleet.spool.probe()
        assert _reasons(fleet) == ["spool: it can't be written to"]
        (disk / "filler").unlink()
        assert _reasons(fleet) == []
        fleet.close()


def test_a_server_that_ends_is_not_ready(make_fleet: MakeFleet) -> None:
    said = _reasons(make_fleet(), lambda desk: desk.stop())
    assert said == ["requests: too many wait, or the server is ending"]


def test_storage_that_hangs_is_not_waited_for_and_asked_once(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, asked = make_fleet(), [0]

    def hang() -> None:
        asked[0] += 1
        time.sleep(0.5)

    monkeypatch.setattr(fleet.spool, "probe", hang)
    monkeypatch.setattr("aggregation_server.monitoring.readiness._PATIENCE_SECONDS", 0.05)

    async def ask() -> list[list[str]]:
        desk = Desk(fleet.coordinator, Committer(fleet.coordinator))
        desk.start()
        try:
            readiness = Readiness(desk)
            said = [await readiness.reasons() for _ in range(3)]
            await asyncio.sleep(0.6)
            return [*said, await readiness.reasons()]
        finally:
            desk.stop()

    *hanging, after = asyncio.run(ask())
    assert hanging == [["storage: the database or the disk did not answer within 0.05 seconds"]] * 3
    assert after == [] and asked == [1]


class _Answering:
    """An application that answers with a status, or raises."""

    def __init__(self, status: int | None) -> None:
        self.status = status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.status is None:
            raise ValueError("a mistake")
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def test_requests_that_fail_are_told_of_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now, registry, app = [0.0], CollectorRegistry(), _Answering(503)
    measured = Measured(app, {"/v1/report"}, registry, lambda: now[0])

    async def call(path: str) -> None:
        transport = httpx.ASGITransport(measured, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.get(path)

    with caplog.at_level(logging.INFO, "aggregation_server"):
        for _ in range(3):
            asyncio.run(call("/v1/report?token=secret"))
        now[0] += 1
        asyncio.run(call("/v1/report"))
        app.status = None
        asyncio.run(call("/a/path/that/a/caller/chose"))
        app.status = 404
        asyncio.run(call("/v1/report"))
    assert [record.getMessage() for record in caplog.records] == [
        "/v1/report answered with 503 after 0.000 s",
        "/v1/report answered with 503 after 0.000 s, and so were 2 before it",
        "none answered with 500 after 0.000 s",
    ]
    count = "pocketfed_request_duration_seconds_count"
    assert registry.get_sample_value(count, {"route": "/v1/report", "status": "503"}) == 4
    assert registry.get_sample_value(count, {"route": "none", "status": "500"}) == 1


def test_the_page_is_for_people_and_its_files_are_kept(start_server: Start) -> None:
    server = start_server(RoundConfig(goal_count=2))
    answer = server.nobody.get("/")
    assert (answer.status_code, answer.headers["www-authenticate"][:5]) == (401, "Basic")
    assert server.device("a").get("/").status_code == 401
    page = server.viewer.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy and "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert "<script>" not in page.text and " onclick=" not in page.text
    again = server.viewer.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    version = page_files().version
    for name, file in page_files().files.items():
        path = f"/page/{version}/{name}"
        assert server.nobody.get(path).status_code == 401
        answer = server.viewer.get(path)
        if name == "index.html":
            assert answer.status_code == 404
            continue
        assert (answer.status_code, answer.headers["content-encoding"]) == (200, "gzip")
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert answer.content == file.plain == gzip.decompress(file.compressed)
        assert server.viewer.get(path, headers={"Accept-Encoding": "identity"}).content == file.plain
        assert server.viewer.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    missing = server.viewer.get("/page/0000000000000000/page.js")
    assert missing.status_code == 404 and "load the page anew" in missing.text
    assert len(page_files().files["plotly.min.js"].compressed) < 1_600_000


def test_a_status_with_as_much_history_as_is_asked_for(start_server: Start) -> None:
    server = start_server(RoundConfig(goal_count=2))
    assert server.viewer.get("/v1/status?history=0").json()["history"] == []
    answer = server.viewer.get("/v1/status?history=many")
    assert answer.status_code == 400
    assert answer.json()["message"] == "history: expected a whole number from 0 to 1000"
