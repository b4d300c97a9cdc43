"""Error feedback: what an update's encoding lost is added to the device's next update.

For devices that come back often, and few bits: the loss of one round is made up for in the next (Seide et al. 2014;
Karimireddy et al. 2019). It needs a memory of the size of the weights on the device, and makes a single update biased,
so it is off unless it is asked for (``--error-feedback``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from device_runtime.bundle import Manifest
from device_runtime.codec import decode
from device_runtime.errors import IntegrityError
from device_runtime.files import flush_folder, unwritable
from device_runtime.sealed import open_sealed, remove, seal
from device_runtime.tensors import FloatArray, Weights
from device_runtime.weights import dump_weights, load_weights


class ErrorFeedback:
    """The losses of one device, in a folder.

    Args:
        folder: of the device's state.
    """

    def __init__(self, folder: Path) -> None:
        self._kept = folder / "loss"
        self._pending = folder / "loss.pending"

    def corrected(self, deltas: Iterator[FloatArray], manifest: Manifest) -> Weights:
        """The deltas plus what was lost before; that of another model, or a damaged one, counts for nothing."""
        lost = self._lost(manifest)
        if lost is None:
            return tuple(deltas)
        return tuple(delta + loss for delta, loss in zip(deltas, lost, strict=True))

    def encoded(self, corrected: Weights, update: bytes, manifest: Manifest) -> None:
        """Remember what this encoded update lost; it counts once `settle` says that the server has taken it.

        Raises:
            InputError: it can't be written.
        """
        sent = decode(update, manifest.tensors, manifest.model_id).delta
        lost = tuple(wanted - got for wanted, got in zip(corrected, sent, strict=True))
        seal(self._pending, {"model_id": manifest.model_id}, [dump_weights(lost, manifest.tensors)])

    def settle(self, accepted: bool) -> None:
        """The update was taken, and what it lost is for the next; or it was not, and what was lost before still is.

        Asked again, it has nothing to do.

        Raises:
            InputError: the folder can't be written.
        """
        try:
            if accepted and self._pending.exists():
                self._pending.replace(self._kept)
                flush_folder(self._kept.parent)
        except OSError as error:
            raise unwritable(self._kept, error) from None
        remove(self._pending)

    def _lost(self, manifest: Manifest) -> Weights | None:
        sealed = open_sealed(self._kept)
        if sealed is None:
            return None
        with sealed:
            if sealed.header.get("model_id") != manifest.model_id:
                return None
            try:
                return load_weights(sealed.read(sealed.size), manifest.tensors, str(self._kept))
            except IntegrityError:
                return None
