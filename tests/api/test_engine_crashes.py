"""The operator ends at any of its writes, before it is done or before it hears of it: the next life mends everything.

The real controllers, a real API server. Nothing runs pods here, so the chain goes as far as the Job that resolves the
model; the whole chain is walked with the API in memory.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from api_proxy import ApiProxy, Lost, Passing
from custom_objects import SMALLEST, custom_object
from operators import Process, model
from real_api import NAMESPACES, ApiServer, eventually
from rm_operator import controllers
from rm_operator.app import Operator
from rm_operator.config import Config
from rm_operator.kube.client import Object
from rm_operator.kube.http import HttpClient
from rm_operator.kube.reflector import Reflector
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    BUILD_PROFILES,
    CONFIGMAPS,
    DAEMONSETS,
    JOBS,
    MODEL_DEPLOYMENTS,
    SERVICES,
    Resource,
)
from rm_operator.kube.store import Store, key_of, version_of

LOOKED_AT = (MODEL_DEPLOYMENTS, ACCELERATOR_RESOURCES, BUILD_PROFILES, JOBS, CONFIGMAPS, SERVICES, DAEMONSETS)


class Workload:
    """Objects of one namespace and their cluster-scoped companions; the same each time but for their prefix."""

    def __init__(self, client: HttpClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self._stores = [Store(resource) for resource in LOOKED_AT]
        self._counts: Counter[str] = Counter()

    @asynccontextmanager
    async def begun(self) -> AsyncIterator["Workload"]:
        """Makes the objects, and counts what comes and goes."""
        following = []
        for store in self._stores:
            following.append(asyncio.create_task(Reflector(self.client, store).run()))
            await asyncio.wait_for(store.synced.wait(), 60)
            store.on_change(partial(self._count, store.resource))
        try:
            create = self.client.create
            for kind, resource in (("BuildProfile", BUILD_PROFILES), ("AcceleratorResource", ACCELERATOR_RESOURCES)):
                body = custom_object(kind, SMALLEST[kind], "", f"{self.namespace}-c")
                await create(resource, body, field_manager="tests")
            for name, source in (("one", "model"), ("two", "model"), ("other", "other")):
                body = model(self.namespace, name)
                body["spec"]["model"]["source"] = f"hf://example/{source}"
                await create(MODEL_DEPLOYMENTS, body, field_manager="tests")
            yield self
        finally:
            for each in following:
                each.cancel()
            await asyncio.wait(following)
            for resource in (BUILD_PROFILES, ACCELERATOR_RESOURCES):
                await self.client.delete(resource, None, f"{self.namespace}-c")

    def _count(self, resource: Resource, old: Object | None, new: Object | None) -> None:
        obj = new or old
        assert obj is not None
        if (old is None or new is None) and self._is_mine(resource, obj):
            name = self._neutral(obj["metadata"]["name"])
            self._counts[f"{'made' if old is None else 'deleted'}: {resource.kind} {name}"] += 1

    async def state(self) -> dict[str, Any]:
        """Everything that is there, without what differs from run to run."""
        found = {}
        for resource in LOOKED_AT:
            listed = await self.client.list(resource, self.namespace if resource.namespaced else None)
            for item in listed.items:
                if self._is_mine(resource, item):
                    found[f"{resource.kind} {self._neutral(item['metadata']['name'])}"] = self._neutral(_masked(item))
        return found

    async def history(self) -> dict[str, int]:
        """How often each object was made and deleted since the beginning."""

        async def followed() -> bool:
            for store in self._stores:
                listed = await self.client.list(store.resource)
                versions = {key_of(item): version_of(item) for item in listed.items}
                if versions != {key_of(each): version_of(each) for each in store}:
                    return False
            return True

        await eventually(followed, "what there is has been heard of")
        return dict(self._counts)

    def _is_mine(self, resource: Resource, item: Object) -> bool:
        metadata = item["metadata"]
        if resource.namespaced:
            return bool(metadata["namespace"] == self.namespace)
        return bool(metadata["name"] == f"{self.namespace}-c")

    def _neutral(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(self.namespace, "NAMESPACE")
        if isinstance(value, list):
            return [self._neutral(each) for each in value]
        if isinstance(value, dict):
            return {key: self._neutral(each) for key, each in value.items()}
        return value


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """Where two values differ, for a person to read."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(found.keys() | expected.keys())
        return [line for key in keys for line in differences(found.get(key), expected.get(key), f"{where}.{key}")]
    return [] if found == expected else [f"{where}: {found!r}, not {expected!r}"]


def _masked(obj: dict[str, Any]) -> dict[str, Any]:
    """Without what the API server numbers and dates, and what follows from it."""
    metadata = {
        key: value
        for key, value in obj["metadata"].items()
        if key not in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "annotations")
    }
    # Owners that came one after the other stand in that order.
    owners = sorted(
        ({**owner, "uid": "x"} for owner in metadata.pop("ownerReferences", [])), key=lambda owner: str(owner["name"])
    )
    status = dict(obj.get("status") or {})
    status["conditions"] = [{**each, "lastTransitionTime": "x"} for each in status.get("conditions") or ()]
    spec = {key: each for key, each in (obj.get("spec") or {}).items() if not key.startswith("clusterIP")}
    spec = _without_uids(spec)
    return {**obj, "metadata": {**metadata, "ownerReferences": owners}, "status": status, "spec": spec}


