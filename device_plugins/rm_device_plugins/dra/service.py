"""The gRPC services ``DRAPlugin`` and ``DRAResourceHealth``: translation, and an answer for each claim."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from rm_device_plugins.dra import naming
from rm_device_plugins.dra.api import ApiError
from rm_device_plugins.dra.claims import Claims
from rm_device_plugins.inventory import Inventory
from rm_device_plugins.logs import Log
from rm_device_plugins.proto.dra.v1 import api_pb2 as pb
from rm_device_plugins.proto.drahealth.v1alpha1 import api_pb2 as health_pb
from rm_device_plugins.sharing import shares

log = Log("service")

REPEAT_SECONDS = 10.0
"""The kubelet forgets what it was not told for a while, and all of it when another instance's stream ends."""
HEALTH_TIMEOUT_SECONDS = 60
COALESCE_SECONDS = 0.25
MAX_MESSAGE = 1024

Observe = Callable[[str, bool, float], None]
"""Takes what was done, whether it was, and the seconds."""


class DraService:
    """Serves one socket."""

    def __init__(self, claims: Claims, inventory: Inventory, node: str, observe: Observe) -> None:
        self._claims = claims
        self._inventory = inventory
        self._node = node
        self._observe = observe
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Ends the streams, so that stopping the server waits only for calls."""
        self._closing.set()

    async def node_prepare_resources(
        self, request: pb.NodePrepareResourcesRequest, context: Any
    ) -> pb.NodePrepareResourcesResponse:
        """All claims at the same time; one that fails says why, and the others are prepared."""
        del context
        answers = await asyncio.gather(*(self._prepare(claim) for claim in _each_once(request.claims)))
        return pb.NodePrepareResourcesResponse(claims=dict(answers))

    async def _prepare(self, claim: pb.Claim) -> tuple[str, pb.NodePrepareResourceResponse]:
        started = time.monotonic()
        response = pb.NodePrepareResourceResponse()
        try:
            for held, cdi_ids in await self._claims.prepare(claim.namespace, claim.name, claim.uid):
                response.devices.add(
                    request_names=[held.request],
                    pool_name=self._node,
                    device_name=held.device,
                    cdi_device_ids=cdi_ids,
                )
        except Exception as error:
            response = pb.NodePrepareResourceResponse(error=_message(error))
        self._tell("prepare", claim, response.error, started, [device.device_name for device in response.devices])
        return claim.uid, response

    async def node_unprepare_resources(
        self, request: pb.NodeUnprepareResourcesRequest, context: Any
    ) -> pb.NodeUnprepareResourcesResponse:
        """The same, the other way round."""
        del context
        answers = await asyncio.gather(*(self._unprepare(claim) for claim in _each_once(request.claims)))
        return pb.NodeUnprepareResourcesResponse(claims=dict(answers))

    async def _unprepare(self, claim: pb.Claim) -> tuple[str, pb.NodeUnprepareResourceResponse]:
        started = time.monotonic()
        problem = ""
        try:
            await self._claims.unprepare(claim.uid)
        except Exception as error:
            problem = _message(error)
        self._tell("unprepare", claim, problem, started, [])
        return claim.uid, pb.NodeUnprepareResourceResponse(error=problem)

    def _tell(self, what: str, claim: pb.Claim, problem: str, started: float, devices: list[str]) -> None:
        seconds = time.monotonic() - started
        self._observe(what, not problem, seconds)
        facts = {"claim": f"{claim.namespace}/{claim.name}", "uid": claim.uid, "seconds": round(seconds, 4)}
        if problem:
            log.error(f"{what} failed", **facts, cause=problem)
        else:
            log.info(f"{what}d", **facts, devices=devices)

    async def node_watch_resources(
        self, request: health_pb.NodeWatchResourcesRequest, context: Any
    ) -> AsyncIterator[health_pb.NodeWatchResourcesResponse]:
        """The health of all devices, at once, when it changes, and again before the kubelet forgets it."""
        del request, context
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            while not self._closing.is_set():
                snapshot = self._inventory.snapshot
                yield self._health()
                await asyncio.wait({closing}, timeout=COALESCE_SECONDS)
                changed = asyncio.ensure_future(self._inventory.changed_from(snapshot))
                try:
                    await asyncio.wait({closing, changed}, timeout=REPEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
        finally:
            closing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await closing

    def _health(self) -> health_pb.NodeWatchResourcesResponse:
        response = health_pb.NodeWatchResourcesResponse()
        now = int(time.time())
        unhealthy = health_pb.UNKNOWN if self._inventory.problem else health_pb.UNHEALTHY
        for entry in self._inventory.entries():
            for share in shares(entry.device.id, self._inventory.settings.shares):
                response.devices.add(
                    device=health_pb.DeviceIdentifier(pool_name=self._node, device_name=naming.device_name(share)),
                    health=health_pb.HEALTHY if entry.healthy else unhealthy,
                    last_updated_time=now,
                    health_check_timeout_seconds=HEALTH_TIMEOUT_SECONDS,
                    message="" if entry.healthy else entry.cause[:MAX_MESSAGE],
                )
        return response


def _each_once(claims: Iterable[pb.Claim]) -> Iterable[pb.Claim]:
    return {claim.uid: claim for claim in claims}.values()


def _message(error: Exception) -> str:
    if isinstance(error, ApiError) and error.status == 403:
        return f"{error}; the driver's service account may not get ResourceClaims"
    return str(error) or type(error).__name__
