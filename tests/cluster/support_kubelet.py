"""A real kubelet in tests: a witness on its node, every state of its Node object, and its restart, alone or with all
that the node runs.
"""

import contextlib
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rm_local_cluster
from installation import Installed
from rm_cli.kubectl import CommandFailed, Kubectl, wait_until
from rm_local_cluster import Cluster

SECONDS = 120
"""How long a test waits for a condition before it says that it does not come."""
WITNESS = "kubelet-witness"
_MARK = "tests.rm-abstract.io/mark"


def say(line: str) -> None:
    """Tells a measurement to whoever watches the tests, which is no matter of passing or failing."""
    os.write(2, f"{line}\n".encode())


@dataclass(frozen=True)
class Witness:
    """The pod that asks the kubelet itself."""

    system: Kubectl
    node: str

    @classmethod
    def start(cls, installed: Installed) -> "Witness":
        """Starts the pod anew."""
        system = installed.system
        text = (Path(__file__).parent / "kubelet_witness.py").read_text()
        metadata = {"name": WITNESS}
        paths = {"pod-resources": "/var/lib/kubelet/pod-resources", "plugins": "/var/lib/kubelet/device-plugins"}
        pod = {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "witness",
                    "image": installed.references["device-plugin"],
                    "command": ["python3", "/witness/witness.py", "watch"],
                    "securityContext": {"runAsUser": 0},
                    "volumeMounts": [
                        {"name": "witness", "mountPath": "/witness"},
                        *({"name": name, "mountPath": path, "readOnly": True} for name, path in paths.items()),
                    ],
                }
            ],
            "volumes": [
                {"name": "witness", "configMap": {"name": WITNESS}},
                *({"name": name, "hostPath": {"path": path}} for name, path in paths.items()),
            ],
        }
        system.delete("pod", WITNESS)
        system.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"witness.py": text}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod},
        )
        system.run("wait", "--for=condition=Ready", f"pod/{WITNESS}", f"--timeout={SECONDS}s", timeout=SECONDS + 10)
        return cls(system, system.run("get", "pod", WITNESS, "-o", "jsonpath={.spec.nodeName}"))

    def stop(self) -> None:
        """Removes the pod and its script."""
        self.system.delete("pod", WITNESS)
        self.system.delete("configmap", WITNESS)

    def holdings(self) -> dict[str, list[dict[str, Any]]]:
        """What containers have, as the kubelet lists it (``listed``) and has written it down (``checkpointed``)."""
        said: dict[str, list[dict[str, Any]]] = json.loads(
            self.system.run("exec", WITNESS, "--", "python3", "/witness/witness.py", "holdings")
        )
        return said

    def wait_for_kubelet(self) -> None:
        """Waits until a kubelet that has just started knows its pods again."""

        def known() -> bool:
            try:
                return bool(self.changes())
            except CommandFailed:
                return False

        wait_until("the kubelet does not know its pods", known, timeout=SECONDS)

    def changes(self) -> list[dict[str, Any]]:
        """Every change so far: ``at``, ``kubelet`` (when its socket was made), ``allocatable`` (None: no answer)."""
        return [json.loads(line) for line in self.system.run("logs", WITNESS).splitlines()]


@dataclass
class NodeWatch:
    """Every state of the Node object while it is open."""

    kubectl: Kubectl
    node: str
    states: list[tuple[dict[str, str], dict[str, str], dict[str, str]]] = field(default_factory=list)
    """(annotations, capacity, allocatable), in order."""

    @contextlib.contextmanager
    def open(self) -> Iterator["NodeWatch"]:
        """Watches from before the body to after it: a change that is made at the end is awaited."""
        cluster = self.kubectl.cluster
        parts = '[{.metadata.annotations},{.status.capacity},{.status.allocatable}]{"\\n"}'
        command = [
            str(cluster.kubectl), "--kubeconfig", str(cluster.kubeconfig),
            "get", "node", self.node, "--watch", f"--output=jsonpath={parts}",
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            reader = threading.Thread(target=self._read, args=[process.stdout])
            reader.start()
            try:
                wait_until("the watch of the node does not begin", lambda: self.states, timeout=SECONDS)
                yield self
                mark = secrets.token_hex(4)
                self.kubectl.run("annotate", "--overwrite", "node", self.node, f"{_MARK}={mark}")
                wait_until("the watch of the node ended", lambda: self._marked(mark), timeout=SECONDS)
            finally:
                process.terminate()
                reader.join()
                self.kubectl.run("annotate", "node", self.node, f"{_MARK}-")

    def _read(self, lines: Any) -> None:
        for line in lines:
            annotations, capacity, allocatable = json.loads(line)
            self.states.append((annotations, capacity, allocatable))

    def _marked(self, mark: str) -> bool:
        return self.states[-1][0].get(_MARK) == mark

    def counts(self, resource: str) -> list[tuple[int, int]]:
        """Capacity and allocatable in each state."""
        return [(int(has.get(resource, 0)), int(can.get(resource, 0))) for _, has, can in self.states]


def restart_kubelet(cluster: Cluster) -> None:
    """Kills the kubelet as a crash would, and starts it again."""
    if cluster.driver == "node":
        rm_local_cluster.restart("kubelet", progress=lambda _: None)
    else:
        cluster.exec_in_node(["systemctl", "restart", "kubelet"])


def kill(cluster: Cluster, container_id: str) -> None:
    """Kills all processes of a container, as the kernel does where memory is short."""
    cluster.exec_in_node(["sh", "-c", _KILL, "kill", container_id.rpartition("/")[2]])


# Some of them, such as a status tool's, end by themselves meanwhile.
_KILL = 'for pid in $(grep -ls "$1" /proc/[0-9]*/cgroup | cut -d/ -f3); do kill -KILL "$pid" || true; done'
_POWER_CUT = """
kill -STOP $(grep -lsx kubelet /proc/[0-9]*/comm | cut -d/ -f3)
for pid in $(grep -ls -e containerd-shim /proc/[0-9]*/comm -e kubepods /proc/[0-9]*/cgroup | cut -d/ -f3); do
  kill -KILL "$pid" || true
done
rm -f /var/lib/kubelet/device-plugins/*.sock
"""


def reboot(cluster: Cluster) -> None:
    """Ends everything that pods run, at once and without the kubelet's knowledge, and starts container runtime and
    kubelet again; what they have on disk stays. For a node of our own.
    """
    cluster.exec_in_node(["sh", "-c", _POWER_CUT])
    for component in ("containerd", "kubelet"):
        rm_local_cluster.restart(component, progress=lambda _: None)
