"""Stores and Lease against a real API server that is frozen, killed and started again."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from operators import model
from real_api import ApiServer, eventually
from rm_operator.kube.auth import StaticToken
from rm_operator.kube.documents import decoded
from rm_operator.kube.errors import Forbidden, Gone, Unauthorized
from rm_operator.kube.http import HttpClient
from rm_operator.kube.lease import LeaderElector
from rm_operator.kube.reflector import Reflector
from rm_operator.kube.resources import CONFIGMAPS, DEPLOYMENTS, LEASES, MODEL_DEPLOYMENTS
from rm_operator.kube.store import Store

OURS = "tests=ours"


def config_map(namespace: str, name: str, **data: str) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name, "labels": {"tests": "ours"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


@asynccontextmanager
async def reflecting(client: HttpClient, store: Store, namespace: str, **options: Any) -> AsyncIterator[Reflector]:
    reflector = Reflector(client, store, namespace=namespace, label_selector=OURS, **options)
    task = asyncio.create_task(reflector.run())
    try:
        await asyncio.wait_for(store.synced.wait(), 30)
        yield reflector
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


def names(store: Store) -> list[str]:
    return [each["metadata"]["name"] for each in store]


async def test_the_store_follows_and_own_writes_are_ahead_of_it(client: HttpClient, api_namespace: str) -> None:
    store = Store(CONFIGMAPS)
    for number in range(30):
        await client.apply(CONFIGMAPS, config_map(api_namespace, f"c{number:02}"), field_manager="tests")
    changes: list[int] = []
    async with reflecting(client, store, api_namespace):
        assert len(store) == 30
        store.on_change(lambda old, new: changes.append(1))
        store.upsert(await client.apply(CONFIGMAPS, config_map(api_namespace, "c00", a="b"), field_manager="tests"))
        await client.delete(CONFIGMAPS, api_namespace, "c01")
        await eventually(lambda: len(store) == 29, "the deletion is seen")
        assert len(changes) == 2, "the event of the own write is no second change"


async def test_a_list_that_comes_in_many_parts_is_whole(client: HttpClient, api_namespace: str) -> None:
    """As the API server sends it: objects of its own kinds and of others, with what looks like the beginning of one."""
    claims = [{"metadata": {"name": f"v{number}"}} for number in range(3)]
    for number in range(25):
        name = f"c{number:02}"
        data = {"x": "y" * 10000, "claims": json.dumps(claims)}
        await client.apply(CONFIGMAPS, config_map(api_namespace, name, **data), field_manager="tests")
        await client.create(MODEL_DEPLOYMENTS, model(api_namespace, name), field_manager="tests")
    for resource, least in ((CONFIGMAPS, 3), (MODEL_DEPLOYMENTS, 1)):
        listed = await client.list(resource, api_namespace)
        parts = [part async for part in client.parts(resource, api_namespace)]
        assert len(parts) >= least
        assert [part.resource_version for part in parts] == [*[""] * (len(parts) - 1), listed.resource_version]
        found = [decoded(item) for part in parts for item in part.items]
        assert found == list(listed.items)
        assert len(found) == 25


async def test_a_server_that_was_killed_is_followed_again(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    store = Store(CONFIGMAPS)
    async with reflecting(client, store, api_namespace) as reflector:
        await client.apply(CONFIGMAPS, config_map(api_namespace, "before"), field_manager="tests")
        await eventually(lambda: names(store) == ["before"], "the first is seen")
        api_server.kill()
        await asyncio.to_thread(api_server.start)

        async def write() -> bool:
            try:
                await client.apply(CONFIGMAPS, config_map(api_namespace, "after"), field_manager="tests")
            except Exception:
                return False
            return True

        await eventually(write, "the server serves again", 60)
        await eventually(lambda: names(store) == ["after", "before"], "the second is seen", 60)
        assert reflector.alive


async def test_a_server_that_is_frozen_is_noticed_and_followed_again(api_server: ApiServer, api_namespace: str) -> None:
    store = Store(CONFIGMAPS)
    async with (
        HttpClient(api_server.connection(), attempt_seconds=1, deadline_seconds=2) as client,
        reflecting(client, store, api_namespace, inactivity_seconds=1.5),
    ):
        api_server.freeze()
        try:
            await asyncio.sleep(3)
        finally:
            api_server.thaw()
        other = HttpClient(api_server.connection())
        await other.apply(CONFIGMAPS, config_map(api_namespace, "meanwhile"), field_manager="tests")
        await other.close()
        await eventually(lambda: names(store) == ["meanwhile"], "what happened is seen", 60)


async def test_a_position_before_the_servers_memory_is_gone(client: HttpClient) -> None:
    # A freshly started server remembers nothing before its start, and etcd was not compacted: this number never was.
    with pytest.raises(Gone):
        async for _ in client.watch(CONFIGMAPS, resource_version="1"):
            pass


async def test_rights_and_credentials(api_server: ApiServer, api_namespace: str) -> None:
    async with HttpClient(api_server.connection("nobody")) as nobody:
        with pytest.raises(Forbidden, match="cannot patch"):
            await nobody.apply(CONFIGMAPS, config_map(api_namespace, "x"), field_manager="tests")
        with pytest.raises(Forbidden):
            async for _ in nobody.watch(DEPLOYMENTS, resource_version="0"):
                pass
    stranger = replace(api_server.connection("nobody"), credentials=StaticToken("unknown"))
    async with HttpClient(stranger) as unknown:
        with pytest.raises(Unauthorized):
            await unknown.list(CONFIGMAPS)


class TestLease:
    @staticmethod
    def elector(client: HttpClient, namespace: str, name: str, lost: list[str]) -> LeaderElector:
        return LeaderElector(
            client, namespace=namespace, name="lease", identity=name, on_lost=lambda: lost.append(name)
        )

    async def test_one_leads_and_hands_over(self, client: HttpClient, api_namespace: str) -> None:
        lost: list[str] = []
        first, second = (self.elector(client, api_namespace, name, lost) for name in "ab")
        leading = asyncio.create_task(first.run())
        await asyncio.wait_for(first.leading.wait(), 60)
        waiting = asyncio.create_task(second.run())
        await asyncio.sleep(5)  # two renewals
        assert (first.may_write(), second.may_write()) == (True, False)
        leading.cancel()
        await asyncio.wait([leading])
        await first.release()
        assert not first.may_write()
        await asyncio.wait_for(second.leading.wait(), 60)
        live = await client.get(LEASES, api_namespace, "lease")
        assert live["spec"]["holderIdentity"] == "b"
        assert live["spec"]["leaseTransitions"] == 2
        waiting.cancel()
        await asyncio.wait([waiting])
        assert lost == []

    async def test_a_theft_is_noticed_at_the_next_renewal(self, client: HttpClient, api_namespace: str) -> None:
        lost: list[str] = []
        first = self.elector(client, api_namespace, "a", lost)
        task = asyncio.create_task(first.run())
        await asyncio.wait_for(first.leading.wait(), 60)
        live = await client.get(LEASES, api_namespace, "lease")
        spec = {**live["spec"], "holderIdentity": "thief"}
        metadata = {"namespace": api_namespace, "name": "lease"}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        await client.apply(LEASES, body, field_manager="thief")
        await asyncio.wait_for(task, 60)
        assert lost == ["a"]
        assert not first.may_write()
        assert (await client.get(LEASES, api_namespace, "lease"))["spec"]["holderIdentity"] == "thief"
