"""Devices of a test's own on a real kubelet: their plugin as the operator rolls it out, the pods that get them, and
what kubelet, API server and files say about it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from installation import Installed
from rm_cli.kubectl import CommandFailed, Kubectl, wait_until
from support_kubelet import SECONDS, Witness

_USER = 65532
_REVISION = "TESTS_REVISION"
# What a container sees of its devices is its first line of output, also after a restart of the kubelet.
_SHOW_AND_STAY = 'echo "$DEVICE_IDS"; exec sleep infinity'


@dataclass(frozen=True)
class Devices:
    """Simulated devices under a resource name of their own."""

    installed: Installed
    witness: Witness
    name: str
    plugin: Mapping[str, Any] = field(default_factory=dict)
    """The framework's settings."""

    @property
    def resource(self) -> str:
        """What pods request."""
        return f"kubelet.rm-abstract.io/{self.name}"

    @property
    def root(self) -> str:
        """The simulator's directory on the node."""
        return f"/var/lib/rma-simulator/{self.name}"

    def roll_out(self, devices: int, version: str = "1") -> None:
        """Has the operator roll the plugin out, or another one where something differs; returns when it is done."""
        revision = self.begin_to_roll_out(devices, version)
        wait_until(f"no DaemonSet of {self.name}", lambda: self.is_rolled_out(revision), timeout=SECONDS)

    def begin_to_roll_out(self, devices: int, version: str) -> str:
        """As `roll_out`, but returns at once; the revision to wait for."""
        system = self.installed.system
        (accelerator,) = self.installed.example("simulated-npu/accelerator.yaml")
        spec: Any = accelerator["spec"]
        config = json.dumps({"root": self.root, "devices": devices, "plugin": {"intervalSeconds": 0.5, **self.plugin}})
        revision = hashlib.sha256(f"{version} {config}".encode()).hexdigest()[:16]
        spec.update(vendor="Tests", resourceName=self.resource)
        spec["devicePlugin"].update(hostPaths=[self.root], config=config, env=[{"name": _REVISION, "value": revision}])
        system.apply({**accelerator, "metadata": {"name": self.name}})
        return revision

    def is_rolled_out(self, revision: str) -> bool:
        """Whether the plugin of this revision runs, and no other."""
        found = self.installed.system.get("daemonset", f"device-plugin-{self.name}")
        pods = self.plugin_pods()
        return (
            found is not None
            and found["status"]["desiredNumberScheduled"] == found["status"].get("numberAvailable") == len(pods) > 0
            and all({"name": _REVISION, "value": revision} in pod["spec"]["containers"][0]["env"] for pod in pods)
        )

    def remove(self) -> None:
        """Takes plugin and devices away."""
        self.exec("rm", "-rf", f"{self.root}/dev", f"{self.root}/driver", f"{self.root}/.lock")
        system = self.installed.system
        system.delete("accel", self.name)
        wait_until(f"plugins of {self.name} are left", lambda: not self.plugin_pods(), timeout=SECONDS)

    def plugin_pods(self) -> list[dict[str, Any]]:
        """Pods of the plugin, leaving ones too."""
        return self.installed.system.list(
            "pods", selector=f"rm-abstract.io/accelerator={self.name},rm-abstract.io/role=device-plugin"
        )

    def exec(self, *command: str) -> str:
        """stdout of a command in the plugin's container."""
        (pod,) = self.plugin_pods()
        return self.installed.system.run("exec", pod["metadata"]["name"], "--", *command)

    def set(self, *arguments: str) -> None:
        """Changes the simulated state, as ``rma-sim set`` can."""
        self.exec("rma-sim", "set", f"--root={self.root}", *arguments)

    def inject(self, action: str, device: str) -> None:
        """Does something to the device with this ID, as the simulator's fault hook can."""
        self.exec("python3", "-m", "rm_device_plugins.simulator_faults", f"--root={self.root}", action, device)

    def status(self) -> list[dict[str, Any]]:
        """What the driver says of each device, by index."""
        said = self.exec("rma-sim", "status", "--json", f"--driver-dir={self.root}/driver")
        devices: list[dict[str, Any]] = json.loads(said)["devices"]
        return devices

    def counts(self) -> tuple[int, int]:
        """Capacity and allocatable of the Node object; 0 where it does not know the resource."""
        status = Kubectl(self.installed.cluster).get("node", self.witness.node)["status"]  # type: ignore[index]
        return int(status["capacity"].get(self.resource, 0)), int(status["allocatable"].get(self.resource, 0))

    def wait_for(self, capacity: int, allocatable: int) -> None:
        """Waits until the Node object says so."""
        wait_until(
            f"{self.resource} of the node are {self.counts()}, and not {(capacity, allocatable)}",
            lambda: self.counts() == (capacity, allocatable),
            timeout=SECONDS,
        )

    def pod(self, name: str, *containers: int, **spec: Any) -> dict[str, Any]:
        """A pod as the restricted standard wants it, with a container for each number of devices."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"devices": self.name}},
            "spec": {**self.pod_spec(*containers), **spec},
        }

    def pod_spec(self, *containers: int) -> dict[str, Any]:
        """The spec of such a pod."""
        return {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": f"c{position}",
                    "image": self.installed.references["device-plugin"],
                    "command": ["sh", "-c", _SHOW_AND_STAY],
                    "resources": {"limits": {self.resource: str(count)}},
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
                for position, count in enumerate(containers)
            ],
        }


def start(kubectl: Kubectl, *pods: dict[str, Any]) -> None:
    """Creates pods and waits until they are Ready."""
    kubectl.run("wait", "--for=create", "serviceaccount/default", f"--timeout={SECONDS}s")
    kubectl.apply(*pods)
    names = [f"pod/{each['metadata']['name']}" for each in pods]
    try:
        kubectl.run("wait", "--for=condition=Ready", *names, f"--timeout={SECONDS}s", timeout=SECONDS + 10)
    except CommandFailed as error:
        error.add_note(kubectl.run("get", "pods,events", "--all-namespaces", "--output=wide"))
        raise


Holding = tuple[str, str]
"""Pod and container."""


def containers_of(pods: Sequence[dict[str, Any]], resource: str) -> dict[Holding, int]:
    """Containers of running pods that request the resource, and how much of it."""
    wanted: dict[Holding, int] = {}
    for pod in pods:
        if pod["status"]["phase"] == "Running":
            for container in pod["spec"]["containers"]:
                count = int(container["resources"].get("limits", {}).get(resource, 0))
                if count:
                    wanted[pod["metadata"]["name"], container["name"]] = count
    return wanted


def seen_in_containers(kubectl: Kubectl, devices: Devices) -> dict[Holding, set[str]]:
    """DEVICE_IDS as the containers see it."""
    lines = kubectl.run(
        "logs", f"--selector=devices={devices.name}", "--all-containers", "--prefix", "--tail=1",
        "--max-log-requests=200", "--ignore-errors",
    ).splitlines()  # fmt: skip
    seen = {}
    # Of a pod that was refused there is a complaint: it never had a container.
    for line in filter(lambda each: each.startswith("[pod/"), lines):
        source, ids = line.split(" ", 1)
        _, pod, container = source.strip("[]").split("/")
        seen[pod, container] = set(ids.split(","))
    return seen


def allocations(kubectl: Kubectl, devices: Devices) -> dict[Holding, set[str]]:
    """Which container has which devices, once all that requested some run.

    Asserts that the kubelet's list, its checkpoint and the containers agree, that each container has as many as it
    requested, and that no device is in two of them.
    """
    pods = kubectl.list("pods", selector=f"devices={devices.name}")
    uids = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in pods}
    wanted = containers_of(pods, devices.resource)
    said = devices.witness.holdings()
    ours = [each for each in said["listed"] if each["resource"] == devices.resource]
    assert {each["namespace"] for each in ours} <= {kubectl.namespace}
    lists = [((each["pod"], each["container"]), each["devices"]) for each in ours]
    kept = [
        ((uids[each["uid"]], each["container"]), each["devices"])
        for each in said["checkpointed"]
        if each["resource"] == devices.resource and each["uid"] in uids
    ]
    listed = {holder: set(ids) for holder, ids in lists}
    checkpointed = {holder: set(ids) for holder, ids in kept if holder in wanted}
    for source in (lists, [each for each in kept if each[0] in wanted]):
        given = [one for _, ids in source for one in ids]
        assert len(given) == len(set(given)), f"a device is in two containers: {source}"
    assert {holder: len(ids) for holder, ids in listed.items()} == wanted
    assert checkpointed == listed
    if wanted:
        seen = seen_in_containers(kubectl, devices)
        assert {holder: ids for holder, ids in seen.items() if holder in wanted} == listed
    return listed
