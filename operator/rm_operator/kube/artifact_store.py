"""Asks the artifact store, over the OCI distribution API, what it has. Digests come from here, never from a pod."""

import asyncio
import json
import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
import yarl
from rm_api import names

from rm_operator.kube.auth import TokenSource
from rm_operator.kube.registry_token import NoToken, RegistryAuthenticator
from rm_operator.plan.artifact import Presence, StoreAnswer

TIMEOUT_SECONDS = 5.0
MAX_MANIFEST_BYTES = 4 * 1024 * 1024


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

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def ask(self, repository: str, tag: str = names.ARTIFACT_TAG) -> StoreAnswer:
        """What the store has under a tag of ``repository``. Never raises: no answer is an answer too."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await self._ask(repository, tag)
        except TimeoutError:
            return StoreAnswer(Presence.UNREACHABLE, message=f"no answer within {TIMEOUT_SECONDS:.0f} s")
        except (aiohttp.ClientError, NoToken, OSError, ValueError) as error:
            return StoreAnswer(Presence.UNREACHABLE, message=str(error) or type(error).__name__)

    async def _ask(self, repository: str, tag: str) -> StoreAnswer:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls),
                middlewares=self._middlewares,
                headers={"Accept": names.MEDIA_TYPE_MANIFEST},
            )
        url = f"{self._base}/{repository}/manifests/{tag}"
        loop = asyncio.get_running_loop()
        started, status = loop.time(), 0
        try:
            async with self._session.get(url) as response:
                status = response.status
                if status == 404:
                    return StoreAnswer(Presence.ABSENT)
                if status != 200:
                    return StoreAnswer(Presence.UNREACHABLE, message=f"it answered {status} {response.reason}")
                body = await response.content.read(MAX_MANIFEST_BYTES)
                digest = response.headers.get("Docker-Content-Digest", "")
        finally:
            if self._observe is not None:
                self._observe(url, status, loop.time() - started)
        manifest: dict[str, Any] = json.loads(body)
        annotations = manifest.get("annotations") or {}
        return StoreAnswer(
            Presence.FOUND,
            digest=digest,
            size_bytes=sum(int(layer["size"]) for layer in manifest.get("layers") or []),
            key=str(annotations.get(names.OCI_ANNOTATION_KEY, "")),
        )
