"""Being found by the kubelet: a socket in the directory that it watches, and one of the service itself.

The kubelet sees the first, asks what it is, connects to the second and says whether it took it; and again when it has
restarted. Each instance has names of its own, so an older and a younger one run beside each other; who leaves removes
its sockets, and what a killed one has left is removed by the next.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from rm_device_plugins import kubelet_api
from rm_device_plugins.logs import Log
from rm_device_plugins.proto.dra.v1 import api_pb2 as dra_pb
from rm_device_plugins.proto.drahealth.v1alpha1 import api_pb2 as health_pb
from rm_device_plugins.proto.pluginregistration.v1 import api_pb2 as pb
from rm_device_plugins.sockets import SocketIdentity, identity, new_socket_path, remove_stale, served_siblings

log = Log("registration")

TYPE = "DRAPlugin"
SERVICES = ("v1.DRAPlugin", "v1alpha1.DRAResourceHealth")
"""As the kubelet calls them, which is not how they are called in gRPC."""
POLL_SECONDS = 0.5
DRAIN_SECONDS = 5.0


class Service(Protocol):
    """What is served to the kubelet."""

    def close(self) -> None:
        """Ends its streams."""
        ...


@dataclass(eq=False, slots=True)
class _Listening:
    path: Path
    server: Any
    identity: SocketIdentity | None

    @classmethod
    async def open(cls, path: Path, *handlers: Any) -> "_Listening":
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(handlers)
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {path}: {error}") from error
        await server.start()
        return cls(path, server, identity(path))

    def intact(self) -> bool:
        return self.identity is not None and identity(self.path) == self.identity

    async def close(self) -> None:
        await self.server.stop(DRAIN_SECONDS)
        if self.intact():
            self.path.unlink(missing_ok=True)


class Registrar:
    """Keeps both sockets served until it is cancelled. ``registered`` is told whether the kubelet took us,
    and ``lead_changed`` is called when ``leads`` has."""

    def __init__(
        self,
        driver: str,
        registry: Path,
        directory: Path,
        new_service: Callable[[], Service],
        registered: Callable[[bool], None],
        lead_changed: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._registry = registry
        self._directory = directory
        self._new_service = new_service
        self._registered = registered
        self._lead_changed = lead_changed
        self._prefix = f"{driver}-reg"
        self._service: Service | None = None
        self._endpoint: _Listening | None = None
        self._door: _Listening | None = None
        self._younger = False
        new_socket_path(registry, self._prefix)
        new_socket_path(directory, "dra")
        self.problem = "starting"
        """Why the kubelet does not know us; empty if it does."""

    @property
    def leads(self) -> bool:
        """False while a younger instance of this driver is served on this node."""
        return not self._younger

    async def run(self) -> None:
        """Serves and watches both sockets. Ends only by cancellation."""
        try:
            await remove_stale(self._registry, self._prefix)
            await remove_stale(self._directory, "dra")
            while True:
                try:
                    await self._step()
                except OSError as error:
                    self._say(str(error))
                await asyncio.sleep(POLL_SECONDS)
        finally:
            # The kubelet stops calling when the door is gone, so calls are drained after it.
            await self._close()

    async def _step(self) -> None:
        lost = [each for each in (self._endpoint, self._door) if each is not None and not each.intact()]
        if lost:
            log.warning("a socket was removed; serving on new ones", path=lost[0].path)
            self._say("a socket was removed")
            await self._close()
        if self._door is None:
            await self._open()
        self._look_for_younger()

    async def _open(self) -> None:
        service = self._new_service()
        self._endpoint = await _Listening.open(
            new_socket_path(self._directory, "dra"),
            kubelet_api.handlers("DRAPlugin", service, dra_pb),
            kubelet_api.handlers("DRAResourceHealth", service, health_pb),
        )
        self._service = service
        self._say("the kubelet has not found us yet")
        # What is served comes first: the kubelet connects as soon as it has seen the door.
        self._door = await _Listening.open(
            new_socket_path(self._registry, self._prefix), kubelet_api.handlers("Registration", self, pb)
        )
        log.info("serving", endpoint=self._endpoint.path, registration=self._door.path)

    async def _close(self) -> None:
        door, endpoint, service = self._door, self._endpoint, self._service
        self._door = self._endpoint = self._service = None
        if door is not None:
            with contextlib.suppress(OSError):
                await door.close()
        if service is not None:
            service.close()
        if endpoint is not None:
            with contextlib.suppress(OSError):
                await endpoint.close()

    def _look_for_younger(self) -> None:
        if self._door is None:
            return
        born = self._door.identity.modified_ns if self._door.identity else 0
        others = served_siblings(self._registry, self._prefix, besides=self._door.path)
        younger = any((seen.modified_ns, str(path)) > (born, str(self._door.path)) for path, seen in others.items())
        if younger != self._younger:
            self._younger = younger
            log.info("a younger instance writes the ResourceSlices" if younger else "we write the ResourceSlices")
            self._lead_changed()

    async def get_info(self, request: pb.InfoRequest, context: Any) -> pb.PluginInfo:
        """What the kubelet asks when it has found the socket."""
        del request, context
        endpoint = str(self._endpoint.path) if self._endpoint is not None else ""
        return pb.PluginInfo(type=TYPE, name=self._driver, endpoint=endpoint, supported_versions=SERVICES)

    async def notify_registration_status(
        self, request: pb.RegistrationStatus, context: Any
    ) -> pb.RegistrationStatusResponse:
        """Whether it took us."""
        del context
        if request.plugin_registered:
            log.info("registered", driver=self._driver)
            self.problem = ""
        else:
            self._say(f"the kubelet refuses the driver: {request.error}")
        self._registered(request.plugin_registered)
        return pb.RegistrationStatusResponse()

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("not registered", cause=problem)
        self.problem = problem
