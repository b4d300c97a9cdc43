"""The least that a server could do: an ASGI endpoint that reads a request, and makes a report durable by itself.

It has no routes, knows nobody, validates nothing, remembers nothing, and adds up nothing.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn

from device_runtime import messages

REPORTS = "reports"
"""The file that it keeps them in; whoever empties it may."""
_ACCEPTED = json.dumps(messages.ReportReply("accepted").to_json()).encode()
_CHECKED_IN = json.dumps(messages.CheckInReply("accept", "", 1, "0" * 80, 1.0).to_json()).encode()


def create_reference(folder: Path) -> Callable[..., Awaitable[None]]:
    """The application; reports go into a file in `folder`."""
    file = os.open(folder / REPORTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(parts)
        answer = _CHECKED_IN
        if scope["path"] == messages.REPORT:
            os.write(file, body)
            os.fdatasync(file)
            answer = _ACCEPTED
        else:
            json.loads(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            create_reference(Path.cwd()), log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=75
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
