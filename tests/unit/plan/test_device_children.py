"""What runs on the nodes of a kind: its device plugin, or an observer beside the vendor's."""

from dataclasses import replace
from typing import Any

import pytest
from chain import SETTINGS
from rm_api import names
from rm_api.kinds import AcceleratorResourceSpec
from rm_operator.plan.device_children import device_children
from rm_operator.plan.model import Settings

Object = dict[str, Any]
RESOURCE = "acme.com/npu"
PLUGIN: Object = {
    "image": "acme/plugin:1",
    "args": ["--cost=$1"],
    "env": [{"name": "LEVEL", "value": "debug"}],
    "config": "devices: 4\n",
    "hostPaths": ["/var/lib/acme", "/var/lib/kubelet/device-plugins"],
}
OBSERVER: Object = {"image": "acme/plugin:1", "args": ["--vendor=acme"]}
NODE_NAME: Object = {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}


def _children(*, keep_off: tuple[str, ...] = (), settings: Settings = SETTINGS, **spec: Any) -> dict[str, Object]:
    """By kind."""
    accelerator: Object = {
        "apiVersion": names.API_VERSION,
        "kind": "AcceleratorResource",
        "metadata": {"name": "npu", "uid": "uid-npu", "generation": 2},
        "spec": {
            "type": "NPU",
            "vendor": "Acme",
            "product": "X1",
            "resourceName": RESOURCE,
            "runtime": {"plugin": "acme", "image": "acme/serve:1"},
            **spec,
        },
    }
    parsed = AcceleratorResourceSpec.model_validate(accelerator["spec"])
    made = device_children(accelerator, parsed, settings, keep_off=keep_off)
    assert len({child["kind"] for child in made}) == len(made)
    return {child["kind"]: child for child in made}


def _pod(children: dict[str, Object]) -> Object:
    return dict(children["DaemonSet"]["spec"]["template"]["spec"])


def _mounted(pod: Object) -> dict[str, tuple[str, bool]]:
    """(directory of the host, whether read-only) by where it is mounted."""
    volumes = {volume["name"]: volume["hostPath"] for volume in pod["volumes"] if "hostPath" in volume}
    assert {volume["type"] for volume in volumes.values()} == {"DirectoryOrCreate"}
    return {
        mount["mountPath"]: (volumes[mount["name"]]["path"], mount.get("readOnly", False))
        for mount in pod["containers"][0]["volumeMounts"]
        if mount["name"] in volumes
    }


def test_a_kind_that_asks_for_nothing_gets_nothing() -> None:
    assert _children() == {}


