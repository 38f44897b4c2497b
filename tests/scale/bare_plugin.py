"""The baseline of the row ``devices``: a bare grpc.aio server that gives a device plugin's recorded answers.

``python -m scale.bare_plugin DIRECTORY RESOURCE ANSWERS``. It keeps no inventory, checks nothing, and looks every
100 ms whether there is another kubelet.sock. ``ANSWERS`` holds a ListAndWatchResponse, and an AllocateResponse for each
request.
"""

import asyncio
import pickle
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from rm_device_plugins import kubelet_api
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb
from rm_device_plugins.sockets import identity

_LOOK_SECONDS = 0.1
_ENDPOINT = "bare.sock"


class Bare:
    """The service."""

    def __init__(self, devices: pb.ListAndWatchResponse, answers: dict[tuple[str, ...], pb.AllocateResponse]) -> None:
        self._devices, self._answers = devices, answers

    async def get_device_plugin_options(self, request: pb.Empty, context: Any) -> pb.DevicePluginOptions:
        return pb.DevicePluginOptions()

    async def list_and_watch(self, request: pb.Empty, context: Any) -> AsyncIterator[pb.ListAndWatchResponse]:
        yield self._devices
        await asyncio.Event().wait()

    async def allocate(self, request: pb.AllocateRequest, context: Any) -> pb.AllocateResponse:
        return self._answers[tuple(request.container_requests[0].devices_ids)]

    async def get_preferred_allocation(self, request: Any, context: Any) -> pb.PreferredAllocationResponse:
        return pb.PreferredAllocationResponse()

    async def pre_start_container(self, request: Any, context: Any) -> pb.PreStartContainerResponse:
        return pb.PreStartContainerResponse()


def recorded(file: Path) -> Bare:
    """The service that says what the benchmark has recorded."""
    listed, answers = pickle.loads(file.read_bytes())
    parsed = {request: pb.AllocateResponse.FromString(answer) for request, answer in answers.items()}
    return Bare(pb.ListAndWatchResponse.FromString(listed), parsed)


async def main(directory: Path, resource: str, service: Bare) -> None:
    """Serves and registers until it is killed."""
    registered = None
    server: Any = None
    while True:
        kubelet = identity(directory / kubelet_api.KUBELET_SOCKET)
        if kubelet is not None and kubelet != registered:
            if server is not None:
                await server.stop(0)
            server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            server.add_generic_rpc_handlers((kubelet_api.handlers(kubelet_api.DEVICE_PLUGIN, service),))
            server.add_insecure_port(f"unix:{directory / _ENDPOINT}")
            await server.start()
            request = pb.RegisterRequest(version=kubelet_api.VERSION, endpoint=_ENDPOINT, resource_name=resource)
            async with kubelet_api.channel(str(directory / kubelet_api.KUBELET_SOCKET)) as channel:
                await kubelet_api.RegistrationClient(channel).register(request)
            registered = kubelet
        await asyncio.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], recorded(Path(sys.argv[3]))))
