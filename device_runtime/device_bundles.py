"""The bundles that a device trains: what is installed, or else what the server offers, unless it is older."""

from __future__ import annotations

from device_runtime.bundle import Bundle
from device_runtime.bundle_cache import BundleCache
from device_runtime.installation import Installation
from device_runtime.server_client import ServerClient


class DeviceBundles:
    """Bundles by identity.

    Args:
        cache: of those that were downloaded; its trusted keys hold for what is installed too.
        installation: what is installed is not downloaded, and no older bundle of the same model is taken.
    """

    def __init__(self, cache: BundleCache, installation: Installation) -> None:
        self._cache = cache
        self._installation = installation

    def get(self, identity: str, server: ServerClient) -> Bundle:
        """The bundle with this identity, verified.

        Raises:
            NetworkError: the server can't be reached or lacks it.
            IntegrityError: what it sent is not the bundle with this identity, nobody who is trusted signed it, or it
                is older than what is installed.
            InputError: the cache can't be written.
        """
        bundle = self._installed(identity) or self._cache.get(identity, server)
        self._installation.refuse_older(bundle.manifest)
        return bundle

    def _installed(self, identity: str) -> Bundle | None:
        current = self._installation.read().current
        if current is None or current.release.identity != identity:
            return None
        return self._installation.bundle(current, self._cache.trusted)
