"""How new weights reach the devices: whole, as float16, or as an encoded difference to the version before.

Whatever is lost on the way is lost for all: the server commits the very weights that a device decodes, so that devices
with a difference, devices that fetch the whole file and the server itself have the same bits. The loss is unbiased,
like that of a report, and the next round starts from it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from aggregation_server.aggregation.server_optimizer import FED_AVG, ServerOptimizer
from aggregation_server.aggregation.state import ServerState
from device_runtime import codec
from device_runtime.errors import InputError
from device_runtime.tensors import FloatArray, TensorSpec, Weights, sha256
from device_runtime.update import ClientUpdate
from device_runtime.work import client_seed

DOWNLINKS = ("f32", "f16", "q8", "q4", "q2", "q1")
_WHOLE = "f16"  # encodes all weights; the other codecs encode what has changed
_REMEMBERED = 16  # versions whose encoded form is kept
_NOBODY = ""  # no client's name: the server's own random numbers


@dataclass(frozen=True)
class EncodedWeights:
    """A version's weights in fewer bytes.

    Attributes:
        base: the version that the values are to be added to; empty where they are the weights themselves.
        data: an encoded update.
    """

    base: str
    data: bytes

    @cached_property
    def identity(self) -> str:
        """SHA-256 of `data`."""
        return sha256(self.data)


@dataclass(frozen=True)
class Route:
    """How a device comes from what it holds to a version: from `base`, adding the values of each of `encoded`.

    They are named by the SHA-256 of their bytes. An empty base is a vector of zeros. Without any, the whole file is to
    be fetched.
    """

    base: str = ""
    encoded: tuple[str, ...] = ()


class Downlink:
    """Encodes the versions of one model, and remembers the latest.

    Args:
        specs: the model's tensors.
        model_id: the manifest's.
        name: one of `DOWNLINKS`; ``f32`` sends whole files only.
        seed: the task's; fixes the codec's random numbers.
    """

    def __init__(self, specs: Sequence[TensorSpec], model_id: str, name: str, seed: int) -> None:
        require_downlink(name)
        self._specs = specs
        self._model_id = model_id
        self._codec = name
        self._seed = seed
        self._encoded: OrderedDict[str, EncodedWeights] = OrderedDict()

    def next(
        self, state: ServerState, mean_delta: Weights, optimizer: ServerOptimizer = FED_AVG
    ) -> tuple[ServerState, EncodedWeights | None]:
        """The next state, and the encoded form that gives its weights, bit for bit.

        What is encoded as a difference is the optimiser's step; its moments are of the exact deltas.

        Raises:
            IntegrityError: a new weight or moment is not finite, or too large to be encoded.
        """
        step, moments = state.step(mean_delta, self._specs, optimizer)
        if self._codec == "f32":
            return state.moved(step, moments, self._specs), None
        number = state.round_number + 1
        if self._codec == _WHOLE:
            exact = state.moved(step, moments, self._specs)
            data = self._encode(exact.weights, number)
            weights = codec.shaped(self._values(data), self._specs)
            return ServerState.of(number, weights, self._specs, moments), EncodedWeights("", data)
        data = self._encode(step, number)
        difference = codec.shaped(self._values(data), self._specs)
        return state.moved(difference, moments, self._specs), EncodedWeights(state.identity, data)

    def remember(self, identity: str, encoded: EncodedWeights | None) -> None:
        """Keep the encoded form of a version that was committed."""
        if encoded is not None:
            self._encoded[identity] = encoded
            while len(self._encoded) > _REMEMBERED:
                self._encoded.popitem(last=False)

    def encoded(self, identity: str) -> bytes | None:
        """Encoded weights by the SHA-256 of their bytes; None where they are not there any more."""
        known = list(self._encoded.values())  # the committer may add another one meanwhile
        return next((one.data for one in known if one.identity == identity), None)

    def route(self, holds: str, wanted: str, whole_size: int) -> Route:
        """The way to a version with the fewest bytes.

        Args:
            holds: the version that the device has; empty for none.
            wanted: the version that it is to have.
            whole_size: bytes of the whole file.
        """
        found: list[str] = []
        size, version = 0, wanted
        while version != holds:
            encoded = self._encoded.get(version)
            if encoded is None or (size := size + len(encoded.data)) >= whole_size:
                return Route()
            found.insert(0, encoded.identity)
            version = encoded.base
            if not version:
                break
        return Route(version, tuple(found)) if found else Route()

    def _encode(self, values: Weights, round_number: int) -> bytes:
        update = ClientUpdate(values, 0, round_number)
        seed = client_seed(self._seed, round_number, _NOBODY)
        return codec.encode(update, self._specs, self._model_id, self._codec, seed)

    def _values(self, data: bytes) -> FloatArray:
        return codec.read_update(data, self._specs, self._model_id).values()


def require_downlink(name: str) -> None:
    """Raise `InputError` where `name` is not one of `DOWNLINKS`."""
    if name not in DOWNLINKS:
        raise InputError(f"unknown form {name!r} of the weights for devices; known: {', '.join(DOWNLINKS)}")
