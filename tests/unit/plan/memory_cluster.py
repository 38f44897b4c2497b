"""A cluster in memory around the operator's real controllers: what a model checker runs thousands of times.

``MemoryApi`` is the API server. ``Surroundings`` is the rest of Kubernetes, one small move at a time: Jobs run, pods
are scheduled and become ready, EndpointSlices follow, garbage is collected. ``Replica`` is one life of the operator:
the real controllers, stores, indexes and watches over the memory, with the memory's clock.
"""

import asyncio
import copy
import hashlib
import itertools
import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from unittest import mock

from chain import FACTS, NPU, PROFILE
from memory_api import MemoryApi, Object, ObjectKey, copied
from rm_api import names
from rm_operator import controllers
from rm_operator.app import REFLECTED
from rm_operator.config import Config
from rm_operator.context import Context
from rm_operator.controllers import base
from rm_operator.kube.errors import ApiError, Conflict, Invalid, NotFound, Terminal, Transient
from rm_operator.kube.resources import CUSTOM, Resource
from rm_operator.kube.store import Store, Stores
from rm_operator.plan.artifact import Presence, StoreAnswer
from rm_operator.plan.model import to_timestamp
from rm_operator.runtime.controller import connect
from rm_operator.runtime.metrics import Metrics
from rm_operator.runtime.queue import Key

DIGEST = "sha256:" + "e" * 64
NAMESPACE = "ns"
LONG = timedelta(seconds=200)
"""For whom it waits longer than this, it waits in vain: it looks again now and then, whatever happens."""


class Died(BaseException):
    """The operator's process ended. Nothing of it may catch this."""


