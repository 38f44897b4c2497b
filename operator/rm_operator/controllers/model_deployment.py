"""Controller of ModelDeployments."""

from collections.abc import Iterable
from datetime import datetime

from rm_api import names
from rm_api.conditions import ConditionType
from rm_api.kinds import AcceleratorResourceSpec, AcceleratorResourceStatus, BuildProfileSpec
from rm_api.kinds.model_deployment import ModelSource

from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.controllers.indexes import JOB_NAME_LABEL, SERVICE_NAME_LABEL, owners_of, scoped
from rm_operator.kube.client import Object
from rm_operator.kube.errors import NotFound
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    BUILD_ARTIFACTS,
    BUILD_PROFILES,
    CONFIGMAPS,
    CONTROLLERREVISIONS,
    DEPLOYMENTS,
    ENDPOINTSLICES,
    HORIZONTALPODAUTOSCALERS,
    JOBS,
    MODEL_DEPLOYMENTS,
    PODS,
    SERVICES,
    Resource,
)
from rm_operator.plan import deployment as planner
from rm_operator.plan.attempt import Attempt, observe
from rm_operator.plan.in_use import is_protected
from rm_operator.plan.model import Plan, Settings, is_deleting, labels_of, name_of, namespace_of, uid_of
from rm_operator.plan.placement import AcceleratorView, ProfileView
from rm_operator.plan.profile import problems
from rm_operator.plan.resolve import source_hash
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key

_CHILDREN = (CONFIGMAPS, JOBS, DEPLOYMENTS, SERVICES, HORIZONTALPODAUTOSCALERS)


