"""What the operator runs on the nodes of a kind: the device plugin that it owns, or an observer beside the vendor's."""

from collections.abc import Collection
from typing import Any

from rm_api import names
from rm_api.kinds import AcceleratorResourceSpec
from rm_api.kinds.accelerator_resource import DevicePlugin, Observer

from rm_operator.plan import pods
from rm_operator.plan.device_class_children import (
    ENV_DRIVER,
    device_class,
    driver_arguments,
    driver_name,
    driver_paths,
)
from rm_operator.plan.model import Object, Settings, name_of, owner_reference

KUBELET_PLUGIN_DIR = "/var/lib/kubelet/device-plugins"
POD_RESOURCES_DIR = "/var/lib/kubelet/pod-resources"
CONFIG_DIR = "/etc/rma-device-plugin"

_PLUGIN_CAPABILITIES = ("MKNOD", "CHOWN", "FOWNER", "DAC_OVERRIDE")


def device_children(
    accelerator: Object, spec: AcceleratorResourceSpec, settings: Settings, *, keep_off: Collection[str] = ()
) -> list[dict[str, Any]]:
    """DaemonSet of the kind's device plugin and the ConfigMap of its configuration, or DaemonSet of its observer.

    For a kind that is requested by class the plugin is a DRA driver, and its DeviceClass comes with it.

    Neither where the kind asks for none. The device plugin keeps off nodes with these values of the hostname label.
    """
    if spec.device_plugin is not None:
        return _plugin(accelerator, spec, spec.device_plugin, settings, keep_off)
    return [] if spec.observer is None else [_observer(accelerator, spec, spec.observer, settings)]


def _plugin(
    accelerator: Object,
    spec: AcceleratorResourceSpec,
    plugin: DevicePlugin,
    settings: Settings,
    keep_off: Collection[str],
) -> list[dict[str, Any]]:
    name = f"device-plugin-{name_of(accelerator)}"
    metadata = _metadata(accelerator, name, names.ROLE_DEVICE_PLUGIN, settings)
    children: list[dict[str, Any]] = []
    # A directory that is named twice is mounted once: the API server refuses two mounts at one path.
    by_class = spec.device_class_name is not None
    kubelet_dirs = driver_paths(accelerator) if by_class else [KUBELET_PLUGIN_DIR]
    host_paths = dict.fromkeys([*kubelet_dirs, *plugin.host_paths, POD_RESOURCES_DIR])
    volumes, mounts = _host(host_paths, read_only={POD_RESOURCES_DIR}.difference(plugin.host_paths))
    if plugin.config is not None:
        # The pods take up another configuration by themselves, so their template does not tell one from another.
        children.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.yaml": plugin.config}}
        )
        volumes.append({"name": "config", "configMap": {"name": name}})
        mounts.append({"name": "config", "mountPath": CONFIG_DIR, "readOnly": True})
    advertised = {ENV_DRIVER: driver_name(accelerator)} if by_class else {"RMA_RESOURCE_NAME": str(spec.resource_name)}
    variables = {**advertised, "RMA_ACCELERATOR": name_of(accelerator)}
    arguments = driver_arguments(plugin) if by_class else plugin.args
    container = {
        **_container("device-plugin", plugin.image, settings, _PLUGIN_CAPABILITIES),
        "env": [*pods.env(variables, plugin.env or []), _NODE_NAME],
        "volumeMounts": mounts,
    }
    if plugin.command is not None:
        container["command"] = plugin.command
    if arguments is not None:
        container["args"] = arguments
    pod = _pod(spec, container, volumes, settings)
    if by_class:
        # What a driver has is told to the API server, and not to the kubelet.
        pod |= {"automountServiceAccountToken": True, "serviceAccountName": settings.driver_service_account}
        children.append(device_class(accelerator, spec))
    if keep_off:
        elsewhere = {"key": names.LABEL_HOSTNAME, "operator": "NotIn", "values": sorted(keep_off)}
        terms = [{"matchExpressions": [elsewhere]}]
        pod["affinity"] = {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        }
    return [*children, _daemonset(metadata, pod)]


def _observer(
    accelerator: Object, spec: AcceleratorResourceSpec, observer: Observer, settings: Settings
) -> dict[str, Any]:
    volumes, mounts = _host([POD_RESOURCES_DIR], read_only={POD_RESOURCES_DIR})
    variables = {"RMA_RESOURCE_NAME": str(spec.resource_name), "RMA_ACCELERATOR": name_of(accelerator)}
    container = {
        **_container("device-observer", observer.image, settings, ()),
        "args": ["--observe", *(observer.args or [])],
        "env": [*pods.env(variables), _NODE_NAME],
        "volumeMounts": mounts,
    }
    name = f"device-observer-{name_of(accelerator)}"
    return _daemonset(
        _metadata(accelerator, name, names.ROLE_DEVICE_OBSERVER, settings), _pod(spec, container, volumes, settings)
    )


_NODE_NAME = {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}


def _metadata(accelerator: Object, name: str, role: str, settings: Settings) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": settings.system_namespace,
        "labels": pods.labels(role, **{names.LABEL_ACCELERATOR: name_of(accelerator)}),
        "ownerReferences": [owner_reference(accelerator, controller=True)],
    }


def _host(paths: Collection[str], read_only: Collection[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of directories of the host, and their mounts at the same paths."""
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for position, path in enumerate(paths):
        volumes.append({"name": f"host-{position}", "hostPath": {"path": path, "type": "DirectoryOrCreate"}})
        sealed = {"readOnly": True} if path in read_only else {}
        mounts.append({"name": f"host-{position}", "mountPath": path, **sealed})
    return volumes, mounts


def _container(name: str, image: str, settings: Settings, capabilities: Collection[str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.images.pull_policy,
        "ports": [{"name": "report", "containerPort": names.DEVICE_PLUGIN_PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "report"}, "periodSeconds": 2, "timeoutSeconds": 2},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "report"}, "periodSeconds": 10, "timeoutSeconds": 5},
        # It talks to the kubelet's sockets, which are root's: root, but with no capability that it does not need.
        "securityContext": {
            "runAsUser": 0,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], **({"add": list(capabilities)} if capabilities else {})},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _pod(
    spec: AcceleratorResourceSpec, container: dict[str, Any], volumes: list[dict[str, Any]], settings: Settings
) -> dict[str, Any]:
    return {
        **pods.pull_secrets(settings),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": "system-node-critical",
        "nodeSelector": dict(spec.node_selector),
        # A node that is short of something keeps its devices: whoever evicts pods must not evict what they stand on.
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": volumes,
    }


def _daemonset(metadata: dict[str, Any], pod: dict[str, Any]) -> dict[str, Any]:
    label = metadata["labels"]
    selecting = (names.LABEL_ACCELERATOR, names.LABEL_ROLE)
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": {key: label[key] for key in selecting}},
            # The old plugin goes once the new one serves, so that allocatable never dips; and a node where the new one
            # does not become ready keeps none of the others from it.
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "10%", "maxUnavailable": 0}},
            "template": {"metadata": {"labels": label, "annotations": {}}, "spec": pod},
        },
    }
