"""Bundles that were downloaded, kept by identity: verified before use, installed by rename."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from device_runtime.bundle import MANIFEST, MANIFEST_HASH, Bundle, Manifest, manifest_hash_file, open_bundle
from device_runtime.errors import InputError, IntegrityError
from device_runtime.messages import bundle_path
from device_runtime.server_client import ServerClient

_MANIFEST_LIMIT = 1 << 20


class BundleCache:
    """Bundles in a folder of this device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, identity: str, server: ServerClient) -> Bundle:
        """The bundle with this identity, from the folder or else from the server.

        Raises:
            NetworkError: the server can't be reached or lacks it.
            IntegrityError: what it sent is not the bundle with this identity.
            InputError: the folder can't be written.
        """
        if not identity.isalnum():
            raise IntegrityError(f"bundle identity {identity!r}: expected hexadecimal digits")
        home = self._folder / identity
        if home.is_dir():
            try:
                return open_bundle(home)
            except IntegrityError:  # damaged on this device: fetch it again
                shutil.rmtree(home)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=self._folder))
        except OSError as error:
            raise InputError(f"{self._folder}: can't write there: {error.strerror}; change --cache") from None
        try:
            _download(identity, server, scratch)
            open_bundle(scratch)
            with contextlib.suppress(OSError):  # another process of this device was faster; opened below
                scratch.rename(home)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return open_bundle(home)


def _download(identity: str, server: ServerClient, folder: Path) -> None:
    data = server.download(bundle_path(identity, MANIFEST), identity, _MANIFEST_LIMIT)
    (folder / MANIFEST).write_bytes(data)
    (folder / MANIFEST_HASH).write_bytes(manifest_hash_file(data))
    for name, entry in Manifest.load(data).files.items():
        (folder / name).write_bytes(server.download(bundle_path(identity, name), entry.sha256, entry.size))
