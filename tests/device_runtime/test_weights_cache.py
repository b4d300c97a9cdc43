"""The weights that a round starts from: kept, taken from the bundle, decoded, or fetched whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from aggregation_server.aggregation.downlink import Downlink
from aggregation_server.aggregation.state import ServerState
from device_runtime.bundle import WEIGHTS, Bundle
from device_runtime.errors import IntegrityError, NetworkError
from device_runtime.messages import Configuration, encoded_weights_path, weights_path
from device_runtime.server_client import ServerClient
from device_runtime.tensors import sha256
from device_runtime.weights_cache import WeightsCache
from tests.device_runtime.file_server import FileServer, serve_files


class Versions:
    """A server's versions of the weights after 0, 1, … rounds, whole and encoded."""

    def __init__(self, bundle: Bundle, codec: str) -> None:
        manifest = bundle.manifest
        self.downlink = Downlink(manifest.tensors, manifest.model_id, codec, 0)
        self.states = [ServerState.load(0, bundle.file(WEIGHTS).read_bytes(), manifest.tensors)]
        rng = np.random.default_rng(0)
        self.content: dict[str, bytes] = {}
        for _ in range(3):
            delta = tuple(0.01 * rng.standard_normal(w.shape).astype(np.float32) for w in self.states[-1].weights)
            state, encoded = self.downlink.next(self.states[-1], delta)
            self.downlink.remember(state.identity, encoded)
            self.states.append(state)
        for state in self.states:
            self.content[weights_path(state.identity)] = state.data
        for before, state in pairwise(self.states):
            for identity in self.downlink.route(before.identity, state.identity, len(state.data)).encoded:
                self.content[encoded_weights_path(identity)] = self.downlink.encoded(identity) or b""

    def configuration(self, number: int, holds: str | None) -> Configuration:
        wanted = self.states[number]
        route = self.downlink.route(holds or "", wanted.identity, len(wanted.data))
        return Configuration("start", weights=wanted.identity, base=route.base, encoded=list(route.encoded))


@pytest.fixture
def serve(digits_bundle: Bundle) -> Iterator[Callable[[str], tuple[Versions, FileServer]]]:
    stack = []

    def start(codec: str) -> tuple[Versions, FileServer]:
        versions = Versions(digits_bundle, codec)
        context = serve_files(versions.content.get)
        stack.append(context)
        return versions, context.__enter__()

    yield start
    for context in stack:
        context.__exit__(None, None, None)


