"""``dir:PATH``: a folder, such as a memory card that is mounted here."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from device_runtime.bundle import open_bundle
from device_runtime.bundle_copy import copy_bundle
from device_runtime.errors import InputError, IntegrityError
from device_runtime.files import flush_folder
from export.flashing.plan import Action, Load, Plan

_SCRATCH = ".flash-"
_ABANDONED_SECONDS = 86_400.0


@dataclass(frozen=True)
class Folder:
    """The bundle becomes ``PATH/NAME-VERSION.bundle``: copied beside it, read back and verified, then renamed."""

    name: str
    path: Path

    def plan(self, load: Load) -> Plan:
        home = self.path / load.name
        description = f"copy {load.bundle.path} to {home}, and verify what the medium holds"
        return Plan(self.name, [Action("copy", description, lambda: self._copy(load, home))])

    def _copy(self, load: Load, home: Path) -> str:
        try:
            if not self.path.is_dir():
                raise InputError(f"{self.path}: no such folder; is the card mounted?")
            held = _identity(home)
            if held == load.bundle.identity:
                return f"{home}: was there already; verified anew"
            if held is not None:
                raise InputError(
                    f"{home}: is another bundle of the same version; remove it, or export with a larger"
                    " --bundle-version"
                )
            self._remove_abandoned()
            scratch = self.path / f"{_SCRATCH}{load.token}"
            try:
                scratch.mkdir()
                copy_bundle(load.bundle, scratch / "fresh")
                with contextlib.suppress(FileNotFoundError):
                    home.rename(scratch / "damaged")
                (scratch / "fresh").rename(home)
                flush_folder(self.path)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            return f"{home}: copied and verified"
        except OSError as error:
            raise InputError(f"{self.path}: can't write there: {error.strerror}; nothing was changed") from None

    def _remove_abandoned(self) -> None:
        """What a flash that was killed has left."""
        for folder in self.path.glob(f"{_SCRATCH}*"):
            if folder.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _identity(home: Path) -> str | None:
    """Of the bundle there; None where there is none, or a damaged one."""
    try:
        return open_bundle(home).identity
    except (InputError, IntegrityError):
        return None
