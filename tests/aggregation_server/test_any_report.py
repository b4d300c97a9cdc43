"""Any bytes as a report: it is refused, or the round with it comes to an end, and what it said can be shown."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation_server.web.answers import json_answer
from device_runtime import codec
from device_runtime.bundle import Bundle
from device_runtime.codec.update_format import UpdateHeader
from device_runtime.update import ClientUpdate
from tests.aggregation_server.fleet import Fleet, evaluation

CODECS = ("f32", "f16", "q8", "q4", "q2", "q1")
REASONS = {"truncated", "checksum", "format", "model", "shape", "wrong_round", "weight", "non_finite"}
ENDS = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1])
FLOATS = st.floats() | st.sampled_from([1.7e308, -1.7e308, 5e-324])
EVALUATIONS = st.fixed_dictionaries(
    {
        "round_number": st.integers(0, 2) | ENDS,
        "count": st.integers(-1, 20) | ENDS | st.floats(0, 9) | st.none(),
        "correct": FLOATS | st.integers(0, 20) | st.booleans(),
        "loss_sum": FLOATS | st.integers(0, 20) | st.text(max_size=3),
    }
)


def sealed(content: bytes) -> bytes:
    """Content with the checksum that belongs to it: whoever means harm can count, too."""
    return content + struct.pack("<I", zlib.crc32(content))


@st.composite
def changed(draw: st.DrawFn, body: bytes) -> bytes:
    """Bytes with some of them other ones, some cut off or put on, and with the right checksum or not."""
    content = bytearray(body[:-4])
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    content = content[: draw(st.sampled_from([len(content), draw(st.integers(0, len(content)))]))]
    content += draw(st.binary(max_size=3))
    return sealed(bytes(content)) if draw(st.booleans()) else bytes(content) + body[-4:]


def numbers(fleet: Fleet) -> Any:
    """All that people are shown, as a browser reads it: with numbers that are numbers."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(bytes(json_answer(fleet.status()).body), parse_constant=refuse)


def comes_to_an_end(fleet: Fleet, name: str, body: bytes) -> None:
    """Two devices take part in the open round, of which the second one reports `body`."""
    status = fleet.status()
    honest = evaluation(status["round"]) if status["round_task"] == "evaluation" else None
    fleet.join("honest", name)
    reply = fleet.report(name, body)
    assert fleet.report("honest", honest).verdict == "accepted"
    if reply.verdict == "refused":
        assert reply.reason in REASONS
        fleet.tick(fleet.coordinator.task.round.reporting_timeout)
    else:
        assert reply.verdict == "accepted"
    before = len(fleet.history())
    assert fleet.commit()
    assert len(fleet.history()) == before + 1
    numbers(fleet)


@pytest.mark.parametrize("of_evaluation", [False, True])
def test_any_bytes_are_answered_and_the_round_comes_to_an_end(
    make_fleet: Callable[..., Fleet], bundle: Bundle, in_memory: Path, of_evaluation: bool
) -> None:
    files = {"store_url": f"sqlite:///{in_memory / 'server.db'}", "spool": in_memory / "spool"}
    fleet = make_fleet(goal_count=2, over_selection=1.0, evaluate_every=1 if of_evaluation else None, **files)
    specs, model = bundle.manifest.tensors, bundle.manifest.model_id
    rng = np.random.default_rng(0)
    names = (f"other-{number}" for number in count())

    @settings(max_examples=40, derandomize=True)
    @given(st.data())
    def any_bytes(data: st.DataObject) -> None:
        status = fleet.status()
        number = status["round"]
        if of_evaluation and status["round_task"] == "training":
            fleet.run_round("honest", next(names))
            number = fleet.status()["round"]
        if of_evaluation:
            said = json.dumps(
                data.draw(EVALUATIONS | st.just({"round_number": number, "count": 3, "correct": 1, "loss_sum": 1}))
            )
            body = data.draw(st.just(said.encode()) | st.binary(max_size=200))
        else:
            delta = tuple(rng.normal(size=[d or 0 for d in spec.shape]).astype(np.float32) for spec in specs)
            weight = data.draw(st.integers(1, 5) | ENDS)
            metrics = data.draw(st.dictionaries(st.sampled_from(["loss", "ä", ""]), FLOATS))
            update = ClientUpdate(delta, 1, number, {"loss": 1.0})
            encoded = codec.encode(update, specs, model, data.draw(st.sampled_from(CODECS)), 7)
            header, start = UpdateHeader.unpack(memoryview(encoded)[:-4], model)
            encoded = sealed(replace(header, weight=weight, metrics=metrics).pack() + encoded[start:-4])
            body = data.draw(st.just(encoded) | changed(encoded) | st.binary(max_size=200))
        comes_to_an_end(fleet, next(names), body)

    any_bytes()