Serve = Callable[[str], tuple[Versions, FileServer]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_first_weights_are_the_bundle_s_own(serve: Serve, digits_bundle: Bundle, tmp_path: Path) -> None:
    versions, server = serve("f32")
    cache = WeightsCache(tmp_path)
    assert cache.held is None
    path = cache.get(versions.configuration(0, None), digits_bundle, ServerClient(server.transport()))
    assert path.read_bytes() == versions.states[0].data
    assert not server.asked
    assert cache.held == versions.states[0].identity


def test_whole_weights_are_kept_until_others_come(serve: Serve, digits_bundle: Bundle, tmp_path: Path) -> None:
    versions, server = serve("f32")
    cache, client = WeightsCache(tmp_path), ServerClient(server.transport())
    first, second = versions.configuration(1, None), versions.configuration(2, None)
    path = cache.get(first, digits_bundle, client)
    assert (path.read_bytes(), cache.held) == (versions.states[1].data, first.weights)
    server.asked.clear()
    assert (cache.get(first, digits_bundle, client), server.asked) == (path, [])
    path.write_bytes(b"damaged")
    assert cache.get(first, digits_bundle, client).read_bytes() == versions.states[1].data
    with pytest.raises(NetworkError):
        cache.get(replace(first, weights="0" * 64), digits_bundle, client)
    assert cache.held == first.weights
    assert cache.get(second, digits_bundle, client).read_bytes() == versions.states[2].data
    assert names(tmp_path) == [f"{second.weights}.safetensors"]
    with pytest.raises(IntegrityError, match=r"^weights '../up': expected hexadecimal digits$"):
        cache.get(replace(first, weights="../up"), digits_bundle, client)


@pytest.mark.parametrize("codec", ["f16", "q8", "q4", "q2", "q1"])
def test_encoded_weights_are_decoded_and_nothing_else_is_fetched(
    serve: Serve, digits_bundle: Bundle, tmp_path: Path, codec: str
) -> None:
    versions, server = serve(codec)
    cache, client = WeightsCache(tmp_path), ServerClient(server.transport())
    for number in (0, 1, 3):  # from one version to the next, and over one
        configuration = versions.configuration(number, cache.held)
        path = cache.get(configuration, digits_bundle, client)
        assert path.read_bytes() == versions.states[number].data
    assert all(path.startswith("/v1/encoded-weights/") for path in server.asked)
    assert len(server.asked) == (2 if codec == "f16" else 3)


@pytest.mark.parametrize("how", ["missing", "damaged", "of another base", "of another version", "of no name"])
def test_where_encoded_weights_can_t_be_used_the_whole_file_comes(
    serve: Serve, digits_bundle: Bundle, tmp_path: Path, how: str
) -> None:
    versions, server = serve("q8")
    told: list[str] = []
    cache = WeightsCache(tmp_path, lambda event, **fields: told.append(f"{event}: {fields['reason']}"))
    client = ServerClient(server.transport())
    cache.get(versions.configuration(0, None), digits_bundle, client)
    configuration = versions.configuration(1, cache.held)
    (identity,) = configuration.encoded
    path = encoded_weights_path(identity)
    if how == "missing":
        del versions.content[path]
    elif how == "damaged":
        versions.content[path] = versions.content[path][:-1] + b"?"
    elif how == "of another base":
        configuration = replace(configuration, base=sha256(b"another"))
    elif how == "of another version":
        other = versions.configuration(2, versions.states[1].identity)
        configuration = replace(configuration, encoded=other.encoded)
    else:
        configuration = replace(configuration, encoded=["../up"])
    whole = cache.get(configuration, digits_bundle, client)
    assert whole.read_bytes() == versions.states[1].data
    assert server.asked[-1] == weights_path(configuration.weights)
    assert names(tmp_path) == [whole.name]
    expected = {
        "missing": f"{path}: the server answers with status 404",
        "damaged": f"{path}: what the server sent does not have the SHA-256 {identity}",
        "of another version": "encoded weights: what comes out does not have the SHA-256 " + configuration.weights,
        "of no name": "encoded weights '../up': expected hexadecimal digits",
    }
    assert told == ([f"whole_weights: {expected[how]}"] if how in expected else [])


def test_encoded_weights_that_broke_off_are_gone_on_with(serve: Serve, digits_bundle: Bundle, tmp_path: Path) -> None:
    versions, server = serve("q8")
    cache, client = WeightsCache(tmp_path), ServerClient(server.transport())
    cache.get(versions.configuration(0, None), digits_bundle, client)
    configuration = versions.configuration(1, cache.held)
    (identity,) = configuration.encoded
    content = versions.content[encoded_weights_path(identity)]
    (tmp_path / f"{identity}.encoded.part").write_bytes(content[:1000])
    assert cache.get(configuration, digits_bundle, client).read_bytes() == versions.states[1].data
    assert server.ranges[-1] == "bytes=1000-"


def test_weights_that_are_others(serve: Serve, digits_bundle: Bundle, tmp_path: Path) -> None:
    versions, server = serve("f32")
    configuration = versions.configuration(1, None)
    path = weights_path(configuration.weights)
    versions.content[path] = versions.content[path][:-1] + b"?"
    with pytest.raises(IntegrityError, match=f"^{path}: what the server sent does not have the SHA-256 "):
        WeightsCache(tmp_path).get(configuration, digits_bundle, ServerClient(server.transport()))
