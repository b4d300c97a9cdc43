"""A way to PostgreSQL that can be cut: just before it hears of a COMMIT, or just after it has carried it out."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

_COMMIT = b"\x0bCOMMIT\x00"  # the statement alone, with its length before it
_TERMINATE = b"X\x00\x00\x00\x04"


class Way:
    """A socket in a folder, behind which is another one.

    Attributes:
        cut: what is to become of the next COMMIT; None lets it pass.
        linger: seconds by which PostgreSQL hears later that a session has ended.
    """

    def __init__(self, folder: Path, behind: Path) -> None:
        self.cut: Literal["before", "after"] | None = None
        self.linger = 0.0
        self._behind = behind
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / behind.name))
        self._listener.listen()

    def serve(self) -> None:
        """Take connections until `close`."""
        with suppress(OSError):  # that it is closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(str(self._behind))
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(1 << 16)
                    if data.endswith(_TERMINATE):
                        time.sleep(self.linger)
                    if not data:
                        return
                    if source is client and data.endswith(_COMMIT) and self.cut is not None:
                        cut, self.cut = self.cut, None
                        if cut == "after":
                            server.sendall(data)
                            server.recv(1 << 16)  # it is done; nobody hears of it
                        return
                    (server if source is client else client).sendall(data)


@contextmanager
def cuttable(folder: Path, behind: Path) -> Iterator[Way]:
    """A way to the socket `behind`, through one of the same name in `folder`."""
    way = Way(folder, behind)
    threading.Thread(target=way.serve, daemon=True).start()
    try:
        yield way
    finally:
        way.close()
