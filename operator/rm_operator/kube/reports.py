"""What the device plugins and observers of all nodes say, kept as it changes.

Each pod of theirs is asked for its report by one long poll. Only the replica that works does so: what is kept here is
what statuses, labels and conditions of nodes say already, and those who write them leave them alone while a report is
not there yet.
"""

import asyncio
import logging
import random
import resource
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from rm_api import names

from rm_operator.kube.apply import controller_of
from rm_operator.kube.client import Object
from rm_operator.kube.long_poll import LongPoll
from rm_operator.kube.resources import ACCELERATOR_RESOURCES, DAEMONSETS, NODES, PODS
from rm_operator.kube.store import Place, Stores
from rm_operator.plan.device_report import (
    MAX_REPORT_BYTES,
    PodKey,
    Report,
    ReportError,
    UnhealthyUse,
    parse,
    uses,
)

logger = logging.getLogger(__name__)

ROLES: Final = (names.ROLE_DEVICE_PLUGIN, names.ROLE_DEVICE_OBSERVER)
PATIENCE_SECONDS: Final = 30.0
"""So long a pod may be without a usable answer, or a node without its pod, before that is said of it."""
STARTED_PER_SECOND: Final = 1000
_DESCRIPTORS: Final = 65536

_random: Final = random.Random().random  # noqa: S311 - jitter