class Surroundings:
    """The controllers and kubelets of Kubernetes, the device plugin's node, and a registry."""

    def __init__(self, api: MemoryApi, *, devices: int = 4) -> None:
        self.api = api
        self.devices = devices
        self.held: set[str] = set()
        """What does not get on for now: roles of Jobs, or ``pods`` (being made), ``starts`` (of pods), ``slices``."""
        self.outcomes: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        """Role of Jobs → exit codes and reports of the first ones; those after them succeed."""
        self.judge: Callable[[Object], tuple[int, dict[str, Any]] | None] = lambda job: None
        """What a Job comes to where that depends on the Job: exit code and report."""
        self.facts: Callable[[Object], Object] = _facts
        """What a Job reports of its model."""
        self.clock_jump = timedelta()
        """How far a node's clock goes back while a container runs."""
        self.registry: dict[str, StoreAnswer] = {}
        """Repository and tag → what the artifact store answers."""
        self.ran: list[str] = []
        """Names of the Jobs that ran to their end, in order."""
        self.unwell: set[int] = set()
        """Numbers of the devices that are not healthy: the kubelet allocates others."""
        self.allocated: dict[str, int] = {}
        """uid of a pod → number of its device."""
        self.builds_namespace = ""
        """Namespace of shared builds, as the next operator is told."""
        self.refusing = 0
        """So many of the next pods the kubelet refuses."""
        node = {
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"},
            "status": {word: {"acme.com/npu": str(devices)} for word in ("capacity", "allocatable")},
        }  # fmt: skip
        self.api.create(node)

    async def ask(self, repository: str, tag: str = names.ARTIFACT_TAG) -> StoreAnswer:
        """What the registry has."""
        return self.registry.get(f"{repository}:{tag}", StoreAnswer(Presence.ABSENT))

    def push(self, reference: str, key: str) -> None:
        """Into the registry with something of a key."""
        self.registry[reference] = StoreAnswer(Presence.FOUND, DIGEST, 123, key)

    async def forget(self, repository: str) -> None:
        """The registry deletes a repository."""
        self.registry = {name: each for name, each in self.registry.items() if not name.startswith(f"{repository}:")}

    async def close(self) -> None:
        """Nothing is open."""

    def move(self) -> bool:
        """Everybody does what is next, once; False if nobody had anything to do."""
        before = self.api.version
        for part in self.parts:
            part()
        return self.api.version != before

    @property
    def parts(self) -> tuple[Callable[[], None], ...]:
        """Everybody that acts, each on its own."""
        return self.collect, self.run_jobs, self.route, self.replicate, self.start_pods

    def devices_are(self, unwell: Iterable[int], *, number: int | None = None) -> None:
        """From now on these devices are not well; pods that have one run on, and are told of."""
        self.devices = self.devices if number is None else number
        self.unwell = set(unwell) & set(range(self.devices))
        counts = {"capacity": self.devices, "allocatable": self.devices - len(self.unwell)}
        status = {word: {"acme.com/npu": str(count)} for word, count in counts.items()}
        self.api.update(("Node", "", "node"), lambda live: live.update(status=status))

    def run_jobs(self) -> None:
        """The Job controller and the kubelet: first a Job's pod, then its end."""
        for job in self.api.of("Job"):
            self._run(job)

    def replicate(self) -> None:
        """The Deployment controller."""
        for deployment in self.api.of("Deployment"):
            self._replicate(deployment)

    def collect(self) -> None:
        """The garbage collector."""
        while True:
            alive = {obj["metadata"]["uid"] for obj in self.api.objects.values()}
            gone = [
                key
                for key, obj in self.api.objects.items()
                if (owners := obj["metadata"].get("ownerReferences"))
                and all(owner["uid"].removeprefix("rs-") not in alive for owner in owners)
                and "deletionTimestamp" not in obj["metadata"]
            ]
            if not gone:
                return
            for key in sorted(gone):
                self.api.remove(key)

    def _run(self, job: Object) -> None:
        metadata = job["metadata"]
        # The pod's template says what it is, whatever somebody has made of the Job's labels.
        labels = job["spec"]["template"]["metadata"]["labels"]
        role = labels[names.LABEL_ROLE]
        if job.get("status", {}).get("conditions") or role in self.held:
            return
        pod_key = ("Pod", metadata["namespace"], f"{metadata['name']}-pod")
        if pod_key not in self.api.objects:
            marked = {**labels, "batch.kubernetes.io/job-name": metadata["name"]}
            self._make_pod(pod_key[1:], marked, "Job", metadata["name"], metadata["uid"], job["spec"]["template"])
            return
        planned = self.outcomes.get(role, [])
        code, report = planned.pop(0) if planned else self.judge(job) or (0, {})
        report = {"reason": "Done", "facts": self.facts(job), **report}
        if role == names.ROLE_BUILD and code == 0:
            command = job["spec"]["template"]["spec"]["containers"][0]["command"]
            said = dict(argument.split("=", 1) for argument in command if "=" in argument)
            reference = said["--reference"].removeprefix("store:5000/")
            self.push(reference, said["--key"])
            report = {**report, "reason": "Built", "digest": DIGEST}
        self.ran.append(metadata["name"])
        now, began = to_timestamp(self.api.now), to_timestamp(self.api.now + self.clock_jump)
        last = report.pop("container", job["spec"]["template"]["spec"]["containers"][0]["name"])
        terminated = {"exitCode": code, "message": json.dumps(report), "startedAt": began, "finishedAt": now}
        self.api.update(
            pod_key,
            lambda pod: pod.update(
                spec={**pod["spec"], "nodeName": "node"},
                status={
                    "phase": "Failed" if code else "Succeeded",
                    "containerStatuses": [{"name": last, "image": "x", "state": {"terminated": terminated}}],
                },
            ),
        )
        condition = {"type": "Failed" if code else "Complete", "status": "True", "lastTransitionTime": now}
        self.api.update(_key(job), lambda live: live.update(status={"conditions": [condition]}))

    def _make_pod(
        self, place: tuple[str, str], labels: Mapping[str, str], kind: str, owner: str, uid: str, template: Object
    ) -> None:
        reference = {"apiVersion": "v1", "kind": kind, "name": owner, "uid": uid, "controller": True}
        namespace, name = place
        metadata = {"name": name, "namespace": namespace, "labels": dict(labels), "ownerReferences": [reference]}
        spec = copied(template["spec"])
        self.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def _replicate(self, deployment: Object) -> None:
        if "pods" in self.held:
            return
        metadata, spec = deployment["metadata"], deployment["spec"]
        mine = self.pods_of(deployment)
        wanted = spec.get("replicas", 1)
        for pod in sorted(mine, key=_cost_of_ending)[: max(0, len(mine) - wanted)]:
            self.api.remove(_key(pod))
        taken = {pod["metadata"]["name"] for pod in mine}
        for number in itertools.count():
            if len(taken) >= wanted:
                break
            name = f"{metadata['name']}-{number}"
            place = (metadata["namespace"], name)
            there = self.api.objects.get(("Pod", *place))
            if there is None:
                labels = spec["template"]["metadata"]["labels"]
                self._make_pod(place, labels, "ReplicaSet", "rs", f"rs-{metadata['uid']}", spec["template"])
            if there is None or not _has_failed(there):
                # One that is on its way out has its name until it is gone.
                taken.add(name)
        mine = self.pods_of(deployment)
        status = {
            "observedGeneration": metadata["generation"], "replicas": len(mine), "updatedReplicas": len(mine),
            "readyReplicas": sum(map(is_ready, mine)), "availableReplicas": sum(map(is_ready, mine)),
        }  # fmt: skip
        self.api.update(_key(deployment), lambda live: live.update(status=status))

    def pods_of(self, deployment: Object) -> list[Object]:
        """Pods of a Deployment that are not on their way out."""
        uid = f"rs-{deployment['metadata']['uid']}"
        return [
            pod
            for pod in self.api.of("Pod")
            if any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())
            and "deletionTimestamp" not in pod["metadata"]
            and not _has_failed(pod)
        ]

    def start_pods(self) -> None:
        """The scheduler, and the kubelet for pods that serve."""
        pods = [pod for pod in self.api.of("Pod") if names.LABEL_VARIANT in pod["metadata"]["labels"]]
        serving = [pod for pod in pods if not _has_failed(pod)]
        alive = {pod["metadata"]["uid"] for pod in serving}
        self.allocated = {uid: number for uid, number in self.allocated.items() if uid in alive}
        placed = [pod for pod in serving if "nodeName" in pod["spec"]]
        on_sick = sum(self.allocated.get(pod["metadata"]["uid"]) in self.unwell for pod in placed)
        used = sum(map(_devices, placed)) - on_sick
        for pod in serving:
            if "nodeName" in pod["spec"]:
                if not is_ready(pod) and "starts" not in self.held:
                    moment = to_timestamp(self.api.now)
                    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": moment}]
                    status = {"phase": "Running", "conditions": conditions}
                    self.api.update(_key(pod), lambda live, status=status: live.update(status=status))  # type: ignore[misc]
            elif used + _devices(pod) <= self.devices - len(self.unwell):
                if self.refusing and _devices(pod):
                    self.refusing -= 1
                    self.api.update(_key(pod), self._refuse)
                    continue
                used += _devices(pod)
                if _devices(pod):
                    taken = {*self.allocated.values(), *self.unwell}
                    number = next(number for number in itertools.count() if number not in taken)
                    self.allocated[pod["metadata"]["uid"]] = number
                self.api.update(_key(pod), _scheduled)
            else:
                self.api.update(_key(pod), _unschedulable)

        self._tell_health()

    def _refuse(self, pod: Object) -> None:
        pod["spec"]["nodeName"] = "node"
        message = "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate acme.com/npu"
        started = to_timestamp(self.api.now)
        pod["status"] = {
            "phase": "Failed", "reason": "UnexpectedAdmissionError", "message": message, "startTime": started
        }  # fmt: skip

    def _tell_health(self) -> None:
        """The kubelet says in the pods' status how their devices are, once one is not well."""
        for pod in self.api.of("Pod"):
            number = self.allocated.get(pod["metadata"]["uid"])
            status = pod.get("status") or {}
            first, *others = status.get("containerStatuses") or [{"name": "engine", "image": "x"}]
            if number is None or (number not in self.unwell and "allocatedResourcesStatus" not in first):
                continue
            health = "Unhealthy" if number in self.unwell else "Healthy"
            told = {"name": "acme.com/npu", "resources": [{"resourceID": f"npu{number}", "health": health}]}
            first = {**first, "allocatedResourcesStatus": [told]}
            whole = {**status, "containerStatuses": [first, *others]}
            self.api.update(_key(pod), lambda live, whole=whole: live.update(status=whole))  # type: ignore[misc]

    def route(self) -> None:
        """The EndpointSlice controller."""
        if "slices" in self.held:
            return
        for service in self.api.of("Service"):
            name, selector = service["metadata"]["name"], service["spec"].get("selector") or {}
            namespace = service["metadata"]["namespace"]
            endpoints = [
                {"targetRef": {"kind": "Pod", "name": pod["metadata"]["name"]}, "conditions": {"ready": True}}
                for pod in self.api.of("Pod")
                if selector.items() <= pod["metadata"]["labels"].items()
                and pod["metadata"]["namespace"] == namespace
                and is_ready(pod)
            ]
            key = ("EndpointSlice", namespace, f"{name}-slice")
            if key in self.api.objects:
                self.api.update(key, lambda live, endpoints=endpoints: live.update(endpoints=endpoints))  # type: ignore[misc]
                continue
            owner = {"apiVersion": "v1", "kind": "Service", "name": name, "uid": service["metadata"]["uid"]}
            labels = {**service["metadata"].get("labels", {}), "kubernetes.io/service-name": name}
            metadata = {"name": key[2], "namespace": namespace, "labels": labels, "ownerReferences": [owner]}
            slice_ = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata}
            self.api.create({**slice_, "endpoints": endpoints})

    def routed(self, name: str = "hello") -> set[str]:
        """Pods to which requests go."""
        found = self.api.objects.get(("EndpointSlice", NAMESPACE, f"{name}-slice"))
        return {endpoint["targetRef"]["name"] for endpoint in (found or {}).get("endpoints", [])}