class ModelDeploymentController(PlanningController):
    """Resolve, place, build, serve, route: gathers what ``plan.deployment`` decides by."""

    resource = MODEL_DEPLOYMENTS

    def __init__(self, context: Context, settings: Settings) -> None:
        super().__init__(context)
        self._settings = settings
        self.watches = (
            *(Watch(child, owners_of(self.kind)) for child in _CHILDREN),
            Watch(PODS, self._of_pod),
            Watch(ENDPOINTSLICES, self._of_slice),
            Watch(BUILD_ARTIFACTS, self._of_artifact),
            Watch(ACCELERATOR_RESOURCES, self._of_accelerator),
            Watch(BUILD_PROFILES, self._of_profile),
        )

    async def decide(self, obj: Object, now: datetime) -> Plan:
        """The plan for one ModelDeployment."""
        stores = self.context.stores
        namespace, name, uid = namespace_of(obj), name_of(obj), uid_of(obj)
        hash_ = source_hash(ModelSource.model_validate(obj["spec"]["model"]))
        source = scoped(namespace, hash_)
        revisions = {name_of(each): each for each in stores[CONTROLLERREVISIONS].by_index("owner", uid)}
        config_maps = stores[CONFIGMAPS].by_index("model", source)
        usable = [*stores[ACCELERATOR_RESOURCES].list(), *stores[BUILD_PROFILES].list()]
        snapshot = planner.DeploymentSnapshot(
            deployment=obj,
            sharers=[each for each in stores[MODEL_DEPLOYMENTS].by_index("source", source) if not is_deleting(each)],
            config_map=config_maps[0] if config_maps else None,
            resolve_attempts=[self._attempt(job) for job in stores[JOBS].by_index("model", source)],
            leftovers=self._leftovers(obj, hash_),
            accelerators=[_accelerator_view(each) for each in stores[ACCELERATOR_RESOURCES].list()],
            profiles=[_profile_view(each) for each in stores[BUILD_PROFILES].list()],
            artifacts={name_of(each): each for each in stores[BUILD_ARTIFACTS].list(namespace)},
            revisions=revisions,
            variants=stores[DEPLOYMENTS].by_index("owner", uid),
            pods=stores[PODS].by_index("deployment", scoped(namespace, name)),
            service=await self._named(SERVICES, namespace, name),
            routed_pods=frozenset(
                endpoint["targetRef"]["name"]
                for slice_ in stores[ENDPOINTSLICES].by_index("service", scoped(namespace, name))
                for endpoint in slice_.get("endpoints") or []
                if endpoint.get("targetRef")
            ),
            settings=self._settings,
            autoscaler=await self._autoscaler(obj),
            unprotected={(each["kind"], name_of(each)): each for each in usable if not is_protected(each)},
            leaving=frozenset((each["kind"], name_of(each)) for each in usable if is_deleting(each)),
        )
        return planner.plan(snapshot, now)

    async def _named(self, resource: Resource, namespace: str, name: str) -> Object | None:
        known = self.context.stores[resource].get(namespace, name)
        if known is not None:
            return known
        # Only our own ones are watched; before the first write, whose the name is has to be asked.
        try:
            return await self.context.client.get(resource, namespace, name)
        except NotFound:
            return None

    async def _autoscaler(self, obj: Object) -> Object | None:
        namespace, name = namespace_of(obj), name_of(obj)
        if obj["spec"].get("autoscaling") is None:
            return self.context.stores[HORIZONTALPODAUTOSCALERS].get(namespace, name)
        return await self._named(HORIZONTALPODAUTOSCALERS, namespace, name)

    def _attempt(self, job: Object) -> Attempt:
        return observe(job, self.context.stores[PODS].by_index("job", scoped(namespace_of(job), name_of(job))))

    def _leftovers(self, obj: Object, hash_: str) -> list[Object]:
        stores, namespace = self.context.stores, namespace_of(obj)
        mine = [*stores[CONFIGMAPS].by_index("owner", uid_of(obj)), *stores[JOBS].by_index("owner", uid_of(obj))]
        others = [each for each in mine if labels_of(each).get(names.LABEL_MODEL) not in (None, hash_)]
        return [
            each
            for each in others
            if not is_deleting(each)
            and not stores[MODEL_DEPLOYMENTS].by_index("source", scoped(namespace, labels_of(each)[names.LABEL_MODEL]))
        ]

    def _of_pod(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        label = labels_of(obj)
        if name := label.get(names.LABEL_DEPLOYMENT):
            yield Key(self.kind, namespace_of(obj), name)
        elif label.get(JOB_NAME_LABEL) and (hash_ := label.get(names.LABEL_MODEL)):
            yield from self._keys("source", scoped(namespace_of(obj), hash_))

    def _of_slice(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        if name := labels_of(obj).get(SERVICE_NAME_LABEL):
            yield Key(self.kind, namespace_of(obj), name)

    def _of_artifact(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        yield from self._keys("artifact", scoped(namespace_of(obj), name_of(obj)))

    def _of_accelerator(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        if old is not None and new is not None and _placement_facts(old) == _placement_facts(new):
            return
        obj = new or old
        assert obj is not None
        yield from self._keys("placed", name_of(obj))
        yield from self._keys("placed", "")

    def _of_profile(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        if old is not None and new is not None and _recipe_facts(old) == _recipe_facts(new):
            return
        for each in self.context.stores[MODEL_DEPLOYMENTS].list():
            yield Key(self.kind, namespace_of(each), name_of(each))

    def _keys(self, index: str, value: str) -> Iterable[Key]:
        for each in self.context.stores[MODEL_DEPLOYMENTS].by_index(index, value):
            yield Key(self.kind, namespace_of(each), name_of(each))


def _placement_facts(accelerator: Object) -> tuple[object, ...]:
    devices = (accelerator.get("status") or {}).get("devices")
    return accelerator["spec"], devices, is_deleting(accelerator), is_protected(accelerator)


def _recipe_facts(profile: Object) -> tuple[object, ...]:
    return profile["spec"], is_deleting(profile), is_protected(profile)


def _accelerator_view(obj: Object) -> AcceleratorView:
    spec = AcceleratorResourceSpec.model_validate(obj["spec"])
    status = AcceleratorResourceStatus.model_validate(obj.get("status") or {})
    # Not Ready: one that is being deleted is not, but whoever is placed on it stays as long as there are devices.
    ready = next((entry for entry in status.conditions if entry.type == ConditionType.DEVICES_ADVERTISED), None)
    counted = spec.resource_name is not None
    return AcceleratorView(
        name=name_of(obj),
        spec=spec,
        free=max(0, status.devices.healthy - status.devices.allocated) if counted else None,
        healthy=status.devices.healthy if counted else None,
        nodes=status.nodes,
        ready=ready is not None and ready.status == "True",
        reason=ready.message if ready is not None else "its devices have not been counted yet",
    )


def _profile_view(obj: Object) -> ProfileView:
    spec = BuildProfileSpec.model_validate(obj["spec"])
    found = problems(spec)
    return ProfileView(name_of(obj), spec, usable=not found, reason="; ".join(found))
