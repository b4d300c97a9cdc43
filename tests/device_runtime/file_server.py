"""An HTTP server of files that knows ranges, and can be told to go wrong."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from device_runtime.tensors import sha256
from device_runtime.transport import RetryPolicy, Transport


@dataclass
class FileServer:
    """What the server gives, and what it was asked for.

    Attributes:
        find: the content at a path, the status of a failure, or None where there is no such file.
        asked: paths, in turn.
        ranges: the ``Range`` headers, in turn; empty where there was none.
        cut: of the answers, in turn, so many bytes of the body before the connection ends; then whole ones.
        garbage: what is sent in the place of a 206, in turn: status, ``Content-Range`` and body.
    """

    find: Callable[[str], bytes | int | None]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    garbage: list[tuple[int, str, bytes]] = field(default_factory=list)

    def transport(self, attempts: int = 1) -> Transport:
        return Transport(self.url, timeout=20, retry=RetryPolicy(attempts), sleep=lambda _: None)


@contextmanager
def serve_files(find: Callable[[str], bytes | int | None]) -> Iterator[FileServer]:
    """A server on a free port of 127.0.0.1."""
    state = FileServer(find)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            state.ranges.append(self.headers.get("Range", ""))
            found = state.find(self.path)
            if not isinstance(found, bytes):
                return self._answer(found or 404, b"")
            etag = f'"{sha256(found)}"'
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if asked is None or self.headers.get("If-Range", etag) != etag:
                return self._answer(200, found, {"ETag": etag})
            start = int(asked.group(1))
            if state.garbage:
                status, where, body = state.garbage.pop(0)
                return self._answer(status, body, {"Content-Range": where} if where else {})
            if start >= len(found):
                return self._answer(416, b"", {"Content-Range": f"bytes */{len(found)}"})
            where = f"bytes {start}-{len(found) - 1}/{len(found)}"
            return self._answer(206, found[start:], {"ETag": etag, "Content-Range": where})

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: state.cut.pop(0)] if state.cut and status in (200, 206) else body)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
