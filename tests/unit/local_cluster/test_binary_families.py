"""The pinned Go modules fit together, and binaries are linked with the versions that they pin."""

import re
from pathlib import Path

import pytest
from rm_local_cluster import LocalClusterError, families
from rm_local_cluster.families import Family

ALL = (*families.NODE_FAMILIES, families.KUBECTL, families.KIND, families.S3)


def go_mod(family: Family) -> str:
    return (family.directory / "go.mod").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_every_family_pins_its_version_and_its_sums(family: Family) -> None:
    assert re.fullmatch(r"v\d+\.\d+\.\d+", family.version)
    sums = (family.directory / "go.sum").read_text(encoding="utf-8")
    assert f"{family.versioned} {family.version} h1:" in sums
    assert family.link_flags.startswith("-s -w")
    assert "{" not in family.link_flags


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_no_module_comes_from_a_directory_or_from_anywhere_but_its_own_name(family: Family) -> None:
    for old, new in re.findall(r"^\s*(?:replace )?(\S+) => (\S+) v\S+$", go_mod(family), re.MULTILINE):
        assert old == new
    assert not re.search(r"=> [./]", go_mod(family))
    assert "://" not in go_mod(family)


def test_all_of_kubernetes_is_of_one_version() -> None:
    staging = "v0." + families.KUBERNETES.version.removeprefix("v1.")
    replaced = dict(re.findall(r"^replace (k8s\.io/\S+) => \S+ (v\S+)$", go_mod(families.KUBERNETES), re.MULTILINE))
    assert set(replaced.values()) == {staging}
    required = re.findall(r"^\s*(k8s\.io/\S+) v0\.0\.0(?:\s|$)", go_mod(families.KUBERNETES), re.MULTILINE)
    assert required
    assert set(required) <= set(replaced)


def test_the_api_server_is_built_against_the_etcd_that_is_run() -> None:
    client = re.findall(r"^\s*(go\.etcd\.io/etcd/\S+) (v\S+)", go_mod(families.KUBERNETES), re.MULTILINE)
    assert {version for _, version in client} == {families.ETCD.version}


def test_kubernetes_reports_its_version_to_servers_and_clients() -> None:
    flags = families.KUBERNETES.link_flags
    version = families.KUBERNETES.version
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        assert f"-X {package}.gitVersion={version}" in flags
        assert f"-X {package}.gitMinor={version.split('.')[1]}" in flags


def test_helm_renders_for_the_kubernetes_that_is_run() -> None:
    minor = families.KUBERNETES.version.split(".")[1]
    assert f"chartutil.k8sVersionMinor={minor}" in families.HELM.link_flags


def test_a_module_that_is_not_required_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "go.mod").write_text("module example\n\nrequire example.org/other v1.2.3\n")
    monkeypatch.setattr(families, "MODULES", tmp_path)
    with pytest.raises(LocalClusterError, match=r"tool/go\.mod requires no version of example\.org/tool"):
        _ = Family("tool", "tool", {"tool": "example.org/tool"}, "example.org/tool").version
    assert Family("tool", "tool", {"tool": "example.org/other"}, "example.org/other").version == "v1.2.3"
