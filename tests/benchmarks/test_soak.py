"""Rounds with devices that misbehave, and that a report which is lost or counted twice would be seen."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from aggregation_server.aggregation.validation import validated_update
from benchmarks import soak
from benchmarks.errors import BenchmarkError
from benchmarks.server import load
from benchmarks.server.bundle import write_bundle
from benchmarks.server.fleet import enrolled, of_round, updates
from benchmarks.server.http import Connection, request_head
from benchmarks.server.process import Serving, server
from device_runtime.bundle import open_bundle


def test_rounds_agree_with_what_devices_heard() -> None:
    samples, wrong = asyncio.run(soak.soak(12, seed=1))
    assert wrong == []
    assert samples[-1].rounds == 12
    assert 50 < samples[-1].memory < 1000
    assert samples[-1].database > 0


def test_what_is_not_as_it_should_be_is_told(tmp_path: Path) -> None:
    bundle = write_bundle("digits_mlp", tmp_path)
    manifest = open_bundle(bundle).manifest
    folder = tmp_path / "server"
    folder.mkdir()
    devices = enrolled(f"sqlite:///{folder / 'pocketfed-digits_mlp.db'}", bundle, 2)
    (stranger,) = enrolled(f"sqlite:///{tmp_path / 'elsewhere.db'}", bundle, 1)
    body = of_round(updates(manifest.tensors, manifest.model_id, "q8")[0], 1)

    async def act(serving: Serving) -> None:
        async with load.connections(serving.url, 1) as (line,):
            await answers(line)
            await reports(serving, line)

    async def answers(line: Connection) -> None:
        with pytest.raises(BenchmarkError, match=r"^a check-in was answered with status 401: "):
            await load.check_ins([line], [stranger], {})
        with pytest.raises(BenchmarkError, match=r"^a configuration was answered with status 401: "):
            await load.configurations([line], [stranger], {stranger.name: "none"})
        with pytest.raises(BenchmarkError, match=r"^a report was answered with status 401: "):
            await load.reports([line], [stranger], {stranger.name: "none"}, [b"nothing"])
        answer = line.ask(request_head("GET", "/healthz", {}))
        with pytest.raises(BenchmarkError, match=r"has not answered the last request"):
            line.ask(request_head("GET", "/healthz", {}))
        assert (await answer)[0] == 200

    async def reports(serving: Serving, line: Connection) -> None:
        tokens: dict[str, str] = {}
        await load.check_ins([line], devices, tokens)
        await load.reports([line], devices, tokens, [body])
        while (await load.status_of(serving, line))["committed_rounds"] < 1:
            await asyncio.sleep(0.01)
        right = soak.Ledger(Counter({"checked_in": 2, "accepted": 2, "reported": 2}), Counter({1: 2}))
        assert await soak._disagreements(serving, line, right) == []
        wrong = soak.Ledger(right.answers | Counter({"reported": 3, "late": 1}), Counter({1: 3, 7: 1}))
        assert await soak._disagreements(serving, line, wrong) == [
            "late: devices heard it 1 times, the server counted 0",
            "reported: devices heard it 3 times, the server counted 2",
            "attempt 1: 3 reports were accepted, and 2 of them counted",
            "attempt 7: its reports are in no record",
        ]

    with server(bundle, folder, ["--goal", "2", "--over-selection", "1"]) as serving:
        asyncio.run(act(serving))


def test_a_server_that_does_not_come_up_is_told(tmp_path: Path) -> None:
    bundle = write_bundle("digits_mlp", tmp_path)
    with (
        pytest.raises(BenchmarkError, match=r"(?s)^the server did not come up: .*--goal"),
        server(bundle, tmp_path / "server", ["--goal", "none"]),
    ):
        pass


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"^http://127\.0\.0\.1:1: can't connect: "):
        asyncio.run(Connection.open("http://127.0.0.1:1"))


@pytest.mark.parametrize("model", ["digits_mlp", "mnist_2nn"])
def test_reports_are_valid_in_every_round(tmp_path: Path, model: str) -> None:
    manifest = open_bundle(write_bundle(model, tmp_path)).manifest
    for body in updates(manifest.tensors, manifest.model_id, "q4"):
        assert validated_update(of_round(body, 7), manifest, 7).header.round_number == 7


def test_slope() -> None:
    samples = [soak.Sample(rounds, 100.0 + rounds / 500, 1.0) for rounds in range(0, 1001, 100)]
    samples[0] = soak.Sample(0, 20.0, 1.0)  # before it was warm
    assert soak.slope(samples, [sample.memory for sample in samples]) == pytest.approx(2.0)
    with pytest.raises(BenchmarkError, match="give more --rounds"):
        soak.slope(samples[:1], [100.0])
