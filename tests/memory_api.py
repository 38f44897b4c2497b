"""An API server in memory, for tests and benchmarks that run the operator's controllers without the wire.

``MemoryApi`` keeps objects as an API server does: server-side apply by manager, uids, generations, preconditions,
finalizers. It answers at once. Objects are never changed, only replaced, so everybody may keep them.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from rm_operator.kube.errors import AlreadyExists, Conflict, Invalid, NotFound
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import Resource
from rm_operator.plan.model import to_timestamp

Object = dict[str, Any]
ObjectKey = tuple[str, str, str]
"""(kind, namespace, name); the namespace of a cluster-scoped object is empty."""


class MemoryApi:
    """A ``KubeClient`` over objects in memory. Answers at once, so its coroutines never wait."""

    def __init__(self, uid: Callable[[int], str] = "uid-{}".format) -> None:
        self._uid = uid
        """Makes the uid of what comes to be at a version."""
        self.requests = 0
        """What the operator has asked, to read or to write."""
        self.objects: dict[ObjectKey, Object] = {}
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.version = 0
        self.changes: list[tuple[str, Object]] = []
        """Every change: ADDED, MODIFIED or DELETED, and the object as it was then."""
        self.created: Counter[ObjectKey] = Counter()
        self.deleted: Counter[ObjectKey] = Counter()
        self.writes = 0
        """Requests of the operator that changed something."""
        self.first_writes: set[int] = set()
        """Numbers of those of them before which the operator had come to rest."""
        self.at_rest = True
        self.on_write: Callable[[Callable[[], None]], None] | None = None
        """Stands between the operator and its effective writes; may refuse to pass one on, or keep it for later."""
        self._intents: dict[tuple[ObjectKey, str], Object] = {}

    def fork(self) -> "MemoryApi":
        """Another one in the same state, with a history of its own."""
        other = copy.copy(self)
        other.__dict__ |= {name: copy.copy(self.__dict__[name]) for name in ("objects", "_intents")}
        other.__dict__ |= {
            "changes": [],
            "created": Counter(),
            "deleted": Counter(),
            "writes": 0,
            "first_writes": set(),
        }
        return other

    # What the operator asks.

    async def get(self, resource: Resource, namespace: str | None, name: str, *, metadata_only: bool = False) -> Object:
        self.requests += 1
        obj = self.objects.get((resource.kind, namespace or "", name))
        if obj is None:
            raise NotFound(404, "NotFound", f"{resource.kind} {name}")
        kept = ("apiVersion", "kind", "metadata")
        return {key: obj[key] for key in kept} if metadata_only else obj

    async def apply(
        self,
        resource: Resource,
        obj: Mapping[str, Any],
        *,
        field_manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> Object:
        self.requests += 1
        answer: list[Object] = []
        intent = dict(obj)
        self._as_operator(lambda: answer.append(self.patch(intent, field_manager, subresource)))
        return answer[-1]

    apply_status = HttpClient.apply_status

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str = "Background",
    ) -> bool:
        self.requests += 1
        key = (resource.kind, namespace or "", name)
        if key not in self.objects:
            return False
        self._as_operator(lambda: self.remove(key, uid=uid, resource_version=resource_version))
        return True

    def _as_operator(self, write: Callable[[], None]) -> None:
        """Carry ``write`` out, through ``on_write`` if it would change something."""
        if self.on_write is None:
            before = self.version
            write()
            if self.version != before:
                self.writes += 1
                if self.at_rest:
                    self.first_writes.add(self.writes)
                self.at_rest = False
        elif self._would_change(write):
            self.writes += 1
            self.on_write(write)
        else:
            write()

    def _would_change(self, write: Callable[[], None]) -> bool:
        """Tried on a copy, since objects are replaced, never changed. Raises what ``write`` raises."""
        mine, spare = self.__dict__, dict(self.__dict__)
        spare |= {name: copy.copy(mine[name]) for name in ("objects", "_intents", "created", "deleted")}
        spare["changes"] = []
        try:
            self.__dict__ = spare
            write()
        finally:
            self.__dict__ = mine
        return bool(spare["changes"])

    # What everybody does.

    def patch(self, intent: Object, manager: str, subresource: str | None = None) -> Object:
        """Server-side apply, with force."""
        metadata = intent["metadata"]
        key = (intent["kind"], metadata.get("namespace", ""), metadata["name"])
        before = self.objects.get(key)
        if before is None and (subresource or "uid" in metadata):
            raise (NotFound(404, "NotFound", str(key)) if subresource else Conflict(409, "Conflict", f"uid of {key}"))
        for precondition in ("uid", "resourceVersion"):
            if (
                before is not None
                and metadata.get(precondition, before["metadata"][precondition]) != before["metadata"][precondition]
            ):
                raise Conflict(409, "Conflict", f"{precondition} of {key}")
        parts = ("status",) if subresource else tuple(part for part in intent if part != "status")
        ours = {part: intent[part] for part in parts if part in intent}
        if "metadata" in ours:
            ours["metadata"] = {
                name: value for name, value in metadata.items() if name not in ("uid", "resourceVersion")
            }
        previous = self._intents.get((key, manager + (subresource or "")), {})
        obj = _merge(before or {}, ours, {part: value for part, value in previous.items() if part in parts})
        fixed = key[0] == "ControllerRevision" or (before or {}).get("immutable")
        if before is not None and fixed and obj.get("data") != before.get("data"):
            raise Invalid(422, "Invalid", f"data of {key} is immutable")
        self._intents[key, manager + (subresource or "")] = ours
        return self._store(key, before, obj)

    def create(self, obj: Object) -> Object:
        """Create, as a user does."""
        key = (obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        if key in self.objects:
            raise AlreadyExists(409, "AlreadyExists", str(key))
        return self._store(key, None, copied(obj))

    def put(self, obj: Object) -> Object:
        """Have ``obj`` as it is, uid and status included, as a restore from a backup would; only its version is new."""
        given = obj["metadata"]
        key = (obj["kind"], given.get("namespace", ""), given["name"])
        before = self.objects.get(key)
        self.version += 1
        made = {"uid": self._uid(self.version), "generation": 1, "creationTimestamp": to_timestamp(self.now)}
        metadata = {**made, **(before or {}).get("metadata", {}), **given, "resourceVersion": str(self.version)}
        kept = {**(before or {}), **obj, "metadata": metadata}
        self.objects[key] = kept
        self.changes.append(("MODIFIED" if before is not None else "ADDED", kept))
        return kept

    def intent(self, key: ObjectKey, manager: str) -> Object | None:
        """What ``manager`` applied last, without the status; None if it applied nothing."""
        return self._intents.get((key, manager))

    def update(self, key: ObjectKey, change: Callable[[Object], None]) -> None:
        """Change an object by hand, or as another controller does."""
        obj = copied(self.objects[key])
        change(obj)
        self._store(key, self.objects[key], obj)

    def remove(self, key: ObjectKey, *, uid: str | None = None, resource_version: str | None = None) -> None:
        """Ask for deletion; with finalizers it is only marked."""
        obj = self.objects.get(key)
        if obj is None:
            raise NotFound(404, "NotFound", str(key))
        metadata = obj["metadata"]
        if uid not in (None, metadata["uid"]) or resource_version not in (None, metadata["resourceVersion"]):
            raise Conflict(409, "Conflict", f"{key} is another one")
        if not metadata.get("finalizers"):
            self._drop(key, obj)
        elif "deletionTimestamp" not in metadata:
            marked = {**obj, "metadata": {**metadata, "deletionTimestamp": to_timestamp(self.now)}}
            self._store(key, obj, marked)

    def _store(self, key: ObjectKey, before: Object | None, obj: Object) -> Object:
        # Objects share what they have in common; only this part is written to.
        metadata = dict(obj["metadata"])
        obj = {**obj, "metadata": metadata}
        if before is None:
            self.version += 1
            metadata |= {
                "uid": self._uid(self.version), "generation": 1, "creationTimestamp": to_timestamp(self.now),
                "resourceVersion": str(self.version),
            }  # fmt: skip
            self.created[key] += 1
        else:
            if obj == before:
                return before
            self.version += 1
            metadata["resourceVersion"] = str(self.version)
            if obj.get("spec") != before.get("spec"):
                metadata["generation"] = before["metadata"]["generation"] + 1
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self._drop(key, obj)
            return obj
        self.objects[key] = obj
        self.changes.append(("MODIFIED" if before is not None else "ADDED", obj))
        return obj

    def _drop(self, key: ObjectKey, obj: Object) -> None:
        self.version += 1
        del self.objects[key]
        self._intents = {place: intent for place, intent in self._intents.items() if place[0] != key}
        self.deleted[key] += 1
        self.changes.append(("DELETED", {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}))

    def of(self, kind: str) -> list[Object]:
        """All objects of a kind, by name."""
        return [obj for key, obj in sorted(self.objects.items()) if key[0] == kind]

    async def list(self, resource: Resource, namespace: str | None = None) -> SimpleNamespace:
        found = [obj for obj in self.of(resource.kind) if namespace in (None, obj["metadata"].get("namespace"))]
        return SimpleNamespace(items=found)


def copied(value: Any) -> Any:
    """A copy of JSON."""
    if isinstance(value, dict):
        return {key: copied(member) for key, member in value.items()}
    return [copied(member) for member in value] if isinstance(value, list | tuple) else value


def _merge(live: Any, intent: Any, previous: Any) -> Any:
    """``live`` with ``intent`` in it, and without what ``previous`` had set and ``intent`` no longer does."""
    if not isinstance(intent, Mapping) or not isinstance(live, Mapping):
        return intent
    previous = previous if isinstance(previous, Mapping) else {}
    merged = {key: value for key, value in live.items() if key in intent or key not in previous}
    for key, value in intent.items():
        merged[key] = _merge(merged.get(key), value, previous.get(key))
    return merged
