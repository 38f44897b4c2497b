"""The operator's way into a registry with a token service: its own ServiceAccount token for a token of the registry."""

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import yarl

from rm_operator.kube.auth import ConfigError, TokenSource

_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_LOGIN: Final = "serviceaccount"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_SPARE_SECONDS: Final = 30.0
"""A token is not used in the last of its life: it would run out on the way."""
_DEFAULT_SECONDS: Final = 60.0
"""What a token lives where the service does not say, by the protocol."""
_MAX_KEPT: Final = 4096


class NoToken(Exception):
    """The registry's token service gave no token; the message says why."""


@dataclass(frozen=True)
class _Kept:
    token: str
    until: float


class RegistryAuthenticator:
    """Middleware of a session: answers the challenge of one registry, and of nobody else.

    The ServiceAccount token is shown to the token service that this registry names, over TLS only (or on this
    machine), and follows no redirect.
    """

    def __init__(self, registry: yarl.URL, account: TokenSource) -> None:
        self._origin = registry.origin()
        self._account = account
        self._kept: dict[tuple[str, str], _Kept] = {}

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send the request, with a token if one is needed. Raises NoToken."""
        if request.url.origin() != self._origin:
            return await handler(request)
        key = (request.method, request.url.path)
        loop = asyncio.get_running_loop()
        kept = self._kept.get(key)
        if kept is not None and loop.time() < kept.until:
            request.headers["Authorization"] = f"Bearer {kept.token}"
        response = await handler(request)
        challenge = response.headers.get("WWW-Authenticate", "")
        if response.status != 401 or not challenge.lower().startswith("bearer "):
            return response
        response.release()
        fresh = await self._fetch(request.session, dict(_CHALLENGE.findall(challenge)))
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        self._kept[key] = fresh
        request.headers["Authorization"] = f"Bearer {fresh.token}"
        return await handler(request)

    async def _fetch(self, session: aiohttp.ClientSession, challenge: dict[str, str]) -> _Kept:
        realm = _realm(challenge.get("realm", ""))
        query = {name: challenge[name] for name in ("service", "scope") if challenge.get(name)}
        try:
            account = await self._account.token()
        except ConfigError as error:
            raise NoToken(str(error)) from None
        credential = aiohttp.BasicAuth(_LOGIN, account)
        where = f"the token service {realm.host}"
        started = asyncio.get_running_loop().time()
        async with session.get(
            realm.update_query(query), auth=credential, allow_redirects=False, middlewares=()
        ) as response:
            if response.status == 401:
                self._account.invalidate()
                raise NoToken(f"{where} does not accept the operator's token")
            if response.status != 200:
                raise NoToken(f"{where} answered {response.status} {response.reason}")
            body: Any = await response.json(content_type=None)
        token = body.get("token") or body.get("access_token") if isinstance(body, dict) else None
        if not isinstance(token, str) or not token:
            raise NoToken(f"{where} answered without a token")
        lives = body.get("expires_in")
        seconds = float(lives) if isinstance(lives, int) and lives > 0 else _DEFAULT_SECONDS
        return _Kept(token, started + seconds - _SPARE_SECONDS)


def _realm(text: str) -> yarl.URL:
    try:
        realm = yarl.URL(text)
    except ValueError:
        realm = yarl.URL()
    if not realm.host or (realm.scheme != "https" and (realm.scheme != "http" or realm.host not in _LOOPBACK)):
        raise NoToken(f"the registry names the token service {text!r}, which is not reached over TLS")
    return realm
