"""What the session-wide fixture `installed` hands to tests."""

from dataclasses import dataclass

from rm_cli import release
from rm_cli.kubectl import Kubectl
from rm_local_cluster import Cluster


@dataclass(frozen=True)
class Installed:
    """RM Abstract in the cluster, as `make demo` installs it."""

    cluster: Cluster
    references: release.References

    @property
    def system(self) -> Kubectl:
        """kubectl in the system namespace."""
        return Kubectl(self.cluster, release.SYSTEM_NAMESPACE)

    def example(self, name: str) -> list[dict[str, object]]:
        """Objects of an example, with the images that were built here."""
        return release.example(name, self.references)
