"""Controller of AcceleratorResources."""

import itertools
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from rm_api import names

from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.controllers.indexes import accelerators_used, owner_uids, owners_of, resources_requested, scoped
from rm_operator.controllers.reading import Reading
from rm_operator.kube.client import Object
from rm_operator.kube.reports import Reports
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    CONFIGMAPS,
    DAEMONSETS,
    DEPLOYMENTS,
    DEVICE_CLASSES,
    MODEL_DEPLOYMENTS,
    NODES,
    PODS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    SERVICES,
)
from rm_operator.kube.store import Store
from rm_operator.plan import accelerator as planner
from rm_operator.plan.device_class import NO_CLASS, ClassView, drivers_named, extended_resource
from rm_operator.plan.device_health import Reported
from rm_operator.plan.in_use import Users, some
from rm_operator.plan.model import Plan, Settings, is_deleting, labels_of, name_of, uid_of
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key

REPORTS_SECONDS: Final = 0.5
"""After a report has changed, until what it means for the kind is decided."""
_OWN_PODS: Final = (names.ROLE_DEVICE_PLUGIN, names.ROLE_REMOTE_PROXY)


class AcceleratorResourceController(PlanningController):
    """Device plugins and counts: gathers what ``plan.accelerator`` decides by."""

    resource = ACCELERATOR_RESOURCES

    def __init__(self, context: Context, settings: Settings, reports: Reports) -> None:
        super().__init__(context)
        self._settings = settings
        self._reports = reports
        # Where a whole fleet changes, one decision after another must not be about each node.
        reports.on_report(lambda name, _: context.queue.add_after(Key(self.kind, "", name), REPORTS_SECONDS))
        concerned = _Concerned(context.stores[ACCELERATOR_RESOURCES], context.stores[DEVICE_CLASSES])
        self.watches = (
            Watch(NODES, concerned.by_node),
            Watch(PODS, concerned.by_pod),
            Watch(DAEMONSETS, owners_of(self.kind)),
            Watch(DEPLOYMENTS, owners_of(self.kind)),
            Watch(SERVICES, owners_of(self.kind)),
            Watch(CONFIGMAPS, owners_of(self.kind)),
            Watch(DEVICE_CLASSES, concerned.by_class),
            Watch(RESOURCE_SLICES, concerned.by_slice),
            Watch(RESOURCE_CLAIMS, concerned.by_devices),
            Watch(MODEL_DEPLOYMENTS, concerned.by_deployment),
            Watch(ACCELERATOR_RESOURCES, concerned.by_kind),
        )

    async def decide(self, obj: Object, known: Reading, now: datetime) -> Plan:
        """The plan for one AcceleratorResource."""
        resource = obj["spec"].get("resourceName")
        index = "resource" if resource else "class"
        kinds = known[ACCELERATOR_RESOURCES].by_index(index, resource or obj["spec"].get("deviceClassName") or "")
        snapshot = planner.AcceleratorSnapshot(
            accelerator=obj,
            nodes=known[NODES].list(),
            requesting=known[PODS].by_index("resource", resource) if resource else (),
            plugin_pods=self._plugin_pods(name_of(obj), known),
            children=[
                *known[DEPLOYMENTS].by_index("owner", uid_of(obj)),
                *self._services(obj, known),
                *known[DAEMONSETS].by_index("owner", uid_of(obj)),
                *known[CONFIGMAPS].by_index("owner", uid_of(obj)),
                *known[DEVICE_CLASSES].by_index("owner", uid_of(obj)),
            ],
            settings=self._settings,
            by_class=_class_view(obj["spec"].get("deviceClassName"), known),
            users=self._users(obj, known),
            reported=self._reported(name_of(obj), known),
            others=kinds,
            ours={
                node
                for kind in kinds
                for pod in self._plugin_pods(name_of(kind), known)
                if (node := (pod.get("spec") or {}).get("nodeName"))
            },
            named={
                name_of(each): _class_view(name_of(each), known)
                for each in known[DEVICE_CLASSES].by_index("extended", resource or "")
            },
        )
        return planner.plan(snapshot, now)

    def _plugin_pods(self, accelerator: str, known: Reading) -> list[Object]:
        plugin = scoped(self._settings.system_namespace, accelerator)
        return [
            pod
            for pod in known[PODS].by_index("accelerator", plugin)
            if labels_of(pod).get(names.LABEL_ROLE) in _OWN_PODS
        ]

    def _services(self, obj: Object, known: Reading) -> list[Object]:
        """Of its proxy. Found by their label, as there are as many others as there are deployments."""
        labelled = known[SERVICES].by_index("accelerator", scoped(self._settings.system_namespace, name_of(obj)))
        return [each for each in labelled if uid_of(obj) in owner_uids(each)]

    def _reported(self, name: str, known: Reading) -> Reported:
        known.note(self._reports.place_of(name))
        return Reported(self._reports.of(name), awaited=self._reports.awaited(name))

    def _users(self, obj: Object, known: Reading) -> Users:
        deployments, name = known[MODEL_DEPLOYMENTS], name_of(obj)
        # Thousands may use it, and their names are told only while it is being deleted.
        named = deployments.keys_by_index("accelerator", name) if is_deleting(obj) else ()
        return some(itertools.starmap(scoped, named), deployments.count("accelerator", name))


