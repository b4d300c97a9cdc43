"""The weights that a device holds, as a file: those of its last round, by content hash."""

from __future__ import annotations

from pathlib import Path

from device_runtime.errors import IntegrityError
from device_runtime.files import file_sha256, unwritable
from device_runtime.messages import weights_path
from device_runtime.server_client import ServerClient

_SUFFIX = ".safetensors"


class WeightsCache:
    """Weights in a folder of this device, one version at a time.

    Args:
        folder: made when the first weights come.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def held(self) -> str | None:
        """Content hash of the weights that are here, as far as the name tells; None where there are none."""
        names = sorted(path.stem for path in self._folder.glob(f"*{_SUFFIX}"))
        return names[0] if names else None

    def get(self, identity: str, server: ServerClient, limit: int) -> Path:
        """The file of the weights with this content hash: the one that is here, or else from the server.

        It stays until other weights have come.

        Args:
            identity: SHA-256, hexadecimal.
            server: has them.
            limit: the most bytes that they may have.

        Raises:
            NetworkError: the server can't be reached or lacks them.
            IntegrityError: it sent others.
            InputError: the folder can't be written.
        """
        if not identity.isalnum():
            raise IntegrityError(f"weights {identity!r}: expected hexadecimal digits")
        path = self._folder / f"{identity}{_SUFFIX}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if file_sha256(path) != identity:
                self._remove_all_but(f"{path.name}.part", self.held and f"{self.held}{_SUFFIX}")
                server.fetch(weights_path(identity), identity, limit, path)
            self._remove_all_but(path.name)
        except OSError as error:
            raise unwritable(path, error) from None
        return path

    def _remove_all_but(self, *kept: str | None) -> None:
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink()
