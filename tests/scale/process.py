"""The operator as a process of its own, seen from outside: probes, metrics, memory, CPU time."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from real_api import free_port
from rm_api.names import LEASE_NAME

from scale.cluster import SYSTEM_NAMESPACE, Cluster
from scale.metrics import Samples, parse_metrics, total

POLL_SECONDS = 0.02
READY_POLL_SECONDS = 0.1
"""It answers each time while it is busy with what is measured."""


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Process:
    """A process of ours: memory and CPU time from /proc, the log for a failure's message."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self.log = log
        self.began = time.monotonic()
        with log.open("wb") as output:
            self._process = subprocess.Popen(argv, env=dict(environ), stdout=output, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def rss_mib(self) -> float:
        """Resident memory now, in MiB."""
        return self._status("VmRSS")

    @property
    def peak_mib(self) -> float:
        """Largest resident memory so far, in MiB."""
        return self._status("VmHWM")

    def _status(self, name: str) -> float:
        text = Path(f"/proc/{self.pid}/status").read_text()
        (kib,) = re.findall(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        return int(kib) / 1024

    @property
    def cpu_seconds(self) -> float:
        """CPU time used so far."""
        return cpu_seconds(self.pid)

    def check(self) -> None:
        """Raises AssertionError with the end of the log if the process has ended."""
        code = self._process.poll()
        if code is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise AssertionError(f"the process ended with {code}:\n{tail}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def ended(self, seconds: float) -> int:
        """Its exit status. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while (code := self._process.poll()) is None:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(POLL_SECONDS)
            return code

    def end(self) -> None:
        """Kill it if it runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait()


class OperatorProcess(Process):
    """``python -m rm_operator run``."""

    def __init__(
        self, cluster: Cluster, user: str, *, profile: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        variables = os.environ | {
            "KUBECONFIG": str(cluster.server.kubeconfig(cluster.directory / f"{user}.kubeconfig", user)),
            "RMA_SYSTEM_NAMESPACE": SYSTEM_NAMESPACE,
            "RMA_STORE": "127.0.0.1:1",
            "RMA_RUNTIME_IMAGE": "runtime:1",
            "RMA_LAUNCHER_IMAGE": "launcher:1",
            "POD_NAME": user,
            "RMA_METRICS_PORT": str(self.port),
            **(environ or {}),
        }
        module = ["-m", "rm_operator", "run"]
        if profile is not None:
            module = ["-m", "cProfile", "-o", str(profile), *module]
        super().__init__([sys.executable, *module], variables, cluster.directory / f"{user}.log")
        self._session = aiohttp.ClientSession(f"http://127.0.0.1:{self.port}")

    async def close(self) -> None:
        """End it."""
        await self._session.close()
        self.end()

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text; status 0 while it does not listen. Raises AssertionError if the process has ended."""
        try:
            async with self._session.get(path) as response:
                return response.status, await response.text()
        except aiohttp.ClientError:
            self.check()
            return 0, ""

    async def metrics(self) -> Samples:
        """What /metrics says."""
        return parse_metrics((await self.get("/metrics"))[1])

    async def listening(self, seconds: float = 60) -> float:
        """Wait until it listens; seconds since it was started."""
        return await self._until("/healthz", (200, 500), seconds, POLL_SECONDS)

    async def ready(self, seconds: float = 300) -> float:
        """Wait until all stores are synced; seconds since it was started."""
        return await self._until("/readyz", (200,), seconds, READY_POLL_SECONDS)

    async def _until(self, path: str, codes: Sequence[int], seconds: float, every: float) -> float:
        async with asyncio.timeout(seconds):
            while (await self.get(path))[0] not in codes:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(every)
        return time.monotonic() - self.began

    async def leads(self) -> bool:
        """True while it holds the Lease."""
        return total(await self.metrics(), "leader_election_master_status", name=LEASE_NAME) == 1

    async def reconciled(self, kind: str, least: int, seconds: float = 300) -> Samples:
        """Wait until at least ``least`` keys of ``kind`` were reconciled and nothing is in line; the metrics then."""
        async with asyncio.timeout(seconds):
            while True:
                samples = await self.metrics()
                done = total(samples, "controller_runtime_reconcile_total", controller=kind)
                busy = total(samples, "workqueue_depth") + total(samples, "controller_runtime_active_workers")
                if done >= least and busy == 0:
                    return samples
                await asyncio.sleep(0.1)


@asynccontextmanager
async def operator(
    cluster: Cluster,
    user: str = "operator-a",
    *,
    profile: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[OperatorProcess]:
    """An operator, started, with ``environ`` beside its variables; it is killed at the end of the block."""
    process = OperatorProcess(cluster, user, profile=profile, environ=environ)
    try:
        yield process
    finally:
        await process.close()
