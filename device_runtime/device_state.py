"""The state folder of a device: what it remembers of a round, so that a kill at any instant loses nothing.

| file | |
| --- | --- |
| ``lock`` | held by the process that uses the folder |
| ``progress`` | how far the local training has come (`device_runtime.progress`) |
| ``update`` | an encoded update that the server has not answered yet |
| ``given-up`` | the token of a round that this device gave up |
| ``weights/`` | those that the round starts from (`device_runtime.weights_cache`) |
| ``loss``, ``loss.pending`` | what encodings lost (`device_runtime.feedback`) |

All but the lock are written whole or not at all, and hold a checksum; one that does not hold counts as missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from device_runtime.deadline import Clocks, Deadline
from device_runtime.errors import InputError
from device_runtime.files import Lock, unwritable
from device_runtime.sealed import open_sealed, remove, seal


@dataclass(frozen=True)
class SpooledUpdate:
    """An encoded update on its way.

    Attributes:
        round_number, token: of the round.
        deadline: after it, the server does not take it any more.
        loss: of the training.
        data: the encoded update.
    """

    round_number: int
    token: str
    deadline: Deadline
    loss: float
    data: bytes


class DeviceState:
    """The folder, of one device for one population; a context that lets go of its lock.

    Raises:
        InputError: it can't be written, or another process uses it.
    """

    def __init__(self, folder: Path, clocks: Clocks | None = None) -> None:
        self.folder = folder
        self._clocks = clocks or Clocks()
        self._lock = Lock(folder / "lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._lock.acquire() and Lock.available:
                raise InputError(f"{folder}: another process of this device uses it; end that, or change --state")
        except OSError as error:
            raise unwritable(folder, error) from None

    def __enter__(self) -> DeviceState:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    @property
    def progress(self) -> Path:
        return self.folder / "progress"

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    @property
    def update(self) -> SpooledUpdate | None:
        """The update that waits for its answer."""
        sealed = open_sealed(self._update)
        if sealed is None:
            return None
        with sealed:
            header = sealed.header
            try:
                return SpooledUpdate(
                    int(header["round"]),
                    str(header["token"]),
                    Deadline.from_json(header["deadline"], self._clocks),
                    float.fromhex(header["loss"]),
                    sealed.read(sealed.size),
                )
            except (KeyError, TypeError, ValueError):
                return None

    def spool(self, update: SpooledUpdate) -> None:
        """Keep an update until `settle`.

        Raises:
            InputError: it can't be written.
        """
        header = {
            "round": update.round_number,
            "token": update.token,
            "deadline": update.deadline.to_json(),
            "loss": update.loss.hex(),
        }
        seal(self._update, header, [update.data])

    def settle(self, token: str | None = None) -> None:
        """Forget the round: it was reported, or is over, or, with its `token`, this device has given it up."""
        if token is not None:
            seal(self._given_up, {"token": token})
        remove(self.progress)
        remove(self._update)

    def has_given_up(self, token: str) -> bool:
        """Whether this round was given up here."""
        sealed = open_sealed(self._given_up)
        if sealed is None:
            return False
        with sealed:
            return bool(sealed.header.get("token") == token)

    @property
    def _update(self) -> Path:
        return self.folder / "update"

    @property
    def _given_up(self) -> Path:
        return self.folder / "given-up"
