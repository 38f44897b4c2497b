"""Controller of ModelDeployments."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

from rm_api import names
from rm_api.conditions import Reason

from rm_operator.context import Context
from rm_operator.controllers.allowance import Allowance
from rm_operator.controllers.base import Changed, PlanningController
from rm_operator.controllers.fleet import Fleet
from rm_operator.controllers.holders import Owner
from rm_operator.controllers.indexes import JOB_NAME_LABEL, SERVICE_NAME_LABEL, artifact_named, owners_of, scoped
from rm_operator.controllers.reading import InNamespace, Reading
from rm_operator.controllers.sickness import Sickness
from rm_operator.kube.client import Object
from rm_operator.kube.reports import Reports
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
from rm_operator.kube.serving_reports import ServingReports
from rm_operator.kube.store import Store
from rm_operator.plan import deployment as planner
from rm_operator.plan.artifact import is_refused
from rm_operator.plan.attempt import Attempt, observe
from rm_operator.plan.device_report import PodKey
from rm_operator.plan.in_use import is_protected
from rm_operator.plan.model import Plan, Settings, is_deleting, labels_of, name_of, namespace_of, uid_of
from rm_operator.plan.profile import said_of_toolchain
from rm_operator.plan.resolve import written_source_hash
from rm_operator.plan.serving_report import ServingReport
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key

REMOVED_AT_ONCE: Final = 100
REMOVED_PER_SECOND: Final = 10.0
"""Pods that kubelets refused, of all deployments together: they come as fast as pods can be made."""
_PROTECTED = (ACCELERATOR_RESOURCES, BUILD_PROFILES)
_CHILDREN = (CONTROLLERREVISIONS, DEPLOYMENTS, HORIZONTALPODAUTOSCALERS, JOBS, SERVICES)


class ModelDeploymentController(PlanningController):
    """Resolve, place, build, serve, route: gathers what ``plan.deployment`` decides by."""

    resource = MODEL_DEPLOYMENTS

    def __init__(
        self, context: Context, settings: Settings, fleet: Fleet, reports: Reports, serving_reports: ServingReports
    ) -> None:
        super().__init__(context)
        self._settings = settings
        self._admission_failures = context.metrics.admission_failures
        self._removals = Allowance(most=REMOVED_AT_ONCE, per_second=REMOVED_PER_SECOND)
        wake: Callable[[Owner], None] = lambda owner: context.queue.add(Key(self.kind, *owner))  # noqa: E731
        self._fleet = fleet
        self._sickness = Sickness(reports, context.stores, wake)
        self._serving_reports = serving_reports
        pods = context.stores[PODS]

        def reported(key: PodKey) -> None:
            pod = pods.get(*key)
            if pod is not None and (name := labels_of(pod).get(names.LABEL_DEPLOYMENT)):
                wake((key[0], name))

        serving_reports.on_report(reported)
        concerned = _Concerned(context.stores[MODEL_DEPLOYMENTS], settings.builds_namespace)
        self.watches = (
            *(Watch(child, owners_of(self.kind)) for child in _CHILDREN),
            Watch(CONFIGMAPS, concerned.by_facts),
            Watch(PODS, concerned.by_pod),
            Watch(ENDPOINTSLICES, concerned.by_slice),
            Watch(BUILD_ARTIFACTS, concerned.by_artifact),
            # Devices that come and go wake those who wait for them.
            Watch(ACCELERATOR_RESOURCES, partial(concerned.by_choice, "accelerator")),
            Watch(BUILD_PROFILES, concerned.by_profile),
        )

    def time_passed(self, now: datetime) -> None:
        """Ends promises of devices that are over."""
        self._fleet.time_passed(now)

    async def decide(self, obj: Object, known: Reading, now: datetime) -> Plan:
        """The plan for one ModelDeployment."""
        namespace, name, uid = namespace_of(obj), name_of(obj), uid_of(obj)
        shared = self._settings.builds_namespace
        hash_ = written_source_hash(obj["spec"]["model"])
        source = scoped(namespace, hash_)
        revisions = {name_of(each): each for each in known[CONTROLLERREVISIONS].by_index("owner", uid)}
        config_maps = known[CONFIGMAPS].by_index("model", source)
        service, autoscaler = await _named(obj, SERVICES, known), await _autoscaler(obj, known)
        # From here on nothing is awaited: who decides next must see what was promised here.
        known.note(*self._fleet.places(obj))
        # A promise lasts as long as the build may.
        known[BUILD_ARTIFACTS].note(artifact_named(obj) or (namespace, ""))
        pods = known[PODS].by_index("deployment", scoped(namespace, name))
        snapshot = planner.DeploymentSnapshot(
            deployment=obj,
            sharers=known[MODEL_DEPLOYMENTS].uids_by_index("source", source),
            config_map=config_maps[0] if config_maps else None,
            resolve_attempts=[_attempt(job, known) for job in known[JOBS].by_index("model", source)],
            leftovers=_leftovers(obj, hash_, known),
            accelerators=self._fleet.accelerators(obj, now),
            profiles=self._fleet.profiles(),
            artifacts=InNamespace(known[BUILD_ARTIFACTS], namespace),
            shared_artifacts=InNamespace(known[BUILD_ARTIFACTS], shared) if shared else {},
            revisions=revisions,
            variants=known[DEPLOYMENTS].by_index("owner", uid),
            pods=pods,
            service=service,
            routed_pods=frozenset(
                endpoint["targetRef"]["name"]
                for slice_ in known[ENDPOINTSLICES].by_index("service", scoped(namespace, name))
                for endpoint in slice_.get("endpoints") or []
                if endpoint.get("targetRef")
            ),
            settings=self._settings,
            led_for=self._fleet.led_for(obj, now),
            autoscaler=autoscaler,
            unprotected=_Unprotected(known),
            leaving=frozenset(
                (resource.kind, name)
                for resource in _PROTECTED
                for _, name in known[resource].keys_by_index("leaving", "true")
            ),
            sick=self._sickness.of(pods, known),
            used_outside=self._sickness.used_outside(pods, known),
            refused=lambda config: [
                artifact
                for place in dict.fromkeys((namespace, *([shared] if shared else [])))
                for artifact in known[BUILD_ARTIFACTS].by_index("refused", scoped(place, config))
            ],
            removals=self._removals.left(now),
            reports=self._reports(pods, known),
        )
        plan = planner.plan(snapshot, now)
        later = self._fleet.settle(obj, plan.placement, now, replacing=plan.replacing)
        moments = [each for each in (plan.requeue_after, later) if each is not None]
        return replace(plan, requeue_after=min(moments, default=None))

    def _reports(self, pods: Iterable[Object], known: Reading) -> dict[str, ServingReport]:
        """What pods said of themselves, by uid."""
        uids = [uid_of(pod) for pod in pods]
        known.note(*map(self._serving_reports.place_of, uids))
        return {uid: report for uid in uids if (report := self._serving_reports.of(uid)) is not None}

    async def _carry_out(self, key: Key, obj: Object, plan: Plan, known: Reading) -> Changed:
        self._removals.take(sum(plan.cleared.values()))
        changed = await super()._carry_out(key, obj, plan, known)
        for (resource, reason), number in plan.cleared.items():
            self._admission_failures.labels(resource, reason).inc(number)
        return changed


async def _named(obj: Object, resource: Resource, known: Reading) -> Object | None:
    """The object of this kind that has the deployment's name, as far as the stores know it: only our own are followed.

    Whose it is otherwise is found out when it is made, which somebody else's prevents. From then on it is asked for,
    until the name is free.
    """
    namespace, name = namespace_of(obj), name_of(obj)
    found = known[resource].get(namespace, name)
    if found is not None or not _says(obj, Reason.NAME_TAKEN):
        return found
    return await known.live(resource, namespace, name)


async def _autoscaler(obj: Object, known: Reading) -> Object | None:
    if obj["spec"].get("autoscaling") is None:
        return known[HORIZONTALPODAUTOSCALERS].get(namespace_of(obj), name_of(obj))
    return await _named(obj, HORIZONTALPODAUTOSCALERS, known)


def _says(obj: Object, reason: Reason) -> bool:
    return any(entry["reason"] == reason for entry in (obj.get("status") or {}).get("conditions") or ())


def _attempt(job: Object, known: Reading) -> Attempt:
    return observe(job, known[PODS].by_index("job", scoped(namespace_of(job), name_of(job))))


def _leftovers(obj: Object, hash_: str, known: Reading) -> list[Object]:
    namespace = namespace_of(obj)
    mine = [*known[CONFIGMAPS].by_index("owner", uid_of(obj)), *known[JOBS].by_index("owner", uid_of(obj))]
    others = [each for each in mine if labels_of(each).get(names.LABEL_MODEL) not in (None, hash_)]
    return [
        each
        for each in others
        if not is_deleting(each)
        and not known[MODEL_DEPLOYMENTS].count("source", scoped(namespace, labels_of(each)[names.LABEL_MODEL]))
    ]


def _said_of(artifact: Object) -> tuple[object, ...]:
    """What a deployment looks at."""
    status = artifact.get("status") or {}
    return (
        artifact["spec"],
        artifact["metadata"]["uid"],
        is_deleting(artifact),
        status.get("conditions"),
        status.get("location"),
    )


def _versions(accelerator: Object) -> object:
    if accelerator["kind"] != ACCELERATOR_RESOURCES.kind:
        return None
    versions = (accelerator.get("status") or {}).get("versions") or []
    # Devices that others take, or leave, move nobody who has some.
    return [{name: value for name, value in each.items() if name not in ("free", "freeByNode")} for each in versions]


def _most_on_node(accelerator: Object) -> object:
    if accelerator["kind"] != ACCELERATOR_RESOURCES.kind:
        return None
    status = accelerator.get("status") or {}
    by_version = [
        (
            each.get("driver"),
            each.get("sdk"),
            max((node["devices"] for node in each.get("devicesByNode") or ()), default=1),
        )
        for each in status.get("versions") or ()
    ]
    return (status.get("devices") or {}).get("mostOnNode"), by_version


class _Concerned:
    """Which deployments a change concerns."""

    def __init__(self, deployments: Store, shared: str) -> None:
        self._deployments = deployments
        self._shared = shared
        self._kind = deployments.resource.kind

    def by_pod(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """The one that it serves, or those whose model it reads."""
        obj = new or old
        assert obj is not None
        label = labels_of(obj)
        if name := label.get(names.LABEL_DEPLOYMENT):
            yield Key(self._kind, namespace_of(obj), name)
        elif label.get(JOB_NAME_LABEL) and (hash_ := label.get(names.LABEL_MODEL)):
            yield from self._keys("source", scoped(namespace_of(obj), hash_))

    def by_slice(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """The one whose Service it is of."""
        obj = new or old
        assert obj is not None
        if name := labels_of(obj).get(SERVICE_NAME_LABEL):
            yield Key(self._kind, namespace_of(obj), name)

    def by_facts(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """Those that share the model. What is only about the object itself, such as who owns it, each of them mends."""
        yield from owners_of(self._kind)(old, new) if new is None or old is None else ()
        if old is not None and (hash_ := labels_of(old).get(names.LABEL_MODEL)):
            sharers = self._keys("source", scoped(namespace_of(old), hash_))
            told = new is None or old.get("data") != new.get("data")
            yield from sharers if told else itertools.islice(sharers, 1)

    def by_artifact(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """Those that name it, where it says something else than who else names it."""
        obj = new or old
        assert obj is not None
        if old is not None and new is not None and _said_of(old) == _said_of(new):
            return
        if new is None and is_refused(obj):
            # Who was placed elsewhere because of it names it no more.
            everybody, where = self._deployments.keys(), namespace_of(obj)
            yield from (Key(self._kind, *key) for key in everybody if where in (key[0], self._shared))
            return
        yield from self._keys("artifact", scoped(namespace_of(obj), name_of(obj)))

    def by_profile(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        """As any choice; and everybody, where something else is known of its toolchain."""
        if old is not None and new is not None and said_of_toolchain(old) != said_of_toolchain(new):
            yield from self._everybody()
        else:
            yield from self.by_choice("profile", old, new)

    def by_choice(self, index: str, old: Object | None, new: Object | None) -> Iterable[Key]:
        """An accelerator or profile came, went or has other figures: that concerns everybody. ``index`` tells users."""
        if old is None or new is None or old["spec"] != new["spec"] or is_deleting(old) != is_deleting(new):
            yield from self._everybody()
        elif _most_on_node(old) != _most_on_node(new):
            # What did not fit the devices of one node may do so now.
            yield from self._everybody()
        elif (is_protected(old) and not is_protected(new)) or _versions(old) != _versions(new):
            # Nodes with another driver may need another artifact.
            yield from self._keys(index, name_of(new))

    def _everybody(self) -> Iterable[Key]:
        for key in self._deployments.keys():  # noqa: SIM118 - a store is no mapping
            yield Key(self._kind, *key)

    def _keys(self, index: str, value: str) -> Iterable[Key]:
        for key in self._deployments.keys_by_index(index, value):
            yield Key(self._kind, *key)


class _Unprotected(Mapping[tuple[str, str], Object]):
    """Accelerators and profiles without the finalizer by kind and name, looked up only when they are asked for."""

    def __init__(self, known: Reading) -> None:
        self._known = known

    def __getitem__(self, key: tuple[str, str]) -> Object:
        kind, name = key
        obj = self._known.of_kind(kind).get(None, name)
        if obj is None or is_protected(obj):
            raise KeyError(key)
        return obj

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for resource in _PROTECTED:
            yield from ((resource.kind, name_of(obj)) for obj in self._known[resource] if not is_protected(obj))

    def __len__(self) -> int:
        return sum(1 for _ in self)
