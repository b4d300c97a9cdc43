"""The metered flag over a real bus: dbus-daemon, busctl, and a service that answers as NetworkManager does."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_runtime.eligibility.conditions import Reading, unknown
from device_runtime.eligibility.network import Network

pytestmark = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None or shutil.which("busctl") is None, reason="dbus-daemon or busctl is missing"
)

CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
  <policy context="default"><allow own="*"/><allow send_destination="*"/><allow eavesdrop="true"/></policy>
</busconfig>
"""
CALL, RETURN = 1, 2
PATH, INTERFACE, MEMBER, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE = 1, 2, 3, 5, 6, 7, 8


class Service:
    """NetworkManager's name on a bus, and its property `Metered`, in D-Bus's own wire format."""

    def __init__(self, address: Path) -> None:
        self.metered = 0
        self.asked: list[bytes] = []
        self._serial = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(address))
        self._socket.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        assert self._socket.recv(200).startswith(b"OK ")
        self._socket.sendall(b"BEGIN\r\n")
        self._call("Hello", b"", "")
        name = b"org.freedesktop.NetworkManager"
        self._call("RequestName", struct.pack("<I", len(name)) + name + b"\0\0" + struct.pack("<I", 0), "su")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._socket.close()
        assert not self._thread.is_alive()

    def _call(self, member: str, body: bytes, signature: str) -> None:
        bus = "org.freedesktop.DBus"
        fields: dict[int, str | int] = {PATH: "/org/freedesktop/DBus", INTERFACE: bus, MEMBER: member, DESTINATION: bus}
        self._send(CALL, fields | ({SIGNATURE: signature} if signature else {}), body)
        while self._receive()[0] != RETURN:  # signals come between
            pass

    def _send(self, kind: int, fields: dict[int, str | int], body: bytes) -> None:
        self._serial += 1
        array = b""
        for code, value in fields.items():
            array += b"\0" * (-len(array) % 8) + bytes([code])
            if isinstance(value, int):
                array += b"\x01u\0" + struct.pack("<I", value)
            elif code == SIGNATURE:
                array += b"\x01g\0" + bytes([len(value)]) + value.encode() + b"\0"
            else:
                array += (b"\x01o\0" if code == PATH else b"\x01s\0") + struct.pack("<I", len(value))
                array += value.encode() + b"\0"
        head = struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), self._serial, len(array)) + array
        self._socket.sendall(head + b"\0" * (-len(head) % 8) + body)

    def _receive(self) -> tuple[int, int, dict[int, bytes], bytes]:
        """Kind, serial, the fields that are texts, and body of the next message."""
        start = self._read(16)
        kind, size, serial, length = start[1], *struct.unpack("<III", start[4:])
        array = self._read(length + -length % 8)
        fields, place = {}, 0
        while place < length:
            place += -place % 8
            code, signature = array[place], array[place + 2 : place + 3]
            place += 4
            if signature == b"g":
                place += array[place] + 2
            elif signature == b"u":
                place += 4
            else:
                (count,) = struct.unpack_from("<I", array, place)
                fields[code] = array[place + 4 : place + 4 + count]
                place += 4 + count + 1
        return kind, serial, fields, self._read(size)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _serve(self) -> None:
        try:
            while True:
                kind, serial, fields, body = self._receive()
                if kind == CALL and fields[MEMBER] == b"Get":
                    self.asked.append(body)
                    reply: dict[int, str | int] = {REPLY_SERIAL: serial, DESTINATION: fields[SENDER].decode()}
                    self._send(RETURN, reply | {SIGNATURE: "v"}, b"\x01u\0\0" + struct.pack("<I", self.metered))
        except EOFError:
            pass


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Path]:
    """The socket of a bus of one's own."""
    path = tmp_path / "bus"
    (tmp_path / "bus.conf").write_text(CONFIGURATION.format(path=path))
    arguments = ["dbus-daemon", f"--config-file={tmp_path / 'bus.conf'}", "--nofork", "--nopidfile", "--print-address"]
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline().startswith(b"unix:path=")
            yield path
        finally:
            daemon.terminate()


@pytest.fixture
def network(bus: Path) -> Callable[[], Reading]:
    return Network({**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}).read


def test_network_manager_s_answers(bus: Path, network: Callable[[], Reading]) -> None:
    service = Service(bus)
    try:
        readings = []
        for service.metered in range(5):
            readings.append(network())
    finally:
        service.close()
    metered, free = Reading("metered", "metered network"), Reading("not metered")
    assert readings[1:] == [metered, free, metered, free]
    assert not readings[0].known
    assert len(service.asked) == 5
    assert all(b"org.freedesktop.NetworkManager\0" in body and b"Metered\0" in body for body in service.asked)


def test_a_bus_without_network_manager(network: Callable[[], Reading]) -> None:
    assert network() == unknown("whether the network is metered")
