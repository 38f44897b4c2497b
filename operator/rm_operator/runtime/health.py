"""/metrics, /healthz and /readyz, and the watch over the event loop."""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from aiohttp import web
from prometheus_client import exposition

from rm_operator.runtime.metrics import Metrics

logger = logging.getLogger(__name__)

LAG_INTERVAL_SECONDS: Final = 0.5
LAG_WINDOW: Final = 120
"""Measurements that are remembered: one minute."""
MAX_LAG_SECONDS: Final = 10.0
WARN_LAG_SECONDS: Final = 2.0


class Vital(Protocol):
    """Something whose death is worth a restart."""

    @property
    def alive(self) -> bool:
        """False once it will not recover."""
        ...


class LoopWatch:
    """Measures how late the event loop runs what is due."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lags: deque[float] = deque([0.0], maxlen=LAG_WINDOW)

    @property
    def worst(self) -> float:
        """The longest delay of the last minute, in seconds."""
        return max(self._lags)

    @property
    def alive(self) -> bool:
        """False while every second measurement or more shows a loop that is hopelessly late."""
        late = sum(lag > MAX_LAG_SECONDS for lag in self._lags)
        return late * 2 <= len(self._lags)

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL_SECONDS
            await asyncio.sleep(LAG_INTERVAL_SECONDS)
            lag = max(loop.time() - due, 0.0)
            if lag > WARN_LAG_SECONDS:
                logger.warning(
                    "the event loop was late by %.1f s: something computes for too long, or CPU is short", lag
                )
            self._lags.append(lag)
            self._metrics.loop_lag.set(self.worst)


class HealthServer:
    """Serves what probes and Prometheus ask for.

    ``vitals`` are checked by /healthz (500 names the dead ones); ``unready`` tells /readyz what is not there yet (503);
    ``refresh`` runs before metrics are read.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        port: int,
        vitals: Callable[[], Mapping[str, Vital]],
        unready: Callable[[], Iterable[str]],
        refresh: Callable[[], None],
    ) -> None:
        self._metrics = metrics
        self._port = port
        self._vitals = vitals
        self._unready = unready
        self._refresh = refresh
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen on all addresses; returns the port. Raises OSError if it is taken."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._get_metrics),
                web.get("/healthz", self._get_health),
                web.get("/readyz", self._get_ready),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        # One socket for both families, so that port 0 means one port.
        if socket.has_dualstack_ipv6():
            listener = socket.create_server(("", self._port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            listener = socket.create_server(("", self._port))
        await web.SockSite(self._runner, listener).start()
        port: int = listener.getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _get_metrics(self, request: web.Request) -> web.Response:
        self._refresh()
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})

    async def _get_health(self, request: web.Request) -> web.Response:
        dead = [name for name, vital in self._vitals().items() if not vital.alive]
        if dead:
            return web.Response(status=500, text=f"dead: {', '.join(dead)}\n")
        return web.Response(text="ok\n")

    async def _get_ready(self, request: web.Request) -> web.Response:
        missing = list(self._unready())
        if missing:
            return web.Response(status=503, text=f"not yet: {', '.join(missing)}\n")
        return web.Response(text="ok\n")
