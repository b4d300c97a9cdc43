"""An HTTP proxy before a server, which sees what goes through and can keep it back."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Hook = Callable[[str, bytes], bool]
_KEPT = ("content-type", "content-range", "etag", "retry-after")


@contextmanager
def proxy(
    target: Callable[[], str],
    before: Hook = lambda path, body: True,
    after: Hook = lambda path, answer: True,
    cut: Callable[[str, int], int] = lambda path, size: size,
) -> Iterator[str]:
    """A proxy on a free port of 127.0.0.1; its URL.

    Args:
        target: the server's URL, asked for at each request.
        before: told of a request's path and body; where it says no, the connection ends.
        after: told of its path and of the answer's body, which the device then does not get where it says no.
        cut: how many bytes of an answer's body to send before the connection ends, by path and size.
    """

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not before(self.path, body):
                return
            connection = http.client.HTTPConnection(urlsplit(target()).netloc, timeout=60)
            try:
                given = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                connection.request(self.command, self.path, body, given)
                answer = connection.getresponse()
                content = answer.read()
            except OSError:
                return
            finally:
                connection.close()
            if not after(self.path, content):
                return
            with suppress(OSError):  # the device was killed
                self.send_response(answer.status)
                for name in _KEPT:
                    if (value := answer.getheader(name)) is not None:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: cut(self.path, len(content))])

        do_GET = do_POST = handle_any  # noqa: N815

        def log_message(self, *_arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, address: object) -> None:
            """A device that is killed breaks its connections."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
