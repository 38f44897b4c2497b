"""Being registered: a served socket, a kubelet that was told of it, and that kubelet's open stream.

The open stream is the proof of being registered, as the kubelet takes the devices away when it ends. So there is one
rule: while no stream is open that began with the present ``kubelet.sock``, register, with back-off. It covers a kubelet
that is not there yet, that restarts, that loses the connection, or that drops us when an older instance leaves.

One case shows in no stream: a younger plugin of the same resource came and left again. Kubelets up to 1.36 know one
client for a resource, so the devices went with it although our stream is open. We see its socket go, and register.
What resource a socket is for does not show, and one registration more does no harm, so any younger one will do.

And one case ends all registering: somebody else has the resource. Then we keep still until he has gone; what is open
stays open, as the end of our stream might end his registration.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from rm_device_plugins import kubelet_api
from rm_device_plugins.logs import Log
from rm_device_plugins.metrics import Metrics
from rm_device_plugins.ownership import Ownership
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb
from rm_device_plugins.service import PluginService
from rm_device_plugins.sockets import (
    SocketIdentity,
    identity,
    is_sibling,
    new_socket_path,
    others,
    refuses,
    remove_stale,
    served_siblings,
)

log = Log("registration")

POLL_SECONDS = 0.5
REGISTER_TIMEOUT_SECONDS = 15.0
"""Longer than the 10 s in which the kubelet connects back before it answers."""
STREAM_TIMEOUT_SECONDS = 5.0
JUDGE_SECONDS = 1.0
"""After the end of a stream it is waited so long for what else tells of a kubelet that ends, before it is judged."""
SIBLING_SECONDS = 30.0
"""For so long after another instance of ours was last seen, the end of a stream is put down to it."""
STEADY_SECONDS = 10.0
"""A stream that lasted this long makes earlier failures forgotten."""
DRAIN_SECONDS = 5.0
BACKOFF_FIRST_SECONDS = 0.25
BACKOFF_MAX_SECONDS = 10.0


class Backoff:
    """Exponential, with jitter: the plugins of a node do not all come back in the same moment."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait, between half and all of the present step; then doubles the step."""
        step = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        return self._uniform(step / 2, step)

    def reset(self) -> None:
        """Begins again with the first step."""
        self._failures = 0


