"""The client over aiohttp: deadlines on everything, retries where repeating does no harm."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final, Self, TypeVar

import aiohttp
from rm_api.names import FIELD_MANAGER_STATUS

from rm_operator.kube import wire
from rm_operator.kube.auth import ConfigError, Connection
from rm_operator.kube.client import Object, ObjectList, Part, Propagation, WatchEvent
from rm_operator.kube.documents import encode
from rm_operator.kube.errors import (
    ApiError,
    NotFound,
    NotLeader,
    ServerError,
    Silent,
    TooManyRequests,
    Unreachable,
)
from rm_operator.kube.resources import SERVER_VERSION, Resource
from rm_operator.kube.throttle import TokenBucket
from rm_operator.kube.wire import APPLY, JSON, METADATA, decoded_list, decoded_object, error_of

T = TypeVar("T")

Observer = Callable[[str, Resource, int, float], None]
"""Told of each attempt: verb, resource, HTTP status (0: no answer), seconds."""

MAX_ATTEMPTS: Final = 5
FIRST_RETRY_SECONDS: Final = 0.1
MAX_RETRY_SECONDS: Final = 5.0
WATCH_SECONDS: Final = (240, 480)
"""Between these the server is asked to end a watch, so that watches move to other servers and do not end together."""

_random = random.Random()  # noqa: S311 - jitter


class HttpClient:
    """A :class:`~rm_operator.kube.client.KubeClient` for one API server.

    ``attempt_seconds`` bounds one attempt, ``deadline_seconds`` a request with its retries. Reads, applies and deletes
    are repeated after 429, 5xx and lost connections; a create only where it cannot have been done. ``may_write`` is
    asked before each attempt of a mutating request.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        bucket: TokenBucket | None = None,
        may_write: Callable[[], bool] | None = None,
        observe: Observer | None = None,
        attempt_seconds: float = 20.0,
        deadline_seconds: float = 45.0,
        connections: int = 128,
    ) -> None:
        self._server = connection.server
        self._session = connection.open_session(limit=connections)
        self._bucket = bucket
        self._may_write = may_write
        self._observe = observe
        self._attempt_seconds = attempt_seconds
        self._deadline_seconds = deadline_seconds

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def get(
        self, resource: Resource, namespace: str | None, name: str, *, metadata_only: bool = False
    ) -> dict[str, Any]:
        """See KubeClient."""
        path = resource.path(namespace, name)
        return await self._request("GET", resource, path, accept=METADATA if metadata_only else JSON)

    async def serves(self, resource: Resource) -> bool:
        """True if the server knows the kind: its CustomResourceDefinition is established."""
        path = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
        try:
            known = await self._request("GET", resource, path)
        except NotFound:
            return False
        return any(each["name"] == resource.plural for each in known.get("resources") or ())

    async def version(self) -> tuple[int, int]:
        """Major and minor version of Kubernetes that the server says it is."""
        said = await self._request("GET", SERVER_VERSION, "/version")
        # Some vendors write 36+.
        return int(said["major"].rstrip("+")), int(said["minor"].rstrip("+"))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> ObjectList:
        """See KubeClient."""
        params = _selectors(label_selector, field_selector)
        return await self._ask(decoded_list, "GET", resource, resource.path(namespace), params=params, verb="LIST")

    def parts(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        inactivity_seconds: float = 75.0,
    ) -> AsyncGenerator[Part, None]:
        """See KubeClient."""
        params = _selectors(label_selector, field_selector)
        return self._stream("LIST", wire.parts, resource, namespace, params, inactivity_seconds)

    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        inactivity_seconds: float = 75.0,
    ) -> AsyncGenerator[WatchEvent, None]:
        """See KubeClient."""
        params = _selectors(label_selector, field_selector) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_random.randint(*WATCH_SECONDS)),
            "resourceVersion": resource_version,
        }
        return self._stream("WATCH", wire.events, resource, namespace, params, inactivity_seconds)

    async def _stream(
        self,
        verb: str,
        read: Callable[[aiohttp.ClientResponse, float], AsyncGenerator[T, None]],
        resource: Resource,
        namespace: str | None,
        params: Mapping[str, str],
        inactivity_seconds: float,
    ) -> AsyncGenerator[T, None]:
        """What ``read`` makes of the answer to one request, while it comes."""
        loop = asyncio.get_running_loop()
        what = f"the {verb.lower()} of {resource.name}"
        started, status = loop.time(), 0
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(inactivity_seconds):
                response = await self._session.get(
                    self._server + resource.path(namespace),
                    params=params,
                    headers={"Accept": JSON},
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                    allow_redirects=False,
                )
                status = response.status
                if status != 200:
                    raise error_of(response, await response.read())
            async with contextlib.aclosing(read(response, inactivity_seconds)) as stream:
                async for each in stream:
                    yield each
        except TimeoutError:
            raise Silent(f"{what} was silent for {inactivity_seconds:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{what} broke: {error!r}") from None
        except ConfigError as error:
            raise Unreachable(f"no credentials: {error}") from None
        finally:
            if response is not None:
                # No farewell: the server that we leave may be one that does not answer any more.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()
                response.close()
            if self._observe is not None:
                self._observe(verb, resource, status, loop.time() - started)

    async def apply(
        self,
        resource: Resource,
        obj: Object,
        *,
        field_manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        """See KubeClient."""
        metadata = obj["metadata"]
        params = {"fieldManager": field_manager, "fieldValidation": "Strict"}
        if force:
            params["force"] = "true"
        path = resource.path(metadata.get("namespace"), metadata["name"], subresource)
        return await self._request("PATCH", resource, path, params=params, body=encode(obj), content_type=APPLY)

    async def apply_status(self, resource: Resource, obj: Object, status: Object) -> dict[str, Any]:
        """See KubeClient."""
        # Said of exactly the state that was looked at: a writer whose view is old must not take back what is newer.
        identity = ("namespace", "name", "uid", "resourceVersion")
        metadata = {key: obj["metadata"][key] for key in identity if key in obj["metadata"]}
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "status": status}
        return await self.apply(resource, body, field_manager=FIELD_MANAGER_STATUS, subresource="status")

    async def create(self, resource: Resource, obj: Object, *, field_manager: str) -> dict[str, Any]:
        """See KubeClient."""
        return await self._request(
            "POST",
            resource,
            resource.path(obj["metadata"].get("namespace")),
            params={"fieldManager": field_manager, "fieldValidation": "Strict"},
            body=encode(obj),
            content_type=JSON,
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Propagation = "Background",
    ) -> bool:
        """See KubeClient."""
        preconditions = {
            key: value for key, value in (("uid", uid), ("resourceVersion", resource_version)) if value is not None
        }
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if preconditions:
            options["preconditions"] = preconditions
        path = resource.path(namespace, name)
        try:
            await self._request("DELETE", resource, path, body=encode(options), content_type=JSON)
        except NotFound:
            return False
        return True

    async def _request(self, method: str, resource: Resource, path: str, **options: Any) -> dict[str, Any]:
        return await self._ask(decoded_object, method, resource, path, **options)

    async def _ask(
        self,
        read: Callable[[bytes], T],
        method: str,
        resource: Resource,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str | None = None,
        accept: str = JSON,
        verb: str | None = None,
    ) -> T:
        """One request with its retries; the body of the answer, as ``read`` gives it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline_seconds
        headers = {"Accept": accept} | ({"Content-Type": content_type} if content_type else {})
        repeatable = method != "POST"
        error: ApiError | None = None
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if self._bucket is not None:
                await self._bucket.take()
            if method != "GET" and self._may_write is not None and not self._may_write():
                raise NotLeader(f"{method} {path} was not sent: the Lease is not held")
            started, status = loop.time(), 0
            seconds = min(self._attempt_seconds, deadline - started)
            try:
                async with (
                    asyncio.timeout(seconds),
                    self._session.request(
                        method, self._server + path, params=params, data=body, headers=headers, allow_redirects=False
                    ) as response,
                ):
                    status = response.status
                    content = await response.read()
                    if 200 <= status < 300:
                        return read(content)
                    error = error_of(response, content)
                    again = isinstance(error, TooManyRequests) or (repeatable and isinstance(error, ServerError))
            except aiohttp.ClientConnectorError as failure:
                error, again = Unreachable(f"{self._server} cannot be reached: {failure}"), True
            except TimeoutError:
                # An attempt that the deadline cut short says less than the one before it.
                if error is None or seconds == self._attempt_seconds:
                    error = Unreachable(f"{method} {path} had no answer within {seconds:.3g} s")
                again = repeatable
            except (aiohttp.ClientError, OSError) as failure:
                error, again = Unreachable(f"{method} {path} was cut off: {failure!r}"), repeatable
            except ConfigError as failure:
                error, again = Unreachable(f"no credentials: {failure}"), True
            finally:
                if self._observe is not None:
                    self._observe(verb or method, resource, status, loop.time() - started)
            pause = min(FIRST_RETRY_SECONDS * 2 ** (attempt - 1), MAX_RETRY_SECONDS) * (0.5 + _random.random() / 2)
            pause = max(pause, error.retry_after or 0.0)
            if not again or attempt == MAX_ATTEMPTS or loop.time() + pause >= deadline:
                raise error
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")


def _selectors(label_selector: str | None, field_selector: str | None) -> dict[str, str]:
    pairs = (("labelSelector", label_selector), ("fieldSelector", field_selector))
    return {name: value for name, value in pairs if value}
