"""kind and its registry, driven against an engine that remembers what it was told.

There is no Docker engine where these tests run, so this is a stand-in for docker, kind and kubectl: it keeps the
state that the commands' documentation promises and knows no others.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from rm_local_cluster import Cluster, LocalClusterError, kind
from rm_local_cluster.paths import NodePaths

KUBECTL, HELM, KIND = Path("/tools/kubectl"), Path("/tools/helm"), Path("/tools/kind")


class StandInEngine:
    def __init__(self) -> None:
        self.clusters: dict[str, Path] = {}
        self.containers: dict[str, dict[str, object]] = {}
        self.files: dict[tuple[str, str], str] = {}
        self.applied: list[dict[str, object]] = []

    def __call__(
        self, argv: Sequence[str | Path], *, check: bool = True, stdin: str | None = None, timeout: float = 120
    ) -> CompletedProcess[str]:
        code, out = self.answer(list(map(str, argv)), stdin)
        if check and code != 0:
            raise LocalClusterError(f"{argv} ended with {code}")
        return CompletedProcess(list(map(str, argv)), code, out, "")

    def answer(self, argv: list[str], stdin: str | None) -> tuple[int, str]:
        match argv:
            case ["/tools/kind", "get", "clusters"]:
                return 0, "\n".join(self.clusters)
            case ["/tools/kind", "get", "nodes", "--name", name]:
                return 0, f"{name}-worker\n{name}-control-plane\n"
            case ["/tools/kind", "create", "cluster", "--name", name, "--kubeconfig", path, "--wait", _]:
                assert name not in self.clusters
                self.clusters[name] = Path(path)
                return 0, ""
            case ["/tools/kind", "export", "kubeconfig", "--name", name, "--kubeconfig", path]:
                return (0, "") if self.clusters[name] == Path(path) else (1, "")
            case ["/tools/kind", "delete", "cluster", "--name", name]:
                self.clusters.pop(name, None)
                return 0, ""
            case ["docker", "inspect", "--format", template, name]:
                return self.inspect(template, name)
            case [
                "docker",
                "run",
                "--detach",
                "--restart=always",
                "--publish",
                "127.0.0.1::5000",
                "--name",
                name,
                image,
            ]:
                assert name not in self.containers
                self.containers[name] = {"running": True, "networks": {"bridge": {}}, "image": image}
                return 0, "0123\n"
            case ["docker", "start", name]:
                self.containers[name]["running"] = True
                return 0, name
            case ["docker", "network", "connect", "kind", name]:
                networks = self.containers[name]["networks"]
                assert isinstance(networks, dict)
                assert "kind" not in networks
                networks["kind"] = {}
                return 0, ""
            case ["docker", "port", name, "5000/tcp"]:
                return 0, "127.0.0.1:32768\n" if self.containers[name]["running"] else ""
            case ["docker", "exec", _node, "mkdir", "-p", _directory]:
                return 0, ""
            case ["docker", "exec", "--interactive", node, "cp", "/dev/stdin", path]:
                self.files[node, path] = stdin or ""
                return 0, ""
            case ["docker", "rm", "--force", "--volumes", name]:
                return (0, "") if self.containers.pop(name, None) else (1, "")
            case ["/tools/kubectl", "--kubeconfig", _, "apply", "--server-side", "-f", "-"]:
                self.applied.append(yaml.safe_load(stdin or ""))
                return 0, ""
        raise AssertionError(f"no such command: {argv}")

    def inspect(self, template: str, name: str) -> tuple[int, str]:
        if name.endswith("-control-plane"):
            return 0, "172.18.0.3\n"
        if name not in self.containers:
            return 1, ""
        if "State" in template:
            return 0, "true\n" if self.containers[name]["running"] else "false\n"
        return 0, json.dumps(self.containers[name]["networks"])


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine()


@pytest.fixture
def driver(engine: StandInEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> kind.Kind:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return kind.Kind(NodePaths("rma"), KIND, engine)


def up(driver: kind.Kind) -> Cluster:
    return driver.up(lambda: (KUBECTL, HELM), "docker.io/library/registry:3", lambda _: None)


def test_a_cluster_and_its_registry_are_made_and_nodes_know_the_registry(
    driver: kind.Kind, engine: StandInEngine
) -> None:
    cluster = up(driver)
    assert engine.clusters == {"rm-abstract-rma": NodePaths("rma").kubeconfig}
    registry = engine.containers["rm-abstract-rma-registry"]
    assert registry["networks"] == {"bridge": {}, "kind": {}}
    assert (cluster.driver, cluster.node_ip, cluster.kubectl) == ("kind", "172.18.0.3", KUBECTL)
    assert (cluster.image_registry_push, cluster.image_registry_pull) == ("localhost:32768", "localhost:32768")
    assert cluster.node_exec == ("docker", "exec", "--interactive", "rm-abstract-rma-control-plane")
    hosts = '[host."http://rm-abstract-rma-registry:5000"]\n'
    path = "/etc/containerd/certs.d/localhost:32768/hosts.toml"
    assert engine.files == {
        ("rm-abstract-rma-worker", path): hosts,
        ("rm-abstract-rma-control-plane", path): hosts,
    }


def test_the_cluster_announces_its_registry(driver: kind.Kind, engine: StandInEngine) -> None:
    up(driver)
    (announced,) = engine.applied
    assert announced["metadata"] == {"name": "local-registry-hosting", "namespace": "kube-public"}
    data = announced["data"]
    assert isinstance(data, dict)
    assert yaml.safe_load(data["localRegistryHosting.v1"])["host"] == "localhost:32768"


def test_up_again_changes_nothing_and_starts_a_registry_that_was_stopped(
    driver: kind.Kind, engine: StandInEngine
) -> None:
    first = up(driver)
    engine.containers["rm-abstract-rma-registry"]["running"] = False
    assert up(driver) == first
    assert engine.containers["rm-abstract-rma-registry"]["running"] is True


def test_down_takes_both_away_and_may_be_repeated(driver: kind.Kind, engine: StandInEngine) -> None:
    up(driver)
    driver.down()
    driver.down()
    assert (engine.clusters, engine.containers) == ({}, {})


@pytest.mark.parametrize(
    ("output", "recent"),
    [
        ("kind v0.27.0 go1.24.1 linux/amd64\n", True),
        ("kind v0.32.0 go1.26.1 linux/amd64\n", True),
        ("kind v1.0.0 go1.27 linux/amd64\n", True),
        ("kind v0.26.0 go1.23.4 linux/amd64\n", False),
        ("", False),
    ],
)
def test_a_kind_that_does_not_set_up_registries_is_not_used(output: str, recent: bool) -> None:
    assert kind.is_recent(output) is recent
