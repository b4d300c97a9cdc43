"""The manifests hold to the schema of every Kubernetes since 1.27, and to each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cli.main import app
from tff_sim.workers.addresses import parse_addresses

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
NEWEST = int(kubernetes_validate.latest_version().split(".")[1])


def _documents(path: Path) -> Iterator[Any]:
    yield from yaml.safe_load_all(path.read_text())


def _one(kind: str) -> Any:
    (found,) = [document for path in FILES for document in _documents(path) if document["kind"] == kind]
    return found


def _container(kind: str) -> Any:
    (container,) = _one(kind)["spec"]["template"]["spec"]["containers"]
    return container


def _parsed(kind: str) -> dict[str, Any]:
    """A container's arguments as the command line reads them."""
    name, *arguments = _container(kind)["args"]
    return dict(app.commands[name].make_context(name, list(arguments)).params)


@pytest.mark.parametrize("minor", range(27, NEWEST + 1))
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_manifests_hold_to_the_schema(path: Path, minor: int) -> None:
    documents = list(_documents(path))
    assert len(documents) == 3
    for document in documents:
        kubernetes_validate.validate(document, f"1.{minor}", strict=True)


def test_the_schema_refuses_what_is_misspelt() -> None:
    wrong = copy.deepcopy(_one("StatefulSet"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, f"1.{NEWEST}", strict=True)


def test_the_simulation_names_every_worker() -> None:
    workers, service = _one("StatefulSet"), _one("Service")
    name, port = workers["metadata"]["name"], _parsed("StatefulSet")["port"]
    assert workers["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["ports"][0]["port"] == port
    assert _container("StatefulSet")["ports"][0]["containerPort"] == port
    assert [(address.host, address.port) for address in parse_addresses(_parsed("Job")["workers"])] == [
        (f"{name}-{number}.{service['metadata']['name']}", port) for number in range(workers["spec"]["replicas"])
    ]


def test_only_simulations_reach_workers() -> None:
    policies = {
        document["metadata"]["name"]: document["spec"]
        for path in FILES
        for document in _documents(path)
        if document["kind"] == "NetworkPolicy"
    }
    worker, simulation = policies["pocketfed-worker"], policies["pocketfed-simulation"]
    assert worker["podSelector"]["matchLabels"] == _one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert simulation["podSelector"]["matchLabels"] == _one("Job")["spec"]["template"]["metadata"]["labels"]
    (rule,) = worker["ingress"]
    assert rule["from"] == [{"podSelector": simulation["podSelector"]}]
    assert [port["port"] for port in rule["ports"]] == [_parsed("StatefulSet")["port"]]
    assert simulation["ingress"] == []
