"""A server program that only one socket leads to: it runs in a network namespace of its own.

Run as a script: ``python -I -S enclosure.py SOCKET PORT PROGRAM ARGUMENT…``, where SOCKET is the descriptor of a
listening socket that the script inherits, and PORT where the program listens. TFF's worker listens on all addresses
whatever it is told, without authentication. In a namespace of its own, "all addresses" is a loopback that nobody else
sees; a socket belongs to the namespace in which it was made, so the inherited one still accepts what comes from
outside, and what it accepts is passed on to the program.

Writes one line to standard output: ``enclosed``, or why the system permits no namespace; the program then runs
without. Ends as the program ends, and the program ends with it. Standard library only, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 20
ENCLOSED = "enclosed"
_POLL_SECONDS = 0.02

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> int:
    """Run it; the exit code, where the program was not ended by a signal."""
    descriptor, port, *command = arguments
    parent = os.getppid()
    listener = socket.socket(fileno=int(descriptor))
    problem = _trial()
    if problem is None:
        _enclose()
    # Only now: a change of namespaces can undo it.
    _die_with_parent()
    if os.getppid() != parent:
        return 1  # it died before
    sys.stdout.write(f"{problem or ENCLOSED}\n")
    sys.stdout.flush()
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    threading.Thread(target=_serve, args=(listener, int(port), program), daemon=True).start()
    code = program.wait()
    if code < 0:  # end by the same signal, so that whoever waits for this process learns it
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _trial() -> str | None:
    """Why this process can't be enclosed; None if it can. There is no way back, so a child tries first."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            _enclose()
        except OSError as error:
            os.write(writer, (error.strerror or "no reason given").encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:  # noqa: PTH123  a descriptor
        problem = stream.read().decode()
    os.wait()
    return problem or None


def _enclose() -> None:
    """Move this process into a new network namespace with a loopback."""
    # Root may do it; others where they may have a user namespace, which some systems give without any rights.
    if _libc.unshare(_CLONE_NEWNET) and _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack("16xh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _serve(listener: socket.socket, port: int, program: subprocess.Popen[bytes]) -> None:
    # What comes before the program listens waits in the socket's queue.
    while program.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(_POLL_SECONDS)
    while True:
        outer, _ = listener.accept()
        try:
            inner = socket.create_connection(("127.0.0.1", port))
        except OSError:
            outer.close()
            continue
        for connection in (outer, inner):
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink in ((outer, inner), (inner, outer)):
            threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            sink.sendall(buffer[:count])
    for connection in (source, sink):
        with contextlib.suppress(OSError):  # the other direction was here before
            connection.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
