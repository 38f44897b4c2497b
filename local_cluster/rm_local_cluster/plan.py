"""What a node is made from, and writing its configuration files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import kubeconfig
from .network import Addresses
from .paths import NodePaths
from .pki import Authority

REGISTRY_PORT = 5000
API_PORT = 6443
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Where the controller manager makes the directories of volumes; the path is fixed in it.
VOLUMES = "/tmp/hostpath_pv"  # noqa: S108
# Where device plugins of simulated hardware keep what would be the node's devices and driver.
SIMULATED_HARDWARE = "/var/lib/rma-simulator"
# Where the node sees other directories than this machine.
PRIVATE = ("/run", "/sys", "/proc", "/var/log", "/var/lib/kubelet", "/var/lib/cni", VOLUMES, SIMULATED_HARDWARE)


@dataclass(frozen=True)
class NodePlan:
    """What a node is made from.

    `binaries` are paths by name; `archives` hold images to import before the kubelet starts; `may_lower_oom_score`
    says whether processes here can protect themselves from the out-of-memory killer; `cgroup_version` is 1 or 2.
    """

    paths: NodePaths
    addresses: Addresses
    binaries: Mapping[str, Path]
    archives: tuple[Path, ...]
    cni_directory: Path
    may_lower_oom_score: bool
    cgroup_version: int

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.addresses.node}:{API_PORT}"

    @property
    def registry(self) -> str:
        """The `host:port` of the node's image registry."""
        return f"{self.addresses.node}:{REGISTRY_PORT}"

    def write_config(self, name: str, document: Mapping[str, Any]) -> Path:
        """Write a YAML file among the node's configuration."""
        path = self.paths.config / name
        path.write_text(yaml.safe_dump(dict(document), sort_keys=False), encoding="utf-8")
        return path

    def write_client(self, authority: Authority, component: str, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Issue a certificate for a component, and write the kubeconfig with which it reaches the API server."""
        pair = authority.issue(component, user, groups=groups)
        path = self.paths.config / f"{component}.kubeconfig"
        return kubeconfig.write(path, self.paths.name, self.server, authority.pair.certificate, pair)
