"""``ssh://USER@HOST:PORT/PATH``: a board with OpenSSH's or another server, by OpenSSH's own client.

PATH is the installation folder there (``--root`` of ``pocketfed-device install``). The bundle is copied beside the
installation, its hashes are compared there, and then ``pocketfed-device install`` verifies, self-tests and switches.
The board needs a POSIX shell, ``tar`` and ``sha256sum``, which BusyBox has, and the device's wheel.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from device_runtime.errors import CheckFailedError, InputError, IntegrityError, NetworkError, PocketfedError
from export.flashing.plan import Command, Finished, Load, Plan, check_hashes

_NO_PROGRAM = 127
_SSH_FAILED = 255
_ERRORS = {error.exit_code: error for error in (CheckFailedError, InputError, NetworkError, IntegrityError)}
_NO_ROOM = ("No space left on device", "Disk quota exceeded", "Wrote only")  # the last one is GNU tar's
# Nothing is ever asked for, and a connection that is dead ends the command.
_SETTINGS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4")


@dataclass(frozen=True)
class Host:
    """A host.

    Attributes:
        name: the target as it was given.
        destination: ``USER@HOST`` or ``HOST``.
        port: None for the client's own choice.
        root: the installation folder there.
        program: ``pocketfed-device`` there, or its path.
        config: of the client; None for the user's own.
    """

    name: str
    destination: str
    port: int | None
    root: str
    program: str = "pocketfed-device"
    config: Path | None = None

    def plan(self, load: Load) -> Plan:
        staging = f"{self.root.rstrip('/')}/.flash-{load.token}"
        bundle, root, here = f"{staging}/{load.name}", shlex.quote(self.root), shlex.quote(staging)
        files = {f"{load.name}/{name}": load.bundle.file(name) for name in load.bundle.files}
        keys = {f"trusted-{number}.pub": path for number, path in enumerate(load.keys)}
        install = [self.program, "install", bundle, "--root", self.root, "--json"]
        for key in keys:
            install += ["--trusted-key", f"{staging}/{key}"]
        prepare = (
            f"command -v {shlex.quote(self.program)} >/dev/null || exit {_NO_PROGRAM}; mkdir -p {root} || exit;"
            f" find {root} -maxdepth 1 -name .flash-\\* -mtime +0 -exec rm -rf {{}} +;"
            f" umask 077; mkdir {here} {shlex.quote(bundle)}"
        )
        unpack = f"tar -x -m -f - -C {here}"
        hashes = f"cd {shlex.quote(bundle)} && sha256sum -- {shlex.join(load.hashes)}"
        return Plan(
            self.name,
            [
                Command("prepare", self._there(prepare), self._not_prepared),
                Command("copy", self._there(unpack), self._not_copied, sends=files | keys),
                Command("verify", self._there(hashes), self._not_copied, check_hashes(load, self.name)),
                Command("install", self._there(shlex.join(install)), self._not_installed, self._installed),
            ],
            Command("clean", self._there(f"rm -rf {here}"), self._not_copied),
        )

    def _there(self, script: str) -> tuple[str, ...]:
        """The client's arguments for a script that the host's ``sh`` runs, whatever the user's own shell is."""
        config = () if self.config is None else ("-F", str(self.config))
        port = () if self.port is None else ("-p", str(self.port))
        settings = (word for setting in _SETTINGS for word in ("-o", setting))
        return ("ssh", "-T", *config, *settings, *port, "--", self.destination, f"sh -c {shlex.quote(script)}")

    def _not_prepared(self, finished: Finished) -> PocketfedError:
        if finished.code == _NO_PROGRAM:
            return InputError(
                f"{self.name}: no {self.program} there: install the device's wheel, or say where it is with"
                " --device-command"
            )
        return self._not_copied(finished)

    def _not_copied(self, finished: Finished) -> PocketfedError:
        if finished.code == _SSH_FAILED:
            return self._no_connection(finished)
        for line in finished.errors.splitlines():
            if any(text in line for text in _NO_ROOM):
                return InputError(f"{self.name}: no room there: {line}; what was installed stays")
        return InputError(f"{self.name}: can't write there: {finished.last_error}; what was installed stays")

    def _not_installed(self, finished: Finished) -> PocketfedError:
        if finished.code == _SSH_FAILED:
            return self._no_connection(finished)
        message = finished.last_error.removeprefix("pocketfed-device: ")
        return _ERRORS.get(finished.code, CheckFailedError)(f"{self.name}: {message}")

    def _no_connection(self, finished: Finished) -> NetworkError:
        reason = finished.last_error
        if "Permission denied (" in finished.errors:
            return NetworkError(
                f"{self.name}: authentication failed: {reason}; put this user's public key into authorized_keys there:"
                " passwords are not asked for"
            )
        if "Host key verification failed" in finished.errors:
            return NetworkError(
                f"{self.name}: the host's key is not known here, or is another one than before; connect once with"
                " ssh, and compare it"
            )
        return NetworkError(f"{self.name}: can't be reached: {reason}")

    def _installed(self, finished: Finished) -> str:
        try:
            report = json.loads(finished.output.splitlines()[-1])
            current, selftest = report["current"], report["selftest"]
            return (
                f"{current['name']} version {current['version']} {report['action']}; self-test passed on"
                f" {selftest['runtime']}, largest relative difference {selftest['max_rel']:.1e}"
            )
        except (IndexError, KeyError, TypeError, ValueError):
            raise IntegrityError(
                f"{self.name}: {self.program} there gave no report; install this version of the device's wheel there"
            ) from None
