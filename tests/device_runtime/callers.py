"""Devices that a server knows: enrolled at a real one, or by what they keep alone, where a test is not about that."""

from __future__ import annotations

from pathlib import Path

from device_runtime.enrolment import Credentials, enrol
from device_runtime.server_client import ServerClient
from device_runtime.transport import Caller, Transport


def enrolled(url: str, folder: Path, client: str) -> Caller:
    """A device that a server with open enrolment has enrolled; its secret is in the state folder."""
    credentials = Credentials(folder, Transport(url).server, client)
    enrol(ServerClient(Transport(url)), credentials, "")
    return credentials.caller()


def believed(url: str, cache: Path, client: str = "a") -> Caller:
    """A device that takes itself for enrolled, with the folder of ``--cache``."""
    credentials = Credentials(cache / "rounds", Transport(url).server, client)
    caller = credentials.caller()
    credentials.confirm()
    return caller
