"""The second look at stores that kopf fills: ghosts go, and a dead watch is found out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fake_api import FakeApi
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import BUILD_ARTIFACTS
from rm_operator.kube.store import Store
from rm_operator.kube.sweep import Sweeper
from waiting import eventually

KIND = BUILD_ARTIFACTS


@asynccontextmanager
async def sweeping(sweeper: Sweeper) -> AsyncIterator[None]:
    task = asyncio.create_task(sweeper.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_synced_means_that_everything_listed_is_known(api: FakeApi, client: HttpClient) -> None:
    objects: list[dict[str, Any]] = [api.put(KIND, "ns", name) for name in "abc"]
    store = Store(KIND)
    async with sweeping(Sweeper(client, store)):
        store.upsert(objects[0])
        store.upsert(objects[1])
        await eventually(lambda: len(api.seen) >= 1, "a list")
        assert not store.synced.is_set()
        store.upsert(objects[2])
        await asyncio.wait_for(store.synced.wait(), 5)


async def test_an_object_that_goes_during_the_start_is_not_waited_for(api: FakeApi, client: HttpClient) -> None:
    api.put(KIND, "ns", "short-lived")
    store = Store(KIND)
    async with sweeping(Sweeper(client, store)):
        await eventually(lambda: len(api.seen) >= 1, "a list")
        api.remove(KIND, "ns", "short-lived")
        await asyncio.wait_for(store.synced.wait(), 10)


async def test_an_empty_kind_is_synced_at_once(api: FakeApi, client: HttpClient) -> None:
    store = Store(KIND)
    async with sweeping(Sweeper(client, store)):
        await asyncio.wait_for(store.synced.wait(), 2)


async def test_ghosts_are_removed_and_told_of(api: FakeApi, client: HttpClient) -> None:
    store = Store(KIND)
    swept: list[int] = []
    told: list[str] = []
    for name in "abc":
        store.upsert(api.put(KIND, "ns", name))
    store.on_change(lambda old, new: told.append((old or {})["metadata"]["name"]) if new is None else None)
    async with sweeping(Sweeper(client, store, interval=0.05, swept=swept.append)):
        await store.synced.wait()
        api.remove(KIND, "ns", "a")
        api.remove(KIND, "ns", "c")
        await eventually(lambda: len(store) == 1, "the ghosts are gone")
    assert sorted(told) == ["a", "c"]
    assert sum(swept) == 2


async def test_what_an_own_write_told_after_the_list_was_taken_stays(api: FakeApi, client: HttpClient) -> None:
    store = Store(KIND)
    async with sweeping(Sweeper(client, store, interval=0.02)):
        await store.synced.wait()
        future = {"namespace": "ns", "name": "new", "uid": "u", "resourceVersion": str(api.version + 100)}
        store.upsert({"apiVersion": KIND.api_version, "kind": KIND.kind, "metadata": future})
        swept = len(api.seen)
        await eventually(lambda: len(api.seen) >= swept + 3, "more sweeps")
        assert len(store) == 1


async def test_a_dead_watch_is_found_and_one_that_lives_again_too(api: FakeApi, client: HttpClient) -> None:
    store = Store(KIND)
    store.upsert(api.put(KIND, "ns", "a"))
    sweeper = Sweeper(client, store, interval=0.05)
    async with sweeping(sweeper):
        await store.synced.wait()
        assert sweeper.alive
        changed = api.put(KIND, "ns", "a", spec={"x": "y"})
        await eventually(lambda: not sweeper.alive, "nobody brought the change")
        store.upsert(changed)
        await eventually(lambda: sweeper.alive, "it was brought after all")


async def test_an_object_that_changes_all_the_time_is_no_dead_watch(api: FakeApi, client: HttpClient) -> None:
    store = Store(KIND)
    store.upsert(api.put(KIND, "ns", "a"))
    sweeper = Sweeper(client, store, interval=0.05)
    async with sweeping(sweeper):
        await store.synced.wait()
        pending = None
        for _ in range(40):
            # The store lags by one change all along.
            changed = api.put(KIND, "ns", "a")
            if pending is not None:
                store.upsert(pending)
            pending = changed
            await asyncio.sleep(0.01)
            assert sweeper.alive


async def test_an_api_server_that_is_away_removes_nothing(api: FakeApi) -> None:
    store = Store(KIND)
    store.upsert(api.put(KIND, "ns", "a"))
    async with HttpClient(api.connection, attempt_seconds=0.05, deadline_seconds=0.1) as client:
        sweeper = Sweeper(client, store, interval=0.05)
        async with sweeping(sweeper):
            await store.synced.wait()
            api.freeze()
            seen = len(api.seen)
            await eventually(lambda: len(api.seen) >= seen + 3, "sweeps that fail")
            assert len(store) == 1
            assert sweeper.alive
            api.thaw()
