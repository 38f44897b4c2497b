"""What a kind has whose devices pods request by class: the DeviceClass, and how the driver on its nodes is run.

The driver serves one kind of device, so its name is made of the kind's: kinds of one vendor that meet on a node do not
take each other's place, and the class has what its driver publishes.
"""

import hashlib
from typing import Any, Final

from rm_api import names
from rm_api.kinds import AcceleratorResourceSpec
from rm_api.kinds.accelerator_resource import DevicePlugin

from rm_operator.plan import pods
from rm_operator.plan.model import Object, name_of, owner_reference

REGISTRY_DIR: Final = "/var/lib/kubelet/plugins_registry"
PLUGINS_DIR: Final = "/var/lib/kubelet/plugins"
CDI_DIR: Final = "/var/run/cdi"
ENV_DRIVER: Final = "RMA_DRA_DRIVER"
_MAX_DRIVER: Final = 60


def driver_name(accelerator: Object) -> str:
    """The DRA driver of a kind: a DNS domain that is unique for it."""
    name, suffix = name_of(accelerator), f".{names.GROUP}"
    room = _MAX_DRIVER - len(suffix)
    if len(name) > room:
        name = f"{name[: room - 9].rstrip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name + suffix


def driver_paths(accelerator: Object) -> list[str]:
    """Directories of the host by which kubelet and container runtime find the driver."""
    return [REGISTRY_DIR, f"{PLUGINS_DIR}/{driver_name(accelerator)}", CDI_DIR]


def driver_arguments(plugin: DevicePlugin) -> list[str]:
    """Arguments of the driver. What has a command of its own is no program of ours, and is told nothing more."""
    return [*(["--dra"] if plugin.command is None else []), *(plugin.args or [])]


def device_class(accelerator: Object, spec: AcceleratorResourceSpec) -> dict[str, Any]:
    """The DeviceClass of a kind whose driver the operator rolls out."""
    assert spec.device_plugin is not None
    extended = spec.device_plugin.extended_resource_name
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {
            "name": str(spec.device_class_name),
            "labels": pods.labels(names.ROLE_DEVICE_PLUGIN, **{names.LABEL_ACCELERATOR: name_of(accelerator)}),
            "ownerReferences": [owner_reference(accelerator, controller=True)],
        },
        "spec": {
            "selectors": [{"cel": {"expression": f"device.driver == '{driver_name(accelerator)}'"}}],
            **({"extendedResourceName": extended} if extended is not None else {}),
        },
    }
