"""What serving pods say of themselves, each asked once when it is ready: which artifact it runs, and on which device.

Only the replica that works does so. What a pod said is kept until the pod is gone: it serves one artifact on the
devices that it was given, and neither changes while it lives.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

import aiohttp
from rm_api import names

from rm_operator.kube.apply import controller_of
from rm_operator.kube.client import Object
from rm_operator.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, PODS
from rm_operator.kube.store import Place, Stores
from rm_operator.plan.device_report import MAX_MESSAGE, PodKey, ReportError, one_line
from rm_operator.plan.model import labels_of, name_of, namespace_of, uid_of
from rm_operator.plan.serving import is_ready
from rm_operator.plan.serving_report import MAX_REPORT_BYTES, SILENT, ServingReport, parse

logger = logging.getLogger(__name__)

DEADLINE_SECONDS: Final = 5.0
AT_ONCE: Final = 16
BEGUN_PER_SECOND: Final = 50
ATTEMPTS: Final = 4
FIRST_BACKOFF_SECONDS: Final = 1.0
"""Doubled with each attempt."""
_LABELS: Final = (names.LABEL_ROLE, names.LABEL_DEPLOYMENT, names.LABEL_VARIANT, names.LABEL_ARTIFACT)
"""What a pod has from the template of its Deployment, which has the same."""

_random: Final = random.Random().random  # noqa: S311 - jitter


class ServingReports:
    """The reports of ready serving pods, by uid.

    Follows the stores from its making on, and asks pods from ``start`` on. What becomes known is told to
    ``Stores.ticks`` (``place_of``) and to subscribers. For the event loop's thread only.
    """

    def __init__(
        self,
        stores: Stores,
        *,
        port: int = names.REPORT_PORT,
        deadline: float = DEADLINE_SECONDS,
        first_backoff: float = FIRST_BACKOFF_SECONDS,
    ) -> None:
        self._stores = stores
        self._port = port
        self._deadline = deadline
        self._first_backoff = first_backoff
        self._session: aiohttp.ClientSession | None = None
        self._pods: dict[str, _Pod] = {}
        """Those that were ready once and are still there, by uid."""
        self._waiting: deque[_Pod] = deque()
        self._asking: set[asyncio.Task[None]] = set()
        self._not_before = 0.0
        """Time of the loop at which the next question may begin."""
        self._timer: asyncio.TimerHandle | None = None
        self._on_report: list[Callable[[PodKey], None]] = []
        stores[PODS].on_change(self._pod_changed)
        stores[DEPLOYMENTS].on_change(self._deployment_changed)

    def of(self, uid: str) -> ServingReport | None:
        """What a pod said; SILENT if it cannot be asked, None while it is not known which."""
        pod = self._pods.get(uid)
        return None if pod is None else pod.report

    @staticmethod
    def place_of(uid: str) -> Place:
        """Touched when something changes that ``of`` says of a pod that is there."""
        return "serving report", uid

    def on_report(self, subscriber: Callable[[PodKey], None]) -> None:
        """Call ``subscriber`` with namespace and name of each pod of which something became known."""
        self._on_report.append(subscriber)

    def start(self) -> None:
        """From now on, ask."""
        if self._session is not None:
            return
        # The connection is closed after each answer: there is no second question to the same pod.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=AT_ONCE, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            auto_decompress=False,
        )
        for pod in self._stores[PODS]:
            self._follow(pod)

    async def stop(self) -> None:
        """Ask no more."""
        session, self._session = self._session, None
        if session is None:
            return
        for pod in list(self._pods.values()):
            self._leave(pod)
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        asking = list(self._asking)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await session.close()

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if self._session is None:
            return
        if old is not None and (new is None or uid_of(old) != uid_of(new)):
            pod = self._pods.get(uid_of(old))
            if pod is not None:
                self._leave(pod)
        if new is not None:
            self._follow(new)

    def _deployment_changed(self, old: Object | None, new: Object | None) -> None:
        """Pods may have been told before the Deployment that they belong to."""
        if self._session is None or new is None or old is not None:
            return
        name = labels_of(new).get(names.LABEL_DEPLOYMENT)
        if name:
            for pod in self._stores[PODS].by_index("deployment", f"{namespace_of(new)}/{name}"):
                self._follow(pod)

    def _follow(self, obj: Object) -> None:
        """Takes up a pod that is to be asked and was not yet."""
        if labels_of(obj).get(names.LABEL_ROLE) != names.ROLE_SERVE:
            return
        known = self._pods.get(uid_of(obj))
        if known is not None and known.report not in (None, SILENT):
            return
        if not is_ready(obj):
            if known is not None:
                # It has not answered. Once it is ready again, it may.
                self._leave(known)
            return
        address = (obj.get("status") or {}).get("podIP")
        if known is not None or not address or not self._is_ours(obj):
            return
        try:
            address = str(ip_address(address))
        except ValueError:
            logger.warning("the pod %s/%s has the address %r, which is none", namespace_of(obj), name_of(obj), address)
            return
        pod = _Pod(uid_of(obj), (namespace_of(obj), name_of(obj)), address)
        self._pods[pod.uid] = pod
        self._enqueue(pod)

    def _is_ours(self, pod: Object) -> bool:
        """True of pods of a Deployment that this operator made, and not of what only looks like one."""
        reference = controller_of(pod)
        if reference is None or reference["kind"] != "ReplicaSet":
            return False
        # A ReplicaSet has the name of its Deployment, and a hash.
        deployment = self._stores[DEPLOYMENTS].get(namespace_of(pod), reference["name"].rpartition("-")[0])
        if deployment is None:
            return False
        owner = controller_of(deployment)
        if owner is None or owner["kind"] != MODEL_DEPLOYMENTS.kind:
            return False
        mine, theirs = labels_of(pod), labels_of(deployment)
        # A pod that says of itself that it serves what others share is believed only as far as its Deployment says so.
        where = names.LABEL_ARTIFACT_NAMESPACE
        same = all(mine.get(label) and mine.get(label) == theirs.get(label) for label in _LABELS)
        return same and mine.get(where) == theirs.get(where)

    def _leave(self, pod: "_Pod") -> None:
        """Nothing is known of the pod any more, nor asked."""
        if self._pods.get(pod.uid) is pod:
            del self._pods[pod.uid]
        if pod.timer is not None:
            pod.timer.cancel()
            pod.timer = None
        if pod.task is not None:
            pod.task.cancel()

    def _enqueue(self, pod: "_Pod") -> None:
        pod.timer = None
        self._waiting.append(pod)
        self._pump()

    def _pump(self) -> None:
        """Begins what may begin now; comes again when the next may."""
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._asking) < AT_ONCE and self._timer is None and self._session is not None:
            if loop.time() < self._not_before:
                self._timer = loop.call_at(self._not_before, self._pump_again)
                return
            pod = self._waiting.popleft()
            if self._pods.get(pod.uid) is not pod:
                continue
            self._not_before = loop.time() + 1 / BEGUN_PER_SECOND
            pod.task = asyncio.create_task(self._ask(self._session, pod), name="serving report")
            self._asking.add(pod.task)
            pod.task.add_done_callback(self._asked)

    def _pump_again(self) -> None:
        self._timer = None
        self._pump()

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("asking a serving pod failed in a way that was not foreseen", exc_info=error)
        self._pump()

    async def _ask(self, session: aiohttp.ClientSession, pod: "_Pod") -> None:
        try:
            async with asyncio.timeout(self._deadline):
                body = await self._read(session, pod.address)
            report = parse(body)
        except TimeoutError:
            self._failed(pod, f"no answer within {self._deadline:.0f} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._failed(pod, str(error) or type(error).__name__)
        else:
            self._learn(pod, report)

    async def _read(self, session: aiohttp.ClientSession, address: str) -> bytes:
        host = f"[{address}]" if ":" in address else address
        # A pod must not send the operator elsewhere.
        url = f"http://{host}:{self._port}{names.REPORT_PATH}"
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise ReportError(f"it answered {response.status}")
            body = b""
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_REPORT_BYTES:
                    raise ReportError(f"the report has more than {MAX_REPORT_BYTES} bytes")
            return body

    def _failed(self, pod: "_Pod", problem: str) -> None:
        pod.task = None
        pod.attempts += 1
        if pod.attempts < ATTEMPTS:
            seconds = self._first_backoff * 2 ** (pod.attempts - 1) * (0.5 + _random())
            pod.timer = asyncio.get_running_loop().call_later(seconds, self._enqueue, pod)
            return
        said = one_line(problem, MAX_MESSAGE)
        logger.warning("the serving pod %s/%s is ready, but gave no report: %s", *pod.key, said)
        self._learn(pod, SILENT)

    def _learn(self, pod: "_Pod", report: ServingReport) -> None:
        pod.task, pod.report = None, report
        self._stores.ticks.touch([self.place_of(pod.uid)])
        for told in self._on_report:
            told(pod.key)


class _Pod:
    """One pod that is asked, or was."""

    __slots__ = ("address", "attempts", "key", "report", "task", "timer", "uid")

    def __init__(self, uid: str, key: PodKey, address: str) -> None:
        self.uid = uid
        self.key = key
        self.address = address
        self.attempts = 0
        self.report: ServingReport | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
