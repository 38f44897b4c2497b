"""Devices that ResourceClaims of others hold, by class and node, told to the ledger as they come and go.

A pod that requests a device of a class has it through a claim that the scheduler makes for it, and others may write
claims themselves, of another class too that has the same devices. So who holds what is read from the claims, and what a
device is worth to whom from the slices: it is held for every class that has it.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from rm_operator.controllers.holders import holder_of
from rm_operator.controllers.indexes import pool_of, scoped
from rm_operator.kube.buckets import ObjectKey
from rm_operator.kube.client import Object
from rm_operator.kube.documents import key_of
from rm_operator.kube.resources import DEVICE_CLASSES, PODS, RESOURCE_CLAIMS, RESOURCE_SLICES
from rm_operator.kube.store import Stores
from rm_operator.plan.accelerator import FINISHED
from rm_operator.plan.device_class import (
    NotUnderstood,
    Selection,
    allocated_in,
    devices_in,
    implied_resource,
    selection_of,
)

Held = Counter[tuple[str, str]]
"""Devices by extended resource and node; the node is empty for a device that belongs to none."""


class ClaimsOfOthers:
    """Follows the stores from its making on. ``held(resource, node, change)`` is told of every change of a count.

    What pods of ours hold is not among that: it is counted by their requests, which are there before any claim.
    """

    def __init__(self, stores: Stores, held: Callable[[str, str, int], None]) -> None:
        self._stores = stores
        self._held = held
        self._classes: dict[str, Selection] = {}
        self._counted: dict[ObjectKey, Held] = {}
        for device_class in stores[DEVICE_CLASSES]:
            self._take_class(device_class)
        self._recount(stores[RESOURCE_CLAIMS].keys())
        for resource, follow in (
            (DEVICE_CLASSES, self._class_changed),
            (RESOURCE_SLICES, self._slice_changed),
            (RESOURCE_CLAIMS, self._claim_changed),
            (PODS, self._pod_changed),
        ):
            stores[resource].on_change(follow)

    def _class_changed(self, old: Object | None, new: Object | None) -> None:
        before = dict(self._classes)
        if old is not None:
            self._classes.pop(old["metadata"]["name"], None)
        if new is not None:
            self._take_class(new)
        if self._classes != before:
            self._recount(self._stores[RESOURCE_CLAIMS].keys())

    def _slice_changed(self, old: Object | None, new: Object | None) -> None:
        pools = {
            pool_of(each["spec"]["driver"], each["spec"]["pool"]["name"]) for each in (old, new) if each is not None
        }
        for pool in pools:
            self._recount(self._stores[RESOURCE_CLAIMS].keys_by_index("pool", pool))

    def _claim_changed(self, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        self._recount([key_of(obj)])

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        namespace, name = key_of(obj)
        self._recount(self._stores[RESOURCE_CLAIMS].keys_by_index("pod", scoped(namespace, name)))

    def _take_class(self, device_class: Object) -> None:
        try:
            self._classes[device_class["metadata"]["name"]] = selection_of(device_class)
        except NotUnderstood:
            return

    def _recount(self, claims: Iterable[ObjectKey]) -> None:
        for key in claims:
            claim = self._stores[RESOURCE_CLAIMS].get(*key)
            before, after = self._counted.pop(key, Held()), Held() if claim is None else self._held_by(claim)
            if after:
                self._counted[key] = after
            for resource, node in sorted({*before, *after}):
                if change := after[resource, node] - before[resource, node]:
                    self._held(resource, node, change)

    def _held_by(self, claim: Object) -> Held:
        if self._is_ours(claim):
            return Held()
        taken = set(allocated_in(claim))
        slices = self._stores[RESOURCE_SLICES]
        pools = {pool_of(each.driver, each.pool) for each in taken}
        return Held(
            (implied_resource(name), device.node)
            for pool in pools
            for device in devices_in(slices.by_index("pool", pool))
            if device.id in taken
            for name, selection in self._classes.items()
            if selection.admits(device)
        )

    def _is_ours(self, claim: Object) -> bool:
        """True if the claim is that of a pod of ours which the ledger counts by its request."""
        metadata = claim["metadata"]
        for owner in metadata.get("ownerReferences") or []:
            pod = self._stores[PODS].get(metadata["namespace"], owner["name"])
            if pod is not None and pod["metadata"]["uid"] == owner["uid"]:
                return (pod.get("status") or {}).get("phase") not in FINISHED and holder_of(pod) is not None
        return False
