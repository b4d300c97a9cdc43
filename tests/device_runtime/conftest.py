"""Files of examples, and a scripted HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from device_runtime.examples import Examples


@pytest.fixture
def examples_file(tmp_path: Path, digits_examples: Callable[[int, int], Examples]) -> Callable[[int, int], Path]:
    """`examples_file(n, seed)`: a ``.npz`` file with `digits_examples(n, seed)`."""

    def make(count: int, seed: int) -> Path:
        examples = digits_examples(count, seed)
        path = tmp_path / f"examples-{count}-{seed}.npz"
        np.savez(path, x=examples.x, y=examples.y)
        return path

    return make


@dataclass
class Script:
    """An HTTP server that gives its answers in turn, the last for ever, and writes down what it was asked.

    An answer is a status and a body; a status of 0 stands for no answer until the test is over. Of the answers
    that `cut` has a number for, in turn, only so many bytes of the body are sent; those that `retry_after` has a text
    for have it as a header.
    """

    url: str
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    requests: list[tuple[str, str, bytes, dict[str, str]]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    retry_after: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def script() -> Iterator[Script]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.requests.append((self.command, self.path, body, dict(self.headers)))
            status, content = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            if status == 0:
                state.over.wait(60)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if state.retry_after:
                self.send_header("Retry-After", state.retry_after.pop(0))
            self.end_headers()
            self.wfile.write(content[: state.cut.pop(0)] if state.cut else content)

        do_GET = do_POST = handle_any  # noqa: N815

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state = Script(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield state
        state.over.set()
        server.shutdown()
        thread.join()
