"""Deployments in the state that the operator leaves them in, made by its own controllers without an API server.

One namespace is settled by the real controllers over an API in memory; the others are copies of it under another name,
with other uids and with the hashes that those make. Thus ten thousand take seconds, and every object is what the
operator itself would have written: a reconcile of any of them has nothing to do.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from memory_api import MemoryApi
from rm_api.names import ANNOTATION_APPLIED_HASH, FIELD_MANAGER
from rm_operator import controllers
from rm_operator.app import make_stores
from rm_operator.config import Config
from rm_operator.context import Context
from rm_operator.kube.apply import desired_hash
from rm_operator.kube.client import KubeClient
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    BUILD_ARTIFACTS,
    BUILD_PROFILES,
    CONFIGMAPS,
    CUSTOM,
    DEPLOYMENTS,
    NODES,
    Resource,
    resource_of,
)
from rm_operator.runtime.controller import Workers, connect
from rm_operator.runtime.metrics import Metrics
from rm_operator.runtime.queue import Queue
from rm_operator.runtime.recorder import EventRecorder

from scale import objects
from scale.cluster import SYSTEM_NAMESPACE
from scale.etcd import Entry
from scale.objects import Object

TEMPLATE = "scale-template"
"""Namespace of the deployments that the others are copies of."""
_UIDS = "aaaaaaaa"
_SETTLE_SECONDS = 120
_NODES = 8
_DEVICES_PER_NODE = 4096
"""There are more devices than anything here asks for."""


class Engine:
    """The operator's stores, queue, controllers and workers over an API in memory."""

    def __init__(self, workers: int = 16) -> None:
        self.stores = make_stores()
        self.api = MemoryApi(uid=lambda version: objects.uid(_UIDS, version))
        self.metrics = Metrics()
        self.queue = Queue(self.metrics)
        config = Config(
            system_namespace=SYSTEM_NAMESPACE, store="127.0.0.1:1", runtime_image="runtime:1",
            launcher_image="launcher:1",
        )  # fmt: skip
        client = cast("KubeClient", self.api)  # as far as settled ones need it
        recorder = EventRecorder(client, instance="scale")
        self.context = Context(client, self.stores, self.queue, recorder, config)
        self._controllers = controllers.build(self.context)
        self._workers = workers
        connect(self._controllers, self.stores, self.queue)

    def put(self, obj: Object) -> Object:
        """Have ``obj`` created by somebody."""
        made = self.api.put(obj)
        self.stores.put(made)
        return made

    async def close(self) -> None:
        """Close what the controllers have opened."""
        for closer in self.context.closers:
            await closer()

    async def settle(self) -> None:
        """Work until nothing is in line or in work. Fails if a reconcile did."""
        workers = Workers(self._controllers, self.stores, self.queue, metrics=self.metrics, count=self._workers)
        working = asyncio.create_task(workers.run())
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                while not self.queue.idle:  # noqa: ASYNC110 - the queue tells nobody
                    await asyncio.sleep(0)
        finally:
            working.cancel()
            await asyncio.wait([working])
        for counter in (self.metrics.reconcile_errors, self.metrics.terminal_errors):
            samples = [each for metric in counter.collect() for each in metric.samples if each.name.endswith("_total")]
            failed = {each.labels["controller"]: each.value for each in samples if each.value}
            assert not failed, f"reconciles failed: {failed}"
        assert not self.api.deleted, f"nothing is to be deleted here, least of all {list(self.api.deleted)[:5]}"


@dataclass(frozen=True)
class Settled:
    """A fleet, and one namespace of deployments that are as their specs say."""

    fleet: Sequence[tuple[Resource, Object]]
    """Cluster-scoped objects."""
    namespaced: Sequence[tuple[Resource, Object, bytes | None]]
    """Objects of the template's namespace, with what was applied to make them, as JSON without the hash of it."""

    def entries(self, spaces: Sequence[str]) -> Iterator[Entry]:
        """Everything as it is kept in etcd, with a copy of the namespace for each of ``spaces``."""
        for resource, obj in self.fleet:
            yield objects.entry(resource, _counted(resource, obj, len(spaces)))
        for number, space in enumerate(spaces):
            for resource, obj in self.copies(space, f"{number:08x}"):
                yield objects.entry(resource, obj)

    def copies(self, space: str, uids: str) -> Iterator[tuple[Resource, Object]]:
        """The template's objects as those of namespace ``space``, with uids that begin with ``uids``."""
        for resource, obj, intent in self.namespaced:
            copied: Object = orjson.loads(_renamed(orjson.dumps(obj), space, uids))
            if intent is not None:
                annotations = copied["metadata"]["annotations"]
                annotations[ANNOTATION_APPLIED_HASH] = desired_hash(orjson.loads(_renamed(intent, space, uids)))
            yield resource, copied

    @property
    def children(self) -> int:
        """Objects that the operator applied, per namespace."""
        return sum(resource not in (*CUSTOM, CONFIGMAPS) for resource, _, _ in self.namespaced)


