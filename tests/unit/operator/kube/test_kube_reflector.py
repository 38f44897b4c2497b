"""Whatever happens to the watch, the store ends up like the cluster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from fake_api import FakeApi, status
from rm_operator.kube.client import Part
from rm_operator.kube.http import HttpClient
from rm_operator.kube.reflector import Reflector
from rm_operator.kube.resources import CONFIGMAPS, Resource
from rm_operator.kube.store import Changes, Store
from waiting import eventually


class Observed:
    def __init__(self) -> None:
        self.lists: list[tuple[bool, int]] = []
        self.failures = 0

    def listed(self, resource: Resource, changes: Changes, *, first: bool) -> None:
        self.lists.append((first, len(changes.removed)))

    def failed(self, resource: Resource) -> None:
        self.failures += 1


class Running:
    def __init__(self, api: FakeApi, client: HttpClient, **options: Any) -> None:
        self.api = api
        self.store = Store(CONFIGMAPS)
        self.observed = Observed()
        self.reflector = Reflector(client, self.store, observer=self.observed, **options)

    @property
    def names(self) -> list[str]:
        return [each["metadata"]["name"] for each in self.store]

    async def has(self, *names: str) -> None:
        await eventually(lambda: self.names == list(names), f"the store holds {names}, not {self.names}")

    async def watches(self) -> None:
        await eventually(lambda: self.api.watching == 1, "a watch is open")


@asynccontextmanager
async def reflecting(api: FakeApi, client: HttpClient, **options: Any) -> AsyncIterator[Running]:
    running = Running(api, client, **options)
    task = asyncio.create_task(running.reflector.run())
    try:
        await running.store.synced.wait()
        await running.watches()
        yield running
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_follows_the_cluster(api: FakeApi, client: HttpClient) -> None:
    api.put(CONFIGMAPS, "ns", "a")
    async with reflecting(api, client) as running:
        await running.has("a")
        api.put(CONFIGMAPS, "ns", "b")
        api.put(CONFIGMAPS, "ns", "a", data={"x": "y"})
        await running.has("a", "b")
        api.remove(CONFIGMAPS, "ns", "a")
        await running.has("b")
        assert running.store.resource_version == str(api.version)
        assert running.observed.lists == [(True, 0)]


async def test_an_ended_watch_goes_on_without_a_list(api: FakeApi, client: HttpClient) -> None:
    async with reflecting(api, client) as running:
        api.put(CONFIGMAPS, "ns", "a")
        await running.has("a")
        api.end_watches()
        await eventually(lambda: len(api.requests("GET", watch=True)) == 2, "another watch begins")
        api.put(CONFIGMAPS, "ns", "b")
        await running.has("a", "b")
        assert len(running.observed.lists) == 1


async def test_deletions_missed_before_a_410_are_swept(api: FakeApi, client: HttpClient) -> None:
    for number in range(200):
        api.put(CONFIGMAPS, "ns", f"c{number:03}")
    async with reflecting(api, client) as running:
        gone: list[str] = []
        running.store.on_change(lambda old, new: gone.append((old or {})["metadata"]["name"]) if new is None else None)
        api.freeze()
        api.end_watches()
        for number in range(100):
            api.remove(CONFIGMAPS, "ns", f"c{number:03}")
        api.compact()
        api.thaw()
        await eventually(lambda: len(running.store) == 100, "what is gone is swept")
        assert gone == [f"c{number:03}" for number in range(100)]
        assert running.observed.lists[-1] == (False, 100)


@pytest.mark.parametrize("junk", [b'{"type":"ADDED","obj', b"<html>\n", b'{"type":"MODIFIED"}\n'])
async def test_garbage_in_the_stream_is_not_believed(api: FakeApi, client: HttpClient, junk: bytes) -> None:
    async with reflecting(api, client) as running:
        api.put(CONFIGMAPS, "ns", "a")
        await running.has("a")
        api.send(junk)
        api.end_watches()
        await eventually(lambda: api.watching == 0, "the watch ended")
        api.put(CONFIGMAPS, "ns", "b")
        await running.has("a", "b")
        assert running.observed.failures == 1


async def test_a_frozen_server_costs_a_list_once_it_is_back(api: FakeApi) -> None:
    api.bookmark_every = 0.1
    async with (
        HttpClient(api.connection, attempt_seconds=0.3, deadline_seconds=0.5) as client,
        reflecting(api, client, inactivity_seconds=0.4) as running,
    ):
        api.freeze()
        await eventually(lambda: running.observed.failures >= 1, "the silence is noticed")
        api.put(CONFIGMAPS, "ns", "meanwhile")
        api.thaw()
        await running.has("meanwhile")


async def test_a_server_that_is_away_for_long_is_no_reason_for_a_restart(api: FakeApi, client: HttpClient) -> None:
    async with reflecting(api, client, inactivity_seconds=15) as running:

        async def away(_: web.Request) -> web.StreamResponse | None:
            return status(503, "ServiceUnavailable")

        api.intercept = away
        api.end_watches()
        await eventually(lambda: running.observed.failures >= 2, "it is away")
        assert running.reflector.alive
        api.put(CONFIGMAPS, "ns", "a")
        api.intercept = None
        await running.has("a")


async def test_after_a_restore_from_backup_the_store_is_what_was_restored(api: FakeApi, client: HttpClient) -> None:
    api.put(CONFIGMAPS, "ns", "a")
    api.memory.version = 1000
    api.put(CONFIGMAPS, "ns", "lost")
    async with reflecting(api, client, inactivity_seconds=0.3) as running:
        await running.has("a", "lost")
        del api.memory.objects["ConfigMap", "ns", "lost"]
        api.restore(500)
        await running.has("a")
        api.put(CONFIGMAPS, "ns", "b")
        await running.has("a", "b")


async def test_missing_rights_are_tried_again(api: FakeApi, client: HttpClient) -> None:
    async def forbidden(_: web.Request) -> web.StreamResponse | None:
        return status(403, "Forbidden", 'User "x" cannot list resource "configmaps"')

    api.intercept = forbidden
    running = Running(api, client)
    task = asyncio.create_task(running.reflector.run())
    await eventually(lambda: running.observed.failures >= 1, "it was refused")
    assert not running.store.synced.is_set()
    api.intercept = None
    await asyncio.wait_for(running.store.synced.wait(), 5)
    task.cancel()
    await asyncio.wait([task])


async def test_a_watch_that_ends_at_once_each_time_does_not_spin(api: FakeApi, client: HttpClient) -> None:
    async with reflecting(api, client) as running:

        async def at_once(request: web.Request) -> web.StreamResponse | None:
            return web.Response() if "watch" in request.query else None

        api.intercept = at_once
        api.end_watches()
        await eventually(lambda: running.observed.failures >= 2, "it is taken for a failure")
        assert len(api.requests("GET", watch=True)) <= 5
        api.intercept = None
        await running.watches()


async def test_bookmarks_move_the_position(api: FakeApi, client: HttpClient) -> None:
    api.bookmark_every = 0.05
    async with reflecting(api, client) as running:
        api.memory.version += 50  # other kinds changed
        await eventually(lambda: running.store.resource_version == str(api.version), "the bookmark is taken")
        assert len(running.store) == 0


async def test_only_what_the_selector_wants(api: FakeApi, client: HttpClient) -> None:
    api.put(CONFIGMAPS, "ns", "ours", metadata={"labels": {"app": "x"}})
    api.put(CONFIGMAPS, "ns", "theirs")
    async with reflecting(api, client, label_selector="app=x") as running:
        api.put(CONFIGMAPS, "ns", "theirs-too")
        api.put(CONFIGMAPS, "ns", "ours-too", metadata={"labels": {"app": "x"}})
        await running.has("ours", "ours-too")


@pytest.mark.parametrize("ends", [b"", b"0\r\n\r\n"], ids=["cut off", "ended early"])
async def test_a_list_that_breaks_off_says_nothing_of_what_is_gone(
    api: FakeApi, client: HttpClient, ends: bytes
) -> None:
    for name in "ab":
        api.put(CONFIGMAPS, "ns", name)
    broken = 0

    async def break_off(request: web.Request) -> web.StreamResponse | None:
        nonlocal broken
        if "watch" in request.query or broken > 1:
            return None
        broken += 1
        assert request.transport is not None
        begun = b'{"metadata":{"resourceVersion":"900"},"items":['
        request.transport.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(begun), begun)
        )
        request.transport.write(ends)
        request.transport.close()
        return web.Response()

    async with reflecting(api, client) as running:
        gone: list[object] = []
        running.store.on_change(lambda old, new: gone.append(old) if new is None else None)
        api.intercept = break_off
        api.freeze()
        api.end_watches()
        api.put(CONFIGMAPS, "ns", "a", data={"x": "y"})
        api.compact()
        api.thaw()
        await eventually(lambda: len(running.observed.lists) == 2, "it is listed again", 15)
        assert broken == 2
        assert gone == []
        assert running.names == ["a", "b"]


async def test_a_stuck_loop_is_not_alive(api: FakeApi, client: HttpClient) -> None:
    running = Running(api, client, inactivity_seconds=0.05)
    assert running.reflector.alive, "it has not begun"
    blocked = asyncio.Event()

    async def hang(*_: Any, **__: Any) -> AsyncIterator[Part]:
        await blocked.wait()
        yield Part(())

    client.parts = hang  # type: ignore[method-assign]
    task = asyncio.create_task(running.reflector.run())
    await eventually(lambda: not running.reflector.alive, "it is found stuck")
    task.cancel()
    await asyncio.wait([task])
