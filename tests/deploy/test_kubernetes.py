"""The manifests hold to the schema of every Kubernetes since 1.27, and to each other."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from sqlalchemy import make_url

from aggregation_server.access.tokens import Role, read_key
from aggregation_server.web.monitoring import HEALTHY, READY
from cli.main import app
from device_runtime.errors import InputError
from tff_sim.workers.addresses import parse_addresses

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
NEWEST = int(kubernetes_validate.latest_version().split(".")[1])


def _documents(path: Path) -> Iterator[Any]:
    yield from yaml.safe_load_all(path.read_text())


def _one(kind: str, name: str | None = None) -> Any:
    (found,) = [
        document
        for path in FILES
        for document in _documents(path)
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
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
    assert len(documents) == {"server": 5, "simulation": 3, "workers": 3}[path.stem]
    for document in documents:
        kubernetes_validate.validate(document, f"1.{minor}", strict=True)


def test_the_schema_refuses_what_is_misspelt() -> None:
    wrong = copy.deepcopy(_one("StatefulSet"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, f"1.{NEWEST}", strict=True)


def test_the_simulation_names_every_worker() -> None:
    workers, service = _one("StatefulSet"), _one("Service", "pocketfed-worker")
    name, port = workers["metadata"]["name"], _parsed("StatefulSet")["port"]
    assert workers["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["ports"][0]["port"] == port
    assert _container("StatefulSet")["ports"][0]["containerPort"] == port
    assert [(address.host, address.port) for address in parse_addresses(_parsed("Job")["workers"])] == [
        (f"{name}-{number}.{service['metadata']['name']}", port) for number in range(workers["spec"]["replicas"])
    ]


def test_only_simulations_reach_workers() -> None:
    worker, simulation = (_one("NetworkPolicy", f"pocketfed-{name}")["spec"] for name in ("worker", "simulation"))
    assert worker["podSelector"]["matchLabels"] == _one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert simulation["podSelector"]["matchLabels"] == _one("Job")["spec"]["template"]["metadata"]["labels"]
    (rule,) = worker["ingress"]
    assert rule["from"] == [{"podSelector": simulation["podSelector"]}]
    assert [port["port"] for port in rule["ports"]] == [_parsed("StatefulSet")["port"]]
    assert simulation["ingress"] == []


def test_servers_share_a_database_and_a_spool_and_are_reached_through_the_ingress_alone() -> None:
    deployment, service = _one("Deployment"), _one("Service", "pocketfed-server")
    pods, options = deployment["spec"]["template"], _parsed("Deployment")
    assert deployment["spec"]["replicas"] > 1 and deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert make_url(options["db"]).get_backend_name() == "postgresql"
    assert make_url(options["db"]).password is None  # everybody on the machine can read a command
    assert (options["host"], options["insecure"], options["trusted_proxies"]) == ("0.0.0.0", True, ("10.0.0.0/8",))

    container = _container("Deployment")
    claim = _one("PersistentVolumeClaim", "pocketfed-server")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = {volume["name"]: volume for volume in pods["spec"]["volumes"]}
    mounts = {Path(mount["mountPath"]): volumes[mount["name"]] for mount in container["volumeMounts"]}
    for path in (options["spool"], options["bundle"]):
        assert mounts[path.parent]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (copying,) = pods["spec"]["initContainers"]
    assert Path(copying["command"][-1]) == options["keys"] and "emptyDir" in mounts[options["keys"]]

    (port,), (rule,) = container["ports"], _one("NetworkPolicy", "pocketfed-server")["spec"]["ingress"]
    assert port["containerPort"] == options["port"] == rule["ports"][0]["port"]
    assert service["spec"]["selector"] == pods["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    (host,) = _one("Ingress")["spec"]["rules"]
    (path,) = host["http"]["paths"]
    backend = path["backend"]["service"]
    assert (backend["name"], backend["port"]["name"]) == ("pocketfed-server", service["spec"]["ports"][0]["name"])
    assert {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness")} == {HEALTHY}
    assert container["readinessProbe"]["httpGet"]["path"] == READY


def test_the_keys_of_a_secret_are_copied_so_that_the_server_takes_them(tmp_path: Path) -> None:
    """A secret's files are their group's too: the copy has to be its owner's alone."""
    (copying,) = _one("Deployment")["spec"]["template"]["spec"]["initContainers"]
    secret, keys = tmp_path / "secret", tmp_path / "keys"
    for folder in (secret, keys):
        folder.mkdir()
    roles: tuple[Role, ...] = ("operator", "viewer")
    for role in roles:
        file = secret / f"{role}.key"
        file.write_text(f"{role}-".ljust(43, "k") + "\n")
        file.chmod(0o440)
        with pytest.raises(InputError, match="others may read"):
            read_key(file, role)
    folders = {"/secret": str(secret), "/keys": str(keys)}
    command = [re.sub("^/(secret|keys)", lambda match: folders[match[0]], word) for word in copying["command"]]
    subprocess.run(command, check=True, timeout=60)
    for role in roles:
        assert read_key(keys / f"{role}.key", role) == f"{role}-".ljust(43, "k")
