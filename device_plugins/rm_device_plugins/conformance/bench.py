"""What a case works with: a directory, a kubelet in it, the plugin, and connections to it."""

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from rm_device_plugins import kubelet_api
from rm_device_plugins.conformance.fake_kubelet import FakeKubelet
from rm_device_plugins.conformance.faults import Hook
from rm_device_plugins.conformance.launch import Instance, Launcher
from rm_device_plugins.conformance.model import CannotJudge, NotApplicable, Timing, Violation
from rm_device_plugins.conformance.watch import Snapshot, Watch
from rm_device_plugins.kubelet_api import HEALTHY, UNHEALTHY
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb

_TICK_SECONDS = 0.02


class Refused(Exception):
    """The plugin answered a call with an error."""


class Plugin:
    """A connection of one's own to a plugin's socket."""

    def __init__(self, path: Path, timing: Timing) -> None:
        self.path = path
        self._timing = timing
        self._channel = kubelet_api.channel(str(path))
        self.client = kubelet_api.DevicePluginClient(self._channel)

    async def close(self) -> None:
        """Ends the connection and all that runs over it."""
        await self._channel.close()

    async def call(self, method: str, request: Any, seconds: float | None = None) -> Any:
        """The answer; raises Refused for an error, and Violation if there is none in time."""
        limit = self._timing.patience if seconds is None else seconds
        began = time.monotonic()
        try:
            return await getattr(self.client, method)(request, timeout=limit)
        except grpc.aio.AioRpcError as error:
            # A plugin may well answer with this code, for a deadline of its own.
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() - began >= limit:
                raise Violation(f"{method} was not answered within {limit:g} s") from error
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED):
                raise Violation(f"{method} failed: {error.code().name}: {error.details()}") from error
            raise Refused(f"{error.code().name}: {error.details()}") from error

    async def options(self) -> pb.DevicePluginOptions:
        """What the kubelet may call."""
        try:
            options: pb.DevicePluginOptions = await self.call("get_device_plugin_options", pb.Empty())
        except Refused as error:
            raise Violation(f"GetDevicePluginOptions was refused: {error}") from error
        return options

    async def allocate(self, *containers: Sequence[str]) -> Any:
        """Allocates for containers of one request; the answers for each. Raises Refused."""
        request = pb.AllocateRequest(
            container_requests=[pb.ContainerAllocateRequest(devices_ids=c) for c in containers]
        )
        return (await self.call("allocate", request)).container_responses

    async def allocated(self, devices: Sequence[str]) -> pb.ContainerAllocateResponse:
        """The answer for one container that must get its devices; raises Violation."""
        try:
            answers = await self.allocate(devices)
        except Refused as error:
            raise Violation(f"Allocate of {list(devices)}, healthy and known, was refused: {error}") from error
        if len(answers) != 1:
            raise Violation(f"Allocate for one container had {len(answers)} container_responses")
        answer: pb.ContainerAllocateResponse = answers[0]
        return answer

    async def not_allocated(self, devices: Sequence[str], what: str) -> None:
        """Raises Violation if the devices are given."""
        try:
            answers = await self.allocate(devices)
        except Refused:
            return
        raise Violation(f"Allocate of {what} was answered with success: {_brief(answers)}")

    def watch(self) -> Watch:
        """A stream beside the kubelet's."""
        return Watch(self.client, self.path.name)


def _brief(answers: Any) -> str:
    text = " ".join(str(answers).split())
    return text if len(text) < 200 else f"{text[:200]}…"


