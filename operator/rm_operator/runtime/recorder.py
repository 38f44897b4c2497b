"""Kubernetes Events: deduplicated, at a bounded rate, and never in the way of a reconcile."""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple
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
POSTED_AT_ONCE: Final = 50
POSTED_PER_SECOND: Final = 20.0
"""So that telling what was done takes a small part of what doing it takes, however much is done at once."""
MAX_PENDING: Final[Mapping[EventType, int]] = {"Warning": 1000, "Normal": 5000}
MAX_REMEMBERED: Final = 20_000
MAX_NOTE_BYTES: Final = 1024
_WHOLE: Final = 0.999_999
"""A token, but for what sums of times lose."""


@dataclass(slots=True)
class _Allowance:
    tokens: float
    at: float

    def take(self, now: float, *, most: float, per_second: float) -> bool:
        """Take one; False if there is none."""
        self.tokens = min(most, self.tokens + (now - self.at) * per_second)
        self.at = now
        if self.tokens < _WHOLE:
            return False
        self.tokens -= 1
        return True


class _Said(NamedTuple):
    """What is to be posted, in little memory: thousands may wait."""

    regarding: tuple[str, str, str, str, str]
    """apiVersion, kind, namespace, name and uid."""
    at: datetime
    kind: EventType
    reason: str
    note: str
    action: str


class EventRecorder:
    """Posts Events in the background.

    The same (object, type, reason, message) is posted once in two minutes; an object gets at most ten at once and then
    one each half minute; all together fifty at once and then twenty a second. Warnings go first, whatever waits; what
    is normal waits its turn. What does not fit, or cannot be posted, is counted and dropped: an Event is a courtesy.
    """

    def __init__(self, client: KubeClient, *, instance: str, metrics: Metrics | None = None) -> None:
        self._client = client
        self._instance = instance
        self._metrics = metrics or Metrics()
        self._pending: dict[EventType, deque[_Said]] = {"Warning": deque(), "Normal": deque()}
        self._more = asyncio.Event()
        self._posted: OrderedDict[int, float] = OrderedDict()
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()

    def emit(self, obj: Object, kind: EventType, reason: str, message: str, *, action: str = "Reconcile") -> bool:
        """Have an Event about ``obj`` posted; False if it was dropped. Never blocks, never raises.

        ``reason`` is CamelCase and says why, ``action`` what was done; ``message`` is cut to 1 KiB.
        """
        now = asyncio.get_running_loop().time()
        metadata = obj["metadata"]
        if not self._is_new(hash((metadata["uid"], kind, reason, message)), now):
            return self._drop("deduplicated")
        if not self._is_allowed(metadata["uid"], now):
            return self._drop("limited")
        pending = self._pending[kind]
        if len(pending) >= MAX_PENDING[kind]:
            return self._drop("dropped")
        regarding = obj["apiVersion"], obj["kind"], metadata.get("namespace") or "", metadata["name"], metadata["uid"]
        note = message.encode()[:MAX_NOTE_BYTES].decode(errors="ignore")
        pending.append(_Said(regarding, datetime.now(UTC), kind, reason, note, action))
        self._more.set()
        return True

    async def run(self) -> None:
        """Post what comes until cancelled."""
        loop = asyncio.get_running_loop()
        allowance = _Allowance(POSTED_AT_ONCE, loop.time())
        while True:
            if not self._waiting:
                self._more.clear()
                await self._more.wait()
            if allowance.take(loop.time(), most=POSTED_AT_ONCE, per_second=POSTED_PER_SECOND):
                await self._post_next()
            else:
                await asyncio.sleep((1 - allowance.tokens) / POSTED_PER_SECOND)

    async def drain(self, seconds: float) -> None:
        """Post what is pending, for at most ``seconds``; for a graceful stop, after ``run`` was cancelled."""
        try:
            async with asyncio.timeout(seconds):
                while self._waiting:
                    await self._post_next()
        except TimeoutError:
            logger.info("%d events were not posted in time", self._waiting)

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._pending.values()))

    async def _post_next(self) -> None:
        said = (self._pending["Warning"] or self._pending["Normal"]).popleft()
        try:
            await self._client.create(EVENTS, self._body(said), field_manager=FIELD_MANAGER)
        except (ApiError, NotLeader) as error:
            logger.debug("an event was not posted: %s", error)
            self._drop("failed")
        else:
            self._metrics.events.labels("posted").inc()

    def _drop(self, why: str) -> bool:
        self._metrics.events.labels(why).inc()
        return False

    def _is_new(self, key: int, now: float) -> bool:
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
        return allowance.take(now, most=BURST, per_second=1 / REFILL_SECONDS)

    def _body(self, said: _Said) -> dict[str, Any]:
        api_version, kind, namespace, name, uid = said.regarding
        regarding = {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid}
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {
                # Events about cluster-scoped objects live in the default namespace, where kubectl looks for them.
                "namespace": namespace or "default",
                "name": f"{name[:200]}.{uuid4().hex[:16]}",
            },
            "eventTime": said.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "rm-abstract.io/operator",
            "reportingInstance": self._instance[:128],
            "action": said.action,
            "reason": said.reason,
            "regarding": {**regarding, "namespace": namespace} if namespace else regarding,
            "note": said.note,
            "type": said.kind,
        }
