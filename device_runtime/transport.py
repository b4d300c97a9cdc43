"""HTTP/1.1 with the standard library: time limits, retries, the server's window, bounded answers, who calls."""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import select
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from device_runtime.deadline import device_clock
from device_runtime.errors import InputError, NetworkError, PocketfedError, TurnedAwayError
from device_runtime.tls import certificate_error, is_loopback, no_tls, tls_context

_MAX_ANSWER = 1 << 20
_KEPT_SECONDS = 4.0  # for which a connection is good that nobody uses; servers and networks drop it soon after
_LONGEST_WINDOW = 86_400.0  # seconds; whatever a server asks for, a device comes back within a day
_BUSY = (429, 503)  # the answers that may say when to come back
_AGAIN = (408, *_BUSY)  # 408: the request came too slowly, which the next one may not (RFC 9110, section 15.5.9)
_PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")  # of all paths of a server that shares an address
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Response:
    """Status and body of an answer."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Caller:
    """Who calls, for HTTP's Basic scheme (RFC 7617); the secret is in no text of it."""

    name: str
    secret: str = field(repr=False)

    @property
    def authorization(self) -> str:
        """The header's value."""
        return "Basic " + b64encode(f"{self.name}:{self.secret}".encode()).decode()


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


class FailedError(Exception):
    """An attempt failed in a way that another one may not.

    Attributes:
        wait: seconds that the server asks to wait at least.
        moved: whether it brought something all the same, and so is no failure; none have been yet, then.
    """

    def __init__(self, reason: str, wait: float = 0.0, moved: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.moved = moved


class Transport:
    """Requests to one server; the seam that a test or another protocol would replace.

    As a context, it keeps its connection from one request to the next, and closes it in the end; otherwise each request
    has its own.

    Args:
        base_url: ``http://HOST:PORT`` or ``https://HOST:PORT``; a path behind it is put before those of requests.
        timeout: seconds for connecting and for each read.
        retry: what to do when the network or the server fails.
        sleep, jitter, clock: exchanged by tests.
        caller: whom each request names; None is nobody.
        tls: how a server's certificate is verified; by the system's authorities by default.
        insecure: whether what is said may be read on its way to another machine, for want of TLS.

    Raises:
        InputError: the URL is of another form, or of another machine without TLS.
    """

    def __init__(
        self,
        base_url: str,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311
        clock: Callable[[], float] = device_clock,
        caller: Caller | None = None,
        tls: ssl.SSLContext | None = None,
        insecure: bool = False,
    ) -> None:
        self._url = base_url.rstrip("/")
        self._secure, self._host, self._port, self._prefix = _parsed(base_url)
        if not (self._secure or insecure or is_loopback(self._host)):
            raise InputError(
                f"server {base_url!r}: what goes there without TLS can be read on the way, the caller's secret too;"
                " name an https:// server, or say --insecure"
            )
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._sleep = sleep
        self._jitter = jitter
        self._clock = clock
        self._caller = caller
        self._tls = tls
        self._keeps = False
        self._kept: tuple[http.client.HTTPConnection, float] | None = None  # and when it was used last

    def __enter__(self) -> Transport:
        self._keeps = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._keeps = False
        if self._kept is not None:
            self._kept[0].close()
            self._kept = None

    @property
    def server(self) -> str:
        """The server, in one form for all URLs of it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._secure else 'http'}://{host}:{self._port}{self._prefix}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = _MAX_ANSWER,
        patience: float | None = None,
    ) -> Response:
        """Send a request, again if need be; any answer below status 500 but 408 and 429 is returned.

        Args:
            method, path, body, headers: of the request.
            limit: the longest answer in bytes that is read.
            patience: see `retried`.

        Raises:
            NetworkError: no answer, a server error or a longer answer, after all attempts.
            UntrustedError: its certificate does not verify.
        """

        def attempt() -> Response:
            with self.exchange(method, path, body, headers) as answer:
                content = answer.read(limit + 1)
                if len(content) > limit:
                    raise NetworkError(f"{self._url}{path}: the answer is longer than {limit} bytes")
                if answer.length:  # `read` with a length does not tell of a connection that broke
                    raise http.client.IncompleteRead(content, answer.length)
                return Response(answer.status, content)

        return self.retried(path, attempt, patience)

    @contextlib.contextmanager
    def exchange(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request once, and read its answer within the context.

        Raises:
            FailedError: the server failed, or is busy.
            OSError, http.client.HTTPException, ValueError: the network failed.
            UntrustedError: its certificate does not verify.
        """
        named = {} if self._caller is None else {"Authorization": self._caller.authorization}
        connection = self._connection()
        keep = False
        try:
            try:
                connection.request(method, self._prefix + path, body, {**named, **(headers or {})})
            except ssl.SSLCertVerificationError as error:
                raise certificate_error(self._url, error) from None
            with connection.getresponse() as answer:
                if answer.status >= 500 or answer.status in _AGAIN:
                    wait = _window(answer) if answer.status in _BUSY else 0.0
                    raise FailedError(f"the server failed with status {answer.status}", wait)
                yield answer
                keep = self._keeps and answer.isclosed() and not answer.will_close  # closed: read to its end
        finally:
            if keep:
                self._kept = connection, self._clock()
            else:
                connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        """The kept connection, unless the server has ended it or may be about to; else a new one.

        So a request is never lost to a connection that was closed long ago, and none is sent twice because of one.
        """
        if self._kept is not None:
            (connection, used), self._kept = self._kept, None
            fresh = self._clock() - used < _KEPT_SECONDS
            # What comes unasked is the connection's end.
            if fresh and connection.sock is not None and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        self._tls = self._tls or tls_context()
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)

    def retried(self, path: str, attempt: Callable[[], _Result], patience: float | None = None) -> _Result:
        """What `attempt` gives, as soon as it does not fail.

        Between two attempts are the policy's wait, and the server's window where it named one.

        Args:
            path: for messages.
            attempt: asks the server; may raise what `exchange` does.
            patience: seconds for which it is tried again, however often; None is the policy's number of attempts. The
                first attempt is always made.

        Raises:
            NetworkError: all attempts failed.
        """
        began, failures, attempts = self._clock(), 0, 0
        while True:
            attempts += 1
            wait = 0.0
            try:
                return attempt()
            except FailedError as error:
                reason, wait = str(error), error.wait
                failures = 0 if error.moved else failures + 1
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: of a host's name, a header
                reason = no_tls(error) or getattr(error, "strerror", None) or str(error) or type(error).__name__
                failures += 1
            wait = max(self._retry.wait(max(failures, 1), self._jitter()), wait * (1 + 0.2 * abs(self._jitter())))
            spent = failures >= self._retry.attempts
            if patience is not None:
                spent = self._clock() - began + wait > patience
            if spent:
                raise NetworkError(f"{self._url}{path}: {reason} ({attempts} attempts)")
            self._sleep(wait)


