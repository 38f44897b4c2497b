"""The chart's registry under TLS and with its token service, as helm renders it."""

import base64
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from rm_api import names
from rm_operator.config import Config
from rm_operator.registry_auth.__main__ import _parser
from rm_operator.registry_auth.access import Rules
from rm_operator.registry_auth.signing import ISSUER, Signer
from strict_tls import assert_believed
from test_chart import Refused, Render, render  # noqa: F401 - a fixture

Object = dict[str, Any]
OFF = {"tls": {"enabled": False}, "auth": {"enabled": False}}
MOUNTED = "/var/run/rm-abstract/store"


@pytest.fixture(scope="module")
def protected(render: Render) -> list[Object]:  # noqa: F811
    """The chart as it comes: with TLS and the token service."""
    return render()


def one(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [obj for obj in objects if obj["kind"] == kind and obj["metadata"]["name"] == name]
    return found


def pod(objects: list[Object], name: str) -> Object:
    found: Object = one(objects, "Deployment", name)["spec"]["template"]
    return found


def secrets(objects: list[Object]) -> set[str]:
    """Names of the registry's Secrets."""
    named = {obj["metadata"]["name"] for obj in objects if obj["kind"] == "Secret"}
    return {name for name in named if not name.startswith("rma-remote-")}


def secret(objects: list[Object], name: str) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in one(objects, "Secret", name)["data"].items()}


def configuration(objects: list[Object]) -> Object:
    found: Object = yaml.safe_load(one(objects, "ConfigMap", "rma-registry")["data"]["config.yml"])
    return found


def environment(objects: list[Object]) -> dict[str, str]:
    (container,) = pod(objects, "rma-operator")["spec"]["containers"]
    return {entry["name"]: str(entry.get("value", "from-a-field")) for entry in container["env"]}


def items(volume: Object) -> set[str]:
    return {item["key"] for item in volume["secret"]["items"]}


def test_switched_off_nothing_of_it_is_there(render: Render) -> None:  # noqa: F811
    objects = render(store={"registry": OFF})
    assert secrets(objects) == set()
    assert [obj for obj in objects if obj["metadata"]["name"].startswith("rma-registry-")] == []
    assert {"auth", "tls"} & {*configuration(objects), *configuration(objects)["http"]} == set()
    assert environment(objects)["RMA_STORE_PLAIN_HTTP"] == "true"
    assert one(objects, "ConfigMap", "rma-store")["data"] == {
        "host": "rma-registry.system.svc:5000", "service": "rma-registry", "plainHTTP": "true",
    }  # fmt: skip


def test_a_token_service_without_tls_is_refused(render: Render) -> None:  # noqa: F811
    with pytest.raises(Refused, match=r"store\.registry\.auth\.enabled needs store\.registry\.tls\.enabled"):
        render(store={"registry": {"tls": {"enabled": False}}})


def test_values_of_an_earlier_chart_are_refused_with_what_helps(render: Render) -> None:  # noqa: F811
    for part, values in (
        ("tls", {"tls": None}), ("auth", {"auth": None}), ("tls.certManager", {"tls": {"certManager": None}}),
    ):  # fmt: skip
        with pytest.raises(Refused, match=rf"store.registry.{part} is missing.*--reset-then-reuse-values"):
            render(store={"registry": values})


def test_an_external_store_has_neither(render: Render) -> None:  # noqa: F811
    objects = render(store={"host": "registry.example:5000", "plainHTTP": False})
    assert [obj for obj in objects if "registry" in obj["metadata"]["name"]] == []
    assert secrets(objects) == set()
    assert environment(objects)["RMA_STORE_PLAIN_HTTP"] == "false"
    assert not {"RMA_STORE_CA_FILE", "RMA_STORE_TOKEN_FILE"} & environment(objects).keys()


@pytest.mark.parametrize("host", ["rma-registry.system.svc", "rma-registry-auth.system.svc", "127.0.0.1"])
def test_strict_clients_believe_the_certificates(protected: list[Object], host: str, tmp_path: Path) -> None:
    assert_believed(secret(protected, "rma-registry-tls"), host, tmp_path)


def test_the_signing_key_is_of_its_own_authority(protected: list[Object], tmp_path: Path) -> None:
    data = secret(protected, "rma-registry-signing")
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    assert Signer.load(tmp_path / "tls.key", tmp_path / "tls.crt", audience="a").sign("me", [], now=0)
    assert data["tls.crt"] != secret(protected, "rma-registry-ca")["ca.crt"]


