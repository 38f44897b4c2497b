"""From what device plugins report to what nodes and kinds say, with a real API server and the whole operator."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from plugin_pods import Fleet, Reporters, free_port, simulator
from prometheus_client import generate_latest
from real_api import ApiServer, eventually
from rm_api import names
from rm_device_plugins import simulator_tool
from rm_operator import controllers
from rm_operator.kube import reports
from rm_operator.kube.http import HttpClient
from rm_operator.kube.reports import Reports
from rm_operator.kube.resources import ACCELERATOR_RESOURCES, NODES
from whole_operator import WholeOperator, whole_operator

Object = dict[str, Any]
WELL: Object = {"id": "npu-0", "health": "Healthy"}
SICK: Object = {
    "id": "npu-1", "health": "Unhealthy", "cause": "ECC error", "failure": "NeedsReset",
    "pods": [{"namespace": "team", "name": "chat", "container": "engine"}],
}  # fmt: skip
MENDED: Object = {"id": "npu-1", "health": "Healthy"}


@pytest.fixture
async def reporters(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reporters]:
    found = Reporters()
    monkeypatch.setattr(controllers, "Reports", found.keep)
    yield found
    await found.close()


@pytest.fixture
async def fleet(client: HttpClient, api_namespace: str) -> AsyncIterator[Fleet]:
    found = Fleet(client, api_namespace)
    yield found
    await found.close()


def writes(running: WholeOperator) -> float:
    """Requests of the operator that may change something."""
    lines = generate_latest(running.operator.metrics.registry).decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("rest_client_requests_total{") and any(f'method="{verb}"' in line for verb in WRITES)
    )


WRITES = ("POST", "PUT", "PATCH", "DELETE")


async def at_rest(running: WholeOperator, reporters: Reporters, pods: int) -> None:
    """Wait until all reports are known, and nothing waits to be decided."""

    async def calm() -> bool:
        assert reporters.keeper is not None
        states = reporters.keeper.states()
        return running.idle and states["pending"] == 0 and sum(states.values()) == pods

    await eventually(calm, "all is known and decided")


async def test_a_device_that_fails_is_said_everywhere_and_a_restart_writes_nothing(
    api_server: ApiServer, fleet: Fleet, reporters: Reporters
) -> None:
    node, kind = await fleet.node("a"), await fleet.kind("npus")
    async with whole_operator(api_server, fleet.namespace):
        address = await reporters.say(1, WELL, MENDED, driver="1.2 beta", firmware="7")
        await fleet.pod(kind, node, address)
        well = await fleet.until(node, "False", f"{kind}: 2 devices")
        assert well["reason"] == "AllHealthy"
        labels = await fleet.labels(node)
        assert labels[f"driver.rm-abstract.io/{kind}"] == "1.2_beta"
        assert labels[f"firmware.rm-abstract.io/{kind}"] == "7"
        assert f"sdk.rm-abstract.io/{kind}" not in labels
        await fleet.until_kind(
            kind,
            lambda status: (
                [(each["driver"], each["firmware"], each["nodes"]) for each in status["versions"]]
                == [("1.2_beta", "7", 1)]
                and [each["status"] for each in status["conditions"] if each["type"] == "DevicesHealthy"] == ["True"]
            ),
            "the kind says its versions and that all are well",
        )

        await reporters.say(1, WELL, SICK, driver="1.2 beta", firmware="7")
        sick = await fleet.until(node, "True", f"{kind}: npu-1 needs a reset (ECC error)")
        assert sick["reason"] == "DeviceUnhealthy"
        await fleet.until_kind(kind, lambda status: status["unhealthy"], "the kind names the device")
        status = await fleet.status(kind)
        assert status["unhealthy"] == [
            {"node": node, "device": "npu-1", "failure": "NeedsReset", "cause": "ECC error", "pods": ["team/chat"]}
        ]
        words = "npu-1 needs a reset (ECC error), used by team/chat"

        async def told() -> bool:
            return ("Warning", "DeviceUnhealthy", f"{kind}: {words}") in await fleet.events(node) and (
                "Warning",
                "DeviceUnhealthy",
                f"{node}: {words}",
            ) in await fleet.events(kind)

        await eventually(told, "Events tell of it on the node and on the kind")

    events = [await fleet.events(name) for name in (node, kind)]
    before = [await fleet.client.get(NODES, None, node), await fleet.client.get(ACCELERATOR_RESOURCES, None, kind)]
    async with whole_operator(api_server, fleet.namespace) as running:
        await at_rest(running, reporters, 1)
        assert writes(running) == 0
        assert [
            await fleet.client.get(NODES, None, node),
            await fleet.client.get(ACCELERATOR_RESOURCES, None, kind),
        ] == before

        await reporters.say(1, WELL, MENDED, driver="1.2 beta", firmware="7")
        await fleet.until(node, "False", "2 devices")
        await fleet.until_kind(kind, lambda status: not status["unhealthy"], "the kind says that it is well")

        async def told_again() -> bool:
            found = [await fleet.events(name) for name in (node, kind)]
            return [each[-1][:2] for each in found] == [("Normal", "DeviceRecovered")] * 2

        await eventually(told_again, "Events tell that it recovered")
        assert [(await fleet.events(name))[:-1] for name in (node, kind)] == events, "and nothing was told twice"


async def test_a_real_device_plugin(
    api_server: ApiServer, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = free_port()
    monkeypatch.setattr(controllers, "Reports", partial(Reports, port=port))
    node, kind = await fleet.node("a"), await fleet.kind("npus")
    async with simulator(tmp_path, port, devices=2) as root, whole_operator(api_server, fleet.namespace):
        await fleet.pod(kind, node, "127.0.0.1")
        await fleet.until(node, "False", f"{kind}: 2 devices")
        assert (await fleet.labels(node))[f"driver.rm-abstract.io/{kind}"] == simulator_tool.read_status(
            root / "driver"
        )["driver"]
        device = simulator_tool.read_status(root / "driver")["devices"][1]["uuid"]
        simulator_tool.main(["set", f"--root={root}", "--device=1", "--health=failed", "--failure=Dead"])
        await fleet.until(node, "True", f"{kind}: {device} is dead")
        await fleet.until_kind(
            kind,
            lambda status: [each["device"] for each in status["unhealthy"]] == [device],
            "the kind names the device",
        )
        simulator_tool.main(["set", f"--root={root}", "--device=1", "--health=ok"])
        await fleet.until(node, "False", f"{kind}: 2 devices")


async def test_who_does_not_report_is_said_and_makes_nothing_well(
    api_server: ApiServer, fleet: Fleet, reporters: Reporters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "PATIENCE_SECONDS", 1.0)
    a, b, kind = await fleet.node("a"), await fleet.node("b"), await fleet.kind("npus")
    async with whole_operator(api_server, fleet.namespace):
        address = await reporters.say(1, WELL, SICK, driver="1")
        await fleet.pod(kind, a, address)
        other = await reporters.say(2, WELL, driver="1")
        pod = await fleet.pod(kind, b, other)
        await fleet.until(a, "True", "npu-1")
        await fleet.until(b, "False", "1 device")
        await reporters.fall_silent(1)
        await reporters.fall_silent(2)
        said = await fleet.until(b, "Unknown", f"{kind}: no report: no answer: ")
        assert f"({pod}, {other})" in said["message"]
        assert said["reason"] == "ReportMissing"
        await fleet.until_kind(
            kind,
            lambda status: (
                [
                    each["message"].count("no report from") == 2
                    for each in status["conditions"]
                    if each["type"] == "DevicesHealthy" and each["status"] == "False"
                ]
                == [True]
            ),
            "the kind says who does not report",
        )
        assert (await fleet.condition(a))["status"] == "True"
        assert (await fleet.labels(b))[f"driver.rm-abstract.io/{kind}"] == "1"
    sick = await fleet.condition(a)
    # Nor does a new leader, who never heard of it, make it well.
    async with whole_operator(api_server, fleet.namespace) as running:

        async def given_up() -> bool:
            assert reporters.keeper is not None
            return reporters.keeper.states()["failing"] == 2

        await eventually(given_up, "it has found out that nobody answers")
        await at_rest(running, reporters, 2)
        live = await fleet.condition(a)
        assert (live["status"], live["lastTransitionTime"]) == ("True", sick["lastTransitionTime"])
        assert "npu-1 needs a reset" in live["message"]
        await reporters.say(1, WELL, MENDED)
        await fleet.until(a, "False", "2 devices")


async def test_kinds_share_a_node_and_leave_what_is_not_theirs(
    api_server: ApiServer, fleet: Fleet, reporters: Reporters
) -> None:
    node = await fleet.node("a", theirs="stays")
    npus, gpus = await fleet.kind("npus"), await fleet.kind("gpus")
    live = await fleet.client.get(NODES, None, node)
    theirs = {"type": "KernelDeadlock", "status": "False", "reason": "KernelHasNoDeadlock", "message": "m"}
    identity = {"name": node, "uid": live["metadata"]["uid"]}
    body = {"apiVersion": "v1", "kind": "Node", "metadata": identity, "status": {"conditions": [theirs]}}
    await fleet.client.apply(NODES, body, field_manager="problem-detector", subresource="status")
    async with whole_operator(api_server, fleet.namespace) as running:
        await fleet.pod(npus, node, await reporters.say(1, SICK, driver="1"))
        await fleet.pod(gpus, node, await reporters.say(2, {**SICK, "id": "gpu-7", "failure": "Dead"}, driver="2"))
        await fleet.until(node, "True", f"{gpus}: gpu-7 is dead (ECC error); {npus}: npu-1 needs a reset (ECC error)")
        labels = await fleet.labels(node)
        assert (labels[f"driver.rm-abstract.io/{npus}"], labels[f"driver.rm-abstract.io/{gpus}"]) == ("1", "2")

        # One of them does not select the node any more.
        spec = (await fleet.client.get(ACCELERATOR_RESOURCES, None, gpus))["spec"]
        moved = {**spec, "nodeSelector": {"tests": "elsewhere"}}
        metadata = {"name": gpus}
        changed = {"apiVersion": names.API_VERSION, "kind": "AcceleratorResource", "metadata": metadata, "spec": moved}
        await fleet.client.apply(ACCELERATOR_RESOURCES, changed, field_manager="tests")

        async def only_npus() -> bool:
            condition, left = await fleet.condition(node), await fleet.labels(node)
            alone = condition["message"] == f"{npus}: npu-1 needs a reset (ECC error)"
            return alone and f"driver.rm-abstract.io/{gpus}" not in left

        await eventually(only_npus, "only the other one is told of")

        await fleet.client.delete(ACCELERATOR_RESOURCES, None, npus)

        async def nothing_of_ours() -> bool:
            left = await fleet.labels(node)
            return not await fleet.condition(node) and set(left) == {"tests", "theirs"}

        await eventually(nothing_of_ours, "nothing of ours is left")
        live = await fleet.client.get(NODES, None, node)
        kept = [each for each in live["status"]["conditions"] if each["type"] == "KernelDeadlock"]
        assert [{key: each[key] for key in theirs} for each in kept] == [theirs]
        await eventually(lambda: running.idle, "it is at rest")


async def test_a_node_that_goes_is_forgotten_and_not_made_again(
    api_server: ApiServer, fleet: Fleet, reporters: Reporters
) -> None:
    a, b, kind = await fleet.node("a"), await fleet.node("b"), await fleet.kind("npus")
    async with whole_operator(api_server, fleet.namespace) as running:
        await fleet.pod(kind, a, await reporters.say(1, SICK))
        await fleet.pod(kind, b, await reporters.say(2, WELL))
        await fleet.until(a, "True", "npu-1")
        await fleet.until_kind(kind, lambda status: status["unhealthy"], "the kind names the device")
        assert await fleet.client.delete(NODES, None, a)
        await fleet.until_kind(kind, lambda status: not status["unhealthy"], "the kind names it no more")
        await reporters.say(1, SICK, driver="2")
        await fleet.until(b, "False", "1 device")
        await eventually(lambda: running.idle, "it is at rest")
        assert a not in {each["metadata"]["name"] for each in (await fleet.client.list(NODES)).items}
        assert not [each for each in await fleet.events(a) if each[1] == "DeviceRecovered"]
