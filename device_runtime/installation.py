"""The bundle that is installed on this device: switched by one rename, with the last good one to go back to.

An installation is a folder::

    current  -> state/current       what to run; a constant link
    previous -> state/previous      what ``rollback`` goes back to
    state    -> states/7            the one link that changes: a switch is its replacement by rename
    states/7/state.json             what is installed, and the newest version that ever was, of each model
    states/7/current  -> ../../bundles/7
    states/7/previous -> ../../bundles/5
    bundles/                        verified copies
    installation.lock               held by whoever changes anything

A state and the bundles that it names are on the medium before ``state`` leads to it, and never change after. So a loss
of power leaves the old state or the new one. What the state does not name is rubbish; the next change removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle import Bundle, Manifest, open_bundle
from device_runtime.bundle_copy import copy_bundle, write_file
from device_runtime.errors import CheckFailedError, InputError, IntegrityError
from device_runtime.files import flush_folder
from device_runtime.installation_state import Release, Slot, State, dump_state, parse_state, refuse_downgrade

if TYPE_CHECKING:  # neither cryptography nor the interpreter is loaded before it is needed
    from device_runtime.selftest import SelfTestResult
    from device_runtime.signature import TrustedKeys

CURRENT = "current"
PREVIOUS = "previous"
_LOCK = "installation.lock"
_STATE = "state"
_FRESH = ".state"
_STATES = "states"
_BUNDLES = "bundles"
_RECORD = "state.json"
_WAY_BACK = "it is installed, and the previous one is the way out: --rollback"
_OURS = (CURRENT, PREVIOUS, _STATE, _FRESH, _STATES, _BUNDLES)


@dataclass(frozen=True)
class Change:
    """What `Installation.install` or `rollback` did: ``installed``, ``unchanged`` or ``rolled back``."""

    action: str
    state: State
    selftest: SelfTestResult


class Installation:
    """An installation in a folder, which is made when the first bundle is installed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self) -> State:
        """What is installed; an empty state where nothing is.

        Raises:
            InputError: this user may not know.
        """
        for _ in range(10):  # whoever switches meanwhile removes the state that was just looked up
            try:
                folder = self.root / (self.root / _STATE).readlink()
                return parse_state((folder / _RECORD).read_bytes())
            except PermissionError as error:  # not as if nothing were installed, which would let older bundles in
                raise InputError(f"{self.root}: can't read what is installed there: {error.strerror}") from None
            except (OSError, ValueError):
                continue
        return self._recovered()

    def path(self, slot: Slot) -> Path:
        """Where a bundle that is installed is."""
        return self.root / _BUNDLES / slot.folder

    def bundle(self, slot: Slot | None, trusted: TrustedKeys | None = None) -> Bundle | None:
        """The bundle in a slot; None where there is none, or what there is does not hold any more."""
        if slot is None:
            return None
        try:
            bundle = open_bundle(self.path(slot), trusted)
        except (InputError, IntegrityError):
            return None
        return bundle if bundle.identity == slot.release.identity else None

    def refuse_older(self, manifest: Manifest) -> None:
        """For what a server offers: it may not be older than what is installed of the same model.

        After a rollback that is what was gone back to; of a model that another one has replaced, the newest there was.

        Raises:
            IntegrityError: it is.
        """
        state = self.read()
        held = state.newest.get(manifest.name)
        if state.current is not None and state.current.release.name == manifest.name:
            held = state.current.release
        if held is not None and manifest.version < held.version:
            raise IntegrityError(
                f"the server's bundle is {manifest.name} version {manifest.version}, older than {held}, which is"
                f" installed in {self.root}; serve that or a newer one, or go back here with --rollback"
            )

    def install(self, source: Path, trusted: TrustedKeys | None = None, threads: int = 1) -> Change:
        """Verify a bundle, copy it, self-test the copy on this device, and switch to it.

        Args:
            source: the bundle, or the folder that holds exactly one.
            trusted: it must be signed with one of these keys; None takes any.
            threads: of the self-test's interpreter.

        Raises:
            InputError: there is no bundle, the folder can't be written, or another install is at work.
            IntegrityError: the bundle does not hold, nobody who is trusted signed it, or it is a downgrade.
            CheckFailedError: the self-test failed. As with every error, what was installed stays.
        """
        bundle = open_bundle(source, trusted)
        with self._changing() as state:
            release = Release.of(bundle)
            running = self.bundle(state.current, trusted)
            if running is not None and running.identity == bundle.identity:
                return Change("unchanged", state, _self_tested(running, threads, _WAY_BACK))
            refuse_downgrade(release, state.newest.get(release.name))
            folder = str(self._next_number())
            copy = copy_bundle(bundle, self.root / _BUNDLES / folder, trusted)
            result = _self_tested(copy, threads, _stays(state))
            fresh = State(
                Slot(release, folder),
                # What does not hold any more is nothing to go back to.
                state.previous if running is None else state.current,
                {**state.newest, release.name: release},
            )
            self._switch(fresh)
            return Change("installed", fresh, result)

    def rollback(self, trusted: TrustedKeys | None = None, threads: int = 1) -> Change:
        """Go back to the previous bundle; what was current becomes the previous one.

        Raises:
            InputError: there is none, the folder can't be written, or an install is at work.
            IntegrityError: it does not hold any more, or nobody who is trusted signed it.
            CheckFailedError: its self-test failed.
        """
        if self.read().previous is None:
            raise InputError(f"{self.root}: no previous bundle to go back to")
        with self._changing() as state:
            if state.previous is None:
                raise InputError(f"{self.root}: no previous bundle to go back to")
            bundle = open_bundle(self.path(state.previous), trusted)
            result = _self_tested(bundle, threads, _stays(state))
            fresh = State(state.previous, state.current, state.newest)
            self._switch(fresh)
            return Change("rolled back", fresh, result)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[State]:
        """Hold the lock, without rubbish before and after; what goes wrong with files is an `InputError`."""
        try:
            with self._locked():
                state = self.read()
                self._clean(state)
                try:
                    yield state
                finally:
                    with contextlib.suppress(OSError):  # the next change removes it
                        self._clean(self.read())
        except OSError as error:
            raise InputError(
                f"{self.root}: can't install there: {error.strerror}; what was installed stays; make room or name"
                " another folder with --root"
            ) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            import fcntl  # Windows has none
        except ImportError:
            raise InputError("installing needs a POSIX system, such as Linux") from None
        if not self.root.is_dir():
            self.root.mkdir(parents=True, exist_ok=True)  # another process may be faster
            flush_folder(self.root.parent)
        if not (self.root / _LOCK).exists():
            # Without a lock, which is made first, they are somebody else's, and not to be cleaned away.
            for name in _OURS:
                if os.path.lexists(self.root / name) and not (self.root / _LOCK).exists():
                    raise InputError(
                        f"{self.root}: holds {name!r}, and is not an installation; name another folder with --root"
                    )
            with contextlib.suppress(FileExistsError):
                write_file(self.root / _LOCK, b"")
            flush_folder(self.root)
        with (self.root / _LOCK).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.root}: another install is at work there; try again when it is done") from None
            yield

    def _switch(self, state: State) -> None:
        """Write a state beside the one that stands, and have ``state`` lead to it."""
        number = str(self._next_number())
        folder = self.root / _STATES / number
        folder.mkdir()
        write_file(folder / _RECORD, dump_state(state))
        for name, slot in ((CURRENT, state.current), (PREVIOUS, state.previous)):
            if slot is not None:
                (folder / name).symlink_to(Path("..", "..", _BUNDLES, slot.folder))
            if not (self.root / name).is_symlink():
                (self.root / name).symlink_to(Path(_STATE, name))
        (self.root / _FRESH).symlink_to(Path(_STATES, number))
        for made in (folder, self.root / _STATES, self.root / _BUNDLES, self.root):
            flush_folder(made)
        (self.root / _FRESH).replace(self.root / _STATE)
        flush_folder(self.root)

    def _next_number(self) -> int:
        """One more than all the bundles and states have: each name stands for one content for ever."""
        used = [child.name for part in (_BUNDLES, _STATES) for child in (self.root / part).iterdir()]
        return 1 + max((int(name) for name in used if name.isdecimal()), default=0)

    def _clean(self, state: State) -> None:
        """Remove what the state does not name."""
        bundles = {slot.folder for slot in (state.current, state.previous) if slot is not None}
        states = {(self.root / _STATE).readlink().name} if (self.root / _STATE).is_symlink() else set()
        for part, kept in ((_BUNDLES, bundles), (_STATES, states)):
            (self.root / part).mkdir(exist_ok=True)
            for child in (self.root / part).iterdir():
                if child.name not in kept:
                    _remove(child)
        (self.root / _FRESH).unlink(missing_ok=True)

    def _recovered(self) -> State:
        """The state as far as the bundles that its links name tell it, where the record is lost."""
        slots: list[Slot | None] = []
        for name in (CURRENT, PREVIOUS):
            try:
                bundle = open_bundle(self.root / name)
                slots.append(Slot(Release.of(bundle), bundle.path.name))
            except (InputError, IntegrityError):
                slots.append(None)
        releases = [slot.release for slot in slots if slot is not None]
        return State(slots[0], slots[1], {one.name: one for one in sorted(releases, key=lambda one: one.version)})


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _self_tested(bundle: Bundle, threads: int, otherwise: str) -> SelfTestResult:
    from device_runtime.interpreter import runtime_version
    from device_runtime.selftest import TOLERANCE, self_test

    result = self_test(bundle, threads)
    if not result.ok:
        raise CheckFailedError(
            f"{Release.of(bundle)}: self-test FAILED on {runtime_version()}: largest relative difference"
            f" {result.max_rel:.1e} ({result.tensor}), tolerance {TOLERANCE:.0e}; {otherwise}"
        )
    return result


def _stays(state: State) -> str:
    return "nothing is installed" if state.current is None else f"{state.current.release} stays"