@dataclass(eq=False, slots=True)
class Endpoint:
    """A listening server and its socket."""

    path: Path
    server: Any
    service: PluginService
    identity: SocketIdentity | None

    @classmethod
    async def open(cls, path: Path, service: PluginService) -> "Endpoint":
        """Serves ``service`` on ``path``; raises OSError if that cannot be."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((kubelet_api.handlers(kubelet_api.DEVICE_PLUGIN, service),))
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {path}: {error}") from error
        await server.start()
        return cls(path, server, service, identity(path))

    def intact(self) -> bool:
        """False once the file was removed or replaced; the server does not notice that by itself."""
        return self.identity is not None and identity(self.path) == self.identity

    async def close(self) -> None:
        """Ends the streams, lets calls finish, removes the socket: it has a name that nobody else uses."""
        self.service.close()
        await self.server.stop(DRAIN_SECONDS)
        if self.intact():
            self.path.unlink(missing_ok=True)


class Registrar:
    """Keeps one resource registered until it is cancelled."""

    def __init__(
        self,
        resource: str,
        directory: Path,
        new_service: Callable[[Callable[[], object], Callable[[], None]], PluginService],
        metrics: Metrics,
        ownership: Ownership,
    ) -> None:
        self._resource = resource
        self._directory = directory
        self._new_service = new_service
        self._metrics = metrics
        self._ownership = ownership
        self._kubelet_path = directory / kubelet_api.KUBELET_SOCKET
        self._kubelet: SocketIdentity | None = None
        self._others: dict[Path, SocketIdentity] = {}
        self._sibling_at = float("-inf")
        self._held: tuple[Path, SocketIdentity] | None = None
        self._lost: tuple[float, Path, SocketIdentity] | None = None
        """When a stream ended of which it is not known yet why, whose, and which kubelet's."""
        self._superseded = False
        self._endpoint: Endpoint | None = None
        self._replaced: list[Endpoint] = []
        self._backoff = Backoff()
        self._not_before = 0.0
        self._registered_at = 0.0
        self._wake = asyncio.Event()
        self.problem = "starting"
        """Why the kubelet does not have our devices; empty if it has."""

    @property
    def conflict(self) -> str:
        """Who else has the resource on this node, in words; empty while nobody does."""
        return self._ownership.conflict

    async def run(self) -> None:
        """Serves, registers, and watches both sockets. Ends only by cancellation."""
        try:
            await remove_stale(self._directory, self._resource)
            while True:
                self._wake.clear()
                await self._step()
                await self._pause()
        finally:
            await self._hand_over()
            # All at once: a call that does not end holds up its own server alone.
            await asyncio.gather(
                *(endpoint.close() for endpoint in (*self._replaced, self._endpoint) if endpoint is not None)
            )

    async def _pause(self) -> None:
        """Until something happens to a stream, the next attempt is due, or the sockets must be looked at again."""
        due = self._not_before - asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(POLL_SECONDS, due) if due > 0 else POLL_SECONDS):
                await self._wake.wait()

    async def _step(self) -> None:
        loop = asyncio.get_running_loop()
        endpoint = self._endpoint
        if endpoint is None or not endpoint.intact():
            try:
                endpoint = await self._serve()
            except OSError as error:
                self._set_problem(str(error))
                return
        self._watch_others(endpoint)
        kubelet = identity(self._kubelet_path)
        if kubelet != self._kubelet:
            self._kubelet = kubelet
            self._backoff.reset()
            self._not_before = 0.0
        self._watch_stream(endpoint)
        if await self._yields(endpoint):
            self._set_problem(f"not registered, as somebody else has the resource: {self.conflict}")
        elif kubelet is None:
            self._set_problem(f"{self._kubelet_path} is not there: the kubelet is not running")
        elif self._streaming(endpoint) and not self._superseded:
            self._set_problem("")
            await self._retire()
            if loop.time() - self._registered_at > STEADY_SECONDS:
                self._backoff.reset()
        else:
            self._set_problem(self.problem or "the kubelet does not take our devices any more")
            if loop.time() >= self._not_before and self._lost is None:
                await self._register(endpoint)

    async def _serve(self) -> Endpoint:
        if self._endpoint is not None:
            log.warning("our socket was removed; serving on a new one", path=self._endpoint.path)
            self._replaced.append(self._endpoint)
            self._endpoint = None
            self._not_before = 0.0
        path = new_socket_path(self._directory, self._resource)
        self._endpoint = await Endpoint.open(path, self._new_service(self._stream_opened, self._stream_closed))
        log.info("serving", path=path)
        return self._endpoint

    async def _register(self, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        request = pb.RegisterRequest(
            version=kubelet_api.VERSION,
            endpoint=endpoint.path.name,
            resource_name=self._resource,
            options=endpoint.service.options(),
        )
        opened = endpoint.service.opened
        try:
            async with kubelet_api.channel(str(self._kubelet_path)) as channel:
                client = kubelet_api.RegistrationClient(channel)
                await client.register(request, timeout=REGISTER_TIMEOUT_SECONDS)
            problem = ""
        except grpc.aio.AioRpcError as error:
            problem = f"the kubelet refused the registration: {error.code().name}: {error.details()}"
        except Exception as error:
            problem = f"the registration failed: {error!r}"
        if not problem:
            self._registered_at = loop.time()
            deadline = loop.time() + STREAM_TIMEOUT_SECONDS
            while endpoint.service.opened == opened and loop.time() < deadline and self._unchanged(endpoint):
                self._wake.clear()
                await self._pause()
            if endpoint.service.opened == opened:
                problem = "the kubelet accepted the registration, but did not ask for the devices"
        self._not_before = loop.time() + self._backoff.next()
        self._metrics.registered(not problem)
        if not problem:
            self._superseded = False
            log.info("registered", resource=self._resource, endpoint=endpoint.path.name)
        self._set_problem(problem)
        self._wake.set()

    async def _hand_over(self) -> None:
        """Leaves the devices to a younger instance that serves them.

        Kubelets up to 1.36 know one client for a resource. When the stream of an instance ends they disconnect that
        client, which is the younger one's, and the devices are gone until it has registered again. A registration that
        fails makes them forget the client and leaves its stream alone; then the end of ours ends nothing else.
        """
        endpoint = self._endpoint
        if endpoint is None or endpoint.identity is None or not endpoint.service.streams:
            return
        siblings = served_siblings(self._directory, self._resource, besides=endpoint.path)
        if not any(seen.modified_ns > endpoint.identity.modified_ns for seen in siblings.values()):
            return
        endpoint.service.leaving = True
        request = pb.RegisterRequest(
            version=kubelet_api.VERSION, endpoint=endpoint.path.name, resource_name=self._resource
        )
        with contextlib.suppress(Exception):
            async with kubelet_api.channel(str(self._kubelet_path)) as channel:
                await kubelet_api.RegistrationClient(channel).register(request, timeout=STREAM_TIMEOUT_SECONDS)
        log.info("left the devices to a younger plugin", resource=self._resource)

    def _unchanged(self, endpoint: Endpoint) -> bool:
        return endpoint.intact() and identity(self._kubelet_path) == self._kubelet

    def _watch_others(self, endpoint: Endpoint) -> None:
        # Those of our instances are asked whether they live; strangers are not bothered.
        siblings = served_siblings(self._directory, self._resource, besides=endpoint.path)
        strangers = {p: seen for p, seen in others(self._directory).items() if not is_sibling(p, self._resource)}
        now = siblings | strangers
        born = endpoint.identity.modified_ns if endpoint.identity else 0
        left = {path: seen for path, seen in self._others.items() if path not in now}
        if any(seen.modified_ns > born or is_sibling(path, self._resource) for path, seen in left.items()):
            log.info("another plugin has left; registering again")
            self._superseded = True
        if siblings or any(is_sibling(path, self._resource) for path in self._others):
            self._sibling_at = asyncio.get_running_loop().time()
        self._others = now

    def _watch_stream(self, endpoint: Endpoint) -> None:
        """Tells of a stream that the kubelet ended though nothing has stopped."""
        held, self._held = self._held, None
        now = asyncio.get_running_loop().time()
        if self._lost is not None:
            at, *of = self._lost
            if of != [endpoint.path, self._kubelet]:
                self._lost = None
            elif now - at >= JUDGE_SECONDS:
                self._lost = None
                if not refuses(self._kubelet_path):
                    self._ownership.lost_stream(now)
        if self._kubelet is not None and self._streaming(endpoint):
            self._held = endpoint.path, self._kubelet
            return
        # When an instance of ours leaves, kubelets up to 1.36 end the stream of the one that stays.
        alone = now - self._sibling_at > SIBLING_SECONDS
        if alone and held is not None and held == (endpoint.path, self._kubelet):
            # A process that is killed loses its streams before its listening socket.
            self._lost = now, *held

    async def _yields(self, endpoint: Endpoint) -> bool:
        """True while somebody else has the resource; then nothing is said on our streams."""
        conflict = await self._ownership.look(self._own_sockets(endpoint), asyncio.get_running_loop().time())
        for each in (endpoint, *self._replaced):
            each.service.mute(bool(conflict))
        # Whatever the kubelet knows of us afterwards is what it knew before somebody else came.
        self._superseded = self._superseded or bool(conflict)
        return bool(conflict)

    def _own_sockets(self, endpoint: Endpoint) -> set[Path]:
        return {endpoint.path, *(each.path for each in self._replaced)}

    def _streaming(self, endpoint: Endpoint) -> bool:
        return any(stream.kubelet == self._kubelet for stream in endpoint.service.streams)

    async def _retire(self) -> None:
        """Closes the servers whose sockets were lost, but none that a kubelet still listens to: it would take the
        end of that stream for the end of the resource, and the connection is as good as the new one.
        """
        for endpoint in [each for each in self._replaced if not each.service.streams]:
            self._replaced.remove(endpoint)
            await endpoint.close()

    def _stream_opened(self) -> object:
        self._wake.set()
        return identity(self._kubelet_path)

    def _stream_closed(self) -> None:
        self._wake.set()

    def _set_problem(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("not registered", cause=problem)
        self.problem = problem
