"""What is installed, as it is written down, and which release may follow: pure, without any files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from device_runtime.bundle import Bundle
from device_runtime.errors import IntegrityError


@dataclass(frozen=True)
class Release:
    """A model's version, and the identity of the bundle that had it."""

    name: str
    version: int
    identity: str

    @classmethod
    def of(cls, bundle: Bundle) -> Release:
        return cls(bundle.manifest.name, bundle.manifest.version, bundle.identity)

    def __str__(self) -> str:
        return f"{self.name} version {self.version} ({self.identity[:16]}…)"


@dataclass(frozen=True)
class Slot:
    """A release, and the folder in ``bundles/`` that holds it."""

    release: Release
    folder: str


@dataclass(frozen=True)
class State:
    """What is installed.

    Attributes:
        current, previous: what runs, and what ``rollback`` goes back to; None where there is none.
        newest: of each model that was ever installed, by name, the newest release; a rollback leaves it as it is.
    """

    current: Slot | None = None
    previous: Slot | None = None
    newest: Mapping[str, Release] = field(default_factory=dict)


def refuse_downgrade(release: Release, newest: Release | None) -> None:
    """A release may be installed when it is newer than all of its model that ever were, or is the newest of them.

    Compared is not what runs: after a rollback from version 3 to 2, another version 3 is refused as it was before.

    Raises:
        IntegrityError: it is an older release, or another one of the same version.
    """
    if newest is None or release.version > newest.version or release == newest:
        return
    kind = "older than" if release.version < newest.version else "another bundle of the same version as"
    raise IntegrityError(
        f"{release}: {kind} {newest}, the newest that was installed here; downgrades are refused:"
        " export with a larger --bundle-version, or go back with --rollback"
    )


def dump_state(state: State) -> bytes:
    """JSON, for `parse_state`."""

    def release(value: Release) -> dict[str, Any]:
        return {"version": value.version, "identity": value.identity}

    def slot(value: Slot | None) -> dict[str, Any] | None:
        if value is None:
            return None
        return {"name": value.release.name, **release(value.release), "folder": value.folder}

    newest = {name: release(value) for name, value in state.newest.items()}
    return json.dumps({"current": slot(state.current), "previous": slot(state.previous), "newest": newest}).encode()


def parse_state(data: bytes) -> State:
    """What `dump_state` wrote; ValueError for anything else."""

    def release(name: str, value: dict[str, Any]) -> Release:
        return Release(str(name), int(value["version"]), str(value["identity"]))

    def slot(value: dict[str, Any] | None) -> Slot | None:
        if value is None:
            return None
        folder = str(value["folder"])
        if not folder.isdecimal():
            raise ValueError(folder)
        return Slot(release(value["name"], value), folder)

    try:
        value = json.loads(data)
        newest = {name: release(name, one) for name, one in value["newest"].items()}
        return State(slot(value["current"]), slot(value["previous"]), newest)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