def status_error(what: str, status: int, said: str = "") -> PocketfedError:
    """What an answer that gives nothing is told as.

    Args:
        what: was asked for.
        status: of the answer.
        said: what the server says of it.
    """
    if status == 401:
        return TurnedAwayError(
            "the server does not know this device by its secret, or has revoked it: enrol it anew with"
            " 'pocketfed-device enrol' and a code of the fleet's operator"
        )
    text = f"{what}: {said or f'the server answers with status {status}'}"
    return TurnedAwayError(text) if status == 403 else NetworkError(text)


def _parsed(url: str) -> tuple[bool, str, int, str]:
    """Whether with TLS, the host, the port, and what comes before paths; `InputError` for a URL of another form."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    prefix = parts.path.rstrip("/")
    if parts.scheme not in ("http", "https") or not host or parts.query or not _PREFIX.fullmatch(prefix):
        raise InputError(f"server {url!r}: expected a URL such as http://127.0.0.1:8080")
    secure = parts.scheme == "https"
    return secure, host, port if port is not None else 443 if secure else 80, prefix


def _window(answer: http.client.HTTPResponse) -> float:
    """Seconds of ``Retry-After``; 0 without one, or with a date, which would need both sides' clocks to agree."""
    text = (answer.getheader("Retry-After") or "").strip()
    return min(float(text), _LONGEST_WINDOW) if text.isascii() and text.isdecimal() and len(text) < 10 else 0.0
