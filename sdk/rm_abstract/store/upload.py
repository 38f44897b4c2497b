"""Uploads to a registry that go on where the connection broke, and patience with one that cannot answer now."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

import httpx2

from rm_abstract.core.errors import ArtifactMismatch, BadInput, SourceUnreachable
from rm_abstract.http import Http, NotFound, netloc

_Result = TypeVar("_Result")
_WHOLE: Final = 1 << 20
"""Bytes up to which a blob is sent in one request."""
ATTEMPTS: Final = 5
"""How often a store is asked that cannot answer."""
_FIRST_WAIT: Final = 0.2
_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d+)")


def waits(attempts: int) -> Iterator[float]:
    """Seconds before each further attempt, always twice as long."""
    return (_FIRST_WAIT * 2**number for number in range(attempts - 1))


def patiently(action: Callable[[], _Result], attempts: int) -> _Result:
    """What ``action`` returns, which may be done again. Raises its SourceUnreachable after as many attempts."""
    for wait in waits(attempts):
        try:
            return action()
        except SourceUnreachable:
            time.sleep(wait)
    return action()


class Body:
    """A request body from a position on, which can be sent again, should the registry ask for credentials meanwhile."""

    def __init__(self, content: Callable[[], Iterable[bytes]], start: int = 0) -> None:
        self._content = content
        self._start = start

    def __iter__(self) -> Iterator[bytes]:
        skip = self._start
        for chunk in self._content():
            if skip < len(chunk):
                yield chunk[skip:] if skip else chunk
            skip = max(0, skip - len(chunk))


class Upload:
    """One blob on its way to ``blobs`` (``…/v2/REPOSITORY/blobs/``)."""

    def __init__(self, http: Http, blobs: str, digest: str, size: int, content: Callable[[], Iterable[bytes]]) -> None:
        self._http = http
        self._blobs = blobs
        self._digest = digest
        self._size = size
        self._content = content
        self._session = ""
        self._there = 0

    def run(self, attempts: int) -> None:
        """Upload the blob, unless it is there. Any progress makes all ``attempts`` begin anew."""
        left = waits(attempts)
        while not self._present():
            before = self._there
            try:
                self._send()
            except (SourceUnreachable, BadInput) as error:
                if self._resumable() and self._there > before:
                    left = waits(attempts)
                wait = next(left, None)
                if wait is None or (isinstance(error, BadInput) and not before):
                    self._abandon()
                    raise
                time.sleep(wait)
            else:
                return

    def _present(self) -> bool:
        try:
            response = patiently(lambda: self._http.request("HEAD", self._blobs + self._digest), 2)
        except NotFound:
            return False
        size = response.headers.get("Content-Length", str(self._size))
        if size != str(self._size):
            host = netloc(response.request.url)
            raise ArtifactMismatch(f"{host} has {size} bytes as {self._digest}, which are {self._size}; remove them")
        return True

    def _send(self) -> None:
        if not self._session:
            self._session = _location(self._http.request("POST", self._blobs + "uploads/"))
            self._there = 0
        kind = {"Content-Type": "application/octet-stream"}
        length = self._size - self._there
        if self._size > _WHOLE and length:
            sent = self._http.request(
                "PATCH",
                self._session,
                content=Body(self._content, self._there),
                headers={**kind, "Content-Length": str(length), "Content-Range": f"{self._there}-{self._size - 1}"},
            )
            self._session, self._there, length = _location(sent), self._size, 0
        url = httpx2.URL(self._session).copy_merge_params({"digest": self._digest})
        content = Body(self._content, self._there) if length else b""
        self._http.request("PUT", str(url), content=content, headers={**kind, "Content-Length": str(length)})

    def _resumable(self) -> bool:
        """Ask how far the upload came; one of which nobody knows begins anew."""
        if not self._session:
            return False
        try:
            response = self._http.request("GET", self._session)
        except (BadInput, SourceUnreachable):
            self._session = ""
            return False
        self._session = _location(response)
        match = _RANGE.fullmatch(response.headers.get("Range", ""))
        last = int(match.group(1)) if match else 0
        if not 0 < last < self._size or self._size <= _WHOLE:  # "0-0" is nothing, or one byte
            self._abandon()
            return False
        self._there = last + 1
        return True

    def _abandon(self) -> None:
        """Have the registry forget what it has of the upload, which takes its room; otherwise it does in a week."""
        if self._session:
            with suppress(BadInput, SourceUnreachable):
                self._http.request("DELETE", self._session)
        self._session = ""


def _location(response: httpx2.Response) -> str:
    return str(httpx2.URL(str(response.request.url)).join(response.headers.get("Location", "")))
