"""What planning takes and gives: frozen values, no clock, no I/O.

A planner is a function ``plan(snapshot, now) -> Plan``: total (it raises for no input that the API server admits)
and deterministic. The controllers gather the snapshot and carry the plan out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from rm_api import names

from rm_operator.plan.placement.request import PlacementResult

Object = Mapping[str, Any]
"""An API object as the API server returned it. Never changed after it was read."""


class SharedIntent(dict[str, Any]):
    """The intent for a child, the same object in many plans: what is derived from it need not be derived anew."""


@dataclass(frozen=True)
class Deletion:
    """An object to delete, only if it is still the one that was looked at."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class Protection:
    """A finalizer of ours, by which an object does not go before its time: to be put there, or to be taken off."""

    api_version: str
    kind: str
    name: str
    uid: str
    present: bool
    resource_version: str | None = None
    """Only if the object is still at this version; None for whatever version."""
    namespace: str | None = None
    finalizer: str = names.FINALIZER_IN_USE


@dataclass(frozen=True)
class Regarding:
    """An object that an event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class PlannedEvent:
    """An event on a transition; the recorder drops repetitions."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    about: Regarding | None = None
    """None for the object that was decided on."""


@dataclass(frozen=True)
class Plan:
    """What to do about one object: children, deletions, then the status, unless that must come first."""

    apply: tuple[dict[str, Any], ...] = ()
    """Children in full intent, for server-side apply."""
    delete: tuple[Deletion, ...] = ()
    status: dict[str, Any] | None = None
    """The whole status; None leaves it."""
    status_first: bool = False
    """Write the status before the children, because the children must not exist without it."""
    protect: tuple[Protection, ...] = ()
    """Written before the children, which rest on what is protected."""
    forget: str | None = None
    """Repository that the store is told to forget, before anything else is done."""
    events: tuple[PlannedEvent, ...] = ()
    requeue_after: float | None = None
    """Seconds until the object is looked at again though nothing changes."""
    replacing: tuple[str, int] | None = None
    """An accelerator, and the devices of the pods that are asked for there while some are to take over from others."""
    cleared: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Of what is deleted, pods that kubelets had refused: how many, by resource and the kubelet's reason."""
    devices: tuple[str, int] | None = None
    """An accelerator, and the devices of it that a Job in ``apply`` takes, for those who keep count of devices."""
    placement: PlacementResult | None = None
    """Where a deployment was placed, for those who keep count of devices; None where nothing was decided."""


@dataclass(frozen=True)
class Images:
    """Our own images, as the chart configured them."""

    runtime: str
    launcher: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Secrets of the system namespace by which nodes pull images of pods there."""


@dataclass(frozen=True)
class ImageVolumes:
    """How nodes take artifacts from the store, to mount them into serving pods."""

    host: str
    """host:port of the store as nodes reach it."""
    pull_secret: str = ""
    """Secret with registry credentials, which each namespace that serves has; empty where the store asks for none."""


@dataclass(frozen=True)
class StoreConfig:
    """The artifact store as pods reach it."""

    host: str
    """host:port."""
    plain_http: bool
    ca: str = ""
    """Its certificate authorities as PEM; empty for those that every system knows."""
    token_audience: str = ""
    """Audience of the ServiceAccount tokens that its token service takes; empty where it has none."""
    image_volumes: ImageVolumes | None = None
    """None where an init container fetches an artifact."""


@dataclass(frozen=True)
class RemoteConfig:
    """What proxies before endpoints outside the cluster run with."""

    image: str = ""
    """The operator's own image."""
    service_account: str = "rm-abstract-remote-proxy"
    """ServiceAccount of the system namespace that may ask the API server whose tokens are."""
    tls_secret: str = ""
    """Secret of the system namespace with ``tls.crt`` and ``tls.key`` for ``*.NAMESPACE.svc``; empty for plain HTTP."""
    ca: str = ""
    """Certificate authorities, as PEM, by which serving pods know the proxy; empty for those of the system."""
    ca_config_map: str = ""
    """ConfigMap of the system namespace whose ``ca.crt`` the proxy believes of endpoints; empty for the system's."""


@dataclass(frozen=True)
class Retention:
    """How long artifacts without users are kept."""

    unused_seconds: int = 30 * 86400
    quota_bytes: int | None = None
    """Bytes that the artifacts of a namespace may take before those without users go; None for any number."""
    orphan_days: int = 0
    """Days after which goes what the store has and no object names; 0 for never."""


@dataclass(frozen=True)
class Settings:
    """What planners know of the installation."""

    images: Images
    store: StoreConfig
    system_namespace: str
    cluster_domain: str = "cluster.local"
    driver_service_account: str = "rm-abstract-device-driver"
    """ServiceAccount, in that namespace, of drivers that tell the API server of devices."""
    host_isa: str = "x86_64"
    remote: RemoteConfig = RemoteConfig()
    """Proxies before endpoints outside the cluster."""
    retention: Retention = Retention()
    """Of artifacts that nobody uses."""
    builds_per_namespace: int = 4
    """Builds that may run at a time in one namespace."""
    builds_namespace: str = ""
    """Namespace of artifacts that all namespaces share; empty where nothing is shared."""
    node_cache: str = ""
    """host:port under which pods reach the weights cache of their node; empty where nodes have none."""
    hf_endpoint: str = ""
    """URL of the hub that hf:// means; empty for the public one."""
    native_logs: bool = True
    """Engines' lines pass as they are; otherwise they are put in the format of the launcher's own."""


def name_of(obj: Object) -> str:
    """metadata.name."""
    return str(obj["metadata"]["name"])


def namespace_of(obj: Object) -> str:
    """metadata.namespace, empty for cluster-scoped objects."""
    return str(obj["metadata"].get("namespace", ""))


def uid_of(obj: Object) -> str:
    """metadata.uid."""
    return str(obj["metadata"].get("uid", ""))


def labels_of(obj: Object) -> Mapping[str, str]:
    """metadata.labels."""
    return obj["metadata"].get("labels") or {}


def is_deleting(obj: Object) -> bool:
    """True once somebody has asked for the object's deletion."""
    return "deletionTimestamp" in obj["metadata"]


def is_controlled_by(child: Object, owner: Object) -> bool:
    """True if ``owner`` is among the owners of ``child``."""
    return any(reference["uid"] == uid_of(owner) for reference in child["metadata"].get("ownerReferences") or [])


def owner_reference(obj: Object, *, controller: bool) -> dict[str, Any]:
    """A reference that lets the garbage collector remove a child with ``obj``."""
    reference: dict[str, Any] = {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": name_of(obj),
        "uid": uid_of(obj),
    }
    if controller:
        reference |= {"controller": True, "blockOwnerDeletion": True}
    return reference


def deletion_of(obj: Object) -> Deletion:
    """Deletes exactly this object."""
    return Deletion(obj["apiVersion"], obj["kind"], namespace_of(obj), name_of(obj), uid_of(obj))


def to_timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with seconds, as Kubernetes writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_timestamp(text: str) -> datetime:
    """The moment of an RFC 3339 timestamp."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def moment_of(text: str | None) -> datetime | None:
    """The time that a status says; None where it says none, or what is no time."""
    try:
        return None if text is None else from_timestamp(text)
    except ValueError:
        return None