def _class_view(name: str | None, known: Reading) -> ClassView:
    """What there is of the DeviceClass ``name``."""
    if name is None:
        return NO_CLASS
    classes, slices, claims = known[DEVICE_CLASSES], known[RESOURCE_SLICES], known[RESOURCE_CLAIMS]
    if slices.unserved:
        return ClassView(unserved=slices.unserved)
    found = classes.get(None, name)
    drivers = drivers_named(found) if found is not None else frozenset()
    return ClassView(
        device_class=found,
        slices=[each for driver in drivers for each in slices.by_index("driver", driver)] if drivers else slices.list(),
        claims=[each for driver in drivers for each in claims.by_index("driver", driver)] if drivers else claims.list(),
    )


class _Concerned:
    """Which accelerators a change concerns."""

    def __init__(self, accelerators: Store, classes: Store) -> None:
        self._accelerators = accelerators
        self._classes = classes
        self._kind = accelerators.resource.kind

    def by_node(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """All of them, if something changed that placement looks at: kubelets write a status every few seconds."""
        if old is not None and new is not None and _facts(old) == _facts(new):
            return
        for _, name in self._accelerators.keys():  # noqa: SIM118 - a store is no mapping
            yield Key(self._kind, "", name)

    def by_class(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """Those that are requested by this class, and the one that it was made for."""
        obj = new or old
        assert obj is not None
        for _, name in self._accelerators.keys_by_index("class", name_of(obj)):
            yield Key(self._kind, "", name)
        for each in (old, new):
            yield from self._requested_as(extended_resource(each))
        yield from owners_of(self._kind)(old, new)

    def by_devices(self, _old: Object | None, _new: Object | None) -> Iterable[Key]:
        """All that are requested by a class: which devices these have is for the decision to find out."""
        for _, name in self._accelerators.keys_by_index("any class", "true"):
            yield Key(self._kind, "", name)

    def by_slice(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """All that are requested by a class, or by the extended resource of one."""
        yield from self.by_devices(old, new)
        for device_class in self._classes:
            yield from self._requested_as(extended_resource(device_class))

    def by_kind(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """Those that are requested as this one is: they may claim the same nodes."""
        if old is not None and new is not None and _claims(old) == _claims(new):
            return
        for obj in (old, new):
            if obj is not None:
                yield from self._requested_as(obj["spec"].get("resourceName"))
                for _, name in self._accelerators.keys_by_index("class", obj["spec"].get("deviceClassName") or ""):
                    yield Key(self._kind, "", name)

    def _requested_as(self, resource: str | None) -> Iterable[Key]:
        for _, name in self._accelerators.keys_by_index("resource", resource or ""):
            yield Key(self._kind, "", name)

    def by_deployment(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """Those that it no longer uses: it may have been the last. Who begins to use one protects it."""
        released = set(accelerators_used(old)) if old is not None else set()
        if new is not None:
            released -= set(accelerators_used(new))
        for name in released:
            yield Key(self._kind, "", name)

    def by_pod(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """The one whose device plugin it runs, and those whose devices it requests."""
        obj = new or old
        assert obj is not None
        label = labels_of(obj)
        if label.get(names.LABEL_ROLE) in _OWN_PODS and (name := label.get(names.LABEL_ACCELERATOR)):
            yield Key(self._kind, "", name)
        for resource in resources_requested(obj):
            for _, each in self._accelerators.keys_by_index("resource", resource):
                yield Key(self._kind, "", each)


def _claims(accelerator: Object) -> tuple[object, ...]:
    return accelerator["spec"], is_deleting(accelerator), uid_of(accelerator)


def _facts(node: Object) -> tuple[object, ...]:
    status = node.get("status") or {}
    return labels_of(node), status.get("capacity"), status.get("allocatable")
