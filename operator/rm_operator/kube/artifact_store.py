"""Asks the artifact store, over the OCI distribution API, what it has. Digests come from here, never from a pod."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import aiohttp
import yarl
from rm_api import names

from rm_operator.kube.auth import TokenSource
from rm_operator.kube.registry_token import NoToken, RegistryAuthenticator
from rm_operator.plan.artifact import Presence, StoreAnswer

TIMEOUT_SECONDS = 5.0
FORGET_SECONDS = 30.0
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_PAGE: Final = 1000
_MOST_PAGES: Final = 1000


class StoreTrouble(Exception):
    """The store did not do what it was told; the message says why. It may, later."""


class ArtifactStore:
    """The store as the operator reaches it. Close it when done.

    ``observe`` is told of each request: its URL, the HTTP status (0: no answer), seconds. ``authority`` are
    certificates (PEM) that are believed beside those of the system; ``account`` gives the token that the store's token
    service takes.
    """

    def __init__(
        self,
        host: str,
        *,
        plain_http: bool,
        observe: Callable[[str, int, float], None] | None = None,
        authority: str = "",
        account: TokenSource | None = None,
    ) -> None:
        self._base = f"{'http' if plain_http else 'https'}://{host}/v2"
        self._observe = observe
        self._tls = ssl.create_default_context()
        if authority:
            self._tls.load_verify_locations(cadata=authority)
        self._middlewares = (RegistryAuthenticator(yarl.URL(self._base), account),) if account is not None else ()
        self._session: aiohttp.ClientSession | None = None
        self._going: set[str] = set()
        """Repositories that are being forgotten, of which nobody may say that they are there."""

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def ask(self, repository: str, tag: str = names.ARTIFACT_TAG) -> StoreAnswer:
        """What the store has under a tag of ``repository``. Never raises: no answer is an answer too."""
        if repository in self._going:
            return StoreAnswer(Presence.UNREACHABLE, message="what it has under this name is being removed")
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await self._ask(repository, tag)
        except TimeoutError:
            return StoreAnswer(Presence.UNREACHABLE, message=f"no answer within {TIMEOUT_SECONDS:.0f} s")
        except (aiohttp.ClientError, NoToken, OSError, ValueError) as error:
            return StoreAnswer(Presence.UNREACHABLE, message=str(error) or type(error).__name__)

    async def forget(self, repository: str) -> None:
        """Deletes every manifest of ``repository``; what they held is freed when the store collects its garbage.

        Nothing to delete is as good. Raises StoreTrouble where the store does not answer or does not do it.
        """
        with _troubles(f"delete {repository}"):
            async with asyncio.timeout(FORGET_SECONDS):
                await self._forget(repository, await self._tags(repository))

    async def forget_unless(self, repository: str, is_used: Callable[[], Awaitable[bool]]) -> bool:
        """Forgets it, if it is of nobody's use; False if it is.

        Whoever asks for it meanwhile gets no answer, and so nobody takes it for being there who was not asked here.
        """
        if repository in self._going:
            return False
        self._going.add(repository)
        try:
            if await is_used():
                return False
            await self.forget(repository)
        finally:
            self._going.discard(repository)
        return True

    async def forget_tag(self, repository: str, tag: str) -> None:
        """Deletes the manifest under one tag. Raises StoreTrouble."""
        with _troubles(f"delete {repository}:{tag}"):
            async with asyncio.timeout(FORGET_SECONDS):
                await self._forget(repository, (tag,))

    async def repositories(self) -> list[str]:
        """All repositories of the store. Raises StoreTrouble, also where it does not tell."""
        found: list[str] = []
        after: dict[str, str] = {"n": str(_PAGE)}
        with _troubles("list its repositories"):
            for _ in range(_MOST_PAGES):
                async with asyncio.timeout(FORGET_SECONDS):
                    url = str(yarl.URL(f"{self._base}/_catalog").with_query(after))
                    status, body, headers = await self._request("GET", url)
                _require(status, 200)
                found += map(str, json.loads(body).get("repositories") or ())
                # RFC 5988: only where the next page begins is taken from it, not whose it is.
                following = parse_qs(urlsplit(headers.get("Link", "").partition(">")[0].lstrip("< ")).query)
                if not following.get("last"):
                    return found
                after["last"] = following["last"][0]
            raise ValueError(f"it has more than {_MOST_PAGES * _PAGE} repositories")

    async def tags(self, repository: str) -> tuple[str, ...]:
        """The tags of a repository; none of one that it does not have. Raises StoreTrouble."""
        with _troubles(f"list the tags of {repository}"):
            async with asyncio.timeout(FORGET_SECONDS):
                return await self._tags(repository)

    async def _tags(self, repository: str) -> tuple[str, ...]:
        status, body, _ = await self._request("GET", f"{self._base}/{repository}/tags/list")
        if status == 404:
            return ()
        _require(status, 200)
        return tuple(map(str, json.loads(body).get("tags") or ()))

    async def _forget(self, repository: str, tags: tuple[str, ...]) -> None:
        digests = set()
        for tag in tags:
            status, _, headers = await self._request("HEAD", f"{self._base}/{repository}/manifests/{tag}")
            if status != 404:
                _require(status, 200)
                digests.add(headers["Docker-Content-Digest"])
        for digest in sorted(digests):
            status, _, _ = await self._request("DELETE", f"{self._base}/{repository}/manifests/{digest}")
            if status != 404:
                _require(status, 202)

    async def _ask(self, repository: str, tag: str) -> StoreAnswer:
        status, body, headers = await self._request("GET", f"{self._base}/{repository}/manifests/{tag}")
        if status == 404:
            return StoreAnswer(Presence.ABSENT)
        _require(status, 200)
        manifest: dict[str, Any] = json.loads(body)
        annotations = manifest.get("annotations") or {}
        return StoreAnswer(
            Presence.FOUND,
            digest=headers.get("Docker-Content-Digest", ""),
            size_bytes=sum(int(layer["size"]) for layer in manifest.get("layers") or []),
            key=str(annotations.get(names.OCI_ANNOTATION_KEY, "")),
        )

    async def _request(self, method: str, url: str) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, the beginning of the body, headers."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls),
                middlewares=self._middlewares,
                headers={"Accept": names.MEDIA_TYPE_MANIFEST},
            )
        loop = asyncio.get_running_loop()
        started, status = loop.time(), 0
        try:
            async with self._session.request(method, url) as response:
                status = response.status
                return status, await response.content.read(MAX_MANIFEST_BYTES), response.headers
        finally:
            if self._observe is not None:
                self._observe(url, status, loop.time() - started)


@contextmanager
def _troubles(what: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise StoreTrouble(f"the artifact store did not {what} within {FORGET_SECONDS:.0f} s") from None
    except (aiohttp.ClientError, NoToken, OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise StoreTrouble(f"the artifact store does not {what}: {error}") from None


def _require(status: int, wanted: int) -> None:
    if status != wanted:
        raise ValueError(
            f"it answered {status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else ''}".strip()
        )