def _facts(job: Object) -> Object:
    """What there is to know of a Job's model: all have the same weights, but for those that are called ``own``."""
    command = " ".join(job["spec"]["template"]["spec"]["containers"][0]["command"])
    if "oci://registry/own:" not in command:
        return FACTS
    return {**FACTS, "weightsDigest": "sha256:" + hashlib.sha256(command.encode()).hexdigest()}


def _cost_of_ending(pod: Object) -> tuple[bool, int, str]:
    """The order in which a ReplicaSet ends pods."""
    annotations = pod["metadata"].get("annotations") or {}
    return is_ready(pod), int(annotations.get("controller.kubernetes.io/pod-deletion-cost", 0)), pod["metadata"]["name"]


def _has_failed(pod: Object) -> bool:
    return bool(pod.get("status", {}).get("phase") == "Failed")


def _scheduled(pod: Object) -> None:
    pod["spec"]["nodeName"] = "node"
    pod["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}


def _unschedulable(pod: Object) -> None:
    message = "0/1 nodes are available: 1 Insufficient acme.com/npu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    pod["status"] = {"phase": "Pending", "conditions": [condition]}


def is_ready(pod: Object) -> bool:
    """True if the pod says so and stays."""
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _devices(pod: Object) -> int:
    limits = [container.get("resources", {}).get("limits", {}) for container in pod["spec"]["containers"]]
    return sum(int(each.get("acme.com/npu", 0)) for each in limits)


def _key(obj: Object) -> ObjectKey:
    return obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


class _Wakeups:
    """What ``connect`` puts keys on; each once, first come, first served."""

    def __init__(self) -> None:
        self.keys: dict[Key, None] = {}

    def add(self, key: Key) -> None:
        self.keys[key] = None


class _Events:
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def emit(self, obj: Mapping[str, Any], type_: str, reason: str, message: str) -> None:
        self.said.append((type_, reason))


class Replica:
    """One life of the operator, from its first list on."""

    def __init__(self, api: MemoryApi, surroundings: Surroundings) -> None:
        self.api = api
        self.events = _Events()
        self.refusals: list[Exception] = []
        self.behind: set[str] = set()
        """Kinds whose watch is slow: changes of them wait."""
        self.reconciled = 0
        self._selectors = {kept.resource: kept.label_selector for kept in REFLECTED}
        transforms = {kept.resource: kept.transform for kept in REFLECTED}
        self.stores = Stores(
            Store(resource, indexes=controllers.INDEXES.get(resource), transform=transforms.get(resource))
            for resource in (*CUSTOM, *self._selectors)
        )
        self._awake = _Wakeups()
        self._due: dict[Key, datetime] = {}
        config = Config(
            system_namespace="system", store="store:5000", store_plain_http=True, runtime_image="runtime:1",
            launcher_image="launcher:1", builds_namespace=surroundings.builds_namespace,
        )  # fmt: skip
        self.metrics = _metrics()
        context = Context(api, self.stores, self._awake, self.events, config, metrics=self.metrics)  # type: ignore[arg-type]
        with mock.patch.object(controllers, "ArtifactStore", return_value=surroundings):
            built = controllers.build(context)
        self._controllers = {each.kind: each for each in built}
        connect(built, self.stores, self._awake)  # type: ignore[arg-type]
        self._seen = len(api.changes)
        for store in self.stores:
            found = [obj for obj in api.of(store.resource.kind) if self._watched(store.resource, obj)]
            store.replace(found, str(api.version))
        self._late: list[tuple[str, Object]] = []

    def work(self) -> None:
        """Take in what happened and reconcile until nothing is left to do."""
        _run(self._work(2000))
        assert not self._awake.keys, f"it never comes to rest; it is still at {sorted(map(str, self._awake.keys))}"

    @property
    def awake(self) -> list[Key]:
        """What is on the queue."""
        return list(self._awake.keys)

    def wake(self, key: Key) -> None:
        """Put ``key`` on the queue, though nothing happened."""
        self._awake.add(key)

    def step(self) -> None:
        """Take in what happened, and one reconcile."""
        _run(self._work(1))

    async def _work(self, steps: int) -> None:
        self.hear()
        while self._awake.keys and steps:
            steps -= 1
            key = next(iter(self._awake.keys))
            del self._awake.keys[key]
            await self._reconcile(key)
            self.hear()

    async def _reconcile(self, key: Key) -> None:
        """One reconcile; a lost race is tried again, as the workers do."""
        self.reconciled += 1
        self._due.pop(key, None)
        try:
            with clock(self.api):
                after = await self._controllers[key.kind].reconcile(key)
        except (Terminal, Invalid) as error:
            self.refusals.append(error)
        except (Conflict, NotFound, Transient):
            self._due[key] = self.api.now + timedelta(seconds=1)
        else:
            if after is not None:
                self._due[key] = self.api.now + timedelta(seconds=after)

    def work_from_memory(self) -> None:
        """Reconcile each object once, knowing nothing of what has happened meanwhile."""
        for resource in CUSTOM:
            for obj in self.stores[resource].list():
                key = Key(resource.kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
                with suppress(ApiError, Terminal, Transient), clock(self.api):
                    _run(self._controllers[resource.kind].reconcile(key))

    def hear(self) -> None:
        """Take in the changes since the last time; those of kinds that are ``behind`` wait."""
        news = [*self._late, *self.api.changes[self._seen :]]
        self._seen = len(self.api.changes)
        self._late = [each for each in news if each[1]["kind"] in self.behind]
        for type_, obj in news:
            if obj["kind"] in self.behind:
                continue
            store = self.stores.of_kind(obj["kind"])
            metadata = obj["metadata"]
            if type_ == "DELETED" or not self._watched(store.resource, obj):
                store.remove(
                    metadata.get("namespace"), metadata["name"], uid=metadata["uid"],
                    resource_version=metadata["resourceVersion"],
                )  # fmt: skip
            else:
                store.upsert(obj)

    def next_due(self) -> datetime | None:
        """When the next object is to be looked at again."""
        return min(self._due.values(), default=None)

    def wake_due(self) -> None:
        """Put on the queue what is due now."""
        for key, due in list(self._due.items()):
            if due <= self.api.now:
                del self._due[key]
                self._awake.add(key)

    def _watched(self, resource: Resource, obj: Object) -> bool:
        selector = self._selectors.get(resource)
        if selector is None:
            return True
        key, _, value = selector.partition("=")
        return (obj["metadata"].get("labels") or {}).get(key) == value


class Installation:
    """API, surroundings and an operator that may die; ``settle`` runs all of them until nothing moves."""

    def __init__(self, *, devices: int = 4) -> None:
        self.api = MemoryApi()
        self.surroundings = Surroundings(self.api, devices=devices)
        for kind, name, spec in (("AcceleratorResource", "npu", NPU), ("BuildProfile", "acme", PROFILE)):
            self.api.create(
                {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec.to_wire()}
            )
        self.replica = Replica(self.api, self.surroundings)
        self.watch: Callable[[], None] = lambda: None
        """Called after every move of anybody."""
        self.deaths = 0
        self._fault = ""
        self._in_flight: list[Callable[[], None]] = []
        self._sleeper: Replica | None = None

    def fork(self) -> "Installation":
        """Another one in the same state, with a history and an operator of its own."""
        other = copy.copy(self)
        other.api = self.api.fork()
        other.surroundings = copy.copy(self.surroundings)
        other.surroundings.__dict__ |= {
            "api": other.api, "held": set(self.surroundings.held), "ran": [],
            "outcomes": copy.deepcopy(self.surroundings.outcomes), "registry": dict(self.surroundings.registry),
            "allocated": dict(self.surroundings.allocated), "unwell": set(self.surroundings.unwell),
        }  # fmt: skip
        other.watch, other.deaths, other._in_flight = lambda: None, 0, []
        other.replica = Replica(other.api, other.surroundings)
        return other

    def settle(self) -> None:
        """Until nobody has anything to do; time passes only where the operator waits for it."""
        for _ in range(500):
            self._operate()
            self.watch()
            moved = self.surroundings.move()
            self.watch()
            if moved:
                continue
            self.replica.hear()
            if self._sleeper is not None:
                sleeper, self._sleeper = self._sleeper, None
                sleeper.work_from_memory()
                continue
            due = self.replica.next_due()
            if due is None or due > self.api.now + LONG:
                return
            self.api.now = max(self.api.now, due)
            self.replica.wake_due()
        raise AssertionError("it never settles")

    def _operate(self) -> None:
        self.api.at_rest = True
        try:
            self.replica.work()
        except Died:
            self.restart()
            self.replica.work()
        while self._in_flight:
            with suppress(ApiError):
                self._in_flight.pop()()

    def restart(self) -> None:
        """Another process takes over, with nothing in its memory."""
        self.deaths += 1
        self.api.on_write = None
        if self._fault == "sleeps":
            self._sleeper = self.replica
        if self._fault == "outage":
            while self.surroundings.move():
                self.watch()
            self.api.now += timedelta(hours=1)
        self.replica = Replica(self.api, self.surroundings)

    def die_at(self, number: int, how: str) -> None:
        """Has the operator die at its ``number``-th effective write from now, counted from 1.

        ``before``: the write is not sent. ``after``: it is done, and its answer never arrives. ``outage``: so, and for
        an hour there is no operator while everybody else goes on. ``late``: it was sent, and arrives only after the
        successor has done all that it found to do. ``sleeps``: it was only asleep, and wakes up when the successor has
        long come to rest: then it reconciles everything once more as it saw it last.
        """
        last = self.api.writes + number

        def on_write(write: Callable[[], None]) -> None:
            if self.api.writes < last:
                write()
                return
            if how in ("after", "outage", "sleeps"):
                write()
            elif how == "late":
                self._in_flight.append(write)
            self._fault = how
            raise Died

        self.api.on_write = on_write

    def deploy(self, name: str = "hello", *, namespace: str = NAMESPACE, **spec: Any) -> None:
        """Creates a ModelDeployment, or makes its spec another."""
        key = ("ModelDeployment", namespace, name)
        wanted = {"model": {"source": "oci://registry/model:1"}, "replicas": 1, **spec}
        if key in self.api.objects:
            self.api.update(key, lambda live: live.update(spec=wanted))
        else:
            metadata = {"name": name, "namespace": namespace}
            obj = {"apiVersion": names.API_VERSION, "kind": "ModelDeployment", "metadata": metadata, "spec": wanted}
            self.api.create(obj)

    def in_stages(self) -> None:
        """From now on a build is two Jobs, of which the second one needs a device."""
        second = {**PROFILE.steps[0].to_wire(), "name": "tune", "requiresDevice": True}

        def change(live: Object) -> None:
            live["spec"]["steps"] = [*live["spec"]["steps"][:1], second]

        self.api.update(("BuildProfile", "", "acme"), change)

    def engine_image(self, image: str) -> None:
        """Changes the image that the accelerator's models are served with: every deployment on it cuts over."""
        self.api.update(("AcceleratorResource", "", "npu"), lambda live: live["spec"]["runtime"].update(image=image))

    def reason(self, name: str = "hello", condition: str = "Ready") -> str:
        """Reason of a ModelDeployment's condition; empty where it is not stated."""
        status = self.api.objects["ModelDeployment", NAMESPACE, name].get("status") or {}
        found = [each["reason"] for each in status.get("conditions") or [] if each["type"] == condition]
        return str(found[0]) if found else ""


@cache
def at(stage: str, replicas: int = 1) -> Installation:
    """A cluster at rest whose only deployment has come as far as ``stage``. To be forked, not used.

    The stages are nothing, resolve, build, pods (Deployments without pods), starts (pods that are not ready) and ready.
    """
    cluster = Installation()
    cluster.surroundings.held = {stage}
    cluster.settle()
    if stage != "nothing":
        cluster.deploy(replicas=replicas)
        cluster.settle()
    cluster.surroundings.held = set()
    return cluster


@contextmanager
def clock(api: MemoryApi) -> Iterator[None]:
    """Reconciles see the memory's time."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return api.now

    with mock.patch.object(base, "datetime", Clock):
        yield


@cache
def _metrics() -> Metrics:
    return Metrics()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _run(coroutine: Coroutine[Any, Any, Any]) -> None:
    _loop().run_until_complete(coroutine)
