"""The kinds the operator reads and writes, and where the API server serves them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rm_api import kinds
from rm_api.crd import KindInfo
from rm_api.names import GROUP, VERSION


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind at one version: what is needed to build its paths."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """Value of an object's ``apiVersion``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def name(self) -> str:
        """Plural with the group, as in ``deployments.apps``; for messages and metrics."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Path below the server's address: of one object, or of a collection when ``name`` is None.

        A collection of a namespaced kind without ``namespace`` is that of all namespaces. Raises ValueError for an
        object of a namespaced kind without namespace.
        """
        parts = ["", "apis", self.group, self.version] if self.group else ["", "api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        elif self.namespaced and name is not None:
            raise ValueError(f"{self.kind} {name!r} needs a namespace")
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


def of_kind(info: KindInfo) -> Resource:
    """The resource of one of our own kinds."""
    return Resource(GROUP, VERSION, info.plural, info.kind, info.namespaced)


ACCELERATOR_RESOURCES: Final = of_kind(kinds.ACCELERATOR_RESOURCE)
BUILD_PROFILES: Final = of_kind(kinds.BUILD_PROFILE)
BUILD_ARTIFACTS: Final = of_kind(kinds.BUILD_ARTIFACT)
MODEL_DEPLOYMENTS: Final = of_kind(kinds.MODEL_DEPLOYMENT)
CUSTOM: Final = (ACCELERATOR_RESOURCES, BUILD_PROFILES, BUILD_ARTIFACTS, MODEL_DEPLOYMENTS)

DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment", True)
DAEMONSETS: Final = Resource("apps", "v1", "daemonsets", "DaemonSet", True)
CONTROLLERREVISIONS: Final = Resource("apps", "v1", "controllerrevisions", "ControllerRevision", True)
JOBS: Final = Resource("batch", "v1", "jobs", "Job", True)
PODS: Final = Resource("", "v1", "pods", "Pod", True)
NODES: Final = Resource("", "v1", "nodes", "Node", False)
SERVICES: Final = Resource("", "v1", "services", "Service", True)
CONFIGMAPS: Final = Resource("", "v1", "configmaps", "ConfigMap", True)
ENDPOINTSLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", True)
HORIZONTALPODAUTOSCALERS: Final = Resource(
    "autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", True
)
DEVICE_CLASSES: Final = Resource("resource.k8s.io", "v1", "deviceclasses", "DeviceClass", False)
RESOURCE_SLICES: Final = Resource("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", False)
RESOURCE_CLAIMS: Final = Resource("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim", True)
EVENTS: Final = Resource("events.k8s.io", "v1", "events", "Event", True)
SERVER_VERSION: Final = Resource("", "", "version", "Version", False)
"""Not a kind: what the server says of itself."""
TOKEN_REVIEWS: Final = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", False)
"""Not kept by the server: a question, and its answer."""
SECRETS: Final = Resource("", "v1", "secrets", "Secret", True)
"""Read by what renews certificates, and never by the operator."""
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease", True)

ALL: Final = (
    *CUSTOM,
    DEPLOYMENTS,
    DAEMONSETS,
    CONTROLLERREVISIONS,
    JOBS,
    PODS,
    NODES,
    SERVICES,
    CONFIGMAPS,
    ENDPOINTSLICES,
    HORIZONTALPODAUTOSCALERS,
    DEVICE_CLASSES,
    RESOURCE_SLICES,
    RESOURCE_CLAIMS,
    EVENTS,
    LEASES,
)
_BY_KIND: Final = {(resource.api_version, resource.kind): resource for resource in ALL}


def resource_of(obj: Mapping[str, Any]) -> Resource:
    """The resource of an object, by its apiVersion and kind. Raises KeyError naming them if the operator knows none."""
    api_version, kind = obj["apiVersion"], obj["kind"]
    try:
        return _BY_KIND[api_version, kind]
    except KeyError:
        raise KeyError(
            f"no resource is known for {kind} of {api_version}; add it to rm_operator.kube.resources"
        ) from None
