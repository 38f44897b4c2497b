"""Controller of ModelDeployments."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from rm_api import names
from rm_api.kinds.model_deployment import ModelSource

from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.controllers.fleet import Fleet
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
from rm_operator.kube.store import Store, Stores
from rm_operator.plan import deployment as planner
from rm_operator.plan.attempt import Attempt, observe
from rm_operator.plan.in_use import is_protected
from rm_operator.plan.model import Plan, Settings, is_deleting, labels_of, name_of, namespace_of, uid_of
from rm_operator.plan.resolve import source_hash
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key

_PROTECTED = (ACCELERATOR_RESOURCES, BUILD_PROFILES)
_CHILDREN = (CONFIGMAPS, CONTROLLERREVISIONS, DEPLOYMENTS, HORIZONTALPODAUTOSCALERS, JOBS, SERVICES)


class ModelDeploymentController(PlanningController):
    """Resolve, place, build, serve, route: gathers what ``plan.deployment`` decides by."""

    resource = MODEL_DEPLOYMENTS

    def __init__(self, context: Context, settings: Settings) -> None:
        super().__init__(context)
        self._settings = settings
        self._fleet = Fleet(context.stores, lambda owner: context.queue.add(Key(self.kind, *owner)))
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
        service, autoscaler = await self._named(SERVICES, namespace, name), await self._autoscaler(obj)
        # From here on nothing is awaited: who decides next must see what was promised here.
        snapshot = planner.DeploymentSnapshot(
            deployment=obj,
            sharers=[each for each in stores[MODEL_DEPLOYMENTS].by_index("source", source) if not is_deleting(each)],
            config_map=config_maps[0] if config_maps else None,
            resolve_attempts=[self._attempt(job) for job in stores[JOBS].by_index("model", source)],
            leftovers=self._leftovers(obj, hash_),
            accelerators=self._fleet.accelerators(obj, now),
            profiles=self._fleet.profiles(),
            artifacts=_InNamespace(stores[BUILD_ARTIFACTS], namespace),
            revisions=revisions,
            variants=stores[DEPLOYMENTS].by_index("owner", uid),
            pods=stores[PODS].by_index("deployment", scoped(namespace, name)),
            service=service,
            routed_pods=frozenset(
                endpoint["targetRef"]["name"]
                for slice_ in stores[ENDPOINTSLICES].by_index("service", scoped(namespace, name))
                for endpoint in slice_.get("endpoints") or []
                if endpoint.get("targetRef")
            ),
            settings=self._settings,
            led_for=self._fleet.led_for(obj, now),
            autoscaler=autoscaler,
            unprotected=_Unprotected(stores),
            leaving=frozenset(
                (resource.kind, name)
                for resource in _PROTECTED
                for _, name in stores[resource].keys_by_index("leaving", "true")
            ),
        )
        plan = planner.plan(snapshot, now)
        later = self._fleet.settle(obj, plan.placement, now)
        moments = [each for each in (plan.requeue_after, later) if each is not None]
        return replace(plan, requeue_after=min(moments, default=None))

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
        # Devices that come and go wake those who wait for them.
        return self._of_choice("accelerator", old, new)

    def _of_profile(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        return self._of_choice("profile", old, new)

    def _of_choice(self, index: str, old: Object | None, new: Object | None) -> Iterable[Key]:
        """An accelerator or profile came, went or has other figures: that concerns everybody. ``index`` tells users."""
        if old is None or new is None or old["spec"] != new["spec"] or is_deleting(old) != is_deleting(new):
            yield from self._everybody()
        elif is_protected(old) and not is_protected(new):
            yield from self._keys(index, name_of(new))

    def _everybody(self) -> Iterable[Key]:
        keys = self.context.stores[MODEL_DEPLOYMENTS].keys()
        yield from (Key(self.kind, *key) for key in keys)

    def _keys(self, index: str, value: str) -> Iterable[Key]:
        for key in self.context.stores[MODEL_DEPLOYMENTS].keys_by_index(index, value):
            yield Key(self.kind, *key)


class _Unprotected(Mapping[tuple[str, str], Object]):
    """Accelerators and profiles without the finalizer by kind and name, looked up only when they are asked for."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def __getitem__(self, key: tuple[str, str]) -> Object:
        kind, name = key
        obj = self._stores.of_kind(kind).get(None, name)
        if obj is None or is_protected(obj):
            raise KeyError(key)
        return obj

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for resource in _PROTECTED:
            yield from ((resource.kind, name_of(obj)) for obj in self._stores[resource] if not is_protected(obj))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _InNamespace(Mapping[str, Object]):
    """Objects of one namespace by name, looked up only when they are asked for."""

    def __init__(self, store: Store, namespace: str) -> None:
        self._store = store
        self._namespace = namespace

    def __getitem__(self, name: str) -> Object:
        obj = self._store.get(self._namespace, name)
        if obj is None:
            raise KeyError(name)
        return obj

    def __iter__(self) -> Iterator[str]:
        return (name_of(each) for each in self._store.list(self._namespace))

    def __len__(self) -> int:
        return len(self._store.list(self._namespace))
