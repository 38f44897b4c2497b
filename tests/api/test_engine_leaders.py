"""Two replicas under load: whoever lost the Lease writes nothing more, and who stops hands over cleanly."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from api_proxy import ApiProxy, Lost, Passing
from custom_objects import SMALLEST, custom_object
from operators import Process
from real_api import ApiServer, eventually
from rm_api.names import LEASE_NAME
from rm_operator.kube.http import HttpClient
from rm_operator.kube.lease import LeaseTimes
from rm_operator.kube.resources import BUILD_PROFILES, LEASES


@asynccontextmanager
async def churn(client: HttpClient, namespace: str) -> AsyncIterator[None]:
    """New BuildProfiles all the time: each of them wants a status from the leader."""

    enough = asyncio.Event()

    async def make() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            profile = custom_object("BuildProfile", SMALLEST["BuildProfile"], "", f"{namespace}-{number}")
            await client.create(BUILD_PROFILES, profile, field_manager="tests")
            await asyncio.sleep(0.05)

    making = asyncio.create_task(make())
    try:
        yield
        assert not making.done()
    finally:
        # Not cancelled: a request that is broken off leaves its connection behind.
        enough.set()
        await making


class Replicas:
    """Replicas, each behind a proxy of its own."""

    def __init__(self, server: ApiServer, namespace: str, directory: Path) -> None:
        self._server, self._namespace, self._directory = server, namespace, directory
        self._stack = AsyncExitStack()
        self._processes: list[Process] = []

    async def start(self, name: str) -> tuple[Process, ApiProxy]:
        proxy = await self._stack.enter_async_context(ApiProxy(self._server))
        process = Process(self._server, self._namespace, self._directory, name, proxy=proxy)
        self._processes.append(process)
        return process, proxy

    async def pair(self) -> tuple[Process, ApiProxy, Process, ApiProxy]:
        """The first leads and the second is warm."""
        first, first_proxy = await self.start("first")
        await eventually(first.leads, "the first leads", 120)
        second, second_proxy = await self.start("second")
        await eventually(second.ready, "the second is warm", 120)
        return first, first_proxy, second, second_proxy

    async def close(self) -> None:
        for each in self._processes:
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGCONT)
                each.process.kill()
            each.process.wait()
        await self._stack.aclose()


@pytest.fixture
async def replicas(api_server: ApiServer, api_namespace: str, tmp_path: Path) -> AsyncIterator[Replicas]:
    found = Replicas(api_server, api_namespace, tmp_path)
    yield found
    await found.close()


async def test_a_leader_that_sleeps_past_its_lease_writes_nothing_when_it_wakes(
    replicas: Replicas, client: HttpClient, api_namespace: str
) -> None:
    first, first_proxy, second, second_proxy = await replicas.pair()
    async with churn(client, api_namespace):
        await eventually(lambda: len(first_proxy.writes) >= 5, "the first writes", 60)
        assert second_proxy.writes == [], "who waits writes nothing"
        first.process.send_signal(signal.SIGSTOP)
        await eventually(second.leads, "the second takes over", 120)
        await eventually(lambda: len(second_proxy.writes) >= 5, "the second writes", 60)
        woken = time.monotonic()
        first.process.send_signal(signal.SIGCONT)
        assert await first.ended(60) == 1
        assert "lost the Lease" in first.log.read_text()
        assert [each for each in first_proxy.writes if each.at >= woken] == []
    live = await client.get(LEASES, api_namespace, LEASE_NAME)
    assert live["spec"]["holderIdentity"].startswith("second")


async def test_a_leader_that_cannot_renew_stops_writing_before_another_begins(
    replicas: Replicas, client: HttpClient, api_namespace: str
) -> None:
    first, first_proxy, second, second_proxy = await replicas.pair()
    cut = 0.0

    async def lose_renewals(passing: Passing) -> None:
        if "/leases" in passing.path and cut:
            raise Lost

    first_proxy.before = lose_renewals
    async with churn(client, api_namespace):
        await eventually(lambda: len(first_proxy.writes) >= 5, "the first writes", 60)
        cut = time.monotonic()
        await eventually(lambda: any(each.at > cut for each in first_proxy.writes), "it writes on for a while", 60)
        assert await first.ended(60) == 1
        await eventually(second.leads, "the second takes over", 120)
        await eventually(lambda: len(second_proxy.writes) >= 5, "the second writes", 60)
        last, begun = max(each.at for each in first_proxy.writes), min(each.at for each in second_proxy.writes)
        assert last < begun
        renewed = max(each.at for each in first_proxy.seen if "/leases" in each.path and each.answered)
        assert renewed <= cut
        # What it sent within its deadline may have been on its way for a moment.
        assert last <= renewed + LeaseTimes().duration


async def test_who_is_asked_to_stop_ends_what_it_began_and_hands_over(
    replicas: Replicas, client: HttpClient, api_namespace: str
) -> None:
    first, proxy = await replicas.start("first")

    async def take_time(passing: Passing) -> None:
        if passing.writes:
            await asyncio.sleep(0.3)

    proxy.before = take_time
    await eventually(first.leads, "it leads", 120)
    async with churn(client, api_namespace):
        await eventually(lambda: len(proxy.writes) >= 10, "it writes", 60)
        asked = time.monotonic()
        first.process.terminate()
        assert await first.ended(60) == 0, first.log.read_text()
    log = first.log.read_text()
    assert "Traceback" not in log
    assert [each for each in proxy.writes if not each.answered] == [], "a write was cut off"
    assert any(each.at >= asked - 0.3 for each in proxy.writes), "there was nothing to end"
    live = await client.get(LEASES, api_namespace, LEASE_NAME)
    assert not live["spec"].get("holderIdentity")
    released = [each for each in proxy.seen if "/leases" in each.path][-1]
    assert all(each.at <= released.at for each in proxy.writes), "nothing is written after the Lease is given up"
