"""Device plugins of nodes that there are only objects of: their pods, and the real programs that stand for these."""

import asyncio
import json
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from custom_objects import SMALLEST, apply, custom_object
from real_api import eventually
from rm_api import names
from rm_device_plugins import simulator_tool
from rm_operator.kube.errors import NotFound
from rm_operator.kube.http import HttpClient
from rm_operator.kube.reports import Reports
from rm_operator.kube.resources import ACCELERATOR_RESOURCES, DAEMONSETS, EVENTS, NODES, PODS
from rm_operator.kube.store import Stores

Object = dict[str, Any]
PLUGIN: Object = {"devicePlugin": {"image": "acme/plugin:1"}}


def free_port() -> int:
    """A port that is free on all addresses."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class Reporters:
    """Device plugins at addresses of the loopback network, all at one port, which say what they are given to say.

    Who asks with the tag of what is said waits until something else is said.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.keeper: Reports | None = None
        """The keeper of reports of the operator that asks them."""
        network = secrets.token_bytes(2)
        self._network = f"127.{64 + network[0] % 128}.{network[1]}"
        self._said: dict[str, tuple[str, bytes]] = {}
        self._changed = asyncio.Event()
        self._runner = web.AppRunner(web.Application())
        self._runner.app.router.add_get(names.REPORT_PATH, self._answer)
        self._sites: dict[str, web.TCPSite] = {}

    def keep(self, stores: Stores, namespace: str) -> Reports:
        """Stands for ``Reports`` where an operator makes its keeper: one that asks these."""
        self.keeper = Reports(stores, namespace, port=self.port)
        return self.keeper

    async def say(self, number: int, *devices: Object, **members: Any) -> str:
        """Let the reporter ``number`` (1 to 254), which is begun if need be, report this; returns its address."""
        address = f"{self._network}.{number}"
        if address not in self._sites:
            if self._runner.server is None:
                await self._runner.setup()
            self._sites[address] = web.TCPSite(self._runner, address, self.port)
            await self._sites[address].start()
        body = json.dumps({"resource": "acme.com/npu", "devices": [*devices], **members}).encode()
        self._said[address] = (f'"{secrets.token_hex(8)}"', body)
        self._changed.set()
        self._changed = asyncio.Event()
        return address

    async def fall_silent(self, number: int) -> None:
        """Nobody listens at the address any more."""
        address = f"{self._network}.{number}"
        del self._said[address]
        await self._sites.pop(address).stop()
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        """End all."""
        self._said.clear()
        self._changed.set()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        while address in self._said:
            tag, body = self._said[address]
            if request.headers.get("If-None-Match") != tag:
                return web.Response(body=body, headers={"ETag": tag})
            await self._changed.wait()
        return web.Response(status=503)