@dataclass(eq=False)
class Bench:
    """One place to try a plugin in. ``launcher`` is None, and so is the kubelet, for one that listens already."""

    timing: Timing
    hook: Hook
    launcher: Launcher | None = None
    socket: Path | None = None
    place: Path = Path()
    """A directory of its own, for the kubelet's directory and the outputs."""
    wanted_resource: str = ""
    siblings: Callable[[str], str] | None = None
    """The physical device behind an ID, where it was said how IDs are made."""
    instances: list[Instance] = field(default_factory=list)
    plugins: list[Plugin] = field(default_factory=list)
    baseline: Snapshot | None = None
    _kubelet: FakeKubelet | None = None

    # --- the surroundings

    @property
    def directory(self) -> Path:
        """The kubelet's directory for plugins."""
        return self.place / "dp"

    @property
    def kubelet(self) -> FakeKubelet:
        """The kubelet, which ``open`` started."""
        if self._kubelet is None:
            raise CannotJudge("this case needs a kubelet, and there is none for a plugin that listens already")
        return self._kubelet

    async def open(self, *, kubelet: bool = True, by_socket: bool = True) -> None:
        """Makes the directory, and starts a kubelet in it unless it is to be absent."""
        self.directory.mkdir(parents=True)
        self._kubelet = FakeKubelet(self.directory, by_socket=by_socket)
        if kubelet:
            await self._kubelet.start()

    async def close(self) -> None:
        """Ends everything and removes the directory."""
        for plugin in self.plugins:
            await plugin.close()
        try:
            for instance in self.instances:
                await instance.kill()
        finally:
            if self._kubelet is not None:
                await self._kubelet.stop()
            if self.launcher is not None:
                await asyncio.to_thread(shutil.rmtree, self.place, ignore_errors=True)

    # --- the plugin

    @property
    def resource(self) -> str:
        """The resource under test: the one that was named, or the first that was registered."""
        if self.wanted_resource:
            return self.wanted_resource
        requests = self.kubelet.registrations
        return requests[0].resource_name if requests else ""

    async def start(self, resource: str | None = None) -> Instance:
        """Starts the plugin once more."""
        if self.launcher is None:
            raise NotApplicable("the suite must start the plugin itself: use --command or --image")
        work = self.place / f"instance-{len(self.instances)}"
        work.mkdir()
        instance = await self.launcher.start(
            self.directory, work, self.wanted_resource if resource is None else resource
        )
        self.instances.append(instance)
        return instance

    async def registered(self, seconds: float | None = None, what: str = "the plugin is registered") -> float:
        """Waits until a stream has delivered a list; the seconds that it took."""
        return await self.until(lambda: self.kubelet.streams(self.resource) >= 1, what, seconds)

    async def up(self) -> Plugin:
        """Starts the plugin, waits until it is registered, and connects to it."""
        await self.start()
        await self.registered()
        return await self.connect()

    async def connect(self) -> Plugin:
        """A connection to the socket that the kubelet allocates from. Remembers the list as it is now."""
        path = self.socket or self.directory / self.kubelet.connected(self.resource)
        plugin = Plugin(path, self.timing)
        self.plugins.append(plugin)
        async with plugin.watch() as watch:
            await self.until(lambda: bool(watch.snapshots or watch.ended), "ListAndWatch delivers a list")
            if watch.last is None:
                raise Violation(f"ListAndWatch ended without a list: {watch.ended}")
            self.baseline = watch.last
        return plugin

    @property
    def last(self) -> Snapshot:
        """The newest list that the kubelet got."""
        return self.kubelet.resource(self.resource).snapshots[-1]

    # --- its devices

    def devices(self, count: int = 1) -> list[str]:
        """``count`` healthy devices of the plugin that ``connect`` reached; NotApplicable where it has fewer."""
        listed = self.baseline.health if self.baseline else {}
        healthy = [name for name, health in listed.items() if health == HEALTHY]
        if len(healthy) < count:
            raise NotApplicable(f"it needs {count} healthy devices, and the plugin lists {len(healthy)}")
        return healthy[:count]

    def devices_apart(self) -> list[str]:
        """Healthy devices, one of each piece of hardware: no container needs to be given two shares of one."""
        hardware = self.siblings or str
        healthy = self.baseline.healthy if self.baseline else frozenset[str]()
        apart = list({hardware(name): name for name in sorted(healthy, reverse=True)}.values())
        if not apart:
            raise NotApplicable("it needs a healthy device, and the plugin lists none")
        return apart

    async def until_health(self, watch: Watch, device: str, health: str, what: str) -> float:
        """Waits until the newest list says so."""
        try:
            return await self.until(lambda: watch.health(device) == health, what, watch=watch)
        except Violation as error:
            seen = watch.health(device) or "not listed"
            raise Violation(f"{error}; device {device!r} is {seen}") from error

    async def until_unhealthy(self, watch: Watch, device: str, what: str) -> float:
        """Waits until the device is listed as unhealthy."""
        return await self.until_health(watch, device, UNHEALTHY, what)

    # --- waiting

    def check_alive(self) -> None:
        """Raises Violation if an instance has ended that nobody had asked to."""
        for instance in self.instances:
            if instance.expected and instance.ended is not None:
                raise Violation(f"the plugin ended by itself, with {instance.ended}")

    async def until(
        self, condition: Callable[[], bool], what: str, seconds: float | None = None, watch: Watch | None = None
    ) -> float:
        """Waits for a condition; the seconds that it took. Raises Violation when it is late or the plugin ended."""
        limit = self.timing.patience if seconds is None else seconds
        started = time.monotonic()
        while not condition():
            self.check_alive()
            if watch is not None and watch.ended:
                raise Violation(f"the stream ended ({watch.ended}) before {what}")
            if time.monotonic() - started > limit:
                problems = f"; Register failed: {self.kubelet.problems[-1]}" if self._problems() else ""
                raise Violation(f"not within {limit:g} s: {what}{problems}")
            await asyncio.sleep(_TICK_SECONDS)
        return time.monotonic() - started

    async def never(self, condition: Callable[[], bool], what: str, seconds: float | None = None) -> None:
        """Looks on for a while; raises Violation as soon as the condition holds, or if the plugin ends."""
        limit = self.timing.settle if seconds is None else seconds
        deadline = time.monotonic() + limit
        while True:
            self.check_alive()
            if condition():
                raise Violation(what)
            if time.monotonic() >= deadline:
                return
            await asyncio.sleep(_TICK_SECONDS)

    def _problems(self) -> bool:
        return self._kubelet is not None and bool(self._kubelet.problems)
