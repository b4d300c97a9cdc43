"""Simulated devices: they say what real ones say, and train nothing."""

from __future__ import annotations

import json
import secrets
import struct
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import insert

from aggregation_server.access.tokens import hashed
from aggregation_server.rounds import RoundConfig
from aggregation_server.storage.schema import DEVICES
from aggregation_server.storage.store import Store
from benchmarks.server.http import request_head
from device_runtime import codec, messages
from device_runtime.bundle import open_bundle
from device_runtime.tensors import TensorSpec
from device_runtime.transport import Caller
from device_runtime.update import ClientUpdate
from device_runtime.weights import dump_weights

_ROUND = struct.Struct("<I")
_ROUND_PLACE = 16  # in an encoded update: see docs/codec.md
_CHECKSUM = struct.Struct("<I")
_DISTINCT = 8


@dataclass(frozen=True)
class Device:
    """An enrolled device, and the bytes by which it checks in."""

    name: str
    authorization: str
    check_in: bytes

    @classmethod
    def of(cls, name: str, secret: str, population: str) -> Device:
        authorization = Caller(name, secret).authorization
        body = json.dumps(messages.CheckIn(population, name, "simulated 1.0").to_json()).encode()
        head = request_head("POST", messages.CHECK_IN, {"Authorization": authorization}, len(body))
        return cls(name, authorization, head + body)

    def configuration(self, token: str) -> bytes:
        """The request for the work."""
        headers = {"Authorization": self.authorization, messages.TOKEN: token}
        return request_head("GET", messages.CONFIGURATION, headers)

    def report(self, token: str, length: int) -> bytes:
        """What stands before a report's body."""
        headers = {"Authorization": self.authorization, messages.TOKEN: token}
        return request_head("POST", messages.REPORT, headers, length)


def enrolled(database: str, bundle: Path, count: int) -> list[Device]:
    """Devices that a server which is not yet started will know; `database` is its URL."""
    opened = open_bundle(bundle)
    manifest = opened.manifest
    names = [f"device-{number:05}" for number in range(count)]
    known = {name: secrets.token_urlsafe(32) for name in names}
    initial = dump_weights(opened.initial_weights(), manifest.tensors)
    with closing(Store(database, manifest.model_id, initial)) as store:
        rows = [
            {"name": name, "secret": hashed(secret), "enrolled": 0.0, "runtime": "", "reports": 0}
            for name, secret in known.items()
        ]
        with store.ledger(RoundConfig(1)) as ledger:
            ledger.connection.execute(insert(DEVICES), rows)
    return [Device.of(name, secret, manifest.name) for name, secret in known.items()]


def updates(specs: Sequence[TensorSpec], model_id: str, name: str) -> list[bytes]:
    """A few valid reports of round 0."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(_DISTINCT):
        delta = tuple(rng.normal(0, 1e-3, [d or 1 for d in spec.shape]).astype(np.float32) for spec in specs)
        update = ClientUpdate(delta, 100 + number, 0, {"loss": 1.0})
        found.append(codec.encode(update, specs, model_id, name, number))
    return found


def of_round(report: bytes, number: int) -> bytes:
    """The same report of another round."""
    changed = bytearray(report)
    _ROUND.pack_into(changed, _ROUND_PLACE, number)
    _CHECKSUM.pack_into(changed, len(report) - 4, zlib.crc32(memoryview(changed)[:-4]))
    return bytes(changed)
