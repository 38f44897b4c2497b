"""Controller of BuildProfiles."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from rm_api import names

from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.controllers.indexes import owners_of, profiles_used, scoped
from rm_operator.controllers.reading import Reading
from rm_operator.controllers.spent import SpentSeconds
from rm_operator.kube.client import Object
from rm_operator.kube.resources import BUILD_ARTIFACTS, BUILD_PROFILES, JOBS, MODEL_DEPLOYMENTS, PODS
from rm_operator.plan import profile as planner
from rm_operator.plan.attempt import observe
from rm_operator.plan.in_use import Users, some
from rm_operator.plan.model import Plan, Settings, is_deleting, labels_of, name_of, namespace_of, uid_of
from rm_operator.plan.version_probe import ProbeJob
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key


class BuildProfileController(PlanningController):
    """Says whether a profile can be used, and what came of it."""

    resource = BUILD_PROFILES

    def __init__(self, context: Context, settings: Settings) -> None:
        super().__init__(context)
        self._settings = settings
        self._spent = SpentSeconds(context.stores)
        self.watches = (
            Watch(BUILD_ARTIFACTS, self._of_artifact),
            Watch(MODEL_DEPLOYMENTS, self._of_deployment),
            Watch(JOBS, owners_of(self.kind)),
            Watch(PODS, self._of_pod),
        )

    async def decide(self, obj: Object, known: Reading, now: datetime) -> Plan:
        """The plan for one BuildProfile."""
        built = known[BUILD_ARTIFACTS].count("built", name_of(obj))
        probes = [
            _probe(job, known[PODS].by_index("job", scoped(namespace_of(job), name_of(job))))
            for job in known[JOBS].by_index("owner", uid_of(obj))
            if not is_deleting(job)
        ]
        snapshot = planner.ProfileSnapshot(
            obj, built, self._settings, self._users(obj, known), probes, self._spent.of(name_of(obj), known)
        )
        return planner.plan(snapshot, now)

    def _users(self, obj: Object, known: Reading) -> Users:
        name = name_of(obj)
        deployments, artifacts = known[MODEL_DEPLOYMENTS], known[BUILD_ARTIFACTS]
        named: list[str] = []
        if is_deleting(obj):
            # Thousands may use it, and their names are told only then.
            named += [scoped(*key) for key in deployments.keys_by_index("profile", name)]
            named += [f"BuildArtifact {scoped(*key)}" for key in artifacts.keys_by_index("in build", name)]
        return some(named, deployments.count("profile", name) + artifacts.count("in build", name))

    def _of_deployment(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        # Who begins to use one protects it; who ends to may be the last.
        released = set(profiles_used(old)) if old is not None else set()
        if new is not None:
            released -= set(profiles_used(new))
        for name in released:
            yield Key(self.kind, "", name)

    def _of_pod(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        label = labels_of(obj)
        if label.get(names.LABEL_ROLE) == names.ROLE_PROBE and (name := label.get(names.LABEL_PROFILE)):
            yield Key(self.kind, "", name)

    def _of_artifact(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        yield Key(self.kind, "", obj["spec"]["profile"])


def _probe(job: Object, pods: Sequence[Object]) -> ProbeJob:
    # Of several pods the newest tells.
    newest = max(pods, key=lambda each: each["metadata"].get("creationTimestamp", ""), default=None)
    return ProbeJob(observe(job, pods), newest)
