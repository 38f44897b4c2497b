"""Controller of BuildProfiles."""

from collections.abc import Iterable
from datetime import datetime

from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.kube.client import Object
from rm_operator.kube.resources import BUILD_ARTIFACTS, BUILD_PROFILES
from rm_operator.plan import profile as planner
from rm_operator.plan.artifact import is_ready
from rm_operator.plan.model import Plan, name_of
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key


class BuildProfileController(PlanningController):
    """Says whether a profile can be used, and what came of it."""

    resource = BUILD_PROFILES

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.watches = (Watch(BUILD_ARTIFACTS, self._of_artifact),)

    async def decide(self, obj: Object, now: datetime) -> Plan:
        """The plan for one BuildProfile."""
        made = self.context.stores[BUILD_ARTIFACTS].by_index("profile", name_of(obj))
        return planner.plan(planner.ProfileSnapshot(obj, sum(is_ready(each) for each in made)), now)

    def _of_artifact(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        yield Key(self.kind, "", obj["spec"]["profile"])
