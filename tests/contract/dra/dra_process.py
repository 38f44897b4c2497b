"""A driver as a process of its own, over the simulated NPU."""

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from dra_cluster import DRIVER, Cluster
from real_api import free_port
from rm_device_plugins import simulator_tool

PLUGIN = {"intervalSeconds": 0.2, "discoveryTimeoutSeconds": 5, "healthyAfter": 2, "nodeWaitSeconds": 0.1}


@dataclass
class Driver:
    """A running driver."""

    process: asyncio.subprocess.Process
    port: int
    lines: list[dict[str, Any]] = field(default_factory=list)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of an answer of its HTTP server; 0 while there is none."""

        def fetch() -> tuple[int, bytes]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()
            except OSError:
                return 0, b"{}"  # it does not listen yet

        return await asyncio.to_thread(fetch)

    async def report(self) -> dict[str, Any]:
        """Its report; empty while there is none."""
        return json.loads((await self.get("/rma/v1/report"))[1])  # type: ignore[no-any-return]

    async def kill(self) -> None:
        """Ends it in the middle of whatever it does."""
        self.process.kill()
        await self.process.wait()


class Node:
    """The directories of one node."""

    def __init__(self, cluster: Cluster, root: Path) -> None:
        self.cluster = cluster
        self.root = root
        self.kubelet_dir = root / "k"
        self.cdi_dir = root / "cdi"
        self.simulator = root / "sim"
        self.account = root / "account"
        self.registry = self.kubelet_dir / "plugins_registry"
        self.own = self.kubelet_dir / "plugins" / DRIVER
        self.registry.mkdir(parents=True)
        self.account.mkdir()
        (self.account / "ca.crt").write_bytes(cluster.server.ca.read_bytes())

    async def renew_token(self) -> None:
        """Writes another token, as the kubelet does from time to time."""
        (self.account / "token").write_text(await self.cluster.token())

    def names(self) -> list[str]:
        """The simulated devices' names in the pool, by index."""
        return [device["uuid"] for device in simulator_tool.read_status(self.simulator / "driver")["devices"]]

    def cdi_files(self) -> list[str]:
        """Everything in the runtime's directory."""
        return sorted(path.name for path in self.cdi_dir.iterdir()) if self.cdi_dir.exists() else []

    def records(self) -> list[str]:
        """Everything that is kept of prepared claims."""
        return sorted(path.name for path in (self.own / "claims").iterdir())

    def command(self, port: int, config: Path, *options: str) -> list[str]:
        """What starts a driver here."""
        return [
            sys.executable, "-m", "rm_device_plugins", "--dra", "--vendor=simulator",
            f"--config={config}", f"--port={port}", f"--kubelet-dir={self.kubelet_dir}", f"--cdi-dir={self.cdi_dir}",
            f"--service-account={self.account}", *options,
        ]  # fmt: skip

    @asynccontextmanager
    async def driver(self, *options: str, **settings: object) -> AsyncIterator[Driver]:
        """A driver that runs; it is ended at the end if it has not."""
        if not (self.account / "token").exists():
            await self.renew_token()
        config = self.root / "config.yaml"
        plugin = {**PLUGIN, **settings.pop("plugin", {})}  # type: ignore[dict-item]
        config.write_text(yaml.safe_dump({"root": str(self.simulator), "devices": 2, "plugin": plugin, **settings}))
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            *self.command(port, config, *options),
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
                "NODE_NAME": self.cluster.node,
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT": str(self.cluster.server.port),
            },
            stderr=asyncio.subprocess.PIPE,
        )
        running = Driver(process, port)
        reader = asyncio.ensure_future(_read(process, running.lines))
        try:
            yield running
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 60)
            await reader


async def _read(process: asyncio.subprocess.Process, lines: list[dict[str, Any]]) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        sys.stderr.write(line.decode())  # shown where a test fails
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise AssertionError(f"a line of the log is no JSON: {line!r}") from None