def _renamed(content: bytes, space: str, uids: str) -> bytes:
    return content.replace(TEMPLATE.encode(), space.encode()).replace(f"{_UIDS}-".encode(), f"{uids}-".encode())


async def settled(deployments: int, *, prefix: str = "model", **spec: Any) -> Settled:
    """A namespace of ``deployments`` ModelDeployments, each with ``spec``, brought to rest by the real controllers."""
    engine = Engine()
    for number in range(_NODES):
        engine.put(objects.node(number, _DEVICES_PER_NODE))
    engine.put(objects.accelerator())
    engine.put(objects.profile())
    engine.put(objects.facts_map(TEMPLATE))
    for obj in objects.in_namespaces([TEMPLATE], deployments, prefix=prefix, **spec):
        engine.put(obj)
    await engine.settle()
    for artifact in engine.stores[BUILD_ARTIFACTS].list():
        engine.put({**artifact, "status": objects.built(artifact, deployments)})
    await engine.settle()

    fleet, namespaced = [], []
    for key, live in engine.api.objects.items():
        resource, intent = resource_of(live), engine.api.intent(key, FIELD_MANAGER)
        metadata = {name: value for name, value in live["metadata"].items() if name != "resourceVersion"}
        said = intent or {name: value for name, value in live.items() if name != "status"}
        fields = [objects.managed_fields(said, "rm-abstract-operator")]
        if "status" in live:
            status = {"apiVersion": live["apiVersion"], "status": live["status"]}
            fields.append(objects.managed_fields(status, "rm-abstract-operator-status", subresource="status"))
        obj = {**live, "metadata": {**metadata, "managedFields": fields}}
        if resource is DEPLOYMENTS:
            obj = objects.seen_to(obj)
        if resource in (NODES, ACCELERATOR_RESOURCES, BUILD_PROFILES):
            fleet.append((resource, orjson.loads(_renamed(orjson.dumps(obj), "", "dddddddd"))))
        else:
            namespaced.append((resource, obj, _without_hash(intent)))
    found = Settled(fleet, namespaced)
    await _verify(found, deployments)
    await engine.close()
    return found


def _counted(resource: Resource, obj: Object, spaces: int) -> Object:
    """A cluster-scoped object whose status counts what is in each of so many namespaces."""
    if resource is not BUILD_PROFILES:
        return obj
    return {**obj, "status": {**obj["status"], "artifacts": obj["status"]["artifacts"] * spaces}}


def _without_hash(intent: Object | None) -> bytes | None:
    if intent is None or ANNOTATION_APPLIED_HASH not in intent["metadata"].get("annotations", {}):
        return None
    annotations = {k: v for k, v in intent["metadata"]["annotations"].items() if k != ANNOTATION_APPLIED_HASH}
    metadata = {name: value for name, value in intent["metadata"].items() if name != "annotations"}
    return orjson.dumps({**intent, "metadata": metadata | ({"annotations": annotations} if annotations else {})})


async def _verify(found: Settled, deployments: int) -> None:
    """Fail unless the controllers have nothing to do for a copy either."""
    made = sum(resource is DEPLOYMENTS for resource, _, _ in found.namespaced)
    assert made == deployments, f"{made} of {deployments} deployments came to serving"
    fresh = Engine()
    for resource, obj in [*found.fleet, *found.copies("scale-copy", "bbbbbbbb")]:
        fresh.stores[resource].upsert({**obj, "metadata": {**obj["metadata"], "resourceVersion": "1"}})
        fresh.api.put(obj)
    before, asked = fresh.api.version, fresh.api.requests
    await fresh.settle()
    written = [obj for _, obj in fresh.api.changes if int(obj["metadata"]["resourceVersion"]) > before]
    assert fresh.api.requests == asked, f"the copy is not at rest: {written[:5]}"
    await fresh.close()
