"""Requests that hang, watches that die or miss something, a loop that is blocked: noticed, bounded, and mended."""

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from typing import Any

import aiohttp
import pytest
from api_proxy import ApiProxy, Passing
from operators import InProcess, child_says, model, running
from real_api import ApiServer, eventually
from rm_api.names import LABEL_MANAGED_BY, MANAGED_BY
from rm_operator.kube.http import HttpClient
from rm_operator.kube.lease import LeaseTimes
from rm_operator.kube.resources import CONFIGMAPS, MODEL_DEPLOYMENTS, Resource


class TestHangingRequests:
    async def test_objects_whose_requests_hang_do_not_delay_others(
        self, api_server: ApiServer, client: HttpClient, api_namespace: str
    ) -> None:
        """As with an admission webhook of one namespace that does not answer: far more objects than workers hang."""
        hanging: set[str] = set()
        released = asyncio.Event()

        async def before(passing: Passing) -> None:
            if passing.method == "PATCH" and "/configmaps/hangs" in passing.path:
                hanging.add(passing.path)
                await released.wait()

        async with ApiProxy(api_server) as proxy:
            proxy.before = before
            async with running(api_server, api_namespace, proxy=proxy, workers=2) as found:
                for number in range(12):
                    await client.create(
                        MODEL_DEPLOYMENTS, model(api_namespace, f"hangs{number}"), field_manager="tests"
                    )
                await eventually(lambda: len(hanging) >= 3, "more hang than there are workers")
                for number in range(10):
                    await client.create(MODEL_DEPLOYMENTS, model(api_namespace, f"well{number}"), field_manager="tests")
                for number in range(10):
                    await eventually(partial(child_says, client, api_namespace, f"well{number}", 1), "it is served")
                await eventually(lambda: len(hanging) == 12, "all of them hang")
                # A second round, now that it is known which are slow.
                waits = []
                for number in range(10):
                    name, began = f"well{number}", time.monotonic()
                    changed = model(api_namespace, name, replicas=2)
                    await client.apply(MODEL_DEPLOYMENTS, changed, field_manager="tests")
                    await eventually(partial(child_says, client, api_namespace, name, 2), "it is served again")
                    waits.append(time.monotonic() - began)
                assert max(waits) < 30, "they waited for what hangs"
                assert not any(each.answered for each in proxy.writes if "/configmaps/hangs" in each.path)
                _, text = await found.get("/metrics")
                assert "rm_operator_slow_reconciles_in_progress 12.0" in text
                released.set()


class TestMissedEvents:
    async def test_what_was_missed_is_seen_after_the_position_is_gone(
        self, api_server: ApiServer, client: HttpClient, api_namespace: str
    ) -> None:
        """Cut off; meanwhile objects go, change and come, the history is compacted and the server starts anew: 410."""
        ns = api_namespace
        async with (
            ApiProxy(api_server) as proxy,
            running(api_server, ns, proxy=proxy, leader_elect=False) as found,
        ):
            for name in ("stays", "changes", "goes"):
                await client.create(MODEL_DEPLOYMENTS, model(ns, name), field_manager="tests")
                await eventually(partial(child_says, client, ns, name, 1), "it is served")
            stores = found.operator.stores
            await eventually(lambda: len(stores[CONFIGMAPS].list(ns)) == 3, "the children are known")

            proxy.cut()
            await client.delete(MODEL_DEPLOYMENTS, ns, "goes")
            await client.delete(CONFIGMAPS, ns, "goes-child")
            await client.delete(CONFIGMAPS, ns, "stays-child")
            await client.apply(MODEL_DEPLOYMENTS, model(ns, "changes", replicas=5), field_manager="tests")
            await client.create(MODEL_DEPLOYMENTS, model(ns, "comes"), field_manager="tests")
            await _compact(api_server, (await client.list(CONFIGMAPS, ns)).resource_version)
            api_server.kill()
            await asyncio.to_thread(api_server.start)
            gone = await _answers_gone(api_server, stores[CONFIGMAPS].resource_version)
            assert gone, "the server still knew the operator's position: this would test nothing"
            proxy.mend()

            await eventually(partial(child_says, client, ns, "changes", 5), "the change is seen", 120)
            await eventually(partial(child_says, client, ns, "comes", 1), "what is new is seen", 120)
            await eventually(partial(child_says, client, ns, "stays", 1), "the child is made again", 120)
            await eventually(lambda: stores[MODEL_DEPLOYMENTS].get(ns, "goes") is None, "the ghost is gone", 120)
            for resource, selector in ((MODEL_DEPLOYMENTS, None), (CONFIGMAPS, f"{LABEL_MANAGED_BY}={MANAGED_BY}")):
                await eventually(
                    partial(_store_is_as_listed, client, found, resource, selector), "stores equal lists", 120
                )


