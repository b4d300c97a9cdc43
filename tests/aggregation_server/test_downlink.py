"""Weights on their way to devices: the same bits for all, and the fewest bytes for each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from aggregation_server.aggregation.downlink import DOWNLINKS, Downlink, EncodedWeights, Route
from aggregation_server.aggregation.server_optimizer import ServerOptimizer
from aggregation_server.aggregation.state import ServerState
from device_runtime.encoded_weights import decoded_weights
from device_runtime.errors import InputError, IntegrityError
from device_runtime.tensors import TensorSpec, Weights, sha256
from device_runtime.weights import load_weights
from tests.aggregation_server.fleet import Fleet

SPECS = (TensorSpec("kernel", (300, 30)), TensorSpec("bias", (30,)))
MODEL = "ab" * 16
WHOLE = 4 * 9030
ENCODED = tuple(name for name in DOWNLINKS if name != "f32")


def random_weights(rng: np.random.Generator, scale: float) -> Weights:
    return tuple(rng.normal(scale=scale, size=spec.shape).astype(np.float32) for spec in SPECS)  # type: ignore[arg-type]


def trained(downlink: Downlink, rounds: int) -> tuple[list[ServerState], list[Weights]]:
    """The states of some rounds, and the mean deltas between them."""
    rng = np.random.default_rng(0)
    states, deltas = [ServerState.of(0, random_weights(rng, 0.1), SPECS)], []
    for _ in range(rounds):
        deltas.append(random_weights(rng, 0.01))
        state, encoded = downlink.next(states[-1], deltas[-1])
        downlink.remember(state.identity, encoded)
        states.append(state)
    return states, deltas


def arrive(downlink: Downlink, route: Route, base: ServerState, wanted: ServerState) -> bytes:
    """What a device makes of a route."""
    encoded = [downlink.encoded(identity) for identity in route.encoded]
    assert None not in encoded
    held = load_weights(base.data, SPECS, "held") if route.base else None
    return decoded_weights(held, [data for data in encoded if data], SPECS, MODEL, wanted.identity)


@pytest.mark.parametrize("name", ENCODED)
def test_a_device_decodes_the_very_weights_that_are_committed(name: str) -> None:
    downlink = Downlink(SPECS, MODEL, name, 5)
    states, _ = trained(downlink, 6)
    size = {"f16": 0.51, "q8": 0.256, "q4": 0.132, "q2": 0.069, "q1": 0.038}[name]
    found = 0
    for held in range(6):
        for wanted in range(held + 1, 7):
            route = downlink.route(states[held].identity, states[wanted].identity, WHOLE)
            if not route.encoded:
                continue
            found += 1
            assert arrive(downlink, route, states[held], states[wanted]) == states[wanted].data
            steps = 1 if name == "f16" else wanted - held
            assert len(route.encoded) == steps
            assert sum(len(downlink.encoded(identity) or b"") for identity in route.encoded) <= steps * size * WHOLE
    assert found == (21 if name != "q8" else 6 + 5 + 4), "four differences of q8 are more than the whole file"


@pytest.mark.parametrize("name", ENCODED)
def test_what_is_lost_on_the_way_is_little_and_unbiased(name: str) -> None:
    errors = []
    for seed in range(200):
        downlink = Downlink(SPECS, MODEL, name, seed)
        (before, after), (delta,) = trained(downlink, 1)
        exact = before.after(delta, SPECS)
        errors.append(np.concatenate([(g - w).reshape(-1) for g, w in zip(after.weights, exact.weights, strict=True)]))
    sums = np.sum(errors, axis=1, dtype=np.float64)
    assert abs(sums.mean()) < 4 * sums.std(ddof=1) / np.sqrt(len(sums))
    relative = np.linalg.norm(errors[0]) / np.linalg.norm(np.concatenate([d.reshape(-1) for d in delta]))
    assert relative < {"f16": 0.02, "q8": 0.01, "q4": 0.1, "q2": 0.4, "q1": 0.85}[name]


@pytest.mark.parametrize("name", DOWNLINKS)
@pytest.mark.parametrize(
    "optimizer", [ServerOptimizer("momentum", 0.5), ServerOptimizer("fedyogi")], ids=lambda o: o.name
)
def test_with_a_server_optimiser_its_step_is_what_is_encoded(name: str, optimizer: ServerOptimizer) -> None:
    """Devices decode what is committed, and the moments are those of whole files."""
    rng = np.random.default_rng(0)
    downlink = Downlink(SPECS, MODEL, name, 5)
    state = exact = ServerState.of(0, random_weights(rng, 0.1), SPECS)
    for number in range(4):
        delta = random_weights(rng, 0.01)
        before = state
        state, encoded = downlink.next(before, delta, optimizer)
        exact = exact.after(delta, SPECS, optimizer)
        for got, want in zip(state.moments, exact.moments, strict=True):
            np.testing.assert_array_equal(got, want)
        assert state.round_number == number + 1
        if encoded is not None:
            held = before.weights if encoded.base else None
            assert decoded_weights(held, [encoded.data], SPECS, MODEL, state.identity) == state.data
    assert len(state.moments) == len(optimizer.slots(SPECS))
    moved = np.linalg.norm(exact.weights[0] - state.weights[0]) / np.linalg.norm(exact.weights[0])
    assert moved < {"f32": 1e-9, "f16": 1e-3, "q8": 1e-2, "q4": 3e-2, "q2": 0.2, "q1": 0.4}[name]


def test_whole_files_only() -> None:
    downlink = Downlink(SPECS, MODEL, "f32", 0)
    states, deltas = trained(downlink, 2)
    assert states[1].data == states[0].after(deltas[0], SPECS).data
    assert downlink.route(states[0].identity, states[1].identity, WHOLE) == Route()
    assert downlink.encoded("") is None


def test_a_device_that_holds_nothing_or_something_unknown_fetches_the_whole_file() -> None:
    downlink = Downlink(SPECS, MODEL, "q4", 0)
    states, _ = trained(downlink, 3)
    wanted = states[3].identity
    for holds in ("", "0" * 64):
        assert downlink.route(holds, wanted, WHOLE) == Route()
    assert downlink.route(wanted, wanted, WHOLE) == Route(), "nothing is to be done"
    assert Downlink(SPECS, MODEL, "f16", 0).route("", wanted, WHOLE) == Route(), "of a server that was started anew"
    assert downlink.route(wanted, states[2].identity, WHOLE) == Route(), "there is no way back"


def test_float16_needs_no_version_before() -> None:
    downlink = Downlink(SPECS, MODEL, "f16", 0)
    states, _ = trained(downlink, 2)
    routes = {downlink.route(holds, states[2].identity, WHOLE) for holds in ("", states[0].identity, "0" * 64)}
    (route,) = routes
    assert route.base == "" and len(route.encoded) == 1


def test_old_versions_are_forgotten() -> None:
    downlink = Downlink(SPECS, MODEL, "q1", 0)
    states, _ = trained(downlink, 20)
    assert downlink.route(states[3].identity, states[5].identity, WHOLE) == Route()
    assert downlink.route(states[4].identity, states[5].identity, WHOLE).encoded


def test_another_version_may_come_while_one_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    downlink = Downlink(SPECS, MODEL, "q8", 5)
    states, _ = trained(downlink, 3)
    (wanted,) = downlink.route(states[2].identity, states[3].identity, WHOLE).encoded

    def hashed(data: bytes) -> str:  # takes its time, in which the committer's thread goes on
        downlink.remember("new", EncodedWeights("", b"new"))
        return sha256(data)

    monkeypatch.setattr("aggregation_server.aggregation.downlink.sha256", hashed)
    for one in downlink._encoded.values():
        vars(one).pop("identity", None)
    assert sha256(downlink.encoded(wanted) or b"") == wanted


def test_changed_bytes_never_become_weights() -> None:
    downlink = Downlink(SPECS, MODEL, "q8", 0)
    (before, after), _ = trained(downlink, 1)
    (identity,) = downlink.route(before.identity, after.identity, WHOLE).encoded
    data = downlink.encoded(identity)
    assert data is not None and sha256(data) == identity
    with pytest.raises(IntegrityError, match="the checksum does not match"):
        decoded_weights(before.weights, [data[:-1] + b"\0"], SPECS, MODEL, after.identity)
    with pytest.raises(IntegrityError, match=r"^encoded weights: what comes out does not have the SHA-256 0{64}$"):
        decoded_weights(before.weights, [data], SPECS, MODEL, "0" * 64)
    with pytest.raises(IntegrityError, match=r"^encoded weights: what comes out does not have the SHA-256"):
        decoded_weights(after.weights, [data], SPECS, MODEL, after.identity)
    with pytest.raises(IntegrityError, match=r"^encoded weights: expected at least one version$"):
        decoded_weights(None, [], SPECS, MODEL, after.identity)


def test_an_unknown_form_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"^unknown form 'zip' of the weights for devices; known: f32, f16, q8, q4"):
        Downlink(SPECS, MODEL, "zip", 0)


def test_a_new_weight_that_no_codec_holds_abandons_the_round(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(goal_count=1, over_selection=1, downlink="q8")
    fleet.run_round("a", value=2.0**61)
    (record,) = fleet.history()
    assert (record.outcome, record.reason) == ("abandoned", "non_finite")


@pytest.mark.parametrize("restarted", [False, True])
def test_the_coordinator_tells_a_device_the_way(make_fleet: Callable[..., Fleet], restarted: bool) -> None:
    fields = {"goal_count": 1, "over_selection": 1, "downlink": "q1"}
    fleet = make_fleet(**fields)
    for _ in range(2):
        fleet.run_round("a", value=0.5)
    if restarted:
        fleet.close()
        fleet = make_fleet(**fields)
    fleet.join("b")
    first, second = (record.weights for record in fleet.history())
    configuration = fleet.configuration("b", first)
    assert (configuration.base, configuration.weights) == (first, second)
    (identity,) = configuration.encoded
    data = fleet.coordinator.encoded_weights(identity)
    assert data is not None and sha256(data) == identity
    assert second not in (first, identity)
    assert fleet.configuration("b").encoded == []
    assert fleet.configuration("b", second).encoded == [], "nothing is to be done"
    assert fleet.coordinator.encoded_weights("nothing") is None
