"""Kubernetes Events: deduplicated, limited per object, and never in the way of a reconcile."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import uuid4

from rm_api.names import FIELD_MANAGER

from rm_operator.kube.client import KubeClient, Object
from rm_operator.kube.errors import ApiError, NotLeader
from rm_operator.kube.resources import EVENTS
from rm_operator.runtime.metrics import Metrics

logger = logging.getLogger(__name__)

EventType = Literal["Normal", "Warning"]

DEDUPE_SECONDS: Final = 120.0
BURST: Final = 10
REFILL_SECONDS: Final = 30.0
MAX_PENDING: Final = 1000
MAX_REMEMBERED: Final = 20_000
MAX_NOTE_BYTES: Final = 1024


@dataclass(slots=True)
class _Allowance:
    tokens: float
    at: float


class EventRecorder:
    """Posts Events in the background.

    The same (object, type, reason, message) is posted once in two minutes; an object gets at most ten at once and then
    one each half minute. What does not fit, or cannot be posted, is counted and dropped: an Event is a courtesy.
    """

    def __init__(self, client: KubeClient, *, instance: str, metrics: Metrics | None = None) -> None:
        self._client = client
        self._instance = instance
        self._metrics = metrics or Metrics()
        self._pending: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_PENDING)
        self._posted: OrderedDict[tuple[str, str, str, str], float] = OrderedDict()
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()

    def emit(self, obj: Object, kind: EventType, reason: str, message: str, *, action: str = "Reconcile") -> bool:
        """Have an Event about ``obj`` posted; False if it was dropped. Never blocks, never raises.

        ``reason`` is CamelCase and says why, ``action`` what was done; ``message`` is cut to 1 KiB.
        """
        now = asyncio.get_running_loop().time()
        uid = obj["metadata"]["uid"]
        if not self._is_new((uid, kind, reason, message), now):
            return self._drop("deduplicated")
        if not self._is_allowed(uid, now):
            return self._drop("limited")
        try:
            self._pending.put_nowait(self._body(obj, kind, reason, message, action))
        except asyncio.QueueFull:
            return self._drop("dropped")
        return True

    async def run(self) -> None:
        """Post what comes until cancelled."""
        while True:
            await self._post(await self._pending.get())

    async def drain(self, seconds: float) -> None:
        """Post what is pending, for at most ``seconds``; for a graceful stop, after ``run`` was cancelled."""
        try:
            async with asyncio.timeout(seconds):
                while not self._pending.empty():
                    await self._post(self._pending.get_nowait())
        except TimeoutError:
            logger.info("%d events were not posted in time", self._pending.qsize())

    async def _post(self, body: dict[str, Any]) -> None:
        try:
            await self._client.create(EVENTS, body, field_manager=FIELD_MANAGER)
        except (ApiError, NotLeader) as error:
            logger.debug("an event was not posted: %s", error)
            self._drop("failed")
        else:
            self._metrics.events.labels("posted").inc()

    def _drop(self, why: str) -> bool:
        self._metrics.events.labels(why).inc()
        return False

    def _is_new(self, key: tuple[str, str, str, str], now: float) -> bool:
        posted = self._posted.get(key)
        if posted is not None and now - posted < DEDUPE_SECONDS:
            return False
        self._posted[key] = now
        self._posted.move_to_end(key)
        while len(self._posted) > MAX_REMEMBERED or now - next(iter(self._posted.values())) >= DEDUPE_SECONDS:
            self._posted.popitem(last=False)
        return True

    def _is_allowed(self, uid: str, now: float) -> bool:
        allowance = self._allowances.setdefault(uid, _Allowance(BURST, now))
        self._allowances.move_to_end(uid)
        if len(self._allowances) > MAX_REMEMBERED:
            self._allowances.popitem(last=False)
        allowance.tokens = min(BURST, allowance.tokens + (now - allowance.at) / REFILL_SECONDS)
        allowance.at = now
        if allowance.tokens < 1:
            return False
        allowance.tokens -= 1
        return True

    def _body(self, obj: Object, kind: EventType, reason: str, message: str, action: str) -> dict[str, Any]:
        metadata: Mapping[str, Any] = obj["metadata"]
        time = datetime.now(UTC)
        regarding = {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        if metadata.get("namespace"):
            regarding["namespace"] = metadata["namespace"]
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {
                # Events about cluster-scoped objects live in the default namespace, where kubectl looks for them.
                "namespace": metadata.get("namespace") or "default",
                "name": f"{metadata['name'][:200]}.{uuid4().hex[:16]}",
            },
            "eventTime": time.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "rm-abstract.io/operator",
            "reportingInstance": self._instance[:128],
            "action": action,
            "reason": reason,
            "regarding": regarding,
            "note": message.encode()[:MAX_NOTE_BYTES].decode(errors="ignore"),
            "type": kind,
        }
