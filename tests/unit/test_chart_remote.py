"""What the chart gives to proxies before endpoints outside the cluster: an account, and certificates."""

from pathlib import Path

import pytest
from rm_operator.config import Config
from strict_tls import assert_believed
from test_chart import Object, Render, render  # noqa: F401 - a fixture
from test_chart_registry import environment, lifetime, one, pod, secret


@pytest.fixture(scope="module")
def rendered(render: Render) -> list[Object]:  # noqa: F811
    return render()


@pytest.mark.parametrize("host", ["remote-vendor-api.system.svc", "remote-x.system.svc.cluster.local"])
def test_serving_pods_believe_every_proxy(rendered: list[Object], host: str, tmp_path: Path) -> None:
    assert_believed(secret(rendered, "rma-remote-tls"), host, tmp_path)


def test_it_is_another_authority_than_that_of_the_registry(rendered: list[Object]) -> None:
    proxies = secret(rendered, "rma-remote-tls")
    assert proxies["ca.crt"] == secret(rendered, "rma-remote-ca")["ca.crt"]
    assert proxies["ca.crt"] != secret(rendered, "rma-registry-tls")["ca.crt"]
    assert lifetime(proxies["tls.crt"]).days == 730
    assert lifetime(proxies["ca.crt"]).days == 3650


def test_the_operator_tells_pods_of_the_authority_and_has_no_key(rendered: list[Object], tmp_path: Path) -> None:
    spec = pod(rendered, "rma-operator")["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "remote"]
    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "remote"]
    variables = environment(rendered)
    assert variables["RMA_REMOTE_CA_FILE"] == f"{mount['mountPath']}/ca.crt"
    file = tmp_path / "ca.crt"
    file.write_bytes(secret(rendered, "rma-remote-tls")["ca.crt"])
    for name in ("RMA_STORE_CA_FILE", "RMA_REMOTE_CA_FILE"):
        variables[name] = str(file)
    config = Config.from_environment(variables)
    assert (config.remote_tls_secret, config.remote_ca) == ("rma-remote-tls", file.read_text())


def test_what_proxies_are_run_with_is_there(rendered: list[Object]) -> None:
    variables = {name: value for name, value in environment(rendered).items() if not name.endswith("_CA_FILE")}
    config = Config.from_environment(variables)
    assert one(rendered, "ServiceAccount", config.remote_service_account)
    assert one(rendered, "ClusterRole", config.remote_service_account)["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    subject = {"kind": "ServiceAccount", "name": config.remote_service_account, "namespace": "system"}
    bound = [obj for obj in rendered if obj["kind"].endswith("RoleBinding") and subject in obj["subjects"]]
    assert [obj["roleRef"]["name"] for obj in bound] == [config.remote_service_account], "and nothing else"
    assert config.operator_image == pod(rendered, "rma-operator")["spec"]["containers"][0]["image"]


def test_the_renewal_has_these_two_secrets_and_nothing_else(rendered: list[Object]) -> None:
    name = "rma-remote-certificates"
    spec = one(rendered, "CronJob", name)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == name
    (container,) = spec["containers"]
    assert container["command"][:3] == ["python3", "-m", "rm_operator.registry_auth.certificates"]
    assert container["command"][3:] == ["--namespace=system", "--authority=rma-remote-ca", "--served=rma-remote-tls"]
    assert one(rendered, "Role", name)["rules"] == [
        {
            "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["rma-remote-ca", "rma-remote-tls"],
            "verbs": ["get", "patch"],
        }
    ]  # fmt: skip
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "system"}
    bound = [obj for obj in rendered if obj["kind"].endswith("RoleBinding") and subject in obj["subjects"]]
    assert [(obj["kind"], obj["roleRef"]["name"]) for obj in bound] == [("RoleBinding", name)]


def test_certificates_of_others(render: Render) -> None:  # noqa: F811
    issuer = {"name": "own-ca", "kind": "ClusterIssuer"}
    asked = one(render(remote={"tls": {"certManager": {"issuerRef": issuer}}}), "Certificate", "rma-remote-tls")["spec"]
    assert (asked["issuerRef"], asked["secretName"]) == (issuer, "rma-remote-tls")
    assert "*.system.svc" in asked["dnsNames"]
    objects = render(remote={"tls": {"secretName": "own"}})
    assert environment(objects)["RMA_REMOTE_TLS_SECRET"] == "own"
    assert not any(obj["metadata"]["name"].startswith("rma-remote-tls") for obj in objects)


def test_without_tls_nothing_of_it_is_there(render: Render) -> None:  # noqa: F811
    objects = render(remote={"tls": {"enabled": False}})
    assert not {"RMA_REMOTE_TLS_SECRET", "RMA_REMOTE_CA_FILE"} & environment(objects).keys()
    named = {(obj["kind"], obj["metadata"]["name"]) for obj in objects if "remote" in obj["metadata"]["name"]}
    assert named == {(kind, "rma-remote-proxy") for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")}
