"""The weights that a device holds, as a file: those of its last round, by content hash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from device_runtime.bundle import WEIGHTS, Bundle
from device_runtime.encoded_weights import decoded_weights
from device_runtime.errors import IntegrityError, NetworkError
from device_runtime.files import file_sha256, pieces_of, unwritable, write_whole
from device_runtime.messages import Configuration, encoded_weights_path, weights_path
from device_runtime.server_client import ServerClient
from device_runtime.weights import load_weights

_SUFFIX = ".safetensors"
_ENCODED = ".encoded"
_HEADER_ROOM = 1 << 16  # what a weights file may have beyond the tensors' bytes


class WeightsCache:
    """Weights in a folder of this device, one version at a time.

    Args:
        folder: made when the first weights come.
        notice: told where encoded weights could not be used.
    """

    def __init__(self, folder: Path, notice: Callable[..., None] = lambda event, **fields: None) -> None:
        self._folder = folder
        self._notice = notice

    @property
    def held(self) -> str | None:
        """Content hash of the weights that are here, as far as the name tells; None where there are none."""
        names = sorted(path.stem for path in self._folder.glob(f"*{_SUFFIX}"))
        return names[0] if names else None

    def get(self, configuration: Configuration, bundle: Bundle, server: ServerClient) -> Path:
        """The file of the weights that a round starts from.

        The one that is here; or the bundle's own; or made from encoded weights, where the server says how; or else
        whole from the server. It stays until other weights have come.

        Raises:
            NetworkError: the server can't be reached or lacks them.
            IntegrityError: it sent others.
            InputError: the folder can't be written.
        """
        identity = configuration.weights
        path = self._folder / _named("weights", identity, _SUFFIX)
        limit = 4 * bundle.manifest.parameters + _HEADER_ROOM
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if file_sha256(path) != identity:
                encoded = [f"{name}{_ENCODED}" for name in configuration.encoded]
                parts = [f"{name}.part" for name in (path.name, *encoded)]
                self._remove_all_but(*parts, *encoded, self.held and f"{self.held}{_SUFFIX}")
                if bundle.manifest.files[WEIGHTS].sha256 == identity:
                    write_whole(path, pieces_of(bundle.file(WEIGHTS)))
                elif not self._decode(configuration, bundle, server, limit, path):
                    server.fetch(weights_path(identity), identity, limit, path)
            self._remove_all_but(path.name)
        except OSError as error:
            raise unwritable(path, error) from None
        return path

    def _decode(
        self, configuration: Configuration, bundle: Bundle, server: ServerClient, limit: int, path: Path
    ) -> bool:
        """Make the file from encoded weights; whether that went well."""
        manifest, base = bundle.manifest, configuration.base
        if not configuration.encoded or base not in ("", self.held):
            return False
        try:
            encoded = [self._fetched(identity, server, limit) for identity in configuration.encoded]
            before = self._folder / f"{base}{_SUFFIX}"
            weights = load_weights(before.read_bytes(), manifest.tensors, str(before)) if base else None
            content = decoded_weights(weights, encoded, manifest.tensors, manifest.model_id, configuration.weights)
        except (IntegrityError, NetworkError) as error:
            self._notice("whole_weights", reason=str(error))
            return False
        write_whole(path, [content])
        return True

    def _fetched(self, identity: str, server: ServerClient, limit: int) -> bytes:
        """Encoded weights, from here or else from the server."""
        path = self._folder / _named("encoded weights", identity, _ENCODED)
        if file_sha256(path) != identity:
            server.fetch(encoded_weights_path(identity), identity, limit, path)
        return path.read_bytes()

    def _remove_all_but(self, *kept: str | None) -> None:
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink()


def _named(what: str, identity: str, suffix: str) -> str:
    """The file's name; what the server names must not lead out of the folder."""
    if not identity.isalnum():
        raise IntegrityError(f"{what} {identity!r}: expected hexadecimal digits")
    return f"{identity}{suffix}"