@pytest.mark.parametrize(
    ("spec", "name", "role"),
    [
        ({"devicePlugin": PLUGIN}, "device-plugin-npu", names.ROLE_DEVICE_PLUGIN),
        ({"observer": OBSERVER}, "device-observer-npu", names.ROLE_DEVICE_OBSERVER),
    ],
    ids=["plugin", "observer"],
)
def test_it_is_a_daemonset_of_the_system_namespace_that_the_operator_finds_and_asks(
    spec: Object, name: str, role: str
) -> None:
    daemonset = _children(nodeSelector={"npu": "yes"}, **spec)["DaemonSet"]
    metadata, template = daemonset["metadata"], daemonset["spec"]["template"]
    assert (metadata["name"], metadata["namespace"]) == (name, "system")
    assert metadata["ownerReferences"][0]["uid"] == "uid-npu"
    assert metadata["ownerReferences"][0]["controller"] is True
    labels = {names.LABEL_ROLE: role, names.LABEL_ACCELERATOR: "npu"}
    assert labels.items() <= template["metadata"]["labels"].items()
    assert daemonset["spec"]["selector"]["matchLabels"] == labels
    assert daemonset["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 0
    pod = template["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["nodeSelector"] == {"npu": "yes"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert "affinity" not in pod
    container = pod["containers"][0]
    assert container["env"][:2] == [
        {"name": "RMA_RESOURCE_NAME", "value": RESOURCE},
        {"name": "RMA_ACCELERATOR", "value": "npu"},
    ]
    assert container["env"][-1] == NODE_NAME
    assert container["ports"] == [{"name": "report", "containerPort": names.DEVICE_PLUGIN_PORT, "protocol": "TCP"}]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "report"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "report"}
    assert not container["securityContext"].get("privileged")
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


@pytest.mark.parametrize("spec", [{"devicePlugin": PLUGIN}, {"observer": OBSERVER}])
def test_its_image_is_pulled_with_what_the_installation_has_for_it(spec: Object) -> None:
    assert "imagePullSecrets" not in _pod(_children(**spec)), "nodes are not rolled for what they do not need"
    settings = replace(SETTINGS, images=replace(SETTINGS.images, pull_secrets=("acme",)))
    assert _pod(_children(settings=settings, **spec))["imagePullSecrets"] == [{"name": "acme"}]


def test_a_device_plugin_is_started_as_its_spec_says() -> None:
    container = _pod(_children(devicePlugin=PLUGIN))["containers"][0]
    assert (container["image"], container["args"]) == ("acme/plugin:1", ["--cost=$1"])
    assert "command" not in container
    assert {"name": "LEVEL", "value": "debug"} in container["env"]
    assert _pod(_children(devicePlugin={**PLUGIN, "command": ["/p"]}))["containers"][0]["command"] == ["/p"]


def test_a_device_plugin_has_each_directory_once_and_only_looks_at_pod_resources() -> None:
    assert _mounted(_pod(_children(devicePlugin=PLUGIN))) == {
        path: (path, read_only)
        for path, read_only in {
            "/var/lib/kubelet/device-plugins": False,
            "/var/lib/acme": False,
            "/var/lib/kubelet/pod-resources": True,
        }.items()
    }
    asked_for = {**PLUGIN, "hostPaths": ["/var/lib/kubelet/pod-resources"]}
    assert _mounted(_pod(_children(devicePlugin=asked_for)))["/var/lib/kubelet/pod-resources"][1] is False


def test_an_observer_writes_nothing_and_may_nothing() -> None:
    pod = _pod(_children(observer=OBSERVER))
    container = pod["containers"][0]
    assert container["args"] == ["--observe", "--vendor=acme"]
    assert _pod(_children(observer={"image": "i:1"}))["containers"][0]["args"] == ["--observe"]
    assert _mounted(pod) == {"/var/lib/kubelet/pod-resources": ("/var/lib/kubelet/pod-resources", True)}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "add" not in container["securityContext"]["capabilities"]


def test_another_configuration_is_taken_up_without_another_pod() -> None:
    def of(config: str | None) -> tuple[Object | None, Object]:
        made = _children(devicePlugin={**PLUGIN, "config": config})
        return made.get("ConfigMap", {}).get("data"), made["DaemonSet"]["spec"]["template"]

    data, template = of("devices: 4\n")
    assert data == {"config.yaml": "devices: 4\n"}
    (mount,) = [each for each in template["spec"]["containers"][0]["volumeMounts"] if each["name"] == "config"]
    # Not by subPath: the kubelet would never bring the change.
    assert mount == {"name": "config", "mountPath": "/etc/rma-device-plugin", "readOnly": True}
    assert {"name": "config", "configMap": {"name": "device-plugin-npu"}} in template["spec"]["volumes"]
    assert of("devices: 5\n") == ({"config.yaml": "devices: 5\n"}, template)
    data, without = of(None)
    assert data is None
    assert "config" not in [volume["name"] for volume in without["spec"]["volumes"]]


def test_a_device_plugin_keeps_off_nodes_that_are_somebody_elses() -> None:
    affinity = _pod(_children(devicePlugin=PLUGIN, keep_off=("b", "a")))["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["a", "b"]}]}
    assert "affinity" not in _pod(_children(observer=OBSERVER, keep_off=("a",)))
