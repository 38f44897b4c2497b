"""The environment is read completely, and refused completely."""

from pathlib import Path

import pytest
from rm_local_cluster.pki import Authority
from rm_operator.config import Config, InvalidConfig

MINIMAL = {
    "RMA_SYSTEM_NAMESPACE": "rm-abstract-system",
    "RMA_STORE": "rm-abstract-registry.rm-abstract-system.svc:5000",
    "RMA_RUNTIME_IMAGE": "registry/rm-abstract-runtime:0.1.0",
    "RMA_LAUNCHER_IMAGE": "registry/rma-launch:0.1.0",
}


def test_defaults() -> None:
    config = Config.from_environment(MINIMAL)
    assert config == Config(
        system_namespace="rm-abstract-system",
        store="rm-abstract-registry.rm-abstract-system.svc:5000",
        runtime_image="registry/rm-abstract-runtime:0.1.0",
        launcher_image="registry/rma-launch:0.1.0",
        store_plain_http=False,
        pod_name="rm-abstract-operator",
        metrics_port=8080,
        leader_elect=True,
        workers=16,
        image_pull_policy="IfNotPresent",
    )


def test_everything_can_be_set() -> None:
    config = Config.from_environment(
        MINIMAL
        | {
            "RMA_STORE_PLAIN_HTTP": "true",
            "POD_NAME": "operator-0",
            "RMA_METRICS_PORT": "9090",
            "RMA_LEADER_ELECT": "False",
            "RMA_WORKERS": "4",
            "RMA_IMAGE_PULL_POLICY": "Never",
            "RMA_IMAGE_PULL_SECRETS": "vendor-a, vendor-b",
        }
    )
    assert (config.store_plain_http, config.pod_name, config.metrics_port) == (True, "operator-0", 9090)
    assert (config.leader_elect, config.workers, config.image_pull_policy) == (False, 4, "Never")
    assert config.image_pull_secrets == ("vendor-a", "vendor-b")


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(InvalidConfig) as caught:
        Config.from_environment({})
    for name in MINIMAL:
        assert f"{name} is not set" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RMA_SYSTEM_NAMESPACE", "Not_A_Namespace", "the namespace"),
        ("RMA_STORE", "https://host:5000", "host:port"),
        ("RMA_STORE", "host:port", "host:port"),
        ("RMA_STORE", "host/path", "host:port"),
        ("RMA_STORE_PLAIN_HTTP", "maybe", "true or false"),
        ("RMA_METRICS_PORT", "70000", "from 0 to 65535"),
        ("RMA_METRICS_PORT", "-1", "from 0 to 65535"),
        ("RMA_WORKERS", "0", "from 1 to 256"),
        ("RMA_WORKERS", "²", "from 1 to 256"),
        ("RMA_IMAGE_PULL_POLICY", "Sometimes", "Always, IfNotPresent, Never"),
        ("RMA_IMAGE_VOLUMES", "Always", "Never, Auto"),
        ("RMA_IMAGE_VOLUMES_HOST", "https://host", "host:port"),
        ("RMA_IMAGE_VOLUMES_PULL_SECRET", "Log In", "the name of a Secret"),
        ("RMA_IMAGE_PULL_SECRETS", "No_Name", "the name of an object"),
    ],
)
def test_values_that_cannot_be(name: str, value: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=name) as caught:
        Config.from_environment(MINIMAL | {name: value})
    assert message in str(caught.value)
    assert repr(value) in str(caught.value)


def test_a_store_under_tls_with_a_token_service(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "store")
    further = {
        "RMA_STORE_CA_FILE": str(authority.pair.certificate),
        "RMA_STORE_TOKEN_AUDIENCE": "rm-abstract-registry",
        "RMA_STORE_TOKEN_FILE": "/run/token",
    }
    config = Config.from_environment(MINIMAL | further)
    assert config.store_ca == authority.pair.certificate.read_text()
    assert (config.store_token_audience, config.store_token_file) == ("rm-abstract-registry", Path("/run/token"))
    with pytest.raises(InvalidConfig, match="RMA_STORE_PLAIN_HTTP must be false"):
        Config.from_environment(MINIMAL | further | {"RMA_STORE_PLAIN_HTTP": "true"})
    with pytest.raises(InvalidConfig, match="together or not at all"):
        Config.from_environment(MINIMAL | {"RMA_STORE_TOKEN_FILE": "/run/token"})


@pytest.mark.parametrize("content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nx\n"])
def test_certificates_that_are_none(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidConfig, match=r"RMA_STORE_CA_FILE.*must name a file with certificates in PEM"):
        Config.from_environment(MINIMAL | {"RMA_STORE_CA_FILE": str(path)})


@pytest.mark.parametrize("store", ["registry:5000", "10.0.0.1:5000", "[fd00::1]:5000", "registry.example.com"])
def test_stores_that_can_be(store: str) -> None:
    assert Config.from_environment(MINIMAL | {"RMA_STORE": store}).store == store


@pytest.mark.parametrize(
    ("environ", "traced"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_spans_are_sent_where_the_standard_variables_ask_for_it(environ: dict[str, str], traced: bool) -> None:
    assert Config.from_environment(MINIMAL | environ).tracing is traced


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "must be http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "port 4318"),
        ("OTEL_TRACES_EXPORTER", "jaeger", "must be otlp or none"),
    ],
)
def test_what_we_cannot_send_is_refused(name: str, value: str, hint: str) -> None:
    with pytest.raises(InvalidConfig, match=hint) as caught:
        Config.from_environment(MINIMAL | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", name: value})
    assert name in str(caught.value)
