"""Bring children and statuses to what a plan says, with no request for what is so already."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from rm_api.conditions import Reason
from rm_api.names import ANNOTATION_APPLIED_HASH, FIELD_MANAGER, LABEL_MANAGED_BY, MANAGED_BY

from rm_operator.kube.client import KubeClient, Object
from rm_operator.kube.covers import differences
from rm_operator.kube.documents import encode_sorted
from rm_operator.kube.errors import Conflict, NotFound, Terminal
from rm_operator.kube.resources import Resource, resource_of
from rm_operator.kube.store import Stores, key_of
from rm_operator.plan.memo import Memo
from rm_operator.plan.model import SharedIntent

logger = logging.getLogger(__name__)

_NO_VERSION: Final = "1"
"""The store behind the API server counts from here, before the first object."""


class Action(StrEnum):
    """What an apply came to."""

    CREATED = "Created"
    UPDATED = "Updated"
    UNCHANGED = "Unchanged"


@dataclass(frozen=True, slots=True)
class Applied:
    """One child as it is now."""

    action: Action
    object: Object


async def apply_children(
    client: KubeClient, stores: Stores, desired: Sequence[Object], *, owner: Object | None = None
) -> list[Applied]:
    """Server-side apply of each of ``desired``, in order; the result tells what happened to each.

    ``desired`` holds the full intent for each child, with apiVersion, kind and name. Added to it are our label, a hash
    of it, and, with ``owner``, the reference by which the child is deleted with it (so namespaces must agree, unless
    the owner is cluster-scoped). No request is made for a child whose live state carries the same hash and still
    covers it. Answers go into ``stores``.

    Raises Terminal(NameTaken) where an object of that name exists that is not ours or that another controller owns, and
    ApiError.
    """
    return [await _apply_one(client, stores, *_prepared(child, owner)) for child in desired]


async def write_status(
    client: KubeClient, stores: Stores, obj: Object, status: Mapping[str, Any], *, confirm: bool = False
) -> bool:
    """Make ``status`` the whole status of ``obj``; False, and no request, if it is that already.

    What ``status`` lacks is removed. The answer goes into ``stores``. With ``confirm`` the API server is asked even
    where nothing would change, for what comes next must not rest on a view that is old. Raises Conflict if ``obj`` has
    changed since it was looked at or was replaced by another of its name, NotFound if it is gone.
    """
    if not confirm and obj.get("status", {}) == status:
        return False
    stores.put(await client.apply_status(resource_of(obj), obj, status))
    return True


def desired_hash(obj: Mapping[str, Any]) -> str:
    """Hash of an intent; equal for equal JSON, whatever the order of its members."""
    return hashlib.sha256(encode_sorted(obj)).hexdigest()[:32]


def controller_of(obj: Object) -> Mapping[str, Any] | None:
    """The owner reference of the object's controller."""
    for reference in obj["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            found: Mapping[str, Any] = reference
            return found
    return None


def _prepare(child: Object, owner: Object | None) -> tuple[dict[str, Any], str]:
    """``child`` as it is sent, and the hash that it carries."""
    metadata = dict(child["metadata"])
    metadata["labels"] = {**(metadata.get("labels") or {}), LABEL_MANAGED_BY: MANAGED_BY}
    if owner is not None:
        owner_namespace = owner["metadata"].get("namespace")
        if owner_namespace and owner_namespace != metadata.get("namespace"):
            raise ValueError(f"{child['kind']} {metadata['name']} must be in its owner's namespace {owner_namespace}")
        metadata["ownerReferences"] = [
            {
                "apiVersion": owner["apiVersion"],
                "kind": owner["kind"],
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    prepared = {**child, "metadata": metadata}
    digest = desired_hash(prepared)
    metadata["annotations"] = {**(metadata.get("annotations") or {}), ANNOTATION_APPLIED_HASH: digest}
    return prepared, digest


def _prepared(child: Object, owner: Object | None) -> tuple[dict[str, Any], str]:
    return _prepare_shared(child) if owner is None and isinstance(child, SharedIntent) else _prepare(child, owner)


_prepare_shared: Memo[[SharedIntent], tuple[dict[str, Any], str]] = Memo(lambda child: _prepare(child, None), most=64)


async def _apply_one(client: KubeClient, stores: Stores, prepared: dict[str, Any], digest: str) -> Applied:
    resource = resource_of(prepared)
    store = stores[resource]
    key = key_of(prepared)
    live = store.get(*key)
    if live is not None and store.is_as_applied(key, digest):
        return Applied(Action.UNCHANGED, live)
    if live is None:
        created = await _created(client, resource, prepared)
        if created is not None:
            _remember(stores, created, prepared, digest)
            return Applied(Action.CREATED, created)
        live = await _existing(client, resource, key)
    if live is not None:
        _refuse_foreign(resource, live, prepared)
    if live is not None and (live["metadata"].get("annotations") or {}).get(ANNOTATION_APPLIED_HASH) == digest:
        found = differences(live, prepared)
        # The API server may write a value in another way than we do. What it made of this very intent is as we left it.
        if not found or store.accepted.get(key) == (digest, found):
            store.note_as_applied(key, live, digest)
            return Applied(Action.UNCHANGED, live)
        logger.info("%s %s/%s was changed by somebody else (%s): mending it", resource.kind, *key, _places(found))
    answer = await client.apply(resource, prepared, field_manager=FIELD_MANAGER)
    _remember(stores, answer, prepared, digest)
    return Applied(Action.UPDATED if live is not None else Action.CREATED, answer)


def _remember(stores: Stores, answer: dict[str, Any], prepared: dict[str, Any], digest: str) -> None:
    """Keep what the API server made of an intent, and in which ways it writes it differently."""
    resource, key = resource_of(prepared), key_of(prepared)
    store = stores[resource]
    stores.put(answer)
    if left := differences(answer, prepared):
        store.accepted[key] = (digest, left)
        logger.debug("%s %s/%s is kept in another form: %s", resource.kind, *key, _places(left))
    else:
        store.accepted.pop(key, None)
    store.note_as_applied(key, answer, digest)


async def _created(client: KubeClient, resource: Resource, prepared: dict[str, Any]) -> dict[str, Any] | None:
    """``prepared`` as it was created; None if something has the name, which the store does not know.

    Apply would quietly merge into whatever has the name, and the store knows only what carries our label. A version
    that no object can have makes the apply a creation, or nothing.
    """
    metadata = {**prepared["metadata"], "resourceVersion": _NO_VERSION}
    try:
        return await client.apply(resource, {**prepared, "metadata": metadata}, field_manager=FIELD_MANAGER)
    except Conflict:
        return None


async def _existing(client: KubeClient, resource: Resource, key: tuple[str, str]) -> dict[str, Any] | None:
    try:
        found = await client.get(resource, key[0] or None, key[1], metadata_only=True)
    except NotFound:
        return None
    # Only metadata was read: without the hash it is never taken for unchanged.
    found["metadata"].get("annotations", {}).pop(ANNOTATION_APPLIED_HASH, None)
    return found


def _refuse_foreign(resource: Resource, live: Object, prepared: Object) -> None:
    metadata = live["metadata"]
    where = "/".join(filter(None, (metadata.get("namespace"), metadata["name"])))
    if (metadata.get("labels") or {}).get(LABEL_MANAGED_BY) != MANAGED_BY:
        raise Terminal(
            Reason.NAME_TAKEN,
            f"{resource.kind} {where} exists and was not made by RM Abstract; delete it or choose another name",
        )
    theirs, ours = controller_of(live), controller_of(prepared)
    if theirs is not None and (ours is None or theirs["uid"] != ours["uid"]):
        raise Terminal(
            Reason.NAME_TAKEN,
            f"{resource.kind} {where} belongs to {theirs['kind']} {theirs['name']} (uid {theirs['uid']}); "
            "the name is free again once that is gone",
        )


def _places(found: Sequence[tuple[tuple[str | int, ...], str]]) -> str:
    shown = ", ".join(".".join(map(str, path)) for path, _ in found[:3])
    return f"{shown}, …" if len(found) > 3 else shown
