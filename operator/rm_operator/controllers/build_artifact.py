"""Controller of BuildArtifacts."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from rm_api import names

from rm_operator.context import Context
from rm_operator.controllers.base import Changed, PlanningController
from rm_operator.controllers.build_queue import BuildQueue
from rm_operator.controllers.fleet import Fleet
from rm_operator.controllers.indexes import (
    JOB_NAME_LABEL,
    artifact_based_on,
    artifact_labelled,
    artifacts_named,
    named_by,
    owners_of,
    scoped,
)
from rm_operator.controllers.reading import Reading
from rm_operator.kube.artifact_store import ArtifactStore
from rm_operator.kube.client import Object
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    BUILD_ARTIFACTS,
    DEPLOYMENTS,
    JOBS,
    MODEL_DEPLOYMENTS,
    NODES,
    PODS,
)
from rm_operator.kube.serving_reports import ServingReports
from rm_operator.plan import artifact as planner
from rm_operator.plan import build_job
from rm_operator.plan.artifact import Presence, StoreAnswer
from rm_operator.plan.attempt import Attempt, State, observe
from rm_operator.plan.build_ended import SUCCEEDED
from rm_operator.plan.device_report import PodKey
from rm_operator.plan.model import Plan, Settings, is_deleting, labels_of, name_of, namespace_of, uid_of
from rm_operator.plan.serving_report import ServingReport
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key


class BuildArtifactController(PlanningController):
    """Build once: gathers what ``plan.artifact`` decides by, the store's answer included."""

    resource = BUILD_ARTIFACTS

    def __init__(
        self, context: Context, settings: Settings, fleet: Fleet, store: ArtifactStore, serving_reports: ServingReports
    ) -> None:
        super().__init__(context)
        self._fleet = fleet
        self._settings = settings
        self._store = store
        self._serving_reports = serving_reports
        self._client = context.client
        pods = context.stores[PODS]

        def reported(key: PodKey) -> None:
            pod = pods.get(*key)
            if pod is not None and (place := artifact_labelled(pod)) is not None:
                context.queue.add(Key(self.kind, *place))

        serving_reports.on_report(reported)
        self._build_seconds = context.metrics.build_seconds
        self._queue = BuildQueue(
            context.stores,
            settings.builds_per_namespace,
            lambda namespace, name: context.queue.add(Key(self.kind, namespace, name)),
            shared=settings.builds_namespace,
        )
        artifacts = context.stores[BUILD_ARTIFACTS]
        self.watches = (
            Watch(JOBS, owners_of(self.kind)),
            Watch(PODS, self._of_pod),
            Watch(MODEL_DEPLOYMENTS, self._of_deployment),
            # Devices that come wake the builds that wait for one.
            Watch(
                ACCELERATOR_RESOURCES,
                lambda old, new: (Key(self.kind, *key) for key in artifacts.keys_by_index("no device", "true")),
            ),
            # Nodes that get other versions may be the last that an artifact was for.
            Watch(
                ACCELERATOR_RESOURCES,
                lambda old, new: (
                    Key(self.kind, *key)
                    for key in (
                        artifacts.keys_by_index("for versions", "true") if _versions(old) != _versions(new) else ()
                    )
                ),
            ),
            Watch(DEPLOYMENTS, self._of_pods),
            Watch(BUILD_ARTIFACTS, self._of_derived),
        )

    async def decide(self, obj: Object, known: Reading, now: datetime) -> Plan:
        """The plan for one BuildArtifact."""
        namespace, name = namespace_of(obj), name_of(obj)
        users = known[MODEL_DEPLOYMENTS].by_index("artifact", scoped(namespace, name))
        attempts = _attempts(obj, known)
        snapshot = planner.ArtifactSnapshot(
            artifact=obj,
            referrers=sum(not is_deleting(user) for user in users),
            attempts=attempts,
            answer=None,
            settings=self._settings,
            suspended=sum(_is_suspended(user) for user in users if not is_deleting(user)),
            users=self._users(obj, known),
        )
        if planner.asks_for_users(obj, now):
            return planner.plan(replace(snapshot, users_now=await known.outside(self._is_used(obj))), now)
        if planner.is_ready(obj):
            by_size = self._settings.retention.quota_bytes is not None
            bound = obj["spec"].get("drivers") or obj["spec"].get("sdks")
            snapshot = replace(
                snapshot,
                ready=known[BUILD_ARTIFACTS].by_index("ready", namespace) if by_size else (),
                accelerators=known[ACCELERATOR_RESOURCES].list() if bound else (),
                reports=self._reports(scoped(namespace, name), known),
            )
        # While a Job runs, the store has nothing to say that the Job's end will not bring up again.
        if not planner.is_ready(obj) and not any(attempt.state is State.RUNNING for attempt in attempts):
            answer, held = await known.outside(self._ask(obj))
            # From here on nothing is awaited: who decides next must see who was let in, and to which devices, here.
            on_devices = build_job.needs_device(planner.spec_of(obj))
            if on_devices:
                known.note(*self._fleet.build_places)
            snapshot = replace(
                snapshot,
                answer=answer,
                held=held,
                accelerators=known[ACCELERATOR_RESOURCES].list(),
                nodes=known[NODES].list(),
                lines=self._queue.lines(obj),
                spoken_for=self._fleet.spoken_for(obj, users, now) if on_devices else {},
                expected_seconds=_expected(obj["spec"]["profile"], known),
            )
        plan = planner.plan(snapshot, now)
        self._queue.settle(obj, begins=bool(plan.apply))
        self._fleet.claim(obj, plan.devices, now)
        return plan

    def _reports(self, place: str, known: Reading) -> list[ServingReport]:
        """What those said that serve the artifact."""
        uids = [uid for _, uid in known[PODS].uids_by_index("serves", place)]
        known.note(*map(self._serving_reports.place_of, uids))
        return [report for uid in uids if (report := self._serving_reports.of(uid)) is not None]

    def _users(self, obj: Object, known: Reading) -> list[str]:
        """Names of those that the artifact is kept for."""
        mine = namespace_of(obj)
        place = scoped(mine, name_of(obj))

        def said(namespace: str, name: str) -> str:
            return name if namespace == mine else f"{namespace}/{name}"

        naming = {said(*key) for key in known[MODEL_DEPLOYMENTS].keys_by_index("artifact", place)}
        # A Deployment of serving pods has the name of whom it serves, and a hash; a thousand are not decoded for that.
        serving = {
            said(namespace, name.rpartition("-")[0])
            for namespace, name in known[DEPLOYMENTS].keys_by_index("artifact", place)
        }
        built_from = {said(*key) for key in known[BUILD_ARTIFACTS].keys_by_index("base", place)}
        return sorted(naming | serving) + sorted(built_from)

    async def _is_used(self, obj: Object) -> bool:
        """Whether anybody uses it, by the API server's own word and not by what is known of it here."""
        place = namespace_of(obj), name_of(obj)
        # Those that all namespaces share may be used in any.
        where = None if place[0] == self._settings.builds_namespace else place[0]
        for resource in (MODEL_DEPLOYMENTS, BUILD_ARTIFACTS, DEPLOYMENTS):
            for each in (await self._client.list(resource, where)).items:
                if place in named_by(resource, each):
                    return True
        return False

    async def _carry_out(self, key: Key, obj: Object, plan: Plan, known: Reading) -> Changed:
        if plan.forget is not None:
            await self._store.forget(plan.forget)
        return await super()._carry_out(key, obj, plan, known)

    async def _ask(self, obj: Object) -> tuple[StoreAnswer, int]:
        """What the store has of an artifact, and of how many of its Jobs the result that the next one goes on with."""
        repository, spec = planner.repository(obj), planner.spec_of(obj)
        answer = await self._store.ask(repository)
        if answer.presence is Presence.UNREACHABLE or (answer.presence is Presence.FOUND and answer.key == spec.key):
            return answer, 0
        for number in range(len(build_job.stages(spec)) - 1, 0, -1):
            found = await self._store.ask(repository, names.STAGE_TAG.format(number))
            if found.presence is Presence.UNREACHABLE:
                return found, 0
            if found.presence is Presence.FOUND and found.key == spec.key:
                return answer, number
        return answer, 0

    def _observe(self, obj: Object, status: Mapping[str, Any]) -> None:
        super()._observe(obj, status)
        spent = float(status.get("spentSeconds") or 0) - float((obj.get("status") or {}).get("spentSeconds") or 0)
        if spent > 0:
            outcome = (status.get("ended") or {}).get("outcome", SUCCEEDED)
            self._build_seconds.labels(namespace_of(obj), obj["spec"]["profile"], outcome).inc(spent)

    def _of_pod(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        label = labels_of(obj)
        if label.get(JOB_NAME_LABEL) and (name := label.get(names.LABEL_ARTIFACT)):
            yield Key(self.kind, namespace_of(obj), name)

    def _of_pods(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        # Serving pods of an artifact came or went, as a whole.
        if (old is None) != (new is None):
            obj = new or old
            assert obj is not None
            if place := artifact_labelled(obj):
                yield Key(self.kind, *place)

    def _of_derived(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        # The artifact that another one is built from.
        obj = new or old
        assert obj is not None
        if place := artifact_based_on(obj):
            yield Key(self.kind, *place)

    def _of_deployment(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        # A deployment that names it, or no longer does, or goes, or waits for it or not.
        before, after = (
            {(place, is_deleting(each), _is_suspended(each)) for place in artifacts_named(each)}
            if each is not None
            else set()
            for each in (old, new)
        )
        for place in sorted({place for place, *_ in before ^ after}):
            yield Key(self.kind, *place)


def _versions(accelerator: Object | None) -> object:
    versions = (None if accelerator is None else accelerator.get("status") or {}) or {}
    return [(each.get("driver"), each.get("sdk"), each["nodes"]) for each in versions.get("versions") or []]


def _attempts(obj: Object, known: Reading) -> list[Attempt]:
    """What became of the Jobs of an artifact; nodes are told as affinities know them."""
    found = []
    for job in known[JOBS].by_index("owner", uid_of(obj)):
        if is_deleting(job):
            continue
        attempt = observe(job, known[PODS].by_index("job", scoped(namespace_of(obj), name_of(job))))
        if attempt.state is State.FAILED and attempt.node:
            node = known[NODES].get(None, attempt.node)
            attempt = replace(attempt, node=attempt.node if node is None else planner.hostname(node))
        found.append(attempt)
    return found


def _expected(profile: str, known: Reading) -> int | None:
    """Seconds that builds with a profile took, the median; None where there was none."""
    built = known[BUILD_ARTIFACTS].by_index("built", profile)
    took = [float(seconds) for each in built if (seconds := each["status"].get("buildSeconds")) is not None]
    return round(statistics.median(took)) if took else None


def _is_suspended(deployment: Object) -> bool:
    return bool(deployment["spec"].get("suspend"))
