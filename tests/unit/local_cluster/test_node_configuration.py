"""What a node is configured with: read back from the files as its components read them."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rm_local_cluster import addons, components, families, network
from rm_local_cluster.paths import NodePaths
from rm_local_cluster.plan import NodePlan
from rm_local_cluster.spec import Component, NodeSpec

BINARIES = [name for family in families.NODE_FAMILIES for name in family.packages]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[NodePlan, NodeSpec]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)

    def prepared(**changes: Any) -> tuple[NodePlan, NodeSpec]:
        settings: dict[str, Any] = {
            "paths": NodePaths("rma"),
            "addresses": network.choose([]),
            "binaries": {name: tmp_path / "bin" / name for name in BINARIES},
            "archives": (tmp_path / "coredns.tar", tmp_path / "pause.tar"),
            "cni_directory": Path("/usr/lib/cni"),
            "may_lower_oom_score": True,
            "cgroup_version": 2,
            **changes,
        }
        plan = NodePlan(**settings)
        return plan, components.prepare(plan)

    return prepared


def component(spec: NodeSpec, name: str) -> Component:
    (found,) = [each for stage in spec.stages for each in stage.components if each.name == name]
    return found


def flags(spec: NodeSpec, name: str) -> dict[str, str]:
    pairs = (argument.removeprefix("--").partition("=") for argument in component(spec, name).argv[1:])
    return {key: value for key, _, value in pairs}


def config(spec: NodeSpec, name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(Path(flags(spec, name)["config"]).read_text())
    return document


def containerd(plan: NodePlan) -> dict[str, Any]:
    plugins: dict[str, Any] = tomllib.loads((plan.paths.config / "containerd.toml").read_text())["plugins"]
    return plugins


def test_everything_that_is_built_for_the_node_runs_or_is_a_tool(
    make: Callable[..., tuple[NodePlan, NodeSpec]],
) -> None:
    _, spec = make()
    started = {Path(each.argv[0]).name for stage in spec.stages for each in stage.components}
    in_pods, shims, tools = {"coredns", "pause"}, {"containerd-shim-runc-v2"}, {"ctr", "kubectl", "helm"}
    assert started == set(BINARIES) - in_pods - shims - tools


def test_the_specification_survives_being_written(make: Callable[..., tuple[NodePlan, NodeSpec]]) -> None:
    _, spec = make()
    assert NodeSpec.from_json(spec.to_json()) == spec


def test_addresses_agree_everywhere(make: Callable[..., tuple[NodePlan, NodeSpec]]) -> None:
    plan, spec = make()
    addresses = plan.addresses
    assert (spec.address, spec.gateway) == (f"{addresses.node}/30", str(addresses.host))
    assert flags(spec, "kube-apiserver")["service-cluster-ip-range"] == str(addresses.services)
    assert flags(spec, "kube-apiserver")["advertise-address"] == str(addresses.node)
    assert flags(spec, "kube-controller-manager")["cluster-cidr"] == str(addresses.pods)
    assert flags(spec, "kubelet")["node-ip"] == str(addresses.node)
    assert config(spec, "kubelet")["clusterDNS"] == [str(addresses.dns_service)]
    assert config(spec, "kube-proxy")["clusterCIDR"] == str(addresses.pods)
    cni = json.loads((plan.paths.config / "cni" / "10-pods.conflist").read_text())
    assert cni["plugins"][0]["ipam"]["ranges"] == [[{"subnet": str(addresses.pods)}]]
    for path in [plan.paths.kubeconfig, *plan.paths.config.glob("*.kubeconfig")]:
        assert yaml.safe_load(path.read_text())["clusters"][0]["cluster"]["server"] == f"https://{addresses.node}:6443"
        assert path.stat().st_mode & 0o077 == 0


def test_pods_take_images_from_the_nodes_registry_over_plain_http(
    make: Callable[..., tuple[NodePlan, NodeSpec]],
) -> None:
    plan, spec = make()
    registry = f"{plan.addresses.node}:5000"
    directory = Path(containerd(plan)["io.containerd.cri.v1.images"]["registry"]["config_path"])
    hosts = tomllib.loads((directory / registry / "hosts.toml").read_text())
    assert hosts["server"] == f"http://{registry}"
    assert hosts["host"] == {f"http://{registry}": {"capabilities": ["pull", "resolve"]}}
    assert component(spec, "registry").probe.url == f"http://{registry}/v2/"


def test_images_outlive_the_node_and_nothing_else_does(make: Callable[..., tuple[NodePlan, NodeSpec]]) -> None:
    plan, spec = make()
    outlived = {each.name for stage in spec.stages for each in stage.components if each.outlived}
    assert outlived == {"containerd", "registry"}
    assert not plan.paths.images.is_relative_to(plan.paths.root)
    store = tomllib.loads((plan.paths.config / "containerd.toml").read_text())["root"]
    registry = yaml.safe_load((plan.paths.config / "registry.yaml").read_text())
    for kept in (store, registry["storage"]["filesystem"]["rootdirectory"]):
        assert Path(kept).is_relative_to(plan.paths.images)
    assert Path(flags(spec, "etcd")["data-dir"]).is_relative_to(plan.paths.root)


@pytest.mark.parametrize(("may_lower", "restrict"), [(True, False), (False, True)])
def test_oom_scores_are_restricted_only_where_root_may_not_lower_them(
    make: Callable[..., tuple[NodePlan, NodeSpec]], may_lower: bool, restrict: bool
) -> None:
    plan, _ = make(may_lower_oom_score=may_lower)
    runtime = containerd(plan)["io.containerd.cri.v1.runtime"]
    assert runtime["restrict_oom_score_adj"] is restrict
    assert runtime["device_ownership_from_security_context"] is True
    assert runtime["enable_cdi"] is True


@pytest.mark.parametrize(("version", "said"), [(1, False), (2, None)])
def test_the_kubelet_is_told_to_accept_old_control_groups_only_where_they_are(
    make: Callable[..., tuple[NodePlan, NodeSpec]], version: int, said: bool | None
) -> None:
    _, spec = make(cgroup_version=version)
    assert config(spec, "kubelet").get("failCgroupV1") is said


def test_the_kubelet_finds_pause_under_the_name_that_is_imported(
    make: Callable[..., tuple[NodePlan, NodeSpec]],
) -> None:
    plan, spec = make()
    pinned = containerd(plan)["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"]
    assert pinned == addons.image("pause")
    imported = [command[-1] for stage in spec.stages for command in stage.commands if "import" in command]
    assert imported == [str(archive) for archive in plan.archives]
    order = [each.name for stage in spec.stages for each in stage.components]
    stage = next(number for number, each in enumerate(spec.stages) if each.commands)
    started = [each.name for each in spec.stages[stage].components]
    assert order.index("containerd") < order.index(started[0])
    assert "kubelet" not in [each.name for before in spec.stages[: stage + 1] for each in before.components]


@pytest.mark.parametrize("name", ["kube-apiserver", "kube-controller-manager", "kube-scheduler"])
def test_every_file_that_a_component_is_told_of_is_there(
    make: Callable[..., tuple[NodePlan, NodeSpec]], name: str
) -> None:
    plan, spec = make()
    named = [Path(value) for key, value in flags(spec, name).items() if key.endswith(("-file", "kubeconfig", "-key"))]
    assert named
    assert [path for path in named if path.is_relative_to(plan.paths.root) and not path.is_file()] == []


def test_what_the_kubelet_would_change_for_the_whole_machine_is_fixed(
    make: Callable[..., tuple[NodePlan, NodeSpec]],
) -> None:
    _, spec = make()
    assert spec.fixed_settings["vm.overcommit_memory"] == "1"
    assert {"kernel.panic", "kernel.panic_on_oops"} <= spec.fixed_settings.keys()


def test_manifests_name_the_images_and_addresses_and_answer_for_the_outside() -> None:
    addresses = network.choose([])
    documents = {document["kind"]: document for document in yaml.safe_load_all(addons.manifests(addresses))}
    pod = documents["Deployment"]["spec"]["template"]
    assert pod["spec"]["containers"][0]["image"] == addons.image("coredns")
    assert documents["Service"]["spec"]["clusterIP"] == str(addresses.dns_service)
    assert documents["StorageClass"]["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
    corefile = documents["ConfigMap"]["data"]["Corefile"]
    assert f"{addresses.host} {addons.HOST_NAME}" in corefile
    assert "rcode NXDOMAIN" in corefile


def test_with_a_way_outside_other_names_are_asked_of_the_machines_servers_by_new_pods() -> None:
    def parts(*resolvers: str) -> tuple[str, object]:
        documents = list(yaml.safe_load_all(addons.manifests(network.choose([]), resolvers)))
        by_kind = {document["kind"]: document for document in documents}
        return by_kind["ConfigMap"]["data"]["Corefile"], by_kind["Deployment"]["spec"]["template"]["metadata"]

    corefile, template = parts("192.0.2.53", "198.51.100.53")
    assert "forward . 192.0.2.53 198.51.100.53" in corefile
    assert "NXDOMAIN" not in corefile
    assert template != parts()[1]
