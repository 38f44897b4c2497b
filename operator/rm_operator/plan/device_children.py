"""What the operator runs on the nodes of a kind of accelerator."""

import hashlib
from typing import Any

from rm_api import names
from rm_api.kinds import AcceleratorResourceSpec

from rm_operator.plan import pods
from rm_operator.plan.model import Object, Settings, name_of, owner_reference

KUBELET_PLUGIN_DIR = "/var/lib/kubelet/device-plugins"
CONFIG_DIR = "/etc/rma-device-plugin"


def device_children(accelerator: Object, spec: AcceleratorResourceSpec, settings: Settings) -> list[dict[str, Any]]:
    """DaemonSet of the kind's device plugin and the ConfigMap of its configuration; none where it has no plugin."""
    plugin = spec.device_plugin
    if plugin is None:
        return []
    name = f"device-plugin-{name_of(accelerator)}"
    label = pods.labels(names.ROLE_DEVICE_PLUGIN, **{names.LABEL_ACCELERATOR: name_of(accelerator)})
    metadata = {
        "name": name,
        "namespace": settings.system_namespace,
        "labels": label,
        "ownerReferences": [owner_reference(accelerator, controller=True)],
    }
    # A directory that is named twice is mounted once: the API server refuses two mounts at one path.
    host_paths = list(dict.fromkeys([KUBELET_PLUGIN_DIR, *plugin.host_paths]))
    volumes: list[dict[str, Any]] = [
        {"name": f"host-{position}", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
        for position, path in enumerate(host_paths)
    ]
    mounts = [{"name": f"host-{position}", "mountPath": path} for position, path in enumerate(host_paths)]
    children: list[dict[str, Any]] = []
    annotations = {}
    if plugin.config is not None:
        children.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.yaml": plugin.config}}
        )
        volumes.append({"name": "config", "configMap": {"name": name}})
        mounts.append({"name": "config", "mountPath": CONFIG_DIR, "readOnly": True})  # type: ignore[dict-item]
        annotations[f"{names.GROUP}/config-hash"] = hashlib.sha256(plugin.config.encode()).hexdigest()[:16]
    container: dict[str, Any] = {
        "name": "device-plugin",
        "image": plugin.image,
        "imagePullPolicy": settings.images.pull_policy,
        "env": pods.env(
            {"RMA_RESOURCE_NAME": str(spec.resource_name), "RMA_ACCELERATOR": name_of(accelerator)}, plugin.env or []
        ),
        "volumeMounts": mounts,
        "ports": [{"name": "report", "containerPort": names.DEVICE_PLUGIN_PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "report"}, "periodSeconds": 2, "timeoutSeconds": 2},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "report"}, "periodSeconds": 10, "timeoutSeconds": 5},
        # It talks to the kubelet and to device nodes: root, but without any capability that it does not need.
        "securityContext": {
            "runAsUser": 0,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["MKNOD", "CHOWN", "FOWNER", "DAC_OVERRIDE"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if plugin.command is not None:
        container["command"] = plugin.command
    if plugin.args is not None:
        container["args"] = plugin.args
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": "system-node-critical",
        "nodeSelector": dict(spec.node_selector),
        # A node that is short of something keeps its devices: whoever evicts pods must not evict what they stand on.
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": volumes,
    }
    children.append(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata,
            "spec": {
                "selector": {
                    "matchLabels": {
                        names.LABEL_ACCELERATOR: name_of(accelerator),
                        names.LABEL_ROLE: names.ROLE_DEVICE_PLUGIN,
                    }
                },
                # The old plugin goes once the new one serves, so that allocatable never dips.
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {"metadata": {"labels": label, "annotations": annotations}, "spec": pod},
            },
        }
    )
    return children