async def _compact(server: ApiServer, revision: str) -> None:
    """Have etcd forget everything before ``revision``."""
    url = f"http://{server.etcd_address}/v3/kv/compaction"
    body = {"revision": revision, "physical": True}
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()


async def _answers_gone(server: ApiServer, position: str) -> bool:
    async def serves() -> bool:
        try:
            async with HttpClient(server.connection()) as probe:
                return await probe.serves(MODEL_DEPLOYMENTS)
        except Exception:
            return False

    await eventually(serves, "the server serves again", 120)
    session = server.connection().open_session()
    async with session:
        url = f"{server.url}{CONFIGMAPS.path()}?watch=true&resourceVersion={position}&timeoutSeconds=5"
        async with session.get(url) as answer:
            line = await answer.content.readline()
    return bool(line) and json.loads(line).get("object", {}).get("code") == 410


async def _store_is_as_listed(client: HttpClient, found: Any, resource: Resource, selector: str | None) -> bool:
    listed = await client.list(resource, label_selector=selector)
    versions = {
        (item["metadata"]["namespace"], item["metadata"]["name"]): item["metadata"]["resourceVersion"]
        for item in listed.items
    }
    return versions == {
        (each["metadata"]["namespace"], each["metadata"]["name"]): each["metadata"]["resourceVersion"]
        for each in found.operator.stores[resource]
    }


class TestLiveness:
    @pytest.mark.parametrize(
        "part", ["reflector of pods", "reflector of modeldeployments.rm-abstract.io", "elector", "leader"]
    )
    async def test_a_part_that_ends_ends_the_process(
        self, api_server: ApiServer, api_namespace: str, part: str
    ) -> None:
        found = InProcess(api_server, api_namespace)
        task = asyncio.create_task(found.operator.run(found.stop))
        await eventually(found.leads, "the operator leads", 90)
        (ended,) = [each for each in asyncio.all_tasks() if each.get_name() == part]
        ended.cancel()
        await eventually(lambda: found.died == [1], "it is told")
        await found.end(task)

    async def test_a_blocked_loop_answers_no_probe_and_writes_nothing_afterwards(
        self, api_server: ApiServer, client: HttpClient, api_namespace: str
    ) -> None:
        probes: list[str] = []

        def probe() -> None:
            url = f"http://127.0.0.1:{found.operator.port}/healthz"
            for _ in range(3):
                try:
                    with urllib.request.urlopen(url, timeout=2) as answer:
                        probes.append(f"answered {answer.status}")
                except (TimeoutError, urllib.error.URLError):
                    probes.append("silent")

        def block(_: str) -> None:
            prober = threading.Thread(target=probe)
            prober.start()
            time.sleep(LeaseTimes().renew_deadline + 1)
            prober.join()

        found = InProcess(api_server, api_namespace)
        task = asyncio.create_task(found.operator.run(found.stop))
        await eventually(found.leads, "the operator leads", 90)
        found.controller.on_decide = block
        await client.create(MODEL_DEPLOYMENTS, model(api_namespace, "m"), field_manager="tests")
        await eventually(lambda: 1 in found.died, "it gives up", 90)
        assert probes == ["silent"] * 3
        await found.end(task)
        # The plan was there, and the Lease was not: nothing of it was carried out.
        assert (await client.list(CONFIGMAPS, api_namespace)).items == []
        live = await client.get(MODEL_DEPLOYMENTS, api_namespace, "m")
        assert "conditions" not in (live.get("status") or {})
