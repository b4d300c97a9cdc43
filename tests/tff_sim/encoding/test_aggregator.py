"""A round in TensorFlow Federated against devices' encoding and a server's aggregation: the same mean to the bit."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow_federated as tff

from aggregation_server.aggregation.partial_sum import PartialSum
from device_runtime.codec import CODECS, encode, encoded_size, read_update, shaped, values_of
from device_runtime.errors import InputError
from device_runtime.tensors import TensorSpec, Weights
from device_runtime.update import ClientUpdate
from tff_sim.encoding.aggregator import EncodedMeanFactory, build_decoder

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

MODEL_ID = "0" * 32
SPECS = [TensorSpec("kernel", (680, 100)), TensorSpec("bias", (100,)), TensorSpec("last", (3, 5, 2))]
VALUE_TYPE = tff.to_type(
    collections.OrderedDict(delta=[tff.TensorType(np.float32, spec.shape) for spec in SPECS], seed=np.int64)
)
CLIENTS = 19  # more than a server adds in float32


class Client:
    """A client's delta in the protocol's sign, its weight and its seed."""

    def __init__(self, number: int) -> None:
        rng = np.random.default_rng(number)
        self.weight, self.seed = int(rng.integers(1, 1000)), int(rng.integers(0, 2**53))
        size = values_of(SPECS)
        if number % 5 == 2:  # gives ties and zeros
            values = np.full(size, 0.1)
        else:
            spread = 8.0 if number % 5 == 3 else 1.0
            values = rng.choice([-1e-3, 1e-3], size) * np.exp2(spread * rng.standard_normal(size))
        self.delta: Weights = shaped(values.astype(np.float32), SPECS)

    @property
    def value(self) -> Any:
        """As the aggregator takes it."""
        return collections.OrderedDict(delta=[-tensor for tensor in self.delta], seed=np.int64(self.seed))


@pytest.fixture(scope="module")
def clients() -> list[Client]:
    return [Client(number) for number in range(CLIENTS)]


def _on_the_fleet(clients: Sequence[Client], codec: str, round_number: int) -> Weights:
    aggregate = PartialSum(SPECS)
    for client in clients:
        update = ClientUpdate(client.delta, client.weight, round_number, {"loss": 0.5})
        aggregate.add(read_update(encode(update, SPECS, MODEL_ID, codec, client.seed), SPECS, MODEL_ID))
    return aggregate.result()


def _next(process: Any, state: Any, clients: Sequence[Client]) -> Any:
    return process.next(state, [client.value for client in clients], [np.float32(client.weight) for client in clients])


def _bits(tensors: Any) -> list[bytes]:
    return [np.asarray(tensor).tobytes() for tensor in tensors]


@pytest.fixture(scope="module")
def process() -> Callable[[str], Any]:
    """`process(codec)`: of the factory; each is made once."""
    made: dict[str, Any] = {}

    def make(codec: str) -> Any:
        if codec not in made:
            made[codec] = EncodedMeanFactory(codec).create(VALUE_TYPE, tff.TensorType(np.float32))
        return made[codec]

    return make


@pytest.mark.parametrize("codec", CODECS)
def test_the_mean_is_that_of_a_fleet(process: Callable[[str], Any], clients: list[Client], codec: str) -> None:
    """Rounds 1 and 2, the second with three of the clients alone; each has its own rotation."""
    state = process(codec).initialize()
    assert int(state) == 1
    for round_number, cohort in ((1, clients), (2, clients[:3])):
        output = _next(process(codec), state, cohort)
        state = output.state
        want = _on_the_fleet(cohort, codec, round_number)
        assert _bits([-tensor for tensor in output.result]) == _bits(want)
        assert {name: int(value) for name, value in output.measurements.items()} == {
            "clients": len(cohort),
            "examples": sum(client.weight for client in cohort),
            "non_finite": 0,
            "upload_bytes": len(cohort) * encoded_size(SPECS, codec, ["loss"]),
        }
    assert int(state) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**120])
def test_what_a_device_would_refuse_counts_for_nothing(
    process: Callable[[str], Any], clients: list[Client], value: float
) -> None:
    broken, absent = Client(100), Client(101)
    broken.delta[1][7] = value
    absent.weight = 0
    cohort = [clients[0], broken, clients[1], absent]
    output = _next(process("q4"), process("q4").initialize(), cohort)
    assert _bits([-tensor for tensor in output.result]) == _bits(_on_the_fleet(clients[:2], "q4", 1))
    assert int(output.measurements["clients"]) == 2
    assert int(output.measurements["non_finite"]) == 1
    assert int(output.measurements["examples"]) == clients[0].weight + clients[1].weight


def test_the_mean_of_nothing_is_no_number(process: Callable[[str], Any], clients: list[Client]) -> None:
    broken = Client(100)
    broken.delta[0][0, 0] = np.nan
    output = _next(process("q4"), process("q4").initialize(), [broken])
    assert all(np.isnan(tensor).all() for tensor in output.result)
    assert int(output.measurements["clients"]) == 0
    again = _next(process("q4"), output.state, clients[:2])
    assert _bits([-tensor for tensor in again.result]) == _bits(_on_the_fleet(clients[:2], "q4", 2))


@pytest.mark.parametrize("codec", ["f16", "q8", "q1"])
def test_a_decoded_value_is_what_a_server_decodes(clients: list[Client], codec: str) -> None:
    decode = build_decoder(codec, VALUE_TYPE)
    update = ClientUpdate(clients[0].delta, 1, 7, {})
    data = encode(update, SPECS, MODEL_ID, codec, clients[0].seed)
    want = read_update(data, SPECS, MODEL_ID).values()
    got = np.concatenate([-np.asarray(tensor).reshape(-1) for tensor in decode(clients[0].value, 7)])
    np.testing.assert_array_equal(got, want)
    broken = Client(100)
    broken.delta[1][7] = np.inf
    assert all(np.isnan(tensor).all() for tensor in decode(broken.value, 7))


@pytest.mark.parametrize(
    "value_type",
    [
        np.float32,
        [np.float32],
        collections.OrderedDict(delta=[np.float32]),
        collections.OrderedDict(delta=[np.float32], seed=np.int32),
        collections.OrderedDict(delta=np.float32, seed=np.int64),
        collections.OrderedDict(delta=[np.float64], seed=np.int64),
        collections.OrderedDict(delta=collections.OrderedDict(a=np.float32), seed=np.int64),
    ],
)
def test_values_of_another_type_are_refused(value_type: Any) -> None:
    with pytest.raises(TypeError) as caught:
        EncodedMeanFactory("q8").create(tff.to_type(value_type), tff.TensorType(np.float32))
    wanted = "expected values of the type <delta=<float32[...],...>,seed=int64>, not "
    assert str(caught.value) == wanted + str(tff.to_type(value_type))


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(InputError) as caught:
        EncodedMeanFactory("q3")
    assert str(caught.value) == "unknown codec 'q3'; known codecs: f32, f16, q8, q4, q2, q1"
