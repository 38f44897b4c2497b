"""Controller of BuildArtifacts."""

from collections.abc import Iterable
from datetime import datetime

from rm_api import names

from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.controllers.indexes import JOB_NAME_LABEL, owners_of, scoped
from rm_operator.controllers.reading import Reading
from rm_operator.kube.artifact_store import ArtifactStore
from rm_operator.kube.client import Object
from rm_operator.kube.resources import BUILD_ARTIFACTS, JOBS, MODEL_DEPLOYMENTS, PODS
from rm_operator.plan import artifact as planner
from rm_operator.plan.attempt import State, observe
from rm_operator.plan.model import Plan, Settings, is_deleting, labels_of, name_of, namespace_of, uid_of
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key


class BuildArtifactController(PlanningController):
    """Build once: gathers what ``plan.artifact`` decides by, the store's answer included."""

    resource = BUILD_ARTIFACTS

    def __init__(self, context: Context, settings: Settings, store: ArtifactStore) -> None:
        super().__init__(context)
        self._settings = settings
        self._store = store
        self.watches = (
            Watch(JOBS, owners_of(self.kind)),
            Watch(PODS, self._of_pod),
            Watch(MODEL_DEPLOYMENTS, self._of_deployment),
        )

    async def decide(self, obj: Object, known: Reading, now: datetime) -> Plan:
        """The plan for one BuildArtifact."""
        namespace, name = namespace_of(obj), name_of(obj)
        users = known[MODEL_DEPLOYMENTS].by_index("artifact", scoped(namespace, name))
        attempts = [
            observe(job, known[PODS].by_index("job", scoped(namespace, name_of(job))))
            for job in known[JOBS].by_index("owner", uid_of(obj))
            if not is_deleting(job)
        ]
        running = any(attempt.state is State.RUNNING for attempt in attempts)
        # While a Job runs, the store has nothing to say that the Job's end will not bring up again.
        ask = not planner.is_ready(obj) and not running
        snapshot = planner.ArtifactSnapshot(
            artifact=obj,
            referrers=sum(not is_deleting(user) for user in users),
            attempts=attempts,
            answer=await known.outside(self._store.ask(planner.repository(obj))) if ask else None,
            settings=self._settings,
            suspended=sum(_is_suspended(user) for user in users if not is_deleting(user)),
        )
        return planner.plan(snapshot, now)

    def _of_pod(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        label = labels_of(obj)
        if label.get(JOB_NAME_LABEL) and (name := label.get(names.LABEL_ARTIFACT)):
            yield Key(self.kind, namespace_of(obj), name)

    def _of_deployment(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        # A deployment that names it, or no longer does, or goes, or waits for it or not.
        seen = {
            (namespace_of(each), (each.get("status") or {}).get("artifact"), is_deleting(each), _is_suspended(each))
            for each in (old, new)
            if each is not None
        }
        if len(seen) == 1 and old is not None and new is not None:
            return
        for namespace, artifact, *_ in seen:
            if artifact:
                yield Key(self.kind, namespace, artifact)


def _is_suspended(deployment: Object) -> bool:
    return bool(deployment["spec"].get("suspend"))