class Fleet:
    """Nodes and kinds of a test, in a namespace that is the operator's own."""

    def __init__(self, client: HttpClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self._nodes: list[str] = []

    async def close(self) -> None:
        """Delete the nodes: an operator after this one has nothing to tidy up."""
        for name in self._nodes:
            await self.client.delete(NODES, None, name)

    async def node(self, letter: str, **labels: str) -> str:
        """A node with a label ``tests`` that no other test's has; returns its name."""
        name = f"{self.namespace}-{letter}"
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"tests": self.namespace, **labels}},
        }
        await self.client.create(NODES, body, field_manager="tests")
        self._nodes.append(name)
        return name

    async def kind(self, name: str, **spec: Any) -> str:
        """A kind with a device plugin on these nodes; returns its name."""
        whole = {
            **SMALLEST["AcceleratorResource"], "resourceName": f"{name}.{self.namespace}.test/x",
            "nodeSelector": {"tests": self.namespace}, **PLUGIN, **spec,
        }  # fmt: skip
        await apply(
            self.client, custom_object("AcceleratorResource", whole, self.namespace, f"{self.namespace}-{name}")
        )
        return f"{self.namespace}-{name}"

    async def pod(self, kind: str, node: str, address: str, name: str | None = None) -> str:
        """A running pod of the kind's device plugin, as its DaemonSet would have it; returns its name."""
        owner: Object = {}

        async def rolled_out() -> bool:
            try:
                owner.update(await self.client.get(DAEMONSETS, self.namespace, f"device-plugin-{kind}"))
            except NotFound:
                return False
            return True

        await eventually(rolled_out, f"the device plugin of {kind} is rolled out")
        name = name or f"plugin-{secrets.token_hex(4)}"
        reference = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": owner["metadata"]["name"]}
        made = await self.client.create(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "namespace": self.namespace,
                    "name": name,
                    "labels": owner["spec"]["template"]["metadata"]["labels"],
                    "ownerReferences": [{**reference, "uid": owner["metadata"]["uid"], "controller": True}],
                },
                "spec": {"nodeName": node, "containers": [{"name": "p", "image": "acme/plugin:1"}]},
            },
            field_manager="tests",
        )
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        await self.client.apply_status(PODS, made, status)
        return name

    async def condition(self, node: str) -> Object:
        """What the operator says of the node's devices; empty if it says nothing."""
        live = await self.client.get(NODES, None, node)
        found = [
            each for each in live["status"].get("conditions") or () if each["type"] == names.NODE_CONDITION_UNHEALTHY
        ]
        return found[0] if found else {}

    async def labels(self, node: str) -> Object:
        """The node's labels."""
        live = await self.client.get(NODES, None, node)
        return dict(live["metadata"]["labels"])

    async def until(self, node: str, status: str, message: str = "") -> Object:
        """The condition, once it has this status and a message with these words."""
        seen: Object = {}

        async def said() -> bool:
            seen.clear()
            seen.update(await self.condition(node))
            return seen.get("status") == status and message in seen["message"]

        await eventually(said, f"{node} says {status} {message}: {seen}")
        return seen

    async def status(self, kind: str) -> Object:
        """The status of a kind."""
        live = await self.client.get(ACCELERATOR_RESOURCES, None, kind)
        return dict(live.get("status") or {})

    async def healthy(self, kind: str) -> Object:
        """The kind's condition DevicesHealthy; empty if there is none."""
        conditions = (await self.status(kind)).get("conditions") or ()
        found = [each for each in conditions if each["type"] == "DevicesHealthy"]
        return found[0] if found else {}

    async def until_kind(self, kind: str, says: Callable[[Object], object], what: str) -> None:
        """Wait until the kind's status is such."""

        async def said() -> bool:
            return bool(says(await self.status(kind)))

        await eventually(said, what)

    async def events(self, name: str) -> list[tuple[str, str, str]]:
        """Type, reason and note of the Events about an object without a namespace, by time."""
        found = [
            each for each in (await self.client.list(EVENTS, "default")).items if each["regarding"].get("name") == name
        ]
        found.sort(key=lambda each: str(each["eventTime"]))
        return [(each["type"], each["reason"], each["note"]) for each in found]


@asynccontextmanager
async def simulator(directory: Path, port: int, *, devices: int) -> AsyncIterator[Path]:
    """A real device plugin of simulated NPUs, without a kubelet, in ``directory``; yields that of its host."""
    root = directory / "simulator"
    config = directory / "config.yaml"
    timing = {"intervalSeconds": 0.2, "discoveryTimeoutSeconds": 30, "healthyAfter": 2}
    config.write_text(yaml.safe_dump({"root": str(root), "devices": devices, "plugin": timing}))
    log = (directory / "plugin.log").open("wb")
    options = ["--vendor=simulator", f"--config={config}", f"--plugin-dir={directory}", f"--port={port}"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rm_device_plugins", *options, stderr=log, stdout=log,
        env={**os.environ, "RMA_RESOURCE_NAME": "acme.com/npu"},
    )  # fmt: skip
    try:
        await eventually((root / "driver" / simulator_tool.STATUS_FILE).exists, "the simulator is there")
        yield root
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        log.close()
