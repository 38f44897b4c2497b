"""What requests and answers look like on the wire: content types, errors, the parts of a list, the lines of a watch."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import aiohttp
import msgspec

from rm_operator.kube.client import ObjectList, Part, WatchEvent
from rm_operator.kube.documents import Reader, decode, decoded
from rm_operator.kube.errors import ApiError, Unreachable, error_from_status
from rm_operator.kube.list_divider import ListDivider, Listed

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class _Event(msgspec.Struct, gc=False):
    type: str
    object: dict[str, msgspec.Raw]


_read_event: Final = Reader(_Event)
_read_list: Final = Reader(Listed[dict[str, Any]])


def decoded_object(content: bytes) -> dict[str, Any]:
    """An answer that is one object. Raises aiohttp.ClientPayloadError if it is none."""
    try:
        found = decode(content)
    except msgspec.DecodeError:
        found = None
    if not isinstance(found, dict):
        raise aiohttp.ClientPayloadError("the answer is not a JSON object")
    return found


def decoded_list(content: bytes) -> ObjectList:
    """An answer that is a list. Raises aiohttp.ClientPayloadError if it is none."""
    try:
        found = _read_list(content)
    except msgspec.DecodeError as error:
        raise aiohttp.ClientPayloadError(f"the answer is not a list: {error}") from None
    return ObjectList(found.items or [], found.metadata.resource_version)


def error_of(response: aiohttp.ClientResponse, content: bytes) -> ApiError:
    """What an answer that is no success means."""
    try:
        status = decode(content)
    except msgspec.DecodeError:
        status = None
    retry_after = None
    header = response.headers.get("Retry-After", "")
    if header.isdigit():
        retry_after = float(header)
    return error_from_status(
        response.status,
        status if isinstance(status, dict) else None,
        fallback=content[:500].decode(errors="replace"),
        retry_after=retry_after,
    )


async def parts(response: aiohttp.ClientResponse, inactivity_seconds: float) -> AsyncGenerator[Part, None]:
    """A list as it comes; the last part has the version.

    Raises Unreachable if it is garbled or cut off, and TimeoutError if nothing comes for ``inactivity_seconds``.
    """
    divider = ListDivider()
    while piece := await _piece(response, inactivity_seconds):
        if objects := divider.take(piece):
            yield Part(objects)
    try:
        objects, said = divider.end()
    except msgspec.DecodeError as error:
        raise Unreachable(f"the answer is not a list: {error}") from None
    if said.more or not said.resource_version:
        raise Unreachable("the answer is not the whole of a list")
    yield Part(objects, said.resource_version)


async def events(response: aiohttp.ClientResponse, inactivity_seconds: float) -> AsyncGenerator[WatchEvent, None]:
    """The events of a watch until the server ends it.

    Raises the ApiError that the server reports, Unreachable if the stream is garbled or cut off within an event, and
    TimeoutError if nothing comes for ``inactivity_seconds``.
    """
    begun: list[bytes] = []
    """What has come of an event that has not ended yet."""
    while chunk := await _piece(response, inactivity_seconds):
        whole, end, rest = chunk.rpartition(b"\n")
        if end:
            for line in b"".join((*begun, whole)).split(b"\n"):
                yield _event(line)
            begun.clear()
        begun.append(rest)
    if any(begun):
        raise Unreachable("the watch was cut off in the middle of an event")


async def _piece(response: aiohttp.ClientResponse, inactivity_seconds: float) -> bytes:
    """What has come since, as soon as there is some; empty at the end."""
    # The timeout is around reads only: one around a yield would strike the consumer.
    async with asyncio.timeout(inactivity_seconds):
        return await response.content.readany()


def _event(line: bytes) -> WatchEvent:
    try:
        event = _read_event(line)
        if event.type != "ERROR":
            return WatchEvent(event.type, event.object)
        obj = decoded(event.object)
    except msgspec.DecodeError:
        raise Unreachable("the watch sent something that is no event") from None
    raise error_from_status(int(obj.get("code") or 500), obj)