def _without_uids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_uids(each) for key, each in value.items() if not key.endswith("controller-uid")}
    if isinstance(value, list):
        return [_without_uids(each) for each in value]
    return value


class Life:
    """One life of the operator; it ends at its ``fatal``-th write, or when it is told to."""

    def __init__(self, server: ApiServer, namespace: str, *, fatal: int = 0, late: bool = False) -> None:
        self.proxy = ApiProxy(server)
        self.writes = 0
        self.dead = asyncio.Event()
        self._fatal, self._late = fatal, late
        self._last: Passing | None = None
        self._stop = asyncio.Event()
        self.died: list[int] = []
        self._config = Config(
            system_namespace=namespace,
            store="127.0.0.1:1",
            runtime_image="runtime",
            launcher_image="launcher",
            metrics_port=0,
            leader_elect=False,
            # One write after the other: which one is the last is then known.
            workers=1,
        )

    @asynccontextmanager
    async def lived(self) -> AsyncIterator["Life"]:
        async with self.proxy:
            self.proxy.before, self.proxy.after = self._before, self._after
            self.operator = Operator(self._config, self.proxy.connection, build=controllers.build, die=self.died.append)
            task = asyncio.create_task(self.operator.run(self._stop))
            try:
                yield self
                assert self.died == []
            finally:
                # Whatever it still wants to write now, nothing of it arrives: it is dead to the API server.
                self.proxy.cut()
                self._stop.set()
                await asyncio.wait_for(task, 120)

    async def _before(self, passing: Passing) -> None:
        if passing.writes:
            self.writes += 1
            if self.writes == self._fatal:
                self._last = passing
                if not self._late:
                    self._die()

    async def _after(self, passing: Passing) -> None:
        if passing is self._last:
            self._die()

    def _die(self) -> None:
        self.dead.set()
        self.proxy.cut()
        raise Lost

    async def settled(self) -> None:
        """All is known, nothing is in line or in work, and it stays so for a moment."""
        quiet = 0

        def still() -> bool:
            nonlocal quiet
            rests = not self.operator.stores.unsynced and self.operator.queue.idle and bool(self.operator.port)
            quiet = quiet + 1 if rests else 0
            return quiet > 25

        await eventually(still, "it comes to rest", 120)


@pytest.fixture
async def reference(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> tuple[dict[str, Any], dict[str, int], int]:
    """End state, history and number of writes of a life without a fault."""
    async with Workload(client, api_namespace).begun() as workload, Life(api_server, api_namespace).lived() as life:
        await life.settled()
        return await workload.state(), await workload.history(), life.writes


@pytest.mark.parametrize("late", [False, True], ids=["before it is done", "before it is heard of"])
async def test_an_end_at_any_write_changes_nothing(
    api_server: ApiServer, client: HttpClient, reference: tuple[dict[str, Any], dict[str, int], int], late: bool
) -> None:
    """Each life ends at its first write, then each at its second: so every write is the last of some life."""
    state, history, writes = reference
    assert writes >= 6
    assert {"Job", "ModelDeployment", "BuildProfile"} <= {key.split()[0] for key in state}
    for fatal in (1, 2):
        namespace = f"crash-{fatal}-{'late' if late else 'early'}"
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        await client.create(NAMESPACES, body, field_manager="tests")
        async with Workload(client, namespace).begun() as workload:
            lives = 0
            while await _lives_until_rest(Life(api_server, namespace, fatal=fatal, late=late)):
                lives += 1
                assert lives <= 2 * writes, "it never gets further than its own end"
                if not late and fatal == 1:
                    break  # such a life does nothing, however often it is lived
            async with Life(api_server, namespace).lived() as life:
                await life.settled()
            assert lives >= 1
            assert differences(await workload.state(), state) == []
            assert differences(await workload.history(), history) == []


async def _lives_until_rest(life: Life) -> bool:
    """True if it died on the way."""
    async with life.lived():
        resting = asyncio.create_task(life.settled())
        dying = asyncio.create_task(life.dead.wait())
        await asyncio.wait([resting, dying], return_when=asyncio.FIRST_COMPLETED)
        died = life.dead.is_set()
        resting.cancel()
        dying.cancel()
        await asyncio.wait([resting, dying])
    return died


async def test_a_process_that_is_killed_in_its_writes_is_followed_by_one_that_ends_them(
    api_server: ApiServer, client: HttpClient, api_namespace: str, tmp_path: Path
) -> None:
    async with Workload(client, api_namespace).begun() as workload, ApiProxy(api_server) as proxy:
        killed = asyncio.Event()

        async def kill(passing: Passing) -> None:
            if passing.writes and len(proxy.writes) >= 3 and not killed.is_set():
                killed.set()
                first.process.send_signal(signal.SIGKILL)
                raise Lost

        proxy.after = kill
        first = Process(api_server, api_namespace, tmp_path, "first", proxy=proxy, leader_elect=False)
        try:
            await asyncio.wait_for(killed.wait(), 120)
            assert await first.ended(60) == -signal.SIGKILL
        finally:
            first.process.kill()
            first.process.wait()
        async with Life(api_server, api_namespace).lived() as life:
            await life.settled()
        history = await workload.history()
        assert {name: count for name, count in history.items() if count != 1} == {}
        assert not any(name.startswith("deleted") for name in history)