class Reports:
    """The newest report of each kind of accelerator on each node.

    Follows the stores from its making on, and asks pods from ``start`` on. Changes are told to ``Stores.ticks``
    (``place_of``, ``place_of_pod``) and to subscribers. For the event loop's thread only.
    """

    def __init__(self, stores: Stores, system_namespace: str, *, port: int = names.DEVICE_PLUGIN_PORT) -> None:
        self._stores = stores
        self._namespace = system_namespace
        self.port = port
        self._started = False
        self._of: dict[str, dict[str, _OnNode]] = {}
        """By accelerator and node."""
        self._sources: dict[PodKey, _Source] = {}
        self._awaited: set[tuple[str, str]] = set()
        self._uses: dict[PodKey, dict[str, UnhealthyUse]] = {}
        self._unhealthy: dict[PodKey, UnhealthyUse] = {}
        self._on_report: list[Callable[[str, str], None]] = []
        self._on_pods: list[Callable[[Iterable[PodKey]], None]] = []
        stores[PODS].on_change(self._pod_changed)
        stores[DAEMONSETS].on_change(self._daemon_set_changed)
        stores[NODES].on_change(self._node_changed)
        stores[ACCELERATOR_RESOURCES].on_change(self._accelerator_changed)

    def of(self, accelerator: str) -> Mapping[str, Report]:
        """The reports of an AcceleratorResource by node; of nodes that nothing is known of yet there is none."""
        reports = self._of.get(accelerator) or {}
        return {node: each.report for node, each in reports.items() if each.report is not None}

    def on(self, node: str, accelerator: str) -> Report | None:
        """The report of an AcceleratorResource on one node."""
        found = (self._of.get(accelerator) or {}).get(node)
        return None if found is None else found.report

    def awaited(self, accelerator: str) -> bool:
        """True until each pod that ran when this replica began to work has answered, or has had its time."""
        return any(each == accelerator for each, _ in self._awaited)

    def unhealthy_pods(self) -> Mapping[PodKey, UnhealthyUse]:
        """Pods that have a device that is not well, by namespace and name. The same object, which changes."""
        return self._unhealthy

    @staticmethod
    def place_of(accelerator: str) -> Place:
        """Touched when something changes that ``of`` and ``awaited`` say of it."""
        return "reports", accelerator

    @staticmethod
    def place_of_pod(namespace: str, name: str) -> Place:
        """Touched when something changes that ``unhealthy_pods`` says of it."""
        return "device of pod", namespace, name

    def on_report(self, subscriber: Callable[[str, str], None]) -> None:
        """Call ``subscriber(accelerator, node)`` after each change of what is known of a node."""
        self._on_report.append(subscriber)

    def on_pods(self, subscriber: Callable[[Iterable[PodKey]], None]) -> None:
        """Call ``subscriber`` with the pods of which ``unhealthy_pods`` says something else than before."""
        self._on_pods.append(subscriber)

    def states(self) -> Mapping[str, int]:
        """Pods that are asked, by what came of it: ``current``, ``failing`` or ``pending``."""
        counts = dict.fromkeys(("current", "failing", "pending"), 0)
        for source in self._sources.values():
            said = source.report
            counts["pending" if said is None else "failing" if said.problem else "current"] += 1
        return counts

    def start(self) -> None:
        """From now on, ask."""
        if self._started:
            return
        self._started = True
        _allow_descriptors()
        for pod in self._stores[PODS]:
            self._follow(pod)
        self._awaited = {(source.accelerator, source.node) for source in self._sources.values()}
        for source in self._sources.values():
            source.poll.start(_random() * len(self._sources) / STARTED_PER_SECOND)

    async def stop(self) -> None:
        """Ask no more."""
        self._started = False
        for source in self._sources.values():
            source.poll.stop()
        for reports in self._of.values():
            for each in reports.values():
                each.cancel()
        self._sources.clear()
        await asyncio.sleep(0)  # what was aborted is closed now

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if not self._started:
            return
        obj = new if new is not None else old
        assert obj is not None
        if not _is_named(obj, self._namespace):
            return
        key = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        source = self._sources.get(key)
        if source is not None and (new is None or not source.is_of(new)):
            self._leave(key, source)
        if new is not None and (source := self._follow(new)) is not None:
            source.poll.start()

    def _daemon_set_changed(self, old: Object | None, new: Object | None) -> None:
        """Pods may have been told before the DaemonSet that they belong to; and without one nothing is to come."""
        if not self._started or (old is not None and new is not None):
            return
        obj = new if new is not None else old
        assert obj is not None
        accelerator = _accelerator_of(obj)
        if accelerator is None:
            return
        if new is None:
            for node in [node for node, each in (self._of.get(accelerator) or {}).items() if not each.sources]:
                self._forget(accelerator, node)
            return
        for pod in self._stores[PODS].by_index("accelerator", f"{self._namespace}/{accelerator}"):
            if (source := self._follow(pod)) is not None:
                source.poll.start()

    def _node_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None and old is not None:
            for accelerator in [each for each, reports in self._of.items() if old["metadata"]["name"] in reports]:
                self._forget(accelerator, old["metadata"]["name"])

    def _accelerator_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None and old is not None:
            for node in list(self._of.get(old["metadata"]["name"]) or ()):
                self._forget(old["metadata"]["name"], node)

    def _follow(self, pod: Object) -> "_Source | None":
        """Takes up a pod that is to be asked and is not yet; its poll is not started."""
        metadata = pod["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        if key in self._sources or not _is_named(pod, self._namespace) or "deletionTimestamp" in metadata:
            return None
        status, node = pod.get("status") or {}, (pod.get("spec") or {}).get("nodeName")
        address = status.get("podIP")
        if not address or not node or status.get("phase") != "Running":
            return None
        accelerator = self._owner(pod)
        if accelerator is None:
            return None
        try:
            source = _Source(self, key, metadata, accelerator, node, address)
        except ValueError:
            logger.warning("the pod %s/%s has the address %r, which is none", *key, address)
            return None
        self._sources[key] = source
        on_node = self._of.setdefault(accelerator, {}).setdefault(node, _OnNode())
        on_node.sources.append(source)
        on_node.cancel()
        return source

    def _owner(self, pod: Object) -> str | None:
        """The AcceleratorResource whose DaemonSet the pod is of; None if it only looks so."""
        reference = controller_of(pod)
        if reference is None or reference["kind"] != DAEMONSETS.kind:
            return None
        daemon_set = self._stores[DAEMONSETS].get(self._namespace, reference["name"])
        if daemon_set is None or daemon_set["metadata"]["uid"] != reference["uid"]:
            return None
        accelerator = _accelerator_of(daemon_set)
        return accelerator if accelerator == _label(pod, names.LABEL_ACCELERATOR) else None

    def _leave(self, key: PodKey, source: "_Source") -> None:
        source.poll.stop()
        del self._sources[key]
        on_node = (self._of.get(source.accelerator) or {}).get(source.node)
        if on_node is None:
            return
        on_node.sources.remove(source)
        if on_node.sources:
            self._settle(source.accelerator, source.node)
        elif on_node.report is None or not self._is_served(source.accelerator):
            self._forget(source.accelerator, source.node)
        else:
            # What was said last holds until another pod says something else: a device is not well because its plugin
            # was restarted.
            loop = asyncio.get_running_loop()
            on_node.timer = loop.call_later(PATIENCE_SECONDS, self._lost, source.accelerator, source.node)

    def _is_served(self, accelerator: str) -> bool:
        return any(
            _accelerator_of(each) == accelerator
            for each in self._stores[DAEMONSETS].list(self._namespace)
            if _label(each, names.LABEL_ACCELERATOR) == accelerator
        )

    def _lost(self, accelerator: str, node: str) -> None:
        on_node = self._of[accelerator][node]
        on_node.timer = None
        if on_node.report is not None:
            self._set(accelerator, node, replace(on_node.report, problem="no pod of it runs there any more"))

    def _settle(self, accelerator: str, node: str) -> None:
        """The report is that of the newest pod that has any; one that fails says less than one that does not."""
        on_node = self._of[accelerator][node]
        said = [each for each in on_node.sources if each.report is not None]
        if not said:
            return
        best = max(said, key=lambda each: (each.report is not None and not each.report.problem, each.since))
        report = best.report
        assert report is not None
        if not report.known and on_node.report is not None and on_node.report.known:
            report = replace(on_node.report, problem=report.problem)
        self._set(accelerator, node, report)

    def _set(self, accelerator: str, node: str, report: Report | None) -> None:
        on_node = self._of[accelerator][node]
        before, on_node.report = on_node.report, report
        awaited = (accelerator, node) in self._awaited
        self._awaited.discard((accelerator, node))
        if before == report and not awaited:
            return
        pods = self._book(accelerator, node, before, report)
        if self._stores.ticks is not None:
            self._stores.ticks.touch([self.place_of(accelerator), *(self.place_of_pod(*pod) for pod in pods)])
        for told in self._on_report:
            told(accelerator, node)
        if pods:
            for concerned in self._on_pods:
                concerned(pods)

    def _book(self, accelerator: str, node: str, before: Report | None, after: Report | None) -> list[PodKey]:
        """Brings ``unhealthy_pods`` up to date; returns what that changed."""
        old = {} if before is None else uses(accelerator, node, before.unhealthy)
        new = {} if after is None else uses(accelerator, node, after.unhealthy)
        changed = sorted(pod for pod in old.keys() | new.keys() if old.get(pod) != new.get(pod))
        for pod in changed:
            by_kind = self._uses.setdefault(pod, {})
            by_kind.pop(accelerator, None)
            if pod in new:
                by_kind[accelerator] = new[pod]
            if by_kind:
                self._unhealthy[pod] = by_kind[min(by_kind)]
            else:
                del self._uses[pod]
                self._unhealthy.pop(pod, None)
        return changed

    def _forget(self, accelerator: str, node: str) -> None:
        on_node = self._of[accelerator][node]
        on_node.cancel()
        for source in on_node.sources:
            source.poll.stop()
            self._sources.pop(source.key, None)
        on_node.sources.clear()
        self._set(accelerator, node, None)
        del self._of[accelerator][node]
        if not self._of[accelerator]:
            del self._of[accelerator]

    def answered(self, source: "_Source") -> None:
        """A pod has said something else than before."""
        self._settle(source.accelerator, source.node)


class _OnNode:
    """What is known of one kind on one node."""

    __slots__ = ("report", "sources", "timer")

    def __init__(self) -> None:
        self.report: Report | None = None
        self.sources: list[_Source] = []
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _Source:
    """One pod that is asked."""

    __slots__ = ("_reports", "_uid", "accelerator", "address", "key", "node", "poll", "report", "since")

    def __init__(
        self, reports: Reports, key: PodKey, metadata: Mapping[str, str], accelerator: str, node: str, address: str
    ) -> None:
        self._reports = reports
        self._uid = metadata.get("uid", "")
        self.key = key
        self.since = metadata.get("creationTimestamp", "")
        self.accelerator = accelerator
        self.node = node
        self.address = address
        self.report: Report | None = None
        self.poll = LongPoll(address, reports.port, names.REPORT_PATH, self, most=MAX_REPORT_BYTES)

    def is_of(self, pod: Object) -> bool:
        """True as long as the pod is to be asked in the same way."""
        status = pod.get("status") or {}
        return (
            pod["metadata"].get("uid", "") == self._uid
            and "deletionTimestamp" not in pod["metadata"]
            and (status.get("podIP"), status.get("phase")) == (self.address, "Running")
        )

    def said(self, body: bytes) -> bool:
        """See Follower."""
        try:
            report = parse(body)
        except ReportError as error:
            return self._take(self._with_problem(str(error)))
        return self._take(report)

    def unchanged(self) -> None:
        """See Follower."""
        # A report that could not be read was answered with its tag, too.
        if self.report is not None and self.report.problem.startswith(_SILENT):
            self._take(replace(self.report, problem=""))

    def failed(self, problem: str, seconds: float) -> None:
        """See Follower."""
        # It is put in the words of its beginning: each attempt may fail in another way.
        silent = self.report is not None and self.report.problem.startswith(_SILENT)
        if seconds >= PATIENCE_SECONDS and not silent:
            self._take(self._with_problem(f"{_SILENT}{problem}"))

    def _with_problem(self, problem: str) -> Report:
        said = f"{problem} ({self.key[1]}, {self.address})"
        return Report(known=False, problem=said) if self.report is None else replace(self.report, problem=said)

    def _take(self, report: Report) -> bool:
        news = report != self.report
        self.report = report
        if news:
            self._reports.answered(self)
        return news


_SILENT: Final = "no answer: "


def _is_named(pod: Object, namespace: str) -> bool:
    return (
        pod["metadata"].get("namespace") == namespace
        and _label(pod, names.LABEL_ROLE) in ROLES
        and _label(pod, names.LABEL_ACCELERATOR) is not None
    )


def _label(obj: Object, name: str) -> str | None:
    found = (obj["metadata"].get("labels") or {}).get(name)
    return None if found is None else str(found)


def _accelerator_of(daemon_set: Object) -> str | None:
    """The AcceleratorResource that a DaemonSet was made for."""
    reference = controller_of(daemon_set)
    if reference is None or reference["kind"] != ACCELERATOR_RESOURCES.kind:
        return None
    return str(reference["name"])


def _allow_descriptors() -> None:
    """As many open connections as the process may have: container runtimes begin with few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
