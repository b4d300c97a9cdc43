"""HTTP/1.1 with the standard library: time limits, retries, bounded answers."""

from __future__ import annotations

import http.client
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from device_runtime.errors import InputError, NetworkError

_MAX_ANSWER = 1 << 20


@dataclass(frozen=True)
class Response:
    """Status and body of an answer."""

    status: int
    body: bytes


@dataclass(frozen=True)
class RetryPolicy:
    """How often and when a request is tried again after the network or the server failed.

    The wait doubles from try to try and varies by ±20 %, so that a fleet does not come back all at once
    (the jitter of Bonawitz et al. 2019, section 2.3).
    """

    attempts: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def wait(self, failures: int, jitter: float) -> float:
        """Seconds before the next try; `failures` so far, `jitter` from −1 to 1."""
        return float(min(self.first_wait * 2.0 ** (failures - 1), self.longest_wait) * (1 + 0.2 * jitter))


class Transport:
    """Requests to one server; the seam that a test or another protocol would replace.

    Args:
        base_url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
        timeout: seconds for connecting and for each read.
        retry: what to do when the network or the server fails.
        sleep, jitter: exchanged by tests.

    Raises:
        InputError: the URL is of another form.
    """

    def __init__(
        self,
        base_url: str,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311
    ) -> None:
        try:
            parts = urlsplit(base_url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/") or parts.query:
            raise InputError(f"server {base_url!r}: expected a URL such as http://127.0.0.1:8080")
        self._url = base_url
        self._host: str = host
        self._port = port
        self._secure = parts.scheme == "https"
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._sleep = sleep
        self._jitter = jitter

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = _MAX_ANSWER,
    ) -> Response:
        """Send a request, again if need be; any answer below status 500 is returned.

        Args:
            method, path, body, headers: of the request.
            limit: the longest answer in bytes that is read.

        Raises:
            NetworkError: no answer, a server error or a longer answer, after all attempts.
        """
        reason = ""
        for attempt in range(1, self._retry.attempts + 1):
            try:
                response = self._once(method, path, body, dict(headers or {}), limit)
                if response.status < 500:
                    return response
                reason = f"the server failed with status {response.status}"
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: of a host's name, a header
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if attempt < self._retry.attempts:
                self._sleep(self._retry.wait(attempt, self._jitter()))
        raise NetworkError(f"{self._url}{path}: {reason} ({self._retry.attempts} attempts)")

    def _once(self, method: str, path: str, body: bytes | None, headers: dict[str, str], limit: int) -> Response:
        connection = (
            http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=ssl.create_default_context()
            )
            if self._secure
            else http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        )
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read(limit + 1)
            if len(content) > limit:
                raise NetworkError(f"{self._url}{path}: the answer is longer than {limit} bytes")
            if answer.length:  # `read` with a length does not tell of a connection that broke
                raise http.client.IncompleteRead(content, answer.length)
            return Response(answer.status, content)
        finally:
            connection.close()
