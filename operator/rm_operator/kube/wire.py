"""What requests and answers look like on the wire: content types, errors, and the lines of a watch."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import aiohttp
import msgspec

from rm_operator.kube.client import WatchEvent
from rm_operator.kube.documents import Listed, Reader, decode
from rm_operator.kube.errors import ApiError, Unreachable, error_from_status

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class _Event(msgspec.Struct, gc=False):
    type: str
    object: dict[str, msgspec.Raw]


_read_event: Final = Reader(_Event)
_read_list: Final = Reader(Listed)


def decoded_object(content: bytes) -> dict[str, Any]:
    """An answer that is one object. Raises aiohttp.ClientPayloadError if it is none."""
    try:
        found = decode(content)
    except msgspec.DecodeError:
        found = None
    if not isinstance(found, dict):
        raise aiohttp.ClientPayloadError("the answer is not a JSON object")
    return found


def decoded_list(content: bytes) -> Listed:
    """An answer that is a page of a list. Raises aiohttp.ClientPayloadError if it is none."""
    try:
        return _read_list(content)
    except msgspec.DecodeError as error:
        raise aiohttp.ClientPayloadError(f"the answer is not a list: {error}") from None


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


async def events(response: aiohttp.ClientResponse, *, inactivity_seconds: float) -> AsyncGenerator[WatchEvent, None]:
    """The events of a watch until the server ends it.

    Raises the ApiError that the server reports, Unreachable if the stream is garbled or cut off within an event, and
    TimeoutError if nothing comes for ``inactivity_seconds``.
    """
    begun: list[bytes] = []
    """What has come of an event that has not ended yet."""
    while True:
        # The timeout is around reads only: one around a yield would strike the consumer.
        async with asyncio.timeout(inactivity_seconds):
            chunk = await response.content.readany()
        if not chunk:
            break
        whole, end, rest = chunk.rpartition(b"\n")
        if end:
            for line in b"".join((*begun, whole)).split(b"\n"):
                yield _event(line)
            begun.clear()
        begun.append(rest)
    if any(begun):
        raise Unreachable("the watch was cut off in the middle of an event")


def _event(line: bytes) -> WatchEvent:
    try:
        event = _read_event(line)
        if event.type != "ERROR":
            return WatchEvent(event.type, event.object)
        obj = {name: decode(content) for name, content in event.object.items()}
    except msgspec.DecodeError:
        raise Unreachable("the watch sent something that is no event") from None
    raise error_from_status(int(obj.get("code") or 500), obj)
