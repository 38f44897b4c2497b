"""The kubelet's device plugin API v1beta1 over grpc.aio, bound from the descriptors of its definition; others, too."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import message_factory

from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb

VERSION: Final = "v1beta1"
HEALTHY: Final = "Healthy"
UNHEALTHY: Final = "Unhealthy"
DEFAULT_PLUGIN_DIR: Final = "/var/lib/kubelet/device-plugins"
KUBELET_SOCKET: Final = "kubelet.sock"
MAX_DEVICE_ID: Final = 63

REGISTRATION: Final = "Registration"
DEVICE_PLUGIN: Final = "DevicePlugin"

_LOCAL_POOL: Final = [("grpc.use_local_subchannel_pool", 1)]
"""Channels to one path share connections, and with them the back-off after a failure. Whoever re-creates a socket must
be reached at once, so each channel gets its own."""


def _python_name(method: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method).lower()


def handlers(service: str, implementation: object, definitions: Any = pb) -> "grpc.GenericRpcHandler":
    """Binds a service to the coroutine methods (async generators for streams) of ``implementation``.

    ``ListAndWatch`` is served by ``implementation.list_and_watch``, and so on; a missing method is an AttributeError.
    ``definitions`` is the generated module that has the service.
    """
    bound: dict[str, Any] = {}
    descriptor = definitions.DESCRIPTOR.services_by_name[service]
    for method in descriptor.methods:
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        bound[method.name] = make(
            getattr(implementation, _python_name(method.name)),
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(descriptor.full_name, bound)


def channel(path: str) -> "grpc.aio.Channel":
    """A channel of its own to the unix socket ``path``; its authority is ``localhost``, as in the kubelet's."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=[*_LOCAL_POOL, ("grpc.default_authority", "localhost")])


class Client:
    """Calls of one service: ``client.allocate(request, timeout=seconds)``, or iteration for a stream."""

    def __init__(self, service: str, over: "grpc.aio.Channel", definitions: Any = pb) -> None:
        self._calls: dict[str, Any] = {}
        descriptor = definitions.DESCRIPTOR.services_by_name[service]
        for method in descriptor.methods:
            make = over.unary_stream if method.server_streaming else over.unary_unary
            self._calls[_python_name(method.name)] = make(
                f"/{descriptor.full_name}/{method.name}",
                request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
            )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            return self._calls[name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None


class RegistrationClient(Client):
    """Calls the kubelet."""

    register: Callable[..., Awaitable[pb.Empty]]

    def __init__(self, over: "grpc.aio.Channel") -> None:
        super().__init__(REGISTRATION, over)


class DevicePluginClient(Client):
    """Calls a plugin, as the kubelet does."""

    get_device_plugin_options: Callable[..., Awaitable[pb.DevicePluginOptions]]
    list_and_watch: Callable[..., AsyncIterator[pb.ListAndWatchResponse]]
    get_preferred_allocation: Callable[..., Awaitable[pb.PreferredAllocationResponse]]
    allocate: Callable[..., Awaitable[pb.AllocateResponse]]
    pre_start_container: Callable[..., Awaitable[pb.PreStartContainerResponse]]

    def __init__(self, over: "grpc.aio.Channel") -> None:
        super().__init__(DEVICE_PLUGIN, over)
