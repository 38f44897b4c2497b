"""An AcceleratorResource of type REMOTE: the proxy before its endpoint, and how that is.

The proxy runs in the system namespace and alone mounts the provider's key. It is one pod, as it counts requests for all
who use the endpoint; while it is replaced there are two for a moment.
"""

from collections.abc import Sequence
from typing import Any, Final

from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import AcceleratorResourceSpec
from rm_api.report import Report, ReportInvalid

from rm_operator.plan import pods
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.model import Object, Settings, is_deleting, name_of, owner_reference

KEY: Final = "key"
"""Under which name the Secret has the endpoint's key."""
_KEY_DIR: Final = "/etc/rma-remote/key"
_CA_DIR: Final = "/etc/rma-remote/ca"
_TLS_DIR: Final = "/etc/rma-remote/tls"
_MANAGEMENT_PORT: Final = 8080
_GRACE_SECONDS: Final = 60


def proxy_name(accelerator: str) -> str:
    """Name of the proxy's Deployment and Service."""
    return f"remote-{accelerator}"


def proxy_url(accelerator: str, settings: Settings) -> str:
    """Where serving pods reach the proxy."""
    scheme = "https" if settings.remote.tls_secret else "http"
    return f"{scheme}://{proxy_name(accelerator)}.{settings.system_namespace}.svc:{names.REMOTE_PORT}"


def children(accelerator: Object, spec: AcceleratorResourceSpec, settings: Settings) -> list[dict[str, Any]]:
    """Deployment and Service of the proxy."""
    name = proxy_name(name_of(accelerator))
    label = pods.labels(names.ROLE_REMOTE_PROXY, **{names.LABEL_ACCELERATOR: name_of(accelerator)})
    metadata = {
        "name": name,
        "namespace": settings.system_namespace,
        "labels": label,
        "ownerReferences": [owner_reference(accelerator, controller=True)],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 0,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": {key: label[key] for key in (names.LABEL_ACCELERATOR, names.LABEL_ROLE)}},
            "template": {"metadata": {"labels": label}, "spec": _pod(name_of(accelerator), spec, settings)},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": {key: label[key] for key in (names.LABEL_ACCELERATOR, names.LABEL_ROLE)},
            "ports": [{"name": "proxy", "port": names.REMOTE_PORT, "targetPort": "proxy", "protocol": "TCP"}],
        },
    }
    return [deployment, service]


