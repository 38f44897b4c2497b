"""The process: kopf brings its lifecycle, signals, settings and login; everything else is started from here.

Reflectors keep a store of each kind, and changes of stores put keys on the queue. Every replica keeps all stores warm;
only the one that holds the Lease works on the queue.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import kopf
from rm_api.names import LABEL_MANAGED_BY, LEASE_NAME, MANAGED_BY

from rm_operator import controllers
from rm_operator.config import Config
from rm_operator.context import Context
from rm_operator.kube.auth import Connection
from rm_operator.kube.client import KubeClient
from rm_operator.kube.contents import Transform
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient, Observer
from rm_operator.kube.lease import LeaderElector
from rm_operator.kube.listing import Changes
from rm_operator.kube.reflector import Reflector
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    CONFIGMAPS,
    CONTROLLERREVISIONS,
    CUSTOM,
    DAEMONSETS,
    DEPLOYMENTS,
    DEVICE_CLASSES,
    ENDPOINTSLICES,
    HORIZONTALPODAUTOSCALERS,
    JOBS,
    NODES,
    PODS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    SERVICES,
    Resource,
)
from rm_operator.kube.store import Store, Stores
from rm_operator.kube.throttle import TokenBucket
from rm_operator.kube.trim import trim_node, trim_pod
from rm_operator.kube.trim_devices import trim_claim, trim_slice
from rm_operator.plan.image_volume import SINCE
from rm_operator.runtime import census
from rm_operator.runtime.controller import MAX_ASIDE, Controller, Workers, connect
from rm_operator.runtime.health import HealthServer, LoopWatch, Vital
from rm_operator.runtime.metrics import Metrics
from rm_operator.runtime.queue import Key, Queue
from rm_operator.runtime.recorder import EventRecorder
from rm_operator.runtime.tracing import Tracing, start_tracing

logger = logging.getLogger(__name__)

REQUESTS_PER_SECOND: Final = 1000.0
"""A bound on a defect of ours, not a throttle: the API server's own fairness does that."""
REQUEST_BURST: Final = 1000
SPARE_CONNECTIONS: Final = 48
"""Beside one for each reconcile: for watches, lists and Events, so that none of them waits for a slow reconcile."""
STOP_SECONDS: Final = 10.0
KINDS_POLL_SECONDS: Final = 2.0
CLASSES_POLL_SECONDS: Final = 60.0
FIRST_WITH_CLASSES: Final = (1, 36)
"""From this Kubernetes on pods request devices of a class by an extended resource, unless a feature gate says no."""
MANAGED: Final = f"{LABEL_MANAGED_BY}={MANAGED_BY}"


@dataclass(frozen=True)
class Reflected:
    """How a kind is kept."""

    resource: Resource
    label_selector: str | None = MANAGED
    transform: Transform | None = None
    by_class: bool = False
    """It is about devices that pods request by class, which not every API server has."""


REFLECTED: Final = (
    *(Reflected(resource, None) for resource in CUSTOM),
    Reflected(DEPLOYMENTS),
    Reflected(DAEMONSETS),
    Reflected(JOBS),
    Reflected(SERVICES),
    Reflected(CONFIGMAPS),
    Reflected(CONTROLLERREVISIONS),
    Reflected(HORIZONTALPODAUTOSCALERS),
    Reflected(ENDPOINTSLICES),  # they carry their Service's labels
    Reflected(NODES, None, trim_node),
    Reflected(PODS, None, trim_pod),
    Reflected(DEVICE_CLASSES, None, by_class=True),
    Reflected(RESOURCE_SLICES, None, trim_slice, by_class=True),
    Reflected(RESOURCE_CLAIMS, None, trim_claim, by_class=True),
)


