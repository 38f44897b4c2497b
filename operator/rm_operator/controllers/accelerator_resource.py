"""Controller of AcceleratorResources."""

import itertools
from collections.abc import Iterable
from datetime import datetime

from rm_api import names

from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.controllers.indexes import accelerators_used, owners_of, resources_requested, scoped
from rm_operator.kube.client import Object
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    CONFIGMAPS,
    DAEMONSETS,
    MODEL_DEPLOYMENTS,
    NODES,
    PODS,
)
from rm_operator.plan import accelerator as planner
from rm_operator.plan.in_use import Users, some
from rm_operator.plan.model import Plan, Settings, is_deleting, labels_of, name_of, uid_of
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key


class AcceleratorResourceController(PlanningController):
    """Device plugins and counts: gathers what ``plan.accelerator`` decides by."""

    resource = ACCELERATOR_RESOURCES

    def __init__(self, context: Context, settings: Settings) -> None:
        super().__init__(context)
        self._settings = settings
        self.watches = (
            Watch(NODES, self._of_node),
            Watch(PODS, self._of_pod),
            Watch(DAEMONSETS, owners_of(self.kind)),
            Watch(CONFIGMAPS, owners_of(self.kind)),
            Watch(MODEL_DEPLOYMENTS, self._of_deployment),
        )

    async def decide(self, obj: Object, now: datetime) -> Plan:
        """The plan for one AcceleratorResource."""
        stores = self.context.stores
        resource = obj["spec"].get("resourceName")
        requesting = stores[PODS].by_index("resource", resource) if resource else ()
        plugin = scoped(self._settings.system_namespace, name_of(obj))
        snapshot = planner.AcceleratorSnapshot(
            accelerator=obj,
            nodes=stores[NODES].list(),
            requested=sum(planner.requested(pod, resource) for pod in requesting),
            plugin_pods=[
                pod
                for pod in stores[PODS].by_index("accelerator", plugin)
                if labels_of(pod).get(names.LABEL_ROLE) == names.ROLE_DEVICE_PLUGIN
            ],
            children=[
                *stores[DAEMONSETS].by_index("owner", uid_of(obj)),
                *stores[CONFIGMAPS].by_index("owner", uid_of(obj)),
            ],
            settings=self._settings,
            users=self._users(obj),
        )
        return planner.plan(snapshot, now)

    def _users(self, obj: Object) -> Users:
        deployments, name = self.context.stores[MODEL_DEPLOYMENTS], name_of(obj)
        # Thousands may use it, and their names are told only while it is being deleted.
        named = deployments.keys_by_index("accelerator", name) if is_deleting(obj) else ()
        return some(itertools.starmap(scoped, named), deployments.count("accelerator", name))

    def _of_node(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        # Kubelets write a node's status every few seconds; only what placement looks at matters here.
        if old is not None and new is not None and _facts(old) == _facts(new):
            return
        for each in self.context.stores[ACCELERATOR_RESOURCES].list():
            yield Key(self.kind, "", name_of(each))

    def _of_deployment(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        # Who begins to use one protects it; who ends to may be the last.
        released = set(accelerators_used(old)) if old is not None else set()
        if new is not None:
            released -= set(accelerators_used(new))
        for name in released:
            yield Key(self.kind, "", name)

    def _of_pod(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        label = labels_of(obj)
        if label.get(names.LABEL_ROLE) == names.ROLE_DEVICE_PLUGIN and (name := label.get(names.LABEL_ACCELERATOR)):
            yield Key(self.kind, "", name)
        requested = set(resources_requested(obj))
        if requested:
            for each in self.context.stores[ACCELERATOR_RESOURCES].list():
                if each["spec"].get("resourceName") in requested:
                    yield Key(self.kind, "", name_of(each))


def _facts(node: Object) -> tuple[object, ...]:
    status = node.get("status") or {}
    return labels_of(node), status.get("capacity"), status.get("allocatable")
