"""The part of the kubelet that finds plugins and calls drivers, as Kubernetes 1.36 does where a driver can tell.

It looks at its directory, dials what is new there, asks what it is, connects to the endpoint and says that it took it;
a socket that goes takes the plugin with it. Of several plugins of a driver the one that came last is called.
"""

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from rm_device_plugins import kubelet_api
from rm_device_plugins.proto.dra.v1 import api_pb2 as pb
from rm_device_plugins.proto.drahealth.v1alpha1 import api_pb2 as health_pb
from rm_device_plugins.proto.pluginregistration.v1 import api_pb2 as registration_pb
from rm_device_plugins.proto.podresources.v1 import api_pb2 as pods_pb
from rm_device_plugins.sockets import SocketIdentity, identity

TICK_SECONDS = 0.05
CALL_SECONDS = 45.0
"""The kubelet's own."""


@dataclass(eq=False)
class Plugin:
    """A driver that was registered."""

    path: Path
    seen: SocketIdentity
    info: registration_pb.PluginInfo
    channel: Any
    health: list[dict[str, tuple[int, str]]] = field(default_factory=list)
    """What its stream has told: state and message, by the device's name."""
    stream: "asyncio.Task[None] | None" = None

    async def call(self, method: str, request: Any) -> Any:
        client = kubelet_api.Client("DRAPlugin", self.channel, pb)
        return await getattr(client, method)(request, timeout=CALL_SECONDS)

    async def listen(self) -> None:
        client = kubelet_api.Client("DRAResourceHealth", self.channel, health_pb)
        with contextlib.suppress(Exception):
            async for told in client.node_watch_resources(health_pb.NodeWatchResourcesRequest()):
                self.health.append({each.device.device_name: (each.health, each.message) for each in told.devices})


class PluginWatcher:
    """Watches ``plugins_registry`` in the kubelet's directory."""

    def __init__(self, kubelet_dir: Path) -> None:
        self.directory = kubelet_dir / "plugins_registry"
        self.plugins: list[Plugin] = []
        self.ever: list[str] = []
        """Endpoints in the order in which they were registered."""
        self.refuse = ""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """As a kubelet that ends: it forgets all plugins, and leaves the sockets alone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for plugin in list(self.plugins):
            await self._remove(plugin)

    async def start(self) -> None:
        """Begins again, with what is in the directory."""
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(TICK_SECONDS)

    async def _look(self) -> None:
        present = {path: identity(path) for path in self.directory.iterdir() if stat.S_ISSOCK(path.lstat().st_mode)}
        for plugin in list(self.plugins):
            if present.get(plugin.path) != plugin.seen:
                await self._remove(plugin)
        known = {plugin.path for plugin in self.plugins}
        for path, seen in sorted(present.items()):
            if path not in known and seen is not None:
                with contextlib.suppress(Exception):
                    await self._add(path, seen)

    async def _add(self, path: Path, seen: SocketIdentity) -> None:
        async with kubelet_api.channel(str(path)) as channel:
            client = kubelet_api.Client("Registration", channel, registration_pb)
            info = await client.get_info(registration_pb.InfoRequest(), timeout=10)
            problem = self.refuse
            if info.type != "DRAPlugin":
                problem = f"no handler for the type {info.type}"
            elif not set(info.supported_versions) & {"v1.DRAPlugin", "v1beta1.DRAPlugin"}:
                problem = f"no version that is known: {info.supported_versions}"
            elif info.endpoint in {plugin.info.endpoint for plugin in self.plugins}:
                problem = f"endpoint {info.endpoint} already registered"
            if not problem:
                plugin = Plugin(path, seen, info, kubelet_api.channel(info.endpoint))
                if "v1alpha1.DRAResourceHealth" in info.supported_versions:
                    plugin.stream = asyncio.ensure_future(plugin.listen())
                self.plugins.append(plugin)
                self.ever.append(info.endpoint)
            status = registration_pb.RegistrationStatus(plugin_registered=not problem, error=problem)
            await client.notify_registration_status(status, timeout=10)

    async def _remove(self, plugin: Plugin) -> None:
        self.plugins.remove(plugin)
        if plugin.stream is not None:
            plugin.stream.cancel()
        await plugin.channel.close()

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Returns once ``condition`` holds; fails with ``what`` if it does not."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, f"not within {seconds:.0f} s: {what}"
            await asyncio.sleep(0.02)

    async def until_registered(self, count: int = 1) -> Plugin:
        """The plugin that is called, once there are ``count`` of them."""
        await self.until(lambda: len(self.plugins) == count, f"{count} plugins are registered")
        return self.plugins[-1]

    async def prepare(self, *claims: dict[str, Any]) -> dict[str, pb.NodePrepareResourceResponse]:
        """NodePrepareResources for the claims; the answers by UID."""
        answer = await self.plugins[-1].call(
            "node_prepare_resources", pb.NodePrepareResourcesRequest(claims=requests(claims))
        )
        return dict(answer.claims)

    async def unprepare(self, *claims: dict[str, Any]) -> dict[str, str]:
        """NodeUnprepareResources for the claims; errors by UID."""
        answer = await self.plugins[-1].call(
            "node_unprepare_resources", pb.NodeUnprepareResourcesRequest(claims=requests(claims))
        )
        return {uid: each.error for uid, each in answer.claims.items()}


class _Lister:
    def __init__(self, holds: Mapping[tuple[str, str, str], tuple[str, str, str]]) -> None:
        self._holds = holds

    async def list(self, request: Any, context: Any) -> pods_pb.ListPodResourcesResponse:
        del request, context
        answer = pods_pb.ListPodResourcesResponse()
        for (namespace, pod, container), (driver, pool, device) in self._holds.items():
            found = answer.pod_resources.add(namespace=namespace, name=pod).containers.add(name=container)
            claim = found.dynamic_resources.add(claim_namespace=namespace, claim_name="claim")
            claim.claim_resources.add(driver_name=driver, pool_name=pool, device_name=device)
        return answer

    async def get(self, request: Any, context: Any) -> pods_pb.GetPodResourcesResponse:
        del request, context
        return pods_pb.GetPodResourcesResponse()

    async def get_allocatable_resources(self, request: Any, context: Any) -> pods_pb.AllocatableResourcesResponse:
        del request, context
        return pods_pb.AllocatableResourcesResponse()


@asynccontextmanager
async def pod_resources(
    kubelet_dir: Path, holds: Mapping[tuple[str, str, str], tuple[str, str, str]]
) -> AsyncIterator[None]:
    """The Pod Resources API: driver, pool and device of each container, by namespace, pod and name."""
    (kubelet_dir / "pod-resources").mkdir(exist_ok=True)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((kubelet_api.handlers("PodResourcesLister", _Lister(holds), pods_pb),))
    server.add_insecure_port(f"unix:{kubelet_dir / 'pod-resources' / 'kubelet.sock'}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


def requests(claims: Iterable[dict[str, Any]]) -> list[pb.Claim]:
    """What the kubelet says of claims: nothing but their names."""
    return [
        pb.Claim(namespace=meta["namespace"], name=meta["name"], uid=meta["uid"])
        for meta in (claim["metadata"] for claim in claims)
    ]
