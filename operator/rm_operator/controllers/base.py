"""What every controller does: gather a snapshot from the stores, plan, carry the plan out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime

from rm_operator.context import Context
from rm_operator.kube.apply import apply_children, write_status
from rm_operator.kube.client import Object
from rm_operator.kube.resources import Resource, resource_of
from rm_operator.plan.model import Plan
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key


class PlanningController(ABC):
    """A controller whose whole decision is a pure function over a snapshot."""

    resource: Resource
    watches: Sequence[Watch] = ()

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    def kind(self) -> str:
        """The kind whose keys it reconciles."""
        return self.resource.kind

    @abstractmethod
    async def decide(self, obj: Object, now: datetime) -> Plan:
        """The plan for ``obj``, from what the stores hold now."""

    async def reconcile(self, key: Key) -> float | None:
        """Brings one object closer to what its spec says; returns when to look again, in seconds."""
        obj = self.context.stores[self.resource].get(key.namespace or None, key.name)
        if obj is None:
            return None
        plan = await self.decide(obj, datetime.now(UTC))
        await self._carry_out(obj, plan)
        return plan.requeue_after

    async def _carry_out(self, obj: Object, plan: Plan) -> None:
        client, stores = self.context.client, self.context.stores
        if plan.status_first and plan.status is not None:
            await write_status(client, stores, obj, plan.status)
        await apply_children(client, stores, plan.apply)
        for deletion in plan.delete:
            resource = resource_of({"apiVersion": deletion.api_version, "kind": deletion.kind})
            await client.delete(resource, deletion.namespace or None, deletion.name, uid=deletion.uid)
        if not plan.status_first and plan.status is not None:
            await write_status(client, stores, obj, plan.status)
        for event in plan.events:
            self.context.recorder.emit(obj, event.type, event.reason, event.message)
