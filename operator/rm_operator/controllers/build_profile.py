"""Controller of BuildProfiles."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.controllers.indexes import profiles_used, scoped
from rm_operator.kube.client import Object
from rm_operator.kube.resources import BUILD_ARTIFACTS, BUILD_PROFILES, MODEL_DEPLOYMENTS
from rm_operator.plan import profile as planner
from rm_operator.plan.artifact import in_build, is_ready
from rm_operator.plan.in_use import Users, some
from rm_operator.plan.model import Plan, is_deleting, name_of, namespace_of
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key


class BuildProfileController(PlanningController):
    """Says whether a profile can be used, and what came of it."""

    resource = BUILD_PROFILES

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.watches = (
            Watch(BUILD_ARTIFACTS, self._of_artifact),
            Watch(MODEL_DEPLOYMENTS, self._of_deployment),
        )

    async def decide(self, obj: Object, now: datetime) -> Plan:
        """The plan for one BuildProfile."""
        made = self.context.stores[BUILD_ARTIFACTS].by_index("profile", name_of(obj))
        users = self._users(obj, [each for each in made if in_build(each)])
        return planner.plan(planner.ProfileSnapshot(obj, sum(map(is_ready, made)), users), now)

    def _users(self, obj: Object, building: Sequence[Object]) -> Users:
        deployments, name = self.context.stores[MODEL_DEPLOYMENTS], name_of(obj)
        named: list[str] = []
        if is_deleting(obj):
            named += [scoped(namespace_of(each), name_of(each)) for each in deployments.by_index("profile", name)]
            named += [f"BuildArtifact {scoped(namespace_of(each), name_of(each))}" for each in building]
        return some(named, deployments.count("profile", name) + len(building))

    def _of_deployment(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        # Who begins to use one protects it; who ends to may be the last.
        released = set(profiles_used(old)) if old is not None else set()
        if new is not None:
            released -= set(profiles_used(new))
        for name in released:
            yield Key(self.kind, "", name)

    def _of_artifact(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        yield Key(self.kind, "", obj["spec"]["profile"])
