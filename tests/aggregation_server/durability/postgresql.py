"""A PostgreSQL server of the tests' own, with its own data, that nobody else can reach."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

_USER = "pocketfed"
_STARTS_WITHIN = 60.0


class Cluster:
    """A server on a socket in a folder.

    Args:
        programs: folder of `initdb` and `postgres`.
        folder: for its data and its socket.
        identity: arguments of `subprocess` for the user that it runs as: it refuses to be root.
    """

    def __init__(self, programs: Path, folder: Path, identity: dict[str, Any]) -> None:
        self._programs = programs
        self._folder = folder
        self._identity = identity
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        options = ["--no-sync", "-U", _USER, "--auth=trust", "--encoding=UTF8", "--locale=C"]
        self._run([str(programs / "initdb"), "-D", str(folder / "data"), *options])

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self._folder / ".s.PGSQL.5432"

    def start(self) -> None:
        """Start it, and return when it answers."""
        # What survives a loss of power is PostgreSQL's own business; here its processes end, and the system lives on.
        settings = ["fsync=off", f"unix_socket_directories={self._folder}", "listen_addresses=", "max_connections=60"]
        command = [str(self._programs / "postgres"), "-D", str(self._folder / "data")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_tied(), *command, *(part for setting in settings for part in ("-c", setting))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._identity,
            )
        until = time.monotonic() + _STARTS_WITHIN
        while True:
            try:
                psycopg.connect(self._conninfo("postgres")).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None and time.monotonic() < until, (self._folder / "log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, as a crash would: whoever is connected is cut off."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def new_database(self) -> str:
        """The URL of an empty database."""
        self._databases += 1
        name = f"fleet{self._databases}"
        url = f"postgresql://{_USER}@/{name}?host={self._folder}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return url

    def session(self, url: str) -> psycopg.Connection[Any]:
        """A connection to one of the databases, each of whose statements is a transaction; a context that closes it."""
        return psycopg.connect(self._conninfo(urlsplit(url).path.strip("/")), autocommit=True)

    def _conninfo(self, database: str) -> str:
        return psycopg.conninfo.make_conninfo(host=str(self._folder), user=_USER, dbname=database)

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, check=False, cwd=self._folder, **self._identity)
        assert done.returncode == 0, done.stderr.decode()


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A server within the context; the test is skipped where PostgreSQL is not installed."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (Debian's package: postgresql)")
    identity: dict[str, Any] = {}
    if os.getuid() == 0:
        user = _other_user()
        if user is None:
            pytest.skip("PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody'")
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    # Not below pytest's folder: the path of a socket is short, and its user may not go in there.
    folder = Path(tempfile.mkdtemp(prefix="pocketfed-pg-"))
    if identity:
        os.chown(folder, identity["user"], identity["group"])
    try:
        cluster = Cluster(programs, folder, identity)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    found = shutil.which("postgres")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _tied() -> list[str]:
    """What makes a program end with this process. Our own (`tff_sim.child_process`) need not be readable for others."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _other_user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None
