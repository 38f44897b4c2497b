"""What the local cluster hands to its callers."""

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import LocalClusterError

Driver = Literal["existing", "kind", "node"]
Phase = Literal["Absent", "Starting", "Running", "Broken"]
Severity = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Cluster:
    """A cluster that can be used: how to reach it, and where its pods take images from.

    `image_registry_push` and `image_registry_pull` are `host:port[/path]` prefixes: where this machine pushes a built
    image, and how a pod names the same image. They are None for an existing cluster for which none was configured.
    `node_ip` is an address of the node that this machine reaches; `host_ip` one of this machine that pods reach.
    `audit_log` is the API server's log, one JSON event a line, where this package runs the API server.
    """

    name: str
    driver: Driver
    kubeconfig: Path
    kubectl: Path
    helm: Path
    image_registry_push: str | None = None
    image_registry_pull: str | None = None
    node_ip: str | None = None
    host_ip: str | None = None
    audit_log: Path | None = None
    node_exec: tuple[str, ...] | None = None

    def exec_in_node(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root among the node's processes, mounts and interfaces; output is captured as text.

        Raises LocalClusterError where the node cannot be entered, when `timeout` seconds pass, and, with `check`,
        when the command ends with anything but 0.
        """
        if self.node_exec is None:
            raise LocalClusterError(
                f"the node of cluster {self.name!r} cannot be entered: it was not made by this package"
            )
        try:
            done = subprocess.run(
                [*self.node_exec, *argv], check=False, input=stdin, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise LocalClusterError(f"{' '.join(argv)} in the node did not end within {timeout:g} s") from error
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise LocalClusterError(f"{' '.join(argv)} in the node ended with {done.returncode}: {said}")
        return done

    def to_json(self) -> str:
        """The cluster as JSON."""
        return json.dumps(dataclasses.asdict(self), default=str, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Cluster":
        """Read what `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        for key in ("kubeconfig", "kubectl", "helm", "audit_log"):
            data[key] = None if data[key] is None else Path(data[key])
        data["node_exec"] = None if data["node_exec"] is None else tuple(data["node_exec"])
        return cls(**data)


@dataclass(frozen=True)
class ComponentStatus:
    """One part of the cluster; `message` says why it is not healthy, or how it was found to be."""

    name: str
    healthy: bool
    message: str


@dataclass(frozen=True)
class Status:
    """What is there now. `cluster` is None when `up` has not run; `message` is one sentence for a person."""

    name: str
    phase: Phase
    message: str
    cluster: Cluster | None = None
    server: str | None = None
    components: tuple[ComponentStatus, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether the cluster runs and every part of it is well."""
        return self.phase == "Running" and all(component.healthy for component in self.components)


@dataclass(frozen=True)
class Finding:
    """One thing that doctor looked at. `fix` says what to do about a problem; a note stops nothing."""

    check: str
    severity: Severity
    message: str
    fix: str | None = None
