"""What every controller does: gather a snapshot from the stores, plan, carry the plan out."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, Final

from rm_api.conditions import Reason

from rm_operator.context import Context
from rm_operator.controllers.protection import carry_out
from rm_operator.controllers.reading import AtRest, Reading
from rm_operator.controllers.refusals import refusal_of
from rm_operator.kube.apply import Action, apply_children, write_status
from rm_operator.kube.client import Object
from rm_operator.kube.errors import ApiError, NotLeader
from rm_operator.kube.resources import Resource, resource_of
from rm_operator.kube.store import key_of
from rm_operator.plan.conditions import reason_or
from rm_operator.plan.model import Plan, PlannedEvent, Regarding, from_timestamp, is_deleting
from rm_operator.plan.refusal import Refusal, stated
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key

logger = logging.getLogger(__name__)

REWORD_SECONDS: Final = 60.0
"""A refusal is put in other words this often at most: a number in a message must not cause a write each time."""


class Changed(Enum):
    """What carrying out a plan came to, but for the status."""

    NOTHING = auto()
    CHILDREN = auto()
    """Some were made or mended, and all else is as it was."""
    MORE = auto()
    """Something went, or was to be done in an order: what comes of it is for the next reconcile."""


@dataclass
class _Told:
    refusal: Refusal
    at: float
    times: int = 1


class PlanningController(ABC):
    """A controller whose whole decision is a pure function of what it reads and of the time."""

    resource: Resource
    watches: Sequence[Watch] = ()

    def __init__(self, context: Context) -> None:
        # Decisions know no stores but through a Reading: what they read unnoticed would be missed when it changes.
        self.__context = context
        self.__at_rest = AtRest(context.stores.ticks)
        self._told: dict[Key, _Told] = {}

    @property
    def kind(self) -> str:
        """The kind whose keys it reconciles."""
        return self.resource.kind

    @abstractmethod
    async def decide(self, obj: Object, known: Reading, now: datetime) -> Plan:
        """The plan for ``obj``, from what is known now.

        Until ``Plan.requeue_after`` is over, the same reads must lead to the same plan.
        """

    def time_passed(self, now: datetime) -> None:  # noqa: B027 - most keep nothing
        """It is ``now``: end what is over, of what this controller keeps itself."""

    async def reconcile(self, key: Key) -> float | None:
        """Brings one object closer to what its spec says; returns when to look again, in seconds.

        Where nothing was to be written the last time, and nothing has changed of all that this rested on, it is not
        decided again. What stands in the way and is not about to pass is said in the object's status before it is
        raised.
        """
        now = datetime.now(UTC)
        self.time_passed(now)
        at_rest, moment = self.__at_rest, now.timestamp()
        if at_rest.holds(key, moment):
            return at_rest.after(key, moment)
        at_rest.forget(key)
        known = self._reading()
        obj = self._of(key, known)
        if obj is None:
            self._told.pop(key, None)
            return None
        try:
            plan = await self._decide(obj, known, now)
            changed = await self._carry_out(key, obj, plan, known)
            if changed is Changed.CHILDREN:
                # One status tells of the children and of what they make of it, instead of one after the other.
                known = self._reading()
                newest = self._of(key, known)
                if newest is None or newest["metadata"]["uid"] != obj["metadata"]["uid"]:
                    return None
                obj = newest
                plan = await self._decide(obj, known, datetime.now(UTC))
                await self._carry_out(key, obj, plan, known)
            told = key in self._told
            if plan.status is not None and (told or not plan.status_first):
                written = await self._write(self._now(key, obj), plan.status)
                if not written and not told and changed is Changed.NOTHING:
                    at_rest.remember(key, known.result, moment, plan.requeue_after)
            self._emit(obj, plan.events)
        except Exception as error:
            await self._tell(key, obj, error)
            raise
        self._told.pop(key, None)
        return plan.requeue_after

    def _reading(self) -> Reading:
        return Reading(self.__context.stores, self.__context.client)

    def _of(self, key: Key, known: Reading) -> Object | None:
        return known[self.resource].get(key.namespace or None, key.name)

    async def _decide(self, obj: Object, known: Reading, now: datetime) -> Plan:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            return await self.decide(obj, known, now)
        finally:
            self.__context.metrics.decide_seconds.labels(self.kind).observe(loop.time() - started)

    async def _carry_out(self, key: Key, obj: Object, plan: Plan, known: Reading) -> Changed:
        """Everything of ``plan`` but the status that comes last; returns what that changed."""
        client, stores = self.__context.client, self.__context.stores
        first = plan.status_first and plan.status is not None
        if first:
            assert plan.status is not None
            # Until the children are taken the status goes on saying that they were not: saying it anew each time
            # would be two writes, each of which brings the next reconcile.
            told = self._told.get(key)
            status = stated(obj, plan.status, told.refusal, datetime.now(UTC))[0] if told else plan.status
            await self._write(obj, status, confirm=True)
        await carry_out(client, stores, plan.protect)
        for child in plan.apply:
            known[resource_of(child)].note(key_of(child))
        applied = await apply_children(client, stores, plan.apply)
        for deletion in plan.delete:
            resource = resource_of({"apiVersion": deletion.api_version, "kind": deletion.kind})
            await client.delete(resource, deletion.namespace or None, deletion.name, uid=deletion.uid)
        if first or plan.protect or plan.delete:
            return Changed.MORE
        same = all(each.action is Action.UNCHANGED for each in applied)
        return Changed.NOTHING if same else Changed.CHILDREN

    async def _tell(self, key: Key, obj: Object, error: Exception) -> None:
        """Have the status and an Event say why ``error`` stands in the way of ``obj``, if a person should know."""
        before, now = self._told.get(key), asyncio.get_running_loop().time()
        refusal = refusal_of(error, times=before.times + 1 if before else 1)
        obj = self._now(key, obj)
        if refusal is None or is_deleting(obj):
            return
        if before is not None:
            before.times += 1
            if refusal.differs(before.refusal) or now - before.at >= REWORD_SECONDS:
                before.refusal, before.at = refusal, now
            refusal = before.refusal
        else:
            self._told[key] = _Told(refusal, now)
        status, events = stated(obj, obj.get("status") or {}, refusal, datetime.now(UTC))
        try:
            await self._write(obj, status)
        except (ApiError, NotLeader) as failure:
            logger.info("%s: its status cannot say that %s: %s", key, refusal.message, failure)
            return
        self._emit(obj, events)

    def _now(self, key: Key, obj: Object) -> Object:
        """The object as it is known by now, own writes included; never another one of the same name."""
        newest = self.__context.stores[self.resource].get(key.namespace or None, key.name)
        return newest if newest is not None and newest["metadata"]["uid"] == obj["metadata"]["uid"] else obj

    async def _write(self, obj: Object, status: dict[str, Any], *, confirm: bool = False) -> bool:
        context = self.__context
        written = await write_status(context.client, context.stores, obj, status, confirm=confirm)
        if written:
            self._observe(obj, status)
        return written

    def _observe(self, obj: Object, status: Mapping[str, Any]) -> None:
        metrics = self.__context.metrics
        before = {entry["type"]: entry for entry in (obj.get("status") or {}).get("conditions") or ()}
        for entry in status.get("conditions") or ():
            kind, word, reason = entry["type"], entry["status"], reason_or(entry["reason"], Reason.INTERNAL_ERROR)
            earlier = before.get(kind)
            if earlier is not None and (earlier["status"], earlier["reason"]) == (word, entry["reason"]):
                continue
            metrics.transitions.labels(self.kind, kind, word, reason.value).inc()
            if word == "True" and (earlier is None or earlier["status"] != "True"):
                since = earlier["lastTransitionTime"] if earlier else obj["metadata"].get("creationTimestamp", "")
                seconds = _between(since, entry["lastTransitionTime"])
                if seconds is not None:
                    metrics.transition_seconds.labels(self.kind, kind).observe(seconds)

    def _emit(self, obj: Object, events: Sequence[PlannedEvent]) -> None:
        for event in events:
            about = obj if event.about is None else _as_object(event.about)
            self.__context.recorder.emit(about, event.type, event.reason, event.message)


def _as_object(about: Regarding) -> Object:
    metadata = {"namespace": about.namespace, "name": about.name, "uid": about.uid}
    return {"apiVersion": about.api_version, "kind": about.kind, "metadata": metadata}


def _between(since: str, until: str) -> float | None:
    try:
        return max(0.0, (from_timestamp(until) - from_timestamp(since)).total_seconds())
    except ValueError:
        return None
