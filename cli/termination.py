"""How SIGTERM and Ctrl-C end a command: by an exception, so that whatever is underway cleans up behind it.

It is raised wherever the program happens to be. Python drops it in a finalizer, and compiled code may turn it into an
error of its own. So `raise_if_asked` is called after each step of long work (`cli.progress`), and an error that comes
after a signal is taken for its consequence.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class TerminatedError(BaseException):
    """SIGTERM came: like a KeyboardInterrupt, no error that anybody could mend."""


_ONE_ASKING = 5.0  # seconds: `timeout` sends it to the process and then to its group, and cleaning up takes a while
_asked: type[BaseException] | None = None  # signals are the whole process's
_terminated = -math.inf  # when SIGTERM came last


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let both signals end the `with` block.

    Raises:
        TerminatedError: SIGTERM came, which `timeout`, systemd and Kubernetes send.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may say what a signal does
        yield
        return
    global _asked, _terminated
    _terminated = -math.inf
    handlers = {signal.SIGTERM: _terminate, signal.SIGINT: _interrupt}
    # What is ignored stays so: shells start a script's background programs without Ctrl-C.
    heard = [number for number in handlers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handlers[number]) for number in heard}
    try:
        yield
    except Exception as error:
        if _asked is not None:
            raise _asked from error
        raise
    finally:
        _asked = None
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_asked() -> None:
    """Raise what a signal raised before, in vain."""
    if _asked is not None:
        raise _asked


def _terminate(number: int, frame: FrameType | None) -> None:
    global _terminated
    now = time.monotonic()
    if now - _terminated >= _ONE_ASKING:
        _terminated = now
        _end_by(TerminatedError)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _end_by(KeyboardInterrupt)


def _end_by(error: type[BaseException]) -> NoReturn:
    global _asked
    _asked = error
    raise error
