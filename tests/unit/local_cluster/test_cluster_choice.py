"""Which cluster is used, under which name, and where its files are."""

from pathlib import Path

import pytest
import rm_local_cluster
from rm_local_cluster import Cluster, LocalClusterError, egress, kubeconfig, machine, node, packages, paths

GIB = 1024**3


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RM_KUBECONFIG", "KUBECONFIG", "RM_LOCAL_CLUSTER_NAME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def kubeconfig_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("kind: Config\n")
    return path


def test_the_argument_goes_before_the_variables_and_ours_before_the_common_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument, ours, common = (kubeconfig_at(home / name) for name in ("argument", "ours", "common"))
    assert kubeconfig.named_by_user(None) is None
    monkeypatch.setenv("KUBECONFIG", str(common))
    assert kubeconfig.named_by_user(None) == common
    monkeypatch.setenv("RM_KUBECONFIG", str(ours))
    assert kubeconfig.named_by_user(None) == ours
    assert kubeconfig.named_by_user(argument) == argument


def test_a_kubeconfig_that_up_wrote_does_not_count_as_another_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig_at(paths.NodePaths("rma").kubeconfig)))
    assert kubeconfig.named_by_user(None) is None


def test_a_kubeconfig_that_is_missing_is_an_error_that_says_where_it_was_looked_for(home: Path) -> None:
    with pytest.raises(LocalClusterError, match=r"there is no kubeconfig .*/missing; name one file"):
        rm_local_cluster.up(kubeconfig=home / "missing", progress=print)


def test_naming_the_driver_without_naming_a_cluster_is_an_error() -> None:
    with pytest.raises(LocalClusterError, match="no cluster is named"):
        rm_local_cluster.up(driver="existing", progress=print)


@pytest.mark.parametrize(
    ("named", "docker", "driver"),
    [
        (Path("/k"), True, "existing"),
        (Path("/k"), False, "existing"),
        (None, True, "kind"),
        (None, False, "node"),
    ],
)
def test_a_named_cluster_goes_before_kind_and_kind_before_a_node(named: Path | None, docker: bool, driver: str) -> None:
    assert machine.choose_driver(named, lambda: docker) == driver


@pytest.mark.parametrize("name", ["rma", "a", "test1", "abcdefghij"])
def test_usable_names(name: str) -> None:
    assert paths.cluster_name(name) == name


@pytest.mark.parametrize("name", ["RMA", "1st", "a-b", "../x", "elevenchars", "a b", "é"])
def test_names_that_would_not_do_as_interface_or_directory_are_refused(name: str) -> None:
    with pytest.raises(LocalClusterError, match="is not usable"):
        paths.cluster_name(name)


def test_the_name_comes_from_the_argument_then_from_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.cluster_name() == "rma"
    monkeypatch.setenv("RM_LOCAL_CLUSTER_NAME", "other")
    assert paths.cluster_name() == "other"
    assert paths.cluster_name("third") == "third"


def test_state_is_beside_the_cache_unless_it_has_a_place_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paths.NodePaths("rma").root == home / "cache" / "rm-abstract" / "node" / "rma"
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    assert paths.NodePaths("rma").root == home / "state" / "rm-abstract" / "node" / "rma"
    assert paths.NodePaths("rma").images.is_relative_to(home / "cache")


def test_without_a_cluster_status_says_so_and_down_does_nothing() -> None:
    status = rm_local_cluster.status()
    assert (status.phase, status.healthy, status.cluster) == ("Absent", False, None)
    assert "rm-abstract up" in status.message
    said: list[str] = []
    rm_local_cluster.down(progress=said.append)
    assert said == []


@pytest.mark.parametrize("place", ["/run/user/0", "/var/log/cache", "/tmp/hostpath_pv"])
def test_places_that_are_others_in_the_node_are_refused(place: str, home: Path) -> None:
    with pytest.raises(LocalClusterError, match=f"a node cannot use {place}.*set XDG_CACHE_HOME"):
        node.check_places([home, Path(place)])
    node.check_places([home])


def test_a_cluster_survives_being_written(home: Path) -> None:
    cluster = Cluster(
        "rma", "node", home / "k", home / "kubectl", home / "helm", audit_log=home / "a", node_exec=("x",)
    )
    assert Cluster.from_json(cluster.to_json()) == cluster
    bare = Cluster("rma", "existing", home / "k", home / "kubectl", home / "helm")
    assert Cluster.from_json(bare.to_json()) == bare


def test_a_node_that_cannot_be_entered_says_so(home: Path) -> None:
    cluster = Cluster("rma", "existing", home / "k", home / "kubectl", home / "helm")
    with pytest.raises(LocalClusterError, match="cannot be entered"):
        cluster.exec_in_node(["true"])


@pytest.mark.parametrize(
    ("free", "cold", "severity"),
    [(25 * GIB, True, "ok"), (19 * GIB, True, "problem"), (19 * GIB, False, "ok"), (4 * GIB, False, "problem")],
)
def test_building_needs_more_disk_than_starting(free: int, cold: bool, severity: str) -> None:
    finding = machine.disk(free, cold=cold)
    assert (finding.severity, finding.fix is not None) == (severity, severity == "problem")


@pytest.mark.parametrize(("kib", "severity"), [(8 * 1024**2, "ok"), (3 * 1024**2, "problem")])
def test_memory(kib: int, severity: str) -> None:
    assert machine.memory(f"MemTotal: 99999999 kB\nMemAvailable: {kib} kB\n").severity == severity


def test_a_missing_toolchain_matters_only_while_something_is_to_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_options: None)
    missing = machine.toolchain(needed=True)
    assert (missing.severity, missing.fix) == ("problem", "install Go 1.26 or newer: https://go.dev/dl")
    assert machine.toolchain(needed=False).severity == "ok"


@pytest.mark.parametrize(
    ("release", "may"),
    [
        ("ID=debian\nVERSION_ID=12\n", True),
        ('ID=ubuntu\nID_LIKE="debian"\n', True),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', True),
        ('ID="fedora"\nID_LIKE=""\n', False),
        ("", False),
    ],
)
def test_packages_are_installed_only_where_apt_is_the_way(
    monkeypatch: pytest.MonkeyPatch, release: str, may: bool
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert packages.can_install(release) is may
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert packages.can_install(release) is False


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\nnameserver 198.51.100.2\nsearch example.org\n", ["192.0.2.1", "198.51.100.2"]),
        ("nameserver 127.0.0.53\noptions edns0\n", []),
        ("# nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver\n", []),
    ],
)
def test_name_servers_that_pods_can_ask(text: str, servers: list[str]) -> None:
    assert egress.parse_resolvers(text) == servers


def test_the_servers_behind_a_stub_are_taken_and_none_at_all_is_an_error(home: Path) -> None:
    stub, real = home / "stub", home / "real"
    stub.write_text("nameserver 127.0.0.53\n")
    real.write_text("nameserver 192.0.2.1\n")
    assert egress.resolvers((home / "missing", stub, real)) == ["192.0.2.1"]
    with pytest.raises(LocalClusterError, match="loopback interface only"):
        egress.resolvers((stub,))