class Operator:
    """Everything of one replica.

    ``die`` is called, with an exit status, where going on would do harm; ``loaded`` once all that there is is known.
    """

    def __init__(
        self,
        config: Config,
        connection: Connection,
        *,
        build: Callable[[Context], Sequence[Controller]] = controllers.build,
        die: Callable[[int], None] | None = None,
        loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.metrics = Metrics(host=urlsplit(connection.server).netloc).with_process_metrics()
        self.stores = make_stores()
        self.stores.unread_until_synced()
        self.queue = Queue(self.metrics)
        self.identity = f"{config.pod_name}_{uuid4().hex[:8]}"
        self.port = 0
        """Port of the health server, once it listens."""
        self._connection = connection
        self._build = build
        self._die = die or _exit
        self._loaded = loaded
        self._stack = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._vitals: dict[str, Vital] = {}

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Run until SIGTERM, SIGINT or ``stop``; raises what made kopf fail."""
        await kopf.operator(
            registry=self._registry(),
            settings=_settings(),
            standalone=True,
            clusterwide=True,
            stop_flag=stop,
        )

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            # Requests of this session read the token anew, so kopf needs no second way to authenticate.
            return kopf.AiohttpSession(server=self._connection.server, aiohttp_session=self._connection.open_session())

        @kopf.on.startup(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
        async def startup(**_: Any) -> None:
            await self._start()

        @kopf.on.cleanup(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
        async def cleanup(**_: Any) -> None:
            await self._stack.aclose()

        return registry

    async def _start(self) -> None:
        """Start all parts; each puts its end on the stack, which is unwound in the reverse order."""
        config, metrics, stack = self.config, self.metrics, self._stack
        health = HealthServer(
            metrics,
            port=config.metrics_port,
            vitals=lambda: self._vitals,
            unready=lambda: self.stores.unsynced,
            refresh=self._refresh_metrics,
        )
        self.port = await health.start()
        stack.push_async_callback(health.stop)

        tracing: Tracing | None = None
        if config.tracing:
            tracing = start_tracing(self._connection.server, instance=self.identity)
            stack.push_async_callback(tracing.close)
        # Renewals have a client of their own: they wait behind nothing.
        lease_client = HttpClient(self._connection, connections=2, attempt_seconds=5, observe=metrics.observe_request)
        await stack.enter_async_context(lease_client)
        elector = LeaderElector(
            lease_client,
            namespace=config.system_namespace,
            name=LEASE_NAME,
            identity=self.identity,
            on_lost=lambda: self._die(1),
        )
        client = HttpClient(
            self._connection,
            bucket=TokenBucket(REQUESTS_PER_SECOND, REQUEST_BURST),
            may_write=elector.may_write if config.leader_elect else None,
            observe=_both(metrics.observe_request, tracing.observe_request) if tracing else metrics.observe_request,
            connections=config.workers + MAX_ASIDE + SPARE_CONNECTIONS,
        )
        await stack.enter_async_context(client)
        stack.push_async_callback(elector.release)
        recorder = EventRecorder(client, instance=self.identity, metrics=metrics)
        context = Context(client, self.stores, self.queue, recorder, config, metrics, tracing)
        stack.push_async_callback(_close_all, context)
        context.image_volumes = config.image_volumes == "Auto" and await _has_image_volumes(client)
        built = self._build(context)
        stack.push_async_callback(recorder.drain, STOP_SECONDS / 2)
        stack.push_async_callback(self._cancel_tasks)

        loop_watch = LoopWatch(metrics)
        self._vitals["event loop"] = loop_watch
        self._spawn("event loop watch", loop_watch.run())
        await self._wait_for_kinds(client)
        self._keep_stores(client)
        self._spawn("device classes", self._follow_classes(client))
        self._spawn("event recorder", recorder.run())
        workers = Workers(built, self.stores, self.queue, metrics=metrics, tracing=tracing, count=config.workers)
        self._spawn("leader", self._lead(elector, workers, built, context.openers))

    def _keep_stores(self, client: KubeClient) -> None:
        for kept in REFLECTED:
            if not kept.by_class:
                self._keep(kept, client)

    def _keep(self, kept: Reflected, client: KubeClient) -> None:
        name, store = f"reflector of {kept.resource.name}", self.stores[kept.resource]
        reflector = Reflector(
            client, store, label_selector=kept.label_selector, observer=_ReflectorMetrics(self.metrics)
        )
        self._vitals[name] = reflector
        self._spawn(name, reflector.run())

    async def _follow_classes(self, client: HttpClient) -> None:
        """Keep what is about devices by class, from when on the API server lets pods request them; then wait."""
        kinds = [kept for kept in REFLECTED if kept.by_class]
        while True:
            try:
                lack = await _lacks_classes(client)
            except ApiError as error:
                logger.warning("the API server does not say whether it has device classes: %s", error)
                await asyncio.sleep(KINDS_POLL_SECONDS)
                continue
            for kept in kinds:
                self.stores[kept.resource].is_unserved(lack)
            if not lack:
                break
            await asyncio.sleep(CLASSES_POLL_SECONDS)
        for kept in kinds:
            self._keep(kept, client)
        for kept in kinds:
            await self.stores[kept.resource].synced.wait()
        for _, name in self.stores[ACCELERATOR_RESOURCES].keys():  # noqa: SIM118 - a store is no mapping
            self.queue.add(Key(ACCELERATOR_RESOURCES.kind, "", name))
        await asyncio.Event().wait()

    async def _lead(
        self,
        elector: LeaderElector,
        workers: Workers,
        built: Sequence[Controller],
        openers: Sequence[Callable[[], None]],
    ) -> None:
        """Once everything is known and the Lease is held: work, until cancelled."""
        await self.stores.wait_synced()
        self._loaded()
        connect(built, self.stores, self.queue)
        logger.info("all stores are synced")
        leading = self.metrics.leader.labels(LEASE_NAME)
        leading.set(0)
        if self.config.leader_elect:
            self._spawn("elector", elector.run())
            await elector.leading.wait()
        leading.set(1)
        for opener in openers:
            opener()
        working = asyncio.create_task(workers.run(), name="workers")
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            # Stopping: reconciles in progress may finish, as long as the Lease, which is not renewed now, lasts.
            self.queue.close()
            await asyncio.wait([working], timeout=STOP_SECONDS)
            working.cancel()
            await asyncio.wait([working])
            raise

    async def _wait_for_kinds(self, client: HttpClient) -> None:
        missing: list[str] = []
        while True:
            try:
                found = [resource.name for resource in CUSTOM if not await client.serves(resource)]
            except ApiError as error:
                logger.warning("the API server does not say which kinds it serves: %s", error)
            else:
                if not found:
                    return
                if found != missing:
                    logger.warning("waiting for the CustomResourceDefinitions %s", ", ".join(found))
                missing = found
            await asyncio.sleep(KINDS_POLL_SECONDS)

    def _spawn(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """No part of the operator ends by itself: without it the others would be a zombie."""
        self._tasks.discard(task)
        if not self._stopping:
            error = None if task.cancelled() else task.exception()
            logger.critical("%s ended", task.get_name(), exc_info=error)
            self._die(1)

    async def _cancel_tasks(self) -> None:
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _refresh_metrics(self) -> None:
        self.queue.observe_work()
        for store in self.stores:
            self.metrics.store_objects.labels(store.resource.name).set(len(store))
        census.observe_objects(self.metrics, self.stores)


async def _lacks_classes(client: HttpClient) -> str:
    """Why pods cannot request devices by class here; empty where they can."""
    version = await client.version()
    if version < FIRST_WITH_CLASSES:
        return f"the API server is {version[0]}.{version[1]}"
    return (
        "" if await client.serves(RESOURCE_SLICES) else f"the API server does not serve {RESOURCE_SLICES.api_version}"
    )


async def _has_image_volumes(client: HttpClient) -> bool:
    """Whether pods have image volumes here, as soon as the API server says how old it is."""
    while True:
        try:
            version = await client.version()
        except ApiError as error:
            logger.warning("the API server does not say whether it has image volumes: %s", error)
            await asyncio.sleep(KINDS_POLL_SECONDS)
            continue
        if version < SINCE:
            logger.warning(
                "serving pods fetch their artifacts: the API server is %d.%d, and image volumes need %d.%d",
                *version, *SINCE,
            )  # fmt: skip
        return version >= SINCE


class _ReflectorMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def listed(self, resource: Resource, changes: Changes, *, first: bool) -> None:
        self._metrics.relists.labels(resource.name).inc()
        if not first and changes.removed:
            self._metrics.swept.labels(resource.name).inc(len(changes.removed))

    def failed(self, resource: Resource) -> None:
        self._metrics.watch_failures.labels(resource.name).inc()


class _Backoffs:
    """kopf's waits between tries of a request: without end, since it asks for the served kinds once, and would end."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1, 2, 4, 8, 15)
        while True:
            yield 30


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.error_backoffs = _Backoffs()
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 10
    settings.process.ultimate_exiting_timeout = 3 * STOP_SECONDS
    return settings


def make_stores() -> Stores:
    """An empty store for each kind, with all indexes."""
    return Stores(
        Store(
            kept.resource,
            indexes={**controllers.INDEXES.get(kept.resource, {}), **census.INDEXES.get(kept.resource, {})},
            transform=kept.transform,
        )
        for kept in REFLECTED
    )


def _both(first: Observer, second: Observer) -> Observer:
    def observe(verb: str, resource: Resource, status: int, seconds: float) -> None:
        first(verb, resource, status, seconds)
        second(verb, resource, status, seconds)

    return observe


async def _close_all(context: Context) -> None:
    for closer in reversed(context.closers):
        await closer()


def _exit(status: int) -> None:
    """End the process at once: no clean-up that might still write."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)