def _pod(accelerator: str, spec: AcceleratorResourceSpec, settings: Settings) -> dict[str, Any]:
    remote, installed = spec.remote, settings.remote
    assert remote is not None
    mounted, volumes, command = pods.mounts(["tmp"]), pods.volumes(["tmp"]), list[str]()

    def add(name: str, directory: str, volume: dict[str, Any]) -> None:
        mounted.append({"name": name, "mountPath": directory, "readOnly": True})
        volumes.append({"name": name, **volume})

    if remote.credentials_secret_ref is not None:
        item = {"key": KEY, "path": KEY}
        # A directory, not a file of it: the kubelet writes a key that has changed.
        secret = {"secretName": remote.credentials_secret_ref, "defaultMode": 0o440, "items": [item]}
        add("key", _KEY_DIR, {"secret": secret})
        command.append(f"--key-file={_KEY_DIR}/{KEY}")
    if installed.ca_config_map:
        item = {"key": "ca.crt", "path": "ca.crt"}
        add("ca", _CA_DIR, {"configMap": {"name": installed.ca_config_map, "items": [item]}})
        command.append(f"--ca-file={_CA_DIR}/ca.crt")
    if installed.tls_secret:
        items = [{"key": each, "path": each} for each in ("tls.crt", "tls.key")]
        add("tls", _TLS_DIR, {"secret": {"secretName": installed.tls_secret, "defaultMode": 0o440, "items": items}})
        command += [f"--tls-certificate={_TLS_DIR}/tls.crt", f"--tls-key={_TLS_DIR}/tls.key"]
    limits = (("max-concurrency", remote.max_concurrency), ("requests-per-minute", remote.requests_per_minute))
    command += [f"--{name}={limit}" for name, limit in limits if limit is not None]
    command += [f"--namespace={each}" for each in sorted(spec.allowed_namespaces)]
    command += [f"--model={pods.literal(each)}" for each in sorted({model.name for model in remote.models})]
    probe = {"httpGet": {"path": "/healthz", "port": "management"}, "timeoutSeconds": 5}
    container = pods.container(
        "proxy",
        installed.image,
        [
            "python3", "-m", "rm_operator.remote_proxy",
            f"--accelerator={accelerator}",
            f"--endpoint={pods.literal(remote.endpoint)}",
            f"--protocol={remote.protocol.value}",
            f"--timeout={remote.timeout_seconds}",
            f"--port={names.REMOTE_PORT}",
            f"--management-port={_MANAGEMENT_PORT}",
            *command,
        ],
        settings,
        mounted=mounted,
        compute={"requests": {"cpu": "50m", "memory": "96Mi"}},
        ports=[
            {"name": "proxy", "containerPort": names.REMOTE_PORT, "protocol": "TCP"},
            {"name": "management", "containerPort": _MANAGEMENT_PORT, "protocol": "TCP"},
        ],
        startupProbe={**probe, "periodSeconds": 2, "failureThreshold": 60},
        readinessProbe={**probe, "periodSeconds": 5},
        livenessProbe={**probe, "periodSeconds": 10},
    )  # fmt: skip
    further: dict[str, Any] = {"terminationGracePeriodSeconds": _GRACE_SECONDS, **pods.pull_secrets(settings)}
    if spec.node_selector:
        further["nodeSelector"] = dict(spec.node_selector)
    if spec.tolerations:
        further["tolerations"] = [toleration.to_wire() for toleration in spec.tolerations]
    pod = pods.pod_spec(init_containers=[], containers=[container], pod_volumes=volumes, **further)
    # It asks the API server whose tokens are, and does nothing else there.
    return {**pod, "automountServiceAccountToken": True, "serviceAccountName": installed.service_account}


def state(conditions: Conditions, accelerator: str, spec: AcceleratorResourceSpec, its_pods: Sequence[Object]) -> None:
    """States EndpointReady: whether the proxy runs, and has a key that the endpoint takes."""
    live = [pod for pod in its_pods if not is_deleting(pod)]
    remote = spec.remote
    assert remote is not None
    if any(_is_ready(pod) for pod in live):
        served = len(remote.models)
        message = f"the proxy answers for {remote.endpoint}, which serves {served} models"
        if not spec.allowed_namespaces:
            message += "; no namespace may use it: list some in allowedNamespaces"
        conditions.set(ConditionType.ENDPOINT_READY, True, Reason.READY, message)
        return
    for pod in sorted(live, key=name_of):
        if (said := _left(pod)) is not None and said.reason == Reason.CREDENTIALS_REFUSED:
            conditions.set(ConditionType.ENDPOINT_READY, False, Reason.CREDENTIALS_REFUSED, said.message)
            return
    waiting = next(filter(None, map(_waits, sorted(live, key=name_of))), "it has not started yet")
    if remote.credentials_secret_ref is not None and not any(map(_has_begun, live)):
        # Tenants read this, too, as the reason why they are not placed here.
        waiting += f"; it needs the Secret of spec.remote.credentialsSecretRef, with {KEY}, in its namespace"
    message = f"the proxy {proxy_name(accelerator)} is not ready: {waiting}"
    conditions.set(ConditionType.ENDPOINT_READY, False, Reason.PROXY_NOT_READY, message)


def _is_ready(pod: Object) -> bool:
    said = (pod.get("status") or {}).get("conditions") or []
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in said)


def _containers(pod: Object) -> list[dict[str, Any]]:
    return (pod.get("status") or {}).get("containerStatuses") or []


def _has_begun(pod: Object) -> bool:
    return any({"running", "terminated"} & (each.get("state") or {}).keys() for each in _containers(pod))


def _left(pod: Object) -> Report | None:
    """What the proxy said when it ended last."""
    for status in _containers(pod):
        ended = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated")
        try:
            return Report.parse((ended or {}).get("message") or "")
        except ReportInvalid:
            continue
    return None


def _waits(pod: Object) -> str:
    for status in _containers(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    return ""
