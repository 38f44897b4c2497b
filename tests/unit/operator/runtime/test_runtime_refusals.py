"""Which errors a status tells, in which words, and that telling them never becomes a loop."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from fake_api import FakeApi, status
from rm_api.conditions import Reason
from rm_operator.config import Config
from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.controllers.reading import Reading
from rm_operator.controllers.refusals import refusal_of
from rm_operator.kube.errors import (
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NamespaceTerminating,
    NotFound,
    NotLeader,
    QuotaExceeded,
    ServerError,
    Terminal,
    TooManyRequests,
    Transient,
    Unauthorized,
    Unreachable,
)
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import BUILD_PROFILES, CONFIGMAPS
from rm_operator.kube.store import Store, Stores
from rm_operator.plan.model import Object, Plan
from rm_operator.plan.refusal import Refusal, stated
from rm_operator.runtime.controller import Workers, connect
from rm_operator.runtime.queue import Key, Queue
from rm_operator.runtime.recorder import EventRecorder
from waiting import eventually


@pytest.mark.parametrize(
    ("error", "reason", "stalled"),
    [
        (Terminal("NameTaken", "a Service m exists"), "NameTaken", True),
        (Terminal("OfTomorrow", "x"), "Refused", True),
        (Invalid(422, "Invalid", "spec.x: no"), "Refused", True),
        (Forbidden(403, "Forbidden", "cannot patch"), "Refused", False),
        (QuotaExceeded(403, "Forbidden", "exceeded quota"), "Refused", False),
        (NotFound(404, "NotFound", 'namespaces "rm-abstract-builds" not found'), "Refused", False),
        (ZeroDivisionError("x"), "InternalError", False),
        (KeyError("x"), "InternalError", False),
    ],
)
def test_what_does_not_pass_is_told(error: Exception, reason: str, stalled: bool) -> None:
    found = refusal_of(error, times=1)
    assert found is not None
    assert (found.reason, found.stalled) == (reason, stalled)
    said = error.message if isinstance(error, ApiError | Terminal) else type(error).__name__
    assert said in found.message


@pytest.mark.parametrize(
    "error",
    [
        Conflict(409, "Conflict", "changed"),
        NotFound(404, "NotFound", "gone"),
        Gone(410, "Expired", "old"),
        TooManyRequests(429, "TooManyRequests", "busy"),
        ServerError(500, "InternalError", "down"),
        Unreachable("away"),
        Unauthorized(401, "Unauthorized", "who"),
        NamespaceTerminating(403, "Forbidden", "being terminated"),
        Transient("not yet"),
        NotLeader("lost"),
        TimeoutError(),
    ],
)
def test_what_passes_or_cannot_be_written_is_not(error: Exception) -> None:
    assert refusal_of(error, times=9) is None


def test_a_defect_that_stays_is_no_progress() -> None:
    told = [refusal_of(ValueError("x"), times=times) for times in range(1, 8)]
    assert [each.stalled for each in told if each] == [False] * 4 + [True] * 3


def test_the_rest_of_the_status_stays_said() -> None:
    placed = {"type": "Placed", "status": "True", "reason": "Placed", "message": "", "observedGeneration": 1}
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "then"}
    reconciling = {"type": "Reconciling", "status": "True", "reason": "Building", "message": ""}
    refusal = Refusal(Reason.REFUSED, "no", stalled=True)
    obj: Any = {"metadata": {"generation": 3}, "status": {"conditions": [ready, reconciling, placed]}}
    now = datetime(2026, 1, 1, tzinfo=UTC)
    found, events = stated(obj, {**obj["status"], "artifact": "a"}, refusal, now)
    assert found["artifact"] == "a"
    assert found["observedGeneration"] == 3
    assert [entry["type"] for entry in found["conditions"]] == ["Ready", "Stalled", "Placed"]
    assert found["conditions"][2] == placed, "what was not looked at keeps its generation"
    assert [(event.type, event.reason, event.message) for event in events] == [("Warning", "Refused", "no")]
    # Said again it is the same.
    again, events = stated({**obj, "status": found}, found, refusal, now)
    assert (again, events) == (found, ())


class Childish(PlanningController):
    """Wants a ConfigMap for each BuildProfile, and a status that says so, before it or after it."""

    resource = BUILD_PROFILES
    status_first = False

    async def decide(self, obj: Object, known: Reading, now: datetime) -> Plan:
        child = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "ns", "name": "child"}}
        ready = {"type": "Ready", "status": "False", "reason": "Building", "message": "", "lastTransitionTime": "t"}
        return Plan((child,), status={"conditions": [ready]}, status_first=self.status_first)


@pytest.mark.parametrize("status_first", [False, True])
@pytest.mark.parametrize("code", [422, 403])
async def test_a_refusal_with_other_words_each_time_is_no_loop(api: FakeApi, status_first: bool, code: int) -> None:
    refused = 0

    async def refuse(request: web.Request) -> web.Response | None:
        nonlocal refused
        if request.method != "PATCH" or "/configmaps/" not in request.path:
            return None
        refused += 1
        return status(code, "Invalid", f"exceeded quota: {refused} of 0")

    api.intercept = refuse
    stores = Stores([Store(BUILD_PROFILES), Store(CONFIGMAPS)])
    queue = Queue()
    config = Config("system", "store:5000", "runtime", "launcher")
    async with HttpClient(api.connection) as client:
        controller = Childish(Context(client, stores, queue, EventRecorder(client, instance="x"), config))
        controller.status_first = status_first
        connect([controller], stores, queue)
        working = asyncio.create_task(Workers([controller], stores, queue, count=1).run())
        stores[BUILD_PROFILES].upsert(api.put(BUILD_PROFILES, None, "p", metadata={"generation": 1}, spec={}))

        def said() -> Any:
            obj = stores[BUILD_PROFILES].get(None, "p") or {}
            return {entry["type"]: entry for entry in (obj.get("status") or {}).get("conditions") or ()}

        await eventually(lambda: queue.idle and said().get("Ready", {}).get("reason") == "Refused", "it is told")
        for _ in range(3):  # whatever wakes it
            queue.add(Key("BuildProfile", "", "p"))
            await eventually(lambda: queue.idle, "it comes to rest")
        working.cancel()
        await asyncio.wait([working])
    profile = stores[BUILD_PROFILES].get(None, "p")
    assert profile is not None
    # Made at 101; once what is first, once the refusal.
    assert int(profile["metadata"]["resourceVersion"]) <= 103
    assert refused >= 4
    assert "exceeded quota: 1 of 0" in said()["Ready"]["message"]
