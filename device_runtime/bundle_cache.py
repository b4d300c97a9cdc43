"""Bundles that were downloaded, kept by identity: verified before use, installed by rename."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle import (
    MANIFEST,
    MANIFEST_HASH,
    MANIFEST_SIGNATURE,
    Bundle,
    Manifest,
    manifest_hash_file,
    open_bundle,
)
from device_runtime.errors import InputError, IntegrityError
from device_runtime.files import Lock, file_sha256, flush_folder, unwritable
from device_runtime.messages import bundle_path
from device_runtime.server_client import ServerClient

if TYPE_CHECKING:  # cryptography is loaded only where keys are trusted
    from device_runtime.signature import TrustedKeys

_MANIFEST_LIMIT = 1 << 20
_SIGNATURE_LIMIT = 1 << 12
_SCRATCH = ".download-"
_ABANDONED_SECONDS = 86_400.0  # a download that was killed so long ago is not another process's
_KEPT = 4  # bundles, for the devices of several populations may share a folder
_IDENTITY = re.compile("[0-9a-f]{64}")  # what else lies in the folder is not the cache's


class BundleCache:
    """Bundles in a folder of this device; when one was downloaded, all but the last few that were used are removed.

    Args:
        folder: made when the first bundle comes.
        trusted: a bundle must be signed with one of these keys, here as on its way; None takes any.
    """

    def __init__(self, folder: Path, trusted: TrustedKeys | None = None) -> None:
        self._folder = folder
        self._trusted = trusted

    @property
    def trusted(self) -> TrustedKeys | None:
        """Whose bundles are used; None for anybody's."""
        return self._trusted

    def get(self, identity: str, server: ServerClient) -> Bundle:
        """The bundle with this identity, from the folder or else from the server.

        Raises:
            NetworkError: the server can't be reached or lacks it.
            IntegrityError: what it sent is not the bundle with this identity, or nobody who is trusted signed it.
            InputError: the folder can't be written.
        """
        if not identity.isalnum():
            raise IntegrityError(f"bundle identity {identity!r}: expected hexadecimal digits")
        held = self._held(identity)
        if held is not None:
            self._mark_used(identity)
            return held
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            with self._scratch(identity) as scratch:
                self._install(identity, server, scratch)
            bundle = open_bundle(self._folder / identity, self._trusted)
            self._mark_used(identity)
            self._remove_unused(identity)
            return bundle
        except OSError as error:
            raise unwritable(self._folder, error) from None

    @contextlib.contextmanager
    def _scratch(self, identity: str) -> Iterator[Path]:
        """A folder to download into: the one where an earlier download broke off, unless another process is at it."""
        lock = Lock(self._folder / f"{_SCRATCH}{identity}.lock")
        if not lock.acquire():
            with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=self._folder, ignore_cleanup_errors=True) as name:
                yield Path(name)
            return
        try:
            folder = self._folder / f"{_SCRATCH}{identity}"
            folder.mkdir(exist_ok=True)
            try:
                yield folder
            except IntegrityError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)  # but not after another error: the next try goes on there
        finally:
            lock.release()

    def _held(self, identity: str) -> Bundle | None:
        """The bundle, if the folder has it whole; what is damaged, half removed or not signed is fetched again."""
        try:
            bundle = open_bundle(self._folder / identity, self._trusted)
        except (InputError, IntegrityError):
            return None
        return bundle if bundle.identity == identity else None

    def _install(self, identity: str, server: ServerClient, scratch: Path) -> None:
        fresh = scratch / "fresh"
        fresh.mkdir(exist_ok=True)
        _download(identity, server, fresh, self._trusted)
        open_bundle(fresh, self._trusted)
        if self._held(identity) is not None:  # another process of this device was faster
            return
        home = self._folder / identity
        with contextlib.suppress(FileNotFoundError):
            home.rename(scratch / "damaged")
        fresh.rename(home)
        flush_folder(self._folder)

    def _mark_used(self, identity: str) -> None:
        with contextlib.suppress(OSError):  # a folder of another user, which can be read
            os.utime(self._folder / identity)

    def _remove_unused(self, identity: str) -> None:
        """Remove all bundles but this one and the last that were used; what can't be removed stays."""
        used: list[tuple[float, Path]] = []
        for path in self._folder.iterdir():
            if _IDENTITY.fullmatch(path.name) and path.name != identity:
                with contextlib.suppress(OSError):  # another process was faster
                    used.append((path.stat().st_mtime, path))
        for _, path in sorted(used, reverse=True)[_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)

    def _remove_abandoned(self) -> None:
        for path in self._folder.glob(f"{_SCRATCH}*"):
            if path.is_dir() and path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _download(identity: str, server: ServerClient, folder: Path, trusted: TrustedKeys | None) -> None:
    """Have a bundle's files in the folder; those that are there already are kept if their hash says so."""
    data = server.download(bundle_path(identity, MANIFEST), identity, _MANIFEST_LIMIT)
    # The signature comes along in any case: keys that are trusted later find it in the folder.
    where = bundle_path(identity, MANIFEST_SIGNATURE)
    signature = server.download_optional(where, _SIGNATURE_LIMIT)
    if trusted is not None:
        trusted.verify(data, signature, where)
    (folder / MANIFEST_SIGNATURE).unlink(missing_ok=True)
    if signature is not None:
        (folder / MANIFEST_SIGNATURE).write_bytes(signature)
    (folder / MANIFEST).write_bytes(data)
    (folder / MANIFEST_HASH).write_bytes(manifest_hash_file(data))
    for name, entry in Manifest.load(data).files.items():
        if file_sha256(folder / name) != entry.sha256:
            server.fetch(bundle_path(identity, name), entry.sha256, entry.size, folder / name)
