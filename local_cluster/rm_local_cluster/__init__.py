"""A real Kubernetes on this machine: one that the user names, one by kind, or a node of our own.

>>> from rm_local_cluster import up
>>> cluster = up()
>>> cluster.kubeconfig, cluster.image_registry_pull
"""

from .api import doctor, down, restart, status, up
from .errors import LocalClusterError
from .model import Cluster, ComponentStatus, Finding, Status

__all__ = [
    "Cluster",
    "ComponentStatus",
    "Finding",
    "LocalClusterError",
    "Status",
    "doctor",
    "down",
    "restart",
    "status",
    "up",
]