def test_the_registry_speaks_tls_and_believes_the_token_service(protected: list[Object]) -> None:
    config = configuration(protected)
    assert config["http"]["tls"] == {"certificate": "/etc/registry/tls/tls.crt", "key": "/etc/registry/tls/tls.key"}
    assert config["auth"]["token"] == {
        "realm": "https://rma-registry-auth.system.svc:5001/token",
        "service": "rma-registry.system.svc:5000",
        "issuer": ISSUER,
        "rootcertbundle": "/etc/registry/signing/tls.crt",
        "signingalgorithms": ["ES256"],
    }
    spec = pod(protected, "rma-registry")["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert (items(volumes["tls"]), items(volumes["signing"])) == ({"tls.crt", "tls.key"}, {"tls.crt"}), "no key to sign"
    (container,) = spec["containers"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/", "port": "registry", "scheme": "HTTPS"}


def test_tls_alone(render: Render) -> None:  # noqa: F811
    objects = render(store={"registry": {"auth": {"enabled": False}}})
    assert "auth" not in configuration(objects)
    assert secrets(objects) == {"rma-registry-ca", "rma-registry-tls"}
    (container,) = pod(objects, "rma-registry")["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/", "port": "registry", "scheme": "HTTPS"}
    assert "RMA_STORE_TOKEN_FILE" not in environment(objects)
    assert environment(objects)["RMA_STORE_CA_FILE"] == f"{MOUNTED}/ca.crt"


def test_the_service_is_started_with_what_it_takes(protected: list[Object]) -> None:
    template = pod(protected, "rma-registry-auth")
    (container,) = template["spec"]["containers"]
    assert container["command"][:3] == ["python3", "-m", "rm_operator.registry_auth"]
    arguments = _parser().parse_args(container["command"][3:])
    operator = pod(protected, "rma-operator")["spec"]["serviceAccountName"]
    assert arguments.service == configuration(protected)["auth"]["token"]["service"]
    assert arguments.operator == f"system:serviceaccount:system:{operator}"
    assert arguments.audience == names.REGISTRY_AUDIENCE
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    for path in ("signing_key", "signing_certificate", "tls_certificate", "tls_key"):
        assert str(getattr(arguments, path).parent) in mounts
    (port,) = container["ports"]
    assert arguments.port == port["containerPort"] == 5001
    assert one(protected, "Service", "rma-registry-auth")["spec"]["ports"] == [
        {"name": "https", "port": 5001, "targetPort": port["name"]}
    ]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "https", "scheme": "HTTPS"}
    selector = one(protected, "Service", "rma-registry-auth")["spec"]["selector"]
    assert selector.items() <= template["metadata"]["labels"].items()
    assert not selector.items() <= pod(protected, "rma-registry")["metadata"]["labels"].items()


def test_what_all_read_and_who_writes_it(render: Render) -> None:  # noqa: F811
    own = {"sharedRepositories": ["models/", "data/sets/"], "publishers": ["ci:publish"]}
    objects = render(store={"registry": {"auth": own}})
    (container,) = pod(objects, "rma-registry-auth")["spec"]["containers"]
    arguments = _parser().parse_args(container["command"][3:])
    rules = Rules(arguments.operator, arguments.administrator, frozenset(arguments.publisher), tuple(arguments.shared))
    assert rules.shared == ("models/", "data/sets/", f"artifacts/{names.BUILDS_NAMESPACE}/")
    assert rules.publishers == {"system:serviceaccount:ci:publish"}
    admin = one(objects, "ServiceAccount", "rma-registry-admin")
    assert rules.administrator == f"system:serviceaccount:system:{admin['metadata']['name']}"
    assert admin["automountServiceAccountToken"] is False
    assert "rma-registry-admin" not in str([obj for obj in objects if obj["kind"].endswith("Binding")])
    assert all(
        obj["spec"]["template"]["spec"].get("serviceAccountName") != "rma-registry-admin"
        for obj in objects
        if obj["kind"] == "Deployment"
    )


@pytest.mark.parametrize(
    "values",
    [
        *({"sharedRepositories": [prefix]} for prefix in ("", "/", "models", "/models/", "artifacts/", "artifacts/a/")),
        *({"publishers": [account]} for account in ("", "ci", "ci:", "system:serviceaccount:ci:publish", "CI:publish")),
    ],
)
def test_shares_and_publishers_that_cannot_be(render: Render, values: Object) -> None:  # noqa: F811
    with pytest.raises(Refused, match=r"sharedRepositories|publishers"):
        render(store={"registry": {"auth": values}})


def test_the_service_may_ask_whose_a_token_is_and_nothing_else(protected: list[Object]) -> None:
    name = "rma-registry-auth"
    assert pod(protected, name)["spec"]["serviceAccountName"] == name
    assert one(protected, "ClusterRole", name)["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "system"}
    bound = [obj for obj in protected if obj["kind"].endswith("RoleBinding") and subject in obj["subjects"]]
    assert [obj["roleRef"]["name"] for obj in bound] == [name]
    assert "tokenreviews" not in str(one(protected, "ClusterRole", "rma-operator"))


def test_the_service_is_restricted(protected: list[Object]) -> None:
    spec = pod(protected, "rma-registry-auth")["spec"]
    assert spec["securityContext"] == pod(protected, "rma-operator")["spec"]["securityContext"]
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["resources"]["limits"]["memory"]


def test_the_operator_has_the_authority_and_a_token_of_its_own(protected: list[Object], tmp_path: Path) -> None:
    spec = pod(protected, "rma-operator")["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "store"]
    authority, token = volume["projected"]["sources"]
    assert authority["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}], "it has no key of the registry"
    assert token["serviceAccountToken"]["audience"] == names.REGISTRY_AUDIENCE
    assert {"name": "store", "mountPath": MOUNTED, "readOnly": True} in spec["containers"][0]["volumeMounts"]
    variables = environment(protected)
    assert variables["RMA_STORE_TOKEN_FILE"] == f"{MOUNTED}/{token['serviceAccountToken']['path']}"
    file = tmp_path / "ca.crt"
    file.write_bytes(secret(protected, "rma-registry-tls")["ca.crt"])
    assert variables.pop("RMA_STORE_CA_FILE") == f"{MOUNTED}/ca.crt"
    files = dict.fromkeys(("RMA_STORE_CA_FILE", "RMA_REMOTE_CA_FILE"), str(file))
    config = Config.from_environment({**variables, **files})
    assert (config.store, config.store_plain_http) == ("rma-registry.system.svc:5000", False)
    assert (config.store_ca, config.store_token_audience) == (file.read_text(), names.REGISTRY_AUDIENCE)


def test_pods_start_anew_with_other_certificates(render: Render, protected: list[Object]) -> None:  # noqa: F811
    again = render()
    sums = []
    for objects in (protected, again):
        found = {
            pod(objects, name)["metadata"]["annotations"]["checksum/certificates"]
            for name in ("rma-registry", "rma-registry-auth", "rma-operator")
        }
        assert len(found) == 1, "all of one rendering have the same certificates"
        sums.append(found)
    assert sums[0] != sums[1], "nothing keeps what is rendered without a cluster"


def lifetime(certificate: bytes) -> timedelta:
    found = x509.load_pem_x509_certificate(certificate)
    return found.not_valid_after_utc - found.not_valid_before_utc


def test_nothing_ends_before_somebody_has_long_renewed_it(protected: list[Object]) -> None:
    # The job comes each week, and renews what has lived half of its life: a year is left to mend it in.
    assert lifetime(secret(protected, "rma-registry-tls")["tls.crt"]) == timedelta(days=730)
    assert lifetime(secret(protected, "rma-registry-ca")["ca.crt"]) == timedelta(days=3650)
    assert lifetime(secret(protected, "rma-registry-signing")["tls.crt"]) > timedelta(days=36000), "it is only a key"
    job = one(protected, "CronJob", "rma-registry-certificates")["spec"]
    assert job["schedule"].split()[2:4] == ["*", "*"]
    assert job["schedule"].split()[4].isdigit(), "each week"


def test_the_renewal_has_what_it_renews_and_nothing_else(protected: list[Object]) -> None:
    name = "rma-registry-certificates"
    spec = one(protected, "CronJob", name)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == name
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["command"][:3] == ["python3", "-m", "rm_operator.registry_auth.certificates"]
    given = dict(each.removeprefix("--").split("=") for each in container["command"][3:])
    assert given["namespace"] == "system"
    assert one(protected, "Role", name)["rules"] == [
        {
            "apiGroups": [""], "resources": ["secrets"], "resourceNames": [given["authority"], given["served"]],
            "verbs": ["get", "patch"],
        },
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [given["description"]], "verbs": ["patch"]},
    ]  # fmt: skip
    assert "ca.crt" in one(protected, "ConfigMap", given["description"])["data"]
    for key in ("authority", "served"):
        assert secret(protected, given[key])
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "system"}
    bound = [obj for obj in protected if obj["kind"].endswith("RoleBinding") and subject in obj["subjects"]]
    assert [(obj["kind"], obj["roleRef"]["name"]) for obj in bound] == [("RoleBinding", name)]


def test_cert_manager_makes_the_certificates_where_it_is_told_to(render: Render) -> None:  # noqa: F811
    issuer = {"name": "own-ca", "kind": "ClusterIssuer"}
    objects = render(store={"registry": {"tls": {"certManager": {"issuerRef": issuer}}}})
    asked = one(objects, "Certificate", "rma-registry-tls")["spec"]
    assert asked["issuerRef"] == issuer
    assert {"rma-registry.system.svc", "rma-registry-auth.system.svc"} <= set(asked["dnsNames"])
    assert asked["ipAddresses"] == ["127.0.0.1"]
    assert secrets(objects) == {"rma-registry-signing"}
    assert [obj["metadata"]["name"] for obj in objects if obj["kind"] == "CronJob"] == ["rma-remote-certificates"]
    for name in ("rma-registry", "rma-registry-auth"):
        (volume,) = [each for each in pod(objects, name)["spec"]["volumes"] if each["name"] == "tls"]
        assert volume["secret"]["secretName"] == asked["secretName"]
    described = one(objects, "ConfigMap", "rma-store")["data"]
    assert "ca.crt" not in described
    assert described["tlsSecret"] == asked["secretName"]


def test_people_and_nodes_are_told_how_the_store_is_reached(protected: list[Object]) -> None:
    described = one(protected, "ConfigMap", "rma-store")
    data = described["data"]
    assert data["ca.crt"].encode() == secret(protected, "rma-registry-tls")["ca.crt"]
    assert data["host"] == environment(protected)["RMA_STORE"]
    assert data["tokenAudience"] == names.REGISTRY_AUDIENCE
    for key in ("service", "tokenService"):
        assert one(protected, "Service", data[key])
    assert one(protected, "ServiceAccount", data["administrator"])
    assert "PRIVATE" not in str(described)


def test_images_of_the_system_namespace_are_pulled_with_the_secrets_that_are_named(render: Render) -> None:  # noqa: F811
    objects = render(imagePullSecrets=["one", "two"])
    specs = [obj["spec"]["template"]["spec"] for obj in objects if obj["kind"] == "Deployment"]
    specs += [obj["spec"]["jobTemplate"]["spec"]["template"]["spec"] for obj in objects if obj["kind"] == "CronJob"]
    assert len(specs) == 5
    assert all(spec["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}] for spec in specs)
    assert environment(objects)["RMA_IMAGE_PULL_SECRETS"] == "one,two"
    with pytest.raises(Refused, match="imagePullSecrets"):
        render(imagePullSecrets=[{"name": "one"}])


def test_a_secret_of_ones_own_takes_the_place_of_the_certificates(render: Render) -> None:  # noqa: F811
    objects = render(store={"registry": {"tls": {"secretName": "mine"}}})
    assert secrets(objects) == {"rma-registry-signing"}
    mounted = str([pod(objects, name)["spec"]["volumes"] for name in ("rma-registry", "rma-registry-auth")])
    assert mounted.count("'secretName': 'mine'") == 2
    (volume,) = [each for each in pod(objects, "rma-operator")["spec"]["volumes"] if each["name"] == "store"]
    assert volume["projected"]["sources"][0]["secret"]["name"] == "mine"
    own = {"tls": {"secretName": "mine"}, "auth": {"signingSecretName": "signs"}}
    proxies = {"tls": {"secretName": "certifies"}}
    first, second = (render(store={"registry": own}, remote=proxies) for _ in range(2))
    assert first == second, "with both, it is the same whoever renders it and wherever"
    assert [obj for obj in first if obj["kind"] == "Secret"] == []
    mounted = str([pod(first, name)["spec"]["volumes"] for name in ("rma-registry", "rma-registry-auth")])
    assert mounted.count("'secretName': 'signs'") == 2
