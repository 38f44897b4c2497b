"""The little of the Kubernetes API that the driver needs, over the standard library: one request a connection.

The token and the authority's certificate are read for each request, as the kubelet replaces both while we run.
"""

import asyncio
import contextlib
import io
import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, parse_headers
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from rm_device_plugins.config import ConfigError

Json = dict[str, Any]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REQUEST_SECONDS = 15.0
WATCH_SECONDS = 300
_MARGIN_SECONDS = 30.0
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
_MAX_HEAD = 64 * 1024
_MAX_BODY = 16 * 1024 * 1024
_JSON = "application/json"

NODES = "/api/v1/nodes"
SLICES = "/apis/resource.k8s.io/v1/resourceslices"


def claims(namespace: str) -> str:
    """Path of a namespace's ResourceClaims."""
    return f"/apis/resource.k8s.io/v1/namespaces/{quote(namespace, safe='')}/resourceclaims"


class ApiError(Exception):
    """The API server did not do what it was asked for. ``status`` is its answer's, 0 if there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Server:
    """Where the API server is, and the directory with ``token`` and ``ca.crt``."""

    host: str
    port: int
    directory: Path

    @classmethod
    def in_cluster(cls, directory: Path) -> "Server":
        """As pods are told by the kubelet. Raises ConfigError where this is no pod, or one without a token."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not port.isdigit():
            raise ConfigError("KUBERNETES_SERVICE_HOST and _PORT do not name an API server; is this a pod?")
        for name in ("token", "ca.crt"):
            if not (directory / name).is_file():
                raise ConfigError(
                    f"{directory / name} does not exist: the pod needs a service account "
                    "(serviceAccountName, automountServiceAccountToken)"
                )
        return cls(host, int(port), directory)


class ApiClient:
    """Requests to one API server. Every method raises ApiError, and nothing else, where it cannot do its work."""

    def __init__(self, server: Server, user_agent: str) -> None:
        self._server = server
        self._user_agent = user_agent

    async def get(self, path: str, name: str) -> Json:
        """One object."""
        return await self._call("GET", f"{path}/{quote(name, safe='')}")

    async def list(self, path: str, query: Mapping[str, str]) -> Json:
        """A list with ``metadata`` and ``items``."""
        return await self._call("GET", f"{path}?{urlencode(query)}")

    async def create(self, path: str, body: Json) -> Json:
        """The object as the server has made it."""
        return await self._call("POST", path, body)

    async def replace(self, path: str, body: Json) -> Json:
        """The object as the server has it now; status 409 if it is not at the version in ``body``."""
        return await self._call("PUT", f"{path}/{quote(body['metadata']['name'], safe='')}", body)

    async def delete(self, path: str, name: str, resource_version: str) -> None:
        """Deletes it at that version; one that is not there is no error."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"resourceVersion": resource_version}}
        try:
            await self._call("DELETE", f"{path}/{quote(name, safe='')}", options)
        except ApiError as error:
            if error.status != 404:
                raise

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[Json, None]:
        """Events after the ``resourceVersion`` in ``query``, until the server ends the stream."""
        wanted = {**query, "watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
        async with self._exchange("GET", f"{path}?{urlencode(wanted)}", None, REQUEST_SECONDS) as (_, parts):
            rest = b""
            try:
                # The server says something each minute, so a silence this long is a connection that is none.
                while part := await asyncio.wait_for(anext(parts, b""), WATCH_SECONDS + _MARGIN_SECONDS):
                    *lines, rest = (rest + part).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        told = event["object"]
                        if event["type"] == "ERROR":
                            raise _refused(int(told.get("code", 0)), json.dumps(told).encode())
                        yield event
            except _FAULTS as error:
                raise ApiError(f"the watch of the API server broke off: {error!r}") from error

    async def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        try:
            async with (
                asyncio.timeout(REQUEST_SECONDS),
                self._exchange(method, path, body, REQUEST_SECONDS) as (_, parts),
            ):
                answer = await _gather(parts)
            decoded = json.loads(answer)
        except _FAULTS as error:
            raise ApiError(f"the API server at {self._server.host}:{self._server.port}: {_said(error)}") from error
        if not isinstance(decoded, dict):
            raise ApiError("the API server answered with JSON that is no object")
        return decoded

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, body: Json | None, seconds: float
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Status (of success) and the parts of the body. ``seconds`` are for the answer's beginning."""
        writer: asyncio.StreamWriter | None = None
        try:
            try:
                async with asyncio.timeout(seconds):
                    reader, writer = await self._connect()
                    writer.write(self._request(method, path, body))
                    await writer.drain()
                    status, headers = await _head(reader)
                    parts = _body(reader, headers)
                    if status >= 400:
                        raise _refused(status, await _gather(parts))
            except _FAULTS as error:
                raise ApiError(f"the API server at {self._server.host}:{self._server.port}: {_said(error)}") from error
            yield status, parts
        finally:
            if writer is not None:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls = ssl.create_default_context(cafile=os.fspath(self._server.directory / "ca.crt"))
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        reader, writer = await asyncio.open_connection(self._server.host, self._server.port, ssl=tls, limit=_MAX_HEAD)
        connected = writer.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
        return reader, writer

    def _request(self, method: str, path: str, body: Json | None) -> bytes:
        token = (self._server.directory / "token").read_text(encoding="ascii").strip()
        host = f"[{self._server.host}]" if ":" in self._server.host else self._server.host
        content = b"" if body is None else json.dumps(body).encode()
        lines = (
            f"{method} {path} HTTP/1.1",
            f"Host: {host}:{self._server.port}",
            f"Authorization: Bearer {token}",
            f"User-Agent: {self._user_agent}",
            f"Accept: {_JSON}",
            *([f"Content-Type: {_JSON}", f"Content-Length: {len(content)}"] if body is not None else []),
            "Connection: close",
        )
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + content


_FAULTS = (OSError, EOFError, ValueError, TypeError, KeyError, HTTPException, asyncio.LimitOverrunError)
"""What can become of an exchange; a timeout is an OSError."""


def _said(error: BaseException) -> str:
    return "it did not answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


def _refused(status: int, body: bytes) -> ApiError:
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode(errors="replace").strip()
    return ApiError(f"the API server answered with {status}: {message}", status)


async def _head(reader: asyncio.StreamReader) -> tuple[int, HTTPMessage]:
    words = (await reader.readuntil(b"\r\n")).decode("latin-1").split(None, 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise ValueError("the answer is not HTTP/1.1")
    lines = [await reader.readuntil(b"\r\n")]
    while lines[-1] != b"\r\n":
        lines.append(await reader.readuntil(b"\r\n"))
    return int(words[1]), parse_headers(io.BytesIO(b"".join(lines)))


async def _body(reader: asyncio.StreamReader, headers: HTTPMessage) -> AsyncIterator[bytes]:
    if "chunked" in (headers.get("Transfer-Encoding") or "").lower():
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif (length := headers.get("Content-Length")) is not None:
        yield await reader.readexactly(min(int(length), _MAX_BODY))
    else:
        while part := await reader.read(_MAX_HEAD):
            yield part


async def _gather(parts: AsyncIterator[bytes]) -> bytes:
    gathered = bytearray()
    async for part in parts:
        gathered += part
        if len(gathered) > _MAX_BODY:
            raise ValueError(f"the answer is longer than {_MAX_BODY} bytes")
    return bytes(gathered)
