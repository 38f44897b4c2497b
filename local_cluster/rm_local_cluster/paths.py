"""Where the local cluster keeps its files: a cache that may be deleted at any time, and the state of a running
cluster.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import LocalClusterError

DEFAULT_NAME = "rma"
_NAME = re.compile(r"[a-z][a-z0-9]{0,9}")


def cache_root() -> Path:
    """The directory of everything that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rm-abstract"


def state_root() -> Path:
    """The directory of running clusters: beside the cache unless XDG_STATE_HOME names another place."""
    state_home = os.environ.get("XDG_STATE_HOME")
    return Path(state_home) / "rm-abstract" if state_home else cache_root()


def binaries_root() -> Path:
    """The directory of the binaries that were built."""
    return cache_root() / "bin"


def nodes_root() -> Path:
    """The directory of all nodes' state, one directory a name."""
    return state_root() / "node"


def cluster_name(name: str | None = None) -> str:
    """The cluster's name: the argument, else RM_LOCAL_CLUSTER_NAME, else `rma`.

    It becomes part of interface and cgroup names, hence the narrow alphabet. Raises LocalClusterError for any other
    name.
    """
    chosen = name or os.environ.get("RM_LOCAL_CLUSTER_NAME") or DEFAULT_NAME
    if not _NAME.fullmatch(chosen):
        raise LocalClusterError(
            f"cluster name {chosen!r} is not usable: a lower-case letter, then at most 9 lower-case letters or digits"
        )
    return chosen


@dataclass(frozen=True)
class NodePaths:
    """The files of one cluster by name. `root` goes away with `down`, `images` stays for the next `up`."""

    name: str

    @property
    def root(self) -> Path:
        """The running node's files."""
        return nodes_root() / self.name

    @property
    def lock(self) -> Path:
        """Held by whoever starts or ends the cluster."""
        return nodes_root() / f"{self.name}.lock"

    @property
    def chosen(self) -> Path:
        """What `up` returned last under this name, as JSON, whatever drives it."""
        return nodes_root() / f"{self.name}.json"

    @property
    def outside(self) -> Path:
        """There while the machine has rules that let the node reach the outside."""
        return nodes_root() / f"{self.name}.outside"

    @property
    def cluster(self) -> Path:
        """The node's cluster as JSON; there once the node was brought up to its end."""
        return self.root / "cluster.json"

    @property
    def owner(self) -> Path:
        """Process id and start time of the node's supervisor, as JSON."""
        return self.root / "owner.json"

    @property
    def spec(self) -> Path:
        """What the supervisor runs, as JSON."""
        return self.root / "spec.json"

    @property
    def report(self) -> Path:
        """What the supervisor last said about itself, as JSON."""
        return self.root / "report.json"

    @property
    def restart_request(self) -> Path:
        """Names the component that the supervisor is to restart; it removes the file when that is done."""
        return self.root / "restart"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.root / "admin.kubeconfig"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.root / "pki"

    @property
    def config(self) -> Path:
        """The components' configuration."""
        return self.root / "config"

    @property
    def logs(self) -> Path:
        """One log a component, and the supervisor's."""
        return self.root / "logs"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log, one JSON event a line."""
        return self.logs / "audit.log"

    @property
    def images(self) -> Path:
        """The node's image store and image registry."""
        return cache_root() / "images" / self.name
