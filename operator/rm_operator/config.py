"""Configuration from environment variables."""

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HOST_PORT = re.compile(r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?)(:[0-9]{1,5})?$")
_NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_OBJECT = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
_URL = re.compile(r"^https?://[A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]{1,5})?(/[-A-Za-z0-9._~/]*)?$")
_PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")
_IMAGE_VOLUMES: Final = ("Never", "Auto")
_LOG_FORMATS: Final = ("Native", "Logfmt")
_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class InvalidConfig(Exception):
    """The environment does not configure the operator; the message names every variable at fault."""


@dataclass(frozen=True, slots=True)
class Config:
    """How this process was installed."""

    system_namespace: str
    """Where the operator, the registry and device plugins run."""
    store: str
    """host:port of the artifact registry, as workloads and nodes reach it."""
    runtime_image: str
    """Image that has ``rm-abstract resolve|fetch|push``."""
    launcher_image: str
    """Image that has ``rma-launch``."""
    store_plain_http: bool = False
    """Speak to the registry without TLS."""
    store_ca: str = ""
    """The registry's certificate authorities as PEM; empty for those of the system."""
    store_token_audience: str = ""
    """Audience of the ServiceAccount tokens that the registry's token service takes; empty where it has none."""
    store_token_file: Path | None = None
    """The operator's own token of that audience."""
    image_volumes: str = "Never"
    """Auto: nodes mount artifacts into serving pods, if the API server has image volumes. Never: pods fetch them."""
    image_volumes_host: str = ""
    """host:port of the registry as nodes reach it; empty where that is ``store``."""
    image_volumes_pull_secret: str = ""
    """Secret of each namespace with which nodes take artifacts from the registry; empty where it asks for none."""
    driver_service_account: str = "rm-abstract-device-driver"
    """ServiceAccount of the device drivers that publish ResourceSlices."""
    operator_image: str = ""
    """The operator's own image, which proxies before endpoints outside the cluster run."""
    remote_service_account: str = "rm-abstract-remote-proxy"
    """ServiceAccount of those proxies."""
    remote_tls_secret: str = ""
    """Secret of the system namespace with their certificate; empty where they are reached without TLS."""
    remote_ca: str = ""
    """Its certificate authorities as PEM."""
    remote_ca_config_map: str = ""
    """ConfigMap of the system namespace with the authorities of endpoints; empty for those of the system."""
    pod_name: str = "rm-abstract-operator"
    """Name of this replica."""
    metrics_port: int = 8080
    """Port of /metrics, /healthz and /readyz; 0 takes any free one."""
    leader_elect: bool = True
    """Reconcile only while holding the Lease; false where nothing else can run."""
    workers: int = 16
    """Reconciles at the same time."""
    builds_per_namespace: int = 4
    """Builds that may run at a time in one namespace."""
    builds_namespace: str = ""
    """Namespace of artifacts that the deployments of all namespaces share; empty where nothing is shared."""
    node_cache: str = ""
    """host:port under which pods reach the weights cache of their node; empty where nodes have none."""
    hf_endpoint: str = ""
    """URL of the hub that hf:// means; empty for the public one."""
    serving_log_format: str = "Native"
    """Native: engines' lines pass as they are. Logfmt: they are put in the format of the launcher's own."""
    unused_days: int = 30
    """Days for which an artifact that nobody uses is kept."""
    quota_mib: int = 0
    """Mebibytes that a namespace's artifacts may take before those that nobody uses go; 0 for any number."""
    orphan_days: int = 0
    """Days for which the registry keeps what no object names; 0 for any number."""
    image_pull_policy: str = "IfNotPresent"
    """imagePullPolicy of containers that we make."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets of the system namespace by which nodes pull images of the pods that we make there."""
    tracing: bool = False
    """Send OpenTelemetry spans to where the OTEL_* variables say."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Config":
        """The configuration. Raises InvalidConfig with everything that is wrong, not only the first."""
        reader = _Reader(environ)
        config = cls(
            system_namespace=reader.matching("RMA_SYSTEM_NAMESPACE", _NAMESPACE, "the namespace the operator runs in"),
            store=reader.matching("RMA_STORE", _HOST_PORT, "host:port of the artifact registry"),
            runtime_image=reader.text("RMA_RUNTIME_IMAGE", "the image with rm-abstract"),
            launcher_image=reader.text("RMA_LAUNCHER_IMAGE", "the image with rma-launch"),
            store_plain_http=reader.boolean("RMA_STORE_PLAIN_HTTP", False),
            store_ca=reader.certificates("RMA_STORE_CA_FILE"),
            store_token_audience=reader.text("RMA_STORE_TOKEN_AUDIENCE", "an audience", default=""),
            store_token_file=reader.path("RMA_STORE_TOKEN_FILE"),
            image_volumes=reader.choice("RMA_IMAGE_VOLUMES", _IMAGE_VOLUMES, "Never"),
            image_volumes_host=reader.matching(
                "RMA_IMAGE_VOLUMES_HOST", _HOST_PORT, "host:port of the artifact registry", default=""
            ),
            image_volumes_pull_secret=reader.matching(
                "RMA_IMAGE_VOLUMES_PULL_SECRET", _OBJECT, "the name of a Secret", default=""
            ),
            driver_service_account=reader.text(
                "RMA_DRIVER_SERVICE_ACCOUNT", "a ServiceAccount", default="rm-abstract-device-driver"
            ),
            operator_image=reader.text("RMA_OPERATOR_IMAGE", "the operator's own image", default=""),
            remote_service_account=reader.matching(
                "RMA_REMOTE_SERVICE_ACCOUNT", _OBJECT, "a ServiceAccount", default="rm-abstract-remote-proxy"
            ),
            remote_tls_secret=reader.matching("RMA_REMOTE_TLS_SECRET", _OBJECT, "the name of a Secret", default=""),
            remote_ca=reader.certificates("RMA_REMOTE_CA_FILE"),
            remote_ca_config_map=reader.matching(
                "RMA_REMOTE_CA_CONFIG_MAP", _OBJECT, "the name of a ConfigMap", default=""
            ),
            pod_name=reader.text("POD_NAME", "the pod's name", default="rm-abstract-operator"),
            metrics_port=reader.integer("RMA_METRICS_PORT", 8080, 0, 65535),
            leader_elect=reader.boolean("RMA_LEADER_ELECT", True),
            workers=reader.integer("RMA_WORKERS", 16, 1, 256),
            builds_per_namespace=reader.integer("RMA_BUILDS_PER_NAMESPACE", 4, 1, 10000),
            builds_namespace=reader.matching(
                "RMA_BUILDS_NAMESPACE", _NAMESPACE, "the namespace of shared builds", default=""
            ),
            node_cache=reader.matching("RMA_NODE_CACHE", _HOST_PORT, "host:port of the weights cache", default=""),
            hf_endpoint=reader.matching(
                "RMA_HF_ENDPOINT", _URL, "a URL such as https://hub.example.com", default=""
            ).rstrip("/"),
            serving_log_format=reader.choice("RMA_SERVING_LOG_FORMAT", _LOG_FORMATS, "Native"),
            unused_days=reader.integer("RMA_ARTIFACT_UNUSED_DAYS", 30, 0, 36500),
            quota_mib=reader.integer("RMA_ARTIFACT_QUOTA_MIB", 0, 0, 1 << 40),
            orphan_days=reader.integer("RMA_ARTIFACT_ORPHAN_DAYS", 0, 0, 36500),
            image_pull_policy=reader.choice("RMA_IMAGE_PULL_POLICY", _PULL_POLICIES, "IfNotPresent"),
            image_pull_secrets=reader.names("RMA_IMAGE_PULL_SECRETS"),
            tracing=reader.tracing(),
        )
        if bool(config.store_token_audience) != bool(config.store_token_file):
            reader.problems.append("RMA_STORE_TOKEN_AUDIENCE and RMA_STORE_TOKEN_FILE are set together or not at all")
        if config.store_token_audience and config.store_plain_http:
            reader.problems.append("RMA_STORE_PLAIN_HTTP must be false where tokens are sent: they go over TLS only")
        if reader.problems:
            raise InvalidConfig("the environment is not usable:\n  " + "\n  ".join(reader.problems))
        return config


class _Reader:
    """Reads variables and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def text(self, name: str, what: str, *, default: str | None = None) -> str:
        value = self._environ.get(name, "").strip() or default
        if value is None:
            self.problems.append(f"{name} is not set: it must be {what}")
            return ""
        return value

    def matching(self, name: str, pattern: re.Pattern[str], what: str, *, default: str | None = None) -> str:
        value = self.text(name, what, default=default)
        if value and not pattern.match(value):
            self.problems.append(f"{name}={value!r} is not {what}")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """Names of objects, separated by commas."""
        found = tuple(filter(None, (each.strip() for each in self._environ.get(name, "").split(","))))
        for each in found:
            if not _OBJECT.match(each):
                self.problems.append(f"{name} has {each!r}, which is not the name of an object")
        return found

    def path(self, name: str) -> Path | None:
        value = self._environ.get(name, "").strip()
        return Path(value) if value else None

    def certificates(self, name: str) -> str:
        """The content of a PEM file; empty where the variable is not set."""
        path = self.path(name)
        if path is None:
            return ""
        try:
            found = path.read_text("ascii")
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found)
        except (OSError, ValueError, ssl.SSLError) as error:
            self.problems.append(f"{name}={str(path)!r} must name a file with certificates in PEM: {error}")
            return ""
        return found

    def boolean(self, name: str, default: bool) -> bool:
        value = self._environ.get(name, "").strip().lower()
        if value and value not in _BOOLEANS:
            self.problems.append(f"{name}={value!r} must be true or false")
        return _BOOLEANS.get(value, default)

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        value = self._environ.get(name, "").strip()
        if not value:
            return default
        if not value.isascii() or not value.isdigit() or not least <= int(value) <= most:
            self.problems.append(f"{name}={value!r} must be a whole number from {least} to {most}")
            return default
        return int(value)

    def tracing(self) -> bool:
        """Whether the standard variables ask for spans, in a way that we can send them."""
        kind = self._environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
        if self.boolean("OTEL_SDK_DISABLED", False) or kind == "none":
            return False
        endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
        if not kind and not any(self._environ.get(name, "").strip() for name in endpoints):
            return False
        if kind not in ("", "otlp"):
            self.problems.append(f"OTEL_TRACES_EXPORTER={kind!r} must be otlp or none")
        for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            protocol = self._environ.get(name, "").strip()
            if protocol not in ("", "http/protobuf"):
                self.problems.append(
                    f"{name}={protocol!r} must be http/protobuf; collectors listen for it on port 4318"
                )
        return True

    def choice(self, name: str, values: tuple[str, ...], default: str) -> str:
        value = self._environ.get(name, "").strip() or default
        if value not in values:
            self.problems.append(f"{name}={value!r} must be one of {', '.join(values)}")
        return value
