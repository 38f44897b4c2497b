"""What the operator asks of an API server, whoever carries it there (``http.py``)."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

from rm_operator.kube.resources import Resource

Object = Mapping[str, Any]
"""An API object as decoded JSON. It is shared and must never be changed: copy what is to differ."""
Json = bytes | bytearray | msgspec.Raw
"""One JSON value. A ``Raw`` is a part of what it was read from, and keeps all of that in memory."""
Members = Mapping[str, msgspec.Raw]
"""The members of a JSON object, each as the JSON that it came in."""

Propagation = Literal["Background", "Foreground", "Orphan"]


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change. ``type`` is ADDED, MODIFIED, DELETED or BOOKMARK; a bookmark's object has a resourceVersion only."""

    type: str
    object: Members


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a collection's objects. The last part alone says at which version all of them are."""

    items: Sequence[Members]
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class ObjectList:
    """All objects of a collection at one ``resource_version``."""

    items: Sequence[dict[str, Any]]
    resource_version: str


class KubeClient(Protocol):
    """Every method raises :class:`rm_operator.kube.errors.ApiError`, and mutating ones ``NotLeader``."""

    async def get(
        self, resource: Resource, namespace: str | None, name: str, *, metadata_only: bool = False
    ) -> dict[str, Any]:
        """The live object, read past every cache. Raises NotFound."""
        ...

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> ObjectList:
        """The newest state of a collection (a quorum read, so it never goes back in time)."""
        ...

    def parts(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        inactivity_seconds: float = 75.0,
    ) -> AsyncGenerator[Part, None]:
        """The same while it comes, however large it is.

        Nothing is repeated: raises Unreachable if it breaks off, Silent if nothing comes for ``inactivity_seconds``.
        """
        ...

    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        inactivity_seconds: float = 75.0,
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes after ``resource_version`` until the server ends the stream.

        Raises Gone if the version is too old, Unreachable if the stream breaks, Silent if neither an event nor a
        bookmark comes for ``inactivity_seconds``.
        """
        ...

    async def apply(
        self,
        resource: Resource,
        obj: Object,
        *,
        field_manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        """Server-side apply of ``obj``, the full intent of ``field_manager``; returns the object as it is then.

        ``metadata.uid`` and ``metadata.resourceVersion`` in ``obj`` are preconditions (Conflict). An object that does
        not exist is created, whatever its resourceVersion; with a uid it is not.
        """
        ...

    async def apply_status(self, resource: Resource, obj: Object, status: Object) -> dict[str, Any]:
        """Server-side apply of the whole status of ``obj``, if it still is what ``obj`` says (uid, resourceVersion).

        Fields that an earlier status had and this one lacks are removed. Raises Conflict if it has changed since.
        """
        ...

    async def create(self, resource: Resource, obj: Object, *, field_manager: str) -> dict[str, Any]:
        """Create ``obj``. Raises AlreadyExists."""
        ...

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Propagation = "Background",
    ) -> bool:
        """Delete an object; False if it was not there. Raises Conflict if it is not the one (uid, version) meant."""
        ...
